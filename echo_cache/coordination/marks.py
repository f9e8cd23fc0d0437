"""
What has been invalidated, and what that says of an entry.

A fill records the position that was known before the app was called. A reader treats an entry as gone (soft: as
stale) when a matching mark is newer than the entry's. This one rule closes the race in which a slow fill brings back
what was deleted meanwhile, for keys, groups, prefixes and everything alike, without locks.

Nothing here waits or knows a clock. Positions are whole numbers that only grow; where they come from is the log's.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final, TypeAlias

from echo_cache.fields import MAX_GROUP_CHARS
from echo_cache.model import CacheKey

__all__ = ["Invalidation", "Kind", "Marks", "Target", "Verdict"]

Target: TypeAlias = (
    CacheKey
    | tuple[bytes, bytes]
    | tuple[str | None, bytes | None, bytes]
    | tuple[str, bytes | None, str]
    | str
    | bytes
    | None
)

# Longer targets are kept as digests: clients choose them, and marks stay.
_LONG_TARGET: Final = 128
_DIGEST_BYTES: Final = 20
# A longer prefix is cut: that invalidates more, and bounds what is looked up for each entry.
_LONGEST_PREFIX: Final = 512


class Kind(enum.StrEnum):
    """What an invalidation names. The values are on the wire."""

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
    """One thing that is invalidated. *soft* makes what matches stale, instead of gone."""

    kind: Kind
    target: Target = None
    soft: bool = False

    def shortened(self) -> Invalidation:
        """Return the same with a target of bounded length: a digest in place of a long key, a prefix cut."""
        return Invalidation(self.kind, _bounded(self.kind, self.target), self.soft)


class Verdict(enum.Enum):
    """What the marks say of an entry."""

    GONE = "gone"
    """Invalidated. It answers nothing any more, not even in place of an error."""

    DOUBTFUL = "doubtful"
    """Older than what is known here: it may have been invalidated, and answers nothing before the app confirms it."""

    STALE = "stale"
    """Invalidated softly: stale since then."""


class _Table:
    """The newest mark of each target, by kind: a look-up per entry, and none in a kind that has no marks."""

    __slots__ = ("all", "groups", "keys", "lengths", "origin_groups", "paths", "prefixes")

    def __init__(self) -> None:
        # Of everything; its only key is None.
        self.all: dict[Any, int] = {}
        self.keys: dict[Any, int] = {}
        self.paths: dict[Any, int] = {}
        self.groups: dict[Any, int] = {}
        self.origin_groups: dict[Any, int] = {}
        self.prefixes: dict[Any, int] = {}
        # How long the prefixes are: only these beginnings of a path are looked up. Replaced, never changed: readers in
        # other threads may be going through it.
        self.lengths: tuple[int, ...] = ()

    def of(self, kind: Kind) -> dict[Any, int]:
        """Return the marks of *kind*."""
        named: dict[Any, int] = getattr(self, _TABLES[kind])
        return named

    def note_length(self, prefix: Any) -> None:
        length = len(prefix[2])
        if length not in self.lengths:
            self.lengths = (*self.lengths, length)

    def measure_prefixes(self) -> None:
        self.lengths = tuple(sorted({len(path) for _, _, path in self.prefixes}))

    def newest(self, key: CacheKey, groups: tuple[str, ...]) -> int:
        """Return the position of the newest mark that names *key* or one of *groups*, 0 when none does."""
        newest = self.all.get(None, 0) if self.all else 0
        _, scheme, host, path, query = key
        if self.keys:
            newest = max(newest, self.keys.get(_short(key), 0))
        if self.paths:
            newest = max(newest, self.paths.get(_short((path, query)), 0))
        if groups:
            if self.groups:
                for group in groups:
                    newest = max(newest, self.groups.get(group, 0))
            if self.origin_groups:
                for group in groups:
                    newest = max(newest, self.origin_groups.get(_short((scheme, host, group)), 0))
        for length in self.lengths:
            if length <= len(path):
                start = path[:length]
                newest = max(
                    newest, self.prefixes.get((None, None, start), 0), self.prefixes.get((scheme, host, start), 0)
                )
        return newest


_TABLES: Final = {
    Kind.ALL: "all",
    Kind.KEY: "keys",
    Kind.PATH: "paths",
    Kind.GROUP: "groups",
    Kind.ORIGIN_GROUP: "origin_groups",
    Kind.PREFIX: "prefixes",
}


class Marks:
    """
    The marks known here, *most* at the most; the older ones are then compacted into a floor.

    newest: the position of the newest mark, 0 when there is none: what is not older needs no look.
    cleared: what was filled before it is gone. floor: of what was filled before it, marks may be missing here.
    """

    def __init__(self, most: int) -> None:
        self.newest = 0
        self.cleared = 0
        self.floor = 0
        self._most = most
        # Guarded by the event loop. Readers in other threads see single look-ups in single dictionaries.
        self._hard = _Table()
        self._soft = _Table()
        # All marks in the order of their positions, those included that a newer one for the same target has replaced.
        # With each the dictionary that it is in.
        self._order: deque[tuple[int, Invalidation, dict[Any, int]]] = deque()

    def __repr__(self) -> str:
        return f"<Marks {len(self)} known, newest {self.newest}, floor {self.floor}>"

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __iter__(self) -> Iterator[tuple[int, Invalidation]]:
        """Iterate over the marks that count, oldest first, with their positions."""
        if self.cleared:
            yield self.cleared, Invalidation(Kind.ALL)
        for position, mark, _ in self._counting():
            yield position, mark

    def add(self, position: int, mark: Invalidation) -> None:
        """Note that *mark* stands at *position*. One that comes late, behind newer ones, is as good."""
        mark = mark.shortened()
        self.newest = max(self.newest, position)
        if mark.kind is Kind.ALL and not mark.soft:
            newer = [at for at in self if at[0] > position]
            self._hard, self._soft, self._order = _Table(), _Table(), deque()
            self.cleared = max(self.cleared, position)
            for at in newer:
                self.add(*at)
            return
        table = self._soft if mark.soft else self._hard
        named = table.of(mark.kind)
        named[mark.target] = max(named.get(mark.target, 0), position)
        if mark.kind is Kind.PREFIX:
            table.note_length(mark.target)
        self._order.append((position, mark, named))
        if len(self._order) > self._most:
            self._compact()

    def has(self, position: int, mark: Invalidation) -> bool:
        """Say whether *mark* is known to stand at *position* or later, or what stood there is forgotten."""
        mark = mark.shortened()
        if position <= max(self.floor, self.cleared):
            return True
        table = self._soft if mark.soft else self._hard
        return table.of(mark.kind).get(mark.target, 0) >= position

    def doubt(self, position: int) -> None:
        """Note that of what was filled before *position* marks may be missing."""
        self.newest = max(self.newest, position)
        self.floor = max(self.floor, position)

    def verdict(self, since: int, key: CacheKey, groups: tuple[str, ...]) -> Verdict | None:
        """Return what the marks say of an entry under *key* whose fill began at *since*; None when it stands."""
        if since >= self.newest:
            return None
        if since < self.cleared or self._hard.newest(key, groups) > since:
            return Verdict.GONE
        if since < self.floor:
            return Verdict.DOUBTFUL
        return Verdict.STALE if self._soft.newest(key, groups) > since else None

    def softened_at(self, key: CacheKey, groups: tuple[str, ...]) -> int:
        """Return the position of the newest soft mark that matches, 0 when none does."""
        return self._soft.newest(key, groups)

    def _counting(self) -> Iterator[tuple[int, Invalidation, dict[Any, int]]]:
        """Iterate over what no newer mark for the same target has replaced."""
        return (at for at in self._order if at[2].get(at[1].target) == at[0])

    def _compact(self) -> None:
        """Drop what was replaced and, if that is not enough, the older half: it becomes the floor."""
        counting = deque(self._counting())
        while len(counting) > self._most // 2:
            position, mark, named = counting.popleft()
            self.floor = max(self.floor, position)
            named.pop(mark.target, None)
        self._order = counting
        self._hard.measure_prefixes()
        self._soft.measure_prefixes()


def _bounded(kind: Kind, target: Any) -> Any:
    if kind is Kind.PREFIX:
        scheme, host, path = target
        return (scheme, host, path[:_LONGEST_PREFIX])
    if isinstance(target, str):
        return target[:MAX_GROUP_CHARS]
    return _short(target)


def _short(target: Any) -> Any:
    """Return *target*, or a digest in place of a key or path that is long."""
    if not isinstance(target, tuple) or sum([len(part) for part in target if part is not None]) <= _LONG_TARGET:
        return target
    return blake2b(repr(target).encode(), digest_size=_DIGEST_BYTES).digest()
