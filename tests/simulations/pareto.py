"""Simulated studies: how often a Pareto front claims that a larger architecture is better."""

from dataclasses import dataclass

import numpy as np

from reports.stats.pareto import (
    CostedArchitecture,
    ReplicatedComparisons,
    SingleRunComparisons,
    find_front,
)
from reports.stats.replicates import compare_pairwise

WINDOWS = 64
"""Evaluation windows of a simulated run."""

RUN_STD, WINDOW_STD, REST_STD = 0.01, 0.01, 0.03
"""Standard deviations in bits per byte: of a run, of an architecture on a window, and the rest."""


@dataclass(frozen=True)
class Claims:
    """Simulated studies in which a larger architecture is said to be worth its cost, as shares."""

    front: float  # the front has more than one member: the losses alone
    significant: float  # every cheaper architecture is significantly worse than a member


def simulate_fronts(
    studies: int, architectures: int, runs: int, gap: float, seed: int, run_std: float = RUN_STD
) -> Claims:
    """Simulate studies of architectures with equal losses, the largest better by a gap."""
    random = np.random.default_rng(seed)
    found = np.zeros((studies, 2), dtype=bool)
    for study in range(studies):
        shape = (architectures, runs, WINDOWS)
        losses = 2 + random.normal(0, REST_STD, shape)
        losses += random.normal(0, run_std, shape[:2])[:, :, None]
        losses += random.normal(0, WINDOW_STD, (architectures, 1, WINDOWS))
        losses[-1] -= gap
        costed = {
            f"{i}": CostedArchitecture(f"{i}", i, 1000.0 * (i + 1), 1.0, float(losses[i].mean()))
            for i in range(architectures)
        }
        if runs > 1:
            order = sorted(costed, key=lambda label: costed[label].loss)
            by_run = {label: dict(enumerate(losses[int(label)].tolist())) for label in order}
            compared = ReplicatedComparisons([compare_pairwise(by_run)])
            front = find_front("parameters", costed, compared)
        else:
            windows = {label: losses[int(label), 0].tolist() for label in costed}
            front = find_front("parameters", costed, SingleRunComparisons(windows))
        assert front is not None
        _, *larger = front.members
        found[study] = bool(larger), any(each.cheaper is None for each in larger)
    return Claims(*found.mean(axis=0).tolist())
