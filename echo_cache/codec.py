"""
Entries and indexes as bytes. The one rule: what is read is data, checked, or it is a CodecError; nothing is ever run.

Two forms. The *head* is all of an entry but its body, as one msgpack value; memory keeps it at rest. The *envelope* is
what Redis keeps: a frame, the full key, the head, and the body as a raw tail that never passes through msgpack.

    frame (30 bytes, big-endian)                           after it, for an entry      for an index
     0  4  magic: EC 68 6F 65 entry, EC 68 6F 69 index       MAC    (flag 2: 16 bytes)   key
     4  1  format version                                    key    (key length)         rows, newest first
     5  1  flags: 1 the tail is zstd, 2 there is a MAC;      head   (head length)
              others must be 0                               tail   (tail length)
     6  4  key length                                      For an index, head, body and tail length are 0: it is a
    10  4  head length                                     list that grows and shrinks at its end, by a script in
    14  4  body length, as the client gets it              Redis that cannot compute a checksum. Its rows therefore
    18  4  tail length, as it is stored                    carry checksums of their own (see encode_index_row).
    22  4  crc32 of the tail's first 64 KiB
    26  4  crc32 of the 26 bytes before, and of all behind the frame but the tail

The checksums find damage and writers' bugs, not forgery. Frame, key and head are covered whole; of the stored body
only the first 64 KiB, and the length. That is all of nearly every page and costs at most 9 us, where crc32 of a whole
1 MB costs 139 us on every hit in Redis; TCP and Redis have checksums of their own, so what is left to find are cut,
stale or mixed-up values, which the frame and the beginning show.

The MAC finds forgery. It is keyed BLAKE2b over the frame but its last four bytes, the key, the head and the whole tail,
whose lengths are in the frame; there is no other algorithm and so nothing that names one. It has 16 bytes: nobody
without the secret can do better than guess, and a guess is right once in 2**128, which more bytes would not make
safer, only longer. It costs about 1 us for each kB. It does not hold off who puts an older entry back under its own
key: that one ends when it says, and its mark still tells which invalidations it has not seen.

Keys are compared as bytes: a key has one serialised form, whose parts carry their length and their type, so two keys
never have one form.
"""

from __future__ import annotations

import re
import struct
import threading
from base64 import urlsafe_b64encode
from collections.abc import Iterable, Sequence
from functools import cache, lru_cache
from hashlib import blake2b
from hmac import compare_digest
from itertools import islice
from math import isfinite
from typing import Any, Final, Literal, NamedTuple, TypeAlias
from zlib import crc32

import msgpack  # type: ignore[import-untyped]  # ships no types

from echo_cache.errors import CodecError, ForgedError
from echo_cache.fields import is_valid_field_name, is_valid_field_value
from echo_cache.model import CacheKey, Entry, StoredResponse, Vary

__all__ = [
    "FORMAT_VERSION",
    "MAX_INDEX_ROWS",
    "MAX_ROUTE",
    "VARIANT_ID_BYTES",
    "IndexRow",
    "decode",
    "decode_head",
    "decode_index",
    "decode_key",
    "encode",
    "encode_index",
    "encode_index_row",
    "key_digest",
    "kind_of",
    "pack",
    "unpack",
    "variant_id",
]

FORMAT_VERSION: Final = 1
"""
Readers refuse every other version. Any change of the bytes raises it, once a version was released, but appending to the
tables: what uses a new position is a miss for a reader that does not know it.
"""

VARIANT_ID_BYTES: Final = 16
MAX_INDEX_ROWS: Final = 64
MAX_ROUTE: Final = 256

_MAX_HEADERS: Final = 256
_MAX_VARY: Final = 64
_MAX_GROUPS: Final = 256
_MAX_ARRAY: Final = 2 * _MAX_HEADERS
_MAX_KEY_BYTES: Final = 256 * 1024
_MAX_HEAD_BYTES: Final = 256 * 1024
_MAX_ROW_BYTES: Final = 64 * 1024

_CHECKED_TAIL: Final = 64 * 1024
_COMPRESS_FROM: Final = 1024
_WORTH_IT: Final = 0.9  # design: compress only when it saves 10 %
# Level 1: on JSON and source text of 2 kB to 1 MB within a tenth of level 3's size, in 0.6 to 0.8 of its time.
_ZSTD_LEVEL: Final = 1

_MAGIC: Final[dict[bytes, Literal["entry", "index"]]] = {b"\xechoe": "entry", b"\xechoi": "index"}
_ENTRY_MAGIC, _INDEX_MAGIC = _MAGIC
_FRAME: Final = struct.Struct(">4sBBIIIII")
_WHOLE_FRAME: Final = struct.Struct(">4sBBIIIIII")
_CRC: Final = struct.Struct(">I")
_LENGTH: Final = struct.Struct(">I")
_FRAME_BYTES: Final = _WHOLE_FRAME.size
_ROW: Final = struct.Struct(">I16sdd")
_ZSTD_FLAG: Final = 1
_MAC_FLAG: Final = 2
_MAC_BYTES: Final = 16

_KEY_TYPES: Final = ([str, str, bytes, bytes, bytes], [str, str, type(None), bytes, bytes])

