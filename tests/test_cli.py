"""
The command line, as whoever types it sees it: what it says on a terminal, in a pipe and as JSON, and its exit codes.

Most of it runs in this process. What depends on real streams and signals runs in processes of its own, which are slow
to start.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import itertools
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from echo_cache import (
    Cache,
    CoordinationOptions,
    HTTPCacheMiddleware,
    MemoryStore,
    PolicyOptions,
    RedisStore,
    TwoLevelStore,
    cached,
)
from echo_cache.cli import show
from echo_cache.cli.commands import app as commands
from echo_cache.cli.main import run
from echo_cache.cli.target import Access, open_target
from echo_cache.cli.text import shown as text_shown
from echo_cache.cli.web import Unavailable
from echo_cache.codec import FORMAT_VERSION
from echo_cache.dashboard import mount
from echo_cache.errors import StoreError
from echo_cache.testing import call
from tests.redis_support import PATIENT, bulk
from tests.servers import RedisServer
from tests.servers_http import uvicorn_server

ROOT = Path(__file__).parent.parent
TOKEN = "a-token-of-the-tests"
SECRET = "0123456789abcdef0123456789abcdef"
# What a process may take at most; a loaded machine is slow.
DEADLINE = 45.0
NOWHERE = "http://127.0.0.1:1"


@dataclass(frozen=True)
class Done:
    """What a command has done."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one document on stdout."""
        return json.loads(self.out)

    @property
    def rows(self) -> list[list[str]]:
        return [line.split("\t") for line in self.out.splitlines()]

    @property
    def facts(self) -> dict[str, str]:
        return {row[0]: row[1] for row in self.rows}


@pytest.fixture(autouse=True)
def no_settings_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("ECHO_CACHE_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    for name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "PYTHONIOENCODING"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Run a command in this process."""

    def cli(*words: str) -> Done:
        capsys.readouterr()
        code = run(words)
        done = Done(code, *capsys.readouterr())
        assert "Traceback" not in done.out + done.err
        return done

    return cli


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "echo_cache", *words]


def process(*words: str, stdin: str = "", env: dict[str, str] | None = None) -> Done:
    """Run a command in a process of its own, with pipes."""
    done = subprocess.run(
        command(*words),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        cwd=ROOT,
        env={**os.environ, **(env or {})},
    )
    assert "Traceback" not in done.stdout + done.stderr
    return Done(done.returncode, done.stdout, done.stderr)


def terminal(*words: str, columns: int = 80, typed: str = "", env: dict[str, str] | None = None) -> Done:
    """Run a command in a process of its own, on a terminal; what it writes to stderr is in the output, too."""
    import fcntl
    import pty
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    child = subprocess.Popen(
        command(*words), stdin=theirs, stdout=theirs, stderr=theirs, cwd=ROOT, env={**os.environ, **(env or {})}
    )
    os.close(theirs)
    if typed:
        os.write(ours, typed.encode())
    seen = b""
    try:
        while select.select([ours], [], [], DEADLINE)[0]:
            try:
                part = os.read(ours, 65_536)
            except OSError:  # Linux: the other end is closed
                break
            if not part:
                break
            seen += part
        code = child.wait(DEADLINE)
    finally:
        child.kill()
        os.close(ours)
    text = seen.decode()
    assert "Traceback" not in text
    return Done(code, text, "")


# --- an app to look at ------------------------------------------------------------------------------------------------


@cached(ttl=300, tags=["catalog", "product:{number}"])
async def product(request: Request) -> Response:
    return PlainTextResponse(f"product {request.path_params['number']}\n")


async def private(request: Request) -> Response:
    return PlainTextResponse("yours alone\n", headers={"cache-control": "private"})


async def broken(request: Request) -> Response:
    return PlainTextResponse("no\n", 500)


async def cookie(request: Request) -> Response:
    return PlainTextResponse(
        "hello\n", 418 if "cookie" in request.headers else 200, headers={"set-cookie": "session=1"}
    )


async def endless(request: Request) -> Response:
    async def events() -> AsyncIterator[str]:
        yield "data: 1\n\n"
        await asyncio.Event().wait()

    return StreamingResponse(events(), media_type="text/event-stream")


async def moved(request: Request) -> Response:
    return RedirectResponse("http://elsewhere.example/")


async def sitemap(request: Request) -> Response:
    here = f"http://{request.headers['host']}"
    locations = [f"{here}/products/{number}" for number in range(3)] + ["http://elsewhere.example/x"]
    urls = "".join(f"<url><loc>{location}</loc></url>" for location in locations)
    return Response(f"<urlset>{urls}</urlset>", media_type="application/xml", headers={"cache-control": "no-store"})


async def index(request: Request) -> Response:
    here = f"http://{request.headers['host']}"
    # It leads to itself, and elsewhere.
    locations = [f"{here}/sitemap.xml", f"{here}/index.xml", "http://169.254.169.254/latest/meta-data"]
    found = "".join(f"<sitemap><loc>{location}</loc></sitemap>" for location in locations)
    return Response(f"<sitemapindex>{found}</sitemapindex>", headers={"cache-control": "no-store"})


def make_shop(cache: Cache) -> Starlette:
    app = Starlette(
        routes=[
            Route("/products/{number:int}", product),
            Route("/private", private),
            Route("/broken", broken),
            Route("/cookie", cookie),
            Route("/endless", endless),
            Route("/moved", moved),
            Route("/sitemap.xml", sitemap),
            Route("/index.xml", index),
        ],
        middleware=[Middleware(HTTPCacheMiddleware, cache=cache)],
    )
    mount(app, "/_cache", auth=TOKEN)
    return app


@dataclass(frozen=True)
class Shop:
    """A running app. url: where it is; target: where its dashboard is, and its token, as arguments."""

    url: str
    redis: str

    @property
    def target(self) -> tuple[str, ...]:
        return ("--target", f"{self.url}/_cache", "--token", TOKEN)

    @property
    def redis_target(self) -> tuple[str, ...]:
        return ("--target", self.redis, "--timeout", str(PATIENT))

    def ask(self, *paths: str) -> None:
        """Ask for pages, one after the other."""
        for path in paths:
            with socket.create_connection(("127.0.0.1", int(self.url.rpartition(":")[2])), PATIENT) as connection:
                host = self.url.partition("://")[2]
                connection.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
                while connection.recv(65_536):
                    pass


@pytest.fixture
def shop(redis_url: str) -> Iterator[Shop]:
    """The app over memory and Redis, with three products that were asked for."""
    store = TwoLevelStore(MemoryStore(), RedisStore(redis_url, timeout=PATIENT))
    cache = Cache(store, PolicyOptions(default_ttl=None), coordination=CoordinationOptions(report_every=0.2))
    with uvicorn_server(make_shop(cache)) as server:
        shop = Shop(f"http://127.0.0.1:{server.port}", redis_url)
        shop.ask("/products/1", "/products/2", "/products/3", "/products/1", "/private")
        yield shop


async def stored_in(url: str, *paths: str, secret: str | None = None, headers: dict[str, str] | None = None) -> None:
    """Store responses in the Redis at *url*, for http://shop.example."""

    async def answer(request: Request) -> Response:
        return PlainTextResponse("hello\n", headers={"cache-control": "max-age=300", **(headers or {})})

    async with Cache(RedisStore(url, timeout=PATIENT, secret=secret)) as cache:
        app = HTTPCacheMiddleware(Starlette(routes=[Route("/{path:path}", answer)]), cache=cache)
        for path in paths:
            await call(app, "GET", path, {"host": "shop.example"})


# --- wrong usage ------------------------------------------------------------------------------------------------------

