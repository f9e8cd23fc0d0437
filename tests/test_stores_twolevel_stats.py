"""What a TwoLevelStore counts: each look-up once, also through the middleware; its soft time-out; L1 in trouble."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from echo_cache import Cache, CacheStats, HTTPCacheMiddleware, MemoryStore, RedisStore, TwoLevelConfig, TwoLevelStore
from echo_cache.errors import StoreError
from echo_cache.model import CacheKey, Entry
from echo_cache.stores.base import Held
from echo_cache.testing import AskedApp, ManualClock, ScriptedApp, call
from tests.servers import RedisServer
from tests.store_contract import any_variant, make_key, only
from tests.store_contract import make_entry as entry_at_machine_time
from tests.twolevel_support import DE, FR, KEY, Levels, make_entry

HOUR = {"cache-control": "max-age=3600"}
STALE = {"cache-control": "max-age=10", "etag": '"1"'}
REVALIDATING = {"cache-control": "max-age=10, stale-while-revalidate=3600", "etag": '"1"'}
VARYING = {"cache-control": "max-age=3600", "vary": "accept-language"}


class Distant(MemoryStore):
    """Memory in the place of L2."""

    remote = True


class Edge:
    """An app behind the middleware and a two-level store, with a clock to turn."""

    def __init__(self, headers: dict[str, str], l1: type[MemoryStore] = MemoryStore, **config: Any) -> None:
        self.clock = ManualClock()
        self.l1, self.l2 = l1(clock=self.clock), Distant(clock=self.clock)
        self.store = TwoLevelStore(self.l1, self.l2, TwoLevelConfig(sync_mode="sync", **config), clock=self.clock)

        async def answer(asked: AskedApp) -> None:
            if "if-none-match" in asked.headers:
                await asked.respond(304, headers)
            else:
                await asked.respond(200, headers, b"hello")

        self.app = ScriptedApp(answer)
        self.cache = Cache(self.store, clock=self.clock)
        self.cached = HTTPCacheMiddleware(self.app, cache=self.cache)

    async def settled(self) -> None:
        """Wait for what goes on behind answers."""
        for _ in range(20):
            await asyncio.sleep(0)
        assert not self.cache._tasks
        assert not len(self.cache.flights)


Do = Callable[[Edge], Any]


async def _plain(edge: Edge) -> str:
    return (await call(edge.cached))["cache-status"]


async def _head(edge: Edge) -> str:
    return (await call(edge.cached, "HEAD"))["cache-status"]


async def _french(edge: Edge) -> str:
    return (await call(edge.cached, headers={"accept-language": "fr"}))["cache-status"]


async def _later(edge: Edge) -> str:
    edge.clock.advance(20.0)
    return (await call(edge.cached))["cache-status"]


async def _from_l2(edge: Edge) -> str:
    await edge.store.clear_l1()
    return (await call(edge.cached))["cache-status"]


async def _fresher_in_l2(edge: Edge) -> str:
    edge.clock.advance(20.0)
    (key,) = [key async for key in edge.l2.keys()]  # noqa: SIM118  # a store is no dictionary
    (entry,) = edge.l2.peek(key)
    now = edge.clock.time()
    await edge.l2.set(key, entry._replace(stored_at=now, generated_at=now, fresh_until=now + 10.0))
    return (await call(edge.cached))["cache-status"]


async def _conditional(edge: Edge) -> str:
    return (await call(edge.cached, headers={"if-none-match": '"other"'}))["cache-status"]


@pytest.mark.parametrize(
    ("headers", "do", "counted", "said"),
    [
        pytest.param(HOUR, _plain, (1, 0, 0), "hit", id="fresh hit"),
        pytest.param(HOUR, _head, (1, 0, 0), "hit", id="HEAD hit"),
        pytest.param(HOUR, _conditional, (1, 0, 0), "hit", id="conditional hit"),
        pytest.param(REVALIDATING, _later, (1, 0, 0), "hit", id="stale-while-revalidate"),
        pytest.param(STALE, _later, (1, 0, 0), "fwd=stale", id="stale and validated"),
        pytest.param(STALE, _fresher_in_l2, (0, 1, 0), "hit", id="stale in L1, fresh in L2"),
        pytest.param(VARYING, _french, (0, 0, 1), "fwd=vary-miss", id="another variant"),
        pytest.param(HOUR, _from_l2, (0, 1, 0), "hit", id="L2 hit"),
    ],
)
async def test_each_request_counts_once(
    headers: dict[str, str], do: Do, counted: tuple[int, int, int], said: str
) -> None:
    edge = Edge(headers)
    assert "fwd=uri-miss" in (await call(edge.cached))["cache-status"]
    await edge.settled()
    stats = edge.store.get_stats()
    assert (stats.l1_hits, stats.l2_hits, stats.total_miss, stats.total_requests) == (0, 0, 1, 1)
    for again in range(2):
        edge.store.reset_stats()
        if do in (_french,) and again:
            break  # by now that variant is there
        assert said in await do(edge)
        await edge.settled()
        stats = edge.store.get_stats()
        assert (stats.l1_hits, stats.l2_hits, stats.total_miss) == counted
        assert stats.total_requests == 1


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_miss_counts_once(method: str) -> None:
    edge = Edge(HOUR)
    await call(edge.cached, method)
    await edge.settled()
    stats = edge.store.get_stats()
    assert (stats.l1_hits, stats.l2_hits, stats.total_miss, stats.total_requests) == (0, 0, 1, 1)


async def test_rates_are_fractions_of_all_look_ups_and_zero_without_any() -> None:
    levels = Levels(sync_mode="sync")
    stats = levels.store.get_stats()
    assert (stats.hit_rate, stats.l1_hit_rate, stats.l2_hit_rate, stats.total_requests) == (0.0, 0.0, 0.0, 0)
    await levels.l2.set(KEY, make_entry())
    for name in ("a", "a", "a", "none"):
        await levels.store.get(make_key(name), any_variant)
    stats = levels.store.get_stats()
    assert (stats.hit_rate, stats.l1_hit_rate, stats.l2_hit_rate) == (0.75, 0.5, 0.25)
    assert stats.total_requests == 4


async def test_a_look_up_that_l2_failed_is_neither_hit_nor_miss() -> None:
    levels = Levels()
    levels.l2.error = StoreError("gone")
    with pytest.raises(StoreError):
        await levels.get()
    stats = levels.store.get_stats()
    assert (stats.total_requests, stats.total_miss, stats.hit_rate, stats.l2_errors) == (1, 0, 0.0, 1)


async def test_what_get_nowait_gave_and_was_not_used_is_no_hit() -> None:
    levels = Levels()
    levels.l1.set_nowait(KEY, make_entry(vary=DE))
    assert levels.store.get_nowait(KEY) is not None
    levels.store.unused()
    assert await levels.get(only(FR)) is None
    stats = levels.store.get_stats()
    assert (stats.l1_hits, stats.total_miss) == (0, 1)
    assert levels.l1.stats().hits == 0


async def test_sizes_are_those_of_now_and_never_a_guess(redis_url: str) -> None:
    store = TwoLevelStore(MemoryStore(), RedisStore(redis_url, timeout=30.0))
    for number in range(3):
        await store.set(make_key(number), entry_at_machine_time())
    await store.l1.delete(make_key(0))
    stats = store.get_stats()
    assert (stats.l1_size, stats.l2_size) == (2, None)
    assert stats.l1_bytes is not None
    assert stats.l1_bytes > 0
    assert (await store.get_full_stats()).l2_size == 3
    await store.aclose()
    in_memory = Levels()
    await in_memory.store.set(KEY, make_entry())
    assert in_memory.store.get_stats().l2_size == 1
    assert (await in_memory.store.get_full_stats()).l2_size == 1


async def test_l2_in_trouble_shows_in_the_statistics(own_redis: RedisServer) -> None:
    store = TwoLevelStore(MemoryStore(), RedisStore(own_redis.url, timeout=30.0, breaker_failures=2))
    assert store.get_stats().breaker == "closed"
    own_redis.kill()
    for _ in range(2):
        with pytest.raises(StoreError):
            await store.get(KEY, any_variant)
    stats = await store.get_full_stats()
    assert stats.l2_size is None
    assert stats.l2_errors == 3
    assert stats.breaker in ("open", "half_open")
    assert Levels().store.get_stats().breaker is None
    await store.aclose()


async def test_time_outs_are_those_that_l2_counts() -> None:
    levels = Levels()
    levels.l2.timeouts = 3  # type: ignore[attr-defined]  # as a RedisStore has
    assert levels.store.get_stats().l2_timeouts == 3
    levels.store.reset_stats()
    assert levels.store.get_stats().l2_timeouts == 0


async def test_evictions_of_l1_are_counted() -> None:
    clock = ManualClock(1_000_000.0)
    store = TwoLevelStore(MemoryStore(max_entries=2, clock=clock), Distant(clock=clock), clock=clock)
    for number in range(5):
        await store.set(make_key(number), make_entry())
    assert store.get_stats().l1_evictions == 3


async def test_reset_begins_all_counters_anew_and_leaves_sizes() -> None:
    levels = Levels(sync_mode="sync", strategy="write_back", async_buffer=1)
    levels.l2.error = StoreError("gone")
    for name in ("a", "b"):  # the second finds no room
        await levels.store.set(make_key(name), make_entry())
        await levels.store.get(make_key(name), any_variant)
    with pytest.raises(StoreError):
        await levels.store.get(make_key("none"), any_variant)
    levels.l1.error = RuntimeError("broken")
    await levels.store.get(make_key("a"), any_variant)
    levels.l1.error = None
    before = levels.store.get_stats()
    assert 0 not in (before.l1_hits, before.l2_hits, before.l1_errors, before.l2_errors, before.dropped)
    levels.store.reset_stats()
    after = levels.store.get_stats()
    sizes = {"l1_size", "l2_size", "l1_bytes", "write_back_queue", "write_back_bytes", "breaker"}
    for field in dataclasses.fields(CacheStats):
        wanted = getattr(before, field.name) if field.name in sizes else 0
        assert getattr(after, field.name) == wanted, field.name
    assert after.write_back_queue == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        after.dropped = 1  # type: ignore[misc]  # what is tested
    assert before.dropped == 1, "a snapshot does not change"


# --- the soft time-out ------------------------------------------------------------------------------------------------


async def stale_levels(**config: Any) -> Levels:
    """A stale entry in L1, a newer one in L2, and L2 is slow to give it."""
    levels = Levels(**{"sync_mode": "sync", "l2_soft_timeout": 0.001, **config})
    levels.l1.set_nowait(KEY, make_entry(b"old"))
    levels.clock.now += 200.0
    await levels.l2.set(KEY, make_entry(b"new", now=levels.clock.now))
    levels.l2.hold_up("get")
    return levels


async def test_a_stale_answer_does_not_wait_for_l2_and_what_comes_late_is_promoted() -> None:
    levels = await stale_levels()
    found = await levels.get()
    assert found is not None
    assert found.response.body == b"old"
    stats = levels.store.get_stats()
    assert (stats.l2_soft_timeouts, stats.l1_hits, stats.l2_hits, stats.l2_errors) == (1, 1, 0, 0)
    levels.l2.let_go()
    await _end(levels)
    assert [entry.response.body for entry in levels.in_l1()] == [b"new"]
    assert levels.store._late == set()


@pytest.mark.parametrize("how", ["delete", "put", "error", "none", "older"])
async def test_what_comes_late_and_is_no_better_is_not_promoted(how: str) -> None:
    levels = await stale_levels()
    if how == "none":
        await MemoryStore.delete(levels.l2, KEY)
    if how == "older":
        levels.l2.set_nowait(KEY, make_entry(b"older", now=levels.clock.now - 500.0, life=900.0))
    await levels.get()
    newest = make_entry(b"newest", now=levels.clock.now)
    if how == "delete":
        await levels.store.delete(KEY)
    if how == "put":
        await levels.store.put(KEY, newest)  # type: ignore[misc]  # write-through has a rest to wait for
    if how == "error":
        levels.l2.error = StoreError("gone")
    levels.l2.let_go()
    await _end(levels)
    wanted = {"delete": [], "put": [b"newest"]}.get(how, [b"old"])
    assert [entry.response.body for entry in levels.in_l1()] == wanted
    assert levels.store.get_stats().l2_errors == (how == "error")


async def test_l2_that_answers_in_time_is_waited_for() -> None:
    levels = await stale_levels(l2_soft_timeout=30.0)
    reading = asyncio.ensure_future(levels.get())
    await levels.l2.arrived.wait()
    levels.l2.let_go()
    found = await reading
    assert found is not None
    assert found.response.body == b"new"
    assert levels.store.get_stats().l2_soft_timeouts == 0


async def test_without_a_stale_answer_l2_is_waited_for() -> None:
    levels = Levels(l2_soft_timeout=0.0)
    await levels.l2.set(KEY, make_entry())
    levels.l2.hold_up("get")
    reading = asyncio.ensure_future(levels.get())
    await levels.l2.arrived.wait()
    await asyncio.sleep(0)
    assert not reading.done()
    levels.l2.let_go()
    assert await reading == make_entry()


async def test_aclose_ends_what_is_late() -> None:
    levels = await stale_levels()
    before = asyncio.all_tasks()
    await levels.get()
    assert asyncio.all_tasks() != before
    await levels.store.aclose()
    assert asyncio.all_tasks() == before
    assert [entry.response.body for entry in levels.in_l1()] == [b"old"]


async def _end(levels: Levels) -> None:
    while levels.store._late:
        await asyncio.wait(set(levels.store._late))
        await asyncio.sleep(0)


# --- L1 in trouble, through the middleware ----------------------------------------------------------------------------


class Deaf(MemoryStore):
    """L1 that cannot be asked."""

    deaf = False

    def get_nowait(self, key: CacheKey) -> Held | None:
        if self.deaf:
            raise RuntimeError("broken")
        return super().get_nowait(key)


class Mute(MemoryStore):
    """L1 that cannot be told."""

    def set_nowait(self, key: CacheKey, entry: Entry) -> bool:
        raise MemoryError

    def delete_nowait(self, key: CacheKey) -> bool:
        raise MemoryError


@pytest.mark.parametrize("headers", [{}, {"cache-control": "max-age=3000"}], ids=["plain", "general path"])
async def test_l1_that_raises_is_passed_by_and_l2_answers(headers: dict[str, str]) -> None:
    edge = Edge(HOUR, Deaf)
    await call(edge.cached)
    await edge.settled()
    edge.l1.deaf = True  # type: ignore[attr-defined]  # Deaf has it
    for _ in range(2):
        response = await call(edge.cached, headers=headers)
        assert (response.status, response.body) == (200, b"hello")
        assert "; hit" in response["cache-status"]
    assert len(edge.app.calls) == 1
    assert edge.store.get_stats().l1_errors >= 2
    assert edge.store.get_stats().l2_hits == 2


@pytest.mark.parametrize("strategy", ["write_through", "write_back", "cache_aside"])
async def test_l1_that_keeps_nothing_is_passed_by_and_l2_answers(strategy: str) -> None:
    edge = Edge(HOUR, Mute, strategy=strategy)
    for _ in range(3):
        response = await call(edge.cached)
        assert (response.status, response.body) == (200, b"hello")
        await edge.settled()
    assert len(edge.app.calls) == 1
    stats = edge.store.get_stats()
    assert stats.l1_errors > 0
    assert stats.l2_hits == 2
    assert (await call(edge.cached, "DELETE")).status == 200
    assert len(edge.app.calls) == 2
    assert "fwd=uri-miss" in (await call(edge.cached))["cache-status"]


async def test_an_eviction_policy_that_cannot_measure_is_passed_by(monkeypatch: pytest.MonkeyPatch) -> None:
    levels = Levels(sync_mode="sync")

    def broken(*_: Any) -> None:
        raise TypeError("broken getsizeof")

    monkeypatch.setattr(levels.l1._at_rest, "put", broken)
    entry = make_entry()
    assert await levels.store.set(KEY, entry) is True
    assert await levels.get() == entry
    assert levels.in_l1() == []
    assert levels.store.get_stats().l1_errors == 2  # the write and the promotion, each once


async def test_an_entry_that_cannot_be_prepared_comes_from_l2(monkeypatch: pytest.MonkeyPatch) -> None:
    levels = Levels(sync_mode="sync")
    entry = make_entry()
    await levels.store.set(KEY, entry)

    def broken(*_: Any) -> None:
        raise ValueError("damaged")

    monkeypatch.setattr("echo_cache.stores.memory.unpack", broken)
    levels.l2.peek = lambda key: [entry]  # type: ignore[method-assign]  # only L1 is damaged

    async def get(key: CacheKey, match: Any) -> Entry | None:
        return entry

    levels.l2.get = get  # type: ignore[method-assign]  # only L1 is damaged
    assert await levels.get() == entry
    assert levels.store.get_stats().l1_errors == 1


@pytest.mark.parametrize("how", ["clear", "clear_all"])
async def test_l1_that_cannot_be_cleared_is_said_and_l2_is_clear(how: str) -> None:
    levels = Levels()
    await levels.store.set(KEY, make_entry())
    levels.l1.error = RuntimeError("broken")
    with pytest.raises(StoreError, match="L1 could not be cleared"):
        await getattr(levels.store, how)()
    assert await levels.in_l2() is None
    assert levels.store.get_stats().l1_errors == 1
