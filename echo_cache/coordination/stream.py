"""
The invalidation log that all workers share: one Redis stream per name space, followed on a connection of its own.

The one rule: what is served is younger than the newest invalidation that was acknowledged, or it is known that the log
cannot be heard.

    {<prefix>:log}        the stream; an entry is one invalidation of one or more targets, or says that a log begins
    {<prefix>:log}:run    which run of the server has the stream

The server orders everything by the IDs that it gives. A worker that comes reads what the stream holds, then waits for
more. After a disconnect it goes on behind the last ID that it has seen, if that is still there. If it is not, the
stream was cut or emptied in between, and whatever was filled before its first entry is doubtful. A server that is not
the one it was (restarted, failed over) may have lost the end of the stream, so a new beginning is written into it, and
what was filled before that is doubtful. Doubtful entries are confirmed by the app before they are used.

What cannot be appended is pending: it counts here at once, and is appended when the server is back. Entries that are
filled meanwhile carry a negative mark, which says how many of the pending ones they have seen; it means nothing to
other processes and never leaves this one.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import random
from collections.abc import Callable, Sequence
from threading import RLock
from typing import Final

from echo_cache.coordination.clock import Clock
from echo_cache.coordination.log import MAX_MARKS, Appended, Since, position_of, seconds_of
from echo_cache.coordination.marks import Invalidation, Kind, Marks, Verdict
from echo_cache.coordination.server import Command, Listener, Server
from echo_cache.coordination.wire import Entries, appended, decode_marks, encode_marks, entries, of_one_stream, opened
from echo_cache.errors import CodecError, StoreError
from echo_cache.events import LogChanged, Observer
from echo_cache.model import CacheKey, Entry

__all__ = ["APPEND", "OPEN", "SharedLog"]

logger = logging.getLogger("echo_cache")

MAX_PENDING: Final = 1_000
"""How many invalidations are kept while they cannot be appended; more than that are one of everything."""

HEARTBEAT: Final = 1.0
"""How often, in seconds, an idle log is heard to be idle."""

# Entries per reply: 2 ms of work for the event loop.
_PAGE: Final = 500
# How much of the stream is read at most, as a multiple of what it should hold: Redis cuts it about there.
_MOST_READ: Final = 4
# What `append` may bring of others' entries, so that it is heard of what stands before the own one.
_NEWS: Final = 100
# How long a reply may take beyond the time for which it was asked to be held back.
_PATIENCE: Final = 1.0
# How often what is pending is tried again, where the stream is heard and cannot be written to.
_HURRY: Final = 0.25
# Pauses before connecting again. The longest is short: a server that is back should be heard within 2 s.
_FIRST_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 0.5
_JITTER: Final = 0.3
# How long the first request of a worker waits for the log: as long as for the store, beside which it waits.
_READY_WITHIN: Final = 0.1
# Between two lines in the log about a stream that cannot be followed.
_QUIET_SECONDS: Final = 60.0
# From how many states in an outage entries can still be told apart; older ones are doubtful.
_REMEMBERED_BASES: Final = 1_000

# What is known of a state that is not remembered any more.
_NO_BASE: Final = (0, 0.0)

# What both scripts do: see to it that there is a stream that can be written, and say so in it when it is new.
#
# What is in the place of the stream and is none, and a stream whose IDs are more than a year ahead, give way to a new
# one: nothing of what they said can be relied on, and soon nothing could come behind them. An ID that is known and is
# not in the stream, though it was not cut there, is one of a stream that was lost; what is there now is another. It
# begins anew, and goes on behind that ID, so that positions never fall.
_BEGIN: Final = """
local now = redis.pcall('TIME')
local latest = now.err and 140737488355327 or (tonumber(now[1]) + 31622400) * 1000
local function begin(run)
  redis.call('XADD', KEYS[1], '*', 'open', run)
  redis.call('SET', KEYS[2], run)
