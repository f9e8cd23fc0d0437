"""
What is wrong with a Redis as the place of a cache, and what to do about it.

The one rule: facts are gathered first, and a pure function judges them. Whatever is wrong with the server becomes a
finding with its remedy; nothing is raised, and nothing is written there. What is asked to learn whether it is allowed
is asked so that it does nothing.
"""

from __future__ import annotations

import asyncio
import enum
import importlib.util
import math
import re
import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Final, Literal, TypeAlias
from urllib.parse import urlsplit

from echo_cache.cli.text import shown
from echo_cache.codec import FORMAT_VERSION
from echo_cache.coordination.log import MAX_MARKS, position_of, seconds_of
from echo_cache.coordination.wire import decode_marks, entries
from echo_cache.errors import CodecError, ConfigurationError, StoreError
from echo_cache.stores.redis import RedisStore
from echo_cache.stores.redis.connections import OwnConnection
from echo_cache.stores.redis.servers import Client, Words, place_of
from echo_cache.stores.redis.urls import Address, parse_server_url, shown_address

__all__ = ["Facts", "Finding", "NameFacts", "ServerFacts", "StreamFacts", "Trouble", "examine", "judge"]

Level: TypeAlias = Literal["ok", "note", "warning", "problem"]


@dataclass(frozen=True, slots=True)
class Finding:
    """
    One thing that was looked at.

    level: "ok"; "note", which is well to know; "warning", which will do harm one day; "problem", which does harm now.
    what: what is so. remedy: what to do, empty where nothing is to be done.
    """

    level: Level
    what: str
    remedy: str = ""

    def as_json(self) -> dict[str, str]:
        """Return the same as JSON has it."""
        return {"level": self.level, "what": self.what, "remedy": self.remedy}


class Trouble(enum.Enum):
    """Why a server cannot be asked."""

    REFUSED = enum.auto()
    UNREACHABLE = enum.auto()
    NO_SUCH_HOST = enum.auto()
    NO_SOCKET = enum.auto()
    HUNG = enum.auto()
    CLOSED = enum.auto()
    CERTIFICATE = enum.auto()
    TLS = enum.auto()
    NO_PASSWORD = enum.auto()
    WRONG_PASSWORD = enum.auto()
    NOT_PERMITTED = enum.auto()
    PROTECTED = enum.auto()
    LOADING = enum.auto()
    CROWDED = enum.auto()
    NO_DATABASE = enum.auto()
    NO_PRIMARY = enum.auto()
    NO_CLUSTER = enum.auto()
    OTHER = enum.auto()


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """
    What one server says of itself.

    info: what INFO says, empty where it is refused. config: what CONFIG says of what INFO did not. pings: how long each
    PING took, in seconds. clock_offset: how far its clock is ahead of this machine's, in seconds, give or take
    clock_doubt; None where it does not tell. cluster: what CLUSTER INFO says. trouble: what ended the examination of
    this server, and its words.
    """

    where: str
    info: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, str] = field(default_factory=dict)
    pings: tuple[float, ...] = ()
    clock_offset: float | None = None
    clock_doubt: float = 0.0
    cluster: Mapping[str, str] = field(default_factory=dict)
    trouble: tuple[Trouble, str] | None = None


@dataclass(frozen=True, slots=True)
class StreamFacts:
    """
    The invalidation log. kind: the type of what is under its name, "none" where nothing is.

    length: how many entries it has, None where that cannot be seen. begins: whether its first entry says that a log
    begins, so nothing was cut. ahead: by how many seconds the last ID is later than the server's clock. foreign:
    whether the last entry is not understood. same_run: whether the server is the one that has written its run; None
    where that is not known.
    """

    kind: str
    length: int | None = 0
    begins: bool = True
    ahead: float = 0.0
    foreign: bool = False
    same_run: bool | None = None


@dataclass(frozen=True, slots=True)
class NameFacts:
    """
    The names under the prefix, as far as they were gone through; complete: whether that was to the end.

    versions: how many there are of each format version. sampled: of how many of this version the expiry was asked, and
    endless: how many of these have none.
    """

    versions: Mapping[int, int] = field(default_factory=dict)
    complete: bool = True
    sampled: int = 0
    endless: int = 0


