"""
Per-route rules: @cached and @never_cached.

The one rule: the endpoint stays what it is. A decorator only marks it; the middleware reads the mark when the
router has chosen the endpoint. So signatures, sync and async endpoints and the order of decorators do not matter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Never, TypeVar, Unpack

from echo_cache.coordination.exchange import ROUTE_ATTRIBUTE
from echo_cache.errors import ConfigurationError
from echo_cache.options import RouteOptions, RouteRules, route_options

__all__ = ["cached", "never_cached"]

_Endpoint = TypeVar("_Endpoint", bound=Callable[..., Any])


def cached(*wrong: Never, **rules: Unpack[RouteRules]) -> Callable[[_Endpoint], _Endpoint]:
    """
    Mark an endpoint's responses as cacheable, in the terms of RouteOptions.

    ttl: freshness in this cache, in seconds or as a timedelta, in place of what the response says; it never overrides
    private, no-store or Set-Cookie. client_ttl: what clients are told. tags: cache groups, "product:{product_id}" is
    filled from the path parameters.

    It says that the answer is the same for everybody who asks, but for `vary`: it does not belong on what depends on
    who is signed in.

    Raises ConfigurationError for values that cannot work and for what is no endpoint.
    """
    if wrong:
        raise ConfigurationError(f"write @cached(ttl=60), with parentheses and names; it was given {wrong!r}")
    options = route_options(rules)

    def mark(endpoint: _Endpoint) -> _Endpoint:
        return _mark(endpoint, options, "@cached(...)")

    return mark


def never_cached(endpoint: _Endpoint) -> _Endpoint:
    """
    Mark an endpoint so that nothing it answers is stored.

    Raises ConfigurationError for what is no endpoint.
    """
    return _mark(endpoint, RouteOptions(store=False), "@never_cached")


def _mark(endpoint: _Endpoint, options: RouteOptions, name: str) -> _Endpoint:
    if isinstance(endpoint, type) or not hasattr(endpoint, "__call__"):  # noqa: B004  # callable() narrows the type
        raise ConfigurationError(f"{name} goes on an endpoint, not on {endpoint!r}; did you forget parentheses?")
    target = getattr(endpoint, "__func__", endpoint)  # a bound method carries no attributes of its own
    if getattr(target, ROUTE_ATTRIBUTE, options) != options:
        raise ConfigurationError(f"{name} and another cache decorator contradict each other on {endpoint!r}")
    try:
        setattr(target, ROUTE_ATTRIBUTE, options)
    except AttributeError as error:
        raise ConfigurationError(f"{name} cannot mark {endpoint!r}: {error}") from None
    return endpoint
