"""
Worker processes for stampedes, and requests that are made in all of them at one moment.

A worker process runs this module. It takes commands from its standard input, a line of JSON each, makes requests to the
middleware without a server between, and tells of each call of the handler and of what its requests got.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, Final, Self

from echo_cache import (
    Cache,
    CoordinationOptions,
    HTTPCacheMiddleware,
    MemoryStore,
    PolicyOptions,
    RedisStore,
    TwoLevelConfig,
    TwoLevelStore,
)
from echo_cache.options import CacheStrategy
from echo_cache.stores.base import Store
from echo_cache.testing import ClientRequest, open_request
from tests.redis_support import DEADLINE, PATIENT, until

ROOT: Final = Path(__file__).parent.parent

# Requests at once: 500 and one, so that three processes have the same share.
REQUESTS: Final = 500
SHARE: Final = 167
PROCESSES: Final = 3

STRATEGIES: Final = tuple(strategy.value for strategy in CacheStrategy)
STORES: Final = (*STRATEGIES, "redis")
# Where what is tested does not depend on how a write reaches the levels.
TWO_KINDS: Final = ("write_through", "redis")

HOUR: Final = {"cache-control": "max-age=3600"}
PRIVATE: Final = {"cache-control": "private, max-age=60"}
NO_STORE: Final = {"cache-control": "no-store"}
REVALIDATING: Final = {"cache-control": "max-age=10, stale-while-revalidate=3600"}
# After that it is stale.
A_MINUTE: Final = 60.0
# Nobody is to give up waiting, unless the test is about that.
FOR_EVER: Final = 600.0
# Long enough to see that a request does not go on at once.
SOON: Final = 1.0


# --- the worker process -----------------------------------------------------------------------------------------------


class HandlerError(Exception):
    """Raised by the handler when it is told to. Says which call it was."""


class ShiftedClock:
    """The machine's clock, set forward when the test says so."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def time(self) -> float:
        return time.time() + self.ahead

    def advance(self, seconds: float) -> None:
        self.ahead += seconds


def make_store(kind: str, url: str, clock: Any, timeout: float = PATIENT, drain: float = PATIENT) -> Store:
    """Return the store *kind*: "memory", "redis", or the strategy of two levels; "none" is a site without a cache."""
    if kind in ("memory", "none"):
        return MemoryStore(clock=clock)
    below = RedisStore(url, timeout=timeout, clock=clock)
    if kind == "redis":
        return below
    return TwoLevelStore(
        MemoryStore(clock=clock),
        below,
        TwoLevelConfig(strategy=kind, drain_timeout=drain, l2_soft_timeout=timeout),
        clock=clock,
    )


async def log_known(cache: Cache) -> None:
    """Return when the invalidation log is known: what a call began before that is doubtful to whoever comes after."""
    cache.start()
    await until(lambda: cache.log.known)


