"""The benchmarks run and print what they measure. No figure of theirs decides a test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


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
    in_process, under_server = 11, 4
    assert len(rows) == in_process + (under_server if sys.platform == "linux" else 0)
    budgets = ["2.0 us", "+15 us", *(["1.10 x"] if sys.platform == "linux" else [])]
    assert all(any(budget in row for row in rows) for budget in budgets)


def test_hit_path_figures_are_positive_in_json() -> None:
    printed = json.loads(run("hit_path.py", "--quick", "--rounds", "1", "--only", "process", "--json"))
    assert all(row["each"] > 0 for row in printed["process"])


def test_memory_measures_a_footprint() -> None:
    if sys.platform == "linux":
        printed = json.loads(run("memory.py", "--footprint", "lru", "10000"))
        assert printed["entries"] == 10_000
