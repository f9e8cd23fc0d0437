"""RedisStore on a real cluster: keys on all servers, slots that move, servers that fail, and failovers."""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import redis
import redis.asyncio
from redis.crc import key_slot
from redis.exceptions import InvalidResponse

from echo_cache.errors import StoreError
from echo_cache.model import CacheKey
from echo_cache.stores import RedisStore
from echo_cache.stores.redis.cluster import parse_topology
from tests import redis_support as support
from tests.redis_support import DE, FR, MakeStore, is_idle, name_of, until
from tests.servers import HOST, RedisCluster, RedisServer, ServerError
from tests.store_contract import StoreContract, any_variant, listed, make_entry, make_key, only
from tests.traffic import Traffic

make_store, reports = support.make_store, support.reports


@pytest.fixture(scope="module")
def shared_fragile_cluster() -> Iterator[RedisCluster]:
    """For the fixture fragile_cluster."""
    with RedisCluster(("--cluster-require-full-coverage", "no"), replicas=1) as cluster:
        yield cluster


@pytest.fixture
async def fragile_cluster(shared_fragile_cluster: RedisCluster) -> RedisCluster:
    """
    A cluster that tests may break, whose first server has a replica; empty, and mended before each test.

    What is left of it goes on when slots are lost.
    """
    for node in shared_fragile_cluster.nodes:
        node.resume()
        if not node.is_running:
            node.start()
    await shared_fragile_cluster.ok()
    # One that takes another for dead since the last test would be in a minority when a third one dies, and give up.
    await until(lambda: all("fail" not in node.command("CLUSTER", "NODES") for node in shared_fragile_cluster.nodes))
    shared_fragile_cluster.flush()
    return shared_fragile_cluster


@pytest.fixture
async def store(cluster: RedisCluster, make_store: MakeStore) -> RedisStore:
    return make_store(cluster.url)


class TestRedisStoreOnACluster(StoreContract):
    @pytest.fixture
    async def store(self, cluster: RedisCluster, make_store: MakeStore) -> RedisStore:
        return make_store(cluster.url)


class TestRedisStoreOnAReadyCluster(StoreContract):
    @pytest.fixture
    async def store(self, cluster: RedisCluster, make_store: MakeStore) -> AsyncIterator[RedisStore]:
        async with redis.asyncio.RedisCluster(host=HOST, port=cluster.nodes[-1].port) as client:
            yield make_store(client)


def slot_of(key: CacheKey) -> int:
    slot: int = key_slot(name_of(key).encode())
    return slot


def names_at(node: RedisServer) -> set[str]:
    with redis.Redis(port=node.port, decode_responses=True) as client:
        return set(client.keys("*"))


async def fill(store: RedisStore, count: int = 60) -> list[CacheKey]:
    keys = [make_key(number) for number in range(count)]
    await asyncio.gather(*(store.set(key, make_entry(key[3])) for key in keys))
    return keys


async def assert_all_found(store: RedisStore, keys: list[CacheKey]) -> None:
    found = await asyncio.gather(*(store.get(key, any_variant) for key in keys))
    assert [entry and entry.response.body for entry in found] == [key[3] for key in keys]


# --- keys on all servers ----------------------------------------------------------------------------------------------


async def test_keys_are_on_all_servers_and_are_read_at_once(store: RedisStore, cluster: RedisCluster) -> None:
    keys = await fill(store, 300)
    await assert_all_found(store, keys)
    assert all(len(names_at(node)) > 50 for node in cluster.nodes[:3])


async def test_a_key_and_its_variants_are_in_one_slot(store: RedisStore, cluster: RedisCluster) -> None:
    for number in range(10):
        for vary in (DE, FR):
            await store.set(make_key(number), make_entry(vary=vary))
    for node in cluster.nodes[:3]:
        slots: dict[str, set[int]] = {}
        for name in names_at(node):
            slots.setdefault(re.findall(r"\{.*\}", name)[0], set()).add(key_slot(name.encode()))
        assert all(len(found) == 1 for found in slots.values())
    assert await store.get(make_key(3), only(FR)) is not None


async def test_clear_and_keys_go_over_all_servers_and_leave_what_is_not_ours(
    store: RedisStore, cluster: RedisCluster
) -> None:
    keys = await fill(store, 1_000)
    foreign = {
        node.port: f"foreign:{number}" for number in range(30) for node in [cluster.master_of(f"foreign:{number}")]
    }
    for node in cluster.nodes[:3]:
        node.command("SET", foreign[node.port], "x")
    assert sorted(await listed(store)) == sorted(keys)
    assert await store.count() == 1_000
    assert await store.clear() == 1_000
    assert [len(names_at(node)) for node in cluster.nodes[:3]] == [1, 1, 1]
    assert await listed(store) == []


