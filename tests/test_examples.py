"""Each example runs, and the shop's tour shows what it says: without Redis, with it, and over a restart."""

from __future__ import annotations

import contextlib
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
from collections.abc import Iterator
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
    # Dataclasses look their module up.
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


def client_of(module: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(module.app), base_url="http://graphql")


BOOK = 'query Book { book(id: "1") { title } }'


async def post(client: httpx.AsyncClient, query: str, fields: dict[str, str] | None = None, **more: Any) -> Any:
    response = await client.post("/graphql", json={"query": query, **more}, headers=fields)
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.parametrize(
    ("query", "more", "same"),
    [
        pytest.param("query A($x: ID!, $y: ID) { a(i: $x) { b c } }", {}, True, id="itself"),
        pytest.param("query A($x:ID! $y:ID){a(i:$x){b,c}} # why", {}, True, id="white-space-commas-comments"),
        pytest.param("\ufeffquery A($x: ID!, $y: ID) {\r\n\ta(i: $x) { b c } }", {}, True, id="line-ends-and-mark"),
        pytest.param("query A($x: ID!, $y: ID) { a(i: $x) { c b } }", {}, False, id="order-of-fields"),
        pytest.param("query A($x: ID!, $y: ID) { a(i: $y) { b c } }", {}, False, id="another-variable"),
        pytest.param("query A($x: ID!, $y: ID) { a(i: $x) { bc } }", {}, False, id="names-joined"),
        pytest.param(None, {"variables": {"y": 2, "x": 1}}, True, id="order-of-variables"),
        pytest.param(None, {"variables": {"x": 1}}, False, id="a-variable-is-missing"),
        pytest.param(None, {"variables": {"x": "1", "y": 2}}, False, id="text-is-no-number"),
        pytest.param(None, {"variables": {"x": True, "y": 2}}, False, id="true-is-not-1"),
        pytest.param(None, {"operation": "A"}, False, id="operation-by-name"),
        pytest.param(None, {"operation": ""}, False, id="empty-is-not-absent"),
        pytest.param(None, {"viewer": "ada"}, False, id="a-viewer"),
        pytest.param(None, {"viewer": ""}, False, id="a-viewer-without-a-name"),
        pytest.param(None, {"operation": "x", "viewer": None}, False, id="operation-is-no-viewer"),
    ],
)
def test_key_of_a_query_tells_apart_what_differs_and_nothing_else(
    graphql: Any, query: str | None, more: dict[str, Any], same: bool
) -> None:
    first: dict[str, Any] = {"operation": None, "variables": {"x": 1, "y": 2}, "viewer": None}
    text = "query A($x: ID!, $y: ID) { a(i: $x) { b c } }"
    key = graphql.read(text, **first).key()
    assert (graphql.read(query or text, **{**first, **more}).key() == key) is same
    if more.get("operation") == "x":
        assert (
            key != graphql.read(text, **{**first, "viewer": "x"}).key() != graphql.read(text, **{**first, **more}).key()
        )


def test_key_of_a_query_does_not_know_the_order_of_definitions(graphql: Any) -> None:
    one, two = "query A { books { title } }", "query B { me { name } }"
    assert graphql.read(f"{one} {two}", "A", {}, None).key() == graphql.read(f"{two}\n{one}", "A", {}, None).key()
    assert graphql.read(f"{one} {two}", "A", {}, None).key() != graphql.read(f"{one} {two}", "B", {}, None).key()


def test_white_space_within_a_string_counts(graphql: Any) -> None:
    keys = {graphql.read(f'{{ a(b: "{text}") }}', None, {}, None).key() for text in ("c d", "c  d", "c,d", "c#d", "cd")}
    assert len(keys) == 5


