"""
What can be configured: frozen values that are checked when they are made.

A wrong value raises ConfigurationError at start, with what is allowed. Durations are float seconds (a timedelta is
accepted and converted), sizes are bytes. Enumerations are given as members or as their values in any case.
"""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from datetime import timedelta
from typing import Any, Self, TypeAlias, TypedDict, TypeVar, cast

from echo_cache.errors import ConfigurationError

__all__ = [
    "CacheStrategy",
    "CoordinationOptions",
    "Duration",
    "PolicyOptions",
    "RequestDirectiveMode",
    "RouteOptions",
    "RouteRules",
    "SyncMode",
    "TwoLevelConfig",
    "UnsyncedMode",
    "positive_int",
    "route_options",
    "seconds",
]

Duration: TypeAlias = float | timedelta

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")


def seconds(name: str, value: Duration) -> float:
    """
    Return *value* as seconds.

    Raises ConfigurationError for what is no duration, negative, infinite or not a number.
    """
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if not _is_number(value) or not 0 <= value < math.inf:
        raise ConfigurationError(f"{name} must be a number of seconds >= 0 or a timedelta, not {value!r}")
    return float(value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def positive_int(name: str, value: object) -> None:
    """Raise ConfigurationError for what is no whole number from 1 on."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigurationError(f"{name} must be a whole number >= 1, not {value!r}")


class RequestDirectiveMode(enum.StrEnum):
    """Whether Cache-Control and Pragma of requests count: public sites may not want clients to force misses."""

    HONOUR = "honour"
    IGNORE = "ignore"


@dataclass(frozen=True, slots=True)
class PolicyOptions:
    """
    The rules of storing and reuse. The defaults are the safe ones of a cache inside an app.

    default_ttl: freshness for responses that say nothing about caching, to requests without Cookie and Authorization,
        when their status is heuristically cacheable; None turns it off.
    negative_ttl: the longest freshness that a route's ttl, the heuristic or default_ttl give a 404 or 410; what the
        response says of itself is not cut. None: as other statuses.
    heuristic_fraction, heuristic_max: RFC 9111 section 4.2.2, of Date minus Last-Modified; fraction 0 turns it off.
    stale_while_revalidate, stale_if_error: used where the response does not give its own.
    keep: how long a stale response that has a validator is kept to be validated.
    expiry_jitter: the part of its remaining lifetime, 0..0.5, by which a response may become stale earlier, each by its
        own share, so that what was filled together is not filled again together; 0 turns it off.
    early_refresh: the part of its lifetime, between 0 and 1, after which a fresh response that is served is also
        refreshed in the background, so that nobody waits for it; None turns it off.
    store_set_cookie: store responses that set cookies. Only for gateways that know what they do.
    targeted_fields: response fields that take the place of Cache-Control for this cache, in order (RFC 9213).
    generate_etag: give stored bodies without an ETag a strong one.
    request_directives: "honour", or "ignore" where clients must not force misses.
    allowed_hosts: responses for other hosts are never stored; None allows all.
    ignored_query_parameters: removed from the query before the key is made and before the app sees it.
    sort_query: sort the parameters of the query by name, in the key only.
    max_body_bytes, max_header_bytes: larger responses pass through and are not stored.
    max_vary_fields: responses that vary on more fields are not stored.
    hit_for_miss: how long a key is remembered as not worth waiting for.
    """

    default_ttl: float | None = 180.0  # as the ancestor library, echo-http-cache, has it
    # 10 s, as CloudFront keeps errors: what is missing may be made at any moment, and who made it looks for it at once;
    # and who asks again and again for what the app does not have gets it called six times a minute.
    negative_ttl: float | None = 10.0
    heuristic_fraction: float = 0.1  # RFC 9111 section 4.2.2 names 10 %
    heuristic_max: float = 86_400.0
    stale_while_revalidate: float = 0.0
    stale_if_error: float = 0.0
    keep: float = 3_600.0
    expiry_jitter: float = 0.0
    early_refresh: float | None = None
    store_set_cookie: bool = False
    targeted_fields: Sequence[str] = ()
    generate_etag: bool = True
    request_directives: str = RequestDirectiveMode.HONOUR
    allowed_hosts: Sequence[str] | None = None
    ignored_query_parameters: Sequence[str] = ()
    sort_query: bool = False
    max_body_bytes: int = 8 * 1024 * 1024
    max_header_bytes: int = 32 * 1024
    max_vary_fields: int = 8
    # 120 s: Varnish's built-in hit-for-miss; long enough that strangers stop queueing, short enough that a fix shows.
    hit_for_miss: float = 120.0

    def __post_init__(self) -> None:
        put = _setter(self)
        for name in ("default_ttl", "negative_ttl"):
            value = getattr(self, name)
            if value is not None:
                put(name, seconds(name, value))
        for name in ("heuristic_max", "stale_while_revalidate", "stale_if_error", "keep", "hit_for_miss"):
            put(name, seconds(name, getattr(self, name)))
        if not 0 <= self.heuristic_fraction <= 1:
            raise ConfigurationError(f"heuristic_fraction must be in 0..1, not {self.heuristic_fraction!r}")
        # Half at most: who wants less than half of a lifetime wants another lifetime.
        if not _is_number(self.expiry_jitter) or not 0 <= self.expiry_jitter <= 0.5:
            raise ConfigurationError(f"expiry_jitter must be a number in 0..0.5, not {self.expiry_jitter!r}")
        early = self.early_refresh
        if early is not None and not (_is_number(early) and 0 < early < 1):
            raise ConfigurationError(f"early_refresh must be a number between 0 and 1, or None, not {early!r}")
        for name in ("max_body_bytes", "max_header_bytes", "max_vary_fields"):
            positive_int(name, getattr(self, name))
        put("request_directives", _enum(RequestDirectiveMode, "request_directives", self.request_directives))
        put("targeted_fields", _strings("targeted_fields", self.targeted_fields, _TOKEN, lower=True))
        if self.allowed_hosts is not None:
            put("allowed_hosts", _strings("allowed_hosts", self.allowed_hosts, re.compile(r"[^\s/@]+"), lower=True))
        put("ignored_query_parameters", _strings("ignored_query_parameters", self.ignored_query_parameters))

    @classmethod
    def rfc9111(cls, **changes: Any) -> Self:
        """
        Return the plain standard, with nothing of our own: for gateways and conformance runs.

        No default_ttl and no negative_ttl, Set-Cookie is stored as the standard allows, CDN-Cache-Control is
        honoured, nothing is generated.
        """
        plain: dict[str, Any] = {
            "default_ttl": None,
            "negative_ttl": None,
            "store_set_cookie": True,
            "targeted_fields": ("CDN-Cache-Control",),
            "generate_etag": False,
        }
        return cls(**{**plain, **changes})


@dataclass(frozen=True, slots=True)
class RouteOptions:
    """
    What one route says about its responses; it speaks to this cache only, never to browsers.

    ttl: freshness here, in place of what the response says; None leaves that to the response. For 404 and 410 it is at
        most the policy's negative_ttl.
    negative_ttl: freshness of 404 and 410 here, before all else; None leaves it to ttl. It says nothing of others.
    client_ttl: what clients are told in Cache-Control: max-age, counted from each answer; None leaves it alone.
    stale_while_revalidate, stale_if_error: as the directives of RFC 5861; None leaves them to the response.
    tags: the cache groups of its responses; "{name}" is filled from the path parameters.
    vary: request fields that select the response, beside those of its Vary field.
    store: False keeps every response of the route out of the cache.
    share_authorized: responses to requests with Authorization are the same for all who may ask.
    store_set_cookie: Set-Cookie of this route belongs to nobody in particular and may be shared.
    """

    ttl: float | None = None
    negative_ttl: float | None = None
    client_ttl: float | None = None
    stale_while_revalidate: float | None = None
    stale_if_error: float | None = None
    tags: Sequence[str] = ()
    vary: Sequence[str] = ()
    store: bool = True
    share_authorized: bool = False
    store_set_cookie: bool = False

    def __post_init__(self) -> None:
        put = _setter(self)
        for name in ("ttl", "negative_ttl", "client_ttl", "stale_while_revalidate", "stale_if_error"):
            value = getattr(self, name)
            if value is not None:
                put(name, seconds(name, value))
        put("tags", _strings("tags", self.tags))
        put("vary", _strings("vary", self.vary, _TOKEN, lower=True))


class RouteRules(TypedDict, total=False):
    """RouteOptions as a person writes them, by keyword: durations may be timedeltas."""

    ttl: Duration | None
    negative_ttl: Duration | None
    client_ttl: Duration | None
    stale_while_revalidate: Duration | None
    stale_if_error: Duration | None
    tags: Sequence[str]
    vary: Sequence[str]
    share_authorized: bool
    store_set_cookie: bool


def route_options(rules: RouteRules) -> RouteOptions:
    """Return *rules* as RouteOptions. Raises ConfigurationError for a name or a value that cannot work."""
    unknown = rules.keys() - RouteRules.__annotations__.keys()
    if unknown:
        allowed = ", ".join(RouteRules.__annotations__)
        raise ConfigurationError(f"unknown rule {', '.join(sorted(map(repr, unknown)))}; allowed are {allowed}")
    return RouteOptions(**cast(dict[str, Any], rules))


class CacheStrategy(enum.StrEnum):
    """How a write reaches the two levels."""

    CACHE_ASIDE = "cache_aside"
    WRITE_THROUGH = "write_through"
    WRITE_BACK = "write_back"


class SyncMode(enum.StrEnum):
    """Whether work between the levels that the answer does not need is awaited or queued."""

    SYNC = "sync"
    ASYNC = "async"


@dataclass(frozen=True, slots=True)
class TwoLevelConfig:
    """
    How memory (L1) and Redis (L2) work together.

    strategy: how a write reaches the levels. sync_mode: whether promotion is awaited or queued.
    l1_ttl, l2_ttl: the longest time for which each level calls an entry fresh; they never lengthen what it allows.
    cache_warming: an entry found in L2 is put into L1 with its remaining life.
    async_buffer, async_buffer_bytes: the bounds of each queue between the levels: of what WRITE_BACK has yet to write
        to L2, and of what sync_mode ASYNC has yet to promote. In operations, and in bytes.
    drain_timeout: how long aclose tries to write what WRITE_BACK has queued.
    l2_soft_timeout: how long L2 is waited for while a stale answer is at hand. (Without one, L2's own time-out holds.)
    """

    strategy: str = CacheStrategy.WRITE_THROUGH
    l1_ttl: float = 300.0
    l2_ttl: float = 1_800.0
    cache_warming: bool = True
    sync_mode: str = SyncMode.ASYNC
    async_buffer: int = 1_000
    async_buffer_bytes: int = 64 * 1024 * 1024
    drain_timeout: float = 5.0
    l2_soft_timeout: float = 0.020

    def __post_init__(self) -> None:
        put = _setter(self)
        put("strategy", _enum(CacheStrategy, "strategy", self.strategy))
        put("sync_mode", _enum(SyncMode, "sync_mode", self.sync_mode))
        for name in ("l1_ttl", "l2_ttl", "drain_timeout", "l2_soft_timeout"):
            put(name, seconds(name, getattr(self, name)))
        if self.l1_ttl > self.l2_ttl:
            raise ConfigurationError(
                f"l1_ttl ({self.l1_ttl} s) must not be longer than l2_ttl ({self.l2_ttl} s): "
                "memory would call entries fresh that Redis has given up"
            )
        if not isinstance(self.cache_warming, bool):
            raise ConfigurationError(f"cache_warming must be True or False, not {self.cache_warming!r}")
        for name in ("async_buffer", "async_buffer_bytes"):
            positive_int(name, getattr(self, name))


class UnsyncedMode(enum.StrEnum):
    """What is done with stored responses while it is unknown what other workers have invalidated."""

    CAP = "cap"
    """They answer until they are `max_unsynced` old: the app is called once per page and that time."""

    BYPASS = "bypass"
    """They do not answer; each is confirmed by the app."""


@dataclass(frozen=True, slots=True)
class CoordinationOptions:
    """
    How the workers that share a Redis act together. Without one they have nothing to agree on.

    max_unsynced: for how long a worker that cannot hear the invalidation log goes on as if nothing had happened, in
        seconds. This is the bound on how late it may learn of an invalidation.
    unsynced: what it does after that: "cap" or "bypass".
    lease_ttl: how long others wait for a worker that has died while it was calling the app for all.
    lease_wait: how long a worker waits for another's call of the app, at most; 0: not at all, each worker calls it.
    max_refreshes: background refreshes under way at a time, in this process.
    refresh_pause: how long after a refresh that failed the next one is tried.
    report_every: how often a worker tells the others its statistics through Redis, so that a dashboard or the command
        line shows the sum of all; 0: not at all.
    """

    max_unsynced: float = 5.0
    unsynced: str = UnsyncedMode.CAP
    lease_ttl: float = 2.0
    lease_wait: float = 5.0
    max_refreshes: int = 64
    refresh_pause: float = 1.0
    report_every: float = 2.0

    def __post_init__(self) -> None:
        put = _setter(self)
        for name in ("max_unsynced", "lease_ttl", "lease_wait", "refresh_pause", "report_every"):
            put(name, seconds(name, getattr(self, name)))
        for name, least in (("max_unsynced", 0.1), ("lease_ttl", 0.1)):
            if getattr(self, name) < least:
                raise ConfigurationError(f"{name} must be at least {least} s, not {getattr(self, name)}")
        if 0 < self.report_every < 0.1:
            raise ConfigurationError(f"report_every must be 0 or at least 0.1 s, not {self.report_every}")
        put("unsynced", _enum(UnsyncedMode, "unsynced", self.unsynced))
        positive_int("max_refreshes", self.max_refreshes)


_E = TypeVar("_E", bound=enum.StrEnum)


def _enum(kind: type[_E], name: str, value: str) -> _E:
    try:
        return kind(value.lower())
    except (ValueError, AttributeError):
        allowed = ", ".join(repr(member.value) for member in kind)
        raise ConfigurationError(f"{name} must be one of {allowed}, not {value!r}") from None


def _strings(
    name: str, values: object, pattern: re.Pattern[str] | None = None, *, lower: bool = False
) -> tuple[str, ...]:
    if (
        not isinstance(values, Collection)
        or isinstance(values, str | bytes)
        or not all(isinstance(value, str) and value for value in values)
    ):
        raise ConfigurationError(f"{name} must be a list of non-empty strings, not {values!r}")
    for value in values:
        if pattern is not None and not pattern.fullmatch(value):
            raise ConfigurationError(f"{name}: {value!r} is not a valid name here")
    return tuple(value.lower() if lower else value for value in values)


def _setter(value: Any) -> Any:
    """Return a function that sets a field of the frozen *value* while it is being made."""
    names = {field.name for field in fields(value)}

    def put(name: str, new: object) -> None:
        assert name in names
        object.__setattr__(value, name, new)

    return put
