"""Error rates and power of the verdicts on replicated architectures, in simulated studies.

A simulated study has the effects of a real one: of the run, common to all architectures of a
replicate number; of the evaluation window; of each architecture with each run and each window; and
noise. Only what differs between architectures matters, because all comparisons are paired. Studies
are simulated many at a time.

"Before" is the test without shrunk variances, and the rule that named the smallest architecture
which is not significantly worse than the best mean. "After" is :mod:`reports.stats.verdicts`.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reports.stats.crossed_model import (
    adjust_by_holm,
    compute_mean_squares,
    compute_p_values,
    compute_widths,
    estimate_errors,
)
from reports.stats.pairwise_comparison import LEVEL
from reports.stats.planned_looks import take_look
from reports.stats.verdicts import bound_distances
from studies.attributes import LookRecord
from studies.config import DEFAULT_LOOKS

Floats = NDArray[np.float64]
Booleans = NDArray[np.bool_]

RUN_NOISE, TEXT_NOISE, REST = 0.02, 0.002, 0.05
"""Bits per byte: standard deviation of a run; standard error of an architecture's mean over the
windows; standard deviation of one window of one run."""

MARGIN = 0.02
ARCHITECTURES = 10
CHUNK = 50
"""Studies in memory at a time."""

NOISES = {
    "equal": np.ones(ARCHITECTURES),
    "half fourfold": np.repeat([1.0, 2.0], ARCHITECTURES // 2),
    "best fourfold": np.where(np.arange(ARCHITECTURES) == 0, 2.0, 1.0),
}
"""Standard deviations of the runs of each architecture, relative to :data:`RUN_NOISE`; "fourfold"
is said of the variance."""


@dataclass(frozen=True)
class Look:
    """Verdicts on the architectures of many studies after one comparison of all runs.

    Attributes:
        means: mean loss (S, K).
        is_worse: whether the row is significantly worse than the column (S, K, K).
        bounds: upper confidence bounds of the distances from the best (S, K).
    """

    means: Floats
    is_worse: Booleans
    bounds: Floats

    @property
    def is_as_good(self) -> Booleans:
        """Whether each architecture (S, K) is as good as the best."""
        return np.asarray(self.bounds < MARGIN)


def simulate_losses(
    generator: np.random.Generator,
    gaps: Floats,
    noise: Floats,
    runs: int,
    studies: int,
    windows: int = 64,
) -> Floats:
    """Simulate the losses (S, K, R, W) of studies, without what all architectures have in common.

    Args:
        generator: source of randomness.
        gaps: true distance of each architecture (K,) from the best.
        noise: relative standard deviation of the runs of each architecture (K,).
        runs: number R of runs.
        studies: number S of studies.
        windows: number W of windows; the standard error over them does not depend on it.
    """
    draw, size = generator.normal, len(gaps)
    losses = draw(scale=REST, size=(studies, size, runs, windows))
    losses += draw(size=(studies, size, runs, 1)) * RUN_NOISE * noise[:, None, None]
    losses += draw(scale=TEXT_NOISE * windows**0.5, size=(studies, size, 1, windows))
    return losses + gaps[:, None, None]


def compare(losses: Floats, is_shrunk: bool = True) -> Look:
    """Compare the architectures of many studies.

    Args:
        losses: losses (S, K, R, W).
        is_shrunk: whether the variances are shrunk.
    """
    studies, size, runs, windows = losses.shape
    first, second = np.array(list(itertools.combinations(range(size), 2))).T
    d = losses[:, first] - losses[:, second]
    count = np.full(len(first), runs)
    squares = compute_mean_squares(d)
    errors, freedom = estimate_errors(squares, count, windows, size if is_shrunk else 2)
    p = adjust_by_holm(compute_p_values(squares.mean, errors, freedom), len(first))
    widths = compute_widths(errors, freedom, LEVEL / (size - 1))
    is_worse = np.zeros((studies, size, size), dtype=bool)
    is_worse[:, first, second] = (p < LEVEL) & (squares.mean > 0)
    is_worse[:, second, first] = (p < LEVEL) & (squares.mean < 0)
    upper = np.zeros((studies, size, size))
    upper[:, first, second], upper[:, second, first] = widths + squares.mean, widths - squares.mean
    return Look(losses.mean(axis=(2, 3)), is_worse, bound_distances(upper)[0])


def simulate_looks(
    gaps: Floats, noise: Floats, runs: int, studies: int, seed: int = 1, is_shrunk: bool = True
) -> Look:
    """Simulate and compare studies; see :func:`simulate_losses` and :func:`compare`."""
    generator = np.random.default_rng(seed)
    chunks = [
        compare(simulate_losses(generator, gaps, noise, runs, min(CHUNK, studies - i)), is_shrunk)
        for i in range(0, studies, CHUNK)
    ]
    return Look(*(np.concatenate([getattr(c, name) for c in chunks]) for name in vars(chunks[0])))


def count_false_worse(look: Look, gaps: Floats) -> float:
    """Return the share of studies in which an architecture is called worse than one it equals."""
    is_false = look.is_worse & (gaps[:, None] <= gaps)
    return float(is_false.any(axis=(1, 2)).mean())


def count_false_as_good(look: Look, gaps: Floats) -> float:
    """Return the share of studies in which a distance of the margin or more is called as good."""
    return float((look.is_as_good & (gaps >= MARGIN)).any(axis=1).mean())


def name_smallest(look: Look, is_before: bool) -> NDArray[np.int64]:
    """Return the architecture (S,) that is named as the smallest; later ones are smaller.

    Args:
        look: verdicts.
        is_before: whether to name the smallest that is not significantly worse than the best mean,
            else the smallest that is as good as the best, or the best mean.
    """
    best = look.means.argmin(axis=1)
    rows = np.arange(len(best))
    is_named = ~look.is_worse[rows, :, best] if is_before else look.is_as_good.copy()
    is_named[rows, best] = True
    last = is_named.shape[1] - 1 - is_named[:, ::-1].argmax(axis=1)
    return np.asarray(last if is_before else np.maximum(last, best))


@dataclass(frozen=True)
class SequentialRun:
    """One study that added runs until it was decided.

    Attributes:
        verdicts: final verdict of each architecture.
        runs: number of runs of all architectures.
        looks: number of looks.
    """

    verdicts: list[str]
    runs: int
    looks: int


def run_until_decided(losses: Floats, looks: Sequence[int] = DEFAULT_LOOKS) -> SequentialRun:
    """Add the runs of one study until it is decided, with the code that real studies use.

    Args:
        losses: losses (K, R, W) of all runs that the study may have.
        looks: number of runs at each look.
    """
    numbers = {str(i): i for i in range(len(losses))}
    compared, total, records = set(numbers.values()), 0, list[LookRecord]()
    for previous, runs in itertools.pairwise((0, *looks)):
        total += (runs - previous) * len(compared)
        known: Mapping[str, Mapping[int, Sequence[float]]] = {
            name: dict(enumerate(losses[i, :runs])) for name, i in numbers.items() if i in compared
        }
        _, record = take_look(known, numbers, looks, MARGIN, records)
        records.append(record)
        compared = set(record.continued)
        if not compared:
            break
    return SequentialRun([*records[-1].verdicts.values()], total, len(records))


def measure() -> Iterator[str]:
    """Yield the tables; takes about five minutes."""
    studies, equal = 2000, np.zeros(ARCHITECTURES)
    yield f"{ARCHITECTURES} architectures, margin {MARGIN}, {studies} simulated studies each"
    yield "| runs | noise | false difference, before | after | false as good, after |"
    yield "| ---: | :--- | ---: | ---: | ---: |"
    at_margin = np.where(np.arange(ARCHITECTURES) == 0, 0.0, MARGIN)
    for runs, (name, noise) in itertools.product((2, 3, 5, 10), NOISES.items()):
        before = simulate_looks(equal, noise, runs, studies, is_shrunk=False)
        after = simulate_looks(equal, noise, runs, studies)
        as_good = count_false_as_good(simulate_looks(at_margin, noise, runs, studies), at_margin)
        rates = [count_false_worse(before, equal), count_false_worse(after, equal), as_good]
        yield f"| {runs} | {name} | " + " | ".join(f"{rate:.1%}" for rate in rates) + " |"
    yield "| runs | gap | found, before | after |"
    yield "| ---: | ---: | ---: | ---: |"
    for runs, gap in itertools.product((3, 5, 10), (0.03, 0.06)):
        gaps = np.where(np.arange(ARCHITECTURES) == ARCHITECTURES - 1, gap, 0.0)
        found = [
            simulate_looks(gaps, NOISES["equal"], runs, studies, is_shrunk=shrunk)
            .is_worse[:, -1, 0]
            .mean()
            for shrunk in (False, True)
        ]
        yield f"| {runs} | {gap} | {found[0]:.2f} | {found[1]:.2f} |"
    ramp = np.linspace(0, 0.01 * (ARCHITECTURES - 1), ARCHITECTURES)
    yield "smallest architecture, each 0.01 worse than the next larger one: named beyond the margin"
    yield "| runs | before | after | smaller than the best mean, after |"
    yield "| ---: | ---: | ---: | ---: |"
    for runs in (3, 5, 10, 20):
        look = simulate_looks(ramp, NOISES["equal"], runs, studies)
        plain = simulate_looks(ramp, NOISES["equal"], runs, studies, is_shrunk=False)
        old, new = name_smallest(plain, True), name_smallest(look, False)
        wrong = [(ramp[named] >= MARGIN).mean() for named in (old, new)]
        # Without an architecture that is as good, the best mean is not named as a smaller one.
        is_smaller = new > look.means.argmin(axis=1)
        wrong[1] = ((ramp[new] >= MARGIN) & is_smaller).mean()
        yield f"| {runs} | {wrong[0]:.1%} | {wrong[1]:.1%} | {is_smaller.mean():.1%} |"
    yield from _measure_looks(400)


def _measure_looks(studies: int) -> Iterator[str]:
    size = ARCHITECTURES
    designs = {
        "all equal": np.zeros(size),
        "nine at the margin": np.where(np.arange(size) == 0, 0.0, MARGIN),
        "0.02 apart": 0.02 * np.arange(size),
        "two best, eight 0.1 worse": np.where(np.arange(size) < 2, 0.0, 0.1),
    }
    yield f"until decided, looks at {', '.join(map(str, DEFAULT_LOOKS))} runs, {studies} studies"
    yield "| architectures | noise | any false verdict | runs of 200 | looks | undecided |"
    yield "| :--- | :--- | ---: | ---: | ---: | ---: |"
    for (design, gaps), kind in itertools.product(designs.items(), ("equal", "half fourfold")):
        generator = np.random.default_rng(1)
        found = []
        for _ in range(studies):
            losses = simulate_losses(generator, gaps, NOISES[kind], DEFAULT_LOOKS[-1], 1)
            found.append(run_until_decided(losses[0]))
        false = np.mean([has_false_verdict(each, gaps) for each in found])
        undecided = np.mean([each.verdicts.count("undecided") for each in found])
        runs, looks = (np.mean([getattr(each, n) for each in found]) for n in ("runs", "looks"))
        yield f"| {design} | {kind} | {false:.1%} | {runs:.0f} | {looks:.1f} | {undecided:.1f} |"


def has_false_verdict(run: SequentialRun, gaps: Floats) -> bool:
    """Return whether one of the best is called worse, or one beyond the margin as good."""
    return any(
        (verdict == "worse" and gap <= 0) or (verdict == "as good" and gap >= MARGIN)
        for verdict, gap in zip(run.verdicts, gaps, strict=True)
    )
