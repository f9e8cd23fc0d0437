"""
How values become bytes and values again. The one rule: data only, never code; what does not decode is a miss.

    MSGPACK    None, bool, int, float, str, bytes, lists, dictionaries; tuples come back as lists, but for keys
    JSON       the same without bytes; the keys of dictionaries come back as strings
    typed(T)   what pydantic can validate: dataclasses, models, datetimes, tuples, sets ... come back as T
"""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

import msgpack  # type: ignore[import-untyped]  # ships no types

from echo_cache.errors import CodecError, ConfigurationError, NotStorable
from echo_cache.model import StoredResponse

__all__ = ["JSON", "MSGPACK", "Serializer", "from_response", "pair", "require_serializer", "to_response", "typed"]

# What is in the place of the status: a value, and None, which no serializer sees.
_VALUE: Final = 200
_NONE: Final = 204


class Serializer(Protocol):
    """Turns values into bytes and back. What either method raises costs a fetch and nothing else."""

    @property
    def media_type(self) -> str:
        """What is kept beside the bytes: bytes of another serializer are a miss."""
        ...

    def dumps(self, value: Any) -> bytes:
        """Return *value* as bytes."""
        ...

    def loads(self, data: bytes) -> Any:
        """Return the value in *data*, a new object each time."""
        ...


@dataclass(frozen=True, slots=True)
class _Functions:
    """A serializer made of two functions."""

    media_type: str
    dumps: Callable[[Any], bytes]
    loads: Callable[[bytes], Any]


def pair(serialize: Callable[[Any], bytes | str], deserialize: Callable[[bytes], Any]) -> Serializer:
    """Return a serializer made of two functions; what *serialize* returns as text is kept as UTF-8."""
    for name, function in (("serialize", serialize), ("deserialize", deserialize)):
        if not callable(function):
            raise ConfigurationError(f"{name} must be a function, not {function!r}")

    def dumps(value: Any) -> bytes:
        data: object = serialize(value)
        if isinstance(data, str):
            return data.encode()
        if not isinstance(data, bytes | bytearray | memoryview):
            raise TypeError(f"serialize must return bytes or text, not {type(data).__name__}")
        return bytes(data)

    return _Functions("application/octet-stream", dumps, deserialize)


def typed(type_: Any) -> Serializer:
    """
    Return a serializer for values of *type_*: a dataclass, a pydantic model, `list[User]`, `datetime | None` ...

    Values are validated when they are read: what was written by an older version of the type, and fits no more, is a
    miss. A value that would not come back as what it was is not kept: one with a SecretStr, an excluded field, a
    subclass with fields of its own. What is not looked at: a model's private attributes, which of its fields were set,
    and the zone of a datetime, beyond its offset.

    Raises ConfigurationError without pydantic (FastAPI brings it), and for what pydantic cannot handle.
    """
    try:
        from pydantic import PydanticUserError, TypeAdapter
    except ImportError as error:
        raise ConfigurationError("typed() needs pydantic: pip install pydantic") from error
    try:
        adapter = TypeAdapter(type_)
    except PydanticUserError as error:
        raise ConfigurationError(f"typed({type_!r}): {error}") from error
    # By the names of fields, whatever aliases they have for input and output. Before pydantic 2.11 only an alias for
    # both can be used.
    has_names = "by_name" in inspect.signature(adapter.validate_json).parameters
    options: dict[str, Any] = {"by_name": True, "by_alias": False} if has_names else {}

    # Not strictly: JSON has no tuples, sets, bytes and dates, and what was written was valid.
    def loads(data: bytes) -> Any:
        return adapter.validate_json(data, **options)

    def dumps(value: Any) -> bytes:
        # Computed fields are left out: they are none to be validated.
        data: bytes = adapter.dump_json(value, by_alias=not has_names, round_trip=True, warnings="error")
        # It would be one thing at a miss and another at a hit.
        back = loads(data)
        if type(back) is not type(value):
            raise NotStorable(f"a {type(value).__name__} would come back as a {type(back).__name__}")
        if not _is_like(back, value):
            raise NotStorable(f"a {type(value).__name__} would not come back as what it was")
        return data

    return _Functions("application/json; typed", dumps, loads)


def _is_like(one: Any, other: Any) -> bool:
    """Tell whether both are the same all the way down: fields are compared, not what classes say of equality."""
    kind = type(one)
    if kind is not type(other):
        return False
    names = getattr(kind, "__pydantic_fields__", None)
    if names is None and dataclasses.is_dataclass(kind):
        names = [field.name for field in dataclasses.fields(kind)]
    if names is not None:
        extra = [getattr(each, "__pydantic_extra__", None) for each in (one, other)]
        return _is_like(*extra) and all(_is_like(getattr(one, name), getattr(other, name)) for name in names)
    if isinstance(one, dict):
        return _is_like([*one.items()], [*other.items()])
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_is_like, one, other))
    if isinstance(one, float) and one != one:
        return bool(other != other)
    return bool(one == other)


def require_serializer(serializer: Any) -> None:
    """Raise ConfigurationError for what is no serializer."""
    sound = all(callable(getattr(serializer, method, None)) for method in ("dumps", "loads"))
    media_type = getattr(serializer, "media_type", None)
    if not sound or not isinstance(media_type, str) or not media_type.isascii() or not media_type.isprintable():
        raise ConfigurationError(
            f"serializer must be MSGPACK, JSON, typed(...), or have dumps, loads and a media_type; not {serializer!r}"
        )


def to_response(value: Any, serializer: Serializer) -> StoredResponse:
    """Return *value* as what is stored of it. Raises what the serializer raises, which does not see None."""
    if value is None:
        return StoredResponse(_NONE, (), b"")
    return StoredResponse(_VALUE, _fields_of(serializer), serializer.dumps(value))


def from_response(response: StoredResponse, serializer: Serializer) -> Any:
    """Return the value in *response*. Raises what the serializer raises, and CodecError for what is another's."""
    if response.status == _NONE:
        return None
    if response.status != _VALUE or response.headers != _fields_of(serializer):
        raise CodecError("the value is another serializer's")
    return serializer.loads(response.body)


def _fields_of(serializer: Serializer) -> tuple[tuple[bytes, bytes], ...]:
    return ((b"content-type", serializer.media_type.encode()),)


def _to_json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _from_msgpack(data: bytes) -> Any:
    # Lengths are bounded by the data itself. Any plain value may be a key, as in Python.
    try:
        return msgpack.unpackb(data, raw=False, strict_map_key=False, max_ext_len=0)
    except TypeError:
        # A list cannot be a key: it was a tuple.
        return msgpack.unpackb(
            data, raw=False, strict_map_key=False, max_ext_len=0, object_pairs_hook=_with_tuples_for_keys
        )


def _with_tuples_for_keys(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    return {_as_key(key): value for key, value in pairs}


def _as_key(key: Any) -> Any:
    return tuple([_as_key(part) for part in key]) if isinstance(key, list) else key


JSON: Final[Serializer] = _Functions("application/json", _to_json, json.loads)
MSGPACK: Final[Serializer] = _Functions("application/msgpack", msgpack.packb, _from_msgpack)
