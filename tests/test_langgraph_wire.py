"""Checkpoints as bytes: what is written comes back, and what is anything else is a miss, whoever wrote it."""

from __future__ import annotations

import json
import os
import pickle
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from langgraph.checkpoint.base import CheckpointTuple
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from echo_cache.errors import CodecError, ForgedError, NotStorable
from echo_cache.integrations.langgraph import CachedPostgresSaver
from echo_cache.integrations.langgraph.generations import generation_name, value_name
from echo_cache.integrations.langgraph.wire import Key, Raw, Untouched, body_of, checkpoint_of, loaded, read
from echo_cache.integrations.langgraph.wire import encode as encoded
from tests.langgraph_support import (
    SECRET,
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
from tests.servers import RedisServer

KEY = Key("thread", "namespace", None)
TOKEN = b"0123456789abcdef"
SECRETS = (b"the first secret", b"the second secret")

Values = dict[str, Any]


WRITES = (("task", "a", Raw("msgpack", b"\x01")),)


def saved_of(
    key: Key = KEY,
    *,
    checkpoint: Values | None = None,
    metadata: Values | None = None,
    parent: str | None = "parent",
    writes: Any = WRITES,
) -> CheckpointTuple:
    place = {"thread_id": key.thread_id, "checkpoint_ns": key.checkpoint_ns}
    shaped: Any = (
        {"configurable": {**place, "checkpoint_id": key.checkpoint_id or "some id"}},
        {"v": 4, "channel_values": {"a": 1, "b": Raw("msgpack", b"\x91\x01")}} if checkpoint is None else checkpoint,
        {"step": 1} if metadata is None else metadata,
        None if parent is None else {"configurable": {**place, "checkpoint_id": parent}},
        list(writes),
    )
    return CheckpointTuple(*shaped)


def encode(key: Key, token: bytes, filled_at: float, saved: CheckpointTuple, secret: bytes | None) -> bytes:
    return encoded(body_of(key, filled_at, saved), token, secret)


class Found(NamedTuple):
    filled_at: float
    saved: CheckpointTuple


def decode(key: Key, token: bytes, raw: bytes, secrets: Sequence[bytes]) -> Found:
    body = read(key, token, raw, secrets)
    return Found(body.filled_at, checkpoint_of(body))


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
raws = st.builds(Raw, st.sampled_from(["msgpack", "null", "bytes", "msgpack+aes"]), st.binary(max_size=40))
jsons = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)
keys = st.builds(Key, text, text, st.none() | text.filter(bool))


@given(
    keys,
    st.dictionaries(text, jsons | raws, max_size=4),
    st.dictionaries(text, jsons, max_size=3),
    st.none() | text,
    st.lists(st.tuples(text, text, raws), max_size=3),
    st.sampled_from([None, *SECRETS]),
)
def test_what_is_encoded_is_decoded_the_same(
    key: Key, values: Values, metadata: Values, parent: str | None, writes: Any, secret: bytes | None
) -> None:
    saved = saved_of(
        key, checkpoint={"v": 4, "channel_values": values}, metadata=metadata, parent=parent, writes=writes
    )
    raw = encode(key, TOKEN, 12.5, saved, secret)
    found = decode(key, TOKEN, raw, SECRETS if secret else ())
    assert found.filled_at == 12.5
    assert found.saved == saved
    assert list(found.saved.checkpoint["channel_values"]) == list(values)


GOLDEN = bytes.fromhex(
    "ec686f6c30313233343536373839616263646566"
    "9a"
    "a6746872656164"
    "a96e616d657370616365"
    "c0"
    "cb4029000000000000"
    "a7736f6d65206964"
    "a6706172656e74"
)


def test_bytes_of_version_1_stay_as_they_are() -> None:
    raw = encode(KEY, TOKEN, 12.5, saved_of(), None)
    assert raw.startswith(GOLDEN)
    assert msgpack.unpackb(raw[20:])[6:] == [
        b'{"v":4,"channel_values":{"a":1,"b":null}}',
        b'{"step":1}',
        [["b", "msgpack", b"\x91\x01"]],
        [["task", "a", "msgpack", b"\x01"]],
    ]
    signed = encode(KEY, TOKEN, 12.5, saved_of(), SECRETS[0])
    assert signed[:20] == bytes.fromhex("ec686f6d") + TOKEN
    assert signed[20:36].hex() == "7430430c1843d92bae6cfb2f09a709ea"
    assert signed[36:] == raw[20:]


