"""
May a response be stored, and how long is it good for: RFC 9111 section 3.

The one rule: storing is decided on what the request and the response say in their fields, never on what the path
looks like. Whatever is doubtful is not stored.
"""

from __future__ import annotations

import functools
from collections.abc import Collection
from itertools import chain
from typing import NamedTuple

from echo_cache import fields
from echo_cache.fields import ResponseDirectives
from echo_cache.model import Entry, Headers, Refusal, Request, StoredResponse
from echo_cache.options import PolicyOptions, RequestDirectiveMode, RouteOptions
from echo_cache.policy.fieldmap import FieldMap, JoinedFields, field_map, joined, joined_fields
from echo_cache.policy.freshness import (
    HEURISTIC_STATUSES,
    Source,
    directives_of,
    freshness_lifetime,
    generation_time,
    jittered_expiry,
)
from echo_cache.policy.keys import CREDENTIAL_FIELDS, canonical_host, selected_by

__all__ = [
    "CONNECTION_FIELDS",
    "NO_ROUTE",
    "REFUSED_FOR_REQUEST",
    "Admission",
    "admit",
    "storable_fields",
    "unstored_fields",
    "with_body",
]

NO_ROUTE = RouteOptions()

# RFC 9111 section 3.1 with RFC 9110 section 7.6.1: these belong to one connection or to a proxy on the way.
CONNECTION_FIELDS = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authentication-info",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
_NOT_STORED = CONNECTION_FIELDS | {b"age"}
# The octets of a field name in lower case, as ASGI asks of apps: a "Private" in disguise must not be overlooked.
_NAME_OCTETS = b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz"

# RFC 9111 section 5.2.2.3: the status codes whose caching requirements are implemented here.
_UNDERSTOOD_STATUSES = HEURISTIC_STATUSES | {
    *(201, 202, 205, 302, 303, 307),
    *(400, 401, 403, 409, 421),
    *(500, 502, 503, 504),
}

# 304 describes another response. 412, 416 and 417 answer request fields that are not in the key, and 407 needs a
# field that is not stored. RFC 6585 says of the others that they MUST NOT be stored.
_NEVER_STORED_STATUSES = frozenset({304, 407, 412, 416, 417, 428, 429, 431, 511})

# A request that carries one of these has another method for some apps: what it gets is not the answer to a GET, and
# others have had such an error served to everyone (CPDoS).
_OVERRIDE_FIELDS = frozenset({b"x-http-method-override", b"x-http-method", b"x-method-override"})
# Half of what common servers accept: an error to a request with more is an answer to its size.
_SUSPECT_FIELD_BYTES = 8 * 1024
_ODD_OCTETS = frozenset({*range(9), *range(10, 32), *range(127, 256)})

REFUSED_FOR_REQUEST = frozenset(
    {
        *(Refusal.REQUEST_NO_STORE, Refusal.HOST, Refusal.SUSPECT_REQUEST),
        *(Refusal.AUTHORIZATION, Refusal.CREDENTIALS),
    }
)
"""Refusals that say something about who asked and how, nothing about a response that is stored already."""

# Longer values are parsed each time: a value of 1 MB must not stay in memory because an app sent it once.
_MAX_MEMOISED_BYTES = 256


# A named tuple, since one is made at each miss: 0.15 us to make, where a frozen dataclass takes 0.4.
class Admission(NamedTuple):
    """
    The verdict on a response whose head has arrived.

    entry: what to store once the body is complete (its body is empty until then), None when it may not be stored.
    refusal: why not. shareable: others who wait for the same key may have it as it comes.
    for_asker: after a validation, what whoever asked gets where that is not *entry*; it is never stored.
    """

    entry: Entry | None = None
    refusal: Refusal | None = None
    shareable: bool = False
    for_asker: Entry | None = None


