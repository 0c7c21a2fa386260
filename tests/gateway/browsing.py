"""The gateway's page in headless Chromium, as somebody without a network sees it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, Request, ViewportSize, sync_playwright

from tests.gateway.clients import VENV, Address

AXE = VENV / "js" / "node_modules" / "axe-core" / "axe.min.js"
DESK, PHONE = ViewportSize(width=1360, height=900), ViewportSize(width=360, height=740)
PATIENCE = 30_000.0  # milliseconds until something that has to come is there
LOADED = "Failed to load resource"  # how Chromium's console speaks of any answer from 400 on


def chromium() -> str:
    """Where it is."""
    named = [os.environ.get("CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome"]
    found = next((path for name in named if name and (path := shutil.which(name))), None)
    if found is None:
        pytest.fail("Chromium was not found; install it (Debian: apt-get install chromium) or set CHROMIUM to its path")
    return found


@contextmanager
def browsing() -> Iterator[Browser]:
    """One browser for many pages."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def visit(browser: Browser, site: Address, size: ViewportSize = DESK, dark: bool = False) -> Iterator[Page]:
    """A fresh visitor's page. It fails if the page asks anybody else for anything, or says something went wrong."""
    context = browser.new_context(viewport=size, color_scheme="dark" if dark else "light", reduced_motion="reduce")
    context.set_default_timeout(PATIENCE)
    page, wrong = context.new_page(), list[str]()

    def said(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and not message.text.startswith(LOADED):
            wrong.append(message.text)

    def asked(request: Request) -> None:
        if not request.url.startswith((f"{site.url}/", "data:", "blob:")):
            wrong.append(request.url)

    page.on("console", said)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", asked)
    yield page
    context.close()
    assert not wrong, wrong


def enter(page: Page, site: Address, place: str = "") -> None:
    """Come in by the link with a token, then go where the test wants to be."""
    page.goto(f"{site.url}/#token={site.token}")
    page.locator("nav").wait_for()
    page.goto(f"{site.url}/#/{place}")


def field(page: Page, name: str) -> Locator:
    """All of one input: label, control, help, error."""
    return page.locator(f'[data-field="{name}"]')


def control(page: Page, name: str) -> Locator:
    """What one types or clicks; of a slider its number."""
    return page.locator(f'[name="{name}"]')


def settings(page: Page, **values: Any) -> None:
    """Fill in inputs, folded away or not."""
    if not all(control(page, name).is_visible() for name in values):
        page.locator(".rest > summary").click()
    for name, value in values.items():
        given = control(page, name)
        if isinstance(value, bool):
            given.set_checked(value)
        elif given.evaluate("element => element.tagName") == "SELECT":
            given.select_option(value)
        else:
            given.fill(str(value))


def violations(page: Page) -> list[str]:
    """What axe-core finds serious or worse."""
    page.evaluate(AXE.read_text())  # by the driver: the page's own policy lets nothing in
    found = page.evaluate("() => axe.run()")
    return [
        f"{each['id']}: {each['help']}: {[node['html'][:160] for node in each['nodes']][:3]}"
        for each in found["violations"]
        if each["impact"] in ("serious", "critical")
    ]


def overflow(page: Page) -> int:
    """Pixels by which the page is wider than its window."""
    wide: int = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    return wide
