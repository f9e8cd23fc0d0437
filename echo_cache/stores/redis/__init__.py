"""
Entries in Redis (L2).

    store        entries under names: what is read, written and believed
    shared       the server behind it, for the store and for whoever coordinates workers: links, scripts, errors
    link         operations on the way: batches, one deadline for each, the breaker
    breaker      whether a server is asked at all
    clock        how far this machine's clock is from the server's
    scripts      what must be one step, in Lua
    servers      what a URL or a ready client leads to, through one narrow Client
    urls         what a URL says
    connections  the settings of every connection
    pool         the open connections to a server
    sentinel     the server that sentinels name
    cluster      which server of a cluster has a key
"""

from echo_cache.stores.redis.store import RedisStore

__all__ = ["RedisStore"]