@pytest.mark.parametrize("secret", [None, SECRETS[0]], ids=["unsigned", "signed"])
@given(st.data())
def test_damaged_bytes_are_a_codec_error_and_nothing_else(secret: bytes | None, data: st.DataObject) -> None:
    raw = bytearray(encode(KEY, TOKEN, 12.5, saved_of(), secret))
    at = data.draw(st.integers(0, len(raw) - 1))
    match data.draw(st.sampled_from(["flip", "cut", "append", "fill"])):
        case "flip":
            raw[at] ^= 1 << data.draw(st.integers(0, 7))
        case "cut":
            del raw[at:]
        case "append":
            raw += data.draw(st.binary(min_size=1, max_size=9))
        case "fill":
            raw[at:] = data.draw(st.binary(max_size=60))
    try:
        found = decode(KEY, TOKEN, bytes(raw), SECRETS[:1] if secret else ())
    except CodecError:
        return
    # Without a signature some damage goes unseen; what is decoded still has the shape of a checkpoint.
    assert secret is None or bytes(raw) == encode(KEY, TOKEN, 12.5, saved_of(), secret)
    assert found.saved.config["configurable"]["thread_id"] == KEY.thread_id


@given(st.binary(max_size=200))
def test_garbage_is_a_codec_error(garbage: bytes) -> None:
    for raw in (garbage, b"\xechol" + garbage, b"\xechol" + TOKEN + garbage, b"\xechom" + TOKEN + garbage):
        for secrets in ((), SECRETS):
            with pytest.raises(CodecError):
                decode(KEY, TOKEN, raw, secrets)


def value_with(**changed: Any) -> bytes:
    """Return an unsigned value with some parts changed."""
    names = (
        *("thread_id", "checkpoint_ns", "asked_id", "filled_at", "checkpoint_id", "parent_id"),
        *("checkpoint", "metadata", "blobs", "writes"),
    )
    parts = dict(zip(names, msgpack.unpackb(encode(KEY, TOKEN, 12.5, saved_of(), None)[20:]), strict=True))
    return b"\xechol" + TOKEN + msgpack.packb(list({**parts, **changed}.values()))


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({"thread_id": "another"}, id="another-thread"),
        pytest.param({"checkpoint_ns": ""}, id="another-namespace"),
        pytest.param({"asked_id": "some id"}, id="an-id-for-the-latest"),
        pytest.param({"thread_id": b"thread"}, id="bytes-for-text"),
        pytest.param({"filled_at": 12}, id="whole-seconds"),
        pytest.param({"filled_at": True}, id="true-for-a-time"),
        pytest.param({"checkpoint_id": None}, id="no-id"),
        pytest.param({"checkpoint": b"[]"}, id="a-list-for-a-checkpoint"),
        pytest.param({"checkpoint": b"{"}, id="no-json"),
        pytest.param({"checkpoint": b"{}"}, id="no-channel-values"),
        pytest.param({"checkpoint": b"[" * 100_000}, id="deep-json"),
        pytest.param({"checkpoint": b'{"channel_values":{"a":1}}'}, id="no-place-for-a-blob"),
        pytest.param({"metadata": b"\xff"}, id="no-text"),
        pytest.param({"metadata": b"1" * 10_000}, id="long-number"),
        pytest.param({"blobs": [["b", "msgpack"]]}, id="blob-without-bytes"),
        pytest.param({"blobs": [["b", "pickle", b""]]}, id="pickled-blob"),
        pytest.param({"writes": [["t", "a", "pickle+aes", b""]]}, id="pickled-write"),
        pytest.param({"writes": [["t", "a", "msgpack", "text"]]}, id="text-for-bytes"),
        pytest.param({"writes": {}}, id="map-for-a-list"),
        pytest.param({"more": 1}, id="one-part-more"),
    ],
)
def test_value_that_is_not_of_this_shape_is_a_miss(changed: dict[str, Any]) -> None:
    assert decode(KEY, TOKEN, value_with(), ()).saved == saved_of()
    with pytest.raises(CodecError):
        decode(KEY, TOKEN, value_with(**changed), ())


def test_deep_and_large_msgpack_is_a_miss_in_time() -> None:
    began = time.process_time()
    for body in (b"\x91" * 100_000, b"\xdd\x7f\xff\xff\xff", b"\xdd\x00\x0f\xff\xff" * 100_000):
        with pytest.raises(CodecError):
            decode(KEY, TOKEN, b"\xechol" + TOKEN + body, ())
    assert time.process_time() - began < 5


def test_value_for_an_id_must_have_that_id() -> None:
    key = Key("thread", "namespace", "some id")
    assert decode(key, TOKEN, value_with(asked_id="some id"), ()).saved == saved_of()
    with pytest.raises(CodecError, match="another key"):
        decode(key, TOKEN, value_with(asked_id="some id", checkpoint_id="another"), ())


