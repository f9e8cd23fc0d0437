"""The recipes: what is asked of the classifier, which sessions are there, and what the examples print."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib.util
import time
import unicodedata
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import httpx
import msgpack
import pytest
import redis
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from echo_cache import (
    Cache,
    ConfigurationError,
    CoordinationOptions,
    EchoCacheError,
    MemoryStore,
    RedisStore,
    StoreError,
    TwoLevelStore,
)
from echo_cache.aside import JSON, typed
from echo_cache.errors import NotStorable
from echo_cache.recipes import (
    CHECKPOINT_TTL,
    INTENT_TTL,
    RATE_LIMIT_WINDOW,
    SESSION_TTL,
    IntentCache,
    SessionCache,
    SessionStats,
)
from echo_cache.recipes.intents import intent_key, normalised
from echo_cache.testing import ManualClock
from tests.redis_support import PATIENT, LyingServer, MakeStore, Recorder, make_store, server, until
from tests.servers import RedisServer
from tests.test_examples import ROOT, run

__all__ = ["make_store", "server"]  # fixtures

SECRET, OTHER_SECRET = "a secret of the tests", "another secret of theirs"
ID = "Zm9yIHRoZSB0ZXN0cyBvZiBzZXNzaW9ucyBvbmx5"


def test_presets_are_those_of_the_documentation() -> None:
    assert (CHECKPOINT_TTL, INTENT_TTL, SESSION_TTL, RATE_LIMIT_WINDOW) == (3600, 300, 1800, 60)


# --- intents: keys ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param("Book a flight", "book a FLIGHT", id="case"),
        pytest.param("  book\ta \n flight ", "book a flight", id="white-space"),
        pytest.param("book\u00a0a\u2003flight", "book a flight", id="white-space-of-unicode"),
        pytest.param("caf\u00e9", "cafe\u0301", id="composition"),
        pytest.param("\uff42\uff4f\uff4f\uff4b", "book", id="width"),
        pytest.param("\ufb01nd", "find", id="ligature"),
        pytest.param("STRASSE", "stra\u00dfe", id="folding-that-lengthens"),
        pytest.param(
            "\u03a3\u03af\u03c3\u03c5\u03c6\u03bf\u03c2", "\u03a3\u038a\u03a3\u03a5\u03a6\u039f\u03a3", id="sigma"
        ),
        pytest.param("\U0001d400\uff22c", "abc", id="upper-case-of-another-width"),
        pytest.param("", " \n", id="empty"),
    ],
)
def test_messages_that_differ_in_spelling_only_share_a_key(one: str, other: str) -> None:
    assert intent_key(one, "1", "", "") == intent_key(other, "1", "", "")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param("no", "no?", id="punctuation"),
        pytest.param("fine", "fine \U0001f620", id="emoji"),
        pytest.param("resume", "r\u00e9sum\u00e9", id="accent"),
        pytest.param("now here", "nowhere", id="white-space-inside"),
        pytest.param("\U0001f468\u200d\U0001f469", "\U0001f468\U0001f469", id="joiner"),
        pytest.param("A" + "a" * 1000, "a" * 1001, id="case-of-a-long-message"),
    ],
)
def test_messages_that_differ_otherwise_do_not(one: str, other: str) -> None:
    assert intent_key(one, "1", "", "") != intent_key(other, "1", "", "")


def test_key_is_the_sha256_of_the_parts_each_after_its_length() -> None:
    parts = [b"book a flight", b"v7", b"acme", b"de-CH"]
    expected = hashlib.sha256(b"".join(len(part).to_bytes(8, "big") + part for part in parts)).hexdigest()
    assert intent_key(" Book a  FLIGHT", "v7", "acme", "de-CH") == expected
    assert expected == "920dc9d25834c6a173d4ef9e8de0fffa8045f03b6b2907ea77872b57b411ab13"


@given(st.text())
@example("\u0345\u0300")
@example("\u1e96")
@example("\u1e9b\u0323\u00a0")
def test_normalising_is_done_once_and_for_all(message: str) -> None:
    once = normalised(message)
    assert normalised(once) == once
    assert unicodedata.is_normalized("NFKC", once)
    assert normalised(unicodedata.normalize("NFD", message)) == once
    assert normalised(unicodedata.normalize("NFKC", message)) == once


# Few letters, and many places to cut: what is joined without lengths collides soon.
_PART = st.text("ab\0:1", max_size=3)


@given(st.tuples(_PART, _PART, _PART, _PART), st.tuples(_PART, _PART, _PART, _PART))
@example(("a", "b", "", ""), ("", "ab", "", ""))
@example(("a", "", "b", ""), ("a", "", "", "b"))
def test_keys_never_collide(one: tuple[str, str, str, str], other: tuple[str, str, str, str]) -> None:
    assert (intent_key(*one) == intent_key(*other)) == (one == other)


@given(st.text(st.characters(), max_size=50))
@example("\ud800 lone")
def test_any_text_has_a_key(message: str) -> None:
    assert len(intent_key(message, message, message, message)) == 64


def test_long_message_of_combining_marks_costs_no_time_to_normalise() -> None:
    marks = "\u0301\u0323" * 500_000
    assert normalised(marks) is marks  # to sort a million marks takes minutes
    assert normalised(marks[:1000]) != marks[:1000]


# --- intents: answers -------------------------------------------------------------------------------------------------


class Classifier:
    """Answers with an intent of its own each time, and notes what it was asked. It waits for `gate`."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: Exception | None = None
        self.answer: Callable[[int], Any] = lambda count: {"intent": f"number {count}"}

    async def __call__(self, message: str) -> Any:
        self.asked.append(message)
        count = len(self.asked)
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return self.answer(count)


