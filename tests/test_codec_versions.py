"""
Rolling deploys: what another version of this package, or another program, has written under our keys is a miss.

Two versions side by side are two values of FORMAT_VERSION: names in Redis begin with it and every value has it, so each
version has names of its own, and what stands under a wrong name is refused all the same.
"""

from __future__ import annotations

import contextlib
import pickle
import struct
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any, ClassVar

import msgpack
import pytest
import redis
import zstandard

from echo_cache.codec import (
    FORMAT_VERSION,
    decode,
    decode_index,
    decode_key,
    encode,
    encode_index,
    encode_index_row,
    key_digest,
    kind_of,
    pack,
    variant_id,
)
from echo_cache.errors import CodecError, ForgedError
from echo_cache.model import Entry
from echo_cache.stores import RedisStore
from echo_cache.stores.base import Match
from tests.store_contract import any_variant, language, listed, make_entry, make_key, only
from tests.test_codec import CAP, KEY, ROWS, SECRET, entry, envelope, fixed, text

# For tests that ask what is answered and not when: a loaded machine is slow.
PATIENT = 30.0

OLDER, NEWER = FORMAT_VERSION - 1, FORMAT_VERSION + 1
DE, FR = language(b"de"), language(b"fr")


@contextlib.contextmanager
def running(version: int) -> Iterator[None]:
    """Be the package of *version*: wherever FORMAT_VERSION is, it is this."""
    holders = [
        module
        for name, module in list(sys.modules.items())
        if name.startswith("echo_cache.") and "FORMAT_VERSION" in vars(module)
    ]
    assert {"echo_cache.codec", "echo_cache.stores.redis.store"} <= {module.__name__ for module in holders}
    with pytest.MonkeyPatch.context() as patch:
        for module in holders:
            patch.setattr(module, "FORMAT_VERSION", version)
        yield


class Planted:
    """Unpickling one of these leaves a trace."""

    ran: ClassVar[list[str]] = []

    def __reduce__(self) -> tuple[Any, ...]:
        return Planted.ran.append, ("ran",)


def versioned(version: int, **options: Any) -> bytes:
    with running(version):
        return encode(KEY, entry(), **options)


def versioned_index(version: int) -> bytes:
    with running(version):
        return encode_index(KEY, ROWS)


PICKLES = [
    pytest.param(pickle.dumps(Planted(), protocol), id=f"pickle-{protocol}")
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
]
FOREIGN = [
    *(pytest.param(versioned(version), id=f"version-{version}") for version in (0, 2, 255)),
    *(pytest.param(versioned(version, secret=SECRET), id=f"signed-version-{version}") for version in (0, 2, 255)),
    *(pytest.param(versioned_index(version), id=f"index-version-{version}") for version in (0, 2, 255)),
    *(pytest.param(envelope(magic=magic), id=f"magic-{magic!r}") for magic in (b"\xechox", b"\xechoE", b"\0\0\0\0")),
    *(pytest.param(envelope(flags=flags), id=f"flags-{flags}") for flags in (4, 8, 16, 32, 64, 128, 5, 6, 7, 255)),
    *(
        pytest.param(
            envelope(tail=zstandard.compress(text(4_096)), flags=flags, body_length=4_096), id=f"zstd-flags-{flags}"
        )
        for flags in (5, 7, 9, 129, 255)
    ),
    *(
        pytest.param(envelope(magic=b"\xechoi", head=b"", tail=b"", flags=flags), id=f"index-flags-{flags}")
        for flags in (1, 2, 4, 128)
    ),
    *PICKLES,
    *(pytest.param(envelope(head=each.values[0]), id=f"head-{each.id}") for each in PICKLES),
    *(pytest.param(envelope(key=each.values[0]), id=f"key-{each.id}") for each in PICKLES),
    pytest.param(b"\x91" * 20_000 + b"\xc0", id="nested-20000-deep"),
    pytest.param(envelope(head=b"\x91" * 20_000 + b"\xc0"), id="head-nested-20000-deep"),
    pytest.param(
        envelope(head=b"\x92" + msgpack.packb(fixed()) + b"\x91" * 20_000 + b"\xc0"), id="headers-nested-20000-deep"
    ),
    pytest.param(
        envelope(head=b"\x93" + msgpack.packb(fixed()) + b"\x90" + b"\x91" * 20_000 + b"\xc0"),
        id="vary-nested-20000-deep",
    ),
    pytest.param(envelope(key=b"\x91" * 20_000 + b"\xc0"), id="key-nested-20000-deep"),
    pytest.param(envelope(head=b"\x81\xa1a" * 20_000 + b"\xc0"), id="maps-nested-20000-deep"),
    pytest.param(b'{"json": true}', id="json"),
    pytest.param(b"", id="empty"),
]


