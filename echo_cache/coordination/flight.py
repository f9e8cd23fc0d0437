"""
Single flight: one call of the app for all who wait for the same thing, in one process.

The first request makes a flight start, and is its leader; the app is called in a task of the flight's own, so that no
client that leaves takes the others with it. The last one to leave cancels it. What comes back is kept in order until it
is complete, so that whoever boards late misses nothing; a response that turns out too large to keep streams on through
a bounded window, at the pace of the slowest.

A flight knows nothing of HTTP: heads and items are whatever the pilot, who calls the app, hands over.
"""

from __future__ import annotations

import asyncio
import enum
import logging
from collections.abc import Awaitable, Callable, Coroutine, Hashable
from typing import Any, Final, TypeAlias

__all__ = ["ClientGone", "Flight", "Flights", "Interrupted", "Passenger", "State", "TooSlow"]

logger = logging.getLogger("echo_cache")

Receive: TypeAlias = Callable[[], Awaitable[Any]]
Stand: TypeAlias = tuple[int, int]
"""Where the invalidation log stands: its version, and the position for a fill that begins now."""
Pilot: TypeAlias = Callable[["Flight"], Coroutine[Any, Any, None]]

# A flight that lands at once needs no watch over its clients: most do, and a watch costs a task each.
WATCH_AFTER = 0.1
# What a response that is not kept may run ahead of its slowest reader.
WINDOW_BYTES = 256 * 1024
# How long one stalled reader may hold up others of the same stream before it is cut off.
STALL_SECONDS = 5.0
# What an item costs beside its bytes: the bytes object's head, a size, places in three lists.
ITEM_BYTES: Final = 128


class State(enum.Enum):
    """What passengers can count on."""

    WAITING = "waiting"
    """Nothing is known yet."""

    STREAMING = "streaming"
    """The head is there, items follow."""

    SETTLED = "settled"
    """There is an outcome without a stream."""

    FAILED = "failed"
    """The pilot raised, or was cancelled (then there is no error), before there was a head or an outcome."""

    SILENT = "silent"
    """The pilot ended without a word."""


class ClientGone(Exception):
    """Raised in the task of a passenger whose client has left."""


class Interrupted(Exception):
    """Raised in the task of a passenger whose stream will not be completed: the call was cancelled from outside."""


class TooSlow(Interrupted):
    """Raised in the task of a passenger that held up the others and was cut off."""


