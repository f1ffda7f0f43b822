"""``python -m benchmarks audit``: pruning without and with audited trials, on simulated curves.

With a file of recorded curves in the environment variable ``RNN_SEARCH_CURVES``, on these instead;
:mod:`benchmarks.replay_pruning` describes such a file.
"""

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from optuna.trial import TrialState

from benchmarks.replay_pruning import CONFIDENCE, KEEP, read_curves
from reports.analysis.pruning import ALARM_LEVEL
from reports.stats.audit import (
    INTERVAL_SCALES,
    compare_predictions,
    compute_outside_p_value,
    estimate_with_audit,
    judge_architectures,
    measure_recall,
)
from reports.stats.effects import Effect, FactorialTable
from reports.trial_table import find_traits
from search.pruning.audited_trials import DIVISOR, number_architectures
from search.pruning.regression import DesignMatrix, Mask
from search.worker.cpu_budget import cores
from studies.config import top_count
from tests.simulations.pruned_search import RecordedCurves, Replay

CURVES = "RNN_SEARCH_CURVES"
"""The environment variable that names a file of recorded curves."""

KINDS = ("ordinary", "late by a switch", "late by three switches", "late at random", "noisy")
"""Kinds of simulated curves. Late curves lie 0.3 nats higher until 70 to 90% of the steps, then
fall to values that are 0.1 nats better: of the networks with one switch, of those with three
switches together, or of a third of all. Of noisy curves, those of networks without two switches
fall less than others from 20% of the steps on, by 0.2 to 1.4 nats."""

RATED_KINDS = ("ordinary", "late by three switches")

RATES = ", three rates"
"""Suffix of a kind with each network at three learning rates, and its best one at random."""

AUDIT = 20

CONCURRENT = 4

STEPS = 1000

LOG_EVERY = 40

FORECAST_SHARES = (0.25, 0.5, 0.75)
"""Shares of a search's steps after which the rest is forecast."""

NUISANCE = "learning_rate"

SWITCHES = ("input_gate", "forget_gate", "output_gate", "state_gate")


@dataclass(frozen=True)
class AuditedReplay:
    """Result of a simulated search.

    Attributes:
        cost: share of all steps that were trained.
        recall: share of the best tenth that is complete.
        stated: that share, as the predictions at the time of pruning have it.
        has_alarm: whether a look during the search failed.
        inside: number of pruned trials within two scales of their predictions.
        pruned: number of pruned trials.
        audited_inside: the same among the audited trials that would have been pruned, one of each
            architecture.
        tested: number of these trials.
        has_failed_test: whether the test of the finished study says that predictions are wrong.
        bound_holds: whether the bound of the number of lost architectures holds; None without an
            audit.
        survivors: of each effect over complete trials, whether its interval has the effect of the
            whole grid.
        estimates: the same of the effects that the audited trials estimate; empty if they are too
            few.
        forecasts: low, likely and high forecast of the steps that are left, relative to them, by
            the share of the search's steps that were trained; only where there is a forecast.
    """

    cost: float
    recall: float
    stated: float
    has_alarm: bool
    inside: int
    pruned: int
    audited_inside: int
    tested: int
    has_failed_test: bool
    bound_holds: bool | None
    survivors: list[bool]
    estimates: list[bool]
    forecasts: dict[float, tuple[float, float, float]]


