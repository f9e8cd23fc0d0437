"""
Makes docs/api.md: every public name, with its signature and what its docstring promises.

    python docs/make_api.py

Nothing is written there by hand. The text depends on the docstrings alone, not on the machine or the version of Python.
"""

from __future__ import annotations

import dataclasses
import enum
import importlib
import importlib.util
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Final, ForwardRef, cast, get_origin

ROOT: Final = Path(__file__).parent.parent
PAGE: Final = ROOT / "docs" / "api.md"

# Those that are not there are left out.
MODULES: Final = (
    "echo_cache",
    "echo_cache.fastapi",
    "echo_cache.aside",
    "echo_cache.recipes",
    "echo_cache.integrations.langgraph",
    "echo_cache.events",
    "echo_cache.errors",
    "echo_cache.settings",
    "echo_cache.observability.prometheus",
    "echo_cache.observability.opentelemetry",
    "echo_cache.observability.logs",
    "echo_cache.management",
    "echo_cache.dashboard",
    "echo_cache.testing",
)
WIDTH: Final = 100

# Of the engine, what an app or an operator calls; the rest is the middleware's.
FOR_USERS: Final = {
    "Cache": (
        *("invalidate", "invalidate_sync", "clear", "tag", "warm", "disabled", "is_disabled"),
        *("stats", "reset_counters", "aclose"),
    )
}

# "name: what it is" or "one, other: what they are", as docstrings list parameters and fields: at the beginning of a
# line, or after a sentence.
_ITEM: Final = re.compile(r"(?:^|\n|(?<=[.;] ))(?P<names>[a-z_]\w*(?:, [a-z_]\w*)*): ")


def reference() -> str:
    """Return the text of the page."""
    parts = [
        "# Reference",
        "",
        "Every public name, from the docstrings. Made by `python docs/make_api.py`: what is changed by hand is lost.",
        "",
    ]
    modules = [importlib.import_module(name) for name in MODULES if _is_there(name)]
    parts += [f"- [{module.__name__}](#{module.__name__.replace('.', '')})" for module in modules]
    shown: dict[int, str] = {}
    for module in modules:
        parts += ["", f"## {module.__name__}", "", *_prose(module.__doc__)]
        for name in sorted(public_names(module), key=lambda name: (name.lower(), name)):
            value = getattr(module, name)
            parts += ["", f"### {name}", ""]
            first = shown.setdefault(id(value), module.__name__) if _has_docs(value) else module.__name__
            if first != module.__name__:
                parts += [f"The same as in [{first}](#{first.replace('.', '')})."]
            else:
                parts += _described(name, value, module)
    return "\n".join(parts).rstrip() + "\n"


def public_names(module: ModuleType) -> list[str]:
    """Return what *module* says is public; where it does not say, what it defines without an underscore."""
    names: list[str] | None = getattr(module, "__all__", None)
    if names is not None:
        return list(names)
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]


