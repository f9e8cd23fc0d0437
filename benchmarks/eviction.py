"""
Which eviction policy keeps what will be asked for again, and what each costs.

Compares, for every policy of the memory store, on traces that are made from a seed:
- the hit ratio of the policy alone, told of every use at once, with room for 1 % and for 10 % of the keys;
- the time of a get, and of a set after a miss, per request: of the policy alone, and through MemoryStore with its
  locks, its packing and its buffer of reads. The hit ratio through the store stands beside it.

Run it in the project's environment, on a quiet machine:

    python benchmarks/eviction.py [--quick] [--keys N] [--requests N] [--rounds N] [--seed N]

It prints Markdown. The traces:

    zipf 0.9, zipf 1.0   the same favourites for ever
    one-hit              zipf 1.0, and 30 % of the requests are for keys that nobody asks for again
    drift                zipf 1.0, and the favourites move on: each key is new, then popular, then forgotten
    scan                 zipf 1.0, and every now and then a walk over keys that nobody asked for, twice as many as fit
    loop                 the same keys in the same order, twice as many as fit
    bursts               each key is asked for five times on average within a short time, then never again

Generated traces flatter: the first three have favourites that never change, which is what counting uses is good at,
and the last one has none at all, which is what recency is good at. What people do lies between.
"""

from __future__ import annotations

import argparse
import platform
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, count

from echo_cache.model import CacheKey, Entry, StoredResponse
from echo_cache.stores.eviction import EVICTION_POLICIES, Record
from echo_cache.stores.memory import MemoryStore

SHARES = (0.01, 0.10)
ONE_HIT_SHARE = 0.3


@dataclass(frozen=True)
class Size:
    """keys: how many different ones zipf has. requests: the length of a trace. room: how many keys fit."""

    keys: int
    requests: int
    room: int


Trace = Sequence[int]
"""Numbers of keys, in the order in which they are asked for."""


def zipf(size: Size, rng: random.Random, exponent: float = 1.0) -> Trace:
    weights = list(accumulate(1 / rank**exponent for rank in range(1, size.keys + 1)))
    return rng.choices(range(size.keys), cum_weights=weights, k=size.requests)


def one_hit(size: Size, rng: random.Random) -> Trace:
    fresh = count(size.keys)
    return [next(fresh) if rng.random() < ONE_HIT_SHARE else key for key in zipf(size, rng)]


