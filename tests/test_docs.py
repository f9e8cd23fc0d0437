"""
The documents say what is true: their Python runs, their links lead somewhere, their tables agree with the code.

Fenced blocks of Python run, each by itself. HTML comments, which a reader does not see, say what else is needed:

    <!-- continues -->          it goes on where the block before it on the page has ended
    <!-- not run: reason -->    a signature, or another library's code; it must still compile
    <!-- before ... -->         Python that runs before the block: what a reader has in his own app
    <!-- after ... -->          Python that runs after it: what the text around claims

A fenced block of text whose lines are requests to the `app` of the blocks before it is asked, line by line:

    GET /products/7  [Accept: text/html]   200  echo_cache; fwd=uri-miss; ttl=60; stored

That is method, target, fields, status and Cache-Status; "-" is none.

Warnings are errors here as everywhere: what a document shows must not warn, and the cache must not be in trouble.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import gc
import importlib.util
import inspect
import logging
import os
import re
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, Final

import httpx
import pytest

import echo_cache
from echo_cache import (
    Cache,
    HTTPCacheMiddleware,
    MemoryStore,
    PolicyOptions,
    Refusal,
    RouteOptions,
    cached,
    never_cached,
)
from echo_cache.cli.main import run as run_command_line
from echo_cache.testing import ManualClock, Response, ScriptedApp, call

ROOT: Final = Path(__file__).parent.parent
DOCS: Final = ROOT / "docs"
API_PAGE: Final = DOCS / "api.md"
PAGES: Final = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
LINKED: Final = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(ROOT.glob("*/README.md"))]

# What is not run is not known to be right. Raise this only for code that is not ours.
MOST_NOT_RUN: Final = 6

_TOKEN: Final = re.compile(
    r"<!--(?P<comment>.*?)-->|^```(?P<language>[^\n]*)\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE
)
_REQUEST: Final = re.compile(
    r"(?P<method>GET|HEAD|POST|PUT|PATCH|DELETE) (?P<target>/\S*)(?P<headers>(?: +\[[^]]+\])*)"
    r" +(?P<status>\d{3}) +(?P<said>\S.*)"
)
_REDIS: Final = re.compile(r"redis://localhost(?::6379)?(?:/0)?")
_POSTGRES: Final = re.compile(r"postgresql://[^\s\"']+")
SECRET: Final = "0123456789abcdef0123456789abcdef"


@dataclass
class Block:
    """A fenced block, and what the comments around it say. lines count from 1; *line* is that of the fence."""

    page: Path
    line: int
    language: str
    code: str
    continues: bool = False
    not_run: str | None = None
    before: list[tuple[int, str]] = field(default_factory=list)
    after: list[tuple[int, str]] = field(default_factory=list)

    @property
    def is_python(self) -> bool:
        return self.language == "python"

    @property
    def requests(self) -> list[re.Match[str]]:
        """The requests that a block of text consists of; none when it is about something else."""
        if self.language != "text":
            return []
        lines = [line for line in self.code.splitlines() if line.strip()]
        found = [match for line in lines if (match := _REQUEST.fullmatch(line.strip()))]
        assert len(found) in (0, len(lines)), f"{self.name}: not every line is a request"
        return found

    @property
    def name(self) -> str:
        return f"{self.page.name}:{self.line}"

    @property
    def sources(self) -> list[tuple[int, str]]:
        """What runs, in order, each with the line of the page that it stands on."""
        return [*self.before, (self.line + 1, self.code), *self.after]


def blocks_of(page: Path) -> list[Block]:
    """Return the fenced blocks of *page*. Fails on a comment that belongs to none."""
    text = page.read_text(encoding="utf-8")
    blocks: list[Block] = []
    waiting: list[tuple[int, str]] = []
    end = 0
    for token in _TOKEN.finditer(text):
        line = text.count("\n", 0, token.start()) + 1
        between, end = text[end : token.start()].strip(), token.end()
        assert not (waiting and between), f"{page.name}:{line}: a comment for a block, and no block follows"
        if (comment := token["comment"]) is not None:
            word, _, code = comment.partition("\n")
            if word.strip() == "after":
                assert blocks, f"{page.name}:{line}: 'after' what?"
                assert not between, f"{page.name}:{line}: 'after' must follow its block at once"
                blocks[-1].after.append((line + 1, code))
            elif word.strip() in ("before", "continues") or word.strip().startswith("not run:"):
                waiting.append((line, comment))
            continue
        block = Block(page, line, token["language"], token["code"])
        for at, comment in waiting:
            word, _, code = comment.partition("\n")
            if word.strip() == "before":
                block.before.append((at + 1, code))
            elif word.strip() == "continues":
                block.continues = True
            else:
                block.not_run = word.partition(":")[2].strip()
                assert block.not_run, f"{block.name}: say why it is not run"
        waiting = []
        blocks.append(block)
    assert not waiting, f"{page.name}: a comment for a block at the end, and no block follows"
    return blocks


# The reference is made of docstrings: its signatures are no programs, and it has a test of its own.
BLOCKS: Final = [block for page in PAGES if page != API_PAGE for block in blocks_of(page)]


def programs() -> Iterator[list[Block]]:
    """Yield what runs as one: a block of Python, those that continue it, and the requests between them."""
    program: list[Block] = []
    for page in PAGES:
        for block in [block for block in BLOCKS if block.page == page]:
            # What indexes show of the README, they show with its comments: there, each block continues the last.
            continues = block.continues or (program and page.parent == ROOT)
            if block.is_python and block.not_run is None and not continues:
                if program:
                    yield program
                program = [block]
            elif (block.is_python and block.not_run is None) or block.requests:
                assert program, f"{block.name} continues nothing"
                program.append(block)
        if program:
            yield program
        program = []


# --- running ----------------------------------------------------------------------------------------------------------


class Running:
    """The namespace of a program under way, and its app."""

    def __init__(self, page: Path, replace: Callable[[str], str]) -> None:
        self._page = page
        self._replace = replace
        self.module = ModuleType(f"documented_{page.stem.replace('-', '_').replace('.', '_')}")
        self._apps = contextlib.AsyncExitStack()
        self._client: tuple[Any, httpx.AsyncClient] | None = None

    async def run(self, line: int, source: str) -> None:
        """Run *source*, which begins on *line* of the page. It may await."""
        code: CodeType = compile(
            "\n" * (line - 1) + self._replace(source),
            str(self._page),
            "exec",
            flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT,
            dont_inherit=True,
        )
        done = eval(code, self.module.__dict__)
        if code.co_flags & inspect.CO_COROUTINE:
            await done

    async def ask(self, method: str, target: str, headers: list[tuple[str, str]]) -> httpx.Response:
        """Ask the app of the program, which is started for it."""
        app = self.module.__dict__["app"]
        if self._client is None or self._client[0] is not app:
            await self._apps.aclose()
            client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop.example")
            await self._apps.enter_async_context(lifespan(app))
            self._client = app, await self._apps.enter_async_context(client)
        return await self._client[1].request(method, target, headers=headers)

    async def finish(self) -> None:
        """Start and stop the app, if nobody has asked it, and close what is open."""
        try:
            app = self.module.__dict__.get("app")
            middleware = [made.cls for made in getattr(app, "user_middleware", ())]
            if HTTPCacheMiddleware in middleware and self._client is None:
                response = await self.ask("GET", "/nowhere/at/all", [])
                assert middleware[0] is not HTTPCacheMiddleware or "cache-status" in response.headers
        finally:
            await self._apps.aclose()
            for value in list(self.module.__dict__.values()):
                if type(value).__module__.partition(".")[0] == "echo_cache" and hasattr(value, "aclose"):
                    await value.aclose()


@contextlib.asynccontextmanager
async def lifespan(app: Any) -> AsyncIterator[None]:
    """Start *app* as a server does, and stop it at the end."""
    to_app: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    from_app: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": {}}
    task = asyncio.ensure_future(app(scope, to_app.get, from_app.put))
    for stage in ("startup", "shutdown"):
        to_app.put_nowait({"type": f"lifespan.{stage}"})
        told = asyncio.ensure_future(from_app.get())
        await asyncio.wait([task, told], return_when=asyncio.FIRST_COMPLETED)
        if not told.done():
            told.cancel()
            await task  # raises what the app has raised
            raise AssertionError("the app has no lifespan")
        message = told.result()
        assert message["type"] == f"lifespan.{stage}.complete", message
        if stage == "startup":
            try:
                yield
            except BaseException:
                task.cancel()
                raise
    await task


def ask_as_written(written: re.Match[str]) -> tuple[str, str, list[tuple[str, str]]]:
    """Return method, target and fields of a request in a document."""
    fields = [line.partition(": ") for line in re.findall(r"\[([^]]+)\]", written["headers"])]
    return written["method"], written["target"], [(name, value) for name, _, value in fields]


def without_ttl(said: str) -> tuple[str, int | None]:
    """Return a Cache-Status without its ttl, and the ttl."""
    ttl = re.search(r"ttl=(-?\d+)", said)
    return re.sub(r"ttl=-?\d+", "ttl", said), None if ttl is None else int(ttl[1])


def assert_said(name: str, written: re.Match[str], response: httpx.Response) -> None:
    """Check status and Cache-Status; the ttl of a hit may differ by the seconds that the reader took, or the test."""
    assert response.status_code == int(written["status"]), f"{name}: {written[0]}: {response.status_code}"
    wanted, wanted_ttl = without_ttl(written["said"].strip())
    said, ttl = without_ttl(response.headers.get("cache-status", "-"))
    assert said == wanted, f"{name}: {written[0]}: {response.headers.get('cache-status', '-')}"
    assert (ttl is None) == (wanted_ttl is None)
    if ttl is not None and wanted_ttl is not None:
        # What is stored has its whole lifetime; a hit, what is left of it.
        slack = 0 if "; stored" in said else 10
        assert abs(ttl - wanted_ttl) <= slack, f"{name}: {written[0]}: ttl={ttl}"


@pytest.mark.parametrize("program", [pytest.param(p, id="+".join(b.name for b in p)) for p in programs()])
def test_python_of_the_documents_runs(
    program: list[Block],
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    text = "".join(code for block in program for _, code in block.sources)
    redis = postgres = ""
    if _REDIS.search(text) or "REDIS_URL" in text:
        redis = request.getfixturevalue("redis_url")
        monkeypatch.setenv("REDIS_URL", redis)
    if _POSTGRES.search(text) or "POSTGRES_URL" in text:
        postgres = request.getfixturevalue("postgres_url")
        monkeypatch.setenv("POSTGRES_URL", postgres)
    monkeypatch.setenv("CACHE_SECRET", SECRET)
    monkeypatch.setenv("ECHO_CACHE_DASHBOARD_TOKEN", SECRET)
    monkeypatch.chdir(tmp_path)

    def replace(source: str) -> str:
        return _POSTGRES.sub(lambda _: postgres, _REDIS.sub(lambda _: redis, source))

    running = Running(program[0].page, replace)
    monkeypatch.setitem(sys.modules, running.module.__name__, running.module)

    async def run() -> None:
        try:
            for block in program:
                if block.is_python:
                    for line, source in block.sources:
                        await running.run(line, source)
                for written in block.requests:
                    assert_said(block.name, written, await running.ask(*ask_as_written(written)))
        finally:
            await running.finish()

    with caplog.at_level(logging.WARNING, logger="echo_cache"):
        asyncio.run(run())
        running.module.__dict__.clear()
        gc.collect()  # what was left open is this program's fault, not that of the next
    assert [r.getMessage() for r in caplog.records if r.name == "echo_cache"] == []


async def test_readme_shows_what_its_first_example_says(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ECHO_CACHE_DASHBOARD_TOKEN", SECRET)
    shown = re.findall(r"^cache-status: (.+)$", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE)
    assert len(shown) == 2
    first = next(block for block in BLOCKS if block.page == ROOT / "README.md" and block.is_python)
    running = Running(first.page, lambda source: _REDIS.sub(redis_url, source))
    try:
        await running.run(first.line + 1, first.code)
        for said in shown:
            written = _REQUEST.fullmatch(f"GET /products/7 200 {said}")
            assert written is not None
            assert_said(first.name, written, await running.ask("GET", "/products/7", []))
    finally:
        await running.finish()


def test_files_that_the_documents_name_are_there() -> None:
    for page in PAGES:
        if page != API_PAGE:
            named = re.findall(
                r"`((?:examples|tests|benchmarks|docs)/[\w/.-]+\.\w+)`", page.read_text(encoding="utf-8")
            )
            assert [path for path in named if not (ROOT / path).exists()] == [], page.name


def test_what_is_not_run_is_little_and_compiles() -> None:
    not_run = [block for block in BLOCKS if block.not_run is not None]
    assert len(not_run) <= MOST_NOT_RUN, [f"{block.name}: {block.not_run}" for block in not_run]
    for block in not_run:
        compile(block.code, str(block.page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)


def test_blocks_are_all_seen_and_named_by_their_language() -> None:
    for page in PAGES:
        fences = re.findall(r"^\s*```", page.read_text(encoding="utf-8"), re.MULTILINE)
        if page != API_PAGE:
            assert len(fences) == 2 * len([block for block in BLOCKS if block.page == page]), page.name
    # "py" or "Python" would not be run.
    assert {block.language for block in BLOCKS} <= {
        "",
        "python",
        "text",
        "bash",
        "yaml",
        "nginx",
        "conf",
        "json",
        "toml",
    }


# --- commands ---------------------------------------------------------------------------------------------------------


def command_lines() -> Iterator[tuple[Block, str]]:
    for block in BLOCKS:
        if block.language == "bash":
            for line in block.code.replace("\\\n", " ").splitlines():
                yield block, line.partition("#")[0].strip()


def test_make_targets_in_the_documents_are_there() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][\w-]*):", makefile, re.MULTILINE))
    named = {word for page in LINKED for word in re.findall(r"\bmake ([a-z]+)\b", code_of(page.read_text("utf-8")))}
    assert named >= {"demo", "test"}
    assert named <= targets


def test_commands_of_echo_cache_in_the_documents_are_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    named = {match[1] for _, line in command_lines() if (match := re.match(r"echo-cache ([a-z][\w-]*)", line))}
    assert named >= {"demo", "doctor", "stats"}
    for command in sorted(named):
        monkeypatch.setattr(sys, "argv", ["echo-cache", command, "--help"])
        assert run_command_line() == 0, f"echo-cache {command}: {capsys.readouterr().err}"


def code_of(text: str) -> str:
    """Return what a page has in code: inline, indented or fenced."""
    fenced = "\n".join(re.findall(r"^```.*?^```$", text, re.DOTALL | re.MULTILINE))
    indented = "\n".join(re.findall(r"^ {4}.*$", text, re.MULTILINE))
    inline = "\n".join(re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text))
    return f"{fenced}\n{indented}\n{inline}"


# --- links ------------------------------------------------------------------------------------------------------------


def anchors_of(page: Path) -> set[str]:
    """Return the anchors that GitHub gives the headings of *page*."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    seen: dict[str, int] = {}
    anchors = set()
    for heading in re.findall(r"^#+ +(.+)$", text, re.MULTILINE):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        anchor = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        count = seen.get(anchor, 0)
        seen[anchor] = count + 1
        anchors.add(f"{anchor}-{count}" if count else anchor)
    return anchors


