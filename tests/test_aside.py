"""CacheAside: values before a database. What is counted decides: fetches, saves, and what each caller gets."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import pickle
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import pydantic
import pytest
import redis
import redis.asyncio
from hypothesis import given
from hypothesis import strategies as st
from pydantic.alias_generators import to_camel

from echo_cache import (
    Cache,
    ConfigurationError,
    CoordinationOptions,
    MemoryStore,
    NotPropagated,
    RedisStore,
    TwoLevelConfig,
    TwoLevelStore,
)
from echo_cache.aside import JSON, MSGPACK, CacheAside, Serializer, typed
from echo_cache.aside.keys import KeyTemplate
from echo_cache.testing import ManualClock
from tests.redis_support import DEADLINE, PATIENT, until
from tests.servers import RedisServer

ROOT = Path(__file__).parent.parent
KINDS = ("memory", "redis", "cache_aside", "write_through", "write_back")
MakeAside = Callable[..., CacheAside]


def make_store(kind: str, url: str, clock: Any) -> Any:
    if kind == "memory":
        return MemoryStore(clock=clock)
    below = RedisStore(url, timeout=PATIENT, clock=clock)
    if kind == "redis":
        return below
    return TwoLevelStore(MemoryStore(clock=clock), below, TwoLevelConfig(strategy=kind), clock=clock)


@pytest.fixture
async def make_aside(request: pytest.FixtureRequest) -> AsyncIterator[MakeAside]:
    """Make a CacheAside as a worker of its own; with a Redis where the kind of store has one."""
    made: list[CacheAside] = []

    def make(kind: str = "memory", *, clock: Any = None, **options: Any) -> CacheAside:
        url = "" if kind == "memory" else request.getfixturevalue("redis_url")
        clock = clock or ManualClock()
        made.append(CacheAside(Cache(make_store(kind, url, clock), clock=clock), **options))
        return made[-1]

    yield make
    for aside in made:
        await aside.cache.aclose()


class Database:
    """What fetch functions ask: rows, and how often they were asked for. A gate holds back what it is told to."""

    def __init__(self, **rows: Any) -> None:
        self.rows: dict[str, Any] = rows
        self.fetches = 0
        self.gate = asyncio.Event()
        self.asked = asyncio.Event()

    def fetch(self, key: str = "key") -> Callable[[], Awaitable[Any]]:
        async def fetch() -> Any:
            self.fetches += 1
            self.asked.set()
            return self.rows[key]

        return fetch

    def slow_fetch(self, key: str = "key") -> Callable[[], Awaitable[Any]]:
        """Read at once, and return when the gate opens: what is returned may be old by then."""

        async def fetch() -> Any:
            self.fetches += 1
            value = self.rows[key]
            self.asked.set()
            await self.gate.wait()
            return value

        return fetch

    async def save(self, key: str, value: Any) -> None:
        self.rows[key] = value


async def settle(aside: CacheAside) -> None:
    """Wait until what was stored in memory is in Redis."""
    while aside.cache._tasks:
        await asyncio.wait(set(aside.cache._tasks))
    await aside.cache.settled(None)


# --- reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
async def test_value_is_fetched_once_and_then_the_caches_until_it_is_invalidated(
    kind: str, make_aside: MakeAside
) -> None:
    aside, other, database = make_aside(kind), make_aside(kind), Database(key={"name": "Ada", "tags": [1, 2]})
    for _ in range(3):
        assert await aside.get("key", database.fetch()) == {"name": "Ada", "tags": [1, 2]}
    assert database.fetches == 1
    await settle(aside)
    if kind != "memory":
        assert await other.get("key", database.fetch()) == {"name": "Ada", "tags": [1, 2]}
        assert database.fetches == 1
    database.rows["key"] = "new"
    await aside.invalidate("key")
    assert await aside.get("key", database.fetch()) == "new"


@pytest.mark.parametrize("kind", KINDS)
async def test_value_is_kept_for_its_ttl_and_no_longer(kind: str, make_aside: MakeAside) -> None:
    clock = ManualClock()
    aside, database = make_aside(kind, clock=clock, default_ttl=100), Database(key="value")
    for ttl in (None, 10):
        before = database.fetches
        lasts = ttl or 100
        await aside.get("key", database.fetch(), ttl)
        clock.advance(lasts - 1)
        await aside.get("key", database.fetch(), ttl)
        assert database.fetches == before + 1
        clock.advance(1)
        await aside.get("key", database.fetch(), ttl)
        assert database.fetches == before + 2
        clock.advance(lasts)


async def test_ttl_of_zero_is_not_kept(make_aside: MakeAside) -> None:
    aside, database = make_aside(), Database(key="value")
    for _ in range(3):
        assert await aside.get("key", database.fetch(), ttl=0) == "value"
    assert database.fetches == 3


@pytest.mark.parametrize("serializer", [MSGPACK, JSON], ids=["msgpack", "json"])
@pytest.mark.parametrize("value", ["", 0, [], {}, False, 0.0], ids=repr)
async def test_empty_values_are_kept(value: Any, serializer: Serializer, make_aside: MakeAside) -> None:
    aside, database = make_aside(serializer=serializer), Database(key=value)
    for _ in range(2):
        found = await aside.get("key", database.fetch())
        assert (type(found), found) == (type(value), value)
    assert database.fetches == 1


@pytest.mark.parametrize("kind", ["memory", "write_through"])
@pytest.mark.parametrize(("cache_none", "fetches"), [(False, 3), (True, 1)])
async def test_none_is_kept_by_option(kind: str, cache_none: bool, fetches: int, make_aside: MakeAside) -> None:
    aside, database = make_aside(kind, cache_none=cache_none), Database(key=None)
    for _ in range(3):
        assert await aside.get("key", database.fetch()) is None
    assert database.fetches == fetches


@pytest.mark.parametrize("kind", KINDS)
async def test_fifty_callers_share_one_fetch_and_none_shares_the_value(kind: str, make_aside: MakeAside) -> None:
    aside, database = make_aside(kind), Database(key={"list": []})
    calls = [asyncio.ensure_future(aside.get("key", database.slow_fetch())) for _ in range(50)]
    await database.asked.wait()
    database.gate.set()
    values = await asyncio.gather(*calls)
    for number, value in enumerate(values):
        value["list"].append(number)
    assert values == [{"list": [number]} for number in range(50)]
    assert await aside.get("key", database.fetch()) == {"list": []}
    assert database.fetches == 1
    assert aside.stats().shared == 49


async def test_error_reaches_all_who_waited_and_nothing_is_kept(make_aside: MakeAside) -> None:
    aside, gate, count = make_aside(), asyncio.Event(), itertools.count(1)

    async def fetch() -> Any:
        number = next(count)
        await gate.wait()
        raise LookupError(f"no row, said call {number}")

    calls = [asyncio.ensure_future(aside.get("key", fetch)) for _ in range(5)]
    await asyncio.sleep(0)
    gate.set()
    errors = await asyncio.gather(*calls, return_exceptions=True)
    assert [str(error) for error in errors] == ["no row, said call 1"] * 5
    with pytest.raises(LookupError, match="call 2"):
        await aside.get("key", fetch)
    assert aside.stats().failures == 2


async def test_caller_who_leaves_harms_nobody_and_the_last_one_ends_the_fetch(make_aside: MakeAside) -> None:
    aside, database = make_aside(), Database(key="value")
    calls = [asyncio.ensure_future(aside.get("key", database.slow_fetch())) for _ in range(3)]
    await database.asked.wait()
    calls[0].cancel()
    await asyncio.wait([calls[0]])
    database.gate.set()
    assert await asyncio.gather(*calls[1:]) == ["value", "value"]
    begun, ended = asyncio.Event(), asyncio.Event()

    async def endless() -> Any:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    alone = asyncio.ensure_future(aside.get("other", endless))
    await until(lambda: begun.is_set())
    alone.cancel()
    await asyncio.wait_for(ended.wait(), DEADLINE)


@pytest.mark.parametrize("kind", KINDS)
async def test_value_that_was_invalidated_while_it_was_fetched_is_given_and_not_kept(
    kind: str, make_aside: MakeAside
) -> None:
    aside, database = make_aside(kind), Database(key="old")
    late = asyncio.ensure_future(aside.get("key", database.slow_fetch()))
    await database.asked.wait()
    database.rows["key"] = "new"
    await aside.invalidate("key")
    # Who asks after that does not wait for the old one.
    assert await aside.get("key", database.fetch()) == "new"
    database.gate.set()
    assert await late == "old"
    assert await aside.get("key", database.fetch()) == "new"
    assert database.fetches == 2


async def test_tags_part_of_the_http_cache_are_those_of_values(make_aside: MakeAside) -> None:
    aside, database = make_aside("write_through"), Database(key="value")
    for _ in range(2):
        await aside.get("key", database.fetch(), tags=["product:7"])
    await aside.cache.invalidate(tags=["product:7"])
    await aside.get("key", database.fetch(), tags=["product:7"])
    assert database.fetches == 2


async def test_prefixes_are_name_spaces_on_one_store() -> None:
    store, database = MemoryStore(), Database(key="value")
    one, two = CacheAside(store, "one"), CacheAside(store, "two")
    await one.get("key", database.fetch())
    database.rows["key"] = "another"
    assert await two.get("key", database.fetch()) == "another"
    assert await one.get("key", database.fetch()) == "value"


async def test_disabled_cache_fetches_each_time(make_aside: MakeAside) -> None:
    aside, database = make_aside(), Database(key="value")
    await aside.get("key", database.fetch())
    with aside.cache.disabled():
        database.rows["key"] = "new"
        assert await aside.get("key", database.fetch()) == "new"
    assert await aside.get("key", database.fetch()) == "value"


@pytest.mark.parametrize("given", ["url", "client", "store"])
async def test_redis_is_taken_in_each_form(given: str, redis_url: str) -> None:
    client = redis.asyncio.Redis.from_url(redis_url, protocol=2)
    forms: dict[str, Any] = {"url": redis_url, "client": client, "store": RedisStore(redis_url)}
    database = Database(key="value")
    async with CacheAside(forms[given]) as aside:
        for _ in range(2):
            assert await aside.get("key", database.fetch()) == "value"
            await settle(aside)
    assert database.fetches == 1
    await client.aclose()


# --- trouble ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["redis", "write_through"])
async def test_redis_that_is_gone_costs_fetches_and_nothing_else(kind: str, own_redis: RedisServer) -> None:
    store = make_store(kind, own_redis.url, ManualClock())
    database = Database(key="value")
    async with CacheAside(Cache(store)) as aside:
        await aside.get("key", database.fetch())
        await settle(aside)
        own_redis.kill()
        for _ in range(3):
            assert await aside.get("other", database.fetch("key")) == "value"
        await aside.write_through("key", "new", database.save)
        fetches = database.fetches
        assert await aside.get("key", database.fetch()) == "new"
        assert database.fetches == fetches + 1  # what was kept before it is gone
        with pytest.raises(NotPropagated):
            await aside.invalidate("key", strict=True)
        await aside.cache.aclose(0.1)


@pytest.mark.parametrize("planted", [b"", b"\x00" * 50, b"\xc1", pickle.dumps({"a": 1}), b"[" * 10_000])
async def test_bytes_that_are_no_value_are_a_miss(planted: bytes, make_aside: MakeAside, redis_url: str) -> None:
    database = Database(key={"a": 1})
    writer = make_aside("redis")
    # An entry of ours with a body that is none of the serializer's.
    await writer.get("key", database.fetch(), serialize=lambda value: planted, deserialize=json.loads)
    await settle(writer)
    reader = make_aside("redis")
    assert await reader.get("key", database.fetch()) == {"a": 1}
    await settle(reader)
    with redis.Redis.from_url(redis_url) as client:
        (name,) = (name for name in client.keys("echo_cache:*") if b":log" not in name and b"lease" not in name)
        client.set(name, planted)
    other = make_aside("redis")
    assert await other.get("key", database.fetch()) == {"a": 1}
    assert database.fetches == 3


async def test_same_bytes_of_another_serializer_are_a_miss(make_aside: MakeAside) -> None:
    one = make_aside(serializer=JSON)
    two = CacheAside(one.cache, serializer=MSGPACK)
    database = Database(key=7)
    assert await one.get("key", database.fetch()) == 7
    assert await two.get("key", database.fetch()) == 7
    assert database.fetches == 2
    assert two.stats().unreadable == 1


async def test_redis_that_is_gone_costs_one_fetch_of_a_key_for_as_long_as_workers_may_be_late(
    own_redis: RedisServer,
) -> None:
    """Also by default, where another process could have writes of it that wait to be saved."""
    clock = ManualClock()
    store = make_store("write_through", own_redis.url, clock)
    cache = Cache(store, clock=clock, coordination=CoordinationOptions(max_unsynced=60))
    database = Database(warm="a", new="b")
    async with CacheAside(cache, default_ttl=600) as aside:
        await aside.get("warm", database.fetch("warm"))
        await settle(aside)
        own_redis.kill()
        for _ in range(5):
            for key in ("warm", "new"):
                assert await aside.get(key, database.fetch(key)) == database.rows[key]
        clock.advance(59)
        assert await aside.get("new", database.fetch("new")) == "b"
        fetches = database.fetches
        assert fetches <= 4  # until Redis is given up, each read may be one

        async def slow() -> str:
            clock.advance(61)
            return "read before"

        for _ in range(2):
            assert await aside.get("slow", slow) == "read before"
        assert aside.stats().fetches == fetches + 2
        clock.advance(-122)
        clock.advance(2)
        for _ in range(2):
            assert await aside.get("new", database.fetch("new")) == "b"
        assert database.fetches == fetches + 1
        await cache.aclose(0.1)


async def test_value_that_the_serializer_does_not_take_is_given_and_said_once_for_each_type(
    make_aside: MakeAside, caplog: pytest.LogCaptureFixture
) -> None:
    aside, database = make_aside(), Database(key={1, 2}, other=date(2024, 1, 2))
    for _ in range(3):
        assert await aside.get("key", database.fetch("key")) == {1, 2}
        assert await aside.get("other", database.fetch("other")) == date(2024, 1, 2)
    assert database.fetches == aside.stats().unstorable == 6
    said = [record.getMessage() for record in caplog.records if "does not keep" in record.getMessage()]
    assert ["type set" in message for message in said] == [True, False]
    assert "type date" in said[1]


async def test_a_value_is_not_in_the_log(make_aside: MakeAside, caplog: pytest.LogCaptureFixture) -> None:
    aside, database = make_aside(serializer=typed(Strict)), Database(key={"card": "4111-1111-1111-1111"})
    await aside.get("key", database.fetch())
    (record,) = (record for record in caplog.records if "does not keep" in record.getMessage())
    assert "4111" not in record.getMessage()
    assert record.exc_info is None


@pytest.mark.parametrize("kind", ["redis", "write_through"])
async def test_value_that_redis_does_not_take_is_said_to_be_so_where_it_is_kept_nowhere_else(
    kind: str, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    clock = ManualClock()
    below = RedisStore(redis_url, timeout=PATIENT, clock=clock, max_body_bytes=1_000)
    store = below if kind == "redis" else TwoLevelStore(MemoryStore(clock=clock), below, clock=clock)
    database = Database(large="x" * 1_000, fits="x" * 900)
    async with contextlib.aclosing(Cache(store, clock=clock)) as cache, CacheAside(cache) as aside:
        for _ in range(3):
            for key in ("large", "fits"):
                await aside.get(key, database.fetch(key))
                await settle(aside)
        is_kept = kind != "redis"
        assert database.fetches == (2 if is_kept else 4)
        assert aside.stats().unstorable == (0 if is_kept else 3)
        assert ("the store takes 1000" in caplog.text) != is_kept


# --- serializers ------------------------------------------------------------------------------------------------------


@dataclass
class User:
    id: int
    name: str
    born: date | None = None


class Order(pydantic.BaseModel):
    number: UUID
    at: datetime
    lines: tuple[tuple[str, int], ...]


class Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True, extra="forbid")
    card: str

    @pydantic.computed_field
    def last(self) -> str:
        return self.card[-4:]


class Camel(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(alias_generator=to_camel, extra="forbid")
    first_name: str
    born_at: date | None = None
    at_home: bool = pydantic.Field(True, validation_alias="home", serialization_alias="isHome")


class Secret(pydantic.BaseModel):
    password: pydantic.SecretStr


class Hidden(pydantic.BaseModel):
    shown: int
    hidden: int = pydantic.Field(5, exclude=True)


class Base(pydantic.BaseModel):
    a: int = 1


class Sub(Base):
    b: int = 2


class Holder(pydantic.BaseModel):
    inner: Base


@dataclass
class Counted:
    name: str
    count: int = field(init=False, default=0)


def counted(count: int) -> Counted:
    made = Counted("a")
    made.count = count
    return made


@dataclass
class Careless:
    """Says that it is equal whatever the password is."""

    name: str
    password: pydantic.SecretStr = field(compare=False)


@dataclass(eq=False)
class Unequal:
    name: str
    rates: list[float]


class Own(pydantic.BaseModel):
    a: int
    _seen: datetime = pydantic.PrivateAttr(default_factory=lambda: datetime.now(UTC))


class Point(NamedTuple):
    x: int
    y: int


class Marked(str):
    """More than text."""


class Level(StrEnum):
    HIGH = "high"


TYPED = [
    pytest.param(Strict, Strict(card="4111"), id="computed-field"),
    pytest.param(Camel, Camel.model_validate({"firstName": "Ada", "home": False}), id="aliases"),
    pytest.param(list[Camel], [Camel.model_validate({"firstName": "Ada"})], id="aliases-in-a-list"),
    pytest.param(Hidden, Hidden(shown=1), id="excluded-field-with-its-default"),
    pytest.param(User, User(7, "Ada", date(1815, 12, 10)), id="dataclass"),
    pytest.param(list[User], [User(7, "Ada"), User(8, "Bob")], id="list"),
    pytest.param(User | None, User(7, "Ada"), id="optional"),
    pytest.param(
        Order, Order(number=UUID(int=5), at=datetime(2024, 1, 2, tzinfo=UTC), lines=(("a", 1), ("b", 2))), id="model"
    ),
    pytest.param(dict[int, set[str]], {1: {"a", "b"}}, id="dictionary"),
]


@pytest.mark.parametrize(("type_", "value"), TYPED)
@pytest.mark.parametrize("kind", ["memory", "redis"])
async def test_typed_values_come_back_as_they_were(type_: Any, value: Any, kind: str, make_aside: MakeAside) -> None:
    aside, database = make_aside(kind, serializer=typed(type_)), Database(key=value)
    for _ in range(2):
        found = await aside.get("key", database.fetch())
        assert (type(found), found) == (type(value), value)
        await settle(aside)
    assert database.fetches == 1


@pytest.mark.parametrize("value", [Unequal("a", [1.5]), Own(a=1)], ids=["without-equality", "private-attribute"])
async def test_what_a_class_says_of_equality_is_not_asked(value: Any, make_aside: MakeAside) -> None:
    aside, database = make_aside(serializer=typed(type(value))), Database(key=value)
    for _ in range(2):
        found = await aside.get("key", database.fetch())
        assert type(found) is type(value)
        assert repr(found) == repr(value) or vars(found) == vars(value)
    assert database.fetches == 1


async def test_value_of_an_older_type_is_a_miss(make_aside: MakeAside) -> None:
    aside, database = make_aside(serializer=typed(dict[str, int])), Database(key={"id": 7})
    await aside.get("key", database.fetch())
    newer = CacheAside(aside.cache, serializer=typed(User))
    database.rows["key"] = User(7, "Ada")
    assert await newer.get("key", database.fetch()) == User(7, "Ada")


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(-(2**63), 2**63), inner),
    max_leaves=20,
)


@pytest.mark.parametrize("value", [{(1, 2): 3}, {"a": {((1,), "b"): [{(): 1}]}}])
async def test_tuples_may_be_keys(value: Any, make_aside: MakeAside) -> None:
    aside, database = make_aside(), Database(key=value)
    for _ in range(2):
        assert await aside.get("key", database.fetch()) == value
    assert database.fetches == 1


@given(values)
def test_msgpack_gives_back_what_it_took(value: Any) -> None:
    assert MSGPACK.loads(MSGPACK.dumps(value)) == value


async def test_functions_of_one_call_are_kept_for_its_refresh(make_aside: MakeAside) -> None:
    aside, database = make_aside(), Database(key={1, 2})

    def dumps(value: set[int]) -> str:
        return json.dumps(sorted(value))

    def loads(data: bytes) -> set[int]:
        return set(json.loads(data))

    await aside.get("key", database.fetch(), serialize=dumps, deserialize=loads)
    database.rows["key"] = {3}
    assert await aside.refresh("key", database.fetch()) == {3}
    assert await aside.get("key", database.fetch()) == {3}
    assert database.fetches == 2


# --- changing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
async def test_refresh_takes_the_place_of_what_was_there_in_all_workers(kind: str, make_aside: MakeAside) -> None:
    aside, database = make_aside(kind), Database(key="old")
    other = make_aside(kind) if kind != "memory" else aside
    for worker in (aside, other):
        await worker.get("key", database.fetch())
        await settle(worker)
    database.rows["key"] = "new"
    assert await aside.refresh("key", database.fetch()) == "new"
    fetches = database.fetches
    assert await aside.get("key", database.fetch()) == "new"
    assert database.fetches == fetches

    async def is_seen() -> bool:
        return bool(await other.get("key", database.fetch()) == "new")

    await until(is_seen)


async def test_refresh_that_fails_leaves_what_is_there(make_aside: MakeAside) -> None:
    aside, database = make_aside(), Database(key="old")
    await aside.get("key", database.fetch())
    with pytest.raises(KeyError):
        await aside.refresh("key", database.fetch("missing"))
    assert await aside.get("key", database.fetch()) == "old"
    assert database.fetches == 2


@pytest.mark.parametrize("kind", KINDS)
async def test_fetch_that_began_before_a_refresh_does_not_undo_it(kind: str, make_aside: MakeAside) -> None:
    aside, database = make_aside(kind), Database(key="old")
    late = asyncio.ensure_future(aside.get("key", database.slow_fetch()))
    await database.asked.wait()
    database.rows["key"] = "new"
    await aside.refresh("key", database.fetch())
    database.gate.set()
    await late
    await settle(aside)
    assert await aside.get("key", database.fetch()) == "new"


@pytest.mark.parametrize("kind", KINDS)
async def test_write_through_saves_first_and_then_keeps(kind: str, make_aside: MakeAside) -> None:
    aside, database = make_aside(kind), Database(key="old")
    await aside.get("key", database.fetch())

    async def save(key: str, value: Any) -> None:
        assert await aside.get("key", database.fetch()) == "old"
        await database.save(key, value)

    await aside.write_through("key", "new", save)
    assert database.rows["key"] == "new"
    fetches = database.fetches
    assert await aside.get("key", database.fetch()) == "new"
    assert database.fetches == fetches
    if kind != "memory":
        assert await make_aside(kind).get("key", database.fetch()) == "new"
        assert database.fetches == fetches


@pytest.mark.parametrize("saved", [False, True])
async def test_save_that_fails_leaves_nothing_behind(saved: bool, make_aside: MakeAside) -> None:
    aside, database = make_aside(), Database(key="old")
    await aside.get("key", database.fetch())

    async def save(key: str, value: Any) -> None:
        if saved:  # the answer was lost, not the row
            await database.save(key, value)
        raise OSError("the connection was lost")

    with pytest.raises(OSError, match="lost"):
        await aside.write_through("key", "new", save)
    await settle(aside)
    assert await aside.get("key", database.fetch()) == ("new" if saved else "old")


# In which order two writers begin (+), commit (=) and end (-).
ORDERS = sorted(set(itertools.permutations(["a+", "a=", "a-", "b+", "b=", "b-"])))
SOUND = [
    order
    for order in ORDERS
    if all(order.index(f"{name}+") < order.index(f"{name}=") < order.index(f"{name}-") for name in "ab")
]


@pytest.mark.parametrize("kind", ["memory", "redis", "write_through"])
async def test_concurrent_writers_never_leave_the_older_value(kind: str, make_aside: MakeAside) -> None:
    for order in SOUND:
        one, database = make_aside(kind), Database(key="none")
        workers = {"a": one, "b": one if kind == "memory" else make_aside(kind)}
        gates = {step: asyncio.Event() for step in order}
        done = {step: asyncio.Event() for step in order}
        key = "".join(order)

        def save_of(name: str, gates: Any = gates, done: Any = done, database: Any = database) -> Any:
            async def save(key: str, value: Any) -> None:
                done[f"{name}+"].set()
                await gates[f"{name}="].wait()
                database.rows["key"] = value
                done[f"{name}="].set()
                await gates[f"{name}-"].wait()

            return save

        tasks: dict[str, asyncio.Task[None]] = {}
        for step in order:
            name, what = step
            if what == "+":
                tasks[name] = asyncio.ensure_future(workers[name].write_through(key, name, save_of(name)))
            gates[step].set()
            await (tasks[name] if what == "-" else asyncio.wait_for(done[step].wait(), DEADLINE))
        for worker in workers.values():
            await settle(worker)
        assert await make_aside(kind).get(key, database.fetch()) == database.rows["key"], order
        for worker in workers.values():

            async def is_right(worker: Any = worker, key: str = key, database: Any = database) -> bool:
                return bool(await worker.get(key, database.fetch()) == database.rows["key"])

            await until(is_right)


async def test_writer_that_hears_nothing_knows_of_others_all_the_same(make_aside: MakeAside) -> None:
    """The one who writes last here has not heard of the other one; the reply to its own mark tells it."""
    one, deaf, database = make_aside("redis"), make_aside("redis"), Database(key="none")
    for worker in (one, deaf):
        await worker.get("key", database.fetch())
        await settle(worker)
    log: Any = deaf.cache.log
    log.follow = lambda: None
    log._task.cancel()
    begun, gate = asyncio.Event(), asyncio.Event()

    async def save(key: str, value: Any) -> None:
        database.rows["key"] = value
        begun.set()
        await gate.wait()

    late = asyncio.ensure_future(deaf.write_through("key", "older", save))
    await begun.wait()
    await one.write_through("key", "newer", database.save)
    gate.set()
    await late
    await settle(deaf)
    assert await make_aside("redis").get("key", database.fetch()) == "newer"
    assert database.fetches == 2


@pytest.mark.parametrize("kind", KINDS)
async def test_refreshes_at_once_leave_the_value_there(kind: str, make_aside: MakeAside) -> None:
    aside, database = make_aside(kind), Database(key="value")
    other = aside if kind == "memory" else make_aside(kind)
    for worker in (aside, other):
        await worker.get("key", database.fetch())
    await asyncio.gather(*(worker.refresh("key", database.fetch()) for worker in (aside, other)))
    for worker in (aside, other):
        await settle(worker)
    fetches = database.fetches
    assert await aside.get("key", database.fetch()) == "value"
    assert database.fetches == fetches


async def test_callers_with_other_serializers_at_once_get_values_of_their_own(make_aside: MakeAside) -> None:
    plain = make_aside(serializer=JSON)
    users = CacheAside(plain.cache, serializer=typed(User))
    database = Database(plain={"id": 7, "name": "Ada"}, typed=User(7, "Ada"))
    calls: list[Any] = [plain.get("key", database.slow_fetch("plain")) for _ in range(2)]
    calls += [users.get("key", database.slow_fetch("typed")) for _ in range(2)]
    tasks = [asyncio.ensure_future(call) for call in calls]
    await until(lambda: database.fetches == 2)
    database.gate.set()
    assert [type(value) for value in await asyncio.gather(*tasks)] == [dict, dict, User, User]


def test_each_event_loop_hears_the_log_and_finds_what_is_there(redis_url: str) -> None:
    aside = CacheAside(RedisStore(redis_url, timeout=PATIENT))
    database: dict[str, Any] = {"fetches": 0, "value": "old"}

    async def fetch() -> Any:
        database["fetches"] += 1
        return database["value"]

    async def read_twice() -> None:
        for _ in range(2):
            await aside.get("key", fetch)
            await settle(aside)
        await aside.aclose()

    asyncio.run(read_twice())
    assert database["fetches"] == 1

    async def hear_another() -> None:
        await aside.get("key", fetch)
        other = CacheAside(RedisStore(redis_url, timeout=PATIENT))
        database["value"] = "new"
        await other.invalidate("key")
        await other.aclose()

        async def is_new() -> bool:
            return bool(await aside.get("key", fetch) == "new")

        await until(is_new)
        await aside.aclose()

    asyncio.run(hear_another())


async def test_callers_that_give_functions_of_their_own_share_one_fetch(make_aside: MakeAside) -> None:
    aside, database = make_aside(), Database(key=[1])
    calls = [
        asyncio.ensure_future(
            aside.get(
                "key",
                database.slow_fetch(),
                serialize=lambda value: json.dumps(value),
                deserialize=lambda data: json.loads(data),
            )
        )
        for _ in range(20)
    ]
    await database.asked.wait()
    database.gate.set()
    assert await asyncio.gather(*calls) == [[1]] * 20
    assert database.fetches == 1


async def test_callers_wait_for_as_long_as_they_are_told(make_aside: MakeAside) -> None:
    """Then one of them begins anew for all, and not each for himself."""
    aside, database = make_aside(wait=0.2), Database(key="value")
    calls = [asyncio.ensure_future(aside.get("key", database.slow_fetch())) for _ in range(50)]
    await until(lambda: database.fetches == 3)
    database.gate.set()
    assert set(await asyncio.gather(*calls)) == {"value"}
    assert database.fetches <= 5


async def test_planted_lease_that_never_ends_holds_up_nobody(make_aside: MakeAside, redis_url: str) -> None:
    aside, database = make_aside("redis", wait=3600), Database(key="value")
    leases = aside.cache.leases
    assert leases is not None
    name = leases.name(aside.cache.digest_of(((aside._key("key"), False), ())))
    with redis.Redis.from_url(redis_url) as client:
        client.set(name, b"x")
        async with asyncio.timeout(DEADLINE):
            assert await aside.get("key", database.fetch()) == "value"


async def test_lock_lasts_as_long_as_it_is_told(make_aside: MakeAside, redis_url: str) -> None:
    aside, database = make_aside("redis"), Database(key="value")
    call = asyncio.ensure_future(aside.get_with_lock("key", database.slow_fetch(), lock_timeout=600))
    await database.asked.wait()
    with redis.Redis.from_url(redis_url) as client:
        (name,) = client.keys("*lease*")
        assert 500_000 < client.pttl(name) <= 600_000
    database.gate.set()
    await call


async def test_fetch_that_is_given_up_is_taken_over_by_one_of_those_who_wait(make_aside: MakeAside) -> None:
    leading, database = make_aside("redis"), Database(key="value")
    call = asyncio.ensure_future(leading.get("key", database.slow_fetch()))
    await database.asked.wait()
    others = [make_aside("redis") for _ in range(4)]
    calls = [asyncio.ensure_future(other.get("key", database.fetch())) for other in others]
    await until(lambda: all(len(other._flights) for other in others))
    call.cancel()
    assert set(await asyncio.gather(*calls)) == {"value"}
    assert database.fetches == 2


@pytest.mark.parametrize("value", [5, None, [1]])
async def test_function_that_gives_no_bytes_keeps_nothing(value: Any, make_aside: MakeAside) -> None:
    aside, database = make_aside(cache_none=False), Database(key=value)
    for _ in range(2):
        assert await aside.get("key", database.fetch(), serialize=lambda value: value, deserialize=bytes) == value
    assert database.fetches == 2


@dataclass
class Admin(User):
    rights: int = 0


@pytest.mark.parametrize(
    ("type_", "value"),
    [
        (User, Admin(7, "Ada", rights=1)),
        (dict[str, int], "text"),
        pytest.param(Secret, Secret(password=pydantic.SecretStr("s3cret")), id="secret"),
        pytest.param(Hidden, Hidden(shown=1, hidden=9), id="excluded-field"),
        pytest.param(Holder, Holder(inner=Sub(a=1, b=3)), id="subclass-inside"),
        pytest.param(Careless, Careless("a", pydantic.SecretStr("s3cret")), id="secret-that-is-not-compared"),
        pytest.param(list[tuple[int, int]], [Point(1, 2)], id="named-tuple-inside"),
        pytest.param(list[str], [Marked("a")], id="text-of-another-class"),
        pytest.param(Any, {"level": Level.HIGH}, id="enumeration-as-anything"),
        pytest.param(Counted, counted(3), id="field-that-no-init-takes"),
        pytest.param(Any, datetime(2024, 1, 2, tzinfo=UTC), id="any"),
        pytest.param(dict, {1: 2}, id="keys-that-become-text"),
    ],
)
async def test_value_that_would_come_back_as_another_is_not_kept(type_: Any, value: Any, make_aside: MakeAside) -> None:
    aside, database = make_aside(serializer=typed(type_)), Database(key=value)
    for _ in range(2):
        assert await aside.get("key", database.fetch()) == value
    assert aside.stats().unstorable == database.fetches == 2


# --- three processes --------------------------------------------------------------------------------------------------


class Process:
    """A worker process; see tests/aside_worker.py."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.fetches = 0
        self.fetching = asyncio.Event()

    async def line(self) -> list[str]:
        """Return the words of the next line, nothing at the end."""
        assert self._process.stdout is not None
        return (await self._process.stdout.readline()).decode().split(" ", 1)

    def go(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")

    async def values(self) -> list[Any]:
        """Return what its callers got, in the end."""
        while (words := await self.line())[0] == "fetch":
            self.fetches += 1
            self.fetching.set()
        return json.loads(words[1]) if words[0] == "got" else []

    def kill(self) -> None:
        self._process.kill()

    async def end(self) -> None:
        if self._process.returncode is None:
            self._process.kill()
        await self._process.communicate()


@pytest.fixture
async def processes(redis_url: str) -> AsyncIterator[Callable[..., Awaitable[list[Process]]]]:
    started: list[Process] = []

    async def start(count: int, callers: int, seconds: float, lock_timeout: float) -> list[Process]:
        for _ in range(count):
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "tests.aside_worker"),
                *(redis_url, str(callers), str(seconds), str(lock_timeout)),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                cwd=ROOT,
                limit=1 << 20,
            )
            started.append(Process(process))
        for worker in started:
            assert (await worker.line())[0].strip() == "ready"
        return started

    yield start
    for worker in started:
        await worker.end()


