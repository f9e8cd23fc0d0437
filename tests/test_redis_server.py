"""The server that a store shares with other workers: scripts, reads, and connections for those who wait long."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio
from redis.asyncio.sentinel import Sentinel

from echo_cache.coordination.server import Command, Server
from echo_cache.errors import NotStorable, StoreError, StoreTimeout
from echo_cache.stores import MemoryStore, RedisStore, TwoLevelStore
from echo_cache.stores.redis.connections import OwnConnection
from echo_cache.stores.redis.scripts import script_of
from echo_cache.stores.redis.shared import Listener, SharedServer
from tests import redis_support as support
from tests.proxy import RedisProxy
from tests.redis_support import DEADLINE, GREETINGS, PATIENT, LyingServer, MakeStore, Recorder, is_idle, until
from tests.servers import HOST, SERVERS, Certificate, RedisCluster, RedisSentinel, RedisServer
from tests.store_contract import any_variant, make_entry, make_key

make_store, reports, server, store = support.make_store, support.reports, support.server, support.store

STREAM = "echo_cache:{log}"
PING: Command = ("PING",)


def follow(block: int = 60_000, after: str = "$", name: str = STREAM) -> Command:
    """Return the command that waits *block* ms for what is added to the stream."""
    return ("XREAD", "BLOCK", block, "STREAMS", name, after)


def added(ids: object, *values: bytes, name: str = STREAM) -> object:
    """Return the reply to XREAD when entries with *values* have the *ids*."""
    assert isinstance(ids, list)
    return [[name.encode(), [[one, [b"v", value]] for one, value in zip(ids, values, strict=True)]]]


async def until_blocked(server: Any, count: int = 1) -> None:
    """Return when *count* clients of *server* wait in a blocking command."""
    await until(lambda: server.info("clients")["blocked_clients"] == count)


def blocked(node: RedisServer) -> bool:
    return "blocked_clients:1" in node.command("INFO", "clients")


@pytest.fixture
async def listener(store: RedisStore) -> Listener:
    return await store.server.listen(STREAM)


# --- scripts ----------------------------------------------------------------------------------------------------------


async def test_a_store_has_one_server_that_coordination_can_use(redis_url: str, make_store: MakeStore) -> None:
    store = make_store(redis_url, prefix="a:b")
    server: Server = store.server  # mypy proves that it fulfils the protocol
    assert server is store.server
    assert server.prefix == "a:b"
    assert server.location == redis_url
    assert repr(server) == f"<SharedServer {redis_url} a:b [breaker closed, 0 under way]>"
    assert TwoLevelStore(MemoryStore(), store).server is server
    assert TwoLevelStore(MemoryStore(), MemoryStore()).server is None


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        pytest.param("return 7", 7, id="int"),
        pytest.param("return -1", -1, id="negative"),
        pytest.param("return 'text'", b"text", id="bytes"),
        pytest.param("return ''", b"", id="empty"),
        pytest.param("return false", None, id="none"),
        pytest.param("return {}", [], id="no-items"),
        pytest.param("return {1, {'a', {false, 2}}, 'b'}", [1, [b"a", [None, 2]], b"b"], id="nested"),
        pytest.param("return redis.call('TIME')", ..., id="reply"),
        pytest.param("return {KEYS[1], ARGV[1], ARGV[2], ARGV[3]}", [b"k", b"\xfc", "ü".encode(), b"5"], id="words"),
        pytest.param("return redis.status_reply('OK')", b"OK", id="status"),
    ],
)
@pytest.mark.parametrize("given", [False, True], ids=["url", "client"])
async def test_a_script_gives_what_it_returns(
    source: str, expected: object, given: bool, redis_url: str, make_store: MakeStore
) -> None:
    client = redis.asyncio.Redis.from_url(redis_url)  # with redis-py's defaults: RESP3
    store = make_store(client if given else redis_url)
    for _ in range(2):  # new to the server, then known
        reply = await store.server.evaluate(source, ["k"], [b"\xfc", "ü", 5])
        assert reply == expected or (expected is ... and isinstance(reply, list))
    assert store.stats().errors == 0
    await client.aclose()


async def test_a_script_is_one_round_trip_and_two_when_it_is_new(
    redis_url: str, make_store: MakeStore, server: Any
) -> None:
    server.script_flush()
    async with Recorder(redis_url) as recorder:
        shared = make_store(recorder.client).server
        source = "return redis.call('INCRBY', KEYS[1], ARGV[1])"
        for expected in (["EVALSHA", "EVAL"], ["EVALSHA"]):
            await shared.evaluate(source, ["k"], [3])
            assert recorder.taken() == expected
        server.script_flush()
        assert await shared.evaluate(source, ["k"], [3]) == 9
        assert recorder.taken() == ["EVALSHA", "EVAL"]
        assert await asyncio.gather(*(shared.evaluate(source, ["k"], [1]) for _ in range(3))) == [10, 11, 12]
        assert recorder.taken() == ["EVALSHA EVALSHA EVALSHA"]


def test_the_sum_of_a_script_is_made_once() -> None:
    assert script_of("return 1") is script_of("return 1")
    assert script_of("return 1").sha1 == "e0e1f9fabfc9d4800c877a703b823ac0578ff8db"


@pytest.mark.parametrize(
    "source",
    [
        pytest.param("return redis.error_reply('ERR own')", id="own"),
        pytest.param("this is no Lua", id="syntax"),
        pytest.param("return redis.call('GET')", id="arguments"),
        pytest.param("redis.call('SET', KEYS[1], 'x') return redis.call('LPUSH', KEYS[1], 'y')", id="wrong-type"),
    ],
)
async def test_a_script_that_fails_is_a_store_error_and_is_counted(source: str, store: RedisStore) -> None:
    for count in range(1, 6):
        with pytest.raises(StoreError, match="could not run a script") as caught:
            await store.server.evaluate(source, ["k"], [])
        assert isinstance(caught.value.__cause__, redis.ResponseError)
        assert not isinstance(caught.value, StoreTimeout)
        assert store.stats().errors == count
    assert store.breaker_state == "closed"  # it answers


async def test_words_that_are_no_text_are_refused_and_harm_nobody_in_the_batch(store: RedisStore) -> None:
    outcomes = await asyncio.gather(
        store.server.evaluate("return 1", ["k"], []),
        store.server.evaluate("return 1", ["k"], ["\udcff"]),
        store.server.evaluate("return 1", ["\udcff"], []),
        store.set(make_key(), make_entry()),
        return_exceptions=True,
    )
    assert [type(outcome) for outcome in outcomes] == [int, NotStorable, NotStorable, bool]
    assert store.breaker_state == "closed"


async def test_a_server_that_does_not_answer_is_a_store_timeout_in_time(
    own_redis: RedisServer, make_store: MakeStore
) -> None:
    store = make_store(own_redis.url, timeout=0.1)
    await store.server.evaluate("return 1", ["k"], [])
    own_redis.pause()
    began = time.monotonic()
    for _ in range(3):
        with pytest.raises(StoreTimeout, match=r"did not run a script within 0.1 s"):
            await store.server.evaluate("return 1", ["k"], [])
    assert time.monotonic() - began < DEADLINE / 2
    assert store.timeouts == 3
    assert store.breaker_state != "closed"
    with pytest.raises(StoreError, match="is not asked to run a script"):
        await store.server.evaluate("return 1", ["k"], [])
    with pytest.raises(StoreError, match="is not asked to read"):
        await store.server.read("k")


async def test_both_round_trips_of_a_new_script_have_one_time_budget(proxy: RedisProxy, make_store: MakeStore) -> None:
    store = make_store(proxy.url, timeout=0.5, breaker_failures=100)
    await store.server.read("k")
    proxy.hold(only=("EVAL",))
    with pytest.raises(StoreTimeout, match=r"did not run a script within 0.5 s"):
        await store.server.evaluate("return 'new here'", ["k"], [])
    proxy.heal()
    assert store.timeouts > 0


# --- reads ------------------------------------------------------------------------------------------------------------


async def test_reads_are_batched_and_what_is_no_string_is_none(
    redis_url: str, server: Any, make_store: MakeStore
) -> None:
    async with Recorder(redis_url) as recorder:
        shared = make_store(recorder.client).server
        server.set("text", b"\x00\xff")
        server.set("empty", b"")
        server.lpush("list", "x")
        names = ("text", "empty", "list", "nothing", "text")
        assert await asyncio.gather(*map(shared.read, names)) == [b"\x00\xff", b"", None, None, b"\x00\xff"]
        assert recorder.taken() == ["MGET"]


async def test_a_read_that_fails_is_a_store_error_and_is_counted(own_redis: RedisServer, make_store: MakeStore) -> None:
    store = make_store(own_redis.url)
    own_redis.kill()
    with pytest.raises(StoreError, match="could not read") as caught:
        await store.server.read("k")
    assert isinstance(caught.value.__cause__, redis.ConnectionError)
    assert store.stats().errors == 1


async def test_a_value_that_is_no_string_by_the_word_of_the_server_is_none(make_store: MakeStore) -> None:
    async with LyingServer(lambda _: b"*1\r\n:7\r\n") as url:
        assert await make_store(url).server.read("k") is None


# --- waiting for long -------------------------------------------------------------------------------------------------


async def test_commands_go_out_in_one_write_and_are_answered_in_order(proxy: RedisProxy, make_store: MakeStore) -> None:
    listener = await make_store(proxy.url).server.listen(STREAM)
    first, second = await listener.ask([("XADD", STREAM, "*", "v", b"1"), ("XADD", STREAM, "*", b"v", 2)], PATIENT)
    replies = await listener.ask([("XREAD", "STREAMS", STREAM, 0), ("GET", "nothing"), ("XLEN", STREAM)], PATIENT)
    assert replies == [added([first, second], b"1", b"2"), None, 2]
    assert await listener.ask([], PATIENT) == []
    assert proxy.connections == 1


@pytest.mark.parametrize("own_redis", SERVERS, indirect=True)
async def test_what_is_added_wakes_who_waits(own_redis: RedisServer, make_store: MakeStore) -> None:
    store = make_store(own_redis.url)
    listener = await store.server.listen(STREAM)
    waiting = asyncio.create_task(listener.ask([follow()], PATIENT))
    await until(lambda: blocked(own_redis))
    assert repr(listener) == f"<Listener {store.server.location} <OwnConnection [waits for replies]>>"
    entry = await store.server.evaluate("return redis.call('XADD', KEYS[1], '*', 'v', ARGV[1])", [STREAM], ["x"])
    assert await waiting == [added([entry], b"x")]
    assert await listener.ask([follow(1)], PATIENT) == [None]  # nothing came
    assert repr(listener).endswith("[idle]>>")
    await listener.aclose()
    assert repr(listener).endswith("[closed]>>")


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"socket_timeout": 0.2}, id="resp3"),
        pytest.param({"socket_timeout": 0.2, "protocol": 2, "retry_on_timeout": True}, id="resp2-retries"),
        pytest.param({"socket_timeout": 0.2, "health_check_interval": 0.001}, id="health-checks"),
    ],
)
async def test_the_time_outs_of_a_ready_client_do_not_end_a_long_wait(
    settings: dict[str, Any], proxy: RedisProxy, server: Any, make_store: MakeStore
) -> None:
    async with redis.asyncio.Redis.from_url(proxy.url, **settings) as client:
        listener = await make_store(client).server.listen(STREAM)
        proxy.forget()
        began = time.monotonic()
        assert await listener.ask([follow(1500), PING], PATIENT) == [None, b"PONG"]
        assert time.monotonic() - began >= 1.4
        waiting = asyncio.create_task(listener.ask([follow()], PATIENT))
        await until_blocked(server)
        entry = server.xadd(STREAM, {"v": "x"})
        assert await waiting == [added([entry], b"x")]  # RESP2's shape, whatever the client speaks
        assert [words[0] for words in proxy.commands] == [b"XREAD", b"PING", b"XREAD"]
        assert proxy.connections == 0  # since it listens


async def test_an_ask_out_of_time_is_a_store_timeout_and_ends_the_connection(
    store: RedisStore, listener: Listener, server: Any
) -> None:
    with pytest.raises(StoreTimeout, match=r"did not answer within 0.1 s"):
        await listener.ask([follow()], 0.1)
    await until_blocked(server, 0)
    server.xadd(STREAM, {"v": "late"})
    for _ in range(2):
        with pytest.raises(StoreError, match="the connection is closed"):
            await listener.ask([PING], PATIENT)
    await listener.aclose()
    assert (store.breaker_state, store.stats().errors, store.timeouts) == ("closed", 0, 0)


async def test_a_cancelled_ask_ends_the_connection(listener: Listener, server: Any) -> None:
    waiting = asyncio.create_task(listener.ask([follow()], PATIENT))
    await until_blocked(server)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await until_blocked(server, 0)
    with pytest.raises(StoreError, match="the connection is closed"):
        await listener.ask([PING], PATIENT)


async def test_a_second_ask_at_a_time_is_refused_and_takes_no_reply_of_the_first(
    listener: Listener, server: Any
) -> None:
    waiting = asyncio.create_task(listener.ask([follow()], PATIENT))
    await until_blocked(server)
    with pytest.raises(StoreError, match="waits for other replies"):
        await listener.ask([PING], PATIENT)
    entry = server.xadd(STREAM, {"v": "x"})
    assert await waiting == [added([entry], b"x")]
    assert await listener.ask([PING], PATIENT) == [b"PONG"]


async def test_an_error_reply_is_a_store_error_and_ends_the_connection(
    store: RedisStore, listener: Listener, server: Any
) -> None:
    server.set(STREAM, "no stream")
    with pytest.raises(StoreError, match="WRONGTYPE") as caught:
        await listener.ask([PING, follow(after="0"), ("SET", "k", "v")], PATIENT)
    assert isinstance(caught.value.__cause__, redis.ResponseError)
    with pytest.raises(StoreError, match="the connection is closed"):
        await listener.ask([PING], PATIENT)
    assert await (await store.server.listen(STREAM)).ask([PING], PATIENT) == [b"PONG"]
    assert store.breaker_state == "closed"


@pytest.mark.parametrize("is_asking", [True, False], ids=["while-it-waits", "between-asks"])
async def test_a_connection_that_the_server_closes_is_a_store_error_and_is_not_made_again(
    is_asking: bool, proxy: RedisProxy, server: Any, make_store: MakeStore
) -> None:
    store = make_store(proxy.url)
    listener = await store.server.listen(STREAM)
    (number,) = await listener.ask([("CLIENT", "ID")], PATIENT)
    asked = [asyncio.create_task(listener.ask([follow()], PATIENT))] if is_asking else []
    await until_blocked(server, len(asked))
    server.client_kill_filter(_id=number)
    await until(lambda: has_ended(listener))
    with pytest.raises(StoreError) as caught:
        await (asked[0] if asked else listener.ask([PING], PATIENT))
    assert isinstance(caught.value.__cause__, redis.ConnectionError)
    with pytest.raises(StoreError, match="the connection is closed"):
        await listener.ask([PING], PATIENT)
    assert proxy.connections == 1
    assert store.breaker_state == "closed"


def has_ended(listener: Listener) -> bool:
    """Say whether the end of the connection has arrived here."""
    reader = listener._own._connection._reader
    return reader is None or reader.at_eof()


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(b"\x00\xffgarbage\r\n", id="garbage"),
        pytest.param(b"*1\r\n" * 20_000 + b":1\r\n", id="deep"),
        pytest.param(b"-LOADING Redis is loading the dataset in memory\r\n", id="loading"),
        pytest.param(b"-READONLY You can't write against a read only replica.\r\n", id="readonly"),
        pytest.param(b"-UNBLOCKED force unblock from blocking operation\r\n", id="unblocked"),
        pytest.param(b"$5\r\nab", id="cut"),
    ],
)
async def test_whatever_a_server_says_is_a_store_error(reply: bytes, make_store: MakeStore) -> None:
    async with LyingServer(lambda _: reply) as url:
        listener = await make_store(url).server.listen(STREAM)
        with pytest.raises(StoreError):
            await listener.ask([follow()], 0.5)
        with pytest.raises(StoreError, match="the connection is closed"):
            await listener.ask([PING], PATIENT)


async def test_a_reply_that_comes_twice_does_not_answer_the_next_ask(make_store: MakeStore) -> None:
    async with LyingServer(lambda _: b":1\r\n:1\r\n") as url:
        listener = await make_store(url).server.listen(STREAM)
        assert await listener.ask([("GET", "a")], PATIENT) == [1]
        with pytest.raises(StoreError, match="was lost"):
            await listener.ask([("GET", "b")], PATIENT)


async def test_commands_that_cannot_be_sent_are_a_store_error(listener: Listener) -> None:
    with pytest.raises(StoreError):
        await listener.ask([("GET", "\udcff")], PATIENT)
    with pytest.raises(StoreError, match="the connection is closed"):
        await listener.ask([PING], PATIENT)


# --- connecting -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [False, True], ids=["url", "client"])
async def test_connecting_to_a_server_that_hangs_is_a_store_timeout_in_time(
    given: bool, own_redis: RedisServer, make_store: MakeStore, reports: list[Any]
) -> None:
    client = redis.asyncio.Redis.from_url(own_redis.url)
    store = make_store(client if given else own_redis.url, timeout=0.2)
    own_redis.pause()
    began = time.monotonic()
    for _ in range(5):
        with pytest.raises(StoreTimeout, match=r"did not accept a listener within 0.2 s"):
            await store.server.listen(STREAM)
    assert 0.9 < time.monotonic() - began < DEADLINE / 2
    assert store.breaker_state == "closed"
    own_redis.resume()
    listener = await store.server.listen(STREAM)
    assert await listener.ask([PING], PATIENT) == [b"PONG"]
    await client.aclose()


async def test_connecting_to_a_server_that_refuses_or_is_full_is_a_store_error(
    proxy: RedisProxy, make_store: MakeStore, reports: list[Any]
) -> None:
    store = make_store(proxy.url)
    for trouble in (proxy.refuse, proxy.max_clients):
        trouble()
        with pytest.raises(StoreError, match="could not accept a listener") as caught:
            await store.server.listen(STREAM)
        assert isinstance(caught.value.__cause__, redis.ConnectionError)
        proxy.heal()
    wrong = make_store(proxy.url.replace("//", "//:wr0ng@"))
    with pytest.raises(StoreError) as caught:
        await wrong.server.listen(STREAM)
    assert "wr0ng" not in str(caught.value)


async def test_an_open_breaker_does_not_keep_from_listening(proxy: RedisProxy, make_store: MakeStore) -> None:
    store = make_store(proxy.url, breaker_failures=1, probe_interval=PATIENT)
    await store.get(make_key(), any_variant)
    proxy.reset_in_reply(only=("MGET",))
    with pytest.raises(StoreError):
        await store.get(make_key(), any_variant)
    assert store.breaker_state == "open"
    assert await (await store.server.listen(STREAM)).ask([PING], PATIENT) == [b"PONG"]


async def test_a_caller_cancelled_while_it_connects_leaves_no_connection(
    proxy: RedisProxy, make_store: MakeStore, reports: list[Any]
) -> None:
    store = make_store(proxy.url)
    proxy.hold(only=[name.decode() for name in GREETINGS])
    connecting = asyncio.create_task(store.server.listen(STREAM))
    await until(lambda: proxy.open_connections == 1)
    connecting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await connecting
    proxy.heal()
    await until(lambda: proxy.open_connections == 0)


async def test_a_caller_cancelled_in_any_turn_leaves_no_connection(store: RedisStore, monkeypatch: Any) -> None:
    made: list[FakeConnection] = []

    async def dedicated(name: str) -> OwnConnection:
        await asyncio.sleep(0)
        made.append(FakeConnection())
        return OwnConnection(made[-1])

    monkeypatch.setattr(store.server.link()._client, "dedicated", dedicated)
    reached = 0
    for turns in range(10):
        connecting = asyncio.create_task(store.server.listen(STREAM))
        for _ in range(turns):
            await asyncio.sleep(0)
        connecting.cancel()
        (outcome,) = await asyncio.gather(connecting, return_exceptions=True)
        await until(lambda: is_idle(store))
        if isinstance(outcome, Listener):
            reached += 1
            await outcome.aclose()
        assert [connection.is_connected for connection in made] == [False] * len(made)
    assert 0 < reached < len(made) < 10  # before it was made, between, and when the caller had it


class FakeConnection:
    is_connected = True

    async def disconnect(self, nowait: bool = False) -> None:
        self.is_connected = False


async def test_a_ready_client_whose_hook_fails_leaves_no_connection(
    proxy: RedisProxy, make_store: MakeStore, reports: list[Any]
) -> None:
    async def hook(connection: Any) -> None:
        raise ValueError("not today")

    async with redis.asyncio.Redis.from_url(proxy.url, redis_connect_func=hook) as client:
        with pytest.raises(StoreError, match="not today"):
            await make_store(client).server.listen(STREAM)
    await until(lambda: proxy.connections == 1 and proxy.open_connections == 0)


async def test_a_listener_takes_no_place_in_the_pool(redis_url: str, make_store: MakeStore, server: Any) -> None:
    store = make_store(redis_url, max_connections=1)
    listeners = [await store.server.listen(STREAM) for _ in range(3)]
    waiting = [asyncio.create_task(listener.ask([follow()], PATIENT)) for listener in listeners]
    await until_blocked(server, 3)
    assert await store.set(make_key(), make_entry())
    assert await store.get(make_key(), any_variant) is not None
    entry = await store.server.evaluate("return redis.call('XADD', KEYS[1], '*', 'v', 'x')", [STREAM], [])
    assert await asyncio.gather(*waiting) == [[added([entry], b"x")]] * 3


async def test_a_unix_socket_is_listened_to(tmp_path: Path, make_store: MakeStore) -> None:
    path = tmp_path / "redis.sock"
    with RedisServer(("--unixsocket", str(path))):
        store = make_store(f"unix://{path}?db=3")
        await store.server.evaluate("return redis.call('XADD', KEYS[1], '1-1', 'v', 'x')", [STREAM], [])
        listener = await store.server.listen(STREAM)
        assert await listener.ask([follow(after="0")], PATIENT) == [added([b"1-1"], b"x")]
        await store.aclose()


async def test_a_server_that_speaks_tls_is_listened_to(
    tls_proxy: RedisProxy, certificate: Certificate, make_store: MakeStore, server: Any
) -> None:
    store = make_store(f"{tls_proxy.url}?ssl_ca_certs={certificate.file}")
    listener = await store.server.listen(STREAM)
    waiting = asyncio.create_task(listener.ask([follow()], PATIENT))
    await until_blocked(server)
    entry = server.xadd(STREAM, {"v": "x"})
    assert await waiting == [added([entry], b"x")]
    await store.aclose()


# --- life -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [False, True], ids=["url", "client"])
async def test_closing_the_store_closes_its_listeners_and_tells_who_waits(
    given: bool, redis_url: str, make_store: MakeStore, server: Any, reports: list[Any]
) -> None:
    before = len(server.client_list())
    async with redis.asyncio.Redis.from_url(redis_url) as client:
        store = make_store(client if given else redis_url)
        idle, waiting = await store.server.listen(STREAM), await store.server.listen(STREAM)
        asked = asyncio.create_task(waiting.ask([follow()], PATIENT))
        await until_blocked(server)
        await store.aclose()
        with pytest.raises(StoreError):
            await asked
        with pytest.raises(StoreError, match="the connection is closed"):
            await idle.ask([PING], PATIENT)
        for listener in (idle, waiting):
            await listener.aclose()
            await listener.aclose()
        await until(lambda: len(server.client_list()) == before)
        # It may be used again, as the store may.
        again = await store.server.listen(STREAM)
        assert await again.ask([PING], PATIENT) == [b"PONG"]
        await store.aclose()
        await until(lambda: len(server.client_list()) == before)


async def test_closing_the_store_ends_those_who_are_connecting(
    proxy: RedisProxy, make_store: MakeStore, reports: list[Any]
) -> None:
    store = make_store(proxy.url, timeout=0.3)
    proxy.hold(only=[name.decode() for name in GREETINGS])
    connecting = asyncio.create_task(store.server.listen(STREAM))
    await until(lambda: proxy.open_connections == 1)
    await store.aclose()
    with pytest.raises(StoreError):
        await connecting
    proxy.heal()
    await until(lambda: proxy.open_connections == 0)


def test_listeners_that_were_closed_are_not_kept(redis_url: str) -> None:
    async def use() -> None:
        store = RedisStore(redis_url, timeout=PATIENT)
        for _ in range(20):
            await (await store.server.listen(STREAM)).aclose()
        assert len(store.server.link()._own) <= 1
        await store.server.listen(STREAM)  # forgotten, and open
        gc.collect()
        await store.aclose()
        assert not store.server.link()._own
        await store.aclose()

    asyncio.run(use())
    gc.collect()


def test_a_listener_of_another_event_loop_is_refused(redis_url: str) -> None:
    store = RedisStore(redis_url, timeout=PATIENT)
    loop = asyncio.new_event_loop()
    listener = loop.run_until_complete(store.server.listen(STREAM))

    async def use() -> None:
        with pytest.raises(StoreError, match="another process's or event loop's"):
            await listener.ask([PING], PATIENT)
        await listener.aclose()
        assert await (await store.server.listen(STREAM)).ask([PING], PATIENT) == [b"PONG"]
        await store.aclose()

    asyncio.run(use())
    assert loop.run_until_complete(listener.ask([PING], PATIENT)) == [b"PONG"]
    loop.run_until_complete(store.aclose())
    loop.close()


def test_a_forked_process_leaves_its_parents_listener_alone(redis_url: str) -> None:
    # In a process of its own: forking one that has threads, as this one may, is not safe.
    script = f"""
        import asyncio, gc, os, sys
        from echo_cache.errors import StoreError
        from echo_cache.stores import RedisStore

        store = RedisStore({redis_url!r}, timeout={PATIENT})

        async def works(listener):
            assert await listener.ask([("PING",)], {PATIENT}) == [b"PONG"]

        async def child():
            global listener
            try:
                await listener.ask([("PING",)], {PATIENT})
            except StoreError as error:
                assert "another process" in str(error), error
            else:
                raise AssertionError("the parent's connection was used")
            await listener.aclose()
            del listener
            gc.collect()
            await works(await store.server.listen("s"))
            await store.aclose()
            gc.collect()

        loop = asyncio.new_event_loop()
        listener = loop.run_until_complete(store.server.listen("s"))
        for run in (loop.run_until_complete, asyncio.run):  # in the loop of the parent, and in one of its own
            pid = os.fork()
            if pid == 0:
                try:
                    run(child())
                    os._exit(0)
                except BaseException as error:
                    print(repr(error), file=sys.stderr, flush=True)
                    os._exit(1)
            assert os.waitpid(pid, 0)[1] == 0
            loop.run_until_complete(works(listener))
        loop.run_until_complete(store.aclose())
        loop.close()
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


