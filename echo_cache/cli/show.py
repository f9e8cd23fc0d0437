"""
What the command line shows. The one rule: data goes to stdout, everything else to stderr, and nothing that came from
elsewhere is obeyed by a terminal.

What is to be shown is made of pieces first, without a terminal. They are drawn by rich on one; in a pipe each row is a
line, with tabs between and numbers as they are, for other programs; with --json there is one JSON document.
"""

from __future__ import annotations

import enum
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, TextIO, TypeAlias

from rich.console import Console, Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from echo_cache.cli.text import shown

__all__ = [
    "Column",
    "Facts",
    "Kind",
    "Line",
    "Screen",
    "Table",
    "View",
    "bench_view",
    "console",
    "demo_view",
    "doctor_view",
    "drawn",
    "entries_view",
    "explain_view",
    "inspect_view",
    "note",
    "per_second",
    "plain_lines",
    "purge_view",
    "stats_view",
    "tick_of",
    "time_of",
    "visits_view",
    "watch_view",
]

Json: TypeAlias = Mapping[str, Any]


# --- pieces -----------------------------------------------------------------------------------------------------------


class Kind(enum.Enum):
    """What a value is, and so how it is written on a terminal."""

    TEXT = enum.auto()
    NUMBER = enum.auto()
    BYTES = enum.auto()
    SECONDS = enum.auto()
    SHARE = enum.auto()
    TIME = enum.auto()


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table. is_extra: a terminal that is narrow does without it."""

    name: str
    kind: Kind = Kind.TEXT
    is_extra: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of values. mark: the word that each line begins with in a pipe, where other pieces are beside it."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[object]]
    title: str = ""
    mark: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """Named values: a name for programs, one for people, the value and what it is."""

    rows: Sequence[tuple[str, str, object, Kind]]
    title: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """
    A sentence. mood: "ok", "note", "warning", "problem" or "" for none. mark: as that of a table.

    is_item: whether it is one of a list.
    """

    text: str
    mood: str = ""
    mark: str = ""
    is_item: bool = False


View: TypeAlias = Sequence[Table | Facts | Line]

_STYLES: Final = {"ok": "green", "note": "cyan", "warning": "yellow", "problem": "bold red"}
_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB")


def _plain(value: object, kind: Kind) -> str:
    """Return *value* for a program: "" for what is not known, numbers without units."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.3f}" if kind is not Kind.SECONDS else f"{value:.6f}".rstrip("0").rstrip(".")
    if isinstance(value, list | tuple):
        return ",".join([shown(one, None) for one in value])
    return shown(value, None)


def _pretty(value: object, kind: Kind) -> str:
    """Return *value* for a person."""
    if isinstance(value, list | tuple):
        return ", ".join([shown(one, None) for one in value])
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or (isinstance(value, int | float) and not math.isfinite(value)):
        return "-"
    if not isinstance(value, int | float):
        return shown(value, None)
    match kind:
        case Kind.BYTES:
            return _size(value)
        case Kind.SECONDS:
            return _duration(value)
        case Kind.SHARE:
            return f"{value:.1%}"
        case Kind.TIME:
            return _moment(value)
        case Kind.NUMBER | Kind.TEXT:
            return f"{value:,}" if isinstance(value, int) else f"{value:,.1f}"


def _size(number: float) -> str:
    power = 0
    while abs(number) >= 1024 and power < len(_UNITS) - 1:
        number, power = number / 1024, power + 1
    return f"{number:.0f} B" if power == 0 else f"{number:.1f} {_UNITS[power]}"


def _duration(seconds: float) -> str:
    if seconds < 0:
        return f"-{_duration(-seconds)}"
    if seconds == 0:
        return "0 s"
    if seconds < 0.001:
        return f"{seconds * 1e6:.0f} us"
    if seconds < 1:
        return f"{seconds * 1000:.1f} ms"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7_200:
        return f"{seconds / 60:.0f} min"
    if seconds < 2 * 86_400:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86_400:.0f} days"


def _moment(seconds: float) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError, OSError):
        return "-"


