r"""Effects in a pruned study, estimated from predictions and a random sample of architectures.

Pairs of complete trials of a pruned study are pairs of survivors: their mean difference is biased.
Here every architecture, which without nuisance parameters is a trial, has a number mᵢ: the least
over its trials of the value or, of a pruned trial, the prediction recorded then. For an audited
architecture the predictions are those recorded when a trial would have been pruned, and the least
of its values, yᵢ, is known as well. A contrast has weights cᵢ, ± 1 / pairs for each pair that an
architecture is in. The difference estimator of Σ cᵢ yᵢ over all N architectures is

    Σ cᵢ mᵢ + (N / n) Σ_audited cᵢ (yᵢ − mᵢ),

unbiased whatever the predictions are worth (Särndal, Swensson & Wretman, *Model Assisted Survey
Sampling*, 1992, section 6.3; as prediction-powered inference: Angelopoulos et al., *Science* 382,
2023). So the least of several predictions may be biased. The variance of the estimator is
N² (1 − n / N) s² / n, with the sample variance s² of cᵢ (yᵢ − mᵢ). Where the pruner would have
trained the best trial of an audited architecture, the difference is 0; the degrees of freedom of
the interval are those of the other audited architectures alone.

A pruned trial without a prediction, such as one that plain Optuna has pruned, has no number; an
architecture with no other trial is left out, as one whose trials have failed.

The interval is that of drawing other audited architectures. It does not contain the noise between
runs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from reports.analysis.nuisance import build_judged_table, join_names
from reports.analysis.pruning_audit import judge_architectures
from reports.data.results import Results
from reports.data.trial_table import find_traits
from reports.stats import Floats
from reports.stats.design import Contrast
from reports.stats.effects import Effect, FactorialTable
from reports.stats.noise import NoiseSource
from reports.stats.scale import NATS, Scale

MIN_STOPPED = 6
"""Audited architectures with another value than number, from which effects are estimated."""


@dataclass(frozen=True)
class AuditedEffects:
    """Effects in a pruned study.

    Attributes:
        effects: the effects; those of contrasts that compare the best of several trials have no
            such estimate and are left out.
        reason: why there are none, a sentence; "" if there are.
        audited: number of audited architectures with a value.
        stopped: number of these whose value the pruner would have replaced by another number.
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
    if not table["audited"].any():
        return AuditedEffects([], "No trial was audited, so no effect can be estimated.")
    if not results.has_valid_audit:
        unit = join_names(results.audit_nuisance)
        drawn = f"architectures, each at all values of {unit}" if unit else "single trials"
        judged = f"at its best {join_names(results.nuisance)}" if results.nuisance else "by trial"
        reason = (
            f"The audited trials were drawn as {drawn}, and each architecture is now judged "
            f"{judged}: they are no sample of what is compared."
        )
        return AuditedEffects([], reason)
    if counts.finished < counts.planned:
        return AuditedEffects([], "Effects are estimated once the search is finished.")
    return estimate_effects(
        judge_architectures(table, results.judged_axes), results.judged_axes, results.scale
    )


def estimate_effects(
    architectures: pd.DataFrame, parameters: Sequence[str], scale: Scale = NATS
) -> AuditedEffects:
    """Estimate the main effects from the architectures of a pruned study.

    Args:
        architectures: see :func:`reports.analysis.pruning_audit.judge_architectures`.
        parameters: those that distinguish architectures.
        scale: unit and precision of the values.
    """
    audited = architectures["audited"] & architectures["value"].notna()
    residuals = (architectures["value"] - architectures["estimate"]).where(audited)
    numbers = {"audited": int(audited.sum()), "stopped": int((residuals.dropna() != 0).sum())}
    if numbers["stopped"] < MIN_STOPPED:
        reason = (
            f"Pruning would have changed the value of {numbers['stopped']} of the "
            f"{numbers['audited']} audited architectures: at least {MIN_STOPPED} are needed to "
            "estimate an effect."
        )
        return AuditedEffects([], reason, **numbers)
    grid = FactorialTable.from_frame(
        architectures.assign(value=architectures["estimate"]),
        parameters,
        scale=scale,
        traits=find_traits(parameters),
    )
    effects = [
        effect
        for contrast in grid.list_contrasts()
        if (
            effect := estimate_effect(
                grid, contrast, residuals.to_numpy(dtype=float), numbers["stopped"]
            )
        )
        is not None
    ]
    reason = "" if effects else "No two architectures differ in one parameter only."
    return AuditedEffects(effects, reason, **numbers)


def estimate_effect(
    grid: FactorialTable, contrast: Contrast, residuals: Floats, stopped: int
) -> Effect | None:
    """Estimate the main effect of a contrast by the difference estimator.

    Args:
        grid: the architectures with their numbers mᵢ.
        contrast: the contrast.
        residuals: (N,) yᵢ − mᵢ of audited architectures; NaN for the others.
        stopped: number of audited architectures of which this is not 0.

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
