"""
Processes that write behind, to be killed: they print each write once it is acknowledged, and save what waits.

The saver puts each write into a table of all writes, once, and into one of the newest values, as the documentation
shows. `changes` counts how often a value took effect.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import IO, Any, Final, NamedTuple, Self

from psycopg import sql
from psycopg_pool import AsyncConnectionPool

from echo_cache import RedisStore
from echo_cache.aside import CacheAside, Write
from echo_cache.aside.behind import durable

__all__ = ["LEASE", "Ack", "Nursery", "WorkerProcess", "database", "prepare", "saving"]

ROOT: Final = Path(__file__).parent.parent
KEYS: Final = 64
# Of the processes here, in seconds: so long do writes wait for one that was killed.
LEASE: Final = 0.5

_TABLES: Final = """
CREATE TABLE {history} (at bigserial, write_id uuid PRIMARY KEY, key text, value int, repeated bool);
CREATE TABLE {newest} (key text PRIMARY KEY, value int, write_id uuid, changes int);
"""
_SAVE: Final = """
WITH written AS (
  INSERT INTO {history} (write_id, key, value, repeated) VALUES (%(id)s, %(key)s, %(value)s, %(repeated)s)
  ON CONFLICT (write_id) DO NOTHING
)
INSERT INTO {newest} (key, value, write_id, changes) VALUES (%(key)s, %(value)s, %(id)s, 1)
ON CONFLICT (key) DO UPDATE SET value = excluded.value, write_id = excluded.write_id, changes = {newest}.changes + 1
WHERE {newest}.write_id < excluded.write_id
"""


class Ack(NamedTuple):
    """A write that was acknowledged."""

    key: str
    id: str
    value: int


def _words(words: str, name: str) -> sql.Composed:
    return sql.SQL(words).format(history=sql.Identifier(f"{name}_history"), newest=sql.Identifier(f"{name}_newest"))


async def prepare(pool: AsyncConnectionPool[Any], name: str) -> None:
    """Make the tables *name*."""
    async with pool.connection() as connection:
        await connection.execute(_words(_TABLES, name))


@contextlib.asynccontextmanager
async def database(url: str, timeout: float = 30.0) -> AsyncIterator[AsyncConnectionPool[Any]]:
    """Yield connections to *url*; timeout: how long to wait for one, in seconds."""
    async with AsyncConnectionPool(
        url, min_size=2, max_size=8, timeout=timeout, reconnect_timeout=0.5, kwargs={"autocommit": True}
    ) as pool:
        yield pool


def saving(aside: CacheAside, pool: AsyncConnectionPool[Any], name: str, **options: Any) -> Any:
    """Return a saver of *aside* that saves into the tables *name*."""
    words = _words(_SAVE, name)

    @aside.saver(name=name, **options)
    async def save(write: Write[Any]) -> None:
        values = {"id": write.id, "key": write.key, "value": write.value, "repeated": write.is_repeated}
        async with pool.connection() as connection:
            await connection.execute(words, values)

    return save


# --- the processes ----------------------------------------------------------------------------------------------------


class Nursery:
    """A process that has imported all that is needed and makes the others: so each of ten is there at once."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.behind_worker", str(theirs.fileno())],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                pass_fds=[theirs.fileno()],
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        self._process.wait()

    def worker(self, redis_url: str, postgres_url: str, name: str) -> WorkerProcess:
        """Return a new process that saves into the tables *name* at once, and writes when it is told to."""
        told, tells = os.pipe()
        heard, said = os.pipe()
        words = "\n".join([redis_url, postgres_url, name])
        socket.send_fds(self._socket, [words.encode()], [told, said])
        os.close(told)
        os.close(said)
        return WorkerProcess(int(self._socket.recv(20)), os.fdopen(tells, "w"), os.fdopen(heard))


class WorkerProcess:
    """A process that is killed at the end, and ends by itself when the test does."""

    def __init__(self, pid: int, tells: IO[str], heard: IO[str]) -> None:
        self._pid = pid
        self._tells = tells
        self._heard = heard

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._tells.close()
        self._heard.close()

    def write(self, first: int) -> Iterator[Ack]:
        """Let it write values from *first* on, and iterate over what is acknowledged."""
        print(first, file=self._tells, flush=True)
        return self.acks()

    def acks(self) -> Iterator[Ack]:
        """Iterate over what it has printed and nobody has read, until it is gone. Half a line is no acknowledgement."""
        for line in self._heard:
            if line.endswith("\n"):
                key, id_, value = line.split()
                yield Ack(key, id_, int(value))

    def kill(self) -> None:
        """Kill it (SIGKILL)."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)


def _serve(requests: socket.socket) -> None:
    """Make a process for each request, until there are no more."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        words, streams, _, _ = socket.recv_fds(requests, 4096, 2)
        if not words:
            return
        pid = os.fork()
        if pid == 0:
            requests.close()
            for number, stream in enumerate(streams):
                os.dup2(stream, number)
                os.close(stream)
            asyncio.run(_main(*words.decode().split("\n")))
            return
        for stream in streams:
            os.close(stream)
        requests.send(b"%d" % pid)


async def _write(aside: CacheAside, save: Any, key: str, numbers: Iterator[int]) -> None:
    for number in numbers:
        id_ = await aside.write_behind(key, number, save)
        print(key, id_, number, flush=True)


async def _main(redis_url: str, postgres_url: str, name: str) -> None:
    durable.LEASE_SECONDS = LEASE  # type: ignore[misc]  # shorter than a round of the test
    async with (
        database(postgres_url) as pool,
        CacheAside(RedisStore(redis_url, timeout=30.0), "killed") as aside,
    ):
        save = saving(aside, pool, name)
        async with aside:  # the saver is there now
            first = int(await asyncio.to_thread(sys.stdin.readline))
            numbers = iter(range(first, 1 << 31))
            await asyncio.gather(*[_write(aside, save, f"k{number}", numbers) for number in range(KEYS)])


if __name__ == "__main__":
    import redis.asyncio  # noqa: F401  # else each process would have to

    with socket.socket(fileno=int(sys.argv[1])) as given:
        _serve(given)
