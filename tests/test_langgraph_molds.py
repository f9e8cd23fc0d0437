"""Checkpoints that are made again: equal to what the serde makes, and nobody's changes are seen by anybody else."""

from __future__ import annotations

import dataclasses
import datetime
import enum
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.load.dump import dumpd
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    HumanMessage,
    RemoveMessage,
    SystemMessage,
    ToolMessage,
)
from langgraph.checkpoint.base import CheckpointTuple
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.types import Interrupt, Send
from pydantic import BaseModel

from echo_cache.integrations.langgraph.molds import Mold
from echo_cache.integrations.langgraph.wire import Raw, loaded
from tests.langgraph_support import HaltingSaver, cached, config_of, new_thread, plain, put

SERDE = JsonPlusSerializer(allowed_msgpack_modules=True)


class Colour(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Note:
    text: str
    marks: list[int]


class Cart(BaseModel):
    items: list[str]


class Shout(HumanMessage):
    """A message of the application's own: nobody knows what it does when it is made."""


def raw_of(value: object, serde: Any = SERDE) -> Raw:
    return Raw(*serde.dumps_typed(value))


def saved_of(serde: Any = SERDE, **values: object) -> CheckpointTuple:
    """Return a checkpoint with *values* as they are when they have been read from Redis."""
    config: Any = {"configurable": {"thread_id": "thread", "checkpoint_ns": "", "checkpoint_id": "an id"}}
    checkpoint: Any = {
        "v": 4,
        "id": "an id",
        "channel_values": {"inline": 1, **{name: raw_of(value, serde) for name, value in values.items()}},
        "versions_seen": {"__input__": {}, "node": {"a": "1"}},
    }
    metadata: Any = {"source": "loop", "step": 1, "parents": {}}
    writes = [("task", name, raw_of(value, serde)) for name, value in values.items()]
    return CheckpointTuple(config, checkpoint, metadata, None, writes)


def made_by_serde(serde: Any = SERDE, **values: object) -> CheckpointTuple:
    return loaded(saved_of(serde, **values), serde)


def mold_of(serde: Any = SERDE, **values: object) -> Mold:
    mold = Mold.of(saved_of(serde, **values), serde)
    assert mold is not None
    return mold


def is_like(one: Any, other: Any) -> bool:
    """Tell whether *one* and *other* are equal, and of the same types all the way down."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return list(one) == list(other) and all(is_like(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(is_like, one, other))
    if isinstance(one, BaseMessage):
        return is_like(state_of(one), state_of(other))
    return bool(one == other)


def state_of(message: BaseMessage) -> list[object]:
    fields = sorted(message.model_fields_set)
    return [message.__dict__, fields, message.__pydantic_extra__, message.__pydantic_private__]


def changeable(value: Any) -> Iterator[Any]:
    """Iterate over all in *value* that somebody could change."""
    if isinstance(value, dict):
        yield value
        for item in value.values():
            yield from changeable(item)
    elif isinstance(value, list | tuple):
        if isinstance(value, list):
            yield value
        for item in value:
            yield from changeable(item)
    elif isinstance(value, BaseModel):
        yield value
        yield from (value.__dict__, value.model_fields_set, value.__pydantic_extra__)
        yield from changeable(tuple(value.__dict__.values()))
    elif isinstance(value, bytearray | set) or dataclasses.is_dataclass(value):
        yield value


text = st.text(max_size=5)
constants = st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | text | st.binary()
special = st.uuids() | st.dates() | st.datetimes() | st.timedeltas(max_value=datetime.timedelta(days=9))
other = st.sampled_from(
    [Colour.RED, {1, 2}, bytearray(b"a"), frozenset("a"), Send("node", {"a": [1]}), Interrupt([1], id="b")]
)
plain_data = st.recursive(
    constants | special,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(text | st.integers(0, 9), inner, max_size=3)
        | st.tuples(inner, inner)
    ),
    max_leaves=8,
)
contents = text | st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": text}), max_size=2)
kwargs = st.dictionaries(text, plain_data, max_size=2)
messages = (
    st.builds(HumanMessage, contents, additional_kwargs=kwargs, name=st.none() | text, id=st.none() | text)
    | st.builds(SystemMessage, contents)
    | st.builds(AIMessage, contents, response_metadata=kwargs)
    | st.builds(ToolMessage, contents, tool_call_id=text, artifact=plain_data)
)
values = st.recursive(messages | plain_data, lambda inner: st.lists(inner, max_size=3), max_leaves=6)


@given(st.dictionaries(st.sampled_from("abc"), values | other, max_size=3))
def test_what_is_made_is_what_the_serde_makes_and_shares_nothing(values: dict[str, Any]) -> None:
    expected = made_by_serde(**values)
    mold = mold_of(**values)
    one, another = mold.make(), mold.make()
    assert is_like(tuple(one), tuple(expected))
    assert is_like(tuple(another), tuple(expected))
    seen = {id(part) for part in changeable(tuple(one))}
    assert seen.isdisjoint(id(part) for part in changeable(tuple(another)))


CHAT = [
    HumanMessage("hello", id="1"),
    AIMessage(
        [{"type": "text", "text": "wait"}],
        tool_calls=[{"name": "find", "args": {"words": ["a", {"b": 1}]}, "id": "call", "type": "tool_call"}],
        usage_metadata={"input_tokens": 1, "output_tokens": 2, "total_tokens": 3},
        response_metadata={"model": "m", "logprobs": None},
    ),
    AIMessage(
        "odd", invalid_tool_calls=[{"name": "a", "args": "{", "id": "b", "error": "e", "type": "invalid_tool_call"}]
    ),
    ToolMessage("found", tool_call_id="call", artifact={"rows": [1, 2]}),
    SystemMessage("be kind"),
    ChatMessage("as somebody", role="somebody"),
    AIMessageChunk("a part"),
    RemoveMessage("1"),
    HumanMessage("more than is known", extra="of a newer version"),
]


def test_each_kind_of_message_is_made_again() -> None:
    expected, mold = made_by_serde(chat=CHAT), mold_of(chat=CHAT)
    for _ in range(2):
        made = mold.make()
        assert is_like(tuple(made), tuple(expected))
        chat = made.checkpoint["channel_values"]["chat"]
        assert [dumpd(one) for one in chat] == [dumpd(one) for one in CHAT]
        # Whoever gets them may change them.
        chat[0].additional_kwargs["more"] = 1
        chat[1].content[0]["text"] = "changed"
        chat[1].tool_calls[0]["args"]["words"].append("changed")
        chat[3].artifact["rows"].clear()
        chat[-1].extra = "changed"
        chat.clear()


DEEP: list[Any] = []
for _ in range(100):
    DEEP = [DEEP]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What LangGraph's serde was asked to make."""
    asked: list[bytes] = []
    make = JsonPlusSerializer.loads_typed

    def loads_typed(self: JsonPlusSerializer, data: tuple[str, bytes]) -> Any:
        asked.append(data[1])
        return make(self, data)

    monkeypatch.setattr(JsonPlusSerializer, "loads_typed", loads_typed)
    return asked


@pytest.mark.parametrize("known", [CHAT, [1, {"a": (2, b"c", None)}], "text"], ids=["messages", "plain", "text"])
def test_the_serde_is_not_asked_again_for_what_is_molded(calls: list[bytes], known: object) -> None:
    mold = mold_of(known=known)
    calls.clear()
    mold.make()
    assert calls == []


@pytest.mark.parametrize(
    "unknown",
    [
        *(Colour.RED, Note("a", [1]), Cart(items=["a"]), Shout("a"), Interrupt([1], id="a"), Send("a", {})),
        *({1, 2}, DEEP, {(1, 2): 3}, Path("a"), HumanMessage("a", extra=[1])),
    ],
    ids=repr,
)
@pytest.mark.parametrize("inside", [False, True], ids=["alone", "in a list"])
def test_the_serde_makes_what_is_no_plain_data_and_no_message_of_langchain(
    calls: list[bytes], unknown: object, inside: bool
) -> None:
    value = [1, unknown] if inside else unknown
    mold = mold_of(unknown=value, known=[1])
    written = raw_of(value).data
    calls.clear()
    for _ in range(2):
        assert is_like(tuple(mold.make()), tuple(made_by_serde(unknown=value, known=[1])))
    # Twice it is the mold who asks, and twice the test, which asks for all of it.
    assert calls.count(written) == 8
    assert len(calls) == 12


def test_what_is_too_deep_beside_the_serdes_values_has_no_mold() -> None:
    saved = saved_of(a=1)
    cast(Any, saved.metadata)["deep"] = DEEP
    assert Mold.of(saved, SERDE) is None


@pytest.mark.parametrize("size", [100, 1_000, 100_000])
def test_size_is_that_of_what_is_remembered(size: int) -> None:
    texts = [f"{number:0100}" for number in range(size // 100)]
    whole = mold_of(texts=texts).size - mold_of(texts=[]).size
    assert 2 * size < whole < 6 * size  # the checkpoint and its writes have them, with some 50 bytes for each
    chat = mold_of(texts=[HumanMessage(text) for text in texts]).size - mold_of(texts=[]).size
    assert whole < chat


# --- through the saver ------------------------------------------------------------------------------------------------


@pytest.fixture
async def saver(postgres_url: str) -> AsyncIterator[HaltingSaver]:
    async with plain(postgres_url) as found:
        yield found


async def test_a_third_read_asks_no_serde_and_gives_what_the_others_gave(
    saver: HaltingSaver, redis_url: str, calls: list[bytes]
) -> None:
    async with cached(saver, redis_url) as mine:
        thread = new_thread()
        config = await put(mine, thread, messages=CHAT, count=1, plan=["a", {"b": 1}])
        await mine.aput_writes(config, [("messages", CHAT[:1]), ("__interrupt__", ({"value": 1},))], "task")
        expected = await saver.aget_tuple(config_of(thread))
        for _ in range(3):
            assert is_like(await mine.aget_tuple(config_of(thread)), expected)
        calls.clear()
        for _ in range(2):
            found = await mine.aget_tuple(config_of(thread))
            assert is_like(found, expected)
            assert found is not None
            found.checkpoint["channel_values"]["messages"].clear()
            found.checkpoint["channel_values"]["plan"][1].clear()
            found.checkpoint["channel_versions"].clear()
            cast(list[Any], found.pending_writes).clear()
        assert calls == []
        assert mine.stats().hits == 4


class Cipher:
    """Turns bits around; good enough for a test."""

    def encrypt(self, plaintext: bytes) -> tuple[str, bytes]:
        return "turned", bytes(255 - byte for byte in plaintext)

    def decrypt(self, ciphername: str, ciphertext: bytes) -> bytes:
        return bytes(255 - byte for byte in ciphertext)


async def test_what_is_encrypted_is_not_remembered_in_clear(
    postgres_url: str, redis_url: str, calls: list[bytes]
) -> None:
    serde = EncryptedSerializer(Cipher(), JsonPlusSerializer())
    async with plain(postgres_url, serde) as saver, cached(saver, redis_url) as mine:
        thread = new_thread()
        await put(mine, thread, plan=["a secret"])
        for _ in range(4):
            calls.clear()
            found = await mine.aget_tuple(config_of(thread))
            assert found is not None
            assert found.checkpoint["channel_values"] == {"plan": ["a secret"]}
            assert len(calls) == 1
        assert mine.stats().hits == 3


async def test_serdes_with_other_allowlists_do_not_get_each_others_objects(postgres_url: str, redis_url: str) -> None:
    strict = JsonPlusSerializer(allowed_msgpack_modules=None)
    async with plain(postgres_url, strict) as saver, cached(saver, redis_url) as mine:
        note = Note("a", [1])
        clone = mine.with_allowlist([(Note.__module__, Note.__name__)])
        assert clone is not mine
        thread = new_thread()
        await put(mine, thread, notes=[note])
        for _ in range(4):
            for one, expected in ((mine, {"text": "a", "marks": [1]}), (clone, note)):
                found = await one.aget_tuple(config_of(thread))
                assert found is not None
                assert found.checkpoint["channel_values"] == {"notes": [expected]}


async def test_a_serde_that_fails_at_the_second_read_costs_no_error(
    saver: HaltingSaver, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with cached(saver, redis_url) as mine:
        thread = new_thread()
        await put(mine, thread, plan=["a"])
        await mine.aget_tuple(config_of(thread))
        make, left = JsonPlusSerializer.loads_typed, [ValueError("not now")] * 2

        def loads_typed(self: JsonPlusSerializer, data: tuple[str, bytes]) -> Any:
            if left:
                raise left.pop()
            return make(self, data)

        monkeypatch.setattr(JsonPlusSerializer, "loads_typed", loads_typed)
        found = await mine.aget_tuple(config_of(thread))
        assert found is not None
        assert found.checkpoint["channel_values"] == {"plan": ["a"]}
        assert mine.stats().rejected == 2
