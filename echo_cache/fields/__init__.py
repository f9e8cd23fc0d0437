"""
HTTP fields: pure parsers and serialisers, each total, linear in its input, and quoting its section.

A parser never raises, whatever the bytes; what malformed input means is said by the value it returns.
"""

from echo_cache.fields.cache_control import (
    RequestDirectives,
    ResponseDirectives,
    parse_request_directives,
    parse_response_directives,
    parse_targeted,
)
from echo_cache.fields.dates import format_date, parse_date
from echo_cache.fields.etags import ETag, parse_etag, parse_etag_list, strong_match, weak_match
from echo_cache.fields.lists import (
    MAX_DELTA_SECONDS,
    ContentLength,
    Headers,
    InvalidLength,
    get_all,
    get_joined,
    is_valid_field_name,
    is_valid_field_value,
    parse_age,
    parse_content_length,
    parse_delta_seconds,
    split_list,
)
from echo_cache.fields.ranges import MAX_RANGES, ByteRanges, RangeRefusal, parse_byte_ranges
from echo_cache.fields.selecting import normalise, normalise_accept_encoding, normalise_accept_language, parse_vary
from echo_cache.fields.structured import (
    MAX_GROUP_CHARS,
    MAX_GROUPS,
    cache_status_member,
    parse_dictionary,
    parse_groups,
    parse_list,
)

__all__ = [
    "MAX_DELTA_SECONDS",
    "MAX_GROUPS",
    "MAX_GROUP_CHARS",
    "MAX_RANGES",
    "ByteRanges",
    "ContentLength",
    "ETag",
    "Headers",
    "InvalidLength",
    "RangeRefusal",
    "RequestDirectives",
    "ResponseDirectives",
    "cache_status_member",
    "format_date",
    "get_all",
    "get_joined",
    "is_valid_field_name",
    "is_valid_field_value",
    "normalise",
    "normalise_accept_encoding",
    "normalise_accept_language",
    "parse_age",
    "parse_byte_ranges",
    "parse_content_length",
    "parse_date",
    "parse_delta_seconds",
    "parse_dictionary",
    "parse_etag",
    "parse_etag_list",
    "parse_groups",
    "parse_list",
    "parse_request_directives",
    "parse_response_directives",
    "parse_targeted",
    "parse_vary",
    "split_list",
    "strong_match",
    "weak_match",
]
