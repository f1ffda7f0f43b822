"""Mean differences over matched pairs, with intervals of the noise between runs."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np

from reports.stats.noise import Floats, Integers, NoiseSource, RunNoise
from reports.stats.scale import NATS, Scale

CONFIDENCE = 0.95

MIN_PAIRS = 8
"""Pairs needed to call an effect significant whose noise is only known from its own pairs."""


class Interval(NamedTuple):
    """Ends of a confidence interval."""

    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """Mean difference over matched pairs, with the noise between runs.

    The mean over the pairs is exact for these runs. Its 95% interval answers what the mean would be
    if each network were trained again.

    Attributes:
        pairs: number of pairs with two values.
        mean: mean of value after minus value before. NaN without pairs.
        error: standard error of the mean; NaN if unknown.
        degrees: degrees of freedom of the error; 0 if it is unknown.
        source: what the error was estimated from. Estimated from the differences between the pairs
            it is an upper bound: differences of the effect between contexts count as noise.
        improved_count: number of pairs in which the value improves.
        scale: unit, direction and precision of the mean.
    """

    pairs: int
    mean: float
    error: float
    degrees: float
    source: NoiseSource
    improved_count: int
    scale: Scale = NATS

    @classmethod
    def from_differences(cls, differences: Floats, scale: Scale = NATS, **attributes: Any) -> Self:
        """Estimate the mean of some differences, and its error from these alone.

        Args:
            differences: one per pair, in an array of any shape; NaN where a value is missing.
            scale: unit, direction and precision of the values.
            attributes: other attributes, of a subclass.
        """
        differences = differences[~np.isnan(differences)]
        count = len(differences)
        attributes.setdefault(
            "error", float(differences.std(ddof=1)) / math.sqrt(count) if count > 1 else math.nan
        )
        attributes.setdefault("degrees", float(max(0, count - 1)))
        attributes.setdefault("source", NoiseSource.PAIRS)
        return cls(
            pairs=count,
            mean=float(differences.mean()) if count else math.nan,
            improved_count=int(scale.improves(differences).sum()),
            scale=scale,
            **attributes,
        )

    @classmethod
    def from_trials(
        cls,
        values: Floats,
        trials: Integers,
        signs: tuple[int, ...],
        noise: RunNoise | None,
        **attributes: Any,
    ) -> Self:
        """Estimate the mean of some differences between trials.

        Args:
            values: (trials,), the values of all trials; NaN where there is none.
            trials: (signs, pairs), indices of the trials of each pair; -1 where there is none.
            signs: sign of each trial of a pair in the difference: (-1, 1) for before and after.
            noise: noise of the values; None estimates it from the differences.
            attributes: other attributes, of a subclass.
        """
        has_values = (trials >= 0).all(axis=0) & ~np.isnan(values[trials]).any(axis=0)
        used = trials[:, has_values]
        count = used.shape[1]
        differences = np.array(signs) @ values[used] if count else np.empty(0)
        if noise is not None and count:
            # A trial that occurs in several pairs has the sum of their weights.
            weights = np.zeros(len(values))
            np.add.at(weights, used, np.array(signs)[:, None] / count)
            if found := noise.compute_error(weights):
                attributes |= found._asdict()
        return cls.from_differences(differences, **attributes)

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
        return bool(self.scale.improves(self.mean))

    @property
    def reason(self) -> str:
        """Why the interval supports no decision: ``too few pairs to test: 4 of 8``; "" if it does.

        Without another estimate of the noise, :data:`MIN_PAIRS` pairs are needed.
        """
        is_known = self.source is not NoiseSource.PAIRS or self.pairs >= MIN_PAIRS
        if is_known and not math.isnan(self.error):
            return ""
        return f"too few pairs to test: {self.pairs} of {MIN_PAIRS}"

    @property
    def is_decidable(self) -> bool:
        """Whether the interval can support a decision; :attr:`reason` says why not."""
        return not self.reason

    @property
    def is_significant(self) -> bool:
        """Whether the interval excludes zero and can support a decision."""
        return self.is_decidable and (self.low > 0 or self.high < 0)
