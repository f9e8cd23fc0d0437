"""
What happened, as frozen facts for observers.

A hit makes no fact: it is an integer increment in the cache's counters. Facts are made on the miss path, on
refusals, on invalidation and on trouble, and only when somebody observes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeAlias

from echo_cache.model import CacheKey, Fwd, Refusal

__all__ = [
    "AppFailed",
    "BreakerChanged",
    "CacheFailed",
    "Event",
    "Forwarded",
    "Invalidated",
    "LogChanged",
    "Observer",
    "Refused",
    "Stored",
    "WriteAbandoned",
]


@dataclass(frozen=True, slots=True)
class Forwarded:
    """A request went to the app."""

    key: CacheKey
    fwd: Fwd


@dataclass(frozen=True, slots=True)
class Stored:
    """A response was stored; *lifetime* is its remaining freshness in seconds."""

    key: CacheKey
    body_bytes: int
    lifetime: float


@dataclass(frozen=True, slots=True)
class Refused:
    """A response of *route* ("" where that is not known) was not stored, and why."""

    key: CacheKey
    reason: Refusal
    route: str = ""


@dataclass(frozen=True, slots=True)
class Invalidated:
    """*what* was invalidated ("key", "url", "group", "prefix", "all"), by request or by the application."""

    what: str
    soft: bool


@dataclass(frozen=True, slots=True)
class AppFailed:
    """The app failed and a stale answer was served in its place; *error* is None for a 5xx answer."""

    key: CacheKey
    error: BaseException | None


@dataclass(frozen=True, slots=True)
class CacheFailed:
    """The cache itself failed at *operation* and the request went on without it."""

    operation: str
    error: BaseException


@dataclass(frozen=True, slots=True)
class BreakerChanged:
    """
    A store's server is not asked any more (*state* "open"), or is asked again ("closed").

    reason: the last failure, empty when it is closed.
    """

    state: str
    reason: str


@dataclass(frozen=True, slots=True)
class LogChanged:
    """
    The log of all workers' invalidations cannot be heard any more, or is heard again.

    reason: why not, empty when it is.
    """

    is_heard: bool
    reason: str


@dataclass(frozen=True, slots=True)
class WriteAbandoned:
    """
    A write behind that was accepted could not be saved, and was given up after *attempts*.

    key: None when it was no write of ours. error: the name of the last one.
    """

    key: CacheKey | None
    attempts: int
    error: str


Event: TypeAlias = (
    Forwarded | Stored | Refused | Invalidated | AppFailed | CacheFailed | BreakerChanged | LogChanged | WriteAbandoned
)


class Observer(Protocol):
    """Whoever wants to know. Called in the event loop: be quick, and do not raise (what is raised is logged)."""

    def __call__(self, event: Event, /) -> None: ...