@pytest.mark.parametrize("count", [1, 3])
async def test_fetch_that_takes_longer_than_the_lock_time_out_is_one_for_all(
    count: int, processes: Callable[..., Awaitable[list[Process]]]
) -> None:
    workers = await processes(count, callers=50, seconds=2.2, lock_timeout=1.0)
    for worker in workers:
        worker.go()
    async with asyncio.timeout(DEADLINE):
        got = [value for values in await asyncio.gather(*(worker.values() for worker in workers)) for value in values]
    assert len(got) == 50 * count
    assert all(value == got[0] for value in got)
    assert sum(worker.fetches for worker in workers) == 1


async def test_worker_that_dies_at_work_is_followed_by_another_within_the_lock_time_out(
    processes: Callable[..., Awaitable[list[Process]]], redis_server: RedisServer
) -> None:
    workers = await processes(3, callers=10, seconds=1.5, lock_timeout=0.5)
    for worker in workers:
        worker.go()
    reading = [asyncio.ensure_future(worker.values()) for worker in workers]
    events = [asyncio.ensure_future(worker.fetching.wait()) for worker in workers]
    try:
        async with asyncio.timeout(DEADLINE):
            await asyncio.wait(events, return_when=asyncio.FIRST_COMPLETED)
            (dead,) = (worker for worker in workers if worker.fetching.is_set())
            dead.kill()
            # So long, and no longer, is the lock its own.
            leases = [name for name in redis_server.command("KEYS", "*") if ":lease:" in name]
            held = [name for name in leases if "@" in str(redis_server.command("GET", name))]  # none if it took long
            assert all(int(redis_server.command("PTTL", name)) <= 500 for name in held)
            got = [value for values in await asyncio.gather(*reading) for value in values]
    finally:
        for task in (*reading, *events):
            task.cancel()
    assert len(got) == 20
    assert all(value == got[0] for value in got)
    assert sum(worker.fetches for worker in workers) == 2


