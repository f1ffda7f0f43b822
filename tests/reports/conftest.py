"""Fixtures of the report's tests: studies, their pages, and fewer figures."""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from factories import make_refinement, make_study, results_of
from pages import BuiltPage, build_from


@pytest.fixture
def without_optuna_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw none of Optuna's figures."""
    draw_no_optuna_figures(monkeypatch)


def draw_no_optuna_figures(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("reports.charts.trial_plots.chart_importances", lambda *_: [])


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
