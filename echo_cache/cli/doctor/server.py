"""
Whether a server, or a cluster, is fit for a cache, by what it says of itself.

The one rule: a number that a server did not give is not judged.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from echo_cache.cli.doctor.facts import Finding, ServerFacts
from echo_cache.cli.text import shown

__all__ = [
    "ANOTHER_POLICY",
    "NO_SAVING",
    "THE_PRIMARY",
    "YEAR",
    "cluster_findings",
    "percentile",
    "server_findings",
]

ANOTHER_POLICY: Final = (
    "CONFIG SET maxmemory-policy volatile-lru (or allkeys-lfu), and the same in the server's configuration."
)
NO_SAVING: Final = (
    "Free the disk, or switch saving off: a cache needs none (CONFIG SET save '' and CONFIG SET appendonly no)."
)
THE_PRIMARY: Final = "Give the URL of the primary, or of Sentinels that name it: redis+sentinel://host:port/service"

YEAR: Final = 366 * 86_400.0
"""In seconds: clocks that differ by more were never set."""

_OLDEST: Final = (6, 2)
_RELATIVES: Final = ("dragonfly", "keydb", "garnet")
# Shares of what there is.
_NEARLY_FULL: Final = 0.9
_CROWDED: Final = 0.8
# Seconds between clocks. Those that differ by less than the first are not looked at by the store either.
_AGREEMENT: Final = 0.1
_FAR_OFF: Final = 60.0
_SLOTS: Final = 16_384


def server_findings(server: ServerFacts, store_timeout: float, *, is_cluster: bool) -> Iterator[Finding]:
    """
    Return what *server* is good for.

    store_timeout: how long RedisStore waits, in seconds. is_cluster: whether the URL leads to a cluster.
    """
    # What INFO did not say, CONFIG may have, with other hyphens.
    said = {name.replace("-", "_"): value for name, value in server.config.items()} | dict(server.info)
    if server.info:
        yield from _version(server.info)
        yield from _role(server.info, is_cluster=is_cluster)
        yield from _durability(server.info)
    yield from _memory(said)
    yield from _clients(said)
    yield from _latency(server.pings, store_timeout)
    yield from _clock(server.clock_offset, server.clock_doubt)


def _version(info: Mapping[str, str]) -> Iterator[Finding]:
    other = next((name for name in _RELATIVES if f"{name}_version" in info), None)
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


def _role(info: Mapping[str, str], *, is_cluster: bool) -> Iterator[Finding]:
    if info.get("role") == "slave":
        link = "" if info.get("master_link_status") != "down" else ", and it has lost its primary"
        yield Finding("problem", f"The server is a replica{link}: it refuses writes.", THE_PRIMARY)
    replicas = _number(info, "connected_slaves")
    if info.get("role") == "master" and replicas:
        yield Finding(
            "note",
            f"The server has {replicas} replica(s). A failover may lose the last invalidations; workers notice it and "
            "have what they hold confirmed by the app.",
        )
    if info.get("cluster_enabled") == "1" and not is_cluster:
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
            NO_SAVING,
        )
    elif info.get("aof_enabled") == "1":
        yield Finding("note", "The server keeps an append-only file. The cache itself needs no persistence.")


def _memory(said: Mapping[str, str]) -> Iterator[Finding]:
    limit, policy, used = _number(said, "maxmemory"), said.get("maxmemory_policy"), _number(said, "used_memory")
    is_full = used is not None and limit is not None and used >= _NEARLY_FULL * limit
    if limit is None or not policy:
        yield Finding(
            "note",
            "maxmemory and maxmemory-policy cannot be seen: the server permits neither INFO nor CONFIG.",
            "Look into the settings of your provider: there should be a limit, and volatile-lru or allkeys-lfu.",
        )
    elif not limit:
        yield Finding(
            "warning",
            f"maxmemory is not set ({_mib(used)} are used): the server grows until the machine has no memory left.",
            "Set maxmemory to what the cache may have, and maxmemory-policy to volatile-lru.",
        )
    elif policy == "noeviction":
        share = "an unknown share" if used is None else f"{used / limit:.0%}"
        yield Finding(
            "problem" if is_full else "warning",
            f"maxmemory-policy is noeviction and {share} of {_mib(limit)} are used: once it is full, nothing can "
            "be stored, and what is invalidated is not known to other workers.",
            ANOTHER_POLICY,
        )
    else:
        yield Finding("ok", f"maxmemory is {_mib(limit)} with {shown(policy)}, {_mib(used)} are used.")
        yield from _eviction(said, policy, is_full=is_full)


def _eviction(said: Mapping[str, str], policy: str, *, is_full: bool) -> Iterator[Finding]:
    if policy.startswith("allkeys"):
        yield Finding(
            "note",
            f"With {shown(policy)} the invalidation log may be evicted, too. Workers notice that, and have what they "
            "hold confirmed by the app.",
            "With volatile-lru the log stays, as it never expires.",
        )
    evicted = _number(said, "evicted_keys")
    if evicted:
        yield Finding(
            "warning" if is_full else "note",
            f"{evicted} keys were evicted since the server started: entries end sooner than they could.",
            "Give it more memory, or give responses shorter lifetimes and `keep`.",
        )
    keys, expiring = _keyspace(said)
    if is_full and policy.startswith("volatile") and keys and expiring < keys / 2:
        yield Finding(
            "warning",
            f"{keys - expiring} of {keys} keys never expire, and {shown(policy)} evicts only keys that do: when these "
            "are gone, writes fail.",
            "Keep other data elsewhere, or use allkeys-lfu.",
        )


def _clients(said: Mapping[str, str]) -> Iterator[Finding]:
    connected, most = _number(said, "connected_clients"), _number(said, "maxclients")
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


def _clock(offset: float | None, doubt: float) -> Iterator[Finding]:
    if offset is None:
        return
    off = f"The server's clock is {offset:+.1f} s off this machine's. Entries carry the server's time"
    if abs(offset) > YEAR:
        yield Finding(
            "problem",
            "The server's clock is more than a year off this machine's.",
            "Set the clocks; NTP keeps them together.",
        )
    elif abs(offset) - doubt > _FAR_OFF:
        yield Finding(
            "warning",
            f"{off}, so workers agree on what is fresh; Date and Expires of responses are off by as much, if it is "
            "this machine that is wrong.",
            "Keep the clocks together, with NTP.",
        )
    elif abs(offset) - doubt > _AGREEMENT:
        yield Finding("note", f"{off}.")
    else:
        yield Finding("ok", "The server's clock and this machine's agree.")


def cluster_findings(servers: Sequence[ServerFacts], primaries: int) -> Iterator[Finding]:
    """Return how the cluster is that *servers* are of; *primaries*: how many it has."""
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
        yield Finding("ok", f"The cluster is ok, with {primaries} primaries.")


# --- numbers ----------------------------------------------------------------------------------------------------------


def _number(said: Mapping[str, str], name: str) -> int | None:
    text = said.get(name, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None


def _keyspace(said: Mapping[str, str]) -> tuple[int, int]:
    """Return how many keys all databases have, and how many of them expire."""
    lines = (value for name, value in said.items() if name.startswith("db"))
    found = [match for line in lines if (match := re.match(r"keys=(\d{1,18}),expires=(\d{1,18})", line))]
    return sum(int(match[1]) for match in found), sum(int(match[2]) for match in found)


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest of *values* that *share* of them, 0..1, do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def _mib(size: int | None) -> str:
    return "an unknown amount" if size is None else f"{size / 1048576:.1f} MiB"


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.{0 if seconds >= 0.01 else 2}f} ms"
