"""
Invalidation among real processes over a real Redis, in trouble: what was invalidated is not served, beyond the bound.

Three workers, each with a strategy of its own, are written to and read from all the time, while connections are
killed, a worker or Redis is stopped, workers are cut off, Redis is restarted, emptied, or back with what it had before.
Every answer says when its handler began, so three rules can be held against all of them afterwards:

- what was sent for MAX_UNSYNCED after an invalidation was acknowledged is younger than the invalidation; in the worker
  that made it, from the acknowledgement on, whether or not it could tell the others. So what is gone stays gone.
- what a hit says of its remaining life never grows.
- when all is over and every worker has heard everything, nothing that was invalidated is anywhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import random
import re
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

import pytest

from tests.proxy import RedisProxy
from tests.servers import RedisServer
from tests.workers import KINDS, LIFETIME, Connection, State, Worker, versions_file, workers

MAX_UNSYNCED: Final = 1.0
# How far the clocks of this test (monotonic) and of the cache (the wall, Redis's) may differ meanwhile.
SLACK: Final = 0.1
BOUND: Final = MAX_UNSYNCED + SLACK
# An answer shows its remaining life in whole seconds, and Redis's clock is known to 50 ms.
TTL_SLACK: Final = 0.25

PAGES: Final = 6
# Only what makes the trouble writes these: a mark that is lost is not made up for by the next.
QUIET_PAGES: Final = 2
# How long the handler of the slow page works, in seconds: it is at work still when the bound has passed.
SLOW: Final = BOUND + 0.5
READERS: Final = 2
DEADLINE: Final = 30.0
SEED: Final = 7
SHOWN: Final = 8


@dataclass(slots=True)
class Written:
    """An invalidation; acknowledged: when *worker* had it, told: from when on others must know of it, at the latest."""

    worker: int
    kind: str
    page: int
    begun: float
    acknowledged: float
    told: float


@dataclass(frozen=True, slots=True)
class Read:
    """An answer, and how late an invalidation may be known to it."""

    worker: int
    page: int
    sent: float
    received: float
    bound: float
    began: float
    fill: str
    status: str

    @property
    def ttl(self) -> int | None:
        """The remaining life that a hit shows, in seconds."""
        shown = re.search(r"; hit; ttl=(-?\d+)", self.status)
        return int(shown[1]) if shown else None


class Site:
    """The workers and what happens to them in one scenario, on pages of its own."""

    def __init__(self, server: RedisServer, proxy: RedisProxy, processes: Sequence[Worker], first_page: int) -> None:
        self.server = server
        # Workers 0 and 2 know Redis by it.
        self.proxy = proxy
        self.processes = processes
        self.pages = range(first_page, first_page + PAGES)
        self.slow_page = first_page + PAGES
        self.random = random.Random(SEED)
        self.writes: list[Written] = []
        self.reads: list[Read] = []
        self.events: list[tuple[float, str]] = []
        self._is_over = False

    def note(self, event: str) -> None:
        """Note what was done to whom, for the report of a failure."""
        self.events.append((time.monotonic(), event))

    async def write(self, connection: Connection, worker: int, page: int, kind: str) -> None:
        """Write a new version of *page* and invalidate it, both in *worker*."""
        told = (await connection.ask(f"/write/{kind}/{page}", "POST")).json()
        others = told["acknowledged"] if told["propagated"] else math.inf
        self.writes.append(Written(worker, kind, page, told["begun"], told["acknowledged"], others))

    async def read(self, connection: Connection, worker: int, page: int, *, bound: float = BOUND) -> None:
        """Read *page* from *worker*."""
        answer = await connection.ask(f"/page/{page}?{SLOW}" if page == self.slow_page else f"/page/{page}")
        told = answer.json()
        times = answer.sent, answer.received, bound, told["began"]
        self.reads.append(Read(worker, page, *times, told["fill"], answer.cache_status))

    @contextlib.asynccontextmanager
    async def traffic(self) -> AsyncIterator[None]:
        """Write and read, through all workers, as long as the context lasts."""
        numbers = range(len(self.processes))
        clients = [self._writer(number) for number in numbers]
        clients += [self._reader(number) for number in numbers for _ in range(READERS)]
        async with asyncio.timeout(DEADLINE), asyncio.TaskGroup() as group:
            for client in clients:
                group.create_task(client)
            yield
            self._is_over = True

    async def _writer(self, worker: int) -> None:
        async with Connection(self.processes[worker].port) as connection:
            while not self._is_over:
                kind = self.random.choices(KINDS, (50, 20, 20, 1))[0]
                await self.write(connection, worker, self.random.choice(self.pages[:-QUIET_PAGES]), kind)
                await asyncio.sleep(self.random.uniform(0.02, 0.2))

    async def _reader(self, worker: int) -> None:
        async with Connection(self.processes[worker].port) as connection:
            while not self._is_over:
                await self.read(connection, worker, self.random.choice(self.pages))
                await asyncio.sleep(0.002)

    async def settled(self) -> None:
        """
        Return when every worker has heard everything, then read every page from each.

        What could not be told to others when it was written, has been told by now.
        """
        async with asyncio.timeout(DEADLINE):
            while True:
                states = await asyncio.gather(*(process.state() for process in self.processes))
                if _are_one(states):
                    break
                await asyncio.sleep(0.02)
        settled = time.monotonic()
        for written in self.writes:
            written.told = min(written.told, settled)
        for number, process in enumerate(self.processes):
            async with Connection(process.port) as connection:
                for page in self.pages:
                    await self.read(connection, number, page, bound=0.0)

    # --- the rules ----------------------------------------------------------------------------------------------------

    def wrong(self) -> list[str]:
        """Return what was against the rules, in words."""
        return [*self._outdated(), *self._grown()]

    def _outdated(self) -> Iterator[str]:
        by_page = {
            page: [written for written in self.writes if written.page == page or written.kind == "all"]
            for page in (*self.pages, self.slow_page)
        }
        for read in self.reads:
            for written in by_page[read.page]:
                known = written.acknowledged if written.worker == read.worker else written.told + read.bound
                if read.began < written.begun and read.sent >= known:
                    yield self._report(read, written, read.sent - known)
                    break

    def _grown(self) -> Iterator[str]:
        by_fill: dict[str, list[Read]] = defaultdict(list)
        for read in sorted(self.reads, key=lambda read: read.received):
            by_fill[read.fill].append(read)
        for fill, reads in by_fill.items():
            # When it ends, at the latest, by what was shown so far.
            ends = reads[0].began + LIFETIME
            for read in reads:
                if read.ttl is None:
                    continue
                if read.sent + read.ttl > ends + TTL_SLACK:
                    yield f"fill {fill} in worker {read.worker}: ttl={read.ttl}, which is later than {ends:.3f}: {read}"
                ends = min(ends, read.received + read.ttl + 1)

    def _report(self, read: Read, written: Written, late: float) -> str:
        start = self.events[0][0]
        happened = [f"{at - start:.3f} {event}" for at, event in self.events if at > written.begun - 2]
        return (
            f"worker {read.worker}, page {read.page}: fill {read.fill} began at {read.began - start:.3f}, was asked "
            f"for at {read.sent - start:.3f} and came at {read.received - start:.3f} ({read.status}); worker "
            f"{written.worker} had invalidated it ({written.kind}), begun {written.begun - start:.3f}, acknowledged "
            f"{written.acknowledged - start:.3f}, told {written.told - start:.3f}: {late:.3f} s beyond the bound\n"
            f"      meanwhile: {', '.join(happened)}"
        )


def _are_one(states: Sequence[State]) -> bool:
    """Say whether all workers know the same, and nothing is yet to be told."""
    return all(state.heard and not state.pending for state in states) and len({state.position for state in states}) == 1


# --- trouble ----------------------------------------------------------------------------------------------------------

Trouble: TypeAlias = Callable[[Site], Awaitable[None]]


async def kill_clients(site: Site) -> None:
    for _ in range(30):
        await asyncio.to_thread(site.server.command, "CLIENT", "KILL", "TYPE", "normal")
        site.note("connections killed")
        await asyncio.sleep(site.random.uniform(0.02, 0.1))


async def stop_workers(site: Site) -> None:
    """Stop each worker for longer than the bound, invalidate all pages elsewhere, and ask it as soon as it goes on."""
    await asyncio.sleep(0.3)
    pages = site.pages
    for number, process in enumerate(site.processes):
        other = (number + 1) % len(site.processes)
        async with contextlib.AsyncExitStack() as stack:

            async def opened(port: int, stack: contextlib.AsyncExitStack = stack) -> list[Connection]:
                return [await stack.enter_async_context(Connection(port)) for _ in pages]

            here, also_here = await opened(process.port), await opened(process.port)
            (elsewhere, *_) = await opened(site.processes[other].port)
            for connection in *here, *also_here:  # so that all are accepted before
                await site.read(connection, number, site.pages[0])
            # The app is at work in it when it is stopped: who comes later may not have what began before.
            await site.write(here[0], number, site.pages[0], "all")
            early = asyncio.ensure_future(_read_all(site, also_here, number, pages))
            await asyncio.sleep(site.random.uniform(0.05, 0.1))
            process.stop()
            site.note(f"worker {number} stopped")
            try:
                for page in pages:
                    await site.write(elsewhere, other, page, "tag")
                await asyncio.sleep(BOUND + 0.05)
                late = asyncio.ensure_future(_read_all(site, here, number, pages))
                await asyncio.sleep(0.02)  # what they ask is there when the worker goes on
            finally:
                process.go_on()
                site.note(f"worker {number} goes on")
            await asyncio.gather(early, late)


async def _read_all(site: Site, connections: Sequence[Connection], worker: int, pages: Sequence[int]) -> None:
    """Read all pages at once, each on a connection of its own."""
    reads = zip(connections, pages, strict=True)
    await asyncio.gather(*(site.read(connection, worker, page) for connection, page in reads))


async def cut_off_workers(site: Site) -> None:
    """Take Redis away from two workers, invalidate all pages in the third, and ask them when the bound has passed."""
    pages, far = (*site.pages, site.slow_page), (0, 2)
    await asyncio.sleep(0.3)
    async with contextlib.AsyncExitStack() as stack:

        async def opened(worker: int) -> list[Connection]:
            port = site.processes[worker].port
            return [await stack.enter_async_context(Connection(port)) for _ in pages]

        early = [_read_all(site, await opened(number), number, pages) for number in far]
        late = [_read_all(site, await opened(number), number, pages) for number in far]
        (elsewhere, *_) = await opened(1)
        # The app is at work in them from before: who comes later may not have what began then.
        begun = [asyncio.ensure_future(reads) for reads in early]
        await asyncio.sleep(0.1)
        site.proxy.black_hole()
        site.note("workers 0 and 2 cut off")
        try:
            for page in pages:
                await site.write(elsewhere, 1, page, "tag")
            await asyncio.sleep(BOUND + 0.05)
            await asyncio.gather(*begun, *late)
        finally:
            site.proxy.heal()
            site.note("healed")


async def stop_redis(site: Site) -> None:
    for seconds in (0.2, MAX_UNSYNCED + 0.3):
        await asyncio.sleep(0.4)
        await asyncio.to_thread(site.server.pause)
        site.note("Redis stopped")
        try:
            await asyncio.sleep(seconds)
        finally:
            site.server.resume()
            site.note("Redis goes on")
    await asyncio.sleep(0.5)


async def restart_redis(site: Site) -> None:
    for _ in range(2):
        await asyncio.sleep(site.random.uniform(0.4, 0.8))
        await asyncio.to_thread(site.server.restart)
        site.note("Redis restarted")
    await asyncio.sleep(0.7)


async def empty_redis(site: Site) -> None:
    for _ in range(15):
        await asyncio.sleep(site.random.uniform(0.02, 0.25))
        await asyncio.to_thread(site.server.command, "FLUSHALL")
        site.note("Redis emptied")


def _restart(server: RedisServer) -> None:
    server.kill()
    server.start()


def _flush(server: RedisServer) -> None:
    server.command("FLUSHALL")


def _save(server: RedisServer) -> None:
    server.command("SAVE")


def _restore(server: RedisServer) -> None:
    """Let the server be back with what it had at the last SAVE, as after a crash."""
    _restart(server)
    _, folder = server.command("CONFIG", "GET", "dir")
    (Path(folder) / "dump.rdb").unlink()


def lose(
    break_it: Callable[[RedisServer], None], prepare: Callable[[RedisServer], None] = lambda server: None
) -> Trouble:
    """Return the trouble in which Redis loses invalidations that a worker, which is stopped, has not heard of."""

    async def trouble(site: Site) -> None:
        for number in (0, 2):
            process, other = site.processes[number], 1
            async with Connection(process.port) as here, Connection(site.processes[other].port) as elsewhere:
                for page in site.pages:
                    await site.read(here, number, page)
                process.stop()
                site.note(f"worker {number} stopped")
                try:
                    await asyncio.to_thread(prepare, site.server)
                    for page in site.pages:
                        await site.write(elsewhere, other, page, "tag")
                    await asyncio.to_thread(break_it, site.server)
                    site.note("they are lost")
                finally:
                    process.go_on()
                    site.note(f"worker {number} goes on")
                # Until they must be known to it.
                await asyncio.sleep(BOUND)
                for page in site.pages[-QUIET_PAGES:]:
                    await site.read(here, number, page)

    return trouble


_first_pages = itertools.count(0, 100)


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture(scope="module")
def before_redis(server: RedisServer) -> Iterator[RedisProxy]:
    with RedisProxy(server.port) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def processes(server: RedisServer, before_redis: RedisProxy) -> Iterator[Sequence[Worker]]:
    """Three workers, for all scenarios. What they say at their end is looked at: nothing may be left behind."""
    with versions_file() as versions:
        wanted = [
            Worker(url, versions, MAX_UNSYNCED, unsynced, strategy, delay=0.03)
            for url, strategy, unsynced in (
                (before_redis.url, "write_through", "cap"),
                (server.url, "write_back", "cap"),
                (before_redis.url, "cache_aside", "bypass"),
            )
        ]
        with workers(wanted):
            yield wanted


@pytest.mark.parametrize(
    "trouble",
    [
        pytest.param(kill_clients, id="connections-killed"),
        pytest.param(stop_workers, id="worker-stopped"),
        pytest.param(cut_off_workers, id="worker-cut-off"),
        pytest.param(stop_redis, id="redis-stopped"),
        pytest.param(restart_redis, id="redis-restarted"),
        pytest.param(empty_redis, id="redis-emptied"),
        pytest.param(lose(_restart), id="lost-in-a-restart"),
        pytest.param(lose(_flush), id="lost-when-emptied"),
        pytest.param(lose(_restore, _save), id="lost-with-a-snapshot"),
    ],
)
async def test_what_was_invalidated_is_not_served_beyond_the_bound(
    trouble: Trouble, server: RedisServer, before_redis: RedisProxy, processes: Sequence[Worker]
) -> None:
    site = Site(server, before_redis, processes, next(_first_pages))
    site.note("begun")
    async with site.traffic():
        await trouble(site)
    site.note("over")
    await site.settled()
    wrong = site.wrong()
    assert not wrong, f"{len(wrong)} of {len(site.reads)} answers:\n" + "\n".join(wrong[:SHOWN])
    # Without these nothing would have been shown.
    for number in range(len(processes)):
        assert any(read.ttl is not None for read in site.reads if read.worker == number), "it had no hit"
        assert any(math.isfinite(written.told) for written in site.writes if written.worker == number)
