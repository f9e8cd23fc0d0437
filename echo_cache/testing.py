"""
What tests of apps behind the cache need: a clock to turn by hand, an app that does what the test says, a client.

The one rule: a test waits for what happens, never for time to pass.

    clock = ManualClock()
    app = ScriptedApp()
    cached = HTTPCacheMiddleware(app, cache=Cache(MemoryStore(clock=clock), clock=clock))
    request = open_request(cached, "GET", "/")
    asked = await app.called()
    await asked.respond(200, {"cache-control": "max-age=60"}, b"hello")
    assert (await request.response()).body == b"hello"
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

__all__ = ["AskedApp", "ClientRequest", "ManualClock", "Response", "ScriptedApp", "call", "open_request"]

Message: TypeAlias = MutableMapping[str, Any]
App: TypeAlias = Callable[
    [MutableMapping[str, Any], Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]
]
HeaderLines: TypeAlias = Mapping[str, str] | Iterable[tuple[str, str]]


class ManualClock:
    """A clock that stands still until it is told to go on."""

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self._now = now

    def __repr__(self) -> str:
        return f"<ManualClock {self._now}>"

    def time(self) -> float:
        """Return the time in epoch seconds."""
        return self._now

    def advance(self, seconds: float) -> None:
        """Let *seconds* pass."""
        self._now += seconds


class AskedApp:
    """One call of a ScriptedApp. What it is told to do, it does in the task in which it was called."""

    def __init__(
        self,
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
        *,
        scripted: bool = False,
    ) -> None:
        self.scope = scope
        self.cancelled = False
        self._scripted = scripted
        self._receive = receive
        self._send = send
        self._actions: asyncio.Queue[tuple[Callable[[], Awaitable[Any]], asyncio.Future[Any]]] = asyncio.Queue()
        self._ended = asyncio.Event()
        self._is_over = False

    def __repr__(self) -> str:
        state = "cancelled" if self.cancelled else "ended" if self._ended.is_set() else "running"
        return f"<AskedApp {self.scope['method']} {self.scope['path']} {state}>"

    @property
    def headers(self) -> dict[str, str]:
        """The request's fields by name; repeated ones are joined."""
        return _joined(self.scope["headers"])

    async def start(self, status: int = 200, headers: HeaderLines = (), **more: Any) -> None:
        """Send the head of a response."""
        await self.send({"type": "http.response.start", "status": status, "headers": _raw(headers), **more})

    async def body(self, body: Any = b"", *, more: bool = False) -> None:
        """Send a chunk of the body, the last unless there is *more*."""
        await self.send({"type": "http.response.body", "body": body, "more_body": more})

    async def respond(self, status: int = 200, headers: HeaderLines = (), body: bytes = b"") -> None:
        """Send a whole response and return from the app."""
        await self.start(status, headers)
        await self.body(body)
        await self.finish()

    async def send(self, message: Message) -> None:
        """Send any *message*."""
        await self.do(lambda: self._send(message))

    async def receive(self) -> Message:
        """Return what the app receives next."""
        message: Message = await self.do(self._receive)
        return message

    async def do(self, action: Callable[[], Awaitable[Any]]) -> Any:
        """Run *action* in the app's task and return what it returns; what it raises is raised here only."""
        if self._scripted:
            return await action()
        if self._ended.is_set():
            raise RuntimeError(f"{self!r} can do nothing any more")
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._actions.put_nowait((action, done))
        return await done

    async def finish(self) -> None:
        """Return from the app; a script does so when it ends."""
        if self._scripted:
            return
        self._is_over = True
        await self.do(_nothing)
        await self.ended()

    async def fail(self, error: BaseException) -> None:
        """Raise *error* from the app."""
        if self._scripted:
            raise error

        async def fail() -> None:
            raise _RaisedError(error)

        self._actions.put_nowait((fail, asyncio.get_running_loop().create_future()))
        await self.ended()

    async def ended(self) -> None:
        """Wait until the app has returned, raised or been cancelled."""
        await self._ended.wait()

    async def run(self, script: Callable[[AskedApp], Awaitable[None]] | None) -> None:
        """Be the app: follow *script*, or do what the test says."""
        try:
            await (self._obey() if script is None else script(self))
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        finally:
            self._ended.set()

    async def _obey(self) -> None:
        while not self._is_over or not self._actions.empty():
            action, done = await self._actions.get()
            try:
                result = await action()
            except _RaisedError as raised:
                raise raised.error from None
            except Exception as error:
                done.set_exception(error)
            except asyncio.CancelledError:
                done.cancel()
                raise
            else:
                if not done.done():
                    done.set_result(result)


