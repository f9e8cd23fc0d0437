"""
What the cache costs on this machine, in a few seconds. The one rule: every figure stands beside that of a bare app.

Requests are made one after the other in this process, as a server would make them, in rounds that take turns, so that
whatever else the machine does falls on all of them alike. A figure is the median of the rounds. There is no server and
no network before the app; Redis, if one is given, is asked over its own connection, and left as it was.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import platform
import secrets
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from echo_cache.asgi import HTTPCacheMiddleware
from echo_cache.cache import Cache
from echo_cache.cli.inside import App, Message, Receive, Send, ask, clean, reserve
from echo_cache.cli.target import in_words
from echo_cache.cli.web import Unavailable
from echo_cache.errors import ConfigurationError, StoreError
from echo_cache.stores import MemoryStore, RedisStore, TwoLevelStore

__all__ = ["BenchReport", "Row", "run"]

_ROUNDS: Final = 7
# Requests between two looks at the clock: enough to amortise it, few enough to end in time.
_BATCH: Final = 20
_MOST_BODY: Final = 1024 * 1024
_LONGEST: Final = 600.0
# What misses may bring into Redis in all.
_MOST_IN_REDIS: Final = 32 * 1024 * 1024
_MOST_MISSES: Final = 2_000
# What one operation of Redis may take here: a slow one is measured, not given up.
_PATIENCE: Final = 2.0
_TRIES: Final = 100
# Entries that are left in Redis because this was killed are gone after so long.
_LIFETIME: Final = 300


@dataclass(frozen=True, slots=True)
class Row:
    """One thing that was measured. microseconds: for one request, the median of the rounds; requests: how many."""

    name: str
    microseconds: float
    requests: int


@dataclass(frozen=True, slots=True)
class BenchReport:
    """
    What was measured on which machine, the bare app first.

    A hit in Redis is one that memory does not have: one round trip. redis: where the Redis is, without secrets; None
    where none was given. trouble: why it could not be measured.
    """

    python: str
    machine: str
    body_bytes: int
    rows: tuple[Row, ...]
    redis: str | None = None
    trouble: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the same as JSON has it; added: microseconds more than the bare app."""
        bare = self.rows[0].microseconds
        rows = [
            {**asdict(row), "added": row.microseconds - bare, "per_second": 1e6 / row.microseconds} for row in self.rows
        ]
        return {**asdict(self), "rows": rows}


async def run(redis_url: str | None = None, seconds: float = 3.0, body_bytes: int = 2048) -> BenchReport:
    """
    Measure for about *seconds*, with responses of *body_bytes*: hits and misses in memory, and in Redis if given.

    In Redis a prefix of its own is used, and nothing is left under it but leases, which end within seconds. A Redis
    that cannot be used is the report's `trouble`. Raises ConfigurationError for what cannot be measured, and for what
    is no URL of a Redis.
    """
    if not 0 < seconds <= _LONGEST:
        raise ConfigurationError(f"seconds must be above 0 and at most {_LONGEST:g}, not {seconds!r}")
    if not 0 <= body_bytes <= _MOST_BODY:
        raise ConfigurationError(f"body_bytes must be in 0..{_MOST_BODY}, not {body_bytes!r}")
    app = _app(b"x" * body_bytes)
    store = None
    if redis_url is not None:
        store = RedisStore(redis_url, prefix=f"echo_cache_bench_{secrets.token_hex(8)}", timeout=_PATIENCE)
    trouble = None
    async with contextlib.AsyncExitStack() as stack:
        memory = [await stack.enter_async_context(Cache(MemoryStore())) for _ in range(2)]
        cases = [
            _Case("bare app", app, _one_url()),
            _Case("hit in memory", HTTPCacheMiddleware(app, cache=memory[0]), _one_url(), b"; hit"),
            _Case("miss, stored in memory", HTTPCacheMiddleware(app, cache=memory[1]), _new_urls(), b"; stored"),
        ]
        over_redis: list[_Case] = []
        if store is not None:
            try:
                with in_words(store.server.location):
                    await store.count()
                    over_redis = await _over_redis(app, store, body_bytes, stack)
            except Unavailable as error:
                trouble = str(error)
        await _measure(cases + over_redis, seconds)
    for case in over_redis:
        if case.odd:
            trouble = f"{case.odd} answers were no {case.name}: Redis failed, or was slower than {_PATIENCE:g} s"
    return BenchReport(
        platform.python_version(),
        f"{platform.system()} {platform.machine()}",
        body_bytes,
        tuple(case.row() for case in cases + ([] if trouble else over_redis)),
        None if store is None else store.server.location,
        trouble,
    )


