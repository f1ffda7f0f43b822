"""Effects of the variants of a refinement."""

import math

import numpy as np
import pytest
from factories import gated_params, make_replicates, make_runs, make_study, results_of

from reports.analysis.other_studies import compare_with_source, compute_variant_effects
from reports.page.page import render_page
from reports.page.section import Section
from studies.storage.open import open_storage

pytestmark = pytest.mark.usefixtures("without_optuna_figures")


def test_variants_are_compared_with_their_source_trials(derived):
    results = results_of(derived, "derived")
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
    figure = Section(results).slopes.figure
    assert [trace.name for trace in figure.data] == ["unchanged", "state size 16"]
    assert list(figure.data[1].y) == [1.5, 1.2, None, 1.6, 1.2, None]


def test_replicates_of_a_source_architecture_count_once(sqlite_url):
    make_replicates(sqlite_url)
    raw = {"refinement": {"source": "replicates", "variants": [{}, {"layers": 3}]}}
    runs = [(gated_params(2), 1.8, {}), (gated_params(3), 1.7, {})]
    make_runs(sqlite_url, "derived", raw, runs, sources=[0, 1, 2])
    comparison = compare_with_source(results_of(sqlite_url, "derived"))
    rows = comparison.rows[["origin", "source_value", "variant", "value"]].to_numpy().tolist()
    assert rows == [
        [0, pytest.approx(2.01), "layers 3", 1.7],
        [0, pytest.approx(2.01), "unchanged", 1.8],
    ]
    _, deeper = compute_variant_effects(comparison)
    assert (deeper.count, deeper.pairs, deeper.improved_count) == (1, 1, 1)


def test_variant_with_fewer_runs_is_compared_without_the_order_of_the_text(sqlite_url):
    """The variants have the runs of the easiest texts; each is worse by 0.01."""
    make_study(sqlite_url, diverged=None)
    generator = np.random.default_rng(0)
    runs = [
        (gated_params(layers, size, replicate=run), loss, {"validation_bits_per_byte": loss})
        for size in (4, 8)
        for layers, count in ((1, 12), (3, 3))
        for run in range(1, count + 1)
        for loss in [size + 0.01 * (layers == 3) + 0.1 * run + 0.001 * generator.normal()]
    ]
    runs[3] = (runs[3][0], math.nan, {})  # diverged
    refinement = {"source": "made", "variants": [{}, {"layers": 3}], "replicates": 12}
    make_runs(sqlite_url, "derived", {"refinement": refinement}, runs, sources=[0, 1])
    results = results_of(sqlite_url, "derived")
    variants = {e.variant: e for e in compute_variant_effects(compare_with_source(results))}
    deeper = variants["layers 3"]
    assert (deeper.pairs, deeper.mean) == (2, pytest.approx(0.01, abs=0.002))
    assert deeper.is_significant
    section = Section(results)
    effect = next(e for e in section.main_effects.effects if e.contrast.parameter == "layers")
    assert (effect.pairs, effect.mean) == (2, pytest.approx(0.01, abs=0.002))
    # By plain means three layers would lead.
    labels = [entry.label for entry in section.leaderboard]
    assert [label[:3] for label in labels] == ["1×4", "3×4", "1×8", "3×8"]


def test_refinement_is_reported_without_its_deleted_source(derived):
    storage = open_storage(derived)
    storage.delete_study(storage.get_study_id_from_name("made"))
    storage.close()
    section = Section(results_of(derived, "derived"))
    assert section.slopes is None
    assert "refinement.top=2" in "".join(render_page([section]))
