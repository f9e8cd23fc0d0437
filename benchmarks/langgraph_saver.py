"""
What a checkpoint of LangGraph costs to read and to write, from PostgreSQL and through the cache before it.

A real PostgreSQL and a real Redis, as the tests find theirs, on this machine, both by a Unix socket, with no network
and no disk to wait for: both in PostgreSQL's favour. One connection to PostgreSQL, as `from_conn_string` makes it; a
RedisStore with a secret. The checkpoint is that of an agent that waits for its user: a chat, some other channels, an
interrupt, and older checkpoints of the thread behind it. The chat is of dictionaries, or of LangChain's message
objects.

Each round does every row of a checkpoint a few times, one row after the other. Shown are the medians of the rounds, in
milliseconds, and of the ratios that each round gives:

    alone            `aget_tuple` of AsyncPostgresSaver, the same through CachedPostgresSaver, and the ratio
    at once          the time per read when 32 threads are read together, as in a server: what a process can do
    new here         through the cache, alone, when Redis has it and this process has not read it before, and the ratio
    serde            of that, and of PostgreSQL's time: what the serde takes to make the objects
    cold             through the cache, one at a time, when Redis has nothing: it is asked in vain, and filled
    write, write +   `aput` to PostgreSQL alone, and through the cache

Run it in the project's environment, on a quiet machine:

    python benchmarks/langgraph_saver.py [--quick] [--rounds N] [--json] [--check]

The exit code is 0, whatever the figures; with --check it is 1 when a warm read, alone or at once, costs more than a
third of PostgreSQL's.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hit_path import machine
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import CheckpointTuple

from echo_cache.integrations.langgraph.saver import DEFAULT_MEMORY_BYTES

# Where the tests are: their servers and their savers are used here.
sys.path.append(str(Path(__file__).parent.parent))
from tests.langgraph_support import cached, config_of, new_thread, plain, put, value_of
from tests.postgres import postgres_database
from tests.servers import RedisServer

_BUDGET = 1 / 3
_EACH = 20
_FEW = 5
_AT_ONCE = 32
_TURNS = 4
# The saver's default, and a time-out that a busy machine keeps.
_OPTIONS: dict[str, Any] = {"memory_bytes": DEFAULT_MEMORY_BYTES, "timeout": 1.0}

_chance = random.Random(1)
_WORDS = ["".join(_chance.choices("abcdefghijklmnopqrstuvwxyz", k=_chance.randint(2, 9))) for _ in range(3_000)]


@dataclass(frozen=True)
class Case:
    """A chat of *messages*, each of *size* characters. objects: whether they are LangChain's."""

    name: str
    messages: int
    size: int
    objects: bool


CASES = (
    Case("10 kB, 20 dictionaries", 20, 400, objects=False),
    Case("10 kB, 20 message objects", 20, 400, objects=True),
    Case("100 kB, 50 dictionaries", 50, 1_900, objects=False),
    Case("100 kB, 50 message objects", 50, 1_900, objects=True),
)


@dataclass
class Row:
    """The figures of one checkpoint; times in milliseconds. value_bytes: what it takes in Redis."""

    name: str
    value_bytes: int
    postgres: float
    warm: float
    ratio: float
    postgres_at_once: float
    warm_at_once: float
    ratio_at_once: float
    new_here: float
    ratio_new_here: float
    serde: float
    cold: float
    write: float
    write_cached: float

    budget: float = _BUDGET

    @property
    def is_kept(self) -> bool:
        """Whether the budget is, alone and at once."""
        return max(self.ratio, self.ratio_at_once) <= self.budget


async def measure(case: Case, rounds: int, postgres_url: str, server: RedisServer, redis_url: str) -> Row:
    """Return what *case* costs."""
    server.command("FLUSHALL")
    async with (
        plain(postgres_url) as saver,
        cached(saver, redis_url, **_OPTIONS) as mine,
        cached(saver, redis_url, **_OPTIONS | {"memory_bytes": 0}) as forgetful,
    ):
        configs = [config_of(await _agent(saver, case)) for _ in range(_AT_ONCE)]
        config, other = configs[0], config_of(await _agent(saver, case))
        expected = await saver.aget_tuple(config)
        assert expected is not None
        for _ in range(2):
            assert await mine.aget_tuple(config) == expected
        assert mine.stats().hits == 1
        value_bytes = int(server.command("STRLEN", value_of(config["configurable"]["thread_id"])))
        written = [saver.serde.dumps_typed(one) for one in _blobs(expected)]
        times: dict[str, list[float]] = defaultdict(list)
        for _ in range(rounds):
            for one in configs:
                await mine.aget_tuple(one)
            misses = mine.stats().misses
            for name, one in (("postgres", saver), ("warm", mine)):
                times[name].append(await _timed(_EACH, lambda one=one: one.aget_tuple(config)))
                times[f"{name}_at_once"].append(await _timed_at_once(one, configs))
            times["new_here"].append(await _timed(_EACH, lambda: forgetful.aget_tuple(config)))
            assert mine.stats().misses == misses
            assert forgetful.stats().misses == 0
            times["serde"].append(_timed_here(lambda: [saver.serde.loads_typed(one) for one in written]))
            times["cold"].append(
                await _timed(_FEW, lambda: mine.aget_tuple(config), lambda: server.command("FLUSHALL"))
            )
            for name, one in (("write", saver), ("write_cached", mine)):
                times[name].append(await _timed(_FEW, _again(one, other, expected)))
    middle = {name: statistics.median(of) * 1000 for name, of in times.items()}
    ratios = {name: _ratio(times[f"postgres{name}"], times[f"warm{name}"]) for name in ("", "_at_once")}
    return Row(
        name=case.name,
        value_bytes=value_bytes,
        ratio=ratios[""],
        ratio_at_once=ratios["_at_once"],
        ratio_new_here=_ratio(times["postgres"], times["new_here"]),
        **middle,
    )


