"""What the tests of RedisStore share: stores that are closed, clients that record, servers that lie."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from typing import Any, ClassVar, Protocol, TypeAlias

import pytest
import redis
import redis.asyncio

from echo_cache import codec
from echo_cache.model import CacheKey, Vary
from echo_cache.stores import RedisStore
from tests.store_contract import language

# For tests that ask what is answered and not when: a loaded machine is slow.
PATIENT = 30.0

# What a test waits at most for a thing that must come by itself.
DEADLINE = 30.0

DE, FR = language(b"de"), language(b"fr")

# What redis-py says of itself on a new connection.
GREETINGS = (b"CLIENT", b"PING", b"SELECT", b"AUTH", b"HELLO")


class MakeStore(Protocol):
    def __call__(self, server: Any, **options: Any) -> RedisStore: ...


@pytest.fixture
async def make_store() -> AsyncIterator[MakeStore]:
    """Make stores that are closed at the end of the test."""
    stores: list[RedisStore] = []

    def make(server: Any, **options: Any) -> RedisStore:
        stores.append(RedisStore(server, **{"timeout": PATIENT, **options}))
        return stores[-1]

    yield make
    for store in stores:
        await store.aclose()


@pytest.fixture
async def store(redis_url: str, make_store: MakeStore) -> RedisStore:
    return make_store(redis_url)


@pytest.fixture
def server(redis_url: str) -> Iterator[Any]:
    """The server behind *redis_url*, without a store between."""
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
async def reports() -> AsyncIterator[list[dict[str, Any]]]:
    """What the event loop reports: errors that nobody retrieved, tasks that were destroyed. There must be nothing."""
    found: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: found.append(context))
    yield found
    gc.collect()
    await asyncio.sleep(0)
    loop.set_exception_handler(None)
    assert found == []


class TrueClock:
    """The machine's clock, given: it is taken for the server's, so no server is asked for its time."""

    def time(self) -> float:
        return time.time()


def name_of(key: CacheKey, vary: Vary = (), *, prefix: str = "echo_cache") -> str:
    name = f"{prefix}:{codec.FORMAT_VERSION}:{{{codec.key_digest(key)}}}"
    return f"{name}:{codec.variant_id(vary).hex()}" if vary else name


async def until(condition: Callable[[], bool | Awaitable[bool]]) -> None:
    """Return when *condition* holds; it must within DEADLINE."""
    async with asyncio.timeout(DEADLINE):
        while True:
            holds = condition()
            if isinstance(holds, Awaitable):
                holds = await holds
            if holds:
                return
            await asyncio.sleep(0.01)


def is_idle(store: RedisStore) -> bool:
    """Say whether nothing of *store* is under way."""
    return " 0 under way " in repr(store)


# --- recording --------------------------------------------------------------------------------------------------------


class Recorder:
    """
    A client that notes what it writes to its sockets.

    writes: one list for each write, of the commands in it, each a list of words; without the greetings of a new
    connection.
    """

    def __init__(self, url: str, max_connections: int = 16) -> None:
        self.writes: list[list[list[bytes]]] = []
        writes = self.writes

        class Connection(redis.asyncio.Connection):
            async def send_packed_command(self, command: Any, check_health: bool = True) -> None:
                parts = [command] if isinstance(command, bytes) else list(command)
                commands = [words for words in _commands(b"".join(parts)) if words[0] not in GREETINGS]
                if commands:
                    writes.append(commands)
                await super().send_packed_command(parts, check_health)

        self.pool = redis.asyncio.BlockingConnectionPool.from_url(
            url, max_connections=max_connections, timeout=None, protocol=2, connection_class=Connection
        )
        self.client = redis.asyncio.Redis.from_pool(self.pool)

    async def __aenter__(self) -> Recorder:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.aclose()

    def taken(self) -> list[str]:
        """Return the names of the commands of each write since the last call, joined: one string is one round trip."""
        taken = [" ".join(words[0].decode() for words in commands) for commands in self.writes]
        self.writes.clear()
        return taken


def _commands(data: bytes) -> Iterable[list[bytes]]:
    """Iterate over the commands in *data*, each as its words."""
    while data:
        line, _, data = data.partition(b"\r\n")
        words = []
        for _ in range(int(line[1:])):
            line, _, data = data.partition(b"\r\n")
            size = int(line[1:])
            words.append(data[:size])
            data = data[size + 2 :]
        yield words


# --- lying ------------------------------------------------------------------------------------------------------------


Reply: TypeAlias = bytes | None


class LyingServer:
    """
    A server that answers each command by *reply*, which gets the words of the command.

    What *reply* returns may have to be awaited; None closes the connection. The commands by which redis-py introduces
    itself are answered as a server does. So is TIME, which comes before anything else, unless *time* says otherwise.
    """

    GREETINGS: ClassVar[dict[bytes, bytes]] = {b"CLIENT": b"+OK\r\n", b"PING": b"+PONG\r\n"}

    def __init__(self, reply: Callable[[list[bytes]], Reply | Awaitable[Reply]], *, time: bytes | None = None) -> None:
        self.reply = reply
        self.time = time
        self.connections = 0

    async def __aenter__(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"redis://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _answer(self, words: list[bytes]) -> Reply:
        if words[0] in self.GREETINGS:
            return self.GREETINGS[words[0]]
        if words[0] == b"TIME":
            return self.time if self.time is not None else array(b"%d" % int(time.time()), b"0")
        reply = self.reply(words)
        return await reply if isinstance(reply, Awaitable) else reply

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while line := await reader.readline():
                words = []
                for _ in range(int(line[1:])):
                    size = int((await reader.readline())[1:])
                    words.append((await reader.readexactly(size + 2))[:-2])
                reply = await self._answer(words)
                if reply is None:
                    break
                writer.write(reply)
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


def bulk(value: bytes | None) -> bytes:
    """Return the reply that says *value*."""
    return b"$-1\r\n" if value is None else b"$%d\r\n%s\r\n" % (len(value), value)


def array(*values: bytes | None) -> bytes:
    """Return the reply that lists *values*."""
    return b"*%d\r\n%s" % (len(values), b"".join(map(bulk, values)))
