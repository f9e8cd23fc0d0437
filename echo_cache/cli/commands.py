"""
The commands, as typer reads them. The one rule: a command says what is wanted and shows the answer; it returns its exit
code, and what goes wrong is raised for `main` to tell.
"""

from __future__ import annotations

import asyncio
import enum
import platform
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Final, TypeAlias

import typer
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from echo_cache.cli import bench as benchmark
from echo_cache.cli import show
from echo_cache.cli.doctor import examine
from echo_cache.cli.show import Facts, Kind, Line, Screen
from echo_cache.cli.sitemap import MAX_BYTES, parse_urls
from echo_cache.cli.target import Access, Json, Target, is_exposed, open_target, settings_for
from echo_cache.cli.visits import IS_CACHED, Visits, ask_twice, read_sitemap, visit
from echo_cache.cli.web import Unavailable, parse_header, require_url
from echo_cache.errors import ConfigurationError

__all__ = ["DONE", "NO", "UNREACHABLE", "USAGE", "app"]

DONE: Final = 0
NO: Final = 1
"""The answer is no: nothing is stored, not cached, something is wrong with the Redis."""
USAGE: Final = 2
UNREACHABLE: Final = 3

app = typer.Typer(
    name="echo-cache",
    help="See and steer the cache of a running app, directly in Redis or through the app's dashboard.",
    pretty_exceptions_enable=False,
    # Help is the same text on a terminal and in a pipe.
    rich_markup_mode=None,
)


class Level(enum.StrEnum):
    """A level of the cache: the memory of the workers, or Redis."""

    L1 = "l1"
    L2 = "l2"


AsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="Write JSON to stdout, errors too.")]
Address: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--target",
        "-t",
        envvar=["ECHO_CACHE_TARGET", "ECHO_CACHE_URL"],
        help="A Redis (redis://host), or the dashboard of a running app (http://host/_cache).",
    ),
]
Prefix: TypeAlias = Annotated[
    str | None,
    # In `purge`, --prefix is one of URLs; there, only the long name is left.
    typer.Option("--redis-prefix", "--prefix", help="What names in Redis begin with [env var: ECHO_CACHE_PREFIX]."),
]
Secret: TypeAlias = Annotated[
    str | None,
    typer.Option("--secret", help="What entries in Redis are signed with. Better: ECHO_CACHE_SECRET."),
]
Token: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--token",
        envvar=["ECHO_CACHE_TOKEN", "ECHO_CACHE_DASHBOARD_TOKEN"],
        help="The token of the dashboard. Better: in the variable.",
    ),
]
Timeout: TypeAlias = Annotated[
    float, typer.Option("--timeout", min=0.1, max=3600, help="Seconds that one answer may take.")
]
Header: TypeAlias = Annotated[
    list[str] | None, typer.Option("--header", "-H", metavar="'NAME: VALUE'", help="A request field; may repeat.")
]
Name: TypeAlias = Annotated[str, typer.Option("--name", help="What Cache-Status calls the cache.")]


def _access(prefix: str | None, secret: str | None, token: str | None, timeout: float) -> Access:
    return Access(prefix or None, secret or None, token or None, timeout)


def _run(address: str | None, access: Access, act: Callable[[Target], Any]) -> Any:
    """Return what *act*, a coroutine function, makes of the target."""

    async def run() -> Any:
        async with open_target(address, access) as target:
            if access.token and address and is_exposed(address):
                show.note("note: the token goes over the network as it is; use https:// for other machines")
            return await act(target)

    return asyncio.run(run())


# --- looking ----------------------------------------------------------------------------------------------------------


@app.command()
def stats(
    address: Address = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Go on, once a second.")] = False,
    count: Annotated[int | None, typer.Option("--count", min=1, help="With --watch: end after so many.")] = None,
    prefix: Prefix = None,
    secret: Secret = None,
    token: Token = None,
    timeout: Timeout = 10.0,
    as_json: AsJson = False,
) -> int:
    """Show what all workers have done: hits, misses, what was stored, and why not."""
    screen = Screen(as_json)
    access = _access(prefix, secret, token, timeout)
    if count is not None and not watch:
        raise ConfigurationError("--count is the number of rounds of --watch: give both")
    if watch:
        _run(address, access, lambda target: _watch(target, screen, count))
        return DONE
    found: Json = _run(address, access, lambda target: target.stats())
    screen.show(found, show.stats_view(found))
    if not found.get("workers"):
        show.note("no worker tells of itself: none is running, or their report_every is 0, or the prefix is another")
    return DONE


