"""Connections are taken and given back: never more than there may be, none lost, none with somebody else's reply."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio import Connection
from redis.asyncio.connection import parse_url
from redis.exceptions import ConnectionError as RedisConnectionError

from echo_cache.stores.redis.connections import pool_settings
from echo_cache.stores.redis.pool import Pool
from tests.redis_support import PATIENT, until
from tests.servers import RedisServer


def pool_of(url: str, max_connections: int) -> Pool:
    return Pool(**{"connection_class": Connection, **parse_url(url)}, **pool_settings(PATIENT, max_connections))


@pytest.fixture
async def pool(redis_url: str) -> AsyncIterator[Pool]:
    """A pool of two connections."""
    made = pool_of(redis_url, 2)
    yield made
    await made.aclose()


async def asked(connection: Any, *words: str) -> Any:
    await connection.send_command(*words)
    return await connection.read_response()


async def id_of(pool: Pool) -> int:
    """Return the number that the server has given to the connection that is taken next."""
    connection = await pool.get_connection()
    try:
        return int(await asked(connection, "CLIENT", "ID"))
    finally:
        await pool.release(connection)


async def test_an_idle_connection_is_used_again_the_latest_first(pool: Pool) -> None:
    one, two = await pool.get_connection(), await pool.get_connection()
    await pool.release(one)
    await pool.release(two)
    assert await pool.get_connection() is two
    assert await pool.get_connection() is one


async def test_who_finds_all_in_use_waits_and_the_first_comes_first(pool: Pool) -> None:
    taken = [await pool.get_connection() for _ in range(2)]
    order: list[int] = []

    async def take(number: int) -> None:
        connection = await pool.get_connection()
        order.append(number)
        await asyncio.sleep(0)
        await pool.release(connection)

    waiting = [asyncio.create_task(take(number)) for number in range(6)]
    for _ in range(5):
        await asyncio.sleep(0)
    assert order == []
    for connection in taken:
        await pool.release(connection)
    await asyncio.gather(*waiting)
    assert order == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("is_next", [False, True], ids=["while it waits", "when it is its turn"])
async def test_who_leaves_takes_no_connection_along(pool: Pool, *, is_next: bool) -> None:
    taken = [await pool.get_connection() for _ in range(2)]
    leaving, staying = (asyncio.create_task(pool.get_connection()) for _ in range(2))
    await asyncio.sleep(0)
    if is_next:
        await pool.release(taken.pop())
    leaving.cancel()
    await asyncio.wait([leaving])
    assert leaving.cancelled()
    for connection in taken:
        await pool.release(connection)
    await pool.release(await staying)
    for _ in range(2):
        assert await asyncio.gather(*[id_of(pool) for _ in range(4)])
    assert len({id(await pool.get_connection()) for _ in range(2)}) == 2


async def test_one_that_the_server_has_closed_is_connected_anew(pool: Pool, redis_server: RedisServer) -> None:
    connection = await pool.get_connection()
    before = await asked(connection, "CLIENT", "ID")
    redis_server.command("CLIENT", "KILL", "ID", str(before))
    await until(connection._reader.at_eof)
    await pool.release(connection)
    assert await id_of(pool) != before


async def test_one_with_a_reply_that_nobody_has_read_is_connected_anew(pool: Pool) -> None:
    connection = await pool.get_connection()
    before = await asked(connection, "CLIENT", "ID")
    await connection.send_command("ECHO", "somebody else's")
    other = await pool.get_connection()
    await asked(other, "PING")  # by now the reply has come
    await pool.release(other)
    await pool.release(connection)
    again = await pool.get_connection()
    assert again is connection
    assert await asked(again, "CLIENT", "ID") != before
    await pool.release(again)


@pytest.mark.parametrize("turns", range(4))
async def test_one_that_is_being_closed_is_taken_by_nobody(pool: Pool, turns: int) -> None:
    first = await pool.get_connection()
    before = await asked(first, "CLIENT", "ID")
    await pool.release(first)
    closing = asyncio.create_task(pool.disconnect(inuse_connections=False))
    for _ in range(turns + 1):
        await asyncio.sleep(0)
    connection = await pool.get_connection()
    assert connection is not first
    await closing
    assert await asked(connection, "CLIENT", "ID") != before
    await pool.release(connection)


async def test_one_that_was_given_back_while_it_was_being_closed_is_connected_anew(pool: Pool) -> None:
    connection = await pool.get_connection()
    before = await asked(connection, "CLIENT", "ID")
    closing = asyncio.create_task(connection.disconnect())
    await asyncio.sleep(0)
    await pool.release(connection)
    again = await pool.get_connection()
    await closing
    assert await asked(again, "CLIENT", "ID") != before
    await pool.release(again)


async def test_one_that_is_to_be_renewed_is_connected_anew(pool: Pool) -> None:
    connection = await pool.get_connection()
    before = await asked(connection, "CLIENT", "ID")
    connection.mark_for_reconnect()
    await pool.release(connection)
    assert await id_of(pool) != before


async def test_one_that_nobody_can_make_leaves_its_place_to_others(redis_url: str) -> None:
    pool = pool_of(redis_url, 1)
    sound = pool.connection_kwargs
    pool.connection_kwargs = {**sound, "no_such_option": 1}
    for _ in range(2):
        with pytest.raises(TypeError, match="no_such_option"):
            await pool.get_connection()
    pool.connection_kwargs = sound
    assert await id_of(pool) > 0
    await pool.aclose()


async def test_one_that_cannot_be_made_leaves_its_place_to_others() -> None:
    pool = pool_of("redis://127.0.0.1:1", 1)
    for _ in range(3):
        with pytest.raises(RedisConnectionError):
            await pool.get_connection()
    await pool.aclose()