# --- the codec --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("raw", FOREIGN)
def test_what_is_foreign_is_refused_and_runs_nothing(raw: bytes) -> None:
    for secrets in ([], [SECRET]):
        with pytest.raises(CodecError) as caught:
            decode(KEY, raw, max_body_bytes=CAP, secrets=secrets)
        if raw[4:5] != bytes([FORMAT_VERSION]):
            assert not isinstance(caught.value, ForgedError)  # another version is no attack
    with pytest.raises(CodecError):
        decode_index(KEY, raw)
    with contextlib.suppress(CodecError):
        decode_key(raw)
    assert kind_of(raw) in ("entry", "index", None)
    assert Planted.ran == []


@pytest.mark.parametrize("version", [0, 2, 255])
def test_each_version_reads_its_own_and_refuses_the_other(version: int) -> None:
    ours, theirs, ours_index = encode(KEY, entry()), versioned(version), encode_index(KEY, ROWS)
    assert ours[:4] == theirs[:4]
    assert (ours[4], theirs[4]) == (FORMAT_VERSION, version)
    with running(version):
        assert decode(KEY, theirs, max_body_bytes=CAP) == entry()
        assert decode_index(KEY, versioned_index(version)) == ROWS
        with pytest.raises(CodecError, match=f"version {FORMAT_VERSION} is not {version}"):
            decode(KEY, ours, max_body_bytes=CAP)
        with pytest.raises(CodecError, match=f"version {FORMAT_VERSION} is not {version}"):
            decode_index(KEY, ours_index)
    with pytest.raises(CodecError, match=f"version {version} is not {FORMAT_VERSION}"):
        decode(KEY, theirs, max_body_bytes=CAP)
    with pytest.raises(CodecError, match=f"version {version} is not {FORMAT_VERSION}"):
        decode_key(theirs)


def test_a_signature_of_another_version_does_not_serve_this_one() -> None:
    theirs = versioned(NEWER, secret=SECRET)
    ours = encode(KEY, entry(), secret=SECRET)
    assert theirs[30:46] != ours[30:46]
    assert theirs[46:] == ours[46:]


# --- two versions on one Redis ----------------------------------------------------------------------------------------


def make(redis_url: str, version: int, **options: Any) -> RedisStore:
    with running(version):
        return RedisStore(redis_url, timeout=PATIENT, **options)


@pytest.fixture
def server(redis_url: str) -> Iterator[Any]:
    """The server behind *redis_url*, without a store between."""
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
async def ours(redis_url: str) -> AsyncIterator[RedisStore]:
    store = make(redis_url, FORMAT_VERSION)
    yield store
    await store.aclose()


@pytest.fixture(params=[pytest.param(OLDER, id="older"), pytest.param(NEWER, id="newer")])
def other_version(request: pytest.FixtureRequest) -> int:
    version: int = request.param
    return version


@pytest.fixture
async def theirs(redis_url: str, other_version: int) -> AsyncIterator[RedisStore]:
    """A store of the other version; what is asked of it is asked within `running`."""
    store = make(redis_url, other_version)
    yield store
    await store.aclose()


async def body_of(store: RedisStore, match: Match = any_variant) -> bytes | None:
    """Return the body under the key of these tests. Times may come back rounded: they went by the server's clock."""
    found = await store.get(make_key(), match)
    return None if found is None else found.response.body


def name_of(version: int, *parts: str) -> str:
    return ":".join([f"echo_cache:{version}:{{{key_digest(make_key())}}}", *parts])


def _long_kept(body: bytes, vary: Any = ()) -> Entry:
    """Return an entry that is kept until its test has its turn: parameters are made when the tests are collected."""
    return make_entry(body, vary=vary, life=86_400.0)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param(_long_kept(b"first"), _long_kept(b"second"), id="unvarying"),
        pytest.param(_long_kept(b"first", vary=DE), _long_kept(b"second", vary=DE), id="varying"),
        pytest.param(_long_kept(b"first", vary=DE), _long_kept(b"second"), id="varying-and-not"),
    ],
)
async def test_versions_side_by_side_miss_what_the_other_has_and_keep_it(
    ours: RedisStore, theirs: RedisStore, other_version: int, first: Entry, second: Entry
) -> None:
    key = make_key()
    assert await ours.set(key, first)
    with running(other_version):
        assert await body_of(theirs) is None
        assert await theirs.set(key, second)
    assert await body_of(ours) == first.response.body
    with running(other_version):
        assert await body_of(theirs) == second.response.body
        assert await listed(theirs) == [key]
        assert await theirs.delete(key)
        assert await body_of(theirs) is None
    assert await body_of(ours) == first.response.body
    with running(other_version):
        assert await theirs.set(key, second)
        assert await theirs.clear() == 1
    assert await body_of(ours) == first.response.body
    for store in (ours, theirs):
        assert (store.rejected, store.forged, store.stats().errors) == (0, 0, 0)


