"""TwoLevelStore: what each level is told and when, overlapping operations, and failures of either level."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echo_cache.errors import ConfigurationError, StoreError, StoreTimeout
from echo_cache.model import CacheKey, Entry
from echo_cache.options import CacheStrategy, SyncMode, TwoLevelConfig
from echo_cache.stores import MemoryStore, RedisStore, Store, TwoLevelStore
from echo_cache.stores.base import Match
from echo_cache.stores.twolevel.life import capped
from tests.servers import RedisServer
from tests.store_contract import StoreContract, any_variant, listed, make_key, only
from tests.store_contract import make_entry as entry_at_machine_time
from tests.twolevel_support import DE, FR, KEY, NOW, Levels, make_entry


@pytest.fixture
def levels() -> Levels:
    return Levels(sync_mode="sync")


class TestTwoLevelStore(StoreContract):
    @pytest.fixture(
        params=[
            pytest.param({}, id="write-through-async"),
            pytest.param({"sync_mode": "sync"}, id="write-through-sync"),
            pytest.param({"strategy": "cache_aside"}, id="cache-aside-async"),
            pytest.param({"strategy": "cache_aside", "sync_mode": "sync"}, id="cache-aside-sync"),
            pytest.param({"cache_warming": False}, id="no-warming"),
        ]
    )
    async def store(self, request: pytest.FixtureRequest, redis_url: str) -> AsyncIterator[Store]:
        store = TwoLevelStore(MemoryStore(), RedisStore(redis_url, timeout=30.0), TwoLevelConfig(**request.param))
        yield store
        await store.aclose()


class TestWriteBackStore(StoreContract):
    @pytest.fixture(
        params=[
            pytest.param({}, id="async"),
            pytest.param({"sync_mode": "sync"}, id="sync"),
            pytest.param({"async_buffer": 1}, id="full"),
        ]
    )
    async def store(self, request: pytest.FixtureRequest, redis_url: str) -> AsyncIterator[Store]:
        config = TwoLevelConfig(strategy="write_back", **request.param)
        store = TwoLevelStore(MemoryStore(), RedisStore(redis_url, timeout=30.0), config)
        yield store
        await store.aclose()

    async def test_variants_of_a_key_are_bounded_and_the_oldest_goes(self, store: Store) -> None:
        """As for every store, once L2 has been told: it is L2 that gives up the oldest."""
        assert isinstance(store, TwoLevelStore)
        get = store.get

        async def get_of_both(key: CacheKey, match: Match) -> Entry | None:
            await store.flush()
            return await get(key, match)

        store.get = get_of_both  # type: ignore[method-assign]  # one test looks at what was written
        await super().test_variants_of_a_key_are_bounded_and_the_oldest_goes(store)


# --- reading ----------------------------------------------------------------------------------------------------------


def test_a_hit_in_memory_is_l1s_own() -> None:
    l1 = MemoryStore()
    store = TwoLevelStore(l1, RedisStore("redis://localhost"))
    assert store.get_nowait == l1.get_nowait


async def test_a_fresh_entry_in_l1_is_the_answer_and_l2_is_not_asked(levels: Levels) -> None:
    entry = make_entry()
    levels.l1.set_nowait(KEY, entry)
    levels.did()
    assert await levels.get() == entry
    assert levels.did() == []


async def test_a_fresh_entry_in_l1_that_does_not_match_is_no_answer(levels: Levels) -> None:
    fr = make_entry(vary=FR)
    levels.l1.set_nowait(KEY, make_entry(vary=DE))
    await levels.l2.set(KEY, fr)
    assert await levels.get(only(FR)) == fr


async def test_what_l1_does_not_have_comes_from_l2_and_is_promoted(levels: Levels) -> None:
    entry = make_entry()
    await levels.l2.set(KEY, entry)
    assert await levels.get() == entry
    assert levels.in_l1() == [entry]
    levels.did()
    assert await levels.get() == entry
    assert levels.did() == []
    assert (levels.store.get_stats().l1_hits, levels.store.get_stats().l2_hits) == (1, 1)


async def test_what_no_level_has_is_a_miss(levels: Levels) -> None:
    assert await levels.get() is None
    assert levels.store.stats().misses == 1


async def test_a_stale_entry_in_l1_gives_way_to_a_newer_one_in_l2(levels: Levels) -> None:
    levels.l1.set_nowait(KEY, make_entry(b"old"))
    levels.clock.now += 200.0
    newer = make_entry(b"new", now=levels.clock.now)
    await levels.l2.set(KEY, newer)
    assert await levels.get() == newer
    assert levels.in_l1() == [newer]


async def test_a_stale_entry_in_l1_stays_when_l2s_is_older(levels: Levels) -> None:
    newer = make_entry(b"new", now=NOW + 10.0, life=20.0)
    levels.l1.set_nowait(KEY, newer)
    await levels.l2.set(KEY, make_entry(b"old", life=3_000.0))
    levels.clock.now += 25.0
    assert await levels.get() == newer
    assert levels.in_l1() == [newer]
    assert levels.store.get_stats().l1_hits == 1


async def test_a_stale_entry_in_l1_is_the_answer_when_l2_has_none_or_fails(levels: Levels) -> None:
    entry = make_entry()
    levels.l1.set_nowait(KEY, entry)
    levels.clock.now += 200.0
    assert await levels.get() == entry
    levels.l2.error = StoreTimeout("late")
    assert await levels.get() == entry
    assert levels.store.get_stats().l2_errors == 1


async def test_l2_failing_is_no_miss_when_l1_has_nothing(levels: Levels) -> None:
    levels.l2.error = StoreError("gone")
    with pytest.raises(StoreError, match="gone"):
        await levels.get()
    levels.l1.set_nowait(KEY, make_entry(vary=DE))
    with pytest.raises(StoreError, match="gone"):
        await levels.get(only(FR))
    assert levels.store.get_stats().l2_errors == 2
    assert levels.store.stats().misses == 0


async def test_an_entry_in_l1_past_its_retention_is_no_answer(levels: Levels) -> None:
    levels.l1.set_nowait(KEY, make_entry())
    levels.clock.now += 301.0
    assert await levels.get() is None


# --- promotion --------------------------------------------------------------------------------------------------------


async def test_without_cache_warming_nothing_is_promoted() -> None:
    levels = Levels(sync_mode="sync", cache_warming=False)
    await levels.l2.set(KEY, make_entry())
    for _ in range(2):
        assert await levels.get() is not None
    assert levels.in_l1() == []


async def test_async_promotion_comes_in_the_next_turn_of_the_loop() -> None:
    levels = Levels(sync_mode="async")
    entry = make_entry()
    await levels.l2.set(KEY, entry)
    assert await levels.get() == entry
    assert levels.in_l1() == []
    await asyncio.sleep(0)
    assert levels.in_l1() == [entry]


async def test_a_full_queue_promotes_no_more_and_counts_it() -> None:
    levels = Levels(async_buffer=3)
    keys = [make_key(number) for number in range(5)]
    for key in keys:
        await levels.l2.set(key, make_entry())
    for key in [*keys, keys[0]]:  # the last is in the queue already
        assert await levels.store.get(key, any_variant) is not None
    assert levels.store.get_stats().dropped_promotions == 2
    await asyncio.sleep(0)
    assert [len(levels.in_l1(key)) for key in keys] == [1, 1, 1, 0, 0]
    assert await levels.store.get(keys[4], any_variant) is not None
    await asyncio.sleep(0)
    assert len(levels.in_l1(keys[4])) == 1


async def test_a_long_queue_is_drained_over_several_turns() -> None:
    levels = Levels()
    keys = [make_key(number) for number in range(150)]
    for key in keys:
        await levels.l2.set(key, make_entry())
        assert await levels.store.get(key, any_variant) is not None
    lengths = []
    for _ in range(4):
        lengths.append(sum(len(levels.in_l1(key)) for key in keys))
        await asyncio.sleep(0)
    assert lengths == [0, 64, 128, 150]


async def test_aclose_does_the_queued_promotions() -> None:
    levels = Levels()
    await levels.l2.set(KEY, make_entry())
    await levels.get()
    await levels.store.aclose()
    assert len(levels.in_l1()) == 1
    await asyncio.sleep(0)  # the turn that was asked for finds nothing to do


def test_promotion_goes_on_in_a_new_event_loop_after_one_that_ended_too_soon() -> None:
    async def prepare() -> Levels:
        levels = Levels()
        await levels.l2.set(KEY, make_entry())
        await levels.l2.set(make_key("b"), make_entry())
        return levels

    levels = asyncio.run(prepare())
    loop = asyncio.new_event_loop()
    reading = levels.store.get(KEY, any_variant)
    asyncio._set_running_loop(loop)
    try:
        with pytest.raises(StopIteration):
            reading.send(None)
    finally:
        asyncio._set_running_loop(None)
    loop.close()
    assert levels.in_l1() == []

    async def read_another() -> None:
        await levels.store.get(make_key("b"), any_variant)
        await asyncio.sleep(0)

    asyncio.run(read_another())
    assert len(levels.in_l1()) == len(levels.in_l1(make_key("b"))) == 1


@pytest.mark.parametrize("sync_mode", list(SyncMode))
@pytest.mark.parametrize("how", ["delete", "clear", "clear_l1", "clear_l2", "set", "put"])
async def test_what_was_read_before_a_change_is_not_promoted_after_it(how: str, sync_mode: SyncMode) -> None:
    levels = Levels(sync_mode=sync_mode)
    old, new = make_entry(b"old"), make_entry(b"new")
    await levels.l2.set(KEY, old)
    levels.l2.hold_up()
    reading = asyncio.ensure_future(levels.get())
    await levels.l2.arrived.wait()
    arguments = {"delete": (KEY,), "set": (KEY, new), "put": (KEY, new)}.get(how, ())
    change = asyncio.ensure_future(_await(getattr(levels.store, how)(*arguments)))
    await asyncio.sleep(0)
    levels.l2.let_go()
    assert await reading == old
    await change
    await asyncio.sleep(0)
    assert levels.in_l1() == ([new] if how in ("set", "put") else [])


async def _await(work: Any) -> Any:
    return await work


@pytest.mark.parametrize("how", ["delete", "clear", "clear_l1", "clear_l2", "put"])
async def test_a_queued_promotion_is_overtaken_by_a_change(how: str) -> None:
    levels = Levels(sync_mode="async")
    new = make_entry(b"new")
    await levels.l2.set(KEY, make_entry(b"old"))
    await levels.get()
    arguments = {"delete": (KEY,), "put": (KEY, new)}.get(how, ())
    await getattr(levels.store, how)(*arguments)
    await asyncio.sleep(0)
    assert levels.in_l1() == ([new] if how == "put" else [])


# --- how long each level calls an entry fresh -------------------------------------------------------------------------


async def test_each_level_caps_freshness_and_what_follows_it_keeps_its_length() -> None:
    levels = Levels(l1_ttl=30.0, l2_ttl=60.0)
    entry = make_entry()  # fresh for 150 s, kept for 150 s more
    await levels.store.set(KEY, entry)
    assert levels.in_l1() == [entry._replace(fresh_until=NOW + 30.0, retain_until=NOW + 180.0, is_capped=True)]
    assert await levels.in_l2() == entry._replace(fresh_until=NOW + 60.0, retain_until=NOW + 210.0)


async def test_put_caps_as_set_does() -> None:
    levels = Levels(l1_ttl=30.0, l2_ttl=60.0)
    entry = make_entry()
    await levels.store.put(KEY, entry)
    assert levels.in_l1() == [entry._replace(fresh_until=NOW + 30.0, retain_until=NOW + 180.0, is_capped=True)]
    assert await levels.in_l2() == entry._replace(fresh_until=NOW + 60.0, retain_until=NOW + 210.0)


async def test_l1s_cap_counts_from_promotion_and_ends_with_the_entrys_own_freshness() -> None:
    levels = Levels(l1_ttl=30.0, l2_ttl=60.0, sync_mode="sync")
    await levels.store.set(KEY, make_entry())
    for later, fresh_until in ((40.0, 60.0), (20.0, 50.0)):  # at 40 s only 20 s are left, at 20 s 30 s are allowed
        await levels.l1.clear()
        levels.clock.now = NOW + later
        assert await levels.get() is not None
        assert [held.fresh_until for held in levels.in_l1()] == [NOW + fresh_until]


async def test_an_entry_that_l1_has_capped_is_fetched_again_while_l2_calls_it_fresh() -> None:
    levels = Levels(l1_ttl=30.0, l2_ttl=100.0, sync_mode="sync")
    await levels.store.set(KEY, make_entry())
    levels.clock.now += 35.0
    found = await levels.get()
    assert found is not None
    assert found.fresh_until == NOW + 100.0
    assert [held.fresh_until for held in levels.in_l1()] == [NOW + 65.0]
    levels.did()
    assert await levels.get() is not None
    assert levels.did() == []


@given(
    fresh=st.floats(-1e6, 1e6),
    keep=st.floats(-1e6, 1e6),
    ttl=st.floats(0, 1e6),
    now=st.floats(0, 2e9),
)
def test_a_cap_never_lengthens_anything(fresh: float, keep: float, ttl: float, now: float) -> None:
    entry = make_entry()._replace(fresh_until=now + fresh, retain_until=now + fresh + keep)
    result = capped(entry, ttl, now)
    assert result.fresh_until == min(entry.fresh_until, now + ttl)
    assert result.retain_until <= entry.retain_until
    assert result._replace(fresh_until=entry.fresh_until, retain_until=entry.retain_until) == entry
    assert capped(result, ttl, now) == result


# --- write-through ----------------------------------------------------------------------------------------------------


async def test_write_through_set_writes_l2_then_l1(levels: Levels) -> None:
    assert await levels.store.set(KEY, make_entry()) is True
    assert levels.did() == ["l2 set body", "l1 set"]
    assert levels.store.stats().sets == 1


async def test_write_through_keeps_l1_when_l2_fails_and_counts_it(levels: Levels) -> None:
    levels.l2.error = StoreError("gone")
    entry = make_entry()
    assert await levels.store.set(KEY, entry) is True
    assert levels.in_l1() == [entry]
    assert levels.store.get_stats().l2_errors == levels.store.stats().errors == 1


async def test_write_through_put_is_visible_at_once_and_in_l2_when_the_rest_is_done(levels: Levels) -> None:
    entry = make_entry()
    rest = levels.store.put(KEY, entry)
    assert levels.in_l1() == [entry]
    assert levels.did() == ["l1 set"]
    assert await rest is True
    assert levels.did() == ["l2 set body"]
    assert await levels.in_l2() == entry


async def test_write_through_put_keeps_l1_when_l2_fails_and_counts_it(levels: Levels) -> None:
    levels.l2.error = StoreTimeout("late")
    entry = make_entry()
    assert await levels.store.put(KEY, entry) is True
    assert levels.in_l1() == [entry]
    assert levels.store.get_stats().l2_errors == 1


async def test_what_no_level_keeps_was_not_stored(levels: Levels) -> None:
    huge = make_entry(b"x" * 64 * 2**20)
    assert await levels.store.set(KEY, huge) is False
    assert await levels.store.put(KEY, huge) is False
    assert levels.store.stats().sets == 0


async def test_writes_of_one_key_reach_l2_in_their_order(levels: Levels) -> None:
    levels.l2.hold_up()
    rests = [asyncio.ensure_future(levels.store.put(KEY, make_entry(b"%d" % number))) for number in range(4)]
    await levels.l2.arrived.wait()
    other = asyncio.ensure_future(levels.store.put(make_key("other"), make_entry(b"other")))
    await asyncio.sleep(0)
    assert [done for done in levels.did() if "l2" in done] == ["l2 set 0", "l2 set other"]
    levels.l2.let_go()
    await asyncio.gather(*rests, other)
    assert levels.did() == ["l2 set 1", "l2 set 2", "l2 set 3"]


async def test_a_set_that_comes_back_late_does_not_hide_a_newer_put(levels: Levels) -> None:
    old, new, other = make_entry(b"old", vary=DE), make_entry(b"new", vary=DE), make_entry(b"other", vary=FR)
    levels.l2.hold_up()
    slow = [asyncio.ensure_future(levels.store.set(KEY, entry)) for entry in (old, other)]
    await levels.l2.arrived.wait()
    rest = asyncio.ensure_future(levels.store.put(KEY, new))
    levels.l2.let_go()
    await asyncio.gather(*slow, rest)
    assert levels.in_l1() == [other, new]
    assert await levels.in_l2(match=only(DE)) == new


async def test_a_set_of_a_variant_that_comes_back_late_does_not_stand_beside_a_newer_entry_for_all(
    levels: Levels,
) -> None:
    levels.l2.hold_up()
    slow = asyncio.ensure_future(levels.store.set(KEY, make_entry(b"old", vary=DE)))
    await levels.l2.arrived.wait()
    new = make_entry(b"new")
    rest = asyncio.ensure_future(levels.store.put(KEY, new))
    levels.l2.let_go()
    await asyncio.gather(slow, rest)
    assert levels.in_l1() == [new]


# --- nothing deleted comes back ---------------------------------------------------------------------------------------


async def test_a_put_whose_rest_comes_after_a_delete_does_not_write_l2(levels: Levels) -> None:
    rest = levels.store.put(KEY, make_entry())
    await levels.store.delete(KEY)
    await rest
    assert levels.in_l1() == []
    assert await levels.in_l2() is None


@pytest.mark.parametrize("how", ["delete", "clear", "clear_all"])
async def test_a_delete_waits_for_the_write_before_it(how: str, levels: Levels) -> None:
    levels.l2.hold_up()
    writes = [asyncio.ensure_future(levels.store.set(KEY, make_entry(b"%d" % number))) for number in range(2)]
    await levels.l2.arrived.wait()
    levels.did()
    deleting = asyncio.ensure_future(getattr(levels.store, how)(*((KEY,) if how == "delete" else ())))
    await asyncio.sleep(0)
    assert levels.did() == [f"l1 {'delete' if how == 'delete' else 'clear'}"]
    levels.l2.let_go()
    await asyncio.gather(*writes, deleting)
    assert levels.in_l1() == []
    assert await levels.in_l2() is None


async def test_a_write_after_a_delete_stays(levels: Levels) -> None:
    await levels.store.set(KEY, make_entry(b"old"))
    levels.l2.hold_up()
    deleting = asyncio.ensure_future(levels.store.delete(KEY))
    await levels.l2.arrived.wait()
    new = make_entry(b"new")
    rest = asyncio.ensure_future(levels.store.put(KEY, new))
    await asyncio.sleep(0)
    levels.l2.let_go()
    await asyncio.gather(deleting, rest)
    assert levels.in_l1() == [new]
    assert await levels.in_l2() == new


async def test_any_interleaving_leaves_l1_no_more_than_l2(levels: Levels) -> None:
    """Two of put, set and delete overlap in every order of starts and ends; at the end, L1 is empty or as L2."""
    for first, second in itertools.product(("put", "set", "delete"), repeat=2):
        levels = Levels(sync_mode="sync")
        await levels.store.set(KEY, make_entry(b"before"))
        levels.l2.hold_up()
        work = []
        for name in ("get", first, second):
            arguments: tuple[Any, ...] = (make_entry(name.encode()),) if name in ("put", "set") else ()
            arguments = (any_variant,) if name == "get" else arguments
            work.append(asyncio.ensure_future(_await(getattr(levels.store, name)(KEY, *arguments))))
            await asyncio.sleep(0)
        levels.l2.let_go()
        await asyncio.gather(*work)
        stored = await levels.in_l2()
        assert levels.in_l1() == ([] if stored is None else [stored]), (first, second)
        assert (stored is None) == (second == "delete")


async def test_what_is_known_of_a_key_is_forgotten_when_nothing_is_under_way(levels: Levels) -> None:
    for number in range(10):
        await levels.store.set(make_key(number), make_entry())
        await levels.store.get(make_key(number), any_variant)
        await levels.store.delete(make_key(number))
    levels.store.put(KEY, make_entry()).close()  # never awaited
    assert len(levels.store._orders) == 0


# --- cache-aside ------------------------------------------------------------------------------------------------------


@pytest.fixture
def aside() -> Levels:
    return Levels(strategy=CacheStrategy.CACHE_ASIDE, sync_mode="sync")


@pytest.mark.parametrize("how", ["set", "put"])
async def test_cache_aside_writes_l2_drops_l1_and_the_next_read_promotes(how: str, aside: Levels) -> None:
    aside.l1.set_nowait(KEY, make_entry(b"old"))
    aside.did()
    new = make_entry(b"new")
    assert await getattr(aside.store, how)(KEY, new) is True
    assert aside.did() == ["l2 set new", "l1 delete"]
    assert aside.in_l1() == []
    assert await aside.get() == new
    assert aside.in_l1() == [new]


@pytest.mark.parametrize("how", ["set", "put"])
async def test_cache_aside_raises_when_l2_fails_and_l1_does_not_keep_what_is_out_of_date(
    how: str, aside: Levels
) -> None:
    aside.l1.set_nowait(KEY, make_entry(b"old"))
    aside.l2.error = StoreError("gone")
    with pytest.raises(StoreError, match="gone"):
        await getattr(aside.store, how)(KEY, make_entry(b"new"))
    assert aside.in_l1() == []
    assert aside.store.get_stats().l2_errors == 1


async def test_cache_aside_put_is_overtaken_by_a_delete(aside: Levels) -> None:
    rest = aside.store.put(KEY, make_entry())
    await aside.store.delete(KEY)
    assert await rest is False
    assert await aside.in_l2() is None


async def test_cache_aside_does_not_promote_what_was_read_while_a_write_was_on_its_way(aside: Levels) -> None:
    await aside.l2.set(KEY, make_entry(b"old"))
    aside.l2.hold_up("before set", "get")
    writing = asyncio.ensure_future(aside.store.set(KEY, make_entry(b"new")))
    await asyncio.sleep(0)
    reading = asyncio.ensure_future(aside.get())
    await aside.l2.arrived.wait()
    aside.l2.let_go("before set")
    await writing
    aside.l2.let_go("get")
    found = await reading
    assert found is not None
    assert found.response.body == b"old"
    assert aside.in_l1() == []


# --- managing ---------------------------------------------------------------------------------------------------------


async def test_delete_forgets_both_levels_l1_first(levels: Levels) -> None:
    await levels.store.set(KEY, make_entry())
    levels.did()
    assert await levels.store.delete(KEY) is True
    assert levels.did() == ["l1 delete", "l2 delete"]
    levels.l1.set_nowait(KEY, make_entry())
    assert await levels.store.delete(KEY) is True  # only L1 had it
    await levels.l2.set(KEY, make_entry())
    assert await levels.store.delete(KEY) is True  # only L2 had it
    assert await levels.store.delete(KEY) is False


@pytest.mark.parametrize("how", ["delete", "clear", "clear_all"])
async def test_forgetting_raises_when_l2_fails_and_l1_has_forgotten(how: str, levels: Levels) -> None:
    await levels.store.set(KEY, make_entry())
    levels.l2.error = StoreError("gone")
    with pytest.raises(StoreError, match="gone"):
        await getattr(levels.store, how)(*((KEY,) if how == "delete" else ()))
    assert levels.in_l1() == []
    assert levels.store.get_stats().l2_errors == 1


async def test_each_level_can_be_cleared_alone(levels: Levels) -> None:
    entry = make_entry()
    await levels.store.set(KEY, entry)
    assert await levels.store.clear_l1() == 1
    assert (levels.in_l1(), await levels.in_l2()) == ([], entry)
    await levels.get()
    assert await levels.store.clear_l2() == 1
    assert (levels.in_l1(), await levels.in_l2()) == ([entry], None)
    await levels.store.set(KEY, entry)
    assert await levels.store.clear() == 1
    assert (levels.in_l1(), await levels.in_l2()) == ([], None)


async def test_keys_are_those_of_both_levels_each_once(levels: Levels) -> None:
    for number in (1, 2, 3):
        levels.l1.set_nowait(make_key(number), make_entry())
    for number in (2, 3, 4):
        await levels.l2.set(make_key(number), make_entry())
    assert sorted(await listed(levels.store)) == [make_key(number) for number in (1, 2, 3, 4)]
    levels.l2.error = StoreError("gone")
    with pytest.raises(StoreError, match="gone"):
        await listed(levels.store)


async def test_stats_are_of_the_whole_and_the_levels_tell_more(levels: Levels) -> None:
    await levels.store.set(KEY, make_entry())
    await levels.get()
    await levels.l1.clear()
    await levels.get()
    await levels.store.get(make_key("none"), any_variant)
    stats = levels.store.stats()
    assert (stats.hits, stats.misses, stats.sets, stats.errors) == (2, 1, 1, 0)
    assert stats.entries == 2  # one, at both levels
    assert levels.store.l1 is levels.l1
    assert levels.store.l2 is levels.l2
    l1, l2 = levels.l1.stats(), levels.l2.stats()
    assert l1.bytes is not None
    assert l2.bytes is not None
    assert stats.bytes == l1.bytes + l2.bytes
    redis_behind = TwoLevelStore(MemoryStore(), RedisStore("redis://localhost")).stats()
    assert (redis_behind.entries, redis_behind.bytes) == (None, None)


async def test_aclose_closes_both_levels_even_if_one_fails_and_twice_is_harmless(levels: Levels) -> None:
    await levels.store.aclose()
    await levels.store.aclose()
    assert (levels.l1.closed, levels.l2.closed) == (2, 2)
    levels.l1.error = RuntimeError("broken")
    with pytest.raises(RuntimeError, match="broken"):
        await levels.store.aclose()
    assert levels.l2.closed == 3


async def test_the_repr_says_what_it_is_doing() -> None:
    levels = Levels(sync_mode="async")
    await levels.l2.set(KEY, make_entry())
    await levels.get()
    assert repr(levels.store) == (
        "<TwoLevelStore write_through [1 keys under way, 1 queued for l1, 0 for l2 | 0 l2 errors] "
        f"{levels.l1!r} {levels.l2!r}>"
    )


# --- L1 in trouble ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [MemoryError(), StoreError("no"), TypeError("broken getsizeof")])
async def test_a_failing_l1_falls_through_to_l2_and_is_counted(error: Exception, levels: Levels) -> None:
    levels.l1.error = error
    entry = make_entry()
    assert await levels.store.set(KEY, entry) is True
    assert await levels.get() == entry  # read from L2, though neither reading L1 nor promotion works
    assert levels.store.get_stats().l1_errors == 3
    assert await levels.store.put(KEY, entry) is True
    assert await levels.store.delete(KEY) is True
    assert await levels.get() is None
    assert levels.store.get_stats().l1_errors == levels.store.stats().errors == 6


# --- configuration ----------------------------------------------------------------------------------------------------


def test_a_level_that_cannot_work_is_refused() -> None:
    redis_store = RedisStore("redis://localhost")
    with pytest.raises(ConfigurationError, match="l1 must be a store in memory, such as MemoryStore, not RedisStore"):
        TwoLevelStore(redis_store, redis_store)  # type: ignore[arg-type]  # what is tested
    with pytest.raises(ConfigurationError, match="l2 must be a store, such as RedisStore, not str"):
        TwoLevelStore(MemoryStore(), "redis://localhost")  # type: ignore[arg-type]  # what is tested


# --- with a real Redis ------------------------------------------------------------------------------------------------


async def test_what_one_process_stores_another_finds_and_keeps_when_redis_dies(own_redis: RedisServer) -> None:
    # No breaker: each operation is to be refused by the server, and the first after its return to be done.
    one, two = (
        TwoLevelStore(MemoryStore(), RedisStore(own_redis.url, timeout=30.0, breaker_failures=100)) for _ in range(2)
    )
    plain, varied = entry_at_machine_time(), entry_at_machine_time(vary=DE)
    await one.put(KEY, plain)
    await one.put(make_key("v"), varied)
    assert await two.get(KEY, any_variant) == plain
    assert await two.get(make_key("v"), only(DE)) == varied
    await asyncio.sleep(0)
    own_redis.kill()
    assert await two.get(KEY, any_variant) == plain
    assert await two.get(make_key("v"), only(DE)) == varied
    with pytest.raises(StoreError):
        await two.get(make_key("none"), any_variant)
    newer = entry_at_machine_time(b"newer")
    assert await two.set(KEY, newer) is True
    assert await two.get(KEY, any_variant) == newer
    with pytest.raises(StoreError):
        await two.delete(KEY)
    assert two.get_nowait(KEY) is None
    assert two.get_stats().l2_errors == 3
    own_redis.start()
    assert await two.put(KEY, newer) is True
    await one.clear_l1()
    assert await one.get(KEY, any_variant) == newer
    for store in (one, two):
        await store.aclose()
