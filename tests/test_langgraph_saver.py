"""What the cached checkpointer reads and changes, one operation at a time, on a real Redis and a real PostgreSQL."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import logging
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.serde.types import TASKS
from psycopg import AsyncConnection
from psycopg.errors import UndefinedFunction
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb
from psycopg_pool import AsyncConnectionPool

from echo_cache.errors import ConfigurationError
from echo_cache.integrations.langgraph import CachedPostgresSaver, SaverStats
from tests.langgraph_support import (
    SCENARIOS,
    HaltingSaver,
    cached,
    checkpoint,
    config_of,
    generation_of,
    new_thread,
    plain,
    put,
    store_of,
    value_of,
)
from tests.servers import RedisCluster, RedisServer

ROOT = Path(__file__).parent.parent


@pytest.fixture
async def saver(postgres_url: str) -> AsyncIterator[HaltingSaver]:
    async with plain(postgres_url) as found:
        yield found


@pytest.fixture
async def another(postgres_url: str) -> AsyncIterator[HaltingSaver]:
    """A saver with a connection of its own, as in another process."""
    async with plain(postgres_url) as found:
        yield found


@pytest.fixture(params=[0, 1_000_000], ids=["from redis", "remembered"])
async def mine(
    saver: HaltingSaver, redis_url: str, request: pytest.FixtureRequest
) -> AsyncIterator[CachedPostgresSaver]:
    """A saver that reads from Redis each time, or one that remembers what it has read."""
    async with cached(saver, redis_url, memory_bytes=request.param) as found:
        yield found


@pytest.fixture
async def remembering(saver: HaltingSaver, redis_url: str) -> AsyncIterator[CachedPostgresSaver]:
    async with cached(saver, redis_url) as found:
        yield found


async def hits_of(saver: CachedPostgresSaver, *configs: Any) -> int:
    """Read *configs* and return how many of the reads were hits."""
    before = saver.stats().hits
    for config in configs:
        await saver.aget_tuple(config)
    return saver.stats().hits - before


# --- reading ----------------------------------------------------------------------------------------------------------


async def test_second_read_is_a_hit_and_equal_and_shares_nothing(
    mine: CachedPostgresSaver, saver: HaltingSaver
) -> None:
    thread = new_thread()
    first = await put(
        mine, thread, messages=[HumanMessage("hello"), AIMessage("hi")], count=1, none=None, raw=b"\0\xff"
    )
    second = await put(mine, thread, first, messages=[{"deep": [1, {"er": (2, 3)}]}], ratio=0.5)
    await mine.aput_writes(second, [("messages", {"a": [1]}), ("__interrupt__", ("why",))], "task", "path")
    for config in (config_of(thread), first, second):
        expected = await saver.aget_tuple(config)
        assert expected is not None
        assert await mine.aget_tuple(config) == expected
        calls = len(saver.calls)
        hit = await mine.aget_tuple(config)
        assert hit == expected
        assert len(saver.calls) == calls
        again = await mine.aget_tuple(config)
        assert hit is not None
        hit.checkpoint["channel_values"].clear()
        hit.metadata.clear()
        assert again == expected
    assert mine.stats() == SaverStats(hits=6, misses=3, fills=3, rejected=0, forged=0, failures=0, owed=0)
    assert (await mine.aget(second)) == (await saver.aget(second))


async def test_hit_is_one_round_trip_and_two_commands_at_most(
    mine: CachedPostgresSaver, redis_server: RedisServer
) -> None:
    thread = new_thread()
    await put(mine, thread, a=[1])
    await mine.aget_tuple(config_of(thread))
    redis_server.command("CONFIG", "RESETSTAT")
    assert await hits_of(mine, config_of(thread)) == 1
    calls = [line for line in redis_server.command("INFO", "commandstats").splitlines() if "cmdstat_" in line]
    assert [line.partition(":")[0] for line in calls if "config" not in line and "info" not in line] == ["cmdstat_mget"]
    assert "cmdstat_mget:calls=1," in "".join(calls)


async def test_what_memory_has_is_a_hit_as_long_as_redis_says_so_and_shares_nothing(
    remembering: CachedPostgresSaver, redis_server: RedisServer
) -> None:
    thread = new_thread()
    await put(remembering, thread, messages=["a"])
    for _ in range(2):
        seen = await remembering.aget_tuple(config_of(thread))
    redis_server.command("DEL", value_of(thread))
    for _ in range(2):
        seen = await remembering.aget_tuple(config_of(thread))
        assert seen is not None
        assert seen.checkpoint["channel_values"] == {"messages": ["a"]}
        seen.checkpoint["channel_values"]["messages"].append("changed by whoever got it")
        seen.checkpoint["channel_values"].clear()
        assert seen.metadata is not None
        seen.metadata.clear()
    assert (remembering.stats().hits, remembering.stats().misses) == (3, 1)


async def test_what_was_filled_here_is_remembered(remembering: CachedPostgresSaver, redis_server: RedisServer) -> None:
    thread = new_thread()
    await put(remembering, thread, a=[1])
    first = await remembering.aget_tuple(config_of(thread))
    redis_server.command("DEL", value_of(thread))
    assert await remembering.aget_tuple(config_of(thread)) == first
    assert (remembering.stats().hits, remembering.stats().misses) == (1, 1)


async def test_a_change_of_ones_own_is_not_asked_for_twice(
    remembering: CachedPostgresSaver, redis_server: RedisServer
) -> None:
    thread, other = new_thread(), new_thread()
    config = await put(remembering, thread, a=[1])
    await put(remembering, other, a=[1])
    for one in (config_of(thread), config, config_of(other)):
        await remembering.aget_tuple(one)
    await put(remembering, thread, config, a=[2])
    redis_server.command("CONFIG", "RESETSTAT")
    seen = await remembering.aget_tuple(config_of(thread))
    assert seen is not None
    assert seen.checkpoint["channel_values"] == {"a": [2]}
    assert "cmdstat_mget:calls=1," in redis_server.command("INFO", "commandstats")
    # What is remembered of other threads stays.
    redis_server.command("DEL", value_of(other))
    assert await hits_of(remembering, config_of(other)) == 1


async def test_what_memory_has_ends_with_the_generation(
    saver: HaltingSaver, another: HaltingSaver, redis_url: str
) -> None:
    async with cached(saver, redis_url) as mine, cached(another, redis_url) as other:
        thread = new_thread()
        await put(mine, thread, a=1)
        for _ in range(2):
            await mine.aget_tuple(config_of(thread))
        await put(other, thread, a=2)  # by another process, which fills it, too
        await other.aget_tuple(config_of(thread))
        seen = await mine.aget_tuple(config_of(thread))
        assert seen is not None
        assert seen.checkpoint["channel_values"] == {"a": 2}
        assert (mine.stats().hits, mine.stats().misses) == (2, 1)


async def test_what_memory_has_is_read_anew_when_it_is_past_its_time(
    remembering: CachedPostgresSaver, monkeypatch: pytest.MonkeyPatch
) -> None:
    thread = new_thread()
    await put(remembering, thread, a=1)
    for _ in range(2):
        await remembering.aget_tuple(config_of(thread))
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 3601)
    for _ in range(3):
        assert await remembering.aget_tuple(config_of(thread)) is not None
    assert (remembering.stats().hits, remembering.stats().misses) == (3, 2)


async def test_memory_is_bounded(saver: HaltingSaver, redis_url: str) -> None:
    async with cached(saver, redis_url, memory_bytes=9_000) as mine:
        for number in range(5):
            thread = new_thread()
            await put(mine, thread, text="x" * (1_000 if number else 9_000))
            for _ in range(2):
                await mine.aget_tuple(config_of(thread))
        assert 0 < mine._memory.size <= 9_000
        assert len(mine._memory._entries.places) == len(mine._memory._entries) < 4
        assert mine.stats().hits == 5


async def test_that_there_is_no_checkpoint_is_not_kept(
    mine: CachedPostgresSaver, saver: HaltingSaver, redis_server: RedisServer
) -> None:
    thread = new_thread()
    assert await mine.aget_tuple(config_of(thread)) is None
    assert await mine.aget_tuple(config_of(thread, "nothing")) is None
    assert redis_server.command("KEYS", "*") == [generation_of(thread)]
    await put(saver, thread, a=[1])
    assert await mine.aget_tuple(config_of(thread)) is not None


async def test_latest_is_another_key_than_an_id_and_an_empty_id_is_the_latest(mine: CachedPostgresSaver) -> None:
    thread = new_thread()
    latest = await put(mine, thread, a=[1])
    assert await hits_of(mine, config_of(thread), latest) == 0
    assert await hits_of(mine, config_of(thread), latest) == 2
    assert await hits_of(mine, config_of(thread, ""), {"configurable": {"thread_id": thread}}) == 2
    assert await hits_of(mine, config_of(thread, None, "other")) == 0


async def test_what_only_postgres_can_judge_goes_there(mine: CachedPostgresSaver) -> None:
    with pytest.raises(KeyError):
        await mine.aget_tuple({"configurable": {}})
    with pytest.raises(KeyError):
        await mine.aput({"configurable": {}}, checkpoint(), {}, {})
    with pytest.raises(UndefinedFunction):
        await mine.aget_tuple({"configurable": {"thread_id": uuid.UUID(int=1)}})


async def test_value_and_generation_expire(mine: CachedPostgresSaver, redis_server: RedisServer) -> None:
    thread = new_thread()
    await put(mine, thread, a=[1])
    assert 0 < int(redis_server.command("PTTL", generation_of(thread))) <= 60_000
    await mine.aget_tuple(config_of(thread))
    lives = [int(redis_server.command("PTTL", name)) for name in (value_of(thread), generation_of(thread))]
    assert all(3_500_000 < life <= 3_600_000 for life in lives), lives


async def test_value_that_redis_keeps_for_too_long_is_not_believed(
    mine: CachedPostgresSaver, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    thread = new_thread()
    await put(mine, thread, a=[1])
    await mine.aget_tuple(config_of(thread))
    assert await hits_of(mine, config_of(thread)) == 1
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 3_601)
    assert await hits_of(mine, config_of(thread)) == 0
    assert await hits_of(mine, config_of(thread)) == 1


async def test_checkpoint_that_is_too_large_is_not_kept(saver: HaltingSaver, redis_url: str) -> None:
    async with cached(saver, redis_url, max_body_bytes=10_000) as mine:
        thread = new_thread()
        small = await put(mine, thread, a=["a" * 8_000])
        large = await put(mine, thread, small, a=["a" * 12_000])
        assert await hits_of(mine, small, large, small, large) == 1
        assert mine.stats().fills == 1


async def test_history_of_delta_channels_and_lists_are_postgres_own(
    mine: CachedPostgresSaver, saver: HaltingSaver
) -> None:
    graph = SCENARIOS["delta-channel"].builder().compile(checkpointer=mine)
    thread = new_thread()
    for turn in range(5):
        await graph.ainvoke({"turn": turn, "entries": f"turn {turn}"}, {"configurable": {"thread_id": thread}})
    config = config_of(thread)
    expected = await saver.aget_delta_channel_history(config=config, channels=["entries"])
    assert expected["entries"]["writes"] or "seed" in expected["entries"]
    assert await mine.aget_delta_channel_history(config=config, channels=["entries"]) == expected
    options: dict[str, Any] = {"filter": {"source": "loop"}, "limit": 3}
    listed = [saved async for saved in saver.alist(config, **options)]
    assert len(listed) == 3
    assert [saved async for saved in mine.alist(config, **options)] == listed
    older = [saved async for saved in saver.alist(config, before=listed[0].config, **options)]
    assert [saved async for saved in mine.alist(config, before=listed[0].config, **options)] == older
    assert mine.get_next_version("1.5", None).startswith(f"{2:032}.")
    assert mine.config_specs == saver.config_specs


async def test_old_checkpoint_is_brought_up_to_date_as_by_the_saver(
    mine: CachedPostgresSaver, saver: HaltingSaver
) -> None:
    thread = new_thread()
    parent = await put(saver, thread, a=[1])
    await saver.aput_writes(parent, [(TASKS, {"node": "n", "args": [1]}), (TASKS, HumanMessage("send"))], "task")
    old = {**checkpoint(a=True), "v": 3}
    await saver.aput(parent, old, {"source": "loop"}, {})
    expected = await saver.aget_tuple(config_of(thread))
    assert expected is not None
    assert len(expected.checkpoint["channel_values"][TASKS]) == 2
    assert await mine.aget_tuple(config_of(thread)) == expected
    assert await mine.aget_tuple(config_of(thread)) == expected
    assert mine.stats().hits == 1


async def test_json_that_only_postgres_could_have_is_given_as_it_is(
    mine: CachedPostgresSaver, saver: HaltingSaver
) -> None:
    thread = new_thread()
    config = await put(saver, thread, a=[1])
    metadata = {"huge": 10**40, "small": 1e-300, "text": "\u20ac \U0001f600 \u0001", "deep": [{"a": [None, True]}]}
    await saver.conn.execute(  # type: ignore[union-attr]  # it is no pool
        "UPDATE checkpoints SET metadata = %s WHERE thread_id = %s", (Jsonb(metadata), thread)
    )
    for _ in range(2):
        saved = await mine.aget_tuple(config)
        assert saved is not None
        assert saved.metadata == metadata
    assert mine.stats().hits == 1


# --- changing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["put", "put_writes", "delete_thread", "prune"])
async def test_change_is_seen_at_once_by_another_process(
    change: str, mine: CachedPostgresSaver, saver: HaltingSaver, redis_url: str
) -> None:
    thread, other_thread = new_thread(), new_thread()
    old = await put(mine, thread, a=[0])
    config = await put(mine, thread, old, a=[1])
    await put(mine, other_thread, a=[1])
    # Its store, its connections and all that it remembers are its own.
    async with cached(saver, redis_url) as other:
        reads = [config_of(thread), config, old]
        await hits_of(other, *reads, config_of(other_thread))
        assert await hits_of(mine, *reads, config_of(other_thread)) == 4
        match change:
            case "put":
                await put(other, thread, config, a=[2])
            case "put_writes":
                await other.aput_writes(config, [("a", 2)], "task")
            case "delete_thread":
                await other.adelete_thread(thread)
            case "prune":
                await other.aprune([thread])
        for one in reads:
            assert await mine.aget_tuple(one) == await saver.aget_tuple(one)
        assert await hits_of(mine, config_of(other_thread)) == 1


async def test_writes_that_come_before_their_checkpoint_are_seen(
    mine: CachedPostgresSaver, saver: HaltingSaver
) -> None:
    thread = new_thread()
    made = checkpoint(a=1)
    config = config_of(thread, made["id"])
    await mine.aput_writes(config, [("a", 1)], "early")
    assert await mine.aget_tuple(config) is None
    await mine.aput(config_of(thread), made, {}, {})
    await mine.aput_writes(config, [("a", 2)], "late")
    saved = await mine.aget_tuple(config)
    assert saved is not None
    assert saved.pending_writes == [("early", "a", 1), ("late", "a", 2)]
    assert await mine.aget_tuple(config) == saved == await saver.aget_tuple(config)


class AbleSaver(HaltingSaver):
    """A saver that can do what AsyncPostgresSaver leaves to others."""

    async def adelete_for_runs(self, run_ids: Sequence[str]) -> None:
        async with self._cursor() as cursor:
            await cursor.execute("DELETE FROM checkpoints WHERE metadata ->> 'run_id' = ANY(%s)", (list(run_ids),))

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        for saved in [saved async for saved in self.alist(config_of(source_thread_id))]:
            await super().aput(config_of(target_thread_id), saved.checkpoint, saved.metadata, {})


async def test_copies_and_deleted_runs_are_seen(saver: HaltingSaver, redis_url: str) -> None:
    able = AbleSaver(saver.conn)
    async with cached(able, redis_url) as mine:
        source, target, run = new_thread(), new_thread(), uuid.uuid4().hex
        await put(able, target, a=1)
        await able.aput(config_of(source), checkpoint(a=2), {"run_id": run}, {})
        for thread in (source, target):
            assert await hits_of(mine, config_of(thread), config_of(thread)) == 1
        await mine.acopy_thread(source, target)
        saved = await mine.aget_tuple(config_of(target))
        assert saved is not None
        assert saved.checkpoint["channel_values"] == {"a": 2}
        assert await hits_of(mine, config_of(source), config_of(target)) == 2
        await mine.adelete_for_runs([run])
        assert await mine.aget_tuple(config_of(source)) is None
        assert (await mine.aget_tuple(config_of(target))) == (await able.aget_tuple(config_of(target)))


async def test_what_the_saver_cannot_do_is_its_own_error(mine: CachedPostgresSaver) -> None:
    with pytest.raises(NotImplementedError):
        await mine.adelete_for_runs(["run"])
    with pytest.raises(NotImplementedError):
        await mine.acopy_thread("a", "b")
    with pytest.raises(TypeError, match="not a str"):
        await mine.aprune("thread")
    with pytest.raises(ValueError, match="strategy"):
        await mine.aprune(["thread"], strategy="none")


def test_every_public_method_of_the_base_and_of_the_saver_is_delegated() -> None:
    theirs = {
        name
        for of in (BaseCheckpointSaver, AsyncPostgresSaver)
        for name, value in inspect.getmembers(of)
        if not name.startswith("_") and (callable(value) or isinstance(value, property))
    }
    # `get` and `aget` are made of `get_tuple`; `from_conn_string` makes a saver, and this one is made of it.
    assert theirs - set(vars(CachedPostgresSaver)) == {"get", "aget", "from_conn_string"}


async def test_pool_and_pipeline_do_as_well_as_a_connection(postgres_url: str, redis_url: str) -> None:
    options: dict[str, Any] = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}
    async with (
        AsyncConnectionPool(postgres_url, min_size=2, max_size=4, kwargs=options, open=False) as pool,
        AsyncPostgresSaver.from_conn_string(postgres_url, pipeline=True) as pipelined,
        cached(AsyncPostgresSaver(pool), redis_url) as one,
        cached(pipelined, redis_url) as other,
    ):
        thread = new_thread()
        for number in range(4):
            await put((one, other)[number % 2], thread, a=[number])
            seen = await asyncio.gather(*[saver.aget_tuple(config_of(thread)) for saver in (one, other) * 4])
            assert [saved and saved.checkpoint["channel_values"] for saved in seen] == [{"a": [number]}] * 8
            assert await hits_of(one, config_of(thread)) + await hits_of(other, config_of(thread)) == 2


async def test_setup_is_the_savers(mine: CachedPostgresSaver) -> None:
    await mine.setup()


# --- threads ----------------------------------------------------------------------------------------------------------


async def test_synchronous_methods_from_another_thread_do_the_same(
    mine: CachedPostgresSaver, saver: HaltingSaver, redis_url: str
) -> None:
    thread, second = new_thread(), new_thread()

    def work() -> None:
        config = mine.put(config_of(thread), checkpoint(a=1), {"source": "loop"}, {})
        for _ in range(2):
            saved = mine.get_tuple(config)
            assert saved is not None
            assert saved == saver.get_tuple(config)
        assert mine.stats().hits == 1
        mine.put_writes(config, [("a", 2)], "task")
        found = mine.get_tuple(config)
        assert found is not None
        assert found.pending_writes == [("task", "a", 2)]
        assert list(mine.list(config_of(thread))) == list(saver.list(config_of(thread)))
        assert mine.get(config) == saver.get(config)
        history = mine.get_delta_channel_history(config=config, channels=["a"])
        assert history == saver.get_delta_channel_history(config=config, channels=["a"])
        mine.put(config_of(second), checkpoint(), {}, {})
        assert mine.get_tuple(config_of(second)) is not None
        mine.prune([second], strategy="delete")
        assert mine.get_tuple(config_of(second)) is None
        mine.delete_thread(thread)
        assert mine.get_tuple(config) is None
        for operation in (lambda: mine.copy_thread("a", "b"), lambda: mine.delete_for_runs(["a"])):
            with pytest.raises(NotImplementedError):
                operation()

    await asyncio.to_thread(work)
    graph = SCENARIOS["multi-turn"].builder().compile(checkpointer=mine)
    config = {"configurable": {"thread_id": thread}}
    for text in ("hello", "goodbye"):
        await asyncio.to_thread(graph.invoke, {"messages": [HumanMessage(text)]}, config)
    state = await asyncio.to_thread(graph.get_state, config)
    assert len(state.values["messages"]) == 4


async def test_synchronous_method_in_the_savers_own_loop_says_so(mine: CachedPostgresSaver) -> None:
    with pytest.raises(asyncio.InvalidStateError, match="await aget_tuple"):
        mine.get_tuple(config_of("thread"))
    with pytest.raises(asyncio.InvalidStateError, match="await aput"):
        mine.put(config_of("thread"), checkpoint(), {}, {})


# --- serdes -----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Own:
    """A class of an application."""

    name: str


async def test_clones_with_other_allowlists_read_the_same_value_each_in_its_own_way(
    postgres_url: str, redis_url: str
) -> None:
    strict = JsonPlusSerializer(allowed_msgpack_modules=None)
    async with plain(postgres_url, serde=strict) as saver, cached(saver, redis_url) as mine:
        allowed = {(Own.__module__, Own.__name__)}
        clone, inner_clone = mine.with_allowlist(allowed), saver.with_allowlist(allowed)
        assert isinstance(clone, CachedPostgresSaver)
        assert clone is not mine
        thread = new_thread()
        await put(mine, thread, own=[Own("a")])
        config = config_of(thread)
        # Whoever fills, nobody reads what the other has made of it.
        for filling, reading in ((mine, clone), (clone, mine)):
            await put(mine, thread, own=[Own("a")])
            await filling.aget_tuple(config)
            assert await hits_of(reading, config) == 1
            assert await mine.aget_tuple(config) == await saver.aget_tuple(config)
            assert await clone.aget_tuple(config) == await inner_clone.aget_tuple(config)
        found = await clone.aget_tuple(config)
        assert found is not None
        assert found.checkpoint["channel_values"]["own"] == [Own("a")]
        assert await mine.aget_tuple(config) != found
        assert clone.stats() == mine.stats()
        await clone.aput_writes(found.config, [("own", 1)], "task")
        assert await hits_of(mine, config) == 0
        assert [saved async for saved in clone.alist(config)] == [saved async for saved in inner_clone.alist(config)]


async def test_allowlist_that_changes_nothing_makes_no_clone(mine: CachedPostgresSaver) -> None:
    assert mine.with_allowlist({("a", "b")}) is mine


class Swapped:
    """A cipher that hides nothing from those who know it."""

    def encrypt(self, plaintext: bytes) -> tuple[str, bytes]:
        return "swapped", bytes(byte ^ 0x55 for byte in plaintext)

    def decrypt(self, ciphername: str, ciphertext: bytes) -> bytes:
        assert ciphername == "swapped"
        return self.encrypt(ciphertext)[1]


async def test_what_is_encrypted_in_postgres_is_encrypted_in_redis(
    postgres_url: str, redis_url: str, redis_server: RedisServer
) -> None:
    async with (
        plain(postgres_url, serde=EncryptedSerializer(Swapped())) as saver,
        cached(saver, redis_url, secret=None) as mine,
    ):
        thread = new_thread()
        config = await put(mine, thread, a=["in confidence"])
        await mine.aput_writes(config, [("a", "in confidence")], "task")
        expected = await saver.aget_tuple(config)
        assert await mine.aget_tuple(config) == expected
        assert await mine.aget_tuple(config) == expected
        assert mine.stats().hits == 1
        assert "confidence" in repr(expected)
        assert "confidence" not in redis_server.command(
            "GET", value_of(thread, config["configurable"]["checkpoint_id"])
        )


class Pickled:
    """What msgpack cannot write, and pickle can."""

    def __init__(self) -> None:
        self.value = {1, 2}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pickled) and self.value == other.value

    __hash__ = None  # type: ignore[assignment]  # it is not for sets


async def test_pickles_of_the_saver_are_not_kept(postgres_url: str, redis_url: str, redis_server: RedisServer) -> None:
    serde = JsonPlusSerializer(pickle_fallback=True)
    async with plain(postgres_url, serde=serde) as saver, cached(saver, redis_url) as mine:
        thread = new_thread()
        await put(mine, thread, a=Pickled())
        for _ in range(2):
            found = await mine.aget_tuple(config_of(thread))
            assert found is not None
            assert found.checkpoint["channel_values"]["a"] == Pickled()
        assert mine.stats().hits == 0
        assert redis_server.command("KEYS", "*") == [generation_of(thread)]


# --- making one -------------------------------------------------------------------------------------------------------


async def test_wrong_arguments_are_told(saver: HaltingSaver, postgres_url: str, redis_url: str) -> None:
    store = store_of(redis_url)
    wrong: Any = None
    with pytest.raises(ConfigurationError, match="saver must be an AsyncPostgresSaver, not NoneType"):
        CachedPostgresSaver(wrong, store)
    with pytest.raises(ConfigurationError, match="store must be a RedisStore or a URL, not NoneType"):
        CachedPostgresSaver(saver, wrong)
    with pytest.raises(ConfigurationError, match="the URL of a RedisStore begins with"):
        CachedPostgresSaver(saver, "nothing")
    for ttl in (0, -1, "1"):
        with pytest.raises(ConfigurationError, match="ttl must be"):
            CachedPostgresSaver(saver, store, ttl=ttl)  # type: ignore[arg-type]  # wrong on purpose
    async with await AsyncConnection.connect(postgres_url, row_factory=dict_row) as connection:
        with pytest.raises(ConfigurationError, match="autocommit"):
            CachedPostgresSaver(AsyncPostgresSaver(connection), store)

    class Untyped:
        def dumps(self, obj: Any) -> bytes:
            raise NotImplementedError

        loads = dumps

    untyped: Any = Untyped()
    with pytest.raises(ConfigurationError, match="dumps_typed"):
        CachedPostgresSaver(AsyncPostgresSaver(saver.conn, serde=untyped), store)


async def test_url_makes_a_store_that_is_closed_with_it_and_says_that_nothing_is_signed(
    saver: HaltingSaver, redis_url: str, redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    thread = new_thread()
    async with CachedPostgresSaver(saver, redis_url) as mine:
        await put(mine, thread, a=[1])
        await mine.aget_tuple(config_of(thread))
    assert "are not signed" in caplog.text
    assert redis_server.command("EXISTS", value_of(thread)) == "1"
    # It can be used again.
    assert await hits_of(mine, config_of(thread)) == 1
    await mine.aclose()
    await mine.aclose()


async def test_signed_values_are_no_reason_to_warn(mine: CachedPostgresSaver, caplog: pytest.LogCaptureFixture) -> None:
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_repr_says_what_it_is_doing(mine: CachedPostgresSaver, redis_server: RedisServer) -> None:
    thread = new_thread()
    await put(mine, thread, a=[1])
    await hits_of(mine, config_of(thread), config_of(thread))
    assert repr(mine) == (
        f"<CachedPostgresSaver redis://127.0.0.1:{redis_server.port}/0 echo_cache "
        "[1 hits, 1 misses | 0 rejected, 0 failures, 0 threads owed]>"
    )
    assert repr(mine._generations) == "<Generations echo_cache [0 tasks, 0 threads owed]>"


async def test_on_a_cluster_all_of_a_thread_is_in_one_slot(saver: HaltingSaver, cluster: RedisCluster) -> None:
    async with cached(saver, cluster.url) as mine:
        for _ in range(8):
            thread = new_thread()
            await put(mine, thread, a=[1])
            assert await hits_of(mine, config_of(thread), config_of(thread)) == 1
            await put(mine, thread, a=[2])
            assert await hits_of(mine, config_of(thread), config_of(thread)) == 1
        assert mine.stats().failures == 0


def _python(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)


def test_without_the_extra_the_import_names_it() -> None:
    done = _python(
        "import sys; sys.modules['langgraph'] = None\n"
        "try:\n import echo_cache.integrations.langgraph\n"
        "except ImportError as error:\n print(error)"
    )
    assert "pip install 'echo-cache[langgraph]'" in done.stdout, done.stderr


def test_the_package_imports_no_langgraph() -> None:
    done = _python("import echo_cache, echo_cache.integrations, sys; print('langgraph' in sys.modules)")
    assert done.stdout == "False\n", done.stderr
