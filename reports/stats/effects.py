"""Main effects and interactions of a factorial study, estimated from matched pairs.

In a full factorial design two trials that differ in one parameter alone are a matched pair. The
mean difference over all pairs is the parameter's main effect; the difference of two such
differences is an interaction (Box, Hunter & Hunter, *Statistics for Experimenters*, 2nd edition,
chapter 5). These means are exact for the runs of the study; their intervals are those of training
each network again. In a union of grids a trial may lack a parameter, such as a switch of another
cell; both trials of a pair have it or both lack it.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeVar

import numpy as np

from reports.stats import Booleans, Floats, Integers
from reports.stats.design import (
    NO_TRAITS,
    REPLICATE,
    Contrast,
    ParameterTraits,
    encode,
    number_groups,
)
from reports.stats.estimate import CONFIDENCE, Estimate
from reports.stats.noise import NoiseError, NoiseSource, RunNoise, Runs, Slopes, estimate_run_noise
from reports.stats.run_means import RunMeans

if TYPE_CHECKING:
    import pandas as pd

_D = TypeVar("_D", bound="PairedDifference")

MIN_PAIRS = 8
"""Pairs needed to call an effect significant whose noise is only known from its own pairs."""

_MAX_KEY = 2**62
"""Product of the parameters' values up to which contexts are numbered at once."""


class Interval(NamedTuple):
    """Ends of a confidence interval."""

    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class PairedDifference(Estimate):
    """Mean difference over matched pairs, with the noise between runs.

    The mean over the pairs is exact for these runs. Its 95% interval answers what the mean would be
    if each network were trained again.

    Attributes:
        pairs: number of pairs with two values.
        error: standard error of the mean; NaN if unknown.
        degrees: degrees of freedom of the error; 0 if it is unknown.
        source: what the error was estimated from. Estimated from the differences between the pairs
            it is an upper bound: differences of the effect between contexts count as noise.
        improved_count: number of pairs in which the value improves.
        higher_is_better: whether a higher value is better.
    """

    pairs: int
    error: float
    degrees: float
    source: NoiseSource
    improved_count: int
    higher_is_better: bool = False

    @classmethod
    def from_trials(
        cls,
        values: Floats,
        trials: Integers,
        signs: tuple[int, ...],
        noise: RunNoise | None,
        higher_is_better: bool = False,
        **attributes: Any,
    ) -> Self:
        """Estimate the mean of some differences between trials.

        Args:
            values: (trials,), the values of all trials; NaN where there is none.
            trials: (signs, pairs), indices of the trials of each pair; -1 where there is none.
            signs: sign of each trial of a pair in the difference: (-1, 1) for before and after.
            noise: noise of the values; None estimates it from the differences.
            higher_is_better: whether a higher value is better.
            attributes: other attributes, of a subclass.
        """
        used = _select_known(values, trials)
        count = used.shape[1]
        differences = np.array(signs) @ values[used] if count else np.empty(0)
        gains = differences if higher_is_better else -differences
        found = None
        if noise is not None and count:
            found = noise.compute_error(_weigh(used, signs, len(values)))
        if found is None:
            deviation = float(differences.std(ddof=1)) if count > 1 else math.nan
            error = deviation / math.sqrt(max(1, count))
            found = NoiseError(error, float(max(0, count - 1)), NoiseSource.PAIRS)
        return cls(
            pairs=count,
            mean=float(differences.mean()) if count else math.nan,
            improved_count=int((gains > 0).sum()),
            higher_is_better=higher_is_better,
            **found._asdict(),
            **attributes,
        )

    def compute_interval(self, confidence: float = CONFIDENCE) -> Interval:
        """Compute Student's interval of the mean; NaN if the error is unknown."""
        from scipy import stats

        half_width = float(stats.t.ppf((1 + confidence) / 2, self.degrees)) * self.error
        return Interval(self.mean - half_width, self.mean + half_width)

    @property
    def low(self) -> float:
        """Lower end of the 95% interval of the mean; NaN if the error is unknown."""
        return self.compute_interval().low

    @property
    def high(self) -> float:
        """Upper end of the interval."""
        return self.compute_interval().high

    @property
    def p(self) -> float:
        """Two-sided p-value of a zero mean; 1 if the error is unknown or from too few pairs."""
        from scipy import stats

        if not self.is_decidable:
            return 1.0
        if self.error == 0:
            return float(self.mean == 0)
        return float(2 * stats.t.sf(abs(self.mean) / self.error, self.degrees))

    @property
    def is_improvement(self) -> bool:
        """Whether the mean is better than no difference."""
        return self.mean > 0 if self.higher_is_better else self.mean < 0

    @property
    def reason(self) -> str:
        """Why the interval supports no decision: ``too few pairs to test: 4 of 8``; "" if it does.

        Without another estimate of the noise, :data:`MIN_PAIRS` pairs are needed.
        """
        needs_pairs = self.source is NoiseSource.PAIRS
        if (not needs_pairs or self.pairs >= MIN_PAIRS) and not math.isnan(self.error):
            return ""
        return f"too few pairs to test: {self.pairs} of {MIN_PAIRS}"

    @property
    def is_decidable(self) -> bool:
        """Whether the interval can support a decision; :attr:`reason` says why not."""
        return not self.reason


