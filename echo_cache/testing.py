"""
What tests of apps behind the cache need: assertions on what the cache did, a clock to turn by hand, a cache that lives
in memory for a test, an app that does what the test says, a client.

The one rule: a test waits for what happens, never for time to pass.

    clock = ManualClock()
    app = ScriptedApp()
    cached = HTTPCacheMiddleware(app, cache=Cache(MemoryStore(clock=clock), clock=clock))
    request = open_request(cached, "GET", "/")
    asked = await app.called()
    await asked.respond(200, {"cache-control": "max-age=60"}, b"hello")
    assert_stored(await request.response())
    assert_hit(await call(cached, "GET", "/"))
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeAlias

from echo_cache import fields
from echo_cache.cache import Cache
from echo_cache.cache.threads import run_in_loop
from echo_cache.coordination.clock import Clock
from echo_cache.errors import ConfigurationError
from echo_cache.fields.structured import Token
from echo_cache.model import Fwd, Refusal
from echo_cache.policy.explaining import WHY_FORWARDED, WHY_NOT_STORED
from echo_cache.stores import MemoryStore

__all__ = [
    "AskedApp",
    "CacheStatus",
    "ClientRequest",
    "ManualClock",
    "Response",
    "ScriptedApp",
    "assert_collapsed",
    "assert_hit",
    "assert_miss",
    "assert_not_stored",
    "assert_stale",
    "assert_stored",
    "cache_of",
    "cache_status",
    "call",
    "in_memory",
    "open_request",
    "without_cache",
]

Message: TypeAlias = MutableMapping[str, Any]
App: TypeAlias = Callable[
    [MutableMapping[str, Any], Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]
]
HeaderLines: TypeAlias = Mapping[str, str] | Iterable[tuple[str, str]]


# --- what the cache did with a response -------------------------------------------------------------------------------


class Answer(Protocol):
    """A response of httpx, of Starlette's TestClient, of `call`, or of another client: it has headers."""

    @property
    def headers(self) -> Any:
        """A mapping, or (name, value) pairs, of str or bytes."""
        ...


@dataclass(frozen=True, slots=True)
class CacheStatus:
    """
    What one cache says of a response in Cache-Status.

    text: its member of the list, as it was sent. hit: the cache answered. fwd: why the request went to the app.
    fwd_status: what the app answered, where the client got something else. ttl: for how many seconds it is still fresh;
    negative where it is stale. stored: it was stored. collapsed: it is the answer to another request, too. detail: why
    it was not stored, or what else was special.

    RFC 9211 section 2.
    """

    text: str
    name: str
    hit: bool = False
    fwd: str | None = None
    fwd_status: int | None = None
    ttl: int | None = None
    stored: bool = False
    collapsed: bool = False
    detail: str | None = None

    @property
    def is_stale(self) -> bool:
        """Whether a stale stored response was the answer. Cache-Status counts whole seconds: 0 is on both sides."""
        return (self.hit and self.ttl is not None and self.ttl < 0) or self.detail == _STALE_IF_ERROR

    @property
    def is_kept(self) -> bool:
        """Whether the app's answer is in the cache: stored now, by the request it was shared with, or confirmed."""
        return self.stored or self.collapsed or self.fwd_status == 304

    def explained(self) -> str:
        """Return the same in sentences."""
        return " ".join(self._sentences())

    def _sentences(self) -> Iterator[str]:
        if self.hit:
            yield "The cache answered, without the app."
            if self.ttl is not None:
                yield f"The response is {_lifetime(self.ttl)}."
        if self.fwd is not None:
            yield f"The request went to the app ({self.fwd})."
            yield from _FORWARDED.get(self.fwd, ())
        if self.collapsed:
            yield "It got the answer to another request for the same (collapsed)."
        if self.fwd_status == 304:
            yield "The app confirmed the stored response (304)."
        elif self.fwd_status is not None:
            yield f"The app answered {self.fwd_status}."
        if self.stored:
            yield "The response was stored" + ("." if self.ttl is None else f", {_lifetime(self.ttl)}.")
        if self.detail == _STALE_IF_ERROR:
            yield "The app failed, and a stale stored response was the answer."
        elif self.detail in _NOT_STORED:
            yield f"The response was not stored ({self.detail})."
            yield from _NOT_STORED[self.detail]
        elif self.detail is not None:
            yield f"Its detail is {self.detail!r}."


