"""
One call of the app, watched: what becomes of its response, and the copy that is kept of it.

The one rule: what the app sends goes on as it comes. Nothing waits for the copy, and no trouble with the copy is felt.
"""

from __future__ import annotations

import hashlib
import logging
from typing import Final, Protocol

from echo_cache import policy
from echo_cache.asgi.types import App, Message, Receive, Scope
from echo_cache.cache import Cache
from echo_cache.coordination.exchange import Exchange, current_exchange
from echo_cache.events import AppFailed
from echo_cache.fields import InvalidLength, parse_content_length
from echo_cache.model import CacheKey, Entry, Forward, Headers, Refusal, Request, Validate
from echo_cache.options import RouteOptions
from echo_cache.policy.keys import visible_query
from echo_cache.policy.storing import NO_ROUTE, Admission, with_body
from echo_cache.policy.validation import without_conditions

__all__ = ["READ_METHODS", "AppCall", "Settled", "Sink"]

logger = logging.getLogger("echo_cache")

READ_METHODS: Final = frozenset({"GET", "HEAD"})
_SERVER_ERRORS: Final = frozenset({500, 502, 503, 504})
# With these the app hands the server a file instead of bytes, and there would be nothing to store.
_BODY_EXTENSIONS: Final = frozenset({"http.response.pathsend", "http.response.zerocopysend"})


class Sink(Protocol):
    """Where the response of one call of the app goes."""

    async def head(self, message: Message, headers: Headers, admission: Admission | None) -> None: ...

    async def item(self, message: Message, size: int) -> None: ...

    def too_large(self) -> None: ...

    def end(self) -> None: ...


class Settled:
    """A stored response in place of the app's: found in the store, validated, or stale in trouble."""

    __slots__ = ("entry", "fwd_status", "hit", "stale")

    def __init__(self, entry: Entry, *, hit: bool = False, fwd_status: int | None = None, stale: bool = False) -> None:
        self.entry = entry
        self.hit = hit
        self.fwd_status = fwd_status
        self.stale = stale