# The fixed part of a head: status, flags, generated_at, stored_at, fresh_until, retain_until. A struct, since it gives
# four floats that are floats in one step.
_FIXED: Final = struct.Struct(">HB4d")
# What its flags may be on the wire, and in memory.
_FLAGS: Final = 15
_FLAGS_IN_MEMORY: Final = 31
# How every head begins, in msgpack: an array of 2 to 9 parts, the first of which are bytes, which are the fixed part.
_BEGINNING: Final = struct.Struct(">BHHB4d")
_FIXED_IS_BYTES: Final = 0xC400 + _FIXED.size
# Without its fixed part a head is an array of one part less.
_REST_BEGINS: Final = {0x90 + parts: bytes([0x90 + parts - 1]) for parts in range(2, 10)}
# What follows the fixed part and the headers; what is omitted at the end has these values.
_DEFAULTS: Final = ((), 0, (), 0.0, 0.0, None, "")  # vary, mark, groups, two stale windows, client_ttl, route

# What `decode` reads again and again: heads without their fixed part, by their bytes. It saves 40 % of the time.
# Remembered when they are seen a second time, since to keep what is read once costs more than it can save: 0.4 us. Each
# is emptied when it is full, which needs no lock. At most 256 KiB of heads, whose objects are 6 MB at the very worst.
_RECENT_HEADS: Final = 512
_RECENT_HEAD_BYTES: Final = 512
_SEEN_HEADS: Final = 4_096
# Field names that are not in the table and were found valid: an app has few.
_RECENT_NAMES: Final = 512
_RECENT_NAME_BYTES: Final = 64

# Tables of version 1. Append only: a position is on the wire. Position 0-127 costs one byte, others three.
_NAMES: Final[tuple[bytes, ...]] = tuple(
    b"content-type content-length cache-control etag date last-modified vary expires content-encoding content-language "
    b"age server location link accept-ranges content-disposition content-location content-range set-cookie "
    b"access-control-allow-origin access-control-allow-credentials access-control-allow-headers "
    b"access-control-allow-methods access-control-expose-headers access-control-max-age strict-transport-security "
    b"content-security-policy content-security-policy-report-only x-content-type-options x-frame-options "
    b"x-xss-protection referrer-policy permissions-policy cross-origin-opener-policy cross-origin-embedder-policy "
    b"cross-origin-resource-policy cdn-cache-control surrogate-control cache-groups cache-group-invalidation "
    b"cache-status pragma via warning retry-after allow alt-svc server-timing timing-allow-origin x-request-id "
    b"x-correlation-id "
    b"x-process-time x-powered-by x-robots-tag x-ua-compatible x-dns-prefetch-control x-download-options "
    b"x-permitted-cross-domain-policies x-served-by x-cache x-cache-hits x-total-count x-ratelimit-limit "
    b"x-ratelimit-remaining x-ratelimit-reset deprecation sunset preference-applied content-digest repr-digest digest "
    b"accept-ch critical-ch accept-patch accept-post www-authenticate proxy-authenticate authentication-info "
    b"origin-agent-cluster report-to reporting-endpoints nel refresh sourcemap x-sourcemap speculation-rules "
    b"no-vary-search surrogate-key cache-tag x-varnish traceparent traceresponse x-amz-cf-id cf-cache-status cf-ray "
    # request fields, for vary
    b"accept accept-encoding accept-language accept-charset authorization cookie origin host user-agent referer "
    b"x-requested-with x-forwarded-proto x-forwarded-host dnt save-data sec-fetch-site sec-fetch-mode sec-fetch-dest "
    b"sec-ch-ua sec-ch-ua-mobile sec-ch-ua-platform hx-request x-api-version".split()
)
_VALUES: Final[tuple[bytes, ...]] = (
    b"",
    b"application/json",
    b"application/json; charset=utf-8",
    b"text/html; charset=utf-8",
    b"text/html",
    b"text/html; charset=UTF-8",
    b"text/plain; charset=utf-8",
    b"text/plain",
    b"text/css; charset=utf-8",
    b"text/css",
    b"text/javascript; charset=utf-8",
    b"text/javascript",
    b"application/javascript",
    b"application/xml",
    b"text/xml; charset=utf-8",
    b"application/problem+json",
    b"application/ld+json",
    b"application/vnd.api+json",
    b"application/octet-stream",
    b"application/pdf",
    b"application/rss+xml",
    b"application/atom+xml",
    b"application/msgpack",
    b"application/wasm",
    b"image/png",
    b"image/jpeg",
    b"image/gif",
    b"image/webp",
    b"image/avif",
    b"image/svg+xml",
    b"image/x-icon",
    b"image/vnd.microsoft.icon",
    b"font/woff2",
    b"gzip",
    b"br",
    b"zstd",
    b"deflate",
    b"identity",
    b"gzip, br",
    b"gzip, deflate",
    b"gzip, deflate, br",
    b"gzip, deflate, br, zstd",
    b"br, gzip",
    b"Accept-Encoding",
    b"accept-encoding",
    b"Accept",
    b"Accept-Language",
    b"Origin",
    b"Cookie",
    b"Authorization",
    b"Accept, Accept-Encoding",
    b"Accept-Encoding, Origin",
    b"Origin, Accept-Encoding",
    b"Accept-Encoding, Accept-Language",
    b"Accept-Language, Accept-Encoding",
    b"Accept-Encoding, Cookie",
    b"Cookie, Accept-Encoding",
    b"public",
    b"no-cache",
    b"max-age=0",
    b"max-age=60",
    b"max-age=300",
    b"max-age=600",
    b"max-age=3600",
    b"max-age=86400",
    b"max-age=31536000",
    b"public, max-age=0",
    b"public, max-age=30",
    b"public, max-age=60",
    b"public, max-age=120",
    b"public, max-age=300",
    b"public, max-age=600",
    b"public, max-age=3600",
    b"public, max-age=86400",
    b"public, max-age=604800",
    b"public, max-age=31536000",
    b"public, max-age=31536000, immutable",
    b"max-age=31536000, immutable",
    b"public, max-age=0, must-revalidate",
    b"max-age=0, must-revalidate",
    b"s-maxage=60",
    b"s-maxage=300",
    b"s-maxage=3600",
    b"*",
    b"bytes",
    b"none",
    b"nosniff",
    b"DENY",
    b"SAMEORIGIN",
    b"true",
    b"0",
    b"1",
    b"1; mode=block",
    b"no-referrer",
    b"same-origin",
    b"strict-origin-when-cross-origin",
    b"no-referrer-when-downgrade",
    b"same-site",
    b"cross-origin",
    b"require-corp",
    b"max-age=31536000; includeSubDomains",
    b"max-age=63072000; includeSubDomains; preload",
    b"uvicorn",
    b"hypercorn",
    b"granian",
    b"nginx",
    b"en",
    b"en-US",
    b"en-GB",
    b"de",
    b"fr",
    b"es",
    b"https",
    b"http",
)
_NAME_POSITION: Final = {name: position for position, name in enumerate(_NAMES)}
_VALUE_POSITION: Final = {value: position for position, value in enumerate(_VALUES)}
_NAME_AT: Final = dict(enumerate(_NAMES))  # dicts, since -1 is a position in a tuple
_VALUE_AT: Final = dict(enumerate(_VALUES))


