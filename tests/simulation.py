"""
Three workers, the Redis that they share and the network between them, in virtual time: what the tests of invalidation
need.

The one rule: nothing is real but the code under test. Time jumps to whatever comes next, so that an outage of a minute
costs a millisecond, and the same seed makes the same run.

    World -> Node (middleware, Cache, TwoLevelStore, SharedLog) -> Wire (drops, delays, duplicates) -> FakeRedis

The world judges every answer, see `World.judge`.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import selectors
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar

from echo_cache import Cache, HTTPCacheMiddleware, MemoryStore, TwoLevelStore
from echo_cache.coordination.lease import RELEASE, RENEW, TAKE
from echo_cache.coordination.server import Command
from echo_cache.coordination.stream import APPEND, OPEN, SharedLog
from echo_cache.errors import StoreError, StoreTimeout
from echo_cache.model import CacheKey, Entry
from echo_cache.options import CacheStrategy, CoordinationOptions, SyncMode, TwoLevelConfig, UnsyncedMode
from echo_cache.stores.base import Held, Match, StoreStats
from echo_cache.testing import Message, open_request

__all__ = [
    "CALM",
    "PATHS",
    "Answer",
    "FakeRedis",
    "Node",
    "Target",
    "VirtualLoop",
    "Warnings",
    "Way",
    "Wire",
    "World",
    "simulate",
]

_T = TypeVar("_T")

EPOCH: Final = 1_700_000_000.0
# How long an operation on Redis may take, but for those of a listener.
TIMEOUT: Final = 0.1
# One way through a network that is well.
LATENCY: Final = 0.001
PREFIX: Final = "sim"
# What there is to ask for, and the tags of it.
PATHS: Final[Mapping[str, tuple[str, ...]]] = {"/a/1": ("x",), "/a/2": ("x", "y"), "/b/1": ("y",)}


# --- time -------------------------------------------------------------------------------------------------------------


class _Jumping(selectors.SelectSelector):
    """Waits for nothing: when there is nothing to do before a timer, it is that late."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise RuntimeError("everybody waits for somebody else, and no timer is set")
        self.now += max(timeout, 0.0)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time passes when there is nothing to do."""

    def __init__(self) -> None:
        self._jumping = _Jumping()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now


class LoopClock:
    """The wall clock that belongs to the time of *loop*."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def time(self) -> float:
        return EPOCH + self._loop.time()


# --- Redis ------------------------------------------------------------------------------------------------------------

_Id: TypeAlias = tuple[int, int]
_Row: TypeAlias = tuple[_Id, list[bytes]]
_LARGEST: Final = 2**64 - 1


@dataclass
class _Stream:
    rows: list[_Row] = field(default_factory=list)
    last: _Id = (0, 0)


@dataclass
class _Data:
    """All that a server keeps. Values are bytes, or entries, which nobody here needs to see as bytes."""

    values: dict[str, tuple[Any, float]] = field(default_factory=dict)
    streams: dict[str, _Stream] = field(default_factory=dict)

    def copy(self) -> _Data:
        streams = {name: _Stream(copy(stream.rows), stream.last) for name, stream in self.streams.items()}
        return _Data(copy(self.values), streams)


class _Blocked:
    """A connection that waits for news of a stream."""

    def __init__(self, name: str, after: _Id, count: int, answer: Callable[[object], None]) -> None:
        self.name = name
        self.after = after
        self.count = count
        self.answer = answer
        self.timer: asyncio.TimerHandle | None = None


