"""Management of one cache: its statistics, what it has stored, and how to change that."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Any, Final, Protocol, cast

from echo_cache import fields, policy
from echo_cache.cache import Cache, InvalidationResult
from echo_cache.cache.invalidating import named_marks
from echo_cache.cache.report import Report, parse_report, sum_of
from echo_cache.cache.warming import Progress as WarmProgress
from echo_cache.coordination.exchange import current_exchange
from echo_cache.coordination.marks import Verdict
from echo_cache.errors import ConfigurationError, StoreError
from echo_cache.management.entries import Pattern, Sized, digest_of, summary, url_of, variant
from echo_cache.management.refusals import RecentRefusals
from echo_cache.management.why import told
from echo_cache.model import CacheKey, Entry, Request
from echo_cache.stores.base import Store
from echo_cache.stores.twolevel.management import all_variants

__all__ = ["MAX_LIMIT", "Management"]

MAX_LIMIT: Final = 500
"""How many entries one page may have."""

# How many keys one call looks at, whatever it looks for: the cursor goes on where it ends.
_LOOKED_AT: Final = 2_000
# How many a dry run looks at. Beyond, it says "at least".
_COUNTED: Final = 100_000
_SAMPLE: Final = 10
# For how many seconds what takes most room is taken to be the same.
_LARGEST_FOR: Final = 15.0
# Reports that are read, or summed, between two chances for other tasks: 2 ms.
_REPORTS_STEP: Final = 4
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
        self._largest_known: list[tuple[CacheKey, int]] = []
        self._largest_until = 0.0

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
        found: dict[str, Report] = {}
        for number, raw in enumerate(told_by_all):
            report = parse_report(raw)
            if report is not None:
                found[report.id] = report
            if number % _REPORTS_STEP == 0:
                await asyncio.sleep(0)
        return [found[name] for name in sorted(found)]

    @property
    def _reports(self) -> bool:
        """Whether this process is one of the workers: it answers requests, or has done so."""
        return self.cache.is_attached

    async def stats(self) -> dict[str, Any]:
        """
        Return the reports of this worker ("worker") and of all ("workers"), and their sum ("total").

        shared: whether workers know of each other at all: by a Redis. workers_known: whether the others could be asked;
        if not, there is this one alone.
        """
        reports = await self.reports()
        own = self.report()
        shared = self.cache.workers is not None
        known = shared and reports is not None
        reports = reports or ([own] if self._reports or not known else [])
        return {
            "shared": shared,
            "worker": own.as_json(),
            "total": (await _sum(reports or [own])).as_json(),
            "workers": [report.as_json() for report in reports],
            "workers_known": known,
        }

    async def reset(self) -> dict[str, Any]:
        """
        Begin to count anew: in this worker at once, in the others when they next report.

        told: whether Redis, and by it the others, has been told; None where there are none to be told.
        """
        self.cache.reset_stats()
        workers = self.cache.workers
        told_others: bool | None = None
        if workers is not None:
            try:
                await workers.reset()
                told_others = True
            except StoreError:
                told_others = False
        return {**self._named_worker, "reset": True, "told": told_others}

    def refusals(self) -> list[dict[str, Any]]:
        """Return what this worker did not store lately, newest first, with the reasons in words."""
        return self._refusals.latest()

    @property
    def refusals_seen(self) -> int:
        """How many refusals there were: whether there are new ones."""
        return self._refusals.seen

    async def top(self, number: int = 10) -> dict[str, Any]:
        """Return what is hit most in this worker (an estimate), and what takes most room in its memory."""
        by_bytes = await self._largest(number)
        by_hits = self.cache.favourites.most(number)
        return {
            **self._named_worker,
            "by_hits": [{"url": url_of(cast(CacheKey, key)), "hits": hits} for key, hits in by_hits],
            "by_bytes": [{"url": url_of(key), "bytes": size} for key, size in by_bytes],
        }

    async def _largest(self, number: int) -> list[tuple[CacheKey, int]]:
        """Return what takes most room, as it was a moment ago: to look for it takes 1.5 us for each entry."""
        largest = getattr(self._memory, "largest", None)
        now = asyncio.get_running_loop().time()
        if largest is not None and (now >= self._largest_until or len(self._largest_known) < number):
            self._largest_until = now + _LARGEST_FOR
            self._largest_known = await largest(max(number, 10))
        return self._largest_known[:number]

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
            matching = [key async for key in _steps(keys) if wanted is None or wanted(url_of(key))]
            async for key, variants in self._with_variants(level, matching):
                if _has_tag(variants, tag):
                    found.append(summary(self.cache, key, variants, level, now))
            if not at:
                break
        return {**self._named_worker, "level": level, "entries": found, "cursor": at or None}

    async def _with_variants(
        self, level: str, keys: Sequence[CacheKey]
    ) -> AsyncIterator[tuple[CacheKey, Sequence[Sized]]]:
        """Yield each of *keys* that *level* has, with its variants, newest first; other tasks run between steps."""
        for start in range(0, len(keys), _STEP):
            page = keys[start : start + _STEP]
            for key, variants in zip(page, await self._variants(level, page), strict=True):
                if variants:
                    yield key, variants
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
        unknown: list[str] = []
        selected: tuple[str, int, Entry] | None = None
        others = False
        for level in self._levels:
            try:
                # Under a server that gives no raw path, it is stored by the path that was decoded.
                at_hand, decoded = await self._variants(level, [key, policy.decoded_key(key)])
            except StoreError:
                unknown.append(level)
                continue
            variants = [one for one in at_hand or decoded if now <= one.entry.retain_until]
            levels[level] = [variant(cache, key, one, now) for one in variants]
            for number, (entry, _) in enumerate(variants):
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
            **self._named_worker,
            "url": url_of(key),
            "key_digest": digest_of(key),
            "levels": levels,
            "unknown": unknown,
            "selected": None if selected is None else {"level": selected[0], "index": selected[1]},
            "verdict": told(decision, verdict, now),
        }

    async def _variants(self, level: str, keys: Sequence[CacheKey]) -> list[Sequence[Sized]]:
        """Return what *level* has under each of *keys*, newest first; that counts as nothing."""
        store = self._level(level)
        heads, peek = getattr(store, "heads", None), getattr(store, "peek", None)
        if heads is not None:
            return [[Sized(*head) for head in some] for some in await heads(keys)]
        if peek is not None:
            return [[Sized(entry, len(entry.response.body)) for entry in peek(key)] for key in keys]
        found = [await all_variants(store, key) for key in keys]
        return [[Sized(entry, len(entry.response.body)) for entry in entries] for entries in found]

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

    @property
    def _named_worker(self) -> dict[str, str]:
        """Which worker has answered: a page may speak with several."""
        return {"worker": self.cache.worker_id}

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
            if not everything:  # what the real one would refuse
                tags = [tag] if tag else []
                named_marks(url=url, tags=tags, prefix=prefix, soft=soft, options=self.cache.options, base=None)
            matched, complete, sample = await self._matching(url=url, tag=tag, prefix=prefix)
            return {
                **self._named_worker,
                "dry_run": True,
                "purged": False,
                "matched": matched,
                "is_complete": complete,
                "sample": sample,
            }
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
        return {
            **self._named_worker,
            "dry_run": False,
            "purged": True,
            "propagated": result.propagated,
            "position": result.log_id,
        }

    async def _matching(self, *, url: str | None, tag: str | None, prefix: str | None) -> tuple[int, bool, list[str]]:
        """Return how many stored keys are named, whether all were looked at, and some of their URLs."""
        is_named = self._named(url, prefix)
        found: set[CacheKey] = set()
        complete = True
        for level in self._levels:
            async for keys in self._keys_to_count(level, url):
                matching = [key async for key in _steps(keys) if key not in found and is_named(key)]
                async for key, variants in self._with_variants(level, matching):
                    if _has_tag(variants, tag) and not self._are_gone(key, variants):
                        found.add(key)
                complete = complete and len(keys) > 0
        return len(found), complete, sorted(url_of(key) for key in list(found)[:_SAMPLE])

    async def _keys_to_count(self, level: str, url: str | None) -> AsyncIterator[Sequence[CacheKey]]:
        """Yield the keys of *level* that may be named, in pages; an empty one: there are more than are looked at."""
        if url is not None and not url.startswith("/"):
            key = policy.key_of_url(url, self.cache.options)
            yield [key, policy.decoded_key(key)]
            return
        at, looked_at = "", 0
        while True:
            at, keys = await self._page(level, at, MAX_LIMIT)
            looked_at += len(keys)
            if keys:
                yield keys
            if not at:
                return
            if looked_at >= _COUNTED:
                yield []
                return

    def _are_gone(self, key: CacheKey, variants: Sequence[Sized]) -> bool:
        """Say whether all of *variants* have been invalidated already."""
        return all(self.cache.log.verdict(key, entry) is Verdict.GONE for entry, _ in variants)

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
            return {**self._named_worker, "cleared": "all", "entries": None, "propagated": result.propagated}
        store = self._level(level)
        clear = getattr(self.cache.store, f"clear_{level}", None)
        return {**self._named_worker, "cleared": level, "entries": await (store.clear() if clear is None else clear())}

    async def sync(self, to: str, progress: Callable[[Any], object] | None = None) -> dict[str, Any]:
        """Copy to "l1" or "l2" what the other level has and it has not."""
        name = {"l1": "sync_l2_to_l1", "l2": "sync_l1_to_l2"}.get(to)
        if name is None:
            raise ConfigurationError(f"levels are synced to 'l1' or 'l2', not {to!r}")
        copy = getattr(self.cache.store, name, None)
        if copy is None:
            raise ConfigurationError(f"a {type(self.cache.store).__name__} has one level: there is nothing to sync")
        await self._page("l2", "", 1)  # where Redis cannot be asked, that is the answer, and not 0 of 0
        report = await copy(progress)
        return {
            **self._named_worker,
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


async def _steps(keys: Sequence[CacheKey]) -> AsyncIterator[CacheKey]:
    """Yield *keys*; other tasks run between steps."""
    for number, key in enumerate(keys):
        if number % _STEP == _STEP - 1:
            await asyncio.sleep(0)
        yield key


async def _sum(reports: Sequence[Report]) -> Report:
    """Return the sum of *reports*; other tasks run between steps."""
    summed = list(reports)
    while len(summed) > _REPORTS_STEP:
        parts = [summed[start : start + _REPORTS_STEP] for start in range(0, len(summed), _REPORTS_STEP)]
        summed = []
        for part in parts:
            summed.append(sum_of(part))
            await asyncio.sleep(0)
    return sum_of(summed)


def _has_tag(variants: Sequence[Sized], tag: str | None) -> bool:
    return tag is None or any(tag in entry.groups for entry, _ in variants)


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
