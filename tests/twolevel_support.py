"""Two levels to look into, and an L2 that tests can hold up: what the tests of TwoLevelStore share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from echo_cache.model import CacheKey, Entry
from echo_cache.options import TwoLevelConfig
from echo_cache.stores import MemoryStore, TwoLevelStore
from echo_cache.stores.base import Held, Match
from tests.store_contract import any_variant, language, make_key
from tests.store_contract import make_entry as entry_at_machine_time

NOW = 1_000_000.0
DE, FR = language(b"de"), language(b"fr")
KEY = make_key()
LEVELS = ("l1", "l2")


class ManualClock:
    def __init__(self, now: float = NOW) -> None:
        self.now = now

    def time(self) -> float:
        return self.now


def make_entry(body: bytes = b"body", **options: Any) -> Entry:
    """As the contract's, at NOW: fresh for 150 s, kept for 300 s."""
    return entry_at_machine_time(body, **{"now": NOW, **options})


class L1(MemoryStore):
    """Memory that notes what it does in *journal*, and fails when *error* is set."""

    def __init__(self, clock: ManualClock, journal: list[str]) -> None:
        super().__init__(clock=clock)
        self.journal = journal
        self.error: Exception | None = None
        self.closed = 0

    def _do(self, what: str) -> None:
        self.journal.append(f"l1 {what}")
        if self.error is not None:
            raise self.error

    def get_nowait(self, key: CacheKey) -> Held | None:
        if self.error is not None:
            raise self.error
        return super().get_nowait(key)

    def set_nowait(self, key: CacheKey, entry: Entry) -> bool:
        self._do("set")
        return super().set_nowait(key, entry)

    def delete_nowait(self, key: CacheKey) -> bool:
        self._do("delete")
        return super().delete_nowait(key)

    async def clear(self) -> int:
        self._do("clear")
        return await super().clear()

    async def aclose(self) -> None:
        self.closed += 1
        self._do("aclose")


class L2(MemoryStore):
    """
    What is far away: it notes what it does in *journal*, fails when *error* is set, and waits while it is held up.

    It does its work first and is held up then, as when a reply is long on its way; *arrived* is set meanwhile.
    """

    remote = True

    def __init__(self, clock: ManualClock, journal: list[str]) -> None:
        super().__init__(clock=clock)
        self.journal = journal
        self.error: Exception | None = None
        self.closed = 0
        self.arrived = asyncio.Event()
        self.gates = {name: asyncio.Event() for name in ("before set", "get", "set", "delete", "clear")}
        self.let_go(*self.gates)

    def hold_up(self, *names: str) -> None:
        """Hold up the operations *names*, or all when they have done their work."""
        self.arrived.clear()
        for name in names or ("get", "set", "delete", "clear"):
            self.gates[name].clear()

    def let_go(self, *names: str) -> None:
        for name in names or self.gates:
            self.gates[name].set()

    async def _do(self, what: str) -> None:
        self.journal.append(f"l2 {what}")
        self.arrived.set()
        gate = self.gates.get(what.split()[0])
        if gate is not None:
            await gate.wait()
        if self.error is not None:
            raise self.error

    async def get(self, key: CacheKey, match: Match) -> Entry | None:
        found = await super().get(key, match)
        await self._do("get")
        return found

    async def set(self, key: CacheKey, entry: Entry) -> bool:
        await self.gates["before set"].wait()
        kept = self.error is None and await super().set(key, entry)
        await self._do(f"set {entry.response.body.decode()}")
        return kept

    async def delete(self, key: CacheKey) -> bool:
        gone = self.error is None and await super().delete(key)
        await self._do("delete")
        return gone

    async def clear(self) -> int:
        count = await super().clear() if self.error is None else 0
        await self._do("clear")
        return count

    async def keys(self) -> AsyncIterator[CacheKey]:
        async for key in super().keys():
            yield key
        await self._do("keys")

    async def aclose(self) -> None:
        self.closed += 1
        await self._do("aclose")


class Levels:
    """A two-level store of L1 and L2 above, with what a test wants to look at."""

    def __init__(self, **config: Any) -> None:
        self.clock = ManualClock()
        self.journal: list[str] = []
        self.l1 = L1(self.clock, self.journal)
        self.l2 = L2(self.clock, self.journal)
        # No test waits for L2 in vain but the one of the soft time-out.
        self.config = TwoLevelConfig(**{"l2_soft_timeout": 30.0, **config})
        self.store = TwoLevelStore(self.l1, self.l2, self.config, clock=self.clock)

    def did(self) -> list[str]:
        """Return what was done since this was last asked."""
        done = self.journal[:]
        self.journal.clear()
        return done

    def in_l1(self, key: CacheKey = KEY) -> list[Entry]:
        return list(self.l1.peek(key))

    async def in_l2(self, key: CacheKey = KEY, match: Match = any_variant) -> Entry | None:
        return await MemoryStore.get(self.l2, key, match)

    async def get(self, match: Match = any_variant) -> Entry | None:
        return await self.store.get(KEY, match)
