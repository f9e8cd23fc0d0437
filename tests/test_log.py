"""The invalidation log: what a mark reaches, and the order that closes the race with a slow fill."""

from __future__ import annotations

import contextlib
import gc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echo_cache import Cache, MemoryStore
from echo_cache.coordination.clock import SystemClock
from echo_cache.coordination.log import LocalLog, log_id, position_of
from echo_cache.coordination.logs import log_of
from echo_cache.coordination.marks import Invalidation, Kind, Marks, Verdict
from echo_cache.coordination.wire import decode_marks, encode_marks, entries
from echo_cache.errors import CodecError, StoreError
from echo_cache.model import CacheKey, Entry, StoredResponse

KEY: CacheKey = ("GET", "http", b"shop.example", b"/products/7", b"full=1")


class _Clock:
    now = 1000.0

    def time(self) -> float:
        return self.now


def _entry(log: LocalLog, *groups: str) -> Entry:
    return Entry(StoredResponse(200, (), b""), 0.0, 0.0, 9.0, 9.0, groups=groups, mark=log.position())


@pytest.mark.parametrize(
    ("mark", "reached"),
    [
        pytest.param(Invalidation(Kind.KEY, KEY), True, id="its-key"),
        pytest.param(Invalidation(Kind.KEY, (*KEY[:4], b"")), False, id="another-query"),
        pytest.param(Invalidation(Kind.PATH, (b"/products/7", b"full=1")), True, id="its-path-on-any-origin"),
        pytest.param(Invalidation(Kind.PATH, (b"/products/7", b"")), False, id="its-path-with-another-query"),
        pytest.param(Invalidation(Kind.GROUP, "catalog"), True, id="its-group"),
        pytest.param(Invalidation(Kind.GROUP, "Catalog"), False, id="groups-are-case-sensitive"),
        pytest.param(Invalidation(Kind.PREFIX, (None, None, b"/prod")), True, id="a-prefix-on-any-origin"),
        pytest.param(Invalidation(Kind.PREFIX, (None, None, b"/products/7")), True, id="the-whole-path-as-prefix"),
        pytest.param(Invalidation(Kind.PREFIX, (None, None, b"/products/77")), False, id="a-longer-prefix"),
        pytest.param(Invalidation(Kind.PREFIX, ("http", b"shop.example", b"/")), True, id="a-prefix-on-its-origin"),
        pytest.param(Invalidation(Kind.PREFIX, ("http", b"other.example", b"/")), False, id="on-another-origin"),
        pytest.param(Invalidation(Kind.ORIGIN_GROUP, ("http", b"shop.example", "catalog")), True, id="its-group-here"),
        pytest.param(
            Invalidation(Kind.ORIGIN_GROUP, ("http", b"other.example", "catalog")), False, id="its-group-there"
        ),
        pytest.param(Invalidation(Kind.ALL), True, id="everything"),
    ],
)
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
async def test_a_mark_reaches_what_it_names(mark: Invalidation, reached: bool, soft: bool) -> None:
    log = LocalLog(_Clock())
    before = _entry(log, "catalog")
    await log.append([Invalidation(mark.kind, mark.target, soft)])
    expected = None if not reached else Verdict.STALE if soft else Verdict.GONE
    assert log.verdict(KEY, before) is expected
    assert log.verdict(KEY, _entry(log, "catalog")) is None, "a fill that began after the mark stands"


async def test_a_fill_that_began_before_an_invalidation_is_gone_even_in_the_same_millisecond() -> None:
    log = LocalLog(_Clock())
    fills = [_entry(log)]
    for _ in range(3):
        await log.append([Invalidation(Kind.KEY, KEY)])
        assert all(log.verdict(KEY, fill) is Verdict.GONE for fill in fills)
        fills.append(_entry(log))
        assert log.verdict(KEY, fills[-1]) is None


async def test_positions_do_not_fall_when_the_clock_does() -> None:
    clock = _Clock()
    log = LocalLog(clock)
    first = (await log.append([Invalidation(Kind.KEY, KEY)])).position
    clock.now -= 500
    assert log.position() >= first
    assert (await log.append([Invalidation(Kind.KEY, KEY)])).position > first


async def test_a_hard_mark_outweighs_a_soft_one() -> None:
    log = LocalLog(_Clock())
    entry = _entry(log, "a", "b")
    await log.append([Invalidation(Kind.GROUP, "a")])
    await log.append([Invalidation(Kind.GROUP, "b", soft=True)])
    assert log.verdict(KEY, entry) is Verdict.GONE


async def test_a_soft_mark_tells_when_it_came() -> None:
    log = LocalLog(_Clock())
    entry = _entry(log, "a")
    assert log.softened_at(KEY, entry) == 0.0
    await log.append([Invalidation(Kind.GROUP, "a", soft=True)])
    assert log.softened_at(KEY, entry) == 1000.0


