"""What a request that changes something makes stale: RFC 9111 section 4.4 and RFC 9875."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echo_cache.model import CacheKey, Request
from echo_cache.options import PolicyOptions
from echo_cache.policy import invalidated_groups, invalidated_keys, primary_key
from tests.policy_cases import PLAIN, asking, pairs


def key(path: bytes, query: bytes = b"", host: bytes | None = b"example.com", form: str = "GET") -> CacheKey:
    """Return the key of http://example.com with this path."""
    return (form, "http", host, path, query)


TARGET = key(b"/a/b")


def changing(method: str = "POST", path: bytes = b"/a/b", **changes: object) -> Request:
    """Return an unsafe request for /a/b."""
    return asking(method=method, path=path, **changes)


@pytest.mark.parametrize(
    ("section", "method", "status", "invalidates"),
    [
        # 4.4: MUST for a non-error status to an unsafe method, and to one whose safety is unknown
        *(
            pytest.param("4.4", method, 200, True, id=f"method-{method}")
            for method in ("POST", "PUT", "DELETE", "PATCH", "PURGE", "get", "FOO")
        ),
        *(
            pytest.param("4.4", method, 200, False, id=f"method-{method}")
            for method in ("GET", "HEAD", "OPTIONS", "TRACE", "QUERY")
        ),
        *(pytest.param("4.4", "POST", status, True, id=f"status-{status}") for status in (200, 201, 204, 303, 399)),
        *(
            pytest.param("4.4", "POST", status, False, id=f"status-{status}")
            for status in (100, 199, 400, 404, 412, 500, 503)
        ),
    ],
)
def test_who_invalidates(section: str, method: str, status: int, invalidates: bool) -> None:
    headers = pairs("location: /c", 'cache-group-invalidation: "g"')
    keys = invalidated_keys(changing(method), status, headers, PLAIN)
    assert keys == ([TARGET, key(b"/c")] if invalidates else []), section
    assert invalidated_groups(changing(method), status, headers) == (("g",) if invalidates else ())


@pytest.mark.parametrize(
    ("section", "lines", "others"),
    [
        pytest.param("4.4", [], [], id="target-only"),
        pytest.param("4.4", ["location: /c"], [key(b"/c")], id="location"),
        pytest.param("4.4", ["content-location: /c?d=1"], [key(b"/c", b"d=1")], id="content-location"),
        pytest.param("4.4", ["location: /c", "content-location: /d"], [key(b"/c"), key(b"/d")], id="both"),
        pytest.param("4.4", ["location: /c", "content-location: /c"], [key(b"/c")], id="each-once"),
        pytest.param("4.4", ["location: /a/b"], [], id="the-target-again"),
        pytest.param("9110-10.2.2", ["location: c"], [key(b"/a/c")], id="relative"),
        pytest.param("9110-10.2.2", ["location: ../c"], [key(b"/c")], id="relative-up"),
        pytest.param("9110-10.2.2", ["location: ../../../c"], [key(b"/c")], id="relative-up-and-out"),
        pytest.param("9110-10.2.2", ["location: /x/../c"], [key(b"/c")], id="dot-segments"),
        pytest.param("9110-10.2.2", ["location: ?d=1"], [key(b"/a/b", b"d=1")], id="query-only"),
        pytest.param("9110-10.2.2", ["location: #f"], [], id="fragment-only"),
        pytest.param("9110-10.2.2", ["location: /c#f"], [key(b"/c")], id="fragment"),
        pytest.param("9110-10.2.2", ["location: /c d"], [key(b"/c%20d")], id="space"),
        pytest.param("9110-10.2.2", ["location: /\xc3\xa9"], [key(b"/%C3%A9")], id="utf-8"),
        pytest.param("9110-10.2.2", ["location: /\xe9"], [key(b"/%C3%A9")], id="latin-1"),
        pytest.param("9110-10.2.2", ["location: /%2Fc"], [key(b"/%2Fc")], id="encoded-as-sent"),
        # MUST NOT across origins (RFC 9110 section 4.3.1: scheme, host, port)
        pytest.param("4.4", ["location: http://example.com/c"], [key(b"/c")], id="same-origin"),
        pytest.param("4.4", ["location: HTTP://EXAMPLE.com:80/c"], [key(b"/c")], id="same-origin-otherwise-written"),
        pytest.param("4.4", ["location: http://u:p@example.com/c"], [key(b"/c")], id="same-origin-user"),
        pytest.param("4.4", ["location: //example.com/c"], [key(b"/c")], id="same-origin-no-scheme"),
        pytest.param("4.4", ["location: https://example.com/c"], [], id="other-scheme"),
        pytest.param("4.4", ["location: http://example.com:81/c"], [], id="other-port"),
        pytest.param("4.4", ["location: http://other.example/c"], [], id="other-host"),
        pytest.param("4.4", ["location: //other.example/c"], [], id="other-host-no-scheme"),
        pytest.param("4.4", ["location: http://example.com@other.example/c"], [], id="other-host-disguised"),
        # no URL at all
        *(
            pytest.param("4.4", [f"location: {value}"], [], id=f"no-url-{value}")
            for value in ("http://[::1/", "mailto:a@b", "http://", "javascript:x", "http://\u00e9\u00e9..x/")
        ),
    ],
)
def test_what_is_invalidated(section: str, lines: list[str], others: list[CacheKey]) -> None:
    assert invalidated_keys(changing(), 200, pairs(*lines), PLAIN) == [TARGET, *others], section


