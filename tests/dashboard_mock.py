"""
The dashboard's JSON interface with made-up numbers that move, for trying the page by itself.

    .venv/bin/python -m tests.dashboard_mock --port 8010    the page at http://127.0.0.1:8010/_cache/ (token: "open")

`--trouble` adds what seldom happens: Redis away and back, hostile URLs, a worker that leaves, counters that fall.
Nothing here is the product: the shapes are those of `echo_cache.management`, the numbers come from a seeded generator.
"""

from __future__ import annotations

import argparse
import asyncio
import fnmatch
import json
import math
import random
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

STATIC = Path(__file__).parent.parent / "echo_cache" / "dashboard" / "static"
TOKEN = "open"
COOKIE = "mock_login"
HEADERS = {
    b"cache-control": b"no-store",
    b"x-content-type-options": b"nosniff",
    b"content-security-policy": b"default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
    b"referrer-policy": b"no-referrer",
}
Json = dict[str, Any]

ROUTES = [
    # route, share of the requests, hit rate, seconds that the app takes
    ("/products/{product_id}", 0.46, 0.95, 0.182),
    ("/products", 0.2, 0.98, 0.64),
    ("/search", 0.14, 0.55, 0.41),
    ("/categories/{slug}/offers", 0.11, 0.9, 0.098),
    ("/account", 0.05, 0.0, 0.12),
    ("", 0.04, 0.3, 0.004),
]
REASONS = {
    reason: {"explanation": sentence, "remedy": remedy}
    for reason, sentence, remedy in [
        ("set-cookie", "The answer sets a cookie.", "Set none on pages that are the same for everybody."),
        ("private", "The app said Cache-Control: private.", "Say public, if it is the same for everybody."),
        ("no-freshness", "Nothing says how long the answer is fresh.", "Give the route a ttl, or send max-age."),
        ("status", "An answer with this status is stored only when it says for how long.", "Nothing is wrong."),
        ("body-size", "The body is larger than max_body_bytes.", "Raise max_body_bytes, if memory allows."),
    ]
}
HOSTILE = [
    "https://shop.example/<img src=x onerror=alert(1)>?q=<script>alert(2)</script>",
    "https://shop.example/search?q=" + "%F0%9F%92%A9" * 160 + "&utm_source=" + "a" * 600,
    "https://shop.example/\u202egnp.exe/javascript:alert(1)\u0000\u0007",
    "https://shop.example/" + "deep/" * 120,
]


