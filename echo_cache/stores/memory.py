"""
Entries in this process. The one rule: a hit takes no lock, awaits nothing and copies nothing.

An entry lives in two shapes. At rest it is a plain tuple of bytes, which the garbage collector does not track and
which costs a third of the objects that it stands for. What was hit lately is also *prepared*: a chain of Held, ready
to be used, in a small front of two generations. A hit in the front is one dictionary look-up; the first hit on an
entry at rest decodes it (a few microseconds) and prepares it.

    key -> front (young, then old) -> Held -> Held ...                       prepared, newest variant first
    key -> eviction policy's container -> (key, head, body, head, body ...)  at rest, newest variant first

All bytes are counted with their overhead, both shapes included, so that `max_bytes` is what the process pays. Bodies
are shared between the shapes. Measured figures: benchmarks/memory.py.
"""

from __future__ import annotations

import asyncio
import time
from array import array
from collections import deque
from collections.abc import AsyncIterator, Sequence
from heapq import nlargest
from itertools import count
from operator import itemgetter
from struct import Struct
from threading import RLock
from typing import Final, Protocol, TypeVar

from echo_cache.codec import pack, unpack
from echo_cache.errors import ConfigurationError, NotStorable
from echo_cache.model import CacheKey, Entry
from echo_cache.stores.base import Held, Match, StoreStats
from echo_cache.stores.eviction import Record, eviction_policy

__all__ = ["DEFAULT_MAX_BYTES", "MemoryStore"]

DEFAULT_MAX_BYTES: Final = 128 * 1024 * 1024

# The largest share of the store that one key may take, variants included: storing it then gives up a quarter of what
# is held, not all. The policy's max_body_bytes (8 MiB) is far below it at the default size.
_LARGEST_SHARE: Final = 4

# What is set aside for prepared entries: a sixteenth of the store, half for each generation, and no more than the
# prepared keys can use. Set aside and not shared, so that a hit never has to evict.
_FRONT_SHARE: Final = 16
_FRONT_BYTES_PER_KEY: Final = 8 * 1024

# Reads noted between two writes; older ones are lost. LRU, which needs them most, is exact while one request in 256
# stores something. Beyond, at hit rates of 98.6 to 99.8 % (Zipf, also drifting), 256 loses at most 0.007 points to
# exact LRU, 64 loses 0.08. More would cost: telling the policy of a read takes 0.8 us among 20,000 keys (LRU; LFU 1.8),
# and a write waits for it.
_NOTED_READS: Final = 256

# Places looked at for dead entries by each write: all of them are seen once in len / 2 writes.
_SWEEP_STEP: Final = 2

# A cursor is a place in a list.
_MOST_DIGITS: Final = 15

# Keys between two chances for other tasks: 0.7 ms.
_KEYS_PAGE: Final = 1000
# The same where their sizes are asked for.
_SIZES_PAGE: Final = 200

# A head at rest: retain_until, a hash of `vary`, the key's slot in the sweep's list; then codec.pack's bytes.
# Two `vary` with one hash (2**-64, and the hash is keyed) would replace each other: one miss, never a wrong answer.
_PREFIX: Final = Struct("<dqI")
_PREFIX_BYTES: Final = _PREFIX.size
_RETAIN_UNTIL: Final = Struct("<d")

# Hosts, schemes and forms are few and keys share them. The first ones win, and long ones do not enter: so whether
# one is shared never changes while it is used, and what clients send cannot make the table large.
_SHARED_NAMES: Final = 256
_SHARED_NAME_LENGTH: Final = 255

# sys.getsizeof of a 64-bit CPython, rounded as its allocators do; tests compare the sum with the resident set.
_BYTES_BYTES: Final = 33
_STR_BYTES: Final = 49
# The key's tuple of five, the record's tuple but for its variants, and a place in a list that has room to grow.
_FIXED_BYTES: Final = 80 + 48 + 9
_VARIANT_BYTES: Final = 2 * 8
# A prepared variant: Held, Entry, StoredResponse, four floats, the place in a dictionary; and what the reader makes
# of it. Then for each header a tuple, its place in another, and two values that are mostly short. With six headers
# this makes 1.8 kB; measured are 1.2 kB, and 0.5 kB of the reader's.
_PREPARED_BYTES: Final = 768
_PREPARED_HEADER_BYTES: Final = 144


