"""What the audited trials of a pruned study measure: recall and the calibration of predictions.

Audited trials are a random sample that is trained to the end whatever the pruner decides. Those
that it would have pruned are a random sample of all trials that it prunes, so the number of the
best among these has an exact bound: the population is finite and the sample is without replacement
(hypergeometric distribution; Cochran, *Sampling Techniques*, 3rd edition, section 3.6).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from optuna.trial import TrialState
from scipy import stats

from reports.data.results import Results
from reports.stats.paired_difference import CONFIDENCE, Floats
from studies.attributes import AuditLook
from studies.config import top_count

ALARM_LEVEL = 0.05
"""Level of the test of the recorded predictions in a finished study."""

INTERVAL_SCALES = 2.0
DEGREES = 5
"""Predictions are Student's t-distributions; intervals are their mean ± two scales."""

STATED_SHARE = float(stats.t.cdf(INTERVAL_SCALES, DEGREES) - stats.t.cdf(-INTERVAL_SCALES, DEGREES))
"""Share of the final values that the intervals are to cover: 0.898."""


@dataclass(frozen=True)
class PruningAudit:
    """What the audited trials of a study measure.

    Attributes:
        trials: number of audited trials.
        looks: planned looks at them during the search, by name.
        top_count: number of best trials that are to be kept.
        pruned: number of pruned trials.
        stopped: number of audited trials that would have been pruned and have a value.
        lost: number of these that are better than the last of the best that the pruner kept.
        lost_high: upper bound of the number of such trials among the pruned, with 95% confidence.
        inside: number of them whose value is within two scales of the prediction.
        bias: mean of value minus prediction, in nats; NaN without a prediction.
        bias_low: lower end of its 95% interval; NaN with fewer than two.
        bias_high: upper end of the interval.
    """

    trials: int
    looks: Mapping[str, AuditLook]
    top_count: int
    pruned: int
    stopped: int
    lost: int
    lost_high: int
    inside: int
    bias: float
    bias_low: float
    bias_high: float

    @property
    def recall_low(self) -> float:
        """Lower bound of the share of the best that is complete, with 95% confidence."""
        return max(0.0, 1 - self.lost_high / self.top_count)

    @property
    def p_value(self) -> float:
        """Probability of so many values outside or more, if the predictions are calibrated."""
        return float(stats.binom.sf(self.stopped - self.inside - 1, self.stopped, 1 - STATED_SHARE))

    @property
    def is_alarm(self) -> bool:
        """Whether the recorded predictions are not calibrated."""
        return self.p_value < ALARM_LEVEL

    @property
    def has_held_back(self) -> bool:
        """Whether a look during the search failed, and the predictions were recalibrated."""
        return any(look.alarm for look in self.looks.values())

    @property
    def stated_share(self) -> float:
        """Share of the values that the intervals are to cover."""
        return STATED_SHARE


def audit_pruning(results: Results) -> PruningAudit | None:
    """Compute what the audited trials of a study measure; None without audited trials."""
    table = results.table
    audited = table[table["audited"]]
    if not len(audited):
        return None
    stopped = audited[find_stopped(audited)]
    pruned = int((table["state"] == TrialState.PRUNED.name).sum())
    kept = top_count(results.config.pruning.keep, len(table))
    others = results.complete.drop(stopped.index)["value"].nsmallest(kept)
    threshold = float(others.max()) if len(others) == kept else math.inf
    lost = int((stopped["value"] < threshold).sum())
    errors = (stopped["value"] - stopped["predicted_value"]).to_numpy(dtype=float)
    inside = np.abs(errors) <= INTERVAL_SCALES * stopped["predicted_scale"].to_numpy(dtype=float)
    mean, low, high = _mean_interval(errors)
    return PruningAudit(
        trials=len(audited),
        looks=results.audit_looks,
        top_count=kept,
        pruned=pruned,
        stopped=len(stopped),
        lost=lost,
        lost_high=bound_lost(pruned, len(stopped), lost),
        inside=int(inside.sum()),
        bias=mean,
        bias_low=low,
        bias_high=high,
    )


def find_stopped(table: pd.DataFrame) -> "pd.Series[bool]":
    """Return which audited trials would have been pruned and are complete."""
    is_complete = table["state"] == TrialState.COMPLETE.name
    is_stopped: pd.Series[bool] = table["audited"] & table["reason"].notna() & is_complete
    return is_stopped


def bound_lost(pruned: int, sample: int, found: int, confidence: float = CONFIDENCE) -> int:
    """Return an exact upper bound of the number of marked items outside a random sample.

    Args:
        pruned: number of items outside the sample.
        sample: size of the sample.
        found: number of marked items in the sample.
        confidence: probability with which the bound holds, at least.
    """
    total = pruned + sample
    marked = np.arange(found, found + pruned + 1)  # possible numbers in all
    plausible = stats.hypergeom.cdf(found, total, marked, sample) >= 1 - confidence
    return int(marked[plausible].max()) - found


def _mean_interval(sample: Floats) -> tuple[float, float, float]:
    """Return a mean and the ends of Student's 95% interval; NaN where there are too few."""
    count = len(sample)
    mean = float(sample.mean()) if count else math.nan
    if count < 2:
        return mean, math.nan, math.nan
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1) * sample.std(ddof=1))
    reach /= math.sqrt(count)
    return mean, mean - reach, mean + reach
