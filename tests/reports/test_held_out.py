"""What a report says by held-out text: of replicates, of single runs, of tokens, and of texts."""

import re

import pandas as pd
import pytest
from factories import make_replicates, make_runs, make_study, own_point

from reports.charts.comparison_plots import comparison_of, differences_to_best
from reports.data.results import read_results
from reports.data.table_export import concatenate_tables
from reports.page.page import write_report
from reports.page.sections import build_section
from reports.stats.leaderboard import rank_architectures
from reports.stats.variant_effects import replicates
from studies.storage.open import read_storage

pytestmark = pytest.mark.usefixtures("without_optuna_figures")

BEST, SMALLER, WORST = (f"{shape} no gates, new state" for shape in ("2×4", "1×4", "1×8"))


def results_of(url, name="replicates"):
    return read_results(read_storage(url), name)


def words_of(url, names, path):
    html = write_report(url, names, path).path.read_text("utf-8")
    return re.sub(r"\s+", " ", re.sub("<[^>]*>", "", html[html.index("<main>") :]))


@pytest.mark.parametrize(
    ("split", "column", "unit"),
    [
        ("test", "test_bits_per_byte", "bits per byte"),
        ("validation", "validation_bits_per_byte", "bits per byte"),
    ],
)
def test_replicates_are_ranked_by_held_out_text(sqlite_url, split, column, unit):
    make_replicates(sqlite_url, split=split)
    results = results_of(sqlite_url)
    assert (results.metric.column, results.metric.unit) == (column, unit)
    # By their values they come the other way round.
    assert list(replicates(results).index) == [BEST, SMALLER, WORST]
    winners = rank_architectures(results)
    assert [winner.label for winner in winners] == [BEST, SMALLER, WORST]
    means = results.complete.groupby("architecture")[column].mean()
    assert winners[0].measured == pytest.approx(means[BEST])


def test_replicates_without_a_record_are_ranked_by_their_values(sqlite_url, tmp_path):
    runs = [
        (own_point(layers, replicate=i), layers + value, {"validation_bits_per_byte": None})
        for layers in (1, 2)
        for i, value in enumerate((0.0, 0.01, 0.02))
    ]
    raw = {"refinement": {"source": "made", "replicates": 3}}
    make_runs(sqlite_url, "replicates", raw, runs)
    section = build_section(results_of(sqlite_url))
    assert section.results.metric.is_value
    assert list(section.replicates["mean"]) == pytest.approx([1.01, 2.01])
    assert (section.comparison.generalizes_over_runs, section.comparison.generalizes_over_text) == (
        True,
        False,
    )
    words = words_of(sqlite_url, ["replicates"], tmp_path / "page.html")
    assert "generalizes to other training runs, but not to other text" in words


def test_the_smallest_that_is_not_told_apart_is_named(sqlite_url, tmp_path):
    make_replicates(sqlite_url)
    section = build_section(results_of(sqlite_url))
    comparison = section.comparison
    assert comparison.between(WORST, BEST).windows == 4
    assert [comparison.is_significant(name, BEST) for name in (SMALLER, WORST)] == [False, True]
    assert section.smallest == SMALLER
    words = words_of(sqlite_url, ["replicates"], tmp_path / "page.html")
    assert f"by the mean of its 3 runs: {BEST}, " in words
    assert "bits per byte (test loss)" in words
    assert f"The smallest that is not significantly worse is {SMALLER}: 2." in words
    assert "with 100 parameters instead of 200." in words
    assert "over replicates of the same number and over the same evaluation windows" in words
    heat = section.pairwise_chart.figure.data[0]
    # A number in brackets has no colour: the two are not told apart.
    assert heat.text[0][1].startswith("(−") and heat.z[0][1] == 0  # noqa: PT018
    assert heat.text[0][2].startswith("−0.5") and heat.z[0][2] < -0.4  # noqa: PT018
    assert "told apart from 3" in section.pairwise_chart.words
    html = (tmp_path / "page.html").read_text("utf-8")
    table = html.partition('leaderboard">\n<thead>')[2].partition("</table>")[0]
    rows = re.findall(r"<th scope=\"row\">(.*?)</th>.*?<td>(yes|no|)</td>", table, re.DOTALL)
    assert rows == [(BEST, ""), (SMALLER, "no"), (WORST, "yes")]