class _Clock(Protocol):
    def time(self) -> float: ...


class _Prepared(Held):
    """*key* is the store's own, so that noting a read keeps no request's bytes alive. *size* is the whole chain's."""

    __slots__ = ("key", "size")

    def __init__(self, key: CacheKey, entry: Entry, next: _Prepared | None) -> None:
        super().__init__(entry, next)
        self.key = key
        self.size = 0


class MemoryStore:
    """
    A bounded map in this process's memory, for one or more event loops and threads.

    max_bytes: the bound on everything that is held, overhead included.
    max_entries: a bound on the number of entries (variants); None leaves it to max_bytes.
    policy: which entry goes when there is no room: "s3fifo", "lru", "lfu", "mru" or "mfu", in any case. A key goes
        with all its variants.
    max_variants: how many entries are held for one key; beyond, the oldest go.
    max_prepared: how many keys each of the two generations of prepared entries may have.
    clock: where the time comes from; the machine's wall clock if None.

    The bounds hold whenever no call is under way. Everything but the counters of hits and misses is exact under
    threads. Reads take no lock, writes take one for a few microseconds.

    Raises ConfigurationError for a value that cannot work.
    """

    remote: bool = False

    def __init__(
        self,
        max_bytes: int = DEFAULT_MAX_BYTES,
        *,
        max_entries: int | None = None,
        policy: str = "s3fifo",
        max_variants: int = 32,
        max_prepared: int = 1024,
        clock: _Clock | None = None,
    ) -> None:
        _require_positive("max_bytes", max_bytes)
        _require_positive("max_variants", max_variants)
        _require_positive("max_prepared", max_prepared)
        if max_entries is not None:
            _require_positive("max_entries", max_entries)
        self.max_bytes: Final = max_bytes
        self.max_entries: Final = max_entries
        self._now = time.time if clock is None else clock.time
        self._max_prepared = max_prepared
        self._generation_room = min(max_bytes // _FRONT_SHARE, 2 * max_prepared * _FRONT_BYTES_PER_KEY) // 2
        self._room = max_bytes - 2 * self._generation_room
        self._largest = max_bytes // _LARGEST_SHARE
        self._variants = max_variants if max_entries is None else min(max_variants, max_entries)

        # Written under _lock, except for the last four. What hits read may be read by any thread at any time: single
        # dictionaries, changed by single operations. Writers change the container first and the front after it, and
        # nothing enters the front without a look at the container under the lock: so the front never lags behind.
        # Re-entrant, since a finaliser may run anywhere, and may be somebody's who deletes from this store.
        self._lock = RLock()
        self._at_rest = eviction_policy(policy)
        self.policy: Final = policy.lower()
        self._bytes_at_rest = 0
        self._entries = 0
        self._young: dict[CacheKey, _Prepared] = {}
        self._young_bytes = 0
        self._old: dict[CacheKey, _Prepared] = {}
        self._old_bytes = 0
        self._sweep_slots: list[CacheKey | None] = []
        self._sweep_free = array("I")
        self._sweep_next = 0
        self._shared_texts: dict[str, str] = {}
        self._shared_hosts: dict[bytes, bytes] = {}
        self._sets = 0
        self._evictions = 0
        self._reads: deque[CacheKey] = deque(maxlen=_NOTED_READS)
        self._hits = 0
        self._misses = 0
        self._errors = 0

    # --- reading ------------------------------------------------------------------------------------------------------

    def get_nowait(self, key: CacheKey) -> Held | None:
        """
        Return the entries under *key*, newest first, or None. Takes no lock, never blocks, never raises.

        Entries past `retain_until` may be among them. A hit in the sense of the counters is a key that is held; whether
        one of its variants answers the request is for the caller to see.
        """
        held = self._young.get(key)
        if held is None:
            held = self._prepared(key)
            if held is None:
                self._misses += 1
                return None
        self._reads.append(held.key)
        self._hits += 1
        return held

    def unused(self) -> None:
        """Count a miss in place of the hit that get_nowait counted: what it gave could not answer."""
        self._hits -= 1
        self._misses += 1

    def peek(self, key: CacheKey) -> Sequence[Entry]:
        """
        Return all entries under *key* that are not past `retain_until`, newest first. Never raises.

        Nothing is counted, noted as a use or prepared: for whoever looks through the store.
        """
        try:
            record = self._at_rest.peek(key)
            if record is None:
                return ()
            entries = []
            now = self._now()
            for position in range(1, len(record), 2):
                head = record[position]
                if _RETAIN_UNTIL.unpack_from(head)[0] >= now:
                    entries.append(unpack(head[_PREFIX_BYTES:], record[position + 1]))
            return entries
        except Exception:  # as in _prepared: damaged, or no memory to unpack it
            self._errors += 1
            return ()

    async def get(self, key: CacheKey, match: Match) -> Entry | None:
        """Return the newest entry under *key* whose `vary` satisfies *match*, or None. Raises nothing of its own."""
        first = self._young.get(key) or self._prepared(key)
        held: Held | None = first
        if first is not None:
            now = self._now()
            dead = True
            while held is not None:
                entry = held.entry
                if now <= entry.retain_until:
                    dead = False
                    if match(entry.vary):
                        self._reads.append(first.key)
                        self._hits += 1
                        return entry
                held = held.next
            if dead:
                with self._lock:
                    record = self._at_rest.peek(key)
                    if record is not None and _is_dead(record, now):
                        self._remove(record)
        self._misses += 1
        return None

    def _prepared(self, key: CacheKey) -> _Prepared | None:
        """Return the chain for *key*, which is not in the young generation, and see that it will be. Never raises."""
        try:
            held = self._old.get(key)
            if held is not None:
                return self._promote(held)
            record = self._at_rest.peek(key)
            if record is None:
                return None
        except MemoryError:
            self._errors += 1
            return None
        try:
            held = self._chain(record)
            # Not worth waiting for: without the lock, the next hit prepares it again.
            if self._lock.acquire(blocking=False):
                try:
                    if self._at_rest.peek(key) is record:
                        if held is None:
                            self._remove(record)
                        else:
                            self._bring_forward(held)
                finally:
                    self._lock.release()
        except MemoryError:
            self._errors += 1
            return None
        except Exception:  # whatever unpack makes of bytes that are not what pack gave: a miss, and not a second time
            self._errors += 1
            with self._lock:
                if self._at_rest.peek(key) is record:
                    self._remove(record)
            return None
        return held

    def _chain(self, record: Record) -> _Prepared | None:
        """Return *record* prepared, without what is past `retain_until`. Raises CodecError."""
        key: CacheKey = record[0]
        now = self._now()
        held: _Prepared | None = None
        size = 0
        for position in range(len(record) - 2, 0, -2):
            head = record[position]
            if _RETAIN_UNTIL.unpack_from(head)[0] >= now:
                entry = unpack(head[_PREFIX_BYTES:], record[position + 1])
                held = _Prepared(key, entry, held)
                size += _PREPARED_BYTES + _PREPARED_HEADER_BYTES * len(entry.response.headers) + len(head)
        if held is not None:
            held.size = size
        return held

    def _promote(self, held: _Prepared) -> _Prepared:
        """Move *held*, found in the old generation, to the young one, unless it was dropped meanwhile."""
        if self._lock.acquire(blocking=False):
            try:
                found = self._old.pop(held.key, None)
                if found is not None:
                    self._old_bytes -= found.size
                    self._bring_forward(found)
            finally:
                self._lock.release()
        return held

    def _bring_forward(self, held: _Prepared) -> None:
        """Put *held*, which is current, into the young generation. Under the lock."""
        if held.size > self._generation_room or held.key in self._young:
            return
        if len(self._young) >= self._max_prepared or self._young_bytes + held.size > self._generation_room:
            self._old, self._old_bytes = self._young, self._young_bytes
            self._young, self._young_bytes = {}, 0
        self._young[held.key] = held
        self._young_bytes += held.size

    # --- writing ------------------------------------------------------------------------------------------------------

    async def set(self, key: CacheKey, entry: Entry) -> bool:
        """Keep *entry* under *key*; see set_nowait."""
        return self.set_nowait(key, entry)

    def put(self, key: CacheKey, entry: Entry) -> None:
        """Keep *entry* under *key*; nothing is left to do when this returns. See set_nowait."""
        self.set_nowait(key, entry)

    async def delete(self, key: CacheKey) -> bool:
        """Forget all variants under *key*. Returns whether there was one."""
        return self.delete_nowait(key)

    def set_nowait(self, key: CacheKey, entry: Entry) -> bool:
        """
        Keep *entry* under *key* beside its other variants, in place of the one with the same `vary`.

        Returns False, and keeps nothing, when it alone would take more than a quarter of the store, is past its
        `retain_until`, or memory is short. What it would have replaced goes all the same, since it is out of date.

        Raises NotStorable for an entry that cannot be encoded.
        """
        return bool(self._keep(key, entry, evict=True))

    def add_nowait(self, key: CacheKey, entry: Entry) -> bool | None:
        """As set_nowait, but nothing is evicted for it: None, and nothing is kept, when there is no room."""
        return self._keep(key, entry, evict=False)

    def _keep(self, key: CacheKey, entry: Entry, *, evict: bool) -> bool | None:
        try:
            return self._set(key, entry, pack(entry), evict=evict)
        except MemoryError:
            self._errors += 1
            return False
        except Exception as error:
            self._errors += 1
            raise NotStorable(f"the entry cannot be kept in memory: {error}") from error

    def _set(self, key: CacheKey, entry: Entry, packed: bytes, *, evict: bool) -> bool | None:
        now = self._now()
        body = entry.response.body
        tag = hash(entry.vary)
        with self._lock:
            self._tell_reads()
            self._sweep(now)
            at_rest = self._at_rest
            old = at_rest.peek(key)
            own_key = self._own_key(key) if old is None else old[0]
            old_bytes = 0 if old is None else self._size(old)
            old_entries = 0 if old is None else len(old) // 2

            size = self._key_size(own_key) + _variant_size(_PREFIX_BYTES + len(packed), len(body))
            if now > entry.retain_until or size > self._largest:
                if old is not None:
                    self._replace(old, _others(old, tag, now) if entry.vary else ())
                return False
            others: Record = ()
            if old is not None and entry.vary:
                others = _others(old, tag, now)
                size += _variants_size(others)
                while others and (len(others) // 2 >= self._variants or size > self._largest):
                    if not evict:
                        return False
                    size -= _variants_size(others[-2:])
                    others = others[:-2]
                    self._evictions += 1
            entries = 1 + len(others) // 2
            while self._bytes_at_rest - old_bytes + size > self._room or (
                self.max_entries is not None and self._entries - old_entries + entries > self.max_entries
            ):
                if not evict:
                    return None
                victim = at_rest.pop()
                if victim is old:
                    self._bytes_at_rest -= old_bytes
                    self._entries -= old_entries
                    old_bytes = old_entries = 0
                else:
                    self._evictions += len(victim) // 2
                    self._settle(victim)

            slot = self._take_slot(own_key) if old is None else _PREFIX.unpack_from(old[1])[2]
            at_rest.put(own_key, (own_key, _PREFIX.pack(entry.retain_until, tag, slot) + packed, body, *others))
            self._bytes_at_rest += size - old_bytes
            self._entries += entries - old_entries
            self._drop_prepared(own_key)
            self._sets += 1
            return True

    def drop_nowait(self, key: CacheKey) -> None:
        """Forget all variants under *key*."""
        self.delete_nowait(key)

    def delete_nowait(self, key: CacheKey) -> bool:
        """Forget all variants under *key*. Returns whether there was one that was not past its `retain_until`."""
        with self._lock:
            record = self._at_rest.peek(key)
            if record is None:
                return False
            self._remove(record)
            return not _is_dead(record, self._now())

    async def clear(self) -> int:
        """Forget everything. Returns how many keys there were."""
        with self._lock:
            keys = len(self._at_rest)
            self._at_rest.clear()
            self._young, self._old = {}, {}
            self._bytes_at_rest = self._entries = self._young_bytes = self._old_bytes = 0
            self._sweep_slots = []
            self._sweep_free = array("I")
            self._sweep_next = 0
            self._shared_texts = {}
            self._shared_hosts = {}
            self._reads.clear()
            return keys

    def _own_key(self, key: CacheKey) -> CacheKey:
        """Return *key* as the store keeps it, with the parts that keys have in common shared."""
        form, scheme, host, path, query = key
        texts = self._shared_texts
        if host is not None:
            host = _shared(self._shared_hosts, host)
        return (_shared(texts, form), _shared(texts, scheme), host, path, query)

    def _replace(self, record: Record, variants: Record) -> None:
        """Hold *variants*, some of those of *record*, in place of *record*."""
        if not variants:
            self._remove(record)
        elif len(variants) < len(record) - 1:
            key: CacheKey = record[0]
            self._at_rest.put(key, (key, *variants))
            self._bytes_at_rest += _variants_size(variants) - _variants_size(record[1:])
            self._entries += len(variants) // 2 - len(record) // 2
            self._drop_prepared(key)

    def _remove(self, record: Record) -> None:
        """Forget *record*, which is held."""
        self._at_rest.remove(record[0])
        self._settle(record)

    def _settle(self, record: Record) -> None:
        """Give back all that was taken for *record*, which has just left the container."""
        key: CacheKey = record[0]
        self._bytes_at_rest -= self._size(record)
        self._entries -= len(record) // 2
        slot = _PREFIX.unpack_from(record[1])[2]
        self._sweep_slots[slot] = None
        self._sweep_free.append(slot)
        self._drop_prepared(key)

    def _drop_prepared(self, key: CacheKey) -> None:
        held = self._young.pop(key, None)
        if held is not None:
            self._young_bytes -= held.size
        held = self._old.pop(key, None)
        if held is not None:
            self._old_bytes -= held.size

    def _tell_reads(self) -> None:
        """Tell the policy what was read since it was last told, in that order."""
        reads, touch = self._reads, self._at_rest.touch
        while reads:
            touch(reads.popleft())

    def _size(self, record: Record) -> int:
        """Return what *record* costs at rest with its key and its place in the container, in bytes."""
        return self._key_size(record[0]) + _variants_size(record[1:])

    def _key_size(self, key: CacheKey) -> int:
        """Return what a record costs beside its variants, in bytes. The same for as long as the key is held."""
        form, scheme, host, path, query = key
        size = self._at_rest.slot_bytes + _FIXED_BYTES + _bytes_size(len(path))
        if query:
            size += _bytes_size(len(query))
        if host is not None and host not in self._shared_hosts:
            size += _bytes_size(len(host))
        if form not in self._shared_texts:
            size += _STR_BYTES + 4 * len(form)
        if scheme not in self._shared_texts:
            size += _STR_BYTES + 4 * len(scheme)
        return size

    # --- the sweep ----------------------------------------------------------------------------------------------------

    # What is past retain_until and never asked for again would stay until the policy gives it up. Each write looks at
    # the next few places of a list of all keys. The list costs 8 bytes per key; heads carry their key's place, so
    # that removal is O(1) and leaves nothing behind. (A queue of keys would keep removed keys alive, a set of
    # keys for each minute costs about 40 bytes a key, and the policy's own order hides what is dead behind what is
    # merely unused.)

    def _take_slot(self, key: CacheKey) -> int:
        if self._sweep_free:
            slot = self._sweep_free.pop()
            self._sweep_slots[slot] = key
        else:
            slot = len(self._sweep_slots)
            self._sweep_slots.append(key)
        return slot

    def _sweep(self, now: float) -> None:
        slots = self._sweep_slots
        for _ in range(min(_SWEEP_STEP, len(slots))):
            slot = self._sweep_next % len(slots)
            self._sweep_next = slot + 1
            key = slots[slot]
            record = None if key is None else self._at_rest.peek(key)
            if record is not None and _is_dead(record, now):
                self._remove(record)

    # --- managing -----------------------------------------------------------------------------------------------------

    async def keys(self) -> AsyncIterator[CacheKey]:
        """
        Iterate over the keys, in no order, a page at a time: other tasks run between two pages.

        A key that is held all the while is seen once.
        """
        # The sweep's list: keys keep their places in it, so that nothing the size of the store is copied.
        slots = self._sweep_slots
        for start in count(0, _KEYS_PAGE):
            page = slots[start : start + _KEYS_PAGE]
            for key in page:
                record = None if key is None else self._at_rest.peek(key)
                if record is not None and not _is_dead(record, self._now()):
                    yield record[0]
            if len(page) < _KEYS_PAGE:
                return
            await asyncio.sleep(0)

    def page(self, cursor: str, count: int) -> tuple[str, list[CacheKey]]:
        """
        Return up to *count* keys from *cursor* on ("" is the beginning), and the cursor of the next page ("": none).

        A key that is held all the while is seen once. Raises ValueError for what is no cursor.
        """
        if cursor and not (cursor.isascii() and cursor.isdecimal() and len(cursor) <= _MOST_DIGITS):
            raise ValueError(f"{cursor!r} is no cursor")
        start = int(cursor or 0)
        now = self._now()
        found: list[CacheKey] = []
        slots = self._sweep_slots
        # A page looks at so many places at most, whatever has gone from them: it is one step of the event loop.
        end = min(len(slots), start + max(count, _KEYS_PAGE))
        at = start
        while at < end and len(found) < count:
            key = slots[at]
            record = None if key is None else self._at_rest.peek(key)
            if record is not None and not _is_dead(record, now):
                found.append(record[0])
            at += 1
        return ("" if at >= len(slots) else str(at)), found

    async def largest(self, count: int) -> list[tuple[CacheKey, int]]:
        """Return the keys that take most room, with the bytes that they take, a page at a time."""
        most: list[tuple[CacheKey, int]] = []
        slots = self._sweep_slots
        for start in range(0, len(slots), _SIZES_PAGE):
            records = [self._at_rest.peek(key) for key in slots[start : start + _SIZES_PAGE] if key is not None]
            sized = [(record[0], self._size(record)) for record in records if record is not None]
            most = nlargest(count, most + sized, key=itemgetter(1))
            await asyncio.sleep(0)
        return most

    def stats(self) -> StoreStats:
        """
        Return a snapshot of the counters.

        hits and misses count the answers of get_nowait and get. entries counts all that takes room, what is past
        `retain_until` included; bytes is what `max_bytes` bounds. errors counts entries lost to damage or to a lack
        of memory.
        """
        with self._lock:
            return StoreStats(
                hits=self._hits,
                misses=self._misses,
                sets=self._sets,
                evictions=self._evictions,
                errors=self._errors,
                entries=self._entries,
                bytes=self._bytes_at_rest + self._young_bytes + self._old_bytes,
            )

    async def aclose(self) -> None:
        """Do nothing: what is in memory needs no finishing, and another cache may share the store."""

    def __repr__(self) -> str:
        stats = self.stats()
        used = (stats.bytes or 0) / 2**20
        return f"<MemoryStore {self.policy} {stats.entries:,} entries {used:.1f}/{self.max_bytes / 2**20:.1f} MiB>"


_Name = TypeVar("_Name", str, bytes)


def _shared(table: dict[_Name, _Name], name: _Name) -> _Name:
    known = table.get(name)
    if known is not None:
        return known
    if len(table) < _SHARED_NAMES and len(name) <= _SHARED_NAME_LENGTH:
        table[name] = name
    return name


def _others(record: Record, tag: int, now: float) -> Record:
    """Return the heads and bodies of *record* whose `vary` has another hash and that are not past `retain_until`."""
    others: list[bytes] = []
    for position in range(1, len(record), 2):
        retain_until, other, _ = _PREFIX.unpack_from(record[position])
        if other != tag and now <= retain_until:
            others += record[position : position + 2]
    return tuple(others)


def _is_dead(record: Record, now: float) -> bool:
    """Return whether every entry of *record* is past its `retain_until`."""
    for position in range(1, len(record), 2):  # noqa: SIM110  # a generator in all() doubles the time of a sweep
        if _RETAIN_UNTIL.unpack_from(record[position])[0] >= now:
            return False
    return True


def _variants_size(variants: Record) -> int:
    """Return what the heads and bodies *variants* cost, in bytes."""
    size = 0
    for position in range(0, len(variants), 2):
        size += _variant_size(len(variants[position]), len(variants[position + 1]))
    return size


def _variant_size(head_length: int, body_length: int) -> int:
    return _VARIANT_BYTES + _bytes_size(head_length) + _bytes_size(body_length)


def _bytes_size(length: int) -> int:
    """Return what a bytes object of *length* takes from the allocator."""
    size = length + _BYTES_BYTES
    if size <= 512:  # pymalloc's own pools, in steps of 16
        return (size + 15) // 16 * 16
    if size < 128 * 1024:  # malloc, with its header
        return (size + 8 + 15) // 16 * 16
    return (size + 16 + 4095) // 4096 * 4096  # pages of its own


def _require_positive(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigurationError(f"{name} must be a whole number >= 1, not {value!r}")
