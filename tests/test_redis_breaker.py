"""A server that fails time after time is left alone, and is found again by itself."""

from __future__ import annotations

import asyncio
import gc
import logging
import subprocess
import sys
import textwrap
import time
import weakref
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echo_cache import Cache, MemoryStore, TwoLevelStore
from echo_cache.errors import StoreError, StoreTimeout
from echo_cache.events import BreakerChanged, Event
from echo_cache.stores import RedisStore
from echo_cache.stores.redis.breaker import Breaker, BreakerState
from tests import redis_support as support
from tests.redis_support import (
    DEADLINE,
    PATIENT,
    LyingServer,
    MakeStore,
    Recorder,
    TrueClock,
    array,
    is_idle,
    until,
)
from tests.servers import RedisServer
from tests.store_contract import any_variant, make_entry, make_key

make_store, reports, server, store = support.make_store, support.reports, support.server, support.store

CLOSED, OPEN, HALF_OPEN = BreakerState.CLOSED, BreakerState.OPEN, BreakerState.HALF_OPEN

# A probe interval within which no test ends.
NEVER = 3_600.0


# --- the state machine ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("events", "state"),
    [
        pytest.param("", CLOSED, id="at-first"),
        pytest.param("ff", CLOSED, id="two-failures"),
        pytest.param("fff", OPEN, id="three-failures"),
        pytest.param("ffsff", CLOSED, id="an-answer-between"),
        pytest.param("ffsfff", OPEN, id="three-after-an-answer"),
        pytest.param("3", OPEN, id="three-at-once"),
        pytest.param("f9", OPEN, id="more-than-enough"),
        pytest.param("fffs", OPEN, id="an-answer-to-what-was-asked-before"),
        pytest.param("ffff", OPEN, id="a-failure-of-what-was-asked-before"),
        pytest.param("fffp", HALF_OPEN, id="a-probe"),
        pytest.param("fffpf", OPEN, id="a-probe-that-fails"),
        pytest.param("fffps", CLOSED, id="a-probe-that-is-answered"),
        pytest.param("fffpsff", CLOSED, id="the-count-begins-anew"),
        pytest.param("fffpfpfps", CLOSED, id="the-third-probe"),
    ],
)
def test_breaker_opens_after_three_failures_in_a_row_and_closes_after_a_probe(events: str, state: BreakerState) -> None:
    breaker = Breaker(3)
    for event in events:
        match event:
            case "f":
                breaker.failed()
            case "s":
                breaker.succeeded()
            case "p":
                breaker.probe()
            case count:
                breaker.failed(int(count))
    assert breaker.state is state
    assert str(state) in repr(breaker)


@given(st.integers(1, 5), st.lists(st.sampled_from(["asked", "answered", "failed", "time to probe"])))
def test_breaker_lets_through_one_probe_at_most_and_says_each_change_once(threshold: int, events: list[str]) -> None:
    breaker = Breaker(threshold)
    failures = probes = 0
    said_open = False
    for event in events:
        before = breaker.state
        match event:
            case "asked":
                assert (before is CLOSED) == (not said_open)
            case "answered":
                failures = 0
                closed = breaker.succeeded()
                assert closed == (before is HALF_OPEN)
                said_open = said_open and not closed
                probes = 0
            case "failed":
                failures += 1
                opened = breaker.failed()
                assert opened == (before is CLOSED and failures >= threshold)
                said_open = said_open or opened
                probes = 0
            case "time to probe":
                if before is OPEN:
                    breaker.probe()
                    probes += 1
                else:
                    with pytest.raises(AssertionError):
                        breaker.probe()
        assert probes <= 1
        assert said_open == (breaker.state is not CLOSED)
        assert (probes == 1) == (breaker.state is HALF_OPEN)


# --- a server that dies -----------------------------------------------------------------------------------------------


