"""Operations on their way to Redis: what goes out together, what waits for what, and what cancelling leaves behind."""

from __future__ import annotations

import asyncio
import os
import random
from typing import Any

import pytest

from echo_cache import codec
from echo_cache.errors import StoreError, StoreTimeout
from echo_cache.model import Entry
from echo_cache.stores import RedisStore
from tests import redis_support as support
from tests.redis_support import (
    DE,
    FR,
    LyingServer,
    MakeStore,
    Recorder,
    TrueClock,
    array,
    is_idle,
    name_of,
    until,
)
from tests.servers import RedisServer
from tests.store_contract import any_variant, make_entry, make_key, only

make_store, reports, server, store = support.make_store, support.reports, support.server, support.store

# The store asks for no time with this, so that what is counted is what the test does.
NO_TIME: dict[str, Any] = {"clock": TrueClock()}

# What one batch may hold at most.
MOST_OPERATIONS = 128
MOST_BYTES = 4 * 1024 * 1024


def body_of(entry: Entry | None) -> bytes | None:
    return entry and entry.response.body


# --- one turn ---------------------------------------------------------------------------------------------------------


async def test_reads_of_one_turn_are_one_mget_and_a_key_asked_for_twice_is_fetched_once(
    redis_url: str, make_store: MakeStore
) -> None:
    async with Recorder(redis_url) as recorder:
        store = make_store(recorder.client, **NO_TIME)
        for number in range(20):
            await store.set(make_key(number), make_entry(b"%d" % number))
        recorder.taken()
        numbers = [*range(20), *range(20), 99]
        found = await asyncio.gather(*(store.get(make_key(number), any_variant) for number in numbers))
        assert [body_of(entry) for entry in found] == [b"%d" % number for number in [*range(20)] * 2] + [None]
        ((words,),) = recorder.writes
        assert words == [b"MGET", *(name_of(make_key(number)).encode() for number in [*range(20), 99])]
        assert (store.stats().hits, store.stats().misses) == (40, 1)


async def test_the_first_reads_ask_once_what_time_it_is_and_are_one_mget_all_the_same(
    redis_url: str, make_store: MakeStore
) -> None:
    async with Recorder(redis_url) as recorder:
        store = make_store(recorder.client)
        await asyncio.gather(*(store.get(make_key(number), any_variant) for number in range(20)))
        assert recorder.taken() == ["TIME", "MGET"]


async def test_varied_keys_of_one_turn_are_one_mget_of_indexes_and_variants(
    redis_url: str, make_store: MakeStore
) -> None:
    async with Recorder(redis_url) as recorder:
        store = make_store(recorder.client, **NO_TIME)
        for number in range(10):
            await store.set(make_key(number), make_entry(b"de %d" % number, vary=DE))
            await store.set(make_key(number), make_entry(b"fr %d" % number, vary=FR))
        for expected in (["MGET", "MGET"], ["MGET"]):  # the indexes are learnt, then known
            recorder.taken()
            found = await asyncio.gather(*(store.get(make_key(number), only(DE)) for number in range(10)))
            assert [body_of(entry) for entry in found] == [b"de %d" % number for number in range(10)]
            assert recorder.taken() == expected


async def test_writes_of_one_turn_are_one_pipeline_in_their_order(redis_url: str, make_store: MakeStore) -> None:
    async with Recorder(redis_url) as recorder:
        store = make_store(recorder.client, **NO_TIME)
        await store.set(make_key(), make_entry(vary=DE))  # so that the server has the scripts
        await store.delete(make_key())
        recorder.taken()
        outcomes = await asyncio.gather(
            store.set(make_key("a"), make_entry(b"old")),
            store.set(make_key("b"), make_entry()),
            store.delete(make_key("b")),
            store.set(make_key("a"), make_entry(b"new")),
            store.set(make_key("v"), make_entry(vary=DE)),
            store.delete(make_key("none")),
        )
        assert list(outcomes) == [True, True, True, True, True, False]
        assert recorder.taken() == ["SET SET EVALSHA SET EVALSHA EVALSHA"]
        names = ("a", "b", "v")
        found = await asyncio.gather(*(store.get(make_key(name), any_variant) for name in names))
        assert [body_of(entry) for entry in found] == [b"new", None, b"body"]


