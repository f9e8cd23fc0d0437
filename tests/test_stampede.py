"""
Stampedes: many requests at once for what is not there, in one process and in three, and whatever goes wrong meanwhile.

The one rule: what is counted decides, never what is timed. Calls of the handler are counted over all processes, and
every answer is looked at. Handlers wait until the test lets them go on, so that all requests are there before that.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final, Self

import pytest

from echo_cache import (
    Cache,
    CoordinationOptions,
    HTTPCacheMiddleware,
    MemoryStore,
    PolicyOptions,
    RedisStore,
    TwoLevelStore,
)
from echo_cache.coordination import flight
from echo_cache.testing import AskedApp, ClientRequest, ManualClock, ScriptedApp, call, open_request
from tests.proxy import RedisProxy
from tests.redis_support import DEADLINE, PATIENT, until
from tests.servers import RedisServer
from tests.stampede_support import (
    A_MINUTE,
    FOR_EVER,
    HOUR,
    NO_STORE,
    PRIVATE,
    PROCESSES,
    REQUESTS,
    REVALIDATING,
    SHARE,
    SOON,
    STORES,
    STRATEGIES,
    TWO_KINDS,
    Fleet,
    HandlerError,
    ShiftedClock,
    bodies,
    log_known,
    make_store,
)


@pytest.fixture(scope="module")
async def running_fleet() -> AsyncIterator[Fleet]:
    async with Fleet() as fleet:
        yield fleet


@pytest.fixture
async def fleet(running_fleet: Fleet, redis_url: str) -> Fleet:
    """Three processes that have seen nothing, and an empty Redis."""
    return running_fleet


# --- three processes: one call ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", STORES)
async def test_501_requests_in_three_processes_are_one_call(kind: str, fleet: Fleet, redis_url: str) -> None:
    async with fleet.site(kind, redis_url):
        await fleet.do("will", hold=True)
        wave = fleet.ask()
        await fleet.aboard(SHARE)
        await fleet.leader()
        await fleet.do("go")
        assert len(bodies(await wave.all())) == 1
        again = await fleet.ask(count=20).all()
        assert len(bodies([*again, *await wave.all()])) == 1
        assert all("hit" in answer["said"] for answer in again)
        assert len(fleet.calls) == 1
        assert await fleet.sum("failures") == 0


@pytest.mark.parametrize("kind", STORES)
async def test_requests_that_come_all_the_time_while_one_works_are_one_call(
    kind: str, fleet: Fleet, redis_url: str
) -> None:
    """No gate: whoever comes before, at and just after the end finds what was made."""
    async with fleet.site(kind, redis_url):
        await fleet.do("will", delay=0.1)
        waves = []
        for _ in range(12):
            waves.append(fleet.ask(count=10))
            await asyncio.sleep(0.02)
        assert len(set().union(*[bodies(await wave.all()) for wave in waves])) == 1
        assert len(fleet.calls) == 1


@pytest.mark.parametrize("how", ["disconnect", "cancel"])
@pytest.mark.parametrize("kind", TWO_KINDS)
async def test_leader_whose_client_leaves_goes_on_for_all_others(
    kind: str, how: str, fleet: Fleet, redis_url: str
) -> None:
    async with fleet.site(kind, redis_url):
        await fleet.do("will", hold=True)
        wave = fleet.ask()
        await fleet.aboard(SHARE)
        leading = await fleet.leader()
        await fleet.workers[leading].do("leave", how=how)
        await fleet.do("go")
        answers = await wave.all()
        gone = [answer for answer in answers if answer["status"] == 0]
        assert len(gone) == 1
        assert gone[0] is (await wave.of(leading))[0]
        assert len(bodies([answer for answer in answers if answer is not gone[0]])) == 1
        assert len(fleet.calls) == 1


@pytest.mark.parametrize("kind", TWO_KINDS)
async def test_process_that_waits_with_no_client_left_harms_nobody(kind: str, fleet: Fleet, redis_url: str) -> None:
    async with fleet.site(kind, redis_url):
        await fleet.do("will", hold=True)
        wave = fleet.ask(count=1)
        await fleet.aboard(1)
        leading = await fleet.leader()
        other = fleet.workers[(leading + 1) % PROCESSES]
        await other.do("leave", how="cancel")
        await fleet.do("go")
        answers = await wave.all()
        assert len(bodies([answer for answer in answers if answer["status"]])) == 1
        assert len(fleet.calls) == 1


@pytest.mark.parametrize("kind", TWO_KINDS)
async def test_process_that_is_killed_at_work_costs_one_more_call(kind: str, fleet: Fleet, redis_url: str) -> None:
    # They would wait for ever for a process that is alive: the end of its lease alone lets another one go on.
    async with fleet.site(kind, redis_url, coordination={"lease_ttl": 0.5}):
        await fleet.do("will", hold=True)
        wave = fleet.ask()
        await fleet.aboard(SHARE)
        leading = await fleet.leader()
        fleet.workers[leading].kill()
        await until(lambda: len(fleet.calls) == 2)
        others = [number for number in range(PROCESSES) if number != leading]
        for number in others:
            await fleet.workers[number].do("go")
        answers = [answer for number in others for answer in await wave.of(number)]
        assert len(answers) == 2 * SHARE
        assert len(bodies(answers)) == 1
        assert len(fleet.calls) == 2
        with pytest.raises(asyncio.CancelledError):
            await wave.tasks[leading]
        await fleet.replace(leading)
        await fleet.workers[leading].do("open", kind=kind, url=redis_url)


# --- three processes: what is for each alone --------------------------------------------------------------------------


@pytest.mark.parametrize("headers", [PRIVATE, NO_STORE], ids=["private", "no-store"])
@pytest.mark.parametrize("kind", TWO_KINDS)
async def test_response_that_is_for_one_alone_is_made_for_each(
    kind: str, headers: dict[str, str], fleet: Fleet, redis_url: str, redis_server: RedisServer
) -> None:
    async with fleet.site(kind, redis_url):
        await fleet.do("will", hold=True, headers=headers)
        wave = fleet.ask()
        await fleet.aboard(SHARE)
        await fleet.leader()
        await fleet.do("go")
        assert len(bodies(await wave.all())) == len(fleet.calls) == PROCESSES * SHARE
        assert await fleet.sum("stored") == 0
        assert entries_in(redis_server) == []


@pytest.mark.parametrize("status", [404, 500])
@pytest.mark.parametrize("kind", TWO_KINDS)
async def test_answer_that_is_no_success_and_not_stored_is_made_for_each(
    kind: str, status: int, fleet: Fleet, redis_url: str, redis_server: RedisServer
) -> None:
    async with fleet.site(kind, redis_url):
        await fleet.do("will", hold=True, status=status, headers=NO_STORE)
        wave = fleet.ask(count=20)
        await fleet.aboard(20)
        await fleet.leader()
        await fleet.do("go")
        answers = await wave.all()
        assert {answer["status"] for answer in answers} == {status}
        assert len({answer["body"] for answer in answers}) == len(fleet.calls) == PROCESSES * 20
        assert entries_in(redis_server) == []


@pytest.mark.parametrize("kind", STORES)
async def test_error_reaches_those_who_waited_in_its_process_and_the_others_call_once(
    kind: str, fleet: Fleet, redis_url: str, redis_server: RedisServer
) -> None:
    async with fleet.site(kind, redis_url):
        await fleet.do("will", hold=True, error=True)
        wave = fleet.ask()
        await fleet.aboard(SHARE)
        await fleet.leader()
        assert len(fleet.calls) == 1
        await fleet.do("go")
        for number, worker in enumerate(fleet.workers):
            # Each request has raised, once, what the one call of its process raised.
            answers = await wave.of(number)
            assert len(worker.called) == 1
            assert [answer.get("error") for answer in answers] == [worker.called[0]] * SHARE
        assert await fleet.sum("stored") == 0
        assert entries_in(redis_server) == []
        # And nothing of it is left: the next ones are answered.
        await fleet.do("will")
        assert bodies(await fleet.ask(count=10).all()).isdisjoint(fleet.calls)
        assert len(fleet.calls) <= 2 * PROCESSES


async def test_no_request_gets_what_varies_for_another(fleet: Fleet, redis_url: str) -> None:
    languages = ("de", "fr", "it")
    async with fleet.site("write_through", redis_url):
        await fleet.do("will", delay=0.02, headers={**HOUR, "vary": "accept-language"})
        for wave in (fleet.ask(count=60, languages=languages), fleet.ask(count=60, languages=languages)):
            answers = await wave.all()
            bodies(answers)
            assert all(answer["body"].startswith(f"/ {answer['language']} ") for answer in answers)
            assert {answer["language"] for answer in answers} == set(languages)
        # Nobody knows what it varies on until the first one has answered: each process may find it out for itself.
        assert len(languages) <= len(fleet.calls) <= len(languages) * PROCESSES
        before = len(fleet.calls)
        await fleet.ask(count=60, languages=languages).all()
        assert len(fleet.calls) == before


# --- three processes: those who do not wait ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", STORES)
async def test_handler_that_is_slower_than_the_wait_is_called_once_in_each_process(
    kind: str, fleet: Fleet, redis_url: str
) -> None:
    async with fleet.site(kind, redis_url, coordination={"lease_wait": 0.2}):
        await fleet.do("will", hold=True)
        wave = fleet.ask()
        await fleet.aboard(SHARE)
        await until(lambda: len(fleet.calls) >= PROCESSES)
        await fleet.do("go")
        for number in range(PROCESSES):
            assert len(bodies(await wave.of(number))) == 1
        assert [len(worker.called) for worker in fleet.workers] == [1, 1, 1]


async def test_without_a_wait_each_process_calls_once_at_once(fleet: Fleet, redis_url: str) -> None:
    async with fleet.site("write_through", redis_url, coordination={"lease_wait": 0}):
        await fleet.do("will", hold=True)
        wave = fleet.ask()
        await until(lambda: len(fleet.calls) == PROCESSES)
        await fleet.aboard(SHARE)
        await fleet.do("go")
        bodies(await wave.all())
        assert [len(worker.called) for worker in fleet.workers] == [1, 1, 1]


@pytest.mark.parametrize(
    ("kind", "trouble"),
    [
        *itertools.product(STORES, ["gone"]),
        *itertools.product(["write_through"], ["silent", "gone-meanwhile", "silent-meanwhile"]),
    ],
)
async def test_without_redis_each_process_calls_once(
    kind: str, trouble: str, fleet: Fleet, own_redis: RedisServer
) -> None:
    strike = own_redis.kill if trouble.startswith("gone") else own_redis.pause
    async with fleet.site(kind, own_redis.url, timeout=0.1, drain=0.1, coordination={"lease_ttl": 30.0}):
        await fleet.ask("/other", count=1).all()
        for worker in fleet.workers:
            worker.called.clear()
        if not trouble.endswith("meanwhile"):
            strike()
        await fleet.do("will", hold=True)
        wave = fleet.ask()
        await fleet.aboard(SHARE)
        if trouble.endswith("meanwhile"):
            await fleet.leader()
            strike()
        await until(lambda: len(fleet.calls) >= PROCESSES)
        await fleet.do("go")
        for number in range(PROCESSES):
            assert len(bodies(await wave.of(number))) == 1
        assert [len(worker.called) for worker in fleet.workers] == [1, 1, 1]


# --- three processes: refreshes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", STORES)
async def test_stale_response_answers_all_at_once_and_is_refreshed_once_for_all_processes(
    kind: str, fleet: Fleet, redis_url: str
) -> None:
    async with fleet.site(kind, redis_url):
        first = await fleet.fill(REVALIDATING)
        await fleet.do("advance", seconds=A_MINUTE)
        await fleet.do("will", hold=True)
        old = await fleet.ask(count=50).all()  # although the handler does not answer
        assert bodies(old) == {first}
        await fleet.leader()
        assert await fleet.sum("flying") == PROCESSES
        assert bodies(await fleet.ask(count=50).all()) == {first}
        assert len(fleet.calls) == 2
        await fleet.do("go")
        await fleet.at_rest()
        new = await fleet.ask(count=50).all()
        assert len(bodies(new)) == 1
        assert bodies(new) != {first}
        assert all("hit" in answer["said"] for answer in [*old, *new])
        assert len(fleet.calls) == 2


EARLY_KINDS: list[Any] = [
    *STRATEGIES,
    pytest.param(
        "redis",
    ),
]


@pytest.mark.parametrize("kind", EARLY_KINDS)
async def test_early_refresh_is_one_for_all_processes_and_nobody_waits(kind: str, fleet: Fleet, redis_url: str) -> None:
    async with fleet.site(kind, redis_url, policy={"early_refresh": 0.5}):
        last = await fleet.fill({"cache-control": "max-age=100"})
        assert bodies(await fleet.ask(count=10).all()) == {last}
        for lifetime in range(2, 4):
            await fleet.do("advance", seconds=40.0)
            assert bodies(await fleet.ask(count=10).all()) == {last}
            assert await fleet.sum("flying") == 0
            assert len(fleet.calls) == lifetime - 1
            await fleet.do("advance", seconds=20.0)
            await fleet.do("will", hold=True, headers={"cache-control": "max-age=100"})
            old = await fleet.ask(count=50).all()  # although the handler does not answer
            assert bodies(old) == {last}
            assert all("hit" in answer["said"] for answer in old)
            async with asyncio.timeout(SOON):
                await until(lambda: len(fleet.calls) >= lifetime)  # noqa: B023
            await fleet.do("go")
            await fleet.at_rest()
            new = await fleet.ask(count=50).all()
            (last,) = bodies(new) - {last}
            assert bodies(new) == {last}
            await fleet.at_rest()
            assert len(fleet.calls) == lifetime


async def test_worker_that_comes_later_finds_what_another_has_refreshed_early(
    fleet: Fleet, redis_url: str, redis_server: RedisServer
) -> None:
    async with fleet.site("write_through", redis_url, policy={"early_refresh": 0.5}):
        await fleet.do("will", headers={"cache-control": "max-age=100"})
        await fleet.ask(count=1).all()
        assert len(fleet.calls) == 1
        await fleet.do("advance", seconds=A_MINUTE)
        for worker in fleet.workers:  # one after the other, each when nothing is told any more of the one before
            await worker.do("ask", path="/", count=10, at=0.0)
            await fleet.at_rest()
            await until(lambda: redis_server.command("KEYS", "*:lease:*") == [])
        assert len(fleet.calls) == 2


async def test_refresh_that_fails_is_one_call_in_each_process_at_most(fleet: Fleet, redis_url: str) -> None:
    async with fleet.site("write_through", redis_url, coordination={"refresh_pause": 60.0}):
        first = await fleet.fill(REVALIDATING)
        await fleet.do("advance", seconds=A_MINUTE)
        await fleet.do("will", error=True)
        for _ in range(5):
            assert bodies(await fleet.ask(count=20).all()) == {first}
            await fleet.at_rest()
        assert len(fleet.calls) <= 1 + PROCESSES


# --- one process ------------------------------------------------------------------------------------------------------


ONE_PROCESS: Final = ("memory", *STORES)


class Edge:
    """A cache in this process, before an app that does what the test says."""

    def __init__(
        self,
        kind: str,
        url: str,
        *,
        script: Any = None,
        clock: Any = None,
        policy: PolicyOptions | None = None,
        **options: Any,
    ) -> None:
        self.app = ScriptedApp(script)
        self.clock = clock or ShiftedClock()
        coordination = CoordinationOptions(**{"lease_wait": FOR_EVER, **options})
        self.cache = Cache(make_store(kind, url, self.clock), policy, coordination=coordination, clock=self.clock)
        self.edge = HTTPCacheMiddleware(self.app, cache=self.cache)

    async def __aenter__(self) -> Self:
        await log_known(self.cache)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.cache.aclose(0.5)

    def requests(self, count: int = REQUESTS, path: str = "/") -> list[ClientRequest]:
        return [open_request(self.edge, path=path) for _ in range(count)]

    async def aboard(self, count: int) -> None:
        flights = self.cache.flights
        await until(lambda: [len(flight._passengers) for flight in flights._by_key.values()] == [count])

    async def called(self) -> AskedApp:
        async with asyncio.timeout(DEADLINE):
            return await self.app.called()

    async def fill(self, headers: dict[str, str], path: str = "/") -> None:
        """Fill the cache with "old"."""
        filling = open_request(self.edge, path=path)
        await (await self.called()).respond(200, headers, b"old")
        await filling.response()
        await self.at_rest()

    async def at_rest(self) -> None:
        await until(lambda: not self.cache.flights._flying and not self.cache._tasks)


async def all_bodies(requests: Sequence[ClientRequest]) -> set[bytes]:
    async with asyncio.timeout(DEADLINE):
        return {(await request.response()).body for request in requests}


def entries_in(server: RedisServer) -> list[str]:
    """Return the names of what the cache keeps in Redis, but for its log and what it tells of leases."""
    return [name for name in server.command("KEYS", "*") if ":lease:" not in name and "log" not in name]


@pytest.mark.parametrize("kind", ONE_PROCESS)
async def test_500_requests_in_one_process_are_one_call(kind: str, redis_url: str) -> None:
    async with Edge(kind, redis_url) as edge:
        requests = edge.requests()
        asked = await edge.called()
        await edge.aboard(REQUESTS)
        await asked.respond(200, HOUR, b"hello")
        assert await all_bodies(requests) == {b"hello"}
        response = await call(edge.edge)
        assert (response.body, "hit" in response["cache-status"]) == (b"hello", True)
        assert len(edge.app.calls) == 1
        assert edge.cache.stats().collapsed == REQUESTS - 1
        assert edge.cache.stats().failures == 0


@pytest.mark.parametrize("how", ["disconnect", "cancel"])
@pytest.mark.parametrize("kind", ONE_PROCESS)
async def test_500_requests_are_one_call_though_the_leaders_client_leaves(
    kind: str, how: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flight, "WATCH_AFTER", 0.0)
    async with Edge(kind, redis_url) as edge:
        requests = edge.requests()
        asked = await edge.called()
        await edge.aboard(REQUESTS)
        getattr(requests[0], how)()
        await asyncio.wait([requests[0].task])
        await asked.respond(200, HOUR, b"hello")
        assert await all_bodies(requests[1:]) == {b"hello"}
        assert requests[0].messages == []
        assert len(edge.app.calls) == 1


@pytest.mark.parametrize("kind", ONE_PROCESS)
async def test_private_response_is_made_for_each_of_500(kind: str, redis_url: str, redis_server: RedisServer) -> None:
    numbers = itertools.count()
    together = asyncio.Event()

    async def script(asked: AskedApp) -> None:
        number = next(numbers)
        await together.wait()
        await asked.respond(200, PRIVATE, b"%d" % number)

    async with Edge(kind, redis_url, script=script) as edge:
        requests = edge.requests()
        await edge.aboard(REQUESTS)
        together.set()
        assert len(await all_bodies(requests)) == REQUESTS
        assert len(edge.app.calls) == REQUESTS
        assert edge.cache.stats().stored == 0
        assert entries_in(redis_server) == []


@pytest.mark.parametrize("kind", ONE_PROCESS)
async def test_error_reaches_each_of_500_once_and_nothing_is_stored(
    kind: str, redis_url: str, redis_server: RedisServer
) -> None:
    async with Edge(kind, redis_url) as edge:
        requests = edge.requests()
        asked = await edge.called()
        await edge.aboard(REQUESTS)
        error = HandlerError("of the app")
        await asked.fail(error)
        for request in requests:
            with pytest.raises(HandlerError) as raised:
                await request.response()
            assert raised.value is error
            assert request.messages == []
        assert len(edge.app.calls) == 1
        assert edge.cache.stats().stored == 0
        assert entries_in(redis_server) == []
        again = open_request(edge.edge)
        await (await edge.called()).respond(200, HOUR, b"hello")
        assert (await again.response()).body == b"hello"


@pytest.mark.parametrize("kind", STRATEGIES)
async def test_others_are_told_when_they_can_find_what_was_stored(
    kind: str, redis_url: str, proxy: RedisProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is told before it can be found costs a call: so a slow write is waited for."""
    async with Edge(kind, redis_url) as one, Edge(kind, proxy.url) as other:
        below: Any = one.cache.store.l2  # type: ignore[attr-defined]
        may_write = asyncio.Event()
        write = below.set

        async def slow(*what: Any) -> Any:
            await may_write.wait()
            return await write(*what)

        monkeypatch.setattr(below, "set", slow)
        leader = open_request(one.edge)
        asked = await one.called()
        waiter = open_request(other.edge)
        await other.aboard(1)
        await asked.respond(200, HOUR, b"hello")
        assert (await leader.response()).body == b"hello"
        reads = proxy.count("MGET")
        try:
            await until(lambda: proxy.count("MGET") >= reads + 5 or bool(other.app.calls))
            assert (waiter.task.done(), other.app.calls) == (False, [])
        finally:
            may_write.set()
        assert (await waiter.response()).body == b"hello"
        assert other.app.calls == []