async def test_the_scripts_are_loaded_again_on_the_server_that_lost_them(
    store: RedisStore, cluster: RedisCluster
) -> None:
    for number in range(20):
        await store.set(make_key(number), make_entry(vary=DE))
    for node in cluster.nodes:
        node.command("SCRIPT", "FLUSH")
        node.command("CONFIG", "RESETSTAT")
    await asyncio.gather(*(store.set(make_key(number), make_entry(vary=FR)) for number in range(20)))
    for number in range(20):
        assert await store.get(make_key(number), only(DE)) is not None
        assert await store.get(make_key(number), only(FR)) is not None
    said = "".join(node.command("INFO", "errorstats") for node in cluster.nodes)
    assert "NOSCRIPT" in said
    assert "MOVED" not in said  # each command went to the right server at once


async def test_one_server_that_is_named_leads_to_all(cluster: RedisCluster, make_store: MakeStore) -> None:
    store = make_store(f"redis+cluster://{HOST}:{cluster.nodes[-1].port}")
    await assert_all_found(store, await fill(store))


# --- slots that move --------------------------------------------------------------------------------------------------


async def test_a_slot_on_its_way_is_read_and_written_right(
    store: RedisStore, cluster: RedisCluster, make_store: MakeStore
) -> None:
    keys = await fill(store)
    slot = slot_of(keys[0])
    # Others of the same slot, by brute force: half of them have moved when they are asked for.
    same = [make_key(f"slot-{number}") for number in range(150_000) if slot_of(make_key(f"slot-{number}")) == slot]
    assert len(same) >= 4
    for key in same:
        await store.set(key, make_entry(key[3]))
    loop = asyncio.get_running_loop()

    async def half_way() -> None:
        await assert_all_found(store, [*same, *keys])
        for key in (*same, make_key("new")):
            with contextlib.suppress(StoreError):  # an index that has moved and a variant that has not: -TRYAGAIN
                await store.set(key, make_entry(key[3], vary=DE))
            await store.set(key, make_entry(key[3]))
        await assert_all_found(store, [*same, *keys])
        fresh = make_store(cluster.url)
        await assert_all_found(fresh, [*same, *keys])
        await fresh.aclose()

    before = cluster.master_of(slot)
    await asyncio.to_thread(
        move_slot, cluster, slot, lambda: asyncio.run_coroutine_threadsafe(half_way(), loop).result()
    )
    assert cluster.master_of(slot) is not before
    await assert_all_found(store, [*same, *keys])
    assert store.stats().errors <= len(same)


async def test_a_replica_takes_over_under_traffic(
    fragile_cluster: RedisCluster, make_store: MakeStore, reports: list[Any]
) -> None:
    store = make_store(fragile_cluster.url)
    async with Traffic(store) as traffic:
        await traffic.works()
        for _ in range(2):  # there and back
            old = fragile_cluster.master_of(0)
            new = fragile_cluster.replica_of(old)
            assert new is not None
            await until(lambda old=old, new=new: took_over(fragile_cluster, old, new))  # type: ignore[misc]
            await traffic.works()
    assert traffic.right > 0


async def test_a_slot_that_nobody_has_is_a_store_error_and_others_are_answered(
    fragile_cluster: RedisCluster, make_store: MakeStore, reports: list[Any]
) -> None:
    store = make_store(fragile_cluster.url)
    keys = await fill(store)
    lost = keys[0]
    owner = fragile_cluster.master_of(slot_of(lost))
    others = [key for key in keys if slot_of(key) != slot_of(lost)]
    for node in fragile_cluster.nodes:
        node.command("CLUSTER", "DELSLOTS", str(slot_of(lost)))
    try:
        with pytest.raises(StoreError, match=r"no server has the slot|Hash slot not served"):
            await store.get(lost, any_variant)
        for _ in range(3):
            with pytest.raises(StoreError):
                await store.set(lost, make_entry())
            await assert_all_found(store, others)
    finally:
        owner.command("CLUSTER", "ADDSLOTS", str(slot_of(lost)))
    await fragile_cluster.ok()


# --- servers that fail ------------------------------------------------------------------------------------------------


