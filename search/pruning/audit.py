"""Audit of the pruner: a random sample of trials, planned looks at it, and recalibration.

An audited trial is trained to the end whatever the pruner decides, so its final value tests what
the pruner predicted for it. The looks are planned: one before the first trial is pruned, one before
the last ones are. Each is an exact binomial test of the number of values outside ± two scales; the
level of both together is at most :data:`LEVEL` (Bonferroni). If one fails, the predictions are
recalibrated on the audited trials from then on.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from search.pruning.predictions import DEGREES, Floats, Mask, Prediction
from studies.attributes import AuditLook
from studies.config import StudyConfig
from studies.storage.create_study import PlannedTrial

DIVISOR = 10
"""Least number of trials for each that is audited."""

LEVEL = 0.05
"""Probability of a false alarm in a search whose predictions are calibrated, at most."""

LOOKS = 2
"""Number of planned looks."""

INTERVAL_SCALES = 2.0
"""Half width of the interval of a prediction, in scales."""

STATED_SHARE = 2 * float(Prediction(np.zeros(1), np.ones(1)).cdf(INTERVAL_SCALES)[0]) - 1
"""Share of the final values that such intervals are to cover: 0.898."""


def draw_audited(trials: Sequence[PlannedTrial], config: StudyConfig) -> list[PlannedTrial]:
    """Draw the audited trials of a new study: at random, without replacement, with its seed."""
    return _draw(trials, _count(config, len(trials)), config.seed, 0)


def draw_added(
    trials: Sequence[PlannedTrial], config: StudyConfig, before: int, audited: int
) -> list[PlannedTrial]:
    """Draw the audited trials among those that an extension adds.

    They are the same share of the added trials as of the others, so that all trials of the study
    have the same chance.

    Args:
        trials: trials to add.
        config: config of the study.
        before: number of trials that it has already.
        audited: number of these that are audited.
    """
    count = round(len(trials) * audited / before)
    if before < DIVISOR:  # too few for one of them
        count = min(_count(config, before + len(trials)), len(trials))
    return _draw(trials, count, config.seed, before)


def _count(config: StudyConfig, trials: int) -> int:
    return min(config.pruning.audit, trials // DIVISOR) if config.pruning.enabled else 0


def _draw(trials: Sequence[PlannedTrial], count: int, seed: int, before: int) -> list[PlannedTrial]:
    chosen = set(random.Random(f"audit {seed} {before}").sample(range(len(trials)), count))
    return [trial._replace(is_audited=i in chosen) for i, trial in enumerate(trials)]


@dataclass(frozen=True)
class Look:
    """Test of the predictions on the audited trials at one moment of a search.

    Attributes:
        trials: number of audited trials with a final value that the pruner has stopped in its
            decisions.
        inside: number of them whose final value is within two scales of its prediction.
    """

    trials: int
    inside: int

    @property
    def p_value(self) -> float:
        """Probability of so many values outside or more, if the predictions are calibrated."""
        return outside_p_value(self.trials, self.inside)

    @property
    def is_alarm(self) -> bool:
        """Whether the predictions are not calibrated, at the level of one look."""
        return self.p_value < LEVEL / LOOKS


def outside_p_value(trials: int, inside: int) -> float:
    """Return the p-value of the exact one-sided binomial test of the number of values outside."""
    from scipy import stats  # slow to import, and needed twice in a search

    return float(stats.binom.sf(trials - inside - 1, trials, 1 - STATED_SHARE))


def look(prediction: Prediction, values: Floats, is_held: Mask) -> Look:
    """Compare the predictions of audited trials, each made without its value, with these values.

    Args:
        prediction: final values of N trials.
        values: (N,) values of finished trials.
        is_held: (N,) which of them are predicted without their values.
    """
    scores = _scores(prediction, values)[is_held]
    return Look(len(scores), int((np.abs(scores) <= INTERVAL_SCALES).sum()))


def recalibrate(prediction: Prediction, values: Floats, is_held: Mask) -> Prediction:
    """Correct the bias and the scale of predictions by those of audited trials.

    With the scores z = (value − mean) / scale of the audited trials, of mean b and of root mean
    square f around it relative to a calibrated prediction's, a prediction becomes mean + b · scale
    ± f · scale; f is at least 1. The prediction of an audited trial is corrected by the scores of
    the others. With fewer than three of these, nothing is corrected.

    Args:
        prediction: final values of N trials.
        values: (N,) values of finished trials.
        is_held: (N,) which of them are predicted without their values.
    """
    scores = _scores(prediction, values)[is_held]
    bias, factor = np.zeros(len(values)), np.ones(len(values))
    if len(scores) > 3:
        bias[:], factor[:] = _bias_and_factor(scores)
        others = [_bias_and_factor(np.delete(scores, i)) for i in range(len(scores))]
        bias[is_held], factor[is_held] = np.array(others).T
    return Prediction(prediction.mean + bias * prediction.scale, factor * prediction.scale)


def _bias_and_factor(scores: Floats) -> tuple[float, float]:
    expected = math.sqrt(DEGREES / (DEGREES - 2))  # standard deviation of a calibrated score
    # A new trial's deviation from the estimated mean has the variance of (1 + 1 / n) scores.
    spread = scores.std(ddof=1) * math.sqrt(1 + 1 / len(scores))
    return float(scores.mean()), max(1.0, float(spread) / expected)


def _scores(prediction: Prediction, values: Floats) -> Floats:
    scale = np.maximum(prediction.scale, 1e-9 * (1 + np.abs(prediction.mean)))
    scores: Floats = (values - prediction.mean) / scale
    return scores


def describe_look(found: AuditLook) -> str:
    """Describe a look at the audited trials, as part of a line."""
    text = (
        f"{found.inside} of {found.trials} audited trials finished within two scales of their "
        f"predictions, {STATED_SHARE:.0%} expected"
    )
    return f"{text}; predictions are recalibrated on the audited trials" if found.alarm else text
