"""
Users who are changed at once and saved soon after. `--once` shows it, else it serves.

A change is in Redis when it is answered, all workers read it from there, and one of them saves it to PostgreSQL. The
tour ends with a process that is killed before it could save: another one does. $POSTGRES_URL and $REDIS_URL say where
the servers are; a checkout with what its tests need starts servers in their place, which are gone at the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI
from psycopg_pool import AsyncConnectionPool

from echo_cache import Cache, HTTPCacheMiddleware, MemoryStore, RedisStore, TwoLevelStore, cached
from echo_cache.aside import CacheAside, Write

TABLE = "CREATE TABLE IF NOT EXISTS echo_user (id text PRIMARY KEY, name text, write_id uuid)"
# A write comes again when a process dies between saving and saying so. Its id grows with each write of a key, so what
# was saved once has no effect the second time.
SAVE = """
INSERT INTO echo_user (id, name, write_id) VALUES (%s, %s, %s)
ON CONFLICT (id) DO UPDATE SET name = excluded.name, write_id = excluded.write_id
WHERE echo_user.write_id < excluded.write_id
"""


class Users:
    """What every process has: the database, the values before it, and the saver by its name."""

    def __init__(self, database: AsyncConnectionPool[Any], cache: Cache) -> None:
        self._database = database
        self.cache = cache
        self.values = CacheAside(cache, "users")
        self._save = self.values.saver(name="users")(self.save)

    async def save(self, write: Write[str]) -> None:
        async with self._database.connection() as connection:
            await connection.execute(SAVE, (write.key, write.value, write.id))

    async def saved(self, user_id: str) -> str | None:
        """Return what the database has."""
        async with self._database.connection() as connection:
            found = await connection.execute("SELECT name FROM echo_user WHERE id = %s", (user_id,))
            row = await found.fetchone()
            return None if row is None else str(row[0])

    async def name(self, user_id: str) -> str | None:
        return await self.values.get(user_id, lambda: self.saved(user_id))

    async def rename(self, user_id: str, name: str) -> None:
        await self.values.write_behind(user_id, name, self._save)

    async def until_all_are_saved(self) -> None:
        while (await self.values.write_behind_stats()).waiting:  # noqa: ASYNC110  # another process may save
            await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def users(postgres_url: str, redis_url: str) -> AsyncIterator[Users]:
    cache = Cache(TwoLevelStore(MemoryStore(), RedisStore(redis_url, prefix="behind-example")))
    async with AsyncConnectionPool(postgres_url, min_size=1, kwargs={"autocommit": True}) as database, cache:
        async with database.connection() as connection:
            await connection.execute(TABLE)
        made = Users(database, cache)
        async with made.values:
            yield made


def app_of(users: Users) -> FastAPI:
    app = FastAPI()
    app.add_middleware(HTTPCacheMiddleware, cache=users.cache)

    @app.put("/users/{user_id}")
    async def rename(user_id: str, name: str) -> str:
        await users.rename(user_id, name)
        # It is in Redis, and is what the next page is made of.
        await users.cache.invalidate(tags=[f"user:{user_id}"])
        return "accepted"

    @app.get("/users/{user_id}")
    @cached(ttl=60, tags=["user:{user_id}"])
    async def show(user_id: str) -> str | None:
        return await users.name(user_id)

    return app


async def tour(postgres_url: str, redis_url: str) -> None:
    async with (
        users(postgres_url, redis_url) as ours,
        httpx.AsyncClient(transport=httpx.ASGITransport(app_of(ours)), base_url="http://shop") as client,
    ):
        for method, name in [("PUT", "Ada"), ("GET", "Ada"), ("GET", "Ada"), ("PUT", "Grace"), ("GET", "Grace")]:
            params = {"name": name} if method == "PUT" else {}
            response = await client.request(method, "/users/7", params=params)
            print(f"{method} /users/7  {response.status_code}  {response.headers['cache-status']}  {response.json()}")
            if method == "GET" and response.json() != name:
                sys.exit(f"expected {name}")
        await ours.until_all_are_saved()
        print(f"PostgreSQL has {await ours.saved('7')}")

        child = await asyncio.create_subprocess_exec(sys.executable, __file__, "--die", postgres_url, redis_url)
        print(f"another process wrote, and ended with {signal.Signals(-await child.wait()).name}")
        await ours.until_all_are_saved()
        saved = await ours.saved("8"), (await ours.values.write_behind_stats()).abandoned
        print(f"PostgreSQL has {saved[0]}, which this process has saved")
        if saved != ("Hedy", 0):
            sys.exit("expected what the killed process wrote")


async def die(postgres_url: str, redis_url: str) -> None:
    """Write, and be gone before it is saved."""
    async with users(postgres_url, redis_url) as ours:
        await ours.rename("8", "Hedy")
        os.kill(os.getpid(), signal.SIGKILL)


async def serve(postgres_url: str, redis_url: str) -> None:
    async with users(postgres_url, redis_url) as ours:
        await uvicorn.Server(uvicorn.Config(app_of(ours))).serve()


@contextlib.contextmanager
def servers() -> Iterator[tuple[str, str]]:
    """Yield the URLs of PostgreSQL and of Redis."""
    given = os.environ.get("POSTGRES_URL", ""), os.environ.get("REDIS_URL", "")
    if all(given):
        yield given
        return
    sys.path.append(str(Path(__file__).parent.parent))
    try:
        from tests.postgres import PostgresServer
        from tests.servers import RedisServer
    except ImportError:
        sys.exit("Set POSTGRES_URL and REDIS_URL: there is nothing here to start servers with.")
    with contextlib.ExitStack() as stack:
        postgres_url = given[0] or stack.enter_context(PostgresServer()).url
        redis_url = given[1] or stack.enter_context(RedisServer()).url
        yield postgres_url, redis_url


if __name__ == "__main__":
    if "--die" in sys.argv:
        asyncio.run(die(*sys.argv[2:]))
    else:
        with servers() as urls:
            asyncio.run(tour(*urls) if "--once" in sys.argv else serve(*urls))
