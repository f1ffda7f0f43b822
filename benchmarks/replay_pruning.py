"""``python -m benchmarks.replay_pruning [FILE …]``: simulate pruners on complete searches.

The curves are simulated (:mod:`benchmarks.simulated_curves`), or recorded: a file is a CSV,
compressed or not, with ``study.curves`` and the value and the parameters of each trial in every row
(``docs/how-to/analyse.md``). Trials start in random order, several at a time and equally fast, and
follow their curves.
"""

import heapq
import itertools
import math
import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click
import numpy as np
import optuna
import pandas as pd
from optuna.pruners import PercentilePruner
from optuna.samplers import RandomSampler
from optuna.trial import TrialState

from benchmarks.simulated_curves import FAMILIES, repeat_curves, simulate_curves
from search.pruning.audited_trials import DIVISOR, number_architectures
from search.worker.cpu_budget import cores
from studies.best import top_count
from studies.space import replicate_of
from tests.simulations.pruned_search import RecordedCurves, Replay, ReplayResult

COLUMNS = ("number", "step", "loss", "value")
"""Columns of a file next to the parameters: trial, step, smoothed loss, value of the trial."""

KEEP = 0.1
"""Share of the trials that are to be kept, as by default."""

CONFIDENCE = 0.95
"""Confidence of the pruner, as by default."""

AUDIT = 20
"""Number of audited architectures, at most a tenth of all, as by default."""

CHECKS = 20
"""Calls of Optuna's pruner per training: each takes milliseconds."""


def read_curves(path: Path, nuisance: Sequence[str] = ()) -> RecordedCurves:
    """Read a CSV file of curves, see the description of this module.

    Raises:
        click.BadParameter: if the file is missing, malformed, has gaps, or lacks a nuisance
            parameter.
    """
    try:
        table = pd.read_csv(path)
        curves = table.pivot(index="number", columns="step", values="loss")
        trials = table.drop_duplicates("number").set_index("number").sort_index()
        trials = trials.drop(columns=["step", "loss"])
        values = trials.pop("value").to_numpy(float)
        losses = curves.to_numpy(float)
        is_complete = np.isfinite(losses).all() and np.isfinite(values).all()
        if len(curves.columns) < 2 or not is_complete:
            raise ValueError("curves with gaps")
    except (OSError, ValueError, KeyError) as error:
        raise click.BadParameter(
            f"cannot read {path} ({error}): expected a CSV file with the columns "
            f"{', '.join(COLUMNS)} and a column for each parameter"
        ) from error
    if not set(nuisance) <= set(trials):
        raise click.BadParameter(f"{path} has only the parameters {', '.join(map(str, trials))}")
    names = [str(name) for name in trials]
    params = [dict(zip(names, row, strict=True)) for row in trials.to_numpy(object).tolist()]
    return RecordedCurves(params, curves.columns.to_numpy(int), losses, values, nuisance)


# ------------------------------------------------------------------ our pruner


@dataclass(frozen=True)
class AuditedReplay(ReplayResult):
    """Result of a simulated search with audited trials.

    Attributes:
        stated: share of the best tenth that is complete, as the predictions at the time of pruning
            have it.
    """

    stated: float