def simulate_curves(kind: str, seed: int) -> RecordedCurves:
    """Simulate the complete curves of a grid: 48 architectures of each size.

    Args:
        kind: one of :data:`KINDS`, with :data:`RATES` after it or not.
        seed: random seed.
    """
    random = np.random.default_rng(seed)
    rates = (0.3, 1.0, 3.0) if kind.endswith(RATES) else ()
    networks = [
        {name: bool(index >> bit & 1) for bit, name in enumerate(SWITCHES)}
        | {"state_source": source, "state_size": size}
        for index in range(16)
        for source in ("new", "old", "both")
        for size in (16, 32, 64, 128)
    ]
    design = DesignMatrix.from_params(networks)
    count = len(networks)
    values = 2 + design.main_effects @ random.normal(0, 0.1, design.main_effects.shape[1])
    values += design.interactions @ random.normal(0, 0.03, design.interactions.shape[1])
    values += random.normal(0, 0.02, count)
    switches = np.array([[network[name] for name in SWITCHES] for network in networks])
    kinds: dict[str, Mask] = {
        "ordinary": np.zeros(count, dtype=bool),
        "late by a switch": switches[:, 3],
        "late by three switches": np.asarray(switches[:, 1:].all(axis=1)),
        "late at random": np.asarray(random.random(count) < 1 / 3),
        "noisy": np.zeros(count, dtype=bool),
    }
    is_late = kinds[kind.removesuffix(RATES)]
    params: list[dict[str, Any]] = [dict(network) for network in networks]
    if rates:
        params = [{**network, NUISANCE: rate} for network in networks for rate in rates]
        best = random.normal(0, 0.8, count)  # logarithm of the best rate
        penalty = 0.05 * (np.log(rates) - best[:, None]) ** 2
        values = (values[:, None] + penalty + random.normal(0, 0.02, penalty.shape)).ravel()
        is_late = is_late.repeat(len(rates))
    count = len(values)
    steps = np.arange(LOG_EVERY, STEPS + 1, LOG_EVERY)
    lead = random.normal(0, 0.06, count)[:, None] * np.exp(-steps / 500)
    fall_at = random.uniform(0.7, 0.9, count)[:, None] * STEPS
    high = 0.3 * is_late[:, None] / (1 + np.exp((steps - fall_at) / 20))
    curves = values[:, None] - 0.1 * is_late[:, None] + lead + high + 1.2 * np.exp(-steps / 150)
    if kind == "noisy":
        rise = random.uniform(0.2, 1.4, count) * ~switches[:, :2].any(axis=1)
        curves += rise[:, None] * np.clip((steps / STEPS - 0.2) / 0.8, 0, None)
    curves += random.normal(0, 0.01, curves.shape)
    return RecordedCurves(params, steps, curves, curves[:, -1], (NUISANCE,) if rates else ())


