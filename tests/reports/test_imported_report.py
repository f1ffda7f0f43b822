"""Reports, figures and tables of imported studies: what is said, and what is not."""

import itertools
import random
import re
from dataclasses import replace

import pandas as pd
import pytest
from optuna_dashboard import get_note

from reports.charts.chart import IMPROVES, WORSENS
from reports.charts.effect_plots import effect_color
from reports.dashboard.note import render_imported_note
from reports.dashboard.publish import publish_study
from reports.data.study_reader import read_results
from reports.data.table_export import write_csv
from reports.page.answer import answer_question, format_headline
from reports.page.imported_section import build_imported_section, describe_uncompared
from reports.page.page import render_page
from reports.stats.conditional_effects import describe_insignificance
from rnn_search import load
from studies.importing import ImportOptions, import_results
from studies.storage.open import load_study, open_storage, read_storage

pytestmark = pytest.mark.usefixtures("without_optuna_figures")

FOREIGN_WORDS = ("bytes", "nats", "network", "corpus", "architecture", "bits per", "Adam with")
"""Words about networks, which a report about anything else has no reason to say."""


def grid_rows() -> list[dict]:
    """Return a grid of four parameters and an accuracy, of which the effects are known."""
    generator = random.Random(1)
    values = (["adam", "sgd"], [0.001, 0.01, 0.1], [2, 4, 8], [False, True])
    names = ("optimizer", "learning_rate", "depth", "batch norm")
    rows = []
    for each in itertools.product(*values):
        row = dict(zip(names, each, strict=True))
        accuracy = 0.8 + 0.03 * (row["optimizer"] == "adam") + 0.015 * row["batch norm"]
        accuracy -= 0.04 * (row["learning_rate"] == 0.1)
        rows.append(row | {"accuracy": round(accuracy + generator.gauss(0, 0.003), 4)})
    return rows


@pytest.fixture
def results_of(tmp_path):
    """Import rows as a study; return its results."""

    def read(rows: list[dict], **options):
        path = tmp_path / "table.csv"
        pd.DataFrame(rows).to_csv(path, index=False)
        url = f"sqlite:///{tmp_path}/studies.db"
        options = ImportOptions(**options)
        import_results(url, path, options, command="rnn-search import table.csv")
        return read_results(read_storage(url), "table", drawn_only=True)

    return read


@pytest.fixture
def grid(results_of):
    return results_of(
        grid_rows(), value="accuracy", maximize=True, question="What makes it accurate?"
    )


def text_of(results) -> str:
    page = "".join(render_page([build_imported_section(results)]))
    return page[page.index("<main>") : page.index("</main>")]


def test_higher_accuracy_is_better_everywhere(grid):
    section = build_imported_section(grid)
    best = section.summary.best
    assert best.mean == max(row["accuracy"] for row in grid_rows())
    assert grid.table["value"].is_monotonic_decreasing
    effects = {each.contrast.label: each for each in section.effects[0].effects}
    norm, optimizer = effects["batch norm"], effects["optimizer adam → sgd"]
    assert norm.improved_count / norm.pairs > 0.9
    assert (effect_color(norm), effect_color(optimizer)) == (IMPROVES, WORSENS)
    line = format_headline([section])
    assert f"{best.mean:.4f}, accuracy" in line


def claims_of(rule: str) -> list[dict]:
    """Return a hypothesis about batch norm and one about the optimizer."""
    pairs = (("batch norm", False, True), ("optimizer", "adam", "sgd"))
    return [
        {"claim": f"{name} {rule}", "rule": rule, "margin": 0.004}
        | {"contrasts": [{"before": {name: before}, "after": {name: after}}]}
        for name, before, after in pairs
    ]


