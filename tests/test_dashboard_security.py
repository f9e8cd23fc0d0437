"""Who may not use the dashboard: no data, no change, whatever is tried."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import re
from typing import Any

import hypothesis
import pytest
import schemathesis
import time_machine
from hypothesis import HealthCheck, Phase
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import ignored_auth, negative_data_rejection, positive_data_acceptance
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import RedirectResponse

from echo_cache import Cache, HTTPCacheMiddleware, MemoryStore, RedisStore, TwoLevelStore
from echo_cache.dashboard import Dashboard, mount
from echo_cache.dashboard import app as dashboard_app
from echo_cache.dashboard.app import ENDPOINTS
from echo_cache.dashboard.static import static_files
from echo_cache.errors import ConfigurationError
from echo_cache.testing import Response, call
from tests.test_dashboard import BEARER, JSON, ROUTES, TOKEN, shop

COOKIE = "echo_cache_dashboard"
OTHER = "another-token-of-the-tests"
LOCAL = {"host": "localhost:8000"}
ADMIN = [endpoint for endpoint in ENDPOINTS if not endpoint.is_public]
# What would work, were it allowed.
BODIES = {
    "/api/purge": {"all": True},
    "/api/sync": {"to": "l1"},
    "/api/warm": {"urls": ["http://test/products/2"]},
}
SAFETY = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}


def body_of(path: str) -> bytes:
    return json.dumps(BODIES.get(path, {})).encode()


async def signed_in(app: Any, token: str = TOKEN, **scope: Any) -> Response:
    body = json.dumps({"token": token}).encode()
    return await call(app, "POST", "/_cache/login", {"content-type": "application/json"}, body=body, **scope)


def cookie_of(response: Response) -> str:
    return response["set-cookie"].partition(";")[0]


async def other_cookie() -> str:
    return cookie_of(await signed_in(shop(Cache(MemoryStore()), OTHER), OTHER))


async def tampered_cookie() -> str:
    name, _, value = cookie_of(await signed_in(shop(Cache(MemoryStore())))).partition("=")
    expires, _, signature = value.partition(".")
    return f"{name}={int(expires) - 1}.{signature}"


async def expired_cookie() -> str:
    with time_machine.travel(1_700_000_000.0, tick=False):
        return cookie_of(await signed_in(shop(Cache(MemoryStore()))))


async def everlasting_cookie() -> str:
    return f"{COOKIE}=99999999999.{hmac.digest(b'', b'99999999999', 'sha256').hex()}"


# Everything but a token or a cookie of ours.
STRANGERS: list[Any] = [
    pytest.param({}, id="nothing"),
    pytest.param({"authorization": f"Bearer {OTHER}"}, id="wrong-token"),
    pytest.param({"authorization": f"Bearer {TOKEN}x"}, id="longer-token"),
    pytest.param({"authorization": f"Bearer {TOKEN[:-1]}"}, id="shorter-token"),
    pytest.param({"authorization": f"Bearer {TOKEN.upper()}"}, id="loud-token"),
    pytest.param({"authorization": "Bearer "}, id="empty-token"),
    pytest.param({"authorization": TOKEN}, id="no-scheme"),
    pytest.param({"authorization": f"Basic {TOKEN}"}, id="other-scheme"),
    pytest.param({"cookie": f"{COOKIE}={TOKEN}"}, id="token-as-cookie"),
    pytest.param({"cookie": f"{COOKIE}="}, id="empty-cookie"),
    pytest.param({"cookie": f"token={TOKEN}", "x-token": TOKEN}, id="elsewhere"),
    pytest.param({"x-forwarded-for": "127.0.0.1", "x-original-url": "/_cache/login", "host": "localhost"}, id="local"),
    pytest.param({"x-http-method-override": "GET", "accept": "text/html"}, id="override"),
    pytest.param(other_cookie, id="cookie-of-another-token"),
    pytest.param(tampered_cookie, id="tampered-cookie"),
    pytest.param(expired_cookie, id="expired-cookie"),
    pytest.param(everlasting_cookie, id="made-up-cookie"),
]


def is_secretive(response: Response) -> bool:
    text = response.body + repr(response.headers).encode()
    return not any(word in text for word in (b"products", b"echo_cache;", TOKEN.encode(), b"hit_rate", b"l1"))


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong tokens are answered at once."""
    monkeypatch.setattr(dashboard_app, "_WRONG_SECONDS", 0.0)