# --- drawing ----------------------------------------------------------------------------------------------------------


def plain_lines(view: View) -> Iterator[str]:
    """Yield the lines of *view* for a program."""
    for piece in view:
        match piece:
            case Line(text, mood, mark):
                yield "\t".join([part for part in (mark, mood, shown(text, None)) if part])
            case Facts(rows):
                for name, _, value, kind in rows:
                    yield f"{name}\t{_plain(value, kind)}"
            case Table(columns, rows, _, mark):
                for row in rows:
                    cells = [_plain(value, column.kind) for value, column in zip(row, columns, strict=True)]
                    yield "\t".join([mark, *cells] if mark else cells)


_WIDE: Final = 110
# Of a column of text: what is narrower is no help to anybody.
_LEAST: Final = 12


def drawn(view: View, width: int) -> RenderableType:
    """Return *view* for a terminal of *width* columns. Nothing in it is markup; what is not known is left out."""
    pieces: list[RenderableType] = []
    for piece in view:
        if pieces and not isinstance(piece, Line):
            pieces.append(Text())
        match piece:
            case Line(text, mood, _, is_item):
                before = f"{mood}: " if mood else "- " if is_item else ""
                pieces.append(Text.assemble((before, _STYLES.get(mood, "")), shown(text, None)))
            case Facts(rows, title):
                grid = RichTable.grid(padding=(0, 2))
                grid.add_column(style="dim", no_wrap=True)
                grid.add_column(overflow="fold")
                for _, label, value, kind in rows:
                    if value is not None:
                        grid.add_row(Text(label), Text(_pretty(value, kind)))
                pieces += [*_titled(title), grid]
            case Table():
                pieces += [*_titled(piece.title), _drawn_table(piece, width)]
    return Group(*pieces)


