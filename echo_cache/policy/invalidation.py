"""
What a request that changes something makes stale: RFC 9111 section 4.4 and RFC 9875.

The one rule: only what the app has answered without error, and only on its own origin.
"""

from __future__ import annotations

from urllib.parse import quote, urljoin

from echo_cache import fields
from echo_cache.errors import ConfigurationError
from echo_cache.model import CacheKey, Headers, Request
from echo_cache.options import PolicyOptions
from echo_cache.policy.keys import URL_OCTETS, key_of_url, primary_key

__all__ = ["SAFE_METHODS", "invalidated_groups", "invalidated_keys"]

# RFC 9110 section 9.2.1, and QUERY, which is defined to be safe. What is unknown is unsafe.
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "QUERY"})


def invalidated_keys(request: Request, status: int, headers: Headers, options: PolicyOptions) -> list[CacheKey]:
    """
    Return the keys that *request* and its answer invalidate: its target, Location and Content-Location.

    Empty for safe methods and for error answers. A Location on another origin invalidates nothing.
    """
    if not _changes(request, status):
        return []
    target = primary_key(request, options)
    keys = [target]
    for name in (b"location", b"content-location"):
        for value in fields.get_all(headers, name):
            key = _on_origin(value, target, options)
            if key is not None and key not in keys:
                keys.append(key)
    return keys


def invalidated_groups(request: Request, status: int, headers: Headers) -> tuple[str, ...]:
    """Return the cache groups that the answer to an unsafe *request* invalidates. RFC 9875 section 3."""
    value = fields.get_joined(headers, b"cache-group-invalidation")
    return fields.parse_groups(value) if value is not None and _changes(request, status) else ()


def _changes(request: Request, status: int) -> bool:
    return request.method not in SAFE_METHODS and 200 <= status <= 399


def _on_origin(location: bytes, target: CacheKey, options: PolicyOptions) -> CacheKey | None:
    """Return the key of *location*, resolved against *target*; None when it lies elsewhere or is no URL."""
    _, scheme, host, path, _ = target
    origin = f"{scheme}://{(host or b'').decode('latin-1')}"
    try:
        url = urljoin(origin + quote(path, safe=URL_OCTETS), _text(location).strip())
        key = key_of_url(url if host else url.removeprefix(origin), options, base=target)
    except (ValueError, ConfigurationError):
        return None
    return key if key[1:3] == target[1:3] else None


def _text(location: bytes) -> str:
    """Return *location* as browsers read it: what is not ASCII is UTF-8 or, failing that, Latin-1."""
    try:
        return location.decode()
    except UnicodeDecodeError:
        return location.decode("latin-1")
