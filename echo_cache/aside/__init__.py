"""
Values with a database behind: the cache-aside face of the engine.

    cache_aside  CacheAside: get, refresh, invalidate, write through, write behind
    behind       writes that are acknowledged at once and saved later
    serializers  how values become bytes and values again
    keys         keys made of a function's arguments
"""

from echo_cache.aside.behind import DeadLetter, Write, WriteBehindMode, WriteBehindStats
from echo_cache.aside.cache_aside import AsideStats, CacheAside, CachedFunction
from echo_cache.aside.serializers import JSON, MSGPACK, Serializer, typed

__all__ = [
    "JSON",
    "MSGPACK",
    "AsideStats",
    "CacheAside",
    "CachedFunction",
    "DeadLetter",
    "Serializer",
    "Write",
    "WriteBehindMode",
    "WriteBehindStats",
    "typed",
]
