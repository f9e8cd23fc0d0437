"""
What the workers that share a Redis tell each other of themselves: each its report, every few seconds.

The one rule: it is for whoever looks on. No request waits for it, and what comes from Redis is data of strangers.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import secrets
import socket
from collections.abc import Callable
from typing import Final

from echo_cache.coordination.server import Server
from echo_cache.errors import StoreError

__all__ = ["MAX_WORKERS", "Identity", "Workers"]

logger = logging.getLogger("echo_cache")

MAX_WORKERS: Final = 256
"""How many reports are kept and read. Whoever can write to Redis can add some."""

MAX_REPORT_BYTES: Final = 8 * 1024
# What all of them may have together: no answer of Redis should take as long as a request may wait.
_MOST_BYTES: Final = 1024 * 1024

# How many reports may fail to come before a worker is taken for gone.
_PATIENCE: Final = 5
_LONGEST_LIFE_MS: Final = 3_600_000
_MOST_DIGITS: Final = 15
# How servers say that a user may not do this, or not in a script.
_REFUSALS: Final = ("NOPERM", "ACL failure", "can't run this command")
# What an exchange is for, beside telling a report.
_ALL: Final = 1
_RESET: Final = 2
# So that workers which start together do not all report in one moment.
_JITTER: Final = 0.1

# Keep a report, if there is one, drop those of workers that are gone, and return what is asked for.
#
# KEYS[1]  the hash of all reports: by the worker's name, until when it counts, a colon, the report. The time is the
#          server's in milliseconds, so each worker says for itself how long it is to be waited for.
# ARGV[1]  the name of the worker, "" for none    ARGV[2]  its report, "" to take it back
# ARGV[3]  milliseconds until it is taken for gone    ARGV[4]  how many reports there may be
# ARGV[5]  "1" to have all reports, "2" to have statistics reset everywhere
# ARGV[6]  the longest that a report may count, in milliseconds
# ARGV[7]  how many bytes one report may have       ARGV[8]  and all of them
# Returns  how often statistics were reset everywhere, then the reports, in no order, if they are asked for.
EXCHANGE: Final = """
local time = redis.call('TIME')
local now, life, most = time[1] * 1000 + math.floor(time[2] / 1000), tonumber(ARGV[3]), tonumber(ARGV[4])
local longest, room = tonumber(ARGV[7]) + 20, tonumber(ARGV[8])
if redis.call('TYPE', KEYS[1]).ok ~= 'hash' then redis.call('DEL', KEYS[1]) end
if redis.call('HLEN', KEYS[1]) > 2 * most then redis.call('DEL', KEYS[1]) end
-- What there is, sound and in time; the rest is dropped, before much of it is read.
local function sound()
  local kept = {}
  for _, name in ipairs(redis.call('HKEYS', KEYS[1])) do
    if name ~= 'resets' then
      local size = redis.call('HSTRLEN', KEYS[1], name)
      local told = size <= longest and size <= room and redis.call('HGET', KEYS[1], name)
      local colon = told and string.find(told, ':', 1, true)
      local ends = colon and tonumber(string.sub(told, 1, colon - 1))
      if ends and ends >= now and ends <= now + tonumber(ARGV[6]) then
        room = room - size
        kept[#kept + 1] = string.sub(told, colon + 1)
      elseif size > longest or ends or told then
        redis.call('HDEL', KEYS[1], name)
      end
    end
  end
  return kept
end
local is_full = redis.call('HLEN', KEYS[1]) >= most
if is_full then sound() end
if ARGV[1] ~= '' then
  if ARGV[2] == '' then
    redis.call('HDEL', KEYS[1], ARGV[1])
  elseif redis.call('HEXISTS', KEYS[1], ARGV[1]) == 1 or redis.call('HLEN', KEYS[1]) < most then
    redis.call('HSET', KEYS[1], ARGV[1], string.format('%.0f', now + life) .. ':' .. ARGV[2])
    if redis.call('PTTL', KEYS[1]) < life then redis.call('PEXPIRE', KEYS[1], life) end
  end
end
if ARGV[5] == '2' then
  redis.call('HINCRBY', KEYS[1], 'resets', 1)
  if redis.call('PTTL', KEYS[1]) < life then redis.call('PEXPIRE', KEYS[1], life) end
end
local found = {redis.call('HGET', KEYS[1], 'resets') or '0'}
if ARGV[5] ~= '1' then return found end
room = tonumber(ARGV[8])
for _, report in ipairs(sound()) do found[#found + 1] = report end
return found
"""


class Identity:
    """What a worker is called among all: a name of its own in each process, so a fork is another worker."""

    def __init__(self) -> None:
        self._pid = 0
        self._name = ""

    def __repr__(self) -> str:
        return f"<Identity {self.name}>"

    @property
    def name(self) -> str:
        """The host, the process, and what makes it another one than before."""
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._name = f"{socket.gethostname()[:64]}-{self._pid}-{secrets.token_hex(4)}"
        return self._name


class Workers:
    """
    The workers that share *server*, this one among them.

    identity: names this one. report: makes its report. every: how often that is told, in seconds. reset: called when
    another worker has statistics begin anew.
    """

    def __init__(
        self,
        server: Server,
        identity: Identity,
        report: Callable[[], bytes],
        every: float,
        reset: Callable[[], object],
    ) -> None:
        self._server = server
        self._identity = identity
        self._report = report
        self._every = every
        self._reset = reset
        self._name = f"{server.prefix}:workers"
        # How often statistics were reset everywhere, as far as is known here.
        self._resets: int | None = None
        self._pid = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Workers {self._server.location} [{self._identity.name} tells every {self._every} s]>"

    def follow(self) -> None:
        """See to it that this worker reports: in the running event loop, unless another one that runs does it."""
        task, loop = self._task, self._loop
        if task is not None and not task.done() and self._pid == os.getpid():
            assert loop is not None
            if loop is asyncio.get_running_loop() or loop.is_running():
                return
        self._loop = asyncio.get_running_loop()
        self._pid = os.getpid()
        self._task = self._loop.create_task(self._tell())

    async def all(self) -> list[bytes]:
        """Tell this worker's report, and return those of all workers. Raises StoreError."""
        return await self._exchange(self._report(), wanted=_ALL)

    async def others(self) -> list[bytes]:
        """Return the reports of all workers, for one that tells none. Raises StoreError."""
        return await self._exchange(b"", "", wanted=_ALL)

    async def reset(self) -> None:
        """Have all other workers begin to count anew. Raises StoreError."""
        await self._exchange(b"", "", wanted=_RESET)

    async def aclose(self) -> None:
        """Stop, and take this worker's report back if the server answers. It can be used again."""
        task = self._task
        if task is None or self._loop is not asyncio.get_running_loop() or self._pid != os.getpid():
            return
        self._task = None
        task.cancel()
        await asyncio.wait([task])
        try:
            await self._exchange(b"")
        except StoreError as error:
            logger.debug("the report of this worker was not taken back: %s", error)

    async def _tell(self) -> None:
        while True:
            await asyncio.sleep(self._every * random.uniform(1 - _JITTER, 1 + _JITTER))
            try:
                await self._exchange(self._report())
            except StoreError as error:
                if any(sign in str(error) for sign in _REFUSALS):
                    # It would be so each time, and be counted as an error of the store each time.
                    logger.warning("Redis does not permit workers to report, so a dashboard shows one alone: %s", error)
                    return
                logger.debug("the report of this worker was not told: %s", error)
            except Exception:
                logger.exception("the report of this worker could not be made")

    async def _exchange(self, report: bytes, name: str | None = None, *, wanted: int = 0) -> list[bytes]:
        life = min(int(self._every * _PATIENCE * 1000), _LONGEST_LIFE_MS)
        own = self._identity.name if name is None else name
        words = (own, report, life, MAX_WORKERS, wanted, _LONGEST_LIFE_MS, MAX_REPORT_BYTES, _MOST_BYTES)
        found = await self._server.evaluate(EXCHANGE, (self._name,), words)
        resets, *reports = found if isinstance(found, list) and found else [b""]
        self._note_resets(resets, is_own=wanted == _RESET)
        return [raw for raw in reports[:MAX_WORKERS] if isinstance(raw, bytes) and len(raw) <= MAX_REPORT_BYTES]

    def _note_resets(self, told: object, *, is_own: bool) -> None:
        """Begin anew if others want that; what was so before this worker came is nothing to it."""
        resets = int(told) if isinstance(told, bytes) and told.isdigit() and len(told) <= _MOST_DIGITS else 0
        known, self._resets = self._resets, resets
        if known is not None and resets > known and not is_own:
            self._reset()
