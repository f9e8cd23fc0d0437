"""
What is in Redis is not trusted. Rows of the threat table that are held here:

- deserialisation (Flask-Caching CVE-2021-33026): planted pickles, random bytes, other types, under every name of ours;
- response splitting, at loading (at storing: test_security_poisoning);
- a stream of replies off by one (CVE-2023-28858/9);
- a decompression bomb.

What a forger with the right checksums can do is bounded here to answers that can be sent; that he can make them at
all ends with the `secret` option.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import random
import struct
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
import zstandard
from redis.asyncio import Redis

from echo_cache import CacheKey, Entry, RedisStore, StoredResponse, StoreError
from echo_cache.codec import IndexRow, encode, encode_index, variant_id
from tests.test_security_support import FRESH, Naive, ask, behind_cache, field

KEY: CacheKey = ("GET", "http", b"example.com", b"/", b"")
VARIED: CacheKey = ("GET", "http", b"example.com", b"/varied", b"")
FRAME = struct.Struct(">4sBBIIIII")
NOW = 1_700_000_000.0


def entry(body: bytes = b"forged", *headers: tuple[bytes, bytes], status: int = 200, **fields: Any) -> Entry:
    """Return an entry that is fresh for ages, and says that it has seen every invalidation there will be."""
    response = StoredResponse(status, tuple(headers), body)
    return Entry(response, NOW, NOW, 1e11, 1e11, mark=2**120)._replace(**fields)


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[Any]:
    client: Any = Redis.from_url(redis_url, protocol=2)
    yield client
    await client.aclose()


@pytest.fixture
async def store(redis_url: str) -> AsyncIterator[RedisStore]:
    store = RedisStore(redis_url, timeout=5)
    yield store
    await store.aclose()


def app_of_pages() -> Naive:
    def handler(scope: dict[str, Any], body: bytes) -> Any:
        vary = [(b"vary", b"x-id")] if scope["path"] == "/varied" else []
        return 200, [FRESH, *vary], b"page " + scope["raw_path"] + field(scope, b"x-id")

    return Naive(handler)


async def names_of_ours(cached: Any, client: Any) -> list[bytes]:
    """Return every name of an entry that two pages, one of them varied, have in Redis."""
    await ask(cached, b"/")
    await ask(cached, b"/varied", headers=[(b"x-id", b"7")])
    await cached.cache.aclose()
    names = sorted(await client.keys("echo_cache:1:*"))  # neither the log nor leases
    assert len(names) == 3  # an entry, an index and its variant
    return names


async def assert_misses(cached: Any) -> None:
    """Assert that the app answers both pages, and that nothing has failed that a client could see."""
    for raw_path, expected in ((b"/", b"page /"), (b"/varied", b"page /varied7")):
        answer = await ask(cached, raw_path, headers=[(b"x-id", b"7")])
        assert (answer.status, answer.body) == (200, expected if raw_path != b"/" else b"page /7")
        assert not answer.is_hit


# --- deserialisation --------------------------------------------------------------------------------------------------


class Exploit:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("prefix", [b"", b"!", b"\xechoe", b"\xechoe\x01\x00"], ids=repr)
async def test_planted_pickle_runs_nothing(
    store: RedisStore, client: Any, tmp_path: Path, protocol: int, prefix: bytes
) -> None:
    trap = tmp_path / "exploited"
    cached = behind_cache(app_of_pages(), store)
    for name in await names_of_ours(cached, client):
        await client.set(name, prefix + pickle.dumps(Exploit(trap), protocol))

    await assert_misses(cached)

    assert not trap.exists()
    assert store.rejected >= 2


def test_package_loads_no_code_from_bytes() -> None:
    """What cannot be imported cannot be called: no module of the package knows pickle or its like."""
    source = Path(__file__).parent.parent / "echo_cache"
    text = "".join(path.read_text() for path in source.rglob("*.py"))
    for word in ("import pickle", "import marshal", "import shelve", " eval(", " exec(", "__import__"):
        assert word not in text


OTHER_TYPES = [
    pytest.param(lambda client, name: client.hset(name, "a", "b"), id="hash"),
    pytest.param(lambda client, name: client.rpush(name, b"a", b"b"), id="list"),
    pytest.param(lambda client, name: client.sadd(name, b"a"), id="set"),
    pytest.param(lambda client, name: client.zadd(name, {b"a": 1}), id="sorted-set"),
    pytest.param(lambda client, name: client.xadd(name, {b"a": b"b"}), id="stream"),
    pytest.param(lambda client, name: client.set(name, b""), id="empty"),
    pytest.param(lambda client, name: client.set(name, b"1"), id="number"),
    pytest.param(lambda client, name: client.setbit(name, 800_000, 1), id="zeros"),
]


@pytest.mark.parametrize("plant", OTHER_TYPES)
async def test_other_types_under_our_names_are_misses_and_are_replaced(
    store: RedisStore, client: Any, plant: Callable[..., Any]
) -> None:
    cached = behind_cache(app_of_pages(), store)
    for name in await names_of_ours(cached, client):
        await client.delete(name)
        await plant(client, name)

    await assert_misses(cached)
    await cached.cache.aclose()
    for raw_path in (b"/", b"/varied"):
        assert (await ask(cached, raw_path, headers=[(b"x-id", b"7")])).is_hit, raw_path
    await cached.cache.clear()
    assert await client.keys("echo_cache:1:*") == []


async def test_fuzzed_values_are_misses(store: RedisStore, client: Any) -> None:
    """Two thousand values under three names: random bytes, and real values with a bit, a byte or a length changed."""
    cached = behind_cache(app_of_pages(), store)
    names = await names_of_ours(cached, client)
    real = {name: await client.get(name) for name in names}
    chance = random.Random(20_240_601)

    def changed(value: bytes) -> bytes:
        at = chance.randrange(len(value))
        match chance.randrange(5):
            case 0:
                return value[:at] + bytes([value[at] ^ 1 << chance.randrange(8)]) + value[at + 1 :]
            case 1:
                return value[:at]
            case 2:
                return value[:at] + chance.randbytes(chance.randrange(1, 9)) + value[at:]
            case 3:
                return value[:at] + chance.randbytes(4) + value[at + 4 :]
            case _:
                return value[: chance.choice([4, 6, 30])] + chance.randbytes(chance.randrange(200))

    def match(vary: Any) -> bool:
        return all(name == b"x-id" and value == b"7" for name, value in vary)

    for _ in range(2_000):
        values = {name: changed(value) for name, value in real.items() if chance.random() < 0.7} or {names[0]: b""}
        await client.mset({**real, **values})
        for key, expected in ((KEY, b"page /"), (VARIED, b"page /varied7")):
            try:
                found = await store.get(key, match)
            except StoreError as error:
                pytest.fail(f"{values!r} is no miss but {error!r}")
            # A change of what no checksum covers, or none at all, may leave the true answer; never another.
            assert found is None or found.response.body == expected, values
    assert {key async for key in store.keys()} <= {KEY, VARIED}  # noqa: SIM118  # a store is no dict


async def test_entry_of_another_key_is_a_miss(store: RedisStore, client: Any) -> None:
    cached = behind_cache(app_of_pages(), store)
    for path in (b"/", b"/admin"):
        await ask(cached, path)
    await cached.cache.aclose()
    one, other = await client.keys("echo_cache:1:*")
    values = await client.mget(one, other)
    await client.mset({one: values[1], other: values[0]})

    for path in (b"/", b"/admin"):
        answer = await ask(cached, path)
        assert not answer.is_hit
        assert answer.body == b"page " + path


async def test_index_that_leads_to_another_variant_does_not_decide(store: RedisStore, client: Any) -> None:
    """The index says that variant 7 is what user 8 selects; the variant itself knows better."""
    cached = behind_cache(app_of_pages(), store)
    names = await names_of_ours(cached, client)
    (index,) = [name for name in names if (await client.get(name))[:4] == b"\xechoi"]
    seven = variant_id(((b"x-id", b"7"),))
    lie = encode_index(VARIED, [IndexRow(seven, NOW, 1e11, ((b"x-id", b"8"),)), IndexRow(seven, NOW, 1e11, ())])
    await client.set(index, lie)

    answer = await ask(cached, b"/varied", headers=[(b"x-id", b"8")])
    assert answer.body == b"page /varied8"
    assert not answer.is_hit


async def test_index_of_a_million_rows_costs_no_more_than_sixty_four(store: RedisStore, client: Any) -> None:
    cached = behind_cache(app_of_pages(), store)
    names = await names_of_ours(cached, client)
    row = encode_index(VARIED, [IndexRow(bytes(16), NOW, 1e11, ((b"x-id", b"7"),))])[len(encode_index(VARIED)) :]
    for name in names:
        if name.endswith(b"}"):
            await client.set(name, encode_index(VARIED) + row * 100_000)

    await assert_misses(cached)
    before = (await client.info("commandstats"))["cmdstat_mget"]["calls"]
    await ask(cached, b"/varied", headers=[(b"x-id", b"7")])
    after = (await client.info("commandstats"))["cmdstat_mget"]["calls"]
    assert 1 <= after - before <= 70


# --- response splitting, and answers that cannot be sent --------------------------------------------------------------


def forged(header: tuple[bytes, bytes]) -> bytes:
    """Return the bytes of an entry with *header*, checksums and all: `encode` trusts what policy has checked."""
    return encode(KEY, entry(b"forged", header))


@pytest.mark.parametrize(
    "header",
    [
        (b"x", b"a\r\nset-cookie: session=evil"),
        (b"x", b"a\nb"),
        (b"x", b"a\rb"),
        (b"x", b"a\x00b"),
        (b"x\r\nset-cookie", b"a"),
        (b"x\n", b"a"),
        (b"x\x00", b"a"),
        (b"", b"a"),
        (b"x y", b"a"),
        (b"x:", b"a"),
        (b"Set-Cookie", b"a"),
        (b"\xff", b"a"),
    ],
    ids=repr,
)
async def test_forged_field_that_splits_a_message_is_not_loaded(
    store: RedisStore, client: Any, header: tuple[bytes, bytes]
) -> None:
    cached = behind_cache(app_of_pages(), store)
    await client.set(store._name(KEY), forged(header))

    answer = await ask(cached)
    assert answer.body == b"page /"
    assert store.rejected == 1


async def test_forged_value_with_honest_fields_is_what_the_secret_is_for(store: RedisStore, client: Any) -> None:
    """The tests around would pass for nothing if no forged value could be read."""
    await client.set(store._name(KEY), forged((b"x-forged", b"1")))
    answer = await ask(behind_cache(app_of_pages(), store))
    assert answer.is_hit
    assert answer.body == b"forged"


@pytest.mark.parametrize(
    "header",
    [
        pytest.param((b"content-length", b"1"), id="length-too-short"),
        pytest.param((b"content-length", b"999"), id="length-too-long"),
        pytest.param((b"content-length", b"x"), id="length-no-number"),
        pytest.param((b"transfer-encoding", b"chunked"), id="transfer-encoding"),
    ],
)
async def test_forged_framing_is_not_loaded(store: RedisStore, client: Any, header: tuple[bytes, bytes]) -> None:
    """Two messages in one, as with CR and LF: where the length lies, the rest of the body is the next answer."""
    await client.set(store._name(KEY), forged(header))
    answer = await ask(behind_cache(app_of_pages(), store))
    assert answer.body == b"page /"


@pytest.mark.parametrize("status", [206, 304])
async def test_forged_status_that_is_never_stored_is_not_loaded(store: RedisStore, client: Any, status: int) -> None:
    await client.set(store._name(KEY), encode(KEY, entry(status=status)))
    answer = await ask(behind_cache(app_of_pages(), store))
    assert (answer.status, answer.body) == (200, b"page /")


TIMES = (-1e308, -1e18, -1.0, 0.0, 1e11, 1e18, 1e308)


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param([], id="plain"),
        pytest.param([(b"if-modified-since", b"Sunday, 06-Nov-94 08:49:37 GMT")], id="two-digit-year"),
        pytest.param([(b"if-modified-since", b"Sun, 06 Nov 1994 08:49:37 GMT")], id="modified-since"),
        pytest.param([(b"range", b"bytes=0-1"), (b"if-range", b"Sunday, 06-Nov-94 08:49:37 GMT")], id="if-range"),
        pytest.param([(b"cache-control", b"max-stale, max-age=1, min-fresh=1")], id="directives"),
        pytest.param([(b"cache-control", b"only-if-cached")], id="only-if-cached"),
    ],
)
@pytest.mark.parametrize("level", ["redis", "two-level"])
async def test_forged_times_never_harm_a_request(
    redis_url: str, store: RedisStore, client: Any, headers: list[tuple[bytes, bytes]], level: str
) -> None:
    from echo_cache import MemoryStore, TwoLevelStore

    dated = ((b"last-modified", b"Sunday, 06-Nov-94 08:49:37 GMT"), (b"date", b"Sunday, 06-Nov-94 08:49:37 GMT"))
    for generated_at in TIMES:
        for stored_at in TIMES:
            for fresh_until in (-1e308, 0.0, 1e11, 1e308):
                times = {"generated_at": generated_at, "stored_at": stored_at, "fresh_until": fresh_until}
                windows = {"stale_while_revalidate": 1e307, "stale_if_error": 1e307, "retain_until": 1e307}
                try:
                    raw = encode(KEY, entry(b"forged", *dated, **times, **windows))
                except Exception:  # the sum of them is infinite: these cannot be forged with our own codec
                    continue
                await client.set(store._name(KEY), raw)
                cached = behind_cache(
                    app_of_pages(), store if level == "redis" else TwoLevelStore(MemoryStore(), store)
                )
                for _ in range(2):
                    answer = await ask(cached, headers=headers)
                    assert answer.status in (200, 206, 304, 504), times


# --- replies off by one -----------------------------------------------------------------------------------------------


class OffByOne:
    """A server that answers as Redis would, but for one reply in *every*, which is sent twice, or late by one."""

    def __init__(self, values: dict[bytes, bytes], how: str, every: int = 6) -> None:
        self.values = values
        self.how = how
        self.every = every
        self.replies = 0
        self.disturbed = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        previous = b"$-1\r\n"
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                words = await self._words(reader)
                reply = self._reply(words)
                if words[0].upper() in (b"GET", b"MGET"):
                    self.replies += 1
                    if self.replies % self.every == 0:
                        self.disturbed += 1
                        writer.write(reply + reply if self.how == "twice" else previous)
                        if self.how == "late":
                            writer.write(reply)
                        previous = reply
                        await writer.drain()
                        continue
                    previous = reply
                writer.write(reply)
                await writer.drain()
        writer.close()

    async def _words(self, reader: asyncio.StreamReader) -> list[bytes]:
        count = int((await reader.readuntil(b"\r\n"))[1:])
        words = []
        for _ in range(count):
            size = int((await reader.readuntil(b"\r\n"))[1:])
            words.append((await reader.readexactly(size + 2))[:-2])
        return words

    def _reply(self, words: list[bytes]) -> bytes:
        match words[0].upper():
            case b"GET":
                return self._bulk(words[1])
            case b"MGET":
                return b"*%d\r\n" % (len(words) - 1) + b"".join(map(self._bulk, words[1:]))
            case b"TIME":
                return b"*2\r\n$10\r\n%d\r\n$1\r\n0\r\n" % time.time()
            case b"PING":
                return b"+PONG\r\n"
            case _:
                return b"+OK\r\n"

    def _bulk(self, name: bytes) -> bytes:
        value = self.values.get(name)
        return b"$-1\r\n" if value is None else b"$%d\r\n%s\r\n" % (len(value), value)


@pytest.mark.parametrize("how", ["twice", "late", "previous"])
@pytest.mark.parametrize("connections", [1, 4])
async def test_reply_to_another_question_is_never_an_answer(how: str, connections: int) -> None:
    probe = RedisStore("redis://localhost")
    keys: list[CacheKey] = [("GET", "http", b"example.com", b"/%d" % number, b"") for number in range(20)]
    values = {probe._name(key).encode(): encode(key, entry(b"value of " + key[3])) for key in keys}
    fake = OffByOne(values, how)
    server = await asyncio.start_server(fake.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    store = RedisStore(f"redis://127.0.0.1:{port}/0", timeout=5, max_connections=connections)
    right = 0

    async def read(key: CacheKey) -> None:
        nonlocal right
        with contextlib.suppress(StoreError):
            found = await store.get(key, lambda vary: True)
            assert found is None or found.response.body == b"value of " + key[3]
            right += found is not None

    try:
        for _ in range(5):
            for key in keys:
                await read(key)
            await asyncio.gather(*(read(key) for key in keys))
    finally:
        await store.aclose()
        server.close()
    assert fake.disturbed > 10
    # The stream comes back into step: most answers are there, and right.
    assert right > 100


async def test_client_is_made_so_that_left_over_bytes_are_seen(store: RedisStore, client: Any) -> None:
    """RESP2 and no maintenance notifications: with redis-py's defaults the check for left-over bytes is skipped."""
    await store.get(KEY, lambda vary: True)
    itself = str(await client.client_id())
    assert {one["resp"] for one in await client.client_list() if one["id"] != itself} == {"2"}
    for url in ("redis://localhost?protocol=3", "redis://localhost?maint_notifications_config=1"):
        with pytest.raises(ValueError, match="may have the options"):
            RedisStore(url)