async def test_an_error_that_one_write_meets_is_not_that_of_the_others(
    own_redis: RedisServer, make_store: MakeStore
) -> None:
    store = make_store(own_redis.url, breaker_failures=1)
    await store.set(make_key("there"), make_entry())
    own_redis.command("CONFIG", "SET", "maxmemory", "1")
    for turn in range(5):
        outcomes = await asyncio.gather(
            store.delete(make_key("there")), store.set(make_key(), make_entry()), return_exceptions=True
        )
        assert outcomes[0] is (turn == 0)
        assert isinstance(outcomes[1], StoreError)
        assert "could not set" in str(outcomes[1])
    assert store.stats().errors == 5
    assert store.breaker_state == "closed"  # it is there, and reads go on
    assert await store.get(make_key(), any_variant) is None


async def test_a_later_turn_is_another_batch(redis_url: str, make_store: MakeStore) -> None:
    async with Recorder(redis_url) as recorder:
        store = make_store(recorder.client, **NO_TIME)
        await store.get(make_key(), any_variant)
        recorder.taken()
        first = asyncio.ensure_future(store.get(make_key(1), any_variant))
        await until(lambda: len(recorder.writes) == 1)  # it is out
        second = asyncio.ensure_future(store.get(make_key(2), any_variant))
        await asyncio.gather(first, second)
        assert [commands[0][1] for commands in recorder.writes] == [
            name_of(make_key(number)).encode() for number in (1, 2)
        ]


# --- many turns -------------------------------------------------------------------------------------------------------


async def test_while_batches_are_out_what_comes_next_gathers(own_redis: RedisServer, make_store: MakeStore) -> None:
    async with Recorder(own_redis.url) as recorder:
        store = make_store(recorder.client, **NO_TIME)
        for number in range(50):
            await store.set(make_key(number), make_entry(b"%d" % number))
        recorder.taken()
        own_redis.pause()
        reads, writes = [], []
        for number in range(50):
            reads.append(asyncio.ensure_future(store.get(make_key(number), any_variant)))
            writes.append(asyncio.ensure_future(store.set(make_key(f"new {number}"), make_entry())))
            await asyncio.sleep(0.002)  # a turn of its own for each, and time enough for the link to send it alone
        own_redis.resume()
        assert [body_of(entry) for entry in await asyncio.gather(*reads)] == [b"%d" % number for number in range(50)]
        assert await asyncio.gather(*writes) == [True] * 50
        sent = recorder.taken()
        # Four at a time are under way, and those that gathered are one.
        assert 1 < len([names for names in sent if "MGET" in names]) <= 5
        assert 1 < len([names for names in sent if "SET" in names.split()]) <= 5


async def test_no_batch_has_more_than_128_operations(redis_url: str, make_store: MakeStore) -> None:
    async with Recorder(redis_url) as recorder:
        store = make_store(recorder.client, **NO_TIME)
        await asyncio.gather(*(store.set(make_key(number), make_entry(b"%d" % number)) for number in range(1_000)))
        found = await asyncio.gather(*(store.get(make_key(number), any_variant) for number in range(1_000)))
        assert [body_of(entry) for entry in found] == [b"%d" % number for number in range(1_000)]
        sizes = [len(words) - 1 for commands in recorder.writes for words in commands if words[0] == b"MGET"]
        assert (max(sizes), sum(sizes)) == (MOST_OPERATIONS, 1_000)
        assert len(sizes) == 8
        sets = [len(commands) for commands in recorder.writes if commands[0][0] == b"SET"]
        assert (max(sets), sum(sets)) == (MOST_OPERATIONS, 1_000)
        assert len(sets) == 8


