"""What a cache has done, in numbers."""

from __future__ import annotations

from dataclasses import dataclass

from echo_cache.model import Fwd
from echo_cache.stores.base import StoreStats

__all__ = ["CacheCounters"]


@dataclass(frozen=True, slots=True)
class CacheCounters:
    """
    A snapshot of what the cache has done since it was made or reset.

    hits: answers from a stored response, stale ones included; stale_hits: those of them that were stale.
    forwards: requests that went to the app, by reason (the Fwd tokens); collapsed: requests that shared another's call.
    stored, refused: responses, the latter by reason. failures: errors of the cache itself that requests did not feel.
    store: the statistics of the store.
    """

    hits: int
    stale_hits: int
    forwards: dict[str, int]
    collapsed: int
    stored: int
    refused: dict[str, int]
    failures: int
    store: StoreStats

    @property
    def hit_rate(self) -> float:
        """The fraction of requests, of those that a cache can answer, that were answered from it: 0..1."""
        answered = self.hits + self.collapsed
        total = answered + sum(self.forwards.values()) - self.forwards.get(Fwd.METHOD, 0)
        return answered / total if total else 0.0
