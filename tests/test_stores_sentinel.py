"""RedisStore on a server that sentinels name: real sentinels, a primary and its replica, and real failovers."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from redis.asyncio.sentinel import Sentinel

from echo_cache.errors import StoreError
from echo_cache.stores import RedisStore
from echo_cache.stores.redis.servers import Client, place_of
from tests import redis_support as support
from tests.redis_support import DE, DEADLINE, MakeStore, until
from tests.servers import HOST, RedisSentinel, RedisServer, _SentinelServer
from tests.store_contract import StoreContract, any_variant, make_entry, make_key
from tests.traffic import Traffic

make_store, reports = support.make_store, support.reports


@pytest.fixture(scope="module")
def shared_sentinel() -> Iterator[RedisSentinel]:
    """For the fixture sentinel."""
    with RedisSentinel() as servers:
        yield servers


@pytest.fixture
def sentinel(shared_sentinel: RedisSentinel) -> Iterator[RedisSentinel]:
    """A master with a replica and a sentinel, shared and empty; the sentinel may be paused."""
    shared_sentinel.current_master().command("FLUSHALL")
    yield shared_sentinel
    shared_sentinel.sentinel.resume()


class TestRedisStoreOnSentinel(StoreContract):
    @pytest.fixture
    async def store(self, sentinel: RedisSentinel, make_store: MakeStore) -> RedisStore:
        return make_store(sentinel.url)


class TestRedisStoreOnAClientOfMasterFor(StoreContract):
    @pytest.fixture
    async def store(self, sentinel: RedisSentinel, make_store: MakeStore) -> AsyncIterator[RedisStore]:
        where = Sentinel([(HOST, sentinel.sentinel.port)])
        async with where, where.master_for("main", protocol=2) as client:
            yield make_store(client)


async def test_the_server_and_the_sentinel_have_users_of_their_own(
    sentinel: RedisSentinel, make_store: MakeStore, reports: list[Any]
) -> None:
    for server in (sentinel.master, sentinel.replica):
        server.command("ACL", "SETUSER", "app", "on", ">s3cret", "~*", "+@all")
    sentinel.sentinel.command("ACL", "SETUSER", "asker", "on", ">h1dden", "+@all")
    where = f"{HOST}:{sentinel.sentinel.port}/main"
    url = f"redis+sentinel://app:s3cret@{where}?sentinel_username=asker&sentinel_password=h1dden"
    store = make_store(url)
    await store.set(make_key(), make_entry())
    assert await store.get(make_key(), any_variant) is not None
    for wrong in (url.replace("s3cret", "wr0ng"), url.replace("h1dden", "wr0ng")):
        with pytest.raises(StoreError, match="invalid username-password pair") as caught:
            await make_store(wrong).get(make_key(), any_variant)
        assert "wr0ng" not in str(caught.value)


async def test_a_service_that_no_sentinel_knows_is_a_store_error_that_says_so(
    sentinel: RedisSentinel, make_store: MakeStore, reports: list[Any]
) -> None:
    store = make_store(sentinel.url.replace("/main/", "/other/"))
    with pytest.raises(StoreError, match="none of 1 sentinels names a primary of 'other'"):
        await store.get(make_key(), any_variant)


async def test_a_sentinel_that_is_not_there_is_a_store_error_and_another_is_asked(
    sentinel: RedisSentinel, make_store: MakeStore, reports: list[Any]
) -> None:
    with RedisServer() as gone:
        pass
    with pytest.raises(StoreError, match="none of 1 sentinels names a primary"):
        await make_store(f"redis+sentinel://{HOST}:{gone.port}/main").set(make_key(), make_entry())
    both = make_store(f"redis+sentinel://{HOST}:{gone.port},{HOST}:{sentinel.sentinel.port}/main")
    await both.set(make_key(), make_entry())


async def test_a_sentinel_that_hangs_delays_nobody(
    sentinel: RedisSentinel, make_store: MakeStore, reports: list[Any]
) -> None:
    with _SentinelServer(sentinel.master, "main", 60_000) as second:
        for paused in (second, sentinel.sentinel):
            paused.pause()
            # More patient than the test may be: an operation that waited for the one that hangs would not end in time.
            url = f"redis+sentinel://{HOST}:{sentinel.sentinel.port},{HOST}:{second.port}/main"
            store = make_store(url, timeout=DEADLINE * 4)
            async with asyncio.timeout(DEADLINE):
                await asyncio.gather(*(store.set(make_key(number), make_entry()) for number in range(10)))
            paused.resume()


async def test_who_waits_for_the_sentinel_may_leave(
    sentinel: RedisSentinel, make_store: MakeStore, reports: list[Any]
) -> None:
    store = make_store(sentinel.url)
    sentinel.sentinel.pause()
    waiting = [asyncio.create_task(store.get(make_key(number), any_variant)) for number in range(20)]
    await until(lambda: " 0 under way" not in repr(store))
    for task in waiting[1:]:
        task.cancel()
    sentinel.sentinel.resume()
    assert await waiting[0] is None
    await asyncio.wait(waiting)
    await store.set(make_key(), make_entry(vary=DE))
    assert await store.get(make_key(), any_variant) is not None


async def test_a_command_that_is_cancelled_leaves_the_question_for_the_primary_to_the_others(
    sentinel: RedisSentinel, reports: list[Any]
) -> None:
    client = place_of(sentinel.url, DEADLINE, 2).connect()
    sentinel.sentinel.pause()
    first, second, third = (asyncio.create_task(read(client)) for _ in range(3))
    for _ in range(5):  # as many turns of the loop as it takes to ask
        await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait([first])
    sentinel.sentinel.resume()
    # Two connections for three commands: the slot of the one that was cancelled is free again.
    assert [await second, await third] == [[None], [None]]
    await client.aclose()


async def read(client: Client) -> list[object]:
    return list(await client.read(["echo_cache:1:{a}"]))


async def test_a_closed_store_leaves_no_connection(
    sentinel: RedisSentinel, make_store: MakeStore, reports: list[Any]
) -> None:
    servers = (sentinel.sentinel, sentinel.current_master())
    before = [clients_of(server) for server in servers]
    store = make_store(sentinel.url)
    await store.set(make_key(), make_entry())
    assert all(clients_of(server) - earlier for server, earlier in zip(servers, before, strict=True))
    ours = [clients_of(server) - earlier for server, earlier in zip(servers, before, strict=True)]
    await store.aclose()
    await until(lambda: not any(clients_of(server) & those for server, those in zip(servers, ours, strict=True)))


def clients_of(server: RedisServer) -> set[str]:
    """Return the ids of the connections that redis-py has to *server*."""
    return set(re.findall(r"^id=(\d+) .* lib-name=redis-py", server.command("CLIENT", "LIST"), re.MULTILINE))


# --- failovers --------------------------------------------------------------------------------------------------------


async def test_after_the_primary_was_killed_the_new_one_is_used(
    own_sentinel: RedisSentinel, make_store: MakeStore, reports: list[Any]
) -> None:
    store = make_store(own_sentinel.url, timeout=1.0, probe_interval=0.1)
    async with Traffic(store) as traffic:
        await traffic.works()
        old = own_sentinel.kill_master()
        await own_sentinel.ok()
        await traffic.works()
        assert traffic.failed > 0
        old.start()
        await traffic.works()
    assert store.breaker_state == "closed"


async def test_after_the_primary_became_a_replica_the_new_one_is_used(
    own_sentinel: RedisSentinel, make_store: MakeStore, reports: list[Any]
) -> None:
    store = make_store(own_sentinel.url, timeout=1.0, probe_interval=0.1)
    async with Traffic(store) as traffic:
        await traffic.works()
        old = own_sentinel.current_master()
        own_sentinel.sentinel.command("SENTINEL", "FAILOVER", "main")
        await until(lambda: own_sentinel.current_master() is not old)
        await own_sentinel.ok()
        new = own_sentinel.current_master()
        # As the sentinel does, which also closes the connections: those that are open are told -READONLY from now on.
        old.command("REPLICAOF", HOST, str(new.port))
        await traffic.works()
    assert int(new.command("DBSIZE")) > 0


async def test_a_primary_that_hangs_is_left_for_the_new_one(
    own_sentinel: RedisSentinel, make_store: MakeStore, reports: list[Any]
) -> None:
    store = make_store(own_sentinel.url, timeout=0.5, probe_interval=0.1)
    async with Traffic(store) as traffic:
        await traffic.works()
        old = own_sentinel.current_master()
        old.pause()
        await own_sentinel.ok()
        await traffic.works()
        old.resume()
        await traffic.works()