class IndexRow(NamedTuple):
    """One variant in an index: its id, the times of its entry (epoch seconds), and the fields that select it."""

    variant: bytes
    stored_at: float
    retain_until: float
    vary: Vary


# --- the head: an entry without its body ------------------------------------------------------------------------------


_Parts: TypeAlias = tuple[
    int, tuple[tuple[bytes, bytes], ...], Vary, int, tuple[str, ...], float, float, float | None, str
]
"""Behind the fixed part of a head: its first byte, headers, vary, mark, groups, stale windows, client_ttl, route."""

_recent_heads: Final[dict[bytes, _Parts]] = {}
_seen_heads: Final[set[int]] = set()
_recent_names: Final[dict[bytes, bytes]] = {}


def pack(entry: Entry, *, shift: float = 0.0) -> bytes:
    """
    Return all of *entry* but its body; `unpack` is the inverse. A typical head with six headers has 130 to 220 bytes.

    *shift*: seconds to be added to the four times.

    Shape: a msgpack array of the fixed part, the headers, vary, mark, groups, the two stale windows, client_ttl and
    route, cut after the last that is not its default. Headers and vary are flat: name, value, name, value ... where a
    well-known name or value is its position in the table.
    Trusts what policy has checked (`unpack` does not). Raises CodecError for what the format cannot carry: times that
    are not finite, a mark outside -2**63 .. 2**128 - 1, more than 256 headers or groups, more than 64 vary fields,
    a route of more than 256 characters, or with some that cannot be printed.
    """
    response = entry.response
    name_position, value_position = _NAME_POSITION.get, _VALUE_POSITION.get
    flat = [
        part for name, value in response.headers for part in (name_position(name, name), value_position(value, value))
    ]
    vary, groups, mark, client_ttl, route = entry.vary, entry.groups, entry.mark, entry.client_ttl, entry.route
    while_revalidate, if_error = entry.stale_while_revalidate, entry.stale_if_error
    if len(flat) > _MAX_ARRAY or len(vary) > _MAX_VARY or len(groups) > _MAX_GROUPS:
        raise CodecError(
            f"an entry may have {_MAX_HEADERS} headers, {_MAX_VARY} vary fields and {_MAX_GROUPS} groups, "
            f"not {len(flat) // 2}, {len(vary)} and {len(groups)}"
        )
    if len(route) > MAX_ROUTE or not route.isprintable():
        raise CodecError(f"a route may have {MAX_ROUTE} printable characters, not {route!r:.300}")
    generated_at, stored_at = entry.generated_at, entry.stored_at
    fresh_until, retain_until = entry.fresh_until, entry.retain_until
    try:
        if shift:
            generated_at += shift
            stored_at += shift
            fresh_until += shift
            retain_until += shift
        if not isfinite(
            generated_at + stored_at + fresh_until + retain_until + while_revalidate + if_error + (client_ttl or 0.0)
        ):
            raise CodecError("the times of an entry must be finite numbers of seconds")
        fixed = _FIXED.pack(
            response.status,
            entry.always_validate
            | entry.never_stale << 1
            | entry.anonymous_only << 2
            | entry.own_etag << 3
            | entry.is_capped << 4,
            generated_at,
            stored_at,
            fresh_until,
            retain_until,
        )
        if client_ttl is None and not (vary or mark or groups or while_revalidate or if_error or route):
            return _packb((fixed, flat))
        row = (
            fixed,
            flat,
            _flat_vary(vary),
            mark if mark < 2**64 else mark.to_bytes(16, "big"),
            groups,
            _short(while_revalidate),
            _short(if_error),
            None if client_ttl is None else _short(client_ttl),
            route,
        )
        used = (
            9 if route
            else 8 if client_ttl is not None
            else 7 if if_error
            else 6 if while_revalidate
            else 5 if groups
            else 4 if mark
            else 3
        )  # fmt: skip
        return _packb(row[:used])
    except (TypeError, ValueError, OverflowError, struct.error) as error:
        raise CodecError(f"the entry cannot be encoded: {error}") from error


