"""Leases on a real Redis: one does the work, the others learn of it, and whatever goes wrong costs nobody an answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Protocol, TypeAlias

import pytest
import redis

from echo_cache.coordination import lease as lease_module
from echo_cache.coordination.lease import RELEASE, RENEW, TAKE, Lease, Leases, Outcome
from echo_cache.coordination.server import Listener, Server
from tests import redis_support as support
from tests.proxy import WRONG_TYPES, RedisProxy
from tests.redis_support import DEADLINE, PATIENT, MakeStore, is_idle, until
from tests.servers import SERVERS, RedisCluster, RedisServer

make_store, reports, server = support.make_store, support.reports, support.server

Led: TypeAlias = Lease | bytes | None

# Longer than any test: who waits for so long is told, or the test fails.
FOR_EVER = 600.0
# What a lease says when it was released is there for a second.
TOLD_MS = 1000
# What a wait of a second asks: 25 times in the first 80 ms, then as often again for each 16th that it grows by. Each
# pause may be half as long as that.
MOST_READS_IN_A_SECOND = 115


class Watched:
    """A server that counts what is asked of it."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.reads = 0
        self.scripts: list[str] = []

    @property
    def location(self) -> str:
        return self._server.location

    @property
    def prefix(self) -> str:
        return self._server.prefix

    async def read(self, name: str) -> bytes | None:
        self.reads += 1
        return await self._server.read(name)

    async def evaluate(self, script: str, keys: Sequence[str], words: Sequence[str | bytes | int]) -> object:
        reply = await self._server.evaluate(script, keys, words)
        self.scripts.append(script)
        return reply

    async def listen(self, name: str) -> Listener:
        return await self._server.listen(name)


class Worker:
    """
    One process, as leases see it.

    shelf: where the work is put when it is done; None while there is nothing. looks: how often somebody looked there.
    """

    def __init__(self, server: Server, *, ttl: float, wait: float) -> None:
        self.server = Watched(server)
        self.leases = Leases(self.server, ttl=ttl, wait=wait)
        self.name = self.leases.name("work")
        self.shelf: bytes | None = None
        self.looks = 0
        self.held: list[Lease] = []

    async def look(self) -> bytes | None:
        self.looks += 1
        return self.shelf

    async def lead(self, name: str | None = None) -> Led:
        led = await self.leases.lead(name or self.name, self.look)
        if isinstance(led, Lease):
            self.held.append(led)
        return led

    async def take(self) -> Lease:
        led = await self.lead()
        assert isinstance(led, Lease)
        return led

    async def waiter(self) -> asyncio.Task[Led]:
        """Return one who waits for another's lease, and has asked for it more than once."""
        task = asyncio.ensure_future(self.lead())
        reads = self.server.reads
        await until(lambda: self.server.reads >= reads + 2 or task.done())
        assert not task.done(), task.result()
        return task


class MakeWorker(Protocol):
    def __call__(self, server: Any, *, ttl: float = ..., wait: float = ..., **options: Any) -> Worker: ...


@pytest.fixture
async def make_worker(make_store: MakeStore) -> AsyncIterator[MakeWorker]:
    """Make workers, whose leases are released at the end of the test."""
    workers: list[Worker] = []

    def make(server: Any, *, ttl: float = PATIENT, wait: float = FOR_EVER, **options: Any) -> Worker:
        workers.append(Worker(make_store(server, **options).server, ttl=ttl, wait=wait))
        return workers[-1]

    yield make
    for worker in workers:
        for lease in worker.held:
            lease.release(Outcome.FAILED)
        await worker.leases.aclose(PATIENT)


async def led(task: asyncio.Task[Led]) -> Led:
    async with asyncio.timeout(DEADLINE):
        return await task


def told(server: Any, worker: Worker, outcome: Outcome) -> bool:
    said = server.get(worker.name)
    return said is not None and said.startswith(outcome.value + b":")


# --- one does it, the others learn of it ------------------------------------------------------------------------------


