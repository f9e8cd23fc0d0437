"""
How old a response is and how long it is fresh: RFC 9111 section 4.2.

Age is counted from one instant, `generated_at`, at which it was zero. Everything else follows by subtraction.
"""

from __future__ import annotations

import enum
import math
from struct import pack
from typing import Final, TypeAlias
from zlib import crc32

from echo_cache import fields
from echo_cache.fields import ResponseDirectives
from echo_cache.model import Request
from echo_cache.options import PolicyOptions, RouteOptions
from echo_cache.policy.fieldmap import FieldMap, joined

__all__ = [
    "HEURISTIC_STATUSES",
    "NEGATIVE_STATUSES",
    "Lifetime",
    "Source",
    "directives_of",
    "freshness_lifetime",
    "generation_time",
    "jittered_expiry",
]

# RFC 9110 section 15.1; 206 is left out, since partial responses are never stored here.
HEURISTIC_STATUSES = frozenset({200, 203, 204, 300, 301, 308, 404, 405, 410, 414, 501})
# Who asks for what is not there yet will ask again: these say "not now" as often as "never".
NEGATIVE_STATUSES = frozenset({404, 410})


class Source(enum.Enum):
    """Where a freshness lifetime comes from."""

    ROUTE = "route"
    EXPLICIT = "explicit"
    HEURISTIC = "heuristic"
    DEFAULT = "default"
    NONE = "none"


Lifetime: TypeAlias = tuple[float, Source]
"""A freshness lifetime in seconds from generation, and its source."""

_NO_LIFETIME: Lifetime = (0.0, Source.NONE)
_MURMUR3_MULTIPLIER: Final = 0x85EBCA6B


def directives_of(lines: FieldMap, options: PolicyOptions) -> tuple[ResponseDirectives, bool]:
    """
    Return the directives that govern this cache, and whether they come from a targeted field.

    The first valid targeted field wins, and Cache-Control and Expires are ignored then. RFC 9213 section 2.2.
    """
    for name in options.targeted_fields:
        value = joined(lines, name.encode())
        if value is not None and (targeted := fields.parse_targeted(value)) is not None:
            return targeted, True
    return fields.parse_response_directives(joined(lines, b"cache-control")), False


def generation_time(lines: FieldMap, request_time: float, response_time: float) -> float:
    """
    Return the instant at which the age of a response was zero, as epoch seconds.

    A missing or malformed Date is the time of receipt; a future one makes the response new. RFC 9111 section 4.2.3.
    """
    apparent_age = response_time - _date_of(lines, response_time)
    corrected_age = max(0.0, response_time - request_time)
    if b"age" in lines:
        corrected_age += fields.parse_age(lines[b"age"]) or 0.0
    return response_time - max(apparent_age, corrected_age)


def freshness_lifetime(
    status: int,
    lines: FieldMap,
    directives: ResponseDirectives,
    *,
    targeted: bool,
    anonymous: bool,
    generated_at: float,
    response_time: float,
    options: PolicyOptions,
    route: RouteOptions,
) -> Lifetime:
    """
    Return how long a response is fresh from its generation.

    The first match wins: the route's, s-maxage, max-age, Expires, the heuristic, default_ttl. A value that is present
    but invalid means stale. *anonymous*: the request had neither Cookie nor Authorization, so that a guess is allowed.
    For a 404 or 410 the route's own negative_ttl is the very first; all but what the response says of itself is at
    most the policy's negative_ttl.

    RFC 9111 sections 4.2.1 and 4.2.2; targeted fields RFC 9213 section 2.2.
    """
    ttl = _ttl_of_route(status, options, route)
    if ttl is not None:
        # It counts from now: what an upstream did before does not shorten the time that the route chose. It chose for
        # its answers; an error that says nothing of itself is not one of them.
        return response_time - generated_at + ttl, Source.ROUTE
    if directives.s_maxage is not None:
        return float(directives.s_maxage), Source.EXPLICIT
    if directives.max_age is not None:
        return float(directives.max_age), Source.EXPLICIT
    expires = lines.get(b"expires")
    if expires and not targeted:
        until = fields.parse_date(expires[0], response_time)
        return 0.0 if until is None else max(0.0, until - _date_of(lines, response_time)), Source.EXPLICIT
    if directives.no_cache or not (status in HEURISTIC_STATUSES or directives.public):
        return _NO_LIFETIME
    # A file of one user, behind a session cookie, has a Last-Modified as well: section 4.2.2 permits a guess, and
    # asks for none.
    if anonymous or directives.public:
        guess = _heuristic(lines, response_time, options)
        if guess is not None:
            return min(guess, _longest_given(status, options)), Source.HEURISTIC
    if options.default_ttl is not None and anonymous and status in HEURISTIC_STATUSES and b"pragma" not in lines:
        return min(options.default_ttl, _longest_given(status, options)), Source.DEFAULT
    return _NO_LIFETIME


def jittered_expiry(fresh_until: float, request: Request, response_time: float, options: PolicyOptions) -> float:
    """
    Return when a response to *request* becomes stale that could be fresh until *fresh_until*, as epoch seconds.

    Earlier by a share of what remains at *response_time*, in [0, expiry_jitter), and never later. The share is told by
    the request's target and the time, so the same fill always gives the same.
    """
    remaining = fresh_until - response_time
    if remaining <= 0:
        return fresh_until
    return fresh_until - remaining * options.expiry_jitter * _share(request, response_time)


def _ttl_of_route(status: int, options: PolicyOptions, route: RouteOptions) -> float | None:
    """Return for how long from now the route wants a response with this *status* fresh, None where it says nothing."""
    if status in NEGATIVE_STATUSES:
        if route.negative_ttl is not None:
            return route.negative_ttl
        return None if route.ttl is None else min(route.ttl, _longest_given(status, options))
    return route.ttl if status in HEURISTIC_STATUSES else None


def _longest_given(status: int, options: PolicyOptions) -> float:
    """Return the longest lifetime that a response with this *status* may have from others, in seconds."""
    return math.inf if options.negative_ttl is None or status not in NEGATIVE_STATUSES else options.negative_ttl


def _share(request: Request, response_time: float) -> float:
    """Return a number in [0, 1) for this target and this time, evenly spread over targets and over times."""
    target = (request.host or b"", request.path, request.query, pack("<d", response_time))
    crc = crc32(b"\0".join(target))
    # CRC-32 alone is linear, and crowds targets that differ in a few digits: over 20 buckets, chi-squared is 174 for
    # ?page=0 to 999, where 19 is expected. One step of MurmurHash3's finaliser makes it 18, for 0.15 us (once).
    return ((crc ^ crc >> 16) * _MURMUR3_MULTIPLIER & 0xFFFFFFFF) / 2**32


def _heuristic(lines: FieldMap, response_time: float, options: PolicyOptions) -> float | None:
    """Return a part of the time since Last-Modified, in seconds, None where it cannot be told. RFC 9111 4.2.2."""
    modified = lines.get(b"last-modified")
    if not modified or not options.heuristic_fraction:
        return None
    since = fields.parse_date(modified[0], response_time)
    if since is None:
        return None
    guess = (_date_of(lines, response_time) - since) * options.heuristic_fraction
    return min(max(0.0, guess), options.heuristic_max)


def _date_of(lines: FieldMap, response_time: float) -> float:
    """Return the Date of a response, or *response_time* where it is missing or malformed. RFC 9110 section 6.6.1."""
    dates = lines.get(b"date")
    date = fields.parse_date(dates[0], response_time) if dates else None
    return response_time if date is None else date
