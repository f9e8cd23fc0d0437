"""
What a hit costs, and what a miss adds, beside the bare app.

Compares, in interleaved rounds, so that whatever else the machine does falls on all of them alike:
- in process: the bare app, a hand-written hit with every step that RFC 9111 asks for, and the middleware's answers
  from memory to a browser's request for 2 kB: plain, one of several variants, HEAD, 304, a range; then a miss that is
  stored. Microseconds of processor time per request, the loop that drives them included;
- under uvicorn: the processor time that the server takes per request with a hit, against the bare app's, over
  loopback connections that are kept alive. Needs Linux and uvicorn; a second core keeps the client out of the way.

Run it in the project's environment, on a quiet machine:

    python benchmarks/hit_path.py [--quick] [--rounds N] [--only process|server] [--json] [--check]

Figures are medians over the rounds. A ratio and what is added are taken within each round, then the median of them.
The exit code is 0, whatever the figures; with --check it is 1 when a budget is exceeded.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import itertools
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Coroutine
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from _apps import BODY, ETAG, PATH, App, Headers, Message, Scope, make_app, make_scope
from _load import Server, load, server_parts

# Requests made before the clock starts: enough to amortise reading it, few enough to stay in the processor's cache.
BATCH = 50


@dataclass
class Row:
    """
    One line of the table: what was measured in each round, and what it may be.

    limit: the bound on the figure that *bound_on* names: "each" (microseconds per request), "added" (microseconds more
    than the bare app, or than the row that it stands beside) or "ratio" (to that). None: measured for comparison only.
    """

    name: str
    limit: float | None = None
    bound_on: str = "each"
    rounds: list[float] = field(default_factory=list)
    bare: list[float] = field(default_factory=list, repr=False)

    @property
    def each(self) -> float:
        return statistics.median(self.rounds)

    @property
    def added(self) -> float:
        return statistics.median(own - bare for own, bare in zip(self.rounds, self.bare, strict=True))

    @property
    def ratios(self) -> list[float]:
        return [own / bare for own, bare in zip(self.rounds, self.bare, strict=True)]

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)

    @property
    def is_met(self) -> bool:
        figure: float = getattr(self, self.bound_on)
        return self.limit is None or figure <= self.limit

    @property
    def budget(self) -> str:
        if self.limit is None:
            return ""
        return {"each": "{:.1f} us", "added": "+{:g} us", "ratio": "{:.2f} x"}[self.bound_on].format(self.limit)

    def as_json(self) -> dict[str, Any]:
        derived = {"each": self.each, "added": self.added, "ratio": self.ratio, "met": self.is_met}
        return {**asdict(self), **derived}


# --- in process -------------------------------------------------------------------------------------------------------


@dataclass
class Case:
    """
    A row and how to measure it: the app, how each of its requests is made, and the answer that it must have.

    beside: the row that it is compared with, by its place; the bare app. between: awaited between two batches.
    """

    row: Row
    app: App
    scope: Callable[[], Scope]
    status: int = 200
    cache_status: bytes | None = b"hit"
    body: bytes = BODY
    beside: int = 0
    between: Callable[[], Coroutine[Any, Any, None]] | None = None


async def _receive() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}


async def _send(message: Message) -> None:
    pass


def _request(method: bytes = b"GET", *extra: tuple[bytes, bytes]) -> Callable[[], Scope]:
    headers: Headers = list(extra)
    return lambda: make_scope(PATH, method, headers)


def _new_url() -> Callable[[], Scope]:
    numbers = itertools.count()
    return lambda: make_scope(b"/products/new/%d" % next(numbers))


# As many as a worker keeps after half of them were forgotten.
MARKS = 10_000


def _invalidate_others(app: Any, count: int) -> Callable[[], Coroutine[Any, Any, None]]:
    """Return what invalidates *count* tags in *app*, none of which the page has; others each time."""
    numbers = itertools.count()

    async def invalidate() -> None:
        await app.cache.invalidate(tags=[f"other:{next(numbers)}" for _ in range(count)])

    return invalidate


async def process_cases() -> list[Case]:
    """Return what is measured in process, the bare app first."""
    marked, marking = make_app("memory, tagged"), make_app("memory, tagged")
    for app in (marked, marking):
        await _invalidate_others(app, MARKS)()
    memory, encoded = make_app("memory"), make_app("memory, vary")
    two_levels = make_app("two levels")
    none_match = (b"if-none-match", ETAG)
    signed = (b"authorization", b"Bearer 0123456789abcdef")

    def hit(name: str) -> Row:
        return Row(name, limit=2.0)

    def extra(name: str) -> Row:
        return Row(name)

    def beside(name: str) -> Row:
        return Row(name, limit=0.5, bound_on="added")

    def miss(name: str) -> Row:
        return Row(name, limit=15.0, bound_on="added")

    return [
        Case(Row("bare app"), make_app("bare"), _request(), cache_status=None),
        Case(Row("hit, hand-written"), make_app("hand-written"), _request()),
        Case(hit("hit"), memory, _request()),
        Case(hit("hit, Vary: Accept-Encoding"), encoded, _request()),
        Case(hit("hit, public, with Authorization"), memory, _request(b"GET", signed)),
        Case(hit("hit, L1 of two levels"), two_levels, _request()),
        Case(hit("hit, tagged, no marks"), make_app("memory, tagged"), _request()),
        Case(beside("hit, tagged, 10,000 marks"), marked, _request(), beside=6),
        Case(extra("hit, and a new mark each 50"), marking, _request(), between=_invalidate_others(marking, 1)),
        Case(extra("hit, HEAD"), memory, _request(b"HEAD"), body=b""),
        Case(extra("hit, 304 to If-None-Match"), memory, _request(b"GET", none_match), 304, body=b""),
        Case(extra("hit, 206 to Range"), memory, _request(b"GET", (b"range", b"bytes=0-99")), 206, body=BODY[:100]),
        Case(miss("miss and store"), make_app("memory"), _new_url(), cache_status=b"fwd=uri-miss"),
        Case(miss("miss and store, ETag made"), make_app("memory, no etag"), _new_url(), cache_status=b"fwd=uri-miss"),
    ]


async def expect(case: Case) -> None:
    """Ask once and once more. Raises RuntimeError unless the answer is what the row says that it measures."""
    messages: list[Message] = []

    async def send(message: Message) -> None:
        messages.append(message)

    if case.cache_status == b"hit":
        await case.app(make_scope(), _receive, _send)  # the entry
    await case.app(case.scope(), _receive, send)
    head, *bodies = messages
    said = dict(head["headers"]).get(b"cache-status")
    as_expected = (
        case.cache_status is None if said is None else case.cache_status is not None and case.cache_status in said
    )
    if (
        head["status"] != case.status
        or not as_expected
        or b"".join(part.get("body", b"") for part in bodies) != case.body
    ):
        raise RuntimeError(f"{case.row.name}: not what is to be measured, but {head}")


async def microseconds(case: Case, batches: int) -> float:
    """Return what a request takes, over *batches* batches."""
    app, make = case.app, case.scope
    spent = 0
    for _ in range(batches):
        if case.between is not None:
            await case.between()
        scopes = [make() for _ in range(BATCH)]
        started = time.thread_time_ns()
        for scope in scopes:
            await app(scope, _receive, _send)
        spent += time.thread_time_ns() - started
    return spent / (batches * BATCH) / 1000


async def in_process(rounds: int, batches: int) -> list[Row]:
    """Measure in this process."""
    cases = await process_cases()
    for case in cases:
        await expect(case)
        await microseconds(case, 2)
    gc.collect()
    gc.freeze()  # what was imported is no request's garbage
    for number in range(rounds):
        figures: dict[int, float] = {}
        for index in _turned(range(len(cases)), number):
            figures[index] = await microseconds(cases[index], batches)
        for index, case in enumerate(cases):
            case.row.rounds.append(figures[index])
            case.row.bare.append(figures[case.beside])
    return [case.row for case in cases]


def _turned(order: range, number: int) -> list[int]:
    """Return *order*, begun at another place in each round, so that no row always follows the same one."""
    start = number % len(order)
    return [*order[start:], *order[:start]]


# --- under a server ---------------------------------------------------------------------------------------------------

SERVED = (
    ("bare app", "bare", None),
    ("hit, hand-written", "hand-written", None),
    ("hit", "memory", 1.10),
    ("hit, Vary: Accept-Encoding", "memory, vary", 1.10),
)


async def under_server(rounds: int, requests: int) -> list[Row]:
    """Measure what each server's processor time is per request; all of them are up all the time."""
    rows = [Row(name, limit, "ratio") for name, _, limit in SERVED]
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(Server(app)) for _, app, _ in SERVED]
        for (name, app, _), server in zip(SERVED, servers, strict=True):
            answer = await load(server, max(20, requests // 4))
            if (b"hit" in answer.partition(b"\r\n\r\n")[0]) != (app != "bare"):
                raise RuntimeError(f"{name}: not what is to be measured, but {answer[:500]!r}")
        for number in range(rounds):
            figures: dict[int, float] = {}
            for index in _turned(range(len(rows)), number):
                before = await servers[index].settled_cpu_seconds()
                await load(servers[index], requests)
                figures[index] = (await servers[index].settled_cpu_seconds() - before) / requests * 1e6
                if figures[index] < 1.0:  # no server parses a request and writes to a socket in a microsecond
                    raise RuntimeError(
                        f"{rows[index].name}: the server's clock is not to be trusted: {figures[index]} us"
                    )
            for index, row in enumerate(rows):
                row.rounds.append(figures[index])
                row.bare.append(figures[0])
    return rows


# --- the table --------------------------------------------------------------------------------------------------------


def machine() -> dict[str, str]:
    """Return what the figures depend on."""
    return {
        "processor": _processor(),
        "system": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        **{name: _version(name) for name in ("uvloop", "starlette", "msgpack", "cachetools")},
    }


def _processor() -> str:
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    with contextlib.suppress(AttributeError):
        model += f", {len(os.sched_getaffinity(0))} cores"
    return model


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def table(title: str, rows: list[Row]) -> str:
    """Return *rows* as text."""
    lines = [title, f"{'':34}{'median':>8}{'min':>8}{'max':>8}{'added':>8}{'ratio':>8}{'min':>8}{'max':>8}  budget"]
    for row in rows:
        verdict = "" if row.limit is None else f"  {row.budget:7} {'met' if row.is_met else 'EXCEEDED'}"
        spread = f"{min(row.rounds):8.2f}{max(row.rounds):8.2f}"
        ratios = f"{min(row.ratios):8.2f}{max(row.ratios):8.2f}"
        lines.append(f"{row.name:34}{row.each:8.2f}{spread}{row.added:8.2f}{row.ratio:8.2f}{ratios}{verdict}")
    return "\n".join(lines)


def run(main: Coroutine[Any, Any, list[Row]]) -> list[Row]:
    """Run *main* on uvloop, or on asyncio's own loop where there is none."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


def main() -> int:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.strip().partition("\n")[0])
    parser.add_argument(
        "--rounds", type=int, default=None, help="rounds of each part (default 15 in process, 40 under a server)"
    )
    parser.add_argument("--quick", action="store_true", help="a few seconds: shows that it works, proves nothing")
    parser.add_argument("--only", choices=("process", "server"), help="one part only")
    parser.add_argument("--json", action="store_true", help="print JSON in place of the tables")
    parser.add_argument("--check", action="store_true", help="exit with 1 when a budget is exceeded")
    options = parser.parse_args()
    if options.rounds is not None and options.rounds < 1:
        parser.error("--rounds must be >= 1")

    parts: dict[str, list[Row]] = {}
    titles: dict[str, str] = {}
    notes: list[str] = []
    if options.only != "server":
        rounds = options.rounds or (3 if options.quick else 15)
        parts["process"] = run(in_process(rounds, 2 if options.quick else 40))
        titles["process"] = f"In process, us of CPU per request, {rounds} rounds"
    if options.only != "process":
        # More and shorter ones than in process: what is to be told apart is 2 us in 22, and the machine drifts by more.
        rounds = options.rounds or (3 if options.quick else 40)
        try:
            titles["server"] = f"Under {server_parts()}, us of the server's CPU per request, {rounds} rounds"
        except ImportError:
            notes.append("uvicorn is not installed: nothing was measured under a server.")
        else:
            if sys.platform == "linux":
                parts["server"] = run(under_server(rounds, 100 if options.quick else 3_000))
            else:
                notes.append("The processor time of another process is read on Linux only.")

    if options.json:
        rows = {part: [row.as_json() for row in measured] for part, measured in parts.items()}
        print(json.dumps({"machine": machine(), "quick": options.quick, **rows}, indent=1))
    else:
        print("; ".join(f"{name} {value}" for name, value in machine().items()))
        for part, measured in parts.items():
            print(f"\n{table(titles[part], measured)}")
        if options.quick:
            notes.append("Too few rounds for a verdict: --quick shows that the benchmark works, nothing else.")
        for note in notes:
            print(f"\n{note}")
    exceeded = any(not row.is_met for measured in parts.values() for row in measured)
    return 1 if options.check and exceeded else 0


if __name__ == "__main__":
    sys.exit(main())