def admit(
    request: Request,
    status: int,
    headers: Headers,
    *,
    request_time: float,
    response_time: float,
    options: PolicyOptions,
    route: RouteOptions = NO_ROUTE,
    mark: int = 0,
) -> Admission:
    """
    Say whether the response with this *status* and these *headers* to *request* may be stored, and for how long.

    *mark* is the position of the invalidation log before the app was called. RFC 9111 section 3.
    """
    lines = field_map(headers)
    directives, targeted = directives_of(lines, options)
    asked = joined_fields(request.headers)
    refusal = _refused_for_request(request, asked, status, directives, options, route) or _refused_for_response(
        status, lines, directives, options, route
    )
    if refusal is not None:
        return Admission(None, refusal)
    names = _selecting_fields(lines, route, options)
    if names is None:
        return Admission(None, Refusal.VARY)
    kept = storable_fields(headers, lines, directives)
    # One look at all of them costs a fifth of one look at each.
    text = b"".join(chain.from_iterable(kept))
    if not (_are_field_names(lines) and fields.is_valid_field_value(text)):
        return Admission(None, Refusal.INVALID_FIELD)
    if len(text) > options.max_header_bytes:
        return Admission(None, Refusal.HEADER_SIZE)

    generated_at = generation_time(lines, request_time, response_time)
    anonymous = CREDENTIAL_FIELDS.isdisjoint(asked)
    seconds, source = freshness_lifetime(
        status,
        lines,
        directives,
        targeted=targeted,
        anonymous=anonymous,
        generated_at=generated_at,
        response_time=response_time,
        options=options,
        route=route,
    )
    if source is Source.NONE:
        refusal = _refused_without_lifetime(status, directives, anonymous=anonymous)
        if refusal is not None:
            return Admission(None, refusal)
    fresh_until = generated_at + seconds
    if options.expiry_jitter:
        fresh_until = jittered_expiry(fresh_until, request, response_time, options)
    revalidate_window, error_window = _stale_windows(directives, source, options, route)
    fresh = fresh_until > response_time and not directives.no_cache
    validator = b"etag" in lines or b"last-modified" in lines
    retain_until = fresh_until + max(revalidate_window, error_window, options.keep if validator else 0.0)
    if retain_until <= response_time or not (fresh or validator or revalidate_window or error_window):
        return Admission(None, Refusal.NO_FRESHNESS if source is Source.NONE else Refusal.ALREADY_STALE)
    entry = Entry(
        StoredResponse(status, kept, b""),
        generated_at,
        response_time,
        fresh_until,
        retain_until,
        selected_by(asked, names) if names else (),
        _groups(lines, route),
        mark,
        revalidate_window,
        error_window,
        directives.no_cache,
        _forbids_stale(directives) or directives.s_maxage is not None,
        source is Source.DEFAULT or (source is Source.HEURISTIC and not directives.public),
        False,
        route.client_ttl,
    )
    return Admission(entry, None, fresh)


def with_body(entry: Entry, body: bytes, own_etag: bytes | None = None, route: str = "") -> Entry:
    """Return *entry* with its complete *body*, the *route* that made it and, if given, the ETag generated for it."""
    response = entry.response
    headers = response.headers
    if own_etag is not None:
        headers = (*headers, (b"etag", own_etag))
    return Entry(
        StoredResponse(response.status, headers, body),
        entry.generated_at,
        entry.stored_at,
        entry.fresh_until,
        entry.retain_until,
        entry.vary,
        entry.groups,
        entry.mark,
        entry.stale_while_revalidate,
        entry.stale_if_error,
        entry.always_validate,
        entry.never_stale,
        entry.anonymous_only,
        own_etag is not None,
        entry.client_ttl,
        entry.is_capped,
        route,
    )


def unstored_fields(lines: FieldMap) -> frozenset[bytes]:
    """Return the names of the fields that are not stored: the connection's, those it lists, and Age."""
    listed = joined(lines, b"connection")
    if listed is None:
        return _NOT_STORED
    return _NOT_STORED | {name.lower() for name in fields.split_list(listed)}


