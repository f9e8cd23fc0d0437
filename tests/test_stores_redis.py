"""RedisStore on a real server, on servers in trouble, and on servers that lie."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import pickle
import re
import subprocess
import sys
import textwrap
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Protocol

import pytest
import redis
import redis.asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.crc import key_slot

from echo_cache import codec
from echo_cache.errors import ConfigurationError, StoreError, StoreTimeout
from echo_cache.model import CacheKey, Entry, Vary
from echo_cache.stores import RedisStore
from tests.servers import RedisServer
from tests.store_contract import StoreContract, any_variant, language, listed, make_entry, make_key, only

# For tests that ask what is answered and not when: a loaded machine is slow.
PATIENT = 30.0

# What a test waits at most for a thing that must come by itself.
DEADLINE = 30.0


class MakeStore(Protocol):
    def __call__(self, server: Any, **options: Any) -> RedisStore: ...


@pytest.fixture
async def make_store() -> AsyncIterator[MakeStore]:
    """Make stores that are closed at the end of the test."""
    stores: list[RedisStore] = []

    def make(server: Any, **options: Any) -> RedisStore:
        stores.append(RedisStore(server, **{"timeout": PATIENT, **options}))
        return stores[-1]

    yield make
    for store in stores:
        await store.aclose()


@pytest.fixture
async def store(redis_url: str, make_store: MakeStore) -> RedisStore:
    return make_store(redis_url)


@pytest.fixture
def server(redis_url: str) -> Iterator[Any]:
    """The server behind *redis_url*, without a store between."""
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
async def reports() -> AsyncIterator[list[dict[str, Any]]]:
    """What the event loop reports: errors that nobody retrieved, tasks that were destroyed. There must be nothing."""
    found: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: found.append(context))
    yield found
    gc.collect()
    await asyncio.sleep(0)
    loop.set_exception_handler(None)
    assert found == []


class RecordingRedis(redis.asyncio.Redis):
    """A client that notes the commands that it sends: each is one round trip."""

    def __init__(self, url: str) -> None:
        super().__init__(connection_pool=redis.asyncio.ConnectionPool.from_url(url, protocol=2))
        self.auto_close_connection_pool = True
        self.sent: list[str] = []

    async def execute_command(self, *words: Any, **options: Any) -> Any:
        self.sent.append(str(words[0]))
        return await super().execute_command(*words, **options)  # type: ignore[no-untyped-call]  # redis-py's types

    def taken(self) -> list[str]:
        sent, self.sent = self.sent, []
        return sent


def name_of(key: CacheKey, vary: Vary = (), *, prefix: str = "echo_cache") -> str:
    name = f"{prefix}:{codec.FORMAT_VERSION}:{{{codec.key_digest(key)}}}"
    return f"{name}:{codec.variant_id(vary).hex()}" if vary else name


async def until(condition: Callable[[], bool | Awaitable[bool]]) -> None:
    """Return when *condition* holds; it must within DEADLINE."""
    async with asyncio.timeout(DEADLINE):
        while True:
            holds = condition()
            if isinstance(holds, Awaitable):
                holds = await holds
            if holds:
                return
            await asyncio.sleep(0.01)


DE, FR = language(b"de"), language(b"fr")


class TestRedisStore(StoreContract):
    @pytest.fixture
    async def store(self, redis_url: str, make_store: MakeStore) -> RedisStore:
        return make_store(redis_url)


class TestRedisStoreOnAReadyClient(StoreContract):
    max_variants: ClassVar[int] = 5

    @pytest.fixture
    async def store(self, redis_url: str, make_store: MakeStore) -> AsyncIterator[RedisStore]:
        pool = redis.asyncio.BlockingConnectionPool.from_url(redis_url, max_connections=4, protocol=2)
        async with redis.asyncio.Redis.from_pool(pool) as client:
            yield make_store(client, max_variants=self.max_variants)


class TestRedisStoreOnAUnixSocket(StoreContract):
    @pytest.fixture
    async def store(self, tmp_path: Path, make_store: MakeStore) -> AsyncIterator[RedisStore]:
        path = tmp_path / "redis.sock"
        with RedisServer(("--unixsocket", str(path))):
            store = make_store(f"unix://{path}?db=3")
            yield store
            await store.aclose()


# --- names, expiry, round trips ---------------------------------------------------------------------------------------


async def test_names_are_prefix_version_digest_and_variant_in_one_slot(store: RedisStore, server: Any) -> None:
    await store.set(make_key("a*?[b]\r\n"), make_entry())
    await store.set(make_key("v"), make_entry(vary=DE))
    names = sorted(server.keys())
    assert names == sorted(
        name.encode() for name in (name_of(make_key("a*?[b]\r\n")), name_of(make_key("v")), name_of(make_key("v"), DE))
    )
    for name in names:
        assert re.fullmatch(rb"echo_cache:1:\{[A-Za-z0-9_-]{27}\}(:[0-9a-f]{32})?", name)
    assert key_slot(name_of(make_key("v")).encode()) == key_slot(name_of(make_key("v"), DE).encode())


async def test_every_value_expires_at_its_retain_until(store: RedisStore, server: Any) -> None:
    await store.set(make_key(), make_entry(life=100.0))
    await store.set(make_key("v"), make_entry(life=50.0, vary=DE))
    await store.set(make_key("v"), make_entry(life=200.0, vary=FR))
    await store.set(make_key("v"), make_entry(life=20.0, vary=language(b"it")))
    lives = {
        name_of(make_key()): 100,
        name_of(make_key("v")): 200,  # the index: the latest of its variants
        name_of(make_key("v"), DE): 50,
        name_of(make_key("v"), FR): 200,
        name_of(make_key("v"), language(b"it")): 20,
    }
    for name, life in lives.items():
        assert life - 10 < server.pttl(name) / 1000 <= life


async def test_an_entry_with_hardly_any_time_left_expires_at_once_and_a_long_one_in_ten_years(
    redis_url: str, server: Any, make_store: MakeStore
) -> None:
    class Clock:
        def time(self) -> float:
            return 1_000_000.0

    store = make_store(redis_url, clock=Clock())
    entry = make_entry()._replace(retain_until=1_000_000.0)
    assert await store.set(make_key(), entry) is True
    await until(lambda: server.exists(name_of(make_key())) == 0)
    for number, vary in enumerate(((), DE)):
        assert await store.set(make_key(number), entry._replace(vary=vary, retain_until=1e300)) is True
        assert server.pttl(name_of(make_key(number))) / 86_400_000 == pytest.approx(3650, abs=1)
    assert await store.set(make_key(), entry._replace(retain_until=999_999.9)) is False


async def test_an_entry_past_its_time_is_not_returned_though_redis_still_has_it(
    redis_url: str, server: Any, make_store: MakeStore
) -> None:
    old = make_entry(now=time.time() - 1000.0, life=500.0)
    server.set(name_of(make_key()), codec.encode(make_key(), old))
    server.set(name_of(make_key("v")), codec.encode_index(make_key("v"), [_row(DE, time.time() + 500)]))
    server.set(name_of(make_key("v"), DE), codec.encode(make_key("v"), old._replace(vary=DE)))
    store = make_store(redis_url)
    assert await store.get(make_key(), any_variant) is None
    assert await store.get(make_key("v"), any_variant) is None


def _row(vary: Vary, retain_until: float) -> tuple[bytes, float, float, Vary]:
    return (codec.variant_id(vary), 0.0, retain_until, vary)


async def test_a_hit_and_a_store_are_one_round_trip(redis_url: str, make_store: MakeStore) -> None:
    async with RecordingRedis(redis_url) as client:
        store = make_store(client)
        other = make_store(redis_url)
        await store.set(make_key(), make_entry())
        await store.get(make_key(), any_variant)
        assert client.taken() == ["SET", "GET"]
        await store.set(make_key("v"), make_entry(vary=DE))
        assert client.taken()[0] == "EVALSHA"  # a second word if this server has not seen the script yet
        await store.set(make_key("v"), make_entry(vary=FR))
        assert client.taken() == ["EVALSHA"]
        assert await store.get(make_key("v"), only(DE)) is not None
        assert client.taken() == ["GET", "GET"]  # the first read in this process learns the index
        for vary in (DE, FR, DE):
            found = await store.get(make_key("v"), only(vary))
            assert found is not None
            assert found.vary == vary
            assert client.taken() == ["MGET"]
        # Another process writes a newer variant that matches as well: the guess was wrong, the answer is right.
        newest = make_entry(b"newest", vary=language(b"it"))
        await other.set(make_key("v"), newest)
        assert await store.get(make_key("v"), any_variant) == newest
        assert client.taken() == ["MGET", "GET"]
        assert await store.get(make_key("v"), any_variant) == newest
        assert client.taken() == ["MGET"]
        await store.delete(make_key("v"))
        assert client.taken()[0] == "EVALSHA"
        assert await store.get(make_key("v"), any_variant) is None
        assert client.taken() == ["GET"]


async def test_a_key_that_no_longer_varies_is_read_right_by_who_remembers_its_index(
    store: RedisStore, redis_url: str, make_store: MakeStore
) -> None:
    other = make_store(redis_url)
    await store.set(make_key(), make_entry(vary=DE))
    await store.get(make_key(), only(DE))
    plain = make_entry(b"for all")
    await other.set(make_key(), plain)
    assert await store.get(make_key(), only(DE, ())) == plain
    await other.delete(make_key())
    assert await store.get(make_key(), only(DE, ())) is None


async def test_no_more_than_4096_indexes_and_no_large_ones_are_remembered(store: RedisStore) -> None:
    store._indexes.update({str(number): (b"", []) for number in range(4096)})
    await store.set(make_key(), make_entry(vary=DE))
    await store.get(make_key(), any_variant)
    assert len(store._indexes) == 4096
    assert "0" not in store._indexes
    large = ((b"accept", b"x" * 3000),)
    await store.set(make_key("large"), make_entry(vary=large))
    assert await store.get(make_key("large"), only(large)) is not None
    assert name_of(make_key("large")) not in store._indexes


async def test_a_variant_that_redis_evicted_leaves_the_next_that_matches(store: RedisStore, server: Any) -> None:
    de, fr = make_entry(b"de", vary=DE), make_entry(b"fr", vary=FR)
    await store.set(make_key(), de)
    await store.set(make_key(), fr)
    server.delete(name_of(make_key(), FR))
    for _ in range(2):  # by GET, then by the guess
        assert await store.get(make_key(), any_variant) == de
        assert await store.get(make_key(), only(FR)) is None
    await store.set(make_key(), make_entry(vary=language(b"it")))
    raw = server.get(name_of(make_key()))
    assert [row.vary for row in codec.decode_index(make_key(), raw)] == [language(b"it"), DE]


async def test_what_is_cut_from_an_index_is_removed_and_counted(
    redis_url: str, server: Any, make_store: MakeStore
) -> None:
    store = make_store(redis_url, max_variants=2)
    for number in range(5):
        await store.set(make_key(), make_entry(vary=language(b"%d" % number)))
    assert sorted(server.keys()) == sorted(
        name.encode() for name in (name_of(make_key()), *(name_of(make_key(), language(b"%d" % n)) for n in (3, 4)))
    )
    assert store.stats().evictions == 3


async def test_delete_removes_the_variants_too(store: RedisStore, server: Any) -> None:
    await store.set(make_key(), make_entry())
    await store.set(make_key(), make_entry(vary=DE))
    await store.set(make_key(), make_entry(vary=FR))
    assert server.dbsize() == 4
    await store.delete(make_key())
    assert server.dbsize() == 0


async def test_the_scripts_are_loaded_again_when_the_server_lost_them(store: RedisStore, server: Any) -> None:
    for _ in range(2):
        assert await store.set(make_key(), make_entry(vary=DE)) is True
        assert await store.delete(make_key()) is True
        server.script_flush()


async def test_put_is_set_to_be_awaited(store: RedisStore) -> None:
    assert store.get_nowait(make_key()) is None
    assert await store.put(make_key(), make_entry()) is True
    assert store.get_nowait(make_key()) is None
    assert await store.get(make_key(), any_variant) is not None


async def test_a_body_over_the_limit_is_neither_stored_nor_read(redis_url: str, make_store: MakeStore) -> None:
    small, large = make_store(redis_url, max_body_bytes=99), make_store(redis_url)
    entry = make_entry(b"x" * 100)
    assert await small.set(make_key(), entry) is False
    assert await large.set(make_key(), entry) is True
    assert await large.get(make_key(), any_variant) == entry
    assert await small.get(make_key(), any_variant) is None
    assert small.rejected == 1


async def test_what_cannot_be_encoded_is_a_store_error(store: RedisStore) -> None:
    with pytest.raises(StoreError, match="cannot be kept"):
        await store.set(make_key(), make_entry()._replace(generated_at=math.nan))
    surrogate: CacheKey = ("\ud800", "https", b"h", b"/", b"")
    for operation in (store.get(surrogate, any_variant), store.set(surrogate, make_entry()), store.delete(surrogate)):
        with pytest.raises(StoreError, match="cannot be kept"):
            await operation


# --- managing ---------------------------------------------------------------------------------------------------------


async def test_clear_touches_only_its_own_prefix_and_version(
    redis_url: str, server: Any, make_store: MakeStore
) -> None:
    prefixes = ("shop", "shop:eu", "shop:1", "shop2", "x")
    stores = {prefix: make_store(redis_url, prefix=prefix) for prefix in prefixes}
    for store in stores.values():
        await store.set(make_key(), make_entry())
        await store.set(make_key("v"), make_entry(vary=DE))
    foreign = {"shop", "shop:", "shop:users", "shop:2:{abc}", "other", "{shop:1:x}", "shop:1:plain"}
    for name in foreign:
        server.set(name, "foreign")
    before = server.dbsize()
    assert await stores["shop"].clear() == 2
    assert server.dbsize() == before - 3
    assert all(server.exists(name) for name in foreign)
    assert await stores["shop"].get(make_key(), any_variant) is None
    for prefix in prefixes[1:]:
        assert await stores[prefix].get(make_key("v"), any_variant) is not None


async def test_clear_and_keys_go_through_many_pages(store: RedisStore, server: Any) -> None:
    pipeline = server.pipeline()
    raw = {}
    for number in range(3000):
        raw[name_of(make_key(number))] = codec.encode(make_key(number), make_entry())
        pipeline.set(f"foreign:{number}", "x")
    pipeline.mset(raw)
    pipeline.execute()
    assert sorted(set(await listed(store))) == sorted(make_key(number) for number in range(3000))
    assert await store.clear() == 3000
    assert server.dbsize() == 3000


async def test_keys_leaves_out_what_is_not_an_entry_of_ours(store: RedisStore, server: Any) -> None:
    await store.set(make_key(), make_entry())
    long: CacheKey = ("GET", "https", b"h", b"/" + b"x" * 100_000, b"")
    await store.set(long, make_entry(b"y" * 100_000, vary=DE))
    server.set(name_of(make_key("garbage")), b"\x80\x04garbage")
    server.set(name_of(make_key("long garbage")), b"\xechoe\x01" + b"x" * 5_000)
    server.set(name_of(make_key("other")), codec.encode(make_key(), make_entry()))
    server.rpush(name_of(make_key("list")), "x")
    server.set("echo_cache:1:{short}", codec.encode(make_key(), make_entry()))
    assert sorted(await listed(store)) == sorted([make_key(), long])
    assert store.rejected == 5


# --- values that are not ours -----------------------------------------------------------------------------------------


class Bomb:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def _other_version(raw: bytes) -> bytes:
    return raw[:4] + bytes([raw[4] + 1]) + raw[5:]


ENVELOPE = codec.encode(make_key(), make_entry(now=2_000_000_000.0))
VARIED = codec.encode(make_key(), make_entry(now=2_000_000_000.0, vary=DE))
INDEX = codec.encode_index(make_key(), [_row(DE, 2_000_000_300.0)])

GARBAGE = [
    pytest.param(b"", id="empty"),
    pytest.param(b"\x00" * 100, id="zeros"),
    pytest.param(pickle.dumps({"body": b"x"}), id="pickle"),
    pytest.param(b'{"status": 200}', id="json"),
    pytest.param(_other_version(ENVELOPE), id="entry-of-a-newer-version"),
    pytest.param(_other_version(INDEX), id="index-of-a-newer-version"),
    pytest.param(ENVELOPE[:-1], id="entry-cut"),
    pytest.param(ENVELOPE + b"\x00", id="entry-with-more-behind"),
    pytest.param(INDEX[:40], id="index-cut-in-its-key"),
    pytest.param(INDEX[:-1], id="index-cut-in-its-row"),
    pytest.param(codec.encode(make_key("other"), make_entry()), id="entry-of-another-key"),
    pytest.param(codec.encode_index(make_key("other"), [_row(DE, 2e9)]), id="index-of-another-key"),
    pytest.param(codec.encode_index(make_key()), id="index-without-rows"),
    pytest.param(INDEX, id="index-without-its-variant"),
    pytest.param(b"\x93" * 20_000, id="nested-msgpack"),
]


@pytest.mark.parametrize("raw", GARBAGE)
async def test_garbage_under_a_name_is_a_miss_and_can_be_written_over_and_deleted(
    raw: bytes, store: RedisStore, server: Any
) -> None:
    name = name_of(make_key())
    server.set(name, raw)
    assert await store.get(make_key(), any_variant) is None
    for vary in ((), DE):
        server.set(name, raw)
        entry = make_entry(b"new", vary=vary)
        assert await store.set(make_key(), entry) is True
        assert await store.get(make_key(), only(vary)) == entry
        assert await store.delete(make_key()) is True
        server.set(name, raw)
        assert await store.delete(make_key()) is True
        assert await store.get(make_key(), any_variant) is None
    assert store.stats().errors == 0


@pytest.mark.parametrize("raw", GARBAGE)
async def test_garbage_under_the_name_of_a_variant_is_a_miss(raw: bytes, store: RedisStore, server: Any) -> None:
    await store.set(make_key(), make_entry(vary=DE))
    server.set(name_of(make_key(), DE), raw)
    for _ in range(2):  # by GET, then by the guess
        assert await store.get(make_key(), any_variant) is None
    assert store.rejected == 2
    assert store.stats().errors == 0


async def test_a_planted_pickle_runs_nothing(store: RedisStore, server: Any, tmp_path: Path) -> None:
    made = tmp_path / "made"
    bomb = pickle.dumps(Bomb(made))
    await store.set(make_key("v"), make_entry(vary=DE))
    server.set(name_of(make_key()), bomb)
    server.set(name_of(make_key("v"), DE), bomb)
    assert await store.get(make_key(), any_variant) is None
    assert await store.get(make_key("v"), any_variant) is None
    assert await listed(store) == [make_key("v")]
    assert not made.exists()
    pickle.loads(bomb)
    assert made.exists()  # it would have


@given(
    raw=st.one_of(
        st.binary(max_size=300),
        st.tuples(st.integers(0, len(ENVELOPE) - 1), st.integers(1, 255)).map(lambda flip: _flipped(ENVELOPE, *flip)),
        st.tuples(st.integers(0, len(INDEX) - 1), st.integers(1, 255)).map(lambda flip: _flipped(INDEX, *flip)),
    )
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_any_bytes_are_a_miss_never_an_error(raw: bytes, store: RedisStore, server: Any) -> None:
    server.set(name_of(make_key()), raw)
    server.set(name_of(make_key(), DE), raw)
    assert await store.get(make_key(), any_variant) is None
    assert set(await listed(store)) <= {make_key()}
    assert await store.set(make_key(), make_entry(vary=FR)) is True
    assert await store.delete(make_key()) is True


def _flipped(raw: bytes, position: int, bits: int) -> bytes:
    return raw[:position] + bytes([raw[position] ^ bits]) + raw[position + 1 :]


@pytest.mark.parametrize("vary", [pytest.param((), id="primary"), pytest.param(DE, id="variant")])
async def test_a_name_of_another_type_is_a_miss_and_can_be_written_over(
    vary: Vary, store: RedisStore, server: Any
) -> None:
    await store.set(make_key(), make_entry(vary=DE))
    for _ in range(2):  # by GET, then by the guess
        server.delete(name_of(make_key(), vary))
        server.rpush(name_of(make_key(), vary), "x")
        assert await store.get(make_key(), any_variant) is None
    assert store.stats().errors == 0
    entry = make_entry(b"new", vary=DE)
    assert await store.set(make_key(), entry) is True
    assert await store.get(make_key(), only(DE)) == entry
    server.delete(name_of(make_key()))
    server.rpush(name_of(make_key()), "x")
    assert await store.delete(make_key()) is True
    assert await store.delete(make_key()) is False


async def test_a_forged_index_cannot_lead_to_a_variant_that_does_not_match(store: RedisStore, server: Any) -> None:
    await store.set(make_key(), make_entry(b"for de only", vary=DE))
    row = (codec.variant_id(DE), 0.0, time.time() + 300, FR)  # says FR, leads to DE
    server.set(name_of(make_key()), codec.encode_index(make_key(), [row]))
    assert await store.get(make_key(), only(FR)) is None
    server.set(name_of(make_key()), codec.encode(make_key(), make_entry(vary=DE)))  # a variant in the primary's place
    assert await store.get(make_key(), only(FR)) is None


# --- trouble ----------------------------------------------------------------------------------------------------------


async def test_a_server_that_is_not_there_is_a_store_error_at_once(
    own_redis: RedisServer, make_store: MakeStore, reports: list[Any]
) -> None:
    own_redis.kill()
    store = make_store(own_redis.url)  # patient: only a refusal is quick
    began = time.monotonic()
    operations: list[Callable[[], Awaitable[Any]]] = [
        lambda: store.get(make_key(), any_variant),
        lambda: store.set(make_key(), make_entry()),
        lambda: store.set(make_key(), make_entry(vary=DE)),
        lambda: store.delete(make_key()),
        lambda: store.clear(),
        lambda: anext(store.keys()),
    ]
    for operation in operations:
        with pytest.raises(StoreError) as caught:
            await operation()
        assert isinstance(caught.value.__cause__, redis.ConnectionError)
    assert time.monotonic() - began < PATIENT / 2
    assert store.stats().errors == len(operations)
    assert store.timeouts == 0


async def test_a_killed_server_is_used_again_when_it_is_back(own_redis: RedisServer, make_store: MakeStore) -> None:
    store = make_store(own_redis.url, max_connections=4)
    await asyncio.gather(*(store.set(make_key(number), make_entry()) for number in range(8)))  # four connections
    for stop in (own_redis.kill, own_redis.stop):
        stop()
        with pytest.raises(StoreError):
            await store.get(make_key(), any_variant)
        own_redis.start()
        # The first operation after it is back works, on each of the connections that died.
        await asyncio.gather(*(store.set(make_key(number), make_entry()) for number in range(8)))
        assert await store.get(make_key(7), any_variant) is not None


async def test_a_paused_server_is_a_store_timeout_in_time(
    own_redis: RedisServer, make_store: MakeStore, reports: list[Any]
) -> None:
    store = make_store(own_redis.url, timeout=0.05, max_connections=4)
    await store.set(make_key(), make_entry())
    own_redis.pause()
    began = time.monotonic()
    # Some fail in the command, most in the line for a connection: one budget for both.
    outcomes = await asyncio.gather(*(store.get(make_key(), any_variant) for _ in range(100)), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [StoreTimeout] * 100
    assert time.monotonic() - began < DEADLINE
    assert "0.05 s" in str(outcomes[0])
    assert store.timeouts == store.stats().errors == 100
    own_redis.resume()

    async def answers() -> bool:
        with contextlib.suppress(StoreTimeout):
            return await store.get(make_key(), any_variant) is not None
        return False

    await until(answers)


async def test_a_late_reply_never_answers_another_read(own_redis: RedisServer, make_store: MakeStore) -> None:
    patient = make_store(own_redis.url)
    store = make_store(own_redis.url, timeout=0.05, max_connections=2)
    for number in range(50):
        await patient.set(make_key(number), make_entry(b"%d" % number))
    for turn in range(5):
        own_redis.pause()
        with pytest.raises(StoreTimeout):
            await store.get(make_key(turn), any_variant)
        own_redis.resume()
        for number in range(10, 50):
            with contextlib.suppress(StoreTimeout):  # a slow machine
                found = await store.get(make_key(number), any_variant)
                assert found is not None
                assert found.response.body == b"%d" % number
    assert store.rejected == 0  # not even a reply that was for another key


async def test_a_failure_leaves_nothing_to_the_garbage_collector(own_redis: RedisServer, make_store: MakeStore) -> None:
    store = make_store(own_redis.url)
    own_redis.kill()
    gc.collect()
    gc.disable()
    try:
        with pytest.raises(StoreError) as caught:
            await store.get(make_key(), any_variant)
        cause = weakref.ref(caught.value.__cause__)
        assert cause() is not None
        del caught
        await until(lambda: not store._tasks)
        assert cause() is None
    finally:
        gc.enable()


async def test_cancelled_callers_harm_nobody(store: RedisStore, reports: list[Any]) -> None:
    for number in range(50):
        await store.set(make_key(number), make_entry(b"%d" % number, vary=DE if number % 2 else ()))
    for round_ in range(10):
        tasks = [asyncio.ensure_future(store.get(make_key(number), any_variant)) for number in range(50)]
        for turn, task in enumerate(tasks):
            if turn % 5 == round_ % 5:
                await asyncio.sleep(0)  # so that they are cancelled at every stage
            task.cancel()
        for task in tasks:
            with pytest.raises(asyncio.CancelledError):
                await task
        found = await asyncio.gather(*(store.get(make_key(number), any_variant) for number in range(50)))
        assert [entry and entry.response.body for entry in found] == [b"%d" % number for number in range(50)]
    assert store.stats().errors == store.rejected == 0


async def test_a_cancelled_caller_does_not_cancel_its_operation(store: RedisStore) -> None:
    caller = asyncio.ensure_future(store.set(make_key(), make_entry()))
    await asyncio.sleep(0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    await store.aclose()  # waits for it
    assert await store.get(make_key(), any_variant) is not None


async def test_an_operation_that_fails_after_its_caller_left_is_not_reported(
    own_redis: RedisServer, make_store: MakeStore, reports: list[Any]
) -> None:
    store = make_store(own_redis.url, timeout=0.05)
    await store.set(make_key(), make_entry())
    own_redis.pause()
    callers = [asyncio.ensure_future(store.get(make_key(), any_variant)) for _ in range(20)]
    await asyncio.sleep(0)
    for caller in callers:
        caller.cancel()
    await asyncio.wait(callers)
    await until(lambda: not store._tasks)  # the server is still paused: their time was up
    assert store.timeouts == store.stats().errors == 20
    own_redis.kill()
    with pytest.raises(StoreError):
        await store.get(make_key(), any_variant)


async def test_200_reads_at_once_share_two_connections(redis_url: str, server: Any, make_store: MakeStore) -> None:
    store = make_store(redis_url, max_connections=2)
    await store.set(make_key(), make_entry())
    before = len(server.client_list())
    found = await asyncio.gather(*(store.get(make_key(), any_variant) for _ in range(200)))
    assert all(found)
    assert len(server.client_list()) <= before + 1  # one of the two was there before


async def test_a_wrong_password_is_a_store_error_that_does_not_show_it(make_store: MakeStore) -> None:
    with RedisServer(("--requirepass", "right")) as server:
        location = server.url.removeprefix("redis://")
        for url in (f"redis://{location}", f"redis://:wr0ng-secret@{location}"):
            with pytest.raises(StoreError) as caught:
                await make_store(url).get(make_key(), any_variant)
            assert "wr0ng" not in f"{caught.value}{caught.value!r}{caught.value.__cause__!r}"
        assert await make_store(f"redis://:right@{location}").set(make_key(), make_entry()) is True


class LyingServer:
    """
    A server that answers each command by *reply*, which gets the words of the command.

    The commands by which redis-py introduces itself are answered as a server does.
    """

    GREETINGS: ClassVar[dict[bytes, bytes]] = {b"CLIENT": b"+OK\r\n", b"PING": b"+PONG\r\n"}

    def __init__(self, reply: Callable[[list[bytes]], bytes | None]) -> None:
        self.reply = reply

    async def __aenter__(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"redis://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                words = []
                for _ in range(int(line[1:])):
                    size = int((await reader.readline())[1:])
                    words.append((await reader.readexactly(size + 2))[:-2])
                reply = self.GREETINGS[words[0]] if words[0] in self.GREETINGS else self.reply(words)
                if reply is None:
                    break
                writer.write(reply)
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(b"-LOADING Redis is loading the dataset in memory\r\n", id="loading"),
        pytest.param(b"-READONLY You can't write against a read only replica.\r\n", id="readonly"),
        pytest.param(b"-OOM command not allowed when used memory > 'maxmemory'.\r\n", id="oom"),
        pytest.param(b"-NOAUTH Authentication required.\r\n", id="noauth"),
        pytest.param(b"-MOVED 3999 127.0.0.1:6381\r\n", id="moved"),
        pytest.param(b"-CLUSTERDOWN The cluster is down\r\n", id="clusterdown"),
        pytest.param(b"-ERR max number of clients reached\r\n", id="max-clients"),
        pytest.param(b"HTTP/1.1 400 Bad Request\r\n\r\n", id="http"),
        pytest.param(b"\x00\xff garbage", id="garbage"),
        pytest.param(None, id="closed"),
    ],
)
async def test_an_error_reply_or_nonsense_is_a_store_error(
    reply: bytes | None, make_store: MakeStore, reports: list[Any]
) -> None:
    async with LyingServer(lambda words: reply) as url:
        store = make_store(url, timeout=1.0)
        for operation in (
            store.get(make_key(), any_variant),
            store.set(make_key(), make_entry()),
            store.set(make_key(), make_entry(vary=DE)),
            store.delete(make_key()),
            store.clear(),
        ):
            with pytest.raises(StoreError):
                await operation
        await store.aclose()


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(b":5\r\n", id="integer"),
        pytest.param(b"*2\r\n$1\r\na\r\n$1\r\nb\r\n", id="array"),
        pytest.param(b"+OK\r\n", id="status"),
        pytest.param(b"*-1\r\n", id="null-array"),
    ],
)
async def test_a_reply_of_another_type_is_a_miss(reply: bytes, make_store: MakeStore) -> None:
    async with LyingServer(lambda words: reply) as url:
        store = make_store(url)
        assert await store.get(make_key(), any_variant) is None
        row = codec.IndexRow(codec.variant_id(DE), 0.0, math.inf, DE)
        store._indexes[name_of(make_key("v"))] = (b"", [row])  # so that it asks for the index and the variant
        assert await store.get(make_key("v"), any_variant) is None
        await store.aclose()


async def test_a_set_that_redis_does_not_confirm_is_a_store_error(make_store: MakeStore) -> None:
    async with LyingServer(lambda words: b"+QUEUED\r\n") as url:
        store = make_store(url)
        for vary in ((), DE):
            with pytest.raises(StoreError):
                await store.set(make_key(), make_entry(vary=vary))
        await store.aclose()


async def test_replies_that_come_twice_never_give_another_keys_entry(make_store: MakeStore) -> None:
    values = {
        name_of(make_key(number)).encode(): codec.encode(make_key(number), make_entry(b"%d" % number))
        for number in range(10)
    }
    count = 0

    def reply(words: list[bytes]) -> bytes:
        nonlocal count
        count += 1
        value = values[words[1]]
        return (b"$%d\r\n%s\r\n" % (len(value), value)) * (2 if count % 7 == 0 else 1)

    async with LyingServer(reply) as url:
        store = make_store(url, max_connections=1)
        answered = 0
        for turn in range(200):
            number = turn % 10
            with contextlib.suppress(StoreError):
                found = await store.get(make_key(number), any_variant)
                assert found is None or found.response.body == b"%d" % number
                answered += found is not None
        assert answered > 100
        await store.aclose()


# --- life -------------------------------------------------------------------------------------------------------------


async def test_aclose_waits_for_what_is_under_way_closes_and_may_be_followed_by_more(
    redis_url: str, server: Any, make_store: MakeStore
) -> None:
    store = make_store(redis_url)
    before = len(server.client_list())
    writes = [asyncio.ensure_future(store.set(make_key(number), make_entry())) for number in range(20)]
    await asyncio.sleep(0)
    await store.aclose()
    await store.aclose()
    assert store._tasks == set()
    await asyncio.gather(*writes)
    await until(lambda: len(server.client_list()) == before)
    assert await store.get(make_key(19), any_variant) is not None


async def test_aclose_cancels_what_does_not_end_and_who_waits_for_it_gets_a_store_error(
    own_redis: RedisServer, make_store: MakeStore
) -> None:
    store = make_store(own_redis.url, timeout=0.05)
    await store.set(make_key(), make_entry())
    own_redis.pause()
    slow = asyncio.ensure_future(store.clear())  # a page has a second
    await asyncio.sleep(0)
    await store.aclose()
    assert store._tasks == set()
    with pytest.raises(StoreError, match="the store was closed"):
        await slow


async def test_a_ready_client_is_not_closed(redis_url: str, make_store: MakeStore) -> None:
    async with redis.asyncio.Redis.from_url(redis_url, single_connection_client=True) as client:
        store = make_store(client)
        await store.set(make_key(), make_entry())
        connection = client.connection
        await store.aclose()
        assert connection is not None
        assert connection.is_connected


def test_each_event_loop_has_connections_of_its_own(redis_url: str) -> None:
    store = RedisStore(redis_url, timeout=PATIENT)

    async def use() -> Entry | None:
        await store.set(make_key(), make_entry())
        found = await store.get(make_key(), any_variant)
        await store.aclose()
        return found

    for _ in range(3):
        assert asyncio.run(use()) is not None
    assert store._clients == {}


def test_a_ready_client_in_a_second_event_loop_is_a_store_error_that_says_what_to_do(redis_url: str) -> None:
    client = redis.asyncio.Redis.from_url(redis_url)
    store = RedisStore(client, timeout=PATIENT)

    async def use() -> None:
        async with client:
            await store.set(make_key(), make_entry())

    asyncio.run(use())
    with pytest.raises(StoreError, match="URL instead"):
        asyncio.run(use())


def test_a_forked_process_makes_connections_of_its_own(redis_url: str) -> None:
    # In a process of its own: forking one that has threads, as this one may, is not safe.
    script = f"""
        import asyncio, os, sys
        from echo_cache.errors import StoreError
        from echo_cache.stores import RedisStore
        from tests.store_contract import any_variant, make_entry, make_key
        import redis.asyncio

        store = RedisStore({redis_url!r}, timeout={PATIENT})
        client = redis.asyncio.Redis.from_url({redis_url!r})
        ready = RedisStore(client, timeout={PATIENT})

        async def use():
            await store.set(make_key(os.getpid()), make_entry(b"%d" % os.getpid()))
            found = await store.get(make_key(os.getpid()), any_variant)
            assert found.response.body == b"%d" % os.getpid()
            return await store._run("identify", lambda client: client.execute_command("CLIENT", "ID"))

        async def child(connection):
            assert await use() != connection
            try:
                await ready.get(make_key(), any_variant)
            except StoreError as error:
                assert "another one" in str(error), error
            else:
                raise AssertionError("a ready client was used after a fork")
            await store.aclose()

        async def close():
            await store.aclose()
            await client.aclose()

        loop = asyncio.new_event_loop()
        connection = loop.run_until_complete(use())
        loop.run_until_complete(ready.get(make_key(), any_variant))
        for run in (loop.run_until_complete, asyncio.run):  # in the loop of the parent, and in one of its own
            pid = os.fork()
            if pid == 0:
                try:
                    run(child(connection))
                    os._exit(0)
                except BaseException as error:
                    print(repr(error), file=sys.stderr, flush=True)
                    os._exit(1)
            assert os.waitpid(pid, 0)[1] == 0
            assert loop.run_until_complete(use()) == connection
        loop.run_until_complete(close())
        loop.close()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        cwd=Path(__file__).parent.parent,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_redis_is_imported_when_a_store_is_made() -> None:
    script = (
        "import sys; from echo_cache.stores.redis import RedisStore; assert 'redis' not in sys.modules; "
        "RedisStore('redis://localhost'); assert 'redis' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], timeout=DEADLINE, cwd=Path(__file__).parent.parent, check=True)


# --- configuration ----------------------------------------------------------------------------------------------------


def test_the_client_has_the_settings_of_a_cache() -> None:
    client: Any = RedisStore("redis://localhost/2", timeout=0.25, max_connections=7)._make_client()
    pool = client.connection_pool
    assert type(pool).__name__ == "BlockingConnectionPool"
    assert (pool.max_connections, pool.timeout) == (7, None)
    maintenance = getattr(pool, "maint_notifications_enabled", None)  # redis-py 8.0 has none
    assert maintenance is None or not maintenance()
    connection = pool.make_connection()
    assert connection.retry == Retry(NoBackoff(), 0)
    assert (connection.protocol, connection.db, connection.encoder.decode_responses) == (2, 2, False)
    assert (connection.socket_timeout, connection.socket_connect_timeout) == (None, 0.25)
    assert connection.health_check_interval == 30.0


@pytest.mark.parametrize(
    ("url", "message"),
    [
        pytest.param("", "begins with", id="empty"),
        pytest.param("localhost:6379", "begins with", id="no-scheme"),
        pytest.param("http://:s3cret@h", "begins with", id="other-scheme"),
        pytest.param("memcached://:s3cret@h", "begins with", id="memcached"),
        pytest.param("redis+sentinel://:s3cret@a:1,b:2/main/0", "not supported", id="sentinel"),
        pytest.param("redis+cluster://:s3cret@a:1", "not supported", id="cluster"),
        pytest.param("redis://:s3cret@h:port", "has the form", id="port"),
        pytest.param("redis://:s3cret@h:99999", "has the form", id="port-too-large"),
        pytest.param("redis://:s3/cret@h", "has the form", id="slash-in-password"),
        pytest.param("redis://:s3cret?@h", "has the form", id="question-mark-in-password"),
        pytest.param("redis://:s3cret#@h", "has the form", id="hash-in-password"),
        pytest.param("redis://:s3cret@h/one", "has the form", id="database"),
        pytest.param("redis://:s3cret@h?db=one", "has the form", id="database-option"),
        pytest.param("unix://", "has the form", id="no-path"),
        pytest.param("unix:///s?db=x&password=s3cret", "has the form", id="unix-database"),
        pytest.param("redis://:s3cret@h?protocol=3", "'protocol'", id="protocol"),
        pytest.param("redis://:s3cret@h?max_connections=3", "arguments of RedisStore", id="max-connections"),
        pytest.param("redis://:s3cret@h?socket_timeout=3", "arguments of RedisStore", id="socket-timeout"),
        pytest.param("redis://:s3cret@h?ssl_nonsense=1", "cannot use this URL", id="unknown-option"),
        pytest.param("redis://:s3cret@h?ssl_keyfile=x", "cannot use this URL", id="tls-option-without-tls"),
    ],
)
def test_a_wrong_url_raises_and_does_not_show_its_password(url: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        RedisStore(url)
    assert message in str(caught.value)
    assert "cret" not in f"{caught.value}{caught.value.__cause__!r}"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"prefix": ""}, "prefix", id="empty-prefix"),
        pytest.param({"prefix": "a*"}, "prefix", id="glob-in-prefix"),
        pytest.param({"prefix": "{a}"}, "prefix", id="braces-in-prefix"),
        pytest.param({"prefix": "a:"}, "prefix", id="colon-at-the-end"),
        pytest.param({"prefix": "a\n"}, "prefix", id="line-end"),
        pytest.param({"timeout": 0}, "timeout", id="no-time"),
        pytest.param({"timeout": -1}, "timeout", id="negative-time"),
        pytest.param({"timeout": math.nan}, "timeout", id="nan"),
        pytest.param({"max_connections": 0}, "max_connections", id="no-connections"),
        pytest.param({"max_connections": True}, "max_connections", id="bool"),
        pytest.param({"max_body_bytes": 1.5}, "max_body_bytes", id="float"),
        pytest.param({"max_variants": 0}, "max_variants must be a whole number in 1..64", id="no-variants"),
        pytest.param({"max_variants": 65}, "max_variants must be a whole number in 1..64", id="many-variants"),
    ],
)
def test_a_wrong_option_raises_and_says_what_is_allowed(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        RedisStore("redis://localhost", **options)


def test_a_client_that_cannot_work_is_refused() -> None:
    for client in (redis.Redis(), object(), None, b"redis://localhost"):
        with pytest.raises(ConfigurationError, match=r"redis\.asyncio\.Redis"):
            RedisStore(client)  # type: ignore[arg-type]  # what is tested
    with pytest.raises(ConfigurationError, match="decode_responses=False"):
        RedisStore(redis.asyncio.Redis(decode_responses=True))


@pytest.mark.parametrize(
    ("server", "shown"),
    [
        pytest.param("redis://user:s3cret@example.com:6380/2", "redis://example.com:6380/2", id="redis"),
        pytest.param("rediss://:s3cret@h?db=4", "rediss://h:6379/4", id="rediss"),
        pytest.param("redis://", "redis://localhost:6379/0", id="nothing"),
        pytest.param("redis://[::1]:1234", "redis://[::1]:1234/0", id="ipv6"),
        pytest.param("redis://h?password=s3cret&username=u", "redis://h:6379/0", id="password-option"),
        pytest.param("unix://u:s3cret@/run/r.sock?db=1&password=s3cret", "unix:///run/r.sock?db=1", id="unix"),
        pytest.param(redis.asyncio.Redis(host="h", password="s3cret", db=1), "redis://h:6379/1", id="client"),
        pytest.param(
            redis.asyncio.Redis(unix_socket_path="/r.sock", password="s3cret"), "unix:///r.sock?db=0", id="client-unix"
        ),
    ],
)
def test_the_repr_says_what_it_is_doing_and_no_password(server: Any, shown: str) -> None:
    store = RedisStore(server, prefix="shop")
    assert repr(store) == (f"<RedisStore {shown} shop [0 under way | 0 hits, 0 misses, 0 sets | 0 errors, 0 rejected]>")


async def test_the_repr_counts(store: RedisStore, server: Any) -> None:
    await store.set(make_key(), make_entry())
    await store.get(make_key(), any_variant)
    server.set(name_of(make_key("x")), "x")
    await store.get(make_key("x"), any_variant)
    reading = asyncio.ensure_future(store.get(make_key(), any_variant))
    await asyncio.sleep(0)
    assert "[1 under way | 1 hits, 1 misses, 1 sets | 0 errors, 1 rejected]" in repr(store)
    await reading
