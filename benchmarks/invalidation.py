"""
How soon an invalidation is seen by another worker process, by one that is cut off from Redis, and what many of them
leave behind.

Real worker processes (uvicorn, memory before Redis) over a real Redis. Measures

- delay: from the acknowledgement of an invalidation in one process to the first fresh answer of another one, which is
  kept under a load of hits; both moments by the processes themselves;
- partition: a process that cannot reach Redis: until when it gives an answer that was invalidated elsewhere when the
  partition began, and how soon it hears the log again afterwards; under both policies of `unsynced`;
- memory: what 1,000,000 invalidations of distinct tags leave in the process that makes them, in one that hears of
  them, and in Redis.

Run it in the project's environment, on a quiet machine; a Redis server is found as the tests find theirs. Linux only.

    python benchmarks/invalidation.py [--quick] [--only delay|partition|memory] [--json] [--check]

The exit code is 0, whatever the figures; with --check it is 1 when a bound is exceeded.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from _load import Connections, Question, question, server_parts
from hit_path import machine

# Where the tests are: their Redis server, their proxy and their workers are used here.
sys.path.append(str(Path(__file__).parent.parent))
from tests.proxy import RedisProxy
from tests.servers import RedisServer
from tests.workers import Answer, Connection, State, Worker, versions_file, workers

# What is promised: the first of connected workers, the second of one that Redis has come back to.
SEEN_MS = 50.0
HEARD_SECONDS = 2.0
GROWTH_MIB = 32.0

LOAD_CONNECTIONS = 8
LOAD_PAGES = range(1, 257)
# Requests of the load that are asked for at once: it ends soon after it is told to.
LOAD_REQUESTS = 500
# Between two invalidations, so that they do not keep step with anything.
LONGEST_PAUSE = 0.005
PATIENCE = 60.0


@dataclass(frozen=True)
class Figure:
    """*value* in *unit*, which may be *bound* at the most."""

    name: str
    value: float
    unit: str
    bound: float | None = None

    @property
    def is_met(self) -> bool:
        return self.bound is None or self.value <= self.bound

    def row(self) -> str:
        bound = "" if self.bound is None else f"{self.bound:g} {self.unit}{'' if self.is_met else ' EXCEEDED'}"
        digits = 0 if abs(self.value) >= 1_000 or not self.unit else 2
        return f"| {self.name} | {f'{self.value:,.{digits}f} {self.unit}'.rstrip()} | {bound} |"


class Scale(NamedTuple):
    """
    How much is measured.

    partition, max_unsynced: in seconds. tags: how many are invalidated, of which one_by_one with a call each.
    """

    invalidations: int
    partition: float
    max_unsynced: float
    tags: int
    one_by_one: int


FULL = Scale(1_000, 10.0, 5.0, 1_000_000, 50_000)
QUICK = Scale(20, 1.0, 0.5, 20_000, 200)


class Told(NamedTuple):
    """An invalidation: the version that it makes way for, and when it was acknowledged."""

    version: int
    acknowledged: float


async def write(connection: Connection, page: int) -> Told:
    """Write a new version of *page* and invalidate it."""
    told = (await connection.ask(f"/write/tag/{page}", "POST")).json()
    if not told["propagated"]:
        raise RuntimeError("an invalidation could not be told to others")
    return Told(told["version"], told["acknowledged"])


class Poll:
    """
    A client that asks a worker for a page all the time, on one connection.

    first, last: when the worker sent the first and the last answer of each version. slowest: what an answer took at
    the most, in seconds.
    """

    def __init__(self, worker: Worker, page: int, pause: float = 0.0) -> None:
        self.first: dict[int, float] = {}
        self.last: dict[int, float] = {}
        self.answers = 0
        self.slowest = 0.0
        self._worker = worker
        self._page = page
        self._pause = pause
        self._awaited: dict[int, asyncio.Future[None]] = {}
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Poll:
        self._task = asyncio.ensure_future(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def _run(self) -> None:
        async with Connection(self._worker.port) as connection:
            while True:
                answer = await connection.ask(f"/page/{self._page}")
                self._note(answer)
                if self._pause:
                    await asyncio.sleep(self._pause)

    def _note(self, answer: Answer) -> None:
        version, sent = answer.json()["version"], float(answer.fields[b"x-sent"])
        self.answers += 1
        self.slowest = max(self.slowest, answer.received - answer.sent)
        self.last[version] = sent
        if version not in self.first:
            self.first[version] = sent
            if version in self._awaited:
                self._awaited.pop(version).set_result(None)

    async def seen(self, told: Told) -> float:
        """Return how long after the acknowledgement the first fresh answer was sent, in seconds; 0 when before."""
        assert self._task is not None
        if told.version not in self.first:
            seen = self._awaited[told.version] = asyncio.get_running_loop().create_future()
            done, _ = await asyncio.wait({seen, self._task}, timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED)
            if self._task in done:
                self._task.result()
            if seen not in done:
                raise RuntimeError(f"an invalidation was not seen within {PATIENCE:g} s")
        return max(0.0, self.first[told.version] - told.acknowledged)

    def outdated(self, told: Told) -> float:
        """Return how long after the acknowledgement the last outdated answer was sent, in seconds; 0 when before."""
        return max(
            (sent - told.acknowledged for version, sent in self.last.items() if version < told.version), default=0
        )


# --- delay ------------------------------------------------------------------------------------------------------------


async def measure_delay(scale: Scale) -> list[Figure]:
    """Measure how soon another process gives a fresh answer."""
    with RedisServer() as server, versions_file() as versions:
        writer, reader = Worker(server.url, versions), Worker(server.url, versions)
        with workers([writer, reader]):
            questions = [question(b"/page/%d" % page, b'{"version": ') for page in LOAD_PAGES]
            async with Connections(reader, LOAD_CONNECTIONS, questions) as filling:
                await filling.ask(len(questions) + LOAD_CONNECTIONS)
            async with Connection(writer.port) as control, Poll(reader, 0) as poll, _load(reader, questions) as load:
                await poll.seen(await write(control, 0))
                load.clear()
                began, before = time.monotonic(), poll.answers
                seen, outdated = [], []
                for _ in range(scale.invalidations):
                    told = await write(control, 0)
                    seen.append(await poll.seen(told) * 1000)
                    outdated.append(poll.outdated(told) * 1000)
                    poll.last.clear()
                    await asyncio.sleep(random.uniform(0.0, LONGEST_PAUSE))
                seconds = time.monotonic() - began
                hits, polls = sum(load), poll.answers - before
    return [
        Figure("first fresh answer after the acknowledgement, p50", _quantile(seen, 0.50), "ms"),
        Figure("the same, p90", _quantile(seen, 0.90), "ms"),
        Figure("the same, p99", _quantile(seen, 0.99), "ms", SEEN_MS),
        Figure("the same, the longest", max(seen), "ms"),
        Figure("last outdated answer after it, p99", _quantile(outdated, 0.99), "ms"),
        Figure("invalidations", scale.invalidations, ""),
        Figure("invalidations a second, one after the other", scale.invalidations / seconds, "/s"),
        Figure("hits of other pages meanwhile", hits / seconds, "/s"),
        Figure("answers to who waits for the page", polls / seconds, "/s"),
    ]


@contextlib.asynccontextmanager
async def _load(worker: Worker, questions: Sequence[Question]) -> AsyncIterator[list[int]]:
    """Keep *worker* busy with hits; yields how many there were so far, in parts."""
    answered: list[int] = []
    is_over = False

    async def ask() -> None:
        while not is_over:
            answered.append(len((await connections.ask(LOAD_REQUESTS)).seconds))

    async with Connections(worker, LOAD_CONNECTIONS, questions, says=b"; hit") as connections:
        task = asyncio.ensure_future(ask())
        try:
            yield answered
        finally:
            is_over = True
            await task


def _quantile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(int(len(values) * share), len(values) - 1)]


# --- partition --------------------------------------------------------------------------------------------------------


async def measure_partition(scale: Scale) -> list[Figure]:
    """Measure what processes that are cut off from Redis answer, and what they do when it is back."""
    with RedisServer() as server, RedisProxy(server.port) as proxy, versions_file() as versions:
        writer = Worker(server.url, versions, scale.max_unsynced)
        readers = [Worker(proxy.url, versions, scale.max_unsynced, unsynced) for unsynced in ("cap", "bypass")]
        with workers([writer, *readers]):
            async with contextlib.AsyncExitStack() as stack:
                control = await stack.enter_async_context(Connection(writer.port))
                polls = [await stack.enter_async_context(Poll(reader, 0, 0.001)) for reader in readers]
                first = await write(control, 0)
                for poll in polls:
                    await poll.seen(first)
                    poll.slowest = 0.0
                proxy.black_hole()
                during = await write(control, 0)
                await asyncio.sleep(scale.partition)
                outdated = [poll.outdated(during) for poll in polls]
                slowest = [poll.slowest for poll in polls]
                proxy.heal()
                healed = time.monotonic()
                after = await write(control, 0)
                heard, seen = await asyncio.gather(
                    asyncio.gather(*(_heard(reader, healed) for reader in readers)),
                    asyncio.gather(*(poll.seen(after) for poll in polls)),
                )
                connected = await write(control, 0)
                at_last = [await poll.seen(connected) for poll in polls]
    figures = []
    for number, reader in enumerate(readers):
        how = f"{reader.unsynced}, {scale.partition:g} s without Redis"
        figures += [
            Figure(f"{how}: last outdated answer", outdated[number], "s", scale.max_unsynced),
            Figure(f"{how}: the slowest answer", slowest[number] * 1000, "ms"),
            Figure(f"{how}: the log is heard again, after", heard[number], "s", HEARD_SECONDS),
            Figure(f"{how}: an invalidation at its end is seen after", seen[number], "s", scale.max_unsynced),
            Figure(f"{how}: one after the log is heard is seen after", at_last[number] * 1000, "ms", SEEN_MS),
        ]
    return figures


async def _heard(worker: Worker, healed: float) -> float:
    """Return how many seconds after the end of the partition *worker* has heard the log."""
    async with asyncio.timeout(PATIENCE), Connection(worker.port) as connection:
        while True:
            answer = await connection.ask("/state")
            since = float(answer.fields[b"x-sent"]) - healed
            if State(**answer.json()).unheard_for < since:
                return since
            await asyncio.sleep(0.005)


# --- memory -----------------------------------------------------------------------------------------------------------


class Memory(NamedTuple):
    """Bytes: resident in the processes, used in Redis."""

    writer: int
    reader: int
    redis: int


async def measure_memory(scale: Scale) -> list[Figure]:
    """Measure what invalidations of distinct tags leave behind."""
    with RedisServer() as server, versions_file() as versions:
        # A busy machine must not turn an append into a time-out: what is pending is another thing.
        writer, reader = (Worker(server.url, versions, timeout=5.0) for _ in range(2))
        with workers([writer, reader]):

            async def memory() -> Memory:
                used = next(line for line in server.command("INFO", "memory").splitlines() if "used_memory:" in line)
                states = await asyncio.gather(writer.state(), reader.state())
                return Memory(states[0].resident, states[1].resident, int(used.partition(":")[2]))

            async with Connection(writer.port) as control, Connection(reader.port) as other:
                for connection in (control, other):
                    await connection.ask("/page/0")
                await _flood(control, 1_000, 100, "before")
                before = await memory()
                in_hundreds = scale.tags - scale.one_by_one
                seconds = await _flood(control, in_hundreds // 2, 100, "first")
                half = await memory()
                seconds += await _flood(control, in_hundreds - in_hundreds // 2, 100, "second")
                alone = await _flood(control, scale.one_by_one, 1, "third")
                ended = time.monotonic()
                await _same_position(writer, reader)
                late = time.monotonic() - ended
                after = await memory()
                entries = int(server.command("XLEN", "{echo_cache:log}"))
    growth = {
        name: (_mib(new - old), _mib(new - between))
        for name, old, between, new in zip(("the writer", "the reader", "Redis"), before, half, after, strict=True)
    }
    return [
        Figure("distinct tags", scale.tags, ""),
        *(Figure(f"growth of {name}", whole, "MiB", GROWTH_MIB) for name, (whole, _) in growth.items()),
        *(Figure(f"of it in the second half, {name}", second, "MiB") for name, (_, second) in growth.items()),
        Figure("entries of the stream", entries, ""),
        Figure("tags a second, 100 with each call", in_hundreds / seconds, "/s"),
        Figure("tags a second, one with each call", scale.one_by_one / alone, "/s"),
        Figure("the reader knows all of them after", late, "s"),
    ]


async def _flood(connection: Connection, count: int, size: int, name: str) -> float:
    """Invalidate *count* distinct tags; return what that took, in seconds."""
    told = (await connection.ask(f"/flood/{count}/{size}/{name}", "POST")).json()
    if told["failed"]:
        raise RuntimeError(f"{told['failed']} invalidations could not be told to others")
    return float(told["seconds"])


async def _same_position(*those: Worker) -> None:
    async with asyncio.timeout(PATIENCE):
        while True:
            states = await asyncio.gather(*(worker.state() for worker in those))
            if len({state.position for state in states}) == 1:
                return
            await asyncio.sleep(0.01)


def _mib(size: float) -> float:
    return size / (1 << 20)


# --- all of it --------------------------------------------------------------------------------------------------------

PARTS: dict[str, Callable[[Scale], Coroutine[Any, Any, list[Figure]]]] = {
    "delay": measure_delay,
    "partition": measure_partition,
    "memory": measure_memory,
}


def main() -> int:
    """Measure and print. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few of everything: does it run?")
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--check", action="store_true", help="exit with 1 when a bound is exceeded")
    arguments = parser.parse_args()
    scale = QUICK if arguments.quick else FULL
    if not arguments.json:
        print(f"{', '.join(machine().values())}, {server_parts()}")
    measured: dict[str, list[Figure]] = {}
    for name in [arguments.only] if arguments.only else PARTS:
        measured[name] = asyncio.run(PARTS[name](scale))
        if not arguments.json:
            print(f"\n| {name} | measured | bound |\n|---|---|---|")
            print("\n".join(figure.row() for figure in measured[name]), flush=True)
    if arguments.json:
        told = {
            name: [{**vars(figure), "met": figure.is_met} for figure in figures] for name, figures in measured.items()
        }
        print(json.dumps(told))
    exceeded = [figure for figures in measured.values() for figure in figures if not figure.is_met]
    return 1 if arguments.check and exceeded else 0


if __name__ == "__main__":
    sys.exit(main())
