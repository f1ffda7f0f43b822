"""Simulated grids of known effects and noise: what intervals and significance tests get right."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from reports.stats import Floats
from reports.stats.conditional_effects import compute_conditional_effects, rank_effects
from reports.stats.effects import FactorialTable
from reports.stats.noise import Runs, estimate_run_noise

GRID: Mapping[str, Sequence[bool | int]] = {
    **{f"gate_{letter}": [False, True] for letter in "abcd"},
    "layers": [1, 2],
    "state_size": [16, 32, 64],
}
"""96 architectures."""

NOISE = 0.02
"""Standard deviation between runs, in nats, as between replicates of small networks."""


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


@dataclass(frozen=True)
class Simulation:
    """One simulated study."""

    truth: FactorialTable
    observed: FactorialTable
    deviations: Floats  # between runs, of each trial


def simulate(scenario: Scenario, count: int, seed: int = 0) -> Iterator[Simulation]:
    """Draw studies of a scenario; each has other effects and other noise."""
    generator = np.random.default_rng(seed)
    grid = scenario.grid or GRID
    parameters = list(grid)
    rows = itertools.product(*grid.values())
    frame = pd.DataFrame(rows, columns=parameters).assign(value=0.0)
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
            # Of the best tenth; all runs of a replicate share the effect of its text.
            best = np.argsort(values)[: len(values) // 10]
            trials = np.repeat(best, scenario.replicates)
            replicates = np.tile(np.arange(1, scenario.replicates + 1), len(best))
            order = generator.normal(scale=2 * NOISE, size=scenario.replicates)
            drawn = expected[trials] + order[replicates - 1]
            drawn += generator.normal(size=len(trials)) * deviations[trials]
            runs = Runs(empty.codes[trials], replicates, drawn)
        noise = estimate_run_noise(empty.codes, values, runs)
        truth = replace(empty, values=expected)
        yield Simulation(truth, replace(empty, values=values, noise=noise), deviations)


def draw_values(
    codes: NDArray[np.int64], scales: Sequence[float], generator: np.random.Generator
) -> Floats:
    """Draw effects of each order for every combination of levels, and add them up."""
    values = np.full(len(codes), 2.0)
    for order, scale in enumerate(scales, 1):
        for chosen in itertools.combinations(range(codes.shape[1]), order):
            cells = np.unique(codes[:, chosen], axis=0, return_inverse=True)[1].ravel()
            effects = generator.normal(scale=scale, size=cells.max() + 1)
            values += (effects - effects.mean())[cells]
    return values


def names_zero(study: Simulation) -> bool:
    """Return whether the answer of a study names an effect that is zero."""
    table = study.observed
    effects = table.compute_effects()
    ranked = rank_effects(effects, compute_conditional_effects(table, effects))
    named = [effect.main.contrast for effect in ranked if effect.is_significant]
    return any(abs(study.truth.compute_effect(contrast).mean) < 1e-9 for contrast in named)


def find_flags(table: FactorialTable) -> tuple[bool, bool]:
    """Return whether any effect differs between values, and whether any has opposite signs."""
    found = compute_conditional_effects(table, table.compute_effects())
    differs = any(effect.is_significant for effect in found)
    return differs, any(effect.has_opposite_signs for effect in found)
