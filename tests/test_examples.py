"""Each example runs, and the shop's tour shows what it says: without Redis, with it, and over a restart."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
# For a machine under load; an idle one needs a second or two.
PATIENCE = 80
_CHANGES_EXAMPLES = ("REDIS_URL", "POSTGRES_URL", "PYTHONWARNINGS")

pytestmark = pytest.mark.timeout(3 * PATIENCE)


def environment(**more: str) -> dict[str, str]:
    """Return this process's environment, without what would change an example, and with *more*."""
    kept = {name: value for name, value in os.environ.items() if name not in _CHANGES_EXAMPLES}
    # The checkout, also where the package is not installed.
    return {**kept, "PYTHONPATH": str(ROOT), **more}


def run(*arguments: str | Path, **more: str) -> str:
    """Return what a Python program prints. It must exit with 0."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment(**more),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_there_are_examples() -> None:
    assert {path.name for path in EXAMPLES} >= {"fastapi_app.py", "reverse_proxy.py", "shop.py", "starlette_app.py"}


# The shop has tests of its own, below.
@pytest.mark.parametrize("example", [pytest.param(path, id=path.stem) for path in EXAMPLES if path.name != "shop.py"])
def test_example_runs_once(example: Path) -> None:
    printed = run(example, "--once")
    assert "; hit; ttl=" in printed


def test_example_of_the_public_names_runs() -> None:
    run("tests/typing/api.py")


def test_tour_of_the_shop_shows_each_step() -> None:
    lines = run("examples/shop.py", "--once").splitlines()
    steps = [line[:38].strip() for line in lines[1 : lines.index("")]]
    assert steps == [
        "GET, the first: a miss",
        "GET again: a hit",
        "HEAD, answered by the stored GET",
        "GET with If-None-Match: not modified",
        "50 GETs of a cold page: 1 call",
        "PUT, which invalidates by tag",
        "GET after it: a miss",
        "GET again: a hit",
    ]
    assert "What to do next" in lines[lines.index("") + 1]


def test_tour_of_the_shop_with_redis_ends_with_a_hit_after_a_restart(redis_url: str) -> None:
    printed = run("examples/shop.py", "--once", REDIS_URL=redis_url)
    (row,) = [line for line in printed.splitlines() if "after a restart" in line]
    assert "; hit; ttl=" in row


def test_page_of_the_shop_is_self_contained() -> None:
    page = (ROOT / "examples" / "shop.html").read_text(encoding="utf-8")
    assert "://" not in page


@contextlib.contextmanager
def shop(port: int, **more: str) -> Iterator[subprocess.Popen[str]]:
    """Run the shop as `make demo` does, until Ctrl-C."""
    process = subprocess.Popen(
        [sys.executable, "examples/shop.py", "--port", str(port)],
        cwd=ROOT,
        env=environment(PYTHONUNBUFFERED="1", **more),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        deadline = time.monotonic() + PATIENCE
        while True:
            with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
                break
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline, "the shop does not listen"
            time.sleep(0.02)
        yield process
    finally:
        process.kill()
        process.communicate()


def get(port: int, target: str) -> tuple[int, str, bytes]:
    """Return status, Cache-Status and body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    with contextlib.closing(connection):
        connection.request("GET", target)
        response = connection.getresponse()
        return response.status, response.headers["cache-status"], response.read()


def test_shop_serves_its_page_and_what_it_knew_before_a_restart_until_interrupted(redis_url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    bodies = []
    for expected in ("stored", "; hit"):
        with shop(port, REDIS_URL=redis_url) as process:
            status, said, body = get(port, "/products/3")
            assert status == 200
            assert expected in said
            bodies.append(body)
            assert b"<!doctype html>" in get(port, "/")[2]
            process.send_signal(signal.SIGINT)
            printed = process.communicate(timeout=PATIENCE)[0]
            assert process.returncode == 0, printed
            assert f"http://127.0.0.1:{port}/products/1" in printed
            assert "Traceback" not in printed
    assert bodies[0] == bodies[1]
