"""RedisStore on servers in trouble, on servers that lie, under cancellation, past the ends of loops and processes."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import subprocess
import sys
import textwrap
import time
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio

from echo_cache import codec
from echo_cache.errors import StoreError, StoreTimeout
from echo_cache.model import Entry
from echo_cache.stores import RedisStore
from tests import redis_support as support
from tests.redis_support import DE, DEADLINE, PATIENT, LyingServer, MakeStore, array, bulk, is_idle, name_of, until
from tests.servers import RedisServer
from tests.store_contract import any_variant, make_entry, make_key

make_store, reports, server, store = support.make_store, support.reports, support.server, support.store


async def test_a_server_that_is_not_there_is_a_store_error_at_once(
    own_redis: RedisServer, make_store: MakeStore, reports: list[Any]
) -> None:
    own_redis.kill()
    # Patient: only a refusal is quick. Each operation is to be refused by the server, none by the breaker.
    store = make_store(own_redis.url, breaker_failures=100)
    began = time.monotonic()
    operations: list[Callable[[], Awaitable[Any]]] = [
        lambda: store.get(make_key(), any_variant),
        lambda: store.set(make_key(), make_entry()),
        lambda: store.set(make_key(), make_entry(vary=DE)),
        lambda: store.delete(make_key()),
        lambda: store.clear(),
        lambda: anext(store.keys()),
    ]
    for operation in operations:
        with pytest.raises(StoreError) as caught:
            await operation()
        assert isinstance(caught.value.__cause__, redis.ConnectionError)
    assert time.monotonic() - began < PATIENT / 2
    assert store.stats().errors == len(operations)
    assert store.timeouts == 0


async def test_a_killed_server_is_used_again_when_it_is_back(own_redis: RedisServer, make_store: MakeStore) -> None:
    store = make_store(own_redis.url, max_connections=4)

    async def write_at_once() -> None:
        """Write as much as two batches to a connection hold."""
        await asyncio.gather(*(store.set(make_key(number), make_entry()) for number in range(1_000)))

    await write_at_once()  # four connections
    for stop in (own_redis.kill, own_redis.stop):
        stop()
        with pytest.raises(StoreError):
            await store.get(make_key(), any_variant)
        own_redis.start()
        # The first operation after it is back works, on each of the connections that died.
        await write_at_once()
        assert await store.get(make_key(7), any_variant) is not None


async def test_a_paused_server_is_a_store_timeout_in_time(
    own_redis: RedisServer, make_store: MakeStore, reports: list[Any]
) -> None:
    store = make_store(own_redis.url, timeout=0.05, max_connections=4)
    await store.set(make_key(), make_entry())
    own_redis.pause()
    began = time.monotonic()
    # Some fail in the command, most in the line for a connection: one budget for both.
    outcomes = await asyncio.gather(*(store.get(make_key(), any_variant) for _ in range(100)), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [StoreTimeout] * 100
    assert time.monotonic() - began < DEADLINE
    assert "0.05 s" in str(outcomes[0])
    assert store.timeouts == store.stats().errors == 100
    own_redis.resume()

    async def answers() -> bool:
        with contextlib.suppress(StoreTimeout):
            return await store.get(make_key(), any_variant) is not None
        return False

    await until(answers)


async def test_a_late_reply_never_answers_another_read(own_redis: RedisServer, make_store: MakeStore) -> None:
    patient = make_store(own_redis.url)
    store = make_store(own_redis.url, timeout=0.05, max_connections=2)
    for number in range(50):
        await patient.set(make_key(number), make_entry(b"%d" % number))
    for turn in range(5):
        own_redis.pause()
        with pytest.raises(StoreTimeout):
            await store.get(make_key(turn), any_variant)
        own_redis.resume()
        for number in range(10, 50):
            with contextlib.suppress(StoreTimeout):  # a slow machine
                found = await store.get(make_key(number), any_variant)
                assert found is not None
                assert found.response.body == b"%d" % number
    assert store.rejected == 0  # not even a reply that was for another key


async def test_a_failure_leaves_nothing_to_the_garbage_collector(own_redis: RedisServer, make_store: MakeStore) -> None:
    store = make_store(own_redis.url)
    own_redis.kill()
    gc.collect()
    gc.disable()
    try:
        with pytest.raises(StoreError) as caught:
            await store.get(make_key(), any_variant)
        cause = weakref.ref(caught.value.__cause__)
        assert cause() is not None
        del caught
        await until(lambda: is_idle(store))
        assert cause() is None
    finally:
        gc.enable()


async def test_cancelled_callers_harm_nobody(store: RedisStore, reports: list[Any]) -> None:
    for number in range(50):
        await store.set(make_key(number), make_entry(b"%d" % number, vary=DE if number % 2 else ()))
    cancelled = 0
    for round_ in range(10):
        tasks = [asyncio.ensure_future(store.get(make_key(number), any_variant)) for number in range(50)]
        for turn, task in enumerate(tasks):
            if turn % 5 == round_ % 5:
                await asyncio.sleep(0)  # so that they are cancelled at every stage
            task.cancel()
        for number, task in enumerate(tasks):
            try:
                found = await task
            except asyncio.CancelledError:
                cancelled += 1
            else:  # its answer was there already
                assert found is not None
                assert found.response.body == b"%d" % number
        entries = await asyncio.gather(*(store.get(make_key(number), any_variant) for number in range(50)))
        assert [entry and entry.response.body for entry in entries] == [b"%d" % number for number in range(50)]
    assert cancelled >= 100
    assert store.stats().errors == store.rejected == 0


@pytest.mark.parametrize("what", ["get", "get-varied", "set", "set-varied", "delete"])
@pytest.mark.parametrize("is_new", [True, False], ids=["new-store", "used-store"])
async def test_a_caller_cancelled_at_any_await_harms_nobody(
    what: str, is_new: bool, redis_url: str, make_store: MakeStore, reports: list[Any]
) -> None:
    """The operation is awaited for one turn of the event loop longer each time, until it has answered."""
    operations: dict[str, Callable[[RedisStore], Coroutine[Any, Any, Any]]] = {
        "get": lambda store: store.get(make_key(0), any_variant),
        "get-varied": lambda store: store.get(make_key("v"), any_variant),
        "set": lambda store: store.set(make_key("written"), make_entry()),
        "set-varied": lambda store: store.set(make_key("written"), make_entry(vary=DE)),
        "delete": lambda store: store.delete(make_key("written")),
    }
    store = make_store(redis_url, max_connections=1)
    for number in range(10):
        await store.set(make_key(number), make_entry(b"%d" % number))
    await store.set(make_key("v"), make_entry(b"v", vary=DE))
    for turns in itertools.count():
        if is_new:
            await store.aclose()
            store = make_store(redis_url, max_connections=1)
        task = asyncio.ensure_future(operations[what](store))
        for _ in range(turns):
            await asyncio.sleep(0)
        if task.done():
            break
        task.cancel()
        others = [store.get(make_key(number), any_variant) for number in range(1, 10)]
        entries = await asyncio.gather(*others)
        assert [entry and entry.response.body for entry in entries] == [b"%d" % number for number in range(1, 10)]
        with pytest.raises(asyncio.CancelledError):
            await task
        assert store.stats().errors == store.rejected == 0
    assert turns >= 3
    await until(lambda: is_idle(store))


async def test_a_cancelled_caller_does_not_cancel_its_operation(store: RedisStore) -> None:
    await store.get(make_key(), any_variant)  # so that no question for the time comes first
    caller = asyncio.ensure_future(store.set(make_key(), make_entry()))
    await asyncio.sleep(0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    await store.aclose()  # waits for it
    assert await store.get(make_key(), any_variant) is not None


async def test_an_operation_that_fails_after_its_caller_left_is_not_reported(
    own_redis: RedisServer, make_store: MakeStore, reports: list[Any]
) -> None:
    store = make_store(own_redis.url, timeout=0.05)
    await store.set(make_key(), make_entry())
    own_redis.pause()
    callers = [asyncio.ensure_future(store.get(make_key(), any_variant)) for _ in range(20)]
    await asyncio.sleep(0)
    for caller in callers:
        caller.cancel()
    await asyncio.wait(callers)
    await until(lambda: is_idle(store))  # the server is still paused: their time was up
    assert store.timeouts == store.stats().errors == 20
    own_redis.kill()
    with pytest.raises(StoreError):
        await store.get(make_key(), any_variant)


async def test_200_reads_at_once_share_two_connections(redis_url: str, server: Any, make_store: MakeStore) -> None:
    store = make_store(redis_url, max_connections=2)
    await store.set(make_key(), make_entry())
    before = len(server.client_list())
    found = await asyncio.gather(*(store.get(make_key(), any_variant) for _ in range(200)))
    assert all(found)
    assert len(server.client_list()) <= before + 1  # one of the two was there before


async def test_a_wrong_password_is_a_store_error_that_does_not_show_it(make_store: MakeStore) -> None:
    with RedisServer(("--requirepass", "right")) as server:
        location = server.url.removeprefix("redis://")
        for url in (f"redis://{location}", f"redis://:wr0ng-secret@{location}"):
            with pytest.raises(StoreError) as caught:
                await make_store(url).get(make_key(), any_variant)
            assert "wr0ng" not in f"{caught.value}{caught.value!r}{caught.value.__cause__!r}"
        assert await make_store(f"redis://:right@{location}").set(make_key(), make_entry()) is True


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(b"-LOADING Redis is loading the dataset in memory\r\n", id="loading"),
        pytest.param(b"-READONLY You can't write against a read only replica.\r\n", id="readonly"),
        pytest.param(b"-OOM command not allowed when used memory > 'maxmemory'.\r\n", id="oom"),
        pytest.param(b"-NOAUTH Authentication required.\r\n", id="noauth"),
        pytest.param(b"-MOVED 3999 127.0.0.1:6381\r\n", id="moved"),
        pytest.param(b"-CLUSTERDOWN The cluster is down\r\n", id="clusterdown"),
        pytest.param(b"-ERR max number of clients reached\r\n", id="max-clients"),
        pytest.param(b"HTTP/1.1 400 Bad Request\r\n\r\n", id="http"),
        pytest.param(b"\x00\xff garbage", id="garbage"),
        pytest.param(None, id="closed"),
    ],
)
async def test_an_error_reply_or_nonsense_is_a_store_error(
    reply: bytes | None, make_store: MakeStore, reports: list[Any]
) -> None:
    async with LyingServer(lambda words: reply) as url:
        store = make_store(url, timeout=1.0)
        for operation in (
            store.get(make_key(), any_variant),
            store.set(make_key(), make_entry()),
            store.set(make_key(), make_entry(vary=DE)),
            store.delete(make_key()),
            store.clear(),
        ):
            with pytest.raises(StoreError):
                await operation
        await store.aclose()


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(b":5\r\n", id="integer"),
        pytest.param(b"+OK\r\n", id="status"),
        pytest.param(bulk(b"value"), id="string"),
        pytest.param(bulk(None), id="null"),
        pytest.param(b"*-1\r\n", id="null-array"),
        pytest.param(array(), id="no-values"),
        pytest.param(array(b"a", b"b", b"c"), id="too-many-values"),
        pytest.param(b"*1\r\n" * 20_000 + b":1\r\n", id="nested-20000-deep"),
    ],
)
async def test_a_reply_that_is_no_list_of_what_was_asked_for_is_a_store_error(
    reply: bytes, make_store: MakeStore, reports: list[Any]
) -> None:
    async with LyingServer(lambda words: reply) as url:
        store = make_store(url, breaker_failures=100)
        for key in (make_key(), make_key("v")):
            for _ in range(3):
                with pytest.raises(StoreError, match="could not get"):
                    await store.get(key, any_variant)
        await store.aclose()


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(b":5\r\n", id="integer"),
        pytest.param(b"+OK\r\n", id="status"),
        pytest.param(array(b"a", b"b"), id="array"),
        pytest.param(b"*-1\r\n", id="null-array"),
        pytest.param(b"-ERR no\r\n", id="error"),
    ],
)
async def test_a_value_of_another_type_is_a_miss(value: bytes, make_store: MakeStore) -> None:
    def reply(words: list[bytes]) -> bytes:
        values = [index if word == name_of(make_key("v")).encode() else value for word in words[1:]]
        return b"*%d\r\n" % len(values) + b"".join(values)

    index = bulk(codec.encode_index(make_key("v"), [codec.IndexRow(codec.variant_id(DE), 0.0, 1e308, DE)]))
    async with LyingServer(reply) as url:
        store = make_store(url)
        assert await store.get(make_key(), any_variant) is None
        for _ in range(2):  # the index first, then the index and the variant
            assert await store.get(make_key("v"), any_variant) is None
        # It harms nobody else in its batch.
        assert await asyncio.gather(*(store.get(make_key(name), any_variant) for name in ("a", "v", "b"))) == [None] * 3
        assert store.stats().errors == 0
        await store.aclose()


async def test_a_set_that_redis_does_not_confirm_is_a_store_error(make_store: MakeStore) -> None:
    async with LyingServer(lambda words: b"+QUEUED\r\n") as url:
        store = make_store(url)
        for vary in ((), DE):
            with pytest.raises(StoreError):
                await store.set(make_key(), make_entry(vary=vary))
        await store.aclose()


@pytest.mark.parametrize("at_once", [1, 5])
async def test_replies_that_come_twice_never_give_another_keys_entry(at_once: int, make_store: MakeStore) -> None:
    values = {
        name_of(make_key(number)).encode(): codec.encode(make_key(number), make_entry(b"%d" % number))
        for number in range(10)
    }
    count = 0

    def reply(words: list[bytes]) -> bytes:
        nonlocal count
        count += 1
        return array(*(values[name] for name in words[1:])) * (2 if count % 7 == 0 else 1)

    async with LyingServer(reply) as url:
        store = make_store(url, max_connections=1)
        answered = 0

        async def read(number: int) -> None:
            nonlocal answered
            with contextlib.suppress(StoreError):
                found = await store.get(make_key(number), any_variant)
                assert found is None or found.response.body == b"%d" % number
                answered += found is not None

        for turn in range(200):
            await asyncio.gather(*(read((turn + more) % 10) for more in range(at_once)))
        assert count >= 200
        assert answered > 100 * at_once
        await store.aclose()


# --- life -------------------------------------------------------------------------------------------------------------


async def test_aclose_waits_for_what_is_under_way_closes_and_may_be_followed_by_more(
    redis_url: str, server: Any, make_store: MakeStore
) -> None:
    store = make_store(redis_url)
    before = len(server.client_list())
    writes = [asyncio.ensure_future(store.set(make_key(number), make_entry())) for number in range(20)]
    await asyncio.sleep(0)
    await store.aclose()
    await store.aclose()
    assert is_idle(store)
    await asyncio.gather(*writes)
    await until(lambda: len(server.client_list()) == before)
    assert await store.get(make_key(19), any_variant) is not None


async def test_aclose_cancels_what_does_not_end_and_who_waits_for_it_gets_a_store_error(
    own_redis: RedisServer, make_store: MakeStore
) -> None:
    store = make_store(own_redis.url, timeout=0.05)
    await store.set(make_key(), make_entry())
    own_redis.pause()
    slow = asyncio.ensure_future(store.clear())  # a page has a second
    await asyncio.sleep(0)
    await store.aclose()
    assert is_idle(store)
    with pytest.raises(StoreError, match="the store was closed"):
        await slow


async def test_a_ready_client_is_not_closed(redis_url: str, make_store: MakeStore) -> None:
    async with redis.asyncio.Redis.from_url(redis_url, single_connection_client=True) as client:
        store = make_store(client)
        await store.set(make_key(), make_entry())
        connection = client.connection
        await store.aclose()
        assert connection is not None
        assert connection.is_connected


def test_each_event_loop_has_connections_of_its_own(redis_url: str, server: Any) -> None:
    store = RedisStore(redis_url, timeout=PATIENT)
    before = len(server.client_list())
    loops = []

    async def use() -> Entry | None:
        loops.append(weakref.ref(asyncio.get_running_loop()))
        await store.set(make_key(), make_entry())
        found = await store.get(make_key(), any_variant)
        await store.aclose()
        return found

    for _ in range(3):
        assert asyncio.run(use()) is not None
    gc.collect()
    assert [loop() for loop in loops] == [None] * 3  # nothing of them is kept
    assert len(server.client_list()) == before


def test_a_ready_client_in_a_second_event_loop_is_a_store_error_that_says_what_to_do(redis_url: str) -> None:
    client = redis.asyncio.Redis.from_url(redis_url)
    store = RedisStore(client, timeout=PATIENT)

    async def use() -> None:
        async with client:
            await store.set(make_key(), make_entry())

    asyncio.run(use())
    with pytest.raises(StoreError, match="URL instead"):
        asyncio.run(use())


def test_a_forked_process_makes_connections_of_its_own(redis_url: str) -> None:
    # In a process of its own: forking one that has threads, as this one may, is not safe.
    script = f"""
        import asyncio, os, sys
        from echo_cache.errors import StoreError
        from echo_cache.stores import RedisStore
        from tests.store_contract import any_variant, make_entry, make_key
        import redis, redis.asyncio

        store = RedisStore({redis_url!r}, timeout={PATIENT})
        client = redis.asyncio.Redis.from_url({redis_url!r})
        ready = RedisStore(client, timeout={PATIENT})

        async def use():
            await store.set(make_key(os.getpid()), make_entry(b"%d" % os.getpid()))
            found = await store.get(make_key(os.getpid()), any_variant)
            assert found.response.body == b"%d" % os.getpid()

        def connections():
            with redis.Redis.from_url({redis_url!r}) as server:
                return {{one["id"] for one in server.client_list()}} - {{str(server.client_id())}}

        async def child(before):
            await use()
            assert len(connections() - before) == 1
            assert connections() > before
            try:
                await ready.get(make_key(), any_variant)
            except StoreError as error:
                assert "another one" in str(error), error
            else:
                raise AssertionError("a ready client was used after a fork")
            await store.aclose()

        async def close():
            await store.aclose()
            await client.aclose()

        loop = asyncio.new_event_loop()
        loop.run_until_complete(use())
        loop.run_until_complete(ready.get(make_key(), any_variant))
        before = connections()
        for run in (loop.run_until_complete, asyncio.run):  # in the loop of the parent, and in one of its own
            pid = os.fork()
            if pid == 0:
                try:
                    run(child(before))
                    os._exit(0)
                except BaseException as error:
                    print(repr(error), file=sys.stderr, flush=True)
                    os._exit(1)
            assert os.waitpid(pid, 0)[1] == 0
            loop.run_until_complete(use())
            assert connections() == before
        loop.run_until_complete(close())
        loop.close()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        cwd=Path(__file__).parent.parent,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_redis_is_imported_when_a_store_is_made() -> None:
    script = (
        "import sys; from echo_cache.stores.redis import RedisStore; assert 'redis' not in sys.modules; "
        "RedisStore('redis://localhost'); assert 'redis' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], timeout=DEADLINE, cwd=Path(__file__).parent.parent, check=True)
