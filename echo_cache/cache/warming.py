"""
Filling a cache before anybody asks. The one rule: what is warmed is exactly what a request would have filled.

The app is called through the middleware, so keys, rules, leases and invalidations are those of any other request.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias
from urllib.parse import unquote

from echo_cache.errors import ConfigurationError
from echo_cache.model import Request
from echo_cache.options import PolicyOptions
from echo_cache.policy.keys import key_of_url

__all__ = ["App", "Progress", "WarmReport", "Warmable", "Warming"]

logger = logging.getLogger("echo_cache")

App: TypeAlias = Callable[[MutableMapping[str, Any], Any, Any], Awaitable[None]]
Warmable: TypeAlias = str | Request

# What Cache-Status says of an answer that is stored: it was, with others' help, or the app has confirmed it.
_STORED: Final = (b"; stored", b"; collapsed", b"; fwd-status=304")
# URLs are taken as they are: what a key leaves out, the cache leaves out itself.
_AS_SENT: Final = PolicyOptions()


@dataclass(frozen=True, slots=True)
class WarmReport:
    """
    What a warming has done so far.

    done: requests that were answered or failed. stored: answers that were stored. hits: what was there already.
    uncached: answers that may not be stored. failed: requests at which the app raised, or answered 5xx.
    """

    done: int = 0
    stored: int = 0
    hits: int = 0
    uncached: int = 0
    failed: int = 0


Progress: TypeAlias = Callable[[WarmReport], Awaitable[None] | None]


class Warming:
    """
    One warming of *app*, a middleware. surroundings: what a server and the app around it put into each scope.

    name: what Cache-Status calls the cache.
    """

    def __init__(self, app: App, surroundings: MutableMapping[str, Any], name: str, progress: Progress | None) -> None:
        self._app = app
        self._surroundings = surroundings
        self._name = name.encode()
        self._progress = progress
        self.report = WarmReport()

    async def run(self, what: Iterable[Warmable] | AsyncIterable[Warmable], concurrency: int) -> WarmReport:
        """Make the requests for *what*, *concurrency* at a time, and return what became of them."""
        source = _each(what)
        turn = asyncio.Lock()

        async def work() -> None:
            while True:
                async with turn:
                    wanted = await anext(source, None)
                if wanted is None:
                    return
                await self._one(_request(wanted))

        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(work())
        return self.report

    async def _one(self, request: Request) -> None:
        status, fields = 0, b""

        async def send(message: MutableMapping[str, Any]) -> None:
            nonlocal status, fields
            if message["type"] == "http.response.start":
                status = message["status"]
                fields = b", ".join(value for name, value in message["headers"] if name.lower() == b"cache-status")

        ended = asyncio.Event()
        begun = False

        async def receive() -> MutableMapping[str, Any]:
            nonlocal begun
            if not begun:
                begun = True
                return {"type": "http.request", "body": b"", "more_body": False}
            await ended.wait()
            return {"type": "http.disconnect"}

        try:
            await self._app(_scope(request, self._surroundings), receive, send)
        except Exception as error:
            logger.warning("warming: the app failed with %s", type(error).__name__, exc_info=error)
            status = 500
        finally:
            ended.set()
        await self._note(self._outcome(status, fields))

    def _outcome(self, status: int, fields: bytes) -> str:
        if not 200 <= status < 500:
            return "failed"
        said = fields.rpartition(self._name)[2]  # the cache's own word, the last in the list
        if b"; hit" in said:
            return "hits"
        return "stored" if any(word in said for word in _STORED) else "uncached"

    async def _note(self, outcome: str) -> None:
        report = self.report
        self.report = replace(report, done=report.done + 1, **{outcome: getattr(report, outcome) + 1})
        if self._progress is not None:
            told = self._progress(self.report)
            if told is not None:
                await told


async def _each(what: Iterable[Warmable] | AsyncIterable[Warmable]) -> AsyncIterator[Warmable]:
    if isinstance(what, AsyncIterable):
        async for one in what:
            yield one
    else:
        for one in what:
            yield one


def _request(wanted: Warmable) -> Request:
    """Return *wanted* as a request. Raises ConfigurationError for what cannot be warmed."""
    if isinstance(wanted, Request):
        if wanted.method != "GET" or wanted.has_body:
            raise ConfigurationError(f"only a GET without a body can be warmed, not {wanted.method}")
        return wanted
    if not isinstance(wanted, str):
        raise ConfigurationError(f"warm takes absolute URLs and Requests, not {wanted!r}")
    _, scheme, host, path, query = key_of_url(wanted, _AS_SENT)
    return Request("GET", scheme, host, path, query, ())


def _scope(request: Request, surroundings: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Return the ASGI scope of *request*, as a server would make it."""
    root = surroundings.get("root_path", "")
    raw_path = root.encode() + request.path
    host = request.host or b""
    headers = [line for line in request.headers if line[0] != b"host"]
    name, _, port = host.decode("latin-1").partition(":")
    scope: MutableMapping[str, Any] = {
        **surroundings,
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": request.method,
        "scheme": request.scheme,
        "path": unquote(raw_path.decode("latin-1")),
        "raw_path": raw_path,
        "query_string": request.query,
        "root_path": root,
        "headers": [(b"host", host), *headers],
        "client": None,
        "server": (name, int(port) if port.isdigit() else {"https": 443}.get(request.scheme, 80)),
    }
    if "state" in surroundings:
        scope["state"] = dict(surroundings["state"])
    return scope
