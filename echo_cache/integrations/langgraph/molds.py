"""
LangChain's messages, made again without the serde. The one rule: whoever gets them may change them, so each is made of
objects of its own, equal to those that the serde makes.

LangGraph's serde imports, calls and validates for each message. A mold keeps what cannot be changed of messages that
the serde has made once, their texts above all, and makes the containers around it anew: a quarter of the work.

Only LangChain's own messages are molded, one or a list of them, with plain data in them. LangGraph's serde reads plain
data as fast as it can be copied, and nobody knows what another class does when it is made, nor another serde.
"""

from __future__ import annotations

from collections.abc import Callable
from sys import getsizeof
from typing import Any, Final, TypeAlias

import msgpack  # type: ignore[import-untyped]  # ships no types
from langchain_core.messages import BaseMessage
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

__all__ = ["Mold", "can_mold"]

_Maker: TypeAlias = Callable[[], Any]

_CONSTANTS: Final = frozenset({type(None), bool, int, float, str, bytes})
_SHARED: Final = frozenset({type(None), bool})
_MESSAGES: Final = "langchain_core.messages."
# The code under which LangGraph's serde writes models of pydantic, as messages are. With another one nothing is molded.
_MODEL: Final = 5

# How deep containers are molded: far from where Python's stack ends, whoever calls.
_DEEPEST: Final = 50
# What they take in memory beside what is in them, in bytes, about.
_MESSAGE_BYTES: Final = 1_300
_CONTAINER_BYTES: Final = 350
_EMPTY_BYTES: Final = 120
# How many fields a message may have that its class does not know.
_MOST_EXTRA: Final = 8
# How many things a mold may have in each message, and further one for so many bytes that the serde wrote. Messages that
# are mostly small things are left to the serde, which reads those faster than they can be molded.
_ITEMS: Final = 64
_BYTES_FOR_AN_ITEM: Final = 32


def can_mold(serde: SerializerProtocol) -> bool:
    """Tell whether what *serde* makes may be molded: only LangGraph's own, which makes equal objects each time."""
    return type(serde) is JsonPlusSerializer and not getattr(serde, "_custom_unpack_ext_hook", True)


class Mold:
    """
    What makes messages like those that were in *value*.

    size: what it takes in memory, in bytes, about.
    """

    __slots__ = ("_make", "size")

    def __init__(self, make: _Maker, size: int) -> None:
        self._make = make
        self.size: Final = size

    def __repr__(self) -> str:
        return f"<Mold {self.size:,} bytes>"

    @classmethod
    def of(cls, kind: str, data: bytes, value: object) -> Mold | None:
        """
        Return a mold for *value*, which LangGraph's serde has made of *data*; None if there can be none.

        *value* stays the caller's, to give away.
        """
        if kind != "msgpack" or _MESSAGES.encode() not in data:
            return None
        builder = _Builder(len(data) // _BYTES_FOR_AN_ITEM)
        try:
            _require_messages(data)
            make = builder.messages(value)
        except _Unknown:
            return None
        return cls(make, builder.size)

    def make(self) -> Any:
        """Return messages that share nothing with others that can be changed."""
        return self._make()


class _Unknown(Exception):
    """Raised for what cannot be molded."""


def _require_messages(data: bytes) -> None:
    """
    Raise _Unknown if *data* has other objects than LangChain's messages with plain data in them.

    The serde puts plain data in the place of what it could not make this time; it may be able to the next time.
    """

    def in_message(code: int, _: bytes) -> object:
        raise _Unknown

    def message(code: int, inner: bytes) -> object:
        if code != _MODEL:
            raise _Unknown
        match msgpack.unpackb(inner, ext_hook=in_message, strict_map_key=False):
            case [str(module), *_] if module.startswith(_MESSAGES):
                return None
        raise _Unknown

    try:
        msgpack.unpackb(data, ext_hook=message, strict_map_key=False)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException):
        # What another library writes may be more than this one reads.
        raise _Unknown from None


class _Builder:
    """
    Builds makers, and adds up what they take in memory.

    items: how many there may be, besides those that each message may have.
    """

    def __init__(self, items: int) -> None:
        self._items_left = items
        self.size = 0

    def messages(self, value: Any) -> _Maker:
        """Return what makes messages like *value*, one or a list of them. Raises _Unknown."""
        if type(value) is not list:
            return self._message(value)
        self.size += getsizeof(value)
        makers = [self._message(message) for message in value]
        return lambda: [make() for make in makers]

    def _message(self, message: Any) -> _Maker:
        if not isinstance(message, BaseMessage) or not type(message).__module__.startswith(_MESSAGES):
            raise _Unknown
        self._items_left += _ITEMS
        self.size += _MESSAGE_BYTES
        extra = message.__pydantic_extra__ or {}
        if message.__pydantic_private__ or len(extra) > _MOST_EXTRA or self._parts(extra, 0):
            raise _Unknown
        self.size += getsizeof(extra) + 2 * sum(map(getsizeof, extra))
        model = message.__copy__()
        state = model.__dict__
        parts = self._parts(state, 0)
        for place, _ in parts:
            state[place] = None

        def make() -> BaseMessage:
            made = model.__copy__()
            state = made.__dict__
            for place, part in parts:
                state[place] = part()
            return made

        return make

    def _container(self, value: Any, depth: int) -> _Maker:
        kind = type(value)
        if (kind is not dict and kind is not list) or depth > _DEEPEST:
            raise _Unknown
        if not value:
            self.size += _EMPTY_BYTES
            return kind
        self.size += _CONTAINER_BYTES + getsizeof(value)
        container: Any = value.copy()
        if kind is dict:
            self.size += sum(map(getsizeof, container))
        parts = self._parts(container if kind is dict else dict(enumerate(container)), depth)
        if not parts:
            made: _Maker = container.copy
            return made
        for place, _ in parts:
            container[place] = None

        def make() -> Any:
            made = container.copy()
            for place, part in parts:
                made[place] = part()
            return made

        return make

    def _parts(self, items: dict[Any, Any], depth: int) -> list[tuple[Any, _Maker]]:
        """Return what makes those of *items* that can be changed, and their places. Raises _Unknown."""
        self._items_left -= len(items)
        if self._items_left < 0:
            raise _Unknown
        parts = []
        for place, item in items.items():
            if type(place) not in _CONSTANTS:
                raise _Unknown
            kind = type(item)
            if kind not in _CONSTANTS:
                parts.append((place, self._container(item, depth + 1)))
            elif kind not in _SHARED:
                self.size += getsizeof(item)
        return parts
