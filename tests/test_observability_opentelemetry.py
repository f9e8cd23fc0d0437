"""What OpenTelemetry is told: instruments over the same counters, and attributes of spans that have the app called."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import Gauge, InMemoryMetricReader, Sum
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from echo_cache import Cache, HTTPCacheMiddleware, MemoryStore, RedisStore, TwoLevelStore
from echo_cache.aside import CacheAside
from echo_cache.observability.metrics import INSTRUMENTS, Kind
from echo_cache.observability.opentelemetry import instrument
from echo_cache.testing import AskedApp, ManualClock, ScriptedApp, call, open_request

ROOT = Path(__file__).parent.parent


async def page(request: Request) -> Response:
    return PlainTextResponse("page", headers={"cache-control": "max-age=60"})


async def private(request: Request) -> Response:
    return PlainTextResponse("yours", headers={"cache-control": "private"})


APP = Starlette(routes=[Route("/p/{id}", page), Route("/me", private)])


# --- metrics ----------------------------------------------------------------------------------------------------------


class Meters:
    """A provider of meters, and what it measures when it is asked."""

    def __init__(self) -> None:
        self._reader = InMemoryMetricReader()
        self.provider = MeterProvider([self._reader])

    def read(self) -> dict[str, Any]:
        """Return the metrics by their names."""
        data = self._reader.get_metrics_data()
        if data is None:
            return {}
        (resource,) = data.resource_metrics
        (scope,) = resource.scope_metrics
        assert scope.scope.name == "echo_cache"
        assert len({metric.name for metric in scope.metrics}) == len(scope.metrics)
        return {metric.name: metric for metric in scope.metrics}

    def value(self, name: str, **attributes: str) -> float | None:
        metric = self.read().get(f"echo_cache.{name}")
        points = [] if metric is None else metric.data.data_points
        found = [point.value for point in points if dict(point.attributes) == {"cache": "echo_cache", **attributes}]
        assert len(found) < 2
        return found[0] if found else None


@pytest.fixture
def meters() -> Iterator[Meters]:
    meters = Meters()
    yield meters
    meters.provider.shutdown()


async def test_instruments_measure_what_the_tallies_count(meters: Meters) -> None:
    cache = Cache(MemoryStore())
    instrument(cache, meters.provider)
    edge = HTTPCacheMiddleware(APP, cache=cache)
    for path in ("/p/1", "/p/1", "/p/2", "/me"):
        await call(edge, "GET", path)
    assert meters.value("hits", route="/p/{id}", level="l1") == 1
    assert meters.value("forwards", route="/p/{id}", fwd="uri-miss") == 2
    assert meters.value("refused", route="/me", reason="private") == 1
    assert meters.value("store_entries", level="l1") == 2
    assert meters.value("fill_count", route="/p/{id}") == 2
    seconds = meters.value("fill_sum_seconds", route="/p/{id}")
    assert seconds == next(tally.fills.total for tally in cache.tallies if tally.route == "/p/{id}")
    assert meters.value("saved_seconds", route="/p/{id}") == pytest.approx((seconds or 0) / 2)
    cache.reset_counters()
    assert meters.value("hits", route="/p/{id}", level="l1") == 1


async def test_each_instrument_is_of_its_kind_and_has_its_unit(meters: Meters, redis_url: str) -> None:
    async with Cache(TwoLevelStore(MemoryStore(), RedisStore(redis_url))) as cache:
        instrument(cache, meters.provider)
        edge = HTTPCacheMiddleware(APP, cache=cache)
        for path in ("/p/1", "/me"):
            await call(edge, "GET", path)
        found = meters.read()
    units = {"seconds": "s", "bytes": "By", "": "1"}
    for one in INSTRUMENTS:
        if one.kind is Kind.HISTOGRAM:
            plain = f"echo_cache.{one.name.removesuffix('_seconds')}"
            for name, unit in ((f"{plain}_count", "1"), (f"{plain}_sum_seconds", "s")):
                assert found[name].unit == unit
                assert isinstance(found[name].data, Sum)
                assert found[name].data.is_monotonic
            continue
        metric = found[f"echo_cache.{one.name}"]
        assert (metric.unit, metric.description) == (units[one.unit], one.meaning)
        assert isinstance(metric.data, Sum if one.kind is Kind.COUNTER else Gauge)
        assert all(set(point.attributes) == {"cache", *one.labels} for point in metric.data.data_points)


def test_all_caches_of_a_provider_share_its_instruments(meters: Meters, caplog: pytest.LogCaptureFixture) -> None:
    shop, news = Cache(MemoryStore(), name="shop"), Cache(MemoryStore(), name="news")
    for cache in (shop, news, shop):
        instrument(cache, meters.provider)

    def names() -> set[str]:
        return {point.attributes["cache"] for point in meters.read()["echo_cache.flights"].data.data_points}

    assert names() == {"shop", "news"}
    assert caplog.messages == []  # the SDK warns of two instruments of one name
    del cache, news
    gc.collect()
    assert names() == {"shop"}


def test_the_global_provider_may_be_set_later() -> None:
    # In a process of its own: it can be set once.
    program = """
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from echo_cache import Cache, MemoryStore
from echo_cache.observability.opentelemetry import instrument