def unpack(head: bytes, body: bytes) -> Entry:
    """
    Return the entry whose head is *head*, with *body*; well-known names and values are shared objects.

    Raises CodecError for anything that `pack` does not make of a well-formed entry: other types and sizes, a status
    outside 200..599, times that are not finite, names that are no lower-case tokens, values with CR, LF or NUL.
    """
    if len(head) < _BEGINNING.size:
        raise CodecError("the head is too short")
    return _entry(head, 0, _parts(head[0], head[_BEGINNING.size :]), body, 0.0, _FLAGS_IN_MEMORY)


def _entry(raw: bytes, head_at: int, parts: _Parts, body: bytes, shift: float, most_flags: int) -> Entry:
    """Return the entry of the fixed part that begins at *head_at*, minus *shift*, and *parts*. Raises CodecError."""
    _, shape, status, flags, generated_at, stored_at, fresh_until, retain_until = _BEGINNING.unpack_from(raw, head_at)
    if not (
        shape == _FIXED_IS_BYTES
        and 200 <= status <= 599
        and flags <= most_flags
        and isfinite(generated_at + stored_at + fresh_until + retain_until)  # as `pack` asks it: of the sum
    ):
        raise CodecError("status, flags or a time of the head is out of range, or is none")
    if shift:
        generated_at -= shift
        stored_at -= shift
        fresh_until -= shift
        retain_until -= shift
    _, headers, vary, mark, groups, while_revalidate, if_error, client_ttl, route = parts
    # Without the named tuple's own __new__, which is Python: half the time.
    return tuple.__new__(
        Entry,
        (
            tuple.__new__(StoredResponse, (status, headers, body)),
            generated_at,
            stored_at,
            fresh_until,
            retain_until,
            vary,
            groups,
            mark,
            while_revalidate,
            if_error,
            flags & 1 != 0,
            flags & 2 != 0,
            flags & 4 != 0,
            flags & 8 != 0,
            client_ttl,
            flags & 16 != 0,
            route,
        ),
    )


def _parts(first: int, rest: bytes) -> _Parts:
    """
    Return what a head says behind its fixed part: *first* is its first byte, *rest* what follows the fixed part.

    Raises CodecError.
    """
    begins = _REST_BEGINS.get(first)
    if begins is None:
        raise CodecError("the head is no array of 2 to 9 parts")
    row = _unpackb(begins + rest)
    headers = _headers(row[0])
    if len(row) == 1:
        return (first, headers, *_DEFAULTS)
    vary, mark, groups, while_revalidate, if_error, client_ttl, route = row[1:] + _DEFAULTS[len(row) - 1 :]
    return (
        first,
        headers,
        _vary(vary),
        _mark(mark),
        _groups(groups),
        _seconds(while_revalidate),
        _seconds(if_error),
        None if client_ttl is None else _seconds(client_ttl),
        _route(route),
    )


def _recent_parts(first: int, rest: bytes) -> _Parts:
    """Return `_parts`, remembered. What was read before needs no second look, since the same bytes say the same."""
    known = _recent_heads.get(rest)
    if known is not None and known[0] == first:
        return known
    parts = _parts(first, rest)
    if hash(rest) not in _seen_heads:
        if len(_seen_heads) >= _SEEN_HEADS:
            _seen_heads.clear()
        _seen_heads.add(hash(rest))
    elif len(rest) <= _RECENT_HEAD_BYTES:
        if len(_recent_heads) >= _RECENT_HEADS:
            _recent_heads.clear()
        _recent_heads[rest] = parts
    return parts


def _packb(value: object) -> bytes:
    packed: bytes = msgpack.Packer().pack(value)  # what packb does, a call less
    return packed


def _unpackb(packed: bytes) -> Any:
    """
    Return the one msgpack value in *packed*, arrays as tuples. Raises CodecError.

    msgpack makes room for an array when it reads its length: the bound on that, and on nesting (its own, 1,024), bound
    what a lie can cost. Maps and extensions are never written here.
    """
    try:
        return msgpack.unpackb(packed, use_list=False, max_array_len=_MAX_ARRAY, max_map_len=0, max_ext_len=0)
    # Everything that its C and Python versions raise of themselves is a ValueError, or one of these from beneath it.
    except (ValueError, TypeError, OverflowError, RecursionError, MemoryError) as error:
        raise CodecError(f"not a msgpack value of ours: {error}") from error


def _short(seconds: float) -> float:
    """Return *seconds* as an int where that is the same: one to five bytes in place of nine."""
    whole = int(seconds)
    return whole if whole == seconds and -(2**31) <= whole < 2**32 else float(seconds)


def _seconds(value: Any) -> float:
    if (value.__class__ is not float and value.__class__ is not int) or not isfinite(value):
        raise CodecError("a duration is no finite number")
    return float(value)


