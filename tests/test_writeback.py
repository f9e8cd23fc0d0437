"""WRITE_BACK: what is queued, in which order and how it is written, its bounds, failures, shutdown, loops and forks."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import threading
import warnings
from typing import Any

import pytest

from echo_cache.errors import NotStorable, StoreError
from echo_cache.model import CacheKey, Entry
from echo_cache.options import TwoLevelConfig
from echo_cache.stores import MemoryStore, RedisStore, TwoLevelStore
from tests.servers import RedisServer
from tests.store_contract import any_variant, listed, make_key, only
from tests.store_contract import make_entry as entry_at_machine_time
from tests.twolevel_support import DE, FR, KEY, Levels, make_entry

OTHER = make_key("other")


def back(**config: Any) -> Levels:
    return Levels(strategy="write_back", sync_mode="sync", **config)


@pytest.fixture
def levels() -> Levels:
    return back()


def l2(levels: Levels) -> list[str]:
    return [done for done in levels.did() if done.startswith("l2")]


async def turns(count: int = 10) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


class Failing:
    """Lets L2 fail for *keys* only, with *error*."""

    def __init__(self, levels: Levels, error: Exception, *keys: CacheKey) -> None:
        self.tried = 0
        real = levels.l2.set

        async def set_or_fail(key: CacheKey, entry: Entry) -> bool:
            if key in keys:
                self.tried += 1
                raise error
            return await real(key, entry)

        levels.l2.set = set_or_fail  # type: ignore[method-assign]  # a fake by half


# --- the queue --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["set", "put"])
async def test_a_write_is_in_l1_at_once_and_in_l2_soon(how: str, levels: Levels) -> None:
    entry = make_entry()
    if how == "set":
        assert await levels.store.set(KEY, entry) is True
    else:
        assert levels.store.put(KEY, entry) is None
    assert levels.did() == ["l1 set"]
    assert levels.in_l1() == [entry]
    stats = levels.store.get_stats()
    assert stats.write_back_queue == 1
    assert stats.write_back_bytes > len(entry.response.body)
    await levels.store.flush()
    assert await levels.in_l2() == entry
    stats = levels.store.get_stats()
    assert (stats.write_back_queue, stats.write_back_bytes, stats.dropped) == (0, 0, 0)


async def test_what_is_queued_is_written_without_being_asked_to(levels: Levels) -> None:
    await levels.store.set(KEY, make_entry())
    await levels.l2.arrived.wait()
    assert l2(levels) == ["l2 set body"]


async def test_writes_of_one_key_are_one_write_of_the_last(levels: Levels) -> None:
    for number in range(50):
        await levels.store.set(KEY, make_entry(b"%d" % number))
    await levels.store.flush()
    assert l2(levels) == ["l2 set 49"]


async def test_variants_are_queued_beside_each_other_and_an_entry_for_all_takes_their_place(levels: Levels) -> None:
    for body, vary in ((b"de", DE), (b"fr", FR), (b"de again", DE)):
        await levels.store.set(KEY, make_entry(body, vary=vary))
    assert levels.store.get_stats().write_back_queue == 2
    await levels.store.flush()
    assert l2(levels) == ["l2 set fr", "l2 set de again"]
    for body, vary in ((b"de", DE), (b"all", ()), (b"fr", FR)):
        await levels.store.set(KEY, make_entry(body, vary=vary))
    await levels.store.flush()
    assert l2(levels) == ["l2 set all", "l2 set fr"]


async def test_a_batch_is_64_keys_in_one_turn_of_the_loop(levels: Levels) -> None:
    levels.l2.hold_up("set")
    for number in range(100):
        await levels.store.set(make_key(number), make_entry())
    await levels.l2.arrived.wait()
    assert len(l2(levels)) == 64
    levels.l2.let_go()
    await levels.store.flush()
    assert len(l2(levels)) == 36


async def test_a_delete_takes_the_place_of_what_is_queued_and_is_awaited(levels: Levels) -> None:
    await levels.l2.set(KEY, make_entry(b"before"))
    levels.did()
    await levels.store.set(KEY, make_entry(vary=DE))
    assert await levels.store.delete(KEY) is True
    assert l2(levels) == ["l2 delete"]
    assert await levels.in_l2() is None
    assert await levels.store.delete(KEY) is False


async def test_a_delete_waits_for_the_write_in_flight_and_a_write_for_the_delete(levels: Levels) -> None:
    levels.l2.hold_up("set", "delete")
    await levels.store.set(KEY, make_entry(b"old"))
    await levels.l2.arrived.wait()
    deleting = asyncio.ensure_future(levels.store.delete(KEY))
    await turns()
    await levels.store.set(KEY, make_entry(b"new"))
    await turns()
    assert l2(levels) == ["l2 set old"]
    levels.l2.let_go("set")
    await turns()
    assert l2(levels) == ["l2 delete"]
    levels.l2.let_go()
    assert await deleting is True
    await levels.store.flush()
    assert l2(levels) == ["l2 set new"]


async def test_deletes_at_once_go_out_in_one_turn(levels: Levels) -> None:
    levels.l2.hold_up("delete")
    deleting = asyncio.gather(*(levels.store.delete(make_key(number)) for number in range(20)))
    await levels.l2.arrived.wait()
    assert len(l2(levels)) == 20
    levels.l2.let_go()
    await deleting


async def test_a_clear_takes_the_place_of_everything_and_waits_for_what_is_in_flight(levels: Levels) -> None:
    levels.l2.hold_up("set")
    await levels.store.set(KEY, make_entry())
    await levels.l2.arrived.wait()
    await levels.store.set(OTHER, make_entry())
    clearing = asyncio.ensure_future(levels.store.clear())
    await turns()
    assert l2(levels) == ["l2 set body"]
    levels.l2.let_go()
    assert await clearing is None  # L2 may have had what was queued, or not
    assert l2(levels) == ["l2 clear"]
    assert await levels.in_l2() is None
    await levels.l2.set(KEY, make_entry())
    assert await levels.store.clear() == 1


# --- reading what is queued -------------------------------------------------------------------------------------------


async def test_what_is_queued_answers_also_when_l1_has_given_it_up(levels: Levels) -> None:
    levels.l2.hold_up("set")
    entry = make_entry(b"de", vary=DE)
    await levels.store.set(KEY, entry)
    await levels.l2.arrived.wait()
    levels.l1.delete_nowait(KEY)
    levels.did()
    assert await levels.store.get(KEY, only(DE)) == entry
    assert l2(levels) == []
    assert levels.in_l1() == [entry]  # promoted again
    assert await levels.store.get(KEY, only(FR)) is None
    assert l2(levels) == ["l2 get"]
    assert levels.store.get_stats().l2_hits == 1
    levels.l2.let_go()


@pytest.mark.parametrize("how", ["delete", "clear"])
async def test_what_is_to_be_forgotten_is_a_miss_and_l2_is_not_asked(how: str, levels: Levels) -> None:
    await levels.l2.set(KEY, make_entry())
    levels.l2.error = StoreError("gone")
    with pytest.raises(StoreError, match="gone"):
        await getattr(levels.store, how)(*([KEY] if how == "delete" else []))
    levels.did()
    assert await levels.get() is None
    assert l2(levels) == []
    levels.l2.error = None
    assert await listed(levels.store) == []
    await levels.store.flush()
    assert await levels.in_l2() is None


async def test_what_was_set_after_a_delete_that_waits_is_found(levels: Levels) -> None:
    await levels.l2.set(KEY, make_entry(b"fr", vary=FR))
    levels.l2.error = StoreError("gone")
    with pytest.raises(StoreError):
        await levels.store.delete(KEY)
    entry = make_entry(b"de", vary=DE)
    await levels.store.set(KEY, entry)
    levels.l1.delete_nowait(KEY)
    assert await levels.store.get(KEY, only(DE)) == entry
    assert await levels.store.get(KEY, only(FR)) is None
    levels.l2.error = None
    await levels.store.flush()
    assert levels.l2.peek(KEY) == [entry]


async def test_an_entry_that_outlives_itself_in_the_queue_is_not_written_and_takes_what_it_replaced_with_it(
    levels: Levels,
) -> None:
    await levels.l2.set(KEY, make_entry(b"old", life=1e6))
    levels.l2.error = StoreError("gone")
    await levels.store.set(KEY, make_entry(b"new", life=10.0))
    with pytest.raises(StoreError, match="1 operations are still queued: gone"):
        await levels.store.flush()
    levels.clock.now += 11.0
    levels.l2.error = None
    assert await levels.get() is None
    levels.did()
    await levels.store.flush()
    assert l2(levels) == ["l2 delete"]
    assert await levels.in_l2() is None
    assert levels.store.get_stats().dropped == 1


async def test_keys_has_what_is_queued(levels: Levels) -> None:
    levels.l2.hold_up("set")
    await levels.store.set(KEY, make_entry())
    levels.l1.delete_nowait(KEY)
    assert await listed(levels.store) == [KEY]
    levels.l2.let_go()


# --- L2 in trouble ----------------------------------------------------------------------------------------------------


async def test_a_write_that_fails_is_tried_again_until_it_succeeds_and_nothing_waits_in_a_task(levels: Levels) -> None:
    levels.l2.error = StoreError("gone")
    before = asyncio.all_tasks()
    await levels.store.set(KEY, make_entry())
    await levels.l2.arrived.wait()
    await turns()
    assert asyncio.all_tasks() == before
    stats = levels.store.get_stats()
    assert (stats.write_back_queue, stats.l2_errors, stats.dropped) == (1, 1, 0)
    levels.l2.error = None
    levels.l2.arrived.clear()
    await levels.l2.arrived.wait()
    await turns()
    assert await levels.in_l2() is not None
    assert levels.store.get_stats().write_back_queue == 0


async def test_what_is_newer_takes_the_place_of_what_failed(levels: Levels) -> None:
    levels.l2.hold_up("set")
    await levels.store.set(KEY, make_entry(b"old"))
    await levels.l2.arrived.wait()
    await levels.store.set(KEY, make_entry(b"new"))
    levels.l2.error = StoreError("late")
    levels.l2.let_go()
    await turns()
    levels.l2.error = None
    levels.did()
    await levels.store.flush()
    assert l2(levels) == ["l2 set new"]


async def test_what_cannot_be_kept_is_dropped_at_once_and_counted(levels: Levels) -> None:
    failing = Failing(levels, NotStorable("no bytes for it"), KEY)
    await levels.store.set(KEY, make_entry())
    await levels.store.set(OTHER, make_entry())
    await levels.store.flush()
    stats = levels.store.get_stats()
    assert (failing.tried, stats.write_back_queue, stats.dropped, stats.l2_errors) == (1, 0, 1, 1)
    assert await levels.in_l2(OTHER) is not None


async def test_what_l2_refuses_is_counted(levels: Levels) -> None:
    await levels.store.set(KEY, make_entry(b"x" * 33 * 2**20))
    await levels.store.flush()
    assert await levels.in_l2() is None
    assert levels.store.get_stats().dropped == 1


@pytest.mark.parametrize("error", [StoreError("not this one"), RuntimeError("a bug of L2")])
async def test_a_write_that_always_fails_does_not_block_those_behind_it(error: Exception, levels: Levels) -> None:
    poisoned = [make_key(f"poisoned {number}") for number in range(70)]
    Failing(levels, error, *poisoned)
    for key in [*poisoned, KEY]:
        await levels.store.set(key, make_entry())
    for _ in range(2):  # a batch of nothing but the poisoned first
        with pytest.raises(StoreError, match="still queued"):
            await levels.store.flush()
    assert await levels.in_l2() is not None
    assert levels.store.get_stats().write_back_queue == 70


async def test_variants_go_past_one_that_always_fails(levels: Levels) -> None:
    real = levels.l2.set

    async def set_or_fail(key: CacheKey, entry: Entry) -> bool:
        if entry.vary == DE:
            raise StoreError("not this one")
        return await real(key, entry)

    levels.l2.set = set_or_fail  # type: ignore[method-assign]  # a fake by half
    for vary in (DE, FR):
        await levels.store.set(KEY, make_entry(vary=vary))
    for _ in range(2):
        with pytest.raises(StoreError, match="still queued"):
            await levels.store.flush()
    assert [entry.vary for entry in levels.l2.peek(KEY)] == [FR]


async def test_a_delete_raises_when_l2_fails_and_is_tried_again_all_the_same(levels: Levels) -> None:
    await levels.l2.set(KEY, make_entry())
    levels.l2.error = StoreError("gone")
    with pytest.raises(StoreError, match="gone"):
        await levels.store.delete(KEY)
    assert levels.store.get_stats().l2_errors == 1
    levels.l2.error = None
    levels.l2.arrived.clear()
    await levels.l2.arrived.wait()
    assert await levels.in_l2() is None


async def test_a_caller_that_leaves_stops_nothing(levels: Levels) -> None:
    await levels.l2.set(KEY, make_entry())
    levels.l2.hold_up("delete")
    deleting = asyncio.ensure_future(levels.store.delete(KEY))
    await levels.l2.arrived.wait()
    deleting.cancel()
    await turns()
    assert await levels.get() is None
    levels.l2.let_go()
    await levels.store.flush()
    assert await levels.in_l2() is None
    assert levels.store.get_stats().write_back_queue == 0


# --- bounds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bound",
    [pytest.param({"async_buffer": 2}, id="entries"), pytest.param({"async_buffer_bytes": 3_000}, id="bytes")],
)
async def test_a_full_queue_writes_directly_in_order(bound: dict[str, int]) -> None:
    levels = back(**bound)
    levels.l2.hold_up("set")
    for name in ("a", "b"):
        assert levels.store.put(make_key(name), make_entry(name.encode())) is None
    rest = levels.store.put(make_key("c"), make_entry(b"c"))
    assert rest is not None
    writing = asyncio.ensure_future(rest)
    await levels.l2.arrived.wait()
    await turns()
    assert levels.store.get_stats().write_back_queue == 2
    assert not writing.done()
    levels.l2.let_go()
    assert await writing is True
    assert await levels.in_l2(make_key("c")) is not None
    assert levels.store.get_stats().dropped == 0


async def test_a_direct_write_waits_for_what_is_queued_for_its_key() -> None:
    levels = back(async_buffer=1)
    levels.l2.hold_up("set")
    await levels.store.set(KEY, make_entry(b"de", vary=DE))
    writing = asyncio.ensure_future(levels.store.set(KEY, make_entry(b"fr", vary=FR)))
    await levels.l2.arrived.wait()
    await turns()
    assert l2(levels) == ["l2 set de"]
    levels.l2.let_go()
    assert await writing is True
    assert l2(levels) == ["l2 set fr"]


async def test_a_write_of_what_is_queued_already_needs_no_more_room() -> None:
    levels = back(async_buffer=1)
    for number in range(3):
        assert levels.store.put(KEY, make_entry(b"%d" % number)) is None
    await levels.store.flush()
    assert l2(levels) == ["l2 set 2"]


async def test_a_direct_write_that_fails_is_counted_and_l1_keeps_it() -> None:
    levels = back(async_buffer=1)
    levels.l2.error = StoreError("gone")
    await levels.store.set(OTHER, make_entry())
    entry = make_entry()
    assert await levels.store.set(KEY, entry) is True
    assert levels.in_l1() == [entry]
    stats = levels.store.get_stats()
    assert (stats.dropped, stats.write_back_queue) == (1, 1)
    levels.l2.error = None
    await levels.store.flush()
    assert (await levels.in_l2(), await levels.in_l2(OTHER)) == (None, make_entry())


async def test_a_direct_write_that_nobody_waits_for_is_written_all_the_same() -> None:
    levels = back(async_buffer_bytes=1)
    rest = levels.store.put(KEY, make_entry())
    assert rest is not None
    rest.close()
    await levels.l2.arrived.wait()
    assert await levels.in_l2() is not None


async def test_a_delete_that_finds_no_room_is_tried_and_not_kept() -> None:
    levels = back(async_buffer=1)
    await levels.l2.set(KEY, make_entry())
    levels.l2.error = StoreError("gone")
    await levels.store.set(OTHER, make_entry())
    with pytest.raises(StoreError, match="gone"):
        await levels.store.delete(KEY)
    stats = levels.store.get_stats()
    assert (stats.dropped, stats.write_back_queue) == (1, 1)
    levels.l2.error = None
    assert await levels.store.delete(KEY) is True
    assert await levels.in_l2() is None


# --- shutdown ---------------------------------------------------------------------------------------------------------


async def test_aclose_writes_what_is_queued_and_twice_is_harmless(levels: Levels) -> None:
    for number in range(200):
        await levels.store.set(make_key(number), make_entry())
    await levels.store.aclose()
    assert len([done for done in l2(levels) if done.startswith("l2 set")]) == 200
    await levels.store.aclose()
    assert levels.store.get_stats().dropped == 0


async def test_aclose_goes_on_trying_until_l2_is_back(levels: Levels) -> None:
    levels.l2.error = StoreError("gone")
    await levels.store.set(KEY, make_entry())
    closing = asyncio.ensure_future(levels.store.aclose())
    await levels.l2.arrived.wait()
    await turns()
    assert not closing.done()
    levels.l2.error = None
    await closing
    assert await levels.in_l2() is not None
    assert levels.store.get_stats().dropped == 0


@pytest.mark.parametrize("trouble", ["fails", "hangs"])
async def test_what_is_not_drained_in_time_is_counted_and_logged_once(
    trouble: str, caplog: pytest.LogCaptureFixture
) -> None:
    levels = back(drain_timeout=0.01)
    before = asyncio.all_tasks()
    keys = [make_key(number) for number in range(3)]
    if trouble == "hangs":
        levels.l2.hold_up("set")
    else:
        Failing(levels, StoreError("gone"), *keys)
    for key in keys:
        await levels.store.set(key, make_entry())
    with caplog.at_level(logging.WARNING, "echo_cache"):
        await levels.store.aclose()
        await levels.store.aclose()
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [
        "3 writes to the second level were lost"
    ]
    stats = levels.store.get_stats()
    assert (stats.dropped, stats.write_back_queue, stats.write_back_bytes) == (3, 0, 0)
    assert asyncio.all_tasks() == before


async def test_who_waits_for_what_is_lost_at_shutdown_is_told(levels: Levels) -> None:
    levels = back(drain_timeout=0.0)
    levels.l2.hold_up("delete")
    deleting = asyncio.ensure_future(levels.store.delete(KEY))
    await levels.l2.arrived.wait()
    await levels.store.aclose()
    with pytest.raises(StoreError, match="closed before"):
        await deleting


async def test_a_write_after_aclose_goes_to_l2_directly(levels: Levels) -> None:
    await levels.store.aclose()
    entry = make_entry()
    assert await levels.store.set(KEY, entry) is True
    assert await levels.in_l2() == entry
    assert await levels.store.delete(KEY) is True
    assert await levels.in_l2() is None
    levels.l2.error = StoreError("gone")
    for how in (levels.store.delete(KEY), levels.store.clear()):
        with pytest.raises(StoreError, match="gone"):
            await how
    assert levels.store.get_stats().write_back_queue == 0


# --- loops and processes ----------------------------------------------------------------------------------------------


def test_the_next_loop_after_aclose_queues_again() -> None:
    levels = back()
    asyncio.run(levels.store.aclose())

    async def go_on() -> None:
        assert levels.store.put(KEY, make_entry()) is None
        await levels.store.aclose()
        assert await levels.in_l2() is not None

    asyncio.run(go_on())


@pytest.mark.parametrize("debug", [False, True])
def test_a_loop_that_ends_leaves_nothing_behind_and_the_next_takes_the_queue_over(
    debug: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR, "asyncio"), warnings.catch_warnings():
        warnings.simplefilter("error")
        for stuck in ("fails", "hangs"):
            levels = asyncio.run(_leave(stuck), debug=debug)

            async def go_on(levels: Levels) -> None:
                levels.l2.gates = {name: asyncio.Event() for name in levels.l2.gates}
                levels.l2.let_go()
                levels.l2.error = None
                assert await levels.store.get(KEY, any_variant) is not None
                assert levels.store.get_stats().write_back_queue == 2
                await levels.store.flush()
                assert await levels.in_l2() is not None
                await levels.store.aclose()

            asyncio.run(go_on(levels), debug=debug)
            assert levels.store.get_stats().dropped == 0
        gc.collect()
    assert caplog.records == []


async def _leave(stuck: str) -> Levels:
    levels = back()
    if stuck == "fails":
        levels.l2.error = StoreError("gone")
    else:
        levels.l2.hold_up()
    await levels.store.set(KEY, make_entry())
    await levels.store.set(OTHER, make_entry())
    await levels.l2.arrived.wait()
    await turns()
    levels.l1.delete_nowait(KEY)
    return levels


async def test_a_second_running_loop_gets_a_clear_error(levels: Levels) -> None:
    await levels.store.set(KEY, make_entry())
    said: list[str] = []

    async def use() -> None:
        for work in (
            lambda: levels.store.set(KEY, make_entry()),
            lambda: levels.store.get(OTHER, any_variant),
            lambda: levels.store.delete(KEY),
            levels.store.clear,
            levels.store.clear_l2,
            levels.store.flush,
        ):
            with pytest.raises(StoreError, match="another event loop, which is running") as raised:
                await work()
            said.append(str(raised.value))
        with pytest.raises(StoreError, match="another event loop"):
            levels.store.put(KEY, make_entry())
        assert await levels.store.get(KEY, any_variant) is not None  # in memory

    thread = threading.Thread(target=lambda: asyncio.run(use()))
    thread.start()
    await asyncio.to_thread(thread.join)
    assert len(said) == 6
    assert levels.in_l1() == [make_entry()]
    await levels.store.flush()
    assert await levels.in_l2() == make_entry()


def test_a_forked_child_forgets_the_queue_that_its_parent_writes() -> None:
    async def queue() -> Levels:
        levels = back()
        levels.l2.error = StoreError("gone")
        await levels.store.set(KEY, make_entry())
        with pytest.raises(StoreError):
            await levels.store.delete(OTHER)
        levels.l2.error = None
        return levels

    async def in_child(levels: Levels) -> bool:
        await levels.store.set(make_key("child"), make_entry())
        await levels.store.flush()
        return await levels.in_l2() is None and await levels.in_l2(make_key("child")) is not None

    levels = asyncio.run(queue())
    child = os.fork()
    if child == 0:
        well = False
        try:
            well = asyncio.run(in_child(levels))
        finally:
            os._exit(0 if well else 1)
    _, status = os.waitpid(child, 0)
    assert status == 0

    async def in_parent() -> None:
        await levels.store.flush()
        assert await levels.in_l2() is not None

    asyncio.run(in_parent())


# --- with a real Redis ------------------------------------------------------------------------------------------------


async def test_what_was_written_while_redis_was_away_is_there_when_it_is_back(own_redis: RedisServer) -> None:
    def make_store() -> TwoLevelStore:
        redis = RedisStore(own_redis.url, timeout=30.0, breaker_failures=100)
        return TwoLevelStore(MemoryStore(), redis, TwoLevelConfig(strategy="write_back"))

    one, two = make_store(), make_store()
    kept, gone = entry_at_machine_time(b"kept"), entry_at_machine_time(b"gone")
    await one.set(make_key("gone"), gone)
    await one.flush()
    assert await two.get(make_key("gone"), any_variant) == gone
    own_redis.kill()
    await one.set(KEY, kept)
    with pytest.raises(StoreError):
        await one.delete(make_key("gone"))
    assert await one.get(make_key("gone"), any_variant) is None
    own_redis.start()
    await one.aclose()
    await two.clear_l1()
    assert await two.get(KEY, any_variant) == kept
    assert await two.get(make_key("gone"), any_variant) is None
    await two.aclose()


async def test_the_repr_says_how_much_is_queued(levels: Levels) -> None:
    await levels.store.set(KEY, make_entry())
    assert "0 queued for l1, 1 for l2 | 0 l2 errors" in repr(levels.store)
    assert repr(levels.store._queue).startswith("<WriteBack 1/1000 operations 1,")
    await levels.store.aclose()
