"""Text that others wrote, for people. The one rule: nothing of it is obeyed by a terminal."""

from __future__ import annotations

from typing import Final

__all__ = ["shown"]

_MOST: Final = 100


def shown(text: object, most: int | None = _MOST) -> str:
    r"""
    Return *text*, cut to *most* characters, with control characters written out: \x1b and the like.

    Octets are taken for Latin-1. None: it is not cut.
    """
    text = text.decode("latin-1") if isinstance(text, bytes) else str(text)
    more = most is not None and len(text) > most
    if more:
        text = text[:most]
    if not text.isprintable():
        text = "".join([char if char.isprintable() else _escaped(char) for char in text])
    return text + "..." if more else text


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")
