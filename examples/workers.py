"""
Three worker processes that share one Redis. `--once` shows what they share and ends them, else they serve.

On the command line, with REDIS_URL and CACHE_SECRET set, the same for all workers:

    uvicorn workers:app --app-dir examples --workers 3
    gunicorn workers:app --chdir examples --workers 3 --worker-class uvicorn_worker.UvicornWorker

The second needs the packages gunicorn and uvicorn-worker. Each worker has a memory of its own. What another one has
stored it finds in Redis; there too it hears what another one invalidates, and who calls the handler for all. $REDIS_URL
says where Redis is; a checkout with what its tests need starts one in its place, which is gone at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import itertools
import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from echo_cache import Cache, CoordinationOptions, HTTPCacheMiddleware, MemoryStore, RedisStore, TwoLevelStore, cached
from echo_cache.fastapi import CacheDep
from echo_cache.management import Management

# The app. Each worker imports it.

# The tour has patience: it shows the same on a slow machine. The other numbers are the defaults.
PATIENT = "PATIENT" in os.environ
cache = Cache(
    TwoLevelStore(
        MemoryStore(),
        RedisStore(
            os.environ.get("REDIS_URL", "redis://localhost"),
            prefix="workers-example",
            secret=os.environ.get("CACHE_SECRET"),
            timeout=10.0 if PATIENT else 0.1,
        ),
    ),
    coordination=CoordinationOptions(
        lease_ttl=30.0 if PATIENT else 2.0,
        lease_wait=30.0 if PATIENT else 5.0,
        # How often each tells the others what it has counted.
        report_every=0.2 if PATIENT else 2.0,
    ),
)
management = Management(cache)
calls = itertools.count(1)


class NamesWorker:
    """Says in each answer which process has sent it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-worker", str(os.getpid()).encode())]
            await send(message)

        await self.app(scope, receive, named)


app = FastAPI()
app.add_middleware(HTTPCacheMiddleware, cache=cache, exclude=["/worker", "/stats"])
app.add_middleware(NamesWorker)  # added last: outermost, so that what it adds is not stored


@app.get("/products/{product_id}")
@cached(ttl=60, tags=["product:{product_id}"])
async def product(product_id: str) -> dict[str, str]:
    await asyncio.sleep(0.3)  # a slow database
    return {"id": product_id, "made": f"by worker {os.getpid()}, call {next(calls)}"}


@app.put("/prices/{product_id}")  # of another URL than the page, which only the tag reaches
async def set_price(product_id: str, cache: CacheDep) -> None:
    # ... write to the database, and commit; then:
    await cache.invalidate(tags=[f"product:{product_id}"])


@app.get("/worker")
async def worker() -> int:
    return os.getpid()


# Whoever runs the app may see this, and nobody else: in an app of yours, guard it.
@app.get("/stats")
async def stats() -> dict[str, Any]:
    """What this worker counts, what the others told of themselves last, and the sum."""
    return await management.stats()


# The tour, from outside.

WORKERS = 3
PATIENCE = 45.0  # seconds for all of it, on a machine under load; an idle one needs a few
COUNTED = ("l1_hits", "l2_hits", "collapsed", "misses")


@dataclass(frozen=True)
class Answer:
    worker: str
    cache_status: str
    body: bytes


