"""
What a hit in Redis costs, what the two levels add to each other, and how often memory is enough.

Compares, in interleaved rounds, so that whatever else the machine does falls on all of them alike:
- under uvicorn, over a real Redis: the server's processor time for a hit of 2 kB, 256 keys in turn over 64 connections
  that are kept alive: the bare app, one GET of redis-py per request, the middleware with every hit in Redis, alone and
  as L2, and with every hit in memory. Needs Linux and uvicorn.
- in process, over a real Redis: a hit in memory, a hit in Redis one at a time and 64 at once, a miss that is stored,
  and traffic by Zipf's law, for memory alone, Redis alone and each strategy of the two levels, through the store's own
  calls and through the middleware, beside redis-py's GET;
- a workload of 100,000 keys of which L1 holds a tenth: calls of the app and memory, as tests/test_workload.py asserts.

Run it in the project's environment, on a quiet machine; a Redis server is found as the tests find theirs:

    python benchmarks/two_level.py [--quick] [--rounds N] [--only server|process|workload] [--json] [--check]

Processor time is the median of the rounds; ratios are taken within each round, then the median of them. p50 and p99
are of all operations of all rounds. The exit code is 0, whatever the figures; with --check it is 1 when a budget is
exceeded.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from _apps import BODY, RESPONSE_HEADERS, Message, Scope, catalog_app, make_scope, product_body, product_path
from _load import Connections, Server, question, server_parts
from hit_path import machine, run

from echo_cache import ConfigurationError, CoordinationOptions, HTTPCacheMiddleware, TwoLevelConfig
from echo_cache.codec import FORMAT_VERSION
from echo_cache.model import CacheKey, Entry, StoredResponse
from echo_cache.options import CacheStrategy
from echo_cache.stores.base import Store
from echo_cache.stores.memory import MemoryStore
from echo_cache.stores.redis import RedisStore
from echo_cache.stores.twolevel import TwoLevelStore

# Where the tests are: their Redis server and their workload are used here.
sys.path.append(str(Path(__file__).parent.parent))
from tests.servers import RedisServer
from tests.workload import Outcome, Workload, anything, fill, play, zipf

HOT_KEYS = 256
CONNECTIONS = 64
# A machine that is busy must not turn a hit into a time-out: the wait is shown, not cut.
TIMEOUT = 5.0
# Longer than any run, so that nothing turns stale in the middle of it.
LONG = 3_600.0


class Budget(NamedTuple):
    """*figure*: the property of a Row that may be *limit* at most. *text*: how it is shown."""

    figure: str
    limit: float
    text: str


@dataclass
class Row:
    """
    One line of a table.

    cpu: microseconds of processor time per operation, in each round; *bare* and *plain* are those of the rows that it
    is compared with, None where there are none. seconds: what each operation took. asked: keys of Redis that were
    read per operation. made: answers that were made per operation. Rows of one *kind* are shown together.
    """

    name: str
    budgets: tuple[Budget, ...] = ()
    kind: str = ""
    cpu: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list, repr=False)
    asked: list[float] = field(default_factory=list)
    made: list[float] = field(default_factory=list)
    bare: Row | None = field(default=None, repr=False)
    plain: Row | None = field(default=None, repr=False)

    def forget(self) -> None:
        """Begin anew: what was measured was to warm up."""
        for measured in (self.cpu, self.seconds, self.asked, self.made):
            measured.clear()

    @property
    def each(self) -> float:
        return statistics.median(self.cpu)

    @property
    def of_bare(self) -> list[float]:
        return _ratios(self, self.bare)

    @property
    def of_plain(self) -> list[float]:
        return _ratios(self, self.plain)

    @property
    def of_plain_median(self) -> float:
        return statistics.median(self.of_plain)

    @property
    def p50(self) -> float:
        """Milliseconds."""
        return _quantile(self.seconds, 0.50) * 1000

    @property
    def p99(self) -> float:
        """Milliseconds."""
        return _quantile(self.seconds, 0.99) * 1000

    @property
    def verdicts(self) -> list[tuple[str, bool]]:
        """Each budget as text, and whether it is met."""
        return [(budget.text, getattr(self, budget.figure) <= budget.limit) for budget in self.budgets]

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "kind": self.kind,
            "cpu_us": self.each,
            "cpu_us_rounds": self.cpu,
            "of_bare": statistics.median(self.of_bare) if self.of_bare else None,
            "of_plain": self.of_plain_median if self.of_plain else None,
            "p50_ms": self.p50,
            "p99_ms": self.p99,
            "asked": statistics.median(self.asked) if self.asked else None,
            "made": statistics.median(self.made) if self.made else None,
            "budgets": dict(self.verdicts),
        }


def _ratios(own: Row, other: Row | None) -> list[float]:
    return [] if other is None else [mine / others for mine, others in zip(own.cpu, other.cpu, strict=True)]


def _quantile(values: Sequence[float], share: float) -> float:
    """Return the smallest of *values* that at least *share* of them do not exceed."""
    return sorted(values)[min(int(len(values) * share), len(values) - 1)]


def turned(count: int, number: int) -> list[int]:
    """Return 0..count-1, begun at another place in each round, so that no row always follows the same one."""
    start = number % count
    return [*range(start, count), *range(start)]


# --- under a server ---------------------------------------------------------------------------------------------------

# A plain GET per request cost 109 us on the machine where the budget was set, so the ratio holds on others too.
L2_HIT = (Budget("each", 55.0, "55 us"), Budget("of_plain_median", 55 / 109, "0.50 of plain"))


class Served(NamedTuple):
    """A row, the app that it measures, what its Cache-Status says, and how often a request reads a key of Redis."""

    row: Row
    app: str
    says: bytes
    asks: int


def served() -> list[Served]:
    """Return what is measured under a server: the bare app first, then plain redis-py."""
    return [
        Served(Row("bare app"), "catalog", b"", 0),
        Served(Row("plain redis-py, one GET"), "plain redis-py", b"cache-status: plain; hit", 1),
        Served(Row("hit, Redis alone", L2_HIT), "redis", b"; hit", 1),
        Served(Row("hit, L2 of two levels", L2_HIT), "two levels, all in L2", b"; hit", 1),
        Served(Row("hit, L1 of two levels"), "two levels, all in L1", b"; hit", 0),
    ]


def reads_of(redis: RedisServer) -> int:
    """Return how many keys were looked up in *redis* since it began, those of an MGET one by one."""
    lines = redis.command("INFO", "stats").split()
    counters = dict(line.split(":") for line in lines if line.startswith("keyspace_"))
    return int(counters["keyspace_hits"]) + int(counters["keyspace_misses"])


def entries_in(redis: RedisServer) -> int:
    """Return how many names of entries there are in *redis*: neither leases nor the invalidation log."""
    return int(redis.command("EVAL", "return #redis.call('KEYS', ARGV[1])", "0", f"*:{FORMAT_VERSION}:*"))


async def under_server(rounds: int, requests: int) -> list[Row]:
    """
    Measure what each server's processor time is per request; all of them are up all the time.

    Every answer is looked at: its whole body, and that it was a hit. So is Redis: whether it was asked for each.
    """
    paths = [product_path(number) for number in range(HOT_KEYS)]
    questions = [question(path, product_body(path)) for path in paths]
    cases = served()
    async with contextlib.AsyncExitStack() as stack:
        redis = stack.enter_context(RedisServer())
        servers = [stack.enter_context(Server(case.app, redis.url)) for case in cases]
        for server in servers:
            async with Connections(server, 1, questions) as opened:
                await opened.ask(HOT_KEYS)  # the entries
        connections = [
            await stack.enter_async_context(Connections(server, CONNECTIONS, questions, says=case.says))
            for case, server in zip(cases, servers, strict=True)
        ]
        for opened in connections:
            await opened.ask(max(HOT_KEYS, requests // 4))
        for number in range(rounds):
            for index in turned(len(cases), number):
                case, server = cases[index], servers[index]
                asked = reads_of(redis)
                before = await server.settled_cpu_seconds()
                answers = await connections[index].ask(requests)
                spent = (await server.settled_cpu_seconds() - before) / requests * 1e6
                if spent < 1.0:  # no server parses a request and writes to a socket in a microsecond
                    raise RuntimeError(f"{case.row.name}: the server's clock is not to be trusted: {spent} us")
                case.row.cpu.append(spent)
                case.row.seconds += answers.seconds
                case.row.asked.append((reads_of(redis) - asked) / requests)
                # Requests for one key that meet share one read; with 256 keys in turn hardly any do.
                if abs(case.row.asked[-1] - case.asks) > 0.1:
                    raise RuntimeError(f"{case.row.name}: {case.row.asked[-1]:.2f} reads of Redis, not {case.asks}")
    rows = [case.row for case in cases]
    for row in rows:
        row.bare, row.plain = rows[0], rows[1]
    return rows


# --- in process -------------------------------------------------------------------------------------------------------

ZIPF_KEYS = 5_000
AT_ONCE = 64
L1_HIT_WAIT = (Budget("p99", 1.0, "p99 1 ms"),)
L2_HIT_WAIT = (Budget("p99", 10.0, "p99 10 ms"),)


class Asked(Protocol):
    """What is asked for product after product: a store, the middleware, or redis-py alone."""

    made: int
    """How often there was no answer, and one was made and stored."""

    def question(self, number: int) -> Any:
        """Return what asks for product *number*: not a part of what is measured."""
        ...

    async def ask(self, question: Any) -> None:
        """Ask; make and store the answer if there is none."""
        ...


class ByStore:
    """The calls of a store: `get`, and `set` after a miss."""

    def __init__(self, store: Store) -> None:
        self.made = 0
        self._store = store

    def question(self, number: int) -> tuple[CacheKey, Entry]:
        path = product_path(number)
        now = time.time()
        response = StoredResponse(200, tuple(RESPONSE_HEADERS), product_body(path))
        key = ("GET", "http", bytes(bytearray(b"shop.example.com")), path, b"")
        return key, Entry(response, now, now, now + LONG, now + LONG)

    async def ask(self, question: tuple[CacheKey, Entry]) -> None:
        key, entry = question
        if await self._store.get(key, anything) is None:
            self.made += 1
            await self._store.set(key, entry)


class ByMiddleware:
    """Requests to the middleware around the catalog."""

    def __init__(self, store: Store) -> None:
        self.made = 0
        catalog = catalog_app()

        async def app(scope: Scope, receive: Any, send: Any) -> None:
            self.made += 1
            await catalog(scope, receive, send)

        # Each read that Redis counts is a request's here, and none that of a report.
        self._app = HTTPCacheMiddleware(app, store=store, coordination=CoordinationOptions(report_every=0))

    def question(self, number: int) -> Scope:
        return make_scope(product_path(number))

    async def ask(self, question: Scope) -> None:
        await self._app(question, _receive, _send)


class ByGet:
    """One GET of redis-py each, and SET after a miss: the yardstick."""

    def __init__(self, url: str) -> None:
        from redis.asyncio import BlockingConnectionPool, Redis

        self.made = 0
        self.redis: Any = Redis.from_pool(BlockingConnectionPool.from_url(url, max_connections=16))

    def question(self, number: int) -> str:
        return f"plain:{number}"

    async def ask(self, question: str) -> None:
        if await self.redis.get(question) is None:
            self.made += 1
            await self.redis.set(question, BODY)


async def _receive() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}


async def _send(message: Message) -> None:
    pass


@dataclass
class Case:
    """
    A row and how to measure it.

    numbers: gives the products to ask for in the next round. prepare: done before each round, off the clock.
    at_once: how many are asked for at a time. makes, reads: how often a question must find no answer, and how many
    keys of Redis it must look up; None where that is what comes out.
    """

    row: Row
    asked: Asked
    numbers: Callable[[], list[int]]
    prepare: Callable[[], Any]
    at_once: int = 1
    makes: float | None = 0
    reads: float | None = 0
    is_remote: bool = True


@dataclass(frozen=True)
class Sizes:
    """How many questions of each kind a round has."""

    hits: int = 4 * HOT_KEYS
    each_once: int = HOT_KEYS
    misses: int = 128
    zipf: int = 1_024
    zipf_keys: int = ZIPF_KEYS


QUICK = Sizes(hits=128, each_once=64, misses=16, zipf=64, zipf_keys=200)


def strategies() -> list[str]:
    """Return the strategies that this version has."""
    able = []
    for strategy in CacheStrategy:
        with contextlib.suppress(ConfigurationError):
            TwoLevelStore(MemoryStore(), MemoryStore(), TwoLevelConfig(strategy=strategy))
            able.append(strategy.value)
    return able


class Bench:
    """The cases, and the stores that they are measured on; each store has names of its own in Redis."""

    def __init__(self, redis: RedisServer, sizes: Sizes) -> None:
        self.redis = redis
        self.sizes = sizes
        self.cases: list[Case] = []
        self.plain = ByGet(redis.url)
        self._stores: list[Store] = []
        self._new = itertools.count(1_000_000)

    async def build(self) -> None:
        """Make all cases; those that they are compared with come first."""
        alone = self._hits_in_redis("redis-py GET", self.plain, None)
        for case in alone:
            case.row.budgets = ()
        self.cases += alone
        for driver in (ByStore, ByMiddleware):
            said = "get" if driver is ByStore else "request"
            for kind in ("memory", "redis", *strategies()):
                store, asked = self._make(driver, kind)
                name = f"{said}, {kind}"
                clear_l1 = store.clear_l1 if isinstance(store, TwoLevelStore) else None
                if kind != "redis":
                    self.cases.append(self._hit_in_memory(name, asked))
                if kind != "memory":
                    self.cases += self._hits_in_redis(name, asked, clear_l1)
                self.cases.append(self._miss(name, asked, is_remote=kind != "memory"))
                self.cases.append(await self._zipf(name, driver, kind))
        for case in self.cases:
            case.row.plain = next((own.row for own in alone if own.row.kind == case.row.kind), None)

    async def aclose(self) -> None:
        """Close all stores."""
        for store in self._stores:
            await store.aclose()
        await self.plain.redis.aclose()

    def _make(
        self, driver: type[ByStore | ByMiddleware], kind: str, l1_bytes: int = 128 * 2**20
    ) -> tuple[Store, Asked]:
        memory = MemoryStore(l1_bytes)
        redis = RedisStore(self.redis.url, prefix=f"bench-{len(self._stores)}", timeout=TIMEOUT)
        store: Store
        if kind in ("memory", "redis"):
            store = memory if kind == "memory" else redis
        else:
            store = TwoLevelStore(memory, redis, TwoLevelConfig(strategy=kind, l1_ttl=LONG, l2_ttl=LONG))
        self._stores.append(store)
        return store, driver(store)

    def _hit_in_memory(self, name: str, asked: Asked) -> Case:
        numbers = [*itertools.islice(itertools.cycle(range(HOT_KEYS)), self.sizes.hits)]

        async def prepare() -> None:
            for _ in range(2):  # stored, then promoted where storing does not
                await spread(asked, range(HOT_KEYS), 1)

        return Case(Row(name, L1_HIT_WAIT, kind="hit in memory"), asked, lambda: numbers, prepare)

    def _hits_in_redis(self, name: str, asked: Asked, clear_l1: Callable[[], Any] | None) -> list[Case]:
        async def prepare() -> None:
            await spread(asked, range(HOT_KEYS), AT_ONCE)
            if clear_l1 is not None:
                await self.settled()
                await clear_l1()

        def case(kind: str, at_once: int) -> Case:
            numbers = list(range(self.sizes.each_once))
            return Case(Row(name, L2_HIT_WAIT, kind=kind), asked, lambda: numbers, prepare, at_once, reads=1)

        return [case("hit in Redis, one at a time", 1), case(f"hit in Redis, {AT_ONCE} at once", AT_ONCE)]

    def _miss(self, name: str, asked: Asked, *, is_remote: bool) -> Case:
        def numbers() -> list[int]:
            return list(itertools.islice(self._new, self.sizes.misses))

        row = Row(name, kind="miss and store")
        return Case(row, asked, numbers, _nothing, makes=1, reads=None if is_remote else 0, is_remote=is_remote)

    async def _zipf(self, name: str, driver: type[ByStore | ByMiddleware], kind: str) -> Case:
        """Return traffic by Zipf's law: L2 has all, L1 has room for a tenth of it."""
        counted = MemoryStore()
        for number in range(100):
            counted.set_nowait(*ByStore(counted).question(number))
        tenth = (counted.stats().bytes or 0) * self.sizes.zipf_keys // 1_000
        _, asked = self._make(driver, kind, l1_bytes=tenth)
        await spread(asked, range(self.sizes.zipf_keys), AT_ONCE)
        drawn = zipf(self.sizes.zipf_keys)
        await spread(asked, list(itertools.islice(drawn, self.sizes.zipf_keys)), AT_ONCE)

        def numbers() -> list[int]:
            return list(itertools.islice(drawn, self.sizes.zipf))

        row = Row(name, kind=f"Zipf, {AT_ONCE} at once, L1 a tenth of {self.sizes.zipf_keys:,} keys")
        return Case(row, asked, numbers, _nothing, AT_ONCE, makes=None if kind == "memory" else 0, reads=None)

    async def settled(self) -> None:
        """Wait until Redis has got what was written in the background: nothing came for a while."""
        before, still = entries_in(self.redis), 0
        while still < 3:
            await asyncio.sleep(0.005)
            now = entries_in(self.redis)
            before, still = now, still + 1 if now == before else 0

    async def written(self, keys: int) -> float:
        """Wait until Redis has *keys* keys. Returns the processor time of the work done here meanwhile, in seconds."""
        spent = 0.0
        deadline = time.monotonic() + 4 * TIMEOUT
        while entries_in(self.redis) < keys:
            if time.monotonic() > deadline:
                raise RuntimeError(f"Redis has {entries_in(self.redis)} entries, not {keys}: what was stored is lost")
            started = time.thread_time()
            await asyncio.sleep(0.002)
            spent += time.thread_time() - started
        return spent

    async def measure(self, case: Case) -> None:
        """Measure one round of *case*. Raises RuntimeError when it did not do what its row says."""
        await case.prepare()
        await self.settled()
        numbers = case.numbers()
        made, reads, keys = case.asked.made, reads_of(self.redis), entries_in(self.redis)
        spent, seconds = await spread(case.asked, numbers, case.at_once)
        if case.makes and case.is_remote:
            spent += await self.written(keys + len(numbers))
        row, count = case.row, len(numbers)
        row.cpu.append(spent / count * 1e6)
        row.seconds += seconds
        row.asked.append((reads_of(self.redis) - reads) / count)
        row.made.append((case.asked.made - made) / count)
        # What follows the invalidation log reads a few keys a second.
        more = 0.0 if case.reads is None else abs(row.asked[-1] - case.reads)
        if more > 0.25 or case.makes not in (None, row.made[-1]):
            raise RuntimeError(
                f"{row.kind}: {row.name}: {row.asked[-1]:.2f} reads of Redis and {row.made[-1]:.2f} answers made for "
                f"each question, not {case.reads} and {case.makes}"
            )


