"""
The invalidation log's entries as bytes. The one rule: what cannot be understood is said to be so, and nothing is run.

Whoever can write to Redis can invalidate, and can no more than that: an entry that makes no sense is taken for one that
invalidates who knows what.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, TypeAlias

import msgpack  # type: ignore[import-untyped]  # ships no types

from echo_cache.coordination.log import position_of
from echo_cache.coordination.marks import Invalidation, Kind
from echo_cache.errors import CodecError, StoreError

__all__ = ["Entries", "appended", "decode_marks", "encode_marks", "entries", "of_one_stream", "opened"]

Entries: TypeAlias = list[tuple[bytes, dict[bytes, bytes]]]
"""Entries of a stream: ID and fields."""

_VERSION: Final = 1


def encode_marks(marks: Sequence[Invalidation]) -> list[bytes]:
    """
    Return *marks* as the payloads of entries of the stream.

    One each: so the number of entries that the stream keeps bounds what it takes. A reader takes several in one.
    Never raises: what is no text (a lone surrogate) is written as "?", as no stored response can have such a tag.
    """
    return [
        msgpack.packb(
            [_VERSION, [[mark.kind.value, mark.shortened().target, mark.soft]]],
            use_bin_type=True,
            unicode_errors="replace",
        )
        for mark in marks
    ]


def decode_marks(payload: bytes) -> list[Invalidation]:
    """Return the marks of one entry of the stream. Raises CodecError for what is none of this version."""
    try:
        version, rows = msgpack.unpackb(payload, raw=False, use_list=False, max_ext_len=0)
        if version != _VERSION:
            raise CodecError(f"an entry of version {version!r:.20}")
        return [_mark(*row) for row in rows]
    except CodecError:
        raise
    except Exception as error:
        raise CodecError(f"not marks: {type(error).__name__}") from error


_SHAPES: Final[dict[Kind, tuple[tuple[type, ...], ...]]] = {
    Kind.KEY: ((str,), (str,), (bytes, type(None)), (bytes,), (bytes,)),
    Kind.PATH: ((bytes,), (bytes,)),
    Kind.ORIGIN_GROUP: ((str,), (bytes, type(None)), (str,)),
    Kind.PREFIX: ((str, type(None)), (bytes, type(None)), (bytes,)),
}


def _mark(kind: Any, target: Any, soft: Any) -> Invalidation:
    named = Kind(kind)
    if not isinstance(soft, bool):
        raise CodecError("softness is yes or no")
    shape = _SHAPES.get(named)
    if named is Kind.ALL:
        sound = target is None
    elif named is Kind.GROUP:
        sound = isinstance(target, str)
    else:
        assert shape is not None
        sound = (isinstance(target, bytes) and named in (Kind.KEY, Kind.PATH, Kind.ORIGIN_GROUP)) or (
            isinstance(target, tuple)
            and len(target) == len(shape)
            and all(isinstance(part, types) for part, types in zip(target, shape, strict=True))
        )
    if not sound:
        raise CodecError(f"not the target of a {named}")
    return Invalidation(named, target, soft)


def opened(reply: object) -> tuple[bool, bytes, bytes, float]:
    """
    Return whether the ID is in the stream still, the first ID, the run, and how many milliseconds an ID may have.

    As OPEN replies. Raises StoreError.
    """
    match reply:
        case [int(known), bytes(first), bytes(run), bytes(latest)] if _is_id(first) and latest.isdigit():
            return bool(known), first, run, float(latest)
    raise StoreError("the server replied with something else than the state of the log")


def appended(reply: object) -> tuple[bytes, Entries, bool]:
    """
    Return the ID of what was appended, what is new before it and with it, and whether what is known was there.

    As APPEND replies. Raises StoreError.
    """
    match reply:
        case [bytes(log_id), list(news), int(known)] if _is_id(log_id):
            return log_id, entries(news), bool(known)
    raise StoreError("the server replied with something else than the ID of what was appended")


def of_one_stream(reply: object) -> Entries:
    """Return what XREAD replies of one stream. Raises StoreError."""
    match reply:
        case [[_, news]]:
            return entries(news)
    raise StoreError("the server replied with something else than the news of one stream")


def entries(reply: object) -> Entries:
    """Return what XRANGE replies. Raises StoreError."""
    if not isinstance(reply, list):
        raise StoreError("the server replied with something else than entries of the log")
    found = []
    for each in reply:
        match each:
            case [bytes(log_id), list(flat)] if len(flat) % 2 == 0 and _is_id(log_id):
                found.append((log_id, dict(zip(flat[::2], flat[1::2], strict=True))))
            case _:
                raise StoreError("the server replied with something else than entries of the log")
    return found


def _is_id(log_id: bytes) -> bool:
    try:
        position_of(log_id)
    except ValueError:
        return False
    return True