@pytest.mark.parametrize(
    ("body", "status"),
    [
        pytest.param(b" " * (16 * 1024 + 1), 413, id="too-long"),
        pytest.param(b"[" * 16_000, 400, id="deep-json"),
        pytest.param(b"1" * 16_000, 400, id="long-number"),
        pytest.param(b"[]", 400, id="no-object"),
        pytest.param(b"\xff", 400, id="no-text"),
        pytest.param(json.dumps({"query": "{ a }", "operationName": 1}).encode(), 400, id="name-is-no-text"),
        pytest.param(json.dumps({"query": "{ a }", "variables": ["x"]}).encode(), 400, id="variables-are-a-list"),
        pytest.param(json.dumps({"query": "{ a }", "variables": {"x": 1}}).encode(), 400, id="variable-of-no-query"),
        pytest.param(json.dumps({"query": '{ a(b: "\ud800") }'}).encode(), 400, id="half-a-pair"),
        pytest.param(json.dumps({"query": "{ a" * 7 + "}" * 7}).encode(), 400, id="deep-query"),
        pytest.param(json.dumps({"query": "{ a" * 6 + "}" * 6}).encode(), 200, id="query-as-deep-as-may-be"),
        pytest.param(json.dumps({"query": "{ a }}"}).encode(), 400, id="one-brace-too-many"),
        pytest.param(json.dumps({"query": "{ a ( }"}).encode(), 400, id="open-argument"),
        pytest.param(json.dumps({"query": "{ a(b: "}).encode(), 400, id="cut-off"),
        pytest.param(json.dumps({"query": "query A { a } query B { b }"}).encode(), 400, id="which-of-two"),
        pytest.param(
            json.dumps({"query": "query A { a }", "operationName": "B"}).encode(), 400, id="no-such-operation"
        ),
        pytest.param(json.dumps({"query": "fragment A { a }"}).encode(), 400, id="no-operation"),
        pytest.param(json.dumps({"query": "query ( }"}).encode(), 200, id="crossed-braces"),
        pytest.param(json.dumps({"query": "{ nothing(id: 7) }"}).encode(), 400, id="number-is-no-token"),
        pytest.param(json.dumps({"query": '{ author(id: "../etc") { name } }'}).encode(), 200, id="odd-id"),
    ],
)
async def test_what_is_no_query_is_refused_and_keeps_nothing(graphql: Any, body: bytes, status: int) -> None:
    async with client_of(graphql) as client:
        response = await client.post("/graphql", content=body)
    assert response.status_code == status, response.text
    assert status != 200 or response.json()["errors"]
    assert not graphql.guesses
    assert graphql.cache.stats().store.entries == 0


async def test_third_answer_to_a_query_is_a_kept_one_until_a_mutation_names_what_is_in_it(graphql: Any) -> None:
    ada = {"authorization": f"Bearer {graphql.ADA}"}
    async with client_of(graphql) as client:
        for executed in (1, 2, 2, 2):
            assert await post(client, BOOK) == {"data": {"book": {"title": "Emma"}}}
            assert len(graphql.executions) == executed
        await post(client, 'mutation { rename(id: "2", title: "Lady Susan") { title } }', ada)
        await post(client, BOOK)
        assert graphql.executions == ["query", "query", "mutation"]
        await post(client, 'mutation { rename(id: "1", title: "Sanditon") { title } }', ada)
        for _ in range(2):
            assert await post(client, BOOK) == {"data": {"book": {"title": "Sanditon"}}}
        assert graphql.executions == ["query", "query", "mutation", "mutation", "query"]


@pytest.mark.parametrize(
    "query", ["{ books { title } }", '{ author(id: "1") { books { title } } }', '{ book(id: "3") { title } }']
)
async def test_what_is_added_is_in_lists_that_were_kept_and_no_longer_missing(graphql: Any, query: str) -> None:
    async with client_of(graphql) as client:
        for _ in range(3):
            assert "Sanditon" not in json.dumps(await post(client, query))
        ada = {"authorization": f"Bearer {graphql.ADA}"}
        await post(client, 'mutation { add(title: "Sanditon") { title } }', ada)
        for _ in range(3):
            assert "Sanditon" in json.dumps(await post(client, query))