async def test_a_server_that_fails_is_not_asked_any_more(make_store: MakeStore, reports: list[Any]) -> None:
    lying = LyingServer(lambda words: None)  # it hangs up
    async with lying as url:
        store = make_store(url, breaker_failures=3, probe_interval=NEVER)
        events: list[Event] = []
        store.observe(events.append)
        for attempts in (1, 2, 3):
            assert store.breaker_state == "closed"
            assert events == []
            with pytest.raises(StoreError, match="could not"):
                await store.get(make_key(), any_variant)
            assert lying.connections == attempts
        assert store.breaker_state == "open"
        await until(lambda: is_idle(store))
        assert "[breaker open, 0 under way | 0 hits, 0 misses, 0 sets | 3 errors, 0 rejected]" in repr(store)
        ((event,),) = [events]
        assert isinstance(event, BreakerChanged)
        assert event.state == "open"
        assert "onnection" in event.reason
        for _ in range(100):
            for operation in (
                store.get(make_key(), any_variant),
                store.set(make_key(), make_entry()),
                store.delete(make_key()),
            ):
                with pytest.raises(StoreError, match=r"is not asked to .*: it has failed 3 times in a row"):
                    await operation
        assert lying.connections == 3
        assert len(events) == 1
        await store.aclose()


async def test_a_server_that_is_back_is_found_without_any_request(
    own_redis: RedisServer, make_store: MakeStore, reports: list[Any]
) -> None:
    store = make_store(own_redis.url, breaker_failures=2, probe_interval=0.05)
    events: list[Event] = []
    store.observe(events.append)
    await store.set(make_key(), make_entry())
    for _ in range(3):
        events.clear()
        own_redis.kill()
        for _ in range(2):
            with pytest.raises(StoreError):
                await store.get(make_key(), any_variant)
        assert store.breaker_state == "open"
        own_redis.start()
        await until(lambda: store.breaker_state == "closed")
        assert [event.state for event in events if isinstance(event, BreakerChanged)] == ["open", "closed"]
        assert await store.get(make_key(), any_variant) is None
        assert await store.set(make_key(), make_entry()) is True
        assert await store.get(make_key(), any_variant) is not None


async def test_probes_come_one_after_the_other_until_one_is_answered(make_store: MakeStore) -> None:
    is_up = False
    held = asyncio.Event()
    asked: list[bytes] = []

    async def reply(words: list[bytes]) -> bytes | None:
        asked.append(words[0])
        if len(asked) == 4:
            await held.wait()
        return array(*(None for _ in words[1:])) if is_up else None

    async with LyingServer(reply) as url:
        store = make_store(url, breaker_failures=1, probe_interval=0.01)
        events: list[Event] = []
        store.observe(events.append)
        with pytest.raises(StoreError):
            await store.get(make_key(), any_variant)
        await until(lambda: len(asked) == 4)  # the third probe is held
        assert store.breaker_state == "half_open"
        for _ in range(50):
            with pytest.raises(StoreError, match="is not asked"):
                await store.get(make_key(), any_variant)
            await asyncio.sleep(0.002)  # longer than the interval: there would be time for more probes
        assert len(asked) == 4
        assert len(events) == 1
        held.set()
        await until(lambda: len(asked) >= 6)
        is_up = True
        await until(lambda: store.breaker_state == "closed")
        assert set(asked) == {b"MGET", b"GETRANGE"}  # a probe wants one byte
        assert [event.state for event in events if isinstance(event, BreakerChanged)] == ["open", "closed"]
        await store.aclose()


# --- a server that hangs ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_new", [False, True], ids=["used-store", "new-store"])
@pytest.mark.parametrize("failures", [1, 3])
async def test_of_reads_one_after_the_other_so_many_wait_for_a_server_that_hangs(
    failures: int, is_new: bool, own_redis: RedisServer, make_store: MakeStore, reports: list[Any]
) -> None:
    async with Recorder(own_redis.url) as recorder:
        store = make_store(recorder.client, timeout=0.1, breaker_failures=failures, probe_interval=NEVER)
        if not is_new:
            await store.set(make_key(), make_entry())
        own_redis.pause()
        outcomes = []
        for number in range(20):
            try:
                await store.get(make_key(number), any_variant)
            except StoreError as error:
                outcomes.append(type(error))
        assert outcomes == [StoreTimeout] * failures + [StoreError] * (20 - failures)
        assert store.timeouts == failures


