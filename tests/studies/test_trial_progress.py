"""Progress of trials for the pruner: what may have changed is read again, and nothing else."""

import math
from functools import partial

import pytest
from helpers import DatabaseUse, create_small_study
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState

from studies.attributes import AuditState, Failure
from studies.storage.create_study import PlannedTrial, extend_study
from studies.storage.curves import read_last_losses
from studies.storage.open import open_storage
from studies.storage.trial_progress import ProgressReader, Rung
from studies.storage.trial_rows import AuditDecision

RUNGS = [Rung(20, 0), Rung(40, 30), Rung(80, 60)]
STEPS = range(10, 101, 10)


def test_progress_contains_the_mean_losses_up_to_a_gap(sqlite_url):
    storage = open_storage(sqlite_url)
    study_id = create_small_study(storage, 1)
    trial_id = storage.claim(study_id, "me/1")
    reader = ProgressReader(storage, study_id, RUNGS)
    for curve, losses in (
        ({10: 9.0, 20: 7.0, 30: 5.0, 35: 4.0, 40: 3.0, 70: 2.0}, [8.0, 3.5, math.nan]),
        # Values that are not finite are left out of the mean, but the rung is reached.
        ({10: 9.0, 20: math.nan}, [9.0, math.nan, math.nan]),
        # A curve with a gap ends before it.
        ({20: 7.0} | dict.fromkeys(range(50, 81, 10), 1.0), [7.0, math.nan, math.nan]),
        # A task's first target may come after a rung.
        (dict.fromkeys(range(50, 81, 10), 1.0), [1.0, 1.0, 1.0]),
        ({40: 3.0}, [3.0, 3.0, math.nan]),
    ):
        storage.report(trial_id, "me/1", curve, replace_all=True)
        (trial,) = reader.read()
        assert trial.losses == pytest.approx(losses, nan_ok=True)
    assert [trial.losses for trial in ProgressReader(storage, study_id, []).read()] == [[]]


def test_new_trials_and_decisions_about_audited_trials_are_read(url):
    storage = open_storage(url)
    study_id = create_small_study(storage, 2)
    reader = ProgressReader(storage, study_id, RUNGS)
    assert len(reader.read()) == 2
    choices = {"x": CategoricalDistribution(tuple(range(20)))}
    planned = [PlannedTrial({"x": 10}, is_audited=True)]
    assert extend_study(storage, study_id, {}, {}, choices, planned)
    trials = reader.read()
    assert [trial.audit for trial in trials] == [None, None, AuditState()]
    decided = AuditState(rungs=3, pruned=True)
    decision = AuditDecision(AuditState(), decided)
    for stored in ([trials[2].trial_id], []):  # the second decision finds another than expected
        assert storage.write_audit({trials[2].trial_id: decision}) == stored
    assert reader.read()[2].audit == decided


def measure_worker(url, trials):
    """Return statements and rows of all that a worker does once half of the trials have ended."""
    storage = open_storage(url)
    study_id = create_small_study(storage, trials, f"{trials} trials")
    reader, end = ProgressReader(storage, study_id, RUNGS), (TrialState.COMPLETE, 1.0, {})
    for _ in range(trials // 2):
        finished = storage.claim(study_id, "me/1")
        storage.finish(finished, "me/1", *end, dict.fromkeys(STEPS, 1.0))
    reader.read()
    use, claimed = DatabaseUse(storage), []

    def claim(**which):
        claimed.append(storage.claim(study_id, "me/2", **which))

    yield use.measure(claim)
    yield use.measure(lambda: storage.report(claimed[0], "me/2", {10: 1.0, 20: 2.0}))
    statements, rows = use.measure(reader.read)
    yield statements, rows - trials  # besides the state of each trial
    yield use.measure(lambda: storage.pause(claimed[0], "me/2", {"rung": 20}, {20: 1.0}))
    yield use.measure(lambda: claim(paused_ids=[claimed[0]]))
    yield use.measure(lambda: storage.requeue(claimed[0], "me/2", Failure.INTERRUPTED))
    yield use.measure(claim)
    yield use.measure(lambda: storage.finish(claimed[0], "me/2", *end))
    assert claimed == 3 * [claimed[0]]


def test_statements_and_rows_of_a_worker_do_not_depend_on_the_number_of_trials(sqlite_url):
    """Curves that have not changed are not read again."""
    few, many = ([*measure_worker(sqlite_url, trials)] for trials in (20, 100))
    assert few == many
    assert few[2][1] == 1, "the loss of the trial that has reached a rung"


def test_last_losses_are_read_without_the_curves(sqlite_url):
    storage = open_storage(sqlite_url)
    study_id = create_small_study(storage, 5)
    first, second, _ = (storage.claim(study_id, "me/1") for _ in range(3))
    use, read = DatabaseUse(storage), partial(read_last_losses, storage, study_id)
    before = use.measure(read)
    storage.report(first, "me/1", {step: 100.0 / step for step in STEPS})
    storage.report(second, "me/1", {10: 3.0, 20: float("nan")})
    assert use.measure(read) == before
    found = read()
    assert [(last.number, last.params, last.step) for last in found] == [
        (0, {"x": 0}, 100),
        (1, {"x": 1}, 20),
        (2, {"x": 2}, 0),
    ]
    losses = [last.loss for last in found]
    assert losses[0] == 1.0
    assert losses[1] != losses[1], "not a number"
    assert losses[2] is None
