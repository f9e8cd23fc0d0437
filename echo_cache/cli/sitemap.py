"""
Which URLs a file names: a list of them, or a sitemap. The one rule: a hostile file costs what its bounds say, no more.

No document type is read, so there are no entities that could grow or lead elsewhere. Nothing is fetched here.
"""

from __future__ import annotations

import zlib
from typing import Final, NamedTuple
from xml.parsers import expat

from echo_cache.cli.text import shown
from echo_cache.cli.web import flaw_of
from echo_cache.errors import ConfigurationError

__all__ = ["MAX_BYTES", "MAX_URLS", "Sitemap", "parse_sitemap", "parse_urls"]

MAX_URLS: Final = 50_000
MAX_BYTES: Final = 50 * 1024 * 1024
"""As sitemaps.org has them: URLs in one file, and its size when it is unpacked."""

# Of a URL in characters: more than servers and browsers take.
_MAX_URL: Final = 8_192
# Elements within each other: a sitemap needs three, its extensions (images, languages) two more.
_MAX_DEPTH: Final = 16
_GZIP: Final = b"\x1f\x8b"
# Gzip files in one: each costs a copy of what is behind it.
_MAX_PARTS: Final = 16


class Sitemap(NamedTuple):
    """
    What a file names, each once, in its order: pages, or further sitemaps; and what in it is no URL.

    Whoever fetches the further ones chooses which hosts may be asked: the file may name any. bad: where, and why, of
    each that cannot be asked for.
    """

    urls: list[str]
    nested: list[str]
    bad: list[tuple[str, str]]


def parse_urls(text: str) -> Sitemap:
    """
    Return what *text* names, one URL a line. Blank lines and lines that begin with # are none.

    Raises ConfigurationError for more than 50,000 of them or 50 MB.
    """
    if len(text) > MAX_BYTES:
        raise ConfigurationError(f"a file of URLs may have {MAX_BYTES} characters, not {len(text)}")
    found = _Found()
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
        url = line.strip()
        if url and not url.startswith("#"):
            found.add(found.urls, url, f"line {number}")
    return found.result()


class _Found:
    """What was found so far. Raises ConfigurationError where it becomes too much."""

    def __init__(self) -> None:
        self.urls: dict[str, None] = {}
        self.nested: dict[str, None] = {}
        self.bad: list[tuple[str, str]] = []

    def add(self, among: dict[str, None], url: str, where: str) -> None:
        flaw = flaw_of(url)
        if flaw:
            self.bad.append((where, flaw))
        else:
            among[url] = None
        if len(among) + len(self.bad) > MAX_URLS:
            raise ConfigurationError(f"one file may name {MAX_URLS} URLs, and this one names more: split it")

    def result(self) -> Sitemap:
        return Sitemap(list(self.urls), list(self.nested), self.bad)


def parse_sitemap(data: bytes) -> Sitemap:
    """
    Return what the sitemap *data*, XML or gzip of it, names.

    Raises ConfigurationError for what is no sitemap, has a document type, or is larger than sitemaps.org allows.
    """
    if len(data) > MAX_BYTES:
        raise _too_large()
    if data[:2] == _GZIP:
        data = _unpacked(data)
    reader = _Reader()
    try:
        reader.read(data)
    except expat.ExpatError as error:
        raise ConfigurationError(f"this is no sitemap: its XML is broken ({error})") from None
    except (LookupError, ValueError) as error:
        if isinstance(error, ConfigurationError):
            raise
        raise ConfigurationError("this is no sitemap: its encoding is not known") from None
    return reader.found.result()


class _Reader:
    """Reads one sitemap. Only <loc> of <url> and of <sitemap> counts: others are of images and videos."""

    def __init__(self) -> None:
        self.found: Final = _Found()
        self._locations = 0
        self._path: list[str] = []
        # The text of the <loc> that is open; None outside of one.
        self._text: list[str] | None = None
        self._size = 0

    def read(self, data: bytes) -> None:
        parser = expat.ParserCreate(namespace_separator=" ")
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._characters
        parser.StartDoctypeDeclHandler = _refuse_doctype
        parser.Parse(data, True)

    def _start(self, name: str, _: object) -> None:
        local = name.rpartition(" ")[2]
        if not self._path and local not in ("urlset", "sitemapindex"):
            raise ConfigurationError(f"a sitemap begins with <urlset> or <sitemapindex>, not with <{shown(local)}>")
        if len(self._path) == _MAX_DEPTH:
            raise ConfigurationError(f"this is no sitemap: more than {_MAX_DEPTH} elements are within each other")
        self._path.append(local)
        if self._path in (["urlset", "url", "loc"], ["sitemapindex", "sitemap", "loc"]):
            self._text, self._size = [], 0

    def _end(self, _: str) -> None:
        if self._text is not None and len(self._path) == 3:
            url = "".join(self._text).strip()
            self._text = None
            self._locations += 1
            found = self.found
            found.add(found.urls if self._path[0] == "urlset" else found.nested, url, f"<loc> {self._locations}")
        self._path.pop()

    def _characters(self, text: str) -> None:
        if self._text is not None:
            self._size += len(text)
            if self._size > _MAX_URL:
                raise ConfigurationError(f"a URL of the sitemap is longer than {_MAX_URL} characters")
            self._text.append(text)


def _refuse_doctype(*_: object) -> None:
    raise ConfigurationError("a sitemap with a document type (<!DOCTYPE>) is not read: it may define entities")


def _unpacked(data: bytes) -> bytes:
    """Return what the gzip file *data* holds, all of its parts. Raises ConfigurationError, and never unpacks more."""
    parts: list[bytes] = []
    left = MAX_BYTES
    while data:
        if len(parts) == _MAX_PARTS:
            raise ConfigurationError(f"the sitemap is more than {_MAX_PARTS} gzip files in one")
        unpacker = zlib.decompressobj(wbits=31)
        try:
            part = unpacker.decompress(data, left + 1)
        except zlib.error as error:
            raise ConfigurationError(f"the sitemap's gzip is broken ({error})") from None
        if len(part) > left:
            raise _too_large()
        if not unpacker.eof:
            raise ConfigurationError("the sitemap's gzip is cut off")
        parts.append(part)
        left -= len(part)
        # A file may be several, one after the other; zeros behind the last are padding.
        data = unpacker.unused_data.lstrip(b"\0")
    return b"".join(parts)


def _too_large() -> ConfigurationError:
    return ConfigurationError(f"a sitemap may have {MAX_BYTES} bytes when it is unpacked, and this one has more")
