"""Stored responses as the hit path sends them: kept beside the entry in memory, chosen by one look-up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from echo_cache import policy
from echo_cache.model import Entry, Headers, Vary
from echo_cache.policy.answers import answered_headers
from echo_cache.stores.base import Held
from echo_cache.tallies import Tally

__all__ = ["Ready", "Variants"]

NEVER: Final = float("-inf")

# How many spellings of the fields that select are remembered for one key, and how long one may be: browsers send a
# handful. Clients choose what they send, so both are bounded.
_MAX_SPELLINGS: Final = 16
_MAX_SPELLING_BYTES: Final = 128


class Ready:
    """
    A stored response as the hit path sends it: its fields are made anew each second.

    until: when it has to be looked at again. fresh_until is NEVER for what only the general path may answer. checked:
    the version of the invalidation log that it stood at. tally: where its hits are counted; hits: those that are not
    yet noted for its key.
    """

    __slots__ = (
        "_name",
        "anonymous_only",
        "body",
        "checked",
        "entry",
        "fresh_until",
        "headers",
        "hits",
        "status",
        "tally",
        "until",
    )

    def __init__(self, entry: Entry, name: bytes, tally: Tally) -> None:
        self.entry = entry
        self._name = name
        self.status = entry.response.status
        self.body = entry.response.body
        self.fresh_until = NEVER if entry.always_validate else entry.fresh_until
        self.anonymous_only = entry.anonymous_only
        self.checked = 0
        self.tally = tally
        self.hits = 0
        self.until = NEVER
        self.headers: list[tuple[bytes, bytes]] = []

    def renew(self, now: float, trusted_until: float) -> None:
        """
        Make the fields for the second that *now* lies in: Age and Cache-Status change once a second.

        trusted_until: when it has to be looked at again at the latest.
        """
        entry = self.entry
        headers = answered_headers(entry, now)
        ttl = int(entry.fresh_until - now)
        headers.append((b"cache-status", self._name + b"; hit; ttl=%d" % ttl))
        self.headers = headers
        age = now - entry.generated_at
        # Until the age or the ttl, whichever comes first, shows another whole number.
        until = now + min(1.0 - age % 1.0 if age >= 0 else -age, (entry.fresh_until - now) % 1.0 or 1.0)
        self.until = min(until, trusted_until)


class Variants:
    """
    The variants of one key, newest first, as the hit path selects them.

    The lines of the fields that select decide alone: lines that were seen before select what they selected then, and
    nothing is normalised (a look-up instead of 1 us).
    """

    __slots__ = ("_names", "_ready", "_seen")

    def __init__(self, held: Held, make: Callable[[Entry], Ready]) -> None:
        self._ready: list[tuple[Vary, Ready]] = []
        chain: Held | None = held
        while chain is not None:
            self._ready.append((chain.entry.vary, make(chain.entry)))
            chain = chain.next
        self._names = frozenset(name for vary, _ in self._ready for name, _ in vary)
        self._seen: dict[tuple[tuple[bytes, bytes], ...], Ready] = {}

    def select(self, headers: Headers) -> Ready | None:
        """Return the newest variant that a request with *headers* selects."""
        names = self._names
        lines = tuple([line for line in headers if line[0] in names])
        ready = self._seen.get(lines)
        if ready is None:
            ready = next((ready for vary, ready in self._ready if policy.matches(vary, headers)), None)
            if ready is not None and sum(len(value) for _, value in lines) <= _MAX_SPELLING_BYTES:
                if len(self._seen) >= _MAX_SPELLINGS:
                    self._seen.clear()
                self._seen[lines] = ready
        return ready
