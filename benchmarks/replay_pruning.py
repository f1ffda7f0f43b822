"""``python -m benchmarks.replay_pruning FILE …``: what pruners would make of recorded curves.

A file is a CSV, compressed or not, with a row a point: a column for each parameter, ``min_loss``
(its value), and its curve as ``loss_50``, ``loss_100`` …, as ``python -m reports STUDY --curves
FILE`` writes it. Trials are begun in random orders, some at a time, all equally fast; what they
come to is what was recorded.
"""

import heapq
import itertools
import math
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

from benchmarks.recorded_curves import Recorded, TrialResult
from search.pruning.policy import PruningPolicy, StudyState, TrialStage, ahead_of
from search.pruning.predictions import Prediction
from search.pruning.pruner import TopFractionPruner
from search.worker.cpu_budget import cores
from studies.config import top_count

LOOKS = 20
"""How often in a training Optuna's own pruners are asked: each answer takes them milliseconds."""


class Replay:
    """A search of ours: points begun, paused, gone on with, pruned, completed.

    Args:
        recorded: the points.
        concurrent: how many are trained at a time.
        keep: see :class:`search.pruning.policy.PruningPolicy`.
        confidence: see there.
    """

    def __init__(self, recorded: Recorded, concurrent: int, keep: float, confidence: float) -> None:
        self.recorded = recorded
        self.concurrent = concurrent
        self.keep = keep
        self.confidence = confidence
        count = len(recorded.values)
        self.stages = [TrialStage.FRESH] * count
        self.losses = np.full_like(recorded.losses, math.nan)
        self.values = np.full(count, math.nan)
        self.stops = [0, *(rung.step for rung in recorded.rungs), recorded.end]
        self.came_to = [0] * count
        self.ahead = ahead_of(recorded.rungs, recorded.end)
        self.known: Prediction | None = None
        self.running: list[tuple[int, int, int]] = []
        self.steps = self.begun = 0

    def run(self, order: Sequence[int]) -> TrialResult:
        """Run the search, its points begun in this order."""
        fresh = list(reversed(order))
        now = 0
        while True:
            while len(self.running) < self.concurrent:
                chosen = [fresh.pop()] if fresh else self.judge().wanted[:1]
                if not chosen:
                    break
                self.begun += 1
                self._advance(chosen[0], now)
            if not self.running:
                break
            now, _, point = heapq.heappop(self.running)
            self._arrive(point, now)
        complete = np.array([stage is TrialStage.COMPLETE for stage in self.stages])
        return TrialResult.of(self.recorded, self.keep, complete, self.steps, self.begun)

    def judge(self) -> PruningPolicy:
        """Return what our pruner says now."""
        standing = StudyState(
            self.stages, self.losses, self.values, self.recorded.factors, self.ahead
        )
        judgement = PruningPolicy(standing, self.keep, self.confidence, self.known)
        if TrialStage.FRESH not in self.stages:
            self.known = judgement.forecast  # until somebody arrives
        return judgement

    def _advance(self, point: int, now: int) -> None:
        """Train a point to where it is looked at next."""
        self.stages[point] = TrialStage.RUNNING
        length = self.stops[self.came_to[point] + 1] - self.stops[self.came_to[point]]
        self.steps += length
        heapq.heappush(self.running, (now + length, self.steps, point))

    def _arrive(self, point: int, now: int) -> None:
        self.known = None
        rung = self.came_to[point]
        self.came_to[point] += 1
        if rung == len(self.recorded.rungs):
            self.stages[point] = TrialStage.COMPLETE
            self.values[point] = self.recorded.values[point]
            return
        self.losses[point, rung] = self.recorded.losses[point, rung]
        judgement = self.judge()
        if judgement.goes_on(point):
            self._advance(point, now)
        elif judgement.is_hopeless(point):
            self.stages[point] = TrialStage.PRUNED
        else:
            self.stages[point] = TrialStage.PAUSED


def replay_in_optuna(
    recorded: Recorded,
    pruner: BasePruner,
    looks: Sequence[int],
    order: Sequence[int],
    concurrent: int,
    keep: float,
) -> TrialResult:
    """Run a search with any pruner of plain Optuna's, which stops trials and does not pause them.

    Args:
        recorded: the points.
        pruner: to be asked.
        looks: the places of the log points at which it is asked; whatever it has not seen of a
            curve by then, it is told.
        order: in which points are begun.
        concurrent: how many are trained at a time.
        keep: the fraction of the points whose recall is counted.
    """
    study = optuna.create_study(study_name="replay", pruner=pruner)
    storage = study._storage
    distributions: dict[str, BaseDistribution] = {
        name: CategoricalDistribution(tuple(dict.fromkeys(p[name] for p in recorded.points)))
        for name in recorded.points[0]
    }
    stops = [*looks, len(recorded.steps) - 1]
    waiting = list(reversed(order))
    running: list[tuple[int, int, int, int]] = []
    count = itertools.count()
    complete = np.zeros(len(order), dtype=bool)
    now = steps = 0
    while waiting or running:
        while waiting and len(running) < concurrent:
            point = waiting.pop()
            study.add_trial(
                create_trial(
                    state=TrialState.RUNNING,
                    params=recorded.points[point],
                    distributions=distributions,
                )
            )
            trial_id = study.get_trials(deepcopy=False)[-1]._trial_id
            at = now + int(recorded.steps[stops[0]])
            heapq.heappush(running, (at, next(count), point, trial_id))
        now, _, point, trial_id = heapq.heappop(running)
        come_to = len(storage.get_trial(trial_id).intermediate_values)
        stop = next(stop for stop in stops if stop >= come_to)
        for place in range(come_to, stop + 1):
            loss = float(recorded.curves[point, place])
            storage.set_trial_intermediate_value(trial_id, int(recorded.steps[place]), loss)
        if stop == stops[-1]:
            value = [float(recorded.values[point])]
            storage.set_trial_state_values(trial_id, TrialState.COMPLETE, value)
            complete[point] = True
        elif pruner.prune(study, storage.get_trial(trial_id)):
            storage.set_trial_state_values(trial_id, TrialState.PRUNED)
        else:
            following = stops[stops.index(stop) + 1]
            at = now + int(recorded.steps[following] - recorded.steps[stop])
            heapq.heappush(running, (at, next(count), point, trial_id))
            continue
        steps += int(recorded.steps[stop])
    return TrialResult.of(recorded, keep, complete, steps, len(order))


