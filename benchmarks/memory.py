"""
What the memory store costs, in space and in time.

Compares
- space: what the process grows by for 100,000 entries of 1 kB with six headers, against what the store says that it
  holds, and the pause of a full garbage collection with and without them, for each policy, in a process of its own;
- time: a hit on a prepared entry, the first hit on an entry at rest, a store that has room and one that evicts,
  beside a plain dictionary's get and set.

Run it in the project's environment, on a quiet machine:

    python benchmarks/memory.py

Times are medians of interleaved rounds, in nanoseconds, the loop that drives them taken off. Linux only: the resident
set is read from /proc.
"""

from __future__ import annotations

import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from echo_cache.model import CacheKey, Entry, StoredResponse
from echo_cache.stores.memory import MemoryStore

ENTRIES = 100_000
BODY_BYTES = 1024
ROUNDS = 15
POLICIES = ("s3fifo", "lru", "lfu")


def make_key(number: int) -> CacheKey:
    """Return a key as a server makes it: every part an object of its own."""
    host = bytes(bytearray(b"shop.example.com"))
    return ("GET", "https", host, b"/products/%d/details" % number, b"lang=en" if number % 4 == 0 else b"")


def make_entry(number: int, now: float) -> Entry:
    """Return an entry with a body of 1 kB and six headers, as an app makes it: nothing is shared with another."""
    headers = (
        (b"content-type", b"application/json; charset=utf-8"),
        (b"content-length", b"%d" % BODY_BYTES),
        (b"cache-control", b"public, max-age=%d" % (60 + number % 600)),
        (b"date", b"Tue, 06 Oct 2026 10:%02d:%02d GMT" % (number // 60 % 60, number % 60)),
        (b"etag", b'"%032x"' % number),
        (b"vary", b"Accept-Encoding"),
    )
    body = (b"%d " % number).ljust(BODY_BYTES, b"x")
    return Entry(
        response=StoredResponse(200, headers, body),
        generated_at=now,
        stored_at=now + 0.001,
        fresh_until=now + 600.0,
        retain_until=now + 4200.0,
        vary=((b"accept-encoding", b"gzip"),),
        mark=number,
    )


def resident_bytes() -> int:
    """Return the resident set of this process. Raises OSError where there is no /proc."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def full_collection_ms() -> float:
    """Return the pause of a full garbage collection: the median of five, after one that settles what is tracked."""
    gc.collect()
    pauses = []
    for _ in range(5):
        started = time.perf_counter()
        gc.collect()
        pauses.append(time.perf_counter() - started)
    return statistics.median(pauses) * 1000


def footprint(policy: str, entries: int) -> dict[str, float]:
    """Fill a store in this process, which must be fresh; return what it cost."""
    store = MemoryStore(4 * 2**30, policy=policy)
    now = time.time()
    for number in range(100):  # what the first calls allocate once is no entry's
        store.set_nowait(make_key(number), make_entry(number, now))
    held_before = store.stats().bytes or 0
    gc_before = full_collection_ms()
    resident_before = resident_bytes()
    for number in range(100, entries + 100):
        store.set_nowait(make_key(number), make_entry(number, now))
    gc_after = full_collection_ms()
    resident = resident_bytes() - resident_before
    at_rest = (store.stats().bytes or 0) - held_before
    for number in range(2 * 1024):
        store.get_nowait(make_key(number))
    hot = full_collection_ms()
    return {
        "entries": entries,
        "resident_per_entry": resident / entries,
        "counted_per_entry": at_rest / entries,
        "beyond_body": resident / entries - BODY_BYTES,
        "counted_over_resident": at_rest / resident,
        "gc_empty_ms": gc_before,
        "gc_full_ms": gc_after,
        "gc_hot_ms": hot,
        "prepared_resident": resident_bytes() - resident_before - resident,
        "prepared_counted": (store.stats().bytes or 0) - held_before - at_rest,
    }


def timings(policy: str) -> dict[str, float]:
    """Return the times of the store's calls and of a dictionary's, in nanoseconds."""
    now = time.time()
    count = 2_000
    keys = [make_key(number) for number in range(count)]
    again = [make_key(number) for number in range(count)]  # equal, not identical: a request brings its own
    entries = [make_entry(number, now) for number in range(count)]
    plain = dict(zip(keys, entries, strict=True))
    hot = keys[:500]
    hot_again = again[:500] * 4

    roomy = MemoryStore(policy=policy)
    cold = MemoryStore(policy=policy, max_prepared=1)
    tight = MemoryStore(policy=policy, max_entries=count // 2)
    for key, entry in zip(keys, entries, strict=True):
        roomy.set_nowait(key, entry)
        cold.set_nowait(key, entry)
        tight.set_nowait(key, entry)
    for key in hot:
        roomy.get_nowait(key)
        roomy.get_nowait(key)

    def loop_get(get: Callable[[CacheKey], object], wanted: list[CacheKey]) -> float:
        started = time.perf_counter_ns()
        for key in wanted:
            get(key)
        return (time.perf_counter_ns() - started) / len(wanted)

    def loop_set(put: Callable[[CacheKey, Entry], object]) -> float:
        started = time.perf_counter_ns()
        for key, entry in zip(again, entries, strict=True):
            put(key, entry)
        return (time.perf_counter_ns() - started) / count

    def fresh() -> float:
        store = MemoryStore(policy=policy)
        return loop_set(store.set_nowait)

    def nothing(wanted: list[CacheKey]) -> float:
        started = time.perf_counter_ns()
        for _ in wanted:
            pass
        return (time.perf_counter_ns() - started) / len(wanted)

    cases: dict[str, Callable[[], float]] = {
        "loop": lambda: nothing(hot_again),
        "dict.get": lambda: loop_get(plain.get, hot_again),
        "get_nowait, prepared": lambda: loop_get(roomy.get_nowait, hot_again),
        "get_nowait, at rest": lambda: loop_get(cold.get_nowait, again),
        "get_nowait, nothing there": lambda: loop_get(MemoryStore(policy=policy).get_nowait, again),
        "dict.__setitem__": lambda: loop_set(dict[CacheKey, Entry]().__setitem__),
        "set_nowait, room": fresh,
        "set_nowait, replaces": lambda: loop_set(roomy.set_nowait),
        "set_nowait, evicts": lambda: loop_set(tight.set_nowait),
    }
    rounds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(ROUNDS):
        for name, case in cases.items():
            if name.endswith("prepared"):
                for key in hot * 2:  # what the replacing round dropped is prepared again
                    roomy.get_nowait(key)
            rounds[name].append(case())
    medians = {name: statistics.median(values) for name, values in rounds.items()}
    loop = medians.pop("loop")
    return {name: value - loop for name, value in medians.items()}


def in_fresh_process(policy: str, entries: int) -> dict[str, float]:
    """Return `footprint` of a new process. Raises CalledProcessError when it fails."""
    command = [sys.executable, __file__, "--footprint", policy, str(entries)]
    result: dict[str, float] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return result


def main() -> None:
    if sys.argv[1:2] == ["--footprint"]:
        print(json.dumps(footprint(sys.argv[2], int(sys.argv[3]))))
        return
    print(f"{ENTRIES:,} entries of {BODY_BYTES} B with six headers, CPython {sys.version.split()[0]}\n")
    print(f"{'':28}" + "".join(f"{policy:>12}" for policy in POLICIES))
    results = [in_fresh_process(policy, ENTRIES) for policy in POLICIES]
    rows = {
        "beyond_body": "B an entry beyond the body",
        "resident_per_entry": "B an entry, resident set",
        "counted_per_entry": "B an entry, as counted",
        "counted_over_resident": "counted / resident",
        "gc_empty_ms": "full collection, empty, ms",
        "gc_full_ms": "full collection, full, ms",
        "gc_hot_ms": "... and 2,048 prepared, ms",
        "prepared_resident": "prepared, resident, B",
        "prepared_counted": "prepared, as counted, B",
    }
    for name, label in rows.items():
        digits = 0 if results[0][name] > 100 else 2
        print(f"{label:28}" + "".join(f"{result[name]:12,.{digits}f}" for result in results))
    print(f"\n{'nanoseconds':28}" + "".join(f"{policy:>12}" for policy in POLICIES))
    times = [timings(policy) for policy in POLICIES]
    for name in times[0]:
        print(f"{name:28}" + "".join(f"{each[name]:12,.0f}" for each in times))


if __name__ == "__main__":
    main()
