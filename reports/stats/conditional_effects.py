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

from reports.stats.design import REPLICATE, Contrast
from reports.stats.differences import PairedDifference
from reports.stats.effects import Effect, FactorialTable, Matches
from reports.stats.estimate import adjust_by_holm, adjust_estimates


@dataclass(frozen=True, kw_only=True)
class LevelEffect(PairedDifference):
    """Effect of a contrast within one value of another parameter."""

    value: Any


@dataclass(frozen=True)
class ExcludedLevel:
    """A value of another parameter at which no pair can show a change.

    Attributes:
        obstacle: why it cannot.
        pairs: number of pairs of architectures.
    """

    value: Any
    obstacle: str
    pairs: int


@dataclass(frozen=True)
class ConditionalEffect:
    """Effect of a contrast within each value of another parameter.

    Attributes:
        main: main effect of the contrast.
        parameter: the other parameter.
        levels: effect within each of its values, in order, over the same pairs.
        difference: largest difference between two values: the greater effect minus the lesser. Its
            p-value is corrected for all of them.
        excluded: values at which no pair can show the change.
    """

    main: Effect
    parameter: str
    levels: tuple[LevelEffect, ...]
    difference: PairedDifference
    excluded: tuple[ExcludedLevel, ...] = ()

    @property
    def contrast(self) -> Contrast:
        """The change of which this is the effect."""
        return self.main.contrast

    @property
    def is_significant(self) -> bool:
        """Whether the effect differs significantly between two of the values."""
        return self.difference.is_significant

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
    def extremes(self) -> tuple[LevelEffect, LevelEffect]:
        """The least and the greatest effect, or the greatest and the least, by their values.

        Where signs are opposite, the effects are significant.
        """
        shown = [level for level in self.levels if level.is_significant]
        levels = shown if self.has_opposite_signs else self.levels
        ends = [choose(levels, key=lambda level: level.mean) for choose in (min, max)]
        first, last = sorted(ends, key=self.levels.index)
        return first, last


@dataclass(frozen=True)
class RankedEffect:
    """An effect with the one condition that says more than its mean.

    Attributes:
        condition: the one with the largest difference, of those that rival the mean or reverse it;
            None if there is none.
    """

    main: Effect
    condition: ConditionalEffect | None

    @property
    def is_reversal(self) -> bool:
        """Whether it significantly helps at one value of a parameter and harms at another."""
        return self.condition is not None and self.condition.has_opposite_signs


def rank_effects(
    effects: Sequence[Effect], conditional: Sequence[ConditionalEffect]
) -> list[RankedEffect]:
    """Pair each effect with the condition that says most about it."""
    ranked = []
    for effect in effects:
        rivals = [
            found
            for found in conditional
            if found.contrast == effect.contrast and (found.rivals_main or found.has_opposite_signs)
        ]
        condition = max(rivals, key=lambda found: found.difference.mean, default=None)
        ranked.append(RankedEffect(effect, condition))
    return ranked


def compute_conditional_effects(
    table: FactorialTable, effects: Sequence[Effect]
) -> list[ConditionalEffect]:
    """Estimate each effect within each value of every other parameter.

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
    counts = [math.comb(len(conditional.levels), 2) for conditional in found]
    p = np.array([conditional.difference.p for conditional in found]) * counts
    adjusted = adjust_by_holm(np.minimum(1, p)).tolist()
    levels = iter(
        adjust_estimates([level for conditional in found for level in conditional.levels])
    )
    return [
        replace(
            conditional,
            levels=tuple(next(levels) for _ in conditional.levels),
            difference=replace(conditional.difference, p_adjusted=p_adjusted),
        )
        for conditional, p_adjusted in zip(found, adjusted, strict=True)
    ]


def _compute_conditional_effect(
    table: FactorialTable, effect: Effect, parameter: str
) -> ConditionalEffect | None:
    pairs = table.match_by_level(effect.contrast, parameter)
    if len(pairs) < 2:
        return None
    seeds = effect.seeds
    levels = [
        table.estimate(LevelEffect, matches, (-1, 1), seeds, value=value)
        for value, matches in pairs.items()
    ]
    means = [level.mean for level in levels]
    matches = list(pairs.values())
    ends = [matches[int(choose(means))] for choose in (np.argmin, np.argmax)]
    four = Matches(np.vstack([end.trials for end in ends]), ends[0].varied)
    difference = table.estimate(PairedDifference, four, (1, -1, -1, 1), seeds)
    counts = table.count_excluded(effect.contrast, parameter)
    excluded = tuple(ExcludedLevel(value, *found) for value, found in counts.items())
    return ConditionalEffect(effect, parameter, tuple(levels), difference, excluded)
