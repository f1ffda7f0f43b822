"""Main effects of a factorial study, estimated from matched pairs.

In a full factorial design two trials that differ in one parameter alone are a matched pair. The
mean difference over all pairs is the parameter's main effect (Box, Hunter & Hunter, *Statistics for
Experimenters*, 2nd edition, chapter 5). Errors are those of :mod:`reports.stats.differences`. In a
union of grids a trial may lack a parameter, such as a switch of another cell; both trials of a pair
have it or both lack it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from reports.stats import Booleans, Floats, Integers
from reports.stats.design import NO_TRAITS, REPLICATE, Contrast, ParameterTraits, encode
from reports.stats.differences import PairedDifference
from reports.stats.estimate import adjust_by_holm
from reports.stats.run_means import RunMeans
from reports.stats.shares import ShareChange, SignedRanks, place_groups, rank_pairs

if TYPE_CHECKING:
    import pandas as pd

_D = TypeVar("_D", bound=PairedDifference)

_MAX_KEY = 2**62
"""Product of the parameters' values up to which contexts are numbered at once."""


class Matches(NamedTuple):
    """Trials that are equal in all parameters but some.

    Attributes:
        trials: (settings, pairs), indices of the trials of each pair of runs.
        varied: parameters in which they may differ.
        excluded: (settings, pairs), trials of other pairs, which cannot show the change.
    """

    trials: Integers
    varied: frozenset[str]
    excluded: Integers = np.zeros((2, 0), dtype=np.int64)


class Kinds(NamedTuple):
    """Which pairs of trials cannot show what differs between them.

    Attributes:
        of_trials: (trials,), index of the kind of each trial.
        obstacles: (kinds, kinds), why trials of two kinds cannot; "" if they can.
    """

    of_trials: Integers
    obstacles: Any

    def explain(self, trials: Integers) -> Any:
        """Return why each of some pairs (2, pairs) cannot show it; "" for those that can."""
        first, second = self.of_trials[trials]
        return self.obstacles[first, second]

    @property
    def is_able(self) -> Booleans:
        """Whether each trial (trials,) can show anything."""
        able: Booleans = self.obstacles[self.of_trials, self.of_trials] == ""
        return able


class Slopes(NamedTuple):
    """How values depend on standard deviations that were estimated.

    Attributes:
        slopes: (trials,), derivative of a value by the logarithm of a standard deviation.
        groups: (trials,), index of that standard deviation.
        degrees: (groups,), degrees of freedom of its estimate.
    """

    slopes: Floats
    groups: Integers
    degrees: Floats


@dataclass(frozen=True, kw_only=True)
class Effect(PairedDifference):
    """Main effect of a contrast.

    Attributes:
        missing_pairs: number of pairs of runs that the design has and that lack a value.
        excluded_pairs: number of pairs of architectures that cannot show the change, see
            :class:`Kinds`.
        variants: number of trials of which each side of a pair is the best, before and after: 1
            but for values, such as cells, that have parameters of their own.
        solved_before: share of the runs that are solved before the change; NaN for losses.
        ranks: the losses of runs that are solved or not, with a p-value that is corrected for the
            number of effects; None where losses are compared by their mean.
        obstacle: why it cannot be estimated by least squares, in one clause; "" if it can.
    """

    contrast: Contrast
    missing_pairs: int = 0
    excluded_pairs: int = 0
    variants: tuple[int, ...] = (1, 1)
    solved_before: float = math.nan
    ranks: SignedRanks | None = None
    obstacle: str = ""

    @property
    def reason(self) -> str:
        """Why the interval supports no decision; "" if it does."""
        return self.obstacle or super().reason


