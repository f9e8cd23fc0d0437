"""
Writes that wait in this process. The one rule: what is lost with it is what was asked for by name, and is counted.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
from collections.abc import Awaitable, Callable, Sequence

from echo_cache.aside.behind.lanes import Lanes
from echo_cache.aside.behind.model import Counters, Saver, Waiting, Wire
from echo_cache.errors import StoreError

__all__ = ["MemoryQueue"]

logger = logging.getLogger("echo_cache")


class MemoryQueue:
    """
    The queue of one saver in memory. See DurableQueue.

    pending: the newest write of each key that waits, of all savers, and its saver.
    """

    def __init__(
        self,
        pending: dict[bytes, tuple[str, Waiting]],
        saver: Saver,
        wire: Wire,
        counters: Counters,
        mark: Callable[[bytes], Awaitable[object]],
        abandoned: Callable[[Waiting, str], None],
    ) -> None:
        self._pending = pending
        self._saver = saver
        self._wire = wire
        self._counters = counters
        self._mark = mark
        self._tell = abandoned
        # All state belongs to the event loop of the task.
        self._task: asyncio.Task[None] | None = None
        self._lanes = self._new_lanes()
        self._last = 0, 0
        # When each was accepted is in its ID.

    def __repr__(self) -> str:
        return f"<MemoryQueue {self._lanes!r}>"

    def _new_lanes(self) -> Lanes:
        return Lanes(self._saver, self._wire, self._counters, self._ended)

    async def append(self, key: bytes, raw: bytes) -> bytes:
        """Queue a write. Returns its ID. Raises StoreError when the queue is full."""
        if len(self._lanes) >= self._saver.max_queue:
            raise StoreError(
                f"the queue of saver {self._saver.name!r} is full: {self._saver.max_queue} writes wait; "
                "this one is not accepted"
            )
        waiting = Waiting(self._next_id(), raw, key, "", is_repeated=False)
        self._pending[key] = self._saver.name, waiting
        self._lanes.put(waiting)
        return waiting.id

    def _next_id(self) -> bytes:
        """Return an ID as a stream has them, above the last one: clocks may be set back."""
        now, (last, sequence) = int(time.time() * 1000), self._last
        self._last = (now, 0) if now > last else (last, sequence + 1)
        return b"%d-%d" % self._last

    def told(self, id_: bytes, *, is_told: bool) -> bool:
        """Return False: whoever was told of what, all are told once more."""
        return False

    async def pass_on(self) -> None:
        """Do nothing."""

    async def state(self) -> tuple[int, float]:
        """Return how many writes wait, and for how many seconds the first has."""
        ids = [int(waiting.id.partition(b"-")[0]) for waiting in self._lanes.writes()]
        return len(ids), max(0.0, time.time() - min(ids) / 1000) if ids else 0.0

    async def dead(self, most: int, after: bytes) -> list[tuple[bytes, dict[bytes, bytes]]]:
        """Return nothing: what is given up is gone."""
        return []

    async def drop(self, places: Sequence[bytes]) -> int:
        """Return 0."""
        return 0

    def start(self) -> None:
        """Save in the running event loop; what another one has left is saved here."""
        loop = asyncio.get_running_loop()
        if self._task is not None and not self._task.done() and self._task.get_loop() is loop:
            return
        left, self._lanes = self._lanes.writes(), self._new_lanes()
        for waiting in left:
            self._lanes.put(waiting)
        # Not in the context of whichever request comes first.
        self._task = loop.create_task(self._run(self._lanes), context=contextvars.Context())

    async def aclose(self, deadline: float) -> None:
        """Save what waits, within *deadline* seconds. What is not saved then is lost, counted and logged."""
        task, self._task = self._task, None
        if task is None or task.get_loop() is not asyncio.get_running_loop():
            return
        lanes = self._lanes
        empty = asyncio.ensure_future(lanes.empty())
        await asyncio.wait([empty], timeout=deadline)
        empty.cancel()
        lanes.stop()
        if len(lanes):
            task.cancel()
        await asyncio.wait([empty, task])
        lanes.discard()
        self._lose(lanes.writes())

    def _lose(self, writes: Sequence[Waiting]) -> None:
        if not writes:
            return
        self._counters.lost += len(writes)
        self._lanes = self._new_lanes()
        for waiting in writes:
            self._forget(waiting)
        logger.error("%d writes of saver %r were in memory at the end, and are lost", len(writes), self._saver.name)

    async def _run(self, lanes: Lanes) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(self._saver.concurrency):
                group.create_task(lanes.work())

    async def _ended(self, batch: Sequence[Waiting], error: str) -> None:
        newest = batch[-1]
        assert newest.key is not None
        if error:
            for waiting in batch:
                self._forget(waiting)
        # Other processes do not see what waits here: what they have read since they were told is what was before. And
        # what was read here of a write that is given up is not what the database has.
        await self._mark(newest.key)
        for waiting in batch:
            self._forget(waiting)
        if error:
            self._tell(newest, error)

    def _forget(self, waiting: Waiting) -> None:
        if waiting.key is not None and self._pending.get(waiting.key, ("", None))[1] is waiting:
            del self._pending[waiting.key]