# --- a cluster --------------------------------------------------------------------------------------------------------

ADD = "return redis.call('XADD', KEYS[1], '*', 'v', ARGV[1])"


@pytest.fixture(params=["url", "client"])
async def cluster_store(
    request: pytest.FixtureRequest, cluster: RedisCluster, make_store: MakeStore
) -> AsyncIterator[RedisStore]:
    async with redis.asyncio.RedisCluster(host=HOST, port=cluster.nodes[-1].port) as client:
        yield make_store(client if request.param == "client" else cluster.url)


async def test_scripts_reads_and_waits_go_to_the_owner_of_the_key(
    cluster_store: RedisStore, cluster: RedisCluster
) -> None:
    shared = cluster_store.server
    names = [f"echo_cache:{{log{number}}}" for number in range(12)]
    assert len({cluster.master_of(name).port for name in names}) == 3
    for node in cluster.nodes[:3]:
        node.command("SCRIPT", "FLUSH")
        node.command("CONFIG", "RESETSTAT")
    for name in names:
        listener = await shared.listen(name)
        waiting = asyncio.create_task(listener.ask([follow(name=name)], PATIENT))
        await until(lambda name=name: blocked(cluster.master_of(name)))  # type: ignore[misc]
        entry = await shared.evaluate(ADD, [name], [name])
        assert await waiting == [added([entry], name.encode(), name=name)]
        await listener.aclose()
    for name in names:
        cluster.master_of(name).command("SET", name, "text")
    assert await asyncio.gather(*map(shared.read, names)) == [b"text"] * len(names)
    assert "MOVED" not in "".join(node.command("INFO", "errorstats") for node in cluster.nodes)
    assert cluster_store.stats().errors == 0


