"""Looks below memory: one for all who look for the same at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, TypeAlias

from echo_cache.coordination.flight import Passenger, Receive
from echo_cache.model import CacheKey, Entry

__all__ = ["UNANSWERED", "Found", "Lane", "Look"]

Lane: TypeAlias = tuple[CacheKey, bool]
"""A key, and whether the request has credentials: the two kinds do not wait for each other."""

Found: TypeAlias = tuple[Entry | None, bool]
"""The newest entry that a request selects, and whether its key is known to have others."""


UNANSWERED: Final[Found] = (None, False)
"""What is found where the store did not say: this very object."""

# How many of those who have waited go on in one turn of the event loop: a quarter of a millisecond of work.
_AT_ONCE: Final = 8

_Waiter: TypeAlias = "asyncio.Future[Found | Passenger | None]"


class Look:
    """
    A look below memory that a request does for itself, and that others wait for.

    Where nothing is found, the one who has looked calls the app, and those who waited for the look wait for that: they
    are aboard before the call begins. Then they go on, a few at a time, as whatever the call waits for next comes
    between them, and need not wait for hundreds. Each has a future of its own, so that it may leave.
    """

    __slots__ = ("_waiters", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._waiters: list[tuple[_Waiter, Receive]] = []

    async def found(self, receive: Receive) -> Found | Passenger | None:
        """
        Wait for what is found, or for a place on the call of the app that followed.

        None: the request that looked was cancelled. *receive* tells whether the client of this one is still there.
        """
        waiter: _Waiter = self.loop.create_future()
        self._waiters.append((waiter, receive))
        try:
            return await waiter
        except BaseException:
            if waiter.done() and not waiter.cancelled() and isinstance(passenger := waiter.result(), Passenger):
                passenger.leave()
            raise

    def settle(self, found: Found | None, join: Callable[[Receive], Passenger | None]) -> None:
        """
        Tell those who wait, beginning in the next turn of the event loop.

        The one who looked may begin a call of the app in this one; *join* gives places on it.
        """
        self.loop.call_soon(self._board, found, join)

    def _board(self, found: Found | None, join: Callable[[Receive], Passenger | None]) -> None:
        nothing = found == (None, False)
        waiting = [(waiter, receive) for waiter, receive in self._waiters if not waiter.done()]
        self._tell([(waiter, (join(receive) if nothing else None) or found) for waiter, receive in waiting])

    def _tell(self, told: list[tuple[_Waiter, Found | Passenger | None]]) -> None:
        for waiter, what in told[:_AT_ONCE]:
            if not waiter.done():
                waiter.set_result(what)
            elif isinstance(what, Passenger):
                what.leave()  # its request was cancelled before it could be told
        if len(told) > _AT_ONCE:
            self.loop.call_soon(self._tell, told[_AT_ONCE:])
