"""
HTTP for the tests, byte by byte: uvicorn in a thread, an origin that writes what it is told, a client that reads it.

Origin and client know no HTTP library, so that nothing is smoothed over on the way.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Self, TypeAlias

import uvicorn

__all__ = ["Client", "Origin", "Reply", "Seen", "UvicornServer", "ask", "parse_reply", "uvicorn_server"]

HOST = "127.0.0.1"
# A test that hangs should say where, before the runner ends it.
PATIENCE = 30.0

Fields: TypeAlias = list[tuple[bytes, bytes]]


class UvicornServer(uvicorn.Server):
    """A server in a thread: *call* reaches into its event loop."""

    def __init__(self, app: Any, http: str) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=http,
                loop="asyncio",
                lifespan="on",
                log_config=None,
                log_level="critical",  # uvicorn logs what the app raises; here that is what is tested
                access_log=False,
                date_header=False,
                server_header=False,
                timeout_graceful_shutdown=5,
            )
        )
        self.up = threading.Event()
        self.port = 0
        self._loop: asyncio.AbstractEventLoop
        self._stopped: asyncio.Event

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopped = asyncio.Event()
        await super().startup(sockets)
        self.up.set()

    async def main_loop(self) -> None:
        """Wait until *stop* is called; uvicorn's own looks for its flag ten times a second, which adds up."""
        await self._stopped.wait()

    def stop(self) -> None:
        """Begin to shut down."""
        self.should_exit = True
        self.call(self._stopped.set)

    def call(self, function: Callable[[], object]) -> None:
        """Run *function* in the server's event loop."""
        self._loop.call_soon_threadsafe(function)


@contextlib.contextmanager
def uvicorn_server(app: Any, *, http: str = "httptools") -> Iterator[UvicornServer]:
    """Run *app* under uvicorn in a thread, on a free port, with the fields of the app alone."""
    server = UvicornServer(app, http)
    with socket.create_server((HOST, 0)) as listener:
        server.port = listener.getsockname()[1]
        thread = threading.Thread(target=server.run, args=([listener],), name="uvicorn")
        thread.start()
        assert server.up.wait(PATIENCE), "uvicorn did not start"
        try:
            yield server
        finally:
            server.stop()
            thread.join(PATIENCE)
    assert not thread.is_alive(), "uvicorn did not stop"


# The client.


@dataclass
class Reply:
    """A response as it came: *body* is without its chunks; *whole* says whether its framing ended as it must."""

    status: int
    fields: Fields
    body: bytes
    whole: bool

    def get(self, name: bytes) -> list[bytes]:
        """Return the values of all lines of a field, in order."""
        return [value for known, value in self.fields if known == name]


def parse_reply(raw: bytes, *, bodiless: bool = False) -> Reply:
    """Return all that a server wrote to a connection that it then closed, as one response."""
    head, _, rest = raw.partition(b"\r\n\r\n")
    status_line, *lines = head.split(b"\r\n")
    version, status = status_line.split(b" ")[:2]
    assert version == b"HTTP/1.1"
    fields = [(name.lower(), value.strip()) for name, _, value in (line.partition(b":") for line in lines)]
    reply = Reply(int(status), fields, rest, whole=True)
    if bodiless or reply.status in (204, 304):
        assert rest == b"", "a body where there is none"
    elif reply.get(b"transfer-encoding") == [b"chunked"]:
        reply.body, reply.whole = _dechunk(rest)
    elif lengths := reply.get(b"content-length"):
        assert len(lengths) == 1
        assert len(rest) <= int(lengths[0]), "bytes after the body"
        reply.whole = len(rest) == int(lengths[0])
    return reply


def _dechunk(raw: bytes) -> tuple[bytes, bool]:
    body: list[bytes] = []
    at = 0
    while (line_end := raw.find(b"\r\n", at)) >= 0:
        length = int(raw[at:line_end], 16)
        start, at = line_end + 2, line_end + 2 + length + 2
        body.append(raw[start : start + length])
        if raw[at - 2 : at] != b"\r\n":
            break
        if length == 0:
            assert at == len(raw), "bytes after the last chunk"
            return b"".join(body), True
    return b"".join(body), False


