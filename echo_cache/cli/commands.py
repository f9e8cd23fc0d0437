"""
The commands, as typer reads them. The one rule: a command says what is wanted and shows the answer; it returns its exit
code, and what goes wrong is raised for `main` to tell.
"""

from __future__ import annotations

import asyncio
import enum
import inspect as signatures
import platform
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Final, TypeAlias

import typer
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from echo_cache.cli import bench as benchmark
from echo_cache.cli import show
from echo_cache.cli.doctor import examine
from echo_cache.cli.show import Facts, Kind, Line, Screen
from echo_cache.cli.sitemap import MAX_BYTES, parse_urls
from echo_cache.cli.target import TIMEOUT, Access, Json, Target, address_of, open_target, settings_for
from echo_cache.cli.visits import IS_CACHED, Visits, ask_twice, read_sitemap, visit
from echo_cache.cli.web import Unavailable, parse_header, require_url
from echo_cache.errors import ConfigurationError, EchoCacheError
from echo_cache.management.manager import MAX_LIMIT

__all__ = ["DONE", "NO", "UNREACHABLE", "app"]

DONE: Final = 0
NO: Final = 1
"""The answer is no: nothing is stored, not cached, something is wrong with the Redis."""
UNREACHABLE: Final = 3

_EPILOG: Final = """\b
Exit codes: 0 done, 1 the answer is no, 2 wrong usage, 3 not reached or refused, 130 interrupted.

\b
  echo-cache demo --once
  echo-cache stats redis://localhost
  echo-cache keys http://localhost:8000/_cache --match '/products/*'
  echo-cache explain http://localhost:8000/products/1
"""

_HELP: Final = {"help_option_names": ["-h", "--help"]}
app = typer.Typer(
    name="echo-cache",
    help="See and steer the cache of a running app, directly in Redis or through the app's dashboard.",
    epilog=_EPILOG,
    context_settings=_HELP,
    pretty_exceptions_enable=False,
    # Help is the same text on a terminal and in a pipe.
    rich_markup_mode=None,
)


class Level(enum.StrEnum):
    """A level of the cache: the memory of the workers, or Redis."""

    L1 = "l1"
    L2 = "l2"


AsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="Write JSON to stdout, errors too.")]
Place: TypeAlias = Annotated[
    str | None,
    typer.Argument(
        metavar="TARGET", help="A Redis (redis://host), or the dashboard of a running app (http://host/_cache)."
    ),
]
Address: TypeAlias = Annotated[
    str | None,
    typer.Option("--target", "-t", help="The same [env var: ECHO_CACHE_TARGET, ECHO_CACHE_URL]."),
]
Prefix: TypeAlias = Annotated[
    str | None, typer.Option("--redis-prefix", help="What names in Redis begin with [env var: ECHO_CACHE_PREFIX].")
]
Token: TypeAlias = Annotated[
    str | None, typer.Option("--token", help="The token of the dashboard. Better: ECHO_CACHE_TOKEN.")
]
Timeout: TypeAlias = Annotated[
    float, typer.Option("--timeout", min=0.1, max=3600, help="Seconds that one answer may take.")
]
Header: TypeAlias = Annotated[
    list[str] | None, typer.Option("--header", "-H", metavar="'NAME: VALUE'", help="A request field; may repeat.")
]
Name: TypeAlias = Annotated[
    str | None,
    typer.Option("--name", envvar="ECHO_CACHE_NAME", help="What Cache-Status calls the cache."),
]


@dataclass(frozen=True, slots=True)
class At:
    """Where a command looks, how it asks, and where its answer goes: what those that look at a target share."""

    address: str | None
    access: Access
    as_json: bool

    def run(self, act: Callable[[Target], Any]) -> Any:
        """Return what *act*, a coroutine function, makes of the target."""

        async def run() -> Any:
            async with open_target(address_of(self.address), self.access) as target:
                return await act(target)

        return asyncio.run(run())


