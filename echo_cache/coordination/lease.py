"""
Leases: one worker at a time does what all of them need, and the others learn of it.

The one rule: a lease saves work and never costs an answer. Whoever cannot have one, or has waited long enough for
another's, does the work itself; two who do the same work harm nobody.

A lease is one key in Redis that expires by itself. It holds the token of its owner while the work goes on, and for a
moment afterwards what became of it. Those who wait read it: at intervals that grow with the time that they have waited,
so that they learn of it late by a fraction of what the work took, and ask seldom for what takes long. The reads of all
who wait in one process go out together.
"""

from __future__ import annotations

import asyncio
import enum
import math
import random
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, TypeVar

from echo_cache.coordination.server import Server
from echo_cache.errors import StoreError

__all__ = ["RELEASE", "RENEW", "TAKE", "Lease", "Leases", "Outcome"]

_T = TypeVar("_T")

# How long one who waits is late, as a share of the time that the work took; and the bounds of one pause, in seconds.
_LATENESS: Final = 1 / 32
_SHORTEST_PAUSE: Final = 0.005
_LONGEST_PAUSE: Final = 0.25
# How long it is told what became of the work, in seconds: longer than the longest pause of those who wait.
_TOLD_FOR: Final = 1.0
# How long a request waits for a lease at most, where the store's own time-out is longer; and the pause after trouble.
_TAKE_WITHIN: Final = 0.5
_TROUBLE_PAUSE: Final = 1.0
# A lease is renewed so many times before it would end: an event loop that is late once does not lose it.
_RENEWALS: Final = 3

# KEYS[1]  the lease
# ARGV[1]  the token of whoever wants it
# ARGV[2]  how long it lasts, in ms
# ARGV[3]  what was seen there, and is no reason to wait any more
# Returns  nothing when it was given, else what is there
#
# What does not end by itself, or not for an hour, is no lease of ours: nobody waits for it.
TAKE: Final = """
local there, left = redis.pcall('GET', KEYS[1]), redis.pcall('PTTL', KEYS[1])
if type(there) ~= 'string' or there == ARGV[3] or left == -1 or left > 3600000 then
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
  return false
end
return there
"""

# KEYS[1]  the lease
# ARGV[1]  the token of its owner
# ARGV[2]  how long it lasts from now, in ms
# Returns  1 if it is still its owner's, else 0
RENEW: Final = """
if redis.pcall('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
"""

# KEYS[1]  the lease
# ARGV[1]  the token of its owner
# ARGV[2]  what is left in its place, empty for nothing
# ARGV[3]  for how long, in ms
# Returns  1 if it was still its owner's, else 0
RELEASE: Final = """
if redis.pcall('GET', KEYS[1]) ~= ARGV[1] then return 0 end
if ARGV[2] == '' then return redis.call('DEL', KEYS[1]) end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return 1
"""


class Outcome(enum.Enum):
    """What became of the work that was done under a lease. The values are on the wire, before a colon and a nonce."""

    DONE = b"done"
    """It is in the store."""

    NOT_SHARED = b"none"
    """It is for nobody else: everybody does it for himself."""

    FAILED = b"failed"
    """It could not be done."""


