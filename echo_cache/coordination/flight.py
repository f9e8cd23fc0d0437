"""
Single flight: one call of the app for all who wait for the same thing, in one process.

The first request to board a flight makes it start; the app is called in a task of the flight's own, so that no client
that leaves takes the others with it. The last one to leave cancels it. What comes back is kept in order until it is
complete, so that whoever boards late misses nothing; a response that turns out too large to keep streams on through a
bounded window, at the pace of the slowest.

A flight knows nothing of HTTP: heads and items are whatever the pilot, who calls the app, hands over.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Awaitable, Callable, Coroutine, Hashable
from typing import Any, TypeAlias

__all__ = ["ClientGone", "Flight", "Flights", "Passenger", "State", "TooSlow"]

Receive: TypeAlias = Callable[[], Awaitable[Any]]

# A flight that lands at once needs no watch over its clients: most do, and a watch costs a task each.
WATCH_AFTER = 0.1
# What a response that is not kept may run ahead of its slowest reader.
WINDOW_BYTES = 256 * 1024
# How long one stalled reader may hold up others of the same stream before it is cut off.
STALL_SECONDS = 5.0


class State(enum.Enum):
    """What passengers can count on."""

    WAITING = "waiting"
    """Nothing is known yet."""

    STREAMING = "streaming"
    """The head is there, items follow."""

    SETTLED = "settled"
    """There is an outcome without a stream."""

    FAILED = "failed"
    """The pilot raised before there was a head or an outcome."""


class ClientGone(Exception):
    """Raised in the task of a passenger whose client has left."""


class TooSlow(Exception):
    """Raised in the task of a passenger that held up the others and was cut off."""


class Flight:
    """One call of the app and those who wait for it. All state belongs to the event loop that made it."""

    def __init__(self, flights: Flights, key: Hashable) -> None:
        self.key = key
        self.state = State.WAITING
        self.head: Any = None
        self.outcome: Any = None
        self.error: BaseException | None = None
        self.done = False
        # Whether passengers beside the first may have what comes; set false by the pilot, before the head.
        self.shared = True
        # Whether all items are kept from the first on; once false, only a window of them is.
        self.keeping = True
        self.task: asyncio.Task[None] | None = None
        # Set when all is said or nobody listens; the pilot shows it to the app as a disconnect.
        self.over = asyncio.Event()
        self._flights = flights
        self._passengers: list[Passenger] = []
        self._background = False
        self._watching = False
        self._timer: asyncio.TimerHandle | None = None
        self._items: list[tuple[Any, int]] = []
        self._trimmed = 0
        self._room: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        kind = " background" if self._background else ""
        return f"<Flight{kind} {self.state.value}, {len(self._passengers)} aboard, {len(self._items)} items>"

    # The pilot's side.

    def open(self, head: Any) -> None:
        """Give out the head; items follow. Passengers beside the first leave if the flight is not shared."""
        self.head = head
        self.state = State.STREAMING
        if not self.shared:
            self.stop_keeping()
        self._wake()

    def push(self, item: Any, size: int = 0) -> None:
        """Hand over the next item, of *size* bytes."""
        self._items.append((item, size))
        self._wake()

    def settle(self, outcome: Any) -> None:
        """Give out an outcome instead of a stream."""
        self.outcome = outcome
        self.state = State.SETTLED
        self.land()

    def fail(self, error: BaseException) -> None:
        """Give out *error*: to those who wait, or in mid-stream to those who read."""
        self.error = error
        if self.state is State.WAITING:
            self.state = State.FAILED
        self.land()

    def land(self) -> None:
        """Say that nothing follows; what the pilot still does delays nobody."""
        if not self.done:
            self.done = True
            self.over.set()
            self._flights.forget(self)
            if self._timer is not None:
                self._timer.cancel()
            self._wake()

    def stop_keeping(self) -> None:
        """Keep only a window of items from now on; nobody can board any more."""
        self.keeping = False
        self._flights.forget(self)

    async def room(self) -> None:
        """Wait until the slowest passenger of a stream that is not kept is near enough."""
        while not self.keeping and self._passengers and self._trim() > WINDOW_BYTES:
            self._room = asyncio.get_running_loop().create_future()
            try:
                await asyncio.wait_for(self._room, STALL_SECONDS)
            except TimeoutError:
                self._cut_off_the_stalled()
            finally:
                self._room = None

    def _trim(self) -> int:
        """Drop the items that all passengers have read; return the bytes that remain."""
        nearest = min(passenger.position for passenger in self._passengers)
        if nearest > self._trimmed:
            del self._items[: nearest - self._trimmed]
            self._trimmed = nearest
        return sum(size for _, size in self._items)

    def _cut_off_the_stalled(self) -> None:
        """Cut off whoever is furthest behind while others have read everything there is."""
        end = self._trimmed + len(self._items)
        if any(passenger.position == end for passenger in self._passengers):
            for passenger in [p for p in self._passengers if p.position == self._trimmed]:
                passenger.cut_off = True
                self._passengers.remove(passenger)
                passenger.wake()

    # The passengers' side.

    def board(self, receive: Receive | None) -> Passenger:
        """Join; *receive* is where the client's disconnect shows up."""
        passenger = Passenger(self, receive, first=not self._passengers and self.state is State.WAITING)
        self._passengers.append(passenger)
        if self._watching:
            passenger.watch()
        return passenger

    def leave(self, passenger: Passenger) -> None:
        """Take *passenger* off; the last one to leave cancels a flight that has not landed."""
        if passenger in self._passengers:
            self._passengers.remove(passenger)
            self._make_room()
            if not self._passengers and not self.done and not self._background:
                self.over.set()
                self._flights.forget(self)
                if self.task is not None:
                    self.task.cancel()

    def item(self, position: int) -> Any:
        """Return the item at *position*, None when it has not come yet."""
        index = position - self._trimmed
        return self._items[index][0] if index < len(self._items) else None

    def _make_room(self) -> None:
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    def _wake(self) -> None:
        for passenger in self._passengers:
            passenger.wake()

    def _start_watching(self, deadline: float) -> None:
        """Not landed at once: watch the clients, and free the key when the deadline has come."""
        self._watching = True
        for passenger in self._passengers:
            passenger.watch()
        self._timer = asyncio.get_running_loop().call_later(deadline, self._overdue)

    def _overdue(self) -> None:
        """
        The deadline: free the key, and cancel the call if nobody but the cache itself wants it.

        A call that a client waits for goes on as it would without a cache; those who only joined it are released,
        and the first of them starts anew. Cancelling it would answer requests with an error of ours.
        """
        self._flights.forget(self)
        if self._background and self.task is not None:
            self.task.cancel()
        elif self.state is State.WAITING:
            self.shared = False
            self._wake()