def replay_audited(recorded: RecordedCurves, seed: int, concurrent: int = 4) -> AuditedReplay:
    """Simulate a search with some audited architectures.

    Args:
        recorded: curves of the trials.
        seed: seed of the order of the trials and of the sample.
        concurrent: number of trials trained at a time.
    """
    random = np.random.default_rng(seed)
    owners = number_architectures(recorded.params, recorded.nuisance)
    total = int(owners.max()) + 1
    order = order_trials(recorded, random)
    drawn = random.choice(total, min(AUDIT, total // DIVISOR), replace=False)
    audited = np.isin(owners, drawn)
    search = Replay(recorded, concurrent, KEEP, CONFIDENCE, np.flatnonzero(audited).tolist())
    result = search.run(order)
    # The runs of an architecture at its nuisance values are pruned together.
    candidates = number_architectures(recorded.params, ())
    pruned = {
        candidates[trial]: keep
        for trial, (_, _, keep) in search.predictions.items()
        if not audited[trial]
    }
    kept = top_count(KEEP, int(candidates.max()) + 1)
    return AuditedReplay(**vars(result), stated=1 - sum(pruned.values()) / kept)


def order_trials(recorded: RecordedCurves, random: np.random.Generator) -> list[int]:
    """Return a random order in which every architecture gets a run before any gets two."""
    order = random.permutation(len(recorded.values)).tolist()
    return sorted(order, key=lambda trial: replicate_of(recorded.params[trial]))


# ------------------------------------------------------------------ other pruners


def keep_best_at_first_rung(recorded: RecordedCurves) -> ReplayResult:
    """Train all trials to the first rung, and those to the end that are to be kept.

    The baseline of Egele et al., *Is One Epoch All You Need For Multi-Fidelity Hyperparameter
    Optimization?*, arXiv:2307.15422, 2023.
    """
    count = len(recorded.values)
    kept = top_count(KEEP, count)
    complete = np.zeros(count, dtype=bool)
    complete[np.argsort(recorded.losses[:, 0], kind="stable")[:kept]] = True
    first = recorded.rungs[0].step
    steps = count * first + kept * (recorded.end - first)
    return ReplayResult.summarize(recorded, KEEP, complete, steps)


def replay_percentile(
    recorded: RecordedCurves, order: Sequence[int], concurrent: int
) -> ReplayResult:
    """Simulate a search with Optuna's ``PercentilePruner(25)``, which stops trials for good.

    It is called at most :data:`CHECKS` times per trial; earlier log points are reported before.

    Args:
        recorded: curves of the trials.
        order: order in which trials start.
        concurrent: number of trials trained at a time.
    """
    pruner = PercentilePruner(25.0, n_warmup_steps=round(2 * recorded.end / 11))
    study = optuna.create_study(study_name="replay", sampler=RandomSampler(), pruner=pruner)
    places = np.linspace(0, len(recorded.steps) - 1, CHECKS + 1)[1:].astype(int)
    ends = [0, *np.unique(places + 1).tolist()]  # log points before each call, and the end
    stops = [0, *(int(recorded.steps[end - 1]) for end in ends[1:])]
    waiting = list(reversed(order))
    running: list[tuple[int, int, int, int, optuna.Trial]] = []
    count = itertools.count()
    complete = np.zeros(len(order), dtype=bool)
    now = steps = 0
    while waiting or running:
        while waiting and len(running) < concurrent:
            start = now + stops[1], next(count), waiting.pop(), 1, study.ask()
            heapq.heappush(running, start)
        now, _, index, stop, trial = heapq.heappop(running)
        for log_point in range(ends[stop - 1], ends[stop]):
            trial.report(float(recorded.curves[index, log_point]), int(recorded.steps[log_point]))
        if stop == len(stops) - 1:
            study.tell(trial, float(recorded.values[index]))
            complete[index] = True
        elif trial.should_prune():
            study.tell(trial, state=TrialState.PRUNED)
        else:
            at = now + stops[stop + 1] - stops[stop]
            heapq.heappush(running, (at, next(count), index, stop + 1, trial))
            continue
        steps += stops[stop]
    return ReplayResult.summarize(recorded, KEEP, complete, steps)


# ------------------------------------------------------------------ the table

OURS = "ours"
ONE_LOOK = "best after a look"
PERCENTILE = "Percentile(25)"
PRUNERS = (OURS, ONE_LOOK, PERCENTILE)

HEAD = (
    f"{'curves':24} {'pruner':18} {'parallel':>8} {'cost':>6} {'recall':>7} {'error':>6} "
    f"{'worst':>6} {'winner':>7} {'stated':>7}"
)


def replay(
    curves: str,
    pruner: str,
    concurrent: int,
    seed: int,
    nuisance: Sequence[str] = (),
    replicates: int = 1,
) -> ReplayResult:
    """Simulate one search with the named pruner, on simulated curves or those of a file.

    Of a file the first ``replicates`` are taken.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if curves in FAMILIES:
        recorded = simulate_curves(curves, seed)
        if replicates > 1:
            recorded = repeat_curves(recorded, replicates, seed)
    else:
        recorded = read_curves(Path(curves), nuisance).select(replicates)
    if pruner == OURS:
        return replay_audited(recorded, seed, concurrent)
    if pruner == ONE_LOOK:
        return keep_best_at_first_rung(recorded)
    order = order_trials(recorded, np.random.default_rng(seed))
    return replay_percentile(recorded, order, concurrent)


def _format_row(curves: str, pruner: str, concurrent: int, results: Sequence[ReplayResult]) -> str:
    recalls = [result.recall for result in results]
    error = np.std(recalls, ddof=1) / math.sqrt(len(recalls)) if len(recalls) > 1 else math.nan
    row = (
        f"{Path(curves).name[:24]:24} {pruner:18} {concurrent:8} "
        f"{np.mean([result.cost for result in results]):6.3f} {np.mean(recalls):7.3f} "
        f"{error:6.3f} {min(recalls):6.3f} "
        f"{sum(result.has_winner for result in results):3}/{len(results):<3}"
    )
    stated = [result.stated for result in results if isinstance(result, AuditedReplay)]
    return f"{row} {np.mean(stated):7.3f}" if stated else row


@click.command()
@click.argument("files", nargs=-1, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--pruner",
    "pruners",
    type=click.Choice(PRUNERS),
    multiple=True,
    default=PRUNERS,
    show_default=True,
    help="Pruner to simulate; may be repeated.",
)
@click.option(
    "--searches",
    type=click.IntRange(min=1),
    default=4,
    show_default=True,
    help="Searches of each row, of other curves or orders.",
)
@click.option(
    "--concurrent",
    type=click.IntRange(min=1),
    multiple=True,
    default=[4],
    show_default=True,
    help="Number of concurrent trials; may be repeated.",
)
@click.option(
    "--nuisance",
    multiple=True,
    help="Parameter over which the recall judges each architecture at its best; may be repeated.",
)
@click.option(
    "--replicates",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Runs of each architecture.",
)
def main(
    files: tuple[Path, ...],
    pruners: tuple[str, ...],
    searches: int,
    concurrent: tuple[int, ...],
    nuisance: tuple[str, ...],
    replicates: int,
) -> None:
    """Simulate pruners on recorded curves, without a file on simulated ones."""
    # Numerical libraries with several threads per process would compete for the cores.
    os.environ |= {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS")}
    for path in files:
        read_curves(path, nuisance)  # refuses a bad one at once
    names = [str(path) for path in files] or [*FAMILIES]
    click.echo(HEAD)
    with ProcessPoolExecutor(cores(), multiprocessing.get_context("spawn")) as pool:
        for curves, pruner, parallel in itertools.product(names, pruners, concurrent):
            simulate = partial(
                replay, curves, pruner, parallel, nuisance=nuisance, replicates=replicates
            )
            results = list(pool.map(simulate, range(searches)))
            click.echo(_format_row(curves, pruner, parallel, results))


if __name__ == "__main__":
    main()
