"""The public names, pinned: adding one is a decision, removing one breaks somebody."""

from __future__ import annotations

from importlib.metadata import entry_points

import echo_cache
import echo_cache.aside
import echo_cache.fastapi
import echo_cache.recipes
import echo_cache.settings


def test_the_public_names_are_these() -> None:
    assert set(echo_cache.__all__) == {
        *("HTTPCacheMiddleware", "Cache", "CacheCounters", "InvalidationResult", "cached", "never_cached"),
        *("MemoryStore", "RedisStore", "TwoLevelStore", "Store", "StoreStats", "CacheStats"),
        *("SyncProgress", "SyncReport", "CoordinationOptions", "UnsyncedMode", "WarmReport"),
        *("CacheStrategy", "PolicyOptions", "RequestDirectiveMode", "RouteOptions", "SyncMode", "TwoLevelConfig"),
        *("CacheKey", "Entry", "Fwd", "Refusal", "Request", "StoredResponse"),
        *("EchoCacheError", "ConfigurationError", "CodecError", "StoreError", "StoreTimeout", "NotPropagated"),
    }


def test_each_public_name_is_there_and_documented() -> None:
    for name in echo_cache.__all__:
        value = getattr(echo_cache, name)
        assert name == "CacheKey" or value.__doc__, name


def test_the_fastapi_names_are_these() -> None:
    assert set(echo_cache.fastapi.__all__) == {"CacheDep", "Cached", "get_cache"}


def test_the_names_of_values_and_of_recipes_are_these() -> None:
    assert set(echo_cache.aside.__all__) == {
        *("CacheAside", "AsideStats", "CachedFunction", "JSON", "MSGPACK", "Serializer", "typed"),
        *("DeadLetter", "Write", "WriteBehindMode", "WriteBehindStats"),
    }
    assert set(echo_cache.recipes.__all__) == {
        *("IntentCache", "SessionCache", "SessionStats"),
        *("CHECKPOINT_TTL", "INTENT_TTL", "SESSION_TTL", "RATE_LIMIT_WINDOW"),
    }


def test_the_names_of_settings_are_these() -> None:
    assert set(echo_cache.settings.__all__) == {
        *("Settings", "MemoryOptions", "RedisOptions", "VARIABLES", "Variable", "parse_duration", "parse_size"),
    }


def test_pytest_finds_the_plugin() -> None:
    (found,) = [entry for entry in entry_points(group="pytest11") if entry.name == "echo_cache"]
    assert found.value == "echo_cache.pytest_plugin"
