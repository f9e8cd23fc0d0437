"""Redis that has lost what it was given, or has what nobody of ours gave it. Requests get misses, never an error."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from echo_cache import codec
from echo_cache.stores.redis.breaker import BreakerState
from tests import trouble
from tests.servers import RedisServer
from tests.trouble import STRATEGIES, Site, Traffic

no_loose_ends = trouble.no_loose_ends
pytestmark = pytest.mark.usefixtures("no_loose_ends")

# What is asked here is what is answered: a slow machine must not turn a reply into a time-out.
PATIENT = 30.0


@pytest.fixture
def server(own_redis: RedisServer) -> Iterator[Any]:
    with redis.Redis.from_url(own_redis.url) as client:
        yield client


def is_well(site: Site) -> bool:
    """Say whether nothing failed: misses are no errors."""
    return site.l2.stats().errors == 0 and site.l2.breaker_state is BreakerState.CLOSED


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_flushall_under_traffic_is_misses(strategy: str, own_redis: RedisServer, server: Any) -> None:
    other = Site(own_redis.url, timeout=PATIENT)
    below = [f"/below/{number}" for number in range(300)]
    await other.put(below)
    await asyncio.gather(*(other.ask(f"/varies/{n}", headers={"accept-language": "de"}) for n in range(10)))
    site = Site(own_redis.url, strategy=strategy, timeout=PATIENT)
    async with Traffic(site, below) as traffic:
        await traffic.more(200)
        for flush in (server.flushall, server.script_flush, server.flushall):
            await asyncio.to_thread(flush)
            for number in range(10):  # scripts and indexes are lost as well
                await site.ask(f"/varies/{number}", headers={"accept-language": "fr"})
            assert not (await site.ask(below.pop())).is_hit or flush == server.script_flush
            await traffic.more(100)
    assert is_well(site)
    await site.hears()  # what is filled before that is validated once more
    await site.put(["/after"])
    assert (await Site(own_redis.url, timeout=PATIENT).ask("/after")).is_hit


@pytest.mark.parametrize("policy", ["allkeys-lru", "allkeys-lfu", "allkeys-random", "volatile-ttl"])
async def test_eviction_by_redis_is_misses(policy: str) -> None:
    with RedisServer(("--maxmemory-policy", policy)) as server:
        site = Site(server.url, timeout=PATIENT)
        await site.hears()
        room = int(_info(server, "memory", "used_memory")) + 600_000
        server.command("CONFIG", "SET", "maxmemory", f"{room}")
        async with Traffic(site) as traffic:
            # About 1.5 kB each in Redis, variants and their indexes beside them.
            for number in range(300):
                await site.ask(f"/varies/{number % 60}", headers={"accept-language": f"x{number}"})
            await traffic.more(300)
        # However much of the traffic came behind them: these are the last.
        for number in range(260, 300):
            await site.ask(f"/varies/{number % 60}", headers={"accept-language": f"x{number}"})
        await site.settled()
        evicted = int(_info(server, "stats", "evicted_keys"))
        assert evicted > 0
        assert is_well(site)
        # Another worker finds some and misses some, and each answer is right. The newest first: what it stores may push
        # out what is older.
        other = Site(server.url, timeout=PATIENT)
        answers = [
            await other.ask(f"/varies/{number % 60}", headers={"accept-language": f"x{number}"})
            for number in reversed(range(300))
        ]
        # Redis may evict the log as well, where it evicts what never expires; then everything is validated.
        assert {answer.is_hit for answer in answers} >= ({True, False} if policy == "volatile-ttl" else {False})
        assert is_well(other)
        await other.close()
        await site.close()


def _info(server: RedisServer, section: str, field: str) -> str:
    lines = server.command("INFO", section).splitlines()
    return next(line.partition(":")[2] for line in lines if line.startswith(field + ":"))


class Bomb:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def newer(raw: bytes) -> bytes:
    """Return *raw* as a later version of the format."""
    return raw[:4] + bytes([raw[4] + 1]) + raw[5:]


def older(raw: bytes) -> bytes:
    """Return *raw* as an earlier version of the format."""
    return raw[:4] + bytes([raw[4] - 1]) + raw[5:]


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_values_that_are_not_ours_are_misses_under_traffic(
    strategy: str, own_redis: RedisServer, server: Any, tmp_path: Path
) -> None:
    other = Site(own_redis.url, timeout=PATIENT)
    below = [f"/below/{number}" for number in range(120)]
    await other.put(below)
    for number in range(60):
        await other.ask(f"/varies/{number}", headers={"accept-language": "de"})
    await other.settled()
    names = sorted(server.keys(f"echo_cache:{codec.FORMAT_VERSION}:*"))
    assert len(names) == 120 + 2 * 60
    own = [server.get(name) for name in names]
    bomb = pickle.dumps(Bomb(tmp_path / "loaded"))
    plants = [
        lambda at: server.set(names[at], bomb),
        lambda at: server.set(names[at], newer(own[at])),
        lambda at: server.set(names[at], older(own[at])),
        lambda at: server.set(names[at], own[at - 1]),  # another key's
        lambda at: server.set(names[at], own[at][:-1]),
        lambda at: server.set(names[at], own[at][:20]),
        lambda at: server.set(names[at], b""),
        lambda at: server.set(names[at], b"\x93" * 20_000),
        lambda at: (server.delete(names[at]), server.rpush(names[at], b"a")),
        lambda at: (server.delete(names[at]), server.hset(names[at], "a", "b")),
    ]
    site = Site(own_redis.url, strategy=strategy, timeout=PATIENT)
    async with Traffic(site) as traffic:
        for at in range(len(names)):
            plants[at % len(plants)](at)
        for path in below:
            assert not (await site.ask(path)).is_hit
        for number in range(60):
            assert not (await site.ask(f"/varies/{number}", headers={"accept-language": "de"})).is_hit
        await traffic.more(50)
    await site.settled()
    assert site.l2.breaker_state is BreakerState.CLOSED
    assert not (tmp_path / "loaded").exists()
    # What they held was written over.
    fresh = Site(own_redis.url, timeout=PATIENT)
    hits = [(await fresh.ask(path)).is_hit for path in below]
    assert all(hits), hits.count(False)


async def test_names_of_another_format_version_are_left_alone(own_redis: RedisServer, server: Any) -> None:
    site = Site(own_redis.url, timeout=PATIENT)
    await site.put(["/x"])
    (name,) = server.keys("echo_cache:*{*")
    newer_name = name.replace(b":%d:" % codec.FORMAT_VERSION, b":%d:" % (codec.FORMAT_VERSION + 1))
    assert newer_name != name
    server.rename(name, newer_name)
    assert not (await Site(own_redis.url, timeout=PATIENT).ask("/x")).is_hit
    await site.cache.clear()
    assert server.exists(newer_name)
