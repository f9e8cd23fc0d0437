"""
A server in a process of its own, a client that keeps it busy, and a look at the processor time that it takes.

The one rule: only the server's processor time counts. Wall time under load says more about the client, the machine's
other work and the loopback than about the app. Linux only.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from _apps import PATH, REQUEST_HEADERS, make_app

__all__ = ["Answers", "Connections", "Question", "Server", "load", "question", "server_parts"]

_HOST = "127.0.0.1"
_START_SECONDS = 20.0
# Longer than a tick of the slowest kernels (100 Hz).
_SETTLE_SECONDS = 0.012
_SETTLE_READS = 50
# The kind of clock_getcpuclockid: all threads of a process, as the scheduler counts them.
_PROCESS_CLOCK = 2


class Server:
    """uvicorn with the app called *name*, over the Redis at *redis_url*, on a free port, while the context lasts."""

    def __init__(self, name: str, redis_url: str = "") -> None:
        self.name = name
        self.redis_url = redis_url
        self.port = 0
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        command = [sys.executable, __file__, self.name, self.redis_url]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the server of {self.name!r} did not start")
        self.port = int(line)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            try:
                process.wait(_START_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()

    async def settled_cpu_seconds(self) -> float:
        """
        Return the processor time that the server, which is idle, has taken since it began, the kernel's included.

        The kernel brings the clock of another process up to date at a tick or when that process sleeps: read at once,
        it was seen 2.7 ms late, which is all of a hundred requests. So it is read until it stands still.
        """
        before = -1.0
        for _ in range(_SETTLE_READS):
            await asyncio.sleep(_SETTLE_SECONDS)
            now = self._cpu_seconds()
            # uvicorn wakes up ten times a second to look after itself, for some 0.1 ms.
            if now - before < 0.000_5:
                return now
            before = now
        raise RuntimeError(f"the server of {self.name!r} does not come to rest")

    def _cpu_seconds(self) -> float:
        assert self._process is not None
        pid = self._process.pid
        try:
            return time.clock_gettime((~pid << 3) | _PROCESS_CLOCK)
        except OSError:
            # In ticks of 10 ms, so it takes more requests for the same precision.
            after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            return (int(after_name[11]) + int(after_name[12])) / os.sysconf("SC_CLK_TCK")


class Question(NamedTuple):
    """A request as bytes, and how the body of its answer begins."""

    request: bytes
    body: bytes


def question(path: bytes = PATH, body: bytes = b"") -> Question:
    """Return a browser's GET of *path*; *body* is what the answer's must begin with."""
    fields = b"".join(b"%s: %s\r\n" % (name.title(), value) for name, value in REQUEST_HEADERS)
    return Question(b"GET %s HTTP/1.1\r\n%s\r\n" % (path, fields), body)


class Answers(NamedTuple):
    """The last answer, and how many seconds each took, from the write of its request to its last byte."""

    last: bytes
    seconds: list[float]


class Connections:
    """
    *count* connections to *server*, kept alive as long as the context lasts; each asks again once it has its answer.

    They take *questions* in turn, over and over. *says* must be in the head of every answer.
    """

    def __init__(self, server: Server, count: int, questions: Sequence[Question], *, says: bytes = b"") -> None:
        self.says = says
        self._server = server
        self._questions = itertools.cycle(questions)
        self._clients = [_Client(self) for _ in range(count)]

        # Of what is asked now; changed between awaits only.
        self._left = 0
        self._under_way = 0
        self._seconds: list[float] = []
        self._done: asyncio.Future[bytes] | None = None
        self._trouble: Exception | None = None

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        try:
            for client in self._clients:
                await loop.create_connection(lambda client=client: client, _HOST, self._server.port)  # type: ignore[misc]
        except BaseException:
            self._close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self._close()

    async def ask(self, requests: int) -> Answers:
        """Send *requests* requests and wait for all answers. Raises RuntimeError for one that is not as it must be."""
        if self._trouble is not None:
            raise self._trouble
        self._left, self._seconds = requests, []
        self._done = asyncio.get_running_loop().create_future()
        for client in self._clients[:requests]:
            client.begin(self._take())
        return Answers(await self._done, self._seconds)

    def _take(self) -> Question:
        self._left -= 1
        self._under_way += 1
        return next(self._questions)

    def answered(self, client: _Client, answer: bytes, seconds: float) -> None:
        """Note *answer* and let *client* go on, if anything is left to ask."""
        self._seconds.append(seconds)
        self._under_way -= 1
        if self._left > 0:
            client.begin(self._take())
        elif not self._under_way and self._done is not None and not self._done.done():
            self._done.set_result(answer)

    def failed(self, error: Exception) -> None:
        """End what is asked now, and all that would come, with *error*."""
        self._trouble = error
        if self._done is not None and not self._done.done():
            self._done.set_exception(error)

    def _close(self) -> None:
        for client in self._clients:
            client.close()


class _Client(asyncio.Protocol):
    """One connection: asks, reads the whole answer, looks at it and tells its owner."""

    def __init__(self, owner: Connections) -> None:
        self._owner = owner
        self._question = Question(b"", b"")
        self._begun = 0.0
        self._head = 0
        self._wanted = 0
        self._buffer = b""
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def begin(self, question: Question) -> None:
        """Ask."""
        self._question = question
        self._begun = time.perf_counter()
        self._transport.write(question.request)

    def close(self) -> None:
        """Close the connection."""
        if self._transport is not None:
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer = self._buffer + data if self._buffer else data
        if not self._wanted:
            end = buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            start = buffer.find(b"content-length: ")
            length = int(buffer[start + 16 : buffer.find(b"\r\n", start)]) if 0 <= start < end else 0
            self._head = end + 4
            self._wanted = end + 4 + length
        if len(buffer) < self._wanted:
            return
        seconds = time.perf_counter() - self._begun
        if not self._is_as_it_must_be(buffer):
            self._owner.failed(RuntimeError(f"not the answer that was expected: {buffer[:500]!r}"))
            return
        self._buffer, self._wanted = b"", 0
        self._owner.answered(self, buffer, seconds)

    def _is_as_it_must_be(self, answer: bytes) -> bool:
        return (
            answer.startswith(b"HTTP/1.1 200")
            and len(answer) == self._wanted
            and answer.find(self._owner.says, 0, self._head) >= 0
            and answer.startswith(self._question.body, self._head)
        )

    def connection_lost(self, error: Exception | None) -> None:
        self._owner.failed(error if error is not None else RuntimeError("the server closed a connection"))


async def load(server: Server, requests: int, *, connections: int = 8) -> bytes:
    """
    Send *requests* requests over *connections* connections that are kept alive, each one after its answer.

    Returns the last answer. Raises RuntimeError for an answer that is not a 200.
    """
    # Not before all are connected: the first ones would use up the count.
    async with Connections(server, min(connections, requests), [question()]) as opened:
        return (await opened.ask(requests)).last


def server_parts() -> str:
    """Return the names and versions of what serves: uvicorn with its parser and its loop. Raises ImportError."""
    import uvicorn

    parts = []
    for best, otherwise in (("httptools", "h11"), ("uvloop", "asyncio")):
        try:
            __import__(best)
        except ImportError:
            parts.append(otherwise)
        else:
            parts.append(best)
    return f"uvicorn {uvicorn.__version__} with {' and '.join(parts)}"


def serve(name: str, redis_url: str) -> None:
    """Serve the app called *name* until this process is told to end; print the port once it listens."""
    import uvicorn

    with socket.create_server((_HOST, 0)) as listener:
        app = make_app(name, redis_url)
        # Connections rest while other servers are measured.
        config = uvicorn.Config(app, log_level="error", access_log=False, lifespan="off", timeout_keep_alive=600)
        print(listener.getsockname()[1], flush=True)
        uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2])