@dataclass(frozen=True, slots=True)
class Facts:
    """
    All that was found out. trouble: why nothing could be; lost: why not more.

    refused: the commands that the server does not permit, and refused_for_log: those on the names of the log. failing:
    commands that fail for another reason, and its words. stream, names: None where they could not be seen.
    """

    location: str
    prefix: str = "echo_cache"
    store_timeout: float = 0.1
    trouble: tuple[Trouble, str] | None = None
    is_cluster: bool = False
    servers: Sequence[ServerFacts] = ()
    more_servers: int = 0
    refused: frozenset[str] = frozenset()
    refused_for_log: frozenset[str] = frozenset()
    failing: Mapping[str, str] = field(default_factory=dict)
    stream: StreamFacts | None = None
    names: NameFacts | None = None
    lost: tuple[Trouble, str] | None = None
    has_hiredis: bool = True


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
    try:
        # Made to be checked; it does not connect.
        store = RedisStore(redis_url, prefix=prefix, timeout=store_timeout)
    except ConfigurationError as error:
        return [Finding("problem", shown(str(error), _LONG), "Correct the URL or the option.")]
    location = store.server.location
    try:
        async with asyncio.timeout(budget):
            facts = await _gather(redis_url, location, store, timeout)
    except Exception as error:
        facts = Facts(location, prefix, store_timeout, trouble=trouble_of(error))
    return judge(facts)


# --- judging ----------------------------------------------------------------------------------------------------------

_LONG: Final = 300
_OLDEST: Final = (6, 2)
_NEARLY_FULL: Final = 0.9
_CROWDED: Final = 0.8
# Clocks that differ by less are not looked at by the store either.
_AGREEMENT: Final = 0.1
_FAR_OFF: Final = 60.0
_YEAR: Final = 366 * 86_400.0
_STREAM_MOST: Final = 2 * MAX_MARKS
_SLOTS: Final = 16_384
_POLICY_REMEDY: Final = (
    "CONFIG SET maxmemory-policy volatile-lru (or allkeys-lfu), and the same in the server's configuration."
)


def judge(facts: Facts) -> list[Finding]:
    """Return what *facts* mean, in the order in which they were asked for."""
    if facts.trouble is not None:
        return [_trouble(facts.location, *facts.trouble)]
    findings = [Finding("ok", f"Redis at {facts.location} answers.")]
    many = len(facts.servers) > 1
    for server in facts.servers:
        where = f"{server.where}: " if many else ""
        findings += [replace(found, what=where + found.what) for found in _server(server, facts)]
    if facts.more_servers:
        findings.append(Finding("note", f"{facts.more_servers} more servers of the cluster were not looked at."))
    if facts.is_cluster:
        findings += _cluster(facts.servers)
    if facts.lost is not None:
        findings.append(_trouble(facts.location, *facts.lost))
    else:
        findings += _permissions(facts)
    findings += _failing(facts)
    findings += _stream(facts)
    findings += _names(facts)
    if not facts.has_hiredis:
        findings.append(
            Finding("note", "hiredis is not installed here; with it, reading costs half.", "pip install hiredis")
        )
    return findings


def _server(server: ServerFacts, facts: Facts) -> Iterator[Finding]:
    if server.trouble is not None:
        yield _trouble(server.where, *server.trouble)
        return
    if server.info:
        yield from _version(server.info)
        yield from _role(server.info, facts)
        yield from _durability(server.info)
    yield from _memory(server)
    yield from _clients(server)
    yield from _latency(server.pings, facts.store_timeout)
    yield from _clock(server)


def _version(info: Mapping[str, str]) -> Iterator[Finding]:
    other = next((name for name in ("dragonfly", "keydb", "garnet") if f"{name}_version" in info), None)
    if other is not None:
        yield Finding("note", f"The server is {other}, which echo_cache is not tested with.")
        return
    valkey = info.get("valkey_version")
    name, text = ("Valkey", valkey) if valkey else ("Redis", info.get("redis_version", ""))
    numbers = re.match(r"(\d{1,5})\.(\d{1,5})", text)
    if numbers is None:
        yield Finding("note", f"The version of the server is not known ({shown(text) or 'it says none'}).")
    elif not valkey and (int(numbers[1]), int(numbers[2])) < _OLDEST:
        yield Finding(
            "problem", f"The server is Redis {shown(text)}, which is too old.", "Use Redis 6.2 or later, or Valkey."
        )
    else:
        yield Finding("ok", f"The server is {name} {shown(text)}.")


def _role(info: Mapping[str, str], facts: Facts) -> Iterator[Finding]:
    if info.get("role") == "slave":
        link = "" if info.get("master_link_status") != "down" else ", and it has lost its primary"
        yield Finding(
            "problem",
            f"The server is a replica{link}: it refuses writes.",
            "Give the URL of the primary, or of Sentinels that name it: redis+sentinel://host:port/service",
        )
    replicas = _number(info, "connected_slaves")
    if info.get("role") == "master" and replicas:
        yield Finding(
            "note",
            f"The server has {replicas} replica(s). A failover may lose the last invalidations; workers notice it and "
            "have what they hold confirmed by the app.",
        )
    is_cluster = info.get("cluster_enabled") == "1"
    if is_cluster and not facts.is_cluster:
        yield Finding(
            "problem",
            "The server is one of a cluster, and the URL leads to it alone: keys of other servers are refused.",
            "Write redis+cluster:// (or rediss+cluster://) in the URL.",
        )


