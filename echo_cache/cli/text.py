"""Text that others wrote, for a terminal. The one rule: nothing of it is obeyed, and none of it is long."""

from __future__ import annotations

from typing import Final

__all__ = ["shown"]

_MOST: Final = 100


def shown(text: str | bytes, most: int = _MOST) -> str:
    """Return *text* in printable ASCII, "?" for all else, cut to *most* characters."""
    if isinstance(text, bytes):
        text = text.decode("latin-1")
    printable = "".join(char if " " <= char <= "~" else "?" for char in text[:most])
    return printable + "..." if len(text) > most else printable
