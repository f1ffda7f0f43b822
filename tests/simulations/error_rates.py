"""Error rates and power of the statistics of reports, in the simulated studies of the tests.

``python -m tests.simulations.error_rates NAME …`` prints the tables of docs/statistics.md, where
NAME is one of ``effects``, ``uneven-noise``, ``unequal-runs``, ``replicates`` and ``audits``.
"""

import argparse
import itertools
import math
from collections.abc import Callable, Iterator
from unittest.mock import patch

import numpy as np
import pandas as pd
from optuna.trial import TrialState

from benchmarks.audited_pruning import AUDIT, KINDS, simulate_curves
from benchmarks.audited_pruning import cover_effects as cover_audited
from benchmarks.replay_pruning import CONFIDENCE, KEEP
from reports.stats import Floats, Integers
from reports.stats.audit import estimate_with_audit, judge_architectures
from reports.stats.design import Contrast
from reports.stats.effects import FactorialTable
from reports.stats.run_means import average_runs
from reports.trial_table import find_traits
from search.pruning.audited_trials import DIVISOR
from search.pruning.policy import PruningPolicy, StudyState
from search.pruning.regression import Indices, Mask
from search.pruning.scheduler import compute_steps_to_next_rung
from studies.storage.trials import TrialStatus
from tests.simulations.grids import (
    NOISE,
    SMALL_GRID,
    Scenario,
    Simulation,
    find_flags,
    names_zero,
    simulate,
)
from tests.simulations.pruned_search import RecordedCurves
from tests.simulations.replicates import (
    ARCHITECTURES,
    MARGIN,
    NOISES,
    TEXT_NOISES,
    count_false_as_good,
    count_false_worse,
    simulate_verdicts,
)
from tests.simulations.unequal_runs import (
    LOST_RUNS,
    ORDER_NOISE,
    RUN_NOISE,
    SCENARIOS,
    simulate_differences,
    simulate_lost_runs,
)
from tests.simulations.uneven_noise import (
    Tables,
    clear_rates,
    count_findings,
    cover_effects,
    equal_rates,
    mixed_rates,
    simulate_regions,
    simulate_tuned,
    simulate_variants,
)

INTERVALS = (
    Scenario(name="equal noise, 96 architectures"),
    Scenario(name="noise ×1, ×2, ×4 by state size", noise_by_size=(1, 2, 4)),
    Scenario(name="real interactions of four parameters", scales=(0.2, 0.1, 0.05, 0.02)),
    Scenario(
        name="the same, three replicates of nine", scales=(0.2, 0.1, 0.05, 0.02), replicates=3
    ),
    Scenario(name="24 architectures", scales=(0.2, 0.1), grid=SMALL_GRID),
    Scenario(name="24, real interactions of three", grid=SMALL_GRID),
)

FLAGS = (
    Scenario(name="main effects only", scales=(0.1,)),
    Scenario(name="main effects only, noise by size", scales=(0.1,), noise_by_size=(1, 2, 4)),
    Scenario(name="no effects", scales=()),
    Scenario(name="main effects, 24 architectures", scales=(0.1,), grid=SMALL_GRID),
    Scenario(name="effect of one sign or none (−0.2, 0)", scales=(), joint=-0.2),
    Scenario(name="opposite signs, ±0.02", scales=(), reversal=0.02),
    Scenario(name="opposite signs, ±0.03", scales=(), reversal=0.03),
)

NAMED = (
    Scenario(name="no effects", scales=()),
    Scenario(name="no effects, noise by size", scales=(), noise_by_size=(1, 2, 4)),
    Scenario(name="no effects, 24 architectures", scales=(), grid=SMALL_GRID),
)


