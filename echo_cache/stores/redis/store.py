"""
Entries under names. The one rule: Redis can be slow, gone, wrong or hostile, and a caller gets an entry, a miss or a
StoreError in time.

    {prefix}:{format version}:{<digest of the key>}                 an entry that does not vary, or an index
    {prefix}:{format version}:{<digest of the key>}:<variant id>    an entry that varies; the index names it

The braces are Redis Cluster's: a key and its variants are in one slot. Names have no other characters than
[A-Za-z0-9:{}_-]. Every value expires by itself at its `retain_until`. Times in values are the server's. Works with
Redis 6.2 and later, and Valkey.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import re
import sys
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Hashable, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from echo_cache.codec import (
    FORMAT_VERSION,
    MAX_INDEX_ROWS,
    IndexRow,
    decode,
    decode_head,
    decode_index,
    decode_key,
    encode,
    encode_index,
    encode_index_row,
    key_digest,
    kind_of,
    variant_id,
)
from echo_cache.errors import CodecError, ConfigurationError, ForgedError, NotStorable, StoreError
from echo_cache.events import BreakerChanged, Observer
from echo_cache.fields import parse_content_length
from echo_cache.model import CacheKey, Entry, StoredResponse
from echo_cache.options import Duration, seconds
from echo_cache.policy.storing import CONNECTION_FIELDS
from echo_cache.stores.base import Held, Match, StoreStats
from echo_cache.stores.redis.breaker import BreakerState
from echo_cache.stores.redis.clock import ServerClock
from echo_cache.stores.redis.link import Failure, Limits, Link, Refused
from echo_cache.stores.redis.scripts import DELETE, SET_VARIANT, Script
from echo_cache.stores.redis.servers import Client, Words, place_of
from echo_cache.stores.redis.shared import SharedServer

if TYPE_CHECKING:
    from redis.asyncio import Redis, RedisCluster

__all__ = ["RedisStore"]

_T = TypeVar("_T")

_logger: Final = logging.getLogger("echo_cache")

_PREFIX: Final = re.compile(r"[A-Za-z0-9_-]+(:[A-Za-z0-9_-]+)*")

# Redis refuses expiries that overflow; ten years are forever for a cache.
_LONGEST_LIFE_MS: Final = 10 * 365 * 86_400_000

# Batches under way to one server at a time, of each kind, when it does not answer at once.
_UNDER_WAY: Final = 4

# Keys whose index is remembered, and the largest index that is: about 6 MiB at the worst, decoded rows included.
_REMEMBERED_INDEXES: Final = 512
_REMEMBERED_INDEX_BYTES: Final = 2_048
# Keys whose name is remembered, and how long they may be: a look-up in place of 1.7 us, and 2 MiB at the worst.
_REMEMBERED_NAMES: Final = 4_096
_REMEMBERED_NAME_BYTES: Final = 256

# How many variants are looked at one after the other: the first is the answer, unless Redis has evicted it. More would
# let whoever plants an index have a request read whatever it names.
_MOST_ROWS: Final = 3

# Managing goes a page at a time. No request waits for it, so a page gets at least a second.
_PAGE: Final = 500
_PAGE_TIMEOUT: Final = 1.0

# What `keys` reads of a value at first: nearly every head is shorter. The rest is read for those that are not.
_HEAD_BYTES: Final = 1_024
# A cursor of SCAN is a number of 64 bits.
_MOST_DIGITS: Final = 20
_LONGEST_HEAD_BYTES: Final = 1024 * 1024

# The same for `heads`, which wants the whole head.
_BEGINNING_BYTES: Final = 4 * 1024

# When such an entry becomes a variant, only Redis knows how long it lives: the row promises nothing, the entry says.
_UNVARYING_ROW: Final = encode_index_row(variant_id(()), 0.0, sys.float_info.max, ())


_ABOUT_THE_BODYS_END: Final = CONNECTION_FIELDS | {b"content-length"}

# A server's time before 2020 or after 2200 is none: a clock without a battery, or the reply to another question. To
# believe it would make entries of others fresh for years.
_EARLIEST: Final = 1_577_836_800.0
_LATEST: Final = 7_258_118_400.0

# 128 bits, if they are random: nobody guesses them.
_SECRET_BYTES: Final = 16


class _Clock(Protocol):
    def time(self) -> float: ...


class RedisStore:
    """
    A map in Redis, for any number of processes.

    server: where it is: a URL (see below), a redis.asyncio.Redis (also one that a Sentinel made by master_for), or a
        redis.asyncio.RedisCluster.
    prefix: what the names of our keys begin with: words of [A-Za-z0-9_-], joined by colons.
    timeout: the time that one operation may take as a whole, waiting for a connection included, in seconds.
    max_connections: how many connections each event loop may have to each server.
    max_body_bytes: larger bodies are neither stored nor read.
    max_variants: how many entries are kept for one key (1-64); beyond, the oldest go.
    secret: what entries are signed with, at least 16 bytes; of several, the first signs and all are accepted. What is
        not signed with one of them is a miss. None: whoever can write to Redis can write answers.
    breaker_failures: after so many failures in a row the server is not asked any more, and requests go on at once.
    probe_interval: how often it is then tried in the background, in seconds.
    clock: where the time comes from. None: the machine's clock, and what is written carries the server's time, so that
        machines whose clocks differ agree on what is fresh. A clock that is given is taken for the server's.

    URLs, with rediss in place of redis for TLS:

        redis://[user:password@]host[:port][/db]
        unix:///path/to.sock?db=0
        redis+sentinel://[user:password@]host[:port],host[:port]/service[/db]
        redis+cluster://[user:password@]host[:port],host[:port]

    IPv6 hosts stand in brackets. User and password are the servers'; sentinels have their own in the options
    sentinel_username and sentinel_password. Other options: db, username, password, client_name, ssl_*.

    Nothing connects before the first operation. Each event loop, and each process after a fork, has connections of its
    own. A ready client is used in one event loop only and is never closed here; its own time-outs and retries apply
    within *timeout*. It should have what a client made here has: Retry(NoBackoff(), 0), a BlockingConnectionPool,
    protocol=2; and it must not decode responses. Of a ready RedisCluster the addresses, credentials and TLS settings
    are used and its connections are not, so it may be used in several event loops.

    Whoever waits for an operation may be cancelled: the operation itself goes on in a task of the store, until it is
    done or its time is up. When its time is up its connection is closed, so that a late reply answers nobody. What is
    asked in one turn of the event loop goes out together.

    Raises ConfigurationError for a value that cannot work.
    """

    remote: bool = True

    def __init__(
        self,
        server: str | Redis | RedisCluster,
        *,
        prefix: str = "echo_cache",
        timeout: Duration = 0.1,
        max_connections: int = 16,
        max_body_bytes: int = 8 * 1024 * 1024,
        max_variants: int = 32,
        secret: str | bytes | Sequence[str | bytes] | None = None,
        breaker_failures: int = 3,
        probe_interval: Duration = 0.5,
        clock: _Clock | None = None,
    ) -> None:
        if not _PREFIX.fullmatch(prefix):
            raise ConfigurationError(f"prefix must be words of [A-Za-z0-9_-] joined by colons, not {prefix!r}")
        _require_whole("max_connections", max_connections)
        _require_whole("max_body_bytes", max_body_bytes)
        _require_whole("max_variants", max_variants, MAX_INDEX_ROWS)
        _require_whole("breaker_failures", breaker_failures)
        self.timeout: Final = _positive_seconds("timeout", timeout, "no operation could succeed")
        self.prefix: Final = prefix
        self.max_body_bytes: Final = max_body_bytes
        self.max_variants: Final = max_variants
        self._secrets = tuple(_for_prefix(one, prefix) for one in _secrets(secret))
        limits = Limits(
            timeout=self.timeout,
            under_way=min(_UNDER_WAY, max_connections),
            failures=breaker_failures,
            probe_interval=_positive_seconds("probe_interval", probe_interval, "it would be tried without a pause"),
        )
        self._now = time.time if clock is None else clock.time
        self._server_clock = ServerClock() if clock is None else None
        self._base = f"{prefix}:{FORMAT_VERSION}:"
        place = place_of(server, self.timeout, max_connections)
        self._server = SharedServer(place, prefix, limits, self._changed)

        # Of all event loops; counters may be off by a few under threads.
        # The index that each key was seen with: the guess that makes the next read one round trip.
        self._indexes: OrderedDict[str, tuple[bytes, list[IndexRow]]] = OrderedDict()
        self._names: dict[CacheKey, str] = {}
        self._observers: list[Observer] = []
        self._hits = 0
        self._misses = 0
        self._sets = 0
        self._evictions = 0
        self._errors = 0
        self._rejected = 0
        self._forged = 0

    def observe(self, observer: Observer) -> None:
        """Tell *observer* when the breaker opens or closes."""
        self._observers.append(observer)

    # --- the store ----------------------------------------------------------------------------------------------------

    def get_nowait(self, key: CacheKey) -> Held | None:
        """Return None: nothing is in memory here."""
        return None

    async def get(self, key: CacheKey, match: Match) -> Entry | None:
        """
        Return the newest entry under *key* whose `vary` satisfies *match*, or None.

        One round trip, for a varied key from the second read in this process on. A value that is not an entry of ours
        for this key is a miss, and is counted in `rejected`.
        Raises StoreError when Redis cannot be asked, StoreTimeout when it does not answer in time.
        """
        name = self._name(key)
        link = self._server.link()
        if self._server_clock is not None and self._server_clock.is_due():
            began = asyncio.get_running_loop().time()
            await self._set_clock(link, name)
            async with self._server.in_time("get", began):
                entry = await self._read(link, name, key, match)
        else:
            entry = await self._read(link, name, key, match)
        if entry is None:
            self._misses += 1
        else:
            self._hits += 1
        return entry

    async def set(self, key: CacheKey, entry: Entry) -> bool:
        """
        Keep *entry* under *key* beside its other variants, in place of the one with the same `vary`; one round trip.

        An entry with an empty `vary` takes the place of the index: the variants that it named cannot be found any
        more and expire by themselves.
        Returns False for an entry past its `retain_until`, and for one with a body over *max_body_bytes*.
        Raises StoreError; the entry may have been stored all the same if it is StoreTimeout, or if the caller is
        cancelled.
        """
        now = self._now()
        if now > entry.retain_until or len(entry.response.body) > self.max_body_bytes:
            return False
        name = self._name(key)
        link = self._server.link()
        if self._server_clock is not None and self._server_clock.is_due():
            began = asyncio.get_running_loop().time()
            await self._set_clock(link, name)
            async with self._server.in_time("set", began):
                await self._keep(link, name, key, entry, now)
        else:
            await self._keep(link, name, key, entry, now)
        self._sets += 1
        return True

    async def _keep(self, link: Link, name: str, key: CacheKey, entry: Entry, now: float) -> None:
        life_ms = str(min(max(math.ceil((entry.retain_until - now) * 1000), 1), _LONGEST_LIFE_MS))
        try:
            raw = self._encoded(key, entry)
            row = self._row(entry) if entry.vary else b""
        except CodecError as error:
            self._errors += 1
            raise NotStorable(f"the entry cannot be kept in Redis: {error}") from error
        if not row:
            reply = await self._server.write(link, "set", name, ("SET", name, raw, "PX", life_ms))
            if reply not in (b"OK", True):
                self._errors += 1
                raise StoreError(f"Redis at {self._server.location} did not confirm a set")
        else:
            keys = (name, _variant_name(name, variant_id(entry.vary)))
            words = (encode_index(key), row, _UNVARYING_ROW, str(self.max_variants), life_ms, raw)
            self._evictions += await self._run(link, "set", SET_VARIANT, keys, words)

    def _encoded(self, key: CacheKey, entry: Entry) -> bytes:
        if entry.mark < 0:
            # It counts what this process alone knows of. To all others it is a fill that has seen no invalidation.
            entry = entry._replace(mark=0)
        return encode(key, entry, secret=self._secrets[0] if self._secrets else None, shift=self._shift)

    def _row(self, entry: Entry) -> bytes:
        shift = self._shift
        return encode_index_row(variant_id(entry.vary), entry.stored_at + shift, entry.retain_until + shift, entry.vary)

    @property
    def _shift(self) -> float:
        """What is to be added to our time to get the server's."""
        return 0.0 if self._server_clock is None else self._server_clock.shift

    def put(self, key: CacheKey, entry: Entry) -> Coroutine[Any, Any, bool]:
        """Return `set`, to be awaited: nothing of it can be seen in memory."""
        return self.set(key, entry)

    def drop_nowait(self, key: CacheKey) -> None:
        """Do nothing: this process's memory has none of it."""

    def unused(self) -> None:
        """Do nothing: what is never found in memory is always used."""

    async def delete(self, key: CacheKey) -> bool:
        """Forget all variants under *key*; one round trip. Returns whether there was one. Raises StoreError."""
        name = self._name(key)
        head = encode_index(key)
        self._indexes.pop(name, None)
        return bool(await self._run(self._server.link(), "delete", DELETE, (name,), (head,)))

    async def clear(self) -> int:
        """
        Forget all keys of this prefix and of this format version, and nothing else.

        Returns how many keys there were; a key counts once, however many variants it has. Goes in pages, each in a
        second or *timeout* if that is longer. Raises StoreError; pages that were done stay done.
        """
        self._indexes.clear()
        count = 0
        async for names in self._pages("clear", self._base + "{*"):
            primary = [name for name in names if name.endswith(b"}")]
            variants = [name for name in names if not name.endswith(b"}")]
            for some in (primary, variants):
                if some:
                    gone = await self._page("clear", [("UNLINK", name) for name in some])
                    count += sum([reply for reply in gone if isinstance(reply, int)]) if some is primary else 0
        return count

    async def count(self) -> int:
        """Return how many keys there are, by asking for the names of all, a page at a time. Raises StoreError."""
        count = 0
        async for names in self._pages("count keys", self._base + "{*}"):
            count += len(names)
        return count

    async def keys(self) -> AsyncIterator[CacheKey]:
        """
        Iterate over the keys, in no order, a page at a time; what is not ours is left out, and counted in `rejected`.

        A key that is there from the beginning to the end is seen, and may be seen twice when the server resizes its
        table meanwhile (as SCAN promises no more). Raises StoreError.
        """
        async for names in self._pages("list keys", self._base + "{*}"):
            for key in await self._keys_of(names):
                yield key

    async def page(self, cursor: str, count: int) -> tuple[str, list[CacheKey]]:
        """
        Return about *count* keys from *cursor* on ("" is the beginning), and the cursor of the next page ("": none).

        A page may be empty, or somewhat larger. What `keys` promises of keys that are there all the while holds here,
        too, while no server comes or goes. Raises StoreError, and ValueError for what is no cursor.
        """
        nodes = await self._managed("list keys", lambda client: client.nodes())
        number, _, place = cursor.partition(":")
        if not all(
            part.isascii() and part.isdecimal() and len(part) <= _MOST_DIGITS for part in (number, place) if part
        ):
            raise ValueError(f"{cursor!r} is no cursor")
        at, start = int(number or 0), int(place or 0)
        if not (0 <= at < max(len(nodes), 1) and 0 <= start < 2**64):
            raise ValueError(f"{cursor!r} is no cursor")
        if not nodes:
            return "", []
        following, names = await self._managed("list keys", _scan(nodes[at], start, self._base + "{*}", count))
        keys = await self._keys_of(names) if names else []
        if following:
            return f"{at}:{following}", keys
        return (f"{at + 1}:0" if at + 1 < len(nodes) else ""), keys

    async def _keys_of(self, names: Sequence[bytes]) -> list[CacheKey]:
        """Return the keys under *names*, which are of one server; what is not ours is left out, and counted."""
        found = []
        for name, head in zip(names, await self._heads(names, _HEAD_BYTES), strict=True):
            if isinstance(head, bytes) and len(head) == _HEAD_BYTES:
                key = _key_of(head) or _key_of(*await self._heads([name], _LONGEST_HEAD_BYTES))
            else:
                key = _key_of(head)
            if key is not None and self._name(key).encode() == name:
                found.append(key)
            elif head:  # else it has gone meanwhile
                self._rejected += 1
        return found

    async def _heads(self, names: Sequence[bytes], size: int) -> Sequence[object]:
        """Return the first *size* bytes of the values of *names*; what is no string gives its error."""
        commands = [("GETRANGE", name, 0, size - 1) for name in names]
        return self._readable("list keys", await self._page("list keys", commands))

    def _readable(self, what: str, replies: Sequence[object]) -> Sequence[object]:
        """Return *replies*, in which what is no string has its error. Raises StoreError for every other error."""
        for reply in replies:
            if isinstance(reply, Exception) and "WRONGTYPE" not in str(reply):
                raise self._server.translated(what, Failure(reply)) from reply
        return replies

    async def heads(self, keys: Sequence[CacheKey]) -> list[list[tuple[Entry, int]]]:
        """
        Return for each of *keys* its entries, newest first, without their bodies, each with the length of its body.

        For who looks through what is stored: it takes a page's time, counts as nothing, reads no bodies and checks no
        signatures. Raises StoreError.
        """
        names = [self._name(key) for key in keys]
        raws = [await self._whole_head(name.encode(), raw) for name, raw in await self._beginnings(names)]
        found: list[list[tuple[Entry, int]]] = []
        for key, name, raw in zip(keys, names, raws, strict=True):
            if raw is not None and kind_of(raw) == "index":
                try:
                    rows = decode_index(key, raw)
                except CodecError:
                    rows = []
                variants = await self._beginnings([_variant_name(name, row.variant) for row in rows])
                heads = [await self._whole_head(variant.encode(), begins) for variant, begins in variants]
            else:
                heads = [raw]
            entries = [head for raw in heads if raw and (head := self._head_of(key, raw)) is not None]
            found.append(sorted(entries, key=lambda head: -head[0].stored_at))
        return found

    async def _beginnings(self, names: Sequence[str]) -> list[tuple[str, bytes | None]]:
        """Return the beginnings of the values of *names*, of whatever servers."""
        if not names:
            return []
        what, last = "look through entries", _BEGINNING_BYTES - 1
        asking = _each_by_server([("GETRANGE", name, 0, last) for name in names])
        replies = self._readable(what, await self._managed(what, asking))
        return [
            (name, reply if isinstance(reply, bytes) and reply else None)
            for name, reply in zip(names, replies, strict=True)
        ]

    async def _whole_head(self, name: bytes, raw: bytes | None) -> bytes | None:
        """Return *raw*, or more of it where its head, or its index, may be longer."""
        if raw is None or len(raw) < _BEGINNING_BYTES or (kind_of(raw) == "entry" and _is_head_whole(raw)):
            return raw
        (longer,) = await self._page("look through entries", [("GETRANGE", name, 0, _LONGEST_HEAD_BYTES - 1)])
        return longer if isinstance(longer, bytes) else None

    def _head_of(self, key: CacheKey, raw: bytes) -> tuple[Entry, int] | None:
        try:
            return decode_head(raw, shift=self._shift) if decode_key(raw) == key else None
        except CodecError:
            return None

    def stats(self) -> StoreStats:
        """
        Return a snapshot of this object's counters.

        errors: operations that failed, those out of time included. evictions: variants cut by *max_variants*; what
        Redis itself evicts or expires it does not tell. entries and bytes are not known without asking.
        """
        return StoreStats(
            hits=self._hits,
            misses=self._misses,
            sets=self._sets,
            evictions=self._evictions,
            errors=self._errors + self._server.errors,
            entries=None,
            bytes=None,
        )

    @property
    def timeouts(self) -> int:
        """How many operations ran out of time; they are among the errors."""
        return self._server.timeouts

    @property
    def rejected(self) -> int:
        """How many values under our names were not entries of ours: other versions, other keys, garbage."""
        return self._rejected

    @property
    def forged(self) -> int:
        """How many values were not signed with a secret of ours; they are among the rejected."""
        return self._forged

    @property
    def breaker_state(self) -> BreakerState:
        """Whether the server is asked: the worst state in all event loops of this process, and of all servers."""
        return self._server.breaker_state

    @property
    def secrets(self) -> tuple[bytes, ...]:
        """
        What was made of `secret` for this prefix: the first signs, all of them are accepted. Empty: nothing is signed.

        For whoever keeps other things than entries under the prefix.
        """
        return self._secrets

    @property
    def server(self) -> SharedServer:
        """
        The server that has the entries, for whoever coordinates the workers that share it: always the same object.

        What fails there is counted in `errors`, as what this store asks for is.
        """
        return self._server

    async def aclose(self) -> None:
        """
        Wait for the operations under way in this event loop, for *timeout* at most, and close its connections, those
        of listeners too.

        A second call does nothing. The store can be used again afterwards: it connects anew.
        """
        await self._server.aclose()

    def __repr__(self) -> str:
        server = self._server
        return (
            f"<RedisStore {server.location} {self.prefix} [breaker {server.breaker_state}, {server.under_way} under way"
            f" | {self._hits} hits, {self._misses} misses, {self._sets} sets | "
            f"{self._errors + server.errors} errors, {self._rejected} rejected]>"
        )

    # --- reading ------------------------------------------------------------------------------------------------------

    def _name(self, key: CacheKey) -> str:
        """Return the name of the primary key. Raises NotStorable for a key that cannot be serialised."""
        name = self._names.get(key)
        if name is None:
            try:
                name = f"{self._base}{{{key_digest(key)}}}"
            except CodecError as error:
                raise NotStorable(f"the key cannot be kept in Redis: {error}") from error
            if sum([len(part) for part in key if part is not None]) <= _REMEMBERED_NAME_BYTES:
                if len(self._names) >= _REMEMBERED_NAMES:
                    self._names.clear()
                self._names[key] = name
        return name

    async def _read(self, link: Link, name: str, key: CacheKey, match: Match) -> Entry | None:
        began = asyncio.get_running_loop().time()
        now = self._now()
        known = self._indexes.get(name) if self._indexes else None
        if known is not None:
            return await self._read_known(link, name, key, match, known, now, began)
        try:
            outcome = await link.read(name)
        except Refused as error:
            outcome = Failure(error)
        if type(outcome) is not bytes:
            outcome = self._no_bytes(outcome)
            if outcome is None:
                return None
        if kind_of(outcome) != "index":
            return self._accept(key, outcome, now, match)
        rows = self._selected(self._rows(name, key, outcome), now, match)
        async with self._server.in_time("get", began):
            return await self._first(link, name, rows, key, now, match)

    async def _read_known(
        self,
        link: Link,
        name: str,
        key: CacheKey,
        match: Match,
        known: tuple[bytes, list[IndexRow]],
        now: float,
        began: float,
    ) -> Entry | None:
        """Read a key whose index was seen before: the index and what it led to then, in one round trip."""
        rows = self._selected(known[1], now, match)
        names = [name] if not rows else [name, _variant_name(name, rows[0].variant)]
        raw, *guessed = await self._values(link, names)
        if raw is None or kind_of(raw) != "index":
            self._indexes.pop(name, None)
            return None if raw is None else self._accept(key, raw, now, match)
        if raw != known[0]:
            guess = rows[0].variant if rows else None
            rows = self._selected(self._rows(name, key, raw), now, match)
            if not rows or rows[0].variant != guess:
                guessed = []
        if guessed:
            entry = None if guessed[0] is None else self._accept(key, guessed[0], now, match)
            if entry is not None:
                return entry
            rows = rows[1:]
        async with self._server.in_time("get", began):
            return await self._first(link, name, rows, key, now, match)

    async def _first(
        self, link: Link, name: str, rows: Sequence[IndexRow], key: CacheKey, now: float, match: Match
    ) -> Entry | None:
        """Return the first entry that *rows*, one after the other, lead to."""
        for row in rows[:_MOST_ROWS]:
            (raw,) = await self._values(link, [_variant_name(name, row.variant)])
            entry = None if raw is None else self._accept(key, raw, now, match)
            if entry is not None:
                return entry
        return None

    def _selected(self, rows: Sequence[IndexRow], now: float, match: Match) -> Sequence[IndexRow]:
        there = now + self._shift
        return [row for row in rows if there <= row.retain_until and match(row.vary)]

    def _rows(self, name: str, key: CacheKey, raw: bytes) -> Sequence[IndexRow]:
        """Return the rows of the index *raw*, newest first, and remember them."""
        self._indexes.pop(name, None)
        try:
            rows = decode_index(key, raw)
        except CodecError:
            self._rejected += 1
            return ()
        if len(raw) <= _REMEMBERED_INDEX_BYTES:
            if len(self._indexes) >= _REMEMBERED_INDEXES:
                self._indexes.popitem(last=False)
            self._indexes[name] = (raw, rows)
        return rows

    def _accept(self, key: CacheKey, raw: bytes, now: float, match: Match) -> Entry | None:
        """Return the entry in *raw* if it is one of ours for *key*, is not past its time and satisfies *match*."""
        try:
            entry = decode(key, raw, max_body_bytes=self.max_body_bytes, secrets=self._secrets, shift=self._shift)
        except CodecError as error:
            self._rejected += 1
            self._forged += isinstance(error, ForgedError)
            return None
        if entry.mark < 0 or not _can_be_sent(entry.response):
            self._rejected += 1
            return None
        # An index or a name may lie about what it leads to; what counts is what the entry itself says.
        return entry if now <= entry.retain_until and match(entry.vary) else None

    # --- operations ---------------------------------------------------------------------------------------------------

    async def _values(self, link: Link, names: Sequence[str]) -> list[bytes | None]:
        """Return the values of *names*, in one round trip; None for what is no string."""
        try:
            waiting = [link.read(name) for name in names]
        except Refused as error:
            raise self._server.translated("get", Failure(error)) from error
        outcomes = [await future for future in waiting]
        return [outcome if type(outcome) is bytes else self._no_bytes(outcome) for outcome in outcomes]

    def _no_bytes(self, outcome: object) -> bytes | None:
        """Return None for what came in place of a value: that is a miss. Raises StoreError if it is a failure."""
        if isinstance(outcome, Failure):
            raise self._server.translated("get", outcome) from outcome.error
        if outcome is not None:
            self._rejected += 1
        return None

    async def _run(
        self, link: Link, what: str, script: Script, keys: Sequence[str], words: Sequence[str | bytes]
    ) -> int:
        """Return the number that *script* gives. Raises StoreError."""
        reply = await self._server.run(link, what, script, keys, words)
        if not isinstance(reply, int):
            self._errors += 1
            raise StoreError(f"Redis at {self._server.location} replied with {type(reply).__name__} to a {what}")
        return reply

    async def _set_clock(self, link: Link, name: str) -> None:
        """
        Ask the server what time it is; *name* is what will be asked for next.

        A server that answers, but does not tell, is taken to have the time that this machine has: better than no cache.
        Raises StoreError when it does not answer.
        """
        clock = self._server_clock
        assert clock is not None
        asked = clock.begin()
        try:
            outcome = await link.time(name)
        except Refused as error:
            outcome = Failure(error)
        if isinstance(outcome, Failure):
            raise self._server.translated("tell the time", outcome) from outcome.error
        if isinstance(outcome, float) and _EARLIEST < outcome < _LATEST:
            clock.learn(asked, outcome)
            return
        if not clock.is_refused:
            _logger.warning(
                "Redis at %s does not tell its time (%s); entries carry this machine's, and machines whose clocks "
                "differ disagree on what is fresh. Permit the command TIME, or keep the clocks together.",
                self._server.location,
                outcome,
            )
        clock.refuse()

    async def _pages(self, what: str, pattern: str) -> AsyncIterator[list[bytes]]:
        """
        Iterate over the names that match *pattern* on all servers, a page at a time.

        A server that fails does not keep the others from being gone through; its StoreError is raised at the end.
        """
        failure: StoreError | None = None
        for node in await self._managed(what, lambda client: client.nodes()):
            cursor = 0
            while True:
                try:
                    cursor, names = await self._managed(what, _scan(node, cursor, pattern))
                except StoreError as error:
                    failure = failure or error
                    break
                if names:
                    yield names
                if not cursor:
                    break
        if failure is not None:
            raise failure

    async def _page(self, what: str, commands: Sequence[Words]) -> Sequence[object]:
        """Return the replies to *commands*, whose keys are a page of one server's."""
        return await self._managed(what, lambda client: client.write(commands))

    async def _managed(self, what: str, operation: Callable[[Client], Awaitable[_T]]) -> _T:
        return await self._server.call(what, operation, max(self.timeout, _PAGE_TIMEOUT))

    def _changed(self, state: BreakerState, reason: str) -> None:
        if self._server_clock is not None:
            self._server_clock.doubt()  # who answers now may be another server
        for observer in self._observers:
            try:
                observer(BreakerChanged(state.value, reason))
            except Exception:
                _logger.exception("an observer failed; the store goes on")


