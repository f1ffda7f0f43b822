"""Progress of trials for the pruner: what may have changed is read again, and nothing else."""

import math
from functools import partial

import pytest
from helpers import DatabaseUse, create_small_study
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState, create_trial

from studies.attributes import AuditState, Failure
from studies.storage.create_study import PlannedTrial, extend_study
from studies.storage.curves import read_last_losses
from studies.storage.open import load_study, open_storage
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


def test_new_trials_and_decisions_are_read_and_trials_of_plain_optuna_left_out(url):
    storage = open_storage(url)
    study_id = create_small_study(storage, 2)
    reader = ProgressReader(storage, study_id, RUNGS)
    assert len(reader.read()) == 2
    load_study(storage, "small").add_trial(create_trial(value=1.0))
    choices = {"x": CategoricalDistribution(tuple(range(20)))}
    planned = [PlannedTrial({"x": 10}, is_audited=True)]
    assert extend_study(storage, study_id, {}, {}, choices, planned)
    trials = reader.read()
    assert [trial.number for trial in trials] == [0, 1, 3]
    assert [trial.audit for trial in trials] == [None, None, AuditState()]
    decided = AuditState(rungs=3, pruned=True)
    decision = AuditDecision(AuditState(), decided)
    for stored in ([trials[2].trial_id], []):  # the second decision finds another than expected
        assert storage.write_audit({trials[2].trial_id: decision}) == stored
    assert reader.read()[2].audit == decided


def measure_reads(url, trials):
    """Return the use of the database by a first read, by another, and by one after a log point."""
    storage = open_storage(url)
    study_id = create_small_study(storage, trials, f"{trials} trials")
    curve = dict.fromkeys(STEPS, 1.0)
    for number in range(trials - 1):
        trial_id = storage.claim(study_id, "me/1")
        if number % 2:
            storage.pause(trial_id, "me/1", {}, curve)
        else:
            storage.finish(trial_id, "me/1", TrialState.COMPLETE, 1.0, {}, curve)
    running = storage.claim(study_id, "me/1")
    reader, use = ProgressReader(storage, study_id, RUNGS), DatabaseUse(storage)
    first, again = use.measure(reader.read), use.measure(reader.read)
    storage.report(running, "me/1", {step: 1.0 for step in STEPS if step <= 20})
    return first, again, use.measure(reader.read)


def test_curves_that_have_not_changed_are_not_read_again(sqlite_url):
    measured = {trials: measure_reads(sqlite_url, trials) for trials in (20, 60)}
    for trials, (first, again, after) in measured.items():
        assert first[1] > trials * (1 + len(RUNGS)), "each loss at a rung"
        assert again[1] == trials, "of each trial, in what state it is"
        assert after[1] == trials + 1, "and the loss of the trial that has reached a rung"
        assert again[0] <= first[0]
    few, many = ([statements for statements, _ in reads] for reads in measured.values())
    assert few == many


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


def test_statements_and_rows_of_a_worker_do_not_depend_on_the_number_of_trials(sqlite_url):
    """A claim, a report, a pause, a resumption, a requeue and an end."""

    def measure(trials):
        storage = open_storage(sqlite_url)
        study_id = create_small_study(storage, trials, f"{trials} trials")
        for _ in range(trials // 2):
            finished = storage.claim(study_id, "me/1")
            storage.finish(finished, "me/1", TrialState.COMPLETE, 1.0, {}, {10: 1.0})
        use, claimed = DatabaseUse(storage), []

        def claim(**which):
            claimed.append(storage.claim(study_id, "me/2", **which))

        yield use.measure(claim)
        yield use.measure(lambda: storage.report(claimed[0], "me/2", {10: 1.0, 20: 2.0}))
        yield use.measure(lambda: storage.pause(claimed[0], "me/2", {"rung": 20}, {20: 1.0}))
        yield use.measure(lambda: claim(paused_ids=[claimed[0]]))
        yield use.measure(lambda: storage.requeue(claimed[0], "me/2", Failure.INTERRUPTED))
        yield use.measure(claim)
        end = TrialState.COMPLETE, 1.0, {"seconds": 1.0}
        yield use.measure(lambda: storage.finish(claimed[0], "me/2", *end))
        assert claimed == 3 * [claimed[0]]

    assert [*measure(40)] == [*measure(400)]