@pytest.mark.parametrize("maximize", [True, False])
def test_hypotheses_and_outcomes_mean_the_direction_of_the_value(results_of, maximize):
    # The accuracy, or the error: batch norm is good for both, sgd bad for both.
    sign, threshold = (1, 0.818) if maximize else (-1, 0.182)
    rows = [
        row | {"accuracy": row["accuracy"] if maximize else 1 - row["accuracy"]}
        for row in grid_rows()
    ]
    results = results_of(
        rows,
        value="accuracy",
        maximize=maximize,
        threshold=threshold,
        nuisance=["learning_rate"],
        hypotheses=[*claims_of("raises"), *claims_of("lowers")],
    )
    best = results.judge().set_index(["optimizer", "depth", "batch norm"])["value"]
    found = pd.DataFrame(rows).groupby(["optimizer", "depth", "batch norm"])["accuracy"]
    assert best.to_dict() == (found.max() if maximize else found.min()).to_dict()
    section = build_imported_section(results)
    assert {each.contrast.parameter for each in section.effects[0].effects} == {
        "optimizer", "depth", "batch norm"
    }  # fmt: skip
    outcomes = {each.contrast.parameter: each for each in section.outcomes[0].outcomes}
    assert outcomes["batch norm"].gain > 0 > outcomes["optimizer"].gain
    holds, fails = ("holds", "does not hold")[::sign]
    verdicts = [each.findings[0].verdict for each in section.hypotheses]
    assert verdicts == [holds, fails, fails, holds]
    page = text_of(results)
    assert "Exploratory, added on" in page
    assert "after 36 of 36 trials were finished" in page
    assert f"are {'above' if maximize else 'below'} {threshold}" in page
    assert "architecture" not in page
    assert results.nuisance == ["learning_rate"]


def test_configuration_with_replicates_is_judged_at_the_values_of_the_best_mean(results_of):
    # The best run is at 0.1, the best mean at 0.2.
    runs = {0.1: (0.95, 0.5), 0.2: (0.8, 0.81)}
    generator = random.Random(0)
    rows = [
        {"lr": lr, "act": act, "depth": depth, "seed": seed}
        | {"value": value - (act == "relu") + generator.gauss(0, 0.01)}
        for lr, values in runs.items() for seed, value in enumerate(values)
        for act in ("gelu", "relu") for depth in range(4)
    ]  # fmt: skip
    results = results_of(rows, maximize=True, nuisance=["lr"])
    assert set(results.judge()["lr"]) == {0.2}
    section = build_imported_section(results)
    effects = {each.contrast.label: each.mean for each in section.effects[0].effects}
    at_best = pd.DataFrame(rows).query("lr == 0.2").groupby("act")["value"].mean()
    assert effects["act gelu → relu"] == pytest.approx(at_best["relu"] - at_best["gelu"])
    assert section.summary.best.full_label.endswith("lr 0.2")
    assert "configurations best here" in text_of(results)


def test_page_of_a_grid_says_nothing_about_networks(grid):
    page = text_of(grid)
    assert "What makes it accurate?" in page
    assert "rnn-search import table.csv" in page
    for word in FOREIGN_WORDS:
        assert word not in page, word
    for anchor in ("curves", "code", "cost", "memory", "samples", "hypotheses"):
        assert f'id="s1-{anchor}"' not in page


def test_metric_has_its_own_name_and_unit(results_of):
    rows = [{"n": n, "k": k, "time": 100 * n + k} for n in (1, 2, 3) for k in (1, 2)]
    results = results_of(rows, value="time", metric="build time", unit="s")
    assert '101.0 <span class="unit">s</span>' in text_of(results)
    assert results.metric.axis_title == "build time (s)"
    section = build_imported_section(results)
    for text in (format_headline([section]), render_imported_note(results, section.ranked_effects)):
        assert "hether any effect differs from zero cannot be decided: each has fewer" in text
    first, *others = (each.main for each in section.ranked_effects)
    assert "none is" in describe_insignificance([replace(first, pairs=8), *others])


