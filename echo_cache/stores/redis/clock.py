"""
How far this machine's clock is from the server's. The one rule: entries in Redis carry the server's time, so that two
machines whose clocks differ agree on what is fresh.

The server is asked for its TIME; what it says was true at some moment between question and answer, so the middle is
wrong by half the round trip at most, which the operation's time budget bounds (50 ms by default).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

__all__ = ["ServerClock"]

# Quartz drifts by less than 0.1 ms a second, so by 30 ms in this time.
_ASK_AGAIN = 300.0
# A wall clock that leaves the monotonic one by more than this was set.
_STEP = 0.25
# What took longer than this to learn may be wrong by half of it, and is asked again as soon.
_ROUGH = 1.0
# Clocks that differ by less agree. Most are kept together better than that, and then entries need no translation.
_AGREEMENT = 0.1
# In whole parts of a second, so that a time of our days to which it is added and subtracted again is the same.
_PARTS = 1024


class ServerClock:
    """
    The offset of one server's clock.

    now, monotonic: the machine's clocks, in seconds.
    """

    __slots__ = ("_anchor", "_due", "_monotonic", "_now", "is_refused", "shift")

    def __init__(self, now: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._monotonic = monotonic
        # What is to be added to this machine's time to get the server's, in seconds.
        self.shift = 0.0
        # Whether the server, when it was last asked, answered that it does not tell.
        self.is_refused = False
        self._anchor = 0.0
        self._due = -math.inf

    def __repr__(self) -> str:
        return f"<ServerClock {self.shift:+.3f} s{', due' if self.is_due() else ''}>"

    def is_due(self) -> bool:
        """Return whether the server must be asked: never asked, asked long ago, or the machine's clock was set."""
        monotonic = self._monotonic()
        return monotonic >= self._due or abs(self._now() - monotonic - self._anchor) > _STEP

    def begin(self) -> float:
        """Return the moment at which the server is asked, to be given to `learn`."""
        return self._monotonic()

    def learn(self, asked: float, server_time: float) -> None:
        """Note that the server, asked at *asked*, has answered now that it is *server_time* there."""
        answered = self._monotonic()
        self._anchor = self._now() - answered
        shift = server_time - (self._anchor + (asked + answered) / 2)
        self.shift = round(shift * _PARTS) / _PARTS if abs(shift) > _AGREEMENT else 0.0
        self._due = answered + (_ASK_AGAIN if answered - asked <= _ROUGH else _ROUGH)
        self.is_refused = False

    def refuse(self) -> None:
        """Note that the server has answered, but does not tell: it is taken to have this machine's time, for now."""
        answered = self._monotonic()
        self._anchor = self._now() - answered
        self.shift = 0.0
        self._due = answered + _ASK_AGAIN
        self.is_refused = True

    def doubt(self) -> None:
        """Have the server asked again: it may be another one by now."""
        self._due = -math.inf
