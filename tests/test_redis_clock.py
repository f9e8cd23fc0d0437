"""Machines whose clocks differ agree, by the server's clock, on what is fresh."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echo_cache import codec
from echo_cache.errors import StoreError
from echo_cache.stores.redis.clock import ServerClock
from tests import redis_support as support
from tests.redis_support import DEADLINE, LyingServer, MakeStore, Recorder, TrueClock, array, until
from tests.servers import RedisServer
from tests.store_contract import any_variant, make_entry, make_key

make_store, reports, server, store = support.make_store, support.reports, support.server, support.store

# A moment of our days, by the server's clock.
NOW = 1_800_000_000.0


class Machine:
    """A machine whose wall clock is *ahead* of the server's by so many seconds."""

    def __init__(self, ahead: float = 0.0) -> None:
        self.ahead = ahead
        self.uptime = 5_000.0
        self.clock = ServerClock(self.wall, lambda: self.uptime)

    def wall(self) -> float:
        return self.server() + self.ahead

    def server(self) -> float:
        return NOW + self.uptime

    def ask(self, to_server: float = 0.0, back: float = 0.0) -> None:
        """Ask the server; the question takes *to_server* seconds, the answer *back*."""
        asked = self.clock.begin()
        self.uptime += to_server
        told = self.server()
        self.uptime += back
        self.clock.learn(asked, told)


# --- the offset -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ahead", [-86_400.0, -60.0, -0.5, 0.5, 60.0, 86_400.0])
def test_the_shift_is_what_the_machine_is_behind(ahead: float) -> None:
    machine = Machine(ahead)
    assert machine.clock.shift == 0.0
    machine.ask(0.01, 0.01)
    assert machine.clock.shift == pytest.approx(-ahead, abs=0.001)
    assert f"{-ahead:+.3f} s" in repr(machine.clock)


@pytest.mark.parametrize("ahead", [-0.09, -0.001, 0.0, 0.03, 0.09])
def test_clocks_that_are_kept_together_need_no_translation(ahead: float) -> None:
    machine = Machine(ahead)
    machine.ask()
    assert machine.clock.shift == 0.0


@given(
    ahead=st.floats(-1e6, 1e6),
    to_server=st.floats(0.0, 0.5),
    back=st.floats(0.0, 0.5),
)
def test_the_shift_is_wrong_by_half_the_round_trip_at_most(ahead: float, to_server: float, back: float) -> None:
    machine = Machine(ahead)
    machine.ask(to_server, back)
    wrong = machine.wall() + machine.clock.shift - machine.server()
    assert abs(wrong) <= (to_server + back) / 2 + 0.1 + 0.002  # the tenth is what counts as agreeing


@given(ahead=st.floats(-1e6, 1e6), moment=st.floats(1e9, 4e9))
def test_a_time_that_is_translated_there_and_back_is_the_same(ahead: float, moment: float) -> None:
    machine = Machine(ahead)
    machine.ask()
    assert moment + machine.clock.shift - machine.clock.shift == moment


# --- when it is asked -------------------------------------------------------------------------------------------------


def test_the_server_is_asked_at_first_and_every_five_minutes() -> None:
    machine = Machine(60.0)
    assert machine.clock.is_due()
    assert ", due" in repr(machine.clock)
    machine.ask()
    for _ in range(3):
        assert not machine.clock.is_due()
        machine.uptime += 299.0
        assert not machine.clock.is_due()
        machine.uptime += 1.0
        assert machine.clock.is_due()
        machine.ask()


@pytest.mark.parametrize("step", [-3_600.0, -0.3, 0.3, 3_600.0])
def test_a_step_of_the_machines_clock_has_the_server_asked_again(step: float) -> None:
    machine = Machine(60.0)
    machine.ask()
    machine.uptime += 10.0
    assert not machine.clock.is_due()
    machine.ahead += step
    assert machine.clock.is_due()
    machine.ask()
    assert not machine.clock.is_due()
    assert machine.clock.shift == pytest.approx(-60.0 - step, abs=0.001)


def test_a_machine_whose_clock_is_slewed_does_not_ask_again() -> None:
    machine = Machine()
    machine.ask()
    machine.ahead += 0.2  # what NTP does, in small parts
    assert not machine.clock.is_due()


def test_a_doubt_has_the_server_asked_again() -> None:
    machine = Machine(60.0)
    machine.ask()
    machine.clock.doubt()
    assert machine.clock.is_due()
    assert machine.clock.shift == pytest.approx(-60.0, abs=0.001)  # until it is known better
    machine.ask()
    assert not machine.clock.is_due()


