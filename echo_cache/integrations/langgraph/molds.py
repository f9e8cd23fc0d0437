"""
Checkpoints that are made again and again. The one rule: whoever gets one may change it, so each is made of objects of
its own, equal to those that the serde would make.

A mold is built once, from what the serde made, and keeps of it what nobody can change: texts, numbers, and which
containers they were in. It makes LangChain's messages in a quarter of the time that the serde takes, which imports,
calls and validates for each of them.

Only plain data and LangChain's own messages are molded, and only what LangGraph's own serde wrote: nobody knows what
another class does when it is made. The serde makes the rest each time. So what is encrypted in Redis is not remembered
in clear.
"""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Callable, Iterable
from functools import partial
from sys import getsizeof
from typing import Any, Final, TypeAlias

from langchain_core.messages import BaseMessage
from langgraph.checkpoint.base import CheckpointTuple
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from echo_cache.integrations.langgraph.wire import Raw

__all__ = ["Mold"]

_Maker: TypeAlias = Callable[[], Any]
# Where in a container makers put what they make.
_Parts: TypeAlias = list[tuple[Any, _Maker]]

# By their exact types: a subclass may have something that can be changed.
_CONSTANTS: Final = frozenset(
    {
        *(type(None), bool, int, float, str, bytes, uuid.UUID),
        *(datetime.date, datetime.datetime, datetime.time, datetime.timedelta),
    }
)
# The formats in which LangGraph's serde writes objects.
_FORMATS: Final = frozenset({"json", "msgpack", "null"})
_MESSAGES: Final = "langchain_core.messages."

# How deep containers are molded: far from where Python's stack ends, whoever calls.
_DEEPEST: Final = 50
# What a maker takes in memory: a function with its cells.
_MAKER_BYTES: Final = 200


class Mold:
    """
    What makes checkpoints like one that was read.

    size: what it takes in memory, in bytes, about.
    """

    __slots__ = ("_make", "size")

    def __init__(self, make: _Maker, size: int) -> None:
        self._make = make
        self.size: Final = size

    def __repr__(self) -> str:
        return f"<Mold {self.size:,} bytes>"

    @classmethod
    def of(cls, saved: CheckpointTuple, serde: SerializerProtocol) -> Mold | None:
        """
        Return a mold for *saved*, which has Raw where *serde* wrote; None if there can be none.

        Raises what the serde raises.
        """
        builder = _Builder(serde)
        try:
            make = builder.maker(tuple(saved), 0)
        except _Unknown:
            return None
        assert make is not None  # a checkpoint has containers
        return cls(make, builder.size)

    def make(self) -> CheckpointTuple:
        """Return a checkpoint that shares nothing with others that can be changed. Raises what the serde raises."""
        return CheckpointTuple(*self._make())


class _Unknown(Exception):
    """Raised for what cannot be molded."""


class _Builder:
    """Builds makers, and adds up what they take in memory."""

    def __init__(self, serde: SerializerProtocol) -> None:
        self._serde = serde
        self._is_known = type(serde) is JsonPlusSerializer
        self.size = 0

    def maker(self, value: Any, depth: int) -> _Maker | None:
        """Return what makes objects like *value*, None if it can be had by all. Raises _Unknown."""
        self.size += getsizeof(value)
        kind = type(value)
        if kind in _CONSTANTS:
            return None
        if depth > _DEEPEST:
            raise _Unknown
        self.size += _MAKER_BYTES
        if kind is dict:
            return _filler(value.copy(), self._parts(value.items(), depth))
        if kind is list:
            return _filler(value.copy(), self._parts(enumerate(value), depth))
        if kind is tuple:
            parts = self._parts(enumerate(value), depth)
            if not parts:
                return None
            fill = _filler(list(value), parts)
            return lambda: tuple(fill())
        if kind is Raw:
            return self._raw(value, depth)
        if isinstance(value, BaseMessage) and kind.__module__.startswith(_MESSAGES):
            return self._message(value, depth)
        raise _Unknown

    def _parts(self, items: Iterable[tuple[object, object]], depth: int) -> _Parts:
        """Return what makes those of *items* that not everybody can have, and where they are."""
        parts = []
        for place, item in items:
            if type(place) not in _CONSTANTS:
                raise _Unknown
            self.size += getsizeof(place)
            make = self.maker(item, depth + 1)
            if make is not None:
                parts.append((place, make))
        return parts

    def _message(self, message: BaseMessage, depth: int) -> _Maker:
        extra = message.__pydantic_extra__ or {}
        if message.__pydantic_private__ or self._parts(extra.items(), depth):
            raise _Unknown
        parts = self._parts(message.__dict__.items(), depth)
        model = message.__copy__()
        for place, _ in parts:
            model.__dict__[place] = None

        def make() -> BaseMessage:
            made = model.__copy__()
            for place, part in parts:
                made.__dict__[place] = part()
            return made

        return make

    def _raw(self, raw: Raw, depth: int) -> _Maker:
        typed, size = (raw.kind, raw.data), self.size
        if self._is_known and raw.kind in _FORMATS:
            value = self._serde.loads_typed(typed)
            try:
                return self.maker(value, depth) or (lambda: value)
            except _Unknown:
                pass
        self.size = size + len(raw.data)
        return partial(self._serde.loads_typed, typed)


def _filler(container: Any, parts: _Parts) -> _Maker:
    """Return what makes copies of *container* with *parts* made anew."""
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
