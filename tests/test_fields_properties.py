"""What every field parser promises for any bytes: it answers, it is bounded, and it agrees with its oracle."""

from __future__ import annotations

import datetime
import decimal
from typing import Any

import http_sf
from hypothesis import assume, example, given
from hypothesis import strategies as st

from echo_cache import fields
from echo_cache.fields import structured

TIMESTAMPS = st.integers(-62_135_596_800, 253_402_300_799)
CLOCKS = st.integers(0, 4_102_444_800).map(float)

# Random bytes rarely get past the first character: most of the values are made of pieces that mean something.
PIECES = st.sampled_from(
    [
        *(bytes([char]) for char in b' \t,;="\\*?@%:()/-.+[]'),
        *(b"0", b"1", b"60", b"9" * 20, b"a", b"A", b"\x00", b"\r\n", b"\xff", b"W/", b'""', b'"a"', b"?0", b"?1"),
        *(b"no-store", b"no-cache", b"private", b"public", b"max-age", b"s-maxage", b"max-stale", b"min-fresh"),
        *(b"stale-if-error", b"must-understand", b"bytes=", b"0-", b"-5", b"q=0.5", b"gzip", b"en-GB"),
        *(b"Sun", b", ", b"06 Nov 1994", b" 08:49:37 ", b"GMT", b":aGk=:", b'%"%c3%bc"', b"@12", b"1.5"),
    ]
)
VALUES = st.one_of(st.binary(max_size=60), st.lists(PIECES, max_size=30).map(b"".join))

KEYS = st.from_regex(rb"[a-z*][a-z0-9_.*-]{0,5}", fullmatch=True)
STRINGS = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=8).map(
    lambda text: http_sf.ser(text).encode()
)
BARE_ITEMS = st.one_of(
    st.sampled_from([b"?0", b"?1", b":aGk=:", b":aGk:", b"::", b'%"f%c3%bc"', b"@1659578233", b"@-1"]),
    st.integers(-(10**15), 10**15).map(lambda number: b"%d" % number),
    st.from_regex(rb"-?[0-9]{1,13}\.[0-9]{1,4}", fullmatch=True),
    STRINGS,
    st.from_regex(rb"[A-Za-z*][A-Za-z0-9:/!#$%&'*+.^_`|~-]{0,6}", fullmatch=True),
)
PARAMETERS = st.lists(st.tuples(KEYS, st.none() | BARE_ITEMS), max_size=2).map(
    lambda pairs: b"".join(b";" + key + (b"" if item is None else b"=" + item) for key, item in pairs)
)
ITEMS = st.tuples(BARE_ITEMS, PARAMETERS).map(b"".join)
INNER_LISTS = st.tuples(st.lists(ITEMS, max_size=3).map(b" ".join), PARAMETERS).map(lambda pair: b"(%s)%s" % pair)
MEMBERS = ITEMS | INNER_LISTS
DICTIONARIES = st.lists(
    st.one_of(st.tuples(KEYS, PARAMETERS).map(b"".join), st.tuples(KEYS, MEMBERS).map(b"=".join)), max_size=4
).map(b", ".join)
LISTS = st.lists(MEMBERS, max_size=4).map(b",\t".join)


@st.composite
def mutated(draw: st.DrawFn, values: st.SearchStrategy[bytes]) -> bytes:
    """A value with up to three pieces of it replaced, inserted or left out."""
    value = draw(values)
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(value)))
        value = value[:at] + draw(PIECES | st.binary(max_size=1)) + value[at + draw(st.integers(0, 2)) :]
    return value


def ours(member: Any) -> Any:
    """Bring one of our members to plain, comparable form: (type, value)."""
    match member:
        case tuple():
            return ["list", *map(ours, member)]
        case structured.Token() | structured.DisplayString():
            return type(member).__name__, member.value
        case structured.Date():
            return "Date", member.seconds
        case _:
            return type(member).__name__, member


def theirs(member: Any) -> Any:
    """Bring a member of http_sf, with its parameters, to the same form."""
    value = member[0] if isinstance(member, tuple) else member
    match value:
        case list():
            return ["list", *map(theirs, value)]
        case http_sf.Token() | http_sf.DisplayString():
            return type(value).__name__, str(value)
        case datetime.datetime():
            return "Date", (value - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)) // datetime.timedelta(seconds=1)
        case decimal.Decimal():
            return "float", float(value)
        case _:
            return type(value).__name__, value