def storable_fields(
    headers: Headers, lines: FieldMap, directives: ResponseDirectives
) -> tuple[tuple[bytes, bytes], ...]:
    """
    Return the fields to store, in order.

    RFC 9111 section 3.1; qualified no-cache and private (5.2.2.4, 5.2.2.7) name fields that are not stored. Age is
    made anew for each answer.
    """
    left_out = unstored_fields(lines)
    if directives.no_cache_fields or directives.private_fields:
        left_out = left_out | directives.no_cache_fields | directives.private_fields
    return tuple([(name, value) for name, value in headers if name not in left_out])


def _refused_for_request(
    request: Request,
    asked: JoinedFields,
    status: int,
    directives: ResponseDirectives,
    options: PolicyOptions,
    route: RouteOptions,
) -> Refusal | None:
    """Return the first reason in *request*, with the fields *asked*, for which nothing may be stored."""
    if request.method != "GET":
        # Not HEAD either: a response without a body must never stand in for one that has it.
        return Refusal.METHOD
    if request.has_body:
        return Refusal.REQUEST_BODY
    if b"range" in asked:
        return Refusal.REQUEST_RANGE
    if b"cache-control" in asked and _forbids_storing(asked, options):
        return Refusal.REQUEST_NO_STORE
    if options.allowed_hosts is not None and not _host_is_allowed(request, options.allowed_hosts):
        return Refusal.HOST
    if not _OVERRIDE_FIELDS.isdisjoint(asked) or (status >= 400 and _is_suspect(request.headers)):
        return Refusal.SUSPECT_REQUEST
    # RFC 9111 section 3.5
    if b"authorization" in asked and not (
        directives.public or directives.must_revalidate or directives.s_maxage is not None or route.share_authorized
    ):
        return Refusal.AUTHORIZATION
    return None


def _refused_for_response(
    status: int, lines: FieldMap, directives: ResponseDirectives, options: PolicyOptions, route: RouteOptions
) -> Refusal | None:
    """Return the first reason in the response for which it may not be stored, whatever its freshness."""
    if not route.store:
        return Refusal.ROUTE
    if status == 206 or b"content-range" in lines:
        return Refusal.PARTIAL
    if not 200 <= status <= 599 or status in _NEVER_STORED_STATUSES:
        return Refusal.STATUS
    if directives.must_understand:
        if status not in _UNDERSTOOD_STATUSES:
            return Refusal.NOT_UNDERSTOOD
    elif directives.no_store:
        return Refusal.NO_STORE
    if directives.private:
        return Refusal.PRIVATE
    if b"set-cookie" in lines and not (
        options.store_set_cookie
        or route.store_set_cookie
        or b"set-cookie" in directives.private_fields
        or b"set-cookie" in directives.no_cache_fields
    ):
        return Refusal.SET_COOKIE
    media_type = lines.get(b"content-type")
    if media_type is not None and media_type[0].lstrip()[:17].lower() == b"text/event-stream":
        return Refusal.EVENT_STREAM
    return None


def _refused_without_lifetime(status: int, directives: ResponseDirectives, *, anonymous: bool) -> Refusal | None:
    """
    Return why a response without any lifetime may not be kept even for validation; None when it may.

    RFC 9111 section 3, last condition; and who showed credentials may have got an answer of their own, unless the
    response says that caches may have it.
    """
    if status not in HEURISTIC_STATUSES and not directives.public:
        return Refusal.NO_FRESHNESS
    if not (anonymous or directives.public or directives.no_cache or directives.must_revalidate):
        return Refusal.CREDENTIALS
    return None


def _are_field_names(lines: FieldMap) -> bool:
    """Say whether the names of *lines* are field names in lower case. RFC 9110 section 5.1."""
    return b"" not in lines and not b"".join(lines).translate(None, _NAME_OCTETS)