class Worker:
    """One worker's counters, which grow by what a second of traffic brings."""

    def __init__(self, number: int, traffic: random.Random, *, trouble: bool) -> None:
        self.id = f"shop-7c9d{number}-{4000 + number}-{traffic.randrange(16**4):04x}"
        self.traffic = traffic
        self.trouble = trouble
        self.started = time.time() - 86400 * 3.2 - number * 911
        self.reset()

    def reset(self) -> None:
        self.routes = {
            name: dict.fromkeys(("l1_hits", "l2_hits", "stale_hits", "collapsed", "misses", "stored", "refused"), 0)
            for name, *_ in ROUTES
        }
        self.forwards: dict[str, int] = {}
        self.refusals: dict[str, int] = {}
        self.evictions = self.invalidations = self.l2_errors = self.l2_timeouts = self.dropped = 0
        self.entries = 11_840

    def second(self, now: float, *, redis_is_down: bool) -> None:
        """Let a second pass: a slow wave of traffic, a purge now and then, and noise."""
        wave = 140 + 60 * math.sin(now / 23) + self.traffic.gauss(0, 9)
        purged = int(now) % 53 < 4
        for name, share, hit_rate, _ in ROUTES:
            route = self.routes[name]
            requests = max(0, round(wave * share + self.traffic.random()))
            hits = round(requests * hit_rate * (0.35 if purged else 1) * (0.8 if redis_is_down else 1))
            from_redis = 0 if redis_is_down else round(hits * 0.13)
            route["l1_hits"] += hits - from_redis
            route["l2_hits"] += from_redis
            route["stale_hits"] += round(hits * (0.09 if purged else 0.03))
            joined = round((requests - hits) * (0.45 if purged else 0.15))
            route["collapsed"] += joined
            missed = requests - hits - joined
            route["misses"] += missed
            refused = missed if name == "/account" else round(missed * 0.1)
            route["refused"] += refused
            route["stored"] += missed - refused
            for reason, part in (("set-cookie", 0.6), ("no-freshness", 0.25), ("private", 0.15)):
                self.refusals[reason] = self.refusals.get(reason, 0) + round(refused * part)
            for fwd, part in (("uri-miss", 0.7), ("stale", 0.15), ("vary-miss", 0.1), ("request", 0.05)):
                self.forwards[fwd] = self.forwards.get(fwd, 0) + round(missed * part)
        self.forwards["method"] = self.forwards.get("method", 0) + self.traffic.randrange(9)
        self.evictions += self.traffic.randrange(4)
        self.invalidations += self.traffic.random() < 0.3
        self.l2_errors += redis_is_down * 2
        self.l2_timeouts += redis_is_down

    def report(self, now: float, *, redis_is_down: bool) -> Json:
        sums = {key: sum(route[key] for route in self.routes.values()) for key in next(iter(self.routes.values()))}
        answered = sums["l1_hits"] + sums["l2_hits"] + sums["collapsed"]
        method = self.forwards.get("method", 0)
        takes = {name: seconds for name, _, _, seconds in ROUTES}
        routes = [
            {
                "route": ("/" + "very-long-segment/" * 14 + "{x}") if self.trouble and name == "/account" else name,
                **counts,
                "saved_seconds": (counts["l1_hits"] + counts["l2_hits"]) * takes[name],
                "fill_seconds_mean": takes[name],
            }
            for name, counts in self.routes.items()
        ]
        return {
            "id": self.id,
            "time": now,
            "uptime": now - self.started,
            "name": "echo_cache",
            "store": "TwoLevelStore",
            "strategy": "write_back",
            "requests": answered + sums["misses"] + method,
            **{key: sums[key] for key in ("l1_hits", "l2_hits", "stale_hits", "collapsed", "misses")},
            "passed": method,
            "hit_rate": answered / max(1, answered + sums["misses"]),
            "stored": sums["stored"],
            "refused": sums["refused"],
            "failures": self.l2_errors // 8,
            "saved_seconds": sum(route["saved_seconds"] for route in routes),
            "invalidations": self.invalidations,
            "forwards": self.forwards,
            "refusals": self.refusals,
            "l1_entries": self.entries,
            "l1_bytes": round((47 + 6 * math.sin(now / 40)) * 2**20),
            "l1_max_bytes": 64 * 2**20,
            "evictions": self.evictions,
            "l2_errors": self.l2_errors,
            "l2_timeouts": self.l2_timeouts,
            "l2_read_seconds": 0.00062,
            "rescued": 0,
            "write_back_queue": 340 if redis_is_down else self.traffic.randrange(9),
            "write_back_bytes": 920_000 if redis_is_down else 14_000,
            "dropped": self.dropped,
            "breaker": "open" if redis_is_down else "closed",
            "log": {
                "heard": not redis_is_down,
                "unheard_for": 8.4 if redis_is_down else 0.3,
                "synced": not redis_is_down,
                "pending": 3 if redis_is_down else 0,
                "position": "1795977000000-0",
                "reason": "Error 111 connecting to 10.0.0.7:6379. Connection refused." if redis_is_down else None,
            },
            "flights": self.traffic.randrange(7),
            "tasks": self.traffic.randrange(5),
            "disabled": False,
            "routes": sorted(routes, key=lambda route: -(route["l1_hits"] + route["misses"])),
        }


def summed(reports: list[Json]) -> Json:
    """Add up what can be added; of the rest the first worker's stands for all."""
    total = dict(reports[0])
    for key, value in total.items():
        if isinstance(value, int | float) and not isinstance(value, bool) and key not in ("time", "uptime", "hit_rate"):
            total[key] = sum(report[key] for report in reports)
    for key in ("forwards", "refusals"):
        total[key] = {name: sum(report[key].get(name, 0) for report in reports) for name in total[key]}
    total["l2_read_seconds"] = reports[0]["l2_read_seconds"]
    total["routes"] = [
        {
            key: (value if key in ("route", "fill_seconds_mean") else value * len(reports))
            for key, value in route.items()
        }
        for route in total["routes"]
    ]
    return total


