"""The invalidation log that workers share, on a real Redis: what each hears of the others, and in what trouble."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any, Protocol

import pytest
import redis

from echo_cache.coordination.clock import SystemClock
from echo_cache.coordination.log import log_id
from echo_cache.coordination.logs import log_of
from echo_cache.coordination.marks import Invalidation, Kind, Verdict
from echo_cache.coordination.stream import SharedLog
from echo_cache.events import LogChanged
from echo_cache.model import CacheKey, Entry, StoredResponse
from echo_cache.stores import MemoryStore, RedisStore, TwoLevelStore
from tests.proxy import RedisProxy
from tests.redis_support import MakeStore, make_store, until
from tests.servers import SERVERS, RedisCluster, RedisSentinel, RedisServer

__all__ = ["make_store"]

KEY: CacheKey = ("GET", "http", b"shop.example", b"/products/7", b"")
STREAM = "{echo_cache:log}"


class MakeLog(Protocol):
    def __call__(self, url: str, **options: Any) -> SharedLog: ...


@pytest.fixture
async def make_log(make_store: MakeStore) -> AsyncIterator[MakeLog]:
    """Make logs as workers of their own have them: each with a store, and so with connections, of its own."""
    logs: list[SharedLog] = []

    def make(url: str, **options: Any) -> SharedLog:
        store = make_store(url, timeout=options.pop("timeout", 5.0), prefix=options.pop("prefix", "echo_cache"))
        logs.append(SharedLog(store.server, SystemClock(), **options))
        return logs[-1]

    yield make
    for log in logs:
        await log.aclose(0.1)


def entry(log: SharedLog, *groups: str) -> Entry:
    """Return an entry whose fill begins now."""
    return Entry(StoredResponse(200, (), b""), 0.0, 0.0, 9e9, 9e9, groups=groups, mark=log.position())


def tag(name: str, *, soft: bool = False) -> list[Invalidation]:
    return [Invalidation(Kind.GROUP, name, soft)]


async def heard(log: SharedLog) -> None:
    """Return when everything that is in the stream now is known to *log*."""
    log.follow()
    began = SystemClock().time()
    await until(lambda: SystemClock().time() - log.unheard_for() >= began)


def client(url: str) -> Any:
    return redis.Redis.from_url(url)


# --- what workers hear of each other ----------------------------------------------------------------------------------


@pytest.mark.parametrize("own_redis", SERVERS, indirect=True)
async def test_an_invalidation_reaches_every_worker(own_redis: RedisServer, make_log: MakeLog) -> None:
    one, other = make_log(own_redis.url), make_log(own_redis.url)
    await one.ready()
    await other.ready()
    before = entry(other, "a")
    appended = await one.append(tag("a"))
    assert appended.trouble is None
    assert one.verdict(KEY, before) is Verdict.GONE, "who invalidates knows it at once"
    await until(lambda: other.verdict(KEY, before) is Verdict.GONE)
    assert other.position() == appended.position
    assert other.verdict(KEY, entry(other, "a")) is None, "a fill that began after it stands"
    (last,) = client(own_redis.url).xrevrange(STREAM, count=1)
    assert log_id(appended.position) == last[0].decode()


async def test_soft_marks_and_all_kinds_travel(redis_url: str, make_log: MakeLog) -> None:
    one, other = make_log(redis_url), make_log(redis_url)
    await other.ready()
    marks = [
        Invalidation(Kind.KEY, KEY),
        Invalidation(Kind.PATH, (b"/p", b"")),
        Invalidation(Kind.GROUP, "g", soft=True),
        Invalidation(Kind.ORIGIN_GROUP, ("http", None, "o")),
        Invalidation(Kind.PREFIX, ("https", b"h", b"/x")),
        Invalidation(Kind.KEY, (*KEY[:3], b"/" + b"a" * 70_000, b"")),
    ]
    before = entry(other, "g", "o")
    await one.append(marks)
    await until(lambda: other.position() > before.mark)
    assert {mark for _, mark in other._marks} == {mark.shortened() for mark in marks}
    assert other.verdict(("GET", "http", b"h", b"/other", b""), before) is Verdict.STALE
    assert abs(other.softened_at(KEY, before) - SystemClock().time()) < 60
    await one.append([Invalidation(Kind.ALL)])
    await until(lambda: other.verdict(("GET", "http", b"h", b"/other", b""), before) is Verdict.GONE)


async def test_a_worker_that_comes_later_knows_what_was_invalidated_before(redis_url: str, make_log: MakeLog) -> None:
    first = make_log(redis_url)
    await first.ready()
    filled = entry(first, "a")  # it is in Redis, where the newcomer finds it
    await first.append(tag("a"))
    stands = entry(first, "a")
    later = make_log(redis_url)
    await later.ready()
    assert later.verdict(KEY, filled) is Verdict.GONE
    assert later.verdict(KEY, stands) is None
    assert later.verdict(KEY, entry(first)._replace(mark=0)) is Verdict.DOUBTFUL, "filled before there was a log"


async def test_what_one_appends_brings_what_others_appended_before(redis_url: str, make_log: MakeLog) -> None:
    one, other = make_log(redis_url), make_log(redis_url)
    await one.ready()
    await other.ready()
    for number in range(20):
        await other.append(tag(f"other:{number}"))
        appended = await one.append(tag(f"one:{number}"))
        # So what is filled next is not taken for older than what was invalidated last.
        assert one.position() == appended.position
        assert one.verdict(KEY, entry(one, f"one:{number}", f"other:{number}")) is None


async def test_logs_of_other_prefixes_are_other_logs(redis_url: str, make_log: MakeLog) -> None:
    one, other = make_log(redis_url), make_log(redis_url, prefix="other:app")
    before = entry(other, "a")
    await one.append(tag("a"))
    await heard(other)
    assert other.verdict(KEY, before) is not Verdict.GONE
    assert client(redis_url).exists("{other:app:log}")


async def test_many_appended_at_once_are_all_heard(redis_url: str, make_log: MakeLog) -> None:
    one, other = make_log(redis_url), make_log(redis_url)
    await other.ready()
    before = entry(other, *(f"t:{number}" for number in range(3)))
    await asyncio.gather(*(one.append(tag(f"t:{number}")) for number in range(2_000)))
    await one.append([Invalidation(Kind.GROUP, f"more:{number}") for number in range(1_000)])
    await until(lambda: other.position() == one.position())
    assert len(other._marks) == 3_000
    assert other.verdict(KEY, before) is Verdict.GONE


async def test_memory_is_bounded_here_and_there(redis_url: str, make_log: MakeLog) -> None:
    one, other = make_log(redis_url, max_marks=200), make_log(redis_url, max_marks=200)
    await other.ready()
    before = entry(other)
    for start in range(0, 20_000, 1_000):
        await asyncio.gather(*(one.append(tag(f"t:{number}")) for number in range(start, start + 1_000)))
    await until(lambda: other.position() == one.position())
    assert client(redis_url).xlen(STREAM) <= 400, "about 200: Redis cuts in blocks of a hundred"
    for log in (one, other):
        await heard(log)
        assert len(log._marks) <= 200
        assert log.verdict(KEY, before) is Verdict.DOUBTFUL
        assert log.verdict(KEY, entry(log, "t:19999")) is None


async def test_on_a_cluster(cluster: RedisCluster, make_log: MakeLog) -> None:
    one, other = make_log(cluster.url), make_log(cluster.url)
    await other.ready()
    before = entry(other, "a")
    assert (await one.append(tag("a"))).trouble is None
    await until(lambda: other.verdict(KEY, before) is Verdict.GONE)


async def test_a_cluster_whose_log_moves_to_a_replica_is_heard_again_and_doubted(
    own_cluster: RedisCluster, make_log: MakeLog
) -> None:
    prefix = next(
        f"p{number}"
        for number in range(1_000)
        if own_cluster.replica_of(own_cluster.master_of(f"{{p{number}:log}}")) is not None
    )
    one, other = make_log(own_cluster.url, prefix=prefix), make_log(own_cluster.url, prefix=prefix)
    await other.ready()
    await one.append(tag("a"))
    before = entry(other)
    own_cluster.kill_master_of(f"{{{prefix}:log}}")
    await own_cluster.ok()
    # What was acknowledged and not yet replicated is lost: who can tell what it was.
    await until(lambda: other.verdict(KEY, before) is Verdict.DOUBTFUL)
    await until(lambda: other.trouble is None)
    stands = entry(other, "a")
    assert other.verdict(KEY, stands) is None

    async def appends() -> bool:
        return (await one.append(tag("a"))).trouble is None

    await until(appends)
    await until(lambda: other.verdict(KEY, stands) is Verdict.GONE)


async def test_with_sentinels_the_log_goes_on_at_the_new_primary(
    own_sentinel: RedisSentinel, make_log: MakeLog
) -> None:
    one, other = make_log(own_sentinel.url), make_log(own_sentinel.url)
    await other.ready()
    before = entry(other, "a")
    assert (await one.append(tag("b"))).trouble is None
    own_sentinel.master.kill()
    await until(lambda: other.verdict(KEY, before) is Verdict.DOUBTFUL)

    async def appends() -> bool:
        return (await one.append(tag("a"))).trouble is None

    await until(appends)
    await until(lambda: other.verdict(KEY, before) is Verdict.GONE)


# --- trouble ----------------------------------------------------------------------------------------------------------


async def test_a_connection_that_breaks_is_replaced_without_a_word(
    own_redis: RedisServer, make_log: MakeLog, caplog: pytest.LogCaptureFixture
) -> None:
    one, other = make_log(own_redis.url), make_log(own_redis.url)
    await other.ready()
    before = entry(other, "a")
    for number in range(5):
        own_redis.command("CLIENT", "KILL", "TYPE", "normal")
        assert (await _appended(one, f"t:{number}")).trouble is None
    await _appended(one, "a")
    await until(lambda: other.verdict(KEY, before) is Verdict.GONE)
    assert other.verdict(KEY, entry(other)._replace(mark=before.mark, groups=())) is None, "nothing else is in doubt"
    assert not [record for record in caplog.records if record.levelno >= logging.INFO]


async def _appended(log: SharedLog, name: str) -> Any:
    # The pool's own connection may be the one that was killed.
    for _ in range(3):
        appended = await log.append(tag(name))
        if appended.trouble is None:
            return appended
    return appended


async def test_a_server_that_is_emptied_makes_everything_doubtful_and_the_log_goes_on(
    own_redis: RedisServer, make_log: MakeLog
) -> None:
    one, other = make_log(own_redis.url), make_log(own_redis.url)
    for log in (one, other):
        log.expect(0.1)
        await log.ready()
    before = entry(other, "a")
    own_redis.command("FLUSHALL")
    await until(lambda: other.verdict(KEY, before) is Verdict.DOUBTFUL)
    await heard(one)
    await heard(other)
    after = entry(other, "a")
    assert after.mark > before.mark
    assert other.verdict(KEY, after) is None
    await one.append(tag("a"))
    await until(lambda: other.verdict(KEY, after) is Verdict.GONE)


async def test_an_invalidation_in_the_instant_after_the_server_was_emptied_is_heard(
    own_redis: RedisServer, make_log: MakeLog
) -> None:
    one, other = make_log(own_redis.url), make_log(own_redis.url)
    await one.ready()
    await other.ready()
    before = entry(other, "a")
    own_redis.command("FLUSHALL")
    appended = await one.append(tag("a"))
    assert appended.trouble is None
    # The new stream says that it is one before it says anything else.
    await until(lambda: other.verdict(KEY, before) is not None)
    await until(lambda: other.position() >= appended.position)
    assert other.verdict(KEY, before) is Verdict.GONE


async def test_a_server_that_was_restarted_is_doubted_once(own_redis: RedisServer, make_log: MakeLog) -> None:
    logs = [make_log(own_redis.url) for _ in range(4)]
    for log in logs:
        await log.ready()
    before = entry(logs[0])
    own_redis.restart()
    await until(lambda: all(log.verdict(KEY, before) is Verdict.DOUBTFUL for log in logs))
    for log in logs:
        await heard(log)
    after = entry(logs[0])
    newcomer = make_log(own_redis.url)
    await heard(newcomer)
    assert all(log.verdict(KEY, after) is None for log in (*logs, newcomer)), "not once for each worker"


async def test_what_stands_in_the_place_of_the_stream_gives_way(redis_url: str, make_log: MakeLog) -> None:
    server = client(redis_url)
    server.set(STREAM, "not a stream")
    server.rpush(f"{STREAM}:run", "no run")
    one, other = make_log(redis_url), make_log(redis_url)
    await heard(other)
    before = entry(other, "a")
    assert (await one.append(tag("a"))).trouble is None
    await until(lambda: other.verdict(KEY, before) is Verdict.GONE)


@pytest.mark.parametrize(
    "planted",
    [
        pytest.param({"marks": b"\xff" * 50}, id="bytes-that-are-no-marks"),
        pytest.param({"marks": b"\x92\x02\x90"}, id="a-later-version"),
        pytest.param({"else": b"1"}, id="another-field"),
    ],
)
async def test_what_is_not_understood_makes_what_was_before_doubtful(
    planted: dict[str, bytes], redis_url: str, make_log: MakeLog
) -> None:
    log = make_log(redis_url)
    await log.ready()
    before = entry(log)
    client(redis_url).xadd(STREAM, planted)
    await until(lambda: log.verdict(KEY, before) is Verdict.DOUBTFUL)
    assert log.verdict(KEY, entry(log)) is None


AHEAD = [
    pytest.param("18446744073709551615-18446744073709551615", id="used-up"),
    pytest.param("281474976710655-18446744073709551615", id="of-the-year-10889"),
    pytest.param(f"{1_000 * int(SystemClock().time() + 400 * 86_400)}-0", id="of-next-year"),
]


@pytest.mark.parametrize("planted", AHEAD)
async def test_ids_of_a_time_to_come_end_the_stream_and_a_new_one_begins(
    planted: str, redis_url: str, make_log: MakeLog
) -> None:
    server = client(redis_url)
    server.xadd(STREAM, {"marks": b""}, id=planted)
    log = make_log(redis_url)
    await heard(log)
    before = entry(log, "a")
    assert (await log.append(tag("a"))).trouble is None
    assert log.verdict(KEY, before) is Verdict.GONE
    assert server.xlen(STREAM) == 2


@pytest.mark.parametrize("planted", AHEAD)
async def test_ids_of_a_time_to_come_that_come_later_do_so_as_well(
    planted: str, redis_url: str, make_log: MakeLog
) -> None:
    server = client(redis_url)
    log = make_log(redis_url)
    log.expect(0.1)
    await heard(log)
    server.xadd(STREAM, {"marks": b""}, id=planted)
    before = entry(log, "a")

    async def appends() -> bool:
        return (await log.append(tag("a"))).trouble is None

    await until(appends)
    assert log.verdict(KEY, before) is Verdict.GONE
    await heard(log)
    assert log.position() >> 64 < 1_000 * (SystemClock().time() + 86_400)


@pytest.mark.parametrize("at", ["XREAD", "XRANGE"])
async def test_what_is_cut_between_two_questions_is_not_passed_over(
    at: str, redis_url: str, make_log: MakeLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = client(redis_url)
    log, writer = make_log(redis_url), make_log(redis_url)
    await writer.append(tag("first"))
    if at == "XREAD":
        await heard(log)
    before = entry(writer, "victim")
    cuts = 0

    class Cutting:
        """A connection before whose question the stream is written to, and cut, once."""

        def __init__(self, listener: Any) -> None:
            self.listener = listener
            self.aclose = listener.aclose

        async def ask(self, commands: Any, timeout: float) -> Any:
            nonlocal cuts
            whole = any(words[0] == at and b"-" in words for words in commands)
            if not cuts and (whole or any(words[0] == "XREAD" == at for words in commands)):
                cuts += 1
                await writer.append(tag("victim"))
                await writer.append(tag("last"))
                server.xtrim(STREAM, maxlen=1, approximate=False)
            return await self.listener.ask(commands, timeout)

    listen = log._server.listen

    async def cutting(name: str) -> Any:
        return Cutting(await listen(name))

    monkeypatch.setattr(log._server, "listen", cutting)
    client(redis_url).client_kill_filter(_type="normal", skipme=True)
    log.follow()
    await until(lambda: cuts == 1 and log.position() == writer.position())
    await heard(log)
    assert log.verdict(KEY, before) is Verdict.DOUBTFUL


async def test_a_log_that_was_cut_while_nobody_listened_is_doubted_up_to_where_it_begins(
    own_redis: RedisServer, own_proxy: RedisProxy, make_log: MakeLog
) -> None:
    near, far = make_log(own_redis.url, max_marks=100), make_log(own_proxy.url, max_marks=100)
    await near.ready()
    await far.ready()
    before = entry(far)
    own_proxy.refuse()
    own_proxy.reset_connections()
    for start in range(0, 3_000, 500):
        await asyncio.gather(*(near.append(tag(f"t:{number}")) for number in range(start, start + 500)))
    await heard(near)
    after = entry(near, "t:2999")
    own_proxy.heal()
    await until(lambda: far.verdict(KEY, before) is Verdict.DOUBTFUL)
    await until(lambda: far.position() == near.position())
    assert far.verdict(KEY, after) is None


async def test_a_server_that_hangs_is_known_not_to_be_heard_and_heard_again(
    own_redis: RedisServer, make_log: MakeLog, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    events: list[LogChanged] = []
    log = make_log(own_redis.url, timeout=0.1)
    log.observe(events.append)  # type: ignore[arg-type]  # a list takes any event
    log.expect(0.1)
    await log.ready()
    await until(lambda: log.unheard_for() < 0.5)
    own_redis.pause()
    await until(lambda: log.trouble is not None)
    assert log.unheard_for() > 0.5
    own_redis.resume()
    await until(lambda: log.trouble is None and log.unheard_for() < 0.5)
    assert [event.is_heard for event in events] == [False, True]
    said = [record.getMessage() for record in caplog.records if "log" in record.getMessage()]
    assert len(said) == 2
    assert "cannot be heard" in said[0]
    assert "heard again" in said[1]


async def test_a_stream_that_somebody_filled_without_end_is_not_read_to_its_end(
    redis_url: str, make_log: MakeLog
) -> None:
    server = client(redis_url)
    with server.pipeline(transaction=False) as pipeline:
        for _ in range(5_000):
            pipeline.xadd(STREAM, {"marks": b"x"})
        pipeline.execute()
    log = make_log(redis_url, max_marks=100)
    before = entry(log)
    await heard(log)
    assert log.verdict(KEY, before) is Verdict.DOUBTFUL
    stands = entry(log, "a")
    assert log.verdict(KEY, stands) is None
    await make_log(redis_url, max_marks=100).append(tag("a"))
    await until(lambda: log.verdict(KEY, stands) is Verdict.GONE)


# --- what cannot be appended ------------------------------------------------------------------------------------------


async def test_what_cannot_be_appended_counts_here_and_reaches_the_others_when_redis_is_back(
    own_redis: RedisServer, own_proxy: RedisProxy, make_log: MakeLog
) -> None:
    far, near = make_log(own_proxy.url, timeout=0.1), make_log(own_redis.url)
    await far.ready()
    await near.ready()
    before, theirs = entry(far, "a"), entry(near, "a")
    own_proxy.refuse()
    own_proxy.reset_connections()
    appended = await far.append(tag("a"))
    assert appended.trouble is not None
    assert far.verdict(KEY, before) is Verdict.GONE
    assert far.verdict(KEY, theirs) is Verdict.GONE, "what another filled has not seen it"
    during = entry(far, "a")
    assert during.mark < 0
    assert far.verdict(KEY, during) is None, "what is filled here meanwhile stands"
    await far.append(tag("a"))
    assert far.verdict(KEY, during) is Verdict.GONE, "until the next one"
    assert far.pending == 1, "the same twice is one"
    assert near.verdict(KEY, theirs) is None
    own_proxy.heal()
    await until(lambda: near.verdict(KEY, theirs) is Verdict.GONE)
    await until(lambda: far.pending == 0)
    await heard(far)
    assert far.verdict(KEY, before) is Verdict.GONE
    assert entry(far).mark >= 0
    assert far.verdict(KEY, entry(far, "a")) is None


async def test_more_than_is_kept_becomes_one_of_everything(
    own_redis: RedisServer, own_proxy: RedisProxy, make_log: MakeLog
) -> None:
    far, near = make_log(own_proxy.url, timeout=0.1, max_pending=10), make_log(own_redis.url)
    await far.ready()
    await near.ready()
    theirs = entry(near)
    own_proxy.refuse()
    own_proxy.reset_connections()
    unnamed = entry(far)
    for number in range(11):
        assert far.verdict(KEY, unnamed) is None
        await far.append(tag(f"t:{number}"))
    assert far.pending == 1
    assert far.verdict(KEY, unnamed) is Verdict.GONE
    own_proxy.heal()
    await until(lambda: near.verdict(KEY, theirs) is Verdict.GONE)


async def test_a_server_that_refuses_writes_is_heard_all_the_same(
    own_redis: RedisServer, own_proxy: RedisProxy, make_log: MakeLog
) -> None:
    far, near = make_log(own_proxy.url), make_log(own_redis.url)
    far.expect(0.1)
    await far.ready()
    await near.ready()
    before = entry(far, "a", "b")
    own_proxy.reply_error(b"-OOM command not allowed when used memory > 'maxmemory'.", only=("EVALSHA",))
    assert (await far.append(tag("a"))).trouble is not None
    stands = entry(far, "b")
    await near.append(tag("b"))
    await until(lambda: far.verdict(KEY, stands) is Verdict.GONE)
    assert far.verdict(KEY, entry(far, "a", "b")) is None
    assert far.trouble is None
    assert far.verdict(KEY, before) is Verdict.GONE
    own_proxy.heal()
    await until(lambda: far.pending == 0)


async def test_an_append_whose_caller_leaves_is_not_lost(
    own_redis: RedisServer, own_proxy: RedisProxy, make_log: MakeLog
) -> None:
    far, near = make_log(own_proxy.url), make_log(own_redis.url)
    far.expect(0.1)
    await far.ready()
    await near.ready()
    theirs = entry(near, "a")
    own_proxy.hold(only=("EVALSHA",))
    task = asyncio.create_task(far.append(tag("a")))
    await until(lambda: own_proxy.count("EVALSHA") > 0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert far.verdict(KEY, entry(far, "a")._replace(mark=theirs.mark)) is Verdict.GONE
    own_proxy.heal()
    await until(lambda: near.verdict(KEY, theirs) is Verdict.GONE)


async def test_what_is_pending_is_told_before_the_end(
    own_redis: RedisServer, own_proxy: RedisProxy, make_log: MakeLog
) -> None:
    far, near = make_log(own_proxy.url, timeout=0.1), make_log(own_redis.url)
    await far.ready()
    await near.ready()
    theirs = entry(near, "a")
    own_proxy.refuse()
    own_proxy.reset_connections()
    await far.append(tag("a"))
    own_proxy.heal()
    await far.aclose(5.0)
    await until(lambda: near.verdict(KEY, theirs) is Verdict.GONE)


async def test_what_cannot_be_told_before_the_end_is_said_to_be_lost(
    own_redis: RedisServer, make_log: MakeLog, caplog: pytest.LogCaptureFixture
) -> None:
    log = make_log(own_redis.url, timeout=0.1)
    await log.ready()
    own_redis.kill()
    await log.append(tag("a"))
    await log.aclose(0.3)
    assert "1 invalidations could not be told" in caplog.text


# --- starting and ending ----------------------------------------------------------------------------------------------


async def test_without_a_server_nobody_waits_twice(make_log: MakeLog) -> None:
    log = make_log("redis://127.0.0.1:1", timeout=0.1)
    loop = asyncio.get_running_loop()
    await log.ready()
    assert log.trouble is not None
    task = loop.create_task(log.ready())
    await asyncio.sleep(0)
    assert task.done(), "it is known that there is nothing to wait for"
    assert log.unheard_for() == float("inf")
    assert (await log.append(tag("a"))).trouble is not None


async def test_repr_says_how_it_goes(redis_url: str, make_log: MakeLog) -> None:
    log = make_log(redis_url)
    assert "[not followed, 0 pending]" in repr(log)
    await log.ready()
    assert "[heard, 0 pending]" in repr(log)
    assert redis_url.rpartition("@")[2].removeprefix("redis://").split("/")[0] in repr(log)


async def test_it_can_be_closed_and_goes_on_where_it_stood(redis_url: str, make_log: MakeLog) -> None:
    one, other = make_log(redis_url), make_log(redis_url)
    await other.ready()
    before = entry(other, "a")
    await other.aclose(1.0)
    await other.aclose(1.0)
    await one.append(tag("a"))
    other.follow()
    await until(lambda: other.verdict(KEY, before) is Verdict.GONE)
    assert other.verdict(KEY, before._replace(groups=())) is None


async def test_another_event_loop_takes_over_when_the_first_has_ended(redis_url: str, make_store: MakeStore) -> None:
    store = make_store(redis_url)
    log = SharedLog(store.server, SystemClock())
    first = await asyncio.to_thread(asyncio.run, _follow_for_a_moment(log, store))
    assert first > 0
    await heard(log)
    assert log.position() == first
    await log.aclose(1.0)


async def _follow_for_a_moment(log: SharedLog, store: RedisStore) -> int:
    await log.ready()
    await store.aclose()
    return log.position()


async def test_marks_can_be_appended_in_several_event_loops_at_once(redis_url: str, make_log: MakeLog) -> None:
    log = make_log(redis_url)
    await log.ready()
    before = entry(log, "t:7")

    async def append(start: int) -> None:
        for number in range(start, start + 200):
            assert (await log.append(tag(f"t:{number}"))).trouble is None
        await log._server._links[asyncio.get_running_loop()].aclose()  # type: ignore[attr-defined]  # a store's

    await asyncio.gather(*(asyncio.to_thread(asyncio.run, append(1_000 * number)) for number in range(2)))
    assert len(log._marks) == 400
    assert log.verdict(KEY, before) is Verdict.GONE


def test_stores_over_one_server_share_its_log(redis_url: str) -> None:
    redis_store = RedisStore(redis_url)
    log = log_of(redis_store, SystemClock())
    assert isinstance(log, SharedLog)
    assert log_of(TwoLevelStore(MemoryStore(), redis_store), SystemClock()) is log
    assert log_of(TwoLevelStore(MemoryStore(), MemoryStore()), SystemClock()) is not log
