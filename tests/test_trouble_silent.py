"""Redis that does not answer: stopped, in a black hole, slower than the time-out. Who waits, and how long."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from echo_cache.stores.redis.breaker import BreakerState
from tests import trouble
from tests.proxy import RedisProxy
from tests.servers import RedisServer
from tests.trouble import (
    CLIENTS,
    L2_TIMEOUT,
    STRATEGIES,
    Answer,
    Site,
    Traffic,
    Watch,
    each_strategy_of_some,
    until_l2_answers,
)

no_loose_ends = trouble.no_loose_ends
pytestmark = pytest.mark.usefixtures("no_loose_ends")

# Three times the default, since what is told apart here is one time-out, two, and none: benchmarks/trouble.py says what
# requests feel of the default.
TIMEOUT = 3 * L2_TIMEOUT
# Who took as long, by the watch, has waited for two time-outs.
TWICE = 2 * TIMEOUT
# Who took longer has waited. Nothing else here takes a tenth of it by the watch.
WAITED = TIMEOUT / 2
# The breaker opens at the third failure in a row, and what is asked together fails together.
ROUNDS = 3


@dataclass
class Network:
    """A server and the proxy before it."""

    server: RedisServer
    proxy: RedisProxy


SILENCES = [
    pytest.param(lambda net: net.server.pause(), lambda net: net.server.resume(), id="SIGSTOP"),
    pytest.param(lambda net: net.proxy.black_hole(), lambda net: net.proxy.heal(), id="black hole"),
    pytest.param(lambda net: net.proxy.delay(1.0), lambda net: net.proxy.heal(), id="slow"),
    pytest.param(lambda net: net.proxy.hold(), lambda net: net.proxy.heal(), id="held back"),
]


@pytest.fixture
def network(own_redis: RedisServer) -> Iterator[Network]:
    with RedisProxy(own_redis.port) as proxy:
        yield Network(own_redis, proxy)


@pytest.fixture
async def watch(no_loose_ends: None) -> AsyncIterator[Watch]:
    watch = Watch()
    yield watch
    watch.stop()


def is_open(site: Site) -> bool:
    return site.l2.breaker_state is not BreakerState.CLOSED


def waits(answers: list[Answer]) -> list[Answer]:
    return [answer for answer in answers if answer.seconds > WAITED]


@pytest.mark.parametrize(("strategy", "silence", "heal"), each_strategy_of_some(SILENCES, ["SIGSTOP"]))
async def test_only_the_first_requests_wait_and_none_longer_than_the_time_out(
    strategy: str,
    silence: Callable[[Network], None],
    heal: Callable[[Network], None],
    network: Network,
    watch: Watch,
) -> None:
    other = Site(network.server.url, timeout=30)
    below = [f"/below/{number}" for number in range(500)]
    await other.put(below)
    site = Site(network.proxy.url, strategy=strategy, watch=watch, timeout=TIMEOUT)
    async with Traffic(site, below) as traffic:
        await traffic.more(100)
        for _ in range(2):
            at = len(traffic.answers)
            await asyncio.to_thread(silence, network)
            await traffic.until(lambda: is_open(site))
            opened, timeouts = watch.now(), site.l2.timeouts
            await traffic.more(1_000)
            during = traffic.answers[at:]
            assert is_open(site)
            assert max(answer.seconds for answer in during) < TWICE
            # Each client has waited for each failure that it took to find out, at most.
            assert len(waits(during)) <= ROUNDS * CLIENTS
            # Who came after that did not wait, and nothing of theirs ran out of time.
            assert [answer for answer in waits(during) if answer.began > opened] == []
            assert site.l2.timeouts == timeouts
            await asyncio.to_thread(heal, network)
            await until_l2_answers(site, network.server.url, name=f"{at}")


KINDS = [
    pytest.param({}, id="plain"),
    pytest.param({"method": "HEAD"}, id="head"),
    pytest.param({"headers": {"range": "bytes=0-100000"}}, id="range"),
    pytest.param({"headers": {"if-none-match": '"1"'}}, id="condition"),
    pytest.param({"headers": {"cache-control": "no-cache"}}, id="no-cache"),
    pytest.param({"headers": {"cache-control": "max-age=5"}}, id="max-age"),
    pytest.param({"headers": {"cookie": "a=1"}}, id="cookie"),
    pytest.param({"headers": {"authorization": "a"}}, id="authorization"),
    pytest.param({"headers": {"accept-language": "de"}}, id="language"),
]


@pytest.mark.parametrize("options", KINDS)
@pytest.mark.parametrize("path", ["/new", "/known", "/stale", "/varies"])
async def test_no_kind_of_request_waits_for_two_time_outs(
    options: dict[str, Any], path: str, network: Network, watch: Watch
) -> None:
    # The breaker never opens: each request feels the silence as the first one does.
    site = Site(network.proxy.url, watch=watch, timeout=TIMEOUT, breaker_failures=1_000_000)
    for known in ("/known", "/stale"):
        await site.put([known])
    for language in ("de", "fr"):
        await site.ask("/varies", headers={"accept-language": language})
    await site.settled()
    network.proxy.black_hole()
    answers = await asyncio.gather(*(site.ask(path, **options) for _ in range(20)))
    assert max(answer.seconds for answer in answers) < TWICE
    # Its write to Redis hangs now; who comes next does not wait for that as well.
    answers = await asyncio.gather(*(site.ask(path, **options) for _ in range(20)))
    assert max(answer.seconds for answer in answers) < TWICE


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
@pytest.mark.parametrize("path", ["/new", "/known"])
async def test_unsafe_request_waits_for_one_time_out_before_its_answer(
    method: str, path: str, network: Network, watch: Watch
) -> None:
    site = Site(network.proxy.url, watch=watch, timeout=TIMEOUT, breaker_failures=1_000_000)
    await site.put(["/known"])
    network.proxy.black_hole()
    assert (await site.ask(path, method=method)).seconds < TWICE


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_unsafe_requests_do_not_wait_for_what_hangs_before_them(
    strategy: str, network: Network, watch: Watch
) -> None:
    site = Site(network.proxy.url, strategy=strategy, watch=watch, timeout=TIMEOUT)
    await site.put(["/other"])
    network.proxy.black_hole(only=("SET", "EVALSHA", "EVAL"))
    await site.ask("/x")  # its write to Redis hangs
    answers = await asyncio.gather(*(site.ask("/x", method="PUT") for _ in range(10)))
    assert max(answer.seconds for answer in answers) < TWICE
