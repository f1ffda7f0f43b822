"""Other studies in a report: sources of a refinement, and baseline cells as references."""

import math

import numpy as np
import pytest
from factories import (
    gated_params,
    make_baselines,
    make_replicates,
    make_runs,
    make_study,
    make_union,
    read_studies,
    results_of,
)

from reports.analysis.leaderboard import rank_architectures
from reports.analysis.other_studies import (
    compare_with_source,
    compute_variant_effects,
    find_references,
)
from reports.charts.comparison_plots import plot_replicates
from reports.page.page import render_page
from reports.page.section import Section, build_sections
from reports.phrases import describe_references
from reports.results import find_replicates
from reports.trial_table import decode_architecture
from rnn.config import BaselineConfig
from rnn_search import load
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
    assert (wider.variant, wider.pairs, wider.improved_count) == ("state size 16", 2, 2)
    assert wider.mean == pytest.approx((-0.2 - 0.1) / 2)
    figure = Section(results).slopes.figure
    assert [trace.name for trace in figure.data] == ["unchanged", "state size 16"]
    assert list(figure.data[1].y) == [1.5, 1.2, None, 1.6, 1.2, None]
    # It is reported without its source as well.
    storage = open_storage(derived)
    storage.delete_study(storage.get_study_id_from_name("made"))
    storage.close()
    section = Section(results_of(derived, "derived"))
    assert section.slopes is None
    assert "refinement.top=2" in "".join(render_page([section]))


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
    section = Section(results_of(sqlite_url, "derived"))
    (deeper,) = (each for each in section.variants if each.variant == "layers 3")
    assert deeper.is_significant
    effect = next(e for e in section.main_effects.effects if e.contrast.parameter == "layers")
    for each in (deeper, effect):
        assert (each.pairs, each.mean) == (2, pytest.approx(0.01, abs=0.002))
    # By plain means three layers would lead.
    labels = [entry.label for entry in section.findings.summary.leaderboard]
    assert [label[:3] for label in labels] == ["1×4", "3×4", "1×8", "3×8"]


def test_refinement_is_compared_with_a_source_of_other_bptt_steps(sqlite_url):
    make_study(sqlite_url, diverged=None)
    variants = [{"bptt_steps": 1}, {"bptt_steps": 4}]
    runs = [(gated_params(bptt_steps=1), 1.4, {}), (gated_params(bptt_steps=4), 1.2, {})]
    raw = {"refinement": {"source": "made", "variants": variants}}
    make_runs(sqlite_url, "windows", raw, runs, sources=[0])
    (results,) = read_studies(sqlite_url, "windows")
    # The source does not vary it: its value is in the configuration.
    unchanged, longer = Section(results).variants
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
    make_runs(sqlite_url, "tokens", raw | {"tokenizer": "bpe:300"}, [(gated_params(), 2.0, {})])
    measured, mean, tokens = read_studies(sqlite_url, "measured", "mean", "tokens")
    assert measured.sources["value"].tolist() == [2.25]
    assert mean.sources["value"].tolist() == [1.5]
    assert tokens.sources.empty


def test_replicates_and_references_are_those_by_the_same_objective(sqlite_url):
    space = {"layers": [1], "state_size": [4]}
    runs = [(gated_params(), 2.0, {"training_loss": 1.5})]
    make_runs(sqlite_url, "made", {"space": space}, runs)
    replicates = [
        (gated_params(replicate=run), 2.1, {"training_loss": 1.6, "validation_loss": 2.1})
        for run in (1, 2)
    ]
    raw = {"refinement": {"source": "made", "replicates": 2}}
    make_runs(sqlite_url, "again", raw, replicates)
    make_baselines(sqlite_url)
    names = ("made:training", "again:training", "again", "cells", "cells:training")
    made, again, own, cells, cells_by = read_studies(sqlite_url, *names)
    found = find_replicates(made, [own, again])
    assert list(found["value"]) == [1.6, 1.6]
    assert set(found["study"]) == {"again by smoothed training loss"}
    assert find_replicates(made, [own]) is None
    effects = load("made", storage=sqlite_url, objective="training").effects()
    assert list(effects.findings.results.replicates["value"]) == [1.6, 1.6]
    references = find_references(made, [cells, cells_by])
    assert [each.metric for each in references] == [
        each.metric for each in find_references(made, [cells_by])
    ]
    assert not any(math.isnan(each.metric) for each in references)
    assert all(math.isnan(each.metric) for each in find_references(made, [cells]))


