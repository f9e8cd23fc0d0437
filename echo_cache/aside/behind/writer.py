"""
Write-behind for one CacheAside. The one rule: a write that was acknowledged is what readers get, and what the database
gets, in the order of its key.

    write  -> the value is queued, with the note that it is the newest of its key
           -> the key is invalidated, in all workers
    read   -> what is kept; else the newest write of the key that waits; else what the database has
    drain  -> the value is saved, then it is gone from the queue

A reader notes where the log stands, then looks for a write that waits, then asks the database. If it finds none that
waits, the database has it, or the invalidation is yet to come and what is read is not kept.
"""

from __future__ import annotations

import inspect
import logging
import re
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, Protocol

from echo_cache.aside.behind.durable import DurableQueue, Names, digest_of, is_stream_id, look
from echo_cache.aside.behind.memory import MemoryQueue
from echo_cache.aside.behind.model import (
    Counters,
    DeadLetter,
    Save,
    Saver,
    Waiting,
    Wire,
    Write,
    WriteBehindMode,
    WriteBehindStats,
    write_id,
)
from echo_cache.aside.serializers import Serializer
from echo_cache.cache import Cache
from echo_cache.coordination.logs import server_of
from echo_cache.coordination.server import Server
from echo_cache.errors import ConfigurationError, StoreError
from echo_cache.events import WriteAbandoned
from echo_cache.model import CacheKey
from echo_cache.options import Duration, positive_int, seconds
from echo_cache.stores import RedisStore, TwoLevelStore
from echo_cache.stores.redis.breaker import BreakerState

__all__ = ["NONE_WAITS", "Look", "WriteBehind"]

logger = logging.getLogger("echo_cache")

_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
# More than any write is tried, and longer than the names of errors.
_DIGITS: Final = 10
_MOST_NAME: Final = 200
# Where the store does not say how much it takes.
_MAX_BYTES: Final = 8 * 1024 * 1024


class _Queue(Protocol):
    async def append(self, key: bytes, raw: bytes) -> bytes: ...
    def told(self, id_: bytes, *, is_told: bool) -> bool: ...
    async def pass_on(self) -> None: ...
    async def state(self) -> tuple[int, float]: ...
    async def dead(self, most: int, after: bytes) -> list[tuple[bytes, dict[bytes, bytes]]]: ...
    async def drop(self, places: Sequence[bytes]) -> int: ...
    def start(self) -> None: ...
    async def aclose(self, deadline: float) -> None: ...


class Look(NamedTuple):
    """
    What is known of writes of a key that wait.

    is_known: False where Redis cannot be asked. is_waiting: whether there is one. is_readable: whether *value* is what
    it writes; else it was written with another serializer.
    """

    is_known: bool
    is_waiting: bool = False
    is_readable: bool = False
    value: Any = None


NONE_WAITS: Final = Look(is_known=True)
_UNKNOWN: Final = Look(is_known=False)
_UNREADABLE: Final = Look(is_known=True, is_waiting=True)


def _require_mode(mode: object) -> None:
    if mode is not None and not isinstance(mode, WriteBehindMode):
        members = ", ".join(f"WriteBehindMode.{one.name}" for one in WriteBehindMode)
        raise ConfigurationError(f"write_behind must be {members} or None, not {mode!r}")


