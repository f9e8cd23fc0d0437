"""
What the command line looks at: a Redis, or the JSON interface of a running app. One interface for both.

The one rule: an address says which, by its scheme, and no secret that is in it is ever shown.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias
from urllib.parse import urlencode, urljoin, urlsplit

from echo_cache.cache import Cache
from echo_cache.cli.doctor import Facts, judge, trouble_of
from echo_cache.cli.show import note
from echo_cache.cli.text import shown
from echo_cache.cli.web import Reply, Unavailable, client, fetch, require_url, shown_url
from echo_cache.errors import ConfigurationError, StoreError
from echo_cache.management import Management
from echo_cache.management.manager import MAX_LIMIT
from echo_cache.settings import Settings

if TYPE_CHECKING:
    import httpx

__all__ = ["TIMEOUT", "Access", "Json", "Target", "address_of", "in_words", "open_target", "settings_for"]

Json: TypeAlias = dict[str, Any]

_URL_FILE: Final = "ECHO_CACHE_URL_FILE"
_LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})
_DEFAULT_PATH: Final = "/_cache"
_MOST_BYTES: Final = 64 * 1024 * 1024
_LONGEST: Final = 500
# Of a number in JSON. Longer ones are nobody's count, and no float has room for them.
_MOST_DIGITS: Final = 20
# A process that asks a few times needs no breaker: the words of the failure itself are wanted.
_NO_BREAKER: Final = 1_000_000
TIMEOUT: Final = 10.0
"""How long one answer may take where nothing is said, in seconds."""


@dataclass(frozen=True, slots=True)
class Access:
    """
    How a target is asked. prefix: of RedisStore. token: of an app. None for what the environment says.

    timeout: how long one answer may take, in seconds; None: as long as an app in the same environment waits for Redis.
    """

    prefix: str | None = None
    token: str | None = field(default=None, repr=False)
    timeout: float | None = TIMEOUT


class Target(Protocol):
    """
    What can be looked at and steered; shapes are those of Management.

    Raises ConfigurationError for what cannot be done, Unavailable where nobody answers.
    """

    @property
    def location(self) -> str:
        """Where it is, without secrets."""
        ...

    async def stats(self) -> Json:
        """Return what the workers have done."""
        ...

    async def entries(
        self, *, match: str | None, tag: str | None, level: str | None, limit: int, cursor: str | None
    ) -> Json:
        """Return a page of what is stored."""
        ...

    async def inspect(self, url: str, headers: Sequence[tuple[str, str]]) -> Json:
        """Return all that is stored under *url*."""
        ...

    async def purge(self, what: Mapping[str, str | bool], *, soft: bool, dry_run: bool) -> Json:
        """Make gone what is named by "url", "tag", "prefix" or "all"."""
        ...

    async def sync(self, to: str) -> Json:
        """Copy to "l1" or "l2" what the other level has and it has not."""
        ...


def is_app(address: str) -> bool:
    """Say whether *address* is that of a running app."""
    return address.lower().startswith(("http://", "https://"))


def address_of(given: str | None, environ: Mapping[str, str] = os.environ, *, redis_only: bool = False) -> str:
    """
    Return the address that is *given*, or the first of those in the environment. Raises ConfigurationError for none.

    redis_only: that of an app in the environment does not count.
    """
    named = [given, environ.get("ECHO_CACHE_TARGET"), environ.get("ECHO_CACHE_URL")]
    if not any(named) and environ.get(_URL_FILE):
        named = [Settings.from_env(environ).url]
    found = next((one for one in named if one and not (redis_only and one is not given and is_app(one))), None)
    if found is not None:
        return found.strip()
    apps = "" if redis_only else ", or http://host/_cache for a running app"
    raise ConfigurationError(
        f"say what to look at: redis://host{apps} (as TARGET, by --target, in ECHO_CACHE_TARGET or ECHO_CACHE_URL)"
    )


@asynccontextmanager
async def open_target(address: str, access: Access) -> AsyncIterator[Target]:
    """Lend the target at *address*. Raises ConfigurationError for what is none."""
    if is_app(address):
        if access.prefix:
            raise ConfigurationError("--redis-prefix is of a Redis, and the target is a running app: leave it out")
        async with client() as lent:
            yield _App(lent, _base_of(address), access)
        return
    if access.token:
        raise ConfigurationError("--token is of a running app, and the target is a Redis: leave it out")
    settings = settings_for(address, access)
    store = settings.redis.store(settings.url)
    cache = Cache(store, settings.policy, name=settings.name, coordination=settings.coordination)
    try:
        yield _Redis(cache, settings.redis.timeout)
    finally:
        await cache.aclose(1.0)


def settings_for(address: str, access: Access, environ: Mapping[str, str] = os.environ) -> Settings:
    """
    Return the settings of the cache at *address*, a URL of Redis, as the app in the same environment has them.

    Raises ConfigurationError, which does not show the address.
    """
    scheme, mark, rest = address.strip().partition("://")
    address = f"{scheme.lower()}{mark}{rest}"
    if address.startswith("memory:"):
        raise ConfigurationError(
            "the memory of an app can only be seen through the app: --target http://host/_cache "
            "(mount its dashboard by echo_cache.dashboard.mount)"
        )
    if is_app(address):
        raise ConfigurationError(
            "this looks at a Redis, and the address is that of a running app: give redis://host, as the app has it"
        )
    if not address.startswith(("redis", "unix")):
        raise ConfigurationError(
            "a target begins with http:// or https:// (a running app), or with redis://, rediss://, unix://, "
            "redis+sentinel:// or redis+cluster://"
        )
    Settings.from_url(address)  # so that its mistakes are told as its own
    others = {name: value for name, value in environ.items() if name != _URL_FILE}
    settings = Settings.from_env({**others, "ECHO_CACHE_URL": address})
    redis = replace(settings.redis, prefix=access.prefix or settings.redis.prefix, breaker_failures=_NO_BREAKER)
    if access.timeout is not None:
        redis = replace(redis, timeout=access.timeout)
    return replace(settings, redis=redis)


@contextmanager
def in_words(location: str) -> Iterator[None]:
    """Have a StoreError about the Redis at *location* told as the doctor does: what it is a sign of, and what to do."""
    try:
        yield
    except StoreError as error:
        trouble, words = trouble_of(error.__cause__ or error)
        if error.__cause__ is None and str(error).startswith("Redis at"):
            words = ""  # what the store says itself repeats what and where
        finding = judge(Facts(location, trouble=(trouble, words)))[0]
        raise Unavailable(f"{finding.what.rstrip('. ')}. {finding.remedy}".strip()) from error


# --- Redis alone ------------------------------------------------------------------------------------------------------

# How often it is looked whether the log is known, which takes as long as Redis takes.
_STEP: Final = 0.02
# How long it is looked for anything at all under a prefix, in seconds.
_SEARCH: Final = 2.0
_IS_THERE: Final = "return redis.call('EXISTS', KEYS[1])"


class _Redis:
    def __init__(self, cache: Cache, timeout: float) -> None:
        self._cache = cache
        self._timeout = timeout
        self._management = Management(cache)
        server = getattr(cache.store, "server", None)
        assert server is not None
        self._server = server
        self._workers, self._log = f"{server.prefix}:workers", f"{{{server.prefix}:log}}"

    @property
    def location(self) -> str:
        return str(self._server.location)

    @asynccontextmanager
    async def _asked(self, *, log: bool = True) -> AsyncIterator[Management]:
        """
        See that Redis answers, and tell in words why it does not. log: have it known what was invalidated.

        Where there is no log, it is not followed: that would begin one, which never ends.
        """
        with in_words(self.location):
            if await self._is_there(self._log if log else self._workers) and log:
                await self._know_the_log()
            yield self._management

    async def _is_there(self, name: str) -> bool:
        return bool(await self._server.evaluate(_IS_THERE, (name,), ()))

    async def stats(self) -> Json:
        async with self._asked(log=False) as management:
            if self._cache.workers is None:
                raise ConfigurationError(
                    "report_every is 0, so workers tell nothing of themselves: ask a running app, --target http://..."
                )
            stats = await management.stats()
            if not stats["workers_known"]:
                raise StoreError("the workers' reports could not be read")
            # This process is none of the workers: it has answered nothing.
            return {**stats, "worker": None}

    async def entries(
        self, *, match: str | None, tag: str | None, level: str | None, limit: int, cursor: str | None
    ) -> Json:
        if level == "l1":
            raise ConfigurationError(
                "level l1 is in the memory of the workers: --target http://host/_cache of a running app shows it"
            )
        async with self._asked() as management:
            return await management.entries(match=match, tag=tag, level=level, limit=limit, cursor=cursor)

    async def inspect(self, url: str, headers: Sequence[tuple[str, str]]) -> Json:
        async with self._asked() as management:
            found = await management.inspect(url, headers)
            if found["unknown"]:
                raise StoreError("what is stored could not be read")
            return found

    async def purge(self, what: Mapping[str, str | bool], *, soft: bool, dry_run: bool) -> Json:
        async with self._asked(log=dry_run) as management:
            used = dry_run or await self._is_used(management)
            if not used and not await self._is_there(self._log):
                # There is nobody to tell, and what is told would stay there for ever.
                return {"dry_run": False, "purged": False, "propagated": True, "used": False}
            result = await management.purge(
                url=_text(what.get("url")),
                tag=_text(what.get("tag")),
                prefix=_text(what.get("prefix")),
                everything=bool(what.get("all")),
                soft=soft,
                dry_run=dry_run,
            )
            if not dry_run and not result["propagated"]:
                # This process keeps nothing, so nothing at all has been purged.
                raise StoreError("the invalidation could not be written into the log (echo-cache doctor may say why)")
            return {**result, "used": used}

    async def _is_used(self, management: Management) -> bool:
        """Say whether a worker reports, or anything is stored, under the prefix; True where that takes long."""
        if await self._is_there(self._workers):
            return True
        cursor: str | None = None
        try:
            async with asyncio.timeout(_SEARCH):
                while True:
                    page = await management.entries(limit=MAX_LIMIT, cursor=cursor)
                    cursor = page["cursor"]
                    if page["entries"] or not cursor:
                        return bool(page["entries"])
        except TimeoutError:
            return True

    async def sync(self, to: str) -> Json:
        raise ConfigurationError(
            "levels are copied by the workers, which have the memory: --target http://host/_cache of a running app"
        )

    async def _know_the_log(self) -> None:
        """Wait until it is known what was invalidated: before that, everything is in doubt."""
        log = self._cache.log
        log.follow()
        try:
            async with asyncio.timeout(self._timeout):
                while not log.known:
                    await log.ready()
                    await asyncio.sleep(_STEP)
        except TimeoutError as error:
            raise StoreError(f"the invalidation log could not be read within {self._timeout:g} s") from error


def _text(value: str | bool | None) -> str | None:
    return value if isinstance(value, str) else None


# --- a running app ----------------------------------------------------------------------------------------------------


def _base_of(address: str) -> str:
    """Return the address of a JSON interface, without a slash at its end. Raises ConfigurationError."""
    parts = urlsplit(address)
    if "@" in parts.netloc:
        raise ConfigurationError("there must be no user and password in the target; give --token or ECHO_CACHE_TOKEN")
    require_url(address)
    if parts.query or parts.fragment:
        raise ConfigurationError("the target is where the dashboard is mounted, as http://host/_cache, without ? or #")
    base = address.rstrip("/")
    return base if parts.path.strip("/") else base + _DEFAULT_PATH


class _App:
    def __init__(self, lent: httpx.AsyncClient, base: str, access: Access) -> None:
        token = access.token or os.environ.get("ECHO_CACHE_TOKEN") or os.environ.get("ECHO_CACHE_DASHBOARD_TOKEN")
        if token and not (token.isascii() and token.isprintable() and " " not in token):
            raise ConfigurationError("the token must be visible ASCII characters")
        self._lent = lent
        self._base = base
        self._timeout = TIMEOUT if access.timeout is None else access.timeout
        self._headers = [("accept", "application/json"), ("accept-encoding", "identity")]
        self._has_token = bool(token)
        if token:
            self._headers.append(("authorization", f"Bearer {token}"))
            if _is_exposed(base):
                note("note: the token goes over the network as it is; use https:// for other machines")

    @property
    def location(self) -> str:
        return shown_url(self._base)

    async def stats(self) -> Json:
        return await self._ask("GET", "/api/stats", needs={"total": dict, "workers": list})

    async def entries(
        self, *, match: str | None, tag: str | None, level: str | None, limit: int, cursor: str | None
    ) -> Json:
        asked = {"match": match, "tag": tag, "level": level, "limit": str(limit), "cursor": cursor}
        query = [(name, value) for name, value in asked.items() if value]
        return await self._ask("GET", "/api/entries", query, needs={"entries": list})

    async def inspect(self, url: str, headers: Sequence[tuple[str, str]]) -> Json:
        lines = [("header", f"{name}: {value}") for name, value in headers]
        return await self._ask("GET", "/api/entry", [("url", url), *lines], needs={"levels": dict})

    async def purge(self, what: Mapping[str, str | bool], *, soft: bool, dry_run: bool) -> Json:
        body = {**what, "soft": soft, "dry_run": dry_run}
        kinds: dict[str, type] = {"matched": int} if dry_run else {"propagated": bool}
        found = await self._ask("POST", "/api/purge", body=body, needs={"dry_run": bool, "purged": bool, **kinds})
        if (found["dry_run"], found["purged"]) != (dry_run, not dry_run):
            raise self._not_ours("it has not done what was asked for")
        return found

    async def sync(self, to: str) -> Json:
        return await self._ask("POST", "/api/sync", body={"to": to}, needs={"seen": int, "copied": int, "failed": int})

    async def _ask(
        self,
        method: str,
        path: str,
        query: Sequence[tuple[str, str]] = (),
        *,
        body: Json | None = None,
        needs: Mapping[str, type],
    ) -> Json:
        """Return what is answered, an object that has what it *needs*. Raises ConfigurationError, Unavailable."""
        url = self._base + path + (f"?{urlencode(query)}" if query else "")
        headers, content = self._headers, None
        if body is not None:
            headers, content = [*headers, ("content-type", "application/json")], json.dumps(body).encode()
        reply = await fetch(
            self._lent,
            method,
            url,
            headers,
            content=content,
            most_bytes=_MOST_BYTES,
            where=self.location,
            timeout=self._timeout,
        )
        told = _parsed(reply)
        if reply.status != 200:
            raise self._refused(reply, told, path)
        if told is None:
            raise self._not_ours(f"it answers with {reply.get(b'content-type') or 'no type'}")
        missing = [name for name, kind in needs.items() if type(told.get(name)) is not kind]
        if missing:
            raise self._not_ours(f"its answer has no {', '.join(missing)}")
        return told

    def _not_ours(self, why: str) -> Unavailable:
        return Unavailable(
            f"{self.location} is not the JSON interface of echo_cache: {why}. Name the path of the dashboard, as "
            "http://host/_cache."
        )

    def _refused(self, reply: Reply, told: Json | None, path: str) -> ConfigurationError | Unavailable:
        words = told.get("error") if told is not None else None
        said = f" It says: {shown(words, _LONGEST)}" if isinstance(words, str) and words else ""
        where, status = self.location, reply.status
        if status in (400, 413, 422) and said:
            return ConfigurationError(f"{where} refuses that.{said}")
        if status == 401:
            if self._has_token:
                return Unavailable(f"{where} does not accept the token. Give the right one by ECHO_CACHE_TOKEN.")
            return Unavailable(f"{where} wants a token. Give it by ECHO_CACHE_TOKEN, or by --token.")
        if status == 403:
            return Unavailable(f"{where} forbids that (403).{said}")
        if status == 404:
            return Unavailable(
                f"there is no dashboard at {where} (404). Name the path that it is mounted at, as http://host/_cache; "
                "without auth= it is closed, and with auth=None it is there for this machine alone."
            )
        if 300 <= status < 400:
            # The address of the dashboard, not of what was asked there.
            to = urljoin(f"{self._base}{path}", reply.get(b"location")).partition("?")[0].rstrip("/")
            return Unavailable(f"{where} redirects to {shown_url(to.removesuffix(path))}. Give that as the target.")
        return Unavailable(f"{where} answers {status}.{said}")


def _parsed(reply: Reply) -> Json | None:
    try:
        told = json.loads(reply.body, parse_constant=lambda _: None, parse_float=_finite, parse_int=_whole)
    except (ValueError, RecursionError):
        return None
    return told if isinstance(told, dict) else None


def _finite(text: str) -> float | None:
    """Return the number that *text* says; None for one that JSON cannot carry on."""
    number = float(text)
    return number if math.isfinite(number) else None


def _whole(text: str) -> int | None:
    return int(text) if len(text) <= _MOST_DIGITS else None


def _is_exposed(address: str) -> bool:
    """Say whether a token for *address* goes over a network as it is."""
    parts = urlsplit(address)
    return parts.scheme.lower() == "http" and (parts.hostname or "") not in _LOOPBACK
