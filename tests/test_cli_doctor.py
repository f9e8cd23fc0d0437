"""What is found out about a Redis, and what is made of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echo_cache import RedisStore
from echo_cache.cli.doctor import (
    Facts,
    Finding,
    NameFacts,
    ServerFacts,
    StreamFacts,
    Trouble,
    examine,
    judge,
    percentile,
    trouble_of,
)
from echo_cache.codec import FORMAT_VERSION
from tests.proxy import RedisProxy
from tests.redis_support import LyingServer, array, bulk
from tests.servers import HOST, SERVERS, Certificate, RedisCluster, RedisSentinel, RedisServer
from tests.store_contract import make_entry, make_key

MIB = 1024 * 1024
# A server that is well, with the log of one that is.
INFO: Mapping[str, str] = {
    "redis_version": "7.4.1",
    "role": "master",
    "connected_slaves": "0",
    "cluster_enabled": "0",
    "used_memory": str(10 * MIB),
    "maxmemory": str(100 * MIB),
    "maxmemory_policy": "volatile-lru",
    "evicted_keys": "0",
    "connected_clients": "10",
    "maxclients": "10000",
}
PINGS = (0.0002,) * 50


def facts(info: Mapping[str, str] | None = None, server: Mapping[str, Any] | None = None, **more: Any) -> Facts:
    said = {**INFO, **(info or {})}
    one = ServerFacts("here", **{"info": said, "pings": PINGS, "clock_offset": 0.0, **(server or {})})
    return Facts("redis://here:6379/0", **{"servers": [one], **more})


def worst(findings: list[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.level != "ok"]


def levels(findings: list[Finding]) -> set[str]:
    return {finding.level for finding in findings}


# --- judging ----------------------------------------------------------------------------------------------------------


def test_nothing_is_wrong_with_a_server_that_is_well() -> None:
    findings = judge(facts(stream=StreamFacts("stream", 10, same_run=True), names=NameFacts({FORMAT_VERSION: 3})))
    assert worst(findings) == []
    assert len(findings) == 8


@pytest.mark.parametrize(
    ("found", "level", "what", "remedy"),
    [
        pytest.param(facts({"redis_version": "6.0.16"}), "problem", "Redis 6.0.16", "6.2", id="old"),
        pytest.param(facts({"redis_version": "x\x1b[2J"}), "note", r"x\x1b[2J", "", id="no-version"),
        pytest.param(facts({"dragonfly_version": "1"}), "note", "dragonfly", "", id="dragonfly"),
        pytest.param(
            facts({"role": "slave", "master_link_status": "down"}), "problem", "lost", "primary", id="replica"
        ),
        pytest.param(facts({"connected_slaves": "2"}), "note", "2 replica", "", id="replicas"),
        pytest.param(facts({"cluster_enabled": "1"}), "problem", "cluster", "redis+cluster", id="one-of-a-cluster"),
        pytest.param(facts({"loading": "1"}), "warning", "loading", "Wait", id="loading"),
        pytest.param(facts({"rdb_last_bgsave_status": "err"}), "problem", "MISCONF", "disk", id="disk"),
        pytest.param(facts({"aof_enabled": "1"}), "note", "persistence", "", id="aof"),
        pytest.param(facts({"maxmemory": "0"}), "warning", "maxmemory is not set", "volatile-lru", id="no-limit"),
        pytest.param(
            facts({"maxmemory_policy": "noeviction"}), "warning", "noeviction and 10%", "allkeys-lfu", id="noeviction"
        ),
        pytest.param(
            facts({"maxmemory_policy": "noeviction", "used_memory": str(95 * MIB)}),
            "problem",
            "95%",
            "allkeys-lfu",
            id="noeviction-full",
        ),
        pytest.param(
            facts({"maxmemory_policy": "noeviction", "used_memory": "?"}),
            "warning",
            "an unknown share",
            "allkeys-lfu",
            id="noeviction-unknown",
        ),
        pytest.param(
            facts({"maxmemory_policy": "allkeys-lru"}), "note", "log may be evicted", "volatile-lru", id="allkeys"
        ),
        pytest.param(facts({"evicted_keys": "7"}), "note", "7 keys were evicted", "memory", id="evicted"),
        pytest.param(
            facts({"evicted_keys": "7", "used_memory": str(95 * MIB)}), "warning", "7 keys", "memory", id="evicting"
        ),
        pytest.param(
            facts({"used_memory": str(95 * MIB), "db0": "keys=10,expires=2,avg_ttl=0", "db1": "keys=5,expires=0"}),
            "warning",
            "13 of 15 keys never expire",
            "allkeys-lfu",
            id="nothing-to-evict",
        ),
        pytest.param(facts({"connected_clients": "9000"}), "warning", "9000 of 10000", "maxclients", id="crowded"),
        pytest.param(
            facts(server={"info": {}, "config": {"maxmemory": "9", "maxmemory-policy": "noeviction"}}),
            "warning",
            "noeviction",
            "allkeys-lfu",
            id="seen-by-config",
        ),
        pytest.param(facts(server={"info": {}}), "note", "cannot be seen", "provider", id="managed"),
        pytest.param(facts(server={"pings": (0.2,) * 50}), "problem", "200 ms", "nearer", id="far"),
        pytest.param(facts(server={"pings": (0.001,) * 40 + (0.08,) * 10}), "warning", "80 ms", "SLOWLOG", id="jitter"),
        pytest.param(facts(server={"clock_offset": 0.5}), "note", "+0.5 s", "", id="clock-near"),
        pytest.param(facts(server={"clock_offset": -90.0}), "warning", "-90.0 s", "NTP", id="clock-far"),
        pytest.param(facts(server={"clock_offset": 1e9}), "problem", "more than a year", "clocks", id="clock-none"),
        pytest.param(facts(server={"trouble": (Trouble.HUNG, "x")}), "problem", "in time", "firewalls", id="server"),
        pytest.param(facts(refused=frozenset({"SET"})), "problem", "stored", "+set", id="no-set"),
        pytest.param(facts(refused=frozenset({"TIME"})), "warning", "own time", "+time", id="no-time"),
        pytest.param(
            facts(refused_for_log=frozenset({"XADD"})), "problem", "log", "~{echo_cache:log}* +xadd", id="log"
        ),
        pytest.param(facts(failing={"SET": "OOM x", "XADD": "OOM x"}), "problem", "SET, XADD", "maxmemory", id="oom"),
        pytest.param(facts(failing={"SET": "WHAT\n"}), "problem", "WHAT\\n", "log", id="other-failure"),
        pytest.param(facts(lost=(Trouble.CLOSED, "x")), "problem", "closes", "rediss://", id="lost"),
        pytest.param(facts(stream=StreamFacts("string")), "warning", "no stream", "prefix", id="stream-type"),
        pytest.param(facts(stream=StreamFacts("stream", 1, ahead=1e9)), "warning", "year", "ACL", id="stream-ahead"),
        pytest.param(facts(stream=StreamFacts("stream", 1, ahead=9.0)), "note", "9 s ahead", "", id="stream-set-back"),
        pytest.param(facts(stream=StreamFacts("stream", 90_000)), "warning", "90000", "prefix", id="stream-long"),
        pytest.param(
            facts(stream=StreamFacts("stream", 1, foreign=True)), "note", "understood", "", id="stream-foreign"
        ),
        pytest.param(facts(stream=StreamFacts("stream", 1, same_run=False)), "note", "restarted", "", id="stream-run"),
        pytest.param(facts(names=NameFacts({0: 5, 1: 2})), "note", "5 of version 0", "", id="other-versions"),
        pytest.param(
            facts(names=NameFacts({1: 2}, sampled=2, endless=1)), "warning", "1 of 2", "PERSIST", id="never-expire"
        ),
        pytest.param(facts(is_cluster=True), "note", "CLUSTER INFO", "", id="cluster-unseen"),
        pytest.param(
            facts(is_cluster=True, server={"cluster": {"cluster_state": "fail", "cluster_slots_fail": "3"}}),
            "problem",
            "3 slots",
            "CLUSTER NODES",
            id="cluster-fails",
        ),
        pytest.param(
            facts(is_cluster=True, server={"cluster": {"cluster_state": "fail", "cluster_slots_assigned": "9"}}),
            "problem",
            "Only 9 of 16384",
            "fix",
            id="cluster-slots",
        ),
        pytest.param(facts(more_servers=2), "note", "2 more", "", id="many"),
        pytest.param(facts(has_hiredis=False), "note", "hiredis", "pip install", id="hiredis"),
    ],
)
def test_what_is_wrong_is_one_finding_with_its_remedy(found: Facts, level: str, what: str, remedy: str) -> None:
    (finding,) = worst(judge(found))
    assert finding.level == level
    assert what in finding.what
    assert remedy in finding.remedy
    assert (finding.what + finding.remedy).isprintable()


def test_one_of_many_servers_is_named() -> None:
    two = [ServerFacts(where, INFO, pings=PINGS, clock_offset=0.0) for where in ("a:1", "b:2")]
    said = {"cluster_state": "ok", "cluster_slots_assigned": "16384"}
    two[1] = ServerFacts("b:2", {**INFO, "maxmemory": "0"}, pings=PINGS, clock_offset=0.0, cluster=said)
    findings = judge(Facts("redis+cluster://a:1", servers=two, is_cluster=True))
    (finding,) = worst(findings)
    assert finding.what.startswith("b:2: maxmemory is not set")
    assert "The cluster is ok, with 2 primaries." in [finding.what for finding in findings]


def test_servers_that_were_not_looked_at_are_counted_among_those_of_the_cluster() -> None:
    said = {"cluster_state": "ok", "cluster_slots_assigned": "16384"}
    findings = judge(facts(is_cluster=True, server={"cluster": said}, more_servers=2))
    assert "The cluster is ok, with 3 primaries." in [finding.what for finding in findings]


@pytest.mark.parametrize("trouble", [Trouble.HUNG, Trouble.CLOSED])
def test_silence_where_tls_was_wanted_may_mean_that_there_is_none(trouble: Trouble) -> None:
    one = ServerFacts("a:1", trouble=(trouble, "x"))
    for cluster in (
        Facts("rediss+cluster://a:1", servers=[one, one], is_cluster=True),
        Facts("rediss+cluster://a:1", trouble=(trouble, "x")),
    ):
        finding = next(finding for finding in judge(cluster) if finding.level == "problem")
        assert finding.what.startswith("Redis at ")
        assert "write redis:// in place of rediss://" in finding.remedy
    (plain,) = judge(Facts("redis://a:1", trouble=(trouble, "x")))
    assert "in place of rediss://" not in plain.remedy


@given(st.dictionaries(st.sampled_from(sorted(INFO)) | st.text(max_size=5), st.text(max_size=30)))
def test_whatever_a_server_says_of_itself_is_judged_in_printable_words(said: dict[str, str]) -> None:
    for finding in judge(facts(said, is_cluster=True, server={"cluster": said, "config": said})):
        assert (finding.what + finding.remedy).isprintable()


@pytest.mark.parametrize("trouble", Trouble)
def test_every_trouble_is_a_problem_with_a_remedy(trouble: Trouble) -> None:
    (finding,) = judge(Facts("redis://here", trouble=(trouble, "words")))
    assert finding.level == "problem"
    assert finding.what.startswith("Redis at redis://here ")
    assert finding.what.endswith("words")
    assert finding.remedy


def test_the_words_of_an_error_cannot_steer_a_terminal() -> None:
    trouble, words = trouble_of(ValueError("\x1b[2J" + "x" * 10_000))
    assert trouble is Trouble.OTHER
    assert words.startswith(r"\x1b[2J")
    assert len(words) < 400


@pytest.mark.parametrize(("share", "found"), [(0.0, 1), (0.5, 2), (0.51, 3), (0.99, 4), (1.0, 4)])
def test_a_percentile_is_one_of_the_values(share: float, found: int) -> None:
    assert percentile([4, 2, 3, 1], share) == found


# --- real servers -----------------------------------------------------------------------------------------------------

# A loaded machine is slow: what is judged of latency here is nothing.
SLOW: dict[str, Any] = {"store_timeout": 30.0, "timeout": 30.0, "budget": 50.0}


async def found(url: str, **options: Any) -> list[Finding]:
    findings = await examine(url, **{**SLOW, **options})
    for finding in findings:
        assert (finding.what + finding.remedy).isprintable()
    return findings


@pytest.mark.parametrize("own_redis", SERVERS, indirect=True)
async def test_a_server_that_is_set_up_as_the_readme_says_is_well(own_redis: RedisServer) -> None:
    own_redis.command("CONFIG", "SET", "maxmemory", "50mb")
    own_redis.command("CONFIG", "SET", "maxmemory-policy", "volatile-lru")
    findings = await found(own_redis.url)
    assert [finding for finding in worst(findings) if "hiredis" not in finding.what] == []
    assert own_redis.command("DBSIZE") in (0, "0")


def changes(server: RedisServer) -> int:
    """Return how many changes the server counts since it last saved."""
    (line,) = re.findall(r"rdb_changes_since_last_save:(\d+)", server.command("INFO", "persistence"))
    return int(line)


async def test_nothing_is_written_and_nothing_that_is_there_is_changed(own_redis: RedisServer) -> None:
    log = "{echo_cache:log}"
    own_redis.command("XADD", log, "7-1", "open", "x")
    own_redis.command("SET", f"{log}:run", "x")
    own_redis.command("SET", f"echo_cache:{FORMAT_VERSION}:{{a}}", "mine")
    assert (before := changes(own_redis)) == 3
    await found(own_redis.url)
    assert changes(own_redis) == before
    assert own_redis.command("XRANGE", log, "-", "+") == [["7-1", ["open", "x"]]]
    assert own_redis.command("GET", f"{log}:run") == "x"
    assert own_redis.command("GET", f"echo_cache:{FORMAT_VERSION}:{{a}}") == "mine"
    assert len(own_redis.command("KEYS", "*")) == 3


async def test_what_the_cache_keeps_is_counted_and_what_it_did_not_write_is_told(
    redis_server: RedisServer, redis_url: str
) -> None:
    store = RedisStore(redis_url, timeout=30.0)
    for number in range(3):
        await store.set(make_key(number), make_entry(b"x"))
    await store.server.evaluate("return redis.call('XADD', KEYS[1], '*', 'open', 'r')", ["{echo_cache:log}"], ())
    await store.aclose()
    for name in ("echo_cache:7:{a}", "echo_cache:7:{b}", f"echo_cache:{FORMAT_VERSION}:{{c}}", "echo_cache:lease:x"):
        redis_server.command("SET", name, "x")
    redis_server.command("SET", "other:1:{a}", "x")
    text = "\n".join(finding.what for finding in await found(redis_url))
    assert f"There are 4 values of this format (echo_cache:{FORMAT_VERSION}:...)." in text
    assert "2 of version 7." in text
    assert "1 of 4 values that were looked at never expire." in text
    assert "{echo_cache:log} has 1 entries." in text


@pytest.mark.parametrize(
    ("write", "said"),
    [
        pytest.param(("SET", "{echo_cache:log}", "x"), "is a string and no stream", id="string"),
        pytest.param(("XADD", "{echo_cache:log}", "9999999999999-0", "open", "x"), "a year ahead", id="far-future"),
        pytest.param(("XADD", "{echo_cache:log}", "5-1", "marks", "x"), "not understood", id="foreign"),
    ],
)
async def test_a_log_that_is_no_log_of_ours_is_told(
    redis_server: RedisServer, redis_url: str, write: tuple[str, ...], said: str
) -> None:
    redis_server.command(*write)
    assert said in "\n".join(finding.what for finding in await found(redis_url))


async def test_how_long_the_log_is_is_told_also_where_its_end_may_not_be_read(
    own_redis: RedisServer, user: str
) -> None:
    own_redis.command("XADD", "{echo_cache:log}", "5-1", "open", "x")
    own_redis.command("ACL", "SETUSER", "app", "-xrevrange")
    assert "has an unknown number of entries." in "\n".join(finding.what for finding in await found(user))
    own_redis.command("ACL", "SETUSER", "app", "+xlen")
    assert "has 1 entries." in "\n".join(finding.what for finding in await found(user))


async def test_a_restart_since_the_log_was_opened_is_told(redis_server: RedisServer, redis_url: str) -> None:
    redis_server.command("XADD", "{echo_cache:log}", "5-1", "open", "x")
    redis_server.command("SET", "{echo_cache:log}:run", "another")
    assert "has restarted" in "\n".join(finding.what for finding in await found(redis_url))


async def test_a_full_server_that_may_evict_nothing_is_a_problem(own_redis: RedisServer) -> None:
    own_redis.command("CONFIG", "SET", "maxmemory", "1")
    problems = [finding for finding in await found(own_redis.url) if finding.level == "problem"]
    text = "\n".join(finding.what for finding in problems)
    assert "noeviction" in text
    assert re.search("SET, .*XADD fail: OOM", text)


async def test_a_replica_is_a_problem(own_sentinel: RedisSentinel) -> None:
    findings = await found(own_sentinel.replica.url)
    text = "\n".join(finding.what for finding in findings if finding.level == "problem")
    assert "is a replica" in text
    assert "READONLY" in text
    through = await found(own_sentinel.url)
    assert "problem" not in levels(through)
    assert "has 1 replica(s)" in "\n".join(finding.what for finding in through)


@pytest.fixture
def user(own_redis: RedisServer) -> str:
    """The URL of a user who may use the cache's own names for all that docs/redis.md lists."""
    commands = "mget set evalsha eval unlink scan getrange time ping xadd xrange xrevrange xread type del pexpire get"
    of_workers = "hset hgetall hlen hexists hdel"
    allowed = [f"+{command}" for command in f"{commands} {of_workers}".split()]
    own_redis.command(
        "ACL", "SETUSER", "app", "on", ">s3cret", "~echo_cache:*", "~{echo_cache:log}*", *allowed, "+info"
    )
    return own_redis.url.replace("redis://", "redis://app:s3cret@")


