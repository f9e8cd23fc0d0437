"""
Ready uses of the cache, for what chat and API backends keep for a short time.

    intents   IntentCache: what a classifier makes of a message
    sessions  SessionCache: the state of a session, which lives on while it is read
    ttls      how long each kind of data is kept
"""

from echo_cache.recipes.intents import IntentCache
from echo_cache.recipes.sessions import SessionCache, SessionStats
from echo_cache.recipes.ttls import CHECKPOINT_TTL, INTENT_TTL, RATE_LIMIT_WINDOW, SESSION_TTL

__all__ = [
    "CHECKPOINT_TTL",
    "INTENT_TTL",
    "RATE_LIMIT_WINDOW",
    "SESSION_TTL",
    "IntentCache",
    "SessionCache",
    "SessionStats",
]
