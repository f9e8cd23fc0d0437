"""What every test may use: the async backend, real servers, and a proxy that makes trouble before one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TypeVar

import pytest
from hypothesis import settings

from tests.proxy import RedisProxy
from tests.servers import (
    SERVERS,
    Certificate,
    NoServerError,
    RedisCluster,
    RedisSentinel,
    RedisServer,
    ServerError,
    find_server,
    make_certificate,
)

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
    yield from _running(RedisServer())


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """The URL of the shared server, which is empty."""
    redis_server.command("FLUSHALL")
    return redis_server.url


@pytest.fixture
def own_redis(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    """
    A real server for this test alone, which may stop, kill, pause and restart it.

    On both kinds of server, as own_cluster and own_sentinel too:
    `@pytest.mark.parametrize("own_redis", SERVERS, indirect=True)`.
    """
    yield from _running(RedisServer(binary=_binary(request)))


@pytest.fixture
def proxy(redis_server: RedisServer, redis_url: str) -> Iterator[RedisProxy]:
    """A proxy before the shared server, which is empty; the trouble that it makes is this test's alone."""
    with RedisProxy(redis_server.port) as proxy:
        yield proxy


@pytest.fixture
def own_proxy(own_redis: RedisServer) -> Iterator[RedisProxy]:
    """A proxy before the test's own server."""
    with RedisProxy(own_redis.port) as proxy:
        yield proxy


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """A certificate for servers on this machine; its file is the clients' CA file."""
    try:
        return make_certificate(tmp_path_factory.mktemp("tls"))
    except ServerError as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture
def tls_proxy(redis_server: RedisServer, redis_url: str, certificate: Certificate) -> Iterator[RedisProxy]:
    """A proxy that speaks TLS, with *certificate*, before the shared server, which is empty."""
    with RedisProxy(redis_server.port, tls=certificate.for_server()) as proxy:
        yield proxy


@pytest.fixture(scope="session")
def shared_cluster() -> Iterator[RedisCluster]:
    """For the fixture cluster."""
    yield from _running(RedisCluster(replicas=0))


@pytest.fixture
def cluster(shared_cluster: RedisCluster) -> RedisCluster:
    """A cluster of three masters, shared and empty; own_cluster is the one to break."""
    shared_cluster.flush()
    return shared_cluster


@pytest.fixture
def own_cluster(request: pytest.FixtureRequest) -> Iterator[RedisCluster]:
    """A cluster for this test alone, whose first master, nodes[0], has a replica. Starting it takes 2 to 3 s."""
    yield from _running(RedisCluster(binary=_binary(request)))


@pytest.fixture
def own_sentinel(request: pytest.FixtureRequest) -> Iterator[RedisSentinel]:
    """A master, a replica and a sentinel for this test alone."""
    yield from _running(RedisSentinel(binary=_binary(request)))


Servers = TypeVar("Servers", RedisServer, RedisCluster, RedisSentinel)


def _running(servers: Servers) -> Iterator[Servers]:
    try:
        servers.start()
    except ServerError as error:
        servers.close()
        # Not a skip: a suite that quietly tests without Redis proves nothing about Redis.
        pytest.fail(str(error), pytrace=False)
    yield servers
    servers.close()


def _binary(request: pytest.FixtureRequest) -> str | None:
    """Return the binary that a test asked for by parameter, if it did."""
    kind = getattr(request, "param", None)
    if kind is None:
        return None
    assert kind in SERVERS, f"{kind!r} is none of {SERVERS}"
    try:
        return find_server(kind)
    except NoServerError as error:
        # The markers in pyproject.toml say where there is no wheel.
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """The URL of a database that the tests of this process share: use thread ids of your own."""
    # Not for all: it needs a client library of an extra.
    from tests.postgres import postgres_database

    with contextlib.ExitStack() as stack:
        try:
            url = stack.enter_context(postgres_database())
        except ServerError as error:
            pytest.fail(str(error), pytrace=False)
        yield url
