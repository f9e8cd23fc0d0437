"""What somebody who can write to Redis, a busy event loop or a stray cancellation must not bring about."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from echo_cache import Cache, MemoryStore, TwoLevelConfig, TwoLevelStore, codec
from echo_cache.errors import ConfigurationError, StoreError, StoreTimeout
from echo_cache.events import BreakerChanged, Event
from echo_cache.stores import RedisStore
from tests import redis_support as support
from tests.proxy import RedisProxy
from tests.redis_support import DEADLINE, LyingServer, MakeStore, TrueClock, array, until
from tests.servers import RedisServer
from tests.store_contract import any_variant, language, make_entry, make_key

make_store, server = support.make_store, support.server

SECRET = "s" * 32


async def test_a_loop_that_is_always_busy_does_not_put_off_the_time_out(
    own_redis: RedisServer, make_store: MakeStore
) -> None:
    store = make_store(own_redis.url, timeout=0.1)
    await store.set(make_key(), make_entry())
    own_redis.pause()
    reader = asyncio.ensure_future(store.get(make_key(), any_variant))
    turns = 0
    while not reader.done():
        time.sleep(0.012)  # noqa: ASYNC251  # a handler that blocks
        turns += 1
        assert turns < 100  # 8 turns are the time-out
        await asyncio.sleep(0)
    with pytest.raises(StoreTimeout):
        await reader


async def test_a_value_that_is_too_large_to_be_read_in_time_does_not_keep_the_breaker_open(
    make_store: MakeStore,
) -> None:
    held = asyncio.Event()

    async def reply(words: list[bytes]) -> bytes | None:
        if words[0] == b"MGET":
            await held.wait()
        return b"$1\r\nx\r\n"

    async with LyingServer(reply) as url:
        store = make_store(url, timeout=0.05, breaker_failures=1, probe_interval=0.05, clock=TrueClock())
        events: list[Event] = []
        store.observe(events.append)
        with pytest.raises(StoreTimeout):
            await store.get(make_key(), any_variant)
        await until(lambda: len(events) == 2)
        assert [event.state for event in events if isinstance(event, BreakerChanged)] == ["open", "closed"]
        held.set()
        await store.aclose()


async def test_a_read_does_not_wait_for_an_earlier_one_that_is_not_answered(make_store: MakeStore) -> None:
    asked: list[bytes] = []
    held = asyncio.Event()

    async def reply(words: list[bytes]) -> bytes | None:
        asked.append(words[1])
        if len(asked) == 1:
            await held.wait()
        return array(*(None for _ in words[1:]))

    async with LyingServer(reply) as url:
        store = make_store(url, timeout=DEADLINE, clock=TrueClock())
        first = asyncio.ensure_future(store.get(make_key("a"), any_variant))
        await asyncio.sleep(0)
        await asyncio.sleep(0)  # its batch has left; the next read comes within the same millisecond
        async with asyncio.timeout(DEADLINE / 2):
            assert await store.get(make_key("b"), any_variant) is None
        assert not first.done()
        held.set()
        assert await first is None
        await store.aclose()


async def test_a_batch_that_is_cancelled_before_it_is_sent_keeps_nobody_waiting(
    redis_url: str, make_store: MakeStore
) -> None:
    store = make_store(redis_url, clock=TrueClock())
    await store.set(make_key(), make_entry())
    before = asyncio.all_tasks()
    reader = asyncio.ensure_future(store.get(make_key(), any_variant))
    await asyncio.sleep(0)
    for task in asyncio.all_tasks() - before - {reader}:
        task.cancel()
    with pytest.raises(StoreError):
        await asyncio.wait_for(reader, DEADLINE)
    assert await asyncio.wait_for(store.get(make_key(), any_variant), DEADLINE) is not None


async def test_a_probe_that_is_cancelled_is_followed_by_another(own_redis: RedisServer, make_store: MakeStore) -> None:
    store = make_store(own_redis.url, timeout=0.5, breaker_failures=1, probe_interval=0.05)
    await store.set(make_key(), make_entry())
    own_redis.pause()
    with pytest.raises(StoreError):
        await store.get(make_key(), any_variant)
    await until(lambda: store.breaker_state == "half_open")
    for task in asyncio.all_tasks():
        if "_is_back" in repr(task):
            task.cancel()
    own_redis.resume()
    await until(lambda: store.breaker_state == "closed")


async def test_an_index_that_leads_to_nothing_of_ours_costs_a_few_reads(
    redis_url: str, server: Any, make_store: MakeStore
) -> None:
    store = make_store(redis_url, secret=SECRET)
    rows = [(codec.variant_id(language(b"%d" % n)), 0.0, time.time() + 1e6, language(b"%d" % n)) for n in range(40)]
    name = store._name(make_key())
    server.set(name, codec.encode_index(make_key(), rows))
    for row in rows:
        server.set(f"{name}:{row[0].hex()}", b"garbage")
    server.config_resetstat()
    assert await store.get(make_key(), any_variant) is None
    assert server.info("commandstats")["cmdstat_mget"]["calls"] <= 4
    assert store.rejected == 3


async def test_what_is_signed_under_one_prefix_is_forged_under_another(
    redis_url: str, server: Any, make_store: MakeStore
) -> None:
    staging = make_store(redis_url, prefix="staging", secret=SECRET)
    shop = make_store(redis_url, prefix="shop", secret=SECRET)
    await staging.set(make_key(), make_entry(b"staging"))
    server.copy(staging._name(make_key()), shop._name(make_key()))
    assert await staging.get(make_key(), any_variant) is not None
    assert await shop.get(make_key(), any_variant) is None
    assert (shop.rejected, shop.forged) == (1, 1)


@pytest.mark.parametrize("strategy", ["write_through", "write_back"])
async def test_a_redis_that_refuses_what_is_written_behind_the_answer_is_told_of_once(
    strategy: str, proxy: RedisProxy, make_store: MakeStore, caplog: pytest.LogCaptureFixture
) -> None:
    config = TwoLevelConfig(strategy=strategy, drain_timeout=0)
    store = TwoLevelStore(MemoryStore(), make_store(proxy.url), config)
    cache = Cache(store)
    proxy.reply_error(b"-OOM command not allowed when used memory > 'maxmemory'.", only=("SET",))
    for number in range(5):
        cache.keep(make_key(number), make_entry()._replace(mark=cache.log.position()))
    await until(lambda: store.get_stats().l2_errors >= 5)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "OOM" in caplog.text or "maxmemory" in caplog.text
    proxy.heal()
    await cache.aclose()


@pytest.mark.parametrize("scheme", ["redis+sentinel", "rediss+cluster"])
def test_credentials_at_each_host_are_refused_and_not_shown(scheme: str) -> None:
    path = "/service/0" if "sentinel" in scheme else ""
    with pytest.raises(ConfigurationError, match="has the form") as raised:
        RedisStore(f"{scheme}://user:hush@one:1,user:hush@two:2{path}")
    assert "hush" not in str(raised.value)
