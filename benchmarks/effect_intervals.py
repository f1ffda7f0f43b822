"""Simulated grids of known effects and noise: what intervals and significance tests get right."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from reports.page.headline import N_EFFECTS
from reports.stats.conditional_effects import (
    RankedEffect,
    compute_conditional_effects,
    rank_effects,
)
from reports.stats.effects import FactorialTable
from reports.stats.noise_regions import Runs
from reports.stats.run_noise import estimate_run_noise

GRID: Mapping[str, Sequence[bool | int]] = {
    **{f"gate_{letter}": [False, True] for letter in "abcd"},
    "layers": [1, 2],
    "state_size": [16, 32, 64],
}
"""96 architectures."""

NOISE = 0.02
"""Standard deviation between runs, in nats, as between replicates of small networks."""

Floats = NDArray[np.float64]


SMALL_GRID: Mapping[str, Sequence[bool | int]] = {
    "gate_a": [False, True],
    "gate_b": [False, True],
    "layers": [1, 2, 3],
    "state_size": [8, 16],
}
"""24 architectures, as in the example of the README."""


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A way to draw the values of a grid.

    Attributes:
        name: name of the scenario.
        scales: standard deviation of the effects of each order, in nats: main effects, interactions
            of two parameters, of three ….
        reversal: effect of each of the first two switches where the other one is on; where it is
            off, the effect has the opposite sign.
        joint: effect of each of the first two switches where the other one is on, and only there.
        noise_by_size: factor of the noise of each state size.
        replicates: number of replicates of the best tenth of the architectures; 0 for none.
        grid: values of each parameter, ``state_size`` among them; :data:`GRID` by default.
    """

    name: str
    scales: Sequence[float] = (0.2, 0.1, 0.05)
    reversal: float = 0.0
    joint: float = 0.0
    noise_by_size: Sequence[float] = (1, 1, 1)
    replicates: int = 0
    grid: Mapping[str, Sequence[bool | int]] | None = None

    def list_architectures(self) -> pd.DataFrame:
        """List the architectures of the grid, with a value of zero."""
        grid = self.grid or GRID
        rows = list(itertools.product(*grid.values()))
        return pd.DataFrame(rows, columns=list(grid)).assign(value=0.0)


@dataclass(frozen=True)
class Simulation:
    """One simulated study.

    Attributes:
        truth: table of the expected values of the architectures.
        observed: table of the values of one run each, with the estimated noise.
        deviations: (trials,), standard deviation of each trial's value between runs.
    """

    truth: FactorialTable
    observed: FactorialTable
    deviations: Floats


def simulate(scenario: Scenario, count: int, seed: int = 0) -> Iterator[Simulation]:
    """Draw studies of a scenario; each has other effects and other noise."""
    generator = np.random.default_rng(seed)
    frame = scenario.list_architectures()
    parameters = list(scenario.grid or GRID)
    empty = FactorialTable.from_frame(frame, parameters, is_grid=False)
    factors = np.array(scenario.noise_by_size)
    deviations = NOISE * factors[empty.codes[:, parameters.index("state_size")] % len(factors)]
    signs = 2 * empty.codes[:, [0, 1]] - 1
    for _ in range(count):
        expected = draw_values(empty.codes, scenario.scales, generator)
        expected = expected + scenario.reversal / 2 * signs[:, 0] * signs[:, 1]
        expected = expected + scenario.joint * empty.codes[:, 0] * empty.codes[:, 1]
        values = expected + generator.normal(size=len(expected)) * deviations
        runs = None
        if scenario.replicates:
            runs = _draw_runs(empty.codes, expected, deviations, values, scenario, generator)
        noise = estimate_run_noise(empty.codes, values, runs)
        truth = replace(empty, values=expected)
        yield Simulation(truth, replace(empty, values=values, noise=noise), deviations)


def draw_values(
    codes: NDArray[np.int64], scales: Sequence[float], generator: np.random.Generator
) -> Floats:
    """Draw effects of each order for every combination of levels, and add them up.

    Args:
        codes: (trials, parameters), index of each parameter's value.
        scales: standard deviation of the effects of each order.
        generator: source of randomness.
    """
    values = np.full(len(codes), 2.0)
    for order, scale in enumerate(scales, 1):
        for chosen in itertools.combinations(range(codes.shape[1]), order):
            cells = np.unique(codes[:, chosen], axis=0, return_inverse=True)[1].ravel()
            effects = generator.normal(scale=scale, size=cells.max() + 1)
            values += (effects - effects.mean())[cells]
    return values


def bootstrap_interval(sample: Floats, resamples: int = 4000) -> tuple[float, float]:
    """Compute the interval that reports had before: bootstrap over the pairs, BCa.

    Expanded for small samples (Hesterberg, *What Teachers Should Know About the Bootstrap*, 2015,
    section 4.5). It treats the pairs of the grid as a sample of others.
    """
    n, mean = len(sample), sample.mean()
    deviations = sample - mean
    spread = float((deviations**2).sum())
    means = sample[np.random.default_rng(0).integers(n, size=(resamples, n))].mean(axis=1)
    normal = NormalDist()
    below = ((means < mean).sum() + (means <= mean).sum()) / (2 * resamples)
    bias = normal.inv_cdf(min(max(below, 1 / resamples), 1 - 1 / resamples))
    acceleration = float((deviations**3).sum()) / (6 * spread**1.5)
    reach = math.sqrt(n / (n - 1)) * float(stats.t.ppf(0.975, n - 1))
    quantiles = []
    for end in (-reach, reach):
        shifted = bias + end
        quantiles.append(normal.cdf(bias + shifted / (1 - acceleration * shifted)))
    low, high = np.quantile(means, quantiles)
    return float(low), float(high)


