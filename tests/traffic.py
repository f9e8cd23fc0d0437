"""Traffic through a store, every answer of which is checked."""

from __future__ import annotations

import asyncio
from typing import Self

from echo_cache.errors import StoreError
from echo_cache.stores.base import Store
from tests.redis_support import until
from tests.store_contract import any_variant, make_entry, make_key

__all__ = ["Traffic"]

KEYS = 60


class Traffic:
    """
    Sets and gets of many keys at once, for as long as the context lasts.

    Whatever is no StoreError, and any body that is not the key's, ends it and is raised at the end.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.right = 0
        self.failed = 0
        self._rounds = 0
        self._good_in_a_row = 0
        self._is_over = False

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._is_over = True
        await self._task

    async def works(self) -> None:
        """Return when all keys could be set and read anew, three times in a row."""
        self._good_in_a_row = 0
        await until(lambda: self._good_in_a_row >= 3 or self._task.done())

    async def _run(self) -> None:
        while not self._is_over:
            self._rounds += 1
            failed = self.failed
            await asyncio.gather(*(self._exchange(number) for number in range(KEYS)))
            self._good_in_a_row = 0 if self.failed > failed else self._good_in_a_row + 1
            # Room for what else goes on in this loop and on this machine.
            await asyncio.sleep(0.002)

    async def _exchange(self, number: int) -> None:
        key = make_key(number)
        body = b"%d of %s" % (self._rounds, key[3])
        try:
            await self.store.set(key, make_entry(body))
            entry = await self.store.get(key, any_variant)
        except StoreError:
            self.failed += 1
        else:
            # A failover may lose what was just written, and may not make anything up.
            assert entry is None or entry.response.body.endswith(b" of " + key[3])
            self.right += entry is not None and entry.response.body == body