_STALE_IF_ERROR: Final = "stale-if-error"
# By the words that the field has, among which there may be others.
_FORWARDED: Final[Mapping[str | None, tuple[str, str]]] = {fwd.value: why for fwd, why in WHY_FORWARDED.items()}
_NOT_STORED: Final[Mapping[str | None, tuple[str, str]]] = {
    why_not.value: why for why_not, why in WHY_NOT_STORED.items()
}
_PAST_THE_CACHE: Final = frozenset({Fwd.BYPASS, Fwd.METHOD})
# What parts the parameters of a list member; strings are read first, since they may have semicolons.
_SEMICOLON_OR_STRING: Final = re.compile(rb';|"(?:[^"\\]|\\.)*"')


def cache_status(response: Answer, *, name: str = "echo_cache") -> CacheStatus:
    """
    Return what the cache called *name* says of *response*, of a client such as httpx or Starlette's TestClient.

    Where it speaks more than once, the last word counts: that of the outermost. Raises AssertionError where it does not
    speak, or where the field is malformed.
    """
    __tracebackhide__ = True
    value = b", ".join(_lines(response.headers, "cache-status"))
    if not value:
        raise AssertionError(
            f"{_status_of(response)} has no Cache-Status: no cache has seen the request, or it was answered outside of "
            "the cache: where a handler raises, the 500 is made there, and pages of the dashboard have none. Is "
            "HTTPCacheMiddleware in the app that the client calls?"
        )
    items = fields.parse_list(value)
    if items is None:
        raise AssertionError(f"Cache-Status is no list of RFC 9651: {value.decode('latin-1')!r}")
    names = [item.value if isinstance(item, Token) else item for item in items]
    for said, text in zip(reversed(names), reversed(fields.split_list(value)), strict=True):
        if said == name:
            return _parsed(name, text)
    raise AssertionError(
        f"no cache called {name!r} in Cache-Status: {value.decode('latin-1')!r}; say name= if yours has another"
    )


def assert_hit(response: Answer, *, name: str = "echo_cache") -> CacheStatus:
    """Fail unless the cache answered, with a response that is fresh. Returns its whole Cache-Status."""
    __tracebackhide__ = True
    status = cache_status(response, name=name)
    if not status.hit or status.is_stale:
        raise _failure("a fresh answer from the cache (assert_stale is for stale ones)", response, status)
    return status


def assert_stale(response: Answer, *, name: str = "echo_cache") -> CacheStatus:
    """
    Fail unless a stale stored response was the answer: while it is refreshed, or since the app failed.

    Cache-Status counts whole seconds: from a second past its lifetime on, a response shows that it is stale.
    """
    __tracebackhide__ = True
    status = cache_status(response, name=name)
    if not status.is_stale:
        raise _failure("a stale answer from the cache, a second or more past its lifetime", response, status)
    return status


def assert_miss(response: Answer, fwd: Fwd | str | None = None, *, name: str = "echo_cache") -> CacheStatus:
    """
    Fail unless the cache had to ask the app; with *fwd*, for this reason ("uri-miss", "stale", ...; see Fwd).

    A request that went past the cache ("bypass", "method") is no miss, unless *fwd* says so.
    """
    __tracebackhide__ = True
    wanted = None if fwd is None else _one_of(Fwd, "fwd", fwd)
    status = cache_status(response, name=name)
    if wanted is not None and status.fwd != wanted:
        raise _failure(f"a request that went to the app with fwd={wanted}", response, status)
    if wanted is None and (status.fwd is None or status.fwd in _PAST_THE_CACHE):
        raise _failure("a miss", response, status)
    return status


def assert_stored(response: Answer, *, name: str = "echo_cache") -> CacheStatus:
    """
    Fail unless the app's answer went into the cache: with this request, with one that shared it, or confirmed by a 304.

    It was decided when the head was sent; a body that turns out too large or incomplete is not kept after all.
    """
    __tracebackhide__ = True
    status = cache_status(response, name=name)
    if not status.is_kept:
        raise _failure("an answer of the app that is stored", response, status)
    return status


