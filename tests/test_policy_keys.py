"""What a request is looked up by: RFC 9111 sections 2 and 4.1, and the threats to keys."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import unquote

import httpx
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from echo_cache.errors import ConfigurationError
from echo_cache.model import CacheKey
from echo_cache.options import PolicyOptions
from echo_cache.policy import key_of_url, matches, primary_key, request_of_scope, variant_fields
from echo_cache.policy.keys import decoded_key, visible_query
from tests.policy_cases import PLAIN, Pairs, asking, pairs

HOST = ("host: example.com",)


def scope(*lines: str, path: bytes | None = b"/a", **changes: Any) -> dict[str, Any]:
    """Return an ASGI scope; without raw_path where *path* is None."""
    given: dict[str, Any] = {
        "type": "http",
        "method": "GET",
        "scheme": "http",
        "path": "/a" if path is None else unquote(path.decode("latin-1")),
        "query_string": b"",
        "headers": pairs(*lines),
    }
    if path is not None:
        given["raw_path"] = path
    return {**given, **changes}


def key(*lines: str, options: PolicyOptions = PLAIN, **changes: Any) -> CacheKey:
    """Return the key of a request, by default for http://example.com/a."""
    return primary_key(request_of_scope(scope(*(lines or HOST), **changes)), options)


@pytest.mark.parametrize(
    ("threat", "one", "other", "same"),
    [
        pytest.param("2", key(), key(), True, id="equal"),
        pytest.param("2", key(method="GET"), key(method="HEAD"), True, id="get-and-head"),
        # the path, as it was sent
        pytest.param("path", key(path=b"/a%2Fb"), key(path=b"/a/b"), False, id="encoded-slash"),
        pytest.param("path", key(path=b"/%41"), key(path=b"/A"), False, id="encoded-letter"),
        pytest.param("path", key(path=b"/%c3%a9"), key(path=b"/%C3%A9"), False, id="case-of-escapes"),
        pytest.param("path", key(path=b"/%C3%A9"), key(path=b"/e%CC%81"), False, id="nfc-and-nfd"),
        pytest.param("path", key(path=b"/a"), key(path=b"/a/"), False, id="trailing-slash"),
        pytest.param("path", key(path=b"/a"), key(path=b"//a"), False, id="double-slash"),
        pytest.param("path", key(path=b"/a/../b"), key(path=b"/b"), False, id="dot-segments"),
        pytest.param("path", key(path=b"/a"), key(path=b"/a%00"), False, id="nul"),
        pytest.param("path", key(path=b"/a"), key(path=b"/a;x"), False, id="path-parameter"),
        pytest.param("path", key(path=b"/A"), key(path=b"/a"), False, id="case-of-path"),
        # a server that gives only the decoded path
        pytest.param("decoded", key(path=None), key(path=b"/a"), False, id="namespaces"),
        # host
        pytest.param("CWE-349", key("host: a"), key("host: b"), False, id="host"),
        pytest.param("9110-4.2.3", key("host: A.Example"), key("host: a.example"), True, id="case-of-host"),
        pytest.param("9110-4.2.3", key("host: a:80"), key("host: a"), True, id="default-port"),
        pytest.param("9110-4.2.3", key("host: a:443", scheme="https"), key("host: a", scheme="https"), True, id="443"),
        pytest.param("9110-4.2.3", key("host: a:443"), key("host: a"), False, id="443-is-not-default-for-http"),
        pytest.param("9110-4.2.3", key("host: a:8080"), key("host: a"), False, id="other-port"),
        pytest.param("9110-4.2.3", key("host: [::1]:80"), key("host: [::1]"), True, id="ipv6"),
        pytest.param("CWE-349", key("host: a"), key("host: a", scheme="https"), False, id="scheme"),
        pytest.param("CWE-349", key("host:"), key("x: a"), False, id="empty-is-not-absent"),
        pytest.param("CWE-349", key("host: a", "host: b"), key("host: a"), False, id="two-hosts-first"),
        pytest.param("CWE-349", key("host: a", "host: b"), key("host: b"), False, id="two-hosts-second"),
        pytest.param("CWE-349", key("host: a", "host: b"), key("host: b", "host: a"), False, id="two-hosts-order"),
        pytest.param("CWE-349", key("host: a", "host: b"), key("host: a, b"), False, id="two-hosts-and-a-list"),
        pytest.param("9110-4.2.3", key("host: a:80", scheme="ftp"), key("host: a", scheme="ftp"), False, id="ftp"),
        pytest.param("CWE-349", key("host: a\n", scheme="ftp"), key("host: a", scheme="ftp"), False, id="ftp-lf"),
        pytest.param("CWE-349", key("host: a", "x-forwarded-host: b"), key("host: a"), True, id="x-forwarded-host"),
        # query
        pytest.param("query", key(query_string=b"a=1&a=2"), key(query_string=b"a=2&a=1"), False, id="order-of-one"),
        pytest.param("query", key(query_string=b"a=1&b=2"), key(query_string=b"b=2&a=1"), False, id="order"),
        pytest.param("query", key(query_string=b"a"), key(query_string=b"a="), False, id="empty-value"),
        pytest.param("query", key(query_string=b"%61=1"), key(query_string=b"a=1"), False, id="encoded-name"),
        pytest.param("query", key(query_string=b"a=1"), key(path=b"/a?a=1"), False, id="query-in-the-path"),
    ],
)
def test_which_requests_share_a_key(threat: str, one: CacheKey, other: CacheKey, same: bool) -> None:
    assert (one == other) is same, threat
    assert (hash(one) == hash(other)) or not same


