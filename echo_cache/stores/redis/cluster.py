"""
All servers of a Redis Cluster. The one rule: a key is asked of the server that has it now, and who is down or slow
harms the keys of nobody else.

Each server has a pool of its own, with the same settings and the same checks as a server that stands alone. Which
server has which slot is asked in a task of this client's own, in the background and at most once in a while: when a
server fails or says that a slot is elsewhere. What a server says about one slot (-MOVED, -ASK) is obeyed at once.

Rejected: redis.asyncio.RedisCluster. Its connections are not looked at for left-over bytes before they are used, it
raises where a pool should wait, with retries off it never asks for the slots again, and asking closes the connections
of all servers.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Final, NamedTuple, cast

from echo_cache.stores.redis.connections import OwnConnection, Words, ask, first_answer, own_connection
from echo_cache.stores.redis.urls import Address, shown_address

__all__ = ["Cluster", "Topology", "parse_topology"]

_SLOTS: Final = 16_384

# How often the servers are asked who has which slot, in seconds: twice in the pause between two probes of the breaker.
_REFRESH_INTERVAL: Final = 0.25

# How many are asked at once; the first answer counts.
_ASKED_AT_ONCE: Final = 3

# How often a command follows a redirection: to where a slot has moved, from there to where the key is on its way, and
# once more for one that moved meanwhile.
_REDIRECTIONS: Final = 3

_ASKING: Final[Words] = ("ASKING",)


class Topology(NamedTuple):
    """owners: which server has each slot, None if none has. servers: all of them, replicas too."""

    owners: list[Address | None]
    servers: frozenset[Address]


class Cluster:
    """
    A Client for the servers of a cluster, in one event loop.

    seeds: who is asked first. make_pool: makes the pool for a server; nothing connects before it is used. timeout: how
    long one may take to say who has which slot, in seconds. remap: where an address that a server names really is.
    """

    def __init__(
        self,
        seeds: Sequence[Address],
        make_pool: Callable[[Address], Any],
        timeout: float,
        remap: Callable[[Address], Address] | None = None,
    ) -> None:
        from redis.crc import key_slot

        self._seeds = tuple(seeds)
        self._make_pool = make_pool
        self._timeout = timeout
        self._remap = remap
        self._slot_of = key_slot

        # All of it belongs to the event loop. None: no server has said yet.
        self._topology: Topology | None = None
        self._pools: dict[Address, Any] = {}
        # Those that failed when they were last asked.
        self._doubtful: set[Address] = set()
        # Asking for the slots: at most one task or one timer, and not before `_not_before`.
        self._refresh: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._not_before = 0.0
        self._trouble = ""
        self._is_closed = False

    def __repr__(self) -> str:
        servers = len(self._topology.servers) if self._topology is not None else "no"
        return f"<Cluster [{servers} servers known, {len(self._pools)} connected | {len(self._doubtful)} doubtful]>"

    # --- the client ---------------------------------------------------------------------------------------------------

    def node_of(self, name: str) -> Hashable:
        """Return the server of *name*; None as long as no server has said, and for a slot that no server has."""
        return None if self._topology is None else self._topology.owners[self._slot_of(name.encode())]

    async def read(self, names: Sequence[str]) -> Sequence[object]:
        """
        Return the values of *names*, None for what is no string or not there.

        GETs in one write, as MGET is refused across slots, and while a slot is on its way.
        """
        from redis.exceptions import ResponseError

        values = []
        for reply in await self._do([("GET", name) for name in names]):
            if isinstance(reply, ResponseError):
                if not str(reply).startswith("WRONGTYPE"):
                    raise reply
                reply = None
            values.append(reply)
        return values

    async def write(self, commands: Sequence[Words]) -> Sequence[object]:
        """Return the replies to *commands*, in order; an error stands in its place."""
        return await self._do(commands)

    async def time(self) -> float:
        """Return the time of the server that has the lowest slot and did not fail when it was last asked."""
        primaries = _primaries(await self._known())
        sound = [address for address in primaries if address not in self._doubtful]
        (reply,) = await self._ask((sound or primaries)[0], [("TIME",)])
        seconds, microseconds = _sound(reply)
        return int(seconds) + int(microseconds) / 1e6

    async def nodes(self) -> Sequence[Hashable]:
        """Return all servers that have slots, as of now if one can be asked."""
        if self._refresh is None and asyncio.get_running_loop().time() >= self._not_before:
            self._start_refresh()
        if self._refresh is not None:
            await asyncio.wait([self._refresh])
        return _primaries(await self._known())

    async def scan(self, node: Hashable, cursor: int, pattern: str, count: int) -> tuple[int, list[bytes]]:
        """Return the next cursor, 0 at the end, and a page of the names at *node* that match *pattern*."""
        (reply,) = await self._ask(cast(Address, node), [("SCAN", cursor, "MATCH", pattern, "COUNT", count)])
        following, names = _sound(reply)
        return int(following), names

    async def dedicated(self, name: str) -> OwnConnection:
        """Return a new connection to the server of *name*. What ends it has the slots looked into."""
        from redis.exceptions import ClusterDownError, ResponseError

        slot = self._slot_of(name.encode())
        owner = (await self._known()).owners[slot]
        if owner is None:
            self._refresh_soon()
            raise ClusterDownError("CLUSTERDOWN no server has the slot")

        def failed(error: Exception) -> None:
            if isinstance(error, ResponseError):
                self._redirection(error, owner, slot)
            else:
                self._doubtful.add(owner)
            self._refresh_soon()

        try:
            return await own_connection(self._pool(owner), self._timeout, failed)
        except BaseException:
            self._doubtful.add(owner)
            self._refresh_soon()
            raise

    async def aclose(self) -> None:
        """Close the connections, but not those that `dedicated` has returned."""
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._refresh is not None:
            self._refresh.cancel()
            await asyncio.wait([self._refresh])
        pools, self._pools = self._pools, {}
        await asyncio.gather(*(pool.aclose() for pool in pools.values()), return_exceptions=True)

    # --- commands -----------------------------------------------------------------------------------------------------

    async def _do(self, commands: Sequence[Words]) -> list[object]:
        """Return the replies to *commands*, which may follow redirections; an error stands in its place."""
        from redis.exceptions import ClusterDownError

        topology = await self._known()
        slots = [self._slot_of(_key(words)) for words in commands]
        replies: list[object] = [ClusterDownError("CLUSTERDOWN no server has the slot")] * len(commands)
        # Whom to ask for which commands; and whether the server is asked for a key that is on its way to it.
        asked: dict[tuple[Address, bool], list[int]] = {}
        for index, slot in enumerate(slots):
            owner = topology.owners[slot]
            if owner is None:
                self._refresh_soon()
            else:
                asked.setdefault((owner, False), []).append(index)
        for redirections in range(_REDIRECTIONS + 1):
            found = await self._ask_each(asked, commands)
            redirected: dict[tuple[Address, bool], list[int]] = {}
            for where, indexes in asked.items():
                for index, reply in zip(indexes, found[where], strict=True):
                    replies[index] = reply
                    if isinstance(reply, Exception):
                        target = self._redirection(reply, where[0], slots[index])
                        if target is not None and redirections < _REDIRECTIONS:
                            redirected.setdefault(target, []).append(index)
            if not redirected:
                break
            asked = redirected
        return replies

    async def _ask_each(
        self, asked: dict[tuple[Address, bool], list[int]], commands: Sequence[Words]
    ) -> dict[tuple[Address, bool], list[object]]:
        """Return what each server replies; one round trip, to one server as a rule."""

        async def one(address: Address, is_asking: bool, indexes: list[int]) -> list[object]:
            if not is_asking:
                return await self._ask(address, [commands[index] for index in indexes])
            pairs = [words for index in indexes for words in (_ASKING, commands[index])]
            return (await self._ask(address, pairs))[1::2]

        if len(asked) == 1:
            ((where, indexes),) = asked.items()
            return {where: await one(*where, indexes)}
        # All are waited for, so that none is left with replies on their way.
        found = await asyncio.gather(
            *(one(*where, indexes) for where, indexes in asked.items()), return_exceptions=True
        )
        for answer in found:
            if isinstance(answer, BaseException):
                raise answer
        return dict(zip(asked, cast(list[list[object]], found), strict=True))

    def _redirection(self, error: Exception, asked: Address, slot: int) -> tuple[Address, bool] | None:
        """Return whom to ask instead of *asked*, by its reply *error*, and have what it tells looked into."""
        from redis.exceptions import AskError, ClusterDownError, MovedError

        if isinstance(error, MovedError):
            target = self._address(error.host, error.port, asked)
            if self._topology is not None:
                self._topology.owners[slot] = target
            self._refresh_soon()
            return target, False
        if isinstance(error, AskError):  # the slot stays where it is until the last of its keys has moved
            return self._address(error.host, error.port, asked), True
        if isinstance(error, ClusterDownError):
            self._refresh_soon()
        return None

    async def _ask(self, address: Address, commands: Sequence[Words]) -> list[object]:
        """Return the replies of one server. Who fails, or is too slow for whoever waits, is doubtful."""
        pool = self._pool(address)
        try:
            replies = await ask(pool, commands)
        except BaseException:
            self._doubtful.add(address)
            self._refresh_soon()
            raise
        finally:
            if self._pools.get(address) is not pool:  # it has left the cluster meanwhile
                await pool.disconnect(inuse_connections=False)
        self._doubtful.discard(address)
        return replies

    def _pool(self, address: Address) -> Any:
        pool = self._pools.get(address)
        if pool is None:
            pool = self._pools[address] = self._make_pool(address)
        return pool

    def _address(self, host: object, port: object, asked: Address) -> Address:
        """Return the address that the server *asked* names: without a host it means its own."""
        address = _named(host, port, asked)
        return address if self._remap is None else self._remap(address)

    # --- who has which slot -------------------------------------------------------------------------------------------

    async def _known(self) -> Topology:
        """Return who has which slot, asking if nobody has said yet. Raises redis-py's ConnectionError."""
        if self._topology is None:
            from redis.exceptions import ConnectionError as RedisConnectionError

            if self._refresh is None and asyncio.get_running_loop().time() >= self._not_before:
                self._start_refresh()
            if self._refresh is not None:
                # Not of those who wait: one that is cancelled leaves the question to the others.
                await asyncio.wait([self._refresh])
            if self._topology is None:
                raise RedisConnectionError(f"no server of the cluster says who has which slot: {self._trouble}")
        return self._topology

    def _refresh_soon(self) -> None:
        """Have the servers asked who has which slot: at once if that was not done lately."""
        if self._is_closed or self._refresh is not None or self._timer is not None:
            return
        loop = asyncio.get_running_loop()
        if loop.time() >= self._not_before:
            self._start_refresh()
        else:
            # A timer and no sleeping task: a loop that ends without a word to us leaves nothing pending.
            self._timer = loop.call_at(self._not_before, self._start_refresh)

    def _start_refresh(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        loop = asyncio.get_running_loop()
        self._not_before = loop.time() + _REFRESH_INTERVAL
        self._refresh = loop.create_task(self._refresh_now())
        self._refresh.add_done_callback(self._end_refresh)

    def _end_refresh(self, task: asyncio.Task[None]) -> None:
        self._refresh = None
        if not task.cancelled() and (error := task.exception()) is not None:
            self._trouble = str(error) or type(error).__name__

    async def _refresh_now(self) -> None:
        topology = await self._ask_around()
        self._topology = topology
        gone = [self._pools.pop(address) for address in list(self._pools) if address not in topology.servers]
        self._doubtful &= topology.servers
        for pool in gone:
            await pool.disconnect(inuse_connections=False)

    async def _ask_around(self) -> Topology:
        """Return who has which slot, by the word of the first who answers."""
        known = list(self._topology.servers) if self._topology is not None else []
        random.shuffle(known)
        # Those that were not in doubt come first; the seeds once more at last: all may have moved while nobody asked.
        known.sort(key=self._doubtful.__contains__)
        candidates = list(dict.fromkeys((*known, *self._seeds)))
        for start in range(0, len(candidates), _ASKED_AT_ONCE):
            some = candidates[start : start + _ASKED_AT_ONCE]
            try:
                return await first_answer(map(self._ask_for_slots, some))
            except Exception as error:
                if start + _ASKED_AT_ONCE >= len(candidates):
                    raise
                self._trouble = str(error)
        raise AssertionError("a cluster has at least one address")

    async def _ask_for_slots(self, address: Address) -> Topology:
        pool = self._pool(address)
        try:
            async with asyncio.timeout(self._timeout):
                (reply,) = await ask(pool, [("CLUSTER", "SLOTS")])
        except TimeoutError as error:
            raise TimeoutError(f"{shown_address(*address)} did not answer in {self._timeout} s") from error
        finally:
            if self._pools.get(address) is not pool:  # another has answered, and this server has left the cluster
                await pool.disconnect(inuse_connections=False)
        return parse_topology(_sound(reply), lambda host, port: self._address(host, port, address))


def parse_topology(reply: object, address: Callable[[object, object], Address]) -> Topology:
    """
    Return what the *reply* to CLUSTER SLOTS says; *address* makes one of what is said of host and port.

    Raises redis-py's InvalidResponse.
    """
    from redis.exceptions import InvalidResponse

    owners: list[Address | None] = [None] * _SLOTS
    servers = set()
    try:
        for first, last, *nodes in cast(Any, reply):
            addresses = [address(node[0], node[1]) for node in nodes]
            servers.update(addresses)
            if not 0 <= first <= last < _SLOTS:
                raise ValueError(f"slots {first} to {last}")
            owners[first : last + 1] = [addresses[0]] * (last + 1 - first)
    except (TypeError, ValueError, IndexError) as error:
        raise InvalidResponse(f"this is no reply to CLUSTER SLOTS: {error}") from error
    if not servers:
        raise InvalidResponse("no server of this cluster has any slots")
    return Topology(owners, frozenset(servers))


def _named(host: object, port: object, asked: Address) -> Address:
    name = host.decode() if isinstance(host, bytes) else str(host or "")
    # A server that knows no name for itself or for another says nothing, or ? (Redis 7).
    return (name if name not in ("", "?") else asked[0]), int(cast(int, port))


def _primaries(topology: Topology) -> list[Address]:
    """Return the servers that have slots, by their lowest."""
    return [owner for owner in dict.fromkeys(topology.owners) if owner is not None]


def _key(words: Words) -> bytes:
    """Return the first key of a command; EVAL and EVALSHA have it behind the script and the number of keys."""
    key = words[3 if words[0] in ("EVAL", "EVALSHA") else 1]
    return key if isinstance(key, bytes) else str(key).encode()


def _sound(reply: object) -> Any:
    """Return *reply* unless it is an error, which is raised."""
    if isinstance(reply, Exception):
        raise reply
    return reply
