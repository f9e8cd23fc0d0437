"""
One request: answered from what is stored, from another request's call of the app, or from one of its own.

The one rule: a request that cannot share is never kept waiting, and one that waits is never harmed by who left.
"""

from __future__ import annotations

from typing import Any, Final, assert_never

from echo_cache import policy
from echo_cache.asgi.appcall import READ_METHODS, AppCall, Head, Settled, Sink
from echo_cache.asgi.types import App, Message, Receive, Scope, Send
from echo_cache.cache import UNANSWERED, Cache, Found, Lane, Ready
from echo_cache.coordination.exchange import current_exchange
from echo_cache.coordination.flight import ClientGone, Flight, Passenger, Stand, State
from echo_cache.coordination.lease import Lease, Leases
from echo_cache.coordination.logs import server_of
from echo_cache.coordination.marks import Verdict
from echo_cache.events import AppFailed
from echo_cache.fields import cache_status_member
from echo_cache.model import (
    CacheKey,
    Decision,
    Entry,
    Forward,
    Fwd,
    Headers,
    Request,
    Serve,
    StoredResponse,
    Unsatisfiable,
    Validate,
)
from echo_cache.options import RouteOptions
from echo_cache.policy.answers import NOT_IN_304, is_not_modified, told_to_client
from echo_cache.policy.fieldmap import joined_fields
from echo_cache.policy.keys import CREDENTIAL_FIELDS
from echo_cache.policy.validation import CONDITIONAL_FIELDS, conditions

__all__ = ["Responder"]

# Requests that are released find another flight or a stored response; after this many they call the app themselves.
_MAX_FLIGHTS: Final = 3
_PLAIN_MISS: Final = Forward(Fwd.URI_MISS)
_NOTHING: Final[Found] = (None, False)
_PAST: Final = Forward(Fwd.BYPASS, collapse=False, store=False)
_CLIENT_CONDITIONS: Final = frozenset({b"if-none-match", b"if-modified-since"})
# What one client wants of its own answer has no say in a refresh for all.
_PERSONAL_FIELDS: Final = CONDITIONAL_FIELDS | {b"cache-control", b"pragma"}
_DIRECTIVE_FIELDS: Final = frozenset({b"cache-control", b"pragma"})
_UNANSWERED: Final = StoredResponse(0, (), b"")


