"""Where entries live: memory (L1), Redis (L2), and the two together."""

from echo_cache.stores.base import Held, Match, Store, StoreStats
from echo_cache.stores.memory import MemoryStore
from echo_cache.stores.redis import RedisStore
from echo_cache.stores.twolevel import CacheStats, SyncProgress, SyncReport, TwoLevelStore

__all__ = [
    "CacheStats",
    "Held",
    "Match",
    "MemoryStore",
    "RedisStore",
    "Store",
    "StoreStats",
    "SyncProgress",
    "SyncReport",
    "TwoLevelStore",
]
