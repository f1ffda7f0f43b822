"""What pruning did to a study: what audited trials measure, and effects estimated by them.

Audited architectures are a random sample of which all trials are trained to the end whatever the
pruner decides. An architecture is a combination of all parameters but the nuisance parameters, and
judged at its best trial; without nuisance parameters it is a trial. Audited architectures with a
trial that would have been pruned are a random sample of all with a pruned trial, so the number of
the best among these has an exact bound: the population is finite and the sample is without
replacement (hypergeometric distribution; Cochran, *Sampling Techniques*, 3rd edition, section 3.6).

Pairs of complete trials of a pruned study are pairs of survivors: their mean difference is biased.
So effects are estimated over all N architectures, each with a number mᵢ: the least over its trials
of the value or, of a pruned trial, the prediction recorded then. For an audited architecture the
predictions are those recorded when a trial would have been pruned, and the least of its values, yᵢ,
is known as well. A contrast has weights cᵢ, ± 1 / pairs for each pair that an architecture is in.
The difference estimator of Σ cᵢ yᵢ is

    Σ cᵢ mᵢ + (N / n) Σ_audited cᵢ (yᵢ − mᵢ),

unbiased whatever the predictions are worth (Särndal, Swensson & Wretman, *Model Assisted Survey
Sampling*, 1992, section 6.3; as prediction-powered inference: Angelopoulos et al., *Science* 382,
2023). So the least of several predictions may be biased. The variance of the estimator is
N² (1 − n / N) s² / n, with the sample variance s² of cᵢ (yᵢ − mᵢ). Where the pruner would have
trained the best trial of an audited architecture, and where it is in no pair of the contrast, this
is 0; the degrees of freedom of the interval are those of the other audited architectures alone. The
interval is that of drawing other audited architectures. It does not contain the noise between runs.

A pruned trial without a prediction, such as one that plain Optuna has pruned, has no number; an
architecture with no other trial is left out, as one whose trials have failed.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from reports.analysis.nuisance import build_table
from reports.results import Results, number_groups
from reports.stats import Floats
from reports.stats.calibration import INTERVAL_SCALES, STATED_SHARE, compute_outside_p_value
from reports.stats.design import Contrast
from reports.stats.effects import CONFIDENCE, Effect, FactorialTable
from reports.stats.noise import NoiseSource
from reports.stats.scale import NATS, Scale
from reports.trial_table import find_traits
from studies.attributes import AuditLook
from studies.config import top_count
from studies.storage.trials import TrialStatus

ALARM_LEVEL = 0.05
"""Level of the test of the recorded predictions in a finished study."""


@dataclass(frozen=True)
class Recall:
    """How many of the best architectures the pruner lost.

    Attributes:
        pruned: number of architectures with a pruned trial.
        stopped: number of audited architectures with a trial that would have been pruned.
        lost: number of these that are better than the last of the best that the pruner kept, by a
            trial that it would have pruned.
        lost_high: upper bound of the number of such architectures among the pruned, with 95%
            confidence.
    """

    pruned: int
    stopped: int
    lost: int
    lost_high: int


@dataclass(frozen=True)
class PruningAudit(Recall):
    """What the audited trials of a study measure.

    Attributes:
        trials: number of audited trials.
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
    if not table["audited"].any():
        return None
    architectures = judge_architectures(table, results.judged_axes)
    kept = top_count(results.config.pruning.keep, len(architectures))
    errors, is_inside = compare_predictions(table, results.judged_axes)
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


def find_stopped(table: pd.DataFrame) -> "pd.Series[bool]":
    """Return which audited trials would have been pruned."""
    is_stopped: pd.Series[bool] = table["audited"] & table["reason"].notna()
    return is_stopped


def judge_architectures(table: pd.DataFrame, parameters: Sequence[str]) -> pd.DataFrame:
    """Judge each architecture of a pruned study at its best trial, with and without the pruner.

    Args:
        table: one row per trial: ``state``, ``value``, ``audited``, ``reason``, ``predicted_value``
            and the parameters.
        parameters: those that distinguish architectures.

    Returns:
        One row per architecture: the parameters; ``value``, the least of its trials, NaN without
        one; ``kept``, the least of the trials that the pruner has completed or, of an audited
        architecture, would have; ``estimate``, the least over its trials of the value or, if a
        trial was pruned or would have been, of the prediction recorded then; ``audited``; and
        ``stopped``, whether some trial was pruned or would have been. The estimate of an audited
        architecture without a value is missing.
    """
    is_pruned = table["state"] == TrialStatus.PRUNED
    is_stopped = is_pruned | find_stopped(table)
    # A trial that failed may have had a value: what the pruner lost by it is not known.
    is_failed = table["state"] == TrialStatus.FAIL
    rows = table[list(parameters)].assign(
        value=table["value"].astype(float),
        kept=table["value"].astype(float).mask(is_stopped),
        estimate=table["value"].astype(float).mask(is_stopped, table["predicted_value"]),
        unaudited=~table["audited"].astype(bool),
        stopped=is_stopped,
        failed=is_failed & is_stopped,
    )
    groups = number_groups(rows, parameters)
    judged = rows.groupby(groups).agg(
        dict.fromkeys(parameters, "first")
        | {"value": "min", "kept": "min", "estimate": "min"}
        | {"unaudited": "any", "stopped": "any", "failed": "any"}
    )
    judged["audited"] = ~judged.pop("unaudited")
    judged["estimate"] = judged["estimate"].mask(judged["audited"] & judged["value"].isna())
    return judged


