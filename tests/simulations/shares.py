"""Simulated pairs of runs that solve a task or fail: error rates and power of their tests.

    python -m tests.simulations.shares

prints the table of docs/benchmarks.md. A study has n pairs of architectures, each with R seeds. A
run is solved with a probability that depends on the architecture, the option and their interaction,
and, in some studies, on the order of the data that is common to all runs of a seed.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import special

from reports.stats import Booleans, Floats
from reports.stats.shares import ShareChange, rank_pairs

LEVEL = 0.05

EFFECT = 1.6
"""Of an option, in logits: from 31% to 69% where nothing else differs."""

SIZES = [(4, 1), (8, 1), (4, 3), (8, 3), (16, 3), (32, 3)]
"""Pairs of architectures and seeds."""


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """How runs come to be solved; standard deviations are in logits.

    Attributes:
        spread: standard deviation between architectures.
        interaction: standard deviation of the option's effect between architectures.
        order: standard deviation of the option's effect between the orders of the data.
        diverged: share of the runs that diverge, and so are not solved.
        missing: share of the pairs with a run that failed, so that its outcome is not known.
    """

    spread: float = 1.5
    interaction: float = 0.0
    order: float = 0.0
    diverged: float = 0.0
    missing: float = 0.0


SCENARIOS = {
    "equal architectures": Scenario(spread=0),
    "easy and hard ones": Scenario(),
    "with an interaction": Scenario(interaction=1.5),
    "a tenth diverged": Scenario(diverged=0.1),
    "a tenth missing": Scenario(missing=0.1),
    "seed and option interact": Scenario(order=0.5),
}


class Study(NamedTuple):
    """Outcomes of the pairs of a study.

    Attributes:
        solved: (2, pairs), before and after the change.
        losses: (2, pairs), infinite where a run diverged.
        truth: difference of the shares over many repetitions.
    """

    solved: Booleans
    losses: Floats
    truth: float

    @property
    def change(self) -> ShareChange:
        """Change of the share that is solved."""
        before, after = self.solved.astype(float)
        return ShareChange.from_differences(after - before)

    @property
    def is_covered(self) -> bool:
        """Whether the interval contains the true difference."""
        low, high = self.change.interval
        return low <= self.truth <= high


def simulate(
    scenario: Scenario, pairs: int, seeds: int, effect: float = 0.0, studies: int = 400
) -> Iterator[Study]:
    """Simulate studies of some pairs of architectures and seeds, with an effect in logits.

    Interactions sum to zero in a study without an effect.
    """
    generator = np.random.default_rng([pairs, seeds])
    for _ in range(studies):
        ease = generator.normal(scale=scenario.spread, size=(pairs, 1))
        own = generator.normal(scale=scenario.interaction, size=(pairs, 1))
        half = (effect + own - own.mean()) / 2
        of_order = generator.normal(scale=scenario.order, size=seeds) / 2
        is_lost = generator.random((2, pairs, seeds)) < scenario.diverged
        chances = np.array([special.expit(ease - half), special.expit(ease + half)])
        chance = np.array(
            [special.expit(ease - half - of_order), special.expit(ease + half + of_order)]
        )
        solved = (generator.random((2, pairs, seeds)) < chance) & ~is_lost
        losses = np.exp(np.where(solved, -6, -1) + generator.normal(scale=0.5, size=solved.shape))
        losses[is_lost] = np.inf
        is_known = generator.random((pairs, seeds)) >= scenario.missing
        truth = float((chances[1] - chances[0]).mean() * (1 - scenario.diverged))
        yield Study(solved[:, is_known], losses[:, is_known], truth)


def measure_cover(studies: Iterable[Study]) -> float:
    """Return how often the interval contains the true difference."""
    return float(np.mean([study.is_covered for study in studies]))


def measure_tests(studies: Iterable[Study]) -> tuple[float, float]:
    """Return how often the tests of shares and of the ranks of losses are significant."""
    found = [(study.change.p < LEVEL, rank_pairs(*study.losses).p < LEVEL) for study in studies]
    shares, ranks = np.mean(found, axis=0).tolist()
    return shares, ranks


def main() -> None:
    """Print a row for each scenario and size."""
    print("| runs | pairs × seeds | covers | false alarms | power | Wilcoxon: alarms | power |")
    print("| :--- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, scenario in SCENARIOS.items():
        for pairs, seeds in SIZES:
            none = list(simulate(scenario, pairs, seeds, studies=2000))
            some = list(simulate(scenario, pairs, seeds, EFFECT, studies=2000))
            cover = (measure_cover(none) + measure_cover(some)) / 2
            alarms, rank_alarms = measure_tests(none)
            power, rank_power = measure_tests(some)
            rates = (cover, alarms, power, rank_alarms, rank_power)
            print(f"| {name} | {pairs} × {seeds} |", " | ".join(f"{r:.1%}" for r in rates), "|")


if __name__ == "__main__":
    main()