class Client:
    """One request on a connection of its own, written and read as the test says."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.received = b""

    @classmethod
    @contextlib.asynccontextmanager
    async def connected(cls, port: int) -> AsyncIterator[Self]:
        """Connect, and be gone at the end."""
        reader, writer = await asyncio.open_connection(HOST, port)
        try:
            yield cls(reader, writer)
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def send(
        self, target: str, *, method: str = "GET", fields: Fields | None = None, body: bytes = b"", keep: bool = False
    ) -> None:
        """Send a request; *body* goes as it is, so *fields* must say how it is framed."""
        lines = [f"{method} {target} HTTP/1.1".encode(), b"Host: shop.test"]
        lines += [name + b": " + value for name, value in fields or []]
        lines += [] if keep else [b"Connection: close"]
        self._writer.write(b"\r\n".join([*lines, b"", body]))
        await self._writer.drain()

    async def write(self, data: bytes) -> None:
        """Send more of the body."""
        self._writer.write(data)
        await self._writer.drain()

    async def read_until(self, expected: bytes) -> None:
        """Read until *expected* has come."""
        while expected not in self.received:
            data = await asyncio.wait_for(self._reader.read(65536), PATIENCE)
            assert data, f"the connection ended before {expected!r}; received {self.received!r}"
            self.received += data

    async def read_all(self) -> bytes:
        """Read until the server closes the connection; return all that was received on it."""
        parts = [self.received]
        with contextlib.suppress(ConnectionResetError):
            while data := await asyncio.wait_for(self._reader.read(1 << 20), PATIENCE):
                parts.append(data)
        self.received = b"".join(parts)
        return self.received


async def ask(port: int, target: str, *, method: str = "GET", fields: Fields | None = None, body: bytes = b"") -> Reply:
    """Return the answer to one request."""
    async with Client.connected(port) as client:
        await client.send(target, method=method, fields=fields, body=body)
        return parse_reply(await client.read_all(), bodiless=method == "HEAD")


# The origin.


@dataclass
class Seen:
    """A request as the origin saw it; *body* is without its chunks."""

    method: str
    target: str
    fields: Fields
    body: bytes = b""

    def get(self, name: bytes) -> list[bytes]:
        """Return the values of all lines of a field, in order."""
        return [value for known, value in self.fields if known == name]


Handler: TypeAlias = Callable[[Seen, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Origin:
    """
    An HTTP server of raw bytes, in the event loop of the test: one request for each connection.

    handlers: by path, called with the request and the connection, which is closed when they return. A handler may be
    bytes, which are sent as they are; to HEAD, up to the empty line.
    """

    handlers: dict[str, Handler | bytes] = field(default_factory=dict)
    seen: list[Seen] = field(default_factory=list)
    port: int = 0

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        """Listen on a free port."""
        server = await asyncio.start_server(self._serve, HOST, 0)
        self.port = server.sockets[0].getsockname()[1]
        self._tasks: set[asyncio.Task[None]] = set()
        try:
            yield self
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def calls(self, target: str) -> int:
        """Return how many requests there were for *target*."""
        return sum(seen.target == target for seen in self.seen)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with contextlib.suppress(asyncio.IncompleteReadError):  # a client that leaves
                seen = await self._read_request(reader)
                self.seen.append(seen)
                handler = self.handlers[seen.target.partition("?")[0]]
                if isinstance(handler, bytes):
                    head, line, body = handler.partition(b"\r\n\r\n")
                    writer.write(head + line + (b"" if seen.method == "HEAD" else body))
                else:
                    await handler(seen, writer)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _read_request(self, reader: asyncio.StreamReader) -> Seen:
        head = await reader.readuntil(b"\r\n\r\n")
        request_line, *lines = head[:-4].split(b"\r\n")
        method, target, _ = request_line.decode().split(" ")
        fields = [(name.lower(), value.strip()) for name, _, value in (line.partition(b":") for line in lines)]
        seen = Seen(method, target, fields)
        if seen.get(b"transfer-encoding") == [b"chunked"]:
            while size := int(await reader.readuntil(b"\r\n"), 16):
                seen.body += (await reader.readexactly(size + 2))[:-2]
            await reader.readexactly(2)
        elif lengths := seen.get(b"content-length"):
            seen.body = await reader.readexactly(int(lengths[0]))
        return seen
