"""
Who is saved when. The one rule: of one key one write at a time, in their order; what fails holds up its own key alone.

A lane has the writes of one key that wait. Workers take the lanes that are ready, one turn each: the first write, or of
those that can be coalesced the newest, is saved, and then ended: acknowledged or given up. A lane whose write has
failed is ready again after a pause.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from itertools import islice
from typing import Final, TypeAlias

from echo_cache.aside.behind.model import Counters, Saver, Waiting, Wire, Write, write_id

__all__ = ["Ended", "Lanes"]

logger = logging.getLogger("echo_cache")

Ended: TypeAlias = Callable[[Sequence[Waiting], str], Awaitable[None]]
"""
Is told that the last of several writes of one key is saved, and the others need not be.

The second argument is empty, or the name of the error with which it was given up.
"""

# The first pause after a failure and the longest, in seconds. It is doubled each time.
FIRST_PAUSE: Final = 0.1
LONGEST_PAUSE: Final = 30.0
# What waits here, in bytes; what is beyond stays in the queue.
MAX_BYTES: Final = 64 * 1024 * 1024
# How many writes are ended at once: as many as Redis acknowledges in well below a millisecond.
_MAX_COALESCED: Final = 256
# How long savers fail without another line in the log.
_QUIET_SECONDS: Final = 60.0


class _Lane:
    """The writes of one key, oldest first. failures: how often the first failed since one was saved."""

    __slots__ = ("failures", "timer", "writes")

    def __init__(self) -> None:
        self.writes: deque[Waiting] = deque()
        self.failures = 0
        self.timer: asyncio.TimerHandle | None = None


class Lanes:
    """
    The lanes of one saver, in one event loop.

    ended: see `Ended`; what it raises ends the worker. may_go_on: raises when nothing may be saved any more.
    """

    def __init__(
        self,
        saver: Saver,
        wire: Wire,
        counters: Counters,
        ended: Ended,
        may_go_on: Callable[[], None] = lambda: None,
    ) -> None:
        self._saver = saver
        self._wire = wire
        self._counters = counters
        self._ended = ended
        self._may_go_on = may_go_on
        # All state belongs to the event loop.
        self._lanes: dict[bytes, _Lane] = {}
        self._ready: asyncio.Queue[_Lane | None] = asyncio.Queue()
        self._bytes = 0
        self._length = 0
        self._stopping = False
        # Set, and made anew, whenever a turn is over.
        self._turned = asyncio.Event()
        self._quiet_until = 0.0

    def __len__(self) -> int:
        """Return how many writes wait."""
        return self._length

    def __repr__(self) -> str:
        return f"<Lanes of {self._saver.name!r} [{self._length} writes of {len(self._lanes)} keys]>"

    def put(self, waiting: Waiting) -> None:
        """Let *waiting* be saved, behind those of its key."""
        name = _lane_of(waiting)
        lane = self._lanes.get(name)
        if lane is None:
            lane = self._lanes[name] = _Lane()
            self._ready.put_nowait(lane)
        lane.writes.append(waiting)
        self._length += 1
        self._bytes += waiting.size

    def writes(self) -> list[Waiting]:
        """Return all that wait, those of a key in their order."""
        return [waiting for lane in self._lanes.values() for waiting in lane.writes]

    async def room(self) -> None:
        """Wait until there is room, or it is stopped."""
        while self._bytes >= MAX_BYTES and not self._stopping:
            await self._turned.wait()

    async def empty(self) -> None:
        """Wait until nothing waits. Those who pause after a failure try again now."""
        for lane in self._lanes.values():
            if lane.timer is not None:
                lane.timer.cancel()
                self._let_go(lane)
        while self._lanes:
            await self._turned.wait()

    def stop(self) -> None:
        """Let the workers end when their turn is over."""
        self._stopping = True
        for _ in range(self._saver.concurrency):
            self._ready.put_nowait(None)
        self._turn_over()

    def discard(self) -> None:
        """Cancel all timers: nothing is ready any more."""
        for lane in self._lanes.values():
            if lane.timer is not None:
                lane.timer.cancel()
                lane.timer = None

    async def work(self) -> None:
        """Take turns until stopped."""
        while True:
            lane = await self._ready.get()
            if self._stopping or lane is None:
                return
            await self._turn(lane)
            self._turn_over()

    async def _turn(self, lane: _Lane) -> None:
        batch = self._batch(lane)
        newest = batch[-1]
        error = newest.trouble or await self._attempt(newest)
        if error and not newest.trouble and newest.attempts < self._saver.max_attempts:
            self._retry_later(lane)
            return
        await self._ended(batch, error)
        lane.failures = 0
        self._count(batch, error)
        for waiting in batch:
            lane.writes.popleft()
            self._length -= 1
            self._bytes -= waiting.size
        if lane.writes:
            self._ready.put_nowait(lane)
        else:
            del self._lanes[_lane_of(newest)]

    def _batch(self, lane: _Lane) -> list[Waiting]:
        return list(islice(lane.writes, _MAX_COALESCED if self._saver.coalesce else 1))

    def _count(self, batch: Sequence[Waiting], error: str) -> None:
        self._counters.coalesced += len(batch) - 1
        if error:
            self._counters.abandoned += 1
        else:
            self._counters.saved += 1

    async def _attempt(self, waiting: Waiting) -> str:
        """Save *waiting*. Returns nothing, or the name of the error."""
        self._may_go_on()
        assert waiting.key is not None
        saver, repeated = self._saver, waiting.is_repeated
        waiting.is_repeated = True
        try:
            value = self._wire.value(saver.name, waiting.key, waiting.raw, saver.serializer)
            key = waiting.key.decode("utf-8", "surrogatepass")
            async with asyncio.timeout(saver.timeout):
                await saver.save(Write(key, value, write_id(waiting.id), repeated))
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # Whatever the saver waited for was cancelled, and not this.
            return self._failed(waiting, error)
        except Exception as error:
            return self._failed(waiting, error)
        return ""

    def _failed(self, waiting: Waiting, error: BaseException) -> str:
        waiting.attempts += 1
        name = type(error).__name__
        now = asyncio.get_running_loop().time()
        if now >= self._quiet_until:
            self._quiet_until = now + _QUIET_SECONDS
            # The name alone: its words may be those of a value. Who looks for them turns DEBUG on.
            logger.debug("saver %r failed", self._saver.name, exc_info=error)
            logger.warning(
                "saver %r failed to save a write (%s, attempt %d of %d)",
                self._saver.name,
                name,
                waiting.attempts,
                self._saver.max_attempts,
            )
        return name

    def _retry_later(self, lane: _Lane) -> None:
        self._counters.retried += 1
        lane.failures += 1
        # Doubled so often it is longer than the longest: more would overflow in the end.
        pause = min(FIRST_PAUSE * 2 ** min(lane.failures - 1, 30), LONGEST_PAUSE) * random.uniform(0.5, 1.0)
        lane.timer = asyncio.get_running_loop().call_later(pause, self._let_go, lane)

    def _let_go(self, lane: _Lane) -> None:
        lane.timer = None
        self._ready.put_nowait(lane)

    def _turn_over(self) -> None:
        self._turned.set()
        self._turned = asyncio.Event()


def _lane_of(waiting: Waiting) -> bytes:
    # What has no key is in nobody's order.
    return b"i" + waiting.id if waiting.key is None else b"k" + waiting.key
