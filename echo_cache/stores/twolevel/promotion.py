"""The queue from L2 to L1: what L2 was found to have is put into memory in the next turn of the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from echo_cache.model import CacheKey, Entry, Vary
from echo_cache.stores.twolevel.order import Order
from echo_cache.stores.writeback import entry_bytes

__all__ = ["Promotions"]

# Promotions done in one turn of the event loop: a few microseconds each, so that requests wait less than a millisecond.
_PER_TURN: Final = 64


class Promotions:
    """
    At most *most* entries of *most_bytes* bytes that *show* is to put into L1.

    One that finds no room, or that a change of its key has overtaken, is not promoted; the former is counted in
    `dropped`.
    """

    def __init__(self, show: Callable[[CacheKey, Entry], object], *, most: int, most_bytes: int) -> None:
        self._show: Final = show
        self._most: Final = most
        self._most_bytes: Final = most_bytes

        # Changed between awaits only, by the one event loop that uses the store.
        self._queued: dict[tuple[CacheKey, Vary], tuple[Entry, Order, int]] = {}
        self._bytes = 0
        self._draining: asyncio.AbstractEventLoop | None = None
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._queued)

    def now(self, key: CacheKey, entry: Entry, order: Order, began: int) -> None:
        """Put *entry* into L1, unless its key was written or deleted since *order* was at *began*. Never raises."""
        if order.tickets == began:
            self._show(key, entry)

    def soon(self, key: CacheKey, entry: Entry, order: Order, began: int) -> None:
        """As `now`, in the next turn of the event loop."""
        size = entry_bytes(key, entry)
        waiting = self._queued.pop((key, entry.vary), None)
        if waiting is not None:
            self._bytes -= entry_bytes(key, waiting[0])
        elif len(self._queued) >= self._most or self._bytes + size > self._most_bytes:
            self.dropped += 1
            return
        self._queued[key, entry.vary] = (entry, order, began)
        self._bytes += size
        loop = asyncio.get_running_loop()
        # Not a plain flag: the loop in which it was set may have ended before its next turn.
        if self._draining is not loop:
            self._draining = loop
            loop.call_soon(self.drain, _PER_TURN)

    def drain(self, most: int | None = None) -> None:
        """Do the queued promotions, *most* of them (None: all), and see to the rest in the next turn."""
        for place in list(self._queued)[:most]:
            entry, order, began = self._queued.pop(place)
            self._bytes -= entry_bytes(place[0], entry)
            self.now(place[0], entry, order, began)
        if self._queued and self._draining is not None:
            self._draining.call_soon(self.drain, most)
        else:
            self._draining = None