@pytest.mark.parametrize(
    "saved",
    [
        pytest.param(saved_of(metadata={"a": object()}), id="no-json"),
        pytest.param(saved_of(metadata={"a": "\ud800"}), id="no-unicode"),
        pytest.param(saved_of(writes=[("t", "a", Raw("pickle", b""))]), id="pickled-write"),
        pytest.param(
            saved_of(checkpoint={"channel_values": {"a": Raw("Pickle+aes", b"")}}), id="pickled-and-encrypted-blob"
        ),
        pytest.param(saved_of(writes=[("t", "a", 1)]), id="not-of-a-serde"),
        pytest.param(saved_of(writes=[("t", "a", Raw("null", None))]), id="no-bytes"),  # type: ignore[arg-type]
        pytest.param(saved_of(Key("another", "namespace", None)), id="another-thread"),
    ],
)
def test_what_cannot_be_kept_exactly_is_not_storable(saved: CheckpointTuple) -> None:
    with pytest.raises(NotStorable):
        encode(KEY, TOKEN, 12.5, saved, None)


def test_signature_is_demanded_and_fits_one_secret_one_generation_and_one_key() -> None:
    signed = encode(KEY, TOKEN, 12.5, saved_of(), SECRETS[1])
    assert decode(KEY, TOKEN, signed, SECRETS).saved == saved_of()
    with pytest.raises(ForgedError):
        decode(KEY, TOKEN, signed, SECRETS[:1])
    with pytest.raises(ForgedError):
        decode(KEY, TOKEN, encode(KEY, TOKEN, 12.5, saved_of(), None), SECRETS)
    with pytest.raises(CodecError, match="no secret"):
        decode(KEY, TOKEN, signed, ())
    with pytest.raises(CodecError, match="another key"):
        decode(KEY._replace(thread_id="another"), TOKEN, signed, SECRETS)
    newer = b"f" * 16
    with pytest.raises(CodecError, match="another generation"):
        decode(KEY, newer, signed, SECRETS)
    with pytest.raises(ForgedError):
        decode(KEY, newer, signed[:4] + newer + signed[20:], SECRETS)


def name_of(key: Key) -> str:
    return value_name(generation_name("echo_cache", key.thread_id), key)


@given(keys, keys)
def test_names_of_keys_never_collide_and_have_safe_characters(one: Key, other: Key) -> None:
    names = name_of(one), name_of(other)
    assert (names[0] == names[1]) == (one == other)
    assert set("".join(names)) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789:{}_-")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param(Key("a", "b", "idc"), Key("a", "bid", "c"), id="moved-letters"),
        pytest.param(Key("a", "", "latest"), Key("a", "", None), id="an-id-called-latest"),
        pytest.param(Key("a", "1:b", "c"), Key("a", "", "1:b1:c"), id="lengths-in-names"),
    ],
)
def test_names_of_like_keys_differ(one: Key, other: Key) -> None:
    assert name_of(one) != name_of(other)


def test_untouched_serde_gives_back_what_it_was_given() -> None:
    serde = JsonPlusSerializer()
    untouched = Untouched(serde)
    written = serde.dumps_typed({"a": (1, 2)})
    raw = untouched.loads_typed(written)
    assert raw == Raw(*written)
    assert untouched.dumps_typed([raw]) == serde.dumps_typed([serde.loads_typed(written)])
    saved = saved_of(checkpoint={"channel_values": {"a": raw, "b": "inline"}})
    made = loaded(saved, lambda raw: serde.loads_typed((raw.kind, raw.data)))
    assert made.checkpoint["channel_values"] == {"a": serde.loads_typed(written), "b": "inline"}


# --- planted in Redis -------------------------------------------------------------------------------------------------


@pytest.fixture
async def saver(postgres_url: str) -> AsyncIterator[HaltingSaver]:
    async with plain(postgres_url, serde=JsonPlusSerializer(pickle_fallback=True)) as found:
        yield found


async def planted(server: RedisServer, redis_url: str, thread: str, raw: bytes) -> None:
    """Put *raw* into Redis as the latest of *thread*."""
    store = store_of(redis_url)
    await store.server.evaluate("return redis.call('SET', KEYS[1], ARGV[1])", (value_of(thread),), (raw,))
    await store.aclose()


async def token_of(redis_url: str, thread: str) -> bytes:
    """Return the token in Redis, as whoever can read there."""
    store = store_of(redis_url)
    generation = await store.server.read(generation_of(thread))
    await store.aclose()
    assert generation is not None
    return generation[1:]


