"""Losses against costs: the front by hand, and of stored studies."""

import math

import numpy as np
import pytest
from factories import NO_GATES, RATES, gated_params, make_runs, results_of

from reports.analysis.leaderboard import find_front
from reports.charts.comparison_plots import chart_costs
from reports.findings import StudyFindings
from rnn.errors import UserError
from rnn_search.study import load

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


def test_losses_are_drawn_against_each_cost_with_the_front_as_a_line(sqlite_url):
    make_sizes(sqlite_url)
    parameters, seconds = draw_costs(sqlite_url, "sizes")
    assert parameters.title == "Loss against parameters"
    line, others, front = parameters.figure.data
    assert (line.x, line.line.shape) == ((100, 200, 300), "hv")
    assert line.y == pytest.approx((2.5, 2.2, 2.2))
    assert (others.x, front.x) == ((300,), (100, 200))
    _, others, front = seconds.figure.data
    assert (others.x, front.x) == ((), (2, 3))


def test_study_without_held_out_losses_has_no_front(sqlite_url):
    raw = {"space": SPACE}
    absent = {"validation_bits_per_byte": None}
    runs = [(gated_params(layers), 2.0 + layers, absent) for layers in (1, 2, 3)]
    make_runs(sqlite_url, "bare", raw, runs)
    assert load("bare", storage=sqlite_url).pareto().empty
    assert draw_costs(sqlite_url, "bare") == []
