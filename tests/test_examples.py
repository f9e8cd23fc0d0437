"""Each example runs, and the shop's tour shows what it says: without Redis, with it, and over a restart."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import http.client
import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
# For a machine under load; an idle one needs a second or two.
PATIENCE = 80
_CHANGES_EXAMPLES = ("REDIS_URL", "POSTGRES_URL", "PYTHONWARNINGS")

pytestmark = pytest.mark.timeout(3 * PATIENCE)


def environment(**more: str) -> dict[str, str]:
    """Return this process's environment, without what would change an example, and with *more*."""
    kept = {name: value for name, value in os.environ.items() if name not in _CHANGES_EXAMPLES}
    # The checkout, also where the package is not installed.
    return {**kept, "PYTHONPATH": str(ROOT), **more}


def run(*arguments: str | Path, **more: str) -> str:
    """Return what a Python program prints. It must exit with 0."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment(**more),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_there_are_examples() -> None:
    assert {path.stem for path in EXAMPLES} >= {
        *("quickstart", "fastapi_app", "starlette_app", "shop", "reverse_proxy", "workers", "graphql_app"),
        *("cache_aside", "write_behind", "intent", "rate_limit", "langgraph_saver"),
    }


def test_list_of_the_examples_has_each_once_and_no_dead_link() -> None:
    text = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| \[([a-z_]+\.py)\]\(\1\)", text, re.MULTILINE)
    assert sorted(listed) == [path.name for path in EXAMPLES]
    for link in re.findall(r"\]\(([^)]+)\)", text):
        path, _, anchor = link.partition("#")
        found = (ROOT / "examples" / path).read_text(encoding="utf-8")
        titles = re.findall(r"^#+ (.+)$", found, re.MULTILINE)
        assert not anchor or anchor in {re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_quickstart_is_short() -> None:
    assert len((ROOT / "examples" / "quickstart.py").read_text(encoding="utf-8").splitlines()) <= 40


# The shop has tests of its own, below.
@pytest.mark.parametrize("example", [pytest.param(path, id=path.stem) for path in EXAMPLES if path.name != "shop.py"])
def test_example_runs_once(example: Path) -> None:
    printed = run(example, "--once")
    assert "; hit; ttl=" in printed


def test_example_of_the_public_names_runs() -> None:
    run("tests/typing/api.py")


def test_tour_of_the_shop_shows_each_step() -> None:
    lines = run("examples/shop.py", "--once").splitlines()
    steps = [line[:38].strip() for line in lines[1 : lines.index("")]]
    assert steps == [
        "GET, the first: a miss",
        "GET again: a hit",
        "HEAD, answered by the stored GET",
        "GET with If-None-Match: not modified",
        "50 GETs of a cold page: 1 call",
        "PUT, which invalidates by tag",
        "GET after it: a miss",
        "GET again: a hit",
    ]
    assert "What to do next" in lines[lines.index("") + 1]


def test_tour_of_the_shop_with_redis_ends_with_a_hit_after_a_restart(redis_url: str) -> None:
    printed = run("examples/shop.py", "--once", REDIS_URL=redis_url)
    (row,) = [line for line in printed.splitlines() if "after a restart" in line]
    assert "; hit; ttl=" in row


def test_shop_says_what_to_do_when_its_port_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [sys.executable, "examples/shop.py", "--port", port],
            cwd=ROOT,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1] == f"port {port} is taken: make demo ARGS='--port {int(port) + 1}'"


def test_page_of_the_shop_is_self_contained() -> None:
    page = (ROOT / "examples" / "shop.html").read_text(encoding="utf-8")
    assert "://" not in page


@contextlib.contextmanager
def shop(port: int, **more: str) -> Iterator[subprocess.Popen[str]]:
    """Run the shop as `make demo` does, until Ctrl-C."""
    process = subprocess.Popen(
        [sys.executable, "examples/shop.py", "--port", str(port)],
        cwd=ROOT,
        env=environment(PYTHONUNBUFFERED="1", **more),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        deadline = time.monotonic() + PATIENCE
        while True:
            with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
                break
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline, "the shop does not listen"
            time.sleep(0.02)
        yield process
    finally:
        process.kill()
        process.communicate()


def get(port: int, target: str) -> tuple[int, str, bytes]:
    """Return status, Cache-Status and body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    with contextlib.closing(connection):
        connection.request("GET", target)
        response = connection.getresponse()
        return response.status, response.headers["cache-status"], response.read()


