"""
Which entry goes when the memory store is full. The one rule: every operation is O(1), but for `clear`.

A policy owns the container, so that it can keep the order inside it and not beside it: at rest a record is small, and
a second dictionary for the order would cost as much as its key. The store tells it what was read some time after the
fact, in the order of the reads; it never asks while a request waits for a hit.
"""

from __future__ import annotations

import math
from array import array
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, ClassVar, Final, Protocol, TypeAlias

from cachetools import Cache, LFUCache

from echo_cache.errors import ConfigurationError
from echo_cache.model import CacheKey

__all__ = [
    "EVICTION_POLICIES",
    "Eviction",
    "LeastFrequentlyUsed",
    "LeastRecentlyUsed",
    "MostFrequentlyUsed",
    "MostRecentlyUsed",
    "Record",
    "SmallMainGhost",
    "eviction_policy",
]

Record: TypeAlias = tuple[Any, ...]
"""What the store keeps under a key: the key itself, then what only the store understands."""


class Eviction(Protocol):
    """
    A container of records that knows which one to give up.

    slot_bytes: what the container and its order cost per record in memory, the record and its key excluded.

    The store calls everything but `peek` under its lock. `peek` runs beside the others in any thread, so it is one
    dictionary look-up and changes nothing.
    """

    slot_bytes: ClassVar[int]

    def peek(self, key: CacheKey) -> Record | None:
        """Return the record under *key*, or None. This is not a use."""
        ...

    def put(self, key: CacheKey, record: Record) -> None:
        """Keep *record* under *key*, in place of what was there. This is a use."""
        ...

    def touch(self, key: CacheKey) -> None:
        """Note a use of *key*, which may be gone by now."""
        ...

    def remove(self, key: CacheKey) -> None:
        """Forget *key*, which is there."""
        ...

    def pop(self) -> Record:
        """Remove and return the record to give up. Raises KeyError when there is none."""
        ...

    def clear(self) -> None:
        """Forget everything."""
        ...

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[CacheKey]: ...


class LeastRecentlyUsed:
    """
    Gives up the record that was unused for the longest time.

    The container is the order. Bytes per record at 90,000, 100,000 and 170,000 records (CPython 3.11, x86-64):
    OrderedDict 133, 123, 85; cachetools.LRUCache, an OrderedDict beside a dict, 191, 175, 116, and with the sizes it
    needs for a bound in bytes 249, 228, 147; a dict, which has no cheap first element, 58, 53, 31.
    """

    slot_bytes: ClassVar[int] = 112  # the mean between two growths

    def __init__(self) -> None:
        self._records: OrderedDict[CacheKey, Record] = OrderedDict()

    def peek(self, key: CacheKey) -> Record | None:
        return self._records.get(key)

    def put(self, key: CacheKey, record: Record) -> None:
        self._records[key] = record
        self._records.move_to_end(key)

    def touch(self, key: CacheKey) -> None:
        if key in self._records:
            self._records.move_to_end(key)

    def remove(self, key: CacheKey) -> None:
        del self._records[key]

    def pop(self) -> Record:
        return self._records.popitem(last=False)[1]

    def clear(self) -> None:
        self._records.clear()

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[CacheKey]:
        return iter(self._records)


class MostRecentlyUsed(LeastRecentlyUsed):
    """
    Gives up the record that was used last.

    For what is asked for in a cycle that does not fit: all but the last of what came first stays, where LRU keeps
    nothing that is asked for again in time. Bad for everything else. The container is LRU's, and costs the same.
    """

    def pop(self) -> Record:
        return self._records.popitem()[1]


class LeastFrequentlyUsed:
    """
    Gives up the record with the fewest uses; among equals, the one that has had so few for the longest time.

    Uses are never forgotten, so what was popular once stays: good for a stable set of favourites (44 % against LRU's
    34 % on Zipf 0.9 at 1 % capacity), bad for changing ones (17 % against 77 % on a recorded trace). No default.
    """

    slot_bytes: ClassVar[int] = 250  # 147 to 350 measured, with one count for all and with Zipf-like counts

    def __init__(self) -> None:
        self._records: LFUCache[CacheKey, Record] = LFUCache(maxsize=math.inf)

    def peek(self, key: CacheKey) -> Record | None:
        try:
            # The base class: LFUCache's own look-up counts as a use and reorders.
            return Cache.__getitem__(self._records, key)
        except KeyError:
            return None

    def put(self, key: CacheKey, record: Record) -> None:
        self._records[key] = record

    def touch(self, key: CacheKey) -> None:
        self._records.get(key)

    def remove(self, key: CacheKey) -> None:
        del self._records[key]

    def pop(self) -> Record:
        return self._records.popitem()[1]

    def clear(self) -> None:
        self._records.clear()

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[CacheKey]:
        return iter(self._records)