def _headers(flat: Any) -> tuple[tuple[bytes, bytes], ...]:
    if flat.__class__ is not tuple or len(flat) % 2:
        raise CodecError("the headers are no array of names and values")
    names = _names(flat)
    try:
        values = [_VALUE_AT[value] if value.__class__ is int else value for value in flat[1::2]]
        # At once, for speed: the rule is one on single characters, and joining refuses all that is not bytes.
        valid = is_valid_field_value(b"".join(values))
    except (KeyError, TypeError) as error:
        raise CodecError("a header value is no bytes and no position in the table") from error
    if not valid:
        raise CodecError("a header value has CR, LF or NUL")
    return tuple(zip(names, values))  # noqa: B905  # they are as many, and to ask costs 0.15 us


def _names(flat: Any) -> list[bytes]:
    """Return the field names in *flat*, which are its even parts. Raises CodecError."""
    try:
        return [_NAME_AT[name] if name.__class__ is int else _recent_names[name] for name in flat[::2]]
    except (KeyError, TypeError):  # a name that was not seen lately, or is none
        return [_checked_name(name) for name in flat[::2]]


def _checked_name(name: Any) -> bytes:
    known = _NAME_AT.get(name) if name.__class__ is int else None
    if known is not None:
        return known
    if name.__class__ is not bytes or not is_valid_field_name(name) or name != name.lower():
        raise CodecError("a field name is no lower-case token and no position in the table")
    checked: bytes = name
    if len(checked) <= _RECENT_NAME_BYTES:
        if len(_recent_names) >= _RECENT_NAMES:
            _recent_names.clear()
        _recent_names[checked] = checked
    return checked


def _flat_vary(vary: Vary) -> list[bytes | int | None]:
    name_position, value_position = _NAME_POSITION.get, _VALUE_POSITION.get
    flat: list[bytes | int | None] = []
    for name, value in vary:
        flat += (name_position(name, name), None if value is None else value_position(value, value))
    return flat


def _vary(flat: Any) -> Vary:
    """Return the vary fields. Their values are compared and never sent, so any bytes will do. Raises CodecError."""
    if flat.__class__ is not tuple or len(flat) % 2 or len(flat) > 2 * _MAX_VARY:
        raise CodecError("vary is no array of names and values")
    try:
        values = [_VALUE_AT[value] if value.__class__ is int else value for value in flat[1::2]]
        b"".join([value for value in values if value is not None])  # the quickest way to see that all are bytes
    except (KeyError, TypeError) as error:
        raise CodecError("a vary value is no bytes and no position in the table") from error
    return tuple(zip(_names(flat), values, strict=True))


def _mark(mark: Any) -> int:
    if mark.__class__ is bytes and len(mark) == 16:
        return int.from_bytes(mark, "big")
    if mark.__class__ is not int:
        raise CodecError("the mark is no position in a log")
    position: int = mark
    return position


def _groups(groups: Any) -> tuple[str, ...]:
    if groups.__class__ is not tuple or len(groups) > _MAX_GROUPS:
        raise CodecError(f"the groups are no array of at most {_MAX_GROUPS}")
    for group in groups:
        if group.__class__ is not str:
            raise CodecError("a group is no string")
    names: tuple[str, ...] = groups
    return names


def _route(route: Any) -> str:
    if route.__class__ is not str or len(route) > MAX_ROUTE or not route.isprintable():
        raise CodecError(f"the route is no string of at most {MAX_ROUTE} printable characters")
    known: str = route
    return known


# --- keys -------------------------------------------------------------------------------------------------------------


def key_digest(key: CacheKey) -> str:
    """
    Return a name for *key*: 160 bits of BLAKE2b as 27 characters of [A-Za-z0-9_-].

    Two keys have one digest only by breaking the hash: what is hashed has the length and the type of each part.
    Raises CodecError for a key that cannot be serialised (a lone surrogate in its form or scheme).
    """
    return urlsafe_b64encode(blake2b(_key_bytes(key), digest_size=20, person=b"echo_cache key").digest())[:27].decode()


def variant_id(vary: Vary) -> bytes:
    """
    Return the id of the variant that *vary* selects, 16 bytes of BLAKE2b.

    Absent (None) and empty differ, and so do the same fields in another order: policy has one order for a response.
    """
    parts = [_LENGTH.pack(len(vary))]
    for name, value in vary:
        parts += (_LENGTH.pack(len(name)), name)
        parts += (b"\0",) if value is None else (b"\1", _LENGTH.pack(len(value)), value)
    return blake2b(b"".join(parts), digest_size=VARIANT_ID_BYTES, person=b"echo_cache vary").digest()


def _key_bytes(key: CacheKey) -> bytes:
    """Return the one serialised form of *key*. Raises CodecError."""
    try:
        packed: bytes = msgpack.Packer().pack(key)
    except (TypeError, ValueError, OverflowError) as error:
        raise CodecError(f"the key cannot be encoded: {error}") from error
    if len(packed) > _MAX_KEY_BYTES:
        raise CodecError(f"a key may have {_MAX_KEY_BYTES} bytes, not {len(packed)}")
    return packed


# --- the envelope -----------------------------------------------------------------------------------------------------


def kind_of(raw: bytes) -> Literal["entry", "index"] | None:
    """Return what *raw*, or a value that begins with it, claims to be; None: nothing of ours. Four bytes are enough."""
    return _MAGIC.get(bytes(raw[:4]))


