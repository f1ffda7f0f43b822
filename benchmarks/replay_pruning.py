"""``python -m benchmarks.replay_pruning FILE …``: simulate pruners on recorded curves.

A file is a CSV, compressed or not, as written by ``python -m reports STUDY --curves FILE``: one row
per trial with its parameters, its value ``min_loss`` and its curve ``loss_50``, ``loss_100`` ….
Trials start in random order, several at a time and equally fast, and follow their recorded curves.
"""

import heapq
import itertools
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import click
import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.pruners import (
    BasePruner,
    HyperbandPruner,
    MedianPruner,
    PercentilePruner,
    SuccessiveHalvingPruner,
)
from optuna.trial import TrialState, create_trial

from benchmarks.baseline_pruners import ConformalPruner, keep_best_at_first_rung
from benchmarks.recorded_curves import RecordedCurves, ReplayResult
from benchmarks.replayed_search import Replay
from search.pruning.pruner import TopFractionPruner
from search.worker.cpu_budget import cores
from studies.config import top_count

CHECKS = 20
"""Calls of Optuna's pruners per training: each takes milliseconds."""


def replay_in_optuna(
    recorded: RecordedCurves,
    pruner: BasePruner,
    checks: Sequence[int],
    order: Sequence[int],
    concurrent: int,
    keep: float,
) -> ReplayResult:
    """Simulate a search with a pruner of plain Optuna, which stops trials for good.

    Args:
        recorded: curves of the trials.
        pruner: pruner to simulate.
        checks: indices of the log points at which the pruner is called; earlier log points are
            reported before the call.
        order: order in which trials start.
        concurrent: number of trials trained at a time.
        keep: fraction of the trials whose recall is counted.
    """
    study = optuna.create_study(study_name="replay", pruner=pruner)
    storage = study._storage
    distributions: dict[str, BaseDistribution] = {
        name: CategoricalDistribution(tuple(dict.fromkeys(p[name] for p in recorded.params)))
        for name in recorded.params[0]
    }
    stops = [*checks, len(recorded.steps) - 1]
    waiting = list(reversed(order))
    running: list[tuple[int, int, int, int]] = []
    count = itertools.count()
    complete = np.zeros(len(order), dtype=bool)
    now = steps = 0
    while waiting or running:
        while waiting and len(running) < concurrent:
            index = waiting.pop()
            study.add_trial(
                create_trial(
                    state=TrialState.RUNNING,
                    params=recorded.params[index],
                    distributions=distributions,
                )
            )
            trial_id = study.get_trials(deepcopy=False)[-1]._trial_id
            at = now + int(recorded.steps[stops[0]])
            heapq.heappush(running, (at, next(count), index, trial_id))
        now, _, index, trial_id = heapq.heappop(running)
        reported = len(storage.get_trial(trial_id).intermediate_values)
        stop = next(stop for stop in stops if stop >= reported)
        for log_point in range(reported, stop + 1):
            loss = float(recorded.curves[index, log_point])
            storage.set_trial_intermediate_value(trial_id, int(recorded.steps[log_point]), loss)
        if stop == stops[-1]:
            value = [float(recorded.values[index])]
            storage.set_trial_state_values(trial_id, TrialState.COMPLETE, value)
            complete[index] = True
        elif pruner.prune(study, storage.get_trial(trial_id)):
            storage.set_trial_state_values(trial_id, TrialState.PRUNED)
        else:
            following = stops[stops.index(stop) + 1]
            at = now + int(recorded.steps[following] - recorded.steps[stop])
            heapq.heappush(running, (at, next(count), index, trial_id))
            continue
        steps += int(recorded.steps[stop])
    return ReplayResult.summarize(recorded, keep, complete, steps, len(order))


def optuna_pruners(end: int) -> dict[str, Callable[[], BasePruner]]:
    """Return factories of Optuna's pruners with settings for a training of ``end`` steps."""
    return {
        "SuccessiveHalving": partial(
            SuccessiveHalvingPruner, min_resource=max(1, round(end / 11)), reduction_factor=2
        ),
        "Percentile(25)": partial(PercentilePruner, 25.0, n_warmup_steps=round(2 * end / 11)),
        "Median": MedianPruner,
        "Hyperband": partial(
            HyperbandPruner, min_resource=max(1, round(end / 11)), max_resource=end
        ),
        "conformal": partial(ConformalPruner, round(end / 11)),
    }


OURS, OURS_WITHOUT_PAUSING, ONE_LOOK = "ours", "ours, in Optuna", "best after a look"
PRUNERS = (OURS, OURS_WITHOUT_PAUSING, ONE_LOOK, *optuna_pruners(1))


