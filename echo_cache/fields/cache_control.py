"""
Cache-Control of responses and requests, Pragma, and the targeted fields.

The one rule: in doubt, cache less. A restriction counts however it is spelled (`no-store=1`, `private; max-age=60`);
a permission only when it is well-formed; freshness that cannot be read is no freshness, 0 s.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from echo_cache.fields.lists import MAX_DELTA_SECONDS, OWS, is_token, parse_delta_seconds, split_list
from echo_cache.fields.structured import Member, Token, parse_dictionary

__all__ = [
    "RequestDirectives",
    "ResponseDirectives",
    "parse_request_directives",
    "parse_response_directives",
    "parse_targeted",
]


@dataclass(frozen=True, slots=True)
class ResponseDirectives:
    """
    The directives of a response's Cache-Control or of a targeted field. RFC 9111 section 5.2.2, 5861, 8246.

    *no_cache* and *private* are the unqualified forms; field names of the qualified forms are lower-case. Both can
    be given: the unqualified form is then the stricter one. Durations are seconds, None where absent.
    """

    no_store: bool = False
    no_cache: bool = False
    no_cache_fields: frozenset[bytes] = frozenset()
    private: bool = False
    private_fields: frozenset[bytes] = frozenset()
    public: bool = False
    max_age: int | None = None
    s_maxage: int | None = None
    must_revalidate: bool = False
    proxy_revalidate: bool = False
    must_understand: bool = False
    immutable: bool = False
    no_transform: bool = False
    stale_while_revalidate: int | None = None
    stale_if_error: int | None = None


@dataclass(frozen=True, slots=True)
class RequestDirectives:
    """
    The directives of a request. RFC 9111 section 5.2.1, RFC 5861 section 4.

    Durations are seconds, None where absent; *max_stale* is math.inf where it has no argument.
    """

    no_cache: bool = False
    no_store: bool = False
    only_if_cached: bool = False
    no_transform: bool = False
    max_age: int | None = None
    min_fresh: int | None = None
    max_stale: float | None = None
    stale_if_error: int | None = None


# Longer values are parsed each time: a value of 1 MB must not stay in memory because a client sent it once.
_MAX_MEMOISED_BYTES = 256
_MEMOISED = 1024

_NO_RESPONSE_DIRECTIVES = ResponseDirectives()
_NO_REQUEST_DIRECTIVES = RequestDirectives()

_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_QUOTED = re.compile(rb'"((?:[^"\\]++|\\.)*+)"', re.DOTALL)
_QUOTED_PAIR = re.compile(rb"\\(.)", re.DOTALL)


def parse_response_directives(value: bytes | None) -> ResponseDirectives:
    """
    Return the directives of a response's Cache-Control, all lines joined; none for None. Never raises.

    Of a repeated duration the first counts; repeated field lists are united. RFC 9111 sections 4.2.1 and 5.2.2.
    """
    if value is None:
        return _NO_RESPONSE_DIRECTIVES
    return _response_memo(value) if len(value) <= _MAX_MEMOISED_BYTES else _response_directives(value)


def parse_request_directives(cache_control: bytes | None, pragma: bytes | None) -> RequestDirectives:
    """
    Return the directives of a request, each field's lines joined, None where it is absent. Never raises.

    Pragma: no-cache counts only where Cache-Control is absent. RFC 9111 sections 5.2.1 and 5.4.
    """
    if cache_control is None:
        if pragma is None:
            return _NO_REQUEST_DIRECTIVES
        return RequestDirectives(no_cache=any(name == b"no-cache" for name, _ in _directives(pragma)))
    if len(cache_control) <= _MAX_MEMOISED_BYTES:
        return _request_memo(cache_control)
    return _request_directives(cache_control)


def parse_targeted(value: bytes) -> ResponseDirectives | None:
    """
    Return the directives of a targeted field, all lines joined; None where it must be ignored. Never raises.

    None: it is empty or no Structured Fields Dictionary, so that the next field applies. A false Boolean is an
    absent directive, parameters are ignored, the last of a repeated key counts. A value of the wrong type is never
    converted: a restriction stays one, a permission is ignored, a lifetime is 0 s as in Cache-Control.

    RFC 9213 section 2.1; RFC 9111 section 4.2.1.
    """
    members = parse_dictionary(value)
    if not members:
        return None
    given = {key: member for key, member in members.items() if member is not False}
    no_cache, no_cache_fields = _targeted_fields(given.get("no-cache"))
    private, private_fields = _targeted_fields(given.get("private"))
    return ResponseDirectives(
        no_store="no-store" in given,
        no_cache=no_cache,
        no_cache_fields=no_cache_fields,
        private=private,
        private_fields=private_fields,
        public=given.get("public") is True,
        max_age=_targeted_lifetime(given.get("max-age")),
        s_maxage=_targeted_lifetime(given.get("s-maxage")),
        must_revalidate="must-revalidate" in given,
        proxy_revalidate="proxy-revalidate" in given,
        must_understand=given.get("must-understand") is True,
        immutable=given.get("immutable") is True,
        no_transform="no-transform" in given,
        stale_while_revalidate=_targeted_seconds(given.get("stale-while-revalidate")),
        stale_if_error=_targeted_seconds(given.get("stale-if-error")),
    )


def _response_directives(value: bytes) -> ResponseDirectives:
    first, fields, unqualified = _collect(value)
    return ResponseDirectives(
        no_store=b"no-store" in first,
        no_cache=b"no-cache" in unqualified,
        no_cache_fields=frozenset(fields[b"no-cache"]),
        private=b"private" in unqualified,
        private_fields=frozenset(fields[b"private"]),
        public=first.get(b"public") == b"",
        max_age=_lifetime(first.get(b"max-age")),
        s_maxage=_lifetime(first.get(b"s-maxage")),
        must_revalidate=b"must-revalidate" in first,
        proxy_revalidate=b"proxy-revalidate" in first,
        must_understand=first.get(b"must-understand") == b"",
        immutable=first.get(b"immutable") == b"",
        no_transform=b"no-transform" in first,
        stale_while_revalidate=_seconds(first.get(b"stale-while-revalidate")),
        stale_if_error=_seconds(first.get(b"stale-if-error")),
    )


def _request_directives(value: bytes) -> RequestDirectives:
    first, _, _ = _collect(value)
    max_stale = first.get(b"max-stale")
    return RequestDirectives(
        no_cache=b"no-cache" in first,
        no_store=b"no-store" in first,
        only_if_cached=b"only-if-cached" in first,
        no_transform=b"no-transform" in first,
        max_age=_lifetime(first.get(b"max-age")),
        min_fresh=_seconds(first.get(b"min-fresh")),
        max_stale=math.inf if max_stale == b"" else _seconds(max_stale),
        stale_if_error=_seconds(first.get(b"stale-if-error")),
    )


# Bounded by what no token has, so that `not-private` is not one.
_RESTRICTION = re.compile(
    rb"(?<![!#$%&'*+\-.^_`|~0-9A-Za-z])(?:no-store|no-cache|private)(?![!#$%&'*+\-.^_`|~0-9A-Za-z])", re.I
)

_response_memo = functools.lru_cache(maxsize=_MEMOISED)(_response_directives)
_request_memo = functools.lru_cache(maxsize=_MEMOISED)(_request_directives)


def _directives(value: bytes) -> Iterator[tuple[bytes, bytes]]:
    """
    Yield (lower-case name, what follows it) of each member that begins with a token.

    A restriction in a member that is no directive counts, whatever stands around it: `public; private`, `"no-store"`.
    """
    for member in split_list(value):
        match = _NAME.match(member)
        name, rest = (match[0].lower(), member[match.end() :]) if match else (b"", member)
        if match:
            yield name, rest
        if rest and rest[:1] != b"=":
            for hidden in _RESTRICTION.findall(rest):
                yield hidden.lower(), b""


def _collect(value: bytes) -> tuple[dict[bytes, bytes], dict[bytes, set[bytes]], set[bytes]]:
    """Return the first occurrence of each directive, and of no-cache and private all fields and the unqualified."""
    first: dict[bytes, bytes] = {}
    fields: dict[bytes, set[bytes]] = {b"no-cache": set(), b"private": set()}
    unqualified: set[bytes] = set()
    for name, rest in _directives(value):
        first.setdefault(name, rest)
        if name in fields:
            names = _field_names(_argument(rest))
            fields[name] |= names
            if not names:
                unqualified.add(name)
    return first, fields, unqualified


def _argument(rest: bytes) -> bytes | None:
    """Return the argument in *rest*, `=token` or `="quoted"`; None where it is missing or neither of them."""
    if rest[:1] != b"=":
        return None
    argument = rest[1:]
    if is_token(argument):
        return argument
    quoted = _QUOTED.fullmatch(argument)
    return _QUOTED_PAIR.sub(rb"\1", quoted[1]) if quoted else None


def _seconds(rest: bytes | None) -> int | None:
    argument = None if rest is None else _argument(rest)
    return None if argument is None else parse_delta_seconds(argument)


def _lifetime(rest: bytes | None) -> int | None:
    return None if rest is None else _seconds(rest) or 0


def _field_names(argument: bytes | None) -> frozenset[bytes]:
    """Return the field names of a qualified form, lower-case; empty, for unqualified, unless all are tokens."""
    names = [name for part in (argument or b"").split(b",") if (name := part.strip(OWS))]
    return frozenset(name.lower() for name in names) if all(map(is_token, names)) else frozenset()


def _targeted_fields(member: Member | None) -> tuple[bool, frozenset[bytes]]:
    if member is None:
        return False, frozenset()
    text = member.value if isinstance(member, Token) else member
    names = _field_names(text.encode("ascii")) if isinstance(text, str) else frozenset()
    return not names, names


def _targeted_seconds(member: Member | None) -> int | None:
    if isinstance(member, bool) or not isinstance(member, int) or member < 0:
        return None
    return min(member, MAX_DELTA_SECONDS)


def _targeted_lifetime(member: Member | None) -> int | None:
    return None if member is None else _targeted_seconds(member) or 0