async def test_a_user_with_what_the_documents_list_misses_nothing(user: str) -> None:
    findings = await found(user)
    assert "problem" not in levels(findings)
    assert "All commands that are needed are permitted." in [finding.what for finding in findings]


@pytest.mark.parametrize(
    ("rules", "level", "said"),
    [
        pytest.param(["-set"], "problem", "does not permit SET: nothing can be stored", id="set"),
        pytest.param(["-eval", "-evalsha"], "problem", "does not permit EVALSHA, EVAL", id="scripts"),
        pytest.param(["-time"], "warning", "does not permit TIME", id="time"),
        pytest.param(["-scan"], "warning", "does not permit SCAN", id="scan"),
        pytest.param(["-info"], "warning", "does not permit INFO", id="info"),
        pytest.param(["-xadd"], "problem", "does not permit XADD on the names", id="xadd"),
        pytest.param(["resetkeys", "~echo_cache:*"], "problem", "on the names of the invalidation log", id="log-names"),
        pytest.param(["resetkeys", "~{echo_cache:*"], "problem", "nothing can be read", id="names"),
        pytest.param(["-ping"], "warning", "does not permit PING", id="ping"),
        pytest.param(["-hgetall"], "note", "does not permit HGETALL: a dashboard shows one worker", id="workers"),
    ],
)
async def test_a_command_that_is_not_permitted_is_named_with_what_is_lost(
    own_redis: RedisServer, user: str, rules: list[str], level: str, said: str
) -> None:
    own_redis.command("ACL", "SETUSER", "app", *rules)
    findings = [finding for finding in await found(user) if said in finding.what]
    assert [finding.level for finding in findings] == [level]
    assert findings[0].remedy.startswith("ACL SETUSER")


