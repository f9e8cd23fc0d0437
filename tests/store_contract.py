"""
What every store promises, as one suite. A store's own test module runs it:

    class TestMemoryStore(StoreContract):
        @pytest.fixture
        async def store(self) -> AsyncIterator[Store]:
            store = MemoryStore()
            yield store
            await store.aclose()

The store that the fixture gives is empty, has room for 2,000 small entries, holds `max_variants` entries for a key and
goes by the machine's clock: where entries expire in a server, nobody can hold its clock still. `max_variants` is at
least 5.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, ClassVar

import pytest

from echo_cache.model import CacheKey, Entry, StoredResponse, Vary
from echo_cache.stores.base import Held, Match, Store

__all__ = ["StoreContract", "any_variant", "make_entry", "make_key", "only"]

ODD_KEYS: dict[str, CacheKey] = {
    "plain": ("GET", "https", b"example.com", b"/a", b""),
    "no host": ("GET", "https", None, b"/a", b""),
    "empty host": ("GET", "https", b"", b"/a", b""),
    "a host called None": ("GET", "https", b"None", b"/a", b""),
    "other scheme": ("GET", "http", b"example.com", b"/a", b""),
    "other form": ("GET decoded", "https", b"example.com", b"/a", b""),
    "empty path": ("GET", "https", b"example.com", b"", b""),
    "query": ("GET", "https", b"example.com", b"/a", b"b=1"),
    "query in the path": ("GET", "https", b"example.com", b"/a?b=1", b""),
    "parts shifted": ("GET", "https", b"example.com/a", b"", b""),
    "bytes above 127": ("GET", "https", b"ex\xe4mple", b"/\xff\xfe\x80", b"\xc3\xa9=\xff"),
    "control bytes": ("GET", "https", b"h", b"/\x00\r\n\t ", b"\x00"),
    "glob and braces": ("GET", "https", b"h", b"/*?[a]{b}", b"{}*"),
    "long path": ("GET", "https", b"h", b"/" + b"x" * 20_000, b""),
    "long path, other end": ("GET", "https", b"h", b"/" + b"x" * 19_999 + b"y", b""),
}


def make_key(name: str | int = "a") -> CacheKey:
    """Return a key that is the same for the same *name* and no other."""
    return ("GET", "https", b"example.com", f"/{name}".encode(), b"")


def make_entry(body: bytes = b"body", *, vary: Vary = (), life: float = 300.0, now: float | None = None) -> Entry:
    """Return an entry that is kept for *life* seconds from *now*, which is the machine's if None."""
    now = time.time() if now is None else now
    return Entry(
        response=StoredResponse(200, ((b"content-type", b"text/plain"), (b"x-tag", b"1"), (b"x-tag", b"2")), body),
        generated_at=now,
        stored_at=now,
        fresh_until=now + life / 2,
        retain_until=now + life,
        vary=vary,
    )


def any_variant(vary: Vary) -> bool:
    """Match everything."""
    return True


def only(*wanted: Vary) -> Match:
    """Return a match for the variants *wanted*."""
    return lambda vary: vary in wanted


def language(value: bytes | None) -> Vary:
    return ((b"accept-language", value),)


def chain(held: Held | None) -> list[Entry]:
    """Return the entries of a chain, in its order."""
    entries = []
    while held is not None:
        entries.append(held.entry)
        held = held.next
    return entries


async def listed(store: Store) -> list[CacheKey]:
    return [key async for key in store.keys()]  # noqa: SIM118  # a store is no dictionary


