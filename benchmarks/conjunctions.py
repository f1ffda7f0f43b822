"""``python -m benchmarks conjunctions``: errors of verdicts on claims about several contrasts.

Before: any of k contrasts decided at 5% that the conjunction does not hold. After: at 5% / k.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import astuple, dataclass, replace

import numpy as np

from benchmarks.effect_intervals import GRID, NOISE, Scenario
from reports.stats.decision_rules import LEAST_FAVORABLE_LAST, RULES, Verdict
from reports.stats.effects import FactorialTable
from reports.stats.outcome_table import OutcomeTable
from reports.stats.paired_difference import Floats
from reports.stats.run_noise import estimate_run_noise
from studies.hypotheses import DEFAULT_MARGIN

PAIRS = 48
"""Matched pairs of each contrast."""


@dataclass(frozen=True)
class ConjunctionRates:
    """How often verdicts on conjunctions are wrong or right.

    Attributes:
        failed_before: share of the studies in which a claim that is just true did not hold when
            each contrast was tested at 5%.
        failed_after: the same at 5% / k.
        held_wrongly: share in which a claim holds of which one contrast is at the margin.
        failed_rightly: share in which a claim fails of which one contrast is beyond the margin by
            five standard errors.
    """

    failed_before: float
    failed_after: float
    held_wrongly: float
    failed_rightly: float


def simulate_conjunctions(rule: str, contrasts: int, studies: int, seed: int) -> ConjunctionRates:
    """Simulate grids of 96 networks, and claims about the effects of their first parameters.

    Args:
        rule: key of the decision rule, ``lowers`` or ``makes-no-difference``.
        contrasts: number k of contrasts, at most five.
        studies: number of studies.
        seed: seed of all studies.
    """
    generator = np.random.default_rng(seed)
    frame = Scenario(name="").list_architectures()
    empty = FactorialTable.from_frame(frame, list(GRID), is_grid=False)
    # The margin is the least reduction that the one rule is about, and the other's largest change.
    margin, within = (-1, -3) if rule == "lowers" else (1, 0)
    true, wrong = np.full(contrasts, margin), np.full(contrasts, within)
    wrong[0] = margin
    clearly_wrong = wrong * DEFAULT_MARGIN
    clearly_wrong[0] += 5 * NOISE * math.sqrt(2 / PAIRS)
    counts = np.zeros(4)
    for _ in range(studies):
        noise = generator.normal(0, NOISE, len(frame))
        # Main effects do not change the estimate of the noise.
        runs = replace(empty, values=noise, noise=estimate_run_noise(empty.codes, noise))
        counts += (
            _decide(runs, true * DEFAULT_MARGIN, rule, 1) is Verdict.FAILS,
            _decide(runs, true * DEFAULT_MARGIN, rule, contrasts) is Verdict.FAILS,
            _decide(runs, wrong * DEFAULT_MARGIN, rule, contrasts) is Verdict.HOLDS,
            _decide(runs, clearly_wrong, rule, contrasts) is Verdict.FAILS,
        )
    return ConjunctionRates(*map(float, counts / studies))


def simulate_outcomes(contrasts: int, studies: int, seed: int) -> tuple[float, float]:
    """Simulate pairs of which each of k changes rescues 20% and ruins 10%, a gain at the margin.

    Returns:
        Shares of the studies in which "lowers" does not hold of all, before and after.
    """
    generator = np.random.default_rng(seed)
    failed = np.zeros(2)
    for _ in range(studies):
        drawn = generator.multinomial(PAIRS, (0.2, 0.1, 0.35, 0.35), contrasts)
        tables = [
            OutcomeTable(rescued=rescued, ruined=ruined, both_good=good, both_bad=bad, unknown=0)
            for rescued, ruined, good, bad in drawn.tolist()
        ]
        for i, count in enumerate((1, contrasts)):
            verdicts = (RULES["lowers"].decide_outcome(table, count) for table in tables)
            failed[i] += Verdict.FAILS in verdicts
    return float(failed[0] / studies), float(failed[1] / studies)


def _decide(runs: FactorialTable, effects: Floats, rule: str, count: int) -> Verdict:
    """Return the least favorable verdict on the contrasts of some parameters.

    Args:
        runs: values of networks that differ by noise alone.
        effects: what the second value of each parameter adds.
        rule: key of the decision rule.
        count: number of contrasts that share the error of 5%.
    """
    table = replace(runs, values=runs.values + runs.codes[:, : len(effects)] @ effects)
    verdicts = []
    for name, (before, after) in itertools.islice(GRID.items(), len(effects)):
        difference = table.compute_difference({name: before}, {name: after})
        verdicts.append(RULES[rule].decide_mean(difference, DEFAULT_MARGIN, count))
    return max(verdicts, key=LEAST_FAVORABLE_LAST.index)


def measure(studies: int = 1000) -> Iterator[str]:
    """Yield the error rates of verdicts on conjunctions."""
    yield f"claims about k contrasts, {PAIRS} pairs each, {studies:,} simulated studies"
    yield "| rule | k | a true claim fails, before | after | a false one holds | and fails |"
    for rule in ("lowers", "makes-no-difference"):
        for contrasts in (1, 2, 5):
            rates = simulate_conjunctions(rule, contrasts, studies, 1)
            shares = " | ".join(f"{share:.1%}" for share in astuple(rates))
            yield f"| {rule} | {contrasts} | {shares} |"
    for contrasts in (1, 2, 5):
        shares = " | ".join(f"{share:.1%}" for share in simulate_outcomes(contrasts, studies, 1))
        yield f"| lowers, on outcomes | {contrasts} | {shares} | | |"
