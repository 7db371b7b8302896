"""Pages in a headless Chromium: the one of the system, driven by Playwright. conftest.py has the fixture `browser`."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

# As in the Makefile.
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@contextmanager
def chromium() -> Iterator[Any]:
    """A running browser of Playwright's; skips the test, with the reason, if it or Playwright is not here."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:  # only root can install it, which CI is; other machines need not have it
        pytest.skip("Chromium is not here (make browser installs it where it can)")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def opened(browser: Any, path: Path, width: int = 1280, **context: Any) -> Iterator[Any]:
    """A file as a Playwright page without network; afterwards nothing may have failed or been asked of the network.

    context: of the browser's context, such as color_scheme="dark".
    """
    wrong: list[str] = []
    tab = browser.new_context(viewport={"width": width, "height": 900}, offline=True, **context)
    tab.set_default_timeout(8000)  # milliseconds
    page = tab.new_page()
    page.on("console", lambda said: wrong.append(said.text) if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("requestfailed", lambda request: None if _given_up(request) else wrong.append(_failed(request)))
    page.on("request", lambda asked: wrong.append(asked.url[:200]) if asked.url.startswith("http") else None)
    page.goto(path.resolve().as_uri())
    yield page
    tab.close()
    assert not wrong, wrong


def _given_up(request: Any) -> bool:
    """Whether Chromium itself ended the request for a video, which it does when another part of it is sought."""
    return request.resource_type == "media" and request.failure == "net::ERR_ABORTED"


def _failed(request: Any) -> str:
    return f"{request.url[:200]}: {request.failure}"