async def _nothing() -> None:
    pass


async def spread(asked: Asked, numbers: Sequence[int], at_once: int) -> tuple[float, list[float]]:
    """
    Ask for *numbers*, *at_once* at a time. Returns the processor time in seconds, and how long each took.

    The loop that drives them is included, and so is what they leave to the next turn of the event loop.
    """
    questions = [asked.question(number) for number in numbers]
    ask, clock = asked.ask, time.perf_counter
    seconds: list[float] = []

    async def one(question: Any) -> None:
        begun = clock()
        await ask(question)
        seconds.append(clock() - begun)

    started = time.thread_time()
    if at_once == 1:
        for question in questions:
            begun = clock()
            await ask(question)
            seconds.append(clock() - begun)
    else:
        for batch in _batches(questions, at_once):
            await asyncio.gather(*map(one, batch))
    for _ in range(3):
        await asyncio.sleep(0)
    return time.thread_time() - started, seconds


def _batches(values: list[Any], size: int) -> Iterator[list[Any]]:
    return (values[start : start + size] for start in range(0, len(values), size))


async def in_process(rounds: int, sizes: Sizes) -> list[Row]:
    """Measure in this process."""
    with RedisServer() as redis:
        bench = Bench(redis, sizes)
        try:
            await bench.build()
            for case in bench.cases:
                await bench.measure(case)
                case.row.forget()
            gc.collect()
            gc.freeze()  # what was imported is no request's garbage
            for number in range(rounds):
                for index in turned(len(bench.cases), number):
                    await bench.measure(bench.cases[index])
        finally:
            await bench.aclose()
    return [case.row for case in bench.cases]