def encode(
    key: CacheKey, entry: Entry, *, compress: bool = True, secret: bytes | None = None, shift: float = 0.0
) -> bytes:
    """
    Return *entry* under *key* as an envelope, for `decode`.

    *compress*: bodies from 1 kB on that are not encoded or compressed already are compressed when that saves 10 %,
    if the package zstandard is there. Takes about 2 ms for each MB of text.
    *secret*: sign it. Any length; whoever configures it refuses what is too short to be one.
    *shift*: seconds to be added to the four times (generated_at to retain_until), which are by another clock there.
    Raises CodecError for what the format cannot carry (see `pack`), and a key or a head over 256 KiB, or 4 GiB of body.
    """
    if entry.is_capped:
        entry = entry._replace(is_capped=False)
    response = entry.response
    body = tail = response.body
    packed_key, head = _key_bytes(key), pack(entry, shift=shift)
    if len(head) > _MAX_HEAD_BYTES or len(body) >= 2**32:
        raise CodecError(
            f"an entry may have {_MAX_HEAD_BYTES} bytes of head and {2**32 - 1} of body, "
            f"not {len(head)} and {len(body)}"
        )
    flags = 0 if secret is None else _MAC_FLAG
    if compress and len(body) >= _COMPRESS_FROM and _is_compressible(response.headers):
        compressed = _compress(body)
        if compressed is not None and len(compressed) <= len(body) * _WORTH_IT:
            tail, flags = compressed, flags | _ZSTD_FLAG
    frame = _FRAME.pack(
        _ENTRY_MAGIC, FORMAT_VERSION, flags, len(packed_key), len(head), len(body), len(tail), _tail_crc(tail)
    )
    mac = b"" if secret is None else _mac(secret, frame, packed_key, head, tail)
    crc = crc32(head, crc32(packed_key, crc32(mac, crc32(frame))))
    return b"".join((frame, _CRC.pack(crc), mac, packed_key, head, tail))


def decode(
    key: CacheKey, raw: bytes, *, max_body_bytes: int, secrets: Sequence[bytes] = (), shift: float = 0.0
) -> Entry:
    """
    Return the entry in the envelope *raw*, which must be one for *key*.

    *secrets*: one of them must have signed it, which is found out before anything is decompressed or parsed. Without
    secrets a signed entry is refused: nobody can tell what it is worth.
    *shift*: seconds to be subtracted from the four times, as `encode` has added them.

    Raises CodecError, and nothing else, for all other bytes: not ours, another version, flags or key, wrong lengths or
    checksums, trailing garbage, a body over *max_body_bytes* (before it is copied or decompressed), a compressed body
    without the package zstandard, or a head that `unpack` refuses. With *secrets* it is a ForgedError where the
    checksums are right, so that nothing was damaged, and the key or the signature is not.
    """
    flags, packed_key, head_at, tail_at, body_length, tail_crc = _open(raw, _ENTRY_MAGIC)
    if packed_key != _key_bytes(key):
        raise (ForgedError if secrets else CodecError)("the entry has another key")
    if body_length > max_body_bytes:
        raise CodecError(f"a body of {body_length} bytes is over the limit of {max_body_bytes}")
    tail = raw[tail_at:]
    # Of what is signed the MAC says more than the checksum, which then only tells damage from forgery.
    is_signed = bool(secrets) and _is_signed(raw, flags, secrets)
    if not is_signed and _tail_crc(tail) != tail_crc:
        raise CodecError("the checksum of the body is wrong")
    if secrets and not is_signed:
        raise ForgedError("the entry is not signed with a secret of ours")
    if flags & _MAC_FLAG and not secrets:
        raise CodecError("the entry is signed and there is no secret to check it with")
    if tail_at - head_at < _BEGINNING.size:
        raise CodecError("the head is too short")
    parts = _recent_parts(raw[head_at], raw[head_at + _BEGINNING.size : tail_at])
    return _entry(raw, head_at, parts, _decompress(tail, body_length) if flags & _ZSTD_FLAG else tail, shift, _FLAGS)


def decode_head(raw: bytes, *, shift: float = 0.0) -> tuple[Entry, int]:
    """
    Return the entry in the envelope *raw*, which may be cut anywhere behind the head, with an empty body; and how long
    its body is, as the client gets it.

    For who looks through what is stored: a signature is not checked, as it is one over the body too, so nothing that is
    found here may answer anybody. Raises CodecError as `decode` does.
    """
    _, _, head_at, tail_at, body_length, _ = _open(raw, None)
    if kind_of(raw) != "entry" or tail_at - head_at < _BEGINNING.size:
        raise CodecError("there is no head")
    parts = _parts(raw[head_at], raw[head_at + _BEGINNING.size : tail_at])
    return _entry(raw, head_at, parts, b"", shift, _FLAGS), body_length


def decode_key(raw: bytes) -> CacheKey:
    """
    Return the key in an envelope of either kind; *raw* may be cut anywhere behind the head (an index: behind the key).

    A signature is not checked: it is one over the body too. Raises CodecError as `decode` does.
    """
    _, packed_key, *_ = _open(raw, None)
    key = _unpackb(packed_key)
    if key.__class__ is not tuple or [part.__class__ for part in key] not in _KEY_TYPES or _packb(key) != packed_key:
        raise CodecError("the key is malformed")
    well_formed: CacheKey = key
    return well_formed


