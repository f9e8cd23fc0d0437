"""What was not stored lately, and why."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final

from echo_cache.events import Event, Refused
from echo_cache.management.entries import url_of
from echo_cache.model import CacheKey, Refusal
from echo_cache.policy.explaining import WHY_NOT_STORED

__all__ = ["RecentRefusals"]

_KEPT: Final = 50
# Clients choose the keys: what is kept of long ones is bounded by this, with all their copies.
_LONGEST_KEY: Final = 8_192


class RecentRefusals:
    """
    An observer that keeps the last refusals.

    now: the time, epoch seconds.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._kept: deque[tuple[float, CacheKey, Refusal]] = deque(maxlen=_KEPT)
        self.seen = 0

    def __repr__(self) -> str:
        return f"<RecentRefusals {len(self._kept)} of {self.seen}>"

    def __call__(self, event: Event) -> None:
        """Take note of *event*, if it is one."""
        if isinstance(event, Refused):
            self.seen += 1
            if sum([len(part) for part in event.key if part is not None]) <= _LONGEST_KEY:
                self._kept.append((self._now(), event.key, event.reason))

    def latest(self) -> list[dict[str, Any]]:
        """Return what was refused lately, newest first: time, url, reason, explanation, remedy."""
        return [
            {
                "time": time,
                "url": url_of(key),
                "reason": str(reason),
                "explanation": WHY_NOT_STORED[reason][0],
                "remedy": WHY_NOT_STORED[reason][1],
            }
            for time, key, reason in reversed(self._kept)
        ]
