"""What a cache has done, in numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Self

from echo_cache.stores.base import StoreStats
from echo_cache.tallies import Tally, misses

__all__ = ["CacheCounters", "RouteCounters", "Totals", "route_counters"]


@dataclass(frozen=True, slots=True)
class CacheCounters:
    """
    A snapshot of what the cache has done since it was made or reset.

    hits: answers from a stored response, stale ones included; l1_hits, l2_hits: those found in this process's memory,
        and below it; stale_hits: those of them that were stale.
    rescued: stale answers in place of an app that failed; they are forwards, too.
    forwards: requests that went to the app, by reason (the Fwd tokens); collapsed: requests that shared another's call.
    stored, refused: responses, the latter by reason. failures: errors of the cache itself that requests did not feel.
    invalidations: what was invalidated here, by requests and by the application.
    saved_seconds: how long handlers would have worked on what the cache answered, estimated from the fills of each
        route.
    store: the statistics of the store.
    """

    hits: int
    l1_hits: int
    l2_hits: int
    stale_hits: int
    rescued: int
    forwards: dict[str, int]
    collapsed: int
    stored: int
    refused: dict[str, int]
    failures: int
    invalidations: int
    saved_seconds: float
    store: StoreStats

    @property
    def misses(self) -> int:
        """Requests that went to the app, of those that a cache can answer."""
        return misses(self.forwards)

    @property
    def hit_rate(self) -> float:
        """The fraction of requests, of those that a cache can answer, that were answered from it: 0..1."""
        answered = self.hits + self.collapsed
        total = answered + self.misses
        return answered / total if total else 0.0


class RouteCounters(NamedTuple):
    """
    What a cache has done for one route: counts as in CacheCounters.

    fill_seconds: how long the app took for all that was stored; fills: how many that were. fill_mean: how long a fill
    takes, of all there have been: it is not forgotten when counting begins anew.
    """

    route: str
    l1_hits: int
    l2_hits: int
    stale_hits: int
    rescued: int
    collapsed: int
    stored: int
    forwards: Mapping[str, int]
    refused: Mapping[str, int]
    fills: int
    fill_seconds: float
    fill_mean: float

    @property
    def hits(self) -> int:
        """Answers from what is stored."""
        return self.l1_hits + self.l2_hits

    @property
    def misses(self) -> int:
        """Calls of the app for what a cache can answer."""
        return misses(self.forwards)

    @property
    def requests(self) -> int:
        """All requests but those that no cache can answer."""
        return self.hits + self.collapsed + self.misses

    @property
    def saved_seconds(self) -> float:
        """How long the app would have worked on what the cache answered, as far as its fills tell."""
        return (self.hits + self.collapsed) * self.fill_mean

    def since(self, before: Self) -> Self:
        """Return what was counted after *before*."""
        return self._replace(
            l1_hits=self.l1_hits - before.l1_hits,
            l2_hits=self.l2_hits - before.l2_hits,
            stale_hits=self.stale_hits - before.stale_hits,
            rescued=self.rescued - before.rescued,
            collapsed=self.collapsed - before.collapsed,
            stored=self.stored - before.stored,
            forwards=_since(self.forwards, before.forwards),
            refused=_since(self.refused, before.refused),
            fills=self.fills - before.fills,
            fill_seconds=self.fill_seconds - before.fill_seconds,
        )


def route_counters(tally: Tally) -> RouteCounters:
    """Return a snapshot of *tally*."""
    return RouteCounters(
        tally.route,
        tally.l1_hits,
        tally.l2_hits,
        tally.stale_hits,
        tally.rescued,
        tally.collapsed,
        tally.stored,
        dict(tally.forwards),
        dict(tally.refusals),
        tally.fills.count,
        tally.fills.total,
        tally.fills.mean,
    )


class Totals(NamedTuple):
    """What was counted for all routes together when counting began anew, and what knows no route."""

    routes: Mapping[str, RouteCounters]
    failures: int
    invalidations: int

    def since(self, before: Self) -> Self:
        """Return what was counted after *before*."""
        routes = {
            name: counters if (then := before.routes.get(name)) is None else counters.since(then)
            for name, counters in self.routes.items()
        }
        return type(self)(routes, self.failures - before.failures, self.invalidations - before.invalidations)

    def busiest(self) -> list[RouteCounters]:
        """Return the routes that had requests, most requests first."""
        routes = [one for one in self.routes.values() if one.requests or one.forwards]
        return sorted(routes, key=lambda one: -one.requests)

    def counters(self, store: StoreStats) -> CacheCounters:
        """Return the sums over all routes. store: the statistics of the store."""
        routes = self.routes.values()
        l1_hits, l2_hits = sum(one.l1_hits for one in routes), sum(one.l2_hits for one in routes)
        return CacheCounters(
            hits=l1_hits + l2_hits,
            l1_hits=l1_hits,
            l2_hits=l2_hits,
            stale_hits=sum(one.stale_hits for one in routes),
            rescued=sum(one.rescued for one in routes),
            forwards=_sum(one.forwards for one in routes),
            collapsed=sum(one.collapsed for one in routes),
            stored=sum(one.stored for one in routes),
            refused=_sum(one.refused for one in routes),
            failures=self.failures,
            invalidations=self.invalidations,
            saved_seconds=sum(one.saved_seconds for one in routes),
            store=store,
        )


def _since(now: Mapping[str, int], before: Mapping[str, int]) -> dict[str, int]:
    return {name: count - before.get(name, 0) for name, count in now.items() if count != before.get(name, 0)}


def _sum(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    return dict(total)