@pytest.fixture
async def classifier() -> Classifier:
    return Classifier()


@pytest.fixture
async def intents() -> AsyncIterator[IntentCache]:
    async with IntentCache(MemoryStore(), version="1") as found:
        yield found


async def test_message_is_classified_once_and_the_classifier_gets_it_as_it_came(
    intents: IntentCache, classifier: Classifier
) -> None:
    first = await intents.get_or_classify(" Where is my ORDER?", classifier)
    assert first == {"intent": "number 1"}
    assert await intents.get_or_classify("where is my order?", classifier) == first
    assert classifier.asked == [" Where is my ORDER?"]
    assert repr(intents).startswith("<IntentCache version '1' over <CacheAside 'intent' [1 hits, 1 fetches]")


@pytest.mark.parametrize(
    "other",
    [{"version": "2"}, {"tenant": "acme"}, {"locale": "de"}],
    ids=["version", "tenant", "locale"],
)
async def test_other_version_tenant_or_locale_is_classified_anew(
    intents: IntentCache, classifier: Classifier, other: dict[str, str]
) -> None:
    first = await intents.get_or_classify("hello", classifier)
    second = await intents.get_or_classify("hello", classifier, **other)
    assert second == {"intent": "number 2"}
    assert await intents.get_or_classify("hello", classifier) == first
    async with IntentCache(intents.aside.cache, **{"version": "1", **other}) as like_it:
        assert await like_it.get_or_classify("hello", classifier) == second
        assert await like_it.get_or_classify("hello", classifier, version="1", tenant="", locale="") == first
    assert len(classifier.asked) == 2


async def test_answer_is_kept_for_its_ttl(classifier: Classifier) -> None:
    clock = ManualClock()
    async with Cache(MemoryStore(clock=clock), clock=clock) as cache:
        for options, ttl in ({}, 300), ({"ttl": 7, "tenant": "acme"}, 7):
            intents = IntentCache(cache, version="1", **options)
            asked = len(classifier.asked)
            await intents.get_or_classify("hello", classifier)
            clock.advance(ttl - 1)
            await intents.get_or_classify("hello", classifier)
            assert len(classifier.asked) == asked + 1
            clock.advance(1)
            await intents.get_or_classify("hello", classifier)
            assert len(classifier.asked) == asked + 2


async def test_failure_reaches_the_caller_and_is_not_kept(intents: IntentCache, classifier: Classifier) -> None:
    classifier.error = RuntimeError("the model is away")
    for _ in range(2):
        with pytest.raises(RuntimeError, match="the model is away"):
            await intents.get_or_classify("hello", classifier)
    classifier.error = None
    assert await intents.get_or_classify("hello", classifier) == {"intent": "number 3"}
    assert await intents.get_or_classify("hello", classifier) == {"intent": "number 3"}