first, second = Cache(MemoryStore(), name="first"), Cache(MemoryStore(), name="second")
instrument(first)
reader = InMemoryMetricReader()
metrics.set_meter_provider(MeterProvider([reader]))
instrument(second)
((scope,),) = [one.scope_metrics for one in reader.get_metrics_data().resource_metrics]
(flights,) = [metric for metric in scope.metrics if metric.name == "echo_cache.flights"]
print(sorted(point.attributes["cache"] for point in flights.data.data_points))
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("['first', 'second']\n", "")


# --- spans ------------------------------------------------------------------------------------------------------------


class Spans:
    """A tracer, and the attributes of its spans."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = provider.get_tracer("test")

    async def of_call(
        self, edge: Any, path: str, headers: dict[str, str] | None = None, method: str = "GET"
    ) -> dict[str, Any]:
        """Return what the span of a request has, when a server's instrumentation has made one around it."""
        self._exporter.clear()
        with self.tracer.start_as_current_span("GET"):
            await call(edge, method, path, headers or {})
        (span,) = self._exporter.get_finished_spans()
        return dict(span.attributes or {})


@pytest.fixture
def spans() -> Spans:
    return Spans()


async def test_span_of_a_request_says_what_became_of_it_and_that_of_a_hit_nothing(spans: Spans) -> None:
    cache = Cache(MemoryStore())
    instrument(cache, NoOpMeterProvider())
    instrument(cache, NoOpMeterProvider())
    edge = HTTPCacheMiddleware(APP, cache=cache)
    assert await spans.of_call(edge, "/p/1") == {"echo_cache.fwd": "uri-miss", "echo_cache.stored": True}
    assert await spans.of_call(edge, "/p/1") == {}
    assert await spans.of_call(edge, "/me") == {
        "echo_cache.fwd": "uri-miss",
        "echo_cache.stored": False,
        "echo_cache.refusal": "private",
    }


async def test_span_of_a_rescue_says_so(spans: Spans) -> None:
    clock = ManualClock()

    async def script(asked: AskedApp) -> None:
        await asked.respond(
            *((503,) if asked.headers.get("x-fail") else (200, {"cache-control": "max-age=10, stale-if-error=60"}))
        )

    cache = Cache(MemoryStore(clock=clock), clock=clock)
    instrument(cache, NoOpMeterProvider())
    edge = HTTPCacheMiddleware(ScriptedApp(script), cache=cache)
    await call(edge, "GET", "/")
    clock.advance(20)
    assert await spans.of_call(edge, "/", {"x-fail": "1"}) == {"echo_cache.fwd": "stale", "echo_cache.rescued": True}


async def test_a_value_that_a_handler_fetches_leaves_the_span_alone(spans: Spans) -> None:
    cache = Cache(MemoryStore())
    instrument(cache, NoOpMeterProvider())
    users: CacheAside[int] = CacheAside(cache, "user", default_ttl=60)

    async def fetch() -> int:
        return 1

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await users.get("1", fetch)
        await PlainTextResponse("x")(scope, receive, send)

    found = await spans.of_call(HTTPCacheMiddleware(app, cache=cache), "/", method="POST")
    assert users.stats().fetches == 1
    assert found == {"echo_cache.fwd": "method"}


async def test_a_span_that_has_ended_is_left_alone(spans: Spans, caplog: pytest.LogCaptureFixture) -> None:
    cache = Cache(MemoryStore())
    instrument(cache, NoOpMeterProvider())
    app = ScriptedApp()
    edge = HTTPCacheMiddleware(app, cache=cache)
    with spans.tracer.start_as_current_span("GET") as span:
        request = open_request(edge, "GET", "/")
        asked = await app.called()
    await asked.respond(200, {"cache-control": "max-age=60"}, b"x")
    await request.response()
    await asyncio.sleep(0)
    assert dict(span.attributes) == {"echo_cache.fwd": "uri-miss"}  # type: ignore[attr-defined]
    assert caplog.messages == []  # the SDK warns of attributes that come too late
