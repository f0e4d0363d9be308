"""Pages as a reader meets them: in a browser, from disk, without a network."""

import shutil

import pytest

from tests.page.browsing import DESKTOP

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    from playwright.sync_api import sync_playwright

    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser):
    """Open a page; at the end, nothing may have gone wrong or been fetched."""
    contexts, troubles = [], []

    def open_page(path, viewport=DESKTOP, color_scheme="light"):
        context = browser.new_context(viewport=viewport, color_scheme=color_scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: troubles.append(message.text) if message.type != "log" else None)
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("requestfailed", lambda request: troubles.append(f"failed: {request.url[:80]}"))
        own = path.as_uri()
        page.on("request", lambda request: troubles.append(request.url[:80]) if is_foreign(request.url, own) else None)
        page.goto(own)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert troubles == []


def is_foreign(url, own):
    return url.partition("#")[0] != own and not url.startswith(("data:", "about:srcdoc"))
