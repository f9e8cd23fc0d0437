"""
What is measured of a cache: one table, read by whoever collects metrics.

The one rule: reading costs by routes, never by entries, and counters only grow. What `reset_counters` begins anew is
not read here.
"""

from __future__ import annotations

import enum
import logging
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Final, NamedTuple, TypeAlias

from echo_cache.cache import Cache
from echo_cache.coordination.logs import server_of
from echo_cache.stores.base import StoreStats
from echo_cache.tallies import Histogram, Tally

__all__ = ["INSTRUMENTS", "PREFIX", "Buckets", "Instrument", "Kind", "Measured", "Measuring", "Reading"]

logger = logging.getLogger("echo_cache")

PREFIX: Final = "echo_cache"

_BREAKER_STATES: Final = ("closed", "half_open", "open")


class Kind(enum.Enum):
    """How a metric is to be understood."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Buckets(NamedTuple):
    """
    A snapshot of a Histogram.

    bounds: the upper ends of the buckets, in seconds. counts: how many took as long or less, for each bound and, last,
    for all. total: the sum, in seconds.
    """

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    total: float


Measured: TypeAlias = Iterable[tuple[tuple[str, ...], float | Buckets]]
"""The values of an instrument, each with the values of its labels."""


class Measuring:
    """
    What one collector has to remember of one cache between two readings.

    What a hit saves is an estimate, and what a fill takes changes. To have a counter that only grows, the answers since
    the last reading are counted at what a fill takes now; those of a route of which no fill is known wait for one.
    """

    def __init__(self) -> None:
        # By route: how many answers are counted, and what they saved. Several threads may read.
        self._saved: dict[str, tuple[int, float]] = {}
        self._lock = threading.Lock()

    def read(self, cache: Cache) -> Reading:
        """Return what is to be told of *cache* now."""
        return Reading(cache, self)

    def saved(self, tally: Tally) -> float:
        """Return how many seconds the answers of *tally* have saved, all in all."""
        with self._lock:
            counted, seconds = self._saved.get(tally.route, (0, 0.0))
            answers, mean = tally.hits + tally.collapsed, tally.fills.mean
            if mean > 0.0 and answers > counted:
                seconds += (answers - counted) * mean
                self._saved[tally.route] = answers, seconds
            return seconds


class Reading:
    """A cache as it is read once, by instruments that each take what they need."""

    def __init__(self, cache: Cache, measuring: Measuring) -> None:
        self.cache: Final = cache
        self.tallies: Final = list(cache.tallies)
        store: Any = cache.store
        self.levels: Final[dict[str, Any]] = (
            {"l1": store.l1, "l2": store.l2}
            if hasattr(store, "l1") and hasattr(store, "l2")
            else {"l2" if getattr(store, "remote", True) else "l1": store}
        )
        self.l2: Final[Any] = self.levels.get("l2")
        self.server: Final[Any] = server_of(store)
        self._measuring = measuring

    def of_levels(self, figure: Callable[[StoreStats], int | None]) -> Measured:
        """Yield what the levels know of *figure*."""
        for level, store in self.levels.items():
            value = figure(store.stats())
            if value is not None:
                yield (level,), value

    def of_two(self, field: str) -> Measured:
        """Yield a field of the statistics of a store of two levels; nothing for others. Counters never fall."""
        counts, get_stats = getattr(self.cache.store, "counts", None), getattr(self.cache.store, "get_stats", None)
        if counts is not None and get_stats is not None:
            ever = counts()
            yield (), getattr(ever if hasattr(ever, field) else get_stats(), field)

    def of_config(self, field: str) -> Measured:
        """Yield what a store of two levels was told by its options; nothing for others."""
        value = getattr(getattr(self.cache.store, "config", None), field, None)
        if value is not None:
            yield (), value

    def of_l2(self, attribute: str) -> Measured:
        """Yield a number that the store below memory has as an attribute; nothing where it has none."""
        value = getattr(self.l2, attribute, None)
        if value is not None:
            yield (), value

    def hits(self) -> Measured:
        for tally in self.tallies:
            for level, count in (("l1", tally.l1_hits), ("l2", tally.l2_hits)):
                if count or level in self.levels:
                    yield (tally.route, level), count

    def forwards(self) -> Measured:
        for tally in self.tallies:
            for fwd, count in dict(tally.forwards).items():
                yield (tally.route, str(fwd)), count

    def refusals(self) -> Measured:
        for tally in self.tallies:
            for reason, count in dict(tally.refusals).items():
                yield (tally.route, str(reason)), count

    def saved_seconds(self) -> Measured:
        for tally in self.tallies:
            yield (tally.route,), self._measuring.saved(tally)

    def fill_seconds(self) -> Measured:
        for tally in self.tallies:
            if tally.fills.count:
                yield (tally.route,), _buckets(tally.fills)

    def l2_seconds(self) -> Measured:
        for operation, histogram in getattr(self.server, "latencies", {}).items():
            yield (operation,), _buckets(histogram)

    def max_bytes(self) -> Measured:
        for level, store in self.levels.items():
            value = getattr(store, "max_bytes", None)
            if value is not None:
                yield (level,), value

    def breaker(self) -> Measured:
        state = getattr(self.l2, "breaker_state", None)
        if state is not None:
            for one in _BREAKER_STATES:
                yield (one,), int(one == str(state))

    def is_heard(self) -> Measured:
        yield (), int(getattr(self.cache.log, "trouble", None) is None)

    def is_synced(self) -> Measured:
        # Before the log was read for the first time nothing has been answered by it.
        log = self.cache.log
        yield (), int(not log.known or log.unheard_for() <= self.cache.coordination.max_unsynced)

    def unheard_for(self) -> Measured:
        # A log that was never heard has been unheard for as long as there is a cache.
        yield (), min(self.cache.log.unheard_for(), self.cache.uptime)

    def pending(self) -> Measured:
        yield (), getattr(self.cache.log, "pending", 0)

    def info(self) -> Measured:
        config = getattr(self.cache.store, "config", None)
        strategy = str(getattr(config, "strategy", ""))
        yield (type(self.cache.store).__name__, strategy), 1


def _buckets(histogram: Histogram) -> Buckets:
    total = histogram.total
    return Buckets(histogram.bounds, tuple(accumulate(list(histogram.counts))), total)


@dataclass(frozen=True, slots=True)
class Instrument:
    """
    One metric.

    name: without the prefix, with the unit at its end. labels: beside that of the cache. meaning: one sentence.
    """

    name: str
    kind: Kind
    labels: tuple[str, ...]
    meaning: str
    read: Callable[[Reading], Measured]

    @property
    def unit(self) -> str:
        """The unit, "" where it is a count."""
        return next((unit for unit in ("seconds", "bytes") if self.name.endswith(f"_{unit}")), "")

    def values(self, reading: Reading) -> Measured:
        """Yield what it measures; where that fails, it ends, so that all the others are told all the same."""
        try:
            yield from self.read(reading)
        except Exception as error:
            logger.warning("the metric %s of %r cannot be read: %r", self.name, reading.cache.name, error)


def _of_routes(name: str, meaning: str) -> Instrument:
    """Return the counter of what tallies have as *name*."""

    def read(reading: Reading) -> Measured:
        return [((tally.route,), getattr(tally, name)) for tally in reading.tallies]

    return Instrument(name, Kind.COUNTER, ("route",), meaning, read)


def _of_levels(name: str, kind: Kind, meaning: str) -> Instrument:
    """Return the instrument of what stores' statistics have as *name*."""

    def read(reading: Reading) -> Measured:
        return reading.of_levels(lambda stats: getattr(stats, name))

    return Instrument(f"store_{name}", kind, ("level",), meaning, read)