@pytest.mark.parametrize("own_redis", SERVERS, indirect=True)
async def test_one_of_many_takes_it_and_all_others_find_what_it_made(
    own_redis: RedisServer, make_worker: MakeWorker
) -> None:
    workers = [make_worker(own_redis.url) for _ in range(5)]
    tasks = [asyncio.ensure_future(worker.lead()) for worker in workers * 10]
    done, waiting = await asyncio.wait(tasks, timeout=DEADLINE, return_when=asyncio.FIRST_COMPLETED)
    await until(lambda: sum(worker.server.reads for worker in workers) >= 2 * len(tasks))
    assert len([task for task in tasks if task.done()]) == 1
    (taken,) = done
    lease = taken.result()
    assert isinstance(lease, Lease)
    assert sum(worker.looks for worker in workers) == 0
    for worker in workers:
        worker.shelf = b"made"
    lease.release(Outcome.DONE)
    assert [await led(task) for task in waiting] == [b"made"] * 49
    assert sum(worker.looks for worker in workers) == 49


async def test_a_lease_is_the_same_on_a_cluster(cluster: RedisCluster, make_worker: MakeWorker) -> None:
    one, other = make_worker(cluster.url), make_worker(cluster.url)
    lease = await one.take()
    waiter = await other.waiter()
    other.shelf = b"made"
    lease.release(Outcome.DONE)
    assert await led(waiter) == b"made"


async def test_leases_on_other_work_are_not_waited_for(redis_url: str, make_worker: MakeWorker) -> None:
    one, other = make_worker(redis_url), make_worker(redis_url)
    await one.take()
    assert isinstance(await other.lead(other.leases.name("other work")), Lease)
    elsewhere = make_worker(redis_url, prefix="elsewhere")
    assert elsewhere.name != one.name
    assert isinstance(await elsewhere.lead(), Lease)


@pytest.mark.parametrize("outcome", Outcome)
async def test_those_who_wait_go_by_what_is_told_and_not_by_its_end(
    outcome: Outcome, redis_url: str, make_worker: MakeWorker, server: Any
) -> None:
    worker = make_worker(redis_url)
    server.set(worker.name, b"another's", px=600_000)
    waiter = await worker.waiter()
    worker.shelf = b"made"
    server.set(worker.name, outcome.value + b":1", px=600_000)  # and it stays there
    assert await led(waiter) == (b"made" if outcome is Outcome.DONE else None)


async def test_who_comes_just_after_the_end_looks_and_does_not_wait(redis_url: str, make_worker: MakeWorker) -> None:
    one, late = make_worker(redis_url), make_worker(redis_url)
    (await one.take()).release(Outcome.DONE)
    await one.leases.aclose(PATIENT)
    late.shelf = b"made"
    assert await late.lead() == b"made"
    assert (late.looks, late.server.reads) == (1, 0)


async def test_what_is_done_and_not_found_is_done_by_one_of_those_who_looked(
    redis_url: str, make_worker: MakeWorker
) -> None:
    one = make_worker(redis_url)
    others = [make_worker(redis_url) for _ in range(4)]
    lease = await one.take()
    waiting = [await other.waiter() for other in others]
    lease.release(Outcome.DONE)  # it was invalidated meanwhile, say
    done, waiting_still = await asyncio.wait(waiting, timeout=DEADLINE, return_when=asyncio.FIRST_COMPLETED)
    (second,) = (task.result() for task in done)
    assert isinstance(second, Lease)
    for other in others:
        other.shelf = b"made anew"
    second.release(Outcome.DONE)
    assert [await led(task) for task in waiting_still] == [b"made anew"] * 3


