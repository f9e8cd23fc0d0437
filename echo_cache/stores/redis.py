"""
Entries in Redis (L2). The one rule: Redis can be slow, gone, wrong or hostile, and a caller gets an entry, a miss or a
StoreError in time.

    {prefix}:{format version}:{<digest of the key>}                 an entry that does not vary, or an index
    {prefix}:{format version}:{<digest of the key>}:<variant id>    an entry that varies; the index names it

The braces are Redis Cluster's: a key and its variants are in one slot. Names have no other characters than
[A-Za-z0-9:{}_-]. Every value expires by itself at its `retain_until`. Works with Redis 6.2 and later, and Valkey.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import os
import re
import sys
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, TypeVar, cast
from urllib.parse import parse_qsl, urlsplit

from echo_cache.codec import (
    FORMAT_VERSION,
    MAX_INDEX_ROWS,
    IndexRow,
    decode,
    decode_index,
    decode_key,
    encode,
    encode_index,
    encode_index_row,
    key_digest,
    kind_of,
    variant_id,
)
from echo_cache.errors import CodecError, ConfigurationError, StoreError, StoreTimeout
from echo_cache.fields import parse_content_length
from echo_cache.model import CacheKey, Entry, StoredResponse
from echo_cache.options import Duration, seconds
from echo_cache.policy.storing import CONNECTION_FIELDS
from echo_cache.stores.base import Held, Match, StoreStats

if TYPE_CHECKING:
    from redis.asyncio import Redis

__all__ = ["RedisStore"]

_T = TypeVar("_T")

_PREFIX: Final = re.compile(r"[A-Za-z0-9_-]+(:[A-Za-z0-9_-]+)*")

# What a URL may say: where the server is and who asks. How it is talked to is the store's to decide: an option in a URL
# wins over all others in redis-py, and `?protocol=3` would switch off a check that this module relies on.
_URL_OPTIONS: Final = re.compile(r"db|username|password|client_name|ssl_\w+")

# Redis refuses expiries that overflow; ten years are forever for a cache.
_LONGEST_LIFE_MS: Final = 10 * 365 * 86_400_000

# An idle connection is tested by PING before it is used again, so that one that a firewall dropped in silence costs a
# fresh connection and not a time-out. Shorter than the idle limits of common load balancers (60 s and more).
_HEALTH_CHECK_INTERVAL: Final = 30.0

# Keys whose index is remembered, and the largest index that is: 8 MiB at the worst.
_REMEMBERED: Final = 4_096
_REMEMBERED_BYTES: Final = 2_048

# Managing goes a page at a time. No request waits for it, so a page gets at least a second.
_PAGE: Final = 500
_PAGE_TIMEOUT: Final = 1.0

# What `keys` reads of a value at first: nearly every head is shorter. The rest is read for those that are not.
_HEAD_BYTES: Final = 1_024
_LONGEST_HEAD_BYTES: Final = 1024 * 1024


# When such an entry becomes a variant, only Redis knows how long it lives: the row promises nothing, the entry says.
_UNVARYING_ROW: Final = encode_index_row(variant_id(()), 0.0, sys.float_info.max, ())


class _Script(NamedTuple):
    source: str
    sha1: str


def _script(source: str) -> _Script:
    return _Script(source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())


# Both scripts walk an index as codec.encode_index describes it. They name keys that are not in KEYS (variants whose ids
# only the index knows); these are in the slot of KEYS[1], which is what Redis Cluster needs.
_WALK: Final = """
local function variants(old, head, visit)
  if type(old) ~= 'string' or string.sub(old, 1, #head) ~= head then return end
  local at = #head + 1
  while at + 39 <= #old do
    local a, b, c, d = string.byte(old, at, at + 3)
    local size = ((a * 256 + b) * 256 + c) * 256 + d
    if size < 40 or at + size - 1 > #old then return end
    visit(string.sub(old, at, at + size - 1))
    at = at + size
  end
end
local function name(row)
  return KEYS[1] .. ':' .. string.gsub(string.sub(row, 5, 20), '.', function(c)
    return string.format('%02x', string.byte(c))
  end)
end
"""

# How long a variant lives is asked of its key, so no clock is needed here, and rows whose variant has expired or was
# evicted make room. An entry that does not vary and is in the place of the index moves behind it, as a variant.
#
# KEYS[1]  the primary key
# KEYS[2]  the key of the variant
# ARGV[1]  the beginning of an index of this key
# ARGV[2]  the row of the variant
# ARGV[3]  the row for an entry that does not vary
# ARGV[4]  how many rows an index may have
# ARGV[5]  how long the variant lives, in ms
# ARGV[6]  the variant
# Returns  how many other variants were cut.
_SET_VARIANT: Final = _script(
    _WALK
    + """
local head, row, unvarying, max, longest = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local old, out, cut = redis.pcall('GET', KEYS[1]), {head, row}, {}
if type(old) == 'string' and string.sub(old, 1, 4) == '\\236hoe' then
  redis.call('RENAME', KEYS[1], name(unvarying))
  old = head .. unvarying
end
variants(old, head, function(other)
  if string.sub(other, 5, 20) == string.sub(row, 5, 20) then return end
  local life = redis.call('PTTL', name(other))
  if #out > max then
    cut[#cut + 1] = name(other)
  elseif life ~= -2 then
    out[#out + 1] = other
    longest = math.max(longest, life)
  end
end)
redis.call('SET', KEYS[1], table.concat(out), 'PX', string.format('%.0f', longest))
redis.call('SET', KEYS[2], ARGV[6], 'PX', ARGV[5])
for _, key in ipairs(cut) do redis.call('UNLINK', key) end
return #cut
"""
)

# KEYS[1]  the primary key
# ARGV[1]  the beginning of an index of this key
# Returns  1 if there was something, 0 if not.
_DELETE: Final = _script(
    _WALK
    + """
variants(redis.pcall('GET', KEYS[1]), ARGV[1], function(row) redis.call('UNLINK', name(row)) end)
return redis.call('UNLINK', KEYS[1])
"""
)


class _Clock(Protocol):
    def time(self) -> float: ...


class _Client(Protocol):
    """What is used of redis.asyncio.Redis, whose own types are partial."""

    def execute_command(self, *words: Any) -> Awaitable[Any]: ...
    def pipeline(self, *, transaction: bool) -> Any: ...
    async def aclose(self) -> None: ...


@dataclass(frozen=True, slots=True)
class _Failure:
    """How an operation ended without a result; *error* None: it ran out of time."""

    error: BaseException | None


class RedisStore:
    """
    A map in Redis, for any number of processes.

    server: a URL (redis://, rediss://, unix://) or a ready redis.asyncio.Redis.
    prefix: what the names of our keys begin with: words of [A-Za-z0-9_-], joined by colons.
    timeout: the time that one operation may take as a whole, waiting for a connection included, in seconds.
    max_connections: how many connections each event loop may have; more operations than that wait in line.
    max_body_bytes: larger bodies are neither stored nor read.
    max_variants: how many entries are kept for one key (1-64); beyond, the oldest go.
    clock: where the time comes from; the machine's wall clock if None.

    Nothing connects before the first operation. Each event loop, and each process after a fork, has connections of its
    own. A ready client is used in one event loop only and is never closed here; its own time-outs and retries apply
    within *timeout*. It should have what a client made here has: Retry(NoBackoff(), 0), a BlockingConnectionPool,
    protocol=2; and it must not decode responses.

    Whoever waits for an operation may be cancelled: the operation itself goes on in a task of the store, until it is
    done or its time is up. When its time is up its connection is closed, so that a late reply answers nobody.

    Raises ConfigurationError for a value that cannot work.
    """

    remote: bool = True

    def __init__(
        self,
        server: str | Redis,
        *,
        prefix: str = "echo_cache",
        timeout: Duration = 0.1,
        max_connections: int = 16,
        max_body_bytes: int = 8 * 1024 * 1024,
        max_variants: int = 32,
        clock: _Clock | None = None,
    ) -> None:
        if not _PREFIX.fullmatch(prefix):
            raise ConfigurationError(f"prefix must be words of [A-Za-z0-9_-] joined by colons, not {prefix!r}")
        _require_whole("max_connections", max_connections)
        _require_whole("max_body_bytes", max_body_bytes)
        _require_whole("max_variants", max_variants, MAX_INDEX_ROWS)
        self.timeout: Final = seconds("timeout", timeout)
        if not self.timeout:
            raise ConfigurationError("timeout must be longer than 0 s: no operation could succeed")
        self.prefix: Final = prefix
        self.max_body_bytes: Final = max_body_bytes
        self.max_variants: Final = max_variants
        self._now = time.time if clock is None else clock.time
        self._base = f"{prefix}:{FORMAT_VERSION}:"
        self._given: _Client | None = None
        self._make_client: Callable[[], _Client]
        if isinstance(server, str):
            self._location, self._make_client = _from_url(server, self.timeout, max_connections)
        else:
            self._location, self._given = _ready(server)

        # Each event loop touches its own client and tasks only; counters may be off by a few under threads.
        self._clients: dict[asyncio.AbstractEventLoop, _Client] = {}
        self._pid = os.getpid()
        self._inherited: list[object] = []
        self._tasks: set[asyncio.Task[None]] = set()
        # The index that each key was seen with: the guess that makes the next read one round trip.
        self._indexes: OrderedDict[str, tuple[bytes, list[IndexRow]]] = OrderedDict()
        self._hits = 0
        self._misses = 0
        self._sets = 0
        self._evictions = 0
        self._errors = 0
        self._timeouts = 0
        self._rejected = 0

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
        entry = await self._run("get", lambda client: self._read(client, name, key, match))
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
        life_ms = str(min(max(math.ceil((entry.retain_until - now) * 1000), 1), _LONGEST_LIFE_MS))
        keys: tuple[str, ...] = ()
        words: tuple[str | bytes, ...] = ()
        try:
            raw = encode(key, entry)
            if entry.vary:
                variant = variant_id(entry.vary)
                row = encode_index_row(variant, entry.stored_at, entry.retain_until, entry.vary)
                keys = (name, _variant_name(name, variant))
                words = (encode_index(key), row, _UNVARYING_ROW, str(self.max_variants), life_ms, raw)
        except CodecError as error:
            self._errors += 1
            raise StoreError(f"the entry cannot be kept in Redis: {error}") from error
        if keys:
            self._evictions += await self._run("set", lambda client: _evaluate(client, _SET_VARIANT, keys, words))
        else:
            reply = await self._run("set", lambda client: client.execute_command("SET", name, raw, "PX", life_ms))
            if not reply:
                self._errors += 1
                raise StoreError(f"Redis at {self._location} did not confirm a set")
        self._sets += 1
        return True

    def put(self, key: CacheKey, entry: Entry) -> Coroutine[Any, Any, bool]:
        """Return `set`, to be awaited: nothing of it can be seen in memory."""
        return self.set(key, entry)

    def drop_nowait(self, key: CacheKey) -> None:
        """Do nothing: this process's memory has none of it."""

    async def delete(self, key: CacheKey) -> bool:
        """Forget all variants under *key*; one round trip. Returns whether there was one. Raises StoreError."""
        name = self._name(key)
        head = encode_index(key)
        self._indexes.pop(name, None)
        return bool(await self._run("delete", lambda client: _evaluate(client, _DELETE, (name,), (head,))))

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
                    gone = await self._run_page("clear", _unlink(some))
                    count += gone if some is primary else 0
        return count

    async def keys(self) -> AsyncIterator[CacheKey]:
        """
        Iterate over the keys, in no order, a page at a time; what is not ours is left out, and counted in `rejected`.

        A key that is there from the beginning to the end is seen, and may be seen twice when the server resizes its
        table meanwhile (as SCAN promises no more). Raises StoreError.
        """
        async for names in self._pages("keys", self._base + "{*}"):
            heads = await self._run_page("keys", _heads(names, _HEAD_BYTES))
            for name, head in zip(names, heads, strict=True):
                if isinstance(head, bytes) and len(head) == _HEAD_BYTES:
                    key = _key_of(head) or _key_of(*await self._run_page("keys", _heads([name], _LONGEST_HEAD_BYTES)))
                else:
                    key = _key_of(head)
                if key is not None and self._name(key).encode() == name:
                    yield key
                elif head:  # else it has gone meanwhile
                    self._rejected += 1

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
            errors=self._errors,
            entries=None,
            bytes=None,
        )

    @property
    def timeouts(self) -> int:
        """How many operations ran out of time; they are among the errors."""
        return self._timeouts

    @property
    def rejected(self) -> int:
        """How many values under our names were not entries of ours: other versions, other keys, garbage."""
        return self._rejected

    async def aclose(self) -> None:
        """
        Wait for the operations under way in this event loop, for *timeout* at most, and close its connections.

        A second call does nothing. The store can be used again afterwards: it connects anew.
        """
        loop = asyncio.get_running_loop()
        tasks = [task for task in self._tasks if task.get_loop() is loop]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=self.timeout)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late, timeout=self.timeout)
        if self._given is None and self._pid == os.getpid():
            client = self._clients.pop(loop, None)
            if client is not None:
                # What could fail is saying good-bye; the connections are gone all the same.
                with suppress(Exception):
                    await client.aclose()

    def __repr__(self) -> str:
        return (
            f"<RedisStore {self._location} {self.prefix} [{len(self._tasks)} under way | {self._hits} hits, "
            f"{self._misses} misses, {self._sets} sets | {self._errors} errors, {self._rejected} rejected]>"
        )

    # --- reading ------------------------------------------------------------------------------------------------------

    def _name(self, key: CacheKey) -> str:
        """Return the name of the primary key. Raises StoreError for a key that cannot be serialised."""
        try:
            return f"{self._base}{{{key_digest(key)}}}"
        except CodecError as error:
            raise StoreError(f"the key cannot be kept in Redis: {error}") from error

    async def _read(self, client: _Client, name: str, key: CacheKey, match: Match) -> Entry | None:
        now = self._now()
        known = self._indexes.get(name)
        guess = next((row for row in _selected(known[1], now, match)), None) if known is not None else None
        if guess is None:
            raw, guessed = await self._fetch(client, name), None
        else:
            raw, guessed = await self._fetch_both(client, name, _variant_name(name, guess.variant))
        if raw is None:
            self._indexes.pop(name, None)
            return None
        if kind_of(raw) != "index":
            self._indexes.pop(name, None)
            return self._accept(key, raw, now, match)
        for row in _selected(self._rows(name, key, raw, known), now, match):
            if guess is None or row.variant != guess.variant:
                guessed = await self._fetch(client, _variant_name(name, row.variant))
            entry = None if guessed is None else self._accept(key, guessed, now, match)
            if entry is not None:
                return entry
        return None

    def _rows(
        self, name: str, key: CacheKey, raw: bytes, known: tuple[bytes, list[IndexRow]] | None
    ) -> Sequence[IndexRow]:
        """Return the rows of the index *raw*, newest first, and remember them."""
        if known is not None and known[0] == raw:
            return known[1]
        try:
            rows = decode_index(key, raw)
        except CodecError:
            self._rejected += 1
            return ()
        self._indexes.pop(name, None)
        if len(raw) <= _REMEMBERED_BYTES:
            if len(self._indexes) >= _REMEMBERED:
                self._indexes.popitem(last=False)
            self._indexes[name] = (raw, rows)
        return rows

    def _accept(self, key: CacheKey, raw: bytes, now: float, match: Match) -> Entry | None:
        """Return the entry in *raw* if it is one of ours for *key*, is not past its time and satisfies *match*."""
        try:
            entry = decode(key, raw, max_body_bytes=self.max_body_bytes)
        except CodecError:
            self._rejected += 1
            return None
        if not _can_be_sent(entry.response):
            self._rejected += 1
            return None
        # An index or a name may lie about what it leads to; what counts is what the entry itself says.
        return entry if now <= entry.retain_until and match(entry.vary) else None

    async def _fetch(self, client: _Client, name: str) -> bytes | None:
        """Return the value of *name*, or None for what is no string."""
        try:
            return self._bytes(await client.execute_command("GET", name))
        except Exception as error:
            if str(error).startswith("WRONGTYPE"):
                self._rejected += 1
                return None
            raise

    async def _fetch_both(self, client: _Client, name: str, other: str) -> tuple[bytes | None, bytes | None]:
        reply = await client.execute_command("MGET", name, other)
        if not isinstance(reply, list) or len(reply) != 2:
            self._rejected += 1
            return None, None
        return self._bytes(reply[0]), self._bytes(reply[1])

    def _bytes(self, reply: object) -> bytes | None:
        if reply is None or isinstance(reply, bytes):
            return reply
        self._rejected += 1
        return None

    # --- operations ---------------------------------------------------------------------------------------------------

    async def _run(
        self, what: str, operation: Callable[[_Client], Awaitable[_T]], *, timeout: float | None = None
    ) -> _T:
        """
        Return what *operation* gives, which runs in a task of this store and in *timeout* (None: the store's).

        The answer is a future of the caller's, so a caller that is cancelled takes nothing with it, and an error that
        nobody waits for any more is not reported as forgotten. (asyncio.shield does the former, and the latter
        not in every version.) This is the one place where errors are translated.
        """
        loop = asyncio.get_running_loop()
        timeout = self.timeout if timeout is None else timeout
        client = self._client(loop)
        answer: asyncio.Future[_T | _Failure] = loop.create_future()
        task = loop.create_task(self._work(operation, client, answer, timeout))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        outcome = await answer
        if not isinstance(outcome, _Failure):
            return outcome
        raise self._translated(what, timeout, outcome.error) from outcome.error

    def _translated(self, what: str, timeout: float, error: BaseException | None) -> StoreError:
        """Return *error*, which ended an operation, as ours; None is a time budget that was used up."""
        if error is None:
            return StoreTimeout(f"Redis at {self._location} did not {what} within {timeout} s")
        if isinstance(error, asyncio.CancelledError):
            return StoreError(f"the store was closed before Redis at {self._location} could {what}")
        kind = StoreTimeout if type(error).__name__ == "TimeoutError" else StoreError  # redis-py's is none of Python's
        return kind(f"Redis at {self._location} could not {what}: {error}")

    async def _work(
        self,
        operation: Callable[[_Client], Awaitable[_T]],
        client: _Client,
        answer: asyncio.Future[_T | _Failure],
        timeout: float,
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        timer = asyncio.get_running_loop().call_later(timeout, self._expire, answer, task)
        try:
            result = await operation(client)
        except asyncio.CancelledError as error:
            _settle(answer, _Failure(error))
            raise
        except Exception as error:
            self._errors += 1
            _settle(answer, _Failure(error))
        else:
            _settle(answer, result)
        finally:
            timer.cancel()
            # Or the error, its traceback and this frame would keep each other until the next full collection.
            del answer

    def _expire(self, answer: asyncio.Future[Any], task: asyncio.Task[None]) -> None:
        """Answer whoever still waits, and cancel the operation: redis-py then closes the connection it was using."""
        self._errors += 1
        self._timeouts += 1
        _settle(answer, _Failure(None))
        task.cancel()

    async def _pages(self, what: str, pattern: str) -> AsyncIterator[list[bytes]]:
        """Iterate over the names that match *pattern*, a page at a time."""
        cursor = 0
        while True:
            cursor, names = await self._run_page(what, _scan(cursor, pattern))
            if names:
                yield names
            if not cursor:
                return

    async def _run_page(self, what: str, operation: Callable[[_Client], Awaitable[_T]]) -> _T:
        return await self._run(what, operation, timeout=max(self.timeout, _PAGE_TIMEOUT))

    # --- clients ------------------------------------------------------------------------------------------------------

    def _client(self, loop: asyncio.AbstractEventLoop) -> _Client:
        """Return the client of *loop* in this process; its connections belong to both."""
        if self._pid != os.getpid():
            self._forget_parent()
        client = self._clients.get(loop)
        if client is None:
            if self._given is not None:
                if self._clients or self._inherited:
                    raise StoreError(
                        "a ready client can be used in one event loop of one process only, and this is another one; "
                        "give RedisStore a URL instead"
                    )
                client = self._given
            else:
                for other in [other for other in self._clients if other.is_closed()]:
                    del self._clients[other]
                client = self._make_client()
            self._clients[loop] = client
        return client

    def _forget_parent(self) -> None:
        """
        Leave to the parent process what is the parent's.

        Its clients are kept and never touched: to finalise one here would take its sockets out of an epoll set that
        both processes share.
        """
        if self._clients:
            self._inherited.append((self._clients, self._tasks))
        self._clients, self._tasks = {}, set()
        self._pid = os.getpid()


# --- commands ---------------------------------------------------------------------------------------------------------


async def _evaluate(client: _Client, script: _Script, keys: Sequence[str], words: Sequence[str | bytes]) -> int:
    """Return what *script* gives: one round trip, two after the server has lost the script."""
    from redis.exceptions import NoScriptError

    try:
        reply = await client.execute_command("EVALSHA", script.sha1, len(keys), *keys, *words)
    except NoScriptError:
        reply = await client.execute_command("EVAL", script.source, len(keys), *keys, *words)
    return int(reply)


def _scan(cursor: int, pattern: str) -> Callable[[_Client], Awaitable[tuple[int, list[bytes]]]]:
    async def scan(client: _Client) -> tuple[int, list[bytes]]:
        following, names = await client.execute_command("SCAN", cursor, "MATCH", pattern, "COUNT", _PAGE)
        return int(following), names

    return scan


def _unlink(names: Sequence[bytes]) -> Callable[[_Client], Awaitable[int]]:
    async def unlink(client: _Client) -> int:
        return int(await client.execute_command("UNLINK", *names))

    return unlink


def _heads(names: Sequence[bytes], size: int) -> Callable[[_Client], Awaitable[list[object]]]:
    """Return the operation that reads the first *size* bytes of *names*; what is no string gives its error."""

    async def heads(client: _Client) -> list[object]:
        pipeline = client.pipeline(transaction=False)
        for name in names:
            pipeline.execute_command("GETRANGE", name, 0, size - 1)
        replies: list[object] = await pipeline.execute(raise_on_error=False)
        return replies

    return heads


# --- helpers ----------------------------------------------------------------------------------------------------------


def _settle(answer: asyncio.Future[Any], outcome: object) -> None:
    if not answer.done():  # it is when the caller has left, or its time was up
        answer.set_result(outcome)


def _selected(rows: Sequence[IndexRow], now: float, match: Match) -> Sequence[IndexRow]:
    return [row for row in rows if now <= row.retain_until and match(row.vary)]


def _variant_name(name: str, variant: bytes) -> str:
    return f"{name}:{variant.hex()}"


def _require_whole(name: str, value: object, largest: float = math.inf) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= largest:
        allowed = ">= 1" if largest == math.inf else f"in 1..{largest}"
        raise ConfigurationError(f"{name} must be a whole number {allowed}, not {value!r}")


def _can_be_sent(response: StoredResponse) -> bool:
    """
    Say whether a server can send *response* as one message, whoever wrote it into Redis.

    Parts and 304s are never stored; a length or a coding that lies about where the body ends would make the rest of
    it the next answer on the connection.
    """
    if response.status in (206, 304) or not CONNECTION_FIELDS.isdisjoint([name for name, _ in response.headers]):
        return False
    length = parse_content_length(response.headers)
    return length is None or length == len(response.body)


def _key_of(head: object) -> CacheKey | None:
    try:
        return decode_key(head) if isinstance(head, bytes) else None
    except CodecError:
        return None


# --- configuration ----------------------------------------------------------------------------------------------------


def _from_url(url: str, timeout: float, max_connections: int) -> tuple[str, Callable[[], _Client]]:
    """
    Return where *url* leads, without its secrets, and what makes a client for it.

    Raises ConfigurationError, which does not show the URL: there may be a password in it.
    """
    location, options = _parsed(url)

    from redis.asyncio import BlockingConnectionPool, Redis
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    def make_pool() -> BlockingConnectionPool:
        return BlockingConnectionPool.from_url(
            url,
            max_connections=max_connections,
            # The store's own time budget bounds the wait for a connection, the command and the reply as a whole. A
            # socket time-out beside it would bound nothing more, and costs a task and a timer for each command.
            timeout=None,
            socket_timeout=None,
            socket_connect_timeout=timeout,
            # By default a command to a dead server is tried eleven times, for 4 s. A cache has the app to ask.
            retry=Retry(NoBackoff(), 0),
            health_check_interval=_HEALTH_CHECK_INTERVAL,
            # RESP2 keeps redis-py's maintenance notifications off, which need RESP3. With them on, redis-py 8.1 does
            # not look for left-over bytes on a connection, and one key's value was seen to answer another's read.
            protocol=2,
            decode_responses=False,
        )

    try:
        make_pool().make_connection()  # type: ignore[no-untyped-call]  # redis-py's types are partial
    except Exception as error:
        named = ", ".join(sorted(options)) or "none"
        raise ConfigurationError(
            f"redis-py cannot use this URL for {location} (options: {named}): {type(error).__name__}"
        ) from None
    return location, lambda: cast(_Client, Redis.from_pool(make_pool()))


def _parsed(url: str) -> tuple[str, dict[str, str]]:
    """Return the location in *url*, without secrets, and its options. Raises ConfigurationError, without secrets."""
    scheme = url.partition("://")[0] if "://" in url else ""
    if scheme.startswith("redis") and scheme.endswith(("+sentinel", "+cluster")):
        raise ConfigurationError(f"{scheme}:// is not supported; use redis://, rediss:// or unix://")
    if scheme not in ("redis", "rediss", "unix"):
        raise ConfigurationError("the URL of a RedisStore begins with redis://, rediss:// or unix://")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
        options = dict(parse_qsl(parts.query, strict_parsing=True)) if parts.query else {}
    except ValueError:
        raise ConfigurationError(_not_a_url(scheme)) from None
    for name in options:
        if not _URL_OPTIONS.fullmatch(name):
            raise ConfigurationError(
                "the URL of a RedisStore may have the options db, username, password, client_name and ssl_*, not "
                f"{name!r}; timeout and max_connections are arguments of RedisStore"
            )
    database = options.get("db", "0")
    if scheme == "unix":
        if parts.fragment or not parts.path or not database.isdecimal():
            raise ConfigurationError(_not_a_url(scheme))
        return f"unix://{parts.path}?db={database}", options
    path = parts.path.strip("/")
    if parts.fragment or not (path or "0").isdecimal() or not database.isdecimal():
        raise ConfigurationError(_not_a_url(scheme))
    shown = f"[{host}]" if host and ":" in host else host or "localhost"
    return f"{scheme}://{shown}:{port or 6379}/{options.get('db', path or '0')}", options


def _not_a_url(scheme: str) -> str:
    shape = "unix://[user@]/path/to.sock?db=0" if scheme == "unix" else f"{scheme}://[user:password@]host[:port][/db]"
    return f"a {scheme} URL has the form {shape}; in user and password, write / ? # @ as %2F %3F %23 %40"


def _ready(client: object) -> tuple[str, _Client]:
    """Return where the ready *client* leads, without secrets, and itself. Raises ConfigurationError."""
    from redis.asyncio import Redis

    if not isinstance(client, Redis):
        raise ConfigurationError(
            f"a RedisStore is made of a URL or a redis.asyncio.Redis, not {type(client).__module__}."
            f"{type(client).__qualname__}"
        )
    if client.get_encoder().decode_responses:  # type: ignore[no-untyped-call]  # redis-py's types are partial
        raise ConfigurationError("a RedisStore reads bytes: make its client with decode_responses=False")
    where = client.connection_pool.connection_kwargs
    database = where.get("db") or 0
    if "path" in where:
        location = f"unix://{where['path']}?db={database}"
    else:
        location = f"redis://{where.get('host', 'localhost')}:{where.get('port', 6379)}/{database}"
    return location, cast(_Client, client)