def oracle(value: bytes, kind: str) -> Any:
    try:
        return http_sf.parse(value, tltype=kind)
    except http_sf.StructuredFieldError as error:
        # The oracle makes datetimes, which end with the year 9999; the grammar does not.
        assume("Date value out of range" not in str(error))
        return None


@given(mutated(DICTIONARIES) | VALUES)
@example(b"a=@-62135596800")
@example(b'a=%"%c3%bc%2"')
def test_dictionary_agrees_with_http_sf(value: bytes) -> None:
    """RFC 9651 section 4.2.2."""
    expected = oracle(value, "dictionary")
    found = fields.parse_dictionary(value)
    if expected is None:
        assert found is None
    else:
        assert found is not None
        assert {key: ours(member) for key, member in found.items()} == {k: theirs(m) for k, m in expected.items()}


@given(mutated(LISTS) | VALUES)
def test_list_agrees_with_http_sf(value: bytes) -> None:
    """RFC 9651 section 4.2.1."""
    expected = oracle(value, "list")
    found = fields.parse_list(value)
    if expected is None:
        assert found is None
    else:
        assert found is not None
        assert [ours(member) for member in found] == [theirs(member) for member in expected]


@given(DICTIONARIES)
def test_generated_dictionaries_are_mostly_valid(value: bytes) -> None:
    """The oracle test means little if nothing is valid: a field without over-long numbers always is."""
    # Over-long numbers are the only thing that can be wrong, so a field with digits proves nothing. (Not assume():
    # so many are left out that Hypothesis would call the test unhealthy.)
    assert fields.parse_dictionary(value) is not None or any(char in value for char in b"0123456789")


@given(
    name=st.text(max_size=20),
    hit=st.booleans(),
    fwd=st.none() | st.sampled_from(["bypass", "method", "uri-miss", "vary-miss", "miss", "request", "stale"]),
    fwd_status=st.none() | st.integers(100, 599),
    ttl=st.none() | st.integers(),
    stored=st.booleans(),
    collapsed=st.booleans(),
    detail=st.none() | st.text(max_size=20),
)
def test_cache_status_is_a_list_of_one_member(
    name: str,
    hit: bool,
    fwd: str | None,
    fwd_status: int | None,
    ttl: int | None,
    stored: bool,
    collapsed: bool,
    detail: str | None,
) -> None:
    """RFC 9211 section 2: whatever the text, one member with the parameters that were asked for."""
    written = fields.cache_status_member(
        name, hit=hit, fwd=fwd, fwd_status=fwd_status, ttl=ttl, stored=stored, collapsed=collapsed, detail=detail
    )
    assert fields.is_valid_field_value(written)
    parsed: Any = http_sf.parse(written, tltype="list")
    assert len(parsed) == 1
    found_name, parameters = parsed[0]
    assert str(found_name) == "".join(char if " " <= char <= "~" else "?" for char in name)
    given_parameters = {
        "hit": hit,
        "fwd": None if fwd is None else http_sf.Token(fwd),
        "fwd-status": fwd_status,
        "ttl": None if ttl is None else max(-(10**15) + 1, min(ttl, 10**15 - 1)),
        "stored": stored,
        "collapsed": collapsed,
        "detail": None if detail is None else "".join(char if " " <= char <= "~" else "?" for char in detail),
    }
    expected = {key: value for key, value in given_parameters.items() if value is not None and value is not False}
    assert list(parameters) == list(expected)
    assert {key: str(value) for key, value in parameters.items()} == {k: str(v) for k, v in expected.items()}


@given(TIMESTAMPS, CLOCKS)
def test_a_written_date_is_read_back(timestamp: int, now: float) -> None:
    """RFC 9110 section 5.6.7."""
    assert fields.parse_date(fields.format_date(timestamp), now) == timestamp


@given(st.integers(1900, 2200), CLOCKS)
def test_a_two_digit_year_is_never_more_than_50_years_ahead(year: int, now: float) -> None:
    """RFC 9110 section 5.6.7."""
    found = fields.parse_date(b"Monday, 01-Mar-%02d 12:00:00 GMT" % (year % 100), now)
    assert found is not None
    assert now - 50.1 * 365.25 * 86_400 < found < now + 50.1 * 365.25 * 86_400