class Responder:
    """One request."""

    __slots__ = (
        "_aboard",
        "_below",
        "_heard",
        "_is_from_below",
        "_is_plain",
        "_is_plain_miss",
        "app",
        "cache",
        "client_receive",
        "client_send",
        "fwd",
        "lane",
        "pattern",
        "request",
        "scope",
    )

    def __init__(
        self,
        app: App,
        cache: Cache,
        scope: Scope,
        receive: Receive,
        send: Send,
        pattern: RouteOptions | None,
        lane: Lane | None,
        below: Found | None = None,
        aboard: Passenger | None = None,
    ) -> None:
        self.app = app
        self.cache = cache
        self.scope = scope
        self.client_receive = receive
        self.client_send = send
        self.pattern = pattern
        self.fwd = Fwd.BYPASS
        self.request: Request = policy.request_of_scope(scope)
        # Without conditions, range or directives; the hit path has found nothing for it in memory, and that decides it.
        self._is_plain = self._is_plain_miss = lane is not None
        if lane is None:
            lane = policy.primary_key(self.request, cache.options), _has_credentials(self.request.headers)
        self.lane: Lane = lane
        # What this request has found below memory, until it is decided on.
        self._below = below
        # A place on another request's call of the app that this one has already.
        self._aboard = aboard
        self._heard = False
        # Whether what is decided on was looked for below memory.
        self._is_from_below = False

    @property
    def key(self) -> CacheKey:
        """The primary key of the request."""
        return self.lane[0]

    async def respond(self) -> None:
        """Answer the request: from what is stored, from another's call of the app, or from one of its own."""
        flights = 0
        if self._aboard is not None:
            self._is_plain_miss = False
            self.fwd = Fwd.URI_MISS
            if await self._fly(self._aboard):
                return
            flights += not self._aboard.flight.overdue
        while True:
            decision: Decision
            if self.pattern is None or self._is_inner():
                decision = _PAST
            elif self._is_plain_miss:
                self._is_plain_miss = False
                decision = _PLAIN_MISS if self._below is None else self._decide_on_found(self._below)
            else:
                decision = await self._decide()
            match decision:
                case Serve(entry, stale, refresh):
                    if refresh:
                        self._refresh(entry, early=not stale)
                    if not await self._send_hit(entry, stale=stale):
                        await self._forward(_PAST)
                    return
                case Unsatisfiable():
                    await self._send_504()
                    return
                case Validate() | Forward():
                    if not _is_for_all(decision):
                        await self._forward(decision)
                        return
                    if flights == _MAX_FLIGHTS or self.cache.is_uncacheable(self.lane):
                        await self._forward(self._alone(decision))
                        return
                    self.fwd = decision.fwd
                    passenger = self._board(decision)
                    if passenger is None:
                        await self._forward(decision)
                        return
                    if await self._fly(passenger):
                        return
                    # Whom the deadline released is not to blame; counting it would end in a stampede on a slow app.
                    flights += not passenger.flight.overdue
                case unknown:
                    assert_never(unknown)

    # Deciding.

    def _is_inner(self) -> bool:
        """Say whether this very request is being handled by the same cache further out: it would wait for itself."""
        outer = current_exchange.get()
        return outer is not None and outer.cache is self.cache and outer.key == self.key

    async def _decide(self) -> Decision:
        """
        Decide on what is in memory, and for a request that shares no call of the app, on what is at any level.

        Those that share one look further once for all, in the flight.
        """
        cache = self.cache
        try:
            read = self.request.method in READ_METHODS
            entry, others = cache.find_nowait(self.key, self.request) if read else (None, False)
            decision = policy.decide(self.request, entry, cache.clock.time(), cache.options, other_variants=others)
        except Exception as error:
            cache.failed("decide", error)
            return _PAST
        if not cache.looks_further or (isinstance(decision, Serve) and not decision.stale):
            return decision
        if entry is not None:
            cache.store.unused()  # the look further down finds it again, and counts it
        if _is_for_all(decision):
            return decision
        # What is stale in memory may be fresh further down: memory has a shorter life of its own.
        if isinstance(decision, Forward) and decision.fwd in (Fwd.METHOD, Fwd.BYPASS):
            return decision
        return await self._look_further(decision)

    async def _look_further(self, decision: Decision) -> Decision:
        """Decide on what is at any level; *decision*, which is on memory alone, stands where that fails."""
        found = await self._find()
        self._is_from_below = True
        return decision if found is UNANSWERED else self._decide_on(found, decision)

    async def _find(self, *, anew: bool = False) -> Found:
        """Find what is at any level for this request; see Cache.find. Never raises."""
        try:
            return await self.cache.find(self.key, self.request.headers, anew=anew)
        except Exception as error:
            self.cache.failed("get", error)
            return UNANSWERED

    def _decide_on_found(self, below: Found) -> Decision:
        """Decide on what a look *below* memory has found; where that is nothing, memory may have it by now."""
        self._is_from_below = True
        try:
            if below[0] is None and self.cache.store.get_nowait(self.key) is not None:
                self.cache.store.unused()
                below = self.cache.find_nowait(self.key, self.request)
        except Exception as error:
            self.cache.failed("get_nowait", error)
        return _PLAIN_MISS if below == _NOTHING else self._decide_on(below)

    def _decide_on(self, found: Found, otherwise: Decision = _PAST) -> Decision:
        """Decide on what was *found*; *otherwise* stands where that fails."""
        cache = self.cache
        try:
            entry, others = found
            return policy.decide(self.request, entry, cache.clock.time(), cache.options, other_variants=others)
        except Exception as error:
            cache.failed("decide", error)
            return otherwise

    def _alone(self, decision: Validate | Forward) -> Validate | Forward:
        """
        Return *decision* for a request of a lane whose responses are not for others.

        Where nothing is likely to be stored, the client's own conditions go to the app: only that can answer 304.
        """
        if isinstance(decision, Forward) and any(name in CONDITIONAL_FIELDS for name, _ in self.request.headers):
            return Forward(decision.fwd, decision.stale, collapse=False, store=False)
        return decision

    # Sharing a call.

    def _flight_key(self, lane: Lane) -> tuple[Any, ...]:
        return (lane, self.cache.flight_key(self.key, self.request.headers))

    def _board(self, decision: Validate | Forward) -> Passenger | None:
        """Return a place on a flight that others may share, None where there is none."""

        async def pilot(flight: Flight) -> None:
            await self._pilot(flight, decision)

        cache = self.cache
        try:
            return cache.flights.board(
                self._flight_key(self.lane), pilot, self.client_receive, self._stand(), self._suits
            )
        except Exception as error:
            cache.failed("board", error)
            return None

    async def _fly(self, passenger: Passenger) -> bool:
        """Answer from what the flight of *passenger* brings. Returns False when that is not for this request."""
        try:
            return await self._ride(passenger)
        except ClientGone:
            return True
        finally:
            passenger.leave()

    def _suits(self, flight: Flight) -> bool:
        """Say whether what *flight* brings is newer than all invalidations of it, as far as can be known now."""
        log, limit = self.cache.log, self.cache.coordination.max_unsynced
        if flight.age() > limit and log.unheard_for() > limit:
            return False
        if flight.stand[0] == log.version:
            return True
        if flight.state is State.STREAMING:
            head: Head = flight.head
            entry = None if head.admission is None else head.admission.entry
            if entry is not None:
                return log.verdict(self.key, entry) is None
        return log.verdict(self.key, _unanswered(flight.stand[1])) is None

    def _stand(self) -> Stand:
        log = self.cache.log
        return log.version, log.position()

    def _refresh(self, entry: Entry, *, early: bool = False) -> None:
        """
        Start the background refresh of a stale *entry*, unless one is under way. RFC 5861 section 3.

        *early*: it is fresh still, so nobody has looked whether another worker has refreshed it.
        """
        cache = self.cache
        try:
            asked = conditions(entry)
            decision = Validate(entry, asked, Fwd.STALE) if asked else Forward(Fwd.STALE, stale=entry)
            key, credentials = self.lane
            if cache.is_unrefreshable(self.lane) or cache.flights.is_open(self._flight_key((key, not credentials))):
                return
            refresher = self._as_plain_get()

            async def pilot(flight: Flight) -> None:
                try:
                    # All levels were looked at for the stale answer: once is enough to ask, and to count.
                    refresher._below = entry, False
                    if early and await refresher._is_refreshed(flight):
                        return
                    if not await refresher._pilot(flight, decision):
                        cache.remember_unrefreshable(self.lane)
                except Exception as error:  # logged by the flight, or raised to those who came aboard
                    cache.remember_unrefreshable(self.lane)
                    cache.emit(AppFailed(key, error))
                    raise

            cache.flights.start_background(self._flight_key(self.lane), pilot, self._stand())
        except Exception as error:
            cache.failed("refresh", error)

    async def _is_refreshed(self, flight: Flight) -> bool:
        """Say whether another worker has refreshed what is to be refreshed; then all aboard have that."""
        if not self.cache.looks_further:
            return False
        found = self._decide_on(await self._find(anew=True))
        return isinstance(found, Serve) and self._settle(flight, found)

    def _as_plain_get(self) -> Responder:
        """Return the responder of a GET for the whole of what is asked for here, whatever part this request wanted."""
        headers = [line for line in self.request.headers if line[0] not in _PERSONAL_FIELDS]
        if self.request.method == "GET" and len(headers) == len(self.request.headers):
            return self
        scope = {**self.scope, "method": "GET", "headers": headers}
        return Responder(
            self.app, self.cache, scope, self.client_receive, self.client_send, self.pattern, (self.key, self.lane[1])
        )

    async def _pilot(self, flight: Flight, decision: Validate | Forward) -> bool:
        """
        Fly: look at all levels once for everyone aboard, agree with other workers on who calls the app, call it.

        Returns whether what came is stored.
        """
        cache = self.cache
        below, self._below = self._below, None
        if cache.looks_further and below is None:
            below = await self._find()
            found = decision if below is UNANSWERED else self._decide_on(below, decision)
            if isinstance(found, Serve):
                if self._settle(flight, found):
                    return True
            elif isinstance(found, Validate) or (isinstance(found, Forward) and found.store):
                decision = found
        lease: Lease | None = None
        if cache.leases is not None and self._may_have_anothers(decision) and not self._is_led_further_out():
            led = await self._lead(cache.leases, flight)
            if isinstance(led, Serve):
                self._settle(flight, led)
                return True
            lease = led
        call = self._app_call(_FlightSink(self, flight), decision, lease)
        await call.run(lambda: _empty_request(flight.over))
        return call.kept

    def _settle(self, flight: Flight, found: Serve) -> bool:
        """Let all aboard have what was *found*. Returns False where that is what is to be refreshed."""
        if found.refresh and flight.is_background:
            return False
        flight.settle(Settled(found.entry, stale=found.stale))
        if found.refresh:
            self._refresh(found.entry)
        return True

    async def _lead(self, leases: Leases, flight: Flight) -> Lease | Serve | None:
        """Return a lease on the call of the app, or what another worker's call has brought; None: call without."""

        async def look() -> Serve | None:
            found = self._decide_on(await self._find(anew=True))
            return found if isinstance(found, Serve) and not (found.refresh and flight.is_background) else None

        try:
            name = leases.name(self.cache.digest_of(self._flight_key(self.lane)))
            return await leases.lead(name, look, position=self.cache.log.position(), is_overtaken=self._is_overtaken)
        except Exception as error:
            self.cache.failed("lease", error)
            return None

    def _may_have_anothers(self, decision: Validate | Forward) -> bool:
        """Say whether what another worker's call brings, and stores, may answer this request."""
        if not (isinstance(decision, Validate) or decision.store):
            return False
        if _DIRECTIVE_FIELDS.isdisjoint([name for name, _ in self.request.headers]):
            return True
        # Not where the client asks for an answer of its own, or for a younger one than can be had.
        now = self.cache.clock.time()
        new = Entry(_UNANSWERED, now, now, now + 1.0, now + 1.0)
        return isinstance(policy.decide(self.request, new, now, self.cache.options), Serve)

    def _is_overtaken(self, position: int) -> bool:
        """Say whether what a call that began at *position* brings is invalidated already, as far as can be seen."""
        return self.cache.log.verdict(self.key, _unanswered(position)) is Verdict.GONE

    def _is_led_further_out(self) -> bool:
        """Say whether another cache over the same server, around this one, may have the lease: it would wait for us."""
        outer = current_exchange.get()
        return outer is not None and outer.key == self.key and _is_one_server(outer.cache, self.cache)

    def _app_call(self, sink: Sink, decision: Validate | Forward, lease: Lease | None = None) -> AppCall:
        return AppCall(self.app, self.cache, self.scope, self.request, self.lane, self.pattern, sink, decision, lease)

    async def _ride(self, passenger: Passenger) -> bool:
        """Take what the flight brings. Returns False when it is not for this request."""
        flight = passenger.flight
        while await passenger.known():
            if not passenger.early:
                break
            await self.client_send(passenger.early.pop(0))
        else:
            return False
        match flight.state:
            case State.FAILED:
                if flight.error is None:
                    return False
                raise flight.error_again()
            case State.SILENT:
                # The app has said nothing, and the server says what it says of such apps.
                return True
            case State.SETTLED:
                return await self._take(flight.outcome, passenger)
            case _:
                return await self._stream(flight.head, passenger)

    async def _stream(self, head: Head, passenger: Passenger) -> bool:
        """Send the response that *passenger* gets as it comes. Returns False when it is not for this request."""
        entry = None if head.admission is None else head.admission.entry
        unchanged = entry is not None and self._has_already(entry)
        if passenger.first:
            self.fwd = head.fwd
            await self._send_head(head, unchanged=unchanged)
        elif entry is None or not self._may_have(entry, passenger):
            return False
        else:
            await self._send_collapsed_head(head, entry, unchanged=unchanged)
        send = self.client_send
        if unchanged:
            # This client needs no more, the cache does.
            passenger.flight.carry_on()
            await send({"type": "http.response.body", "body": b""})
            return True
        while (item := await passenger.next()) is not None:
            if type(item) is bytes:
                await send({"type": "http.response.body", "body": item, "more_body": True})
            else:
                await send(dict(item))
        return True

    def _has_already(self, entry: Entry) -> bool:
        """Say whether the client's own condition finds unchanged what is being fetched for all."""
        if self._is_plain or entry.response.status != 200:
            return False
        if not any(name in _CLIENT_CONDITIONS for name, _ in self.request.headers):
            return False
        return is_not_modified(joined_fields(self.request.headers), entry.response.headers, entry.stored_at)

    def _may_have(self, entry: Entry, passenger: Passenger) -> bool:
        """Say whether a response that another request has brought about answers this one too."""
        cache = self.cache
        try:
            if entry.vary and not policy.matches(entry.vary, self.request.headers):
                return False
            # An invalidation while it waited is as good as one after it was answered; one before it boarded is not.
            return passenger.on_time or cache.log.verdict(self.key, entry) is None
        except Exception as error:
            cache.failed("share", error)
            return False

    async def _take(self, settled: Settled, passenger: Passenger) -> bool:
        """Answer from a stored response that a flight has settled on. Returns False when it is not for this request."""
        entry = settled.entry
        if self._is_plain and passenger.on_time and settled.fwd is None and not settled.stale:
            ready = self._ready_of(settled)
            if ready is not None:
                ready.tally.l2_hits += 1
                start = {"type": "http.response.start", "status": ready.status, "headers": ready.headers.copy()}
                await self.client_send(start)
                await self.client_send({"type": "http.response.body", "body": ready.body})
                return True
        if not passenger.first and not (settled.shareable and self._suits_settled(settled, passenger)):
            return False
        if settled.fwd is None:
            self._is_from_below = True
            sent = await self._send_hit(entry, stale=settled.stale)
        else:
            if passenger.first or self.fwd is not Fwd.REQUEST:
                self.fwd = settled.fwd
            sent = await self._send_settled(settled, collapsed=not passenger.first)
        if sent and not passenger.first and settled.fwd is not None:
            self.cache.tallies.of(entry.route).collapsed += 1
        return sent

    def _ready_of(self, settled: Settled) -> Ready | None:
        """Return what was found for all who wait as plain requests get it; None where that has to be decided."""
        entry, now = settled.entry, self.cache.clock.time()
        if entry.vary or now >= entry.fresh_until or entry.always_validate or (self.lane[1] and entry.anonymous_only):
            return None
        if settled.ready is None:
            settled.ready = self.cache.ready_of(entry, now)
        return settled.ready

    def _suits_settled(self, settled: Settled, passenger: Passenger) -> bool:
        """Say whether the stored response that others were content with is good for this request too."""
        entry, cache = settled.entry, self.cache
        try:
            now = cache.clock.time()
            if settled.fwd is None:
                # Stored long ago: it stands as it would if this request had found it.
                verdict = None if passenger.on_time else cache.log.verdict(self.key, entry)
                if verdict is Verdict.STALE and now >= entry.fresh_until:
                    verdict = None
                if verdict is not None:
                    return False
                decided = policy.decide(self.request, entry, now, cache.options)
                return policy.matches(entry.vary, self.request.headers) and isinstance(decided, Serve)
            if settled.stale:
                standing = cache.standing(self.key, entry)
                return (
                    standing is not None
                    and policy.matches(entry.vary, self.request.headers)
                    and policy.may_serve_on_error(self.request, standing, now, cache.options)
                )
        except Exception as error:
            cache.failed("share", error)
            return False
        return self._may_have(entry, passenger)

    # A call of its own.

    async def _forward(self, decision: Validate | Forward) -> None:
        """Call the app for this request alone, in the client's own task."""
        self.fwd = decision.fwd
        await self._app_call(_ClientSink(self), decision).run(self._own_receive)

    def _own_receive(self) -> Receive:
        """Return what the app hears: the client. When it is asked again, the client's request has been read."""
        if self._heard:
            return _empty_request(self._disconnect)
        self._heard = True
        return self.client_receive

    async def _disconnect(self) -> None:
        while (await self.client_receive())["type"] != "http.disconnect":
            pass

    # Sending.

    async def _send_hit(self, entry: Entry, *, stale: bool) -> bool:
        cache = self.cache
        status = cache_status_member(cache.name, hit=True, ttl=int(entry.fresh_until - cache.clock.time()))
        if not await self._send_stored(entry, status):
            return False
        tally = cache.tallies.of(entry.route)
        if self._is_from_below:
            tally.l2_hits += 1
        else:
            tally.l1_hits += 1
        tally.stale_hits += stale
        cache.note_hits(self.key, 1)
        return True

    async def _send_settled(self, settled: Settled, *, collapsed: bool) -> bool:
        cache = self.cache
        cache.tallies.of(settled.entry.route).rescued += settled.stale
        status = cache_status_member(
            cache.name,
            fwd=self.fwd,
            fwd_status=settled.fwd_status,
            ttl=int(settled.entry.fresh_until - cache.clock.time()),
            collapsed=collapsed,
            detail="stale-if-error" if settled.stale else None,
        )
        return await self._send_stored(settled.entry, status)

    async def _send_head(self, head: Head, *, unchanged: bool = False) -> None:
        """Send the app's own head, with Cache-Status and with what its route tells clients."""
        admission = head.admission
        entry = None if admission is None else admission.entry
        refusal = None if admission is None else admission.refusal
        told = list(head.headers) if entry is None else told_to_client(head.headers, entry.client_ttl, 0)
        told.append(
            (
                b"cache-status",
                cache_status_member(
                    self.cache.name,
                    fwd=self.fwd,
                    ttl=None if entry is None else round(entry.fresh_until - entry.stored_at),
                    stored=entry is not None,
                    detail=None if refusal is None else refusal.value,
                ),
            )
        )
        await self._send_start(head.message, told, unchanged=unchanged)

    async def _send_start(self, message: Message, headers: list[tuple[bytes, bytes]], *, unchanged: bool) -> None:
        """Send a head as it is, or as the 304 to a client that has what it announces."""
        if unchanged:
            message = {**message, "status": 304}
            headers = [line for line in headers if line[0].lower() not in NOT_IN_304]
        await self.client_send({**message, "headers": headers})

    async def _send_collapsed_head(self, head: Head, entry: Entry, *, unchanged: bool) -> None:
        """Send the head of a response that another request has brought about: the fields that may be shared."""
        head.tally.collapsed += 1
        age = max(0, int(self.cache.clock.time() - entry.generated_at))
        fwd = self.fwd if self.fwd is Fwd.REQUEST else head.fwd
        told = head.told.get((age, fwd))
        if told is None:
            told = head.told[age, fwd] = told_to_client(entry.response.headers, entry.client_ttl, age)
            told.append((b"age", b"%d" % age))
            ttl = round(entry.fresh_until - entry.stored_at)
            status = cache_status_member(self.cache.name, fwd=fwd, ttl=ttl, collapsed=True)
            told.append((b"cache-status", status))
        # A copy, since whoever stands outside may add fields to what it is given.
        headers = told.copy()
        message: Message = {"type": "http.response.start", "status": entry.response.status, "headers": headers}
        if unchanged:
            await self._send_start(message, headers, unchanged=True)
        else:
            await self.client_send(message)

    async def _send_stored(self, entry: Entry, status: bytes) -> bool:
        """Send what the request gets from *entry*. Returns False, with nothing sent, when that cannot be told."""
        try:
            answer = policy.answer(self.request, entry, self.cache.clock.time())
        except Exception as error:
            self.cache.failed("answer", error)
            return False
        answer.headers.append((b"cache-status", status))
        await self.client_send({"type": "http.response.start", "status": answer.status, "headers": answer.headers})
        await self.client_send({"type": "http.response.body", "body": answer.body})
        return True

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