async def test_no_batch_moves_much_more_than_4_mb_of_large_values(redis_url: str, make_store: MakeStore) -> None:
    async with Recorder(redis_url) as recorder:
        store = make_store(recorder.client, **NO_TIME)
        entries = [make_entry(os.urandom(1_000_000)) for _ in range(20)]
        await asyncio.gather(*(store.set(make_key(number), entry) for number, entry in enumerate(entries)))
        for commands in recorder.writes:
            assert sum(len(word) for words in commands for word in words) <= MOST_BYTES
        await store.get(make_key(0), any_variant)  # now it has seen how large they are
        recorder.taken()
        found = await asyncio.gather(*(store.get(make_key(number), any_variant) for number in range(20)))
        assert found == entries
        sizes = [len(words) - 1 for commands in recorder.writes for words in commands]
        assert sum(sizes) == 20
        assert max(sizes) * 1_000_000 <= MOST_BYTES


async def test_a_value_larger_than_a_batch_goes_alone(redis_url: str, make_store: MakeStore) -> None:
    async with Recorder(redis_url) as recorder:
        store = make_store(recorder.client, **NO_TIME)
        entries = [make_entry(os.urandom(6_000_000)) for _ in range(3)]
        outcomes = await asyncio.gather(*(store.set(make_key(number), entry) for number, entry in enumerate(entries)))
        assert outcomes == [True] * 3
        assert recorder.taken() == ["SET"] * 3
        for _ in range(2):
            found = await asyncio.gather(*(store.get(make_key(number), any_variant) for number in range(3)))
            assert found == entries
        assert recorder.taken()[-3:] == ["MGET"] * 3


async def test_reads_do_not_wait_behind_writes(make_store: MakeStore) -> None:
    held = asyncio.Event()
    writing = 0

    async def reply(words: list[bytes]) -> bytes:
        nonlocal writing
        if words[0] == b"MGET":
            return array(*(None for _ in words[1:]))
        writing += 1
        await held.wait()
        return b"+OK\r\n"

    async with LyingServer(reply) as url:
        store = make_store(url)
        await store.get(make_key(), any_variant)
        writes = []
        for number in range(20):
            writes.append(asyncio.ensure_future(store.set(make_key(number), make_entry())))
            await asyncio.sleep(0.002)
        await until(lambda: writing > 0)
        for number in range(20):
            assert await store.get(make_key(number), any_variant) is None
        assert not any(write.done() for write in writes)
        held.set()
        assert await asyncio.gather(*writes) == [True] * 20
        await store.aclose()


async def test_1000_reads_at_once_over_two_connections_are_all_answered(
    redis_url: str, server: Any, make_store: MakeStore
) -> None:
    store = make_store(redis_url, max_connections=2)
    before = len(server.client_list())
    for number in range(100):
        await store.set(make_key(number), make_entry(b"%d" % number, vary=DE if number % 2 else ()))
    found = await asyncio.gather(*(store.get(make_key(number % 100), any_variant) for number in range(1_000)))
    assert [body_of(entry) for entry in found] == [b"%d" % (number % 100) for number in range(1_000)]
    assert store.stats().errors == 0
    assert len(server.client_list()) <= before + 2


# --- one time-out -----------------------------------------------------------------------------------------------------