async def test_config_and_info_that_are_refused_are_said_to_be_unseen(own_redis: RedisServer, user: str) -> None:
    own_redis.command("ACL", "SETUSER", "app", "-info", "-config")
    assert "permits neither INFO nor CONFIG" in "\n".join(finding.what for finding in await found(user))


async def test_a_cluster_is_examined_server_by_server(cluster: RedisCluster) -> None:
    findings = await found(cluster.url)
    assert "problem" not in levels(findings)
    text = "\n".join(finding.what for finding in findings)
    assert "The cluster is ok, with 3 primaries." in text
    for node in cluster.nodes:
        assert f"{HOST}:{node.port}: The server is" in text
    alone = await found(f"redis://{HOST}:{cluster.nodes[0].port}")
    assert any("one of a cluster" in finding.what and "redis+cluster" in finding.remedy for finding in alone)


async def test_a_server_of_a_cluster_that_is_down_leaves_the_others_to_be_looked_at(own_cluster: RedisCluster) -> None:
    dead = own_cluster.nodes[1]  # it has no replica
    dead.pause()
    findings = await found(own_cluster.url, timeout=1.0)
    text = "\n".join(finding.what for finding in findings if finding.level == "problem")
    assert f"Redis at {HOST}:{dead.port} does not answer in time" in text
    assert f"{HOST}:{own_cluster.nodes[0].port}: The server is" in "\n".join(finding.what for finding in findings)


