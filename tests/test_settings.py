"""Settings: a cache from the environment or a URL. Each variable works, all mistakes are told at once, no secret is."""

from __future__ import annotations

import asyncio
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from echo_cache import (
    Cache,
    ConfigurationError,
    CoordinationOptions,
    HTTPCacheMiddleware,
    MemoryStore,
    PolicyOptions,
    RedisStore,
    TwoLevelConfig,
    TwoLevelStore,
)
from echo_cache.events import Event
from echo_cache.settings import VARIABLES, MemoryOptions, RedisOptions, Settings, parse_duration, parse_size
from echo_cache.testing import ManualClock
from tests.store_contract import any_variant, make_entry, make_key

ROOT = Path(__file__).parent.parent
SECRET = "s3cret-s3cret-s3cret"
REDIS = "redis://localhost:1/0"


def from_env(**variables: str) -> Settings:
    """Return the settings of an environment with *variables*, by their names without the prefix."""
    return Settings.from_env({f"ECHO_CACHE_{name}": text for name, text in variables.items()})


def mistakes(**variables: str) -> list[str]:
    """Return the lines that say what is wrong with *variables*."""
    with pytest.raises(ConfigurationError) as caught:
        from_env(**variables)
    first, *lines = str(caught.value).split("\n")
    assert first == f"{len(lines)} mistake{'s' if len(lines) > 1 else ''} in the settings of the cache:"
    assert all(line.startswith("  ") for line in lines)
    assert caught.value.__cause__ is None
    return [line[2:] for line in lines]


# --- which variables there are ----------------------------------------------------------------------------------------

LEFT_OUT = {
    MemoryStore: {"clock": "code gives it"},
    RedisStore: {"server": "it is ECHO_CACHE_URL", "clock": "code gives it"},
    TwoLevelStore: dict.fromkeys(("l1", "l2"), "the URL and ECHO_CACHE_LEVELS say what they are")
    | {"config": "it has variables of its own", "clock": "code gives it"},
    Cache: dict.fromkeys(("policy", "coordination"), "it has variables of its own")
    | {"store": "it is made of the settings"}
    | dict.fromkeys(("observers", "clock", "log"), "code gives it"),
    HTTPCacheMiddleware: dict.fromkeys(("app", "skip"), "code gives it")
    | dict.fromkeys(("store", "cache", "policy", "coordination", "default_ttl", "name"), "the cache has it")
    | {"unknown": "it is for what is misspelt"},
}
PARTS = {
    "memory": MemoryOptions,
    "redis": RedisOptions,
    "two_level": TwoLevelConfig,
    "policy": PolicyOptions,
    "coordination": CoordinationOptions,
}
SET = {option for variable in VARIABLES.values() for option in variable.options}


@pytest.mark.parametrize("part", PARTS)
def test_each_field_of_the_options_has_a_variable(part: str) -> None:
    assert {(part, field.name) for field in fields(PARTS[part])} <= SET


def test_each_field_of_the_settings_has_a_variable_or_is_a_part_that_has() -> None:
    assert {field.name for field in fields(Settings)} == {name for part, name in SET if not part} | set(PARTS)


@pytest.mark.parametrize("made", LEFT_OUT, ids=lambda made: made.__name__)
def test_each_argument_has_a_variable_or_is_left_out_for_a_reason(made: type) -> None:
    arguments = set(inspect.signature(made.__init__).parameters) - {"self"}  # type: ignore[misc]
    part = {MemoryStore: "memory", RedisStore: "redis"}.get(made, "")
    covered = {name for where, name in SET if where == part}
    assert set(LEFT_OUT[made]) <= arguments
    assert arguments <= covered | set(LEFT_OUT[made])


@pytest.mark.parametrize(("options", "store"), [(MemoryOptions(), MemoryStore), (RedisOptions(), RedisStore)])
def test_the_defaults_of_stores_are_their_own(options: Any, store: type) -> None:
    parameters = inspect.signature(store.__init__).parameters  # type: ignore[misc]
    for field in fields(options):
        assert getattr(options, field.name) == parameters[field.name].default, field.name


def test_options_that_share_a_variable_have_one_default() -> None:
    for variable in VARIABLES.values():
        for part, option in variable.options:
            kind = PARTS.get(part, Settings)
            (default,) = (field.default for field in fields(kind) if field.name == option)
            assert default == variable.default, variable.name


@pytest.mark.parametrize("name", VARIABLES)
def test_the_text_of_a_default_says_the_default(name: str) -> None:
    variable = VARIABLES[name]
    if variable.default_text:
        assert variable.value(variable.default_text) == variable.default
        assert from_env(**{name: variable.default_text}) == Settings()
    else:
        assert variable.default in (None, ())


