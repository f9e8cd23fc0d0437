"""
How servers are asked for the facts.

The one rule: each answer is waited for a bounded time, all of them together too, and whatever ends the asking is a fact
itself.
"""

from __future__ import annotations

import asyncio
import importlib.util
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Final
from urllib.parse import urlsplit

from echo_cache.cli.doctor.facts import Facts, Finding, NameFacts, ServerFacts, StreamFacts
from echo_cache.cli.doctor.judging import judge
from echo_cache.cli.doctor.probes import Probes, entry_probes, log_probes, sifted
from echo_cache.cli.doctor.trouble import LONG, trouble_of
from echo_cache.cli.text import shown
from echo_cache.codec import FORMAT_VERSION
from echo_cache.coordination.log import position_of, seconds_of
from echo_cache.coordination.wire import decode_marks, entries
from echo_cache.errors import CodecError, ConfigurationError, StoreError
from echo_cache.stores.redis import RedisStore
from echo_cache.stores.redis.connections import OwnConnection
from echo_cache.stores.redis.servers import Client, place_of
from echo_cache.stores.redis.urls import Address, parse_server_url, shown_address

__all__ = ["examine"]

# As many as make 99 of 100 say something; fewer, where they take long.
_PINGS: Final = 50
_PING_SECONDS: Final = 2.0
_MOST_SERVERS: Final = 16
# Pages of names, a thousand places of the table each: a second or so of a server on the same network.
_MOST_PAGES: Final = 200
_PAGES_SECONDS: Final = 5.0
_PAGE: Final = 1_000
_SAMPLED: Final = 200
_MOST_LINES: Final = 2_000
_FROM_CONFIG: Final = ("maxmemory", "maxmemory-policy", "maxclients")


async def examine(
    redis_url: str,
    prefix: str = "echo_cache",
    *,
    store_timeout: float = 0.1,
    timeout: float = 2.0,
    budget: float = 20.0,
) -> list[Finding]:
    """
    Return what is right and wrong with the Redis at *redis_url* as the place of a cache. Raises nothing.

    prefix, store_timeout: `prefix` and `timeout` of the RedisStore that is to use it. timeout: how long one answer is
    waited for here, and budget: how long all of it may take, in seconds.
    """
    deadline = asyncio.get_running_loop().time() + budget
    try:
        # Made to be checked; it does not connect.
        store = RedisStore(redis_url, prefix=prefix, timeout=store_timeout)
    except ConfigurationError as error:
        return [Finding("problem", shown(str(error), LONG), "Correct the URL or the option.")]
    facts = Facts(
        store.server.location,
        store.prefix,
        store.timeout,
        is_cluster=parse_server_url(redis_url).is_cluster,
        has_hiredis=importlib.util.find_spec("hiredis") is not None,
    )
    try:
        async with _client(redis_url, timeout) as client:
            async with asyncio.timeout_at(deadline):
                facts = await _with_servers(facts, redis_url, client, timeout)
            facts = await _with_contents(facts, client, timeout, deadline)
    except Exception as error:
        facts = replace(facts, trouble=trouble_of(error))
    return judge(facts)


async def _with_servers(facts: Facts, url: str, client: Client, timeout: float) -> Facts:
    """Return *facts* with what the servers say of themselves. Raises whatever keeps all of them from being asked."""
    if not facts.is_cluster:
        async with _Asked(client, "", timeout) as asked:
            return replace(facts, servers=[await _server_facts(asked, facts.location, is_cluster=False)])
    nodes = [node for node in await client.nodes() if isinstance(node, tuple)]
    servers = await asyncio.gather(*(_one_of_many(url, node, timeout) for node in nodes[:_MOST_SERVERS]))
    return replace(facts, servers=servers, more_servers=len(nodes[_MOST_SERVERS:]))