class AppCall:
    """
    One call of the app: at the head it decides what becomes of the response, then it keeps a copy of the body.

    run returns the stored response that takes the place of the app's, if one does.
    """

    def __init__(
        self,
        app: App,
        cache: Cache,
        scope: Scope,
        request: Request,
        key: CacheKey,
        pattern: RouteOptions | None,
        sink: Sink,
        decision: Validate | Forward,
    ) -> None:
        self.app = app
        self.cache = cache
        self.scope = scope
        self.request = request
        self.key = key
        self.pattern = pattern
        self.sink = sink
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
        self._restart()

    def _restart(self) -> None:
        # What is known of the response of this run; the app's task alone changes it.
        self.request_time = self.cache.clock.time()
        self.mark = self.cache.log.position()
        self.settled: Settled | None = None
        self.started = False
        self.discarding = False
        self.mismatch = False
        self.entry: Entry | None = None
        self.chunks: list[bytes] = []
        self.size = 0
        self.length: int | None = None
        self.has_trailers = False
        self.complete = False

    async def run(self, receive: Receive) -> Settled | None:
        """Call the app. Raises what it raises, unless a stale response may take its place."""
        self.cache.forwarded(self.key, self.fwd)
        await self._call(receive)
        if self.mismatch:
            # The app said 304 about something else: ask again, for the whole.
            self.conditions = ()
            self._restart()
            await self._call(receive)
        return self.settled

    async def _call(self, receive: Receive) -> None:
        scope = self._inner_scope()
        self.exchange = Exchange(self.cache, self.key, scope, self.pattern or NO_ROUTE)
        token = current_exchange.set(self.exchange)
        try:
            await self.app(scope, receive, self.send)
        except Exception as error:
            if self.discarding or self.complete:
                logger.exception("the app raised after its response")
            elif self.started or not self._fall_back(error):
                raise
        finally:
            current_exchange.reset(token)
            self._drop_copy()
        if not self.started:
            self._fall_back(None)

    def _inner_scope(self) -> Scope:
        """Return the scope that the app gets: the client's, but for what would make its answer unfit for others."""
        if self.pattern is None:
            return self.scope
        scope = dict(self.scope)
        scope["query_string"] = visible_query(self.request.query, self.cache.options)
        if self.fill:
            headers = without_conditions(self.request.headers)
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
        if kind == "http.response.body":
            await self._body(message)
        elif kind == "http.response.start":
            await self._start(message)
        else:
            await self.sink.item(message, 0)
            last_trailers = kind == "http.response.trailers" and not message.get("more_trailers", False)
            if last_trailers or kind == "http.response.pathsend":
                self._end()

    async def _start(self, message: Message) -> None:
        status: int = message["status"]
        sent: Headers = message.get("headers", ())
        self.started = True
        self.has_trailers = message.get("trailers", False)
        admission: Admission | None = None
        if self.pattern is not None or self.request.method not in READ_METHODS:
            try:
                headers = [(name.lower(), value) for name, value in sent]
                if self._replaced(status, headers):
                    self.discarding = True
                    return
                admission = self._admit(status, headers)
                if self.request.method not in READ_METHODS:
                    await self.cache.invalidate_by_request(self.request, status, headers)
            except Exception as error:
                self.cache.failed("head", error)
        await self.sink.head(message, list(sent), admission)

    def _replaced(self, status: int, headers: Headers) -> bool:
        """Say whether a stored response takes the place of this one, and settle on it."""
        if self.stale is None:
            return False
        if status == 304 and self.conditions:
            self._validated(headers)
            return True
        if status in _SERVER_ERRORS and self._may_fall_back():
            self.cache.emit(AppFailed(self.key, None))
            self.settled = Settled(self.stale, fwd_status=status, stale=True)
            return True
        return False

    def _validated(self, headers: Headers) -> None:
        """The app says that the stored response still holds."""
        assert self.stale is not None
        cache, key = self.cache, self.key
        admission = policy.freshen(
            self.stale,
            self.request,
            headers,
            request_time=self.request_time,
            response_time=cache.clock.time(),
            options=cache.options,
            route=self._route(),
            mark=self.mark,
        )
        if admission is None:
            self.mismatch = True
            return
        if admission.entry is not None:
            cache.keep(key, admission.entry)
        else:
            cache.forget(key)
        self.settled = Settled(admission.entry or self.stale, fwd_status=304)

    def _admit(self, status: int, headers: Headers) -> Admission | None:
        """Return the verdict on a response, and begin the copy; None where storing is out of the question."""
        cache, key = self.cache, self.key
        now = cache.clock.time()
        if self.request.method == "HEAD" and self.stale is not None:
            self._freshen_by_head(status, headers, now)
        if not self.fill:
            return None
        admission = policy.admit(
            self.request,
            status,
            headers,
            request_time=self.request_time,
            response_time=now,
            options=cache.options,
            route=self._route(),
            mark=self.mark,
        )
        if admission.entry is not None:
            length = parse_content_length(headers)
            if length is InvalidLength.INVALID:
                admission = Admission(refusal=Refusal.INVALID_FIELD)
            elif self.has_trailers:
                admission = Admission(refusal=Refusal.TRAILERS)
            elif length is not None and length > cache.options.max_body_bytes:
                admission = Admission(refusal=Refusal.BODY_SIZE)
            else:
                self.entry = admission.entry
                self.length = length
        if admission.refusal is not None:
            cache.refused(key, admission.refusal)
        return admission

    def _freshen_by_head(self, status: int, headers: Headers, now: float) -> None:
        assert self.stale is not None
        cache, key = self.cache, self.key
        verdict = policy.freshen_by_head(
            self.stale,
            self.request,
            status,
            headers,
            request_time=self.request_time,
            response_time=now,
            options=cache.options,
            route=self._route(),
            mark=self.mark,
        )
        if verdict is None:
            return
        if verdict.entry is not None:
            cache.keep(key, verdict.entry)
        else:
            cache.forget(key)

    def _route(self) -> RouteOptions:
        return self.exchange.route_options()

    async def _body(self, message: Message) -> None:
        body = message.get("body", b"")
        if type(body) is not bytes:
            body = bytes(body)  # the app may use its buffer again
            message = {**message, "body": body}
        more = message.get("more_body", False)
        if self.entry is not None:
            self._copy(body)
            if not more and self.entry is not None:
                self._store(self.entry)
        await self.sink.item(message, len(body))
        if not more and not self.has_trailers:
            self._end()

    def _copy(self, body: bytes) -> None:
        """Keep a copy, within the bounds of one body and of all that are being filled."""
        self.size += len(body)
        self.cache.filling_bytes += len(body)
        self.chunks.append(body)
        if self.size > self.cache.options.max_body_bytes or self.cache.filling_bytes > self.cache.max_filling_bytes:
            self._refuse(Refusal.BODY_SIZE)
            self.sink.too_large()

    def _store(self, entry: Entry) -> None:
        """The body is complete: store it, before the client has its last byte."""
        body = self.chunks[0] if len(self.chunks) == 1 else b"".join(self.chunks)
        if self.length is not None and self.length != len(body):
            self._refuse(Refusal.INCOMPLETE)
            return
        etag = None
        if self.cache.options.generate_etag and entry.response.status == 200:
            etag = _own_etag(entry, body)
        self.cache.keep(self.key, with_body(entry, body, etag))
        self._drop_copy()

    def _refuse(self, reason: Refusal) -> None:
        self._drop_copy()
        self.cache.refused(self.key, reason)

    def _drop_copy(self) -> None:
        self.entry = None
        self.chunks = []
        self.cache.filling_bytes -= self.size
        self.size = 0

    def _end(self) -> None:
        self.complete = True
        self.sink.end()

    def _fall_back(self, error: Exception | None) -> bool:
        """The app raised or hung up before its response began: settle on a stale one where that is allowed."""
        if self.stale is None or self.settled is not None or not self._may_fall_back():
            return False
        if error is not None:
            logger.error("the app failed; a stale response was served in its place", exc_info=error)
        self.cache.emit(AppFailed(self.key, error))
        self.settled = Settled(self.stale, stale=True)
        return True

    def _may_fall_back(self) -> bool:
        assert self.stale is not None
        cache = self.cache
        return policy.may_serve_on_error(self.request, self.stale, cache.clock.time(), cache.options)


def _own_etag(entry: Entry, body: bytes) -> bytes | None:
    """Return a strong ETag for *body*, None when the app gave one. RFC 9110 section 8.8.3."""
    if any(name == b"etag" for name, _ in entry.response.headers):
        return None
    return b'"%s"' % hashlib.blake2b(body, digest_size=16).hexdigest().encode()
