"""
Checkpoints as bytes. The one rule: what PostgreSQL has is kept as it is there, and what Redis has is believed in
nothing that is not checked.

A value is a frame around msgpack:

    4 bytes   magic: EC 68 6F, then 6C unsigned or 6D signed
    16 bytes  the token of the generation
    16 bytes  MAC, if signed: keyed BLAKE2b over magic, token and body
    body      msgpack, one array (see `Body`): the full key, checkpoint and metadata as JSON, which they are in
              PostgreSQL, and the rest as the saver's serde wrote it

What the serde wrote is never decoded to be cached: `Untouched` hands it through as it comes from PostgreSQL. So what is
encrypted there is encrypted here, and savers with other allowlists read the same value each in its own way.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from hmac import compare_digest
from itertools import product
from typing import Any, Final, NamedTuple, TypeAlias

import msgpack  # type: ignore[import-untyped]  # ships no types
from langgraph.checkpoint.base import CheckpointTuple
from langgraph.checkpoint.serde.base import SerializerProtocol

from echo_cache.errors import CodecError, ForgedError, NotStorable

__all__ = [
    "TOKEN_BYTES",
    "Body",
    "Key",
    "Raw",
    "Untouched",
    "body_of",
    "checkpoint_of",
    "encode",
    "is_of",
    "loaded",
    "read",
]

TOKEN_BYTES: Final = 16

_UNSIGNED: Final = b"\xechol"
_SIGNED: Final = b"\xechom"
_MAGIC_BYTES: Final = 4
_TOKEN_AT: Final = slice(_MAGIC_BYTES, _MAGIC_BYTES + TOKEN_BYTES)
_MAC_BYTES: Final = 16

_Parts: TypeAlias = list[Any]


class Key(NamedTuple):
    """What was asked for; *checkpoint_id* None: the latest of the namespace."""

    thread_id: str
    checkpoint_ns: str
    checkpoint_id: str | None


@dataclass(frozen=True, slots=True)
class Raw:
    """What the serde wrote: the name of a format, and bytes of it."""

    kind: str
    data: bytes


class Untouched:
    """A serde that decodes nothing: it gives `Raw`, and takes it back where an old checkpoint is brought up to date."""

    def __init__(self, serde: SerializerProtocol) -> None:
        self._serde = serde

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        """Return *data*, as it is."""
        return Raw(*data)

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        """Return *obj*, which may be a list of Raw, as the serde writes it."""
        if isinstance(obj, list):
            obj = [self._serde.loads_typed((one.kind, one.data)) if isinstance(one, Raw) else one for one in obj]
        return self._serde.dumps_typed(obj)


class Body(NamedTuple):
    """What is in the array, in this order. None of it is changed by whoever reads it."""

    thread_id: str
    checkpoint_ns: str
    asked_id: str | None
    filled_at: float
    checkpoint_id: str
    parent_id: str | None
    checkpoint: bytes  # JSON; null in place of the channel values that are in `blobs`
    metadata: bytes  # JSON
    blobs: _Parts  # [channel, kind, data]
    writes: _Parts  # [task, channel, kind, data]


# The types of the parts; the third and the sixth may be None.
_TYPES: Final = frozenset(
    (str, str, asked, float, str, parent, bytes, bytes, list, list)
    for asked, parent in product((str, type(None)), repeat=2)
)
_BLOB: Final = [str, str, bytes]
_WRITE: Final = [str, str, str, bytes]


def loaded(saved: CheckpointTuple, load: Callable[[Raw], Any]) -> CheckpointTuple:
    """Return *saved* with what *load* makes of each Raw. Raises whatever that raises."""
    values = saved.checkpoint["channel_values"]
    for channel, value in values.items():
        if isinstance(value, Raw):
            values[channel] = load(value)
    writes = [
        (task, channel, load(value) if isinstance(value, Raw) else value)
        for task, channel, value in saved.pending_writes or ()
    ]
    return saved._replace(pending_writes=writes)


# What packing raises for what it cannot carry.
_UNFIT: Final = (TypeError, ValueError, LookupError, AttributeError, OverflowError, RecursionError)


def encode(body: Body, token: bytes, secret: bytes | None) -> bytes:
    """Return *body* as a value in the generation *token*. Raises NotStorable for what the format cannot carry."""
    try:
        packed: bytes = msgpack.packb(tuple(body), use_bin_type=True)
    except _UNFIT as error:
        raise NotStorable(f"the checkpoint cannot be kept in Redis: {error}") from error
    if secret is None:
        return b"".join((_UNSIGNED, token, packed))
    return b"".join((_SIGNED, token, _mac(secret, token, packed), packed))


def body_of(key: Key, filled_at: float, saved: CheckpointTuple) -> Body:
    """
    Return the parts of *saved*, which holds Raw and was asked for by *key* at *filled_at*, in epoch seconds.

    Raises NotStorable for what the format cannot carry exactly, and for pickles.
    """
    try:
        return _body(key, filled_at, saved)
    except _UNFIT as error:
        raise NotStorable(f"the checkpoint cannot be kept in Redis: {error}") from error


def _body(key: Key, filled_at: float, saved: CheckpointTuple) -> Body:
    values: Mapping[str, Any] = saved.checkpoint["channel_values"]
    inline = {channel: None if isinstance(value, Raw) else value for channel, value in values.items()}
    blobs = [[channel, value.kind, value.data] for channel, value in values.items() if isinstance(value, Raw)]
    writes = [[task, channel, value.kind, value.data] for task, channel, value in saved.pending_writes or ()]
    own = saved.config["configurable"]
    if (own["thread_id"], own["checkpoint_ns"]) != key[:2] or key.checkpoint_id not in (None, own["checkpoint_id"]):
        raise NotStorable("the checkpoint is not the one that was asked for")
    parent = saved.parent_config
    body = Body(
        *key,
        filled_at,
        own["checkpoint_id"],
        None if parent is None else parent["configurable"]["checkpoint_id"],
        _json({**saved.checkpoint, "channel_values": inline}),
        _json(saved.metadata),
        blobs,
        writes,
    )
    _require_types(body)
    return body


def is_of(token: bytes, raw: bytes) -> bool:
    """Tell whether the value *raw* says that it is of the generation *token*."""
    return raw[_TOKEN_AT] == token


def read(key: Key, token: bytes, raw: bytes, secrets: Sequence[bytes]) -> Body:
    """
    Return the parts of the value *raw*, if it is one for *key* in the generation *token*.

    *secrets*: one of them must have signed it, which is found out before anything is parsed. Without secrets a signed
    value is refused: nobody can tell what it is worth. Raises CodecError, and nothing else, for all other bytes; a
    ForgedError where the signature is missing or wrong.
    """
    opened = _opened(raw, token, secrets)
    try:
        parts = msgpack.unpackb(opened, raw=False, use_list=True, strict_map_key=True)
    except (ValueError, RecursionError, MemoryError, msgpack.UnpackException) as error:
        raise CodecError(f"the value is not msgpack: {error}") from error
    if type(parts) is not list or len(parts) != len(Body._fields):
        raise CodecError("the value has other parts than a checkpoint")
    body = Body(*parts)
    try:
        _require_types(body)
    except TypeError as error:
        raise CodecError(f"the value has another shape: {error}") from error
    if body[:3] != key or body.asked_id not in (None, body.checkpoint_id):
        raise CodecError("the value has another key")
    return body


def checkpoint_of(body: Body) -> CheckpointTuple:
    """Return the checkpoint in *body*, with Raw where the serde wrote. Raises CodecError for what is no checkpoint."""
    checkpoint, metadata = _object(body.checkpoint), _object(body.metadata)
    values = checkpoint.get("channel_values")
    if type(values) is not dict:
        raise CodecError("the checkpoint has no channel values")
    writes = [(task, channel, Raw(kind, data)) for task, channel, kind, data in body.writes]
    for channel, kind, data in body.blobs:
        if values.get(channel, 0) is not None:
            raise CodecError("the checkpoint has no place for a channel")
        values[channel] = Raw(kind, data)
    place = {"thread_id": body.thread_id, "checkpoint_ns": body.checkpoint_ns}
    parent = None if body.parent_id is None else {"configurable": {**place, "checkpoint_id": body.parent_id}}
    shaped: Any = (
        {"configurable": {**place, "checkpoint_id": body.checkpoint_id}},
        checkpoint,
        metadata,
        parent,
        writes,
    )
    return CheckpointTuple(*shaped)


def _require_types(body: Body) -> None:
    """Raise TypeError if a part of *body* is of another type than it must be, or a pickle."""
    if tuple(map(type, body)) not in _TYPES:
        raise TypeError("a part is of another type than it must be")
    for parts, shape in ((body.blobs, _BLOB), (body.writes, _WRITE)):
        for part in parts:
            if type(part) is not list or [*map(type, part)] != shape:
                raise TypeError("what the serde wrote is not bytes under a name")
            # Also "pickle+aes", of an EncryptedSerializer. The kind is the last but one in both.
            if "pickle" in part[-2].lower():
                raise TypeError("it has pickles, which are never read from Redis")


# --- JSON -------------------------------------------------------------------------------------------------------------

# Not msgpack: numbers of jsonb have any size, and JSON says them exactly.


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), check_circular=False).encode()


def _object(raw: bytes) -> dict[str, Any]:
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError, MemoryError) as error:
        raise CodecError(f"a part of the value is not JSON: {error}") from error
    if type(value) is not dict:
        raise CodecError("a part of the value is no JSON object")
    return value


# --- signatures -------------------------------------------------------------------------------------------------------


def _opened(raw: bytes, token: bytes, secrets: Sequence[bytes]) -> memoryview:
    """Return the body of *raw*, which is of the generation *token* and rightly signed. Raises CodecError."""
    magic, rest = raw[:_MAGIC_BYTES], memoryview(raw)[_TOKEN_AT.stop :]
    if magic not in (_SIGNED, _UNSIGNED):
        raise CodecError("the value is not ours, or of another version")
    if not is_of(token, raw):
        raise CodecError("the value is of another generation")
    if not secrets:
        if magic == _SIGNED:
            raise CodecError("the value is signed and there is no secret to check it with")
        return rest
    mac, body = bytes(rest[:_MAC_BYTES]), rest[_MAC_BYTES:]
    if magic == _UNSIGNED or not any(compare_digest(mac, _mac(secret, token, body)) for secret in secrets):
        raise ForgedError("the value is not signed with a secret of ours")
    return body


def _mac(secret: bytes, token: bytes, body: bytes | memoryview) -> bytes:
    mac = _keyed(secret).copy()
    mac.update(_SIGNED)
    mac.update(token)
    mac.update(body)
    return mac.digest()


@lru_cache(maxsize=64)
def _keyed(secret: bytes) -> blake2b:
    """Return BLAKE2b keyed with *secret*, to be copied. Entries of the HTTP cache are signed with another key."""
    key = blake2b(secret, digest_size=64, person=b"echo_cache lgkey").digest()
    return blake2b(key=key, digest_size=_MAC_BYTES, person=b"echo_cache lgmac")
