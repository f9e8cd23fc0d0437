"""
Which part of a complete stored response a Range request gets: RFC 9110 section 14.

The one rule: an answer is never larger than the body. Several ranges, or too many, get the whole.
"""

from __future__ import annotations

from dataclasses import dataclass

from echo_cache import fields
from echo_cache.fields import RangeRefusal
from echo_cache.model import Headers
from echo_cache.policy.fieldmap import JoinedFields, first_line

__all__ = ["Part", "select_part"]


@dataclass(frozen=True, slots=True)
class Part:
    """One span [start, stop) of a body of *size* bytes; an empty span says that nothing of it can be had."""

    start: int
    stop: int
    size: int

    @property
    def is_unsatisfiable(self) -> bool:
        """Whether the answer is 416."""
        return self.start >= self.stop

    @property
    def content_range(self) -> bytes:
        """The value of Content-Range. RFC 9110 section 14.4."""
        if self.is_unsatisfiable:
            return b"bytes */%d" % self.size
        return b"bytes %d-%d/%d" % (self.start, self.stop - 1, self.size)


def select_part(asked: JoinedFields, stored: Headers, size: int, received: float) -> Part | None:
    """
    Return the part of a stored 200 of *size* bytes that a request with the fields *asked* gets; None: the whole.

    *received* is when the response was. RFC 9110 section 14.2: a server may ignore Range, and does so here for more
    than one range.
    """
    wanted = asked.get(b"range")
    if wanted is None or not _if_range_holds(asked, stored, received):
        return None
    spans = fields.parse_byte_ranges(wanted, size)
    if spans is RangeRefusal.UNSATISFIABLE:
        return Part(0, 0, size)
    if isinstance(spans, RangeRefusal) or len(spans) != 1:
        return None
    start, stop = spans[0]
    return Part(start, stop, size)


def _if_range_holds(asked: JoinedFields, stored: Headers, received: float) -> bool:
    """
    Say whether If-Range allows a part: absent, or a strong match with the stored ETag or the same Last-Modified.

    RFC 9110 section 13.1.5. A date is compared as it was sent; whether it is strong enough (8.8.2.2) is what the
    response's Date says, or when it was *received*: a second or more after Last-Modified.
    """
    value = asked.get(b"if-range")
    if value is None:
        return True
    wanted = fields.parse_etag(value)
    if wanted is not None:
        etag = fields.parse_etag(first_line(stored, b"etag") or b"")
        return etag is not None and fields.strong_match(wanted, etag)
    if value != first_line(stored, b"last-modified"):
        return False
    date = first_line(stored, b"date")
    dated = received if date is None else fields.parse_date(date, received)
    modified = fields.parse_date(value, received)
    return modified is not None and dated is not None and dated - modified >= 1