def _is_there(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def _has_docs(value: object) -> bool:
    return inspect.isclass(value) or inspect.isroutine(value)


def _described(name: str, value: Any, module: ModuleType) -> Iterator[str]:
    if inspect.isclass(value):
        yield from _class(name, value)
    elif inspect.isroutine(value):
        yield from _code(_call(name, value))
        yield from _prose(value.__doc__, _names(value))
    else:
        shown = _shown(value) if get_origin(value) is not None or isinstance(value, str | int | float) else "..."
        yield from _code(name if shown == "..." else f"{name} = {shown}")
        yield from _prose(_note_below(name, module))


def _class(name: str, kind: type) -> Iterator[str]:
    if issubclass(kind, BaseException):
        yield from _code(f"class {name}({', '.join(base.__name__ for base in kind.__bases__)})")
    elif issubclass(kind, enum.Enum) or getattr(kind, "_is_protocol", False):
        yield from _code(f"class {name}")
    else:
        yield from _code(_call(name, kind))
    if not (kind.__doc__ or "").startswith(f"{name}("):  # what dataclasses write where nobody else did
        yield from _prose(kind.__doc__, _names(kind))
    if issubclass(kind, enum.Enum):
        yield from ("", f"Values: {', '.join(f'`{member.value}`' for member in kind)}.")
        return
    for member, value in vars(kind).items():
        bare = value.__func__ if isinstance(value, classmethod | staticmethod) else value
        if member.startswith("_") or member not in FOR_USERS.get(name, (member,)):
            continue
        if isinstance(bare, property):
            yield from ("", f"#### {name}.{member}", "", *_prose(bare.__doc__))
        elif inspect.isfunction(bare) and bare.__doc__ and not _is_generated(kind, member):
            how = "async " if inspect.iscoroutinefunction(bare) else ""
            yield from ("", f"#### {name}.{member}", "")
            yield from _code(how + _call(member, bare, is_method=not isinstance(value, staticmethod)))
            yield from _prose(bare.__doc__, _names(bare))
    if name in FOR_USERS:
        yield from ("", "Its other methods are the middleware's.")


def _is_generated(kind: type, member: str) -> bool:
    return hasattr(kind, "_fields") and member in ("count", "index")


def _code(text: str) -> Iterator[str]:
    yield from ("```python", text, "```", "")


def _call(name: str, function: Callable[..., Any], *, is_method: bool = False) -> str:
    """Return the signature of *function* as one would write it, on one line if it is short."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return name
    parameters = list(signature.parameters.values())
    if is_method or (parameters and parameters[0].name in ("self", "cls")):
        parameters = parameters[1:]
    shown: list[str] = []
    seen_star = False
    for index, parameter in enumerate(parameters):
        if parameter.kind is parameter.KEYWORD_ONLY and not seen_star:
            shown.append("*")
            seen_star = True
        seen_star = seen_star or parameter.kind is parameter.VAR_POSITIONAL
        shown.append(_parameter(parameter))
        following = parameters[index + 1].kind if index + 1 < len(parameters) else None
        if parameter.kind is parameter.POSITIONAL_ONLY and following is not parameter.POSITIONAL_ONLY:
            shown.append("/")
    returned = signature.return_annotation
    end = ")" if inspect.isclass(function) or returned is signature.empty else f") -> {_annotation(returned)}"
    line = f"{name}({', '.join(shown)}{end}"
    if len(line) <= WIDTH:
        return line
    return "\n".join([f"{name}(", *[f"    {part}," for part in shown], end])


def _parameter(parameter: inspect.Parameter) -> str:
    is_positional, is_keyword = parameter.kind is parameter.VAR_POSITIONAL, parameter.kind is parameter.VAR_KEYWORD
    text = ("*" if is_positional else "**" if is_keyword else "") + parameter.name
    typed = parameter.annotation is not parameter.empty
    if typed:
        text += f": {_annotation(parameter.annotation)}"
    if parameter.default is not parameter.empty:
        text += f" = {_shown(parameter.default)}" if typed else f"={_shown(parameter.default)}"
    return text


def _annotation(annotation: object) -> str:
    if isinstance(annotation, ForwardRef):
        annotation = annotation.__forward_arg__
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return re.sub(r"\b(?:typing|collections\.abc|builtins)\.|\becho_cache(?:\.\w+)*\.", "", text)


def _shown(value: object) -> str:
    """
    Return plain data as one would write it, types by name, and "..." for all else.

    Not by its repr: that of a default such as os.environ shows what the machine has in it.
    """
    if isinstance(value, enum.Enum):
        value = value.value
    if isinstance(value, str):
        return json.dumps(value)
    if value is None or isinstance(value, bool | int | float | bytes):
        return repr(value)
    if inspect.isclass(value) and get_origin(value) is None:
        return value.__name__
    if get_origin(value) is not None:
        text = _annotation(value)
        return "..." if "<" in text else text
    if inspect.isroutine(value):
        return str(value.__name__)
    if type(value) in (tuple, list):
        shown = [_shown(item) for item in cast("list[object]", value)]
        return f"[{', '.join(shown)}]" if type(value) is list else f"({', '.join(shown)}{',' * (len(shown) == 1)})"
    return _constant(value) or (f"{type(value).__name__}(...)" if dataclasses.is_dataclass(value) else "...")


def _constant(value: object) -> str | None:
    """Return the name of the public constant that *value* is, None if it is none."""
    for key in sorted(sys.modules):
        if key.partition(".")[0] == "echo_cache":
            for name, other in vars(sys.modules[key]).items():
                if other is value and name.isupper() and not name.startswith("_"):
                    return name
    return None


def _note_below(name: str, module: ModuleType) -> str | None:
    """Return the string that stands below the assignment of *name*, where it is made."""
    sources = [module, *(sys.modules[key] for key in sorted(sys.modules) if key.startswith("echo_cache."))]
    for source in sources:
        if name in vars(source) and source.__file__:
            text = Path(source.__file__).read_text(encoding="utf-8")
            found = re.search(rf'^{name}\b[^\n]* = .*?^"""(.*?)"""', text, re.MULTILINE | re.DOTALL)
            if found and not re.search(r"\n(?:class|def|[A-Z_a-z]\w*(?::[^\n]+)? =) ?", found[0]):
                return found[1]
    return None


def _names(value: Callable[..., Any]) -> frozenset[str]:
    """Return what the docstring of *value* may list: parameters, fields and attributes."""
    try:
        named = set(inspect.signature(value).parameters)
    except (TypeError, ValueError):
        named = set()
    return frozenset(named | set(getattr(value, "__annotations__", ())))


def _prose(docstring: str | None, names: frozenset[str] = frozenset()) -> list[str]:
    """
    Return *docstring* as Markdown.

    Paragraphs are joined, lists of *names* become lists, what is indented is code.
    """
    if not docstring:
        return []
    lines: list[str] = []
    for block in re.split(r"\n\s*\n", inspect.cleandoc(docstring)):
        if lines:
            lines.append("")
        rows = block.splitlines()
        if rows[0].startswith("    "):
            lines += ["```text", *(row[4:] for row in rows), "```"]
        else:
            lines += _paragraph(rows, names)
    return lines


def _paragraph(rows: list[str], names: frozenset[str]) -> list[str]:
    """Return *rows* as one line, or as a list where they begin with one of *names*."""
    text = "".join(f" {row.strip()}" if row.startswith(" ") else f"\n{row}" for row in rows)[1:]
    items = [found for found in _ITEM.finditer(text) if set(found["names"].split(", ")) <= names]
    if not items or items[0].start() != 0:
        return [_inline(text.replace("\n", " "))]
    ends = [*(item.start() for item in items[1:]), len(text)]
    lines = []
    for item, end in zip(items, ends, strict=True):
        named = ", ".join(f"`{name}`" for name in item["names"].split(", "))
        lines.append(f"- {named}: {_inline(text[item.end() : end].strip().replace(chr(10), ' '))}")
    return lines


def _inline(text: str) -> str:
    """Return *text* with what would be taken for HTML or for emphasis escaped; *name* stays emphasised."""
    text = re.sub(r"<(?=[A-Za-z/!])", r"\<", text)
    return re.sub(r"(?<!\w)\*(?![A-Za-z_][\w ]*\*)(?<![A-Za-z_]\*)", r"\*", text)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    PAGE.write_text(reference(), encoding="utf-8")
