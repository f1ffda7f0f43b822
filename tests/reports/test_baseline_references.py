"""Studies of baseline cells, and their losses as references for gated studies."""

import math

import pytest
from factories import gated_params, make_baselines, make_replicates, make_runs, make_study

from reports.charts.chart import CELL_COLORS, category_colors
from reports.charts.comparison_plots import plot_replicates
from reports.charts.training_plots import list_color_schemes
from reports.data.study_reader import read_results
from reports.data.table_export import write_csv, write_curves, write_parquet
from reports.data.trial_table import decode_architecture
from reports.page.page import render_page
from reports.page.sections import build_section, build_sections
from reports.stats.baseline_references import (
    describe_references,
    describe_training_differences,
    find_references,
)
from reports.stats.leaderboard import rank_architectures
from rnn.config import BaselineConfig
from studies.storage.open import read_storage

pytestmark = pytest.mark.usefixtures("without_optuna_figures")


def results_of(url, *names):
    storage = read_storage(url)
    return [read_results(storage, name) for name in names]


def test_study_of_baseline_cells_has_no_switches(sqlite_url):
    make_baselines(sqlite_url)
    (results,) = results_of(sqlite_url, "cells")
    assert results.parameters == ["cell", "state_size", "bptt_steps"]
    row = results.complete.iloc[0]
    assert row["label"] == "1×4 GRU, bptt_steps 1"
    assert decode_architecture(row, results.config) == BaselineConfig("gru", 1, 4)
    section = build_section(results)
    assert section.effects_title == "Effect of each parameter"
    labels = [effect.contrast.label for effect in section.effects[0].effects]
    assert labels == ["cell GRU → LSTM", "state size 4 → 8", "bptt steps 1 → 16"]
    assert [effect.mean for effect in section.effects[0].effects] == pytest.approx([0.4, 0.2, 0.1])
    assert [choice.name for choice in section.filters] == ["Cell", "Bptt steps", "State size"]
    assert section.cost_params == ["cell", "bptt_steps", "layers", "state_size"]
    assert len(section.costs) == 8
    page = "".join(render_page([section]))
    assert "Effect of each parameter</h2>" in page
    assert "through 1 and 16 steps" in page
    assert "gate inputs" not in page


def test_labels_name_bptt_steps_unless_all_are_one(sqlite_url):
    raw = {"space": {"layers": [1], "state_size": [4]}, "training": {"bptt_steps": 16}}
    make_runs(sqlite_url, "windowed", raw, [(gated_params(), 1.0, {})])
    (results,) = results_of(sqlite_url, "windowed")
    assert results.table["architecture"].iloc[0] == "1×4 no gates, new state, bptt_steps 16"
    make_study(sqlite_url)
    (results,) = results_of(sqlite_url, "made")
    assert not results.table["label"].str.contains("bptt_steps").any()


def test_refinement_is_compared_with_a_source_of_other_bptt_steps(sqlite_url):
    make_study(sqlite_url, diverged=None)
    variants = [{"bptt_steps": 1}, {"bptt_steps": 4}]
    runs = [
        (gated_params(bptt_steps=1), 1.4, {}),
        (gated_params(bptt_steps=4), 1.2, {}),
    ]
    raw = {"refinement": {"source": "made", "variants": variants}}
    make_runs(sqlite_url, "windows", raw, runs, sources=[0])
    (results,) = results_of(sqlite_url, "windows")
    # The source does not vary it: its value is in the configuration.
    effects = {effect.variant: effect for effect in build_section(results).variants}
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
    measured, mean, tokens = results_of(sqlite_url, "measured", "mean", "tokens")
    assert measured.sources["value"].tolist() == [2.25]
    assert mean.sources["value"].tolist() == [1.5]
    assert tokens.sources.empty


def test_curves_show_the_best_of_each_baseline_cell_as_lines(sqlite_url):
    make_study(sqlite_url, finished=2)
    make_baselines(sqlite_url)
    gated, cells = build_sections(results_of(sqlite_url, "made", "cells"))
    shapes = gated.curves.figure.layout.shapes
    named = [("1×4 GRU, bptt_steps 1", 1.4), ("1×4 GRU, bptt_steps 16", 1.5),
             ("1×4 LSTM, bptt_steps 1", 1.8), ("1×4 LSTM, bptt_steps 16", 1.9)]  # fmt: skip
    assert [(shape.name, pytest.approx(shape.y0)) for shape in shapes] == named
    assert {shape.line.dash for shape in shapes}.isdisjoint({None, "solid"})
    assert "1×4 LSTM, bptt_steps 16: 1.9000" in gated.curves.alt_text
    assert "budget" not in gated.curves.caption
    low, high = gated.curves.figure.layout.yaxis.range
    assert low < 1.4
    assert high > 1.9
    assert not cells.curves.figure.layout.shapes


