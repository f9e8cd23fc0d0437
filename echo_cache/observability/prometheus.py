"""
Metrics for Prometheus, by a collector that reads the cache when it is scraped. Needs `echo-cache[prometheus]`.

The one rule: nothing is counted twice. There are no metric objects on the way of a request; a scrape reads the counters
that the cache has anyway.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, NamedTuple
from weakref import WeakKeyDictionary, ref

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Receive, Scope, Send

from echo_cache.cache import Cache
from echo_cache.errors import ConfigurationError
from echo_cache.observability.metrics import INSTRUMENTS, PREFIX, Buckets, Instrument, Kind, Measuring, Reading

__all__ = ["CacheCollector", "metrics_endpoint", "register", "unregister"]

_CONTENT_TYPE: Final = b"text/plain; version=0.0.4; charset=utf-8"
_LABEL_NAME: Final = re.compile(r"[a-zA-Z][a-zA-Z0-9_]*")
# What Prometheus adds to a target, and what histograms have.
_RESERVED: Final = frozenset({"cache", "instance", "job", "le"}.union(*[one.labels for one in INSTRUMENTS]))
# How many lines the endpoint writes before others have their turn: less than a millisecond's.
_LINES_AT_ONCE: Final = 200

# Naughty but better than a second registry: a name can be registered once, so all caches of a registry share a
# collector.
_collectors: WeakKeyDictionary[CollectorRegistry, CacheCollector] = WeakKeyDictionary()


class _Watched(NamedTuple):
    """A cache, for as long as it is there, and the labels that all its metrics have."""

    cache: ref[Cache]
    labels: dict[str, str]
    measuring: Measuring


class CacheCollector(Collector):
    """
    A collector of what any number of caches have done and how they are, for one registry.

    Each cache is told apart by the label "cache", its name. A cache that is gone is left out. See `register`.
    """

    def __init__(self) -> None:
        self._watched: dict[str, _Watched] = {}

    def __repr__(self) -> str:
        return f"<CacheCollector of {sorted(self._watched)}>"

    def __len__(self) -> int:
        return sum(watched.cache() is not None for watched in self._watched.values())

    def add(self, cache: Cache, labels: Mapping[str, str] | None = None) -> None:
        """
        Collect *cache*, too; nothing changes if it is collected already.

        labels: what else all its metrics have, by name. Raises ConfigurationError for a label that has a meaning here
        or is none, and for another cache of the same name.
        """
        labels = dict(labels or {})
        for name, value in labels.items():
            if not _LABEL_NAME.fullmatch(name) or name in _RESERVED:
                raise ConfigurationError(
                    f"a label is called as letters, digits and '_' allow, and none of {sorted(_RESERVED)}; not {name!r}"
                )
            if not isinstance(value, str):
                raise ConfigurationError(f"the label {name!r} must be a string, not {value!r}")
        known = self._watched.get(cache.name)
        other = None if known is None else known.cache()
        if other is cache:
            return
        if other is not None:
            raise ConfigurationError(
                f"another cache is called {cache.name!r}; give each a name of its own: Cache(store, name='products')"
            )
        self._watched[cache.name] = _Watched(ref(cache), labels, Measuring())

    def remove(self, cache: Cache) -> None:
        """Collect *cache* no more."""
        known = self._watched.get(cache.name)
        if known is not None and known.cache() is cache:
            del self._watched[cache.name]

    def describe(self) -> Iterator[Metric]:
        """Yield the metrics without a value: they can be registered before there is any."""
        for instrument in INSTRUMENTS:
            yield _metric(instrument)

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics as they are now."""
        readings = self._read()
        for instrument in INSTRUMENTS:
            metric = _metric(instrument)
            for labels, value in _measured(instrument, readings):
                for suffix, more, number in _samples(instrument.kind, value):
                    metric.add_sample(f"{metric.name}{suffix}", {**labels, **more}, number)
            yield metric

    def pages(self) -> Iterator[str]:
        """
        Yield the metrics in Prometheus's text format, in parts that take little time each.

        Written here, since prometheus_client takes 8 us for a line and writes all of them in one go: the 13,000 lines
        of 512 routes would be 0.1 s in which an event loop does nothing else.
        """
        page: list[str] = []
        for line in self._lines():
            page.append(line)
            if len(page) == _LINES_AT_ONCE:
                yield "".join(page)
                page.clear()
        yield "".join(page)

    def _lines(self) -> Iterator[str]:
        readings = self._read()
        for instrument in INSTRUMENTS:
            name = f"{PREFIX}_{instrument.name}"
            shown = f"{name}_total" if instrument.kind is Kind.COUNTER else name
            yield f"# HELP {shown} {instrument.meaning}\n"
            yield f"# TYPE {shown} {instrument.kind.value}\n"
            for labels, value in _measured(instrument, readings):
                own = ",".join([f'{label}="{_escaped(text)}"' for label, text in labels.items()])
                for suffix, more, number in _samples(instrument.kind, value):
                    bound = f',le="{more["le"]}"' if more else ""
                    yield f"{name}{suffix}{{{own}{bound}}} {number!r}\n"

    def _read(self) -> list[tuple[Reading, dict[str, str]]]:
        """Return a reading of each cache that is there, and the labels that all its metrics have."""
        found = []
        for watched in list(self._watched.values()):
            cache = watched.cache()
            if cache is not None:
                found.append((watched.measuring.read(cache), {"cache": cache.name, **watched.labels}))
        return found