def measure_effects(count: int = 300) -> Iterator[str]:
    """Yield the tables of intervals and flags over simulated studies."""
    yield f"{count} simulated studies each"
    yield "scenario | covered | width / that of known noise | effect of 3 standard errors found"
    for scenario in INTERVALS:
        found = [row for study in simulate(scenario, count) for row in _judge_intervals(study)]
        covered, _, excluded = np.mean(found, axis=0)
        width = np.median(found, axis=0)[1]
        yield f"{scenario.name} | {covered:.1%} | {width:.2f} | {excluded:.0%}"
    yield "scenario | studies with a significant range | with opposite signs"
    for scenario in FLAGS:
        flags = np.array([find_flags(study.observed) for study in simulate(scenario, count)])
        yield f"{scenario.name} | {flags[:, 0].mean():.1%} | {flags[:, 1].mean():.1%}"
    yield "scenario | studies with an effect named that is zero"
    for scenario in NAMED:
        named = np.mean([names_zero(study) for study in simulate(scenario, count)])
        yield f"{scenario.name} | {named:.1%}"


def _judge_intervals(study: Simulation) -> Iterator[tuple[float, ...]]:
    """Yield whether each effect's interval covers, its relative width, and its power."""
    table = study.observed
    for effect in table.compute_effects():
        other = next(name for name in table.axes if name != effect.contrast.parameter)
        before, after = np.hstack(list(table.match_by_level(effect.contrast, other).values()))
        truth = study.truth.compute_effect(effect.contrast).mean
        variances = study.deviations[before] ** 2 + study.deviations[after] ** 2
        error = math.sqrt(variances.sum()) / len(variances)
        # The same interval around an effect of three standard errors.
        shift = 3 * error - truth
        excludes = effect.low + shift > 0 or effect.high + shift < 0
        width = (effect.high - effect.low) / (2 * 1.96 * error)
        yield effect.low <= truth <= effect.high, width, excludes


def measure_uneven_noise() -> Iterator[str]:
    """Yield the tables of studies in which some networks are noisier than others."""
    yield "200 simulated studies each"
    yield "architectures of three layers | their noise | covered | differs | opposite signs"
    for deep, factor in itertools.product((4, 8), (1, 3, 10)):
        found = count_findings(list(simulate_regions(deep, factor, 200)))
        yield (
            f"{deep} | ×{factor} | {found.covered:.1%} | {found.differs:.1%} | {found.opposite:.1%}"
        )
    yield "60 simulated studies each, 200 of close rates, effects at the best of three rates"
    yield "rates | noise of three layers | effects covered | bias of layers 2 → 3 | significant"
    rates = {
        "equal": equal_rates,
        "clear": clear_rates,
        "mixed": mixed_rates,
        "close": _close_rates,
    }
    for name, factor in itertools.product(rates, (1, 4)):
        studies = list(simulate_tuned(rates[name], factor, 200 if name == "close" else 60))
        yield f"{name} | ×{factor} | {_judge_tuned(studies)}"
    yield "400 simulated derived studies each"
    yield "noise of one variant | its effect significant"
    for factor in (1, 4, 12):
        yield f"×{factor} | {np.mean(list(simulate_variants(factor, 400))):.1%}"


def _close_rates(layers: Integers) -> Floats:
    """Return excess losses of two standard deviations of the noise of three layers."""
    return np.tile([0.0, 8 * NOISE, 16 * NOISE], (len(layers), 1))


def _judge_tuned(studies: list[Tables]) -> str:
    """Return the coverage of all effects, and bias and significance of the third layer."""
    contrast = Contrast("layers", 2, 3)
    covered = [each for study in studies for each in cover_effects(*study)]
    effects = [observed.compute_effect(contrast) for _, observed in studies]
    bias = np.mean([effect.mean for effect in effects])  # no layer has an effect
    significant = np.mean([effect.is_significant for effect in effects])
    return f"{np.mean(covered):.1%} | {bias:+.4f} | {significant:.1%}"


def measure_unequal_runs(studies: int = 500) -> Iterator[str]:
    """Yield the tables of studies with unequal numbers of runs; takes about two minutes."""
    yield f"{studies} simulated studies each"
    yield "runs | false difference | effect of 0.02 found"
    for scenario in SCENARIOS:
        false, found = (simulate_differences(scenario, studies, each) for each in (0.0, -0.02))
        yield f"{scenario.name} | {false:.1%} | {found:.1%}"
    yield "one of ten architectures lost its hardest run of three: worse by | has the best mean"
    for gap in (0.0, 0.01, 0.02):
        yield f"{gap} | {_simulate_leaders(gap, studies):.1%}"
    yield "one of ten equal architectures has | text noise | false difference"
    for lost, text_noise in itertools.product(LOST_RUNS, TEXT_NOISES):
        false = simulate_lost_runs(lost, text_noise, 2 * studies)
        yield f"{lost} | {text_noise} | {false:.1%}"