class Flight:
    """One call of the app and those who wait for it. All state belongs to the event loop that made it."""

    __slots__ = (
        *("_abandoned", "_background", "_flights", "_held", "_items", "_over", "_passengers", "_pressed_since"),
        *("_room", "_sizes", "_traceback", "_trimmed", "_watched", "begun", "born", "done", "error", "head"),
        *("interrupted", "is_open", "keeping", "key", "outcome", "overdue", "shared", "stand", "state", "task"),
    )

    def __init__(self, flights: Flights, key: Hashable, stand: Stand, born: float, *, background: bool) -> None:
        self.key = key
        # Where the invalidation log stood: whoever comes after a newer mark may not want what this flight brings.
        self.stand = stand
        self.born = born
        # Whether it can be found by its key.
        self.is_open = True
        # Whether the pilot has begun.
        self.begun = False
        self.state = State.WAITING
        self.head: Any = None
        self.outcome: Any = None
        self.error: Exception | None = None
        self.done = False
        # Whether passengers beside the leader may have what comes; set false by the pilot, before the head.
        self.shared = True
        # The deadline has come before anything was known: those who only joined are released.
        self.overdue = False
        # The call was cancelled: whatever is there is not complete.
        self.interrupted = False
        # Whether all items are kept from the first on; once false, only a window of them is.
        self.keeping = True
        self.task: asyncio.Task[None] | None = None
        self._flights = flights
        self._background = background
        self._abandoned = False
        self._passengers: list[Passenger] = []
        self._items: list[Any] = []
        self._sizes: list[int] = []
        self._held = 0
        self._trimmed = 0
        self._room: asyncio.Future[None] | None = None
        self._pressed_since: float | None = None
        self._over: asyncio.Event | None = None
        self._traceback: Any = None
        self._watched = False

    def __repr__(self) -> str:
        kind = " background" if self._background else ""
        return f"<Flight{kind} {self.state.value}, {len(self._passengers)} aboard, {len(self._items)} items>"

    @property
    def is_background(self) -> bool:
        """Whether the cache itself wants what comes, with or without passengers."""
        return self._background

    def age(self) -> float:
        """Return how long ago it began, in seconds."""
        return asyncio.get_running_loop().time() - self.born

    # The pilot's side.

    def hint(self, item: Any) -> None:
        """Hand over what comes before the head: it is the leader's alone, since nobody knows yet who may share."""
        for passenger in self._passengers:
            if passenger.first:
                passenger.early.append(item)
                passenger.wake()

    def open(self, head: Any) -> None:
        """Give out the head; items follow. Passengers beside the leader leave if the flight is not shared."""
        self.head = head
        self.state = State.STREAMING
        if not self.shared:
            self.stop_keeping()
        self._wake()

    def push(self, item: Any, size: int = 0) -> None:
        """Hand over the next item, of *size* bytes; it goes nowhere when nobody can have it any more."""
        if self.done or not (self._passengers or self.keeping):
            return
        size += ITEM_BYTES
        self._items.append(item)
        self._sizes.append(size)
        self._held += size
        self._flights.held_bytes += size
        self._wake()

    def settle(self, outcome: Any) -> None:
        """Give out an outcome instead of a stream."""
        if not self.done:
            self.outcome = outcome
            self.state = State.SETTLED
            self.land()

    def fail(self, error: Exception) -> None:
        """
        Give out *error*: to those who wait, or in mid-stream to those who read.

        After the last item it reaches the leader, if it is still aboard, as the server would have got it; else the log.
        """
        leader = next((passenger for passenger in self._passengers if passenger.first), None)
        if not self.done:
            self.error = error
            self._traceback = error.__traceback__
            if self.state is State.WAITING:
                self.state = State.FAILED
            if not self._passengers:
                logger.error("the app raised when nobody waited for its response any more", exc_info=error)
            self.land()
        elif leader is not None:
            leader.late_error = error
        else:
            logger.error("the app raised after its response", exc_info=error)

    def interrupt(self) -> None:
        """Say that the call was cancelled."""
        if not self.done:
            self.interrupted = True
            if self.state is State.WAITING:
                self.state = State.FAILED
            self.land()

    def land(self) -> None:
        """Say that nothing follows; what the pilot still does delays nobody."""
        if self.done:
            return
        self.done = True
        if self.state is State.WAITING:
            self.state = State.SILENT
        if self._over is not None:
            self._over.set()
        self._flights.landed(self)
        if self._passengers:
            self._wake()
        else:
            self._release()

    def carry_on(self) -> None:
        """Go on when nobody is aboard any more, until the deadline: what comes is wanted for later."""
        self._background = True

    def stop_keeping(self) -> None:
        """Keep only a window of items from now on; nobody can board any more."""
        self.keeping = False
        self._flights.forget(self)
        if not (self._passengers or self._background):
            self._abandon()

    async def over(self) -> None:
        """Wait until all is said or nobody listens; the pilot shows it to the app as a disconnect."""
        if not (self.done or self._abandoned):
            if self._over is None:
                self._over = asyncio.Event()
            await self._over.wait()

    async def room(self) -> None:
        """
        Wait until the slowest passenger of a stream that is not kept is near enough.

        One that has kept others waiting for STALL_SECONDS is cut off.
        """
        loop = asyncio.get_running_loop()
        while not self.keeping and self._passengers and self._trim() > WINDOW_BYTES:
            if self._pressed_since is None:
                self._pressed_since = loop.time()
            patience = self._pressed_since + STALL_SECONDS - loop.time()
            if patience <= 0:
                if self._cut_off_the_slowest():
                    continue
                patience = STALL_SECONDS / 10
            self._room = loop.create_future()
            timer = loop.call_later(patience, self._make_room)
            try:
                await self._room
            finally:
                timer.cancel()
                self._room = None

    def _trim(self) -> int:
        """Drop the items that all passengers have read; return the bytes that remain."""
        nearest = min(passenger.position for passenger in self._passengers)
        read = nearest - self._trimmed
        if read > 0:
            freed = sum(self._sizes[:read])
            del self._items[:read], self._sizes[:read]
            self._trimmed = nearest
            self._held -= freed
            self._flights.held_bytes -= freed
        if self._held <= WINDOW_BYTES // 2:
            self._pressed_since = None
        return self._held

    def _cut_off_the_slowest(self) -> bool:
        """Cut off whoever is furthest behind, if others have read all there is. Returns whether there was one."""
        end = self._trimmed + len(self._items)
        if all(passenger.position < end for passenger in self._passengers):
            return False
        for passenger in [p for p in self._passengers if p.position == self._trimmed]:
            passenger.cut_off = True
            self.leave(passenger)
            passenger.wake()
        self._pressed_since = None
        return True

    # The passengers' side.

    def board(self, passenger: Passenger) -> None:
        """Take *passenger* aboard."""
        self._passengers.append(passenger)
        if self._watched:
            passenger.watch(self._flights)

    def leave(self, passenger: Passenger) -> None:
        """Take *passenger* off; the last one to leave cancels a flight that has not landed."""
        if passenger not in self._passengers:
            return
        self._passengers.remove(passenger)
        if self._passengers:
            self._make_room()
        elif self.done:
            self._release()
        elif not (self._background and self.keeping):
            self._abandon()

    def taken(self) -> None:
        """A passenger has read an item: give it up if nobody else will, and let the pilot know."""
        if not self.keeping:
            if len(self._passengers) == 1:
                self._trim()  # with more it is done when there is something to push, and not for each of them
            self._make_room()

    def error_again(self) -> Exception:
        """Return the error to be raised once more, with the traceback that it came with and no more than that."""
        assert self.error is not None
        return self.error.with_traceback(self._traceback)

    def _abandon(self) -> None:
        """Nobody wants what comes: let the app hear of the disconnect, then cancel it."""
        if self._abandoned:
            return
        self._abandoned = True
        self._flights.forget(self)
        self.keeping = False
        self._release()
        if self._over is not None:
            self._over.set()
        if self.task is not None:
            # One turn later, so that an app which waits for a message gets the disconnect first.
            self.task.get_loop().call_soon(self.task.cancel)
        self._make_room()

    def _release(self) -> None:
        """Give up the items, which nobody will read."""
        self._flights.held_bytes -= self._held
        self._held = 0
        self._items = []
        self._sizes = []

    def _make_room(self) -> None:
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    def _wake(self) -> None:
        for passenger in self._passengers:
            passenger.wake()

    def watch(self) -> None:
        """Not landed at once: listen for the disconnects of clients."""
        self._watched = True
        for passenger in self._passengers:
            passenger.watch(self._flights)

    def expire(self) -> None:
        """
        The deadline has come: free the key, and cancel the call if nobody but the cache itself wants it.

        A call that a client waits for goes on as it would without a cache; those who only joined it are released,
        and the first of them starts anew. Cancelling it would answer requests with an error of ours.
        """
        self._flights.forget(self)
        self._background = False
        if not self._passengers:
            self._abandon()
        elif self.state is State.WAITING:
            self.shared = False
            self.overdue = True
            self._wake()