@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize("headers", STRANGERS)
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "DELETE", "PUT", "PATCH", "OPTIONS", "TRACE"])
async def test_stranger_gets_no_data_and_changes_nothing(headers: Any, method: str, redis_url: str) -> None:
    if callable(headers):
        headers = {"cookie": await headers()}
    async with Cache(TwoLevelStore(MemoryStore(), RedisStore(redis_url))) as cache:
        app = shop(cache)
        await call(app, "GET", "/products/1")
        while not cache.log.known:
            await cache.log.ready()
        before = cache.stats(), cache.log.position(), cache.store.stats().entries
        for path in [*sorted({endpoint.path for endpoint in ADMIN}), "/nothing", "/api/stats/", "//api/stats", ""]:
            body = body_of(path) if method not in ("GET", "HEAD") else b""
            response = await call(
                app, method, f"/_cache{path}", {"content-type": "application/json", **headers}, body=body
            )
            if path == "" and method in ("GET", "HEAD"):
                assert (response.status, response["location"]) == (307, "./_cache/")
                continue
            assert {name: response[name] for name in SAFETY} == SAFETY
            if path == "/" and method in ("GET", "HEAD"):  # who opens the page is no error
                assert response.status == 200
                assert response.body == (static_files()["login.html"].content if method == "GET" else b"")
                continue
            assert response.status == 401, (path, response)
            assert response["www-authenticate"] == 'Bearer realm="echo_cache"'
            if method == "HEAD":
                assert response.body == b""
            else:
                assert set(json.loads(response.body)) == {"error"}
                assert is_secretive(response)
        after = cache.stats(), cache.log.position(), cache.store.stats().entries
        assert (after[0].forwards, after[0].invalidations, after[1:]) == (
            before[0].forwards, before[0].invalidations, before[1:],
        )  # fmt: skip


async def test_there_is_data_to_be_had_for_whoever_may(redis_url: str) -> None:
    # The counterpart of the test above: it would see what leaks.
    async with Cache(TwoLevelStore(MemoryStore(), RedisStore(redis_url))) as cache:
        app = shop(cache)
        await call(app, "GET", "/products/1")
        for endpoint in ADMIN:
            if endpoint.path == "/api/events":
                continue
            path = endpoint.path + ("?url=http://test/products/1" if endpoint.path == "/api/entry" else "")
            response = await call(app, endpoint.method, f"/_cache{path}", JSON, body=body_of(endpoint.path))
            assert response.status == 200, (endpoint, response)
            assert {name: response[name] for name in SAFETY} == SAFETY
        assert not is_secretive(await call(app, "GET", "/_cache/api/stats", BEARER))


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({"sec-fetch-site": "cross-site"}, id="cross-site"),
        pytest.param({"sec-fetch-site": "same-site"}, id="same-site"),
        pytest.param({"sec-fetch-site": "Same-Origin"}, id="odd"),
        pytest.param({"origin": "https://evil.example"}, id="origin"),
        pytest.param({"origin": "null"}, id="null-origin"),
        pytest.param({"origin": "http://test.evil.example"}, id="longer-origin"),
        pytest.param({"origin": "http://test:8080"}, id="other-port"),
        pytest.param({"origin": "http://test", "sec-fetch-site": "cross-site"}, id="both"),
        pytest.param({"origin": "chrome-extension://test"}, id="extension"),
    ],
)
async def test_what_changes_something_is_refused_from_another_site(headers: dict[str, str]) -> None:
    cache = Cache(MemoryStore())
    app = shop(cache)
    await call(app, "GET", "/products/1")
    credentials = [BEARER, {"cookie": cookie_of(await signed_in(app))}]
    for endpoint in ENDPOINTS:
        if endpoint.method == "GET":
            continue
        for credential in credentials:
            fields = {**credential, "content-type": "application/json", **headers}
            body = json.dumps({"token": TOKEN}).encode() if endpoint.path == "/login" else body_of(endpoint.path)
            response = await call(app, endpoint.method, f"/_cache{endpoint.path}", fields, body=body)
            assert response.status == 403, endpoint
            assert "another site" in json.loads(response.body)["error"]
            assert response["set-cookie"] == ""
    assert cache.stats().store.entries == 1


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://test", "sec-fetch-site": "same-origin"},
        {"origin": "https://TEST"},
        {"origin": "http://test:80"},
        {"sec-fetch-site": "none"},
        {},
    ],
)
async def test_what_comes_from_the_page_itself_is_done(headers: dict[str, str]) -> None:
    app = shop(Cache(MemoryStore()))
    response = await call(app, "POST", "/_cache/api/purge", {**JSON, **headers}, body=b'{"all": true}')
    assert response.status == 200


