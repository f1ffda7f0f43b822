"""Architectures ranked by held-out text and against costs, and the page about them."""

import math
import re

import numpy as np
import pytest
from factories import (
    NO_GATES,
    RATES,
    gated_params,
    make_replicates,
    make_runs,
    make_stated,
    make_study,
    results_of,
)
from pages import build_from

from reports.analysis.leaderboard import find_front, rank_architectures
from reports.charts.network_plots import chart_costs, chart_states
from reports.findings import StudyFindings
from rnn.errors import UserError
from rnn_search import list_studies, load
from search.status import format_best
from studies.config import StudyConfig

pytestmark = pytest.mark.usefixtures("without_optuna_figures")

BEST, SMALLER, WORST = (f"{shape} no gates, new state" for shape in ("2×4", "1×4", "1×8"))


@pytest.mark.parametrize("split", ["test", "validation"])
def test_replicates_are_ranked_by_held_out_text(sqlite_url, split):
    make_replicates(sqlite_url, split=split)
    results = results_of(sqlite_url, "replicates")
    column = f"{split}_bits_per_byte"
    assert (results.metric.column, results.metric.unit) == (column, "bits per byte")
    # Their values have the opposite order.
    entries = rank_architectures(results)
    assert [entry.label for entry in entries] == [BEST, SMALLER, WORST]
    means = results.complete.groupby("architecture")[column].mean()
    assert entries[0].loss == pytest.approx(means[BEST])
    # Everything else names the same one: status, list, Python and the verdicts.
    study = load("replicates", storage=sqlite_url)
    assert study.best.number == entries[0].number == 0
    assert study.verdicts().to_frame()["architecture"][0] == BEST
    line = f"mean of 3 runs 2.4081 bits per byte, {split} loss"
    assert format_best(study.status) == f"{line} ({BEST}, best run trial 0)"
    (listed,) = list_studies(storage=sqlite_url)
    assert (f"{listed.best:.4f}", listed.best_unit) == ("2.4081", "bits per byte")


def test_replicates_without_held_out_losses_are_ranked_by_their_values(sqlite_url):
    lost, numbers = {"validation_bits_per_byte": None}, (0, 1, 2)
    runs = [(gated_params(n, replicate=i), n + i / 100, lost) for n in (1, 2) for i in numbers]
    make_runs(sqlite_url, "replicates", {"refinement": {"source": "made", "replicates": 3}}, runs)
    findings = StudyFindings(results_of(sqlite_url, "replicates"))
    assert findings.results.metric.is_value
    assert [entry.loss for entry in findings.summary.entries] == pytest.approx([1.01, 2.01])
    comparison = findings.summary.comparison
    assert comparison.generalizes_over_runs


def test_page_names_the_smallest_architecture_that_is_as_good(build_page):
    page = build_page(make_replicates, "replicates")
    comparison = page.findings.summary.comparison
    assert comparison.between(WORST, BEST).windows == 4
    assert [comparison.between(name, BEST).is_significant for name in (SMALLER, WORST)] == [
        False,
        True,
    ]
    assert page.findings.summary.smallest.label == SMALLER
    chart = page.chart("Pairwise differences")
    gray, colored = chart.figure.data
    # Differences that are not significant are in parentheses and not colored.
    assert gray.text[0][1].startswith("(−0.00")
    assert gray.z[0][1] < 0
    assert math.isnan(gray.z[0][2])
    assert colored.text[0][2].startswith("−0.5")
    assert colored.z[0][2] < -0.4
    assert math.isnan(colored.z[0][1])
    table = page.html.partition("leaderboard</caption>")[2].partition("</table>")[0]
    pattern = r"<th scope=\"row\">(.*?)</th>.*?<td>([a-z ]+)</td>"
    rows = re.findall(pattern, table, re.DOTALL)
    assert rows == [
        ("2×4 no gates", "best mean"),
        ("1×4 no gates", "as good"),
        ("1×8 no gates", "worse"),
    ]


def test_labels_leave_out_what_all_architectures_have_in_common(build_page):
    made = build_page(make_study).read_column("leaderboard", "architecture")
    assert made[:4] == ["1×4 no gates", "1×8 no gates", "2×4 no gates", "1×4 no gates, residual"]
    stated = build_page(make_stated, "stated").read_column("leaderboard", "architecture")
    assert stated[:2] == [
        "1×16 forget gate, new state, residual",
        "1×16 forget gate, both states, residual",
    ]