async def _agent(saver: Any, case: Case) -> str:
    """Make a thread with *case* as its latest checkpoint, behind others, and an interrupt; return its name."""
    thread, config = new_thread(), None
    for _ in range(_TURNS):
        config = await put(
            saver,
            thread,
            config,
            messages=[_message(case, number) for number in range(case.messages)],
            plan=[_text(40) for _ in range(5)],
            todos=[{"content": _text(60), "status": "done"} for _ in range(4)],
            files={_text(10): _text(200) for _ in range(3)},
            question=_text(50),
            remaining_steps=25,
        )
    await saver.aput_writes(config, [("messages", [_text(100)]), ("__interrupt__", [{"value": _text(100)}])], "task")
    return thread


def _message(case: Case, number: int) -> Any:
    text = _text(case.size)
    if not case.objects:
        return {"role": ("user", "assistant")[number % 2], "content": text}
    return (HumanMessage, AIMessage)[number % 2](text)


def _text(size: int) -> str:
    """Return words, which compress as language does, and not as one letter would."""
    return " ".join(_chance.choices(_WORDS, k=size // 4))[:size]


def _blobs(saved: CheckpointTuple) -> list[Any]:
    values = [one for one in saved.checkpoint["channel_values"].values() if not isinstance(one, str | int)]
    return values + [write for *_, write in saved.pending_writes or ()]


def _ratio(postgres: Sequence[float], warm: Sequence[float]) -> float:
    return statistics.median([ours / theirs for theirs, ours in zip(postgres, warm, strict=True)])


def _again(saver: Any, config: RunnableConfig, saved: Any) -> Callable[[], Awaitable[Any]]:
    """Return what puts *saved* into the thread of *config*, with its blobs in another version as a step would."""
    versions = {name: saver.get_next_version(None, None) for name in saved.checkpoint["channel_values"]}
    return lambda: saver.aput(config, saved.checkpoint, saved.metadata, versions)


async def _timed(count: int, do: Callable[[], Awaitable[Any]], before: Callable[[], Any] = lambda: None) -> float:
    """Return the median of the seconds that *do* takes, *count* times; *before* it each time something else is done."""
    times = []
    for _ in range(count):
        before()
        began = time.perf_counter()
        await do()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


async def _timed_at_once(saver: Any, configs: Sequence[RunnableConfig]) -> float:
    """Return the median of the seconds per read when all *configs* are read at once."""
    times = []
    for _ in range(_FEW):
        began = time.perf_counter()
        await asyncio.gather(*[saver.aget_tuple(config) for config in configs])
        times.append((time.perf_counter() - began) / len(configs))
    return statistics.median(times)


def _timed_here(do: Callable[[], Any]) -> float:
    times = []
    for _ in range(_EACH):
        began = time.perf_counter()
        do()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def _verdict(row: Row) -> str:
    return f"{row.budget:.2f}" + ("" if row.is_kept else " EXCEEDED")


def _print_row(row: Row) -> None:
    def shown(postgres: float, warm: float, ratio: float) -> str:
        return f"{postgres:.2f} / {warm:.2f} / {ratio:.2f}"

    cells = [row.name, f"{row.value_bytes:,}", shown(row.postgres, row.warm, row.ratio)]
    cells += [shown(row.postgres_at_once, row.warm_at_once, row.ratio_at_once)]
    cells += [f"{row.new_here:.2f} / {row.ratio_new_here:.2f}"]
    cells += [f"{figure:.2f}" for figure in (row.serde, row.cold, row.write, row.write_cached)]
    print("| " + " | ".join([*cells, _verdict(row)]) + " |", flush=True)


async def _measure_all(rounds: int, *, shown: bool) -> list[Row]:
    rows = []
    # A short path: that of a socket may have a hundred characters or so.
    with (
        tempfile.TemporaryDirectory(prefix="echo-") as folder,
        postgres_database() as url,
        RedisServer(("--unixsocket", f"{folder}/redis.sock")) as server,
    ):
        for case in CASES:
            rows.append(await measure(case, rounds, url, server, f"unix://{folder}/redis.sock?db=0"))
            if shown:
                _print_row(rows[-1])
    return rows


def main() -> int:
    """Measure and print; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round each: does it run?")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--check", action="store_true", help="exit with 1 when a warm read exceeds its budget")
    arguments = parser.parse_args()
    if not arguments.json:
        print(", ".join(machine().values()))
        print("PostgreSQL / warm / ratio\n")
        print("| checkpoint | bytes | alone | at once | new here | serde | cold | write | write + | budget |")
        print("|---|---|---|---|---|---|---|---|---|---|")
    rows = asyncio.run(_measure_all(1 if arguments.quick else arguments.rounds, shown=not arguments.json))
    if arguments.json:
        print(json.dumps({"langgraph_saver": [asdict(row) for row in rows]}))
    return 1 if arguments.check and not all(row.is_kept for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
