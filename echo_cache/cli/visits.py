"""
Asking an app for its own pages: to warm its cache, or to have an answer explained. The one rule: what the cache did is
read from the answer, as any client could.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from echo_cache.cli.explain import Explanation, Outcome, explain
from echo_cache.cli.sitemap import MAX_BYTES, parse_sitemap
from echo_cache.cli.web import Reply, Unavailable, client, fetch, require_url, shown_url
from echo_cache.errors import ConfigurationError

if TYPE_CHECKING:
    import httpx

__all__ = ["IS_CACHED", "Visits", "ask_twice", "read_sitemap", "visit"]

IS_CACHED: Final = frozenset({Outcome.HIT, Outcome.STALE, Outcome.VALIDATED, Outcome.COLLAPSED, Outcome.STORED})
"""What became of a request that the next one gets something of."""

_HITS: Final = frozenset({Outcome.HIT, Outcome.STALE, Outcome.VALIDATED})
_LONGEST_LISTED: Final = 20
_REASONS_KEPT: Final = 64
# After so many requests that reached nobody, and none that did, the rest is not tried.
_GIVEN_UP_AFTER: Final = 16

_MOST_SITEMAPS: Final = 1_000
_MOST_URLS: Final = 500_000

Header = tuple[str, str]


async def ask_twice(
    url: str, headers: Sequence[Header], *, name: str, timeout: float
) -> tuple[Explanation, list[Reply]]:
    """Ask for *url* twice, and return the explanation of both answers, and them. Raises Unavailable."""
    async with client() as lent:
        first = await fetch(lent, "GET", url, headers, timeout=timeout)
        second = await fetch(lent, "GET", url, headers, timeout=timeout)
    explanation = explain(
        "GET", url, first.sent, first.status, first.headers, (second.status, second.headers), name=name
    )
    return explanation, [first, second]


@dataclass
class Visits:
    """
    What became of the visits so far; the counts are those of WarmReport.

    problems: the first failures, each with its URL. reasons: how often which sentence says why an answer was not
    stored.
    """

    wanted: int
    done: int = 0
    stored: int = 0
    hits: int = 0
    uncached: int = 0
    failed: int = 0
    problems: list[dict[str, str]] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {
            **{name: getattr(self, name) for name in ("wanted", "done", "stored", "hits", "uncached", "failed")},
            "problems": self.problems,
            "uncached_because": [{"reason": reason, "times": times} for reason, times in self.reasons.most_common(10)],
        }

    def note(self, url: str, reply: Reply, explanation: Explanation) -> None:
        """Take note of an answer."""
        self.done += 1
        if reply.status >= 500:
            self.fail(url, f"it answers {reply.status}")
        elif not reply.is_whole:
            self.fail(url, "its body did not end in time")
        elif explanation.outcome in _HITS:
            self.hits += 1
        elif explanation.outcome in IS_CACHED:
            self.stored += 1
        else:
            self.uncached += 1
            if len(self.reasons) < _REASONS_KEPT or explanation.sentence in self.reasons:
                self.reasons[explanation.sentence] += 1

    def fail(self, url: str, problem: str) -> None:
        """Take note of a failure."""
        self.failed += 1
        if len(self.problems) < _LONGEST_LISTED:
            self.problems.append({"url": shown_url(url), "problem": problem})


async def visit(
    urls: Sequence[str],
    headers: Sequence[Header] = (),
    *,
    name: str,
    concurrency: int,
    timeout: float,
    progress: Callable[[Visits], object] = lambda _: None,
) -> Visits:
    """
    Ask for each of *urls*, *concurrency* at a time, and return what became of them.

    Raises Unavailable where nobody at all is reached.
    """
    visits = Visits(len(urls))
    waiting = iter(urls)

    async def work(lent: httpx.AsyncClient) -> None:
        for url in waiting:
            try:
                reply = await fetch(lent, "GET", url, headers, timeout=timeout)
            except Unavailable as error:
                visits.done += 1
                visits.fail(url, str(error))
                if visits.done == visits.failed >= min(_GIVEN_UP_AFTER, visits.wanted):
                    raise
            else:
                visits.note(url, reply, explain("GET", url, reply.sent, reply.status, reply.headers, name=name))
            progress(visits)

    async with client(concurrency) as lent:
        await _all_of([work(lent) for _ in range(min(concurrency, len(urls)))])
    return visits


async def _all_of(works: Iterable[Any]) -> None:
    """Run *works* side by side; the first error ends them all, and is raised as itself."""
    try:
        async with asyncio.TaskGroup() as group:
            for work in works:
                group.create_task(work)
    except* Unavailable as errors:
        error = errors.exceptions[0]
        assert isinstance(error, Unavailable)
        raise Unavailable(str(error)) from error


async def read_sitemap(url: str, timeout: float, note: Callable[[str], object]) -> list[str]:
    """
    Return the URLs that the sitemap at *url* names, and those that it leads to; of its own host alone.

    Whoever writes a sitemap does not get to choose whom we ask. *note* is told of what is left out.
    Raises Unavailable, and ConfigurationError for what is no sitemap.
    """
    host = _host(require_url(url))
    found: dict[str, None] = {}
    waiting, seen, elsewhere = [url], {url}, 0
    async with client() as lent:
        while waiting:
            at = waiting.pop(0)
            reply = await fetch(
                lent, "GET", at, [("accept-encoding", "identity")], most_bytes=MAX_BYTES, timeout=timeout
            )
            if reply.status != 200:
                to = f" to {reply.get(b'location')}" if 300 <= reply.status < 400 else ""
                raise Unavailable(f"{shown_url(at)} answers {reply.status}{to}, and no sitemap")
            try:
                sitemap = parse_sitemap(reply.body)
            except ConfigurationError as error:
                raise ConfigurationError(f"{shown_url(at)}: {error}") from None
            for one in sitemap.urls:
                if _host(one) == host:
                    found[one] = None
                else:
                    elsewhere += 1
            for one in sitemap.nested:
                if _host(one) != host:
                    elsewhere += 1
                elif one not in seen:
                    seen.add(one)
                    waiting.append(one)
            if len(seen) > _MOST_SITEMAPS or len(found) > _MOST_URLS:
                raise ConfigurationError(
                    f"the sitemap leads to more than {_MOST_SITEMAPS} sitemaps or {_MOST_URLS} URLs: warm its parts"
                )
    if elsewhere:
        note(f"left out: {elsewhere} URLs of other hosts than {shown_url(host)}")
    return list(found)


def _host(url: str) -> str:
    parts = urlsplit(url)
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme, 0)
    return f"{parts.hostname or ''}:{port}"