def test_the_key_is_plain_atoms() -> None:
    assert key(query_string=b"b=1") == ("GET", "http", b"example.com", b"/a", b"b=1")
    assert key("x: y") == ("GET", "http", None, b"/a", b"")


def test_a_decoded_path_has_a_namespace_of_its_own() -> None:
    request = request_of_scope({**scope(*HOST, path=None), "path": "/é"})
    assert request.path_is_decoded
    assert primary_key(request, PLAIN) == ("GET decoded", "http", b"example.com", "/é".encode(), b"")


def test_a_decoded_path_may_hold_what_is_no_text() -> None:
    request = request_of_scope({**scope(path=None), "path": "/\udce9"})
    assert primary_key(request, PLAIN)[3] == b"/\xed\xb3\xa9"


def test_a_scope_may_lack_what_has_a_default() -> None:
    bare = {"type": "http", "method": "GET", "path": "/a", "headers": []}
    assert primary_key(request_of_scope(bare), PLAIN) == ("GET decoded", "http", None, b"/a", b"")


@pytest.mark.parametrize(
    ("lines", "has_body"),
    [
        pytest.param([], False, id="none"),
        pytest.param(["content-length: 0"], False, id="zero"),
        pytest.param(["content-length:"], False, id="empty"),
        pytest.param(["content-length: 5"], True, id="length"),
        pytest.param(["content-length: 0", "content-length: 5"], True, id="two-lengths"),
        pytest.param(["content-length: x"], True, id="malformed"),
        pytest.param(["transfer-encoding: chunked"], True, id="chunked"),
        pytest.param(["transfer-encoding: identity", "content-length: 0"], True, id="any-transfer-coding"),
    ],
)
def test_a_request_with_a_body_is_known_by_its_fields(lines: list[str], has_body: bool) -> None:
    assert request_of_scope(scope(*lines)).has_body is has_body