async def test_reader_that_is_cancelled_leaves_no_reply_for_the_next(store: RedisStore, client: Any) -> None:
    keys: list[CacheKey] = [("GET", "http", b"example.com", b"/%d" % number, b"") for number in range(10)]
    for key in keys:
        await store.set(key, entry(b"value of " + key[3]))

    for turns in range(12):
        reader = asyncio.create_task(store.get(keys[0], lambda vary: True))
        for _ in range(turns):
            await asyncio.sleep(0)
        reader.cancel()
        for key in keys[1:]:
            found = await store.get(key, lambda vary: True)
            assert found is not None
            assert found.response.body == b"value of " + key[3]
        await asyncio.gather(reader, return_exceptions=True)


# --- decompression bombs ----------------------------------------------------------------------------------------------


def envelope(tail: bytes, body_length: int) -> bytes:
    """Return a compressed entry with right checksums, whose frame says that its body has *body_length* bytes."""
    raw = encode(KEY, entry(b"a" * 5_000))
    magic, version, flags, key_length, head_length, *_ = FRAME.unpack_from(raw)
    assert flags == 1
    covered = raw[FRAME.size + 4 : FRAME.size + 4 + key_length + head_length]
    frame = FRAME.pack(magic, version, flags, key_length, head_length, body_length, len(tail), crc32(tail[: 64 * 1024]))
    return frame + struct.pack(">I", crc32(covered, crc32(frame))) + covered + tail