def _durability(info: Mapping[str, str]) -> Iterator[Finding]:
    if info.get("loading", "0") != "0":
        yield Finding(
            "warning", "The server is loading its data, and refuses commands meanwhile.", "Wait until it is done."
        )
    if info.get("rdb_last_bgsave_status") == "err" or info.get("aof_last_write_status") == "err":
        yield Finding(
            "problem",
            "The server could not save to its disk the last time, and may refuse writes for it (MISCONF).",
            "Free the disk, or switch saving off: a cache needs none (CONFIG SET save '' and appendonly no).",
        )
    elif info.get("aof_enabled") == "1":
        yield Finding("note", "The server keeps an append-only file. The cache itself needs no persistence.")


def _memory(server: ServerFacts) -> Iterator[Finding]:
    said = {**server.config, **server.info}
    limit = _number(said, "maxmemory")
    policy = said.get("maxmemory_policy") or said.get("maxmemory-policy") or ""
    used = _number(server.info, "used_memory")
    if limit is None or not policy:
        yield Finding(
            "note",
            "maxmemory and maxmemory-policy cannot be seen: the server permits neither INFO nor CONFIG.",
            "Look into the settings of your provider: there should be a limit, and volatile-lru or allkeys-lfu.",
        )
        return
    if not limit:
        yield Finding(
            "warning",
            f"maxmemory is not set ({_mib(used)} are used): the server grows until the machine has no memory left.",
            "Set maxmemory to what the cache may have, and maxmemory-policy to volatile-lru.",
        )
    elif policy == "noeviction":
        share = (used or 0) / limit
        level: Level = "problem" if share >= _NEARLY_FULL else "warning"
        yield Finding(
            level,
            f"maxmemory-policy is noeviction and {share:.0%} of {_mib(limit)} are used: once it is full, nothing can "
            "be stored, and what is invalidated is not known to other workers.",
            _POLICY_REMEDY,
        )
    else:
        yield Finding("ok", f"maxmemory is {_mib(limit)} with {shown(policy)}, {_mib(used)} are used.")
        yield from _eviction(server.info, policy, limit, used)


def _eviction(info: Mapping[str, str], policy: str, limit: int, used: int | None) -> Iterator[Finding]:
    if policy.startswith("allkeys"):
        yield Finding(
            "note",
            f"With {shown(policy)} the invalidation log may be evicted, too. Workers notice that, and have what they "
            "hold confirmed by the app.",
            "With volatile-lru the log stays, as it never expires.",
        )
    evicted = _number(info, "evicted_keys")
    full = used is not None and used >= _NEARLY_FULL * limit
    if evicted:
        yield Finding(
            "warning" if full else "note",
            f"{evicted} keys were evicted since the server started: entries end sooner than they could.",
            "Give it more memory, or give responses shorter lifetimes and `keep`.",
        )
    keys, expiring = _keyspace(info)
    if full and policy.startswith("volatile") and keys and expiring < keys / 2:
        yield Finding(
            "warning",
            f"{keys - expiring} of {keys} keys never expire, and {shown(policy)} evicts only keys that do: when these "
            "are gone, writes fail.",
            "Keep other data elsewhere, or use allkeys-lfu.",
        )


def _clients(server: ServerFacts) -> Iterator[Finding]:
    connected = _number(server.info, "connected_clients")
    most = _number(server.info, "maxclients") or _number(server.config, "maxclients")
    if connected is not None and most and connected >= _CROWDED * most:
        yield Finding(
            "warning",
            f"{connected} of {most} connections are taken; who comes when all are is refused.",
            "Raise maxclients, or lower max_connections of RedisStore (16 for each worker, and one for the log).",
        )


def _latency(pings: Sequence[float], store_timeout: float) -> Iterator[Finding]:
    if not pings:
        return
    median, late = statistics.median(pings), percentile(pings, 0.99)
    what = f"A PING takes {_ms(median)} (median), {_ms(late)} (99 of 100)"
    remedy = (
        "Put the server nearer to the app, look for slow commands (SLOWLOG GET), or give RedisStore a longer timeout."
    )
    if median >= store_timeout:
        yield Finding("problem", f"{what}: longer than the {_ms(store_timeout)} that RedisStore waits.", remedy)
    elif late >= store_timeout / 2:
        yield Finding(
            "warning", f"{what}: some operations will run out of the {_ms(store_timeout)} that they have.", remedy
        )
    else:
        yield Finding("ok", f"{what}; RedisStore waits for {_ms(store_timeout)}.")


