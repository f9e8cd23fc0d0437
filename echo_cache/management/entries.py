"""What is stored, as an operator sees it: URLs, summaries, variants. Pure; `now` is an argument."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from echo_cache.cache import Cache
from echo_cache.codec import key_digest
from echo_cache.coordination.marks import Verdict
from echo_cache.errors import CodecError
from echo_cache.management.why import stored_because
from echo_cache.model import CacheKey, Entry
from echo_cache.policy.keys import CREDENTIAL_FIELDS

__all__ = ["Pattern", "Sized", "digest_of", "summary", "url_of", "variant"]

# What of an entry is shown, at most: its fields may be 64 kB and more.
_LONGEST_VALUE: Final = 4_096
_LONGEST_URL: Final = 8_192
# Octets of a path or query that a URL has as they are; what is stored by others may have anything.
_SAFE: Final = frozenset(range(0x21, 0x7F))

_STANDS: Final = {Verdict.GONE: "gone", Verdict.STALE: "stale", Verdict.DOUBTFUL: "doubtful"}


def url_of(key: CacheKey) -> str:
    """
    Return the URL of *key* in printable ASCII, as `key_of_url` takes it; a value of CacheAside gives "space:key".

    The origin of a request without a Host is "http://" alone.
    """
    _, scheme, host, path, query = key
    if scheme not in ("http", "https"):
        return f"{_printable(scheme)}:{_text(path)}"[:_LONGEST_URL]
    url = f"{scheme}://{_text(host or b'')}{_text(path)}"
    return (f"{url}?{_text(query)}" if query else url)[:_LONGEST_URL]


def _text(octets: bytes) -> str:
    return "".join([chr(octet) if octet in _SAFE else f"%{octet:02X}" for octet in octets[:_LONGEST_URL]])


def _printable(text: str) -> str:
    return text if text.isprintable() else ascii(text)


class Pattern:
    """
    A glob over URLs: "*" stands for any characters. It is found anywhere in a URL, if it has none at its ends.

    Tries no place twice, whatever the URL: clients choose those.
    """

    def __init__(self, glob: str) -> None:
        self._parts = [part.casefold() for part in glob.split("*") if part]

    def __call__(self, url: str) -> bool:
        """Say whether *url* matches."""
        at, folded = 0, url.casefold()
        for part in self._parts:
            found = folded.find(part, at)
            if found < 0:
                return False
            at = found + len(part)
        return True


class Sized(NamedTuple):
    """An entry, whose body may not be here, and how long that is."""

    entry: Entry
    body_bytes: int


def summary(cache: Cache, key: CacheKey, variants: Sequence[Sized], level: str, now: float) -> dict[str, Any]:
    """Return what a list says of *key*, whose *variants* are all that *level* has, newest first."""
    newest = variants[0].entry
    verdict = cache.log.verdict(key, newest)
    return {
        "url": url_of(key),
        "key_digest": digest_of(key),
        "level": level,
        "variants": len(variants),
        "bytes": sum(map(_size, variants)),
        "status": newest.response.status,
        "age": max(0.0, now - newest.generated_at),
        "ttl": newest.fresh_until - now,
        "tags": list(newest.groups[:_MOST_TAGS]),
        "route": newest.route,
        "stored_at": newest.stored_at,
        "stands": _stands(newest, verdict, now),
    }


_MOST_TAGS: Final = 32


def variant(cache: Cache, key: CacheKey, found: Sized, now: float) -> dict[str, Any]:
    """Return all that can be said of what was *found*, one of the variants of *key*."""
    entry = found.entry
    response = entry.response
    fields = {name.decode("latin-1"): value.decode("latin-1") for name, value in response.headers}
    return {
        "status": response.status,
        "age": max(0.0, now - entry.generated_at),
        "ttl": entry.fresh_until - now,
        "retained_for": entry.retain_until - now,
        "generated_at": entry.generated_at,
        "stored_at": entry.stored_at,
        "tags": list(entry.groups),
        "vary": {name.decode("latin-1"): None if value is None else _shown(name, value) for name, value in entry.vary},
        "headers": [[name.decode("latin-1"), _shown(name, value)] for name, value in response.headers],
        "body_bytes": found.body_bytes,
        "content_type": fields.get("content-type"),
        "etag": fields.get("etag"),
        "stale_while_revalidate": entry.stale_while_revalidate,
        "stale_if_error": entry.stale_if_error,
        "always_validate": entry.always_validate,
        "anonymous_only": entry.anonymous_only,
        "route": entry.route,
        "mark": str(entry.mark),
        "stands": _stands(entry, cache.log.verdict(key, entry), now),
        "why": stored_because(entry, cache.options),
    }


def _shown(name: bytes, value: bytes) -> str:
    """Return *value* of the field *name*, but for what lets whoever has it pass for somebody else."""
    if name in CREDENTIAL_FIELDS or name == b"set-cookie":
        return f"({len(value)} bytes, not shown)"
    return value.decode("latin-1")[:_LONGEST_VALUE]


def _stands(entry: Entry, verdict: Verdict | None, now: float) -> str:
    """Return how *entry* stands: "fresh", "stale", "gone" (invalidated) or "doubtful" (to be confirmed by the app)."""
    if verdict is not None:
        return _STANDS[verdict]
    return "fresh" if now < entry.fresh_until else "stale"


def _size(found: Sized) -> int:
    return found.body_bytes + sum([len(name) + len(value) for name, value in found.entry.response.headers])


def digest_of(key: CacheKey) -> str:
    """Return what names *key* in Redis and in the logs; "" for one that no store takes."""
    try:
        return key_digest(key)
    except CodecError:
        return ""