async def test_a_paused_server_harms_no_other_key(
    fragile_cluster: RedisCluster, make_store: MakeStore, reports: list[Any]
) -> None:
    store = make_store(fragile_cluster.url, timeout=0.5, probe_interval=0.1)
    keys = await fill(store)
    victim = fragile_cluster.master_of(16383)
    others = [key for key in keys if fragile_cluster.master_of(slot_of(key)) is not victim]
    theirs = [key for key in keys if key not in others]
    victim.pause()
    for _ in range(5):
        found = await asyncio.gather(*(store.get(key, any_variant) for key in theirs), return_exceptions=True)
        assert all(isinstance(error, StoreError) for error in found)
        await assert_all_found(store, others)
    assert store.breaker_state != "closed"
    victim.resume()
    await until(lambda: store.breaker_state == "closed")
    await assert_all_found(store, keys)


async def test_a_killed_server_harms_no_other_key_and_its_replica_takes_over(
    fragile_cluster: RedisCluster, make_store: MakeStore, reports: list[Any]
) -> None:
    # Without a breaker: each request is to meet the failure.
    store = make_store(fragile_cluster.url, timeout=1.0, breaker_failures=1_000_000)
    keys = await fill(store)
    victim = fragile_cluster.master_of(0)
    others = [key for key in keys if fragile_cluster.master_of(slot_of(key)) is not victim]
    theirs = next(key for key in keys if key not in others)
    asked = count_of_slots_asked([node for node in fragile_cluster.nodes if node is not victim])
    victim.kill()
    failed = 0
    while True:
        # From before the others have even noticed.
        await assert_all_found(store, others)
        try:
            await store.set(theirs, make_entry(theirs[3]))
        except StoreError:
            failed += 1
            await asyncio.sleep(0.001)
        else:
            break
    # It was found out in the background and at a measured pace, not by each request that failed.
    asked = count_of_slots_asked([node for node in fragile_cluster.nodes if node is not victim]) - asked
    assert 0 < asked < failed / 5
    async with Traffic(store) as traffic:
        await traffic.works()
        victim.start()
        await fragile_cluster.ok()
        await traffic.works()
    assert traffic.right > 0


async def test_a_cluster_that_is_not_there_is_a_store_error_until_it_is(
    fragile_cluster: RedisCluster, make_store: MakeStore, reports: list[Any]
) -> None:
    for node in fragile_cluster.nodes:
        node.kill()
    store = make_store(fragile_cluster.url, timeout=0.5, probe_interval=0.1)
    for _ in range(5):
        with pytest.raises(StoreError):
            await store.get(make_key(), any_variant)
        with pytest.raises(StoreError):
            await store.clear()
    for node in fragile_cluster.nodes:
        node.start()
    await fragile_cluster.ok()
    async with Traffic(store) as traffic:
        await traffic.works()


async def test_a_server_that_is_no_cluster_is_a_store_error_that_says_so(
    redis_url: str, make_store: MakeStore, reports: list[Any]
) -> None:
    store = make_store(redis_url.replace("redis://", "redis+cluster://"))
    with pytest.raises(StoreError, match="cluster support disabled"):
        await store.get(make_key(), any_variant)


def count_of_slots_asked(nodes: list[RedisServer]) -> int:
    """Return how often *nodes* were asked who has which slot."""
    found = [re.search(r"cmdstat_cluster\|slots:calls=(\d+)", node.command("INFO", "commandstats")) for node in nodes]
    return sum(int(match[1]) for match in found if match)


def took_over(cluster: RedisCluster, old: RedisServer, new: RedisServer) -> bool:
    """Have the replica *new* take over from *old*; say whether they have changed places and are in step."""
    if old.command("ROLE")[0] == "slave":
        return "master_link_status:up" in old.command("INFO", "replication") and cluster.is_ok()
    with contextlib.suppress(ServerError):  # it has, and the other does not know yet
        new.command("CLUSTER", "FAILOVER")
    return False


