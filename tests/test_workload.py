"""The two levels under many keys: how often the app is called, and what that costs in memory. Time decides nothing."""

from __future__ import annotations

import itertools

import anyio.to_thread
import pytest

from tests.workload import Outcome, Workload, fill, l1_bytes, play, zipf

# Enough requests to fill L1 before those that count begin; tracemalloc makes each of them cost 90 us.
WORKLOAD = Workload(keys=40_000, body_bytes=512, warm_up=12_000, requests=8_000)


@pytest.fixture
async def outcomes(redis_url: str) -> tuple[Outcome, Outcome]:
    """What came of WORKLOAD over the two levels, and over memory of L1's size alone."""
    await fill(WORKLOAD, redis_url)
    two_levels = await anyio.to_thread.run_sync(play, WORKLOAD, redis_url)
    memory_alone = await anyio.to_thread.run_sync(play, WORKLOAD, None)
    return two_levels, memory_alone


async def test_two_levels_with_a_tenth_in_memory_answer_nearly_all_and_keep_little_beside_l1(
    outcomes: tuple[Outcome, Outcome],
) -> None:
    two_levels, memory_alone = outcomes
    assert two_levels.hit_rate >= 0.95
    # Else the workload would say nothing of L2: it is too large for memory, and memory was full.
    assert memory_alone.hit_rate < 0.85
    assert 0.9 * l1_bytes(WORKLOAD) < memory_alone.counted_bytes <= l1_bytes(WORKLOAD)
    assert two_levels.counted_bytes <= l1_bytes(WORKLOAD)
    assert two_levels.held_bytes <= 1.5 * memory_alone.held_bytes
    # Both hold nearly the same entries, so the comparison is fair.
    assert two_levels.in_memory / memory_alone.in_memory == pytest.approx(1, abs=0.02)


def test_zipf_asks_for_the_first_tenth_four_times_in_five() -> None:
    drawn = list(itertools.islice(zipf(100_000), 20_000))
    assert drawn == list(itertools.islice(zipf(100_000), 20_000))
    assert sum(number < 10_000 for number in drawn) / len(drawn) == pytest.approx(0.81, abs=0.01)
