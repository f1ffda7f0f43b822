"""Pruned studies: what was saved, what the audit measures, and effects."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from reports.results import Results
from reports.stats import Floats
from reports.stats.audit import (
    AuditedEffects,
    Obstacle,
    Recall,
    compare_predictions,
    compute_outside_p_value,
    estimate_with_audit,
    judge_architectures,
    measure_recall,
    merge_runs,
)
from reports.stats.design import number_groups
from reports.stats.estimate import mean_half_width
from studies.attributes import AuditLook
from studies.best import top_count
from studies.storage.trials import TrialStatus

ALARM_LEVEL = 0.05
"""Level of the test of the recorded predictions in a finished study."""


@dataclass(frozen=True)
class PruningAudit(Recall):
    """What the audited trials of a study measure.

    Attributes:
        trials: number of audited trials, all runs of an architecture at its nuisance values as one.
        architectures: number of audited architectures.
        planned: number of architectures of the study.
        looks: planned looks at the audited trials during the search, by name.
        top_count: number of best architectures that are to be kept.
        tested: number of audited architectures with a trial that would have been pruned and has a
            value; one such trial of each is compared with its prediction.
        inside: number of these trials whose value is within two scales of the prediction.
        bias: mean of value minus prediction, in nats; NaN without a prediction.
        bias_low: lower end of its 95% interval; NaN with fewer than two.
        bias_high: upper end of the interval.
        is_valid: whether the architectures were drawn as they are judged now; otherwise bound and
            test do not hold.
    """

    trials: int
    architectures: int
    planned: int
    looks: Mapping[str, AuditLook]
    top_count: int
    tested: int
    inside: int
    bias: float
    bias_low: float
    bias_high: float
    is_valid: bool

    @property
    def recall_low(self) -> float:
        """Lower bound of the share of the best that is complete, with 95% confidence."""
        return max(0.0, 1 - self.lost_high / self.top_count)

    @property
    def p_value(self) -> float:
        """Probability of so many values outside or more, if the predictions are calibrated."""
        return compute_outside_p_value(self.tested, self.inside)

    @property
    def is_alarm(self) -> bool:
        """Whether the recorded predictions are not calibrated."""
        return self.p_value < ALARM_LEVEL


def audit_pruning(results: Results) -> PruningAudit | None:
    """Compute what the audited trials of a study measure; None without audited trials."""
    if not results.table["audited"].any():
        return None
    table = merge_runs(results.table, results.parameters)
    architectures = _judge_losses(results)
    kept = top_count(results.config.pruning.keep, len(architectures))
    errors, is_inside = compare_predictions(table, results.judged_parameters)
    mean, low, high = _mean_interval(errors)
    return PruningAudit(
        **vars(measure_recall(architectures, kept)),
        trials=int(table["audited"].sum()),
        architectures=int(architectures["audited"].sum()),
        planned=len(architectures),
        looks=results.audit_looks,
        top_count=kept,
        tested=len(errors),
        inside=int(is_inside.sum()),
        bias=mean,
        bias_low=low,
        bias_high=high,
        is_valid=results.has_valid_audit,
    )


def _mean_interval(sample: Floats) -> tuple[float, float, float]:
    """Return a mean and the ends of Student's 95% interval; NaN where there are too few."""
    count = len(sample)
    mean = float(sample.mean()) if count else math.nan
    if count < 2:
        return mean, math.nan, math.nan
    reach = mean_half_width(sample.tolist())
    return mean, mean - reach, mean + reach


@dataclass(frozen=True)
class PruningSummary:
    """Savings and risks of pruning in a study.

    All runs of an architecture at its nuisance values count as one trial.

    Attributes:
        planned: number of trials.
        top_count: number of best trials that pruning is to keep.
        step_share: share of the steps of all trials that was trained.
        rungs: one row per rung after which trials were pruned: ``step``, ``trials`` and
            ``keep_probability``, the sum of their probabilities of being among the best.
    """

    planned: int
    top_count: int
    step_share: float
    rungs: pd.DataFrame


def summarize_pruning(results: Results) -> PruningSummary | None:
    """Summarize the pruning of a study; None if pruning is disabled."""
    settings = results.config.pruning
    if not settings.enabled:
        return None
    table = merge_runs(results.table, results.parameters)
    pruned = table[table["state"] == TrialStatus.PRUNED]
    rungs = (
        pruned.groupby("rung")["keep_probability"]
        .agg(size="size", sum=lambda values: values.sum(min_count=1))
        .reset_index()
    )
    last_steps = results.curve_ends["last_step"]
    trained_steps = float(last_steps.reindex(results.table.index).fillna(0).sum())
    return PruningSummary(
        planned=len(table),
        top_count=top_count(settings.keep, len(table)),
        step_share=trained_steps / (results.config.length_of().steps * len(results.table)),
        rungs=rungs.set_axis(["step", "trials", "keep_probability"], axis=1),
    )


def estimate_audited_effects(results: Results) -> AuditedEffects:
    """Estimate the main effects in a pruned study."""
    if not results.table["audited"].any():
        return AuditedEffects([], Obstacle.NO_AUDIT)
    if not results.has_valid_audit:
        return AuditedEffects([], Obstacle.OTHER_SAMPLE)
    if not results.is_finished:
        return AuditedEffects([], Obstacle.UNFINISHED)
    names = results.judged_parameters
    measure = results.measure
    architectures = _judge_losses(results)
    values = ["value", "estimate"]
    architectures[values] = measure.to_loss(architectures[values])
    merged = merge_runs(results.table, results.parameters)
    kinds = results.find_kinds(merged[~number_groups(merged, names).duplicated()])
    return estimate_with_audit(
        architectures, names, measure.higher_is_better, results.find_traits(names), kinds
    )


def _judge_losses(results: Results) -> pd.DataFrame:
    """Judge the architectures of a study by values of which the least is the best."""
    values = ["value", "predicted_value"]
    table = results.table.copy()
    table[values] = results.measure.to_loss(table[values])
    return judge_architectures(merge_runs(table, results.parameters), results.judged_parameters)