def _measured(
    instrument: Instrument, readings: Iterable[tuple[Reading, dict[str, str]]]
) -> Iterator[tuple[dict[str, str], float | Buckets]]:
    """Yield what *instrument* measures in each of *readings*, with all labels."""
    for reading, labels in readings:
        for values, value in instrument.values(reading):
            yield {**labels, **dict(zip(instrument.labels, values, strict=True))}, value


def _samples(kind: Kind, value: float | Buckets) -> Iterator[tuple[str, dict[str, str], float]]:
    """Yield what *value* is told as: the end of the name, another label, the number."""
    if isinstance(value, Buckets):
        for bound, count in zip((*value.bounds, "+Inf"), value.counts, strict=True):
            yield "_bucket", {"le": str(bound)}, count
        yield "_count", {}, value.counts[-1]
        yield "_sum", {}, value.total
    else:
        yield "_total" if kind is Kind.COUNTER else "", {}, value


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _metric(instrument: Instrument) -> Metric:
    return Metric(f"{PREFIX}_{instrument.name}", instrument.meaning, instrument.kind.value)


def register(
    cache: Cache, registry: CollectorRegistry = REGISTRY, *, labels: Mapping[str, str] | None = None
) -> CacheCollector:
    """
    Have *registry* collect *cache*, from now on, and return its collector. A second time does nothing.

    labels: what else all metrics of this cache have, by name. Raises ConfigurationError for another cache of the same
    name, and for labels that cannot be.
    """
    collector = _collectors.get(registry)
    if collector is not None:
        collector.add(cache, labels)
        return collector
    collector = CacheCollector()
    collector.add(cache, labels)
    registry.register(collector)
    _collectors[registry] = collector
    return collector


def unregister(cache: Cache, registry: CollectorRegistry = REGISTRY) -> None:
    """Have *registry* collect *cache* no more; nothing if it does not."""
    collector = _collectors.get(registry)
    if collector is not None:
        collector.remove(cache)
        if not len(collector):
            registry.unregister(collector)
            del _collectors[registry]


def metrics_endpoint(*caches: Cache) -> ASGIApp:
    """
    Return an ASGI app that answers GET with the metrics of *caches*, in Prometheus's text format.

        app.router.routes.append(Route("/metrics", metrics_endpoint(cache)))

    For apps that have none. Other requests wait for no more than a part of it, however many routes there are. It asks
    nobody who he is: keep it from strangers. Its answers are not stored.

    Raises ConfigurationError for two caches of one name.
    """
    if not caches:
        raise ConfigurationError("metrics_endpoint needs a cache: metrics_endpoint(cache)")
    return _Endpoint(caches)


class _Endpoint:
    """The app that `metrics_endpoint` returns: an object, since routers take a function for a handler of requests."""

    def __init__(self, caches: Iterable[Cache]) -> None:
        self._collector = CacheCollector()
        # The collector would let go of them.
        self._caches = tuple(caches)
        for cache in self._caches:
            self._collector.add(cache)

    def __repr__(self) -> str:
        return f"<metrics_endpoint of {self._collector!r}>"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"metrics_endpoint answers HTTP requests, not {scope['type']!r}")
        headers = [(b"content-type", _CONTENT_TYPE), (b"cache-control", b"no-store")]
        if scope["method"] not in ("GET", "HEAD"):
            await send(
                {"type": "http.response.start", "status": 405, "headers": [(b"allow", b"GET, HEAD"), headers[1]]}
            )
            await send({"type": "http.response.body", "body": b""})
            return
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        if scope["method"] == "GET":
            for page in self._collector.pages():
                await send({"type": "http.response.body", "body": page.encode(), "more_body": True})
                await asyncio.sleep(0)
        await send({"type": "http.response.body", "body": b""})
