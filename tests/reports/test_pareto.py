"""The Pareto front: by hand, on stored studies, and its error rates in simulated studies."""

import math

import numpy as np
import pytest
from factories import RATES, gated_params, make_runs, read_studies, results_of

from reports.analysis.leaderboard import summarize_costs, summarize_study
from reports.charts.comparison_plots import chart_front
from reports.errors import ReportError
from reports.page.section import build_sections
from reports.stats.pareto import CostedArchitecture, SingleRunComparisons, find_front
from rnn_search.study import load
from studies.errors import ConfigError

pytestmark = pytest.mark.usefixtures("without_optuna_figures")

NOISE = np.random.default_rng(0).normal(0, 0.01, (8, 16))


def costed(*losses: float, parameters=None) -> dict[str, CostedArchitecture]:
    sizes = parameters or [100.0 * (i + 1) for i in range(len(losses))]
    return {
        f"{i}": CostedArchitecture(f"{i}", i, size, math.nan, loss)
        for i, (size, loss) in enumerate(zip(sizes, losses, strict=True))
    }


def windows_of(architectures):
    return {
        label: (each.loss + NOISE[int(label)] - NOISE[int(label)].mean()).tolist()
        for label, each in architectures.items()
    }


def test_front_has_what_nothing_cheaper_beats_and_each_member_its_cheapest_equal():
    # 1 is worse than 0; 2 is better than 0 by noise; 3 is clearly better; 4 is as good as 3.
    given = costed(2.5, 2.6, 2.499, 2.3, 2.301)
    front = find_front("parameters", given, SingleRunComparisons(windows_of(given)))
    assert [each.architecture.label for each in front.members] == ["0", "2", "3"]
    cheaper = [each.cheaper and each.cheaper.label for each in front.members]
    assert cheaper == [None, "0", None]
    assert [each.label for each in front.similar] == ["4"]
    assert [each.label for each in front.worse] == ["1"]
    gaps = [each.gap for each in front.members]
    assert gaps[2] is None
    assert [gap.mean for gap in gaps[:2]] == pytest.approx([0.2, 0.199])
    assert gaps[0].low < 0.2 < gaps[0].high


def test_of_architectures_of_equal_cost_only_the_best_is_on_the_front():
    given = costed(2.5, 2.4, 2.3, parameters=[100.0, 100.0, 200.0])
    front = find_front("parameters", given, SingleRunComparisons(windows_of(given)))
    assert [each.architecture.label for each in front.members] == ["1", "2"]
    assert find_front("seconds", given, SingleRunComparisons(windows_of(given))) is None


SPACE = {
    **{name: [False] for name in list(gated_params())[:4]},
    "state_source": ["new"],
    "residual": [False],
    "layers": [1, 2, 3],
    "state_size": [4],
}


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
    table = study.pareto().table
    assert list(table["architecture"]) == ["1×4 no gates, new state", "2×4 no gates, new state"]
    assert table["parameters"].tolist() == [100, 200]
    assert table["parameters"].dtype == int
    assert repr(study.pareto()).endswith("\nlosses and gaps in bits per byte")
    assert list(table["bits_per_byte"]) == pytest.approx([2.5, 2.2])  # at the best rate
    assert table["cheapest_not_worse"].isna().all()
    # The deepest is the fastest here: nothing that costs more is better beyond noise.
    fast = study.pareto("seconds").table
    assert list(fast["seconds"]) == [2.0, 3.0]
    assert list(fast["cheapest_not_worse"])[1] == "3×4 no gates, new state"
    assert len(study.pareto().plot().data) == 4
    with pytest.raises(ConfigError, match="cost is 'money': expected 'parameters' or 'seconds'"):
        study.pareto("money")
    # Seconds are compared under the same conditions only.
    results = results_of(sqlite_url, "sizes")
    costs = summarize_costs(results, summarize_study(results))
    assert costs.conditions == "cpu of h, fp32, 1 thread, 1 network in lockstep"
    assert [costs.front(each).left_out for each in ("seconds", "parameters")] == [1, 0]


def test_study_without_windows_has_no_front(sqlite_url):
    raw = {"space": SPACE}
    runs = [(gated_params(layers), 2.0 + layers, {}) for layers in (1, 2, 3)]
    make_runs(sqlite_url, "bare", raw, runs)
    with pytest.raises(ReportError, match="study 'bare' has no front by parameters: expected two"):
        load("bare", storage=sqlite_url).pareto()


def test_baseline_cells_of_other_studies_are_drawn(sqlite_url):
    make_sizes(sqlite_url)
    recorded = {"validation_bits_per_byte": 2.1, "parameter_count": 150, "seconds": 2.5}
    gru = {"cell": "gru", "layers": 1, "state_size": 4}
    raw = {"objective": "validation"}
    raw["space"] = {"cell": ["gru"], "layers": [1], "state_size": [4]}
    make_runs(sqlite_url, "cells", raw, [(gru, 2.1, recorded)])
    section, _ = build_sections(read_studies(sqlite_url, "sizes", "cells"))
    front = section.costs_and_losses.front("parameters")
    (reference,) = front.references
    assert (reference.label, reference.parameters, reference.loss) == ("1×4 GRU", 150, 2.1)
    chart = chart_front(front, section.costs_and_losses)
    assert chart.figure.data[-1].name == "1×4 GRU"
    # It is no member: another study trained it.
    assert "1×4 GRU" not in [each.architecture.label for each in front.members]
