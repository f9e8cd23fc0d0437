"""
Checkpoints of LangGraph, cached in Redis before PostgreSQL. Needs the extra `langgraph`.

    store = RedisStore("redis://localhost", prefix="shop", secret=SECRET)
    async with AsyncPostgresSaver.from_conn_string(POSTGRES_URL) as postgres:
        async with CachedPostgresSaver(postgres, store) as saver:
            graph = builder.compile(checkpointer=saver)

    saver         the checkpointer: what is delegated, what is read from Redis, what changes what
    generations   which values of a thread may be believed
    memory        what this process has read before
    molds         checkpoints made again without the serde
    wire          checkpoints as bytes
"""

from __future__ import annotations

try:
    import langgraph.checkpoint.postgres.aio  # noqa: F401  # to say what is missing, if it is
except ImportError as error:
    raise ImportError(
        "echo_cache.integrations.langgraph needs the extra langgraph: pip install 'echo-cache[langgraph]'"
    ) from error

from echo_cache.integrations.langgraph.saver import CachedPostgresSaver, SaverStats

__all__ = ["CachedPostgresSaver", "SaverStats"]
