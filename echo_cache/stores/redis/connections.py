"""
How servers are connected to and talked to. The one rule: redis-py's defaults, which are wrong for a cache, are set
right here and nowhere else.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, Final, TypeAlias, TypeVar

__all__ = [
    "OwnConnection",
    "Words",
    "ask",
    "close_idle",
    "connection_settings",
    "first_answer",
    "own_connection",
    "pool_settings",
]

_T = TypeVar("_T")

Words: TypeAlias = tuple[str | bytes | int, ...]
"""A command with its arguments."""

# An idle connection is tested by PING before it is used again, so that one that a firewall dropped in silence costs a
# fresh connection and not a time-out. Shorter than the idle limits of common load balancers (60 s and more).
_HEALTH_CHECK_INTERVAL: Final = 30.0


def connection_settings(timeout: float) -> dict[str, Any]:
    """Return what every connection is made with; *timeout*: how long connecting may take, in seconds."""
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    return {
        # The store's own time budget bounds the wait for a connection, the command and the reply as a whole. A socket
        # time-out beside it would bound nothing more, and costs a task and a timer for each command.
        "socket_timeout": None,
        "socket_connect_timeout": timeout,
        # By default a command to a dead server is tried eleven times, for 4 s. A cache has the app to ask.
        "retry": Retry(NoBackoff(), 0),
        "health_check_interval": _HEALTH_CHECK_INTERVAL,
        # RESP2 keeps redis-py's maintenance notifications off, which need RESP3. With them on, redis-py 8.1 does not
        # look for left-over bytes on a connection, and one key's value was seen to answer another's read.
        "protocol": 2,
        "decode_responses": False,
    }


def pool_settings(timeout: float, max_connections: int) -> dict[str, Any]:
    """Return what a Pool is made with; *timeout*: how long connecting may take, in seconds."""
    return {"max_connections": max_connections, **connection_settings(timeout)}


async def own_connection(pool: Any, timeout: float, failed: Callable[[Exception], None] | None = None) -> OwnConnection:
    """
    Return a new connection to where those of *pool* lead, which is not one of them and does not count among them.

    timeout: how long connecting may take, in seconds; what comes after, such as logging in, is the caller's to bound.
    failed: is told what has ended the connection. Raises what redis-py raises.
    """
    # Not by `pool.make_connection`: a ready client's time-outs would end a long wait, and its RESP3 would give replies
    # another shape.
    settings = {name: value for name, value in pool.connection_kwargs.items() if not _is_left_out(name)}
    settings |= {**connection_settings(timeout), "health_check_interval": 0}
    connection = pool.connection_class(**settings)
    try:
        await connection.connect()
    except BaseException:
        await connection.disconnect(nowait=True)
        raise
    return OwnConnection(connection, failed)


def _is_left_out(setting: str) -> bool:
    """Return whether *setting* of a pool is not for a connection outside of it: retries, maintenance notifications."""
    return "maint" in setting or setting.startswith(("orig_", "retry_on_"))


class OwnConnection:
    """
    A connection that is in no pool, for whoever waits long for an answer. It connects once and never again.

    failed: is told what has ended it.
    """

    __slots__ = ("_connection", "_failed", "_is_busy")

    def __init__(self, connection: Any, failed: Callable[[Exception], None] | None = None) -> None:
        self._connection = connection
        self._failed = failed
        self._is_busy = False

    def __repr__(self) -> str:
        state = "closed" if not self.is_open else "waits for replies" if self._is_busy else "idle"
        return f"<OwnConnection [{state}]>"

    @property
    def is_open(self) -> bool:
        """Whether it was neither closed nor ended by a failure, as far as is known here."""
        return bool(self._connection.is_connected)

    async def ask(self, commands: Sequence[Words], timeout: float) -> list[object]:
        """
        Return the replies to *commands*, which go out in one write, in their order.

        timeout: how long all of them may take, in seconds. Raises TimeoutError, what redis-py raises, and the first
        reply that is an error. Whatever is raised, and also if the caller is cancelled, the connection is closed then:
        a late reply answers nobody.
        """
        from redis.exceptions import ConnectionError as RedisConnectionError

        if self._is_busy:
            raise RedisConnectionError("the connection waits for other replies")
        if not self.is_open:
            raise RedisConnectionError("the connection is closed")
        self._is_busy = True
        try:
            async with asyncio.timeout(timeout):
                if await self._connection.can_read():  # a reply to nothing, or the server has closed it
                    raise RedisConnectionError("the connection was lost")
                # Without redis-py's check of its health: a PING's reply would come among the others.
                packed = self._connection.pack_commands(commands)
                await self._connection.send_packed_command(packed, check_health=False)
                return [await self._connection.read_response() for _ in commands]
        except BaseException as error:
            await self._connection.disconnect(nowait=True)
            if self._failed is not None and isinstance(error, Exception):
                self._failed(error)
            raise
        finally:
            self._is_busy = False

    async def aclose(self) -> None:
        """Close it; whoever waits for replies is told that it was lost. Never raises; a second call does nothing."""
        with contextlib.suppress(Exception):
            await self._connection.disconnect()


async def ask(pool: Any, commands: Sequence[Words]) -> list[object]:
    """
    Return the replies to *commands*, in order, from a connection of *pool*; an error reply stands in its place.

    One round trip. Whatever ends it early closes the connection, as replies may still be on their way.
    """
    connection = await pool.get_connection()
    try:
        await connection.send_packed_command(connection.pack_commands(commands))
        return [await _reply(connection) for _ in commands]
    except BaseException:
        await connection.disconnect(nowait=True)
        raise
    finally:
        await pool.release(connection)


async def close_idle(pool: Any) -> None:
    """Close the connections of *pool* that nobody uses. Never raises."""
    # Taken out first: one that is taken while it is being closed would be closed under whoever has connected it anew.
    idle = pool._available_connections
    leaving = [idle.pop() for _ in range(len(idle))]
    await asyncio.gather(*[connection.disconnect() for connection in leaving], return_exceptions=True)


async def _reply(connection: Any) -> object:
    from redis.exceptions import ResponseError

    try:
        return await connection.read_response()
    except ResponseError as error:
        return error


async def first_answer(questions: Iterable[Coroutine[Any, Any, _T]]) -> _T:
    """
    Return what the first of *questions* gives, asked all at once, and end the others: one who hangs delays nobody.

    Raises the last error when all fail.
    """
    tasks = {asyncio.ensure_future(question) for question in questions}
    waiting = tasks
    error: BaseException | None = None
    try:
        while waiting:
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                error = task.exception()
                if error is None:
                    return task.result()
        assert error is not None
        raise error
    finally:
        for task in tasks:
            task.cancel()
        # What the others end with is of no interest, but it must have been looked at.
        await asyncio.gather(*tasks, return_exceptions=True)
        error = None
