"""
How servers are connected to and talked to. The one rule: redis-py's defaults, which are wrong for a cache, are set
right here and nowhere else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Sequence
from typing import Any, Final, TypeAlias, TypeVar

__all__ = ["Words", "ask", "connection_settings", "first_answer", "pool_settings"]

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
    """Return what a BlockingConnectionPool is made with: who finds all connections in use waits, within its budget."""
    return {"max_connections": max_connections, "timeout": None, **connection_settings(timeout)}


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