class WriteBehind:
    """
    The savers of one CacheAside over *cache*, their queues, and what waits there.

    name: the CacheAside's prefix. serializer: that of savers which have none of their own.
    """

    def __init__(self, cache: Cache, name: str, serializer: Serializer, mode: WriteBehindMode | None) -> None:
        _require_mode(mode)
        self._cache = cache
        self._name = name
        self._serializer = serializer
        self._server: Server | None = server_of(cache.store) if mode is WriteBehindMode.DURABLE else None
        self._mode = mode
        store = cache.store._l2 if isinstance(cache.store, TwoLevelStore) else cache.store
        self._store = store if isinstance(store, RedisStore) else None
        if self._store is not None:
            self._wire = Wire(name, self._store.max_body_bytes, self._store.secrets)
        else:
            self._wire = Wire(name, _MAX_BYTES, ())
        self._names = None if self._server is None else Names(self._server, name)
        self._counters = Counters()
        # All state belongs to the event loop.
        self._savers: dict[str, Saver] = {}
        # By saver, and whether they are of a test.
        self._queues: dict[tuple[str, bool], _Queue] = {}
        self._pending: dict[bytes, tuple[str, Waiting]] = {}

    def __repr__(self) -> str:
        done = self._counters
        return f"<WriteBehind {self._mode} {sorted(self._savers)} [{done.saved} saved, {done.abandoned} abandoned]>"

    def register(
        self,
        save: Any,
        name: Any,
        serializer: Serializer | None,
        *,
        coalesce: bool,
        concurrency: int,
        max_attempts: int,
        max_queue: int,
        timeout: Duration,
    ) -> None:
        """Let *save* save. See `CacheAside.saver`. Raises ConfigurationError."""
        if self._mode is None:
            raise ConfigurationError("nothing is written behind with write_behind=None: give a WriteBehindMode")
        if not inspect.iscoroutinefunction(save):
            raise ConfigurationError(f"a saver is an async function, and {save!r} is none")
        try:
            inspect.signature(save).bind(None)
        except TypeError:
            raise ConfigurationError(
                f"a saver takes one argument, the Write, which has key, value and id; {save!r} does not"
            ) from None
        name = save.__name__ if name is None else name
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ConfigurationError(f"name must be 1 to 64 of A-Z a-z 0-9 _ -, not {name!r}: give name=")
        if name in self._savers:
            raise ConfigurationError(f"there is a saver {name!r} already: give another name=")
        for option, value in (("concurrency", concurrency), ("max_attempts", max_attempts), ("max_queue", max_queue)):
            positive_int(option, value)
        longest = seconds("timeout", timeout)
        if not longest:
            raise ConfigurationError("timeout must be longer than 0 s: no attempt could succeed")
        own = self._serializer if serializer is None else serializer
        self._savers[name] = Saver(name, save, own, coalesce, concurrency, max_attempts, max_queue, longest)

    async def write(self, key: bytes, value: Any, save: Save) -> str:
        """Queue a write, and tell all workers. Returns its id. Raises as `CacheAside.write_behind`."""
        if self._mode is None:
            raise ConfigurationError("nothing is written behind with write_behind=None: give a WriteBehindMode")
        saver = self._saver_of(save)
        queue = self._queue(saver)
        queue.start()
        raw = self._wire.encode(saver, key, value, time.time())
        id_ = await queue.append(key, raw)
        is_told = False
        try:
            is_told = (await self._cache.invalidate_key(self._key(key))).propagated
        finally:
            if queue.told(id_, is_told=is_told):
                self._cache.spawn(queue.pass_on())
        return write_id(id_)

    @property
    def is_away(self) -> bool:
        """Whether Redis is not asked any more, since it has failed time after time."""
        return self._store is not None and self._store.breaker_state is not BreakerState.CLOSED

    async def look(self, key: bytes, serializer: Serializer) -> Look:
        """Return what waits for *key*, read with *serializer*. Never raises."""
        # Also where no saver is known here: another process may write what this one reads.
        if self._mode is None or (self._server is None and not self._savers):
            return NONE_WAITS
        try:
            self.start()
            found = await self._newest(key)
            if found is None:
                return NONE_WAITS
        except Exception as error:
            self._cache.failed("look", error)
            return _UNKNOWN
        saver, raw = found
        try:
            value = self._wire.value(saver, key, raw, serializer)
        except Exception as error:
            logger.debug("a write that waits does not decode: %s", type(error).__name__)
            return _UNREADABLE
        return Look(is_known=True, is_waiting=True, is_readable=True, value=value)

    async def _newest(self, key: bytes) -> tuple[str, bytes] | None:
        if self._server is not None and self._names is not None and not self._is_in_test:
            return await look(self._server, self._names, key)
        there = self._pending.get(key)
        return None if there is None else (there[0], there[1].raw)

    def start(self) -> None:
        """Begin to save what waits, in the running event loop, where there is a saver and a place to wait."""
        if self._mode is WriteBehindMode.DURABLE and self._server is None:
            return
        for saver in self._savers.values():
            self._queue(saver).start()

    async def stats(self) -> WriteBehindStats:
        """Return what waits, and what was done here. Never raises."""
        waiting: int | None = 0
        oldest: float | None = 0.0
        try:
            for queue in self._queues.values():
                length, age = await queue.state()
                waiting, oldest = (waiting or 0) + length, max(oldest or 0.0, age)
        except StoreError:
            waiting = oldest = None
        done = self._counters
        return WriteBehindStats(waiting, oldest, done.saved, done.retried, done.coalesced, done.abandoned, done.lost)

    async def dead_letters(self, save: Save, most: int, after: DeadLetter[Any] | None) -> list[DeadLetter[Any]]:
        """See `CacheAside.dead_letters`."""
        positive_int("most", most)
        saver = self._saver_of(save)
        place = b"" if after is None else self._place(saver, after)
        return [self._letter(saver, *found) for found in await self._queue(saver).dead(most, place)]

    async def drop_dead_letters(self, save: Save, letters: Sequence[DeadLetter[Any]]) -> int:
        """See `CacheAside.drop_dead_letters`."""
        saver = self._saver_of(save)
        return await self._queue(saver).drop([self._place(saver, letter) for letter in letters])

    def _place(self, saver: Saver, letter: DeadLetter[Any]) -> bytes:
        """Return where *letter* is. Raises ConfigurationError for what is no dead letter of *saver*."""
        if letter.saver != saver.name or not is_stream_id(letter.place.encode()):
            raise ConfigurationError(f"{letter!r} is no dead letter of saver {saver.name!r}")
        return letter.place.encode()

    def _letter(self, saver: Saver, place: bytes, fields: dict[bytes, bytes]) -> DeadLetter[Any]:
        """Return a dead letter, which anybody may have written, as what it says."""
        id_, raw = fields.get(b"id", b""), fields.get(b"write", b"")
        error, count = fields.get(b"error", b"").decode("ascii", "replace"), fields.get(b"attempts", b"")
        error = error if error.isidentifier() and len(error) < _MOST_NAME else ""
        name = write_id(id_) if is_stream_id(id_) else ""
        attempts = int(count) if count.isdigit() and len(count) < _DIGITS else 0
        waiting, write = self._wire.waiting(saver.name, id_, raw, is_repeated=True), None
        if waiting.key is not None:
            try:
                value = self._wire.value(saver.name, waiting.key, raw, saver.serializer)
                write = Write(waiting.key.decode("utf-8", "surrogatepass"), value, name, is_repeated=True)
            except Exception as trouble:
                logger.debug("a dead letter does not decode: %s", type(trouble).__name__)
        return DeadLetter(saver.name, name, error, attempts, write, raw, place.decode("ascii", "replace"))

    async def aclose(self, deadline: float) -> None:
        """Stop saving: see DurableQueue and MemoryQueue. It can be used again."""
        for queue in self._queues.values():
            await queue.aclose(deadline)

    # --- helpers ------------------------------------------------------------------------------------------------------

    def _saver_of(self, save: Save) -> Saver:
        for saver in self._savers.values():
            if saver.save == save:
                return saver
        raise ConfigurationError(
            f"{save!r} is no saver here: decorate it with @aside.saver, in all processes, as one may have to finish "
            "what another has left"
        )

    @property
    def _is_in_test(self) -> bool:
        """Whether the cache lives in memory for a test (`echo_cache.testing.in_memory`), and so do writes that wait."""
        return self._server is not None and server_of(self._cache.store) is not self._server

    def _queue(self, saver: Saver) -> _Queue:
        place = saver.name, self._is_in_test
        queue = self._queues.get(place)
        if queue is None:
            queue = self._queues[place] = self._new_queue(saver)
        return queue

    def _new_queue(self, saver: Saver) -> _Queue:
        async def mark(key: bytes) -> object:
            return await self._cache.invalidate_key(self._key(key))

        rest = (saver, self._wire, self._counters, mark, self._abandoned(saver))
        if self._server is not None and self._names is not None and not self._is_in_test:
            return DurableQueue(self._server, self._names, *rest)
        if self._mode is WriteBehindMode.MEMORY or self._is_in_test:
            return MemoryQueue(self._pending, *rest)
        raise ConfigurationError(
            "write_behind needs a store with a Redis, where writes wait safely. write_behind=WriteBehindMode.MEMORY "
            "lets them wait in this process: what is not saved when it is killed is lost, and others do not see it"
        )

    def _key(self, key: bytes) -> CacheKey:
        return ("value", self._name, None, key, b"")

    def _abandoned(self, saver: Saver) -> Callable[[Waiting, str], None]:
        def tell(waiting: Waiting, error: str) -> None:
            digest = "unknown" if waiting.key is None else digest_of(waiting.key).hex()
            logger.error(
                "write %s of saver %r was given up after %d attempts (%s); the digest of its key is %s",
                write_id(waiting.id),
                saver.name,
                waiting.attempts,
                error,
                digest,
            )
            key = None if waiting.key is None else self._key(waiting.key)
            self._cache.emit(WriteAbandoned(key, waiting.attempts, error))

        return tell
