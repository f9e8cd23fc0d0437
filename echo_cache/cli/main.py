"""
`echo-cache`, from its arguments to its exit code. The one rule: whatever happens is told in words: no traceback, unless
ECHO_CACHE_DEBUG=1 asks for it.

    0    done
    1    the answer is no: nothing stored, not cached, a problem found
    2    wrong usage, or a wrong setting
    3    what was asked cannot be reached, or refuses
    130  interrupted (143: told to end)
"""

from __future__ import annotations

import errno
import importlib.util
import io
import json
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from contextlib import suppress
from typing import Final, TextIO

from echo_cache.cli.text import shown

__all__ = ["run"]

_NEEDED: Final = ("httpx", "rich", "typer")
_INTERRUPTED: Final = 130
_TERMINATED: Final = 143
# What it is called where nothing can be written any more.
_UNWRITABLE: Final = frozenset({errno.ENOSPC, errno.EFBIG, errno.EIO})
_ADDRESSES: Final = ("ECHO_CACHE_TARGET", "ECHO_CACHE_URL")


def run(arguments: Sequence[str] | None = None) -> int:
    """Do what *arguments*, those of the process if None, ask for, and return the exit code. Raises nothing."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    is_terminated = False

    def end(*_: object) -> None:
        nonlocal is_terminated
        is_terminated = True
        # As Ctrl-C, so that what is to be cleaned is cleaned.
        signal.raise_signal(signal.SIGINT)

    before = None
    try:
        if threading.current_thread() is threading.main_thread():
            before = signal.signal(signal.SIGTERM, end)
        _see_to_the_streams()
        code = _code_of(words)
        try:
            sys.stderr.flush()
        except (OSError, ValueError):  # nobody reads it, which is no failure
            _discard(sys.stderr)
    except KeyboardInterrupt:
        code = _INTERRUPTED
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)
    return _TERMINATED if is_terminated else code


def _code_of(words: Sequence[str]) -> int:
    """Run the command, tell what goes wrong, and return the exit code."""
    as_json = "--json" in words
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        what = f"the command line needs {', '.join(missing)}, which is not installed"
        return _tell(f"{what}: pip install '.[cli]' in a checkout of echo_cache", 2, words, as_json)
    try:
        code = _act(words) if words else _act(["--help"]) or 2
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read, as `head` does, has what he wanted.
        _discard(sys.stdout)
        return 0
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _UNWRITABLE:
            _discard(sys.stdout)
            return _tell(f"the answer cannot be written: {error.strerror or error}", 3, words, as_json=False)
        if os.environ.get("ECHO_CACHE_DEBUG"):
            traceback.print_exc()
        return _tell(*_told(error), words, as_json)
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

    from echo_cache.cli.target import in_words
    from echo_cache.cli.web import Unavailable
    from echo_cache.errors import ConfigurationError, StoreError

    # typer exports BadParameter alone of what a wrong usage raises; they have a base in common.
    usage = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")
    if isinstance(error, usage):
        return _told_of_usage(error), 2
    if isinstance(error, ConfigurationError):
        return str(error), 2
    if isinstance(error, StoreError):
        try:
            with in_words("the URL that was given"):
                raise error
        except Unavailable as told:
            return str(told), 3
    if isinstance(error, Unavailable):
        return str(error), 3
    return (
        f"something unexpected happened ({type(error).__name__}: {error}). ECHO_CACHE_DEBUG=1 shows where; please "
        "report it.",
        3,
    )


def _told_of_usage(error: Exception) -> str:
    context = getattr(error, "ctx", None)
    path = getattr(context, "command_path", "") or "echo-cache"
    told = str(getattr(error, "format_message", error.__str__)()).replace("\n\t", " ")
    if " " not in path and type(error).__name__ == "NoSuchOption":
        told += " Options are written after the command: echo-cache stats --json"
    return f"{told}\nTry '{path} --help'."


def _tell(message: str, code: int, words: Sequence[str], as_json: bool) -> int:
    """Write *message*, without what in *words* may be a password, and return *code*, whoever reads that or does not."""
    message = _without_credentials(message, words)
    if as_json:
        try:
            sys.stdout.write(json.dumps({"error": message}) + "\n")
            sys.stdout.flush()
        except OSError:
            _discard(sys.stdout)
    with suppress(OSError, ValueError):
        sys.stderr.write("\n".join([shown(line, None) for line in f"echo-cache: {message}".split("\n")]) + "\n")
        sys.stderr.flush()
    return code


def _without_credentials(message: str, words: Sequence[str]) -> str:
    """Return *message* without the user and password of any address in *words* or in the environment."""
    given = [*words, *(os.environ.get(name, "") for name in _ADDRESSES)]
    # What comes before the last @ of an address may be a password, whatever else is in it.
    heads = [word.rpartition("@")[0] for word in given]
    found = {head.partition("://")[2] or head for head in heads} - {""}
    for credentials in sorted(found, key=len, reverse=True):
        for form in (credentials, repr(credentials)[1:-1], shown(credentials, None)):
            message = message.replace(f"{form}@", "...@")
    return message


def _see_to_the_streams() -> None:
    """See that there are streams to write to, and that every character can be written."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - it stays open as long as the process
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _discard(stream: TextIO) -> None:
    """See that nothing of *stream* is written when the process ends, which would fail once more."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    except (OSError, ValueError):
        return
