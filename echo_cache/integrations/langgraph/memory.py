"""
What this process has read. The one rule: only what PostgreSQL gave, or was rightly signed, comes here, and nothing
counts before Redis says that its generation is still the thread's.
"""

from __future__ import annotations

from itertools import chain, count
from typing import Any, Final, NamedTuple

from cachetools import LRUCache
from langgraph.checkpoint.base import CheckpointTuple
from langgraph.checkpoint.serde.base import SerializerProtocol

from echo_cache.integrations.langgraph.molds import Mold, can_mold
from echo_cache.integrations.langgraph.wire import Body, Key, Raw, checkpoint_of, loaded

__all__ = ["Known", "Loader", "Memory"]

# Serdes with other allowlists make other objects of the same value.
_numbers: Final = count()

# What a value takes in memory beside its bytes, and what each of its parts does, about.
_VALUE_BYTES: Final = 2_000
_PART_BYTES: Final = 350


class Known(NamedTuple):
    """A value of the generation *token*: its parts, in some of which there are molds in the place of bytes."""

    token: bytes
    body: Body


class Loader:
    """
    Loads what *serde* wrote, and remembers how messages are made again.

    With *is_molding* False it only loads.
    """

    def __init__(self, serde: SerializerProtocol, *, is_molding: bool) -> None:
        self._serde = serde
        self._is_molding = is_molding
        # By the identity of their bytes, which the parts hold that they are put into.
        self._molds: dict[int, Mold] = {}

    def __call__(self, raw: Raw) -> Any:
        """Return the object that is in *raw*. Raises what the serde raises."""
        value = self._serde.loads_typed((raw.kind, raw.data))
        if self._is_molding and (mold := Mold.of(raw.kind, raw.data, value)) is not None:
            self._molds[id(raw.data)] = mold
        return value

    def molded(self, body: Body) -> Body:
        """Return *body*, whose bytes were loaded, with molds where there are some."""
        if not self._molds:
            return body
        blobs, writes = [
            [[*names, kind, self._molds.get(id(data), data)] for *names, kind, data in parts]
            for parts in (body.blobs, body.writes)
        ]
        return body._replace(blobs=blobs, writes=writes)


class _Entries(LRUCache[tuple[int, Key], Known]):
    """What is remembered with all serdes, the least recently used leaving first; and of which threads it is."""

    def __init__(self, most_bytes: int) -> None:
        super().__init__(most_bytes, getsizeof=_size)
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

    most_bytes: for all of it, about.
    """

    def __init__(self, most_bytes: int, serde: SerializerProtocol, shared: _Entries | None = None) -> None:
        self._serde = serde
        self._number = next(_numbers)
        self._entries = _Entries(most_bytes) if shared is None else shared
        self._is_molding = most_bytes > 0 and can_mold(serde)

    def __repr__(self) -> str:
        return f"<Memory {self.size:,} of {self._entries.maxsize:,} bytes>"

    @property
    def size(self) -> int:
        """What it takes with all serdes, in bytes, about."""
        return int(self._entries.currsize)

    def for_serde(self, serde: SerializerProtocol) -> Memory:
        """Return a memory for *serde*, within the same bounds."""
        return Memory(int(self._entries.maxsize), serde, self._entries)

    def loader(self, *, is_kept: bool = True) -> Loader:
        """Return what loads one value; *is_kept*: whether `keep` will be told of it."""
        return Loader(self._serde, is_molding=is_kept and self._is_molding)

    def get(self, key: Key) -> Known | None:
        """Return what is remembered for *key*."""
        known: Known | None = self._entries.get((self._number, key))
        return known

    def made(self, known: Known) -> CheckpointTuple:
        """Return the checkpoint that is *known*, in objects of its own. Raises what the serde raises."""
        return loaded(checkpoint_of(known.body), self._load)

    def keep(self, key: Key, token: bytes, body: Body) -> None:
        """Remember *body*, which a loader of this memory has molded, for *key* in the generation *token*."""
        known = Known(token, body)
        if _size(known) <= self._entries.maxsize:
            self._entries[self._number, key] = known

    def forget(self, key: Key) -> None:
        """Forget what is remembered for *key*."""
        self._entries.pop((self._number, key), None)

    def forget_thread(self, thread_id: str) -> None:
        """Forget what is remembered of a thread, with whatever serde."""
        for place in list(self._entries.places.get(thread_id, ())):
            del self._entries[place]

    def _load(self, raw: Raw) -> Any:
        data: Any = raw.data
        return data.make() if type(data) is Mold else self._serde.loads_typed((raw.kind, data))


def _size(known: Known) -> int:
    body = known.body
    size = _VALUE_BYTES + len(body.checkpoint) + len(body.metadata)
    for part in chain(body.blobs, body.writes):
        data = part[-1]
        size += _PART_BYTES + (data.size if type(data) is Mold else len(data))
    return size