@pytest.mark.parametrize("outcome", [Outcome.NOT_SHARED, Outcome.FAILED])
async def test_what_is_for_nobody_else_lets_each_do_it_alone(
    outcome: Outcome, redis_url: str, make_worker: MakeWorker
) -> None:
    one = make_worker(redis_url)
    others = [make_worker(redis_url) for _ in range(4)]
    lease = await one.take()
    waiting = [await other.waiter() for other in others]
    lease.release(outcome)
    assert [await led(task) for task in waiting] == [None] * 4
    # And who comes a moment later does not wait at all.
    reads = others[0].server.reads
    assert await others[0].lead() is None
    assert others[0].server.reads == reads
    assert sum(other.looks for other in others) == 0


@pytest.mark.parametrize("outcome", Outcome)
async def test_what_became_of_it_is_told_for_a_moment_and_then_the_name_is_free(
    outcome: Outcome, redis_url: str, make_worker: MakeWorker, server: Any
) -> None:
    one, other = make_worker(redis_url), make_worker(redis_url)
    (await one.take()).release(outcome)
    await one.leases.aclose(PATIENT)
    assert told(server, one, outcome)
    assert 0 < server.pttl(one.name) <= TOLD_MS
    await until(lambda: not server.exists(one.name))
    assert isinstance(await other.lead(), Lease)
    assert other.looks == 0


# --- owners that die, or lose it --------------------------------------------------------------------------------------


async def test_one_of_those_who_wait_takes_over_from_an_owner_that_died(
    redis_url: str, make_worker: MakeWorker, server: Any
) -> None:
    others = [make_worker(redis_url) for _ in range(4)]
    name = others[0].name
    server.set(name, b"of a dead process", px=300)
    loop = asyncio.get_running_loop()
    began = loop.time()
    waiting = [asyncio.ensure_future(other.lead()) for other in others]
    done, waiting_still = await asyncio.wait(waiting, timeout=DEADLINE, return_when=asyncio.FIRST_COMPLETED)
    assert loop.time() - began > 0.25, "a lease was taken from its owner"
    (second,) = (task.result() for task in done)
    assert isinstance(second, Lease)
    assert server.get(name) not in (None, b"of a dead process")
    for other in others:
        other.shelf = b"made after all"
    second.release(Outcome.DONE)
    assert [await led(task) for task in waiting_still] == [b"made after all"] * 3


async def test_lease_ends_by_itself_when_nobody_renews_it(redis_url: str, make_worker: MakeWorker, server: Any) -> None:
    worker = make_worker(redis_url, ttl=7.5)
    await worker.take()
    assert 0 < server.pttl(worker.name) <= 7500


async def test_owner_that_is_at_work_keeps_it_beyond_its_life(
    redis_url: str, make_worker: MakeWorker, server: Any
) -> None:
    # A life of 1.5 s: an event loop that is 1 s late does not lose it.
    one, other = make_worker(redis_url, ttl=1.5), make_worker(redis_url)
    lease = await one.take()
    token = server.get(one.name)
    waiter = await other.waiter()
    await until(lambda: one.server.scripts.count(RENEW) >= 4)  # 2 s
    assert server.get(one.name) == token
    assert 500 < server.pttl(one.name) <= 1500
    assert not waiter.done()
    assert repr(lease) == f"<Lease {one.name} [held]>"
    other.shelf = b"made at last"
    lease.release(Outcome.DONE)
    assert await led(waiter) == b"made at last"
    # Nothing is renewed any more.
    assert repr(lease) == f"<Lease {one.name} [released]>"


LOST: list[Any] = [
    pytest.param(lambda server, name: server.set(name, b"another's"), b"another's", id="another-has-it"),
    pytest.param(lambda server, name: server.delete(name), None, id="it-ended"),
    pytest.param(lambda server, name: server.set(name, b"done:1"), b"done:1", id="another-had-it-and-is-done"),
]


@pytest.mark.parametrize(("lose", "left"), LOST)
async def test_owner_that_lost_it_leaves_it_to_others(
    lose: Callable[[Any, str], object], left: bytes | None, redis_url: str, make_worker: MakeWorker, server: Any
) -> None:
    worker = make_worker(redis_url)
    lease = await worker.take()
    lose(server, worker.name)
    lease.release(Outcome.DONE)
    await worker.leases.aclose(PATIENT)
    assert worker.server.scripts[-1] is RELEASE
    assert server.get(worker.name) == left