def links_of(page: Path) -> list[str]:
    text = re.sub(r"^```.*?^```$|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"\]\(([^)\s]+)\)", text)


@pytest.mark.parametrize("page", [pytest.param(page, id=str(page.relative_to(ROOT))) for page in LINKED])
def test_links_lead_somewhere(page: Path) -> None:
    for link in links_of(page):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {link}"
        if anchor:
            assert anchor in anchors_of(target), f"{page.name}: {link}; there are {sorted(anchors_of(target))}"


def test_index_of_the_documents_names_every_page() -> None:
    index = DOCS / "README.md"
    named = {(DOCS / link.partition("#")[0]).resolve() for link in links_of(index)}
    assert {page.name for page in PAGES if page.parent == DOCS and page != index} <= {page.name for page in named}


# --- the reference ----------------------------------------------------------------------------------------------------


def reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_api", DOCS / "make_api.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_reference_is_what_the_docstrings_say() -> None:
    made = reference().reference()
    assert API_PAGE.read_text(encoding="utf-8") == made, "run: python docs/make_api.py"


def test_reference_shows_nothing_of_the_machine() -> None:
    page = API_PAGE.read_text(encoding="utf-8")
    shown = {name for name, value in os.environ.items() if len(value) > 20 and value in page}
    assert not shown
    assert not re.search(r" at 0x[0-9a-f]+|\benviron\(", page)
    assert str(ROOT) not in page