def drift(size: Size, rng: random.Random) -> Trace:
    """The favourite of every hundred requests is a new key, and all others become a place less popular."""
    return [position // 100 - rank for position, rank in enumerate(zipf(size, rng))]


def scan(size: Size, rng: random.Random) -> Trace:
    """One request in five is of a scan."""
    trace: list[int] = []
    fresh = count(size.keys)
    favourites = iter(zipf(size, rng))
    while len(trace) < size.requests:
        trace += (next(favourites) for _ in range(min(8 * size.room, size.requests - len(trace))))
        trace += (next(fresh) for _ in range(min(2 * size.room, size.requests - len(trace))))
    return trace


def loop(size: Size, rng: random.Random) -> Trace:
    order = list(range(2 * size.room))
    rng.shuffle(order)
    return [order[position % len(order)] for position in range(size.requests)]


def bursts(size: Size, rng: random.Random) -> Trace:
    """The gaps between the uses of a key are exponential, of half as many requests as there is room for on average."""
    asked: list[tuple[float, int]] = []
    for key in range(size.requests // 5):
        when = key * 5.0
        asked.append((when, key))
        while rng.random() < 0.8:
            when += rng.expovariate(2 / size.room)
            asked.append((when, key))
    return [key for _, key in sorted(asked)]


TRACES: dict[str, Callable[[Size, random.Random], Trace]] = {
    "zipf 0.9": lambda size, rng: zipf(size, rng, 0.9),
    "zipf 1.0": zipf,
    "one-hit": one_hit,
    "drift": drift,
    "scan": scan,
    "loop": loop,
    "bursts": bursts,
}


def cache_key(number: int) -> CacheKey:
    return ("GET", "https", b"shop.example.com", b"/products/%d" % number, b"")


def hit_ratio(policy: str, trace: Trace, room: int) -> float:
    """Return the share of hits of *policy* alone, a percentage. Whatever is missed is stored."""
    evicting = EVICTION_POLICIES[policy]()
    keys = {number: cache_key(number) for number in set(trace)}
    hits = 0
    for number in trace:
        key = keys[number]
        if evicting.peek(key) is not None:
            hits += 1
            evicting.touch(key)
        else:
            if len(evicting) >= room:
                evicting.pop()
            evicting.put(key, (key,))
    return 100 * hits / len(trace)


def policy_time(policy: str, trace: Trace, room: int) -> float:
    """Return what a request costs the policy, in nanoseconds: a use, or a place for what was missed."""
    evicting = EVICTION_POLICIES[policy]()
    peek, touch, put, pop = evicting.peek, evicting.touch, evicting.put, evicting.pop
    records: list[Record] = [(cache_key(number),) for number in trace]
    held = 0
    started = time.perf_counter_ns()
    for record in records:
        key = record[0]
        if peek(key) is not None:
            touch(key)
        else:
            if held >= room:
                pop()
            else:
                held += 1
            put(key, record)
    return (time.perf_counter_ns() - started) / len(trace)


def store_run(policy: str, trace: Trace, room: int) -> tuple[float, float]:
    """Return the percentage of hits through MemoryStore, and the nanoseconds of a request."""
    store = MemoryStore(1 << 40, max_entries=room, policy=policy)
    response = StoredResponse(200, ((b"content-type", b"text/plain"), (b"content-length", b"5")), b"hello")
    now = time.time()
    entry = Entry(response, now, now, now + 3600.0, now + 3600.0)
    keys = [cache_key(number) for number in trace]
    get, put = store.get_nowait, store.set_nowait
    started = time.perf_counter_ns()
    for key in keys:
        if get(key) is None:
            put(key, entry)
    each = (time.perf_counter_ns() - started) / len(trace)
    return 100 * store.stats().hits / len(trace), each


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    print("| " + " | ".join(head) + " |")
    print("|---|" + "---:|" * (len(head) - 1))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print()


def print_ratios(size: Callable[[float], Size], seed: int) -> None:
    policies = list(EVICTION_POLICIES)
    for share in SHARES:
        rows = []
        for name, make in TRACES.items():
            trace = make(size(share), random.Random(seed))
            rows.append([name, *(f"{hit_ratio(policy, trace, size(share).room):.1f}" for policy in policies)])
        print(f"Hits, in per cent, with room for {share:.0%} of the keys\n")
        table(["trace", *policies], rows)


def print_times(size: Callable[[float], Size], seed: int, rounds: int) -> None:
    rows = []
    for share in SHARES:
        trace = zipf(size(share), random.Random(seed))
        room = size(share).room
        alone: dict[str, list[float]] = {policy: [] for policy in EVICTION_POLICIES}
        stored: dict[str, list[float]] = {policy: [] for policy in EVICTION_POLICIES}
        ratios: dict[str, float] = {}
        for turn in range(rounds):
            policies = list(EVICTION_POLICIES)
            for policy in policies[turn % len(policies) :] + policies[: turn % len(policies)]:
                alone[policy].append(policy_time(policy, trace, room))
                ratios[policy], each = store_run(policy, trace, room)
                stored[policy].append(each)
        for policy in EVICTION_POLICIES:
            figures = (statistics.median(alone[policy]), statistics.median(stored[policy]), ratios[policy])
            rows.append([policy, f"{share:.0%}", *(f"{figure:,.0f}" for figure in figures[:2]), f"{figures[2]:.1f}"])
    print("Nanoseconds a request on zipf 1.0: a get, and a set after a miss\n")
    table(["policy", "room", "policy alone", "through MemoryStore", "hits there, %"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare the eviction policies of the memory store.")
    parser.add_argument("--quick", action="store_true", help="tiny traces: shows that it runs, measures nothing")
    parser.add_argument("--keys", type=int, default=100_000)
    parser.add_argument("--requests", type=int, default=500_000)
    parser.add_argument("--rounds", type=int, default=5, help="rounds of the times, of which the medians are shown")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    if options.quick:
        options.keys, options.requests, options.rounds = 1_000, 2_000, 1

    def size(share: float) -> Size:
        return Size(options.keys, options.requests, max(1, int(options.keys * share)))

    def short(share: float) -> Size:
        return Size(options.keys, options.requests // 5, size(share).room)

    print(
        f"{options.keys:,} keys, {options.requests:,} requests, seed {options.seed}, "
        f"CPython {platform.python_version()}\n"
    )
    print_ratios(size, options.seed)
    print_times(short, options.seed, options.rounds)


if __name__ == "__main__":
    main()
