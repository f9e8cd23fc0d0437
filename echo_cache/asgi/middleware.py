"""
HTTPCacheMiddleware: configuration, and the hit path.

The one rule: the middleware holds configuration only; what belongs to one request is its responder's.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from string import Formatter
from typing import Any, Final, TypeAlias

from echo_cache.asgi.responder import Responder
from echo_cache.asgi.types import App, Message, Receive, Scope, Send
from echo_cache.cache import UNANSWERED, Cache, Found, Lane, Ready
from echo_cache.coordination.exchange import marked_options
from echo_cache.coordination.flight import Passenger
from echo_cache.errors import ConfigurationError
from echo_cache.options import CoordinationOptions, Duration, PolicyOptions, RouteOptions, seconds
from echo_cache.policy.storing import NO_ROUTE
from echo_cache.stores.base import Store

__all__ = ["CACHE_IN_SCOPE", "KEPT_OUT", "HTTPCacheMiddleware", "path_in_app"]

logger = logging.getLogger("echo_cache")

Paths: TypeAlias = Sequence[str] | Mapping[str, Duration | None]

_UNSET: Final = object()
# What a mounted app carries that shows the cache, as the dashboard does: its requests go past the cache, uncounted, and
# find the cache in their scope.
KEPT_OUT: Final = "__echo_cache_kept_out__"
CACHE_IN_SCOPE: Final = "echo_cache.cache"
# How many middleware around it, or between it and the cache, are looked through.
_MAX_MIDDLEWARE: Final = 16
# What a server gives to each request of an app alike, and Starlette to each of its middleware.
_SURROUNDINGS: Final = ("app", "state", "root_path")


class HTTPCacheMiddleware:
    """
    A shared HTTP cache around an ASGI app.

    store: where responses live; the shorthand for cache=Cache(store, policy, name=name). cache: a Cache made elsewhere.
    policy: PolicyOptions. coordination: CoordinationOptions. name: what Cache-Status calls this cache.
    default_ttl: short for the option of that name.
    include: path patterns; if given, other paths are not cached. A mapping gives each a ttl: {"/products/*": 60}.
    exclude: path patterns that are never cached. "*" stands for any characters; patterns see the decoded path only.
    skip: called with the scope of each request; True sends it past the cache.

    Raises ConfigurationError for what cannot work.
    """

    def __init__(
        self,
        app: App,
        /,
        store: Store | None = None,
        *,
        cache: Cache | None = None,
        policy: PolicyOptions | None = None,
        coordination: CoordinationOptions | None = None,
        default_ttl: Any = _UNSET,
        include: Paths | None = None,
        exclude: Sequence[str] = (),
        skip: Callable[[Scope], bool] | None = None,
        name: str | None = None,
        **unknown: object,
    ) -> None:
        try:
            if unknown:
                raise ConfigurationError(
                    f"unknown option {', '.join(map(repr, unknown))}; allowed are store, cache, policy, coordination, "
                    "default_ttl, include, exclude, skip, name"
                )
            self.app = app
            self.cache: Final = _make_cache(store, cache, policy, coordination, default_ttl, name)
            self._include = None if include is None else _path_rules("include", include)
            self._exclude = [pattern for pattern, _ in _path_rules("exclude", exclude)]
            if skip is not None and not callable(skip):
                raise ConfigurationError(f"skip must be a function of the scope, not {skip!r}")
            self._skip = skip
        except ConfigurationError as error:
            # Starlette makes its middleware when the server starts it. A server takes an app that raises there for one
            # without a lifespan, and says nothing of why: so it is said here.
            logger.critical("HTTPCacheMiddleware cannot work: %s", error)
            raise
        self._ready = self.cache.ready
        # What the server and the app around put into every scope, seen once, for requests that are made here.
        self._surroundings: dict[str, Any] | None = None
        # Where apps are mounted that are kept out.
        self._kept_out: tuple[str, ...] = ()
        self.cache.attach(self, lambda: self._surroundings or {})

    def __repr__(self) -> str:
        return f"<HTTPCacheMiddleware {self.cache!r}>"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._lifespan(scope, receive, send)
            else:
                await self.app(scope, receive, send)
            return
        lane: Lane | None = None
        skipped = self._skip is not None and self._is_skipped(self._skip, scope)
        if scope["method"] == "GET" and not skipped:
            try:
                found = self._ready(scope)
            except Exception as error:
                self.cache.failed("ready", error)
                found = None
            if isinstance(found, Ready):
                # Copies, since whoever stands outside may add fields to what it is given.
                await send({"type": "http.response.start", "status": found.status, "headers": found.headers.copy()})
                await send({"type": "http.response.body", "body": found.body})
                return
            lane = found
        if self._surroundings is None:
            self._note_surroundings(scope)
            self.cache.start()
        if self._kept_out and self._is_kept_out(scope):
            await self.app({**scope, CACHE_IN_SCOPE: self.cache}, receive, send)
            return
        pattern = None if skipped else self._pattern(scope)
        below: Found | None = None
        aboard: Passenger | None = None
        if lane is not None and pattern is not None:
            if self.cache.flights.is_taking_off:
                aboard = await self._join(lane, scope, receive)
            if aboard is None and self.cache.looks_further:
                answer: Ready | Found | Passenger | None
                try:
                    answer = await self.cache.look_further(lane, scope["headers"], receive)
                except Exception as error:
                    self.cache.failed("get", error)
                    answer = UNANSWERED
                if isinstance(answer, Ready):
                    await send({"type": "http.response.start", "status": answer.status, "headers": answer.headers})
                    await send({"type": "http.response.body", "body": answer.body})
                    return
                if isinstance(answer, Passenger):
                    aboard = answer
                else:
                    below = answer
        await Responder(self.app, self.cache, scope, receive, send, pattern, lane, below, aboard).respond()

    async def _join(self, lane: Lane, scope: Scope, receive: Receive) -> Passenger | None:
        """Return a place on a call of the app for the same that was started in this turn, when that has begun."""
        try:
            aboard = self.cache.join((lane, self.cache.flight_key(lane[0], scope["headers"])), receive)
        except Exception as error:
            self.cache.failed("board", error)
            return None
        if aboard is not None:
            try:
                await asyncio.sleep(0)
            except BaseException:
                aboard.leave()
                raise
        return aboard

    def _pattern(self, scope: Scope) -> RouteOptions | None:
        """Return what the path patterns say of this request; None when it goes past the cache."""
        if self.cache.is_disabled:
            return None
        path = scope["path"]
        if any(pattern.fullmatch(path) for pattern in self._exclude):
            return None
        if self._include is None:
            return NO_ROUTE
        return next((route for pattern, route in self._include if pattern.fullmatch(path)), None)

    def _is_skipped(self, skip: Callable[[Scope], bool], scope: Scope) -> bool:
        """Return what *skip* says; a request that it cannot judge goes past the cache."""
        try:
            return bool(skip(scope))
        except Exception as error:
            self.cache.failed("skip", error)
            return True

    def _is_kept_out(self, scope: Scope) -> bool:
        """Say whether the request is for an app that is kept out."""
        path = path_in_app(scope) if scope.get("root_path") else scope["path"]
        if not path.startswith(self._kept_out):
            return False
        return any(path == mounted or path.startswith(f"{mounted}/") for mounted in self._kept_out)

    def _note_surroundings(self, scope: Scope) -> None:
        self._surroundings = {name: scope[name] for name in _SURROUNDINGS if name in scope}
        try:
            # The app in the scope is the one whose middleware this is, or another one in which its app is mounted.
            routes = _routes_in(self.app) or _routes_in(scope.get("app"))
            self._kept_out = tuple(_kept_out_of(routes, self.cache))
        except Exception as error:  # routes may be anything
            self.cache.failed("routes", error)

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check the decorated routes at start; finish what is under way before the app's shutdown is complete."""
        checked = False

        async def receive_checked() -> Message:
            nonlocal checked
            message = await receive()
            if message["type"] == "lifespan.startup" and not checked:
                checked = True
                self.cache.start()
                self._note_surroundings(scope)
                try:
                    check_routes(getattr(scope.get("app"), "routes", None) or ())
                except ConfigurationError as error:
                    # Said as well as raised: a server takes what is only raised for an app without a lifespan.
                    await send({"type": "lifespan.startup.failed", "message": str(error)})
                    raise
            return message

        async def send_last(message: Message) -> None:
            if message["type"] in ("lifespan.shutdown.complete", "lifespan.shutdown.failed"):
                await self.cache.aclose()
            await send(message)

        await self.app(scope, receive_checked, send_last)