def move_slot(cluster: RedisCluster, slot: int, half_way: Callable[[], None]) -> None:
    """Move *slot* and its keys to another server; *half_way* is called when half of the keys have moved."""
    source = cluster.master_of(slot)
    target = next(node for node in cluster.nodes[:3] if node is not source)
    target.command("CLUSTER", "SETSLOT", str(slot), "IMPORTING", source.command("CLUSTER", "MYID"))
    source.command("CLUSTER", "SETSLOT", str(slot), "MIGRATING", target.command("CLUSTER", "MYID"))
    names = source.command("CLUSTER", "GETKEYSINSLOT", str(slot), "1000")
    for name in names[::2]:
        source.command("MIGRATE", HOST, str(target.port), name, "0", "5000")
    half_way()
    for name in source.command("CLUSTER", "GETKEYSINSLOT", str(slot), "1000"):
        source.command("MIGRATE", HOST, str(target.port), name, "0", "5000", "REPLACE")
    for node in (target, source):
        node.command("CLUSTER", "SETSLOT", str(slot), "NODE", target.command("CLUSTER", "MYID"))


# --- cancellation and loops -------------------------------------------------------------------------------------------


async def test_a_storm_of_cancelled_callers_crosses_no_answers(store: RedisStore, reports: list[Any]) -> None:
    keys = await fill(store, 200)
    for round_ in range(10):
        waiting = [asyncio.create_task(store.get(key, any_variant)) for key in keys]
        for _ in range(round_):
            await asyncio.sleep(0)
        for task in waiting[round_ % 2 :: 2]:
            task.cancel()
        found = await asyncio.gather(*waiting, return_exceptions=True)
        for key, entry in zip(keys, found, strict=True):
            assert isinstance(entry, asyncio.CancelledError) or entry.response.body == key[3]  # type: ignore[union-attr]
    await until(lambda: is_idle(store))
    await assert_all_found(store, keys)


async def test_operations_out_of_time_cross_no_answers(
    cluster: RedisCluster, store: RedisStore, make_store: MakeStore, reports: list[Any]
) -> None:
    keys = await fill(store, 200)
    hasty = make_store(cluster.url, timeout=0.002, probe_interval=0.001, breaker_failures=1_000)
    right = 0
    for _ in range(30):
        found = await asyncio.gather(*(hasty.get(key, any_variant) for key in keys), return_exceptions=True)
        for key, entry in zip(keys, found, strict=True):
            if not isinstance(entry, StoreError):
                assert entry is not None
                assert not isinstance(entry, BaseException)
                assert entry.response.body == key[3]
                right += 1
    assert right + hasty.stats().errors >= 30 * 200


def test_two_event_loops_have_connections_of_their_own(cluster: RedisCluster) -> None:
    store = RedisStore(cluster.url, timeout=support.PATIENT)
    together = threading.Barrier(2)
    errors: list[BaseException] = []

    async def use(name: str) -> None:
        keys = [make_key(f"{name}-{number}") for number in range(50)]
        for key in keys:
            await store.set(key, make_entry(key[3]))
        together.wait()
        for _ in range(20):
            await assert_all_found(store, keys)
        await store.aclose()

    def run(name: str) -> None:
        try:
            asyncio.run(use(name))
        except BaseException as error:
            errors.append(error)
            together.abort()

    threads = [threading.Thread(target=run, args=(name,)) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


# --- what a server may say --------------------------------------------------------------------------------------------


def say(host: object, port: object) -> tuple[str, int]:
    return (host.decode() if isinstance(host, bytes) else "asked", port if isinstance(port, int) else int(str(port)))


def test_a_reply_to_cluster_slots_is_read() -> None:
    reply = [
        [0, 99, [b"a", 1, b"id"], [b"b", 2, b"id"]],
        [200, 200, [None, 3, b"id", [b"hostname", b"x"]]],
    ]
    topology = parse_topology(reply, say)
    assert topology.servers == {("a", 1), ("b", 2), ("asked", 3)}
    assert len(topology.owners) == 16384
    assert topology.owners[0] == topology.owners[99] == ("a", 1)
    assert topology.owners[100] is topology.owners[199] is topology.owners[201] is None
    assert topology.owners[200] == ("asked", 3)


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(reply, id=repr(reply)[:40])
        for reply in (
            None,
            7,
            b"OK",
            [],
            [7],
            [[]],
            [[0, 1]],
            [[0, 1, []]],
            [[0, 16384, [b"a", 1]]],
            [[-1, 3, [b"a", 1]]],
            [[5, 3, [b"a", 1]]],
            [[0, b"x", [b"a", 1]]],
            [[0, 1, [b"a", b"x"]]],
            [[0, 1, [b"a"]]],
        )
    ],
)
def test_another_reply_to_cluster_slots_is_refused(reply: object) -> None:
    with pytest.raises(InvalidResponse):
        parse_topology(reply, say)
