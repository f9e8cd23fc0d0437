"""
What this process has read. The one rule: only what PostgreSQL gave, or was rightly signed, comes here, and nothing
counts before Redis says that its generation is still the thread's.

A value is remembered in its parts when it is read, and as a mold when it is wanted again: to build a mold costs more
than to make what is wanted once.
"""

from __future__ import annotations

from itertools import count
from operator import attrgetter
from typing import Final, NamedTuple

from cachetools import LRUCache
from langgraph.checkpoint.base import CheckpointTuple
from langgraph.checkpoint.serde.base import SerializerProtocol

from echo_cache.integrations.langgraph.molds import Mold
from echo_cache.integrations.langgraph.wire import Body, Key, checkpoint_of, loaded

__all__ = ["Known", "Memory"]

# Serdes with other allowlists make other objects of the same value.
_numbers: Final = count()


class Known(NamedTuple):
    """
    A value of the generation *token*, filled at *filled_at*, in epoch seconds.

    source: a mold, or the parts of what cannot be molded or was wanted once. is_settled: whether it will stay so.
    size: what it takes in memory, in bytes, about.
    """

    token: bytes
    filled_at: float
    source: Body | Mold
    size: int
    is_settled: bool = False


class _Entries(LRUCache[tuple[int, Key], Known]):
    """What is remembered with all serdes, the least recently used leaving first; and of which threads it is."""

    def __init__(self, most_bytes: int) -> None:
        super().__init__(most_bytes, getsizeof=attrgetter("size"))
        self.places: dict[str, set[tuple[int, Key]]] = {}

    def __setitem__(self, place: tuple[int, Key], known: Known) -> None:
        super().__setitem__(place, known)
        self.places.setdefault(place[1].thread_id, set()).add(place)

    def __delitem__(self, place: tuple[int, Key]) -> None:
        super().__delitem__(place)
        thread_id = place[1].thread_id
        self.places[thread_id].discard(place)
        if not self.places[thread_id]:
            del self.places[thread_id]


class Memory:
    """
    What is remembered for one *serde*, within bounds that it shares with those for others.

    most_bytes: for all of it.
    """

    def __init__(self, most_bytes: int, serde: SerializerProtocol, shared: _Entries | None = None) -> None:
        self._serde = serde
        self._number = next(_numbers)
        self._known = _Entries(most_bytes) if shared is None else shared

    def __repr__(self) -> str:
        return f"<Memory {self.size:,} of {self._known.maxsize:,} bytes>"

    @property
    def size(self) -> int:
        """What it takes with all serdes, in bytes, about."""
        return int(self._known.currsize)

    def for_serde(self, serde: SerializerProtocol) -> Memory:
        """Return a memory for *serde*, within the same bounds."""
        return Memory(int(self._known.maxsize), serde, self._known)

    def get(self, key: Key) -> Known | None:
        """Return what is remembered for *key*."""
        known: Known | None = self._known.get((self._number, key))
        return known

    def keep(self, key: Key, token: bytes, body: Body, size: int) -> None:
        """Remember *body*, which took *size* bytes, for *key* in the generation *token*."""
        self._put(key, Known(token, body.filled_at, body, size))

    def forget(self, key: Key) -> None:
        """Forget what is remembered for *key*."""
        self._known.pop((self._number, key), None)

    def forget_thread(self, thread_id: str) -> None:
        """Forget what is remembered of a thread, with whatever serde."""
        for place in list(self._known.places.get(thread_id, ())):
            del self._known[place]

    def made(self, key: Key, known: Known) -> CheckpointTuple:
        """Return the checkpoint that is *known* for *key*, in objects of its own. Raises what the serde raises."""
        source = known.source
        if isinstance(source, Mold):
            return source.make()
        if not known.is_settled:
            mold = Mold.of(checkpoint_of(source), self._serde)
            if mold is not None and mold.size <= self._known.maxsize:
                self._put(key, known._replace(source=mold, size=mold.size, is_settled=True))
                return mold.make()
            self._put(key, known._replace(is_settled=True))
        return loaded(checkpoint_of(source), self._serde)

    def _put(self, key: Key, known: Known) -> None:
        if known.size <= self._known.maxsize:
            self._known[self._number, key] = known
