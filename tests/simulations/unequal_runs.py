"""Simulated studies of unequal numbers of runs: effects of a switch, and verdicts.

All runs of a replicate read the text in the same order, which moves their losses by a common
effect.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from reports.stats.design import Contrast
from reports.stats.effects import FactorialTable
from reports.stats.replicates import compare_pairwise
from tests.simulations.replicates import ARCHITECTURES, simulate_losses

ORDER_NOISE, RUN_NOISE = 0.02, 0.01
"""Standard deviation of the common effect of an order of the text, and of a run, in nats."""

SWITCH = Contrast("switch", False, True)


@dataclass(frozen=True)
class Scenario:
    """Numbers of runs of the architectures of a study, without and with a switch, by context."""

    name: str
    runs: Sequence[tuple[Sequence[int], Sequence[int]]]
    is_hardest: bool = False  # the order of replicate 0 has the largest effect


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


def simulate_differences(
    scenario: Scenario, studies: int, effect: float = 0.0, seed: int = 1
) -> float:
    """Return the share of studies in which the switch is significant."""
    generator = np.random.default_rng(seed)
    found = 0
    for _ in range(studies):
        runs = draw_study(scenario, effect, generator)
        table = FactorialTable.from_runs(runs, ["switch", "context"])
        found += table.compute_effect(SWITCH).is_significant
    return found / studies


LOST_RUNS = {
    "3 runs, one lost": (3, 1, 1),
    "5 runs, three lost": (5, 3, 1),
    "5 runs, three lost, 144 times the variance": (5, 3, 12),
}
"""Number of runs, number of those that one of ten architectures lost, and its noise."""


def simulate_lost_runs(scenario: str, text_noise: float, studies: int) -> float:
    """Return the share of studies in which two of ten equal architectures differ.

    Args:
        scenario: name of one of :data:`LOST_RUNS`.
        text_noise: standard error of an architecture's mean over the windows.
        studies: number of studies.
    """
    generator = np.random.default_rng(1)
    runs, lost, factor = LOST_RUNS[scenario]
    noise = np.where(np.arange(ARCHITECTURES) == 0, factor, 1.0)
    found = 0
    for _ in range(studies):
        losses = simulate_losses(generator, noise, runs, 1, 16, text_noise)[0]
        by_run = {
            str(i): dict(enumerate(each[: runs if i else runs - lost]))
            for i, each in enumerate(losses)
        }
        pairs = compare_pairwise(by_run).pairs.values()
        found += any(difference.is_significant for difference in pairs)
    return found / studies
