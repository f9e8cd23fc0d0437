"""
The stream of statistics: one look a second, told to all who look on.

The one rule: nothing queues up. Who reads slowly gets the newest there is when it can take more, and misses the rest.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from echo_cache.asgi.types import Receive, Send
from echo_cache.management import Management

__all__ = ["MAX_STREAMS", "Feed", "to_json"]

logger = logging.getLogger("echo_cache")

MAX_STREAMS: Final = 16
"""How many streams a worker has at a time."""

_EVERY: Final = 1.0
# How often Redis is asked for what the other workers say, and memory for what is in it: once in so many ticks.
_SELDOM: Final = 2
# How often it is looked whether the server wants to stop: it waits for us, and says so in no other way.
_LOOK_EVERY: Final = 0.25
# How long the other workers' reports may take to come, and a client to take what it is sent.
_REDIS_PATIENCE: Final = 1.0
_CLIENT_PATIENCE: Final = 15.0
# Browsers connect again by themselves. Whoever may not see it any more is refused then.
_LONGEST_STREAM: Final = 600.0


def to_json(value: object) -> bytes:
    """Return *value* as JSON in ASCII, on one line; numbers that JSON does not have are null."""
    try:
        return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()
    except ValueError:
        return json.dumps(_finite(value), allow_nan=False, separators=(",", ":")).encode()


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not -1e308 < value < 1e308 else value


def _event(name: str, data: object) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (name.encode(), to_json(data))


@dataclass(frozen=True, slots=True)
class _Moment:
    """What is told at one tick. top_at: at which tick top is from. refusals_seen: how many refusals are known of."""

    tick: int
    stats: bytes
    top: bytes
    top_at: int
    refusals: bytes
    refusals_seen: int

    def news(self, since: _Moment | None) -> bytes:
        """Return the events of this moment for whoever knows *since*."""
        parts = [self.stats]
        if since is None or since.top_at != self.top_at:
            parts.append(self.top)
        if since is None or since.refusals_seen != self.refusals_seen:
            parts.append(self.refusals)
        return b"".join(parts)


class _Stream:
    """One client that looks on. wake: there is something to do."""

    __slots__ = ("wake",)

    def __init__(self) -> None:
        self.wake = asyncio.Event()


class Feed:
    """
    What the streams of one event loop are told of one cache. Its task runs while there are any.

    All state belongs to the event loop that it was made in.
    """

    def __init__(self, management: Management) -> None:
        self._management = management
        self._loop = asyncio.get_running_loop()
        self._streams: set[_Stream] = set()
        self._task: asyncio.Task[None] | None = None
        self._moment: _Moment | None = None
        self._all: dict[str, Any] = {}
        self._has_ended = False

    def __repr__(self) -> str:
        return f"<Feed of {len(self._streams)} streams{', ended' if self._has_ended else ''}>"

    def __len__(self) -> int:
        return len(self._streams)

    @property
    def has_ended(self) -> bool:
        """Whether nothing will be told any more."""
        return self._has_ended

    def end(self) -> None:
        """End all streams, each in its own task; the last one ends the feed's. May be called from any thread."""
        self._has_ended = True
        with contextlib.suppress(RuntimeError):  # the loop is closed, and with it the streams
            self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        for stream in self._streams:
            stream.wake.set()

    async def serve(self, receive: Receive, send: Send, headers: Sequence[tuple[bytes, bytes]]) -> None:
        """Stream to one client, until it leaves, the server stops, the cache is closed, or for ten minutes."""
        stream = _Stream()
        self._streams.add(stream)
        if self._task is None:
            self._task = self._loop.create_task(self._run())
        gone = self._loop.create_task(_gone(receive))
        gone.add_done_callback(lambda _: stream.wake.set())
        try:
            # What the client does not take, or takes no more, is no trouble of the app.
            with contextlib.suppress(OSError, TimeoutError):
                await self._tell(stream, gone, send, headers)
        finally:
            self._streams.discard(stream)
            gone.cancel()
            ending: list[asyncio.Task[Any]] = [gone]
            if not self._streams:
                self._has_ended = True
                self._task.cancel()
                ending.append(self._task)
            await asyncio.wait(ending)

    async def _tell(
        self, stream: _Stream, gone: asyncio.Task[None], send: Send, headers: Sequence[tuple[bytes, bytes]]
    ) -> None:
        deadline = self._loop.time() + _LONGEST_STREAM
        await send({"type": "http.response.start", "status": 200, "headers": list(headers)})
        told: _Moment | None = None
        await _send(send, b"retry: 1000\n\n")
        while not (self._has_ended or gone.done() or self._loop.time() > deadline):
            moment = self._moment
            if moment is not None and moment is not told:
                await _send(send, moment.news(told))
                told = moment
                continue
            stream.wake.clear()
            await stream.wake.wait()
        if not gone.done():
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _run(self) -> None:
        tick = 0
        try:
            while not self._has_ended:
                due = self._loop.time() + _EVERY
                self._moment = await self._look(tick)
                self._wake()
                tick += 1
                await self._rest_until(due)
        except Exception:
            logger.exception("the dashboard's statistics failed")
        finally:
            self.end()

    async def _rest_until(self, due: float) -> None:
        while not self._has_ended and (left := due - self._loop.time()) > 0:
            await asyncio.sleep(min(left, _LOOK_EVERY))
            if _is_server_stopping():
                self.end()

    async def _look(self, tick: int) -> _Moment:
        management, before = self._management, self._moment
        if before is None or tick % _SELDOM == 0:
            self._all = await self._stats_of_all()
            top, top_at = _event("top", await management.top()), tick
        else:
            top, top_at = before.top, before.top_at
        seen = management.refusals_seen
        if before is not None and before.refusals_seen == seen:
            refusals = before.refusals
        else:
            refusals = _event("refusals", management.refusals())
        stats = _event("stats", {**self._all, "worker": management.report().as_json()})
        return _Moment(tick, stats, top, top_at, refusals, seen)

    async def _stats_of_all(self) -> dict[str, Any]:
        try:
            async with asyncio.timeout(_REDIS_PATIENCE):
                stats = await self._management.stats()
        except TimeoutError:
            own = self._management.report().as_json()
            shared = self._management.cache.workers is not None
            stats = {"shared": shared, "total": own, "workers": [own], "workers_known": False}
        return {
            "shared": stats["shared"],
            "total": stats["total"],
            "workers": len(stats["workers"]),
            "workers_known": stats["workers_known"],
        }


async def _send(send: Send, body: bytes) -> None:
    async with asyncio.timeout(_CLIENT_PATIENCE):
        await send({"type": "http.response.body", "body": body, "more_body": True})


async def _gone(receive: Receive) -> None:
    # Whatever is wrong with hearing a client, there is nobody there to be told more.
    with contextlib.suppress(Exception):
        while (await receive())["type"] != "http.disconnect":
            pass


def _is_server_stopping() -> bool:
    """
    Say whether uvicorn, in whose process this is, wants to stop.

    It waits for all responses to end before it tells the app, without a limit unless it was given one. An open stream
    would hold it up for ever, and nothing in ASGI says so. Its signal handler leads to it; elsewhere this is False.
    """
    server: Any = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    if getattr(server, "should_exit", None) is True:
        return True
    listeners: Any = getattr(server, "servers", None)
    if not isinstance(listeners, list):
        return False
    return any(not listener.is_serving() for listener in listeners if hasattr(listener, "is_serving"))
