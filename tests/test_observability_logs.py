"""What is logged of a cache: each change of state once, with its facts, and nothing that strangers decide."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from echo_cache import Cache, ConfigurationError, HTTPCacheMiddleware, MemoryStore, RedisStore, TwoLevelStore
from echo_cache.codec import key_digest
from echo_cache.errors import StoreError
from echo_cache.events import (
    AppFailed,
    BreakerChanged,
    CacheFailed,
    Event,
    Forwarded,
    Invalidated,
    LogChanged,
    Refused,
    Stored,
    WriteAbandoned,
)
from echo_cache.model import CacheKey, Fwd, Refusal
from echo_cache.observability.logs import LoggingObserver
from echo_cache.testing import call
from tests.redis_support import until
from tests.servers import RedisServer

KEY: CacheKey = ("GET", "http", b"shop.example", b"/secret", b"token=hunter2")
DIGEST = key_digest(KEY)
PLAIN = set(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


def facts_of(record: logging.LogRecord) -> dict[str, Any]:
    """Return the fields that a record has beside those that all have."""
    return {name: value for name, value in record.__dict__.items() if name not in PLAIN}


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[], list[logging.LogRecord]]:
    """What was logged since it was asked last."""
    caplog.set_level(logging.DEBUG, "echo_cache.events")

    def take() -> list[logging.LogRecord]:
        taken = [record for record in caplog.records if record.name == "echo_cache.events"]
        caplog.clear()
        return taken

    return take


Lines = Callable[[], list[logging.LogRecord]]


@pytest.mark.parametrize(
    ("event", "level", "message", "facts"),
    [
        pytest.param(
            BreakerChanged("open", "no route"),
            logging.WARNING,
            "the breaker is open: no route",
            {"cache_event": "breaker_changed", "cache_state": "open", "cache_reason": "no route"},
            id="breaker-opens",
        ),
        pytest.param(
            BreakerChanged("closed", ""),
            logging.INFO,
            "the breaker is closed",
            {"cache_event": "breaker_changed", "cache_state": "closed", "cache_reason": ""},
            id="breaker-closes",
        ),
        pytest.param(
            LogChanged(False, "timed out"),
            logging.WARNING,
            "the invalidation log is not heard: timed out",
            {"cache_event": "log_changed", "cache_heard": False, "cache_reason": "timed out"},
            id="log-is-lost",
        ),
        pytest.param(
            LogChanged(True, ""),
            logging.INFO,
            "the invalidation log is heard",
            {"cache_event": "log_changed", "cache_heard": True, "cache_reason": ""},
            id="log-is-heard",
        ),
        pytest.param(
            CacheFailed("get", StoreError("Redis did not answer")),
            logging.WARNING,
            "the cache failed in get: Redis did not answer",
            {"cache_event": "cache_failed", "cache_operation": "get", "cache_error": "Redis did not answer"},
            id="cache-fails",
        ),
        pytest.param(
            CacheFailed("set", ValueError("the words of a request")),
            logging.WARNING,
            "the cache failed in set: ValueError",
            {"cache_event": "cache_failed", "cache_operation": "set", "cache_error": "ValueError"},
            id="cache-fails-with-what-is-not-ours",
        ),
        pytest.param(
            AppFailed(KEY, ValueError("secret")),
            logging.WARNING,
            "a stale response was served in place of the app's failure (ValueError)",
            {"cache_event": "app_failed", "cache_error": "ValueError", "cache_key": DIGEST},
            id="app-raises",
        ),
        pytest.param(
            AppFailed(KEY, None),
            logging.WARNING,
            "a stale response was served in place of the app's failure (5xx)",
            {"cache_event": "app_failed", "cache_error": "5xx", "cache_key": DIGEST},
            id="app-answers-5xx",
        ),
        pytest.param(
            WriteAbandoned(KEY, 8, "OperationalError"),
            logging.ERROR,
            "a write was given up after 8 attempts: OperationalError",
            {
                "cache_event": "write_abandoned",
                "cache_error": "OperationalError",
                "cache_attempts": 8,
                "cache_key": DIGEST,
            },
            id="write-is-lost",
        ),
        pytest.param(
            WriteAbandoned(None, 1, "CodecError"),
            logging.ERROR,
            "a write was given up after 1 attempts: CodecError",
            {"cache_event": "write_abandoned", "cache_error": "CodecError", "cache_attempts": 1},
            id="write-that-was-none-of-ours-is-lost",
        ),
        pytest.param(
            Invalidated("group", False),
            logging.INFO,
            "invalidated: group",
            {"cache_event": "invalidated", "cache_what": "group", "cache_soft": False},
            id="invalidated",
        ),
        pytest.param(
            Invalidated("all", True),
            logging.INFO,
            "invalidated: all, softly",
            {"cache_event": "invalidated", "cache_what": "all", "cache_soft": True},
            id="invalidated-softly",
        ),
        pytest.param(
            Refused(KEY, Refusal.PRIVATE),
            logging.DEBUG,
            "not stored: private",
            {"cache_event": "refused", "cache_reason": "private", "cache_route": "", "cache_key": DIGEST},
            id="refused",
        ),
    ],
)
def test_event_is_one_line_with_its_facts(
    event: Event, level: int, message: str, facts: dict[str, Any], lines: Lines
) -> None:
    LoggingObserver()(event)
    (record,) = lines()
    assert (record.levelno, record.getMessage()) == (level, message)
    assert facts_of(record) == facts


@pytest.mark.parametrize("event", [Forwarded(KEY, Fwd.URI_MISS), Stored(KEY, 1, 60.0)])
def test_what_happens_at_every_miss_is_no_line(event: Event, lines: Lines) -> None:
    LoggingObserver()(event)
    assert lines() == []


@pytest.mark.parametrize(
    "event",
    [
        pytest.param(BreakerChanged("open", "a\r\n\x1b[31m" + "x" * 5_000), id="breaker"),
        pytest.param(LogChanged(False, "a\r\n\x1b[31m" + "x" * 5_000), id="log"),
        pytest.param(CacheFailed("get", StoreError("a\r\n\x1b[31m" + "x" * 5_000)), id="cache"),
        pytest.param(WriteAbandoned(KEY, 1, "a\r\n\x1b[31m" + "x" * 5_000), id="write"),
    ],
)
def test_what_redis_says_is_one_line_without_control_characters(event: Event, lines: Lines) -> None:
    LoggingObserver()(event)
    (record,) = lines()
    texts = [record.getMessage(), *[value for value in facts_of(record).values() if isinstance(value, str)]]
    assert all(text.isprintable() and len(text) < 400 for text in texts)
    assert any("a???[31mxxx" in text for text in texts)


def test_a_message_with_percent_signs_is_told_as_it_is(lines: Lines) -> None:
    LoggingObserver()(BreakerChanged("open", "100%s %d"))
    assert lines()[0].getMessage() == "the breaker is open: 100%s %d"


async def test_a_refusal_names_its_route_and_nothing_of_the_request(lines: Lines) -> None:
    async def private(request: Request) -> Response:
        return PlainTextResponse("yours", headers={"cache-control": "private", "x-secret": "hunter2"})

    app = Starlette(routes=[Route("/p/{id}", private)])
    cache = Cache(MemoryStore(), observers=[LoggingObserver(refusals=logging.INFO)])
    for path in ("/p/hunter2", "/p/other", "/nowhere?hunter2"):
        await call(HTTPCacheMiddleware(app, cache=cache), "GET", path, {"cookie": "hunter2"})
    first = lines()
    assert [
        (record.levelname, facts_of(record)["cache_reason"], facts_of(record)["cache_route"]) for record in first
    ] == [("INFO", "private", "/p/{id}")] + [("INFO", "credentials", "")] * (len(first) - 1)
    assert "hunter2" not in repr([(record.getMessage(), facts_of(record)) for record in first])


async def test_a_refusal_of_something_else_has_not_the_route_of_the_request(lines: Lines) -> None:
    async def page(request: Request) -> Response:
        cache.refused(KEY, Refusal.OVERTAKEN)  # as of a value that the handler has fetched
        return PlainTextResponse("page", headers={"cache-control": "max-age=60"})

    cache = Cache(MemoryStore(), observers=[LoggingObserver()])
    await call(HTTPCacheMiddleware(Starlette(routes=[Route("/p", page)]), cache=cache), "GET", "/p")
    (record,) = lines()
    assert (facts_of(record)["cache_reason"], facts_of(record)["cache_route"]) == ("overtaken", "")


async def test_hits_are_no_lines(lines: Lines) -> None:
    async def page(request: Request) -> Response:
        return PlainTextResponse("page", headers={"cache-control": "max-age=60"})

    cache = Cache(MemoryStore(), observers=[LoggingObserver()])
    edge = HTTPCacheMiddleware(Starlette(routes=[Route("/", page)]), cache=cache)
    for _ in range(3):
        await call(edge, "GET", "/")
    assert cache.stats().hits == 2
    assert lines() == []


async def test_trouble_with_redis_and_its_end_are_lines(own_redis: RedisServer, lines: Lines) -> None:
    told: list[logging.LogRecord] = []

    def has(**facts: Any) -> bool:
        told.extend(lines())
        return any(facts.items() <= facts_of(record).items() for record in told)

    store = TwoLevelStore(MemoryStore(), RedisStore(own_redis.url, breaker_failures=1, probe_interval=0.05))
    async with Cache(store, observers=[LoggingObserver()]) as cache:
        await cache.invalidate(tags=["a"])
        own_redis.stop()
        await cache.invalidate(tags=["a"])
        await until(lambda: has(cache_event="breaker_changed", cache_state="open"))
        await until(lambda: has(cache_event="log_changed", cache_heard=False))
        own_redis.start()
        await until(lambda: has(cache_event="breaker_changed", cache_state="closed"))
        await until(lambda: has(cache_event="log_changed", cache_heard=True))
    assert has(cache_event="cache_failed", cache_operation="invalidate")


# --- how many ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "other", "every"),
    [
        pytest.param(Refused(KEY, Refusal.PRIVATE), Refused(KEY, Refusal.NO_STORE), 60.0, id="refusal"),
        pytest.param(
            CacheFailed("get", StoreError("a")), CacheFailed("set", StoreError("a")), 60.0, id="operation-fails"
        ),
        pytest.param(AppFailed(KEY, None), AppFailed(KEY, OSError()), 60.0, id="app-fails"),
        pytest.param(WriteAbandoned(KEY, 1, "a"), WriteAbandoned(KEY, 1, "b"), 60.0, id="write"),
        pytest.param(Invalidated("key", False), Invalidated("key", True), 1.0, id="invalidated"),
    ],
)
def test_lines_of_a_kind_come_now_and_then_and_say_how_many_were_left_out(
    event: Event, other: Event, every: float, lines: Lines
) -> None:
    now = Clock()
    observer = LoggingObserver(now=now)
    for _ in range(5):
        observer(event)
    assert len(lines()) == 1
    observer(other)
    assert len(lines()) == 1  # of another kind
    now.now += every - 0.1
    observer(event)
    assert lines() == []
    now.now += 0.2
    observer(event)
    (record,) = lines()
    assert record.getMessage().endswith(" (and 5 times more since the last such line)")
    assert facts_of(record)["cache_left_out"] == 5
    now.now += every
    observer(event)
    (record,) = lines()
    assert "cache_left_out" not in facts_of(record)


def test_changes_of_state_are_all_told(lines: Lines) -> None:
    observer = LoggingObserver(now=Clock())
    for state in ("open", "closed", "open", "closed"):
        observer(BreakerChanged(state, ""))
    assert [facts_of(record)["cache_state"] for record in lines()] == ["open", "closed", "open", "closed"]


def test_kinds_are_bounded(lines: Lines) -> None:
    observer = LoggingObserver(now=Clock())
    for number in range(3_000):
        observer(CacheFailed(f"operation {number}", StoreError("a")))
    assert repr(observer) == "<LoggingObserver to 'echo_cache.events' [1025 kinds]>"
    assert len(lines()) == 1_025


# --- options ----------------------------------------------------------------------------------------------------------


def test_levels_logger_and_interval_are_options(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "shop")
    now = Clock()
    quiet = LoggingObserver(logging.getLogger("shop"), level=logging.DEBUG, every=timedelta(seconds=5), now=now)
    for event in (Invalidated("all", False), BreakerChanged("closed", ""), Refused(KEY, Refusal.PRIVATE)):
        quiet(event)
    assert caplog.records == []
    for _ in range(2):
        quiet(CacheFailed("get", StoreError("a")))
        now.now += 5
    assert [(record.name, record.levelname) for record in caplog.records] == [("shop", "WARNING")] * 2
    LoggingObserver("shop", refusals=logging.INFO)(Refused(KEY, Refusal.PRIVATE))
    assert caplog.records[-1].getMessage() == "not stored: private"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"level": "INFO"}, "level must be a level such as logging.INFO, not 'INFO'", id="level"),
        pytest.param({"refusals": None}, "refusals must be a level", id="refusals"),
        pytest.param({"every": -1}, "every must be a number of seconds >= 0", id="every"),
    ],
)
def test_an_option_that_cannot_be_is_an_error(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        LoggingObserver(**options)
