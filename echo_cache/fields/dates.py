"""
HTTP dates: the three formats of RFC 9110 section 5.6.7, read strictly, and the one that is written.

The one rule: a date that is not exactly one of the three is malformed, and callers take it as in the past.
"""

from __future__ import annotations

import functools
import math
import re
from datetime import UTC, datetime, timedelta

__all__ = ["format_date", "parse_date"]

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_MONTH_NUMBERS = {name.encode("ascii"): number for number, name in enumerate(_MONTHS, start=1)}

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST_SECOND = -62_135_596_800  # 0001-01-01T00:00:00, the limits of datetime
_LAST_SECOND = 253_402_300_799  # 9999-12-31T23:59:59, and of four digits
_IMF_LENGTH = len("Sun, 06 Nov 1994 08:49:37 GMT")

_TIME = r"(?P<hour>\d\d):(?P<minute>\d\d):(?P<second>\d\d)"
_MONTH = f"(?P<month>{'|'.join(_MONTHS)})"
_FORMATS = tuple(
    re.compile(pattern.encode("ascii"))
    for pattern in (
        rf"(?:{'|'.join(_DAYS)}), (?P<day>\d\d) {_MONTH} (?P<year>\d\d\d\d) {_TIME} GMT",
        rf"(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day, (?P<day>\d\d)-{_MONTH}-(?P<year>\d\d) {_TIME} GMT",
        rf"(?:{'|'.join(_DAYS)}) {_MONTH} (?P<day>\d\d| \d) {_TIME} (?P<year>\d\d\d\d)",
    )
)


def parse_date(value: bytes, now: float) -> float | None:
    """
    Return the epoch seconds of an IMF-fixdate, an RFC 850 or an asctime date; None where it is malformed.

    *now*, in epoch seconds, places the two-digit year of an RFC 850 date: one more than 50 years ahead is in the
    past. The name of the day must be one, but need not be that of the date. A leap second is the second before it.

    RFC 9110 section 5.6.7.
    """
    if len(value) == _IMF_LENGTH and (seconds := _parse_imf(value)) is not None:
        return seconds
    stripped = value.strip(b" \t")
    for pattern in _FORMATS:
        if match := pattern.fullmatch(stripped):
            return _timestamp(match, now)
    return None


def format_date(timestamp: float) -> bytes:
    """
    Return *timestamp*, epoch seconds, as an IMF-fixdate, cut to the second.

    A time before year 1 or after year 9999 is written as the nearest that can be. RFC 9110 section 5.6.7.
    """
    return _format_second(math.floor(max(_FIRST_SECOND, min(_LAST_SECOND, timestamp))))


# A browser repeats If-Modified-Since on each request, and a hit reads it: 0.1 us instead of 1.6. No other format has
# to be fast, and this one needs no clock.
@functools.lru_cache(maxsize=512)
def _parse_imf(value: bytes) -> float | None:
    match = _FORMATS[0].fullmatch(value)
    return None if match is None else _timestamp(match, 0.0)


def _timestamp(match: re.Match[bytes], now: float) -> float | None:
    year, month, day = int(match["year"]), _MONTH_NUMBERS[match["month"]], int(match["day"])
    hour, minute, second = int(match["hour"]), int(match["minute"]), int(match["second"])
    if second > 60:
        return None
    second = min(second, 59)
    if len(match["year"]) == 2:
        year = _full_year(year, (month, day, hour, minute, second), now)
    try:
        return (datetime(year, month, day, hour, minute, second, tzinfo=UTC) - _EPOCH).total_seconds()
    except ValueError:
        return None


def _full_year(two_digits: int, rest: tuple[int, int, int, int, int], now: float) -> int:
    """Return the last year with these digits in which the date is at most 50 years after *now*."""
    today = _EPOCH + timedelta(seconds=max(_FIRST_SECOND, min(_LAST_SECOND, now)))
    latest = today.year + 50
    year = latest - (latest - two_digits) % 100
    ahead = (year, *rest) > (latest, today.month, today.day, today.hour, today.minute, today.second)
    return year - 100 if ahead else year


# Each answer of a second carries the same Date; sixteen, since Last-Modified and Expires are written too.
@functools.lru_cache(maxsize=16)
def _format_second(second: int) -> bytes:
    moment = _EPOCH + timedelta(seconds=second)
    day, month = _DAYS[moment.weekday()], _MONTHS[moment.month - 1]
    return (
        f"{day}, {moment.day:02} {month} {moment.year:04} {moment.hour:02}:{moment.minute:02}:{moment.second:02} GMT"
    ).encode("ascii")