def measure_recall(architectures: pd.DataFrame, kept: int) -> Recall:
    """Count the best architectures that the pruner would have lost among the audited ones.

    An architecture is lost if its best trial would have been pruned and is better than the last of
    the best that the pruner kept. There are as many at least as of the true best.

    Args:
        architectures: see :func:`judge_architectures`.
        kept: number of best architectures that are to be kept.
    """
    best = architectures["kept"].nsmallest(kept)
    threshold = float(best.max()) if len(best) == kept else math.inf
    sample = architectures[
        architectures["audited"] & architectures["stopped"] & ~architectures["failed"]
    ]
    pruned = int((architectures["stopped"] & ~architectures["audited"]).sum())
    lost = int((sample["value"] < sample["kept"].fillna(math.inf).clip(upper=threshold)).sum())
    return Recall(pruned, len(sample), lost, bound_lost(pruned, len(sample), lost))


def compare_predictions(
    table: pd.DataFrame, parameters: Sequence[str]
) -> tuple[Floats, NDArray[np.bool_]]:
    """Compare one trial of each audited architecture with the prediction recorded for it.

    Errors of trials of one architecture are alike. Of those that would have been pruned and have a
    value, the one with the least number is taken: trials are created in random order.

    Args:
        table: as of :func:`judge_architectures`, indexed by the number of the trial, and
            ``predicted_scale``.
        parameters: those that distinguish architectures.

    Returns:
        Values minus predictions, and which of them are within two scales.
    """
    rows = table[find_stopped(table) & table["value"].notna()].sort_index()
    rows = rows[~number_groups(rows, parameters).duplicated()]
    errors = (rows["value"] - rows["predicted_value"]).to_numpy(dtype=float)
    scales = rows["predicted_scale"].to_numpy(dtype=float)
    return errors, np.abs(errors) <= INTERVAL_SCALES * scales


def bound_lost(pruned: int, sample: int, found: int, confidence: float = CONFIDENCE) -> int:
    """Return an exact upper bound of the number of marked items outside a random sample.

    Args:
        pruned: number of items outside the sample.
        sample: size of the sample.
        found: number of marked items in the sample.
        confidence: probability with which the bound holds, at least.
    """
    if not pruned:  # no item is outside, and the distribution of no items at all is undefined
        return 0
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


@dataclass(frozen=True)
class PruningSummary:
    """Savings and risks of pruning in a study.

    Attributes:
        top_count: number of best trials that pruning is to keep.
        expected_share: expected share of them that is complete, by the predictions at the time of
            pruning; NaN until every trial is finished, and without predictions or audited trials,
            which test them.
        step_share: share of the steps of all trials that was trained.
        rungs: one row per rung after which trials were pruned: ``step``, ``trials`` and
            ``keep_probability``, the sum of their probabilities of being among the best.
        common_step: last step that all trials with a curve have reached, failed ones aside.
        missing_count: number of trials that have not reached that step.
        early_table: training losses at that step.
    """

    top_count: int
    expected_share: float
    step_share: float
    rungs: pd.DataFrame
    common_step: int
    missing_count: int
    early_table: FactorialTable


def summarize_pruning(results: Results) -> PruningSummary | None:
    """Summarize the pruning of a study; None if pruning is disabled."""
    settings = results.config.pruning
    if not settings.enabled:
        return None
    table, counts = results.table, results.counts
    kept = top_count(settings.keep, len(table))
    pruned = table[table["state"] == TrialStatus.PRUNED]
    rungs = pruned.groupby("rung")["keep_probability"].agg(["size", "sum"]).reset_index()
    last_steps, common_step = results.curve_ends["last_step"], results.common_step
    failed = table.index[table["state"].isin([TrialStatus.DIVERGED, TrialStatus.FAIL])]
    reached = last_steps.drop(failed, errors="ignore")
    early_table = table.assign(value=results.early_losses.reindex(table.index))
    is_final = counts.finished == counts.planned and not pruned["keep_probability"].isna().any()
    is_stated = is_final and table["audited"].any()
    trained_steps = float(last_steps.reindex(table.index).fillna(0).sum())
    return PruningSummary(
        top_count=kept,
        expected_share=1 - float(pruned["keep_probability"].sum()) / kept
        if is_stated
        else math.nan,
        step_share=trained_steps / (results.config.training.steps * len(table)),
        rungs=rungs.set_axis(["step", "trials", "keep_probability"], axis=1),
        common_step=common_step,
        missing_count=len(table) - len(reached),
        early_table=build_table(results, results.judge(early_table)),
    )


