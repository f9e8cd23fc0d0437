"""
The dashboard in a real browser: Chromium, headless, over a real server.

CHROMIUM names the browser; else it is /usr/bin/chromium, or playwright's own. SCREENSHOTS=directory keeps pictures.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Playwright, Route, expect, sync_playwright

from echo_cache import Cache, MemoryStore, RedisStore, TwoLevelStore
from tests.servers import RedisServer
from tests.servers_http import uvicorn_server
from tests.test_dashboard import BEARER, TOKEN, shop

pytestmark = pytest.mark.browser

PATIENCE = 15_000.0
HOSTILE = "<img src=x onerror=alert(1)>"
SIZES = {"wide": (1440, 900), "narrow": (375, 812)}
WORKER = r"[\w.-]+-\d+-[0-9a-f]{8}"
# Reported for all that the policy forbids, whether or not the console says so.
WATCH_POLICY = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) => window.violations.push(event.violatedDirective));
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        executable = _executable(playwright)
        if executable is None:
            if os.environ.get("CI"):
                pytest.fail("there is no Chromium: name one by CHROMIUM, or install it", pytrace=False)
            pytest.skip("there is no Chromium")
        expect.set_options(timeout=PATIENCE)
        # A sandbox cannot be made inside of most containers; nothing but our own page is opened.
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield browser
        browser.close()


def _executable(playwright: Playwright) -> str | None:
    named = os.environ.get("CHROMIUM")
    places = [named] if named else ["/usr/bin/chromium", playwright.chromium.executable_path]
    return next((place for place in places if place and Path(place).exists()), None)


class Shop:
    """A shop behind the cache, served on a port."""

    def __init__(self, port: int) -> None:
        self.origin = f"http://127.0.0.1:{port}"
        self.page = f"{self.origin}/_cache/"

    def get(self, path: str) -> str:
        """Ask for *path*, and return the Cache-Status."""
        with urllib.request.urlopen(self.origin + path) as response:  # our own server
            return str(response.headers["cache-status"])

    def stats(self) -> Any:
        """Return what the JSON interface says."""
        with urllib.request.urlopen(urllib.request.Request(f"{self.page}api/stats", headers=BEARER)) as response:
            return json.load(response)


@pytest.fixture
def served(redis_url: str) -> Iterator[Shop]:
    with uvicorn_server(shop(Cache(TwoLevelStore(MemoryStore(), RedisStore(redis_url))))) as server:
        yield Shop(server.port)


class Opened:
    """A page, with all that went wrong in it."""

    def __init__(self, context: BrowserContext) -> None:
        self.context = context
        self.trouble: list[str] = []
        context.set_default_timeout(PATIENCE)
        context.add_init_script(WATCH_POLICY)
        self.page: Page = context.new_page()
        self.page.on("console", lambda said: said.type in ("error", "warning") and self.trouble.append(said.text))
        self.page.on("pageerror", lambda error: self.trouble.append(str(error)))
        self.page.on("dialog", lambda dialog: self.trouble.append(f"dialog: {dialog.message}"))

    def sign_in(self, served: Shop) -> None:
        self.page.goto(served.page)
        self.page.get_by_label("Dashboard token").fill(TOKEN)
        self.page.get_by_role("button", name="Sign in").click()
        expect(self.page.locator("#link")).to_have_attribute("data-state", "live")

    def view(self, name: str) -> None:
        self.page.get_by_role("link", name=name, exact=True).click()
        expect(self.page.get_by_role("heading", name=name, level=1)).to_be_visible()

    def confirm(self, button: str, said: str, done: str) -> None:
        """Press *button*, see *said* asked, say yes, and see that it was *done*; both are regular expressions."""
        self.page.locator(button).click()
        expect(self.page.locator("#ask")).to_contain_text(re.compile(said))
        self.page.locator("#ask-yes").click()
        self.has_done(done)

    def has_done(self, done: str) -> None:
        expect(self.page.locator("#done li").first).to_contain_text(re.compile(done))
        expect(self.page.locator(".toast:not(.busy) p").last).to_contain_text(re.compile(done))

    def is_well(self, *refused: int) -> None:
        """Fail unless all went well, but for requests that were *refused* with these statuses."""
        statuses = [re.search(r"responded with a status of (\d+)", text) for text in self.trouble]
        assert [int(status[1]) if status else None for status in statuses] == list(refused), self.trouble
        assert self.page.evaluate("window.violations") == []


Open = Callable[..., Opened]


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Open]:
    contexts: list[BrowserContext] = []

    def open_one(**options: Any) -> Opened:
        contexts.append(browser.new_context(**options))
        return Opened(contexts[-1])

    yield open_one
    for context in contexts:
        context.close()


def test_wrong_token_is_refused_and_the_right_one_opens_the_page_until_sign_out(served: Shop, open_page: Open) -> None:
    opened = open_page()
    page = opened.page
    page.goto(served.page.rstrip("/"))
    assert page.url == served.page
    page.get_by_label("Dashboard token").fill("a-token-that-is-wrong")
    page.get_by_role("button", name="Sign in").click()
    expect(page.locator("#login-error")).to_have_text("This token is not right.")
    assert opened.context.cookies() == []
    opened.sign_in(served)
    opened.is_well(401)
    (cookie,) = opened.context.cookies()
    assert (cookie["httpOnly"], cookie["sameSite"], cookie["path"]) == (True, "Strict", "/_cache")
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_label("Dashboard token")).to_be_visible()
    assert opened.context.cookies() == []
    assert opened.context.request.get(f"{served.page}api/stats").status == 401
    opened.is_well(401)


@contextmanager
def proxied(*, keeps_cookies: bool = True, keeps_host: bool = True) -> Iterator[Shop]:
    """A shop behind a proxy that shows its dashboard under another path, and may keep cookies or the Host from it."""
    inner = shop(Cache(MemoryStore()))

    async def proxy(scope: Any, receive: Any, send: Any) -> None:
        async def send_on(message: Any) -> None:
            if not keeps_cookies and message["type"] == "http.response.start":
                headers = [pair for pair in message["headers"] if pair[0] != b"set-cookie"]
                message = {**message, "headers": headers}
            await send(message)

        if scope["type"] == "http" and scope["path"].startswith("/admin/cache/"):
            path = "/_cache/" + scope["path"].removeprefix("/admin/cache/")
            scope = {**scope, "path": path, "raw_path": path.encode()}
            if not keeps_host:
                others = [pair for pair in scope["headers"] if pair[0] != b"host"]
                scope["headers"] = [*others, (b"host", b"app:8000")]
        await inner(scope, receive, send_on)

    with uvicorn_server(proxy) as server:
        served = Shop(server.port)
        served.page = f"{served.origin}/admin/cache/"
        yield served


def test_sign_in_works_behind_a_proxy_that_shows_another_path(open_page: Open) -> None:
    with proxied() as served:
        opened = open_page()
        opened.sign_in(served)
        (cookie,) = opened.context.cookies()
        assert cookie["path"] == "/admin/cache"
        opened.page.get_by_role("button", name="Sign out").click()
        expect(opened.page.get_by_label("Dashboard token")).to_be_visible()
        assert opened.context.cookies() == []
        opened.is_well()
        opened.context.close()


def test_login_says_so_where_the_cookie_does_not_come_back(open_page: Open) -> None:
    with proxied(keeps_cookies=False) as served:
        opened = open_page()
        opened.page.goto(served.page)
        opened.page.get_by_label("Dashboard token").fill(TOKEN)
        opened.page.get_by_role("button", name="Sign in").click()
        expect(opened.page.locator("#login-error")).to_contain_text("the cookie did not come back")
        opened.is_well(401)


def test_login_gives_the_words_of_the_server_where_it_is_taken_for_another_site(open_page: Open) -> None:
    with proxied(keeps_host=False) as served:
        opened = open_page()
        opened.page.goto(served.page)
        opened.page.get_by_label("Dashboard token").fill(TOKEN)
        opened.page.get_by_role("button", name="Sign in").click()
        expect(opened.page.locator("#login-error")).to_contain_text("proxies in front must pass on the Host")
        opened.is_well(403)


def test_numbers_move_while_requests_are_made(served: Shop, open_page: Open) -> None:
    opened = open_page()
    opened.sign_in(served)
    row = opened.page.locator("#routes tbody tr", has_text="/products/{number}")
    expect(row).to_have_count(0)
    for _ in range(20):
        served.get("/products/1")
    expect(row.locator("td").first).to_have_text("20")
    for _ in range(10):
        served.get("/products/2")
    expect(row.locator("td").first).to_have_text("30")
    served.get("/private")
    expect(opened.page.locator("#refusals tbody tr")).to_contain_text("/private")
    opened.is_well()


def test_purge_takes_effect_and_says_so(served: Shop, open_page: Open) -> None:
    opened = open_page()
    page = opened.page
    served.get("/products/1")
    assert "hit" in served.get("/products/1")
    opened.sign_in(served)
    opened.view("Actions")
    page.locator("#purge").get_by_text("Tag", exact=True).click()
    page.locator("#purge-value").fill("products")
    page.locator("#purge button[type=submit]").click()
    expect(page.locator("#ask-sample")).to_contain_text(f"{served.origin}/products/1")
    assert "hit" in served.get("/products/1")  # it was only asked
    page.locator("#ask-yes").click()
    expect(page.locator("#done li").first).to_contain_text("Purged")
    assert "fwd=uri-miss" in served.get("/products/1")
    opened.is_well()


def test_every_button_does_what_it_says(served: Shop, open_page: Open) -> None:
    for number in range(60):
        served.get(f"/products/{number}")
    served.get("/private")
    opened = open_page()
    page, root = opened.page, opened.page.locator("html")
    opened.sign_in(served)

    requests = page.locator("#tile-rate-sub")
    expect(requests).to_contain_text("61 since reset")
    page.locator("#pause").click()
    expect(page.locator("#link-text")).to_have_text("Paused")
    served.get("/products/1")
    while page.evaluate("import('./static/around.js').then(({ around }) => around.stats.total.requests)") < 62:
        pass
    expect(requests).to_contain_text("61 since reset")
    page.get_by_text("This worker", exact=True).click()  # a choice is shown nevertheless
    expect(requests).to_contain_text("62 since reset")
    page.get_by_text("All workers (1)").click()
    page.locator("#pause").click()
    expect(page.locator("#link-text")).to_have_text("Live")
    for theme in ("light", "dark"):
        page.locator("[data-theme-switch]").click()
        expect(root).to_have_attribute("data-theme", theme)
    page.locator("[data-theme-switch]").click()
    expect(root).not_to_have_attribute("data-theme", re.compile("."))

    opened.view("Entries")
    page.locator("#search button[type=submit]").click()
    expect(page.locator("#results-note")).to_have_text(
        re.compile(f"50 so far, there may be more, in the memory of worker {WORKER}$")
    )
    page.locator("#more").click()
    expect(page.locator("#results tbody tr")).to_have_count(60)
    page.locator("#search-exact").click()
    expect(page.locator("#results-note")).to_contain_text("enter its whole URL, or its path")
    page.locator("#search-match").fill("/products/7")
    page.locator("#search-exact").click()
    expect(page.locator("#drawer-url")).to_have_text(f"{served.origin}/products/7")
    expect(page.locator("#drawer-body")).to_contain_text(re.compile(r"Key[\w-]{20,}Memory"))
    expect(page.locator("#drawer-body")).to_contain_text(re.compile(rf"Memory \(L1\) of worker {WORKER}: 1 variant"))
    page.locator("#drawer summary", has_text="Ask with request headers").click()
    page.locator("#drawer-headers").fill("nonsense")
    page.get_by_role("button", name="Ask again").click()
    expect(page.locator("#drawer-verdict")).to_contain_text("a header must be a request field")
    page.locator("#drawer-headers").fill("Cache-Control: no-cache")
    page.get_by_role("button", name="Ask again").click()
    expect(page.locator("#drawer-body")).to_contain_text("Redis (L2): 1 variant")
    page.locator("#drawer-purge").click()
    page.locator("#ask-soft input").check()
    page.locator("#ask-yes").click()
    expect(page.locator("#drawer")).to_be_hidden()
    expect(page.locator(".toast").last).to_contain_text("Purged softly the URL")
    page.get_by_role("button", name="Close the message").last.click()
    expect(page.locator(".toast")).to_have_count(0)
    page.locator("#search-match").fill(f"{served.origin}/products/1*")
    page.locator("#search-level").select_option("l2")
    page.locator("#search button[type=submit]").click()
    expect(page.locator("#results-note")).to_have_text("11 entries, in Redis")
    opened.confirm(
        "#purge-found", "11 entries match", "Purged all that begins with .*/products/1[.] Every worker knows"
    )

    opened.view("Actions")
    for button in ("#purge [type=submit]", "#warm [type=submit]"):
        page.locator(button).click()
    expect(page.locator("#purge-error")).to_have_text("Enter the URL first.")
    expect(page.locator("#warm-error")).to_have_text("Enter at least one URL.")
    page.locator("#warm-urls").fill("products/1")
    page.locator("#warm [type=submit]").click()
    expect(page.locator("#warm-error")).to_contain_text("paths that begin with a slash; not products/1")
    page.locator("#warm-urls").fill(f"/products/1\n{served.origin}/private")
    page.locator("#warm [type=submit]").click()
    opened.has_done("Warmed 2 URLs: 1 stored, 0 were there, 1 may not be stored, 0 failed")
    page.locator("[data-sync=l2]").click()
    opened.has_done(rf"Copied from the memory of worker {WORKER} to Redis \(L2\): \d+ of \d+, .* 0 failed")
    opened.confirm("[data-clear=l1]", "The worker that answers", rf"Cleared memory \(L1\) of worker {WORKER}: \d\d ent")
    page.locator("[data-sync=l1]").click()
    opened.has_done(rf"Copied from Redis \(L2\) to the memory of worker {WORKER}: [1-9]\d+ of \d+, .* 0 failed")
    opened.confirm("[data-clear=l2]", "Memory keeps what it has", r"Cleared Redis \(L2\): [1-9]\d+ entries removed")
    page.get_by_text("Prefix", exact=True).click()
    page.locator("#purge-value").fill("/products/2")
    opened.confirm("#purge [type=submit]", "11 entries match", "Purged all that begins with /products/2")
    opened.confirm("[data-clear=all]", "memory of all workers, and from Redis", "Cleared both levels[.]$")
    page.locator("#reset").click()
    page.locator("#ask-no").click()
    assert served.stats()["total"]["requests"] > 60
    opened.confirm("#reset", "All workers", f"Worker {WORKER} counts from zero. The others follow within seconds")
    assert served.stats()["total"]["requests"] == 0
    assert served.get("/products/3").startswith("echo_cache; fwd=uri-miss")
    opened.is_well(400)


def test_page_of_memory_alone_promises_no_more_than_there_is(open_page: Open) -> None:
    with uvicorn_server(shop(Cache(MemoryStore()))) as server:
        served = Shop(server.port)
        served.get("/products/1")
        opened = open_page()
        page = opened.page
        opened.sign_in(served)
        expect(page.locator("#scope")).to_be_hidden()
        expect(page.locator("#scope-note")).to_have_text(
            re.compile(f"There is no Redis: each process counts alone. These are the numbers of process {WORKER}[.]")
        )
        expect(page.locator("#health")).to_contain_text("memory only")
        opened.view("Actions")
        for button in ("[data-clear=l2]", "[data-sync=l1]", "[data-sync=l2]"):
            expect(page.locator(button)).to_be_disabled()
            expect(page.locator(button)).to_have_attribute(
                "title", re.compile("no Redis .* the store is a MemoryStore")
            )
        expect(page.locator("#view-actions [data-why]").first).to_be_visible()
        page.locator("#purge-value").fill("/products/1")
        opened.confirm("#purge [type=submit]", "1 entry matches", f"That is so in process {WORKER}. Other processes")
        served.get("/products/2")
        process = f"Cleared memory [(]L1[)] of process {WORKER}: 2 entries removed"
        opened.confirm("[data-clear=l1]", "the process that answers", process)
        opened.confirm("[data-clear=all]", "Others keep what they have", f"Cleared memory of process {WORKER}[.]$")
        opened.confirm("#reset", "others go on", f"Process {WORKER} counts from zero[.]$")
        opened.view("Entries")
        page.locator("#search button[type=submit]").click()
        expect(page.locator("#results-note")).to_contain_text("0 entries, in the memory of process")
        opened.is_well()
        opened.context.close()


def test_page_steers_what_can_be_steered_without_redis(own_redis: RedisServer, open_page: Open) -> None:
    with uvicorn_server(shop(Cache(TwoLevelStore(MemoryStore(), RedisStore(own_redis.url))))) as server:
        served = Shop(server.port)
        served.get("/products/1")
        opened = open_page()
        page = opened.page
        opened.sign_in(served)
        own_redis.kill()
        opened.view("Entries")
        page.locator("#search-level").select_option("l2")
        page.locator("#search button[type=submit]").click()
        expect(page.locator("#results-note")).to_contain_text("Redis cannot be asked now")
        page.locator("#search-match").fill("/products/1")
        page.locator("#search-exact").click()
        expect(page.locator("#drawer-body")).to_contain_text("Redis (L2): not known now, it cannot be asked")
        expect(page.locator("#drawer-body")).to_contain_text("1 variant")
        page.locator("#drawer-close").click()
        opened.view("Actions")
        for level in ("l1", "l2"):
            page.locator(f"[data-sync={level}]").click()
            opened.has_done("Redis cannot be asked now")
            page.get_by_role("button", name="Close the message").last.click()
        page.locator("#purge").get_by_text("Tag", exact=True).click()
        page.locator("#purge-value").fill("products")
        opened.confirm(
            "#purge [type=submit]", "How many match is not known", "Purged the tag products[.] Other workers"
        )
        assert "hit" not in served.get("/products/1")
        opened.confirm("#reset", "All workers", "The others could not be told: Redis cannot be asked now")
        expect(page.locator(".toast").last).to_have_class("toast bad")
        opened.is_well(*[503] * 6)
        opened.context.close()


def test_what_others_have_chosen_is_text_and_nothing_else(served: Shop, open_page: Open) -> None:
    opened = open_page()
    page = opened.page
    served.get(f"/products/{quote(HOSTILE)}?q=%3Cscript%3Ealert(1)%3C/script%3E")
    opened.sign_in(served)
    opened.view("Entries")
    page.get_by_role("button", name="Search").click()
    entry = page.locator("#results button.url")
    expect(entry).to_have_count(1)
    expect(page.locator("#results .tag", has_text=f"product:{HOSTILE}")).to_be_visible()
    entry.click()
    drawer = page.locator("#drawer")
    expect(drawer.locator("#drawer-verdict")).not_to_be_empty()
    drawer.locator("summary", has_text="header field").first.click()
    expect(drawer.get_by_text("<script>alert(1)</script>").first).to_be_visible()
    assert page.locator("img[src=x], table script").count() == 0
    opened.is_well()


def test_page_goes_on_without_redis(own_redis: RedisServer, open_page: Open) -> None:
    with uvicorn_server(shop(Cache(TwoLevelStore(MemoryStore(), RedisStore(own_redis.url))))) as server:
        served = Shop(server.port)
        opened = open_page()
        opened.sign_in(served)
        own_redis.kill()
        for number in range(3):
            served.get(f"/products/{number}")
        expect(opened.page.locator("#banners")).to_contain_text(re.compile("Redis"))
        expect(opened.page.locator("#routes tbody tr", has_text="/products/{number}").locator("td").first).to_have_text(
            "3"
        )
        expect(opened.page.locator("#link")).to_have_attribute("data-state", "live")
        opened.is_well()
        opened.context.close()


def test_page_that_nobody_sees_takes_no_connection(served: Shop, open_page: Open) -> None:
    # Over HTTP/1.1 a browser has six connections to a server: six pages with a stream each leave none for a seventh.
    opened = open_page()
    opened.sign_in(served)
    pages = [opened.page]
    for _ in range(6):
        see(pages[-1], False)
        pages.append(opened.context.new_page())
        pages[-1].goto(served.page)
        expect(pages[-1].locator("#link")).to_have_attribute("data-state", "live")
    see(pages[-1], False)
    see(pages[0], True)
    expect(pages[0].locator("#link")).to_have_attribute("data-state", "live")
    served.get("/products/1")
    expect(pages[0].locator("#routes tbody tr")).to_have_count(1)
    expect(pages[0].locator("#banners")).to_be_empty()
    opened.is_well()


def see(page: Page, seen: bool) -> None:
    """Do as if *page* came into sight, or went out of it; without a screen all are seen."""
    page.evaluate(
        """hidden => {
          Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
          document.dispatchEvent(new Event("visibilitychange"));
        }""",
        not seen,
    )


@pytest.mark.parametrize(
    ("log", "alarm"),
    [
        pytest.param({"synced": False, "unheard_for": 9.0}, "It does not trust what is older than that", id="unsynced"),
        pytest.param({"synced": False, "heard": False}, "cannot be heard", id="unheard"),
    ],
)
def test_alarm_is_shown_where_invalidations_are_not_heard(
    served: Shop, open_page: Open, log: dict[str, Any], alarm: str
) -> None:
    stats = served.stats()
    for report in (stats["worker"], stats["total"]):
        report["log"] |= log
    opened = open_page()
    event = f"event: stats\ndata: {json.dumps({**stats, 'workers': 1})}\n\n"
    opened.page.route(
        "**/api/events", lambda route: route.fulfill(body=event, headers={"content-type": "text/event-stream"})
    )
    opened.sign_in(served)
    expect(opened.page.locator("#banners p")).to_have_count(1)
    expect(opened.page.locator("#banners")).to_contain_text(alarm)
    opened.is_well()


SERVED = f"""
import os
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from echo_cache import HTTPCacheMiddleware, MemoryStore, RedisStore, TwoLevelStore, cached
from echo_cache.dashboard import mount