class _Bucket:
    """The keys that have been used *uses* times, in the order in which they came to it, between its neighbours."""

    __slots__ = ("above", "below", "keys", "uses")

    def __init__(self, uses: int) -> None:
        self.uses = uses
        self.keys: OrderedDict[CacheKey, None] = OrderedDict()
        self.below = self.above = self


class MostFrequentlyUsed:
    """
    Gives up the record with the most uses; among equals, the one that has had so many for the longest time.

    For what is done with once it has been used a number of times. cachetools had it up to version 6, with a
    search through all counts for each victim; its choice among equals was the same for records used once.

    A list of buckets by count, none of them empty, as cachetools keeps for LFU. Bytes per record at 90,000, 100,000 and
    170,000 records: 230, 210, 137 with one count for all; 315, 290, 189 with Zipf-like counts; 428, 389, 242 after as
    many evictions, when the dictionaries have grown to the next size.
    """

    slot_bytes: ClassVar[int] = 270  # the mean of these

    def __init__(self) -> None:
        self._records: dict[CacheKey, Record] = {}
        self._bucket_of: dict[CacheKey, _Bucket] = {}
        # Both ends of the list: above it is the lowest count, below it the highest.
        self._ends = _Bucket(0)

    def peek(self, key: CacheKey) -> Record | None:
        return self._records.get(key)

    def put(self, key: CacheKey, record: Record) -> None:
        self._records[key] = record
        if key in self._bucket_of:
            self.touch(key)
        else:
            self._enter(key, self._ends)

    def touch(self, key: CacheKey) -> None:
        bucket = self._bucket_of.get(key)
        if bucket is None:
            return
        if len(bucket.keys) == 1 and bucket.above.uses != bucket.uses + 1:
            bucket.uses += 1  # the favourites mostly are alone in theirs
        else:
            self._enter(key, bucket)
            self._leave(key, bucket)

    def remove(self, key: CacheKey) -> None:
        del self._records[key]
        self._leave(key, self._bucket_of.pop(key))

    def pop(self) -> Record:
        top = self._ends.below
        if top is self._ends:
            raise KeyError("there is no record to give up")
        key = next(iter(top.keys))
        record = self._records[key]
        self.remove(key)
        return record

    def clear(self) -> None:
        self._records.clear()
        self._bucket_of.clear()
        bucket = self._ends.above
        while bucket is not self._ends:
            bucket.keys.clear()  # the buckets refer to each other; the keys need not wait for the garbage collector
            bucket = bucket.above
        self._ends.below = self._ends.above = self._ends

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[CacheKey]:
        return iter(self._records)

    def _enter(self, key: CacheKey, below: _Bucket) -> None:
        """Put *key* into the bucket for one use more than *below* has, which is made if there is none."""
        above = below.above
        if above.uses == below.uses + 1:
            bucket = above
        else:
            bucket = _Bucket(below.uses + 1)
            bucket.below, bucket.above = below, above
            below.above = above.below = bucket
        bucket.keys[key] = None
        self._bucket_of[key] = bucket

    def _leave(self, key: CacheKey, bucket: _Bucket) -> None:
        del bucket.keys[key]
        if not bucket.keys:
            bucket.below.above, bucket.above.below = bucket.above, bucket.below


# The small queue's share of the records: a tenth, as in the paper. A fifth gains 3 to 4 points of hits where keys are
# asked for in bursts; it loses up to 1 elsewhere, and more on a loop. One use is enough to stay: the paper's two cost 4
# to 5 points on bursts and gain nothing but 0.5 on a loop.
_SMALL_SHARE: Final = 10

# Uses that are counted.
_MOST_USES: Final = 3

# Second chances in one `pop`. Without a bound, one write could move all records four times. 16, 128 and no bound differ
# by 0.1 points of hits; only a loop gains by fewer.
_CHANCES: Final = 128

# Places of the smallest ghost, 8 bytes each.
_FEWEST_GHOSTS: Final = 256
_HASH_BITS: Final = 2**64 - 1