async def test_classifier_that_is_not_async_is_named(intents: IntentCache) -> None:
    with pytest.raises(ConfigurationError, match="classifier must be an async function"):
        await intents.get_or_classify("hello", lambda message: {"intent": message})  # type: ignore[arg-type,return-value]


async def test_redis_is_not_asked_for_intents_that_wait_to_be_saved_as_none_can(intents: IntentCache) -> None:
    async def save(write: Any) -> None:
        raise AssertionError

    with pytest.raises(ConfigurationError, match="nothing is written behind"):
        intents.aside.saver(save)


async def test_redis_that_is_gone_costs_one_call_of_the_model_for_a_message(
    own_redis: RedisServer, classifier: Classifier
) -> None:
    store = TwoLevelStore(MemoryStore(), RedisStore(own_redis.url, timeout=PATIENT))
    cache = Cache(store, coordination=CoordinationOptions(max_unsynced=600))
    async with IntentCache(cache, version="1") as intents:
        await intents.get_or_classify("before", classifier)
        own_redis.kill()
        for _ in range(5):
            await intents.get_or_classify("hello", classifier)
        assert classifier.asked == ["before", "hello"]
    await cache.aclose(0.1)


async def test_none_is_no_answer_and_not_kept(intents: IntentCache, classifier: Classifier) -> None:
    classifier.answer = lambda count: None if count == 1 else ""
    assert await intents.get_or_classify("hm", classifier) is None
    assert await intents.get_or_classify("hm", classifier) == ""
    assert await intents.get_or_classify("hm", classifier) == ""
    assert len(classifier.asked) == 2


async def test_many_callers_at_once_are_one_classification(intents: IntentCache, classifier: Classifier) -> None:
    classifier.gate.clear()
    calls = [
        asyncio.ensure_future(intents.get_or_classify("Hello" if n % 2 else "hello", classifier)) for n in range(50)
    ]
    await until(lambda: len(classifier.asked) == 1)
    classifier.gate.set()
    answers = await asyncio.gather(*calls)
    assert answers == [{"intent": "number 1"}] * 50
    assert len(classifier.asked) == 1


async def test_answer_can_be_forgotten_by_its_key(intents: IntentCache, classifier: Classifier) -> None:
    await intents.get_or_classify("hello", classifier, tenant="acme")
    await intents.aside.invalidate(intents.key("HELLO", tenant="acme"))
    assert await intents.get_or_classify("hello", classifier, tenant="acme") == {"intent": "number 2"}


@dataclass
class Intent:
    name: str
    score: float


async def test_answers_of_a_type_come_back_as_that_type(classifier: Classifier) -> None:
    classifier.answer = lambda count: Intent("refund", 0.5)
    async with IntentCache(MemoryStore(), version="1", serializer=typed(Intent)) as intents:
        assert await intents.get_or_classify("hello", classifier) == Intent("refund", 0.5)
        assert await intents.get_or_classify("hello", classifier) == Intent("refund", 0.5)
    assert len(classifier.asked) == 1


async def test_workers_share_answers_and_no_message_is_in_redis(
    redis_url: str, classifier: Classifier, server: Any
) -> None:
    for _ in range(2):
        store = TwoLevelStore(MemoryStore(), RedisStore(redis_url, timeout=PATIENT))
        async with IntentCache(store, version="1", tenant="acme-tenant") as intents:
            answer = await intents.get_or_classify("my password is hunter2", classifier)
            assert answer == {"intent": "number 1"}
    assert len(classifier.asked) == 1
    names = server.keys("*")
    everything = b" ".join(names) + b" ".join(server.get(name) for name in names if server.type(name) == b"string")
    assert b"number 1" in everything
    assert b"hunter2" not in everything
    assert b"acme-tenant" not in everything


