"""The codec on everything Hypothesis thinks of: what goes in comes out, and no bytes do harm."""

from __future__ import annotations

import math
import re
from itertools import pairwise
from typing import Any

import msgpack
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from echo_cache import codec
from echo_cache.codec import (
    MAX_INDEX_ROWS,
    IndexRow,
    decode,
    decode_index,
    decode_key,
    encode,
    encode_index,
    encode_index_row,
    key_digest,
    kind_of,
    pack,
    unpack,
    variant_id,
)
from echo_cache.errors import CodecError, ForgedError
from echo_cache.model import CacheKey, Entry, StoredResponse, Vary
from tests.test_codec import (
    CAP,
    INDEX,
    KEY,
    OTHER_SECRET,
    PLAIN,
    SECRET,
    SIGNED,
    SIGNED_SQUEEZED,
    SQUEEZED,
    envelope,
    fixed,
    recheck,
    reseal,
)

TOKEN = b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz"

names = st.sampled_from(codec._NAMES) | st.lists(st.sampled_from(TOKEN), min_size=1, max_size=20).map(bytes)
values = (
    st.sampled_from(codec._VALUES)
    | st.sampled_from([b" odd ", b"\t", b"\x7f\x80\xff", b"a" * 300, "größe".encode()])
    | st.binary(max_size=40).map(lambda value: value.translate(None, b"\r\n\0"))
)
headers = st.lists(st.tuples(names, values), max_size=12).map(tuple)
vary_fields = st.lists(
    st.tuples(names, st.none() | st.sampled_from(codec._VALUES) | st.binary(max_size=20)), max_size=6
).map(tuple)
# Up to 1e300: sums of them stay finite, which is what pack asks.
times = st.floats(-1e300, 1e300) | st.integers(-(2**40), 2**40).map(float) | st.sampled_from([0.0, -0.0, 2.0**53])
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
bodies = st.binary(max_size=200) | st.builds(
    lambda unit, count: unit * count, st.binary(min_size=1, max_size=8), st.integers(0, 1500)
)

entries = st.builds(
    Entry,
    response=st.builds(StoredResponse, st.integers(200, 599), headers, bodies),
    generated_at=times,
    stored_at=times,
    fresh_until=times,
    retain_until=times,
    vary=vary_fields,
    groups=st.lists(texts, max_size=5).map(tuple),
    mark=st.integers(-(2**63), 2**128 - 1) | st.integers(-1, 300),
    stale_while_revalidate=times,
    stale_if_error=times,
    always_validate=st.booleans(),
    never_stale=st.booleans(),
    anonymous_only=st.booleans(),
    own_etag=st.booleans(),
    client_ttl=st.none() | times,
    route=st.text(max_size=256).filter(str.isprintable),
)
keys = st.tuples(
    st.sampled_from(["GET", "GET decoded"]) | texts,
    st.sampled_from(["http", "https"]) | texts,
    st.none() | st.binary(max_size=12),
    st.binary(max_size=20),
    st.binary(max_size=20),
)
# Few letters and short parts, so that parts often differ by their boundaries alone.
near_keys = st.tuples(
    st.sampled_from(["", "a", "b", "ab"]),
    st.sampled_from(["", "a", "b", "ab"]),
    st.sampled_from([None, b"", b"a", b"b", b"ab", b"\xc0"]),
    st.text("ab", max_size=3).map(str.encode),
    st.text("ab", max_size=3).map(str.encode),
)
rows = st.lists(
    st.builds(
        IndexRow, variant=st.binary(min_size=16, max_size=16), stored_at=times, retain_until=times, vary=vary_fields
    ),
    max_size=6,
    unique_by=lambda row: row.variant,
)
msgpack_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | texts | st.binary(max_size=40),
    lambda inner: st.lists(inner, max_size=9) | st.dictionaries(texts | st.binary(max_size=5), inner, max_size=3),
    max_leaves=30,
)


