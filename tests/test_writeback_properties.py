"""
Any interleaving of what is asked of a WRITE_BACK store with what goes wrong at L2 ends with L2 as it was told to be.

The event loop's time is a number and L2 does what the machine says, so a run that fails can be run again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, ClassVar

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from echo_cache.errors import StoreError
from echo_cache.model import CacheKey, Entry, Vary
from echo_cache.options import TwoLevelConfig
from echo_cache.stores import MemoryStore, TwoLevelStore
from tests.store_contract import make_key, only
from tests.twolevel_support import DE, FR, ManualClock, make_entry

KEYS = [make_key(name) for name in "abc"]
VARIES: list[Vary] = [(), DE, FR]
MODES = ("well", "fail", "fail after it was done", "hang before", "hang after")

keys = st.sampled_from(KEYS)
varies = st.sampled_from(VARIES)


class TimedLoop(asyncio.SelectorEventLoop):
    """A loop whose time is *now*."""

    now = 0.0

    def time(self) -> float:
        return self.now


class OddL2(MemoryStore):
    """L2 in one of MODES. It notices when two operations of one key are there at once."""

    remote = True

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock=clock)
        self.mode = "well"
        self.held: list[asyncio.Future[bool]] = []
        self.here: list[CacheKey | None] = []

    async def _do(self, key: CacheKey | None, work: Callable[[], Any]) -> Any:
        assert key not in self.here
        assert None not in self.here, "a clear stands alone"
        assert key is not None or not self.here, "a clear stands alone"
        self.here.append(key)
        try:
            mode = self.mode
            if mode == "fail" or (mode == "hang before" and not await self._released()):
                raise StoreError("L2 failed")
            result = work()
            if mode == "fail after it was done" or (mode == "hang after" and not await self._released()):
                raise StoreError("L2 failed after it was done")
            return result
        finally:
            self.here.remove(key)

    async def _released(self) -> bool:
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.held.append(future)
        return await future

    async def get(self, key: CacheKey, match: Any) -> Entry | None:
        if self.mode.startswith("fail"):
            raise StoreError("L2 failed")
        return next((entry for entry in self.peek(key) if match(entry.vary)), None)

    async def set(self, key: CacheKey, entry: Entry) -> bool:
        return bool(await self._do(key, lambda: self.set_nowait(key, entry)))

    async def delete(self, key: CacheKey) -> bool:
        return bool(await self._do(key, lambda: self.delete_nowait(key)))

    async def clear(self) -> int:
        def work() -> int:
            return sum(self.delete_nowait(key) for key in KEYS)

        return int(await self._do(None, work))


class WriteBackMachine(RuleBasedStateMachine):
    """*told* is what each key was last told to hold; nothing is ever refused for want of room."""

    config: ClassVar[dict[str, Any]] = {}

    def __init__(self) -> None:
        super().__init__()
        self.loop = TimedLoop()
        clock = ManualClock()
        self.l1, self.l2 = MemoryStore(clock=clock), OddL2(clock)
        config = TwoLevelConfig(strategy="write_back", sync_mode="sync", **self.config)
        self.store = TwoLevelStore(self.l1, self.l2, config, clock=clock)
        self.told: dict[CacheKey, dict[Vary, int]] = {key: {} for key in KEYS}
        self.number = 0
        self.tasks: list[asyncio.Task[Any]] = []

    def turns(self, count: int = 1) -> None:
        async def wait() -> None:
            for _ in range(count):
                await asyncio.sleep(0)

        self.loop.run_until_complete(wait())

    def start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = self.loop.create_task(work)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        self.tasks.append(task)
        self.turns()
        return task

    # --- what is asked ------------------------------------------------------------------------------------------------

    @rule(key=keys, vary=varies, by_put=st.booleans())
    def set(self, key: CacheKey, vary: Vary, by_put: bool) -> None:
        self.number += 1
        if not vary:
            self.told[key].clear()
        self.told[key][vary] = self.number
        entry = make_entry(b"%d" % self.number, vary=vary, now=1_000_000.0 + self.number, life=1e6)

        async def put() -> None:
            rest = self.store.put(key, entry)
            if rest is not None:
                await rest

        self.start(put() if by_put else self.store.set(key, entry))

    @rule(key=keys)
    def delete(self, key: CacheKey) -> None:
        self.told[key].clear()
        self.note(self.start(self.store.delete(key)), [key])

    @rule()
    def clear(self) -> None:
        for told in self.told.values():
            told.clear()
        self.note(self.start(self.store.clear()), KEYS)

    @rule()
    def flush_that_may_fail(self) -> None:
        self.start(self.store.flush())

    @rule()
    def l1_gives_everything_up(self) -> None:
        for key in KEYS:
            self.l1.delete_nowait(key)

    # --- what goes wrong ----------------------------------------------------------------------------------------------

    @rule(mode=st.sampled_from(MODES))
    def l2_is(self, mode: str) -> None:
        self.l2.mode = mode

    @rule(well=st.booleans(), place=st.integers(0, 5))
    def one_that_hangs_goes_on(self, well: bool, place: int) -> None:
        if self.l2.held:
            self.l2.held.pop(place % len(self.l2.held)).set_result(well)
            self.turns(2)

    @rule(place=st.integers(0, 5))
    def a_caller_leaves(self, place: int) -> None:
        waiting = [task for task in self.tasks if not task.done()]
        if waiting:
            waiting[place % len(waiting)].cancel()
            self.turns(2)

    @rule(count=st.integers(1, 6), seconds=st.sampled_from([0.0, 0.06, 2.0]))
    def time_goes_by(self, count: int, seconds: float) -> None:
        self.loop.now += seconds
        self.turns(count)

    # --- what must hold -----------------------------------------------------------------------------------------------

    @invariant()
    def what_was_deleted_is_gone_for_readers_here(self) -> None:
        for key in KEYS:
            for vary in VARIES:
                self.check_found(key, vary, self.read(key, vary))

    def check_found(self, key: CacheKey, vary: Vary, found: int | str | None) -> None:
        """Readers here see what was told, at every moment."""
        assert found in ("failed", self.told[key].get(vary)), (key, vary)

    def check_written(self) -> None:
        """Readers elsewhere see what was told, once it is written."""
        assert self.in_l2() == self.told

    def note(self, task: asyncio.Task[Any], keys: list[CacheKey]) -> None:
        """Note that *task* is to forget *keys*."""

    def read(self, key: CacheKey, vary: Vary) -> int | str | None:
        try:
            found = self.loop.run_until_complete(self.store.get(key, only(vary)))
        except StoreError:
            return "failed"
        return None if found is None else int(found.response.body)

    @rule()
    def flush_that_succeeds(self) -> None:
        self.recover()
        self.loop.run_until_complete(self.store.flush())
        self.turns(5)
        assert self.store.get_stats().write_back_queue == 0
        self.check_written()

    @rule()
    def l2_recovers_and_time_goes_by(self) -> None:
        self.recover()
        for _ in range(5):
            self.loop.now += 1.5
            self.turns(40)
        assert self.store.get_stats().write_back_queue == 0
        self.check_written()

    def recover(self) -> None:
        self.l2.mode = "well"
        while self.l2.held:
            self.l2.held.pop().set_result(True)
            self.turns(3)

    def in_l2(self) -> dict[CacheKey, dict[Vary, int]]:
        return {key: {entry.vary: int(entry.response.body) for entry in self.l2.peek(key)} for key in KEYS}

    def teardown(self) -> None:
        self.flush_that_succeeds()
        self.loop.run_until_complete(self.store.aclose())
        self.turns(2)
        assert all(task.done() for task in self.tasks)
        assert not asyncio.all_tasks(self.loop)
        stats = self.store.get_stats()
        assert (stats.write_back_queue, stats.write_back_bytes) == (0, 0)
        self.loop.close()


class CrampedMachine(WriteBackMachine):
    """
    As above, with room for two operations: what finds no room may be lost while L2 fails, and may be told so.

    What holds all the same: nothing that was deleted comes back once the delete is acknowledged, and L2 never has what
    is older than that.
    """

    config: ClassVar[dict[str, Any]] = {"async_buffer": 2}

    def __init__(self) -> None:
        super().__init__()
        self.gone = dict.fromkeys(KEYS, 0)

    def note(self, task: asyncio.Task[Any], keys: list[CacheKey]) -> None:
        number = self.number

        def acknowledged(done: asyncio.Task[Any]) -> None:
            if not done.cancelled() and done.exception() is None:
                for key in keys:
                    self.gone[key] = max(self.gone[key], number)

        task.add_done_callback(acknowledged)
        self.turns()

    def check_found(self, key: CacheKey, vary: Vary, found: int | str | None) -> None:
        assert not isinstance(found, int) or found > self.gone[key], (key, vary)

    def check_written(self) -> None:
        for key, entries in self.in_l2().items():
            assert all(number > self.gone[key] for number in entries.values())


TestWriteBack = WriteBackMachine.TestCase
TestWriteBack.settings = settings(max_examples=100, stateful_step_count=30)
TestCramped = CrampedMachine.TestCase
TestCramped.settings = settings(max_examples=100, stateful_step_count=30)