# --- trouble ----------------------------------------------------------------------------------------------------------


async def only(url: str, **options: Any) -> Finding:
    (finding,) = await found(url, **options)
    assert finding.level == "problem"
    return finding


async def test_a_server_that_is_not_there_refuses(own_redis: RedisServer) -> None:
    own_redis.stop()
    finding = await only(own_redis.url)
    assert "refuses connections" in finding.what
    assert "Start the server" in finding.remedy


async def test_a_server_that_hangs_is_given_up_in_time(own_redis: RedisServer) -> None:
    own_redis.pause()
    assert "does not answer in time" in (await only(own_redis.url, timeout=0.2)).what


async def test_a_server_that_hangs_in_between_is_given_up_in_time(proxy: RedisProxy) -> None:
    proxy.black_hole(only=("XRANGE",))
    findings = await found(proxy.url, timeout=1.0)
    assert "does not answer in time" in next(finding for finding in findings if finding.level == "problem").what
    assert any("The server is" in finding.what for finding in findings)


async def test_all_of_it_ends_with_its_budget(proxy: RedisProxy) -> None:
    proxy.delay(300.0, only=("TIME",))
    # Nothing else ends it before the test runner does.
    assert "does not answer in time" in (await only(proxy.url, timeout=300.0, budget=0.3)).what


