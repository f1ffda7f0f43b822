"""Planned looks at replicated architectures, which decide on more runs."""

import math
from dataclasses import replace

import numpy as np
import pytest
from factories import gated_params, make_runs, results_of

from reports.analysis.leaderboard import summarize_costs, summarize_study
from reports.stats.looks import (
    PlannedLook,
    estimate_noise,
    find_detectable_gap,
    spend_error,
    take_look,
)
from reports.stats.replicates import compare_pairwise
from rnn_search import load
from studies.attributes import LookRecord
from studies.config import DEFAULT_LOOKS
from tests.simulations.replicates import MARGIN, NOISES, RUN_NOISE, TEXT_NOISE, simulate_losses

NAMES = {"a": 0, "b": 2, "c": 4, "d": 6}


def make_losses(runs, **means):
    """Return losses of one window; the scatter of the runs is the same at each number of runs."""
    generator = np.random.default_rng(0)
    return {
        name: {run + 1: [mean + 0.01 * generator.normal()] for run in range(runs)}
        for name, mean in means.items()
    }


def test_looks_spend_five_percent_by_pococks_function():
    levels = spend_error(DEFAULT_LOOKS)
    assert sum(levels) == pytest.approx(0.05)
    assert levels[0] == pytest.approx(0.05 * math.log(1 + (math.e - 1) * 3 / 20))
    assert [round(100 * level, 2) for level in levels] == [1.15, 0.64, 1.31, 1.9]
    assert spend_error([10]) == pytest.approx([0.05])


def test_measured_noise_is_that_of_runs_and_text():
    losses = simulate_losses(np.random.default_rng(0), NOISES["equal"], 20, 1)[0]
    comparison = compare_pairwise({str(i): dict(enumerate(each)) for i, each in enumerate(losses)})
    noise = estimate_noise(comparison)
    # The noise of single windows is part of that of a run.
    assert noise.of_run == pytest.approx(RUN_NOISE, rel=0.2)
    assert noise.of_text == pytest.approx(2**0.5 * TEXT_NOISE, rel=0.6)
    assert find_detectable_gap(comparison) == pytest.approx(noise.find_gap(20, 10, 0.05))
    single = compare_pairwise({"a": {1: [1.0]}, "b": {1: [2.0]}})
    assert (estimate_noise(single), find_detectable_gap(single)) == (None, None)


def test_only_undecided_architectures_and_rivals_of_the_best_continue():
    losses = make_losses(3, a=1.0, b=1.01, c=1.02, d=3.0)
    judgement, look = take_look(losses, NAMES, [3, 5], MARGIN, [])
    assert (look.runs, look.level) == (3, pytest.approx(spend_error([3, 5])[0]))
    assert look.verdicts[6] == "worse"
    assert look.continued == [0, 2, 4]
    assert judgement.verdicts["d"] == "worse"
    more = make_losses(5, a=1.0, b=1.01, c=1.02) | {"d": losses["d"]}
    judgement, last = take_look(more, NAMES, [3, 5], MARGIN, [look])
    assert last.continued == []
    assert last.verdicts[6] == "worse", "verdicts are final"
    assert "d" not in judgement.comparison.names
    assert judgement.comparison.count == 4, "the correction is for all"
    assert judgement.comparison.pairs["b", "a"].runs == 5


def test_rival_of_the_best_continues_while_another_is_undecided():
    """Bounds on the distance from the best must cover it, although it is as good already."""
    noise = np.array([-1.0, 0.0, 1.0])
    shapes = {"a": 0 * noise, "b": 0.001 * noise + 0.001, "c": 0.1 * noise[[1, 2, 0]] + 0.05}
    losses = {name: {i: [1 + d] for i, d in enumerate(each)} for name, each in shapes.items()}
    earlier = PlannedLook(
        runs=2,
        level=0.01,
        verdicts={0: "undecided", 2: "as good", 4: "undecided", 6: "worse"},
        continued=[0, 2, 4],
    )
    _, look = take_look(losses, NAMES, [2, 3, 5], MARGIN, [earlier])
    assert (look.verdicts[2], look.verdicts[4]) == ("as good", "undecided")
    assert look.continued == [0, 2, 4]


def test_architecture_without_a_complete_run_has_no_verdict_and_does_not_continue():
    losses = make_losses(3, a=1.0, b=1.0, c=1.0)
    judgement, look = take_look(losses, NAMES, [3, 5], MARGIN, [])
    assert look.verdicts[6] == "undecided"
    assert 6 not in look.continued
    assert judgement.count("undecided") == 2
    assert "d" not in judgement.verdicts


def read_looked(url, runs, looks=()):
    """Create and read a study of three architectures with looks at 3 and 5 runs.

    The first two have so many complete runs. The third has the three of the easiest texts, is far
    worse and the smallest.
    """
    generator = np.random.default_rng(5)
    trials = []
    for layers, worse, count in ((3, 0.0, runs), (2, 0.01, runs), (1, 2.0, 3)):
        for run in range(count):
            mean = 2 + worse + 0.1 * run + 0.02 * generator.normal()
            recorded = {"test_bits_per_byte": mean, "test_windows": [mean] * 2}
            recorded["parameter_count"] = 10 * layers
            trials.append((gated_params(layers, replicate=run + 1), float(layers), recorded))
    refinement = {"source": "made", "replicates": 5, "looks": [3, 5]}
    raw = {"eval_split": "test", "refinement": refinement}
    make_runs(url, "looked", raw, trials, looks=list(looks))
    return results_of(url, "looked")


FIRST_LOOK = LookRecord(
    runs=3,
    level=spend_error([3, 5])[0],
    verdicts={0: "undecided", 5: "undecided", 10: "worse"},
    continued=[0, 5],
)
"""The third architecture stops, the others get two more runs."""


def test_report_of_a_later_look_keeps_the_architectures_that_stopped(sqlite_url):
    results = read_looked(sqlite_url, 5, [FIRST_LOOK])
    summary = summarize_study(results)
    assert summary.look.runs == 5
    assert [entry.runs for entry in summary.entries] == [5, 5, 3]
    assert [entry.verdict for entry in summary.entries][2] == "worse"
    best = load("looked", storage=sqlite_url).status.best
    assert (best.number, best.value, best.runs) == (0, summary.best.mean, 5)
    assert summary.entries[2].gap.runs == 3
    # All are ranked over their common runs.
    best = summary.best.mean
    assert [entry.mean - best for entry in summary.entries] == pytest.approx([0, 0, 2], abs=0.1)
    # The bound of the architecture that stopped is that of its last look.
    assert 1.9 < summary.entries[2].bound < math.inf
    # On the front it has no cheaper one that beats it.
    (front,) = summarize_costs(results, summary).fronts
    assert front.members[0].architecture.label.startswith("1×4")
    assert (front.left_out, front.members[0].gap.runs) == (0, 3)
    assert len(front.members) + len(front.similar) + len(front.worse) == 3


def test_runs_after_the_latest_look_do_not_change_the_order(sqlite_url):
    """A later look is under way: of the runs that it asked for, one is waiting."""
    results = read_looked(sqlite_url, 5, [FIRST_LOOK])
    table = results.table.copy()
    table.loc[4, ["state", "value"]] = ["WAITING", math.nan]
    summary = summarize_study(replace(results, table=table))
    assert summary.look == FIRST_LOOK
    assert [entry.runs for entry in summary.entries] == [3, 3, 3]
    assert [entry.verdict for entry in summary.entries] == ["undecided", "undecided", "worse"]
    assert {each.runs for each in summary.comparison.pairs.values()} == {3}
