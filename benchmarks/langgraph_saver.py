"""
What a checkpoint of LangGraph costs to read and to write, from PostgreSQL and through the cache before it.

A real PostgreSQL and a real Redis, as the tests find theirs, both on this machine and both without disks to wait for,
which is in PostgreSQL's favour. One connection to each. The checkpoint is that of a chat: messages of LangChain, in a
graph with one node. Each round does every row of a checkpoint a few times, one row after the other; of a round each row
has its median, and what is shown are the medians of the rounds, in milliseconds:

    PostgreSQL      `aget_tuple` of AsyncPostgresSaver
    warm            the same through CachedPostgresSaver, from Redis; ratio: of PostgreSQL's time, by round
    cold            the same when Redis has nothing: it is asked in vain, and filled
    write, write +  `aput` to PostgreSQL alone, and through the cache

Run it in the project's environment, on a quiet machine:

    python benchmarks/langgraph_saver.py [--quick] [--rounds N] [--json] [--check]

The exit code is 0, whatever the figures; with --check it is 1 when a warm read costs more than a third of PostgreSQL's.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hit_path import machine
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.graph import END, START, MessagesState, StateGraph

# Where the tests are: their servers and their savers are used here.
sys.path.append(str(Path(__file__).parent.parent))
from tests.langgraph_support import SECRET, cached, config_of, new_thread, plain
from tests.postgres import postgres_database
from tests.servers import RedisServer

_BUDGET = 1 / 3
_EACH = 20
_VERSION_EACH = 5


@dataclass(frozen=True)
class Case:
    """A chat of *messages*, each of *size* bytes."""

    name: str
    messages: int
    size: int
    secret: str | None = SECRET


CASES = (
    Case("10 kB, 20 messages", 20, 400),
    Case("10 kB, not signed", 20, 400, None),
    Case("100 kB, 50 messages", 50, 1_900),
    Case("100 kB, 200 messages", 200, 400),
)


@dataclass
class Row:
    """The figures of one checkpoint; times in milliseconds. value_bytes: what it takes in Redis."""

    name: str
    value_bytes: int
    postgres: float
    warm: float
    ratio: float
    least_ratio: float
    most_ratio: float
    cold: float
    write: float
    write_cached: float

    @property
    def is_kept(self) -> bool:
        """Whether the budget is."""
        return self.ratio <= _BUDGET


async def measure(case: Case, rounds: int, postgres_url: str, server: RedisServer) -> Row:
    """Return what *case* costs."""
    server.command("FLUSHALL")
    async with plain(postgres_url) as saver, cached(saver, server.url, secret=case.secret, timeout=0.1) as mine:
        thread = await _chat_of(saver, case)
        config = config_of(thread)
        expected = await saver.aget_tuple(config)
        for _ in range(2):
            assert await mine.aget_tuple(config) == expected
        assert mine.stats().hits == 1
        (value,) = [name for name in server.command("KEYS", "*") if not name.endswith("}")]
        value_bytes = int(server.command("STRLEN", value))
        times: dict[str, list[float]] = {name: [] for name in ("postgres", "warm", "cold", "write", "write_cached")}
        for _ in range(rounds):
            times["postgres"].append(await _timed(_EACH, lambda: saver.aget_tuple(config)))
            before = mine.stats().hits
            await mine.aget_tuple(config)
            times["warm"].append(await _timed(_EACH, lambda: mine.aget_tuple(config)))
            assert mine.stats().hits >= before + _EACH
            times["cold"].append(await _timed(_VERSION_EACH, lambda: mine.aget_tuple(config), _emptied(server)))
            for name, one in (("write", saver), ("write_cached", mine)):
                times[name].append(await _timed(_VERSION_EACH, _again(one, expected)))
    ratios = sorted(warm / postgres for warm, postgres in zip(times["warm"], times["postgres"], strict=True))
    middle = {name: statistics.median(of) * 1000 for name, of in times.items()}
    return Row(
        name=case.name,
        value_bytes=value_bytes,
        ratio=statistics.median(ratios),
        least_ratio=ratios[0],
        most_ratio=ratios[-1],
        **middle,
    )


async def _chat_of(saver: Any, case: Case) -> str:
    """Make a thread with *case* as its latest checkpoint, by a graph; return its name."""

    def answer(state: MessagesState) -> dict[str, Any]:
        return {"messages": [AIMessage("a" * case.size)]}

    graph = StateGraph(MessagesState).add_node(answer).add_edge(START, "answer").add_edge("answer", END)
    thread = new_thread()
    kinds = (HumanMessage, AIMessage)
    said = [kinds[number % 2]("h" * case.size) for number in range(case.messages - 1)]
    await graph.compile(checkpointer=saver).ainvoke({"messages": said}, {"configurable": {"thread_id": thread}})
    return thread


def _again(saver: Any, saved: Any) -> Callable[[], Awaitable[Any]]:
    """Return what puts *saved* once more, with its blobs in another version as a step of a graph would."""
    versions = {name: saver.get_next_version(None, None) for name in saved.checkpoint["channel_values"]}
    return lambda: saver.aput(saved.config, saved.checkpoint, saved.metadata, versions)


def _emptied(server: RedisServer) -> Callable[[], Any]:
    return lambda: server.command("FLUSHALL")


async def _timed(count: int, do: Callable[[], Awaitable[Any]], before: Callable[[], Any] = lambda: None) -> float:
    """Return the median of the seconds that *do* takes, *count* times; *before* it each time something else is done."""
    times = []
    for _ in range(count):
        before()
        began = time.perf_counter()
        await do()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def _print_row(row: Row) -> None:
    cells = [row.name, f"{row.value_bytes:,}", f"{row.postgres:.2f}", f"{row.warm:.2f}"]
    cells += [f"{row.ratio:.2f} ({row.least_ratio:.2f} to {row.most_ratio:.2f})", f"{row.cold:.2f}"]
    cells += [f"{row.write:.2f}", f"{row.write_cached:.2f}", "0.33" + ("" if row.is_kept else " EXCEEDED")]
    print("| " + " | ".join(cells) + " |", flush=True)


async def _measure_all(rounds: int, *, shown: bool) -> list[Row]:
    rows = []
    with postgres_database() as url, RedisServer() as server:
        for case in CASES:
            rows.append(await measure(case, rounds, url, server))
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
        print("\n| checkpoint | bytes | PostgreSQL | warm | ratio | cold | write | write + | budget |")
        print("|---|---|---|---|---|---|---|---|---|")
    rows = asyncio.run(_measure_all(1 if arguments.quick else arguments.rounds, shown=not arguments.json))
    if arguments.json:
        print(json.dumps({"langgraph_saver": [asdict(row) for row in rows]}))
    return 1 if arguments.check and not all(row.is_kept for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