class FakeRedis:
    """
    What of Redis the cache uses, by the time of *loop*: strings that expire, streams, and the scripts of coordination.

    behind: how much its clock is behind everybody's, in seconds. Replies are those of a connection with protocol 2.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._runs = itertools.count(1)
        self._data = _Data()
        # What there was before each of the latest XADDs: what a restart may go back to.
        self._past: list[_Data] = []
        self._blocked: list[_Blocked] = []
        self.run = ""
        self.behind = 0.0
        self.is_up = True
        self.connections: set[Listener] = set()
        self._scripts: dict[str, Callable[[list[str], list[bytes]], object]] = {
            OPEN: self._open,
            APPEND: self._append,
            TAKE: self._take,
            RENEW: self._renew,
            RELEASE: self._release,
        }
        self._begin_run()

    def _begin_run(self) -> None:
        self.run = f"{next(self._runs):040x}"

    def _time(self) -> float:
        return EPOCH + self._loop.time() - self.behind

    # What goes wrong with a server.

    def restart(self, *, lost: int | None = 0, behind: float = 0.0) -> None:
        """End all connections and begin anew, without the *lost* latest XADDs and what came after them; None: all."""
        if lost is None:
            self._data = _Data()
        elif lost and self._past:
            self._data = self._past[-min(lost, len(self._past))].copy()
        self._past.clear()
        self.behind = behind
        self._begin_run()
        self.reset_connections()

    def stop(self) -> None:
        """Refuse connections, until `start`."""
        self.is_up = False
        self.reset_connections()

    def start(self, *, lost: int | None = 0, behind: float = 0.0) -> None:
        """Be there again after `stop`, as after a restart."""
        self.is_up = True
        self.restart(lost=lost, behind=behind)

    def flush(self) -> None:
        """FLUSHALL: connections stay, and those that wait go on waiting."""
        self._data = _Data()
        self._past.clear()

    def reset_connections(self) -> None:
        """End all connections that listen."""
        for connection in list(self.connections):
            connection.reset()

    # Strings.

    def get(self, name: str) -> Any:
        value, until = self._data.values.get(name, (None, 0.0))
        return value if value is not None and self._time() < until else None

    def set(self, name: str, value: Any, life_ms: int) -> None:
        self._data.values[name] = (value, self._time() + life_ms / 1000)

    def delete(self, name: str) -> bool:
        there = self.get(name) is not None
        self._data.values.pop(name, None)
        return there

    def names(self, prefix: str) -> list[str]:
        return [name for name in self._data.values if name.startswith(prefix) and self.get(name) is not None]

    # Streams.

    def rows(self, name: str) -> list[_Row]:
        """Return what is in the stream *name*."""
        stream = self._data.streams.get(name)
        return [] if stream is None else stream.rows

    def _xadd(self, name: str, fields: list[bytes], at: _Id | None = None, most: int | None = None) -> bytes:
        self._past = [*self._past[-30:], self._data.copy()]
        stream = self._data.streams.setdefault(name, _Stream())
        if at is None:
            now = int(self._time() * 1000)
            ms, seq = stream.last
            at = (now, 0) if now > ms else (ms, seq + 1)
        elif at <= stream.last:
            raise StoreError("The ID specified in XADD is equal or smaller than the target stream top item")
        stream.last = at
        stream.rows.append((at, fields))
        if most is not None and len(stream.rows) > most:
            del stream.rows[: len(stream.rows) - most]
        return _text(at)

    def _xrange(self, name: str, start: bytes, end: bytes, count: int | None = None) -> list[object]:
        low = (0, 0) if start == b"-" else _parsed(start.lstrip(b"("), 0)
        high = (_LARGEST, _LARGEST) if end == b"+" else _parsed(end, _LARGEST)
        rows = [
            row for row in self.rows(name) if low <= row[0] <= high and not (start.startswith(b"(") and row[0] == low)
        ]
        return [[_text(at), list(fields)] for at, fields in rows[:count]]

    def _xread(self, blocked: _Blocked) -> list[object] | None:
        rows = [row for row in self.rows(blocked.name) if row[0] > blocked.after][: blocked.count]
        if not rows:
            return None
        return [[blocked.name.encode(), [[_text(at), list(fields)] for at, fields in rows]]]

    def read_or_block(self, words: Command, answer: Callable[[object], None]) -> _Blocked | None:
        """Do XREAD COUNT n BLOCK ms STREAMS name id. *answer* gets the reply; None is returned when it has it."""
        assert words[0] == "XREAD"
        assert words[1] == "COUNT"
        assert words[3] == "BLOCK"
        assert words[5] == "STREAMS"
        count, block, name, after = int(words[2]), int(words[4]), str(words[6]), _parsed(_bytes(words[7]), 0)
        blocked = _Blocked(name, after, count, answer)
        reply = self._xread(blocked)
        if reply is not None:
            answer(reply)
            return None

        def give_up() -> None:
            self._blocked.remove(blocked)
            answer(None)

        blocked.timer = self._loop.call_later(block / 1000, give_up)
        self._blocked.append(blocked)
        return blocked

    def unblock(self, blocked: _Blocked) -> None:
        """Forget a connection that waits; harmless when it does not any more."""
        if blocked in self._blocked:
            assert blocked.timer is not None
            blocked.timer.cancel()
            self._blocked.remove(blocked)

    def _serve_blocked(self) -> None:
        for blocked in list(self._blocked):
            reply = self._xread(blocked)
            if reply is not None:
                self.unblock(blocked)
                blocked.answer(reply)

    # Commands and scripts.

    def execute(self, words: Command) -> object:
        """Return the reply to a command. Raises StoreError for an error."""
        match words:
            case ("XRANGE", str(name), start, end):
                return self._xrange(name, _bytes(start), _bytes(end))
            case ("XRANGE", str(name), start, end, "COUNT", int(count)):
                return self._xrange(name, _bytes(start), _bytes(end), count)
            case ("EVAL", str(script), int(number), *rest):
                return self.evaluate(script, [str(key) for key in rest[:number]], rest[number:])
            case ("GET", str(name)):
                return self.get(name)
            case ("SET", str(name), value, "NX"):
                if self.get(name) is None:
                    self._keep(name, _bytes(value))
                return b"OK"
            case ("PING",):
                return b"PONG"
        raise StoreError(f"unknown command {words!r}")

    def evaluate(self, script: str, keys: Sequence[str], words: Sequence[str | bytes | int]) -> object:
        """Do what *script* does."""
        reply = self._scripts[script](list(keys), [_bytes(word) for word in words])
        # Whoever waits is told when the script is over, as Redis does it.
        self._serve_blocked()
        return reply

    def _begin(self, keys: list[str], run: bytes) -> None:
        self._xadd(keys[0], [b"open", run])
        self._keep(keys[1], run)

    def _has(self, stream: str, known: bytes, run: bytes) -> int:
        if not known:
            return 0
        if self._xrange(stream, known, known):
            return 1
        if not self._xrange(stream, known, b"+", 1):
            self._xadd(stream, [b"open", run], (_parsed(known, 0)[0] + 1, 0))
        elif self._xrange(stream, b"-", known, 1):
            self._xadd(stream, [b"open", run])
        return 0

    def _open(self, keys: list[str], words: list[bytes]) -> object:
        own = self.run.encode()
        if not self.rows(keys[0]) or self.get(keys[1]) != own:
            self._begin(keys, own)
        is_known = self._has(keys[0], words[0], own)
        return [is_known, _text(self.rows(keys[0])[0][0]), own, b"%d" % 2**47]

    def _append(self, keys: list[str], words: list[bytes]) -> object:
        stream, _ = keys
        known, most, own, count, *payloads = words
        if not self.rows(stream):
            self._begin(keys, own)
        is_known = self._has(stream, known, own)
        log_id = b""
        for payload in payloads:
            log_id = self._xadd(stream, [b"marks", payload], most=int(most))
        news: list[object] = []
        if is_known and self._xrange(stream, known, known):
            news = self._xrange(stream, b"(" + known, b"+", int(count))
        return [log_id, news, is_known]

    def _keep(self, name: str, value: bytes) -> None:
        self.set(name, value, 10**12)

    def _take(self, keys: list[str], words: list[bytes]) -> object:
        there = self.get(keys[0])
        if not isinstance(there, bytes) or there == words[2]:
            self.set(keys[0], words[0], int(words[1]))
            return None
        return there

    def _renew(self, keys: list[str], words: list[bytes]) -> object:
        if self.get(keys[0]) != words[0]:
            return 0
        self.set(keys[0], words[0], int(words[1]))
        return 1

    def _release(self, keys: list[str], words: list[bytes]) -> object:
        if self.get(keys[0]) != words[0]:
            return 0
        self.set(keys[0], words[1], int(words[2]))
        return 1


def _bytes(word: str | bytes | int) -> bytes:
    return word if isinstance(word, bytes) else str(word).encode()


def _text(at: _Id) -> bytes:
    return b"%d-%d" % at


def _parsed(text: bytes, sequence: int) -> _Id:
    ms, dash, seq = text.partition(b"-")
    try:
        return int(ms), int(seq) if dash else sequence
    except ValueError:
        raise StoreError("Invalid stream ID specified as stream command argument") from None


# --- the network ------------------------------------------------------------------------------------------------------


class Way(NamedTuple):
    """
    How one direction of a network is. drop, slow, twice: how often what is sent is lost, late, or comes twice.

    late: by how much at most, in seconds; so what was sent later may come first.
    """

    drop: float = 0.0
    slow: float = 0.0
    late: float = 0.0
    twice: float = 0.0


CALM: Final = Way()


class Wire:
    """
    What one worker has of the network: it fulfils `Server`, and the L2 of its store asks through it.

    partitioned: nothing comes through. deaf: nothing of listeners does. mute: nothing but of listeners does.
    """

    location: Final = "simulation"
    prefix: Final = PREFIX

    def __init__(self, redis: FakeRedis, loop: asyncio.AbstractEventLoop, random: Random) -> None:
        self.redis = redis
        self.there = CALM
        self.back = CALM
        self.partitioned = False
        self.deaf = False
        self.mute = False
        self.listeners: set[Listener] = set()
        self._loop = loop
        self._random = random

    def is_cut(self, *, listening: bool) -> bool:
        return self.partitioned or (self.deaf if listening else self.mute)

    def send(self, way: Way, action: Callable[[], None], *, listening: bool = False) -> None:
        """Let *action* happen at the other end, once, or not at all, or twice; not where the server is another run."""
        run = self.redis.run

        def arrive() -> None:
            if not self.is_cut(listening=listening) and self.redis.run == run and self.redis.is_up:
                action()

        for _ in range(1 if listening or self._random.random() >= way.twice else 2):
            if self.is_cut(listening=listening) or self._random.random() < way.drop:
                continue
            late = self._random.uniform(0.0, way.late) if self._random.random() < way.slow else 0.0
            self._loop.call_later(LATENCY + late, arrive)

    async def ask(self, execute: Callable[[], _T], *, listening: bool = False) -> _T:
        """Return what *execute* gives at the server. Raises StoreError."""
        reply: asyncio.Future[_T] = self._loop.create_future()

        def serve() -> None:
            try:
                result = execute()
            except StoreError as error:
                failure = error
                self.send(self.back, lambda: None if reply.done() else reply.set_exception(failure))
                return
            self.send(self.back, lambda: None if reply.done() else reply.set_result(result), listening=listening)

        if not self.redis.is_up and not self.is_cut(listening=listening):
            await asyncio.sleep(2 * LATENCY)
            raise StoreError("connection refused")
        self.send(self.there, serve, listening=listening)
        try:
            async with asyncio.timeout(TIMEOUT):
                return await reply
        except TimeoutError:
            raise StoreTimeout(f"the simulated Redis did not answer within {TIMEOUT} s") from None

    async def read(self, name: str) -> bytes | None:
        value = await self.ask(lambda: self.redis.get(name))
        return value if isinstance(value, bytes) else None

    async def evaluate(self, script: str, keys: Sequence[str], words: Sequence[str | bytes | int]) -> object:
        return await self.ask(lambda: self.redis.evaluate(script, keys, words))

    async def listen(self, name: str) -> Listener:
        await self.ask(lambda: None, listening=True)
        return Listener(self)

    def kill_listeners(self) -> None:
        """As CLIENT KILL does."""
        for listener in list(self.listeners):
            listener.reset()


class Listener:
    """A connection of its own: what is asked and answered keeps its order, and may be late or lost all the same."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._redis = wire.redis
        self._closed: StoreError | None = None
        self._reply: asyncio.Future[list[object]] | None = None
        self._blocked: _Blocked | None = None
        wire.listeners.add(self)
        self._redis.connections.add(self)

    async def ask(self, commands: Sequence[Command], timeout: float) -> list[object]:
        if self._closed is not None:
            raise self._closed
        reply: asyncio.Future[list[object]] = asyncio.get_running_loop().create_future()
        self._reply = reply
        self._wire.send(self._wire.there, lambda: self._serve(commands, reply), listening=True)
        try:
            async with asyncio.timeout(timeout):
                return await reply
        except TimeoutError:
            self._close(StoreError("closed"))
            raise StoreTimeout(f"the simulated Redis did not answer within {timeout} s") from None
        except BaseException:
            self._close(StoreError("closed"))
            raise
        finally:
            self._reply = None

    def _serve(self, commands: Sequence[Command], reply: asyncio.Future[list[object]]) -> None:
        if self._closed is not None:
            return
        replies: list[object] = []

        def answer(last: object) -> None:
            self._blocked = None
            whole = [*replies, last]
            self._wire.send(self._wire.back, lambda: None if reply.done() else reply.set_result(whole), listening=True)

        try:
            replies.extend([self._redis.execute(words) for words in commands[:-1]])
            if commands[-1][0] == "XREAD":
                self._blocked = self._redis.read_or_block(commands[-1], answer)
            else:
                answer(self._redis.execute(commands[-1]))
        except StoreError as error:
            failure = error
            self._wire.send(
                self._wire.back, lambda: None if reply.done() else reply.set_exception(failure), listening=True
            )

    def reset(self) -> None:
        """Be ended by the other side. Without a way to the server nobody hears of it."""
        error = StoreError("connection reset by peer")
        reply = self._reply
        self._close(error)
        if reply is not None and not reply.done() and not self._wire.is_cut(listening=True):
            reply.set_exception(error)

    def _close(self, error: StoreError) -> None:
        self._closed = self._closed or error
        self._wire.listeners.discard(self)
        self._redis.connections.discard(self)
        if self._blocked is not None:
            self._redis.unblock(self._blocked)
            self._blocked = None

    async def aclose(self) -> None:
        self._close(StoreError("closed"))