class ScriptedApp:
    """
    An ASGI app that the test drives, call by call.

    With *script*, each call is given to it in the app's own task; without, the test gets each call from `called`.
    """

    def __init__(self, script: Callable[[AskedApp], Awaitable[None]] | None = None) -> None:
        self.calls: list[AskedApp] = []
        self._script = script
        self._new: asyncio.Queue[AskedApp] = asyncio.Queue()

    def __repr__(self) -> str:
        return f"<ScriptedApp {len(self.calls)} calls>"

    async def __call__(
        self,
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        """Be called."""
        asked = AskedApp(scope, receive, send, scripted=self._script is not None)
        self.calls.append(asked)
        self._new.put_nowait(asked)
        await asked.run(self._script)

    async def called(self) -> AskedApp:
        """Wait for the next call."""
        return await self._new.get()


@dataclass(frozen=True)
class Response:
    """What a client got. headers keep their order and their repetitions."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes
    messages: list[Message] = field(repr=False)

    def __getitem__(self, name: str) -> str:
        """Return the field *name*, repeated lines joined; "" where it is absent."""
        return _joined(self.headers).get(name.lower(), "")


class ClientRequest:
    """A request under way."""

    def __init__(self, app: App, scope: MutableMapping[str, Any], body: bytes = b"") -> None:
        self.scope = scope
        self.messages: list[Message] = []
        self._body = body
        self._asked = False
        self._gone = asyncio.Event()
        self._news = asyncio.Event()
        self._reading = asyncio.Event()
        self._reading.set()
        self._taken = 0
        self.task: asyncio.Task[None] = asyncio.ensure_future(self._run(app))
        self.task.add_done_callback(lambda _: self._news.set())

    def __repr__(self) -> str:
        return f"<ClientRequest {self.scope['method']} {self.scope['path']} {len(self.messages)} messages>"

    async def message(self) -> Message:
        """Wait for the next message that reaches the client, in order. Raises what the app raises instead."""
        while self._taken == len(self.messages):
            if self.task.done():
                await self.task
                raise EOFError("the app has returned")
            self._news.clear()
            await self._news.wait()
        self._taken += 1
        return self.messages[self._taken - 1]

    async def response(self) -> Response:
        """Wait for the end of the request and return the response. Raises what the app raises."""
        await self.task
        return self.so_far()

    def so_far(self) -> Response:
        """Return what has reached the client until now; status 0 when nothing has."""
        heads = [message for message in self.messages if message["type"] == "http.response.start"]
        body = b"".join(bytes(m.get("body", b"")) for m in self.messages if m["type"] == "http.response.body")
        head: Message = heads[0] if heads else {"status": 0, "headers": []}
        return Response(head["status"], list(head["headers"]), body, self.messages)

    def disconnect(self) -> None:
        """Leave: the app's `receive` says so."""
        self._gone.set()

    def cancel(self) -> None:
        """Cancel the task in which the app was called, as servers may when a client leaves."""
        self.task.cancel()

    def stop_reading(self) -> None:
        """Let `send` wait from now on, as it does when a client reads no more."""
        self._reading.clear()

    def read_on(self) -> None:
        """Read again."""
        self._reading.set()

    async def _run(self, app: App) -> None:
        await app(self.scope, self._receive, self._send)

    async def _receive(self) -> Message:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": self._body, "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        await self._reading.wait()
        self.messages.append(message)
        self._news.set()


def open_request(
    app: App,
    method: str = "GET",
    path: str = "/",
    headers: HeaderLines = (),
    *,
    body: bytes = b"",
    **scope: Any,
) -> ClientRequest:
    """Begin a request in a task of its own. *path* may have a query; *scope* adds to the ASGI scope."""
    raw_path, _, query = path.partition("?")
    lines = _raw(headers)
    if not any(name == b"host" for name, _ in lines):
        lines.insert(0, (b"host", b"test"))
    if body:
        lines.append((b"content-length", b"%d" % len(body)))
    whole: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": raw_path,
        "raw_path": raw_path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": lines,
        "client": ("127.0.0.1", 1234),
        "server": ("test", 80),
        **scope,
    }
    return ClientRequest(app, whole, body)


async def call(
    app: App,
    method: str = "GET",
    path: str = "/",
    headers: HeaderLines = (),
    *,
    body: bytes = b"",
    **scope: Any,
) -> Response:
    """Send a request and return its response. Raises what the app raises."""
    request = open_request(app, method, path, headers, body=body, **scope)
    try:
        return await request.response()
    finally:
        request.cancel()


class _RaisedError(Exception):
    """Carries what the app is to raise out of the loop that runs its actions."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error


async def _nothing() -> None:
    pass


def _raw(headers: HeaderLines) -> list[tuple[bytes, bytes]]:
    pairs = headers.items() if isinstance(headers, Mapping) else headers
    return [(name.lower().encode(), value.encode()) for name, value in pairs]


def _joined(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    joined: dict[str, str] = {}
    for name, value in headers:
        key = name.decode("latin-1").lower()
        joined[key] = f"{joined[key]}, {value.decode('latin-1')}" if key in joined else value.decode("latin-1")
    return joined