class Mock:
    """A shop with three workers. `tick` runs once a second while the server does."""

    def __init__(self, *, trouble: bool, entries: int) -> None:
        self.trouble = trouble
        self.random = random.Random(7)
        self.workers = [Worker(n, random.Random(n), trouble=trouble) for n in range(3)]
        self.now = time.time()
        self.seconds = 0
        self.log: list[Json] = []
        self.entries = [self._entry(n) for n in range(entries)]
        begin = self.now - 240
        for step in range(240):
            self.second(begin + step)

    def _entry(self, number: int) -> Json:
        r = self.random
        if self.trouble and number < len(HOSTILE):
            url = HOSTILE[number]
        elif number % 5:
            url = f"https://shop.example/products/{number}"
        else:
            url = f"https://shop.example/search?q={r.choice(['tea', 'bike', 'lamp', 'chair'])}&page={number}"
        age = r.random() * 280
        return {
            "url": url,
            "key_digest": f"{r.randrange(16**32):032x}",
            "level": "l1",
            "variants": r.choice([1, 1, 1, 2]),
            "bytes": r.randrange(400, 90_000),
            "status": 200,
            "age": age,
            "ttl": 240 - age,
            "tags": [
                "catalog",
                f"product:{number}",
                *(["<b>bold</b>", "t" * 200] if self.trouble and number < 6 else []),
            ],
            "route": "/products/{product_id}",
            "stored_at": self.now - age,
            "stands": "fresh" if age < 240 else "stale",
        }

    @property
    def redis_is_down(self) -> bool:
        return self.trouble and 40 <= self.seconds % 90 < 60

    def second(self, now: float) -> None:
        self.now = now
        self.seconds += 1
        for worker in self.workers:
            worker.second(now, redis_is_down=self.redis_is_down)
        if self.random.random() < 0.3:
            reason = self.random.choice(list(REASONS))
            url = self.random.choice(HOSTILE) if self.trouble and self.random.random() < 0.4 else None
            url = url or f"https://shop.example/account?tab={self.random.randrange(9)}"
            self.log.insert(0, {"time": now, "url": url, "reason": reason, **REASONS[reason]})
            del self.log[50:]

    async def tick(self) -> None:
        while True:
            await asyncio.sleep(1)
            self.second(time.time())

    def stats(self) -> Json:
        down = self.redis_is_down
        alive = self.workers[:2] if self.trouble and self.seconds % 120 > 100 else self.workers
        reports = [worker.report(self.now, redis_is_down=down) for worker in (alive[:1] if down else alive)]
        known = {"shared": True, "workers_known": not down}
        return {"worker": reports[0], "total": summed(reports), "workers": reports, **known}

    def event(self) -> Json:
        stats = self.stats()
        return {**stats, "workers": len(stats["workers"])}

    def top(self) -> Json:
        largest = sorted(self.entries, key=lambda entry: -entry["bytes"])[:10]
        return {
            "worker": self.workers[0].id,
            "by_hits": [
                {"url": entry["url"], "hits": (self.seconds + 900) // (place + 1)}
                for place, entry in enumerate(self.entries[:10])
            ],
            "by_bytes": [{"url": entry["url"], "bytes": entry["bytes"]} for entry in largest],
        }

    def inspect(self, url: str) -> Json:
        entry = next((entry for entry in self.entries if entry["url"] == url), None)
        named = {"worker": self.workers[0].id, "url": url, "unknown": ["l2"] if self.redis_is_down else []}
        if entry is None:
            return {
                **named,
                "key_digest": "0" * 32,
                "levels": {"l1": []} if self.redis_is_down else {"l1": [], "l2": []},
                "selected": None,
                "verdict": "Nothing is stored for this URL: the next request goes to the app (uri-miss).",
            }
        variant = {
            **{key: entry[key] for key in ("status", "age", "ttl", "tags", "stored_at", "route")},
            "retained_for": entry["ttl"] + 30,
            "generated_at": entry["stored_at"],
            "vary": {"accept-language": "de"},
            "headers": [
                ["content-type", "application/json"],
                ["etag", '"5e1f"'],
                ["cache-control", "s-maxage=240"],
                ["x-note", "<script>alert(3)</script>" if self.trouble else "plain"],
            ],
            "body_bytes": entry["bytes"],
            "content_type": "application/json",
            "etag": '"5e1f"',
            "stale_while_revalidate": 30.0,
            "stale_if_error": None,
            "always_validate": False,
            "anonymous_only": True,
            "mark": 12,
            "stands": "fresh" if entry["ttl"] > 0 else "stale",
            "why": "fresh for 240 s by Cache-Control: s-maxage=240",
        }
        in_memory = {"l1": [variant, {**variant, "vary": {"accept-language": "en"}}]}
        return {
            **named,
            "key_digest": entry["key_digest"],
            "levels": in_memory if self.redis_is_down else {**in_memory, "l2": [variant]},
            "selected": {"level": "l1", "index": 0},
            "verdict": "This request would be answered from memory: the first variant fits and is fresh."
            if entry["ttl"] > 0
            else "This request would be answered stale, and refreshed in the background.",
        }

    def matching(self, query: Json) -> list[Json]:
        if "url" in query:
            return [entry for entry in self.entries if entry["url"] == query["url"]]
        if "tag" in query:
            return [entry for entry in self.entries if query["tag"] in entry["tags"]]
        if "prefix" in query:
            return [entry for entry in self.entries if entry["url"].startswith(query["prefix"])]
        return list(self.entries)


def app_of(mock: Mock) -> Starlette:
    """The dashboard's routes below /_cache, answered by *mock*."""

    async def page(request: Request) -> Response:
        if _signed_in(request):
            return FileResponse(STATIC / "index.html")
        return FileResponse(STATIC / "login.html")

    async def login(request: Request) -> Response:
        if (await request.json()).get("token") != TOKEN:
            return JSONResponse({"error": "The token is not right."}, 401)
        response = Response(status_code=204)
        response.set_cookie(COOKIE, TOKEN, httponly=True, samesite="strict", path="/_cache")
        return response

    async def logout(request: Request) -> Response:
        response = Response(status_code=204)
        response.delete_cookie(COOKIE, path="/_cache")
        return response

    async def events(request: Request) -> Response:
        async def stream() -> AsyncIterator[str]:
            newest = 0.0
            for turn in range(1_000_000):
                yield f"event: stats\ndata: {json.dumps(mock.event())}\n\n"
                if turn % 2 == 0:
                    yield f"event: top\ndata: {json.dumps(mock.top())}\n\n"
                if mock.log and mock.log[0]["time"] > newest:
                    newest = mock.log[0]["time"]
                    yield f"event: refusals\ndata: {json.dumps(mock.log)}\n\n"
                await asyncio.sleep(1)

        return StreamingResponse(stream(), media_type="text/event-stream")

    async def entries(request: Request) -> Response:
        query = request.query_params
        found = [
            entry
            for entry in mock.entries
            if fnmatch.fnmatchcase(entry["url"], query.get("match", "*").replace("[", "[[]").replace("?", "[?]"))
            and ("tag" not in query or query["tag"] in entry["tags"])
        ]
        start, limit = int(query.get("cursor", 0)), int(query.get("limit", 50))
        cursor = str(start + limit) if start + limit < len(found) else None
        level = {"worker": mock.workers[0].id, "level": query.get("level", "l1")}
        return JSONResponse({**level, "entries": found[start : start + limit], "cursor": cursor})

    async def entry(request: Request) -> Response:
        return JSONResponse(mock.inspect(request.query_params["url"]))

    async def purge(request: Request) -> Response:
        query = await request.json()
        found = mock.matching(query)
        if query.get("dry_run"):
            if mock.redis_is_down:
                return JSONResponse({"error": "Redis cannot be asked now: no connection"}, 503)
            sample = [entry["url"] for entry in found[:10]]
            matched = {"matched": len(found), "is_complete": True, "sample": sample}
            return JSONResponse({"dry_run": True, "purged": False, **matched})
        mock.entries = [entry for entry in mock.entries if entry not in found]
        return JSONResponse(
            {
                "dry_run": False,
                "purged": True,
                "propagated": not mock.redis_is_down,
                "position": None if mock.redis_is_down else 17,
            }
        )

    async def clear(request: Request) -> Response:
        many = len(mock.entries)
        mock.entries = []
        level = request.url.path.rsplit("/", 1)[1]
        return JSONResponse({"worker": mock.workers[0].id, "cleared": level, "entries": many})

    async def reset(request: Request) -> Response:
        for worker in mock.workers:
            worker.reset()
        return JSONResponse({"worker": mock.workers[0].id, "reset": True, "told": not mock.redis_is_down})

    async def sync(request: Request) -> Response:
        await asyncio.sleep(1.5)
        if mock.redis_is_down:
            return JSONResponse({"error": "Redis does not answer: nothing was copied."}, 503)
        return JSONResponse({"worker": mock.workers[0].id, "seen": 11840, "copied": 512, "skipped": 11328, "failed": 0})

    async def warm(request: Request) -> Response:
        urls = (await request.json())["urls"]
        return JSONResponse({"done": len(urls), "stored": len(urls), "hits": 0, "uncached": 0, "failed": 0})

    async def stats(request: Request) -> Response:
        return JSONResponse(mock.stats())

    async def top(request: Request) -> Response:
        return JSONResponse(mock.top())

    async def refusals(request: Request) -> Response:
        return JSONResponse(mock.log)

    routes = [
        Route("/", page),
        Route("/login", login, methods=["POST"]),
        Route("/logout", logout, methods=["POST"]),
        Route("/api/stats", stats),
        Route("/api/events", events),
        Route("/api/entries", entries),
        Route("/api/entry", entry),
        Route("/api/top", top),
        Route("/api/refusals", refusals),
        Route("/api/purge", purge, methods=["POST"]),
        Route("/api/sync", sync, methods=["POST"]),
        Route("/api/warm", warm, methods=["POST"]),
        Route("/stats/reset", reset, methods=["POST"]),
        *(Route(f"/{level}", clear, methods=["DELETE"]) for level in ("l1", "l2", "all")),
        Mount("/static", StaticFiles(directory=STATIC)),
    ]
    return Starlette(routes=[Mount("/_cache", routes=routes)], middleware=[Middleware(Guard)])


def _signed_in(request: Request) -> bool:
    return request.cookies.get(COOKIE) == TOKEN or request.headers.get("authorization") == f"Bearer {TOKEN}"


class Guard:
    """Refuses what is not signed in, and puts the headers of the dashboard on every response."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                kept = [(name, value) for name, value in message["headers"] if name not in HEADERS]
                message["headers"] = [*kept, *HEADERS.items()]
            await send(message)

        request = Request(scope)
        path = request.url.path.removeprefix("/_cache")
        app = self.app
        if not (path.startswith(("/static/", "/login", "/logout")) or path == "/" or _signed_in(request)):
            app = JSONResponse({"error": "Sign in first, or send Authorization: Bearer TOKEN."}, 401)
        elif request.method == "POST" and request.headers.get("content-type") != "application/json":
            app = JSONResponse({"error": "The body must be application/json."}, 415)
        await app(scope, receive, send_with_headers)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8010)
    parser.add_argument("--trouble", action="store_true")
    parser.add_argument("--entries", type=int, default=130)
    arguments = parser.parse_args()
    mock = Mock(trouble=arguments.trouble, entries=arguments.entries)
    config = uvicorn.Config(app_of(mock), port=arguments.port, log_level="warning", timeout_graceful_shutdown=1)
    ticking = asyncio.create_task(mock.tick())
    try:
        await uvicorn.Server(config).serve()
    finally:
        ticking.cancel()


if __name__ == "__main__":
    asyncio.run(main())
