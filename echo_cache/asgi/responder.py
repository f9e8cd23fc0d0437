"""
One request: decided on what is stored, answered from it, from another request's call of the app, or from one of its own.

The one rule: a request that cannot share is never kept waiting, and one that waits is never harmed by who left.
"""

from __future__ import annotations

import logging
from typing import Any, Final, assert_never

from echo_cache import policy
from echo_cache.asgi.appcall import READ_METHODS, AppCall, Settled, Sink
from echo_cache.asgi.types import App, Message, Receive, Scope, Send
from echo_cache.cache import Cache
from echo_cache.coordination.flight import ClientGone, Flight, Passenger, State
from echo_cache.events import AppFailed
from echo_cache.fields import cache_status_member
from echo_cache.model import (
    CacheKey,
    Decision,
    Entry,
    Forward,
    Fwd,
    Headers,
    Refusal,
    Request,
    Serve,
    Unsatisfiable,
    Validate,
)
from echo_cache.options import RouteOptions
from echo_cache.policy.answers import told_to_client
from echo_cache.policy.storing import Admission
from echo_cache.policy.validation import conditions

__all__ = ["Responder"]

logger = logging.getLogger("echo_cache")

# Requests that are released find another flight or a stored response; after this many they call the app themselves.
_MAX_FLIGHTS: Final = 3
# A refusal for a reason that lies in one request says nothing of the others.
_PERSONAL_REFUSALS: Final = frozenset({Refusal.SUSPECT_REQUEST, Refusal.HOST})