@pytest.mark.parametrize(("lose", "left"), LOST)
async def test_owner_that_lost_it_finds_out_and_renews_it_no_more(
    lose: Callable[[Any, str], object], left: bytes | None, redis_url: str, make_worker: MakeWorker, server: Any
) -> None:
    worker = make_worker(redis_url, ttl=0.3)
    lease = await worker.take()
    lose(server, worker.name)
    await until(lambda: "released" in repr(lease))
    ran = False

    async def after() -> None:
        nonlocal ran
        ran = True

    lease.release(Outcome.DONE, after())  # and what it would have waited for is not left un-awaited
    await worker.leases.aclose(PATIENT)
    assert not ran
    assert RELEASE not in worker.server.scripts
    assert server.get(worker.name) == left
    assert server.pttl(worker.name) in (-1, -2)  # it has no end, or is not there


async def test_owner_that_was_stopped_for_long_harms_nobody_when_it_goes_on(
    redis_url: str, make_worker: MakeWorker, server: Any
) -> None:
    stopped, other, third = make_worker(redis_url), make_worker(redis_url), make_worker(redis_url)
    lease = await stopped.take()
    server.delete(stopped.name)  # as its end does, while the process gets no time to renew it
    second = await other.take()
    token = server.get(other.name)
    waiter = await third.waiter()
    lease.release(Outcome.FAILED)
    await stopped.leases.aclose(PATIENT)
    assert server.get(other.name) == token
    third.shelf = b"made"
    second.release(Outcome.DONE)
    assert await led(waiter) == b"made"


# --- how long, and how often ------------------------------------------------------------------------------------------


async def test_who_has_waited_long_enough_does_it_alone_and_leaves_the_lease_as_it_is(
    redis_url: str, make_worker: MakeWorker, server: Any
) -> None:
    worker = make_worker(redis_url, wait=0.3)
    server.set(worker.name, b"another's", px=600_000)
    loop = asyncio.get_running_loop()
    began = loop.time()
    assert await worker.lead() is None
    assert loop.time() - began >= 0.3
    assert worker.looks == 0
    assert server.get(worker.name) == b"another's"
    assert server.pttl(worker.name) > 500_000
    assert worker.server.scripts == [TAKE]


async def test_wait_for_one_owner_after_the_other_is_one_wait(
    redis_url: str, make_worker: MakeWorker, server: Any
) -> None:
    worker = make_worker(redis_url, wait=0.5)
    server.set(worker.name, b"first", px=100)

    async def others_are_faster() -> bytes | None:
        server.set(worker.name, b"next %d" % worker.looks, px=100)
        worker.looks += 1
        return None

    assert await worker.leases.lead(worker.name, others_are_faster) is None
    assert 1 <= worker.looks <= 5


async def test_a_second_of_waiting_asks_a_bounded_number_of_times(
    proxy: RedisProxy, make_worker: MakeWorker, server: Any
) -> None:
    worker = make_worker(proxy.url, wait=1.0)
    server.set(worker.name, b"another's", px=600_000)
    assert await worker.lead() is None
    assert 5 < proxy.count("MGET") <= MOST_READS_IN_A_SECOND
    assert proxy.count("EVALSHA") + proxy.count("EVAL") <= 2


