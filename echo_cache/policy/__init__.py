"""
RFC 9111 as pure functions: no clock, no I/O, no chance. `now` is always an argument.

Two narrow doors: `admit` says whether a response may be stored and for how long, `decide` says what a request gets.
"""

from echo_cache.policy.answers import Answer, answer, answered_headers, told_to_client
from echo_cache.policy.invalidation import invalidated_groups, invalidated_keys
from echo_cache.policy.keys import (
    decoded_key,
    key_of_url,
    matches,
    primary_key,
    request_of_scope,
    variant_fields,
    visible_query,
)
from echo_cache.policy.reuse import decide, may_serve_on_error, refresh_from
from echo_cache.policy.storing import Admission, admit, with_body
from echo_cache.policy.validation import freshen, freshen_by_head, without_conditions

__all__ = [
    "Admission",
    "Answer",
    "admit",
    "answer",
    "answered_headers",
    "decide",
    "decoded_key",
    "freshen",
    "freshen_by_head",
    "invalidated_groups",
    "invalidated_keys",
    "key_of_url",
    "matches",
    "may_serve_on_error",
    "primary_key",
    "refresh_from",
    "request_of_scope",
    "told_to_client",
    "variant_fields",
    "visible_query",
    "with_body",
    "without_conditions",
]
