"""
Writes that wait in Redis. The one rule: a write is accepted when Redis has it, and leaves it when it was saved.

    {<prefix>:behind:<name>}:<saver>:queue      a stream: the writes, oldest first; its group knows what is given out
    {<prefix>:behind:<name>}:<saver>:unmarked   a set: the writes that workers were not told of yet
    {<prefix>:behind:<name>}:<saver>:lease      who drains the queue
    {<prefix>:behind:<name>}:<saver>:dead       a stream: the writes that were given up
    {<prefix>:behind:<name>}:pending            a hash: the newest write of each key that waits, and its saver

<prefix> is the store's, <name> the CacheAside's. A saver has a queue of its own, so that a process without it neither
takes its writes nor stands in their way.

One process at a time drains a queue: only so there is an order. It holds a lease, and only its holder is given writes
and may acknowledge them. Whoever takes the lease after it first gets what was given out and not acknowledged. A process
that was stopped for longer than its lease may still end the one save that it had begun: the id of the write is there so
that the database can tell.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import random
import re
import secrets
from collections.abc import Awaitable, Callable, Sequence
from hashlib import blake2b
from typing import Final

from echo_cache.aside.behind.lanes import Lanes
from echo_cache.aside.behind.model import Counters, Saver, Waiting, Wire
from echo_cache.aside.behind.scripts import APPEND, DEAD, DROP, LOOK, SETTLE, STATE, TAKE_WRITES, TOLD
from echo_cache.coordination.lease import RELEASE, RENEW, TAKE
from echo_cache.coordination.server import Server
from echo_cache.errors import StoreError

__all__ = ["DurableQueue", "Names", "digest_of", "is_stream_id", "look"]

logger = logging.getLogger("echo_cache")

# How long a lease lasts that is not renewed, in seconds: so long do writes wait for a process that was killed.
LEASE_SECONDS: Final = 5.0
_RENEWALS: Final = 3
# How often those without the lease ask for it, as a share of how long it lasts.
_ASK_EVERY: Final = 0.2
# How often an idle queue is looked into, in seconds: writes of this process wake it, those of others do not.
_FIRST_PAUSE: Final = 0.02
_LONGEST_PAUSE: Final = 0.5
# The pause after trouble with Redis.
_TROUBLE_PAUSE: Final = 0.25
# What is taken from the queue at once.
_PAGE: Final = 200
_PAGE_BYTES: Final = 1024 * 1024
# How many dead letters are kept, about.
MAX_DEAD: Final = 10_000

_GROUP: Final = "savers"
_PLAIN: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_QUEUE: Final = ":queue"
_ID: Final = re.compile(rb"\d{1,20}-\d{1,20}")


class _Lost(Exception):
    """Raised when the lease has ended: another process may have it."""


class Names:
    """The names of the keys of one CacheAside, whose prefix is *name*, on *server*."""

    def __init__(self, server: Server, name: str) -> None:
        if not _PLAIN.fullmatch(name):
            # A colon is in no plain name.
            name = f":{blake2b(name.encode('utf-8', 'surrogatepass'), digest_size=16).hexdigest()}"
        self._base: Final = f"{{{server.prefix}:behind:{name}}}:"
        self.pending: Final = f"{self._base}pending"

    def of(self, saver: str, what: str) -> str:
        """Return the name of *what* of *saver*: queue, unmarked, lease or dead."""
        return f"{self._base}{saver}:{what}"

    @property
    def queues(self) -> tuple[str, str]:
        """What the names of all queues begin and end with."""
        return self._base, _QUEUE


def digest_of(key: bytes) -> bytes:
    """Return what stands for *key* in Redis: keys are of any length."""
    return blake2b(key, digest_size=16, person=b"echo_cache behnd").digest()


async def look(server: Server, names: Names, key: bytes) -> tuple[str, bytes] | None:
    """Return the saver and the bytes of the newest write of *key* that waits, None if none does. Raises StoreError."""
    reply = await server.evaluate(LOOK, (names.pending,), (digest_of(key), *names.queues))
    match reply:
        case None:
            return None
        case [bytes(saver), bytes(raw)]:
            return saver.decode("ascii", "replace"), raw
    raise StoreError("the server replied with something else than a write")


class DurableQueue:
    """
    The queue of one saver, and the task that drains it while this process has the lease.

    mark: tells all workers that a key has changed. abandoned: is told of a write that was given up, with the error.
    """

    def __init__(
        self,
        server: Server,
        names: Names,
        saver: Saver,
        wire: Wire,
        counters: Counters,
        mark: Callable[[bytes], Awaitable[object]],
        abandoned: Callable[[Waiting, str], None],
    ) -> None:
        self._server = server
        self._saver = saver
        self._wire = wire
        self._counters = counters
        self._mark = mark
        self._tell = abandoned
        self._pending = names.pending
        self._queue, self._unmarked, self._lease, self._dead = [
            names.of(saver.name, what) for what in ("queue", "unmarked", "lease", "dead")
        ]
        # All state belongs to the event loop of the task.
        self._task: asyncio.Task[None] | None = None
        self._lanes: Lanes | None = None
        self._stopping = asyncio.Event()
        self._wake = asyncio.Event()
        self._token = b""
        self._held_until = 0.0
        # The writes of this process of which workers are just being told; those of which they were, and Redis does not
        # know that yet.
        self._telling: dict[bytes, asyncio.Future[None]] = {}
        self._told: set[bytes] = set()

    def __repr__(self) -> str:
        state = "idle" if self._task is None else "waits for the lease" if self._lanes is None else repr(self._lanes)
        return f"<DurableQueue {self._queue} at {self._server.location} [{state}]>"

    # --- writing ------------------------------------------------------------------------------------------------------

    async def append(self, key: bytes, raw: bytes) -> bytes:
        """
        Queue a write. Returns its ID: tell the workers of it, and call `told` in any case.

        Raises StoreError: it is not queued; StoreTimeout: nobody knows.
        """
        keys = (self._queue, self._pending, self._unmarked)
        words = (digest_of(key), self._saver.name, raw, self._saver.max_queue)
        reply = await self._server.evaluate(APPEND, keys, words)
        if reply is None:
            raise StoreError(
                f"the queue of saver {self._saver.name!r} is full: {self._saver.max_queue} writes wait; "
                "this one is not accepted"
            )
        if not isinstance(reply, bytes):
            raise StoreError("the server replied with something else than the ID of a write")
        _require_id(reply)
        self._telling[reply] = asyncio.get_running_loop().create_future()
        return reply

    def told(self, id_: bytes, *, is_told: bool) -> bool:
        """
        Note whether all workers were told of the write; if not, whoever saves it tells them.

        Returns whether `pass_on` is to be called. Where it is acknowledged from here, that says it as well.
        """
        if is_told:
            self._told.add(id_)
        self._telling.pop(id_).set_result(None)
        # Not before: to save it is to take time from whoever waits for its acknowledgement.
        self._wake.set()
        return is_told and self._lanes is None

    async def pass_on(self) -> None:
        """Let whoever saves know what workers were told of. In vain, if Redis does not hear it: they are told twice."""
        await asyncio.sleep(0)  # those of one turn of the event loop go out together
        some = list(self._told)
        self._told.clear()
        if some:
            with contextlib.suppress(StoreError):
                await self._server.evaluate(TOLD, (self._unmarked,), some)

    async def state(self) -> tuple[int, float]:
        """Return how many writes wait, and for how many seconds the first has. Raises StoreError."""
        match await self._server.evaluate(STATE, (self._queue,), ()):
            case [int(waiting), int(age)]:
                return waiting, age / 1000
        raise StoreError("the server replied with something else than the state of a queue")

    async def dead(self, most: int, after: bytes) -> list[tuple[bytes, dict[bytes, bytes]]]:
        """
        Return dead letters, *most* at the most, oldest first, behind that at *after*; empty: from the first.

        Each with its place and its fields. Raises StoreError.
        """
        words = (most, _PAGE_BYTES, b"(" + after if after else b"-")
        found = await self._server.evaluate(DEAD, (self._dead,), words)
        if not isinstance(found, list):
            raise StoreError("the server replied with something else than dead letters")
        letters = []
        for entry in found:
            match entry:
                case [bytes(place), [*fields]]:
                    letters.append((place, dict(zip(fields[::2], fields[1::2], strict=False))))
                case _:
                    raise StoreError("the server replied with something else than dead letters")
        return letters

    async def drop(self, places: Sequence[bytes]) -> int:
        """Delete the dead letters at *places*; return how many were there. Raises StoreError."""
        dropped = 0
        for start in range(0, len(places), _PAGE):
            reply = await self._server.evaluate(DROP, (self._dead,), places[start : start + _PAGE])
            if not isinstance(reply, int):
                raise StoreError("the server replied with something else than a number")
            dropped += reply
        return dropped

    # --- draining -----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Drain in the running event loop, whenever no other process does."""
        loop = asyncio.get_running_loop()
        if self._task is not None and not self._task.done() and self._task.get_loop() is loop:
            return
        self._stopping, self._wake = asyncio.Event(), asyncio.Event()
        self._telling, self._told, self._lanes = {}, set(), None
        # Not in the context of whichever request comes first.
        self._task = loop.create_task(self._run(), context=contextvars.Context())

    async def aclose(self, deadline: float) -> None:
        """End what is being saved, within *deadline* seconds; what waits stays in Redis. It can be used again."""
        task, self._task = self._task, None
        if task is None or task.get_loop() is not asyncio.get_running_loop():
            return
        self._stopping.set()
        self._wake.set()
        if self._lanes is not None:
            self._lanes.stop()
        _, late = await asyncio.wait([task], timeout=deadline)
        if late:
            task.cancel()
            await asyncio.wait([task])

    async def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                if await self._take_lease():
                    try:
                        await self._drain()
                    finally:
                        await self._release()
            except* (_Lost, StoreError) as group:
                logger.debug("the queue of saver %r: %s", self._saver.name, group.exceptions[0])
            except* Exception as group:
                logger.exception("draining the queue of saver %r failed; it goes on", self._saver.name, exc_info=group)
            if not self._stopping.is_set():
                await self._sleep(self._stopping, LEASE_SECONDS * _ASK_EVERY * random.uniform(0.5, 1.0))

    async def _take_lease(self) -> bool:
        self._token = secrets.token_hex(16).encode()
        asked = asyncio.get_running_loop().time()
        try:
            there = await self._server.evaluate(TAKE, (self._lease,), (self._token, _milliseconds(LEASE_SECONDS), b""))
        except BaseException:
            # It may have been given all the same.
            with contextlib.suppress(StoreError):
                await self._server.evaluate(RELEASE, (self._lease,), (self._token, b"", 0))
            raise
        self._held_until = asked + LEASE_SECONDS
        return there is None

    async def _release(self) -> None:
        with contextlib.suppress(StoreError):
            await self._server.evaluate(RELEASE, (self._lease,), (self._token, b"", 0))

    async def _drain(self) -> None:
        """Save what is in the queue until stopped. Raises _Lost, in a group, when the lease has ended."""
        lanes = self._lanes = Lanes(self._saver, self._wire, self._counters, self._settle, self._require_lease)
        try:
            async with asyncio.TaskGroup() as group:
                keeper = group.create_task(self._keep_lease())
                work = [group.create_task(lanes.work()) for _ in range(self._saver.concurrency)]
                await self._read(lanes)
                lanes.stop()
                await asyncio.wait(work)
                keeper.cancel()
        finally:
            lanes.discard()
            self._lanes = None
            await self.pass_on()

    async def _keep_lease(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(LEASE_SECONDS / _RENEWALS)
            self._require_lease()
            asked = loop.time()
            try:
                words = (self._token, _milliseconds(LEASE_SECONDS))
                is_held = await self._server.evaluate(RENEW, (self._lease,), words)
            except StoreError:
                continue  # while it lasts, there is time
            if is_held != 1:
                raise _Lost("the lease is another's")
            self._held_until = asked + LEASE_SECONDS

    def _require_lease(self) -> None:
        """Raise _Lost if the lease may have ended, by the clock of this process."""
        if asyncio.get_running_loop().time() >= self._held_until:
            raise _Lost("the lease was not renewed in time")

    async def _read(self, lanes: Lanes) -> None:
        """Put into *lanes* what was given out before, then what is new, until stopped."""
        last, pause = b"0-0", _FIRST_PAUSE
        while not self._stopping.is_set():
            await lanes.room()
            self._wake.clear()
            try:
                # Where nothing waits here, nothing is given out: what is all the same, has been lost on its way, or
                # has come back with an older state of the server.
                before, new = await self._take(last if len(lanes) else b"0-0")
            except StoreError:
                await self._sleep(self._stopping, _TROUBLE_PAUSE)
                continue
            for some, is_repeated in ((before, True), (new, False)):
                for id_, raw in some:
                    lanes.put(self._wire.waiting(self._saver.name, id_, raw, is_repeated=is_repeated))
                    last = id_
            pause = _FIRST_PAUSE if before or new else min(2 * pause, _LONGEST_PAUSE)
            if not (before or new):
                await self._sleep(self._wake, pause * random.uniform(0.5, 1.0))

    async def _take(self, after: bytes) -> tuple[list[tuple[bytes, bytes]], list[tuple[bytes, bytes]]]:
        """Return IDs and bytes of what was given out before, behind *after*, and of what is new. Raises StoreError."""
        words = (self._token, _GROUP, after, _PAGE, _PAGE_BYTES)
        match await self._server.evaluate(TAKE_WRITES, (self._queue, self._lease), words):
            case 0:
                raise _Lost("the lease is another's")
            case [list(before), list(new)]:
                return _entries(before), _entries(new)
        raise StoreError("the server replied with something else than writes")

    async def _settle(self, batch: Sequence[Waiting], error: str) -> None:
        """Acknowledge *batch*; its newest was saved, or given up with *error*. Raises _Lost."""
        newest = batch[-1]
        key = newest.key
        if telling := [self._telling[waiting.id] for waiting in batch if waiting.id in self._telling]:
            await asyncio.wait(telling)
        is_told = bool(error) or key is None or all(waiting.id in self._told for waiting in batch)
        while True:
            self._require_lease()
            try:
                done = await self._acknowledge(batch, error, is_told=is_told)
            except StoreError as trouble:
                logger.debug("saved writes of saver %r cannot be acknowledged: %s", self._saver.name, trouble)
                await asyncio.sleep(_TROUBLE_PAUSE)
                continue
            if done == 0:
                raise _Lost("the lease is another's")
            if done == 1:
                break
            # Whoever wrote it was killed before it told the workers, or is just telling them. First they are told, then
            # it is acknowledged: if this process is killed in between, the next one does it again.
            assert key is not None
            await self._mark(key)
            is_told = True
        self._told.difference_update([waiting.id for waiting in batch])
        if error:
            if key is not None:
                # What was read from the queue meanwhile is not what the database has.
                await self._mark(key)
            self._tell(newest, error)

    async def _acknowledge(self, batch: Sequence[Waiting], error: str, *, is_told: bool) -> object:
        newest = batch[-1]
        return await self._server.evaluate(
            SETTLE,
            (self._queue, self._pending, self._unmarked, self._lease, self._dead),
            (
                *(self._token, _GROUP, int(is_told), error, newest.attempts, MAX_DEAD),
                b"" if newest.key is None else digest_of(newest.key),
                self._saver.name,
                *[waiting.id for waiting in batch],
            ),
        )

    async def _sleep(self, event: asyncio.Event, longest: float) -> None:
        """Wait for *event*, for *longest* seconds at the most."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(longest):
                await event.wait()


def _entries(found: Sequence[object]) -> list[tuple[bytes, bytes]]:
    """Return IDs and bytes of *found*; what was deleted from the stream has none. Raises StoreError."""
    entries = []
    for each in found:
        match each:
            case [bytes(id_), fields]:
                _require_id(id_)
                entries.append((id_, fields[1] if isinstance(fields, list) and len(fields) == 2 else b""))
            case _:
                raise StoreError("the server replied with something else than writes")
    return entries


def is_stream_id(id_: bytes) -> bool:
    """Tell whether *id_* is one of a stream."""
    return _ID.fullmatch(id_) is not None


def _require_id(id_: bytes) -> None:
    # As large as they can be: whoever has put such a one into the stream must not keep others from being saved.
    if not is_stream_id(id_):
        raise StoreError(f"the server gave a write an ID that is none: {id_[:64]!r}")


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))