@pytest.mark.parametrize("is_waiting", [True, False], ids=["while-it-waits", "between-asks"])
async def test_after_the_slot_has_moved_one_ask_fails_and_the_next_listener_is_right(
    is_waiting: bool, cluster_store: RedisStore, cluster: RedisCluster
) -> None:
    shared = cluster_store.server
    await shared.evaluate(ADD, [STREAM], ["before"])
    listener = await shared.listen(STREAM)
    old = cluster.master_of(STREAM)
    waiting = asyncio.create_task(listener.ask([follow()], PATIENT)) if is_waiting else None
    if is_waiting:
        await until(lambda: blocked(old))
    await asyncio.to_thread(move, cluster, STREAM)
    with pytest.raises(StoreError, match=r"\d+") as caught:
        await (waiting or listener.ask([follow()], PATIENT))
    assert isinstance(caught.value.__cause__, redis.exceptions.MovedError)
    with pytest.raises(StoreError, match="the connection is closed"):
        await listener.ask([PING], PATIENT)
    listener = await shared.listen(STREAM)
    new = cluster.master_of(STREAM)
    assert new is not old
    assert await listener.ask([("CLUSTER", "MYID")], PATIENT) == [new.command("CLUSTER", "MYID").encode()]
    waiting = asyncio.create_task(listener.ask([follow()], PATIENT))
    await until(lambda: blocked(new))
    entry = await shared.evaluate(ADD, [STREAM], ["after"])
    assert await waiting == [added([entry], b"after")]
    assert cluster_store.stats().errors == 0


