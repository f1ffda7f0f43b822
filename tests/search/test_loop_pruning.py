"""The pruner decides about values of a training loop of one's own, in both directions."""

import itertools
import math
from contextlib import closing
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from factories import distributions_of
from helpers import study_attributes
from optuna.study import StudyDirection
from optuna.trial import TrialState
from test_simulated_search import assert_runs_end_alike, simulate

from search.derive import list_combinations
from search.pruning.audited_trials import draw_audited
from search.pruning.scheduler import PauseResumeScheduler, compute_rungs
from search.status import format_status, read_status
from studies.attributes import KEEP_PROBABILITY, STEPS_PER_SECOND
from studies.config import StudyConfig
from studies.storage.edits import create_study
from studies.storage.leases import PendingWrite
from studies.storage.open import load_study, open_storage
from studies.storage.trials import StoredStudy, StoredTrial, TrialStatus
from tests.simulations.pruned_search import Replay

NAMES = {"a": "task", "b": "cell", "c": "optimizer", "size": "layers"}
"""Parameters of a loop that have names of those of networks."""


def configure(direction, steps=100, log_every=4, **settings):
    space = {"task": ["copy", "sort"], "cell": [1, 2, 3], "optimizer": [0.5, 1.5], "layers": [1, 2]}
    loop = {"metric": "reward", "steps": steps, "log_every": log_every, "direction": direction}
    pruning = {"enabled": True, "audit": 2, "confidence": 0.9}
    raw = {"loop": loop, "space": space, "pruning": pruning} | settings
    return StudyConfig.model_validate(raw)


class LoopReplay(Replay):
    """A search in a study with a loop."""

    def __init__(self, recorded, direction, audited):
        super().__init__(recorded, 4, 0.1, 0.9, audited)
        config = configure(direction, recorded.end, int(recorded.steps[0]))
        no_storage = SimpleNamespace(reader=lambda *_: None)
        self.scheduler = PauseResumeScheduler(no_storage, 0, config)
        self.run(range(len(self.trials)))


def rename(recorded):
    params = [{NAMES.get(name, name): row[name] for name in row} for row in recorded.params]
    return replace(recorded, params=params)


def summarize(replay, sign):
    """Return all that a search has decided, its predictions times a sign."""
    predictions = {
        trial: (sign * mean, *others) for trial, (mean, *others) in replay.predictions.items()
    }
    stages = [(trial.status, trial.audit) for trial in replay.trials]
    return stages, predictions, replay.paused_at, replay.looks, replay.steps


@pytest.mark.parametrize("runs", [1, pytest.param(3, marks=pytest.mark.extended)])
def test_values_to_maximize_are_pruned_as_their_negatives_to_minimize(runs):
    """Those are losses of networks, whose parameters have other names."""
    recorded = simulate().select(runs)
    audited = range(0, len(recorded.params), 16)
    networks = Replay(recorded, 4, 0.1, 0.9, audited)
    networks.run(range(len(recorded.params)))
    rewards = replace(rename(recorded), curves=-recorded.curves, values=-recorded.values)
    expected = summarize(networks, -1)
    assert summarize(LoopReplay(rewards, "maximize", audited), 1) == expected
    assert {TrialStatus.COMPLETE, TrialStatus.PRUNED} == {state for state, _ in expected[0]}


@pytest.mark.extended
def test_trials_that_log_nothing_at_a_rung_train_on_and_are_pruned():
    recorded = rename(simulate())
    lacking = np.random.default_rng(1).random(recorded.losses.shape) < 0.3
    recorded.losses[lacking] = math.nan
    replay = LoopReplay(recorded, "minimize", range(0, 48, 16))
    ends = assert_runs_end_alike(replay)
    assert ends[0] is TrialStatus.COMPLETE, "the best one"


# ------------------------------------------------------------------ a study in a database


def make_curve(params, place, sign):
    """Return a curve that a trial logs, and its value; the seventh one logs numbers that are none.

    A third of the trials log at every other step, and not all of them at a rung.
    """
    value = sign * (1 + 0.1 * params["cell"] - 0.5 * params["layers"] + place / 1000)
    steps = range(4, 101, 8 if place % 3 == 0 else 4)
    curve = {step: value + sign * 2 * math.exp(-step / 20) for step in steps}
    if place == 7:
        curve |= dict.fromkeys(range(8, 40, 4), math.nan) | {40: math.inf, 44: -math.inf}
    return curve, value


