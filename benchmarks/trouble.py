"""
What requests feel while Redis is in trouble.

An app that answers at once, behind the middleware with memory before a real Redis, all settings at their defaults, in
this process. Clients ask one request after the other: a fifth for what memory has, a tenth for what only Redis has, the
rest for what nobody has. Then the trouble begins, lasts and ends. Latencies are of the requests, in milliseconds:

    before  in the second before it
    first   of the requests that were under way when it began, or began in its first second
    open    of those that began when the breaker was open, to its end
    back    seconds from its end until a hit that only Redis can have brought
    waited  requests that took longer than half the time-out; errors: answers that were not what they must be

Run it in the project's environment, on a quiet machine; a Redis server is found as the tests find theirs:

    python benchmarks/trouble.py [--quick] [--seconds N] [--clients N] [--json]

No figure decides the exit code.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hit_path import machine

# Where the tests are: their Redis server, their proxy and their traffic are used here.
sys.path.append(str(Path(__file__).parent.parent))
from echo_cache import CoordinationOptions
from echo_cache.stores.redis.breaker import BreakerState
from tests.proxy import GREETINGS, RedisProxy
from tests.servers import RedisServer
from tests.trouble import DEADLINE, L2_TIMEOUT, Answer, Site, Traffic, Watch


@dataclass(frozen=True)
class Case:
    """A trouble: *begin* and *end* get the server and the proxy before it. direct: clients know the server itself."""

    name: str
    begin: Callable[[RedisServer, RedisProxy], None]
    end: Callable[[RedisServer, RedisProxy], None]
    direct: bool = False


def _heal(server: RedisServer, proxy: RedisProxy) -> None:
    proxy.heal()


CASES: Sequence[Case] = (
    Case("killed, started again", lambda s, p: s.kill(), lambda s, p: s.start(), direct=True),
    Case("SIGSTOP, SIGCONT", lambda s, p: s.pause(), lambda s, p: s.resume(), direct=True),
    Case("black hole", lambda s, p: p.black_hole(), _heal),
    Case("replies 300 ms late", lambda s, p: p.delay(0.3), _heal),
    Case("resets in each reply", lambda s, p: p.reset_in_reply(replies=None), _heal),
    Case("garbage", lambda s, p: p.garbage(), _heal),
    Case("-LOADING", lambda s, p: p.reply_error(but=GREETINGS), _heal),
    Case(
        "-READONLY on writes",
        lambda s, p: p.reply_error(b"-READONLY You can't write", only=("SET", "EVALSHA", "EVAL")),
        _heal,
    ),
)


@dataclass
class Row:
    """The figures of one trouble; latencies in milliseconds, p50, p99 and the largest. None: nothing to tell."""

    name: str
    requests: int
    before: tuple[float, float, float] | None
    first: tuple[float, float, float] | None
    open: tuple[float, float, float] | None
    waited: int
    back_seconds: float
    errors: int


class _Counting(Site):
    """A site that counts wrong answers instead of ending at the first."""

    errors = 0

    async def ask(self, path: str, **options: Any) -> Answer:
        try:
            return await super().ask(path, **options)
        except Exception:
            self.errors += 1
            assert self.watch is not None
            return Answer(path, self.watch.now(), 0.0, is_hit=False)


async def measure(case: Case, seconds: float, clients: int, pages: int) -> Row:
    """Return what clients felt of *case*, which lasts *seconds*, where Redis has so many *pages*."""
    watch = Watch()
    with RedisServer() as server, RedisProxy(server.port) as proxy:
        other = Site(server.url, timeout=30)
        below = [f"/below/{number}" for number in range(pages)]
        for at in range(0, len(below), 500):
            await other.put(below[at : at + 500])
        site = _Counting(server.url if case.direct else proxy.url, watch=watch)
        async with Traffic(site, below, clients=clients) as traffic:
            await traffic.more(10 * clients)
            start = watch.now()
            await asyncio.sleep(min(seconds, 1.0))
            begun = watch.now()
            await asyncio.to_thread(case.begin, server, proxy)
            opened = await _until_open(site, begun + seconds, watch)
            await asyncio.sleep(max(begun + seconds - watch.now(), 0.0))
            ended = watch.now()
            await asyncio.to_thread(case.end, server, proxy)
            back = await _seconds_until_l2_answers(site, server.url, watch)
        answers = traffic.answers
        await site.close()
        await other.close()
    watch.stop()
    # Those that were under way when it began are among those that feel it.
    during = [answer for answer in answers if answer.began + answer.seconds > begun and answer.began < ended]
    return Row(
        case.name,
        len(during),
        _latencies([answer for answer in answers if answer.began >= start and answer.began + answer.seconds <= begun]),
        _latencies([answer for answer in during if answer.began < begun + 1]),
        _latencies([answer for answer in during if opened is not None and answer.began > opened]),
        sum(answer.seconds > L2_TIMEOUT / 2 for answer in during),
        back,
        site.errors,
    )


async def _until_open(site: Site, deadline: float, watch: Watch) -> float | None:
    """Return when the breaker was open; None when it was not until *deadline*."""
    while site.l2.breaker_state is BreakerState.CLOSED:
        if watch.now() > deadline:
            return None
        await asyncio.sleep(0.001)
    return watch.now()


def _latencies(answers: Sequence[Answer]) -> tuple[float, float, float] | None:
    if not answers:
        return None
    times = sorted(answer.seconds * 1000 for answer in answers)
    return times[len(times) // 2], times[len(times) * 99 // 100], times[-1]


def _print_row(row: Row) -> None:
    def shown(latencies: tuple[float, float, float] | None) -> str:
        return "-" if latencies is None else " / ".join(f"{figure:.2f}" for figure in latencies)

    cells = [row.name, f"{row.requests:,}", shown(row.before), shown(row.first), shown(row.open)]
    print("| " + " | ".join([*cells, f"{row.waited}", f"{row.back_seconds:.2f}", f"{row.errors}"]) + " |", flush=True)


async def _seconds_until_l2_answers(site: Site, url: str, watch: Watch) -> float:
    """
    Return how long it takes from now until *site* has a hit that only Redis can have brought.

    Each try is for another key, which another worker put there through *url*: what was asked for once is in memory.
    """
    began = watch.now()
    # It puts without leases, since its own work is not what is measured.
    other = Site(url, timeout=DEADLINE, coordination=CoordinationOptions(lease_wait=0))
    try:
        for turn in itertools.count():
            paths = [f"/back/{turn}/{number}" for number in range(100)]
            await other.put(paths)
            for path in paths:
                if (await site.ask(path)).is_hit:
                    return watch.now() - began
                await asyncio.sleep(0.01)
                assert watch.now() - began < DEADLINE, f"{site.l2!r} is not used again"
    finally:
        await other.close()
    raise AssertionError


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="each trouble for a moment: does it run?")
    parser.add_argument("--seconds", type=float, default=5.0, help="how long each trouble lasts")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    seconds, pages = (0.2, 200) if arguments.quick else (arguments.seconds, 2_000)
    # That the cache says once that it is in trouble is not what is measured.
    logging.getLogger("echo_cache").setLevel(logging.CRITICAL)
    rows = []
    if not arguments.json:
        print(", ".join(machine().values()))
        print(f"{arguments.clients} clients; each trouble lasts {seconds:g} s; p50 / p99 / max in ms\n")
        print("| trouble | requests | before | first second | breaker open | waited | back, s | errors |")
        print("|---|---|---|---|---|---|---|---|")
    for case in CASES:
        rows.append(asyncio.run(measure(case, seconds, arguments.clients, pages)))
        if not arguments.json:
            _print_row(rows[-1])
    if arguments.json:
        print(json.dumps({"trouble": [asdict(row) for row in rows]}))


if __name__ == "__main__":
    main()
