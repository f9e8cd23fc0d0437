"""
Invalidation among workers that share a Redis, whatever becomes of the network and of Redis.

The promises: no read returns data whose handler began before an acknowledged invalidation, beyond the stated bound;
the process that invalidates sees it at once; what was deleted never comes back; no life ever grows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from echo_cache.coordination.wire import decode_marks
from echo_cache.options import CacheStrategy, SyncMode, UnsyncedMode
from tests.simulation import CALM, PATHS, Node, Target, VirtualLoop, Warnings, Way, World, simulate

TARGETS = [
    Target(url="/a/1"),
    Target(url="http://test/a/2"),
    Target(tag="x"),
    Target(tag="y"),
    Target(prefix="/a/"),
    Target(prefix="/b/1"),
    Target(),
]
# How a network is: well, losing some, slow, doubling, all of that.
WAYS = [
    CALM,
    Way(drop=0.3),
    Way(slow=0.5, late=0.05),
    Way(slow=0.5, late=4.0),
    Way(twice=0.5),
    Way(drop=0.2, slow=0.3, late=2.0, twice=0.3),
]
# How long handlers take.
DURATIONS = [0.0, 0.02, 0.5, 3.0, 12.0]
# How far the clock of a Redis that restarts may be behind.
BEHIND = [0.0, 0.5, 30.0]


class Workers(RuleBasedStateMachine):
    """Three workers. Requests and invalidations overlap; the world judges each answer when it has come."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualLoop()
        self.tasks: list[asyncio.Task[Any]] = []
        self.world: World
        self.warnings: Warnings

    def run(self, work: Coroutine[Any, Any, Any]) -> None:
        self.loop.run_until_complete(work)

    def begin(self, work: Coroutine[Any, Any, Any], then: float) -> None:
        """Begin *work*, and let *then* seconds pass."""
        self.tasks.append(self.loop.create_task(work))
        self.run(asyncio.sleep(then))

    @initialize(
        strategy=st.sampled_from(CacheStrategy),
        unsynced=st.sampled_from(UnsyncedMode),
        sync_mode=st.sampled_from(SyncMode),
        max_marks=st.sampled_from([1_000, 8]),
        max_pending=st.sampled_from([1_000, 2]),
        lease_wait=st.sampled_from([5.0, 0.0]),
        validators=st.booleans(),
        seed=st.integers(0, 2**16),
    )
    def open(self, **options: Any) -> None:
        self.world = World(self.loop, **options)
        self.warnings = Warnings(self.world)
        self.warnings.__enter__()
        self.run(self.world.open())

    @property
    def nodes(self) -> list[Node]:
        return self.world.nodes

    @rule(
        at=st.integers(0, 2),
        path=st.sampled_from(list(PATHS)),
        takes=st.sampled_from(DURATIONS),
        then=st.sampled_from([0.0, 0.01, 0.15]),
    )
    def ask(self, at: int, path: str, takes: float, then: float) -> None:
        self.begin(self.nodes[at].get(path, takes=takes), then)

    @rule(takes=st.sampled_from(DURATIONS), then=st.sampled_from([0.0, 0.01, 0.3]))
    def ask_everywhere(self, takes: float, then: float) -> None:
        self.ask_everywhere_now(takes)
        self.run(asyncio.sleep(then))

    def ask_everywhere_now(self, takes: float = 0.0) -> None:
        for node in self.nodes:
            for path in PATHS:
                self.tasks.append(self.loop.create_task(node.get(path, takes=takes)))

    @rule(
        at=st.integers(0, 2),
        what=st.sampled_from(TARGETS),
        soft=st.sampled_from([False, False, False, True]),
        write=st.sampled_from([True, True, False]),
        then=st.sampled_from([0.0, 0.004, 0.3]),
    )
    def invalidate(self, at: int, what: Target, soft: bool, write: bool, then: float) -> None:
        soft = soft and what != Target()
        self.begin(self.nodes[at].invalidate(what, soft=soft, write=write), then)

    @rule(at=st.integers(0, 2), number=st.integers(1, 12))
    def invalidate_other_things(self, at: int, number: int) -> None:
        async def all_of_them() -> None:
            for each in range(number):
                await self.nodes[at].invalidate(Target(prefix=f"/other/{each}"), write=False)

        self.begin(all_of_them(), 0.05)

    @rule(seconds=st.sampled_from([0.002, 0.05, 0.3, 1.1, 2.5, 4.0, 6.0, 15.0]))
    def wait(self, seconds: float) -> None:
        self.run(asyncio.sleep(seconds))

    @rule(at=st.integers(0, 2), what=st.sampled_from(["partitioned", "partitioned", "deaf", "mute"]))
    def cut(self, at: int, what: str) -> None:
        self.world.trouble(f"{self.nodes[at].name} is {what}")
        setattr(self.nodes[at].wire, what, True)

    @rule(at=st.integers(0, 2), there=st.sampled_from(WAYS), back=st.sampled_from(WAYS))
    def let_the_network_be(self, at: int, there: Way, back: Way) -> None:
        wire = self.nodes[at].wire
        late = max(way.late for way in (there, back, wire.there, wire.back))
        self.world.trouble(f"{self.nodes[at].name} has the ways {there} {back}", lasts=2 * late)
        wire.there, wire.back = there, back

    @precondition(lambda self: self.world.in_trouble())
    @rule(then=st.sampled_from([0.0, 0.05, 3.6]))
    def heal(self, then: float) -> None:
        late = max(way.late for node in self.nodes for way in (node.wire.there, node.wire.back))
        self.world.heal()
        self.world.trouble("everything is well again", lasts=2 * late)
        self.run(asyncio.sleep(then))

    @rule(at=st.integers(0, 2))
    def kill_listeners(self, at: int) -> None:
        self.world.trouble(f"the listeners of {self.nodes[at].name} are killed")
        self.nodes[at].wire.kill_listeners()

    @precondition(lambda self: self.world.redis.is_up)
    @rule(
        lost=st.sampled_from([0, 0, 1, 3, None]),
        behind=st.sampled_from(BEHIND),
        down=st.sampled_from([0.0, 0.5, 7.0]),
        meanwhile=st.sampled_from([None, *TARGETS]),
        at=st.integers(0, 2),
    )
    def restart(self, lost: int | None, behind: float, down: float, meanwhile: Target | None, at: int) -> None:
        self.world.redis.stop()
        self.world.trouble("Redis stops")
        self.run(asyncio.sleep(down))
        self.world.redis.start(lost=lost, behind=behind)
        self.world.trouble(f"Redis starts, lost {lost}, its clock is behind by {behind}")
        if meanwhile is not None:
            # Before anybody has had the time to connect.
            self.begin(self.nodes[at].invalidate(meanwhile), 0.004)
            self.ask_everywhere_now()

    @rule()
    def flush(self) -> None:
        self.world.redis.flush()
        self.world.trouble("Redis is emptied")

    @rule(at=st.integers(0, 2), after=st.sampled_from([0.0, 3.0]))
    def begin_a_new_life(self, at: int, after: float) -> None:
        async def again() -> None:
            await self.nodes[at].close()
            await asyncio.sleep(after)
            await self.nodes[at].open()

        self.world.trouble(f"{self.nodes[at].name} ends, and begins again")
        self.run(again())

    @invariant()
    def nothing_is_wrong(self) -> None:
        if hasattr(self, "world"):
            for task in [task for task in self.tasks if task.done()]:
                self.tasks.remove(task)
                task.result()
            self.world.look_at_levels()
            self.world.check()

    def teardown(self) -> None:
        try:
            if hasattr(self, "world"):
                self.run(self.end())
                self.world.check()
        finally:
            if hasattr(self, "warnings"):
                self.warnings.__exit__()
            self.loop.close()

    async def end(self) -> None:
        """Let everything be well again, and all hear of all; then ask once more."""
        self.world.heal()
        self.world.trouble("the end", lasts=8.0)
        try:
            await asyncio.sleep(20)
            for node in self.nodes:
                await node.known()
                for path in PATHS:
                    await node.get(path)
            await asyncio.gather(*self.tasks)
        finally:
            await self.world.close()
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()
            await asyncio.sleep(0)