class Passenger:
    """One request aboard a flight; the first is its leader."""

    __slots__ = (
        *("_gone", "_receive", "_waiter", "_watch", "cut_off", "early", "first", "flight"),
        *("late_error", "on_time", "position"),
    )

    def __init__(self, flight: Flight, receive: Receive | None, version: int, *, first: bool) -> None:
        self.flight = flight
        self.first = first
        # Whether the invalidation log said no other things when this one boarded than when the flight began.
        self.on_time = version == flight.stand[0]
        self.position = 0
        self.cut_off = False
        # For the leader: what came before the head, and what was raised after the last item.
        self.early: list[Any] = []
        self.late_error: Exception | None = None
        self._gone = False
        self._receive = receive
        self._waiter: asyncio.Future[None] | None = None
        self._watch: asyncio.Task[None] | None = None

    async def known(self) -> bool:
        """
        Wait until there is a head, an outcome, an error, or something early for the leader.

        Returns False when this passenger may not have it. Raises ClientGone.
        """
        flight = self.flight
        while flight.state is State.WAITING and (flight.shared or self.first) and not self.early:
            await self._wait()
        return flight.shared or self.first

    async def next(self) -> Any:
        """
        Return the next item of the stream, None when it is complete or the pilot has ended.

        Raises what the pilot raised, ClientGone, Interrupted and TooSlow.
        """
        flight = self.flight
        while True:
            if self.cut_off:
                raise TooSlow("the client read too slowly, and others were waiting for it")
            if self._gone:
                raise ClientGone
            index = self.position - flight._trimmed
            if index < len(flight._items):
                break
            if flight.done:
                if flight.error is not None:
                    raise flight.error_again()
                if flight.interrupted:
                    raise Interrupted("the call of the app was cancelled before its response was complete")
                if self.late_error is not None:
                    raise self.late_error
                return None
            await self._wait()
        self.position += 1
        item = flight._items[index]
        flight.taken()
        return item

    def wake(self) -> None:
        """Something has changed."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def watch(self, flights: Flights) -> None:
        """Listen for the client's disconnect, where there is a client."""
        if self._watch is None and self._receive is not None:
            self._watch = flights.own(self._listen(self._receive))

    def leave(self) -> None:
        """Get off, whatever the state; harmless when repeated."""
        self.flight.leave(self)
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None

    async def _wait(self) -> None:
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
        begun = False
        try:
            while (message := await receive())["type"] != "http.disconnect":
                if begun:
                    return  # the request was complete: a server that says otherwise would say so for ever
                begun = not message.get("more_body", False)
        except Exception as error:
            # Nothing can be heard from this client; whether it still listens shows when something is sent.
            logger.debug("receive failed while a client was watched: %r", error)
            return
        self._gone = True
        self.wake()


