"""Report pages: names, paths, and studies with few trials."""

import re
from collections import Counter
from pathlib import Path

import pytest
from factories import gated_params, make_runs, make_study

from reports.data.results import Results
from reports.data.study_reader import read_results
from reports.errors import ReportError
from reports.page.page import render_page, write_report
from reports.page.sections import build_section
from studies.storage.open import read_storage


@pytest.mark.usefixtures("without_optuna_figures")
def test_study_names_are_escaped_in_page_and_path(sqlite_url, tmp_path, monkeypatch):
    name = "<script>alert(1)</script>/../x"
    make_study(sqlite_url, name)
    monkeypatch.chdir(tmp_path)
    path = write_report(sqlite_url, [name]).path
    assert path.parent == tmp_path / "reports" / "out"
    html = path.read_text(encoding="utf-8")
    assert "<script>alert(1)" not in html
    assert "&lt;script&gt;alert(1)" in html


@pytest.mark.parametrize(("finished", "report_threshold"), [(1, None), (3, 0.5), (8, 1.75)])
def test_report_of_few_trials_is_written(sqlite_url, tmp_path, finished, report_threshold):
    make_study(sqlite_url, finished=finished, report_threshold=report_threshold)
    path = write_report(sqlite_url, ["made"], tmp_path / "page.html").path
    html = path.read_text(encoding="utf-8")
    assert ("Unfinished:" in html) == (finished < 8)
    assert "1×4 no gates, new state" in html
    assert "Each trial was run once" in html
    assert "<h3>Replicates</h3>" not in html
    assert "<strong>The grid is not complete.</strong>" in html  # one trial diverged


@pytest.mark.usefixtures("without_optuna_figures")
def test_only_a_report_of_the_same_studies_is_replaced(sqlite_url, tmp_path):
    make_study(sqlite_url)
    database = tmp_path / "studies.db"
    before = database.read_bytes()
    with pytest.raises(ReportError, match="exists and is not a report"):
        write_report(sqlite_url, ["made"], database)
    assert database.read_bytes() == before
    page = write_report(sqlite_url, ["made"], tmp_path / "page.html").path
    assert write_report(sqlite_url, ["made"], page).path == page
    with pytest.raises(ReportError, match="cannot write"):
        write_report(sqlite_url, ["made"], Path("/proc/no/page.html"))


@pytest.mark.usefixtures("without_optuna_figures")
def test_studies_with_similar_names_have_different_pages(sqlite_url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["a b", "a_b", "é" * 200]
    for name in names:
        make_study(sqlite_url, name, finished=1)
    pages = [write_report(sqlite_url, [name]).path for name in names]
    assert pages[1].name == "a_b.html"
    assert len(set(pages)) == 3
    assert all(page.exists() for page in pages)


@pytest.mark.usefixtures("without_optuna_figures")
def test_page_of_an_unfinished_study_counts_missing_pairs(sqlite_url, tmp_path):
    make_study(sqlite_url, finished=7)
    section = build_section(read_results(read_storage(sqlite_url), "made"))
    missing_pairs = {
        effect.contrast.label: effect.missing_pairs for effect in section.effects[0].effects
    }
    # The fourth trial diverged and the eighth waits: one pair of the residual, two of others.
    assert missing_pairs == {"residual": 1, "layers 1 → 2": 2, "state size 4 → 8": 2}
    words = write_report(sqlite_url, ["made"], tmp_path / "page.html").path.read_text("utf-8")
    assert "2 trials of" in re.sub(r"\s+", " ", words)


@pytest.mark.usefixtures("without_optuna_figures")
def test_columns_are_not_searched_once_for_each_trial(sqlite_url, monkeypatch):
    """Each look at a column takes time with the number of trials."""
    for count in (12, 24):  # more than the leaderboard shows
        runs = [(gated_params(1 + i), 1 + i / 10, {}) for i in range(count)]
        raw = {"space": {"layers": [*range(1, count + 1)], "state_size": [4]}}
        make_runs(sqlite_url, f"{count} trials", raw, runs)
    calls = Counter()

    def count_calls(name):
        original = getattr(Results, name).fget

        def counted(results):
            calls[results.name, name] += 1
            return original(results)

        monkeypatch.setattr(Results, name, property(counted))

    for name in ("parameters", "complete"):
        count_calls(name)
    for study in ("12 trials", "24 trials"):
        list(render_page([build_section(read_results(read_storage(sqlite_url), study))]))
    for name in ("parameters", "complete"):
        assert calls["12 trials", name] == calls["24 trials", name] > 0
