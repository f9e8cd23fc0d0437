"""
What changes in a cache, as lines of a log with structured fields.

The one rule: whoever sends requests, or can write to Redis, decides neither how many lines there are nor what stands in
them. Lines of one kind come at most so often and say how many were left out; keys are told as digests.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, Final

from echo_cache.codec import key_digest
from echo_cache.errors import CodecError, ConfigurationError, EchoCacheError
from echo_cache.events import (
    AppFailed,
    BreakerChanged,
    CacheFailed,
    Event,
    Invalidated,
    LogChanged,
    Refused,
    WriteAbandoned,
)
from echo_cache.model import CacheKey
from echo_cache.options import Duration, seconds

__all__ = ["LoggingObserver"]

_LONGEST_TEXT: Final = 256
# How many kinds of lines are told apart. What there is beyond, of very many routes, shares the limits of its kind.
_MAX_KINDS: Final = 1_024
# Unsafe requests invalidate, and anybody may send them.
_INVALIDATIONS_EVERY: Final = 1.0


class LoggingObserver:
    """
    An observer that logs each change of state, with its facts as fields of the record: `Cache(..., observers=[...])`.

    logger: a logger or its name. level: that of lines about what is well: invalidations, a breaker that closes, a log
    that is heard again. Trouble is a WARNING, a write that is lost an ERROR. refusals: the level of responses that are
    not stored. every: at most one line of a kind in so many seconds; a refusal's kind is its reason and route.
    """

    def __init__(
        self,
        logger: logging.Logger | str = "echo_cache.events",
        *,
        level: int = logging.INFO,
        refusals: int = logging.DEBUG,
        every: Duration = 60.0,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        for name, value in (("level", level), ("refusals", refusals)):
            if not isinstance(value, int):
                raise ConfigurationError(f"{name} must be a level such as logging.INFO, not {value!r}")
        self._logger: Final = logging.getLogger(logger) if isinstance(logger, str) else logger
        self._level = level
        self._refusals = refusals
        self._every = seconds("every", every)
        self._now = now
        # Until when lines of a kind are left out, and how many were.
        self._quiet: dict[tuple[str, ...], tuple[float, int]] = {}

    def __repr__(self) -> str:
        return f"<LoggingObserver to {self._logger.name!r} [{len(self._quiet)} kinds]>"

    def __call__(self, event: Event) -> None:
        """Log *event*, if it is a change of state or a refusal."""
        match event:
            case Refused():
                self._refused(event)
            case Invalidated():
                what, soft = str(event.what), event.soft
                self._log(
                    self._level,
                    "invalidated",
                    (what, str(soft)),
                    f"invalidated: {what}{', softly' if soft else ''}",
                    {"what": what, "soft": soft},
                    every=_INVALIDATIONS_EVERY,
                )
            case BreakerChanged():
                state, reason = _clean(event.state), _clean(event.reason)
                self._log(
                    logging.WARNING if state == "open" else self._level,
                    "breaker_changed",
                    None,
                    f"the breaker is {state}" + (f": {reason}" if reason else ""),
                    {"state": state, "reason": reason},
                )
            case LogChanged():
                reason = _clean(event.reason)
                self._log(
                    self._level if event.is_heard else logging.WARNING,
                    "log_changed",
                    None,
                    "the invalidation log is heard"
                    if event.is_heard
                    else f"the invalidation log is not heard: {reason}",
                    {"heard": event.is_heard, "reason": reason},
                )
            case CacheFailed():
                operation, error = _clean(event.operation), _told(event.error)
                self._log(
                    logging.WARNING,
                    "cache_failed",
                    (operation, type(event.error).__name__),
                    f"the cache failed in {operation}: {error}",
                    {"operation": operation, "error": error},
                )
            case AppFailed():
                name = "5xx" if event.error is None else type(event.error).__name__
                self._log(
                    logging.WARNING,
                    "app_failed",
                    (name,),
                    f"a stale response was served in place of the app's failure ({name})",
                    {"error": name},
                    key=event.key,
                )
            case WriteAbandoned():
                error = _clean(event.error)
                self._log(
                    logging.ERROR,
                    "write_abandoned",
                    (error,),
                    f"a write was given up after {event.attempts} attempts: {error}",
                    {"error": error, "attempts": event.attempts},
                    key=event.key,
                )
            case _:
                pass  # a call of the app and what was stored of it are counted, and no changes of state

    def _refused(self, event: Refused) -> None:
        if not self._logger.isEnabledFor(self._refusals):
            return  # responses that are not stored may be most of them
        route = event.route
        reason = str(event.reason)
        self._log(
            self._refusals,
            "refused",
            (reason, route),
            f"not stored: {reason}",
            {"reason": reason, "route": _clean(route)},
            key=event.key,
        )

    def _log(
        self,
        level: int,
        event: str,
        kind: tuple[str, ...] | None,
        message: str,
        facts: dict[str, Any],
        *,
        key: CacheKey | None = None,
        every: float | None = None,
    ) -> None:
        """Write a line, unless there was one of this *kind* a moment ago; None: it is told in any case."""
        if not self._logger.isEnabledFor(level):
            return
        left_out = 0
        if kind is not None:
            told = self._left_out((event, *kind), self._every if every is None else every)
            if told is None:
                return
            left_out = told
        fields = {"cache_event": event, **{f"cache_{name}": value for name, value in facts.items()}}
        if key is not None:
            fields["cache_key"] = _digest(key)
        if left_out:
            fields["cache_left_out"] = left_out
            message = f"{message} (and {left_out} times more since the last such line)"
        self._logger.log(level, "%s", message, extra=fields)

    def _left_out(self, kind: tuple[str, ...], every: float) -> int | None:
        """Return how many lines of *kind* were left out since the last one; None where this is one of them."""
        if kind not in self._quiet and len(self._quiet) >= _MAX_KINDS:
            kind = kind[:1]
        until, count = self._quiet.get(kind, (float("-inf"), 0))
        now = self._now()
        if now < until:
            self._quiet[kind] = until, count + 1
            return None
        self._quiet[kind] = now + every, 0
        return count


def _told(error: BaseException) -> str:
    """Return *error* in words; of one that is not ours its name alone, since its words may be those of a request."""
    return _clean(str(error)) if isinstance(error, EchoCacheError) else type(error).__name__


def _clean(text: str) -> str:
    """Return *text* on one line, without what controls a terminal, and not too long."""
    text = text[:_LONGEST_TEXT]
    return text if text.isprintable() else "".join([one if one.isprintable() else "?" for one in text])


def _digest(key: CacheKey) -> str:
    try:
        return key_digest(key)
    except CodecError:
        return ""