class Lease:
    """The right to do one piece of work, until it is released. It renews itself as long as the event loop runs."""

    __slots__ = ("_is_released", "_leases", "_name", "_timer", "_token", "_ttl")

    def __init__(self, leases: Leases, name: str, token: bytes, ttl: float) -> None:
        self._leases = leases
        self._name = name
        self._token = token
        self._ttl = ttl
        self._is_released = False
        self._timer: asyncio.TimerHandle | None = None
        self._renew_later()

    def __repr__(self) -> str:
        return f"<Lease {self._name} [{'held' if self._timer is not None else 'released'}]>"

    def release(self, outcome: Outcome | None, after: Coroutine[Any, Any, None] | None = None) -> None:
        """
        Tell those who wait what became of the work, once *after* is done. A second call does nothing.

        *outcome*: None where it was given up, so that one of those who wait takes it over.
        """
        if self._is_released or self._timer is None:
            if after is not None:
                after.close()
            return
        self._is_released = True
        if after is None:
            self._stop()
        self._leases.own(self._release(outcome, after))

    async def _release(self, outcome: Outcome | None, after: Coroutine[Any, Any, None] | None) -> None:
        if after is not None:
            try:
                await after
            finally:
                self._stop()
        left = b"" if outcome is None else b"%s:%s" % (outcome.value, secrets.token_hex(8).encode())
        words = (self._token, left, int(_TOLD_FOR * 1000))
        await self._leases.evaluate(RELEASE, self._name, words)

    def _renew_later(self) -> None:
        pause = self._ttl / _RENEWALS
        self._timer = asyncio.get_running_loop().call_later(pause, self._renew)

    def _renew(self) -> None:
        self._renew_later()
        self._leases.own(self._renew_now())

    async def _renew_now(self) -> None:
        reply = await self._leases.evaluate(RENEW, self._name, (self._token, _milliseconds(self._ttl)))
        if reply == 0:
            self._stop()  # it has ended, and may be another's by now

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Leases:
    """
    The leases of one name space.

    ttl: how long one lasts that is not renewed, in seconds: so long do others wait for a worker that has died. wait:
    how long they wait at the most.
    """

    def __init__(self, server: Server, *, ttl: float, wait: float) -> None:
        self.ttl: Final = ttl
        self.wait: Final = wait
        self._server = server
        self._tasks: set[asyncio.Task[None]] = set()
        # Until when, by the monotonic clock, no lease is asked for.
        self._not_before = 0.0

    def __repr__(self) -> str:
        return f"<Leases at {self._server.location} [{len(self._tasks)} operations under way]>"

    def name(self, digest: str) -> str:
        """Return the name of the lease on the work that *digest* stands for."""
        return f"{self._server.prefix}:lease:{digest}"

    async def lead(
        self,
        name: str,
        look: Callable[[], Awaitable[_T | None]],
        *,
        position: int = 0,
        is_overtaken: Callable[[int], bool] = lambda position: False,
        ttl: float | None = None,
        wait: float | None = None,
    ) -> Lease | _T | None:
        """
        Return a lease on the work *name* when the caller is to do it, or what *look* finds when another has done it.

        None: the caller is to do it without a lease, since Redis is in trouble, what comes is for each alone, or it has
        waited for long enough. *look* is called whenever another says, or lets it be thought, that the work is done.

        position: where the invalidation log stands. is_overtaken: says of the position at which another began whether
        what it brings is invalidated already: then it is not waited for, and loses its lease to the caller. ttl, wait:
        in place of those of all leases.
        """
        ttl = self.ttl if ttl is None else ttl
        wait = self.wait if wait is None else wait
        loop = asyncio.get_running_loop()
        began = loop.time()
        if self._not_before > time.monotonic():
            return None
        token = b"%s@%d" % (secrets.token_hex(16).encode(), max(position, 0))
        seen = b""
        while True:
            there = await self._take(name, token, seen, ttl)
            if there is None:
                return Lease(self, name, token, ttl)
            if not isinstance(there, bytes) or loop.time() >= began + wait:
                return None
            if _outcome(there) is None and there != seen and is_overtaken(_position(there)):
                seen = there
                continue
            if _outcome(there) is None:
                ended = await self._end_of(name, began, wait)
                if ended is None:
                    return None
                there = ended
            if _outcome(there) in (Outcome.NOT_SHARED, Outcome.FAILED):
                return None
            found = await look()
            if found is not None:
                return found
            seen = there

    async def _take(self, name: str, token: bytes, seen: bytes, ttl: float) -> object:
        """
        Return what TAKE gives, _TROUBLE when Redis is in trouble, and no lease is asked for in the next moment.

        A server that takes reads and no writes is in no trouble that its breaker would know of.
        """
        try:
            async with asyncio.timeout(_TAKE_WITHIN):
                return await self._server.evaluate(TAKE, (name,), (token, _milliseconds(ttl), seen))
        except (StoreError, TimeoutError):
            self.pause()
            self.own(self._give_back(name, token))
            return _TROUBLE
        except BaseException:
            self.own(self._give_back(name, token))
            raise

    async def _give_back(self, name: str, token: bytes) -> None:
        """Release what may have been given to one who is not there any more."""
        await self.evaluate(RELEASE, name, (token, b"", 0))

    def pause(self) -> None:
        """Ask for no lease in the next moment: the server has just not answered, and nobody shall wait twice."""
        self._not_before = time.monotonic() + _TROUBLE_PAUSE

    async def _end_of(self, name: str, began: float, wait: float) -> bytes | None:
        """Return what is told of the end of another's lease, nothing when it has just ended; None: time is up."""
        loop = asyncio.get_running_loop()
        while True:
            waited = loop.time() - began
            left = wait - waited
            if left <= 0:
                return None
            pause = min(max(waited * _LATENESS, _SHORTEST_PAUSE), _LONGEST_PAUSE) * random.uniform(0.5, 1.0)
            await asyncio.sleep(min(pause, left))
            try:
                there = await self._server.read(name)
            except StoreError:
                return None
            if there is None:
                return b""
            if _outcome(there) is not None:
                return there

    async def evaluate(self, script: str, name: str, words: tuple[bytes | int, ...]) -> object:
        """Return what *script* gives for the lease *name*, nothing when Redis is in trouble."""
        try:
            return await self._server.evaluate(script, (name,), words)
        except StoreError:
            return None

    def own(self, work: Coroutine[Any, Any, None]) -> None:
        """Run *work* in a task that is referred to until it ends."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def aclose(self, deadline: float) -> None:
        """Wait for what is under way in this event loop, for *deadline* seconds at most."""
        loop = asyncio.get_running_loop()
        tasks = {task for task in self._tasks if task.get_loop() is loop}
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=deadline)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)


_TROUBLE: Final = object()
# As many as 128 bits have; and what is never overtaken.
_POSITION_DIGITS: Final = 39
_NO_POSITION: Final = 1 << 128


def _milliseconds(seconds: float) -> int:
    return max(1, math.ceil(seconds * 1000))


def _position(there: bytes) -> int:
    """Return the position in the token *there*; one that is beyond all others where there is none."""
    digits = there.rpartition(b"@")[2]
    return int(digits) if digits.isdigit() and len(digits) <= _POSITION_DIGITS else _NO_POSITION


def _outcome(there: bytes) -> Outcome | None:
    """Return what *there* tells of the end of a lease; None when it is a token, or nothing that is known."""
    try:
        return Outcome(there.partition(b":")[0])
    except ValueError:
        return None
