"""
Copying one level to the other. The one rule: newest wins, and what is changed meanwhile is newer.

Keys come in pages, and all variants of a page's keys are read and written together, so that they go out in batches;
nothing the size of a store is held.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Final

from echo_cache.model import CacheKey, Entry, Vary
from echo_cache.stores.base import Store
from echo_cache.stores.twolevel.life import is_newer
from echo_cache.stores.twolevel.reports import Progress, SyncProgress, SyncReport

__all__ = ["Copied", "all_variants", "copy_all", "is_better"]

_PAGE: Final = 64


class Copied:
    """What became of the entries of one key. *full*: the other level has no room for more."""

    __slots__ = ("copied", "failed", "full", "skipped")

    def __init__(self) -> None:
        self.copied = 0
        self.skipped = 0
        self.failed = 0
        self.full = False


async def copy_all(
    keys: AsyncIterator[CacheKey], copy: Callable[[CacheKey], Awaitable[Copied]], progress: Progress | None
) -> SyncReport:
    """Call *copy* with each of *keys*, those of a page at once, and *progress* after each page."""
    total = SyncProgress()
    full = False
    async for page in _pages(keys):
        results = await asyncio.gather(*map(copy, page))
        total = _sum(total, results)
        if progress is not None:
            said = progress(total)
            if inspect.isawaitable(said):
                await said
        full = any(result.full for result in results)
        if full:
            break
    return SyncReport(total.seen, total.copied, total.skipped, total.failed)


async def _pages(keys: AsyncIterator[CacheKey]) -> AsyncIterator[list[CacheKey]]:
    page = []
    async for key in keys:
        page.append(key)
        if len(page) == _PAGE:
            yield page
            page = []
    if page:
        yield page


def _sum(total: SyncProgress, results: Sequence[Copied]) -> SyncProgress:
    copied = sum([result.copied for result in results])
    skipped = sum([result.skipped for result in results])
    failed = sum([result.failed for result in results])
    return SyncProgress(
        total.seen + copied + skipped + failed, total.copied + copied, total.skipped + skipped, total.failed + failed
    )


async def all_variants(store: Store, key: CacheKey) -> list[Entry]:
    """Return all entries that *store* has under *key*, newest first; one look for each, and one more. StoreError."""
    found: list[Entry] = []
    seen: set[Vary] = set()
    while (entry := await store.get(key, lambda vary: vary not in seen)) is not None:
        found.append(entry)
        if not entry.vary:
            break  # it took the place of all that was there before it
        seen.add(entry.vary)
    return found


def is_better(entry: Entry, held: Sequence[Entry], now: float) -> bool:
    """Return whether *entry* is to be copied to where *held* is: it takes the place of nothing that is as good."""
    rivals = [other for other in held if not entry.vary or not other.vary or other.vary == entry.vary]
    return all(_beats(entry, rival, now) for rival in rivals)


def _beats(entry: Entry, rival: Entry, now: float) -> bool:
    """
    Return whether *entry* is better than *rival*, which it would take the place of, or whose requests it would answer.

    Of one instant are copies, of which the fresh one is better, and a variant that stands beside the one for all.
    """
    if is_newer(entry, rival):
        return True
    if is_newer(rival, entry):
        return False
    if entry.vary != rival.vary:
        return bool(entry.vary)
    return rival.fresh_until <= now < entry.fresh_until
