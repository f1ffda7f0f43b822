"""Report pages: names, paths, and studies with few trials."""

import pytest
from factories import make_study

from reports.page.page import write_report


@pytest.mark.usefixtures("without_optuna_figures")
def test_study_names_are_escaped_in_page_and_path(sqlite_url, tmp_path, monkeypatch):
    name = "<script>alert(1)</script>/../x" + "é" * 200
    make_study(sqlite_url, name)
    monkeypatch.chdir(tmp_path)
    path = write_report(sqlite_url, [name]).path
    assert path.parent == tmp_path / "reports" / "out"
    html = path.read_text(encoding="utf-8")
    assert "<script>alert(1)" not in html
    assert "&lt;script&gt;alert(1)" in html


@pytest.mark.parametrize(("finished", "report_threshold"), [(1, None), (8, 1.75)])
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
def test_studies_with_similar_names_have_different_pages(sqlite_url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["a b", "a_b"]
    for name in names:
        make_study(sqlite_url, name, finished=1)
    pages = [write_report(sqlite_url, [name]).path for name in names]
    assert pages[1].name == "a_b.html"
    assert all(page.exists() for page in {*pages})
    assert pages[0] != pages[1]


@pytest.mark.usefixtures("without_optuna_figures")
def test_page_of_an_unfinished_study_counts_missing_pairs(build_page):
    page = build_page(make_study, "made", finished=7)
    effects = page.section.effects[0].effects
    missing_pairs = {effect.contrast.label: effect.missing_pairs for effect in effects}
    # The fourth trial diverged and the eighth waits: one pair of the residual, two of others.
    assert missing_pairs == {"residual": 1, "layers 1 → 2": 2, "state size 4 → 8": 2}
    assert "2 trials of" in page.words
