"""``python -m benchmarks.replay_pruning FILE …``: simulate pruners on recorded curves.

A file is a CSV, compressed or not: ``study.curves`` with the value and the parameters of each trial
in every row (``docs/how-to/analyse.md``). Trials start in random order, several at a time and
equally fast, and follow their recorded curves.
"""

import heapq
import itertools
import math
import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import click
import numpy as np
import optuna
import pandas as pd
from optuna.pruners import (
    BasePruner,
    HyperbandPruner,
    MedianPruner,
    PercentilePruner,
    SuccessiveHalvingPruner,
)
from optuna.samplers import RandomSampler
from optuna.trial import FrozenTrial, TrialState

from search.pruning.regression import Floats
from search.worker.cpu_budget import cores
from studies.config import top_count
from tests.simulations.pruned_search import RecordedCurves, Replay, ReplayResult

COLUMNS = ("number", "step", "loss", "value")
"""Columns of a file next to the parameters: trial, step, smoothed loss, value of the trial."""

KEEP = 0.1
"""Share of the trials that are to be kept, as by default."""

CONFIDENCE = 0.95
"""Confidence of the pruner, as by default."""

CHECKS = 20
"""Calls of Optuna's pruners per training: each takes milliseconds."""


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
    return ReplayResult.summarize(recorded, KEEP, complete, steps, count + kept)


class ConformalPruner(BasePruner):
    """Pruner that bounds the expected share of trials that are good and pruned.

    The rule of the pruner of this name in OptunaHub (A. Noonan, package ``pruners/conformal``),
    with its defaults but for the first step. The first complete trials calibrate it: a trial is
    good if it ends within their best fifth, and its score is the most that its loss lies above the
    worst of these ends from the first step on. The threshold is a quantile of the scores, of which
    those of other trials are lowest (conformal risk control). A trial whose loss lies further above
    is pruned.

    Args:
        first_step: step before which no trial is pruned; losses fall so much before it that the
            threshold would be above all later ones.
        calibration: number of trials that are not pruned.
        level: bound of the share.
        good: share of the trials that are good.
    """

    def __init__(
        self, first_step: int, calibration: int = 60, level: float = 0.05, good: float = 0.2
    ) -> None:
        self._first_step = first_step
        self._calibration = calibration
        self._level = level
        self._good = good
        self._limit: float | None = None

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Return whether the last loss of a trial is above the limit; none before there is one."""
        if self._limit is None:
            complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
            if len(complete) < self._calibration:
                return False
            curves = [
                [
                    loss
                    for step, loss in finished.intermediate_values.items()
                    if step >= self._first_step
                ]
                for finished in complete
            ]
            self._limit = self._find_limit(np.array(curves[: self._calibration]))
        last = max(trial.intermediate_values)
        return last >= self._first_step and trial.intermediate_values[last] > self._limit

    def _find_limit(self, curves: Floats) -> float:
        """Return the loss above which a trial is pruned, from complete curves, (N, L)."""
        count, ends = len(curves), curves[:, -1]
        worst = float(np.sort(ends)[math.ceil(self._good * count) - 1])
        scores = np.where(ends <= worst, curves[:, :-1].max(axis=1) - worst, -math.inf)
        place = math.ceil((1 - self._level) * (count + 1)) - 1
        return worst + float(np.sort(scores)[place])


def replay_in_optuna(
    recorded: RecordedCurves,
    pruner: BasePruner,
    order: Sequence[int],
    concurrent: int,
) -> ReplayResult:
    """Simulate a search with a pruner of plain Optuna, which stops trials for good.

    It is called at most :data:`CHECKS` times per trial; earlier log points are reported before.

    Args:
        recorded: curves of the trials.
        pruner: pruner to simulate.
        order: order in which trials start.
        concurrent: number of trials trained at a time.
    """
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
    return ReplayResult.summarize(recorded, KEEP, complete, steps, len(order))


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


OURS, ONE_LOOK = "ours", "best after a look"
PRUNERS = (OURS, ONE_LOOK, *optuna_pruners(1))


def replay(
    path: Path,
    pruner: str,
    concurrent: int,
    order: int,
    nuisance: Sequence[str] = (),
) -> ReplayResult:
    """Simulate one search with the named pruner."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    recorded = read_curves(path, nuisance)
    trials = np.random.default_rng(order).permutation(len(recorded.values)).tolist()
    if pruner == OURS:
        return Replay(recorded, concurrent, KEEP, CONFIDENCE).run(trials)
    if pruner == ONE_LOOK:
        return keep_best_at_first_rung(recorded)
    baseline = optuna_pruners(recorded.end)[pruner]()
    return replay_in_optuna(recorded, baseline, trials, concurrent)


def _format_row(pruner: str, concurrent: int, results: Sequence[ReplayResult]) -> str:
    def mean(name: str) -> float:
        return float(np.mean([getattr(result, name) for result in results]))

    winners = sum(result.has_winner for result in results)
    return (
        f"  {pruner:18} {concurrent:9} {mean('cost'):6.3f} {mean('recall'):7.3f} "
        f"{min(result.recall for result in results):6.3f} {mean('recall_of_ten'):8.3f} "
        f"{winners:3}/{len(results):<3} {mean('complete'):9.3f} {mean('starts'):6.2f}"
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
    "--nuisance",
    multiple=True,
    help="Parameter over which the recall judges each architecture at its best; may be repeated.",
)
def main(
    files: tuple[Path, ...],
    pruners: tuple[str, ...],
    orders: int,
    concurrent: tuple[int, ...],
    nuisance: tuple[str, ...],
) -> None:
    """Print a table for each file: a line per pruner and number of concurrent trials."""
    # Numerical libraries with several threads per process would compete for the cores.
    os.environ |= {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS")}
    for path in files:
        recorded = read_curves(path, nuisance)
        count = len(recorded.best)
        among = f" of {count} architectures" if nuisance else ""
        click.echo(
            f"{path.name}: {len(recorded.values)} trials, {recorded.end:,} steps, "
            f"top {top_count(KEEP, count)}{among}, {orders} orders"
        )
        click.echo(
            f"  {'pruner':18} {'parallel':>9} {'cost':>6} {'recall':>7} {'worst':>6} "
            f"{'best 10':>8} {'winner':>7} {'complete':>9} {'starts':>6}"
        )
        with ProcessPoolExecutor(cores(), multiprocessing.get_context("spawn")) as pool:
            for pruner, parallel in itertools.product(pruners, concurrent):
                simulate = partial(replay, path, pruner, parallel, nuisance=nuisance)
                click.echo(_format_row(pruner, parallel, list(pool.map(simulate, range(orders)))))


if __name__ == "__main__":
    main()
