"""Fixtures of the report's tests: a browser, a study, its page, and fewer figures."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from factories import make_refinement, make_study, results_of
from hooks import HANG_TIMEOUT
from pages import BuiltPage, build_from
from services import report_missing

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--enable-unsafe-swiftshader"]  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator:
    executable = shutil.which("chromium") or shutil.which("chromium-browser")
    if not executable:
        report_missing("chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=executable, args=FLAGS, timeout=1000 * HANG_TIMEOUT
        )
        yield started
        started.close()


@pytest.fixture
def open_page(browser) -> Callable[..., AbstractContextManager]:
    """Context that opens a file offline; it fails on errors, network requests and wide pages."""

    @contextmanager
    def open_file(path: Path, width: int = 1200, height: int = 900, before: str = "", **options):
        viewport = {"width": width, "height": height}
        context = browser.new_context(offline=True, viewport=viewport, **options)
        context.set_default_timeout(1000 * HANG_TIMEOUT)
        page = context.new_page()
        page.add_init_script(before)
        errors, requests = [], []
        page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(path.as_uri())
        yield page
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert errors == []
        assert [url for url in requests if not url.startswith(("file:", "data:", "blob:"))] == []
        context.close()

    return open_file


@pytest.fixture
def without_optuna_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw none of Optuna's figures."""
    draw_no_optuna_figures(monkeypatch)


def draw_no_optuna_figures(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("reports.charts.trial_plots.chart_importances", lambda results: [])


@pytest.fixture(scope="session")
def build_page(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., BuiltPage]:
    """Make a study and its page, without Optuna's figures; once for each way to make it."""

    @cache
    def build(make: Callable[..., None], name: str = "made", **options: Any) -> BuiltPage:
        url = f"sqlite:///{tmp_path_factory.mktemp('page')}/studies.db"
        make(url, name=name, **options)
        with pytest.MonkeyPatch.context() as patch:
            draw_no_optuna_figures(patch)
            return build_from(results_of(url, name, drawn_only=True))

    return build


@pytest.fixture
def derived(sqlite_url):
    """URL of a storage with the studies ``made`` and ``derived``."""
    make_study(sqlite_url, diverged=None)
    make_refinement(sqlite_url)
    return sqlite_url