class SharedLevel:
    """L2: entries in the simulated Redis. What is written may come late, twice or never, as everything."""

    remote = True
    timeout = TIMEOUT

    def __init__(self, wire: Wire, clock: LoopClock) -> None:
        self.server = wire
        self._clock = clock
        self._redis = wire.redis
        self._errors = 0

    def get_nowait(self, key: CacheKey) -> Held | None:
        return None

    def unused(self) -> None:
        pass

    def drop_nowait(self, key: CacheKey) -> None:
        pass

    async def _ask(self, execute: Callable[[], _T]) -> _T:
        try:
            return await self.server.ask(execute)
        except StoreError:
            self._errors += 1
            raise

    async def get(self, key: CacheKey, match: Match) -> Entry | None:
        entry = await self._ask(lambda: self._redis.get(_name(key)))
        return entry if isinstance(entry, Entry) and match(entry.vary) else None

    async def set(self, key: CacheKey, entry: Entry) -> bool:
        left = entry.retain_until - self._clock.time()
        if left < 0:
            return False
        # As RedisStore: what a negative mark counts means nothing to others.
        entry = entry._replace(mark=max(0, entry.mark))
        await self._ask(lambda: self._redis.set(_name(key), entry, int(left * 1000) + 1))
        return True

    def put(self, key: CacheKey, entry: Entry) -> Coroutine[Any, Any, bool]:
        return self.set(key, entry)

    async def delete(self, key: CacheKey) -> bool:
        return await self._ask(lambda: self._redis.delete(_name(key)))

    async def clear(self) -> int:
        return await self._ask(lambda: sum([self._redis.delete(name) for name in self._redis.names(f"{PREFIX}:v:")]))

    async def keys(self) -> AsyncIterator[CacheKey]:
        for path in PATHS:
            key: CacheKey = ("GET", "http", b"test", path.encode(), b"")
            if await self._ask(lambda key=key: self._redis.get(_name(key))) is not None:  # type: ignore[misc]  # a lambda
                yield key

    def stats(self) -> StoreStats:
        return StoreStats(0, 0, 0, 0, self._errors, None, None)

    async def aclose(self) -> None:
        self.server.kill_listeners()


