r"""Effects in a pruned study, estimated from predictions and a random sample of trials.

Pairs of complete trials of a pruned study are pairs of survivors: their mean difference is biased.
Here every trial has a number mᵢ: its value, or, if it was pruned, the prediction recorded then. For
an audited trial that would have been pruned mᵢ is the prediction recorded when it would have been,
and its value yᵢ is known as well. A contrast has weights cᵢ, ± 1 / pairs for each pair that a trial
is in. The difference estimator of Σ cᵢ yᵢ over all N trials is

    Σ cᵢ mᵢ + (N / n) Σ_audited cᵢ (yᵢ − mᵢ),

unbiased whatever the predictions are worth (Särndal, Swensson & Wretman, *Model Assisted Survey
Sampling*, 1992, section 6.3; as prediction-powered inference: Angelopoulos et al., *Science* 382,
2023). Its variance is N² (1 − n / N) s² / n, with the sample variance s² of cᵢ (yᵢ − mᵢ). Where the
pruner would have trained an audited trial to its end, the difference is 0; the degrees of freedom
of the interval are those of the other audited trials alone.

The interval is that of drawing other audited trials. It does not contain the noise between runs.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from optuna.trial import TrialState

from reports.data.results import Results
from reports.stats.contrast import Contrast
from reports.stats.effects import Effect, FactorialTable
from reports.stats.nuisance import build_judged_table
from reports.stats.paired_difference import Floats
from reports.stats.pruning_audit import find_stopped
from reports.stats.run_noise import NoiseSource

MIN_STOPPED = 6
"""Audited trials that would have been pruned, from which effects are estimated."""


@dataclass(frozen=True)
class AuditedEffects:
    """Effects in a pruned study.

    Attributes:
        effects: the effects; those of contrasts that compare the best of several trials have no
            such estimate and are left out.
        reason: why there are none, a sentence; "" if there are.
        audited: number of audited trials with a value.
        stopped: number of these that would have been pruned.
    """

    effects: list[Effect]
    reason: str = ""
    audited: int = 0
    stopped: int = 0


def compute_study_effects(results: Results) -> AuditedEffects:
    """Compute the main effects in a study: over matched pairs, or, if it is pruned, estimated."""
    if results.is_pruned:
        return estimate_audited_effects(results)
    return AuditedEffects(build_judged_table(results).compute_effects())


def estimate_audited_effects(results: Results) -> AuditedEffects:
    """Estimate the main effects in a pruned study."""
    table, counts = results.table, results.counts
    is_stopped = find_stopped(table)
    is_pruned = table["state"] == TrialState.PRUNED.name
    audited = table["audited"] & table["value"].notna()
    numbers = {"audited": int(audited.sum()), "stopped": int(is_stopped.sum())}
    if not table["audited"].any():
        return AuditedEffects([], "No trial was audited, so no effect can be estimated.")
    if counts.finished < counts.planned:
        return AuditedEffects([], "Effects are estimated once the search is finished.", **numbers)
    if results.nuisance:
        reason = (
            "An architecture is judged at its best trial, which pruning may have stopped: the best "
            "of several values cannot be estimated from a sample."
        )
        return AuditedEffects([], reason, **numbers)
    if numbers["stopped"] < MIN_STOPPED:
        reason = (
            f"Only {numbers['stopped']} of the {numbers['audited']} audited trials would have been "
            f"pruned: at least {MIN_STOPPED} are needed to estimate an effect."
        )
        return AuditedEffects([], reason, **numbers)
    predicted = table["value"].mask(is_stopped | is_pruned, table["predicted_value"])
    grid = FactorialTable.from_frame(table.assign(value=predicted), results.judged_axes)
    residuals = (table["value"] - predicted).where(audited).to_numpy(dtype=float)
    effects = [
        effect
        for contrast in grid.list_contrasts()
        if (effect := estimate_effect(grid, contrast, residuals, numbers["stopped"])) is not None
    ]
    reason = "" if effects else "No two trials differ in one parameter only."
    return AuditedEffects(effects, reason, **numbers)


def estimate_effect(
    grid: FactorialTable, contrast: Contrast, residuals: Floats, stopped: int
) -> Effect | None:
    """Estimate the main effect of a contrast by the difference estimator.

    Args:
        grid: the trials with their values or predictions mᵢ.
        contrast: the contrast.
        residuals: (N,) yᵢ − mᵢ of audited trials; NaN for the others.
        stopped: number of audited trials that would have been pruned.

    Returns:
        None if the table has no pair, or compares the best of several trials.
    """
    effect = grid.compute_effect(contrast)
    if not effect.pairs or max(effect.variants) > 1:
        return None
    weights = grid.compute_weights(contrast)
    has_value = ~np.isnan(grid.values)
    population, sample = int(has_value.sum()), has_value & ~np.isnan(residuals)
    count = int(sample.sum())
    differences = weights[sample] * residuals[sample]
    variance = population**2 * (1 - count / population) * differences.var(ddof=1) / count
    return replace(
        effect,
        mean=effect.mean + population / count * float(differences.sum()),
        error=math.sqrt(variance),
        degrees=float(stopped - 1),
        source=NoiseSource.AUDIT,
    )