def test_a_cell_has_one_color_in_all_figures(sqlite_url):
    make_study(sqlite_url, finished=2)
    make_baselines(sqlite_url)
    make_baselines(sqlite_url, "lstms", space={"cell": ["lstm"], "layers": [1], "state_size": [4]})
    for others in (["cells"], ["lstms"]):
        shapes = build_sections(results_of(sqlite_url, "made", *others))[0].curves.figure.layout
        colors = {shape.line.color for shape in shapes.shapes if "LSTM" in shape.name}
        assert colors == {CELL_COLORS["lstm"]}
    (cells,) = results_of(sqlite_url, "cells")
    (by_cell,) = (each for each in list_color_schemes(cells) if each.label == "cell")
    assert by_cell.legend == [("GRU", CELL_COLORS["gru"]), ("LSTM", CELL_COLORS["lstm"])]
    # What is no cell of ours has none of these colors.
    assert not {*category_colors(["lstm", *"abcde"])[1:]} & {
        CELL_COLORS["gru"],
        CELL_COLORS["lstm"],
    }


def drawn(results, others):
    references = find_references(results, others)
    return plot_replicates(rank_architectures(results), results.metric, references).layout


def test_replicates_show_comparable_references_only(sqlite_url):
    make_replicates(sqlite_url, "tested")
    make_replicates(sqlite_url, "validated", split="validation")
    make_baselines(sqlite_url)
    tested, validated, cells = results_of(sqlite_url, "tested", "validated", "cells")
    assert not drawn(tested, [cells]).shapes, "no baseline was evaluated on the test text"
    layout = drawn(validated, [cells])
    assert [line.x0 for line in layout.shapes] == [3.5] * 4
    low, high = layout.xaxis.range
    assert low < validated.complete[validated.metric.column].min()
    assert high > 3.5
    words = describe_references(find_references(validated, [cells]), "metric")
    assert words.startswith(
        " Dashed lines: the best of each baseline cell: 1×4 GRU, bptt_steps 1: 3.5000; "
    )
    make_baselines(sqlite_url, "elsewhere", evaluation={"windows": 8})
    (elsewhere,) = results_of(sqlite_url, "elsewhere")
    assert not drawn(validated, [elsewhere]).shapes, "evaluated on other windows"


def test_references_share_the_corpus_and_state_training_differences(sqlite_url):
    make_study(sqlite_url)
    make_baselines(sqlite_url, "elsewhere", text="cd")
    make_baselines(sqlite_url, "tokens", tokenizer="bpe:300")
    make_baselines(sqlite_url, "longer", training={"steps": 20_000, "learning_rate": 0.002})
    gated, *others = results_of(sqlite_url, "made", "elsewhere", "tokens", "longer")
    references = find_references(gated, others)
    assert {each.study for each in references} == {"longer"}
    assert describe_training_differences(references) == (
        "The cells of longer were trained differently: steps 20,000 against 10,000 here, "
        "learning_rate 0.002 against 0.001 here."
    )
    assert find_references(others[0], [gated, *others]) == []


def test_references_of_several_studies_name_their_study(sqlite_url):
    make_study(sqlite_url)
    for name in ("first", "second"):
        make_baselines(sqlite_url, name)
    gated, *others = results_of(sqlite_url, "made", "first", "second")
    labels = [each.label for each in find_references(gated, others)]
    assert labels[::4] == ["1×4 GRU, bptt_steps 1 (first)", "1×4 GRU, bptt_steps 1 (second)"]


def test_references_by_another_objective_have_a_training_loss_only(sqlite_url):
    runs = [(gated_params(replicate=i), 2.0, {"validation_bits_per_byte": None}) for i in (1, 2)]
    make_runs(sqlite_url, "own", {"refinement": {"source": "x", "replicates": 2}}, runs)
    make_baselines(sqlite_url, objective="training-mean")
    gated, cells = results_of(sqlite_url, "own", "cells")
    references = find_references(gated, [cells])
    assert all(math.isnan(each.metric) for each in references)
    assert [each.training_loss for each in references] == pytest.approx([1.4, 1.5, 1.8, 1.9])


def test_baseline_and_gated_studies_are_exported_together(sqlite_url, tmp_path):
    make_study(sqlite_url)
    make_baselines(sqlite_url)
    results = results_of(sqlite_url, "made", "cells")
    write_csv(results, tmp_path / "rows.csv")
    write_parquet(results, tmp_path / "rows.parquet")
    header = (tmp_path / "rows.csv").read_text("utf-8").partition("\n")[0].split(",")
    assert {"cell", "residual", "bptt_steps"} <= set(header)
    write_curves(read_storage(sqlite_url), results[1], tmp_path / "curves.csv")
    header = (tmp_path / "curves.csv").read_text("utf-8").partition("\n")[0]
    assert header.startswith("cell,layers,state_size,bptt_steps,seconds,min_loss,loss_50,")
