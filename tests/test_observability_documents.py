"""The dashboard, the alerts and the pages about operations name what the collector exports, and all of it."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, get_args

import pytest
import yaml
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.trace import TracerProvider

from echo_cache import Cache, MemoryStore, RedisStore, TwoLevelConfig, TwoLevelStore
from echo_cache.events import (
    AppFailed,
    BreakerChanged,
    CacheFailed,
    Event,
    Forwarded,
    Invalidated,
    LogChanged,
    Refused,
    Stored,
    WriteAbandoned,
)
from echo_cache.model import CacheKey, Fwd, Refusal
from echo_cache.observability.logs import LoggingObserver
from echo_cache.observability.metrics import INSTRUMENTS, Kind, Measuring
from echo_cache.observability.opentelemetry import instrument

ROOT: Final = Path(__file__).parent.parent
DASHBOARD: Final[dict[str, Any]] = json.loads((ROOT / "docs/grafana/echo_cache.json").read_text("utf-8"))
ALERTS: Final[dict[str, Any]] = yaml.safe_load((ROOT / "docs/grafana/alerts.yml").read_text("utf-8"))
PAGE: Final = (ROOT / "docs/operations.md").read_text("utf-8")
RUNBOOK: Final = (ROOT / "docs/runbook.md").read_text("utf-8")
EXAMPLE: Final = ROOT / "examples/prometheus"

# Those that Prometheus gives each series of a target, and that of the cache.
OF_TARGET: Final = frozenset({"job", "instance", "cache"})


def exported() -> dict[str, frozenset[str]]:
    """Return the labels of each series that the collector exports, by its name."""
    found = {}
    for one in INSTRUMENTS:
        name, labels = f"echo_cache_{one.name}", frozenset(one.labels) | OF_TARGET
        match one.kind:
            case Kind.COUNTER:
                found[f"{name}_total"] = labels
            case Kind.GAUGE:
                found[name] = labels
            case Kind.HISTOGRAM:
                found[f"{name}_bucket"] = labels | {"le"}
                found[f"{name}_sum"] = found[f"{name}_count"] = labels
    return found


EXPORTED: Final = exported()
RUNBOOK_URL: Final = "https://docs.example/runbook.html"
RULES: Final = [rule for group in ALERTS["groups"] for rule in group["rules"]]
RECORDED: Final = {rule["record"] for rule in RULES if "record" in rule}
FIRING: Final = [rule for rule in RULES if "alert" in rule]


def panels() -> Iterator[dict[str, Any]]:
    for panel in DASHBOARD["panels"]:
        yield panel
        yield from panel.get("panels", ())


def expressions() -> Iterator[tuple[str, str]]:
    """Yield each expression of PromQL, with where it stands."""
    for panel in panels():
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["name"], variable["query"]["query"]
    for rule in RULES:
        yield rule.get("alert") or rule["record"], rule["expr"]
    yield from (("operations.md", text) for text in re.findall(r"^```text\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE))


EXPRESSIONS: Final = list(expressions())


def series_of(expression: str) -> dict[str, set[str]]:
    """Return the names of series in *expression*, each with the labels that its selectors name."""
    found: dict[str, set[str]] = {}
    for name, selector in re.findall(r"\b(echo_cache[:\w]*)(?:\{([^}]*)\})?", expression):
        found.setdefault(name, set()).update(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"", selector))
    return found


def shown_labels(expression: str) -> set[str]:
    """Return the labels by which *expression* groups or joins."""
    lists = re.findall(r"\b(?:by|on|without|ignoring)\s*\(([^)]*)\)", expression)
    return {label.strip() for one in lists for label in one.split(",") if label.strip()}


def test_what_reads_expressions_reads_them() -> None:
    expression = (
        'sum by (le, route) (rate(echo_cache_fill_seconds_bucket{job=~"$job", route!="a"}[5m])) / echo_cache:a:b'
    )
    assert series_of(expression) == {"echo_cache_fill_seconds_bucket": {"job", "route"}, "echo_cache:a:b": set()}
    assert shown_labels(expression) == {"le", "route"}


@pytest.mark.parametrize(("place", "expression"), EXPRESSIONS)
def test_every_metric_and_label_that_is_named_is_exported(place: str, expression: str) -> None:
    series = series_of(expression)
    assert series, place
    for name, labels in series.items():
        assert name in EXPORTED or name in RECORDED, f"{place}: {name} is not exported"
        assert labels <= EXPORTED.get(name, OF_TARGET), f"{place}: {name} has no {labels}"
    known = frozenset[str]().union(*[EXPORTED.get(name, OF_TARGET) for name in series])
    assert shown_labels(expression) <= known, place


def test_values_of_labels_that_are_named_are_those_of_the_code() -> None:
    values = {
        "fwd": {str(one) for one in Fwd},
        "level": {"l1", "l2"},
        "state": {"closed", "half_open", "open"},
        "operation": {"read", "write"},
    }
    named = 0
    for place, expression in [*EXPRESSIONS, ("operations.md", PAGE), ("runbook.md", RUNBOOK)]:
        for label, value in re.findall(r'\b(fwd|level|state|operation)(?:=~|!~|!=|=)"([^"]*)"', expression):
            named += 1
            assert set(value.split("|")) <= values[label], f"{place}: {label}={value}"
    assert named > 10


def test_legends_show_labels_that_the_expression_keeps() -> None:
    for panel in panels():
        for target in panel.get("targets", ()):
            named = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            assert named <= shown_labels(target["expr"]), panel["title"]


def test_every_metric_is_in_the_dashboard() -> None:
    named = {name for _, expression in EXPRESSIONS for name in series_of(expression)}
    families = {re.sub(r"_(?:bucket|sum|count)$", "", name) for name in named if name in EXPORTED}
    wanted = {re.sub(r"_(?:bucket|sum|count)$", "", name) for name in EXPORTED}
    assert wanted - families == set()


# --- the dashboard ----------------------------------------------------------------------------------------------------


def test_dashboard_takes_the_data_source_that_is_chosen() -> None:
    assert DASHBOARD["schemaVersion"] >= 38  # of Grafana 10
    (source,) = [one for one in DASHBOARD["templating"]["list"] if one["type"] == "datasource"]
    assert (source["name"], source["query"]) == ("datasource", "prometheus")
    shown = [panel for panel in panels() if panel["type"] != "row"]
    for one in [*shown, *[target for panel in shown for target in panel["targets"]]]:
        assert one["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


def test_dashboard_has_variables_for_all_that_its_expressions_use() -> None:
    names = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    used = {name for _, expression in EXPRESSIONS for name in re.findall(r"\$(\w+)", expression)}
    assert used - {"__rate_interval", "labels", "value"} <= names


def test_panels_have_a_place_of_their_own() -> None:
    ids = [panel["id"] for panel in panels()]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        own = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not own & taken, panel["title"]
        taken |= own


# --- alerts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [pytest.param(rule, id=rule["alert"]) for rule in FIRING])
def test_every_alert_says_what_it_means_and_has_its_place_in_the_runbook(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
    text = f"{rule['annotations']['summary']} {rule['annotations']['description']}"
    kept = shown_labels(rule["expr"]) or OF_TARGET
    assert set(re.findall(r"\$labels\.(\w+)", text)) <= kept
    assert rule["annotations"]["runbook_url"] == f"{RUNBOOK_URL}#{rule['alert'].lower()}"
    entry = re.search(rf"^## {rule['alert']}\n(.*?)(?=^## |\Z)", RUNBOOK, re.DOTALL | re.MULTILINE)
    assert entry is not None
    assert "**Look at**" in entry[1]
    assert "**Do**" in entry[1]


def test_the_runbook_has_no_other_alerts() -> None:
    assert re.findall(r"^## (.+)$", RUNBOOK, re.MULTILINE) == [rule["alert"] for rule in FIRING]


def test_where_the_runbook_is_to_be_put_in_is_said_beside_the_alerts() -> None:
    for text in ((ROOT / "docs/grafana/alerts.yml").read_text("utf-8").partition("groups:")[0], PAGE):
        assert RUNBOOK_URL in text


def test_bounds_of_the_queue_that_an_alert_divides_by_are_those_of_the_store() -> None:
    config = TwoLevelConfig(strategy="write_back", async_buffer=7, async_buffer_bytes=8_000)
    of_two = TwoLevelStore(MemoryStore(), RedisStore("redis://localhost"), config)
    expected = {"queue": 0, "limit": 7, "queue_bytes": 0, "limit_bytes": 8_000}
    for store, told in ((of_two, [[((), number)] for number in expected.values()]), (MemoryStore(), [[]] * 4)):
        reading = Measuring().read(Cache(store))
        read = {one.name: list(one.values(reading)) for one in INSTRUMENTS}
        assert [read[f"write_back_{name}"] for name in expected] == told
    (rule,) = [rule for rule in FIRING if rule["alert"] == "EchoCacheWriteBackGrowing"]
    assert set(series_of(rule["expr"])) == {f"echo_cache_write_back_{name}" for name in expected}


# --- the page ---------------------------------------------------------------------------------------------------------


def test_table_of_metrics_is_that_of_the_code() -> None:
    shown = re.findall(r"^\| `(echo_cache_\w+)` \| (\w+) \| (.*?) \| (.*) \|$", PAGE, re.MULTILINE)
    assert shown == [
        (
            f"echo_cache_{one.name}{'_total' if one.kind is Kind.COUNTER else ''}",
            one.kind.value,
            ", ".join([f"`{label}`" for label in one.labels]) or "-",
            one.meaning,
        )
        for one in INSTRUMENTS
    ]


KEY: Final[CacheKey] = ("GET", "http", b"shop", b"/", b"")
EVENTS: Final = (
    BreakerChanged("open", "gone"),
    LogChanged(False, "gone"),
    CacheFailed("get", OSError()),
    AppFailed(KEY, None),
    WriteAbandoned(KEY, 1, "OSError"),
    Invalidated("url", False),
    Refused(KEY, Refusal.PRIVATE),
    Forwarded(KEY, Fwd.MISS),
    Stored(KEY, 1, 1.0),
)


def test_table_of_lines_in_the_log_is_that_of_the_code(caplog: pytest.LogCaptureFixture) -> None:
    assert {type(event) for event in EVENTS} == set(get_args(Event))
    caplog.set_level(logging.DEBUG, "shop")
    observer = LoggingObserver("shop")
    for event in EVENTS:
        observer(event)
    written = [
        (
            vars(record)["cache_event"],
            record.levelname,
            [name for name in vars(record) if name.startswith("cache_") and name != "cache_event"],
        )
        for record in caplog.records
    ]
    rows = re.findall(r"^\| `(\w+)` \| ([^|]*) \| ((?:`cache_\w+`(?:, )?)+) \|$", PAGE, re.MULTILINE)
    assert [
        (event, re.findall(r"[A-Z]{2,}", level)[0], re.findall(r"cache_\w+", fields)) for event, level, fields in rows
    ] == written


def test_table_of_attributes_is_that_of_the_code() -> None:
    cache = Cache(MemoryStore())
    instrument(cache, NoOpMeterProvider())
    found: set[str] = set()
    for event in EVENTS:
        with TracerProvider(shutdown_on_exit=False).get_tracer("test").start_as_current_span("GET") as span:
            cache.emit(event)
        found |= set(span.attributes)  # type: ignore[attr-defined]
    assert set(re.findall(r"^\| `(echo_cache\.\w+)` \|", PAGE, re.MULTILINE)) == found


# --- the example ------------------------------------------------------------------------------------------------------


def test_example_of_prometheus_finds_the_alerts_and_the_app() -> None:
    config = yaml.safe_load((EXAMPLE / "prometheus.yml").read_text("utf-8"))
    assert [(EXAMPLE / path).resolve() for path in config["rule_files"]] == [ROOT / "docs/grafana/alerts.yml"]
    (job,) = config["scrape_configs"]
    assert job["static_configs"] == [{"targets": ["127.0.0.1:8000"]}]
    assert 'Route("/metrics"' in (ROOT / "examples/metrics.py").read_text("utf-8")


def test_links_and_commands_of_the_example_lead_somewhere() -> None:
    text = (EXAMPLE / "README.md").read_text("utf-8")
    for target in re.findall(r"\]\(([^)]+)\)", text):
        assert (EXAMPLE / target).resolve().exists(), target
    for path in re.findall(r"(?<![\w/])(?:docs|examples)/[\w/.-]+", text):
        assert (ROOT / path).exists(), path
    (provider,) = yaml.safe_load((EXAMPLE / "grafana/provisioning/dashboards/echo_cache.yml").read_text("utf-8"))[
        "providers"
    ]
    assert provider["options"]["path"].removeprefix("$") in text
