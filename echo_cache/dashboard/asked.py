"""
What a request asks for, read with bounds: parameters, a JSON body.

The one rule: whatever is sent, it is either what was asked for or an error in words. Nothing here raises anything else.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn
from urllib.parse import parse_qsl

from echo_cache.asgi.types import Receive, Scope

__all__ = ["MAX_BODY_BYTES", "Asked", "ClientGone", "Refused", "parse_query", "read_json"]

MAX_BODY_BYTES: Final = 64 * 1024
_MAX_PARAMETERS: Final = 100
_MAX_QUERY_BYTES: Final = 64 * 1024
# How long a body may take to come, in seconds.
_PATIENCE: Final = 10.0


class Refused(Exception):
    """Raised for what cannot be done as it was asked; answered as JSON."""

    def __init__(self, status: int, words: str, **headers: str) -> None:
        super().__init__(words)
        self.status = status
        self.words = words
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


class ClientGone(Exception):
    """Raised when the client left before its request was there."""


@dataclass(frozen=True, slots=True)
class Asked:
    """
    The parameters of a request, and what its JSON body has.

    Each method returns what is under *name*, None where it is absent. Raises Refused for what is not as it must be.
    """

    scope: Scope
    query: Mapping[str, list[str]] = field(default_factory=dict)
    body: Mapping[str, Any] = field(default_factory=dict)

    def only(self, *names: str) -> None:
        """Refuse what has another name."""
        for name in (*self.query, *self.body):
            if name not in names:
                allowed = f"allowed: {', '.join(names)}" if names else "nothing is asked for"
                raise Refused(400, f"unknown: {_short(name)}; {allowed}")

    def parameter(self, name: str, longest: int) -> str | None:
        """Return a parameter of the query, of 1 to *longest* characters."""
        values = self.query.get(name)
        if values is None:
            return None
        if len(values) > 1:
            raise Refused(400, f"{name} must be given once, not {len(values)} times")
        return _text(name, values[0], longest)

    def parameters(self, name: str, longest: int, most: int) -> list[str]:
        """Return all parameters of that name, *most* of them at most."""
        values = self.query.get(name, [])
        if len(values) > most:
            raise Refused(400, f"{name} may be given {most} times, not {len(values)} times")
        return [_text(name, value, longest) for value in values]

    def number(self, name: str, low: int, high: int) -> int | None:
        """Return a parameter that is a whole number, *low* to *high*."""
        text = self.parameter(name, 20)
        if text is None:
            return None
        if not (text.isascii() and text.isdigit() and low <= int(text) <= high):
            raise Refused(400, f"{name} must be a number, {low} to {high}, not {_short(text)}")
        return int(text)

    def chosen(self, name: str, allowed: tuple[str, ...]) -> str | None:
        """Return a parameter, or a text of the body, that is one of those *allowed*."""
        value = self.body.get(name) if name in self.body else self.parameter(name, 100)
        if value is not None and value not in allowed:
            raise Refused(400, f"{name} must be {' or '.join(allowed)}, not {_short(value)}")
        return value

    def text(self, name: str, longest: int) -> str | None:
        """Return a text of the body, of 1 to *longest* characters."""
        return _text(name, self.body[name], longest) if name in self.body else None

    def flag(self, name: str) -> bool:
        """Return what of the body is true or false; False where it is absent."""
        value = self.body.get(name, False)
        if not isinstance(value, bool):
            raise Refused(400, f"{name} must be true or false, not {_short(value)}")
        return value

    def texts(self, name: str, longest: int, most: int) -> list[str]:
        """Return the texts of the body under *name*: 1 to *most* of them."""
        values = self.body.get(name)
        if not isinstance(values, list) or not 1 <= len(values) <= most:
            raise Refused(400, f"{name} must be a list of 1 to {most} texts")
        return [_text(name, value, longest) for value in values]


def _text(name: str, value: object, longest: int) -> str:
    if not isinstance(value, str):
        raise Refused(400, f"{name} must be text, not {_short(value)}")
    if not 1 <= len(value) <= longest:
        raise Refused(400, f"{name} must have 1 to {longest} characters, not {len(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Refused(400, f"{name} has half a surrogate pair in it, which is no text") from None
    return value


def _short(value: object) -> str:
    return ascii(value)[:100]


def parse_query(raw: bytes) -> dict[str, list[str]]:
    """Return the parameters in the query string *raw*."""
    if len(raw) > _MAX_QUERY_BYTES:
        raise Refused(400, f"the query may have {_MAX_QUERY_BYTES} octets, not {len(raw)}")
    found: dict[str, list[str]] = {}
    try:
        pairs = parse_qsl(raw.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=_MAX_PARAMETERS)
    except UnicodeError:
        raise Refused(400, "the query must be UTF-8, percent-encoded") from None
    except ValueError:
        raise Refused(400, f"there may be {_MAX_PARAMETERS} parameters") from None
    for name, value in pairs:
        found.setdefault(name, []).append(value)
    return found


async def read_json(scope: Scope, receive: Receive, *, required: bool, most: int = MAX_BODY_BYTES) -> dict[str, Any]:
    """
    Return the JSON object that is the body; {} where there is none and none is *required*.

    Raises Refused, and ClientGone.
    """
    types, lengths, codings = (
        _values(scope, name) for name in (b"content-type", b"content-length", b"content-encoding")
    )
    if any(not length.isdigit() or len(length) > 20 or int(length) > most for length in lengths):
        raise Refused(413, f"the body may have {most} octets")
    if codings:
        raise Refused(415, "the body must not be encoded")
    is_json = len(types) == 1 and types[0].partition(b";")[0].strip().lower() == b"application/json"
    if not is_json and (types or required):
        raise Refused(415, "the body must be application/json")
    raw = await _read(receive, most)
    if not raw and not required:
        return {}
    if not is_json:
        raise Refused(415, "the body must be application/json")
    try:
        body = json.loads(raw, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise Refused(400, "the body must be JSON") from None
    if not isinstance(body, dict):
        raise Refused(400, "the body must be a JSON object")
    return body


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)


async def _read(receive: Receive, most: int) -> bytes:
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(_PATIENCE):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                chunk = message.get("body", b"")
                size += len(chunk)
                if size > most:
                    raise Refused(413, f"the body may have {most} octets")
                if chunk:
                    chunks.append(chunk)
                if not message.get("more_body", False):
                    return b"".join(chunks)
    except TimeoutError:
        raise Refused(400, f"the body did not come within {_PATIENCE:.0f} s") from None


def _values(scope: Scope, name: bytes) -> list[bytes]:
    headers: Iterable[tuple[bytes, bytes]] = scope["headers"]
    return [value for known, value in headers if known.lower() == name]
