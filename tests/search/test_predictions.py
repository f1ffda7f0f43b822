"""Predictions of final values, and the regression behind them, are accurate and calibrated."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from search.pruning.predictions import Prediction, predict_final_values
from search.pruning.regression import (
    CONSTANT,
    CURVE,
    INTERACTION,
    MAIN_EFFECT,
    BayesianRidge,
    DesignMatrix,
)

SWITCHES = ("input", "forget", "output", "state")


def simulate_grid(seed, spread=0.1, sizes=(32, 64)):
    """Simulate a grid whose final values depend on the switches and their pairs.

    Returns:
        Parameters of the trials, their losses at three rungs, and their values.
    """
    random = np.random.default_rng(seed)
    params = [
        {name: bool(index >> bit & 1) for bit, name in enumerate(SWITCHES)}
        | {"source": source, "size": size}
        for index in range(16)
        for source in ("new", "old", "both")
        for size in sizes
    ]
    design = DesignMatrix.from_params(params)
    effects = random.normal(0, 0.1, design.main_effects.shape[1])
    interactions = random.normal(0, 0.03, design.interactions.shape[1])
    values = 2 + design.main_effects @ effects + design.interactions @ interactions
    values += random.normal(0, 0.2 * spread, len(params))
    noise = random.normal(0, spread, (len(params), 3)) * [0.6, 0.3, 0.15]
    losses = values[:, None] + noise + [0.9, 0.5, 0.2]
    return params, losses, values


def hide_unobserved(losses, values, complete, reached):
    """Hide the values of incomplete trials and their losses after the rungs that they reached."""
    losses, values = losses.copy(), values.copy()
    others = np.setdiff1d(np.arange(len(values)), complete)
    values[others] = math.nan
    for trial, rungs in zip(others, np.broadcast_to(reached, others.shape), strict=True):
        losses[trial, rungs:] = math.nan
    return losses, values


def predict(params, losses, values):
    places = np.arange(len(values))
    design = DesignMatrix.from_params(params)
    return predict_final_values(design, losses, values, np.full(len(values), -1), places, {})


@pytest.mark.parametrize(
    ("reached", "seeds"),
    [
        (1, 3),
        pytest.param(0, 12, marks=pytest.mark.extended),
        pytest.param(3, 12, marks=pytest.mark.extended),
    ],
)
def test_predictions_are_calibrated(reached, seeds):
    """Over many simulations errors are about one scale on average and rarely exceed three."""
    errors = []
    for seed in range(seeds):
        params, losses, values = simulate_grid(seed)
        complete = np.random.default_rng(seed).permutation(len(values))[:30]
        prediction = predict(params, *hide_unobserved(losses, values, complete, reached))
        assert (prediction.mean[complete] == values[complete]).all(), "they are known"
        assert (prediction.scale[complete] == 0).all()
        others = prediction.scale > 0
        assert others.sum() == len(values) - len(complete)
        errors.append((values - prediction.mean)[others] / prediction.scale[others])
    errors = np.concatenate(errors)
    assert 0.5 < errors.std() < 1.3
    assert abs(errors.mean()) < 0.3
    assert (abs(errors) > 3).mean() < 0.02


@settings(max_examples=8, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(0, 40), st.integers(0, 5))
def test_predictions_do_not_depend_on_the_order_of_trials(random, complete, seed):
    params, losses, values = simulate_grid(seed)
    random = np.random.default_rng(random.randrange(2**32))
    reached = random.integers(0, 4, len(values) - complete)
    order = random.permutation(len(values))
    losses, values = hide_unobserved(losses, values, order[:complete], reached)
    prediction = predict(params, losses, values)
    shuffled = random.permutation(len(values))
    other = predict([params[i] for i in shuffled], losses[shuffled], values[shuffled])
    assert other.mean == pytest.approx(prediction.mean[shuffled], abs=1e-6)
    assert other.scale == pytest.approx(prediction.scale[shuffled], abs=1e-6)


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
def test_expected_number_below_the_threshold_is_the_given_count(distributions, data):
    count = data.draw(st.integers(1, len(distributions) - 1))
    mean, scale = map(np.array, zip(*distributions, strict=True))
    prediction = Prediction(mean, scale)
    probabilities = prediction.cdf(prediction.threshold_for_count(count))
    assert ((probabilities >= 0) & (probabilities <= 1)).all()
    assert probabilities.sum() == pytest.approx(count, abs=0.5)
    if (scale > 0).all():
        assert probabilities.sum() == pytest.approx(count, abs=1e-3)


def test_networks_that_learn_nothing_do_not_exclude_the_middle_ones():
    """Bad networks stay where they are, good ones fall, and middle ones fall as good ones do."""
    random = np.random.default_rng(0)
    fall = np.repeat([0.7, 0.7, 0.0], [20, 20, 20])
    first = np.repeat([2.6, 2.8, 3.5], [20, 20, 20]) + random.normal(0, 0.02, 60)
    values = first - fall
    known = np.zeros(60, dtype=bool)
    known[:12], known[40:46] = True, True
    prediction = predict([{}] * 60, first[:, None], np.where(known, values, np.nan))
    assert np.abs(prediction.mean - values)[20:40].mean() < 0.04


def test_network_on_a_plateau_that_the_others_have_left_is_not_given_up():
    params, losses, values = simulate_grid(0)
    losses[-1] = 3.6  # at each rung
    complete = np.arange(len(values) - 1)
    prediction = predict(params, *hide_unobserved(losses, values, complete, 3))
    assert prediction.cdf(np.quantile(values[complete], 0.1))[-1] > 0.01


def simulate_rows(count, noise, seed=0):
    """Return features, their kinds, a target and variances of a regression."""
    random = np.random.default_rng(seed)
    features = np.column_stack([np.ones(count), random.normal(size=(count, 4))])
    kinds = np.array([CONSTANT, CURVE, MAIN_EFFECT, MAIN_EFFECT, INTERACTION])
    target = features @ random.normal(size=5) + random.normal(0, noise, count)
    return features, kinds, target, random.choice([0.0, 0.1], count)


def predict_directly(features, kinds, target, variance, new):
    """Average the textbook's posteriors over all hyperparameters, each with its evidence."""
    scale = target.std()
    evidences, means, variances = [], [], []
    for noise, main, ratio in itertools.product(
        (0.1, 0.2, 0.35, 0.6, 1.0), (0.1, 0.3, 1.0), (0.1, 0.4)
    ):
        deviations = np.array([10 * scale, 0.3, main * scale, main * ratio * scale])
        prior = np.diag(deviations[kinds] ** 2)
        errors = np.diag(variance + (noise * scale) ** 2)
        covariance = features @ prior @ features.T + errors
        gain = np.linalg.solve(covariance, features @ prior).T
        evidences.append(stats.multivariate_normal(cov=covariance).logpdf(target))
        means.append(new @ gain @ target)
        posterior = prior - gain @ features @ prior
        variances.append(np.diag(new @ posterior @ new.T) + (noise * scale) ** 2)
    share = np.exp(np.array(evidences) - max(evidences))
    share = np.where(share / share.sum() > 1e-3, share, 0)
    share /= share.sum()
    mean = share @ means
    return mean, share @ (np.array(variances) + (np.array(means) - mean) ** 2)


@pytest.mark.parametrize("noise", [0.05, 1.0])
def test_regression_equals_the_average_of_all_posteriors(noise):
    rows = simulate_rows(60, noise)
    new = simulate_rows(7, noise, seed=1)[0]
    mean, variance = BayesianRidge(*rows).predict(new)
    expected_mean, expected_variance = predict_directly(*rows, new)
    assert mean == pytest.approx(expected_mean, rel=1e-6, abs=1e-9)
    assert variance == pytest.approx(expected_variance, rel=1e-6)