async def test_pauses_grow_with_the_wait_up_to_a_quarter_of_a_second(
    redis_url: str, make_worker: MakeWorker, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = make_worker(redis_url, wait=100.0)
    server.set(worker.name, b"another's", px=600_000)
    loop = asyncio.get_running_loop()
    now = began = loop.time()
    pauses: list[tuple[float, float]] = []

    class Slept:
        """The event loop's time and sleep, at the pace of the test."""

        def __getattr__(self, name: str) -> Any:
            return getattr(asyncio, name)

        async def sleep(self, seconds: float) -> None:
            nonlocal now
            pauses.append((now - began, seconds))
            now += seconds

    monkeypatch.setattr(loop, "time", lambda: now)
    monkeypatch.setattr(lease_module, "asyncio", Slept())
    assert await worker.lead() is None
    assert now - began == pytest.approx(100.0)
    for waited, pause in pauses[:-1]:
        assert min(max(waited / 32, 0.005), 0.25) / 2 <= pause <= min(max(waited / 32, 0.005), 0.25)
    assert len(pauses) < 1000


class WakingTogether:
    """asyncio, but all who sleep at a time wake in the same turn of the event loop, however busy the machine is."""

    def __init__(self) -> None:
        self._asleep: list[asyncio.Future[None]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)

    async def sleep(self, delay: float) -> None:
        loop = asyncio.get_running_loop()
        if not self._asleep:
            loop.call_later(0.01, self._wake)
        self._asleep.append(loop.create_future())
        await self._asleep[-1]

    def _wake(self) -> None:
        asleep, self._asleep = self._asleep, []
        for future in asleep:
            if not future.done():
                future.set_result(None)


async def test_those_who_wait_ask_together(
    proxy: RedisProxy, make_worker: MakeWorker, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_module, "asyncio", WakingTogether())
    worker = make_worker(proxy.url, wait=0.3)
    await worker.lead(worker.leases.name("first"))  # a connection, and the script is known
    names = [worker.leases.name(str(number)) for number in range(50)]
    for name in names:
        server.set(name, b"another's", px=600_000)
    assert await asyncio.gather(*(worker.lead(name) for name in names)) == [None] * 50
    reads = [words[1:] for words in proxy.commands if words[0].upper() == b"MGET"]
    asked = sum(map(len, reads))
    assert asked >= 50 * 5
    assert len(reads) <= asked / 10


async def test_those_who_wait_for_the_same_ask_once(
    proxy: RedisProxy, make_worker: MakeWorker, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_module, "asyncio", WakingTogether())
    worker = make_worker(proxy.url, wait=0.3)
    await worker.lead(worker.leases.name("first"))  # a connection, and the script is known
    server.set(worker.name, b"another's", px=600_000)
    assert await asyncio.gather(*(worker.lead() for _ in range(50))) == [None] * 50
    reads = [words[1:] for words in proxy.commands if words[0].upper() == b"MGET"]
    assert all(names == (worker.name.encode(),) for names in reads)
    assert len(reads) <= worker.server.reads / 10


# --- trouble ----------------------------------------------------------------------------------------------------------


SCRIPTS = ("EVALSHA", "EVAL")
TROUBLES: list[Any] = [
    pytest.param(lambda proxy: proxy.refuse(), id="refused"),
    pytest.param(lambda proxy: proxy.black_hole(), id="black-hole"),
    pytest.param(lambda proxy: proxy.hold(), id="held"),
    pytest.param(lambda proxy: proxy.reply_error(), id="loading"),
    pytest.param(lambda proxy: proxy.reply_error(b"-READONLY You can't write", only=SCRIPTS), id="read-only"),
    pytest.param(lambda proxy: proxy.reply_error(b"-NOPERM no scripts for you", only=SCRIPTS), id="no-scripts"),
    pytest.param(lambda proxy: proxy.reply_error(b"-NOSCRIPT No matching script", only=SCRIPTS), id="no-script-ever"),
    pytest.param(lambda proxy: proxy.garbage(), id="garbage"),
    pytest.param(lambda proxy: proxy.reset_in_reply(replies=None), id="resets"),
    pytest.param(lambda proxy: proxy.wrong_type("integer", only=SCRIPTS), id="a-number"),
    pytest.param(lambda proxy: proxy.wrong_type("array", only=SCRIPTS), id="an-array"),
]


@pytest.mark.parametrize("trouble", TROUBLES)
async def test_redis_in_trouble_gives_no_lease_and_no_exception(
    trouble: Callable[[RedisProxy], None], proxy: RedisProxy, make_worker: MakeWorker
) -> None:
    worker = make_worker(proxy.url, timeout=0.1)
    trouble(proxy)
    async with asyncio.timeout(DEADLINE):  # and not for as long as one would wait for a lease
        assert await worker.lead() is None
    assert worker.looks == 0
    await worker.leases.aclose(PATIENT)


READ_TROUBLES: list[Any] = [
    pytest.param(lambda proxy: proxy.refuse(), id="refused"),
    pytest.param(lambda proxy: proxy.black_hole(), id="black-hole"),
    pytest.param(lambda proxy: proxy.reply_error(), id="loading"),
    pytest.param(lambda proxy: proxy.garbage(), id="garbage"),
    pytest.param(lambda proxy: proxy.wrong_type("integer"), id="a-number"),
]


@pytest.mark.parametrize("trouble", READ_TROUBLES)
async def test_trouble_that_comes_while_one_waits_ends_the_wait(
    trouble: Callable[[RedisProxy], None], proxy: RedisProxy, make_worker: MakeWorker, server: Any
) -> None:
    worker = make_worker(proxy.url, timeout=0.1)
    server.set(worker.name, b"another's", px=600_000)
    waiter = await worker.waiter()
    trouble(proxy)
    assert await led(waiter) is None
    assert server.get(worker.name) == b"another's"


@pytest.mark.parametrize("kind", WRONG_TYPES)
async def test_any_reply_to_a_read_is_borne(kind: str, proxy: RedisProxy, make_worker: MakeWorker, server: Any) -> None:
    worker = make_worker(proxy.url, wait=0.3)
    server.set(worker.name, b"another's", px=600_000)
    proxy.wrong_type(kind, only=("MGET",))
    assert await led(asyncio.ensure_future(worker.lead())) is None
    assert server.get(worker.name) == b"another's"


async def test_trouble_does_not_lose_a_lease_that_has_not_ended(
    proxy: RedisProxy, make_worker: MakeWorker, server: Any
) -> None:
    worker = make_worker(proxy.url, ttl=0.6)
    lease = await worker.take()
    server.persist(worker.name)  # a slow machine must not lose it either
    proxy.reply_error(only=SCRIPTS)
    proxy.forget()
    await until(lambda: proxy.count("EVALSHA") >= 2)
    assert "held" in repr(lease)
    proxy.heal()
    await until(lambda: server.pttl(worker.name) > 0)  # renewed
    lease.release(Outcome.DONE)
    await until(lambda: told(server, worker, Outcome.DONE))


@pytest.mark.parametrize("trouble", TROUBLES)
async def test_release_into_trouble_raises_nothing_and_holds_up_nobody(
    trouble: Callable[[RedisProxy], None],
    proxy: RedisProxy,
    make_worker: MakeWorker,
    reports: list[dict[str, Any]],
) -> None:
    worker = make_worker(proxy.url, timeout=0.3)
    lease = await worker.take()
    trouble(proxy)
    lease.release(Outcome.DONE)
    async with asyncio.timeout(DEADLINE):
        await worker.leases.aclose(0.05)
    assert repr(worker.leases) == f"<Leases at {worker.server.location} [0 operations under way]>"


HOSTILE: list[Any] = [
    pytest.param(lambda server, name: server.rpush(name, b"a", b"b"), Lease, id="a-list"),
    pytest.param(lambda server, name: server.hset(name, "a", "b"), Lease, id="a-hash"),
    pytest.param(lambda server, name: server.xadd(name, {"a": "b"}), Lease, id="a-stream"),
    pytest.param(lambda server, name: server.set(name, b"another's"), Lease, id="a-lease-for-ever"),
    pytest.param(lambda server, name: server.set(name, b"another's", ex=86_400), Lease, id="a-lease-for-a-day"),
    pytest.param(lambda server, name: server.set(name, b"", px=600_000), Lease, id="an-empty-string"),
    pytest.param(lambda server, name: server.set(name, b"\x00\xff" * 500_000, px=600_000), None, id="a-megabyte"),
    pytest.param(lambda server, name: server.set(name, b":", px=600_000), None, id="a-colon"),
    pytest.param(lambda server, name: server.set(name, b"DONE:1", px=600_000), None, id="in-capitals"),
    pytest.param(lambda server, name: server.set(name, b"done", px=600_000), Lease, id="done"),
    pytest.param(
        lambda server, name: server.set(name, b"done:" + b"x" * 500_000, px=600_000), Lease, id="done-at-length"
    ),
    pytest.param(lambda server, name: server.set(name, b"none", px=600_000), None, id="for-nobody"),
    pytest.param(lambda server, name: server.set(name, b"failed:", px=600_000), None, id="failed"),
]


@pytest.mark.parametrize(("put", "expected"), HOSTILE)
async def test_whatever_is_under_the_name_ends_in_an_answer(
    put: Callable[[Any, str], object],
    expected: type[Lease] | None,
    redis_url: str,
    make_worker: MakeWorker,
    server: Any,
) -> None:
    worker = make_worker(redis_url, wait=0.2)
    put(server, worker.name)
    answer = await led(asyncio.ensure_future(worker.lead()))
    assert answer is None if expected is None else isinstance(answer, expected)


async def test_one_who_says_done_again_and_again_holds_up_nobody_for_longer_than_the_wait(
    redis_url: str, make_worker: MakeWorker, server: Any
) -> None:
    worker = make_worker(redis_url, wait=0.2)
    server.set(worker.name, b"done:0", px=600_000)

    async def liar() -> bytes | None:
        worker.looks += 1
        server.set(worker.name, b"done:%d" % worker.looks, px=600_000)
        return None

    async with asyncio.timeout(DEADLINE):
        assert await worker.leases.lead(worker.name, liar) is None


async def test_look_that_raises_is_the_callers_to_hear(redis_url: str, make_worker: MakeWorker, server: Any) -> None:
    worker = make_worker(redis_url)
    server.set(worker.name, b"done:1", px=600_000)

    async def broken() -> bytes | None:
        raise ValueError("of the store")

    with pytest.raises(ValueError, match="of the store"):
        await worker.leases.lead(worker.name, broken)


# --- those who leave, and the end -------------------------------------------------------------------------------------


async def test_those_who_leave_leave_nothing_behind(
    redis_url: str, make_store: MakeStore, server: Any, reports: list[dict[str, Any]]
) -> None:
    store = make_store(redis_url)
    worker = Worker(store.server, ttl=PATIENT, wait=FOR_EVER)
    server.set(worker.name, b"another's", px=600_000)
    before = asyncio.all_tasks()
    waiting = [await worker.waiter() for _ in range(20)]
    for task in waiting:
        task.cancel()
    await asyncio.wait(waiting)
    assert all(task.cancelled() for task in waiting)
    await until(lambda: is_idle(store))
    reads = worker.server.reads
    assert asyncio.all_tasks() == before
    assert "[0 operations under way]" in repr(worker.leases)
    assert server.get(worker.name) == b"another's"
    assert worker.server.reads == reads


async def test_who_leaves_while_it_takes_the_lease_does_not_keep_it(
    proxy: RedisProxy, make_worker: MakeWorker, server: Any
) -> None:
    worker = make_worker(proxy.url)
    await worker.lead(worker.leases.name("first"))  # a connection, and the script is known
    proxy.hold(only=("EVALSHA",))
    leaving = asyncio.ensure_future(worker.lead())
    await until(lambda: server.exists(worker.name))
    leaving.cancel()
    await asyncio.wait([leaving])
    proxy.heal()
    await worker.leases.aclose(PATIENT)
    assert server.get(worker.name) is None or told(server, worker, Outcome.FAILED)


async def test_what_became_of_it_is_told_when_what_comes_before_is_done(
    redis_url: str, make_worker: MakeWorker, server: Any
) -> None:
    one, other = make_worker(redis_url, ttl=1.5), make_worker(redis_url)
    lease = await one.take()
    token = server.get(one.name)
    waiter = await other.waiter()
    written = asyncio.Event()

    async def write() -> None:
        await written.wait()
        other.shelf = b"made"

    lease.release(Outcome.DONE, write())
    # It is kept meanwhile, however long that takes.
    await until(lambda: one.server.scripts.count(RENEW) >= 2)
    assert server.get(one.name) == token
    assert not waiter.done()
    written.set()
    assert await led(waiter) == b"made"
    assert other.looks == 1


async def test_aclose_waits_for_what_is_to_be_told(redis_url: str, make_worker: MakeWorker, server: Any) -> None:
    worker = make_worker(redis_url)
    lease = await worker.take()
    written = asyncio.Event()

    async def write() -> None:
        await written.wait()

    lease.release(Outcome.DONE, write())
    assert repr(worker.leases) == f"<Leases at {worker.server.location} [1 operations under way]>"
    closing = asyncio.ensure_future(worker.leases.aclose(PATIENT))
    for _ in range(10):
        await asyncio.sleep(0)
    assert not closing.done()
    written.set()
    await closing
    assert told(server, worker, Outcome.DONE)
    assert repr(worker.leases) == f"<Leases at {worker.server.location} [0 operations under way]>"


async def test_aclose_does_not_wait_for_ever_and_what_never_came_is_not_told(
    redis_url: str, make_worker: MakeWorker, server: Any
) -> None:
    worker = make_worker(redis_url)
    lease = await worker.take()
    token = server.get(worker.name)

    async def never() -> None:
        await asyncio.Event().wait()

    lease.release(Outcome.DONE, never())
    async with asyncio.timeout(DEADLINE):
        await worker.leases.aclose(0.01)
    assert server.get(worker.name) == token
    assert "released" in repr(lease)  # and it is renewed no more


async def test_a_lease_is_released_once(redis_url: str, make_worker: MakeWorker, server: Any) -> None:
    worker = make_worker(redis_url)
    lease = await worker.take()
    lease.release(Outcome.DONE)
    ran = False

    async def after() -> None:
        nonlocal ran
        ran = True

    lease.release(Outcome.FAILED)
    lease.release(Outcome.FAILED, after())
    await worker.leases.aclose(PATIENT)
    assert worker.server.scripts.count(RELEASE) == 1
    assert told(server, worker, Outcome.DONE)
    assert not ran


async def test_second_release_does_nothing_while_the_first_one_waits(
    redis_url: str, make_worker: MakeWorker, server: Any
) -> None:
    worker = make_worker(redis_url)
    lease = await worker.take()
    token = server.get(worker.name)
    written = asyncio.Event()

    async def write() -> None:
        await written.wait()

    lease.release(Outcome.DONE, write())
    lease.release(Outcome.FAILED)
    for _ in range(3):  # round trips: whatever is told is told by then
        await worker.server.read(worker.name)
    told_meanwhile = server.get(worker.name)
    written.set()
    await worker.leases.aclose(PATIENT)
    assert told_meanwhile == token
    assert told(server, worker, Outcome.DONE)


async def test_each_event_loop_waits_for_its_own(redis_url: str, make_worker: MakeWorker) -> None:
    worker = make_worker(redis_url)
    lease = await worker.take()
    written = asyncio.Event()

    async def write() -> None:
        await written.wait()

    lease.release(Outcome.DONE, write())

    def in_another_thread() -> None:
        asyncio.run(worker.leases.aclose(PATIENT))

    async with asyncio.timeout(DEADLINE):
        await asyncio.to_thread(in_another_thread)
    written.set()


def test_names_are_under_the_prefix_and_no_two_are_the_same(redis_url: str) -> None:
    from echo_cache.stores import RedisStore

    leases = Leases(RedisStore(redis_url, prefix="shop").server, ttl=1.0, wait=1.0)
    assert leases.name("a").startswith("shop:")
    assert leases.name("a") != leases.name("b")
    assert redis.Redis.from_url(redis_url).dbsize() == 0
