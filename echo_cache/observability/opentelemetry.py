"""
Metrics and attributes of spans for OpenTelemetry. Needs `echo-cache[otel]`, which is its API alone.

The one rule: nothing is started here. Instruments are read when an exporter asks, and what is known of a call of the
app goes onto the span that is there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Final
from weakref import WeakKeyDictionary, WeakSet

from opentelemetry import metrics, trace
from opentelemetry.metrics import CallbackOptions, Meter, MeterProvider, Observation

from echo_cache.cache import Cache
from echo_cache.events import AppFailed, Event, Forwarded, Refused, Stored
from echo_cache.observability.metrics import INSTRUMENTS, PREFIX, Buckets, Instrument, Kind, Measuring

__all__ = ["instrument"]

_UNITS: Final = {"seconds": "s", "bytes": "By", "": "1"}
_HTTP: Final = frozenset({"http", "https"})

_Callback = Callable[[CallbackOptions], Iterable[Observation]]


def instrument(cache: Cache, meter_provider: MeterProvider | None = None) -> None:
    """
    Tell OpenTelemetry what *cache* does, from now on; a second time does nothing.

    meter_provider: where the metrics go; the global one if None. A request that has the app called has that in the
    attributes of its current span (echo_cache.fwd, .stored, .refusal, .rescued); nothing is done at a hit.
    """
    found = _instrumented_of(meter_provider)
    found.caches.setdefault(cache, Measuring())
    if cache not in _with_spans:
        _with_spans.add(cache)
        cache.add_observer(_tell_span)


# --- metrics ----------------------------------------------------------------------------------------------------------


class _Instrumented:
    """The instruments of one meter provider, and the caches that they measure, as long as those are there."""

    def __init__(self, meter: Meter) -> None:
        self.caches: WeakKeyDictionary[Cache, Measuring] = WeakKeyDictionary()
        for one in INSTRUMENTS:
            self._create(meter, one)

    def _create(self, meter: Meter, one: Instrument) -> None:
        name, unit = f"{PREFIX}.{one.name}", _UNITS[one.unit]
        if one.kind is Kind.HISTOGRAM:
            # There are no histograms that are read when somebody asks: what is told is how many, and how long together.
            plain = name.removesuffix("_seconds")
            meter.create_observable_counter(f"{plain}_count", [partial(self._counts, one)], "1", one.meaning)
            meter.create_observable_counter(f"{plain}_sum_seconds", [partial(self._sums, one)], unit, one.meaning)
        elif one.kind is Kind.COUNTER:
            meter.create_observable_counter(name, [partial(self._values, one)], unit, one.meaning)
        else:
            meter.create_observable_gauge(name, [partial(self._values, one)], unit, one.meaning)

    def _read(self, one: Instrument) -> Iterator[tuple[float | Buckets, dict[str, str]]]:
        for cache, measuring in list(self.caches.items()):
            for labels, value in one.values(measuring.read(cache)):
                yield value, {"cache": cache.name, **dict(zip(one.labels, labels, strict=True))}

    def _values(self, one: Instrument, options: CallbackOptions) -> Iterator[Observation]:
        for value, attributes in self._read(one):
            if not isinstance(value, Buckets):
                yield Observation(value, attributes)

    def _counts(self, one: Instrument, options: CallbackOptions) -> Iterator[Observation]:
        for value, attributes in self._read(one):
            if isinstance(value, Buckets):
                yield Observation(value.counts[-1], attributes)

    def _sums(self, one: Instrument, options: CallbackOptions) -> Iterator[Observation]:
        for value, attributes in self._read(one):
            if isinstance(value, Buckets):
                yield Observation(value.total, attributes)


# Naughty but better than two instruments of one name: those of a provider are made once, for all caches.
_instrumented: WeakKeyDictionary[MeterProvider, _Instrumented] = WeakKeyDictionary()
_of_global: list[_Instrumented] = []
_with_spans: WeakSet[Cache] = WeakSet()


def _instrumented_of(provider: MeterProvider | None) -> _Instrumented:
    """Return the instruments of *provider*; those of the global one are made of whatever is set, now or later."""
    if provider is None:
        if not _of_global:
            _of_global.append(_Instrumented(metrics.get_meter(PREFIX, _version())))
        return _of_global[0]
    found = _instrumented.get(provider)
    if found is None:
        found = _instrumented[provider] = _Instrumented(provider.get_meter(PREFIX, _version()))
    return found


def _version() -> str:
    try:
        return version("echo-cache")
    except PackageNotFoundError:
        return ""  # a checkout that is not installed


# --- spans ------------------------------------------------------------------------------------------------------------


def _tell_span(event: Event) -> None:
    """
    Put *event* onto the current span, which is that of the request that has the app called.

    A value of CacheAside is no response of that request.
    """
    if not isinstance(event, (Forwarded, Stored, Refused, AppFailed)) or event.key[1] not in _HTTP:
        return
    span = trace.get_current_span()
    if not span.is_recording():
        return
    match event:
        case Forwarded():
            span.set_attribute("echo_cache.fwd", str(event.fwd))
        case Stored():
            span.set_attribute("echo_cache.stored", True)
        case Refused():
            span.set_attribute("echo_cache.stored", False)
            span.set_attribute("echo_cache.refusal", str(event.reason))
        case AppFailed():
            span.set_attribute("echo_cache.rescued", True)
