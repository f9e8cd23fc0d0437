"""
The connections to one server, for one event loop. The one rule: to take one and to give it back costs nearly nothing.

Imports redis-py; imported when a store connects.
"""

from __future__ import annotations

import asyncio
from typing import Any

from redis.asyncio import ConnectionPool

from echo_cache.stores.redis.connections import close_idle

__all__ = ["Pool"]


class Pool(ConnectionPool):
    """
    A pool in which who finds all connections in use waits for one, first come first served.

    redis-py's BlockingConnectionPool is that, too. Its conditions, locks, timers and metrics take a fifth of the time
    of a read; here a semaphore does it. redis-py's own metrics do not count these connections.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._free = asyncio.Semaphore(self.max_connections)

    async def get_connection(self, command_name: object = None, *keys: object, **options: object) -> Any:
        """Return a connection that is ready for a command. Raises what redis-py raises when it cannot be made."""
        await self._free.acquire()
        connection = self.get_available_connection()  # type: ignore[no-untyped-call]  # redis-py has no types
        try:
            # Else nobody has closed it, and whoever had it has read all replies.
            if not connection.is_connected or await connection.can_read():
                await self.ensure_connection(connection)
        except BaseException:
            await self.release(connection)
            raise
        return connection

    async def release(self, connection: Any) -> None:
        """Take *connection* back, for the next who asks."""
        self._in_use_connections.remove(connection)
        self._available_connections.append(connection)
        self._free.release()

    async def disconnect(self, inuse_connections: bool = True) -> None:
        """Close the connections that nobody uses, and unless told otherwise those in use under whoever uses them."""
        await close_idle(self)
        if inuse_connections:
            await super().disconnect()