def assert_not_stored(
    response: Answer, reason: Refusal | str | None = None, *, name: str = "echo_cache"
) -> CacheStatus:
    """
    Fail if the response is in the cache; with *reason*, also if it was kept out for another one (see Refusal).
    """
    __tracebackhide__ = True
    wanted = None if reason is None else _one_of(Refusal, "reason", reason)
    status = cache_status(response, name=name)
    if status.hit or status.is_kept or status.is_stale:
        raise _failure("a response that is not stored", response, status)
    if wanted is not None and status.detail != wanted:
        raise _failure(f"a response that is not stored, for the reason {wanted}", response, status)
    return status


def assert_collapsed(response: Answer, *, name: str = "echo_cache") -> CacheStatus:
    """Fail unless the request got the app's answer to another request for the same, which was under way."""
    __tracebackhide__ = True
    status = cache_status(response, name=name)
    if not status.collapsed:
        raise _failure("a request that shared the app's answer to another", response, status)
    return status


def _failure(expected: str, response: Answer, status: CacheStatus) -> AssertionError:
    return AssertionError(
        f"expected: {expected}\n"
        f"but {_status_of(response)} has Cache-Status: {status.text}\n"
        f"which means: {status.explained() or 'nothing that is known here.'}"
    )


def _status_of(response: Answer) -> str:
    code = getattr(response, "status_code", None) or getattr(response, "status", None)
    return "the response" if code is None else f"the response ({code})"


def _lifetime(ttl: int) -> str:
    return f"fresh for another {ttl} s" if ttl >= 0 else f"stale, for {-ttl} s already"


def _one_of(allowed: type[Fwd] | type[Refusal], what: str, value: str) -> str:
    try:
        return allowed(value).value
    except ValueError:
        raise ConfigurationError(f"{what} must be one of {', '.join(allowed)}, not {value!r}") from None


def _lines(headers: Any, name: str) -> Iterator[bytes]:
    """Yield the values of the field *name*, from whatever a client has for headers."""
    for key, value in headers.items() if hasattr(headers, "items") else headers:
        text = key.decode("latin-1") if isinstance(key, bytes) else key
        if text.lower() == name:
            yield value if isinstance(value, bytes) else value.encode("latin-1", "replace")


def _parsed(name: str, text: bytes) -> CacheStatus:
    """Return a member of Cache-Status, which is known to be well-formed."""
    # Parameters are a dictionary with other commas, but for inner lists, which they may not have.
    commas = _SEMICOLON_OR_STRING.sub(lambda found: b"," if found[0] == b";" else found[0], text)
    said = fields.parse_dictionary(b",".join(fields.split_list(commas)[1:])) or {}
    values = {key: value.value if isinstance(value, Token) else value for key, value in said.items()}

    def word(key: str) -> str | None:
        return value if isinstance(value := values.get(key), str) else None

    def number(key: str) -> int | None:
        value = values.get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    return CacheStatus(
        text=text.decode("latin-1"),
        name=name,
        hit=values.get("hit") is True,
        fwd=word("fwd"),
        fwd_status=number("fwd-status"),
        ttl=number("ttl"),
        stored=values.get("stored") is True,
        collapsed=values.get("collapsed") is True,
        detail=word("detail"),
    )


# --- the cache of an app, for a test ----------------------------------------------------------------------------------

# An app has a few hundred routes; an object that makes a new one for each look at it has no end.
_MOST_NODES: Final = 20_000
# How long what is under way at the end of a test may still take, in seconds.
_LAST_WORK: Final = 1.0


def cache_of(app: Any, *, name: str | None = None) -> Cache:
    """
    Return the Cache that *app* stands behind: a Starlette or FastAPI app, or an ASGI app with the middleware around it.

    name: which one, where there are several. Raises ConfigurationError where there is none, or more than one.
    """
    caches = [cache for cache in _caches_of(app) if name in (None, cache.name)]
    if len(caches) != 1:
        known = sorted(cache.name for cache in _caches_of(app))
        raise ConfigurationError(f"cache_of needs an app with one cache called {name or 'anything'}; it has {known}")
    return caches[0]