async def _with_contents(facts: Facts, client: Client, timeout: float, deadline: float) -> Facts:
    """Return *facts* with what may be done there and what is there, as far as that was found out until *deadline*."""
    entry, stream = f"{facts.prefix}:{FORMAT_VERSION}:{{doctor}}", f"{{{facts.prefix}:log}}"
    try:
        async with (
            asyncio.timeout_at(deadline),
            _Asked(client, entry, timeout) as kept,
            _Asked(client, stream, timeout) as log,
        ):
            refused, failing = sifted(await _replies(kept, entry_probes(entry, is_cluster=facts.is_cluster)))
            facts = replace(facts, refused=refused, failing=failing)
            refused_for_log, failing_for_log = sifted(await _replies(log, log_probes(stream)))
            facts = replace(facts, refused_for_log=refused_for_log, failing=failing | failing_for_log)
            facts = replace(facts, stream=await _stream_facts(log, stream))
            if "SCAN" not in refused:
                facts = replace(facts, names=await _name_facts(client, facts.prefix, timeout))
    except Exception as error:
        return replace(facts, lost=trouble_of(error))
    return facts


# --- asking -----------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def _client(url: str, timeout: float) -> AsyncIterator[Client]:
    client = place_of(url, timeout, 4).connect()
    try:
        yield client
    finally:
        # A server that hangs has closing fail as well; that would hide what was found out before.
        with suppress(Exception):
            await client.aclose()


class _Asked:
    """
    A connection to the server that has the key *name*, on which an error that is replied is a reply.

    What it raises is whatever else is wrong: the server is gone, hangs, or lets nobody in.
    """

    def __init__(self, client: Client, name: str, timeout: float) -> None:
        self._client = client
        self._name = name
        self._timeout = timeout
        self._own: OwnConnection | None = None

    async def __aenter__(self) -> _Asked:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._own is not None:
            await self._own.aclose()

    async def ask(self, *words: str | bytes | int) -> object:
        """Return the reply to a command; an error that is replied is returned."""
        from redis.exceptions import ResponseError

        if self._own is None or not self._own.is_open:
            async with asyncio.timeout(self._timeout):
                self._own = await self._client.dedicated(self._name)
        try:
            (reply,) = await self._own.ask([words], self._timeout)
        except ResponseError as error:
            return error  # it has closed the connection; the next question opens another
        return reply


async def _replies(asked: _Asked, probes: Probes) -> dict[str, object]:
    return {command: await asked.ask(*words) for command, words in probes.items()}


# --- servers ----------------------------------------------------------------------------------------------------------


async def _one_of_many(url: str, address: Address, timeout: float) -> ServerFacts:
    """Return the facts of one server of a cluster; its trouble is its own."""
    where = shown_address(*address)
    try:
        async with _client(_url_of(url, where), timeout) as client, _Asked(client, "", timeout) as asked:
            return await _server_facts(asked, where, is_cluster=True)
    except Exception as error:
        return ServerFacts(where, trouble=trouble_of(error))


def _url_of(url: str, where: str) -> str:
    """Return the URL of one server of the cluster at *url*, with the same credentials and options."""
    plain = urlsplit(parse_server_url(url).plain)
    credentials, at, _ = plain.netloc.rpartition("@")
    return plain._replace(netloc=f"{credentials}{at}{where}").geturl()


async def _server_facts(asked: _Asked, where: str, *, is_cluster: bool) -> ServerFacts:
    pings = await _pings(asked)
    info = _lines(await asked.ask("INFO"))
    config: dict[str, str] = {}
    for name in _FROM_CONFIG:
        if name.replace("-", "_") not in info:
            config |= _pairs(await asked.ask("CONFIG", "GET", name))
    began = time.perf_counter()
    now = _seconds(await asked.ask("TIME"))
    doubt = (time.perf_counter() - began) / 2
    offset = None if now is None else now - (time.time() - doubt)
    cluster = _lines(await asked.ask("CLUSTER", "INFO")) if is_cluster else {}
    return ServerFacts(where, info, config, pings, offset, doubt, cluster)


async def _pings(asked: _Asked) -> tuple[float, ...]:
    """Return how long each PING took, in seconds; nothing where it is refused."""
    if isinstance(await asked.ask("PING"), Exception):  # this one connects, and is not counted
        return ()
    pings: list[float] = []
    until = time.perf_counter() + _PING_SECONDS
    while len(pings) < _PINGS and not (pings and time.perf_counter() > until):
        began = time.perf_counter()
        await asked.ask("PING")
        pings.append(time.perf_counter() - began)
    return tuple(pings)