def _drawn_table(table: Table, width: int) -> RichTable:
    places = [place for place, column in enumerate(table.columns) if width >= _WIDE or not column.is_extra]
    found = RichTable(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for place in places:
        column = table.columns[place]
        is_text = column.kind in (Kind.TEXT, Kind.TIME)
        # A number is never cut; of text nothing is left out either, it goes on in the next line.
        found.add_column(
            Text(column.name),
            justify="left" if is_text else "right",
            overflow="fold",
            no_wrap=not is_text,
            min_width=min(_LEAST, max([len(_pretty(row[place], column.kind)) for row in table.rows], default=0))
            if is_text
            else None,
        )
    for row in table.rows:
        found.add_row(*[Text(_pretty(row[place], table.columns[place].kind)) for place in places])
    return found


def _titled(title: str) -> list[RenderableType]:
    return [Text(shown(title, None), style="bold")] if title else []


class Screen:
    """Where it goes: *is_json* for programs that read JSON; else a terminal, or lines."""

    def __init__(self, is_json: bool = False) -> None:
        self.is_json: Final = is_json
        self.is_terminal: Final = not is_json and _is_terminal(sys.stdout)
        # Of a list that is shown as it comes.
        self.has_begun = False
        self._items = 0

    def show(self, document: object, view: View) -> None:
        """Show *document*: as it is where JSON is wanted, else by *view*."""
        if self.is_json:
            self.document(document)
        elif self.is_terminal:
            terminal = console(sys.stdout)
            terminal.print(drawn(view, terminal.width))
        else:
            self.lines(view)
        sys.stdout.flush()

    def document(self, document: object) -> None:
        """Write one JSON document: ASCII, on a line of its own."""
        sys.stdout.write(json.dumps(document, default=str) + "\n")
        sys.stdout.flush()

    def items(self, name: str, items: Sequence[Json], view: View) -> None:
        """Show some *items* of a list, as they come: with JSON, those under *name* in one document; see `end`."""
        if not self.is_json:
            if items:
                self.show(None, view)
            return
        before = ", " if self._items else f'{{"{name}": [' if not self.has_begun else ""
        self.has_begun = True
        self._items += len(items)
        told = ", ".join([json.dumps(item, default=str) for item in items])
        sys.stdout.write((before if told or before != ", " else "") + told)

    def end(self, more: Json) -> None:
        """Write, with JSON, what else the document of a list has, and end it."""
        if self.is_json:
            sys.stdout.write(f"], {json.dumps(more)[1:]}\n")
            sys.stdout.flush()

    def lines(self, view: View) -> None:
        """Write *view* for a program, whatever stdout is."""
        for line in plain_lines(view):
            sys.stdout.write(line + "\n")


def note(text: str) -> None:
    """Write *text* to stderr; its lines stay lines. Where nobody reads that, it is of no interest."""
    with suppress(OSError, ValueError):
        sys.stderr.write("".join([f"{shown(line, None)}\n" for line in text.split("\n")]))
        sys.stderr.flush()


def console(stream: TextIO) -> Console:
    """Return a console on *stream*, a terminal, that interprets nothing of what it is given."""
    return Console(file=stream, highlight=False, markup=False, emoji=False)


def _is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty()
    except ValueError:  # it is closed
        return False


# --- views ------------------------------------------------------------------------------------------------------------


def _of(data: object, name: str) -> Any:
    """Return what *data* has under *name*, None for anything that is not as it should be: others have sent it."""
    return data.get(name) if isinstance(data, Mapping) else None


def _items(data: object, name: str) -> list[Json]:
    found = _of(data, name)
    return [one for one in found if isinstance(one, Mapping)] if isinstance(found, list) else []


def _number(data: object, name: str) -> int | float | None:
    value = _of(data, name)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


_COUNTS: Final = (
    ("requests", "requests", Kind.NUMBER),
    ("hit_rate", "hit rate", Kind.SHARE),
    ("l1_hits", "hits in memory (L1)", Kind.NUMBER),
    ("l2_hits", "hits in Redis (L2)", Kind.NUMBER),
    ("stale_hits", "of these stale", Kind.NUMBER),
    ("collapsed", "shared a call of the app", Kind.NUMBER),
    ("misses", "went to the app", Kind.NUMBER),
    ("passed", "passed the cache", Kind.NUMBER),
    ("stored", "stored", Kind.NUMBER),
    ("refused", "not stored", Kind.NUMBER),
    ("saved_seconds", "time saved (estimate)", Kind.SECONDS),
    ("invalidations", "invalidations", Kind.NUMBER),
    ("failures", "failures of the cache", Kind.NUMBER),
    ("l1_entries", "entries in memory", Kind.NUMBER),
    ("l1_bytes", "bytes in memory", Kind.BYTES),
    ("l1_max_bytes", "bytes in memory, at most", Kind.BYTES),
    ("evictions", "evictions", Kind.NUMBER),
    ("l2_errors", "errors of Redis", Kind.NUMBER),
    ("l2_timeouts", "time-outs of Redis", Kind.NUMBER),
    ("l2_read_seconds", "a read from Redis", Kind.SECONDS),
    ("write_back_queue", "writes that wait", Kind.NUMBER),
    ("dropped", "writes dropped", Kind.NUMBER),
)
# Columns by the names of what they show.
_Fields: TypeAlias = Mapping[str, Column]

_ROUTE: Final[_Fields] = {
    "route": Column("route"),
    "l1_hits": Column("L1 hits", Kind.NUMBER),
    "l2_hits": Column("L2 hits", Kind.NUMBER),
    "stale_hits": Column("stale", Kind.NUMBER, is_extra=True),
    "collapsed": Column("shared", Kind.NUMBER, is_extra=True),
    "misses": Column("misses", Kind.NUMBER),
    "stored": Column("stored", Kind.NUMBER, is_extra=True),
    "refused": Column("refused", Kind.NUMBER),
    "saved_seconds": Column("saved", Kind.SECONDS),
    "fill_seconds_mean": Column("a fill takes", Kind.SECONDS, is_extra=True),
}
_WORKER: Final[_Fields] = {
    "id": Column("worker"),
    "uptime": Column("up for", Kind.SECONDS),
    "requests": Column("requests", Kind.NUMBER),
    "hit_rate": Column("hit rate", Kind.SHARE),
    "l1_bytes": Column("memory", Kind.BYTES),
    "breaker": Column("breaker"),
}
_ENTRY: Final[_Fields] = {
    "url": Column("url"),
    "status": Column("status", Kind.NUMBER),
    "age": Column("age", Kind.SECONDS),
    "ttl": Column("ttl", Kind.SECONDS),
    "bytes": Column("size", Kind.BYTES),
    "variants": Column("variants", Kind.NUMBER, is_extra=True),
    "stands": Column("stands"),
    "tags": Column("tags", is_extra=True),
}
_ANSWER: Final[_Fields] = {
    "status": Column("status", Kind.NUMBER),
    "seconds": Column("took", Kind.SECONDS),
    "cache_status": Column("Cache-Status"),
}


_NO_ROUTE: Final = "(no route)"


def _table(fields: _Fields, items: Sequence[Json], *, title: str = "", mark: str = "") -> Table:
    rows = [[_of(one, name) or (_NO_ROUTE if name == "route" else _of(one, name)) for name in fields] for one in items]
    return Table(list(fields.values()), rows, title, mark)


def stats_view(stats: Json) -> View:
    """Return what is shown of Management.stats()."""
    total, workers = _of(stats, "total"), _items(stats, "workers")
    title = _title_of(workers)
    rows = [(name, label, _number(total, name), kind) for name, label, kind in _COUNTS]
    log = _of(total, "log")
    rows.append(("breaker", "circuit breaker of Redis", _of(total, "breaker"), Kind.TEXT))
    rows.append(("log_synced", "invalidations are heard", _of(log, "synced"), Kind.TEXT))
    rows.append(("log_pending", "invalidations that wait", _number(log, "pending"), Kind.NUMBER))
    known = ("workers_known", "the other workers are known", _of(stats, "workers_known"), Kind.TEXT)
    view: list[Table | Facts | Line] = [Facts([("workers", "workers", len(workers), Kind.NUMBER), known, *rows], title)]
    for name, label, mark in (
        ("forwards", "Went to the app, because of", "forward"),
        ("refusals", "Not stored, because of", "refusal"),
    ):
        counts = _of(total, name)
        if isinstance(counts, Mapping) and counts:
            some = sorted(counts.items(), key=lambda one: -one[1] if isinstance(one[1], int | float) else 0)
            view.append(Table([Column("reason"), Column("times", Kind.NUMBER)], some, label, mark))
    routes = _items(total, "routes")
    if routes:
        view.append(_table(_ROUTE, routes, title="Routes", mark="route"))
    if workers:
        named = [{**worker, "id": worker.get("id") or "this one"} for worker in workers]
        view.append(_table(_WORKER, named, title="Workers", mark="worker"))
    return view


_WATCHED: Final = frozenset(
    {
        *("requests", "hit_rate", "l1_hits", "l2_hits", "stale_hits", "collapsed", "misses", "refused"),
        *("saved_seconds", "l1_bytes", "evictions", "write_back_queue"),
    }
)


def watch_view(stats: Json, before: Json | None, height: int) -> View:
    """Return what is shown of *stats* once a second, in *height* lines: that since *before*, and the main routes."""
    total, workers = _of(stats, "total"), _items(stats, "workers")
    rows = [(name, label, _number(total, name), kind) for name, label, kind in _COUNTS if name in _WATCHED]
    rows.insert(0, ("per_second", "requests a second", per_second(stats, before), Kind.NUMBER))
    rows.append(("breaker", "circuit breaker of Redis", _of(total, "breaker"), Kind.TEXT))
    rows.append(("log_synced", "invalidations are heard", _of(_of(total, "log"), "synced"), Kind.TEXT))
    # The title of each piece, a line between, and what names the columns.
    routes = _items(total, "routes")[: max(0, height - len(rows) - 5)]
    facts = Facts(rows, _title_of(workers))
    return [facts, _table(_ROUTE, routes, title="Routes")] if routes else [facts]


def _title_of(workers: Sequence[Json]) -> str:
    return f"{len(workers)} worker{'' if len(workers) == 1 else 's'}"


_TICKED: Final = ("hit_rate", "l1_hits", "l2_hits", "misses", "stored")


def tick_of(stats: Json, before: Json | None) -> Table:
    """
    Return the line about *stats* that `stats --watch` writes in a pipe.

    It has time, workers, requests, requests a second since *before*, which is a second or so older, and more counts.
    """
    total = _of(stats, "total")
    values = [len(_items(stats, "workers")), _number(total, "requests"), per_second(stats, before)]
    values += [_number(total, name) for name in _TICKED]
    columns = [Column("time", Kind.TIME), *[Column("", Kind.NUMBER)] * len(values)]
    return Table(columns, [[time_of(stats), *values]])


def time_of(stats: Json) -> float | None:
    """Return when *stats* were made, epoch seconds."""
    return _number(_of(stats, "total"), "time")


def per_second(stats: Json, before: Json | None) -> float | None:
    """Return how many requests there were a second between two statistics; 0 where counting began anew."""
    now, then = _of(stats, "total"), _of(before, "total")
    count, counted = _number(now, "requests"), _number(then, "requests")
    time, timed = time_of(stats), None if before is None else time_of(before)
    if count is None or counted is None or time is None or timed is None or time <= timed:
        return None
    return max(0.0, (count - counted) / (time - timed))


def entries_view(entries: Sequence[Json], *, with_tags: bool = False) -> View:
    """Return what is shown of a list of entries; *with_tags*, also where the terminal is narrow."""
    fields = {**_ENTRY, "tags": Column("tags")} if with_tags else _ENTRY
    return [_table(fields, entries)]


_VARIANT: Final = (
    ("why", "stored", Kind.TEXT),
    ("stands", "stands", Kind.TEXT),
    ("status", "status", Kind.NUMBER),
    ("age", "age", Kind.SECONDS),
    ("ttl", "ttl", Kind.SECONDS),
    ("retained_for", "kept for another", Kind.SECONDS),
    ("stored_at", "stored at", Kind.TIME),
    ("content_type", "content type", Kind.TEXT),
    ("body_bytes", "body", Kind.BYTES),
    ("etag", "etag", Kind.TEXT),
    ("route", "route", Kind.TEXT),
    ("tags", "tags", Kind.TEXT),
    ("stale_while_revalidate", "stale-while-revalidate", Kind.SECONDS),
    ("stale_if_error", "stale-if-error", Kind.SECONDS),
    ("always_validate", "validated at each use", Kind.TEXT),
    ("anonymous_only", "for strangers only", Kind.TEXT),
)


def inspect_view(found: Json) -> View:
    """Return what is shown of Management.inspect()."""
    rows = [("url", "URL", _of(found, "url"), Kind.TEXT), ("verdict", "a GET", _of(found, "verdict"), Kind.TEXT)]
    if _of(found, "unknown"):
        rows.append(("unknown", "could not be asked", _of(found, "unknown"), Kind.TEXT))
    view: list[Table | Facts | Line] = [Facts(rows)]
    levels, selected = _of(found, "levels"), _of(found, "selected")
    for level in sorted(levels) if isinstance(levels, Mapping) else []:
        variants = _items(levels, level)
        for number, variant in enumerate(variants):
            chosen = _of(selected, "level") == level and _of(selected, "index") == number
            title = f"{str(level).upper()}, variant {number + 1} of {len(variants)}{', selected' if chosen else ''}"
            rows = [(f"{level}.{number}.{name}", label, _of(variant, name), kind) for name, label, kind in _VARIANT]
            vary = _of(variant, "vary")
            for name, value in vary.items() if isinstance(vary, Mapping) else ():
                rows.append(
                    (f"{level}.{number}.vary.{shown(name, None)}", f"for {shown(name, None)}", value, Kind.TEXT)
                )
            lines = _of(variant, "headers")
            for line in lines if isinstance(lines, list) else []:
                if isinstance(line, list) and len(line) == 2:
                    name = shown(line[0], None)
                    rows.append((f"{level}.{number}.header.{name}", name, line[1], Kind.TEXT))
            view.append(Facts(rows, title))
    return view


def purge_view(result: Json, what: str, *, soft: bool) -> View:
    """Return what is shown of Management.purge() of *what*."""
    if _of(result, "dry_run"):
        view: list[Table | Facts | Line] = [Line(f"would {'make stale' if soft else 'purge'} {_urls(result)}: {what}")]
        sample = _of(result, "sample")
        if isinstance(sample, list) and sample:
            view.append(Table([Column("among them")], [[one] for one in sample], mark="sample"))
        return view
    done = "stale" if soft else "gone"
    if not _of(result, "purged"):
        return [Line(f"nothing was purged: {what}")]
    if not _of(result, "propagated"):
        return [Line(f"{what} is {done} in the worker that has answered, and in no other")]
    matched = _number(result, "matched")
    if matched is None:
        return [Line(f"{what} is {done}")]
    if matched == 0 and _of(result, "is_complete"):
        return [Line(f"nothing that is stored was meant by it: {what} (workers were told all the same)")]
    return [Line(f"{what} is {done}: {_urls(result)}")]


def _urls(result: Json) -> str:
    """Return how many URLs a purge names."""
    matched = _number(result, "matched")
    least = "at least " if _of(result, "is_complete") is False else ""
    return "what is stored" if matched is None else f"{least}{matched:,} URL{'' if matched == 1 else 's'}"


def visits_view(visits: Json) -> View:
    """Return what is shown of a warming."""
    names = (
        ("done", "asked"),
        ("stored", "stored"),
        ("hits", "there already"),
        ("uncached", "not stored"),
        ("failed", "failed"),
    )
    view: list[Table | Facts | Line] = [
        Facts([(name, label, _number(visits, name), Kind.NUMBER) for name, label in names])
    ]
    reasons, problems = _items(visits, "uncached_because"), _items(visits, "problems")
    if reasons:
        fields = {"times": Column("times", Kind.NUMBER), "reason": Column("reason")}
        view.append(_table(fields, reasons, title="Not stored, because of", mark="reason"))
    if problems:
        fields = {"url": Column("url"), "problem": Column("problem")}
        view.append(_table(fields, problems, title="Failed", mark="problem"))
    return view


def demo_view(steps: Sequence[Json]) -> View:
    """Return what is shown of the tour of the demo."""
    return [_table({"step": Column("step"), **_ANSWER}, steps)]


def explain_view(explanation: Json, answers: Sequence[Json]) -> View:
    """Return what is shown of an explanation, and of the *answers* that it is about."""
    fields = {"request": Column("request", Kind.NUMBER), **_ANSWER}
    changes = explanation.get("changes")
    return [
        Line(str(explanation.get("sentence")), mark=str(explanation.get("outcome"))),
        *[Line(str(change), mark="change", is_item=True) for change in (changes if isinstance(changes, list) else [])],
        _table(fields, answers, mark="answer"),
    ]


def doctor_view(findings: Sequence[Json]) -> View:
    """Return what is shown of what the doctor found."""
    view: list[Line] = []
    for finding in findings:
        remedy = str(finding.get("remedy") or "")
        what = str(finding.get("what"))
        view.append(Line(f"{what} {remedy}".strip(), mood=str(finding.get("level"))))
    return view


def bench_view(report: Json) -> View:
    """Return what is shown of a benchmark."""
    columns = (
        Column("what"),
        Column("us a request", Kind.NUMBER),
        Column("us more than bare", Kind.NUMBER),
        Column("a second", Kind.NUMBER),
    )
    rows = [
        [_of(row, "name"), _number(row, "microseconds"), _number(row, "added"), _whole(_number(row, "per_second"))]
        for row in _items(report, "rows")
    ]
    title = f"Python {_of(report, 'python')}, {_of(report, 'machine')}, bodies of {_of(report, 'body_bytes')} bytes"
    return [Table(columns, rows, title)]


def _whole(number: float | None) -> int | None:
    return None if number is None else round(number)