class Responder:
    """One request."""

    __slots__ = ("app", "cache", "client_receive", "client_send", "fwd", "key", "pattern", "request", "scope")

    def __init__(
        self, app: App, cache: Cache, scope: Scope, receive: Receive, send: Send, pattern: RouteOptions | None
    ) -> None:
        self.app = app
        self.cache = cache
        self.scope = scope
        self.client_receive = receive
        self.client_send = send
        self.pattern = pattern
        self.fwd = Fwd.BYPASS
        self.request: Request = policy.request_of_scope(scope)
        self.key: CacheKey = policy.primary_key(self.request, cache.options)

    async def respond(self) -> None:
        """Answer the request: from what is stored, from another's call of the app, or from one of its own."""
        if self.pattern is None:
            await self._forward(Forward(Fwd.BYPASS, collapse=False, store=False))
            return
        for attempt in range(_MAX_FLIGHTS + 1):
            decision = self._decide_nowait()
            if not isinstance(decision, Serve | Validate) and not (isinstance(decision, Forward) and decision.collapse):
                decision = await self._decide(decision)
            match decision:
                case Serve(entry, stale, refresh):
                    if refresh:
                        self._refresh(entry)
                    await self._send_stored(entry, self._hit_status(entry, stale=stale))
                    return
                case Unsatisfiable():
                    await self._send_504()
                    return
                case Validate() | Forward(collapse=True) if attempt < _MAX_FLIGHTS and not self._stands_alone():
                    self.fwd = decision.fwd
                    if await self._fly(decision):
                        return
                case Validate() | Forward():
                    await self._forward(decision)
                    return
                case unknown:
                    assert_never(unknown)

    # Deciding.

    def _decide_nowait(self) -> Decision:
        """Decide on what is in memory."""
        cache = self.cache
        try:
            entry, others = (
                cache.find_nowait(self.key, self.request) if self.request.method in READ_METHODS else (None, False)
            )
            return policy.decide(self.request, entry, cache.clock.time(), cache.options, other_variants=others)
        except Exception as error:
            cache.failed("decide", error)
            return Forward(Fwd.BYPASS, collapse=False, store=False)

    async def _decide(self, decision: Decision) -> Decision:
        """Decide on what is at any level, where *decision*, on memory alone, would not share a call of the app."""
        cache = self.cache
        if isinstance(decision, Forward) and decision.fwd in (Fwd.METHOD, Fwd.BYPASS):
            return decision
        try:
            entry, others = await cache.find(self.key, self.request)
            return policy.decide(self.request, entry, cache.clock.time(), cache.options, other_variants=others)
        except Exception as error:
            cache.failed("decide", error)
            return Forward(Fwd.BYPASS, collapse=False, store=False)

    def _stands_alone(self) -> bool:
        return self.cache.is_uncacheable(self.lane)

    @property
    def lane(self) -> tuple[CacheKey, bool]:
        """The key, and whether the request has credentials: the two kinds do not wait for each other."""
        return self.key, any(name in (b"cookie", b"authorization") for name, _ in self.request.headers)

    # Sharing a call.

    def _flight_key(self) -> tuple[Any, ...]:
        return (*self.lane, self.cache.flight_key(self.key, self.request))

    async def _fly(self, decision: Validate | Forward) -> bool:
        """Answer from a call of the app that others may share. Returns False when this request may not."""

        async def pilot(flight: Flight) -> None:
            await self._pilot(flight, decision)

        passenger = self.cache.flights.board(self._flight_key(), pilot, self.client_receive)
        try:
            return await self._ride(passenger)
        except ClientGone:
            return True
        finally:
            await passenger.leave()

    def _refresh(self, entry: Entry) -> None:
        """Start the background refresh of a stale *entry*, unless one is under way. RFC 5861 section 3."""
        asked = conditions(entry)
        decision = Validate(entry, asked, Fwd.STALE) if asked else Forward(Fwd.STALE, stale=entry)

        async def pilot(flight: Flight) -> None:
            try:
                await self._pilot(flight, decision)
            except Exception as error:
                logger.exception("the app failed in a background refresh")
                self.cache.emit(AppFailed(self.key, error))

        self.cache.flights.start_background(self._flight_key(), pilot)

    def _app_call(self, sink: Sink, decision: Validate | Forward) -> AppCall:
        return AppCall(self.app, self.cache, self.scope, self.request, self.key, self.pattern, sink, decision)

    async def _pilot(self, flight: Flight, decision: Validate | Forward) -> None:
        """Fly: look at all levels once for everyone aboard, then call the app."""
        if self.cache.looks_further:
            found = await self._decide(decision)
            if isinstance(found, Serve) and not found.refresh:
                flight.settle(Settled(found.entry, hit=True, stale=found.stale))
                return
            if isinstance(found, Validate | Forward):
                decision = found
        sink = _FlightSink(self, flight)
        settled = await self._app_call(sink, decision).run(_flight_receive(flight))
        if settled is not None:
            flight.settle(settled)

    async def _ride(self, passenger: Passenger) -> bool:
        """Take what the flight brings. Returns False when it is not for this request."""
        flight = passenger.flight
        if not await passenger.known():
            return False
        if flight.state is State.FAILED:
            return self._raise(flight.error)
        if not passenger.first:
            self.cache.collapsed += 1
        if flight.state is State.SETTLED:
            settled: Settled = flight.outcome
            return await self._take(settled, first=passenger.first)
        head: _FlightHead = flight.head
        entry = head.admission.entry if head.admission is not None else None
        if not passenger.first and (entry is None or not policy.matches(entry.vary, self.request.headers)):
            self.cache.collapsed -= 1
            return False
        status = cache_status_member(
            self.cache.name,
            fwd=self.fwd,
            ttl=None if entry is None else int(entry.fresh_until - entry.stored_at),
            stored=entry is not None and passenger.first,
            collapsed=not passenger.first,
            detail=head.detail,
        )
        await self._send_head(head.message, head.headers, entry, status)
        while (item := await passenger.next()) is not None:
            await self.client_send(dict(item))
        return True

    def _raise(self, error: BaseException | None) -> bool:
        """Raise what the app raised. Returns False for a call that was cancelled: that is nobody's answer."""
        if error is None or not isinstance(error, Exception):
            return False
        raise error

    async def _take(self, settled: Settled, *, first: bool) -> bool:
        """Answer from a stored response that a flight has settled on."""
        entry = settled.entry
        if not first:
            if not policy.matches(entry.vary, self.request.headers):
                return False
            if settled.hit:
                decision = policy.decide(self.request, entry, self.cache.clock.time(), self.cache.options)
                if not isinstance(decision, Serve):
                    return False
        if settled.hit:
            status = self._hit_status(entry, stale=settled.stale)
        else:
            status = self._settled_status(settled, collapsed=not first)
        await self._send_stored(entry, status)
        return True

    # A call of its own.

    async def _forward(self, decision: Validate | Forward) -> None:
        """Call the app for this request alone, in the client's own task."""
        self.fwd = decision.fwd
        sink = _ClientSink(self)
        settled = await self._app_call(sink, decision).run(self.client_receive)
        if settled is not None:
            await self._send_stored(settled.entry, self._settled_status(settled, collapsed=False))

    # Sending.

    def _hit_status(self, entry: Entry, *, stale: bool) -> bytes:
        cache = self.cache
        cache.hits += 1
        cache.stale_hits += stale
        return cache_status_member(cache.name, hit=True, ttl=int(entry.fresh_until - cache.clock.time()))

    def _settled_status(self, settled: Settled, *, collapsed: bool) -> bytes:
        cache = self.cache
        cache.stale_hits += settled.stale
        return cache_status_member(
            cache.name,
            fwd=self.fwd,
            fwd_status=settled.fwd_status,
            ttl=int(settled.entry.fresh_until - cache.clock.time()),
            collapsed=collapsed,
            detail="stale-if-error" if settled.stale else None,
        )

    async def _send_head(self, message: Message, headers: Headers, entry: Entry | None, status: bytes) -> None:
        """Send the app's own head, with Cache-Status and with what its route tells clients."""
        told = list(headers) if entry is None else told_to_client(headers, entry.client_ttl, 0)
        told.append((b"cache-status", status))
        await self.client_send({**message, "headers": told})

    async def _send_stored(self, entry: Entry, status: bytes) -> None:
        answer = policy.answer(self.request, entry, self.cache.clock.time())
        answer.headers.append((b"cache-status", status))
        await self.client_send({"type": "http.response.start", "status": answer.status, "headers": answer.headers})
        await self.client_send({"type": "http.response.body", "body": answer.body})

    async def _send_504(self) -> None:
        """The one error of the cache's own: the client asked for nothing but a stored response. RFC 9111 5.2.1.7."""
        body = b"" if self.request.method == "HEAD" else b"no stored response, and only-if-cached was asked for\n"
        status = cache_status_member(self.cache.name, detail="only-if-cached")
        headers = [
            (b"content-type", b"text/plain; charset=utf-8"),
            (b"content-length", b"%d" % len(body)),
            (b"cache-status", status),
        ]
        await self.client_send({"type": "http.response.start", "status": 504, "headers": headers})
        await self.client_send({"type": "http.response.body", "body": body})


