"""Keys made of a function's arguments. The one rule: arguments that are spelled differently make different keys."""

from __future__ import annotations

import enum
import inspect
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from string import Formatter
from typing import Any, Final
from uuid import UUID

from echo_cache.errors import ConfigurationError

__all__ = ["KeyTemplate"]

# What has one short spelling. Others would make keys like "<User object at 0x7f...>", each of them used once.
_SCALARS: Final = (str, int, float, UUID, Decimal, date, enum.Enum)


class KeyTemplate:
    """
    A template such as "user:{user_id}", filled from the arguments of *function*.

    In a key with two fields or more, what stands between them is percent-encoded within values, and "%" always is, so
    that a value cannot be taken for the text around it: "user:{a}:{b}" gives other keys for ("1:2", "3") and ("1",
    "2:3"). *is_key* is false for tags, which stay as they are.

    Raises ConfigurationError for a template that names what the function does not have, has formats, or in which two
    fields follow each other with nothing between that could part them.
    """

    def __init__(self, template: str, function: Callable[..., Any], *, is_key: bool = True) -> None:
        self._template = template
        self._signature = inspect.signature(function)
        try:
            parsed = list(Formatter().parse(template))
        except ValueError as error:
            raise ConfigurationError(f"{template!r} is no template: {error}") from None
        self._parts: list[tuple[str, str | None]] = []
        parting = {"%"} if is_key else set()
        for text, name, spec, conversion in parsed:
            if spec or conversion:
                raise ConfigurationError(f"{template!r}: fields have no format here; give a function as key=")
            if name is not None:
                self._require_parameter(name)
            if is_key and name is not None and any(named is not None for _, named in self._parts):
                between = {letter for letter in text if not letter.isalnum() and letter != "%"}
                if not between:
                    raise ConfigurationError(
                        f"{template!r}: put something like ':' between two fields, or different values make one key"
                    )
                parting |= between
            self._parts.append((text, name))
        self._escapes = str.maketrans({letter: f"%{ord(letter):02X}" for letter in parting})
        self._none = "%None" if is_key else "None"

    def __repr__(self) -> str:
        return f"<KeyTemplate {self._template!r}>"

    def fill(self, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> str:
        """Return the key for these arguments. Raises TypeError for those that the function does not take."""
        bound = self._signature.bind(*arguments, **keywords)
        bound.apply_defaults()
        values = bound.arguments
        formatter = Formatter()
        return "".join(
            text if name is None else text + self._spelled(name, formatter.get_field(name, (), values)[0])
            for text, name in self._parts
        )

    def _require_parameter(self, name: str) -> None:
        first = name.partition(".")[0].partition("[")[0]
        parameter = self._signature.parameters.get(first)
        if parameter is None or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise ConfigurationError(
                f"{self._template!r} names {first!r}; the function has {sorted(self._signature.parameters)}"
            )

    def _spelled(self, name: str, value: Any) -> str:
        if value is None:
            return self._none  # no text has this spelling
        if not isinstance(value, _SCALARS):
            raise TypeError(
                f"a key cannot be made of {name}, a {type(value).__name__}: name an attribute of it ({{{name}.id}}), "
                "or give a function as key="
            )
        return str(value.value if isinstance(value, enum.Enum) else value).translate(self._escapes)
