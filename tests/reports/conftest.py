"""Fixtures of the report's tests: a browser, a study, and fewer figures."""

import shutil
from collections.abc import Iterator

import pytest
from factories import make_refinement
from hooks import HANG_TIMEOUT
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
        patience = 1000 * HANG_TIMEOUT
        started = playwright.chromium.launch(
            executable_path=executable, args=FLAGS, timeout=patience
        )
        new_context = started.new_context

        def new_patient_context(**options):
            context = new_context(**options)
            context.set_default_timeout(patience)
            return context

        started.new_context = new_patient_context
        yield started
        started.close()


@pytest.fixture
def only_importances(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw only the importances of Optuna's figures, which take most of a page's time."""
    for name in ("chart_parameters", "chart_study"):
        monkeypatch.setattr(f"reports.page.sections.{name}", lambda *results: [])


@pytest.fixture
def without_optuna_figures(only_importances: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw none of Optuna's figures."""
    for name in ("compute_block_importances", "compute_importances"):
        monkeypatch.setattr(f"reports.page.sections.{name}", lambda *results: [])


@pytest.fixture
def derived(sqlite_url):
    """URL of a storage with the studies ``made`` and ``derived``."""
    make_refinement(sqlite_url)
    return sqlite_url
