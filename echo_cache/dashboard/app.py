"""
The dashboard: a page and a JSON interface over `Management`.

The one rule: whoever may not come in learns nothing and changes nothing, and every answer to whoever may is data: JSON,
or a file of a fixed table. Nothing that was stored or sent is ever put into HTML here.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final
from urllib.parse import quote

from starlette.responses import Response
from starlette.routing import Mount, Route

from echo_cache import fields, policy
from echo_cache.asgi.middleware import CACHE_IN_SCOPE, KEPT_OUT
from echo_cache.asgi.types import App, Receive, Scope, Send
from echo_cache.cache import Cache
from echo_cache.coordination.exchange import current_exchange
from echo_cache.dashboard.access import (
    CLOSED,
    COOKIE,
    LOGIN_SECONDS,
    Auth,
    Closed,
    Door,
    is_foreign,
    is_of_another_site,
)
from echo_cache.dashboard.asked import Asked, ClientGone, Refused, parse_query, read_json
from echo_cache.dashboard.events import MAX_STREAMS, Feed, to_json
from echo_cache.dashboard.openapi import (
    LONGEST_CURSOR,
    LONGEST_FIELD,
    LONGEST_TEXT,
    LONGEST_TOKEN,
    LONGEST_URL,
    MAX_FIELDS,
    MAX_URLS,
    openapi,
)
from echo_cache.dashboard.static import LOGIN, PAGE, StaticFile, static_files
from echo_cache.errors import ConfigurationError, StoreError, StoreTimeout
from echo_cache.management import Management
from echo_cache.management.manager import MAX_LIMIT

__all__ = ["ENDPOINTS", "Dashboard", "mount"]

logger = logging.getLogger("echo_cache")

_SAFETY: Final = {
    "content-security-policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
_PATH: Final = re.compile(r"(?:/(?!\.{1,2}(?:/|$))[A-Za-z0-9._~-]+)+")
_STATIC: Final = "/static/"
_MAX_LOGIN_BYTES: Final = 16 * 1024
# How long whoever has the wrong token waits, and how many wait at a time. Who has the right one never waits: whoever
# could make it wait could keep operators out. So this slows down one who guesses, and is no lock: tokens are random.
_WRONG_SECONDS: Final = 0.5
_MAX_WAITING: Final = 16
# Failures are told once a second at most.
_QUIET_SECONDS: Final = 1.0
_LONGEST_WORDS: Final = 500
_LEVELS: Final = ("l1", "l2")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """
    What answers one method of one path below the dashboard's.

    is_public: it is for those, too, who have not signed in. reads_body: it takes JSON; needs_body: it must have it.
    """

    method: str
    path: str
    handler: Callable[[Dashboard, Asked], Awaitable[Response]]
    is_public: bool = False
    reads_body: bool = False
    needs_body: bool = False
    most_bytes: int = 64 * 1024


class Dashboard:
    """
    The dashboard of *cache* as an ASGI app, to be mounted, or to be served alone.

    cache: without it, that of the HTTPCacheMiddleware around; of several, the innermost. auth: who may use it: the
    holder of a token, or of one of a list; whom a function of the request says True of; None: whoever is on this
    machine, or comes by a proxy on it that does not say so. Without auth nobody may, and every path is 404. A function
    that judges by the client's address must look at the Host, too: other sites' names can be made to lead here.

    Requests for it go past the cache around it. Raises ConfigurationError for what cannot work.
    """

    def __init__(self, cache: Cache | None = None, *, auth: Auth | Closed = CLOSED) -> None:
        if cache is not None and not isinstance(cache, Cache):
            raise ConfigurationError(f"cache must be a Cache, not {cache!r}")
        self._cache = cache
        self._door = Door(auth)
        # By the identity of its cache. All of this belongs to the event loop.
        self._managements: dict[int, Management] = {}
        self._feeds: dict[tuple[Management, asyncio.AbstractEventLoop], Feed] = {}
        self._busy: set[str] = set()
        self._waiting = 0
        self._failures = 0
        self._told_at = float("-inf")
        if cache is not None:
            self._management_of(cache)

    def __repr__(self) -> str:
        return f"<Dashboard {self._door!r} with {sum(map(len, self._feeds.values()))} streams>"

    def __echo_cache_kept_out__(self, cache: Cache) -> None:
        """Take note of the *cache* around, which requests for this app go past; before any of them come."""
        if self._cache is None:
            self._management_of(cache)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Be called as an ASGI app."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "http":
            await self._handle(scope, receive, send)
        else:
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": ""})

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            kind = (await receive())["type"]
            if kind == "lifespan.shutdown":
                self._end_streams()
                if self._cache is not None:
                    await self._cache.aclose()
            elif kind == "lifespan.startup" and self._cache is not None:
                self._cache.start()
            await send({"type": f"{kind}.complete"})
            if kind == "lifespan.shutdown":
                return

    async def _handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        # What is done for an operator is not done on behalf of a request of the app.
        exchange = current_exchange.get()
        token = current_exchange.set(None)
        if exchange is not None:  # it was mounted after the first request: too late to be kept out
            scope = {CACHE_IN_SCOPE: exchange.cache, **scope}
        try:
            answer = await self._answer(scope, receive)
        except ClientGone:
            return
        except Refused as refused:
            answer = _error(refused.status, refused.words, refused.headers)
        except Exception:
            logger.exception("the dashboard failed")
            answer = _error(500, "the dashboard failed; the log of the app says more")
        finally:
            current_exchange.reset(token)
        answer.headers.update(_SAFETY)
        answer.headers.setdefault("cache-control", "no-store")
        if scope["method"] == "HEAD":
            answer.body = b""  # its length is told all the same
        await answer(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive) -> Response:
        """Return the answer to a request. Raises Refused."""
        if not self._door.is_seen_by(scope):
            raise Refused(404, "there is nothing here")
        path, method = _own_path(scope), "GET" if scope["method"] == "HEAD" else scope["method"]
        if path == "" and method == "GET":
            return _to_the_page(scope)
        methods = _BY_PATH.get(_STATIC if path.startswith(_STATIC) else path or "/", {})
        is_public = any(endpoint.is_public for endpoint in methods.values())
        if not is_public and not await self._admits(scope):
            return await self._stranger(path, method, scope)
        if not methods:
            raise Refused(404, "there is nothing here")
        endpoint = methods.get(method)
        if endpoint is None:
            allowed = sorted({*methods, *(["HEAD"] if "GET" in methods else [])})
            raise Refused(405, f"the method must be {' or '.join(allowed)}", Allow=", ".join(allowed))
        # To read is refused, too: an app may let other origins read all that it answers (CORS with credentials). What
        # is the same for everybody is not: browsers send an Origin with each module, and the login has to say what is
        # wrong.
        if method == "GET":
            is_other = is_foreign(scope) and not endpoint.is_public
        else:
            is_other = is_of_another_site(scope)
        if is_other:
            raise Refused(
                403,
                "this came from a page of another site. Where it did not: proxies in front must pass on the Host "
                "that the browser asked for",
            )
        query = parse_query(scope["query_string"])
        body: Mapping[str, Any] = {}
        if endpoint.reads_body:
            body = await read_json(scope, receive, required=endpoint.needs_body, most=endpoint.most_bytes)
        try:
            return await endpoint.handler(self, Asked(scope, query, body))
        except ConfigurationError as error:
            raise Refused(400, str(error)[:_LONGEST_WORDS]) from error
        except StoreError as error:
            raise Refused(503, _trouble(error), Retry_After="1") from error

    # --- who may come in ----------------------------------------------------------------------------------------------

    async def _admits(self, scope: Scope) -> bool:
        try:
            return await self._door.admits(scope, time.time())
        except Exception as error:
            # Its words may be those of a secret.
            logger.error("the function of auth failed with %s; nobody is let in by it", type(error).__name__)
            return False

    async def _stranger(self, path: str, method: str, scope: Scope) -> Response:
        """Return the answer to whoever may not come in."""
        if not self._door.has_login:
            return _error(403, "you may not use this dashboard")
        if self._door.was_tried(scope, time.time()):
            await self._hold_up(scope)
        if method == "GET" and path == "/":
            # 200, and no 401: it is what whoever opens the page is to see. Browsers report a 401 as an error.
            return _page(LOGIN)
        return _error(401, "sign in first, or send Authorization: Bearer TOKEN", {"www-authenticate": _BEARER})

    async def _hold_up(self, scope: Scope) -> None:
        """Let whoever has the wrong token wait. Raises Refused where too many do."""
        self._note_failure(scope)
        if self._waiting >= _MAX_WAITING:
            raise Refused(429, "too many wrong tokens at this moment; try again", Retry_After="1")
        self._waiting += 1
        try:
            await asyncio.sleep(_WRONG_SECONDS)
        finally:
            self._waiting -= 1

    def _note_failure(self, scope: Scope) -> None:
        """Log that a wrong token was given: who, how often, and nothing else."""
        self._failures += 1
        now = time.monotonic()
        if now - self._told_at >= _QUIET_SECONDS:
            client = scope.get("client")
            who = ascii(client[0])[:64] if client else "an unknown address"
            logger.warning(
                "the dashboard was given wrong tokens: %d since this was last said, the last by %s", self._failures, who
            )
            self._failures, self._told_at = 0, now

    async def _login(self, asked: Asked) -> Response:
        self._require_login()
        asked.only("token")
        token = asked.text("token", LONGEST_TOKEN)
        if token is None:
            raise Refused(400, "token is missing")
        cookie = self._door.login(token, time.time())
        if cookie is not None:
            answer = Response(status_code=204)
            _set_cookie(answer, asked.scope, cookie, LOGIN_SECONDS)
            return answer
        await self._hold_up(asked.scope)
        raise Refused(401, "the token is not right", WWW_Authenticate=_BEARER)

    async def _logout(self, asked: Asked) -> Response:
        self._require_login()
        asked.only()
        answer = Response(status_code=204)
        _set_cookie(answer, asked.scope, "", 0)
        return answer

    def _require_login(self) -> None:
        if not self._door.has_login:
            raise Refused(404, "there is nothing here: nobody signs in with a token")

    # --- the cache ----------------------------------------------------------------------------------------------------

    def _management(self, asked: Asked) -> Management:
        """Return the management of the cache that this is about. Raises Refused where there is none."""
        cache = self._cache if self._cache is not None else asked.scope.get(CACHE_IN_SCOPE)
        if cache is None:
            raise Refused(
                503, "there is no cache around: add HTTPCacheMiddleware to the app, or name one by Dashboard(cache=...)"
            )
        return self._management_of(cache)

    def _management_of(self, cache: Cache) -> Management:
        found = self._managements.get(id(cache))
        if found is None:
            found = self._managements[id(cache)] = Management(cache)
            cache.at_close(self._end_streams)
        return found

    def _end_streams(self) -> None:
        for feed in self._feeds.values():
            feed.end()

    async def _alone(self, what: str, work: Awaitable[Any]) -> Any:
        """Await *work*, unless some of its kind is under way."""
        if what in self._busy:
            getattr(work, "close", lambda: None)()
            raise Refused(409, f"{what} is under way already: wait for its end")
        self._busy.add(what)
        try:
            return await work
        finally:
            self._busy.discard(what)

    # --- the page -----------------------------------------------------------------------------------------------------

    async def _page(self, asked: Asked) -> Response:
        return _page(PAGE)

    async def _login_page(self, asked: Asked) -> Response:
        self._require_login()
        return _page(LOGIN)

    async def _static(self, asked: Asked) -> Response:
        name = _own_path(asked.scope).removeprefix(_STATIC)
        file = static_files().get(name)
        if file is None or name in (PAGE, LOGIN):
            raise Refused(404, "there is no such file")
        return _file(file, asked.scope)

    # --- the JSON interface -------------------------------------------------------------------------------------------

    async def _description(self, asked: Asked) -> Response:
        asked.only()
        return _json(openapi(quote(asked.scope.get("root_path") or "")))

    async def _stats(self, asked: Asked) -> Response:
        asked.only()
        return _json(await self._management(asked).stats())

    async def _events(self, asked: Asked) -> Response:
        asked.only()
        management = self._management(asked)
        if asked.scope["method"] == "HEAD":
            return Response(headers=_EVENT_FIELDS)
        self._feeds = {place: feed for place, feed in self._feeds.items() if len(feed) and not place[1].is_closed()}
        if sum(map(len, self._feeds.values())) >= MAX_STREAMS:
            raise Refused(503, f"there are {MAX_STREAMS} streams already", Retry_After="5")
        return _EventResponse(self._feed(management))

    def _feed(self, management: Management) -> Feed:
        """Return what the streams of this event loop are told."""
        place = management, asyncio.get_running_loop()
        feed = self._feeds.get(place)
        if feed is None or feed.has_ended:
            feed = self._feeds[place] = Feed(management)
        return feed

    async def _entries(self, asked: Asked) -> Response:
        asked.only("match", "tag", "level", "limit", "cursor")
        page = await self._management(asked).entries(
            match=asked.parameter("match", LONGEST_URL),
            tag=asked.parameter("tag", LONGEST_TEXT),
            level=asked.chosen("level", _LEVELS),
            limit=asked.number("limit", 1, MAX_LIMIT) or 50,
            cursor=asked.parameter("cursor", LONGEST_CURSOR),
        )
        return _json(page)

    async def _entry(self, asked: Asked) -> Response:
        asked.only("url", "header")
        url = asked.parameter("url", LONGEST_URL)
        if url is None:
            raise Refused(400, "url is missing: the absolute URL, as clients ask for it")
        lines = []
        for line in asked.parameters("header", LONGEST_FIELD, MAX_FIELDS):
            name, colon, value = line.partition(":")
            try:
                raw = name.strip().encode("ascii"), value.strip().encode("latin-1")
            except UnicodeError:
                raw = b"", b""
            if not (colon and fields.is_valid_field_name(raw[0]) and fields.is_valid_field_value(raw[1])):
                raise Refused(400, f"a header must be a request field, written as Name: value, not {ascii(line)[:100]}")
            lines.append((name, value))
        return _json(await self._management(asked).inspect(url, lines))

    async def _top(self, asked: Asked) -> Response:
        asked.only()
        return _json(await self._management(asked).top())

    async def _refusals(self, asked: Asked) -> Response:
        asked.only()
        return _json(self._management(asked).refusals())

    async def _purge(self, asked: Asked) -> Response:
        asked.only("url", "tag", "prefix", "all", "soft", "dry_run")
        result = await self._management(asked).purge(
            url=asked.text("url", LONGEST_URL),
            tag=asked.text("tag", LONGEST_TEXT),
            prefix=asked.text("prefix", LONGEST_URL),
            everything=asked.flag("all"),
            soft=asked.flag("soft"),
            dry_run=asked.flag("dry_run"),
        )
        return _json(result)

    async def _sync(self, asked: Asked) -> Response:
        asked.only("to")
        to = asked.chosen("to", _LEVELS)
        if to is None:
            raise Refused(400, "to is missing: l1 or l2")
        return _json(await self._alone("copying", self._management(asked).sync(to)))

    async def _warm(self, asked: Asked) -> Response:
        asked.only("urls")
        urls = asked.texts("urls", LONGEST_URL, MAX_URLS)
        management = self._management(asked)
        for url in urls:  # all of them, before the app is asked for any
            policy.key_of_url(url, management.cache.options)
        return _json(await self._alone("warming", management.warm(urls)))

    # As operators of two-level caches know them.

    async def _store_stats(self, asked: Asked) -> Response:
        asked.only()
        store: Any = self._management(asked).cache.store
        get_stats = getattr(store, "get_stats", None)
        return _json(asdict(store.stats() if get_stats is None else get_stats()))

    async def _reset(self, asked: Asked) -> Response:
        asked.only()
        return _json(await self._management(asked).reset())

    async def _clear_l1(self, asked: Asked) -> Response:
        return await self._clear(asked, "l1")

    async def _clear_l2(self, asked: Asked) -> Response:
        return await self._clear(asked, "l2")

    async def _clear_all(self, asked: Asked) -> Response:
        return await self._clear(asked, "all")

    async def _clear(self, asked: Asked, level: str) -> Response:
        asked.only()
        return _json(await self._management(asked).clear(level))


# The middleware looks for it in what is mounted.
assert hasattr(Dashboard, KEPT_OUT)

ENDPOINTS: Final = (
    Endpoint("GET", "/", Dashboard._page),
    Endpoint("GET", "/login", Dashboard._login_page, is_public=True),
    Endpoint("POST", "/login", Dashboard._login, True, reads_body=True, needs_body=True, most_bytes=_MAX_LOGIN_BYTES),
    Endpoint("POST", "/logout", Dashboard._logout, is_public=True, reads_body=True),
    Endpoint("GET", _STATIC, Dashboard._static, is_public=True),
    Endpoint("GET", "/api/openapi.json", Dashboard._description),
    Endpoint("GET", "/api/stats", Dashboard._stats),
    Endpoint("GET", "/api/events", Dashboard._events),
    Endpoint("GET", "/api/entries", Dashboard._entries),
    Endpoint("GET", "/api/entry", Dashboard._entry),
    Endpoint("GET", "/api/top", Dashboard._top),
    Endpoint("GET", "/api/refusals", Dashboard._refusals),
    Endpoint("POST", "/api/purge", Dashboard._purge, reads_body=True, needs_body=True),
    Endpoint("POST", "/api/sync", Dashboard._sync, reads_body=True, needs_body=True),
    Endpoint("POST", "/api/warm", Dashboard._warm, reads_body=True, needs_body=True),
    Endpoint("GET", "/stats", Dashboard._store_stats),
    Endpoint("POST", "/stats/reset", Dashboard._reset, reads_body=True),
    Endpoint("DELETE", "/l1", Dashboard._clear_l1),
    Endpoint("DELETE", "/l2", Dashboard._clear_l2),
    Endpoint("DELETE", "/all", Dashboard._clear_all),
)
"""All that there is, below the path of the dashboard; "/static/" is followed by the name of a file."""

_BY_PATH: Final[dict[str, dict[str, Endpoint]]] = {}
for _endpoint in ENDPOINTS:
    _BY_PATH.setdefault(_endpoint.path, {})[_endpoint.method] = _endpoint


class _EventResponse(Response):
    """A stream of events, for as long as somebody looks on."""

    def __init__(self, feed: Feed) -> None:
        super().__init__(headers=_EVENT_FIELDS)
        del self.headers["content-length"]
        self._feed = feed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._feed.serve(receive, send, self.raw_headers)


# nginx would hold back what it has until a buffer is full.
_EVENT_FIELDS: Final = {"content-type": "text/event-stream; charset=utf-8", "x-accel-buffering": "no"}


def _json(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(to_json(value), status, headers, media_type="application/json")


def _error(status: int, words: str, headers: Mapping[str, str] | None = None) -> Response:
    return _json({"error": words}, status, headers)


_BEARER: Final = 'Bearer realm="echo_cache"'
_NO_CONNECTION: Final = re.compile(r"Error ([0-9]{1,5}) connecting to (\S+?)\. .*", re.DOTALL)


def _trouble(error: StoreError) -> str:
    """Return why Redis cannot be asked, in words for an operator: what it was asked for has a name of the code."""
    if isinstance(error, StoreTimeout) and error.__cause__ is None:
        why = "it did not answer in time"
    else:
        why = str(error.__cause__ or error)
        if unreached := _NO_CONNECTION.fullmatch(why):
            why = f"no connection to {unreached[2]} ({os.strerror(int(unreached[1]))})"
    return f"Redis cannot be asked now: {why}"[:_LONGEST_WORDS]


def _page(name: str) -> Response:
    file = static_files()[name]
    return Response(file.content, headers={"content-type": file.content_type})


def _file(file: StaticFile, scope: Scope) -> Response:
    """Return *file*, which is the same for all: browsers keep it and ask whether it still is."""
    fields = {"etag": file.etag, "cache-control": "private, no-cache"}
    asked = [value for name, value in scope["headers"] if name.lower() == b"if-none-match"]
    if any(file.etag.encode() in value for value in asked):
        return Response(status_code=304, headers=fields)
    return Response(file.content, headers={**fields, "content-type": file.content_type})


def _to_the_page(scope: Scope) -> Response:
    """Return the way from "/_cache" to "/_cache/", from where the page's relative addresses lead to its parts."""
    name = quote(scope["path"].rpartition("/")[2], safe="")
    return Response(status_code=307, headers={"location": f"./{name}/"})


