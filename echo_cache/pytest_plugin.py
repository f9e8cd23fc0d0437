"""
Fixtures for tests of apps behind the cache; pytest finds them when echo_cache is installed.

    from echo_cache.testing import assert_hit, assert_miss

    def test_product_is_cached_for_a_minute(echo_cache_app, echo_cache_clock):
        client = TestClient(echo_cache_app(app))
        assert_miss(client.get("/products/7"))
        assert_hit(client.get("/products/7"))
        echo_cache_clock.advance(60)
        assert_miss(client.get("/products/7"))

The one rule: it does nothing to tests that do not ask for a fixture. What a fixture needs is imported when it is asked
for. All are plain functions, so they serve tests and coroutine tests alike, whichever plugin runs those.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import pytest

if TYPE_CHECKING:
    from echo_cache.cache import Cache
    from echo_cache.testing import ManualClock

__all__ = ["AppChange", "echo_cache", "echo_cache_app", "echo_cache_clock", "echo_cache_disabled"]

AppT = TypeVar("AppT")
AppChange: TypeAlias = Callable[[AppT], AppT]


@pytest.fixture
def echo_cache_clock() -> ManualClock:
    """The clock of the test's caches, which stands still until `advance(seconds)`. It begins at the present second."""
    import time

    from echo_cache.testing import ManualClock

    # Not in the past: an app that sends Expires or Last-Modified takes them from the machine's clock. A whole second,
    # so that Age and ttl are whole numbers.
    return ManualClock(float(int(time.time())))


@pytest.fixture
def echo_cache(echo_cache_clock: ManualClock) -> Iterator[Cache]:
    """An empty Cache in memory, on `echo_cache_clock`, for an app that the test makes (`create_app(cache)`)."""
    from echo_cache.cache import Cache
    from echo_cache.stores import MemoryStore
    from echo_cache.testing import in_memory

    cache = Cache(MemoryStore(clock=echo_cache_clock), clock=echo_cache_clock)
    with in_memory(cache):  # which finishes what the test leaves under way
        yield cache


@pytest.fixture
def _echo_cache_changes() -> Iterator[ExitStack]:
    """What the fixtures below have changed, which is undone in the opposite order, whichever was asked for first."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def echo_cache_app(_echo_cache_changes: ExitStack, echo_cache_clock: ManualClock) -> AppChange[Any]:
    """
    A function: `echo_cache_app(app)` returns *app*, whose caches are empty and in memory for this test.

    They go by `echo_cache_clock` and keep their rules; no Redis is needed. *app* is a Starlette or FastAPI app with
    HTTPCacheMiddleware, any ASGI app that has it around, or a Cache. See `echo_cache.testing.in_memory`.
    """
    from echo_cache.testing import in_memory

    def change(app: AppT) -> AppT:
        _echo_cache_changes.enter_context(in_memory(app, clock=echo_cache_clock))
        return app

    return change


@pytest.fixture
def echo_cache_disabled(_echo_cache_changes: ExitStack) -> AppChange[Any]:
    """
    A function: `echo_cache_disabled(app)` returns *app*, which every request reaches in this test; no Redis is needed.

    Of this and `echo_cache_app`, the last one that was called counts.
    """
    from echo_cache.testing import without_cache

    def change(app: AppT) -> AppT:
        _echo_cache_changes.enter_context(without_cache(app))
        return app

    return change
