"""
What is to be written to a store behind memory, and has not been yet. The one rule: nobody in this process sees the
store as it was before what is queued here.

    clear?  then for each key:  delete?  then  one entry for each `vary`, oldest first

That is all that can be queued: a clear takes the place of everything, a delete of everything under its key, an entry
of the one with its `vary`, and an entry with an empty `vary` of all entries of its key. So what is queued for a key is
what the store is to end up with, however often it has changed.

Each operation flies in a task of its own. Of one key there is one in the air at a time, and while a clear waits or
flies, nothing else does. An operation stays in the queue until it has landed: until then, `find` answers for the
store. A worker writes what is queued in batches; callers who wait for an operation (deletes, clears, and writes that
found no room) start it themselves, in its order.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeAlias

from echo_cache.errors import NotStorable, StoreError
from echo_cache.model import CacheKey, Entry, Vary
from echo_cache.stores.base import Match, Store

__all__ = ["Operation", "WriteBack", "entry_bytes"]

logger = logging.getLogger("echo_cache")

# Operations in the air at a time: one pipeline of a store that sends what is begun in one turn of the loop together.
_BATCH: Final = 64

# The first pause after a failure, doubled up to the second: L2 is written again at most a second after it is back.
_FIRST_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 1.0

# What is counted for an entry beside its bytes: the objects that hold it, and its place in the queue.
_FIXED_BYTES: Final = 1024
_HEADER_BYTES: Final = 144

Outcome: TypeAlias = bool | int | Exception | None
"""What a store returned or raised; raised where it is waited for, so that nobody has to wait."""


def entry_bytes(key: CacheKey, entry: Entry) -> int:
    """Return about what *entry* under *key* takes in memory, in bytes."""
    headers = entry.response.headers
    size = _FIXED_BYTES + len(key[3]) + len(key[4]) + len(entry.response.body)
    return size + sum([_HEADER_BYTES + len(name) + len(value) for name, value in headers])


class Operation:
    """
    One write, delete (*entry* is None) or clear (*entry* and *key* are None).

    size: what it counts for in the queue's bytes. kept: whether it stays queued when L2 fails; one that is not kept is
    waited for by whoever brought it, and has no place in the queue's bounds. promised: whether it was acknowledged, so
    that losing it is to be counted. outcome: what those who waited were told last.
    """

    __slots__ = ("entry", "in_the_air", "kept", "key", "outcome", "promised", "size", "told", "waiting")

    def __init__(self, key: CacheKey | None, entry: Entry | None, size: int, *, kept: bool) -> None:
        self.key = key
        self.entry = entry
        self.size = size
        self.kept = kept
        self.promised = True
        self.in_the_air = False
        self.told = False
        self.outcome: Outcome = None
        self.waiting: list[asyncio.Future[Outcome]] = []

    def tell(self, outcome: Outcome) -> None:
        """Tell those who wait for it, and those who will."""
        self.told, self.outcome = True, outcome
        for waiter in self.waiting:
            if not waiter.done():
                waiter.set_result(outcome)
        self.waiting.clear()

    def replaced_by(self, newer: Operation) -> None:
        """Let those who wait for it wait for *newer*, or no longer: an entry that is replaced needs no writing."""
        if self.in_the_air:
            return  # they hear of it when it lands
        if self.entry is None:
            newer.waiting += self.waiting
            self.waiting.clear()
        else:
            self.tell(newer.entry is not None)


class _Pending:
    """What is queued for one key: a delete, and after it entries, oldest first."""

    __slots__ = ("delete", "entries")

    def __init__(self) -> None:
        self.delete: Operation | None = None
        self.entries: dict[Vary, Operation] = {}

    def __iter__(self) -> Iterator[Operation]:
        if self.delete is not None:
            yield self.delete
        yield from self.entries.values()

    def first(self) -> Operation | None:
        return next(iter(self), None)

    def replaced(self, vary: Vary | None) -> list[Operation]:
        """Return what a delete (None), or an entry with *vary*, takes the place of."""
        if vary is None:
            return list(self)
        if not vary:
            return list(self.entries.values())
        return [self.entries[vary]] if vary in self.entries else []

    def put(self, operation: Operation) -> None:
        """Queue *operation* at the end."""
        if operation.entry is None:
            self.delete = operation
        else:
            self.entries[operation.entry.vary] = operation

    def take(self, operation: Operation) -> bool:
        """Take *operation* out. Returns whether it was there still."""
        if operation.entry is None:
            if self.delete is not operation:
                return False
            self.delete = None
            return True
        vary = operation.entry.vary
        if self.entries.get(vary) is not operation:
            return False
        del self.entries[vary]
        return True

    def postpone(self, operation: Operation) -> None:
        """Let the variants behind *operation* go first, where the order does not change what is left in the end."""
        if operation.entry is not None and operation.entry.vary and self.take(operation):
            self.put(operation)

    def hides_the_rest(self) -> bool:
        """Return whether nothing that the store has under the key now will be left."""
        return self.delete is not None or () in self.entries


class WriteBack:
    """
    The queue of writes to *l2*, of *most* operations and *most_bytes* bytes.

    now: the wall clock, to give up entries past their `retain_until`. failed: told of each failure of *l2*.

    It belongs to one running event loop at a time, and to one process: a loop takes over what was left by one that has
    ended, and a forked child forgets what its parent has queued, since the parent writes it.
    Every method raises StoreError when another running loop has it.
    """

    def __init__(
        self,
        l2: Store,
        *,
        most: int,
        most_bytes: int,
        now: Callable[[], float],
        failed: Callable[[Exception], None] = lambda error: None,
    ) -> None:
        self._l2: Final = l2
        self._tell_failure: Final = failed
        self._most: Final = most
        self._most_bytes: Final = most_bytes
        self._now: Final = now

        # Changed between awaits only, by the one event loop that has the queue.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid = os.getpid()
        self._clear: Operation | None = None
        self._keys: dict[CacheKey, _Pending] = {}
        self._length = 0
        self._bytes = 0
        self._in_the_air: dict[CacheKey | None, asyncio.Task[bool]] = {}  # a clear's key is None
        self._worker: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._pause = _FIRST_PAUSE
        self._failure: Exception | None = None
        self._closed = False
        self.dropped = 0
        self.failures = 0

    # --- what is queued -----------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Return how many operations are queued."""
        return self._length + (self._clear is not None)

    @property
    def bytes(self) -> int:
        """What the queue holds, in bytes."""
        return self._bytes

    def __repr__(self) -> str:
        return f"<WriteBack {len(self)}/{self._most} operations {self._bytes:,} bytes, {self.dropped} dropped>"

    def has(self, key: CacheKey) -> bool:
        """Return whether something is queued for *key*, or for all keys."""
        return key in self._keys or self._clear is not None

    def find(self, key: CacheKey, match: Match) -> tuple[bool, Entry | None]:
        """
        Return whether the queue knows what *key* selects, and that: an entry, or None when it is to be forgotten.

        What it knows is not to be looked for in the store: there is what was before.
        """
        pending = self._keys.get(key)
        if pending is not None:
            for operation in reversed(pending.entries.values()):
                entry = operation.entry
                if entry is not None and match(entry.vary):
                    return True, entry if self._now() <= entry.retain_until else None
            if pending.hides_the_rest():
                return True, None
        return self._clear is not None, None

    def hides(self, key: CacheKey) -> bool:
        """Return whether all that the store has under *key* is to be forgotten."""
        pending = self._keys.get(key)
        return self._clear is not None or (pending is not None and pending.hides_the_rest())

    def keys(self) -> list[CacheKey]:
        """Return the keys for which entries are queued that are not past `retain_until`."""
        now = self._now()
        return [
            key
            for key, pending in self._keys.items()
            if any(each.entry is not None and now <= each.entry.retain_until for each in pending)
        ]

    # --- queueing -----------------------------------------------------------------------------------------------------

    def put(self, key: CacheKey, entry: Entry) -> Operation | None:
        """Queue *entry*. Returns None, or where there is no room the direct write, in its order: see `written`."""
        self.own()
        operation = self._queue(key, entry, entry_bytes(key, entry))
        self._wake()
        return None if operation.kept else operation

    async def written(self, operation: Operation) -> bool:
        """Wait for a direct write. Returns whether L2 has the entry; a failure is counted in `dropped`."""
        outcome = await self._landed(operation)
        return False if isinstance(outcome, Exception) else bool(outcome)

    async def write(self, key: CacheKey, entry: Entry) -> bool:
        """Write *entry* in its order, now. Returns whether L2 has it. Raises StoreError; nothing is kept then."""
        self.own()
        operation = self._queue(key, entry, 0, kept=False)
        operation.promised = False
        outcome = await self._landed(operation)
        if isinstance(outcome, Exception):
            raise _as_store_error(outcome)
        return bool(outcome)

    async def delete(self, key: CacheKey) -> bool:
        """
        Forget *key* in L2, in its order. Returns whether there was something.

        Raises StoreError when L2 fails. The delete stays queued all the same, unless there is no room.
        """
        self.own()
        outcome = await self._landed(self._queue(key, None, _FIXED_BYTES + len(key[3]) + len(key[4])))
        if isinstance(outcome, Exception):
            raise _as_store_error(outcome)
        return outcome is True

    async def clear(self) -> int | None:
        """
        Forget everything in L2, in its order. Returns how many keys there were.

        None if L2 does not know, and when there are queued ones: L2 may have them or not.
        Raises StoreError when L2 fails. The clear stays queued all the same.
        """
        self.own()
        queued = bool(self.keys())
        operation = Operation(None, None, 0, kept=not self._closed)
        for older in self._everything():
            older.replaced_by(operation)
        self._clear, self._keys, self._length, self._bytes = operation, {}, 0, 0
        outcome = await self._landed(operation)
        if isinstance(outcome, Exception):
            raise _as_store_error(outcome)
        return None if queued else outcome

    def _queue(self, key: CacheKey, entry: Entry | None, size: int, *, kept: bool = True) -> Operation:
        """Queue the operation behind what is queued for *key*, in place of what it replaces."""
        pending = self._keys.get(key) or _Pending()
        replaced = pending.replaced(None if entry is None else entry.vary)
        if kept:
            given_back = [operation for operation in replaced if operation.kept]
            length = self._length - len(given_back) + 1
            total = self._bytes - sum([operation.size for operation in given_back]) + size
            kept = not self._closed and length <= self._most and total <= self._most_bytes
        operation = Operation(key, entry, size, kept=kept)
        for older in replaced:
            self._take(pending, older)
            older.replaced_by(operation)
        pending.put(operation)
        self._keys[key] = pending
        if kept:
            self._length += 1
            self._bytes += size
        return operation

    def _take(self, pending: _Pending, operation: Operation) -> bool:
        """Take *operation* out of *pending*. Returns whether it was there still."""
        if not pending.take(operation):
            return False
        if operation.kept:
            self._length -= 1
            self._bytes -= operation.size
        return True

    def _everything(self) -> list[Operation]:
        operations = [operation for pending in self._keys.values() for operation in pending]
        return operations if self._clear is None else [self._clear, *operations]

    # --- in the air ---------------------------------------------------------------------------------------------------

    async def _landed(self, operation: Operation) -> Outcome:
        """Start what goes before *operation*, and it, and return its outcome. A caller that leaves stops nothing."""
        if operation.told:
            return operation.outcome
        waiter: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        operation.waiting.append(waiter)
        while not waiter.done():
            flight = self._flight(operation.key)
            if flight is None:
                return StoreError("the event loop that was writing has ended")
            either: list[asyncio.Future[Any]] = [flight, waiter]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        return waiter.result()

    def _flight(self, key: CacheKey | None) -> asyncio.Task[bool] | None:
        """Return the flight of what is first in the queue for *key*, started if need be; None if there is nothing."""
        if self._clear is not None:
            key = None
        flight = self._in_the_air.get(key)
        if flight is not None:
            return flight
        pending = None if key is None else self._keys.get(key)
        operation = self._clear if pending is None else pending.first()
        if operation is None:
            return None
        operation.in_the_air = True
        flight = self._in_the_air[key] = asyncio.get_running_loop().create_task(self._fly(key, operation))
        return flight

    async def _fly(self, key: CacheKey | None, operation: Operation) -> bool:
        """Do *operation* in L2. Returns whether it was done, or can never be."""
        outcome: Outcome
        try:
            outcome = await self._send(key, operation)
        except Exception as error:
            outcome = error
        finally:
            mine = self._in_the_air.get(key) is asyncio.current_task()
            if mine:
                del self._in_the_air[key]
                operation.in_the_air = False
        if not mine:
            return True  # another loop has taken the queue over, and writes it again
        if isinstance(outcome, Exception):
            self.failures += 1
            self._tell_failure(outcome)
        if isinstance(outcome, Exception) and not isinstance(outcome, NotStorable):
            self._failure = outcome
            self._failed(key, operation, outcome)
            return False
        self._pause = _FIRST_PAUSE
        self._done(key, operation, outcome)
        if len(self):
            self._wake()  # those who would have begun what is behind it may have left
        return True

    async def _send(self, key: CacheKey | None, operation: Operation) -> Outcome:
        if key is None:
            if others := [flight for other, flight in self._in_the_air.items() if other is not None]:
                await asyncio.wait(others)
            return await self._l2.clear()
        entry = operation.entry
        if entry is None:
            return await self._l2.delete(key)
        if self._now() > entry.retain_until:
            # What it was to replace is out of date, and must not outlive it.
            await self._l2.delete(key)
            return False
        return await self._l2.set(key, entry)

    def _done(self, key: CacheKey | None, operation: Operation, outcome: Outcome) -> None:
        lost = isinstance(outcome, NotStorable) or (operation.entry is not None and outcome is False)
        if self._remove(key, operation) and lost:  # False: too large for L2, or too late
            self.dropped += operation.promised
        operation.tell(outcome)

    def _failed(self, key: CacheKey | None, operation: Operation, error: Exception) -> None:
        """Tell who waits that L2 has failed, and let what is not kept go."""
        waiting = [operation]
        if key is None:
            waiting += [behind for behind in self._everything() if behind.key is not None]
        elif (pending := self._keys.get(key)) is not None:
            # An older operation has failed: that says nothing of a delete that came meanwhile.
            waiting += [behind for behind in pending if behind.entry is not None]
            pending.postpone(operation)
            self._keys[key] = self._keys.pop(key)
        for each in waiting:
            if not each.kept and self._remove(each.key, each):
                self.dropped += each.promised
            each.tell(error)
        self._come_back()

    def _remove(self, key: CacheKey | None, operation: Operation) -> bool:
        """Take *operation* out of the queue. Returns whether it was there: it may have been replaced meanwhile."""
        if key is None:
            if self._clear is not operation:
                return False
            self._clear = None
            return True
        pending = self._keys.get(key)
        if pending is None or not self._take(pending, operation):
            return False
        if pending.first() is None:
            del self._keys[key]
        return True

    # --- the worker ---------------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        """See that what is queued will be written: now, or when the pause after a failure is over."""
        if self._timer is None:
            self._start()

    def _start(self) -> asyncio.Task[None]:
        """Return the worker, at work."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._worker is None:
            self._worker = asyncio.get_running_loop().create_task(self._work())
        return self._worker

    async def _work(self) -> None:
        """Write all that is queued, and come back after a pause for what could not be."""
        failed: set[CacheKey | None] = set()
        try:
            while flights := self._batch(failed):
                await asyncio.wait(flights.values())
                fell = {key for key, flight in flights.items() if flight.cancelled() or not flight.result()}
                failed |= fell
                if len(fell) == len(flights):
                    break  # L2 is in trouble, and not with one of them
        finally:
            mine = self._worker is asyncio.current_task()
            if mine:
                self._worker = None
        if mine:
            self._come_back()

    def _come_back(self) -> None:
        """Let the worker begin after a pause, if something is left for it. A timer, which ends with its loop."""
        if len(self) and self._worker is None and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._pause, self._start)
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)

    def _batch(self, but: set[CacheKey | None]) -> dict[CacheKey | None, asyncio.Task[bool]]:
        """Return the flights of the first keys in the queue *but* those, started."""
        keys: list[CacheKey | None] = [None]
        if self._clear is None:
            keys = []
            for key in self._keys:
                if key not in but:
                    keys.append(key)
                    if len(keys) == _BATCH:
                        break
        elif None in but:
            return {}
        return {key: flight for key in keys if (flight := self._flight(key)) is not None}

    # --- an end -------------------------------------------------------------------------------------------------------

    async def flush(self) -> None:
        """Return when all that is queued now has been written, or replaced. Raises StoreError when L2 fails."""
        self.own()
        queued = self._everything()
        while left := set(self._everything()).intersection(queued):
            failures = self.failures
            await asyncio.wait([self._start()])
            if self.failures > failures and left.intersection(self._everything()):
                raise StoreError(f"{len(self)} operations are still queued: {self._failure}") from self._failure

    async def aclose(self, timeout: float) -> None:
        """
        Write what is queued, for *timeout* seconds at most, and queue nothing from now on.

        What could not be written is counted in `dropped` and logged. A second call does nothing.
        """
        self.own()
        self._closed = True
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        try:
            while len(self) and (left := deadline - loop.time()) > 0:
                await asyncio.wait([self._start()], timeout=left)
                if self._timer is not None:
                    await asyncio.sleep(min(self._pause / 2, max(deadline - loop.time(), 0.0)))
        finally:
            self._give_up(timeout)
            await self._ground()

    def _give_up(self, timeout: float) -> None:
        """Forget what is queued still; count it, and say so once."""
        lost = self._everything()
        self._clear, self._keys, self._length, self._bytes = None, {}, 0, 0
        for operation in lost:
            operation.tell(StoreError("the store was closed before L2 could be written"))
        if lost:
            self.dropped += len(lost)
            logger.warning(
                "%d writes to the second level were lost: it could not be written in %s s", len(lost), timeout
            )

    async def _ground(self) -> None:
        """Let no task and no timer of the queue live on."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        tasks: list[asyncio.Task[Any]] = [*self._in_the_air.values()]
        if self._worker is not None:
            tasks.append(self._worker)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    # --- whose it is --------------------------------------------------------------------------------------------------

    def own(self) -> None:
        """Let the running event loop have the queue. Raises StoreError when another running loop has it."""
        loop = asyncio.get_running_loop()
        pid = os.getpid()
        before = self._loop
        if loop is before and pid == self._pid:
            return
        if pid != self._pid:
            self._clear, self._keys, self._length, self._bytes = None, {}, 0, 0
        elif before is not None and before.is_running():
            raise StoreError(
                "this TwoLevelStore writes back in another event loop, which is running; "
                "strategy 'write_back' needs one store for each loop"
            )
        elif self._timer is not None:
            self._timer.cancel()
        self._loop, self._pid = loop, pid
        self._closed = False
        # They were that loop's, and nobody waits in it any more.
        self._in_the_air, self._worker, self._timer = {}, None, None
        for operation in self._everything():
            operation.in_the_air = False
            operation.waiting.clear()
        if len(self):
            self._wake()


def _as_store_error(error: Exception) -> StoreError:
    """Return *error* as what a store may raise."""
    if isinstance(error, StoreError):
        return error
    failure = StoreError(f"L2 failed: {type(error).__name__}")
    failure.__cause__ = error
    return failure
