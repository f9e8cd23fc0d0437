"""Field lines by name, read in one pass: policy asks for a dozen names of each response."""

from __future__ import annotations

from typing import TypeAlias

from echo_cache.model import Headers

__all__ = ["FieldMap", "JoinedFields", "field_map", "first_line", "joined", "joined_fields"]

FieldMap: TypeAlias = dict[bytes, list[bytes]]
"""The lines of each field, in the order in which they came."""

JoinedFields: TypeAlias = dict[bytes, bytes]
"""Each field as one value, its lines joined."""


def field_map(headers: Headers) -> FieldMap:
    """Return the values of *headers* by name, each list in the order in which the lines came."""
    lines: FieldMap = {}
    for name, value in headers:
        if name in lines:
            lines[name].append(value)
        else:
            lines[name] = [value]
    return lines


def joined_fields(headers: Headers) -> JoinedFields:
    """
    Return *headers* by name, repeated lines joined. RFC 9110 section 5.3.

    Most requests repeat no field, and for them this is half the cost of a field map.
    """
    single = dict(headers)
    if len(single) == len(headers):
        return single
    return {name: b", ".join(values) for name, values in field_map(headers).items()}


def joined(lines: FieldMap, name: bytes) -> bytes | None:
    """Return the field *name* as one value, None where it is absent. RFC 9110 section 5.3."""
    values = lines.get(name)
    if values is None:
        return None
    return values[0] if len(values) == 1 else b", ".join(values)


def first_line(headers: Headers, name: bytes) -> bytes | None:
    """Return the first line of *name*, None where it is absent: validators and lengths are single-valued."""
    for line_name, value in headers:
        if line_name == name:
            return value
    return None
