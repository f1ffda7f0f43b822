"""Refinements in a report: variants against their sources, also of unequal runs."""

import math
from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest
from factories import gated_params, make_replicates, make_runs, make_study, read_studies, results_of
from pages import build_from

from reports.analysis.refinement import compare_with_source, compute_variant_effects
from reports.charts.comparison_plots import chart_variants
from reports.findings import StudyFindings
from reports.results import Results
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
    # One architecture that derives from both: it is compared with their mean.
    assert (wider.variant, wider.pairs, wider.improved_count) == ("state size 16", 1, 1)
    assert wider.mean == pytest.approx((-0.2 - 0.1) / 2)
    figure = chart_variants(comparison, results).figure
    assert [trace.name for trace in figure.data] == ["unchanged", "state size 16"]
    assert list(figure.data[1].y) == [1.5, 1.2, None, 1.6, 1.2, None]
    assert figure.layout.xaxis.ticktext == ("unchanged", "state size 16")
    # It is reported without its source as well.
    storage = open_storage(derived)
    storage.delete_study(storage.get_study_id_from_name("made"))
    storage.close()
    results = results_of(derived, "derived")
    assert compare_with_source(results) is None
    assert "refinement.top=2" in build_from(results).html


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
    findings = StudyFindings(results_of(sqlite_url, "derived"))
    (deeper,) = (variant for variant in findings.variants if variant.variant == "layers 3")
    assert deeper.is_significant
    (effect,) = (e for e in findings.effects if e.contrast.parameter == "layers")
    for found in (deeper, effect):
        assert (found.pairs, found.mean) == (2, pytest.approx(0.01, abs=0.002))
    # By plain means three layers would lead.
    labels = [entry.label for entry in findings.summary.entries]
    assert [label[:3] for label in labels] == ["1×4", "3×4", "1×8", "3×8"]


def test_refinement_is_compared_with_a_source_of_other_bptt_steps(sqlite_url):
    make_study(sqlite_url, diverged=None)
    variants = [{"bptt_steps": 1}, {"bptt_steps": 4}]
    runs = [(gated_params(bptt_steps=1), 1.4, {}), (gated_params(bptt_steps=4), 1.2, {})]
    raw = {"refinement": {"source": "made", "variants": variants}}
    make_runs(sqlite_url, "windows", raw, runs, sources=[0])
    (results,) = read_studies(sqlite_url, "windows")
    # The source does not vary it: its value is in the configuration.
    unchanged, longer = StudyFindings(results).variants
    assert (unchanged.variant, longer.variant) == ("unchanged", "bptt steps 4")
    assert longer.source_difference == pytest.approx(1.2 - 1.5)
    assert longer.mean == pytest.approx(1.2 - 1.4)


def test_source_values_use_the_objective_of_the_refinement(sqlite_url):
    recorded = {"validation_loss": 2.25, "training_mean_loss": 1.5}
    space = {"space": {"layers": [1], "state_size": [4]}, "objective": "training"}
    make_runs(sqlite_url, "made", space, [(gated_params(), 1.0, recorded)])
    raw = {"refinement": {"source": "made"}}
    make_runs(sqlite_url, "measured", raw, [(gated_params(), 2.0, {})], sources=[0])
    by_mean = raw | {"objective": "training-mean"}
    make_runs(sqlite_url, "mean", by_mean, [(gated_params(), 2.0, {})], sources=[0])
    pairs = raw | {"task": {"tokenizer": "bpe:300"}}
    make_runs(sqlite_url, "tokens", pairs, [(gated_params(), 2.0, {})])
    measured, mean, tokens = read_studies(sqlite_url, "measured", "mean", "tokens")
    assert measured.sources["value"].tolist() == [2.25]
    assert mean.sources["value"].tolist() == [1.5]
    assert tokens.sources.empty


def make_tuned(url: str, replicates: Sequence[int] = (0,)) -> Results:
    """Refine four networks at two learning rates each, of which the best one varies.

    At its best rate a network of two layers is better by 0.2.
    """
    sizes = [4, 8, 16, 32]
    rates = {"learning_rate": [0.01, 0.02]}
    tuned = {"nuisance": ["learning_rate"]}
    grid = {"layers": [1], "state_size": sizes, "training": rates}
    source = [
        (gated_params(1, size, learning_rate=rate), 2.5 if rate == 0.01 else 2.6, {})
        for size, rate in product(sizes, rates["learning_rate"])
    ]
    make_runs(url, "source", tuned | {"space": grid}, source)
    runs = []
    for (place, size), layers, rate in product(enumerate(sizes), (1, 2), rates["learning_rate"]):
        best_rate = 0.02 if size > 8 and layers == 1 else 0.01
        loss = 2 + size / 100 - 0.2 * (layers - 1) if rate == best_rate else 3.0
        for run in replicates:
            params = gated_params(layers, size, learning_rate=rate)
            if len(replicates) > 1:
                params |= {"replicate": run}
            value = loss + 0.001 * run * layers
            recorded = {"validation_bits_per_byte": value, "source_trials": [2 * place]}
            runs.append((params, value, recorded))
    refinement = {"source": "source", "variants": [rates, {"layers": 2} | rates]}
    refinement["replicates"] = len(replicates)
    make_runs(url, "tuned", tuned | {"refinement": refinement}, runs)
    return results_of(url, "tuned")


def test_architecture_with_several_rates_is_judged_at_its_best(sqlite_url):
    results = make_tuned(sqlite_url)
    assert (results.nuisance, results.carried) == (["learning_rate"], [])
    findings = StudyFindings(results)
    effects = {effect.contrast.parameter: effect for effect in findings.effects}
    assert (effects["layers"].pairs, effects["layers"].mean) == (4, pytest.approx(-0.2))
    assert "learning_rate" not in effects
    unchanged, deeper = findings.variants
    assert (unchanged.variant, unchanged.count) == ("unchanged", 4)
    assert (deeper.variant, deeper.count, deeper.pairs) == ("layers 2", 4, 4)
    assert deeper.mean == pytest.approx(-0.2)
    assert deeper.source_difference == pytest.approx(2 + 0.15 - 0.2 - 2.5)
    found = {entry.label: entry.best_values for entry in findings.summary.entries}
    assert len(found) == 8
    assert found["1×32 no gates, new state"] == {"learning_rate": 0.02}
    assert found["2×32 no gates, new state"] == {"learning_rate": 0.01}
    html = build_from(results).html
    assert "best learning rate" in html
    assert "top 0.1 of source, in 2 variants" in html


def test_replicates_are_compared_at_the_best_rate(sqlite_url):
    findings = StudyFindings(make_tuned(sqlite_url, replicates=(1, 2, 3)))
    comparison = findings.summary.comparison
    one, two = "1×4 no gates, new state", "2×4 no gates, new state"
    assert comparison.between(one, two).mean == pytest.approx(0.2 - 0.002)
    (effect,) = (e for e in findings.effects if e.contrast.parameter == "layers")
    assert (effect.pairs, effect.seeds) == (4, 3)
    _, deeper = findings.variants
    assert deeper.mean == pytest.approx(-0.2 + 0.002, abs=1e-4)
