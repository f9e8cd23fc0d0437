"""
Memory before Redis, as one store. The one rule: L1 never knows more than L2 was told, and what was deleted does not
come back.

A read, a write and a delete of one key may overlap, and each of them touches two levels at two moments. So every key
with something under way has an `_Order`: writes and deletes take tickets from it when they begin, L2 sees them in that
order, and whoever comes late at a level (a promotion of what was read before a delete, a write that was queued before
it) sees that it has been overtaken and does nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, Final, Protocol
from weakref import WeakValueDictionary

from echo_cache.errors import ConfigurationError, StoreError
from echo_cache.model import CacheKey, Entry, Vary
from echo_cache.options import CacheStrategy, SyncMode, TwoLevelConfig
from echo_cache.stores.base import Held, Match, Store, StoreStats

__all__ = ["MemoryLevel", "TwoLevelStore"]

# Promotions done in one turn of the event loop: a few microseconds each, so that requests wait less than a millisecond.
_PROMOTIONS_PER_TURN: Final = 64


class MemoryLevel(Store, Protocol):
    """A store that can stand as L1: what it does, it can do at once."""

    def set_nowait(self, key: CacheKey, entry: Entry) -> bool:
        """As `set`, at once."""
        ...

    def delete_nowait(self, key: CacheKey) -> bool:
        """As `delete`, at once."""
        ...


class _Clock(Protocol):
    def time(self) -> float: ...


class _Order:
    """
    The order of what happens to one key, for as long as something is under way.

    tickets: how many writes and deletes have begun. deleted: the ticket of the latest delete. visible: the ticket of
    the latest `put` of each variant, which L1 saw before L2. turn: held by the one write or delete that is at L2.
    """

    __slots__ = ("__weakref__", "deleted", "loop", "tickets", "turn", "visible")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.tickets = 0
        self.deleted = 0
        self.visible: dict[Vary, int] = {}
        self.turn = asyncio.Lock()

    def take_ticket(self) -> int:
        self.tickets += 1
        return self.tickets

    def may_show(self, ticket: int, vary: Vary) -> bool:
        """Return whether nothing that began after *ticket* has changed what L1 holds for *vary*."""
        visible = self.visible
        return self.deleted < ticket and visible.get(vary, 0) <= ticket and visible.get((), 0) <= ticket


class TwoLevelStore:
    """
    *l1*, a store in memory, before *l2*, a store that other processes share: any store's place can be taken by it.

    config: how the two work together; see TwoLevelConfig.
    clock: where the time comes from; the machine's wall clock if None.

    strategy WRITE_THROUGH: `set` writes L2, then L1, before it returns; a failure of L2 leaves the entry in L1 and is
    counted. CACHE_ASIDE: `set` writes L2 and drops the key from L1; the next read promotes it.
    An L2 hit is promoted to L1 when *cache_warming* is on: before `get` returns (sync_mode SYNC) or in the next turn of
    the event loop (ASYNC), from a queue of *async_buffer* entries; one that finds it full is not promoted this time.

    A failure of L1 is counted, and what it was asked for comes from or goes to L2.

    Raises ConfigurationError for stores and strategies that cannot work here.
    """

    remote: bool = True
    get_nowait: Callable[[CacheKey], Held | None]

    def __init__(
        self, l1: MemoryLevel, l2: Store, config: TwoLevelConfig | None = None, *, clock: _Clock | None = None
    ) -> None:
        config = TwoLevelConfig() if config is None else config
        for needed in ("get_nowait", "set_nowait", "delete_nowait"):
            if not hasattr(l1, needed):
                raise ConfigurationError(f"l1 must be a store in memory, such as MemoryStore, not {type(l1).__name__}")
        if not hasattr(l2, "get"):
            raise ConfigurationError(f"l2 must be a store, such as RedisStore, not {type(l2).__name__}")
        if config.strategy == CacheStrategy.WRITE_BACK:
            raise ConfigurationError(
                "strategy 'write_back' is not in this version; choose 'write_through' or 'cache_aside'"
            )
        self.config: Final = config
        self._l1: Final = l1
        self._l2: Final = l2
        self._now = time.time if clock is None else clock.time
        self._write_through = config.strategy == CacheStrategy.WRITE_THROUGH
        self._l1_ttl = config.l1_ttl
        self._l2_ttl = config.l2_ttl
        # L1's own, so that a hit in memory pays for no second level.
        self.get_nowait = l1.get_nowait

        # Changed between awaits only, by the one event loop that uses the store.
        self._orders: WeakValueDictionary[tuple[int, CacheKey], _Order] = WeakValueDictionary()
        self._promotions: dict[CacheKey, tuple[Entry, _Order, int]] = {}
        self._draining: asyncio.AbstractEventLoop | None = None
        self._l1_hits = 0
        self._l2_hits = 0
        self._misses = 0
        self._sets = 0
        self._l1_errors = 0
        self._l2_errors = 0
        self._dropped_promotions = 0

    # --- reading ------------------------------------------------------------------------------------------------------

    async def get(self, key: CacheKey, match: Match) -> Entry | None:
        """
        Return the newest entry under *key* whose `vary` satisfies *match*, or None.

        A fresh entry in L1 is the answer. Otherwise L2 is asked, and L1's stale entry is the answer if L2 has none that
        is newer or fresher, or cannot be asked.
        Raises StoreError when L2 cannot be asked and L1 has nothing: that is not a miss.
        """
        now = self._now()
        held = self._find_in_l1(key, match, now)
        if held is not None and now < held.fresh_until:
            self._l1_hits += 1
            return held
        order = self._order(key)
        began = order.tickets
        try:
            found = await self._l2.get(key, match)
        except StoreError:
            self._l2_errors += 1
            if held is None:
                raise
            found = None
        if found is None or (held is not None and not _supersedes(found, held)):
            if held is None:
                self._misses += 1
            else:
                self._l1_hits += 1
            return held
        self._l2_hits += 1
        if self.config.cache_warming:
            self._promote(key, found, order, began)
        return found

    def _find_in_l1(self, key: CacheKey, match: Match, now: float) -> Entry | None:
        try:
            held = self.get_nowait(key)
        except Exception:
            self._l1_errors += 1
            return None
        while held is not None:
            entry = held.entry
            if now <= entry.retain_until and match(entry.vary):
                return entry
            held = held.next
        return None

    # --- promotion ----------------------------------------------------------------------------------------------------

    def _promote(self, key: CacheKey, entry: Entry, order: _Order, began: int) -> None:
        """Put *entry*, which L2 had when *order* was at *began*, into L1: now, or in the next turn of the loop."""
        if self.config.sync_mode == SyncMode.SYNC:
            self._promote_now(key, entry, order, began)
            return
        if key not in self._promotions and len(self._promotions) >= self.config.async_buffer:
            self._dropped_promotions += 1
            return
        self._promotions[key] = (entry, order, began)
        loop = asyncio.get_running_loop()
        # Not a plain flag: the loop in which it was set may have ended before its next turn.
        if self._draining is not loop:
            self._draining = loop
            loop.call_soon(self._drain, _PROMOTIONS_PER_TURN)

    def _promote_now(self, key: CacheKey, entry: Entry, order: _Order, began: int) -> None:
        """Put *entry* into L1, unless the key was written or deleted since *began*. Never raises."""
        if order.tickets == began:
            self._show(key, entry)

    def _drain(self, most: int | None = None) -> None:
        """Do the queued promotions, *most* of them (None: all), and see to the rest in the next turn."""
        for key in list(self._promotions)[:most]:
            self._promote_now(key, *self._promotions.pop(key))
        if self._promotions and self._draining is not None:
            self._draining.call_soon(self._drain, most)
        else:
            self._draining = None

    # --- writing ------------------------------------------------------------------------------------------------------

    async def set(self, key: CacheKey, entry: Entry) -> bool:
        """
        Keep *entry* under *key* as the strategy says, done when this returns. Returns whether a level keeps it.

        WRITE_THROUGH: a failure of L2 is counted and not raised. CACHE_ASIDE: raises StoreError when L2 fails.
        """
        order = self._order(key)
        ticket = order.take_ticket()
        if not self._write_through:
            return await self._set_aside(key, entry, order, ticket)
        stored = await self._set_l2(key, entry, order, ticket)
        shown = order.may_show(ticket, entry.vary) and self._show(key, entry)
        self._sets += stored or shown
        return stored or shown

    def put(self, key: CacheKey, entry: Entry) -> Coroutine[Any, Any, bool]:
        """
        Keep *entry* under *key*: in L1 when this returns, in L2 when the coroutine that it returns is done.

        The coroutine gives whether a level keeps it. CACHE_ASIDE shows nothing in L1, and its coroutine may raise
        StoreError.
        """
        order = self._order(key)
        ticket = order.take_ticket()
        if not self._write_through:
            return self._set_aside(key, entry, order, ticket)
        shown = self._show(key, entry)
        order.visible[entry.vary] = ticket
        self._sets += shown
        return self._finish_put(key, entry, order, ticket, shown)

    async def _finish_put(self, key: CacheKey, entry: Entry, order: _Order, ticket: int, shown: bool) -> bool:
        stored = await self._set_l2(key, entry, order, ticket)
        self._sets += stored and not shown
        return stored or shown

    async def _set_l2(self, key: CacheKey, entry: Entry, order: _Order, ticket: int) -> bool:
        """Write *entry* to L2 in its turn, unless a delete came first. Counts a failure, and returns False for it."""
        async with order.turn:
            if order.deleted > ticket:
                return False
            try:
                return await self._l2.set(key, _capped(entry, self._l2_ttl, self._now()))
            except StoreError:
                self._l2_errors += 1
                return False

    async def _set_aside(self, key: CacheKey, entry: Entry, order: _Order, ticket: int) -> bool:
        async with order.turn:
            if order.deleted > ticket:
                return False
            try:
                stored = await self._l2.set(key, _capped(entry, self._l2_ttl, self._now()))
            except StoreError:
                self._l2_errors += 1
                raise
            finally:
                # Behind the write, or a reader between the two would promote what it replaces. The ticket stops one
                # that has read that already.
                order.take_ticket()
                self._drop(key)
        self._sets += stored
        return stored

    def drop_nowait(self, key: CacheKey) -> None:
        """Forget what L1 has under *key*; L2 keeps what it has."""
        try:
            self.l1.delete_nowait(key)
        except Exception:
            self._l1_errors += 1

    async def delete(self, key: CacheKey) -> bool:
        """
        Forget all variants under *key*, in L1 at once and then in L2. Returns whether there was one.

        Writes that began before it do not outlive it. Raises StoreError when L2 fails; L1 has forgotten all the same.
        """
        order = self._order(key)
        order.deleted = order.take_ticket()
        held = self._drop(key)
        async with order.turn:
            try:
                stored = await self._l2.delete(key)
            except StoreError:
                self._l2_errors += 1
                raise
        return held or stored

    # --- managing -----------------------------------------------------------------------------------------------------

    async def clear(self) -> int | None:
        """
        Forget everything, in L1 and then in L2; the same as `clear_all`.

        Returns how many keys L2 had, None if it does not know: L1 has few that L2 has not. Raises StoreError when L2
        fails; L1 is empty all the same.
        """
        return await self.clear_all()

    async def clear_all(self) -> int | None:
        """Forget everything; see `clear`."""
        orders = self._overtake_all()
        await self._l1.clear()
        return await self._clear_l2(orders)

    async def clear_l1(self) -> int | None:
        """Forget what is in memory, here. Returns how many keys there were."""
        for order in list(self._orders.values()):
            order.take_ticket()  # a read under way must not promote behind our back
        return await self._l1.clear()

    async def clear_l2(self) -> int | None:
        """Forget what is in L2; L1 keeps what it has. Returns how many keys there were. Raises StoreError."""
        return await self._clear_l2(self._overtake_all())

    def _overtake_all(self) -> list[_Order]:
        """Let no write or read that is under way outlive what comes now."""
        orders = list(self._orders.values())
        for order in orders:
            order.deleted = order.take_ticket()
        return orders

    async def _clear_l2(self, orders: list[_Order]) -> int | None:
        loop = asyncio.get_running_loop()
        for order in orders:
            if order.loop is loop:
                async with order.turn:  # whoever is writing has written when it is our turn
                    pass
        try:
            return await self._l2.clear()
        except StoreError:
            self._l2_errors += 1
            raise

    async def keys(self) -> AsyncIterator[CacheKey]:
        """
        Iterate over the keys of both levels: first L1's, then those of L2 that were not among them.

        L1's are remembered meanwhile, so the memory that it takes is bounded by L1; L2's come as L2 gives them, with
        the promises of its `keys`. Raises StoreError when L2 fails, after L1's keys.
        """
        seen: set[CacheKey] = set()
        async for key in self._l1.keys():
            seen.add(key)
            yield key
        async for key in self._l2.keys():
            if key not in seen:
                yield key

    def stats(self) -> StoreStats:
        """
        Return a snapshot of the whole, as `get` sees it; a hit by `get_nowait` is counted by L1.

        hits: answered by either level. misses: by neither. sets: entries kept by a level. evictions: of both.
        errors: of L2 as seen from here, and of L1. entries and bytes are None unless both levels know theirs; an entry
        that is in both counts twice. `l1.stats()` and `l2.stats()` tell more.
        """
        l1, l2 = self._l1.stats(), self._l2.stats()
        return StoreStats(
            hits=self._l1_hits + self._l2_hits,
            misses=self._misses,
            sets=self._sets,
            evictions=l1.evictions + l2.evictions,
            errors=self._l1_errors + self._l2_errors,
            entries=None if l1.entries is None or l2.entries is None else l1.entries + l2.entries,
            bytes=None if l1.bytes is None or l2.bytes is None else l1.bytes + l2.bytes,
        )

    @property
    def l1(self) -> MemoryLevel:
        """The store in memory."""
        return self._l1

    @property
    def l2(self) -> Store:
        """The store that is shared."""
        return self._l2

    @property
    def l1_hits(self) -> int:
        """How often `get` was answered by L1."""
        return self._l1_hits

    @property
    def l2_hits(self) -> int:
        """How often `get` was answered by L2."""
        return self._l2_hits

    @property
    def l1_errors(self) -> int:
        """How often L1 failed, and L2 did its work."""
        return self._l1_errors

    @property
    def l2_errors(self) -> int:
        """How often L2 failed, time-outs included."""
        return self._l2_errors

    @property
    def dropped_promotions(self) -> int:
        """How many L2 hits were not promoted because the queue was full."""
        return self._dropped_promotions

    async def aclose(self) -> None:
        """Do the promotions that are queued and close both levels. A second call does nothing."""
        self._drain()
        try:
            await self._l1.aclose()
        finally:
            await self._l2.aclose()

    def __repr__(self) -> str:
        return (
            f"<TwoLevelStore {self.config.strategy} [{len(self._orders)} keys under way, {len(self._promotions)} queued"
            f" | {self._l2_errors} l2 errors] {self._l1!r} {self._l2!r}>"
        )

    # --- L1 -----------------------------------------------------------------------------------------------------------

    def _order(self, key: CacheKey) -> _Order:
        # Of one event loop: a lock belongs to the loop that waits for it.
        loop = asyncio.get_running_loop()
        order = self._orders.get((id(loop), key))
        if order is None:
            self._orders[id(loop), key] = order = _Order(loop)
        return order

    def _show(self, key: CacheKey, entry: Entry) -> bool:
        """Put *entry* into L1, fresh there for l1_ttl from now at most. A failure of L1 is counted: it is not kept."""
        try:
            return self._l1.set_nowait(key, _capped(entry, self._l1_ttl, self._now()))
        except Exception:
            self._l1_errors += 1
            return False

    def _drop(self, key: CacheKey) -> bool:
        """Take *key* out of L1."""
        try:
            return self._l1.delete_nowait(key)
        except Exception:
            self._l1_errors += 1
            return False


def _supersedes(found: Entry, held: Entry) -> bool:
    """Return whether *found* in L2 is better than *held*, which is stale in L1: newer, or the same and fresh longer."""
    return (found.stored_at, found.fresh_until) > (held.stored_at, held.fresh_until)


def _capped(entry: Entry, ttl: float, now: float) -> Entry:
    """
    Return *entry*, fresh for *ttl* seconds from *now* at most.

    What follows freshness (stale windows, being kept for validation) keeps its length and begins earlier. Nothing is
    ever lengthened.
    """
    latest = now + ttl
    if entry.fresh_until <= latest:
        return entry
    retain_until = min(entry.retain_until, latest + (entry.retain_until - entry.fresh_until))
    return entry._replace(fresh_until=latest, retain_until=retain_until)