def read_everything(key: CacheKey, raw: bytes) -> list[Any]:
    """Return what each reader made of *raw*; a CodecError is caught, and anything else is the test's failure."""
    made: list[Any] = [kind_of(raw)]
    for read in (
        lambda: decode(key, raw, max_body_bytes=CAP),
        lambda: decode(key, raw, max_body_bytes=CAP, secrets=[SECRET], shift=60.0),
        lambda: decode_key(raw),
        lambda: decode_index(key, raw),
        lambda: unpack(raw, b""),
    ):
        try:
            made.append(read())
        except CodecError:
            made.append(None)
    return made


@given(entries)
def test_unpack_undoes_pack(entry: Entry) -> None:
    assert unpack(pack(entry), entry.response.body) == entry


@given(keys, entries, st.booleans())
def test_decode_undoes_encode(key: CacheKey, entry: Entry, compress: bool) -> None:
    raw = encode(key, entry, compress=compress)
    assert decode(key, raw, max_body_bytes=CAP) == entry._replace(is_capped=False), "that is memory's alone"
    assert decode_key(raw) == key
    assert kind_of(raw) == "entry"


@given(keys, entries, st.binary(min_size=16, max_size=200), st.booleans())
def test_a_signed_entry_comes_back_by_its_secret_alone(
    key: CacheKey, entry: Entry, secret: bytes, compress: bool
) -> None:
    raw = encode(key, entry, secret=secret, compress=compress)
    assert decode(key, raw, max_body_bytes=CAP, secrets=[OTHER_SECRET, secret]) == entry._replace(is_capped=False)
    assert decode_key(raw) == key
    with pytest.raises(ForgedError):
        decode(key, raw, max_body_bytes=CAP, secrets=[OTHER_SECRET])
    with pytest.raises(CodecError):
        decode(key, raw, max_body_bytes=CAP)


@given(entries, st.floats(-1e6, 1e6))
def test_a_shift_there_and_back_rounds_and_does_no_more(entry: Entry, shift: float) -> None:
    back = decode(KEY, encode(KEY, entry, shift=shift), max_body_bytes=CAP, shift=shift)
    for name in ("generated_at", "stored_at", "fresh_until", "retain_until"):
        before = getattr(entry, name)
        assert abs(getattr(back, name) - before) <= 2 * math.ulp(abs(before) + abs(shift))
        back = back._replace(**{name: before})
    assert back == entry._replace(is_capped=False)


@given(st.sampled_from([SIGNED, SIGNED_SQUEEZED]), st.integers(0, 600), st.binary(min_size=1, max_size=24))
def test_no_splice_into_a_signed_entry_is_believed(raw: bytes, at: int, splice: bytes) -> None:
    changed = recheck(raw[:at] + splice + raw[at + len(splice) :])
    assume(changed != raw)
    with pytest.raises(CodecError):
        decode(KEY, changed, max_body_bytes=CAP, secrets=[SECRET])


@given(keys, keys, entries)
def test_an_entry_is_only_for_its_own_key(key: CacheKey, other: CacheKey, entry: Entry) -> None:
    assume(key != other)
    with pytest.raises(CodecError):
        decode(other, encode(key, entry), max_body_bytes=CAP)


@given(keys, rows)
def test_decode_index_undoes_encode_index(key: CacheKey, index: list[IndexRow]) -> None:
    raw = encode_index(key, index)
    assert decode_index(key, raw) == index
    assert decode_key(raw) == key
    assert kind_of(raw) == "index"
    assert raw == encode_index(key) + b"".join(encode_index_row(*row) for row in index)


@given(st.binary(max_size=300))
@example(b"")
@example(b"\xechoe")
@example(b"\x80\x04\x95")
def test_any_bytes_are_refused_or_read(raw: bytes) -> None:
    made = read_everything(KEY, raw)
    assert made[1:5] == [None, None, None, None]


