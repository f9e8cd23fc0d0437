"""Messages that are made again: equal to what the serde makes, and nobody's changes are seen by anybody else."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import enum
import sys
import tracemalloc
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
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
from langgraph.types import Interrupt
from pydantic import BaseModel, PrivateAttr

from echo_cache.integrations.langgraph.memory import Memory
from echo_cache.integrations.langgraph.molds import Mold, can_mold
from echo_cache.integrations.langgraph.wire import Body, Key, Raw, body_of
from tests.langgraph_support import HaltingSaver, cached, config_of, new_thread, plain, put, value_of
from tests.servers import RedisServer

SERDE = JsonPlusSerializer(allowed_msgpack_modules=True)
KEY = Key("thread", "", None)


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


def mold_of(value: object) -> Mold | None:
    """Return a mold for what the serde makes of *value*."""
    kind, data = SERDE.dumps_typed(value)
    return Mold.of(kind, data, SERDE.loads_typed((kind, data)))


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


text = st.text(max_size=5)
constants = st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | text | st.binary()
plain_data = st.recursive(
    constants,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text | st.integers(0, 9), inner, max_size=3),
    max_leaves=8,
)
others = st.sampled_from([Colour.RED, uuid.UUID(int=1), {1, 2}, datetime.date(2024, 1, 1), Note("a", [1])])
contents = text | st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": text}), max_size=2)
kwargs = st.dictionaries(text, plain_data, max_size=2)
messages = (
    st.builds(HumanMessage, contents, additional_kwargs=kwargs, name=st.none() | text, id=st.none() | text)
    | st.builds(SystemMessage, contents)
    | st.builds(AIMessage, contents, response_metadata=kwargs)
    | st.builds(ToolMessage, contents, tool_call_id=text, artifact=plain_data | others)
)


@given(messages | st.lists(messages, max_size=4))
def test_what_is_made_is_what_the_serde_makes_and_shares_nothing(value: Any) -> None:
    mold = mold_of(value)
    if mold is None:
        return
    expected = SERDE.loads_typed(SERDE.dumps_typed(value))
    one, another = mold.make(), mold.make()
    assert is_like(one, expected)
    assert is_like(another, expected)
    seen = {id(part) for part in changeable(one)}
    assert seen.isdisjoint(id(part) for part in changeable(another))


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
    expected, mold = SERDE.loads_typed(SERDE.dumps_typed(CHAT)), mold_of(CHAT)
    assert mold is not None
    for _ in range(2):
        chat = mold.make()
        assert is_like(chat, expected)
        assert [dumpd(one) for one in chat] == [dumpd(one) for one in CHAT]
        # Whoever gets them may change them.
        chat[0].additional_kwargs["more"] = 1
        chat[1].content[0]["text"] = "changed"
        chat[1].tool_calls[0]["args"]["words"].append("changed")
        chat[3].artifact["rows"].clear()
        chat[-1].extra = "changed"
        chat.clear()


def test_what_was_given_away_is_not_in_the_mold() -> None:
    kind, data = SERDE.dumps_typed(CHAT)
    value = SERDE.loads_typed((kind, data))
    mold = Mold.of(kind, data, value)
    value[1].tool_calls[0]["args"]["words"].append("changed")
    value[3].artifact["rows"].clear()
    value[0].content = "changed"
    assert mold is not None
    assert is_like(mold.make(), SERDE.loads_typed((kind, data)))


def test_a_mold_holds_nothing_that_was_given_away() -> None:
    kind, data = SERDE.dumps_typed(CHAT)
    value = SERDE.loads_typed((kind, data))
    given = [part for part in changeable(value) if part]
    before = [sys.getrefcount(part) for part in given]
    mold = Mold.of(kind, data, value)
    assert mold is not None
    assert [sys.getrefcount(part) for part in given] == before


def test_a_message_alone_is_made_again() -> None:
    mold = mold_of(CHAT[1])
    assert mold is not None
    assert is_like(mold.make(), SERDE.loads_typed(SERDE.dumps_typed(CHAT[1])))


DEEP: list[Any] = []
for _ in range(70):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    "value",
    [
        pytest.param([{"role": "user", "content": "hello"}], id="plain"),
        pytest.param("langchain_core.messages.human", id="text-with-the-name"),
        pytest.param([*CHAT, {"role": "user"}], id="among-plain-data"),
        pytest.param([*CHAT, Note("a", [1])], id="among-others"),
        pytest.param([CHAT], id="deeper"),
        pytest.param({"chat": CHAT}, id="under-a-name"),
        pytest.param([Shout("hello")], id="message-of-the-application"),
        pytest.param([HumanMessage("hello", extra=["a list"])], id="list-in-an-extra-field"),
        pytest.param([HumanMessage("hello", additional_kwargs={"colour": Colour.RED})], id="object-in-a-message"),
        pytest.param([HumanMessage("hello", additional_kwargs={"at": datetime.date(2024, 1, 1)})], id="date"),
        pytest.param([HumanMessage("hello", additional_kwargs={"deep": DEEP})], id="deep"),
        pytest.param([HumanMessage("", additional_kwargs={"many": [[1]] * 1000})], id="many-small-things"),
        pytest.param([HumanMessage("", additional_kwargs={"many": [[]] * 1000})], id="many-empty-things"),
        pytest.param([HumanMessage("", additional_kwargs={"many": [1] * 1000})], id="many-numbers"),
        pytest.param([HumanMessage("", **{f"extra {number}": 1 for number in range(9)})], id="many-extra-fields"),
        pytest.param(Interrupt([1], id="a"), id="interrupt"),
        pytest.param(Cart(items=["a"]), id="model"),
    ],
)
def test_what_is_more_than_messages_with_plain_data_is_left_to_the_serde(value: object) -> None:
    assert mold_of(value) is None


def test_message_with_private_parts_is_left_to_the_serde(monkeypatch: pytest.MonkeyPatch) -> None:
    class Private(HumanMessage):
        _seen: list[int] = PrivateAttr(default_factory=list)

    monkeypatch.setattr(Private, "__module__", "langchain_core.messages.human")
    kind, data = SERDE.dumps_typed([HumanMessage("hello")])
    assert Mold.of(kind, data, [HumanMessage("hello")]) is not None
    assert Mold.of(kind, data, [Private("hello")]) is None


def test_what_the_serde_could_not_make_once_is_not_molded(monkeypatch: pytest.MonkeyPatch) -> None:
    kind, data = SERDE.dumps_typed([HumanMessage("hello", additional_kwargs={"colour": Colour.RED})])
    with monkeypatch.context() as patch:
        patch.delattr(f"{__name__}.Colour")
        value = SERDE.loads_typed((kind, data))
    assert not isinstance(value[0].additional_kwargs["colour"], Colour)  # plain data in its place
    assert Mold.of(kind, data, value) is None


@pytest.mark.parametrize("data", [b"", b"langchain_core.messages.", b"\xc1langchain_core.messages.", b"\x91" * 5000])
def test_bytes_of_any_kind_are_no_error(data: bytes) -> None:
    assert Mold.of("msgpack", data + b"langchain_core.messages.", [HumanMessage("a")]) is None


class Own(JsonPlusSerializer):
    pass


@pytest.mark.parametrize(
    ("serde", "is_known"),
    [
        pytest.param(JsonPlusSerializer(), True, id="langgraphs"),
        pytest.param(JsonPlusSerializer(allowed_msgpack_modules=None), True, id="strict"),
        pytest.param(JsonPlusSerializer(__unpack_ext_hook__=lambda code, data: code), False, id="with-a-hook"),
        pytest.param(Own(), False, id="subclass"),
        pytest.param(EncryptedSerializer(cast(Any, None), JsonPlusSerializer()), False, id="encrypted"),
    ],
)
def test_only_langgraphs_own_serde_is_known_to_make_equal_objects_each_time(serde: Any, is_known: bool) -> None:
    assert can_mold(serde) == is_known


NUMBERS = HumanMessage("x" * 1_000, additional_kwargs={"vector": [number / 3 for number in range(50)]})
EMPTY = HumanMessage("hello", additional_kwargs={"empty": [[], {}] * 20})
SMALL = HumanMessage("hello", additional_kwargs={"small": [[1], {"a": 1}] * 12})
EXTRA = HumanMessage("hello", **{f"extra {number}": f"text {number}" for number in range(8)})


# --- memory -----------------------------------------------------------------------------------------------------------


def saved_of(values: dict[str, Any], writes: int = 0) -> CheckpointTuple:
    """Return a checkpoint as PostgreSQL gives it."""
    raws = {name: Raw(*SERDE.dumps_typed(value)) for name, value in values.items()}
    config: Any = {"configurable": {"thread_id": KEY.thread_id, "checkpoint_ns": "", "checkpoint_id": "an id"}}
    checkpoint: Any = {"v": 4, "id": "an id", "channel_values": {"inline": 1, **raws}}
    pending = [("task", "messages", Raw(*SERDE.dumps_typed([number]))) for number in range(writes)]
    return CheckpointTuple(config, checkpoint, {"source": "loop"}, None, pending)


def remember(memory: Memory, key: Key, body: Body) -> None:
    """Have *memory* read *body* as a saver does."""
    load = memory.loader()
    for *_, kind, data in (*body.blobs, *body.writes):
        load(Raw(kind, data))
    memory.keep(key, b"token", load.molded(body))


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: saved_of({"number": 1}), id="small"),
        pytest.param(lambda: saved_of({}, writes=100), id="many-writes"),
        pytest.param(lambda: saved_of({f"channel {number}": [number] for number in range(20)}), id="many-channels"),
        pytest.param(lambda: saved_of({"messages": [HumanMessage("hi") for _ in range(4)]}), id="short-messages"),
        pytest.param(lambda: saved_of({"messages": [HumanMessage("x" * 2000) for _ in range(20)]}), id="long-messages"),
        pytest.param(lambda: saved_of({"messages": CHAT}), id="all-messages"),
        pytest.param(lambda: saved_of({"messages": [NUMBERS]}), id="numbers-in-a-message"),
        pytest.param(lambda: saved_of({"messages": [EMPTY] * 20}), id="empty-things-in-messages"),
        pytest.param(lambda: saved_of({"messages": [SMALL] * 20}), id="small-things-in-messages"),
        pytest.param(lambda: saved_of({"messages": [EXTRA] * 20}), id="extra-fields-of-messages"),
        pytest.param(lambda: saved_of({"text": "x" * 50_000}), id="long-text"),
    ],
)
def test_memory_takes_no_more_than_it_may(make: Callable[[], CheckpointTuple]) -> None:
    most = 2_000_000
    memory = Memory(most, SERDE)
    number = 0

    def fill(count: int) -> None:
        nonlocal number
        for _ in range(count):
            number += 1
            remember(memory, KEY._replace(thread_id=f"thread {number}"), body_of(KEY, 1.0, make()))

    fill(3)  # what is imported and cached once
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        while memory.size < 0.9 * most:
            fill(10)
        full, in_full = memory.size, tracemalloc.get_traced_memory()[0] - before
        fill(50)
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert memory.size <= most
    assert taken <= 1.2 * most
    assert in_full >= 0.2 * full  # nor much less: what is counted is there


def test_what_is_larger_than_memory_is_not_remembered() -> None:
    memory = Memory(10_000, SERDE)
    remember(memory, KEY, body_of(KEY, 1.0, saved_of({"text": "x" * 10_000})))
    assert (memory.get(KEY), memory.size) == (None, 0)
    remember(memory, KEY, body_of(KEY, 1.0, saved_of({"text": "x"})))
    assert memory.get(KEY) is not None


def test_what_is_remembered_of_a_thread_is_forgotten_with_all_serdes() -> None:
    memory = Memory(100_000, SERDE)
    other = memory.for_serde(JsonPlusSerializer())
    keys = [KEY, KEY._replace(checkpoint_id="an id"), KEY._replace(thread_id="another")]
    for one in (memory, other):
        for key in keys:
            remember(one, key, body_of(KEY, 1.0, saved_of({"text": "x"})))
    memory.forget_thread(KEY.thread_id)
    assert [one.get(key) is None for one in (memory, other) for key in keys] == [True, True, False] * 2
    other.forget(keys[2])
    assert memory.get(keys[2]) is not None
    memory.forget(keys[2])
    memory.forget_thread("another")
    assert memory.size == 0


# --- through the saver ------------------------------------------------------------------------------------------------


@pytest.fixture
async def saver(postgres_url: str) -> AsyncIterator[HaltingSaver]:
    async with plain(postgres_url) as found:
        yield found


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


@pytest.mark.parametrize("is_new_here", [False, True], ids=["filled here", "filled elsewhere"])
async def test_a_second_read_asks_no_serde_for_messages(
    saver: HaltingSaver, redis_url: str, calls: list[bytes], *, is_new_here: bool
) -> None:
    async with cached(saver, redis_url) as mine, cached(saver, redis_url) as other:
        thread = new_thread()
        config = await put(mine, thread, messages=CHAT, count=1, plan=["a", {"b": 1}])
        await mine.aput_writes(config, [("messages", CHAT[:1]), ("__interrupt__", ({"value": 1},))], "task")
        expected = await saver.aget_tuple(config_of(thread))
        if is_new_here:
            await other.aget_tuple(config_of(thread))
        assert is_like(await mine.aget_tuple(config_of(thread)), expected)
        for _ in range(2):
            calls.clear()
            found = await mine.aget_tuple(config_of(thread))
            assert not any(b"langchain_core" in data for data in calls)
            assert len(calls) == 2  # the plan, and the interrupt
            assert is_like(found, expected)
            assert found is not None
            found.checkpoint["channel_values"]["messages"][1].tool_calls.clear()
            found.checkpoint["channel_values"]["messages"].clear()
            found.checkpoint["channel_values"]["plan"][1].clear()
            found.checkpoint["channel_versions"].clear()
            cast(list[Any], found.pending_writes).clear()


async def test_many_who_ask_for_what_is_new_here_have_it_decoded_once(
    saver: HaltingSaver, redis_url: str, calls: list[bytes]
) -> None:
    async with cached(saver, redis_url) as mine, cached(saver, redis_url) as other:
        thread = new_thread()
        await put(mine, thread, messages=CHAT)
        await other.aget_tuple(config_of(thread))
        calls.clear()
        found = await asyncio.gather(*[mine.aget_tuple(config_of(thread)) for _ in range(8)])
        assert len(calls) == 1
        assert mine.stats().hits == 8
        seen = [{id(part) for part in changeable(tuple(cast(Any, one)))} for one in found]
        assert sum(map(len, seen)) == len(set.union(*seen))


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
        await put(mine, thread, messages=[HumanMessage("a secret")])
        for _ in range(4):
            calls.clear()
            found = await mine.aget_tuple(config_of(thread))
            assert found is not None
            assert found.checkpoint["channel_values"] == {"messages": [HumanMessage("a secret")]}
            assert len(calls) == 1
        assert mine.stats().hits == 3


async def test_serdes_with_other_allowlists_do_not_get_each_others_objects(postgres_url: str, redis_url: str) -> None:
    strict = JsonPlusSerializer(allowed_msgpack_modules=None)
    async with plain(postgres_url, strict) as saver, cached(saver, redis_url) as mine:
        value = [HumanMessage("hello", additional_kwargs={"colour": Colour.RED})]
        clone = mine.with_allowlist([(Colour.__module__, Colour.__name__)])
        assert clone is not mine
        thread = new_thread()
        await put(mine, thread, messages=value)
        for _ in range(4):
            for one, expected in ((mine, None), (clone, Colour.RED)):
                found = await one.aget_tuple(config_of(thread))
                assert found is not None
                colour = found.checkpoint["channel_values"]["messages"][0].additional_kwargs["colour"]
                assert (colour if isinstance(colour, Colour) else None) == expected


async def test_a_clone_with_the_same_allowlist_remembers_what_the_one_before_it_has_read(
    postgres_url: str, redis_url: str, redis_server: RedisServer
) -> None:
    """LangGraph makes one at each call of a graph with subgraphs, and at each look at its state."""
    strict = JsonPlusSerializer(allowed_msgpack_modules=None)
    async with plain(postgres_url, strict) as saver, cached(saver, redis_url) as mine:
        thread = new_thread()
        await put(mine, thread, messages=CHAT)
        for number in range(4):
            clone = mine.with_allowlist([(Note.__module__, Note.__name__)])
            assert await clone.aget_tuple(config_of(thread)) is not None
            redis_server.command("DEL", value_of(thread))
            assert (mine.stats().hits, mine.stats().misses) == (number, 1)
        other = mine.with_allowlist([(Cart.__module__, Cart.__name__)])
        assert other is not clone
        # Another serde is another saver, whatever was asked before.
        saver.serde = JsonPlusSerializer(allowed_msgpack_modules=None)
        assert mine.with_allowlist([(Note.__module__, Note.__name__)]) is not clone


async def test_clones_may_be_made_in_any_thread(postgres_url: str, redis_url: str) -> None:
    strict = JsonPlusSerializer(allowed_msgpack_modules=None)
    async with plain(postgres_url, strict) as saver, cached(saver, redis_url) as mine:

        def make(_: int) -> None:
            for number in range(600):
                mine.with_allowlist([(Note.__module__, f"Note{number % 40}")])

        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-5)
        try:
            await asyncio.gather(*[asyncio.to_thread(make, number) for number in range(6)])
        finally:
            sys.setswitchinterval(interval)
        make(0)


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
        assert (mine.stats().rejected, mine.stats().misses) == (1, 2)