# --- helpers ----------------------------------------------------------------------------------------------------------


def _scan(
    node: Hashable, cursor: int, pattern: str, count: int = _PAGE
) -> Callable[[Client], Awaitable[tuple[int, list[bytes]]]]:
    return lambda client: client.scan(node, cursor, pattern, count)


def _each_by_server(commands: Sequence[Words]) -> Callable[[Client], Awaitable[Sequence[object]]]:
    """Return what has each of *commands*, whose second words are keys of whatever servers, done by its own server."""

    async def do(client: Client) -> Sequence[object]:
        groups: dict[Hashable, list[int]] = {}
        for index, words in enumerate(commands):
            groups.setdefault(client.node_of(str(words[1])), []).append(index)
        replies: list[object] = [None] * len(commands)
        for indexes in groups.values():
            for index, reply in zip(indexes, await client.write([commands[at] for at in indexes]), strict=True):
                replies[index] = reply
        return replies

    return do


def _is_head_whole(raw: bytes) -> bool:
    try:
        decode_head(raw)
    except CodecError:
        return False
    return True


def _variant_name(name: str, variant: bytes) -> str:
    return f"{name}:{variant.hex()}"


def _require_whole(name: str, value: object, largest: float = math.inf) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= largest:
        allowed = ">= 1" if largest == math.inf else f"in 1..{largest}"
        raise ConfigurationError(f"{name} must be a whole number {allowed}, not {value!r}")


