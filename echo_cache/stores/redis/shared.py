"""
The server behind a store, which other workers share. The one rule: whatever is wrong with it is a StoreError, in time.

The store asks it for its entries, and whoever coordinates workers for what they share. It has a link for each event
loop, and one translation of errors.

    RedisStore, coordination -> SharedServer -> Link of the event loop -> Client
                                Listener -> OwnConnection
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Final, TypeVar

from echo_cache.errors import NotStorable, StoreError, StoreTimeout
from echo_cache.stores.redis.breaker import BreakerState
from echo_cache.stores.redis.connections import OwnConnection
from echo_cache.stores.redis.link import Failure, Limits, Link, Refused, Tally
from echo_cache.stores.redis.scripts import Script, script_of
from echo_cache.stores.redis.servers import Client, Place, Words
from echo_cache.tallies import Histogram

__all__ = ["Listener", "SharedServer"]

_T = TypeVar("_T")


class SharedServer:
    """
    A Redis server, or a cluster of them, for any number of event loops.

    place: where it is. prefix: what the names of all keys begin with. changed: called with the new state and the
    reason when a breaker opens or closes.
    """

    def __init__(self, place: Place, prefix: str, limits: Limits, changed: Callable[[BreakerState, str], None]) -> None:
        self.location: Final = place.location
        self.prefix: Final = prefix
        self._place = place
        self._limits = limits
        self._changed = changed

        # Each event loop touches its own link only; counters may be off by a few under threads.
        self._links: dict[asyncio.AbstractEventLoop, Link] = {}
        self._pid = os.getpid()
        self._inherited: list[object] = []
        self._tally = Tally()

    def __repr__(self) -> str:
        return (
            f"<SharedServer {self.location} {self.prefix} [breaker {self.breaker_state}, {self.under_way} under way]>"
        )

    # --- for everybody ------------------------------------------------------------------------------------------------

    async def read(self, name: str) -> bytes | None:
        """
        Return the string under *name*, None when there is none; batched with others' reads.

        Raises StoreError when the server cannot be asked, StoreTimeout when it does not answer in time.
        """
        try:
            outcome = await self.link().read(name)
        except Refused as error:
            outcome = Failure(error)
        if isinstance(outcome, Failure):
            raise self.translated("read", outcome) from outcome.error
        return outcome if isinstance(outcome, bytes) else None

    async def evaluate(self, script: str, keys: Sequence[str], words: Sequence[str | bytes | int]) -> object:
        """
        Return what the Lua *script* gives; its *keys*, at least one, are in one slot. One round trip, two when it is
        new there.

        Raises StoreError, StoreTimeout; the script may have run all the same if it is StoreTimeout, or if the caller
        is cancelled.
        """
        return await self.run(self.link(), "run a script", script_of(script), keys, words)

    async def listen(self, name: str) -> Listener:
        """
        Return a new connection to the server that has the key *name*, for this event loop.

        It is in no pool and does not count in the store's `max_connections`. The store's `aclose` closes it, if nobody
        has. Its failures do not count for the breaker, and a breaker that is open does not keep it from connecting.
        Raises StoreError, StoreTimeout.
        """
        try:
            outcome = await self.link().connect(name)
        except Refused as error:
            outcome = Failure(error)
        if isinstance(outcome, Failure):
            raise self.translated("accept a listener", outcome) from outcome.error
        return Listener(outcome, self.location)

    # --- for the store ------------------------------------------------------------------------------------------------

    @property
    def under_way(self) -> int:
        """How many operations are under way."""
        return sum(link.operations for link in list(self._links.values()))

    @property
    def errors(self) -> int:
        """How many operations failed, those out of time included."""
        return self._tally.errors

    @property
    def timeouts(self) -> int:
        """How many operations ran out of time."""
        return self._tally.timeouts

    @property
    def latencies(self) -> Mapping[str, Histogram]:
        """How long the server took for each batch of reads ("read") and of writes ("write") that it answered."""
        return {"read": self._tally.reads, "write": self._tally.writes}

    @property
    def breaker_state(self) -> BreakerState:
        """Whether it is asked: the worst state in all event loops of this process, and of all servers."""
        states = {link.breaker_state for link in list(self._links.values())}
        for state in (BreakerState.OPEN, BreakerState.HALF_OPEN):
            if state in states:
                return state
        return BreakerState.CLOSED

    async def write(self, link: Link, what: str, name: str, words: Words) -> object:
        """Return the reply to the command *words*, whose keys are where *name* is. Raises StoreError."""
        return self._sound(what, await self._do(link, name, words))

    async def run(
        self, link: Link, what: str, script: Script, keys: Sequence[str], words: Sequence[str | bytes | int]
    ) -> object:
        """As `evaluate`; *what* it is for, for messages."""
        began = asyncio.get_running_loop().time()
        arguments = (len(keys), *_encoded(keys), *_encoded(words))
        outcome = await self._do(link, keys[0], ("EVALSHA", script.sha1, *arguments))
        if type(outcome).__name__ == "NoScriptError":
            async with self.in_time(what, began):
                outcome = await self._do(link, keys[0], ("EVAL", script.source, *arguments))
        return self._sound(what, outcome)

    async def call(self, what: str, operation: Callable[[Client], Awaitable[_T]], timeout: float) -> _T:
        """Return what *operation*, which no request waits for, gives within *timeout* seconds. Raises StoreError."""
        outcome = await self.link().call(operation, timeout)
        if isinstance(outcome, Failure):
            raise self.translated(what, outcome, timeout) from outcome.error
        return outcome

    @contextlib.asynccontextmanager
    async def in_time(self, what: str, began: float) -> AsyncIterator[None]:
        """Raise StoreTimeout if an operation's later round trips do not end within the timeout since it *began*."""
        try:
            async with asyncio.timeout_at(began + self._limits.timeout):
                yield
        except TimeoutError:
            self._tally.errors += 1
            self._tally.timeouts += 1
            raise self.translated(what, Failure(None)) from None

    def translated(self, what: str, failure: Failure, timeout: float | None = None) -> StoreError:
        """Return *failure* as ours."""
        return _translated(self.location, what, failure, timeout or self._limits.timeout)

    async def _do(self, link: Link, name: str, words: Words) -> object:
        """Return the reply to *words*, which may be an error, or a Failure."""
        try:
            return await link.write(name, words)
        except Refused as error:
            return Failure(error)

    def _sound(self, what: str, outcome: object) -> object:
        """Return *outcome* if it is a reply and no error. Raises StoreError."""
        if isinstance(outcome, Exception):
            self._tally.errors += 1  # the link takes it for a reply
            outcome = Failure(outcome)
        if isinstance(outcome, Failure):
            raise self.translated(what, outcome) from outcome.error
        return outcome

    # --- links --------------------------------------------------------------------------------------------------------

    def link(self) -> Link:
        """Return the link of this event loop in this process; its connections belong to both. Raises StoreError."""
        if self._pid != os.getpid():
            self._forget_parent()
        loop = asyncio.get_running_loop()
        link = self._links.get(loop)
        if link is None:
            link = self._links[loop] = self._connect(loop)
        return link

    def _connect(self, loop: asyncio.AbstractEventLoop) -> Link:
        if self._place.is_given:
            if self._links or self._inherited:
                raise StoreError(
                    "a ready client can be used in one event loop of one process only, and this is another one; "
                    "give RedisStore a URL instead"
                )
        else:
            for other in [other for other in self._links if other.is_closed()]:
                del self._links[other]
        return Link(loop, self._place.connect(), self._limits, self._tally, self._changed)

    def _forget_parent(self) -> None:
        """
        Leave to the parent process what is the parent's.

        Its links are kept and never touched: to finalise one here would take its sockets out of an epoll set that both
        processes share.
        """
        if self._links:
            self._inherited.append(self._links)
        self._links = {}
        self._pid = os.getpid()

    async def aclose(self) -> None:
        """Close the connections of this event loop, those of listeners too. It may be used again; it connects anew."""
        loop = asyncio.get_running_loop()
        if self._pid == os.getpid() and loop in self._links:
            await self._links[loop].aclose(for_good=not self._place.is_given)
            if not self._place.is_given:
                self._links.pop(loop, None)