# --- the workload -----------------------------------------------------------------------------------------------------


def workload(size: Workload) -> tuple[Outcome, Outcome]:
    """Return what came of *size*: over the two levels, and over memory of L1's size alone."""
    with RedisServer() as redis:
        asyncio.run(fill(size, redis.url))
        return play(size, redis.url), play(size, None)


def workload_rows(outcomes: tuple[Outcome, Outcome]) -> dict[str, Any]:
    """Return the figures of *outcomes* and their budgets."""
    two_levels, memory = outcomes
    share = two_levels.held_bytes / memory.held_bytes
    return {
        "two levels": {**asdict(two_levels), "hit_rate": two_levels.hit_rate},
        "memory alone": {**asdict(memory), "hit_rate": memory.hit_rate},
        "held_of_memory_alone": share,
        "budgets": {"hit rate 95 %": two_levels.hit_rate >= 0.95, "memory 150 %": share <= 1.5},
    }


def workload_table(figures: dict[str, Any]) -> str:
    """Return *figures* as text."""
    lines = [f"{'':34}{'hit rate':>10}{'in memory':>11}{'app calls':>11}{'counted kB':>12}{'held kB':>10}"]
    for name in ("two levels", "memory alone"):
        row = figures[name]
        lines.append(
            f"{name:34}{row['hit_rate']:10.2%}{row['in_memory'] / row['requests']:11.2%}{row['calls']:11,}"
            f"{row['counted_bytes'] / 1024:12,.0f}{row['held_bytes'] / 1024:10,.0f}"
        )
    verdicts = ", ".join(f"{text} {'met' if is_met else 'EXCEEDED'}" for text, is_met in figures["budgets"].items())
    lines.append(f"held, of memory alone: {figures['held_of_memory_alone']:.1%}; {verdicts}")
    return "\n".join(lines)