# --- the decorator ----------------------------------------------------------------------------------------------------


async def test_decorated_function_is_called_once_for_the_same_arguments(make_aside: MakeAside) -> None:
    aside, calls = make_aside(serializer=typed(User)), []

    @aside.cached(key="user:{user_id}", ttl=60, tags=["users", "user:{user_id}"])
    async def user(user_id: int, *, name: str = "Ada") -> User:
        """Return a user."""
        calls.append(user_id)
        return User(user_id, name)

    assert await user(7) == await user(user_id=7) == User(7, "Ada")
    assert await user(8) == User(8, "Ada")
    assert calls == [7, 8]
    assert (user.key(7), user.__doc__, user.__name__) == ("user:7", "Return a user.", "user")  # type: ignore[attr-defined]
    await user.invalidate(7)
    await user(7)
    await user.refresh(8)
    assert calls == [7, 8, 7, 8]
    await aside.cache.invalidate(tags=["users"])
    await user(7)
    await user(8)
    assert calls == [7, 8, 7, 8, 7, 8]


argument = st.none() | st.text(max_size=4) | st.text(":/ %None", max_size=6)


@given(
    *[st.tuples(argument, argument) for _ in range(2)],
    st.sampled_from(["{a}:{b}", "x:{a}/{b}", "{a} {b}", "p{a}:q{b}", "{a}%:1{b}", "{a}:/{b}/x"]),
)
def test_different_arguments_never_make_the_same_key(one: Any, two: Any, template: str) -> None:
    async def function(a: str, b: str) -> None: ...

    made = KeyTemplate(template, function)
    assert (made.fill(one, {}) == made.fill(two, {})) == (one == two)