@dataclass(frozen=True)
class FactorialTable:
    """Values of a study's trials by their parameters; a design, or a union of several.

    Attributes:
        axes: values of each parameter in order, over the trials that have it; the replicate, if
            there are several, is one of them.
        codes: (trials, parameters), indices into these values; -1 where a trial lacks a parameter.
        traits: what else is known of the parameters.
        values: (trials,), their values; NaN where there is none. Of trials that are solved or not,
            1 or 0.
        slopes: how the values depend on estimated standard deviations; None if they do not.
        uncontrasted: parameters of which no two values are compared; trials of a pair have the same
            value of them.
        losses: (trials,), losses of trials that are solved or not, infinite for one that diverged;
            None if the values are losses.
        kinds: which pairs cannot show a change; None if all can.
    """

    axes: Mapping[str, Sequence[Any]]
    codes: Integers
    traits: ParameterTraits
    values: Floats
    slopes: Slopes | None = None
    higher_is_better: bool = False
    uncontrasted: frozenset[str] = frozenset()
    losses: Floats | None = None
    kinds: Kinds | None = None

    @classmethod
    def from_frame(
        cls,
        table: "pd.DataFrame",
        parameters: Sequence[str],
        slopes: Slopes | None = None,
        higher_is_better: bool = False,
        traits: ParameterTraits = NO_TRAITS,
    ) -> "FactorialTable":
        """Arrange the rows of a frame.

        Args:
            table: one row per trial with the parameters, missing where the trial lacks one, and
                ``value``, NaN for none.
            parameters: names of the axes; any two rows differ in one of them or more.
            slopes: how the values depend on estimated standard deviations; None if they do not.
            higher_is_better: whether a higher value is better.
            traits: what else is known of the parameters.
        """
        known = {name: table[name].dropna().tolist() for name in parameters}
        axes = {name: traits.sort_values(name, values) for name, values in known.items()}
        values = table["value"].to_numpy(dtype=float)
        return cls(axes, encode(table, axes), traits, values, slopes, higher_is_better)

    def subset(self, fixed: Mapping[str, Any]) -> "FactorialTable":
        """Keep the trials with the given value of each parameter, or one of those in a list."""
        is_kept = self.find(fixed)
        slopes = self.slopes
        if slopes is not None:
            slopes = slopes._replace(slopes=slopes.slopes[is_kept], groups=slopes.groups[is_kept])
        losses = None if self.losses is None else self.losses[is_kept]
        kinds = self.kinds and self.kinds._replace(of_trials=self.kinds.of_trials[is_kept])
        return replace(
            self,
            codes=self.codes[is_kept],
            values=self.values[is_kept],
            slopes=slopes,
            losses=losses,
            kinds=kinds,
        )

    def list_contrasts(self) -> list[Contrast]:
        """List the contrasts to estimate, see :meth:`ParameterTraits.list_contrasts`."""
        return [
            contrast
            for name, values in self.axes.items()
            if name != REPLICATE and name not in self.uncontrasted
            for contrast in self.traits.list_contrasts(name, values)
        ]

    def find(self, fixed: Mapping[str, Any]) -> Booleans:
        """Return which trials have the given value of each parameter, or one of those in a list."""
        found = np.ones(len(self.codes), dtype=bool)
        for parameter, value in fixed.items():
            values = list(self.axes.get(parameter, ()))
            wanted = value if isinstance(value, list) else [value]
            codes = [values.index(value) for value in wanted if value in values]
            if not codes:
                return np.zeros(len(self.codes), dtype=bool)
            column = self.codes[:, list(self.axes).index(parameter)]
            found &= column == codes[0] if len(codes) == 1 else np.isin(column, codes)
        return found

    def number_contexts(self, without: frozenset[str]) -> Integers:
        """Number the trials: equal numbers for equal values of the remaining parameters."""
        if without not in self._contexts:
            keys, bound = np.zeros(len(self.codes), dtype=np.int64), 1
            for i, (name, values) in enumerate(self.axes.items()):
                if name not in without:
                    if bound > _MAX_KEY // (len(values) + 1):
                        keys = np.unique(keys, return_inverse=True)[1]
                        bound = len(keys)
                    keys = keys * (len(values) + 1) + self.codes[:, i] + 1
                    bound *= len(values) + 1
            self._contexts[without] = np.unique(keys, return_inverse=True)[1]
        return self._contexts[without]

    def list_own(self, contrast: Contrast) -> frozenset[str]:
        """Return the parameters that only one side of a contrast has, because of the contrast."""
        owned = self.traits.owned.get(contrast.parameter, ())
        columns = [i for i, name in enumerate(self.axes) if name in owned]
        if not columns:
            return frozenset()
        has_before, has_after = (
            (self.codes[self.find({contrast.parameter: value})][:, columns] >= 0).any(axis=0)
            for value in (contrast.before, contrast.after)
        )
        names = list(self.axes)
        return frozenset(names[columns[i]] for i in np.flatnonzero(has_before != has_after))

    @cached_property
    def _contexts(self) -> dict[frozenset[str], Integers]:
        """Numbers of the trials that were computed before."""
        return {}

    @cached_property
    def _merits(self) -> Floats:
        """(trials,), the mean loss of the runs of each trial's architecture; NaN without any.

        Of runs that are solved or not, the place of the architecture.
        """
        if self.losses is not None:
            architectures = self.number_contexts(frozenset([REPLICATE]))
            return place_groups(architectures, self.values, self.losses).astype(float)
        losses = -self.values if self.higher_is_better else self.values
        if REPLICATE not in self.axes:
            return losses
        architectures = self.number_contexts(frozenset([REPLICATE]))
        replicates = self.codes[:, list(self.axes).index(REPLICATE)]
        known = ~np.isnan(losses)
        means = RunMeans.fit(architectures[known], replicates[known], int(architectures.max()) + 1)
        return means.compute(losses[known])[architectures]

    def compute_effect(self, contrast: Contrast) -> Effect:
        """Estimate the main effect of a contrast.

        A value that has parameters which the other one lacks, such as a cell with its switches, is
        compared at the best of them.
        """
        matches = self.match_contrast(contrast)
        known = _select_known(self.values, matches.trials)
        variants: tuple[int, ...] = (1, 1)
        if self.list_own(contrast):
            contexts = self.number_contexts(matches.varied)
            sides = (self.find({contrast.parameter: v}) for v in (contrast.before, contrast.after))
            variants = tuple(int(np.bincount(contexts[side]).max(initial=0)) for side in sides)
        effect = self.estimate(
            Effect,
            matches,
            (-1, 1),
            contrast=contrast,
            missing_pairs=matches.trials.shape[1] - known.shape[1],
            excluded_pairs=self._count_contexts(matches.excluded, matches.varied),
            variants=variants,
        )
        if self.losses is not None and effect.pairs:
            ranks = rank_pairs(*self.losses[known])
            effect = replace(effect, solved_before=float(self.values[known[0]].mean()), ranks=ranks)
        return effect

    def estimate(
        self,
        kind: type[_D],
        matches: Matches,
        signs: tuple[int, ...],
        seeds: int | None = None,
        **attributes: Any,
    ) -> _D:
        """Estimate the mean of some differences between trials.

        Args:
            kind: class of the estimate.
            matches: the trials of each difference.
            signs: sign of each of them: (-1, 1) for before and after.
            seeds: planned number of runs of each architecture; None for that of the matches.
            attributes: other attributes of the estimate.
        """
        used = _select_known(self.values, matches.trials)
        names = [i for i, name in enumerate(self.axes) if name not in matches.varied | {REPLICATE}]
        differences = np.array(signs) @ self.values[used]
        shares = None
        if self.losses is not None:
            shares = ShareChange.from_differences(differences, limit=len(signs) / 2)
        found = kind.from_differences(
            differences,
            self._number_pairs(used, matches.varied),
            self.count_seeds(matches) if seeds is None else seeds,
            self.codes[used[0]][:, names],
            higher_is_better=self.higher_is_better,
            shares=shares,
            **attributes,
        )
        if self.slopes is None or not found.pairs:
            return found
        # A standard deviation with f degrees of freedom has a relative variance of 1 / 2f.
        weights = _weigh(used, signs, len(self.values))
        slopes, groups, degrees = self.slopes
        sums = np.bincount(groups, weights * slopes, len(degrees))
        known = degrees > 0
        parts = np.array([found.error**2, *(sums[known] ** 2 / (2 * degrees[known]))])
        spread = float((parts**2 / np.array([max(1.0, found.degrees), *degrees[known]])).sum())
        variance = float(parts.sum())
        total = variance**2 / spread if spread > 0 else found.degrees
        return replace(found, error=math.sqrt(variance), degrees=total)

    def count_seeds(self, matches: Matches) -> int:
        """Return the number of pairs of runs that most pairs of architectures have or were to have.

        Trials without a value count: what is planned says how an effect is estimated.
        """
        counts = np.unique(self._number_pairs(matches.trials, matches.varied), return_counts=True)
        return int(np.sort(counts[1])[(len(counts[1]) - 1) // 2]) if counts[1].size else 1

    def _number_pairs(self, trials: Integers, varied: frozenset[str]) -> Integers:
        """Number the pairs of architectures (pairs,) of some pairs of runs (settings, pairs)."""
        contexts = self.number_contexts(varied | {REPLICATE})[trials[0]]
        numbers: Integers = np.unique(contexts, return_inverse=True)[1]
        return numbers

    def _count_contexts(self, trials: Integers, varied: frozenset[str]) -> int:
        """Count the pairs of architectures of some pairs of runs (settings, pairs)."""
        return int(self._number_pairs(trials, varied).max(initial=-1)) + 1

    def count_excluded(self, contrast: Contrast, parameter: str) -> dict[Any, tuple[str, int]]:
        """Count the pairs of a contrast that cannot show it, by the value of another parameter.

        Returns:
            Why they cannot, and the number of pairs of architectures, at each value at which no
            pair can.
        """
        matches = self.match_contrast(contrast)
        if self.kinds is None or parameter in self.list_own(contrast):
            return {}
        column = self.codes[:, list(self.axes).index(parameter)]
        shown = {*column[matches.trials[0]].tolist()}
        found = {}
        for code, value in enumerate(self.axes[parameter]):
            trials = matches.excluded[:, column[matches.excluded[0]] == code]
            if trials.size and code not in shown:
                reasons, counts = np.unique(self.kinds.explain(trials), return_counts=True)
                obstacle = str(reasons[counts.argmax()])
                found[value] = obstacle, self._count_contexts(trials, matches.varied)
        return found

    def match_by_level(self, contrast: Contrast, parameter: str) -> dict[Any, Matches]:
        """Match the pairs of a contrast within each value of another parameter.

        Returns:
            The pairs before and after, by value. All values have the same contexts in the same
            order: those in which each value has a pair of two values. Empty if there are none.
        """
        own = self.list_own(contrast)
        if parameter in own:
            return {}
        pairs = _select_known(self.values, self.match_contrast(contrast).trials)
        codes = self.codes[pairs[0], list(self.axes).index(parameter)]
        found = np.unique(codes[codes >= 0])
        varied = own | {contrast.parameter, parameter}
        contexts = self.number_contexts(varied)
        place = np.full((len(found), int(contexts.max(initial=-1)) + 1), -1, dtype=np.int64)
        for i, code in enumerate(found):
            chosen = np.flatnonzero(codes == code)
            place[i, contexts[pairs[0, chosen]]] = chosen
        shared = place[:, (place >= 0).all(axis=0)]
        if not shared.size:
            return {}
        values = self.axes[parameter]
        return {
            values[code]: Matches(pairs[:, chosen], varied)
            for code, chosen in zip(found, shared, strict=True)
        }

    def compute_weights(self, contrast: Contrast) -> Floats:
        """Return the weight of each trial's value in the main effect of a contrast, (trials,)."""
        used = _select_known(self.values, self.match_contrast(contrast).trials)
        return _weigh(used, (-1, 1), len(self.values))

    def compute_effects(self) -> list[Effect]:
        """Estimate the main effect of each contrast that has a pair."""
        found = (self.compute_effect(contrast) for contrast in self.list_contrasts())
        effects = [effect for effect in found if effect.pairs]
        if self.losses is None:
            return effects
        return _correct_shares(effects)

    def match_contrast(self, contrast: Contrast) -> Matches:
        """Match the trials that differ in nothing but a contrast; with values or without.

        Those of a pair that cannot show the change are set apart. Parameters that only one side has
        are ignored: of the architectures that differ in these alone, that of the best mean is
        matched, of those that can show anything.
        """
        varied = self.list_own(contrast) | {contrast.parameter}
        contexts = self.number_contexts(varied)
        trials = np.full((2, int(contexts.max(initial=-1)) + 1), -1, dtype=np.int64)
        merits = np.where(np.isnan(self._merits), np.inf, self._merits)
        is_able = np.ones(len(merits), dtype=bool) if self.kinds is None else self.kinds.is_able
        for side, value in zip(trials, (contrast.before, contrast.after), strict=True):
            # The best architecture of each context is written last.
            rows = np.flatnonzero(self.find({contrast.parameter: value}))
            rows = rows[np.lexsort((-merits[rows], is_able[rows]))]
            side[contexts[rows]] = rows
        matched = trials[:, (trials >= 0).all(axis=0)]
        if self.kinds is None:
            return Matches(matched, varied)
        is_shown = self.kinds.explain(matched) == ""
        return Matches(matched[:, is_shown], varied, matched[:, ~is_shown])


def _correct_shares(effects: Sequence[Effect]) -> list[Effect]:
    """Tell shares how many they are, and correct the tests of ranks for that, their own family."""
    ranks = [effect.ranks for effect in effects if effect.ranks is not None]
    adjusted = adjust_by_holm(np.array([found.p for found in ranks])).tolist()
    return [
        replace(
            effect,
            shares=effect.shares and replace(effect.shares, options=len(effects)),
            ranks=found._replace(p=p),
        )
        for effect, found, p in zip(effects, ranks, adjusted, strict=True)
    ]


def _select_known(values: Floats, trials: Integers) -> Integers:
    """Return those of some pairs (settings, pairs) all of whose trials have values."""
    known: Integers = trials[:, ~np.isnan(values[trials]).any(axis=0)]
    return known


def _weigh(trials: Integers, signs: tuple[int, ...], size: int) -> Floats:
    """Return the weight of each of some trials (size,) in the mean over pairs (signs, pairs)."""
    weights = np.zeros(size)
    # A trial that occurs in several pairs has the sum of their weights.
    np.add.at(weights, trials, np.array(signs)[:, None] / max(1, trials.shape[1]))
    return weights
