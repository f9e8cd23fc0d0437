"""Short ways to say "this request", "this response" and "this stored response" in the tables of test_policy_*.py."""

from __future__ import annotations

from typing import Any

from echo_cache.fields import format_date
from echo_cache.model import Entry, Request
from echo_cache.options import PolicyOptions
from echo_cache.policy import Admission, admit
from echo_cache.policy.storing import with_body

NOW = 1_700_000_000.0
"""The time of every test's response, epoch seconds: Tue, 14 Nov 2023 22:13:20 GMT."""

SAFE = PolicyOptions()
PLAIN = PolicyOptions.rfc9111()

BODY = b"0123456789"

Pairs = list[tuple[bytes, bytes]]


def date(offset: float) -> str:
    """Return the HTTP date *offset* seconds from NOW."""
    return format_date(NOW + offset).decode()


def pairs(*lines: str) -> Pairs:
    """Return "name: value" *lines* as field pairs, names in lower case; "name:" has an empty value."""
    split = [line.partition(":") for line in lines]
    return [(name.lower().encode("latin-1"), value.strip(" ").encode("latin-1")) for name, _, value in split]


def asking(*lines: str, **changes: Any) -> Request:
    """Return a GET of http://example.com/a with these field *lines*, or as *changes* have it."""
    given: dict[str, Any] = {
        "method": "GET",
        "scheme": "http",
        "host": b"example.com",
        "path": b"/a",
        "query": b"",
        "headers": [(b"host", b"example.com"), *pairs(*lines)],
    }
    return Request(**{**given, **changes})


def admission(
    *lines: str,
    status: int = 200,
    request: Request | None = None,
    options: PolicyOptions = PLAIN,
    sent: float = NOW,
    now: float = NOW,
    **more: Any,
) -> Admission:
    """Return the verdict on a response with these field *lines*, asked for at *sent* and received at *now*."""
    request = asking() if request is None else request
    return admit(request, status, pairs(*lines), request_time=sent, response_time=now, options=options, **more)


def stored(*lines: str, body: bytes = BODY, own_etag: bytes | None = None, **more: Any) -> Entry:
    """Return the entry of a response with these field *lines*, which must be admitted."""
    verdict = admission(*lines, **more)
    assert verdict.entry is not None, verdict.refusal
    return with_body(verdict.entry, body, own_etag)
