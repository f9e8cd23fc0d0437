"""Write-behind: what is acknowledged is read at once and saved once, in order, whoever is killed and whatever fails."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any, Protocol

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg import sql

from echo_cache import Cache, ConfigurationError, MemoryStore, RedisStore, StoreError, StoreTimeout, TwoLevelStore
from echo_cache.aside import JSON, MSGPACK, CacheAside, DeadLetter, Write, WriteBehindMode
from echo_cache.aside.behind import durable, lanes
from echo_cache.aside.behind.model import Saver, Wire, write_id
from echo_cache.coordination.lease import RENEW
from echo_cache.errors import NotStorable
from echo_cache.events import WriteAbandoned
from tests import redis_support as support
from tests.behind_worker import Ack, Nursery, WorkerProcess, database, prepare, saving
from tests.redis_support import DEADLINE, PATIENT, until
from tests.servers import SERVERS, RedisCluster, RedisServer

reports, server = support.reports, support.server

BASE = "{echo_cache:behind:users}:"
SECRET = "a secret of 16 bytes or more"


class Database:
    """
    A database in memory, whose saver fails or waits when it is told to.

    saved: all that was saved, in order; done: whether that is anything. values: the newest of each key, as the id
    decides. fails: whether a write cannot be saved. gate: what savers wait for.
    """

    def __init__(self) -> None:
        self.saved: list[Write[Any]] = []
        self.values: dict[str, tuple[str, Any]] = {}
        self.attempts: list[Write[Any]] = []
        self.fetched: list[str] = []
        self.fails: Callable[[Write[Any]], bool] = lambda write: False
        self.gate = asyncio.Event()
        self.gate.set()
        self.done = asyncio.Event()

    async def save(self, write: Write[Any]) -> None:
        self.attempts.append(write)
        await self.gate.wait()
        if self.fails(write):
            raise OSError("the database is away")
        self.saved.append(write)
        self.done.set()
        if self.values.get(write.key, ("", None))[0] < write.id:
            self.values[write.key] = write.id, write.value

    def fetch(self, key: str) -> Callable[[], Awaitable[Any]]:
        async def fetch() -> Any:
            self.fetched.append(key)
            return self.values.get(key, ("", None))[1]

        return fetch

    def order(self, key: str) -> list[Any]:
        """Return the values of *key* that were saved, in order."""
        return [write.value for write in self.saved if write.key == key]


@pytest.fixture
def db() -> Database:
    return Database()


class MakeAside(Protocol):
    def __call__(self, url: str | None, **options: Any) -> CacheAside: ...


@pytest.fixture
async def make_aside(reports: list[Any]) -> AsyncIterator[MakeAside]:
    """Make CacheAsides, each with a store of its own, as processes have them; *reports* must be empty at the end."""
    made: list[CacheAside] = []

    def make(url: str | None, **options: Any) -> CacheAside:
        of_store = {name: options.pop(name) for name in ("secret", "timeout") if name in options}
        observers = options.pop("observers", ())
        l2 = None if url is None else RedisStore(url, **{"timeout": PATIENT, **of_store})
        store = MemoryStore() if l2 is None else TwoLevelStore(MemoryStore(), l2)
        made.append(CacheAside(Cache(store, observers=observers), "users", **options))
        return made[-1]

    yield make
    for aside in made:
        await aside.aclose(DEADLINE)
        await aside.cache.aclose()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what failed be tried again at once."""
    monkeypatch.setattr(lanes, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(lanes, "LONGEST_PAUSE", 0.005)


@pytest.fixture
def short_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the writes of one who has gone wait for a moment only."""
    monkeypatch.setattr(durable, "LEASE_SECONDS", 0.3)


async def until_saved(aside: CacheAside) -> None:
    async def nothing_waits() -> bool:
        return (await aside.write_behind_stats()).waiting == 0

    await until(nothing_waits)


async def never() -> Any:
    raise AssertionError("it need not be fetched")


# --- one process ------------------------------------------------------------------------------------------------------


async def test_write_is_acknowledged_before_it_is_saved_and_saved_soon_after(
    redis_url: str, db: Database, make_aside: MakeAside
) -> None:
    aside = make_aside(redis_url)
    save = aside.saver(db.save)
    db.gate.clear()
    first = await aside.write_behind("7", {"name": "Ada"}, save)
    second = await aside.write_behind("7", {"name": "Grace"}, save)
    assert db.saved == []
    stats = await aside.write_behind_stats()
    assert (stats.waiting, stats.saved) == (2, 0)
    assert stats.oldest is not None
    assert stats.oldest < DEADLINE
    db.gate.set()
    await until_saved(aside)
    assert db.saved == [Write("7", {"name": "Ada"}, first, False), Write("7", {"name": "Grace"}, second, False)]
    assert first < second
    assert (await aside.write_behind_stats())[:3] == (0, 0.0, 2)


async def test_nothing_is_left_in_redis_but_the_empty_queue(
    redis_url: str, db: Database, make_aside: MakeAside, redis_server: RedisServer
) -> None:
    aside = make_aside(redis_url)
    save = aside.saver(name="people")(db.save)
    for number in range(20):
        await aside.write_behind(f"{number % 3}", number, save)
    await until_saved(aside)
    await until(lambda: redis_server.command("KEYS", f"{BASE}people:unmarked") == [])
    await aside.aclose()
    assert redis_server.command("KEYS", f"{BASE}*") == [f"{BASE}people:queue"]
    assert redis_server.command("XLEN", f"{BASE}people:queue") in (0, "0")


async def test_reader_that_has_no_savers_reads_what_waits_all_the_same(
    redis_url: str, db: Database, make_aside: MakeAside
) -> None:
    writer, reader = make_aside(redis_url), make_aside(redis_url)
    save = writer.saver(db.save)
    db.gate.clear()
    await writer.write_behind("7", "new", save)
    assert await reader.get("7", never) == "new"
    db.gate.set()
    await until_saved(writer)
    assert await reader.get("7", never) == "new"


async def test_nothing_is_written_behind_where_that_is_turned_off(
    redis_url: str, db: Database, make_aside: MakeAside
) -> None:
    aside = make_aside(redis_url, write_behind=None)
    with pytest.raises(ConfigurationError, match="write_behind=None"):
        aside.saver(db.save)
    with pytest.raises(ConfigurationError, match="write_behind=None"):
        await aside.write_behind("7", "new", db.save)
    with pytest.raises(ConfigurationError, match=r"WriteBehindMode\.MEMORY"):
        make_aside(redis_url, write_behind="memory")


async def test_saver_that_takes_other_arguments_is_refused(db: Database, make_aside: MakeAside) -> None:
    async def save(key: str, value: Any) -> None: ...

    with pytest.raises(ConfigurationError, match="one argument"):
        make_aside(None, write_behind=WriteBehindMode.MEMORY).saver(save)


async def test_key_that_is_too_long_to_be_written_behind_is_refused(
    redis_url: str, db: Database, make_aside: MakeAside
) -> None:
    aside = make_aside(redis_url)
    save = aside.saver(db.save)
    with pytest.raises(ConfigurationError, match="1024 bytes"):
        await aside.write_behind("x" * 1_025, "new", save)


@pytest.mark.parametrize("mode", WriteBehindMode)
async def test_write_that_waits_is_what_is_read(
    mode: WriteBehindMode, redis_url: str, db: Database, make_aside: MakeAside
) -> None:
    aside = make_aside(redis_url, write_behind=mode)
    save = aside.saver(db.save)
    assert await aside.get("7", db.fetch("7")) is None
    db.gate.clear()
    for name in ("Ada", "Grace"):
        await aside.write_behind("7", name, save)
        assert await aside.get("7", never) == name
        assert await aside.get("7", never, ttl=0) == name
        assert await aside.refresh("7", never) == name
    db.gate.set()
    await until_saved(aside)
    if mode is WriteBehindMode.DURABLE:
        assert await aside.get("7", never) == "Grace"  # it is kept
    await aside.invalidate("7")
    assert await aside.get("7", db.fetch("7")) == "Grace"
    assert db.fetched == ["7", "7"]


@pytest.mark.parametrize("mode", WriteBehindMode)
async def test_newest_write_is_read_when_those_before_it_are_saved(
    mode: WriteBehindMode, redis_url: str, db: Database, make_aside: MakeAside
) -> None:
    aside = make_aside(redis_url, write_behind=mode)
    save = aside.saver(db.save)
    away = True
    db.fails = lambda write: away and write.value == "b"
    for name in ("a", "b"):
        await aside.write_behind("7", name, save)

    async def one_waits() -> bool:
        return (await aside.write_behind_stats()).waiting == 1

    await until(one_waits)
    assert db.order("7") == ["a"]
    assert await aside.get("7", never, ttl=0) == "b"
    away = False
    await until_saved(aside)


@pytest.mark.parametrize("mode", WriteBehindMode)
async def test_none_is_written_and_read(
    mode: WriteBehindMode, redis_url: str, db: Database, make_aside: MakeAside
) -> None:
    aside = make_aside(redis_url, write_behind=mode)
    save = aside.saver(db.save)
    db.gate.clear()
    await aside.write_behind("7", "Ada", save)
    await aside.write_behind("7", None, save)
    assert await aside.get("7", never) is None
    db.gate.set()
    await until_saved(aside)
    assert db.order("7") == ["Ada", None]


async def test_writer_who_changes_his_object_later_changes_nothing(db: Database, make_aside: MakeAside) -> None:
    aside = make_aside(None, write_behind=WriteBehindMode.MEMORY)
    save = aside.saver(db.save)
    value = ["a"]
    await aside.write_behind("7", value, save)
    value.append("b")
    await until_saved(aside)
    assert db.order("7") == [["a"]]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("mode", WriteBehindMode)
async def test_failure_holds_up_its_own_key_alone(
    mode: WriteBehindMode, redis_url: str, db: Database, make_aside: MakeAside
) -> None:
    aside = make_aside(redis_url, write_behind=mode)
    save = aside.saver(max_attempts=1_000_000)(db.save)
    away = True
    db.fails = lambda write: away and write.key == "bad"
    for number in range(5):
        await aside.write_behind("bad", number, save)
        await aside.write_behind("good", number, save)
    await until(lambda: db.order("good") == [0, 1, 2, 3, 4])
    await until(lambda: len(db.attempts) > 20)
    assert db.order("bad") == []
    away = False
    await until_saved(aside)
    assert db.order("bad") == [0, 1, 2, 3, 4]
    stats = await aside.write_behind_stats()
    assert (stats.saved, stats.abandoned) == (10, 0)
    assert stats.retried > 10
    repeats = {write.is_repeated for write in db.attempts if write.value == 0 and write.key == "bad"}
    assert repeats == {False, True}


@pytest.mark.parametrize("mode", WriteBehindMode)
async def test_coalesced_writes_of_a_key_are_saved_by_the_newest(
    mode: WriteBehindMode, redis_url: str, db: Database, make_aside: MakeAside
) -> None:
    aside = make_aside(redis_url, write_behind=mode)
    save = aside.saver(coalesce=True)(db.save)
    db.gate.clear()
    await aside.write_behind("7", 0, save)
    await until(lambda: len(db.attempts) == 1)
    for number in range(1, 10):
        await aside.write_behind("7", number, save)
        await aside.write_behind(f"other-{number}", number, save)
    # All are to have come to where they are saved from.
    await until(lambda: f"other-{9}" in {write.key for write in db.attempts} or len(db.attempts) >= 8)
    db.gate.set()
    await until_saved(aside)
    order = db.order("7")
    assert (order[0], order[-1]) == (0, 9)
    stats = await aside.write_behind_stats()
    assert stats.saved + stats.coalesced == 19
    assert order == sorted(order)
    if mode is WriteBehindMode.MEMORY:
        assert (order, stats.coalesced) == ([0, 9], 8)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("mode", WriteBehindMode)
async def test_write_that_fails_too_often_is_given_up_and_told_of(
    mode: WriteBehindMode,
    redis_url: str,
    db: Database,
    make_aside: MakeAside,
    redis_server: RedisServer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    told: list[Any] = []
    aside = make_aside(redis_url, write_behind=mode, observers=[told.append])
    save = aside.saver(max_attempts=3)(db.save)
    db.fails = lambda write: bool(write.value == "bad")
    await aside.write_behind("7", "before", save)
    await until_saved(aside)
    db.gate.clear()
    bad = await aside.write_behind("7", "bad", save)
    assert await aside.get("7", never) == "bad"
    db.gate.set()

    async def is_forgotten() -> bool:
        return bool(await aside.get("7", db.fetch("7")) == "before")

    await until(is_forgotten)
    await until_saved(aside)
    await aside.write_behind("7", "after", save)
    await until_saved(aside)
    assert db.order("7") == ["before", "after"]
    assert len([write for write in db.attempts if write.value == "bad"]) == 3
    stats = await aside.write_behind_stats()
    assert (stats.saved, stats.retried, stats.abandoned) == (2, 2, 1)
    (event,) = [event for event in told if isinstance(event, WriteAbandoned)]
    assert event == WriteAbandoned(("value", "users", None, b"7", b""), 3, "OSError")
    (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert bad in line
    if mode is WriteBehindMode.DURABLE:
        ((_, letter),) = redis_server.command("XRANGE", f"{BASE}save:dead", "-", "+")
        fields = dict(zip(letter[::2], letter[1::2], strict=True))
        assert (write_id(fields["id"].encode()), fields["error"], fields["attempts"]) == (bad, "OSError", "3")
        assert "write" in fields


@pytest.mark.usefixtures("quick")
async def test_dead_letters_can_be_read_written_again_and_dropped(
    redis_url: str, db: Database, make_aside: MakeAside
) -> None:
    aside = make_aside(redis_url)
    save = aside.saver(max_attempts=2)(db.save)
    db.fails = lambda write: True
    ids = [await aside.write_behind(key, value, save) for key, value in (("1", "a"), ("2", "b"), ("3", "c"))]
    await until_saved(aside)
    letters = await aside.dead_letters(save)
    assert sorted(letter.id for letter in letters) == ids
    assert {(letter.error, letter.attempts) for letter in letters} == {("OSError", 2)}
    assert {letter.write for letter in letters} == {
        Write(key, value, id_, is_repeated=True) for key, value, id_ in zip("123", "abc", ids, strict=True)
    }
    assert await aside.dead_letters(save, most=2) == letters[:2]
    assert await aside.dead_letters(save, after=letters[1]) == letters[2:]
    assert await aside.dead_letters(save, after=letters[2]) == []
    db.fails = lambda write: False
    again = letters[0].write
    assert again is not None
    await aside.write_behind(again.key, again.value, save)
    assert await aside.drop_dead_letters(save, letters[:2]) == 2
    assert await aside.drop_dead_letters(save, letters[:2]) == 0
    assert await aside.drop_dead_letters(save, []) == 0
    assert await aside.dead_letters(save) == letters[2:]
    await until_saved(aside)
    assert db.order(again.key) == [again.value]


async def test_dead_letters_are_read_as_what_anybody_may_have_written(
    redis_url: str, db: Database, make_aside: MakeAside, server: Any
) -> None:
    aside = make_aside(redis_url, secret=SECRET)
    save = aside.saver(db.save)
    dead = f"{BASE}save:dead"
    planted: list[dict[Any, Any]] = [
        {"id": "1-1", "error": "OSError", "attempts": "3", "write": b"\xechoe" + bytes(60)},
        {"id": "x", "error": b"\xff\xfe", "attempts": "9" * 5_000, "write": b""},
        {"a": "b", "error": "two\nlines"},
    ]
    for fields in planted:
        server.xadd(dead, fields)
    found = await aside.dead_letters(save)
    assert [(letter.id, letter.attempts, letter.write) for letter in found] == [
        (write_id(b"1-1"), 3, None),
        ("", 0, None),
        ("", 0, None),
    ]
    assert [letter.error for letter in found] == ["OSError", "", ""]
    assert found[0].data == planted[0]["write"]
    assert await aside.drop_dead_letters(save, found) == 3
    for number in range(5):
        server.xadd(dead, {"id": f"1-{number}", "write": b"x" * 500_000})
    assert len(await aside.dead_letters(save)) == 3  # not all at once
    server.delete(dead)
    server.set(dead, "no stream")
    with pytest.raises(StoreError):
        await aside.dead_letters(save)


async def test_dead_letters_are_of_a_saver_and_in_redis(redis_url: str, db: Database, make_aside: MakeAside) -> None:
    aside = make_aside(redis_url)
    with pytest.raises(ConfigurationError, match="is no saver here"):
        await aside.dead_letters(db.save)
    save = aside.saver(db.save)
    with pytest.raises(ConfigurationError, match="most"):
        await aside.dead_letters(save, most=0)
    for foreign in (DeadLetter("other", "", "", 0, None, b"", "1-1"), DeadLetter("save", "", "", 0, None, b"", "x")):
        with pytest.raises(ConfigurationError, match="no dead letter of saver 'save'"):
            await aside.drop_dead_letters(save, [foreign])
        with pytest.raises(ConfigurationError, match="no dead letter of saver 'save'"):
            await aside.dead_letters(save, after=foreign)
    in_memory = CacheAside(MemoryStore(), write_behind=WriteBehindMode.MEMORY)
    save = in_memory.saver(db.save)
    assert await in_memory.dead_letters(save) == []
    assert await in_memory.drop_dead_letters(save, []) == 0


@pytest.mark.usefixtures("quick")
async def test_attempt_that_takes_too_long_or_is_cancelled_within_has_failed(
    make_aside: MakeAside, redis_url: str, db: Database
) -> None:
    aside = make_aside(redis_url)
    attempts: list[str] = []

    @aside.saver(timeout=0.01)
    async def slow(write: Write[str]) -> None:
        attempts.append(write.value)
        if len(attempts) == 1:
            await asyncio.sleep(DEADLINE)
        if len(attempts) == 2:
            raise asyncio.CancelledError
        await db.save(write)

    await aside.write_behind("7", "a", slow)
    await until_saved(aside)
    assert (attempts, db.order("7")) == (["a", "a", "a"], ["a"])


async def test_pauses_are_doubled_up_to_the_longest(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(lanes.random, "uniform", lambda low, high: high)
    monkeypatch.setattr(
        loop, "call_later", lambda pause, call, *args: pauses.append(pause) or loop.call_soon(call, *args)
    )
    db.fails = lambda write: len(db.attempts) < 2000
    aside = CacheAside(MemoryStore(), write_behind=WriteBehindMode.MEMORY)
    save = aside.saver(max_attempts=1_000_000, timeout=1e6)(db.save)
    await aside.write_behind("7", "a", save)
    await db.done.wait()
    monkeypatch.undo()
    await aside.aclose()
    assert [pause for pause in pauses if pause < 1e5][:11] == [
        *(0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6),
        *(30.0, 30.0),
    ]


@pytest.mark.parametrize("mode", WriteBehindMode)
async def test_full_queue_accepts_no_more(
    mode: WriteBehindMode, redis_url: str, db: Database, make_aside: MakeAside
) -> None:
    aside = make_aside(redis_url, write_behind=mode)
    save = aside.saver(max_queue=2)(db.save)
    db.gate.clear()
    await aside.write_behind("7", "a", save)
    await aside.write_behind("7", "b", save)
    with pytest.raises(StoreError, match="the queue of saver 'save' is full: 2 writes wait"):
        await aside.write_behind("7", "c", save)
    assert await aside.get("7", never) == "b"
    db.gate.set()
    await until_saved(aside)
    await aside.write_behind("7", "d", save)
    await until_saved(aside)
    assert db.order("7") == ["a", "b", "d"]


async def test_what_cannot_work_is_said(db: Database, make_aside: MakeAside, redis_url: str) -> None:
    aside = make_aside(None)
    save = aside.saver(db.save)
    with pytest.raises(ConfigurationError, match=r"write_behind=WriteBehindMode\.MEMORY.*lost"):
        await aside.write_behind("7", 1, save)
    assert await aside.get("7", db.fetch("7")) is None
    aside = make_aside(redis_url)
    with pytest.raises(ConfigurationError, match=r"decorate it with @aside\.saver, in all processes"):
        await aside.write_behind("7", 1, db.save)
    save = aside.saver(db.save)
    with pytest.raises(ConfigurationError, match="there is a saver 'save' already"):
        aside.saver(db.save)
    with pytest.raises(ConfigurationError, match="a saver is an async function"):
        aside.saver(name="x")(lambda write: None)  # type: ignore[arg-type,return-value]
    with pytest.raises(ConfigurationError, match="1 to 64 of"):
        aside.saver(name="a b")(db.save)
    for option, value in {"concurrency": 0, "max_attempts": 0, "max_queue": 0, "timeout": 0, "serializer": 3}.items():
        with pytest.raises(ConfigurationError, match=option):
            aside.saver(name="y", **{option: value})(db.save)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="WriteBehindMode"):
        CacheAside(MemoryStore(), write_behind="nowhere")  # type: ignore[arg-type]
    with pytest.raises(NotStorable, match="does not take a object"):
        await aside.write_behind("7", object(), save)
    with pytest.raises(NotStorable, match="bytes at most"):
        await aside.write_behind("7", b"x" * (8 * 1024 * 1024), save)


async def test_what_it_is_doing_is_shown(redis_url: str, db: Database, make_aside: MakeAside) -> None:
    for mode in WriteBehindMode:
        aside = make_aside(redis_url, write_behind=mode)
        save = aside.saver(db.save)
        db.gate.clear()
        await aside.write_behind("7", 1, save)
        await until(lambda: len(db.attempts) == 1)
        db.attempts.clear()
        assert "<Lanes of 'save' [1 writes of 1 keys]>" in repr(aside._behind._queues["save", False])
        assert repr(aside._behind) == f"<WriteBehind {mode} ['save'] [0 saved, 0 abandoned]>"
        db.gate.set()
        await aside.aclose()


# --- several processes ------------------------------------------------------------------------------------------------


async def test_write_is_read_in_another_process_while_it_waits_and_after(
    redis_url: str, db: Database, make_aside: MakeAside
) -> None:
    one, other = make_aside(redis_url), make_aside(redis_url)
    save = one.saver(db.save)
    other.saver(db.save)
    db.values["7"] = "", "old"
    assert await other.get("7", db.fetch("7")) == "old"
    db.gate.clear()
    await one.write_behind("7", "new", save)

    async def is_new() -> bool:
        return bool(await other.get("7", db.fetch("7")) == "new")

    await until(is_new)
    assert db.fetched == ["7"]
    db.gate.set()
    await until_saved(other)
    await other.invalidate("7")
    assert await other.get("7", db.fetch("7")) == "new"


@pytest.mark.usefixtures("short_lease")
@pytest.mark.parametrize("own_redis", SERVERS, indirect=True)
async def test_what_a_process_has_left_is_saved_by_another_with_the_same_ids(
    own_redis: RedisServer, db: Database, make_aside: MakeAside
) -> None:
    one, other = make_aside(own_redis.url), make_aside(own_redis.url)
    save = one.saver(db.save)
    db.gate.clear()
    ids = [await one.write_behind("7", number, save) for number in range(3)]
    await until(lambda: len(db.attempts) >= 1)
    await one.aclose(0)
    assert db.saved == []
    db.gate.set()
    other.saver(db.save)
    async with other:
        await until_saved(other)
    assert [(write.value, write.id) for write in db.saved] == list(enumerate(ids))
    assert db.saved[0].is_repeated


async def test_process_without_the_saver_leaves_its_writes_to_those_with_it(
    redis_url: str, db: Database, make_aside: MakeAside
) -> None:
    one, other = make_aside(redis_url), make_aside(redis_url)
    save = one.saver(db.save)
    db.gate.clear()
    await one.write_behind("7", "a", save)
    await one.aclose(0)
    own = Database()
    another = other.saver(name="another")(own.save)
    await other.write_behind("8", "b", another)
    await until(lambda: own.order("8") == ["b"])
    assert await other.get("7", never) == "a"
    db.gate.set()
    one.cache.start()
    async with one:
        await until_saved(one)
    assert db.order("7") == ["a"]
    assert own.order("7") == []


@pytest.mark.usefixtures("short_lease")
async def test_one_who_has_lost_the_lease_acknowledges_nothing_and_stops(
    redis_url: str, db: Database, make_aside: MakeAside, redis_server: RedisServer
) -> None:
    aside = make_aside(redis_url)
    save = aside.saver(db.save)
    db.gate.clear()
    await aside.write_behind("7", "a", save)
    await aside.write_behind("7", "b", save)
    await until(lambda: len(db.attempts) >= 1)
    redis_server.command("SET", f"{BASE}save:lease", "another")
    db.gate.set()
    queue = aside._behind._queues["save", False]
    await until(lambda: "waits for the lease" in repr(queue))
    assert redis_server.command("XLEN", f"{BASE}save:queue") in (2, "2")
    assert set(db.order("7")) <= {"a"}
    redis_server.command("DEL", f"{BASE}save:lease")
    await until_saved(aside)
    assert db.order("7")[-2:] == ["a", "b"]
    assert db.saved[-2].is_repeated


async def test_lease_is_kept_for_as_long_as_it_takes_to_save(
    redis_url: str, db: Database, make_aside: MakeAside, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Long enough for an event loop that is late.
    monkeypatch.setattr(durable, "LEASE_SECONDS", 2.0)
    aside = make_aside(redis_url)
    save = aside.saver(db.save)
    evaluate = aside._behind._server.evaluate  # type: ignore[union-attr]
    renewals: list[object] = []

    async def watched(script: str, *rest: Any) -> object:
        reply = await evaluate(script, *rest)
        if script == RENEW:
            renewals.append(reply)
        return reply

    monkeypatch.setattr(aside._behind._server, "evaluate", watched)
    db.gate.clear()
    await aside.write_behind("7", "a", save)
    await until(lambda: len(renewals) >= 4)  # of which three are as long as a lease
    db.gate.set()
    await until_saved(aside)
    assert set(renewals) == {1}
    assert len(db.attempts) == 1


@pytest.mark.usefixtures("short_lease")
async def test_save_of_one_who_slept_through_his_lease_comes_late_and_changes_nothing(
    redis_url: str, db: Database, make_aside: MakeAside, redis_server: RedisServer
) -> None:
    one, other = make_aside(redis_url), make_aside(redis_url)
    slept = asyncio.Event()

    @one.saver(name="save")
    async def sleepy(write: Write[str]) -> None:
        # What a process is about to do when it is stopped, it does when it goes on.
        await asyncio.shield(late(write))

    async def late(write: Write[str]) -> None:
        await db.save(write)
        slept.set()

    db.gate.clear()
    await one.write_behind("7", "a", sleepy)
    await one.write_behind("7", "b", sleepy)
    await until(lambda: len(db.attempts) >= 1)
    redis_server.command("DEL", f"{BASE}save:lease")
    others = Database()
    other.saver(name="save")(others.save)
    async with other:
        await until_saved(other)
    assert others.order("7") == ["a", "b"]
    db.values = others.values
    db.gate.set()
    await slept.wait()
    assert set(db.order("7")) == {"a"}
    assert db.values["7"][1] == "b"


async def test_what_waits_in_the_memory_of_one_process_is_read_by_others_once_it_is_saved(
    redis_url: str, db: Database, make_aside: MakeAside
) -> None:
    one, other = [make_aside(redis_url, write_behind=WriteBehindMode.MEMORY) for _ in range(2)]
    save = one.saver(db.save)
    other.saver(db.save)
    db.values["7"] = "", "old"
    db.gate.clear()
    await one.write_behind("7", "new", save)
    # What waits is unknown to the other one, so it keeps what the database has.
    assert await other.get("7", db.fetch("7")) == "old"
    assert await other.get("7", never) == "old"
    db.gate.set()

    async def is_new() -> bool:
        return bool(await other.get("7", db.fetch("7")) == "new")

    await until(is_new)


async def test_one_who_was_killed_before_he_told_the_workers_has_it_told_by_who_saves(
    redis_url: str, db: Database, make_aside: MakeAside, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = make_aside(redis_url), make_aside(redis_url)
    save = one.saver(db.save)
    db.values["7"] = "", "old"
    assert await other.get("7", db.fetch("7")) == "old"

    async def killed(*_: Any) -> Any:
        raise asyncio.CancelledError

    with monkeypatch.context() as patch:
        patch.setattr(one.cache, "invalidate_key", killed)
        db.gate.clear()
        with pytest.raises(asyncio.CancelledError):
            await one.write_behind("7", "new", save)
        await one.aclose(0)
    db.gate.set()
    async with one:
        await until_saved(one)

    async def is_new() -> bool:
        return bool(await other.get("7", db.fetch("7")) == "new")

    await until(is_new)


async def test_writes_of_a_process_that_tells_are_told_once(
    redis_url: str, db: Database, make_aside: MakeAside, redis_server: RedisServer
) -> None:
    one, other = make_aside(redis_url), make_aside(redis_url)
    save = one.saver(db.save)
    db.gate.clear()
    for number in range(10):
        await one.write_behind(f"{number}", number, save)
    await one.aclose(0)
    assert redis_server.command("KEYS", f"{BASE}save:unmarked") == []
    before = int(redis_server.command("XLEN", "{echo_cache:log}"))
    db.gate.set()
    other.saver(db.save)
    async with other:
        await until_saved(other)
    assert int(redis_server.command("XLEN", "{echo_cache:log}")) == before


async def test_write_that_is_saved_before_workers_are_told_is_told_by_its_writer_alone(
    redis_url: str, db: Database, make_aside: MakeAside, monkeypatch: pytest.MonkeyPatch
) -> None:
    aside = make_aside(redis_url)
    save = aside.saver(db.save)
    invalidate = aside.cache.invalidate_key
    told: list[Any] = []

    async def slowly(key: Any) -> Any:
        told.append(key)
        await db.done.wait()
        # If it were acknowledged now, it would be told once more: that must have time to be seen.
        await asyncio.sleep(0.05)
        return await invalidate(key)

    monkeypatch.setattr(aside.cache, "invalidate_key", slowly)
    await aside.write_behind("7", "a", save)
    await until_saved(aside)
    assert len(told) == 1


async def test_it_works_on_a_cluster(cluster: RedisCluster, db: Database, make_aside: MakeAside) -> None:
    aside = make_aside(cluster.url)
    save = aside.saver(db.save)
    db.gate.clear()
    await aside.write_behind("7", "a", save)
    assert await aside.get("7", never) == "a"
    db.gate.set()
    await until_saved(aside)
    assert db.order("7") == ["a"]


# --- trouble ----------------------------------------------------------------------------------------------------------


async def test_without_redis_nothing_is_promised_and_readers_get_what_the_database_has(
    own_redis: RedisServer, db: Database, make_aside: MakeAside
) -> None:
    aside = make_aside(own_redis.url, timeout=0.5)
    save = aside.saver(db.save)
    await aside.write_behind("7", "a", save)
    await until_saved(aside)
    own_redis.kill()
    with pytest.raises(StoreError):
        await aside.write_behind("7", "b", save)
    assert await aside.get("7", db.fetch("7")) == "a"
    assert (await aside.write_behind_stats())[:3] == (None, None, 1)
    own_redis.start()

    async def is_taken() -> bool:
        with contextlib.suppress(StoreError):
            await aside.write_behind("7", "c", save)
            return True
        return False

    await until(is_taken)
    await until(lambda: db.order("7")[-1:] == ["c"])


async def test_a_look_that_fails_while_redis_is_there_keeps_nothing_for_anybody(
    redis_url: str, db: Database, make_aside: MakeAside, monkeypatch: pytest.MonkeyPatch
) -> None:
    aside, other = make_aside(redis_url), make_aside(redis_url)
    save = aside.saver(db.save)
    db.values["7"] = "", "old"
    db.gate.clear()
    await aside.write_behind("7", "new", save)
    for error in (StoreTimeout("too late"), RuntimeError("of whatever kind")):

        async def fails(*_: Any, error: Exception = error) -> None:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(aside._behind, "_newest", fails)
            assert await aside.get("7", db.fetch("7")) == "old"
        for one in (aside, other):
            assert await one.get("7", never) == "new"
            await one.cache.invalidate_key(one._key("7"))
    db.gate.set()
    await until_saved(aside)


async def test_what_may_be_older_than_a_write_that_waits_is_not_kept(
    redis_url: str, db: Database, make_aside: MakeAside, redis_server: RedisServer
) -> None:
    aside = make_aside(redis_url)
    save = aside.saver(serializer=JSON)(db.save)
    db.values["7"] = "", "old"
    db.gate.clear()
    await aside.write_behind("7", "new", save)
    # It reads with another serializer than the write has, so what waits is unknown to it.
    for _ in range(2):
        assert await aside.get("7", db.fetch("7")) == "old"
    assert await aside.refresh("7", db.fetch("7")) == "old"
    assert len(db.fetched) == 3
    db.gate.set()
    await until_saved(aside)
    assert await aside.get("7", db.fetch("7")) == "new"
    redis_server.command("SET", f"{BASE}pending", "no hash")
    for _ in range(2):
        assert await aside.get("8", db.fetch("8")) is None


@pytest.mark.parametrize("secret", [None, SECRET], ids=["unsigned", "signed"])
async def test_what_is_no_write_of_ours_is_put_aside(
    secret: str | None, redis_url: str, db: Database, make_aside: MakeAside, server: Any
) -> None:
    told: list[Any] = []
    aside = make_aside(redis_url, secret=secret, observers=[told.append])
    save = aside.saver(db.save)
    queue = f"{BASE}save:queue"
    stranger = make_aside(redis_url, secret="another secret of some length")
    own = aside._behind._savers["save"]
    forged = stranger._behind._wire.encode(own, b"7", "forged", 1.0)
    moved = aside._behind._wire.encode(replace(own, name="other"), b"7", "moved", 1.0)
    bad = [b"", b"x" * 100, forged, moved, b"\xechoe" + bytes(60)]
    for raw in bad:
        server.xadd(queue, {"write": raw})
    server.xadd(queue, {"a": "1", "b": "2"})
    id_ = server.xadd(queue, {"write": bad[1]}).decode()
    server.hset(f"{BASE}pending", durable.digest_of(b"7"), f"{id_} save")
    assert await aside.get("7", db.fetch("7")) is None
    await aside.write_behind("7", "mine", save)
    await until_saved(aside)
    assert db.order("7") == ["mine"]
    assert (await aside.write_behind_stats()).abandoned == 7
    events = [event for event in told if isinstance(event, WriteAbandoned)]
    assert {event.key for event in events} == {None}
    assert {event.error for event in events} == ({"CodecError"} if secret is None else {"CodecError", "ForgedError"})
    assert server.xlen(f"{BASE}save:dead") == 7


async def test_value_that_does_not_decode_is_tried_again_as_others_may_be_able_to(
    redis_url: str, db: Database, make_aside: MakeAside, quick: None
) -> None:
    one, other = make_aside(redis_url), make_aside(redis_url)
    save = one.saver(serializer=JSON)(db.save)
    db.gate.clear()
    await one.write_behind("7", "a", save)
    await one.aclose(0)
    other.saver(max_attempts=1_000_000)(db.save)
    async with other:
        await until(lambda: other._behind._counters.retried > 3)
    db.gate.set()
    async with one:
        await until_saved(one)
    assert db.order("7") == ["a"]


async def test_queue_that_is_lost_is_made_anew(
    redis_url: str, db: Database, make_aside: MakeAside, redis_server: RedisServer
) -> None:
    aside = make_aside(redis_url)
    save = aside.saver(db.save)
    await aside.write_behind("7", "a", save)
    await until_saved(aside)
    redis_server.command("DEL", f"{BASE}save:queue")
    await aside.write_behind("7", "b", save)
    await until(lambda: db.order("7") == ["a", "b"])


# --- the end ----------------------------------------------------------------------------------------------------------


async def test_at_the_end_what_is_under_way_is_finished_and_the_rest_stays(
    redis_url: str, db: Database, make_aside: MakeAside, redis_server: RedisServer
) -> None:
    aside = make_aside(redis_url)
    save = aside.saver(db.save)
    db.gate.clear()
    for number in range(3):
        await aside.write_behind("7", number, save)
    await until(lambda: len(db.attempts) == 1)
    closing = asyncio.ensure_future(aside.aclose(DEADLINE))
    await asyncio.sleep(0)
    db.gate.set()
    await closing
    assert db.order("7") == [0]
    assert redis_server.command("XLEN", f"{BASE}save:queue") in (2, "2")
    assert redis_server.command("EXISTS", f"{BASE}save:lease") in (0, "0")


async def test_end_that_comes_at_once_is_not_waited_for(redis_url: str, db: Database, make_aside: MakeAside) -> None:
    for mode in WriteBehindMode:
        aside = make_aside(redis_url, write_behind=mode)
        aside.saver(db.save)
        for turns in range(30):
            async with asyncio.timeout(DEADLINE):
                await aside.__aenter__()
                for _ in range(turns):
                    await asyncio.sleep(0)
                await aside.aclose(1e6)


async def test_what_waits_in_memory_is_saved_at_the_end(db: Database, make_aside: MakeAside) -> None:
    aside = make_aside(None, write_behind=WriteBehindMode.MEMORY)
    save = aside.saver(db.save)
    db.fails = lambda write: len(db.attempts) < 3
    for number in range(50):
        await aside.write_behind(f"{number % 3}", number, save)
    await aside.aclose(DEADLINE)
    assert sorted(write.value for write in db.saved) == list(range(50))
    assert (await aside.write_behind_stats()).lost == 0
    await aside.write_behind("7", "again", save)
    await aside.aclose(DEADLINE)
    assert db.order("7") == ["again"]


async def test_what_is_lost_with_memory_is_counted_and_logged(
    db: Database, make_aside: MakeAside, caplog: pytest.LogCaptureFixture
) -> None:
    aside = make_aside(None, write_behind=WriteBehindMode.MEMORY)
    save = aside.saver(db.save)
    db.gate.clear()
    for number in range(5):
        await aside.write_behind("7", number, save)
    await aside.aclose(0.01)
    stats = await aside.write_behind_stats()
    assert (stats.waiting, stats.lost) == (0, 5)
    assert "5 writes of saver 'save' were in memory at the end, and are lost" in caplog.text
    assert await aside.get("7", db.fetch("7")) is None


@pytest.mark.parametrize("mode", WriteBehindMode)
def test_what_one_event_loop_has_left_is_saved_in_the_next(mode: WriteBehindMode, redis_url: str) -> None:
    db = Database()
    aside = CacheAside(RedisStore(redis_url, timeout=PATIENT), "users", write_behind=mode)
    save = aside.saver(db.save)

    async def first() -> None:
        db.gate = asyncio.Event()
        for number in range(3):
            await aside.write_behind("7", number, save)
        if mode is WriteBehindMode.DURABLE:
            await aside.aclose(0)
        else:
            await aside.cache.aclose()

    async def second() -> None:
        db.gate.set()
        async with aside:
            await until_saved(aside)

    asyncio.run(first())
    asyncio.run(second())
    assert db.order("7") == [0, 1, 2]


# --- properties -------------------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(
    keys=st.lists(st.sampled_from("abc"), max_size=25),
    failures=st.sets(st.integers(0, 60)),
    coalesce=st.booleans(),
    concurrency=st.integers(1, 3),
)
def test_each_key_is_saved_in_order_to_its_newest(
    keys: list[str], failures: set[int], coalesce: bool, concurrency: int
) -> None:
    async def run() -> None:
        db = Database()
        db.fails = lambda write: len(db.attempts) in failures
        aside = CacheAside(MemoryStore(), write_behind=WriteBehindMode.MEMORY)
        save = aside.saver(coalesce=coalesce, concurrency=concurrency)(db.save)
        written: dict[str, list[int]] = defaultdict(list)
        for number, key in enumerate(keys):
            await aside.write_behind(key, number, save)
            written[key].append(number)
        await aside.aclose(DEADLINE)
        for key, values in written.items():
            order = db.order(key)
            assert order == sorted(set(order))
            assert order[-1] == values[-1]
            assert coalesce or order == values

    pauses = lanes.FIRST_PAUSE
    lanes.FIRST_PAUSE = 0.0  # type: ignore[misc]
    try:
        asyncio.run(run())
    finally:
        lanes.FIRST_PAUSE = pauses  # type: ignore[misc]


@given(raw=st.binary(max_size=300), at=st.integers(0, 400), bit=st.integers(0, 7), value=st.none() | st.text())
def test_bytes_are_a_write_of_ours_or_none(raw: bytes, at: int, bit: int, value: str | None) -> None:
    saver = Saver("save", Database().save, MSGPACK, False, 1, 1, 1, 1.0)
    for secrets in ((), (b"s" * 32,)):
        wire = Wire("users", 1000, secrets)
        assert wire.waiting("save", b"1-1", raw, is_repeated=False).key is None
        ours = wire.encode(saver, b"7", value, 1.0)
        assert wire.waiting("save", b"1-1", ours, is_repeated=False).key == b"7"
        assert wire.value("save", b"7", ours, MSGPACK) == value
        changed = bytearray(ours)
        changed[at % len(ours)] ^= 1 << bit
        assert wire.waiting("save", b"1-1", bytes(changed), is_repeated=False).trouble in ("CodecError", "ForgedError")
        assert wire.waiting("other", b"1-1", ours, is_repeated=False).key is None


@given(ids=st.lists(st.tuples(st.integers(0, 2**48 - 1), st.integers(0, 2**64 - 1)), min_size=2, max_size=5))
def test_ids_of_writes_compare_as_those_of_the_stream(ids: list[tuple[int, int]]) -> None:
    made = [write_id(b"%d-%d" % one) for one in ids]
    assert sorted(made) == [write_id(b"%d-%d" % one) for one in sorted(ids)]
    assert {len(one) for one in made} == {32}


# --- a real database --------------------------------------------------------------------------------------------------


def history(url: str, name: str) -> tuple[dict[str, list[tuple[str, int]]], dict[str, tuple[int, str, int]]]:
    """Return the writes of each key in the order in which they were saved, and what each key has in the end."""
    writes: dict[str, list[tuple[str, int]]] = defaultdict(list)
    with psycopg.connect(url) as connection:
        words = sql.SQL("SELECT key, write_id, value FROM {} ORDER BY at").format(sql.Identifier(f"{name}_history"))
        for key, id_, value in connection.execute(words):
            writes[key].append((id_.hex, value))
        words = sql.SQL("SELECT key, value, write_id, changes FROM {}").format(sql.Identifier(f"{name}_newest"))
        newest = {key: (value, id_.hex, changes) for key, value, id_, changes in connection.execute(words)}
    return writes, newest


def assert_all_saved(url: str, name: str, acks: list[Ack]) -> None:
    """Each acknowledged write is there, per key in order, and took effect once."""
    writes, newest = history(url, name)
    assert {(ack.key, ack.id, ack.value) for ack in acks} <= {
        (key, *write) for key, some in writes.items() for write in some
    }
    for key, some in writes.items():
        assert some == sorted(some), key
        assert [value for _, value in some] == sorted(value for _, value in some), key
        assert newest[key] == (some[-1][1], some[-1][0], len(some))


@pytest.mark.timeout(240)
@pytest.mark.usefixtures("short_lease")
async def test_ten_processes_killed_amid_ten_thousand_writes_lose_none(
    own_redis: RedisServer, postgres_url: str
) -> None:
    name, acks, lot = f"kill_{uuid.uuid4().hex[:8]}", list[Ack](), random.Random()

    def write_and_kill(worker: WorkerProcess, first: int, goal: int) -> None:
        for ack in worker.write(first):
            acks.append(ack)
            if len(acks) >= goal:
                worker.kill()

    async with database(postgres_url) as pool:
        await prepare(pool, name)
        with Nursery() as nursery, contextlib.ExitStack() as stack:
            # The next one is there already, and saves what this one has left.
            workers = [stack.enter_context(nursery.worker(own_redis.url, postgres_url, name))]
            for number in range(10):
                workers.append(stack.enter_context(nursery.worker(own_redis.url, postgres_url, name)))
                goal = 10_000 if number == 9 else 1_000 * (number + 1) + lot.randint(-400, 400)
                await asyncio.to_thread(write_and_kill, workers[number], 100_000 * number, goal)
        assert len(acks) >= 10_000
        async with CacheAside(RedisStore(own_redis.url, timeout=PATIENT), "killed") as aside:
            saving(aside, pool, name)
            async with aside:
                await until_saved(aside)
                assert (await aside.write_behind_stats()).abandoned == 0
    assert own_redis.command("HLEN", "{echo_cache:behind:killed}:pending") in (0, "0")
    assert_all_saved(postgres_url, name, acks)


@pytest.mark.parametrize("seconds", [0, 10], ids=["for ten attempts", "for ten seconds"])
async def test_database_that_is_down_delays_and_loses_nothing(
    seconds: int, redis_url: str, postgres_url: str, make_aside: MakeAside, request: pytest.FixtureRequest
) -> None:
    if not seconds:
        request.getfixturevalue("quick")
    name = f"down_{uuid.uuid4().hex[:8]}"
    own = psycopg.conninfo.make_conninfo(postgres_url, dbname=name)

    def admin(*words: str) -> None:
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            for each in words:
                connection.execute(sql.SQL(each).format(sql.Identifier(name), sql.Literal(name)))

    admin("CREATE DATABASE {0}")
    acks: list[Ack] = []
    aside = make_aside(redis_url)

    async def write(numbers: range) -> None:
        for number in numbers:
            key = f"k{number % 5}"
            acks.append(Ack(key, await aside.write_behind(key, number, save), number))

    async with database(own, timeout=0.2) as pool:
        await prepare(pool, name)
        # For ten seconds with the pauses and the attempts that a saver has by default.
        save = saving(aside, pool, name, **({} if seconds else {"max_attempts": 1_000_000}))
        await write(range(50))
        admin(
            "ALTER DATABASE {0} ALLOW_CONNECTIONS false",
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = {1}",
        )
        for second in range(max(seconds, 1)):
            await write(range(50 + 50 * second, 100 + 50 * second))
            await asyncio.sleep(1 if seconds else 0)
        await until(lambda: aside._behind._counters.retried >= 10)
        assert ((await aside.write_behind_stats()).waiting or 0) >= 50
        assert await aside.get("k4", never) == acks[-1].value
        admin("ALTER DATABASE {0} ALLOW_CONNECTIONS true")
        await until_saved(aside)
        assert (await aside.write_behind_stats()).abandoned == 0
    assert_all_saved(own, name, acks)
    admin("DROP DATABASE {0} WITH (FORCE)")
