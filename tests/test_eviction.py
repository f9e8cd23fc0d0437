"""The eviction policies: the victim of each against a naive model, what an operation costs, and what readers may do."""

from __future__ import annotations

import random
import statistics
import sys
import threading
import tracemalloc
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from echo_cache.errors import ConfigurationError
from echo_cache.model import CacheKey
from echo_cache.stores import eviction
from echo_cache.stores.eviction import EVICTION_POLICIES, Eviction, Record, SmallMainGhost, eviction_policy
from echo_cache.stores.memory import MemoryStore
from tests.store_contract import make_entry, make_key

POLICIES = sorted(EVICTION_POLICIES)


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", POLICIES)
def test_a_name_is_taken_in_any_case(name: str) -> None:
    for spelled in (name, name.upper(), name.title()):
        assert type(eviction_policy(spelled)) is EVICTION_POLICIES[name]


@pytest.mark.parametrize("name", ["fifo", "", " lru", "lru\n", None, 1, b"lru", ["lru"]])
def test_an_unknown_name_is_refused_with_the_list(name: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        eviction_policy(name)
    assert str(caught.value) == f"policy must be one of 'lfu', 'lru', 'mfu', 'mru', 's3fifo', not {name!r}"


# --- against a model --------------------------------------------------------------------------------------------------


class OrderModel:
    """A list in the order of the last use, searched from one end to the other."""

    def __init__(self, victim: int) -> None:
        self.victim = victim
        self.keys: list[CacheKey] = []

    def put(self, key: CacheKey) -> None:
        self.remove(key)
        self.keys.append(key)

    def touch(self, key: CacheKey) -> None:
        if key in self.keys:
            self.put(key)

    def remove(self, key: CacheKey) -> None:
        self.keys = [other for other in self.keys if other != key]

    def pop(self) -> CacheKey:
        return self.keys.pop(self.victim)


class CountModel:
    """The uses of each key, and when it had so many; the victim is searched among all."""

    def __init__(self, most: bool) -> None:
        self.most = most
        self.now = 0
        self.uses: dict[CacheKey, tuple[int, int]] = {}

    def put(self, key: CacheKey) -> None:
        self.now += 1
        self.uses[key] = (self.uses.get(key, (0, 0))[0] + 1, self.now)

    def touch(self, key: CacheKey) -> None:
        if key in self.uses:
            self.put(key)

    def remove(self, key: CacheKey) -> None:
        del self.uses[key]

    def pop(self) -> CacheKey:
        sign = -1 if self.most else 1
        victim = min(self.uses, key=lambda key: (sign * self.uses[key][0], self.uses[key][1]))
        del self.uses[victim]
        return victim


class SmallMainGhostModel:
    """Two lists, oldest first, a table of counts and one of ghosts by place, for at most 256 records."""

    def __init__(self, chances: int) -> None:
        self.chances = chances
        self.small: list[CacheKey] = []
        self.main: list[CacheKey] = []
        self.uses: dict[CacheKey, int] = {}
        self.ghosts: dict[int, CacheKey] = {}

    def put(self, key: CacheKey) -> None:
        if key in self.uses:
            self.touch(key)
            return
        returns = self.ghosts.get(hash(key) % 256) == key
        (self.main if returns else self.small).append(key)
        self.uses[key] = 0

    def touch(self, key: CacheKey) -> None:
        if key in self.uses:
            self.uses[key] = min(3, self.uses[key] + 1)

    def remove(self, key: CacheKey) -> None:
        (self.small if key in self.small else self.main).remove(key)
        del self.uses[key]

    def pop(self) -> CacheKey:
        moves = 0
        while True:
            from_small = len(self.small) > (len(self.small) + len(self.main)) // 10 or not self.main
            key = (self.small if from_small else self.main).pop(0)
            if self.uses[key] == 0 or moves == self.chances:
                if from_small:
                    self.ghosts[hash(key) % 256] = key
                del self.uses[key]
                return key
            self.main.append(key)
            self.uses[key] = 0 if from_small else self.uses[key] - 1
            moves += 1


CHANCES = 4  # so that the models meet the bound
MODELS: dict[str, Callable[[], Any]] = {
    "lfu": lambda: CountModel(most=False),
    "lru": lambda: OrderModel(0),
    "mfu": lambda: CountModel(most=True),
    "mru": lambda: OrderModel(-1),
    "s3fifo": lambda: SmallMainGhostModel(CHANCES),
}
NAMES = st.integers(0, 24)


@pytest.mark.parametrize("name", POLICIES)
def test_it_gives_up_what_the_model_gives_up(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eviction, "_CHANCES", CHANCES)

    class AgainstAModel(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.policy = eviction_policy(name)
            self.model = MODELS[name]()
            self.held: dict[CacheKey, Record] = {}
            self.serial = 0

        @rule(names=st.lists(NAMES, min_size=1, max_size=25))
        def put(self, names: list[int]) -> None:
            for key in map(make_key, names):
                self.serial += 1
                self.held[key] = (key, b"%d" % self.serial)
                self.policy.put(key, self.held[key])
                self.model.put(key)

        @rule(names=st.lists(NAMES, min_size=1, max_size=50))
        def touch(self, names: list[int]) -> None:
            for key in map(make_key, names):
                self.policy.touch(key)
                self.model.touch(key)

        @rule(number=NAMES)
        def remove(self, number: int) -> None:
            key = make_key(number)
            if self.held.pop(key, None) is not None:
                self.policy.remove(key)
                self.model.remove(key)

        @rule(times=st.integers(1, 5))
        def pop(self, times: int) -> None:
            for _ in range(times):
                if self.held:
                    assert self.policy.pop() is self.held.pop(self.model.pop())
                else:
                    with pytest.raises(KeyError):
                        self.policy.pop()

        @rule(name_of_new=NAMES)
        def replace(self, name_of_new: int) -> None:
            self.pop(1)
            self.put([name_of_new])

        @rule(often=st.integers(0, 9))
        def clear(self, often: int) -> None:
            if often == 0:
                self.policy.clear()
                self.model = MODELS[name]()
                self.held = {}

        @invariant()
        def holds_the_same(self) -> None:
            assert set(self.policy) == set(self.held)
            assert len(self.policy) == len(self.held)
            assert all(self.policy.peek(make_key(number)) is self.held.get(make_key(number)) for number in range(25))

        def teardown(self) -> None:
            while self.held:
                self.pop(1)

    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        AgainstAModel, settings=settings(max_examples=60, stateful_step_count=40, deadline=None)
    )


# --- what each is for -------------------------------------------------------------------------------------------------


def store_of(policy: str, entries: int, names: str = "") -> MemoryStore:
    store = MemoryStore(policy=policy, max_entries=entries)
    for name in names:
        store.set_nowait(make_key(name), make_entry())
    return store


def read(store: MemoryStore, names: str) -> None:
    for name in names:
        assert store.get_nowait(make_key(name)) is not None


def held(store: MemoryStore, among: str) -> str:
    """Return those of *among* that are at rest in *store*, which is no use of them."""
    return "".join(name for name in among if store._at_rest.peek(make_key(name)) is not None)


@pytest.mark.parametrize(
    ("policy", "reads", "left"),
    [
        pytest.param("lru", "aaabbc", "bcd", id="lru-longest-unused-goes"),
        pytest.param("mru", "aaabbc", "abd", id="mru-last-used-goes"),
        pytest.param("lfu", "aaabbc", "abd", id="lfu-fewest-uses-goes"),
        pytest.param("mfu", "caaabb", "bcd", id="mfu-most-uses-goes"),
        pytest.param("s3fifo", "acc", "acd", id="s3fifo-not-used-since-it-came-goes"),
        pytest.param("s3fifo", "cba", "bcd", id="s3fifo-first-come-goes-when-all-were-used"),
    ],
)
def test_a_store_gives_up_what_its_policy_says(policy: str, reads: str, left: str) -> None:
    store = store_of(policy, 3, "abc")
    read(store, reads)
    store.set_nowait(make_key("d"), make_entry())
    assert held(store, "abcd") == left
    assert (store.stats().evictions, store.stats().entries) == (1, 3)


def test_mfu_gives_up_the_one_that_had_so_many_uses_first() -> None:
    store = store_of("mfu", 3, "abc")
    read(store, "bac")
    store.set_nowait(make_key("d"), make_entry())
    assert held(store, "abcd") == "acd"
    store.set_nowait(make_key("e"), make_entry())
    assert held(store, "abcde") == "cde"


def test_mru_keeps_part_of_a_cycle_that_does_not_fit_and_lru_keeps_nothing_of_it() -> None:
    hits = {}
    for policy in ("lru", "mru"):
        store = store_of(policy, 10)
        for number in list(range(15)) * 4:
            if store.get_nowait(make_key(number)) is None:
                store.set_nowait(make_key(number), make_entry())
        hits[policy] = store.stats().hits
    assert hits["lru"] == 0
    assert hits["mru"] >= 25


def test_s3fifo_keeps_favourites_through_a_scan_and_lru_does_not() -> None:
    for policy, kept in (("s3fifo", 50), ("lru", 0)):
        store = store_of(policy, 100)
        for number in range(50):
            store.set_nowait(make_key(number), make_entry())
        for number in list(range(50)) * 3:
            store.get_nowait(make_key(number))
        for number in range(1000, 1300):
            store.set_nowait(make_key(number), make_entry())
        assert sum(store.get_nowait(make_key(number)) is not None for number in range(50)) == kept


def test_s3fifo_gives_what_returns_soon_a_place_in_the_main_queue() -> None:
    store = store_of("s3fifo", 20)
    for number in range(21):
        store.set_nowait(make_key(number), make_entry())
    assert store.get_nowait(make_key(0)) is None  # the first to go, unused
    store.set_nowait(make_key(0), make_entry())
    for number in range(100, 115):  # what came with it and was not used either is gone after as many
        store.set_nowait(make_key(number), make_entry())
    assert [number for number in range(15) if store._at_rest.peek(make_key(number)) is not None] == [0]


def test_s3fifo_gives_up_in_the_main_queue_what_is_used_no_more() -> None:
    policy = SmallMainGhost()
    for number in range(20):
        key = make_key(number)
        policy.put(key, (key,))
        for _ in range(9):
            policy.touch(key)
    for number in range(100, 190):  # three more rounds at most are bought by nine uses
        key = make_key(number)
        policy.pop()
        policy.put(key, (key,))
        policy.touch(key)
        policy.touch(key)
    assert [number for number in range(20) if policy.peek(make_key(number))] == []


# --- what it costs ----------------------------------------------------------------------------------------------------


def filled(name: str, records: int) -> Eviction:
    policy = eviction_policy(name)
    for number in range(records):
        key = make_key(number)
        policy.put(key, (key,))
    rng = random.Random(records)
    for _ in range(records):
        policy.touch(make_key(int(records ** rng.random()) - 1))
    return policy


def steps(work: Callable[[], object]) -> int:
    """Return how many lines of the policies run in *work*, and calls into C."""
    count = 0

    def trace(frame: Any, event: str, argument: object) -> Any:
        nonlocal count
        if frame.f_code.co_filename == eviction.__file__ or "cachetools" in frame.f_code.co_filename:
            count += event == "line"
            return trace
        return None

    def profile(frame: Any, event: str, argument: object) -> None:
        nonlocal count
        count += event == "c_call"

    tracing, profiling = sys.gettrace(), sys.getprofile()
    sys.settrace(trace)
    sys.setprofile(profile)
    try:
        work()
    finally:
        sys.setprofile(profiling)
        sys.settrace(tracing)
    return count


def worst(name: str, records: int) -> dict[str, tuple[float, int]]:
    """Return the mean and the largest number of steps of each operation among *records* records."""
    policy = filled(name, records)
    rng = random.Random(1)
    counts: dict[str, list[int]] = {"touch": [], "remove": [], "put": [], "replace": [], "pop": []}
    for turn in range(300):
        known = make_key(rng.randrange(records // 2, records))
        counts["touch"].append(steps(partial(policy.touch, known)))
        if policy.peek(known) is not None:
            counts["replace"].append(steps(partial(policy.put, known, (known,))))
            counts["remove"].append(steps(partial(policy.remove, known)))
        new = make_key(records + turn)
        counts["put"].append(steps(partial(policy.put, new, (new,))))
        counts["pop"].append(steps(policy.pop))
    return {operation: (sum(seen) / len(seen), max(seen)) for operation, seen in counts.items()}


@pytest.mark.parametrize("name", POLICIES)
def test_no_operation_takes_more_steps_among_100_000_records_than_among_1_000(name: str) -> None:
    few, many = worst(name, 1_000), worst(name, 100_000)
    for operation, (mean, most) in many.items():
        chances = eviction._CHANCES if name == "s3fifo" and operation == "pop" else 0
        assert most <= 40 + 12 * chances, operation
        if not chances:  # how many second chances there are to give depends on the uses, not on the size
            assert mean <= 1.5 * few[operation][0] + 3, operation


@pytest.mark.parametrize("name", POLICIES)
def test_no_operation_copies_the_order_of_20_000_records_that_were_used_alike(name: str) -> None:
    # What C does in one call is no step: a copy shows in what it allocates. A dictionary that grows does so rarely.
    policy = eviction_policy(name)
    keys = [make_key(number) for number in range(20_000)]
    for key in keys:
        policy.put(key, (key,))
    allocated: dict[str, list[int]] = {"touch": [], "remove": [], "put": [], "pop": []}
    tracemalloc.start()
    try:
        for key in keys[10_000:10_021]:
            record = (key,)
            work: dict[str, Callable[[], object]] = {
                "touch": partial(policy.touch, key),
                "remove": partial(policy.remove, key),
                "put": partial(policy.put, key, record),
                "pop": policy.pop,
            }
            for operation, run in work.items():
                before = tracemalloc.get_traced_memory()[0]
                tracemalloc.reset_peak()
                run()
                allocated[operation].append(tracemalloc.get_traced_memory()[1] - before)
    finally:
        tracemalloc.stop()
    assert all(statistics.median(seen) < 10_000 for seen in allocated.values()), allocated


def test_s3fifo_gives_a_bounded_number_of_second_chances_in_one_call_even_if_all_have_earned_them() -> None:
    policy = filled("s3fifo", 20_000)
    for key in policy:
        for _ in range(3):
            policy.touch(key)
    for _ in range(500):
        assert steps(policy.pop) <= 40 + 12 * eviction._CHANCES
    assert len(policy) == 19_500


def test_s3fifo_moves_no_more_records_than_it_was_told_of_uses() -> None:
    policy = SmallMainGhost()
    rng = random.Random(1)
    uses = 0
    lines = 0
    for number in range(5_000):
        key = make_key(number)
        policy.put(key, (key,))
        for _ in range(rng.randrange(6)):
            policy.touch(make_key(rng.randrange(max(0, number - 900), number + 1)))
            uses += 1
        if number >= 1_000:
            lines += steps(policy.pop)
    assert lines <= 12 * uses + 40 * 4_000


# --- ghosts -----------------------------------------------------------------------------------------------------------


def test_ghosts_are_bounded_by_the_records_and_keep_nothing_that_was_sent() -> None:
    policy = SmallMainGhost()
    for number in range(20_000):
        key = make_key(f"{number}-{'x' * 500}")
        policy.put(key, (key,))
        if len(policy) > 1_000:
            policy.pop()
    assert len(policy._ghosts) == 1024
    assert policy._ghosts.itemsize == 8
    assert sum(map(bool, policy._ghosts)) > 900
    assert len(policy._small) + len(policy._main) == len(policy) == 1_000
    policy.clear()
    assert not any(policy._ghosts)


# --- threads ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", POLICIES)
def test_readers_peek_without_a_lock_while_a_writer_works(name: str) -> None:
    policy = eviction_policy(name)
    stays = make_key("stays")
    failures: list[BaseException] = []
    working = threading.Event()
    done = threading.Event()

    def look() -> None:
        keys = [make_key(number) for number in range(200)]
        working.wait()
        try:
            while not done.is_set():
                for key in keys:
                    record = policy.peek(key)
                    assert record is None or record[0] == key
                # What is held all the while is found at every moment, also while its place in the order changes.
                assert policy.peek(stays) is not None
        except BaseException as error:
            failures.append(error)

    def write() -> None:
        rng = random.Random(1)
        policy.put(stays, (stays,))
        working.set()
        for _ in range(20_000):
            key = make_key(rng.randrange(200))
            policy.touch(stays)
            match rng.randrange(4):
                case 0:
                    policy.touch(key)
                case 1 if policy.peek(key) is not None:
                    policy.remove(key)
                case _:
                    policy.put(key, (key,))
            policy.put(stays, (stays,))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    readers = [threading.Thread(target=look) for _ in range(3)]
    try:
        for reader in readers:
            reader.start()
        write()
    finally:
        working.set()
        done.set()
        for reader in readers:
            reader.join()
        sys.setswitchinterval(interval)
    assert failures == []
