"""Copying one level of a TwoLevelStore to the other: newest wins, lives are carried over, memory is bounded."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import pytest

from echo_cache.errors import NotStorable, StoreError
from echo_cache.model import CacheKey, Entry
from echo_cache.stores import MemoryStore, RedisStore, SyncProgress, SyncReport, TwoLevelStore
from echo_cache.stores.base import Match
from tests.store_contract import language, make_key
from tests.store_contract import make_entry as entry_at_machine_time
from tests.twolevel_support import DE, FR, KEY, L2, NOW, Levels, ManualClock, make_entry

DIRECTIONS = ("sync_l1_to_l2", "sync_l2_to_l1")


@pytest.fixture(params=["write_through", "cache_aside", "write_back"])
def levels(request: pytest.FixtureRequest) -> Levels:
    return Levels(strategy=request.param, sync_mode="sync")


def ends(levels: Levels, direction: str) -> tuple[MemoryStore, MemoryStore]:
    """Return where it comes from and where it goes."""
    return (levels.l1, levels.l2) if direction == "sync_l1_to_l2" else (levels.l2, levels.l1)


def put(store: MemoryStore, key: CacheKey, entry: Entry) -> None:
    MemoryStore.set_nowait(store, key, entry)


def report(seen: int, copied: int, skipped: int = 0, failed: int = 0) -> SyncReport:
    return SyncReport(seen=seen, copied=copied, skipped=skipped, failed=failed)


@pytest.mark.parametrize("direction", DIRECTIONS)
async def test_all_variants_are_copied_with_their_lives_and_in_their_order(direction: str, levels: Levels) -> None:
    source, target = ends(levels, direction)
    entries = [make_entry(b"all"), *(make_entry(vary=language(b"%d" % number)) for number in range(5))]
    for entry in entries:
        put(source, KEY, entry)
    put(source, make_key("b"), make_entry(vary=DE))
    assert await getattr(levels.store, direction)() == report(seen=7, copied=7)
    assert target.peek(KEY) == source.peek(KEY) == entries[::-1]
    assert target.peek(make_key("b")) == [make_entry(vary=DE)]
    assert await getattr(levels.store, direction)() == report(seen=7, copied=0, skipped=7)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(
    ("theirs", "ours", "wins"),
    [
        pytest.param((b"1", (), 10.0), (b"2", (), 20.0), True, id="newer"),
        pytest.param((b"1", (), 20.0), (b"2", (), 10.0), False, id="older"),
        pytest.param((b"1", (), 10.0), (b"1", (), 10.0), False, id="the same"),
        pytest.param((b"1", DE, 20.0), (b"2", (), 10.0), False, id="for all, older than a variant"),
        pytest.param((b"1", DE, 10.0), (b"2", (), 20.0), True, id="for all, newer than a variant"),
        pytest.param((b"1", (), 20.0), (b"2", DE, 10.0), False, id="a variant, older than the one for all"),
        pytest.param((b"1", FR, 20.0), (b"2", DE, 10.0), True, id="another variant"),
    ],
)
async def test_the_newest_wins(direction: str, theirs: Any, ours: Any, wins: bool, levels: Levels) -> None:
    source, target = ends(levels, direction)
    there, here = (make_entry(body, vary=vary, now=NOW + later) for body, vary, later in (theirs, ours))
    levels.clock.now += 30.0
    put(target, KEY, there)
    put(source, KEY, here)
    assert await getattr(levels.store, direction)() == report(1, int(wins), int(not wins))
    assert (here in target.peek(KEY)) == (wins or here == there)
    assert (there in target.peek(KEY)) == (not wins or {there.vary, here.vary} == {DE, FR})


async def test_each_level_caps_what_it_is_given() -> None:
    levels = Levels(l1_ttl=30.0, l2_ttl=60.0)
    put(levels.l1, KEY, make_entry())  # fresh for 150 s, as nothing but a test would put it there
    put(levels.l2, make_key("b"), make_entry())
    await levels.store.sync_l1_to_l2()
    await levels.store.sync_l2_to_l1()
    assert [entry.fresh_until for entry in levels.l2.peek(KEY)] == [NOW + 60.0]
    (capped,) = levels.in_l1(make_key("b"))
    assert (capped.fresh_until, capped.retain_until) == (NOW + 30.0, NOW + 180.0)


async def test_what_l1_calls_stale_is_fetched_again_while_l2_calls_it_fresh() -> None:
    levels = Levels(l1_ttl=30.0, l2_ttl=100.0)
    await levels.store.set(KEY, make_entry())
    assert await levels.store.sync_l2_to_l1() == report(1, 0, 1)
    levels.clock.now += 40.0
    assert await levels.store.sync_l2_to_l1() == report(1, 1)
    assert [entry.fresh_until for entry in levels.in_l1()] == [NOW + 70.0]


@pytest.mark.parametrize("bound", [{"max_entries": 100}, {"max_bytes": 200_000}], ids=["entries", "bytes"])
async def test_l1_gives_up_nothing_for_what_is_copied(bound: dict[str, int]) -> None:
    clock = ManualClock()
    l1, l2 = MemoryStore(clock=clock, **bound), L2(clock, [])
    store = TwoLevelStore(l1, l2, clock=clock)
    own = [make_key(f"own {number}") for number in range(50)]
    for key in own:
        l1.set_nowait(key, make_entry(b"x" * 500))
    for number in range(1_000):
        put(l2, make_key(number), make_entry(b"x" * 500))
    result = await store.sync_l2_to_l1()
    assert all(l1.peek(key) for key in own)
    assert l1.stats().evictions == 0
    held = l1.stats().entries
    assert held is not None
    assert 50 < held == 50 + result.copied
    assert result.seen < 1_000, "it ends when L1 is full"
    assert store.get_stats().l1_evictions == 0


async def test_one_too_large_for_l1_is_skipped_and_the_rest_is_copied() -> None:
    clock = ManualClock()
    store = TwoLevelStore(MemoryStore(100_000, clock=clock), L2(clock, []), clock=clock)
    assert isinstance(store.l2, L2)
    put(store.l2, KEY, make_entry(b"x" * 90_000))
    put(store.l2, make_key("b"), make_entry())
    assert await store.sync_l2_to_l1() == report(2, 1, 1)


@pytest.mark.parametrize("direction", DIRECTIONS)
async def test_progress_is_told_after_each_page_and_may_wait(direction: str) -> None:
    for wait in (False, True):
        levels = Levels()
        for number in range(150):
            put(ends(levels, direction)[0], make_key(number), make_entry())
        told: list[SyncProgress] = []

        async def note_later(progress: SyncProgress, told: list[SyncProgress] = told) -> None:
            await asyncio.sleep(0)
            told.append(progress)

        result = await getattr(levels.store, direction)(note_later if wait else told.append)
        assert [progress.seen for progress in told] == [64, 128, 150]
        assert dataclasses.astuple(told[-1]) == dataclasses.astuple(result)
        with pytest.raises(dataclasses.FrozenInstanceError):
            told[0].seen = 1  # type: ignore[misc]  # what is tested


@pytest.mark.parametrize("direction", DIRECTIONS)
async def test_progress_that_raises_ends_it(direction: str) -> None:
    levels = Levels()
    for number in range(150):
        put(ends(levels, direction)[0], make_key(number), make_entry())

    def enough(progress: SyncProgress) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await getattr(levels.store, direction)(enough)
    assert ends(levels, direction)[1].stats().entries == 64


async def test_reads_of_a_page_go_out_together() -> None:
    levels = Levels()
    for number in range(100):
        put(levels.l2, make_key(number), make_entry())
    levels.l2.hold_up("get")
    copying = asyncio.ensure_future(levels.store.sync_l2_to_l1())
    await levels.l2.arrived.wait()
    for _ in range(5):
        await asyncio.sleep(0)
    assert levels.did() == ["l2 get"] * 64
    levels.l2.let_go()
    assert (await copying).copied == 100


@pytest.mark.parametrize("direction", DIRECTIONS)
async def test_what_l2_fails_at_is_counted_and_the_rest_is_copied(direction: str, levels: Levels) -> None:
    for number in range(3):
        put(ends(levels, direction)[0], make_key(number), make_entry())
    real = levels.l2.get

    async def get_or_fail(key: CacheKey, match: Match) -> Entry | None:
        if key == make_key(1):
            raise StoreError("gone")
        return await real(key, match)

    levels.l2.get = get_or_fail  # type: ignore[method-assign]  # a fake by half
    assert await getattr(levels.store, direction)() == report(3, 2, failed=1)
    assert levels.store.get_stats().l2_errors == 1


async def test_what_l1_cannot_take_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    levels = Levels()
    put(levels.l2, KEY, make_entry())

    def fail(*_: Any) -> bool:
        raise NotStorable("no")

    monkeypatch.setattr(levels.l1, "add_nowait", fail)
    assert await levels.store.sync_l2_to_l1() == report(1, 0, failed=1)


async def test_l2_that_cannot_be_listed_or_written_at_all_is_said() -> None:
    levels = Levels(strategy="write_back")
    levels.l2.error = StoreError("gone")
    with pytest.raises(StoreError, match="gone"):
        await levels.store.sync_l2_to_l1()
    await levels.store.set(KEY, make_entry())
    with pytest.raises(StoreError, match="gone"):
        await levels.store.sync_l1_to_l2()


@pytest.mark.parametrize("how", ["delete", "clear", "put"])
@pytest.mark.parametrize("direction", DIRECTIONS)
async def test_what_is_changed_meanwhile_is_not_undone(direction: str, how: str, levels: Levels) -> None:
    put(ends(levels, direction)[0], KEY, make_entry(b"copied"))
    levels.l2.hold_up("get")
    copying = asyncio.ensure_future(getattr(levels.store, direction)())
    await levels.l2.arrived.wait()
    newer = make_entry(b"newer", now=NOW + 1.0)
    work = {
        "delete": lambda: levels.store.delete(KEY),
        "clear": levels.store.clear,
        "put": lambda: levels.store.put(KEY, newer),
    }[how]()
    changing = None if work is None else asyncio.ensure_future(work)
    await asyncio.sleep(0)
    levels.l2.let_go()
    await copying
    if changing is not None:
        await changing
    await levels.store.flush()
    wanted = [newer] if how == "put" else []
    assert list(levels.l2.peek(KEY)) == wanted
    assert levels.in_l1() == ([] if levels.config.strategy == "cache_aside" else wanted)


async def test_what_is_queued_to_be_deleted_is_not_copied_to_l1() -> None:
    levels = Levels(strategy="write_back")
    for name in ("a", "b"):
        put(levels.l2, make_key(name), make_entry())
    levels.l2.error = StoreError("gone")
    with pytest.raises(StoreError):
        await levels.store.delete(KEY)
    levels.l2.error = None
    assert await levels.store.sync_l2_to_l1() == report(1, 1)
    assert levels.in_l1() == []


async def test_what_a_queued_write_is_to_replace_is_not_copied_to_l1() -> None:
    levels = Levels(strategy="write_back")
    put(levels.l2, KEY, make_entry(b"old", vary=DE))
    await levels.store.set(KEY, make_entry(b"new", vary=DE))
    levels.l1.delete_nowait(KEY)
    levels.l2.hold_up("before set")
    assert await levels.store.sync_l2_to_l1() == report(1, 0, 1)
    assert levels.in_l1() == []
    levels.l2.let_go()
    await levels.store.aclose()


async def test_levels_are_copied_through_a_real_redis(redis_url: str) -> None:
    one, two = (TwoLevelStore(MemoryStore(), RedisStore(redis_url, timeout=30.0)) for _ in range(2))
    for number in range(100):
        one.l1.set_nowait(make_key(number), entry_at_machine_time(b"%d" % number))
    for vary in (DE, FR):
        one.l1.set_nowait(make_key("varied"), entry_at_machine_time(vary=vary))
    assert await one.sync_l1_to_l2() == report(102, 102)
    assert await one.sync_l1_to_l2() == report(102, 0, 102)
    assert await two.sync_l2_to_l1() == report(102, 102)
    assert {entry.vary for entry in two.l1.peek(make_key("varied"))} == {DE, FR}
    assert [entry.response.body for entry in two.l1.peek(make_key(7))] == [b"7"]
    for store in (one, two):
        await store.aclose()
