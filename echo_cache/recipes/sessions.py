"""
The state of sessions, in Redis. The one rule: a session ends when nobody has used it for its ttl, when it is older than
its max_age, and when it is deleted; trouble in Redis can end one sooner, and can never bring one back.

    {prefix}:session:1:<name of the cache>:{<digest of the id>}    in Redis

    13 digits   when it ends whatever happens, in ms since the epoch: for the script that touches it, which cannot look
                into the rest and is not believed
    the rest    an envelope as of entries of the HTTP cache (codec.py): signed with the store's secret over a key that
                is the session's alone; its retain_until is the end that counts

    -           in place of both: it was deleted, and is not to come back
"""

from __future__ import annotations

import hashlib
import logging
import math
import re
import time
from typing import Any, Final, NamedTuple, Self

from echo_cache.aside import MSGPACK, Serializer
from echo_cache.aside.serializers import require_serializer
from echo_cache.codec import decode, encode
from echo_cache.errors import CodecError, ConfigurationError, NotStorable, StoreError
from echo_cache.model import CacheKey, Entry, StoredResponse
from echo_cache.options import Duration, seconds
from echo_cache.recipes.ttls import SESSION_TTL
from echo_cache.stores import RedisStore

__all__ = ["SessionCache", "SessionStats"]

_logger: Final = logging.getLogger("echo_cache")

# Without a colon, so that the names of two caches never meet.
_PREFIX: Final = re.compile(r"[A-Za-z0-9_-]+")
_DIGITS: Final = 13
# How long a deleted session stays deleted, whoever still writes it: longer than a request takes.
_GONE_MS: Final = 300_000
# What Redis takes for an expiry has a limit; ten years are forever here, and end in 13 digits.
_FOREVER: Final = 10 * 365 * 86_400.0

# KEYS[1]  the session
# ARGV[1]  how long it lives from now, in ms
# ARGV[2]  now, in ms since the epoch
# Returns  its value, or nothing
# A Redis that takes no writes (a replica, a full disk) still answers: so pcall.
_TOUCH: Final = """
local value = redis.pcall('GET', KEYS[1])
if type(value) ~= 'string' or value == '-' then return false end
local left = (tonumber(string.sub(value, 1, 13)) or 0) - tonumber(ARGV[2])
redis.pcall('PEXPIRE', KEYS[1], math.min(tonumber(ARGV[1]), left))
return value
"""

# KEYS[1]  the session
# ARGV[1]  how long it lives from now, in ms
# ARGV[2]  its value
# Returns  1 if it is kept, 0 if it was deleted a short time ago
_WRITE: Final = """
if redis.pcall('GET', KEYS[1]) == '-' then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[1])
return 1
"""

# KEYS[1]  the session
# ARGV[1]  how long it stays deleted, in ms
# Returns  1 if there was one, else 0
# A Redis that is full refuses what may need memory, and then nobody can write the session again either.
_DELETE: Final = """
local value = redis.pcall('GET', KEYS[1])
local done = redis.pcall('SET', KEYS[1], '-', 'PX', ARGV[1])
if done['err'] then redis.call('UNLINK', KEYS[1]) end
if value and value ~= '-' then return 1 end
return 0
"""


class SessionStats(NamedTuple):
    """
    What was done by this object.

    hits, misses: reads that found a session, or none. rejected: values in Redis that were none of ours for this
    session; they are misses. failures: what Redis did not do.
    """

    hits: int
    misses: int
    rejected: int
    failures: int


