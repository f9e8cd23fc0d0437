"""
The checkpointer. The one rule: PostgreSQL decides and Redis only repeats it; whatever is wrong with Redis, PostgreSQL
answers.

    aget_tuple -> Redis: a value of this generation, or one from memory that Redis says is of it, is made anew
               -> else PostgreSQL, and its answer is kept if the generation is still the same
    a change   -> the generations of its threads end, PostgreSQL commits, they end again
    the rest   -> PostgreSQL
"""

from __future__ import annotations

import asyncio
import copy
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self, TypeVar

from cachetools import LRUCache
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    BaseCheckpointSaver,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    DeltaChannelHistory,
    get_checkpoint_id,
)
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.checkpoint.serde.base import SerializerCompat, SerializerProtocol
from psycopg import AsyncConnection

from echo_cache.errors import CodecError, ConfigurationError, ForgedError, NotStorable
from echo_cache.integrations.langgraph.generations import Change, Generations
from echo_cache.integrations.langgraph.memory import Memory
from echo_cache.integrations.langgraph.wire import (
    Body,
    Key,
    Raw,
    Untouched,
    body_of,
    checkpoint_of,
    encode,
    is_of,
    loaded,
    read,
)
from echo_cache.options import Duration, seconds
from echo_cache.stores import RedisStore

__all__ = ["CachedPostgresSaver", "SaverStats"]

_T = TypeVar("_T")

_logger: Final = logging.getLogger("echo_cache")


@dataclass(frozen=True, slots=True)
class SaverStats:
    """
    What a saver, and those made of it by `with_allowlist`, have done since it was made.

    hits, misses: reads that Redis, or PostgreSQL, has answered. fills: values that were kept.
    rejected: values in Redis that were none of ours for this checkpoint, or that the serde could not decode; forged:
    those among them that were not signed with our secret. failures: what Redis did not do. owed: threads with changes
    that Redis has not been told of yet.
    """

    hits: int
    misses: int
    fills: int
    rejected: int
    forged: int
    failures: int
    owed: int


DEFAULT_MEMORY_BYTES: Final = 16 * 1024 * 1024
# How many clones with other allowlists are remembered.
_MOST_CLONES: Final = 32


class _Counters:
    """May be off by a few under threads."""

    __slots__ = ("fills", "forged", "hits", "misses", "rejected")

    def __init__(self) -> None:
        self.hits = self.misses = self.fills = self.rejected = self.forged = 0


