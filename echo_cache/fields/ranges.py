"""Range requests: byte ranges of RFC 9110 section 14, bounded."""

from __future__ import annotations

import enum
import re
from typing import Final, TypeAlias

from echo_cache.fields.lists import split_list

__all__ = ["MAX_RANGES", "ByteRanges", "RangeRefusal", "parse_byte_ranges"]

MAX_RANGES: Final = 16
"""More ranges than any player or downloader asks for; more than this is an amplification attack (RangeAmp)."""


class RangeRefusal(enum.Enum):
    """Why a Range field selects nothing."""

    IGNORED = "ignored"
    """Not a valid byte range: answer as if the field were absent. RFC 9110 section 14.2."""

    UNSATISFIABLE = "unsatisfiable"
    """Valid, and no byte of it exists: 416. RFC 9110 section 15.5.17."""

    TOO_MANY = "too many"
    """More than MAX_RANGES: answer with the whole, or with 416. RFC 9110 section 17.15."""


ByteRanges: TypeAlias = RangeRefusal | list[tuple[int, int]]
"""Half-open (start, stop) spans in the order of the request, never empty, each within the body; or why not."""

_UNIT = b"bytes="
_SPEC = re.compile(rb"(\d*)-(\d*)")

# Positions past this are past the end of any body; int() of unbounded digits would be slow, or refused by Python.
_MAX_DIGITS = 19


def parse_byte_ranges(value: bytes, size: int) -> ByteRanges:
    """
    Return the spans that Range *value* selects of a body of *size* bytes. Never raises.

    Spans that begin past the end are left out; overlapping ones are left to the caller. More than MAX_RANGES are
    counted, not read. The unit is case-insensitive. A suffix of an empty body is ignored, since no Content-Range
    can describe it.

    RFC 9110 sections 14.1.2 and 14.2.
    """
    if value[: len(_UNIT)].lower() != _UNIT:
        return RangeRefusal.IGNORED
    specs = split_list(value[len(_UNIT) :])
    if not specs:
        return RangeRefusal.IGNORED
    if len(specs) > MAX_RANGES:
        return RangeRefusal.TOO_MANY
    spans: list[tuple[int, int]] = []
    for spec in specs:
        match = _SPEC.fullmatch(spec)
        if match is None or spec == b"-":
            return RangeRefusal.IGNORED
        first, last = match[1], match[2]
        if not first:
            if size == 0 and _position(last):
                return RangeRefusal.IGNORED
            start, stop = max(size - _position(last), 0), size
        else:
            start, stop = _position(first), size
            if last:
                if _is_less(last, first):
                    return RangeRefusal.IGNORED
                stop = min(_position(last) + 1, size)
        if start < stop:
            spans.append((start, stop))
    return spans or RangeRefusal.UNSATISFIABLE


def _position(digits: bytes) -> int:
    significant = digits.lstrip(b"0")
    return 10**_MAX_DIGITS if len(significant) > _MAX_DIGITS else int(significant or b"0")


def _is_less(a: bytes, b: bytes) -> bool:
    """Compare two numbers of any length by their digits."""
    a, b = a.lstrip(b"0"), b.lstrip(b"0")
    return (len(a), a) < (len(b), b)