async def test_long_targets_are_kept_short_and_still_reach() -> None:
    log = LocalLog(_Clock())
    long: CacheKey = (*KEY[:3], b"/" + b"a" * 60_000, b"")
    entry = _entry(log, "g" * 128)
    await log.append([Invalidation(Kind.KEY, long)])
    assert log.verdict(long, entry) is Verdict.GONE
    assert log.verdict((*long[:4], b"other"), entry) is None
    host = b"h" * 600
    await log.append([Invalidation(Kind.ORIGIN_GROUP, ("http", host, "g" * 128))])
    assert log.verdict(("GET", "http", host, b"/", b""), entry) is Verdict.GONE


async def test_a_long_prefix_reaches_more_than_it_says_and_never_less() -> None:
    log = LocalLog(_Clock())
    entry = _entry(log)
    await log.append([Invalidation(Kind.PREFIX, (None, None, b"/" + b"a" * 5_000))])
    assert log.verdict((*KEY[:3], b"/" + b"a" * 5_001, b""), entry) is Verdict.GONE
    assert log.verdict((*KEY[:3], b"/" + b"a" * 511, b""), entry) is Verdict.GONE
    assert log.verdict((*KEY[:3], b"/" + b"a" * 510, b""), entry) is None


async def test_without_marks_one_comparison_decides() -> None:
    log = LocalLog(_Clock())
    assert log.version == 0
    assert log.verdict(KEY, _entry(log)) is None
    assert log.unheard_for() == 0.0


# --- marks ------------------------------------------------------------------------------------------------------------


def test_marks_are_bounded_and_what_was_compacted_is_doubtful() -> None:
    marks = Marks(100)
    for number in range(1, 1001):
        marks.add(number, Invalidation(Kind.GROUP, f"tag:{number}"))
    assert len(marks) <= 100
    assert marks.verdict(0, KEY, ()) is Verdict.DOUBTFUL, "who knows what was forgotten"
    assert marks.verdict(0, KEY, ("tag:1000",)) is Verdict.GONE
    assert marks.verdict(marks.floor, KEY, ("tag:1",)) is None
    assert marks.verdict(999, KEY, ("tag:1000",)) is Verdict.GONE
    assert marks.verdict(1000, KEY, ("tag:1000",)) is None


def test_the_same_targets_again_and_again_make_no_floor() -> None:
    marks = Marks(100)
    for number in range(1, 10_001):
        marks.add(number, Invalidation(Kind.GROUP, f"tag:{number % 40}"))
    assert marks.floor == 0
    assert len(marks) == 40
    assert len(marks._order) <= 100
    assert marks.verdict(9_000, KEY, ("other",)) is None


def test_a_clear_forgets_what_it_covers_and_a_late_one_leaves_what_is_newer() -> None:
    marks = Marks(100)
    marks.add(1, Invalidation(Kind.GROUP, "a"))
    marks.add(5, Invalidation(Kind.GROUP, "b"))
    marks.add(3, Invalidation(Kind.ALL))
    assert len(marks) == 2
    assert marks.verdict(2, KEY, ()) is Verdict.GONE
    assert marks.verdict(3, KEY, ("a",)) is None
    assert marks.verdict(4, KEY, ("b",)) is Verdict.GONE
    assert [position for position, _ in marks] == [3, 5]


def test_prefixes_survive_a_compaction_and_go_with_it() -> None:
    marks = Marks(10)
    marks.add(1, Invalidation(Kind.PREFIX, (None, None, b"/older")))
    for number in range(2, 12):
        marks.add(number, Invalidation(Kind.PREFIX, (None, None, b"/prod")))
    assert marks.verdict(10, KEY, ()) is Verdict.GONE
    assert marks._hard.lengths == (5, 6)
    for number in range(12, 40):
        marks.add(number, Invalidation(Kind.GROUP, str(number)))
    assert marks._hard.lengths == ()


def test_a_soft_mark_on_everything_can_be_forgotten() -> None:
    marks = Marks(4)
    marks.add(1, Invalidation(Kind.ALL, soft=True))
    assert marks.verdict(0, KEY, ()) is Verdict.STALE
    for number in range(2, 9):
        marks.add(number, Invalidation(Kind.GROUP, str(number)))
    assert marks.verdict(0, KEY, ()) is Verdict.DOUBTFUL


# What is right about marks, told without the tables that make it fast.
_TARGETS = st.one_of(
    st.builds(Invalidation, st.just(Kind.GROUP), st.sampled_from(["a", "b"]), st.booleans()),
    st.builds(Invalidation, st.just(Kind.KEY), st.sampled_from([KEY, (*KEY[:4], b"")]), st.booleans()),
    st.builds(Invalidation, st.just(Kind.PATH), st.sampled_from([(KEY[3], KEY[4]), (b"/", b"")]), st.booleans()),
    st.builds(
        Invalidation,
        st.just(Kind.PREFIX),
        st.sampled_from([(None, None, b"/"), (None, None, b"/x"), ("http", b"shop.example", b"/prod")]),
        st.booleans(),
    ),
    st.builds(Invalidation, st.just(Kind.ALL), st.none(), st.booleans()),
)


