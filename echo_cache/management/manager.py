"""Management of one cache: its statistics, what it has stored, and how to change that."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Any, Final, Protocol, cast

from echo_cache import fields, policy
from echo_cache.cache import Cache, InvalidationResult
from echo_cache.cache.report import Report, parse_report, sum_of
from echo_cache.cache.warming import Progress as WarmProgress
from echo_cache.coordination.exchange import current_exchange
from echo_cache.coordination.marks import Verdict
from echo_cache.errors import ConfigurationError, StoreError
from echo_cache.management.entries import Pattern, summary, url_of, variant
from echo_cache.management.refusals import RecentRefusals
from echo_cache.management.why import told
from echo_cache.model import CacheKey, Entry, Request
from echo_cache.stores.base import Store

__all__ = ["MAX_LIMIT", "Management"]

MAX_LIMIT: Final = 500
"""How many entries one page may have."""

# How many keys one call looks at, whatever it looks for: the cursor goes on where it ends.
_LOOKED_AT: Final = 2_000
# How many a dry run looks at. Beyond, it says "at least".
_COUNTED: Final = 100_000
_SAMPLE: Final = 10
# Keys whose entries are decoded between two chances for other tasks: 1 ms of memory's.
_STEP: Final = 100


class _Pages(Protocol):
    """A store whose keys come in pages."""

    def page(self, cursor: str, count: int) -> Any: ...


class Management:
    """
    What an operator may see of *cache*, and do to it.

    All of it is plain data that JSON can carry. Raises ConfigurationError for what cannot be done, in words for whoever
    asked, and StoreError where Redis cannot be asked.
    """

    def __init__(self, cache: Cache) -> None:
        self.cache: Final = cache
        self._refusals = RecentRefusals(cache.clock.time)
        cache.add_observer(self._refusals)

    def __repr__(self) -> str:
        return f"<Management of {self.cache!r}>"

    # --- statistics ---------------------------------------------------------------------------------------------------

    def report(self) -> Report:
        """Return what this worker says of itself."""
        return self.cache.report()

    async def reports(self) -> list[Report] | None:
        """Return the reports of all workers that share the store; None where Redis cannot be asked."""
        workers = self.cache.workers
        if workers is None:
            return [self.report()]
        try:
            told_by_all = await workers.all() if self._reports else await workers.others()
        except StoreError:
            return None
        found = {report.id: report for raw in told_by_all if (report := parse_report(raw)) is not None}
        return [found[name] for name in sorted(found)]

    @property
    def _reports(self) -> bool:
        """Whether this process is one of the workers: it answers requests, or has done so."""
        return self.cache.is_attached

    async def stats(self) -> dict[str, Any]:
        """
        Return the reports of this worker ("worker") and of all ("workers"), and their sum ("total").

        workers_known: whether the others could be asked; if not, there is this one alone.
        """
        reports = await self.reports()
        own = self.report()
        known = reports is not None
        reports = reports or ([own] if self._reports or not known else [])
        return {
            "worker": own.as_json(),
            "total": sum_of(reports or [own]).as_json(),
            "workers": [report.as_json() for report in reports],
            "workers_known": known,
        }

    def reset(self) -> dict[str, Any]:
        """Begin to count anew in this worker."""
        self.cache.reset_counters()
        reset = getattr(self.cache.store, "reset_stats", None)
        if reset is not None:
            reset()
        return {"reset": True}

    def refusals(self) -> list[dict[str, Any]]:
        """Return what this worker did not store lately, newest first, with the reasons in words."""
        return self._refusals.latest()

    @property
    def refusals_seen(self) -> int:
        """How many refusals there were: whether there are new ones."""
        return self._refusals.seen

    async def top(self, number: int = 10) -> dict[str, Any]:
        """Return what is hit most in this worker (an estimate), and what takes most room in its memory."""
        largest = getattr(self._memory, "largest", None)
        by_bytes = await largest(number) if largest is not None else []
        by_hits = self.cache.favourites.most(number)
        return {
            "by_hits": [{"url": url_of(cast(CacheKey, key)), "hits": hits} for key, hits in by_hits],
            "by_bytes": [{"url": url_of(key), "bytes": size} for key, size in by_bytes],
        }

    # --- what is stored -----------------------------------------------------------------------------------------------

    async def entries(
        self,
        *,
        match: str | None = None,
        tag: str | None = None,
        level: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> dict[str, Any]:
        """
        Return a page of what is stored at *level* ("l1" or "l2"), and the cursor of the next one, None at the end.

        match: a glob over the URL. tag: only what has it. Where little matches, a page may be short or empty, as it
        looks at so many keys only; it may also be somewhat longer than *limit*.
        """
        if not 1 <= limit <= MAX_LIMIT:
            raise ConfigurationError(f"limit must be 1 to {MAX_LIMIT}, not {limit}")
        level = level or ("l2" if self._memory is None else "l1")
        wanted = None if match is None else Pattern(match)
        now = self.cache.clock.time()
        found: list[dict[str, Any]] = []
        looked_at, at = 0, cursor or ""
        while len(found) < limit and looked_at < _LOOKED_AT:
            few = limit - len(found) if wanted is None and tag is None else max(limit, _STEP)
            at, keys = await self._page(level, at, few)
            looked_at += max(len(keys), few)
            matching = [key for key in keys if wanted is None or wanted(url_of(key))]
            async for key, entries in self._with_entries(level, matching):
                if tag is None or any(tag in entry.groups for entry in entries):
                    found.append(summary(self.cache, key, entries, level, now))
            if not at:
                break
        return {"level": level, "entries": found, "cursor": at or None}

    async def _with_entries(
        self, level: str, keys: Sequence[CacheKey]
    ) -> AsyncIterator[tuple[CacheKey, Sequence[Entry]]]:
        """Yield each of *keys* that *level* has, with its entries, newest first; other tasks run between steps."""
        for start in range(0, len(keys), _STEP):
            page = keys[start : start + _STEP]
            entries = await asyncio.gather(*[self._variants(level, key) for key in page])
            for key, some in zip(page, entries, strict=True):
                if some:
                    yield key, some
            await asyncio.sleep(0)

    async def inspect(self, url: str, headers: Iterable[tuple[str, str]] = ()) -> dict[str, Any]:
        """
        Return all that is stored under *url*, and what a GET with *headers* would get now, in a sentence ("verdict").

        url: absolute, as clients ask for it.
        """
        cache = self.cache
        lines = _lines(headers)
        key = policy.key_of_url(url, cache.options)
        _, scheme, host, path, query = key
        request = Request("GET", scheme, host, path, query, lines)
        now = cache.clock.time()
        levels: dict[str, list[dict[str, Any]]] = {}
        selected: tuple[str, int, Entry] | None = None
        others = False
        for level in self._levels:
            # Under a server that gives no raw path, it is stored by the path that was decoded.
            entries = await self._variants(level, key) or await self._variants(level, policy.decoded_key(key))
            entries = [entry for entry in entries if now <= entry.retain_until]
            levels[level] = [variant(cache, key, entry, now) for entry in entries]
            for number, entry in enumerate(entries):
                if policy.matches(entry.vary, lines):
                    if selected is None or entry.fresh_until > selected[2].fresh_until:
                        selected = level, number, entry
                else:
                    others = True
        chosen: Entry | None = None if selected is None else selected[2]
        standing = None if chosen is None else cache.standing(key, chosen)
        verdict: Verdict | None = None if chosen is None else cache.log.verdict(key, chosen)
        decision = policy.decide(request, standing, now, cache.options, other_variants=others)
        return {
            "url": url_of(key),
            "levels": levels,
            "selected": None if selected is None else {"level": selected[0], "index": selected[1]},
            "verdict": told(decision, verdict, now),
        }

    async def _variants(self, level: str, key: CacheKey) -> Sequence[Entry]:
        """Return what *level* has under *key*, newest first; that counts as nothing."""
        store = self._level(level)
        peek = getattr(store, "peek", None)
        if peek is not None:
            return cast(Sequence[Entry], peek(key))
        found: list[Entry] = []
        seen: set[object] = set()
        while (entry := await store.get(key, lambda vary: vary not in seen)) is not None:
            found.append(entry)
            if not entry.vary:
                break  # it took the place of all that was there before it
            seen.add(entry.vary)
        return found

    async def _page(self, level: str, cursor: str, count: int) -> tuple[str, list[CacheKey]]:
        store = self._level(level)
        if not hasattr(store, "page"):
            raise ConfigurationError(f"a {type(store).__name__} cannot be listed")
        try:
            page = cast(_Pages, store).page(cursor, count)
            return cast(tuple[str, list[CacheKey]], await page if asyncio.iscoroutine(page) else page)
        except ValueError:
            raise ConfigurationError("this is no cursor of a list of that level: begin without one") from None

    @property
    def _memory(self) -> Store | None:
        """The level in this process's memory."""
        store = self.cache.store
        memory = getattr(store, "l1", store)
        return cast(Store, memory) if hasattr(memory, "peek") else None

    @property
    def _levels(self) -> Sequence[str]:
        """Which levels there are: "l1" is in memory, "l2" is below it."""
        below = hasattr(self.cache.store, "l2") or self._memory is None
        return [*(["l1"] if self._memory is not None else []), *(["l2"] if below else [])]

    def _level(self, level: str) -> Store:
        if level not in self._levels:
            there = " and ".join(self._levels)
            raise ConfigurationError(
                f"there is no level {level!r} here; a {type(self.cache.store).__name__} has {there}"
            )
        memory = self._memory
        if level == "l1":
            assert memory is not None
            return memory
        return cast(Store, getattr(self.cache.store, "l2", self.cache.store))

    # --- steering -----------------------------------------------------------------------------------------------------

    async def purge(
        self,
        *,
        url: str | None = None,
        tag: str | None = None,
        prefix: str | None = None,
        everything: bool = False,
        soft: bool = False,
        dry_run: bool = False,
    ) -> dict[str, Any]:
        """
        Make what is named gone in all workers, or stale if *soft*; with *dry_run* only say what it would be.

        Exactly one of url, tag, prefix and everything. A path as url or prefix is that of every origin.
        matched: how many keys it is, where that was counted; is_complete: whether all were. sample: some of their URLs.
        propagated: whether Redis, and by it the other workers, has been told.
        """
        named = [name for name, value in (("url", url), ("tag", tag), ("prefix", prefix), ("all", everything)) if value]
        if len(named) != 1:
            raise ConfigurationError(
                f"name exactly one of url, tag, prefix and all{', not ' + ' and '.join(named) if named else ''}"
            )
        if dry_run:
            matched, complete, sample = await self._matching(url=url, tag=tag, prefix=prefix)
            return {"dry_run": True, "purged": False, "matched": matched, "is_complete": complete, "sample": sample}
        # Not the origin of the request for the dashboard, where a path is named.
        token = current_exchange.set(None)
        try:
            result: InvalidationResult
            if everything:
                result = await self.cache.clear(soft=soft)
            else:
                result = await self.cache.invalidate(url=url, tags=[tag] if tag else [], prefix=prefix, soft=soft)
        finally:
            current_exchange.reset(token)
        return {"dry_run": False, "purged": True, "propagated": result.propagated, "position": result.log_id}

    async def _matching(self, *, url: str | None, tag: str | None, prefix: str | None) -> tuple[int, bool, list[str]]:
        """Return how many stored keys are named, whether all were looked at, and some of their URLs."""
        is_named = self._named(url, prefix)
        found: set[CacheKey] = set()
        complete = True
        for level in self._levels:
            at, looked_at = "", 0
            while True:
                at, keys = await self._page(level, at, MAX_LIMIT)
                looked_at += len(keys)
                matching = [key for key in keys if key not in found and is_named(key)]
                if tag is None:
                    found.update(matching)
                    await asyncio.sleep(0)
                else:
                    async for key, entries in self._with_entries(level, matching):
                        if any(tag in entry.groups for entry in entries):
                            found.add(key)
                if not at:
                    break
                if looked_at >= _COUNTED:
                    complete = False
                    break
        return len(found), complete, sorted(url_of(key) for key in list(found)[:_SAMPLE])

    def _named(self, url: str | None, prefix: str | None) -> Callable[[CacheKey], bool]:
        """Return what says whether a key is named by *url* or *prefix*; by neither: each is."""
        if url is None and prefix is None:
            return lambda key: True
        text = url if url is not None else prefix
        assert text is not None
        everywhere = text.startswith("/")
        named = policy.key_of_url("http://any" + text if everywhere else text, self.cache.options)
        forms = [named, policy.decoded_key(named)]

        def is_named(key: CacheKey) -> bool:
            form, scheme, host, path, query = key
            for one in forms:
                if not everywhere and (scheme, host) != one[1:3]:
                    continue
                if url is not None and form == one[0] and (path, query) == one[3:]:
                    return True
                if prefix is not None and path.startswith(one[3]):
                    return True
            return False

        return is_named

    async def clear(self, level: str) -> dict[str, Any]:
        """Forget all that "l1", "l2" or both ("all") have; entries: how many keys, None where that is not known."""
        if level == "all":
            result = await self.cache.clear()
            return {"cleared": "all", "entries": None, "propagated": result.propagated}
        store = self._level(level)
        clear = getattr(self.cache.store, f"clear_{level}", None)
        return {"cleared": level, "entries": await (store.clear() if clear is None else clear())}

    async def sync(self, to: str, progress: Callable[[Any], object] | None = None) -> dict[str, Any]:
        """Copy to "l1" or "l2" what the other level has and it has not."""
        name = {"l1": "sync_l2_to_l1", "l2": "sync_l1_to_l2"}.get(to)
        if name is None:
            raise ConfigurationError(f"levels are synced to 'l1' or 'l2', not {to!r}")
        copy = getattr(self.cache.store, name, None)
        if copy is None:
            raise ConfigurationError(f"a {type(self.cache.store).__name__} has one level: there is nothing to sync")
        report = await copy(progress)
        return {
            "to": to,
            "seen": report.seen,
            "copied": report.copied,
            "skipped": report.skipped,
            "failed": report.failed,
        }

    async def warm(self, urls: Sequence[str], progress: WarmProgress | None = None) -> dict[str, Any]:
        """Ask the app for *urls* through the cache, which stores the answers."""
        report = await self.cache.warm(urls, progress=progress)
        return {
            "done": report.done,
            "stored": report.stored,
            "hits": report.hits,
            "uncached": report.uncached,
            "failed": report.failed,
        }


def _lines(headers: Iterable[tuple[str, str]]) -> tuple[tuple[bytes, bytes], ...]:
    """Return request fields as requests have them. Raises ConfigurationError for what is none."""
    found = []
    for name, value in headers:
        try:
            line = name.strip().lower().encode("ascii"), value.strip().encode("latin-1")
        except UnicodeError:
            line = b"", b""
        if not fields.is_valid_field_name(line[0]) or not fields.is_valid_field_value(line[1]):
            raise ConfigurationError(f"not a request field: {name!r}")
        found.append(line)
    return tuple(found)