def value_of(settings: Settings, name: str) -> object:
    """Return what the variable *name* has set, and see that it is the same everywhere."""
    found = {getattr(getattr(settings, part) if part else settings, option) for part, option in VARIABLES[name].options}
    assert len(found) == 1
    return found.pop()


OTHERS: dict[str, tuple[str, object]] = {
    "URL": ("redis://h", "redis://h"),
    "LEVELS": ("1", 1),
    "NAME": ("shop", "shop"),
    "FILL_TIMEOUT": ("1m", 60.0),
    "EXCLUDE": ("/a/*, *.pdf", ("/a/*", "*.pdf")),
    "DASHBOARD_TOKEN": (SECRET, SECRET),
    "L1_MAX_BYTES": ("64MiB", 64 * 2**20),
    "L1_MAX_ENTRIES": ("10", 10),
    "L1_POLICY": ("lru", "lru"),
    "L1_MAX_PREPARED": ("7", 7),
    "MAX_VARIANTS": ("64", 64),
    "PREFIX": ("shop:a", "shop:a"),
    "TIMEOUT": ("50ms", 0.05),
    "MAX_CONNECTIONS": ("8", 8),
    "SECRET": (f"{SECRET}, other-{SECRET}", (SECRET, f"other-{SECRET}")),
    "BREAKER_FAILURES": ("5", 5),
    "PROBE_INTERVAL": ("2", 2.0),
    "STRATEGY": ("WRITE_BACK", "write_back"),
    "SYNC_MODE": ("sync", "sync"),
    "CACHE_WARMING": ("off", False),
    "L1_TTL": ("1m", 60.0),
    "L2_TTL": ("1h", 3600.0),
    "L2_SOFT_TIMEOUT": ("0", 0.0),
    "ASYNC_BUFFER": ("5", 5),
    "ASYNC_BUFFER_BYTES": ("1MB", 1_000_000),
    "DRAIN_TIMEOUT": ("1s", 1.0),
    "DEFAULT_TTL": ("none", None),
    "NEGATIVE_TTL": ("None", None),
    "HEURISTIC_FRACTION": ("0.25", 0.25),
    "HEURISTIC_MAX": ("2d", 172_800.0),
    "STALE_WHILE_REVALIDATE": ("30", 30.0),
    "STALE_IF_ERROR": ("1.5h", 5_400.0),
    "KEEP": ("0", 0.0),
    "EXPIRY_JITTER": (".1", 0.1),
    "EARLY_REFRESH": ("0.9", 0.9),
    "STORE_SET_COOKIE": ("yes", True),
    "TARGETED_FIELDS": ("CDN-Cache-Control", ("cdn-cache-control",)),
    "GENERATE_ETAG": ("False", False),
    "REQUEST_DIRECTIVES": ("ignore", "ignore"),
    "ALLOWED_HOSTS": ("a.example,B.example", ("a.example", "b.example")),
    "IGNORED_QUERY_PARAMETERS": ("utm_source, none", ("utm_source", "none")),
    "SORT_QUERY": ("1", True),
    "MAX_BODY_BYTES": ("1GiB", 2**30),
    "MAX_HEADER_BYTES": ("1000", 1000),
    "MAX_VARY_FIELDS": ("2", 2),
    "HIT_FOR_MISS": ("5s", 5.0),
    "MAX_UNSYNCED": ("100ms", 0.1),
    "UNSYNCED": ("bypass", "bypass"),
    "LEASE_TTL": ("1", 1.0),
    "LEASE_WAIT": ("0", 0.0),
    "MAX_REFRESHES": ("1", 1),
    "REFRESH_PAUSE": ("3s", 3.0),
    "REPORT_EVERY": ("0", 0.0),
}


def test_each_variable_is_tried() -> None:
    assert set(OTHERS) | {"INCLUDE"} == set(VARIABLES)


@pytest.mark.parametrize("name", OTHERS)
def test_a_variable_sets_its_option_in_all_places(name: str) -> None:
    text, value = OTHERS[name]
    settings = from_env(**{name: text})
    assert value_of(settings, name) == value
    assert value_of(settings, name) != VARIABLES[name].default
    assert from_env(**{name: ""}) == Settings()


def test_paths_to_include_have_a_freshness_if_one_is_given() -> None:
    settings = from_env(INCLUDE="/products/*=60, /static/* = 1h,/about,/a=b=5m")
    assert settings.include == {"/products/*": 60.0, "/static/*": 3600.0, "/about": None, "/a=b": 300.0}


