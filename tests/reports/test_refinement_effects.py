"""Effects of the variants of a refinement."""

import pytest
from factories import gated_params, make_replicates, make_runs

from reports.data.results import read_results
from reports.page.page import write_report
from reports.page.sections import build_section
from reports.stats.refinement_effects import compare_with_source, compute_variant_effects
from studies.storage.open import open_storage, read_storage


@pytest.mark.usefixtures("without_optuna_figures")
def test_variants_are_compared_with_their_source_trials(derived):
    results = read_results(read_storage(derived), "derived")
    comparison = compare_with_source(results)
    rows = comparison.rows[["origin", "source_value", "variant", "value"]].to_numpy().tolist()
    assert sorted(rows) == [
        [0, 1.5, "state size 16", 1.2],
        [0, 1.5, "unchanged", 1.4],
        [1, 1.6, "state size 16", 1.2],
        [1, 1.6, "unchanged", 1.3],
    ]
    unchanged, wider = compute_variant_effects(comparison)
    assert (unchanged.variant, unchanged.pairs) == ("unchanged", 0)
    assert unchanged.source_difference == pytest.approx((-0.1 - 0.3) / 2)
    assert (wider.variant, wider.count, wider.pairs, wider.improved_count) == (
        "state size 16",
        2,
        2,
        2,
    )
    assert wider.mean == pytest.approx((-0.2 - 0.1) / 2)
    figure = build_section(results).slopes.figure
    assert [trace.name for trace in figure.data] == ["unchanged", "state size 16"]
    assert list(figure.data[1].y) == [1.5, 1.2, None, 1.6, 1.2, None]


def test_replicates_of_a_source_architecture_count_once(sqlite_url):
    make_replicates(sqlite_url)
    raw = {"refinement": {"source": "replicates", "variants": [{}, {"layers": 3}]}}
    runs = [(gated_params(2), 1.8, {}), (gated_params(3), 1.7, {})]
    make_runs(sqlite_url, "derived", raw, runs, sources=[0, 1, 2])
    comparison = compare_with_source(read_results(read_storage(sqlite_url), "derived"))
    rows = comparison.rows[["origin", "source_value", "variant", "value"]].to_numpy().tolist()
    assert rows == [
        [0, pytest.approx(2.01), "layers 3", 1.7],
        [0, pytest.approx(2.01), "unchanged", 1.8],
    ]
    _, deeper = compute_variant_effects(comparison)
    assert (deeper.count, deeper.pairs, deeper.improved_count) == (1, 1, 1)


@pytest.mark.usefixtures("without_optuna_figures")
def test_refinement_is_reported_without_its_deleted_source(derived, tmp_path):
    storage = open_storage(derived)
    storage.delete_study(storage.get_study_id_from_name("made"))
    storage.close()
    html = write_report(derived, ["derived"], tmp_path / "page.html").path.read_text("utf-8")
    assert "From study to study" not in html
    assert "refinement.top=2" in html