@pytest.mark.parametrize(
    ("request_", "location", "other"),
    [
        pytest.param(changing(host=None), "/c", key(b"/c", host=None), id="no-host"),
        pytest.param(changing(host=b""), "/c", key(b"/c", host=b""), id="empty-host"),
        pytest.param(changing(host=None), "c", key(b"/a/c", host=None), id="no-host-relative"),
        pytest.param(changing(host=None), "http://example.com/c", None, id="no-host-absolute"),
        pytest.param(changing(host=b"a\nb"), "/c", None, id="two-hosts"),
        pytest.param(changing(host=b"[x"), "/c", None, id="malformed-host"),
        pytest.param(
            changing(path_is_decoded=True), "/c%20d%C3%A9", key(b"/c d\xc3\xa9", form="GET decoded"), id="decoded"
        ),
        pytest.param(
            changing(path=b"/a b/#x/y", path_is_decoded=True),
            "z",
            key(b"/a b/#x/z", form="GET decoded"),
            id="decoded-base",
        ),
    ],
)
def test_the_origin_is_that_of_the_target(request_: Request, location: str, other: CacheKey | None) -> None:
    keys = invalidated_keys(request_, 200, pairs(f"location: {location}"), PLAIN)
    assert keys == [primary_key(request_, PLAIN), *([] if other is None else [other])]


def test_the_key_is_made_as_for_requests() -> None:
    options = PolicyOptions(ignored_query_parameters=["utm"], sort_query=True)
    keys = invalidated_keys(changing(query=b"b=1&a=2"), 200, pairs("location: /c?utm=1&z=1&y=2"), options)
    assert keys == [key(b"/a/b", b"a=2&b=1"), key(b"/c", b"y=2&z=1")]


@pytest.mark.parametrize(
    ("lines", "groups"),
    [
        pytest.param([], (), id="none"),
        pytest.param(['cache-group-invalidation: "a", "b"'], ("a", "b"), id="list"),
        pytest.param(['cache-group-invalidation: "a"', 'cache-group-invalidation: "b"'], ("a", "b"), id="two-lines"),
        pytest.param(['cache-group-invalidation: "a";x=1'], ("a",), id="parameters"),
        pytest.param(['cache-group-invalidation: "A", "a"'], ("A", "a"), id="case-sensitive"),
        pytest.param(["cache-group-invalidation: a"], (), id="tokens-are-no-strings"),
        pytest.param(['cache-group-invalidation: "a'], (), id="malformed"),
        pytest.param(['cache-groups: "a"'], (), id="another-field"),
    ],
)
def test_groups(lines: list[str], groups: tuple[str, ...]) -> None:
    assert invalidated_groups(changing(), 204, pairs(*lines)) == groups  # RFC 9875 section 3


@given(st.binary(max_size=30), st.binary(max_size=10), st.binary(max_size=10) | st.none(), st.booleans())
def test_any_location_stays_on_its_origin(location: bytes, path: bytes, host: bytes | None, decoded: bool) -> None:
    request = changing(path=b"/" + path, host=host, path_is_decoded=decoded)
    keys = invalidated_keys(request, 200, [(b"location", location)], PLAIN)
    assert keys[0] == primary_key(request, PLAIN)
    assert {found[:3] for found in keys} == {keys[0][:3]}
