"""What MemoryStore can do beside a store's contract, as the level in memory."""

from __future__ import annotations

from typing import Any

import pytest

from echo_cache.errors import ConfigurationError
from echo_cache.stores import MemoryStore, TwoLevelStore
from tests.store_contract import make_key
from tests.twolevel_support import DE, FR, KEY, ManualClock, make_entry


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


def test_peek_gives_all_variants_newest_first_and_counts_nothing(clock: ManualClock) -> None:
    store = MemoryStore(clock=clock)
    entries = [make_entry(b"de", vary=DE), make_entry(b"fr", vary=FR), make_entry(vary=((b"x", None),), life=10.0)]
    for entry in entries:
        store.set_nowait(KEY, entry)
    before = store.stats()
    assert store.peek(KEY) == entries[::-1]
    assert list(store.peek(make_key("none"))) == []
    clock.now += 11.0
    assert store.peek(KEY) == [entries[1], entries[0]]
    assert store.stats() == before
    assert store._young == {}
    assert not store._reads


def test_peek_is_no_use_to_the_eviction_policy(clock: ManualClock) -> None:
    store = MemoryStore(max_entries=2, policy="lru", clock=clock)
    for name in ("a", "b"):
        store.set_nowait(make_key(name), make_entry())
    store.peek(make_key("a"))
    store.set_nowait(make_key("c"), make_entry())
    assert list(store.peek(make_key("a"))) == []


def test_peek_at_what_is_damaged_gives_nothing_and_is_counted(
    clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = MemoryStore(clock=clock)
    store.set_nowait(KEY, make_entry())

    def broken(*_: Any) -> None:
        raise ValueError("damaged")

    monkeypatch.setattr("echo_cache.stores.memory.unpack", broken)
    assert list(store.peek(KEY)) == []
    assert store.stats().errors == 1


def test_unused_makes_the_hit_a_miss(clock: ManualClock) -> None:
    store = MemoryStore(clock=clock)
    store.set_nowait(KEY, make_entry())
    store.get_nowait(KEY)
    store.unused()
    assert (store.stats().hits, store.stats().misses) == (0, 1)


def test_add_keeps_as_set_does_while_there_is_room_and_replaces_what_set_would(clock: ManualClock) -> None:
    store = MemoryStore(max_entries=2, clock=clock)
    assert store.add_nowait(KEY, make_entry(b"old")) is True
    assert store.add_nowait(make_key("b"), make_entry()) is True
    assert store.add_nowait(KEY, make_entry(b"new")) is True
    assert store.peek(KEY) == [make_entry(b"new")]


def test_add_gives_up_nothing_for_what_it_adds(clock: ManualClock) -> None:
    store = MemoryStore(max_entries=2, clock=clock)
    for name in ("a", "b"):
        store.add_nowait(make_key(name), make_entry())
    assert store.add_nowait(make_key("c"), make_entry()) is None
    assert store.add_nowait(make_key("a"), make_entry(vary=DE)) is None
    assert [len(store.peek(make_key(name))) for name in "abc"] == [1, 1, 0]
    few = MemoryStore(max_variants=1, clock=clock)
    few.add_nowait(KEY, make_entry(vary=DE))
    assert few.add_nowait(KEY, make_entry(vary=FR)) is False
    assert few.peek(KEY) == [make_entry(vary=DE)]
    assert store.stats().evictions == few.stats().evictions == 0


def test_add_refuses_what_set_refuses(clock: ManualClock) -> None:
    store = MemoryStore(100_000, clock=clock)
    assert store.add_nowait(KEY, make_entry(b"x" * 90_000)) is False
    assert store.add_nowait(KEY, make_entry(life=-1.0)) is False


@pytest.mark.parametrize("missing", ["get_nowait", "set_nowait", "add_nowait", "delete_nowait", "peek"])
def test_a_level_in_memory_needs_all_of_these(missing: str) -> None:
    class Level:
        def __init__(self) -> None:
            for name in {"get_nowait", "set_nowait", "add_nowait", "delete_nowait", "peek"} - {missing}:
                setattr(self, name, None)

    with pytest.raises(ConfigurationError, match="l1 must be a store in memory"):
        TwoLevelStore(Level(), MemoryStore())  # type: ignore[arg-type]  # what is tested
