"""
How long each kind of data is kept, in seconds. The one rule: as long as it may be out of date without harm.

They are the defaults of the recipes; each takes another as its `ttl`.
"""

from __future__ import annotations

from typing import Final

__all__ = ["CHECKPOINT_TTL", "INTENT_TTL", "RATE_LIMIT_WINDOW", "SESSION_TTL"]

CHECKPOINT_TTL: Final = 3600
"""The state of a conversation or a graph, which the database has as well: one hour."""

INTENT_TTL: Final = 300
"""What a classifier made of a message: five minutes."""

SESSION_TTL: Final = 1800
"""A session that nobody uses: half an hour after it was used last."""

RATE_LIMIT_WINDOW: Final = 60
"""The window in which requests are counted for a rate limit: one minute."""
