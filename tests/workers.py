"""
Real worker processes: one small app behind the cache, each with a memory of its own, all over one Redis.

The one rule: every answer says itself how old it is. The body tells which version the handler read when it began, when
that was, and which call of the handler it comes from; `x-sent` tells when the worker sent it. All moments are seconds
of time.monotonic, which all processes of one machine share.

    GET  /page/<number>           a page, tagged page:<number>; fresh for LIFETIME; ?<seconds> is how long it takes
    POST /write/<kind>/<number>   writes a new version of it, then invalidates it by <kind>, one of KINDS
    POST /flood/<count>/<size>/<name>   invalidates <count> distinct tags, <size> with each call
    GET  /state                   what the worker says of itself; never stored

Linux only, as SIGSTOP and /proc are used.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import itertools
import json
import mmap
import os
import random
import resource
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final, Self

from tests.servers import WATCHDOG

__all__ = ["KINDS", "LIFETIME", "Answer", "Connection", "State", "Worker", "versions_file", "workers"]

ROOT: Final = Path(__file__).parent.parent
HOST: Final = "127.0.0.1"
# A loaded machine is slow; an idle one starts a worker in 0.7 s.
PATIENCE: Final = 30.0

# Shorter than the caps of both levels: beyond them, what a hit in memory shows is less than what one in Redis does.
LIFETIME: Final = 120
PAGES: Final = 1024
# How an invalidation names a page.
KINDS: Final = ("tag", "url", "prefix", "all")

_VERSION: Final = struct.Struct("q")
# What must not be said on stderr: a leak, or an error that is not the trouble that a test makes.
_BAD_WORDS: Final = ("Traceback", "never retrieved", "was destroyed", "never awaited", "Warning:")


# --- the client -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Answer:
    """A response, and when its request was sent and its last byte received."""

    sent: float
    received: float
    status: int
    fields: dict[bytes, bytes]
    body: bytes

    @property
    def cache_status(self) -> str:
        """What the cache says of it."""
        return self.fields.get(b"cache-status", b"").decode()

    def json(self) -> Any:
        """Return the body."""
        return json.loads(self.body)


class Connection:
    """A connection that is kept alive, one request after the other."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter

    async def __aenter__(self) -> Self:
        self._reader, self._writer = await asyncio.open_connection(HOST, self._port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()

    async def ask(self, path: str, method: str = "GET") -> Answer:
        """Return the answer to a request, which must be a 200."""
        length = "Content-Length: 0\r\n" if method == "POST" else ""
        request = f"{method} {path} HTTP/1.1\r\nHost: shop.test\r\n{length}\r\n".encode()
        sent = time.monotonic()
        self._writer.write(request)
        head = await self._reader.readuntil(b"\r\n\r\n")
        status, *lines = head[:-4].split(b"\r\n")
        fields = {name.lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
        body = await self._reader.readexactly(int(fields[b"content-length"]))
        answer = Answer(sent, time.monotonic(), int(status.split(b" ")[1]), fields, body)
        assert answer.status == 200, (path, answer)
        return answer


@dataclass(frozen=True, slots=True)
class State:
    """
    What a worker says of itself.

    pending: how many invalidations are yet to be told to others. heard: whether the log is. resident: its bytes.
    """

    pending: int
    heard: bool
    unheard_for: float
    position: str
    resident: int


# --- the processes ----------------------------------------------------------------------------------------------------


@dataclass
class Worker:
    """
    A worker process over the Redis at *url*; *versions* is the file in which all of them keep the pages' versions.

    delay: for how long a handler works at the most, in seconds; how long it is each time, is drawn by lot.
    """

    url: str
    versions: str
    max_unsynced: float = 5.0
    unsynced: str = "cap"
    strategy: str = "write_through"
    delay: float = 0.0
    timeout: float = 0.1
    port: int = field(default=0, init=False)
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False, repr=False)
    _watchdog: subprocess.Popen[bytes] | None = field(default=None, init=False, repr=False)
    _said: IO[bytes] | None = field(default=None, init=False, repr=False)

    @property
    def pid(self) -> int:
        """The id of its process."""
        assert self._process is not None
        return self._process.pid

    def begin(self) -> None:
        """Start the process; `started` waits until it listens."""
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  # `close` closes it
        command = [sys.executable, "-W", "error", "-m", "tests.workers", self.url, self.versions]
        for name in ("max_unsynced", "unsynced", "strategy", "delay", "timeout"):
            command += [f"--{name}", str(getattr(self, name))]
        # A session of its own: Ctrl-C in the terminal is for the runner, which then ends its workers.
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=self._said, cwd=ROOT, start_new_session=True
        )
        # It may be stopped when the runner is killed, so it cannot look after itself.
        self._watchdog = subprocess.Popen(
            ["/bin/sh", "-c", WATCHDOG, "echo-cache-worker-watchdog", str(self._process.pid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def started(self) -> None:
        """Wait until it listens."""
        assert self._process is not None
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"the worker did not start: {self.said()}"
        self.port = int(line)

    def stop(self) -> None:
        """Freeze the process (SIGSTOP) and return when it is frozen."""
        os.kill(self.pid, signal.SIGSTOP)
        _, status = os.waitpid(self.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status), self.said()

    def go_on(self) -> None:
        """Let it go on (SIGCONT)."""
        os.kill(self.pid, signal.SIGCONT)

    def said(self) -> str:
        """Return what it has written to stderr."""
        assert self._said is not None
        self._said.seek(0)
        return self._said.read().decode(errors="replace")

    def end(self) -> None:
        """End the process in good order (SIGTERM). Raises AssertionError when the order was not good."""
        assert self._process is not None
        self.go_on()
        self._process.send_signal(signal.SIGTERM)
        code = self._process.wait(PATIENCE)
        said = self.said()
        assert code in (0, -signal.SIGTERM), said
        assert not any(word in said for word in _BAD_WORDS), said

    def close(self) -> None:
        """Leave nothing behind, whatever happened."""
        process, watchdog = self._process, self._watchdog
        if process is not None:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
        if watchdog is not None:
            watchdog.kill()
            watchdog.wait()
            assert watchdog.stdin is not None
            watchdog.stdin.close()
        if self._said is not None:
            self._said.close()

    async def state(self) -> State:
        """Ask it how it is."""
        async with Connection(self.port) as connection:
            return State(**(await connection.ask("/state")).json())


@contextlib.contextmanager
def workers(wanted: Sequence[Worker]) -> Iterator[Sequence[Worker]]:
    """Run the *wanted* processes, started at once; end them in good order."""
    try:
        for worker in wanted:
            worker.begin()
        for worker in wanted:
            worker.started()
        yield wanted
        for worker in wanted:
            worker.end()
    finally:
        for worker in wanted:
            worker.close()


@contextlib.contextmanager
def versions_file() -> Iterator[str]:
    """Make the file of the pages' versions; it is gone at the end."""
    with tempfile.NamedTemporaryFile(prefix="echo-cache-versions-") as file:
        file.truncate(PAGES * _VERSION.size)
        yield file.name


# --- the app ----------------------------------------------------------------------------------------------------------


class _Site:
    """The app, which is called behind *cache*."""

    def __init__(self, cache: Any, versions: str, delay: float) -> None:
        self._cache = cache
        self._delay = delay
        self._fills = itertools.count()
        with open(versions, "r+b") as file:
            self._versions = mmap.mmap(file.fileno(), PAGES * _VERSION.size)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            while (message := await receive())["type"] == "lifespan.startup":
                await send({"type": "lifespan.startup.complete"})
            assert message["type"] == "lifespan.shutdown"
            await send({"type": "lifespan.shutdown.complete"})
            return
        _, what, *rest = scope["path"].split("/")
        query = [scope["query_string"].decode()] if scope["query_string"] else []
        told = await getattr(self, f"_{what}")(*rest, *query)
        body = json.dumps(told).encode()
        caching = b"max-age=%d" % LIFETIME if what == "page" else b"no-store"
        headers = [(b"content-length", b"%d" % len(body)), (b"cache-control", caching)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _page(self, number: str, seconds: str = "") -> dict[str, Any]:
        began = time.monotonic()
        (version,) = _VERSION.unpack_from(self._versions, int(number) * _VERSION.size)
        self._cache.tag(f"page:{number}")
        if seconds or self._delay:
            await asyncio.sleep(float(seconds) if seconds else random.uniform(0.0, self._delay))
        return {"version": version, "began": began, "fill": f"{os.getpid()}.{next(self._fills)}"}

    async def _write(self, kind: str, number: str) -> dict[str, Any]:
        version = time.monotonic_ns()  # grows, whoever writes
        _VERSION.pack_into(self._versions, int(number) * _VERSION.size, version)
        begun = time.monotonic()
        if kind == "tag":
            result = await self._cache.invalidate(tags=[f"page:{number}"])
        elif kind == "url":
            result = await self._cache.invalidate(url=f"/page/{number}")
        elif kind == "prefix":
            result = await self._cache.invalidate(prefix=f"/page/{number}")
        else:
            result = await self._cache.clear()
        acknowledged = time.monotonic()
        return {
            "version": version,
            "begun": begun,
            "acknowledged": acknowledged,
            "propagated": result.propagated,
        }

    async def _flood(self, count: str, size: str, name: str) -> dict[str, Any]:
        began, failed = time.monotonic(), 0
        for start in range(0, int(count), int(size)):
            end = min(start + int(size), int(count))
            result = await self._cache.invalidate(tags=[f"{name}:{number}" for number in range(start, end)])
            failed += not result.propagated
        return {"seconds": time.monotonic() - began, "failed": failed}

    async def _state(self) -> dict[str, Any]:
        gc.collect()
        log = self._cache.log
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()  # noqa: ASYNC240
        return {
            "pending": log.pending,
            "heard": log.trouble is None,
            "unheard_for": min(log.unheard_for(), 1e9),
            "position": str(log.position()),
            "resident": resident,
        }


def _stamped(app: Any) -> Any:
    """Return *app* with a field that tells when each answer was sent."""

    async def stamped(scope: Any, receive: Any, send: Any) -> None:
        async def stamp(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"].append((b"x-sent", b"%.6f" % time.monotonic()))
            await send(message)

        await app(scope, receive, stamp if scope["type"] == "http" else send)

    return stamped


def _serve(options: argparse.Namespace) -> None:
    """Serve until this process is told to end; print the port once it listens."""
    import uvicorn

    from echo_cache import Cache, HTTPCacheMiddleware, MemoryStore, RedisStore, TwoLevelConfig, TwoLevelStore
    from echo_cache.options import CoordinationOptions

    store = TwoLevelStore(
        MemoryStore(), RedisStore(options.url, timeout=options.timeout), TwoLevelConfig(strategy=options.strategy)
    )
    coordination = CoordinationOptions(max_unsynced=options.max_unsynced, unsynced=options.unsynced)
    cache = Cache(store, coordination=coordination)
    # What is told of the worker is not the cache's, and a write is not to be invalidated by its method as well.
    edge = HTTPCacheMiddleware(
        _Site(cache, options.versions, options.delay), cache=cache, exclude=["/state", "/write/*", "/flood/*"]
    )
    with socket.create_server((HOST, 0), backlog=1024) as listener:
        config = uvicorn.Config(
            _stamped(edge), log_level="error", access_log=False, lifespan="on", timeout_keep_alive=600
        )
        print(listener.getsockname()[1], flush=True)
        uvicorn.Server(config).run(sockets=[listener])


def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("versions")
    for name, kind in (("max_unsynced", float), ("unsynced", str), ("strategy", str), ("delay", float)):
        parser.add_argument(f"--{name}", type=kind, required=True)
    parser.add_argument("--timeout", type=float, required=True)
    _serve(parser.parse_args())


if __name__ == "__main__":
    _main()
