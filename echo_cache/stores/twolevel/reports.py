"""What a two-level store says of itself: frozen snapshots."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeAlias

__all__ = ["CacheStats", "Progress", "SyncProgress", "SyncReport"]


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
