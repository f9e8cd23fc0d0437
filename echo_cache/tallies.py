"""
Plain counters: what the cache has done, by route. The one rule: counting is an increment, everything else reads.

Tallies only grow. Whoever wants to begin anew remembers what they were.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from heapq import nlargest
from operator import itemgetter
from typing import Final

from echo_cache.model import Fwd

__all__ = ["MAX_ROUTES", "OTHER_ROUTES", "Favourites", "Histogram", "Tallies", "Tally"]

MAX_ROUTES: Final = 512
"""How many routes are told apart. Their names come from Redis, too."""

OTHER_ROUTES: Final = "(other)"

# How many names there may be for each place before the least are dropped.
_CROWD: Final = 5

# In seconds. A hit in Redis takes a fraction of a millisecond, a handler may take seconds.
_LATENCIES: Final = (0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Histogram:
    """
    How often something took how long.

    bounds: the upper ends of the buckets, in seconds. counts: one per bucket, and one for what is above. total: the
    sum, in seconds.
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...] = _LATENCIES) -> None:
        self.bounds: Final = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def __repr__(self) -> str:
        return f"<Histogram {self.count} in {self.total:.6g} s>"

    def observe(self, seconds: float) -> None:
        """Count one that took *seconds*."""
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.total += seconds

    @property
    def count(self) -> int:
        """How many there were."""
        return sum(self.counts)

    @property
    def mean(self) -> float:
        """How long one took, in seconds; 0.0 if there was none."""
        count = self.count
        return self.total / count if count else 0.0


class Tally:
    """
    What the cache has done for one route.

    route: its path pattern, "" for requests whose route is not known.
    l1_hits, l2_hits: answers from what is stored, found in this process's memory or below it; stale_hits: those of them
        that were stale. rescued: stale answers in place of an app that failed; those are forwards as well.
    collapsed: requests that shared another's call of the app.
    forwards: calls of the app, by reason (the tokens of Fwd).
    stored, refused: responses, the latter by reason (the words of Refusal).
    fills: how long the app took for the responses that were stored, to the last byte.
    """

    __slots__ = (
        "collapsed",
        "fills",
        "forwards",
        "l1_hits",
        "l2_hits",
        "refusals",
        "rescued",
        "route",
        "stale_hits",
        "stored",
    )

    def __init__(self, route: str) -> None:
        self.route: Final = route
        self.l1_hits = 0
        self.l2_hits = 0
        self.stale_hits = 0
        self.rescued = 0
        self.collapsed = 0
        self.stored = 0
        self.forwards: dict[str, int] = {}
        self.refusals: dict[str, int] = {}
        self.fills = Histogram()

    def __repr__(self) -> str:
        return f"<Tally {self.route!r} [{self.hits} hits, {self.collapsed} collapsed, {self.misses} misses]>"

    @property
    def hits(self) -> int:
        """Answers from what is stored."""
        return self.l1_hits + self.l2_hits

    @property
    def misses(self) -> int:
        """Calls of the app for what a cache can answer."""
        return misses(self.forwards)

    def forwarded(self, fwd: Fwd) -> None:
        """Count a call of the app."""
        self.forwards[fwd] = self.forwards.get(fwd, 0) + 1

    def refused(self, reason: str) -> None:
        """Count a response that was not stored."""
        self.refusals[reason] = self.refusals.get(reason, 0) + 1


def misses(forwards: Mapping[str, int]) -> int:
    """Return how many of *forwards* were for what a cache can answer."""
    return sum(forwards.values()) - forwards.get(Fwd.METHOD, 0) - forwards.get(Fwd.BYPASS, 0)


class Tallies:
    """The tallies of all routes. Those beyond the first 512 share one."""

    def __init__(self) -> None:
        self._by_route: dict[str, Tally] = {}

    def __repr__(self) -> str:
        return f"<Tallies of {len(self._by_route)} routes>"

    def __iter__(self) -> Iterator[Tally]:
        return iter(list(self._by_route.values()))

    def of(self, route: str) -> Tally:
        """Return the tally of *route*."""
        tally = self._by_route.get(route)
        if tally is None:
            if len(self._by_route) >= MAX_ROUTES:
                route = OTHER_ROUTES
            tally = self._by_route.setdefault(route, Tally(route))
        return tally


class Favourites:
    """
    What is counted most, of very many.

    What is shown has been counted that often at least. It is the space-saving sketch of Metwally, Agrawal and El Abbadi
    (2005), but room is made in bulk: to look for the least at each new name takes 6 us.
    """

    def __init__(self, places: int = 128) -> None:
        self._places = places
        # How often each may have been counted at most, and how much of that is not known but feared.
        self._counts: dict[object, int] = {}
        self._feared: dict[object, int] = {}
        # No name that has been dropped was counted more often.
        self._floor = 0

    def add(self, name: object, count: int) -> None:
        """Count *name*, *count* times."""
        counts = self._counts
        known = counts.get(name)
        if known is None:
            if len(counts) >= _CROWD * self._places:
                self._make_room()
            known = self._floor
            if known:
                self._feared[name] = known
        self._counts[name] = known + count

    def _make_room(self) -> None:
        ranked = nlargest(self._places + 1, list(self._counts.items()), key=itemgetter(1))
        self._floor = ranked[-1][1]
        self._counts = dict(ranked[:-1])
        self._feared = {name: feared for name, feared in self._feared.items() if name in self._counts}

    def most(self, number: int) -> list[tuple[object, int]]:
        """Return what is counted most, with how often it was at least, the most first."""
        sure = [(name, count - self._feared.get(name, 0)) for name, count in list(self._counts.items())]
        return nlargest(number, sure, key=itemgetter(1))

    def clear(self) -> None:
        """Begin anew."""
        self._counts = {}
        self._feared = {}
        self._floor = 0
