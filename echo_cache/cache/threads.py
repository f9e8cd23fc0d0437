"""The cache's coroutines for threads that have no event loop of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from threading import Lock
from typing import Any, Final, TypeVar

from echo_cache.errors import ConfigurationError

__all__ = ["run_alone", "run_in_loop"]

_T = TypeVar("_T")

# One at a time: what they share (a log, its server's connections) is of one event loop at a time.
_alone: Final = Lock()


def run_in_loop(work: Coroutine[Any, Any, _T], loop: asyncio.AbstractEventLoop, timeout: float) -> _T:
    """
    Return the result of *work*, done in *loop*, which runs in another thread.

    Raises ConfigurationError in a thread whose own event loop runs, and TimeoutError after *timeout* seconds; the work
    then goes on.
    """
    _require_no_loop(work)
    return asyncio.run_coroutine_threadsafe(work, loop).result(timeout)


def run_alone(work: Coroutine[Any, Any, _T], finish: Callable[[], Awaitable[None]], timeout: float) -> _T:
    """
    Return the result of *work*, done in an event loop for this alone; *finish* is awaited in it at the end.

    Raises ConfigurationError in a thread whose own event loop runs, and TimeoutError after *timeout* seconds.
    """
    _require_no_loop(work)

    async def alone() -> _T:
        try:
            async with asyncio.timeout(timeout):
                return await work
        finally:
            await finish()

    with _alone:
        return asyncio.run(alone())


def _require_no_loop(work: Coroutine[Any, Any, Any]) -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    work.close()
    raise ConfigurationError("this is an event loop's own thread, which would wait for itself: await invalidate()")