def move(cluster: RedisCluster, name: str) -> None:
    """Move the slot of *name*, and this key, to another server."""
    source = cluster.master_of(name)
    target = next(node for node in cluster.nodes[:3] if node is not source)
    slot = str(cluster.slot_of(name))
    target.command("CLUSTER", "SETSLOT", slot, "IMPORTING", source.command("CLUSTER", "MYID"))
    source.command("CLUSTER", "SETSLOT", slot, "MIGRATING", target.command("CLUSTER", "MYID"))
    source.command("MIGRATE", HOST, str(target.port), name, "0", "5000")
    for node in (target, source):
        node.command("CLUSTER", "SETSLOT", slot, "NODE", target.command("CLUSTER", "MYID"))


@pytest.mark.parametrize("is_killed", [True, False], ids=["killed", "replaced"])
async def test_when_a_replica_takes_over_it_is_listened_to(
    is_killed: bool, own_cluster: RedisCluster, make_store: MakeStore, reports: list[Any]
) -> None:
    shared = make_store(own_cluster.url, timeout=1.0, probe_interval=0.1).server
    name = next(name for name in map(str, range(1_000)) if own_cluster.master_of(name) is own_cluster.nodes[0])
    listener = await shared.listen(name)
    waiting = asyncio.create_task(listener.ask([follow(name=name)], PATIENT))
    await until(lambda: blocked(own_cluster.nodes[0]))
    if is_killed:
        own_cluster.kill_master_of(name)
    else:
        replica = own_cluster.replica_of(own_cluster.nodes[0])
        assert replica is not None
        replica.command("CLUSTER", "FAILOVER")
    with pytest.raises(StoreError):
        await waiting
    client: Any = shared.link()._client
    assert client._refresh or client._timer  # it finds out who has the slot now, unasked
    new = await listened(shared, name)
    entry = await shared.evaluate(ADD, [name], ["x"])
    assert await new.ask([follow(after="0", name=name)], PATIENT) == [added([entry], b"x", name=name)]
    await new.aclose()
    # Who has the slot is known before the end: a connection that is being made just then is redis-py's to lose.
    await until(lambda: client._refresh is None and client._timer is None)


