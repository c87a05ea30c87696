"""Pages in a headless Chromium, and what they put on its console or ask for."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, expect, sync_playwright

# A machine may be busy with other things; what never comes is not waited for in a test that passes.
PATIENCE = 300_000
expect.set_options(timeout=PATIENCE)


@contextmanager
def launched(chromium: str) -> Iterator[Browser]:
    """The browser. While it is open, nothing else in this process can have an event loop."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"], timeout=PATIENCE)
        yield browser
        browser.close()


@contextmanager
def opened(browser: Browser, path: Path, heard: list[str], **options: Any) -> Iterator[Page]:
    """A page that is open.

    Args:
        browser: as `launched` gives it.
        path: of the HTML file.
        heard: is filled with messages, errors, and addresses of requests but those of `data:`.
        options: of Playwright's `new_context`.
    """
    context = browser.new_context(**{"viewport": {"width": 1200, "height": 900}, **options})
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    page.on("console", lambda message: heard.append(message.text))
    page.on("pageerror", lambda error: heard.append(str(error)))
    page.on("request", lambda request: request.url.startswith("data:") or heard.append(request.url))
    page.goto(path.as_uri())
    yield page
    context.close()