def test_reference_has_every_public_name() -> None:
    headings = anchors_of(API_PAGE)
    assert {name.lower() for name in echo_cache.__all__} <= headings


# --- how a response is stored -----------------------------------------------------------------------------------------

# One example for each row of the first table of storing.md: what of a plain, storable exchange is changed.
Change = dict[str, Any]
REFUSED_BY: Final[dict[str, Change]] = {
    "method": {"method": "HEAD"},
    "request-body": {"body": b"x"},
    "request-range": {"asked": {"range": "bytes=0-1"}},
    "request-no-store": {"asked": {"cache-control": "no-store"}},
    "host-not-allowed": {"asked": {"host": "other.example"}},
    "suspect-request": {"asked": {"x-http-method-override": "DELETE"}},
    "authorization": {"asked": {"authorization": "Bearer t"}},
    "route": {"route": never_cached},
    "partial": {"answer": {"content-range": "bytes 0-1/5"}},
    "status": {"status": 429},
    "must-understand": {"status": 299, "cache-control": "must-understand"},
    "no-store": {"cache-control": "no-store"},
    "private": {"cache-control": "private"},
    "set-cookie": {"answer": {"set-cookie": "a=b"}},
    "event-stream": {"answer": {"content-type": "text/event-stream"}},
    "vary": {"answer": {"vary": "*"}},
    "invalid-field": {"answer": {"x-note": "a\x00b"}},
    "header-size": {"answer": {"x-long": "x" * 40_000}},
    "no-freshness": {"status": 201, "max-age": False},
    "credentials": {"asked": {"cookie": "s=1"}, "max-age": False},
    "already-stale": {"answer": {"expires": "0"}, "max-age": False},
    "trailers": {"trailers": True},
    "body-size": {"answer": {"content-length": "9000000"}},
}
"""In the order in which the code asks."""

