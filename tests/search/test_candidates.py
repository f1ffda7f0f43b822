"""All runs of an architecture stop or train on together, whatever happens to workers."""

import itertools
import random
from collections import defaultdict

import numpy as np
from optuna.trial import TrialState

from studies.attributes import FAILURE, Failure
from studies.storage.trials import TrialStatus
from tests.simulations.pruned_search import RecordedCurves, Replay

RUNS = 3

ARCHITECTURES = [
    dict(zip(("a", "b", "c", "size"), values, strict=True))
    for values in itertools.product([False, True], [False, True], [False, True], [8, 16])
]

STEPS, LOG_EVERY = 1000, 40


def simulate(seed=0):
    """Return curves of three runs of each architecture, all runs of a replicate shifted alike."""
    noise = np.random.default_rng(seed)
    steps = np.arange(LOG_EVERY, STEPS + 1, LOG_EVERY)
    params, curves = [], []
    for replicate in range(RUNS):
        shift = noise.normal(0, 0.05)
        for place, architecture in enumerate(ARCHITECTURES):
            value = 2 + 0.04 * place + shift + noise.normal(0, 0.02)
            params.append({**architecture, "replicate": replicate})
            curves.append(value + 1.2 * np.exp(-steps / 150) + noise.normal(0, 0.01, len(steps)))
    losses = np.array(curves)
    return RecordedCurves(params, steps, losses, losses[:, -1])


class DisturbedReplay(Replay):
    """A search whose workers are killed at random, and in which some trials diverge."""

    random = random.Random(0)

    def _reach_rung(self, number, now):
        trial = self.trials[number]
        event = self.random.random()
        if event < 0.15:  # its lease expires: it resumes from its last checkpoint
            trial.state = TrialState.WAITING
            self.waiting.append(number)
        elif event < 0.18:
            trial.state, trial.attributes = TrialState.FAIL, {FAILURE: Failure.DIVERGED}
        else:
            super()._reach_rung(number, now)


def assert_runs_end_alike(replay):
    """Return the state in which the runs of each architecture ended that did not diverge."""
    found = defaultdict(set)
    for trial in replay.trials:
        if trial.status is not TrialStatus.DIVERGED:
            found[trial.number % len(ARCHITECTURES)].add(trial.status)
    ends = {place: state for place, (state,) in found.items()}
    assert {*ends.values()} == {TrialStatus.COMPLETE, TrialStatus.PRUNED}
    return ends


def test_search_keeps_the_architectures_of_the_best_means():
    recorded = simulate()
    replay = Replay(recorded, 1, 0.1, 0.9)
    result = replay.run(range(len(recorded.params)))
    assert result.recall == 1
    assert result.cost < 0.5
    assert_runs_end_alike(replay)


def test_all_runs_of_an_architecture_end_alike_although_workers_are_killed():
    recorded = simulate()
    audited = [n for n in range(len(recorded.params)) if n % len(ARCHITECTURES) in (7, 13)]
    replay = DisturbedReplay(recorded, 4, 0.1, 0.9, audited)
    replay.run(range(len(recorded.params)))
    ends = assert_runs_end_alike(replay)
    assert ends[7] == ends[13] == TrialStatus.COMPLETE
    # Decisions about an audited architecture are about all of its runs.
    assert {replay.trials[n].audit for n in audited[::2]} == {replay.trials[audited[0]].audit}
