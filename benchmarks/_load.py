"""
A server in a process of its own, a client that keeps it busy, and a look at the processor time that it takes.

The one rule: only the server's processor time counts. Wall time under load says more about the client, the machine's
other work and the loopback than about the app. Linux only.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from _apps import PATH, REQUEST_HEADERS, make_app

__all__ = ["Server", "load", "server_parts"]

_HOST = "127.0.0.1"
_START_SECONDS = 20.0
# Longer than a tick of the slowest kernels (100 Hz).
_SETTLE_SECONDS = 0.012
_SETTLE_READS = 50
# The kind of clock_getcpuclockid: all threads of a process, as the scheduler counts them.
_PROCESS_CLOCK = 2


class Server:
    """uvicorn with the app called *name* on a free port, for as long as the context lasts."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.port = 0
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        command = [sys.executable, __file__, self.name]
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


class _Client(asyncio.Protocol):
    """One connection: once begun it asks, reads the whole answer, asks again, until the common count is used up."""

    def __init__(self, request: bytes, budget: list[int], done: asyncio.Future[bytes]) -> None:
        self._request = request
        self._budget = budget
        self._done = done
        self._wanted = 0
        self._buffer = b""
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def begin(self) -> None:
        """Send the first request."""
        self._budget[0] -= 1
        self._transport.write(self._request)

    def close(self) -> None:
        """Close the connection."""
        self._transport.close()

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer = self._buffer + data if self._buffer else data
        if not self._wanted:
            end = buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            start = buffer.find(b"content-length: ")
            length = int(buffer[start + 16 : buffer.find(b"\r\n", start)]) if 0 <= start < end else 0
            self._wanted = end + 4 + length
        if len(buffer) < self._wanted:
            return
        if not buffer.startswith(b"HTTP/1.1 200") or len(buffer) > self._wanted:
            self._finish(RuntimeError(f"not the answer that was expected: {buffer[:200]!r}"))
            return
        self._buffer, self._wanted = b"", 0
        if self._budget[0] > 0:
            self.begin()
        elif not self._done.done():
            self._done.set_result(buffer)

    def connection_lost(self, error: Exception | None) -> None:
        self._finish(error if error is not None else RuntimeError("the server closed a connection"))

    def _finish(self, error: Exception) -> None:
        if not self._done.done():
            self._done.set_exception(error)


async def load(server: Server, requests: int, *, connections: int = 8) -> bytes:
    """
    Send *requests* requests over *connections* connections that are kept alive, each one after its answer.

    Returns one of the last answers. Raises RuntimeError for an answer that is not a 200.
    """
    loop = asyncio.get_running_loop()
    request = b"GET %s HTTP/1.1\r\n%s\r\n" % (
        PATH,
        b"".join(b"%s: %s\r\n" % (name.title(), value) for name, value in REQUEST_HEADERS),
    )
    budget = [requests]
    clients: list[_Client] = []
    answers: list[asyncio.Future[bytes]] = []
    try:
        for _ in range(min(connections, requests)):
            answers.append(loop.create_future())
            client = _Client(request, budget, answers[-1])
            clients.append(client)
            await loop.create_connection(lambda client=client: client, _HOST, server.port)  # type: ignore[misc]
        # Not before all are connected: the first ones would use up the count.
        for client in clients:
            client.begin()
        return (await asyncio.gather(*answers))[0]
    finally:
        for client in clients:
            client.close()


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


def serve(name: str) -> None:
    """Serve the app called *name* until this process is told to end; print the port once it listens."""
    import uvicorn

    with socket.create_server((_HOST, 0)) as listener:
        config = uvicorn.Config(make_app(name), log_level="error", access_log=False, lifespan="off")
        print(listener.getsockname()[1], flush=True)
        uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    serve(sys.argv[1])