WRONG = [
    pytest.param(["nothing"], "No such command 'nothing'", id="unknown-command"),
    pytest.param(["keys", "--nothing"], "No such option", id="unknown-option"),
    pytest.param(["stats"], "say what to look at: redis://host", id="stats-without-a-target"),
    pytest.param(["keys"], "ECHO_CACHE_TARGET", id="keys-without-a-target"),
    pytest.param(["inspect"], "Missing argument", id="inspect-without-a-url"),
    pytest.param(["inspect", "http://a/"], "--target", id="inspect-without-a-target"),
    pytest.param(["explain"], "Missing argument", id="explain-without-a-url"),
    pytest.param(["purge"], "exactly one of --url, --tag, --prefix and --all", id="purge-nothing"),
    pytest.param(["purge", "--tag", "a", "--url", "/"], "exactly one of", id="purge-two"),
    pytest.param(["purge", "--tag", "a"], "--target", id="purge-without-a-target"),
    pytest.param(["purge", "--all"], "give --yes", id="purge-all-in-a-pipe"),
    pytest.param(["sync"], "Missing option '--to'", id="sync-without-a-level"),
    pytest.param(["sync", "--to", "l1"], "--target", id="sync-without-a-target"),
    pytest.param(["sync", "--to", "l1", "-t", "redis://h"], "of a running app", id="sync-of-redis"),
    pytest.param(["warm"], "either a file of URLs", id="warm-nothing"),
    pytest.param(["warm", "a", "--sitemap", "http://a/"], "either a file of URLs", id="warm-both"),
    pytest.param(["warm", "/no/such/file"], "/no/such/file cannot be read: No such file", id="warm-no-file"),
    pytest.param(["warm", "/"], "cannot be read: Is a directory", id="warm-a-directory"),
    pytest.param(["doctor"], "say what to look at: redis://host (as", id="doctor-without-a-url"),
    pytest.param(["doctor", "http://a/"], "the address is that of a running app", id="doctor-of-an-app"),
    pytest.param(["bench", "ftp://a"], "redis://", id="bench-of-nothing-known"),
    pytest.param(["bench", "--seconds", "0"], "--seconds", id="bench-without-time"),
    pytest.param(["demo", "--port", "99999"], "--port", id="demo-of-no-port"),
    pytest.param(["version", "extra"], "unexpected extra argument", id="version-of-something"),
    pytest.param(["keys", "--level", "l3", "-t", "redis://h"], "'l3' is not one of", id="unknown-level"),
    pytest.param(["keys", "--limit", "0", "-t", "redis://h"], "--limit", id="no-entries"),
    pytest.param(["keys", "--level", "l1", "-t", "redis://h"], "in the memory of the workers", id="memory-of-redis"),
    pytest.param(["stats", "--count", "1", "-t", "redis://h"], "give both", id="count-without-watch"),
    pytest.param(["stats", "-t", "ftp://h"], "a target begins with", id="target-of-another-kind"),
    pytest.param(["stats", "-t", "memory://"], "only be seen through the app", id="target-in-memory"),
    pytest.param(["stats", "-t", "redis://h/x"], "has the form", id="broken-redis-url"),
    pytest.param(["stats", "-t", "redis://h", "--redis-prefix", "a b"], "prefix must be", id="broken-prefix"),
    pytest.param(["stats", "redis://h", "-t", "redis://h"], "given twice", id="target-twice"),
    pytest.param(["doctor", "redis://h", "-t", "redis://h"], "given twice", id="doctor-target-twice"),
    pytest.param(["keys", "redis://h", "--token", "x"], "--token is of a running app", id="token-for-redis"),
    pytest.param(["keys", "http://h", "--redis-prefix", "x"], "--redis-prefix is of a Redis", id="prefix-for-an-app"),
    pytest.param(["keys", "redis://h", "--prefix", "x"], "No such option", id="prefix-of-urls"),
    pytest.param(["--target", "x", "stats"], "Options are written after the command", id="option-before-the-command"),
    pytest.param(["stats", "-t", "http://"], "an absolute URL is needed", id="target-without-a-host"),
    pytest.param(["stats", "-t", "http://h:x/"], "an absolute URL is needed", id="target-without-a-port"),
    pytest.param(["stats", "-t", "http://h/_cache?a=1"], "without ? or #", id="target-with-a-query"),
    pytest.param(["stats", "-t", "http://h", "--token", "a b"], "visible ASCII", id="token-with-a-blank"),
    pytest.param(["inspect", "/a", "-t", "redis://h"], "an absolute URL is needed", id="path-for-a-url"),
    pytest.param(["explain", "http://a b/"], "an absolute URL is needed", id="blank-in-a-url"),
    pytest.param(["explain", "http://a/", "-H", "Accept"], "'Name: value'", id="field-without-a-value"),
    pytest.param(["explain", "http://a/", "-H", "A: b\r\nC: d"], "'Name: value'", id="field-with-a-line-break"),
    pytest.param(["explain", "http://a/", "-H", "A: \N{SNOWMAN}"], "'Name: value'", id="field-beyond-latin-1"),
]


@pytest.mark.parametrize(("words", "told"), WRONG)
def test_wrong_usage_is_told_in_words_with_exit_code_2(cli: Callable[..., Done], words: list[str], told: str) -> None:
    done = cli(*words)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("echo-cache: ")
    assert told in done.err


@pytest.mark.parametrize(("words", "told"), WRONG)
def test_with_json_an_error_is_one_document(cli: Callable[..., Done], words: list[str], told: str) -> None:
    done = cli(*words, "--json")
    assert done.code == 2
    assert told in done.json["error"]


def test_without_a_command_there_is_the_help(cli: Callable[..., Done]) -> None:
    done = cli()
    assert done.code == 2
    assert "Commands:" in done.out
    assert "Exit codes: 0 done" in done.out
    assert "..." not in done.out.partition("Commands:")[2]
    assert cli("--help").code == cli("-h").code == cli("keys", "-h").code == 0


def test_wrong_usage_leads_to_the_help_of_the_command(cli: Callable[..., Done]) -> None:
    assert "Try 'echo-cache keys --help'." in cli("keys", "--nothing").err
    assert "Missing option '--to'. Choose from: l1, l2\n" in cli("sync").err


def test_interrupted_before_anything_was_done_it_ends_with_130(
    cli: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("echo_cache.cli.main._see_to_the_streams", interrupt)
    assert cli("version").code == 130


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(["stats", "-t", "redis://user:hunter2@127.0.0.1:1"], id="redis"),
        pytest.param(["stats", "redis://user:hunter2@127.0.0.1:1"], id="argument"),
        pytest.param(["stats", "redis://h", "redis://user:hunter2@127.0.0.1:1"], id="argument-too-many"),
        pytest.param(["stats", "redis://h", "redis://user:hunter 2hunter2@127.0.0.1:1"], id="blank-in-it"),
        pytest.param(["redis://user:hunter2@127.0.0.1:1"], id="command-that-is-none"),
        pytest.param(["inspect", "user:hunter2@h/", "-t", "redis://h"], id="without-a-scheme"),
        pytest.param(["stats", "-t", "redis://user:hunter2@127.0.0.1:x"], id="broken"),
        pytest.param(["stats", "-t", "http://user:hunter2@127.0.0.1:1/"], id="app"),
        pytest.param(["stats", "-t", "ftp://user:hunter2@h"], id="another-kind"),
        pytest.param(["doctor", "redis://user:hunter2@127.0.0.1:1"], id="doctor"),
        pytest.param(["doctor", "redis://user:hunter2@127.0.0.1:1?nothing=1"], id="doctor-option"),
        pytest.param(["explain", "http://user:hunter2@127.0.0.1:1/"], id="explain"),
        pytest.param(["explain", "http://user:hunter2@h:x/"], id="explain-broken"),
        pytest.param(["inspect", "http://user:hunter2@h:x/", "-t", "redis://h"], id="inspect-broken"),
        pytest.param(["explain", "http://a/", "-H", "Authorization hunter2: a"], id="field"),
        pytest.param(["demo", "--once", "--redis", "redis://user:hunter2@127.0.0.1:1"], id="demo"),
        pytest.param(["stats", "-t", NOWHERE, "--token", "hunter2"], id="token"),
    ],
)
def test_a_password_is_never_shown(cli: Callable[..., Done], words: list[str]) -> None:
    for done in (cli(*words), cli(*words, "--json")):
        assert done.code in (2, 3)
        assert "hunter2" not in done.out + done.err


