"""The invalidation log: what a mark reaches, and the order that closes the race with a slow fill."""

from __future__ import annotations

import pytest

from echo_cache.coordination.log import Invalidation, Kind, LocalLog, Verdict
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
def test_a_mark_reaches_what_it_names(mark: Invalidation, reached: bool, soft: bool) -> None:
    log = LocalLog(_Clock())
    before = _entry(log, "catalog")
    log.append(Invalidation(mark.kind, mark.target, soft))
    expected = None if not reached else Verdict.STALE if soft else Verdict.GONE
    assert log.verdict(KEY, before) is expected
    assert log.verdict(KEY, _entry(log, "catalog")) is None, "a fill that began after the mark stands"


def test_a_fill_that_began_before_an_invalidation_is_gone_even_in_the_same_millisecond() -> None:
    log = LocalLog(_Clock())
    fills = [_entry(log)]
    for _ in range(3):
        log.append(Invalidation(Kind.KEY, KEY))
        assert all(log.verdict(KEY, fill) is Verdict.GONE for fill in fills)
        fills.append(_entry(log))
        assert log.verdict(KEY, fills[-1]) is None


def test_positions_do_not_fall_when_the_clock_does() -> None:
    clock = _Clock()
    log = LocalLog(clock)
    first = log.append(Invalidation(Kind.KEY, KEY))
    clock.now -= 500
    assert log.position() >= first
    assert log.append(Invalidation(Kind.KEY, KEY)) > first


def test_a_hard_mark_outweighs_a_soft_one() -> None:
    log = LocalLog(_Clock())
    entry = _entry(log, "a", "b")
    log.append(Invalidation(Kind.GROUP, "a"))
    log.append(Invalidation(Kind.GROUP, "b", soft=True))
    assert log.verdict(KEY, entry) is Verdict.GONE


def test_marks_are_bounded_and_what_was_compacted_stays_invalid() -> None:
    log = LocalLog(_Clock(), max_marks=100)
    entry = _entry(log, "tag:0")
    for number in range(1000):
        log.append(Invalidation(Kind.GROUP, f"tag:{number}"))
    assert log.verdict(KEY, entry) is Verdict.GONE
    assert log.verdict(KEY, _entry(log, "tag:0")) is None
    assert repr(log).startswith("<LocalLog ")
    assert int(repr(log).split()[1]) <= 100


def test_long_targets_are_kept_short_and_still_reach() -> None:
    log = LocalLog(_Clock())
    long: CacheKey = (*KEY[:3], b"/" + b"a" * 60_000, b"")
    entry = _entry(log)
    log.append(Invalidation(Kind.KEY, long))
    assert log.verdict(long, entry) is Verdict.GONE
    assert log.verdict((*long[:4], b"other"), entry) is None


def test_prefixes_survive_a_compaction() -> None:
    log = LocalLog(_Clock(), max_marks=10)
    for number in range(10):
        log.append(Invalidation(Kind.GROUP, str(number)))
    entry = _entry(log)
    log.append(Invalidation(Kind.PREFIX, (None, None, b"/prod")))
    assert log.verdict(KEY, entry) is Verdict.GONE
    log.append(Invalidation(Kind.ALL))
    assert log.verdict(KEY, _entry(log)) is None


def test_without_marks_one_comparison_decides() -> None:
    log = LocalLog(_Clock())
    assert log.newest == 0
    assert log.verdict(KEY, _entry(log)) is None