def optunas_pruners(end: int) -> dict[str, Callable[[], BasePruner]]:
    """Return Optuna's four as they are set for a training of so many steps."""
    return {
        "SuccessiveHalving": partial(
            SuccessiveHalvingPruner, min_resource=max(1, round(end / 11)), reduction_factor=2
        ),
        "Percentile(25)": partial(PercentilePruner, 25.0, n_warmup_steps=round(2 * end / 11)),
        "Median": MedianPruner,
        "Hyperband": partial(
            HyperbandPruner, min_resource=max(1, round(end / 11)), max_resource=end
        ),
    }


OURS, OURS_STOPPING = "ours", "ours, in Optuna"
PRUNERS = (OURS, OURS_STOPPING, *optunas_pruners(1))


def replay(
    path: Path, pruner: str, concurrent: int, order: int, keep: float, confidence: float
) -> TrialResult:
    """Run one search: by our pruner, by ours where it can only stop, or by one of Optuna's."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    recorded = Recorded.read(path)
    points = np.random.default_rng(order).permutation(len(recorded.values)).tolist()
    if pruner == OURS:
        return Replay(recorded, concurrent, keep, confidence).run(points)
    if pruner == OURS_STOPPING:
        asked = [int(np.searchsorted(recorded.steps, rung.step)) for rung in recorded.rungs]
        log_every = int(recorded.steps[0])
        ours = TopFractionPruner(
            recorded.end, log_every, keep=keep, confidence=confidence, planned=len(points)
        )
        return replay_in_optuna(recorded, ours, asked, points, concurrent, keep)
    last = len(recorded.steps) - 1
    looks = sorted({int(place) for place in np.linspace(0, last, LOOKS + 1)[1:-1]})
    theirs = optunas_pruners(recorded.end)[pruner]()
    return replay_in_optuna(recorded, theirs, looks, points, concurrent, keep)


def lines(
    path: Path,
    pruners: Sequence[str],
    orders: int,
    concurrency: Sequence[int],
    keep: float,
    confidence: float,
) -> Iterator[str]:
    """Yield a line for each pruner and number of concurrent trials."""
    recorded = Recorded.read(path)
    count = len(recorded.values)
    yield (
        f"{path.name}: {count} points, {recorded.end:,} steps, the best {top_count(keep, count)}, "
        f"{orders} orders"
    )
    yield (
        f"  {'pruner':18} {'at a time':>9} {'cost':>6} {'recall':>7} {'worst':>6} {'best 10':>8} "
        f"{'winner':>7} {'complete':>9} {'begun':>6}"
    )
    work = itertools.product(pruners, concurrency)
    # Two libraries of linear algebra with two threads each would be in each other's way.
    os.environ |= {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS")}
    with ProcessPoolExecutor(cores(), multiprocessing.get_context("spawn")) as pool:
        for pruner, concurrent in work:
            one = partial(replay, path, pruner, concurrent, keep=keep, confidence=confidence)
            found = list(pool.map(one, range(orders)))

            def mean(name: str, found: Sequence[TrialResult] = found) -> float:
                return float(np.mean([getattr(outcome, name) for outcome in found]))

            winners = sum(outcome.has_winner for outcome in found)
            yield (
                f"  {pruner:18} {concurrent:9} {mean('cost'):6.3f} {mean('recall'):7.3f} "
                f"{min(outcome.recall for outcome in found):6.3f} {mean('recall_of_ten'):8.3f} "
                f"{winners:3}/{orders:<3} {mean('complete'):9.3f} {mean('begun'):6.2f}"
            )


@click.command(help="Replay pruners on recorded curves, and print what they cost and keep.")
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
    help="To replay; may be repeated.",
)
@click.option("--orders", type=click.IntRange(min=1), default=20, show_default=True)
@click.option(
    "--concurrent",
    type=click.IntRange(min=1),
    multiple=True,
    default=(1, 4, 16, 64),
    show_default=True,
    help="Trials at a time; may be repeated.",
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
def main(
    files: tuple[Path, ...],
    pruners: tuple[str, ...],
    orders: int,
    concurrent: tuple[int, ...],
    keep: float,
    confidence: float,
) -> None:
    """Replay each file."""
    for path in files:
        for line in lines(path, pruners, orders, concurrent, keep, confidence):
            click.echo(line)
            sys.stdout.flush()


if __name__ == "__main__":
    main()
