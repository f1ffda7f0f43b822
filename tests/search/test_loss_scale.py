"""The scale on which losses are predicted."""

import numpy as np
import pytest

from search.pruning.design_matrix import DesignMatrix
from search.pruning.loss_scale import LossScale
from search.pruning.predictions import predict_final_values


def test_losses_return_from_the_scale():
    losses = np.array([2.0, 2.1, 2.2, 2.3, 3.0, 9.0])
    scale = LossScale.from_losses(losses)
    compressed = scale.compress(losses)
    assert compressed[:3] == pytest.approx(losses[:3]), "the better half stays as it is"
    assert (np.diff(compressed) > 0).all()
    assert compressed[-1] < 4
    assert scale.expand(compressed) == pytest.approx(losses)
    slope = (scale.compress(losses + 1e-6) - compressed) / 1e-6
    assert scale.slope(losses)[3:] == pytest.approx(slope[3:], rel=1e-3)


@pytest.mark.parametrize("losses", [[], [np.nan], [2.0], [2.0, 2.0, 5.0]])
def test_scale_is_linear_where_there_is_no_spread(losses):
    scale = LossScale.from_losses(np.array(losses))
    others = np.array([-1.0, 2.0, 7.0])
    assert (scale.compress(others) == others).all()
    assert (scale.expand(others) == others).all()
    assert np.isinf(scale.compress(np.array([np.inf]))).all()


@pytest.mark.parametrize("complete", [1, 3])
def test_with_few_complete_trials_the_others_are_predicted_at_their_losses(complete):
    losses = 3 + np.random.default_rng(0).normal(0, 0.1, 40)
    values = np.where(np.arange(40) < complete, losses - 1, np.nan)
    design = DesignMatrix.from_params([{} for _ in values])
    prediction = predict_final_values(design, losses[:, None], values)
    assert prediction.mean[complete:] == pytest.approx(losses[complete:])
    assert prediction.cdf(prediction.threshold_for_count(4)).sum() == pytest.approx(4)


def test_networks_that_learn_nothing_do_not_exclude_the_middle_ones():
    """Bad networks stay where they are, good ones fall, and middle ones fall as good ones do."""
    random = np.random.default_rng(0)
    fall = np.repeat([0.7, 0.7, 0.0], [20, 20, 20])
    first = np.repeat([2.6, 2.8, 3.5], [20, 20, 20]) + random.normal(0, 0.02, 60)
    values = first - fall
    known = np.zeros(60, dtype=bool)
    known[:12], known[40:46] = True, True
    prediction = predict_final_values(
        DesignMatrix.from_params([{} for _ in values]),
        first[:, None],
        np.where(known, values, np.nan),
    )
    assert np.abs(prediction.mean - values)[20:40].mean() < 0.04