async def test_those_who_wait_are_let_go_when_it_opens(
    own_redis: RedisServer, make_store: MakeStore, reports: list[Any]
) -> None:
    store = make_store(own_redis.url, timeout=1.0, breaker_failures=1, probe_interval=NEVER)
    await store.set(make_key(), make_entry())
    own_redis.pause()
    first = asyncio.ensure_future(store.get(make_key(), any_variant))
    await asyncio.sleep(0.2)
    others = [
        asyncio.ensure_future(operation)
        for number in range(300)
        for operation in (store.get(make_key(number), any_variant), store.set(make_key(number), make_entry()))
    ]
    with pytest.raises(StoreTimeout):
        await first
    outcomes = await asyncio.gather(*others, return_exceptions=True)
    # Had they waited for their own time to be up, these were time-outs.
    assert {(type(outcome), "is not asked" in str(outcome)) for outcome in outcomes} == {(StoreError, True)}
    assert store.timeouts == 1
    await until(lambda: is_idle(store))


async def test_batches_that_hang_together_open_it_together(
    own_redis: RedisServer, make_store: MakeStore, reports: list[Any]
) -> None:
    store = make_store(own_redis.url, timeout=0.3, breaker_failures=3, probe_interval=NEVER)
    await store.set(make_key(), make_entry())
    own_redis.pause()
    operations = []
    for number in range(4):
        operations.append(asyncio.ensure_future(store.get(make_key(number), any_variant)))
        await asyncio.sleep(0.01)  # so that it is a batch of its own
    kinds = Counter(type(outcome) for outcome in await asyncio.gather(*operations, return_exceptions=True))
    assert kinds == {StoreTimeout: 1, StoreError: 3}
    assert store.breaker_state == "open"


async def test_a_server_that_hung_is_found_again(own_redis: RedisServer, make_store: MakeStore) -> None:
    store = make_store(own_redis.url, timeout=0.1, breaker_failures=1, probe_interval=0.05)
    await store.set(make_key(), make_entry(b"before"))
    own_redis.pause()
    with pytest.raises(StoreTimeout):
        await store.get(make_key(), any_variant)
    states = set()

    def probed() -> bool:
        states.add(store.breaker_state)
        return states == {OPEN, HALF_OPEN}

    await until(probed)
    own_redis.resume()
    await until(lambda: store.breaker_state == "closed")

    async def answers() -> bool:
        try:
            found = await store.get(make_key(), any_variant)
        except StoreError:  # a loaded machine
            return False
        return found is not None and found.response.body == b"before"

    await until(answers)