def test_the_table_of_the_documentation_is_that_of_the_code() -> None:
    text = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `ECHO_CACHE_(\w+)` \|(?: `([^`]+)`)? \| (\S.*) \|$", text, re.MULTILINE)
    documented = {name: default for name, default, _ in rows}
    assert len(documented) == len(rows)
    assert documented == {
        **{name: variable.default_text for name, variable in VARIABLES.items()},
        **{f"{name}_FILE": "" for name, variable in VARIABLES.items() if variable.secret},
    }
    for name, _, meaning in rows:
        optional = name in VARIABLES and VARIABLES[name].optional
        assert ("or none" in meaning) == optional, name


def test_the_block_of_the_documentation_runs_without_any_variable_and_with_some() -> None:
    text = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ECHO_CACHE_")}
    for more, store in (({}, "MemoryStore"), ({"ECHO_CACHE_URL": REDIS}, "TwoLevelStore")):
        done = subprocess.run(
            [sys.executable, "-c", f"{block}\nprint(cache)"],
            cwd=ROOT,
            env={**kept, **more, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert f"<{store} " in done.stdout, done.stderr


def test_the_message_of_the_documentation_is_what_is_said() -> None:
    text = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    for line in mistakes(STRATEGY="fast", L1_TLL="5", TIMEOUT="1 sec"):
        assert f"\n  {line}\n" in text


# --- what values may look like ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("300", 300.0),
        ("300s", 300.0),
        ("5m", 300.0),
        ("1h", 3600.0),
        ("1.5h", 5400.0),
        ("2d", 172_800.0),
        ("100ms", 0.1),
        ("0.5 s", 0.5),
        ("0", 0.0),
    ],
)
def test_a_duration_is_read(text: str, expected: float) -> None:
    assert parse_duration(text) == expected


@pytest.mark.parametrize("text", ["", "s", "-1", "1 sec", "5M", "1h30m", "1e3", "inf", "nan", "٣s", "1s\n", "9" * 5000])
def test_a_wrong_duration_is_told_with_what_is_allowed(text: str) -> None:
    with pytest.raises(ConfigurationError, match="must be a duration such as 300, 300s, 5m"):
        parse_duration(text)


@given(st.integers(0, 10**9), st.sampled_from([("ms", 1000, 1), ("s", 1, 1), ("m", 1, 60), ("h", 1, 3600)]))
def test_a_duration_is_its_number_of_its_unit(number: int, unit: tuple[str, int, int]) -> None:
    name, parts, length = unit
    assert parse_duration(f"{number}{name}") == number * length / parts


@given(st.text(max_size=30) | st.from_regex(r"\A[0-9.]{1,20}[a-zA-Z]{0,3}\Z"))
@example("1" * 400)
def test_any_text_is_a_duration_and_a_size_or_a_configuration_error(text: str) -> None:
    for parse in (parse_duration, parse_size):
        try:
            value = parse(text)
        except ConfigurationError:
            continue
        assert 0 <= value < 10**30


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("65536", 65_536),
        ("512B", 512),
        ("64KB", 64_000),
        ("64kib", 65_536),
        ("64MB", 64_000_000),
        ("128 MiB", 128 * 2**20),
        ("64M", 64_000_000),
        ("64Mi", 64 * 2**20),
        ("1.5GiB", 3 * 2**29),
        ("1TiB", 2**40),
        ("0.0001KB", 0),
    ],
)
def test_a_size_is_read(text: str, expected: int) -> None:
    assert parse_size(text) == expected


@pytest.mark.parametrize("text", ["", "B", "iB", "-1", "1PiB", "64 MiBs", "1e6", "0x10", "1_000", "٣", "1\n"])
def test_a_wrong_size_is_told_with_what_is_allowed(text: str) -> None:
    with pytest.raises(ConfigurationError, match="must be a size such as 65536, 64KiB, 128MiB"):
        parse_size(text)


@given(st.integers(0, 10**12), st.sampled_from(["", "KiB", "MiB", "GiB", "TiB"]), st.booleans())
def test_a_size_is_its_number_of_its_unit(number: int, unit: str, lower: bool) -> None:
    text = f"{number}{unit}"
    power = ["", "KiB", "MiB", "GiB", "TiB"].index(unit)
    assert parse_size(text.lower() if lower else text) == number * 1024**power


@pytest.mark.parametrize("text", ["true", "1", "yes", "on", "TRUE", "On", " yes "])
def test_yes_is_written_in_these_ways(text: str) -> None:
    assert from_env(SORT_QUERY=text).policy.sort_query


@pytest.mark.parametrize("text", ["false", "0", "no", "off", "False", "OFF"])
def test_no_is_written_in_these_ways(text: str) -> None:
    assert not from_env(GENERATE_ETAG=text).policy.generate_etag


# --- what is wrong ----------------------------------------------------------------------------------------------------

NO_REDIS_URL = "the URL of a RedisStore begins with"


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        pytest.param("TIMEOUT", "5x", "must be a duration such as", id="duration"),
        pytest.param("TIMEOUT", "0", "timeout must be longer than 0 s", id="duration-zero"),
        pytest.param("DEFAULT_TTL", "never", "must be none or a duration", id="duration-optional"),
        pytest.param("KEEP", "none", "must be a duration", id="not-optional"),
        pytest.param("L1_MAX_BYTES", "big", "must be a size", id="size"),
        pytest.param("L1_MAX_BYTES", "0", "max_bytes must be a whole number >= 1", id="size-zero"),
        pytest.param("L1_MAX_ENTRIES", "1.5", "must be none or a whole number", id="whole"),
        pytest.param("MAX_VARIANTS", "0", "max_variants must be a whole number", id="shared-by-two-parts"),
        pytest.param("MAX_VARIANTS", "65", "max_variants must be a whole number in 1..64", id="wrong-for-one-part"),
        pytest.param("L1_POLICY", "keep", "policy must be one of 'lfu', 'lru'", id="eviction"),
        pytest.param("STRATEGY", "l1_ttl", "strategy must be one of 'cache_aside'", id="strategy"),
        pytest.param("SYNC_MODE", "both", "sync_mode must be one of 'sync', 'async'", id="sync-mode"),
        pytest.param("CACHE_WARMING", "maybe", "must be true or false", id="boolean"),
        pytest.param("HEURISTIC_FRACTION", "half", "must be a number such as 0.1", id="ratio"),
        pytest.param("HEURISTIC_FRACTION", "2", "heuristic_fraction must be in 0..1", id="ratio-too-large"),
        pytest.param("EXPIRY_JITTER", "0.6", "expiry_jitter must be a number in 0..0.5", id="jitter"),
        pytest.param("EARLY_REFRESH", "1", "early_refresh must be a number between 0 and 1", id="early"),
        pytest.param("TARGETED_FIELDS", "a b", "targeted_fields: 'a b' is not a valid name here", id="list-of-names"),
        pytest.param("ALLOWED_HOSTS", "a,,b", "must be names with commas between", id="list-empty-place"),
        pytest.param("ALLOWED_HOSTS", "*", "must be names with commas between", id="list-star"),
        pytest.param("ALLOWED_HOSTS", "None", "must be names with commas between", id="list-none"),
        pytest.param("MAX_UNSYNCED", "50ms", "max_unsynced must be at least 0.1 s", id="coordination"),
        pytest.param("UNSYNCED", "hope", "unsynced must be one of 'cap', 'bypass'", id="unsynced"),
        pytest.param("PREFIX", "a b", "prefix must be words of", id="prefix"),
        pytest.param("PREFIX", "redis://:s3cret@h", "looks like a URL", id="url-in-the-wrong-place"),
        pytest.param("LEVELS", "3", "must be 1 or 2", id="levels"),
        pytest.param("LEVELS", "2", "levels must be 1 with memory://", id="levels-without-redis"),
        pytest.param("NAME", "caché", "name must be printable ASCII", id="name"),
        pytest.param("INCLUDE", "products", "path patterns", id="include-pattern"),
        pytest.param("INCLUDE", "/a=never", "must be a duration", id="include-ttl"),
        pytest.param("INCLUDE", "/a=1,/a=2", "'/a' is there twice", id="include-twice"),
        pytest.param("EXCLUDE", "/a,", "path patterns with commas between, each beginning with / or *", id="exclude"),
        pytest.param("SECRET", "s3cret", "secret must have 16 bytes or more", id="secret-short"),
        pytest.param("SECRET", f"{SECRET},", "must be secrets with commas between", id="secret-empty-place"),
        pytest.param("DASHBOARD_TOKEN", "s3cret", "must have 16 characters or more", id="token-short"),
        pytest.param("DASHBOARD_TOKEN", "s3cret " * 4, "visible ASCII", id="token-blanks"),
        pytest.param("URL", "http://:s3cret@h", f"{NO_REDIS_URL}", id="url-scheme"),
        pytest.param("URL", "memory://s3cret", "for memory alone it is memory://", id="url-memory-host"),
        pytest.param("URL", "redis://:s3cret@h/x", "a redis URL has the form", id="url-database"),
        pytest.param("URL", "redis://:s3cret@h\nx", "without blanks", id="url-line-end"),
        pytest.param("URL", "redis://:a?timeout=s3cret@h", "has the form", id="url-password-like-a-setting"),
        pytest.param("URL", "redis://:a#b?timeout=s3cret@h", "in a password, %23", id="url-password-with-a-fragment"),
        pytest.param("URL", f"redis://h?secret={SECRET}", "not 'secret'", id="url-with-a-secret"),
        *(pytest.param(name, "  ", "", id=f"blank-{name}") for name in VARIABLES),
    ],
)
def test_a_wrong_value_is_told_by_its_variable(name: str, text: str, said: str) -> None:
    (line,) = mistakes(**{name: text})
    assert line.startswith(f"ECHO_CACHE_{name}: ")
    assert said in line
    assert "s3cret" not in line


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("L1_TLL", "did you mean ECHO_CACHE_L1_TTL?"),
        ("REDIS_URL", "did you mean ECHO_CACHE_URL?"),
        ("l1_ttl", "did you mean ECHO_CACHE_L1_TTL?"),
        ("SECRETS", "did you mean ECHO_CACHE_SECRET?"),
        ("SECRETFILE", "did you mean ECHO_CACHE_SECRET_FILE?"),
        ("XQZW", "unknown, and like no name that is known"),
        ("PREFIX_FILE", "unknown"),
        ("_FILE", "unknown"),
        ("", "unknown"),
    ],
)
def test_an_unknown_name_is_a_mistake_with_the_nearest_known_one_and_without_its_value(name: str, near: str) -> None:
    (line,) = mistakes(**{name: SECRET})
    assert line.startswith(f"ECHO_CACHE_{name}: unknown")
    assert near in line
    assert SECRET not in line


def test_an_unknown_name_that_is_empty_is_not_set() -> None:
    assert from_env(NONSENSE="") == Settings()


def test_an_unknown_name_takes_one_line() -> None:
    (line,) = mistakes(**{"A\nB": "x"})
    assert r"'ECHO_CACHE_A\nB'" in line


@pytest.mark.parametrize(
    "name",
    [
        *("SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_HTTP", "PORT", "PORT_6379_TCP", "PORT_6379_TCP_PROTO"),
        *("TARGET", "TOKEN", "DEBUG"),
        *("PORT_6379_TCP_PORT", "PORT_6379_TCP_ADDR", "REDIS_SERVICE_HOST", "REDIS_PORT_6379_UDP_ADDR"),
    ],
)
def test_what_kubernetes_says_of_a_service_and_the_command_line_reads_is_left_alone(name: str) -> None:
    assert from_env(**{name: "tcp://10.0.0.1:6379"}) == Settings()
    assert name not in VARIABLES


def test_all_mistakes_are_told_at_once() -> None:
    lines = mistakes(
        URL="redis://h?l1_policy=best&timeout=5x",
        STRATEGY="fast",
        SYNC_MODE="both",
        KEEP="-1",
        HEURISTIC_FRACTION="2",
        EXPIRY_JITTER="2",
        LEASE_TTL="0",
        MAX_CONNECTIONS="0",
        SECRET="short",
        NAME="é",
        NONSENSE="x",
    )
    assert sorted(line.partition(": ")[0] for line in lines) == [
        *("ECHO_CACHE_EXPIRY_JITTER", "ECHO_CACHE_HEURISTIC_FRACTION", "ECHO_CACHE_KEEP", "ECHO_CACHE_LEASE_TTL"),
        *("ECHO_CACHE_MAX_CONNECTIONS", "ECHO_CACHE_NAME", "ECHO_CACHE_NONSENSE", "ECHO_CACHE_SECRET"),
        *("ECHO_CACHE_STRATEGY", "ECHO_CACHE_SYNC_MODE", "l1_policy in ECHO_CACHE_URL", "timeout in ECHO_CACHE_URL"),
    ]


def test_values_that_do_not_go_together_are_told_in_one_line() -> None:
    (line,) = mistakes(L1_TTL="1h", L2_TTL="2m")
    assert line.startswith("ECHO_CACHE_L1_TTL, ECHO_CACHE_L2_TTL: l1_ttl (3600.0 s) must not be longer than l2_ttl")


def test_a_value_that_does_not_go_with_a_default_is_told_by_its_variable() -> None:
    (line,) = mistakes(L2_TTL="2m")
    assert line.startswith("ECHO_CACHE_L2_TTL: l1_ttl (300.0 s) must not be longer than l2_ttl (120.0 s)")
    assert from_env(L2_TTL="2m", L1_TTL="1m").two_level == TwoLevelConfig(l1_ttl=60, l2_ttl=120)


def test_a_value_that_is_the_name_of_an_option_puts_no_blame_on_that() -> None:
    (line,) = mistakes(STRATEGY='it\'s "l1_ttl", l2_ttl', L1_TTL="1m", L2_TTL="2m")
    assert line.startswith("ECHO_CACHE_STRATEGY: ")


def test_levels_are_not_blamed_for_a_wrong_url() -> None:
    (line,) = mistakes(URL="http://h", LEVELS="2")
    assert line.startswith("ECHO_CACHE_URL: ")


def test_a_long_value_is_shown_in_part() -> None:
    (line,) = mistakes(TIMEOUT="x" * 10_000)
    assert len(line) < 300


def test_another_prefix_reads_other_names_and_names_them() -> None:
    environ = {"SHOP_L1_TTL": "1m", "ECHO_CACHE_L1_TTL": "nonsense"}
    assert Settings.from_env(environ, prefix="SHOP_").two_level.l1_ttl == 60
    with pytest.raises(ConfigurationError, match="SHOP_KEPT: unknown; did you mean SHOP_KEEP"):
        Settings.from_env({"SHOP_KEPT": "1"}, prefix="SHOP_")


def test_an_empty_prefix_would_mean_everything() -> None:
    with pytest.raises(ConfigurationError, match="prefix must not be empty"):
        Settings.from_env({"PATH": "/bin"}, prefix="")


def test_the_environment_of_the_process_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ECHO_CACHE_L1_TTL", "7s")
    assert Settings.from_env().two_level.l1_ttl == 7


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"levels": 2}, "levels must be 1 with memory://"),
        ({"levels": 0, "url": REDIS}, "levels must be 1 or 2, not 0"),
        ({"dashboard_token": "short"}, "16 characters or more"),
        ({"url": "http://h"}, NO_REDIS_URL),
        ({"name": ""}, "name must be printable ASCII"),
        ({"memory": MemoryOptions(policy="best")}, "policy must be one of"),
        ({"url": REDIS, "redis": RedisOptions(timeout=0)}, "timeout must be longer than 0 s"),
    ],
)
def test_settings_that_cannot_work_cannot_be_made(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(said)):
        Settings(**arguments)


# --- secrets ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def secret_file(tmp_path: Path) -> Path:
    return tmp_path / "secret"


@pytest.mark.parametrize(
    ("name", "content", "value"),
    [
        pytest.param("SECRET", f"{SECRET}\n", (SECRET,), id="secret"),
        pytest.param("SECRET", f"\n{SECRET}\r\n  b{SECRET}  \n\n", (SECRET, f"b{SECRET}"), id="secrets-on-lines"),
        pytest.param("SECRET", f"{SECRET}, b{SECRET}", (SECRET, f"b{SECRET}"), id="secrets-with-commas"),
        pytest.param("DASHBOARD_TOKEN", f"{SECRET}\n", SECRET, id="token"),
        pytest.param("URL", "redis://:s3cret@h/1\n", "redis://:s3cret@h/1", id="url"),
    ],
)
def test_a_secret_may_be_in_a_file(secret_file: Path, name: str, content: str, value: object) -> None:
    secret_file.write_bytes(content.encode())
    assert value_of(from_env(**{f"{name}_FILE": str(secret_file)}), name) == value


@pytest.mark.parametrize("name", ["SECRET", "DASHBOARD_TOKEN", "URL"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        pytest.param(None, "FileNotFoundError", id="missing"),
        pytest.param(b"", "must have a line", id="empty"),
        pytest.param(b" \n\n", "must have a line", id="blank"),
        pytest.param(b"\xff" * 20, "UnicodeDecodeError", id="binary"),
        pytest.param(b"s3cret" * 20_000, "at most 65536 bytes", id="endless"),
        pytest.param(b"s3cret\nshort", "must", id="lines-that-are-wrong"),
    ],
)
def test_a_file_without_a_secret_is_a_mistake(secret_file: Path, name: str, content: bytes | None, said: str) -> None:
    if content is not None:
        secret_file.write_bytes(content)
    (line,) = mistakes(**{f"{name}_FILE": str(secret_file)})
    assert line.startswith(f"ECHO_CACHE_{name}_FILE: ")
    assert said in line
    assert "s3cret" not in line


def test_a_secret_in_place_of_the_name_of_its_file_is_not_shown() -> None:
    (line,) = mistakes(SECRET_FILE=SECRET)
    assert SECRET not in line


def test_what_is_given_twice_is_a_mistake(secret_file: Path) -> None:
    secret_file.write_text(SECRET)
    lines = mistakes(
        URL="redis://h?timeout=1&keep=1&keep=2",
        TIMEOUT="1s",
        SECRET=SECRET,
        SECRET_FILE=str(secret_file),
    )
    assert sorted(lines) == [
        "ECHO_CACHE_SECRET_FILE: is given twice, also by ECHO_CACHE_SECRET",
        "keep in ECHO_CACHE_URL: is given twice, also by keep in ECHO_CACHE_URL",
        "timeout in ECHO_CACHE_URL: is given twice, also by ECHO_CACHE_TIMEOUT",
    ]


def test_no_secret_is_in_a_repr() -> None:
    settings = from_env(
        URL="rediss://user:s3cret@h:1/2?password=s3cret",
        SECRET=SECRET,
        DASHBOARD_TOKEN=SECRET,
    )
    assert repr(settings) == "<Settings 'echo_cache' for memory before rediss://h:1/2 [signed, dashboard]>"
    assert "s3cret" not in f"{settings.redis!r}{settings.cache()!r}{settings.middleware()!r}"


@pytest.mark.parametrize(
    ("settings", "shown"),
    [
        (Settings(), "<Settings 'echo_cache' for memory:// [not signed, no dashboard]>"),
        (Settings(url=REDIS, levels=1), f"<Settings 'echo_cache' for {REDIS} [not signed, no dashboard]>"),
    ],
)
def test_a_repr_says_where_entries_are(settings: Settings, shown: str) -> None:
    assert repr(settings) == shown


# --- what is made of them ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "kind"),
    [
        pytest.param({}, MemoryStore, id="nothing"),
        pytest.param({"URL": "memory://"}, MemoryStore, id="memory"),
        pytest.param({"URL": "memory://", "LEVELS": "1"}, MemoryStore, id="memory-one-level"),
        pytest.param({"URL": REDIS}, TwoLevelStore, id="redis"),
        pytest.param({"URL": REDIS, "LEVELS": "2"}, TwoLevelStore, id="redis-two-levels"),
        pytest.param({"URL": REDIS, "LEVELS": "1"}, RedisStore, id="redis-one-level"),
        pytest.param({"URL": f"{REDIS}?levels=1"}, RedisStore, id="redis-one-level-in-the-url"),
        pytest.param({"URL": "rediss://h"}, TwoLevelStore, id="tls"),
        pytest.param({"URL": "unix:///run/redis.sock?db=1"}, TwoLevelStore, id="unix"),
        pytest.param({"URL": "redis+sentinel://a,b/main"}, TwoLevelStore, id="sentinel"),
        pytest.param({"URL": "redis+cluster://a,b"}, TwoLevelStore, id="cluster"),
    ],
)
def test_the_url_and_the_levels_say_which_store_it_is(variables: Mapping[str, str], kind: type) -> None:
    settings = from_env(**variables)
    store = settings.store()
    assert type(store) is kind
    assert settings.store() is not store
    assert type(settings.cache().store) is kind


def test_a_url_may_have_settings_beside_what_redis_knows() -> None:
    settings = Settings.from_url("redis://h/1?prefix=shop&client_name=a%20b&l1_max_bytes=64MiB&default_ttl=none&db=2")
    assert settings == Settings(
        url="redis://h/1?client_name=a%20b&db=2",
        redis=RedisOptions(prefix="shop"),
        memory=MemoryOptions(max_bytes=64 * 2**20),
        policy=PolicyOptions(default_ttl=None),
    )


def test_a_memory_url_has_settings_of_memory_by_their_short_names() -> None:
    settings = Settings.from_url("memory://?max_bytes=64MiB&policy=lru&l1_max_entries=5&include=/a/*%3D60%2C/b")
    assert settings == Settings(
        memory=MemoryOptions(max_bytes=64 * 2**20, policy="lru", max_entries=5), include={"/a/*": 60.0, "/b": None}
    )


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("memory://?size=5", "'size' in the URL: is no setting"),
        (f"memory://?secret={SECRET}", "'secret' in the URL: is no setting, or one that a URL cannot have"),
        ("memory://?max_bytes=x", "max_bytes in the URL: must be a size"),
        ("memory://?max_bytes=0", "max_bytes in the URL: max_bytes must be a whole number >= 1"),
        ("redis://h?timeout=0", "timeout in the URL: timeout must be longer than 0 s"),
        ("redis://h?Timeout=1", "not 'Timeout'"),
        ("redis://h?name=a#b", "the URL: must be one URL, without blanks, control characters and #"),
        ("redis://h?protocol=3", "the URL: the URL of a RedisStore may have the options"),
        ("", "the URL: the URL of a RedisStore begins with"),
    ],
)
def test_a_wrong_url_is_told_by_its_part(url: str, said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Settings.from_url(url)
    assert said in str(caught.value)
    assert SECRET not in str(caught.value)


def test_a_cache_in_memory_does_not_load_the_client_of_redis() -> None:
    program = (
        "import sys; from echo_cache.settings import Settings; "
        "Settings.from_env({'ECHO_CACHE_L1_TTL': '1m'}).cache(); print('redis' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == "False\n", done.stderr


def test_options_reach_the_parts() -> None:
    settings = from_env(
        URL=REDIS,
        L1_MAX_BYTES="1MiB",
        TIMEOUT="50ms",
        PREFIX="shop",
        STRATEGY="write_back",
        NAME="n",
        KEEP="5",
        LEASE_WAIT="1",
    )
    cache = settings.cache()
    store = cache.store
    assert isinstance(store, TwoLevelStore)
    assert (store.l1.max_bytes, store.l2.timeout, store.l2.prefix) == (2**20, 0.05, "shop")  # type: ignore[attr-defined]
    assert store.config.strategy == "write_back"
    assert (cache.name, cache.options.keep, cache.coordination) == ("n", 5, CoordinationOptions(lease_wait=1))


async def test_a_clock_and_observers_are_handed_on() -> None:
    clock = ManualClock()
    events: list[Event] = []
    cache = Settings().cache([events.append], clock)
    assert cache.clock is clock
    await cache.invalidate(tags=["a"])
    assert events


@pytest.mark.parametrize("levels", ["0", "1", "2"])
async def test_each_store_has_the_clock(redis_url: str, levels: str) -> None:
    settings = Settings() if levels == "0" else from_env(URL=redis_url, LEVELS=levels, TIMEOUT="5s")
    clock = ManualClock()
    key = make_key()
    store = settings.store(clock)
    await store.set(key, make_entry(now=clock.time(), life=60))
    # By the machine's clock it is long gone.
    assert await store.get(key, any_variant)
    assert store.get_nowait(key) is not None or levels == "1"
    clock.advance(61)
    assert await store.get(key, any_variant) is None
    await store.aclose()


async def test_requests_stop_waiting_after_the_time_that_is_set() -> None:
    calls = 0
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def page(request: Request) -> PlainTextResponse:
        nonlocal calls
        calls += 1
        if calls == 1:
            begun.set()
            await go_on.wait()
        return PlainTextResponse("page")

    app = Starlette(routes=[Route("/", page)])
    app.add_middleware(HTTPCacheMiddleware, **from_env(FILL_TIMEOUT="1ms").middleware())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop.example") as client:
        first = asyncio.create_task(client.get("/"))
        await begun.wait()
        async with asyncio.timeout(20):  # the default is 30 s
            assert (await client.get("/")).text == "page"
        assert not first.done()
        go_on.set()
        assert (await first).text == "page"


def test_the_arguments_of_the_middleware_have_a_new_cache_or_the_one_that_is_given() -> None:
    settings = from_env(INCLUDE="/a/*", EXCLUDE="/a/b")
    cache = settings.cache()
    assert settings.middleware(cache) == {"cache": cache, "include": {"/a/*": None}, "exclude": ("/a/b",)}
    assert settings.middleware()["cache"] is not cache


async def test_an_app_is_cached_in_redis_as_the_environment_says(redis_url: str) -> None:
    calls = 0

    async def page(request: Request) -> PlainTextResponse:
        nonlocal calls
        calls += 1
        return PlainTextResponse(f"call {calls}")

    settings = from_env(URL=f"{redis_url}?timeout=5s", SECRET=SECRET, NAME="shop", EXCLUDE="/live", DEFAULT_TTL="1m")
    said = []
    # Two workers: what the first stores, the second finds in Redis.
    for _ in range(2):
        app = Starlette(routes=[Route("/", page), Route("/live", page)])
        cache = settings.cache()
        app.add_middleware(HTTPCacheMiddleware, **settings.middleware(cache))
        transport = httpx.ASGITransport(app)
        async with cache, httpx.AsyncClient(transport=transport, base_url="http://shop.example") as client:
            for path in ("/", "/", "/live"):
                response = await client.get(path)
                said.append((path, response.text, response.headers.get("cache-status", "")))
    assert [(path, body) for path, body, _ in said] == [
        *(("/", "call 1"), ("/", "call 1"), ("/live", "call 2")),
        *(("/", "call 1"), ("/", "call 1"), ("/live", "call 3")),
    ]
    first, second, live, third, *_ = [status for *_, status in said]
    assert first == "shop; fwd=uri-miss; ttl=60; stored"
    assert second.startswith("shop; hit; ttl=")
    assert live == "shop; fwd=bypass"
    assert third.startswith("shop; hit; ttl=")