class _FlightSink:
    """Sends to everyone aboard a flight."""

    __slots__ = ("_flight", "_responder")

    keeps: Final = True

    def __init__(self, responder: Responder, flight: Flight) -> None:
        self._responder = responder
        self._flight = flight

    async def early(self, message: Message) -> None:
        self._flight.hint(dict(message))

    async def head(self, head: Head) -> None:
        responder, flight = self._responder, self._flight
        admission = head.admission
        if admission is None or not admission.shareable:
            flight.shared = False
        elif admission.entry is not None and admission.entry.vary:
            cache = responder.cache
            cache.remember_vary(responder.key, admission.entry.vary)
            cache.flights.register(flight, responder._flight_key(responder.lane))
        flight.open(head)

    async def body(self, message: Message, body: bytes, more: bool) -> None:
        flight = self._flight
        if more:
            flight.push(body, len(body))
        else:
            flight.push({**message, "body": body}, len(body))
        if not flight.keeping:
            await flight.room()

    async def other(self, message: Message) -> None:
        self._flight.push(dict(message))

    async def settle(self, settled: Settled) -> None:
        self._flight.settle(settled)

    def too_large(self) -> None:
        self._flight.stop_keeping()

    def end(self) -> None:
        self._flight.land()


class _ClientSink:
    """Sends to one client."""

    __slots__ = ("_responder", "_send")

    keeps: Final = False

    def __init__(self, responder: Responder) -> None:
        self._responder = responder
        self._send = responder.client_send

    async def early(self, message: Message) -> None:
        await self._send(message)

    async def head(self, head: Head) -> None:
        await self._responder._send_head(head)

    async def body(self, message: Message, body: bytes, more: bool) -> None:
        await self._send(message if message.get("body") is body else {**message, "body": body})

    async def other(self, message: Message) -> None:
        await self._send(message)

    async def settle(self, settled: Settled) -> None:
        await self._responder._send_settled(settled, collapsed=False)

    def too_large(self) -> None:
        pass

    def end(self) -> None:
        pass


def _has_credentials(headers: Headers) -> bool:
    return not CREDENTIAL_FIELDS.isdisjoint([name for name, _ in headers])


def _is_for_all(decision: Decision) -> bool:
    """Say whether others may share the call of the app that *decision* asks for."""
    return isinstance(decision, Validate) or (isinstance(decision, Forward) and decision.collapse)


def _is_one_server(one: Cache, other: Cache) -> bool:
    servers = [server_of(cache.store) for cache in (one, other)]
    return len({None if server is None else (server.location, server.prefix) for server in servers}) == 1


def _unanswered(mark: int) -> Entry:
    """Return an entry that stands for whatever a fill since *mark* will bring, to ask the log about."""
    return Entry(_UNANSWERED, 0.0, 0.0, 0.0, 0.0, mark=mark)


def _empty_request(disconnect: Any) -> Receive:
    """Return what an app hears of a request without a body, until *disconnect* returns."""
    begun = False

    async def receive() -> Message:
        nonlocal begun
        if not begun:
            begun = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await disconnect()
        return {"type": "http.disconnect"}

    return receive