def _clock(server: ServerFacts) -> Iterator[Finding]:
    offset = server.clock_offset
    if offset is None:
        return
    if abs(offset) > _YEAR:
        yield Finding(
            "problem",
            "The server's clock is more than a year off this machine's.",
            "Set the clocks; NTP keeps them together.",
        )
    elif abs(offset) - server.clock_doubt > _FAR_OFF:
        yield Finding(
            "warning",
            f"The server's clock is {offset:+.1f} s off this machine's. Entries carry the server's time, so workers "
            "agree on what is fresh; Date and Expires of responses are off by as much, if it is this machine that is "
            "wrong.",
            "Keep the clocks together, with NTP.",
        )
    elif abs(offset) - server.clock_doubt > _AGREEMENT:
        yield Finding(
            "note", f"The server's clock is {offset:+.1f} s off this machine's. Entries carry the server's time.", ""
        )
    else:
        yield Finding("ok", "The server's clock and this machine's agree.")


def _cluster(servers: Sequence[ServerFacts]) -> Iterator[Finding]:
    said = next((server.cluster for server in servers if server.cluster), {})
    state = said.get("cluster_state")
    assigned = _number(said, "cluster_slots_assigned")
    failing = (_number(said, "cluster_slots_fail") or 0) + (_number(said, "cluster_slots_pfail") or 0)
    if state is None:
        yield Finding("note", "The state of the cluster cannot be seen: nobody answers CLUSTER INFO.")
    elif assigned is not None and assigned < _SLOTS:
        yield Finding(
            "problem",
            f"Only {assigned} of {_SLOTS} slots of the cluster have a server: keys in the others cannot be used.",
            "redis-cli --cluster fix",
        )
    elif state != "ok" or failing:
        yield Finding(
            "problem",
            f"The cluster is in the state {shown(state)}; {failing} slots have a server that fails.",
            "See CLUSTER NODES for who is down, and restart or replace it.",
        )
    else:
        yield Finding("ok", f"The cluster is ok, with {len(servers)} primaries.")


# What is lost without a command, and how bad that is.
_READS: Final = "nothing can be read from Redis"
_WRITES: Final = "nothing can be stored in Redis"
_SCRIPTS: Final = "nothing can be invalidated for other workers, and no variants be stored"
_NEEDED: Final[Mapping[str, tuple[Level, str]]] = {
    "MGET": ("problem", _READS),
    "GET": ("problem", _READS),
    "SET": ("problem", _WRITES),
    "EVALSHA": ("problem", _SCRIPTS),
    "EVAL": ("problem", _SCRIPTS),
    "UNLINK": ("problem", "nothing can be deleted"),
    "PING": ("warning", "an operation on a connection that was idle for half a minute fails"),
    "PEXPIRE": ("warning", "leases cannot be renewed, so slow handlers are called once in each worker"),
    "TIME": (
        "warning",
        "entries carry the machine's own time, and machines whose clocks differ disagree on what is fresh",
    ),
    "INFO": ("warning", "a restart that lost the last invalidations is not noticed"),
    "SCAN": ("warning", "clear, count, sync and the list of entries do not work"),
    "GETRANGE": ("warning", "the list of entries does not work"),
}


def _permissions(facts: Facts) -> Iterator[Finding]:
    missing = [command for command in _NEEDED if command in facts.refused]
    for level in ("problem", "warning"):
        some = [command for command in missing if _NEEDED[command][0] == level]
        if some:
            harm = "; ".join(dict.fromkeys(_NEEDED[command][1] for command in some))
            remedy = f"ACL SETUSER <user> ~{facts.prefix}:* {_allow(some)}"
            yield Finding(level, f"The server does not permit {', '.join(some)}: {harm}.", remedy)
    log = sorted(facts.refused_for_log)
    if log:
        yield Finding(
            "problem",
            f"The server does not permit {', '.join(log)} on the names of the invalidation log: workers cannot tell "
            "each other what was invalidated.",
            f"ACL SETUSER <user> ~{{{facts.prefix}:log}}* {_allow(log)}",
        )
    if not missing and not log:
        yield Finding("ok", "All commands that are needed are permitted.")


def _allow(commands: Sequence[str]) -> str:
    return " ".join(f"+{command.lower()}" for command in commands)


# What a write that fails says first, and what helps.
_FAILURES: Final = (
    ("OOM", "Its memory is full, and nothing may be evicted.", _POLICY_REMEDY),
    ("READONLY", "It is a replica.", "Give the URL of the primary, or of Sentinels that name it."),
    ("MISCONF", "It cannot save to its disk.", "Free the disk, or switch saving off: a cache needs none."),
    ("NOREPLICAS", "It has too few replicas.", "Look at min-replicas-to-write, and why replicas are gone."),
    ("CLUSTERDOWN", "The cluster is down.", "See CLUSTER NODES for who is down."),
    ("MASTERDOWN", "It has lost its primary.", "See INFO replication."),
    ("BUSY", "A script runs in it that does not end.", "SCRIPT KILL, and find out whose script it is."),
)