MIN_STOPPED = 6
"""Audited architectures with another value than number, from which effects are estimated."""


class Obstacle(Enum):
    """Why the effects of a pruned study cannot be estimated."""

    NO_AUDIT = auto()
    OTHER_SAMPLE = auto()
    """The audited trials were drawn over other nuisance parameters than the study has now."""
    UNFINISHED = auto()
    FEW_STOPPED = auto()
    """Fewer than :data:`MIN_STOPPED` audited architectures would have another value."""
    NO_PAIRS = auto()


@dataclass(frozen=True)
class AuditedEffects:
    """Effects in a pruned study.

    Attributes:
        effects: the effects; those of contrasts that compare the best of several trials have no
            such estimate and are left out.
        obstacle: why there are none; None if there are.
        audited: number of audited architectures with a value.
        stopped: number of these whose value the pruner would have replaced by another number.
    """

    effects: list[Effect]
    obstacle: Obstacle | None = None
    audited: int = 0
    stopped: int = 0


def estimate_audited_effects(results: Results) -> AuditedEffects:
    """Estimate the main effects in a pruned study."""
    if not results.table["audited"].any():
        return AuditedEffects([], Obstacle.NO_AUDIT)
    if not results.has_valid_audit:
        return AuditedEffects([], Obstacle.OTHER_SAMPLE)
    if not results.is_finished:
        return AuditedEffects([], Obstacle.UNFINISHED)
    architectures = judge_architectures(results.table, results.judged_axes)
    return estimate_effects(architectures, results.judged_axes, results.scale)


def estimate_effects(
    architectures: pd.DataFrame, parameters: Sequence[str], scale: Scale = NATS
) -> AuditedEffects:
    """Estimate the main effects from the architectures of a pruned study.

    Args:
        architectures: see :func:`reports.analysis.pruning.judge_architectures`.
        parameters: those that distinguish architectures.
        scale: unit and precision of the values.
    """
    audited = architectures["audited"] & architectures["value"].notna()
    residuals = (architectures["value"] - architectures["estimate"]).where(audited)
    numbers = {"audited": int(audited.sum()), "stopped": int((residuals.dropna() != 0).sum())}
    if numbers["stopped"] < MIN_STOPPED:
        return AuditedEffects([], Obstacle.FEW_STOPPED, **numbers)
    grid = FactorialTable.from_frame(
        architectures.assign(value=architectures["estimate"]),
        parameters,
        scale=scale,
        traits=find_traits(parameters),
    )
    effects = [
        effect
        for contrast in grid.list_contrasts()
        if (effect := estimate_effect(grid, contrast, residuals.to_numpy(dtype=float))) is not None
    ]
    return AuditedEffects(effects, None if effects else Obstacle.NO_PAIRS, **numbers)


def estimate_effect(grid: FactorialTable, contrast: Contrast, residuals: Floats) -> Effect | None:
    """Estimate the main effect of a contrast by the difference estimator.

    Args:
        grid: the architectures with their numbers mᵢ.
        contrast: the contrast.
        residuals: (N,) yᵢ − mᵢ of audited architectures; NaN for the others.

    Returns:
        None if the table has no pair, compares the best of several trials, or fewer than two
        audited architectures say how far the numbers are wrong.
    """
    effect = grid.compute_effect(contrast)
    if not effect.pairs or max(effect.variants) > 1:
        return None
    weights = grid.compute_weights(contrast)
    has_value = ~np.isnan(grid.values)
    population, sample = int(has_value.sum()), has_value & ~np.isnan(residuals)
    count = int(sample.sum())
    differences = weights[sample] * residuals[sample]
    telling = int((differences != 0).sum())
    if count < population and telling < 2:
        return None
    variance = population**2 * (1 - count / population) * differences.var(ddof=1) / count
    return replace(
        effect,
        mean=effect.mean + population / count * float(differences.sum()),
        error=math.sqrt(variance),
        degrees=max(1.0, telling - 1.0),
        source=NoiseSource.AUDIT,
    )
