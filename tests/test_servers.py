"""The test servers do what the tests of the stores rely on."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import servers
from tests.servers import (
    SERVERS,
    NoServerError,
    RedisCluster,
    RedisSentinel,
    RedisServer,
    ServerError,
    find_server,
)

ROOT = Path(__file__).parent.parent


def test_shared_server_is_emptied_for_each_test(redis_server: RedisServer, request: pytest.FixtureRequest) -> None:
    assert redis_server.command("PING") == "PONG"
    redis_server.command("SET", "left", "behind")
    assert request.getfixturevalue("redis_url") == f"redis://127.0.0.1:{redis_server.port}/0"
    assert redis_server.command("DBSIZE") == "0"


def test_killed_server_refuses_and_a_restart_is_empty_on_the_same_port(own_redis: RedisServer) -> None:
    url, first = own_redis.url, own_redis.pid
    own_redis.command("SET", "key", "value")
    assert own_redis.command("GET", "key") == "value"

    own_redis.kill()
    assert not own_redis.is_running
    assert own_redis.pid is None
    with pytest.raises(ConnectionRefusedError):
        own_redis.command("PING")

    own_redis.restart()
    assert own_redis.url == url
    assert own_redis.pid != first
    assert own_redis.command("EXISTS", "key") == "0"


def test_restart_of_a_running_server_replaces_the_process(own_redis: RedisServer) -> None:
    first = own_redis.pid
    own_redis.restart()
    assert own_redis.is_running
    assert own_redis.pid != first


def test_paused_server_accepts_and_is_silent_until_resumed(own_redis: RedisServer) -> None:
    own_redis.pause()
    assert own_redis.is_running
    with pytest.raises(TimeoutError):
        own_redis.command("PING", timeout=0.05)
    own_redis.resume()
    assert own_redis.command("PING") == "PONG"


def test_paused_server_can_be_stopped_killed_and_closed(own_redis: RedisServer) -> None:
    own_redis.pause()
    own_redis.stop()
    assert not own_redis.is_running
    own_redis.start()
    own_redis.pause()
    own_redis.kill()
    assert not own_redis.is_running


def test_stopped_server_stays_stopped_when_stopped_again(own_redis: RedisServer) -> None:
    own_redis.stop()
    own_redis.stop()
    own_redis.resume()
    with pytest.raises(ServerError, match="is not running"):
        own_redis.pause()


def test_running_server_is_not_started_twice(own_redis: RedisServer) -> None:
    with pytest.raises(ServerError, match="running already"):
        own_redis.start()


def test_arguments_reach_the_server() -> None:
    with RedisServer(["--requirepass", "secret"]) as server, pytest.raises(ServerError, match="NOAUTH"):
        server.command("PING")


def test_bad_argument_is_reported_with_the_servers_own_words() -> None:
    server = RedisServer(["--no-such-option", "1"])
    with pytest.raises(ServerError, match="no-such-option"):
        server.start()
    assert not server.is_running
    server.close()


def test_port_taken_by_another_is_left_for_a_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    free = servers._free_port
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        ports = iter([taken, free()])
        monkeypatch.setattr(servers, "_free_port", lambda: next(ports))
        with RedisServer() as server:
            assert server.port != taken
            assert server.command("PING") == "PONG"


def test_repr_tells_what_the_server_does_now() -> None:
    server = RedisServer()
    assert repr(server) == "<RedisServer [no port yet | stopped]>"
    with server:
        assert repr(server) == f"<RedisServer [{server.port} | pid {server.pid}]>"
        server.pause()
        assert repr(server) == f"<RedisServer [{server.port} | paused]>"
    assert repr(server) == f"<RedisServer [{server.port} | stopped]>"


@pytest.mark.parametrize("own_redis", SERVERS, indirect=True)
def test_each_wheel_that_is_installed_has_a_server_that_works(
    own_redis: RedisServer, request: pytest.FixtureRequest
) -> None:
    assert ("valkey_version" in own_redis.command("INFO", "server")) == ("valkey" in request.node.name)


def test_reply_is_text_or_a_list_of_replies(redis_server: RedisServer, redis_url: str) -> None:
    assert redis_server.command("RPUSH", "list", "a", "b\r\n") == "2"
    assert redis_server.command("LRANGE", "list", "0", "-1") == ["a", "b\r\n"]
    assert redis_server.command("GET", "absent") == ""
    assert redis_server.command("BLPOP", "absent", "0.01") == []
    nested = redis_server.command("EVAL", "return {1, {'a', {}}}", "0")
    assert nested == ["1", ["a", []]]


def test_named_binary_comes_first_and_must_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = find_server()
    monkeypatch.setenv("REDIS_SERVER", found)
    assert find_server() == found
    monkeypatch.setenv("REDIS_SERVER", str(tmp_path / "absent"))
    with pytest.raises(NoServerError, match=r"REDIS_SERVER=.*absent is not a file"):
        find_server()


def test_binary_that_does_not_run_is_passed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken, works = tmp_path / "broken", find_server()
    broken.write_text("#!/bin/sh\nexit 1\n")
    monkeypatch.delenv("REDIS_SERVER", raising=False)
    monkeypatch.setattr(servers, "_candidates", lambda _: iter([("a wheel", str(broken)), ("another", works)]))
    servers._find_server.cache_clear()
    try:
        assert find_server() == works
    finally:
        servers._find_server.cache_clear()


@pytest.mark.parametrize("own_cluster", SERVERS, indirect=True)
async def test_cluster_fails_over_for_real(own_cluster: RedisCluster) -> None:
    assert own_cluster.is_ok()
    ports = [f"127.0.0.1:{node.port}" for node in own_cluster.nodes]
    assert own_cluster.url == "redis+cluster://" + ",".join(ports[:3])
    master, replica = own_cluster.nodes[0], own_cluster.nodes[3]
    assert own_cluster.replica_of(master) is replica
    assert own_cluster.replica_of(own_cluster.nodes[1]) is None
    key = next(key for key in map(str, range(1000)) if own_cluster.slot_of(key) < 5000)
    assert own_cluster.master_of(key) is own_cluster.master_of(0) is master
    assert own_cluster.master_of(16383) is own_cluster.nodes[2]

    assert own_cluster.kill_master_of(key) is master
    assert not own_cluster.is_ok()
    await own_cluster.ok()
    assert own_cluster.master_of(key) is replica
    assert replica.command("SET", key, "value") == "OK"

    # One that comes back follows the one that took over.
    master.start()
    await asyncio.to_thread(eventually, lambda: own_cluster.replica_of(replica) is master)
    own_cluster.flush()
    assert replica.command("EXISTS", key) == "0"


def test_shared_cluster_moves_who_asks_the_wrong_node(cluster: RedisCluster) -> None:
    wrong, right = cluster.nodes[0], cluster.master_of("key")
    assert wrong is not right
    with pytest.raises(ServerError, match=f"^MOVED {cluster.slot_of('key')} 127.0.0.1:{right.port}$"):
        wrong.command("GET", "key")


def test_cluster_that_lost_a_master_without_replica_says_what_it_waited_for(own_cluster: RedisCluster) -> None:
    own_cluster.nodes[1].pause()
    with pytest.raises(ServerError, match=r"waited 0\.1 s for the cluster to be ok; <RedisServer"):
        own_cluster.wait_until_ok(0.1)


@pytest.mark.parametrize("own_sentinel", SERVERS, indirect=True)
async def test_sentinel_makes_the_replica_the_master(own_sentinel: RedisSentinel) -> None:
    assert own_sentinel.url == f"redis+sentinel://127.0.0.1:{own_sentinel.sentinel.port}/main/0"
    assert own_sentinel.current_master() is own_sentinel.master
    with pytest.raises(ServerError, match="READONLY"):
        own_sentinel.replica.command("SET", "key", "value")

    assert own_sentinel.kill_master() is own_sentinel.master
    assert not own_sentinel.is_ok()
    await own_sentinel.ok()
    assert own_sentinel.current_master() is own_sentinel.replica
    assert own_sentinel.replica.command("SET", "key", "value") == "OK"

    # One that comes back is made to follow, and has what it missed.
    own_sentinel.master.start()
    await asyncio.to_thread(eventually, lambda: own_sentinel.master.command("GET", "key") == "value")


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        # A sentinel that gives a server another role cuts its clients off.
        with contextlib.suppress(ConnectionError):
            if condition():
                return
        time.sleep(0.02)
    pytest.fail("it did not come to be")


NEEDS_REDIS = """
def test_that_needs_redis(redis_url):
    assert False, "not reached"

def test_that_needs_a_redis_of_its_own(own_redis):
    assert False, "not reached"
"""


def test_missing_binary_fails_the_test_and_says_where_it_looked(tmp_path: Path) -> None:
    (tmp_path / "test_inner.py").write_text(NEEDS_REDIS)
    options = ["-p", "tests.conftest", "-p", "no:cacheprovider", "-c", "pyproject.toml", "--rootdir", "."]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "REDIS_SERVER": str(tmp_path / "absent"), "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "absent is not a file" in done.stdout
    assert "not reached" not in done.stdout
    assert "skipped" not in done.stdout


RUNNER = """
import sys
from tests.servers import RedisServer
server = RedisServer()
server.start()
if sys.argv[1] == "paused":
    server.pause()
print(server.port, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("state", ["running", "paused"])
def test_server_dies_with_a_test_runner_that_is_killed(state: str, tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", RUNNER, state],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as runner:
        assert runner.stdout is not None
        port = int(runner.stdout.readline())
        with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
            runner.send_signal(signal.SIGKILL)
            # The kernel closes the connection of a process that is gone, with a reset if it must.
            with contextlib.suppress(ConnectionResetError):
                assert connection.recv(1) == b""
