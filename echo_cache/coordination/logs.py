"""
Which log belongs to a store. The one rule: caches of one process that share a store share its log.

A store that all workers share offers its `server`, and they share a log there. Any other store has a log in memory.
"""

from __future__ import annotations

from typing import Any, cast
from weakref import WeakKeyDictionary, WeakValueDictionary

from echo_cache.coordination.clock import Clock, SystemClock
from echo_cache.coordination.log import LocalLog, Log
from echo_cache.coordination.server import Server
from echo_cache.coordination.stream import SharedLog

__all__ = ["log_of", "server_of"]

# Naughty but better than a log on each store: a store knows nothing of invalidation, and may be anybody's. A log in
# memory lives as long as its store does, since its marks speak of what is in there. A shared one can be read again.
_local: WeakKeyDictionary[Any, LocalLog] = WeakKeyDictionary()
_shared: WeakValueDictionary[int, SharedLog] = WeakValueDictionary()


def server_of(store: object) -> Server | None:
    """Return the server that all workers share who use *store*; None when there is none."""
    return cast(Server | None, getattr(store, "server", None))


def log_of(store: object, clock: Clock) -> Log:
    """Return the log of *store*; *clock* orders one in memory that is made now."""
    server = server_of(store)
    if server is None:
        try:
            local = _local.get(store)
            if local is None:
                local = _local[store] = LocalLog(clock)
        except TypeError:
            local = LocalLog(clock)  # a store that cannot be a key, and so not be shared either
        return local
    # The log refers to its server, so the identity is not another's while it is here.
    shared = _shared.get(id(server))
    if shared is None:
        # What was heard when is measured by the machine's clock, whatever clock the cache has: the log is real.
        shared = _shared[id(server)] = SharedLog(server, SystemClock())
    return shared
