"""
Write-behind: a write is acknowledged at once and saved to the database later.

    writer   WriteBehind: what CacheAside asks: register, write, look, close
    model    Write, Saver, Mode, Stats; a write as bytes
    lanes    who is saved when: order, retries, coalescing
    durable  the queue in Redis, and the one process that drains it
    memory   the queue in memory
    scripts  what must be one step in Redis
"""

from echo_cache.aside.behind.model import DeadLetter, Write, WriteBehindMode, WriteBehindStats
from echo_cache.aside.behind.writer import NONE_WAITS, WriteBehind

__all__ = ["NONE_WAITS", "DeadLetter", "Write", "WriteBehind", "WriteBehindMode", "WriteBehindStats"]
