"""Simulated studies in which some networks vary more between runs than others.

Before: a region was split only where each value of a parameter had enough degrees of freedom; an
architecture was judged by the least of its runs; a derived study had one variance.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from benchmarks.effect_intervals import NOISE, Floats, draw_values, find_flags
from reports.stats.contrast import Contrast
from reports.stats.effects import FactorialTable
from reports.stats.interaction_model import Integers, InteractionModel
from reports.stats.noise_regions import (
    MIN_DEGREES,
    SPLIT_LEVEL,
    ReplicateModel,
    Runs,
    compare_variances,
    fit,
)
from reports.stats.refinement_effects import (
    UNCHANGED,
    SourceComparison,
    compute_variant_effects,
)
from reports.stats.run_noise import NoiseSource, RunNoise, estimate_run_noise
from reports.stats.selection_bias import estimate_selected

SWITCHES: Mapping[str, Sequence[bool | int]] = {f"gate_{each}": [False, True] for each in "abcd"}

RATES = 3
"""Number of values of the nuisance parameter."""


@dataclass(frozen=True)
class Counts:
    """What was found in one or more simulated studies; shares between 0 and 1.

    Attributes:
        covered: effects whose interval covers the truth.
        differs: studies in which an effect differs significantly between values.
        opposite: studies with opposite signs.
    """

    covered: float
    differs: float
    opposite: float


def build_grid(deep: int, factor: float) -> tuple[FactorialTable, Floats]:
    """Build four switches and 1 to 3 layers, of which networks of three are noisy.

    Args:
        deep: number of architectures of three layers, 4, 8 or 16; others are excluded.
        factor: factor of their noise.

    Returns:
        The table, with values of zero, and the (architectures,) standard deviations.
    """
    frame = pd.DataFrame(
        itertools.product(*SWITCHES.values(), [1, 2, 3]), columns=[*SWITCHES, "layers"]
    )
    is_kept = (deep > 8) | ~frame["gate_a"] & ((deep > 4) | ~frame["gate_b"])
    frame = frame[(frame["layers"] < 3) | is_kept].assign(value=0.0)
    table = FactorialTable.from_frame(frame, [*SWITCHES, "layers"], is_grid=False)
    return table, np.where(frame["layers"] == 3, factor, 1.0) * NOISE


def simulate_regions(
    deep: int, factor: float, count: int, seed: int = 0
) -> Iterator[tuple[FactorialTable, FactorialTable, FactorialTable]]:
    """Draw studies with main effects; yield the truth, and the runs with old and new noise."""
    generator = np.random.default_rng(seed)
    empty, deviations = build_grid(deep, factor)
    for _ in range(count):
        truth = draw_values(empty.codes, (0.1,), generator)
        values = truth + generator.normal(size=len(truth)) * deviations
        noises = _estimate_before(empty.codes, values), estimate_run_noise(empty.codes, values)
        old, new = (replace(empty, values=values, noise=noise) for noise in noises)
        yield replace(empty, values=truth), old, new


def count_findings(studies: Sequence[tuple[FactorialTable, FactorialTable]]) -> Counts:
    """Count covered effects and flags in pairs of a true and an observed table."""
    covered, flags = [], []
    for truth, observed in studies:
        for effect in observed.compute_effects():
            true_mean = truth.compute_effect(effect.contrast).mean
            covered.append(effect.low <= true_mean <= effect.high)
        flags.append(find_flags(observed))
    differs, opposite = np.mean(flags, axis=0)
    return Counts(float(np.mean(covered)), float(differs), float(opposite))


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


def close_rates(layers: Integers) -> Floats:
    """Return excess losses of two standard deviations of the noise of three layers."""
    return np.tile([0.0, 8 * NOISE, 16 * NOISE], (len(layers), 1))


def simulate_tuned(
    gaps: Gaps, factor: float, count: int, seed: int = 0
) -> Iterator[tuple[FactorialTable, FactorialTable, FactorialTable]]:
    """Draw studies of 48 architectures at three rates each, without any effect at the best.

    Yields:
        The truth, the least of each architecture's runs, and the expected value of another run.
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
            np.sqrt(noise.variances[noise.regions]),
            np.repeat(np.arange(size), RATES),
        )
        least = values.min(axis=1)
        old = replace(empty, values=least, noise=_estimate_before(empty.codes, least))
        regions = noise.regions[np.arange(size) * RATES + values.argmin(axis=1)]
        new = replace(empty, values=expected, noise=replace(noise, regions=regions, slopes=slopes))
        yield replace(empty, values=means.min(axis=1)), old, new


