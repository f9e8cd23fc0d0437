"""What is remembered of keys for a while, in bounds of number and of size."""

from __future__ import annotations

from typing import Final, Generic, TypeVar

from echo_cache.coordination.clock import Clock
from echo_cache.model import CacheKey

__all__ = ["Remembered", "is_short"]

_K = TypeVar("_K")
_V = TypeVar("_V")

# How many keys are remembered as uncacheable, or by what they vary on.
_MAX_REMEMBERED: Final = 10_000
# Longer ones are not remembered: what clients send must not stay in memory because they sent it.
_MAX_REMEMBERED_KEY_BYTES: Final = 1024


class Remembered(Generic[_K, _V]):
    """
    What is remembered for *seconds* of at most _MAX_REMEMBERED keys; the oldest go first.

    A plain dictionary: each miss asks twice, and a cachetools.TTLCache costs ten times as much (0.8 us) to ask.
    """

    def __init__(self, seconds: float, clock: Clock) -> None:
        self._seconds = seconds
        self._clock = clock
        self._known: dict[_K, tuple[float, _V]] = {}

    def get(self, key: _K) -> _V | None:
        """Return what is known of *key*, None when nothing is."""
        known = self._known.get(key)
        if known is None:
            return None
        if known[0] < self._clock.time():
            del self._known[key]
            return None
        return known[1]

    def put(self, key: _K, value: _V) -> None:
        """Remember *value* for *key* from now on."""
        self._known.pop(key, None)  # to the end: the order of the dict is the order of age
        if len(self._known) >= _MAX_REMEMBERED:
            del self._known[next(iter(self._known))]
        self._known[key] = self._clock.time() + self._seconds, value

    def forget(self, key: _K) -> None:
        """Know nothing of *key*."""
        if self._known:
            self._known.pop(key, None)


def is_short(key: CacheKey) -> bool:
    """Say whether *key* may be remembered."""
    _, _, host, path, query = key
    return len(path) + len(query) + len(host or b"") <= _MAX_REMEMBERED_KEY_BYTES