def _simulate_leaders(gap: float, studies: int) -> float:
    """Return how often one of ten architectures that lost its hardest of three runs leads.

    Args:
        gap: how much worse it is than the others, which are equal, in nats.
        studies: number of studies.
    """
    generator = np.random.default_rng(1)
    found = 0
    for _ in range(studies):
        losses = generator.normal(scale=RUN_NOISE, size=(10, 3))
        losses += np.sort(generator.normal(scale=ORDER_NOISE, size=3))
        losses[0] += gap
        losses[0, -1] = np.nan
        known = np.argwhere(~np.isnan(losses)).tolist()
        means = average_runs((i, run, float(losses[i, run])) for i, run in known)
        found += means[0] <= min(means.values())
    return found / studies


def measure_replicates(studies: int = 1000) -> Iterator[str]:
    """Yield the tables of verdicts on replicated architectures; takes about ten minutes."""
    places = np.arange(ARCHITECTURES)
    equal, at_margin = np.zeros(ARCHITECTURES), np.where(places == 0, 0.0, MARGIN)
    small, large = (np.where(places == ARCHITECTURES - 1, gap, 0.0) for gap in (0.03, 0.06))
    designs = equal, at_margin, small, large
    yield f"{ARCHITECTURES} architectures, margin {MARGIN}, {studies} simulated studies each"
    yield (
        "runs | noise | text noise | false difference | false as good | gap of 0.03 found | "
        "of 0.06 | of 0.06, against the best"
    )
    for runs, (name, noise), text in itertools.product((2, 3, 5, 10), NOISES.items(), TEXT_NOISES):
        found = simulate_verdicts(designs, noise, runs, studies, text)
        of_equal, of_margin, of_small, of_large = found
        worse = count_false_worse(of_equal, equal)
        good = count_false_as_good(of_margin, at_margin)
        small_gap = of_small.is_worse[:, -1].any(axis=1).mean()
        large_gap = of_large.is_worse[:, -1].any(axis=1).mean()
        of_pair = of_large.is_worse[:, -1, 0].mean()
        yield (
            f"{runs} | {name} | {text} | {worse:.1%} | {good:.1%} | {small_gap:.2f} | "
            f"{large_gap:.2f} | {of_pair:.2f}"
        )
    ramp: Floats = 0.01 * places.astype(np.float64)
    yield "smallest architecture, each 0.01 worse than the next larger one"
    yield "runs | named beyond the margin | smaller than the best mean"
    for runs in (3, 5, 10, 20):
        (verdicts,) = simulate_verdicts([np.asarray(ramp)], NOISES["equal"], runs, studies)
        best = verdicts.means.argmin(axis=1)
        # The smallest that is as good as the best; later ones are smaller.
        smallest = np.where(verdicts.is_as_good, places, -1).max(axis=1)
        is_smaller = smallest > best
        wrong = (ramp[np.maximum(smallest, best)] >= MARGIN) & is_smaller
        yield f"{runs} | {wrong.mean():.1%} | {is_smaller.mean():.1%}"
    yield from _measure_few(3 * studies)


def _measure_few(studies: int) -> Iterator[str]:
    """Yield false differences between few architectures if their variances were moderated."""
    yield f"few equal architectures, all moderated, {studies} simulated studies each"
    yield "architectures | runs | variance of one | false difference"
    with patch("reports.stats.replicates.MIN_ARCHITECTURES", 3):
        for size, runs, factor in itertools.product((4, 5, 6), (3, 5), (1, 4)):
            noise = np.where(np.arange(size) == 0, math.sqrt(factor), 1.0)
            (verdicts,) = simulate_verdicts([np.zeros(size)], noise, runs, studies)
            yield f"{size} | {runs} | ×{factor} | {count_false_worse(verdicts, np.zeros(size)):.1%}"


# ------------------------------------------------------------------ audits

SAMPLES = 6
"""Number of audits of the same simulated stops."""

_SHARES = (0.75, 0.55, 0.45, 0.4, 0.35)
"""Share of the trials that continues after each rung."""