def test_single_runs_are_compared_with_the_best_on_the_same_lanes(sqlite_url, tmp_path):
    noise = (0.03, -0.02, 0.01, 0.0, -0.02)
    runs = [
        (
            own_point(1 + i),
            1.5 + i / 10,
            {
                "validation_windows": [
                    2 + lane + worse + (i % 2) * noise[lane] for lane in range(5)
                ],
                "validation_bits_per_byte": 4 + worse,
                "validation_stderr": 0.25,
            },
        )
        for i, worse in enumerate((0.0, 0.001, 0.5))
    ]
    make_runs(sqlite_url, "single", {"space": {"layers": [1], "state_size": [4]}}, runs)
    section = build_section(results_of(sqlite_url, "single"))
    _, second, third = (winner.label for winner in section.leaderboard)
    found = section.vs_best
    assert list(found) == [second, third]
    assert [each.mean for each in found.values()] == pytest.approx([0.001, 0.5])
    assert found[second].low < 0 < found[second].high
    assert found[third].low == pytest.approx(0.5)
    assert (section.comparison, section.smallest) == (None, None)
    words = words_of(sqlite_url, ["single"], tmp_path / "page.html")
    assert "The difference to the best is over the same evaluation windows" in words
    assert "the selection of the best of 3. Replicate architectures to compare them." in words
    assert "4.000 ± 0.250" in words
    # No verdict: with one run each, none would be right.
    assert "significantly" not in words
    assert "Holm" not in words
    assert not re.search(r"<td>(yes|no)</td>", (tmp_path / "page.html").read_text("utf-8"))


def test_without_lanes_nothing_is_compared(sqlite_url):
    make_study(sqlite_url, finished=3)
    results = results_of(sqlite_url, "made")
    best = [winner.label for winner in rank_architectures(results)]
    assert comparison_of(results, best) is None
    assert differences_to_best(results, best) == {}


def test_a_study_of_tokens_is_told_in_tokens_and_by_its_objective(sqlite_url, tmp_path):
    raw = {
        "space": {"layers": [1, 2], "state_size": [4]},
        "tokenizer": "bpe:300",
        "objective": "validation",
        "evaluation": {"average": 0.25},
        "report_threshold": 5.0,
    }
    runs = [(own_point(i), 4.0 + i, {"training_loss": 3.5 - i}) for i in (1, 2)]
    tokenizer = {"size": 290, "bytes_per_token": 2.5, "serialized": "{}"}
    make_runs(sqlite_url, "tokens", raw, runs, tokenizer=tokenizer)
    words = words_of(sqlite_url, ["tokens"], tmp_path / "page.html")
    assert "5.0000 nats per token (validation loss)" in words
    assert "nats per byte" not in words
    assert "byte-pair encoding (bpe:300): 290 tokens of 2.50 bytes" in words
    assert "averaged over the last 25% of the steps" in words
    # The network that is written out reads as many symbols.
    assert "nn.Linear(290, 4)" in words
    section = build_section(results_of(sqlite_url, "tokens"))
    # Curves are of the training loss: their least values are no trial's value.
    assert (
        section.curves.figure.layout.yaxis.title.text == "smoothed training loss (nats per token)"
    )
    assert "from 1.500 to 2.500 nats" in section.curves.words
    assert section.curves.color_schemes[0].label == "validation loss"


def test_what_the_best_write_is_shown_as_it_is(sqlite_url, tmp_path):
    samples = ("<b>it was</b>\n\x00 & so on", None)
    runs = [(own_point(1 + i), 1.0 + i, {"sample": text}) for i, text in enumerate(samples)]
    make_runs(sqlite_url, "writers", {"space": {"layers": [1], "state_size": [4]}}, runs)
    page = write_report(sqlite_url, ["writers"], tmp_path / "page.html").path.read_text("utf-8")
    assert "Samples</h3>" in page
    assert ">&lt;b&gt;it was&lt;/b&gt;\n\ufffd &amp; so on</pre>" in page
    assert page.count('<pre class="code sample">') == 1
    make_study(sqlite_url, finished=1)
    page = write_report(sqlite_url, ["made"], tmp_path / "other.html").path.read_text("utf-8")
    assert "Samples</h3>" not in page


def test_rows_have_what_was_recorded_but_no_lanes(sqlite_url):
    make_replicates(sqlite_url)
    make_study(sqlite_url)
    storage = read_storage(sqlite_url)
    rows = concatenate_tables([read_results(storage, name) for name in ("replicates", "made")])
    assert {"training_loss", "validation_stderr", "test_bits_per_byte", "sample"} <= {*rows}
    assert not any("lanes" in name for name in rows)
    assert rows["test_stderr"].iloc[0] == 0.125
    assert pd.isna(rows["test_stderr"].iloc[-1])