def frame_without_size(size: int) -> bytes:
    """Return a zstd frame of zeros that does not say how many."""
    compressor = zstandard.ZstdCompressor(write_content_size=False).compressobj()
    return b"".join([*(compressor.compress(bytes(2**20)) for _ in range(size >> 20)), compressor.flush()])


ZEROS = zstandard.ZstdCompressor().compress(bytes(64 * 2**20))
BOMBS = [
    pytest.param(ZEROS, 64 * 2**20, id="over-the-limit"),
    pytest.param(ZEROS, 2**32 - 1, id="claims-four-gigabytes"),
    pytest.param(ZEROS, 8 * 2**20, id="claims-less-than-it-has"),
    pytest.param(frame_without_size(64 * 2**20), 8 * 2**20, id="says-no-size"),
    pytest.param(frame_without_size(64 * 2**20), 1 + len(frame_without_size(64 * 2**20)), id="claims-little"),
    pytest.param(zstandard.ZstdCompressor().compress(bytes(5_000)) + ZEROS, 5_000 * 2, id="a-frame-behind-a-frame"),
    pytest.param(b"\x28\xb5\x2f\xfd" + bytes(20), 5_000, id="no-frame"),
    # A window of 2 GB and a content size that fits.
    pytest.param(b"\x28\xb5\x2f\xfd\x80\xa8" + struct.pack("<I", 5_000) + b"\x01\x00\x00", 5_000, id="window"),
]


