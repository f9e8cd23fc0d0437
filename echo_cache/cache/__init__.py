"""
The engine: drives policy against store and coordination.

    engine        Cache: look up, store, invalidate, manage
    ready         stored responses as the hit path sends them
    looks         looks below memory that requests share
    invalidating  what a call of `invalidate` names
    warming       filling before anybody asks
    threads       the same for threads without an event loop
    remembered    what is remembered of keys for a while
    counters      what was done, in numbers
"""

from echo_cache.cache.counters import CacheCounters, RouteCounters
from echo_cache.cache.engine import Cache
from echo_cache.cache.invalidating import InvalidationResult
from echo_cache.cache.looks import UNANSWERED, Found, Lane
from echo_cache.cache.ready import Ready
from echo_cache.cache.warming import WarmReport

__all__ = [
    "UNANSWERED",
    "Cache",
    "CacheCounters",
    "Found",
    "InvalidationResult",
    "Lane",
    "Ready",
    "RouteCounters",
    "WarmReport",
]
