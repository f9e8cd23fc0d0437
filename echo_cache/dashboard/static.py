"""The files of the page: a fixed table, read once. What is not in it is not there."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from importlib import resources
from typing import Final, NamedTuple

__all__ = ["LOGIN", "PAGE", "StaticFile", "static_files"]

PAGE: Final = "index.html"
LOGIN: Final = "login.html"

_TYPES: Final = {
    "css": "text/css; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}


class StaticFile(NamedTuple):
    """A file as it is sent."""

    content: bytes
    content_type: str
    etag: str


@functools.cache
def static_files() -> Mapping[str, StaticFile]:
    """Return the files by their names."""
    found = {}
    for file in resources.files("echo_cache.dashboard").joinpath("static").iterdir():
        content_type = _TYPES.get(file.name.rpartition(".")[2])
        if content_type is not None:
            content = file.read_bytes()
            digest = hashlib.sha256(content).hexdigest()[:16]
            found[file.name] = StaticFile(content, content_type, f'"{digest}"')
    return found
