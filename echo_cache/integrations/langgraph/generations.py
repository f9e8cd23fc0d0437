"""
Which values of a thread may be believed. The one rule: a value counts only in the generation that it names, and a
generation ends, before PostgreSQL commits and again after it, with every change of the thread.

A thread's generation is a string in Redis:

    o <token>         open: 16 random bytes, so that no generation ever comes again
    c <writer> ...    closed: 8 random bytes for each change that is under way

While a change is under way nothing is believed and nothing is filled, so what a reader saw between the first end and
the commit is never kept, and neither is it if the writer dies there. A thread without a generation, because Redis
evicted it, was emptied or restarted, gets a new one, which no value names.

    begin   the writer is noted                                -> closed
    end     the writer is forgotten                            -> open, a new token, when no other writer is left
    look    a token, and a value of that generation
    open    a token is made where none is
    fill    a value, if the token still is what `look` gave

A writer that does not come back leaves the thread closed until the generation expires.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
from base64 import urlsafe_b64encode
from collections.abc import Collection, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any, Final

from echo_cache.errors import StoreError
from echo_cache.integrations.langgraph.wire import TOKEN_BYTES, Key
from echo_cache.stores.redis.link import Failure, Refused
from echo_cache.stores.redis.shared import SharedServer

__all__ = ["Generations", "generation_name", "value_name"]

_logger: Final = logging.getLogger("echo_cache")

# Stands in the names of values. The generation's name has none: whatever versions of the format are about, a change
# ends the generation for all of them.
_FORMAT: Final = 1

# How long a thread stays closed after a writer that did not come back, in seconds: longer than PostgreSQL takes for a
# change, with locks and a full pool before it.
_HOLD: Final = 60.0

# How often those changes are told that Redis has not been told of; and of how many threads it is remembered, 2 MB.
_PAUSE: Final = 0.25
_MOST_OWED: Final = 10_000
# Of how many writers of a thread it is remembered that they have ended; the others leave it closed for _HOLD.
_MOST_ENDED: Final = 32

_OPEN: Final = b"o"
_CLOSED: Final = b"c"
_WRITER_BYTES: Final = 8
# How many writers of a thread are noted; before that the oldest ones, which will not come back, are forgotten.
_MOST_WRITERS: Final = 256

# KEYS[1]  the generation
# ARGV[1]  the token to make if there is none
# ARGV[2]  how long it lives, in ms
# Returns  the generation
_MAKE: Final = """
local now = redis.pcall('GET', KEYS[1])
if type(now) == 'string' and (#now == 17 and string.sub(now, 1, 1) == 'o' or string.sub(now, 1, 1) == 'c') then
  return now
end
redis.call('SET', KEYS[1], 'o' .. ARGV[1], 'PX', ARGV[2])
return 'o' .. ARGV[1]
"""

# KEYS[1]  the generation
# KEYS[2]  the value
# ARGV[1]  the token that it is filled in
# ARGV[2]  how long it lives, in ms
# ARGV[3]  the value
# Returns  1 if it is kept, else 0
_FILL: Final = """
if redis.pcall('GET', KEYS[1]) ~= 'o' .. ARGV[1] then return 0 end
redis.call('SET', KEYS[2], ARGV[3], 'PX', ARGV[2])
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[2]) then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return 1
"""

# A Redis that is full refuses what may need memory. To forget the generation is as good: nobody can fill there either.
_NOTED: Final = """
local now, writers = redis.pcall('GET', KEYS[1]), ''
if type(now) == 'string' and string.sub(now, 1, 1) == 'c' then writers = string.sub(now, 2) end
local function put(generation)
  local done = redis.pcall('SET', KEYS[1], generation, 'PX', ARGV[1])
  if done['err'] then redis.call('UNLINK', KEYS[1]) end
  return 1
end
"""

# KEYS[1]  the generation
# ARGV[1]  how long it lives, in ms
# ARGV[2]  the writer
# ARGV[3]  how many bytes of writers are noted
# Returns  1
_BEGIN: Final = (
    _NOTED
    + """
return put('c' .. string.sub(writers .. ARGV[2], -tonumber(ARGV[3])))
"""
)

# KEYS[1]  the generation
# ARGV[1]  how long it lives, in ms
# ARGV[2]  the token for it, if it is open then
# ARGV[3]  ... and further: the writers that have ended, perhaps none
# Returns  1
_END: Final = (
    _NOTED
    + """
