"""
Processes that write behind, to be killed: they print each write once it is acknowledged, and save what waits.

The saver puts each write into a table of all writes, once, and into one of the newest values, as the documentation
shows. `changes` counts how often a value took effect.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

from psycopg import sql
from psycopg_pool import AsyncConnectionPool

from echo_cache import RedisStore
from echo_cache.aside import CacheAside, Write
from echo_cache.aside.behind import durable
from tests.servers import WATCHDOG

__all__ = ["LEASE", "Ack", "Acks", "WorkerProcess", "database", "prepare"]

ROOT: Final = Path(__file__).parent.parent
KEYS: Final = 20
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
async def database(url: str, timeout: float = 30.0) -> Any:
    """Yield connections to *url*; timeout: how long to wait for one, in seconds."""
    async with AsyncConnectionPool(
        url, min_size=2, max_size=4, timeout=timeout, reconnect_timeout=0.5, kwargs={"autocommit": True}
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


class WorkerProcess:
    """A process that saves at once, and writes when it is told to, until it is killed."""

    def __init__(self, redis_url: str, postgres_url: str, name: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.behind_worker", redis_url, postgres_url, name],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        # Kills it when the test runner is gone.
        self._watchdog = subprocess.Popen(
            ["/bin/sh", "-c", WATCHDOG, "echo-cache-test-watchdog", str(self._process.pid)], stdin=subprocess.PIPE
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def write(self, first: int) -> Iterator[Ack]:
        """Let it write values from *first* on, and iterate over what is acknowledged."""
        assert self._process.stdin is not None
        print(first, file=self._process.stdin, flush=True)
        yield from self.rest()

    def rest(self) -> Iterator[Ack]:
        """Iterate over what it has printed and nobody has read; complete once it was killed."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.endswith("\n"):
                key, id_, value = line.split()
                yield Ack(key, id_, int(value))

    def kill(self) -> None:
        """Kill it (SIGKILL)."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        self.kill()
        self._watchdog.kill()
        self._watchdog.wait()
        streams: list[IO[Any] | None] = [self._process.stdin, self._process.stdout, self._watchdog.stdin]
        for stream in streams:
            if stream is not None:
                stream.close()


Acks = list[Ack]


async def _write(aside: CacheAside, save: Any, key: str, numbers: Iterator[int]) -> None:
    for number in numbers:
        id_ = await aside.write_behind(key, number, save)
        print(key, id_, number, flush=True)


async def _main(options: argparse.Namespace) -> None:
    durable.LEASE_SECONDS = LEASE  # type: ignore[misc]  # shorter than a round of the test
    async with (
        database(options.postgres) as pool,
        CacheAside(RedisStore(options.redis, timeout=30.0), "killed") as aside,
    ):
        save = saving(aside, pool, options.name)
        await aside.__aenter__()
        first = await asyncio.to_thread(sys.stdin.readline)
        numbers = iter(range(int(first), 1 << 31))
        await asyncio.gather(*[_write(aside, save, f"k{number}", numbers) for number in range(KEYS)])


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for argument in ("redis", "postgres", "name"):
        parser.add_argument(argument)
    asyncio.run(_main(parser.parse_args()))
