"""
What observing costs: a hit and a miss with everybody on, beside nobody; and a scrape, beside those who wait for it.

- in process, in interleaved rounds, as in hit_path.py: a hit and a miss that is stored, of a cache that nobody
  observes, and of one that Prometheus collects, that OpenTelemetry measures (with no span around the requests, since
  those cost what the server's instrumentation costs), and that tells a log and the operator's facade. Microseconds of
  processor time per request;
- scrapes of a memory of 100,000 entries, of 20 routes and of as many as are told apart: all of it by
  prometheus_client, all of it by the endpoint, and the longest time for which the endpoint lets nobody else run.
  Milliseconds of processor time.

Run it in the project's environment, on a quiet machine:

    python benchmarks/observers.py [--quick] [--rounds N] [--json] [--check]

Figures are medians over the rounds, but for the longest part, which is the median of each round's longest. The exit
code is 0, whatever the figures; with --check it is 1 when a budget is exceeded.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import json
import logging
import statistics
import sys
import time
from dataclasses import asdict, dataclass, field
from typing import Any

from _apps import APPS, App, Message
from hit_path import Case, Row, _new_url, _request, expect, machine, microseconds, run, table
from opentelemetry.metrics import NoOpMeterProvider
from prometheus_client import CollectorRegistry, generate_latest

from echo_cache.cache import Cache
from echo_cache.management import Management
from echo_cache.model import Entry, StoredResponse
from echo_cache.observability.logs import LoggingObserver
from echo_cache.observability.opentelemetry import instrument
from echo_cache.observability.prometheus import metrics_endpoint, register
from echo_cache.stores.memory import MemoryStore
from echo_cache.tallies import MAX_ROUTES

ENTRIES = 100_000
FEW_ROUTES = 20
# What collects lives as long as the run: each app has a cache of its own, and each of those a registry.
KEPT: list[CollectorRegistry] = []


# --- a request --------------------------------------------------------------------------------------------------------


def observed(app: Any) -> App:
    """Return *app*, whose cache everybody observes from now on."""
    registry = CollectorRegistry()
    KEPT.append(registry)
    register(app.cache, registry)
    instrument(app.cache, NoOpMeterProvider())
    app.cache.add_observer(LoggingObserver())
    Management(app.cache)
    wrapped: App = app
    return wrapped


async def requests(rounds: int, batches: int) -> list[Row]:
    """Measure hits and misses with nobody and with everybody."""
    hit = _request()
    cases = [
        Case(Row("hit, nobody observes"), APPS["memory"](), hit),
        Case(Row("hit, everybody observes", 0.3, "added"), observed(APPS["memory"]()), hit),
        Case(Row("miss, nobody observes"), APPS["memory"](), _new_url(), cache_status=b"fwd=uri-miss"),
        Case(
            Row("miss, everybody observes"),
            observed(APPS["memory"]()),
            _new_url(),
            cache_status=b"fwd=uri-miss",
            beside=2,
        ),
    ]
    for case in cases:
        await expect(case)
        await microseconds(case, 2)
    gc.collect()
    gc.freeze()  # what was imported is no request's garbage
    for number in range(rounds):
        figures: dict[int, float] = {}
        for turn in range(len(cases)):
            index = (turn + number) % len(cases)
            figures[index] = await microseconds(cases[index], batches)
        for index, case in enumerate(cases):
            case.row.rounds.append(figures[index])
            case.row.bare.append(figures[case.beside])
    return [case.row for case in cases]


# --- a scrape ---------------------------------------------------------------------------------------------------------


@dataclass
class Scrape:
    """One line of the second table, in milliseconds. limit: the bound on it; None: measured for comparison only."""

    name: str
    limit: float | None = None
    rounds: list[float] = field(default_factory=list)

    @property
    def each(self) -> float:
        return statistics.median(self.rounds)

    @property
    def is_met(self) -> bool:
        return self.limit is None or self.each <= self.limit

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "each": self.each, "met": self.is_met}


def filled(entries: int, routes: int) -> Cache:
    """Return a cache with so many *entries* in memory that were made by so many *routes*."""
    store = MemoryStore(max_bytes=2**30)
    cache = Cache(store)
    now = time.time()
    for number in range(entries):
        response = StoredResponse(200, ((b"content-type", b"text/plain"),), b"%d" % number)
        entry = Entry(response, now, now, now + 3600, now + 7200)
        store.set_nowait(("GET", "http", b"shop.example", b"/products/%d" % number, b""), entry)
    for number in range(routes):
        tally = cache.tallies.of(f"/some/{{thing}}/number/{number}")
        tally.l1_hits = tally.stored = 1_000 + number
        for reason in ("uri-miss", "vary-miss", "stale", "method"):
            tally.forwards[reason] = number
        tally.refused("private")
        tally.fills.observe(0.01)
    assert store.stats().entries == entries
    return cache


async def endpoint_times(endpoint: Any) -> tuple[float, float]:
    """Return how long the *endpoint* takes, and for how long at most it lets nobody else run, in milliseconds."""
    turns: list[float] = []
    going_on = True

    async def other() -> None:
        while going_on:
            turns.append(time.thread_time())
            await asyncio.sleep(0)

    async def send(message: Message) -> None:
        pass

    task = asyncio.get_running_loop().create_task(other())
    await asyncio.sleep(0)
    began = time.thread_time()
    await endpoint({"type": "http", "method": "GET"}, None, send)
    spent = time.thread_time() - began
    turns.append(time.thread_time())
    going_on = False
    await task
    return spent * 1e3, max(later - earlier for earlier, later in itertools.pairwise(turns)) * 1e3


async def scrapes(rounds: int, entries: int) -> list[Scrape]:
    """Measure scrapes of a cache with *entries*."""
    found: list[Scrape] = []
    for routes in (FEW_ROUTES, MAX_ROUTES):
        cache = filled(entries, routes)
        registry = CollectorRegistry()
        register(cache, registry)
        endpoint = metrics_endpoint(cache)
        few = routes == FEW_ROUTES
        by_client = Scrape(f"{routes} routes, prometheus_client", 20.0 if few else None)
        by_endpoint = Scrape(f"{routes} routes, endpoint", 20.0 if few else None)
        longest = Scrape(f"{routes} routes, its longest part", 5.0)
        for _ in range(rounds):
            began = time.thread_time()
            generate_latest(registry)
            by_client.rounds.append((time.thread_time() - began) * 1e3)
            spent, part = await endpoint_times(endpoint)
            by_endpoint.rounds.append(spent)
            longest.rounds.append(part)
        found += [by_client, by_endpoint, longest]
    return found


def scrape_table(title: str, rows: list[Scrape]) -> str:
    """Return *rows* as text."""
    lines = [title, f"{'':34}{'median':>8}{'min':>8}{'max':>8}  budget"]
    for row in rows:
        verdict = "" if row.limit is None else f"  {row.limit:g} ms   {'met' if row.is_met else 'EXCEEDED'}"
        lines.append(f"{row.name:34}{row.each:8.2f}{min(row.rounds):8.2f}{max(row.rounds):8.2f}{verdict}")
    return "\n".join(lines)


def main() -> int:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.strip().partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=None, help="rounds of each part (default 25)")
    parser.add_argument("--quick", action="store_true", help="a few seconds: shows that it works, proves nothing")
    parser.add_argument("--json", action="store_true", help="print JSON in place of the tables")
    parser.add_argument("--check", action="store_true", help="exit with 1 when a budget is exceeded")
    options = parser.parse_args()
    if options.rounds is not None and options.rounds < 1:
        parser.error("--rounds must be >= 1")
    logging.getLogger("echo_cache").setLevel(logging.WARNING)  # as in production: lines about refusals are not wanted

    rounds = options.rounds or (3 if options.quick else 25)
    entries = ENTRIES // 50 if options.quick else ENTRIES
    hits = run(requests(rounds, 2 if options.quick else 40))
    scraped = asyncio.run(scrapes(rounds, entries))
    if options.json:
        rows = {"requests": [row.as_json() for row in hits], "scrapes": [row.as_json() for row in scraped]}
        print(json.dumps({"machine": machine(), **rows}, indent=2))
    else:
        print("\n".join(f"{name:12}{value}" for name, value in machine().items()), end="\n\n")
        print(table(f"A request, us of CPU, {rounds} rounds", hits), end="\n\n")
        print(scrape_table(f"A scrape of {entries:,} entries, ms of CPU, {rounds} rounds", scraped))
    met = all(row.is_met for row in hits) and all(row.is_met for row in scraped)
    return 0 if met or not options.check else 1


if __name__ == "__main__":
    sys.exit(main())