def test_shop_serves_its_page_and_what_it_knew_before_a_restart_until_interrupted(redis_url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    bodies = []
    for expected in ("stored", "; hit"):
        with shop(port, REDIS_URL=redis_url) as process:
            status, said, body = get(port, "/products/3")
            assert status == 200
            assert expected in said
            bodies.append(body)
            assert b"<!doctype html>" in get(port, "/")[2]
            process.send_signal(signal.SIGINT)
            printed = process.communicate(timeout=PATIENCE)[0]
            assert process.returncode == 0, printed
            assert f"http://127.0.0.1:{port}/products/1" in printed
            assert "Traceback" not in printed
    assert bodies[0] == bodies[1]


def test_workers_share_one_call_one_invalidation_and_their_statistics_and_are_gone_at_the_end(redis_url: str) -> None:
    printed = run("examples/workers.py", "--once", REDIS_URL=redis_url)
    lines = printed.splitlines()
    assert re.fullmatch(r"\d+ GETs of a cold page at once, to 3 workers: 1 call of the handler", lines[0])
    processes = set(re.findall(r"^worker (\d+): GET /products/\w+  echo_cache; hit; ttl=", printed, re.MULTILINE))
    assert len(processes) == 3
    *rows, total = [line.split() for line in lines[-4:]]
    assert {row[1] for row in rows} == processes
    assert total[0] == "all"
    assert [sum(int(row[column]) for row in rows) for column in range(2, 6)] == [int(count) for count in total[1:]]
    assert total[-1] == "2"
    for process in processes:
        with pytest.raises(ProcessLookupError):
            os.kill(int(process), 0)


# GraphQL.


@pytest.fixture
def graphql(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the example as a module of its own, without Redis."""
    monkeypatch.delenv("REDIS_URL", raising=False)
    name = "example_graphql"
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / "graphql_app.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Annotations are looked up in it.
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


def client_of(module: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(module.app), base_url="http://graphql")


async def post(client: httpx.AsyncClient, query: str, token: str = "", **variables: Any) -> Any:
    asked = {"query": query, "variables": variables}
    response = await client.post("/graphql", json=asked, headers={"authorization": token})
    assert response.status_code == 200, response.text
    return response.json()


def titled(*titles: str) -> dict[str, Any]:
    return {"data": {"books": [{"title": title} for title in titles]}}


QUERY = "query A($x: ID!, $y: ID) { a(i: $x) { b c } }"


@pytest.mark.parametrize(
    ("more", "same"),
    [
        pytest.param({}, True, id="itself"),
        pytest.param({"query": f"\r\n\t{QUERY.replace(' ', '  ')} "}, True, id="white-space"),
        pytest.param({"query": QUERY.replace("b c", "c b")}, False, id="order-of-fields"),
        pytest.param({"query": QUERY.replace("b c", "bc")}, False, id="names-joined"),
        pytest.param({"query": QUERY.replace("b c", "b\u2003c")}, False, id="white-space-that-graphql-does-not-know"),
        pytest.param({"variables": {"y": 2, "x": 1}}, True, id="order-of-variables"),
        pytest.param({"variables": '{"y": 2, "x": 1}'}, True, id="variables-as-json"),
        pytest.param({"variables": {"x": 1, "y": 2, "z": 3}}, True, id="variable-of-no-query"),
        pytest.param({"variables": {"x": 1, "y": 2, "": 3}}, True, id="variable-without-a-name"),
        pytest.param({"variables": {"x": 1}}, False, id="a-variable-is-missing"),
        pytest.param({"variables": {"x": 1, "y": None}}, False, id="null-is-not-2"),
        pytest.param({"variables": {"x": "1", "y": 2}}, False, id="text-is-no-number"),
        pytest.param({"variables": {"x": True, "y": 2}}, False, id="true-is-not-1"),
        pytest.param({"operationName": "A"}, False, id="operation-by-name"),
        pytest.param({"operationName": ""}, False, id="empty-is-not-absent"),
        pytest.param({"viewer": "ada"}, True, id="a-client-does-not-say-who-asks"),
    ],
)
def test_key_of_a_query_tells_apart_what_differs_and_nothing_else(
    graphql: Any, more: dict[str, Any], same: bool
) -> None:
    first = {"query": QUERY, "variables": {"x": 1, "y": 2}}
    keys = [graphql.Asked.model_validate(asked).key(None) for asked in (first, {**first, **more})]
    assert (keys[0] == keys[1]) is same


def test_parts_of_a_key_do_not_run_into_each_other(graphql: Any) -> None:
    texts = ("", "-", "a", "a-", "1:a", "2:{}", "a1:a")
    parts = [(query, name, viewer) for query in texts for name in (None, *texts) for viewer in (None, *texts)]
    keys = {graphql.Asked(query=query, operationName=name).key(viewer) for query, name, viewer in parts}
    assert len(keys) == len(parts)


def test_white_space_counts_within_a_string_and_after_a_comment(graphql: Any) -> None:
    texts = ('{ a(b: "c d") }', '{ a(b: "c  d") }', '{ a(b: "c\td") }', "{ a # b\n c }", "{ a # b c }", "{ a # b  c }")
    assert len({graphql.Asked(query=text).key(None) for text in texts}) == len(texts)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        pytest.param(b" " * (16 * 1024 + 1), 413, id="too-long"),
        pytest.param(b" " * (16 * 1024), 400, id="as-long-as-may-be"),
        pytest.param(b"[" * 16_000, 400, id="deep-json"),
        pytest.param(b'{"query": "{ a }", "variables": {"x": ' + b"1" * 16_000 + b"}}", 400, id="long-number"),
        pytest.param(b"[]", 400, id="no-object"),
        pytest.param(b"\xff", 400, id="no-text"),
        pytest.param(b'{"query": "{ a }", "operationName": 1}', 400, id="name-is-no-text"),
        pytest.param(b'{"query": "{ a }", "variables": ["x"]}', 400, id="variables-are-a-list"),
        pytest.param(b'{"query": "{ a }", "variables": {"x": "\\ud800"}}', 400, id="half-a-pair"),
        pytest.param(b'{"query": "{ a }", "variables": null}', 200, id="query-that-nobody-knows"),
        pytest.param(b'{"query": "query me { me { name } }", "operationName": "you"}', 200, id="no-such-operation"),
        pytest.param(b'{"query": "query books($name: String!) { books(author: $name) { title } }"}', 200, id="no-name"),
    ],
)
async def test_what_cannot_be_answered_is_refused_and_keeps_nothing(graphql: Any, body: bytes, status: int) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield body[:10]
        yield body[10:]

    async with client_of(graphql) as client:
        response = await client.post("/graphql", content=chunks())  # its length is not told
    assert response.status_code == status, response.text
    assert status != 200 or response.json()["errors"]
    assert graphql.cache.stats().store.entries == 0


async def test_answer_by_post_and_page_by_hash_are_kept_until_a_mutation_names_what_is_in_them(graphql: Any) -> None:
    (by_hash,) = graphql.PERSISTED
    async with client_of(graphql) as client:

        async def ask(name: str) -> tuple[Any, str]:
            page = await client.get("/graphql", params={"hash": by_hash, "variables": json.dumps({"name": name})})
            assert page.json() == await post(client, graphql.BOOKS, name=name)
            return page.json(), page.headers["cache-status"]

        for word in ("; stored", "; hit"):
            for name, title in (("Austen", "Emma"), ("Bronte", "Villette")):
                answer, said = await ask(name)
                assert answer == titled(title)
                assert word in said
        assert graphql.results.stats().fetches == 2
        refused = await post(client, graphql.RENAME, id="1", title="Sanditon")
        assert refused["errors"]
        assert "; hit" in (await ask("Austen"))[1]
        await post(client, graphql.RENAME, graphql.ADA, id="1", title="Sanditon")
        answer, said = await ask("Austen")
        assert answer == titled("Sanditon")
        assert "; stored" in said
        assert "; hit" in (await ask("Bronte"))[1]
        assert graphql.results.stats().fetches == 3


async def test_twenty_who_ask_at_once_cost_one_execution_and_later_ones_none(
    graphql: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_answer, execute = anyio.Event(), graphql.execute

    async def slow(*asked: Any) -> Any:
        await may_answer.wait()
        return await execute(*asked)

    monkeypatch.setattr(graphql, "execute", slow)
    answers: list[Any] = []

    async def ask() -> None:
        answers.append(await post(client, graphql.BOOKS, name="Austen"))

    async with client_of(graphql) as client:
        async with anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(ask)
            await anyio.wait_all_tasks_blocked()
            may_answer.set()
        await ask()
    assert answers == [titled("Emma")] * 21
    assert graphql.results.stats().fetches == 1


async def test_who_asks_after_a_mutation_never_gets_what_was_read_before_it(
    graphql: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_read, may_answer, execute = anyio.Event(), anyio.Event(), graphql.execute

    async def slow(asked: Any, viewer: str | None) -> Any:
        answer = await execute(asked, viewer)
        if asked.query == graphql.BOOKS and not has_read.is_set():
            has_read.set()
            await may_answer.wait()
        return answer

    monkeypatch.setattr(graphql, "execute", slow)
    later: list[Any] = []

    async def ask_later() -> None:
        later.append(await post(client, graphql.BOOKS, name="Austen"))

    async with client_of(graphql) as client:
        async with anyio.create_task_group() as group:
            group.start_soon(functools.partial(post, client, graphql.BOOKS, name="Austen"))
            await has_read.wait()
            await post(client, graphql.RENAME, graphql.ADA, id="1", title="Sanditon")
            group.start_soon(ask_later)
            await anyio.wait_all_tasks_blocked()
            may_answer.set()
        await ask_later()
    assert later == [titled("Sanditon")] * 2


async def test_what_a_viewer_may_see_is_kept_for_that_viewer_alone(graphql: Any) -> None:
    async with client_of(graphql) as client:
        for _ in range(2):
            assert await post(client, graphql.ME, graphql.ADA) == {"data": {"me": {"name": "Ada"}}}
            for stranger in ("", "ada", f"{graphql.ADA}0", graphql.ADA[:-1]):
                assert await post(client, graphql.ME, stranger, viewer="ada") == {"data": {"me": None}}
        assert graphql.results.stats().fetches == 2


async def test_answers_with_errors_are_kept_neither_by_post_nor_by_hash(graphql: Any) -> None:
    (by_hash,) = graphql.PERSISTED
    async with client_of(graphql) as client:
        for fetches in (1, 2, 3):
            assert (await post(client, graphql.BOOKS, name="nobody"))["errors"]
            assert graphql.results.stats().fetches == fetches
        for params in (
            {"hash": "00"},
            {"hash": hashlib.sha256(graphql.ME.encode()).hexdigest()},
            {"hash": by_hash},
            {"hash": by_hash, "variables": '{"name": "\\r\\nx: y"}'},
        ):
            for _ in range(2):
                response = await client.get("/graphql", params=params)
                assert response.json()["errors"]
                assert "detail=no-store" in response.headers["cache-status"]
        for _ in range(2):
            response = await client.get("/graphql", params={"hash": by_hash, "variables": "[]"})
            assert response.status_code == 400
            assert "fwd=uri-miss" in response.headers["cache-status"]
        assert graphql.cache.stats().store.entries == 0
