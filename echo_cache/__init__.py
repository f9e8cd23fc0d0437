"""
echo_cache: an HTTP response cache inside ASGI apps.

    app.add_middleware(HTTPCacheMiddleware, store=TwoLevelStore(MemoryStore(), RedisStore("redis://localhost")))
"""

from echo_cache.asgi import HTTPCacheMiddleware
from echo_cache.cache import Cache, CacheCounters, InvalidationResult, WarmReport
from echo_cache.errors import CodecError, ConfigurationError, EchoCacheError, NotPropagated, StoreError, StoreTimeout
from echo_cache.model import CacheKey, Entry, Fwd, Refusal, Request, StoredResponse
from echo_cache.options import (
    CacheStrategy,
    CoordinationOptions,
    PolicyOptions,
    RequestDirectiveMode,
    RouteOptions,
    SyncMode,
    TwoLevelConfig,
    UnsyncedMode,
)
from echo_cache.routes import cached, never_cached
from echo_cache.stores import (
    CacheStats,
    MemoryStore,
    RedisStore,
    Store,
    StoreStats,
    SyncProgress,
    SyncReport,
    TwoLevelStore,
)

__all__ = [
    "Cache",
    "CacheCounters",
    "CacheKey",
    "CacheStats",
    "CacheStrategy",
    "CodecError",
    "ConfigurationError",
    "CoordinationOptions",
    "EchoCacheError",
    "Entry",
    "Fwd",
    "HTTPCacheMiddleware",
    "InvalidationResult",
    "MemoryStore",
    "NotPropagated",
    "PolicyOptions",
    "RedisStore",
    "Refusal",
    "Request",
    "RequestDirectiveMode",
    "RouteOptions",
    "Store",
    "StoreError",
    "StoreStats",
    "StoreTimeout",
    "StoredResponse",
    "SyncMode",
    "SyncProgress",
    "SyncReport",
    "TwoLevelConfig",
    "TwoLevelStore",
    "UnsyncedMode",
    "WarmReport",
    "cached",
    "never_cached",
]

__version__ = "0.1.0"