def test_a_slow_answer_is_used_and_soon_asked_for_again() -> None:
    machine = Machine(60.0)
    machine.ask(3.0, 0.0)
    assert machine.clock.shift == pytest.approx(-58.5, abs=0.001)
    machine.uptime += 1.1
    assert machine.clock.is_due()
    machine.ask()
    assert machine.clock.shift == pytest.approx(-60.0, abs=0.001)


def test_a_server_that_does_not_tell_is_asked_again_in_five_minutes() -> None:
    machine = Machine(60.0)
    machine.ask()
    machine.clock.refuse()
    assert machine.clock.is_refused
    assert machine.clock.shift == 0.0
    assert not machine.clock.is_due()
    machine.uptime += 300.0
    assert machine.clock.is_due()
    machine.ask()
    assert not machine.clock.is_refused
    assert machine.clock.shift == pytest.approx(-60.0, abs=0.001)


# --- processes --------------------------------------------------------------------------------------------------------


def run_with_clock(ahead: float, url: str, body: str) -> Any:
    """
    Run *body*, in a coroutine, in a process whose clock is *ahead*; return what it returns.

    It has `store`, `time`, and the helpers of the store's contract.
    """
    script = (
        textwrap.dedent(f"""
            import time
            true_time = time.time
            time.time = lambda: true_time() + {ahead}
            import asyncio, json
            from echo_cache.stores import RedisStore
            from tests.store_contract import any_variant, language, make_entry, make_key, only

            async def run(store):
        """)
        + textwrap.indent(textwrap.dedent(body), "    ")
        + textwrap.dedent(f"""
            async def main():
                store = RedisStore({url!r}, timeout=30)
                print(json.dumps(await run(store)))
                await store.aclose()

            asyncio.run(main())
        """)
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        cwd=Path(__file__).parent.parent,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("writer", "reader", "vary"),
    [
        pytest.param(60.0, 0.0, "()", id="writer-ahead"),
        pytest.param(-60.0, 0.0, "language(b'de')", id="writer-behind-varied"),
        pytest.param(0.0, 60.0, "language(b'de')", id="reader-ahead-varied"),
        pytest.param(0.0, -60.0, "()", id="reader-behind"),
        pytest.param(-30.0, 30.0, "language(b'de')", id="both-wrong-varied"),
        pytest.param(30.0, -30.0, "()", id="both-wrong"),
    ],
)
def test_two_machines_whose_clocks_are_60_s_apart_agree_within_a_second(
    writer: float, reader: float, vary: str, redis_url: str, server: Any
) -> None:
    # Fresh for 20 s and kept for 40: less than the clocks are apart.
    written = run_with_clock(
        writer,
        redis_url,
        f"""
        entry = make_entry(vary={vary}, life=40)
        assert await store.set(make_key(), entry)
        again = await store.get(make_key(), only({vary}))
        assert again == entry, again  # it reads what it wrote
        return [entry.generated_at, entry.stored_at, entry.fresh_until, entry.retain_until]
        """,
    )
    read = run_with_clock(
        reader,
        redis_url,
        f"""
        for _ in range(2):  # an index is learnt, then known
            entry = await store.get(make_key(), only({vary}))
            assert entry is not None
        return [entry.generated_at, entry.stored_at, entry.fresh_until, entry.retain_until]
        """,
    )
    true_written = [moment - writer for moment in written]
    true_read = [moment - reader for moment in read]
    assert true_read == pytest.approx(true_written, abs=1.0)
    for name in server.scan_iter():
        assert 0 < server.pttl(name) <= 40_000


@pytest.mark.parametrize("ahead", [60.0, -60.0])
def test_variants_of_machines_whose_clocks_differ_stand_in_one_index(ahead: float, redis_url: str, server: Any) -> None:
    for machine, language in ((ahead, "de"), (0.0, "fr")):
        run_with_clock(
            machine,
            redis_url,
            f"""
            await store.set(make_key(), make_entry(b"{language}", vary=language(b"{language}"), life=40))
            """,
        )
    for machine in (ahead, 0.0):
        found = run_with_clock(
            machine,
            redis_url,
            """
            found = [await store.get(make_key(), only(language(which))) for which in (b"de", b"fr")]
            return [entry and entry.response.body.decode() for entry in found]
            """,
        )
        assert found == ["de", "fr"]


# --- a store and its server -------------------------------------------------------------------------------------------


