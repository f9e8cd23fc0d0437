"""
The floors of the house: a module imports only from a lower floor or from its own package.

Every import counts, also those inside functions and under `if TYPE_CHECKING`: a type that a module names is a thing
that it knows about.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

PACKAGE = "echo_cache"
ROOT = Path(__file__).parent.parent / PACKAGE

# What stands on which floor. A package is named once, for all the modules in it.
FLOORS = {
    "errors": 0,
    "fields": 0,
    "model": 1,
    "options": 1,
    "events": 2,
    "policy": 2,
    "codec": 2,
    "tallies": 2,
    "stores": 3,
    "coordination": 3,
    "cache": 4,
    "asgi": 5,
    "routes": 5,
    "fastapi": 5,
    "aside": 5,
    "integrations": 5,
    "management": 5,
    "observability": 5,
    "settings": 5,
    "testing": 5,
    "recipes": 6,
    "dashboard": 6,
    "pytest_plugin": 6,
    "cli": 7,
    "__main__": 8,
    # echo_cache/__init__.py: the public names, above all.
    "": 8,
}

# The rules of HTTP are functions of their arguments: `now` is given, nothing waits, nothing is drawn by lot.
IMPURE = frozenset({"anyio", "asyncio", "datetime", "random", "redis", "secrets", "socket", "threading", "time"})
PURE = frozenset({"policy"})


def violations(module: str, source: str, floors: Mapping[str, int] = FLOORS) -> list[str]:
    """
    Return what is wrong with the imports of *module*, one sentence each.

    *module* is the dotted name of a module, or of a package for its `__init__.py`.
    """
    own = _part(module)
    if own not in floors:
        return [f"{module} stands on no floor: put {own!r} on one in FLOORS of tests/test_layers.py"]
    found = []
    for line, name in _imports(source):
        top = name.partition(".")[0]
        if not top:
            found.append(f"{module}:{line} imports {name}: write the whole name, so that its floor can be seen")
            continue
        if top != PACKAGE:
            if own in PURE and top in IMPURE:
                found.append(f"{module}:{line} imports {name}, which {own}/ must not know")
            continue
        part = _part(name)
        if part == own:
            continue
        if part not in floors:
            found.append(f"{module}:{line} imports {name}, which stands on no floor")
        elif floors[part] >= floors[own]:
            found.append(f"{module} (floor {floors[own]}):{line} imports {name} (floor {floors[part]})")
    return found


def _part(name: str) -> str:
    """Return the part of the house that *name* belongs to: "policy" for echo_cache.policy.keys, "" for the top."""
    return [*name.split("."), ""][1]


def _imports(source: str) -> Iterator[tuple[int, str]]:
    """Yield the line and the whole name of each import; the name of a relative one begins with a dot."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom) and (node.level or node.module != PACKAGE):
            yield node.lineno, "." * node.level + (node.module or "")
        elif isinstance(node, ast.ImportFrom):
            # `from echo_cache import fields` names a module; `from echo_cache import Cache` names the top itself.
            for alias in node.names:
                yield node.lineno, f"{PACKAGE}.{alias.name}" if _is_part(alias.name) else PACKAGE


def _is_part(name: str) -> bool:
    return name in FLOORS or (ROOT / name).is_dir() or (ROOT / f"{name}.py").is_file()


def _modules() -> list[tuple[str, Path]]:
    paths = sorted(ROOT.rglob("*.py"))
    names = [".".join([PACKAGE, *path.relative_to(ROOT).with_suffix("").parts]) for path in paths]
    return [(name.removesuffix(".__init__"), path) for name, path in zip(names, paths, strict=True)]


@pytest.mark.parametrize(("module", "path"), [pytest.param(*pair, id=pair[0]) for pair in _modules()])
def test_module_imports_only_from_lower_floors(module: str, path: Path) -> None:
    assert violations(module, path.read_text(encoding="utf-8")) == []


def test_the_house_is_found() -> None:
    assert (PACKAGE, ROOT / "__init__.py") in _modules()
    assert len(_modules()) > 5


@pytest.mark.parametrize(
    ("module", "source"),
    [
        pytest.param("echo_cache.model", "import echo_cache.errors", id="lower"),
        pytest.param("echo_cache.cache", "from echo_cache import policy, codec", id="lower-from-the-top"),
        pytest.param("echo_cache.stores.redis", "from echo_cache.stores.base import Store", id="own-package"),
        pytest.param("echo_cache.stores", "from echo_cache.stores.memory import MemoryStore", id="own-package-init"),
        pytest.param("echo_cache", "from echo_cache.cli import main", id="the-top-sees-all"),
        pytest.param("echo_cache.coordination.clock", "import time, asyncio, redis", id="impure-where-allowed"),
        pytest.param("echo_cache.fastapi", "import fastapi\nfrom fastapi import Depends", id="namesake-outside"),
        pytest.param("echo_cache.policy.keys", "import re, math\nfrom echo_cache.fields import etag", id="pure"),
    ],
)
def test_allowed_import_is_not_reported(module: str, source: str) -> None:
    assert violations(module, source) == []


@pytest.mark.parametrize(
    ("module", "source", "named"),
    [
        pytest.param("echo_cache.model", "import echo_cache.cache", "echo_cache.cache (floor 4)", id="upper"),
        pytest.param("echo_cache.model", "from echo_cache.options import X", "echo_cache.options", id="same-floor"),
        pytest.param(
            "echo_cache.policy.keys", "from echo_cache import codec", "echo_cache.codec", id="same-floor-from"
        ),
        pytest.param(
            "echo_cache.stores.twolevel", "from echo_cache.coordination import breaker", "floor 3", id="sister"
        ),
        pytest.param("echo_cache.coordination.log", "from echo_cache.stores import base", "floor 3", id="sister-back"),
        pytest.param("echo_cache.cache", "from echo_cache import Cache", "echo_cache (floor 8)", id="the-top"),
        pytest.param("echo_cache.cache", "import echo_cache", "echo_cache (floor 8)", id="the-top-plain"),
        pytest.param("echo_cache.stores", "from .base import Store", ".base: write the whole name", id="relative"),
        pytest.param("echo_cache.policy.keys", "from .. import cache", "..: write the whole name", id="relative-dots"),
        pytest.param(
            "echo_cache.model", "def f():\n    import echo_cache.asgi", "model (floor 1):2", id="in-a-function"
        ),
        pytest.param(
            "echo_cache.model",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from echo_cache.asgi import X",
            "model (floor 1):3",
            id="type-checking",
        ),
        pytest.param("echo_cache.policy.keys", "import time", "imports time", id="policy-clock"),
        pytest.param("echo_cache.policy.keys", "from datetime import datetime", "imports datetime", id="policy-date"),
        pytest.param("echo_cache.policy.keys", "import asyncio.locks", "imports asyncio.locks", id="policy-asyncio"),
        pytest.param("echo_cache.policy", "import random", "imports random", id="policy-random"),
        pytest.param("echo_cache.policy.keys", "def f():\n    import redis", "imports redis", id="policy-redis"),
        pytest.param("echo_cache.cache", "import echo_cache.attic", "stands on no floor", id="unlisted-import"),
        pytest.param("echo_cache.attic", "", "put 'attic' on one in FLOORS", id="unlisted-module"),
        pytest.param("echo_cache.attic.box", "", "put 'attic' on one in FLOORS", id="unlisted-package"),
    ],
)
def test_forbidden_import_is_reported(module: str, source: str, named: str) -> None:
    found = violations(module, source)
    assert len(found) == 1
    assert named in found[0]
