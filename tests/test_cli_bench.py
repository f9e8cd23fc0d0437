"""What the benchmark of the command line reports, and what it leaves behind. Its figures are no matter of tests."""

from __future__ import annotations

import asyncio
import json

import pytest

from echo_cache.cli.bench import run
from echo_cache.errors import ConfigurationError
from tests.proxy import RedisProxy
from tests.redis_support import until
from tests.servers import RedisServer

IN_MEMORY = ["bare app", "hit in memory", "miss, stored in memory"]
IN_REDIS = ["hit in Redis", "miss, stored in both"]


async def test_memory_is_measured_beside_a_bare_app() -> None:
    report = await run(seconds=0.05)
    assert [row.name for row in report.rows] == IN_MEMORY
    assert all(row.microseconds > 0 and row.requests > 0 for row in report.rows)
    assert (report.redis, report.trouble, report.body_bytes) == (None, None, 2048)


async def test_a_report_is_json_with_what_is_added_to_the_bare_app() -> None:
    report = await run(seconds=0.05, body_bytes=0)
    told = json.loads(json.dumps(report.as_json()))
    bare, hit, _ = told["rows"]
    assert bare["added"] == 0
    assert hit["added"] == pytest.approx(hit["microseconds"] - bare["microseconds"])
    assert hit["per_second"] == pytest.approx(1e6 / hit["microseconds"])
    assert (told["body_bytes"], told["trouble"]) == (0, None)


async def test_redis_is_measured_and_left_as_it_was(redis_server: RedisServer, redis_url: str) -> None:
    redis_server.command("SET", "echo_cache:1:{mine}", "x")
    report = await run(redis_url, seconds=0.1)
    assert [row.name for row in report.rows] == IN_MEMORY + IN_REDIS
    assert report.trouble is None
    assert report.redis == redis_url
    # A lease ends by itself.
    left = [name for name in redis_server.command("KEYS", "*") if ":lease:" not in name]
    assert left == ["echo_cache:1:{mine}"]


async def test_misses_bring_no_more_than_32_mib_into_redis(redis_url: str) -> None:
    report = await run(redis_url, seconds=0.05, body_bytes=1024 * 1024)
    assert report.trouble is None
    # At least 20 in each of seven rounds, as long as there is room.
    assert report.rows[-2].requests >= 7 * 20
    assert report.rows[-1].requests == 32


async def test_a_redis_that_is_not_there_is_trouble_and_memory_is_measured(own_redis: RedisServer) -> None:
    own_redis.stop()
    report = await run(own_redis.url.replace("redis://", "redis://:s3cret@"), seconds=0.05)
    assert [row.name for row in report.rows] == IN_MEMORY
    assert report.trouble is not None
    assert "s3cret" not in str(report)


async def test_a_redis_that_goes_away_meanwhile_is_trouble(proxy: RedisProxy) -> None:
    measuring = asyncio.create_task(run(proxy.url, seconds=2.0))
    await until(lambda: proxy.count("MGET") > 20)
    proxy.refuse()
    report = await measuring
    assert [row.name for row in report.rows] == IN_MEMORY
    assert report.trouble is not None
    assert "answers were no" in report.trouble


async def test_a_redis_that_takes_nothing_is_trouble(proxy: RedisProxy) -> None:
    proxy.reply_error(b"-OOM full", only=("SET",))
    report = await run(proxy.url, seconds=0.05)
    assert [row.name for row in report.rows] == IN_MEMORY
    assert report.trouble is not None


@pytest.mark.parametrize(
    ("seconds", "body_bytes", "named"),
    [
        pytest.param(0.0, 2048, "seconds", id="no-time"),
        pytest.param(float("nan"), 2048, "seconds", id="no-number"),
        pytest.param(1e9, 2048, "seconds", id="for-ever"),
        pytest.param(1.0, -1, "body_bytes", id="less-than-nothing"),
        pytest.param(1.0, 10**9, "body_bytes", id="too-large"),
    ],
)
async def test_what_cannot_be_measured_is_refused(seconds: float, body_bytes: int, named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        await run(seconds=seconds, body_bytes=body_bytes)


async def test_what_is_no_url_of_a_redis_is_refused() -> None:
    with pytest.raises(ConfigurationError):
        await run("http://host", seconds=0.05)