# What is known only when the head has been sent.
AFTER_THE_HEAD: Final = {"incomplete", "overtaken"}
# With these nothing is filled, so that no reason is needed: Cache-Status says why the request was forwarded.
NOT_FILLED: Final = {
    "method": "fwd=uri-miss",
    "request-body": "fwd=bypass",
    "request-range": "fwd=uri-miss",
    "request-no-store": "fwd=uri-miss",
}
OPTIONS: Final = PolicyOptions(allowed_hosts=["test"])


async def exchange(*changes: Change, options: PolicyOptions = OPTIONS) -> Response:
    """Return what a client gets from a storable exchange with these *changes*."""
    directives = [change["cache-control"] for change in changes if "cache-control" in change]
    if all(change.get("max-age", True) for change in changes):
        directives.append("max-age=60")
    asked: dict[str, str] = {}
    answered = {"cache-control": ", ".join(directives)} if directives else {}
    for change in changes:
        asked |= change.get("asked", {})
        answered |= change.get("answer", {})
    whole = {name: value for change in changes for name, value in change.items()}

    async def script(app: Any) -> None:
        if "route" in whole:
            app.scope["endpoint"] = whole["route"](_endpoint())
        more = {"trailers": True} if "trailers" in whole else {}
        await app.start(whole.get("status", 200), answered, **more)
        await app.body(b"hello" * (0 if whole.get("method") == "HEAD" else 1))
        if more:
            await app.send({"type": "http.response.trailers", "headers": [], "more_trailers": False})

    app = HTTPCacheMiddleware(ScriptedApp(script), store=MemoryStore(), policy=options)
    return await call(app, whole.get("method", "GET"), "/", asked, body=whole.get("body", b""))