@given(st.binary(max_size=300), st.binary(max_size=60), st.sampled_from([b"\xechoe", b"\xechoi"]), st.integers(0, 3))
def test_any_bytes_behind_right_checksums_are_refused_or_read(
    head: bytes, tail: bytes, magic: bytes, flags: int
) -> None:
    read_everything(KEY, envelope(head=head, tail=tail, magic=magic, flags=flags, body_length=len(tail) + flags))
    read_everything(KEY, envelope(key=head, magic=magic, head=b"", tail=b""))


@given(msgpack_values)
def test_any_msgpack_value_as_a_head_or_a_key_is_refused_or_read(value: Any) -> None:
    packed = msgpack.packb(value)
    read_everything(KEY, packed)
    read_everything(KEY, envelope(head=packed))
    read_everything(KEY, envelope(key=packed))


@given(st.lists(msgpack_values, max_size=7))
def test_any_parts_of_a_head_give_a_well_formed_entry_or_none(parts: list[Any]) -> None:
    try:
        entry = unpack(msgpack.packb([fixed(), *parts]), b"")
    except CodecError:
        return
    for name, value in entry.response.headers:
        assert re.fullmatch(rb"[!#$%&'*+\-.^_`|~0-9a-z]+", name)
        assert not re.search(rb"[\r\n\0]", value)
    for name, selected in entry.vary:
        assert type(name) is bytes
        assert type(selected) in (bytes, type(None))
    assert all(type(group) is str for group in entry.groups)
    assert type(entry.mark) is int
    assert type(entry.stale_while_revalidate) is type(entry.stale_if_error) is float
    assert type(entry.client_ttl) in (float, type(None))
    assert unpack(pack(entry), b"") == entry


@given(
    st.sampled_from([PLAIN, SQUEEZED, INDEX, SIGNED, SIGNED_SQUEEZED]),
    st.integers(0, 5_000),
    st.binary(max_size=24),
    st.booleans(),
)
def test_a_splice_never_gives_another_entry(raw: bytes, at: int, splice: bytes, resealed: bool) -> None:
    changed = raw[:at] + splice + raw[at + len(splice) :]
    if resealed:
        read_everything(KEY, reseal(changed))
    else:
        for before, after in zip(read_everything(KEY, raw)[1:4], read_everything(KEY, changed)[1:4], strict=True):
            assert after is None or after == before


@given(near_keys | keys, near_keys | keys)
@settings(max_examples=500)
def test_keys_never_collide(one: CacheKey, two: CacheKey) -> None:
    assume(one != two)
    assert codec._key_bytes(one) != codec._key_bytes(two)
    assert key_digest(one) != key_digest(two)


@given(keys)
def test_digests_are_safe_in_a_redis_key(key: CacheKey) -> None:
    assert re.fullmatch(r"[A-Za-z0-9_-]{27}", key_digest(key))


near_vary = st.lists(
    st.tuples(st.sampled_from([b"a", b"b", b"ab", b"\0"]), st.sampled_from([None, b"", b"a", b"ab", b"\0", b"\1"])),
    max_size=3,
).map(tuple)


@given(near_vary | vary_fields, near_vary | vary_fields)
@settings(max_examples=500)
def test_variants_never_collide(one: Vary, two: Vary) -> None:
    assume(one != two)
    assert variant_id(one) != variant_id(two)


@given(rows, st.binary(max_size=80), st.integers(0, 6))
def test_garbage_between_rows_never_makes_a_row(index: list[IndexRow], garbage: bytes, place: int) -> None:
    parts = [encode_index_row(*row) for row in index]
    parts.insert(place, garbage)
    read = decode_index(KEY, encode_index(KEY) + b"".join(parts))
    assert len(read) <= MAX_INDEX_ROWS
    positions = [index.index(row) for row in read]
    assert all(one < two for one, two in pairwise(positions))
    assert read[:place] == index[:place]
