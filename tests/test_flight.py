"""A flight on its own: what pilots and passengers may rely on."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from echo_cache.coordination.flight import ClientGone, Flight, Flights, Passenger, State


async def silent() -> Any:
    await asyncio.Event().wait()


class Pilot:
    """Flies as the test says."""

    def __init__(self) -> None:
        self.flight: Flight | None = None
        self.flights = 0
        self.go = asyncio.Event()
        self.off = asyncio.Event()

    async def __call__(self, flight: Flight) -> None:
        self.flight = flight
        self.flights += 1
        self.off.set()
        await self.go.wait()


def board(flights: Flights, pilot: Any, key: str = "key", mark: int = 0, suits: bool = True) -> Passenger:
    passenger = flights.board(key, pilot, silent, (mark, mark), lambda flight: suits or flight.stand[0] == mark)
    assert passenger is not None
    return passenger


async def test_repr_says_what_is_going_on() -> None:
    flights, pilot = Flights(30.0), Pilot()
    assert repr(flights) == "<Flights [0 open, 0 under way, 0 bytes held]>"
    passenger = board(flights, pilot)
    await pilot.off.wait()
    assert repr(passenger.flight) == "<Flight waiting, 1 aboard, 0 items>"
    passenger.flight.open("head")
    passenger.flight.push(b"abc", 3)
    assert repr(passenger.flight) == "<Flight streaming, 1 aboard, 1 items>"
    assert repr(flights) == "<Flights [1 open, 1 under way, 131 bytes held]>"
    flights.start_background("other", pilot, (0, 0))
    assert "background" in repr(flights._by_key["other"])
    pilot.go.set()
    await flights.aclose(5.0)
    assert len(flights) == 0


async def test_first_aboard_is_the_leader_and_nobody_becomes_it_later() -> None:
    flights, pilot = Flights(30.0), Pilot()
    leader, waiter = board(flights, pilot), board(flights, pilot)
    assert (leader.first, waiter.first) == (True, False)
    leader.leave()
    assert board(flights, pilot).first is False
    flights.start_background("other", pilot, (0, 0))
    assert board(flights, pilot, "other").first is False
    pilot.go.set()
    await flights.aclose(5.0)


async def test_flight_from_before_a_newer_mark_is_left_to_those_aboard() -> None:
    flights, pilot = Flights(30.0), Pilot()
    first = board(flights, pilot)
    assert board(flights, pilot, mark=1, suits=True).flight is first.flight
    newer = board(flights, pilot, mark=1, suits=False)
    assert newer.flight is not first.flight
    assert newer.first
    # The older one, landing, does not free the key of the newer.
    first.flight.land()
    assert board(flights, pilot, mark=1, suits=False).flight is newer.flight
    pilot.go.set()
    await flights.aclose(5.0)


async def test_items_after_the_landing_go_nowhere() -> None:
    flights, pilot = Flights(30.0), Pilot()
    passenger = board(flights, pilot)
    flight = passenger.flight
    flight.open("head")
    flight.push("one")
    flight.land()
    flight.push("two")
    flight.settle("outcome")
    flight.interrupt()
    assert flight.state is State.STREAMING
    assert [await passenger.next(), await passenger.next()] == ["one", None]
    passenger.leave()
    passenger.leave()
    assert flights.held_bytes == 0
    pilot.go.set()
    await flights.aclose(5.0)


async def test_error_that_nobody_waits_for_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def failing(flight: Flight) -> None:
        raise ValueError("of the pilot")

    flights = Flights(30.0)
    flights.start_background("key", failing, (0, 0))
    await flights.aclose(5.0)
    assert "of the pilot" in caplog.text


async def test_flight_that_is_cancelled_before_it_begins_leaves_nobody_waiting() -> None:
    flights, pilot = Flights(30.0), Pilot()
    passenger = board(flights, pilot)
    waiting = asyncio.ensure_future(passenger.known())
    assert passenger.flight.task is not None
    passenger.flight.task.cancel()
    await flights.aclose(0.0)
    await waiting
    assert passenger.flight.state is State.FAILED
    assert pilot.flights == 0
    assert len(flights) == 0


async def test_client_that_leaves_is_noticed_before_all_is_sent() -> None:
    gone = asyncio.Event()

    async def receive() -> Any:
        await gone.wait()
        return {"type": "http.disconnect"}

    flights, pilot = Flights(30.0), Pilot()
    passenger = flights.board("key", pilot, receive, (0, 0), lambda _: True)
    assert passenger is not None
    flight = passenger.flight
    flight.open("head")
    for number in range(3):
        flight.push(number)
    flight.watch()
    assert await passenger.next() == 0
    gone.set()
    for _ in range(3):
        await asyncio.sleep(0)
    with pytest.raises(ClientGone):
        await passenger.next()
    passenger.leave()
    await flights.aclose(5.0)
    assert not flights._watches


async def test_nobody_is_brought_together_across_running_loops() -> None:
    flights, pilot = Flights(30.0), Pilot()
    board(flights, pilot)

    def in_another_thread() -> object:
        async def try_to_board() -> object:
            boarded = flights.board("key", pilot, silent, (0, 0), lambda _: True)
            return boarded, flights.start_background("b", pilot, (0, 0))

        return asyncio.run(try_to_board())

    assert await asyncio.to_thread(in_another_thread) == (None, False)
    pilot.go.set()
    await flights.aclose(5.0)