async def test_what_was_found_out_before_the_budget_ran_out_is_told(proxy: RedisProxy) -> None:
    proxy.delay(300.0, only=("XRANGE",))
    findings = await found(proxy.url, timeout=300.0, budget=5.0)
    assert "All commands that are needed are permitted." not in [finding.what for finding in findings]
    assert any("The server is" in finding.what for finding in findings)
    assert "does not answer in time" in next(finding for finding in findings if finding.level == "problem").what


async def test_what_was_found_out_before_the_server_went_is_told() -> None:
    def reply(words: list[bytes]) -> bytes | None:
        if words[0] == b"SCAN" and b"MATCH" in words:
            return None
        return b"-NOPERM no\r\n" if words[0] == b"SET" else b"-ERR no\r\n"

    async with LyingServer(reply) as url:
        findings = await found(url)
    text = "\n".join(finding.what for finding in findings if finding.level == "problem")
    assert "does not permit SET: nothing can be stored" in text
    assert "closes the connection" in text


async def test_a_time_that_is_no_time_is_not_judged() -> None:
    nothing = b"*2\r\n$1\r\n0\r\n*0\r\n"

    async with LyingServer(lambda _: nothing, time=array(b"9" * 400, b"0")) as url:
        findings = await found(url)
    assert "problem" not in levels(findings)
    assert "clock" not in "".join(finding.what for finding in findings)