async def test_who_waits_for_room_is_answered_in_time_too(own_redis: RedisServer, make_store: MakeStore) -> None:
    async with Recorder(own_redis.url) as recorder:
        store = make_store(recorder.client, timeout=0.2, breaker_failures=1_000, **NO_TIME)
        await store.get(make_key(), any_variant)
        recorder.taken()
        own_redis.pause()
        first = [asyncio.ensure_future(store.get(make_key(number), any_variant)) for number in range(MOST_OPERATIONS)]
        await asyncio.sleep(0)
        # None of these, all in one turn, finds room: what is out does not answer.
        waiting = [asyncio.ensure_future(store.get(make_key(number), any_variant)) for number in range(1_000)]
        outcomes = await asyncio.gather(*first, *waiting, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {StoreTimeout}
        assert len(recorder.taken()) < 9  # of the nine batches: some were never sent
        assert store.timeouts == len(outcomes)
        await until(lambda: is_idle(store))
        own_redis.resume()
        assert await store.get(make_key(), any_variant) is None


TIMEOUT = 0.5


async def slowly(reply: bytes) -> bytes:
    """Return *reply* in a time of which one is within TIMEOUT, and two are not."""
    await asyncio.sleep(TIMEOUT * 0.6)
    return reply


async def test_both_round_trips_for_a_varied_key_are_within_one_timeout(make_store: MakeStore) -> None:
    index = codec.encode_index(make_key(), [codec.IndexRow(codec.variant_id(DE), 0.0, 1e308, DE)])
    values = {
        name_of(make_key()).encode(): index,
        name_of(make_key(), DE).encode(): codec.encode(make_key(), make_entry(vary=DE)),
    }
    async with LyingServer(lambda words: slowly(array(*(values[name] for name in words[1:])))) as url:
        store = make_store(url, timeout=TIMEOUT, **NO_TIME)
        with pytest.raises(StoreTimeout, match=r"did not get within 0\.5 s"):
            await store.get(make_key(), any_variant)
        assert store.timeouts == store.stats().errors == 1
        await store.aclose()


async def test_a_script_that_the_server_lost_is_sent_within_one_timeout(make_store: MakeStore) -> None:
    replies = {b"EVALSHA": b"-NOSCRIPT No matching script.\r\n", b"EVAL": b":1\r\n"}
    async with LyingServer(lambda words: slowly(replies[words[0]])) as url:
        store = make_store(url, timeout=TIMEOUT, **NO_TIME)
        with pytest.raises(StoreTimeout, match=r"did not delete within 0\.5 s"):
            await store.delete(make_key())
        assert store.timeouts == store.stats().errors == 1
        await store.aclose()


@pytest.mark.parametrize("what", ["get", "set"])
async def test_the_question_for_the_time_is_within_the_timeout_of_the_operation(
    what: str, make_store: MakeStore
) -> None:
    class SlowServer(LyingServer):
        async def _answer(self, words: list[bytes]) -> bytes | None:
            reply = await super()._answer(words)
            return await slowly(reply) if reply and words[0] in (b"TIME", b"MGET", b"SET") else reply

    async with SlowServer(lambda words: array(None) if words[0] == b"MGET" else b"+OK\r\n") as url:
        store = make_store(url, timeout=TIMEOUT)
        operation = store.get(make_key(), any_variant) if what == "get" else store.set(make_key(), make_entry())
        with pytest.raises(StoreTimeout, match=rf"did not {what} within 0\.5 s"):
            await operation
        assert store.timeouts == store.stats().errors == 1
        await store.aclose()


async def test_a_first_question_for_the_time_without_an_answer_is_one_timeout(
    own_redis: RedisServer, make_store: MakeStore
) -> None:
    store = make_store(own_redis.url, timeout=0.1)
    own_redis.pause()
    with pytest.raises(StoreTimeout):
        await store.get(make_key(), any_variant)
    assert store.timeouts == store.stats().errors == 1


# --- cancelling -------------------------------------------------------------------------------------------------------


async def test_a_storm_of_cancelled_reads_gives_nobody_anothers_answer_and_leaks_nothing(
    redis_url: str, server: Any, reports: list[Any]
) -> None:
    chance = random.Random(500)
    store = RedisStore(redis_url, timeout=support.PATIENT, max_connections=4)
    before, tasks = len(server.client_list()), asyncio.all_tasks()
    for number in range(50):
        await store.set(make_key(number), make_entry(b"%d" % number, vary=DE if number % 3 == 0 else ()))
    cancelled = answered = 0
    for _ in range(10):
        numbers = [number % 50 for number in range(500)]
        chance.shuffle(numbers)
        readers = []
        for number in numbers:
            readers.append(asyncio.ensure_future(store.get(make_key(number), any_variant)))
            if chance.random() < 0.2:
                await asyncio.sleep(0)
            if chance.random() < 0.8:
                chance.choice(readers).cancel()
        while not all(reader.done() for reader in readers):
            await asyncio.sleep(0)
            chance.choice(readers).cancel()
        for number, reader in zip(numbers, readers, strict=True):
            if reader.cancelled():
                cancelled += 1
            else:
                assert body_of(reader.result()) == b"%d" % number
                answered += 1
        found = await asyncio.gather(*(store.get(make_key(number), any_variant) for number in range(50)))
        assert [body_of(entry) for entry in found] == [b"%d" % number for number in range(50)]
    assert cancelled > 500
    assert answered > 500
    await until(lambda: is_idle(store))
    assert store.stats().errors == store.rejected == 0
    assert len(server.client_list()) <= before + 4
    await store.aclose()
    await until(lambda: len(server.client_list()) == before)
    assert asyncio.all_tasks() == tasks


async def test_a_storm_of_cancelled_writes_leaves_whole_values(redis_url: str, make_store: MakeStore) -> None:
    chance = random.Random(501)
    store = make_store(redis_url, max_connections=4)
    await store.get(make_key(), any_variant)
    for _ in range(5):
        writers = []
        for number in range(200):
            key = make_key(number % 20)
            body = b"%d" % (number % 20)
            writers.append(asyncio.ensure_future(store.set(key, make_entry(body, vary=DE if number % 2 else FR))))
            if chance.random() < 0.2:
                await asyncio.sleep(0)
            chance.choice(writers).cancel()
        await asyncio.gather(*writers, return_exceptions=True)
        found = await asyncio.gather(*(store.get(make_key(number), any_variant) for number in range(20)))
        assert {body_of(entry) for entry in found} <= {None, *(b"%d" % number for number in range(20))}
        for number, entry in enumerate(found):
            assert body_of(entry) in (None, b"%d" % number)
    assert any(found)
    assert store.stats().errors == store.rejected == 0


async def test_who_leaves_takes_nothing_from_the_others_of_the_batch(redis_url: str, make_store: MakeStore) -> None:
    async with Recorder(redis_url) as recorder:
        store = make_store(recorder.client, **NO_TIME)
        await store.set(make_key(), make_entry())
        recorder.taken()
        readers = [asyncio.ensure_future(store.get(make_key(), any_variant)) for _ in range(10)]
        await asyncio.sleep(0)
        for reader in readers[:9]:
            reader.cancel()
        assert await readers[9] is not None
        assert all(reader.cancelled() for reader in readers[:9])
        assert recorder.taken() == ["MGET"]


# --- closing ----------------------------------------------------------------------------------------------------------


async def test_aclose_waits_for_those_that_wait_for_room_too(
    redis_url: str, server: Any, make_store: MakeStore
) -> None:
    store = make_store(redis_url, max_connections=1)
    await store.get(make_key(), any_variant)
    writes = [asyncio.ensure_future(store.set(make_key(number), make_entry())) for number in range(2_000)]
    await asyncio.sleep(0)
    await store.aclose()
    assert await asyncio.gather(*writes) == [True] * 2_000
    assert server.dbsize() == 2_000


async def test_aclose_lets_go_of_those_that_wait_for_room_when_its_time_is_up(
    own_redis: RedisServer, make_store: MakeStore, reports: list[Any]
) -> None:
    store = make_store(own_redis.url, timeout=0.2, max_connections=1, breaker_failures=1_000)
    await store.get(make_key(), any_variant)
    own_redis.pause()
    tasks = asyncio.all_tasks()
    writes = [asyncio.ensure_future(store.set(make_key(number), make_entry())) for number in range(2_000)]
    await asyncio.sleep(0)
    await store.aclose()
    assert is_idle(store)
    outcomes = await asyncio.gather(*writes, return_exceptions=True)
    assert {isinstance(outcome, StoreError) for outcome in outcomes} == {True}
    assert asyncio.all_tasks() == tasks