# --- what counts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(b"-READONLY You can't write against a read only replica.\r\n", id="readonly"),
        pytest.param(b"-OOM command not allowed when used memory > 'maxmemory'.\r\n", id="oom"),
        pytest.param(b"-NOPERM this user has no permissions to run the command\r\n", id="noperm"),
        pytest.param(b"-MISCONF Redis is configured to save RDB snapshots\r\n", id="misconf"),
        pytest.param(b"-NOREPLICAS Not enough good replicas to write.\r\n", id="noreplicas"),
    ],
)
async def test_an_error_that_writes_meet_does_not_open_it(error: bytes, make_store: MakeStore) -> None:
    def reply(words: list[bytes]) -> bytes:
        return array(*(None for _ in words[1:])) if words[0] == b"MGET" else error

    async with LyingServer(reply) as url:
        store = make_store(url, breaker_failures=1)
        for _ in range(5):
            with pytest.raises(StoreError, match="could not set"):
                await store.set(make_key(), make_entry())
            outcomes = await asyncio.gather(
                *(store.set(make_key(number), make_entry()) for number in range(5)), return_exceptions=True
            )
            assert [type(outcome) for outcome in outcomes] == [StoreError] * 5
        assert store.breaker_state == "closed"
        assert await store.get(make_key(), any_variant) is None
        await store.aclose()


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(b"-LOADING Redis is loading the dataset in memory\r\n", id="loading"),
        pytest.param(b"-NOAUTH Authentication required.\r\n", id="noauth"),
        pytest.param(b"-CLUSTERDOWN The cluster is down\r\n", id="clusterdown"),
        pytest.param(b"-MASTERDOWN Link with MASTER is down\r\n", id="masterdown"),
        pytest.param(b"-ERR max number of clients reached\r\n", id="max-clients"),
        pytest.param(b"\x00\xff garbage", id="garbage"),
        pytest.param(b"+OK\r\n", id="wrong-type"),
    ],
)
async def test_an_error_that_reads_meet_opens_it(error: bytes, make_store: MakeStore) -> None:
    async with LyingServer(lambda words: error) as url:
        store = make_store(url, breaker_failures=2, probe_interval=NEVER)
        for _ in range(2):
            assert store.breaker_state == "closed"
            with pytest.raises(StoreError, match="could not get"):
                await store.get(make_key(), any_variant)
        assert store.breaker_state == "open"
        await store.aclose()


async def test_an_answer_resets_the_count(make_store: MakeStore) -> None:
    is_up = True

    def reply(words: list[bytes]) -> bytes | None:
        return array(*(None for _ in words[1:])) if is_up else None

    async with LyingServer(reply) as url:
        store = make_store(url, breaker_failures=3)
        for _ in range(5):
            is_up = False
            for _ in range(2):
                with pytest.raises(StoreError):
                    await store.get(make_key(), any_variant)
            is_up = True
            assert await store.get(make_key(), any_variant) is None
        assert store.breaker_state == "closed"
        await store.aclose()


async def test_a_failure_is_one_however_many_wait_for_it(make_store: MakeStore) -> None:
    async with LyingServer(lambda words: None) as url:
        store = make_store(url, breaker_failures=2, probe_interval=NEVER, clock=TrueClock())
        outcomes = await asyncio.gather(
            *(store.get(make_key(number), any_variant) for number in range(100)), return_exceptions=True
        )
        assert {type(outcome) for outcome in outcomes} == {StoreError}
        assert store.breaker_state == "closed"
        await store.aclose()


async def test_who_leaves_is_no_failure(redis_url: str, make_store: MakeStore) -> None:
    store = make_store(redis_url, breaker_failures=1)
    for _ in range(20):
        reader = asyncio.ensure_future(store.get(make_key(), any_variant))
        await asyncio.sleep(0)
        reader.cancel()
        await asyncio.wait([reader])
    await until(lambda: is_idle(store))
    assert store.breaker_state == "closed"


async def test_a_time_out_of_the_event_loops_own_making_is_no_failure(redis_url: str, make_store: MakeStore) -> None:
    """A handler that blocks the loop for longer than the time-out: the reply has been there all the time."""
    store = make_store(redis_url, timeout=0.2, breaker_failures=1, probe_interval=NEVER)
    await store.set(make_key(), make_entry())
    reader = asyncio.ensure_future(store.get(make_key(), any_variant))
    await asyncio.sleep(0)  # it is in a batch
    await asyncio.sleep(0)  # which is on its way
    time.sleep(0.6)  # noqa: ASYNC251  # what is tested
    assert await reader is not None
    assert store.breaker_state == "closed"
    assert store.timeouts == 0


# --- observers --------------------------------------------------------------------------------------------------------