@pytest.mark.parametrize(
    ("query", "visible"),
    [
        pytest.param(b"", b"", id="empty"),
        pytest.param(b"a=1&utm_source=x&b=2", b"a=1&b=2", id="in-the-middle"),
        pytest.param(b"utm_source=x", b"", id="alone"),
        pytest.param(b"utm_source", b"", id="without-value"),
        pytest.param(b"utm_source=1&utm_source=2&fbclid=3", b"", id="repeated"),
        pytest.param(b"a=1&a=2&utm_source=x&a=0", b"a=1&a=2&a=0", id="order-and-repetition-stay"),
        # CVE-2021-23336: what some apps split at ";" goes or stays as one
        pytest.param(b"utm_source=x;a=1&b=2", b"b=2", id="cloaked-behind-a-semicolon"),
        pytest.param(b"a=1;utm_source=x", b"a=1;utm_source=x", id="cloaked-in-front-of-a-semicolon"),
        pytest.param(b"utm%5Fsource=x", b"utm%5Fsource=x", id="disguised-stays-in-both"),
        pytest.param(b"UTM_SOURCE=x", b"UTM_SOURCE=x", id="case-matters"),
        pytest.param(b"utm_source[]=x&utm_sourced=x", b"utm_source[]=x&utm_sourced=x", id="other-names"),
        pytest.param(b"&&a=1&", b"&&a=1&", id="empty-parts-stay"),
        pytest.param(b"=utm_source", b"=utm_source", id="as-a-value"),
    ],
)
def test_an_ignored_parameter_is_in_neither_the_key_nor_what_the_app_sees(query: bytes, visible: bytes) -> None:
    options = PolicyOptions(ignored_query_parameters=["utm_source", "fbclid"])
    assert visible_query(query, options) == visible
    assert key(query_string=query, options=options)[4] == visible
    assert visible_query(query, PLAIN) == query


@pytest.mark.parametrize(
    ("query", "sorted_"),
    [
        pytest.param(b"b=1&a=2", b"a=2&b=1", id="by-name"),
        pytest.param(b"b=2&a=0&b=1", b"a=0&b=2&b=1", id="the-order-of-one-name-stays"),
        pytest.param(b"a=2&a=1", b"a=2&a=1", id="repeated"),
        pytest.param(b"a&a=", b"a&a=", id="empty-values"),
        pytest.param(b"b", b"b", id="single"),
    ],
)
def test_sorting_is_by_name_in_the_key_alone(query: bytes, sorted_: bytes) -> None:
    options = PolicyOptions(sort_query=True)
    assert key(query_string=query, options=options)[4] == sorted_
    assert visible_query(query, options) == query


@given(st.lists(st.sampled_from([b"a=1", b"a=2", b"b=1", b"", b"c", b"x=1", b"x=2"]), max_size=6), st.booleans())
def test_equal_keys_mean_that_the_app_sees_the_same_but_for_order(parts: list[bytes], sort: bool) -> None:
    options = PolicyOptions(ignored_query_parameters=["x"], sort_query=sort)
    query = b"&".join(parts)
    found = key(query_string=query, options=options)[4]
    seen = visible_query(query, options)
    assert b"x=" not in found
    assert found.split(b"&") == (
        sorted(seen.split(b"&"), key=lambda part: part.split(b"=")[0]) if sort else seen.split(b"&")
    )


ATOMS = st.binary(max_size=4)
HOSTS = st.none() | ATOMS | st.sampled_from([b"a", b"A", b"a:80", b"a:443", b"a\n", b"a, b", b"a:"])
PORTS = {"http": rb":80\Z", "https": rb":443\Z", "ftp": rb"\Z"}


@given(*[st.tuples(st.sampled_from(["http", "https", "ftp"]), HOSTS, ATOMS, ATOMS, st.booleans())] * 2)
def test_different_requests_have_different_keys(one: tuple[Any, ...], other: tuple[Any, ...]) -> None:
    def found(parts: tuple[Any, ...]) -> CacheKey:
        scheme, host, path, query, decoded = parts
        request = asking(scheme=scheme, host=host, path=path, query=query, path_is_decoded=decoded)
        return primary_key(request, PLAIN)

    def canonical(parts: tuple[Any, ...]) -> tuple[Any, ...]:
        scheme, host, *others = parts
        return (scheme, host if host is None else re.sub(PORTS[scheme], b"", host.lower()), *others)

    assert (found(one) == found(other)) == (canonical(one) == canonical(other))


