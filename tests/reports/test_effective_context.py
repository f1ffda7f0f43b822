"""Effective context: the estimate on simulated networks, and where it is shown."""

import math
from html import escape

import numpy as np
import pandas as pd
import pytest
from factories import gated_params, make_runs, make_study, results_of
from pages import build_from

from reports.final_report import write_csv
from reports.trial_table import THRESHOLD, ContextProfile, average_profiles, read_profile

BINS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


def simulate(decay, rng, windows=128, bins=BINS):
    """Simulate a network whose excess loss falls exponentially with the context.

    The difference of the two losses of a target scatters by twice its expectation and 0.05 bits.
    """
    low, mean, stderr = 0, [], []
    for high in bins:
        expected = 1.5 * np.exp(-(np.arange(low, high) + 1) / decay)
        scatter = 2 * expected + 0.05
        losses = (expected + rng.normal(0, 1, (windows, high - low)) * scatter).mean(1)
        mean.append(losses.mean())
        stderr.append(losses.std(ddof=1) / math.sqrt(windows))
        low = high
    return ContextProfile(bins, np.array(mean), np.array(stderr), 2.0)


@pytest.mark.parametrize("decay", [1, 10])
def test_effective_context_of_a_simulated_network_is_recovered(decay):
    truth = decay * math.log(1.5 / THRESHOLD)  # at which the simulated excess is the threshold
    estimate = simulate(decay, np.random.default_rng(decay), windows=8192).estimate()
    assert estimate.size == pytest.approx(truth, rel=0.15), "bins are a factor of two wide"
    assert estimate.low / 1.15 <= truth <= estimate.high * 1.15


def test_context_is_one_without_memory_open_beyond_half_a_window_and_of_a_window_uncertain():
    rng = np.random.default_rng(1)
    flat = [simulate(0.05, rng).estimate() for _ in range(20)]
    assert np.mean([each.size == 1 for each in flat]) > 0.9
    assert all(each.low == 1 for each in flat)
    estimate = simulate(1000, np.random.default_rng(2)).estimate()
    assert (estimate.size, estimate.high) == (math.inf, math.inf)
    assert str(estimate) == "> 256 [> 256, > 256]"
    profile = read_profile({"context_bins": [1, 2], "context_excess": [0.5, 0.0],
                            "context_loss": 2.0})  # fmt: skip
    estimate = profile.estimate()
    assert 1 < estimate.size < 2
    assert math.isnan(estimate.low)
    assert "[" not in str(estimate)
    short, long = simulate(3, rng), simulate(30, rng)
    mean = average_profiles([short, long])  # of two runs of an architecture
    assert short.estimate().size < mean.estimate().size < long.estimate().size


def profile_attributes(decay):
    profile = simulate(decay, np.random.default_rng(5), bins=BINS[:7])
    return {
        "context_bins": list(profile.bins),
        "context_excess": profile.excess.tolist(),
        "context_stderr": profile.stderr.tolist(),
        "context_loss": profile.loss,
    }


@pytest.mark.usefixtures("without_optuna_figures")
def test_page_and_tables_show_the_effective_context(sqlite_url, tmp_path, build_page):
    runs = [
        (gated_params(1), 1.0, profile_attributes(2)),
        (gated_params(2), 1.5, profile_attributes(6)),
        (gated_params(3), 2.0, {}),  # trained before these losses were recorded
    ]
    raw = {"space": {"layers": [1, 2, 3], "state_size": [4]}}
    make_runs(sqlite_url, "memory", raw, runs)
    page = build_from(results_of(sqlite_url, "memory"))
    best, second, old = page.findings.summary.entries
    assert best.context.estimate().size < second.context.estimate().size
    assert old.context is None
    assert escape(str(second.context.estimate())) in page.html
    (chart,) = page.sections["memory"].blocks
    assert [len(trace.x) for trace in chart.figure.data] == [7, 7]
    assert chart.width <= 390
    assert "effective context (bytes)" in chart.figure.layout.legend.title.text
    name = chart.figure.data[0].name.replace("<br>", ", ")
    assert name == f"{best.context.estimate()}: 1×4 no gates", "what all have is left out"
    write_csv([page.findings.results], tmp_path / "rows.csv")
    rows = pd.read_csv(tmp_path / "rows.csv")
    assert rows["effective_context"][0] == pytest.approx(best.context.estimate().size)
    assert rows["effective_context"].isna().tolist() == [False, False, True]
    assert "effective context" not in build_page(make_study, "made").words, "an older study"