def _failing(facts: Facts) -> Iterator[Finding]:
    told: dict[str, list[str]] = {}
    for command, words in facts.failing.items():
        told.setdefault(words, []).append(command)
    for words, commands in told.items():
        known = next(((what, remedy) for code, what, remedy in _FAILURES if words.startswith(code)), ("", ""))
        what = f"{', '.join(commands)} fail: {shown(words)}."
        yield Finding("problem", f"{what} {known[0]}".strip(), known[1] or "Look into the server's log.")


def _stream(facts: Facts) -> Iterator[Finding]:
    stream = facts.stream
    if stream is None:
        return
    name = f"{{{facts.prefix}:log}}"
    if stream.kind == "none":
        yield Finding("ok", f"There is no invalidation log {name} yet; the first worker begins it.")
        return
    if stream.kind != "stream":
        yield Finding(
            "warning",
            f"{name} is a {shown(stream.kind)} and no stream: somebody else writes there. The next worker deletes it.",
            "Give each app a prefix of its own.",
        )
        return
    if stream.ahead > _YEAR:
        yield Finding(
            "warning",
            f"The last ID of {name} is more than a year ahead. The next worker begins the log anew, and what workers "
            "hold is confirmed by the app.",
            "Find out who wrote it; with a password or an ACL it would be nobody.",
        )
        return
    begun = "" if stream.begins else ", the oldest were cut"
    length = "some" if stream.length is None else stream.length
    yield Finding("ok", f"The invalidation log {name} has {length} entries{begun}.")
    if stream.ahead > 1:
        yield Finding(
            "note",
            f"The last ID of the log is {stream.ahead:.0f} s ahead of the server's clock, which was set back. IDs go "
            "on from there.",
        )
    if (stream.length or 0) > _STREAM_MOST:
        yield Finding(
            "warning",
            f"The log has {stream.length} entries, and should be cut at about {MAX_MARKS}: somebody else writes there.",
            "Give each app a prefix of its own, and see who can write to this server.",
        )
    if stream.foreign:
        yield Finding(
            "note",
            "The last entry of the log is not understood: it is a later version's or somebody else's. What was "
            "stored before it is confirmed by the app.",
            "Nothing, while versions are being changed.",
        )
    if stream.same_run is False:
        yield Finding(
            "note",
            "The server has restarted since the log was last opened. The next worker begins it anew, and what was "
            "stored before is confirmed by the app.",
        )


def _names(facts: Facts) -> Iterator[Finding]:
    names = facts.names
    if names is None:
        return
    least = "" if names.complete else "at least "
    own = names.versions.get(FORMAT_VERSION, 0)
    yield Finding("ok", f"There are {least}{own} values of this format ({facts.prefix}:{FORMAT_VERSION}:...).")
    others = {version: count for version, count in sorted(names.versions.items()) if version != FORMAT_VERSION}
    if others:
        listed = ", ".join(f"{count} of version {version}" for version, count in list(others.items())[:5])
        yield Finding(
            "note",
            f"There are values of other formats: {least}{listed}. They are not read here, and expire by themselves.",
            "Nothing, while versions are being changed.",
        )
    if names.endless:
        yield Finding(
            "warning",
            f"{names.endless} of {names.sampled} values that were looked at never expire. The cache writes none such.",
            "Delete them, and find out who wrote them (or ran PERSIST); RedisStore(secret=...) keeps forged ones "
            "unread.",
        )


# --- trouble ----------------------------------------------------------------------------------------------------------

# Signs in the names and words of errors, the first that is found counts.
_SIGNS: Final = (
    (r"Authentication required|NOAUTH", Trouble.NO_PASSWORD),
    (r"WRONGPASS|invalid (username-)?password|AUTH <password>|AuthenticationError", Trouble.WRONG_PASSWORD),
    (r"protected mode|DENIED", Trouble.PROTECTED),
    (r"NoPermission|NOPERM", Trouble.NOT_PERMITTED),
    (r"BusyLoading|LOADING", Trouble.LOADING),
    (r"max number of clients", Trouble.CROWDED),
    (r"DB index is out of range|invalid DB index|SELECT is not allowed", Trouble.NO_DATABASE),
    (r"cluster support disabled|no server of the cluster|No server of this cluster", Trouble.NO_CLUSTER),
    (r"MasterNotFound|sentinels names a primary", Trouble.NO_PRIMARY),
    (r"CERTIFICATE_VERIFY_FAILED|SSLCertVerificationError", Trouble.CERTIFICATE),
    (r"SSLError|SSL:|SSLEOF|WRONG_VERSION_NUMBER", Trouble.TLS),
    (r"gaierror|Name or service not known|nodename nor servname|name resolution", Trouble.NO_SUCH_HOST),
    (r"FileNotFoundError|PermissionError", Trouble.NO_SOCKET),
    (r"ConnectionRefusedError|Connection refused|Connect call failed", Trouble.REFUSED),
    (r"No route to host|unreachable", Trouble.UNREACHABLE),
    (r"TimeoutError|Timeout", Trouble.HUNG),
    (r"closed by server|Connection lost|connection was lost|reset by peer|IncompleteRead", Trouble.CLOSED),
)

