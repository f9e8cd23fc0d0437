"""RedisStore on a real server: the contract, names, expiry, round trips, managing, configuration."""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import redis
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.crc import key_slot

from echo_cache import codec
from echo_cache.errors import ConfigurationError, StoreError
from echo_cache.model import CacheKey, Vary
from echo_cache.stores import RedisStore
from echo_cache.stores.redis.servers import place_of
from tests import redis_support as support
from tests.redis_support import DE, FR, MakeStore, Recorder, name_of, until
from tests.servers import RedisServer
from tests.store_contract import StoreContract, any_variant, language, listed, make_entry, make_key, only

make_store, server, store = support.make_store, support.server, support.store


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
    async with Recorder(redis_url) as recorder:
        store = make_store(recorder.client)
        other = make_store(redis_url)
        await store.set(make_key(), make_entry())
        assert recorder.taken() == ["TIME", "SET"]  # what time it is there is asked once
        await store.get(make_key(), any_variant)
        assert recorder.taken() == ["MGET"]
        await store.set(make_key("v"), make_entry(vary=DE))
        assert recorder.taken() in (["EVALSHA"], ["EVALSHA", "EVAL"])  # has this server seen the script?
        await store.set(make_key("v"), make_entry(vary=FR))
        assert recorder.taken() == ["EVALSHA"]
        assert await store.get(make_key("v"), only(DE)) is not None
        assert recorder.taken() == ["MGET", "MGET"]  # the first read in this process learns the index
        for vary in (DE, FR, DE):
            found = await store.get(make_key("v"), only(vary))
            assert found is not None
            assert found.vary == vary
            assert recorder.taken() == ["MGET"]
        # Another process writes a newer variant that matches as well: the guess was wrong, the answer is right.
        newest = make_entry(b"newest", vary=language(b"it"))
        await other.set(make_key("v"), newest)
        assert await store.get(make_key("v"), any_variant) == newest
        assert recorder.taken() == ["MGET", "MGET"]
        assert await store.get(make_key("v"), any_variant) == newest
        assert recorder.taken() == ["MGET"]
        await store.delete(make_key("v"))
        assert recorder.taken() in (["EVALSHA"], ["EVALSHA", "EVAL"])
        assert await store.get(make_key("v"), any_variant) is None
        assert recorder.taken() == ["MGET"]


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


async def test_no_more_than_512_indexes_and_no_large_ones_are_remembered(store: RedisStore) -> None:
    store._indexes.update({str(number): (b"", []) for number in range(512)})
    await store.set(make_key(), make_entry(vary=DE))
    await store.get(make_key(), any_variant)
    assert len(store._indexes) == 512
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
    for _ in range(2):  # by the index, then by the guess
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


# --- configuration ----------------------------------------------------------------------------------------------------


def test_the_client_has_the_settings_of_a_cache() -> None:
    client: Any = place_of("redis://localhost/2", timeout=0.25, max_connections=7).connect()
    pool = client._redis.connection_pool
    assert type(pool).__name__ == "Pool"
    assert pool.max_connections == 7
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
        pytest.param("redis+other://:s3cret@a:1", "begins with", id="redis-plus-something"),
        pytest.param("redis+sentinel://:s3cret@a:1,b:2", "has the form", id="sentinel-without-service"),
        pytest.param("redis+cluster://:s3cret@a:1/2", "has the form", id="cluster-with-database"),
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
        pytest.param({"breaker_failures": 0}, "breaker_failures must be a whole number >= 1", id="no-failures"),
        pytest.param({"breaker_failures": 1.5}, "breaker_failures must be a whole number", id="half-a-failure"),
        pytest.param({"probe_interval": 0}, "probe_interval must be longer than 0 s", id="no-pause"),
        pytest.param({"probe_interval": -1}, "probe_interval", id="negative-pause"),
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
    assert repr(store) == (
        f"<RedisStore {shown} shop [breaker closed, 0 under way | 0 hits, 0 misses, 0 sets | 0 errors, 0 rejected]>"
    )


async def test_the_repr_counts(store: RedisStore, server: Any) -> None:
    await store.set(make_key(), make_entry())
    await store.get(make_key(), any_variant)
    server.set(name_of(make_key("x")), "x")
    await store.get(make_key("x"), any_variant)
    reading = asyncio.ensure_future(store.get(make_key(), any_variant))
    await asyncio.sleep(0)
    assert "[breaker closed, 1 under way | 1 hits, 1 misses, 1 sets | 0 errors, 1 rejected]" in repr(store)
    await reading
