"""
One call of the app, watched: what becomes of its response, and the copy that is kept of it.

The one rule: what the app sends goes on as it comes. Nothing waits for the copy, and no trouble with the copy is felt.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable, Coroutine
from time import perf_counter
from typing import Any, Final, Protocol

from echo_cache import policy
from echo_cache.asgi.types import App, Message, Receive, Scope
from echo_cache.cache import Cache, Lane, Ready
from echo_cache.coordination.exchange import Exchange, current_exchange
from echo_cache.coordination.lease import Lease, Outcome
from echo_cache.events import AppFailed
from echo_cache.fields import InvalidLength, parse_content_length
from echo_cache.model import Entry, Forward, Fwd, Headers, Refusal, Request, Validate
from echo_cache.options import RouteOptions
from echo_cache.policy.keys import visible_query
from echo_cache.policy.storing import NO_ROUTE, Admission, with_body
from echo_cache.policy.validation import without_conditions
from echo_cache.tallies import Tally

__all__ = ["READ_METHODS", "AppCall", "Head", "Settled", "Sink"]

logger = logging.getLogger("echo_cache")

READ_METHODS: Final = frozenset({"GET", "HEAD"})
_SERVER_ERRORS: Final = frozenset({500, 502, 503, 504})
_CLIENT_ERRORS: Final = frozenset(range(400, 500))
# With these the app hands the server a file instead of bytes, and there would be nothing to store.
_BODY_EXTENSIONS: Final = frozenset({"http.response.pathsend", "http.response.zerocopysend"})
# What a chunk costs beside its bytes: the bytes object's head and its place in a list.
_CHUNK_BYTES: Final = 64


class Head:
    """
    The head of a response that goes on to whoever may have it.

    tally: where those who share it are counted.
    told: what those were told who share it, by what differs between them: made once for hundreds that wait.
    """

    __slots__ = ("admission", "fwd", "headers", "message", "tally", "told")

    def __init__(self, message: Message, headers: Headers, admission: Admission | None, fwd: Fwd, tally: Tally) -> None:
        self.message = message
        self.headers = headers
        self.admission = admission
        self.fwd = fwd
        self.tally = tally
        self.told: dict[tuple[int, Fwd], list[tuple[bytes, bytes]]] = {}


class Settled:
    """
    A stored response in place of the app's: found in the store, validated, or stale in trouble.

    fwd: why the app was asked, None when it was not. shareable: whether it is for all who wait, or for the asker alone.
    ready: what plain requests are sent, made once for hundreds that wait; None until then.
    """

    __slots__ = ("entry", "fwd", "fwd_status", "ready", "shareable", "stale")

    def __init__(
        self,
        entry: Entry,
        fwd: Fwd | None = None,
        *,
        fwd_status: int | None = None,
        stale: bool = False,
        shareable: bool = True,
    ) -> None:
        self.entry = entry
        self.fwd = fwd
        self.fwd_status = fwd_status
        self.stale = stale
        self.shareable = shareable
        self.ready: Ready | None = None


class Sink(Protocol):
    """Where the response of one call of the app goes."""

    @property
    def keeps(self) -> bool:
        """Whether it holds on to what it is given, so that the app's buffers must be copied and are counted there."""
        ...

    async def early(self, message: Message) -> None: ...

    async def head(self, head: Head) -> None: ...

    async def body(self, message: Message, body: Any, more: bool) -> None: ...

    async def other(self, message: Message) -> None: ...

    async def settle(self, settled: Settled) -> None: ...

    def too_large(self) -> None: ...

    def end(self) -> None: ...


