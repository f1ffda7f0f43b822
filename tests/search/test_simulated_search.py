"""Searches that prune, simulated on recorded curves: what they keep, and what is forecast."""

import itertools
import random
from collections import defaultdict

import numpy as np
import pytest
from optuna.trial import TrialState

from benchmarks.simulated_curves import simulate_curves
from search.pruning.forecast import forecast_training
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

    def _reach_rung(self, number):
        trial = self.trials[number]
        event = self.random.random()
        if event < 0.15:  # its lease expires: it resumes from its last checkpoint
            trial.state = TrialState.WAITING
            self.waiting.append(number)
        elif event < 0.18:
            trial.state, trial.attributes = TrialState.FAIL, {FAILURE: Failure.DIVERGED}
        else:
            super()._reach_rung(number)


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


class ForecastReplay(Replay):
    """A search whose rest is forecast about fifty times."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.forecasts = []  # steps that were trained, and those that are forecast

    def read(self):
        progress = super().read()
        trained = self.steps - sum(end - self.now for end, _, _ in self.running)
        last = self.forecasts[-1][0] if self.forecasts else 0
        if trained >= last + self.recorded.end * len(self.trials) // 50:
            audited = np.array([each.audit is not None for each in progress.candidates])
            pace = np.array([float(len(each.runs)) for each in progress.candidates])
            policy = self.scheduler.build_policy(progress)
            found = forecast_training(policy, progress.state, audited, pace)
            if found is not None:
                self.forecasts.append((trained, found))
        return progress


@pytest.fixture(scope="module")
def search():
    """A search in half of a simulated grid, with four audited trials."""
    whole = simulate_curves("overfitting", 0)
    half = RecordedCurves(whole.params[::2], whole.steps, whole.curves[::2], whole.values[::2])
    replay = ForecastReplay(half, 4, 0.1, 0.95, range(0, len(half.values), 24))
    replay.run(np.random.default_rng(0).permutation(len(half.values)).tolist())
    return replay


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_forecast_is_near_what_a_search_trains(search, share):
    trained, found = next(each for each in search.forecasts if each[0] >= share * search.steps)
    left = search.steps - trained
    assert left / 2 <= found <= 2 * left