def test_curves_show_the_best_of_each_baseline_cell_as_lines(sqlite_url):
    """Baseline cells have no switches."""
    make_study(sqlite_url, finished=2)
    make_baselines(sqlite_url)
    gated, cells = build_sections(read_studies(sqlite_url, "made", "cells"))
    shapes = gated.curves.figure.layout.shapes
    names = ["1×4 GRU, bptt steps 1", "1×4 GRU, bptt steps 16", "1×4 LSTM, bptt steps 1",
             "1×4 LSTM, bptt steps 16"]  # fmt: skip
    assert [shape.name for shape in shapes] == names
    assert [shape.y0 for shape in shapes] == pytest.approx([1.4, 1.5, 1.8, 1.9])
    assert "1×4 LSTM, bptt steps 16: 1.9." in gated.curves.alt_text
    low, high = gated.curves.figure.layout.yaxis.range
    assert low < 1.4 < 1.9 < high
    assert not cells.curves.figure.layout.shapes
    assert cells.results.parameters == ["cell", "state_size", "bptt_steps"]
    first = cells.results.complete.iloc[0]
    assert decode_architecture(first, cells.results.config) == BaselineConfig("gru", 1, 4)


def drawn(results, others):
    references = find_references(results, others)
    return plot_replicates(rank_architectures(results), results.metric, references).layout


def test_replicates_show_comparable_references_only(sqlite_url):
    make_replicates(sqlite_url, "tested")
    make_replicates(sqlite_url, "validated", split="validation")
    make_baselines(sqlite_url)
    tested, validated, cells = read_studies(sqlite_url, "tested", "validated", "cells")
    assert not drawn(tested, [cells]).shapes, "no baseline was evaluated on the test text"
    layout = drawn(validated, [cells])
    assert [line.x0 for line in layout.shapes] == [3.5] * 4
    make_baselines(sqlite_url, "elsewhere", evaluation={"windows": 8})
    (elsewhere,) = read_studies(sqlite_url, "elsewhere")
    assert not drawn(validated, [elsewhere]).shapes, "evaluated on other windows"


def test_references_share_the_corpus_and_state_training_differences(sqlite_url):
    make_study(sqlite_url)
    make_union(sqlite_url)
    make_baselines(sqlite_url, "elsewhere", text="cd")
    make_baselines(sqlite_url, "tokens", tokenizer="bpe:300")
    space = {"cell": ["gru", "lstm"], "layers": [1], "state_size": [4]}
    space["training"] = {"bptt_steps": [4], "learning_rate": [0.002]}
    make_baselines(sqlite_url, "longer", space=space, training={"steps": 20_000})
    gated, *others = read_studies(sqlite_url, "made", "elsewhere", "tokens", "longer")
    references = find_references(gated, others)
    assert {each.study for each in references} == {"longer"}
    words = describe_references(references, "training_loss", gated.scale)
    assert "steps 20,000 against 10,000 here" in words
    assert "learning_rate 0.002 against 0.001 here, bptt_steps 4 against 1 here" in words
    assert {each.label for each in references} == {"1×4 GRU", "1×4 LSTM"}, "no setting varies"
    assert find_references(others[0], [gated, *others]) == []
    (union,) = read_studies(sqlite_url, "union")
    (gru,) = find_references(gated, [gated, union])
    assert (gru.label, gru.training_loss) == ("2×8 GRU", 1.72)
    assert find_references(union, [gated, union]) == [], "it has its own"