def _open(raw: bytes, magic: bytes | None) -> tuple[int, bytes, int, int, int, int]:
    """
    Return (flags, packed key, start of the head, start of the tail, body length, crc of the tail) of an envelope.

    *magic* names the kind and asks for the whole value; None takes either kind, cut anywhere behind the head.
    Raises CodecError.
    """
    if len(raw) < _FRAME_BYTES:
        raise CodecError(f"{len(raw)} bytes are too few for an envelope")
    (found, version, flags, key_length, head_length, body_length, tail_length, tail_crc, crc) = (
        _WHOLE_FRAME.unpack_from(raw)
    )
    if found != magic and (magic is not None or found not in _MAGIC):
        raise CodecError("the magic is not ours")
    if version != FORMAT_VERSION:
        raise CodecError(f"format version {version} is not {FORMAT_VERSION}")
    if found == _INDEX_MAGIC:
        well_formed = not (flags or head_length or body_length or tail_length)
    elif flags & _ZSTD_FLAG:
        well_formed = flags <= _ZSTD_FLAG | _MAC_FLAG and tail_length < body_length
    else:
        well_formed = flags in (0, _MAC_FLAG) and tail_length == body_length
    if not well_formed or key_length > _MAX_KEY_BYTES or head_length > _MAX_HEAD_BYTES:
        raise CodecError("flags and lengths are not those of an envelope")
    key_at = _FRAME_BYTES + _MAC_BYTES if flags & _MAC_FLAG else _FRAME_BYTES
    head_at = key_at + key_length
    tail_at = head_at + head_length
    if len(raw) < tail_at or (magic == _ENTRY_MAGIC and len(raw) != tail_at + tail_length):
        raise CodecError(f"{len(raw)} bytes are not the length that the envelope claims")
    if crc32(raw[_FRAME_BYTES:tail_at], crc32(raw[: _FRAME.size])) != crc:
        raise CodecError("the checksum of the head is wrong")
    return flags, raw[key_at:head_at], head_at, tail_at, body_length, tail_crc


def _tail_crc(tail: bytes) -> int:
    return crc32(tail if len(tail) <= _CHECKED_TAIL else memoryview(tail)[:_CHECKED_TAIL])


# --- signatures -------------------------------------------------------------------------------------------------------


def _is_signed(raw: bytes, flags: int, secrets: Sequence[bytes]) -> bool:
    """Tell whether one of *secrets* has signed the entry *raw*, whose frame is well-formed."""
    if not flags & _MAC_FLAG:
        return False
    behind = _FRAME_BYTES + _MAC_BYTES
    found, frame, rest = raw[_FRAME_BYTES:behind], raw[: _FRAME.size], memoryview(raw)[behind:]
    return any(compare_digest(found, _mac(secret, frame, rest)) for secret in secrets)


def _mac(secret: bytes, *parts: bytes | memoryview) -> bytes:
    mac = _keyed(secret).copy()
    for part in parts:
        mac.update(part)
    return mac.digest()


@lru_cache(maxsize=64)
def _keyed(secret: bytes) -> blake2b:
    """Return BLAKE2b keyed with *secret*, to be copied: half a microsecond less for each entry."""
    # A key of BLAKE2b has 64 bytes at most, a secret any number; hashing it first loses nothing of it.
    key = blake2b(secret, digest_size=64, person=b"echo_cache sign").digest()
    return blake2b(key=key, digest_size=_MAC_BYTES, person=b"echo_cache mac")


# --- compression ------------------------------------------------------------------------------------------------------

# Types whose bytes are compressed already. SVG, BMP and plain TTF are not. What is missing here costs a vain attempt.
_COMPRESSED_TYPE: Final = re.compile(
    rb"(?:image/(?!svg|bmp|x-ms-bmp)|video/|audio/|font/woff|application/(?:font-woff|zip|gzip|x-gzip|zstd|x-bzip|"
    rb"x-xz|x-7z|x-rar|vnd\.rar|x-brotli|epub|java-archive|vnd\.openxmlformats|vnd\.oasis))",
    re.IGNORECASE,
)

_threads = threading.local()  # zstd's contexts: 10 us to make, 1 to use again, and not for two threads at a time


@cache
def _zstandard() -> Any:
    """Return the module zstandard, or None where it is not installed; imported at the first need (14 ms)."""
    try:
        import zstandard
    except ImportError:
        return None
    return zstandard