def _draw_runs(
    codes: NDArray[np.int64],
    expected: Floats,
    deviations: Floats,
    values: Floats,
    scenario: Scenario,
    generator: np.random.Generator,
) -> Runs:
    """Draw replicates of the best tenth; all runs of a replicate share the effect of its text."""
    best = np.argsort(values)[: len(values) // 10]
    trials = np.repeat(best, scenario.replicates)
    replicates = np.tile(np.arange(1, scenario.replicates + 1), len(best))
    order = generator.normal(scale=2 * NOISE, size=scenario.replicates)
    drawn = expected[trials] + order[replicates - 1]
    drawn += generator.normal(size=len(trials)) * deviations[trials]
    return Runs(codes[trials], replicates, drawn)


_SCENARIOS = (
    Scenario(name="equal noise, 96 architectures"),
    Scenario(name="noise ×1, ×2, ×4 by state size", noise_by_size=(1, 2, 4)),
    Scenario(name="real interactions of four parameters", scales=(0.2, 0.1, 0.05, 0.02)),
    Scenario(
        name="the same, three replicates of nine", scales=(0.2, 0.1, 0.05, 0.02), replicates=3
    ),
    Scenario(name="24 architectures", scales=(0.2, 0.1), grid=SMALL_GRID),
    Scenario(name="24, real interactions of three", grid=SMALL_GRID),
)

_NAMED = (
    Scenario(name="no effects", scales=()),
    Scenario(name="no effects, noise by size", scales=(), noise_by_size=(1, 2, 4)),
    Scenario(name="no effects, 24 architectures", scales=(), grid=SMALL_GRID),
)

_FLAGS = (
    Scenario(name="main effects only", scales=(0.1,)),
    Scenario(name="main effects only, noise by size", scales=(0.1,), noise_by_size=(1, 2, 4)),
    Scenario(name="no effects", scales=()),
    Scenario(name="main effects, 24 architectures", scales=(0.1,), grid=SMALL_GRID),
    Scenario(name="effect of one sign or none (−0.2, 0)", scales=(), joint=-0.2),
    Scenario(name="opposite signs, ±0.02", scales=(), reversal=0.02),
    Scenario(name="opposite signs, ±0.03", scales=(), reversal=0.03),
)


def measure(count: int = 300) -> Iterator[str]:
    """Yield the tables of intervals and flags over simulated studies."""
    yield f"{count} simulated studies each: before (bootstrap over the pairs) and after (noise)"
    yield (
        "scenario | covered, before | after | width / that of known noise, before | after | "
        "effect of 3 standard errors found, before | after"
    )
    for scenario in _SCENARIOS:
        found = [row for study in simulate(scenario, count) for row in _compare_intervals(study)]
        means = np.mean(found, axis=0)
        widths = np.median(found, axis=0)[2:4]
        yield (
            f"{scenario.name} | {means[0]:.1%} | {means[1]:.1%} | {widths[0]:.2f} | "
            f"{widths[1]:.2f} | {means[4]:.0%} | {means[5]:.0%}"
        )
    yield "scenario | studies with a significant range | with opposite signs"
    for scenario in _FLAGS:
        flags = np.array([find_flags(study.observed) for study in simulate(scenario, count)])
        yield f"{scenario.name} | {flags[:, 0].mean():.1%} | {flags[:, 1].mean():.1%}"
    yield "scenario | studies with an effect named that is zero, before | uncorrected | after"
    for scenario in _NAMED:
        named = np.array([find_named(study) for study in simulate(scenario, count)])
        yield f"{scenario.name} | {' | '.join(f'{share:.1%}' for share in named.mean(axis=0))}"


def find_named(study: Simulation) -> tuple[bool, bool, bool]:
    """Return whether the last line of a search names an effect that is zero.

    Before, it named the two largest effects whether they are significant or not; after, those that
    are significant after Holm's correction. Between these: without the correction.
    """
    table = study.observed
    effects = table.compute_effects()
    ranked = rank_effects(effects, compute_conditional_effects(table, effects))
    corrected = [each for each in ranked if each.is_significant]
    uncorrected = [each for each in ranked if each.condition or each.main.is_significant]

    def names_zero(named: Sequence[RankedEffect]) -> bool:
        truths = (study.truth.compute_effect(each.main.contrast).mean for each in named[:N_EFFECTS])
        return any(abs(truth) < 1e-9 for truth in truths)

    return names_zero(ranked), names_zero(uncorrected), names_zero(corrected)


def find_flags(table: FactorialTable) -> tuple[bool, bool]:
    """Return whether any effect differs between values, and whether any has opposite signs."""
    found = compute_conditional_effects(table, table.compute_effects())
    differs = any(each.is_significant for each in found)
    return differs, any(each.has_opposite_signs for each in found)


def _compare_intervals(study: Simulation) -> Iterator[tuple[float, ...]]:
    """Yield coverage, relative width and power of the old and the new interval of each effect."""
    table = study.observed
    for effect in table.compute_effects():
        other = next(name for name in table.axes if name != effect.contrast.parameter)
        before, after = np.hstack(list(table.match_by_level(effect.contrast, other).values()))
        intervals = (
            bootstrap_interval(table.values[after] - table.values[before]),
            (
                effect.low,
                effect.high,
            ),
        )
        truth = study.truth.compute_effect(effect.contrast).mean
        variances = study.deviations[before] ** 2 + study.deviations[after] ** 2
        error = math.sqrt(variances.sum()) / len(variances)
        covers = [low <= truth <= high for low, high in intervals]
        widths = [(high - low) / (2 * 1.96 * error) for low, high in intervals]
        # The same interval around an effect of three standard errors.
        shift = 3 * error - truth
        excludes = [low + shift > 0 or high + shift < 0 for low, high in intervals]
        yield (*covers, *widths, *excludes)
