"""The benchmarks run and print what they measure. No figure of theirs decides a test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# For a machine under load; an idle one needs a third of a minute at the most.
pytestmark = pytest.mark.timeout(300)


def run(script: str, *arguments: str) -> str:
    """Return what *script* prints. Fails when it fails."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / script), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_hit_path_prints_each_row_with_its_budget() -> None:
    printed = run("hit_path.py", "--quick", "--rounds", "1")
    rows = [line for line in printed.splitlines() if line.startswith(("bare app ", "hit", "miss"))]
    in_process, under_server = 14, 4
    assert len(rows) == in_process + (under_server if sys.platform == "linux" else 0)
    budgets = ["2.0 us", "+15 us", "+0.5 us", *(["1.10 x"] if sys.platform == "linux" else [])]
    assert all(any(budget in row for row in rows) for budget in budgets)


def test_hit_path_figures_are_positive_in_json() -> None:
    printed = json.loads(run("hit_path.py", "--quick", "--rounds", "1", "--only", "process", "--json"))
    assert all(row["each"] > 0 for row in printed["process"])


def test_memory_measures_a_footprint() -> None:
    if sys.platform == "linux":
        printed = json.loads(run("memory.py", "--footprint", "lru", "10000"))
        assert printed["entries"] == 10_000


def test_two_level_prints_each_part_with_its_budgets() -> None:
    printed = run("two_level.py", "--quick", "--rounds", "1")
    in_process = [line for line in printed.splitlines() if line.startswith(("redis-py GET ", "get, ", "request, "))]
    for strategy in ("cache_aside", "write_through"):
        assert len([line for line in in_process if f", {strategy} " in line]) == 2 * 5
    under_server = ["bare app ", "plain redis-py", "hit, Redis alone", "hit, L2 of", "hit, L1 of"]
    beginnings = [*(under_server if sys.platform == "linux" else []), "two levels ", "memory alone "]
    assert all(any(line.startswith(beginning) for line in printed.splitlines()) for beginning in beginnings)
    budgets = ["p99 1 ms", "p99 10 ms", "hit rate 95 %", "memory 150 %"]
    budgets += ["55 us", "0.50 of plain"] if sys.platform == "linux" else []
    assert all(budget in printed for budget in budgets)


def test_two_level_figures_of_the_workload_are_shares_in_json() -> None:
    printed = json.loads(run("two_level.py", "--quick", "--only", "workload", "--json"))["workload"]
    assert printed["held_of_memory_alone"] > 0


def test_eviction_prints_a_table_with_every_policy_and_trace() -> None:
    printed = run("eviction.py", "--quick")
    heads = [line for line in printed.splitlines() if line.startswith("| trace |")]
    assert heads == ["| trace | lfu | lru | mfu | mru | s3fifo |"] * 2
    rows = [line.split(" | ") for line in printed.splitlines() if line.startswith("| ") and line[-3].isdigit()]
    traces, policies = 7, 5
    assert len(rows) == 2 * (traces + policies)
    assert all(0 <= float(figure.rstrip(" |")) <= 100 for row in rows[: 2 * traces] for figure in row[1:])


def test_trouble_prints_what_requests_felt_of_each() -> None:
    printed = json.loads(run("trouble.py", "--quick", "--json"))["trouble"]
    assert len(printed) == 8
    assert all(row["requests"] > 0 and row["errors"] == 0 for row in printed)


def test_invalidation_prints_each_part_with_its_bounds() -> None:
    if sys.platform == "linux":
        printed = run("invalidation.py", "--quick")
        heads = [line for line in printed.splitlines() if line.endswith("| measured | bound |")]
        assert [head.split(" | ")[0] for head in heads] == ["| delay", "| partition", "| memory"]
        rows = [line for line in printed.splitlines() if line.startswith("| ") and line not in heads]
        assert len(rows) == 9 + 2 * 5 + 11
        bounds = {"50 ms": 3, "0.5 s": 4, "2 s": 2, "32 MiB": 3}
        for bound, count in bounds.items():
            assert sum(f"| {bound}" in row for row in rows) == count, bound


def test_stampede_prints_each_case_and_its_calls() -> None:
    if sys.platform == "linux":
        printed = run("stampede.py", "--quick")
        calls = {
            row.split(" | ")[0].strip("| "): row.split(" | ")[3] for row in printed.splitlines() if row.startswith("| ")
        }
        for case in ("one process, memory", "one process, two levels", "three, write_through", "three, Redis alone"):
            assert calls[case][0].isdigit(), case


def test_observers_prints_each_row_with_its_budget() -> None:
    printed = run("observers.py", "--quick", "--rounds", "1")
    assert [printed.count(budget) for budget in ("+0.3 us", "20 ms", "5 ms ")] == [1, 2, 2]
