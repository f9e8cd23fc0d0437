"""The PostgreSQL of the tests is found or the tests fail; it leaves nothing behind, and does not outlive the tests."""

from __future__ import annotations

import importlib.util
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from tests import postgres
from tests.postgres import PostgresServer, postgres_database
from tests.servers import NoServerError, ServerError

ROOT = Path(__file__).parent.parent


def databases(url: str) -> set[str]:
    with psycopg.connect(url) as connection:
        return {name for (name,) in connection.execute("SELECT datname FROM pg_database").fetchall()}


def test_without_the_wheel_it_fails_and_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("POSTGRES_URL", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(NoServerError, match="set POSTGRES_URL to one, or install the wheel"), postgres_database():
        pass


def test_url_that_leads_nowhere_is_an_error_and_nothing_else_is_tried(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("POSTGRES_URL", f"postgresql:///postgres?host={tmp_path}")
    monkeypatch.setattr(postgres, "PostgresServer", None)
    with pytest.raises(ServerError, match=r"\$POSTGRES_URL does not lead to a PostgreSQL"), postgres_database():
        pass


def test_at_a_url_a_database_of_our_own_is_made_and_dropped(monkeypatch: pytest.MonkeyPatch, postgres_url: str) -> None:
    monkeypatch.setenv("POSTGRES_URL", postgres_url)
    before = databases(postgres_url)
    with postgres_database() as url, psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE one (a INT)")
        connection.commit()
        (own,) = databases(postgres_url) - before
        assert own == connection.info.dbname
    assert databases(postgres_url) == before


def test_server_is_gone_with_its_files_when_it_is_closed() -> None:
    server = PostgresServer()
    with server:
        assert databases(server.url) >= {"postgres"}
        assert "running" in repr(server)
        folder = Path(server._folder.name)
        with pytest.raises(ServerError, match="was started already"):
            server.start()
    assert not folder.exists()
    assert "stopped" in repr(server)


def test_server_does_not_outlive_a_killed_runner() -> None:
    program = (
        "from tests.postgres import PostgresServer\n"
        "server = PostgresServer()\nserver.start()\nprint(server.url, flush=True)\ninput()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as runner:
        assert runner.stdout is not None
        url = runner.stdout.readline().strip()
        folder = Path(psycopg.conninfo.conninfo_to_dict(url)["host"])
        with psycopg.connect(url) as connection:
            runner.send_signal(signal.SIGKILL)
            # The server ends its connections when it ends.
            with pytest.raises(psycopg.OperationalError):
                connection.execute("SELECT pg_sleep(30)")
    shutil.rmtree(folder, ignore_errors=True)  # what nobody was left to remove