async def test_an_observer_that_raises_is_logged_and_breaks_nothing(
    own_redis: RedisServer, make_store: MakeStore, reports: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    store = make_store(own_redis.url, breaker_failures=1, probe_interval=0.05)
    events: list[Event] = []

    def fails(event: Event) -> None:
        raise RuntimeError("what an observer may raise")

    store.observe(fails)
    store.observe(events.append)
    own_redis.kill()
    with pytest.raises(StoreError, match="could not"):
        await store.get(make_key(), any_variant)
    with pytest.raises(StoreError, match="is not asked"):
        await store.get(make_key(), any_variant)
    own_redis.start()
    await until(lambda: store.breaker_state == "closed")
    assert await store.get(make_key(), any_variant) is None
    assert [event.state for event in events if isinstance(event, BreakerChanged)] == ["open", "closed"]
    logged = [record for record in caplog.records if record.name == "echo_cache"]
    assert [record.levelno for record in logged] == [logging.ERROR] * 2
    assert all(record.exc_info and "what an observer may raise" in str(record.exc_info[1]) for record in logged)


# --- life -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["waiting", "probing"])
async def test_aclose_while_it_is_open_leaves_no_timer_and_no_task(what: str, reports: list[Any]) -> None:
    probing = asyncio.Event()
    asked = 0

    async def reply(words: list[bytes]) -> bytes | None:
        nonlocal asked
        asked += 1
        if asked > 1:
            probing.set()
            await asyncio.sleep(0.05)
        return None

    tasks = asyncio.all_tasks()
    lying = LyingServer(reply)
    async with lying as url:
        store = RedisStore(
            url, timeout=PATIENT, breaker_failures=1, probe_interval=NEVER if what == "waiting" else 0.01
        )
        with pytest.raises(StoreError):
            await store.get(make_key(), any_variant)
        if what == "probing":
            await probing.wait()
        assert store.breaker_state == ("open" if what == "waiting" else "half_open")
        await store.aclose()
        # A timer or a task would hold the store.
        gone = weakref.ref(store)
        del store
        gc.collect()
        assert gone() is None
    await until(lambda: asyncio.all_tasks() == tasks)


async def test_a_store_on_a_ready_client_that_is_closed_while_it_is_open_can_be_used_again(
    own_redis: RedisServer, make_store: MakeStore
) -> None:
    async with Recorder(own_redis.url) as recorder:
        store = make_store(recorder.client, breaker_failures=1, probe_interval=NEVER)
        own_redis.kill()
        with pytest.raises(StoreError):
            await store.get(make_key(), any_variant)
        assert store.breaker_state == "open"
        await store.aclose()
        own_redis.start()
        assert await store.get(make_key(), any_variant) is None


@pytest.mark.parametrize("interval", [pytest.param(NEVER, id="waiting"), pytest.param(0.01, id="probing")])
def test_a_loop_that_ends_while_it_is_open_leaves_no_warning(interval: float, own_redis: RedisServer) -> None:
    own_redis.pause()
    script = f"""
        import asyncio, gc
        from echo_cache.errors import StoreError
        from echo_cache.stores import RedisStore
        from tests.store_contract import any_variant, make_key

        async def main(store):
            try:
                await store.get(make_key(), any_variant)
            except StoreError:
                pass
            while {interval} < 1 and store.breaker_state != "half_open":
                await asyncio.sleep(0.001)
            assert store.breaker_state != "closed"

        store = RedisStore({own_redis.url!r}, timeout=0.5, breaker_failures=1, probe_interval={interval})
        for _ in range(2):
            asyncio.run(main(store))
        del store
        gc.collect()
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        cwd=Path(__file__).parent.parent,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


async def test_the_breaker_below_two_levels_is_seen_by_the_observers_of_the_cache(
    own_redis: RedisServer, make_store: MakeStore
) -> None:
    events: list[Event] = []
    redis = make_store(own_redis.url, breaker_failures=1, probe_interval=0.05)
    cache = Cache(TwoLevelStore(MemoryStore(), redis), observers=[events.append])
    own_redis.kill()
    assert await cache.find(make_key(), ()) == (None, False)
    assert cache.store.get_stats().breaker == "open"
    own_redis.start()
    await until(lambda: redis.breaker_state == "closed")
    states = [event.state for event in events if isinstance(event, BreakerChanged)]
    assert states == ["open", "closed"]
    await cache.aclose()
