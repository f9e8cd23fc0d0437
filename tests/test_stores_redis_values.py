"""What RedisStore makes of values that are not its own: misses, never errors."""

from __future__ import annotations

import pickle
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from echo_cache import codec
from echo_cache.model import Vary
from echo_cache.stores import RedisStore
from tests import redis_support as support
from tests.redis_support import DE, FR, name_of
from tests.store_contract import any_variant, listed, make_entry, make_key, only

make_store, server, store = support.make_store, support.server, support.store


def _row(vary: Vary, retain_until: float) -> tuple[bytes, float, float, Vary]:
    return (codec.variant_id(vary), 0.0, retain_until, vary)


class Bomb:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def _other_version(raw: bytes) -> bytes:
    return raw[:4] + bytes([raw[4] + 1]) + raw[5:]


ENVELOPE = codec.encode(make_key(), make_entry(now=2_000_000_000.0))
VARIED = codec.encode(make_key(), make_entry(now=2_000_000_000.0, vary=DE))
INDEX = codec.encode_index(make_key(), [_row(DE, 2_000_000_300.0)])

GARBAGE = [
    pytest.param(b"", id="empty"),
    pytest.param(b"\x00" * 100, id="zeros"),
    pytest.param(pickle.dumps({"body": b"x"}), id="pickle"),
    pytest.param(b'{"status": 200}', id="json"),
    pytest.param(_other_version(ENVELOPE), id="entry-of-a-newer-version"),
    pytest.param(_other_version(INDEX), id="index-of-a-newer-version"),
    pytest.param(ENVELOPE[:-1], id="entry-cut"),
    pytest.param(ENVELOPE + b"\x00", id="entry-with-more-behind"),
    pytest.param(INDEX[:40], id="index-cut-in-its-key"),
    pytest.param(INDEX[:-1], id="index-cut-in-its-row"),
    pytest.param(codec.encode(make_key("other"), make_entry()), id="entry-of-another-key"),
    pytest.param(codec.encode_index(make_key("other"), [_row(DE, 2e9)]), id="index-of-another-key"),
    pytest.param(codec.encode_index(make_key()), id="index-without-rows"),
    pytest.param(INDEX, id="index-without-its-variant"),
    pytest.param(b"\x93" * 20_000, id="nested-msgpack"),
]


@pytest.mark.parametrize("raw", GARBAGE)
async def test_garbage_under_a_name_is_a_miss_and_can_be_written_over_and_deleted(
    raw: bytes, store: RedisStore, server: Any
) -> None:
    name = name_of(make_key())
    server.set(name, raw)
    assert await store.get(make_key(), any_variant) is None
    for vary in ((), DE):
        server.set(name, raw)
        entry = make_entry(b"new", vary=vary)
        assert await store.set(make_key(), entry) is True
        assert await store.get(make_key(), only(vary)) == entry
        assert await store.delete(make_key()) is True
        server.set(name, raw)
        assert await store.delete(make_key()) is True
        assert await store.get(make_key(), any_variant) is None
    assert store.stats().errors == 0


@pytest.mark.parametrize("raw", GARBAGE)
async def test_garbage_under_the_name_of_a_variant_is_a_miss(raw: bytes, store: RedisStore, server: Any) -> None:
    await store.set(make_key(), make_entry(vary=DE))
    server.set(name_of(make_key(), DE), raw)
    for _ in range(2):  # by the index, then by the guess
        assert await store.get(make_key(), any_variant) is None
    assert store.rejected == 2
    assert store.stats().errors == 0


async def test_a_planted_pickle_runs_nothing(store: RedisStore, server: Any, tmp_path: Path) -> None:
    made = tmp_path / "made"
    bomb = pickle.dumps(Bomb(made))
    await store.set(make_key("v"), make_entry(vary=DE))
    server.set(name_of(make_key()), bomb)
    server.set(name_of(make_key("v"), DE), bomb)
    assert await store.get(make_key(), any_variant) is None
    assert await store.get(make_key("v"), any_variant) is None
    assert await listed(store) == [make_key("v")]
    assert not made.exists()
    pickle.loads(bomb)
    assert made.exists()  # it would have


@given(
    raw=st.one_of(
        st.binary(max_size=300),
        st.tuples(st.integers(0, len(ENVELOPE) - 1), st.integers(1, 255)).map(lambda flip: _flipped(ENVELOPE, *flip)),
        st.tuples(st.integers(0, len(INDEX) - 1), st.integers(1, 255)).map(lambda flip: _flipped(INDEX, *flip)),
    )
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_any_bytes_are_a_miss_never_an_error(raw: bytes, store: RedisStore, server: Any) -> None:
    server.set(name_of(make_key()), raw)
    server.set(name_of(make_key(), DE), raw)
    assert await store.get(make_key(), any_variant) is None
    assert set(await listed(store)) <= {make_key()}
    assert await store.set(make_key(), make_entry(vary=FR)) is True
    assert await store.delete(make_key()) is True


def _flipped(raw: bytes, position: int, bits: int) -> bytes:
    return raw[:position] + bytes([raw[position] ^ bits]) + raw[position + 1 :]


@pytest.mark.parametrize("vary", [pytest.param((), id="primary"), pytest.param(DE, id="variant")])
async def test_a_name_of_another_type_is_a_miss_and_can_be_written_over(
    vary: Vary, store: RedisStore, server: Any
) -> None:
    await store.set(make_key(), make_entry(vary=DE))
    for _ in range(2):  # by the index, then by the guess
        server.delete(name_of(make_key(), vary))
        server.rpush(name_of(make_key(), vary), "x")
        assert await store.get(make_key(), any_variant) is None
    assert store.stats().errors == 0
    entry = make_entry(b"new", vary=DE)
    assert await store.set(make_key(), entry) is True
    assert await store.get(make_key(), only(DE)) == entry
    server.delete(name_of(make_key()))
    server.rpush(name_of(make_key()), "x")
    assert await store.delete(make_key()) is True
    assert await store.delete(make_key()) is False


async def test_a_forged_index_cannot_lead_to_a_variant_that_does_not_match(store: RedisStore, server: Any) -> None:
    await store.set(make_key(), make_entry(b"for de only", vary=DE))
    row = (codec.variant_id(DE), 0.0, time.time() + 300, FR)  # says FR, leads to DE
    server.set(name_of(make_key()), codec.encode_index(make_key(), [row]))
    assert await store.get(make_key(), only(FR)) is None
    server.set(name_of(make_key()), codec.encode(make_key(), make_entry(vary=DE)))  # a variant in the primary's place
    assert await store.get(make_key(), only(FR)) is None
