"""
Memory before Redis, as one store.

    store        TwoLevelStore: what each operation does at each level, by strategy
    order        the order of what happens to one key
    life         how long each level calls an entry fresh, and which of two entries is better
    promotion    the queue from L2 to L1; the one from L1 to L2 is echo_cache/stores/writeback.py
    management   copying one level to the other, and what L1 must be able to do
    reports      the statistics, and what copying has done
"""

from echo_cache.stores.twolevel.management import MemoryLevel
from echo_cache.stores.twolevel.reports import CacheStats, SyncProgress, SyncReport
from echo_cache.stores.twolevel.store import TwoLevelStore

__all__ = ["CacheStats", "MemoryLevel", "SyncProgress", "SyncReport", "TwoLevelStore"]
