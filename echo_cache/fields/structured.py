"""
Structured Fields: Dictionaries and Lists as far as caching needs them, groups, and Cache-Status.

The one rule of RFC 9651: a field is parsed whole or not at all. Any fault makes all of it malformed.
Parameters are checked and dropped, since no field read here gives them a meaning.
"""

from __future__ import annotations

import binascii
import functools
import re
from dataclasses import dataclass
from typing import Final, TypeAlias

__all__ = [
    "MAX_GROUPS",
    "MAX_GROUP_CHARS",
    "BareItem",
    "Date",
    "DisplayString",
    "Member",
    "Token",
    "cache_status_member",
    "parse_dictionary",
    "parse_groups",
    "parse_list",
]

MAX_GROUPS: Final = 128
MAX_GROUP_CHARS: Final = 128
"""Four times what RFC 9875 section 2 asks of an implementation, 32 groups of 32 characters."""


@dataclass(frozen=True, slots=True)
class Token:
    """A Token of RFC 9651 section 3.3.4; a String is a plain str."""

    value: str


@dataclass(frozen=True, slots=True)
class Date:
    """A Date of RFC 9651 section 3.3.7, in epoch seconds."""

    seconds: int


@dataclass(frozen=True, slots=True)
class DisplayString:
    """A Display String of RFC 9651 section 3.3.8, decoded."""

    value: str


BareItem: TypeAlias = bool | int | float | str | bytes | Token | Date | DisplayString
"""One value: Boolean, Integer, Decimal (float), String, Byte Sequence, Token, Date or Display String."""

Member: TypeAlias = BareItem | tuple[BareItem, ...]
"""A value, or an Inner List as a tuple of values."""

_KEY = re.compile(rb"[a-z*][a-z0-9_\-.*]*+")
_NUMBER = re.compile(rb"-?(?:\d{1,12}\.\d{1,3}|\d{1,15})(?![\d.])")
_DATE = re.compile(rb"@(-?\d{1,15})(?![\d.])")
_STRING = re.compile(rb'"((?:[\x20\x21\x23-\x5b\x5d-\x7e]++|\\["\\])*+)"')
_TOKEN = re.compile(rb"[A-Za-z*][!#$%&'*+\-.^_`|~0-9A-Za-z:/]*+")
_BOOLEAN = re.compile(rb"\?([01])")
_BYTES = re.compile(rb":([A-Za-z0-9+/]*+)(={0,2}):")
_DISPLAY = re.compile(rb'%"((?:[\x20\x21\x23\x24\x26-\x7e]++|%[0-9a-f]{2})*+)"')
_ESCAPED = re.compile(rb"\\(.)")
_HEX = re.compile(rb"%(..)")
_OWS = re.compile(rb"[ \t]*+")
_SP = re.compile(rb" *+")

_MAX_INTEGER = 999_999_999_999_999
_TOKEN_TEXT = re.compile(r"[A-Za-z*][!#$%&'*+\-.^_`|~0-9A-Za-z:/]*")
_NOT_PRINTABLE = re.compile(r"[^\x20-\x7e]")


class _MalformedError(Exception):
    """Raised inside this module when a field cannot be parsed; never leaves it."""


def parse_dictionary(value: bytes) -> dict[str, Member] | None:
    """
    Return the members of a Dictionary; None where *value* is malformed, {} where it is empty. Never raises.

    The last of a repeated key counts. RFC 9651 section 4.2.2.
    """
    members: dict[str, Member] = {}
    pos = _match(_SP, value, 0).end()
    try:
        while pos < len(value):
            key, pos = _key(value, pos)
            member: Member = True
            if value[pos : pos + 1] == b"=":
                member, pos = _member(value, pos + 1)
            else:
                pos = _skip_parameters(value, pos)
            members[key] = member
            pos = _skip_comma(value, pos)
    except _MalformedError:
        return None
    return members


def parse_list(value: bytes) -> list[Member] | None:
    """Return the members of a List; None where it is malformed, [] where empty. Never raises. RFC 9651 4.2.1."""
    members: list[Member] = []
    pos = _match(_SP, value, 0).end()
    try:
        while pos < len(value):
            member, pos = _member(value, pos)
            members.append(member)
            pos = _skip_comma(value, pos)
    except _MalformedError:
        return None
    return members


def parse_groups(value: bytes) -> tuple[str, ...]:
    """
    Return the distinct groups of Cache-Groups or Cache-Group-Invalidation, in order. Never raises.

    () where the field is no List of Strings. Groups after the 128th are dropped; of a longer one the first 128
    characters are used, in both fields alike, so that too much may be invalidated but never too little.

    RFC 9875 sections 2 and 3.
    """
    groups: dict[str, None] = {}
    for member in parse_list(value) or ():
        if not isinstance(member, str):
            return ()
        groups[member[:MAX_GROUP_CHARS]] = None
    return tuple(groups)[:MAX_GROUPS]