_REMEDIES: Final[Mapping[Trouble, tuple[str, str]]] = {
    Trouble.REFUSED: ("refuses connections", "Start the server, or correct host and port in the URL."),
    Trouble.UNREACHABLE: ("cannot be reached over the network", "Look at routes and firewalls between here and there."),
    Trouble.NO_SUCH_HOST: ("has a host name that nobody knows", "Correct the host name in the URL, or the DNS."),
    Trouble.NO_SOCKET: (
        "has no socket at that path that may be opened",
        "Correct the path in the URL; the server's `unixsocket` and `unixsocketperm` say where it is and who may.",
    ),
    Trouble.HUNG: (
        "does not answer in time",
        "Look at firewalls that drop packets, and at a server that is stopped or busy with a slow command (SLOWLOG "
        "GET).",
    ),
    Trouble.CLOSED: (
        "closes the connection at once",
        "If it speaks TLS, write rediss:// in place of redis://. Else look into its log.",
    ),
    Trouble.CERTIFICATE: (
        "shows a certificate that is not trusted here",
        "Name the CA in the URL: ?ssl_ca_certs=/path/to/ca.pem. The host in the URL must be one that the certificate "
        "names.",
    ),
    Trouble.TLS: (
        "cannot agree on TLS",
        "If it speaks no TLS at this port, write redis:// in place of rediss://. If it wants a client certificate: "
        "?ssl_certfile=...&ssl_keyfile=...",
    ),
    Trouble.NO_PASSWORD: ("wants a password", "Put it into the URL: redis://user:password@host (or :password@host)."),
    Trouble.WRONG_PASSWORD: (
        "does not accept the user or the password",
        "Correct them in the URL; write / ? # @ in them as %2F %3F %23 %40. A server without a password takes none.",
    ),
    Trouble.NOT_PERMITTED: (
        "does not permit this user what every connection needs",
        "ACL SETUSER <user> +@connection +select",
    ),
    Trouble.PROTECTED: (
        "is in protected mode and answers its own machine only",
        "Set a password there (requirepass or ACL), or bind it to an address that only the app reaches.",
    ),
    Trouble.LOADING: ("is loading its data", "Wait until it is done."),
    Trouble.CROWDED: ("has no connection left", "Raise maxclients, or lower max_connections of RedisStore."),
    Trouble.NO_DATABASE: (
        "does not have this database",
        "Correct the number at the end of the URL; a cluster has only 0.",
    ),
    Trouble.NO_PRIMARY: (
        "names no primary",
        "See that the Sentinels can be reached, that the service in the URL is the name that they monitor, and that "
        "its primary is up.",
    ),
    Trouble.NO_CLUSTER: (
        "does not answer as a cluster",
        "If it is one server, write redis:// in place of redis+cluster://. Else see that its servers can be reached.",
    ),
    Trouble.OTHER: ("cannot be asked", "Look into the server's log."),
}


def trouble_of(error: BaseException) -> tuple[Trouble, str]:
    """Return what *error*, and what it comes from, is a sign of, and its words. Five of them are looked at, no more."""
    chain: list[BaseException] = []
    following: BaseException | None = error
    while following is not None and len(chain) < 5:
        chain.append(following)
        following = following.__cause__ or following.__context__
    text = "\n".join(f"{type(one).__name__}: {one}"[:1_000] for one in chain)
    found = next((trouble for sign, trouble in _SIGNS if re.search(sign, text)), Trouble.OTHER)
    words = next((str(one) for one in chain if str(one)), type(error).__name__ if found is Trouble.OTHER else "")
    return found, shown(words, _LONG)


def _trouble(where: str, trouble: Trouble, words: str) -> Finding:
    what, remedy = _REMEDIES[trouble]
    if trouble in (Trouble.HUNG, Trouble.CLOSED) and where.startswith("rediss"):
        remedy = f"{_REMEDIES[Trouble.TLS][1]} {remedy}"
    return Finding("problem", f"Redis at {where} {what}{f': {words}' if words else '.'}", remedy)


