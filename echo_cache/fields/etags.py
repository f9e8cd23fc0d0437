"""Entity tags: RFC 9110 section 8.8.3, and the lists of If-Match and If-None-Match."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

__all__ = ["ETag", "parse_etag", "parse_etag_list", "strong_match", "weak_match"]

# A comma is an etagc, so a list cannot be split at commas first. A tag that fails costs no more than the way to the
# next quote, so that the whole stays linear.
_ETAG = re.compile(rb'(W/)?+"([\x21\x23-\x7e\x80-\xff]*+)"[ \t]*+(?=,|\Z)')
_BETWEEN = re.compile(rb"[ \t,]*+")
_TO_COMMA = re.compile(rb"[^,]*+")


@dataclass(frozen=True, slots=True)
class ETag:
    """An entity tag: *opaque* without its quotes."""

    opaque: bytes
    weak: bool


def parse_etag(value: bytes) -> ETag | None:
    """Return the entity tag that *value* is; None where it is malformed. RFC 9110 section 8.8.3."""
    match = _ETAG.fullmatch(value.strip(b" \t"))
    return None if match is None else ETag(match[2], match[1] is not None)


def parse_etag_list(value: bytes) -> list[ETag] | Literal["*"]:
    """
    Return the entity tags of If-Match or If-None-Match, all lines joined, or "*". Never raises.

    Malformed members are skipped. RFC 9110 sections 13.1.1 and 13.1.2.
    """
    if value.strip(b" \t") == b"*":
        return "*"
    tags: list[ETag] = []
    pos = 0
    while (pos := _end(_BETWEEN, value, pos)) < len(value):
        if match := _ETAG.match(value, pos):
            tags.append(ETag(match[2], match[1] is not None))
            pos = match.end()
        else:
            pos = _end(_TO_COMMA, value, pos)
    return tags


def weak_match(a: ETag, b: ETag) -> bool:
    """Tell whether *a* and *b* match, weak or not. RFC 9110 section 8.8.3.2."""
    return a.opaque == b.opaque


def strong_match(a: ETag, b: ETag) -> bool:
    """Tell whether *a* and *b* match and neither is weak. RFC 9110 section 8.8.3.2."""
    return a.opaque == b.opaque and not a.weak and not b.weak


def _end(pattern: re.Pattern[bytes], value: bytes, pos: int) -> int:
    match = pattern.match(value, pos)
    return pos if match is None else match.end()
