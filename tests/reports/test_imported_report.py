"""Reports, figures and tables of imported studies: what is said, and what is not."""

import itertools
import math
import random
from dataclasses import replace

import pandas as pd
import pytest
from pages import BuiltPage, build_from, read_answer

from reports.analysis.leaderboard import rank_architectures
from reports.charts.chart import IMPROVES, WORSENS
from reports.final_report import write_csv
from reports.findings import StudyFindings
from reports.sentences import describe_insignificance
from reports.study_reader import read_results
from rnn_search import load
from rnn_search.printed_results import Effects
from studies.importing import ImportOptions, import_results
from studies.stated_hypotheses import Hypothesis, register
from studies.storage.open import read_storage

pytestmark = pytest.mark.usefixtures("without_optuna_figures")

FOREIGN_WORDS = ("bytes", "nats", "network", "corpus", "architecture", "bits per", "Adam with")
"""Words about networks, which a report about anything else has no reason to say."""


def grid_rows() -> list[dict]:
    """Return a grid of four parameters and an accuracy, of which the effects are known."""
    generator = random.Random(1)
    values = (["adam", "sgd"], [0.001, 0.01, 0.1], [2, 4, 8], [False, True])
    names = ("optimizer", "learning_rate", "depth", "batch norm")
    rows = []
    for combination in itertools.product(*values):
        row = dict(zip(names, combination, strict=True))
        accuracy = 0.8 + 0.03 * (row["optimizer"] == "adam") + 0.015 * row["batch norm"]
        accuracy -= 0.04 * (row["learning_rate"] == 0.1)
        rows.append(row | {"accuracy": round(accuracy + generator.gauss(0, 0.003), 4)})
    return rows


@pytest.fixture
def results_of(tmp_path):
    """Import rows as a study; return its results."""

    def read(rows: list[dict], name: str = "table", **options):
        url = f"sqlite:///{tmp_path}/studies.db"
        source = tmp_path / f"{name}.csv"
        pd.DataFrame(rows).to_csv(source, index=False)
        import_results(url, source, ImportOptions(**options))
        return read_results(read_storage(url), name, drawn_only=True)

    return read


@pytest.fixture
def grid(results_of):
    return results_of(grid_rows(), value="accuracy", maximize=True)


def tuned_rows() -> list[dict]:
    """Return runs that are best at the highest rate with norm, and at any without."""
    generator = random.Random(2)
    grid = itertools.product(range(1, 9), (2, 4), (False, True), (0.01, 0.1, 1.0))
    return [
        {"width": width, "depth": depth, "norm": norm, "rate": rate}
        | {"value": 2 - 0.05 * width - 0.2 * norm + (depth == 4) * (0.5 - 0.6 * norm)
           - norm * 0.25 * math.log10(rate) + generator.gauss(0, 0.02)}
        for width, depth, norm, rate in grid
    ]  # fmt: skip


def about_norm(expect: str, is_reversed: bool, **where) -> Hypothesis:
    """Return a hypothesis about norm, or the same about values with the other sign."""
    change = {"parameter": "norm", "before": is_reversed, "after": not is_reversed}
    test = {"expect": expect, "margin": 0.05, "where": where}
    return Hypothesis(statement=f"{expect} {where}", **change, **test)


def test_negated_study_that_is_maximized_has_mirrored_findings(results_of):
    results = []
    for sign in (1, -1):
        imported = results_of(
            [row | {"value": sign * row["value"]} for row in tuned_rows()],
            f"twin{sign}",
            maximize=sign < 0,
            nuisance=["rate"],
            parameters=["width", "depth", "norm", "rate"],
        )
        hypotheses = [
            about_norm("lower", sign < 0),
            about_norm("lower", sign < 0, depth=2),
            about_norm("no difference", sign < 0, depth=4),
        ]
        config = imported.config.model_copy(update={"report_threshold": 1.7 * sign})
        records = register([], hypotheses, 0)
        results.append(replace(imported, config=config, hypotheses=records))
    pages = [build_from(study) for study in results]
    first, second = (page.findings for page in pages)
    effects, mirrored = (Effects(findings).to_frame() for findings in (first, second))
    assert len(effects) == 9
    assert effects["significant"].tolist() == mirrored["significant"].tolist()
    mirrored = mirrored.rename(columns={"low": "high", "high": "low"})
    numbers = ["effect", "low", "high"]
    assert effects[numbers].to_numpy() == pytest.approx(-mirrored[numbers].to_numpy())
    norm = effects.set_index("parameter").loc["norm", "effect"]
    assert norm == pytest.approx(-0.5, abs=0.03), "the mean over depths, at the best rates"
    solved = ["threshold_before", "threshold_after", "threshold_p"]
    assert effects[solved].equals(mirrored[solved])
    assert effects.set_index("parameter").loc["norm", solved[:2]].nunique() == 2
    for findings in (first, second):
        verdicts = [test.verdict for test in findings.hypotheses]
        assert verdicts == ["holds", "holds", "does not hold"]
    best, same = first.summary.best, second.summary.best
    assert (best.label, best.best_values) == (same.label, same.best_values)
    for page, words in zip(pages, ("value below 1.7", "value above −1.7"), strict=True):
        text = text_of(page)
        for expected in (words, "best rate", "Hypotheses"):
            assert expected in text


def text_of(page: BuiltPage) -> str:
    """Return the text of the page about a study, which has no words about networks."""
    for word in FOREIGN_WORDS:
        assert word not in page.words, word
    return page.words


