"""
The Redis that workers share, as coordination sees it: two narrow protocols, which a store's servers fulfil.

The one rule: whatever is wrong with the server is a StoreError, in time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias

__all__ = ["Command", "Listener", "Server"]

Command: TypeAlias = tuple[str | bytes | int, ...]
"""A command of Redis with its arguments."""


class Listener(Protocol):
    """A connection of its own, for whoever waits long for an answer. One `ask` at a time."""

    async def ask(self, commands: Sequence[Command], timeout: float) -> list[object]:
        """
        Return the replies to *commands*, which are sent at once, in their order.

        timeout: how long all of them may take, in seconds. Raises StoreError when the server cannot be asked or
        replies with an error, StoreTimeout when it does not answer in time. After that the connection is of no use
        any more: close it.
        """
        ...

    async def aclose(self) -> None:
        """Close the connection. Never raises; a second call does nothing."""
        ...


class Server(Protocol):
    """A Redis server, or a cluster of them, that all workers share."""

    @property
    def location(self) -> str:
        """Where it is, without secrets."""
        ...

    @property
    def prefix(self) -> str:
        """What the names of all our keys begin with."""
        ...

    async def read(self, name: str) -> bytes | None:
        """Return the string under *name*, None when there is none. Batched with others' reads. Raises StoreError."""
        ...

    async def evaluate(self, script: str, keys: Sequence[str], words: Sequence[str | bytes | int]) -> object:
        """
        Return what the Lua *script* gives; its *keys* are in one slot. One round trip, two when it is new there.

        Raises StoreError, StoreTimeout; the script may have run all the same if it is StoreTimeout, or if the caller
        is cancelled.
        """
        ...

    async def listen(self, name: str) -> Listener:
        """Return a new connection to the server that has the key *name*. Raises StoreError."""
        ...