end
local function is_sound()
  if redis.call('TYPE', KEYS[1]).ok ~= 'stream' then return false end
  local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
  return last and tonumber(string.match(last[1], '^%d+')) <= latest
end
local function has(known, run)
  if known == '' then return 0 end
  if #redis.call('XRANGE', KEYS[1], known, known) == 1 then return 1 end
  if #redis.call('XRANGE', KEYS[1], known, '+', 'COUNT', 1) == 0 then
    local behind = string.format('%.0f-0', tonumber(string.match(known, '^%d+')) + 1)
    redis.call('XADD', KEYS[1], behind, 'open', run)
  elseif #redis.call('XRANGE', KEYS[1], '-', known, 'COUNT', 1) == 1 then
    redis.call('XADD', KEYS[1], '*', 'open', run)
  end
  return 0
end
"""

# KEYS[1]  the stream
# KEYS[2]  the run
# ARGV[1]  the last ID that is known here, empty when there is none
# Returns  {1 if that ID is still in the stream, else 0; the first ID; the run; the latest milliseconds of an ID}
OPEN: Final = (
    _BEGIN
    + """
local info = redis.pcall('INFO', 'server')
local run = type(info) == 'string' and string.match(info, 'run_id:(%w+)') or ''
if not is_sound() then
  redis.call('DEL', KEYS[1])
  begin(run)
elseif redis.pcall('GET', KEYS[2]) ~= run then
  begin(run)
end
local known = has(ARGV[1], run)
return {known, redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1][1], run, string.format('%.0f', latest)}
"""
)

# KEYS[1]   the stream
# KEYS[2]   the run
# ARGV[1]   the last ID that is known here, empty when there is none
# ARGV[2]   how many entries the stream keeps, about
# ARGV[3]   the run that is known here
# ARGV[4]   how many entries to return
# ARGV[5..] what to append, an entry each
# Returns   {the last ID given; the entries behind ARGV[1], none if that is gone by now; 1 if that was there, else 0}
APPEND: Final = (
    _BEGIN
    + """
if not is_sound() then
  redis.call('DEL', KEYS[1])
  begin(ARGV[3])
end
local known, id, news = has(ARGV[1], ARGV[3]), nil, {}
for at = 5, #ARGV do
  id = redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[2], '*', 'marks', ARGV[at])
end
if known == 1 and #redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1]) == 1 then
  news = redis.call('XRANGE', KEYS[1], '(' .. ARGV[1], '+', 'COUNT', ARGV[4])