def test_architecture_with_one_run_has_no_bound(sqlite_url):
    """The third has one of three runs, the fourth none."""
    runs = [
        (gated_params(layers, replicate=run), loss, {"validation_bits_per_byte": loss})
        for layers, count in ((1, 3), (2, 3), (3, 1), (4, 0))
        for run in (1, 2, 3)
        for loss in [2 + layers * run % 4 / 100 if run <= count else math.nan]
    ]
    make_runs(sqlite_url, "replicates", {"refinement": {"source": "made", "replicates": 3}}, runs)
    page = build_from(results_of(sqlite_url, "replicates"))
    assert "1 without a complete run" in page.words
    assert "inf" not in page.words
    verdicts = load("replicates", storage=sqlite_url).verdicts()
    assert len(verdicts.to_frame()) == 3
    assert verdicts.to_frame()["parameters"].dtype == "Int64"  # printed as whole numbers
    assert "\nthe best is the smallest" in repr(verdicts)


def test_single_runs_are_compared_with_the_best_on_the_same_windows(sqlite_url):
    noise, runs = np.array([0.03, -0.02, 0.01, 0.0, -0.02]), []
    for i, worse in enumerate((0.0, 0.001, 0.5)):
        windows = 2 + worse + np.arange(5) + (i % 2) * noise
        recorded = {"validation_windows": windows.tolist(), "validation_stderr": 0.25}
        recorded["validation_bits_per_byte"] = 4 + worse
        runs.append((gated_params(1 + i), 1.5 + i / 10, recorded))
    make_runs(sqlite_url, "single", {"space": {"layers": [1], "state_size": [4]}}, runs)
    page = build_from(results_of(sqlite_url, "single"))
    best, second, third = (entry.gap for entry in page.table("leaderboard").rows)
    assert best is None
    assert (second.mean, third.mean) == pytest.approx((0.001, 0.5))
    assert second.low < 0 < second.high
    summary = page.findings.summary
    assert (summary.judgement, summary.smallest) == (None, None)
    assert "4.000 ± 0.250" in page.words
    # Single runs have no significance.
    assert "significantly" not in page.words


def test_page_of_a_token_study_uses_its_unit_and_objective_and_escapes_its_samples(sqlite_url):
    raw = {
        "space": {"layers": [1, 2], "state_size": [4]},
        "task": {"tokenizer": "bpe:300"},
        "objective": "validation",
        "evaluation": {"average": 0.25},
        "report_threshold": 5.0,
    }
    runs = [(gated_params(i), 4.0 + i, {"training_loss": 3.5 - i}) for i in (1, 2)]
    runs[0][2]["sample"] = "<b>it was</b>\n\x00 & so on"
    tokenizer = {"size": 290, "bytes_per_token": 2.5, "tokenizer": "{}"}
    make_runs(sqlite_url, "tokens", raw, runs, tokenizer=tokenizer)
    page = build_from(results_of(sqlite_url, "tokens"))
    assert "nats per token" in page.html
    assert "nats per byte" not in page.html
    # The generated code has the vocabulary size of the tokenizer.
    assert "nn.Linear(290, 4)" in re.sub("<[^>]*>", "", page.html)
    # Curves show the training loss even if the objective is another one.
    curves = page.chart("Training curves")
    assert curves.figure.layout.yaxis.title.text == "smoothed training loss (nats per token)"
    assert ">&lt;b&gt;it was&lt;/b&gt;\n\ufffd &amp; so on</code></pre>" in page.html
    assert page.html.count("<summary>Sample of trial ") == 1


COPY = {"source": "copy:10", "steps": 30, "inputs": 10, "outputs": 8, "reads_tokens": True,
        "predicts_classes": True}  # fmt: skip
"""Record of a task, but for its loss."""