class CachedPostgresSaver(BaseCheckpointSaver[str]):
    """
    An AsyncPostgresSaver whose checkpoints are read from Redis where they are there.

    saver: where the checkpoints are. Its connection commits at once (autocommit, or a pool), and reads what was
        committed. A subclass may add to it, but must leave to the serde what comes from PostgreSQL.
    store: the Redis that all processes with this database share: a RedisStore, whose `prefix` names the database and
        whose `secret` signs; or a URL, for a RedisStore with its defaults. Two databases need two prefixes.
    ttl: how long a checkpoint is kept, in seconds or as a timedelta.
    memory_bytes: how much this process takes, about, to remember what it has read. Redis is still asked at
        each read whether it counts; what is saved is to send, check and decode it again. 0: nothing is remembered.

    `aget_tuple`, and what is built on it, gives what the saver would give, from Redis if the thread has not changed
    since. The changes of all savers with this Redis and prefix count, in whatever process; changes that are made beside
    them, by a plain saver or in SQL, are not seen for *ttl*. Everything else is the saver's.

    When Redis is in trouble PostgreSQL answers, and no error reaches the caller. A change that Redis could not be told
    of is told when it is back. Before that this saver does not read the thread from Redis; others that can may read
    what was before the change, for *ttl* at most.

    Without a secret, whoever can write to Redis can write checkpoints, and the serde of LangGraph may run code for them
    (see its LANGGRAPH_STRICT_MSGPACK). Pickles are never read from Redis.

    It is used in the event loop of the saver; its synchronous methods from other threads. `aclose`, or `async with`,
    waits for what is under way; it closes neither the saver nor a RedisStore that was given.

    Raises ConfigurationError for what cannot work.
    """

    def __init__(
        self,
        saver: AsyncPostgresSaver,
        store: RedisStore | str,
        *,
        ttl: Duration = 3600.0,
        memory_bytes: int = DEFAULT_MEMORY_BYTES,
    ) -> None:
        if not isinstance(saver, AsyncPostgresSaver):
            raise ConfigurationError(f"saver must be an AsyncPostgresSaver, not {type(saver).__name__}")
        if isinstance(saver.conn, AsyncConnection) and not saver.conn.autocommit:
            raise ConfigurationError("the saver's connection must have autocommit=True: nobody knows when it commits")
        if isinstance(saver.serde, SerializerCompat):
            raise ConfigurationError(
                "the saver's serde must have dumps_typed and loads_typed: one without could be pickle, "
                "which is never read from Redis"
            )
        if not isinstance(store, RedisStore | str):
            raise ConfigurationError(f"store must be a RedisStore or a URL, not {type(store).__name__}")
        self._ttl = seconds("ttl", ttl)
        if not self._ttl:
            raise ConfigurationError("ttl must be longer than 0 s: nothing would be kept")
        if type(memory_bytes) is not int or memory_bytes < 0:
            raise ConfigurationError(f"memory_bytes must be a whole number >= 0, not {memory_bytes!r}")
        super().__init__(serde=saver.serde)
        self._saver = saver
        self._untouched = _untouched(saver)
        self._store = RedisStore(store) if isinstance(store, str) else store
        self._owns_store = isinstance(store, str)
        # Prepared by the store for its prefix; signing is the same for all that is under it.
        self._secrets = self._store.secrets
        if not self._secrets:
            _logger.warning(
                "checkpoints in Redis at %s are not signed: who can write there can write checkpoints, and run code "
                "by them unless LANGGRAPH_STRICT_MSGPACK is set; give RedisStore a secret",
                self._store.server.location,
            )
        # Shared with the clones that `with_allowlist` makes.
        self._generations = Generations(self._store.server, self._ttl)
        self._counters = _Counters()
        self._memory = Memory(memory_bytes, saver.serde)
        self._cloning = threading.Lock()
        # By the allowlist, with the serde that they were made from.
        self._clones: LRUCache[frozenset[tuple[str, ...]], tuple[SerializerProtocol, CachedPostgresSaver]]
        self._clones = LRUCache(_MOST_CLONES)

    def __repr__(self) -> str:
        done, server = self.stats(), self._store.server
        return (
            f"<CachedPostgresSaver {server.location} {server.prefix} [{done.hits} hits, {done.misses} misses | "
            f"{done.rejected} rejected, {done.failures} failures, {done.owed} threads owed]>"
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """
        Wait for changes that are ending, and close what was made here. The saver and a given store stay open.

        A second call does nothing. It can be used again afterwards.
        """
        await self._generations.aclose()
        if self._owns_store:
            await self._store.aclose()

    def stats(self) -> SaverStats:
        """Return a snapshot of the counters."""
        counters, generations = self._counters, self._generations
        return SaverStats(
            hits=counters.hits,
            misses=counters.misses,
            fills=counters.fills,
            rejected=counters.rejected,
            forged=counters.forged,
            failures=generations.failures,
            owed=generations.owed,
        )

    async def setup(self) -> None:
        """Make or migrate the tables, as the saver does."""
        await self._saver.setup()

    # --- reading ------------------------------------------------------------------------------------------------------

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """
        Return what the saver has for *config*, from Redis if it is there; nothing is shared.

        One round trip to Redis. Two where this process has read the thread before and another has changed it since.

        That there is no checkpoint is not kept: names of threads that do not exist would fill Redis.
        Raises what the saver raises.
        """
        key = _key(config)
        if key is None:
            return await self._saver.aget_tuple(config)
        token, saved = await self._look(key)
        if saved is not None:
            self._counters.hits += 1
            return saved
        self._counters.misses += 1
        if token is None:
            return await self._saver.aget_tuple(config)
        filled_at = time.time()
        saved = await self._untouched.aget_tuple(config)
        if saved is None:
            return None
        body = await self._fill(key, token, filled_at, saved)
        load = self._memory.loader(is_kept=body is not None)
        found = loaded(saved, load)
        if body is not None:
            self._memory.keep(key, token, load.molded(body))
        return found

    async def _look(self, key: Key) -> tuple[bytes | None, CheckpointTuple | None]:
        """Return the token, None if nothing may be believed now, and the checkpoint of its generation, if there."""
        known = self._memory.get(key)
        if known is not None:
            token, _ = await self._generations.look(key, for_value=False)
            if token is None:
                return None, None
            if (saved := self._remembered(key, token)) is not None:
                return token, saved
        token, value = await self._generations.look(key)
        if token is None or value is None or not is_of(token, value):
            return token, None
        if (saved := self._remembered(key, token)) is not None:  # others have asked for the same
            return token, saved
        body = self._read(key, token, value)
        if body is None:
            return token, None
        load = self._memory.loader()
        saved = self._believed(body, load)
        if saved is not None:
            self._memory.keep(key, token, load.molded(body))
        return token, saved

    def _remembered(self, key: Key, token: bytes) -> CheckpointTuple | None:
        """Return what is remembered for *key*, if it is of the generation *token* and of use; else it is forgotten."""
        known = self._memory.get(key)
        if known is None:
            return None
        if token == known.token and self._is_young(known.body.filled_at):
            try:
                return self._memory.made(known)
            except Exception as error:
                # It could be made before. Redis, then PostgreSQL, is asked whether it still can be.
                _logger.debug("a checkpoint that was read before cannot be decoded: %s", type(error).__name__)
        self._memory.forget(key)
        return None

    def _read(self, key: Key, token: bytes, value: bytes) -> Body | None:
        """Return what is in *value*, None if it cannot be believed."""
        if len(value) > self._store.max_body_bytes:
            self._counters.rejected += 1
            return None
        try:
            return read(key, token, value, self._secrets)
        except ForgedError:
            self._counters.rejected += 1
            self._counters.forged += 1
        except CodecError:
            self._counters.rejected += 1
        return None

    def _believed(self, body: Body, load: Callable[[Raw], Any]) -> CheckpointTuple | None:
        """Return the checkpoint in *body*, with what *load* makes; None if it is of no use."""
        if not self._is_young(body.filled_at):
            return None
        try:
            return loaded(checkpoint_of(body), load)
        except CodecError:
            self._counters.rejected += 1
        except Exception as error:
            # What a serde raises nobody knows. PostgreSQL has what it can read, or raises the same.
            self._counters.rejected += 1
            _logger.warning("a checkpoint from Redis could not be decoded: %s", type(error).__name__)
        return None

    def _is_young(self, filled_at: float) -> bool:
        # Redis may have forgotten the time, or somebody may have brought the value back.
        return time.time() - filled_at <= self._ttl

    async def _fill(self, key: Key, token: bytes, filled_at: float, saved: CheckpointTuple) -> Body | None:
        """Keep *saved* in Redis, if the generation is still that of *token*; return its parts if it is kept."""
        try:
            body = body_of(key, filled_at, saved)
            value = encode(body, token, self._secrets[0] if self._secrets else None)
        except NotStorable:
            return None
        if len(value) > self._store.max_body_bytes or not await self._generations.fill(key, token, value):
            return None
        self._counters.fills += 1
        return body

    def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        """Iterate over what PostgreSQL has."""
        return self._saver.alist(config, filter=filter, before=before, limit=limit)

    async def aget_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        """Return what PostgreSQL has."""
        return await self._saver.aget_delta_channel_history(config=config, channels=channels)

    def get_next_version(self, current: str | None, channel: None) -> str:
        """Return the saver's next version."""
        return self._saver.get_next_version(current, channel)

    @property
    def config_specs(self) -> Any:
        """The saver's."""
        return self._saver.config_specs

    def with_allowlist(self, extra_allowlist: Collection[tuple[str, ...]]) -> CachedPostgresSaver:
        """Return a clone around the saver's clone with this allowlist; Redis, counters and generations are shared."""
        # LangGraph asks at each call of a graph, in whatever thread. The same clone remembers what it has read for the
        # one before.
        asked, serde = frozenset(extra_allowlist), self._saver.serde
        with self._cloning:
            known = self._clones.get(asked)
            if known is None or known[0] is not serde:
                known = self._clones[asked] = serde, self._clone(asked)
            return known[1]

    def _clone(self, allowlist: Collection[tuple[str, ...]]) -> CachedPostgresSaver:
        saver = self._saver.with_allowlist(allowlist)
        if saver is self._saver:
            return self
        clone = copy.copy(self)
        clone._cloning, clone._clones = threading.Lock(), LRUCache(_MOST_CLONES)
        assert isinstance(saver, AsyncPostgresSaver)
        clone._saver, clone._untouched, clone.serde = saver, _untouched(saver), saver.serde
        clone._memory = self._memory.for_serde(saver.serde)
        return clone

    # --- changing -----------------------------------------------------------------------------------------------------

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Store a checkpoint in PostgreSQL; what Redis has of the thread counts no more."""
        async with self._change(_threads(config)):
            return await self._saver.aput(config, checkpoint, metadata, new_versions)

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """Store writes in PostgreSQL; what Redis has of the thread counts no more."""
        async with self._change(_threads(config)):
            await self._saver.aput_writes(config, writes, task_id, task_path)

    async def adelete_thread(self, thread_id: str) -> None:
        """Delete a thread in PostgreSQL; what Redis has of it counts no more."""
        async with self._change([str(thread_id)]):
            await self._saver.adelete_thread(thread_id)

    async def aprune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """Prune threads in PostgreSQL; what Redis has of them counts no more."""
        threads = [] if isinstance(thread_ids, str) else [str(thread) for thread in thread_ids]
        async with self._change(threads):
            await self._saver.aprune(thread_ids, strategy=strategy)

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """Copy a thread in PostgreSQL, if the saver can; what Redis has of the target counts no more."""
        async with self._change([str(target_thread_id)]):
            await self._saver.acopy_thread(source_thread_id, target_thread_id)

    async def adelete_for_runs(self, run_ids: Sequence[str]) -> None:
        """
        Delete what runs have stored in PostgreSQL, if the saver can; what Redis has of their threads counts no more.

        The threads are those that PostgreSQL lists for the runs before: do not delete a run that still goes on.
        """
        threads: set[str] = set()
        if type(self._saver).adelete_for_runs is not BaseCheckpointSaver.adelete_for_runs:
            for run_id in run_ids:
                async for saved in self._untouched.alist(None, filter={"run_id": str(run_id)}):
                    threads.add(saved.config["configurable"]["thread_id"])
        async with self._change(threads):
            await self._saver.adelete_for_runs(run_ids)

    def _change(self, threads: Collection[str]) -> Change:
        """Return a context for a change of *threads* in PostgreSQL."""
        # What is remembered of them will not count. If it is gone the next read asks Redis once, not twice.
        for thread in threads:
            self._memory.forget_thread(thread)
        return self._generations.change(threads)

    # --- from other threads -------------------------------------------------------------------------------------------

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """As `aget_tuple`, from another thread than the saver's."""
        return self._wait(self.aget_tuple, config)

    def list(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> Iterator[CheckpointTuple]:
        """As `alist`, from another thread than the saver's."""
        return self._saver.list(config, filter=filter, before=before, limit=limit)

    def put(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """As `aput`, from another thread than the saver's."""
        return self._wait(self.aput, config, checkpoint, metadata, new_versions)

    def put_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """As `aput_writes`, from another thread than the saver's."""
        self._wait(self.aput_writes, config, writes, task_id, task_path)

    def delete_thread(self, thread_id: str) -> None:
        """As `adelete_thread`, from another thread than the saver's."""
        self._wait(self.adelete_thread, thread_id)

    def prune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """As `aprune`, from another thread than the saver's."""
        self._wait(self.aprune, thread_ids, strategy=strategy)

    def copy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """As `acopy_thread`, from another thread than the saver's."""
        self._wait(self.acopy_thread, source_thread_id, target_thread_id)

    def delete_for_runs(self, run_ids: Sequence[str]) -> None:
        """As `adelete_for_runs`, from another thread than the saver's."""
        self._wait(self.adelete_for_runs, run_ids)

    def get_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        """As `aget_delta_channel_history`, from another thread than the saver's."""
        return self._saver.get_delta_channel_history(config=config, channels=channels)

    def _wait(self, method: Callable[..., Coroutine[Any, Any, _T]], *args: Any, **options: Any) -> _T:
        """
        Return what *method* gives in the saver's event loop.

        Raises InvalidStateError there, as the saver does: the loop would wait for itself.
        """
        try:
            is_there = asyncio.get_running_loop() is self._saver.loop
        except RuntimeError:
            is_there = False
        if is_there:
            raise asyncio.InvalidStateError(
                "synchronous calls to CachedPostgresSaver are only allowed from a different thread; "
                f"use the asynchronous interface: await {method.__name__}(...)"
            )
        return asyncio.run_coroutine_threadsafe(method(*args, **options), self._saver.loop).result()


def _untouched(saver: AsyncPostgresSaver) -> AsyncPostgresSaver:
    """Return a clone of *saver*, as its own `with_allowlist` makes them, that gives Raw in place of values."""
    clone = copy.copy(saver)
    clone.serde = Untouched(saver.serde)
    return clone


def _key(config: RunnableConfig) -> Key | None:
    """Return what *config* asks for, as AsyncPostgresSaver reads it; None for what only PostgreSQL can judge."""
    asked = config["configurable"]
    key = (asked.get("thread_id"), asked.get("checkpoint_ns", ""), get_checkpoint_id(config) or None)
    thread, namespace, checkpoint_id = key
    if type(thread) is str and type(namespace) is str and (checkpoint_id is None or type(checkpoint_id) is str):
        return Key(thread, namespace, checkpoint_id)
    return None


def _threads(config: RunnableConfig) -> Collection[str]:
    """Return the thread that *config* names, if it does; else the saver says what is wrong."""
    thread = (config.get("configurable") or {}).get("thread_id")
    return [] if thread is None else [str(thread)]