def _endpoint() -> Callable[[], None]:
    def endpoint() -> None:
        pass

    return endpoint


def rows_of(page: Path, heading: str) -> list[list[str]]:
    """Return the cells of the first table below *heading*, without its head."""
    text = page.read_text(encoding="utf-8")
    section = text[text.index(f"\n## {heading}\n") :]
    lines = re.search(r"(?:^\|.*\n)+", section, re.MULTILINE)
    assert lines is not None
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[0].splitlines()]
    return rows[2:]


def refusals_of_the_page() -> list[str]:
    return [row[0].strip("`") for row in rows_of(DOCS / "storing.md", "What is not stored, and why")]


def test_table_of_refusals_has_each_refusal_in_the_order_of_the_code() -> None:
    assert refusals_of_the_page() == [*REFUSED_BY, *sorted(AFTER_THE_HEAD)]
    assert set(refusals_of_the_page()) == {refusal.value for refusal in Refusal}


async def test_example_of_the_refusals_is_stored_without_a_change() -> None:
    assert (await exchange())["cache-status"] == "echo_cache; fwd=uri-miss; ttl=60; stored"


@pytest.mark.parametrize("word", REFUSED_BY)
async def test_refusal_of_each_row_is_what_cache_status_says(word: str) -> None:
    said = (await exchange(REFUSED_BY[word]))["cache-status"]
    shown = {row[0].strip("`"): row[2] for row in rows_of(DOCS / "storing.md", "What is not stored, and why")}
    if word in NOT_FILLED:
        assert said == f"echo_cache; {NOT_FILLED[word]}"
    else:
        assert said == f"echo_cache; fwd=uri-miss; detail={word}"
    assert shown[word] == f"`{said.partition('; ')[2].removeprefix('fwd=uri-miss; ')}`"


