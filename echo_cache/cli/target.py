"""
What the command line looks at: a Redis, or the JSON interface of a running app. One interface for both.

The one rule: an address says which, by its scheme, and no secret that is in it is ever shown.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias
from urllib.parse import urlencode, urlsplit

from echo_cache.cache import Cache
from echo_cache.cli.doctor import Facts, judge, trouble_of
from echo_cache.cli.text import shown
from echo_cache.cli.web import Reply, Unavailable, client, fetch, require_url, shown_url
from echo_cache.errors import ConfigurationError, StoreError
from echo_cache.management import Management
from echo_cache.settings import Settings

if TYPE_CHECKING:
    import httpx

__all__ = ["Access", "Json", "Target", "is_exposed", "open_target", "settings_for"]

Json: TypeAlias = dict[str, Any]

_URL_FILE: Final = "ECHO_CACHE_URL_FILE"
_LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})
_DEFAULT_PATH: Final = "/_cache"
_MOST_BYTES: Final = 64 * 1024 * 1024
# How long it may take to copy a level, which is much work and one request.
_SYNC_TIMEOUT: Final = 600.0
_LONGEST: Final = 500


@dataclass(frozen=True, slots=True)
class Access:
    """
    How a target is asked. prefix, secret: those of RedisStore, None for what the environment says. token: of an app.

    timeout: how long one answer may take, in seconds.
    """

    prefix: str | None = None
    secret: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    timeout: float = 10.0


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


@asynccontextmanager
async def open_target(address: str | None, access: Access) -> AsyncIterator[Target]:
    """Lend the target at *address*. Raises ConfigurationError for what is none."""
    if not address and os.environ.get(_URL_FILE):
        address = Settings.from_env().url
    if not address:
        raise ConfigurationError(
            "say what to look at: --target redis://host, or --target http://host/_cache for a running app "
            "(or in ECHO_CACHE_TARGET or ECHO_CACHE_URL)"
        )
    if address.lower().startswith(("http://", "https://")):
        base = _base_of(address)
        async with client() as lent:
            yield _App(lent, base, access)
        return
    settings = settings_for(address, access)
    store = settings.redis.store(settings.url)
    cache = Cache(store, settings.policy, name=settings.name, coordination=settings.coordination)
    try:
        yield _Redis(cache, access.timeout)
    finally:
        await cache.aclose(1.0)


def settings_for(address: str, access: Access, environ: Mapping[str, str] = os.environ) -> Settings:
    """
    Return the settings of the cache at *address*, a URL of Redis, as the app in the same environment has them.

    Raises ConfigurationError, which does not show the address.
    """
    if address.strip().lower().startswith("memory:"):
        raise ConfigurationError(
            "the memory of an app can only be seen through the app: --target http://host/_cache "
            "(mount its dashboard by echo_cache.dashboard.mount)"
        )
    if not address.startswith(("redis", "unix")):
        raise ConfigurationError(
            "a target begins with http:// or https:// (a running app), or with redis://, rediss://, unix://, "
            "redis+sentinel:// or redis+cluster://"
        )
    Settings.from_url(address)  # so that its mistakes are told as its own
    others = {name: value for name, value in environ.items() if name != _URL_FILE}
    settings = Settings.from_env({**others, "ECHO_CACHE_URL": address})
    redis = settings.redis
    return replace(
        settings,
        redis=replace(
            redis,
            prefix=access.prefix or redis.prefix,
            secret=[access.secret] if access.secret else redis.secret,
            timeout=access.timeout,
        ),
    )


# --- Redis alone ------------------------------------------------------------------------------------------------------

# How often it is looked whether the log is known, which takes as long as Redis takes.
_STEP: Final = 0.02


class _Redis:
    def __init__(self, cache: Cache, timeout: float) -> None:
        self._cache = cache
        self._timeout = timeout
        self._management = Management(cache)
        server = getattr(cache.store, "server", None)
        assert server is not None
        self._server = server

    @property
    def location(self) -> str:
        return str(self._server.location)

    @asynccontextmanager
    async def _asked(self) -> AsyncIterator[Management]:
        """See that Redis answers, and tell in words why it does not."""
        try:
            await self._server.evaluate("return 1", (f"{self._server.prefix}:workers",), ())
            yield self._management
        except StoreError as error:
            raise Unavailable(_diagnosis(self.location, error)) from error

    async def stats(self) -> Json:
        async with self._asked() as management:
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
        _require_below(level)
        async with self._asked() as management:
            await self._know_the_log()
            return await management.entries(match=match, tag=tag, level=level, limit=limit, cursor=cursor)

    async def inspect(self, url: str, headers: Sequence[tuple[str, str]]) -> Json:
        async with self._asked() as management:
            await self._know_the_log()
            return await management.inspect(url, headers)

    async def purge(self, what: Mapping[str, str | bool], *, soft: bool, dry_run: bool) -> Json:
        async with self._asked() as management:
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
                raise StoreError("the invalidation could not be written into the log")
            return result

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


def _diagnosis(location: str, error: StoreError) -> str:
    """Return what *error* is a sign of, and what to do, as the doctor says it."""
    trouble, words = trouble_of(error.__cause__ or error)
    # What the store says itself repeats what and where.
    finding = judge(Facts(location, trouble=(trouble, words if error.__cause__ is not None else "")))[0]
    return f"{finding.what.rstrip('. ')}. {finding.remedy}".strip()


def _text(value: str | bool | None) -> str | None:
    return value if isinstance(value, str) else None


def _require_below(level: str | None) -> None:
    if level == "l1":
        raise ConfigurationError(
            "level l1 is in the memory of the workers: --target http://host/_cache of a running app shows it"
        )


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
        token = access.token
        if token is not None and not (token.isascii() and token.isprintable() and " " not in token):
            raise ConfigurationError("the token must be visible ASCII characters")
        self._lent = lent
        self._base = base
        self._timeout = access.timeout
        self._headers = [("accept", "application/json"), ("accept-encoding", "identity")]
        self._has_token = bool(token)
        if token:
            self._headers.append(("authorization", f"Bearer {token}"))

    @property
    def location(self) -> str:
        return shown_url(self._base)

    async def stats(self) -> Json:
        return await self._ask("GET", "/api/stats")

    async def entries(
        self, *, match: str | None, tag: str | None, level: str | None, limit: int, cursor: str | None
    ) -> Json:
        asked = {"match": match, "tag": tag, "level": level, "limit": str(limit), "cursor": cursor}
        return await self._ask("GET", "/api/entries", [(name, value) for name, value in asked.items() if value])

    async def inspect(self, url: str, headers: Sequence[tuple[str, str]]) -> Json:
        lines = [("header", f"{name}: {value}") for name, value in headers]
        return await self._ask("GET", "/api/entry", [("url", url), *lines])

    async def purge(self, what: Mapping[str, str | bool], *, soft: bool, dry_run: bool) -> Json:
        return await self._ask("POST", "/api/purge", body={**what, "soft": soft, "dry_run": dry_run})

    async def sync(self, to: str) -> Json:
        return await self._ask("POST", "/api/sync", body={"to": to}, timeout=max(_SYNC_TIMEOUT, self._timeout))

    async def _ask(
        self,
        method: str,
        path: str,
        query: Sequence[tuple[str, str]] = (),
        *,
        body: Json | None = None,
        timeout: float | None = None,
    ) -> Json:
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
            timeout=self._timeout if timeout is None else timeout,
        )
        told = _parsed(reply)
        if reply.status == 200 and told is not None:
            return told
        raise self._refused(reply, told)

    def _refused(self, reply: Reply, told: Json | None) -> ConfigurationError | Unavailable:
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
            to = reply.get(b"location")
            return Unavailable(f"{where} redirects to {to or 'nowhere'}. Give that address as the target.")
        if told is None and status == 200:
            kind = reply.get(b"content-type") or "no type"
            return Unavailable(
                f"{where} is not the JSON interface of echo_cache: it answers with {kind}. Name the path of the "
                "dashboard, as http://host/_cache."
            )
        return Unavailable(f"{where} answers {status}.{said}")


def _parsed(reply: Reply) -> Json | None:
    try:
        told = json.loads(reply.body, parse_constant=lambda _: None, parse_float=_finite)
    except (ValueError, RecursionError):
        return None
    return told if isinstance(told, dict) else None


def _finite(text: str) -> float | None:
    """Return the number that *text* says; None for one that JSON cannot carry on."""
    number = float(text)
    return number if math.isfinite(number) else None


def is_exposed(address: str) -> bool:
    """Say whether a token for *address* goes over a network as it is."""
    parts = urlsplit(address)
    return parts.scheme.lower() == "http" and (parts.hostname or "") not in _LOOPBACK