class SmallMainGhost:
    """
    Gives up what was not used again soon after it came, then what was not used for a round: S3-FIFO.

    A record comes into a small queue, a tenth of all. At its end it goes, unless it has been used meanwhile: then it
    comes into the main queue. At the end of that one each counted use, three at most, buys another round. What
    left by the small queue is remembered a while, without its content, as a ghost; when it comes again it goes
    straight to the main queue. A use only counts, it moves nothing.

    `pop` moves records that have earned a second chance. Every move uses up at least one counted use, so it is O(1)
    amortised; and after _CHANCES moves the next in line goes whatever it has earned, so that no single call is long.

    A ghost is the hash of its key, in a table of one place for each record and at most two, so that what clients
    sent is not kept alive. The hash chooses the place, and what is there goes: a ghost lasts as many evictions as
    there are places on average, not exactly. Two keys with one hash cost a place in the wrong queue. A queue of hashes
    would cost over 100 bytes a record and hits 0 to 2 points less often on Zipf-like traces, never on a loop.

    Bytes per record at 90,000, 100,000 and 170,000 records: 172, 158, 106 when filled; 283, 258, 215 after as many
    evictions, ghosts included, when the dictionaries have grown to the next size (LRU: 195, 179, 118).

    "FIFO queues are all you need for cache eviction", SOSP 2023, section 4.
    """

    slot_bytes: ClassVar[int] = 200  # the mean of these

    def __init__(self) -> None:
        self._records: dict[CacheKey, Record] = {}
        # Oldest first, each with its counted uses. A key is in one of them.
        self._small: OrderedDict[CacheKey, int] = OrderedDict()
        self._main: OrderedDict[CacheKey, int] = OrderedDict()
        self._ghosts = _no_ghosts(_FEWEST_GHOSTS)

    def peek(self, key: CacheKey) -> Record | None:
        return self._records.get(key)

    def put(self, key: CacheKey, record: Record) -> None:
        if key in self._records:
            self.touch(key)
        elif self._is_ghost(key):
            self._main[key] = 0
        else:
            self._small[key] = 0
        self._records[key] = record

    def touch(self, key: CacheKey) -> None:
        queue = self._main if key in self._main else self._small
        uses = queue.get(key, _MOST_USES)
        if uses < _MOST_USES:
            queue[key] = uses + 1

    def remove(self, key: CacheKey) -> None:
        del self._records[key]
        if key in self._main:
            del self._main[key]
        else:
            del self._small[key]

    def pop(self) -> Record:
        small, main = self._small, self._main
        chances = _CHANCES
        while True:
            if len(small) > len(self._records) // _SMALL_SHARE or not main:
                key, uses = small.popitem(last=False)
                if not uses or not chances:
                    self._remember(key)
                    return self._records.pop(key)
                main[key] = 0
            else:
                key, uses = main.popitem(last=False)
                if not uses or not chances:
                    return self._records.pop(key)
                main[key] = uses - 1
            chances -= 1

    def clear(self) -> None:
        self._records.clear()
        self._small.clear()
        self._main.clear()
        self._ghosts = _no_ghosts(_FEWEST_GHOSTS)

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[CacheKey]:
        return iter(self._records)

    def _remember(self, key: CacheKey) -> None:
        records = len(self._records)
        if records > len(self._ghosts):
            self._ghosts = _no_ghosts(1 << (records - 1).bit_length())  # anew: as many evictions fill it again
        number = hash(key) & _HASH_BITS
        self._ghosts[number % len(self._ghosts)] = number

    def _is_ghost(self, key: CacheKey) -> bool:
        number = hash(key) & _HASH_BITS
        return self._ghosts[number % len(self._ghosts)] == number


def _no_ghosts(places: int) -> array[int]:
    return array("Q", bytes(8 * places))


EVICTION_POLICIES: dict[str, type[Eviction]] = {
    "lfu": LeastFrequentlyUsed,
    "lru": LeastRecentlyUsed,
    "mfu": MostFrequentlyUsed,
    "mru": MostRecentlyUsed,
    "s3fifo": SmallMainGhost,
}


def eviction_policy(name: str) -> Eviction:
    """Return a new, empty policy called *name*, in any case. Raises ConfigurationError for one not in the table."""
    try:
        return EVICTION_POLICIES[name.lower()]()
    except (AttributeError, KeyError, TypeError):
        allowed = ", ".join(repr(known) for known in EVICTION_POLICIES)
        raise ConfigurationError(f"policy must be one of {allowed}, not {name!r}") from None
