"""A real browser, and studies to look at in it."""

import shutil
from collections.abc import Iterator

import pytest
from made import make_derived
from services import missing

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--enable-unsafe-swiftshader"]  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator:
    executable = shutil.which("chromium") or shutil.which("chromium-browser")
    if not executable:
        missing("chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=executable, args=FLAGS)
        yield started
        started.close()


@pytest.fixture
def derived(sqlite_url):
    """The URL of a storage with the studies ``made`` and ``derived``."""
    make_derived(sqlite_url)
    return sqlite_url
