"""The cache's coroutines for threads that have no event loop of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from echo_cache.errors import ConfigurationError

__all__ = ["run_in_loop"]

_T = TypeVar("_T")


def run_in_loop(
    work: Coroutine[Any, Any, _T],
    loop: asyncio.AbstractEventLoop | None,
    finish: Callable[[], Awaitable[None]],
    timeout: float,
) -> _T:
    """
    Return the result of *work*, done in *loop*, which runs in another thread, or else in a loop for this alone.

    *finish* is awaited in the latter, so that nothing stays open in it. Raises ConfigurationError in a thread whose own
    event loop runs, and TimeoutError after *timeout* seconds; the work then goes on.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        pass
    else:
        work.close()
        raise ConfigurationError("this is an event loop's own thread, which would wait for itself: await invalidate()")
    if loop is not None and loop.is_running():
        return asyncio.run_coroutine_threadsafe(work, loop).result(timeout)

    async def alone() -> _T:
        try:
            async with asyncio.timeout(timeout):
                return await work
        finally:
            await finish()

    return asyncio.run(alone())