def test_mean_that_is_adjusted_for_missing_runs_is_named_so(results_of):
    rows = [{"lr": lr, "seed": s, "value": lr + s} for lr, s in ((1, 1), (1, 2), (2, 1), (0, 2))]
    results = results_of(rows)
    assert "1.500, value, adjusted mean of 1 run;" in format_headline(
        [build_imported_section(results)]
    )


def test_continuous_parameters_are_not_paired_and_the_page_says_so(results_of):
    generator = random.Random(0)
    rows = [
        {"rate": generator.uniform(1e-5, 1e-1), "flag": i % 2 == 0, "value": i} for i in range(60)
    ]
    section = build_imported_section(results_of(rows))
    assert describe_uncompared(section)
    assert section.effects[0].effects == []
    assert "no effect can be estimated: no two" in format_headline([section])
    assert "No effect can be estimated" in render_imported_note(section.results, [])
    assert 'id="s1-effects"' not in "".join(render_page([section]))


def test_answer_hides_no_undecided_effect_and_no_parameter_that_is_not_compared(results_of):
    rows = [
        {"epochs": epochs, "decay": decay, "tied": f"{decay}x", "on": on}
        | {"value": 2 - 0.2 * (epochs > 10) - 0.05 * (on == "yes") + 0.003 * (i * 7 % 5)}
        for i, (epochs, decay, on) in enumerate(
            itertools.product((10, 20, 40), (1, 5, 25), ("no", "yes"))
        )
    ]
    section = build_imported_section(results_of(rows))
    largest, others = answer_question(section)
    assert "falls with <strong>on" in largest
    assert "pochs 10 → 20</strong> (−0.1990 [−0.2071, −0.1909])" in others
    assert "<strong>decay</strong> and <strong>tied</strong> are not compared: no two" in others
    assert "; decay and tied are not compared: no two" in format_headline([section])


def test_html_in_names_and_values_is_text(results_of):
    rows = [{"<b>x</b>": x, "y": y, "value": len(x) + y}
            for x in ("<script>alert(1)</script>", "plain") for y in (1, 2, 3)]  # fmt: skip
    page = text_of(results_of(rows))
    assert "<script>alert" not in page
    assert "<b>x</b>" not in page


def test_pruned_trials_of_a_sampler_are_called_a_selection(results_of):
    rows = [{"params_n": n, "state": "COMPLETE", "loss_1": n, "value": n} for n in range(6)]
    rows += [{"params_n": n, "state": "PRUNED", "loss_1": n} for n in (6, 7)]
    page = text_of(results_of(rows))
    assert re.search("2 trials were pruned.* selection", page)
    assert "A sampler may have chosen later trials" in page
    assert 'id="s1-curves"' in page


def test_table_and_api_have_parameters_and_values_only(grid, tmp_path):
    write_csv([grid], tmp_path / "out.csv")
    columns = set(pd.read_csv(tmp_path / "out.csv").columns)
    assert "optimizer" in columns
    assert not {"seconds", "parameter_count", "torch"} & columns
    study = load("table", storage=f"sqlite:///{tmp_path}/studies.db")
    assert list(study.results.columns[:3]) == ["label", "state", "value"]
    assert study.best.value == study.results["value"].max()
    table = study.effects().table
    assert table.loc[table["parameter"] == "batch norm", "effect"].item() > 0
    assert study.status.is_finished


def test_dashboard_has_note_and_figure_of_an_imported_study(grid, tmp_path):
    storage = open_storage(f"sqlite:///{tmp_path}/studies.db")
    publish_study(storage, "table", pytest.fail)
    study = load_study(storage, "table")
    note = get_note(study)
    assert "## What makes it accurate?" in note
    assert f"{max(row['accuracy'] for row in grid_rows()):.4f}" in note
    for word in FOREIGN_WORDS:
        assert word not in note, word
    attributes = storage.get_study_system_attrs(study._study_id)
    assert any("plot_data" in key for key in attributes)
    storage.close()
