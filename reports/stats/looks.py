"""Planned looks at replicated architectures: error spending, detectable gaps, and each look.

A study that adds runs until its architectures are decided tests them several times. The 5% error is
spent over the looks by a function of the share t of the largest number of runs (Lan & DeMets,
*Discrete Sequential Boundaries for Clinical Trials*, Biometrika 70, 1983): their second one, of
Pocock's type, alpha(t) = 5% ln(1 + (e - 1) t). A look has the error that its share adds. The errors
add up to 5%, so by Bonferroni's inequality no verdict of any look is false with a probability of
95%, whatever the dependence between looks and whichever architectures are continued. Spending of
the type of O'Brien and Fleming leaves the first looks nothing: 0.00004% at 3 of 20 runs.

A verdict is final. An architecture is continued while it is undecided, and while any is undecided,
those that may still be the best are continued as well: a distance from the best must cover them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from reports.stats.replicates import (
    LEVEL,
    Comparison,
    Judgement,
    LossesByRun,
    Verdict,
    compare_pairwise,
    compute_widths,
    expect_degrees,
    judge,
)
from reports.stats.run_means import average_runs

POWER = 0.8
"""Probability with which a look finds a gap that it is said to find."""

RUN_NOISE = 0.013
"""Standard deviation between runs of one architecture that read the text in the same order, in bits
per byte: 0.0088 nats per byte, docs/log.md, "Objectives"."""


@dataclass(frozen=True)
class Noise:
    """What makes the mean difference of two architectures vary.

    Attributes:
        of_run: standard deviation of one run, beyond what runs of the same number have in common.
        of_text: standard error of a difference over the evaluation windows; more runs do not reduce
            it.
        source: where it is known from, as an adjective.
    """

    of_run: float
    of_text: float = 0.0
    source: str = "assumed"

    def find_gap(self, runs: int, architectures: int, level: float) -> float:
        """Return the gap between two architectures that a look finds with :data:`POWER`.

        The runs' variance is taken to be the same for all architectures.

        Args:
            runs: number of runs at the look.
            architectures: number of architectures that are compared.
            level: error that the look spends.
        """
        from scipy import optimize, special

        degrees = expect_degrees(runs, architectures)
        tail = level / math.comb(architectures, 2) / 2
        variances = np.array([2 * self.of_run**2 / runs, self.of_text**2])
        # Of the text there are so many windows that its part is known well.
        width = float(compute_widths(variances, np.array([degrees, np.inf]), tail))
        error = math.sqrt(variances.sum())

        def miss(shift: float) -> float:
            return float(special.nctdtr(degrees, shift, width / error)) - (1 - POWER)

        return error * float(optimize.brentq(miss, 0, 2 * width / error + 10))


@dataclass(frozen=True)
class PlannedLook:
    """Result of one planned look; an architecture is named by the number of its first trial.

    Attributes:
        runs: number of runs of each compared architecture.
        level: error that the look spends.
        verdicts: verdict of each architecture, those of earlier looks included.
        continued: architectures that get the runs of the next look; empty after the last one.
    """

    runs: int
    level: float
    verdicts: Mapping[int, str]
    continued: Sequence[int]


def spend_error(looks: Sequence[int]) -> list[float]:
    """Return the error that each look spends; the sum is 5%.

    Args:
        looks: number of runs at each look, increasing.
    """
    spent = [LEVEL * math.log1p((math.e - 1) * runs / looks[-1]) for runs in looks]
    return np.diff(spent, prepend=0.0).tolist()


def estimate_noise(comparison: Comparison) -> Noise | None:
    """Estimate the noise from the pairs of a comparison; None without replicated ones."""
    pairs = [each for each in comparison.pairs.values() if each.runs > 1]
    if not pairs:
        return None
    runs = np.array([each.runs for each in pairs])
    of_runs, of_text = np.array([each.variances for each in pairs]).T
    of_run = math.sqrt(float(np.mean(of_runs * runs)) / 2)
    return Noise(of_run, math.sqrt(float(np.mean(of_text))), "measured")


def find_detectable_gap(comparison: Comparison) -> float | None:
    """Return the gap that a comparison finds with :data:`POWER`; None if it has no test."""
    noise = estimate_noise(comparison)
    if noise is None:
        return None
    runs = round(float(np.median([each.runs for each in comparison.pairs.values()])))
    return noise.find_gap(max(2, runs), comparison.count, comparison.level)


def take_look(
    losses: Mapping[str, LossesByRun],
    numbers: Mapping[str, int],
    looks: Sequence[int],
    margin: float,
    earlier: Sequence[PlannedLook],
) -> tuple[Judgement, PlannedLook]:
    """Compare the architectures at the look after some earlier ones.

    Args:
        losses: losses of each architecture with complete runs; later runs are left out.
        numbers: number of the first trial of each architecture of the study.
        looks: number of runs at each look.
        margin: see :func:`reports.stats.replicates.judge`.
        earlier: results of the earlier looks.

    Returns:
        The comparison of the architectures that got the runs of this look, with the verdicts of
        all that have one, and the look.
    """
    index = len(earlier)
    level = spend_error(looks)[index]
    decided = earlier[-1].verdicts if earlier else {}
    is_compared = set(earlier[-1].continued) if earlier else set(numbers.values())
    ranked = sort_by_mean(limit_runs(losses, looks[index]))
    compared = {name: runs for name, runs in ranked.items() if numbers[name] in is_compared}
    comparison = compare_pairwise(compared, level, len(numbers))
    judgement = judge(comparison, margin)
    verdicts = {
        name: Verdict(decided.get(number, Verdict.UNDECIDED)) for name, number in numbers.items()
    }
    for name, verdict in judgement.verdicts.items():
        if verdicts[name] is Verdict.UNDECIDED:
            verdicts[name] = verdict
    waiting = [n for n in compared if verdicts[n] is Verdict.UNDECIDED and n != comparison.best]
    rivals = [n for n in judgement.candidates if verdicts[n] is not Verdict.WORSE]
    is_last = index == len(looks) - 1 or not waiting
    continued = sorted(numbers[name] for name in {*waiting, *rivals, comparison.best})
    look = PlannedLook(
        runs=looks[index],
        level=level,
        verdicts={numbers[name]: verdict.value for name, verdict in verdicts.items()},
        continued=[] if is_last else continued,
    )
    trained = {name: verdicts[name] for name in numbers if name in ranked}
    without_run = len(numbers) - len(trained)
    return replace(judgement, verdicts=trained, without_run=without_run), look


def limit_runs(losses: Mapping[str, LossesByRun], count: int) -> dict[str, LossesByRun]:
    """Return the losses of the first runs, by number, of all architectures."""
    first = sorted({run for runs in losses.values() for run in runs})[:count]
    limited = {
        name: {run: runs[run] for run in first if run in runs} for name, runs in losses.items()
    }
    return {name: runs for name, runs in limited.items() if runs}


def sort_by_mean(losses: Mapping[str, LossesByRun]) -> dict[str, LossesByRun]:
    """Sort architectures by the mean of their losses, the best first.

    The means are adjusted for the replicates that each architecture has
    (:mod:`reports.stats.run_means`).
    """
    means = average_runs(
        (name, run, float(np.mean(windows)))
        for name, runs in losses.items()
        for run, windows in runs.items()
    )
    return {name: losses[name] for name in sorted(losses, key=means.__getitem__)}
