"""
Copying one level to the other. The one rule: newest wins, and what is changed meanwhile is newer.

Keys come in pages, and all variants of a page's keys are read and written together, so that they go out in batches;
nothing the size of a store is held.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Final, Protocol

from echo_cache.errors import NotStorable
from echo_cache.model import CacheKey, Entry, Vary
from echo_cache.options import TwoLevelConfig
from echo_cache.stores.base import Store
from echo_cache.stores.twolevel.life import capped, is_newer
from echo_cache.stores.twolevel.order import Orders
from echo_cache.stores.twolevel.reports import Progress, SyncProgress, SyncReport
from echo_cache.stores.writeback import WriteBack

__all__ = ["Copying", "MemoryLevel"]

_PAGE: Final = 64


class MemoryLevel(Store, Protocol):
    """A store that can stand as L1: what it does, it can do at once."""

    def set_nowait(self, key: CacheKey, entry: Entry) -> bool:
        """As `set`, at once."""
        ...

    def add_nowait(self, key: CacheKey, entry: Entry) -> bool | None:
        """As `set_nowait`, but nothing is evicted for it: None, and nothing is kept, when there is no room."""
        ...

    def delete_nowait(self, key: CacheKey) -> bool:
        """As `delete`, at once."""
        ...

    def peek(self, key: CacheKey) -> Sequence[Entry]:
        """Return all entries under *key*, newest first; that counts as nothing. Never raises."""
        ...


class Copied:
    """What became of the entries of one key. *full*: the other level has no room for more."""

    __slots__ = ("copied", "failed", "full", "skipped")

    def __init__(self) -> None:
        self.copied = 0
        self.skipped = 0
        self.failed = 0
        self.full = False


class Copying:
    """
    What copies one level of a two-level store to the other.

    queue: what is yet to be written to L2, if there is one. failed: told of failures of L1, and of L2.
    """

    def __init__(
        self,
        l1: MemoryLevel,
        l2: Store,
        orders: Orders,
        queue: WriteBack | None,
        config: TwoLevelConfig,
        now: Callable[[], float],
        failed: Callable[[int, int], None],
    ) -> None:
        self._l1 = l1
        self._l2 = l2
        self._orders = orders
        self._queue = queue
        self._config = config
        self._now = now
        self._failed = failed

    async def to_l2(self, progress: Progress | None) -> SyncReport:
        """Copy to L2 what L1 has."""
        return await copy_all(self._l1.keys(), self._key_to_l2, progress)

    async def to_l1(self, keys: AsyncIterator[CacheKey], progress: Progress | None) -> SyncReport:
        """Copy to L1 what L2 has under *keys*, until L1 is full."""
        return await copy_all(keys, self._key_to_l1, progress)

    async def _key_to_l2(self, key: CacheKey) -> Copied:
        result = Copied()
        order = self._orders.of(key)
        began = order.tickets
        entries = self._l1.peek(key)
        async with order.turn:
            try:
                theirs = await all_variants(self._l2, key)
            except Exception:
                self._failed(0, 1)
                result.failed += len(entries)
                return result
            for entry in reversed(entries):  # the newest last, as it was
                # Whoever changes the key from now on waits for our turn to end, or is queued behind us.
                if order.tickets != began or not is_better(entry, theirs, self._now()):
                    result.skipped += 1
                else:
                    await self._write(key, entry, result)
        return result

    async def _write(self, key: CacheKey, entry: Entry, result: Copied) -> None:
        entry = capped(entry, self._config.l2_ttl, self._now())
        try:
            if self._queue is None:
                done = await self._l2.set(key, entry)
            else:
                done = not self._queue.has(key) and await self._queue.write(key, entry)
        except Exception:
            self._failed(0, int(self._queue is None))  # the queue has counted it
            result.failed += 1
        else:
            result.copied += done
            result.skipped += not done

    async def _key_to_l1(self, key: CacheKey) -> Copied:
        result = Copied()
        order = self._orders.of(key)
        began = order.tickets
        queued = self._queue is not None and self._queue.has(key)
        try:
            found = await all_variants(self._l2, key)
        except Exception:
            self._failed(0, 1)
            result.failed += 1
            return result
        for entry in reversed(found):  # the newest last, as it was
            if queued or order.tickets != began:
                result.skipped += 1
            else:
                self._add(key, entry, result)
        return result

    def _add(self, key: CacheKey, entry: Entry, result: Copied) -> None:
        now = self._now()
        entry = capped(entry, self._config.l1_ttl, now, in_memory=True)
        try:
            kept = is_better(entry, self._l1.peek(key), now) and self._l1.add_nowait(key, entry)
        except Exception as error:
            self._failed(int(not isinstance(error, NotStorable)), 0)  # L1 has counted that one
            result.failed += 1
            return
        result.copied += kept is True
        result.skipped += kept is not True
        result.full = result.full or kept is None


async def copy_all(
    keys: AsyncIterator[CacheKey], copy: Callable[[CacheKey], Awaitable[Copied]], progress: Progress | None
) -> SyncReport:
    """Call *copy* with each of *keys*, those of a page at once, and *progress* after each page."""
    total = SyncProgress()
    full = False
    async for page in _pages(keys):
        results = await asyncio.gather(*map(copy, page))
        total = _sum(total, results)
        if progress is not None:
            said = progress(total)
            if inspect.isawaitable(said):
                await said
        full = any(result.full for result in results)
        if full:
            break
    return SyncReport(total.seen, total.copied, total.skipped, total.failed)


async def _pages(keys: AsyncIterator[CacheKey]) -> AsyncIterator[list[CacheKey]]:
    page = []
    async for key in keys:
        page.append(key)
        if len(page) == _PAGE:
            yield page
            page = []
    if page:
        yield page


def _sum(total: SyncProgress, results: Sequence[Copied]) -> SyncProgress:
    copied = sum([result.copied for result in results])
    skipped = sum([result.skipped for result in results])
    failed = sum([result.failed for result in results])
    return SyncProgress(
        total.seen + copied + skipped + failed, total.copied + copied, total.skipped + skipped, total.failed + failed
    )


async def all_variants(store: Store, key: CacheKey) -> list[Entry]:
    """Return all entries that *store* has under *key*, newest first; one look for each, and one more. StoreError."""
    found: list[Entry] = []
    seen: set[Vary] = set()
    while (entry := await store.get(key, lambda vary: vary not in seen)) is not None:
        found.append(entry)
        if not entry.vary:
            break  # it took the place of all that was there before it
        seen.add(entry.vary)
    return found


def is_better(entry: Entry, held: Sequence[Entry], now: float) -> bool:
    """Return whether *entry* is to be copied to where *held* is: it takes the place of nothing that is as good."""
    rivals = [other for other in held if not entry.vary or not other.vary or other.vary == entry.vary]
    return all(_beats(entry, rival, now) for rival in rivals)


def _beats(entry: Entry, rival: Entry, now: float) -> bool:
    """
    Return whether *entry* is better than *rival*, which it would take the place of, or whose requests it would answer.

    Of one instant are copies, of which the fresh one is better, and a variant that stands beside the one for all.
    """
    if is_newer(entry, rival):
        return True
    if is_newer(rival, entry):
        return False
    if entry.vary != rival.vary:
        return bool(entry.vary)
    return rival.fresh_until <= now < entry.fresh_until