def test_higher_accuracy_is_better_everywhere(grid):
    page = build_from(grid)
    best = page.findings.summary.best
    assert best.loss == max(row["accuracy"] for row in grid_rows())
    assert grid.table["value"].is_monotonic_decreasing
    (drawn,) = page.parts[0].chart.figure.data
    colors = dict(zip(drawn.y, drawn.marker.color, strict=True))
    assert colors["batch norm"] == IMPROVES
    assert colors["optimizer adam → sgd"] == WORSENS
    shares = page.read_column(" effects", "improved")
    assert float(shares[list(drawn.y).index("batch norm")]) > 90
    assert f", accuracy {best.loss:.4f}; " in read_answer(page.findings)[-1]


def test_page_and_table_of_a_grid_say_nothing_about_networks(grid, tmp_path):
    page = build_from(grid)
    text = text_of(page)
    command = f"rnn-search import {tmp_path}/table.csv --value accuracy --maximize --parameters"
    assert command in text
    assert list(page.sections) == ["effects", "leaderboard", "setup"]
    url = f"sqlite:///{tmp_path}/studies.db"
    study = load("table", storage=url)
    assert list(study.results.columns[:3]) == ["label", "state", "value"]
    assert study.best.value == study.results["value"].max()
    frame = study.effects().to_frame()
    assert frame.loc[frame["parameter"] == "batch norm", "effect"].item() > 0
    assert study.status.is_finished
    write_csv([grid], tmp_path / "out.csv")
    columns = set(pd.read_csv(tmp_path / "out.csv").columns)
    assert "optimizer" in columns
    assert not {"seconds", "parameter_count", "torch"} & columns


def test_metric_has_its_own_name_and_unit_and_few_pairs_are_no_test(results_of, tmp_path):
    """Names and values are text, even if they look like HTML."""
    rows = [
        {"<b>n</b>": n, "k": k, "time": 100 * n + len(k)}
        for n in (1, 2, 3)
        for k in ("x", "<script>")
    ]
    results = results_of(rows, value="time", metric="build time", unit="s")
    page = build_from(results)
    assert ", build time 101.0 s; " in text_of(page)
    assert "<b>n</b>" not in page.html
    assert "<script>, " not in page.html
    assert results.metric.axis_title == "build time (s)"
    effects = load("table", storage=f"sqlite:///{tmp_path}/studies.db").effects()
    for lines in (read_answer(page.findings), effects.answer):
        assert "too few pairs to test: 3 of 4" in lines[0]
    first, *others = page.findings.effects
    mixed = describe_insignificance([replace(first, differences=4), *others])
    assert mixed == "no change has a significant effect"


def test_mean_that_is_adjusted_for_missing_runs_is_named_so(results_of):
    rows = [{"lr": lr, "seed": s, "value": lr + s} for lr, s in ((1, 1), (1, 2), (2, 1), (0, 2))]
    page = build_from(results_of(rows))
    assert "Means are adjusted for the replicates that are missing." in text_of(page)
    assert page.read_column("leaderboard", "value")[0] == "1.500"


def test_nuisance_of_replicates_has_the_value_of_the_best_mean(results_of):
    runs = {0.1: (0.9, 0.1), 0.2: (0.6, 0.7)}  # the first has the best run
    rows = [
        {"width": width, "rate": rate, "seed": seed, "value": value + width}
        for width in (1, 2)
        for rate, values in runs.items()
        for seed, value in enumerate(values)
    ]
    best = StudyFindings(results_of(rows, maximize=True, nuisance=["rate"])).summary.best
    assert (best.label, best.best_values, best.losses) == ("width 2", {"rate": 0.2}, [2.7, 2.6])


def test_answer_hides_no_undecided_effect_and_no_parameter_that_is_not_compared(results_of):
    rows = [
        {"epochs": epochs, "decay": decay, "tied": f"{decay}x", "on": on}
        | {"value": 2 - 0.2 * (epochs > 10) - 0.05 * (on == "yes") + 0.003 * (i * 7 % 5)}
        for i, (epochs, decay, on) in enumerate(
            itertools.product((10, 20, 40), (1, 5, 25), ("no", "yes"))
        )
    ]
    *lines, _ = read_answer(StudyFindings(results_of(rows)))
    assert lines == [
        "epochs 10 → 20 lowers the value by 0.1990 [0.1909, 0.2071]",
        "on no → yes lowers the value by 0.0507 [0.0446, 0.0567]",
        "epochs 20 → 40 is undecided",
        "decay and tied: not compared, no two trials differ in one of them alone",
    ]


def test_pruned_trials_of_a_sampler_are_called_a_selection(results_of):
    rows = [{"params_n": n, "state": "COMPLETE", "loss_1": n, "value": n} for n in range(6)]
    rows += [{"params_n": n, "state": "PRUNED", "loss_1": n} for n in (6, 7)]
    page = build_from(results_of(rows))
    text = text_of(page)
    assert "Pruned 2 of 8 the complete runs are a selection" in text
    assert "A sampler may have chosen later trials" in text
    assert "curves" in page.sections


@pytest.mark.parametrize(
    ("values", "maximize", "is_clipped"),
    [
        ([0.01, 0.05, 0.2, 0.3], False, True),
        ([0.01, 0.05, -0.2, 0.3], False, False),
        ([0.01, 0.05, 0.2, 0.3], True, False),
    ],
)
def test_interval_of_a_minimized_metric_without_negative_values_ends_at_zero(
    results_of, values, maximize, is_clipped
):
    rows = [
        {"depth": 1 + place // 2, "seed": place % 2, "loss": value}
        for place, value in enumerate(values)
    ]
    results = results_of(rows, value="loss", maximize=maximize)
    entries = {entry.label: entry for entry in rank_architectures(results)}
    first = entries["depth 1"]
    assert first.high > 0.2
    assert first.low == (0 if is_clipped else pytest.approx(0.06 - first.high))