@dataclass
class _Case:
    """
    What is measured: *app*, asked for each of *urls* in turn.

    expected: what Cache-Status must say; others are counted in `odd`. left: how many requests may be made.
    """

    name: str
    app: App
    urls: Iterator[bytes]
    expected: bytes | None = None
    left: int = sys.maxsize
    odd: int = 0
    requests: int = 0
    rounds: list[float] = field(default_factory=list)

    async def warm(self) -> None:
        """Make one request that is not measured."""
        await ask(self.app, next(self.urls))

    async def measure(self, seconds: float) -> None:
        """Make requests for *seconds*: one round."""
        done, began = 0, time.perf_counter()
        elapsed = 0.0
        while elapsed < seconds and self.left:
            for _ in range(min(_BATCH, self.left)):
                _, told = await ask(self.app, next(self.urls))
                self.odd += self.expected is not None and self.expected not in told
                self.left -= 1
                done += 1
            # Others have their turn: what is written in the background is a part of what a miss costs.
            await asyncio.sleep(0)
            elapsed = time.perf_counter() - began
        if done:
            self.requests += done
            self.rounds.append(elapsed / done * 1e6)

    def row(self) -> Row:
        """Return what was measured."""
        return Row(self.name, statistics.median(self.rounds), self.requests)


async def _measure(cases: Sequence[_Case], seconds: float) -> None:
    for case in cases:
        await case.warm()
    for _ in range(_ROUNDS):
        for case in cases:
            await case.measure(seconds / _ROUNDS / len(cases))


async def _over_redis(app: App, store: RedisStore, body_bytes: int, stack: contextlib.AsyncExitStack) -> list[_Case]:
    """Return what is measured over Redis; *stack* cleans up. Raises StoreError."""
    stack.push_async_callback(clean, store)
    await reserve(store, _LIFETIME + int(_LONGEST))
    alone = await stack.enter_async_context(Cache(store))
    both = await stack.enter_async_context(Cache(TwoLevelStore(MemoryStore(), store)))
    misses = max(1, min(_MOST_MISSES, _MOST_IN_REDIS // max(1, body_bytes)))
    hits = HTTPCacheMiddleware(app, cache=alone)
    await _until_stored(hits, store)
    return [
        _Case("hit in Redis", hits, _one_url(), b"; hit"),
        _Case("miss, stored in both", HTTPCacheMiddleware(app, cache=both), _new_urls(), b"; stored", left=misses),
    ]


async def _until_stored(hits: App, store: RedisStore) -> None:
    """Ask until what is measured is a hit: it is written after its answer. Raises StoreError if it never is."""
    for _ in range(_TRIES):
        if b"; hit" in (await ask(hits, _URL))[1]:
            return
        await asyncio.sleep(_PATIENCE / _TRIES)
    raise StoreError(f"what was stored in Redis at {store.server.location} is not found there")


# --- requests ---------------------------------------------------------------------------------------------------------

_URL: Final = b"/products/1234"


def _app(body: bytes) -> App:
    """Return an app that answers everything at once with *body*: the least that an app can do."""
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"cache-control", b"max-age=%d" % _LIFETIME),
    ]

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": headers.copy()})
        await send({"type": "http.response.body", "body": body})

    return app


def _one_url() -> Iterator[bytes]:
    return itertools.repeat(_URL)


def _new_urls() -> Iterator[bytes]:
    return (b"/products/new/%d" % number for number in itertools.count())