def _make_cache(
    store: Store | None,
    cache: Cache | None,
    policy: PolicyOptions | None,
    coordination: CoordinationOptions | None,
    default_ttl: Any,
    name: str | None,
) -> Cache:
    if (store is None) == (cache is None):
        raise ConfigurationError(
            "give exactly one of store= (MemoryStore(), RedisStore(url), TwoLevelStore(l1, l2)) and cache=Cache(...)"
        )
    if cache is not None:
        if (policy, coordination, name) != (None, None, None) or default_ttl is not _UNSET:
            raise ConfigurationError(
                "policy=, coordination=, default_ttl= and name= belong to Cache(...) when cache= is given"
            )
        if not isinstance(cache, Cache):
            raise ConfigurationError(f"cache must be a Cache, not {cache!r}")
        return cache
    if default_ttl is not _UNSET:
        if policy is not None:
            raise ConfigurationError("give default_ttl= either here or in policy=PolicyOptions(default_ttl=...)")
        policy = PolicyOptions(default_ttl=default_ttl)
    assert store is not None
    return Cache(store, policy, coordination=coordination, name=name if name is not None else "echo_cache")


def _path_rules(option: str, paths: object) -> list[tuple[re.Pattern[str], RouteOptions]]:
    if isinstance(paths, str) or not isinstance(paths, Iterable):
        raise ConfigurationError(f"{option} must be a list of path patterns, not {paths!r}")
    ttls: Mapping[Any, Any] = paths if isinstance(paths, Mapping) else dict.fromkeys(paths)
    rules = []
    for pattern, ttl in ttls.items():
        if not isinstance(pattern, str) or not pattern.startswith(("/", "*")):
            raise ConfigurationError(f"{option}: a path pattern begins with '/' or '*', not {pattern!r}")
        route = NO_ROUTE if ttl is None else RouteOptions(ttl=seconds(f"{option}[{pattern!r}]", ttl))
        rules.append((re.compile(_expression(pattern), re.DOTALL), route))
    return rules