# --- the tables -------------------------------------------------------------------------------------------------------


def table(title: str, rows: list[Row]) -> str:
    """Return *rows* as text: those of a column that no row has are left out."""
    has_bare = any(row.of_bare for row in rows)
    head = f"{'':34}{'CPU us':>8}{'min':>8}{'max':>8}"
    head += f"{'of bare':>9}{'min':>7}{'max':>7}" if has_bare else ""
    head += f"{'of plain':>9}{'min':>7}{'max':>7}{'p50 ms':>9}{'p99 ms':>9}"
    head += f"{'reads':>7}{'made':>7}"
    lines = [title, head + "  budget"]
    for before, row in zip([None, *rows], rows, strict=False):
        if row.kind and (before is None or before.kind != row.kind):
            lines.append(f"- {row.kind}")
        line = f"{row.name:34}{row.each:8.1f}{min(row.cpu):8.1f}{max(row.cpu):8.1f}"
        line += _spread(row.of_bare) if has_bare else ""
        line += f"{_spread(row.of_plain)}{row.p50:9.3f}{row.p99:9.3f}"
        line += f"{statistics.median(row.asked):7.2f}"
        line += f"{statistics.median(row.made):7.2f}" if row.made else " " * 7
        verdicts = (f"{text} {'met' if is_met else 'EXCEEDED'}" for text, is_met in row.verdicts)
        lines.append(f"{line}  {', '.join(verdicts)}".rstrip())
    return "\n".join(lines)


