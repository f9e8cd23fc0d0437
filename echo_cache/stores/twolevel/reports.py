"""What a two-level store says of itself: frozen snapshots."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import NamedTuple, Self, TypeAlias

from echo_cache.stores.base import StoreStats

__all__ = ["CacheStats", "Counts", "Progress", "SyncProgress", "SyncReport", "cache_stats"]


@dataclass(frozen=True, slots=True)
class CacheStats:
    """
    A snapshot of a two-level store. Counters run since it was made, or since `reset_stats`; sizes are of now.

    l1_hits, l2_hits: look-ups answered by each level; what is on its way to L2 counts as L2's. total_miss: by neither.
    total_requests: all look-ups; those for which L2 failed, with nothing in L1, are neither hit nor miss.
    hit_rate, l1_hit_rate, l2_hit_rate: fractions of total_requests, 0..1; 0.0 when there were none.
    l1_size, l2_size: how much each holds, entries in memory, keys in Redis; None where that is not known.
    l1_bytes: what L1 takes, as it measures itself. l1_evictions: entries that L1 gave up for room.
    l1_errors, l2_errors: operations at which a level failed. l2_timeouts: those of them that took L2 too long, as L2
    counts them. l2_soft_timeouts: how often a stale answer was given because L2 took longer than `l2_soft_timeout`.
    breaker: "closed", "open" or "half_open"; None where L2 has none.
    write_back_queue, write_back_bytes: what WRITE_BACK has yet to write to L2.
    dropped: writes that were acknowledged and that L2 will never see: WRITE_BACK found no room and L2 failed, they
    outlived themselves or were not drained in time, or L2 refused them.
    dropped_promotions: L2 hits that found no room in the queue to L1.
    """

    l1_hits: int
    l2_hits: int
    total_miss: int
    total_requests: int
    hit_rate: float
    l1_hit_rate: float
    l2_hit_rate: float
    l1_size: int | None
    l2_size: int | None
    l1_bytes: int | None
    l1_evictions: int
    l1_errors: int
    l2_errors: int
    l2_timeouts: int
    l2_soft_timeouts: int
    breaker: str | None
    write_back_queue: int
    write_back_bytes: int
    dropped: int
    dropped_promotions: int


class Counts(NamedTuple):
    """All that is counted since the store was made."""

    l1_hits: int
    l2_hits: int
    misses: int
    unanswered: int
    l1_evictions: int
    l1_errors: int
    l2_errors: int
    l2_timeouts: int
    l2_soft_timeouts: int
    dropped: int
    dropped_promotions: int

    def since(self, before: Self) -> Self:
        """Return what was counted after *before*."""
        return type(self)(*[now - then for now, then in zip(self, before, strict=True)])


def cache_stats(
    counts: Counts, l1: StoreStats, l2_size: int | None, breaker: str | None, queued: tuple[int, int]
) -> CacheStats:
    """Return *counts* with the rates that they make, and the sizes of now. queued: operations, and bytes."""
    hits = counts.l1_hits + counts.l2_hits
    requests = hits + counts.misses + counts.unanswered
    return CacheStats(
        l1_hits=counts.l1_hits,
        l2_hits=counts.l2_hits,
        total_miss=counts.misses,
        total_requests=requests,
        hit_rate=hits / requests if requests else 0.0,
        l1_hit_rate=counts.l1_hits / requests if requests else 0.0,
        l2_hit_rate=counts.l2_hits / requests if requests else 0.0,
        l1_size=l1.entries,
        l2_size=l2_size,
        l1_bytes=l1.bytes,
        l1_evictions=counts.l1_evictions,
        l1_errors=counts.l1_errors,
        l2_errors=counts.l2_errors,
        l2_timeouts=counts.l2_timeouts,
        l2_soft_timeouts=counts.l2_soft_timeouts,
        breaker=None if breaker is None else str(breaker),
        write_back_queue=queued[0],
        write_back_bytes=queued[1],
        dropped=counts.dropped,
        dropped_promotions=counts.dropped_promotions,
    )


@dataclass(frozen=True, slots=True)
class SyncProgress:
    """
    How far the copying of one level to the other has come, in entries (variants); each is one of the last three.

    skipped: the other level has it, or a newer one, or no place for it, or it was changed meanwhile. failed: a level
    could not be asked, or failed to keep it.
    """

    seen: int = 0
    copied: int = 0
    skipped: int = 0
    failed: int = 0


@dataclass(frozen=True, slots=True)
class SyncReport(SyncProgress):
    """What copying one level to the other has done, in entries (variants)."""


Progress: TypeAlias = Callable[[SyncProgress], Awaitable[object] | object]
"""Called after each page of keys; what it raises ends the copying."""
