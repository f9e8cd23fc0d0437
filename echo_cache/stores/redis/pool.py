"""
The connections to one server, for one event loop. The one rule: to take one and to give it back costs nearly nothing.

Imports redis-py; imported when a store connects.
"""

from __future__ import annotations

import asyncio
from typing import Any

from redis.asyncio import ConnectionPool
from redis.exceptions import ConnectionError as RedisConnectionError

from echo_cache.stores.redis.connections import close_idle

__all__ = ["Pool"]


class Pool(ConnectionPool):
    """
    A pool in which who finds all connections in use waits for one, first come first served.

    redis-py's BlockingConnectionPool is that, too. Its conditions, locks, timers and metrics take a fifth of the time
    of a read; here a semaphore does it. What is left out are redis-py's metrics of connections, and its event when one
    is given back, by which credentials that expire are renewed: no credentials of that kind come here.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._free = asyncio.Semaphore(self.max_connections)

    async def get_connection(self, command_name: object = None, *keys: object, **options: object) -> Any:
        """Return a connection that is ready for a command. Raises what redis-py raises when it cannot be made."""
        await self._free.acquire()
        try:
            connection = self.get_available_connection()  # type: ignore[no-untyped-call]  # redis-py has no types
        except BaseException:
            self._free.release()
            raise
        try:
            if not await _is_ready(connection):
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


async def _is_ready(connection: Any) -> bool:
    """Return whether *connection* can be used: it is open, nobody wants it renewed, and all replies were read."""
    if connection.should_reconnect():
        await connection.disconnect()
    try:
        return connection.is_connected and not await connection.can_read()
    except RedisConnectionError:  # it is being closed
        return False