class Search:
    """A search by one worker, whose trials follow curves that are known."""

    def __init__(self, storage, direction, sign):
        config = configure(direction)
        params = list_combinations(config)
        trials = draw_audited([StoredTrial(row) for row in params], config, [])
        study = StoredStudy(
            direction,
            "reward",
            study_attributes(config),
            distributions_of(params),
            trials,
            StudyDirection[direction.upper()],
        )
        create_study(storage, study)
        self.study = load_study(storage, direction)
        self.config = config
        self.storage = storage
        self.scheduler = PauseResumeScheduler(storage, self.study._study_id, config)
        self.curves = [make_curve(row, place, sign) for place, row in enumerate(params)]
        self.stops = [*(rung.step for rung in compute_rungs(100, 4)), 100]
        self.reached = dict.fromkeys(range(len(params)), 0)

    def run(self):
        tokens = itertools.count()
        while True:
            token = f"me/{next(tokens)}"
            trial_id = self.storage.claim(self.study._study_id, token)
            trial_id = trial_id or self._resume(token)
            if trial_id is None:
                return
            self._train(trial_id, token)

    def _resume(self, token):
        while True:
            progress = self.scheduler.read()
            decisions = self.scheduler.select(progress, 1.0)
            self.scheduler.store(progress, decisions)
            if decisions.resumed:
                study_id = self.study._study_id
                return self.storage.claim(study_id, token, paused_ids=decisions.resumed)
            if not (decisions.audited or decisions.looks):
                return None

    def _train(self, trial_id, token):
        number = self.storage.get_trial_number_from_id(trial_id)
        curve, value = self.curves[number]
        for stop in self.stops[self.reached[number] :]:
            self.reached[number] += 1
            passed = {step: logged for step, logged in curve.items() if step <= stop}
            self.storage.flush([PendingWrite(trial_id, token, passed)])
            if stop == self.stops[-1]:
                recorded = {"seconds": 2.0, STEPS_PER_SECOND: 50.0, "remark": "mine"}
                self.storage.finish(trial_id, token, TrialState.COMPLETE, value, recorded)
                return
            progress = self.scheduler.read()
            decisions = self.scheduler.decide(progress, [trial_id])
            self.scheduler.store(progress, decisions)
            if (found := decisions.stops.get(trial_id)) is None:
                continue
            if found.is_final:
                end = TrialState.PRUNED, None, found.attributes
                self.storage.finish(trial_id, token, *end)
            else:
                self.storage.pause(trial_id, token, found.attributes)
            return


def test_search_in_a_database_is_the_same_in_both_directions(sqlite_url):
    with closing(open_storage(sqlite_url)) as storage:
        searches = [Search(storage, "minimize", 1), Search(storage, "maximize", -1)]
        for search in searches:
            search.run()
        losses, rewards = (search.study.trials for search in searches)
        statuses = [read_status(search.study, storage, search.config) for search in searches]
        texts = [
            format_status(status, search.config)
            for status, search in zip(statuses, searches, strict=True)
        ]
    assert [trial.state for trial in losses] == [trial.state for trial in rewards]
    assert {trial.state for trial in losses} == {TrialState.COMPLETE, TrialState.PRUNED}
    for one, other in zip(losses, rewards, strict=True):
        assert [*one.intermediate_values] == [*other.intermediate_values]
        assert one.user_attrs.get(KEEP_PROBABILITY) == other.user_attrs.get(KEEP_PROBABILITY)
        assert one.user_attrs.get("rung") == other.user_attrs.get("rung")
        assert ("predicted_value" in one.user_attrs) == ("reason" in one.user_attrs)
        if "reason" in one.user_attrs:
            assert one.user_attrs["predicted_value"] == -other.user_attrs["predicted_value"]
            assert "are expected below" in one.user_attrs["reason"]
            assert "are expected above" in other.user_attrs["reason"]
    best = min(range(len(losses)), key=lambda number: searches[0].curves[number][1])
    assert [status.best.number for status in statuses] == [best, best]
    assert statuses[1].best.value == -statuses[0].best.value
    assert "best      highest reward" in texts[1]
    assert losses[7].state in {TrialState.COMPLETE, TrialState.PRUNED}
