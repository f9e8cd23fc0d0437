"""
The codec in tables: what comes back, what is refused, what stays as it was in every released version.

`python tests/test_codec.py` writes the golden files that are missing; it never writes one that is there.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import pickle
import random
import re
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar
from zlib import crc32

import msgpack
import pytest
import zstandard

from echo_cache import codec
from echo_cache.codec import (
    FORMAT_VERSION,
    MAX_INDEX_ROWS,
    IndexRow,
    decode,
    decode_head,
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

GOLDEN = Path(__file__).with_name("golden")
CAP = 1_000_000
NOW = 1_784_000_000.25
KEY: CacheKey = ("GET", "https", b"shop.example", b"/products/1", b"a=1&b=2")
OTHER: CacheKey = ("GET", "https", b"shop.example", b"/products/2", b"a=1&b=2")
HEADERS = (
    (b"content-type", b"application/json"),
    (b"content-length", b"17"),
    (b"cache-control", b"public, max-age=60, stale-while-revalidate=30"),
    (b"etag", b'"3f786850e387550fdab836ed7e6dc881"'),
    (b"date", b"Sun, 06 Nov 1994 08:49:37 GMT"),
    (b"vary", b"Accept-Encoding"),
)
GZIP: Vary = ((b"accept-encoding", b"gzip"),)


def entry(body: bytes = b'{"hello":"world"}', **changes: Any) -> Entry:
    headers = changes.pop("headers", HEADERS)
    status = changes.pop("status", 200)
    times = {"generated_at": NOW - 1.5, "stored_at": NOW, "fresh_until": NOW + 60, "retain_until": NOW + 3660}
    return Entry(StoredResponse(status, headers, body), **{**times, **changes})


def text(size: int) -> bytes:
    return (b'{"id": 12, "name": "thing", "tags": [1, 2, 3]}, ' * (size // 48 + 1))[:size]


FULL = entry(
    status=404,
    headers=(
        *HEADERS,
        (b"x-odd", b"\xff\x80\t odd \x7f"),
        (b"set-cookie", b"a=1"),
        (b"set-cookie", b"b=2"),
        (b"x", b""),
    ),
    vary=((b"accept-encoding", b"gzip"), (b"accept-language", None), (b"x-tenant", b""), (b"x-odd", b"a\r\n\0b")),
    groups=("catalog", "product:1", "größe ✓", ""),
    mark=1_784_000_000_123 << 64 | 7,
    stale_while_revalidate=30.0,
    stale_if_error=86_400.5,
    always_validate=True,
    never_stale=True,
    anonymous_only=True,
    own_etag=True,
    client_ttl=0.0,
)
ROWS = [
    IndexRow(variant_id(vary), NOW - number, NOW + 60 - number, vary)
    for number, vary in enumerate(
        [GZIP, ((b"accept-encoding", None),), ((b"accept-encoding", b""), (b"x-tenant", b"7"))]
    )
]

GOLDEN_ENTRIES: dict[str, tuple[CacheKey, Entry]] = {
    "v1-plain": (KEY, entry()),
    "v1-full": (("GET decoded", "http", None, "/größe".encode(), b""), FULL),
    "v1-empty": (("GET", "http", b"", b"", b""), entry(b"", status=204, headers=())),
    "v1-zstd": (KEY, entry(text(4_096))),
    "v1-route": (KEY, entry(route="/products/{product_id}")),
}
SECRET = b"0123456789abcdef"
OTHER_SECRET = b"a secret of another, longer than a key of BLAKE2b may be: " * 3
GOLDEN_SIGNED: dict[str, tuple[CacheKey, Entry]] = {"v1-signed": (KEY, FULL)}


def envelope(
    key: bytes = msgpack.packb(KEY),
    head: bytes | None = None,
    tail: bytes = b'{"hello":"world"}',
    *,
    magic: bytes = b"\xechoe",
    version: int = FORMAT_VERSION,
    flags: int = 0,
    body_length: int | None = None,
) -> bytes:
    """Return an envelope whose checksums are right, whatever is in it."""
    head = pack(entry()) if head is None else head
    body_length = len(tail) if body_length is None else body_length
    frame = struct.pack(
        ">4sBBIIIII", magic, version, flags, len(key), len(head), body_length, len(tail), crc32(tail[:65536])
    )
    return frame + struct.pack(">I", crc32(frame + key + head)) + key + head + tail


def reseal(raw: bytes) -> bytes:
    """Return *raw* with checksums that fit what it has become, so that what lies behind them is reached."""
    if len(raw) < 30:
        return raw
    key_length, head_length = struct.unpack_from(">II", raw, 6)
    tail_at = min(30 + key_length + head_length, len(raw))
    frame = raw[:22] + struct.pack(">I", crc32(raw[tail_at:][:65536]))
    return frame + struct.pack(">I", crc32(frame + raw[30:tail_at])) + raw[30:]


@pytest.fixture
def without_zstandard(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    codec._zstandard.cache_clear()
    yield
    codec._zstandard.cache_clear()


# --- heads ------------------------------------------------------------------------------------------------------------

ENTRIES = [
    pytest.param(entry(), id="plain"),
    pytest.param(FULL, id="all-fields"),
    pytest.param(entry(b"", headers=()), id="empty"),
    pytest.param(entry(status=599), id="status-599"),
    pytest.param(entry(vary=GZIP), id="vary"),
    pytest.param(entry(groups=("a",)), id="groups"),
    pytest.param(entry(mark=1), id="mark"),
    pytest.param(entry(mark=-1), id="mark-negative"),
    pytest.param(entry(mark=2**64 - 1), id="mark-64-bits"),
    pytest.param(entry(mark=2**64), id="mark-65-bits"),
    pytest.param(entry(mark=2**128 - 1), id="mark-128-bits"),
    pytest.param(entry(stale_while_revalidate=30.0), id="stale-while-revalidate"),
    pytest.param(entry(stale_if_error=2.0**40), id="stale-if-error-large"),
    pytest.param(entry(client_ttl=0.0), id="client-ttl-zero"),
    pytest.param(entry(client_ttl=-1.25), id="client-ttl-negative"),
    pytest.param(entry(route="/products/{product_id}"), id="route"),
    pytest.param(entry(route="/", client_ttl=0.0), id="route-and-client-ttl"),
    pytest.param(entry(route="\N{SNOWMAN}" * 256), id="route-longest"),
    pytest.param(entry(generated_at=-5.0, fresh_until=1e300), id="odd-times"),
    pytest.param(entry(always_validate=True), id="always-validate"),
    pytest.param(entry(never_stale=True), id="never-stale"),
    pytest.param(entry(anonymous_only=True), id="anonymous-only"),
    pytest.param(entry(own_etag=True), id="own-etag"),
    pytest.param(entry(headers=((b"x-a", b"1"),) * 256), id="headers-256"),
    pytest.param(entry(vary=((b"x-a", b"1"),) * 64), id="vary-64"),
    pytest.param(entry(groups=("g",) * 256), id="groups-256"),
]


@pytest.mark.parametrize("given", ENTRIES)
def test_unpack_gives_back_what_was_packed(given: Entry) -> None:
    assert unpack(pack(given), given.response.body) == given


@pytest.mark.parametrize("given", ENTRIES)
def test_decode_gives_back_what_was_encoded(given: Entry) -> None:
    raw = encode(KEY, given)
    assert decode(KEY, raw, max_body_bytes=CAP) == given
    assert decode_key(raw) == KEY
    assert kind_of(raw) == "entry"


def test_a_typical_head_of_six_headers_is_small() -> None:
    assert len(pack(entry(vary=GZIP, groups=("catalog", "product:1"), mark=NOW.__trunc__() << 20))) <= 200


def test_whole_times_come_back_as_floats() -> None:
    back = unpack(pack(entry(stored_at=1_784_000_000, stale_if_error=60, client_ttl=7)), b"")
    assert [type(value) for value in (back.stored_at, back.stale_if_error, back.client_ttl)] == [float] * 3


def test_entries_share_the_well_known_names_and_values() -> None:
    head = pack(entry(vary=GZIP))
    one, two = unpack(head, b""), unpack(bytes(bytearray(head)), b"")
    assert all(a[0] is b[0] for a, b in zip(one.response.headers, two.response.headers, strict=True))
    assert one.response.headers[0][1] is two.response.headers[0][1]
    assert one.vary[0][0] is two.vary[0][0]
    assert one.vary[0][1] is two.vary[0][1]


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"mark": 2**128}, id="mark-129-bits"),
        pytest.param({"mark": -(2**63) - 1}, id="mark-too-negative"),
        pytest.param({"mark": "1-0"}, id="mark-str"),
        pytest.param({"stored_at": math.nan}, id="nan"),
        pytest.param({"retain_until": math.inf}, id="infinite"),
        pytest.param({"client_ttl": math.inf}, id="client-ttl-infinite"),
        pytest.param({"route": "r" * 257}, id="route-too-long"),
        pytest.param({"route": "/\x1b"}, id="route-not-printable"),
        pytest.param({"generated_at": "now"}, id="time-str"),
        pytest.param({"status": 70_000}, id="status-over-16-bits"),
        pytest.param({"groups": ("\ud800",)}, id="group-surrogate"),
        pytest.param({"headers": ((b"x-a", object()),)}, id="value-object"),
        pytest.param({"headers": ((b"x-a", b"1"),) * 257}, id="headers-257"),
        pytest.param({"vary": ((b"x-a", b"1"),) * 65}, id="vary-65"),
        pytest.param({"groups": ("g",) * 257}, id="groups-257"),
    ],
)
def test_pack_refuses_what_the_format_cannot_carry(changes: dict[str, Any]) -> None:
    with pytest.raises(CodecError):
        pack(entry(**changes))


def fixed(status: int = 200, flags: int = 0, **times: float) -> bytes:
    row = {"generated_at": NOW, "stored_at": NOW, "fresh_until": NOW, "retain_until": NOW, **times}
    return struct.pack(">HB4d", status, flags, *row.values())


NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(None, id="nil"),
        pytest.param(7, id="int"),
        pytest.param("str", id="str"),
        pytest.param(b"bytes", id="bytes"),
        pytest.param([], id="no-parts"),
        pytest.param([fixed()], id="one-part"),
        pytest.param([fixed(), [], [], 0, [], 0, 0, None, "", None], id="ten-parts"),
        pytest.param([fixed(), [], [], 0, [], 0, 0, None, None], id="route-none"),
        pytest.param([fixed(), [], [], 0, [], 0, 0, None, b"/"], id="route-bytes"),
        pytest.param([fixed(), [], [], 0, [], 0, 0, None, "r" * 257], id="route-too-long"),
        pytest.param([fixed(), [], [], 0, [], 0, 0, None, "/\n"], id="route-not-printable"),
        pytest.param([None, []], id="fixed-nil"),
        pytest.param(["x" * 35, []], id="fixed-str"),
        pytest.param([fixed()[:-1], []], id="fixed-short"),
        pytest.param([fixed() + b"\0", []], id="fixed-long"),
        pytest.param([fixed(199), []], id="status-199"),
        pytest.param([fixed(600), []], id="status-600"),
        pytest.param([fixed(flags=32), []], id="unknown-flag"),
        pytest.param([fixed(generated_at=NAN), []], id="generated-nan"),
        pytest.param([fixed(stored_at=INF), []], id="stored-inf"),
        pytest.param([fixed(fresh_until=-INF), []], id="fresh-inf"),
        pytest.param([fixed(retain_until=NAN), []], id="retain-nan"),
        pytest.param([fixed(), None], id="headers-nil"),
        pytest.param([fixed(), b"ab"], id="headers-bytes"),
        pytest.param([fixed(), {}], id="headers-map"),
        pytest.param([fixed(), [b"x-a"]], id="headers-odd"),
        pytest.param([fixed(), [b"x-a", b"1"] * 257], id="headers-257"),
        pytest.param([fixed(), [b"", b"1"]], id="name-empty"),
        pytest.param([fixed(), ["x-a", b"1"]], id="name-str"),
        pytest.param([fixed(), [b"X-A", b"1"]], id="name-upper"),
        pytest.param([fixed(), [b"x a", b"1"]], id="name-space"),
        pytest.param([fixed(), [b"x-a\r\n", b"1"]], id="name-crlf"),
        pytest.param([fixed(), [b"x\0", b"1"]], id="name-nul"),
        pytest.param([fixed(), [b"x\xff", b"1"]], id="name-non-ascii"),
        pytest.param([fixed(), [-1, b"1"]], id="name-negative"),
        pytest.param([fixed(), [10_000, b"1"]], id="name-position-unknown"),
        pytest.param([fixed(), [1.0, b"1"]], id="name-float"),
        pytest.param([fixed(), [True, b"1"]], id="name-bool"),
        pytest.param([fixed(), [None, b"1"]], id="name-nil"),
        pytest.param([fixed(), [[], b"1"]], id="name-array"),
        pytest.param([fixed(), [0, b"a\rb"]], id="value-cr"),
        pytest.param([fixed(), [0, b"a\nb"]], id="value-lf"),
        pytest.param([fixed(), [0, b"a\0b"]], id="value-nul"),
        pytest.param([fixed(), [0, "str"]], id="value-str"),
        pytest.param([fixed(), [0, None]], id="value-nil"),
        pytest.param([fixed(), [0, -1]], id="value-negative"),
        pytest.param([fixed(), [0, 10_000]], id="value-position-unknown"),
        pytest.param([fixed(), [0, 1.0]], id="value-float"),
        pytest.param([fixed(), [0, True]], id="value-bool"),
        pytest.param([fixed(), [0, [b"x"]]], id="value-array"),
        pytest.param([fixed(), [], None], id="vary-nil"),
        pytest.param([fixed(), [], b"ab"], id="vary-bytes"),
        pytest.param([fixed(), [], [b"x-a"]], id="vary-odd"),
        pytest.param([fixed(), [], [b"x-a", b""] * 65], id="vary-65"),
        pytest.param([fixed(), [], [b"X-A", b""]], id="vary-name-upper"),
        pytest.param([fixed(), [], [9_999, b""]], id="vary-name-unknown"),
        pytest.param([fixed(), [], [b"x-a", "str"]], id="vary-value-str"),
        pytest.param([fixed(), [], [b"x-a", 9_999]], id="vary-value-unknown"),
        pytest.param([fixed(), [], [b"x-a", False]], id="vary-value-bool"),
        pytest.param([fixed(), [], [], None], id="mark-nil"),
        pytest.param([fixed(), [], [], b"short"], id="mark-bytes"),
        pytest.param([fixed(), [], [], 1.0], id="mark-float"),
        pytest.param([fixed(), [], [], True], id="mark-bool"),
        pytest.param([fixed(), [], [], 0, "group"], id="groups-str"),
        pytest.param([fixed(), [], [], 0, [b"group"]], id="group-bytes"),
        pytest.param([fixed(), [], [], 0, ["g"] * 257], id="groups-257"),
        pytest.param([fixed(), [], [], 0, [], None], id="stale-nil"),
        pytest.param([fixed(), [], [], 0, [], NAN], id="stale-nan"),
        pytest.param([fixed(), [], [], 0, [], 0, INF], id="stale-if-error-inf"),
        pytest.param([fixed(), [], [], 0, [], 0, True], id="stale-if-error-bool"),
        pytest.param([fixed(), [], [], 0, [], 0, 0, "7"], id="client-ttl-str"),
        pytest.param({"a": 1}, id="map"),
        pytest.param(msgpack.ExtType(5, b"x"), id="extension"),
        pytest.param(msgpack.Timestamp(1), id="timestamp"),
    ],
)
def test_unpack_refuses_a_malformed_head(row: object) -> None:
    head = msgpack.packb(row)
    with pytest.raises(CodecError):
        unpack(head, b"")
    with pytest.raises(CodecError):
        decode(KEY, envelope(head=head), max_body_bytes=CAP)


# --- envelopes --------------------------------------------------------------------------------------------------------

PLAIN = encode(KEY, entry())
SQUEEZED = encode(KEY, entry(text(4_096)))
INDEX = encode_index(KEY, ROWS)


def test_the_test_envelope_is_the_real_one() -> None:
    assert envelope() == PLAIN == reseal(PLAIN)


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\xechoe", id="magic-alone"),
        pytest.param(b"a value of somebody else, as long as a frame and more", id="not-ours"),
        pytest.param(INDEX, id="an-index"),
        pytest.param(encode_index(KEY), id="an-empty-index"),
        pytest.param(envelope(magic=b"\xechox"), id="unknown-kind"),
        pytest.param(envelope(version=0), id="version-0"),
        pytest.param(envelope(version=FORMAT_VERSION + 1), id="version-next"),
        pytest.param(envelope(flags=2), id="mac-flag"),
        pytest.param(envelope(flags=128), id="unknown-flag"),
        pytest.param(envelope(flags=3), id="zstd-and-mac-flags"),
        pytest.param(PLAIN + b"\0", id="trailing-garbage"),
        pytest.param(PLAIN + PLAIN, id="doubled"),
        pytest.param(envelope(body_length=16), id="body-length-smaller"),
        pytest.param(envelope(body_length=18), id="body-length-larger"),
        pytest.param(envelope(tail=zstandard.compress(b"short"), flags=1, body_length=5), id="zstd-that-saves-nothing"),
        pytest.param(envelope(flags=1, body_length=100), id="zstd-that-is-none"),
        pytest.param(envelope(tail=b"", flags=1, body_length=100), id="zstd-empty"),
        pytest.param(envelope(key=msgpack.packb(OTHER)), id="another-key"),
        pytest.param(envelope(key=b""), id="no-key"),
        pytest.param(envelope(key=msgpack.packb([*KEY, 1])), id="key-of-six"),
        pytest.param(envelope(key=msgpack.packb(KEY) + b"\xc0"), id="key-and-garbage"),
        pytest.param(envelope(head=b""), id="no-head"),
        pytest.param(envelope(head=b"", tail=b""), id="no-head-and-no-body"),
        pytest.param(envelope(head=b"", tail=pack(entry())), id="head-in-the-body"),
        pytest.param(envelope(head=pack(entry()) + b"\xc0"), id="head-and-garbage"),
        pytest.param(envelope(head=b"\x91" * 20_000 + b"\xc0"), id="nested-20000-deep"),
        pytest.param(envelope(head=b"\x81\xc0" * 20_000 + b"\xc0"), id="maps-nested-20000-deep"),
        pytest.param(envelope(head=b"\xdd\xff\xff\xff\xff"), id="array-of-4-billion"),
        pytest.param(envelope(head=b"\xdc\x02\x00" * 80_000), id="arrays-of-512-nested"),
        pytest.param(envelope(head=b"\xdf\xff\xff\xff\xff"), id="map-of-4-billion"),
        pytest.param(envelope(head=b"\xc6\xff\xff\xff\xff"), id="bytes-of-4-gib"),
        pytest.param(envelope(head=b"\xdb\xff\xff\xff\xff"), id="string-of-4-gib"),
        pytest.param(envelope(head=b"\xc9\xff\xff\xff\xff\x01"), id="extension-of-4-gib"),
        pytest.param(envelope(head=b"\xd4\xff\x00"), id="timestamp-malformed"),
        pytest.param(envelope(head=b"\xa2\xff\xff"), id="not-utf-8"),
        pytest.param(envelope(head=b"\xc1"), id="reserved-byte"),
        pytest.param(envelope(head=pack(entry(headers=((b"x-a", b"a" * 2**18),)))), id="head-over-limit"),
        pytest.param(reseal(PLAIN[:6] + b"\xff" * 16 + PLAIN[22:]), id="all-lengths-4-gib"),
        pytest.param(reseal(PLAIN[:6] + b"\xff" * 4 + PLAIN[10:]), id="key-length-4-gib"),
        pytest.param(reseal(PLAIN[:14] + b"\xff" * 8 + PLAIN[22:]), id="body-lengths-4-gib"),
        pytest.param(PLAIN[:22] + b"\0\0\0\0" + PLAIN[26:], id="checksum-of-body-zero"),
        pytest.param(PLAIN[:26] + b"\0\0\0\0" + PLAIN[30:], id="checksum-of-head-zero"),
    ],
)
def test_decode_refuses_within_a_bounded_memory(raw: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(CodecError):
            decode(KEY, raw, max_body_bytes=CAP)
        assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    finally:
        tracemalloc.stop()


def test_an_entry_for_another_key_is_refused() -> None:
    with pytest.raises(CodecError, match="another key"):
        decode(OTHER, PLAIN, max_body_bytes=CAP)


@pytest.mark.parametrize("raw", [pytest.param(PLAIN, id="plain"), pytest.param(SQUEEZED, id="zstd")])
def test_every_flip_of_one_bit_is_found(raw: bytes) -> None:
    for position in range(len(raw)):
        for bit in range(8):
            flipped = raw[:position] + bytes([raw[position] ^ 1 << bit]) + raw[position + 1 :]
            with pytest.raises(CodecError):
                decode(KEY, flipped, max_body_bytes=CAP)


@pytest.mark.parametrize("raw", [pytest.param(PLAIN, id="plain"), pytest.param(SQUEEZED, id="zstd")])
def test_every_truncation_is_found(raw: bytes) -> None:
    for length in range(len(raw)):
        for cut in (raw[:length], raw[length + 1 :]):
            with pytest.raises(CodecError):
                decode(KEY, cut, max_body_bytes=CAP)


def test_a_large_body_is_checked_at_its_beginning_and_by_its_length() -> None:
    given = entry(random.Random(1).randbytes(200_000))
    raw = encode(KEY, given)
    start = len(raw) - 200_000
    assert int.from_bytes(raw[22:26], "big") == crc32(given.response.body[:65_536])
    assert decode(KEY, raw, max_body_bytes=CAP) == given
    for position in (start, start + 65_535):
        with pytest.raises(CodecError, match="checksum of the body"):
            decode(KEY, raw[:position] + bytes([raw[position] ^ 1]) + raw[position + 1 :], max_body_bytes=CAP)
    with pytest.raises(CodecError, match="length"):
        decode(KEY, raw[:-1], max_body_bytes=CAP)


@pytest.mark.parametrize("raw", [pytest.param(PLAIN, id="plain"), pytest.param(SQUEEZED, id="zstd")])
def test_a_body_at_the_limit_is_taken_and_over_it_refused(raw: bytes) -> None:
    size = len(decode(KEY, raw, max_body_bytes=CAP).response.body)
    assert len(decode(KEY, raw, max_body_bytes=size).response.body) == size
    with pytest.raises(CodecError, match="over the limit"):
        decode(KEY, raw, max_body_bytes=size - 1)


def test_20000_seeded_mutations_are_a_refusal_or_an_entry() -> None:
    rng = random.Random(9111)
    seeds = [PLAIN, SQUEEZED, INDEX, encode(KEY, FULL), encode(KEY, entry(b""))]
    intact = {raw: decode(KEY, raw, max_body_bytes=CAP) for raw in seeds if raw is not INDEX}
    taken = 0
    for number in range(20_000):
        seed = rng.choice(seeds)
        raw = bytearray(seed)
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(raw) + 1)
            match rng.randrange(4):
                case 0:
                    raw[at : at + 1] = rng.randbytes(1)
                case 1:
                    raw[at:at] = rng.randbytes(rng.randint(1, 8))
                case 2:
                    del raw[at : at + rng.randint(1, 8)]
                case _:
                    donor = rng.choice(seeds)
                    raw[at : at + 16] = donor[at : at + 16]
        mutated = bytes(raw) if number % 2 else reseal(bytes(raw))
        try:
            got = decode(KEY, mutated, max_body_bytes=CAP)
        except CodecError:
            pass
        else:
            taken += 1
            assert isinstance(got, Entry)
            if number % 2:
                assert got == intact[mutated]
        for read in (decode_key, lambda raw: decode_index(KEY, raw)):
            try:
                read(mutated)
            except CodecError:
                continue
    assert taken > 100  # the loop reaches what lies behind the checksums


class Planted:
    """Unpickling one of these leaves a trace."""

    ran: ClassVar[list[str]] = []

    def __reduce__(self) -> tuple[Any, ...]:
        return Planted.ran.append, ("ran",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_planted_pickle_runs_nothing(protocol: int) -> None:
    class_level = pickle.dumps(Planted(), protocol)
    for raw in (class_level, envelope(head=class_level), envelope(key=class_level), envelope(tail=class_level)):
        for read in (
            lambda raw: decode(KEY, raw, max_body_bytes=CAP),
            lambda raw: decode_index(KEY, raw),
            decode_key,
        ):
            try:
                read(raw)
            except CodecError:
                continue
    assert Planted.ran == []


@pytest.mark.parametrize(
    ("key", "given"),
    [
        pytest.param(("GET", "ht\udc80tp", None, b"/", b""), entry(), id="key-surrogate"),
        pytest.param(("GET", object(), None, b"/", b""), entry(), id="key-object"),
        pytest.param(("GET", "http", None, b"/" * 2**18, b""), entry(), id="key-over-limit"),
        pytest.param(KEY, entry(headers=((b"x-a", b"a" * 2**18),)), id="head-over-limit"),
    ],
)
def test_encode_refuses_what_the_format_cannot_carry(key: CacheKey, given: Entry) -> None:
    with pytest.raises(CodecError):
        encode(key, given)


# --- signatures -------------------------------------------------------------------------------------------------------

SIGNED = encode(KEY, FULL, secret=SECRET)
SIGNED_SQUEEZED = encode(KEY, entry(text(4_096)), secret=SECRET)
BOTH_SIGNED = [pytest.param(SIGNED, id="plain"), pytest.param(SIGNED_SQUEEZED, id="zstd")]


def recheck(raw: bytes) -> bytes:
    """Return *raw*, a signed envelope, with checksums that fit what it has become, as whoever forges it would."""
    key_length, head_length = struct.unpack_from(">II", raw, 6)
    tail_at = 30 + (16 if raw[5] & 2 else 0) + key_length + head_length
    frame = raw[:22] + struct.pack(">I", crc32(raw[tail_at:][:65536]))
    return frame + struct.pack(">I", crc32(frame + raw[30:tail_at])) + raw[30:]


def flips(raw: bytes) -> Iterator[bytes]:
    for position in range(len(raw)):
        for bit in range(8):
            yield raw[:position] + bytes([raw[position] ^ 1 << bit]) + raw[position + 1 :]


@pytest.mark.parametrize("given", ENTRIES)
@pytest.mark.parametrize("secret", [SECRET, OTHER_SECRET, bytes(16)])
def test_a_signed_entry_is_read_by_who_has_its_secret(given: Entry, secret: bytes) -> None:
    raw = encode(KEY, given, secret=secret)
    assert decode(KEY, raw, max_body_bytes=CAP, secrets=[secret]) == given
    assert decode_key(raw) == decode_key(raw[: len(raw) - len(given.response.body)]) == KEY
    assert kind_of(raw) == "entry"


def test_a_signature_is_a_flag_and_16_bytes() -> None:
    unsigned = encode(KEY, FULL)
    assert len(SIGNED) == len(unsigned) + 16
    assert (SIGNED[5], SIGNED_SQUEEZED[5]) == (2, 3)
    assert SIGNED[:5] == unsigned[:5]
    assert SIGNED[46:] == unsigned[30:]


def test_any_of_several_secrets_may_have_signed() -> None:
    for secrets in ([SECRET, OTHER_SECRET], [OTHER_SECRET, SECRET], (bytes(16), OTHER_SECRET, SECRET)):
        assert decode(KEY, SIGNED, max_body_bytes=CAP, secrets=secrets) == FULL


@pytest.mark.parametrize("raw", BOTH_SIGNED)
def test_without_a_secret_a_signed_entry_is_refused_and_is_no_forgery(raw: bytes) -> None:
    with pytest.raises(CodecError, match="no secret") as caught:
        decode(KEY, raw, max_body_bytes=CAP)
    assert type(caught.value) is CodecError


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(PLAIN, id="unsigned"),
        pytest.param(SQUEEZED, id="unsigned-zstd"),
        pytest.param(encode(KEY, FULL, secret=OTHER_SECRET), id="another-secret"),
        pytest.param(encode(KEY, FULL, secret=SECRET + b"\0"), id="a-longer-secret"),
        pytest.param(encode(OTHER, FULL, secret=SECRET), id="replayed-from-another-key"),
        pytest.param(
            recheck(SIGNED[:46] + encode(OTHER, FULL, secret=SECRET)[46:]), id="signature-of-another-key-with-its-key"
        ),
        pytest.param(
            recheck(SIGNED[:30] + encode(OTHER, FULL, secret=SECRET)[30:46] + SIGNED[46:]),
            id="signature-of-another-key",
        ),
        pytest.param(recheck(SIGNED[:5] + b"\0" + SIGNED[6:30] + SIGNED[46:]), id="signature-removed"),
        pytest.param(recheck(SIGNED[:30] + bytes(16) + SIGNED[46:]), id="signature-of-zeros"),
        pytest.param(recheck(SIGNED[:-1] + b"!"), id="body-changed"),
        pytest.param(recheck(SIGNED.replace(b"a=1", b"a=2")), id="header-changed"),
        pytest.param(
            recheck(SIGNED[:30] + SIGNED[30:46] + encode(KEY, FULL._replace(retain_until=1e300))[30:]),
            id="life-lengthened",
        ),
        pytest.param(
            recheck(SIGNED_SQUEEZED[:14] + struct.pack(">I", 4_097) + SIGNED_SQUEEZED[18:]), id="length-changed"
        ),
    ],
)
def test_what_is_forged_is_told_from_what_is_damaged(raw: bytes) -> None:
    with pytest.raises(ForgedError):
        decode(KEY, raw, max_body_bytes=CAP, secrets=[SECRET])


def mac_by(algorithm: Callable[[bytes, bytes], bytes]) -> bytes:
    """Return SIGNED with the MAC that *algorithm* makes of (key, message) in the place of the right one."""
    covered = SIGNED[:26] + SIGNED[46:]
    derived = hashlib.blake2b(SECRET, digest_size=64, person=b"echo_cache sign").digest()
    return recheck(SIGNED[:30] + algorithm(derived, covered)[:16] + SIGNED[46:])


def blake2(key: bytes, covered: bytes) -> bytes:
    return hashlib.blake2b(covered, key=key, digest_size=16, person=b"echo_cache mac").digest()


def test_the_signature_is_keyed_blake2b_over_all_but_itself_and_the_checksum() -> None:
    assert mac_by(blake2) == SIGNED


@pytest.mark.parametrize(
    "algorithm",
    [
        pytest.param(lambda key, covered: hmac.digest(key, covered, "sha256"), id="hmac-sha256"),
        pytest.param(lambda key, covered: hmac.digest(SECRET, covered, "sha256"), id="hmac-of-the-secret-itself"),
        pytest.param(
            lambda key, covered: hashlib.blake2b(covered, digest_size=16, person=b"echo_cache mac").digest(),
            id="no-key",
        ),
        pytest.param(
            lambda key, covered: hashlib.blake2b(
                covered, key=SECRET, digest_size=16, person=b"echo_cache mac"
            ).digest(),
            id="key-not-derived",
        ),
        pytest.param(lambda key, covered: hashlib.blake2b(covered, key=key, digest_size=16).digest(), id="no-person"),
        pytest.param(lambda key, covered: hashlib.blake2b(covered, key=key).digest(), id="64-bytes-cut"),
        pytest.param(
            lambda key, covered: hashlib.blake2s(covered, key=key[:32], digest_size=16).digest(), id="blake2s"
        ),
        pytest.param(lambda key, covered: hashlib.md5(key + covered).digest(), id="md5"),
    ],
)
def test_a_signature_by_another_algorithm_is_a_forgery(algorithm: Callable[[bytes, bytes], bytes]) -> None:
    with pytest.raises(ForgedError):
        decode(KEY, mac_by(algorithm), max_body_bytes=CAP, secrets=[SECRET])


@pytest.mark.parametrize("raw", BOTH_SIGNED)
def test_every_flip_of_one_bit_in_a_signed_entry_is_damage(raw: bytes) -> None:
    for flipped in flips(raw):
        with pytest.raises(CodecError) as caught:
            decode(KEY, flipped, max_body_bytes=CAP, secrets=[SECRET])
        assert type(caught.value) is CodecError


@pytest.mark.parametrize("raw", BOTH_SIGNED)
def test_every_flip_of_one_bit_is_found_behind_right_checksums_too(raw: bytes) -> None:
    for position, flipped in enumerate(flips(raw)):
        if 6 <= position // 8 < 14 or position == 5 * 8 + 1:
            continue  # other lengths move what the checksums are over: the next test has these
        changed = recheck(flipped)
        if changed != raw:  # else the flip was in a checksum
            with pytest.raises(CodecError):
                decode(KEY, changed, max_body_bytes=CAP, secrets=[SECRET])


def test_boundaries_between_the_parts_are_signed() -> None:
    key_length, head_length = struct.unpack_from(">II", SIGNED, 6)
    for moved in (-1, 1, 5):
        for lengths in ((key_length + moved, head_length - moved), (key_length, head_length + moved)):
            raw = recheck(SIGNED[:6] + struct.pack(">II", *lengths) + SIGNED[14:])
            with pytest.raises(CodecError):
                decode(KEY, raw, max_body_bytes=CAP, secrets=[SECRET])


def test_a_large_signed_body_is_covered_to_its_last_byte() -> None:
    given = entry(random.Random(1).randbytes(200_000))
    raw = encode(KEY, given, secret=SECRET)
    assert decode(KEY, raw, max_body_bytes=CAP, secrets=[SECRET]) == given
    with pytest.raises(ForgedError):
        decode(KEY, raw[:-1] + bytes([raw[-1] ^ 1]), max_body_bytes=CAP, secrets=[SECRET])


@pytest.mark.parametrize("secrets", [pytest.param([SECRET], id="forged"), pytest.param([], id="no-secret")])
def test_a_signature_is_checked_before_anything_is_parsed_or_decompressed(
    secrets: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("parsed before it was checked")

    raw = encode(KEY, entry(text(4_096)), secret=OTHER_SECRET)
    for name in ("_unpackb", "_decompress", "_recent_parts"):
        monkeypatch.setattr(codec, name, never)
    with pytest.raises(CodecError, match="sign"):
        decode(KEY, raw, max_body_bytes=CAP, secrets=secrets)
    with pytest.raises(AssertionError):
        decode(KEY, raw, max_body_bytes=CAP, secrets=[OTHER_SECRET])


# --- another clock ----------------------------------------------------------------------------------------------------

TIMES = ("generated_at", "stored_at", "fresh_until", "retain_until")


@pytest.mark.parametrize("given", ENTRIES)
@pytest.mark.parametrize("shift", [60.0, -60.0, 0.25, 86_400.0])
def test_times_are_written_by_the_other_clock_and_read_by_ours(given: Entry, shift: float) -> None:
    raw = encode(KEY, given, shift=shift)
    there = decode(KEY, raw, max_body_bytes=CAP)
    here = decode(KEY, raw, max_body_bytes=CAP, shift=shift)
    for name in TIMES:
        assert getattr(there, name) == getattr(given, name) + shift
        assert getattr(here, name) == pytest.approx(getattr(given, name), abs=1e-6)
    unshifted = dict.fromkeys(TIMES, 0.0)
    assert there._replace(**unshifted) == here._replace(**unshifted) == given._replace(**unshifted)


@pytest.mark.parametrize("huge", [1e300, -1e300, sys.float_info.max, 1e30])
def test_huge_times_stay_what_they_are_by_any_clock(huge: float) -> None:
    given = entry(retain_until=huge)
    for shift in (60.0, -60.0, 1e9):
        raw = encode(KEY, given, shift=shift)
        assert decode(KEY, raw, max_body_bytes=CAP).retain_until == huge
        assert decode(KEY, raw, max_body_bytes=CAP, shift=shift).retain_until == huge


def test_no_shift_changes_no_byte() -> None:
    assert encode(KEY, FULL, shift=0.0) == encode(KEY, FULL)
    assert encode(KEY, FULL, shift=7.0) == encode(
        KEY, FULL._replace(**{name: getattr(FULL, name) + 7.0 for name in TIMES})
    )


@pytest.mark.parametrize("shift", [INF, -INF, NAN])
def test_a_clock_that_is_no_clock_writes_nothing(shift: float) -> None:
    with pytest.raises(CodecError):
        encode(KEY, entry(), shift=shift)


# --- what was read before ---------------------------------------------------------------------------------------------


def heads_like(number: int) -> bytes:
    return encode(KEY, entry(headers=((b"x-name-%d" % number, b"v"), (b"etag", b'"%d"' % number))))


def test_what_was_read_before_is_read_the_same_again() -> None:
    raws = [encode(KEY, given.values[0]) for given in ENTRIES]
    for _ in range(3):
        for raw, given in zip(raws, ENTRIES, strict=True):
            assert decode(KEY, raw, max_body_bytes=CAP) == given.values[0]


def test_entries_read_again_share_their_headers() -> None:
    raw = heads_like(-1)
    entries = [decode(KEY, raw, max_body_bytes=CAP) for _ in range(3)]
    assert entries[1].response.headers is entries[2].response.headers


def test_what_was_read_before_excuses_nothing_else() -> None:
    good = pack(entry())
    for _ in range(3):
        assert decode(KEY, envelope(head=good), max_body_bytes=CAP) == entry()
        for bad in (
            b"\x93" + good[1:],  # the same parts in an array that claims more
            good[:1] + b"\xc5" + good[2:],
            good[:3] + b"\xff" + good[4:],
            good[:1] + msgpack.packb(fixed(600)) + good[38:],
            good[:1] + msgpack.packb(fixed(stored_at=NAN)) + good[38:],
            good[:30],
        ):
            with pytest.raises(CodecError):
                decode(KEY, envelope(head=bad), max_body_bytes=CAP)


def test_a_flood_of_heads_and_names_is_forgotten() -> None:
    for number in range(5_000):
        raw = heads_like(number)
        for _ in range(2):
            assert decode(KEY, raw, max_body_bytes=CAP).response.headers[0][0] == b"x-name-%d" % number
    assert len(codec._recent_heads) <= 512
    assert len(codec._recent_names) <= 512
    assert len(codec._seen_heads) <= 4_096
    long = encode(KEY, entry(headers=((b"x" * 100, b"v" * 1_000),)))
    for _ in range(3):
        assert decode(KEY, long, max_body_bytes=CAP).response.headers == ((b"x" * 100, b"v" * 1_000),)
    assert max(map(len, codec._recent_heads)) <= 512
    assert max(map(len, codec._recent_names)) <= 64


# --- keys, kinds, digests ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "kind"),
    [
        pytest.param(PLAIN, "entry", id="entry"),
        pytest.param(INDEX, "index", id="index"),
        pytest.param(PLAIN[:4], "entry", id="entry-prefix"),
        pytest.param(PLAIN[:3], None, id="too-short"),
        pytest.param(b"", None, id="nothing"),
        pytest.param(b"\x80\x04garbage", None, id="garbage"),
    ],
)
def test_the_kind_is_told_by_the_first_bytes(raw: bytes, kind: str | None) -> None:
    assert kind_of(raw) == kind


def test_the_key_is_read_from_a_prefix_that_contains_the_head() -> None:
    end = len(PLAIN) - 17
    for length in range(len(PLAIN) + 1):
        if length >= end:
            assert decode_key(PLAIN[:length]) == KEY
        else:
            with pytest.raises(CodecError):
                decode_key(PLAIN[:length])
    assert decode_key(encode_index(KEY)) == decode_key(INDEX) == KEY


@pytest.mark.parametrize(
    "key",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(msgpack.packb(None), id="nil"),
        pytest.param(msgpack.packb(list(KEY[:4])), id="four-parts"),
        pytest.param(msgpack.packb([*KEY, b""]), id="six-parts"),
        pytest.param(msgpack.packb([b"GET", *KEY[1:]]), id="form-bytes"),
        pytest.param(msgpack.packb([*KEY[:3], None, b""]), id="path-nil"),
        pytest.param(msgpack.packb([*KEY[:4], 1]), id="query-int"),
        pytest.param(b"\xdc\x00\x05" + msgpack.packb(KEY)[1:], id="another-form-of-the-same"),
        pytest.param(b"\x91" * 20_000, id="nested-20000-deep"),
        pytest.param(msgpack.packb([*KEY[:4], b"x" * 2**18]), id="over-limit"),
    ],
)
def test_decode_key_refuses_a_malformed_key(key: bytes) -> None:
    with pytest.raises(CodecError):
        decode_key(envelope(key=key))


@pytest.mark.parametrize(
    ("one", "two"),
    [
        pytest.param(("GET", "http", None, b"/", b""), ("GET", "http", b"", b"/", b""), id="host-absent-or-empty"),
        pytest.param(("GET", "http", b"a", b"b", b""), ("GET", "http", b"ab", b"", b""), id="boundary-moved"),
        pytest.param(("GET", "http", b"a", b"/?", b""), ("GET", "http", b"a", b"/", b"?"), id="path-or-query"),
        pytest.param(("GET", "http", b"a", b"/", b""), ("GET decoded", "http", b"a", b"/", b""), id="form"),
        pytest.param(("GET", "http", b"a", b"/", b""), ("GET", "https", b"a", b"/", b""), id="scheme"),
        pytest.param(("GET", "a", b"a", b"", b""), ("GETa", "", b"a", b"", b""), id="form-or-scheme"),
    ],
)
def test_keys_that_differ_have_digests_that_differ(one: CacheKey, two: CacheKey) -> None:
    assert key_digest(one) != key_digest(two)
    assert re.fullmatch(r"[A-Za-z0-9_-]{27}", key_digest(one))


@pytest.mark.parametrize(
    ("one", "two"),
    [
        pytest.param(((b"a", None),), ((b"a", b""),), id="absent-or-empty"),
        pytest.param(((b"a", b"b"),), ((b"ab", b""),), id="boundary-moved"),
        pytest.param((), ((b"a", None),), id="none-or-one"),
        pytest.param(((b"a", b""), (b"b", b"")), ((b"b", b""), (b"a", b"")), id="order"),
        pytest.param(((b"a", b"\0\0\0\1b\0"),), ((b"a", b""), (b"b", None)), id="one-or-two"),
    ],
)
def test_vary_that_differs_has_ids_that_differ(one: Vary, two: Vary) -> None:
    assert variant_id(one) != variant_id(two)
    assert len(variant_id(one)) == codec.VARIANT_ID_BYTES


def test_digests_stay_as_they_were() -> None:
    # They are in the keys of Redis: another digest is another cache.
    assert key_digest(KEY) == "A2SA0NtwIGsSCkYRFFfafTz8e6E"
    assert variant_id(GZIP).hex() == "6e07dc6bce17b9cd33227a0b8c1f2289"


# --- compression ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "headers", "compressed"),
    [
        pytest.param(text(4_096), HEADERS, True, id="json"),
        pytest.param(text(1_024), HEADERS, True, id="1-kib"),
        pytest.param(text(1_023), HEADERS, False, id="under-1-kib"),
        pytest.param(text(4_096), (), True, id="no-type"),
        pytest.param(random.Random(1).randbytes(4_096), HEADERS, False, id="saves-nothing"),
        pytest.param(text(4_096), ((b"content-encoding", b"gzip"),), False, id="gzip"),
        pytest.param(text(4_096), ((b"content-encoding", b"identity"),), True, id="identity"),
        pytest.param(text(4_096), ((b"content-encoding", b" Identity "),), True, id="identity-spaced"),
        pytest.param(text(4_096), ((b"content-encoding", b"identity"), (b"content-encoding", b"br")), False, id="two"),
        pytest.param(text(4_096), ((b"content-type", b"image/png"),), False, id="png"),
        pytest.param(text(4_096), ((b"content-type", b" IMAGE/JPEG"),), False, id="jpeg-upper"),
        pytest.param(text(4_096), ((b"content-type", b"image/svg+xml"),), True, id="svg"),
        pytest.param(text(4_096), ((b"content-type", b"video/mp4"),), False, id="video"),
        pytest.param(text(4_096), ((b"content-type", b"audio/ogg"),), False, id="audio"),
        pytest.param(text(4_096), ((b"content-type", b"application/zip"),), False, id="zip"),
        pytest.param(text(4_096), ((b"content-type", b"application/gzip"),), False, id="gzip-type"),
        pytest.param(text(4_096), ((b"content-type", b"font/woff2"),), False, id="woff2"),
    ],
)
def test_a_body_is_compressed_where_that_can_pay(body: bytes, headers: Any, compressed: bool) -> None:
    given = entry(body, headers=headers)
    raw = encode(KEY, given)
    assert raw[5] == compressed
    assert (len(raw) < len(body)) == compressed
    assert decode(KEY, raw, max_body_bytes=CAP) == given


def test_compression_can_be_turned_off() -> None:
    assert encode(KEY, entry(text(4_096)), compress=False)[5] == 0


def test_without_zstandard_bodies_are_stored_plain(without_zstandard: None) -> None:
    given = entry(text(4_096))
    raw = encode(KEY, given)
    assert raw[5] == 0
    assert decode(KEY, raw, max_body_bytes=CAP) == given


def test_without_zstandard_a_compressed_entry_is_a_miss(without_zstandard: None) -> None:
    with pytest.raises(CodecError, match="not installed"):
        decode(KEY, SQUEEZED, max_body_bytes=CAP)


BODY = text(4_096)
ZSTD = zstandard.ZstdCompressor()


@pytest.mark.parametrize(
    "tail",
    [
        pytest.param(zstandard.ZstdCompressor(write_content_size=False).compress(BODY), id="no-content-size"),
        pytest.param(ZSTD.compress(BODY + b"x"), id="claims-more"),
        pytest.param(ZSTD.compress(BODY[:-1]), id="claims-less"),
        pytest.param(ZSTD.compress(BODY) + b"x", id="trailing-garbage"),
        pytest.param(ZSTD.compress(BODY) + ZSTD.compress(BODY), id="two-frames"),
        pytest.param(ZSTD.compress(BODY)[:-1], id="truncated"),
        pytest.param(b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd", id="skippable-frame"),
        pytest.param(b"\x28\xb5\x2f\xfd", id="magic-alone"),
    ],
)
def test_a_frame_that_is_not_the_body_is_refused(tail: bytes) -> None:
    with pytest.raises(CodecError):
        decode(KEY, envelope(tail=tail, flags=1, body_length=len(BODY)), max_body_bytes=CAP)


BOMB = """
import resource, struct, sys
import zstandard
from echo_cache.codec import decode
from echo_cache.errors import CodecError
from tests.test_codec import CAP, KEY, envelope