# --- gathering --------------------------------------------------------------------------------------------------------

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


async def _gather(url: str, location: str, store: RedisStore, timeout: float) -> Facts:
    """Return the facts. Raises whatever keeps the server from being asked at all."""
    prefix, is_cluster = store.prefix, parse_server_url(url).is_cluster
    has_hiredis = importlib.util.find_spec("hiredis") is not None
    entry, stream = f"{prefix}:{FORMAT_VERSION}:{{doctor}}", f"{{{prefix}:log}}"
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(_client(url, timeout))
        kept = await stack.enter_async_context(_Asked(client, entry, timeout))
        log = await stack.enter_async_context(_Asked(client, stream, timeout))
        if is_cluster:
            nodes = [node for node in await client.nodes() if isinstance(node, tuple)]
            servers = list(await asyncio.gather(*(_one_of_many(url, node, timeout) for node in nodes[:_MOST_SERVERS])))
        else:
            nodes = []
            servers = [await _server_facts(kept, location, is_cluster=False)]
        facts = Facts(
            location,
            prefix,
            store.timeout,
            is_cluster=is_cluster,
            servers=servers,
            more_servers=max(0, len(nodes) - _MOST_SERVERS),
            has_hiredis=has_hiredis,
        )
        try:
            refused, failing = await _probed(kept, _entry_probes(entry, is_cluster))
            refused_for_log, failing_for_log = await _probed(log, _log_probes(stream))
            return replace(
                facts,
                refused=refused,
                refused_for_log=refused_for_log,
                failing=failing | failing_for_log,
                stream=await _stream_facts(log, stream),
                names=None if "SCAN" in refused else await _name_facts(client, prefix, timeout),
            )
        except Exception as error:
            return replace(facts, lost=trouble_of(error))


@asynccontextmanager
async def _client(url: str, timeout: float) -> AsyncIterator[Client]:
    client = place_of(url, timeout, 4).connect()
    try:
        yield client
    finally:
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


async def _server_facts(server: _Asked, where: str, *, is_cluster: bool) -> ServerFacts:
    pings: list[float] = []
    # The first connects, and is not counted.
    until = time.perf_counter() + _PING_SECONDS
    while len(pings) <= _PINGS and (len(pings) < 2 or time.perf_counter() < until):
        began = time.perf_counter()
        if isinstance(await server.ask("PING"), Exception):
            break
        pings.append(time.perf_counter() - began)
    info = _lines(await server.ask("INFO"))
    config = {}
    for name in _FROM_CONFIG:
        if name.replace("-", "_") not in info:
            config.update(_pairs(await server.ask("CONFIG", "GET", name)))
    began = time.perf_counter()
    now = _seconds(await server.ask("TIME"))
    doubt = (time.perf_counter() - began) / 2
    offset = None if now is None else now - (time.time() - doubt)
    cluster = _lines(await server.ask("CLUSTER", "INFO")) if is_cluster else {}
    return ServerFacts(where, info, config, tuple(pings[1:]), offset, doubt, cluster)


Probes: TypeAlias = Sequence[Words]


def _entry_probes(name: str, is_cluster: bool) -> Probes:
    """
    Return commands, as the store gives them, on a *name* that no entry has: what is allowed, does nothing.

    Permissions are checked before a command looks at anything, and so is whether there is memory for a write.
    """
    return (
        ("GET", name) if is_cluster else ("MGET", name),
        ("SET", name, "", "XX", "PX", 1_000),
        ("EVAL", "return 1", 1, name),
        ("EVALSHA", "0" * 40, 1, name),
        ("UNLINK", name),
        ("GETRANGE", name, 0, 0),
        ("SCAN", 0, "COUNT", 1),
        ("PING",),
        ("INFO", "server"),
        ("TIME",),
        ("PEXPIRE", name, 1_000),
    )


def _log_probes(stream: str) -> Probes:
    """Return commands on the log's own names, which a pattern of an ACL may leave out; none of them changes it."""
    run = f"{stream}:run"
    return (
        ("TYPE", stream),
        ("GET", run),
        ("SET", run, "", "NX", "XX"),  # contradicts itself
        ("XRANGE", stream, "-", "+", "COUNT", 1),
        ("XREVRANGE", stream, "+", "-", "COUNT", 1),
        ("XREAD", "COUNT", 1, "STREAMS", stream, "$"),
        ("XADD", stream, "NOMKSTREAM", "0-0", "marks", ""),  # no entry can have this ID
        ("EVAL", "return 1", 1, stream),
        ("DEL", f"{stream}:doctor"),
    )


# What a probe may be answered with on a server that is well: also that a slot is on its way elsewhere.
_EXPECTED: Final = frozenset({"ERR", "NOSCRIPT", "WRONGTYPE", "MOVED", "ASK", "TRYAGAIN"})