def _positive_seconds(name: str, value: Duration, trouble: str) -> float:
    number = seconds(name, value)
    if not number:
        raise ConfigurationError(f"{name} must be longer than 0 s: {trouble}")
    return number


def _secrets(secret: object) -> tuple[bytes, ...]:
    """Return the secrets as bytes, the one that signs first. Raises ConfigurationError, which does not show them."""
    if secret is None:
        return ()
    many = [secret] if isinstance(secret, str | bytes) else secret
    if not isinstance(many, Sequence) or not many or not all(isinstance(one, str | bytes) for one in many):
        raise ConfigurationError("secret must be a string, bytes, or a list of them, the one that signs first")
    found = tuple(one.encode() if isinstance(one, str) else one for one in many)
    shortest = min(len(one) for one in found)
    if shortest < _SECRET_BYTES:
        raise ConfigurationError(f"secret must have {_SECRET_BYTES} bytes or more, not {shortest}")
    return found


def _for_prefix(secret: bytes, prefix: str) -> bytes:
    """Return what *secret* is under *prefix*: what is signed for one name space is forged in another."""
    return hashlib.blake2b(prefix.encode(), key=hashlib.blake2b(secret).digest()).digest()


def _can_be_sent(response: StoredResponse) -> bool:
    """
    Say whether a server can send *response* as one message, whoever wrote it into Redis.

    Parts and 304s are never stored; a length or a coding that lies about where the body ends would make the rest of
    it the next answer on the connection.
    """
    if response.status in (206, 304):
        return False
    lengths = 0
    for name, value in response.headers:
        if name in _ABOUT_THE_BODYS_END:
            if name != b"content-length":
                return False
            lengths += 1
            plain = lengths == 1 and value == b"%d" % len(response.body)
            if not plain and parse_content_length(response.headers) != len(response.body):
                return False
    return True


def _key_of(head: object) -> CacheKey | None:
    try:
        return decode_key(head) if isinstance(head, bytes) else None
    except CodecError:
        return None