@pytest.mark.parametrize(
    "template",
    ["{missing}", "{a}{b}", "{a}x{b}", "{a}%{b}", "{", "{args}", "{}", "{0}", "{a:>5}", "{a!r}"],
)
def test_template_that_cannot_work_is_refused(template: str) -> None:
    async def function(a: int, b: int, *args: int) -> None: ...

    with pytest.raises(ConfigurationError):
        KeyTemplate(template, function)


async def test_argument_without_a_short_spelling_is_refused(make_aside: MakeAside) -> None:
    aside = make_aside()

    @aside.cached(key="user:{user}")
    async def by_user(user: User) -> str:
        return user.name

    @aside.cached(key="user:{user.id}")
    async def by_id(user: User) -> str:
        return user.name

    with pytest.raises(TypeError, match=r"user\.id"):
        await by_user(User(7, "Ada"))
    assert await by_id(User(7, "Ada")) == "Ada"
    assert by_id.key(User(7, "Ada")) == "user:7"


async def test_key_of_one_field_and_tags_are_as_they_read(make_aside: MakeAside) -> None:
    aside, calls = make_aside(), itertools.count()

    @aside.cached(key="mail:{mail}", tags=["mail:{mail}"])
    async def by_mail(mail: str | None) -> int:
        return next(calls)

    for number, mail in enumerate(["a@b.c", "日本", None, "None", "", "%", "x" * 5_000, "x" * 5_001]):
        assert [await by_mail(mail), await by_mail(mail)] == [number, number]
    await aside.invalidate("mail:a@b.c")
    assert await by_mail("a@b.c") == 8
    await aside.cache.invalidate(tags=["mail:a@b.c"])
    assert await by_mail("a@b.c") == 9


