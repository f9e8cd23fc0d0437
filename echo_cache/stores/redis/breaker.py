"""
Whether a server is asked at all. The one rule: who is down is asked by one probe at a time, never by a request.

A state machine without a clock: who drives it decides when to probe.

    closed --(failures in a row)--> open --(time to probe)--> half open --(it answers)--> closed
                                    open <--(it does not)-----+
"""

from __future__ import annotations

import enum
from typing import Final

__all__ = ["Breaker", "BreakerState"]


class BreakerState(enum.StrEnum):
    """What a breaker lets through."""

    CLOSED = "closed"
    """Everything."""

    OPEN = "open"
    """Nothing."""

    HALF_OPEN = "half_open"
    """One probe."""


class Breaker:
    """
    Counts failures in a row.

    threshold: how many of them open it.
    """

    __slots__ = ("_failures", "state", "threshold")

    def __init__(self, threshold: int) -> None:
        self.threshold: Final = threshold
        self.state = BreakerState.CLOSED
        self._failures = 0

    def __repr__(self) -> str:
        return f"<Breaker {self.state} [{self._failures} of {self.threshold} failures]>"

    def succeeded(self) -> bool:
        """Note an answer. Returns whether this closed it."""
        self._failures = 0
        if self.state is BreakerState.HALF_OPEN:
            self.state = BreakerState.CLOSED
            return True
        # An answer to what was asked before it opened proves nothing about now.
        return False

    def failed(self, count: int = 1) -> bool:
        """Note *count* failures. Returns whether this opened it for the requests, which a failed probe does not."""
        self._failures += count
        if self.state is BreakerState.HALF_OPEN:
            self.state = BreakerState.OPEN
        elif self.state is BreakerState.CLOSED and self._failures >= self.threshold:
            self.state = BreakerState.OPEN
            return True
        return False

    def probe(self) -> None:
        """Let one probe through: its end is the next `succeeded` or `failed`."""
        assert self.state is BreakerState.OPEN
        self.state = BreakerState.HALF_OPEN
