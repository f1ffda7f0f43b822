"""Simulated studies of unequal numbers of runs: false differences, and luck of the best mean.

All runs of a replicate read the text in the same order, which moves their losses by a common
effect. "Before" are plain means over the runs that an architecture has, with the variance of a run
over their number; "after" are the means of :mod:`studies.run_means`, with their error.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from reports.stats.contrast import Contrast
from reports.stats.effects import FactorialTable
from studies.run_means import average_runs

ORDER_NOISE, RUN_NOISE = 0.02, 0.01
"""Standard deviation of the common effect of an order of the text, and of a run, in nats."""

SWITCH = Contrast("switch", False, True)

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Scenario:
    """Numbers of runs of the architectures of a study, a switch in several contexts.

    Attributes:
        name: name of the scenario.
        runs: replicates of the architecture of each context, without and with the switch.
        is_hardest: whether the order of replicate 0 has the largest effect.
    """

    name: str
    runs: Sequence[tuple[Sequence[int], Sequence[int]]]
    is_hardest: bool = False


SCENARIOS = (
    Scenario("3 against 3 runs", [(range(3), range(3))] * 4),
    Scenario("20 against 3 runs", [(range(20), range(3))] * 4),
    Scenario("3 runs, one lost", [(range(3), range(1, 3)), *[(range(3), range(3))] * 3]),
    Scenario("the same, the hardest", [(range(3), range(1, 3)), *[(range(3), range(3))] * 3], True),
    Scenario("3 runs, the hardest lost with the switch", [(range(3), range(1, 3))] * 4, True),
)


def draw_study(scenario: Scenario, effect: float, generator: np.random.Generator) -> pd.DataFrame:
    """Draw the runs of a study: ``switch``, ``context``, ``replicate`` and ``value``."""
    orders = generator.normal(scale=ORDER_NOISE, size=20)
    if scenario.is_hardest:
        known = sorted({run for sides in scenario.runs for side in sides for run in side})
        hardest = max(known, key=lambda run: float(orders[run]))
        orders[[0, hardest]] = orders[[hardest, 0]]
    contexts = generator.normal(scale=0.1, size=len(scenario.runs))
    rows = [
        (switch, context, run, contexts[context] + effect * switch + orders[run])
        for context, sides in enumerate(scenario.runs)
        for switch, side in zip((False, True), sides, strict=True)
        for run in side
    ]
    frame = pd.DataFrame(rows, columns=["switch", "context", "replicate", "value"])
    frame["value"] += generator.normal(scale=RUN_NOISE, size=len(frame))
    return frame


def compare_plain_means(runs: pd.DataFrame, table: FactorialTable) -> tuple[float, float, float]:
    """Return mean, standard error and degrees of freedom of the switch by the rule before."""
    groups = runs.groupby(["context", "switch"])["value"]
    means, counts = groups.mean().unstack(), groups.size().unstack()
    assert table.noise is not None
    contexts = len(means)
    variance = float(table.noise.variances[0]) * float((1 / counts).to_numpy().sum())
    mean = float((means[True] - means[False]).mean())
    return mean, math.sqrt(variance) / contexts, float(table.noise.degrees[0])


def simulate_differences(
    scenario: Scenario, studies: int, effect: float = 0.0, seed: int = 1
) -> tuple[float, float]:
    """Return the share of studies whose interval excludes zero, before and after."""
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(studies):
        runs = draw_study(scenario, effect, generator)
        table = FactorialTable.from_runs(runs, ["switch", "context"])
        mean, error, degrees = compare_plain_means(runs, table)
        is_before = abs(mean) > float(stats.t.ppf(0.975, degrees)) * error
        found.append((is_before, table.compute_effect(SWITCH).is_significant))
    before, after = np.mean(found, axis=0).tolist()
    return before, after


def simulate_leaders(
    gap: float, studies: int, seed: int = 1, architectures: int = 10, replicates: int = 3
) -> tuple[float, float]:
    """Return how often an architecture that lost its hardest run has the best mean.

    Args:
        gap: how much worse it is than the others, which are equal, in nats.
        studies: number of studies.
        seed: seed of the simulation.
        architectures: number of architectures.
        replicates: number of runs of each of the others.

    Returns:
        The share of the studies by plain means (before) and by adjusted means (after).
    """
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(studies):
        losses = generator.normal(scale=RUN_NOISE, size=(architectures, replicates))
        losses += np.sort(generator.normal(scale=ORDER_NOISE, size=replicates))
        losses[0] += gap
        losses[0, -1] = np.nan
        known = np.argwhere(~np.isnan(losses)).tolist()
        means = average_runs((i, run, float(losses[i, run])) for i, run in known)
        is_best = means[0] <= min(means.values())
        found.append((np.nanmean(losses, axis=1).argmin() == 0, is_best))
    before, after = np.mean(found, axis=0).tolist()
    return before, after


def measure(studies: int = 500) -> Iterator[str]:
    """Yield the tables; takes about two minutes on an idle machine."""
    yield f"{studies} simulated studies each, order effects of {ORDER_NOISE}, run noise {RUN_NOISE}"
    yield "| runs | false difference, before | after | effect of 0.02 found, before | after |"
    yield "| :--- | ---: | ---: | ---: | ---: |"
    for scenario in SCENARIOS:
        shares = [
            share
            for effect in (0.0, -0.02)
            for share in simulate_differences(scenario, studies, effect)
        ]
        yield f"| {scenario.name} | " + " | ".join(f"{share:.1%}" for share in shares) + " |"
    yield "one of ten architectures lost its hardest run of three: it has the best mean"
    yield "| worse by | before | after |"
    yield "| ---: | ---: | ---: |"
    for gap in (0.0, 0.01, 0.02):
        before, after = simulate_leaders(gap, studies)
        yield f"| {gap} | {before:.1%} | {after:.1%} |"
