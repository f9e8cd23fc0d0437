"""
What the tests of trouble share: an app behind the cache with two levels, traffic that checks each answer, a watch that
knows what a loaded machine has stolen.

The one rule: every answer is looked at, whatever the test is about. It is a 200 with the body of its own path, and
it is a hit, or the app was called for it.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, Self

import pytest

from echo_cache import (
    Cache,
    CoordinationOptions,
    HTTPCacheMiddleware,
    MemoryStore,
    RedisStore,
    TwoLevelConfig,
    TwoLevelStore,
)
from echo_cache.options import CacheStrategy
from echo_cache.testing import call

__all__ = [
    "CLIENTS",
    "DEADLINE",
    "L2_TIMEOUT",
    "STRATEGIES",
    "Answer",
    "Site",
    "Traffic",
    "Watch",
    "body_of",
    "each_strategy_of_some",
    "no_loose_ends",
    "until_l2_answers",
]

STRATEGIES: Final = tuple(strategy.value for strategy in CacheStrategy)
CLIENTS: Final = 8

# The default of RedisStore: what an operation may take.
L2_TIMEOUT: Final = 0.1
# What a test waits at most for what must come by itself.
DEADLINE: Final = 30.0

_TICK: Final = 0.005
# What the traffic itself may delay the loop by. A delay beyond it is the machine's.
_OWN_DELAY: Final = 0.01


class Watch:
    """
    A clock that does not count the time in which the machine did not let this event loop run.

    A pulse of the loop that comes late by more than the traffic itself can make it tells what was stolen. So a bound
    on what a request waits for holds on a loaded machine too, and still means what it says on an idle one.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stolen = 0.0
        self._due = self._loop.time() + _TICK
        self._timer = self._loop.call_at(self._due, self._tick)

    def now(self) -> float:
        """Return the seconds that this loop could run."""
        now = self._loop.time()
        return now - self._stolen - self._late(now)

    def stop(self) -> None:
        """Leave no timer behind."""
        self._timer.cancel()

    def _late(self, now: float) -> float:
        late = now - self._due
        return late if late > _OWN_DELAY else 0.0

    def _tick(self) -> None:
        now = self._loop.time()
        self._stolen += self._late(now)
        self._due = now + _TICK
        self._timer = self._loop.call_at(self._due, self._tick)


def each_strategy_of_some(troubles: Sequence[Any], some: Sequence[str]) -> list[Any]:
    """
    Return the cases (strategy, *trouble): each trouble with write-through, and those whose ids are in *some* with all.

    What a reply is taken for is decided below the strategies. What a failure does to a strategy does not depend on
    which failure it is.
    """
    assert {trouble.id for trouble in troubles} >= set(some)
    return [
        pytest.param(strategy, *trouble.values, id=f"{trouble.id}-{strategy}")
        for trouble in troubles
        for strategy in STRATEGIES
        if strategy == CacheStrategy.WRITE_THROUGH or trouble.id in some
    ]


def body_of(path: str) -> bytes:
    """Return the body that belongs to *path* alone, some hundred bytes."""
    return (path + "\n").encode() * 20


@dataclass(frozen=True, slots=True)
class Answer:
    """What a request got: when it began, by the watch, what it took, and whether the cache had the answer."""

    path: str
    began: float
    seconds: float
    is_hit: bool


# Those of the test that runs, to be closed at its end.
_sites: list[Site] = []


class Site:
    """
    An app that answers at once, behind the middleware with two levels; like a worker process, with its own memory.

    redis: options of RedisStore. calls: of the app, by path.
    """

    def __init__(
        self,
        url: str,
        *,
        strategy: str = CacheStrategy.WRITE_THROUGH,
        watch: Watch | None = None,
        config: Mapping[str, Any] | None = None,
        coordination: CoordinationOptions | None = None,
        **redis: Any,
    ) -> None:
        _sites.append(self)
        self.calls: Counter[str] = Counter()
        self.watch = watch
        self.l2 = RedisStore(url, **redis)
        # Trouble goes on to the end of most tests: what is queued is not waited for.
        settings = {"strategy": strategy, "drain_timeout": 0.2, **(config or {})}
        self.store = TwoLevelStore(MemoryStore(), self.l2, TwoLevelConfig(**settings))
        self.cache = Cache(self.store, coordination=coordination)
        self.edge = HTTPCacheMiddleware(self._app, cache=self.cache)

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        path = scope["path"]
        self.calls[path] += 1
        body = body_of(path)
        headers = [(b"content-length", b"%d" % len(body)), (b"cache-control", b"max-age=3600")]
        if path.startswith("/stale"):
            headers[1] = (b"cache-control", b"max-age=0, stale-while-revalidate=3600")
        if path.startswith("/varies"):
            headers.append((b"vary", b"accept-language"))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    async def ask(self, path: str, *, method: str = "GET", **options: Any) -> Answer:
        """Ask for *path* and look at the answer; a range must be the whole."""
        now = asyncio.get_running_loop().time if self.watch is None else self.watch.now
        calls, began = self.calls[path], now()
        response = await call(self.edge, method, path, **options)
        seconds = now() - began
        assert response.status in (200, 206), (path, response)
        assert response.body == (b"" if method == "HEAD" else body_of(path)), (path, response.body[:100])
        status = response["cache-status"]
        is_hit = "; hit" in status
        assert is_hit or self.calls[path] > calls, (path, status, "the app was not called")
        return Answer(path, began, seconds, is_hit)

    async def put(self, paths: Iterable[str]) -> None:
        """Ask for *paths*, and return when they are in Redis: other workers have them there, and not in memory."""
        await asyncio.gather(*(self.ask(path) for path in paths))
        await self.settled()

    async def hears(self) -> None:
        """Return when the invalidation log is known as it is now."""
        log = self.cache.log
        log.follow()
        began = time.time()
        async with asyncio.timeout(DEADLINE):
            while time.time() - log.unheard_for() < began:  # noqa: ASYNC110  # nothing tells
                await asyncio.sleep(0.01)

    async def settled(self) -> None:
        """Return when what is stored in memory now is in Redis, or has failed to get there; traffic may go on."""
        leases = self.cache.leases
        if tasks := {*self.cache._tasks, *(() if leases is None else leases._tasks)}:
            _, late = await asyncio.wait(tasks, timeout=DEADLINE)
            assert not late, late

    async def close(self) -> None:
        """Finish what is under way; trouble goes on to the end of most tests, so what Redis does not take is let go."""
        await self.cache.aclose(0.2)


