"""
What the app and the cache tell each other while one request is handled.

The responder sets the current exchange in a context variable around the call of the app; dependencies and handlers,
in the event loop or in a thread, find it there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, MutableMapping
from contextvars import ContextVar
from dataclasses import replace
from typing import Any, Final

from echo_cache.model import CacheKey
from echo_cache.options import RouteOptions

__all__ = ["ROUTE_ATTRIBUTE", "Exchange", "current_exchange", "marked_options"]

# Where a decorated endpoint carries its RouteOptions. An attribute keeps the endpoint itself untouched: its signature,
# its being async or not, and the order of decorators do not matter.
ROUTE_ATTRIBUTE: Final = "__echo_cache_route__"


# The longest pattern of a route that is told.
_LONGEST_PATTERN: Final = 256


def marked_options(endpoint: Any, method: str) -> RouteOptions | None:
    """Return what a decorator has put on *endpoint*, or on the method of an endpoint class that answers *method*."""
    if isinstance(endpoint, type):
        endpoint = getattr(endpoint, method.lower(), None) or getattr(endpoint, "get", None)
    options: RouteOptions | None = getattr(endpoint, ROUTE_ATTRIBUTE, None)
    return options


class Exchange:
    """
    One request on its way through the app.

    scope is the very mapping that the app got, so that what its router adds (endpoint, path parameters) shows here.
    """

    __slots__ = ("cache", "key", "loop", "pattern", "root_path", "route", "scope", "tags")

    def __init__(self, cache: Any, key: CacheKey, scope: MutableMapping[str, Any], pattern: RouteOptions) -> None:
        self.cache = cache
        # Where it is handled; the app may look at it from a thread.
        self.loop = asyncio.get_running_loop()
        self.key = key
        self.scope = scope
        self.root_path: str = scope.get("root_path") or ""
        self.pattern = pattern
        self.route: RouteOptions | None = None
        self.tags: list[str] = []

    def route_pattern(self) -> str:
        """
        Return the path pattern of the route that the app's router has chosen, that of its mounts before it.

        "" where no router has chosen one, or it says no pattern that can be told.
        """
        scope = self.scope
        route = _whole_route(scope)
        path = getattr(route, "path", None)
        if not isinstance(path, str):
            return ""
        mounted: str = scope.get("root_path") or ""
        outer = self.root_path
        pattern = path
        if mounted != outer and mounted.startswith(outer):
            own = getattr(route, "param_convertors", None) or ()
            of_mounts = {name: value for name, value in (scope.get("path_params") or {}).items() if name not in own}
            pattern = _with_names(mounted[len(outer) :], of_mounts) + path
        # Apps may build routes of anything; it becomes part of what is stored.
        return pattern if len(pattern) <= _LONGEST_PATTERN and pattern.isprintable() else ""

    def route_options(self) -> RouteOptions:
        """
        Return what the route says: a dependency, the endpoint's decorator, a path pattern; never_cached before all.

        Tags are filled from the path parameters. Raises KeyError when a tag names a parameter that the path lacks.
        """
        marked = marked_options(self.scope.get("endpoint"), self.scope["method"])
        if marked is not None and not marked.store:
            return marked  # whatever a router or a pattern says of all its endpoints
        route = self.route or marked or self.pattern
        if route.ttl is None and self.pattern.ttl is not None:
            route = replace(route, ttl=self.pattern.ttl)
        if not route.tags and not self.tags:
            return route
        params: Mapping[str, Any] = self.scope.get("path_params") or {}
        return replace(route, tags=(*(tag.format_map(params) for tag in route.tags), *self.tags))


def _with_names(prefix: str, params: Mapping[str, Any]) -> str:
    """
    Return what an app is mounted under, *prefix*, with the names of its *params* in place of their values.

    Clients choose the values, so that one which is not found stands for the whole.
    """
    for name, value in params.items():
        segments = f"/{value}"
        if f"{segments}/" not in f"{prefix}/":
            return "/{...}"
        prefix = f"{prefix}/".replace(f"{segments}/", f"/{{{name}}}/", 1)[:-1]
    return prefix


def _whole_route(scope: Mapping[str, Any]) -> Any:
    """
    Return the route that was chosen, with the prefixes of the routers that include it.

    FastAPI keeps those apart since its routers are included lazily.
    """
    route, fastapi = scope.get("route"), scope.get("fastapi")
    context = fastapi.get("effective_route_context") if isinstance(fastapi, dict) else None
    return context if getattr(context, "original_route", None) is route else route


current_exchange: ContextVar[Exchange | None] = ContextVar("echo_cache_exchange", default=None)