async def test_versions_share_no_name(ours: RedisStore, theirs: RedisStore, other_version: int, server: Any) -> None:
    await ours.set(make_key(), make_entry(b"ours", vary=DE))
    with running(other_version):
        await theirs.set(make_key(), make_entry(b"theirs", vary=DE))
    variant = variant_id(DE).hex()
    assert sorted(name.decode() for name in server.scan_iter()) == sorted(
        name_of(version, *parts) for version in (FORMAT_VERSION, other_version) for parts in ((), (variant,))
    )


async def test_an_entry_of_another_version_under_our_name_is_a_miss_both_ways(
    ours: RedisStore, theirs: RedisStore, other_version: int, server: Any
) -> None:
    key = make_key()
    with running(other_version):
        planted = encode(key, make_entry(b"theirs"))
    server.set(name_of(FORMAT_VERSION), planted)
    server.set(name_of(other_version), encode(key, make_entry(b"ours")))

    assert await body_of(ours) is None
    assert await listed(ours) == []
    with running(other_version):
        assert await body_of(theirs) is None
        assert await listed(theirs) == []
    for store in (ours, theirs):
        assert (store.rejected, store.forged, store.stats().errors) == (2, 0, 0)

    assert await ours.set(key, make_entry(b"ours, new"))
    assert await body_of(ours) == b"ours, new"


async def test_an_index_of_another_version_under_our_name_is_a_miss_and_is_replaced(
    ours: RedisStore, other_version: int, server: Any
) -> None:
    key = make_key()
    times = make_entry(b"theirs", vary=DE)
    with running(other_version):
        index = encode_index(key) + encode_index_row(variant_id(DE), times.stored_at, times.retain_until, DE)
        server.set(name_of(FORMAT_VERSION, variant_id(DE).hex()), encode(key, times))
    server.set(name_of(FORMAT_VERSION), index)

    assert await body_of(ours) is None
    assert await ours.set(key, make_entry(b"french", vary=FR))
    assert await body_of(ours, only(FR)) == b"french"
    assert await body_of(ours, only(DE)) is None
    assert ours.stats().errors == 0


async def test_a_variant_of_another_version_under_our_index_is_a_miss(
    ours: RedisStore, other_version: int, server: Any
) -> None:
    key = make_key()
    await ours.set(key, make_entry(b"ours", vary=DE))
    with running(other_version):
        server.set(name_of(FORMAT_VERSION, variant_id(DE).hex()), encode(key, make_entry(b"theirs", vary=DE)))
    assert await body_of(ours, only(DE)) is None
    assert (ours.rejected, ours.stats().errors) == (1, 0)


async def test_a_variant_is_set_over_an_entry_of_another_version(
    ours: RedisStore, other_version: int, server: Any
) -> None:
    key = make_key()
    with running(other_version):
        server.set(name_of(FORMAT_VERSION), encode(key, make_entry(b"theirs")))
    assert await ours.set(key, make_entry(b"german", vary=DE))
    assert await body_of(ours, only(DE)) == b"german"
    assert await body_of(ours, only(())) is None
    assert ours.stats().errors == 0


@pytest.mark.parametrize("options", [pytest.param({}, id="unsigned"), pytest.param({"secret": SECRET}, id="signed")])
async def test_what_is_foreign_under_our_names_is_a_miss_and_makes_room(
    redis_url: str, server: Any, options: dict[str, Any]
) -> None:
    key = make_key()
    store = make(redis_url, FORMAT_VERSION, **options)
    try:
        for each in FOREIGN:
            server.set(name_of(FORMAT_VERSION), each.values[0])
            assert await body_of(store) is None, each.id
            assert await listed(store) == [], each.id
            assert await store.set(key, make_entry(b"ours")), each.id
            assert await body_of(store) == b"ours", each.id
            assert await store.delete(key), each.id
        assert store.rejected >= len(FOREIGN)
        assert store.stats().errors == 0
    finally:
        await store.aclose()
    assert Planted.ran == []


def test_the_wire_says_its_version_in_its_fifth_byte() -> None:
    # A version that is never released finds ours by this, so no later one may move it.
    assert struct.unpack_from(">4sB", envelope(head=pack(entry()))) == (b"\xechoe", FORMAT_VERSION)
