"""
Asking the app whether a stored response still holds, and taking over what it answers: RFC 9111 section 4.3.

The one rule: a 304 that does not match what was asked changes nothing, and none may change what the body is.
"""

from __future__ import annotations

from echo_cache import fields
from echo_cache.fields import ResponseDirectives
from echo_cache.model import Entry, Headers, Refusal, Request, StoredResponse
from echo_cache.options import PolicyOptions, RouteOptions
from echo_cache.policy.fieldmap import field_map, first_line
from echo_cache.policy.freshness import generation_time
from echo_cache.policy.storing import (
    NO_ROUTE,
    REFUSED_FOR_REQUEST,
    Admission,
    admit,
    storable_fields,
    unstored_fields,
    with_body,
)

__all__ = ["CONDITIONAL_FIELDS", "conditions", "freshen", "freshen_by_head", "without_conditions"]

# What a client may ask with; in a fill they give way to the cache's own (RFC 9111 section 4.3.1).
CONDITIONAL_FIELDS = frozenset(
    {b"if-none-match", b"if-modified-since", b"if-range", b"if-match", b"if-unmodified-since", b"range"}
)

# RFC 9111 section 3.2 names Content-Length. The others say what the stored body is, which a 304 cannot change.
_BODY_FIELDS = frozenset({b"content-length", b"content-encoding", b"content-type", b"content-range"})

_NO_DIRECTIVES = ResponseDirectives()


def conditions(entry: Entry) -> tuple[tuple[bytes, bytes], ...]:
    """
    Return the fields that ask the app whether *entry* still holds; () when it has no validator of the app's.

    RFC 9111 section 4.3.1.
    """
    asked = []
    etag = _etag_of_app(entry)
    if etag is not None and fields.parse_etag(etag) is not None:
        asked.append((b"if-none-match", etag))
    modified = first_line(entry.response.headers, b"last-modified")
    if modified is not None:
        asked.append((b"if-modified-since", modified))
    return tuple(asked)


def without_conditions(headers: Headers) -> list[tuple[bytes, bytes]]:
    """Return request *headers* without the client's own conditions and ranges."""
    return [line for line in headers if line[0] not in CONDITIONAL_FIELDS]


def freshen(
    entry: Entry,
    request: Request,
    headers: Headers,
    *,
    request_time: float,
    response_time: float,
    options: PolicyOptions,
    route: RouteOptions = NO_ROUTE,
    mark: int = 0,
) -> Admission | None:
    """
    Return the verdict on *entry* after a 304 with these *headers*; None when the 304 is not about it.

    The admission's entry has the body and the freshened fields. Where it is refused, `for_asker` is what whoever
    asked gets, and nobody else: it may set a cookie. Refused for what the 304 says (no-store, say), the entry must go
    and is None; for who asked and how, it stays as it was.

    RFC 9111 sections 3.2, 4.3.3 and 4.3.4.
    """
    if not _is_about(entry, headers):
        return None
    merged = _merge(entry.response.headers, headers, response_time)
    # The app was asked with the cache's own conditions, and for the whole; what a HEAD brings holds for GET.
    asked = request._replace(method="GET", headers=without_conditions(request.headers))
    admission = admit(
        asked,
        entry.response.status,
        merged,
        request_time=request_time,
        response_time=response_time,
        options=options,
        route=route,
        mark=mark,
    )
    if admission.entry is not None:
        # The ETag that was generated here stays among the fields; the app must still not be asked about it.
        # What the handler called itself when it made the response it may not say again when it only confirms it.
        groups = tuple(dict.fromkeys((*entry.groups, *admission.entry.groups)))
        fresh = with_body(admission.entry, entry.response.body)._replace(own_etag=entry.own_etag, groups=groups)
        return Admission(fresh, None, admission.shareable)
    lines = field_map(merged)
    kept = storable_fields(merged, lines, _NO_DIRECTIVES)
    for_asker = entry
    if admission.refusal is not Refusal.INVALID_FIELD:
        for_asker = entry._replace(
            response=StoredResponse(entry.response.status, kept, entry.response.body),
            generated_at=generation_time(lines, request_time, response_time),
            stored_at=response_time,
            fresh_until=response_time,
        )
    stays = entry if admission.refusal in REFUSED_FOR_REQUEST else None
    return Admission(stays, admission.refusal, False, for_asker)


def freshen_by_head(
    entry: Entry,
    request: Request,
    status: int,
    headers: Headers,
    *,
    request_time: float,
    response_time: float,
    options: PolicyOptions,
    route: RouteOptions = NO_ROUTE,
    mark: int = 0,
) -> Admission | None:
    """
    Return the verdict on *entry* after the app's answer to a HEAD; None when the entry is to stay as it is.

    A 200 with the same validators and length freshens it as a 304 would; with others, the stored response is no longer
    what the app would send, and the admission's entry is None: it must go. One without a validator says nothing: a body
    of the same length may be another one. RFC 9111 section 4.3.5.
    """
    if status != 200 or entry.response.status != 200:
        return None
    compared = (
        (b"etag", _etag_of_app(entry)),
        (b"last-modified", first_line(entry.response.headers, b"last-modified")),
        (b"content-length", b"%d" % len(entry.response.body)),
    )
    received = [(ours, theirs) for name, ours in compared if (theirs := first_line(headers, name)) is not None]
    if any(ours != theirs for ours, theirs in received):
        return Admission()
    if first_line(headers, b"etag") is None and first_line(headers, b"last-modified") is None:
        return None
    admission = freshen(
        entry,
        request,
        headers,
        request_time=request_time,
        response_time=response_time,
        options=options,
        route=route,
        mark=mark,
    )
    return None if admission is None or admission.refusal in REFUSED_FOR_REQUEST else admission


def _is_about(entry: Entry, headers: Headers) -> bool:
    """
    Say whether a 304 with *headers* speaks of *entry*. RFC 9111 section 4.3.4.

    A strong ETag in it must be the stored one; else a weak one must match, else Last-Modified must be the same. A 304
    with no validator is taken as the answer about the one entry that was asked about.
    """
    answered, stored = first_line(headers, b"etag"), _etag_of_app(entry)
    if answered is not None and answered != stored:
        theirs, ours = fields.parse_etag(answered), fields.parse_etag(stored or b"")
        if theirs is None or not theirs.weak or (ours is not None and not fields.weak_match(theirs, ours)):
            return False
        if ours is None:
            return _same_modified(entry, headers) is True
    return answered is not None or _same_modified(entry, headers) is not False


def _same_modified(entry: Entry, headers: Headers) -> bool | None:
    """Say whether *headers* have the stored Last-Modified; None when they have none."""
    modified = first_line(headers, b"last-modified")
    return None if modified is None else modified == first_line(entry.response.headers, b"last-modified")


def _etag_of_app(entry: Entry) -> bytes | None:
    return None if entry.own_etag else first_line(entry.response.headers, b"etag")


def _merge(stored: Headers, answered: Headers, response_time: float) -> list[tuple[bytes, bytes]]:
    """
    Return the stored fields with those that the 304 brought in their place. RFC 9111 section 3.2.

    A 304 without Date was made now (RFC 9110 section 6.6.1); the stored Date would make it as old as what it renews.
    """
    left_out = (unstored_fields(field_map(answered)) - {b"age"}) | _BODY_FIELDS
    brought = [line for line in answered if line[0] not in left_out]
    names = {name for name, _ in brought}
    if b"date" not in names and first_line(stored, b"date") is not None:
        brought.append((b"date", fields.format_date(response_time)))
        names.add(b"date")
    return [line for line in stored if line[0] not in names] + brought