async def _probed(server: _Asked, probes: Probes) -> tuple[frozenset[str], dict[str, str]]:
    """Return which commands are refused, and which fail otherwise, with the words."""
    refused, failing = set(), {}
    for words in probes:
        reply = await server.ask(*words)
        if not isinstance(reply, Exception):
            continue
        command, code = str(words[0]), _code(reply)
        if _is_refusal(reply):
            refused.add(command)
        elif code not in _EXPECTED:
            failing[command] = str(reply) if str(reply).startswith(code) else f"{code} {reply}"
    return frozenset(refused), failing


def _is_refusal(error: Exception) -> bool:
    """Say whether *error* says that the command is not to be had: by an ACL, renamed, or not of this server."""
    return _code(error) == "NOPERM" or "unknown command" in str(error).lower()


def _code(error: Exception) -> str:
    """Return the first word of an error reply; redis-py keeps it apart where it knows it."""
    known = getattr(error, "status_code", None)
    return str(known) if known else str(error).partition(" ")[0]


async def _stream_facts(log: _Asked, name: str) -> StreamFacts | None:
    kind = await log.ask("TYPE", name)
    if not isinstance(kind, bytes | str):
        return None
    kind = kind.decode("latin-1") if isinstance(kind, bytes) else kind
    if kind != "stream":
        return StreamFacts(kind)
    length = await log.ask("XLEN", name)
    first = _entry(await log.ask("XRANGE", name, "-", "+", "COUNT", 1))
    last = _entry(await log.ask("XREVRANGE", name, "+", "-", "COUNT", 1))
    now = _seconds(await log.ask("TIME"))
    run = await log.ask("GET", f"{name}:run")
    here = _lines(await log.ask("INFO", "server")).get("run_id")
    if last is None:
        return StreamFacts(kind, 0)
    appended = seconds_of(position_of(last[0]))
    return StreamFacts(
        kind,
        length if isinstance(length, int) else None,
        first is not None and b"open" in first[1],
        0.0 if now is None else max(0.0, appended - now),
        _is_foreign(last[1]),
        run.decode("latin-1") == here if isinstance(run, bytes) and here else None,
    )


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


async def _name_facts(client: Client, prefix: str, timeout: float) -> NameFacts | None:
    """Return what names there are, going through a bounded number of pages; None where that cannot be seen."""
    versions: Counter[int] = Counter()
    own: list[bytes] = []
    pages, until = 0, time.perf_counter() + _PAGES_SECONDS
    beginning = re.compile(rb"%s:(\d{1,9}):\{" % re.escape(prefix.encode()))
    try:
        for node in await client.nodes():
            cursor = 0
            while True:
                if pages == _MOST_PAGES or time.perf_counter() > until:
                    return await _with_expiry(client, versions, own, False, timeout)
                pages += 1
                async with asyncio.timeout(timeout):
                    cursor, names = await client.scan(node, cursor, f"{prefix}:*", _PAGE)
                for name in names:
                    match = beginning.match(name)
                    if match is not None:
                        version = int(match[1])
                        versions[version] += 1
                        if version == FORMAT_VERSION and len(own) < _SAMPLED:
                            own.append(name)
                if not cursor:
                    break
        return await _with_expiry(client, versions, own, True, timeout)
    except Exception:
        # It was allowed a moment ago; what ended it, the other findings say.
        return None


async def _with_expiry(
    client: Client, versions: Counter[int], own: Sequence[bytes], complete: bool, timeout: float
) -> NameFacts:
    # By its name each: on a cluster they are on several servers.
    async with asyncio.timeout(timeout):
        lives = await client.write([("PTTL", name) for name in own]) if own else ()
    known = [life for life in lives if isinstance(life, int)]
    return NameFacts(dict(versions), complete, len(known), known.count(-1))


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
    except (TypeError, ValueError):
        return None
    found = float(seconds) + microseconds / 1e6
    return found if math.isfinite(found) else None


def _number(said: Mapping[str, str], name: str) -> int | None:
    text = said.get(name, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None


def _keyspace(info: Mapping[str, str]) -> tuple[int, int]:
    """Return how many keys all databases have, and how many of them expire."""
    found = [
        re.match(r"keys=(\d{1,18}),expires=(\d{1,18})", value) for name, value in info.items() if name.startswith("db")
    ]
    return sum(int(match[1]) for match in found if match), sum(int(match[2]) for match in found if match)


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest of *values* that *share* of them, 0..1, do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def _mib(size: int | None) -> str:
    return "an unknown amount" if size is None else f"{size / 1048576:.1f} MiB"


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.{0 if seconds >= 0.01 else 2}f} ms"