def _command(
    *, place: bool = True, prefix: bool = True, timeout: float = TIMEOUT
) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """
    Register a command that takes an At first; the arguments and options that make it are added to the command's own.

    place: whether the target may be its first argument. prefix: whether it can look at a Redis. timeout: of one answer.
    """

    def decorate(command: Callable[..., int]) -> Callable[..., int]:
        _, *own = signatures.signature(command, eval_str=True).parameters.values()
        common: dict[str, tuple[Any, object]] = {
            **({"place": (Place, None)} if place else {}),
            "address": (Address, None),
            **({"prefix": (Prefix, None)} if prefix else {}),
            "token": (Token, None),
            "timeout": (Timeout, timeout),
            "as_json": (AsJson, False),
        }

        def typed(**given: Any) -> int:
            at = {name: given.pop(name) for name in common}
            if at.get("place") and at["address"]:
                raise ConfigurationError("the target is given twice: as an argument and by --target")
            access = Access(at.get("prefix") or None, at["token"] or None, at["timeout"])
            return command(At(at.get("place") or at["address"], access, at["as_json"]), **given)

        kind = signatures.Parameter.KEYWORD_ONLY
        added = [
            signatures.Parameter(name, kind, default=default, annotation=annotation)
            for name, (annotation, default) in common.items()
        ]
        named = [one.replace(kind=kind) for one in own]
        typed.__signature__ = signatures.Signature([*named, *added])  # type: ignore[attr-defined]  # it may be set
        typed.__annotations__ = {one.name: one.annotation for one in [*named, *added]}
        typed.__name__, typed.__doc__ = command.__name__, command.__doc__
        app.command(context_settings=_HELP)(typed)
        return command

    return decorate


def _version_asked(value: bool) -> None:
    if value:
        typer.echo(f"echo-cache {_version_of('echo-cache')}")
        raise typer.Exit


@app.callback()
def _group(
    version: Annotated[
        bool, typer.Option("--version", callback=_version_asked, is_eager=True, help="Say which version this is.")
    ] = False,
) -> None:
    """See and steer the cache of a running app, directly in Redis or through the app's dashboard."""


# --- looking ----------------------------------------------------------------------------------------------------------


@_command()
def stats(
    at: At,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Go on, once a second.")] = False,
    count: Annotated[int | None, typer.Option("--count", min=1, help="With --watch: end after so many.")] = None,
) -> int:
    """Show what all workers have done: hits, misses, what was refused."""
    screen = Screen(at.as_json)
    if count is not None and not watch:
        raise ConfigurationError("--count is the number of rounds of --watch: give both")
    if watch:
        at.run(lambda target: _watch(target, screen, count))
        return DONE
    found: Json = at.run(lambda target: target.stats())
    there = bool(found["workers"])
    if there or screen.is_json:
        screen.show(found, show.stats_view(found))
    if not there:
        show.note("no worker tells of itself: none is running, or their report_every is 0, or the prefix is another")
    elif not found.get("shared", True):
        show.note("this is the worker that has answered: without a Redis, workers know nothing of each other")
    elif not found.get("workers_known", True):
        show.note("this is the worker that has answered: Redis could not be asked for the others")
    return DONE if there else NO


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