def _expression(pattern: str) -> str:
    """Return *pattern* as a regular expression that tries no place twice, whatever the path (clients choose it)."""
    first, *rest = map(re.escape, pattern.split("*"))
    if not rest:
        return first
    return first + "".join(f"(?>.*?{part})" for part in rest[:-1]) + ".*" + rest[-1]


def path_in_app(scope: Scope) -> str:
    """Return the path as the app's own routes have it: without what the app is mounted under."""
    path: str = scope["path"]
    root: str = scope.get("root_path") or ""
    return path[len(root) :] if path == root or path.startswith(root + "/") else path


def _routes_in(app: Any) -> Iterable[Any]:
    """Return the routes of *app*, or of what it is around, through middleware; none where none are found."""
    for _ in range(_MAX_MIDDLEWARE):
        routes: Iterable[Any] | None = getattr(app, "routes", None)
        if routes:
            return routes
        app = getattr(app, "app", None)
    return ()


def _kept_out_of(routes: Iterable[Any], cache: Cache, outer: str = "") -> Iterator[str]:
    """Yield where among *routes* apps are mounted that are kept out of *cache*, and tell them of it."""
    for route in routes:
        path = getattr(route, "path", "")
        path = outer + path.rstrip("/") if isinstance(path, str) else outer
        tell = _told_of_cache(route)
        if tell is None:
            yield from _kept_out_of(_routes_in(route), cache, path)
        elif path and "{" not in path:
            tell(cache)
            yield path


def _told_of_cache(route: Any) -> Callable[[Cache], None] | None:
    """Return what the app of *route* wants to be told the cache by, if it is kept out; through middleware around it."""
    app = getattr(route, "app", None)
    for _ in range(_MAX_MIDDLEWARE):
        tell: Callable[[Cache], None] | None = getattr(app, KEPT_OUT, None)
        if tell is not None or app is None:
            return tell
        app = getattr(app, "app", None)
    return None


def check_routes(routes: Iterable[Any], outer: frozenset[str] = frozenset()) -> None:
    """
    Check the decorated endpoints among *routes*, those of mounted apps included.

    *outer* are the path parameters of what they are mounted in. Raises ConfigurationError where a decorator can have
    no effect, or a tag names what the path does not have.
    """
    for route in routes:
        known = outer | frozenset(getattr(route, "param_convertors", None) or ())
        check_routes(getattr(route, "routes", None) or (), known)
        options = marked_options(getattr(route, "endpoint", None), "GET")
        if options is None:
            continue
        methods, path = getattr(route, "methods", None), getattr(route, "path", "")
        if options.store and methods is not None and "GET" not in methods:
            raise ConfigurationError(
                f"@cached on {path!r} can have no effect: only GET is cached, and its methods are {sorted(methods)}"
            )
        for tag in options.tags:
            _check_tag(tag, path, known)


def _check_tag(tag: str, path: str, known: frozenset[str]) -> None:
    try:
        named = {
            field.partition(".")[0].partition("[")[0] for _, field, _, _ in Formatter().parse(tag) if field is not None
        }
    except ValueError as error:
        raise ConfigurationError(f"@cached on {path!r}: tag {tag!r} is no template: {error}") from None
    if not named <= known:
        missing = ", ".join(sorted(map(repr, named - known)))
        raise ConfigurationError(f"@cached on {path!r}: tag {tag!r} needs {missing}, the path has {sorted(known)}")
