"""What is foretold of unfinished points is as good as it is said to be."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search.pruning.predictions import DesignMatrix, Prediction, predict_final_values

SWITCHES = ("input", "forget", "output", "state")


def world(seed, spread=0.1, sizes=(32, 64)):
    """Points of a grid, whose losses fall to values that follow from their switches.

    Returns:
        The points, their losses at three rungs, their values.
    """
    random = np.random.default_rng(seed)
    points = [
        {name: bool(index >> bit & 1) for bit, name in enumerate(SWITCHES)}
        | {"source": source, "size": size}
        for index in range(16)
        for source in ("new", "old", "both")
        for size in sizes
    ]
    factors = DesignMatrix.of(points)
    effects = random.normal(0, 0.1, factors.main.shape[1])
    pairs = random.normal(0, 0.03, factors.pairs.shape[1])
    values = 2 + factors.main @ effects + factors.pairs @ pairs
    values += random.normal(0, 0.2 * spread, len(points))
    noise = random.normal(0, spread, (len(points), 3)) * [0.6, 0.3, 0.15]
    losses = values[:, None] + noise + [0.9, 0.5, 0.2]
    return points, losses, values


def seen(losses, values, complete, come_to):
    """What is known when some are complete, and the others have come to so many rungs."""
    losses, values = losses.copy(), values.copy()
    others = np.setdiff1d(np.arange(len(values)), complete)
    values[others] = math.nan
    for point, rungs in zip(others, np.broadcast_to(come_to, others.shape), strict=True):
        losses[point, rungs:] = math.nan
    return losses, values


def test_factors_are_centred_levels_and_their_products():
    points = [{"a": a, "b": b} for a in (False, True) for b in ("x", "y", "z")]
    factors = DesignMatrix.of(points)
    assert factors.main.shape == (6, 3)
    assert factors.pairs.shape == (6, 2)
    assert factors.main.mean(axis=0) == pytest.approx([0, 0, 0])
    assert factors.pairs[:, 0] == pytest.approx(factors.main[:, 0] * factors.main[:, 1])
    # What never varies tells nothing; what some points lack is a level of its own.
    assert DesignMatrix.of([{"a": 1}, {"a": 1}]).main.shape == (2, 0)
    assert DesignMatrix.of([{"a": 1}, {"b": 1}]).main.shape == (2, 2)
    many = DesignMatrix.of([{"rate": float(number)} for number in range(20)])
    assert many.main.shape == (20, 1)
    # A number stays one where it is missing, and pairs beyond counting are left out.
    some = DesignMatrix.of([{"rate": float(number)} for number in range(20)] + [{}, {}])
    assert some.main.shape == (22, 2)
    assert np.isfinite(some.main).all()
    names = [{f"p{i}": f"{i}-{number % 9}" for i in range(6)} for number in range(60)]
    assert (DesignMatrix.of(names).main.shape[1], DesignMatrix.of(names).pairs.shape[1]) == (48, 0)


def test_a_finished_point_is_what_it_is():
    points, losses, values = world(0)
    known = seen(losses, values, np.arange(30), 2)
    found = predict_final_values(DesignMatrix.of(points), *known)
    assert (found.mean[:30] == values[:30]).all()
    assert (found.deviation[:30] == 0).all()
    assert (found.deviation[30:] > 0).all()


def test_one_that_is_finished_without_a_curve_misleads_nobody():
    points, losses, values = world(0)
    losses, values = seen(losses, values, np.arange(30), 2)
    without = predict_final_values(DesignMatrix.of(points), losses, values)
    losses[5], losses[6, 1:] = math.nan, math.nan
    found = predict_final_values(DesignMatrix.of(points), losses, values)
    assert (found.mean[:30] == values[:30]).all()
    assert found.mean == pytest.approx(without.mean, abs=0.1)
    assert (found.deviation[30:] > 0).all()


@pytest.mark.parametrize("come_to", [0, 1, 3])
def test_values_lie_where_they_are_foretold(come_to):
    """Over many worlds a value is off by a deviation on average, and hardly ever by three."""
    off = []
    for seed in range(12):
        points, losses, values = world(seed)
        complete = np.random.default_rng(seed).permutation(len(values))[:30]
        found = predict_final_values(
            DesignMatrix.of(points), *seen(losses, values, complete, come_to)
        )
        others = found.deviation > 0
        off.append((values - found.mean)[others] / found.deviation[others])
    off = np.concatenate(off)
    assert 0.5 < off.std() < 1.3
    assert abs(off.mean()) < 0.3
    assert (abs(off) > 3).mean() < 0.02


def test_what_points_like_it_came_to_tells_more_than_its_own_curve():
    points, losses, values = world(1, spread=0.3)
    complete = np.random.default_rng(1).permutation(len(values))[:40]
    known = seen(losses, values, complete, 1)
    with_fellows = predict_final_values(DesignMatrix.of(points), *known)
    alone = predict_final_values(DesignMatrix.of([{} for _ in points]), *known)
    others = with_fellows.deviation > 0
    error, error_alone = (
        np.abs(found.mean - values)[others].mean() for found in (with_fellows, alone)
    )
    assert error < 0.8 * error_alone
    assert with_fellows.deviation[others].mean() < alone.deviation[others].mean()


def test_those_that_stopped_for_being_bad_do_not_mislead():
    """Only the better ones of each rung went on: what is foretold of the others is not too good."""
    worse = []
    for seed in range(8):
        points, losses, values = world(seed)
        known = losses.copy(), np.full(len(values), math.nan)
        alive = np.arange(len(values))
        for rung in (0, 1, 2):
            order = np.argsort(losses[alive, rung])
            stop, alive = alive[order[len(order) // 2 :]], alive[order[: len(order) // 2]]
            known[0][stop, rung + 1 :] = math.nan
        known[1][alive] = values[alive]
        found = predict_final_values(DesignMatrix.of(points), *known)
        stopped = found.deviation > 0
        worse.append(((values - found.mean)[stopped] / found.deviation[stopped]).mean())
    assert abs(np.mean(worse)) < 0.7


def test_before_anything_is_complete_a_point_is_as_good_as_its_curve():
    points, losses, values = world(2)
    found = predict_final_values(
        DesignMatrix.of(points), *seen(losses, values, np.array([], dtype=int), 1)
    )
    assert (np.argsort(found.mean) == np.argsort(losses[:, 0])).all()
    chances = found.below(found.bound(9))
    assert 0.01 < chances.min() < chances.max() < 0.9


@settings(max_examples=25, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(0, 40), st.integers(0, 5))
def test_the_order_of_the_points_does_not_matter(random, complete, seed):
    points, losses, values = world(seed)
    random = np.random.default_rng(random.randrange(2**32))
    come_to = random.integers(0, 4, len(values) - complete)
    order = random.permutation(len(values))
    losses, values = seen(losses, values, order[:complete], come_to)
    found = predict_final_values(DesignMatrix.of(points), losses, values)
    shuffled = random.permutation(len(values))
    other = predict_final_values(
        DesignMatrix.of([points[i] for i in shuffled]), losses[shuffled], values[shuffled]
    )
    assert other.mean == pytest.approx(found.mean[shuffled], abs=1e-6)
    assert other.deviation == pytest.approx(found.deviation[shuffled], abs=1e-6)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(0, 10), st.sampled_from([0.0, 0.001, 0.1, 3.0])),
        min_size=2,
        max_size=40,
        unique_by=lambda one: round(one[0], 3),
    ),
    st.data(),
)
def test_as_many_are_expected_below_the_bound_as_are_asked_for(normals, data):
    count = data.draw(st.integers(1, len(normals) - 1))
    mean, deviation = map(np.array, zip(*normals, strict=True))
    found = Prediction(mean, deviation)
    chances = found.below(found.bound(count))
    assert ((chances >= 0) & (chances <= 1)).all()
    assert chances.sum() == pytest.approx(count, abs=0.5)
    if (deviation > 0).all():
        assert chances.sum() == pytest.approx(count, abs=1e-3)


def test_all_are_below_the_bound_of_all():
    found = Prediction(np.array([1.0, 2.0]), np.array([0.0, 1.0]))
    assert found.below(found.bound(2)) == pytest.approx([1, 1])