async def _watch(target: Target, screen: Screen, count: int | None) -> None:
    if not screen.is_terminal:
        async for found, before in _ticks(target, count):
            if screen.is_json:
                screen.document(found)
            elif "error" in found:
                show.note(found["error"])
            else:
                screen.lines([show.tick_of(found, before)])
                sys.stdout.flush()
        return
    terminal = show.console(sys.stdout)
    with Live(console=terminal, auto_refresh=False) as live:
        async for found, before in _ticks(target, count):
            if "error" in found:
                view: show.View = [Line(found["error"], "problem")]
            else:
                view = show.watch_view(found, before, terminal.height)
            live.update(show.drawn(view, terminal.width), refresh=True)


async def _ticks(target: Target, count: int | None) -> AsyncIterator[tuple[Json, Json | None]]:
    """
    Yield statistics once a second, with older ones; or an "error", where they could not be had.

    Raises what the first of them raises: whoever has just begun should learn that he looks at nothing.
    """
    latest: Json | None = None
    before: Json | None = None
    number = 0
    while True:
        due = time.monotonic() + 1.0
        try:
            found = await target.stats()
        except Unavailable as error:
            if latest is None:
                raise
            yield {"error": str(error)}, None
        else:
            # Workers report every few seconds, so two rounds may have seen the same.
            if latest is None or show.time_of(found) != show.time_of(latest):
                before, latest = latest, found
            yield found, before
        number += 1
        if number == count:
            return
        await asyncio.sleep(max(0.0, due - time.monotonic()))