def _spread(ratios: list[float]) -> str:
    if not ratios:
        return " " * 23
    return f"{statistics.median(ratios):9.2f}{min(ratios):7.2f}{max(ratios):7.2f}"


def _by_kind(rows: list[Row]) -> list[Row]:
    kinds = list(dict.fromkeys(row.kind for row in rows))
    return sorted(rows, key=lambda row: kinds.index(row.kind))


def main() -> int:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.strip().partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=None, help="rounds of each part (default 20)")
    parser.add_argument("--quick", action="store_true", help="a few seconds: shows that it works, proves nothing")
    parser.add_argument("--only", choices=("server", "process", "workload"), help="one part only")
    parser.add_argument("--json", action="store_true", help="print JSON in place of the tables")
    parser.add_argument("--check", action="store_true", help="exit with 1 when a budget is exceeded")
    options = parser.parse_args()
    if options.rounds is not None and options.rounds < 1:
        parser.error("--rounds must be >= 1")
    rounds = options.rounds or (3 if options.quick else 20)

    parts: dict[str, list[Row]] = {}
    titles: dict[str, str] = {}
    notes: list[str] = []
    if options.only in (None, "server"):
        try:
            titles["server"] = (
                f"Under {server_parts()}: us of the server's CPU per request, {rounds} rounds, {HOT_KEYS} keys, "
                f"{CONNECTIONS} connections"
            )
        except ImportError:
            notes.append("uvicorn is not installed: nothing was measured under a server.")
        else:
            if sys.platform == "linux":
                parts["server"] = run(under_server(rounds, 300 if options.quick else 4_096))
            else:
                notes.append("The processor time of another process is read on Linux only.")
    if options.only in (None, "process"):
        parts["process"] = _by_kind(run(in_process(rounds, QUICK if options.quick else Sizes())))
        titles["process"] = f"In process: us of CPU per question, {rounds} rounds"
    figures: dict[str, Any] = {}
    if options.only in (None, "workload"):
        size = Workload(keys=2_000, warm_up=2_000, requests=1_000) if options.quick else Workload()
        figures = workload_rows(workload(size))

    if options.json:
        rows: dict[str, Any] = {part: [row.as_json() for row in measured] for part, measured in parts.items()}
        if figures:
            rows["workload"] = figures
        print(json.dumps({"machine": machine(), "quick": options.quick, **rows}, indent=1))
    else:
        print("; ".join(f"{name} {value}" for name, value in machine().items()))
        for part, measured in parts.items():
            print(f"\n{table(titles[part], measured)}")
        if figures:
            print(f"\nZipf's law over {size.keys:,} keys of which L1 has room for a tenth, {size.requests:,} requests")
            print(workload_table(figures))
        if options.quick:
            notes.append("Too few rounds for a verdict: --quick shows that the benchmark works, nothing else.")
        for note in notes:
            print(f"\n{note}")
    met = [is_met for rows in parts.values() for row in rows for _, is_met in row.verdicts]
    met += figures.get("budgets", {}).values()
    return 1 if options.check and not all(met) else 0


if __name__ == "__main__":
    sys.exit(main())