def _forbids_storing(asked: JoinedFields, options: PolicyOptions) -> bool:
    """Say whether the request's no-store counts: not where request directives are ignored, as in `decide`."""
    if options.request_directives is RequestDirectiveMode.IGNORE:
        return False
    return fields.parse_request_directives(asked[b"cache-control"], None).no_store


def _host_is_allowed(request: Request, allowed: Collection[str]) -> bool:
    host = canonical_host(request.scheme, request.host)
    return host is not None and host.decode("latin-1") in allowed


def _is_suspect(headers: Headers) -> bool:
    """Say whether an error may be the answer to the shape of the request rather than to its target."""
    values = b"".join([value for _, value in headers])
    size = len(values) + sum(len(name) for name, _ in headers)
    return size > _SUSPECT_FIELD_BYTES or not _ODD_OCTETS.isdisjoint(values)


def _selecting_fields(lines: FieldMap, route: RouteOptions, options: PolicyOptions) -> tuple[bytes, ...] | None:
    """Return the sorted names of the request fields that select this response, None when nothing can."""
    vary = lines.get(b"vary")
    if vary is None:
        names: tuple[bytes, ...] | None = ()
    elif len(vary) == 1 and len(vary[0]) <= _MAX_MEMOISED_BYTES:
        names = _vary_memo(vary[0])
    else:
        names = fields.parse_vary(vary)
    if names is None:
        return None
    extra = {name.encode() for name in route.vary} if route.vary else set()
    allowed_origin = lines.get(b"access-control-allow-origin")
    if allowed_origin is not None and any(value.strip() != b"*" for value in allowed_origin):
        # A reflected origin without Vary: Origin would hand one site's permission to all.
        extra.add(b"origin")
    if extra:
        names = tuple(sorted({*names, *extra}))
    return names if len(names) <= options.max_vary_fields else None


@functools.lru_cache(maxsize=256)
def _vary_memo(value: bytes) -> tuple[bytes, ...] | None:
    return fields.parse_vary((value,))


def _forbids_stale(directives: ResponseDirectives) -> bool:
    return directives.must_revalidate or directives.proxy_revalidate


def _stale_windows(
    directives: ResponseDirectives, source: Source, options: PolicyOptions, route: RouteOptions
) -> tuple[float, float]:
    """
    Return (stale-while-revalidate, stale-if-error) in seconds: the route's, else the response's, else the default.

    s-maxage implies proxy-revalidate (RFC 9111 section 5.2.2.10). A window that the response or the route states
    beside it is the explicit permission that section 4.2.4 asks for; a default of ours is not. Nor is one for a
    response that was never fresh: it may have been for its first asker only.
    """
    if directives.no_cache or _forbids_stale(directives):
        return 0.0, 0.0
    revalidate: float | None = directives.stale_while_revalidate
    error: float | None = directives.stale_if_error
    if source is not Source.NONE:
        if route.stale_while_revalidate is not None:
            revalidate = route.stale_while_revalidate
        if route.stale_if_error is not None:
            error = route.stale_if_error
        if directives.s_maxage is None:
            revalidate = options.stale_while_revalidate if revalidate is None else revalidate
            error = options.stale_if_error if error is None else error
    return float(revalidate or 0.0), float(error or 0.0)


def _groups(lines: FieldMap, route: RouteOptions) -> tuple[str, ...]:
    """Return the cache groups of a response: the route's tags and those of Cache-Groups (RFC 9875 section 2)."""
    declared = fields.parse_groups(value) if (value := joined(lines, b"cache-groups")) is not None else ()
    if not route.tags:
        return declared
    # Cut as declared ones are, and as `invalidate` cuts what it is given: both sides must mean the same group.
    return tuple(dict.fromkeys((*(tag[: fields.MAX_GROUP_CHARS] for tag in route.tags), *declared)))