class AppCall:
    """One call of the app: at the head it decides what becomes of the response, then it keeps a copy of the body."""

    __slots__ = (
        *("_charged", "_hash", "app", "asked", "cache", "chunks", "complete", "conditions", "discarding", "entry"),
        *(
            "exchange",
            "fill",
            "fwd",
            "has_trailers",
            "kept",
            "key",
            "lane",
            "lease",
            "length",
            "mark",
            "mismatch",
            "pattern",
        ),
        *("began", "request", "request_time", "scope", "settled", "shareable", "sink", "size", "stale", "started"),
        "tally",
    )

    def __init__(
        self,
        app: App,
        cache: Cache,
        scope: Scope,
        request: Request,
        lane: Lane,
        pattern: RouteOptions | None,
        sink: Sink,
        decision: Validate | Forward,
        lease: Lease | None = None,
    ) -> None:
        self.app = app
        self.cache = cache
        self.scope = scope
        self.request = request
        # What the app is asked, in policy's eyes: for a fill, without the client's own conditions and ranges.
        self.asked = request
        self.lane = lane
        self.key = lane[0]
        self.pattern = pattern
        self.sink = sink
        # Other workers wait for the end of it; None when nobody does.
        self.lease = lease
        # Whether something came of it that is stored.
        self.kept = False
        if isinstance(decision, Validate):
            self.conditions = decision.conditions
            self.stale: Entry | None = decision.entry
            self.fill = True
        else:
            self.conditions = ()
            self.stale = decision.stale
            self.fill = decision.store
        self.fwd = decision.fwd
        self.exchange: Exchange
        # Where it is counted: known when the app's router has chosen a route.
        self.tally: Tally | None = None
        self._restart()

    def _restart(self) -> None:
        # What is known of the response of this run; the app's task alone changes it.
        self.began = perf_counter()
        self.request_time = self.cache.clock.time()
        self.mark = self.cache.log.position()
        self.settled = False
        self.started = False
        self.discarding = False
        self.mismatch = False
        self.shareable = False
        self.entry: Entry | None = None
        self.chunks: list[bytes] = []
        self.size = 0
        self.length: int | None = None
        self.has_trailers = False
        self.complete = False
        self._charged = 0
        self._hash: Any = None

    async def run(self, listen: Callable[[], Receive]) -> None:
        """
        Call the app, which hears what *listen* returns. Raises what it raises, unless a stale response may answer.

        *listen* is asked again if the app has to be.
        """
        self.cache.forwarded(self.key, self.fwd)
        try:
            await self._call(listen())
            if self.mismatch:
                # The app said 304 about something else: ask again, for the whole.
                self.conditions = ()
                self._restart()
                await self._call(listen())
        finally:
            self._release(Outcome.FAILED)  # nothing, where it was told already how it went
            self._tally()  # counted here, where the app has said nothing

    async def _call(self, receive: Receive) -> None:
        scope = self._inner_scope()
        self.exchange = Exchange(self.cache, self.key, scope, self.pattern or NO_ROUTE)
        token = current_exchange.set(self.exchange)
        failure: Exception | None = None
        try:
            await self.app(scope, receive, self.send)
        except Exception as error:
            if self.discarding:
                logger.exception("the app raised after a response in whose place a stored one was served")
                return
            if self.started or not self._may_fall_back():
                raise
            failure = error
        finally:
            current_exchange.reset(token)
            self._refuse(Refusal.INCOMPLETE)  # nothing, where the copy is complete
        if not self.started and self._may_fall_back():
            assert self.stale is not None
            if failure is not None:
                logger.error("the app failed; a stale response was served in its place", exc_info=failure)
            self.cache.emit(AppFailed(self.key, failure))
            await self._settle(Settled(self.stale, self.fwd, stale=True))

    def _inner_scope(self) -> Scope:
        """Return the scope that the app gets: the client's, but for what would make its answer unfit for others."""
        if self.pattern is None:
            return self.scope
        scope = dict(self.scope)
        if self.cache.options.ignored_query_parameters:
            scope["query_string"] = visible_query(self.request.query, self.cache.options)
        if self.fill:
            headers = without_conditions(self.request.headers)
            if len(headers) != len(self.request.headers):
                request = self.request
                self.asked = Request(
                    request.method,
                    request.scheme,
                    request.host,
                    request.path,
                    request.query,
                    tuple(headers),
                    request.path_is_decoded,
                    request.has_body,
                )
            headers += self.conditions
            scope["headers"] = headers
            extensions = scope.get("extensions")
            if extensions and not _BODY_EXTENSIONS.isdisjoint(extensions):
                scope["extensions"] = {name: extensions[name] for name in extensions if name not in _BODY_EXTENSIONS}
        return scope

    async def send(self, message: Message) -> None:
        """Take one message of the app."""
        if self.discarding:
            return
        kind = message["type"]
        if kind == "http.response.body" and self.started:
            await self._body(message)
        elif kind == "http.response.start" and not self.started:
            await self._start(message)
        elif not self.started:
            await self.sink.early(message)
        else:
            if kind == "http.response.start":
                self._refuse(Refusal.INCOMPLETE)  # a second head: the server has its word to say
            await self.sink.other(message)
            if _is_last(kind, message):
                self._end()

    async def _start(self, message: Message) -> None:
        sent = list(message.get("headers") or ())
        status: int = message["status"]
        self.started = True
        self.has_trailers = message.get("trailers", False)
        tally = self._tally()
        admission: Admission | None = None
        if self.pattern is not None or self.request.method not in READ_METHODS:
            try:
                headers = [(name.lower(), value) for name, value in sent]
                settled = None if self.stale is None else self._replaced(self.stale, status, headers)
                if self.mismatch:
                    return
                if settled is None:
                    admission = self._admit(status, headers)
                    if self.request.method not in READ_METHODS:
                        await self.cache.invalidate_by_request(self.request, status, headers)
            except Exception as error:
                self.cache.failed("head", error)
                settled = None
                self.discarding = self.mismatch = status == 304 and bool(self.conditions)
                if self.mismatch:
                    return
            if settled is not None:
                await self._settle(settled)
                return
            if self.fill and not self.shareable and status not in _CLIENT_ERRORS:
                # A 4xx is about one request: whoever sends odd ones must not end the sharing for all others.
                self._remember(None if admission is None else admission.refusal)
        if self.entry is None or not self.shareable:
            self._release(Outcome.NOT_SHARED)
        await self.sink.head(Head(message, sent, admission, self.fwd, tally))

    def _tally(self) -> Tally:
        """Return where this call is counted; counts it at first."""
        tally = self.tally
        if tally is None:
            try:
                route = self.exchange.route_pattern()
            except Exception as error:  # routes may be anything
                self.cache.failed("route", error)
                route = ""
            tally = self.tally = self.cache.tallies.of(route)
            tally.forwarded(self.fwd)
        return tally

    async def _settle(self, settled: Settled) -> None:
        self.settled = True
        await self.sink.settle(settled)

    def _remember(self, refusal: Refusal | None) -> None:
        """What came is not for others: the next requests of this lane need not wait for each other."""
        if refusal is not Refusal.SUSPECT_REQUEST:  # that lies in one request alone, and says nothing of the next
            self.cache.remember_uncacheable(self.lane)

    def _replaced(self, stale: Entry, status: int, headers: Headers) -> Settled | None:
        """Return the stored response that takes the place of this one, if one does."""
        if status == 304 and self.conditions:
            self.discarding = True
            return self._validated(stale, headers)
        if status in _SERVER_ERRORS and self._may_fall_back():
            self.discarding = True
            self.cache.emit(AppFailed(self.key, None))
            return Settled(stale, self.fwd, fwd_status=status, stale=True)
        return None

    def _validated(self, stale: Entry, headers: Headers) -> Settled | None:
        """The app says that the stored response still holds. Returns None when it speaks of another."""
        cache, key = self.cache, self.key
        admission = policy.freshen(
            stale,
            self.request,
            headers,
            request_time=self.request_time,
            response_time=cache.clock.time(),
            options=cache.options,
            route=self.exchange.route_options(),
            mark=self.mark,
        )
        if admission is None:
            self.mismatch = True
            return None
        if admission.refusal is None and admission.entry is not None:
            self._stored(cache.keep(key, admission.entry))
        elif admission.entry is None:
            cache.forget(key)
        if not admission.shareable:
            self._remember(admission.refusal)
        asker = admission.for_asker or admission.entry or stale
        return Settled(asker, self.fwd, fwd_status=304, shareable=admission.shareable)

    def _admit(self, status: int, headers: Headers) -> Admission | None:
        """Return the verdict on a response, and begin the copy; None where storing is out of the question."""
        cache, key = self.cache, self.key
        now = cache.clock.time()
        if self.request.method == "HEAD" and self.stale is not None:
            self._freshen_by_head(self.stale, status, headers, now)
        if not self.fill:
            return None
        admission = policy.admit(
            self.asked,
            status,
            headers,
            request_time=self.request_time,
            response_time=now,
            options=cache.options,
            route=self.exchange.route_options(),
            mark=self.mark,
        )
        entry = admission.entry
        if entry is not None:
            length = parse_content_length(headers)
            if length is InvalidLength.INVALID:
                admission = Admission(refusal=Refusal.INVALID_FIELD)
            elif self.has_trailers:
                admission = Admission(refusal=Refusal.TRAILERS)
            elif length is not None and length > cache.options.max_body_bytes:
                admission = Admission(refusal=Refusal.BODY_SIZE)
            else:
                self.entry = entry
                self.length = length
                self.shareable = admission.shareable
                if cache.options.generate_etag and entry.response.status == 200 and not _has_etag(entry):
                    self._hash = hashlib.blake2b(digest_size=16)
        if admission.refusal is not None:
            cache.refused(key, admission.refusal, self._tally().route)
        return admission

    def _freshen_by_head(self, stale: Entry, status: int, headers: Headers, now: float) -> None:
        cache, key = self.cache, self.key
        verdict = policy.freshen_by_head(
            stale,
            self.request,
            status,
            headers,
            request_time=self.request_time,
            response_time=now,
            options=cache.options,
            route=self.exchange.route_options(),
            mark=self.mark,
        )
        if verdict is None:
            return
        if verdict.entry is not None:
            cache.keep(key, verdict.entry)
        else:
            cache.forget(key)

    async def _body(self, message: Message) -> None:
        body = message.get("body", b"")
        more = message.get("more_body", False)
        if type(body) is not bytes and (self.entry is not None or self.sink.keeps):
            body = memoryview(body).tobytes()  # the app may use its buffer again; bytes(5) would be five NULs
        if self.entry is not None:
            self._copy(body)
            if not more and self.entry is not None:
                self._store(self.entry)
        if more:
            began = perf_counter()
            await self.sink.body(message, body, more)
            self.began += perf_counter() - began  # a client that is slow is not the app's work
        else:
            await self.sink.body(message, body, more)
        if not more and not self.has_trailers:
            self._end()

    def _copy(self, body: bytes) -> None:
        """Keep a copy, within the bounds of one body and of all that are being filled."""
        cache = self.cache
        self.size += len(body)
        self.chunks.append(body)
        charge = _CHUNK_BYTES if self.sink.keeps else _CHUNK_BYTES + len(body)
        self._charged += charge
        cache.filling_bytes += charge
        if self._hash is not None:
            self._hash.update(body)
        if (
            self.size > cache.options.max_body_bytes
            or cache.filling_bytes + cache.flights.held_bytes > cache.max_filling_bytes
        ):
            self._refuse(Refusal.BODY_SIZE)
            self._remember(Refusal.BODY_SIZE)
            self.sink.too_large()

    def _store(self, entry: Entry) -> None:
        """The body is complete: store it, before the client has its last byte."""
        body = self.chunks[0] if len(self.chunks) == 1 else b"".join(self.chunks)
        if self.length is not None and self.length != len(body):
            self._refuse(Refusal.INCOMPLETE)
            return
        etag = None if self._hash is None else b'"%s"' % self._hash.hexdigest().encode()
        try:
            tally = self._tally()
            tally.fills.observe(perf_counter() - self.began)
            self._stored(self.cache.keep(self.key, with_body(entry, body, etag, tally.route)))
        except Exception as error:
            self.cache.failed("store", error)
        self._drop_copy()

    def _refuse(self, reason: Refusal) -> None:
        if self.entry is not None:
            self._drop_copy()
            self.cache.refused(self.key, reason, self._tally().route)
            self._release(Outcome.NOT_SHARED)

    def _stored(self, task: asyncio.Task[None] | None) -> None:
        """Note that what came is stored; tell other workers as soon as they can find it."""
        self.kept = True
        if self.lease is not None:
            self._release(Outcome.DONE, self.cache.settled(task))

    def _release(self, outcome: Outcome, after: Coroutine[Any, Any, None] | None = None) -> None:
        lease, self.lease = self.lease, None
        if lease is not None:
            lease.release(outcome, after)

    def _drop_copy(self) -> None:
        self.entry = None
        self.chunks = []
        self.cache.filling_bytes -= self._charged
        self._charged = 0

    def _end(self) -> None:
        self.complete = True
        self.sink.end()

    def _may_fall_back(self) -> bool:
        """Say whether the stale response may answer, where the app raised, hung up or answered 5xx."""
        if self.stale is None or self.settled:
            return False
        cache = self.cache
        try:
            # As it stands now: it may have been invalidated while the app was failing.
            stale = cache.standing(self.key, self.stale)
            return stale is not None and policy.may_serve_on_error(
                self.request, stale, cache.clock.time(), cache.options
            )
        except Exception as error:
            cache.failed("stale-if-error", error)
            return False


def _has_etag(entry: Entry) -> bool:
    return b"etag" in [name for name, _ in entry.response.headers]


def _is_last(kind: str, message: Message) -> bool:
    """Say whether nothing follows a message that is neither head nor body."""
    if kind == "http.response.trailers":
        return not message.get("more_trailers", False)
    if kind == "http.response.zerocopysend":
        return not message.get("more_body", False)
    return kind == "http.response.pathsend"