async def test_a_password_that_is_missing_or_wrong_is_told_without_it(own_redis: RedisServer) -> None:
    own_redis.command("CONFIG", "SET", "requirepass", "s3cret")
    missing = await only(own_redis.url)
    assert "wants a password" in missing.what
    wrong = await only(own_redis.url.replace("redis://", "redis://:gu3ss@"))
    assert "does not accept" in wrong.what
    assert "gu3ss" not in str(wrong)


async def test_a_password_for_a_server_without_one_is_told(redis_url: str) -> None:
    assert (
        "A server without a password takes none."
        in (await only(redis_url.replace("redis://", "redis://:gu3ss@"))).remedy
    )


async def test_a_database_that_is_not_there_is_told(redis_url: str) -> None:
    assert "database" in (await only(redis_url.removesuffix("/0") + "/99")).what


async def test_mistakes_with_tls_are_told_apart(
    tls_proxy: RedisProxy, certificate: Certificate, redis_url: str
) -> None:
    good = await found(f"{tls_proxy.url}?ssl_ca_certs={certificate.file}")
    assert "problem" not in levels(good)
    assert "ssl_ca_certs" in (await only(tls_proxy.url)).remedy
    plain = await only(redis_url.replace("redis://", "rediss://"), timeout=0.5)
    assert "write redis:// in place of rediss://" in plain.remedy
    encrypted = await only(tls_proxy.url.replace("rediss://", "redis://"), timeout=5.0)
    assert "rediss://" in encrypted.remedy