# URLs


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        pytest.param("http://example.com/a", ("http", b"example.com", b"/a", b""), id="plain"),
        pytest.param("https://example.com", ("https", b"example.com", b"/", b""), id="no-path"),
        pytest.param("https://example.com?a=1", ("https", b"example.com", b"/", b"a=1"), id="no-path-query"),
        pytest.param("HTTPS://Example.COM:443/A", ("https", b"example.com", b"/A", b""), id="case-and-port"),
        pytest.param("http://example.com:8080/", ("http", b"example.com:8080", b"/", b""), id="port"),
        pytest.param("http://example.com:/", ("http", b"example.com", b"/", b""), id="empty-port"),
        pytest.param("http://u:p@example.com/", ("http", b"example.com", b"/", b""), id="user"),
        pytest.param("http://[::1]:80/", ("http", b"[::1]", b"/", b""), id="ipv6"),
        pytest.param("http://münchen.example/", ("http", b"xn--mnchen-3ya.example", b"/", b""), id="idn"),
        pytest.param("http://e.x/é?é", ("http", b"e.x", b"/%C3%A9", b"%C3%A9"), id="not-ascii"),
        pytest.param('http://e.x/a b"<>`{}', ("http", b"e.x", b"/a%20b%22%3C%3E%60%7B%7D", b""), id="odd-path"),
        pytest.param('http://e.x/?a b"<>`{}', ("http", b"e.x", b"/", b"a%20b%22%3C%3E`{}"), id="odd-query"),
        pytest.param("http://e.x/%41%2f%zz", ("http", b"e.x", b"/%41%2f%zz", b""), id="escapes-stay"),
        pytest.param("http://e.x/a?b#c", ("http", b"e.x", b"/a", b"b"), id="fragment"),
        pytest.param("http://e.x/a/./b/../c", ("http", b"e.x", b"/a/c", b""), id="dot-segments"),
        pytest.param("http://e.x/a/b/..", ("http", b"e.x", b"/a/", b""), id="dots-at-the-end"),
        pytest.param("http://e.x/a/..", ("http", b"e.x", b"/", b""), id="dots-at-the-end-to-the-root"),
        pytest.param("http://e.x/\x7f?\x7f", ("http", b"e.x", b"/%7F", b"%7F"), id="delete"),
        pytest.param("http://e.x/a/b/.", ("http", b"e.x", b"/a/b/", b""), id="dot-at-the-end"),
        pytest.param("http://e.x/../../a", ("http", b"e.x", b"/a", b""), id="dots-past-the-root"),
        pytest.param("http://e.x/.a/..b", ("http", b"e.x", b"/.a/..b", b""), id="names-with-dots"),
    ],
)
def test_key_of_url(url: str, expected: tuple[Any, ...]) -> None:
    assert key_of_url(url, PLAIN) == ("GET", *expected)


@pytest.mark.parametrize(
    "url",
    [
        *("", "a", "/a", "//example.com/a", "ftp://example.com/", "http://", "http:///a", "http://[::1", "mailto:a@b"),
        *("http://\ud800.x/", "http://x/\ud800", "http://é..x/"),
    ],
)
def test_what_is_no_url_is_a_configuration_error(url: str) -> None:
    with pytest.raises(ConfigurationError):
        key_of_url(url, PLAIN)


def test_a_path_is_taken_on_the_origin_of_the_base() -> None:
    base = key("host: a:81", scheme="https", path=b"/x", query_string=b"y")
    assert key_of_url("/b?c=d", PLAIN, base) == ("GET", "https", b"a:81", b"/b", b"c=d")
    assert key_of_url("http://e.x/b", PLAIN, base) == ("GET", "http", b"e.x", b"/b", b"")
    for url in ("b", "//e.x/b", "ftp:/b"):
        with pytest.raises(ConfigurationError):
            key_of_url(url, PLAIN, base)


def test_the_key_of_a_url_has_the_form_of_the_base() -> None:
    base = key(path=None)
    assert key_of_url("/a%20%C3%A9%2Fb", PLAIN, base) == ("GET decoded", "http", b"example.com", "/a é/b".encode(), b"")
    absolute = key_of_url("http://example.com/a%20b", PLAIN)
    assert decoded_key(absolute) == key_of_url("http://example.com/a%20b", PLAIN, base)


def test_the_key_of_a_url_follows_the_options() -> None:
    options = PolicyOptions(ignored_query_parameters=["u"], sort_query=True)
    assert key_of_url("http://e.x/?b=1&u=2&a=3", options)[4] == b"a=3&b=1"


# No "\\" and no bare "%", which clients treat differently from each other.
PATH_TEXT = st.text("ab09-._~!$&'()*+,;=:@/ \"<>`{}|^[]é", max_size=8)
QUERY_TEXT = st.text('ab09-._~!$&()*+,;=:@/? "<>|^[]é', max_size=8)


