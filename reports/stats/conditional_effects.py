"""Effects within each value of another parameter, and whether they say more than the mean.

A main effect is a mean over the values of all other parameters. Where it averages large and small
effects, or opposite signs, it describes no network. So each contrast is estimated within each value
of every other parameter, over the pairs that all of these values have in common; the values then
differ in nothing else.

With so many estimates, some differ by chance. P-values are therefore corrected by Holm's method (*A
Simple Sequentially Rejective Multiple Test Procedure*, 1979) over all of them: those of the effects
within a value, and those of the differences between values, where the largest of k differences
counts k times (Bonferroni).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from reports.stats.contrast import REPLICATE, Contrast
from reports.stats.effects import Effect, FactorialTable
from reports.stats.paired_difference import CONFIDENCE, MIN_PAIRS, PairedDifference
from reports.stats.replicates import adjust_by_holm
from reports.stats.scale import format_param, format_signed, format_value


@dataclass(frozen=True, kw_only=True)
class LevelEffect(PairedDifference):
    """Effect of a contrast within one value of another parameter.

    Attributes:
        value: the value.
        p_adjusted: p-value after the correction for all effects within a value.
    """

    value: Any
    p_adjusted: float = 1.0

    @property
    def is_significant(self) -> bool:
        """Whether the effect is significant after the correction."""
        return self.p_adjusted < 1 - CONFIDENCE


@dataclass(frozen=True)
class ConditionalEffect:
    """Effect of a contrast within each value of another parameter.

    Attributes:
        main: main effect of the contrast.
        parameter: the other parameter.
        levels: effect within each of its values, in order, over the same pairs.
        difference: largest difference between two values: the greater effect minus the lesser.
        p_adjusted: p-value of that difference, after the correction for all of them.
    """

    main: Effect
    parameter: str
    levels: tuple[LevelEffect, ...]
    difference: PairedDifference
    p_adjusted: float = 1.0

    @property
    def contrast(self) -> Contrast:
        """The change of which this is the effect."""
        return self.main.contrast

    @property
    def least(self) -> LevelEffect:
        """The least effect, the most negative one."""
        return min(self.levels, key=lambda level: level.mean)

    @property
    def greatest(self) -> LevelEffect:
        """The greatest effect."""
        return max(self.levels, key=lambda level: level.mean)

    @property
    def size(self) -> float:
        """Absolute value of the largest effect within a value."""
        return max(abs(level.mean) for level in self.levels)

    @property
    def is_significant(self) -> bool:
        """Whether the effect differs significantly between two of the values."""
        return self.p_adjusted < 1 - CONFIDENCE

    @property
    def has_opposite_signs(self) -> bool:
        """Whether the change significantly helps at one value and harms at another."""
        signs = {math.copysign(1, level.mean) for level in self.levels if level.is_significant}
        return len(signs) > 1

    @property
    def rivals_main(self) -> bool:
        """Whether the effect differs between values by as much as the main effect, or more."""
        return self.is_significant and self.difference.mean >= abs(self.main.mean)

    @property
    def text(self) -> str:
        """The change with its extreme effects, see :attr:`extremes`."""
        return f"{self.contrast.label}: {self.extremes}"

    @property
    def extremes(self) -> str:
        """The least and the greatest effect: ``−0.530 nats without residual, −0.015 with it``.

        Where only one of them is significant, the other one is named so.
        """
        first, last = (each for each in self.levels if each in (self.least, self.greatest))
        name = format_param(self.parameter)
        if isinstance(first.value, bool):
            places = f"without {name}", "with it"
        else:
            places = f"with {name} {format_value(first.value)}", f"with {format_value(last.value)}"
        scale = self.main.scale
        sizes = [scale.format_difference(first.mean), format_signed(last.mean, scale.spec)]
        if first.is_significant < last.is_significant:
            sizes = ["no significant effect", scale.format_difference(last.mean)]
        elif last.is_significant < first.is_significant:
            sizes[1] = "no significant effect"
        return f"{sizes[0]} {places[0]}, {sizes[1]} {places[1]}"


@dataclass(frozen=True)
class RankedEffect:
    """An effect with the one condition that says more than its mean.

    Attributes:
        main: the main effect.
        condition: its largest interaction that rivals it; None if there is none.
        p_adjusted: p-value of the main effect after Holm's correction for all main effects.
    """

    main: Effect
    condition: ConditionalEffect | None
    p_adjusted: float

    @property
    def size(self) -> float:
        """Absolute value of the effect, or of the largest one under the condition."""
        return self.condition.size if self.condition else abs(self.main.mean)

    @property
    def is_significant(self) -> bool:
        """Whether the effect is significant, or differs significantly under the condition.

        Both p-values are corrected, because the largest of many effects are often significant by
        chance, and each has half of the error: in 95% of the studies without any effect, none is.
        """
        error = (1 - CONFIDENCE) / 2
        is_main = self.main.is_significant and self.p_adjusted < error
        return is_main or (self.condition is not None and self.condition.p_adjusted < error)

    @property
    def text(self) -> str:
        """The effect under the condition, or else the mean with its interval."""
        if self.condition:
            return self.condition.text
        main, interval, scale = self.main, "", self.main.scale
        if not math.isnan(main.low):
            ends = (format_signed(end, scale.spec) for end in (main.low, main.high))
            interval = f" [{', '.join(ends)}]"
        return f"{main.contrast.label} {scale.format_difference(main.mean)}{interval}"


def rank_effects(
    effects: Sequence[Effect], conditional: Sequence[ConditionalEffect]
) -> list[RankedEffect]:
    """Rank the effects by their size, each with the condition that rivals its mean most."""
    ranked = []
    adjusted = adjust_by_holm(np.array([effect.p for effect in effects]))
    for effect, p in zip(effects, adjusted, strict=True):
        rivals = [each for each in conditional if each.main is effect and each.rivals_main]
        rivals.sort(key=lambda each: -each.difference.mean)
        ranked.append(RankedEffect(effect, rivals[0] if rivals else None, float(p)))
    return sorted(ranked, key=lambda each: -each.size)


def describe_insignificance(effects: Sequence[Effect]) -> str:
    """Say that no effect is significant, or why that is not known, in one clause."""
    tested = sum(effect.is_decidable for effect in effects)
    few = f"fewer than {MIN_PAIRS} matched pairs"
    if not effects:
        return "no effect can be estimated: no two complete trials differ in one parameter only"
    if not tested:
        return f"whether any effect differs from zero cannot be decided: each has {few}"
    if others := len(effects) - tested:
        return (
            f"of {len(effects)} effects none is significantly different from zero, and {others} "
            f"{'has' if others == 1 else 'have'} {few}, too few to decide"
        )
    return "no effect is significantly different from zero"


def compute_conditional_effects(
    table: FactorialTable, effects: Sequence[Effect]
) -> list[ConditionalEffect]:
    """Estimate each effect within each value of every other parameter.

    Args:
        table: values of the trials.
        effects: main effects in this table.

    Returns:
        One conditional effect per effect and parameter, without those that share no pair. The order
        is that of the effects, and of the parameters of the table.
    """
    found = [
        conditional
        for effect in effects
        for name in table.axes
        if name not in (effect.contrast.parameter, REPLICATE)
        if (conditional := _compute_conditional_effect(table, effect, name))
    ]
    if not found:
        return []
    counts = [math.comb(len(each.levels), 2) for each in found]
    p = np.array([each.difference.p for each in found]) * counts
    adjusted = adjust_by_holm(np.minimum(1, p))
    of_levels = iter(adjust_by_holm(np.array([lv.p for each in found for lv in each.levels])))
    return [
        replace(
            each,
            levels=tuple(replace(lv, p_adjusted=float(next(of_levels))) for lv in each.levels),
            p_adjusted=float(p),
        )
        for each, p in zip(found, adjusted, strict=True)
    ]


def find_reversal(table: FactorialTable, contrast: Contrast) -> ConditionalEffect | None:
    """Find the parameter on which the sign of a contrast's effect depends most; None if on none.

    The tests are corrected for the values of all other parameters.
    """
    found = compute_conditional_effects(table, [table.compute_effect(contrast)])
    reversals = [each for each in found if each.has_opposite_signs]
    return max(reversals, key=lambda each: each.difference.mean, default=None)


def _compute_conditional_effect(
    table: FactorialTable, effect: Effect, parameter: str
) -> ConditionalEffect | None:
    pairs = table.match_by_level(effect.contrast, parameter)
    if len(pairs) < 2:
        return None
    levels = [
        table.estimate(LevelEffect, trials, (-1, 1), value=value) for value, trials in pairs.items()
    ]
    means = [level.mean for level in levels]
    trials = list(pairs.values())
    four = np.vstack([trials[int(np.argmin(means))], trials[int(np.argmax(means))]])
    difference = table.estimate(PairedDifference, four, (1, -1, -1, 1))
    return ConditionalEffect(effect, parameter, tuple(levels), difference)