def _is_compressible(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    for name, value in headers:
        if name == b"content-encoding" and value.strip().lower() != b"identity":
            return False
        if name == b"content-type" and _COMPRESSED_TYPE.match(value.strip()):
            return False
    return True


def _compress(body: bytes) -> bytes | None:
    """Return *body* as one zstd frame that says its size, or None where zstandard is not installed."""
    zstandard = _zstandard()
    if zstandard is None:
        return None
    compressor = getattr(_threads, "compressor", None)
    if compressor is None:
        compressor = _threads.compressor = zstandard.ZstdCompressor(level=_ZSTD_LEVEL, write_content_size=True)
    compressed: bytes = compressor.compress(body)
    return compressed


def _decompress(tail: bytes, body_length: int) -> bytes:
    """
    Return the *body_length* bytes that *tail*, one zstd frame, decompresses to. Raises CodecError.

    The frame must say that size itself: then zstd writes into a buffer of exactly that, without a window, and stops at
    its end. So a bomb costs no more than the body it claims to be.
    """
    zstandard = _zstandard()
    if zstandard is None:
        raise CodecError("the body is compressed and the package zstandard is not installed")
    decompressor = getattr(_threads, "decompressor", None)
    if decompressor is None:
        decompressor = _threads.decompressor = zstandard.ZstdDecompressor()
    try:
        if zstandard.get_frame_parameters(tail).content_size != body_length:
            raise CodecError("the compressed body has another size than the envelope says")
        body: bytes = decompressor.decompress(tail, allow_extra_data=False)
    except (zstandard.ZstdError, ValueError, MemoryError) as error:
        raise CodecError(f"the compressed body is damaged: {error}") from error
    return body


# --- the index of variants --------------------------------------------------------------------------------------------


def encode_index(key: CacheKey, rows: Iterable[IndexRow | tuple[bytes, float, float, Vary]] = ()) -> bytes:
    """
    Return the index of the variants of *key*: *rows* newest first, of which the first 64 are kept.

    Without rows it is the beginning of every index of that key, byte for byte. So a script in Redis needs to read no
    frame: it takes that beginning (HEAD), a row from `encode_index_row` (ROW) and the most rows to keep (MAX):

        local old, out, n = redis.call('GET', KEYS[1]), {HEAD, ROW}, 1
        if old and string.sub(old, 1, #HEAD) == HEAD then
          local at = #HEAD + 1
          while n < MAX and at + 39 <= #old do
            local a, b, c, d = string.byte(old, at, at + 3)
            local size = ((a * 256 + b) * 256 + c) * 256 + d
            if size < 40 or at + size - 1 > #old then break end
            if string.sub(old, at + 4, at + 19) ~= string.sub(ROW, 5, 20) then
              n = n + 1; out[n + 1] = string.sub(old, at, at + size - 1)
            end
            at = at + size
          end
        end
        local new = table.concat(out)

    An index is not signed, since that script changes it and must not know the secret. That is harmless: an index
    answers nobody, it only leads to entries, and these are signed with their key and say their own vary. Who forges one
    gains what deleting entries gains: misses, or a few reads more.
    Raises CodecError for what the format cannot carry.
    """
    packed_key = _key_bytes(key)
    frame = _FRAME.pack(_INDEX_MAGIC, FORMAT_VERSION, 0, len(packed_key), 0, 0, 0, 0)
    parts = [frame, _CRC.pack(crc32(packed_key, crc32(frame))), packed_key]
    parts += (encode_index_row(*row) for row in islice(rows, MAX_INDEX_ROWS))
    return b"".join(parts)


def encode_index_row(variant: bytes, stored_at: float, retain_until: float, vary: Vary) -> bytes:
    """
    Return one row of an index, to be put in front of the others.

     0   4  length of the row, these four bytes and the checksum included (big-endian, as all numbers)
     4  16  id of the variant
    20   8  stored_at, float64
    28   8  retain_until, float64
    36   -  vary, as msgpack
    -4   4  crc32 of all before it

    Raises CodecError for an id that has not 16 bytes, times that are not finite, more than 64 fields, over 64 KiB.
    """
    if len(variant) != VARIANT_ID_BYTES or len(vary) > _MAX_VARY or not isfinite(stored_at + retain_until):
        raise CodecError(
            f"a row has an id of {VARIANT_ID_BYTES} bytes, {_MAX_VARY} fields at most, and finite times, "
            f"not {variant!r}, {len(vary)}, {stored_at!r} and {retain_until!r}"
        )
    try:
        packed = _packb(_flat_vary(vary))
    except (TypeError, ValueError, OverflowError) as error:
        raise CodecError(f"the vary fields cannot be encoded: {error}") from error
    size = _ROW.size + len(packed) + _CRC.size
    if size > _MAX_ROW_BYTES:
        raise CodecError(f"a row may have {_MAX_ROW_BYTES} bytes, not {size}")
    row = _ROW.pack(size, variant, stored_at, retain_until) + packed
    return row + _CRC.pack(crc32(row))


def decode_index(key: CacheKey, raw: bytes) -> list[IndexRow]:
    """
    Return the rows of the index *raw*, which must be one for *key*: newest first, 64 at most, one for each variant.

    A damaged row is left out, and what follows a row whose length is damaged. Raises CodecError, and nothing else, when
    *raw* is no index of this version for this key.
    """
    _, packed_key, at, _, _, _ = _open(raw, _INDEX_MAGIC)
    if packed_key != _key_bytes(key):
        raise CodecError("the index has another key")
    rows: dict[bytes, IndexRow] = {}
    for _ in range(MAX_INDEX_ROWS):
        if len(raw) - at < _ROW.size + _CRC.size:
            break
        size, variant, stored_at, retain_until = _ROW.unpack_from(raw, at)
        if not _ROW.size + _CRC.size <= size <= min(len(raw) - at, _MAX_ROW_BYTES):
            break
        content, crc = raw[at : at + size - _CRC.size], _CRC.unpack_from(raw, at + size - _CRC.size)[0]
        at += size
        if crc32(content) != crc or variant in rows or not (isfinite(stored_at) and isfinite(retain_until)):
            continue
        try:
            vary = _vary(_unpackb(content[_ROW.size :]))
        except CodecError:
            continue
        rows[variant] = IndexRow(variant, stored_at, retain_until, vary)
    return list(rows.values())
