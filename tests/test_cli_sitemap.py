"""Which URLs a file names, and what a hostile one costs."""

from __future__ import annotations

import gzip

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echo_cache.cli.sitemap import MAX_BYTES, MAX_URLS, Sitemap, parse_sitemap, parse_urls
from echo_cache.errors import ConfigurationError

SPACE = 'xmlns="http://www.sitemaps.org/schemas/sitemap/0.9"'


def urlset(*urls: str) -> bytes:
    return f"<urlset {SPACE}>{''.join(f'<url><loc>{url}</loc></url>' for url in urls)}</urlset>".encode()


def test_a_file_of_urls_has_one_a_line_and_comments() -> None:
    text = "\ufeff# the shop\n\n http://shop/a \r\nhttps://shop/b?c=d#e\n  # no more\nhttp://shop/a\n"
    assert parse_urls(text) == Sitemap(["http://shop/a", "https://shop/b?c=d#e"], [], [])


@pytest.mark.parametrize(
    "line",
    [
        pytest.param("/products", id="no-origin"),
        pytest.param("ftp://shop/a", id="scheme"),
        pytest.param("file:///etc/passwd", id="file"),
        pytest.param("http://", id="no-host"),
        pytest.param("http://[::1", id="bracket"),
        pytest.param("http://shop/a b", id="space"),
        pytest.param("http://shop/\x1b[2J", id="control"),
        pytest.param("http://" + "a" * 300 + "é/", id="no-idna"),
        pytest.param("http://shop/" + "a" * 8_192, id="long"),
        pytest.param("http://user:hunter2@shop/", id="password"),
    ],
)
def test_a_line_that_is_no_url_is_named_by_its_number_and_does_not_end_it(line: str) -> None:
    found = parse_urls(f"http://shop/a\n{line}\nhttp://shop/b\n")
    assert found.urls == ["http://shop/a", "http://shop/b"]
    ((where, flaw),) = found.bad
    assert (where, "URL" in flaw) == ("line 2", True)


def test_more_urls_than_a_file_may_have_are_refused() -> None:
    lines = [f"http://shop/{number}" for number in range(MAX_URLS + 1)]
    assert len(parse_urls("\n".join(lines[:-1])).urls) == MAX_URLS
    with pytest.raises(ConfigurationError, match="50000 URLs"):
        parse_urls("\n".join(lines))


def test_what_is_no_url_counts_towards_what_a_file_may_have() -> None:
    with pytest.raises(ConfigurationError, match="50000 URLs"):
        parse_urls("\n" + "x\n" * (MAX_URLS + 1))


def test_a_sitemap_names_pages_once_and_in_order() -> None:
    found = parse_sitemap(urlset(" http://shop/b?x=1&amp;y=2\n", "http://shop/a", "http://shop/a"))
    assert found == Sitemap(["http://shop/b?x=1&y=2", "http://shop/a"], [], [])


def test_a_sitemap_without_a_name_space_is_read_too() -> None:
    assert parse_sitemap(b"<urlset><url><loc>http://shop/</loc></url></urlset>").urls == ["http://shop/"]


def test_an_index_names_further_sitemaps() -> None:
    data = f"<sitemapindex {SPACE}><sitemap><loc>http://shop/1.xml</loc></sitemap></sitemapindex>".encode()
    assert parse_sitemap(data) == Sitemap([], ["http://shop/1.xml"], [])


def test_only_the_location_of_the_page_counts() -> None:
    data = (
        f"<urlset {SPACE} xmlns:i='http://image'><url><lastmod>x</lastmod><i:image><i:loc>http://shop/i.png</i:loc>"
        "</i:image><loc>http://shop/<b>no</b>a</loc></url><loc>http://shop/no</loc></urlset>"
    ).encode()
    assert parse_sitemap(data).urls == ["http://shop/noa"]


def test_a_sitemap_may_be_gzip_in_several_parts() -> None:
    data = urlset("http://shop/a", "http://shop/b")
    packed = gzip.compress(data[:40]) + gzip.compress(data[40:]) + b"\0" * 100
    assert parse_sitemap(packed).urls == ["http://shop/a", "http://shop/b"]


def test_a_location_that_is_no_url_is_named_and_does_not_end_it() -> None:
    found = parse_sitemap(urlset("javascript:alert(1)", "http://shop/a", ""))
    assert (found.urls, [where for where, _ in found.bad]) == (["http://shop/a"], ["<loc> 1", "<loc> 3"])


LAUGHS = b"".join(b'<!ENTITY l%d "%s">' % (n, b"&l%d;" % (n - 1) * 10) for n in range(1, 10))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        pytest.param(
            b'<!DOCTYPE urlset [<!ENTITY l0 "lol">' + LAUGHS + b"]><urlset>&l9;</urlset>", "DOCTYPE", id="laughs"
        ),
        pytest.param(
            b'<!DOCTYPE urlset [<!ENTITY x SYSTEM "file:///etc/passwd">]><urlset><url><loc>&x;</loc></url></urlset>',
            "DOCTYPE",
            id="external",
        ),
        pytest.param(b'<!DOCTYPE urlset SYSTEM "http://evil/x.dtd"><urlset/>', "DOCTYPE", id="external-type"),
        pytest.param(b"<urlset><url><loc>&x;</loc></url></urlset>", "broken", id="entity"),
        pytest.param(b"<urlset>" + b"<a>" * 100_000, "within each other", id="deep"),
        pytest.param(b"<html><body/></html>", "<html>", id="html"),
        pytest.param(b"<" + b"a" * 10_000 + b"/>", "begins with", id="long-name"),
        pytest.param(b"<urlset><url>", "broken", id="cut"),
        pytest.param(b"", "broken", id="empty"),
        pytest.param(b"\x89PNG", "broken", id="no-xml"),
        pytest.param(b'<?xml version="1.0" encoding="utf-7"?><urlset/>', "this is no sitemap", id="encoding"),
        pytest.param(urlset("http://shop/" + "a" * 100_000), "longer than", id="long-url"),
        pytest.param(gzip.compress(urlset())[:-9], "cut off", id="gzip-cut"),
        pytest.param(b"\x1f\x8b" + b"\0" * 100, "broken", id="gzip-broken"),
        pytest.param(gzip.compress(b"") * 100_000, "gzip files in one", id="gzip-many"),
        pytest.param(gzip.compress(b" " * (MAX_BYTES + 1)), "more", id="gzip-bomb"),
        pytest.param(b" " * (MAX_BYTES + 1), "more", id="large"),
    ],
)
def test_a_hostile_or_broken_sitemap_is_refused(data: bytes, said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_sitemap(data)
    assert said in str(caught.value)
    assert len(str(caught.value)) < 300
    assert str(caught.value).isprintable()


def test_a_sitemap_with_more_urls_than_it_may_have_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="50000 URLs"):
        parse_sitemap(urlset(*(f"http://shop/{number}" for number in range(MAX_URLS + 1))))


@given(
    st.binary(max_size=200) | st.binary(max_size=50).map(lambda middle: b"<urlset><url>" + middle + b"</url></urlset>")
)
def test_whatever_the_bytes_are_there_is_a_sitemap_or_our_error(data: bytes) -> None:
    try:
        found = parse_sitemap(data)
    except ConfigurationError:
        return
    assert all(url.startswith(("http://", "https://")) for url in found.urls)
