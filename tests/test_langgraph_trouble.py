"""What is read while others write, callers leave and Redis is in trouble: never what was before."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echo_cache import RedisStore
from echo_cache.errors import StoreError
from echo_cache.integrations.langgraph import CachedPostgresSaver, generations
from echo_cache.integrations.langgraph.generations import Change, Generations
from echo_cache.integrations.langgraph.wire import Key, is_of
from tests.langgraph_support import (
    HaltingSaver,
    cached,
    config_of,
    generation_of,
    new_thread,
    plain,
    put,
    store_of,
    value_of,
)
from tests.proxy import RedisProxy
from tests.redis_support import DEADLINE, until
from tests.servers import RedisServer

# Of stores whose server is gone or silent: so long does each of the first operations take.
SHORT = 0.2


@pytest.fixture
async def saver(postgres_url: str) -> AsyncIterator[HaltingSaver]:
    async with plain(postgres_url) as found:
        yield found


@pytest.fixture
async def another(postgres_url: str) -> AsyncIterator[HaltingSaver]:
    """A saver with a connection of its own, as another process has it."""
    async with plain(postgres_url) as found:
        yield found


@pytest.fixture
async def mine(saver: HaltingSaver, redis_url: str) -> AsyncIterator[CachedPostgresSaver]:
    async with cached(saver, redis_url) as found:
        yield found


async def value(saver: Any, thread: str) -> Any:
    """Return what is in channel a of the latest checkpoint of *thread*."""
    saved = await saver.aget_tuple(config_of(thread))
    return None if saved is None else saved.checkpoint["channel_values"]["a"]


def is_closed(server: RedisServer, thread: str) -> bool:
    return bool(server.command("GET", generation_of(thread)).startswith("c"))


async def warm(saver: CachedPostgresSaver, thread: str) -> None:
    """Read *thread* until it is read from Redis."""
    hits = saver.stats().hits
    await saver.aget_tuple(config_of(thread))
    await saver.aget_tuple(config_of(thread))
    assert saver.stats().hits > hits


# --- races ------------------------------------------------------------------------------------------------------------


async def test_slow_reader_does_not_keep_what_a_writer_has_replaced(
    mine: CachedPostgresSaver, saver: HaltingSaver, another: HaltingSaver, redis_url: str, redis_server: RedisServer
) -> None:
    thread = new_thread()
    async with cached(another, redis_url) as other:
        await put(other, thread, a=1)
        gate = saver.gate("read")
        reader = asyncio.create_task(value(mine, thread))
        await gate.reached.wait()  # PostgreSQL has answered
        await put(other, thread, a=2)
        gate.open.set()
        assert await reader == 1  # it asked before
        assert redis_server.command("EXISTS", value_of(thread)) == "0"
        assert mine.stats().fills == 0
        assert await value(mine, thread) == await value(other, thread) == 2
        # The one who asks last keeps what it got, and the slow one that was overtaken twice does not replace it.
        assert await value(mine, thread) == 2


@pytest.mark.parametrize("where", ["write", "written"])
async def test_reader_during_a_change_keeps_nothing(
    where: str,
    mine: CachedPostgresSaver,
    saver: HaltingSaver,
    another: HaltingSaver,
    redis_url: str,
    redis_server: RedisServer,
) -> None:
    thread = new_thread()
    async with cached(another, redis_url) as other:
        await put(other, thread, a=1)
        await warm(mine, thread)
        gate = another.gate(where)
        writer = asyncio.create_task(put(other, thread, a=2))
        await gate.reached.wait()
        assert is_closed(redis_server, thread)
        before = mine.stats()
        assert await value(mine, thread) == (1 if where == "write" else 2)
        assert (mine.stats().fills, mine.stats().hits) == (before.fills, before.hits)
        gate.open.set()
        await writer
        assert await value(mine, thread) == 2
        await warm(mine, thread)


async def test_writer_that_dies_after_its_commit_leaves_nothing_to_be_believed(
    mine: CachedPostgresSaver, another: HaltingSaver, redis_url: str, redis_server: RedisServer
) -> None:
    thread = new_thread()
    await put(another, thread, a=1)
    await warm(mine, thread)
    store = store_of(redis_url)
    dying = Generations(store.server, 3600)
    await dying.change([thread]).__aenter__()
    await put(another, thread, a=2)  # and it is never heard of again
    for _ in range(3):
        assert await value(mine, thread) == 2
    assert is_closed(redis_server, thread)
    redis_server.command("DEL", generation_of(thread))  # its time has come
    assert await value(mine, thread) == 2
    await warm(mine, thread)
    await store.aclose()


async def test_two_writers_at_once_keep_it_closed_until_both_are_done(
    mine: CachedPostgresSaver, saver: HaltingSaver, another: HaltingSaver, redis_url: str, redis_server: RedisServer
) -> None:
    thread = new_thread()
    async with cached(another, redis_url) as other:
        first, second = saver.gate("written"), another.gate("written")
        writers = [asyncio.create_task(put(one, thread, a=number)) for number, one in enumerate((mine, other))]
        await first.reached.wait()
        await second.reached.wait()
        first.open.set()
        await writers[0]
        assert is_closed(redis_server, thread)
        second.open.set()
        await writers[1]
        assert not is_closed(redis_server, thread)


@pytest.mark.parametrize("loss", ["FLUSHALL", "generation evicted", "value evicted", "generation of another kind"])
async def test_what_redis_loses_is_never_believed_again(
    loss: str, saver: HaltingSaver, another: HaltingSaver, redis_url: str, redis_server: RedisServer
) -> None:
    async with cached(saver, redis_url, memory_bytes=0) as mine:
        await lose(loss, mine, another, redis_server)


async def lose(loss: str, mine: CachedPostgresSaver, another: HaltingSaver, redis_server: RedisServer) -> None:
    thread = new_thread()
    await put(mine, thread, a=1)
    await warm(mine, thread)
    kept = redis_server.command("DUMP", generation_of(thread))
    assert kept
    match loss:
        case "FLUSHALL":
            redis_server.command("FLUSHALL")
        case "generation evicted":
            redis_server.command("DEL", generation_of(thread))
        case "value evicted":
            redis_server.command("DEL", value_of(thread))
        case "generation of another kind":
            redis_server.command("DEL", generation_of(thread))
            redis_server.command("LPUSH", generation_of(thread), "o")
    await put(another, thread, a=2)  # beside the cache: only what Redis has lost keeps it from being believed
    assert await value(mine, thread) == 2
    await warm(mine, thread)
    assert mine.stats().failures == 0


async def test_redis_that_is_emptied_under_a_reader_keeps_nothing_of_its(
    mine: CachedPostgresSaver, saver: HaltingSaver, redis_server: RedisServer
) -> None:
    thread = new_thread()
    await put(mine, thread, a=1)
    gate = saver.gate("read")
    reader = asyncio.create_task(value(mine, thread))
    await gate.reached.wait()
    redis_server.command("FLUSHALL")
    gate.open.set()
    assert await reader == 1
    assert redis_server.command("KEYS", "*") == []


# --- callers that leave -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["write", "written"])
async def test_cancelled_change_leaves_the_thread_closed_and_the_truth_readable(
    where: str, mine: CachedPostgresSaver, saver: HaltingSaver, redis_server: RedisServer
) -> None:
    thread = new_thread()
    await put(mine, thread, a=1)
    await warm(mine, thread)
    gate = saver.gate(where)
    writer = asyncio.create_task(put(mine, thread, a=2))
    await gate.reached.wait()
    writer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writer
    # Nobody knows what PostgreSQL still does; so nothing is believed for some time.
    assert is_closed(redis_server, thread)
    expected = await value(saver, thread)
    for _ in range(2):
        assert await value(mine, thread) == expected == (1 if where == "write" else 2)


async def test_change_that_is_cancelled_at_any_await_is_never_hidden(
    mine: CachedPostgresSaver, saver: HaltingSaver
) -> None:
    """Cancel after one turn of the event loop, after two, and so on, until a change is not reached any more."""
    thread = new_thread()
    await put(mine, thread, a=-1)
    for turns in range(200):
        await mine.aget_tuple(config_of(thread))
        writer = asyncio.create_task(put(mine, thread, a=turns))
        for _ in range(turns):
            await asyncio.sleep(0)
        is_done = not writer.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await writer
        for _ in range(2):
            assert await value(mine, thread) == await value(saver, thread)
        if is_done:
            break
    await mine._generations.aclose()


async def test_caller_that_leaves_before_the_commit_opens_it_again(saver: HaltingSaver, own_redis: RedisServer) -> None:
    with RedisProxy(own_redis.port) as proxy:
        async with cached(saver, proxy.url) as mine:
            thread = new_thread()
            await put(mine, thread, a=1)
            proxy.delay(0.2)
            calls = len(saver.calls)
            writer = asyncio.create_task(put(mine, thread, a=2))
            await until(lambda: own_redis.command("GET", generation_of(thread)).startswith("c"))
            writer.cancel()
            with pytest.raises(asyncio.CancelledError):
                await writer
            assert len(saver.calls) == calls
            proxy.heal()
            await mine._generations.aclose()
            assert not is_closed(own_redis, thread)
            await warm(mine, thread)
            assert await value(mine, thread) == 1


async def test_caller_that_leaves_while_redis_is_told_in_vain_leaves_a_debt(
    saver: HaltingSaver, own_redis: RedisServer
) -> None:
    with RedisProxy(own_redis.port) as proxy:
        async with cached(saver, proxy.url, timeout=SHORT) as mine:
            thread = new_thread()
            await put(mine, thread, a=1)
            await warm(mine, thread)
            gate = saver.gate("written")
            proxy.black_hole()
            writer = asyncio.create_task(put(mine, thread, a=2))
            await gate.reached.wait()
            gate.open.set()
            await asyncio.sleep(0)  # on to the end
            assert mine.stats().owed == 0
            writer.cancel()
            with pytest.raises(asyncio.CancelledError):
                await writer
            await until(lambda: mine.stats().owed == 1)
            proxy.heal()
            await until(lambda: mine.stats().owed == 0)
            assert await value(mine, thread) == 2


async def test_error_of_postgres_reaches_the_caller_and_the_thread_stays_closed(
    mine: CachedPostgresSaver, saver: HaltingSaver, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    thread = new_thread()
    await put(mine, thread, a=1)
    await warm(mine, thread)

    async def fail(*_: Any, **__: Any) -> Any:
        raise OSError("the connection is lost, and who knows what was committed")

    monkeypatch.setattr(saver, "aput_writes", fail)
    with pytest.raises(OSError, match="who knows"):
        await mine.aput_writes(config_of(thread, "1"), [("a", 1)], "task")
    assert is_closed(redis_server, thread)
    # Whoever writes next does not open what is in doubt.
    await put(mine, thread, a=2)
    assert is_closed(redis_server, thread)
    assert await value(mine, thread) == 2


# --- Redis in trouble -------------------------------------------------------------------------------------------------


async def test_change_without_redis_is_told_when_it_is_back_and_not_read_before(
    saver: HaltingSaver, another: HaltingSaver, own_redis: RedisServer
) -> None:
    """The writer alone is cut off; another process goes on reading, and sees the change as soon as Redis is told."""
    thread = new_thread()
    with RedisProxy(own_redis.port) as proxy:
        async with cached(saver, proxy.url, timeout=SHORT) as mine, cached(another, own_redis.url) as other:
            await put(mine, thread, a=1)
            await warm(mine, thread)
            await warm(other, thread)
            proxy.refuse()
            await put(mine, thread, a=2)
            assert mine.stats().owed == 1
            proxy.heal()
            # Redis may be asked again before it has been told: what was before is not read here.
            for _ in range(3):
                assert await value(mine, thread) == 2
            await until(lambda: mine.stats().owed == 0)
            assert await value(other, thread) == 2
            await warm(mine, thread)
            assert await value(mine, thread) == 2


@pytest.mark.parametrize("trouble", ["killed", "paused", "garbage", "resets", "errors", "read-only", "full"])
async def test_redis_in_trouble_means_that_postgres_answers(
    trouble: str, saver: HaltingSaver, another: HaltingSaver, own_redis: RedisServer
) -> None:
    thread = new_thread()
    with RedisProxy(own_redis.port) as proxy:
        async with cached(saver, proxy.url, timeout=SHORT) as mine, cached(another, own_redis.url) as other:
            config = await put(mine, thread, a=1)
            await warm(mine, thread)
            match trouble:
                case "killed":
                    own_redis.kill()
                case "paused":
                    own_redis.pause()
                case "garbage":
                    proxy.garbage()
                case "resets":
                    proxy.reset_in_reply(replies=None)
                case "errors":
                    proxy.reply_error(b"-ERR no")
                case "read-only":
                    proxy.reply_error(b"-READONLY You can't write", only=("SET", "EVALSHA", "EVAL"))
                case "full":
                    own_redis.command("CONFIG", "SET", "maxmemory", "1")
            async with asyncio.timeout(DEADLINE):
                for number in range(2, 5):
                    config = await put(mine, thread, config, a=number)
                    await mine.aput_writes(config, [("a", number)], "task")
                    for _ in range(2):
                        assert await value(mine, thread) == number
            match trouble:
                case "full":
                    # Nobody else believes what was before either, though Redis answers reads.
                    assert await value(other, thread) == 4
                    own_redis.command("CONFIG", "SET", "maxmemory", "0")
                case "paused":
                    own_redis.resume()
                case "killed":
                    own_redis.start()
                case _:
                    proxy.heal()
            await until(lambda: mine.stats().owed == 0)
            for one in (mine, other):
                assert await value(one, thread) == 4

            async def is_warm() -> bool:
                hits = mine.stats().hits
                return await value(mine, thread) == 4 and mine.stats().hits > hits

            await until(is_warm)


async def test_debts_end_when_what_was_before_has_expired(saver: HaltingSaver, own_redis: RedisServer) -> None:
    async with cached(saver, own_redis.url, timeout=SHORT, ttl=0.3) as mine:
        own_redis.kill()
        await put(mine, new_thread(), a=1)
        assert mine.stats().owed == 1
        await until(lambda: mine.stats().owed == 0)
        assert mine._generations._payer is None


async def test_more_debts_than_are_remembered_make_all_doubtful_here(
    saver: HaltingSaver, another: HaltingSaver, own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generations, "_MOST_OWED", 2)
    threads = [new_thread() for _ in range(3)]
    with RedisProxy(own_redis.port) as proxy:
        async with cached(saver, proxy.url, timeout=SHORT) as mine:
            for thread in threads:
                await put(mine, thread, a=1)
                await warm(mine, thread)
            proxy.refuse()
            for thread in threads:
                await put(mine, thread, a=2)
            assert mine.stats().owed == 2
            proxy.heal()
            await until(lambda: mine.stats().owed == 0)
            hits = mine.stats().hits
            for thread in threads:
                assert await value(mine, thread) == 2
            assert mine.stats().hits == hits


async def test_end_tells_redis_what_it_can_and_says_what_it_cannot(
    saver: HaltingSaver, own_redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    thread = new_thread()
    with RedisProxy(own_redis.port) as proxy:
        async with cached(saver, proxy.url, timeout=SHORT, breaker_failures=1000) as mine:
            await put(mine, thread, a=1)
            proxy.refuse()
            await put(mine, thread, a=2)
            await mine.aclose()
            assert "changes of 1 threads could not be told to Redis" in caplog.text
            caplog.clear()
            proxy.heal()
            await mine.aclose()
            assert mine.stats().owed == 0
    assert caplog.text == ""


async def test_change_that_ends_while_a_debt_is_paid_is_another_debt(redis_url: str) -> None:
    """A reply that was under way when the next change ended says nothing of that change."""

    class Halting:
        prefix = location = "halting"

        def __init__(self) -> None:
            self.is_up = False
            self.reached, self.open = asyncio.Event(), asyncio.Event()

        async def evaluate(self, *_: Any) -> object:
            if not self.is_up:
                raise StoreError("down")
            self.reached.set()
            await self.open.wait()
            return 1

    server: Any = Halting()
    tested = Generations(server, 3600)
    async with tested.change(["thread"]):
        pass
    assert tested.owed == 1
    server.is_up = True
    paying = asyncio.create_task(tested._pay_once())
    await server.reached.wait()
    server.is_up = False
    async with tested.change(["thread"]):
        pass
    server.open.set()
    await paying
    assert tested.owed == 1
    server.is_up = True
    await tested.aclose()
    assert tested.owed == 0


# --- a model ----------------------------------------------------------------------------------------------------------

PROCESSES = 3


class Model:
    """
    Processes that read and write one thread, one step at a time, and what each may see.

    The database is a number that only grows. A read may give no less than what was acknowledged when it began.
    """

    def __init__(self, stores: list[RedisStore], server: RedisServer) -> None:
        self.thread = new_thread()
        self.key = Key(self.thread, "", None)
        self.processes = [Generations(store.server, 3600) for store in stores]
        self.server = server
        self.committed = 0
        self.acknowledged = 0
        # What a writer has committed, if it has, and whether Redis still knows of it.
        self.writers: list[tuple[Change, int | None, bool]] = []
        # Token, what the database gave, and what was acknowledged when it began.
        self.readers: list[tuple[int, bytes, int | None, int]] = []

    async def step(self, what: str, number: int) -> None:
        """Do one step of *what*, for the process or the open operation *number*."""
        match what:
            case "look":
                at = number % PROCESSES
                token, found = await self.processes[at].look(self.key)
                if token is not None and found is not None and is_of(token, found):
                    assert int(found[20:]) >= self.acknowledged
                elif token is not None:
                    self.readers.append((at, token, None, self.acknowledged))
            case "read" if self.readers:
                at, token, _, least = self.readers.pop(number % len(self.readers))
                self.readers.append((at, token, self.committed, least))
            case "fill" if self.readers:
                at, token, seen, least = self.readers.pop(number % len(self.readers))
                if seen is not None:
                    assert seen >= least
                    await self.processes[at].fill(self.key, token, b"head" + token + b"%d" % seen)
            case "begin":
                change = self.processes[number % PROCESSES].change([self.thread])
                await change.__aenter__()
                self.writers.append((change, None, True))
            case "commit" if self.writers:
                change, _, is_noted = self.writers.pop(number % len(self.writers))
                self.committed += 1
                self.writers.append((change, self.committed, is_noted))
            case "end" if self.writers:
                change, done, _ = self.writers.pop(number % len(self.writers))
                await change.__aexit__(None if done else ValueError, None, None)
                self.acknowledged = max(self.acknowledged, done or 0)
            case "die" if self.writers and self.writers[number % len(self.writers)][2]:
                # Nobody is told that it has committed, and everybody sees it from now on. Not promised for a writer
                # that dies after Redis has forgotten that it writes: two faults at once.
                _, done, _ = self.writers.pop(number % len(self.writers))
                self.acknowledged = max(self.acknowledged, done or 0)
            case "evict" | "flush":
                words = ("FLUSHALL",) if what == "flush" else ("DEL", generation_of(self.thread))
                self.server.command(*words)
                self.writers = [(change, done, False) for change, done, _ in self.writers]


STEPS = ("look", "look", "read", "fill", "fill", "begin", "commit", "end", "die", "evict", "flush")


@settings(max_examples=60)
@given(st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 5)), max_size=40), st.randoms(use_true_random=False))
def test_no_interleaving_makes_a_read_give_what_was_before(
    redis_server: RedisServer, steps: list[tuple[str, int]], rng: random.Random
) -> None:
    async def run() -> None:
        redis_server.command("FLUSHALL")
        stores = [store_of(redis_server.url) for _ in range(PROCESSES)]
        model = Model(stores, redis_server)
        # A filled cache at the beginning, or most steps would have nothing to spoil.
        for what in ("look", "read", "fill"):
            await model.step(what, 0)
        for what, number in steps:
            await model.step(what, number)
        for number in range(PROCESSES):
            await model.step("look", number)
        for store in stores:
            await store.aclose()

    asyncio.run(run())
