"""
A workload of many keys over the two levels, and what it costs in calls of the app and in memory.

Requests are drawn by Zipf's law with exponent 1.0, so that a tenth of the keys gets four fifths of them. L2 holds all
entries before it begins; L1 has room for a tenth of their bytes. Beside it runs a memory store of L1's size alone.

Memory is what tracemalloc says that the process allocated and still holds: the store's own count would not see what is
beside the store. The growth of the resident set says less: what the imports gave back is used again, and of 9.9 MB that
were held it showed 1.4. What tracemalloc does not see is hiredis's buffer of a few kB per connection.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import os
import random
import subprocess
import sys
import time
import tracemalloc
from array import array
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from echo_cache import TwoLevelConfig
from echo_cache.model import CacheKey, Entry, StoredResponse, Vary
from echo_cache.stores.base import Store
from echo_cache.stores.memory import MemoryStore
from echo_cache.stores.redis import RedisStore
from echo_cache.stores.twolevel import TwoLevelStore

__all__ = ["Outcome", "Workload", "anything", "fill", "l1_bytes", "make_entry", "make_key", "play", "zipf"]

L1_SHARE: Final = 0.1
# Requests under way at a time, so that reads of L2 go out together.
AT_ONCE: Final = 64
# A machine that is busy must not turn a hit into a time-out: nothing here is about time.
TIMEOUT: Final = 10.0
LONG: Final = 3_600.0


@dataclass(frozen=True, slots=True)
class Workload:
    """*keys* of *body_bytes* each, asked for *warm_up* times and then *requests* times, which count."""

    keys: int = 100_000
    body_bytes: int = 512
    warm_up: int = 60_000
    requests: int = 60_000


@dataclass(frozen=True, slots=True)
class Outcome:
    """
    What came of a workload, its warm-up not counted in.

    calls: of the app. in_memory: requests that memory alone answered. counted_bytes: what the store in memory counts.
    held_bytes: what the process has allocated since it began to ask, and holds.
    """

    requests: int
    calls: int
    in_memory: int
    counted_bytes: int
    held_bytes: int

    @property
    def hit_rate(self) -> float:
        """The share of requests that needed no call of the app, 0..1."""
        return 1 - self.calls / self.requests


def zipf(keys: int, seed: int = 20_261_006) -> Iterable[int]:
    """Return numbers below *keys* without end: number n as often as 1 / (n + 1) says. The same for the same *seed*."""
    chance = random.Random(seed)
    cumulated = list(itertools.accumulate(1 / rank for rank in range(1, keys + 1)))
    while True:
        yield from chance.choices(range(keys), cum_weights=cumulated, k=1_000)


def make_key(number: int) -> CacheKey:
    """Return the key of entry *number*, made of objects of its own as a request's is."""
    return ("GET", "https", bytes(bytearray(b"shop.example.com")), b"/products/%d" % number, b"")


def make_entry(number: int, body_bytes: int) -> Entry:
    """Return what the app answers for *number*: a body and headers of its own."""
    now = time.time()
    headers = (
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % body_bytes),
        (b"cache-control", b"public, max-age=3600"),
        (b"etag", b'"%016x"' % number),
    )
    response = StoredResponse(200, headers, (b"%d " % number).ljust(body_bytes, b"x"))
    return Entry(response, now, now, now + LONG, now + LONG)


def anything(vary: Vary) -> bool:
    """Say that a request selects every variant."""
    return True


def play(workload: Workload, redis_url: str | None) -> Outcome:
    """
    Do *workload* in a process of its own: over the two levels, or over memory alone if *redis_url* is None.

    Raises CalledProcessError when it fails.
    """
    # Drawn here: what drawing takes and gives back would hide, in that process, what the store takes.
    numbers = array("I", itertools.islice(zipf(workload.keys), workload.warm_up + workload.requests))
    command = [sys.executable, __file__, json.dumps(asdict(workload)), str(l1_bytes(workload)), redis_url or ""]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run(command, check=True, input=numbers.tobytes(), stdout=subprocess.PIPE, env=environment)
    return Outcome(**json.loads(done.stdout))


async def fill(workload: Workload, redis_url: str) -> None:
    """Write all entries of *workload* to the Redis at *redis_url*."""
    l2 = RedisStore(redis_url, timeout=TIMEOUT)
    for batch in _batches(range(workload.keys), 4 * AT_ONCE):
        kept = await asyncio.gather(*(l2.set(make_key(n), make_entry(n, workload.body_bytes)) for n in batch))
        assert all(kept)
    await l2.aclose()


def l1_bytes(workload: Workload) -> int:
    """Return a tenth of what memory counts for all entries of *workload*."""
    store, sample = MemoryStore(), min(1_000, workload.keys)
    for number in range(sample):
        store.set_nowait(make_key(number), make_entry(number, workload.body_bytes))
    return int((store.stats().bytes or 0) / sample * workload.keys * L1_SHARE)


class _Player:
    """Asks a store, and makes what it has not."""

    def __init__(self, store: Store, body_bytes: int) -> None:
        self.calls = 0
        self.in_memory = 0
        self._store = store
        self._body_bytes = body_bytes

    async def ask(self, number: int) -> None:
        key = make_key(number)
        held = self._store.get_nowait(key)
        entry = None if held is None else held.entry
        if entry is not None:
            self.in_memory += 1
        else:
            entry = await self._store.get(key, anything)
        if entry is None:
            self.calls += 1
            await self._store.set(key, make_entry(number, self._body_bytes))
        elif not entry.response.body.startswith(b"%d " % number):
            raise RuntimeError(f"the answer for {number} is another's: {entry.response.body[:20]!r}")

    async def ask_all(self, numbers: Iterable[int]) -> None:
        for batch in _batches(numbers, AT_ONCE):
            await asyncio.gather(*map(self.ask, batch))


async def _play_here(workload: Workload, numbers: array[int], l1_bytes: int, redis_url: str) -> Outcome:
    """As `play`, in this process, which must be fresh."""
    l1 = MemoryStore(l1_bytes)
    store: Store = l1
    if redis_url:
        config = TwoLevelConfig(l1_ttl=LONG, l2_ttl=LONG)
        store = TwoLevelStore(l1, RedisStore(redis_url, timeout=TIMEOUT), config)
    player = _Player(store, workload.body_bytes)
    # Connections, and what the first calls allocate once: no entry's. The rarest keys, which are hardly asked for.
    await player.ask_all(range(workload.keys - AT_ONCE, workload.keys))
    gc.collect()
    tracemalloc.start()
    await player.ask_all(numbers[: workload.warm_up])
    player.calls = player.in_memory = 0
    await player.ask_all(numbers[workload.warm_up :])
    gc.collect()
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    counted = l1.stats().bytes or 0
    await store.aclose()
    return Outcome(workload.requests, player.calls, player.in_memory, counted, held)


def _batches(numbers: Iterable[int], size: int) -> Iterable[list[int]]:
    rest = iter(numbers)
    while batch := list(itertools.islice(rest, size)):
        yield batch


def _main() -> None:
    workload, l1_bytes, redis_url = Workload(**json.loads(sys.argv[1])), int(sys.argv[2]), sys.argv[3]
    numbers = array("I")
    numbers.frombytes(sys.stdin.buffer.read())
    outcome = asyncio.run(_play_here(workload, numbers, l1_bytes, redis_url))
    print(json.dumps(asdict(outcome)))


if __name__ == "__main__":
    _main()