async def by_nothing(request: Request) -> bool:
    return True


@pytest.mark.parametrize("auth", [TOKEN, by_nothing, None], ids=["token", "function", "local"])
async def test_nothing_is_told_to_a_page_of_another_origin(auth: Any) -> None:
    # Where the app lets other origins read its answers, the browser would hand them over.
    app = shop(Cache(MemoryStore()), auth)
    app.add_middleware(CORSMiddleware, allow_origins=["https://evil.example"], allow_credentials=True)
    here: dict[str, Any] = {"client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8000)}
    cookie = {"cookie": cookie_of(await signed_in(app))} if auth == TOKEN else {}
    for endpoint in ENDPOINTS:
        if endpoint.method != "GET" or endpoint.path in ("/login", "/static/"):
            continue
        for headers in ({**LOCAL, **cookie}, {**LOCAL, **BEARER}):
            foreign = {**headers, "origin": "https://evil.example"}
            response = await call(app, "GET", f"/_cache{endpoint.path}", foreign, **here)
            assert response.status == 403, endpoint
            assert is_secretive(response)
    own = {**LOCAL, **BEARER, "origin": "http://localhost:8000"}
    assert (await call(app, "GET", "/_cache/api/stats", own, **here)).status == 200


# --- signing in -------------------------------------------------------------------------------------------------------


async def test_login_gives_a_cookie_that_opens_all_workers_with_the_token_until_it_expires() -> None:
    with time_machine.travel(1_800_000_000.0, tick=False) as clock:
        response = await signed_in(shop(Cache(MemoryStore())))
        assert response.status == 204
        assert re.fullmatch(
            COOKIE + r"=1800043200\.[0-9a-f]{64}; HttpOnly; Max-Age=43200; SameSite=strict",
            response["set-cookie"],
        )
        assert TOKEN not in response["set-cookie"]
        another_worker = shop(Cache(MemoryStore()), [OTHER, TOKEN])
        cookie = {"cookie": f"{COOKIE}=of-a-longer-path; {cookie_of(response)}"}
        assert (await call(another_worker, "GET", "/_cache/api/stats", cookie)).status == 200
        without_it = shop(Cache(MemoryStore()), [OTHER])
        assert (await call(without_it, "GET", "/_cache/api/stats", cookie)).status == 401
        clock.shift(12 * 3600 - 1)
        assert (await call(another_worker, "GET", "/_cache/api/stats", cookie)).status == 200
        clock.shift(1)
        assert (await call(another_worker, "GET", "/_cache/api/stats", cookie)).status == 401


async def test_cookie_is_secure_under_https_and_forgotten_by_logout() -> None:
    app = shop(Cache(MemoryStore()))
    assert "; Secure" in (await signed_in(app, scheme="https"))["set-cookie"]
    out = await call(app, "POST", "/_cache/logout")
    assert out.status == 204
    assert re.match(COOKIE + r'=""; .*Max-Age=0; ', out["set-cookie"])
    assert "Path" not in out["set-cookie"]  # browsers see another one behind a proxy


async def test_login_page_is_there_for_everybody_with_its_files() -> None:
    app = shop(Cache(MemoryStore()))
    page = await call(app, "GET", "/_cache/login")
    assert page.status == 200
    for name in re.findall(rb'(?:href|src)="([^"]+)"', page.body):
        assert (await call(app, "GET", f"/_cache/{name.decode()}")).status == 200


async def test_two_tokens_are_none() -> None:
    two = [("authorization", f"Bearer {TOKEN}"), ("authorization", f"Bearer {OTHER}")]
    assert (await call(shop(Cache(MemoryStore())), "GET", "/_cache/api/stats", two)).status == 401


async def test_basic_auth_of_a_proxy_does_not_stand_in_the_way_of_the_cookie() -> None:
    app = shop(Cache(MemoryStore()))
    headers = {"cookie": cookie_of(await signed_in(app)), "authorization": "Basic dXNlcjpwYXNz"}
    assert (await call(app, "GET", "/_cache/api/stats", headers)).status == 200


async def test_wrong_tokens_wait_few_at_a_time_and_the_right_one_never(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(dashboard_app, "_WRONG_SECONDS", 3600.0)
    monkeypatch.setattr(dashboard_app, "_QUIET_SECONDS", 3600.0)
    app = shop(Cache(MemoryStore()))
    wrong = [asyncio.create_task(signed_in(app, f"wrong-token-number-{n}")) for n in range(40)]
    waiting = set(wrong)
    while len(waiting) > 16:
        done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        assert {task.result().status for task in done} == {429}
    assert (await signed_in(app)).status == 204
    assert len([task for task in wrong if not task.done()]) == 16
    for task in waiting:
        task.cancel()
    await asyncio.wait(waiting)
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert told == ["the dashboard was given wrong tokens: 1 since this was last said, the last by '127.0.0.1'"]
    assert "wrong-token" not in caplog.text
    monkeypatch.setattr(dashboard_app, "_WRONG_SECONDS", 0.01)
    response = await signed_in(app, "wrong-token-number-0")
    assert (response.status, response["set-cookie"]) == (401, "")


async def test_guesses_wait_however_they_come_and_what_is_right_never(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dashboard_app, "_WRONG_SECONDS", 3600.0)
    app = shop(Cache(MemoryStore()))
    forged = {"cookie": await other_cookie()}  # signed by a guess
    guesses = [
        asyncio.create_task(call(app, "GET", f"/_cache{path}", headers))
        for headers in (forged, {"authorization": f"Bearer {OTHER}"})
        for path in ("/", "/api/stats", "/nothing") * 5
    ]
    waiting = set(guesses)
    while len(waiting) > 16:
        done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        assert {task.result().status for task in done} == {429}
    assert len(guesses) > 16
    signed = {"cookie": cookie_of(await signed_in(app))}
    for headers in (BEARER, signed, {"cookie": f"{forged['cookie']}; {signed['cookie']}"}):
        assert (await call(app, "GET", "/_cache/api/stats", headers)).status == 200
    # Nor does who has tried nothing, or was signed in once.
    for headers in ({}, {"cookie": await expired_cookie()}):
        assert (await call(app, "GET", "/_cache/", headers)).status == 200
    for task in waiting:
        task.cancel()
    await asyncio.wait(waiting)


@pytest.mark.parametrize(
    "body", [b"{}", b'{"token": ""}', b'{"token": 7}', b'{"token": "\\ud800"}', b'{"token": "a", "b": 1}']
)
async def test_login_without_a_token_is_refused_in_words(body: bytes) -> None:
    response = await call(
        shop(Cache(MemoryStore())), "POST", "/_cache/login", {"content-type": "application/json"}, body=body
    )
    assert response.status == 400
    assert "error" in json.loads(response.body)


async def test_login_reads_little(caplog: pytest.LogCaptureFixture) -> None:
    body = json.dumps({"token": "x" * 17_000}).encode()
    response = await call(shop(Cache(MemoryStore())), "POST", "/_cache/login", JSON, body=body)
    assert response.status == 413


# --- closed, local, by a function -------------------------------------------------------------------------------------


async def test_dashboard_without_auth_answers_nobody(caplog: pytest.LogCaptureFixture) -> None:
    app = Starlette(routes=list(ROUTES), middleware=[Middleware(HTTPCacheMiddleware, store=MemoryStore())])
    mount(app)
    assert "the dashboard at /_cache is closed" in caplog.text
    for endpoint in ENDPOINTS:
        response = await call(app, endpoint.method, f"/_cache{endpoint.path}", {**JSON, **LOCAL})
        assert response.status == 404, endpoint
    assert (await call(app, "GET", "/_cache")).status == 404
    assert (await call(app, "GET", "/_cache/static/app.js")).status == 404


@pytest.mark.parametrize(
    ("headers", "scope", "status"),
    [
        pytest.param({}, {}, 200, id="local"),
        pytest.param({"host": "127.0.0.1:8000"}, {}, 200, id="address"),
        pytest.param({"host": "[::1]"}, {"client": ("::1", 1), "server": ("::1", 80)}, 200, id="v6"),
        pytest.param({}, {"client": ("::ffff:127.0.0.1", 1)}, 200, id="mapped"),
        pytest.param({"host": "evil.example"}, {}, 404, id="rebound"),
        pytest.param({"host": "localhost.evil.example"}, {}, 404, id="rebound-long"),
        pytest.param({"host": "localhost@evil.example"}, {}, 404, id="user"),
        pytest.param({}, {"client": ("203.0.113.7", 1)}, 404, id="client"),
        pytest.param({}, {"client": ("::ffff:203.0.113.7", 1)}, 404, id="mapped-client"),
        pytest.param({}, {"client": None}, 404, id="unknown-client"),
        pytest.param({}, {"server": ("203.0.113.7", 80)}, 404, id="server"),
        pytest.param({}, {"server": ("/run/app.sock", None)}, 404, id="socket"),
        pytest.param({"x-forwarded-for": "127.0.0.1"}, {}, 404, id="proxy"),
        pytest.param({"forwarded": "for=127.0.0.1"}, {}, 404, id="proxy-standard"),
        pytest.param({}, {"http_version": "1.0"}, 404, id="proxy-that-says-nothing"),
        pytest.param({"origin": "http://evil.example"}, {}, 403, id="read-by-another-origin"),
    ],
)
async def test_open_dashboard_is_seen_on_this_machine_alone(
    headers: dict[str, str], scope: dict[str, Any], status: int
) -> None:
    app = shop(Cache(MemoryStore()), auth=None)
    whole = {"client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8000), **scope}
    response = await call(app, "GET", "/_cache/api/stats", {**LOCAL, **headers}, **whole)
    assert response.status == status


def test_open_dashboard_says_once_what_that_means(caplog: pytest.LogCaptureFixture) -> None:
    shop(Cache(MemoryStore()), auth=None)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "the dashboard at /_cache asks nobody for a token" in record.getMessage()
    caplog.clear()
    shop(Cache(MemoryStore()))
    assert caplog.records == []


async def test_open_dashboard_refuses_two_hosts_and_other_sites() -> None:
    app = shop(Cache(MemoryStore()), auth=None)
    here: dict[str, Any] = {"client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8000)}
    two = [("host", "localhost"), ("host", "evil.example")]
    assert (await call(app, "GET", "/_cache/api/stats", two, **here)).status == 404
    for headers, status in (({}, 200), ({"sec-fetch-site": "cross-site"}, 403)):
        assert (await call(app, "DELETE", "/_cache/all", {**LOCAL, **headers}, **here)).status == status
    # Nobody signs in where nobody has to.
    assert (await call(app, "GET", "/_cache/login", LOCAL, **here)).status == 404
    assert (await call(app, "POST", "/_cache/logout", LOCAL, **here)).status == 404


async def by_header(request: Request) -> bool:
    return request.headers.get("x-user") == "admin"


@pytest.mark.parametrize(
    "auth",
    [by_header, lambda request: request.headers.get("x-user") == "admin"],
    ids=["coroutine-function", "function"],
)
async def test_function_says_who_may_come_in(auth: Any) -> None:
    app = shop(Cache(MemoryStore()), auth)
    assert (await call(app, "GET", "/_cache/api/stats", {"x-user": "admin"})).status == 200
    for path in ("/", "/api/stats", "/nothing"):
        response = await call(app, "GET", f"/_cache{path}", BEARER)
        assert (response.status, json.loads(response.body)) == (403, {"error": "you may not use this dashboard"})
    assert (await call(app, "GET", "/_cache/login")).status == 404


def fails(request: Request) -> bool:
    raise RuntimeError(f"secret: {TOKEN}")


@pytest.mark.parametrize(
    "auth", [fails, lambda _: RedirectResponse("/login"), lambda _: "user", lambda _: 1, lambda _: None]
)
async def test_function_that_does_not_say_true_lets_nobody_in(auth: Any, caplog: pytest.LogCaptureFixture) -> None:
    assert (await call(shop(Cache(MemoryStore()), auth), "GET", "/_cache/api/stats", BEARER)).status == 403
    assert TOKEN not in caplog.text


@pytest.mark.parametrize(
    "auth",
    ["short", "", "with a blank in it and long", "ünprintable-and-long", [], ["short"], [TOKEN, "short"], [TOKEN, None],
     b"bytes-that-are-long-enough", 7, True],
)  # fmt: skip
def test_auth_that_cannot_work_is_refused_without_showing_it(auth: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Dashboard(auth=auth)
    assert "short" not in str(caught.value)
    assert TOKEN not in str(caught.value)


def test_no_repr_shows_the_token() -> None:
    dashboard = Dashboard(auth=TOKEN)
    assert TOKEN not in repr(dashboard) + repr(vars(dashboard)) + repr(vars(dashboard._door))


async def test_websocket_is_closed() -> None:
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    await Dashboard(auth=TOKEN)({"type": "websocket", "path": "/", "headers": []}, receive, send)
    assert [message["type"] for message in sent] == ["websocket.close"]


async def test_trouble_of_the_dashboard_itself_is_told_without_details(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(MemoryStore):
        def page(self, cursor: str, count: int) -> Any:
            raise RuntimeError("details")

    response = await call(shop(Cache(Broken())), "GET", "/_cache/api/entries", BEARER)
    assert response.status == 500
    assert b"details" not in response.body
    assert "details" in caplog.text


# --- by its own description -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def described() -> Any:
    cache = Cache(TwoLevelStore(MemoryStore(), MemoryStore()))
    app = Starlette(routes=list(ROUTES), middleware=[Middleware(HTTPCacheMiddleware, cache=cache)])
    mount(app, auth=TOKEN)
    return schemathesis.openapi.from_asgi("/_cache/api/openapi.json", app, headers=BEARER)


# What a URL is, that one thing must be named, which cursors there are.
NOT_ALL_DESCRIBED = {"/api/entries", "/api/entry", "/api/purge", "/api/warm"}
PAGES = {"/", "/static/", "/api/events"}  # an event stream has no end


@pytest.mark.parametrize("mode", list(GenerationMode), ids=str)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        (one.method, one.path)
        for one in ENDPOINTS
        if one.path not in PAGES and (one.method, one.path) != ("GET", "/login")
    ],
)
def test_interface_is_as_it_is_described(described: Any, method: str, path: str, mode: GenerationMode) -> None:
    operation = described[path][method]

    excluded = [ignored_auth]  # it takes its own token for none
    if path == "/api/warm":
        excluded.append(negative_data_rejection)  # a body over the bound is 413, which it does not expect
    if path in NOT_ALL_DESCRIBED:
        excluded.append(positive_data_acceptance)

    @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
    @hypothesis.settings(
        max_examples=3 if path == "/login" else 25,  # each wrong token waits
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def conforms(case: Any) -> None:
        case.call_and_validate(headers=BEARER, excluded_checks=excluded)

    try:
        conforms()
    except hypothesis.errors.Unsatisfiable:
        assert mode is GenerationMode.NEGATIVE  # there is nothing in it that could be wrong
