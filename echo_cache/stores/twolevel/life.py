"""Pure decisions on entries of two levels: how long one is fresh there, and which of two is better."""

from __future__ import annotations

from echo_cache.model import Entry

__all__ = ["capped", "is_newer", "supersedes"]

# What one fill wrote to both levels comes back from L2 by the clock of its server, whose offset is an estimate.
_ONE_INSTANT = 0.05


def capped(entry: Entry, ttl: float, now: float, *, in_memory: bool = False) -> Entry:
    """
    Return *entry*, fresh for *ttl* seconds from *now* at most; *in_memory*: it is noted in it that it is for longer.

    What follows freshness (stale windows, being kept for validation) keeps its length and begins earlier. Nothing is
    ever lengthened.
    """
    latest = now + ttl
    if entry.fresh_until <= latest:
        return entry if in_memory or not entry.is_capped else entry._replace(is_capped=False)
    retain_until = min(entry.retain_until, latest + (entry.retain_until - entry.fresh_until))
    return entry._replace(fresh_until=latest, retain_until=retain_until, is_capped=in_memory)


def supersedes(found: Entry, held: Entry) -> bool:
    """Return whether *found* in L2 is better than *held*, which is stale in L1: newer, or the same and fresh longer."""
    return (found.stored_at, found.fresh_until) > (held.stored_at, held.fresh_until)


def is_newer(entry: Entry, other: Entry) -> bool:
    """Return whether *entry* was stored after *other*, and not by the same fill."""
    return entry.stored_at - other.stored_at > _ONE_INSTANT