class StoreContract:
    """The suite. *max_variants* is what the store of the fixture was told."""

    max_variants: ClassVar[int] = 32

    @pytest.fixture
    def store(self) -> Any:
        """Give an empty store, and close it. For the subclass to write."""
        raise NotImplementedError

    # --- one entry ----------------------------------------------------------------------------------------------------

    async def test_nothing_is_found_in_an_empty_store(self, store: Store) -> None:
        assert await store.get(make_key(), any_variant) is None
        assert store.get_nowait(make_key()) is None
        assert await listed(store) == []

    async def test_what_was_set_is_found(self, store: Store) -> None:
        entry = make_entry()
        assert await store.set(make_key(), entry) is True
        assert await store.get(make_key(), any_variant) == entry
        assert await store.get(make_key("b"), any_variant) is None

    async def test_all_fields_of_an_entry_are_kept(self, store: Store) -> None:
        now = time.time()
        entry = Entry(
            response=StoredResponse(404, ((b"x-empty", b""), (b"x-high", b"\xe9\xff"), (b"x-empty", b"again")), b""),
            generated_at=now - 12.25,
            stored_at=now,
            fresh_until=now + 1.125,
            retain_until=now + 600.0625,
            vary=((b"accept", None), (b"accept-language", b"")),
            groups=("catalog", "product:1", "größe"),
            mark=(1_700_000_000_000 << 64) + 3,
            stale_while_revalidate=30.5,
            stale_if_error=60.0,
            always_validate=True,
            never_stale=True,
            anonymous_only=True,
            own_etag=True,
            client_ttl=0.0,
        )
        await store.set(make_key(), entry)
        assert await store.get(make_key(), any_variant) == entry

    @pytest.mark.parametrize("size", [0, 1, 1024, 300_000])
    @pytest.mark.parametrize("pattern", [b"\x00", b"abc\xff\r\n"])
    async def test_bodies_come_back_as_they_were(self, store: Store, size: int, pattern: bytes) -> None:
        body = (pattern * (size // len(pattern) + 1))[:size]
        await store.set(make_key(), make_entry(body))
        found = await store.get(make_key(), any_variant)
        assert found is not None
        assert type(found.response.body) is bytes
        assert found.response.body == body

    async def test_a_second_set_replaces_the_first(self, store: Store) -> None:
        await store.set(make_key(), make_entry(b"old"))
        new = make_entry(b"new")
        await store.set(make_key(), new)
        assert await store.get(make_key(), any_variant) == new
        assert await listed(store) == [make_key()]

    async def test_get_nowait_gives_the_current_entries_or_none(self, store: Store) -> None:
        key = make_key()
        for body in (b"one", b"two"):
            entry = make_entry(body)
            await store.set(key, entry)
            assert chain(store.get_nowait(key)) in ([], [entry])
            assert await store.get(key, any_variant) == entry
            assert chain(store.get_nowait(key)) in ([], [entry])
        await store.delete(key)
        assert store.get_nowait(key) is None

    async def test_put_shows_in_memory_at_once_and_its_rest_keeps_it(self, store: Store) -> None:
        key = make_key()
        await store.set(key, make_entry(b"old"))
        new = make_entry(b"new")
        rest = store.put(key, new)
        assert chain(store.get_nowait(key)) in ([], [new])
        assert rest is None or await rest is True
        assert await store.get(key, any_variant) == new

    # --- variants -----------------------------------------------------------------------------------------------------

    async def test_variants_stand_side_by_side(self, store: Store) -> None:
        varies = [language(b"de"), language(b"fr"), language(b""), language(None), ((b"accept", b"text/html"),)]
        entries = [make_entry(b"%d" % number, vary=vary) for number, vary in enumerate(varies)]
        for entry in entries:
            await store.set(make_key(), entry)
        for entry in entries:
            assert await store.get(make_key(), only(entry.vary)) == entry
        assert await store.get(make_key(), only(language(b"it"))) is None
        assert await listed(store) == [make_key()]

    async def test_a_variant_replaces_the_one_with_the_same_vary(self, store: Store) -> None:
        other = make_entry(b"fr", vary=language(b"fr"))
        await store.set(make_key(), make_entry(b"old", vary=language(b"de")))
        await store.set(make_key(), other)
        new = make_entry(b"new", vary=language(b"de"))
        await store.set(make_key(), new)
        assert await store.get(make_key(), only(language(b"de"))) == new
        assert await store.get(make_key(), only(language(b"fr"))) == other
        assert chain(store.get_nowait(make_key())) in ([], [new], [new, other], [other, new])

    async def test_an_entry_that_answers_every_request_replaces_all_variants(self, store: Store) -> None:
        for value in (b"de", b"fr", None):
            await store.set(make_key(), make_entry(vary=language(value)))
        entry = make_entry(b"for all")
        await store.set(make_key(), entry)
        assert await store.get(make_key(), any_variant) == entry
        for value in (b"de", b"fr", None):
            assert await store.get(make_key(), only(language(value))) is None
        assert chain(store.get_nowait(make_key())) in ([], [entry])

    async def test_a_variant_stands_beside_an_older_entry_that_answers_every_request(self, store: Store) -> None:
        older, newer = make_entry(b"for all"), make_entry(b"de", vary=language(b"de"))
        await store.set(make_key(), older)
        await store.set(make_key(), newer)
        assert await store.get(make_key(), only(language(b"de"), ())) == newer
        assert await store.get(make_key(), only(())) == older

    async def test_the_newest_of_the_variants_that_match_is_found(self, store: Store) -> None:
        now = time.time()
        de, fr, de_again = (
            make_entry(body, vary=language(value), now=now + offset)
            for offset, (body, value) in enumerate([(b"1", b"de"), (b"2", b"fr"), (b"3", b"de")])
        )
        await store.set(make_key(), de)
        await store.set(make_key(), fr)
        assert await store.get(make_key(), any_variant) == fr
        await store.set(make_key(), de_again)
        assert await store.get(make_key(), any_variant) == de_again
        assert chain(store.get_nowait(make_key())) in ([], [de_again], [de_again, fr])

    async def test_variants_of_a_key_are_bounded_and_the_oldest_goes(self, store: Store) -> None:
        now = time.time()
        varies = [language(b"%d" % number) for number in range(self.max_variants + 3)]
        for number, vary in enumerate(varies):
            await store.set(make_key(), make_entry(b"%d" % number, vary=vary, now=now + number / 1000))
        found = [await store.get(make_key(), only(vary)) is not None for vary in varies]
        assert found == [False] * 3 + [True] * self.max_variants

    async def test_variants_set_at_once_are_all_kept(self, store: Store) -> None:
        varies = [language(b"%d" % number) for number in range(min(16, self.max_variants))]
        await asyncio.gather(*(store.set(make_key(), make_entry(repr(vary).encode(), vary=vary)) for vary in varies))
        for vary in varies:
            found = await store.get(make_key(), only(vary))
            assert found is not None
            assert found.response.body == repr(vary).encode()

    # --- many keys ----------------------------------------------------------------------------------------------------

    async def test_odd_keys_are_kept_apart_and_listed_as_they_are(self, store: Store) -> None:
        for name, key in ODD_KEYS.items():
            await store.set(key, make_entry(name.encode()))
        for name, key in ODD_KEYS.items():
            found = await store.get(key, any_variant)
            assert found is not None, name
            assert found.response.body == name.encode()
        assert sorted(map(repr, await listed(store))) == sorted(map(repr, ODD_KEYS.values()))

    async def test_many_keys_are_found_and_listed_once(self, store: Store) -> None:
        count = 1200
        keys = [make_key(number) for number in range(count)]
        for start in range(0, count, 100):
            page = keys[start : start + 100]
            await asyncio.gather(*(store.set(key, make_entry(key[3])) for key in page))
        for start in range(0, count, 100):
            page = keys[start : start + 100]
            found = await asyncio.gather(*(store.get(key, any_variant) for key in page))
            assert [entry and entry.response.body for entry in found] == [key[3] for key in page]
        assert sorted(await listed(store)) == sorted(keys)

    async def test_keys_may_change_while_they_are_listed(self, store: Store) -> None:
        for number in range(50):
            await store.set(make_key(number), make_entry())
        seen = []
        async for key in store.keys():
            seen.append(key)
            await store.delete(key)
            if len(seen) <= 10:
                await store.set(make_key(f"new {len(seen)}"), make_entry())
        assert {make_key(number) for number in range(50)} <= set(seen)

    # --- forgetting ---------------------------------------------------------------------------------------------------

    async def test_delete_forgets_all_variants_and_says_whether_there_was_one(self, store: Store) -> None:
        for value in (b"de", b"fr"):
            await store.set(make_key(), make_entry(vary=language(value)))
        await store.set(make_key("other"), make_entry())
        assert await store.delete(make_key()) is True
        assert await store.get(make_key(), any_variant) is None
        assert store.get_nowait(make_key()) is None
        assert await listed(store) == [make_key("other")]
        assert await store.delete(make_key()) is False

    async def test_a_deleted_key_can_be_set_again_without_its_old_variants(self, store: Store) -> None:
        await store.set(make_key(), make_entry(b"fr", vary=language(b"fr")))
        await store.delete(make_key())
        entry = make_entry(b"de", vary=language(b"de"))
        await store.set(make_key(), entry)
        assert await store.get(make_key(), any_variant) == entry
        assert await store.get(make_key(), only(language(b"fr"))) is None

    async def test_clear_forgets_everything_and_counts_keys(self, store: Store) -> None:
        for number in range(5):
            await store.set(make_key(number), make_entry(vary=language(b"de")))
            await store.set(make_key(number), make_entry(vary=language(b"fr")))
        assert await store.clear() in (5, None)
        assert await listed(store) == []
        for number in range(5):
            assert await store.get(make_key(number), any_variant) is None
            assert store.get_nowait(make_key(number)) is None
        assert await store.clear() in (0, None)
        await store.set(make_key(), make_entry())
        assert await store.get(make_key(), any_variant) is not None

    # --- retention ----------------------------------------------------------------------------------------------------

    async def test_an_entry_past_its_retention_is_not_stored(self, store: Store) -> None:
        await store.set(make_key(), make_entry(life=-1.0))
        assert await store.get(make_key(), any_variant) is None
        assert await listed(store) == []

    async def test_a_stale_entry_is_kept_until_its_retention_ends(self, store: Store) -> None:
        entry = make_entry()._replace(fresh_until=time.time() - 60.0)
        await store.set(make_key(), entry)
        assert await store.get(make_key(), any_variant) == entry

    async def test_an_entry_is_not_found_past_its_retention(self, store: Store) -> None:
        # Half a second of life for machines that are slow to look, a tenth of grace for the clocks of servers.
        entry = make_entry(life=0.5, vary=language(b"de"))
        lasting = make_entry(vary=language(b"fr"))
        await store.set(make_key(), lasting)
        await store.set(make_key(), entry)
        found: Entry | None = entry
        while found is not None:
            assert found == entry
            asked = time.time()
            found = await store.get(make_key(), only(entry.vary))
            assert found is None or asked <= entry.retain_until + 0.1
            await asyncio.sleep(0.01)
        assert await store.get(make_key(), only(lasting.vary)) == lasting

    # --- managing -----------------------------------------------------------------------------------------------------

    async def test_the_counters_count_what_was_found_and_set(self, store: Store) -> None:
        before = store.stats()
        await store.set(make_key(), make_entry())
        await store.set(make_key("b"), make_entry())
        for name in ("a", "a", "a", "c", "c"):
            await store.get(make_key(name), any_variant)
        after = store.stats()
        assert (after.sets - before.sets, after.hits - before.hits, after.misses - before.misses) == (2, 3, 2)
        assert after.evictions == after.errors == 0
        assert after.entries in (2, None)
        assert after.bytes is None or after.bytes > 0

    async def test_a_variant_that_does_not_match_is_a_miss(self, store: Store) -> None:
        await store.set(make_key(), make_entry(vary=language(b"de")))
        before = store.stats()
        assert await store.get(make_key(), only(language(b"fr"))) is None
        after = store.stats()
        assert (after.hits - before.hits, after.misses - before.misses) == (0, 1)

    async def test_closing_twice_is_closing_once(self, store: Store) -> None:
        await store.set(make_key(), make_entry())
        await store.aclose()
        await store.aclose()

    async def test_its_repr_names_it(self, store: Store) -> None:
        assert type(store).__name__ in repr(store)
