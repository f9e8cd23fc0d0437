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
import time
from collections.abc import AsyncIterable, Callable, Coroutine, Iterable, Iterator, MutableMapping, Sequence
from hashlib import blake2b
from types import TracebackType
from typing import Any, Final, Self

from echo_cache import fields, policy
from echo_cache.cache.counters import CacheCounters, RouteCounters, Totals, route_counters
from echo_cache.cache.invalidating import InvalidationResult, named_keys, named_marks, require_tag
from echo_cache.cache.looks import UNANSWERED, Found, Lane, Look
from echo_cache.cache.ready import Ready, Variants
from echo_cache.cache.remembered import Remembered, is_short
from echo_cache.cache.report import Report, encode_report, report_of
from echo_cache.cache.threads import run_alone, run_in_loop
from echo_cache.cache.warming import App, Progress, Warmable, Warming, WarmReport
from echo_cache.coordination.clock import Clock, SystemClock
from echo_cache.coordination.exchange import current_exchange
from echo_cache.coordination.flight import Flights, Passenger, Receive
from echo_cache.coordination.lease import Leases
from echo_cache.coordination.log import Appended, Log, Since
from echo_cache.coordination.logs import log_of, server_of
from echo_cache.coordination.marks import Invalidation, Kind, Verdict
from echo_cache.coordination.workers import MAX_REPORT_BYTES, Identity, Workers
from echo_cache.errors import ConfigurationError, EchoCacheError, NotPropagated, StoreError
from echo_cache.events import CacheFailed, Event, Forwarded, Invalidated, Observer, Refused, Stored
from echo_cache.model import CacheKey, Entry, Fwd, Headers, Refusal, Request, Vary
from echo_cache.options import (
    CoordinationOptions,
    PolicyOptions,
    RequestDirectiveMode,
    UnsyncedMode,
    positive_int,
    seconds,
)
from echo_cache.policy.keys import CREDENTIAL_FIELDS, FORM, FORM_DECODED, canonical_host
from echo_cache.stores.base import Held, Match, Store
from echo_cache.tallies import Favourites, Tallies

__all__ = ["Cache"]

logger = logging.getLogger("echo_cache")

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
# What the keys of responses begin with.
_FORMS: Final = frozenset({FORM, FORM_DECODED})
# How many hosts are remembered in their canonical form. Clients choose what they send, so it is bounded.
_MAX_HOSTS: Final = 1024
# No host name is longer (RFC 1035 section 2.3.4), its port included.
_MAX_HOST_BYTES: Final = 261
# How long trouble goes on without another line in the log.
_QUIET_SECONDS: Final = 60.0
# How long nothing must have failed before it is called over. A breaker that is open makes requests fail all the time.
_CALM_SECONDS: Final = 5.0
# How many cancelled look-ups a request waits for before it looks for itself.
_MAX_LOOKS_WAITED_FOR: Final = 3
# What the clocks of two machines may differ by, as Redis's time is an estimate.
_CLOCKS_AGREE: Final = 1.0
# How often in `max_unsynced` an idle log is heard: a heartbeat that is late does no harm.
_HEARTBEATS: Final = 4


