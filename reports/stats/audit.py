"""Audited trials of a pruned study: what pruning lost, its predictions, and effects.

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
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np

from reports.stats import Booleans, Floats
from reports.stats.design import NO_TRAITS, Contrast, ParameterTraits, number_groups
from reports.stats.differences import Method
from reports.stats.effects import Effect, FactorialTable, Kinds
from reports.stats.estimate import CONFIDENCE
from reports.stats.run_means import RunMeans

if TYPE_CHECKING:
    import pandas as pd

# ------------------------------------------------------------------ predictions

DEGREES = 5
"""Degrees of freedom of a prediction, a Student's t-distribution: its tails are heavier than a
normal distribution's, which gives no chance to what three switches explain and no two. With eight,
searches are up to a tenth cheaper and keep 91% of the best where 96% are stated."""

INTERVAL_SCALES = 2.0
"""Half width of the interval of a prediction, in scales."""

_ANGLE = math.atan(INTERVAL_SCALES / math.sqrt(DEGREES))

STATED_SHARE = (
    2 / math.pi * (_ANGLE + math.sin(_ANGLE) * (math.cos(_ANGLE) + 2 / 3 * math.cos(_ANGLE) ** 3))
)
"""Share of the final values that such intervals are to cover: 0.898 (Abramowitz & Stegun, *Handbook
of Mathematical Functions*, 26.7.3, for five degrees)."""


def compute_outside_p_value(trials: int, inside: int) -> float:
    """Return the p-value of the exact one-sided binomial test of the number of values outside.

    Args:
        trials: number of predictions whose final values are known, independent of each other.
        inside: number of these values that are within their intervals.
    """
    from scipy import stats

    return float(stats.binom.sf(trials - inside - 1, trials, 1 - STATED_SHARE))


# ------------------------------------------------------------------ recall

_FAILED = ("FAIL", "DIVERGED", "TOLD")
"""States of trials without a value."""


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


def merge_runs(table: "pd.DataFrame", parameters: Sequence[str]) -> "pd.DataFrame":
    """Return one row for all runs of an architecture at its nuisance values.

    The pruner decides about them together. Runs that failed are left out unless all have.

    Args:
        table: one row per trial: ``state``, ``value``, ``replicate`` and the parameters.
        parameters: those that distinguish architectures, and nuisance parameters.

    Returns:
        The first run of each, with the mean of the values as its ``value``; missing if a run has
        none.
    """
    rows = table.sort_index()
    rows = rows.sort_values("state", key=lambda states: states.isin(_FAILED), kind="stable")
    groups = number_groups(rows, parameters)
    first = rows[~groups.duplicated()]
    if len(first) == len(rows):
        return table
    is_counted = ~rows["state"].isin(_FAILED)
    is_open = groups.isin(groups[is_counted & rows["value"].isna()])
    is_counted &= ~is_open
    runs = rows[is_counted]
    owners = np.asarray(groups[is_counted], dtype=np.int64)
    fit = RunMeans.fit(owners, np.asarray(runs["replicate"], dtype=np.int64), len(first))
    return first.assign(value=fit.compute(runs["value"].to_numpy(dtype=float)))


def judge_architectures(table: "pd.DataFrame", parameters: Sequence[str]) -> "pd.DataFrame":
    """Judge each architecture of a pruned study at its best trial, with and without the pruner.

    Args:
        table: one row per trial, or one for several runs (:func:`merge_runs`): ``state``, of which
            PRUNED and FAIL count, ``value``, ``audited``, ``reason``, ``predicted_value`` and the
            parameters.
        parameters: those that distinguish architectures.

    Returns:
        One row per architecture: the parameters; ``value``, the least of its trials, NaN without
        one; ``kept``, the least of the trials that the pruner has completed or, of an audited
        architecture, would have; ``estimate``, the least over its trials of the value or, if a
        trial was pruned or would have been, of the prediction recorded then; ``audited``; and
        ``stopped``, whether some trial was pruned or would have been. The estimate of an audited
        architecture without a value is missing.
    """
    is_pruned = table["state"] == "PRUNED"
    is_stopped = is_pruned | (table["audited"] & table["reason"].notna())
    # A trial that failed may have had a value: what the pruner lost by it is not known.
    is_failed = table["state"] == "FAIL"
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


def measure_recall(architectures: "pd.DataFrame", kept: int) -> Recall:
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
    table: "pd.DataFrame", parameters: Sequence[str]
) -> tuple[Floats, Booleans]:
    """Compare one trial of each audited architecture with the prediction recorded for it.

    Errors of trials of one architecture are alike. Of those that would have been pruned and have a
    value and a prediction, the one with the least number is taken: trials are created in random
    order.

    Args:
        table: as of :func:`judge_architectures`, indexed by the number of the trial, and
            ``predicted_scale``.
        parameters: those that distinguish architectures.

    Returns:
        Values minus predictions, and which of them are within two scales.
    """
    is_known = table["value"].notna() & table["predicted_value"].notna()
    rows = table[table["audited"] & table["reason"].notna() & is_known].sort_index()
    rows = rows[~number_groups(rows, parameters).duplicated()]
    errors = (rows["value"] - rows["predicted_value"]).to_numpy(dtype=float)
    scales = rows["predicted_scale"].to_numpy(dtype=float)
    return errors, np.abs(errors) <= INTERVAL_SCALES * scales


def bound_lost(pruned: int, sample: int, found: int) -> int:
    """Return an exact 95% upper bound of the number of marked items outside a random sample.

    Args:
        pruned: number of items outside the sample.
        sample: size of the sample.
        found: number of marked items in the sample.
    """
    from scipy import stats

    if not pruned:  # no item is outside, and the distribution of no items at all is undefined
        return 0
    total = pruned + sample
    marked = np.arange(found, found + pruned + 1)  # possible numbers in all
    plausible = stats.hypergeom.cdf(found, total, marked, sample) >= 1 - CONFIDENCE
    return int(marked[plausible].max()) - found


# ------------------------------------------------------------------ effects

MIN_STOPPED = 6
"""Audited architectures with another value than number, from which effects are estimated."""


class Obstacle(StrEnum):
    """Why the effects of a pruned study cannot be estimated, as a clause."""

    NO_AUDIT = "no trial was audited, so no effect can be estimated"
    OTHER_SAMPLE = (
        "the audited trials were drawn for other nuisance parameters, so no effect can be estimated"
    )
    UNFINISHED = (
        "no answer yet: the effects of a pruned study are estimated once its search is finished"
    )
    FEW_STOPPED = f"fewer than {MIN_STOPPED} audited architectures would have another value"
    NO_PAIRS = "no two architectures differ in one parameter only"


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


def estimate_with_audit(
    architectures: "pd.DataFrame",
    parameters: Sequence[str],
    higher_is_better: bool = False,
    traits: ParameterTraits = NO_TRAITS,
    kinds: Kinds | None = None,
) -> AuditedEffects:
    """Estimate the main effects from the architectures of a pruned study.

    Args:
        architectures: see :func:`judge_architectures`.
        parameters: those that distinguish architectures.
        higher_is_better: whether a higher value is better.
        traits: what else is known of the parameters.
        kinds: which pairs of the architectures cannot show a change; None if all can.
    """
    audited = architectures["audited"] & architectures["value"].notna()
    residuals = (architectures["value"] - architectures["estimate"]).where(audited)
    numbers = {"audited": int(audited.sum()), "stopped": int((residuals.dropna() != 0).sum())}
    if numbers["stopped"] < MIN_STOPPED:
        return AuditedEffects([], Obstacle.FEW_STOPPED, **numbers)
    grid = FactorialTable.from_frame(
        architectures.assign(value=architectures["estimate"]),
        parameters,
        higher_is_better=higher_is_better,
        traits=traits,
    )
    grid = replace(grid, kinds=kinds)
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
        method=Method.AUDIT,
    )