def replay(
    path: Path,
    pruner: str,
    concurrent: int,
    order: int,
    keep: float,
    confidence: float,
    nuisance: Sequence[str] = (),
) -> ReplayResult:
    """Simulate one search with the named pruner."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    recorded = RecordedCurves.read(path, nuisance)
    trials = np.random.default_rng(order).permutation(len(recorded.values)).tolist()
    if pruner == OURS:
        return Replay(recorded, concurrent, keep, confidence).run(trials)
    if pruner == ONE_LOOK:
        return keep_best_at_first_rung(recorded, keep)
    if pruner == OURS_WITHOUT_PAUSING:
        checks = [int(np.searchsorted(recorded.steps, rung.step)) for rung in recorded.rungs]
        log_every = int(recorded.steps[0])
        ours = TopFractionPruner(
            recorded.end,
            log_every,
            keep=keep,
            confidence=confidence,
            planned=len(trials),
        )
        return replay_in_optuna(recorded, ours, checks, trials, concurrent, keep)
    baseline = optuna_pruners(recorded.end)[pruner]()
    return replay_in_optuna(recorded, baseline, check_points(recorded), trials, concurrent, keep)


def check_points(recorded: RecordedCurves) -> list[int]:
    """Return the indices of the log points at which Optuna's pruners are called."""
    places = np.linspace(0, len(recorded.steps) - 1, CHECKS + 1)[1:-1]
    return sorted({int(index) for index in places})


def format_table(
    path: Path,
    pruners: Sequence[str],
    orders: int,
    concurrency: Sequence[int],
    keep: float,
    confidence: float,
    nuisance: Sequence[str] = (),
) -> Iterator[str]:
    """Yield a header and one line per pruner and number of concurrent trials."""
    recorded = RecordedCurves.read(path, nuisance)
    count = len(recorded.best)
    among = f" of {count} architectures" if nuisance else ""
    yield (
        f"{path.name}: {len(recorded.values)} trials, {recorded.end:,} steps, "
        f"top {top_count(keep, count)}{among}, {orders} orders"
    )
    yield (
        f"  {'pruner':18} {'parallel':>9} {'cost':>6} {'recall':>7} {'worst':>6} {'best 10':>8} "
        f"{'winner':>7} {'complete':>9} {'starts':>6}"
    )
    work = itertools.product(pruners, concurrency)
    # Numerical libraries with several threads per process would compete for the cores.
    os.environ |= {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS")}
    with ProcessPoolExecutor(cores(), multiprocessing.get_context("spawn")) as pool:
        for pruner, concurrent in work:
            simulate = partial(
                replay,
                path,
                pruner,
                concurrent,
                keep=keep,
                confidence=confidence,
                nuisance=nuisance,
            )
            results = list(pool.map(simulate, range(orders)))

            def mean(name: str, results: Sequence[ReplayResult] = results) -> float:
                return float(np.mean([getattr(result, name) for result in results]))

            winners = sum(result.has_winner for result in results)
            yield (
                f"  {pruner:18} {concurrent:9} {mean('cost'):6.3f} {mean('recall'):7.3f} "
                f"{min(result.recall for result in results):6.3f} {mean('recall_of_ten'):8.3f} "
                f"{winners:3}/{orders:<3} {mean('complete'):9.3f} {mean('starts'):6.2f}"
            )


@click.command(help="Simulate pruners on recorded curves and print their cost and recall.")
@click.argument(
    "files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
@click.option(
    "--pruner",
    "pruners",
    type=click.Choice(PRUNERS),
    multiple=True,
    default=PRUNERS,
    show_default=True,
    help="Pruner to simulate; may be repeated.",
)
@click.option("--orders", type=click.IntRange(min=1), default=20, show_default=True)
@click.option(
    "--concurrent",
    type=click.IntRange(min=1),
    multiple=True,
    default=(1, 4, 16, 64),
    show_default=True,
    help="Number of concurrent trials; may be repeated.",
)
@click.option(
    "--keep",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.1,
    show_default=True,
)
@click.option(
    "--confidence",
    type=click.FloatRange(0.5, 1, max_open=True),
    default=0.95,
    show_default=True,
)
@click.option(
    "--nuisance",
    multiple=True,
    help="Parameter over which the recall judges each architecture at its best; may be repeated.",
)
def main(
    files: tuple[Path, ...],
    pruners: tuple[str, ...],
    orders: int,
    concurrent: tuple[int, ...],
    keep: float,
    confidence: float,
    nuisance: tuple[str, ...],
) -> None:
    """Print a table for each file."""
    for path in files:
        for line in format_table(path, pruners, orders, concurrent, keep, confidence, nuisance):
            click.echo(line)
            sys.stdout.flush()


if __name__ == "__main__":
    main()
