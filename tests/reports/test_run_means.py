"""Adjusted means of architectures with unequal numbers of runs."""

import numpy as np
import pytest

from reports.stats.run_means import Run, RunMeans, average_runs, rank_runs


def test_means_are_those_of_a_least_squares_fit_of_architecture_and_replicate():
    generator = np.random.default_rng(0)
    runs = [(i, run) for i, count in enumerate((20, 20, 3, 5)) for run in range(count)]
    architectures, replicates = np.array(runs).T
    losses = generator.normal(size=len(runs))
    means = RunMeans.fit(architectures, replicates, 5)
    design = np.hstack(
        [architectures[:, None] == np.arange(4), replicates[:, None] == np.arange(20)]
    )
    fitted = np.linalg.lstsq(design.astype(float), losses, rcond=None)[0]
    expected = fitted[:4] + fitted[4:].mean()
    assert means.compute(losses)[:4] == pytest.approx(expected)
    assert np.isnan(means.compute(losses)[4])
    weights = np.array([1.0, -0.5, 2.0, 0.25, 0.0])
    assert means.spread(weights) @ losses == pytest.approx(weights[:4] @ expected)
    kept = means.select(np.array([True, False, True, False, False]))
    assert kept.compute(losses) == pytest.approx(expected[[0, 2]])
    assert kept.spread(weights[[0, 2]]) @ losses == pytest.approx(expected[0] + 2 * expected[2])


def test_equal_numbers_of_runs_have_plain_means():
    assert average_runs([("a", 1, 0.1), ("b", 1, 0.3), ("a", 2, 0.2), ("b", 2, 0.4)]) == {
        "a": (0.1 + 0.2) / 2,
        "b": (0.3 + 0.4) / 2,
    }
    assert average_runs([]) == {}


def test_architecture_that_lost_its_hardest_run_does_not_win():
    """Replicate 2 is harder by 1 for both; the worse one lacks it."""
    runs = [("good", 1, 1.0), ("good", 2, 2.0), ("worse", 1, 1.1)]
    assert average_runs(runs) == pytest.approx({"good": 1.5, "worse": 1.6})


def test_best_of_a_planned_look_is_one_of_those_that_it_compares_over_its_runs():
    rows = [("stopped", 2, 1.0), ("a", 2, 2.0), *(("b", i, 1.5) for i in (2, 3, 4))]
    rows += [("b", 5, 9.0), ("late", 5, 0.0)]
    runs = [Run(name, i, replicate, loss, loss) for i, (name, replicate, loss) in enumerate(rows)]
    names = {run.number: run.architecture for run in runs}
    ranked = rank_runs(runs, names, [2, 3, 4], [[1, 2]], is_finished=True)
    assert [each.architecture for each in ranked] == ["b", "stopped", "a", "late"]