def _select_known(values: Floats, trials: Integers) -> Integers:
    """Return those of some pairs (signs, pairs) all of whose trials have values."""
    return trials[:, (trials >= 0).all(axis=0) & ~np.isnan(values[trials]).any(axis=0)]


def _weigh(trials: Integers, signs: tuple[int, ...], size: int) -> Floats:
    """Return the weight of each of some trials (size,) in the mean over pairs (signs, pairs)."""
    weights = np.zeros(size)
    # A trial that occurs in several pairs has the sum of their weights.
    np.add.at(weights, trials, np.array(signs)[:, None] / max(1, trials.shape[1]))
    return weights


@dataclass(frozen=True, kw_only=True)
class Effect(PairedDifference):
    """Main effect of a contrast.

    Attributes:
        contrast: the change.
        mean_before: mean of the value before the change; NaN without pairs.
        only_before: number of pairs left out because the second trial has no value.
        only_after: number of pairs left out because the first trial has no value.
        neither: number of pairs left out because neither trial has a value.
        variants: number of trials of which each side of a pair is the best, before and after: 1
            but for values, such as cells, that have parameters of their own.
        obstacle: why it cannot be estimated by least squares, in one clause; "" if it can.
    """

    contrast: Contrast
    mean_before: float = math.nan
    only_before: int = 0
    only_after: int = 0
    neither: int = 0
    variants: tuple[int, ...] = (1, 1)
    obstacle: str = ""

    @property
    def reason(self) -> str:
        """Why the interval supports no decision; "" if it does."""
        return self.obstacle or super().reason

    @property
    def missing_pairs(self) -> int:
        """Number of pairs that the design has and that lack a value."""
        return self.only_before + self.only_after + self.neither


@dataclass(frozen=True, kw_only=True)
class Interaction(PairedDifference):
    """How much larger the effect of one contrast is after another contrast than before it.

    Each of its ``pairs`` consists of two matched pairs, hence of four trials.

    Attributes:
        first: one contrast.
        second: the other, of another parameter.
    """

    first: Contrast
    second: Contrast


