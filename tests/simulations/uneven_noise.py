"""Simulated studies in which some networks vary more between runs than others."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from reports.analysis.refinement import UNCHANGED, SourceComparison, compute_variant_effects
from reports.stats import Floats, Integers
from reports.stats.effects import FactorialTable
from reports.stats.judged import estimate_selected
from reports.stats.noise import Slopes, estimate_run_noise
from tests.simulations.grids import NOISE, draw_values, find_flags

SWITCHES: Mapping[str, Sequence[bool | int]] = {f"gate_{each}": [False, True] for each in "abcd"}

RATES = 3
"""Number of values of the nuisance parameter."""

Tables = tuple[FactorialTable, FactorialTable]
"""Table of the expected values, and the observed one with the estimated noise."""


@dataclass(frozen=True)
class Counts:
    """What was found in one or more simulated studies; shares between 0 and 1."""

    covered: float  # effects whose interval covers the truth
    differs: float  # studies in which an effect differs significantly between values
    opposite: float  # studies with opposite signs


def build_grid(deep: int, factor: float) -> tuple[FactorialTable, Floats]:
    """Build four switches and 1 to 3 layers; the 4, 8 or 16 networks of three are noisy."""
    frame = pd.DataFrame(
        itertools.product(*SWITCHES.values(), [1, 2, 3]), columns=[*SWITCHES, "layers"]
    )
    is_kept = (deep > 8) | ~frame["gate_a"] & ((deep > 4) | ~frame["gate_b"])
    frame = frame[(frame["layers"] < 3) | is_kept].assign(value=0.0)
    table = FactorialTable.from_frame(frame, [*SWITCHES, "layers"], is_grid=False)
    return table, np.where(frame["layers"] == 3, factor, 1.0) * NOISE


def simulate_regions(deep: int, factor: float, count: int, seed: int = 0) -> Iterator[Tables]:
    """Draw studies with main effects of which the deep networks are noisier."""
    generator = np.random.default_rng(seed)
    empty, deviations = build_grid(deep, factor)
    for _ in range(count):
        truth = draw_values(empty.codes, (0.1,), generator)
        values = truth + generator.normal(size=len(truth)) * deviations
        noise = estimate_run_noise(empty.codes, values)
        yield replace(empty, values=truth), replace(empty, values=values, noise=noise)


def count_findings(studies: Sequence[Tables]) -> Counts:
    covered = [is_covered for study in studies for is_covered in cover_effects(*study)]
    differs, opposite = np.mean([find_flags(observed) for _, observed in studies], axis=0)
    return Counts(float(np.mean(covered)), float(differs), float(opposite))


def cover_effects(truth: FactorialTable, observed: FactorialTable) -> Iterator[bool]:
    """Yield whether the interval of each effect has the true mean."""
    for effect in observed.compute_effects():
        yield effect.low <= truth.compute_effect(effect.contrast).mean <= effect.high


Gaps = Callable[[Integers], Floats]


def equal_rates(layers: Integers) -> Floats:
    """Return (architectures, rates) excess losses: none."""
    return np.zeros((len(layers), RATES))


def clear_rates(layers: Integers) -> Floats:
    """Return excess losses of which another rate is clearly the best for each number of layers."""
    distances: Floats = np.abs(np.arange(RATES) - layers[:, None]) * 0.6
    return distances


def mixed_rates(layers: Integers) -> Floats:
    """Return equal excess losses for three layers, and clear ones for others."""
    return np.where(layers[:, None] == RATES - 1, 0.0, clear_rates(layers))


def simulate_tuned(gaps: Gaps, factor: float, count: int, seed: int = 0) -> Iterator[Tables]:
    """Draw studies of 48 architectures at three rates each, without any effect at the best.

    What is observed of an architecture is the expected value of another run at its best rate.
    """
    generator = np.random.default_rng(seed)
    empty, deviations = build_grid(16, factor)
    size = len(deviations)
    codes = np.hstack(
        [np.repeat(empty.codes, RATES, axis=0), np.tile(np.arange(RATES), size)[:, None]]
    )
    means = 2.0 + gaps(empty.codes[:, -1])
    for _ in range(count):
        values = means + generator.normal(size=means.shape) * deviations[:, None]
        noise = estimate_run_noise(codes, values.ravel())
        assert noise is not None
        expected, slopes = estimate_selected(
            values.ravel(),
            noise.deviations.of_trials,
            np.repeat(np.arange(size), RATES),
        )
        groups = noise.deviations.groups[np.arange(size) * RATES + values.argmin(axis=1)]
        noise_at_best = estimate_run_noise(empty.codes, expected)
        assert noise_at_best is not None
        slopes_at_best = Slopes(slopes, groups, noise.deviations.degrees)
        yield (
            replace(empty, values=means.min(axis=1)),
            replace(empty, values=expected, noise=replace(noise_at_best, slopes=slopes_at_best)),
        )


def simulate_variants(factor: float, count: int, seed: int = 0) -> Iterator[bool]:
    """Draw derived studies of six architectures with four changes, three runs of each.

    Yield whether the last change is significant: none has an effect, and it adds noise.
    """
    generator = np.random.default_rng(seed)
    for _ in range(count):
        runs = pd.DataFrame(
            [
                (origin, name, f"{origin} {name}", replicate)
                for origin in range(6)
                for name in (UNCHANGED, "a", "b", "c", "deep")
                for replicate in (1, 2, 3)
            ],
            columns=["origin", "variant", "label", "replicate"],
        )
        noise = NOISE * np.where(runs["variant"] == "deep", factor, 1.0)
        values = 2 + 0.05 * runs["origin"] + generator.normal(size=len(runs)) * noise
        runs = runs.assign(value=values, source_value=2.0)
        keys = ["origin", "source_value", "variant", "label"]
        means = runs.groupby(keys)["value"].mean().reset_index()
        comparison = SourceComparison("s", "d", means, runs[["label", "replicate", "value"]])
        effects = {each.variant: each for each in compute_variant_effects(comparison)}
        yield effects["deep"].is_significant