class Bomb:
    """A pickle of this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def forged(key: Key, kind: str, data: bytes, token: bytes) -> bytes:
    """Return an unsigned value that has *data* of *kind* in a channel, as nobody here would write it."""
    raw = encode(
        key, token, time.time(), saved_of(key, checkpoint={"v": 4, "channel_values": {"a": Raw("null", b"")}}), None
    )
    parts = msgpack.unpackb(raw[20:])
    parts[8] = [["a", kind, data]]
    return raw[:20] + bytes(msgpack.packb(parts))


@pytest.mark.parametrize("kind", ["pickle", "PICKLE", "pickle+aes"])
async def test_planted_pickle_runs_nothing(
    kind: str, saver: HaltingSaver, redis_url: str, redis_server: RedisServer, tmp_path: Path
) -> None:
    async with cached(saver, redis_url, secret=None, memory_bytes=0) as mine:
        thread = new_thread()
        await put(mine, thread, a=[1])
        await mine.aget_tuple(config_of(thread))
        token = await token_of(redis_url, thread)
        bomb = forged(Key(thread, "", None), kind, pickle.dumps(Bomb(tmp_path / "bang")), token)
        await planted(redis_server, redis_url, thread, bomb)
        assert await mine.aget_tuple(config_of(thread)) == await saver.aget_tuple(config_of(thread))
        assert mine.stats().rejected == 1
        assert os.listdir(tmp_path) == []


async def test_what_runs_code_by_msgpack_is_not_believed_without_our_signature(
    saver: HaltingSaver, redis_url: str, redis_server: RedisServer, tmp_path: Path
) -> None:
    """Why there should be a secret: the serde's default allows any callable."""
    import ormsgpack

    call = ormsgpack.packb(("os", "mkdir", str(tmp_path / "bang")))
    data = ormsgpack.packb(ormsgpack.Ext(0, call))
    async with cached(saver, redis_url, memory_bytes=0) as mine:
        thread = new_thread()
        await put(mine, thread, a=[1])
        await mine.aget_tuple(config_of(thread))
        token = await token_of(redis_url, thread)
        await planted(redis_server, redis_url, thread, forged(Key(thread, "", None), "msgpack", data, token))
        assert await mine.aget_tuple(config_of(thread)) == await saver.aget_tuple(config_of(thread))
        stats = mine.stats()
        assert (stats.rejected, stats.forged) == (1, 1)
        assert os.listdir(tmp_path) == []
        assert (await mine.aget_tuple(config_of(thread))) is not None
        assert mine.stats().hits == 1


@pytest.mark.parametrize("secret", [None, SECRET], ids=["unsigned", "signed"])
async def test_whatever_is_planted_is_a_miss(
    secret: str | None, saver: HaltingSaver, redis_url: str, redis_server: RedisServer
) -> None:
    async with cached(saver, redis_url, secret=secret, memory_bytes=0) as mine:
        thread, another = new_thread(), new_thread()
        for one in (thread, another):
            await put(mine, one, a=[one])
            await mine.aget_tuple(config_of(one))
        expected = await saver.aget_tuple(config_of(thread))
        store = store_of(redis_url)
        token = await token_of(redis_url, thread)
        of_another = await store.server.read(value_of(another))
        assert of_another is not None
        await store.aclose()
        key = Key(thread, "", None)
        for raw in (
            *(b"", b"x", b"\xechol", token, b"\xechol" + token, b"\xechol" + token + b"\x9a" * 12),
            *(of_another, of_another[:4] + token + of_another[20:]),
            *(forged(key, "msgpack", b"\xc1", token), forged(key, "nonsense", b"", token), b"a" * 9_000_000),
        ):
            await planted(redis_server, redis_url, thread, raw)
            hits = mine.stats().hits
            assert await mine.aget_tuple(config_of(thread)) == expected
            assert mine.stats().hits == hits
            assert await mine.aget_tuple(config_of(thread)) == expected
            assert mine.stats().hits == hits + 1


async def test_value_of_another_type_is_a_miss(saver: HaltingSaver, redis_url: str, redis_server: RedisServer) -> None:
    async with cached(saver, redis_url, memory_bytes=0) as mine:
        thread = new_thread()
        await put(mine, thread, a=[1])
        redis_server.command("HSET", value_of(thread), "a", "b")
        for hits in (0, 1):
            assert await mine.aget_tuple(config_of(thread)) is not None
            assert mine.stats().hits == hits


def test_json_of_postgres_is_exact() -> None:
    """As it is kept: a number of any size, and text of all characters that jsonb takes."""
    metadata = {"a": 10**30, "b": [1.5, None, True], "c": "\u0001\u20ac"}
    raw = encode(KEY, TOKEN, 1.0, saved_of(metadata=metadata), None)
    assert decode(KEY, TOKEN, raw, ()).saved.metadata == metadata
    assert json.loads(msgpack.unpackb(raw[20:])[7]) == metadata


def test_saver_is_the_public_name() -> None:
    assert CachedPostgresSaver.__module__.startswith("echo_cache.integrations.langgraph")