def _name(key: CacheKey) -> str:
    return f"{PREFIX}:v:{key!r}"


# --- workers ----------------------------------------------------------------------------------------------------------


class Target(NamedTuple):
    """What is invalidated: everything when nothing is named."""

    url: str | None = None
    tag: str | None = None
    prefix: str | None = None

    def names(self, path: str) -> bool:
        if self.tag is not None:
            return self.tag in PATHS[path]
        if self.prefix is not None:
            return path.startswith(self.prefix)
        return self.url is None or self.url.removeprefix("http://test") == path


class Call(NamedTuple):
    """One call of the app: which datum it read, when it began."""

    number: int
    path: str
    version: int
    began: int
    began_at: float


@dataclass
class Invalidated:
    """An invalidation that was asked for. ended: None as long as it has not returned."""

    node: str
    life: int
    target: Target
    soft: bool
    began: int
    began_at: float
    quiet_since: float
    ended: int | None = None
    ended_at: float = 0.0
    propagated: bool = False


@dataclass(frozen=True)
class Answer:
    """What a client got. ttl and hit are what Cache-Status says."""

    node: str
    life: int
    path: str
    started: int
    started_at: float
    ended_at: float
    call: Call
    hit: bool
    ttl: int | None
    status: str


class Node:
    """One worker. A new life begins with empty memory."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.life = 0
        self.wire = Wire(world.redis, world.loop, world.random)
        self.is_open = False
        self.l1: MemoryStore
        self.log: SharedLog
        self.cache: Cache
        self.app: HTTPCacheMiddleware

    async def open(self) -> None:
        """Start, as a server does."""
        world = self.world
        self.life += 1
        self.is_open = True
        self.l1 = MemoryStore(1024 * 1024, clock=world.clock)
        store = TwoLevelStore(self.l1, SharedLevel(self.wire, world.clock), world.levels, clock=world.clock)
        self.log = SharedLog(self.wire, world.clock, max_marks=world.max_marks, max_pending=world.max_pending)
        self.cache = Cache(store, coordination=world.coordination, clock=world.clock, log=self.log)
        self.app = HTTPCacheMiddleware(world.app, cache=self.cache)
        self.cache.start()

    async def close(self) -> None:
        """Stop, as a server does."""
        self.is_open = False
        await self.cache.aclose(1.0)

    async def get(self, path: str, *, takes: float = 0.0) -> Answer:
        """
        Ask for *path*; the handler takes *takes* seconds if it is called. The world judges the answer.

        Raises Interrupted when the worker ends meanwhile.
        """
        world = self.world
        life, started, started_at = self.life, world.tick(), world.loop.time()
        request = open_request(self.app, "GET", path, {"x-takes": repr(takes)})
        response = await request.response()
        number, status = int(response["x-call"]), response["cache-status"]
        ttl = status.partition("ttl=")[2].partition(";")[0]
        call = world.calls[number]
        hit = "; hit" in status
        answer = Answer(
            *(self.name, life, path, started, started_at, world.loop.time(), call, hit),
            *(int(ttl) if ttl else None, status),
        )
        expected = f"{path} version {call.version}".encode()
        if response.body != expected or call.path != path:
            world.blame(f"{answer} has the body {response.body!r}, not {expected!r}")
        world.judge(answer)
        return answer

    async def invalidate(self, target: Target, *, soft: bool = False, write: bool = True) -> Invalidated:
        """Write new versions of what *target* names, and invalidate it."""
        world = self.world
        if write:
            for path in PATHS:
                world.versions[path] += target.names(path)
        done = Invalidated(self.name, self.life, target, soft, world.tick(), world.loop.time(), world.quiet_since)
        world.invalidations.append(done)
        world.note(f"{self.name} invalidates {target}")
        if target == Target():
            result = await self.cache.clear()
        else:
            tags = () if target.tag is None else (target.tag,)
            result = await self.cache.invalidate(url=target.url, tags=tags, prefix=target.prefix, soft=soft)
        done.ended, done.ended_at, done.propagated = world.tick(), world.loop.time(), result.propagated
        world.note(f"{self.name} has invalidated {target}, propagated: {result.propagated}, at {result.log_id}")
        return done

    async def known(self) -> None:
        """Wait until all is known here that is in the log now, for 10 s at most."""
        since = self.world.clock.time()
        for _ in range(5000):
            if self.world.clock.time() - self.log.unheard_for() >= since:
                return
            await asyncio.sleep(0.002)
        raise AssertionError(f"{self.name} does not hear the log: {self.log!r}")


class Warnings(logging.Handler):
    """Notes what is logged: whatever has a traceback is a bug, here or there, and nobody would see it."""

    def __init__(self, world: World) -> None:
        super().__init__(logging.WARNING)
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        self._world.note(f"log: {message}")
        self._world.warnings.append(message)
        if record.exc_info or record.levelno >= logging.ERROR:
            self._world.blame(f"{message}: {record.exc_info}")

    def __enter__(self) -> Warnings:
        for name in ("echo_cache", "asyncio"):
            logging.getLogger(name).addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        for name in ("echo_cache", "asyncio"):
            logging.getLogger(name).removeHandler(self)


class World:
    """
    Three workers, the Redis that they share, the app's data, and all that was asked and answered.

    max_age: what the app says of its responses. validators: whether it gives them an ETag, and answers 304.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        strategy: CacheStrategy = CacheStrategy.WRITE_THROUGH,
        unsynced: UnsyncedMode = UnsyncedMode.CAP,
        max_unsynced: float = 5.0,
        max_marks: int = 1_000,
        max_pending: int = 1_000,
        lease_wait: float = 5.0,
        max_age: int = 100,
        validators: bool = True,
        sync_mode: SyncMode = SyncMode.ASYNC,
        seed: int = 0,
        names: str = "ABC",
    ) -> None:
        self.loop = loop
        self.clock = LoopClock(loop)
        self.random = Random(seed)
        self.redis = FakeRedis(loop)
        self.max_marks = max_marks
        self.max_pending = max_pending
        self.max_age = max_age
        self.validators = validators
        self.levels = TwoLevelConfig(strategy=strategy, sync_mode=sync_mode, drain_timeout=1.0)
        self.coordination = CoordinationOptions(
            report_every=0, max_unsynced=max_unsynced, unsynced=unsynced, lease_wait=lease_wait, lease_ttl=2.0
        )
        self.versions = dict.fromkeys(PATHS, 1)
        self.calls: dict[int, Call] = {}
        self.conditional = 0
        self.not_modified = 0
        self.answers: list[Answer] = []
        self.invalidations: list[Invalidated] = []
        self.blamed: list[str] = []
        self.warnings: list[str] = []
        self.story: list[str] = []
        # Since when nothing has gone wrong with the network; see `trouble`.
        self.quiet_since = 0.0
        self._ticks = itertools.count(1)
        self._fresh_until: dict[tuple[str, int], float] = {}
        self.nodes = [Node(self, name) for name in names]

    def tick(self) -> int:
        """Return the place of what happens now in the order of all that happens: many things share one instant."""
        return next(self._ticks)

    def note(self, what: str) -> None:
        self.story.append(f"{self.loop.time():9.3f} {what}")

    def blame(self, what: str) -> None:
        self.note(f"WRONG: {what}")
        self.blamed.append(what)

    def trouble(self, what: str, *, lasts: float = 0.0) -> None:
        """Note that something goes wrong with the network or Redis, and is felt for *lasts* seconds."""
        self.note(what)
        self.quiet_since = max(self.quiet_since, self.loop.time() + lasts)

    def in_trouble(self) -> bool:
        """Say whether something is wrong now."""
        ways = [way for node in self.nodes for way in (node.wire.there, node.wire.back)]
        cut = [node.wire for node in self.nodes if node.wire.partitioned or node.wire.deaf or node.wire.mute]
        return bool(cut) or any(way != CALM for way in ways) or not self.redis.is_up

    def heal(self) -> None:
        """Let everything come through again."""
        for node in self.nodes:
            wire = node.wire
            wire.partitioned = wire.deaf = wire.mute = False
            wire.there = wire.back = CALM
        if not self.redis.is_up:
            self.redis.start()

    async def app(self, scope: Any, receive: Any, send: Callable[[Message], Any]) -> None:
        """Answer with the version of the datum at the time when it was called."""
        assert scope["type"] == "http"
        path, headers = scope["path"], dict(scope["headers"])
        call = Call(len(self.calls) + 1, path, self.versions[path], self.tick(), self.loop.time())
        self.calls[call.number] = call
        takes = float(headers[b"x-takes"])
        if takes:
            await asyncio.sleep(takes)
        etag = b'"%d"' % call.version
        fields = [
            (b"cache-control", b"max-age=%d" % self.max_age),
            (b"cache-groups", ", ".join(f'"{tag}"' for tag in PATHS[path]).encode()),
            (b"x-call", b"%d" % call.number),
        ]
        if self.validators:
            fields.append((b"etag", etag))
        asked = headers.get(b"if-none-match")
        self.conditional += asked is not None
        if asked == etag:
            self.not_modified += 1
            await send({"type": "http.response.start", "status": 304, "headers": fields})
            await send({"type": "http.response.body", "body": b""})
            return
        await send({"type": "http.response.start", "status": 200, "headers": fields})
        await send({"type": "http.response.body", "body": f"{path} version {call.version}".encode()})

    # --- the judge ----------------------------------------------------------------------------------------------------

    # What the clocks of code under test round: a heartbeat to milliseconds.
    SLACK = 0.01
    # What a worker may need to hear of an invalidation while all is well, and how long after trouble all is well again.
    PROPAGATION = 0.05
    # Where the stream is so short that a burst of them makes a gap, it connects once more.
    PROPAGATION_BY_GAP = 0.1
    RECOVERY = 3.5

    def judge(self, answer: Answer) -> None:
        """
        Note what is wrong with *answer*.

        It must not be of a call that began before an invalidation of it, if the request began after the end of that:
        in the same worker at once; elsewhere, if it was acknowledged, within moments when all is well, and within
        max_unsynced whatever happens. A soft one counts as a hard one here, as nothing may be served stale.
        """
        self.answers.append(answer)
        self.note(f"{answer.node} has answered {answer.path} of call {answer.call.number}: {answer.status}")
        for done in self.invalidations:
            if done.ended is None or answer.call.began > done.began or not done.target.names(answer.path):
                continue
            if (answer.node, answer.life) == (done.node, done.life):
                late = answer.started > done.ended
            elif done.propagated:
                late = answer.started_at >= done.ended_at + self.bound(done, answer)
            else:
                late = False
            if late:
                self.blame(f"{answer} is older than {done}")
        if answer.hit and answer.ttl is not None:
            left = answer.call.began_at + self.max_age - answer.ended_at
            # The fields of a hit are made once a second.
            if answer.ttl > left + 1.0:
                self.blame(f"{answer} has {left} s left")

    def bound(self, done: Invalidated, answer: Answer) -> float:
        """Return how much later than *done* another worker may still answer with what it has named."""
        well_since = self.quiet_since + self.RECOVERY
        if done.began_at >= well_since and not self.in_trouble():
            return self.PROPAGATION if self.max_marks > 100 else self.PROPAGATION_BY_GAP
        return self.coordination.max_unsynced + self.SLACK

    def look_at_levels(self) -> None:
        """Note what is wrong with the lives of entries at all levels: none ever grows."""
        for node in self.nodes:
            if node.life:
                for path in PATHS:
                    for entry in node.l1.peek(("GET", "http", b"test", path.encode(), b"")):
                        self._look_at(f"{node.name}{node.life}", entry)
        for name in self.redis.names(f"{PREFIX}:v:"):
            self._look_at("L2", self.redis.get(name))

    def _look_at(self, level: str, entry: Entry) -> None:
        number = int(dict(entry.response.headers)[b"x-call"])
        for place in (level, "anywhere"):
            known = self._fresh_until.setdefault((place, number), entry.fresh_until)
            if entry.fresh_until > known:
                self.blame(f"what call {number} brought has got a longer life at {level}: {known}, {entry.fresh_until}")

    def check(self) -> None:
        """Fail if anything was found wrong, with the story that led to it."""
        if self.blamed:
            raise AssertionError("\n".join(["", *self.blamed, "", *self.story[-80:]]))

    # --- the stage ----------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        for node in self.nodes:
            await node.open()
        for node in self.nodes:
            await node.known()

    async def close(self) -> None:
        for node in self.nodes:
            if node.is_open:
                await node.close()

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)


def simulate(scenario: Callable[[World], Coroutine[Any, Any, None]], **options: Any) -> World:
    """Run *scenario* in a world of its own, in virtual time, and return that world when everything has ended."""
    state = random.getstate()
    random.seed(options.get("seed", 0))
    try:
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            world = World(runner.get_loop(), **options)

            async def play() -> None:
                await world.open()
                try:
                    await scenario(world)
                    world.look_at_levels()
                finally:
                    world.heal()
                    await world.close()

            with Warnings(world):
                runner.run(play())
    finally:
        random.setstate(state)
    world.check()
    return world
