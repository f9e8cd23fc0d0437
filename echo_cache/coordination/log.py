"""
The invalidation log: every invalidation is one mark, and marks are ordered by their position in the log.

    LocalLog    of one process, for stores that no other process shares
    SharedLog   of all workers, a Redis stream (stream.py)

What marks say of an entry is in marks.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock
from typing import Final, NamedTuple, Protocol

from echo_cache.coordination.clock import Clock
from echo_cache.coordination.marks import Invalidation, Marks, Verdict
from echo_cache.events import Observer
from echo_cache.model import CacheKey, Entry

__all__ = ["MAX_MARKS", "Appended", "LocalLog", "Log", "Since", "log_id", "position_of", "seconds_of"]

MAX_MARKS: Final = 20_000
"""
How many marks are known in each process, and kept in the shared stream.

5 to 7 MiB, and 10 where all tags are as long as they may be. When there are more, the older half is forgotten, and what
was filled before is confirmed by the app before it is used.
"""

_SEQUENCE_BITS: Final = 64
_TIME_BITS: Final = 48
# As many as 2**64 has, and one that shows that there are more.
_DIGITS: Final = 21


class Since(NamedTuple):
    """What was known when a change began: the log's *position*, and the *key* and *groups* that are changed."""

    position: int
    key: CacheKey
    groups: tuple[str, ...] = ()


class Appended(NamedTuple):
    """
    What became of an invalidation.

    position: where it stands in the log; 0 when that is not known yet. trouble: why other workers do not know of it
    yet, None when it is in the log. is_alone: nothing else that names what was changed was appended since the change
    began; False where that cannot be known.
    """

    position: int
    trouble: Exception | None = None
    is_alone: bool = False


class Log(Protocol):
    """
    Where invalidations are ordered. Positions only grow.

    version: another number whenever a verdict may be another one: one comparison spares an entry that was judged
        before. 0 as long as there are no marks.
    """

    version: int

    @property
    def known(self) -> bool:
        """Whether the log has been read, or cannot be: whether there is nothing to wait for with `ready`."""
        ...

    def unheard_for(self) -> float:
        """Return for how many seconds the log may hold what is not known here; 0 where nobody else writes."""
        ...

    def position(self) -> int:
        """Return the position to record for a fill that begins now."""
        ...

    def verdict(self, key: CacheKey, entry: Entry) -> Verdict | None:
        """Return what the marks newer than the entry's say of it; None when it stands."""
        ...

    def softened_at(self, key: CacheKey, entry: Entry) -> float:
        """Return when the last soft mark made the entry stale, in epoch seconds; 0 when none did."""
        ...

    async def append(self, marks: Sequence[Invalidation], since: Since | None = None) -> Appended:
        """
        Add *marks*, all at one position; they count here when this returns, whatever became of them elsewhere.

        *since*: the change that they tell of, to be told whether it was the only one.

        What could not be told to others is kept and told later. Never raises but for cancellation, and then they count
        here as well.
        """
        ...

    def follow(self) -> None:
        """See to it that what others append is heard of, in the running event loop. Quick, never raises."""
        ...

    async def ready(self) -> None:
        """Wait until the log is known for the first time, as long as that is worth waiting for. Never raises."""
        ...

    def expect(self, heartbeat: float) -> None:
        """Hear the log every *heartbeat* seconds at least, or more often if somebody else expects that."""
        ...

    def observe(self, observer: Observer) -> None:
        """Tell *observer* when the log is not heard any more, and when it is again."""
        ...

    async def aclose(self, deadline: float) -> None:
        """Tell others what they have not been told, for *deadline* seconds at most, and stop following."""
        ...


class LocalLog:
    """
    A log in memory, for one process.

    Positions have the form of a Redis stream's IDs: milliseconds of the wall clock, and a count. At most *max_marks*
    marks are kept.
    """

    def __init__(self, clock: Clock, *, max_marks: int = MAX_MARKS) -> None:
        self.version = 0
        self._clock = clock
        self._marks = Marks(max_marks)
        self._last = 0
        # Held by who changes the above, since several event loops may.
        self._lock = Lock()

    def __repr__(self) -> str:
        return f"<LocalLog {self._marks!r}>"

    @property
    def known(self) -> bool:
        """True: nobody else writes."""
        return True

    def unheard_for(self) -> float:
        """Return 0: nobody else writes."""
        return 0.0

    def position(self) -> int:
        """Return the position to record for a fill that begins now."""
        return self._last

    def verdict(self, key: CacheKey, entry: Entry) -> Verdict | None:
        """Return what the marks newer than the entry's say of it; None when it stands."""
        return self._marks.verdict(entry.mark, key, entry.groups)

    def softened_at(self, key: CacheKey, entry: Entry) -> float:
        """Return when the last soft mark made the entry stale, in epoch seconds; 0 when none did."""
        return seconds_of(self._marks.softened_at(key, entry.groups))

    async def append(self, marks: Sequence[Invalidation], since: Since | None = None) -> Appended:
        """Add *marks*, at a position above every one that was given out before."""
        with self._lock:
            is_alone = since is not None and self._marks.verdict(*since) is None
            self._last = max(self._last + 1, int(self._clock.time() * 1000) << _SEQUENCE_BITS)
            for mark in marks:
                self._marks.add(self._last, mark)
            self.version += 1
            return Appended(self._last, is_alone=is_alone)

    def observe(self, observer: Observer) -> None:
        """Do nothing: it is always heard."""

    def follow(self) -> None:
        """Do nothing: nobody else writes."""

    async def ready(self) -> None:
        """Do nothing: everything is known."""

    def expect(self, heartbeat: float) -> None:
        """Do nothing: there is nothing to hear."""

    async def aclose(self, deadline: float) -> None:
        """Do nothing: the marks stay, as what they speak of stays in memory."""


def position_of(log_id: bytes) -> int:
    """
    Return the position of an ID of a Redis stream, "milliseconds-sequence". Raises ValueError.

    Exact: both parts have 64 bits, so a position has 128. Milliseconds of 48 bits and more are of no time (they begin
    in the year 10889): nothing could come behind them.
    """
    milliseconds, dash, sequence = log_id.partition(b"-")
    if not (dash and milliseconds.isdigit() and sequence.isdigit()):
        raise ValueError(f"not an ID of a stream: {log_id[:64]!r}")
    parts = int(milliseconds[:_DIGITS]), int(sequence[:_DIGITS])
    if parts[0] >> _TIME_BITS or parts[1] >> _SEQUENCE_BITS:
        raise ValueError(f"not an ID of a stream: {log_id[:64]!r}")
    return parts[0] << _SEQUENCE_BITS | parts[1]


def log_id(position: int) -> str:
    """Return *position* as the ID of a Redis stream."""
    return f"{position >> _SEQUENCE_BITS}-{position & (1 << _SEQUENCE_BITS) - 1}"


def seconds_of(position: int) -> float:
    """Return when *position* was given out, in epoch seconds by the clock of whoever gave it."""
    return (position >> _SEQUENCE_BITS) / 1000
