"""
The dashboard in a real browser: Chromium, headless, over a real server.

CHROMIUM names the browser; else it is /usr/bin/chromium, or playwright's own. SCREENSHOTS=directory keeps pictures.
"""

from __future__ import annotations

import os
import re
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Playwright, expect, sync_playwright

from echo_cache import Cache, MemoryStore, RedisStore, TwoLevelStore
from tests.servers import RedisServer
from tests.servers_http import uvicorn_server
from tests.test_dashboard import TOKEN, shop

pytestmark = pytest.mark.browser

PATIENCE = 15_000.0
HOSTILE = "<img src=x onerror=alert(1)>"
SIZES = {"wide": (1440, 900), "narrow": (390, 844)}
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

    def is_well(self) -> None:
        """Fail unless all went well; that the first request is not signed in is no trouble."""
        assert [text for text in self.trouble if "401 (Unauthorized)" not in text] == []
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
    opened.is_well()
    (cookie,) = opened.context.cookies()
    assert (cookie["httpOnly"], cookie["sameSite"], cookie["path"]) == (True, "Strict", "/_cache")
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_label("Dashboard token")).to_be_visible()
    assert opened.context.cookies() == []
    assert opened.context.request.get(f"{served.page}api/stats").status == 401
    opened.is_well()


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