def replay_audited(recorded: RecordedCurves, audit: int, seed: int) -> AuditedReplay:
    """Simulate a search with some audited architectures.

    Args:
        recorded: curves of the trials.
        audit: number of audited architectures, at most a tenth of all.
        seed: seed of the order of the trials and of the sample.
    """
    count = len(recorded.values)
    random = np.random.default_rng(seed)
    owners = number_architectures(recorded.params, recorded.nuisance)
    total = int(owners.max()) + 1
    order = random.permutation(count).tolist()
    drawn = random.choice(total, min(audit, total // DIVISOR), replace=False)
    audited = np.isin(owners, drawn)
    search = Replay(recorded, CONCURRENT, KEEP, CONFIDENCE, np.flatnonzero(audited).tolist())
    result = search.run(order)
    stops = pd.DataFrame.from_dict(
        search.predictions, "index", columns=["predicted_value", "predicted_scale", "keep"]
    )
    is_stopped = np.isin(np.arange(count), stops.index)
    # As if every trial were audited, and with the values of the pruned ones hidden.
    whole = pd.DataFrame(recorded.params).assign(
        state=TrialState.COMPLETE.name,
        value=recorded.values,
        audited=True,
        reason=pd.Series("pruned", range(count)).where(is_stopped),
    )
    whole = whole.join(stops)
    is_pruned = is_stopped & ~audited
    table = whole.assign(
        state=np.where(is_pruned, TrialState.PRUNED.name, whole["state"]),
        value=whole["value"].mask(is_pruned),
        audited=audited,
    )
    names = [name for name in recorded.params[0] if name not in recorded.nuisance]
    judged = judge_architectures(whole, names)
    known = judge_architectures(table, names)
    kept = top_count(KEEP, total)
    recall = measure_recall(known, kept)
    lost = measure_recall(judged, kept).lost
    _, is_inside = compare_predictions(table, names)
    errors = (whole["value"] - whole["predicted_value"])[is_pruned].abs()
    traits = find_traits(names)
    truth = FactorialTable.from_frame(judged, names, traits=traits)
    survivors = FactorialTable.from_frame(known, names, traits=traits).compute_effects()
    return AuditedReplay(
        cost=result.cost,
        recall=result.recall,
        stated=1 - float(whole["keep"][is_pruned].sum()) / top_count(KEEP, count),
        has_alarm=any(look.alarm for look in search.looks.values()),
        inside=int((errors <= INTERVAL_SCALES * whole["predicted_scale"][is_pruned]).sum()),
        pruned=int(is_pruned.sum()),
        audited_inside=int(is_inside.sum()),
        tested=len(is_inside),
        has_failed_test=compute_outside_p_value(len(is_inside), int(is_inside.sum())) < ALARM_LEVEL,
        bound_holds=lost - recall.lost <= recall.lost_high if audit else None,
        survivors=cover_effects(truth, survivors),
        estimates=cover_effects(truth, estimate_with_audit(known, names, traits=traits).effects),
        forecasts=_compare_forecasts(search),
    )


def _compare_forecasts(search: Replay) -> dict[float, tuple[float, float, float]]:
    """Return the forecasts of a simulated search relative to the steps that were left."""
    found = {share: search.forecast_rest(share) for share in FORECAST_SHARES}
    return {
        share: (forecast.low / left, forecast.likely / left, forecast.high / left)
        for share, (forecast, left) in found.items()
        if forecast is not None and left
    }


def cover_effects(truth: FactorialTable, effects: Sequence[Effect]) -> list[bool]:
    """Return whether the interval of each effect has the effect of the whole grid."""
    return [
        effect.low <= truth.compute_effect(effect.contrast).mean <= effect.high
        for effect in effects
    ]


def _replay_kind(kind: str, audit: int, seed: int) -> AuditedReplay:
    path = Path(kind)
    recorded = read_curves(path) if path.is_file() else simulate_curves(kind, seed)
    return replay_audited(recorded, audit, seed)


def measure(searches: int = 4) -> Iterator[str]:
    """Yield a table of searches on each kind of curves, without and with audited trials.

    Args:
        searches: number of searches on each kind of curves; on recorded curves in other orders with
            other samples.
    """
    os.environ |= {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS")}
    recorded = os.environ.get(CURVES)
    kinds = [*KINDS, *(kind + RATES for kind in RATED_KINDS)]
    if recorded:
        kinds = [recorded]
    yield f"{searches} searches on each kind of curves, best tenth to be kept, stated 95%"
    yield (
        f"  {'curves':36} {'audited':>7} {'cost':>6} {'recall':>7} {'worst':>6} {'inside':>7} "
        f"{'of audited':>11} {'alarms':>7} {'tests':>7} {'bound':>6} "
        f"{'survivors':>10} {'estimates':>10}"
    )
    with ProcessPoolExecutor(cores(), multiprocessing.get_context("spawn")) as pool:
        for kind in kinds:
            for audit in (0, AUDIT):
                run = partial(_replay_kind, kind, audit)
                yield _format(Path(kind).name, audit, list(pool.map(run, range(searches))))


def _format(kind: str, audit: int, results: Sequence[AuditedReplay]) -> str:
    def share(part: float, whole: float) -> str:
        return f"{part / whole:.3f}" if whole else "-"

    bounds = [result.bound_holds for result in results if result.bound_holds is not None]
    survivors = [hit for result in results for hit in result.survivors]
    estimates = [hit for result in results for hit in result.estimates]
    inside = share(sum(r.inside for r in results), sum(r.pruned for r in results))
    of_audited = share(sum(r.audited_inside for r in results), sum(r.tested for r in results))
    return (
        f"  {kind[:36]:36} {audit:7} {np.mean([r.cost for r in results]):6.3f} "
        f"{np.mean([r.recall for r in results]):7.3f} {min(r.recall for r in results):6.3f} "
        f"{inside:>7} {of_audited:>11} {sum(r.has_alarm for r in results):4}/{len(results):<2} "
        f"{sum(r.has_failed_test for r in results):4}/{len(results):<2} "
        f"{share(sum(bounds), len(bounds)):>6} {share(sum(survivors), len(survivors)):>10} "
        f"{share(sum(estimates), len(estimates)):>10}"
    )