@app.command()
def keys(
    address: Address = None,
    match: Annotated[
        str | None, typer.Option("--match", "-m", help="Only URLs with this in them; * is any characters.")
    ] = None,
    tag: Annotated[str | None, typer.Option("--tag", help="Only what has this tag.")] = None,
    level: Annotated[Level | None, typer.Option("--level", help="Memory (l1) or Redis (l2).")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many at most.")] = 50,
    everything: Annotated[bool, typer.Option("--all", "-a", help="All of them, however many.")] = False,
    prefix: Prefix = None,
    secret: Secret = None,
    token: Token = None,
    timeout: Timeout = 10.0,
    as_json: AsJson = False,
) -> int:
    """List what is stored. Exit code 1 if there is nothing."""
    screen = Screen(as_json)
    as_lines = not screen.is_json and not screen.is_terminal

    async def collect(target: Target) -> tuple[list[Json], bool, int]:
        kept: list[Json] = []
        shown, more = 0, False
        async for page in _pages(target, match, tag, level, None if everything else limit):
            left = len(page) if everything else limit - shown
            more = more or len(page) > left
            page = page[:left]
            shown += len(page)
            if as_lines:
                # Not kept: there may be a million.
                screen.lines(show.entries_view(page))
            else:
                kept += page
            if not everything and shown >= limit:
                # The page behind may be empty, but who asks for 50 of 50 is not told wrong by "or more".
                more = True
                break
        return kept, more, shown

    entries, more, shown = _run(address, _access(prefix, secret, token, timeout), collect)
    if screen.is_json or (screen.is_terminal and shown):
        screen.show({"entries": entries, "more": more}, show.entries_view(entries))
    if not shown:
        show.note("nothing that is stored matches" if match or tag else "nothing is stored")
    elif more:
        show.note(f"the first {shown}; there may be more: --limit, or --all")
    return DONE if shown else NO


async def _pages(
    target: Target, match: str | None, tag: str | None, level: Level | None, limit: int | None
) -> AsyncIterator[list[Json]]:
    cursor: str | None = None
    size = 500 if limit is None else min(limit, 500)
    while True:
        page = await target.entries(
            match=match, tag=tag, level=None if level is None else level.value, limit=size, cursor=cursor
        )
        found = page.get("entries")
        yield [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []
        following = page.get("cursor")
        if not isinstance(following, str) or not following:
            return
        if following == cursor:
            raise Unavailable(f"{target.location} gives the same page again and again")
        cursor = following


@app.command()
def inspect(
    url: Annotated[str, typer.Argument(help="An absolute URL, as clients ask for it.")],
    address: Address = None,
    header: Header = None,
    prefix: Prefix = None,
    secret: Secret = None,
    token: Token = None,
    timeout: Timeout = 10.0,
    as_json: AsJson = False,
) -> int:
    """Show all that is stored under a URL, and what a GET would get. Exit code 1 if there is nothing."""
    require_url(url)
    lines = [parse_header(line) for line in header or ()]
    access = _access(prefix, secret, token, timeout)
    found: Json = _run(address, access, lambda target: target.inspect(url, lines))
    Screen(as_json).show(found, show.inspect_view(found))
    levels = found.get("levels")
    return DONE if isinstance(levels, dict) and any(levels.values()) else NO


@app.command()
def explain(
    url: Annotated[str, typer.Argument(help="An absolute URL of the app.")],
    header: Header = None,
    name: Name = "echo_cache",
    timeout: Timeout = 30.0,
    as_json: AsJson = False,
) -> int:
    """Ask the app for a URL, twice, and say why it is cached or not. Exit code 1 if it is not."""
    require_url(url)
    lines = [parse_header(line) for line in header or ()]
    explanation, replies = asyncio.run(ask_twice(url, lines, name=name, timeout=timeout))
    answers = [
        {
            "request": number,
            "status": reply.status,
            "seconds": reply.seconds,
            "cache_status": reply.get(b"cache-status") or None,
        }
        for number, reply in enumerate(replies, 1)
    ]
    document = {"url": url, **explanation.as_json(), "answers": answers}
    Screen(as_json).show(document, show.explain_view(document, answers))
    return DONE if explanation.outcome in IS_CACHED else NO


# --- steering ---------------------------------------------------------------------------------------------------------


@app.command()
def purge(
    address: Address = None,
    url: Annotated[str | None, typer.Option("--url", help="A URL; a path alone is that of every host.")] = None,
    tag: Annotated[str | None, typer.Option("--tag", help="All that has this tag.")] = None,
    prefix_of_urls: Annotated[
        str | None, typer.Option("--prefix", help="All URLs, or paths of every host, that begin so.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All that is stored.")] = False,
    soft: Annotated[bool, typer.Option("--soft", help="Make it stale, not gone.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what it would be.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before --all.")] = False,
    prefix: Annotated[
        str | None,
        typer.Option("--redis-prefix", help="What names in Redis begin with [env var: ECHO_CACHE_PREFIX]."),
    ] = None,
    secret: Secret = None,
    token: Token = None,
    timeout: Timeout = 10.0,
    as_json: AsJson = False,
) -> int:
    """Make what is named gone in all workers: a URL, a tag, a prefix of URLs, or everything."""
    named: dict[str, str | bool] = {
        name: value
        for name, value in (("url", url), ("tag", tag), ("prefix", prefix_of_urls), ("all", everything))
        if value
    }
    if len(named) != 1:
        raise ConfigurationError("name exactly one of --url, --tag, --prefix and --all")
    screen = Screen(as_json)
    if everything and not dry_run and not yes:
        _require_consent(screen)
    access = _access(prefix, secret, token, timeout)
    result: Json = _run(address, access, lambda target: target.purge(named, soft=soft, dry_run=dry_run))
    (kind, value), *_ = named.items()
    screen.show(result, show.purge_view(result, "everything" if kind == "all" else f"{kind} {value}", soft=soft))
    return DONE


def _require_consent(screen: Screen) -> None:
    """Ask whether everything is meant, and end if it is not. Raises ConfigurationError where nobody can be asked."""
    if not (sys.stdin is not None and sys.stdin.isatty()):
        raise ConfigurationError("purge --all asks first, and there is no terminal: give --yes")
    if not typer.confirm("Purge everything that is stored, in all workers?", err=True):
        if screen.is_json:
            screen.document({"error": "nothing was purged"})
        show.note("nothing was purged")
        raise typer.Exit(NO)


@app.command()
def sync(
    to: Annotated[Level, typer.Option("--to", help="The level that is filled from the other.")],
    address: Address = None,
    token: Token = None,
    timeout: Timeout = 10.0,
    as_json: AsJson = False,
) -> int:
    """Copy from one level of a running app to the other what that has not. Exit code 1 if something failed."""
    result: Json = _run(address, _access(None, None, token, timeout), lambda target: target.sync(to.value))
    rows = [(name, name, result.get(name), Kind.NUMBER) for name in ("seen", "copied", "skipped", "failed")]
    Screen(as_json).show(result, [Facts(rows)])
    return NO if result.get("failed") else DONE


@app.command()
def warm(
    file: Annotated[str | None, typer.Argument(help="A file of URLs, one a line; - is stdin.")] = None,
    sitemap: Annotated[str | None, typer.Option("--sitemap", help="The URL of a sitemap.")] = None,
    concurrency: Annotated[int, typer.Option("--concurrency", "-c", min=1, max=64, help="Requests at a time.")] = 8,
    header: Header = None,
    name: Name = "echo_cache",
    timeout: Timeout = 30.0,
    as_json: AsJson = False,
) -> int:
    """Ask the app for URLs, so that it stores the answers. Exit code 1 if some failed, or none is stored."""
    if (file is None) == (sitemap is None):
        raise ConfigurationError("name either a file of URLs (- for stdin) or --sitemap")
    lines = [parse_header(line) for line in header or ()]
    screen = Screen(as_json)

    async def run() -> Visits:
        if sitemap is not None:
            urls = await read_sitemap(sitemap, timeout, show.note)
        else:
            urls = parse_urls(_content(str(file)))
            for url in urls:
                require_url(url)
        if not urls:
            raise ConfigurationError("there is no URL in it")
        with _progress(len(urls)) as progress:
            return await visit(urls, lines, name=name, concurrency=concurrency, timeout=timeout, progress=progress)

    visits = asyncio.run(run())
    screen.show(visits.as_json(), show.visits_view(visits.as_json()))
    return NO if visits.failed or not visits.stored + visits.hits else DONE


def _content(path: str) -> str:
    """Return the text of a file, or of stdin. Raises ConfigurationError."""
    try:
        if path == "-":
            data = sys.stdin.buffer.read(MAX_BYTES + 1)
        else:
            with Path(path).open("rb") as file:
                data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ConfigurationError(f"{path} has more than {MAX_BYTES} bytes: split it")
        return data.decode()
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path} is no UTF-8 text") from None
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror or error}") from None


