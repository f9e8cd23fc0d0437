"""
Operations on their way to Redis. The one rule: whoever waits is answered within the time-out, and whoever leaves harms
nobody.

What is asked of one server in one turn of the event loop goes out together: reads as one MGET, writes as one pipeline.
A batch belongs to the link, not to those who wait: it runs in a task of its own, under one timer that begins with its
first operation. Who waits holds a future and may be cancelled. When the time is up all who wait are answered, and the
task is cancelled, which closes the connection: a late reply answers nobody. While a few batches are under way, what
comes next gathers in the one after them: the busier it is, the larger the batches.

    read, write -> Lane of the server -> _Reads, _Writes (open, then sent) -> Client

A server that fails time after time is not asked any more. Then all who wait for it are let go, requests are told so at
once, and a probe in the background finds out when it is back.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from echo_cache.stores.redis.breaker import Breaker, BreakerState
from echo_cache.stores.redis.connections import OwnConnection
from echo_cache.stores.redis.servers import Client, Words
from echo_cache.tallies import Histogram

__all__ = ["Failure", "Limits", "Link", "Refused", "Tally"]

_T = TypeVar("_T")

# A server that has not answered by then is far away, or busy with something large: what comes next does not wait.
_AT_ONCE: Final = 0.001

# What one batch may hold: 1 ms of work for the event loop, and a reply that does not keep others waiting for long.
_BATCH_OPERATIONS: Final = 128
_BATCH_BYTES: Final = 4 * 1024 * 1024

# An event loop that is late by so much was busy elsewhere: replies may have come meanwhile that nobody has read.
_LATE: Final = 0.005

# How much the size of one more reply counts in what the next one is expected to be.
_WEIGHT: Final = 0.05

# Probes are spread by this share of their interval, so that workers do not come all at once.
_JITTER: Final = 0.2


class Refused(Exception):
    """Raised when the server was not asked: the breaker is open, or the link is being closed. Says which."""


@dataclass(frozen=True, slots=True)
class Failure:
    """How an operation ended without a reply; *error* None: it ran out of time."""

    error: BaseException | None


@dataclass(frozen=True, slots=True)
class Limits:
    """
    timeout: what an operation may take, in seconds. under_way: batches to one server at a time.

    failures: how many in a row open the breaker. probe_interval: seconds between two probes.
    """

    timeout: float
    under_way: int
    failures: int
    probe_interval: float


class Tally:
    """
    What the links of a store have counted together. May be off by a few under threads.

    reads, writes: how long the server took for each batch that it answered.
    """

    __slots__ = ("errors", "reads", "timeouts", "writes")

    def __init__(self) -> None:
        self.errors = 0
        self.timeouts = 0
        self.reads = Histogram()
        self.writes = Histogram()


class _Batch:
    """Operations that go out together."""

    __slots__ = ("gate", "is_late", "last_name", "sent_at", "size", "task", "timer", "waiters", "wake")

    def __init__(self, gate: _Gate) -> None:
        self.gate = gate
        # Who waits, and for what.
        self.waiters: list[tuple[asyncio.Future[Any], Any]] = []
        self.size = 0
        self.last_name = ""
        self.timer: asyncio.TimerHandle | None = None
        # Whether it has had its grace; what starts it when the batch before it takes long.
        self.is_late = False
        self.wake: asyncio.TimerHandle | None = None
        self.task: asyncio.Task[None] | None = None
        self.sent_at = math.inf

    async def send(self, client: Client) -> Sequence[object]:
        """Return the replies."""
        raise NotImplementedError

    def answer(self, replies: Sequence[object]) -> None:
        """Give *replies* to those who wait."""
        raise NotImplementedError

    def fail(self, failure: Failure) -> int:
        """Answer all who wait; return how many they were."""
        waiters, self.waiters = self.waiters, []
        for future, _ in waiters:
            settle(future, failure)
        return len(waiters)


class _Reads(_Batch):
    """Names to read; a name is asked for once, however many want it."""

    __slots__ = ("names",)

    def __init__(self, gate: _Gate) -> None:
        super().__init__(gate)
        self.names: dict[str, None] = {}

    async def send(self, client: Client) -> Sequence[object]:
        return await client.read(list(self.names))

    def answer(self, replies: Sequence[object]) -> None:
        found = dict(zip(self.names, replies, strict=True))
        for future, name in self.waiters:
            settle(future, found[name])


class _Writes(_Batch):
    """Commands to do, in their order."""

    __slots__ = ()

    async def send(self, client: Client) -> Sequence[object]:
        return await client.write([words for _, words in self.waiters])

    def answer(self, replies: Sequence[object]) -> None:
        for (future, _), reply in zip(self.waiters, replies, strict=True):
            settle(future, reply)


class _Times(_Batch):
    """Those who want to know what time it is at the server."""

    __slots__ = ()

    async def send(self, client: Client) -> Sequence[object]:
        from redis.exceptions import ResponseError

        try:
            return (await client.time(),)
        except ResponseError as error:
            # It is there, and does not tell: that says nothing against asking it for entries.
            return (error,)

    def answer(self, replies: Sequence[object]) -> None:
        for future, _ in self.waiters:
            settle(future, replies[0])


class _Gate:
    """
    The batches of one kind to one server.

    While the server answers at once, one is under way at a time, and the next ones gather in the batch after it: larger
    batches, and nobody waits for longer than one round trip. While it does not, up to *most* are.
    """

    __slots__ = ("last", "most", "open", "queue", "under_way")

    def __init__(self, most: int) -> None:
        self.most = most
        self.under_way = 0
        # When the last one was started.
        self.last = -math.inf
        # The one that can be joined: not yet sent.
        self.open: _Batch | None = None
        # Those that wait for room.
        self.queue: deque[_Batch] = deque()

    def has_room(self, now: float) -> bool:
        """Return whether one more batch may be started."""
        return self.under_way == 0 or (self.under_way < self.most and now - self.last > _AT_ONCE)


class _Lane:
    """What goes to one server. Reads do not wait for writes."""

    __slots__ = ("batches", "breaker", "last_name", "probe", "reads", "times", "writes")

    def __init__(self, limits: Limits) -> None:
        self.breaker = Breaker(limits.failures)
        self.reads = _Gate(limits.under_way)
        self.writes = _Gate(limits.under_way)
        self.times = _Gate(1)
        # All that are not done.
        self.batches: set[_Batch] = set()
        # What the probe asks for: it must lead to the server that failed, and to its successor.
        self.last_name = ""
        self.probe: asyncio.TimerHandle | None = None


class Link:
    """
    The operations of one event loop.

    changed: called with the new state when a breaker opens or closes.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        client: Client,
        limits: Limits,
        tally: Tally,
        changed: Callable[[BreakerState, str], None],
    ) -> None:
        self._loop = loop
        self._client = client
        self._limits = limits
        self._tally = tally
        self._changed = changed

        # All of it belongs to the loop.
        self._is_closed = False
        self._lanes: dict[Hashable, _Lane] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        # Those that somebody waits on for long: held, so that a child process does not finalise what is its parent's.
        self._own: set[OwnConnection] = set()
        # The size that a reply to a read has lately had, in bytes.
        self._reply_bytes = 0.0
        self._most_reads = _BATCH_OPERATIONS

    def __repr__(self) -> str:
        waiting = sum(len(batch.waiters) for lane in self._lanes.values() for batch in lane.batches)
        return f"<Link [{waiting} operations in {len(self._tasks)} tasks | breaker {self.breaker_state}]>"

    @property
    def operations(self) -> int:
        """How many tasks are under way."""
        return len(self._tasks)

    @property
    def breaker_state(self) -> BreakerState:
        """The worst state of all servers' breakers."""
        states = {lane.breaker.state for lane in self._lanes.values()}
        for state in (BreakerState.OPEN, BreakerState.HALF_OPEN):
            if state in states:
                return state
        return BreakerState.CLOSED

    # --- operations ---------------------------------------------------------------------------------------------------

    def read(self, name: str) -> asyncio.Future[Any]:
        """Return the future value of *name*, which is whatever the server says, or a Failure. Raises Refused."""
        lane = self._lane(name)
        batch = lane.reads.open
        if not isinstance(batch, _Reads) or len(batch.names) >= self._most_reads:
            batch = _Reads(lane.reads)
            self._begin(lane, batch)
        batch.names[name] = None
        return self._join(lane, batch, name, name)

    def write(self, name: str, words: Words) -> asyncio.Future[Any]:
        """
        Return the future reply to the command *words*, whose keys are on the server of *name*, or a Failure.

        An error that the server replies with is the reply. Raises Refused.
        """
        lane = self._lane(name)
        size = sum(len(word) for word in words if not isinstance(word, int))
        batch = lane.writes.open
        if (
            not isinstance(batch, _Writes)
            or len(batch.waiters) >= _BATCH_OPERATIONS
            or batch.size + size > _BATCH_BYTES
        ):
            batch = _Writes(lane.writes)
            self._begin(lane, batch)
        batch.size += size
        return self._join(lane, batch, words, name)

    def time(self, name: str) -> asyncio.Future[Any]:
        """
        Return the future time of the server, in epoch seconds, or a Failure.

        An error that the server replies with is the reply. *name* is what will be asked for next. Raises Refused.
        """
        lane = self._lane(name)
        batch = lane.times.open
        if batch is None:
            batch = _Times(lane.times)
            self._begin(lane, batch)
        return self._join(lane, batch, None, name)

    async def call(self, operation: Callable[[Client], Awaitable[_T]], timeout: float) -> _T | Failure:
        """Return what *operation*, which no request waits for, gives within *timeout* seconds, or a Failure."""
        answer: asyncio.Future[_T | Failure] = self._loop.create_future()
        task = self._spawn(self._call(operation, answer))
        timer = self._loop.call_later(timeout, self._give_up, answer, task)
        try:
            return await answer
        finally:
            if answer.done() and not answer.cancelled():
                timer.cancel()

    async def connect(self, name: str) -> OwnConnection | Failure:
        """
        Return a new connection of its own to the server of *name*, or a Failure, within the time-out.

        `aclose` closes it if nobody has by then. Whether the server is asked is not for the breaker to say, nor does a
        failure count there. Raises Refused.
        """
        if self._is_closed:
            raise Refused("the store is being closed")
        task = self._spawn(self._connect(name))
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            task.cancel()
            task.add_done_callback(self._drop)
            raise
        return Failure(asyncio.CancelledError()) if task.cancelled() else task.result()

    def _lane(self, name: str) -> _Lane:
        """Return the lane to the server of *name*. Raises Refused."""
        if self._is_closed:
            raise Refused("the store is being closed")
        node = self._client.node_of(name)
        lane = self._lanes.get(node)
        if lane is None:
            lane = self._lanes[node] = _Lane(self._limits)
        if lane.breaker.state is not BreakerState.CLOSED:
            raise Refused(f"it has failed {self._limits.failures} times in a row")
        return lane

    def _join(self, lane: _Lane, batch: _Batch, asked: Any, name: str) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = self._loop.create_future()
        batch.waiters.append((future, asked))
        batch.last_name = name
        if batch.task is None:
            self._let_in(lane, batch.gate)
        return future

    # --- batches ------------------------------------------------------------------------------------------------------

    def _begin(self, lane: _Lane, batch: _Batch) -> None:
        """Have *batch*, which can be joined until then, sent in the next turn or when there is room."""
        batch.timer = self._loop.call_later(self._limits.timeout, self._expire, lane, batch)
        batch.gate.open = batch
        lane.batches.add(batch)
        batch.gate.queue.append(batch)
        self._let_in(lane, batch.gate)
        if batch.task is None:
            batch.wake = self._loop.call_later(_AT_ONCE, self._wake, lane, batch)

    def _let_in(self, lane: _Lane, gate: _Gate) -> None:
        """Start what waits and has room."""
        now = self._loop.time()
        while gate.queue and gate.has_room(now):
            gate.under_way += 1
            gate.last = now
            self._start(lane, gate.queue.popleft())

    def _wake(self, lane: _Lane, batch: _Batch) -> None:
        """The batch before *batch* was not answered at once: it need not be waited for."""
        self._let_in(lane, batch.gate)
        if batch.task is None and batch.gate.under_way < batch.gate.most:
            batch.wake = self._loop.call_later(_AT_ONCE, self._wake, lane, batch)

    def _start(self, lane: _Lane, batch: _Batch) -> None:
        if batch.wake is not None:
            batch.wake.cancel()
        batch.task = self._spawn(self._work(lane, batch))
        # A task that is cancelled before its first step never gets to a `finally`.
        batch.task.add_done_callback(lambda _: self._forget(lane, batch))

    async def _work(self, lane: _Lane, batch: _Batch) -> None:
        """Send *batch* and answer those who wait."""
        # Everything that joined in the turn in which this task was made is aboard; nothing joins from now on.
        if batch.gate.open is batch:
            batch.gate.open = None
        batch.sent_at = self._loop.time()
        lane.last_name = batch.last_name
        try:
            replies = await batch.send(self._client)
            if batch.waiters:  # else they have been let go
                batch.answer(replies)
        except asyncio.CancelledError as error:
            batch.fail(Failure(error))
            raise
        except Exception as error:
            self._tally.errors += batch.fail(Failure(error))
            self._failed(lane, 1, error)
        else:
            if lane.breaker.state is BreakerState.CLOSED:
                lane.breaker.succeeded()
            if batch.gate is lane.reads:
                self._tally.reads.observe(self._loop.time() - batch.sent_at)
                self._note_sizes(replies)
            elif batch.gate is lane.writes:
                self._tally.writes.observe(self._loop.time() - batch.sent_at)

    def _note_sizes(self, replies: Sequence[object]) -> None:
        size = sum([len(reply) for reply in replies if isinstance(reply, bytes)]) / max(len(replies), 1)
        # Grows at once, shrinks slowly: what was large once may well be large again.
        self._reply_bytes = max(size, self._reply_bytes + _WEIGHT * (size - self._reply_bytes))
        most = min(2 * self._most_reads, _BATCH_OPERATIONS, int(_BATCH_BYTES / (self._reply_bytes + 1)))
        self._most_reads = max(most, 1)

    def _forget(self, lane: _Lane, batch: _Batch) -> None:
        """Forget *batch*, whose task has ended, and start the one that waits."""
        assert batch.timer is not None
        batch.timer.cancel()
        # Somebody may have cancelled it before its first step: nobody waits for what will not be sent.
        if batch.gate.open is batch:
            batch.gate.open = None
        batch.fail(Failure(asyncio.CancelledError()))
        # Or the task, its frame and the batch would keep each other until the next full collection.
        batch.task = None
        lane.batches.discard(batch)
        batch.gate.under_way -= 1
        self._let_in(lane, batch.gate)

    def _expire(self, lane: _Lane, batch: _Batch) -> None:
        """The time of *batch* is up: answer those who wait and close the connection."""
        assert batch.timer is not None
        if not batch.is_late and self._loop.time() - batch.timer.when() > _LATE:
            batch.is_late = True
            # Whoever blocks the event loop must not make the server look silent, with all that follows from it.
            batch.timer = self._loop.call_later(_LATE, self._expire, lane, batch)
            return
        since = self._loop.time() - self._limits.timeout / 2
        silent = [other for other in lane.batches if other.task is not None and other.sent_at <= since]
        self._abandon(lane, batch, Failure(None))
        if batch.gate is lane.reads:
            self._most_reads = max(self._most_reads // 4, 1)  # it may have been too much; each answer doubles it again
        # The others that have waited nearly as long say the same thing; to wait for their time-outs would tell no more.
        self._failed(lane, max(len(silent), 1), None)

    def _abandon(self, lane: _Lane, batch: _Batch, failure: Failure) -> None:
        """Answer those who wait for *batch* with *failure* and have it end."""
        count = batch.fail(failure)
        self._tally.errors += count
        if failure.error is None:
            self._tally.timeouts += count
        if batch.gate.open is batch:
            batch.gate.open = None
        if batch.task is not None:
            batch.task.cancel()  # redis-py then closes the connection that it was using
        else:
            for timer in (batch.timer, batch.wake):
                if timer is not None:
                    timer.cancel()
            lane.batches.discard(batch)
            batch.gate.queue.remove(batch)

    # --- the breaker --------------------------------------------------------------------------------------------------

    def _failed(self, lane: _Lane, count: int, error: BaseException | None) -> None:
        # Once it is open its probe alone says how it goes on: what was asked before proves nothing about now.
        if lane.breaker.state is not BreakerState.CLOSED or not lane.breaker.failed(count):
            return
        for batch in list(lane.batches):
            self._abandon(lane, batch, Failure(Refused(f"it has failed {self._limits.failures} times in a row")))
        self._probe_later(lane)
        self._changed(BreakerState.OPEN, "no answer in time" if error is None else str(error))

    def _probe_later(self, lane: _Lane) -> None:
        interval = self._limits.probe_interval
        # A timer and no sleeping task: a loop that ends without a word to us leaves nothing pending.
        lane.probe = self._loop.call_later(interval * random.uniform(1 - _JITTER, 1 + _JITTER), self._probe, lane)

    def _probe(self, lane: _Lane) -> None:
        lane.probe = None
        lane.breaker.probe()
        self._spawn(self._is_back(lane.last_name)).add_done_callback(lambda task: self._probed(lane, task))

    async def _is_back(self, name: str) -> bool:
        """Return whether *name* can be read. One byte of it, since it may be too much that has failed."""
        try:
            async with asyncio.timeout(self._limits.timeout):
                (reply,) = await self._client.write([("GETRANGE", name, 0, 0)])
        except Exception:
            return False
        return not isinstance(reply, Exception) or str(reply).startswith("WRONGTYPE")

    def _probed(self, lane: _Lane, task: asyncio.Task[bool]) -> None:
        if not task.cancelled() and task.result():
            if lane.breaker.succeeded():
                self._changed(BreakerState.CLOSED, "")
            return
        lane.breaker.failed()
        if not self._is_closed:
            self._probe_later(lane)

    # --- tasks --------------------------------------------------------------------------------------------------------

    async def _call(self, operation: Callable[[Client], Awaitable[_T]], answer: asyncio.Future[_T | Failure]) -> None:
        try:
            result = await operation(self._client)
        except asyncio.CancelledError as error:
            settle(answer, Failure(error))
            raise
        except Exception as error:
            self._tally.errors += 1
            settle(answer, Failure(error))
        else:
            settle(answer, result)
        finally:
            del answer

    async def _connect(self, name: str) -> OwnConnection | Failure:
        limit = asyncio.timeout(self._limits.timeout)
        try:
            async with limit:
                own = await self._client.dedicated(name)
        except Exception as error:
            return Failure(None if limit.expired() else error)
        self._own = {other for other in self._own if other.is_open} | {own}
        return own

    def _drop(self, task: asyncio.Task[OwnConnection | Failure]) -> None:
        """Close what *task* has connected all the same when whoever wanted it had left."""
        if not task.cancelled() and isinstance(own := task.result(), OwnConnection):
            self._spawn(own.aclose())

    def _give_up(self, answer: asyncio.Future[Any], task: asyncio.Task[None]) -> None:
        if not task.done():
            self._tally.errors += 1
            self._tally.timeouts += 1
            settle(answer, Failure(None))
            task.cancel()

    def _spawn(self, work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def aclose(self, *, for_good: bool = True) -> None:
        """
        Wait for the operations under way, for the time-out at most, and close the connections, those of `connect` too.

        Whoever asks later than that is refused, *for_good* or until this returns.
        """
        deadline = self._loop.time() + self._limits.timeout
        # Those that end may be followed by others, which have waited for room.
        while self._tasks and (left := deadline - self._loop.time()) > 0:
            await asyncio.wait(set(self._tasks), timeout=left)
        self._is_closed = True
        for lane in self._lanes.values():
            for batch in list(lane.batches):
                self._abandon(lane, batch, Failure(asyncio.CancelledError()))
        if late := set(self._tasks):
            for task in late:
                task.cancel()
            await asyncio.wait(late, timeout=self._limits.timeout)
        # At the end, since a probe that fails sets the timer of the next one.
        for lane in self._lanes.values():
            if lane.probe is not None:
                lane.probe.cancel()
        own, self._own = self._own, set()
        await asyncio.gather(*(connection.aclose() for connection in own))
        # What could fail is saying good-bye; the connections are gone all the same.
        with suppress(Exception):
            await self._client.aclose()
        # A server that was given up gets a new chance from whoever goes on.
        self._lanes.clear()
        self._is_closed = for_good


def settle(answer: asyncio.Future[Any], outcome: object) -> None:
    """Answer whoever waits, if anybody does: the caller may have left, or its time may be up."""
    if not answer.done():
        answer.set_result(outcome)