@pytest.mark.parametrize(
    ("loss", "sign", "is_clipped"),
    [("cross-entropy", 1, True), ("standardized squared error", 1, True), ("own", 1, False),
     ("own", -1, False)],
)  # fmt: skip
def test_interval_of_a_loss_that_cannot_be_negative_ends_at_zero(
    sqlite_url, loss, sign, is_clipped
):
    raw = {
        "space": {"cell": ["gru", "lstm"], "layers": [1], "state_size": [4, 8], "replicates": 2},
        "task": {"source": "copy:10"},
        "task_record": COPY | {"loss": loss},
    }
    runs = []
    for params in StudyConfig.model_validate(raw).grid.combinations():
        value = sign * (0.01 if params["replicate"] == 1 else 0.05)
        recorded = {"validation_loss": value, "state_count": params["state_size"]}
        runs.append((params, value, recorded))
    make_runs(sqlite_url, "made", raw, runs)
    findings = StudyFindings(results_of(sqlite_url))
    best = findings.summary.best
    width = best.high - best.loss
    assert width > 0.2
    assert best.low == (0 if is_clipped else pytest.approx(best.loss - width))
    error = chart_states(findings.results, findings.summary.entries).figure.data[0].error_y
    assert error.array[0] == pytest.approx(width)
    assert error.arrayminus[0] == pytest.approx(best.loss if is_clipped else width)


# ------------------------------------------------------------------ losses against costs


NOISE = np.random.default_rng(0).normal(0, 0.01, (8, 16))


@pytest.mark.parametrize(
    ("costs", "losses", "front"),
    [
        ([], [], []),
        ([300, 100, 200, 400, 500], [2.499, 2.5, 2.6, 2.3, 2.3], [1, 0, 3]),
        ([100, 100, 200], [2.5, 2.4, 2.3], [1, 2]),  # of equal costs the better one
        ([100, 100], [2.5, 2.5], [0]),
        ([math.nan, 100, 50], [2.0, 2.5, math.nan], [1]),
    ],
)
def test_front_has_what_nothing_of_the_same_cost_or_less_beats(costs, losses, front):
    found = find_front(np.array(costs, dtype=float), np.array(losses, dtype=float))
    assert found.tolist() == front


SPACE = NO_GATES | {"residual": [False], "layers": [1, 2, 3], "state_size": [4]}


def make_sizes(url, name="sizes"):
    """Create three sizes at three rates: the second is best by far, the third like it.

    The first was trained on other threads.
    """
    raw = {"nuisance": ["learning_rate"], "objective": "validation"}
    raw["space"] = SPACE | {"training": {"learning_rate": RATES}}
    runs = []
    for layers, loss in ((1, 2.5), (2, 2.2), (3, 2.201)):
        for place, rate in enumerate(RATES):
            # The third rate is best for all.
            windows = (loss + 0.1 * (2 - place) + NOISE[layers] - NOISE[layers].mean()).tolist()
            recorded = {
                "validation_windows": windows,
                "validation_bits_per_byte": float(np.mean(windows)),
                "parameter_count": 100 * layers,
                "seconds": 5.0 - layers,
                "lockstep": 1,
                "threads": 8 if layers == 1 else 1,
            }
            params = gated_params(layers, learning_rate=rate)
            runs.append((params, float(np.mean(windows)), recorded))
    make_runs(url, name, raw, runs)


def test_study_has_a_front_for_each_cost_at_the_best_values_of_nuisance_parameters(sqlite_url):
    make_sizes(sqlite_url)
    study = load("sizes", storage=sqlite_url)
    table = study.pareto()
    assert list(table) == ["architecture", "trial", "parameters", "seconds", "loss"]
    assert list(table["architecture"]) == ["1×4 no gates, new state", "2×4 no gates, new state"]
    assert table["parameters"].tolist() == [100, 200]
    assert table["parameters"].dtype == int
    assert table["loss"].tolist() == pytest.approx([2.5, 2.2])  # at the best rate
    assert study.trial(table["trial"][1]).params["learning_rate"] == RATES[2]
    # The deepest is the fastest here. The first ran with more threads, so its time is not known.
    assert math.isnan(table["seconds"][0])
    assert study.pareto("seconds")["seconds"].tolist() == [2.0, 3.0]
    with pytest.raises(UserError, match="cost is 'money': expected 'parameters' or 'seconds'"):
        study.pareto("money")


def draw_costs(url, name):
    findings = StudyFindings(results_of(url, name))
    return chart_costs(findings.results, findings.summary)


def test_study_without_held_out_losses_has_no_front(sqlite_url):
    raw = {"space": SPACE}
    absent = {"validation_bits_per_byte": None}
    runs = [(gated_params(layers), 2.0 + layers, absent) for layers in (1, 2, 3)]
    make_runs(sqlite_url, "bare", raw, runs)
    assert load("bare", storage=sqlite_url).pareto().empty
    assert draw_costs(sqlite_url, "bare") == []
