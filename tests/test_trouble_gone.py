"""Redis that is not there: absent at the start, killed under traffic, restarted. What requests feel of it."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from echo_cache.codec import FORMAT_VERSION
from echo_cache.stores.redis.breaker import BreakerState
from tests import trouble
from tests.proxy import RedisProxy
from tests.redis_support import GREETINGS
from tests.servers import RedisServer
from tests.trouble import CLIENTS, STRATEGIES, Site, Traffic, until_l2_answers

no_loose_ends = trouble.no_loose_ends
pytestmark = pytest.mark.usefixtures("no_loose_ends")


def is_open(site: Site) -> bool:
    return site.l2.breaker_state is not BreakerState.CLOSED


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_redis_absent_at_start_costs_nothing_and_is_used_when_it_comes(
    strategy: str, own_redis: RedisServer
) -> None:
    own_redis.kill()
    site = Site(own_redis.url, strategy=strategy)
    async with Traffic(site) as traffic:
        await traffic.until(lambda: is_open(site))
        errors = site.l2.stats().errors
        await traffic.more(500)
        assert is_open(site)
        # No request was asked of it: what fails before a command goes out is an error too.
        assert site.l2.stats().errors == errors
    async with Traffic(site) as traffic:
        own_redis.start()
        await until_l2_answers(site, own_redis.url)
        assert not is_open(site)


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_redis_killed_under_traffic_costs_nothing_and_is_used_when_it_is_back(
    strategy: str, own_redis: RedisServer
) -> None:
    other = Site(own_redis.url, timeout=30)
    below = [f"/below/{number}" for number in range(1_000)]
    await other.put(below)
    site = Site(own_redis.url, strategy=strategy)
    async with Traffic(site, below) as traffic:
        before = await traffic.more(200)
        assert any(answer.is_hit for answer in before if answer.path.startswith("/below/"))
    for turn in range(2):
        async with Traffic(site, below) as traffic:
            await traffic.more(100)
            own_redis.kill()
            await traffic.until(lambda: is_open(site))
            await traffic.more(500)
        async with Traffic(site) as traffic:
            own_redis.start()
            await until_l2_answers(site, own_redis.url, name=f"back{turn}")


def of_requests(proxy: RedisProxy) -> list[Any]:
    """Return what requests have asked: all but what follows the invalidation log, which tries on."""
    followers = {*GREETINGS, b"EVAL", b"XRANGE", b"XREAD"}
    return [words for words in proxy.commands if words[0] not in followers]


async def test_only_the_probe_touches_the_network_while_the_breaker_is_open(own_redis: RedisServer) -> None:
    with RedisProxy(own_redis.port) as proxy:
        site = Site(proxy.url, probe_interval=3600)
        async with Traffic(site) as traffic:
            await traffic.more(200)
            proxy.reply_error(b"-LOADING Redis is loading the dataset in memory")
            await traffic.until(lambda: is_open(site))
            await traffic.more(20 * CLIENTS)  # what was asked before that is answered
            proxy.forget()
            await traffic.more(500)
            assert of_requests(proxy) == []
            # The methods that invalidate and those that are never plain do not ask either.
            for method in ("PUT", "DELETE"):
                await site.ask("/hot/1", method=method)
            await site.ask("/hot/1", headers={"cache-control": "no-cache"})
            assert of_requests(proxy) == []


async def test_redis_restarted_between_two_requests_is_felt_by_none(own_redis: RedisServer) -> None:
    site = Site(own_redis.url, timeout=30)
    await site.put([f"/{number}" for number in range(CLIENTS)])
    for turn in range(3):
        own_redis.restart()
        await site.ask("/0")
        await site.hears()  # what is kept before it is heard what the server was is confirmed once more
        for number in range(CLIENTS):
            await site.ask(f"/{number}")  # from memory, or confirmed by the app: who knows what a restart has lost
            assert (await site.ask(f"/{number}")).is_hit
            assert not (await site.ask(f"/turn/{turn}/{number}")).is_hit
        await site.settled()
        # What was stored since the restart is there: the connections that died are replaced, and nothing failed.
        assert len(own_redis.command("KEYS", f"echo_cache:{FORMAT_VERSION}:*")) >= CLIENTS
    assert site.l2.stats().errors == 0


async def test_trouble_is_told_once_a_minute_and_not_once_a_request(
    own_redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    # Each request looks below, also for what memory has, as that is stale.
    site = Site(own_redis.url)
    await site.put(["/stale"])
    own_redis.kill()
    with caplog.at_level(logging.INFO, "echo_cache"):
        for number in range(50):
            await site.ask(f"/new/{number}")
            assert (await site.ask("/stale")).is_hit
    lines = [record.getMessage() for record in caplog.records if record.name == "echo_cache"]
    assert len(lines) == 1, lines[:4]
