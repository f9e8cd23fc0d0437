"""Where time comes from. Everything that needs the time is given a Clock, so that tests can hold it still."""

from __future__ import annotations

import time
from time import monotonic
from typing import Protocol

__all__ = ["Clock", "SystemClock"]


class Clock(Protocol):
    """A wall clock: epoch seconds."""

    def time(self) -> float:
        """Return the time in epoch seconds."""
        ...


class SystemClock:
    """The machine's wall clock."""

    # The builtin itself, not a method around it: the hit path reads it once per request (40 ns).
    time = staticmethod(time.time)
    monotonic = staticmethod(monotonic)
