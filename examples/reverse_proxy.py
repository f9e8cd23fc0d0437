"""
A caching reverse proxy: `python examples/reverse_proxy.py http://origin:port --port 8080`.

It follows the plain standard: nothing is cached but what the origin's fields allow. Bodies stream, and bytes are passed
on as they are: fields in their order, repeated ones too, bodies in the coding the origin chose.

The server in front must add nothing: a second Date beside the origin's would make the age of every response wrong, so
uvicorn runs without its own Date and Server (on its command line: --no-date-header --no-server-header).
`--once` starts a small origin, sends a few requests through and exits.
"""

from __future__ import annotations

import argparse
import contextlib
import socket
import sys
import threading
from collections.abc import AsyncIterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Mount
from starlette.types import Receive, Scope, Send

from echo_cache import Cache, HTTPCacheMiddleware, MemoryStore, PolicyOptions

Fields = list[tuple[bytes, bytes]]

# These belong to one connection: RFC 9110 section 7.6.1.
HOP_BY_HOP = {b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade"}


def end_to_end(fields: Fields) -> Fields:
    """Return *fields* with names in lower case, without those of the connection and those that Connection names."""
    fields = [(name.lower(), value) for name, value in fields]
    named = {word.strip().lower() for name, value in fields if name == b"connection" for word in value.split(b",")}
    return [(name, value) for name, value in fields if name not in HOP_BY_HOP | named]


def reverse_proxy(origin: str, cache: Cache) -> Starlette:
    """Return an app that answers from *cache*, and from *origin* ("http://host:port") what is not there."""
    # httpx's transport and not its client, which adds fields, keeps cookies and follows redirects.
    transport = httpx.AsyncHTTPTransport(limits=httpx.Limits())

    async def forward(scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        has_body = "content-length" in request.headers or "transfer-encoding" in request.headers
        target = scope["raw_path"] + (b"?" + scope["query_string"] if scope["query_string"] else b"")
        onward = httpx.Request(
            scope["method"],
            origin,
            headers=[*end_to_end(scope["headers"]), (b"via", b"1.1 echo_cache")],
            content=request.stream() if has_body else None,
            # The target as it was sent, not normalised. No limit but to connect: events may be hours apart.
            extensions={"target": target, "timeout": {"connect": 5.0}},
        )
        try:
            response = await transport.handle_async_request(onward)
        except ClientDisconnect:
            return
        except httpx.TransportError as error:
            await PlainTextResponse(f"No answer from the origin: {error!r}\n", 502)(scope, receive, send)
            return
        async with contextlib.aclosing(response):
            answer = StreamingResponse(response.aiter_raw(), response.status_code)
            answer.raw_headers = end_to_end(response.headers.raw)
            if "date" not in response.headers:  # RFC 9110 section 6.6.1: whoever forwards it gives it one
                answer.raw_headers.append((b"date", formatdate(usegmt=True).encode()))
            if response.status_code == 304:  # uvicorn would wait for a body of that length
                answer.raw_headers = [field for field in answer.raw_headers if field[0] != b"content-length"]
            await answer(scope, receive, send)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with transport:
            yield

    caching = Middleware(HTTPCacheMiddleware, cache=cache)
    return Starlette(routes=[Mount("/", forward)], middleware=[caching], lifespan=lifespan)


def proxy_server(origin: str, port: int) -> uvicorn.Server:
    cache = Cache(MemoryStore(), PolicyOptions.rfc9111(max_body_bytes=32 * 1024 * 1024))
    app = reverse_proxy(origin, cache)
    return uvicorn.Server(uvicorn.Config(app, port=port, date_header=False, server_header=False, log_level="warning"))


class Origin(BaseHTTPRequestHandler):
    """The origin of --once: /page may be cached, the rest may not."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Cache-Control", "max-age=60" if self.path == "/page" else "no-store")
        self.send_header("ETag", '"1"')
        self.end_headers()
        self.wfile.write(b"hello\n")


def once() -> None:
    origin = ThreadingHTTPServer(("127.0.0.1", 0), Origin)
    threading.Thread(target=origin.serve_forever, daemon=True).start()
    listener = socket.create_server(("127.0.0.1", 0))
    front = proxy_server(f"http://127.0.0.1:{origin.server_port}", 0)
    thread = threading.Thread(target=front.run, args=([listener],), daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    steps: list[tuple[str, dict[str, str], int, str]] = [
        ("/page", {}, 200, "stored"),
        ("/page", {}, 200, "hit"),
        ("/page", {"If-None-Match": '"1"'}, 304, "hit"),
        ("/page", {"Range": "bytes=1-3"}, 206, "hit"),
        ("/private", {}, 200, "no-store"),
    ]
    for path, fields, status, said in steps:
        response = httpx.get(url + path, headers=fields, trust_env=False)
        cache_status = response.headers["cache-status"]
        print(f"GET {path:<8} {fields!s:<24} {response.status_code}  {cache_status}")
        if response.status_code != status or said not in cache_status:
            sys.exit(f"expected {status} and {said!r} in Cache-Status")
    front.should_exit = True
    thread.join()
    print("\nWhat to do next: put it before a server of yours; how is said in the first lines of this file.")


def main() -> None:
    arguments = argparse.ArgumentParser(description="A caching reverse proxy.")
    arguments.add_argument("origin", nargs="?", default="http://127.0.0.1:8000")
    arguments.add_argument("--port", type=int, default=8080)
    arguments.add_argument("--once", action="store_true", help="send a few requests to an origin of its own and exit")
    options = arguments.parse_args()
    if options.once:
        once()
    else:
        with contextlib.suppress(KeyboardInterrupt):
            proxy_server(options.origin, options.port).run()


if __name__ == "__main__":
    main()
