"""
The server that sentinels name. The one rule: each new connection asks who the primary is now, so what failed on the old
one leads to the new one.

Imports redis-py; imported when a store is made for sentinels.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

from redis.asyncio import Redis
from redis.asyncio.sentinel import (
    MasterNotFoundError,
    Sentinel,
    SentinelConnectionPool,
    SentinelManagedConnection,
    SentinelManagedSSLConnection,
)

from echo_cache.stores.redis.connections import connection_settings, first_answer, pool_settings
from echo_cache.stores.redis.pool import Pool
from echo_cache.stores.redis.urls import Address

__all__ = ["SentinelRedis", "managed_connection"]

# A sentinel is asked by one at a time; another connection may be on its way out.
_CONNECTIONS_TO_A_SENTINEL: Final = 4


def managed_connection(*, is_tls: bool) -> type[Any]:
    """Return the class of connections to a server that sentinels name."""
    return SentinelManagedSSLConnection if is_tls else SentinelManagedConnection


class _Sentinels(Sentinel):
    """
    Sentinels that are asked all at once; the first that knows a primary in good health is believed.

    redis-py asks one after the other. One that hangs would cost every new connection its time-out, and with two of
    three hanging each operation would be over before the third was asked.
    """

    def __init__(self, sentinels: Sequence[Address], timeout: float, **settings: Any) -> None:
        super().__init__(sentinels, sentinel_kwargs=settings)  # type: ignore[no-untyped-call]  # redis-py has no types
        self._timeout = timeout
        # The question under way, which is not of the one who waits first: it may be cancelled.
        self._search: asyncio.Task[tuple[str, int]] | None = None

    async def discover_master(self, service_name: str) -> tuple[str, int]:
        """Return the address of the primary. Raises MasterNotFoundError."""
        search = self._search
        if search is None or search.done():
            search = self._search = asyncio.create_task(self._discover(service_name))
            search.add_done_callback(_look_at)
        await asyncio.wait([search])
        return search.result()

    async def _discover(self, service: str) -> tuple[str, int]:
        try:
            async with asyncio.timeout(self._timeout):
                return await first_answer(self._ask(sentinel, service) for sentinel in self.sentinels)
        except Exception as error:
            raise MasterNotFoundError(
                f"none of {len(self.sentinels)} sentinels names a primary of {service!r}: {str(error) or 'no answer'}"
            ) from error

    async def _ask(self, sentinel: Any, service: str) -> tuple[str, int]:
        state = (await sentinel.sentinel_masters()).get(service)
        if state is None:
            raise MasterNotFoundError(f"no service of this name at {_where(sentinel)}")
        if not self.check_master_state(state, service):
            raise MasterNotFoundError(f"the primary is down by the word of {_where(sentinel)}")
        return state["ip"], state["port"]

    async def aclose(self) -> None:
        if self._search is not None:
            self._search.cancel()
            await asyncio.wait([self._search])
        await super().aclose()


class _Pool(SentinelConnectionPool, Pool):
    """A pool for the primary."""


class SentinelRedis(Redis):
    """
    A client for the primary of *service*, as redis.asyncio's `master_for` makes it, which also closes the sentinels.

    credentials: how the connections to the server are made; sentinel_credentials: those to the sentinels.
    """

    def __init__(
        self,
        sentinels: Sequence[Address],
        service: str,
        timeout: float,
        max_connections: int,
        credentials: dict[str, Any],
        sentinel_credentials: dict[str, Any],
    ) -> None:
        settings = {**connection_settings(timeout), "max_connections": _CONNECTIONS_TO_A_SENTINEL}
        self._sentinels = _Sentinels(sentinels, timeout, **sentinel_credentials, **settings)
        pool = _Pool(service, self._sentinels, **credentials, **pool_settings(timeout, max_connections))  # type: ignore[no-untyped-call]  # redis-py has no types
        super().__init__(connection_pool=pool)
        self.auto_close_connection_pool = True

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        """Close the connections to the server and to the sentinels."""
        try:
            await super().aclose(close_connection_pool)
        finally:
            await self._sentinels.aclose()


def _where(sentinel: Any) -> str:
    where = sentinel.connection_pool.connection_kwargs
    return f"{where['host']}:{where['port']}"


def _look_at(search: asyncio.Task[Any]) -> None:
    """Those who waited may have left; nobody is to hear of an error "never retrieved"."""
    if not search.cancelled():
        search.exception()
