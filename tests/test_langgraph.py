"""Graphs give the same with the cached checkpointer as with the plain one, whatever becomes of Redis."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Final, TypeAlias

import pytest

from tests.langgraph_support import SCENARIOS, HaltingSaver, Scenario, cached, history, new_thread, plain, tidied
from tests.servers import RedisServer

Between: TypeAlias = Callable[[int], None]
"""What happens to Redis before the state is looked at, by the number of the step."""

# Short: a server that is gone must not take the time of the test.
TIMEOUT: Final = 0.5


@pytest.fixture
async def saver(postgres_url: str) -> AsyncIterator[HaltingSaver]:
    async with plain(postgres_url) as found:
        yield found


async def seen_of(scenario: Scenario, saver: Any, compared: HaltingSaver, between: Between) -> list[str]:
    """
    Run *scenario* on *saver* and return what was seen after each step, tidied.

    After each step everything is looked at twice through *saver*, and must be what *compared* gives.
    """
    builder = scenario.builder()
    graph, reference = builder.compile(checkpointer=saver), builder.compile(checkpointer=compared)
    thread = new_thread()
    seen = []
    for number, step in enumerate(scenario.steps):
        await step(graph, saver, thread)
        between(number)
        for name in [thread + suffix for suffix in scenario.threads]:
            expected = await history(reference, name)
            assert await history(graph, name) == expected
            assert await history(graph, name) == expected
            seen.append(tidied(expected))
    return seen


def _nothing(number: int) -> None:
    pass


@pytest.mark.parametrize("trouble", ["warm", "remembered", "cold", "killed"])
@pytest.mark.parametrize("scenario", [pytest.param(scenario, id=name) for name, scenario in SCENARIOS.items()])
async def test_graph_gives_the_same_as_on_the_plain_saver(
    scenario: Scenario, trouble: str, saver: HaltingSaver, own_redis: RedisServer
) -> None:
    def kill(number: int) -> None:
        if number == 0:
            own_redis.kill()

    between = {
        "warm": _nothing,
        "remembered": _nothing,
        "cold": lambda number: own_redis.command("FLUSHALL"),
        "killed": kill,
    }[trouble]
    expected = await seen_of(scenario, saver, saver, _nothing)
    memory = 0 if trouble == "warm" else 1_000_000
    async with cached(saver, own_redis.url, timeout=TIMEOUT, memory_bytes=memory) as mine:
        assert await seen_of(scenario, mine, saver, between) == expected
        stats = mine.stats()
    assert stats.rejected == 0
    if trouble == "killed":
        assert stats.failures > 0
    else:
        assert stats.hits > 0
        assert stats.failures == 0


# For a machine under load; an idle one needs a tenth of a minute.
@pytest.mark.timeout(300)
def test_benchmark_measures_each_checkpoint() -> None:
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, str(root / "benchmarks" / "langgraph_saver.py"), "--quick", "--json"],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["langgraph_saver"]
    assert [row["name"].split(", ")[0] for row in rows] == ["10 kB", "10 kB", "100 kB", "100 kB"]
    assert all(row["warm"] > 0 and row["postgres_at_once"] > 0 for row in rows)