sink = zstandard.ZstdCompressor().compressobj(size=2**30)
bomb = b"".join([*(sink.compress(bytes(2**20)) for _ in range(1024)), sink.flush()])
assert zstandard.get_frame_parameters(bomb).content_size == 2**30 and len(bomb) < 200_000
size_at = bomb.index(struct.pack("<I", 2**30))
lying = bomb[:size_at] + struct.pack("<I", CAP) + bomb[size_at + 4:]
assert zstandard.get_frame_parameters(lying).content_size == CAP
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for tail, claim in ((bomb, 2**30), (bomb, CAP), (lying, CAP), (lying, 2**30)):
    try:
        decode(KEY, envelope(tail=tail, flags=1, body_length=claim), max_body_bytes=CAP)
    except CodecError:
        continue
    sys.exit("a bomb was taken")
grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
assert grown < CAP + 4 * 2**20, grown
"""


def test_a_bomb_of_1_gb_is_refused_within_the_body_cap() -> None:
    root = Path(__file__).parents[1]
    subprocess.run([sys.executable, "-c", BOMB], cwd=root, check=True, timeout=60)


# --- indexes ----------------------------------------------------------------------------------------------------------


def row(number: int) -> IndexRow:
    vary: Vary = ((b"accept-language", b"%d" % number),)
    return IndexRow(variant_id(vary), NOW - number, NOW + number, vary)


def test_an_index_gives_back_its_rows_newest_first() -> None:
    assert decode_index(KEY, INDEX) == ROWS
    assert decode_index(KEY, encode_index(KEY)) == []
    assert kind_of(INDEX) == "index"
    assert envelope(magic=b"\xechoi", head=b"", tail=b"") == encode_index(KEY)


def test_an_index_is_its_beginning_and_its_rows() -> None:
    assert encode_index(KEY) + b"".join(encode_index_row(*each) for each in ROWS) == INDEX


def test_a_row_has_its_length_and_its_id_at_fixed_places() -> None:
    raw = encode_index_row(*ROWS[0])
    assert int.from_bytes(raw[:4], "big") == len(raw)
    assert raw[4:20] == ROWS[0].variant
    assert struct.unpack(">dd", raw[20:36]) == (ROWS[0].stored_at, ROWS[0].retain_until)
    assert msgpack.unpackb(raw[36:-4]) == [codec._NAMES.index(b"accept-encoding"), codec._VALUES.index(b"gzip")]
    assert int.from_bytes(raw[-4:], "big") == crc32(raw[:-4])


def test_an_index_is_bounded() -> None:
    rows = [row(number) for number in range(MAX_INDEX_ROWS + 10)]
    assert encode_index(KEY, rows) == encode_index(KEY, rows[:MAX_INDEX_ROWS])
    assert decode_index(KEY, encode_index(KEY, rows)) == rows[:MAX_INDEX_ROWS]
    longer = encode_index(KEY) + b"".join(encode_index_row(*each) for each in rows)
    assert decode_index(KEY, longer) == rows[:MAX_INDEX_ROWS]


def test_the_newest_row_of_a_variant_counts() -> None:
    older = ROWS[0]._replace(stored_at=1.0)
    assert decode_index(KEY, encode_index(KEY, [*ROWS, older])) == ROWS


def sealed(content: bytes) -> bytes:
    return content + struct.pack(">I", crc32(content))


@pytest.mark.parametrize(
    ("bad", "left"),
    [
        pytest.param(encode_index_row(*row(1))[:-1] + b"?", [ROWS[0]], id="checksum"),
        pytest.param(sealed(struct.pack(">I16sdd", 41, b"v" * 16, NAN, NOW) + b"\x90"), [ROWS[0]], id="nan"),
        pytest.param(sealed(struct.pack(">I16sdd", 41, b"v" * 16, NOW, INF) + b"\x90"), [ROWS[0]], id="infinite"),
        pytest.param(sealed(struct.pack(">I16sdd", 41, b"v" * 16, NOW, NOW) + b"\xc0"), [ROWS[0]], id="vary-nil"),
        pytest.param(sealed(struct.pack(">I16sdd", 40, b"v" * 16, NOW, NOW)), [ROWS[0]], id="no-vary"),
        pytest.param(
            sealed(struct.pack(">I16sdd", 20_040, b"v" * 16, NOW, NOW) + b"\x91" * 20_000), [ROWS[0]], id="nested"
        ),
        pytest.param(struct.pack(">I", 0) * 10, [], id="length-0"),
        pytest.param(struct.pack(">I", 39) + bytes(36), [], id="length-39"),
        pytest.param(struct.pack(">I", 2**32 - 1) + bytes(36), [], id="length-4-gib"),
        pytest.param(sealed(struct.pack(">I", 70_000) + bytes(69_992)), [], id="length-over-limit"),
    ],
)
def test_a_damaged_row_is_left_out(bad: bytes, left: list[IndexRow]) -> None:
    rows = encode_index_row(*ROWS[1]) + bad + encode_index_row(*ROWS[0])
    assert decode_index(KEY, encode_index(KEY) + rows) == [ROWS[1], *left]


def test_a_flip_in_an_index_never_gives_another_row() -> None:
    for position in range(len(INDEX)):
        for bit in range(8):
            flipped = INDEX[:position] + bytes([INDEX[position] ^ 1 << bit]) + INDEX[position + 1 :]
            try:
                rows = decode_index(KEY, flipped)
            except CodecError:
                assert position < len(encode_index(KEY))
            else:
                assert [each for each in ROWS if each in rows] == rows != ROWS


def test_a_truncated_index_gives_the_rows_that_are_whole() -> None:
    start = len(encode_index(KEY))
    for length in range(len(INDEX)):
        if length < start:
            with pytest.raises(CodecError):
                decode_index(KEY, INDEX[:length])
        else:
            rows = decode_index(KEY, INDEX[:length])
            assert rows == ROWS[: len(rows)] != ROWS


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(PLAIN, id="an-entry"),
        pytest.param(encode_index(OTHER, ROWS), id="another-key"),
        pytest.param(envelope(magic=b"\xechoi", head=b"", tail=b"", version=2), id="another-version"),
        pytest.param(envelope(magic=b"\xechoi", head=b"", tail=b"", flags=1), id="flags"),
        pytest.param(envelope(magic=b"\xechoi", head=b"x", tail=b""), id="with-a-head"),
        pytest.param(envelope(magic=b"\xechoi", head=b"", tail=b"x"), id="with-a-tail"),
    ],
)
def test_what_is_no_index_of_this_key_is_refused(raw: bytes) -> None:
    with pytest.raises(CodecError):
        decode_index(KEY, raw)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"variant": b"short"}, id="id-short"),
        pytest.param({"variant": b"v" * 17}, id="id-long"),
        pytest.param({"stored_at": NAN}, id="nan"),
        pytest.param({"retain_until": INF}, id="infinite"),
        pytest.param({"vary": ((b"a", b""),) * 65}, id="vary-65"),
        pytest.param({"vary": ((b"a", b"x" * 65_536),)}, id="over-64-kib"),
        pytest.param({"vary": ((b"a", object()),)}, id="vary-object"),
    ],
)
def test_encode_index_row_refuses_what_the_format_cannot_carry(changes: dict[str, Any]) -> None:
    with pytest.raises(CodecError):
        encode_index_row(*ROWS[0]._replace(**changes))


# --- golden bytes -----------------------------------------------------------------------------------------------------


def golden_bytes() -> dict[str, bytes]:
    """Return what this version writes for the golden values."""
    made = {f"{name}.bin": encode(key, given) for name, (key, given) in GOLDEN_ENTRIES.items()}
    made |= {f"{name}.bin": encode(key, given, secret=SECRET) for name, (key, given) in GOLDEN_SIGNED.items()}
    made["v1-index.bin"] = encode_index(KEY, ROWS)
    made["v1-names.txt"] = b"\n".join(codec._NAMES) + b"\n"
    made["v1-values.txt"] = b"\n".join(codec._VALUES) + b"\n"
    return made


@pytest.mark.parametrize("name", GOLDEN_ENTRIES)
def test_golden_entries_of_every_version_decode(name: str) -> None:
    key, given = GOLDEN_ENTRIES[name]
    raw = (GOLDEN / f"{name}.bin").read_bytes()
    assert decode(key, raw, max_body_bytes=CAP) == given
    assert decode_key(raw) == key


WHOLE = [
    *((name, key, given, None) for name, (key, given) in GOLDEN_ENTRIES.items()),
    *((name, key, given, SECRET) for name, (key, given) in GOLDEN_SIGNED.items()),
]


@pytest.mark.parametrize(("key", "given", "secret"), [pytest.param(*row, id=name) for name, *row in WHOLE])
def test_a_head_is_read_from_the_beginning_of_an_envelope(key: CacheKey, given: Entry, secret: bytes | None) -> None:
    raw = encode(key, given, secret=secret, shift=7.0)
    without_body = given._replace(response=given.response._replace(body=b"")), len(given.response.body)
    assert decode_head(raw, shift=7.0) == without_body
    shortest = min(end for end in range(len(raw) + 1) if has_head(raw[:end]))
    assert shortest < len(raw) or not given.response.body
    assert decode_head(raw[:shortest], shift=7.0) == without_body


def has_head(raw: bytes) -> bool:
    try:
        decode_head(raw)
    except CodecError:
        return False
    return True


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(encode(KEY, entry())[:60], id="cut-in-the-head"),
        pytest.param(encode_index(KEY, ROWS), id="an-index"),
        pytest.param(envelope(head=b""), id="no-head"),
        pytest.param(encode(KEY, entry())[:40] + b"?" + encode(KEY, entry())[41:], id="damaged"),
        pytest.param(b"x" * 200, id="garbage"),
    ],
)
def test_what_has_no_head_is_refused(raw: bytes) -> None:
    assert not has_head(raw)


@pytest.mark.parametrize("name", GOLDEN_SIGNED)
def test_golden_signed_entries_of_every_version_decode(name: str) -> None:
    key, given = GOLDEN_SIGNED[name]
    raw = (GOLDEN / f"{name}.bin").read_bytes()
    assert decode(key, raw, max_body_bytes=CAP, secrets=[SECRET]) == given
    assert decode_key(raw) == key


def test_golden_indexes_of_every_version_decode() -> None:
    assert decode_index(KEY, (GOLDEN / "v1-index.bin").read_bytes()) == ROWS


@pytest.mark.parametrize(
    "name", [*(f"{name}.bin" for name in (*GOLDEN_ENTRIES, *GOLDEN_SIGNED) if name != "v1-zstd"), "v1-index.bin"]
)
def test_what_is_written_changes_only_with_the_version(name: str) -> None:
    # The zstd one is left out: the library may find a shorter frame one day, and any frame decodes.
    assert FORMAT_VERSION == 1, "add golden files of the new version beside the old ones"
    assert golden_bytes()[name] == (GOLDEN / name).read_bytes()


@pytest.mark.parametrize(("table", "name"), [(codec._NAMES, "v1-names.txt"), (codec._VALUES, "v1-values.txt")])
def test_tables_are_only_appended_to(table: tuple[bytes, ...], name: str) -> None:
    released = tuple((GOLDEN / name).read_bytes().split(b"\n")[:-1])
    assert table[: len(released)] == released
    assert len(set(table)) == len(table)


def test_table_entries_are_what_unpack_would_take_in_full() -> None:
    names, values = [*codec._NAMES], [*codec._VALUES]
    flat = [part for name in names for part in (name, b"")][:512]
    assert unpack(msgpack.packb([fixed(), flat]), b"").response.headers == tuple((name, b"") for name in names[:256])
    flat = [part for value in values for part in (b"x", value)][:512]
    assert unpack(msgpack.packb([fixed(), flat]), b"").response.headers == tuple(
        (b"x", value) for value in values[:256]
    )


def test_no_golden_file_is_forgotten() -> None:
    assert {path.name for path in GOLDEN.iterdir()} == set(golden_bytes())


def test_replacing_one_field_changes_the_head() -> None:
    heads = {pack(FULL)}
    for name in ("generated_at", "stored_at", "fresh_until", "retain_until", "stale_if_error", "client_ttl"):
        heads.add(pack(FULL._replace(**{name: 1.0})))
    for name in ("always_validate", "never_stale", "anonymous_only", "own_etag"):
        heads.add(pack(FULL._replace(**{name: False})))
    assert len(heads) == 11


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for file_name, content in golden_bytes().items():
        if not (GOLDEN / file_name).exists():
            (GOLDEN / file_name).write_bytes(content)
            print("wrote", file_name)