async def test_the_server_is_asked_once_and_not_for_each_operation(redis_url: str, make_store: MakeStore) -> None:
    async with Recorder(redis_url) as recorder:
        store = make_store(recorder.client)
        for number in range(20):
            await store.set(make_key(number), make_entry())
            await store.get(make_key(number), any_variant)
        assert recorder.taken().count("TIME") == 1


async def test_a_store_that_is_given_a_clock_asks_for_no_time(redis_url: str, make_store: MakeStore) -> None:
    async with Recorder(redis_url) as recorder:
        store = make_store(recorder.client, clock=TrueClock())
        await store.set(make_key(), make_entry())
        await store.get(make_key(), any_variant)
        assert recorder.taken() == ["SET", "MGET"]


async def test_a_server_that_was_away_is_asked_anew(own_redis: RedisServer, make_store: MakeStore) -> None:
    async with Recorder(own_redis.url) as recorder:
        store = make_store(recorder.client, breaker_failures=1, probe_interval=0.05)
        await store.get(make_key(), any_variant)
        own_redis.kill()
        with pytest.raises(StoreError):
            await store.get(make_key(), any_variant)
        own_redis.start()
        await until(lambda: store.breaker_state == "closed")
        recorder.taken()
        await store.get(make_key(), any_variant)  # it may be another machine by now
        assert recorder.taken() == ["TIME", "MGET"]


async def test_a_server_that_may_not_tell_its_time_is_used_all_the_same_and_that_is_logged_once(
    own_redis: RedisServer, make_store: MakeStore, caplog: pytest.LogCaptureFixture
) -> None:
    own_redis.command("ACL", "SETUSER", "default", "-time")
    store = make_store(own_redis.url, breaker_failures=1)
    for _ in range(3):
        entry = make_entry()
        await asyncio.gather(*(store.set(make_key(number), entry) for number in range(10)))
        found = await asyncio.gather(*(store.get(make_key(number), any_variant) for number in range(10)))
        assert found == [entry] * 10
    assert store.breaker_state == "closed"
    assert store.stats().errors == 0
    (record,) = [record for record in caplog.records if record.name == "echo_cache"]
    assert record.levelno == logging.WARNING
    assert "does not tell its time" in record.getMessage()
    assert "Permit the command TIME" in record.getMessage()


@pytest.mark.parametrize(
    "told",
    [
        pytest.param(b":5\r\n", id="integer"),
        pytest.param(b"*-1\r\n", id="null"),
        pytest.param(array(), id="nothing"),
        pytest.param(array(b"1800000000"), id="one-number"),
        pytest.param(array(b"x", b"y"), id="no-numbers"),
        pytest.param(array(b"nan", b"inf"), id="nan"),
        pytest.param(array(b"9" * 400, b"0"), id="endless"),
        pytest.param(array(b"1800000000", None), id="nil"),
    ],
)
async def test_a_time_that_is_none_is_a_store_error(told: bytes, make_store: MakeStore) -> None:
    async with LyingServer(lambda words: array(*(None for _ in words[1:])), time=told) as url:
        store = make_store(url, breaker_failures=100)
        with pytest.raises(StoreError, match="could not tell the time"):
            await store.get(make_key(), any_variant)
        with pytest.raises(StoreError, match="could not tell the time"):
            await store.set(make_key(), make_entry())
        await store.aclose()


@pytest.mark.parametrize(
    "told",
    [
        pytest.param(array(b"0", b"0"), id="1970"),
        pytest.param(array(b"-1000000000", b"0"), id="before-1970"),
        pytest.param(array(b"9" * 17, b"0"), id="far-away"),
        pytest.param(b"+OK\r\n", id="status"),
        pytest.param(b"$2\r\n12\r\n", id="string"),
    ],
)
async def test_a_time_that_cannot_be_makes_nothing_fresh_for_years(
    told: bytes, make_store: MakeStore, caplog: pytest.LogCaptureFixture
) -> None:
    now = time.time()
    entry = make_entry(life=300.0, now=now)
    value = codec.encode(make_key(), entry)  # by somebody who knows what time it is
    written: list[bytes] = []

    def reply(words: list[bytes]) -> bytes:
        if words[0] == b"SET":
            written.append(words[2])
            return b"+OK\r\n"
        return array(*(value for _ in words[1:]))

    async with LyingServer(reply, time=told) as url:
        store = make_store(url)
        assert await store.get(make_key(), any_variant) == entry
        await store.set(make_key(), entry)
        assert codec.decode(make_key(), written[0], max_body_bytes=1_000) == entry
        await store.aclose()
    (record,) = [record for record in caplog.records if record.name == "echo_cache"]
    assert "does not tell its time" in record.getMessage()