@pytest.mark.parametrize("missing", ["typer", "rich", "httpx"])
def test_without_the_extra_it_says_how_to_install_it(
    cli: Callable[..., Done], monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    done = cli("version")
    assert (done.code, done.out) == (2, "")
    assert missing in done.err
    assert "pip install '.[cli]'" in done.err


def test_what_is_not_expected_is_told_in_words_and_in_full_for_debugging(
    cli: Callable[..., Done], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(name: str) -> str:
        raise RuntimeError("a defect\x1b[31m")

    monkeypatch.setattr("echo_cache.cli.commands._version_of", fail)
    done = cli("version")
    assert done.code == 3
    assert r"RuntimeError: a defect\x1b[31m" in done.err
    monkeypatch.setenv("ECHO_CACHE_DEBUG", "1")
    assert run(["version"]) == 3
    assert "Traceback" in capsys.readouterr().err


# --- Redis in trouble -------------------------------------------------------------------------------------------------

OF_REDIS = [
    ["stats"],
    ["stats", "--watch"],
    ["keys"],
    ["inspect", "http://shop.example/"],
    ["purge", "--tag", "a"],
    ["purge", "--all", "--yes"],
    ["purge", "--url", "/", "--dry-run"],
]


def test_each_command_tells_that_redis_is_down(cli: Callable[..., Done], own_redis: RedisServer) -> None:
    own_redis.kill()
    for words in OF_REDIS:
        done = cli(*words, "--target", own_redis.url)
        assert (done.code, done.out) == (3, ""), words
        assert f"{own_redis.url} refuses connections" in done.err, words
        assert "Start the server" in done.err, words
    assert cli("doctor", own_redis.url).code == 3
    assert cli("bench", own_redis.url, "--seconds", "0.1").code == 3
    done = cli("demo", "--once", "--redis", own_redis.url)
    assert done.code == 3
    assert "Start the server" in done.err


def test_each_command_tells_that_redis_hangs(cli: Callable[..., Done], own_redis: RedisServer) -> None:
    own_redis.pause()
    for words in OF_REDIS:
        done = cli(*words, "--target", own_redis.url, "--timeout", "0.1")
        assert (done.code, done.out) == (3, ""), words
        assert "does not answer in time" in done.err, words
    assert cli("doctor", own_redis.url, "--timeout", "0.1").code == 3


def test_a_wrong_password_is_told(cli: Callable[..., Done], own_redis: RedisServer) -> None:
    own_redis.command("CONFIG", "SET", "requirepass", "right")
    done = cli("keys", "--target", own_redis.url.replace("//", "//:hunter2@"))
    assert done.code == 3
    assert "password" in done.err
    assert cli("keys", "--target", own_redis.url.replace("//", "//:right@")).code == 1


def test_a_purge_that_redis_does_not_take_is_told(cli: Callable[..., Done], own_redis: RedisServer) -> None:
    asyncio.run(stored_in(own_redis.url, "/a"))
    own_redis.command("ACL", "SETUSER", "default", "-xadd")
    done = cli("purge", "--tag", "a", "--target", own_redis.url, "--timeout", str(PATIENT))
    assert (done.code, done.out) == (3, "")
    assert own_redis.url in done.err


@pytest.mark.parametrize(
    ("url", "told"),
    [
        pytest.param("redis://nobody.invalid", "Correct the host name", id="unknown-host"),
        pytest.param("unix:///no/such.sock", "/no/such.sock", id="no-socket"),
    ],
)
def test_a_redis_that_is_not_there_is_told(cli: Callable[..., Done], url: str, told: str) -> None:
    for words in (["keys", "--target", url], ["stats", "--target", url]):
        done = cli(*words)
        assert done.code == 3
        assert told in done.err


def test_tls_with_a_server_that_has_none_is_told(cli: Callable[..., Done], redis_url: str) -> None:
    done = cli("keys", "--target", redis_url.replace("redis://", "rediss://"), "--timeout", "0.5")
    assert done.code == 3
    assert "TLS" in done.err


# --- Redis ------------------------------------------------------------------------------------------------------------


def test_what_is_in_redis_is_listed_and_filtered(cli: Callable[..., Done], redis_url: str) -> None:
    asyncio.run(stored_in(redis_url, "/a?x=1", "/b", headers={"cache-groups": '"letters"'}))
    target = ("--target", redis_url)
    assert {row[0] for row in cli("keys", *target).rows} == {"http://shop.example/a?x=1", "http://shop.example/b"}
    (row,) = cli("keys", "--match", "*a?x=*", *target).rows
    assert row[0::7] == ["http://shop.example/a?x=1", "letters"]
    assert (row[1], row[6]) == ("200", "fresh")
    assert len(cli("keys", "--tag", "letters", *target).rows) == 2
    document = cli("keys", "--match", "/b", "--json", *target).json
    assert [entry["url"] for entry in document["entries"]] == ["http://shop.example/b"]
    done = cli("keys", "--match", "nothing", *target)
    assert (done.code, done.out) == (1, "")
    assert "nothing that is stored matches" in done.err
    assert cli("keys", "--match", "nothing", "--json", *target).json == {
        "entries": [],
        "more": False,
        "cursor": None,
    }


def test_limit_cuts_the_list_and_all_does_not(cli: Callable[..., Done], redis_url: str) -> None:
    asyncio.run(stored_in(redis_url, *[f"/{number}" for number in range(70)]))
    target = ("--target", redis_url)
    for words, expected in (([], 50), (["--limit", "3"], 3), (["--limit", "60"], 60), (["--all"], 70)):
        done = cli("keys", *words, *target)
        assert len({row[0] for row in done.rows}) == len(done.rows) == expected
        assert ("there may be more" in done.err) == (expected < 70)
    assert len(cli("keys", "--all", "--json", *target).json["entries"]) == 70


def test_inspect_tells_what_a_request_would_get(cli: Callable[..., Done], redis_url: str) -> None:
    asyncio.run(stored_in(redis_url, "/a", headers={"vary": "accept-language"}))
    target = ("--target", redis_url)
    url = "http://shop.example/a"
    assert cli("inspect", url, *target).facts["verdict"].startswith("a hit")
    other = cli("inspect", url, "-H", "Accept-Language: de", *target)
    assert other.code == 0
    assert "other values" in other.facts["verdict"]
    assert cli("inspect", url, "--json", *target).json["levels"]["l2"][0]["status"] == 200
    nothing = cli("inspect", "http://shop.example/b", *target)
    assert nothing.code == 1
    assert "Nothing was stored" in nothing.facts["verdict"]


@pytest.mark.parametrize(
    ("words", "left"),
    [
        pytest.param(["--url", "http://shop.example/a"], {"/b/1", "/b/2"}, id="url"),
        pytest.param(["--url", "/a"], {"/b/1", "/b/2"}, id="path"),
        pytest.param(["--prefix", "/b/"], {"/a"}, id="prefix"),
        pytest.param(["--tag", "letters"], set(), id="tag"),
        pytest.param(["--all", "--yes"], set(), id="all"),
        pytest.param(["--tag", "numbers"], {"/a", "/b/1", "/b/2"}, id="another-tag"),
    ],
)
def test_purge_makes_gone_what_it_names_and_nothing_else(
    cli: Callable[..., Done], redis_url: str, words: list[str], left: set[str]
) -> None:
    asyncio.run(stored_in(redis_url, "/a", "/b/1", "/b/2", headers={"cache-groups": '"letters"'}))
    target = ("--target", redis_url)
    trial = cli("purge", *words, "--dry-run", "--json", *target).json
    assert (trial["purged"], trial["matched"]) == (False, 3 - len(left))
    assert all(row[6] == "fresh" for row in cli("keys", *target).rows)
    done = cli("purge", *words, *target)
    assert done.code == 0
    assert "is gone" in done.out or left == {"/a", "/b/1", "/b/2"}
    fresh = {row[0].removeprefix("http://shop.example") for row in cli("keys", *target).rows if row[6] == "fresh"}
    assert fresh == left


def test_soft_purge_leaves_it_stale(cli: Callable[..., Done], redis_url: str) -> None:
    asyncio.run(stored_in(redis_url, "/a"))
    target = ("--target", redis_url)
    assert "is stale: 1 URL" in cli("purge", "--url", "/a", "--soft", *target).out
    ((*_, stands, _tags),) = cli("keys", *target).rows
    assert stands == "stale"


def test_prefix_and_address_are_those_of_the_app(
    cli: Callable[..., Done], redis_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asyncio.run(stored_in(redis_url, "/a"))
    assert cli("keys", redis_url).code == 0
    assert cli("keys", redis_url.replace("redis://", "REDIS://")).code == 0
    assert cli("keys", redis_url, "--redis-prefix", "other").code == 1
    monkeypatch.setenv("ECHO_CACHE_URL", f"{redis_url}?prefix=other")
    assert cli("keys").code == 1
    monkeypatch.setenv("ECHO_CACHE_TARGET", redis_url)
    assert cli("keys").code == 0
    (tmp_path / "url").write_text(redis_url)
    monkeypatch.delenv("ECHO_CACHE_TARGET")
    monkeypatch.delenv("ECHO_CACHE_URL")
    monkeypatch.setenv("ECHO_CACHE_URL_FILE", str(tmp_path / "url"))
    assert cli("keys").code == 0
    # It is one of this program, not of the app's, which would refuse to start with it; it is none of a Redis.
    monkeypatch.setenv("ECHO_CACHE_TOKEN", TOKEN)
    assert cli("keys").code == 0


def test_what_is_signed_is_listed_inspected_and_purged_without_the_secret(
    cli: Callable[..., Done], redis_url: str
) -> None:
    asyncio.run(stored_in(redis_url, "/signed", secret=SECRET))
    assert cli("keys", redis_url).facts == {"http://shop.example/signed": "200"}
    assert cli("inspect", "http://shop.example/signed", "-t", redis_url).code == 0
    assert "gone: 1 URL" in cli("purge", redis_url, "--url", "/signed").out


def test_the_doctor_passes_over_an_app_in_the_environment(
    cli: Callable[..., Done], redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ECHO_CACHE_TARGET", "http://127.0.0.1:1/_cache")
    monkeypatch.setenv("ECHO_CACHE_URL", redis_url)
    assert f"Redis at {redis_url} answers" in cli("doctor").out


def test_what_is_stored_cannot_steer_a_terminal(redis_url: str, cli: Callable[..., Done]) -> None:
    asyncio.run(stored_in(redis_url, "/%1B[31m?[bold]x", headers={"x-odd": "\x1b[31m[bold]red\x07\x9b"}))
    words = ("inspect", "http://shop.example/%1B[31m?[bold]x", "--target", redis_url)
    done = cli(*words)
    assert done.facts["l2.0.header.x-odd"] == r"\x1b[31m[bold]red\x07\x9b"
    seen = terminal(*words, columns=120)
    assert seen.code == 0
    assert r"\x1b[31m[bold]red\x07\x9b" in seen.out
    assert not {"\x1b[31m", "\x07", "\x9b"} & set(re.findall("\x1b\\[31m|\x07|\x9b", seen.out))
    assert cli(*words, "--json").out.isascii()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        pytest.param("plain [bold]", "plain [bold]", id="plain"),
        pytest.param("\x1b]0;title\x07", r"\x1b]0;title\x07", id="escape"),
        pytest.param("a\tb\r\nc", r"a\tb\r\nc", id="lines-and-columns"),
        pytest.param("\u202eevil", r"\u202eevil", id="right-to-left"),
        pytest.param("\udc80", r"\udc80", id="surrogate"),
        pytest.param("\x9b31m", r"\x9b31m", id="c1"),
        pytest.param("Grüße 日本", "Grüße 日本", id="letters-of-the-world"),
    ],
)
def test_control_characters_are_written_out(text: str, shown: str) -> None:
    assert text_shown(text, None) == shown


# --- a running app ----------------------------------------------------------------------------------------------------


def test_statistics_are_those_of_all_workers(cli: Callable[..., Done], shop: Shop) -> None:
    done = cli("stats", *shop.target)
    assert done.code == 0
    assert {name: done.facts[name] for name in ("workers", "requests", "l1_hits", "misses", "stored", "refused")} == {
        "workers": "1",
        "requests": "5",
        "l1_hits": "1",
        "misses": "4",
        "stored": "3",
        "refused": "1",
    }
    assert ["refusal", "private", "1"] in done.rows
    assert cli("stats", "--json", *shop.target).json["total"]["requests"] == 5


def test_statistics_are_in_redis_too(cli: Callable[..., Done], shop: Shop) -> None:
    # A worker reports by itself, a moment later.
    done = cli("stats", *shop.redis_target)
    for _ in range(200):
        if done.facts.get("requests") == "5":
            break
        done = cli("stats", *shop.redis_target)
    assert (done.facts["workers"], done.facts["requests"]) == ("1", "5")
    assert cli("stats", "--json", *shop.redis_target).json["worker"] is None


def test_without_workers_it_says_so(cli: Callable[..., Done], redis_url: str) -> None:
    done = cli("stats", "--target", redis_url)
    assert (done.code, done.out) == (1, "")
    assert "no worker tells of itself" in done.err
    assert cli("stats", "--json", redis_url).json["workers"] == []


def test_watching_goes_on_once_a_second(cli: Callable[..., Done], shop: Shop) -> None:
    done = cli("stats", "--watch", "--count", "2", *shop.target)
    assert done.code == 0
    assert [row[1:3] for row in done.rows] == [["1", "5"]] * 2
    assert done.rows[1][3] == "0.000"  # requests a second
    done = cli("stats", "--watch", "--count", "1", "--json", *shop.target)
    assert json.loads(done.out)["total"]["requests"] == 5


def test_watching_goes_on_when_the_app_is_away_for_a_while(
    cli: Callable[..., Done], shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    from echo_cache.cli.target import _App

    original, calls = _App.stats, 0

    async def stats(self: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise Unavailable("away")
        return await original(self)

    monkeypatch.setattr(_App, "stats", stats)
    done = cli("stats", "--watch", "--count", "3", "--json", *shop.target)
    assert done.code == 0
    assert ["error" in json.loads(line) for line in done.out.splitlines()] == [False, True, False]


def test_both_levels_of_an_app_are_listed_inspected_purged_and_copied(cli: Callable[..., Done], shop: Shop) -> None:
    product = f"{shop.url}/products/1"
    for level in ("l1", "l2"):
        assert product in {row[0] for row in cli("keys", "--level", level, *shop.target).rows}
    document = cli("inspect", product, "--json", *shop.target).json
    assert (len(document["levels"]["l1"]), len(document["levels"]["l2"])) == (1, 1)
    assert cli("purge", "--tag", "product:1", "--dry-run", *shop.target).rows[1] == ["sample", product]
    assert cli("purge", "--tag", "product:1", *shop.target).code == 0
    assert "invalidated" in cli("inspect", product, *shop.target).facts["verdict"]
    done = cli("sync", "--to", "l1", *shop.target)
    assert (done.code, done.facts["failed"]) == (0, "0")


def test_what_the_app_refuses_is_told_in_its_words(cli: Callable[..., Done]) -> None:
    with uvicorn_server(make_shop(Cache(MemoryStore()))) as server:
        shop = Shop(f"http://127.0.0.1:{server.port}", "")
        done = cli("sync", "--to", "l1", *shop.target)
        assert done.code == 2
        assert "has one level" in done.err


def test_the_path_of_the_dashboard_may_be_left_out(cli: Callable[..., Done], shop: Shop) -> None:
    assert cli("stats", "--target", shop.url, "--token", TOKEN).code == 0


def test_no_proxy_stands_before_this_machine(
    cli: Callable[..., Done], shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", NOWHERE)
    assert cli("stats", *shop.target).code == 0


def test_the_token_comes_from_the_environment(
    cli: Callable[..., Done], shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = ("--target", shop.url)
    none = cli("stats", *target)
    assert none.code == 3
    assert "wants a token" in none.err
    monkeypatch.setenv("ECHO_CACHE_TOKEN", TOKEN)
    assert cli("stats", *target).code == 0
    wrong = cli("stats", *target, "--token", TOKEN[::-1])
    assert wrong.code == 3
    assert "does not accept the token" in wrong.err


def test_that_a_token_goes_unencrypted_is_told(cli: Callable[..., Done], shop: Shop) -> None:
    done = cli("stats", "--target", "http://nobody.invalid/", "--token", TOKEN)
    assert "the token goes over the network as it is" in done.err
    assert "over the network" not in cli("stats", *shop.target).err


# What answers, and what is said of it.
ANSWERS = [
    pytest.param(404, "text/html", b"<h1>Not found</h1>", 3, "no dashboard at", id="not-there"),
    pytest.param(200, "text/html", b"<h1>Hello</h1>", 3, "is not the JSON interface", id="a-page"),
    pytest.param(200, "application/json", b"[1]", 3, "is not the JSON interface", id="a-list"),
    pytest.param(200, "application/json", b"[" * 100_000, 3, "is not the JSON interface", id="deep"),
    pytest.param(200, "application/json", b"\xff", 3, "is not the JSON interface", id="garbage"),
    pytest.param(302, "text/plain", b"", 3, "redirects to http://elsewhere.example.", id="redirect"),
    pytest.param(401, "application/json", b'{"error": "no"}', 3, "wants a token", id="no-token"),
    pytest.param(403, "application/json", b'{"error": "no"}', 3, "It says: no", id="forbidden"),
    pytest.param(400, "application/json", b'{"error": "bad \\u001b[31m"}', 2, r"It says: bad \x1b[31m", id="bad"),
    pytest.param(503, "application/json", b'{"error": "Redis"}', 3, "answers 503. It says: Redis", id="down"),
    pytest.param(500, "text/plain", b"oops", 3, "answers 500", id="broken"),
    pytest.param(503, "application/json", b'{"error": {"a": 1}}', 3, "answers 503", id="error-that-is-no-text"),
]


@pytest.mark.parametrize(("status", "kind", "body", "code", "told"), ANSWERS)
def test_an_answer_that_is_none_is_told(
    cli: Callable[..., Done], status: int, kind: str, body: bytes, code: int, told: str
) -> None:
    async def answer(request: Request) -> Response:
        headers = {"location": "http://elsewhere.example/"} if status == 302 else {}
        return Response(body, status, headers, kind)

    methods = ["GET", "POST"]
    with uvicorn_server(Starlette(routes=[Route("/{path:path}", answer, methods=methods)])) as server:
        target = ("--target", f"http://127.0.0.1:{server.port}/_cache")
        for words in (["stats"], ["keys"], ["purge", "--tag", "a"], ["sync", "--to", "l2"]):
            done = cli(*words, *target)
            assert (done.code, done.out) == (code, ""), words
            assert told in done.err, words


def test_pages_are_followed_to_the_end_and_not_in_circles(cli: Callable[..., Done]) -> None:
    pages = {None: ("a", "1"), "1": ("b", "2"), "2": ("c", None), "9": ("d", "9")}

    async def answer(request: Request) -> Response:
        # Whoever asks for "x" is sent in circles.
        cursor = request.query_params.get("cursor", "9" if "match" in request.query_params else None)
        url, following = pages[cursor]
        return JSONResponse({"entries": [{"url": f"http://h/{url}"}], "cursor": following})

    with uvicorn_server(Starlette(routes=[Route("/_cache/api/entries", answer)])) as server:
        target = ("--target", f"http://127.0.0.1:{server.port}")
        for words in ([], ["--all"]):
            assert [row[0] for row in cli("keys", *words, *target).rows] == ["http://h/a", "http://h/b", "http://h/c"]
        assert [row[0] for row in cli("keys", "--limit", "2", *target).rows] == ["http://h/a", "http://h/b"]
        circles = cli("keys", "--all", "--match", "x", *target)
        assert circles.code == 3
        assert "the same page again and again" in circles.err


NOT_OURS = [
    '{"status": "ok"}',
    '{"total": 1, "workers": {}, "entries": {}, "levels": [], "cursor": 7, "sample": 1, "matched": "x", "seen": "1"}',
    '{"dry_run": false, "purged": false, "propagated": true, "matched": 1, "total": null}',
]


@pytest.mark.parametrize("body", NOT_OURS)
def test_an_object_that_is_none_of_ours_is_no_success(cli: Callable[..., Done], body: str) -> None:
    async def answer(request: Request) -> Response:
        return Response(body, media_type="application/json")

    with uvicorn_server(Starlette(routes=[Route("/{path:path}", answer, methods=["GET", "POST"])])) as server:
        target = f"http://127.0.0.1:{server.port}"
        for words in (
            ["stats"],
            ["keys"],
            ["keys", "--json"],
            ["inspect", "http://a/"],
            ["purge", "--tag", "a"],
            ["purge", "--tag", "a", "--dry-run"],
            ["sync", "--to", "l2"],
        ):
            done = cli(*words, "--target", target)
            assert done.code == 3, words
            assert "is not the JSON interface of echo_cache" in done.err, words


@pytest.mark.parametrize(
    "body",
    [
        '{"total": {"requests": "x", "hit_rate": NaN, "forwards": {"a": "b"}, "routes": [1, {}], "log": 1},'
        '"workers": [{}, 1], "entries": [1, {"tags": [{}], "age": "x", "status": 1e400}],'
        '"levels": {"l1": [1, {"vary": 1, "headers": [1, ["a"], [1, null]], "stored_at": 1e300}], "l2": 1}, '
        '"selected": 1, "total": {"time": 1e99, "requests": 1%s},'
        '"dry_run": true, "purged": false, "sample": [1, {}], "matched": 1, "seen": 1, "copied": 2, "failed": 0}'
        % ("0" * 4_000),
    ],
)
def test_data_of_other_shapes_is_shown_as_far_as_it_goes(cli: Callable[..., Done], body: str) -> None:
    async def answer(request: Request) -> Response:
        return Response(body, media_type="application/json")

    with uvicorn_server(Starlette(routes=[Route("/{path:path}", answer, methods=["GET", "POST"])])) as server:
        target = ("--target", f"http://127.0.0.1:{server.port}/_cache")
        for words in (
            ["stats"],
            ["stats", "--watch", "--count", "1"],
            ["keys"],
            ["inspect", "http://a/"],
            ["purge", "--tag", "a", "--dry-run"],
            ["sync", "--to", "l2"],
        ):
            done = cli(*words, *target)
            assert done.code in (0, 1), (words, done.err)
            # Infinity is none of JSON's numbers.
            json.loads(cli(*words, *target, "--json").out, parse_constant=pytest.fail)
        # Nor does anything count up to a number of 4,000 digits.
        assert cli("stats", *target, "--json").json["total"]["requests"] is None


def test_each_command_tells_that_the_app_is_down(cli: Callable[..., Done]) -> None:
    for words in (*OF_REDIS, ["sync", "--to", "l1"]):
        done = cli(*words, "--target", NOWHERE)
        assert (done.code, done.out) == (3, ""), words
        assert "nothing listens there" in done.err, words
    for words in (["explain", f"{NOWHERE}/"], ["warm", "--sitemap", f"{NOWHERE}/sitemap.xml"]):
        done = cli(*words)
        assert (done.code, done.out) == (3, ""), words
        assert "nothing listens there" in done.err, words
    done = cli("explain", "http://nobody.invalid/", "--json")
    assert done.code == 3
    assert "name of its host is not known" in done.json["error"]


@contextlib.contextmanager
def odd_server(*answers: bytes | None) -> Iterator[int]:
    """A server that gives one of *answers* to each who connects, then always the last, and closes; None: silence."""
    following = itertools.chain(answers, itertools.repeat(answers[-1]))
    kept: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    answer = next(following)
                    if answer is None:
                        kept.append(connection)
                        continue
                    connection.recv(65_536)
                    connection.sendall(answer)
                    connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(PATIENT)
            for connection in kept:
                connection.close()


@pytest.mark.parametrize(
    ("scheme", "answer", "told"),
    [
        pytest.param("http", b"SSH-2.0-OpenSSH\r\n", "as an HTTP server should", id="another-protocol"),
        pytest.param("http", b"", "as an HTTP server should", id="closes"),
        pytest.param("https", bulk(b"x"), "does not speak TLS", id="no-tls"),
        pytest.param(
            "http", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{", "as an HTTP server should", id="cut-off"
        ),
        pytest.param("http", None, "did not answer within 0.3 s", id="silent"),
    ],
)
def test_a_server_of_another_kind_is_told(
    cli: Callable[..., Done], scheme: str, answer: bytes | None, told: str
) -> None:
    with odd_server(answer) as port:
        done = cli("stats", "--target", f"{scheme}://127.0.0.1:{port}", "--timeout", "0.3" if answer is None else "30")
        assert done.code == 3
        assert told in done.err


# --- what looked like success -----------------------------------------------------------------------------------------


def test_a_purge_that_other_workers_are_not_told_of_is_no_success(
    cli: Callable[..., Done], own_redis: RedisServer
) -> None:
    cache = Cache(TwoLevelStore(MemoryStore(), RedisStore(own_redis.url, timeout=0.5)))
    with uvicorn_server(make_shop(cache)) as server:
        shop = Shop(f"http://127.0.0.1:{server.port}", own_redis.url)
        shop.ask("/products/1")
        own_redis.kill()
        done = cli("purge", "--tag", "product:1", *shop.target)
        assert done.code == 3
        assert "in no other" in done.out
        assert "Redis could not be told" in done.err
        document = cli("purge", "--tag", "product:1", "--json", *shop.target)
        assert (document.code, document.json["propagated"]) == (3, False)
        # Nor is it hidden that what Redis has is not known.
        inspected = cli("inspect", f"{shop.url}/products/404", *shop.target)
        assert (inspected.code, inspected.facts["unknown"]) == (3, "l2")
        own_redis.start()  # what is to be told can be told, so that nobody waits at the end


def test_a_purge_under_a_prefix_that_nobody_has_is_no_success_and_leaves_nothing(
    cli: Callable[..., Done], redis_server: RedisServer, redis_url: str
) -> None:
    asyncio.run(stored_in(redis_url, "/a"))
    before = sorted(redis_server.command("KEYS", "*"))
    for words in (["--url", "/a"], ["--all", "--yes"]):
        done = cli("purge", *words, redis_url, "--redis-prefix", "mistyped")
        assert done.code == 1
        assert "nothing was purged" in done.out
        assert "no worker reports and nothing is stored under this prefix" in done.err
    # A log that somebody has begun is told all the same, and it is said that nobody is seen.
    redis_server.command("XADD", "{begun:log}", "*", "open", "x")
    done = cli("purge", "--all", "--yes", redis_url, "--redis-prefix", "begun")
    assert (done.code, "no worker reports" in done.err) == (1, True)
    assert int(redis_server.command("XLEN", "{begun:log}")) > 1
    assert cli("keys", redis_url).code == 0
    redis_server.command("DEL", "{begun:log}", "{begun:log}:run")
    assert sorted(redis_server.command("KEYS", "*")) == before


def test_looking_under_a_prefix_that_nobody_has_leaves_nothing_there(
    cli: Callable[..., Done], redis_server: RedisServer, redis_url: str
) -> None:
    for words in (["stats"], ["keys"], ["inspect", "http://a/"], ["purge", "--tag", "a", "--dry-run"]):
        assert cli(*words, "--target", redis_url, "--redis-prefix", "mistyped").code in (0, 1), words
        assert redis_server.command("KEYS", "*") == [], words


def test_a_purge_says_how_many_urls_it_meant(cli: Callable[..., Done], redis_url: str, shop: Shop) -> None:
    asyncio.run(stored_in(redis_url, "/a", "/b", headers={"cache-groups": '"letters"'}))
    assert "tag letters is gone: 2 URLs" in cli("purge", "--tag", "letters", redis_url).out
    for target in (shop.redis_target, shop.target):
        nothing = cli("purge", "--tag", "no-such-tag", *target)
        assert (nothing.code, "nothing that is stored was meant" in nothing.out) == (0, True)
    assert cli("purge", "--url", "/products/2", "--json", *shop.target).json["matched"] == 1


def test_what_was_purged_is_left_out_of_the_list_unless_it_is_asked_for(
    cli: Callable[..., Done], redis_url: str
) -> None:
    asyncio.run(stored_in(redis_url, "/a", "/b"))
    assert cli("purge", "--url", "/a", redis_url).code == 0
    assert {row[0] for row in cli("keys", redis_url).rows} == {"http://shop.example/b"}
    assert {row[6] for row in cli("keys", "--gone", redis_url).rows} == {"fresh", "gone"}
    assert "would purge 0 URLs" in cli("purge", "--url", "/a", "--dry-run", redis_url).out


def test_a_list_goes_on_by_its_cursor_and_says_when_it_has_ended(cli: Callable[..., Done], shop: Shop) -> None:
    for target in (shop.target, (*shop.target, "--level", "l2")):
        seen: list[str] = []
        cursor: list[str] = []
        for left in (2, 1, 0):
            document = cli("keys", "--limit", "1", "--json", *cursor, *target).json
            seen += [entry["url"] for entry in document["entries"]]
            assert document["more"] is (document["cursor"] is not None) is (left > 0)
            cursor = ["--cursor", document["cursor"]]
        assert sorted(seen) == [f"{shop.url}/products/{number}" for number in (1, 2, 3)]
    assert "--cursor" in cli("keys", "--limit", "1", *shop.target).err
    assert cli("keys", "--limit", "3", *shop.target).err == ""
    assert cli("keys", "--cursor", "x", *shop.target).code == 2


def test_a_list_that_breaks_off_is_still_one_document_with_the_error_in_it(cli: Callable[..., Done]) -> None:
    async def answer(request: Request) -> Response:
        if "cursor" in request.query_params:
            return JSONResponse({"error": "away"}, 503)
        return JSONResponse({"entries": [{"url": "http://h/1"}, {"url": "http://h/2"}], "cursor": "5"})

    with uvicorn_server(Starlette(routes=[Route("/_cache/api/entries", answer)])) as server:
        done = cli("keys", "--all", "--json", f"http://127.0.0.1:{server.port}")
        assert done.code == 3
        assert ([entry["url"] for entry in done.json["entries"]], done.json["cursor"]) == (
            ["http://h/1", "http://h/2"],
            "5",
        )
        assert "It says: away" in done.json["error"]


def test_statistics_of_one_worker_are_not_passed_off_as_those_of_all(
    cli: Callable[..., Done], own_redis: RedisServer
) -> None:
    with uvicorn_server(make_shop(Cache(MemoryStore()))) as server:
        alone = cli("stats", f"http://127.0.0.1:{server.port}", "--token", TOKEN)
        assert (alone.code, alone.facts["workers_known"]) == (0, "false")
        assert "workers know nothing of each other" in alone.err
    cache = Cache(TwoLevelStore(MemoryStore(), RedisStore(own_redis.url, timeout=0.5)))
    with uvicorn_server(make_shop(cache)) as server:
        address = f"http://127.0.0.1:{server.port}"
        # PATIENT: it may be late to be known.
        assert cli("stats", address, "--token", TOKEN).err == ""
        own_redis.kill()
        away = cli("stats", address, "--token", TOKEN)
        assert (away.code, away.facts["workers_known"]) == (0, "false")
        assert "Redis could not be asked" in away.err


def test_a_route_that_is_none_has_a_name(cli: Callable[..., Done]) -> None:
    async def answer(request: Request) -> Response:
        return JSONResponse({"total": {"routes": [{"route": "", "misses": 1}]}, "workers": [{}]})

    with uvicorn_server(Starlette(routes=[Route("/_cache/api/stats", answer)])) as server:
        assert ["route", "(no route)"] in [row[:2] for row in cli("stats", f"http://127.0.0.1:{server.port}").rows]


def test_a_redirect_is_told_as_an_address_that_can_be_given(cli: Callable[..., Done]) -> None:
    async def answer(request: Request) -> Response:
        return RedirectResponse(f"https://user:hunter2@shop.example{request.url.path}?{'x' * 3_000}")

    with uvicorn_server(Starlette(routes=[Route("/{path:path}", answer)])) as server:
        done = cli("stats", f"http://127.0.0.1:{server.port}/ops")
        assert done.code == 3
        assert "redirects to https://shop.example/ops. Give that as the target." in done.err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        pytest.param(
            ["stats"], "Put it into the URL: redis://user:password@host (or :password@host).", id="a-password-is-wanted"
        ),
        pytest.param(["keys"], "Put it into the URL: redis://user:password@host (or :password@host).", id="keys"),
    ],
)
def test_advice_about_addresses_is_not_taken_for_a_password(
    cli: Callable[..., Done], own_redis: RedisServer, words: list[str], sentence: str
) -> None:
    own_redis.command("CONFIG", "SET", "requirepass", "right")
    assert sentence in cli(*words, own_redis.url).err
    form = "a redis URL has the form redis://[user:password@]host[:port][/db]; in user and password, write / ? # @ as"
    told = cli(*words, "redis://user:hunter2@h/x").err
    assert form in told
    assert "hunter2" not in told


def test_the_command_that_is_not_permitted_is_named(cli: Callable[..., Done], own_redis: RedisServer) -> None:
    own_redis.command("ACL", "SETUSER", "default", "-evalsha", "-eval")
    done = cli("stats", own_redis.url)
    assert done.code == 3
    assert re.search(r"ACL SETUSER <user> \+eval(sha)?; echo-cache doctor", done.err)


def test_what_cannot_be_read_is_not_taken_for_nothing(
    cli: Callable[..., Done], redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise StoreError(f"Redis at {redis_url} could not heads: no")

    asyncio.run(stored_in(redis_url, "/a"))
    monkeypatch.setattr(RedisStore, "heads", fail)
    for words in (["inspect", "http://shop.example/a", "-t"], ["keys"]):
        done = cli(*words, redis_url)
        assert (done.code, done.out) == (3, "")
        assert f"Redis at {redis_url} cannot be asked" in done.err
        assert "could not heads" not in done.err


async def test_failures_are_told_as_they_are_however_many_there_were(own_redis: RedisServer) -> None:
    own_redis.kill()
    async with open_target(own_redis.url, Access()) as target:
        for _ in range(5):
            with pytest.raises(Unavailable, match="refuses connections"):
                await target.stats()


def test_copying_takes_no_longer_than_it_may(cli: Callable[..., Done]) -> None:
    with odd_server(None) as port:
        done = cli("sync", "--to", "l1", f"http://127.0.0.1:{port}", "--timeout", "0.3")
        assert (done.code, "did not answer within 0.3 s" in done.err) == (3, True)


def test_tags_that_were_asked_for_are_shown_on_a_narrow_terminal() -> None:
    entry = {"url": "http://h/a", "tags": ["catalog"]}
    for with_tags in (True, False):
        console = Console(file=io.StringIO(), width=60)
        console.print(show.drawn(show.entries_view([entry], with_tags=with_tags), 60))
        assert ("catalog" in console.file.getvalue()) is with_tags  # type: ignore[attr-defined]  # it is a StringIO


# --- explain and warm -------------------------------------------------------------------------------------------------


def test_explain_says_why_and_what_to_change(cli: Callable[..., Done], shop: Shop) -> None:
    hit = cli("explain", f"{shop.url}/products/1")
    assert (hit.code, hit.rows[0][0]) == (0, "hit")
    stored = cli("explain", f"{shop.url}/products/9", "--json")
    assert stored.code == 0
    assert [answer["cache_status"].partition(";")[2].split(";")[0] for answer in stored.json["answers"]] == [
        " fwd=uri-miss",
        " hit",
    ]
    private = cli("explain", f"{shop.url}/private")
    assert private.code == 1
    assert "Cache-Control: private" in private.rows[0][1]
    assert private.rows[1][0] == "change"
    nothing = cli("explain", f"{shop.url}/products/1", "--name", "other")
    assert (nothing.code, nothing.rows[0][0]) == (1, "no_cache")
    assert cli("explain", f"{shop.url}/moved").code == 1


def test_explain_keeps_no_cookie_between_the_two_requests(cli: Callable[..., Done], shop: Shop) -> None:
    done = cli("explain", f"{shop.url}/cookie", "--json")
    assert "sets session" in done.json["sentence"]
    assert [answer["status"] for answer in done.json["answers"]] == [200, 200]


def test_the_name_of_the_cache_is_that_of_the_environment(
    cli: Callable[..., Done], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cache = Cache(MemoryStore(), name="shop")
    with uvicorn_server(make_shop(cache)) as server:
        url = f"http://127.0.0.1:{server.port}/products/1"
        file = tmp_path / "urls"
        file.write_text(url)
        # It is the only one that has spoken.
        alone = cli("explain", url)
        assert (alone.code, "It is shop that was asked about" in alone.out) == (0, True)
        assert cli("warm", str(file)).code == 0
        monkeypatch.setenv("ECHO_CACHE_NAME", "shop")
        assert "that was asked about" not in cli("explain", url).out
        monkeypatch.setenv("ECHO_CACHE_NAME", "other")
        assert [cli("explain", url).code, cli("warm", str(file)).code] == [1, 1]
        assert cli("explain", url, "--name", "shop").code == 0


def test_the_first_answer_is_explained_where_there_is_no_second(cli: Callable[..., Done]) -> None:
    first = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\ncache-status: echo_cache; fwd=uri-miss; stored\r\n\r\n"
    with odd_server(first, b"") as port:
        done = cli("explain", f"http://127.0.0.1:{port}/")
        assert (done.code, done.rows[0][0], [row[0] for row in done.rows].count("answer")) == (0, "stored", 1)
        assert "the second request" in done.err


def test_a_connection_that_was_closed_meanwhile_is_made_anew(cli: Callable[..., Done], tmp_path: Path) -> None:
    stored = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\ncache-status: echo_cache; hit\r\n\r\n"
    file = tmp_path / "urls"
    with odd_server(b"", stored) as port:
        file.write_text(f"http://127.0.0.1:{port}/a\n")
        done = cli("warm", str(file))
        assert (done.code, done.facts["hits"]) == (0, "1")


def test_explain_ends_where_the_answer_does_not(cli: Callable[..., Done], shop: Shop) -> None:
    done = cli("explain", f"{shop.url}/endless", "--timeout", "0.5")
    assert done.code == 1
    assert "event stream" in done.out


def test_warming_stores_what_a_file_names(
    cli: Callable[..., Done], shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "urls"
    file.write_text(f"# ours\n{shop.url}/products/1\n\n{shop.url}/products/8\n{shop.url}/private\n")
    done = cli("warm", str(file))
    assert done.code == 0
    facts = {name: int(done.facts[name]) for name in ("done", "stored", "hits", "uncached", "failed")}
    assert facts == {"done": 3, "stored": 1, "hits": 1, "uncached": 1, "failed": 0}
    assert "private" in next(row[2] for row in done.rows if row[0] == "reason")
    file.write_text(f"{shop.url}/products/8\n{shop.url}/broken\n{NOWHERE}/\n")
    failed = cli("warm", str(file), "--json")
    assert (failed.code, failed.json["hits"], failed.json["failed"]) == (1, 1, 2)
    assert {problem["problem"].split(":")[0] for problem in failed.json["problems"]} >= {"it answers 500"}
    file.write_text(f"{shop.url}/products/8\n{shop.url}/nothing\nno URL\n")
    missing = cli("warm", str(file), "--json")
    counts = {name: missing.json[name] for name in ("wanted", "done", "hits", "failed")}
    assert (missing.code, counts) == (1, {"wanted": 3, "done": 3, "hits": 1, "failed": 2})
    assert [problem["problem"][:14] for problem in missing.json["problems"]] == ["it answers 404", "an absolute UR"]
    assert missing.json["problems"][1]["url"] == "line 3"
    file.write_text(f"{shop.url}/private\n")
    assert cli("warm", str(file)).code == 1


@pytest.mark.parametrize(
    ("content", "told"),
    [
        pytest.param(b"not a URL\n", "line 1; an absolute URL is needed", id="no-url"),
        pytest.param(b"# nothing\n", "no URL in it", id="empty"),
        pytest.param(b"\xff\xfe", "no UTF-8 text", id="no-text"),
        pytest.param(b"http://user:hunter2@h/\n", "no user and password", id="password"),
    ],
)
def test_a_file_that_names_no_urls_is_told(cli: Callable[..., Done], tmp_path: Path, content: bytes, told: str) -> None:
    file = tmp_path / "urls"
    file.write_bytes(content)
    done = cli("warm", str(file))
    assert done.code == 2
    assert told in done.err
    assert "hunter2" not in done.err


def test_warming_gives_up_a_host_where_nobody_answers(cli: Callable[..., Done], shop: Shop, tmp_path: Path) -> None:
    file = tmp_path / "urls"
    nowhere = "".join(f"{NOWHERE}/{number}\n" for number in range(1_000))
    file.write_text(f"{shop.url}/products/1\n{nowhere}")
    done = cli("warm", str(file), "--json", "--concurrency", "1")
    # What another host has answered is told, too.
    problems = [problem["problem"] for problem in done.json["problems"]]
    assert ["not asked" in problem for problem in problems] == [False] * 16 + [True] * 4
    assert (done.code, done.json["done"], done.json["hits"], done.json["failed"]) == (1, 1_001, 1, 1_000)
    file.write_text(nowhere)
    done = cli("warm", str(file))
    assert (done.code, done.facts["done"], done.facts["failed"]) == (3, "1000", "1000")
    assert "nothing listens there" in done.err


def test_a_sitemap_is_followed_on_its_own_host_alone(cli: Callable[..., Done], shop: Shop) -> None:
    done = cli("warm", "--sitemap", f"{shop.url}/index.xml", "--json")
    assert (done.code, done.json["wanted"], done.json["hits"], done.json["stored"]) == (0, 3, 2, 1)
    assert "left out: 2 URLs of other hosts" in done.err
    none = cli("warm", "--sitemap", f"{shop.url}/products/1")
    assert none.code == 2
    assert "no sitemap" in none.err
    assert cli("warm", "--sitemap", f"{shop.url}/broken").code == 3
    moved = cli("warm", "--sitemap", f"{shop.url}/moved")
    assert moved.code == 3
    assert "elsewhere.example" in moved.err


# --- this machine -----------------------------------------------------------------------------------------------------


def test_doctor_finds_nothing_wrong_or_says_what_is(cli: Callable[..., Done], own_redis: RedisServer) -> None:
    done = cli("doctor", own_redis.url)
    assert done.code == 0
    assert done.rows[0][0] == "ok"
    own_redis.command("CONFIG", "SET", "maxmemory", "1mb")
    own_redis.command("CONFIG", "SET", "maxmemory-policy", "noeviction")
    sick = cli("doctor", own_redis.url, "--json")
    assert sick.code == 1
    assert sick.json["problems"] == sum(finding["level"] == "problem" for finding in sick.json["findings"]) > 0
    assert any("noeviction" in finding["what"] for finding in sick.json["findings"])


def test_bench_measures_with_and_without_redis(cli: Callable[..., Done], redis_url: str) -> None:
    assert [row[0] for row in cli("bench", "--seconds", "0.1").rows][:2] == ["bare app", "hit in memory"]
    document = cli("bench", redis_url, "--seconds", "0.2", "--json").json
    assert len(document["rows"]) > 3


def test_the_doctor_judges_by_the_time_that_the_app_waits(
    cli: Callable[..., Done], redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ECHO_CACHE_TIMEOUT", "7s")
    assert "RedisStore waits for 7000 ms" in cli("doctor", redis_url).out


def test_bench_loads_no_redis_that_it_was_not_told_of(
    cli: Callable[..., Done], redis_server: RedisServer, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ECHO_CACHE_URL", redis_url)
    monkeypatch.setenv("ECHO_CACHE_TARGET", redis_url)
    assert cli("bench", "--seconds", "0.1", "--json").json["redis"] is None


def test_bench_that_is_told_to_end_cleans_up_and_what_is_killed_ends_by_itself(
    redis_server: RedisServer, redis_url: str
) -> None:
    child = subprocess.Popen(command("bench", redis_url, "--seconds", "500"), cwd=ROOT, stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + DEADLINE
        while not any(":1:" in name or ":2:" in name for name in redis_server.command("KEYS", "*bench*")):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        names = redis_server.command("KEYS", "*bench*")
        assert any(name.endswith(":log}") for name in names)
        assert all(int(redis_server.command("PTTL", name)) != -1 for name in names)
        child.send_signal(signal.SIGTERM)
        _, told = child.communicate(timeout=DEADLINE)
        assert (child.returncode, told) == (143, b"")
        assert [name for name in redis_server.command("KEYS", "*") if ":lease:" not in name] == []
    finally:
        child.kill()
        child.communicate()


def test_the_demo_keeps_away_from_the_apps_own_names_and_leaves_none(
    cli: Callable[..., Done], redis_server: RedisServer, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ECHO_CACHE_PREFIX", "shop")
    mine = f"shop:{FORMAT_VERSION}:{{mine}}"
    redis_server.command("SET", mine, "x")
    assert cli("demo", "--once", "--redis", redis_url).code == 0
    assert [name for name in redis_server.command("KEYS", "*") if ":lease:" not in name] == [mine]


def test_version_is_told(cli: Callable[..., Done]) -> None:
    assert cli("--version").out == f"echo-cache {cli('version').facts['version']}\n"
    assert cli("version").facts["version"] == cli("version", "--json").json["version"]


def test_the_tour_shows_a_miss_a_hit_and_a_purge(cli: Callable[..., Done], redis_url: str) -> None:
    steps: list[dict[str, Any]] = []
    for words in ([], ["--redis", redis_url]):
        steps = cli("demo", "--once", "--json", *words).json["steps"]
        said = [step["cache_status"].partition("; ")[2].partition(";")[0] for step in steps]
        assert said == ["fwd=uri-miss", "hit", "hit", "fwd=method", "fwd=uri-miss", "hit", "fwd=uri-miss"]
    assert len(cli("demo", "--once").rows) == len(steps)


def test_the_demo_serves_a_shop_with_its_dashboard_until_it_is_interrupted(cli: Callable[..., Done]) -> None:
    child = subprocess.Popen(command("demo", "--port", "0"), cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        assert child.stderr is not None
        found = re.search(r"http://[\d.:]+", child.stderr.readline())
        assert found is not None
        shop = found[0]
        assert cli("explain", f"{shop}/products/1").code == 0
        assert cli("keys", "--target", shop).code == 0
        taken = cli("demo", "--port", shop.rpartition(":")[2])
        assert taken.code == 3
        assert "choose another by --port" in taken.err
        child.send_signal(signal.SIGINT)
        _, told = child.communicate(timeout=DEADLINE)
        assert child.returncode == 130
        assert "Traceback" not in told
    finally:
        child.kill()
        child.wait()


# --- streams, terminals, signals --------------------------------------------------------------------------------------


def test_a_pipe_gets_lines_with_tabs_and_no_colours(shop: Shop) -> None:
    done = process("keys", *shop.target, env={"FORCE_COLOR": "1"})
    assert (done.code, done.err) == (0, "")
    assert "\x1b" not in done.out
    assert {len(row) for row in done.rows} == {8}
    read = process("warm", "-", "--json", stdin=f"{shop.url}/products/1\n")
    assert (read.code, read.json["hits"]) == (0, 1)


def test_a_terminal_gets_a_table_of_its_width(shop: Shop) -> None:
    seen = terminal("keys", *shop.target, columns=60)
    assert seen.code == 0
    assert "status" in seen.out
    lines = re.sub("\x1b\\[[0-9;]*m", "", seen.out).splitlines()
    assert max(map(len, lines)) <= 60
    assert "".join(line.split(" ")[0] for line in lines).count("/products/") == 3
    colours = "\x1b\\[[0-9;]*3[0-9][0-9;]*m"
    assert not re.search(colours, terminal("doctor", shop.redis, env={"NO_COLOR": "1"}).out)


def test_a_terminal_is_asked_before_everything_is_purged(cli: Callable[..., Done], shop: Shop) -> None:
    seen = terminal("purge", "--all", *shop.target, typed="n\n")
    assert seen.code == 1
    assert "Purge everything" in seen.out
    assert "nothing was purged" in seen.out
    assert cli("keys", *shop.target).code == 0
    seen = terminal("purge", "--all", *shop.target, typed="y\n")
    assert seen.code == 0
    assert cli("keys", *shop.target).code == 1


def test_a_terminal_shows_how_far_warming_is_and_watching_in_place(shop: Shop, tmp_path: Path) -> None:
    file = tmp_path / "urls"
    file.write_text("".join(f"{shop.url}/products/{number}\n" for number in range(20)))
    seen = terminal("warm", str(file))
    assert seen.code == 0
    assert "warming" in seen.out
    seen = terminal("stats", "--watch", "--count", "1", *shop.target)
    assert seen.code == 0
    assert "requests" in seen.out


@pytest.mark.parametrize(
    ("target", "code", "told"),
    [
        pytest.param("> /dev/full", 3, "cannot be written", id="full-disk"),
        pytest.param(">&-", 0, "", id="closed"),
    ],
)
def test_a_stdout_that_takes_nothing_is_no_defect(target: str, code: int, told: str) -> None:
    if "full" in target and not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    line = f"{sys.executable} -m echo_cache --help {target}"
    done = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE)
    assert done.returncode == code
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


@pytest.mark.parametrize(
    ("words", "code"),
    [
        pytest.param(["--help"], 0, id="done"),
        pytest.param(["nothing", "--json"], 2, id="failed-as-json"),
        pytest.param(["nothing"], 2, id="failed"),
    ],
)
@pytest.mark.parametrize("is_buffered", [True, False], ids=["buffered", "unbuffered"])
def test_readers_that_have_left_change_nothing(words: list[str], code: int, *, is_buffered: bool) -> None:
    theirs, ours = os.pipe()
    os.close(theirs)
    # Python takes an empty one for none.
    env = {**os.environ, "PYTHONUNBUFFERED": "" if is_buffered else "1"}
    try:
        done = subprocess.run(command(*words), cwd=ROOT, stdout=ours, stderr=ours, timeout=DEADLINE, env=env)
    finally:
        os.close(ours)
    assert done.returncode == code


def test_interrupted_it_ends_with_130_and_no_traceback(shop: Shop) -> None:
    child = subprocess.Popen(
        command("stats", "--watch", "--json", *shop.target),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdout is not None
        assert "total" in json.loads(child.stdout.readline())
        child.send_signal(signal.SIGINT)
        _, told = child.communicate(timeout=DEADLINE)
        assert (child.returncode, told) == (130, "")
    finally:
        child.kill()
        child.wait()


# --- the document -----------------------------------------------------------------------------------------------------


def _options(parameters: Sequence[Any]) -> set[str]:
    return {name for one in parameters for name in (*one.opts, *one.secondary_opts) if name.startswith("--")} - {
        "--help",
        "--install-completion",
        "--show-completion",
    }


def test_the_document_has_each_command_and_option_and_no_other() -> None:
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    parts = re.split(r"^## (.*)$", text, flags=re.MULTILINE)
    sections = dict(zip(parts[1::2], parts[2::2], strict=True))
    tree: Any = typer.main.get_command(commands)
    assert set(tree.commands) <= set(sections)
    common = set(re.findall(r"`(--[a-z-]+)", sections["What all commands have in common"]))
    for name, one in tree.commands.items():
        told = set(re.findall(r"(--[a-z][a-z-]*)", sections[name]))
        there = _options(one.params)
        assert told <= there, (name, told - there)
        assert there <= told | common, (name, there - told - common)


def test_each_command_has_help_with_its_exit_code_where_it_may_say_no(cli: Callable[..., Done]) -> None:
    tree: Any = typer.main.get_command(commands)
    for name, one in tree.commands.items():
        assert one.help, name
        assert all(parameter.help for parameter in one.params if parameter.name != "help"), name
        assert cli(name, "--help").code == 0