class Flights:
    """
    The flights under way, by key, and the owner of their tasks.

    They are of one event loop at a time. While that one runs, requests of another are not brought together.

    deadline: seconds after which a flight's key is free. most_background: how many may fly without a leader at a time.
    """

    def __init__(self, deadline: float, most_background: int = 64) -> None:
        # The bytes that wait to be read, or kept for those who board late.
        self.held_bytes = 0
        self._deadline = deadline
        self._most_background = most_background
        # Guarded by the event loop: read and changed between awaits only.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._by_key: dict[Hashable, Flight] = {}
        self._flying: set[Flight] = set()
        self._watches: set[asyncio.Task[None]] = set()
        # Flights in the order in which they began: not yet watched, and watched until their deadline. One timer looks
        # after all of them, since one for each would be a tenth of the cost of a miss.
        self._young: dict[Flight, None] = {}
        self._old: dict[Flight, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        # The one that was started last, until its pilot begins.
        self._next: Flight | None = None
        self._closing = False

    def __repr__(self) -> str:
        return f"<Flights [{len(self._by_key)} open, {len(self._flying)} under way, {self.held_bytes} bytes held]>"

    def __len__(self) -> int:
        return len(self._by_key)

    def board(
        self,
        key: Hashable,
        pilot: Pilot,
        receive: Receive | None,
        stand: Stand,
        suits: Callable[[Flight], bool],
    ) -> Passenger | None:
        """
        Return a place on the flight for *key*; the first to come makes *pilot* fly it.

        *stand* is where the invalidation log stands. *suits* says of a flight that is under way whether it may be
        joined; if not, a new one takes its place. *receive* tells of the client, None where there is none. Returns
        None when nobody flies now, in this event loop.
        """
        loop = asyncio.get_running_loop()
        if (loop is not self._loop and not self._adopt(loop)) or self._closing:
            return None
        flight = self._by_key.get(key)
        if flight is not None and not suits(flight):
            self.forget(flight)
            flight = None
        first = flight is None
        if flight is None:
            flight = self._start(key, pilot, stand, background=False)
        passenger = Passenger(flight, receive, stand[0], first=first)
        flight.board(passenger)
        return passenger

    def join(self, key: Hashable, receive: Receive, version: int) -> Passenger | None:
        """
        Return a place on the flight with a leader for *key*, if it was started in this turn of the event loop; or None.

        What takes longer is for later: among hundreds that come in one turn, each keeps the pilot from beginning.
        """
        flight = self._by_key.get(key)
        if flight is None or flight.begun or flight.is_background or flight.stand[0] != version:
            return None
        if self._loop is not asyncio.get_running_loop():
            return None
        passenger = Passenger(flight, receive, version, first=False)
        flight.board(passenger)
        return passenger

    def start_background(self, key: Hashable, pilot: Pilot, stand: Stand) -> bool:
        """
        Fly without a leader; requests may still board.

        Returns False when *key* is in flight already, or as many are as may fly without a leader at a time.
        """
        loop = asyncio.get_running_loop()
        if (loop is not self._loop and not self._adopt(loop)) or self._closing or key in self._by_key:
            return False
        if sum([flight.is_background for flight in self._flying]) >= self._most_background:
            return False
        self._start(key, pilot, stand, background=True)
        return True

    @property
    def is_taking_off(self) -> bool:
        """Whether a flight was started in this turn of the event loop, which may be joined."""
        return self._next is not None and not (self._next.begun or self._next.done)

    def is_open(self, key: Hashable, *, foreground: bool = False) -> bool:
        """Say whether there is a flight for *key*; *foreground*: one that requests wait for."""
        flight = self._by_key.get(key)
        return flight is not None and not (foreground and flight.is_background)

    def register(self, flight: Flight, key: Hashable) -> None:
        """Let those who look for the more precise *key* find *flight* instead, once it is known."""
        if flight.is_open and key not in self._by_key:
            del self._by_key[flight.key]
            flight.key = key
            self._by_key[key] = flight

    def forget(self, flight: Flight) -> None:
        """Free the key of *flight*; those aboard stay."""
        if flight.is_open:
            flight.is_open = False
            self._by_key.pop(flight.key, None)

    def landed(self, flight: Flight) -> None:
        """Free the key of *flight*, which needs no more care."""
        self.forget(flight)
        self._young.pop(flight, None)
        self._old.pop(flight, None)

    def own(self, watch: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run *watch* in a task that is referred to until it ends."""
        task = asyncio.get_running_loop().create_task(watch)
        self._watches.add(task)
        task.add_done_callback(self._watches.discard)
        return task

    async def aclose(self, deadline: float) -> None:
        """
        Wait up to *deadline* seconds for the calls under way, then cancel the rest and wait for them as long again.

        While they are being cancelled, nobody new is brought together.
        """
        if self._loop is not asyncio.get_running_loop():
            return
        await self._end_calls(deadline)
        if self._timer is not None and not self._young and not self._old:
            self._timer.cancel()
            self._timer = None

    async def _end_calls(self, deadline: float) -> None:
        current = asyncio.current_task()
        flying = {
            flight.task: flight for flight in self._flying if flight.task is not None and flight.task is not current
        }
        if not flying:
            return
        over, late = await asyncio.wait(flying, timeout=deadline)
        if late:
            self._closing = True
            try:
                for task in late:
                    task.cancel()
                late_over, lost = await asyncio.wait(late, timeout=deadline)
                over |= late_over
            finally:
                self._closing = False
            if lost:
                logger.error("%d calls of the app do not end although they were cancelled", len(lost))
        for task in over:
            # One that is cancelled before it begins runs nothing of its own that could say so.
            flying[task].interrupt()
            self._flying.discard(flying[task])

    def _adopt(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Move to *loop*, unless the one that was served so far is still running."""
        if self._loop is not None and self._loop.is_running():
            return False
        # Whatever was under way in the other loop stands still with it.
        for flight in (*self._young, *self._old):
            flight._release()
            flight.is_open = False
        self._loop = loop
        self._by_key = {}
        self._flying = set()
        self._watches = set()
        self._young = {}
        self._old = {}
        self._timer = None
        self._next = None
        return True

    def _start(self, key: Hashable, pilot: Pilot, stand: Stand, *, background: bool) -> Flight:
        loop = self._loop
        assert loop is not None
        flight = self._by_key[key] = Flight(self, key, stand, loop.time(), background=background)
        flight.task = loop.create_task(self._fly(flight, pilot))
        self._flying.add(flight)
        self._young[flight] = None
        self._next = flight
        if self._timer is None:
            self._timer = loop.call_later(WATCH_AFTER, self._look_after)
        return flight

    def _look_after(self) -> None:
        """Watch the clients of flights that do not land at once, and end the wait for those past their deadline."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        for flight in [flight for flight in self._young if flight.born + WATCH_AFTER <= now]:
            del self._young[flight]
            self._old[flight] = None
            flight.watch()
        for flight in [flight for flight in self._old if flight.born + self._deadline <= now]:
            del self._old[flight]
            flight.expire()
        self._timer = loop.call_later(WATCH_AFTER, self._look_after) if self._young or self._old else None

    async def _fly(self, flight: Flight, pilot: Pilot) -> None:
        flight.begun = True
        if self._next is flight:
            self._next = None
        try:
            await pilot(flight)
        except Exception as error:
            flight.fail(error)
        except BaseException:
            flight.interrupt()
            raise
        finally:
            flight.land()
            flight.task = None
            self._flying.discard(flight)
