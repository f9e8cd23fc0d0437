"""
Asking an app for its own pages: to warm its cache, or to have an answer explained. The one rule: what the cache did is
read from the answer, as any client could.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from echo_cache.cli.explain import Explanation, Outcome, explain
from echo_cache.cli.sitemap import MAX_BYTES, Sitemap, parse_sitemap
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
    url: str, headers: Sequence[Header], *, name: str | None, timeout: float
) -> tuple[Explanation, list[Reply], str]:
    """
    Ask for *url* twice; return the explanation of the answers, them, and why there is no second one, if there is none.

    Each over a connection of its own, as two clients would. Raises Unavailable where the first does not come.
    """
    async with client() as lent:
        first = await fetch(lent, "GET", url, headers, timeout=timeout)
    second, trouble = None, ""
    try:
        async with client() as lent:
            second = await fetch(lent, "GET", url, headers, timeout=timeout)
    except Unavailable as error:
        trouble = str(error)
    again = None if second is None else (second.status, second.headers)
    explanation = explain("GET", url, first.sent, first.status, first.headers, again, name=name)
    return explanation, [first] if second is None else [first, second], trouble


@dataclass
class Visits:
    """
    What became of the visits so far; the counts are those of WarmReport.

    reached: how many had an answer, whatever it was. problems: the first failures, each with its URL. reasons: how
    often which sentence says why an answer was not stored.
    """

    wanted: int
    done: int = 0
    stored: int = 0
    hits: int = 0
    uncached: int = 0
    failed: int = 0
    reached: int = 0
    problems: list[dict[str, str]] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    # By host: how many requests reached nobody, until one did.
    _silent: Counter[str] = field(default_factory=Counter)
    _heard: set[str] = field(default_factory=set)

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {
            **{name: getattr(self, name) for name in ("wanted", "done", "stored", "hits", "uncached", "failed")},
            "problems": self.problems,
            "uncached_because": [{"reason": reason, "times": times} for reason, times in self.reasons.most_common(10)],
        }

    def note(self, url: str, reply: Reply, explanation: Explanation) -> None:
        """Take note of an answer."""
        self.reached += 1
        self._heard.add(_host(url))
        if reply.status >= 400:
            self.fail(url, f"it answers {reply.status}")
        elif not reply.is_whole:
            self.fail(url, "its body did not end in time")
        elif explanation.outcome in _HITS:
            self.done, self.hits = self.done + 1, self.hits + 1
        elif explanation.outcome in IS_CACHED:
            self.done, self.stored = self.done + 1, self.stored + 1
        else:
            self.done, self.uncached = self.done + 1, self.uncached + 1
            if len(self.reasons) < _REASONS_KEPT or explanation.sentence in self.reasons:
                self.reasons[explanation.sentence] += 1

    def fail(self, where: str, problem: str) -> None:
        """Take note of a failure."""
        self.done += 1
        self.failed += 1
        if len(self.problems) < _LONGEST_LISTED:
            self.problems.append({"url": shown_url(where), "problem": problem})

    def note_silence(self, url: str, problem: str) -> None:
        """Take note of a request that reached nobody."""
        self._silent[_host(url)] += 1
        self.fail(url, problem)

    def is_given_up(self, url: str) -> bool:
        """Say whether so many requests to the host of *url* reached nobody, and none did, that it is not asked more."""
        host = _host(url)
        return host not in self._heard and self._silent[host] >= _GIVEN_UP_AFTER


async def visit(
    urls: Sequence[str],
    headers: Sequence[Header] = (),
    *,
    name: str | None,
    concurrency: int,
    timeout: float,
    progress: Callable[[Visits], object] = lambda _: None,
) -> Visits:
    """Ask for each of *urls*, *concurrency* at a time, and return what became of them."""
    visits = Visits(len(urls))
    waiting = iter(urls)

    async def work(lent: httpx.AsyncClient) -> None:
        for url in waiting:
            if visits.is_given_up(url):
                visits.fail(url, "not asked: nobody answers at this host")
                continue
            try:
                reply = await fetch(lent, "GET", url, headers, timeout=timeout)
            except Unavailable as error:
                visits.note_silence(url, str(error))
            else:
                visits.note(url, reply, explain("GET", url, reply.sent, reply.status, reply.headers, name=name))
            progress(visits)

    async with client(concurrency) as lent:
        await asyncio.gather(*(work(lent) for _ in range(min(concurrency, len(urls)))))
    return visits


async def read_sitemap(url: str, timeout: float, note: Callable[[str], object]) -> Sitemap:
    """
    Return what the sitemap at *url* names, and those that it leads to; of its own host alone.

    Whoever writes a sitemap does not get to choose whom we ask. *note* is told of what is left out.
    Raises Unavailable, and ConfigurationError for what is no sitemap.
    """
    host = _host(require_url(url))
    found: dict[str, None] = {}
    bad: list[tuple[str, str]] = []
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
            bad += [(f"{shown_url(at)}, {where}", flaw) for where, flaw in sitemap.bad]
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
            if len(seen) > _MOST_SITEMAPS or len(found) + len(bad) > _MOST_URLS:
                raise ConfigurationError(
                    f"the sitemap leads to more than {_MOST_SITEMAPS} sitemaps or {_MOST_URLS} URLs: warm its parts"
                )
    if elsewhere:
        note(f"left out: {elsewhere} URLs of other hosts than {shown_url(host)}")
    return Sitemap(list(found), [], bad)


def _host(url: str) -> str:
    parts = urlsplit(url)
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme, 0)
    return f"{parts.hostname or ''}:{port}"
