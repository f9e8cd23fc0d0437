"""What the server argument of a RedisStore may be: URLs of all forms, ready clients, and what is refused."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import redis
import redis.asyncio
import redis.asyncio.cluster
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.cluster import LoadBalancingStrategy

from echo_cache.errors import ConfigurationError, StoreError
from echo_cache.stores import RedisStore
from echo_cache.stores.redis.servers import place_of
from echo_cache.stores.redis.urls import parse_server_url
from tests.proxy import RedisProxy
from tests.redis_support import PATIENT
from tests.servers import Certificate
from tests.store_contract import any_variant, make_entry, make_key


@pytest.mark.parametrize(
    ("url", "location"),
    [
        pytest.param("redis+sentinel://a/main", "redis+sentinel://a:26379/main/0", id="sentinel-default-port"),
        pytest.param("redis+sentinel://a:1,b:2/main/3", "redis+sentinel://a:1,b:2/main/3", id="sentinels"),
        pytest.param("redis+sentinel://a/main?db=4", "redis+sentinel://a:26379/main/4", id="sentinel-db-option"),
        pytest.param("redis+sentinel://a/main/", "redis+sentinel://a:26379/main/0", id="sentinel-slash-at-the-end"),
        pytest.param(
            "rediss+sentinel://u:s3cret@a,b/my.main-1/0?sentinel_username=v&sentinel_password=s3cret&ssl_ca_certs=/c.pem",
            "rediss+sentinel://a:26379,b:26379/my.main-1/0",
            id="sentinel-credentials",
        ),
        pytest.param("redis+sentinel://[::1]:1,[fe80::2]/m", "redis+sentinel://[::1]:1,[fe80::2]:26379/m/0", id="ipv6"),
        pytest.param("redis+cluster://a", "redis+cluster://a:6379", id="cluster-default-port"),
        pytest.param("redis+cluster://u:s3%40cret@a:1,b:2", "redis+cluster://a:1,b:2", id="cluster"),
        pytest.param("redis+cluster://a:1/0", "redis+cluster://a:1", id="cluster-database-0"),
        pytest.param("redis+cluster://a:1/?db=0", "redis+cluster://a:1", id="cluster-database-option-0"),
        pytest.param(
            "rediss+cluster://[::1]:1,b?password=s3cret&client_name=shop&ssl_check_hostname=false",
            "rediss+cluster://[::1]:1,b:6379",
            id="cluster-options",
        ),
    ],
)
def test_a_url_leads_to_a_location_without_secrets(url: str, location: str) -> None:
    assert f"<RedisStore {location} " in repr(RedisStore(url))
    assert "cret" not in repr(parse_server_url(url))


SENTINEL_FORM = "has the form redis+sentinel://[user:password@]host[:port],host[:port]/service[/db]"
CLUSTER_FORM = "has the form redis+cluster://[user:password@]host[:port],host[:port] (with database 0 only)"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        pytest.param("sentinel://:s3cret@a/main", "redis+sentinel://", id="other-scheme"),
        pytest.param("redis+other://:s3cret@a", "redis+cluster://", id="other-kind"),
        pytest.param("redis+sentinel://:s3cret@a", SENTINEL_FORM, id="no-service"),
        pytest.param("redis+sentinel://:s3cret@/main", SENTINEL_FORM, id="no-host"),
        pytest.param("redis+sentinel://:s3cret@a,/main", SENTINEL_FORM, id="empty-host"),
        pytest.param("redis+sentinel://:s3cret@a:0/main", SENTINEL_FORM, id="port-0"),
        pytest.param("redis+sentinel://:s3cret@a:65536/main", SENTINEL_FORM, id="port-too-large"),
        pytest.param("redis+sentinel://:s3cret@a:x/main", SENTINEL_FORM, id="port-of-letters"),
        pytest.param("redis+sentinel://:s3cret@::1/main", SENTINEL_FORM, id="ipv6-without-brackets"),
        pytest.param("redis+sentinel://:s3cret@a/main/one", SENTINEL_FORM, id="database-of-letters"),
        pytest.param("redis+sentinel://:s3cret@a/main/1/2", SENTINEL_FORM, id="two-databases"),
        pytest.param("redis+sentinel://:s3cret@a/main?db=x", SENTINEL_FORM, id="database-option"),
        pytest.param("redis+sentinel://:s3/cret@a/main", SENTINEL_FORM, id="slash-in-password"),
        pytest.param("redis+sentinel://user:8/cret@a/0", SENTINEL_FORM, id="slash-in-password-after-a-number"),
        pytest.param("redis+sentinel://:s3?cret@a/main", SENTINEL_FORM, id="question-mark-in-password"),
        pytest.param("redis+sentinel://user:8?cret=@a/main", SENTINEL_FORM, id="what-looks-like-an-option"),
        pytest.param("redis+sentinel://:s3#cret@a/main", SENTINEL_FORM, id="hash-in-password"),
        pytest.param("redis+sentinel://:s3cret@a/main?protocol=3", "'protocol'", id="protocol"),
        pytest.param("redis+sentinel://:s3cret@a/main?retry=1", "sentinel_username, sentinel_password", id="allowed"),
        pytest.param("redis+sentinel://:s3cret@a/main?ssl_nonsense=1", "cannot use this URL", id="unknown-tls-option"),
        pytest.param("redis+sentinel://:s3cret@a/main?ssl_keyfile=x", "cannot use this URL", id="tls-without-tls"),
        pytest.param("redis+cluster://:s3cret@", CLUSTER_FORM, id="cluster-no-host"),
        pytest.param("redis+cluster://:s3cret@a/1", CLUSTER_FORM, id="cluster-database"),
        pytest.param("redis+cluster://:s3cret@a?db=1", CLUSTER_FORM, id="cluster-database-option"),
        pytest.param("redis+cluster://:s3cret@a/main", CLUSTER_FORM, id="cluster-service"),
        pytest.param("redis+cluster://:s3cret@[::1:6379", CLUSTER_FORM, id="open-bracket"),
        pytest.param(
            "redis+cluster://:s3cret@a?sentinel_password=x", "'sentinel_password'", id="cluster-sentinel-option"
        ),
        pytest.param("redis://:s3cret@a?sentinel_password=x", "'sentinel_password'", id="one-server-sentinel-option"),
        pytest.param("redis://:12?cret=@a", "has the form", id="one-server-what-looks-like-an-option"),
    ],
)
def test_a_wrong_url_raises_says_what_is_allowed_and_shows_no_secret(url: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        RedisStore(url)
    assert message in str(caught.value)
    assert "cret" not in f"{caught.value}{caught.value.__cause__!r}"


@given(st.sampled_from(["redis", "rediss+sentinel", "redis+cluster"]), st.text(max_size=40))
def test_any_text_is_a_url_or_a_configuration_error(scheme: str, rest: str) -> None:
    with contextlib.suppress(ConfigurationError):
        parse_server_url(f"{scheme}://{rest}")


def settings_of(connection: Any) -> tuple[Any, ...]:
    """Return what must be set on every connection."""
    assert connection.retry == Retry(NoBackoff(), 0)
    assert connection.health_check_interval == 30.0
    return (connection.protocol, connection.socket_timeout, connection.socket_connect_timeout)


@pytest.mark.parametrize("tls", ["", "s"])
async def test_connections_to_sentinels_and_their_servers_have_the_settings_of_a_cache(tls: str) -> None:
    url = f"redis{tls}+sentinel://u:p%40w@a,b:2/main/3?client_name=n&sentinel_username=v&sentinel_password=q"
    client: Any = place_of(url, timeout=0.25, max_connections=7).connect()
    pool = client._redis.connection_pool
    assert (pool.max_connections, pool.service_name, pool.is_master) == (7, "main", True)
    connection = pool.make_connection()
    assert isinstance(connection, redis.asyncio.SSLConnection) == bool(tls)
    assert settings_of(connection) == (2, None, 0.25)
    assert (connection.username, connection.password, connection.db, connection.client_name) == ("u", "p@w", 3, "n")
    assert not pool.maint_notifications_enabled()
    for sentinel, where in zip(pool.sentinel_manager.sentinels, [("a", 26379), ("b", 2)], strict=True):
        connection = sentinel.connection_pool.make_connection()
        assert isinstance(connection, redis.asyncio.SSLConnection) == bool(tls)
        assert settings_of(connection) == (2, None, 0.25)
        assert (connection.host, connection.port) == where
        assert (connection.username, connection.password, connection.db) == ("v", "q", 0)
        assert sentinel.connection_pool.max_connections == 4
    await client.aclose()


@pytest.mark.parametrize("tls", ["", "s"])
def test_connections_to_the_servers_of_a_cluster_have_the_settings_of_a_cache(tls: str) -> None:
    client: Any = place_of(f"redis{tls}+cluster://u:p%40w@a,b:2?client_name=n", 0.25, 7).connect()
    assert client._seeds == (("a", 6379), ("b", 2))
    pool = client._pool(("b", 2))
    assert type(pool).__name__ == "Pool"
    assert pool.max_connections == 7
    connection = pool.make_connection()
    assert isinstance(connection, redis.asyncio.SSLConnection) == bool(tls)
    assert settings_of(connection) == (2, None, 0.25)
    assert (connection.username, connection.password, connection.db, connection.client_name) == ("u", "p@w", 0, "n")
    assert (connection.host, connection.port) == ("b", 2)


def test_tls_options_reach_every_kind_of_connection() -> None:
    options = "ssl_ca_certs=/ca.pem&ssl_check_hostname=false&ssl_cert_reqs=none"
    one: Any = place_of(f"rediss://h?{options}", 1.0, 1).connect()
    named: Any = place_of(f"rediss+sentinel://h/main?{options}", 1.0, 1).connect()
    sentinel = named._redis.connection_pool.sentinel_manager.sentinels[0]
    cluster: Any = place_of(f"rediss+cluster://h?{options}", 1.0, 1).connect()
    pools = [
        one._redis.connection_pool,
        named._redis.connection_pool,
        sentinel.connection_pool,
        cluster._pool(("h", 1)),
    ]
    for pool in pools:
        tls = pool.make_connection().ssl_context
        assert (tls.ca_certs, tls.check_hostname, int(tls.cert_reqs)) == ("/ca.pem", False, 0)


# --- ready clients ----------------------------------------------------------------------------------------------------


def make_cluster(**options: Any) -> redis.asyncio.RedisCluster:
    nodes = [redis.asyncio.cluster.ClusterNode(host, 1) for host in ("127.0.0.1", "::1")]
    return redis.asyncio.RedisCluster(startup_nodes=nodes, **options)


@pytest.mark.parametrize(
    ("client", "location"),
    [
        pytest.param(
            Sentinel([("a", 1), ("b", 2)], password="s3cret").master_for("main", db=2),
            "redis+sentinel://a:1,b:2/main/2",
            id="master_for",
        ),
        pytest.param(Sentinel([("a", 1)]).master_for("m", ssl=True), "rediss+sentinel://a:1/m/0", id="master_for-tls"),
        pytest.param(make_cluster(password="s3cret"), "redis+cluster://127.0.0.1:1,[::1]:1", id="cluster"),
        pytest.param(make_cluster(ssl=True), "rediss+cluster://127.0.0.1:1,[::1]:1", id="cluster-tls"),
        pytest.param(redis.asyncio.Redis(host="::1", password="s3cret"), "redis://[::1]:6379/0", id="ipv6"),
        pytest.param(redis.asyncio.Redis(ssl=True), "rediss://localhost:6379/0", id="tls"),
    ],
)
def test_a_ready_client_is_located_without_secrets(client: Any, location: str) -> None:
    assert f"<RedisStore {location} " in repr(RedisStore(client))
    assert "s3cret" not in repr(RedisStore(client))


def test_of_a_ready_cluster_the_credentials_are_taken_over_and_the_settings_are_ours() -> None:
    ready = make_cluster(
        username="u",
        password="p",
        client_name="n",
        ssl=True,
        ssl_ca_certs="/c",
        protocol=3,
        load_balancing_strategy=LoadBalancingStrategy.ROUND_ROBIN,
    )
    client: Any = place_of(ready, 0.25, 7).connect()
    connection = client._pool(("127.0.0.1", 1)).make_connection()
    assert settings_of(connection) == (2, None, 0.25)
    assert (connection.username, connection.password, connection.client_name) == ("u", "p", "n")
    assert connection.ssl_context.ca_certs == "/c"
    assert connection.redis_connect_func is None


@pytest.mark.parametrize(
    "client",
    [
        pytest.param(Sentinel([("a", 1)]).master_for("main", decode_responses=True), id="master_for"),
        pytest.param(make_cluster(decode_responses=True), id="cluster"),
    ],
)
def test_a_client_that_decodes_is_refused(client: Any) -> None:
    with pytest.raises(ConfigurationError, match="decode_responses=False"):
        RedisStore(client)


@pytest.mark.parametrize(
    "client", [pytest.param(Sentinel([("a", 1)]), id="sentinel"), pytest.param(redis.Redis(), id="no-asyncio")]
)
def test_another_object_is_refused_with_what_is_accepted(client: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"redis\.asyncio\.Redis .*master_for.* redis\.asyncio\.RedisCluster"):
        RedisStore(client)


# --- TLS --------------------------------------------------------------------------------------------------------------


async def test_a_server_with_a_certificate_that_the_url_trusts_is_used(
    tls_proxy: RedisProxy, certificate: Certificate
) -> None:
    store = RedisStore(f"{tls_proxy.url}?ssl_ca_certs={certificate.file}", timeout=PATIENT)
    await store.set(make_key(), make_entry(b"over TLS"))
    entry = await store.get(make_key(), any_variant)
    assert entry is not None
    assert entry.response.body == b"over TLS"
    await store.aclose()


async def test_a_server_with_a_certificate_that_nobody_trusts_is_a_store_error(tls_proxy: RedisProxy) -> None:
    store = RedisStore(tls_proxy.url, timeout=PATIENT)
    with pytest.raises(StoreError, match="certificate verify failed"):
        await store.set(make_key(), make_entry())
    await store.aclose()
