"""What every test may use: the async backend and real servers."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.servers import RedisServer, ServerError

# A loaded machine is slow, and slowness is not a failure of a property. In CI the examples are the same in every run.
settings.register_profile("local", deadline=None)
settings.register_profile("repeatable", deadline=None, derandomize=True, database=None, print_blob=True)
settings.load_profile("repeatable" if os.environ.get("CI") else "local")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """The one event loop that the tests run on; redis-py's asyncio client knows no other."""
    return "asyncio"


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """A real server, shared by the tests of this process; own_redis is the one to stop, kill or pause."""
    yield from _server()


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """The URL of the shared server, which is empty."""
    redis_server.command("FLUSHALL")
    return redis_server.url


@pytest.fixture
def own_redis() -> Iterator[RedisServer]:
    """A real server for this test alone, which may stop, kill, pause and restart it."""
    yield from _server()


def _server() -> Iterator[RedisServer]:
    server = RedisServer()
    try:
        server.start()
    except ServerError as error:
        server.close()
        # Not a skip: a suite that quietly tests without Redis proves nothing about Redis.
        pytest.fail(str(error), pytrace=False)
    yield server
    server.close()