@given(VALUES, st.integers(0, 100), CLOCKS)
def test_parsers_answer_any_bytes_within_bounds(value: bytes, size: int, now: float) -> None:
    """No parser raises, and no answer exceeds what its docstring promises."""
    assert all(fields.split_list(value))
    responses = [fields.parse_response_directives(value)]
    if targeted := fields.parse_targeted(value):
        responses.append(targeted)
    for response in responses:
        for seconds in (
            response.max_age,
            response.s_maxage,
            response.stale_while_revalidate,
            response.stale_if_error,
        ):
            assert seconds is None or 0 <= seconds <= 2**31
        for name in response.no_cache_fields | response.private_fields:
            assert fields.is_valid_field_name(name)
            assert name == name.lower()
    request = fields.parse_request_directives(value, None)
    assert request.max_stale is None or request.max_stale >= 0
    fields.parse_request_directives(None, value)
    fields.parse_date(value, now)
    fields.parse_etag(value)
    for tag in fields.parse_etag_list(value):
        assert isinstance(tag, str) or fields.parse_etag(b'"' + tag.opaque + b'"') == fields.ETag(
            tag.opaque, weak=False
        )
    vary = fields.parse_vary([value, value])
    assert vary is None or list(vary) == sorted(set(vary))
    age = fields.parse_age([value])
    assert age is None or 0 <= age <= 2**31
    length = fields.parse_content_length([(b"content-length", value)])
    assert not isinstance(length, int) or length >= 0
    groups = fields.parse_groups(value)
    assert len(groups) <= 128
    assert all(len(group) <= 128 for group in groups)
    fields.is_valid_field_value(value)


@given(
    st.lists(st.tuples(st.integers(0, 120), st.none() | st.integers(0, 120)), max_size=20) | VALUES, st.integers(0, 100)
)
def test_ranges_stay_within_the_body(specs: Any, size: int) -> None:
    """RFC 9110 section 14.1.2; never more than 16 spans."""
    if isinstance(specs, list):
        parts = (b"%d-%s" % (first, b"" if last is None else b"%d" % last) for first, last in specs)
        value = b"bytes=" + b",".join(parts)
    else:
        value = b"bytes=" + specs
    ranges = fields.parse_byte_ranges(value, size)
    if isinstance(ranges, list):
        assert 1 <= len(ranges) <= fields.MAX_RANGES
        assert all(0 <= start < stop <= size for start, stop in ranges)


@given(st.sampled_from([b"accept-encoding", b"accept-language", b"x-other", b"cookie"]), VALUES)
def test_normalising_twice_is_normalising_once(name: bytes, value: bytes) -> None:
    once = fields.normalise(name, value)
    assert once is not None
    assert fields.normalise(name, once) == once


WEIGHTED = st.lists(
    st.tuples(st.sampled_from([b"gzip", b"br", b"zstd", b"identity", b"*"]), st.sampled_from([0, 1, 250, 500, 1000])),
    max_size=5,
    unique_by=lambda member: member[0],
)


@given(WEIGHTED, st.data())
def test_spellings_of_one_accept_encoding_are_equal(members: list[tuple[bytes, int]], data: st.DataObject) -> None:
    """RFC 9111 section 4.1: case, white space, the form of a weight and the order do not matter."""

    def spelled(order: list[tuple[bytes, int]]) -> bytes:
        parts = []
        for name, weight in order:
            digits = b"%d.%03d" % divmod(weight, 1000)
            forms = [b"", b";q=1", b" ; Q=1.0"] if weight == 1000 else [b";q=" + digits, b"\t;Q=" + digits]
            case = data.draw(st.sampled_from([bytes.lower, bytes.upper]))
            parts.append(case(name) + data.draw(st.sampled_from(forms)))
        return data.draw(st.sampled_from([b",", b" , ", b",,"])).join(parts)

    one = fields.normalise_accept_encoding(spelled(members))
    assert one == fields.normalise_accept_encoding(spelled(data.draw(st.permutations(members))))
    assert len(one.split(b", ")) == max(len(members), 1)


@given(WEIGHTED, WEIGHTED)
def test_different_accept_encodings_stay_different(a: list[tuple[bytes, int]], b: list[tuple[bytes, int]]) -> None:
    """RFC 9111 section 4.1: a merge of two meanings would serve the wrong variant."""

    def written(members: list[tuple[bytes, int]]) -> bytes:
        return b",".join(b"%s;q=%d.%03d" % (name, *divmod(weight, 1000)) for name, weight in members)

    same = fields.normalise_accept_encoding(written(a)) == fields.normalise_accept_encoding(written(b))
    assert same is (set(a) == set(b))


@given(VALUES)
def test_a_restriction_cannot_be_hidden_by_what_follows(junk: bytes) -> None:
    """RFC 9111 section 5.2.2.5: a response marked no-store first stays so, whatever comes after it."""
    assert fields.parse_response_directives(b"no-store, " + junk).no_store
    assert fields.parse_response_directives(b"private;" + junk).private
