"""Audit of the pruner: a random sample of architectures that is trained to the end.

An architecture is a combination of all parameters but the nuisance parameters. The trials of an
audited one are trained to the end whatever the pruner decides, so their values test its predictions
and set their scale. ``docs/pruning.md`` describes the planned looks.
"""

import math
import random
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from reports.stats.audit import (
    DEGREES,
    INTERVAL_SCALES,
    STATED_SHARE,
    compute_outside_p_value,
)
from search.pruning.predictions import Prediction
from search.pruning.regression import Floats, Indices, Mask
from studies.attributes import AuditLook, AuditState
from studies.config import StudyConfig
from studies.space import architecture_key
from studies.storage.trials import StoredTrial

DIVISOR = 10
"""Least number of architectures for each that is audited."""

LEVEL = 0.05
"""Probability of a false alarm in a search whose predictions are calibrated, at most."""

LOOKS = 2
"""Number of planned looks."""

PRIOR_SCORES = 8
"""How many audited trials with errors of one scale the predictions' own scale is worth."""


def number_architectures(params: Sequence[Mapping[str, Any]], nuisance: Sequence[str]) -> Indices:
    """Return the architecture of each trial, (N,), numbered in the order of their first trials.

    Its trials have other values of the nuisance parameters, or are replicates.
    """
    numbers: dict[Hashable, int] = {}
    keys = (architecture_key(of_trial, nuisance) for of_trial in params)
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)


def draw_audited(
    trials: Sequence[StoredTrial], config: StudyConfig, nuisance: Sequence[str]
) -> list[StoredTrial]:
    """Draw the audited architectures of a study at random, without replacement, with its seed.

    All trials of an audited architecture are audited. Each of several tasks has a sample of its
    own.
    """
    if not config.pruning.enabled and config.loop is None:  # where a worker may enable it
        return list(trials)
    audited: set[int] = set()
    tasks = [config.task_of(trial.params) for trial in trials]
    for task in dict.fromkeys(tasks):
        places = [place for place, of_trial in enumerate(tasks) if of_trial == task]
        architectures = number_architectures([trials[i].params for i in places], nuisance).tolist()
        total = 1 + max(architectures)
        seed = random.Random(f"audit {config.seed} 0{task}")
        chosen = seed.sample(range(total), min(config.pruning.audit, total // DIVISOR))
        audited.update(
            i for i, number in zip(places, architectures, strict=True) if number in chosen
        )
    return [
        replace(trial, audit=AuditState() if place in audited else None)
        for place, trial in enumerate(trials)
    ]


def is_alarm(trials: int, inside: int) -> bool:
    """Return whether a look, with so many values inside of two scales, finds them uncalibrated.

    The level of both looks together is at most :data:`LEVEL` (Bonferroni).
    """
    return compute_outside_p_value(trials, inside) < LEVEL / LOOKS


class AuditedTrials:
    """Audited trials that have stopped in decisions, each predicted without its value.

    Their scores are z = (value − mean) / scale. An audited trial's own prediction is corrected by
    the scores of the other architectures.

    Args:
        prediction: final values of N trials.
        values: (N,) values of finished trials.
        is_held: (N,) which of them are predicted without their values.
        architectures: (N,) architecture of each trial.
    """

    def __init__(
        self, prediction: Prediction, values: Floats, is_held: Mask, architectures: Indices
    ) -> None:
        self._prediction = prediction
        self._is_held = is_held
        self._scores = prediction.compute_scores(values)[is_held]
        found, self._first, self._owners = np.unique(
            architectures[is_held], return_index=True, return_inverse=True
        )
        self._count = len(found)  # of the architectures

    def look(self, complete: int) -> AuditLook:
        """Compare the predictions with the values, with so many trials complete.

        Of each architecture the first trial is compared: trials are created in random order.
        """
        scores = self._scores[self._first]
        trials, inside = len(scores), int((np.abs(scores) <= INTERVAL_SCALES).sum())
        alarm = is_alarm(trials, inside)
        return AuditLook(complete=complete, trials=trials, inside=inside, alarm=alarm)

    def adjust_scale(self) -> Prediction:
        """Adjust the scale of all predictions to the errors of these.

        Every scale is multiplied by the root mean square of the scores, each architecture once, and
        of :data:`PRIOR_SCORES` scores of 1: the posterior mean of the variance of normal scores
        with an inverse gamma prior.
        """
        return self._prediction.correct(np.zeros(len(self._is_held)), self._scale_factors())

    def recalibrate(self) -> Prediction:
        """Correct the bias and the scale of predictions that an audit has found to be wrong.

        With scores of mean b and of root mean square f around it relative to a calibrated
        prediction's, a prediction becomes mean + b · scale ± f · scale; f is at least 1 and the
        factor of :meth:`adjust_scale`. With fewer than three other architectures, only the scale is
        adjusted.
        """
        bias, factor = np.zeros(len(self._is_held)), np.ones(len(self._is_held))
        if self._count > 3:
            bias[:], factor[:] = _bias_and_factor(self._scores, self._count)
            others = [
                _bias_and_factor(self._scores[self._owners != i], self._count - 1)
                for i in range(self._count)
            ]
            bias[self._is_held], factor[self._is_held] = np.array(others)[self._owners].T
        return self._prediction.correct(bias, np.maximum(factor, self._scale_factors()))

    def _scale_factors(self) -> Floats:
        """Return the factors by which :meth:`adjust_scale` multiplies scales, (N,)."""
        owners = self._owners
        means = np.bincount(owners, self._scores**2) / np.bincount(owners)  # of each architecture
        total, count = PRIOR_SCORES + means.sum(), PRIOR_SCORES + len(means)
        factors = np.full(len(self._is_held), math.sqrt(total / count))
        factors[self._is_held] = np.sqrt((total - means[owners]) / (count - 1))
        return factors


def _bias_and_factor(scores: Floats, architectures: int) -> tuple[float, float]:
    """Return the mean of some scores, and their spread relative to that of calibrated ones."""
    expected = math.sqrt(DEGREES / (DEGREES - 2))  # standard deviation of a calibrated score
    # A new trial's deviation from the estimated mean has the variance of (1 + 1 / n) scores.
    spread = scores.std(ddof=1) * math.sqrt(1 + 1 / architectures)
    return float(scores.mean()), max(1.0, float(spread) / expected)


def describe_look(found: AuditLook) -> str:
    """Describe a look at the audited trials, as part of a line."""
    text = (
        f"{found.inside} of {found.trials} audited trials finished within two scales of their "
        f"predictions, {STATED_SHARE:.0%} expected"
    )
    return f"{text}; predictions are recalibrated on the audited trials" if found.alarm else text