# Time enough to shrink what is found.
TestWorkers = pytest.mark.timeout(900)(Workers.TestCase)
TestWorkers.settings = settings(
    max_examples=20,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


# --- one after the other ----------------------------------------------------------------------------------------------

OTHER = Target(prefix="/other")
STRATEGIES = pytest.mark.parametrize("strategy", CacheStrategy)


def marks_in(world: World) -> list[str]:
    """Return the targets of what is in the stream, in order; "open" where it says that a log begins."""
    found: list[str] = []
    for _, (name, payload) in world.redis.rows("{sim:log}"):
        found += ["open"] if name == b"open" else [str(mark.target) for mark in decode_marks(payload)]
    return found


async def fill(world: World, path: str = "/a/1") -> None:
    """Let all workers have *path* in memory."""
    for _ in range(2):
        for node in world:
            await node.get(path)
    await asyncio.sleep(0.05)


@STRATEGIES
@pytest.mark.parametrize("target", TARGETS[:1] + TARGETS[2:3] + TARGETS[4:5] + TARGETS[6:], ids=str)
def test_a_slow_fill_that_overlaps_an_invalidation_elsewhere_is_never_used(
    strategy: CacheStrategy, target: Target
) -> None:
    async def scenario(world: World) -> None:
        a, b, c = world
        slow = asyncio.create_task(b.get("/a/1", takes=1.0))
        await asyncio.sleep(0.5)
        await a.invalidate(target)
        await slow
        await asyncio.sleep(0.1)
        for node in (b, c, a):
            assert (await node.get("/a/1")).call.version == 2

    simulate(scenario, strategy=strategy)


def test_what_write_back_writes_after_the_invalidation_is_never_used() -> None:
    async def scenario(world: World) -> None:
        a, b, c = world
        b.wire.mute = True
        world.trouble("B writes nothing")
        old = await b.get("/a/1")
        await a.invalidate(Target(tag="x"))
        assert not world.redis.names("sim:v:")
        b.wire.mute = False
        await asyncio.sleep(2.0)
        (name,) = world.redis.names("sim:v:")
        assert dict(world.redis.get(name).response.headers)[b"x-call"] == b"%d" % old.call.number
        for node in (c, b, a):
            assert (await node.get("/a/1")).call.version == 2

    simulate(scenario, strategy=CacheStrategy.WRITE_BACK)


@STRATEGIES
@pytest.mark.parametrize("others", [pytest.param(0, id="mark-is-known"), pytest.param(30, id="mark-is-forgotten")])
def test_a_write_that_comes_late_is_not_promoted(strategy: CacheStrategy, others: int) -> None:
    async def scenario(world: World) -> None:
        a, b, c = world
        filling = asyncio.create_task(b.get("/a/1", takes=0.3))
        await asyncio.sleep(0.2)
        b.wire.there = Way(slow=1.0, late=3.0)
        world.trouble("what B sends is late", lasts=3.0)
        await filling
        await a.invalidate(Target(url="http://test/a/1"))
        for each in range(others):
            await a.invalidate(Target(prefix=f"/other/{each}"), write=False)
        await asyncio.sleep(4.0)
        assert world.redis.names("sim:v:")
        for node in (c, a):
            assert (await node.get("/a/1")).call.version == 2

    simulate(scenario, strategy=strategy, max_marks=8 if others else 1_000)


@pytest.mark.parametrize("unsynced", UnsyncedMode)
@pytest.mark.parametrize("max_unsynced", [1.0, 5.0])
def test_a_partitioned_worker_stops_serving_in_time_and_not_much_before(
    unsynced: UnsyncedMode, max_unsynced: float
) -> None:
    last: list[float] = []

    async def scenario(world: World) -> None:
        a, b, _ = world
        await asyncio.sleep(1.0)
        await fill(world)
        b.wire.partitioned = True
        world.trouble("B is partitioned")
        began = world.loop.time()
        done = await a.invalidate(Target(tag="x"))
        while world.loop.time() < began + max_unsynced + 1.0:
            answer = await b.get("/a/1")
            if answer.call.began < done.began:
                last[:] = [answer.started_at - done.ended_at]
            elif unsynced is UnsyncedMode.BYPASS:
                assert not answer.hit
            await asyncio.sleep(0.01)

    simulate(scenario, unsynced=unsynced, max_unsynced=max_unsynced)
    assert 0.45 * max_unsynced < last[0] <= max_unsynced


def test_a_worker_that_comes_back_catches_up_at_once_and_keeps_what_stands() -> None:
    async def scenario(world: World) -> None:
        a, b, _ = world
        await fill(world, "/a/1")
        await fill(world, "/b/1")
        b.wire.partitioned = True
        world.trouble("B is partitioned")
        for _ in range(20):
            await a.invalidate(Target(tag="x"))
        await asyncio.sleep(8.0)
        b.wire.partitioned = False
        world.trouble("B is back")
        await b.known()
        assert world.loop.time() - world.quiet_since < 1.5
        assert (await b.get("/a/1")).call.version > 1
        assert (await b.get("/b/1")).hit

    simulate(scenario)


def test_what_is_pending_is_replayed_in_order_before_anything_is_heard() -> None:
    async def scenario(world: World) -> None:
        a, b, _ = world
        await fill(world)
        b.wire.partitioned = True
        world.trouble("B is partitioned")
        for target in (Target(tag="y"), Target(tag="x"), Target(prefix="/b/")):
            assert not (await b.invalidate(target)).propagated
        assert b.log.pending == 3
        await asyncio.sleep(3.0)
        await a.invalidate(Target(tag="z"), write=False)
        b.wire.partitioned = False
        world.trouble("B is back")
        await b.known()
        assert b.log.pending == 0
        assert marks_in(world) == ["open", "z", "y", "x", "(None, None, b'/b/')"]
        for node in world:
            await node.known()
            assert (await node.get("/a/1")).call.version == 2

    simulate(scenario)


def test_what_was_pending_counts_without_a_moment_in_between() -> None:
    async def scenario(world: World) -> None:
        _, b, _ = world
        await fill(world)
        b.wire.mute = True
        world.trouble("B can append nothing")
        assert not (await b.invalidate(Target(tag="x"))).propagated
        b.wire.mute = False
        while b.log.pending:  # noqa: ASYNC110  # time is virtual, and this is the very moment that is looked for
            await asyncio.sleep(0.0003)
        # Before the stream says it.
        b.wire.deaf = True
        assert (await b.get("/a/1")).call.version == 2

    simulate(scenario)


def test_more_than_max_pending_become_one_clear() -> None:
    async def scenario(world: World) -> None:
        _, b, c = world
        await fill(world)
        b.wire.partitioned = True
        world.trouble("B is partitioned")
        for each in range(5):
            await b.invalidate(Target(prefix=f"/other/{each}"), write=False)
        assert b.log.pending <= 3
        await asyncio.sleep(3.0)
        b.wire.partitioned = False
        world.trouble("B is back")
        await b.known()
        assert "None" in marks_in(world)
        await asyncio.sleep(0.01)
        await c.known()
        assert not (await c.get("/a/1")).hit

    simulate(scenario, max_pending=2)


def test_what_comes_twice_does_no_harm() -> None:
    async def scenario(world: World) -> None:
        for node in world:
            node.wire.there = node.wire.back = Way(twice=1.0)
        world.trouble("everything comes twice")
        for _ in range(3):
            await fill(world)
            for node in world:
                await node.invalidate(Target(tag="x"))
        assert marks_in(world) == ["open", *["x"] * 18]

    simulate(scenario)


@pytest.mark.parametrize("validators", [True, False])
def test_a_gap_in_the_stream_makes_entries_doubtful(validators: bool) -> None:
    async def scenario(world: World) -> None:
        a, b, _ = world
        await fill(world)
        b.wire.partitioned = True
        world.trouble("B is partitioned")
        for each in range(30):
            await a.invalidate(Target(prefix=f"/other/{each}"), write=False)
        b.wire.partitioned = False
        world.trouble("B is back")
        await b.known()
        before = len(world.calls)
        answer = await b.get("/a/1")
        assert not answer.hit
        assert answer.call.number > before
        assert world.not_modified == validators
        assert (await b.get("/a/1")).hit

    simulate(scenario, max_marks=8, validators=validators)


@pytest.mark.parametrize("connected", [True, False])
def test_an_emptied_redis_makes_entries_doubtful(connected: bool) -> None:
    async def scenario(world: World) -> None:
        a, b, _ = world
        await fill(world)
        b.wire.partitioned = not connected
        world.trouble("Redis is emptied")
        world.redis.flush()
        await asyncio.sleep(1.5)
        b.wire.partitioned = False
        await asyncio.sleep(World.RECOVERY)
        answer = await b.get("/a/1")
        assert not answer.hit
        assert world.not_modified == 1
        await a.invalidate(Target(tag="x"))
        await asyncio.sleep(World.PROPAGATION)
        assert (await b.get("/a/1")).call.version == 2

    simulate(scenario)


@pytest.mark.parametrize("lost", [0, 1, None])
def test_a_redis_that_restarts_is_not_believed_to_have_all(lost: int | None) -> None:
    async def scenario(world: World) -> None:
        a, b, _ = world
        await fill(world)
        b.wire.partitioned = True
        await a.invalidate(Target(tag="x"))
        world.redis.restart(lost=lost)
        world.trouble("Redis has lost something")
        b.wire.partitioned = False
        await asyncio.sleep(World.RECOVERY)
        await b.known()
        assert (await b.get("/a/1")).call.version == 2

    simulate(scenario)


def test_what_a_restart_has_lost_is_doubted_when_nobody_is_left_who_knew_it() -> None:
    async def scenario(world: World) -> None:
        a, b, c = world
        await fill(world)
        b.wire.partitioned = c.wire.partitioned = True
        world.trouble("A alone hears what it invalidates, and ends; Redis loses it")
        assert (await a.invalidate(Target(tag="x"))).propagated
        await a.close()
        world.redis.restart(lost=1)
        b.wire.partitioned = c.wire.partitioned = False
        await asyncio.sleep(World.RECOVERY)
        for node in (b, c):
            await node.known()
            assert (await node.get("/a/1")).call.version == 2

    simulate(scenario)


def test_positions_do_not_fall_when_redis_restarts_with_its_clock_behind() -> None:
    async def scenario(world: World) -> None:
        a, b, _ = world
        await fill(world)
        before = (await a.invalidate(OTHER, write=False)).ended_at
        world.redis.restart(behind=20.0)
        world.trouble("Redis is back with its clock behind")
        await asyncio.sleep(1.0)
        assert world.loop.time() > before
        for node in (a, b):
            await node.invalidate(Target(tag="x"))
            await node.get("/a/1")
        await asyncio.sleep(World.PROPAGATION)
        for node in world:
            assert (await node.get("/a/1")).call.version == 3

    simulate(scenario)


def test_a_killed_connection_is_no_trouble() -> None:
    async def scenario(world: World) -> None:
        _, b, _ = world
        await fill(world)
        calls = len(world.calls)
        for _ in range(5):
            b.wire.kill_listeners()
            for _ in range(20):
                assert (await b.get("/a/1")).hit
                await asyncio.sleep(0.01)
        assert len(world.calls) == calls

    world = simulate(scenario, unsynced=UnsyncedMode.BYPASS)
    assert world.warnings == []


def test_the_own_invalidation_counts_where_the_server_has_lost_the_end_and_is_behind() -> None:
    async def scenario(world: World) -> None:
        _, b, c = world
        await c.invalidate(OTHER, write=False)
        await fill(world)
        world.redis.restart(lost=1, behind=1.0)
        world.trouble("Redis has lost what B has heard, and its clock is behind")
        await b.invalidate(Target(tag="x"))
        await b.get("/a/1")

    simulate(scenario)


# --- what is known to be wrong ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("unsynced", UnsyncedMode)
def test_nobody_boards_an_old_call_where_the_log_is_not_heard(unsynced: UnsyncedMode) -> None:
    async def scenario(world: World) -> None:
        a, b, _ = world
        b.wire.partitioned = True
        world.trouble("B is partitioned")
        slow = asyncio.create_task(b.get("/a/1", takes=20.0))
        await asyncio.sleep(1.0)
        await a.invalidate(Target(tag="x"))
        await asyncio.sleep(10.0)
        await b.get("/a/1")
        await slow

    simulate(scenario, unsynced=unsynced)


def test_who_comes_back_to_another_history_doubts_its_own_where_the_server_was_behind() -> None:
    async def scenario(world: World) -> None:
        a, b, c = world
        a.wire.partitioned = c.wire.partitioned = True
        world.trouble("A and C are partitioned")
        await b.invalidate(OTHER, write=False)
        await asyncio.sleep(0.1)
        await b.get("/a/1")
        b.wire.partitioned = True
        world.redis.restart(lost=1, behind=5.0)
        a.wire.partitioned = c.wire.partitioned = False
        world.trouble("Redis has lost what only B has heard, and its clock is behind; A and C are back")
        await asyncio.sleep(1.0)
        await a.known()
        await a.invalidate(Target(tag="x"))
        await asyncio.sleep(6.0)
        await c.invalidate(OTHER, write=False)
        b.wire.partitioned = False
        world.trouble("B is back")
        await asyncio.sleep(World.RECOVERY)
        await b.get("/a/1")

    simulate(scenario)


def test_the_reply_to_an_append_says_nothing_of_what_another_run_has_lost() -> None:
    async def scenario(world: World) -> None:
        a, b, _ = world
        await b.get("/a/1")
        for node in world:
            node.wire.deaf = True
        world.trouble("nobody can listen")
        await asyncio.sleep(1.0)
        await a.invalidate(Target(tag="x"))
        world.redis.restart(lost=1)
        world.trouble("Redis has lost it")
        for _ in range(8):
            await asyncio.sleep(1.0)
            await b.invalidate(OTHER, write=False)
            await b.get("/a/1")

    simulate(scenario)