class Site:
    """
    The app of one worker, behind the middleware. A new one has seen nothing.

    plan: what the handler does: status, headers; hold: it waits to be let go; delay: it takes so many seconds;
    error: it raises.
    """

    def __init__(self, tell: Callable[[dict[str, Any]], None], kind: str, url: str, **options: Any) -> None:
        self.tell = tell
        self.clock = ShiftedClock()
        self.plan: dict[str, Any] = {}
        self.gate = asyncio.Event()
        self.requests: list[ClientRequest] = []
        patience = [options[name] for name in ("timeout", "drain") if name in options]
        self.store = make_store(kind, url, self.clock, *patience)
        self.cache = Cache(
            self.store,
            PolicyOptions(**options.get("policy", {})),
            coordination=CoordinationOptions(**{"lease_wait": FOR_EVER, **options.get("coordination", {})}),
            clock=self.clock,
        )
        self.edge = self.handle if kind == "none" else HTTPCacheMiddleware(self.handle, cache=self.cache)
        self._numbers = itertools.count(1)

    async def handle(self, scope: Any, receive: Any, send: Any) -> None:
        number, plan = f"{os.getpid()}.{next(self._numbers)}", self.plan
        self.tell({"called": number})
        if plan.get("hold"):
            await self.gate.wait()
        await asyncio.sleep(plan.get("delay", 0.0))
        if plan.get("error"):
            raise HandlerError(number)
        language = dict(scope["headers"]).get(b"accept-language", b"-").decode()
        headers = [(name.encode(), value.encode()) for name, value in plan.get("headers", HOUR).items()]
        await send({"type": "http.response.start", "status": plan.get("status", 200), "headers": headers})
        await send({"type": "http.response.body", "body": f"{scope['path']} {language} {number}".encode()})

    async def ask(self, path: str, count: int, at: float, languages: Sequence[str] = ("-",)) -> list[dict[str, Any]]:
        """Make *count* requests in one turn of the event loop, at the moment *at* of the machine's monotonic clock."""
        await asyncio.sleep(max(0.0, at - time.monotonic()))
        # A server would have made these by then; what counts is what the cache does.
        self.requests = [
            open_request(self._timed, path=path, headers={"accept-language": languages[number % len(languages)]})
            for number in range(count)
        ]
        began = time.monotonic()
        return await asyncio.gather(*(self._answer(request, began) for request in self.requests))

    async def _timed(self, scope: Any, receive: Any, send: Any) -> None:
        """Note when the cache is done with a request: clients are always ready to read, and no part of what counts."""
        messages = send.__self__.messages

        async def take(message: Any) -> None:
            messages.append(message)

        try:
            await self.edge(scope, receive, take)
        finally:
            scope["ended"] = time.monotonic()

    async def _answer(self, request: ClientRequest, began: float) -> dict[str, Any]:
        try:
            response = await request.response()
        except HandlerError as error:
            return {"error": str(error), "seconds": request.scope["ended"] - began}
        except asyncio.CancelledError:
            return {"status": 0}
        return {
            "status": response.status,
            "body": response.body.decode(),
            "said": response["cache-status"],
            "language": dict(request.scope["headers"])[b"accept-language"].decode(),
            "seconds": request.scope["ended"] - began,
        }

    async def leave(self, how: str) -> None:
        """Let the client of the first request go: "disconnect" or "cancel"."""
        getattr(self.requests[0], how)()
        await asyncio.wait([self.requests[0].task])

    async def go(self) -> None:
        """Let the handler go on, now and from now on."""
        self.gate.set()

    async def will(self, **plan: Any) -> None:
        """Let the next calls of the handler do as *plan* says."""
        self.plan = plan
        self.gate = asyncio.Event()

    async def advance(self, seconds: float) -> None:
        """Let time go by."""
        self.clock.advance(seconds)

    async def state(self) -> dict[str, int]:
        """Return what is going on."""
        flights, stats = self.cache.flights, self.cache.stats()
        return {
            "aboard": sum(len(flight._passengers) for flight in flights._by_key.values()),
            "flying": len(flights._flying),
            "writes": len(self.cache._tasks),
            "stored": stats.stored,
            "failures": stats.failures,
        }

    async def close(self) -> None:
        """Finish what is under way."""
        await self.cache.aclose()


async def work() -> None:
    """Be a worker process, until there are no more commands."""
    commands = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    tasks: set[asyncio.Task[None]] = set()
    site: Site | None = None

    def tell(what: dict[str, Any]) -> None:
        sys.stdout.write(json.dumps(what) + "\n")
        sys.stdout.flush()

    async def do(number: int, name: str, arguments: dict[str, Any]) -> None:
        nonlocal site
        if name == "open":
            site = Site(tell, **arguments)
            await log_known(site.cache)
            tell({"done": number, "result": None})
        else:
            tell({"done": number, "result": await getattr(site, name)(**arguments)})

    tell({"done": 0, "result": None})
    while line := await commands.readline():
        task = asyncio.ensure_future(do(**json.loads(line)))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        task.add_done_callback(lambda task: task.result())


# --- the test's side --------------------------------------------------------------------------------------------------


class Worker:
    """A worker process. called: the numbers of the handler's calls there, in their order."""

    def __init__(self) -> None:
        self.called: list[str] = []
        self._numbers = itertools.count(1)
        self._replies: dict[int, asyncio.Future[Any]] = {}
        self._process: asyncio.subprocess.Process
        self._reading: asyncio.Task[None]

    async def start(self) -> None:
        """Start the process, and return when it takes commands."""
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-W", "error", "-m", "tests.stampede_support"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=1 << 24,
            cwd=ROOT,
        )
        started = self._replies[0] = asyncio.get_running_loop().create_future()
        self._reading = asyncio.ensure_future(self._read())
        await started

    async def do(self, name: str, **arguments: Any) -> Any:
        """Let the process do *name* of its Site, and return what that gives."""
        number = next(self._numbers)
        reply = self._replies[number] = asyncio.get_running_loop().create_future()
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"number": number, "name": name, "arguments": arguments}).encode() + b"\n")
        return await reply

    @property
    def is_running(self) -> bool:
        """Whether the process is there, as far as its output tells."""
        return not self._reading.done()

    def kill(self) -> None:
        """End the process as SIGKILL does."""
        self._process.kill()

    async def end(self) -> str:
        """Wait for the end of the process, and return what it said on standard error."""
        assert self._process.stdin is not None
        assert self._process.stderr is not None
        self._process.stdin.close()
        said = await asyncio.wait_for(self._process.stderr.read(), DEADLINE)
        await self._process.wait()
        await self._reading
        return said.decode()

    async def _read(self) -> None:
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            message = json.loads(line)
            if "called" in message:
                self.called.append(message["called"])
            else:
                self._replies.pop(message["done"]).set_result(message["result"])
        for reply in self._replies.values():
            reply.cancel()
        self._replies.clear()