@settings(max_examples=300)
@given(
    st.sampled_from(["http", "https"]),
    st.sampled_from(["example.com", "EXAMPLE.com", "[::1]", "127.0.0.1", "bücher.example"]),
    st.sampled_from(["", ":80", ":443", ":8080"]),
    PATH_TEXT,
    st.none() | QUERY_TEXT,
)
def test_the_key_of_a_url_is_that_of_the_request_a_client_sends(
    scheme: str, host: str, port: str, path: str, query: str | None
) -> None:
    # RFC 3986 section 5.2.4 makes "/a/" of "/a/.", as browsers do; httpx makes "/a" of it.
    assume(path.rpartition("/")[2] not in (".", ".."))
    url = f"{scheme}://{host}{port}/{path}" + ("" if query is None else f"?{query}")
    sent = httpx.Request("GET", url)
    raw_path, _, raw_query = sent.url.raw_path.partition(b"?")
    headers: Pairs = [(name.lower(), value) for name, value in sent.headers.raw]
    served = {**scope(path=raw_path), "scheme": scheme, "query_string": raw_query, "headers": headers}
    assert key_of_url(url, PLAIN) == primary_key(request_of_scope(served), PLAIN)


# Vary


@pytest.mark.parametrize(
    ("section", "name", "stored_", "asked", "same"),
    [
        pytest.param("4.1", "x", ["x: 1"], ["x: 1"], True, id="equal"),
        pytest.param("4.1", "x", ["x: 1"], ["x: 2"], False, id="other"),
        pytest.param("4.1", "x", [], [], True, id="both-absent"),
        pytest.param("4.1", "x", [], ["x:"], False, id="absent-is-not-empty"),
        pytest.param("4.1", "x", ["x:"], [], False, id="empty-is-not-absent"),
        pytest.param("4.1", "x", ["x: a, b"], ["x: a", "x: b"], True, id="lines-combined"),
        pytest.param("4.1", "x", ["x: a,b"], ["x: a , b"], True, id="white-space"),
        pytest.param("4.1", "x", ["x: A"], ["x: a"], False, id="case"),
        pytest.param("4.1", "cookie", ["cookie: a=1,b"], ["cookie: a=1, b"], False, id="cookie-as-sent"),
        pytest.param(
            "4.1", "accept-encoding", ["accept-encoding: gzip, br"], ["accept-encoding: BR,gzip;q=1.0"], True, id="ae"
        ),
        pytest.param(
            "4.1", "accept-encoding", ["accept-encoding: gzip"], ["accept-encoding: gzip;q=0"], False, id="ae-forbidden"
        ),
        pytest.param("4.1", "accept-encoding", [], ["accept-encoding:"], False, id="ae-absent-is-not-empty"),
        pytest.param(
            "4.1",
            "accept-language",
            ["accept-language: en;q=0.5, DE"],
            ["accept-language: de,en;q=0.50"],
            True,
            id="al",
        ),
        pytest.param(
            "4.1", "accept-language", ["accept-language: de, en"], ["accept-language: en, de"], False, id="al-order"
        ),
    ],
)
def test_selecting_a_variant(section: str, name: str, stored_: list[str], asked: list[str], same: bool) -> None:
    vary = variant_fields(pairs(*stored_), [name.encode()])
    assert matches(vary, pairs(*asked)) is same, section


def test_every_nominated_field_counts() -> None:
    vary = variant_fields(pairs("a: 1", "b: 2"), [b"a", b"b"])
    assert vary == ((b"a", b"1"), (b"b", b"2"))
    assert matches(vary, pairs("b: 2", "c: 3", "a: 1"))
    assert not matches(vary, pairs("a: 1"))
    assert matches((), pairs("a: 1"))


@given(st.lists(st.tuples(st.sampled_from([b"a", b"b", b"accept-encoding"]), st.binary(max_size=6)), max_size=5))
def test_a_request_selects_its_own_variant(headers: Pairs) -> None:
    assert matches(variant_fields(headers, [b"a", b"accept-encoding"]), headers)