def _set_cookie(answer: Response, scope: Scope, value: str, max_age: int) -> None:
    """Set our cookie; without a path it is for what is beside "login", wherever browsers see that behind a proxy."""
    answer.set_cookie(
        COOKIE,
        value,
        max_age=max_age,
        path=None,
        secure=scope.get("scheme") == "https",
        httponly=True,
        samesite="strict",
    )


def _own_path(scope: Scope) -> str:
    """
    Return the path below the dashboard's own; "" where it is that itself, without a slash.

    What it is mounted under is in root_path, behind what the app itself is served under; of that, path has nothing
    where a proxy takes it away.
    """
    path: str = scope["path"]
    root: str = scope.get("root_path") or ""
    for mounted in (root, root.removeprefix(scope.get("app_root_path") or "")):
        if path == mounted or path.startswith(mounted + "/"):
            return path[len(mounted) :]
    return path


# --- mounting ---------------------------------------------------------------------------------------------------------


class _Itself:
    """The dashboard at its path without a slash, which Starlette's Mount does not answer."""

    def __init__(self, dashboard: Dashboard, path: str) -> None:
        self._dashboard = dashboard
        self._path = path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        root: str = scope.get("root_path") or ""
        below = {"app_root_path": scope.get("app_root_path", root), "root_path": root + self._path}
        await self._dashboard({**scope, **below}, receive, send)


