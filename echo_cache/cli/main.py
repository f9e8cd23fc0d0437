"""
`echo-cache`, from its arguments to its exit code. The one rule: whatever happens is told in words: no traceback, unless
ECHO_CACHE_DEBUG=1 asks for it.

    0    done
    1    the answer is no: nothing stored, not cached, a problem found
    2    wrong usage, or a wrong setting
    3    what was asked cannot be reached, or refuses
    130  interrupted
"""

from __future__ import annotations

import errno
import importlib.util
import io
import json
import logging
import os
import re
import sys
import traceback
from collections.abc import Sequence
from typing import Final

__all__ = ["run"]

_NEEDED: Final = ("httpx", "rich", "typer")
_INTERRUPTED: Final = 130
# What it is called where nobody reads, or nothing can be written any more.
_UNWRITABLE: Final = frozenset({errno.EPIPE, errno.ENOSPC, errno.EFBIG, errno.EIO})
# What comes before the last @ of an authority may be a password, whatever else is in it.
_CREDENTIALS: Final = re.compile(r"(\b[a-z][a-z0-9+]*://)[^\s'\"]*@", re.IGNORECASE)


def run(arguments: Sequence[str] | None = None) -> int:
    """Do what *arguments*, those of the process if None, ask for, and return the exit code. Raises nothing."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in words
    _see_to_the_streams()
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        return _tell(
            f"the command line needs {', '.join(missing)}, which is not installed: pip install 'echo-cache[cli]'",
            2,
            as_json,
        )
    try:
        try:
            code = _act(words) if words else _act(["--help"]) or 2
            sys.stdout.flush()
        except Exception as error:
            if os.environ.get("ECHO_CACHE_DEBUG"):
                traceback.print_exc()
            code = _tell(*_told(error), as_json)
    except BrokenPipeError:
        # Whoever read, as `head` does, has what he wanted.
        _discard_stdout()
        return 0
    except OSError as error:
        _discard_stdout()
        return _tell(f"the answer cannot be written: {error.strerror or error}", 3, as_json=False)
    except KeyboardInterrupt:
        return _INTERRUPTED
    return code


def _act(words: Sequence[str]) -> int:
    """Run the command. Raises what it raises."""
    import typer

    from echo_cache.cli.commands import app

    # What the cache logs is told by the command, in its own words.
    logger = logging.getLogger("echo_cache")
    silent = logging.NullHandler()
    logger.addHandler(silent)
    try:
        code = typer.main.get_command(app).main(list(words), prog_name="echo-cache", standalone_mode=False)
    except typer.Abort:
        return _INTERRUPTED
    except SystemExit as error:
        # So typer ends where stdout has no reader any more.
        if isinstance(error.__context__, BrokenPipeError):
            raise error.__context__ from None
        code = error.code
    finally:
        logger.removeHandler(silent)
    return code if isinstance(code, int) else 0


def _told(error: Exception) -> tuple[str, int]:
    """Return what is said of *error*, and the exit code."""
    import typer

    from echo_cache.cli.doctor import trouble_of
    from echo_cache.cli.web import Unavailable
    from echo_cache.errors import ConfigurationError, StoreError

    if isinstance(error, OSError) and error.errno in _UNWRITABLE:
        raise error
    # typer exports BadParameter alone of what a wrong usage raises; they have a base in common.
    usage = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")
    if isinstance(error, usage):
        return f"{getattr(error, 'format_message', error.__str__)()}\nTry 'echo-cache --help'.", 2
    if isinstance(error, ConfigurationError):
        return str(error), 2
    if isinstance(error, Unavailable):
        return str(error), 3
    if isinstance(error, StoreError):
        return f"Redis cannot be asked: {trouble_of(error)[1]}", 3
    return (
        f"something unexpected happened ({type(error).__name__}: {error}). ECHO_CACHE_DEBUG=1 shows where; please "
        "report it.",
        3,
    )


def _tell(message: str, code: int, as_json: bool) -> int:
    """Write *message*, and return *code*."""
    message = _CREDENTIALS.sub(r"\1...@", message)
    if as_json:
        sys.stdout.write(json.dumps({"error": message}) + "\n")
        sys.stdout.flush()
    lines = ["".join(char if char.isprintable() else "?" for char in line) for line in message.split("\n")]
    sys.stderr.write("echo-cache: " + "\n".join(lines) + "\n")
    sys.stderr.flush()
    return code


def _see_to_the_streams() -> None:
    """See that there are streams to write to, and that every character can be written."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - it stays open as long as the process
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _discard_stdout() -> None:
    """See that nothing is written when the process ends, which would fail once more."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):
        return