@cached(ttl=60)
async def product(request):
    return PlainTextResponse("product")

store = TwoLevelStore(MemoryStore(), RedisStore(os.environ["REDIS"]))
app = Starlette(routes=[Route("/products/{{number}}", product)], middleware=[Middleware(HTTPCacheMiddleware, store)])
mount(app, auth={TOKEN!r})
"""


@contextmanager
def two_workers(redis_url: str, directory: Path) -> Iterator[Shop]:
    """A shop in two processes behind one port."""
    (directory / "served_by_two.py").write_text(SERVED)
    root = str(Path(__file__).parent.parent)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        command = [sys.executable, "-m", "uvicorn", "served_by_two:app", "--workers=2", f"--fd={listener.fileno()}"]
        with subprocess.Popen(
            [*command, "--log-level=critical", "--timeout-graceful-shutdown=3"],
            pass_fds=[listener.fileno()],
            cwd=directory,
            env={**os.environ, "REDIS": redis_url, "PYTHONPATH": f"{root}{os.pathsep}{directory}"},
        ) as process:
            try:
                yield Shop(listener.getsockname()[1])
            finally:
                process.terminate()


def test_page_shows_all_workers_and_says_which_one_has_answered(
    redis_url: str, tmp_path: Path, open_page: Open
) -> None:
    with two_workers(redis_url, tmp_path) as served:
        opened = open_page()
        page = opened.page
        opened.sign_in(served)
        expect(page.locator("#scope-total")).to_have_text("All workers (2)")
        workers = {report["id"] for report in served.stats()["workers"]}
        own = str(page.locator("#foot").text_content()).removeprefix("This worker: ").partition(" ")[0]
        assert own in workers
        for number in range(20):
            served.get(f"/products/{number}")
        expect(page.locator("#tile-rate-sub")).to_contain_text("20 since reset")
        opened.view("Actions")
        for other in workers - {own}:
            named = "Cleared memory (L1) of worker "
            page.route("**/l1", answering_as(other))
            opened.confirm(
                "[data-clear=l1]", "you see then which", re.escape(f"{named}{other} (the overview shows {own})")
            )
            page.unroute("**/l1")
        opened.confirm("#reset", "All workers", "The others follow within seconds")
        opened.view("Overview")
        expect(page.locator("#tile-rate-sub")).to_have_text(re.compile("^0 since reset"))
        opened.is_well()
        opened.context.close()


def answering_as(worker: str) -> Callable[[Route], None]:
    """Return what lets an answer be of *worker*: which one gets a connection is chance."""

    def answer(route: Route) -> None:
        response = route.fetch()
        route.fulfill(response=response, json={**response.json(), "worker": worker})

    return answer


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_page_fits_its_window(served: Shop, open_page: Open, size: str, scheme: Any) -> None:
    width, height = SIZES[size]
    for number in range(30):
        served.get(f"/products/{number}")
        served.get(f"/products/{number % 7}?page={'long' * 40}")
    served.get("/private")
    opened = open_page(viewport={"width": width, "height": height}, color_scheme=scheme, reduced_motion="reduce")
    page = opened.page
    page.goto(served.page)
    picture(page, f"login-{size}-{scheme}")
    opened.sign_in(served)
    expect(page.locator("#routes tbody tr")).to_have_count(2)
    for view in ("Overview", "Entries", "Actions"):
        opened.view(view)
        if view == "Entries":
            page.get_by_role("button", name="Search").click()
            expect(page.locator("#results tbody tr").first).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), view
        if view == "Overview":
            places = [cell.bounding_box() for cell in page.locator("#refusals tbody tr").first.locator("td").all()]
            rows = len({place["y"] for place in places if place})
            assert rows == (3 if size == "narrow" else 1)  # where room is short, its parts are below each other
        picture(page, f"{view.lower()}-{size}-{scheme}")
    opened.view("Entries")
    page.locator("#results button.url").first.click()
    expect(page.locator("#drawer-verdict")).not_to_be_empty()
    picture(page, f"entry-{size}-{scheme}")
    opened.is_well()


def picture(page: Page, name: str) -> None:
    """Keep a picture of the page, where SCREENSHOTS says so."""
    directory = os.environ.get("SCREENSHOTS")
    if directory:
        Path(directory).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=Path(directory) / f"{name}.png", full_page="entry" not in name)
