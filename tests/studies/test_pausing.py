"""Paused trials: resumed by id only, or pruned for good; on both kinds of database."""

import itertools
import math

import optuna
import pytest
import sqlalchemy as sa
from helpers import create_small_study, run_simultaneously, wait_for_others
from optuna.trial import TrialState

from search.pruning.rungs import Rung
from studies.attributes import Failure
from studies.errors import LeaseLostError
from studies.storage.counts import count_trials
from studies.storage.open import load_study, open_storage
from studies.storage.trial_progress import ProgressReader


@pytest.fixture
def study(url):
    storage = open_storage(url)
    return storage, create_small_study(storage, 4)


def claim_and_pause(storage, study_id, step=20, claim_token="me/1"):
    trial_id = storage.claim(study_id, claim_token)
    storage.pause(trial_id, claim_token, {"rung": step}, {10: 3.0, step: 2.0})
    return trial_id


def test_paused_trial_is_claimed_only_by_id(study):
    storage, study_id = study
    first, second = (claim_and_pause(storage, study_id) for _ in range(2))
    third, fourth = storage.claim(study_id, "me/2"), storage.claim(study_id, "me/2")
    assert len({first, second, third, fourth}) == 4
    assert storage.claim(study_id, "me/2") is None
    assert storage.claim(study_id, "me/2", exclude=[first]) is None
    assert storage.claim(study_id, "me/2", paused_ids=[]) is None
    assert storage.claim(study_id, "me/2", paused_ids=[third, second, first]) == second, (
        "first paused trial of the list"
    )
    trial = storage.get_trial(second)
    assert trial.state is TrialState.RUNNING
    assert trial.intermediate_values == {10: 3.0, 20: 2.0}
    # A resumed trial is like any other: once requeued, it may be claimed without its id.
    storage.requeue(second, "me/2", Failure.LEASE_EXPIRED)
    assert storage.claim(study_id, "me/3", paused_ids=[second]) is None, "no longer paused"
    assert storage.claim(study_id, "me/3") == second


def test_matching_paused_trials_are_claimed_in_the_given_order(study):
    storage, study_id = study
    paused = [claim_and_pause(storage, study_id) for _ in range(4)]
    first = storage.claim(study_id, "me/2", paused_ids=paused[3:])
    assert first == paused[3]
    claimed = storage.claim_matching(
        first, "me/2", 2, [], paused_ids=[paused[2], paused[0], paused[1]]
    )
    assert sorted(claimed) == sorted([paused[2], paused[0]])
    assert storage.claim_matching(first, "me/2", 9, []) == [], (
        "unnamed paused trials are not claimed"
    )


def test_worker_that_lost_its_trial_cannot_pause_it(study):
    storage, study_id = study
    trial_id = storage.claim(study_id, "me/1")
    storage.requeue(trial_id, "me/1", Failure.LEASE_EXPIRED)
    assert storage.claim(study_id, "you/1") == trial_id
    with pytest.raises(LeaseLostError):
        storage.pause(trial_id, "me/1", {"rung": 20}, {20: 9.0})
    trial = storage.get_trial(trial_id)
    assert (trial.state, trial.intermediate_values) == (TrialState.RUNNING, {})
    assert "rung" not in trial.user_attrs


def test_only_paused_trials_are_pruned_for_good(study):
    storage, study_id = study
    paused, resumed, *others = (claim_and_pause(storage, study_id) for _ in range(4))
    for trial_id in (resumed, *others):
        assert storage.claim(study_id, "you/1", paused_ids=[trial_id]) == trial_id
    reasons = {key: {"reason": "far off"} for key in (resumed, paused)}
    assert storage.prune_paused(study_id, 4, reasons) == [], "other trials are still running"
    for trial_id in others:
        storage.finish(trial_id, "you/1", TrialState.COMPLETE, 1.0, {})
    storage.requeue(resumed, "you/1", Failure.LEASE_EXPIRED)
    assert storage.prune_paused(study_id, 4, reasons) == [], "a trial waits that is not paused"
    assert storage.claim(study_id, "you/1") == resumed
    storage.finish(resumed, "you/1", TrialState.COMPLETE, 1.0, {})
    assert storage.prune_paused(study_id, 3, reasons) == [], "the study has more trials"
    assert storage.prune_paused(study_id, 4, reasons) == [paused]
    assert storage.prune_paused(study_id, 4, reasons) == []
    counts = count_trials(storage, study_id)
    assert (counts.pruned, counts.complete, counts.waiting) == (1, 3, 0)
    assert (counts.paused, counts.planned, counts.finished) == (0, 4, 4)
    assert storage.claim(study_id, "me/2", paused_ids=[paused]) is None
    # For plain Optuna it is an ordinary pruned trial, which ended when it was paused.
    (trial,) = load_study(storage, "small").get_trials(states=(TrialState.PRUNED,))
    assert trial.user_attrs == {"rung": 20, "reason": "far off"}
    assert trial.value is None
    assert trial.datetime_start <= trial.datetime_complete
    other = optuna.create_study()
    other.add_trial(trial)
    assert other.trials[0].state is TrialState.PRUNED


