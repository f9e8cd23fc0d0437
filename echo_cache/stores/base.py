"""
The contract of a store: a bounded map from primary key to the entries (variants) of that key.

A store knows nothing of HTTP. It keeps what it is given until `retain_until`, may forget it sooner, and never
returns it later. A store that cannot do its work raises StoreError; the cache then goes on without it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from echo_cache.model import CacheKey, Entry, Vary

__all__ = ["Held", "Match", "Store", "StoreStats"]

Match: TypeAlias = Callable[[Vary], bool]
"""Says whether the request at hand selects a variant with these fields."""


class Held:
    """
    An entry as memory holds it, ready to be used, in a chain of the variants of its key, newest first.

    *memo* is the reader's: whatever it made from the entry and wants to find again on the next hit. It lives no
    longer than the entry is held.
    """

    __slots__ = ("entry", "memo", "next")

    def __init__(self, entry: Entry, next: Held | None = None) -> None:
        self.entry = entry
        self.next = next
        self.memo: Any = None


@dataclass(frozen=True, slots=True)
class StoreStats:
    """
    A snapshot of one store. None means that the store cannot know it cheaply; it is never a guess.

    entries counts variants. bytes is the store's own measure, overhead included.
    """

    hits: int
    misses: int
    sets: int
    evictions: int
    errors: int
    entries: int | None
    bytes: int | None


class Store(Protocol):
    """
    A map from key to entries.

    Any store can stand alone behind the cache; TwoLevelStore is made of two of them.
    """

    remote: bool
    """Whether `get` may find what `get_nowait` does not: there is a level beside this process's memory."""

    def get_nowait(self, key: CacheKey) -> Held | None:
        """
        Return the chain of entries held in memory under *key*, newest first, or None.

        Never blocks, never raises. Entries past `retain_until` may still be in the chain: the caller compares times.
        A store that is not in memory always answers None.
        """
        ...

    def unused(self) -> None:
        """Take back the hit that get_nowait counted: what it gave could not answer. Never raises."""
        ...

    async def get(self, key: CacheKey, match: Match) -> Entry | None:
        """Return the newest entry under *key* whose `vary` satisfies *match*, or None. Raises StoreError."""
        ...

    async def set(self, key: CacheKey, entry: Entry) -> bool:
        """
        Keep *entry* under *key* beside its other variants, in place of the one with the same `vary`.

        An entry with an empty `vary` takes the place of all others: it is newer and answers every request.
        Returns False when the store refuses it (too large). Raises StoreError.
        """
        ...

    def put(self, key: CacheKey, entry: Entry) -> Coroutine[Any, Any, bool] | None:
        """
        Keep *entry* as `set` does, in two steps: what can be seen in memory is there when this returns.

        Returns the rest of the work, to be awaited by whoever has the time, or None when nothing is left to do.
        """
        ...

    def drop_nowait(self, key: CacheKey) -> None:
        """Forget what this process's memory has under *key*; another level keeps what it has. Never raises."""
        ...

    async def delete(self, key: CacheKey) -> bool:
        """Forget all variants under *key*. Returns whether there was one. Raises StoreError."""
        ...

    async def clear(self) -> int | None:
        """Forget everything that is this store's. Returns how many keys, None if unknown. Raises StoreError."""
        ...

    def keys(self) -> AsyncIterator[CacheKey]:
        """Iterate over the keys, in no order; a key set or deleted meanwhile may or may not be seen."""
        ...

    def stats(self) -> StoreStats:
        """Return a snapshot of the counters."""
        ...

    async def aclose(self) -> None:
        """Finish what was promised and free what is held; a second call does nothing."""
        ...
