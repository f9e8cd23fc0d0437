"""
A worker's report of itself, and the sum of many: what dashboards, metrics and the command line show.

The one rule: what another worker tells comes from Redis, so it is read as data of strangers, field by field.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sized
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Final, Protocol

from echo_cache.cache.counters import RouteCounters, Totals
from echo_cache.coordination.clock import Clock
from echo_cache.coordination.log import Log
from echo_cache.coordination.logs import server_of
from echo_cache.options import CoordinationOptions
from echo_cache.stores.base import Store, StoreStats

__all__ = ["LogReport", "Report", "RouteReport", "encode_report", "parse_report", "report_of", "sum_of"]

MAX_ROUTES_TOLD: Final = 20
_MAX_NAMES: Final = 64
_LONGEST_TEXT: Final = 256
# Larger numbers are none that a worker counts, and would be no exact ones in a browser.
_LARGEST: Final = 2.0**53
_BREAKER_STATES: Final = ("closed", "half_open", "open")


@dataclass(frozen=True, slots=True)
class LogReport:
    """
    How a worker hears what others invalidate.

    heard: whether it does now. unheard_for: since when it has heard nothing, in seconds. synced: whether that is less
    than `max_unsynced`. pending: invalidations of its own that Redis does not know yet. reason: why it hears nothing.
    position: how far it has come; only equal ones can be compared, as text.
    """

    heard: bool = True
    synced: bool = True
    unheard_for: float = 0.0
    pending: int = 0
    position: str = ""
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class RouteReport:
    """What was done for one route; see RouteCounters. fill_seconds_mean: how long a fill takes, in seconds."""

    route: str
    l1_hits: int = 0
    l2_hits: int = 0
    stale_hits: int = 0
    collapsed: int = 0
    misses: int = 0
    stored: int = 0
    refused: int = 0
    saved_seconds: float = 0.0
    fills: int = 0
    fill_seconds_mean: float = 0.0


@dataclass(frozen=True, slots=True)
class Report:
    """
    What a worker has done, since it began or since its statistics were reset, and how it is now.

    id: the worker; "" for a sum. time: when it was made, epoch seconds. uptime: since the cache was made, in seconds.
    strategy: that of two levels; None for others. misses: requests that went to the app, of those that a cache can
    answer; passed: those that no cache can answer, or that are kept from it. saved_seconds: an estimate.
    l2_read_seconds: how long Redis took for a batch of reads, on average. breaker: None where there is none.
    What is None is not known. Everything else is as in CacheCounters and CacheStats.
    """

    id: str = ""
    time: float = 0.0
    uptime: float = 0.0
    name: str = "echo_cache"
    store: str = ""
    strategy: str | None = None
    requests: int = 0
    l1_hits: int = 0
    l2_hits: int = 0
    stale_hits: int = 0
    rescued: int = 0
    collapsed: int = 0
    misses: int = 0
    passed: int = 0
    hit_rate: float = 0.0
    stored: int = 0
    refused: int = 0
    failures: int = 0
    invalidations: int = 0
    saved_seconds: float = 0.0
    forwards: Mapping[str, int] = field(default_factory=dict)
    refusals: Mapping[str, int] = field(default_factory=dict)
    l1_entries: int | None = None
    l1_bytes: int | None = None
    l1_max_bytes: int | None = None
    evictions: int = 0
    l2_errors: int = 0
    l2_timeouts: int = 0
    l2_read_seconds: float | None = None
    write_back_queue: int = 0
    write_back_bytes: int = 0
    dropped: int = 0
    breaker: str | None = None
    log: LogReport = LogReport()
    flights: int = 0
    tasks: int = 0
    disabled: bool = False
    routes: tuple[RouteReport, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return asdict(self)


class _Reporting(Protocol):
    """What a cache says of itself."""

    @property
    def name(self) -> str: ...

    @property
    def store(self) -> Store: ...

    @property
    def clock(self) -> Clock: ...

    @property
    def coordination(self) -> CoordinationOptions: ...

    @property
    def log(self) -> Log: ...

    @property
    def flights(self) -> Sized: ...

    @property
    def worker_id(self) -> str: ...

    @property
    def uptime(self) -> float: ...

    @property
    def tasks_under_way(self) -> int: ...

    @property
    def is_disabled(self) -> bool: ...

    def totals(self) -> Totals: ...


def report_of(cache: _Reporting) -> Report:
    """Return the report of this worker."""
    totals = cache.totals()
    stats = totals.counters(cache.store.stats())
    passed = sum(stats.forwards.values()) - stats.misses
    store = cache.store
    get_stats = getattr(store, "get_stats", None)
    two = get_stats() if get_stats is not None else None
    memory = getattr(store, "l1", store)
    config = getattr(store, "config", None)
    server = server_of(store)
    reads = getattr(server, "latencies", {}).get("read")
    is_memory = getattr(memory, "max_bytes", None) is not None
    l1: StoreStats | None = memory.stats() if is_memory else None
    breaker = getattr(server, "breaker_state", None)
    remote = stats.store if server is not None and two is None else None
    return Report(
        id=cache.worker_id,
        time=cache.clock.time(),
        uptime=cache.uptime,
        name=cache.name,
        store=type(store).__name__,
        strategy=None if config is None else str(config.strategy),
        requests=stats.hits + stats.collapsed + stats.misses + passed,
        l1_hits=stats.l1_hits,
        l2_hits=stats.l2_hits,
        stale_hits=stats.stale_hits,
        rescued=stats.rescued,
        collapsed=stats.collapsed,
        misses=stats.misses,
        passed=passed,
        hit_rate=stats.hit_rate,
        stored=stats.stored,
        refused=sum(stats.refused.values()),
        failures=stats.failures,
        invalidations=stats.invalidations,
        saved_seconds=stats.saved_seconds,
        forwards={str(name): count for name, count in stats.forwards.items()},
        refusals={str(name): count for name, count in stats.refused.items()},
        l1_entries=None if l1 is None else l1.entries,
        l1_bytes=None if l1 is None else l1.bytes,
        l1_max_bytes=getattr(memory, "max_bytes", None),
        evictions=two.l1_evictions if two is not None else stats.store.evictions,
        l2_errors=two.l2_errors if two is not None else 0 if remote is None else remote.errors,
        l2_timeouts=two.l2_timeouts if two is not None else getattr(store, "timeouts", 0),
        l2_read_seconds=reads.mean if reads is not None and reads.count else None,
        write_back_queue=0 if two is None else two.write_back_queue,
        write_back_bytes=0 if two is None else two.write_back_bytes,
        dropped=0 if two is None else two.dropped,
        breaker=None if breaker is None else str(breaker),
        log=_log_report(cache),
        flights=len(cache.flights),
        tasks=cache.tasks_under_way,
        disabled=cache.is_disabled,
        routes=tuple([_route_report(one) for one in totals.busiest()[:MAX_ROUTES_TOLD]]),
    )


def _log_report(cache: _Reporting) -> LogReport:
    log = cache.log
    # Before it was first read there is nothing that could be doubted.
    unheard = log.unheard_for() if log.known else 0.0
    trouble = getattr(log, "trouble", None)
    return LogReport(
        heard=trouble is None,
        synced=unheard <= cache.coordination.max_unsynced,
        unheard_for=unheard if math.isfinite(unheard) else _LARGEST,
        pending=getattr(log, "pending", 0),
        position=str(log.position()),
        reason=None if trouble is None else str(trouble)[:_LONGEST_TEXT],
    )


def _route_report(counters: RouteCounters) -> RouteReport:
    return RouteReport(
        route=counters.route,
        l1_hits=counters.l1_hits,
        l2_hits=counters.l2_hits,
        stale_hits=counters.stale_hits,
        collapsed=counters.collapsed,
        misses=counters.misses,
        stored=counters.stored,
        refused=sum(counters.refused.values()),
        saved_seconds=counters.saved_seconds,
        fills=counters.fills,
        fill_seconds_mean=counters.fill_mean,
    )


# --- the sum of many --------------------------------------------------------------------------------------------------

# What cannot be added up.
_NO_SUM: Final = frozenset({"hit_rate", "l2_read_seconds", "time", "uptime"})


def sum_of(reports: Iterable[Report]) -> Report:
    """
    Return what all the workers together have done, and how they are: of a breaker or log, how the worst one is.

    uptime is the longest, time the latest, l2_read_seconds the largest.
    """
    all_of_them = list(reports)
    if not all_of_them:
        return Report()
    routes = _sum_of_routes(all_of_them)
    added: dict[str, Any] = {}
    for name, kind in _KINDS.items():
        values = [value for report in all_of_them if (value := getattr(report, name)) is not None]
        if kind in (int, float) and name not in _NO_SUM:
            added[name] = min(sum(values), kind(_LARGEST)) if values else None if name in _OPTIONAL else 0
        elif kind is dict:
            added[name] = _counts_of(values)
    # Of what a worker answered for a route that others alone have filled, the others know what it saved.
    added["saved_seconds"] = max(added["saved_seconds"], sum(one.saved_seconds for one in routes))
    answered = added["l1_hits"] + added["l2_hits"] + added["collapsed"]
    total = answered + added["misses"]
    first = all_of_them[0]
    return replace(
        first,
        **added,
        id="",
        time=max(report.time for report in all_of_them),
        uptime=max(report.uptime for report in all_of_them),
        hit_rate=answered / total if total else 0.0,
        l2_read_seconds=max(
            (one.l2_read_seconds for one in all_of_them if one.l2_read_seconds is not None), default=None
        ),
        breaker=max((one.breaker for one in all_of_them if one.breaker is not None), key=_severity, default=None),
        log=_worst_log([report.log for report in all_of_them]),
        disabled=any(report.disabled for report in all_of_them),
        routes=routes,
    )


def _severity(breaker: str) -> int:
    return _BREAKER_STATES.index(breaker) if breaker in _BREAKER_STATES else 0


def _worst_log(logs: list[LogReport]) -> LogReport:
    worst = max(logs, key=lambda log: (not log.synced, not log.heard, log.unheard_for))
    positions = {log.position for log in logs}
    return replace(
        worst, pending=sum(log.pending for log in logs), position=positions.pop() if len(positions) == 1 else ""
    )


def _sum_of_routes(reports: list[Report]) -> tuple[RouteReport, ...]:
    together: dict[str, list[RouteReport]] = {}
    for report in reports:
        for route in report.routes:
            together.setdefault(route.route, []).append(route)
    summed = []
    for name, parts in together.items():
        counted = {
            one.name: sum(getattr(part, one.name) for part in parts)
            for one in fields(RouteReport)
            if one.name not in ("route", "saved_seconds", "fill_seconds_mean")
        }
        # Each worker's mean is that of all its fills, of which those since the last reset tell how much it weighs.
        weights = [(part.fills or 1) * (part.fill_seconds_mean > 0) for part in parts]
        weighted = sum(part.fill_seconds_mean * weight for part, weight in zip(parts, weights, strict=True))
        mean = weighted / sum(weights) if sum(weights) else 0.0
        saved = (counted["l1_hits"] + counted["l2_hits"] + counted["collapsed"]) * mean
        summed.append(RouteReport(route=name, saved_seconds=saved, fill_seconds_mean=mean, **counted))
    summed.sort(key=lambda one: -(one.l1_hits + one.l2_hits + one.collapsed + one.misses))
    return tuple(summed[:MAX_ROUTES_TOLD])


def _counts_of(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    return dict(total.most_common(_MAX_NAMES))


# --- as bytes ---------------------------------------------------------------------------------------------------------


def encode_report(report: Report, most_bytes: int) -> bytes:
    """Return *report* as bytes for other workers, with as many routes as fit into *most_bytes*."""
    routes = report.routes
    while True:
        raw = json.dumps(replace(report, routes=routes).as_json(), separators=(",", ":")).encode()
        if len(raw) <= most_bytes or not routes:
            return raw
        routes = routes[: len(routes) // 2]


def parse_report(raw: bytes) -> Report | None:
    """
    Return the report in *raw*; None for what is none. Never raises.

    What is missing, of another type or out of range has its default: workers of two versions understand each other.
    """
    try:
        told = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    if not isinstance(told, dict) or not isinstance(told.get("id"), str) or not told["id"]:
        return None
    report = Report(**_checked(told, _KINDS))
    report = replace(report, hit_rate=min(report.hit_rate, 1.0))
    log, routes = told.get("log"), told.get("routes")
    return replace(
        report,
        breaker=report.breaker if report.breaker in _BREAKER_STATES else None,
        log=LogReport(**_checked(log, _LOG_KINDS)) if isinstance(log, dict) else LogReport(),
        routes=tuple(
            RouteReport(**{"route": "", **_checked(route, _ROUTE_KINDS)})
            for route in (routes if isinstance(routes, list) else [])[:MAX_ROUTES_TOLD]
            if isinstance(route, dict)
        ),
    )


def _checked(told: Mapping[str, Any], kinds: Mapping[str, type]) -> dict[str, Any]:
    """Return what of *told* is of the *kinds* that it should be, bounded."""
    checked: dict[str, Any] = {}
    for name, kind in kinds.items():
        value = told.get(name)
        if kind is bool:
            if isinstance(value, bool):
                checked[name] = value
        elif kind is str:
            if isinstance(value, str):
                checked[name] = _clean(value)
        elif kind is dict:
            if isinstance(value, dict):
                some = list(value.items())[:_MAX_NAMES]
                checked[name] = {_clean(one): count for one, count in some if _is_number(count, int)}
        elif _is_number(value, kind):
            checked[name] = kind(value)
    return checked


def _is_number(value: object, kind: type) -> bool:
    if isinstance(value, bool) or not isinstance(value, int if kind is int else int | float):
        return False
    return 0 <= value <= _LARGEST


def _clean(text: str) -> str:
    text = text[:_LONGEST_TEXT]
    return text if text.isprintable() else ascii(text)[1:-1][:_LONGEST_TEXT]


def _kinds(of: type) -> dict[str, type]:
    """Return the type of each plain field of the dataclass *of*."""
    simple = {"str": str, "int": int, "float": float, "bool": bool, "Mapping[str, int]": dict}
    found = {}
    for one in fields(of):
        kind = simple.get(str(one.type).removesuffix(" | None"))
        if kind is not None:
            found[one.name] = kind
    return found


_KINDS: Final = _kinds(Report)
_OPTIONAL: Final = frozenset(one.name for one in fields(Report) if str(one.type).endswith("| None"))
_LOG_KINDS: Final = _kinds(LogReport)
_ROUTE_KINDS: Final = _kinds(RouteReport)
