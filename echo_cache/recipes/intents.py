"""
What a classifier makes of messages. The one rule: two messages share an answer only if no more than spelling, case and
white space parts them, and the classifier, the tenant and the locale are the same.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Awaitable, Callable
from typing import Any, Final, Self, TypeVar

from echo_cache.aside import MSGPACK, CacheAside, Serializer
from echo_cache.aside.cache_aside import awaitable
from echo_cache.cache import Cache
from echo_cache.errors import ConfigurationError
from echo_cache.options import Duration
from echo_cache.recipes.ttls import INTENT_TTL
from echo_cache.stores import Store

__all__ = ["IntentCache", "intent_key", "normalised"]

T = TypeVar("T")

# To sort combining marks takes the square of their number: 0.5 s for 16,000 of them, 2 ms for 1,000. What is longer
# than this seldom comes twice in two spellings.
_MOST_NORMALISED: Final = 1_000


class IntentCache:
    """
    A cache before a classifier of messages.

    store: as for CacheAside: the app's Cache, or a store, a ready redis.asyncio client or the URL of a Redis.
    version: of the classifier; a new one answers anew. It is what changes with the model, the prompt or the labels.
    tenant, locale: what the answers depend on beside the message, where calls do not say otherwise.
    ttl: how long an answer is kept, in seconds.
    prefix: what parts these answers from other values in the store.
    serializer: what the classifier returns, as for CacheAside: MSGPACK for plain data, typed(T) for dataclasses and
        models.

    At the same time only one worker classifies a message. Messages are neither in keys nor in values, only the SHA-256
    of them is; whoever reads Redis can still try short messages out.

    Raises ConfigurationError for what cannot work.
    """

    def __init__(
        self,
        store: Cache | Store | Any,
        *,
        version: str,
        tenant: str = "",
        locale: str = "",
        ttl: Duration = INTENT_TTL,
        prefix: str = "intent",
        serializer: Serializer = MSGPACK,
    ) -> None:
        intent_key("", version, tenant, locale)
        self._version = version
        self._tenant = tenant
        self._locale = locale
        self.aside: Final = CacheAside(store, prefix, ttl, serializer=serializer, write_behind=None)

    def __repr__(self) -> str:
        return f"<IntentCache version {self._version!r} over {self.aside!r}>"

    async def get_or_classify(
        self,
        message: str,
        classifier: Callable[[str], Awaitable[T]],
        *,
        version: str | None = None,
        tenant: str | None = None,
        locale: str | None = None,
    ) -> T:
        """
        Return what *classifier* makes of *message*, from the cache if it is there.

        classifier: an async function of one message, which it gets as it came. version, tenant, locale: for this call,
        in place of those of the cache.

        What it raises is raised here, for all who waited for it in this process, and is not kept; neither is None,
        which says that there is no answer. An empty message is a message like any other.
        """
        key = self.key(message, version=version, tenant=tenant, locale=locale)

        async def classify() -> T:
            return await awaitable("classifier", classifier(message))

        return await self.aside.get(key, classify)

    def key(
        self, message: str, *, version: str | None = None, tenant: str | None = None, locale: str | None = None
    ) -> str:
        """Return the key of that answer in `aside`, for `aside.invalidate`. Raises ConfigurationError for no text."""
        return intent_key(
            message,
            self._version if version is None else version,
            self._tenant if tenant is None else tenant,
            self._locale if locale is None else locale,
        )

    async def aclose(self) -> None:
        """Finish what is under way and close what was made here; the app's own Cache is left to the app."""
        await self.aside.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


def normalised(message: str) -> str:
    """
    Return *message* in the one spelling of all that say the same: compatible characters are one, and so are upper and
    lower case; white space is single, and not at the ends.

    No more than that, since more has a meaning to some classifier: "no" is not "no?", and an emoji is more than
    decoration. Over 1,000 characters it is returned as it is.

    NFKC before folding, as a bold or wide "A" folds only as an "A"; and after it, as folding takes letters apart.
    Unicode, section 3.13 (default caseless matching, by toCasefold).
    """
    if len(message) > _MOST_NORMALISED:
        return message
    folded = unicodedata.normalize("NFKC", message).casefold()
    return " ".join(unicodedata.normalize("NFKC", folded).split())


def intent_key(message: str, version: str, tenant: str, locale: str) -> str:
    """
    Return the SHA-256 over the four, the message normalised, in hexadecimal.

    Before each stands its length in bytes, 8 bytes big-endian: no part can be taken for the beginning of the next one.
    Raises ConfigurationError for what is no text.
    """
    digest = hashlib.sha256()
    parts = {"message": message, "version": version, "tenant": tenant, "locale": locale}
    for name, part in parts.items():
        if not isinstance(part, str):
            raise ConfigurationError(f"{name} must be text, not {type(part).__name__}")
        data = (normalised(part) if name == "message" else part).encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "big"))
        digest.update(data)
    return digest.hexdigest()