def _of_one(name: str, kind: Kind, meaning: str, read: Callable[[Reading], Measured]) -> Instrument:
    return Instrument(name, kind, (), meaning, read)


def _of_cache(name: str, kind: Kind, meaning: str, figure: Callable[[Cache], float]) -> Instrument:
    return Instrument(name, kind, (), meaning, lambda reading: [((), figure(reading.cache))])


INSTRUMENTS: Final = (
    # By route.
    Instrument("hits", Kind.COUNTER, ("route", "level"), "Answers from what is stored at a level.", Reading.hits),
    _of_routes("stale_hits", "Hits that were stale, within a stale window."),
    _of_routes("collapsed", "Requests that shared the call of the app by another one."),
    Instrument("forwards", Kind.COUNTER, ("route", "fwd"), "Calls of the app, by their reason.", Reading.forwards),
    _of_routes("rescued", "Stale answers in place of an app that failed."),
    _of_routes("stored", "Responses that were stored."),
    Instrument(
        "refused", Kind.COUNTER, ("route", "reason"), "Responses that were not stored, and why.", Reading.refusals
    ),
    Instrument(
        "saved_seconds",
        Kind.COUNTER,
        ("route",),
        "How long the app would have worked on what the cache answered: an estimate.",
        Reading.saved_seconds,
    ),
    Instrument(
        "fill_seconds",
        Kind.HISTOGRAM,
        ("route",),
        "How long the app took for the responses that were stored, to the last byte.",
        Reading.fill_seconds,
    ),
    # The cache.
    _of_cache(
        "failures", Kind.COUNTER, "Errors of the cache itself, which no request felt.", lambda cache: cache.failures
    ),
    _of_cache(
        "invalidations", Kind.COUNTER, "What was invalidated by this process.", lambda cache: cache.invalidations
    ),
    _of_cache(
        "flights", Kind.GAUGE, "Calls of the app under way that may be shared.", lambda cache: len(cache.flights)
    ),
    _of_cache("tasks", Kind.GAUGE, "Writes, deletes and other tasks under way.", lambda cache: cache.tasks_under_way),
    _of_cache(
        "filling_bytes", Kind.GAUGE, "Copies of responses that are not complete yet.", lambda cache: cache.filling_bytes
    ),
    _of_cache(
        "disabled", Kind.GAUGE, "1 while every request passes by the cache.", lambda cache: int(cache.is_disabled)
    ),
    Instrument("info", Kind.GAUGE, ("store", "strategy"), "Always 1; what the cache stands on.", Reading.info),
    # The store.
    _of_levels("entries", Kind.GAUGE, "Entries (variants) that a level holds."),
    _of_levels("bytes", Kind.GAUGE, "What a level takes, its overhead included."),
    Instrument("store_max_bytes", Kind.GAUGE, ("level",), "What a level may take.", Reading.max_bytes),
    _of_levels("evictions", Kind.COUNTER, "Entries that a level gave up for room."),
    _of_levels("errors", Kind.COUNTER, "Operations at which a level failed."),
    Instrument(
        "l2_seconds",
        Kind.HISTOGRAM,
        ("operation",),
        "How long Redis took for a batch of operations that it answered.",
        Reading.l2_seconds,
    ),
    _of_one(
        "l2_timeouts", Kind.COUNTER, "Operations that took Redis too long.", lambda reading: reading.of_l2("timeouts")
    ),
    _of_one(
        "l2_soft_timeouts",
        Kind.COUNTER,
        "Stale answers because Redis took longer than l2_soft_timeout.",
        lambda reading: reading.of_two("l2_soft_timeouts"),
    ),
    _of_one(
        "l2_rejected",
        Kind.COUNTER,
        "Values in Redis that were no entries of this version and key.",
        lambda reading: reading.of_l2("rejected"),
    ),
    _of_one(
        "l2_forged",
        Kind.COUNTER,
        "Values in Redis that were not signed with the secret.",
        lambda reading: reading.of_l2("forged"),
    ),
    _of_one(
        "write_back_queue",
        Kind.GAUGE,
        "Writes that Redis has yet to get.",
        lambda reading: reading.of_two("write_back_queue"),
    ),
    _of_one(
        "write_back_queue_bytes",
        Kind.GAUGE,
        "What these writes take.",
        lambda reading: reading.of_two("write_back_bytes"),
    ),
    _of_one(
        "write_back_limit",
        Kind.GAUGE,
        "How many writes may wait: async_buffer.",
        lambda reading: reading.of_config("async_buffer"),
    ),
    _of_one(
        "write_back_limit_bytes",
        Kind.GAUGE,
        "What they may take: async_buffer_bytes.",
        lambda reading: reading.of_config("async_buffer_bytes"),
    ),
    _of_one(
        "dropped_writes",
        Kind.COUNTER,
        "Writes that were acknowledged and that Redis will never get.",
        lambda reading: reading.of_two("dropped"),
    ),
    _of_one(
        "dropped_promotions",
        Kind.COUNTER,
        "Hits in Redis that found no room in the queue to memory.",
        lambda reading: reading.of_two("dropped_promotions"),
    ),
    Instrument("breaker_state", Kind.GAUGE, ("state",), "1 for the state that Redis's breaker is in.", Reading.breaker),
    # The log of invalidations.
    _of_one("log_heard", Kind.GAUGE, "1 while what other workers invalidate is heard.", Reading.is_heard),
    _of_one("log_synced", Kind.GAUGE, "0 when it has not been heard for max_unsynced.", Reading.is_synced),
    _of_one("log_unheard_seconds", Kind.GAUGE, "For how long it has not been heard.", Reading.unheard_for),
    _of_one("log_pending", Kind.GAUGE, "Invalidations that other workers cannot know of yet.", Reading.pending),
)
