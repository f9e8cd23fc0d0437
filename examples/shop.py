"""
A small shop behind the cache: `make demo`, or `python examples/shop.py`, then open http://127.0.0.1:8000.

The page shows a miss, a hit, a 304 and an invalidation, each with its time and its Cache-Status. `--once` starts the
shop on a free port, takes the same tour in the terminal and exits. With $REDIS_URL, Redis stands behind the memory.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from fastapi import FastAPI, HTTPException
from fastapi.responses import FileResponse

from echo_cache import (
    HTTPCacheMiddleware,
    MemoryStore,
    PolicyOptions,
    RedisStore,
    Store,
    TwoLevelStore,
    cached,
    never_cached,
)
from echo_cache.dashboard import mount
from echo_cache.fastapi import CacheDep

REDIS_URL = os.environ.get("REDIS_URL")
SLOW = 0.2  # seconds; the database that a real shop would ask

# The shop. This is all that an app needs.

store: Store = TwoLevelStore(MemoryStore(), RedisStore(REDIS_URL)) if REDIS_URL else MemoryStore()
# Visitors must not be able to force work: the no-cache that browsers send on a reload does not count.
policy = PolicyOptions(request_directives="ignore")

app = FastAPI(title="A small shop")
app.add_middleware(HTTPCacheMiddleware, store=store, policy=policy)
# Whoever sits at this machine may look and purge. A shop that others reach has a token: auth="...".
mount(app, "/_cache", auth=None)

prices = {1: 12.5, 2: 7.0, 3: 99.0}
calls = {"product": 0}


@app.get("/products/{product_id}")
@cached(ttl=60, stale_while_revalidate=30, tags=["catalog", "product:{product_id}"])
async def product(product_id: int) -> dict[str, int | float]:
    calls["product"] += 1
    await asyncio.sleep(SLOW)
    if product_id not in prices:
        raise HTTPException(404)
    return {"id": product_id, "price": prices[product_id]}


@app.put("/products/{product_id}")
async def update(product_id: int, price: float, cache: CacheDep) -> dict[str, int | float]:
    prices[product_id] = price
    await cache.invalidate(tags=[f"product:{product_id}"])
    return {"id": product_id, "price": price}


@app.get("/calls")
@never_cached
async def count_calls() -> dict[str, int]:
    return calls


@app.get("/", include_in_schema=False)
@never_cached
async def page() -> FileResponse:
    return FileResponse(Path(__file__).with_name("shop.html"))


# The tour.


@dataclass(frozen=True)
class Answer:
    status: int
    fields: http.client.HTTPMessage
    body: bytes
    milliseconds: float

    @property
    def cache_status(self) -> str:
        return self.fields["cache-status"] or ""


def ask(port: int, method: str, target: str, fields: dict[str, str] | None = None) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    with contextlib.closing(connection):
        connection.connect()
        start = time.perf_counter()
        connection.request(method, target, headers=fields or {})
        response = connection.getresponse()
        body = response.read()
        return Answer(response.status, response.headers, body, (time.perf_counter() - start) * 1000)


def show(step: str, answer: Answer, status: int, cache_status: str) -> None:
    """Print a row of the table. Exits with a message when *answer* is not what this step should show."""
    print(f"{step:<38} {answer.status:>6} {answer.milliseconds:>8.1f}  {answer.cache_status}")
    if answer.status != status or cache_status not in answer.cache_status:
        sys.exit(f"{step}: expected {status} and Cache-Status with {cache_status!r}; body: {answer.body!r}")


def expect(what: str, found: object, expected: object) -> None:
    if found != expected:
        sys.exit(f"{what}: expected {expected!r}, found {found!r}")


def tour(port: int) -> None:
    """Show what the cache does, on products that nobody has asked for yet."""
    show("GET, the first: a miss", ask(port, "GET", "/products/1"), 200, "miss")
    hit = ask(port, "GET", "/products/1")
    show("GET again: a hit", hit, 200, "hit")
    show("HEAD, answered by the stored GET", ask(port, "HEAD", "/products/1"), 200, "hit")
    conditional = ask(port, "GET", "/products/1", {"if-none-match": hit.fields["etag"]})
    show("GET with If-None-Match: not modified", conditional, 304, "hit")

    before = json.loads(ask(port, "GET", "/calls").body)["product"]
    with ThreadPoolExecutor(50) as visitors:
        answers = list(visitors.map(lambda _: ask(port, "GET", "/products/2"), range(50)))
    after = json.loads(ask(port, "GET", "/calls").body)["product"]
    expect("50 GETs of a cold page: answers", {(a.status, a.body) for a in answers}, {(200, answers[0].body)})
    expect("50 GETs of a cold page: calls of the handler", after - before, 1)
    answers.sort(key=lambda answer: ("collapsed" in answer.cache_status, answer.milliseconds))
    show("50 GETs of a cold page: 1 call", answers[-1], 200, "")

    show("PUT, which invalidates by tag", ask(port, "PUT", "/products/1?price=9.5"), 200, "fwd=method")
    changed = ask(port, "GET", "/products/1")
    show("GET after it: a miss", changed, 200, "miss")
    expect("the new price", json.loads(changed.body)["price"], 9.5)
    show("GET again: a hit", ask(port, "GET", "/products/1"), 200, "hit")


@contextlib.contextmanager
def shop_on(port: int) -> Iterator[None]:
    """Run the shop in a process of its own."""
    process = subprocess.Popen([sys.executable, __file__, "--port", str(port)], stdout=subprocess.DEVNULL)
    try:
        while process.poll() is None:
            with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.05)
        else:
            sys.exit(f"the shop did not start: exit code {process.returncode}")
        yield
    finally:
        process.terminate()
        process.wait()


def once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    print(f"{'Step':<38} {'Status':>6} {'ms':>8}  Cache-Status")
    with shop_on(port):
        tour(port)
    if REDIS_URL:
        with shop_on(port):
            show("GET after a restart: a hit from Redis", ask(port, "GET", "/products/2"), 200, "hit")
    print(f"\nThe handler takes {SLOW * 1000:.0f} ms. What to do next:")
    print("- run it without --once and take the tour in a browser")
    if REDIS_URL:
        print("- stop Redis in between: the shop goes on, from memory")
    else:
        print("- set REDIS_URL=redis://localhost and see a hit survive a restart of the shop")


def main() -> None:
    arguments = argparse.ArgumentParser(description="A small shop behind the cache.")
    arguments.add_argument("--port", type=int, default=8000)
    arguments.add_argument("--once", action="store_true", help="take the tour on a free port and exit")
    options = arguments.parse_args()
    if options.once:
        once()
        return
    try:
        socket.create_server(("127.0.0.1", options.port)).close()
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        sys.exit(f"port {options.port} is taken: make demo ARGS='--port {options.port + 1}'")
    url = f"http://127.0.0.1:{options.port}"
    print(f"Open {url} in a browser, or try these; Ctrl-C ends it.", flush=True)
    print(f"  curl -i {url}/products/1                    # twice: a miss, then a hit", flush=True)
    print(f"  curl -i -X PUT '{url}/products/1?price=9.5' # and the next one is a miss again", flush=True)
    print(f"  {url}/_cache/                               # the dashboard", flush=True)
    uvicorn.run(app, host="127.0.0.1", port=options.port, log_level="warning")


if __name__ == "__main__":
    main()