def mount(app: App, path: str = "/_cache", *, auth: Auth | Closed = CLOSED, cache: Cache | None = None) -> Dashboard:
    """
    Mount a dashboard on *app*, a Starlette or FastAPI app, before all its other routes, and return it.

    auth, cache: see Dashboard. Mount it before the app has handled its first request. With auth=None, and without
    auth, the log says once what that means.

    Raises ConfigurationError for what cannot work.
    """
    routes = getattr(getattr(app, "router", None), "routes", None)
    if not isinstance(routes, list):
        raise ConfigurationError(f"app must be a Starlette or FastAPI app, not a {type(app).__name__}")
    if not _PATH.fullmatch(str(path)):
        raise ConfigurationError(f'path must be like "/_cache", without a slash at its end, not {path!r}')
    dashboard = Dashboard(cache, auth=auth)
    if auth is CLOSED:
        logger.warning("the dashboard at %s is closed: say by auth= who may use it", path)
    elif auth is None:
        logger.warning(
            "the dashboard at %s asks nobody for a token: it is open to all on this machine, and to all who come by a "
            "proxy on it that does not say so (by X-Forwarded-For). Where there is one, give auth= a token",
            path,
        )
    itself = Route(path, _Itself(dashboard, path), name="echo_cache_dashboard_itself", include_in_schema=False)
    routes[:0] = [itself, Mount(path, dashboard, name="echo_cache_dashboard")]
    return dashboard