end
return {id, news, known}
"""
)


class _Gap(Exception):
    """Raised when the stream is not what it was: what it held may be lost."""


class SharedLog:
    """
    The log of all processes that use one prefix on one server.

    *max_marks* are known here and kept there, about. max_pending: how many invalidations are kept while the server
    cannot be written to.

    It follows the stream in one event loop at a time, in a task that `follow` starts and `aclose` ends. What it knows
    may be asked from any thread, and `append` works in any event loop.
    """

    def __init__(
        self,
        server: Server,
        clock: Clock,
        *,
        max_marks: int = MAX_MARKS,
        max_pending: int = MAX_PENDING,
    ) -> None:
        self.version = 0
        self._server = server
        self._clock = clock
        # A clock of a test is all the time that there is.
        self._monotonic: Callable[[], float] = getattr(clock, "monotonic", clock.time)
        self._max_marks = max_marks
        self._max_pending = max_pending
        self._heartbeat = HEARTBEAT
        self._observers: list[Observer] = []
        self._stream = f"{{{server.prefix}:log}}"
        self._keys = (self._stream, f"{self._stream}:run")
        self._first: Command = ("XRANGE", self._stream, "-", "+", "COUNT", 1)

        # Changed under the lock, since `append` may be called in other threads' event loops. Read without it: what is
        # read are single attributes, and single look-ups in dictionaries.
        self._lock = RLock()
        self._marks = Marks(max_marks)
        # The last ID of the stream up to which everything is known here, and what it is as a number.
        self._last = b""
        self._position = 0
        self._run = b""
        # No ID of the stream is later: what stands there then is somebody's joke.
        self._latest = math.inf
        # What is yet to be appended. Its positions are generations: a count of all that happened here in outages.
        self._pending = _pending(max_pending)
        # They begin where no log of this process that was here before can have come to.
        self._generation = int(clock.time() * 1_000_000)
        # Where the log stood at each generation, and when that was.
        self._bases: dict[int, tuple[int, float]] = {}

        # By both clocks, when everything was known that was in the stream then: the wall clock goes on while a machine
        # is suspended, the other one is not set.
        self._synced_at = -math.inf, -math.inf

        # Following: who does it, where, and how it goes.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._pid = os.getpid()
        self._waiting: list[asyncio.Future[None]] = []
        self._trouble: Exception | None = None
        self._told_at = -math.inf

    def __repr__(self) -> str:
        state = "not followed" if self._task is None else "heard" if self._trouble is None else "not heard"
        where = f"{self._stream} at {self._server.location}"
        return f"<SharedLog {where} [{state}, {len(self._pending)} pending] {self._marks!r}>"

    # --- what is known ------------------------------------------------------------------------------------------------

    def position(self) -> int:
        """Return the position to record for a fill that begins now; below 0 while something is pending."""
        return -self._generation if self._pending.newest else self._position

    def verdict(self, key: CacheKey, entry: Entry) -> Verdict | None:
        """Return what the marks newer than the entry's say of it; None when it stands."""
        mark = entry.mark
        since, generation = (mark, 0) if mark >= 0 else (self._bases.get(-mark, _NO_BASE)[0], -mark)
        verdict = self._marks.verdict(since, key, entry.groups)
        if self._pending.newest and verdict is not Verdict.GONE:
            # What was filled elsewhere, or before, has seen none of it.
            pending = self._pending.verdict(generation, key, entry.groups)
            if pending is Verdict.GONE or verdict is None:
                return pending
        return verdict

    def unheard_for(self) -> float:
        """Return for how many seconds the stream may hold what is not known here."""
        passed = [now - at for now, at in zip(self._now(), self._synced_at, strict=True)]
        # A clock that was set back says nothing, until the stream is heard once more.
        return max(passed) if min(passed) >= 0 else math.inf

    def softened_at(self, key: CacheKey, entry: Entry) -> float:
        """Return when the last soft mark made the entry stale, in epoch seconds; 0 when none did."""
        pending = self._pending.softened_at(key, entry.groups) if self._pending.newest else 0
        if pending:
            return self._bases.get(pending, _NO_BASE)[1]
        return seconds_of(self._marks.softened_at(key, entry.groups))

    @property
    def known(self) -> bool:
        """Whether the stream has been read, or cannot be: whether there is nothing to wait for with `ready`."""
        return bool(self._last) or self._trouble is not None

    @property
    def pending(self) -> int:
        """How many invalidations are yet to be appended."""
        return len(self._pending)

    @property
    def trouble(self) -> Exception | None:
        """Why the stream cannot be followed now; None when it can."""
        return self._trouble

    # --- appending ----------------------------------------------------------------------------------------------------

    async def append(self, marks: Sequence[Invalidation], since: Since | None = None) -> Appended:
        """
        Add *marks*; they count here when this returns, whatever became of them elsewhere.

        *since*: the change that they tell of, to be told whether it was the only one. One round trip, which also brings
        what others have appended before: so what is filled from now on has seen it.
        """
        try:
            self.follow()
            if not self.known:
                await self.ready()
            position, is_alone = await self._append(marks, since)
        except StoreError as error:
            self._keep(marks)
            return Appended(0, error)
        except BaseException:
            # Whether they were appended nobody knows now; twice harms nobody.
            self._keep(marks)
            raise
        if self._pending.newest:
            await self._append_pending()
        return Appended(position, is_alone=is_alone)

    async def _append(self, marks: Sequence[Invalidation], since: Since | None = None) -> tuple[int, bool]:
        """
        Append *marks*, and return where they stand, and whether they are the only ones *since* then. Raises StoreError.

        They count when this returns.
        """
        known = self._last
        is_alone = since is not None and self._is_untouched(since)
        payloads = encode_marks(marks)
        words: Command = (known, self._max_marks, self._run, len(marks) + _NEWS, *payloads)
        log_id, news, is_there = appended(await self._server.evaluate(APPEND, self._keys, words))
        position = position_of(log_id)
        # This does not count as having heard the log: the server may be another one, and what it has lost is not known
        # before whoever follows has connected to it.
        if since is not None and is_alone:
            # What came between is in the reply, all of it if that ends with the own ones.
            is_alone = bool(news) and news[-1][0] == log_id and _is_untouched(since, news[: -len(payloads)])
        with self._lock:
            self._apply(news)
            if self._position < position:
                # What stands between is not known here yet. The own marks count, whatever it is.
                self._add(position, marks)
            elif known and not is_there and not self._marks.has(position, marks[-1]):
                # What was known is gone, and not only cut off since: whoever follows would have read the own ones.
                # The stream is another one, and its IDs are behind what is known here: it will go on behind that.
                self._add(self._position + 1, marks)
        return position, is_alone

    def _is_untouched(self, since: Since) -> bool:
        """Say whether nothing that is known here has come since, and nothing is pending."""
        return not self._pending.newest and since.position >= 0 and self._marks.verdict(*since) is None

    def _add(self, position: int, marks: Sequence[Invalidation]) -> None:
        for mark in marks:
            self._marks.add(position, mark)
        self.version += 1

    def _keep(self, marks: Sequence[Invalidation]) -> None:
        """Let *marks* count here, and have them appended when that is possible."""
        with self._lock:
            self._next_generation()
            for mark in marks:
                self._pending.add(self._generation, mark)
            if len(self._pending) > self._max_pending:
                self._pending.add(self._generation, Invalidation(Kind.ALL))
            self.version += 1

    def _next_generation(self) -> None:
        self._generation += 1
        self._bases[self._generation] = self._position, self._clock.time()
        if len(self._bases) > _REMEMBERED_BASES:
            del self._bases[next(iter(self._bases))]

    async def _append_pending(self) -> None:
        """
        Append what is pending, unless the server cannot be written to. What comes to be pending meanwhile stays so.

        Not by the connection that follows: a server that is full, or a replica, can be followed all the same.
        """
        with self._lock:
            through = self._generation
            marks = [mark for _, mark in self._pending]
        try:
            # First they count by the log, then no more as pending: nothing may be served in between.
            await self._append(marks)
        except StoreError as error:
            logger.debug("%d invalidations stay pending: %s", len(marks), error)
            return
        with self._lock:
            left = [(position, mark) for position, mark in self._pending if position > through]
            pending = _pending(self._max_pending)
            for position, mark in left:
                pending.add(position, mark)
            self._pending = pending
            self.version += 1

    # --- following ----------------------------------------------------------------------------------------------------

    def expect(self, heartbeat: float) -> None:
        """Hear the stream every *heartbeat* seconds at least, or more often if somebody else expects that."""
        self._heartbeat = min(self._heartbeat, heartbeat)

    def follow(self) -> None:
        """See to it that the stream is followed: in the running event loop, unless another one that runs does it."""
        task = self._task
        if task is not None and not task.done() and self._pid == os.getpid():
            if self._loop is asyncio.get_running_loop():
                return
            assert self._loop is not None
            if self._loop.is_running():
                return
        self._loop = asyncio.get_running_loop()
        self._pid = os.getpid()
        self._waiting = []
        self._task = self._loop.create_task(self._follow())

    async def ready(self) -> None:
        """Wait until the stream has been read, for a moment at the most; not at all while it cannot be."""
        self.follow()
        if self.known or self._loop is not asyncio.get_running_loop():
            return
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._waiting.append(waiter)
        await asyncio.wait([waiter], timeout=_READY_WITHIN)

    async def aclose(self, deadline: float) -> None:
        """
        Append what is pending, for *deadline* seconds at most, and stop following.

        It can be used again: `follow` goes on where it stood.
        """
        if self._pending.newest:
            await self._drain(deadline)
        task = self._task
        if task is not None and self._loop is asyncio.get_running_loop() and self._pid == os.getpid():
            self._task = None
            task.cancel()
            await asyncio.wait([task])

    async def _drain(self, deadline: float) -> None:
        try:
            async with asyncio.timeout(deadline):
                while self._pending.newest:
                    await self._append_pending()
                    if self._pending.newest:
                        await asyncio.sleep(_HURRY)
        except TimeoutError:
            logger.warning(
                "%d invalidations could not be told to other workers in %s s, before the end", self.pending, deadline
            )

    async def _follow(self) -> None:
        """Follow the stream until cancelled, connecting again whenever the connection is lost."""
        pause = _FIRST_PAUSE
        while True:
            try:
                listener = await self._server.listen(self._stream)
                try:
                    await self._open(listener)
                    pause = _FIRST_PAUSE
                    while True:
                        await self._listen(listener)
                finally:
                    await listener.aclose()
            except _Gap as gap:
                logger.info("the invalidation log has a gap (%s); stored responses are validated", gap)
            except Exception as error:
                logger.debug("the invalidation log: %s", error)
                # A connection that breaks is nothing, if the next one hears what it did not.
                if not self._last or self.unheard_for() > self._heartbeat + _PATIENCE:
                    self._lost(error)
            await asyncio.sleep(pause * random.uniform(1 - _JITTER, 1 + _JITTER))
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _open(self, listener: Listener) -> None:
        """Find out what the stream is, tell it what is pending, and read what is new in it."""
        words = ("EVAL", OPEN, len(self._keys), *self._keys, self._last)
        (reply,) = await listener.ask([words], _PATIENCE)
        known, first, self._run, self._latest = opened(reply)
        start = b"(" + self._last
        if not known:
            # Read all there is, and rely on nothing that it does not reach back to.
            start = b"-"
            with self._lock:
                self._marks.doubt(position_of(first))
                self.version += 1
        if self._pending.newest:
            await self._append_pending()
        for _ in range(2 + _MOST_READ * self._max_marks // _PAGE):
            asked = self._now()
            page = ("XRANGE", self._stream, start, "+", "COUNT", _PAGE)
            reply, beginning = await listener.ask([page, self._first], _PATIENCE)
            some = entries(reply)
            if start != b"-":
                self._require_begun(beginning, start[1:])
            elif some:
                with self._lock:
                    self._marks.doubt(position_of(some[0][0]))
            self._apply(some)
            if len(some) < _PAGE:
                if not self._last:
                    raise _Gap("it was emptied while it was read")
                self._heard(asked)
                return
            start = b"(" + some[-1][0]
        await self._skip_to_the_end(listener)

    async def _skip_to_the_end(self, listener: Listener) -> None:
        """Read no more: somebody who does not cut the stream has written far more to it than is ever known here."""
        asked = self._now()
        (reply,) = await listener.ask([("XREVRANGE", self._stream, "+", "-", "COUNT", 1)], _PATIENCE)
        ((log_id, _),) = entries(reply)
        with self._lock:
            self._position, self._last = max(position_of(log_id), self._position), log_id
            self._marks.doubt(self._position)
            self.version += 1
        self._heard(asked)

    async def _listen(self, listener: Listener) -> None:
        """Wait for what is new, for a heartbeat at most. Raises _Gap when the stream is not what it was."""
        asked = self._now()
        stream, run_key = self._keys
        asking: list[Command] = [("XRANGE", stream, self._last, self._last), ("GET", run_key)]
        there, run = await listener.ask(asking, _PATIENCE)
        if len(entries(there)) != 1:
            raise _Gap("what was read last is not in it any more")
        if run is None and self._run:
            # Evicted. To be read once in a while keeps both keys from being the oldest that there are.
            await listener.ask([("SET", run_key, self._run, "NX")], _PATIENCE)
        heartbeat = min(self._heartbeat, _HURRY) if self._pending.newest else self._heartbeat
        block = max(1, int(heartbeat * 1000))
        news = ("XREAD", "COUNT", _PAGE, "BLOCK", block, "STREAMS", self._stream, self._last)
        reply, beginning = await listener.ask([news, self._first], heartbeat + _PATIENCE)
        some = [] if reply is None else of_one_stream(reply)
        if some:
            self._require_begun(beginning, self._last)
        self._apply(some)
        if len(some) < _PAGE:
            # Of what came since it was asked nothing is certain: the stream may have been emptied in between, and the
            # reply may have been on its way for long.
            self._heard(asked)
        if self._pending.newest:
            await self._append_pending()

    def _require_begun(self, beginning: object, read: bytes) -> None:
        """Raise _Gap if the stream, which has this *beginning*, was cut behind what was *read* last."""
        first = entries(beginning)
        if not first or position_of(first[0][0]) > position_of(read):
            raise _Gap("it was cut while it was read")

    def _apply(self, news: Entries) -> None:
        """Take in *news*, which follow each other and what is known. What is known already is passed over."""
        with self._lock:
            before = self._position
            for log_id, fields in news:
                position = position_of(log_id)
                if position <= self._position:
                    continue
                if seconds_of(position) * 1000 > self._latest:
                    raise _Gap("it has an entry of a time to come")
                _take(self._marks, position, fields)
                self._position, self._last = position, log_id
            if self._position != before:
                self.version += 1
                if self._pending.newest:
                    self._next_generation()

    def _now(self) -> tuple[float, float]:
        """Return the time by both clocks."""
        return self._clock.time(), self._monotonic()

    def _heard(self, at: tuple[float, float]) -> None:
        """Note that everything that was in the stream at *at* is known here."""
        self._synced_at = at
        if self._trouble is not None:
            self._trouble = None
            logger.info("the invalidation log is heard again")
            self._tell(LogChanged(is_heard=True, reason=""))
        self._wake()

    def _lost(self, error: Exception) -> None:
        first, self._trouble = self._trouble is None, error
        now = self._clock.time()
        if first or now >= self._told_at + _QUIET_SECONDS:
            self._told_at = now
            logger.warning(
                "the invalidation log cannot be heard (%s); what others invalidate is unknown",
                error,
                exc_info=None if isinstance(error, StoreError) else error,
            )
        if first:
            self._tell(LogChanged(is_heard=False, reason=str(error)))
        self._wake()

    def observe(self, observer: Observer) -> None:
        """Tell *observer* when the stream is not heard any more, and when it is again."""
        self._observers.append(observer)

    def _tell(self, event: LogChanged) -> None:
        for observer in self._observers:
            try:
                observer(event)
            except Exception:
                logger.exception("an observer failed; the log goes on")

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(None)


def _pending(most: int) -> Marks:
    # Room enough that it never forgets: what is more than *most* becomes one of everything.
    return Marks(4 * most)


def _take(marks: Marks, position: int, fields: dict[bytes, bytes]) -> None:
    """Take one entry of the stream into *marks*. One that is no invalidation says that the log begins anew."""
    payload = fields.get(b"marks")
    if payload is None:
        marks.doubt(position)
        return
    try:
        named = decode_marks(payload)
    except CodecError as error:
        # A later version's, or anybody's: whatever it is that it invalidates.
        logger.debug("an entry of the invalidation log is not understood: %s", error)
        marks.doubt(position)
        return
    for mark in named:
        marks.add(position, mark)


def _is_untouched(since: Since, news: Entries) -> bool:
    """Say whether *news* name nothing of what was changed."""
    marks = Marks(MAX_MARKS)
    for log_id, fields in news:
        _take(marks, position_of(log_id), fields)
    return marks.verdict(*since) is None
