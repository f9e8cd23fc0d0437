"""Redis that answers with anything but what it should. Each request gets a normal answer, and never another key's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from echo_cache.stores.redis.breaker import BreakerState
from tests import trouble
from tests.proxy import GREETINGS, WRONG_TYPES, RedisProxy
from tests.servers import RedisServer
from tests.trouble import Site, Traffic, each_strategy_of_some, until_l2_answers

no_loose_ends = trouble.no_loose_ends
pytestmark = pytest.mark.usefixtures("no_loose_ends")

# What changes entries. The script with which the log is opened (EVAL) only reads, where there is a log.
WRITES = ("SET", "EVALSHA")

# A request of each kind that reads, and of the kinds that invalidate.
KINDS: list[dict[str, Any]] = [
    {},
    {"method": "HEAD"},
    {"headers": {"range": "bytes=0-100000"}},
    {"headers": {"cookie": "a=1"}},
    {"headers": {"accept-language": "de"}},
    {"headers": {"cache-control": "no-cache"}},
    {"method": "PUT"},
]

Inflict = Callable[[RedisProxy], None]


def _error(text: bytes) -> Inflict:
    return lambda proxy: proxy.reply_error(text, but=GREETINGS)


def _to_all(text: bytes) -> Inflict:
    return lambda proxy: (proxy.reset_connections(), proxy.reply_error(text))[-1]


def _full(proxy: RedisProxy) -> None:
    proxy.max_clients()
    proxy.reset_connections()


TROUBLES = [
    pytest.param(lambda proxy: proxy.reset_in_reply(replies=None), id="reset"),
    pytest.param(lambda proxy: proxy.reset_in_reply(after_bytes=60, replies=None), id="reset in the middle"),
    pytest.param(lambda proxy: proxy.truncate(replies=None), id="truncated"),
    pytest.param(lambda proxy: proxy.truncate(after_bytes=60, replies=None), id="truncated in the middle"),
    pytest.param(lambda proxy: proxy.garbage(), id="garbage"),
    pytest.param(lambda proxy: proxy.garbage(b"", but=GREETINGS), id="nothing"),
    pytest.param(lambda proxy: proxy.garbage(b"*1000000\r\n"), id="endless array"),
    pytest.param(lambda proxy: proxy.garbage(b"$100000000000\r\n", but=GREETINGS), id="endless value"),
    pytest.param(lambda proxy: proxy.nested(20_000), id="nested"),
    pytest.param(lambda proxy: proxy.twice(), id="doubled"),
    pytest.param(lambda proxy: proxy.twice(only=("MGET",)), id="doubled reads"),
    *(
        pytest.param(lambda proxy, name=name: proxy.wrong_type(name, but=GREETINGS), id=f"wrong type, {name}")
        for name in WRONG_TYPES
    ),
    pytest.param(_error(b"-LOADING Redis is loading the dataset in memory"), id="LOADING"),
    pytest.param(_to_all(b"-LOADING Redis is loading the dataset in memory"), id="LOADING, greetings too"),
    pytest.param(_error(b"-NOAUTH Authentication required."), id="NOAUTH"),
    pytest.param(_to_all(b"-NOAUTH Authentication required."), id="NOAUTH, greetings too"),
    pytest.param(_error(b"-WRONGPASS invalid username-password pair or user is disabled."), id="WRONGPASS"),
    pytest.param(_error(b"-NOPERM this user has no permissions to run the 'mget' command"), id="NOPERM"),
    pytest.param(_error(b"-MOVED 3999 127.0.0.1:1"), id="MOVED"),
    pytest.param(_error(b"-ASK 3999 127.0.0.1:1"), id="ASK"),
    pytest.param(_error(b"-CLUSTERDOWN The cluster is down"), id="CLUSTERDOWN"),
    pytest.param(_error(b"-MASTERDOWN Link with MASTER is down"), id="MASTERDOWN"),
    pytest.param(_error(b"-BUSY Redis is busy running a script."), id="BUSY"),
    pytest.param(_error(b"-ERR " + b"x" * 100_000), id="long error"),
    pytest.param(_full, id="max clients"),
    pytest.param(lambda proxy: proxy.refuse(), id="refused"),
]

# Redis can be read, and refuses to be written.
REFUSED_WRITES = [
    pytest.param(b"-READONLY You can't write against a read only replica.", id="READONLY"),
    pytest.param(b"-OOM command not allowed when used memory > 'maxmemory'.", id="OOM"),
    pytest.param(b"-MISCONF Redis is configured to save RDB snapshots", id="MISCONF"),
    pytest.param(b"-NOREPLICAS Not enough good replicas to write.", id="NOREPLICAS"),
]


@pytest.fixture
def proxy(own_redis: RedisServer) -> Iterator[RedisProxy]:
    with RedisProxy(own_redis.port) as proxy:
        yield proxy


async def all_kinds(site: Site, name: str) -> None:
    """Send requests of each kind, for what memory has, what only Redis has, and what nobody has."""
    paths = [f"/{name}/below", f"/{name}/new", f"/varies/{name}", "/hot/1"]
    await asyncio.gather(*(site.ask(path, **options) for options in KINDS for path in paths))


@pytest.mark.parametrize(
    ("strategy", "inflict"), each_strategy_of_some(TROUBLES, ["reset", "garbage", "doubled", "NOAUTH"])
)
async def test_answers_are_normal_under_any_reply_and_redis_is_used_afterwards(
    strategy: str, inflict: Inflict, proxy: RedisProxy, own_redis: RedisServer
) -> None:
    other = Site(own_redis.url, timeout=30)
    below = [f"/below/{number}" for number in range(80)]
    await other.put([*below, "/first/below", "/second/below"])
    # A machine that is slow must not turn replies into time-outs: those are another test's.
    site = Site(proxy.url, strategy=strategy, timeout=0.5)
    async with Traffic(site, below) as traffic:
        await traffic.more(20)
        await asyncio.to_thread(inflict, proxy)
        await traffic.more(40)
        await all_kinds(site, "first")
        await traffic.more(40)
        await asyncio.to_thread(proxy.heal)
        await traffic.more(20)
        await until_l2_answers(site, own_redis.url)
        await all_kinds(site, "second")


@pytest.mark.parametrize(("strategy", "error"), each_strategy_of_some(REFUSED_WRITES, ["OOM"]))
async def test_redis_that_refuses_writes_is_read_all_the_same(
    strategy: str, error: bytes, proxy: RedisProxy, own_redis: RedisServer
) -> None:
    other = Site(own_redis.url, timeout=30)
    below = [f"/below/{number}" for number in range(200)]
    await other.put(below)
    site = Site(proxy.url, strategy=strategy, timeout=30)
    proxy.reply_error(error, only=WRITES)
    async with Traffic(site, below[:100]) as traffic:
        await traffic.more(300)
        await all_kinds(site, "first")
        assert site.l2.breaker_state is BreakerState.CLOSED
        assert all([(await site.ask(path)).is_hit for path in below[100:]])
        await asyncio.to_thread(proxy.heal)


def _replica(server: RedisServer) -> None:
    server.command("REPLICAOF", "127.0.0.1", "1")


def _primary(server: RedisServer) -> None:
    server.command("REPLICAOF", "NO", "ONE")


def _out_of_memory(server: RedisServer) -> None:
    server.command("CONFIG", "SET", "maxmemory", "1")


def _memory(server: RedisServer) -> None:
    server.command("CONFIG", "SET", "maxmemory", "0")


@pytest.mark.parametrize(
    ("refuse", "accept"),
    [pytest.param(_replica, _primary, id="real READONLY"), pytest.param(_out_of_memory, _memory, id="real OOM")],
)
async def test_real_server_that_refuses_writes_is_read_all_the_same_and_written_again_later(
    refuse: Callable[[RedisServer], None], accept: Callable[[RedisServer], None], own_redis: RedisServer
) -> None:
    other = Site(own_redis.url, timeout=30)
    below = [f"/below/{number}" for number in range(200)]
    await other.put(below)
    site = Site(own_redis.url, timeout=30)
    refuse(own_redis)
    async with Traffic(site, below[:100]) as traffic:
        await traffic.more(300)
        assert all([(await site.ask(path)).is_hit for path in below[100:]])
        accept(own_redis)
        await site.put(["/later"])
    assert (await Site(own_redis.url, timeout=30).ask("/later")).is_hit


async def test_password_that_is_set_under_traffic_is_a_normal_answer(own_redis: RedisServer) -> None:
    site = Site(own_redis.url)
    async with Traffic(site) as traffic:
        await traffic.more(100)
        own_redis.command("CONFIG", "SET", "requirepass", "secret")
        # Connections that are open stay trusted; new ones are not.
        await site.l2.aclose()
        await traffic.more(300)
        assert site.l2.breaker_state is not BreakerState.CLOSED


@pytest.mark.parametrize("max_connections", [1, 3])
async def test_thousand_reads_at_once_over_few_connections_are_a_thousand_hits(
    max_connections: int, proxy: RedisProxy, own_redis: RedisServer
) -> None:
    other = Site(own_redis.url, timeout=30)
    paths = [f"/below/{number}" for number in range(1_000)]
    await other.put(paths)
    site = Site(proxy.url, timeout=30, max_connections=max_connections)
    answers = await asyncio.gather(*(site.ask(path) for path in paths))
    assert all(answer.is_hit for answer in answers)
    assert proxy.connections <= max_connections + 1  # the one that follows the log
    assert site.l2.stats().errors == 0


async def test_thousand_reads_at_once_of_a_server_that_hangs_are_a_thousand_answers(
    proxy: RedisProxy, own_redis: RedisServer
) -> None:
    site = Site(proxy.url, max_connections=2)
    await site.put(["/first"])
    proxy.hold(but=GREETINGS)
    await asyncio.gather(*(site.ask(f"/{number}") for number in range(1_000)))
    assert sum(site.calls.values()) == 1_001
    await asyncio.to_thread(proxy.heal)