async def test_names_that_lead_nowhere_are_told(redis_url: str) -> None:
    assert "host name" in (await only("redis://no-such-host.invalid")).what
    assert "no socket" in (await only("unix:///no/such/socket")).what
    assert "as a cluster" in (await only(redis_url.replace("redis://", "redis+cluster://"))).what
    service = redis_url.replace("redis://", "redis+sentinel://").replace("/0", "/shop/0")
    assert "names no primary" in (await only(service)).what


@pytest.mark.parametrize(
    ("url", "prefix"),
    [
        pytest.param("http://user:s3cret@host", "echo_cache", id="scheme"),
        pytest.param("redis://user:s3cret@host:port", "echo_cache", id="port"),
        pytest.param("redis://:s3cret@host", "*", id="prefix"),
    ],
)
async def test_a_url_or_a_prefix_that_cannot_be_is_told_without_secrets(url: str, prefix: str) -> None:
    finding = await only(url, prefix=prefix)
    assert "s3cret" not in str(finding)


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(array(b"a", b"b", b"c"), id="array"),
        pytest.param(bulk(b"\xff" * 100), id="bytes"),
        pytest.param(bulk(None), id="null"),
        pytest.param(b":7\r\n", id="number"),
        pytest.param(b"-WHAT is this\r\n", id="error"),
        pytest.param(b"-LOADING it\r\n", id="loading"),
        pytest.param(b"*2\r\n*0\r\n*-1\r\n", id="nested"),
        pytest.param(b"rubbish\r\n", id="rubbish"),
        pytest.param(None, id="closed"),
    ],
)
async def test_a_server_that_talks_nonsense_is_examined_and_nothing_is_raised(reply: bytes | None) -> None:
    async with LyingServer(lambda words: reply, time=array(b"x", b"y")) as url:
        findings = await found(url)
        if reply is None:
            assert levels(findings) == {"problem"}
        assert findings


def test_a_finding_is_json() -> None:
    assert Finding("note", "so", "do").as_json() == {"level": "note", "what": "so", "remedy": "do"}
