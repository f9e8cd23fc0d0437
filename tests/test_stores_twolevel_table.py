"""
The table of docs/two-levels.md: strategy x sync mode. One test for each cell, which goes through all operations.

Strategies differ in how a write reaches the levels; sync modes in when an L2 hit is in L1, and in nothing else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any

import pytest

from echo_cache.errors import StoreError
from echo_cache.options import CacheStrategy, SyncMode
from echo_cache.stores import MemoryStore, TwoLevelStore
from tests.store_contract import any_variant
from tests.twolevel_support import KEY, Levels, make_entry


@dataclass(frozen=True)
class Row:
    """
    What a strategy does, as the journal of both levels has it.

    set, put: when `set`, `put` have returned; rest: what comes after that, awaited (put's coroutine) or by itself.
    seen_by_others: whether another process finds the entry when `set` has returned.
    failing: what `set` returns when L2 fails, None if it raises. l1_keeps: whether L1 has the entry then.
    l2_learns: whether L2 is told of it when it is back. delete_learns: the same for a delete and a clear.
    """

    set: list[str]
    put: list[str]
    rest: list[str]
    seen_by_others: bool
    failing: bool | None
    l1_keeps: bool
    l2_learns: bool
    delete_learns: bool


ROWS = {
    CacheStrategy.CACHE_ASIDE: Row(
        set=["l2 set new", "l1 delete"],
        put=[],
        rest=["l2 set new", "l1 delete"],
        seen_by_others=True,
        failing=None,
        l1_keeps=False,
        l2_learns=False,
        delete_learns=False,
    ),
    CacheStrategy.WRITE_THROUGH: Row(
        set=["l2 set new", "l1 set"],
        put=["l1 set"],
        rest=["l2 set new"],
        seen_by_others=True,
        failing=True,
        l1_keeps=True,
        l2_learns=False,
        delete_learns=False,
    ),
    CacheStrategy.WRITE_BACK: Row(
        set=["l1 set"],
        put=["l1 set"],
        rest=["l2 set new"],
        seen_by_others=False,
        failing=True,
        l1_keeps=True,
        l2_learns=True,
        delete_learns=True,
    ),
}

CELLS = [
    pytest.param(strategy, sync_mode, id=f"{strategy.value}-{sync_mode.value}")
    for strategy in CacheStrategy
    for sync_mode in SyncMode
]

OLD, NEW = make_entry(b"old"), make_entry(b"new")


def of_another_process(levels: Levels) -> TwoLevelStore:
    """Return a store with memory of its own over the same L2."""
    return TwoLevelStore(MemoryStore(clock=levels.clock), levels.l2, clock=levels.clock)


async def finish(rest: Awaitable[Any] | None) -> None:
    """Let the rest of a write be done: wait for it, or give it the turns of the loop that it needs."""
    if rest is not None:
        await rest
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.mark.parametrize(("strategy", "sync_mode"), CELLS)
async def test_cell(strategy: CacheStrategy, sync_mode: SyncMode) -> None:
    def levels() -> Levels:
        return Levels(strategy=strategy, sync_mode=sync_mode)

    row = ROWS[strategy]
    await check_set(levels(), row)
    await check_put(levels(), row)
    await check_get_of_l1(levels())
    await check_get_of_l2(levels(), promoted_at_once=sync_mode is SyncMode.SYNC)
    await check_get_of_nothing(levels())
    await check_write_that_l2_fails(levels(), row)
    for how in ("delete", "clear"):
        await check_forgetting(levels(), how)
        await check_forgetting_that_l2_fails(levels(), how, row)
    await check_aclose(levels())


async def check_set(levels: Levels, row: Row) -> None:
    assert await levels.store.set(KEY, NEW) is True
    assert levels.did() == row.set
    found = await of_another_process(levels).get(KEY, any_variant)
    assert found == (NEW if row.seen_by_others else None)
    await finish(None)
    assert await of_another_process(levels).get(KEY, any_variant) == NEW


async def check_put(levels: Levels, row: Row) -> None:
    rest = levels.store.put(KEY, NEW)
    assert levels.did() == row.put
    assert await levels.in_l2() is None
    await finish(rest)
    assert levels.did() == row.rest
    assert await of_another_process(levels).get(KEY, any_variant) == NEW


async def check_get_of_l1(levels: Levels) -> None:
    levels.l1.set_nowait(KEY, NEW)
    levels.did()
    assert await levels.get() == NEW
    assert levels.did() == []


async def check_get_of_l2(levels: Levels, *, promoted_at_once: bool) -> None:
    await levels.l2.set(KEY, NEW)
    levels.did()
    assert await levels.get() == NEW
    assert levels.did() == (["l2 get", "l1 set"] if promoted_at_once else ["l2 get"])
    await asyncio.sleep(0)
    assert levels.did() == ([] if promoted_at_once else ["l1 set"])
    levels.l1.delete_nowait(KEY)
    levels.l2.error = StoreError("gone")
    with pytest.raises(StoreError):
        await levels.get()
    levels.l1.set_nowait(KEY, NEW)
    levels.clock.now += 200.0
    assert await levels.get() == NEW  # stale, and better than an error


async def check_get_of_nothing(levels: Levels) -> None:
    assert await levels.get() is None
    assert levels.did() == ["l2 get"]
    assert levels.in_l1() == []


async def check_write_that_l2_fails(levels: Levels, row: Row) -> None:
    await levels.l2.set(KEY, OLD)
    levels.l1.set_nowait(KEY, OLD)
    levels.l2.error = StoreError("gone")
    if row.failing is None:
        with pytest.raises(StoreError, match="gone"):
            await levels.store.set(KEY, NEW)
    else:
        assert await levels.store.set(KEY, NEW) is row.failing
    await finish(None)
    assert levels.in_l1() == ([NEW] if row.l1_keeps else [])
    assert await levels.in_l2() == OLD
    assert levels.store.get_stats().l2_errors == 1
    levels.l2.error = None
    await levels.store.flush()
    assert await levels.in_l2() == (NEW if row.l2_learns else OLD)


async def check_forgetting(levels: Levels, how: str) -> None:
    levels.l1.set_nowait(KEY, OLD)
    await levels.l2.set(KEY, OLD)
    levels.did()
    assert await getattr(levels.store, how)(*([KEY] if how == "delete" else [])) == 1
    assert levels.did() == [f"l1 {how}", f"l2 {how}"]
    assert await of_another_process(levels).get(KEY, any_variant) is None
    assert await levels.get() is None


async def check_forgetting_that_l2_fails(levels: Levels, how: str, row: Row) -> None:
    levels.l1.set_nowait(KEY, OLD)
    await levels.l2.set(KEY, OLD)
    levels.l2.error = StoreError("gone")
    with pytest.raises(StoreError, match="gone"):
        await getattr(levels.store, how)(*([KEY] if how == "delete" else []))
    assert levels.in_l1() == []
    levels.l2.error = None
    assert await levels.get() == (None if row.delete_learns else OLD)
    assert await of_another_process(levels).get(KEY, any_variant) == OLD
    await levels.store.flush()
    assert await of_another_process(levels).get(KEY, any_variant) == (None if row.delete_learns else OLD)


async def check_aclose(levels: Levels) -> None:
    rest = levels.store.put(KEY, NEW)
    if rest is not None:
        await rest
    await levels.store.aclose()
    await levels.store.aclose()
    assert await levels.in_l2() == NEW
    assert (levels.l1.closed, levels.l2.closed) == (2, 2)
    assert await finish(levels.store.set(KEY, OLD)) is None
    assert await levels.in_l2() == OLD