@pytest.mark.parametrize("wrong", [None, 7, b"bytes"])
async def test_what_is_no_text_is_refused(intents: IntentCache, classifier: Classifier, wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match="message must be text"):
        await intents.get_or_classify(wrong, classifier)
    with pytest.raises(ConfigurationError, match="version must be text"):
        IntentCache(MemoryStore(), version=wrong)
    with pytest.raises(ConfigurationError, match="tenant must be text"):
        IntentCache(MemoryStore(), version="1", tenant=wrong)
    assert classifier.asked == []


# --- sessions ---------------------------------------------------------------------------------------------------------


@pytest.fixture
async def store(redis_url: str, make_store: MakeStore) -> RedisStore:
    return make_store(redis_url, secret=SECRET)


@pytest.fixture
async def sessions(store: RedisStore) -> SessionCache:
    return SessionCache(store)


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time of the workers, in a list of one."""
    found = [time.time()]
    monkeypatch.setattr("echo_cache.recipes.sessions.time.time", lambda: found[0])
    return found


def name_of(session_id: str = ID, prefix: str = "session") -> str:
    return f"echo_cache:session:1:{prefix}:{{{hashlib.sha256(session_id.encode()).hexdigest()}}}"


async def test_state_is_read_as_it_was_written_and_shares_nothing(sessions: SessionCache) -> None:
    state = {"user": 7, "cart": [1, 2], "raw": b"\0\xff", "none": None}
    assert await sessions.get(ID) is None
    assert await sessions.set(ID, state)
    read = await sessions.get(ID)
    assert read == state
    assert read is not None
    read["cart"].append(3)
    assert await sessions.get(ID) == state
    assert await sessions.get("another" + ID) is None
    assert sessions.stats() == SessionStats(hits=2, misses=2, rejected=0, failures=0)
    assert repr(sessions).endswith("echo_cache:session:session [2 hits, 2 misses | 0 rejected, 0 failures]>")


async def test_read_and_touch_are_one_round_trip(redis_url: str, make_store: MakeStore) -> None:
    async with Recorder(redis_url) as recorder:
        sessions = SessionCache(make_store(recorder.client))
        await sessions.set(ID, {"n": 1})
        await sessions.get(ID)
        recorder.taken()
        assert await sessions.get(ID) == {"n": 1}
        assert recorder.taken() == ["EVALSHA"]
        assert await sessions.get("none") is None
        assert recorder.taken() == ["EVALSHA"]
        await sessions.set(ID, {"n": 2})
        assert recorder.taken() == ["MGET", "EVALSHA"]
        await SessionCache(sessions._store, max_age=None).set(ID, {"n": 3})
        assert recorder.taken() == ["EVALSHA"]


@pytest.mark.parametrize(("options", "ttl"), [({}, 1800), ({"ttl": 90}, 90)], ids=["default", "given"])
async def test_session_lives_on_while_it_is_read(
    store: RedisStore, server: Any, options: dict[str, Any], ttl: float
) -> None:
    sessions = SessionCache(store, **options)
    await sessions.set(ID, {"n": 1})
    assert (ttl - 60) * 1000 < server.pttl(name_of()) <= ttl * 1000
    server.pexpire(name_of(), 20_000)
    assert await sessions.get(ID) == {"n": 1}
    assert (ttl - 60) * 1000 < server.pttl(name_of()) <= ttl * 1000
    server.pexpire(name_of(), 20_000)
    await sessions.set(ID, {"n": 2})
    assert (ttl - 60) * 1000 < server.pttl(name_of()) <= ttl * 1000


async def test_session_that_is_not_read_ends(store: RedisStore, server: Any) -> None:
    sessions = SessionCache(store, ttl=0.05)
    await sessions.set(ID, {"n": 1})
    await until(lambda: not server.exists(name_of()))
    assert await sessions.get(ID) is None


async def test_session_ends_at_its_max_age_however_often_it_is_used(
    store: RedisStore, server: Any, now: list[float]
) -> None:
    sessions = SessionCache(store, max_age=7200)
    await sessions.set(ID, {"n": 0})
    for n in range(1, 8):
        now[0] += 900
        assert await sessions.get(ID) == {"n": n - 1}
        assert await sessions.set(ID, {"n": n})
    assert server.pttl(name_of()) <= 900_000
    now[0] += 890
    assert await sessions.get(ID) == {"n": 7}
    assert server.pttl(name_of()) <= 10_000
    now[0] += 10
    assert await sessions.get(ID) is None
    assert not server.exists(name_of())
    # Whoever comes with that id begins anew.
    assert await sessions.set(ID, {"n": 8})
    assert await sessions.get(ID) == {"n": 8}


async def test_session_of_its_max_age_is_none_even_if_redis_keeps_it(
    store: RedisStore, server: Any, now: list[float]
) -> None:
    sessions = SessionCache(store, max_age=7200)
    await sessions.set(ID, {"n": 0})
    value = server.get(name_of())
    now[0] += 7200
    server.set(name_of(), b"9999999999999" + value[13:])
    assert await sessions.get(ID) is None


async def test_default_max_age_is_a_day_and_none_is_without_end(store: RedisStore, now: list[float]) -> None:
    for options, is_there in ({}, False), ({"max_age": None}, True):
        sessions = SessionCache(store, **options)
        await sessions.set(ID, {"n": 1})
        now[0] += 86_400
        assert (await sessions.get(ID) is not None) == is_there


async def test_deleted_session_is_gone_and_does_not_come_back(sessions: SessionCache, server: Any) -> None:
    await sessions.set(ID, {"user": 7})
    state = await sessions.get(ID)
    assert await sessions.delete(ID)
    assert await sessions.get(ID) is None
    # A request that was under way at log-out.
    assert not await sessions.set(ID, state)
    assert await sessions.get(ID) is None
    assert not await sessions.delete(ID)
    assert 240_000 < server.pttl(name_of()) <= 300_000
    assert sessions.stats().rejected == 0
    server.delete(name_of())  # as five minutes later
    assert await sessions.set(ID, {"user": 8})


async def test_id_is_not_in_redis_and_names_are_plain(sessions: SessionCache, server: Any) -> None:
    await sessions.set(ID, {"user": 7})
    (name,) = server.keys("*")
    assert name.decode() == name_of()
    assert ID.encode() not in server.get(name)


async def test_clearing_the_cache_ends_no_session(store: RedisStore, sessions: SessionCache) -> None:
    await sessions.set(ID, {"user": 7})
    await store.clear()
    assert await sessions.get(ID) == {"user": 7}


async def test_prefixes_part_sessions(store: RedisStore, sessions: SessionCache, server: Any) -> None:
    admins = SessionCache(store, prefix="admin")
    await sessions.set(ID, {"user": 7})
    assert await admins.get(ID) is None
    server.copy(name_of(), name_of(prefix="admin"))
    assert await admins.get(ID) is None
    assert admins.stats().rejected == 1


async def test_none_is_the_state_of_no_session(sessions: SessionCache) -> None:
    with pytest.raises(NotStorable, match="no session"):
        await sessions.set(ID, None)
    assert await sessions.set(ID, {})
    assert await sessions.get(ID) == {}


async def test_values_are_of_a_serializer(store: RedisStore, sessions: SessionCache) -> None:
    as_json, as_intent = SessionCache(store, serializer=JSON), SessionCache(store, serializer=typed(Intent))
    await sessions.set(ID, 1)
    assert await as_json.get(ID) is None
    assert await as_intent.set(ID, Intent("refund", 0.5))
    assert await as_intent.get(ID) == Intent("refund", 0.5)
    assert await as_json.get(ID) is None


@pytest.mark.parametrize(
    "state", [object(), {"f": len}, "\ud800", b"x" * 2000], ids=["object", "deep", "text", "large"]
)
async def test_state_that_cannot_be_kept_is_refused_and_the_old_one_stays(
    redis_url: str, make_store: MakeStore, state: Any
) -> None:
    sessions = SessionCache(make_store(redis_url, max_body_bytes=1000))
    await sessions.set(ID, {"n": 1})
    with pytest.raises(NotStorable):
        await sessions.set(ID, state)
    assert await sessions.get(ID) == {"n": 1}


# --- sessions: hostile values -----------------------------------------------------------------------------------------


async def test_session_copied_to_another_id_is_none(sessions: SessionCache, server: Any) -> None:
    await sessions.set("the admin's", {"user": 1})
    server.copy(name_of("the admin's"), name_of("the thief's"))
    assert await sessions.get("the thief's") is None
    assert sessions.stats() == SessionStats(hits=0, misses=1, rejected=1, failures=0)


async def test_each_changed_byte_of_a_signed_session_is_a_miss(sessions: SessionCache, server: Any) -> None:
    await sessions.set(ID, {"user": 7})
    value = server.get(name_of())
    for at in range(13, len(value)):
        server.set(name_of(), value[:at] + bytes([value[at] ^ 1]) + value[at + 1 :])
        assert await sessions.get(ID) is None, at
    assert sessions.stats().rejected == len(value) - 13


async def test_secrets_decide_what_is_believed(redis_url: str, make_store: MakeStore) -> None:
    async def reads(writer: Any, reader: Any) -> bool:
        await SessionCache(make_store(redis_url, secret=writer)).set(ID, {"user": 7})
        return await SessionCache(make_store(redis_url, secret=reader)).get(ID) is not None

    assert await reads(SECRET, SECRET)
    assert await reads(SECRET, [OTHER_SECRET, SECRET])
    assert not await reads(SECRET, OTHER_SECRET)
    assert not await reads(None, SECRET)
    assert not await reads(SECRET, None)
    assert await reads(None, None)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.binary(max_size=80)
    | st.sampled_from(
        ["1760000000000", "9999999999999", "nan          ", "inf", "-1", "0x10", "1e300        ", "1.5"]
    ).map(str.encode)
)
@example(b"")
@example(b"9999999999999" + b"-")
@example(b"cos\nsystem\n(S'echo'\ntR.")
def test_whatever_is_planted_is_at_worst_a_miss(redis_server: RedisServer, planted: bytes) -> None:
    async def check() -> None:
        store = RedisStore(redis_server.url, timeout=PATIENT)
        sessions = SessionCache(store)
        assert await sessions.get(ID) is None
        assert sessions.stats().failures == 0
        assert await sessions.set(ID, {"user": 7}) == (planted != b"-")
        assert await sessions.get(ID) == (None if planted == b"-" else {"user": 7})
        await store.aclose()

    with redis.Redis.from_url(redis_server.url) as client:
        client.set(name_of(), planted)
    asyncio.run(check())


async def test_other_types_under_the_name_are_misses(sessions: SessionCache, server: Any) -> None:
    server.rpush(name_of(), "a", "b")
    assert await sessions.get(ID) is None
    assert await sessions.set(ID, {"user": 7})
    assert await sessions.get(ID) == {"user": 7}
    server.delete(name_of())
    server.hset(name_of(), "a", "b")
    assert await sessions.delete(ID)
    assert await sessions.get(ID) is None
    assert sessions.stats().failures == 0


@pytest.mark.parametrize(
    "reply", [b":7\r\n", b"*1\r\n:1\r\n", b"+OK\r\n", b"$-1\r\n", b"-ERR no\r\n", b"-OOM full\r\n"]
)
async def test_replies_that_are_no_session_are_misses(make_store: MakeStore, reply: bytes) -> None:
    async with LyingServer(lambda words: reply) as url:
        sessions = SessionCache(make_store(url))
        assert await sessions.get(ID) is None
        assert not await sessions.set(ID, {"user": 7})


# --- sessions: trouble ------------------------------------------------------------------------------------------------


async def test_without_redis_there_is_no_session_and_no_harm_and_log_out_says_so(own_redis: RedisServer) -> None:
    async with SessionCache(own_redis.url) as sessions:
        await until(lambda: sessions.set(ID, {"user": 7}))
        own_redis.kill()
        assert await sessions.get(ID) is None
        with pytest.raises(StoreError):
            await sessions.get(ID, strict=True)
        assert not await sessions.set(ID, {"user": 8})
        with pytest.raises(StoreError):
            await sessions.delete(ID)
        assert sessions.stats().failures >= 4
        own_redis.restart()
        await until(lambda: sessions.set(ID, {"user": 9}))
        await until(lambda: _is(sessions, {"user": 9}))


async def _is(sessions: SessionCache, state: Any) -> bool:
    return bool(await sessions.get(ID) == state)


async def test_redis_that_takes_no_writes_still_gives_sessions(own_redis: RedisServer, make_store: MakeStore) -> None:
    sessions = SessionCache(make_store(own_redis.url))
    await sessions.set(ID, {"user": 7})
    own_redis.command("CONFIG", "SET", "min-replicas-to-write", "1")
    assert await sessions.get(ID) == {"user": 7}
    assert not await sessions.set(ID, {"user": 8})
    with pytest.raises(StoreError):
        await sessions.delete(ID)


async def test_log_out_works_on_a_full_redis(own_redis: RedisServer, make_store: MakeStore) -> None:
    sessions = SessionCache(make_store(own_redis.url))
    await sessions.set(ID, {"user": 7})
    own_redis.command("CONFIG", "SET", "maxmemory", "1")
    assert await sessions.get(ID) == {"user": 7}
    assert not await sessions.set("another", {"user": 8})
    assert await sessions.delete(ID)
    assert await sessions.get(ID) is None


# --- sessions: arguments ----------------------------------------------------------------------------------------------


async def test_empty_id_is_nobodys(sessions: SessionCache) -> None:
    assert await sessions.get("") is None
    with pytest.raises(ConfigurationError):
        await sessions.set("", {"user": 7})
    assert not await sessions.delete("")


@pytest.mark.parametrize("session_id", [None, 7, b"bytes"])
async def test_id_that_is_no_text_is_refused(sessions: SessionCache, session_id: Any) -> None:
    with pytest.raises(ConfigurationError, match="is text"):
        await sessions.get(session_id)
    with pytest.raises(ConfigurationError, match="is text"):
        await sessions.set(session_id, {})
    with pytest.raises(ConfigurationError, match="is text"):
        await sessions.delete(session_id)


@pytest.mark.parametrize(
    "options",
    [
        {"ttl": 0},
        {"ttl": -1},
        {"max_age": 0},
        {"prefix": ""},
        {"prefix": "a:b"},
        {"prefix": "a{b}"},
        {"serializer": msgpack},
        {"serializer": None},
    ],
    ids=str,
)
def test_options_that_cannot_work_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        SessionCache("redis://localhost", **options)


def test_store_that_is_not_shared_is_refused() -> None:
    wrong: Any = MemoryStore()
    with pytest.raises(EchoCacheError, match="RedisStore or a URL, not MemoryStore"):
        SessionCache(wrong)


# --- the examples -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("example", ["intent", "rate_limit"])
def test_example_runs_with_redis(redis_url: str, server: Any, example: str) -> None:
    assert "; hit; ttl=" in run(f"examples/{example}.py", "--once", REDIS_URL=redis_url)
    assert server.dbsize() > 0


Search = Callable[[str, str], Awaitable[httpx.Response]]


@contextlib.asynccontextmanager
async def rate_limited() -> AsyncIterator[Search]:
    """Yield a function that asks the example, as a client, for what it is searching."""
    spec = importlib.util.spec_from_file_location("rate_limit_example", ROOT / "examples" / "rate_limit.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    async def search(who: str, words: str) -> httpx.Response:
        transport = httpx.ASGITransport(module.app, client=(who, 0))
        async with httpx.AsyncClient(transport=transport, base_url="http://search") as client:
            return await client.get("/search", params={"q": words})

    async with module.lifespan(module.app):
        yield search


async def test_refusal_is_one_clients_alone_also_where_two_ask_for_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REDIS_URL", raising=False)
    async with rate_limited() as search:
        for number in range(5):
            assert (await search("greedy", f"{number}")).status_code == 200
        refused, answered = await asyncio.gather(search("greedy", "same"), search("modest", "same"))
        assert refused.status_code == 429
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert answered.status_code == 200
        # Now it is cached, and costs nothing.
        assert (await search("greedy", "same")).status_code == 200


async def test_limit_without_its_redis_refuses_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1")
    async with rate_limited() as search:
        assert [(await search("greedy", f"{number}")).status_code for number in range(7)] == [200] * 7