def test_paused_trials_count_as_waiting(study):
    storage, study_id = study
    claim_and_pause(storage, study_id)
    counts = count_trials(storage, study_id)
    assert (counts.waiting, counts.paused, counts.planned) == (4, 1, 4)


def test_progress_contains_the_mean_losses_at_the_rungs(study):
    storage, study_id = study
    rungs = [Rung(20, 0), Rung(40, 30), Rung(80, 60)]
    done, paused, lost = (storage.claim(study_id, "me/1") for _ in range(3))
    curve = {step: 100.0 / step for step in range(10, 101, 10)}
    storage.finish(done, "me/1", TrialState.COMPLETE, 1.0, {}, curve)
    storage.pause(paused, "me/1", {}, {10: 9.0, 20: 7.0, 30: 5.0, 35: 4.0, 40: 3.0, 70: 2.0})
    storage.report(lost, "me/1", {10: 9.0, 20: math.nan})
    reader = ProgressReader(storage, study_id, rungs)
    trials = {trial.trial_id: trial for trial in reader.read()}
    assert [trial.number for trial in trials.values()] == [0, 1, 2, 3]
    assert trials[done].losses == pytest.approx([7.5, 2.5, (100 / 70 + 100 / 80) / 2])
    assert (trials[done].value, trials[done].state) == (1.0, TrialState.COMPLETE)
    assert trials[paused].losses == pytest.approx([8.0, 3.5, math.nan], nan_ok=True)
    assert [trial.is_paused for trial in trials.values()] == [False, True, False, False]
    assert math.isnan(trials[paused].value)
    # Values that are not finite are left out of the mean, but the rung is reached.
    assert trials[lost].losses == pytest.approx([9.0, math.nan, math.nan], nan_ok=True)
    # A curve with a gap ends before it.
    storage.report(lost, "me/1", dict.fromkeys(range(50, 81, 10), 1.0), replace_all=True)
    assert all(map(math.isnan, reader.read()[2].losses))
    without_rungs = ProgressReader(storage, study_id, [])
    assert [trial.losses for trial in without_rungs.read()] == [[]] * 4


def test_number_of_statements_to_prune_does_not_depend_on_the_number_of_trials(url):
    storage, statements = open_storage(url), []
    sa.event.listen(storage.engine, "before_cursor_execute", lambda *args: statements.append(args))

    def count(size):
        study_id = create_small_study(storage, size, f"{size} trials")
        paused = [claim_and_pause(storage, study_id) for _ in range(size)]
        statements.clear()
        attributes = {trial_id: {"reason": f"{trial_id}"} for trial_id in paused}
        assert storage.prune_paused(study_id, size, attributes) == paused
        counted = len(statements)
        for trial in storage.get_all_trials(study_id):
            assert trial.state is TrialState.PRUNED
            assert trial.user_attrs["reason"] == f"{trial._trial_id}"
        return counted

    assert count(3) == count(12)


def claim_all_paused(url, study_id, claim_token, trial_ids):
    storage = open_storage(url)
    claimed = [storage.claim(study_id, claim_token, paused_ids=trial_ids)]
    wait_for_others()  # each worker has claimed one, and others remain
    while (trial_id := storage.claim(study_id, claim_token, paused_ids=trial_ids)) is not None:
        claimed.append(trial_id)
    return claimed


def test_concurrent_workers_claim_each_paused_trial_once(url):
    storage = open_storage(url)
    study_id = create_small_study(storage, 24)
    paused = [claim_and_pause(storage, study_id) for _ in range(24)]
    claimed = run_simultaneously(
        claim_all_paused, [(url, study_id, f"w{i}/1", paused) for i in range(4)]
    )
    assert sorted(itertools.chain(*claimed)) == sorted(paused)