@contextlib.contextmanager
def in_memory(app: Any, *, clock: Clock | None = None) -> Iterator[None]:
    """
    Within this context the caches of *app* are empty, keep what they store in memory, and go by *clock*.

    Their rules, names and observers stay, and so does their identity: whoever holds such a Cache holds it still, and
    `CacheDep` is the same one. No Redis is asked. Afterwards all is as it was, counters included.

    app: what `cache_of` takes, or a Cache. clock: that of each cache itself if None.

    What is under way at the end is finished or cancelled, where it is of another thread or of an event loop that does
    not run: a coroutine that leaves this context awaits `cache.aclose()` before.

    Raises ConfigurationError where there is no cache.
    """
    with contextlib.ExitStack() as undo:
        caches = _caches_of(app, undo)
        if not caches:
            raise ConfigurationError(
                f"{app!r} has no cache: HTTPCacheMiddleware is not in it, or stands behind something that hides it; "
                "give the Cache itself then"
            )
        # Caches over one store share one here, too.
        stores: dict[int, MemoryStore] = {}
        for cache in caches:
            time = cache.clock if clock is None else clock
            store = stores.setdefault(id(cache.store), MemoryStore(clock=time))
            undo.callback(_make_anew(cache, store, time))
        yield


@contextlib.contextmanager
def without_cache(app: Any) -> Iterator[None]:
    """Within this context every request to *app* reaches it, and nothing is stored or asked of Redis."""
    with in_memory(app), contextlib.ExitStack() as stack:
        for cache in _caches_of(app):
            stack.enter_context(cache.disabled())
        yield


def _make_anew(cache: Cache, store: MemoryStore, clock: Clock) -> Callable[[], None]:
    """Make *cache* what it would be over *store*, and return what undoes that."""
    state = vars(cache)
    before = state.copy()
    # Naughty but better than another Cache beside it: handlers, jobs and tests hold this one, and invalidate with it.
    Cache.__init__(
        cache,
        store,
        cache.options,
        name=cache.name,
        fill_timeout=cache.flights._deadline,
        coordination=cache.coordination,
        observers=cache._observers,
        clock=clock,
    )
    # The middleware and its event loop are what they were, and say so once only.
    cache._app, cache._loop = before["_app"], before["_loop"]

    def undo() -> None:
        try:
            _finish(cache)
        finally:
            state.clear()
            state.update(before)

    return undo


def _finish(cache: Cache) -> None:
    """Let no call of the app that is under way outlive its test: it would end in a cache that is another by then."""
    loop = cache.flights._loop
    if loop is None or loop.is_closed():
        return
    try:
        here: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
    except RuntimeError:
        here = None
    if loop.is_running():
        if loop is not here:
            run_in_loop(cache.aclose(_LAST_WORK), loop, 10 * _LAST_WORK)
    elif here is None:
        loop.run_until_complete(cache.aclose(_LAST_WORK))


def _caches_of(app: Any, undo: contextlib.ExitStack | None = None) -> list[Cache]:
    """
    Return the caches in *app*, outermost first: those of middleware around it, in its stack, and in what is mounted.

    Starlette makes its middleware when it is first called. Where it is not there yet it is made here; *undo* unmakes
    it.
    """
    found: dict[int, Cache] = {}
    seen: dict[int, Any] = {}
    waiting = [app]
    while waiting and len(seen) < _MOST_NODES:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen[id(node)] = node
        # By what it has, not by its class: this module knows no middleware.
        cache = node if isinstance(node, Cache) else getattr(node, "cache", None)
        if isinstance(cache, Cache):
            found.setdefault(id(cache), cache)
        build = getattr(node, "build_middleware_stack", None)
        if build is not None and getattr(node, "middleware_stack", node) is None:
            node.middleware_stack = build()
            if undo is not None:
                undo.callback(setattr, node, "middleware_stack", None)
        routes = getattr(node, "routes", None)
        waiting += reversed(routes if isinstance(routes, list | tuple) else [])
        waiting += [getattr(node, "app", None), getattr(node, "middleware_stack", None)]
    return list(found.values())


# --- a clock, an app and a client -------------------------------------------------------------------------------------


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