class Traffic:
    """
    Clients that ask, get, look at the answer and ask again, for as long as the context lasts.

    Of four requests one is for what memory has, one for what only Redis has, as long as *below* has paths that nobody
    asked for, and two are for what nobody has. answers: all that were got, in the order in which they came.
    """

    def __init__(self, site: Site, below: Iterable[str] = (), *, clients: int = CLIENTS) -> None:
        self.site = site
        self.answers: list[Answer] = []
        self._below = iter(below)
        self._new = itertools.count()
        self._random = random.Random(7)
        self._clients = clients
        self._tasks: list[asyncio.Task[None]] = []
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []
        self._is_over = False

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.ensure_future(self._client()) for _ in range(self._clients)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._is_over = True
        # Raises what a client has seen.
        await asyncio.wait_for(asyncio.gather(*self._tasks), DEADLINE)

    async def more(self, count: int) -> list[Answer]:
        """Return the next *count* answers to requests that are sent from now on, or that are under way."""
        at = len(self.answers)
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((at + count, future))
        done, _ = await asyncio.wait({future, *self._tasks}, timeout=DEADLINE, return_when=asyncio.FIRST_COMPLETED)
        assert done, f"{len(self.answers) - at} of {count} answers in {DEADLINE} s"
        for task in done:
            task.result()
        return self.answers[at : at + count]

    async def until(self, condition: Callable[[], bool]) -> list[Answer]:
        """Return the answers that came until *condition* held, at least as many as there are clients."""
        at = len(self.answers)
        await self.more(self._clients)
        async with asyncio.timeout(DEADLINE):
            while not condition():
                await self.more(1)
        return self.answers[at:]

    async def _client(self) -> None:
        while not self._is_over:
            answer = await self.site.ask(self._path())
            self.answers.append(answer)
            for target, future in self._waiting:
                if len(self.answers) >= target and not future.done():
                    future.set_result(None)
            self._waiting = [waiting for waiting in self._waiting if not waiting[1].done()]
            # Others' turn. A client that asks again at once would let none of the timers be on time.
            await asyncio.sleep(0.001)

    def _path(self) -> str:
        kind = self._random.randrange(4)
        if kind == 0:
            return f"/hot/{self._random.randrange(20)}"
        below = next(self._below, None) if kind == 1 else None
        return below if below is not None else f"/new/{next(self._new)}"


async def until_l2_answers(site: Site, url: str, *, name: str = "back") -> None:
    """
    Return when *site* has a hit that only Redis can have brought. How soon that is benchmarks/trouble.py tells.

    Each try is for another key, which another worker put there through *url*: what was asked for once is in memory.
    """
    # It puts without leases, since its own work is not what is tested.
    other = Site(url, timeout=DEADLINE, coordination=CoordinationOptions(lease_wait=0))
    try:
        async with asyncio.timeout(DEADLINE):
            for turn in itertools.count():
                paths = [f"/{name}/{turn}/{number}" for number in range(50)]
                await other.put(paths)
                for path in paths:
                    if (await site.ask(path)).is_hit:
                        return
                    await asyncio.sleep(0.01)
    finally:
        await other.close()


@pytest.fixture
async def no_loose_ends() -> AsyncIterator[None]:
    """
    Close all sites at the end of the test. Then no task and no timer is left, and the loop had nothing to report.

    What it reports: exceptions that nobody retrieved, tasks that were destroyed while they were pending.
    """
    async with _nothing_left():
        yield


@asynccontextmanager
async def _nothing_left() -> AsyncIterator[None]:
    loop = asyncio.get_running_loop()
    reports: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: reports.append(context))
    tasks, timers = _tasks(), _timers(loop)
    try:
        yield
        while _sites:
            await _sites.pop().close()
        # What was cancelled ends in the next turns.
        for _ in range(20):
            await asyncio.sleep(0)
        gc.collect()
        await asyncio.sleep(0)
        unfinished = _tasks() - tasks
        assert not unfinished, unfinished
        left = _timers(loop) - timers
        assert not left, left
        assert reports == []
    finally:
        loop.set_exception_handler(None)


def _tasks() -> set[asyncio.Task[Any]]:
    """Return the tasks that are not the test runner's."""
    return {task for task in asyncio.all_tasks() if "TestRunner" not in repr(task.get_coro())}


def _timers(loop: asyncio.AbstractEventLoop) -> set[asyncio.TimerHandle]:
    """Return the timers that will fire. The loop does not tell them otherwise."""
    return {timer for timer in loop._scheduled if not timer.cancelled()}  # type: ignore[attr-defined]