@contextmanager
def _progress(total: int) -> Iterator[Callable[[Visits], object]]:
    """Show on a terminal how far it is."""
    if not sys.stderr.isatty():
        yield lambda visits: None
        return
    columns = (TextColumn("warming"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=show.console(sys.stderr), transient=True) as progress:
        task = progress.add_task("", total=total)
        yield lambda visits: progress.update(task, completed=visits.done)


# --- this machine -----------------------------------------------------------------------------------------------------


RedisURL: TypeAlias = Annotated[
    str | None, typer.Argument(envvar="ECHO_CACHE_URL", help="redis://, rediss://, unix://, redis+sentinel://, ...")
]


@app.command()
def doctor(
    redis_url: RedisURL = None,
    prefix: Prefix = None,
    timeout: Timeout = 2.0,
    as_json: AsJson = False,
) -> int:
    """Say what is wrong with a Redis as the place of a cache, and what to do. Exit code 1 if there is a problem."""
    if not redis_url:
        raise ConfigurationError("give the URL of a Redis, as redis://localhost (or in ECHO_CACHE_URL)")
    settings = settings_for(redis_url, Access(prefix or None))
    findings = asyncio.run(examine(settings.url, settings.redis.prefix, timeout=timeout))
    told = [finding.as_json() for finding in findings]
    problems = [finding for finding in told if finding["level"] == "problem"]
    Screen(as_json).show({"findings": told, "problems": len(problems)}, show.doctor_view(told))
    if len(findings) == 1 and problems:
        return UNREACHABLE  # of a server that answers there is more to say
    return NO if problems else DONE


@app.command()
def bench(
    redis_url: RedisURL = None,
    seconds: Annotated[float, typer.Option("--seconds", min=0.1, max=600, help="How long it may take.")] = 3.0,
    body_bytes: Annotated[int, typer.Option("--body-bytes", min=0, max=1_048_576, help="How long bodies are.")] = 2048,
    as_json: AsJson = False,
) -> int:
    """Measure what the cache costs on this machine, with memory alone and with a Redis if one is named."""
    url = settings_for(redis_url, Access()).url if redis_url and not redis_url.startswith("memory:") else None
    report = asyncio.run(benchmark.run(url, seconds, body_bytes))
    document = report.as_json()
    Screen(as_json).show(document, show.bench_view(document))
    if report.trouble is not None:
        show.note(report.trouble)
        return UNREACHABLE
    return DONE


@app.command()
def demo(
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Where it listens; 0: any that is free.")
    ] = 8000,
    redis: Annotated[
        str | None, typer.Option("--redis", help="A Redis behind the memory; without, memory alone.")
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Make some requests, tell of them, and end.")] = False,
    as_json: AsJson = False,
) -> int:
    """Run a small app behind the cache, with its dashboard, on this machine alone."""
    from echo_cache.cli import demo as shop  # what it needs is in another extra

    settings = settings_for(redis, Access(timeout=0.1)) if redis else None
    if once:
        told = asyncio.run(shop.tour(settings))
        Screen(as_json).show({"steps": told}, show.demo_view(told))
        return DONE
    return shop.serve(port, settings, show.note)


@app.command()
def version(as_json: AsJson = False) -> int:
    """Say which version this is."""
    found: Mapping[str, str] = {
        "version": _version_of("echo-cache"),
        "python": platform.python_version(),
        **{name: _version_of(name) for name in ("starlette", "redis", "hiredis")},
    }
    rows = [(name, "echo-cache" if name == "version" else name, value, Kind.TEXT) for name, value in found.items()]
    Screen(as_json).show(found, [Facts(rows)])
    return DONE


def _version_of(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