@pytest.mark.parametrize(("tail", "claimed"), BOMBS)
async def test_decompression_bomb_is_a_miss(store: RedisStore, client: Any, tail: bytes, claimed: int) -> None:
    await client.set(store._name(KEY), envelope(tail, claimed))

    answer = await ask(behind_cache(app_of_pages(), store))

    assert answer.body == b"page /"
    assert store.rejected == 1


async def test_envelope_of_these_tests_can_be_read(store: RedisStore, client: Any) -> None:
    await client.set(store._name(KEY), envelope(zstandard.ZstdCompressor().compress(bytes(5_000)), 5_000))
    assert (await ask(behind_cache(app_of_pages(), store))).body == bytes(5_000)


def test_decompression_bombs_cost_no_more_memory_than_a_body() -> None:
    """In a process of its own: the peak of the resident set over a thousand bombs, against 8 MB and what they weigh."""
    program = """
        import resource, sys
        sys.path.insert(0, ".")
        from tests.test_security_redis import BOMBS, KEY, envelope
        from echo_cache.codec import decode
        from echo_cache.errors import CodecError
        def run():
            for bomb in BOMBS:
                try:
                    decode(KEY, envelope(*bomb.values), max_body_bytes=8 * 2**20)
                except CodecError:
                    pass
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with open("/proc/self/clear_refs", "w") as clear:
            clear.write("5")  # the peak begins here
        def peak():
            with open("/proc/self/status") as status:
                return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
        before = peak()
        for _ in range(20):
            run()
        grown = (peak() - before) / 1024
        assert grown <= 8 + 8, grown
    """
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], cwd=root, timeout=30, check=False, capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()
