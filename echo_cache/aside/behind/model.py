"""
What is written behind, and by whom. The one rule: a write is bytes from the moment it is accepted, and what is not
exactly ours is no write.

A write is an entry of the cache's codec under a key of its own kind, which names the CacheAside, the saver and the key:
so it has the codec's checks and bounds, and a signature where the store has a secret.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, NamedTuple, TypeAlias, TypeVar

from echo_cache import codec
from echo_cache.aside.serializers import Serializer, from_response, to_response
from echo_cache.errors import CodecError, NotStorable
from echo_cache.model import CacheKey, Entry

__all__ = [
    "Counters",
    "DeadLetter",
    "Save",
    "Saver",
    "Waiting",
    "Wire",
    "Write",
    "WriteBehindMode",
    "WriteBehindStats",
    "write_id",
]

T = TypeVar("T")

# What a write takes in memory beside its bytes, about.
_BESIDE: Final = 1024


class WriteBehindMode(enum.StrEnum):
    """Where writes wait until they are saved."""

    DURABLE = "durable"
    """In Redis: they are as safe as it is, and another process saves what a killed one has left."""

    MEMORY = "memory"
    """In this process: what is not saved when it ends or is killed is lost, and other processes do not see it."""


@dataclass(frozen=True, slots=True)
class Write(Generic[T]):
    """
    One write, as a saver gets it.

    id: 32 hexadecimal digits that grow with each write of a key; as text and as a PostgreSQL uuid they compare in that
        order. is_repeated: whether it was tried before, so that the database may have it already.
    """

    key: str
    value: T
    id: str
    is_repeated: bool


@dataclass(frozen=True, slots=True)
class DeadLetter(Generic[T]):
    """
    A write of *saver* that was given up.

    id: that of the write, which is in the log too. error: the name of the last one. attempts: how often it was tried.
    write: what the saver would get; None for what is no write of this saver, or does not decode here: with another
    secret or serializer, say. data: what is in Redis of it. place: where it is among the dead letters.
    """

    saver: str
    id: str
    error: str
    attempts: int
    write: Write[T] | None
    data: bytes
    place: str


Save: TypeAlias = Callable[[Write[Any]], Awaitable[Any]]
"""Saves a write, or raises."""


@dataclass(frozen=True, slots=True)
class Saver:
    """A function under the name by which all processes know it, and how it is used: see `CacheAside.saver`."""

    name: str
    save: Save
    serializer: Serializer
    coalesce: bool
    concurrency: int
    max_attempts: int
    max_queue: int
    timeout: float


class WriteBehindStats(NamedTuple):
    """
    What is written behind.

    waiting: how many writes are yet to be saved, by whichever process; oldest: for how many seconds the first of them
    has waited. None: Redis cannot be asked. The rest is what this process did. saved: writes that a saver has taken.
    retried: attempts that failed, and were or will be repeated. coalesced: writes that a newer one has made needless.
    abandoned: writes that were given up, which are in the dead letters. lost: writes in memory that were not saved
    before the end.
    """

    waiting: int | None
    oldest: float | None
    saved: int
    retried: int
    coalesced: int
    abandoned: int
    lost: int


class Counters:
    """What the savers of one CacheAside have done in this process."""

    __slots__ = ("abandoned", "coalesced", "lost", "retried", "saved")

    def __init__(self) -> None:
        self.saved = self.retried = self.coalesced = self.abandoned = self.lost = 0


class Waiting:
    """
    A write that is yet to be saved.

    id: that of the queue. key: that of the write; None if *raw* is no write of ours, and *trouble* says what it is.
    attempts: how often it failed here.
    """

    __slots__ = ("attempts", "id", "is_repeated", "key", "raw", "trouble")

    def __init__(self, id_: bytes, raw: bytes, key: bytes | None, trouble: str, *, is_repeated: bool) -> None:
        self.id = id_
        self.raw = raw
        self.key = key
        self.trouble = trouble
        self.is_repeated = is_repeated
        self.attempts = 0

    @property
    def size(self) -> int:
        """What it takes in memory, in bytes, about."""
        return len(self.raw) + _BESIDE


class Wire:
    """
    Writes as bytes, for one CacheAside.

    prefix: that of the CacheAside. max_bytes: of a value. secrets: the first signs, all are accepted.
    """

    def __init__(self, prefix: str, max_bytes: int, secrets: Sequence[bytes]) -> None:
        self._prefix = prefix
        self._max_bytes = max_bytes
        self._secrets = tuple(secrets)

    def encode(self, saver: Saver, key: bytes, value: Any, now: float) -> bytes:
        """Return the write as bytes. Raises NotStorable for a value that cannot be written."""
        try:
            response = to_response(value, saver.serializer)
        except Exception as error:
            raise NotStorable(
                f"the serializer of saver {saver.name!r} does not take a {type(value).__name__}: {error}"
            ) from error
        if len(response.body) > self._max_bytes:
            raise NotStorable(f"a value has {self._max_bytes} bytes at most, and this one has {len(response.body)}")
        secret = self._secrets[0] if self._secrets else None
        # Not compressed: whoever saves it may not have what that takes.
        return codec.encode(
            self._key(saver.name, key), Entry(response, now, now, now, now), compress=False, secret=secret
        )

    def waiting(self, saver: str, id_: bytes, raw: bytes, *, is_repeated: bool) -> Waiting:
        """Return *raw*, which is in the queue of *saver*, as what waits there, whatever it is."""
        try:
            key = codec.decode_key(raw)
            self._entry(saver, key[3], raw)
        except CodecError as error:
            return Waiting(id_, raw, None, type(error).__name__, is_repeated=is_repeated)
        return Waiting(id_, raw, key[3], "", is_repeated=is_repeated)

    def value(self, saver: str, key: bytes, raw: bytes, serializer: Serializer) -> Any:
        """Return the value in *raw*, a new object. Raises CodecError, and what the serializer raises."""
        return from_response(self._entry(saver, key, raw).response, serializer)

    def _entry(self, saver: str, key: bytes, raw: bytes) -> Entry:
        return codec.decode(self._key(saver, key), raw, max_body_bytes=self._max_bytes, secrets=self._secrets)

    def _key(self, saver: str, key: bytes) -> CacheKey:
        return ("write", self._prefix, saver.encode(), key, b"")


def write_id(log_id: bytes) -> str:
    """Return an ID of a stream, "milliseconds-sequence", as text of one length that grows as it does."""
    milliseconds, _, sequence = log_id.partition(b"-")
    return f"{int(milliseconds):016x}{int(sequence):016x}"