_RANK_NOISE = (0.15, 0.1, 0.08, 0.06, 0.05)
"""Standard deviation, in nats, of the values by which trials are ranked at each rung."""


def redraw_audits(kind: str, seed: int) -> list[bool]:
    """Return whether intervals of effects have the effect, over audits of the same stops.

    At each rung the trials with the worst final values stop, up to noise, whatever is audited.

    Args:
        kind: one of :data:`KINDS`.
        seed: seed of the curves, the stops and the audits.
    """
    recorded, random = simulate_curves(kind, seed), np.random.default_rng(seed)
    count = len(recorded.values)
    reached = np.full(count, len(recorded.rungs))
    continues = np.ones(count, dtype=bool)
    for rung, (share, noise) in enumerate(zip(_SHARES, _RANK_NOISE, strict=True)):
        rank = recorded.values + random.normal(0, noise, count)
        best = np.argsort(np.where(continues, rank, np.inf))[: int(share * count)]
        reached[continues & ~np.isin(np.arange(count), best)] = rung + 1
        continues = np.isin(np.arange(count), best)
    names = list(recorded.params[0])
    whole = pd.DataFrame(recorded.params).assign(value=recorded.values)
    truth = FactorialTable.from_frame(whole, names, traits=find_traits(names))
    covered = []
    for _ in range(SAMPLES):
        drawn = random.choice(count, min(AUDIT, count // DIVISOR), replace=False)
        is_audited = np.isin(np.arange(count), drawn)
        policy = PruningPolicy(_stop(recorded, reached, ~continues, is_audited), KEEP, CONFIDENCE)
        predicted = policy.prediction.mean.copy()
        for trial in np.flatnonzero(is_audited & ~continues):
            predicted[trial] = policy.leave_out(int(trial)).prediction.mean[trial]
        is_lost = ~continues & ~is_audited
        table = whole.assign(
            state=np.where(is_lost, TrialState.PRUNED.name, TrialState.COMPLETE.name),
            value=whole["value"].mask(is_lost),
            audited=is_audited,
            reason=pd.Series("pruned", whole.index).mask(continues),
            predicted_value=np.where(continues, np.nan, predicted),
        )
        estimates = estimate_with_audit(
            judge_architectures(table, names), names, traits=find_traits(names)
        ).effects
        covered += cover_audited(truth, estimates)
    return covered


def _stop(
    recorded: RecordedCurves, reached: Indices, is_stopped: Mask, is_audited: Mask
) -> StudyState:
    """Return the state of a search whose trials stopped after some rungs, unless audited."""
    rungs = np.arange(len(recorded.rungs))
    is_hidden = (is_stopped & ~is_audited)[:, None] & (rungs >= reached[:, None])
    return StudyState(
        [TrialStatus.PRUNED if each else TrialStatus.COMPLETE for each in is_stopped],
        np.where(is_hidden, np.nan, recorded.losses),
        np.where(is_stopped & ~is_audited, np.nan, recorded.values),
        recorded.design,
        np.arange(len(reached)),
        compute_steps_to_next_rung(recorded.rungs, recorded.end),
        np.where(is_stopped & is_audited, reached, -1),
        np.full(len(reached), np.nan),
    )


def measure_audits(studies: int = 5) -> Iterator[str]:
    """Yield how often intervals that audited trials estimate have the effect."""
    yield f"{SAMPLES} audits each of {studies} studies with given stops: intervals that cover"
    for kind in KINDS:
        covered = [hit for seed in range(studies) for hit in redraw_audits(kind, seed)]
        yield f"{kind} | {np.mean(covered):.3f}"


TABLES: dict[str, Callable[[], Iterator[str]]] = {
    "effects": measure_effects,
    "uneven-noise": measure_uneven_noise,
    "unequal-runs": measure_unequal_runs,
    "replicates": measure_replicates,
    "audits": measure_audits,
}


def main() -> None:
    """Print the tables that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulations.error_rates")
    parser.add_argument("names", nargs="+", choices=TABLES, metavar="NAME")
    for name in parser.parse_args().names:
        for line in TABLES[name]():
            print(line, flush=True)


if __name__ == "__main__":
    main()
