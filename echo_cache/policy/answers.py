"""
What a client gets from a stored response: the whole, a 304, a part, or no body. RFC 9111 section 4.3.2.

The one rule: the client's own preconditions and ranges are applied to the stored response and never reach a fill.
"""

from __future__ import annotations

from dataclasses import dataclass

from echo_cache import fields
from echo_cache.model import Entry, Headers, Request
from echo_cache.policy.fieldmap import JoinedFields, first_line, joined_fields
from echo_cache.policy.ranges import Part, select_part

__all__ = ["NOT_IN_304", "Answer", "answer", "answered_headers", "is_not_modified", "told_to_client"]

# RFC 9110 section 15.4.5: a 304 carries what updates a stored response, not what describes a body it does not have.
NOT_IN_304 = frozenset(
    {
        *(b"content-digest", b"content-encoding", b"content-language", b"content-length", b"content-md5"),
        *(b"content-range", b"content-type"),
    }
)
# These describe the bytes of the message, which in a 206 are a part (RFC 9530 section 2).
_NOT_IN_206 = frozenset({b"content-length", b"content-digest", b"content-md5"})
# A 416 says nothing of the stored response; with its freshness and validators, others would keep the refusal.
_NOT_IN_416 = NOT_IN_304 | {b"age", b"etag", b"expires", b"last-modified"}
_BODILESS = frozenset({204, 205})


@dataclass(frozen=True, slots=True)
class Answer:
    """A response ready to send, but for Cache-Status."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


def answer(request: Request, entry: Entry, now: float) -> Answer:
    """
    Return what *request* gets from *entry*: its preconditions first, then its range (RFC 9110 section 13.2.2).

    HEAD gets the fields without the body.
    """
    response = entry.response
    headers = answered_headers(entry, now)
    if response.status != 200:
        # RFC 9111 section 4.3.2: preconditions are evaluated for a stored 200.
        return Answer(response.status, headers, b"" if request.method == "HEAD" else response.body)
    asked = joined_fields(request.headers)
    if is_not_modified(asked, response.headers, entry.stored_at):
        return Answer(304, [line for line in headers if line[0] not in NOT_IN_304], b"")
    if request.method == "HEAD":
        return Answer(200, headers, b"")
    part = select_part(asked, response.headers, len(response.body), entry.stored_at) if b"range" in asked else None
    if part is None:
        return Answer(200, headers, response.body)
    return _partial(part, headers, response.body)


def answered_headers(entry: Entry, now: float) -> list[tuple[bytes, bytes]]:
    """
    Return the fields of *entry* as they are sent at *now*: with Age, Content-Length and what clients are told.

    RFC 9111 section 5.1: an answer from a cache always carries its Age, in whole seconds.
    """
    response = entry.response
    age = int(max(0.0, now - entry.generated_at))
    headers = told_to_client(response.headers, entry.client_ttl, age)
    if response.status not in _BODILESS and first_line(headers, b"content-length") is None:
        headers.append((b"content-length", b"%d" % len(response.body)))
    headers.append((b"age", b"%d" % age))
    return headers


def told_to_client(headers: Headers, client_ttl: float | None, age: int) -> list[tuple[bytes, bytes]]:
    """
    Return *headers* with the Cache-Control that a route wants clients to see, or as they are.

    The client counts its time from generation, so what it is told is the age so far and *client_ttl* on top. Where
    the response itself restricts caches (no-store, no-cache, private) its own word stands.
    """
    if client_ttl is None:
        return list(headers)
    said = fields.parse_response_directives(fields.get_joined(headers, b"cache-control"))
    if said.no_store or said.no_cache or said.private:
        return list(headers)
    told = [line for line in headers if line[0] not in (b"cache-control", b"expires")]
    told.append((b"cache-control", b"max-age=%d" % (age + int(client_ttl))))
    return told


def is_not_modified(asked: JoinedFields, stored: Headers, received: float) -> bool:
    """
    Say whether the request's If-None-Match or If-Modified-Since find the *stored* fields unchanged.

    If-None-Match takes precedence. Without Last-Modified, Date and then the time at which the response was
    *received* stand in for it.

    RFC 9110 sections 13.1.2, 13.1.3 and 13.2.2; RFC 9111 section 4.3.2.
    """
    tags = asked.get(b"if-none-match")
    if tags is not None:
        wanted = fields.parse_etag_list(tags)
        if wanted == "*":
            return True
        etag = fields.parse_etag(first_line(stored, b"etag") or b"")
        return etag is not None and any(fields.weak_match(etag, candidate) for candidate in wanted)
    date = asked.get(b"if-modified-since")
    since = None if date is None else fields.parse_date(date, received)
    if since is None:
        return False
    for name in (b"last-modified", b"date"):
        value = first_line(stored, name)
        if value is not None:
            modified = fields.parse_date(value, received)
            return modified is not None and modified <= since
    return received <= since


def _partial(part: Part, headers: list[tuple[bytes, bytes]], body: bytes) -> Answer:
    """Return the 206 or 416 for *part*. RFC 9110 sections 15.3.7 and 15.5.17."""
    if part.is_unsatisfiable:
        kept = [line for line in headers if line[0] not in _NOT_IN_416 and not line[0].endswith(b"cache-control")]
        return Answer(416, [*kept, (b"content-range", part.content_range), (b"content-length", b"0")], b"")
    content = body[part.start : part.stop]
    kept = [line for line in headers if line[0] not in _NOT_IN_206]
    kept += [(b"content-range", part.content_range), (b"content-length", b"%d" % len(content))]
    return Answer(206, kept, content)
