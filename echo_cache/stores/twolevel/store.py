"""
Memory before Redis, as one store. The one rule: L1 never knows more than L2 was told or is yet to be told, and what
was deleted does not come back.

Writes and deletes take tickets of their key's `Order` when they begin. L2 sees them in that order: by the turns of the
order, or with WRITE_BACK by the queue. Whoever comes late at a level (a promotion of what was read before a delete, a
write that waited behind it) sees that it has been overtaken and does nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, Final, Protocol, TypeAlias, TypeVar

from echo_cache.errors import ConfigurationError, NotStorable, StoreError, StoreTimeout
from echo_cache.events import CacheFailed, Observer
from echo_cache.model import CacheKey, Entry
from echo_cache.options import CacheStrategy, SyncMode, TwoLevelConfig
from echo_cache.stores.base import Held, Match, Store, StoreStats
from echo_cache.stores.twolevel.life import capped, supersedes
from echo_cache.stores.twolevel.management import Copying, MemoryLevel
from echo_cache.stores.twolevel.order import Order, Orders
from echo_cache.stores.twolevel.promotion import Promotions
from echo_cache.stores.twolevel.reports import CacheStats, Counts, Progress, SyncReport, cache_stats
from echo_cache.stores.writeback import Operation, WriteBack

__all__ = ["MemoryLevel", "TwoLevelStore"]

_T = TypeVar("_T")
_Tasks: TypeAlias = set[asyncio.Task[Any]]


class _Clock(Protocol):
    def time(self) -> float: ...


class TwoLevelStore:
    """
    *l1*, a store in memory, before *l2*, a store that other processes share: any store's place can be taken by it.

    config: how the two work together; see TwoLevelConfig, and docs/two-levels.md for what each operation does where.
    clock: where the time comes from; the machine's wall clock if None.

    strategy WRITE_THROUGH: `set` writes L2, then L1, before it returns; a failure of L2 leaves the entry in L1 and is
    counted. CACHE_ASIDE: `set` writes L2 and drops the key from L1; the next read promotes it. WRITE_BACK: `set` writes
    L1 and queues for L2; what is queued answers reads until L2 has it.
    An L2 hit is promoted to L1 when *cache_warming* is on: before `get` returns (sync_mode SYNC) or in the next turn of
    the event loop (ASYNC), from a bounded queue; one that finds it full is not promoted this time.

    A failure of L1 is counted, and what it was asked for comes from or goes to L2.

    WRITE_BACK is for one running event loop at a time: in a second one, all but hits in memory raise StoreError.

    Raises ConfigurationError for stores that cannot work here.
    """

    remote: bool = True
    get_nowait: Callable[[CacheKey], Held | None]

    def __init__(
        self, l1: MemoryLevel, l2: Store, config: TwoLevelConfig | None = None, *, clock: _Clock | None = None
    ) -> None:
        config = TwoLevelConfig() if config is None else config
        for needed in ("get_nowait", "set_nowait", "add_nowait", "delete_nowait", "peek"):
            if not hasattr(l1, needed):
                raise ConfigurationError(f"l1 must be a store in memory, such as MemoryStore, not {type(l1).__name__}")
        if not hasattr(l2, "get"):
            raise ConfigurationError(f"l2 must be a store, such as RedisStore, not {type(l2).__name__}")
        self.config: Final = config
        self._l1: Final = l1
        self._l2: Final = l2
        self._now = time.time if clock is None else clock.time
        self._write_through = config.strategy == CacheStrategy.WRITE_THROUGH
        # A store that has a time-out says so; another one is waited for as long as it takes.
        self._patience: Final[float | None] = getattr(l2, "timeout", None)
        self._l1_ttl = config.l1_ttl
        self._l2_ttl = config.l2_ttl
        # L1's own, so that a hit in memory pays for no second level.
        self.get_nowait = l1.get_nowait
        bounds = {"most": config.async_buffer, "most_bytes": config.async_buffer_bytes}
        self._queue: Final = (
            WriteBack(l2, now=self._now, failed=self._tell, **bounds)
            if config.strategy == CacheStrategy.WRITE_BACK
            else None
        )
        self._promotions: Final = Promotions(self._show, **bounds)

        # Changed between awaits only, by the one event loop that uses the store.
        self._orders: Final = Orders()
        # What goes on when nobody waits for it any more: reads, and deletes.
        self._late: _Tasks = set()
        self._observers: list[Observer] = []
        self._deletes: _Tasks = set()
        self._l2_hits = 0
        self._misses = 0
        self._unanswered = 0
        self._sets = 0
        self._l1_errors = 0
        self._l2_errors = 0
        self._soft_timeouts = 0
        self._before = self.counts()

    def observe(self, observer: Observer) -> None:
        """Tell *observer* when L2's breaker opens or closes, and of writes that L2 failed at with nobody to hear it."""
        self._observers.append(observer)
        for level in (self._l1, self._l2):
            observe = getattr(level, "observe", None)
            if callable(observe):
                observe(observer)

    # --- reading ------------------------------------------------------------------------------------------------------

    async def get(self, key: CacheKey, match: Match) -> Entry | None:
        """
        Return the newest entry under *key* whose `vary` satisfies *match*, or None.

        A fresh entry in L1 is the answer. Otherwise what is queued for L2, or L2 is asked, and L1's stale entry is the
        answer if there is none that is newer or fresher, or L2 cannot be asked, or not within `l2_soft_timeout`.
        Raises StoreError when L2 cannot be asked and L1 has nothing: that is not a miss.
        """
        now = self._now()
        held = self._find_in_l1(key, match, now)
        if held is not None and now < held.fresh_until:
            return held
        order = self._orders.of(key)
        began = order.tickets
        known, found = self._find_in_queue(key, match)
        if held is not None:
            if not known:
                found = await self._better_in_time(key, match, held, order, began)
            elif found is not None and not supersedes(found, held):
                found = None
            if found is None:
                return held
            self._l1.unused()
        elif not known:
            found = await self._find_in_l2(key, match)
        if found is None:
            self._misses += 1
            return None
        self._l2_hits += 1
        self._promote(key, found, order, began)
        return found

    async def get_below(self, key: CacheKey, match: Match) -> Entry | None:
        """
        Return what is queued for L2 or what L2 has, as `get` does where L1 has nothing: for whom L1's is not enough.

        It is promoted when it is newer than L1's, or the same and fresh for longer. Raises StoreError.
        """
        order = self._orders.of(key)
        began = order.tickets
        known, found = self._find_in_queue(key, match)
        if not known:
            found = await self._find_in_l2(key, match)
        if found is None:
            self._misses += 1
            return None
        self._l2_hits += 1
        held = next((entry for entry in self._l1.peek(key) if entry.vary == found.vary), None)
        if held is None or supersedes(found, held):
            self._promote(key, found, order, began)
        return found

    def unused(self) -> None:
        """Take back the hit that get_nowait counted: what it gave could not answer."""
        self._l1.unused()

    def _find_in_l1(self, key: CacheKey, match: Match, now: float) -> Entry | None:
        """Return what L1 has, and leave it counted as a hit of L1; nothing that cannot answer is."""
        try:
            first = held = self.get_nowait(key)
        except Exception:
            self._l1_errors += 1
            return None
        while held is not None:
            entry = held.entry
            if now <= entry.retain_until and match(entry.vary):
                return entry
            held = held.next
        if first is not None:
            self._l1.unused()
        return None

    def _find_in_queue(self, key: CacheKey, match: Match) -> tuple[bool, Entry | None]:
        if self._queue is None:
            return False, None
        self._queue.own()
        return self._queue.find(key, match)

    async def _find_in_l2(self, key: CacheKey, match: Match) -> Entry | None:
        try:
            return await self._l2.get(key, match)
        except StoreError:
            self._l2_errors += 1
            self._unanswered += 1
            raise

    async def _better_in_time(self, key: CacheKey, match: Match, held: Entry, order: Order, began: int) -> Entry | None:
        """
        Return what L2 has, if it is better than the stale *held* and comes within `l2_soft_timeout`.

        What comes later is promoted if it is better, and answers the next request.
        """
        task = self._own(self._better(key, match, held, order, began), self._late)
        done, _ = await asyncio.wait([task], timeout=self.config.l2_soft_timeout)
        if done:
            return task.result()
        self._soft_timeouts += 1
        task.add_done_callback(lambda late: self._promote_late(key, late, order, began))
        return None

    async def _better(self, key: CacheKey, match: Match, held: Entry, order: Order, began: int) -> Entry | None:
        try:
            found = await self._l2.get(key, match)
        except Exception:
            self._l2_errors += 1
            return None
        return found if found is not None and supersedes(found, held) else None

    def _promote_late(self, key: CacheKey, task: asyncio.Task[Entry | None], order: Order, began: int) -> None:
        found = None if task.cancelled() else task.result()
        if found is not None:
            self._promote(key, found, order, began)

    def _promote(self, key: CacheKey, entry: Entry, order: Order, began: int) -> None:
        """Put *entry*, which L2 had when *order* was at *began*, into L1: now, or in the next turn of the loop."""
        if not self.config.cache_warming:
            return
        if self.config.sync_mode == SyncMode.SYNC:
            self._promotions.now(key, entry, order, began)
        else:
            self._promotions.soon(key, entry, order, began)

    # --- writing ------------------------------------------------------------------------------------------------------

    async def set(self, key: CacheKey, entry: Entry) -> bool:
        """
        Keep *entry* under *key* as the strategy says, done when this returns. Returns whether a level keeps it.

        WRITE_THROUGH: a failure of L2 is counted and not raised. CACHE_ASIDE: raises StoreError when L2 fails.
        WRITE_BACK: L2 is written later, or where the queue has no room, as WRITE_THROUGH does.
        """
        if self._queue is not None:
            rest = self._put_back(self._queue, key, entry)
            return True if rest is None else await rest
        order = self._orders.of(key)
        ticket = order.take_ticket()
        if not self._write_through:
            return await self._set_aside(key, entry, order, ticket)
        stored = await self._set_l2(key, entry, order, ticket)
        shown = order.may_show(ticket, entry.vary) and self._show(key, entry)
        self._sets += stored or shown
        return stored or shown

    def put(self, key: CacheKey, entry: Entry) -> Coroutine[Any, Any, bool] | None:
        """
        Keep *entry* under *key*: in L1 when this returns, in L2 when the coroutine that it returns is done.

        The coroutine gives whether a level keeps it. CACHE_ASIDE shows nothing in L1, and its coroutine may raise
        StoreError. WRITE_BACK returns None when the rest is queued.
        """
        if self._queue is not None:
            return self._put_back(self._queue, key, entry)
        order = self._orders.of(key)
        ticket = order.take_ticket()
        if not self._write_through:
            return self._set_aside(key, entry, order, ticket)
        shown = self._show(key, entry)
        order.visible[entry.vary] = ticket
        self._sets += shown
        return self._finish_put(key, entry, order, ticket, shown)

    async def _finish_put(self, key: CacheKey, entry: Entry, order: Order, ticket: int, shown: bool) -> bool:
        stored = await self._set_l2(key, entry, order, ticket)
        self._sets += stored and not shown
        return stored or shown

    def _put_back(self, queue: WriteBack, key: CacheKey, entry: Entry) -> Coroutine[Any, Any, bool] | None:
        """Show *entry* in L1 and queue it. Returns None, or the direct write when the queue has no room."""
        queue.own()
        order = self._orders.of(key)
        order.visible[entry.vary] = order.take_ticket()
        shown = self._show(key, entry)
        direct = queue.put(key, capped(entry, self._l2_ttl, self._now()))
        self._sets += shown or direct is None
        return None if direct is None else self._finish_direct(queue, direct, shown)

    async def _finish_direct(self, queue: WriteBack, direct: Operation, shown: bool) -> bool:
        stored = await queue.written(direct)
        self._sets += stored and not shown
        return stored or shown

    async def _set_l2(self, key: CacheKey, entry: Entry, order: Order, ticket: int) -> bool:
        """Write *entry* to L2 in its turn, unless a delete came first. Counts a failure, and returns False for it."""
        async with order.turn:
            if order.deleted > ticket:
                return False
            try:
                return await self._l2.set(key, capped(entry, self._l2_ttl, self._now()))
            except StoreError as error:
                self._l2_errors += 1
                self._tell(error)
                return False

    def _tell(self, error: Exception) -> None:
        for observer in self._observers:
            observer(CacheFailed("set", error))

    async def _set_aside(self, key: CacheKey, entry: Entry, order: Order, ticket: int) -> bool:
        async with order.turn:
            if order.deleted > ticket:
                return False
            try:
                stored = await self._l2.set(key, capped(entry, self._l2_ttl, self._now()))
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
        self._drop(key)

    async def delete(self, key: CacheKey) -> bool:
        """
        Forget all variants under *key*, in L1 at once and then in L2. Returns whether there was one.

        Writes that began before it do not outlive it. Raises StoreError when L2 fails, or does not answer within its
        time-out to this and to what was under way for the key; L1 has forgotten all the same, and WRITE_BACK goes on
        trying.
        """
        if self._queue is not None:
            self._queue.own()
        order = self._orders.of(key)
        order.deleted = order.take_ticket()
        held = self._drop(key)
        try:
            async with asyncio.timeout(self._patience):
                if self._queue is not None:
                    return await self._queue.delete(key) or held
                await order.turn.acquire()
                # It goes on, and keeps its turn, when nobody waits for it any more.
                outcome = await asyncio.shield(self._own(self._delete_in_l2(key, order), self._deletes))
        except TimeoutError:
            raise StoreTimeout(f"L2 did not answer within {self._patience} s; what it was told goes on") from None
        if isinstance(outcome, Exception):
            raise outcome
        return outcome or held

    async def _delete_in_l2(self, key: CacheKey, order: Order) -> bool | Exception:
        """Return what L2 gives, or its error: nobody may be there to hear it. The turn is ours, and ends here."""
        try:
            return await self._l2.delete(key)
        except Exception as error:
            self._l2_errors += 1
            return error
        finally:
            order.turn.release()

    def _own(self, work: Coroutine[Any, Any, _T], owned: _Tasks) -> asyncio.Task[_T]:
        task = asyncio.get_running_loop().create_task(work)
        owned.add(task)
        task.add_done_callback(owned.discard)
        return task

    async def flush(self) -> None:
        """Return when all that WRITE_BACK has queued now is in L2. Raises StoreError when L2 fails; it stays queued."""
        if self._queue is not None:
            await self._queue.flush()

    # --- managing -----------------------------------------------------------------------------------------------------

    async def clear(self) -> int | None:
        """
        Forget everything, in L1 and then in L2; the same as `clear_all`.

        Returns how many keys L2 had, None if it does not know: L1 has few that L2 has not. Raises StoreError when a
        level fails; the other is empty all the same, and WRITE_BACK goes on trying to clear L2.
        """
        return await self.clear_all()

    async def clear_all(self) -> int | None:
        """Forget everything; see `clear`."""
        if self._queue is not None:
            self._queue.own()
        orders = self._orders.overtake_all()
        failure: Exception | None = None
        try:
            await self._l1.clear()
        except Exception as error:
            self._l1_errors += 1
            failure = error
        cleared = await self._clear_l2(orders)
        if failure is not None:
            raise StoreError(f"L2 is clear, and L1 could not be cleared: {failure!r}") from failure
        return cleared

    async def clear_l1(self) -> int | None:
        """Forget what is in memory, here. Returns how many keys there were."""
        self._orders.overtake_reads()
        return await self._l1.clear()

    async def clear_l2(self) -> int | None:
        """
        Forget what is in L2 and on its way there; L1 keeps what it has. Returns how many keys L2 had. StoreError.
        """
        return await self._clear_l2(self._orders.overtake_all())

    async def _clear_l2(self, orders: list[Order]) -> int | None:
        if self._queue is not None:
            return await self._queue.clear()
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
        Iterate over the keys of both levels: first L1's and what is queued for L2, then those that only L2 has.

        The first are remembered meanwhile, so the memory that it takes is bounded by L1; L2's come as L2 gives them,
        with the promises of its `keys`. Raises StoreError when L2 fails, after L1's keys.
        """
        seen: set[CacheKey] = set()
        async for key in self._l1.keys():
            seen.add(key)
            yield key
        for key in [] if self._queue is None else self._queue.keys():
            if key not in seen:
                seen.add(key)
                yield key
        async for key in self._l2_keys():
            if key not in seen:
                yield key

    async def _l2_keys(self) -> AsyncIterator[CacheKey]:
        try:
            async for key in self._l2.keys():
                if self._queue is None or not self._queue.hides(key):
                    yield key
        except StoreError:
            self._l2_errors += 1
            raise

    async def sync_l1_to_l2(self, progress: Progress | None = None) -> SyncReport:
        """
        Copy to L2 what L1 has and L2 has not, or has older; each entry keeps its life, l2_ttl at most.

        progress: a function or coroutine function that gets a SyncProgress after each page; what it raises ends this.
        What WRITE_BACK has queued is written first. Raises StoreError when that fails; the report has later failures.
        """
        await self.flush()
        return await self._copying().to_l2(progress)

    async def sync_l2_to_l1(self, progress: Progress | None = None) -> SyncReport:
        """
        Copy to L1 what L2 has and L1 has not, or has older; each entry keeps its life, l1_ttl at most.

        It ends when L1 is full: nothing that is held is given up for it. progress: as for `sync_l1_to_l2`.
        Raises StoreError when the keys of L2 cannot be listed.
        """
        return await self._copying().to_l1(self._l2_keys(), progress)

    def _copying(self) -> Copying:
        return Copying(self._l1, self._l2, self._orders, self._queue, self.config, self._now, self._failed)

    def _failed(self, l1: int, l2: int) -> None:
        """Count what failed at each level."""
        self._l1_errors += l1
        self._l2_errors += l2

    # --- statistics ---------------------------------------------------------------------------------------------------

    def stats(self) -> StoreStats:
        """
        Return a snapshot of the whole, since it was made; `get_stats` tells more.

        hits: answered by either level, those of `get_nowait` included. misses: by neither. sets: entries kept by a
        level. evictions: of both. errors: of L2 as seen from here, and of L1. entries and bytes are None unless both
        levels know theirs; an entry that is in both counts twice.
        """
        counts = self.counts()
        l1, l2 = self._l1.stats(), self._l2.stats()
        return StoreStats(
            hits=counts.l1_hits + counts.l2_hits,
            misses=counts.misses,
            sets=self._sets,
            evictions=l1.evictions + l2.evictions,
            errors=counts.l1_errors + counts.l2_errors,
            entries=None if l1.entries is None or l2.entries is None else l1.entries + l2.entries,
            bytes=None if l1.bytes is None or l2.bytes is None else l1.bytes + l2.bytes,
        )

    def get_stats(self) -> CacheStats:
        """Return a snapshot of the counters, since the last `reset_stats`, and the sizes that are known at no cost."""
        return self._snapshot(self._l2.stats().entries)

    async def get_full_stats(self) -> CacheStats:
        """As `get_stats`, with `l2_size` counted by L2 now; None when L2 cannot be asked."""
        size = self._l2.stats().entries
        count = getattr(self._l2, "count", None)
        if count is not None:
            try:
                size = await count()
            except StoreError:
                self._l2_errors += 1
                size = None
        return self._snapshot(size)

    def reset_stats(self) -> None:
        """Begin to count anew. The levels' own `stats` go on, and sizes stay what they are."""
        self._before = self.counts()

    def counts(self) -> Counts:
        """Return all that was counted since the store was made, which `reset_stats` leaves alone."""
        l1 = self._l1.stats()
        queue = self._queue
        return Counts(
            l1_hits=l1.hits,
            l2_hits=self._l2_hits,
            misses=self._misses,
            unanswered=self._unanswered,
            l1_evictions=l1.evictions,
            l1_errors=self._l1_errors + l1.errors,
            l2_errors=self._l2_errors + (0 if queue is None else queue.failures),
            l2_timeouts=getattr(self._l2, "timeouts", 0),
            l2_soft_timeouts=self._soft_timeouts,
            dropped=0 if queue is None else queue.dropped,
            dropped_promotions=self._promotions.dropped,
        )

    def _snapshot(self, l2_size: int | None) -> CacheStats:
        queue = self._queue
        return cache_stats(
            self.counts().since(self._before),
            self._l1.stats(),
            l2_size,
            getattr(self._l2, "breaker_state", None),
            (0, 0) if queue is None else (len(queue), queue.bytes),
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
    def server(self) -> Any:
        """The server that L2 shares with other workers, as RedisStore has it; None if it has none."""
        return getattr(self._l2, "server", None)

    def __repr__(self) -> str:
        to_l2 = 0 if self._queue is None else len(self._queue)
        return (
            f"<TwoLevelStore {self.config.strategy} [{len(self._orders)} keys under way, {len(self._promotions)} queued"
            f" for l1, {to_l2} for l2 | {self.counts().l2_errors} l2 errors] {self._l1!r} {self._l2!r}>"
        )

    # --- an end -------------------------------------------------------------------------------------------------------

    async def aclose(self) -> None:
        """
        Write what WRITE_BACK has queued, within `drain_timeout`, and close both levels. A second call does nothing.

        What could not be written is counted in `dropped` and logged once. A write after this goes to L2 directly.
        """
        try:
            if self._queue is not None:
                await self._queue.aclose(self.config.drain_timeout)
            await self._end_what_is_late()
        finally:
            self._promotions.drain()
            try:
                await self._l1.aclose()
            finally:
                await self._l2.aclose()

    async def _end_what_is_late(self) -> None:
        """Cancel reads at once, and deletes when they have had their time."""
        loop = asyncio.get_running_loop()
        ending = {task for task in self._late if task.get_loop() is loop}
        deletes = {task for task in self._deletes if task.get_loop() is loop}
        if deletes:
            patience = self.config.drain_timeout if self._patience is None else self._patience
            _, slow = await asyncio.wait(deletes, timeout=patience)
            ending |= slow
        self._late.clear()
        self._deletes.clear()
        for task in ending:
            task.cancel()
        if ending:
            await asyncio.wait(ending)

    # --- L1 -----------------------------------------------------------------------------------------------------------

    def _show(self, key: CacheKey, entry: Entry) -> bool:
        """Put *entry* into L1, fresh there for l1_ttl from now at most. A failure of L1 is counted: it is not kept."""
        try:
            return self._l1.set_nowait(key, capped(entry, self._l1_ttl, self._now(), in_memory=True))
        except NotStorable:
            return False  # L1 has counted it
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