class Client:
    """A connection that stays open: the worker that accepted it answers all that is asked on it."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        self.worker = self.ask("GET", "/worker").worker

    def ask(self, method: str, path: str) -> Answer:
        self._connection.request(method, path)
        response = self._connection.getresponse()
        body = response.read()
        if response.status != 200:
            sys.exit(f"{method} {path}: {response.status} {body!r}")
        return Answer(response.headers["x-worker"], response.headers["cache-status"] or "", body)

    def close(self) -> None:
        self._connection.close()


def expect(what: str, found: object, expected: object) -> None:
    if found != expected:
        sys.exit(f"{what}: expected {expected!r}, found {found!r}")


def wait(deadline: float, what: str) -> None:
    """Let a moment pass. Exits, saying *what* did not come, when that was the last one."""
    if time.monotonic() > deadline:
        sys.exit(f"{what}, in {PATIENCE} s")
    time.sleep(0.01)


@contextlib.contextmanager
def clients_of_all(port: int, deadline: float, for_each: int = 8) -> Iterator[list[Client]]:
    """Yield connections to all workers, 1 to *for_each* to each. Which worker accepts one, the kernel decides."""
    with contextlib.ExitStack() as stack:
        clients: list[Client] = []
        while (found := len({client.worker for client in clients})) < WORKERS:
            client = stack.enter_context(contextlib.closing(Client(port)))
            if sum(other.worker == client.worker for other in clients) < for_each:
                clients.append(client)
            else:
                client.close()
                wait(deadline, f"expected {WORKERS} workers, found {found}")
        yield clients


def one_of_each(clients: list[Client]) -> list[Client]:
    return list({client.worker: client for client in clients}.values())


def tour(clients: list[Client], deadline: float) -> None:
    # Of this run only, also where the Redis still has what the last one left.
    product_id = secrets.token_hex(4)
    page = f"/products/{product_id}"
    asked = len(clients)
    with ThreadPoolExecutor(asked) as pool:
        answers = list(pool.map(lambda client: client.ask("GET", page), clients))
    # Each call of the handler has a body of its own.
    expect("bodies", len({answer.body for answer in answers}), 1)
    expect("workers that answered", len({answer.worker for answer in answers}), WORKERS)
    print(f"{asked} GETs of a cold page at once, to {WORKERS} workers: 1 call of the handler")

    each = one_of_each(clients)
    for client in each:
        answer = client.ask("GET", page)
        print(f"worker {client.worker}: GET {page}  {answer.cache_status}")
        expect("a hit", "; hit; ttl=" in answer.cache_status, True)
    asked += len(each)

    old = answers[0].body
    each[0].ask("PUT", f"/prices/{product_id}")
    print(f"worker {each[0].worker}: PUT /prices/{product_id}, which invalidates by tag")
    fresh = each[0].ask("GET", page).body
    expect("at once in the worker that invalidates, an old answer", fresh == old, False)
    asked += 1
    for client in each[1:]:
        # It hears of it within milliseconds.
        while (body := client.ask("GET", page).body) == old:
            asked += 1
            wait(deadline, f"worker {client.worker} still gives the old answer")
        asked += 1
        expect("the answer of all", body, fresh)
    print(f"worker {each[0].worker}: calls the handler; all {WORKERS} workers give the new answer")
    show_sum(each[-1], asked, deadline)


def show_sum(client: Client, asked: int, deadline: float) -> None:
    """Print what all workers have counted, when each has told of itself."""
    while True:
        stats = json.loads(client.ask("GET", "/stats").body)
        total = {name: stats["total"][name] for name in COUNTED}
        # One call of the handler at first, and one after the invalidation.
        if total["misses"] == 2 and sum(total.values()) == asked:
            break
        wait(deadline, f"expected 2 calls of the handler for {asked} requests, found {total}")
    print(f"\n{'answered':<14} {'from memory':>12} {'from Redis':>12} {'collapsed':>12} {'by handler':>12}")
    for row in stats["workers"]:
        _, process, _ = row["id"].rsplit("-", 2)
        print(f"worker {process:<7} " + " ".join(f"{row[name]:>12}" for name in COUNTED))
    print(f"{'all':<14} " + " ".join(f"{count:>12}" for count in total.values()))


@contextlib.contextmanager
def redis() -> Iterator[str]:
    """Yield the URL of Redis."""
    if given := os.environ.get("REDIS_URL"):
        yield given
        return
    sys.path.append(str(Path(__file__).parent.parent))
    try:
        from tests.servers import RedisServer
    except ImportError:
        sys.exit("Set REDIS_URL: there is nothing here to start a Redis with.")
    with RedisServer() as server:
        yield server.url


@contextlib.contextmanager
def workers(redis_url: str, port: int, *, patient: bool) -> Iterator[subprocess.Popen[bytes]]:
    """Run the command line of the docstring."""
    line = [sys.executable, "-m", "uvicorn", "workers:app", "--app-dir", str(Path(__file__).parent)]
    line += ["--workers", str(WORKERS), "--port", str(port), "--timeout-keep-alive", "60", "--log-level", "warning"]
    environment = {"CACHE_SECRET": secrets.token_hex(), **os.environ, "REDIS_URL": redis_url}
    if patient:
        environment["PATIENT"] = "1"
    process = subprocess.Popen(line, env=environment)
    try:
        yield process
    finally:
        # uvicorn hands it on to its workers, and each closes its cache.
        process.terminate()
        process.wait()


def wait_until_it_listens(port: int, process: subprocess.Popen[bytes], deadline: float) -> None:
    """Return when uvicorn listens; that is before its workers have started."""
    while process.poll() is None:
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
            return
        wait(deadline, "uvicorn does not listen")
    sys.exit(f"uvicorn did not start: exit code {process.returncode}")


def main() -> None:
    arguments = argparse.ArgumentParser(description="Three workers that share one Redis.")
    arguments.add_argument("--port", type=int, default=8000)
    arguments.add_argument("--once", action="store_true", help="take the tour on a free port and exit")
    options = arguments.parse_args()
    port = options.port
    if options.once:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
    with redis() as url, workers(url, port, patient=options.once) as process:
        if options.once:
            deadline = time.monotonic() + PATIENCE
            wait_until_it_listens(port, process, deadline)
            with clients_of_all(port, deadline) as clients:
                tour(clients, deadline)
        else:
            print(f"Ask http://127.0.0.1:{port}/products/7 some times, then /stats; Ctrl-C ends it.", flush=True)
            with contextlib.suppress(KeyboardInterrupt):
                process.wait()


if __name__ == "__main__":
    main()
