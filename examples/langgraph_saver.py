"""
A chat with LangGraph: its checkpoints in PostgreSQL, read through Redis. `--once` shows it, else it serves.

The graph reads its thread at each turn: from Redis, if no worker has changed it since. The page of a chat is an HTTP
response like any other, and cached as one. $POSTGRES_URL and $REDIS_URL say where the servers are; a checkout with what
its tests need starts servers in their place, which are gone at the end. $CACHE_SECRET signs what is in Redis.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.graph import END, START, MessagesState, StateGraph

from echo_cache import Cache, HTTPCacheMiddleware, MemoryStore, RedisStore, TwoLevelStore, cached
from echo_cache.fastapi import CacheDep
from echo_cache.integrations.langgraph import CachedPostgresSaver


def answer(state: MessagesState) -> dict[str, Any]:
    """Return what a model would say."""
    return {"messages": [AIMessage(f"You said: {state['messages'][-1].content}")]}


builder = StateGraph(MessagesState).add_node(answer).add_edge(START, "answer").add_edge("answer", END)


@contextlib.asynccontextmanager
async def chat(postgres_url: str, redis_url: str) -> AsyncIterator[tuple[FastAPI, CachedPostgresSaver]]:
    """Yield the app and its checkpointer."""
    # All workers must have the same secret; one that is made up is good for a single process.
    store = RedisStore(redis_url, prefix="chat", secret=os.environ.get("CACHE_SECRET") or secrets.token_hex())
    async with (
        AsyncPostgresSaver.from_conn_string(postgres_url) as postgres,
        CachedPostgresSaver(postgres, store) as saver,
    ):
        await saver.setup()
        pages = Cache(TwoLevelStore(MemoryStore(), store))
        yield chat_app(saver, pages), saver
        await pages.aclose()
    await store.aclose()


def chat_app(saver: CachedPostgresSaver, pages: Cache) -> FastAPI:
    graph = builder.compile(checkpointer=saver)
    app = FastAPI()
    app.add_middleware(HTTPCacheMiddleware, cache=pages)

    @app.post("/chats/{chat_id}")
    async def say(chat_id: str, text: str, cache: CacheDep) -> str:
        state = await graph.ainvoke({"messages": [HumanMessage(text)]}, {"configurable": {"thread_id": chat_id}})
        await cache.invalidate(tags=[f"chat:{chat_id}"])
        return str(state["messages"][-1].content)

    @app.get("/chats/{chat_id}")
    @cached(ttl=60, tags=["chat:{chat_id}"])
    async def show(chat_id: str) -> list[str]:
        state = await graph.aget_state({"configurable": {"thread_id": chat_id}})
        return [str(message.content) for message in state.values.get("messages", [])]

    return app


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


async def once(postgres_url: str, redis_url: str) -> None:
    chat_id = secrets.token_hex(4)
    async with (
        chat(postgres_url, redis_url) as (app, saver),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://chat") as client,
    ):
        for method, text, said in [
            *[("POST", "hello", "fwd=method"), ("GET", None, "stored"), ("GET", None, "hit")],
            *[("POST", "goodbye", "fwd=method"), ("GET", None, "stored"), ("GET", None, "hit")],
        ]:
            params = {} if text is None else {"text": text}
            response = await client.request(method, f"/chats/{chat_id}", params=params)
            status = response.headers["cache-status"]
            print(f"{method:<4} /chats/{chat_id}  {response.status_code}  {status}  {response.json()}")
            if said not in status:
                sys.exit(f"expected {said!r} in Cache-Status")
        done = saver.stats()
        print(f"checkpoints: {done.hits} reads from Redis, {done.misses} from PostgreSQL")
        if done.hits == 0:
            sys.exit("expected a checkpoint from Redis")


async def serve(postgres_url: str, redis_url: str) -> None:
    async with chat(postgres_url, redis_url) as (app, _):
        await uvicorn.Server(uvicorn.Config(app)).serve()


if __name__ == "__main__":
    with servers() as urls:
        asyncio.run(once(*urls) if "--once" in sys.argv else serve(*urls))
