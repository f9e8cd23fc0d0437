"""
The engine: drives policy against store and coordination.

This module alone knows both the rules and the I/O. Middleware, decorators, dependencies, command line and dashboard
are translations onto `Cache`. Its one rule: the cache fails open. Whatever goes wrong here becomes an event, and the
request goes to the app.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Generic, Self, TypeAlias, TypeVar

from echo_cache import fields, policy
from echo_cache.coordination.clock import Clock, SystemClock
from echo_cache.coordination.exchange import current_exchange
from echo_cache.coordination.flight import Flights
from echo_cache.coordination.log import Invalidation, Kind, LocalLog, Log, Verdict
from echo_cache.errors import ConfigurationError, EchoCacheError, StoreError
from echo_cache.events import CacheFailed, Event, Forwarded, Invalidated, Observer, Refused, Stored
from echo_cache.model import CacheKey, Entry, Fwd, Headers, Refusal, Request, Vary
from echo_cache.options import PolicyOptions, RequestDirectiveMode, seconds
from echo_cache.policy.answers import answered_headers
from echo_cache.policy.keys import CREDENTIAL_FIELDS, canonical_host
from echo_cache.stores.base import Held, Store, StoreStats

__all__ = ["Cache", "CacheCounters", "Found", "InvalidationResult", "Lane", "Ready"]

logger = logging.getLogger("echo_cache")

Lane: TypeAlias = tuple[CacheKey, bool]
"""A key, and whether the request has credentials: the two kinds do not wait for each other."""

Found: TypeAlias = tuple[Entry | None, bool]
"""The newest entry that a request selects, and whether its key is known to have others."""

_K = TypeVar("_K")
_V = TypeVar("_V")

NEVER: Final = float("-inf")

# The request fields that can make a hit more than a look-up. Everything else a browser sends is skipped at one
# membership test each (costs.md: 92 ns for all of them).
_NOTED: Final = CREDENTIAL_FIELDS | {
    b"cache-control",
    b"content-length",
    b"host",
    b"if-match",
    b"if-modified-since",
    b"if-none-match",
    b"if-range",
    b"if-unmodified-since",
    b"pragma",
    b"range",
    b"transfer-encoding",
}
_DIRECTIVE_FIELDS: Final = frozenset({b"cache-control", b"pragma"})
# How many hosts are remembered in their canonical form. Clients choose what they send, so it is bounded.
_MAX_HOSTS: Final = 1024
# No host name is longer (RFC 1035 section 2.3.4), its port included.
_MAX_HOST_BYTES: Final = 261
# How many spellings of the fields that select are remembered for one key, and how long one may be: browsers send a
# handful. Clients choose what they send, so both are bounded.
_MAX_SPELLINGS: Final = 16
_MAX_SPELLING_BYTES: Final = 128
# How long trouble goes on without another line in the log.
_QUIET_SECONDS: Final = 60.0
# How long nothing must have failed before it is called over. A breaker that is open makes requests fail all the time.
_CALM_SECONDS: Final = 5.0
# How many cancelled look-ups a request waits for before it looks for itself.
_MAX_LOOKS_WAITED_FOR: Final = 3
# How many keys are remembered as uncacheable, or by what they vary on.
_MAX_REMEMBERED: Final = 10_000
# Longer ones are not remembered: what clients send must not stay in memory because they sent it.
_MAX_REMEMBERED_KEY_BYTES: Final = 1024


class _Remembered(Generic[_K, _V]):
    """
    What is remembered for *seconds* of at most _MAX_REMEMBERED keys; the oldest go first.

    A plain dictionary: each miss asks twice, and a cachetools.TTLCache costs ten times as much (0.8 us) to ask.
    """

    def __init__(self, seconds: float, clock: Clock) -> None:
        self._seconds = seconds
        self._clock = clock
        self._known: dict[_K, tuple[float, _V]] = {}

    def get(self, key: _K) -> _V | None:
        """Return what is known of *key*, None when nothing is."""
        known = self._known.get(key)
        if known is None:
            return None
        if known[0] < self._clock.time():
            del self._known[key]
            return None
        return known[1]

    def put(self, key: _K, value: _V) -> None:
        """Remember *value* for *key* from now on."""
        self._known.pop(key, None)  # to the end: the order of the dict is the order of age
        if len(self._known) >= _MAX_REMEMBERED:
            del self._known[next(iter(self._known))]
        self._known[key] = self._clock.time() + self._seconds, value

    def forget(self, key: _K) -> None:
        """Know nothing of *key*."""
        if self._known:
            self._known.pop(key, None)


class Ready:
    """
    A stored response as the hit path sends it: kept beside the entry in memory, its fields made anew each second.

    fresh_until is NEVER for what only the general path may answer.
    """

    __slots__ = (
        *("_entry", "_name", "anonymous_only", "body", "checked"),
        *("fresh_until", "headers", "status", "until"),
    )

    def __init__(self, entry: Entry, name: bytes) -> None:
        self._entry = entry
        self._name = name
        self.status = entry.response.status
        self.body = entry.response.body
        self.fresh_until = NEVER if entry.always_validate else entry.fresh_until
        self.anonymous_only = entry.anonymous_only
        self.checked = entry.mark
        self.until = NEVER
        self.headers: list[tuple[bytes, bytes]] = []

    def renew(self, now: float) -> None:
        """Make the fields for the second that *now* lies in: Age and Cache-Status change once a second."""
        entry = self._entry
        headers = answered_headers(entry, now)
        ttl = int(entry.fresh_until - now)
        headers.append((b"cache-status", self._name + b"; hit; ttl=%d" % ttl))
        self.headers = headers
        age = now - entry.generated_at
        # Until the age or the ttl, whichever comes first, shows another whole number.
        self.until = now + min(1.0 - age % 1.0 if age >= 0 else -age, (entry.fresh_until - now) % 1.0 or 1.0)


class _Variants:
    """
    The variants of one key, newest first, as the hit path selects them.

    The lines of the fields that select decide alone: lines that were seen before select what they selected then, and
    nothing is normalised (a look-up instead of 1 us).
    """

    __slots__ = ("_names", "_ready", "_seen")

    def __init__(self, held: Held, name: bytes) -> None:
        self._ready: list[tuple[Vary, Ready]] = []
        chain: Held | None = held
        while chain is not None:
            self._ready.append((chain.entry.vary, Ready(chain.entry, name)))
            chain = chain.next
        self._names = frozenset(name for vary, _ in self._ready for name, _ in vary)
        self._seen: dict[tuple[tuple[bytes, bytes], ...], Ready] = {}

    def select(self, headers: Headers) -> Ready | None:
        """Return the newest variant that a request with *headers* selects."""
        names = self._names
        lines = tuple([line for line in headers if line[0] in names])
        ready = self._seen.get(lines)
        if ready is None:
            ready = next((ready for vary, ready in self._ready if policy.matches(vary, headers)), None)
            if ready is not None and sum(len(value) for _, value in lines) <= _MAX_SPELLING_BYTES:
                if len(self._seen) >= _MAX_SPELLINGS:
                    self._seen.clear()
                self._seen[lines] = ready
        return ready


class _Look:
    """
    A look below memory that a request does for itself, and that others wait for.

    Each of them has a future of its own, so that it may leave, and goes on in the very turn after the look. A turn
    later the call of the app that follows a miss may be over, and they would call it again. (asyncio.shield takes two.)
    """

    __slots__ = ("_waiters", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._waiters: list[asyncio.Future[Found | None]] = []

    async def found(self) -> Found | None:
        """Wait for what is found; None: the request that looked was cancelled."""
        waiter: asyncio.Future[Found | None] = self.loop.create_future()
        self._waiters.append(waiter)
        return await waiter

    def settle(self, found: Found | None) -> None:
        """Tell those who wait."""
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(found)


@dataclass(frozen=True, slots=True)
class CacheCounters:
    """
    A snapshot of what the cache has done since it was made or reset.

    hits: answers from a stored response, stale ones included; stale_hits: those of them that were stale.
    forwards: requests that went to the app, by reason (the Fwd tokens); collapsed: requests that shared another's call.
    stored, refused: responses, the latter by reason. failures: errors of the cache itself that requests did not feel.
    store: the statistics of the store.
    """

    hits: int
    stale_hits: int
    forwards: dict[str, int]
    collapsed: int
    stored: int
    refused: dict[str, int]
    failures: int
    store: StoreStats

    @property
    def hit_rate(self) -> float:
        """The fraction of requests, of those that a cache can answer, that were answered from it: 0..1."""
        answered = self.hits + self.collapsed
        total = answered + sum(self.forwards.values()) - self.forwards.get(Fwd.METHOD, 0)
        return answered / total if total else 0.0


@dataclass(frozen=True, slots=True)
class InvalidationResult:
    """
    position: where the invalidation stands in the log.

    propagated: whether every worker will see it. Without a shared log this process does, for memory and Redis. Of what
    others see, only a URL named in full is deleted from Redis; what they hold in memory lives on until it is stale,
    and entries found by tag or prefix stay in Redis for them, and for this process after a restart.
    """

    position: int
    propagated: bool


class Cache:
    """
    A shared HTTP cache over *store*.

    store: where entries live. policy: the rules; the safe defaults if None. name: what Cache-Status calls it.
    fill_timeout: seconds after which requests stop waiting for another request's call of the app.
    observers: called with every event that is not a hit.

    Works in any number of ASGI apps at once. `async with` or `aclose` finishes what is under way; the cache can be
    used again after that.
    """

    def __init__(
        self,
        store: Store,
        policy: PolicyOptions | None = None,
        *,
        name: str = "echo_cache",
        fill_timeout: float = 30.0,
        observers: Sequence[Observer] = (),
        clock: Clock | None = None,
        log: Log | None = None,
    ) -> None:
        for method in ("get_nowait", "get", "put", "delete", "drop_nowait", "unused"):
            if isinstance(store, type) or not callable(getattr(store, method, None)):
                raise ConfigurationError(
                    "store must be a store such as MemoryStore(), RedisStore(url) or TwoLevelStore(l1, l2), "
                    f"not {store!r}"
                )
        if policy is not None and not isinstance(policy, PolicyOptions):
            raise ConfigurationError(f"policy must be a PolicyOptions, not {policy!r}")
        if not name or not name.isprintable() or not name.isascii():
            raise ConfigurationError(f"name must be printable ASCII, for the Cache-Status field; not {name!r}")
        self.store: Final = store
        self.options: Final = policy if policy is not None else PolicyOptions()
        self.name: Final = name
        self.clock: Final = clock if clock is not None else SystemClock()
        self.log: Final = log if log is not None else LocalLog(self.clock)
        self.flights: Final = Flights(seconds("fill_timeout", fill_timeout))
        self.max_filling_bytes: Final = 8 * self.options.max_body_bytes
        self._observers = tuple(observers)
        self._status_name = fields.cache_status_member(name)
        ignore = self.options.request_directives is RequestDirectiveMode.IGNORE
        self._noted = _NOTED - _DIRECTIVE_FIELDS if ignore else _NOTED
        self._plain_query = not (self.options.ignored_query_parameters or self.options.sort_query)

        # All state belongs to the event loop, but for `disabled`, which tests set from anywhere.
        self.filling_bytes = 0
        self._off = 0
        self._hosts: dict[tuple[str, bytes | None], bytes | None] = {}
        self._uncacheable: _Remembered[Lane, bool] = _Remembered(self.options.hit_for_miss, self.clock)
        self._varies: _Remembered[CacheKey, tuple[bytes, ...]] = _Remembered(3600.0, self.clock)
        self._tasks: set[asyncio.Task[Any]] = set()
        # Who looks below memory, by what may share a call of the app.
        self._looking: dict[tuple[Lane, Vary], _Look] = {}
        # Trouble is told once a minute, not once a request; None when there is none.
        self._trouble_until: float | None = None
        # When the cache last failed, and what the store had counted by then.
        self._failed_at = 0.0
        self._store_errors = 0
        self.reset_counters()
        observe = getattr(store, "observe", None)
        if callable(observe):
            observe(self._hear)
        self._hit_path = (store.get_nowait, self.clock.time)
        # Whether a look-up with `get` may find what memory does not have.
        self.looks_further: Final = getattr(store, "remote", True)

    def __repr__(self) -> str:
        state = "disabled" if self._off else f"{len(self.flights)} flights, {len(self._tasks)} writes"
        return f"<Cache {self.name!r} [{state}] over {self.store!r}>"

    # The hit path: synchronous, and nothing else on it.

    def ready(self, scope: Any) -> Ready | Lane | None:
        """
        Return the response that answers a plain GET from memory as it is; its lane if memory has nothing under its key.

        None for everything else, which the general path decides on.

        Plain: no conditions, range, directives or credentials that could change the answer. The caller sends a copy
        of `headers`, since whoever stands outside may change what it is given.
        """
        host: bytes | None = None
        credentials = False
        noted = self._noted
        headers = scope["headers"]
        for name, value in headers:
            if name in noted:
                if name == b"host" and host is None:
                    host = value
                elif name in CREDENTIAL_FIELDS:
                    credentials = True
                else:
                    return None
        path = scope.get("raw_path")
        if path is None or self._off or not self._plain_query:
            return None
        scheme = scope.get("scheme", "http")
        try:
            host = self._hosts[scheme, host]
        except KeyError:
            host = self._remember_host(scheme, host)
        get_nowait, time = self._hit_path
        key = ("GET", scheme, host, path, scope["query_string"])
        held = get_nowait(key)
        if held is None:
            return key, credentials
        ready: Ready | None = held.memo
        if type(ready) is not Ready:
            ready = self._select(held, headers)
            if ready is None:
                return self._unused()
        now = time()
        if now >= ready.until:
            if now >= ready.fresh_until:
                return self._unused()
            ready.renew(now)
        if ready.checked < self.log.newest and not self._still_stands(key, ready):
            return self._unused()
        if credentials and ready.anonymous_only:
            return self._unused()
        self.hits += 1
        return ready

    def _unused(self) -> Lane | None:
        """Leave what memory gave to the general path, which asks again: once is enough to count. Returns None."""
        self.store.unused()
        return None

    def _select(self, held: Held, headers: Headers) -> Ready | None:
        """Return what the request selects of a key that varies, or of one that is looked up for the first time."""
        variants = held.memo
        if variants is None:
            if not held.entry.vary:
                ready = held.memo = Ready(held.entry, self._status_name)
                return ready
            variants = held.memo = _Variants(held, self._status_name)
        found: Ready | None = variants.select(headers)
        return found

    def _still_stands(self, key: CacheKey, ready: Ready) -> bool:
        """Check the marks that came since the last check; once per entry and mark, not once per hit."""
        newest = self.log.newest
        if self.log.verdict(key, ready._entry) is not None:
            return False
        ready.checked = newest
        return True

    def _remember_host(self, scheme: str, host: bytes | None) -> bytes | None:
        canonical = canonical_host(scheme, host)
        if len(self._hosts) < _MAX_HOSTS and (host is None or len(host) <= _MAX_HOST_BYTES):
            self._hosts[scheme, host] = canonical
        return canonical

    # Look-up.

    async def look_further(self, lane: Lane, headers: Headers) -> Ready | Found | None:
        """
        Return the response that answers a plain GET, for which memory has nothing, from a level below as it is.

        Otherwise what was found there, for the general path to decide on; None when the app is being called for the
        same. Those who look for the same at the same time look once. They need no flight for that: where memory is
        small, hits below are many, and what a look may cost and who may leave it the store sees to.
        """
        key = lane[0]
        call = lane, self.flight_key(key, headers)
        if self.flights.is_open(call, foreground=True) or self.is_uncacheable(lane):
            return None
        found = await self._find_with_others(call, headers)
        entry, _ = found
        if entry is None or entry.always_validate or (lane[1] and entry.anonymous_only):
            return found
        now = self.clock.time()
        if now >= entry.fresh_until:
            return found
        ready = Ready(entry, self._status_name)
        ready.renew(now)
        self.hits += 1
        return ready

    async def _find_with_others(self, call: tuple[Lane, Vary], headers: Headers) -> Found:
        """Find what a request with *headers* selects, by one look with those who look for the same right now."""
        loop = asyncio.get_running_loop()
        for _ in range(_MAX_LOOKS_WAITED_FOR):
            look = self._looking.get(call)
            if look is None or look.loop is not loop:
                break
            found = await look.found()
            if found is None:  # who looked was cancelled, and one of those who waited looks now
                continue
            if self._is_found_for(call, found, headers):
                return found
            break
        (key, _), _ = call
        if call in self._looking:
            return await self.find(key, headers)
        return await self._find_for_others(call, headers)

    def _is_found_for(self, call: tuple[Lane, Vary], found: Found, headers: Headers) -> bool:
        """Say whether what another request has *found* is what a request with *headers* would have."""
        entry, others = found
        if entry is None:
            return not others
        # What another request did not select, this one may; not if both have the same in all fields that select.
        return policy.matches(entry.vary, headers) and (not others or bool(call[1]))

    async def _find_for_others(self, call: tuple[Lane, Vary], headers: Headers) -> Found:
        """Find, and give what is found to those who come meanwhile."""
        (key, _), _ = call
        look = self._looking[call] = _Look(asyncio.get_running_loop())
        found: Found | None = None
        try:
            found = await self.find(key, headers)
        except Exception:
            found = None, False  # those who wait would have no more luck with the same bug
            raise
        finally:
            del self._looking[call]
            look.settle(found)
        entry, _ = found
        if entry is not None and entry.vary and self._varies.get(key) is None:
            self.remember_vary(key, entry.vary)
        return found

    def find_nowait(self, key: CacheKey, request: Request) -> Found:
        """
        Return the newest entry in memory that *request* selects, and whether the key has others.

        Memory in trouble is an event and no entry: a level below may have it.
        """
        others = False
        try:
            first = held = self.store.get_nowait(key)
        except Exception as error:
            self.failed("get", error)
            return None, False
        now = self.clock.time()
        found: Entry | None = None
        while held is not None:
            entry = held.entry
            if now <= entry.retain_until:
                if policy.matches(entry.vary, request.headers):
                    found = self._standing(key, entry)
                    break
                others = True
            held = held.next
        if found is None and first is not None:
            self.store.unused()
        return found, others

    async def find(self, key: CacheKey, headers: Headers) -> Found:
        """
        Return the newest entry at any level that a request with *headers* selects, and whether others are known of.

        A store in trouble is an event and no entry.
        """
        rejected = False

        def select(vary: Vary) -> bool:
            nonlocal rejected
            if not vary or policy.matches(vary, headers):
                return True
            rejected = True
            return False

        try:
            entry = await self.store.get(key, select)
            if entry is not None and self.looks_further and self._standing(key, entry) is None:
                # What memory had is gone by a mark; another worker may have filled the level below since.
                self.store.drop_nowait(key)
                entry = await self.store.get(key, select)
        except StoreError as error:
            self.failed("get", error)
            return None, rejected
        if self._trouble_until is not None and self.looks_further and self._is_calm():
            self._trouble_until = None
            logger.info("the store answers again")
        if entry is None or self.clock.time() > entry.retain_until:
            return None, rejected
        return self._standing(key, entry), rejected

    def _standing(self, key: CacheKey, entry: Entry) -> Entry | None:
        """Return *entry* as the log leaves it: as it is, stale, or not at all."""
        if entry.mark >= self.log.newest:
            return entry
        verdict = self.log.verdict(key, entry)
        if verdict is None:
            return entry
        if verdict is Verdict.GONE:
            return None
        return entry._replace(fresh_until=min(entry.fresh_until, self.log.softened_at(key, entry)))

    # Storing.

    def keep(self, key: CacheKey, entry: Entry) -> None:
        """
        Store *entry*: visible in memory when this returns, in Redis soon after, in a task that no request owns.

        An entry whose fill was overtaken by an invalidation is not stored.
        """
        if self._off:
            return
        try:
            if self.log.verdict(key, entry) is Verdict.GONE:
                self.refused(key, Refusal.OVERTAKEN)
                return
            if not entry.always_validate and entry.fresh_until > self.clock.time():
                # What is only stored to be validated is no reason to wait for each other again.
                self._uncacheable.forget((key, False))
                if not entry.anonymous_only:
                    self._uncacheable.forget((key, True))
            rest = self.store.put(key, entry)
            if rest is not None:
                self.spawn(self._finish("set", rest))
            self.stored += 1
            if self._observers:
                lifetime = entry.fresh_until - self.clock.time()
                self.emit(Stored(key, len(entry.response.body), lifetime))
        except Exception as error:
            self.failed("set", error)

    def forget(self, key: CacheKey) -> None:
        """Drop what is stored under *key*, at all levels, in a task that no request owns."""
        self.spawn(self._finish("delete", self.store.delete(key)))

    def refused(self, key: CacheKey, reason: Refusal) -> None:
        """Note that a response was not stored."""
        self.refusals[reason] = self.refusals.get(reason, 0) + 1
        if self._observers:
            self.emit(Refused(key, reason))

    def forwarded(self, key: CacheKey, fwd: Fwd) -> None:
        """Note that a request went to the app."""
        self.forwards[fwd] = self.forwards.get(fwd, 0) + 1
        if self._observers:
            self.emit(Forwarded(key, fwd))

    def failed(self, operation: str, error: BaseException) -> None:
        """Note a failure of the cache itself, which no request feels."""
        self.failures += 1
        # Of an error that is not ours the name alone: its words may be those of a request.
        said = error if isinstance(error, EchoCacheError) else type(error).__name__
        logger.debug("cache failure in %s: %r", operation, said)
        now = self._failed_at = self.clock.time()
        if self._trouble_until is None or now >= self._trouble_until:
            self._trouble_until = now + _QUIET_SECONDS
            logger.warning("the cache is in trouble (%s: %s); requests go on without it", operation, said)
        if self._observers:
            self.emit(CacheFailed(operation, error))

    def _is_calm(self) -> bool:
        """
        Say whether the store, which has just answered, has had no trouble for a while.

        One answer does not tell: memory answers for Redis where it can, and a Redis that refuses writes can be read.
        """
        errors, known = self.store.stats().errors, self._store_errors
        self._store_errors = errors
        return errors == known and self.clock.time() >= self._failed_at + _CALM_SECONDS

    def _hear(self, event: Event) -> None:
        """Take what the store has to tell."""
        if isinstance(event, CacheFailed):
            self.failed(event.operation, event.error)
        else:
            self.emit(event)

    def emit(self, event: Event) -> None:
        """Tell the observers."""
        for observer in self._observers:
            try:
                observer(event)
            except Exception:
                logger.exception("an observer failed at %s", type(event).__name__)

    # What is remembered of keys: whether waiting is worth it, and what they vary on.

    def is_uncacheable(self, lane: Lane) -> bool:
        """Say whether *lane* lately had a response not to be shared, so that its requests need not wait."""
        return self._uncacheable.get(lane) is not None

    def remember_uncacheable(self, lane: Lane) -> None:
        """Let the requests of *lane* pass beside each other for `hit_for_miss` seconds, or until one can be stored."""
        if _is_short(lane[0]):
            self._uncacheable.put(lane, True)

    def flight_key(self, key: CacheKey, headers: Headers) -> Vary:
        """Return what, beside *key*, selects the call that a request with *headers* may share: what it varies on."""
        names = self._varies.get(key)
        return policy.variant_fields(headers, names) if names else ()

    def remember_vary(self, key: CacheKey, vary: Vary) -> None:
        """Remember what *key* varies on."""
        if _is_short(key):
            self._varies.put(key, tuple(name for name, _ in vary))

    # Invalidation.

    async def invalidate(
        self,
        *,
        url: str | None = None,
        tags: Iterable[str] = (),
        prefix: str | None = None,
        soft: bool = False,
    ) -> InvalidationResult:
        """
        Make what matches gone, or stale if *soft*, before this returns.

        url: absolute, or a path ("/products/7?full=1"): of the current request's origin in a handler, of every origin
        elsewhere. tags: cache groups. prefix: the beginning of a path, or of an absolute URL's.

        Raises ConfigurationError for a URL that is none, and when nothing is named.
        """
        if isinstance(tags, str):
            raise ConfigurationError(f"tags must be a list of strings, not {tags!r}")
        marks = [Invalidation(Kind.GROUP, tag[: fields.MAX_GROUP_CHARS], soft) for tag in tags]
        keys: list[CacheKey] = []
        if url is not None:
            mark = self._url_mark(url, soft)
            marks.append(mark)
            if mark.kind is Kind.KEY:
                key: CacheKey = mark.target  # type: ignore[assignment]  # a KEY mark's target is a key
                # The same URL where the server gives no raw path.
                decoded = policy.decoded_key(key)
                keys += [key, decoded]
                marks.append(Invalidation(Kind.KEY, decoded, soft))
        if prefix is not None:
            marks.append(self._prefix_mark(prefix, soft))
        if not marks:
            raise ConfigurationError("invalidate needs url=, tags= or prefix=; use clear() for everything")
        return await self._apply(marks, () if soft else keys)

    async def clear(self) -> InvalidationResult:
        """Make everything gone, here and in Redis."""
        result = await self._apply([Invalidation(Kind.ALL)], ())
        await self._finish("clear", self.store.clear())
        return result

    async def invalidate_by_request(self, request: Request, status: int, headers: Headers) -> None:
        """Invalidate what the answer to an unsafe *request* makes stale: RFC 9111 section 4.4 and RFC 9875."""
        keys = policy.invalidated_keys(request, status, headers, self.options)
        groups = policy.invalidated_groups(request, status, headers)
        if keys or groups:
            marks = [Invalidation(Kind.KEY, key) for key in keys]
            _, scheme, host, _, _ = policy.primary_key(request, self.options)
            marks += [Invalidation(Kind.ORIGIN_GROUP, (scheme, host, group)) for group in groups]
            await self._apply(marks, keys)

    async def _apply(self, marks: Iterable[Invalidation], keys: Iterable[CacheKey]) -> InvalidationResult:
        position = 0
        for mark in marks:
            position = self.log.append(mark)
            if self._observers:
                self.emit(Invalidated(mark.kind, mark.soft))
        await asyncio.gather(*(self._finish("delete", self.store.delete(key)) for key in keys))
        return InvalidationResult(position, propagated=False)

    def _url_mark(self, url: str, soft: bool) -> Invalidation:
        exchange = current_exchange.get()
        base = exchange.key if exchange is not None and exchange.cache is self else None
        if base is None and url.startswith("/"):
            _, _, _, path, query = policy.key_of_url("http://any" + url, self.options)
            return Invalidation(Kind.PATH, (path, query), soft)
        return Invalidation(Kind.KEY, policy.key_of_url(url, self.options, base), soft)

    def _prefix_mark(self, prefix: str, soft: bool) -> Invalidation:
        everywhere = prefix.startswith("/")
        _, scheme, host, path, query = policy.key_of_url("http://any" + prefix if everywhere else prefix, self.options)
        if query:
            raise ConfigurationError(f"prefix is the beginning of a path, without a query: {prefix!r}")
        return Invalidation(Kind.PREFIX, (None, None, path) if everywhere else (scheme, host, path), soft)

    def tag(self, *tags: str) -> None:
        """
        Add cache groups to the response of the request that is being handled; works in handlers and in threads.

        Raises ConfigurationError outside of a request that went through this cache's middleware.
        """
        exchange = current_exchange.get()
        if exchange is None or exchange.cache is not self:
            raise ConfigurationError("cache.tag() works in a handler behind HTTPCacheMiddleware only")
        exchange.tags.extend(tags)

    # Management.

    @contextlib.contextmanager
    def disabled(self) -> Iterator[None]:
        """Within this context every request goes to the app and nothing is stored: for tests."""
        self._off += 1
        try:
            yield
        finally:
            self._off -= 1

    @property
    def is_disabled(self) -> bool:
        """Whether requests pass by the cache."""
        return self._off > 0

    def stats(self) -> CacheCounters:
        """Return a snapshot of the counters."""
        return CacheCounters(
            self.hits,
            self.stale_hits,
            dict(self.forwards),
            self.collapsed,
            self.stored,
            dict(self.refusals),
            self.failures,
            self.store.stats(),
        )

    def reset_counters(self) -> None:
        """Begin to count anew; the store's own counters go on."""
        self.hits = 0
        self.stale_hits = 0
        self.collapsed = 0
        self.stored = 0
        self.failures = 0
        self.forwards: dict[str, int] = {}
        self.refusals: dict[str, int] = {}

    # Tasks and shutdown.

    def spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        """Run *work* in a task that the cache owns."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _finish(self, operation: str, work: Coroutine[Any, Any, Any]) -> None:
        """Await what a store still has to do; trouble is an event."""
        try:
            await work
        except Exception as error:
            self.failed(operation, error)

    async def aclose(self, deadline: float = 5.0) -> None:
        """Finish the calls and writes under way within *deadline* seconds each, and close the store's connections."""
        try:
            await self.flights.aclose(deadline)
            loop = asyncio.get_running_loop()
            # Those of a loop that has ended cannot be waited for any more.
            self._tasks = {task for task in self._tasks if task.get_loop() is loop}
            if self._tasks:
                _, late = await asyncio.wait(set(self._tasks), timeout=deadline)
                for task in late:
                    task.cancel()
                if late:
                    await asyncio.wait(late)
                    logger.warning("%d writes to the store were not finished within %s s", len(late), deadline)
        finally:
            await self._finish("aclose", self.store.aclose())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()


def _is_short(key: CacheKey) -> bool:
    _, _, host, path, query = key
    return len(path) + len(query) + len(host or b"") <= _MAX_REMEMBERED_KEY_BYTES