async def test_argument_that_makes_an_empty_tag_harms_nobody(make_aside: MakeAside) -> None:
    aside, calls = make_aside(), itertools.count()

    @aside.cached(key="name:{name}", tags=["{name}"])
    async def by_name(name: str) -> int:
        return next(calls)

    assert [await by_name(""), await by_name("")] == [0, 0]


async def test_second_function_with_the_same_key_is_refused(make_aside: MakeAside) -> None:
    aside = make_aside()

    async def one(i: int) -> int:
        return i

    async def other(i: int) -> str:
        return f"{i}"

    for _ in range(2):  # as when a module is loaded again
        aside.cached(key="{i}")(one)
    with pytest.raises(ConfigurationError, match="already"):
        aside.cached(key="{i}")(other)
    with pytest.raises(ConfigurationError, match=r"key="):
        aside.cached(one)


@pytest.mark.parametrize("kind", KINDS)
async def test_clear_drops_the_values_of_its_prefix_alone(kind: str, make_aside: MakeAside) -> None:
    aside, database = make_aside(kind, prefix="one"), Database(key="value")
    other = CacheAside(aside.cache, "two")
    for each in (aside, other):
        await each.get("key", database.fetch())
    await aside.clear()
    for each in (aside, other):
        await each.get("key", database.fetch())
    assert database.fetches == 3