class Listener:
    """
    A connection of its own, for whoever waits long for an answer. One `ask` at a time.

    It belongs to the event loop and the process in which it was made; in another one `ask` raises and `aclose` does
    nothing.
    """

    __slots__ = ("_home", "_location", "_own")

    def __init__(self, own: OwnConnection, location: str) -> None:
        self._own = own
        self._location = location
        self._home = _here()

    def __repr__(self) -> str:
        return f"<Listener {self._location} {self._own!r}>"

    async def ask(self, commands: Sequence[Words], timeout: float) -> list[object]:
        """
        Return the replies to *commands*, which are sent at once, in their order.

        timeout: how long all of them may take, in seconds. Raises StoreError when the server cannot be asked or
        replies with an error, StoreTimeout when it does not answer in time. Then, and when the caller is cancelled,
        the connection is closed: whoever goes on listens anew.
        """
        if self._home != _here():
            raise StoreError(f"this connection to Redis at {self._location} is another process's or event loop's")
        try:
            return await self._own.ask(commands, timeout)
        except Exception as error:
            failure = Failure(None if isinstance(error, TimeoutError) else error)
            raise _translated(self._location, "answer", failure, timeout) from failure.error

    async def aclose(self) -> None:
        """Close the connection. Never raises; a second call does nothing."""
        if self._home == _here():
            await self._own.aclose()


def _here() -> tuple[int, asyncio.AbstractEventLoop]:
    return os.getpid(), asyncio.get_running_loop()


def _encoded(words: Sequence[str | bytes | int]) -> list[bytes | int]:
    """
    Return *words* as they are sent. Raises NotStorable for a string that is no text.

    Before they are in a batch: redis-py would fail all of it, and that would be taken for the server's failure.
    """
    try:
        return [word.encode() if isinstance(word, str) else word for word in words]
    except UnicodeEncodeError as error:
        raise NotStorable(f"what Redis is told must be text: {error}") from error


def _translated(location: str, what: str, failure: Failure, timeout: float) -> StoreError:
    """Return *failure* as ours. This is the one place where errors are translated."""
    error, where = failure.error, f"Redis at {location}"
    if error is None:
        return StoreTimeout(f"{where} did not {what} within {timeout} s")
    if isinstance(error, Refused):
        return StoreError(f"{where} is not asked to {what}: {error}")
    if isinstance(error, asyncio.CancelledError):
        return StoreError(f"the store was closed before {where} could {what}")
    kind = StoreTimeout if type(error).__name__ == "TimeoutError" else StoreError  # redis-py's is none of Python's
    return kind(f"{where} could not {what}: {error}")
