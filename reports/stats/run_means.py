"""Losses of architectures with several runs: adjusted means, and ranking by them.

Runs of equal replicate number read the text in the same order, which changes all losses
alike. An architecture whose runs had the harder orders would look worse, and one that lost its
hardest run better. So an additive model of architecture and replicate is fitted by least squares,
and the mean of an architecture is what it predicts over all replicates: a least-squares mean
(Searle, Speed & Milliken, *Population Marginal Means in the Linear Model*, The American
Statistician 34, 1980). Where each architecture has each replicate it is the plain mean.
"""

import math
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, replace
from statistics import fmean, median
from typing import Self, TypeVar

import numpy as np

from reports.stats import Floats, Integers

Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True)
class RunMeans:
    """Adjusted means of architectures as linear functions of the losses of R runs.

    Architectures that no chain of common replicates connects cannot be compared; their means keep
    the average effect of their own replicates.

    Attributes:
        architectures: (R,), index of the architecture of each run.
        replicates: (R,), index of its replicate.
        counts: (K,), number of runs of each architecture; 0 has no mean.
        shares: (K, J), share of each of the J replicates in the runs of an architecture.
        inverse: (J, J), pseudo-inverse of the normal equations of the replicates.
    """

    architectures: Integers
    replicates: Integers
    counts: Floats
    shares: Floats
    inverse: Floats

    @classmethod
    def fit(cls, architectures: Integers, replicates: Integers, size: int | None = None) -> Self:
        """Fit the additive model to the runs that there are.

        Args:
            architectures: (R,), index of the architecture of each run.
            replicates: (R,), number of its replicate.
            size: number K of architectures; None for those that have a run.
        """
        size = int(architectures.max(initial=-1)) + 1 if size is None else size
        known, replicates = np.unique(replicates, return_inverse=True)
        runs = np.zeros((size, len(known)))  # (K, J)
        np.add.at(runs, (architectures, replicates), 1)
        counts = runs.sum(axis=1)
        shares = runs / np.maximum(1, counts)[:, None]
        # The architectures are eliminated from the normal equations. They do not determine the sum
        # of the effects: with NumPy's default tolerance, rounding errors would.
        equations = np.diag(runs.sum(axis=0)) - runs.T @ shares
        inverse = np.linalg.pinv(equations, rcond=1e-10, hermitian=True)
        trained = runs[counts > 0]
        if (trained == trained[:1]).all():  # plain means, to the last digit
            inverse = np.zeros_like(inverse)
        return cls(architectures, replicates, counts, shares, inverse)

    def compute(self, losses: Floats) -> Floats:
        """Compute the adjusted means (K,) of losses (R,); NaN without a run."""
        with np.errstate(invalid="ignore"):
            means = np.bincount(self.architectures, losses, len(self.counts)) / self.counts
        residuals = losses - means[self.architectures]
        effects = self.inverse @ np.bincount(self.replicates, residuals, self.shares.shape[1])
        return np.asarray(means - self.shares @ effects)


def average_runs(runs: Iterable[tuple[Name, int, float]]) -> dict[Name, float]:
    """Return the adjusted mean of each architecture.

    Args:
        runs: architecture, replicate and loss of each run.
    """
    runs = list(runs)
    names = list(dict.fromkeys(name for name, _, _ in runs))
    place = {name: i for i, name in enumerate(names)}
    architectures = np.array([place[name] for name, _, _ in runs], dtype=np.int64)
    replicates = np.array([replicate for _, replicate, _ in runs], dtype=np.int64)
    losses = np.array([loss for _, _, loss in runs], dtype=np.float64)
    means = RunMeans.fit(architectures, replicates).compute(losses)
    return dict(zip(names, means.tolist(), strict=True))


@dataclass(frozen=True)
class Run:
    """A complete run of an architecture.

    Attributes:
        architecture: what stands for the architecture.
        value: objective value; negated if a higher one is better.
        loss: number by which architectures are ranked, likewise.
        is_solved: whether it solved its task; None if the mean loss ranks them.
    """

    architecture: Hashable
    number: int
    replicate: int
    value: float
    loss: float
    is_solved: bool | None = None


@dataclass(frozen=True)
class RankedArchitecture:
    """An architecture with its complete runs.

    Attributes:
        architecture: what stands for the architecture.
        loss: mean loss of its runs, adjusted; the median if they are solved or not.
        runs: the runs, that of the best value first.
    """

    architecture: Hashable
    loss: float
    runs: list[Run]

    @property
    def solved(self) -> int | None:
        """Number of runs that are solved; None if they are not ranked by it."""
        known = [run.is_solved for run in self.runs if run.is_solved is not None]
        return sum(known) if known else None

    @property
    def is_adjusted(self) -> bool:
        """Whether the loss is another mean than that of its runs, because some are missing."""
        mean = fmean(run.loss for run in self.runs)
        return self.solved is None and not math.isclose(self.loss, mean, rel_tol=1e-9)


def rank_runs(runs: Iterable[Run]) -> list[RankedArchitecture]:
    """Rank architectures by the adjusted means of their runs; ties by the best run's number.

    Where runs are solved or not, those of which most are solved come first, then the least medians.
    """
    runs = sorted(runs, key=lambda run: (run.value, run.number))
    means = average_runs((run.architecture, run.replicate, run.loss) for run in runs)
    groups: dict[Hashable, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.architecture, []).append(run)
    ranked = []
    for name, group in groups.items():
        found = RankedArchitecture(name, means[name], group)
        if found.solved is not None:
            found = replace(found, loss=median(run.loss for run in group))
        ranked.append(found)
    return sorted(ranked, key=lambda one: (-(one.solved or 0), one.loss, one.runs[0].number))
