"""
GraphQL behind the cache, in two ways. `--once` shows both, else it serves.

POST takes any query. The HTTP cache leaves POST alone, so the result is kept as a value, by CacheAside, under a digest
of all that it depends on. GET takes the hash of a query that the clients were built with: that is a URL like any other,
and the HTTP cache keeps it. The tags of both say what the answer is about. A mutation names what it has changed, and
both are gone. Answers with errors are not kept.

Each query is a plain function here; graphql-core has its place in `execute`. Redis is used if $REDIS_URL names one, and
mutations need `Authorization: Bearer $TOKEN`.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import secrets
import sys
from collections import defaultdict
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field, Json, ValidationError

from echo_cache import Cache, HTTPCacheMiddleware, MemoryStore, RedisStore, TwoLevelStore, cached
from echo_cache.aside import JSON, CacheAside

MAX_BODY_BYTES = 16 * 1024
REDIS_URL = os.environ.get("REDIS_URL")
ADA = f"Bearer {os.environ.get('TOKEN') or secrets.token_hex()}"
DATA = {"1": {"title": "Emma", "author": "Austen"}, "2": {"title": "Villette", "author": "Bronte"}}
cache = Cache(TwoLevelStore(MemoryStore(), RedisStore(REDIS_URL, prefix="graphql")) if REDIS_URL else MemoryStore())
results = CacheAside(cache, "graphql", default_ttl=300, serializer=JSON)
app = FastAPI()
app.add_middleware(HTTPCacheMiddleware, cache=cache)
app.add_exception_handler(ValidationError, lambda *_: JSONResponse({"detail": "this is no GraphQL request"}, 400))


class Asked(BaseModel):
    """What the client sends. Who asks is no part of it, else the client could choose."""

    query: str
    operation: str | None = Field(default=None, alias="operationName")
    variables: dict[str, Any] | Json[dict[str, Any]] | None = None

    def text(self) -> str:
        """Return the query, white space as one space; as it is where that may be in a string, or end a comment."""
        return self.query if re.search('["#]', self.query) else re.sub(r"[ \t\r\n]+", " ", self.query).strip(" ")

    def key(self, viewer: str | None) -> str:
        """Return what the answer is kept under. Each part has its length before it: no two requests make one key."""
        # Variables that the query does not name change nothing, and would make as many keys as somebody likes.
        names = set(re.findall(r"\$(\w+)", self.query))
        named = {name: value for name, value in (self.variables or {}).items() if name in names}
        parts = (self.text(), self.operation, json.dumps(named, sort_keys=True), viewer)
        made = "".join("-" if part is None else f"{len(part)}:{part}" for part in parts)  # what is absent is not empty
        return hashlib.sha256(made.encode()).hexdigest()


class NotKept(Exception):
    """Raised for an answer with errors: CacheAside keeps nothing of a fetch that raises."""


async def books(variables: dict[str, Any], viewer: str | None) -> Any:
    found = [{"title": book["title"]} for book in DATA.values() if book["author"] == variables.get("name")]
    if not found:
        raise NotKept("no such author")
    return found


async def me(variables: dict[str, Any], viewer: str | None) -> Any:
    return {"name": viewer.title()} if viewer else None


async def rename(variables: dict[str, Any], viewer: str | None) -> Any:
    book = DATA.get(str(variables.get("id")))
    if viewer is None or book is None or "title" not in variables:
        raise NotKept("sign in first, and name a book and its title")
    book["title"] = str(variables["title"])
    await cache.invalidate(tags=[f"Author:{book['author']}"])  # after the commit of a real database
    return {"title": book["title"]}


BOOKS = "query books($name: String!) { books(author: $name) { title } }"
ME = "query me { me { name } }"
RENAME = "mutation rename($id: ID!, $title: String!) { rename(id: $id, title: $title) { title } }"
RESOLVERS = {BOOKS: books, ME: me, RENAME: rename}
# The queries that are kept, and what their answers are about. CacheAside is told before it fetches, so that it keeps
# nothing that is invalidated meanwhile: take it from the variables. A list is about what it belongs to.
TAGS = {BOOKS: "Author:{name}", ME: "User:{viewer}"}
# Made when the clients are built: where anybody may register a query, strangers choose what is kept.
PERSISTED = {hashlib.sha256(query.encode()).hexdigest(): query for query in [BOOKS]}


async def execute(asked: Asked, viewer: str | None) -> dict[str, Any]:
    """
    Return the answer, or raise NotKept where it has errors. In place of this: graphql-core's `execute(schema,
    parse(asked.query), variable_values=asked.variables, operation_name=asked.operation, context_value=viewer)`, after
    its `validate`. Resolvers see no request: all that they may look at is in the key.
    """
    resolve = RESOLVERS.get(asked.text())
    if resolve is None or asked.operation not in (None, resolve.__name__):
        raise NotKept("no such query or operation")
    return {"data": {resolve.__name__: await resolve(asked.variables or {}, viewer)}}


async def answer(asked: Asked, viewer: str | None) -> JSONResponse:
    try:
        if (tag := TAGS.get(asked.text())) is None:
            return JSONResponse(await execute(asked, viewer))
        tags = [tag.format_map(defaultdict(str, asked.variables or {}, viewer=viewer))]
        cache.tag(*tags)  # the page, if this is GET
        return JSONResponse(await results.get(asked.key(viewer), lambda: execute(asked, viewer), tags=tags))
    except NotKept as error:
        # Errors are 200 in GraphQL: without this, the HTTP cache would keep one that came by GET.
        return JSONResponse({"errors": [{"message": str(error)}]}, headers={"cache-control": "no-store"})


@app.post("/graphql")
async def by_post(request: Request) -> JSONResponse:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise HTTPException(413, f"a request may have {MAX_BODY_BYTES} bytes")
    is_ada = secrets.compare_digest(request.headers.get("authorization", "").encode(), ADA.encode())
    return await answer(Asked.model_validate_json(body), "ada" if is_ada else None)


@app.get("/graphql")
@cached(ttl=300)
async def by_hash(hash: str, variables: str = "{}") -> JSONResponse:
    """Answer a query of the clients, the same for everybody: it does not look at who asks."""
    return await answer(Asked.model_validate({"query": PERSISTED.get(hash, ""), "variables": variables}), None)


async def once() -> None:
    await cache.clear()  # what the last run has left in Redis
    url = httpx.URL("/graphql", params={"hash": next(iter(PERSISTED)), "variables": '{"name":"Austen"}'})
    austen = {"query": BOOKS, "variables": {"name": "Austen"}}
    spelled = {**austen, "query": BOOKS.replace(" ", "\n  ")}
    change = {"query": RENAME, "variables": {"id": "1", "title": "Sanditon"}}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://graphql") as client:
        for what, asked, token, fetches, word in [
            ("POST: executed, and kept as a value", austen, "", 1, "Emma"),
            ("POST, spelled otherwise: that value", spelled, "", 1, "Emma"),
            ("GET by hash: a page made of it", None, "", 1, "; stored"),
            ("GET again: the HTTP cache has it", None, "", 1, "; hit; ttl="),
            ("POST, a mutation: both are gone", change, ADA, 1, "Sanditon"),
            ("GET: executed anew", None, "", 2, "Sanditon"),
            ("POST, me, by Ada", {"query": ME}, ADA, 3, "Ada"),
            ("POST, me, by a stranger: another key", {"query": ME}, "", 4, "null"),
            ("POST, an error: executed", {"query": BOOKS}, "", 5, "no such author"),
            ("POST again: errors are not kept", {"query": BOOKS}, "", 6, "no such author"),
        ]:
            sent = client.post("/graphql", json=asked, headers={"authorization": token}) if asked else client.get(url)
            said = f"{(response := await sent).text}  {response.headers['cache-status']}"
            print(line := f"{what:<36}  {results.stats().fetches} fetched  {said}")
            assert re.search(f"  {fetches} fetched .*{word}", line), f"expected {word!r} and {fetches} fetched"
    await cache.aclose()


if __name__ == "__main__":
    asyncio.run(once()) if "--once" in sys.argv else uvicorn.run(app)
