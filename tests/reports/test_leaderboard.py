"""Ranking and comparison of architectures by held-out text, and the page about them."""

import math
import re

import numpy as np
import pytest
from factories import gated_params, make_replicates, make_runs, results_of
from reports.page.section import Section

from reports.analysis.leaderboard import rank_architectures
from reports.charts.comparison_plots import chart_differences
from reports.page.page import render_page
from rnn_search import list_studies, load
from search.display import format_progress

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
    assert entries[0].mean == pytest.approx(means[BEST])
    # Everything else names the same one: status, list, Python and the verdicts.
    study = load("replicates", storage=sqlite_url)
    assert study.best.number == entries[0].number == 0
    assert study.verdicts().table["architecture"][0] == BEST
    line = f"mean of 3 runs 2.4081 bits per byte, {split} loss"
    assert format_progress(study.status).endswith(f"{line} ({BEST}, best run trial 0)")
    (listed,) = list_studies(storage=sqlite_url)
    assert (f"{listed.best:.4f}", listed.best_unit) == ("2.4081", "bits per byte")


def test_replicates_without_held_out_losses_are_ranked_by_their_values(sqlite_url):
    lost, numbers = {"validation_bits_per_byte": None}, (0, 1, 2)
    runs = [(gated_params(n, replicate=i), n + i / 100, lost) for n in (1, 2) for i in numbers]
    make_runs(sqlite_url, "replicates", {"refinement": {"source": "made", "replicates": 3}}, runs)
    section = Section(results_of(sqlite_url, "replicates"))
    assert section.results.metric.is_value
    assert [entry.mean for entry in section.findings.summary.entries] == pytest.approx([1.01, 2.01])
    comparison = section.findings.summary.comparison
    assert (comparison.generalizes_over_runs, comparison.generalizes_over_text) == (True, False)


def test_page_names_the_smallest_architecture_that_is_as_good(build_page):
    page = build_page(make_replicates, "replicates")
    section = page.section
    comparison = section.findings.summary.comparison
    assert comparison.between(WORST, BEST).windows == 4
    assert [comparison.between(name, BEST).is_significant for name in (SMALLER, WORST)] == [
        False,
        True,
    ]
    assert section.findings.summary.smallest.label == SMALLER
    chart = chart_differences(comparison, ".4f")
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
    assert rows == [(BEST, "best mean"), (SMALLER, "as good"), (WORST, "worse")]


def test_architecture_with_one_run_has_no_bound(sqlite_url):
    """The third has one of three runs, the fourth none."""
    runs = [
        (gated_params(layers, replicate=run), loss, {"validation_bits_per_byte": loss})
        for layers, count in ((1, 3), (2, 3), (3, 1), (4, 0))
        for run in (1, 2, 3)
        for loss in [2 + layers * run % 4 / 100 if run <= count else math.nan]
    ]
    make_runs(sqlite_url, "replicates", {"refinement": {"source": "made", "replicates": 3}}, runs)
    section = Section(results_of(sqlite_url, "replicates"))
    page = "".join(render_page([section]))
    assert "1 without a complete run" in page
    assert "+inf" not in page
    table = load("replicates", storage=sqlite_url).verdicts().table
    assert len(table) == 3
    assert "\nthe best is the smallest" in repr(load("replicates", storage=sqlite_url).verdicts())


def test_single_runs_are_compared_with_the_best_on_the_same_windows(sqlite_url):
    noise, runs = np.array([0.03, -0.02, 0.01, 0.0, -0.02]), []
    for i, worse in enumerate((0.0, 0.001, 0.5)):
        windows = 2 + worse + np.arange(5) + (i % 2) * noise
        recorded = {"validation_windows": windows.tolist(), "validation_stderr": 0.25}
        recorded["validation_bits_per_byte"] = 4 + worse
        runs.append((gated_params(1 + i), 1.5 + i / 10, recorded))
    make_runs(sqlite_url, "single", {"space": {"layers": [1], "state_size": [4]}}, runs)
    section = Section(results_of(sqlite_url, "single"))
    best, second, third = (entry.gap for entry in section.findings.summary.leaderboard)
    assert best is None
    assert (second.mean, third.mean) == pytest.approx((0.001, 0.5))
    assert second.low < 0 < second.high
    assert (section.findings.summary.judgement, section.findings.summary.smallest) == (None, None)
    page = "".join(render_page([section]))
    assert "4.000 ± 0.250" in page
    # Single runs have no significance.
    assert "significantly" not in page


def test_page_of_a_token_study_uses_its_unit_and_objective_and_escapes_its_samples(sqlite_url):
    raw = {
        "space": {"layers": [1, 2], "state_size": [4]},
        "tokenizer": "bpe:300",
        "objective": "validation",
        "evaluation": {"average": 0.25},
        "report_threshold": 5.0,
    }
    runs = [(gated_params(i), 4.0 + i, {"training_loss": 3.5 - i}) for i in (1, 2)]
    runs[0][2]["sample"] = "<b>it was</b>\n\x00 & so on"
    tokenizer = {"size": 290, "bytes_per_token": 2.5, "serialized": "{}"}
    make_runs(sqlite_url, "tokens", raw, runs, tokenizer=tokenizer)
    section = Section(results_of(sqlite_url, "tokens"))
    page = "".join(render_page([section]))
    assert "nats per token" in page
    assert "nats per byte" not in page
    # The generated code has the vocabulary size of the tokenizer.
    assert "nn.Linear(290, 4)" in re.sub("<[^>]*>", "", page)
    # Curves show the training loss even if the objective is another one.
    axis = section.curves.figure.layout.yaxis
    assert axis.title.text == "smoothed training loss (nats per token)"
    assert "by the rank of validation loss" in section.curves.caption
    assert ">&lt;b&gt;it was&lt;/b&gt;\n\ufffd &amp; so on</pre>" in page
    assert page.count('<details class="sample"') == 1
