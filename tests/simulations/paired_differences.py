"""False alarms, coverage and power of effects in simulated designs; prints the published table.

The runs of a pair of architectures have a noise of one standard deviation each. A false alarm is a
p-value below 5% where the mean over the pairs is zero, so the intervals cover in all other cases.

    python -m tests.simulations.paired_differences
"""

import itertools
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from scipy import special

from reports.stats import Booleans, Floats, Integers
from reports.stats.differences import estimate_mean
from reports.stats.power import MIN_DIFFERENCES, find_smallest_effect

PAIRS = (4, 8, 16, 32)
SEEDS = (1, 2, 3, 5)
INTERACTION_OF_SEED = 0.2
"""Standard deviation of what the order of the data changes of an effect."""


class Design(NamedTuple):
    """Pairs of runs: the codes of the other parameters (N, parameters), context and replicate."""

    factors: Integers
    contexts: Integers
    replicates: Integers


def build_design(pairs: int, seeds: int, is_excluded: bool = False) -> Design:
    """Build the pairs of a grid of switches, with a quarter of a larger one excluded or whole.

    An exclusion such as ``{ state_size = 32, residual = false }`` takes away one combination of
    four of two parameters. The grid has twice as many pairs then, before it.
    """
    switches = pairs.bit_length() - 1 + is_excluded
    rows = np.array(list(itertools.product((0, 1), repeat=switches)))
    if is_excluded:
        rows = rows[(rows[:, 0] == 1) | (rows[:, 1] == 1)]
    contexts = np.repeat(np.arange(len(rows)), seeds)
    return Design(rows[contexts], contexts, np.tile(np.arange(seeds), len(rows)))


Draw = Callable[[Design, np.random.Generator], Floats]
"""Draws the differences (N,) of a design, with a mean of zero over its contexts."""


def draw_equal(design: Design, generator: np.random.Generator) -> Floats:
    return generator.normal(scale=np.sqrt(2), size=len(design.contexts))


def draw_unequal(design: Design, generator: np.random.Generator) -> Floats:
    """Half of the architectures have four times the noise."""
    return np.asarray(draw_equal(design, generator) * np.where(design.factors[:, 0] == 1, 4, 1))


def draw_mixture(design: Design, generator: np.random.Generator) -> Floats:
    """Three runs of ten fail, and end twenty standard deviations higher."""
    fails = generator.random((2, len(design.contexts))) < 0.3
    return np.asarray(draw_equal(design, generator) + 20 * (fails[1].astype(float) - fails[0]))


def draw_interactions(design: Design, generator: np.random.Generator) -> Floats:
    """The effect differs by one other parameter, and by what each architecture adds."""
    own = generator.normal(size=design.contexts.max() + 1)
    by_context = own + 2 * design.factors[:: len(np.unique(design.replicates)), 0]
    of_pairs = (by_context - by_context.mean())[design.contexts]
    return np.asarray(draw_equal(design, generator) + of_pairs)


def draw_by_seed(design: Design, generator: np.random.Generator) -> Floats:
    """The effect differs by the order of the data, which all pairs of a replicate share."""
    of_seed = generator.normal(scale=INTERACTION_OF_SEED, size=design.replicates.max() + 1)
    return np.asarray(draw_equal(design, generator) + of_seed[design.replicates])


def find_significant(
    design: Design,
    draw: Draw,
    count: int,
    effect: float = 0.0,
    lost: float = 0.0,
) -> Booleans:
    """Return of each of some studies (count,) whether its effect is significant.

    Args:
        design: the pairs.
        draw: draws their differences.
        count: number of studies.
        effect: mean of the differences.
        lost: share of the pairs of runs that have no value.
    """
    seeds = int(design.replicates.max()) + 1
    return np.fromiter(_find_significant(design, seeds, draw, count, effect, lost), bool, count)


def _find_significant(
    design: Design, seeds: int, draw: Draw, count: int, effect: float, lost: float
) -> Iterator[bool]:
    generator = np.random.default_rng(1)
    for _ in range(count):
        differences = draw(design, generator) + effect
        is_kept = generator.random(len(differences)) >= lost
        contexts = np.unique(design.contexts[is_kept], return_inverse=True)[1]
        found = estimate_mean(differences[is_kept], contexts, seeds, design.factors[is_kept])
        p = 2 * special.stdtr(found.degrees, -abs(found.mean) / found.error)
        yield len(contexts) >= MIN_DIFFERENCES and bool(p < 0.05)


MODELS: dict[str, Draw] = {
    "equal noise": draw_equal,
    "noise ×4": draw_unequal,
    "mixture": draw_mixture,
    "interactions": draw_interactions,
    "option × seed": draw_by_seed,
}


def print_table(count: int) -> None:
    """Print a row for each number of pairs and seeds, in percent of studies."""
    columns = [*MODELS, "excluded", "excluded, noise ×4", "lost", "lost, noise ×4", "power at 80%"]
    print("| pairs × seeds |", " | ".join(columns), "|")
    print("| :--- |", " | ".join(["---:"] * len(columns)), "|")
    for pairs, seeds in itertools.product(PAIRS, SEEDS):
        design = build_design(pairs, seeds)
        excluded = build_design(pairs, seeds, is_excluded=True)
        effect = find_smallest_effect(pairs, seeds)
        rates = [find_significant(design, draw, count) for draw in MODELS.values()]
        for draw in (draw_equal, draw_unequal):
            rates.append(find_significant(excluded, draw, count))
        for draw in (draw_equal, draw_unequal):
            rates.append(find_significant(design, draw, count, lost=0.1))
        rates.append(find_significant(design, draw_equal, count, effect))
        texts = [f"{100 * rate.mean():.1f}" for rate in rates]
        print(f"| {pairs} × {seeds} |", " | ".join(texts), "|", flush=True)


if __name__ == "__main__":
    print_table(int(sys.argv[1]) if len(sys.argv) > 1 else 4000)