local ended, left = {}, {}
for at = 3, #ARGV do ended[ARGV[at]] = true end
for at = 1, #writers, 8 do
  local writer = string.sub(writers, at, at + 7)
  if not ended[writer] then left[#left + 1] = writer end
end
if #left == 0 then return put('o' .. ARGV[2]) end
return put('c' .. table.concat(left))
"""
)


@dataclass(frozen=True, slots=True)
class _Debt:
    """Changes of a thread that Redis has not been told of: until when they matter, and which writers have ended."""

    until: float
    writers: tuple[bytes, ...]


class Generations:
    """
    The generations of all threads, as one event loop sees and ends them. Trouble in Redis is never raised here.

    ttl: how long a value lives, in seconds.
    """

    def __init__(self, server: SharedServer, ttl: float) -> None:
        self._server = server
        self._ttl = ttl
        self._ttl_ms = max(1, round(ttl * 1000))

        # Guarded by the event loop of the saver.
        # By the name of the generation. A debt ends when the values from before the change have expired.
        self._owed: dict[str, _Debt] = {}
        # Until when nothing is believed here, since there were more of them than are remembered.
        self._doubtful_until = 0.0
        self._payer: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self.failures = 0

    def __repr__(self) -> str:
        return f"<Generations {self._server.prefix} [{len(self._tasks)} tasks, {self.owed} threads owed]>"

    @property
    def owed(self) -> int:
        """How many threads have changes that Redis has not been told of."""
        return len(self._owed)

    # --- readers ------------------------------------------------------------------------------------------------------

    async def look(self, key: Key, *, for_value: bool = True) -> tuple[bytes | None, bytes | None]:
        """
        Return the token of the generation, and what is there for *key*, of whatever generation. One round trip, two
        when there is no generation.

        for_value: whether the value is asked for at all. No token: nothing may be believed or filled now. Never raises.
        """
        name = generation_name(self._server.prefix, key.thread_id)
        if not self._is_trusted(name):
            return None, None
        try:
            # In whatever order they are read: tokens do not come again, so a value that names this one is of a time
            # when it was the thread's.
            generation, value = (
                await self._read(name, value_name(name, key)) if for_value else (await self._read(name) + [None])
            )
            token = _token(generation)
            if token is None and not _is_closed(generation):
                token = _token(await self._server.evaluate(_MAKE, (name,), (_new_token(), _ms(_HOLD))))
        except StoreError:
            self.failures += 1
            return None, None
        # A change may have come while Redis was asked.
        return (token, value) if token is not None and self._is_trusted(name) else (None, None)

    async def _read(self, *names: str) -> list[bytes | None]:
        """Return the strings under *names*, in one round trip. Raises StoreError."""
        server = self._server
        try:
            # The link's own futures: two reads by `server.read` are two tasks more, a fifth of what a hit costs.
            link = server.link()
            waiting = [link.read(name) for name in names]
        except Refused as error:
            raise server.translated("read", Failure(error)) from error
        outcomes = [await future for future in waiting]
        for outcome in outcomes:
            if isinstance(outcome, Failure):
                raise server.translated("read", outcome) from outcome.error
        return [outcome if isinstance(outcome, bytes) else None for outcome in outcomes]

    async def fill(self, key: Key, token: bytes, value: bytes) -> bool:
        """Keep *value*, if the generation is still that of *token*. Returns whether it is kept. Never raises."""
        name = generation_name(self._server.prefix, key.thread_id)
        if not self._is_trusted(name):
            return False
        words = (token, self._ttl_ms, value)
        try:
            reply = await self._server.evaluate(_FILL, (name, value_name(name, key)), words)
        except StoreError:
            self.failures += 1
            return False
        return reply == 1

    def _is_trusted(self, name: str) -> bool:
        if not self._owed and not self._doubtful_until:
            return True
        debt, now = self._owed.get(name), asyncio.get_running_loop().time()
        return self._doubtful_until <= now and (debt is None or debt.until <= now)

    # --- writers ------------------------------------------------------------------------------------------------------

    def change(self, threads: Iterable[str]) -> Change:
        """Return a context for a change of *threads* in PostgreSQL."""
        return Change(self, {generation_name(self._server.prefix, thread) for thread in threads})

    async def begin(self, names: Collection[str], writer: bytes) -> None:
        """End the generations of *names* and close them for *writer*. Never raises; `end` makes up for what failed."""
        await asyncio.gather(*[self._close(name, writer) for name in names])

    async def end(self, names: Collection[str], writer: bytes, *, is_certain: bool) -> None:
        """
        End the generations of *names*, and open them unless the outcome is not *is_certain*. Never raises.

        What Redis cannot be told of now is told later. Until then nothing of these threads is believed here.
        """
        tell = self._open if is_certain else self._close
        told = await asyncio.gather(*[tell(name, writer) for name in names])
        for name, is_told in zip(names, told, strict=True):
            if not is_told:
                self._owe(name, (writer,) if is_certain else ())

    async def _close(self, name: str, writer: bytes) -> bool:
        return await self._tell(_BEGIN, name, writer, _MOST_WRITERS * _WRITER_BYTES)

    async def _open(self, name: str, *writers: bytes) -> bool:
        return await self._tell(_END, name, _new_token(), *writers)

    async def _tell(self, script: str, name: str, *words: bytes | int) -> bool:
        """Run *script* for *name*; return whether Redis has confirmed it."""
        try:
            await self._server.evaluate(script, (name,), (_ms(_HOLD), *words))
        except StoreError:
            self.failures += 1
            return False
        return True

    def _owe(self, name: str, writers: tuple[bytes, ...]) -> None:
        until = asyncio.get_running_loop().time() + self._ttl
        known = self._owed.get(name)
        if known is None and len(self._owed) >= _MOST_OWED:
            self._doubtful_until = until
            return
        self._owed[name] = _Debt(until, (*(known.writers if known else ()), *writers)[-_MOST_ENDED:])
        if self._payer is None:
            self._payer = self.own(self._pay())

    async def _pay(self) -> None:
        """Tell Redis what it has not been told, until there is nothing."""
        try:
            while self._owed:
                await asyncio.sleep(_PAUSE)
                await self._pay_once()
        finally:
            self._payer = None

    async def _pay_once(self) -> None:
        """Tell Redis what it has not been told, as far as it listens; forget what does not matter any more."""
        loop = asyncio.get_running_loop()
        is_listening = True
        for name, debt in list(self._owed.items()):
            if debt.until > loop.time():
                is_listening = is_listening and await self._open(name, *debt.writers)
                if not is_listening:
                    continue
            # A change that has ended meanwhile has made another debt of it.
            if self._owed.get(name) is debt:
                del self._owed[name]

    # --- tasks --------------------------------------------------------------------------------------------------------

    def own(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run *work* in a task that no caller owns, and that `aclose` waits for."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def aclose(self) -> None:
        """Wait for the changes that end, and tell Redis what it has not been told, if it can be told now."""
        if self._payer is not None:
            self._payer.cancel()
        while self._tasks:
            await asyncio.wait(self._tasks)
        await self._pay_once()
        if self._owed:
            _logger.warning(
                "changes of %d threads could not be told to Redis; other processes may read what was before them for "
                "up to %g s",
                len(self._owed),
                self._ttl,
            )


class Change:
    """
    `async with`: the generations of some threads end before and after what is done within.

    After an error or a cancellation nobody knows whether PostgreSQL has committed or still will: then the threads stay
    closed for some time. Whatever happens to the caller, Redis is told.
    """

    __slots__ = ("_generations", "_names", "_writer")

    def __init__(self, generations: Generations, names: Collection[str]) -> None:
        self._generations = generations
        self._names = names
        self._writer = secrets.token_bytes(_WRITER_BYTES)

    async def __aenter__(self) -> None:
        begun = self._generations.own(self._generations.begin(self._names, self._writer))
        try:
            await asyncio.shield(begun)
        except asyncio.CancelledError:
            self._generations.own(self._take_back(begun))
            raise

    async def __aexit__(self, kind: object, *_: object) -> None:
        await asyncio.shield(self._generations.own(self._end(is_certain=kind is None)))

    async def _take_back(self, begun: asyncio.Task[None]) -> None:
        """End a change that has only begun."""
        await asyncio.wait([begun])
        await self._end(is_certain=True)

    async def _end(self, *, is_certain: bool) -> None:
        await self._generations.end(self._names, self._writer, is_certain=is_certain)


# --- names ------------------------------------------------------------------------------------------------------------


def generation_name(prefix: str, thread_id: str) -> str:
    """Return the name of a thread's generation. The braces are Redis Cluster's: all of a thread is in one slot."""
    return f"{prefix}:langgraph:{{{_digest(thread_id)}}}"


def value_name(name: str, key: Key) -> str:
    """Return the name of the value for *key*, whose thread's generation has the name *name*."""
    latest = "latest" if key.checkpoint_id is None else "id"
    return f"{name}:{_FORMAT}:{_digest(key.checkpoint_ns, latest, key.checkpoint_id or '')}"


def _digest(*parts: str) -> str:
    """Return a name for *parts*, each length-prefixed, in [A-Za-z0-9_-]."""
    packed = [part.encode("utf-8", "surrogatepass") for part in parts]
    whole = b"".join(b"%d:%s" % (len(part), part) for part in packed)
    return urlsafe_b64encode(hashlib.blake2b(whole, digest_size=20, person=b"echo_cache lgkey").digest())[:27].decode()


def _token(generation: object) -> bytes | None:
    """Return the token of *generation*; None when it is closed, or is none."""
    if not isinstance(generation, bytes) or len(generation) != 1 + TOKEN_BYTES or generation[:1] != _OPEN:
        return None
    return generation[1:]


def _is_closed(generation: bytes | None) -> bool:
    return generation is not None and generation[:1] == _CLOSED


def _new_token() -> bytes:
    return secrets.token_bytes(TOKEN_BYTES)


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))
