"""
Field lines, list members and the small grammars that every field shares.

The one rule: absent differs from empty. A field that is not there is None, one that is empty is b"".
"""

from __future__ import annotations

import enum
import re
from collections.abc import Sequence
from typing import TypeAlias

__all__ = [
    "MAX_DELTA_SECONDS",
    "ContentLength",
    "Headers",
    "InvalidLength",
    "get_all",
    "get_joined",
    "is_token",
    "is_valid_field_name",
    "is_valid_field_value",
    "parse_age",
    "parse_content_length",
    "parse_delta_seconds",
    "split_list",
    "split_members",
]

Headers: TypeAlias = Sequence[tuple[bytes, bytes]]
"""Field lines in their order, (lower-case name, value)."""

MAX_DELTA_SECONDS = 2**31
"""What an overflowing delta-seconds becomes: RFC 9111 section 1.2.2."""

OWS = b" \t"

_TCHAR = b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

# The possessive quantifiers keep this linear: a quoted string is read once, to its end or to the end of the value.
_COMMA_OR_QUOTED = re.compile(rb',|"(?:[^"\\]++|\\.?)*+(?P<close>"?)', re.DOTALL)

# Twice the digits of any length that can exist; int() of a longer run of digits would be slow, or refused by Python.
_MAX_LENGTH_DIGITS = 38


class InvalidLength(enum.Enum):
    """The answer of parse_content_length to a field that is not one length; it has one member."""

    INVALID = "invalid"


ContentLength: TypeAlias = int | InvalidLength | None
"""A length in bytes, None where the field is absent, or InvalidLength.INVALID."""


def get_all(headers: Headers, name: bytes) -> list[bytes]:
    """Return the values of all field lines called *name* (lower-case), in order; empty when it is absent."""
    return [value for key, value in headers if key == name]


def get_joined(headers: Headers, name: bytes) -> bytes | None:
    """
    Return the field lines called *name* (lower-case) as one value, joined by ", ".

    None when the field is absent, which is not the same as empty. RFC 9110 section 5.2.
    """
    values = [value for key, value in headers if key == name]
    if not values:
        return None
    return values[0] if len(values) == 1 else b", ".join(values)


def split_members(value: bytes) -> list[bytes]:
    """
    Return the text between the commas of *value* that are outside quoted strings, trimmed, empty members kept.

    A quote that is never closed is taken literally: otherwise one stray quote would hide each directive behind it,
    no-store among them.
    """
    if b'"' not in value:
        return [member.strip(OWS) for member in value.split(b",")]
    members: list[bytes] = []
    start = 0
    for match in _COMMA_OR_QUOTED.finditer(value):
        if match[0] == b",":
            members.append(value[start : match.start()])
            start = match.end()
        elif not match["close"]:
            quote = match.start()
            first, *others = value[quote:].split(b",")
            members += [value[start:quote] + first, *others]
            break
    else:
        members.append(value[start:])
    return [member.strip(OWS) for member in members]


def split_list(value: bytes) -> list[bytes]:
    """Return the members of a list, trimmed, quoted strings kept whole, empty members dropped. RFC 9110 5.6.1."""
    return [member for member in split_members(value) if member]


def is_token(value: bytes) -> bool:
    """Tell whether *value* is a token: one or more tchar. RFC 9110 section 5.6.2."""
    return bool(value) and not value.translate(None, _TCHAR)


def is_valid_field_name(name: bytes) -> bool:
    """Tell whether *name* may be sent as a field name: a token. RFC 9110 section 5.1."""
    return bool(name) and not name.translate(None, _TCHAR)


def is_valid_field_value(value: bytes) -> bool:
    """
    Tell whether *value* can be sent without splitting the message: no CR, LF or NUL.

    Other control characters are as invalid, but harmless, and some apps send them. RFC 9110 section 5.5.
    """
    return 10 not in value and 13 not in value and 0 not in value  # an int is found four times as fast as bytes


def parse_delta_seconds(value: bytes) -> int | None:
    """
    Return delta-seconds, at most 2**31; None for anything but ASCII digits.

    RFC 9111 section 1.2.2.
    """
    if not value.isdigit():
        return None
    digits = value.lstrip(b"0")
    if len(digits) > 10:
        return MAX_DELTA_SECONDS
    return min(int(digits or b"0"), MAX_DELTA_SECONDS)


def parse_age(values: Sequence[bytes]) -> float | None:
    """
    Return the Age of the field lines *values*, in seconds, at most 2**31.

    The first member counts and the others are discarded; None when there is none or it is not a non-negative
    integer: the field is then ignored. RFC 9111 section 5.1.
    """
    for value in values:
        for member in split_list(value):
            seconds = parse_delta_seconds(member)
            return None if seconds is None else float(seconds)
    return None


def parse_content_length(headers: Headers) -> ContentLength:
    """
    Return the Content-Length of *headers* in bytes, None when absent.

    Repetitions of one value, as lines or as a list, are that value. Anything else (different values, an empty
    member, a sign, a length no body can have) is InvalidLength.INVALID. RFC 9110 section 8.6.
    """
    lengths = set()
    for value in get_all(headers, b"content-length"):
        for member in value.split(b","):
            digits = member.strip(OWS)
            if not digits.isdigit() or len(digits) > _MAX_LENGTH_DIGITS:
                return InvalidLength.INVALID
            lengths.add(int(digits))
    if not lengths:
        return None
    return lengths.pop() if len(lengths) == 1 else InvalidLength.INVALID
