"""
The invalidation log: every invalidation is one mark, and marks are ordered by their position in the log.

A fill records the position that was known before the app was called. A reader treats an entry as gone (soft: as
stale) when a matching mark is newer than the entry's. This one rule closes the race in which a slow fill brings back
what was deleted meanwhile, for keys, groups, prefixes and everything alike, without locks.

This module has the local log, of one process.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final, Protocol, TypeAlias

from echo_cache.coordination.clock import Clock
from echo_cache.model import CacheKey, Entry

__all__ = ["Invalidation", "Kind", "LocalLog", "Log", "Verdict"]

Target: TypeAlias = (
    CacheKey | tuple[bytes, bytes] | tuple[str | None, bytes | None, bytes] | tuple[str, bytes | None, str] | str | None
)

# Longer targets are kept as digests: clients choose them, and marks stay.
_LONG_TARGET: Final = 512


class Kind(enum.StrEnum):
    """What an invalidation names."""

    KEY = "key"
    """One primary key."""

    PATH = "path"
    """(path, query) on whatever origin."""

    GROUP = "group"
    """One cache group, or tag, of every origin."""

    ORIGIN_GROUP = "origin-group"
    """(scheme, host, cache group): what a response may invalidate is of its own origin (RFC 9875 section 3)."""

    PREFIX = "prefix"
    """(scheme, host, path prefix); scheme and host are None for whatever origin."""

    ALL = "all"
    """Everything; the target is None."""


@dataclass(frozen=True, slots=True)
class Invalidation:
    """One entry of the log. *soft* makes what matches stale, instead of gone."""

    kind: Kind
    target: Target = None
    soft: bool = False


class Verdict(enum.Enum):
    """What the marks say of an entry."""

    GONE = "gone"
    STALE = "stale"


class Log(Protocol):
    """Where invalidations are ordered. Positions only grow."""

    newest: int
    """The position of the newest mark, 0 when there is none: one comparison spares an entry all others."""

    def position(self) -> int:
        """Return the position to record for a fill that begins now."""
        ...

    def append(self, invalidation: Invalidation) -> int:
        """Add a mark and return its position."""
        ...

    def verdict(self, key: CacheKey, entry: Entry) -> Verdict | None:
        """Return what the marks newer than the entry's say of it; None when it stands."""
        ...

    def softened_at(self, key: CacheKey, entry: Entry) -> float:
        """Return when the last soft mark made the entry stale, in epoch seconds; 0 when none did."""
        ...


class LocalLog:
    """
    A log in memory, for one process.

    Positions are milliseconds of the wall clock shifted by 20 bits, plus a count, and never fall: the form of a Redis
    stream's IDs, so that entries that outlive the process in Redis stay comparable. At most *max_marks* marks are
    kept; the oldest half is then compacted into a floor, below which every entry is gone.
    """

    def __init__(self, clock: Clock, *, max_marks: int = 10_000) -> None:
        self.newest = 0
        self._clock = clock
        self._max_marks = max_marks
        # Guarded by the event loop. Per softness: mark -> position, oldest first.
        self._hard: dict[tuple[Kind, Target], int] = {}
        self._soft: dict[tuple[Kind, Target], int] = {}
        # How long the prefixes among the marks are: only these beginnings of a path are looked up.
        self._prefix_lengths: set[int] = set()
        self._floor = 0
        self._last = 0

    def __repr__(self) -> str:
        return f"<LocalLog {len(self._hard)} hard and {len(self._soft)} soft marks, floor {self._floor}>"

    def position(self) -> int:
        """Return the position to record for a fill that begins now."""
        self._last = max(self._last, int(self._clock.time() * 1000) << 20)
        return self._last

    def append(self, invalidation: Invalidation) -> int:
        """Add a mark and return its position, which is above every position that was given out before."""
        self._last = self.newest = self.position() + 1
        if invalidation.kind is Kind.ALL and not invalidation.soft:
            self._hard.clear()
            self._soft.clear()
            self._prefix_lengths.clear()
            self._floor = self._last
            return self._last
        marks = self._soft if invalidation.soft else self._hard
        kind, target = invalidation.kind, invalidation.target
        mark = (kind, target if kind is Kind.PREFIX else _short(target))
        if kind is Kind.PREFIX:
            self._prefix_lengths.add(_prefix_length(target))
        marks.pop(mark, None)  # to the end: the order of the dict is the order of the log
        marks[mark] = self._last
        if len(self._hard) + len(self._soft) > self._max_marks:
            self._compact()
        return self._last

    def verdict(self, key: CacheKey, entry: Entry) -> Verdict | None:
        """Return what the marks newer than the entry's say of it; None when it stands."""
        since = entry.mark
        if since >= self.newest:
            return None
        lengths = self._prefix_lengths
        if since < self._floor or _last_mark(self._hard, lengths, key, entry.groups) > since:
            return Verdict.GONE
        return Verdict.STALE if _last_mark(self._soft, lengths, key, entry.groups) > since else None

    def softened_at(self, key: CacheKey, entry: Entry) -> float:
        """Return when the last soft mark made the entry stale, in epoch seconds; 0 when none did."""
        return (_last_mark(self._soft, self._prefix_lengths, key, entry.groups) >> 20) / 1000

    def _compact(self) -> None:
        """Drop the older half of the marks; whatever was stored before the newest of them is gone."""
        positions = sorted([*self._hard.values(), *self._soft.values()])
        self._floor = positions[len(positions) // 2]
        for marks in (self._hard, self._soft):
            for mark in [mark for mark, position in marks.items() if position <= self._floor]:
                del marks[mark]
        self._prefix_lengths = {
            _prefix_length(target) for kind, target in (*self._hard, *self._soft) if kind is Kind.PREFIX
        }


def _last_mark(marks: dict[tuple[Kind, Target], int], lengths: set[int], key: CacheKey, groups: tuple[str, ...]) -> int:
    """Return the position of the newest of *marks* that names *key* or one of *groups*, 0 when none does."""
    if not marks:
        return 0
    _, scheme, host, path, query = key
    return max(
        marks.get((Kind.KEY, _short(key)), 0),
        marks.get((Kind.PATH, _short((path, query))), 0),
        marks.get((Kind.ALL, None), 0),
        *(marks.get((Kind.GROUP, group), 0) for group in groups),
        *(marks.get((Kind.ORIGIN_GROUP, (scheme, host, group)), 0) for group in groups),
        *(
            marks.get((Kind.PREFIX, (*origin, path[:length])), 0)
            for length in lengths
            if length <= len(path)
            for origin in ((None, None), (scheme, host))
        ),
    )


def _prefix_length(target: Any) -> int:
    return len(target[2])


def _short(target: Any) -> Any:
    """Return *target*, or a digest in place of a key or path that is long."""
    if not isinstance(target, tuple) or sum(len(part) for part in target if part is not None) <= _LONG_TARGET:
        return target
    return blake2b(repr(target).encode(), digest_size=20).digest()