# --- one process: refreshes -------------------------------------------------------------------------------------------


async def test_refreshes_under_way_are_bounded(redis_url: str) -> None:
    async with Edge("memory", redis_url, clock=ManualClock(), max_refreshes=3) as edge:
        paths = [f"/{number}" for number in range(10)]
        for path in paths:
            await edge.fill(REVALIDATING, path)
        edge.clock.advance(A_MINUTE)
        for _ in range(3):
            assert {(await call(edge.edge, path=path)).body for path in paths} == {b"old"}
        calls = [await edge.called() for _ in range(3)]
        await asyncio.sleep(0)
        assert len(edge.app.calls) == 10 + 3
        # A request that somebody waits for is not one of them.
        new = open_request(edge.edge, path="/new")
        await (await edge.called()).respond(200, HOUR, b"new")
        assert (await new.response()).body == b"new"
        for asked in calls:
            await asked.respond(200, HOUR, b"new")
        await edge.at_rest()
        answers = Counter([(await call(edge.edge, path=path)).body for path in paths])
        assert answers == {b"new": 3, b"old": 7}
        calls = [await edge.called() for _ in range(3)]
        assert len(edge.app.calls) == 10 + 3 + 1 + 3
        for asked in calls:
            await asked.respond(200, HOUR, b"new")


