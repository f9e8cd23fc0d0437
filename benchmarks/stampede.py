"""
What requests feel of a stampede: 500 at once for what is not there, and a handler that takes 200 ms.

In one process, and in three over a real Redis, with 167 requests each at one moment. The requests are made to the
middleware without a server between, in processes of their own; a Redis server is found as the tests find theirs. Each
round is for another key. Of each round the figures are of all its requests, in milliseconds from the moment at which
they are made; of all rounds the medians are shown.

    calls   of the handler in a round; all processes together
    budget  what p99 may be; where each is to have an answer of its own, or somebody died, there is none

Without a cache, where nobody waits for anybody, the same requests show what the machine itself takes.

Run it in the project's environment, on a quiet machine:

    python benchmarks/stampede.py [--quick] [--rounds N] [--json] [--check]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hit_path import machine

# Where the tests are: their Redis server and their worker processes are used here.
sys.path.append(str(Path(__file__).parent.parent))
from tests.servers import RedisServer
from tests.stampede_support import A_MINUTE, HOUR, PRIVATE, PROCESSES, REVALIDATING, Fleet, Worker

_REQUESTS = 500
_HANDLER = 0.2
_BUDGET_MS = 230.0
# The defaults of CoordinationOptions, and not the endless patience of the tests.
_DEFAULTS = {"lease_wait": 5.0}

Act = Callable[[Fleet, RedisServer], Awaitable[None]]


@dataclass(frozen=True)
class Case:
    """
    A stampede on the store *kind* in *processes*.

    calls: how many there must be in a round, the least and the most; None: as many as requests. plan: of the handler.
    stale: what is asked for is there, and stale. act: what happens while the handler is at work. without_redis: it is
    gone. replaces: how few rounds there are where a process is to be replaced after each.
    """

    name: str
    kind: str
    processes: int = PROCESSES
    calls: tuple[int, int] | None = (1, 1)
    budget: bool = True
    plan: dict[str, Any] = field(default_factory=lambda: {"headers": HOUR})
    options: dict[str, Any] = field(default_factory=dict)
    stale: bool = False
    act: Act | None = None
    without_redis: bool = False
    replaces: bool = False


async def _leave(fleet: Fleet, server: RedisServer) -> None:
    await fleet.workers[await fleet.leader()].do("leave", how="disconnect")


async def _kill(fleet: Fleet, server: RedisServer) -> None:
    leading = await fleet.leader()
    await asyncio.sleep(_HANDLER / 2)
    fleet.workers[leading].kill()


CASES: Sequence[Case] = (
    Case("one process, no cache", "none", processes=1, calls=None, budget=False),
    Case("three, no cache", "none", calls=None, budget=False),
    Case("one process, memory", "memory", processes=1),
    Case("one process, two levels", "write_through", processes=1),
    Case("three, write_through", "write_through"),
    Case("three, cache_aside", "cache_aside"),
    Case("three, write_back", "write_back"),
    Case("three, Redis alone", "redis"),
    Case("stale, refreshed behind", "write_through", stale=True),
    Case("the leader's client leaves", "write_through", act=_leave),
    Case("the leader's process is killed", "write_through", calls=(2, 2), budget=False, act=_kill, replaces=True),
    Case("private: each its own", "write_through", calls=None, budget=False, plan={"headers": PRIVATE}),
    Case("the handler raises", "write_through", calls=(1, PROCESSES), budget=False, plan={"error": True}),
    Case(
        "slower than lease_wait (50 ms)",
        "write_through",
        calls=(PROCESSES, PROCESSES),
        budget=False,
        options={"coordination": {"lease_wait": 0.05}},
    ),
    Case(
        "Redis gone",
        "write_through",
        calls=(PROCESSES, PROCESSES),
        without_redis=True,
        options={"timeout": 0.1, "drain": 0.1},
    ),
)


@dataclass
class Row:
    """The figures of one case: medians over its rounds, in milliseconds. wrong: rounds with too few or many calls."""

    name: str
    rounds: int
    requests: int
    calls: list[int]
    p50: float
    p99: float
    largest: float
    budget_ms: float | None
    wrong: int

    @property
    def is_kept(self) -> bool:
        """Whether the calls are right, and the budget is kept."""
        return not self.wrong and (self.budget_ms is None or self.p99 < self.budget_ms)


async def measure(case: Case, rounds: int, many: int, fleet: Fleet) -> Row:
    """Return the figures of *case* with so *many* requests, on a Redis and on caches of its own."""
    options = {"coordination": _DEFAULTS, **case.options}
    requests = many // case.processes + (case.processes > 1)
    latencies: list[list[float]] = []
    calls: list[int] = []
    rounds = max(1, rounds // 4) if case.replaces else rounds
    with RedisServer() as server:
        async with fleet.site(case.kind, server.url, **options):
            for number in range(-1, rounds):  # the one before the first warms up
                answers = await _round(case, fleet, server, f"/{number}", requests)
                if number >= 0:
                    calls.append(len(fleet.calls))
                    latencies.append(sorted(answer["seconds"] * 1000 for answer in answers))
                if number < 0 and case.without_redis:
                    server.kill()
                if case.replaces:
                    await _replace(case, fleet, server.url, options)
    total = requests * case.processes
    least, most = case.calls or (total, total)
    return Row(
        case.name,
        rounds,
        total,
        sorted(set(calls)),
        statistics.median(times[len(times) // 2] for times in latencies),
        statistics.median(times[len(times) * 99 // 100] for times in latencies),
        statistics.median(times[-1] for times in latencies),
        _BUDGET_MS if case.budget else None,
        sum(not least <= count <= most for count in calls),
    )


async def _round(case: Case, fleet: Fleet, server: RedisServer, path: str, requests: int) -> list[dict[str, Any]]:
    """Make all requests, and return their answers but for those of clients and processes that are gone."""
    if case.stale:
        await _ask(fleet.workers[:1], path, 1, plan={"headers": REVALIDATING})
        await fleet.at_rest()
        await fleet.do("advance", seconds=A_MINUTE)
    for worker in fleet.workers:
        worker.called.clear()
    asking = asyncio.ensure_future(
        _ask(fleet.workers[: case.processes], path, requests, plan={"delay": _HANDLER, **case.plan})
    )
    if case.act is not None:
        await case.act(fleet, server)
    answers = await asking
    if not (case.replaces or case.without_redis):
        await fleet.at_rest()
    return [answer for answer in answers if "seconds" in answer and answer.get("status") != 0]


async def _ask(workers: Sequence[Worker], path: str, count: int, plan: dict[str, Any]) -> list[dict[str, Any]]:
    for worker in workers:
        await worker.do("will", **plan)
    at = time.monotonic() + 0.03
    asked = [worker.do("ask", path=path, count=count, at=at) for worker in workers]
    of_each = await asyncio.gather(*asked, return_exceptions=True)
    return [answer for answers in of_each if isinstance(answers, list) for answer in answers]


async def _replace(case: Case, fleet: Fleet, url: str, options: dict[str, Any]) -> None:
    """Put a new process in the place of the one that was killed."""
    for number, worker in enumerate(fleet.workers):
        if not worker.is_running:
            await fleet.replace(number)
            await fleet.workers[number].do("open", kind=case.kind, url=url, **options)


def _print_row(row: Row) -> None:
    calls = f"{row.calls[0]}" if len(row.calls) == 1 else f"{row.calls[0]} to {row.calls[-1]}"
    budget = "" if row.budget_ms is None else f"p99 {row.budget_ms:.0f} ms"
    verdict = "" if row.is_kept else " EXCEEDED" if not row.wrong else " WRONG CALLS"
    cells = [row.name, f"{row.requests}", f"{row.rounds}", calls]
    cells += [f"{figure:.1f}" for figure in (row.p50, row.p99, row.largest)]
    print("| " + " | ".join([*cells, budget + verdict]) + " |", flush=True)


async def _measure_all(rounds: int, many: int, *, shown: bool) -> list[Row]:
    rows = []
    async with Fleet() as fleet:
        for case in CASES:
            rows.append(await measure(case, rounds, many, fleet))
            if shown:
                _print_row(rows[-1])
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round each, of few requests: does it run?")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--check", action="store_true", help="fail when a budget is exceeded or a call is too many")
    arguments = parser.parse_args()
    rounds, many = (1, 50) if arguments.quick else (arguments.rounds, _REQUESTS)
    if not arguments.json:
        print(", ".join(machine().values()))
        print(f"a handler of {_HANDLER * 1000:.0f} ms; p50, p99 and max in ms, medians of the rounds\n")
        print("| stampede | requests | rounds | calls | p50 | p99 | max | budget |")
        print("|---|---|---|---|---|---|---|---|")
    rows = asyncio.run(_measure_all(rounds, many, shown=not arguments.json))
    if arguments.json:
        print(json.dumps({"stampede": [asdict(row) for row in rows]}))
    if arguments.check and not all(row.is_kept for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
