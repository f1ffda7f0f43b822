"""Simulated grids of known effects and noise: what intervals and significance tests get right."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from reports.stats import Floats, Integers
from reports.stats.conditional_effects import compute_conditional_effects
from reports.stats.effects import FactorialTable, Slopes
from reports.stats.judged import estimate_selected
from reports.stats.noise import estimate_deviations

NOISE = 0.02
"""Standard deviation between runs, in nats, as between replicates of small networks."""

SWITCHES: Mapping[str, Sequence[bool | int]] = {f"gate_{name}": [False, True] for name in "abcd"}

GRID: Mapping[str, Sequence[bool | int]] = {
    **SWITCHES,
    "layers": [1, 2],
    "state_size": [16, 32, 64],
}
"""96 architectures."""

SMALL_GRID: Mapping[str, Sequence[bool | int]] = {
    "gate_a": [False, True],
    "gate_b": [False, True],
    "layers": [1, 2, 3],
    "state_size": [8, 16],
}
"""24 architectures, as in the example of the README."""

RATES = 3
"""Number of values of the nuisance parameter."""

Tables = tuple[FactorialTable, FactorialTable]
"""Table of the expected values, and the observed one."""


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
        grid: values of each parameter, ``state_size`` among them.
    """

    scales: Sequence[float] = (0.2, 0.1, 0.05)
    reversal: float = 0.0
    joint: float = 0.0
    noise_by_size: Sequence[float] = (1, 1, 1)
    grid: Mapping[str, Sequence[bool | int]] = field(default_factory=lambda: GRID)


def simulate(scenario: Scenario, count: int = 40, seed: int = 0) -> Iterator[Tables]:
    """Draw studies of a scenario; each has other effects and other noise."""
    generator = np.random.default_rng(seed)
    parameters = list(scenario.grid)
    rows = itertools.product(*scenario.grid.values())
    frame = pd.DataFrame(rows, columns=parameters).assign(value=0.0)
    empty = FactorialTable.from_frame(frame, parameters)
    factors = np.array(scenario.noise_by_size)
    deviations = NOISE * factors[empty.codes[:, parameters.index("state_size")] % len(factors)]
    signs = 2 * empty.codes[:, [0, 1]] - 1
    for _ in range(count):
        expected = _draw_values(empty.codes, scenario.scales, generator)
        expected = expected + scenario.reversal / 2 * signs[:, 0] * signs[:, 1]
        expected = expected + scenario.joint * empty.codes[:, 0] * empty.codes[:, 1]
        values = expected + generator.normal(size=len(expected)) * deviations
        yield replace(empty, values=expected), replace(empty, values=values)


def _draw_values(
    codes: Integers, scales: Sequence[float], generator: np.random.Generator
) -> Floats:
    """Draw effects of each order for every combination of levels, and add them up."""
    values = np.full(len(codes), 2.0)
    for order, scale in enumerate(scales, 1):
        for chosen in itertools.combinations(range(codes.shape[1]), order):
            cells = np.unique(codes[:, chosen], axis=0, return_inverse=True)[1].ravel()
            effects = generator.normal(scale=scale, size=cells.max() + 1)
            values += (effects - effects.mean())[cells]
    return values


def find_flags(table: FactorialTable) -> tuple[bool, bool]:
    """Return whether any effect differs between values, and whether any has opposite signs."""
    found = compute_conditional_effects(table, table.compute_effects())
    differs = any(effect.is_significant for effect in found)
    return differs, any(effect.has_opposite_signs for effect in found)


def cover_effects(truth: FactorialTable, observed: FactorialTable) -> Iterator[bool]:
    """Yield whether the interval of each effect has the true mean."""
    for effect in observed.compute_effects():
        yield effect.low <= truth.compute_effect(effect.contrast).mean <= effect.high


# ------------------------------------------------------------------ uneven noise


def _build_grid(factor: float) -> tuple[FactorialTable, Floats]:
    """Build four switches and 1 to 3 layers; those of three are noisy."""
    frame = pd.DataFrame(
        itertools.product(*SWITCHES.values(), [1, 2, 3]), columns=[*SWITCHES, "layers"]
    )
    table = FactorialTable.from_frame(frame.assign(value=0.0), [*SWITCHES, "layers"])
    return table, np.where(frame["layers"] == 3, factor, 1.0) * NOISE


Gaps = Callable[[Integers], Floats]
"""Excess losses (architectures, rates) of architectures with these numbers of layers."""


def equal_rates(layers: Integers) -> Floats:
    return np.zeros((len(layers), RATES))


def mixed_rates(layers: Integers) -> Floats:
    """Return equal excess losses for three layers; for others another rate is the best of each."""
    distances = np.abs(np.arange(RATES) - layers[:, None]) * 0.6
    return np.where(layers[:, None] == RATES - 1, 0.0, distances)


def simulate_tuned(gaps: Gaps, factor: float) -> Iterator[Tables]:
    """Draw studies of 48 architectures at three rates each, without any effect at the best.

    What is observed of an architecture is the expected value of another run at its best rate.
    """
    generator = np.random.default_rng(0)
    empty, deviations = _build_grid(factor)
    size = len(deviations)
    codes = np.hstack(
        [np.repeat(empty.codes, RATES, axis=0), np.tile(np.arange(RATES), size)[:, None]]
    )
    means = 2.0 + gaps(empty.codes[:, -1])
    for _ in range(30):
        values = means + generator.normal(size=means.shape) * deviations[:, None]
        noise = estimate_deviations(codes, values.ravel())
        assert noise is not None
        expected, slopes = estimate_selected(
            values.ravel(), noise.of_trials, np.repeat(np.arange(size), RATES)
        )
        groups = noise.groups[np.arange(size) * RATES + values.argmin(axis=1)]
        yield (
            replace(empty, values=means.min(axis=1)),
            replace(empty, values=expected, slopes=Slopes(slopes, groups, noise.degrees)),
        )