class _FlightHead:
    """The head of a response that a flight brings."""

    __slots__ = ("admission", "detail", "headers", "message")

    def __init__(self, message: Message, headers: Headers, admission: Admission | None) -> None:
        self.message = message
        self.headers = headers
        self.admission = admission
        self.detail = None if admission is None or admission.refusal is None else admission.refusal.value


class _FlightSink:
    """Sends to everyone aboard a flight."""

    def __init__(self, responder: Responder, flight: Flight) -> None:
        self._responder = responder
        self._flight = flight

    async def head(self, message: Message, headers: Headers, admission: Admission | None) -> None:
        responder, flight = self._responder, self._flight
        cache = responder.cache
        if admission is None or not admission.shareable:
            flight.shared = False
            if admission is not None and admission.refusal is not None and admission.refusal not in _PERSONAL_REFUSALS:
                cache.remember_uncacheable(responder.lane)
        elif admission.entry is not None and admission.entry.vary:
            cache.remember_vary(responder.key, admission.entry.vary)
            cache.flights.register(flight, responder._flight_key())
        flight.open(_FlightHead(message, headers, admission))

    async def item(self, message: Message, size: int) -> None:
        self._flight.push(message, size)
        if not self._flight.keeping:
            await self._flight.room()

    def too_large(self) -> None:
        self._flight.stop_keeping()
        self._responder.cache.remember_uncacheable(self._responder.lane)

    def end(self) -> None:
        self._flight.land()


class _ClientSink:
    """Sends to one client."""

    def __init__(self, responder: Responder) -> None:
        self._responder = responder

    async def head(self, message: Message, headers: Headers, admission: Admission | None) -> None:
        responder = self._responder
        entry = None if admission is None else admission.entry
        refusal = None if admission is None else admission.refusal
        status = cache_status_member(
            responder.cache.name,
            fwd=responder.fwd,
            ttl=None if entry is None else int(entry.fresh_until - entry.stored_at),
            stored=entry is not None,
            detail=None if refusal is None else refusal.value,
        )
        await responder._send_head(message, headers, entry, status)

    async def item(self, message: Message, size: int) -> None:
        await self._responder.client_send(message)

    def too_large(self) -> None:
        pass

    def end(self) -> None:
        pass


def _flight_receive(flight: Flight) -> Receive:
    """Return what the app hears on a flight: a request without a body, and a disconnect when all have left."""
    begun = False

    async def receive() -> Message:
        nonlocal begun
        if not begun:
            begun = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await flight.over.wait()
        return {"type": "http.disconnect"}

    return receive