class Passenger:
    """One request aboard a flight."""

    __slots__ = ("_gone", "_receive", "_waiter", "_watch", "cut_off", "first", "flight", "position")

    def __init__(self, flight: Flight, receive: Receive | None, *, first: bool) -> None:
        self.flight = flight
        self.first = first
        self.position = 0
        self.cut_off = False
        self._gone = False
        self._receive = receive
        self._waiter: asyncio.Future[None] | None = None
        self._watch: asyncio.Task[None] | None = None

    async def known(self) -> bool:
        """
        Wait until there is a head, an outcome or an error. Returns False when this passenger may not have it.

        Raises ClientGone.
        """
        flight = self.flight
        while flight.state is State.WAITING and (flight.shared or self.first):
            await self._wait()
        return flight.shared or self.first

    async def next(self) -> Any:
        """
        Return the next item of the stream, None when it is complete.

        Raises what the pilot raised, ClientGone, and TooSlow.
        """
        flight = self.flight
        while (item := flight.item(self.position)) is None:
            if flight.done:
                if flight.error is not None:
                    raise flight.error
                return None
            await self._wait()
        self.position += 1
        if not flight.keeping:
            flight._make_room()
        return item

    def wake(self) -> None:
        """Something has changed."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def watch(self) -> None:
        """Listen for the client's disconnect."""
        if self._watch is None and self._receive is not None:
            self._watch = asyncio.get_running_loop().create_task(self._listen(self._receive))

    async def leave(self) -> None:
        """Get off, whatever the state; harmless when repeated."""
        self.flight.leave(self)
        if self._watch is not None:
            watch, self._watch = self._watch, None
            watch.cancel()
            await asyncio.wait([watch])

    async def _wait(self) -> None:
        if self.cut_off:
            raise TooSlow
        if self._gone:
            raise ClientGone
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None
        if self._gone:
            raise ClientGone

    async def _listen(self, receive: Receive) -> None:
        try:
            while (await receive())["type"] != "http.disconnect":
                pass
        except Exception:  # noqa: S110  # a server that cannot even receive any more has lost its client
            pass
        self._gone = True
        self.wake()


class Flights:
    """The flights under way, by key, and the owner of their tasks."""

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline
        # Guarded by the event loop: read and changed between awaits only.
        self._by_key: dict[Hashable, Flight] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<Flights [{len(self._by_key)} open, {len(self._tasks)} tasks]>"

    def __len__(self) -> int:
        return len(self._by_key)

    def board(self, key: Hashable, pilot: Callable[[Flight], Coroutine[Any, Any, None]], receive: Receive) -> Passenger:
        """Return a place on the flight for *key*; the first to come makes *pilot* fly it."""
        flight = self._by_key.get(key)
        if flight is None:
            flight = self._start(key, pilot)
        return flight.board(receive)

    def start_background(self, key: Hashable, pilot: Callable[[Flight], Coroutine[Any, Any, None]]) -> bool:
        """Fly without passengers; requests may still board. Returns False when *key* is in flight already."""
        if key in self._by_key:
            return False
        self._start(key, pilot)._background = True
        return True

    def register(self, flight: Flight, key: Hashable) -> None:
        """Let those who look for the more precise *key* find *flight* too, once it is known."""
        if flight.keeping and not flight.done and key not in self._by_key:
            self.forget(flight)
            flight.key = key
            self._by_key[key] = flight

    def forget(self, flight: Flight) -> None:
        """Free the key of *flight*; those aboard stay."""
        if self._by_key.get(flight.key) is flight:
            del self._by_key[flight.key]

    async def aclose(self, deadline: float) -> None:
        """Wait up to *deadline* seconds for the calls under way, then cancel the rest and wait for them."""
        if self._tasks:
            _, late = await asyncio.wait(set(self._tasks), timeout=deadline)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)

    def _start(self, key: Hashable, pilot: Callable[[Flight], Coroutine[Any, Any, None]]) -> Flight:
        flight = self._by_key[key] = Flight(self, key)
        loop = asyncio.get_running_loop()
        flight.task = loop.create_task(self._fly(flight, pilot))
        self._tasks.add(flight.task)
        flight.task.add_done_callback(self._tasks.discard)
        flight._timer = loop.call_later(WATCH_AFTER, flight._start_watching, self._deadline)
        return flight

    async def _fly(self, flight: Flight, pilot: Callable[[Flight], Coroutine[Any, Any, None]]) -> None:
        try:
            await pilot(flight)
        except asyncio.CancelledError as error:
            flight.fail(error)
            raise
        except BaseException as error:
            flight.fail(error)
            if not isinstance(error, Exception):
                raise
        finally:
            flight.land()