async def test_twenty_who_ask_at_once_cost_two_executions_and_later_none(graphql: Any) -> None:
    async with client_of(graphql) as client:
        async with anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(post, client, BOOK)
        # The first finds out the tags, the second is kept; all others have waited for that.
        assert len(graphql.executions) == 2
        await post(client, BOOK)
        assert len(graphql.executions) == 2


@pytest.mark.parametrize("asked_before", [0, 2])
async def test_who_asks_after_a_mutation_never_gets_what_was_read_before_it(
    graphql: Any, monkeypatch: pytest.MonkeyPatch, asked_before: int
) -> None:
    async with client_of(graphql) as client:
        for _ in range(asked_before):
            await post(client, BOOK)
        await graphql.cache.invalidate(tags=["Book:1"])
        has_read, may_answer = anyio.Event(), anyio.Event()
        execute = graphql.execute

        async def slow(asked: Any) -> Any:
            outcome = await execute(asked)
            if asked.is_query and not has_read.is_set():
                has_read.set()
                await may_answer.wait()
            return outcome

        monkeypatch.setattr(graphql, "execute", slow)
        later: list[Any] = []

        async def ask_later() -> None:
            later.append(await post(client, BOOK))

        async with anyio.create_task_group() as group:
            group.start_soon(post, client, BOOK)
            await has_read.wait()
            ada = {"authorization": f"Bearer {graphql.ADA}"}
            await post(client, 'mutation { rename(id: "1", title: "Sanditon") { title } }', ada)
            group.start_soon(ask_later)
            await anyio.wait_all_tasks_blocked()
            may_answer.set()
        later.append(await post(client, BOOK))
        assert later == [{"data": {"book": {"title": "Sanditon"}}}] * 2


async def test_what_a_viewer_may_see_is_kept_for_that_viewer_alone(graphql: Any) -> None:
    ada = {"authorization": f"Bearer {graphql.ADA}"}
    async with client_of(graphql) as client:
        for executed in (1, 2, 2):
            assert await post(client, "{ me { name } }", ada) == {"data": {"me": {"name": "Ada"}}}
            assert len(graphql.executions) == executed
        assert (await post(client, "{ me { name } }"))["data"] is None
        refused = await client.post(
            "/graphql", json={"query": "{ me { name } }"}, headers={"authorization": "Bearer ada"}
        )
        assert refused.status_code == 401


@pytest.mark.parametrize("field", ["cookie", "x-api-key"])
async def test_answers_to_credentials_that_the_app_does_not_know_are_not_kept(graphql: Any, field: str) -> None:
    async with client_of(graphql) as client:
        for executed in (1, 2, 3):
            await post(client, BOOK, {field: "a=b"})
            assert len(graphql.executions) == executed
        assert not graphql.guesses


async def test_answers_with_errors_are_kept_neither_by_post_nor_by_hash(graphql: Any) -> None:
    async with client_of(graphql) as client:
        for executed in (1, 2, 3):
            assert (await post(client, "{ nothing }"))["errors"]
            assert len(graphql.executions) == executed
        (author, *_) = graphql.PERSISTED
        for target in (
            "hash=00",
            f"hash={author}&variables=%7B%22id%22:%22%2F%22%7D",
            f"hash={author}&variables=%5B%5D",
        ):
            for _ in range(2):
                response = await client.get(f"/graphql?{target}")
                assert response.json()["errors"]
                assert "detail=no-store" in response.headers["cache-status"]


async def test_query_by_hash_has_the_variables_of_the_query_only(graphql: Any) -> None:
    (author, *_) = graphql.PERSISTED
    async with client_of(graphql) as client:
        response = await client.get("/graphql", params={"hash": author, "variables": '{"id":"1","more":1}'})
        assert response.status_code == 400
        assert "stored" not in response.headers["cache-status"]