@_command()
def keys(
    at: At,
    match: Annotated[
        str | None, typer.Option("--match", "-m", help="Only URLs with this in them; * is any characters.")
    ] = None,
    tag: Annotated[str | None, typer.Option("--tag", help="Only what has this tag.")] = None,
    level: Annotated[Level | None, typer.Option("--level", help="Memory (l1) or Redis (l2).")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many at most.")] = 50,
    everything: Annotated[bool, typer.Option("--all", "-a", help="All of them, however many.")] = False,
    cursor: Annotated[str | None, typer.Option("--cursor", help="Go on where a list has ended.")] = None,
    gone: Annotated[bool, typer.Option("--gone", help="Also what was invalidated and is still there.")] = False,
) -> int:
    """List what is stored. Exit code 1 if there is nothing."""
    screen = Screen(at.as_json)
    kept = 0
    behind: str | None = None

    async def listed(target: Target) -> None:
        nonlocal kept, behind
        asked = {"match": match, "tag": tag, "level": None if level is None else level.value}
        async for page, following in _pages(target, asked, cursor, None if everything else limit, gone=gone):
            behind = following
            # Not all of them at once: there may be a million.
            screen.items("entries", page, show.entries_view(page, with_tags=tag is not None))
            kept += len(page)

    try:
        at.run(listed)
    except EchoCacheError as error:
        if not (screen.is_json and screen.has_begun):
            raise
        # The document has begun, so it is in there that the error has to be told.
        screen.end({"more": True, "cursor": behind, "error": str(error)})
        show.note(f"echo-cache: {error}")
        return UNREACHABLE
    screen.end({"more": behind is not None, "cursor": behind})
    if behind is not None:
        show.note(f"there may be more behind these {kept}: --cursor {behind}, a higher --limit, or --all")
    elif not kept:
        show.note("nothing that is stored matches" if match or tag or cursor else "nothing is stored")
    return DONE if kept else NO


async def _pages(
    target: Target, asked: Mapping[str, str | None], cursor: str | None, limit: int | None, *, gone: bool
) -> AsyncIterator[tuple[list[Json], str | None]]:
    """
    Yield pages of entries, at most *limit* in all, each with the cursor of what is behind it, None at the end.

    A cursor is that of the target, and where a page was cut, "+" and how many of it to leave out.
    """
    begin, plus, number = (cursor or "").rpartition("+")
    place, skip = (begin, int(number)) if plus and number.isdecimal() and len(number) < 7 else (cursor or "", 0)
    while True:
        size = MAX_LIMIT if limit is None else min(limit + skip + 1, MAX_LIMIT)
        answer = await target.entries(
            match=asked["match"], tag=asked["tag"], level=asked["level"], limit=size, cursor=place or None
        )
        found = [one if isinstance(one, dict) else {} for one in answer["entries"]][skip:]
        page: list[Json] = []
        looked_at = 0
        while looked_at < len(found) and (limit is None or len(page) < limit):
            one = found[looked_at]
            looked_at += 1
            if one and (gone or one.get("stands") != "gone"):
                page.append(one)
        following = answer.get("cursor")
        if not isinstance(following, str) or not following:
            following = None
        if looked_at < len(found):
            yield page, f"{place}+{skip + looked_at}"
            return
        yield page, following
        limit = None if limit is None else limit - len(page)
        if following is None or limit == 0:
            return
        if following == place:
            raise Unavailable(f"{target.location} gives the same page again and again")
        place, skip = following, 0


@_command(place=False)
def inspect(
    at: At,
    url: Annotated[str, typer.Argument(help="An absolute URL, as clients ask for it.")],
    header: Header = None,
) -> int:
    """Show all that is stored under a URL. Exit code 1 if there is nothing."""
    require_url(url)
    lines = [parse_header(line) for line in header or ()]
    found: Json = at.run(lambda target: target.inspect(url, lines))
    Screen(at.as_json).show(found, show.inspect_view(found))
    if any(found["levels"].values()):
        return DONE
    if found.get("unknown"):
        show.note("not all levels could be asked: Redis is in trouble (echo-cache doctor)")
        return UNREACHABLE
    return NO


@app.command(context_settings=_HELP)
def explain(
    url: Annotated[str, typer.Argument(help="An absolute URL of the app.")],
    header: Header = None,
    name: Name = None,
    timeout: Timeout = 30.0,
    as_json: AsJson = False,
) -> int:
    """Ask for a URL twice; say why it is cached or not (exit code 1)."""
    require_url(url)
    lines = [parse_header(line) for line in header or ()]
    explanation, replies, trouble = asyncio.run(ask_twice(url, lines, name=name or None, timeout=timeout))
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
    if trouble:
        show.note(f"the second request: {trouble}")
    return DONE if explanation.outcome in IS_CACHED else NO


# --- steering ---------------------------------------------------------------------------------------------------------

# How long it may take to find out how many are meant, before they are purged, in seconds.
_COUNTING: Final = 2.0


@_command()
def purge(
    at: At,
    url: Annotated[str | None, typer.Option("--url", help="A URL; a path alone is that of every host.")] = None,
    tag: Annotated[str | None, typer.Option("--tag", help="All that has this tag.")] = None,
    prefix_of_urls: Annotated[
        str | None, typer.Option("--prefix", help="All URLs, or paths of every host, that begin so.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All that is stored.")] = False,
    soft: Annotated[bool, typer.Option("--soft", help="Make it stale, not gone.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what it would be.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before --all.")] = False,
) -> int:
    """Make gone what is named: a URL, a tag, a prefix, or everything."""
    named: dict[str, str | bool] = {
        name: value
        for name, value in (("url", url), ("tag", tag), ("prefix", prefix_of_urls), ("all", everything))
        if value
    }
    if len(named) != 1:
        raise ConfigurationError("name exactly one of --url, --tag, --prefix and --all")
    screen = Screen(at.as_json)
    if everything and not dry_run and not yes:
        _require_consent(screen)

    async def act(target: Target) -> tuple[Json, str]:
        trial = {} if dry_run else await _counted(target, named, soft=soft)
        result = await target.purge(named, soft=soft, dry_run=dry_run)
        return {
            **{name: trial[name] for name in ("matched", "is_complete") if name in trial},
            **result,
        }, target.location

    result, where = at.run(act)
    (kind, value), *_ = named.items()
    screen.show(result, show.purge_view(result, "everything" if kind == "all" else f"{kind} {value}", soft=soft))
    if not result.get("used", True):
        show.note(f"no worker reports and nothing is stored under this prefix in {where}: is it the app's?")
        return NO
    if not dry_run and not result["propagated"]:
        show.note("Redis could not be told: other workers go on until it is back; purge again, or look at the doctor")
        return UNREACHABLE
    return DONE


async def _counted(target: Target, named: Mapping[str, str | bool], *, soft: bool) -> Json:
    """Return how many are meant, as a dry run has it; {} where that is not found out. What is wrong, a purge tells."""
    try:
        async with asyncio.timeout(_COUNTING):
            return await target.purge(named, soft=soft, dry_run=True)
    except (EchoCacheError, TimeoutError):
        return {}


def _require_consent(screen: Screen) -> None:
    """Ask whether everything is meant, and end if it is not. Raises ConfigurationError where nobody can be asked."""
    if not (sys.stdin is not None and sys.stdin.isatty()):
        raise ConfigurationError("purge --all asks first, and there is no terminal: give --yes")
    if not typer.confirm("Purge everything that is stored, in all workers?", err=True):
        if screen.is_json:
            screen.document({"error": "nothing was purged"})
        show.note("nothing was purged")
        raise typer.Exit(NO)


# How long it may take to copy a level, which is much work and one request, in seconds.
_SYNC_TIMEOUT: Final = 600.0


@_command(prefix=False, timeout=_SYNC_TIMEOUT)
def sync(
    at: At,
    to: Annotated[Level, typer.Option("--to", help="The level that is filled from the other.")],
) -> int:
    """Copy to one level of a running app what only the other has."""
    with _progress(None, "copying"):
        result: Json = at.run(lambda target: target.sync(to.value))
    rows = [(name, name, result.get(name), Kind.NUMBER) for name in ("seen", "copied", "skipped", "failed")]
    Screen(at.as_json).show(result, [Facts(rows)])
    return NO if result["failed"] else DONE


@app.command(context_settings=_HELP)
def warm(
    file: Annotated[str | None, typer.Argument(help="A file of URLs, one a line; - is stdin.")] = None,
    sitemap: Annotated[str | None, typer.Option("--sitemap", help="The URL of a sitemap.")] = None,
    concurrency: Annotated[int, typer.Option("--concurrency", "-c", min=1, max=64, help="Requests at a time.")] = 8,
    header: Header = None,
    name: Name = None,
    timeout: Timeout = 30.0,
    as_json: AsJson = False,
) -> int:
    """Ask the app for URLs, so that it stores them. Code 1: some failed."""
    if (file is None) == (sitemap is None):
        raise ConfigurationError("name either a file of URLs (- for stdin) or --sitemap")
    lines = [parse_header(line) for line in header or ()]
    screen = Screen(as_json)

    async def run() -> Visits:
        found = parse_urls(_content(str(file))) if sitemap is None else await read_sitemap(sitemap, timeout, show.note)
        if not found.urls:
            raise ConfigurationError(f"there is no URL in it{'; '.join(['', *found.bad[0]]) if found.bad else ''}")
        with _progress(len(found.urls), "warming") as progress:
            visits = await visit(
                found.urls,
                lines,
                name=name or None,
                concurrency=concurrency,
                timeout=timeout,
                progress=lambda visits: progress(visits.done),
            )
        visits.wanted += len(found.bad)
        for where, flaw in found.bad:
            visits.fail(where, flaw)
        return visits

    visits = asyncio.run(run())
    screen.show(visits.as_json(), show.visits_view(visits.as_json()))
    if not visits.reached and visits.failed:
        show.note(f"nobody was reached: {visits.problems[0]['problem']}")
        return UNREACHABLE
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
def _progress(total: int | None, what: str) -> Iterator[Callable[[int], object]]:
    """Show on a terminal how far it is, or where *total* is not known, that it goes on."""
    if not sys.stderr.isatty():
        yield lambda done: None
        return
    far = (SpinnerColumn(),) if total is None else (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(TextColumn(what), *far, console=show.console(sys.stderr), transient=True) as progress:
        task = progress.add_task("", total=total)
        yield lambda done: progress.update(task, completed=done)


# --- this machine -----------------------------------------------------------------------------------------------------


@app.command(context_settings=_HELP)
def doctor(
    place: Annotated[str | None, typer.Argument(metavar="TARGET", help="A Redis: redis://host and the like.")] = None,
    address: Address = None,
    prefix: Prefix = None,
    timeout: Timeout = 2.0,
    as_json: AsJson = False,
) -> int:
    """Say what is wrong with a Redis, and what to do. Code 1: a problem."""
    if place and address:
        raise ConfigurationError("the target is given twice: as an argument and by --target")
    settings = settings_for(address_of(place or address, redis_only=True), Access(prefix or None, timeout=None))
    redis = settings.redis
    findings = asyncio.run(examine(settings.url, redis.prefix, store_timeout=redis.timeout, timeout=timeout))
    told = [finding.as_json() for finding in findings]
    problems = [finding for finding in told if finding["level"] == "problem"]
    Screen(as_json).show({"findings": told, "problems": len(problems)}, show.doctor_view(told))
    if len(findings) == 1 and problems:
        return UNREACHABLE  # of a server that answers there is more to say
    return NO if problems else DONE


@app.command(context_settings=_HELP)
def bench(
    place: Annotated[
        str | None, typer.Argument(metavar="REDIS", help="A Redis to load; none is taken from the environment.")
    ] = None,
    seconds: Annotated[float, typer.Option("--seconds", min=0.1, max=600, help="How long it may take.")] = 3.0,
    body_bytes: Annotated[int, typer.Option("--body-bytes", min=0, max=1_048_576, help="How long bodies are.")] = 2048,
    as_json: AsJson = False,
) -> int:
    """Measure what the cache costs on this machine."""
    url = settings_for(place, Access()).url if place else None
    report = asyncio.run(benchmark.run(url, seconds, body_bytes))
    document = report.as_json()
    Screen(as_json).show(document, show.bench_view(document))
    if report.trouble is not None:
        show.note(report.trouble)
        return UNREACHABLE
    return DONE


@app.command(context_settings=_HELP)
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
    """Run a small app behind the cache, with its dashboard, here alone."""
    from echo_cache.cli import demo as shop  # what it needs is in another extra

    settings = settings_for(redis, Access(shop.PREFIX, timeout=None)) if redis else None
    if once:
        told = asyncio.run(shop.tour(settings))
        Screen(as_json).show({"steps": told}, show.demo_view(told))
        return DONE
    return shop.serve(port, settings, show.note)


@app.command(context_settings=_HELP)
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