async def test_functions_that_are_not_async_are_refused(make_aside: MakeAside) -> None:
    not_async: Any = lambda *_: 5  # noqa: E731
    with pytest.raises(ConfigurationError, match="fetch_fn"):
        await make_aside().get("key", not_async)
    with pytest.raises(ConfigurationError, match="save"):
        await make_aside().write_through("key", 1, not_async)


async def test_tags_that_are_one_text_are_refused(make_aside: MakeAside) -> None:
    with pytest.raises(ConfigurationError, match="list of tags"):
        make_aside().cached("k", tags="users")
    with pytest.raises(ConfigurationError, match="ttl"):
        make_aside().cached("k", ttl=-1)


# --- what is wrong ----------------------------------------------------------------------------------------------------


WRONG: list[Any] = [
    pytest.param(lambda: CacheAside(MemoryStore(), ""), id="prefix"),
    pytest.param(lambda: CacheAside(MemoryStore(), default_ttl=-1), id="default_ttl"),
    pytest.param(lambda: CacheAside(MemoryStore(), lock_timeout=0), id="lock_timeout"),
    pytest.param(lambda: CacheAside(MemoryStore(), serializer=pickle), id="serializer"),
    pytest.param(lambda: CacheAside({}), id="store"),
    pytest.param(lambda: CacheAside("http://localhost"), id="url"),
    pytest.param(lambda: CacheAside(MemoryStore()).cached("k")(lambda: None), id="function"),  # type: ignore[arg-type, return-value]
    pytest.param(lambda: typed(object()), id="type"),
]


@pytest.mark.parametrize("make", WRONG)
def test_what_cannot_work_is_refused(make: Callable[[], Any]) -> None:
    with pytest.raises(ConfigurationError):
        make()


@pytest.mark.parametrize(
    "wrong",
    [
        {"key": 7},
        {"ttl": -1},
        {"ttl": "1"},
        {"tags": "abc"},
        {"tags": [""]},
        {"serialize": bytes},
        {"fetch_fn": "SELECT 1"},
    ],
    ids=lambda wrong: "-".join([*wrong, str(next(iter(wrong.values())))[:5]]),
)
async def test_call_that_cannot_work_is_refused(wrong: dict[str, Any], make_aside: MakeAside) -> None:
    with pytest.raises(ConfigurationError):
        await make_aside().get(**{"key": "key", "fetch_fn": Database(key=1).fetch(), **wrong})


def test_repr_says_what_it_does() -> None:
    assert repr(CacheAside(MemoryStore(), "users")).startswith("<CacheAside 'users' [0 hits, 0 fetches] over <MemoryS")