def simulate_variants(factor: float, count: int, seed: int = 0) -> Iterator[tuple[bool, bool]]:
    """Draw derived studies of six architectures with four changes, three runs of each.

    No change has an effect, and networks with the last one are noisier.

    Yields:
        Whether the effect of the last change is significant, before and after.
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
        replicates = runs[["label", "replicate", "value"]]
        (new,) = (
            each
            for each in compute_variant_effects(SourceComparison("s", "d", means, replicates))
            if each.variant == "deep"
        )
        # Before, the variance was that of all variants.
        codes = np.unique(runs["label"], return_inverse=True)[1].ravel()[:, None]
        drawn = Runs(codes, runs["replicate"].to_numpy(), values.to_numpy())
        squares, degrees = fit(ReplicateModel(codes, drawn), np.arange(len(codes)))
        error = math.sqrt(squares / degrees * 2 / 3 / new.pairs)
        old = replace(new, error=error, degrees=degrees, source=NoiseSource.REPLICATES)
        yield old.is_significant, new.is_significant


def measure() -> Iterator[str]:
    """Yield the tables, before and after."""
    yield from measure_regions()
    yield from measure_tuned()
    yield from measure_variants()


def measure_regions(count: int = 40) -> Iterator[str]:
    """Yield the table of grids with few noisy architectures."""
    yield f"{count} simulated studies each, before and after"
    yield "architectures of three layers | their noise | covered | differs | opposite signs"
    for deep, factor in itertools.product((4, 8), (1, 3, 10)):
        studies = list(simulate_regions(deep, factor, count))
        old, new = (count_findings([(each[0], each[i]) for each in studies]) for i in (1, 2))
        yield (
            f"{deep} | ×{factor} | {old.covered:.1%}, {new.covered:.1%} | "
            f"{old.differs:.1%}, {new.differs:.1%} | {old.opposite:.1%}, {new.opposite:.1%}"
        )


def measure_tuned(count: int = 60) -> Iterator[str]:
    """Yield the table of effects at the best of three rates."""
    yield f"{count} simulated studies each, before and after"
    yield (
        "rates | noise of three layers | effects covered | bias of layers 2 → 3 | "
        "standard deviation | significant"
    )
    for gaps, factor in itertools.product(
        (equal_rates, clear_rates, mixed_rates, close_rates), (1, 4)
    ):
        studies = list(simulate_tuned(gaps, factor, count))
        rows = [_measure_tuned([(each[0], each[i]) for each in studies]) for i in (1, 2)]
        cells = (
            ", ".join(format(value, form) for value in values)
            for values, form in zip(
                zip(*rows, strict=True), (".1%", "+.4f", ".4f", ".1%"), strict=True
            )
        )
        yield f"{gaps.__name__.replace('_', ' ')} | ×{factor} | {' | '.join(cells)}"


def measure_variants(count: int = 400) -> Iterator[str]:
    """Yield the table of derived studies with an unstable variant."""
    yield f"{count} simulated studies each, before and after"
    yield "noise of one variant | its effect significant"
    for factor in (1, 4, 12):
        shares = np.mean(list(simulate_variants(factor, count)), axis=0)
        yield f"×{factor} | {shares[0]:.1%}, {shares[1]:.1%}"


def _measure_tuned(
    studies: Sequence[tuple[FactorialTable, FactorialTable]],
) -> tuple[float, float, float, float]:
    """Return the coverage of all effects; bias, deviation and significance of the third layer."""
    contrast = Contrast("layers", 2, 3)
    covered, errors, significant = [], [], []
    for truth, observed in studies:
        for effect in observed.compute_effects():
            true_mean = truth.compute_effect(effect.contrast).mean
            covered.append(effect.low <= true_mean <= effect.high)
            if effect.contrast == contrast:
                errors.append(effect.mean - true_mean)
                significant.append(effect.is_significant)
    return (
        float(np.mean(covered)),
        float(np.mean(errors)),
        float(np.std(errors)),
        float(np.mean(significant)),
    )


def _estimate_before(codes: Integers, values: Floats) -> RunNoise | None:
    """Estimate the noise by the earlier rule: no value with few trials is set apart."""
    model = InteractionModel(codes, values)
    rows = list(_split_before(model, codes, np.arange(len(values))))
    regions = np.zeros(len(values), dtype=np.int64)
    for i, region in enumerate(rows):
        regions[region] = i
    squares, degrees = np.array([fit(model, region) for region in rows]).T
    if not degrees.all():
        return None
    sources = (NoiseSource.INTERACTIONS,) * len(rows)
    return RunNoise(regions, squares / degrees, degrees, sources)


def _split_before(model: InteractionModel, codes: Integers, region: Integers) -> Iterator[Integers]:
    names = [i for i in range(codes.shape[1]) if len(np.unique(codes[region, i])) > 1]
    tests = []
    for i in names:
        parts = [region[codes[region, i] == code] for code in np.unique(codes[region, i])]
        squares, degrees = np.array([fit(model, part) for part in parts]).T
        if (degrees >= MIN_DEGREES).all() and (squares > 0).all():
            tests.append((compare_variances(squares, degrees), i, parts))
    p, _, parts = min(tests, key=lambda test: test[:2], default=(1.0, 0, []))
    if p * len(names) < SPLIT_LEVEL:
        for part in parts:
            yield from _split_before(model, codes, part)
    else:
        yield region