async def listened(shared: SharedServer, name: str) -> Listener:
    """Return a listener to a server that takes writes to *name*, as soon as there is one."""
    async with asyncio.timeout(DEADLINE):
        while True:
            listener: Listener | None = None
            try:
                listener = await shared.listen(name)
                await listener.ask([("DEL", name)], PATIENT)
            except StoreError:
                if listener is not None:
                    await listener.aclose()
                await asyncio.sleep(0.05)
            else:
                return listener


async def test_a_cluster_that_is_not_there_is_a_store_error(redis_url: str, make_store: MakeStore) -> None:
    store = make_store(redis_url.replace("redis://", "redis+cluster://"))
    with pytest.raises(StoreError, match="cluster support disabled"):
        await store.server.listen(STREAM)


# --- sentinels --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [False, True], ids=["url", "client"])
async def test_the_primary_that_sentinels_name_is_listened_to_and_its_successor(
    given: bool, own_sentinel: RedisSentinel, make_store: MakeStore, reports: list[Any]
) -> None:
    where: Any = Sentinel([(HOST, own_sentinel.sentinel.port)])  # type: ignore[no-untyped-call]  # redis-py has no types
    async with where, where.master_for("main", socket_timeout=0.2) as client:
        store = make_store(client if given else own_sentinel.url, timeout=1.0, probe_interval=0.1)
        listener = await store.server.listen(STREAM)
        assert await listener.ask([follow(500)], PATIENT) == [None]
        waiting = asyncio.create_task(listener.ask([follow()], PATIENT))
        await until(lambda: blocked(own_sentinel.current_master()))
        entry = await store.server.evaluate(ADD, [STREAM], ["x"])
        assert await waiting == [added([entry], b"x")]
        old = own_sentinel.kill_master()
        with pytest.raises(StoreError):
            await listener.ask([PING], PATIENT)
        new = await listened(store.server, STREAM)
        assert own_sentinel.current_master() is not old
        waiting = asyncio.create_task(new.ask([follow()], PATIENT))
        await until(lambda: blocked(own_sentinel.current_master()))
        entry = await store.server.evaluate(ADD, [STREAM], ["y"])
        assert await waiting == [added([entry], b"y")]
        port = str(own_sentinel.current_master().port).encode()
        assert await new.ask([("CONFIG", "GET", "port")], PATIENT) == [[b"port", port]]
        await store.aclose()
