"""Looks below memory: one for all who look for the same at the same time."""

from __future__ import annotations

import asyncio
from typing import Final, TypeAlias

from echo_cache.model import CacheKey, Entry

__all__ = ["UNANSWERED", "Found", "Lane", "Look"]

Lane: TypeAlias = tuple[CacheKey, bool]
"""A key, and whether the request has credentials: the two kinds do not wait for each other."""

Found: TypeAlias = tuple[Entry | None, bool]
"""The newest entry that a request selects, and whether its key is known to have others."""


UNANSWERED: Final[Found] = (None, False)
"""What is found where the store did not say: this very object."""


class Look:
    """
    A look below memory that a request does for itself, and that others wait for.

    Each of them has a future of its own, so that it may leave, and goes on two turns after the look at the latest: later
    the call of the app that follows a miss may be over, and they would call it again. (asyncio.shield takes more.)
    """

    __slots__ = ("_waiters", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._waiters: list[asyncio.Future[Found | None]] = []

    async def found(self) -> Found | None:
        """Wait for what is found; None: the request that looked was cancelled."""
        waiter: asyncio.Future[Found | None] = self.loop.create_future()
        self._waiters.append(waiter)
        return await waiter

    def settle(self, found: Found | None) -> None:
        """Tell those who wait."""
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(found)
