"""The regression behind the pruner averages over its hyperparameters."""

import itertools

import numpy as np
import pytest
from scipy import stats

from search.pruning.regression import (
    CONSTANT,
    CURVE,
    INTERACTION,
    MAIN_EFFECT,
    BayesianRidge,
)


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