class SessionCache:
    """
    The state of sessions, shared by all workers that share a Redis.

    store: a RedisStore, or a URL for one with its defaults. Its `prefix` parts apps, and its `secret` signs: without
        one, whoever can write to Redis can write sessions.
    ttl: how long a session lives after it was last read or written, in seconds.
    max_age: how long it lives at the longest, however often it is used, in seconds: so long is a stolen id of use. It
        counts from the first `set`. None: without end.
    prefix: what parts these sessions from others in the same store: [A-Za-z0-9_-].
    serializer: how states become bytes: MSGPACK or JSON for plain data, typed(T) for dataclasses and models.

    An id is a secret, made by `secrets.token_urlsafe(32)` and never by a client; Redis has a digest of it only.

    Each `set` replaces the whole state, and of two at the same time the later one stays: what must not be lost when two
    requests of one session overlap is the database's. Redis in trouble gives no session; there is no copy in memory.

    Raises ConfigurationError for what cannot work.
    """

    def __init__(
        self,
        store: RedisStore | str,
        *,
        ttl: Duration = SESSION_TTL,
        max_age: Duration | None = 86_400.0,
        prefix: str = "session",
        serializer: Serializer = MSGPACK,
    ) -> None:
        if not isinstance(store, RedisStore | str):
            raise ConfigurationError(f"store must be a RedisStore or a URL, not {type(store).__name__}")
        if not _PREFIX.fullmatch(prefix):
            raise ConfigurationError(f"prefix must be made of [A-Za-z0-9_-], not {prefix!r}")
        require_serializer(serializer)
        self._ttl = min(_positive("ttl", ttl), _FOREVER)
        self._max_age = None if max_age is None else min(_positive("max_age", max_age), _FOREVER)
        self._prefix = prefix
        self._serializer = serializer
        self._store = RedisStore(store) if isinstance(store, str) else store
        self._owns_store = isinstance(store, str)
        self._server = self._store.server
        # Prepared by the store for its prefix; the key of a session is none of an entry's.
        self._secrets = self._store.secrets

        # May be off by a few under threads.
        self._hits = 0
        self._misses = 0
        self._rejected = 0
        self._failures = 0

    def __repr__(self) -> str:
        server = self._server
        return (
            f"<SessionCache {server.location} {server.prefix}:session:{self._prefix} "
            f"[{self._hits} hits, {self._misses} misses | {self._rejected} rejected, {self._failures} failures]>"
        )

    async def get(self, session_id: str, *, strict: bool = False) -> Any | None:
        """
        Return the state of the session, a new object each time, and let it live for another ttl; one round trip.

        None: there is none, it has ended, or Redis cannot tell; whoever asked is not logged in. *strict*: raises
        StoreError where Redis cannot tell, for who would rather answer 503 than ask all users to log in again.
        """
        name, key = self._name_and_key(session_id)
        now = time.time()
        try:
            raw = await self._server.evaluate(_TOUCH, (name,), (_milliseconds(self._ttl), _milliseconds(now)))
        except StoreError as error:
            self._failed("read", error)
            if strict:
                raise
            return None
        opened = None if raw is None else self._opened(key, raw, now)
        if opened is None:
            self._misses += 1
            return None
        self._hits += 1
        return opened.state

    async def set(self, session_id: str, state: Any) -> bool:
        """
        Keep *state* as that of the session, for another ttl; the end of a session that is there stays what it was.

        Returns whether it is kept: not if it was deleted in the last five minutes, nor if Redis does not do it (it may
        have, if it only ran out of time). Two round trips; one without max_age.
        Raises NotStorable for None, which says that there is no session, for what the serializer does not take, and for
        what is over the store's `max_body_bytes`; ConfigurationError for an empty id.
        """
        if session_id == "":
            raise ConfigurationError("an id of a session is text that is not empty")
        name, key = self._name_and_key(session_id)
        body = self._body(state)
        try:
            now = time.time()
            ends = await self._end(name, key, now)
            life = min(self._ttl, ends - now)
            reply = await self._server.evaluate(_WRITE, (name,), (_milliseconds(life), self._sealed(key, body, ends)))
        except StoreError as error:
            self._failed("write", error)
            return False
        return reply == 1

    async def delete(self, session_id: str) -> bool:
        """
        End the session, and keep it from coming back by a request that still has its state; one round trip.

        Returns whether there was one. Raises StoreError when Redis did not confirm it: the session may live on, and
        whoever logs out should know.
        """
        name, _ = self._name_and_key(session_id)
        try:
            return await self._server.evaluate(_DELETE, (name,), (_GONE_MS,)) == 1
        except StoreError:
            self._failures += 1
            raise

    def stats(self) -> SessionStats:
        """Return a snapshot of the counters."""
        return SessionStats(self._hits, self._misses, self._rejected, self._failures)

    async def aclose(self) -> None:
        """Close what was made here; a given store stays open. A second call does nothing."""
        if self._owns_store:
            await self._store.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    # --- values -------------------------------------------------------------------------------------------------------

    def _name_and_key(self, session_id: str) -> tuple[str, CacheKey]:
        """Return the name in Redis, and the key that is signed with the value. Raises ConfigurationError."""
        if not isinstance(session_id, str):
            raise ConfigurationError(f"an id of a session is text, not {type(session_id).__name__}")
        digest = hashlib.sha256(session_id.encode("utf-8", "surrogatepass")).hexdigest()
        name = f"{self._server.prefix}:session:1:{self._prefix}:{{{digest}}}"
        return name, ("session", self._prefix, None, digest.encode(), b"")

    def _body(self, state: Any) -> bytes:
        if state is None:
            raise NotStorable("None is what `get` returns where there is no session: delete it, or keep an empty state")
        try:
            body = self._serializer.dumps(state)
        except Exception as error:
            raise NotStorable(
                f"a state that is a {type(state).__name__} cannot be kept ({type(error).__name__}: {error}): "
                "give a serializer that can, such as typed(...)"
            ) from error
        if len(body) > self._store.max_body_bytes:
            raise NotStorable(f"a state may have {self._store.max_body_bytes} bytes, and this one has {len(body)}")
        return body

    async def _end(self, name: str, key: CacheKey, now: float) -> float:
        """Return when the session ends, used or not: as it is there, or for one that begins. Raises StoreError."""
        if self._max_age is None:
            return now + _FOREVER
        raw = await self._server.read(name)
        there = None if raw is None or raw == b"-" else self._opened(key, raw, now)
        # An app that was started anew with a shorter one means it for all.
        return min(now + self._max_age, math.inf if there is None else there.ends)

    def _sealed(self, key: CacheKey, body: bytes, ends: float) -> bytes:
        """Return the value for Redis."""
        response = StoredResponse(200, ((b"content-type", self._media_type),), body)
        entry = Entry(response, 0.0, 0.0, ends, ends)
        envelope = encode(key, entry, secret=self._secrets[0] if self._secrets else None)
        return b"%0*d%s" % (_DIGITS, _milliseconds(ends), envelope)

    def _opened(self, key: CacheKey, raw: object, now: float) -> _Opened | None:
        """Return what the value *raw*, which anybody may have written, says; None if it is not the session's."""
        try:
            if not isinstance(raw, bytes):
                raise CodecError("the value is no string")
            envelope = raw[_DIGITS:]
            entry = decode(key, envelope, max_body_bytes=self._store.max_body_bytes, secrets=self._secrets)
            if entry.response.headers != ((b"content-type", self._media_type),):
                raise CodecError("the value is another serializer's")
            if now >= entry.retain_until:
                return None
            return _Opened(self._serializer.loads(entry.response.body), entry.retain_until)
        except Exception as error:
            # Whatever a serializer raises about bytes that it does not know.
            self._rejected += 1
            _logger.debug("a session in Redis is none of ours: %s: %s", type(error).__name__, error)
            return None

    @property
    def _media_type(self) -> bytes:
        return self._serializer.media_type.encode()

    def _failed(self, what: str, error: StoreError) -> None:
        self._failures += 1
        _logger.debug("could not %s a session: %s", what, error)


class _Opened(NamedTuple):
    """A state, and when the session ends, used or not, in seconds since the epoch."""

    state: Any
    ends: float


def _positive(name: str, value: Duration) -> float:
    number = seconds(name, value)
    if not number:
        raise ConfigurationError(f"{name} must be longer than 0 s: nothing would be kept")
    return number


def _milliseconds(number: float) -> int:
    return max(math.ceil(number * 1000), 1)
