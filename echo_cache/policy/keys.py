"""
What a request is looked up by: the primary key, and the fields that select a variant.

The one rule: two requests that the app could tell apart by what is in the key never share one. Keys are made of
bytes as they were sent; nothing is decoded, and nothing is joined.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from echo_cache import fields
from echo_cache.errors import ConfigurationError
from echo_cache.model import CacheKey, Headers, Request, Vary
from echo_cache.options import PolicyOptions
from echo_cache.policy.fieldmap import JoinedFields, joined_fields

__all__ = [
    "CREDENTIAL_FIELDS",
    "URL_OCTETS",
    "canonical_host",
    "decoded_key",
    "key_of_url",
    "key_query",
    "matches",
    "primary_key",
    "request_of_scope",
    "selected_by",
    "variant_fields",
    "visible_query",
]

# By these an app knows who asks. What it says nothing about is then not taken for everybody's.
CREDENTIAL_FIELDS = frozenset(
    {
        *(b"authorization", b"cookie", b"proxy-authorization"),
        *(b"api-key", b"apikey", b"x-api-key", b"x-auth-token", b"x-access-token"),
    }
)

FORM = "GET"
FORM_DECODED = "GET decoded"

_PRINTABLE = "".join(map(chr, range(0x21, 0x7F)))
# What clients leave as it is: the path and query percent-encode sets of the URL standard are the others.
URL_OCTETS = _PRINTABLE.translate(dict.fromkeys(map(ord, '"#<>?`{}')))
_QUERY_OCTETS = _PRINTABLE.translate(dict.fromkeys(map(ord, '"#<>')))

_DEFAULT_PORTS = {"http": b":80", "https": b":443"}


def request_of_scope(scope: Mapping[str, Any]) -> Request:
    """
    Return the request that an ASGI HTTP *scope* describes.

    A request with more than one Host field has none that could be trusted: its host is all of them, with a line feed
    between, which no field value can have, so that it shares a key with no other.
    """
    headers: Headers = scope["headers"]
    path: bytes | None = scope.get("raw_path")
    host: bytes | None = None
    has_body = False
    for name, value in headers:
        if name == b"host":
            host = value if host is None else b"%s\n%s" % (host, value)
        elif (name == b"content-length" and value.strip() not in (b"0", b"")) or name == b"transfer-encoding":
            has_body = True
    return Request(
        scope["method"],
        scope.get("scheme", "http"),
        host,
        path if path is not None else scope["path"].encode("utf-8", "surrogatepass"),
        scope.get("query_string", b""),
        headers,
        path is None,
        has_body,
    )


def canonical_host(scheme: str, host: bytes | None) -> bytes | None:
    """
    Return *host* in lower case and without the default port of *scheme*; None stays None.

    RFC 9110 section 4.2.3.
    """
    if host is None:
        return None
    return host.lower().removesuffix(_DEFAULT_PORTS.get(scheme, b""))


def primary_key(request: Request, options: PolicyOptions) -> CacheKey:
    """
    Return the primary key of *request*: method class, scheme, host, path and query.

    GET and HEAD are one class. RFC 9111 section 2.
    """
    return (
        FORM_DECODED if request.path_is_decoded else FORM,
        request.scheme,
        canonical_host(request.scheme, request.host),
        request.path,
        key_query(request.query, options),
    )


def visible_query(query: bytes, options: PolicyOptions) -> bytes:
    """
    Return *query* without the ignored parameters: what the app may see.

    A parameter that is not in the key must not reach the app either, or one client could choose what others are
    served (CVE-2021-23336). Only "&" separates, and names are compared as they were sent: a disguised name stays in
    both, which costs a miss and never a wrong answer.
    """
    ignored = options.ignored_query_parameters
    if not ignored or not query:
        return query
    names = {name.encode() for name in ignored}
    return b"&".join(part for part in query.split(b"&") if _parameter_name(part) not in names)


def _parameter_name(part: bytes) -> bytes:
    name, _, _ = part.partition(b"=")
    return name


def key_query(query: bytes, options: PolicyOptions) -> bytes:
    """Return the query as the key has it: without ignored parameters and, if so chosen, sorted by name."""
    query = visible_query(query, options)
    if options.sort_query and b"&" in query:
        # A stable sort by name alone: the order of a repeated parameter means something to the app.
        parts = query.split(b"&")
        parts.sort(key=_parameter_name)
        query = b"&".join(parts)
    return query


def key_of_url(url: str, options: PolicyOptions, base: CacheKey | None = None) -> CacheKey:
    """
    Return the primary key that a GET of *url* has, as browsers send it: no dot segments, odd characters encoded.

    *url* is absolute ("https://example.com/a?b=c"), or a path with query that is taken on the origin of *base*.
    The key has the form of *base*, without one that of servers that give the path as it was sent; `decoded_key`
    has the other. Raises ConfigurationError when *url* is neither.
    """
    try:
        parts = urlsplit(url)
        path, query = quote(_without_dots(parts.path), safe=URL_OCTETS), quote(parts.query, safe=_QUERY_OCTETS)
    except ValueError as error:
        raise ConfigurationError(f"not a URL: {url!r} ({error})") from None
    if parts.scheme in ("http", "https") and parts.netloc:
        scheme, host = parts.scheme, _host_of(parts.netloc, parts.scheme)
    elif base is not None and not parts.scheme and not parts.netloc and url.startswith("/"):
        scheme, host = base[1:3]
    else:
        raise ConfigurationError(f"expected an absolute http(s) URL, or a path where the origin is known, not {url!r}")
    key = (FORM, scheme, host, path.encode() or b"/", key_query(query.encode(), options))
    return decoded_key(key) if base is not None and base[0] == FORM_DECODED else key


def decoded_key(key: CacheKey) -> CacheKey:
    """Return *key*, made of the path as it was sent, as it is where the server gives only the decoded path."""
    _, scheme, host, path, query = key
    return (FORM_DECODED, scheme, host, unquote(path.decode("latin-1")).encode(), query)


def variant_fields(headers: Headers, names: Iterable[bytes]) -> Vary:
    """
    Return the request fields *names* as they select a variant: normalised, None where absent.

    RFC 9111 section 4.1.
    """
    return selected_by(joined_fields(headers), names)


def selected_by(asked: JoinedFields, names: Iterable[bytes]) -> Vary:
    """Return what `variant_fields` does, of a request whose fields are *asked*."""
    return tuple([(name, fields.normalise(name, asked.get(name))) for name in names])


def matches(vary: Vary, headers: Headers) -> bool:
    """Say whether a request with *headers* selects the variant that was stored for *vary*. RFC 9111 section 4.1."""
    return not vary or selected_by(joined_fields(headers), [name for name, _ in vary]) == vary


def _host_of(netloc: str, scheme: str) -> bytes | None:
    """Return the host and port of *netloc* as a Host field has them."""
    authority = netloc.rpartition("@")[2].removesuffix(":")
    try:
        return canonical_host(scheme, authority.encode("ascii" if authority.isascii() else "idna"))
    except UnicodeError:
        raise ConfigurationError(f"not a host name: {authority!r}") from None


def _without_dots(path: str) -> str:
    """Return *path* with its "." and ".." segments resolved. RFC 3986 section 5.2.4."""
    if "/." not in path:
        return path
    kept: list[str] = []
    *segments, last = path.split("/")[1:]
    for segment in segments:
        if segment == "..":
            kept = kept[:-1]
        elif segment != ".":
            kept.append(segment)
    if last == "..":
        kept = kept[:-1]
    return "/".join(["", *kept, "" if last in (".", "..") else last])
