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

__all__ = ["MAX_WORKERS", "Workers"]

logger = logging.getLogger("echo_cache")

MAX_WORKERS: Final = 256
"""How many reports are kept and read. Whoever can write to Redis can add some."""

MAX_REPORT_BYTES: Final = 64 * 1024

# How many reports may fail to come before a worker is taken for gone.
_PATIENCE: Final = 5
_LONGEST_LIFE_MS: Final = 3_600_000
# So that workers which start together do not all report in one moment.
_JITTER: Final = 0.1

# Keep a report, if there is one, drop those of workers that are gone, and return what is asked for.
#
# KEYS[1]  the hash of all reports: by the worker's name, until when it counts, a colon, the report. The time is the
#          server's in milliseconds, so each worker says for itself how long it is to be waited for.
# ARGV[1]  the name of the worker, "" for none    ARGV[2]  its report, "" to take it back
# ARGV[3]  milliseconds until it is taken for gone    ARGV[4]  how many reports there may be
# ARGV[5]  "1" to have all reports                  ARGV[6]  the longest that a report may count, in milliseconds
# Returns  the reports, in no order; empty if they are not asked for.
EXCHANGE: Final = """
local time = redis.call('TIME')
local now, life, most = time[1] * 1000 + math.floor(time[2] / 1000), tonumber(ARGV[3]), tonumber(ARGV[4])
if redis.call('TYPE', KEYS[1]).ok ~= 'hash' then redis.call('DEL', KEYS[1]) end
if redis.call('HLEN', KEYS[1]) > 2 * most then redis.call('DEL', KEYS[1]) end
if ARGV[1] ~= '' then
  if ARGV[2] == '' then
    redis.call('HDEL', KEYS[1], ARGV[1])
  elseif redis.call('HEXISTS', KEYS[1], ARGV[1]) == 1 or redis.call('HLEN', KEYS[1]) < most then
    redis.call('HSET', KEYS[1], ARGV[1], string.format('%.0f', now + life) .. ':' .. ARGV[2])
    if redis.call('PTTL', KEYS[1]) < life then redis.call('PEXPIRE', KEYS[1], life) end
  end
end
local found = {}
if ARGV[5] ~= '1' then return found end
local all = redis.call('HGETALL', KEYS[1])
for at = 1, #all, 2 do
  local colon = string.find(all[at + 1], ':', 1, true)
  local ends = colon and tonumber(string.sub(all[at + 1], 1, colon - 1))
  if ends and ends >= now and ends <= now + tonumber(ARGV[6]) then
    found[#found + 1] = string.sub(all[at + 1], colon + 1)
  else
    redis.call('HDEL', KEYS[1], all[at])
  end
end
return found
"""


class Workers:
    """
    The workers that share *server*, this one among them.

    report: makes this worker's report. every: how often it is told, in seconds.
    """

    def __init__(self, server: Server, report: Callable[[], bytes], every: float) -> None:
        self._server = server
        self._report = report
        self._every = every
        self._name = f"{server.prefix}:workers"
        # Of the process: a fork is another worker.
        self._pid = 0
        self._id = ""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Workers {self._server.location} [{self.id} tells every {self._every} s]>"

    @property
    def id(self) -> str:
        """What this worker is called among all."""
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._id = f"{socket.gethostname()[:64]}-{self._pid}-{secrets.token_hex(4)}"
        return self._id

    def follow(self) -> None:
        """See to it that this worker reports: in the running event loop, unless another one that runs does it."""
        task, loop = self._task, self._loop
        if task is not None and not task.done() and self._pid == os.getpid():
            assert loop is not None
            if loop is asyncio.get_running_loop() or loop.is_running():
                return
        self._loop = asyncio.get_running_loop()
        self._task = self._loop.create_task(self._tell())

    async def all(self) -> list[bytes]:
        """Tell this worker's report, and return those of all workers. Raises StoreError."""
        return await self._exchange(self._report(), everybody=True)

    async def others(self) -> list[bytes]:
        """Return the reports of all workers, for one that tells none. Raises StoreError."""
        return await self._exchange(b"", "", everybody=True)

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
                logger.debug("the report of this worker was not told: %s", error)
            except Exception:
                logger.exception("the report of this worker could not be made")

    async def _exchange(self, report: bytes, name: str | None = None, *, everybody: bool = False) -> list[bytes]:
        life = min(int(self._every * _PATIENCE * 1000), _LONGEST_LIFE_MS)
        words = (self.id if name is None else name, report, life, MAX_WORKERS, int(everybody), _LONGEST_LIFE_MS)
        found = await self._server.evaluate(EXCHANGE, (self._name,), words)
        reports = found if isinstance(found, list) else []
        return [raw for raw in reports[:MAX_WORKERS] if isinstance(raw, bytes) and len(raw) <= MAX_REPORT_BYTES]