FAILURES: list[Any] = [
    pytest.param({"error": True}, id="raises"),
    pytest.param(
        {"status": 500},
        id="500",
    ),
    pytest.param(
        {"status": 503, "policy": PolicyOptions(stale_if_error=3600)},
        id="503-and-stale-if-error",
    ),
]


@pytest.mark.parametrize("failure", FAILURES)
async def test_refresh_that_failed_is_tried_again_after_its_pause(failure: dict[str, Any], redis_url: str) -> None:
    fails = False

    async def script(asked: AskedApp) -> None:
        if not fails:
            await asked.respond(200, REVALIDATING, b"old")
        elif "error" in failure:
            raise HandlerError("of the app")
        else:
            await asked.respond(failure["status"], {}, b"oops")

    clock = ManualClock()
    async with Edge(
        "memory", redis_url, script=script, clock=clock, policy=failure.get("policy"), refresh_pause=5.0
    ) as edge:
        await call(edge.edge)
        clock.advance(A_MINUTE)
        fails = True
        for pause in range(1, 4):
            for _ in range(10):
                assert (await call(edge.edge)).body == b"old"
                await edge.at_rest()
            assert len(edge.app.calls) == 1 + pause
            clock.advance(5.1)


async def test_error_of_a_refresh_is_felt_by_nobody_but_the_log(
    redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with Edge("memory", redis_url) as edge:
        await edge.fill(REVALIDATING)
        edge.clock.advance(A_MINUTE)
        assert (await call(edge.edge)).body == b"old"
        await (await edge.called()).fail(HandlerError("of the refresh"))
        assert (await call(edge.edge)).body == b"old"
        await edge.at_rest()
        assert "of the refresh" in caplog.text


@pytest.mark.parametrize("kind", ONE_PROCESS)
async def test_refresh_that_is_under_way_at_the_end_is_finished(
    kind: str, redis_url: str, redis_server: RedisServer
) -> None:
    edge = Edge(kind, redis_url)
    await edge.fill(REVALIDATING)
    edge.clock.advance(A_MINUTE)
    assert (await call(edge.edge)).body == b"old"
    refresh = await edge.called()
    closing = asyncio.ensure_future(edge.cache.aclose(DEADLINE))
    for _ in range(10):
        await asyncio.sleep(0)
    assert not closing.done()
    await refresh.respond(200, HOUR, b"new")
    await closing
    assert not refresh.cancelled
    assert (await call(edge.edge)).body == b"new"
    assert len(edge.app.calls) == 2
    await edge.cache.aclose()
    # The others have been told.
    leases = [name for name in redis_server.command("KEYS", "*") if ":lease:" in name]
    assert all(redis_server.command("GET", name).startswith("done:") for name in leases)


async def test_refresh_that_waits_for_another_process_at_the_end_is_over_in_time(redis_url: str) -> None:
    async with Edge("write_through", redis_url) as one, Edge("write_through", redis_url) as other:
        await one.fill(REVALIDATING)
        for edge in (one, other):
            edge.clock.advance(A_MINUTE)
        assert (await call(one.edge)).body == b"old"
        refresh = await one.called()
        assert (await call(other.edge)).body == b"old"
        async with asyncio.timeout(DEADLINE):
            await other.cache.aclose(0.1)
        assert not other.cache.flights._flying
        await refresh.respond(200, HOUR, b"new")
        await one.at_rest()
        assert (await call(other.edge)).body == b"new"
        assert len(one.app.calls) + len(other.app.calls) == 2


async def test_hit_in_memory_that_is_not_yet_due_is_not_looked_for_below(redis_url: str) -> None:
    """Memory has a shorter life of its own: what is refreshed early is what the response allows, not that."""
    clock = ManualClock()
    looks = 0

    class Below(MemoryStore):
        remote = True

        async def get(self, key: Any, match: Any) -> Any:
            nonlocal looks
            looks += 1
            return await super().get(key, match)

    async def script(asked: AskedApp) -> None:
        await asked.respond(200, {"cache-control": "max-age=1800"}, b"x")

    store = TwoLevelStore(MemoryStore(clock=clock), Below(clock=clock), clock=clock)
    cache = Cache(store, PolicyOptions(early_refresh=0.5), clock=clock)
    cached = HTTPCacheMiddleware(ScriptedApp(script), cache=cache)
    await call(cached)
    clock.advance(400)  # memory's own life is 300 s; the response is half as old as it may get at 900 s
    await call(cached)
    looks = 0
    for _ in range(20):
        assert "hit" in (await call(cached))["cache-status"]
        await until(lambda: not cache.flights._flying)
    await cache.aclose()
    assert looks <= 1


# --- what leases must not hold up -------------------------------------------------------------------------------------


async def test_call_that_was_overtaken_by_an_invalidation_is_not_waited_for(redis_url: str) -> None:
    async with Edge("write_through", redis_url) as edge:
        early = open_request(edge.edge, path="/page")
        overtaken = await edge.called()
        await edge.cache.invalidate(url="/page")
        late = open_request(edge.edge, path="/page")
        asked = None
        with contextlib.suppress(TimeoutError):
            asked = await asyncio.wait_for(edge.app.called(), SOON)
        await overtaken.respond(200, HOUR, b"old")
        await (asked or await edge.called()).respond(200, HOUR, b"new")
        assert (await early.response()).body == b"old"
        assert (await late.response()).body == b"new"
        assert asked is not None


async def test_request_that_may_not_have_anothers_answer_does_not_wait_for_it(redis_url: str) -> None:
    async with Edge("write_through", redis_url) as one, Edge("write_through", redis_url) as other:
        requests = []
        requests.append(open_request(one.edge, headers={"cache-control": "no-cache"}))
        first = await one.called()
        requests.append(open_request(other.edge, headers={"cache-control": "no-cache"}))
        second = None
        with contextlib.suppress(TimeoutError):
            second = await asyncio.wait_for(other.app.called(), SOON)
        await first.respond(200, HOUR, b"first")
        await (second or await other.called()).respond(200, HOUR, b"second")
        assert [(await request.response()).body for request in requests] == [b"first", b"second"]
        assert second is not None


async def test_cache_inside_another_one_over_the_same_store_does_not_wait_for_it(redis_url: str) -> None:
    async def script(asked: AskedApp) -> None:
        await asked.respond(200, HOUR, b"hello")

    coordination = CoordinationOptions(lease_wait=FOR_EVER)
    store = RedisStore(redis_url, timeout=PATIENT)
    inner, outer = (Cache(store, coordination=coordination, name=name) for name in ("inner", "outer"))
    cached = HTTPCacheMiddleware(HTTPCacheMiddleware(ScriptedApp(script), cache=inner), cache=outer)
    try:
        async with asyncio.timeout(SOON):
            assert (await call(cached)).body == b"hello"
    finally:
        for cache in (inner, outer):
            await cache.aclose(0.1)