def _names(mark: Invalidation, key: CacheKey, groups: tuple[str, ...]) -> bool:
    target: object = mark.target
    match mark.kind:
        case Kind.ALL:
            return True
        case Kind.GROUP:
            return target in groups
        case Kind.KEY:
            return target == key
        case Kind.PATH:
            return target == key[3:]
        case _:
            assert isinstance(target, tuple)
            return target[:2] in ((None, None), key[1:3]) and key[3].startswith(target[2])


@given(st.lists(_TARGETS, max_size=30), st.integers(0, 31), st.sampled_from([(), ("a",), ("a", "b")]))
def test_marks_say_what_a_list_of_them_says(log: list[Invalidation], since: int, groups: tuple[str, ...]) -> None:
    marks = Marks(1000)
    for position, mark in enumerate(log, 1):
        marks.add(position, mark)
    newer = [mark for position, mark in enumerate(log, 1) if position > since and _names(mark, KEY, groups)]
    expected = None
    if newer:
        expected = Verdict.STALE if all(mark.soft for mark in newer) else Verdict.GONE
    assert marks.verdict(since, KEY, groups) is expected


@given(st.lists(_TARGETS, max_size=60), st.integers(0, 61), st.integers(2, 20))
def test_bounded_marks_never_let_stand_what_all_of_them_would_not(
    log: list[Invalidation], since: int, most: int
) -> None:
    marks, all_marks = Marks(most), Marks(1000)
    for position, mark in enumerate(log, 1):
        marks.add(position, mark)
        all_marks.add(position, mark)
    verdict, true_verdict = marks.verdict(since, KEY, ("a",)), all_marks.verdict(since, KEY, ("a",))
    assert verdict in (true_verdict, Verdict.DOUBTFUL)
    assert len(marks) <= most + 1


# --- which log --------------------------------------------------------------------------------------------------------


def test_caches_that_share_a_store_share_its_log_for_as_long_as_it_lives() -> None:
    store = MemoryStore()
    first = Cache(store)
    assert Cache(store).log is first.log
    assert Cache(MemoryStore()).log is not first.log
    kept = id(first.log)
    del first
    gc.collect()
    assert id(log_of(store, SystemClock())) == kept, "the marks speak of what is in the store"


async def test_an_invalidation_through_one_cache_is_seen_by_another_over_the_same_store() -> None:
    store = MemoryStore()
    one, other = Cache(store), Cache(store)
    entry = Entry(StoredResponse(200, (), b""), 0.0, 0.0, 9e9, 9e9, groups=("a",))
    other.keep(KEY, entry)
    await one.invalidate(tags=["a"])
    assert await other.find(KEY, ()) == (None, False)


# --- the wire ---------------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**48 - 1), st.integers(0, 2**64 - 1))
def test_ids_and_positions_are_the_same_thing(milliseconds: int, sequence: int) -> None:
    text = f"{milliseconds}-{sequence}"
    assert log_id(position_of(text.encode())) == text


@given(st.tuples(st.integers(0, 2**48 - 1), st.integers(0, 2**64 - 1)), st.tuples(st.integers(0, 9), st.integers(0, 9)))
def test_positions_are_ordered_as_ids_are(one: tuple[int, int], other: tuple[int, int]) -> None:
    positions = [position_of(b"%d-%d" % parts) for parts in (one, other)]
    assert (positions[0] < positions[1]) == (one < other)


@pytest.mark.parametrize(
    "text", [b"", b"1", b"-", b"1-", b"-1", b"1-2-3", b"+1-2", b"1-18446744073709551616", b"281474976710656-0", b"x-1"]
)
def test_what_is_no_id_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match="not an ID"):
        position_of(text)


@given(st.lists(_TARGETS, min_size=1, max_size=500))
def test_marks_are_read_as_they_were_written(marks: list[Invalidation]) -> None:
    payloads = encode_marks(marks)
    assert [mark for payload in payloads for mark in decode_marks(payload)] == marks


@given(st.binary(max_size=200))
def test_bytes_that_are_no_marks_are_refused(payload: bytes) -> None:
    with contextlib.suppress(CodecError):
        decode_marks(payload)


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param([2, []], id="another-version"),
        pytest.param([1, [["planet", "x", False]]], id="an-unknown-kind"),
        pytest.param([1, [["group", b"x", False]]], id="a-group-of-bytes"),
        pytest.param([1, [["group", "x", 1]]], id="softness-as-a-number"),
        pytest.param([1, [["key", ["GET", "http", b"h", b"/"], False]]], id="a-short-key"),
        pytest.param([1, [["all", "x", False]]], id="everything-with-a-target"),
        pytest.param([1, [["prefix", b"/", False]]], id="a-bare-prefix"),
        pytest.param([1, [[]]], id="an-empty-row"),
        pytest.param([1, 7], id="no-rows"),
    ],
)
def test_marks_of_a_wrong_shape_are_refused(rows: object) -> None:
    import msgpack

    with pytest.raises(CodecError):
        decode_marks(msgpack.packb(rows))


@pytest.mark.parametrize("reply", [None, [1], [[b"1-1", b"x"]], [[b"x", []]], [[b"1-1", [b"odd"]]]])
def test_replies_that_are_no_entries_are_trouble_with_the_server(reply: object) -> None:
    with pytest.raises(StoreError):
        entries(reply)