class Wave:
    """Requests that are made in all workers at one moment; awaited, it gives what those in each worker got."""

    def __init__(self, tasks: Sequence[asyncio.Task[list[dict[str, Any]]]]) -> None:
        self.tasks = tasks

    async def of(self, number: int) -> list[dict[str, Any]]:
        """Return what the requests in one worker got."""
        async with asyncio.timeout(DEADLINE):
            return await self.tasks[number]

    async def all(self) -> list[dict[str, Any]]:
        """Return what all requests got."""
        return [answer for number in range(len(self.tasks)) for answer in await self.of(number)]


class Fleet:
    """Three worker processes."""

    def __init__(self) -> None:
        self.workers = [Worker() for _ in range(PROCESSES)]

    async def __aenter__(self) -> Self:
        await asyncio.gather(*(worker.start() for worker in self.workers))
        return self

    async def __aexit__(self, *_: object) -> None:
        said = [await worker.end() for worker in self.workers]
        for word in ("never retrieved", "was destroyed", "never awaited", "unclosed"):
            assert not any(word in text for text in said), said
        # What a handler raises in a refresh is in the log, and nothing else is.
        assert all(text.count("Traceback") == text.count("HandlerError: ") for text in said), said

    @property
    def calls(self) -> list[str]:
        """The numbers of all calls of the handler."""
        return [number for worker in self.workers for number in worker.called]

    @contextlib.asynccontextmanager
    async def site(self, kind: str, url: str, **options: Any) -> AsyncIterator[None]:
        """Let each worker have a new site, as long as the context lasts."""
        for worker in self.workers:
            worker.called.clear()
        await self.do("open", kind=kind, url=url, **options)
        try:
            yield
        finally:
            await self.do("go")
            await self.do("close")

    async def do(self, name: str, **arguments: Any) -> list[Any]:
        """Let all workers do *name*."""
        async with asyncio.timeout(DEADLINE):
            return await asyncio.gather(*(worker.do(name, **arguments) for worker in self.workers))

    def ask(self, path: str = "/", count: int = SHARE, **options: Any) -> Wave:
        """Make *count* requests in each worker, all of them at one moment."""
        at = time.monotonic() + 0.03
        return Wave(
            [
                asyncio.ensure_future(worker.do("ask", path=path, count=count, at=at, **options))
                for worker in self.workers
            ]
        )

    async def aboard(self, count: int) -> None:
        """Return when *count* requests wait in each worker."""

        async def are_aboard() -> bool:
            return all(state["aboard"] == count for state in await self.do("state"))

        await until(are_aboard)

    async def sum(self, what: str) -> int:
        """Return the sum of something that the workers' states tell."""
        return sum(state[what] for state in await self.do("state"))

    async def at_rest(self) -> None:
        """Return when no call of the handler and no write is under way in any worker."""

        async def is_at_rest() -> bool:
            return await self.sum("flying") + await self.sum("writes") == 0

        await until(is_at_rest)

    async def fill(self, headers: dict[str, str]) -> str:
        """Let one worker fill the cache with a response that has *headers*, and return its body."""
        await self.do("will", headers=headers)
        (answer,) = await self.workers[0].do("ask", path="/", count=1, at=0.0)
        await self.at_rest()
        (body,) = bodies([answer])
        return body

    async def leader(self) -> int:
        """Wait for a call of the handler, and return which worker made it."""
        await until(lambda: bool(self.calls))
        return next(number for number, worker in enumerate(self.workers) if worker.called)

    async def replace(self, number: int) -> None:
        """Put a new process in the place of one that was killed."""
        await self.workers[number].end()
        self.workers[number] = Worker()
        await self.workers[number].start()


def bodies(answers: Sequence[dict[str, Any]]) -> set[str]:
    """Return the bodies of *answers*, all of which must be right."""
    assert {answer.get("status") for answer in answers} == {200}, Counter(map(str, answers))
    return {answer["body"] for answer in answers}


if __name__ == "__main__":
    asyncio.run(work())
