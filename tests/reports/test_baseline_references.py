"""Studies of baseline cells, and their losses as references for gated studies."""

import pytest
from factories import (
    gated_params,
    make_baselines,
    make_replicates,
    make_runs,
    make_study,
    make_union,
    read_studies,
)

from reports.analysis.leaderboard import rank_architectures
from reports.analysis.other_studies import find_references
from reports.charts.comparison_plots import plot_replicates
from reports.page.section import Section, build_sections
from reports.phrases import describe_training_differences
from reports.trial_table import decode_architecture
from rnn.config import BaselineConfig

pytestmark = pytest.mark.usefixtures("without_optuna_figures")


def test_study_of_baseline_cells_has_no_switches(sqlite_url):
    make_baselines(sqlite_url)
    (results,) = read_studies(sqlite_url, "cells")
    assert results.parameters == ["cell", "state_size", "bptt_steps"]
    row = results.complete.iloc[0]
    assert row["label"] == "1×4 GRU, bptt steps 1"
    assert decode_architecture(row, results.config) == BaselineConfig("gru", 1, 4)
    section = Section(results)
    labels = [effect.contrast.label for effect in section.main_effects.effects]
    assert labels == ["cell GRU → LSTM", "state size 4 → 8", "bptt steps 1 → 16"]
    means = [effect.mean for effect in section.main_effects.effects]
    assert means == pytest.approx([0.4, 0.2, 0.1])


def test_refinement_is_compared_with_a_source_of_other_bptt_steps(sqlite_url):
    make_study(sqlite_url, diverged=None)
    variants = [{"bptt_steps": 1}, {"bptt_steps": 4}]
    runs = [(gated_params(bptt_steps=1), 1.4, {}), (gated_params(bptt_steps=4), 1.2, {})]
    raw = {"refinement": {"source": "made", "variants": variants}}
    make_runs(sqlite_url, "windows", raw, runs, sources=[0])
    (results,) = read_studies(sqlite_url, "windows")
    # The source does not vary it: its value is in the configuration.
    effects = {effect.variant: effect for effect in Section(results).variants}
    assert list(effects) == ["unchanged", "bptt steps 4"]
    assert effects["bptt steps 4"].source_difference == pytest.approx(1.2 - 1.5)
    assert effects["bptt steps 4"].mean == pytest.approx(1.2 - 1.4)


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


def test_curves_show_the_best_of_each_baseline_cell_as_lines(sqlite_url):
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
    assert low < 1.4
    assert high > 1.9
    assert not cells.curves.figure.layout.shapes


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


def test_gated_trials_are_compared_with_the_baselines_of_a_union(sqlite_url):
    make_union(sqlite_url)
    make_study(sqlite_url)
    gated, union = read_studies(sqlite_url, "made", "union")
    (reference,) = find_references(gated, [gated, union])
    assert (reference.label, reference.training_loss) == ("2×8 GRU", 1.72)
    assert find_references(union, [gated, union]) == [], "it has its own"


def test_references_share_the_corpus_and_state_training_differences(sqlite_url):
    make_study(sqlite_url)
    make_baselines(sqlite_url, "elsewhere", text="cd")
    make_baselines(sqlite_url, "tokens", tokenizer="bpe:300")
    space = {"cell": ["gru", "lstm"], "layers": [1], "state_size": [4]}
    space["training"] = {"bptt_steps": [4], "learning_rate": [0.002]}
    make_baselines(sqlite_url, "longer", space=space, training={"steps": 20_000})
    gated, *others = read_studies(sqlite_url, "made", "elsewhere", "tokens", "longer")
    references = find_references(gated, others)
    assert {each.study for each in references} == {"longer"}
    words = describe_training_differences(references)
    assert "steps 20,000 against 10,000 here" in words
    assert "learning_rate 0.002 against 0.001 here, bptt_steps 4 against 1 here" in words
    assert {each.label for each in references} == {"1×4 GRU", "1×4 LSTM"}, "no setting varies"
    assert find_references(others[0], [gated, *others]) == []
