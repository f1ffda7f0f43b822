"""The best of several runs: its luck, and whether it lies at an end of the values tried.

The best of several runs is lucky as well as good (docs/statistics.md, nuisance parameters). Of
runs at several values of the nuisance parameters the one with the least loss is selected, of
replicates the values of the least mean. The expected loss of another run at the selected values is
estimated by the coupled bootstrap (Oliveira, Lei & Tibshirani, *Unbiased Risk Estimation in the
Normal Means Problem via Coupled Bootstrap Techniques*, 2024). With noise z of the same variance as
that between runs, y + z and y − z are independent: one selects, the other is an unbiased estimate
of what was selected. The mean over z is an integral over one dimension. What is not known of the
noise is part of the error of the estimate, by the delta method. A selection from y + z errs
slightly more often than one from y, so that the estimate is a little high where values are about
two standard deviations apart.
"""

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from reports.stats import Floats, Integers

if TYPE_CHECKING:
    import pandas as pd

_GRID = np.linspace(-6, 6, 193)
"""Points of the integral over the noise of one run, in standard deviations."""

_DENSITY = np.exp(-(_GRID**2) / 2) / np.exp(-(_GRID**2) / 2).sum()

_TINY = 1e-12
"""Standard deviation of runs without noise, of which the least is selected."""

PROMINENT_SHARE = 0.1
"""Share of the architectures at one end of the values tried from which a report warns of it."""


def estimate_selected(
    values: Floats, deviations: Floats, groups: Integers
) -> tuple[Floats, Floats]:
    """Estimate the value expected of another run of the best of each group.

    Args:
        values: (runs,), observed values.
        deviations: (runs,), standard deviation of each between runs; NaN if unknown.
        groups: (runs,), index of the group of each run; 0, 1, ….

    Returns:
        The expected values (groups,), the least observed value where a deviation of the group is
        unknown; and their derivatives by the logarithm of the deviations, (groups,).
    """
    least = np.full(int(groups.max(initial=-1)) + 1, np.inf)
    np.minimum.at(least, groups, values)
    # The probabilities sum to 1 up to errors of the grid, which would multiply the common level.
    excess = values - least[groups]
    low, high = (_integrate(excess, deviations * factor, groups) for factor in (0.95, 1.05))
    return least + _integrate(excess, deviations, groups), (high - low) / 0.1


def _integrate(values: Floats, deviations: Floats, groups: Integers) -> Floats:
    """Integrate over the noise of the selected run, see :func:`estimate_selected`."""
    from scipy.special import ndtr

    order = np.argsort(groups, kind="stable")
    sizes = np.bincount(groups)
    places = np.arange(len(values)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    # (groups, most runs), padded by runs that are never selected.
    observed = np.full((len(sizes), int(sizes.max(initial=0))), np.inf)
    spread = np.full(observed.shape, _TINY)
    observed[groups[order], places] = values[order]
    spread[groups[order], places] = np.maximum(deviations[order], _TINY)
    spread[np.isnan(spread).any(axis=1)] = _TINY
    expected = np.zeros(len(sizes))
    for i in range(observed.shape[1]):
        exists = np.isfinite(observed[:, i])
        own = observed[exists, i]
        noise = spread[exists, i]
        perturbed = own[:, None] + noise[:, None] * _GRID  # (groups, points)
        is_least = np.tile(_DENSITY, (len(own), 1))
        for j in range(observed.shape[1]):
            if j != i:
                others = observed[exists, j, None]
                scale = spread[exists, j, None]
                is_least *= ndtr((others - perturbed) / scale)
        # y − z where y + z is the least.
        expected[exists] += own * is_least.sum(axis=1) - noise * (is_least @ _GRID)
    return expected


@dataclass(frozen=True)
class Edge:
    """Architectures whose best value is the lowest or the highest one tried.

    Attributes:
        parameter: name of the nuisance parameter.
        value: the value.
        is_highest: whether it is the highest that these architectures were tried at, rather than
            the lowest.
        count: number of these architectures.
        total: number of architectures that were tried at several values of the parameter.
        has_best: whether the best architecture of the study is one of them.
    """

    parameter: str
    value: Any
    is_highest: bool
    count: int
    total: int
    has_best: bool

    @property
    def is_prominent(self) -> bool:
        """Whether the results may rest on it: of a tenth or more, or of the best architecture."""
        return self.has_best or self.count >= PROMINENT_SHARE * self.total


def count_edges(
    table: "pd.DataFrame", best: "pd.DataFrame", architecture: "pd.Series[int]", name: str
) -> list[Edge]:
    """Count the architectures whose best value of a parameter is the lowest or highest tried.

    Of an unfinished study these are architectures with complete trials at two values or more.

    Args:
        table: the trials.
        best: best trial of each architecture, the best architecture first.
        architecture: index of each trial's architecture.
        name: name of the parameter.
    """
    values = table[name].dropna()
    if any(isinstance(value, bool | str) for value in values.tolist()):  # without an order
        return []
    tried = values.astype(float).groupby(architecture[values.index]).agg(["min", "max", "nunique"])
    chosen = best[name].dropna().astype(float)
    complete = values[table["value"][values.index].notna()]
    tried["nunique"] = complete.groupby(architecture[complete.index]).nunique()
    tried = tried.reindex(architecture[chosen.index]).set_axis(chosen.index)
    chosen, tried = chosen[tried["nunique"] > 1], tried[tried["nunique"] > 1]
    exact = {float(value): value for value in values.tolist()}
    edges = []
    for column in ("min", "max"):
        at_edge = chosen[chosen == tried[column]]
        if column == "min":  # nothing is below zero
            at_edge = at_edge[at_edge > 0]
        for value, count in sorted(Counter(at_edge.tolist()).items()):
            has_best = best.index[0] in at_edge.index[at_edge == value]
            edges.append(Edge(name, exact[value], column == "max", count, len(chosen), has_best))
    return edges