def cache_status_member(
    name: str,
    *,
    hit: bool = False,
    fwd: str | None = None,
    fwd_status: int | None = None,
    ttl: int | None = None,
    stored: bool = False,
    collapsed: bool = False,
    detail: str | None = None,
) -> bytes:
    """
    Return one list member of Cache-Status for the cache called *name*.

    *name*, *fwd* and *detail* are written as a Token where they are one, else as a String; characters that a
    String cannot hold become "?". Integers are clamped to what a Structured Field can hold. There is no `key`
    parameter: it would disclose how the cache is keyed. *hit* and *fwd* exclude each other; that is the caller's
    part. RFC 9211 section 2.
    """
    parts = [_text(name)]
    if hit:
        parts.append("hit")
    if fwd is not None:
        parts.append("fwd=" + _text(fwd))
    if fwd_status is not None:
        parts.append(f"fwd-status={_integer(fwd_status)}")
    if ttl is not None:
        parts.append(f"ttl={_integer(ttl)}")
    if stored:
        parts.append("stored")
    if collapsed:
        parts.append("collapsed")
    if detail is not None:
        parts.append("detail=" + _text(detail))
    return "; ".join(parts).encode("ascii")


@functools.lru_cache(maxsize=256)
def _text(text: str) -> str:
    if _TOKEN_TEXT.fullmatch(text):
        return text
    printable = _NOT_PRINTABLE.sub("?", text)
    return '"' + printable.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _integer(number: int) -> int:
    return max(-_MAX_INTEGER, min(number, _MAX_INTEGER))


def _key(value: bytes, pos: int) -> tuple[str, int]:
    match = _match(_KEY, value, pos)
    return match[0].decode("ascii"), match.end()


def _member(value: bytes, pos: int) -> tuple[Member, int]:
    """Parse an Item or an Inner List with its parameters. RFC 9651 sections 4.2.1.1 and 4.2.1.2."""
    member: Member
    if value[pos : pos + 1] == b"(":
        member, pos = _inner_list(value, pos + 1)
    else:
        member, pos = _bare_item(value, pos)
    return member, _skip_parameters(value, pos)


def _inner_list(value: bytes, pos: int) -> tuple[tuple[BareItem, ...], int]:
    items: list[BareItem] = []
    while True:
        pos = _match(_SP, value, pos).end()
        if value[pos : pos + 1] == b")":
            return tuple(items), pos + 1
        item, pos = _bare_item(value, pos)
        items.append(item)
        pos = _skip_parameters(value, pos)
        if value[pos : pos + 1] not in (b" ", b")"):
            raise _MalformedError


def _skip_parameters(value: bytes, pos: int) -> int:
    while value[pos : pos + 1] == b";":
        _, pos = _key(value, _match(_SP, value, pos + 1).end())
        if value[pos : pos + 1] == b"=":
            _, pos = _bare_item(value, pos + 1)
    return pos


def _skip_comma(value: bytes, pos: int) -> int:
    """Return where the next member begins, or the end; a trailing comma is a fault."""
    pos = _match(_OWS, value, pos).end()
    if pos == len(value):
        return pos
    if value[pos : pos + 1] != b",":
        raise _MalformedError
    pos = _match(_OWS, value, pos + 1).end()
    if pos == len(value):
        raise _MalformedError
    return pos


def _bare_item(value: bytes, pos: int) -> tuple[BareItem, int]:
    """Parse one bare item, told apart by its first character. RFC 9651 section 4.2.3.1."""
    item: BareItem
    match value[pos : pos + 1]:
        case b"?":
            found = _match(_BOOLEAN, value, pos)
            item = found[1] == b"1"
        case b'"':
            found = _match(_STRING, value, pos)
            item = _ESCAPED.sub(rb"\1", found[1]).decode("ascii")
        case b":":
            found = _match(_BYTES, value, pos)
            item = _decode_base64(found[1], found[2])
        case b"@":
            found = _match(_DATE, value, pos)
            item = Date(int(found[1]))
        case b"%":
            found = _match(_DISPLAY, value, pos)
            item = DisplayString(_decode_display(found[1]))
        case start if start and start in b"-0123456789":
            found = _match(_NUMBER, value, pos)
            item = float(found[0]) if b"." in found[0] else int(found[0])
        case _:
            found = _match(_TOKEN, value, pos)
            item = Token(found[0].decode("ascii"))
    return item, found.end()


def _match(pattern: re.Pattern[bytes], value: bytes, pos: int) -> re.Match[bytes]:
    found = pattern.match(value, pos)
    if found is None:
        raise _MalformedError
    return found


def _decode_base64(text: bytes, padding: bytes) -> bytes:
    """Decode a Byte Sequence; missing padding is forgiven, padding of nothing is not. RFC 9651 section 4.2.7."""
    if len(text) % 4 == 1 or (padding and not text):
        raise _MalformedError
    return binascii.a2b_base64(text + b"=" * (-len(text) % 4))


def _decode_display(text: bytes) -> str:
    try:
        return _HEX.sub(lambda found: bytes.fromhex(found[1].decode("ascii")), text).decode("utf-8")
    except UnicodeDecodeError:
        raise _MalformedError from None
