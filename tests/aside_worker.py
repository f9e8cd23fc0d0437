"""
A worker process with callers of one value. It says what it does, a line each, and begins when it is told to.

    python -m tests.aside_worker URL CALLERS FETCH_SECONDS LOCK_TIMEOUT
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any

from echo_cache import MemoryStore, RedisStore, TwoLevelStore
from echo_cache.aside import CacheAside
from tests.redis_support import PATIENT


def tell(*words: object) -> None:
    """Say one thing."""
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


async def work(url: str, callers: int, seconds: float, lock_timeout: float) -> None:
    """Be the worker."""

    async def fetch() -> dict[str, Any]:
        tell("fetch", os.getpid())
        await asyncio.sleep(seconds)
        return {"by": os.getpid()}

    store = TwoLevelStore(MemoryStore(), RedisStore(url, timeout=PATIENT))
    async with CacheAside(store) as aside:
        await aside.get("warm", fetch_nothing)
        tell("ready")
        await asyncio.to_thread(sys.stdin.readline)
        calls = [aside.get_with_lock("key", fetch, 3600, lock_timeout) for _ in range(callers)]
        tell("got", json.dumps(await asyncio.gather(*calls)))


async def fetch_nothing() -> str:
    """Fetch at once: so that the connections and the log are there."""
    return ""


if __name__ == "__main__":
    asyncio.run(work(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])))
