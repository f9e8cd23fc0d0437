"""
CacheAside: values instead of responses, with a database behind. The engine is that of the HTTP cache: the same stores,
flights, leases and invalidation log.

The one rule: what is given out is no older than the newest change that this cache was told of, and whatever is wrong
with the cache costs a fetch and nothing else.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import math
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass, replace
from hashlib import blake2b
from types import TracebackType
from typing import Any, Final, Generic, NamedTuple, ParamSpec, Protocol, Self, TypeVar, cast, overload

from cachetools import LRUCache

from echo_cache.aside.behind import NONE_WAITS, DeadLetter, Write, WriteBehind, WriteBehindMode, WriteBehindStats
from echo_cache.aside.keys import KeyTemplate
from echo_cache.aside.serializers import MSGPACK, Serializer, from_response, pair, require_serializer, to_response
from echo_cache.cache import Cache, InvalidationResult
from echo_cache.cache.invalidating import require_tag
from echo_cache.coordination.flight import Flight, Passenger, State
from echo_cache.coordination.lease import Lease, Outcome
from echo_cache.coordination.marks import Verdict
from echo_cache.errors import ConfigurationError, NotStorable
from echo_cache.model import CacheKey, Entry, StoredResponse
from echo_cache.options import Duration, seconds
from echo_cache.stores import RedisStore, Store

__all__ = ["AsideStats", "CacheAside", "CachedFunction", "awaitable"]

logger = logging.getLogger("echo_cache")

T = TypeVar("T")
SaveT = TypeVar("SaveT", bound=Callable[[Write[Any]], Awaitable[Any]])
T_co = TypeVar("T_co", covariant=True)
P = ParamSpec("P")

# Of longer keys a digest is kept: they are in every entry, and in marks.
_LONG_KEY_BYTES: Final = 1024
# What is asked of values whose type says so already, but not of those who do not check types.
_TEXT: Final[Any] = str
# Callers that are released begin anew; after so many flights they fetch for themselves.
_MAX_FLIGHTS: Final = 3
# Of how many types it is said that values of them are not kept.
_MAX_WARNED: Final = 64
# For how many keys it is remembered which serializer they were used with last.
_MAX_SERIALIZERS: Final = 4096


class AsideStats(NamedTuple):
    """
    What was done in this process.

    hits: values that the cache had. fetches: calls of fetch functions. shared: callers that another's fetch in this
    process answered. failures: fetches that raised. unreadable: stored values that did not decode. unstorable: values
    that the serializer did not take.
    """

    hits: int
    fetches: int
    shared: int
    failures: int
    unreadable: int
    unstorable: int


class CachedFunction(Protocol[P, T_co]):
    """What `CacheAside.cached` makes of a function."""

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T_co:
        """Return what the function returns for these arguments, from the cache if it is there."""
        ...

    def key(self, *args: P.args, **kwargs: P.kwargs) -> str:
        """Return the key under which that is kept."""
        ...

    async def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> InvalidationResult:
        """Make what is kept for these arguments gone."""
        ...

    async def refresh(self, *args: P.args, **kwargs: P.kwargs) -> T_co:
        """Call the function, and keep what it returns in place of what was kept."""
        ...


class _Decorator(Protocol):
    def __call__(self, function: Callable[P, Awaitable[T]], /) -> CachedFunction[P, T]: ...


@dataclass(frozen=True, slots=True)
class _Call(Generic[T]):
    """What one caller wants."""

    key: CacheKey
    fetch: Callable[[], Awaitable[T]]
    ttl: float
    serializer: Serializer
    tags: tuple[str, ...]
    lock_timeout: float


class _Fetched(NamedTuple):
    """A value, and until when it may be kept, in epoch seconds: 0 where a newer one waits to be saved, or may wait."""

    value: Any
    keep_until: float


class _Got(NamedTuple):
    """A value, and the entry that it is in; no entry: it is not kept."""

    value: Any
    entry: Entry | None


class CacheAside:
    """
    A cache of values before a database, or before whatever takes long.

    store: a Cache that the app has, so that its invalidations, tags and statistics are shared; or a store (MemoryStore,
        RedisStore, TwoLevelStore), a ready redis.asyncio client, or the URL of a Redis.
    prefix: what parts these keys from those of other CacheAsides on the same store.
    default_ttl: how long a value is kept, in seconds; 0: not at all. A TwoLevelStore caps it by its l2_ttl.
    serializer: MSGPACK, JSON, typed(T) or one of your own.
    cache_none: whether None is kept; else it is fetched each time.
    lock_timeout: how long, in seconds, others wait for a worker that died while it fetched.
    wait: how long callers wait for another's fetch at most, before one of them begins anew.
    write_behind: where what `write_behind` writes waits until it is saved. None: no process writes these keys behind,
        so that Redis need not be asked for what waits before each fetch.

    One fetch at a time for a key, over all workers that share a Redis; a value that was invalidated while it was being
    fetched is given to those who waited, and not kept. Use it in `async with`, or call `aclose` at the end, unless it
    was given the app's Cache and has no savers.

    Raises ConfigurationError for what cannot work.
    """

    def __init__(
        self,
        store: Cache | Store | Any,
        prefix: str = "cache",
        default_ttl: Duration = 3600,
        *,
        serializer: Serializer = MSGPACK,
        cache_none: bool = False,
        lock_timeout: Duration = 10.0,
        wait: Duration = 30.0,
        write_behind: WriteBehindMode | None = WriteBehindMode.DURABLE,
    ) -> None:
        if not isinstance(prefix, _TEXT) or not prefix or not prefix.isprintable():
            raise ConfigurationError(f"prefix must be printable text, not {prefix!r}")
        require_serializer(serializer)
        self.prefix: Final = prefix
        self.cache: Final = _cache_of(store)
        self._is_own = self.cache is not store
        self._default_ttl = seconds("default_ttl", default_ttl)
        self._serializer = serializer
        self._cache_none = cache_none
        self._lock_timeout = _lock_timeout(lock_timeout)
        self._wait = seconds("wait", wait)
        self._behind = WriteBehind(self.cache, prefix, serializer, write_behind)
        # Its own, since callers of the HTTP cache wait for another time.
        self._flights: Final = self.cache.make_flights(self._wait)
        self._max_bytes = self.cache.store.max_body_bytes if isinstance(self.cache.store, RedisStore) else math.inf
        # Which function has which key.
        self._templates: dict[str, str] = {}
        # All state belongs to the event loop.
        self._serializers: LRUCache[str, Serializer] = LRUCache(_MAX_SERIALIZERS)
        self._warned: set[str] = set()
        self._follow_at = 0.0
        self._hits = 0
        self._fetches = 0
        self._shared = 0
        self._failures = 0
        self._unreadable = 0
        self._unstorable = 0

    def __repr__(self) -> str:
        return f"<CacheAside {self.prefix!r} [{self._hits} hits, {self._fetches} fetches] over {self.cache.store!r}>"

    # --- reading ------------------------------------------------------------------------------------------------------

    async def get(
        self,
        key: str,
        fetch_fn: Callable[[], Awaitable[T]],
        ttl: Duration | None = None,
        *,
        serialize: Callable[[T], bytes | str] | None = None,
        deserialize: Callable[[bytes], T] | None = None,
        tags: Iterable[str] = (),
    ) -> T:
        """
        Return the value under *key*; where there is none, what *fetch_fn* returns, which is kept for *ttl* seconds.

        ttl: None for the default; 0: it is fetched, and not kept. serialize, deserialize: for this key, in place of the
        serializer; they are remembered for the key. tags: what `Cache.invalidate(tags=...)` may name.

        Callers at the same time share one fetch. The one who fetched gets the very value, the others copies of it. What
        *fetch_fn* raises reaches all who waited for it in this process, and nothing is kept.
        """
        return await self._get(self._call(key, fetch_fn, ttl, serialize, deserialize, tags, self._lock_timeout))

    async def get_with_lock(
        self,
        key: str,
        fetch_fn: Callable[[], Awaitable[T]],
        ttl: Duration = 3600,
        lock_timeout: Duration = 10,
        *,
        serialize: Callable[[T], bytes | str] | None = None,
        deserialize: Callable[[bytes], T] | None = None,
        tags: Iterable[str] = (),
    ) -> T:
        """
        Do as `get` does: it locks as well. Here *lock_timeout* can be given for one call.

        The lock is renewed while the fetch goes on. A worker that dies is given up after *lock_timeout* seconds, and
        another one fetches.
        """
        timeout = _lock_timeout(lock_timeout)
        return await self._get(self._call(key, fetch_fn, ttl, serialize, deserialize, tags, timeout))

    def cached(
        self,
        key: str | Callable[..., str],
        ttl: Duration | None = None,
        *,
        serializer: Serializer | None = None,
        tags: Iterable[str] = (),
    ) -> _Decorator:
        """
        Decorate an async function, so that what it returns is kept under *key*.

        key: a template of the function's parameters, "user:{user_id}", or a function of the same arguments; how it is
        filled is in `KeyTemplate`. tags: templates too, filled as they are. The decorated function has `key`,
        `invalidate` and `refresh`, which take the same arguments.

        Raises ConfigurationError for a function that is not async, for a template that does not fit it, and for one
        that another function on this CacheAside has.
        """
        if inspect.iscoroutinefunction(key):
            raise ConfigurationError('give the key: @cached(key="user:{user_id}"), not @cached alone')
        if serializer is not None:
            require_serializer(serializer)
        if isinstance(tags, str):
            raise ConfigurationError(f"tags must be a list of tags, not {tags!r}")
        templates = tuple(tags)
        lifetime = None if ttl is None else seconds("ttl", ttl)

        def decorate(function: Callable[P, Awaitable[T]], /) -> CachedFunction[P, T]:
            if not inspect.iscoroutinefunction(function):
                raise ConfigurationError(f"@cached is for async functions, and {function!r} is none")
            if isinstance(key, str):
                self._require_own(key, function)
            of = KeyTemplate(key, function).fill if isinstance(key, str) else lambda a, k: key(*a, **k)
            labels = [KeyTemplate(tag, function, is_key=False).fill for tag in templates]

            def call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Call[T]:
                fetch = functools.partial(function, *args, **kwargs)
                named = [tag for label in labels if (tag := label(args, kwargs))]  # nobody can name an empty one
                made = self._call(of(args, kwargs), fetch, lifetime, None, None, named, self._lock_timeout)
                return made if serializer is None else replace(made, serializer=serializer)

            @functools.wraps(function)
            async def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
                return await self._get(call(args, kwargs))

            async def refresh(*args: P.args, **kwargs: P.kwargs) -> T:
                return await self._refresh(call(args, kwargs))

            async def invalidate(*args: P.args, **kwargs: P.kwargs) -> InvalidationResult:
                return await self.invalidate(of(args, kwargs))

            made: Any = wrapper
            made.key = lambda *args, **kwargs: of(args, kwargs)
            made.refresh = refresh
            made.invalidate = invalidate
            return cast("CachedFunction[P, T]", made)

        return decorate

    def _require_own(self, template: str, function: Callable[..., Any]) -> None:
        """Raise ConfigurationError if another function has *template* already: they would get each other's values."""
        name = f"{function.__module__}.{function.__qualname__}"
        if self._templates.setdefault(template, name) != name:
            raise ConfigurationError(
                f"{self._templates[template]} has the key {template!r} already; give {name} another one, or a "
                "CacheAside with another prefix"
            )

    # --- changing -----------------------------------------------------------------------------------------------------

    async def invalidate(self, key: str, *, strict: bool = False) -> InvalidationResult:
        """
        Make the value under *key* gone: in this worker before this returns, in the others soon after.

        A fetch that began before this keeps nothing. *strict*: raises NotPropagated where Redis cannot be told.
        """
        return await self.cache.invalidate_key(self._key(key), strict=strict)

    async def clear(self, *, strict: bool = False) -> InvalidationResult:
        """Make all values of this prefix gone, as `invalidate` does."""
        return await self.cache.invalidate_space(self.prefix, strict=strict)

    async def refresh(
        self,
        key: str,
        fetch_fn: Callable[[], Awaitable[T]],
        ttl: Duration | None = None,
        *,
        serialize: Callable[[T], bytes | str] | None = None,
        deserialize: Callable[[bytes], T] | None = None,
        tags: Iterable[str] = (),
    ) -> T:
        """
        Fetch anew, and keep that in place of what is there; what is there stays where *fetch_fn* raises.

        Fetches that began before are not kept any more. Serializers are those that the key was last used with.
        """
        return await self._refresh(self._call(key, fetch_fn, ttl, serialize, deserialize, tags, self._lock_timeout))

    async def write_through(
        self,
        key: str,
        value: T,
        save: Callable[[str, T], Awaitable[Any]],
        ttl: Duration | None = None,
        *,
        serialize: Callable[[T], bytes | str] | None = None,
        deserialize: Callable[[bytes], T] | None = None,
        tags: Iterable[str] = (),
    ) -> None:
        """
        Save *value* by `await save(key, value)`, then keep it. Raises what *save* raises; then nothing is kept.

        Where others write the same key at the same time nothing is kept, and the next `get` fetches what the database
        has: the order of their commits is known there alone. So the older value never stays.
        """
        call = self._call(key, _nothing, ttl, serialize, deserialize, tags, self._lock_timeout)
        since = await self._position()
        try:
            await awaitable("save", save(key, value))
        except BaseException:
            # It may have been saved all the same.
            await asyncio.shield(self.cache.spawn(self.cache.invalidate_key(call.key)))
            raise
        await self._replace(call, value, since)

    @overload
    def saver(self, save: SaveT, /) -> SaveT: ...

    @overload
    def saver(
        self,
        save: None = None,
        /,
        *,
        name: str | None = ...,
        serializer: Serializer | None = ...,
        coalesce: bool = ...,
        concurrency: int = ...,
        max_attempts: int = ...,
        max_queue: int = ...,
        timeout: Duration = ...,
    ) -> Callable[[SaveT], SaveT]: ...

    def saver(
        self,
        save: Any = None,
        /,
        *,
        name: str | None = None,
        serializer: Serializer | None = None,
        coalesce: bool = False,
        concurrency: int = 8,
        max_attempts: int = 50,
        max_queue: int = 100_000,
        timeout: Duration = 30.0,
    ) -> Any:
        """
        Decorate an async function that saves a `Write`, for `write_behind`. The function stays as it is.

        name: that by which other processes know it; None: the function's. All processes that are to save what another
        has left register it. serializer: of its values; None: this cache's. coalesce: of the writes of a key that wait
        only the newest is saved. concurrency: how many keys are saved at a time. max_attempts: so often a write may
        fail before it is given up; the pauses grow from 0.1 s to 30 s, and 50 attempts take 10 minutes at least.
        max_queue: while so many writes wait, no more are accepted. timeout: what one attempt may take.

        It is called for each write in the order of the key, and at least once: when a process dies before it could
        acknowledge, another calls it again with the same id. Let the id decide, and a write takes effect once:

            INSERT INTO users (key, value, write_id) VALUES (%s, %s, %s) ON CONFLICT (key) DO UPDATE
            SET value = excluded.value, write_id = excluded.write_id WHERE users.write_id < excluded.write_id

        Raises ConfigurationError for a name that is taken, and for a function that is not async.
        """
        if serializer is not None:
            require_serializer(serializer)

        def register(function: SaveT) -> SaveT:
            self._behind.register(
                function,
                name,
                serializer,
                coalesce=coalesce,
                concurrency=concurrency,
                max_attempts=max_attempts,
                max_queue=max_queue,
                timeout=timeout,
            )
            return function

        return register if save is None else register(save)

    async def write_behind(self, key: str, value: T, save: Callable[[Write[T]], Awaitable[Any]]) -> str:
        """
        Accept *value* now, and have it saved by the saver *save* soon after. Returns the id of the write.

        When this returns the write is in Redis. It is what readers get, in this worker at once and in the others within
        milliseconds, and it is saved by this process or, when that ends before, by another. Other ways to write the
        same key do not wait for what is queued: use one of them.

        With WriteBehindMode.MEMORY the write is in this process alone, and is lost with it.

        Raises StoreError when the queue is full or Redis refuses it: it will not be saved; StoreTimeout when Redis does
        not answer: nobody knows. NotStorable for a value that the serializer does not take, or that is too large.
        ConfigurationError for a function that is no saver, and where there is no Redis.
        """
        name = self._key(key)
        if name[4]:
            raise ConfigurationError(f"a key that is written behind has at most {_LONG_KEY_BYTES} bytes")
        return await self._behind.write(name[3], value, save)

    # --- management ---------------------------------------------------------------------------------------------------

    async def write_behind_stats(self) -> WriteBehindStats:
        """Return what waits to be saved, in all processes, and what this one has saved. Never raises."""
        return await self._behind.stats()

    async def dead_letters(
        self, save: Callable[[Write[T]], Awaitable[Any]], most: int = 20, *, after: DeadLetter[T] | None = None
    ) -> list[DeadLetter[T]]:
        """
        Return writes that *save* could not save and that were given up, oldest first, behind *after*.

        most: so many, and no more than about 1 MiB of them.

        With WriteBehindMode.MEMORY there are none: what is given up is gone. Raises StoreError where Redis does not
        tell; ConfigurationError for a function that is no saver, and for a letter of another one.
        """
        return await self._behind.dead_letters(save, most, after)

    async def drop_dead_letters(
        self, save: Callable[[Write[T]], Awaitable[Any]], letters: Iterable[DeadLetter[T]]
    ) -> int:
        """
        Forget *letters*, which `dead_letters` returned for *save*; return how many of them were there.

        What is still to be saved is written again before that, by `write_behind`: then it is the newest write of its
        key, whatever has been written since. Raises as `dead_letters` does.
        """
        return await self._behind.drop_dead_letters(save, list(letters))

    def stats(self) -> AsideStats:
        """Return a snapshot of the counters."""
        return AsideStats(self._hits, self._fetches, self._shared, self._failures, self._unreadable, self._unstorable)

    async def aclose(self, deadline: Duration = 5.0) -> None:
        """
        Finish what is under way and close the store's connections; the app's own Cache is left to the app.

        What waits to be saved stays in Redis, for another process or the next one. What waits in memory is saved within
        *deadline* seconds, or is lost, which is counted and logged.
        """
        limit = seconds("deadline", deadline)
        await self._behind.aclose(limit)
        if self._is_own:
            await self.cache.aclose(limit)

    async def __aenter__(self) -> Self:
        # What another process has left is saved by whoever is there, also if it reads and writes nothing.
        self._behind.start()
        self.cache.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    # --- one call -----------------------------------------------------------------------------------------------------

    def _call(
        self,
        key: str,
        fetch: Callable[[], Awaitable[T]],
        ttl: Duration | None,
        serialize: Callable[[T], bytes | str] | None,
        deserialize: Callable[[bytes], T] | None,
        tags: Iterable[str],
        lock_timeout: float,
    ) -> _Call[T]:
        """Return what the caller wants. Raises ConfigurationError."""
        if isinstance(tags, str):
            raise ConfigurationError(f"tags must be a list of tags, not {tags!r}")
        if (serialize is None) != (deserialize is None):
            raise ConfigurationError("give serialize= and deserialize= together")
        if not callable(fetch):
            raise ConfigurationError(f"fetch_fn must be an async function without arguments, not {fetch!r}")
        made, labels = self._key(key), tuple(dict.fromkeys(tags))
        for label in labels:
            require_tag(label)
        if serialize is not None and deserialize is not None:
            serializer = self._serializers[key] = pair(serialize, deserialize)
        else:
            serializer = self._serializers.get(key, self._serializer)
        lifetime = self._default_ttl if ttl is None else seconds("ttl", ttl)
        return _Call(made, fetch, lifetime, serializer, labels, lock_timeout)

    def _key(self, key: str) -> CacheKey:
        """Return the primary key of *key*: in a name space of its own, which no request can name."""
        if not isinstance(key, _TEXT):
            raise ConfigurationError(f"a key is text, not {key!r}")
        data = key.encode("utf-8", "surrogatepass")
        if len(data) <= _LONG_KEY_BYTES:
            return ("value", self.prefix, None, data, b"")
        return ("value", self.prefix, None, blake2b(data, digest_size=20).digest(), b"digest")

    async def _get(self, call: _Call[T]) -> T:
        if not call.ttl or self.cache.is_disabled:
            return cast(T, (await self._fetch(call)).value)
        if (now := self.cache.clock.time()) >= self._follow_at:
            # Once a second: this may be another event loop, or another process, than the one that followed the log.
            self._follow_at = now + 1.0
            self.cache.start()
        entry = self.cache.fresh_nowait(call.key)
        if entry is not None and (got := self._decoded(call, entry)) is not None:
            self._hits += 1
            return cast(T, got.value)
        flights = 0
        while flights < _MAX_FLIGHTS and (passenger := self._board(call)) is not None:
            try:
                if await passenger.known() and (got := self._landed(call, passenger)) is not None:
                    return cast(T, got.value)
                # Who has waited for long enough begins anew, once for all others.
                flights += not passenger.flight.overdue
            finally:
                passenger.leave()
        # No flights in this event loop, or none to rely on; other processes share it all the same.
        return cast(T, (await self._found_or_filled(call)).value)

    # --- flights and leases -------------------------------------------------------------------------------------------

    def _board(self, call: _Call[T]) -> Passenger | None:
        """Return a place on the flight that brings what is wanted, None where there is none."""

        async def pilot(flight: Flight) -> None:
            flight.settle(await self._found_or_filled(call))

        log = self.cache.log

        def suits(flight: Flight) -> bool:
            if flight.stand[0] == log.version:
                return True
            return log.verdict(call.key, _begun_at(flight.stand[1], call.tags)) is None

        stand = log.version, log.position()
        # Those who want it kept in another way, or in another format, fetch for themselves.
        alike = (call.key, call.serializer.media_type, call.ttl, call.tags)
        return self._flights.board(alike, pilot, None, stand, suits)

    def _landed(self, call: _Call[T], passenger: Passenger) -> _Got | None:
        """Return what the flight has brought; None where the caller has to begin anew. Raises what the fetch raised."""
        flight = passenger.flight
        if flight.state is State.FAILED:
            if flight.error is None:
                raise asyncio.CancelledError("the fetch was cancelled, as at the end of the process")
            raise flight.error_again()
        if flight.state is not State.SETTLED:
            return None
        got: _Got = flight.outcome
        if passenger.first:
            return got
        if got.entry is not None:
            # A copy of its own: whoever changes what he got changes it for himself.
            decoded = self._decoded(call, got.entry)
            if decoded is None:
                return None
            got = decoded
        self._shared += 1
        return got

    async def _found_or_filled(self, call: _Call[T]) -> _Got:
        """Return what is below memory, or what another worker fetches, or fetch it."""
        cache = self.cache
        if cache.looks_further and (got := await self._look(call)) is not None:
            return got
        if cache.leases is None:
            return await self._fill(call, None)

        def is_overtaken(position: int) -> bool:
            return cache.log.verdict(call.key, _begun_at(position, call.tags)) is Verdict.GONE

        try:
            led = await cache.leases.lead(
                cache.leases.name(cache.digest_of(((call.key, False), ()))),
                lambda: self._look(call, anew=True),
                position=cache.log.position(),
                is_overtaken=is_overtaken,
                ttl=call.lock_timeout,
                wait=self._wait,
            )
        except Exception as error:
            cache.failed("lease", error)
            led = None
        return led if isinstance(led, _Got) else await self._fill(call, led)

    async def _look(self, call: _Call[T], *, anew: bool = False) -> _Got | None:
        """Return what is at any level, None where that is nothing of use."""
        entry = await self.cache.fresh(call.key, anew=anew)
        got = None if entry is None else self._decoded(call, entry)
        self._hits += got is not None
        return got

    async def _fill(self, call: _Call[T], lease: Lease | None) -> _Got:
        """Fetch the value and keep it; tell those who wait for *lease* of it."""
        # Where it is cancelled, another of those who wait goes on; where it fails, each of them finds out for himself.
        outcome: Outcome | None = None
        after: Coroutine[Any, Any, None] | None = None
        try:
            mark = await self._position()
            value, keep_until = await self._fetch(call)
            outcome = Outcome.NOT_SHARED
            entry = self._encoded(call, value, mark, keep_until)
            if entry is not None:
                stored = self.cache.keep(call.key, entry)
                outcome, after = Outcome.DONE, self.cache.settled(stored)
            return _Got(value, entry)
        except Exception:
            outcome = Outcome.FAILED
            raise
        finally:
            if lease is not None:
                lease.release(outcome, after)
            elif after is not None:
                after.close()

    async def _refresh(self, call: _Call[T]) -> T:
        since = await self._position()
        value, keep_until = await self._fetch(call)
        if await self._replace(call, value, since, keep_until) or not call.ttl:
            return cast(T, value)
        # Others refresh it too, or change it: one of all fetches once more, and that is kept.
        return await self._get(call)

    async def _replace(self, call: _Call[T], value: T, since: int, keep_until: float = math.inf) -> bool:
        """
        Keep *value*, which the source has since a change that began at *since*, if nobody else has changed it.

        Returns whether nobody has, as far as can be known.
        """
        appended = await self.cache.supersede(call.key, since, call.tags)
        entry = self._encoded(call, value, appended.position, keep_until) if appended.is_alone else None
        if entry is not None and (stored := self.cache.keep(call.key, entry)) is not None:
            await asyncio.wait([stored])
        return appended.is_alone or appended.trouble is not None

    async def _fetch(self, call: _Call[T]) -> _Fetched:
        """Return what a write that waits to be saved says, else what the source has."""
        waiting = NONE_WAITS if call.key[4] else await self._behind.look(call.key[3], call.serializer)
        if waiting.is_readable:
            return _Fetched(waiting.value, math.inf)
        keep_until = math.inf
        if waiting.is_waiting:
            keep_until = 0.0
        elif not waiting.is_known:
            # As with an invalidation that cannot be heard: so late a worker may be, and no later. Only while Redis is
            # not asked any more: else this would be kept there, for workers who know better.
            is_away = self._behind.is_away
            keep_until = self.cache.clock.time() + self.cache.coordination.max_unsynced if is_away else 0.0
        self._fetches += 1
        try:
            return _Fetched(await awaitable("fetch_fn", call.fetch()), keep_until)
        except Exception:
            self._failures += 1
            raise

    async def _position(self) -> int:
        """Return where the log stands, which is read first where that is yet to be done."""
        log = self.cache.log
        log.follow()
        if not log.known:
            await log.ready()
        return log.position()

    # --- values and entries -------------------------------------------------------------------------------------------

    def _encoded(self, call: _Call[T], value: T, mark: int, keep_until: float) -> Entry | None:
        """Return *value* as an entry; None where it is not kept."""
        now = self.cache.clock.time()
        end = min(now + call.ttl, keep_until)
        if end <= now or (value is None and not self._cache_none):
            return None
        try:
            response = to_response(value, call.serializer)
            if len(response.body) > self._max_bytes:
                raise NotStorable(f"it has {len(response.body)} bytes, and the store takes {self._max_bytes}")
        except Exception as error:
            self._unstorable += 1
            self._warn(value, error)
            return None
        return Entry(response, now, now, end, end, groups=call.tags, mark=mark)

    def _warn(self, value: object, error: Exception) -> None:
        """Say, once for each type, that a value is not kept."""
        name = type(value).__qualname__
        if name in self._warned or len(self._warned) >= _MAX_WARNED:
            return
        self._warned.add(name)
        # What others raise may show the value, and so does the error: pydantic's have parts of it.
        why = str(error) if isinstance(error, NotStorable) else type(error).__name__
        logger.warning(
            "%r does not keep a value of type %s, and fetches it each time: %s; stats().unstorable counts these",
            self,
            name,
            why,
        )
        logger.debug("a value was not kept", exc_info=error)

    def _decoded(self, call: _Call[T], entry: Entry) -> _Got | None:
        """Return the value in *entry*; None where it is none of this serializer's."""
        try:
            value = from_response(entry.response, call.serializer)
        except Exception as error:
            logger.debug("a stored value does not decode: %s", type(error).__name__)
            self._unreadable += 1
            return None
        return None if value is None and not self._cache_none else _Got(value, entry)


def awaitable(name: str, made: Awaitable[T]) -> Awaitable[T]:
    """Return what the function *name* of a caller gave, if that can be awaited. Raises ConfigurationError."""
    if not inspect.isawaitable(made):
        raise ConfigurationError(f"{name} must be an async function; it returned a value of {type(made)!r}")
    return made


def _cache_of(store: Any) -> Cache:
    """Return the engine over *store*. Raises ConfigurationError."""
    if isinstance(store, Cache):
        return store
    if isinstance(store, str) or hasattr(store, "execute_command"):
        return Cache(RedisStore(store))
    return Cache(store)


def _lock_timeout(value: Duration) -> float:
    timeout = seconds("lock_timeout", value)
    if not timeout:
        raise ConfigurationError("lock_timeout must be more than 0: a lock that ends at once locks nothing")
    return timeout


def _begun_at(position: int, groups: tuple[str, ...]) -> Entry:
    """Return an entry that stands for whatever a fetch since *position* will bring, to ask the log about."""
    return Entry(StoredResponse(0, (), b""), 0.0, 0.0, 0.0, 0.0, groups=groups, mark=position)


async def _nothing() -> Any:
    return None
