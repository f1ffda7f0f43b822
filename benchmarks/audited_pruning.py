"""``python -m benchmarks audit``: pruning without and with audited trials, on simulated curves.

With the environment variable of :mod:`benchmarks.published_runs`, on the published curves as well.
"""

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.published_runs import published_file
from benchmarks.recorded_curves import RecordedCurves
from benchmarks.replay_pruning import Replay
from reports.stats.audited_effects import MIN_STOPPED, estimate_effect
from reports.stats.effects import Effect, FactorialTable
from reports.stats.pruning_audit import bound_lost
from search.pruning.audit import DIVISOR, INTERVAL_SCALES
from search.pruning.predictions import DesignMatrix, Floats, Mask
from search.worker.cpu_budget import cores
from studies.config import top_count

KINDS = ("ordinary", "late by a switch", "late by three switches", "late at random")
"""Kinds of simulated curves. Late curves lie 0.3 nats higher until 70 to 90% of the steps, then
fall to values that are 0.1 nats better: of the networks with one switch, of those with three
switches together, or of a third of all."""

AUDIT, KEEP, CONFIDENCE, CONCURRENT = 20, 0.1, 0.95, 4

STEPS, LOG_EVERY = 1000, 40

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
        audited_inside: the same among the audited trials that would have been pruned.
        stopped: number of these trials.
        bound_holds: whether the bound of the number of lost trials holds; None without an audit.
        survivors: of each effect over complete trials, whether its interval has the effect of the
            whole grid.
        estimates: the same of the effects that the audited trials estimate; empty if they are too
            few.
    """

    cost: float
    recall: float
    stated: float
    has_alarm: bool
    inside: int
    pruned: int
    audited_inside: int
    stopped: int
    bound_holds: bool | None
    survivors: list[bool]
    estimates: list[bool]


def simulate_curves(
    kind: str, seed: int, sizes: Sequence[int] = (16, 32, 64, 128)
) -> RecordedCurves:
    """Simulate the complete curves of a grid: 48 of each size.

    Args:
        kind: one of :data:`KINDS`.
        seed: random seed.
        sizes: values of the state size.
    """
    random = np.random.default_rng(seed)
    params = [
        {name: bool(index >> bit & 1) for bit, name in enumerate(SWITCHES)}
        | {"state_source": source, "state_size": size}
        for index in range(16)
        for source in ("new", "old", "both")
        for size in sizes
    ]
    design, count = DesignMatrix.from_params(params), len(params)
    values = 2 + design.main_effects @ random.normal(0, 0.1, design.main_effects.shape[1])
    values += design.interactions @ random.normal(0, 0.03, design.interactions.shape[1])
    values += random.normal(0, 0.02, count)
    switches = np.array([[each[name] for name in SWITCHES] for each in params])
    kinds: dict[str, Mask] = {
        "ordinary": np.zeros(count, dtype=bool),
        "late by a switch": switches[:, 3],
        "late by three switches": np.asarray(switches[:, 1:].all(axis=1)),
        "late at random": np.asarray(random.random(count) < 1 / 3),
    }
    is_late = kinds[kind]
    steps = np.arange(LOG_EVERY, STEPS + 1, LOG_EVERY)
    lead = random.normal(0, 0.06, count)[:, None] * np.exp(-steps / 500)
    fall_at = random.uniform(0.7, 0.9, count)[:, None] * STEPS
    high = 0.3 * is_late[:, None] / (1 + np.exp((steps - fall_at) / 20))
    curves = values[:, None] - 0.1 * is_late[:, None] + lead + high + 1.2 * np.exp(-steps / 150)
    curves += random.normal(0, 0.01, curves.shape)
    return RecordedCurves(params, steps, curves, curves[:, -1])


def replay_audited(recorded: RecordedCurves, audit: int, seed: int) -> AuditedReplay:
    """Simulate a search with some audited trials.

    Args:
        recorded: curves of the trials.
        audit: number of audited trials, at most a tenth of all.
        seed: seed of the order of the trials and of the sample.
    """
    count, random = len(recorded.values), np.random.default_rng(seed)
    order = random.permutation(count).tolist()
    audited = random.choice(count, min(audit, count // DIVISOR), replace=False)
    search = Replay(recorded, CONCURRENT, KEEP, CONFIDENCE, audited.tolist())
    result = search.run(order)
    values, predicted = recorded.values, recorded.values.copy()
    pruned = np.array(sorted(search.predictions), dtype=int)
    found = np.array([search.predictions[each] for each in pruned]).reshape(-1, 3)
    predicted[pruned] = found[:, 0]
    is_inside = np.abs(values[pruned] - found[:, 0]) <= INTERVAL_SCALES * found[:, 1]
    is_stopped = np.isin(pruned, sorted(search.pruned))
    stopped, lost = pruned[is_stopped], pruned[~is_stopped]
    kept = top_count(KEEP, count)
    threshold = np.sort(np.delete(values, pruned))[kept - 1]
    is_lost = np.asarray(values < threshold)
    bound = bound_lost(len(lost), len(stopped), int(is_lost[stopped].sum()))
    residuals = np.full(count, np.nan)
    residuals[audited] = (values - predicted)[audited]
    estimates: list[bool] = []
    truth = _table(recorded, values)
    if len(stopped) >= MIN_STOPPED:
        estimates = _cover(
            truth,
            [
                estimate_effect(_table(recorded, predicted), each, residuals, len(stopped))
                for each in truth.list_contrasts()
            ],
        )
    known = values.copy()
    known[lost] = np.nan
    return AuditedReplay(
        cost=result.cost,
        recall=result.recall,
        stated=1 - float(found[:, 2].sum()) / kept,
        has_alarm=any(look.is_alarm for look in search.looks.values()),
        inside=int(is_inside[~is_stopped].sum()),
        pruned=len(lost),
        audited_inside=int(is_inside[is_stopped].sum()),
        stopped=len(stopped),
        bound_holds=bool(is_lost[lost].sum() <= bound) if audit else None,
        survivors=_cover(truth, _table(recorded, known).compute_effects()),
        estimates=estimates,
    )


def _table(recorded: RecordedCurves, values: Floats) -> FactorialTable:
    frame = pd.DataFrame(recorded.params).assign(value=values)
    return FactorialTable.from_frame(frame, list(recorded.params[0]))


def _cover(truth: FactorialTable, effects: Sequence[Effect | None]) -> list[bool]:
    """Return whether the interval of each effect has the effect of the whole grid."""
    return [
        effect.low <= truth.compute_effect(effect.contrast).mean <= effect.high
        for effect in effects
        if effect is not None
    ]


def _replay_kind(kind: str, audit: int, seed: int) -> AuditedReplay:
    path = Path(kind)
    recorded = RecordedCurves.read(path) if path.is_file() else simulate_curves(kind, seed)
    return replay_audited(recorded, audit, seed)


def measure(searches: int = 10) -> Iterator[str]:
    """Yield a table: without and with audited trials, on each kind of curves.

    Args:
        searches: number of simulated searches of each kind.
    """
    os.environ |= {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS")}
    published = published_file()
    kinds = [*KINDS, *([str(published)] if published else [])]
    yield f"{searches} searches of 192 simulated trials each, best tenth to be kept, stated 95%"
    yield (
        f"  {'curves':24} {'audited':>7} {'cost':>6} {'recall':>7} {'worst':>6} {'inside':>7} "
        f"{'of audited':>11} {'alarms':>7} {'bound':>6} {'survivors':>10} {'estimates':>10}"
    )
    with ProcessPoolExecutor(cores(), multiprocessing.get_context("spawn")) as pool:
        for kind in kinds:
            for audit in (0, AUDIT):
                run = partial(_replay_kind, kind, audit)
                yield _format(Path(kind).name, audit, list(pool.map(run, range(searches))))


def _format(kind: str, audit: int, results: Sequence[AuditedReplay]) -> str:
    def share(part: float, whole: float) -> str:
        return f"{part / whole:.3f}" if whole else "-"

    bounds = [each.bound_holds for each in results if each.bound_holds is not None]
    survivors = [each for result in results for each in result.survivors]
    estimates = [each for result in results for each in result.estimates]
    inside = share(sum(r.inside for r in results), sum(r.pruned for r in results))
    of_audited = share(sum(r.audited_inside for r in results), sum(r.stopped for r in results))
    return (
        f"  {kind[:24]:24} {audit:7} {np.mean([r.cost for r in results]):6.3f} "
        f"{np.mean([r.recall for r in results]):7.3f} {min(r.recall for r in results):6.3f} "
        f"{inside:>7} {of_audited:>11} {sum(r.has_alarm for r in results):4}/{len(results):<2} "
        f"{share(sum(bounds), len(bounds)):>6} {share(sum(survivors), len(survivors)):>10} "
        f"{share(sum(estimates), len(estimates)):>10}"
    )
