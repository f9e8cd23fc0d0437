"""Importing the library is cheap: what only some apps need is imported when it is used."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def modules_after(statement: str) -> set[str]:
    """Return the names in sys.modules after a fresh interpreter ran *statement*."""
    report = f"{statement}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", report], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


@pytest.mark.parametrize("library", ["redis", "fastapi"])
def test_import_of_the_package_leaves_out(library: str) -> None:
    loaded = modules_after("import echo_cache")
    assert "echo_cache" in loaded
    assert library not in loaded