# --- what is there ----------------------------------------------------------------------------------------------------


async def _stream_facts(log: _Asked, name: str) -> StreamFacts | None:
    kind = await log.ask("TYPE", name)
    if not isinstance(kind, bytes):
        return None
    if kind != b"stream":
        return StreamFacts(kind.decode("latin-1"))
    length = await log.ask("XLEN", name)
    first = _entry(await log.ask("XRANGE", name, "-", "+", "COUNT", 1))
    last = _entry(await log.ask("XREVRANGE", name, "+", "-", "COUNT", 1))
    now = _seconds(await log.ask("TIME"))
    run = await log.ask("GET", f"{name}:run")
    here = _lines(await log.ask("INFO", "server")).get("run_id")
    return StreamFacts(
        "stream",
        length if isinstance(length, int) else None,
        begins=first is None or b"open" in first[1],
        ahead=0.0 if last is None or now is None else max(0.0, seconds_of(position_of(last[0])) - now),
        foreign=last is not None and _is_foreign(last[1]),
        same_run=run.decode("latin-1") == here if isinstance(run, bytes) and here else None,
    )


async def _name_facts(client: Client, prefix: str, timeout: float) -> NameFacts:
    """Return what names there are, going through a bounded number of pages."""
    beginning = re.compile(rb"%s:(\d{1,9}):\{" % re.escape(prefix.encode()))
    versions: Counter[int] = Counter()
    lives: list[int] = []
    asked = pages = 0
    until = time.perf_counter() + _PAGES_SECONDS
    for node in await client.nodes():
        cursor: int | None = None
        while cursor != 0:
            if pages == _MOST_PAGES or time.perf_counter() > until:
                return NameFacts(dict(versions), False, len(lives), lives.count(-1))
            pages += 1
            async with asyncio.timeout(timeout):
                cursor, names = await client.scan(node, cursor or 0, f"{prefix}:*", _PAGE)
                found = [(int(match[1]), name) for name in names if (match := beginning.match(name))]
                versions.update(version for version, _ in found)
                # Those of one page are on one server, so they can be asked for together.
                own = [name for version, name in found if version == FORMAT_VERSION][: _SAMPLED - asked]
                replies = await client.write([("PTTL", name) for name in own]) if own else ()
            asked += len(own)
            lives += [life for life in replies if isinstance(life, int)]
    return NameFacts(dict(versions), True, len(lives), lives.count(-1))


# --- replies ----------------------------------------------------------------------------------------------------------


def _lines(reply: object) -> dict[str, str]:
    """Return the lines "name:value" of *reply*; {} where it is something else."""
    if not isinstance(reply, bytes):
        return {}
    lines = reply.decode("latin-1").split("\r\n", _MOST_LINES)[:_MOST_LINES]
    pairs = (line.partition(":") for line in lines if not line.startswith("#"))
    return {name: value for name, colon, value in pairs if colon}


def _pairs(reply: object) -> dict[str, str]:
    """Return the names and values of *reply*, as CONFIG GET lists them; {} where it is something else."""
    if not isinstance(reply, list) or not all(isinstance(word, bytes) for word in reply) or len(reply) % 2:
        return {}
    words = [word.decode("latin-1") for word in reply]
    return dict(zip(words[::2], words[1::2], strict=True))


def _seconds(reply: object) -> float | None:
    """Return the time that TIME replies; None where it is something else."""
    try:
        seconds, microseconds = map(int, reply)  # type: ignore[call-overload]  # whatever it is
        return float(seconds) + float(microseconds) / 1e6
    except (TypeError, ValueError, OverflowError):
        return None


def _entry(reply: object) -> tuple[bytes, dict[bytes, bytes]] | None:
    """Return the one entry of a stream in *reply*; None where there is none, or something else."""
    try:
        found = entries(reply)
    except StoreError:
        return None
    return found[0] if found else None


def _is_foreign(fields: Mapping[bytes, bytes]) -> bool:
    payload = fields.get(b"marks")
    if payload is None:
        return b"open" not in fields
    try:
        decode_marks(payload)
    except CodecError:
        return True
    return False