def _pairs() -> list[tuple[str, str]]:
    """Return the pairs of reasons that can be there at once, in the order of the page."""
    told = [word for word in REFUSED_BY if word not in NOT_FILLED]
    pairs = [(a, b) for a, b in combinations(told, 2) if not {"status"} <= REFUSED_BY[a].keys() & REFUSED_BY[b].keys()]
    # Expires makes a lifetime, if a wrong one.
    return [pair for pair in pairs if pair not in {("no-freshness", "already-stale"), ("credentials", "already-stale")}]


@pytest.mark.parametrize(("first", "second"), _pairs())
async def test_of_two_reasons_the_one_further_up_is_told(first: str, second: str) -> None:
    said = (await exchange(REFUSED_BY[first], REFUSED_BY[second]))["cache-status"]
    assert said == f"echo_cache; fwd=uri-miss; detail={first}"


# --- for how long -----------------------------------------------------------------------------------------------------

DATE: Final = "Tue, 14 Nov 2023 22:13:20 GMT"
LIFETIMES: Final[dict[str, tuple[Change, int]]] = {
    "the route's `negative_ttl`": ({"status": 404, "rules": {"negative_ttl": 7, "ttl": 50}}, 7),
    "the route's `ttl`": ({"rules": {"ttl": 50}}, 50),
    "a targeted field": ({"answer": {"cdn-cache-control": "max-age=40"}}, 40),
    "`s-maxage`": ({"cache-control": "s-maxage=30"}, 30),
    "`max-age`": ({"cache-control": "max-age=20"}, 20),
    "`Expires`": ({"answer": {"date": DATE, "expires": "Tue, 14 Nov 2023 22:13:35 GMT"}}, 15),
    "the heuristic": ({"answer": {"date": DATE, "last-modified": "Tue, 14 Nov 2023 22:11:40 GMT"}}, 10),
    "`default_ttl`": ({}, 180),
}
TARGETED: Final = PolicyOptions(targeted_fields=["CDN-Cache-Control"])


async def lifetime(*changes: Change) -> str:
    whole = {name: value for change in changes for name, value in change.items()}
    answered: dict[str, str] = {}
    rules: dict[str, Any] = {}
    for change in changes:
        answered |= change.get("answer", {})
        rules |= change.get("rules", {})
    directives = [change["cache-control"] for change in changes if "cache-control" in change]
    if directives:
        answered["cache-control"] = ", ".join(directives)

    async def script(app: Any) -> None:
        if rules:
            app.scope["endpoint"] = cached(**rules)(_endpoint())
        await app.respond(whole.get("status", 200), answered, b"hello")

    clock = ManualClock(1_700_000_000.0)  # DATE
    cache = Cache(MemoryStore(clock=clock), TARGETED, clock=clock)
    return (await call(HTTPCacheMiddleware(ScriptedApp(script), cache=cache)))["cache-status"]


def test_table_of_lifetimes_has_each_source_in_order() -> None:
    assert [row[1] for row in rows_of(DOCS / "storing.md", "For how long")] == [*LIFETIMES]


@pytest.mark.parametrize("source", LIFETIMES)
async def test_lifetime_of_each_row_is_that_of_the_code(source: str) -> None:
    change, seconds = LIFETIMES[source]
    assert await lifetime(change) == f"echo_cache; fwd=uri-miss; ttl={seconds}; stored"


@pytest.mark.parametrize(("first", "second"), list(combinations(LIFETIMES, 2)))
async def test_of_two_lifetimes_the_one_further_up_counts(first: str, second: str) -> None:
    (one, seconds), (other, _) = LIFETIMES[first], LIFETIMES[second]
    assert await lifetime(one, other) == f"echo_cache; fwd=uri-miss; ttl={seconds}; stored"


def test_rules_of_a_route_are_those_of_the_code() -> None:
    named = [row[0].strip("`") for row in rows_of(DOCS / "storing.md", "What a route may say")]
    assert set(named) == set(RouteOptions.__dataclass_fields__) - {"store"}