@dataclass(frozen=True)
class FactorialTable:
    """Values of a study's trials by their parameters; a design, or a union of several.

    Attributes:
        axes: values of each parameter in order, over the trials that have it.
        codes: (trials, parameters), indices into these values; -1 where a trial lacks a parameter.
        traits: what else is known of the parameters.
        values: (trials,), their values; NaN where there is none.
        noise: noise of the values between runs; None if it cannot be estimated.
        higher_is_better: whether a higher value is better.
        uncontrasted: parameters of which no two values are compared; trials of a pair have the same
            value of them.
    """

    axes: Mapping[str, Sequence[Any]]
    codes: Integers
    traits: ParameterTraits
    values: Floats
    noise: RunNoise | None = None
    higher_is_better: bool = False
    uncontrasted: frozenset[str] = frozenset()

    @classmethod
    def from_frame(
        cls,
        table: "pd.DataFrame",
        parameters: Sequence[str],
        replicates: "pd.DataFrame | None" = None,
        is_grid: bool = True,
        means: RunMeans | None = None,
        slopes: Slopes | None = None,
        higher_is_better: bool = False,
        traits: ParameterTraits = NO_TRAITS,
    ) -> "FactorialTable":
        """Arrange the rows of a frame and estimate the noise of their values.

        Args:
            table: one row per trial with the parameters, missing where the trial lacks one, and
                ``value``, NaN for none.
            parameters: names of the axes; any two rows differ in one of them or more.
            replicates: further runs with the parameters, ``replicate`` and ``value``; those of
                other architectures are left out.
            is_grid: whether they are a grid; others have no noise from interactions.
            means: how the values depend on several runs of each trial; see :meth:`from_runs`.
            slopes: how the values depend on estimated standard deviations; None if they do not.
            higher_is_better: whether a higher value is better.
            traits: what else is known of the parameters.
        """
        known = {name: table[name].dropna().tolist() for name in parameters}
        axes = {name: traits.sort_values(name, values) for name, values in known.items()}
        codes, values = encode(table, axes), table["value"].to_numpy(dtype=float)
        places = [i for i, name in enumerate(axes) if name != REPLICATE]
        runs = None
        if replicates is not None:
            rows = replicates[replicates["value"].notna()]
            runs = Runs(
                encode(rows, axes)[:, places],
                rows[REPLICATE].to_numpy(dtype=np.int64),
                rows["value"].to_numpy(dtype=float),
            )
        noise = estimate_run_noise(codes[:, places], values, runs, means, is_grid)
        if noise is not None:
            noise = replace(noise, slopes=slopes)
        return cls(axes, codes, traits, values, noise, higher_is_better)

    @classmethod
    def from_runs(
        cls,
        runs: "pd.DataFrame",
        parameters: Sequence[str],
        higher_is_better: bool = False,
        traits: ParameterTraits = NO_TRAITS,
    ) -> "FactorialTable":
        """Arrange architectures by their adjusted means, :mod:`reports.stats.run_means`.

        Args:
            runs: one row per run with the parameters, ``replicate``, and ``value``, NaN for none.
            parameters: names of the axes; any two architectures differ in one or more.
            higher_is_better: whether a higher value is better.
            traits: what else is known of the parameters.
        """
        index = np.array(number_groups(runs, parameters), dtype=np.int64)
        firsts, has_value = np.unique(index, return_index=True)[1], runs["value"].notna().to_numpy()
        complete = runs[has_value]
        replicates = complete[REPLICATE].to_numpy(dtype=np.int64)
        means = RunMeans.fit(index[has_value], replicates, len(firsts))
        values = means.compute(complete["value"].to_numpy(dtype=float))
        table = runs.iloc[firsts].assign(value=values)
        return cls.from_frame(
            table,
            parameters,
            complete,
            is_grid=False,
            means=means,
            higher_is_better=higher_is_better,
            traits=traits,
        )

    def subset(self, fixed: Mapping[str, Any]) -> "FactorialTable":
        """Keep the trials with the given value of each parameter, or one of those in a list."""
        is_kept = self.find(fixed)
        noise = self.noise.select(is_kept) if self.noise else None
        codes, values = self.codes[is_kept], self.values[is_kept]
        return replace(self, codes=codes, values=values, noise=noise)

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

    def compute_difference(
        self, before: Mapping[str, Any], after: Mapping[str, Any]
    ) -> PairedDifference:
        """Estimate the difference between two settings of the same parameters.

        Args:
            before: value of each parameter that differs, in the first trial of a pair.
            after: values in the second trial.

        Returns:
            The difference; it has no pairs if the table lacks one of the values.
        """
        return self.estimate(PairedDifference, self.match(before, after), (-1, 1))

    def compute_effect(self, contrast: Contrast) -> Effect:
        """Estimate the main effect of a contrast.

        A value that has parameters which the other one lacks, such as a cell with its switches, is
        compared at the best of them.
        """
        trials = self.match_contrast(contrast)
        known = _select_known(self.values, trials)
        has_before, has_after = ~np.isnan(self.values[trials])
        variants: tuple[int, ...] = (1, 1)
        if own := self.list_own(contrast):
            contexts = self.number_contexts(own | {contrast.parameter})
            sides = (self.find({contrast.parameter: v}) for v in (contrast.before, contrast.after))
            variants = tuple(int(np.bincount(contexts[side]).max(initial=0)) for side in sides)
        return self.estimate(
            Effect,
            trials,
            (-1, 1),
            contrast=contrast,
            mean_before=float(self.values[known[0]].mean()) if known.size else math.nan,
            only_before=int((has_before & ~has_after).sum()),
            only_after=int((has_after & ~has_before).sum()),
            neither=int((~has_before & ~has_after).sum()),
            variants=variants,
        )

    def estimate(
        self, kind: type[_D], trials: Integers, signs: tuple[int, ...], **attributes: Any
    ) -> _D:
        """Estimate the mean of some differences; see :meth:`PairedDifference.from_trials`."""
        return kind.from_trials(
            self.values,
            trials,
            signs,
            self.noise,
            higher_is_better=self.higher_is_better,
            **attributes,
        )

    def match_by_level(self, contrast: Contrast, parameter: str) -> dict[Any, Integers]:
        """Match the pairs of a contrast within each value of another parameter.

        Args:
            contrast: the contrast.
            parameter: name of the other parameter.

        Returns:
            Indices (2, pairs) of the trials before and after, by value. All values have the same
            contexts in the same order: those in which each value has a pair of two values. Empty if
            there are none.
        """
        own = self.list_own(contrast)
        if parameter in own:
            return {}
        pairs = _select_known(self.values, self.match_contrast(contrast))
        codes = self.codes[pairs[0], list(self.axes).index(parameter)]
        found = np.unique(codes[codes >= 0])
        contexts = self.number_contexts(own | {contrast.parameter, parameter})
        place = np.full((len(found), int(contexts.max(initial=-1)) + 1), -1, dtype=np.int64)
        for i, code in enumerate(found):
            chosen = np.flatnonzero(codes == code)
            place[i, contexts[pairs[0, chosen]]] = chosen
        shared = place[:, (place >= 0).all(axis=0)]
        if not shared.size:
            return {}
        values = self.axes[parameter]
        return {values[code]: pairs[:, chosen] for code, chosen in zip(found, shared, strict=True)}

    def compute_weights(self, contrast: Contrast) -> Floats:
        """Return the weight of each trial's value in the main effect of a contrast, (trials,)."""
        used = _select_known(self.values, self.match_contrast(contrast))
        return _weigh(used, (-1, 1), len(self.values))

    def compute_effects(self) -> list[Effect]:
        """Estimate the main effect of each contrast that has a pair."""
        effects = (self.compute_effect(contrast) for contrast in self.list_contrasts())
        return [effect for effect in effects if effect.pairs]

    def compute_interaction(self, first: Contrast, second: Contrast) -> Interaction:
        """Estimate the interaction of two contrasts of different parameters."""
        settings = (
            {first.parameter: one, second.parameter: other}
            for one in (first.before, first.after)
            for other in (second.before, second.after)
        )
        return self.estimate(
            Interaction, self.match(*settings), (1, -1, -1, 1), first=first, second=second
        )

    def compute_interactions(self) -> list[Interaction]:
        """Estimate the interaction of each two contrasts that have a quadruple."""
        interactions = (
            self.compute_interaction(first, second)
            for first, second in itertools.combinations(self.list_contrasts(), 2)
            if first.parameter != second.parameter
        )
        return [interaction for interaction in interactions if interaction.pairs]

    def match_contrast(self, contrast: Contrast) -> Integers:
        """Return the trials (2, pairs) before and after a contrast; see :meth:`match`."""
        before, after = ({contrast.parameter: v} for v in (contrast.before, contrast.after))
        return self.match(before, after, own=self.list_own(contrast))

    def match(self, *settings: Mapping[str, Any], own: frozenset[str] = frozenset()) -> Integers:
        """Return the trials (settings, pairs) that differ in nothing but some settings.

        Args:
            settings: values of some parameters, the same ones in each.
            own: parameters that are ignored: of the trials that differ in these alone, the best
                one is returned.
        """
        contexts = self.number_contexts(own.union(*settings))
        trials = np.full((len(settings), int(contexts.max(initial=-1)) + 1), -1, dtype=np.int64)
        for side, fixed in zip(trials, settings, strict=True):
            # The best value of each context is written last, and missing losses first.
            rows = np.flatnonzero(self.find(fixed))
            values = -self.values[rows] if self.higher_is_better else self.values[rows]
            values = np.where(np.isnan(values), np.inf, values)
            rows = rows[np.argsort(-values, kind="stable")]
            side[contexts[rows]] = rows
        return trials[:, (trials >= 0).all(axis=0)]
