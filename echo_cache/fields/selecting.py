"""
Selecting a variant: the names in Vary, and request fields in a form in which equal meanings are equal bytes.

The one rule: two values may become one only where RFC 9111 section 4.1 knows them to mean the same. Too few merges
cost a request to the app; one too many serves the wrong variant.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence

from echo_cache.fields.lists import OWS, is_token, split_members

__all__ = ["normalise", "normalise_accept_encoding", "normalise_accept_language", "parse_vary"]

_MAX_MEMOISED_BYTES = 256
_MEMOISED = 1024

_WEIGHTED = re.compile(
    rb"(?P<name>[!#$%&'*+\-.^_`|~0-9A-Za-z]++)"
    rb"(?:[ \t]*+;[ \t]*+[qQ]=(?P<weight>0(?:\.\d{0,3})?|1(?:\.0{0,3})?))?"
)

# RFC 9110 section 8.4.1: recipients SHOULD consider the names with x- as equivalent.
_CODING_ALIASES = {b"x-gzip": b"gzip", b"x-compress": b"compress"}

# Not lists: white space beside a comma is part of their value, and some of them decide who gets the answer.
_NOT_LISTS = frozenset(
    (b"authorization", b"cookie", b"host", b"origin", b"proxy-authorization", b"referer", b"user-agent")
)


def parse_vary(values: Sequence[bytes]) -> tuple[bytes, ...] | None:
    """
    Return the field names that the Vary lines *values* nominate: lower-case, sorted, each once.

    None where the response matches no later request: a `*` anywhere, or a member that is no field name.
    RFC 9110 section 12.5.5, RFC 9111 section 4.1.
    """
    names: set[bytes] = set()
    for value in values:
        for part in value.split(b","):
            name = part.strip(OWS)
            if name == b"*" or (name and not is_token(name)):
                return None
            names.add(name.lower())
    names.discard(b"")
    return tuple(sorted(names))


def normalise(name: bytes, value: bytes | None) -> bytes | None:
    """
    Return the request field *name* (lower-case), all lines joined, as it is compared between requests.

    Absent stays None, empty stays b"". Accept-Encoding and Accept-Language are reordered by weight; elsewhere only
    white space at the ends and beside commas outside quotes changes. RFC 9111 section 4.1.
    """
    if value is None:
        return None
    normaliser = _NORMALISERS.get(name)
    if normaliser is not None:
        return normaliser(value)
    if name in _NOT_LISTS or b"," not in value:
        return value.strip(OWS)
    return _normalise_commas(value)


def normalise_accept_encoding(value: bytes) -> bytes:
    """
    Return Accept-Encoding with equal bytes for equal meaning: lower-case, by weight, then by name. Never raises.

    Codings with q=0 are kept, as they forbid; x-gzip is gzip. A malformed value only has its white space
    normalised. RFC 9110 section 12.5.3.
    """
    return _encoding_memo(value) if len(value) <= _MAX_MEMOISED_BYTES else _accept_encoding(value)


def normalise_accept_language(value: bytes) -> bytes:
    """
    Return Accept-Language with equal bytes for equal meaning: lower-case, by weight. Never raises.

    The order of equal weights is kept: many apps take the first of them as the preferred one, and RFC 9110 section
    12.5.4 allows it, so that "de, en" and "en, de" are two variants. A malformed value only has its white space
    normalised.
    """
    return _language_memo(value) if len(value) <= _MAX_MEMOISED_BYTES else _accept_language(value)


def _accept_encoding(value: bytes) -> bytes:
    weighted = _weighted(value)
    if weighted is None:
        return _normalise_commas(value)
    return _join({(_CODING_ALIASES.get(name, name), weight) for name, weight in weighted}, by_name=True)


def _accept_language(value: bytes) -> bytes:
    weighted = _weighted(value)
    return _normalise_commas(value) if weighted is None else _join(dict.fromkeys(weighted), by_name=False)


_encoding_memo = functools.lru_cache(maxsize=_MEMOISED)(_accept_encoding)
_language_memo = functools.lru_cache(maxsize=_MEMOISED)(_accept_language)

_NORMALISERS: dict[bytes, Callable[[bytes], bytes]] = {
    b"accept-encoding": normalise_accept_encoding,
    b"accept-language": normalise_accept_language,
}


def _weighted(value: bytes) -> list[tuple[bytes, int]] | None:
    """Return (lower-case name, weight in thousandths) of each member; None where one of them is malformed."""
    members: list[tuple[bytes, int]] = []
    for part in value.split(b","):
        member = part.strip(OWS)
        if not member:
            continue
        match = _WEIGHTED.fullmatch(member)
        if match is None:
            return None
        members.append((match["name"].lower(), _thousandths(match["weight"])))
    return members


def _thousandths(weight: bytes | None) -> int:
    if weight is None or weight[:1] == b"1":
        return 1000
    return int(weight[2:].ljust(3, b"0"))


def _join(members: set[tuple[bytes, int]] | dict[tuple[bytes, int], None], *, by_name: bool) -> bytes:
    ordered = sorted(members) if by_name else list(members)
    ordered.sort(key=lambda member: -member[1])
    return b", ".join(name if weight == 1000 else b"%s;q=%s" % (name, _weight(weight)) for name, weight in ordered)


def _weight(thousandths: int) -> bytes:
    return f"{thousandths / 1000:.3f}".rstrip("0").rstrip(".").encode("ascii")


def _normalise_commas(value: bytes) -> bytes:
    return b", ".join(split_members(value)).strip(OWS)