class Cache:
    """
    A shared HTTP cache over *store*.

    store: where entries live. policy: the rules; the safe defaults if None. name: what Cache-Status calls it.
    fill_timeout: seconds after which requests stop waiting for another request's call of the app.
    coordination: how the workers that share a Redis act together.
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
        coordination: CoordinationOptions | None = None,
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
        if coordination is not None and not isinstance(coordination, CoordinationOptions):
            raise ConfigurationError(f"coordination must be a CoordinationOptions, not {coordination!r}")
        if not name or not name.isprintable() or not name.isascii():
            raise ConfigurationError(f"name must be printable ASCII, for the Cache-Status field; not {name!r}")
        self.store: Final = store
        self.options: Final = policy if policy is not None else PolicyOptions()
        self.name: Final = name
        self.clock: Final = clock if clock is not None else SystemClock()
        self.coordination: Final = coordination if coordination is not None else CoordinationOptions()
        self.log: Final = log if log is not None else log_of(store, self.clock)
        self.log.expect(self.coordination.max_unsynced / _HEARTBEATS)
        self.log.observe(self._hear)
        self.flights: Final = Flights(seconds("fill_timeout", fill_timeout), self.coordination.max_refreshes)
        self._other_flights: list[Flights] = []
        self.leases: Final = self._make_leases()
        # The workers that share the store's server; None where there is none.
        self._identity = Identity()
        self.workers: Final = self._make_workers()
        self.max_filling_bytes: Final = 8 * self.options.max_body_bytes
        self._observers = tuple(observers)
        self._status_name = fields.cache_status_member(name)
        ignore = self.options.request_directives is RequestDirectiveMode.IGNORE
        self._noted = _NOTED - _DIRECTIVE_FIELDS if ignore else _NOTED
        self._plain_query = not (self.options.ignored_query_parameters or self.options.sort_query)

        # What was done, by route; it only grows. What it was when counting began anew.
        self.tallies: Final = Tallies()
        self._before = Totals({}, 0, 0)
        # What is hit most: hits of memory, noted once a second, and of levels below.
        self.favourites: Final = Favourites()

        self._made_at = time.monotonic()
        # All state belongs to the event loop, but for `disabled`, which tests set from anywhere.
        self.failures = 0
        self.invalidations = 0
        self.filling_bytes = 0
        # The middleware, and what surrounds it; the last one that was made.
        self._app: tuple[App, Callable[[], MutableMapping[str, Any]]] | None = None
        # Where `invalidate_sync` has its work done.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._off = 0
        self._hosts: dict[tuple[str, bytes | None], bytes | None] = {}
        self._uncacheable: Remembered[Lane, bool] = Remembered(self.options.hit_for_miss, self.clock)
        self._varies: Remembered[CacheKey, tuple[bytes, ...]] = Remembered(3600.0, self.clock)
        # Whose refresh failed a moment ago.
        self._unrefreshable: Remembered[Lane, bool] = Remembered(self.coordination.refresh_pause, self.clock)
        self._tasks: set[asyncio.Task[Any]] = set()
        # What ends what would go on for ever: streams of statistics.
        self._at_close: tuple[Callable[[], object], ...] = ()
        # Who looks below memory, by what may share a call of the app.
        self._looking: dict[tuple[Lane, Vary], Look] = {}
        # Trouble is told once a minute, not once a request; None when there is none.
        self._trouble_until: float | None = None
        # When the cache last failed, and what the store had counted by then.
        self._failed_at = 0.0
        self._store_errors = 0
        observe = getattr(store, "observe", None)
        if callable(observe):
            observe(self._hear)
        self._hit_path = (store.get_nowait, self.clock.time)
        # Asks the level below memory, whatever memory has; None where the store has no such level.
        self._get_below: Any = getattr(store, "get_below", None)
        # Whether a look-up with `get` may find what memory does not have.
        self.looks_further: Final = getattr(store, "remote", True)

    def __repr__(self) -> str:
        state = "disabled" if self._off else f"{len(self.flights)} flights, {len(self._tasks)} writes"
        return f"<Cache {self.name!r} [{state}] over {self.store!r}>"

    def _make_leases(self) -> Leases | None:
        server, options = server_of(self.store), self.coordination
        if server is None or not options.lease_wait:
            return None
        return Leases(server, ttl=options.lease_ttl, wait=options.lease_wait)

    def _make_workers(self) -> Workers | None:
        server, every = server_of(self.store), self.coordination.report_every
        if server is None or not every:
            return None
        return Workers(
            server, self._identity, lambda: encode_report(self.report(), MAX_REPORT_BYTES), every, self.reset_stats
        )

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
        if now >= ready.until and not self._renewed(key, ready, now):
            return self._unused()
        if ready.checked != self.log.version and not self._still_stands(key, ready):
            return self._unused()
        if credentials and ready.anonymous_only:
            return self._unused()
        ready.tally.l1_hits += 1
        ready.hits += 1
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
                ready = held.memo = self._make_ready(held.entry)
                return ready
            variants = held.memo = Variants(held, self._make_ready)
        found: Ready | None = variants.select(headers)
        return found

    def _make_ready(self, entry: Entry) -> Ready:
        return Ready(entry, self._status_name, self.tallies.of(entry.route))

    def _still_stands(self, key: CacheKey, ready: Ready) -> bool:
        """Check the marks that came since the last check; once per entry and mark, not once per hit."""
        version = self.log.version
        if self.log.verdict(key, ready.entry) is not None:
            self._note_hits_of(key, ready)
            return False
        ready.checked = version
        return True

    def _renewed(self, key: CacheKey, ready: Ready, now: float) -> bool:
        """
        Look at *ready* again, as once a second: whether it may be relied on, and whether a refresh is due.

        Returns False for what the general path decides on.
        """
        self._note_hits_of(key, ready)
        if now >= ready.fresh_until:
            return False
        self._follow()
        trusted = self._trusted_for(ready.entry, now)
        if trusted < 0:
            return False
        # Before the fields are made anew: the next hits of this second are not asked again.
        ready.renew(now, now + trusted)
        if self.options.early_refresh is not None and now >= policy.refresh_from(ready.entry, self.options):
            return False
        self.note_hits(key, 1)
        ready.hits = -1  # the one at hand, which is counted yet
        return True

    def _note_hits_of(self, key: CacheKey, ready: Ready) -> None:
        if ready.hits > 0:
            self.note_hits(key, ready.hits)
            ready.hits = 0

    def note_hits(self, key: CacheKey, hits: int) -> None:
        """Note what is hit, for whoever asks what is hit most."""
        if is_short(key):
            self.favourites.add(key, hits)

    def _trusted_for(self, entry: Entry, now: float) -> float:
        """
        Return for how many more seconds *entry* may be used, as far as the log is heard; below 0: not any more.

        While it is not heard, what is younger than `max_unsynced` cannot have been invalidated for longer than that.
        """
        limit = self.coordination.max_unsynced
        left = limit - self.log.unheard_for()
        if left < 0 and self.coordination.unsynced == UnsyncedMode.CAP:
            age = now - entry.generated_at
            # A clock that was set back says nothing of its age; two machines' clocks agree to within a second.
            return limit - age if age >= -_CLOCKS_AGREE else left
        return left

    def _remember_host(self, scheme: str, host: bytes | None) -> bytes | None:
        canonical = canonical_host(scheme, host)
        if len(self._hosts) < _MAX_HOSTS and (host is None or len(host) <= _MAX_HOST_BYTES):
            self._hosts[scheme, host] = canonical
        return canonical

    # Look-up.

    def join(self, call: tuple[Lane, Vary], receive: Receive) -> Passenger | None:
        """Return a place for a plain GET on *call* of the app, if that was started in this turn of the event loop."""
        # One that is made while another is handled might wait for itself.
        return self.flights.join(call, receive, self.log.version) if current_exchange.get() is None else None

    async def look_further(self, lane: Lane, headers: Headers, receive: Receive) -> Ready | Found | Passenger | None:
        """
        Return the response that answers a plain GET, for which memory has nothing, from a level below as it is.

        Otherwise what was found there, for the general path to decide on, or a place on the call of the app by another
        request that has looked for the same; None when the app is being called for the same already. Those who look for
        the same at the same time look once. They need no flight for that: where memory is small, hits below are many,
        and what a look may cost and who may leave it the store sees to.
        """
        key = lane[0]
        call = lane, self.flight_key(key, headers)
        look = self._looking.get(call)
        if look is not None:
            found = await self._find_with_others(look, call, headers, receive)
        elif self.flights.is_open(call, foreground=True) or self.is_uncacheable(lane):
            return None
        else:
            found = await self._find_for_others(call, headers)
        if isinstance(found, Passenger):
            return found
        entry, _ = found
        if entry is None or entry.always_validate or (lane[1] and entry.anonymous_only):
            return found
        now = self.clock.time()
        if now >= min(entry.fresh_until, policy.refresh_from(entry, self.options)):
            return found
        ready = self.ready_of(entry, now)
        ready.tally.l2_hits += 1
        self.note_hits(key, 1)
        return ready

    def ready_of(self, entry: Entry, now: float) -> Ready:
        """Return *entry*, which is not in memory, as the hit path would send it."""
        ready = self._make_ready(entry)
        ready.renew(now, now)
        return ready

    async def _find_with_others(
        self, look: Look | None, call: tuple[Lane, Vary], headers: Headers, receive: Receive
    ) -> Found | Passenger:
        """Find what a request with *headers* selects, by the *look* of those who look for the same right now."""
        (key, _), _ = call
        for _ in range(_MAX_LOOKS_WAITED_FOR):
            if look is None or look.loop is not asyncio.get_running_loop():
                break
            found = await look.found(receive)
            if isinstance(found, Passenger):
                return found
            if found is not None:
                return found if self._is_found_for(call, found, headers) else await self.find(key, headers)
            # Who looked was cancelled, and one of those who waited looks now.
            look = self._looking.get(call)
        return await (self.find(key, headers) if call in self._looking else self._find_for_others(call, headers))

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
        look = self._looking[call] = Look(asyncio.get_running_loop())
        found: Found | None = None
        try:
            found = await self.find(key, headers)
        except Exception:
            found = None, False  # those who wait would have no more luck with the same bug
            raise
        finally:
            if self._looking.get(call) is look:  # it may be another event loop's
                del self._looking[call]
            look.settle(found, lambda receive: self.join(call, receive))
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
                    found = self.standing(key, entry)
                    break
                others = True
            held = held.next
        if found is None and first is not None:
            self.store.unused()
        return found, others

    async def find(self, key: CacheKey, headers: Headers, *, anew: bool = False) -> Found:
        """
        Return the newest entry at any level that a request with *headers* selects, and whether others are known of.

        A store in trouble is an event, and UNANSWERED if there is nothing else to give. *anew*: what is below memory is
        asked for whatever memory has: another worker is said to have filled it.
        """
        rejected = False

        def select(vary: Vary) -> bool:
            nonlocal rejected
            if not vary or policy.matches(vary, headers):
                return True
            rejected = True
            return False

        doubted: Entry | None = None
        failed = False
        try:
            if self.looks_further:
                doubted = self._doubted_in_memory(key, select, anew=anew)
            get = self.store.get if doubted is None else self._get_below
            entry = await (get(key, select) if self.log.known else self._get_in_the_beginning(get(key, select)))
        except StoreError as error:
            self.failed("get", error)
            entry, failed = None, True
            if self.leases is not None:
                self.leases.pause()
        else:
            if self._trouble_until is not None and self.looks_further and self._is_calm():
                self._trouble_until = None
                logger.info("the store answers again")
        standing = None if entry is None else self.standing(key, entry)
        if standing is None and doubted is not None:
            standing = self.standing(key, doubted)
        if standing is None or self.clock.time() > standing.retain_until:
            return UNANSWERED if failed else (None, rejected)
        return standing, rejected

    async def _get_in_the_beginning(self, getting: Coroutine[Any, Any, Entry | None]) -> Entry | None:
        """
        Await *getting*, and the log, both at once, so that nobody waits twice.

        The log says what is worth something of what was found, and is what a fill that follows will have seen.
        """
        log = self.spawn(self.log.ready())
        try:
            return await getting
        finally:
            await asyncio.wait([log])

    def _doubted_in_memory(self, key: CacheKey, match: Match, *, anew: bool) -> Entry | None:
        """Return the entry in memory that the store would answer with, if it does not stand; *anew*: or if it does."""
        if self._get_below is None:
            return None
        try:
            first = held = self.store.get_nowait(key)
        except Exception:
            return None  # the store finds it out as well, and goes on to the level below
        if first is not None:
            self.store.unused()
        while held is not None:
            entry = held.entry
            if self.clock.time() <= entry.retain_until and match(entry.vary):
                return None if self.standing(key, entry) is entry and not anew else entry
            held = held.next
        return None

    def standing(self, key: CacheKey, entry: Entry) -> Entry | None:
        """Return *entry* as the log leaves it: as it is, stale, to be confirmed by the app, or not at all."""
        log = self.log
        verdict = log.verdict(key, entry) if log.version else None
        if verdict is Verdict.GONE:
            return None
        now = self.clock.time()
        if verdict is Verdict.DOUBTFUL or self._trusted_for(entry, now) < 0:
            # As with no-cache: neither stale windows nor stale-if-error apply to what may have been invalidated.
            return entry._replace(always_validate=True)
        if verdict is None:
            return entry
        return entry._replace(fresh_until=min(entry.fresh_until, log.softened_at(key, entry), now))

    # Values: entries that no request selects, under keys of their own.

    def fresh_nowait(self, key: CacheKey) -> Entry | None:
        """Return the entry in memory under *key* if it is fresh and stands; memory in trouble is an event."""
        if self._off:
            return None
        try:
            held = self.store.get_nowait(key)
            if held is None:
                return None
            entry = held.entry
            if self.clock.time() < entry.fresh_until and self.standing(key, entry) is entry:
                return entry
            self.store.unused()
        except Exception as error:
            self.failed("get", error)
        return None

    async def fresh(self, key: CacheKey, *, anew: bool = False) -> Entry | None:
        """Return the entry at any level under *key* if it is fresh and stands. *anew*: see `find`. Never raises."""
        if self._off:
            return None
        try:
            entry, _ = await self.find(key, (), anew=anew)
        except Exception as error:
            self.failed("get", error)
            return None
        if entry is None or entry.always_validate or self.clock.time() >= entry.fresh_until:
            return None
        return entry

    async def invalidate_key(self, key: CacheKey, *, strict: bool = False) -> InvalidationResult:
        """Make what is stored under *key* gone, as `invalidate` does."""
        return await self._apply([Invalidation(Kind.KEY, key)], [key], strict=strict)

    async def invalidate_space(self, space: str, *, strict: bool = False) -> InvalidationResult:
        """Make all values gone whose keys have *space* in the place of the scheme."""
        return await self._apply([Invalidation(Kind.PREFIX, (space, None, b""))], (), strict=strict)

    async def supersede(self, key: CacheKey, since: int, groups: tuple[str, ...] = ()) -> Appended:
        """
        Make what is stored under *key* gone, as it was changed, which began when the log stood at *since*.

        Where that `is_alone`, nothing else has invalidated the key or *groups* since then: what was written is the
        newest there is, and may be stored with the position of the mark. Else another may have changed it.
        """
        appended = await self.log.append([Invalidation(Kind.KEY, key)], Since(since, key, groups))
        if appended.trouble is not None:
            self.failed("invalidate", appended.trouble)
        if self._observers:
            self.emit(Invalidated(Kind.KEY, False))
        if not appended.is_alone:
            self.forget(key)
        return appended

    # Storing.

    def keep(self, key: CacheKey, entry: Entry) -> asyncio.Task[None] | None:
        """
        Store *entry*: visible in memory when this returns, in Redis soon after, in a task that no request owns.

        An entry whose fill was overtaken by an invalidation is not stored. Returns the task, None if there is none.
        """
        if self._off:
            return None
        task: asyncio.Task[None] | None = None
        try:
            if self.log.version and self.log.verdict(key, entry) is Verdict.GONE:
                self.refused(key, Refusal.OVERTAKEN, entry.route)
                return None
            if not entry.always_validate and entry.fresh_until > self.clock.time():
                # What is only stored to be validated is no reason to wait for each other again.
                self._uncacheable.forget((key, False))
                if not entry.anonymous_only:
                    self._uncacheable.forget((key, True))
            rest = self.store.put(key, entry)
            if rest is not None:
                task = self.spawn(self._finish("set", rest))
            if key[0] in _FORMS:  # else it is a value, which its own statistics count
                self.tallies.of(entry.route).stored += 1
            if self._observers:
                lifetime = entry.fresh_until - self.clock.time()
                self.emit(Stored(key, len(entry.response.body), lifetime))
        except Exception as error:
            self.failed("set", error)
        return task

    async def settled(self, stored: asyncio.Task[None] | None) -> None:
        """Wait until what was *stored* can be found below memory, where that is to be expected. Never raises."""
        if stored is not None:
            await asyncio.wait([stored])
        flush = getattr(self.store, "flush", None)
        if flush is not None:
            await self._finish("flush", flush())

    def forget(self, key: CacheKey) -> None:
        """Drop what is stored under *key*, at all levels, in a task that no request owns."""
        self.spawn(self._finish("delete", self.store.delete(key)))

    def refused(self, key: CacheKey, reason: Refusal, route: str = "") -> None:
        """Note that a response was not stored."""
        self.tallies.of(route).refused(reason)
        if self._observers:
            self.emit(Refused(key, reason, route))

    def forwarded(self, key: CacheKey, fwd: Fwd) -> None:
        """Tell that a request goes to the app; it is counted when the app's router has chosen a route for it."""
        self._follow()
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

    def add_observer(self, observer: Observer) -> None:
        """Call *observer* with every event that is not a hit, from now on."""
        if not callable(observer):
            raise ConfigurationError(f"an observer is a function of an event, not {observer!r}")
        self._observers = (*self._observers, observer)

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
        if is_short(lane[0]):
            self._uncacheable.put(lane, True)

    def is_unrefreshable(self, lane: Lane) -> bool:
        """Say whether a refresh of *lane* failed a moment ago."""
        return self._unrefreshable.get(lane) is not None

    def remember_unrefreshable(self, lane: Lane) -> None:
        """Start no refresh of *lane* for `refresh_pause` seconds."""
        if is_short(lane[0]):
            self._unrefreshable.put(lane, True)

    def digest_of(self, call: tuple[Lane, Vary]) -> str:
        """Return what names *call* among all workers: who would share it in one process shares it between them."""
        return blake2b(repr(call).encode(), digest_size=16).hexdigest()

    def flight_key(self, key: CacheKey, headers: Headers) -> Vary:
        """Return what, beside *key*, selects the call that a request with *headers* may share: what it varies on."""
        names = self._varies.get(key)
        return policy.variant_fields(headers, names) if names else ()

    def remember_vary(self, key: CacheKey, vary: Vary) -> None:
        """Remember what *key* varies on."""
        if is_short(key):
            self._varies.put(key, tuple(name for name, _ in vary))

    # Invalidation.

    async def invalidate(
        self,
        *,
        url: str | None = None,
        tags: Iterable[str] = (),
        prefix: str | None = None,
        soft: bool = False,
        strict: bool = False,
    ) -> InvalidationResult:
        """
        Make what matches gone, or stale if *soft*: in this worker before this returns, in the others soon after.

        url: absolute, or a path ("/products/7?full=1"): of the current request's origin in a handler, of every origin
        elsewhere. tags: cache groups. prefix: the beginning of a path, or of an absolute URL's. A fill that began
        before this and ends after it stores nothing that is ever used.

        Where Redis cannot be told, the result says so, and it is told when it is back; *strict* raises NotPropagated
        instead, and this worker acts on it, and tells it, all the same.

        Raises ConfigurationError for a URL that is none, and when nothing is named.
        """
        exchange = current_exchange.get()
        base = exchange.key if exchange is not None and exchange.cache is self else None
        marks = named_marks(url=url, tags=tags, prefix=prefix, soft=soft, options=self.options, base=base)
        return await self._apply(marks, named_keys(marks), strict=strict)

    async def clear(self, *, soft: bool = False, strict: bool = False) -> InvalidationResult:
        """
        Make everything gone, here, in Redis and in all workers; only stale if *soft*.

        *strict* is that of `invalidate`.
        """
        result = await self._apply([Invalidation(Kind.ALL, soft=soft)], (), strict=strict)
        if not soft:
            await self._finish("clear", self.store.clear())
        return result

    def invalidate_sync(
        self,
        *,
        url: str | None = None,
        tags: Iterable[str] = (),
        prefix: str | None = None,
        soft: bool = False,
        strict: bool = False,
        timeout: float = 5.0,
    ) -> InvalidationResult:
        """
        Do as `invalidate` does, from a thread: a handler that is no coroutine function, or a job.

        It is done in the event loop that this cache's requests are handled in; where none runs, in one of its own.
        Raises ConfigurationError in an event loop's own thread, where it would wait for itself, and TimeoutError after
        *timeout* seconds; it is done all the same then.
        """
        exchange = current_exchange.get()
        base = exchange.key if exchange is not None and exchange.cache is self else None
        marks = named_marks(url=url, tags=tags, prefix=prefix, soft=soft, options=self.options, base=base)
        loop = self._loop if exchange is None else exchange.loop
        if loop is not None and loop.is_running():
            return run_in_loop(self._apply(marks, named_keys(marks), strict=strict), loop, timeout)
        # Memory and queues are of a loop that is not there: the log is told, and they look into it before they answer.
        return run_alone(self._apply(marks, (), strict=strict), self._leave_loop, timeout)

    async def _leave_loop(self) -> None:
        """Leave nothing of the log and of its server behind in this event loop."""
        await self.log.aclose(1.0)
        aclose = getattr(server_of(self.store), "aclose", None)
        if aclose is not None:
            await self._finish("aclose", aclose())

    async def invalidate_by_request(self, request: Request, status: int, headers: Headers) -> None:
        """Invalidate what the answer to an unsafe *request* makes stale: RFC 9111 section 4.4 and RFC 9875."""
        keys = policy.invalidated_keys(request, status, headers, self.options)
        groups = policy.invalidated_groups(request, status, headers)
        if keys or groups:
            marks = [Invalidation(Kind.KEY, key) for key in keys]
            _, scheme, host, _, _ = policy.primary_key(request, self.options)
            marks += [Invalidation(Kind.ORIGIN_GROUP, (scheme, host, group)) for group in groups]
            await self._apply(marks, keys)

    async def _apply(
        self, marks: Sequence[Invalidation], keys: Iterable[CacheKey], *, strict: bool = False
    ) -> InvalidationResult:
        """Append *marks*, and free the room that *keys* take at all levels meanwhile."""
        freeing = [self.spawn(self._finish("delete", self.store.delete(key))) for key in keys]
        appended = await self.log.append(marks)
        if freeing:
            await asyncio.wait(freeing)
        self.invalidations += len(marks)
        for mark in marks if self._observers else ():
            self.emit(Invalidated(mark.kind, mark.soft))
        if appended.trouble is not None:
            self.failed("invalidate", appended.trouble)
            if strict:
                raise NotPropagated(
                    f"this worker alone knows of the invalidation until Redis is back: {appended.trouble}"
                ) from appended.trouble
        return InvalidationResult(appended.position, propagated=appended.trouble is None)

    def tag(self, *tags: str) -> None:
        """
        Add cache groups to the response of the request that is being handled; works in handlers and in threads.

        Raises ConfigurationError outside of a request that went through this cache's middleware.
        """
        exchange = current_exchange.get()
        if exchange is None or exchange.cache is not self:
            raise ConfigurationError("cache.tag() works in a handler behind HTTPCacheMiddleware only")
        for tag in tags:
            require_tag(tag)
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
        return self.totals().counters(self.store.stats())

    def stats_of_routes(self) -> list[RouteCounters]:
        """Return a snapshot of the counters of each route, most requests first."""
        return self.totals().busiest()

    def totals(self) -> Totals:
        """Return all that was counted since counting began anew."""
        return self._totals().since(self._before)

    def report(self) -> Report:
        """Return this worker's report of itself: the counters, and how it is now."""
        return report_of(self)

    @property
    def worker_id(self) -> str:
        """What this process is called among the workers: its host, its number, and what makes it another one."""
        return self._identity.name

    @property
    def uptime(self) -> float:
        """How long ago the cache was made, in seconds."""
        return time.monotonic() - self._made_at

    @property
    def tasks_under_way(self) -> int:
        """How many tasks the cache owns that are not done: writes, deletes, what was spawned."""
        return len(self._tasks)

    def reset_counters(self) -> None:
        """Begin to count anew; the store's own counters go on."""
        self._before = self._totals()
        self.favourites.clear()

    def reset_stats(self) -> None:
        """Begin to count anew, in the store too."""
        self.reset_counters()
        reset = getattr(self.store, "reset_stats", None)
        if reset is not None:
            reset()

    def _totals(self) -> Totals:
        return Totals({one.route: route_counters(one) for one in self.tallies}, self.failures, self.invalidations)

    # Warming.

    def attach(self, app: App, surroundings: Callable[[], MutableMapping[str, Any]]) -> None:
        """Note the middleware *app*, through which `warm` calls; surroundings: what a server puts into its scopes."""
        self._app = app, surroundings

    @property
    def is_attached(self) -> bool:
        """Whether a middleware has been made with this cache: this process answers requests by it."""
        return self._app is not None

    async def warm(
        self,
        what: Iterable[Warmable] | AsyncIterable[Warmable],
        *,
        concurrency: int = 8,
        progress: Progress | None = None,
    ) -> WarmReport:
        """
        Fill the cache with the answers to *what*, by calling the app through this cache's middleware.

        what: absolute URLs, with the scheme and host that clients use, or Requests with fields of their own, from any
        iterable. concurrency: how many are asked for at a time. progress: a function or coroutine function that gets
        a WarmReport after each. What the app fails at is counted, and ends nothing.

        Raises ConfigurationError for what is no URL, and while no middleware has been made with this cache (Starlette
        makes it when the app starts).
        """
        if isinstance(what, str | bytes):
            raise ConfigurationError(f"warm takes a list of URLs, not {what!r}")
        positive_int("concurrency", concurrency)
        if self._app is None:
            raise ConfigurationError("warm needs an app: use it after HTTPCacheMiddleware(app, cache=...) was made")
        app, surroundings = self._app
        try:
            return await Warming(app, surroundings(), self.name, progress).run(what, concurrency)
        except* Exception as group:
            raise _first(group) from None

    # Tasks and shutdown.

    def make_flights(self, deadline: float) -> Flights:
        """Return flights of another *deadline*, for other things than responses; `aclose` ends them too."""
        flights = Flights(deadline)
        self._other_flights.append(flights)
        return flights

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run *work* in a task that the cache owns, and return it."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def at_close(self, callback: Callable[[], object]) -> None:
        """Call *callback* whenever the cache is closed, before anything is waited for. It must not raise."""
        self._at_close = (*self._at_close, callback)

    def start(self) -> None:
        """Begin to follow what other workers invalidate, in the running event loop; the first miss does it too."""
        self._loop = asyncio.get_running_loop()
        self._follow()

    def _follow(self) -> None:
        """See to it that the log is followed and this worker reports, in whatever event loop there is now."""
        self.log.follow()
        if self.workers is not None:
            self.workers.follow()

    async def _finish(self, operation: str, work: Coroutine[Any, Any, Any]) -> None:
        """Await what a store still has to do; trouble is an event."""
        try:
            await work
        except Exception as error:
            self.failed(operation, error)

    async def aclose(self, deadline: float = 5.0) -> None:
        """Finish the calls and writes under way within *deadline* seconds each, and close the store's connections."""
        for callback in self._at_close:
            callback()
        try:
            for flights in (self.flights, *self._other_flights):
                await flights.aclose(deadline)
            loop = asyncio.get_running_loop()
            # Those of a loop that has ended cannot be waited for any more.
            self._tasks.intersection_update([task for task in self._tasks if task.get_loop() is loop])
            if self._tasks:
                _, late = await asyncio.wait(set(self._tasks), timeout=deadline)
                for task in late:
                    task.cancel()
                if late:
                    await asyncio.wait(late)
                    logger.warning("%d writes to the store were not finished within %s s", len(late), deadline)
            if self.leases is not None:
                await self.leases.aclose(deadline)
            if self.workers is not None:
                await self.workers.aclose()
            await self.log.aclose(deadline)
        finally:
            await self._finish("aclose", self.store.aclose())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the first of the errors in *group* that is none itself."""
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
