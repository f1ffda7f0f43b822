"""A paused trial waits until it is named; what is pruned then is final; on both databases."""

import itertools
import math

import optuna
import pytest
from helpers import create_small_study, run_simultaneously, wait_for_others
from optuna.trial import TrialState

from search.pruning.policy import Rung
from studies.attributes import Failure
from studies.errors import LeaseLostError
from studies.storage.counts import count_trials
from studies.storage.open import load_study, open_storage
from studies.storage.queries import read_progress


@pytest.fixture
def study(url):
    storage = open_storage(url)
    return storage, create_small_study(storage, 4)


def claim_and_pause(storage, study_id, step=20, claim_token="me/1"):
    trial_id = storage.claim(study_id, claim_token)
    storage.pause(trial_id, claim_token, {"rung": step}, {10: 3.0, step: 2.0})
    return trial_id


def test_a_paused_trial_is_taken_by_who_names_it_and_by_nobody_else(study):
    storage, study_id = study
    first, second = (claim_and_pause(storage, study_id) for _ in range(2))
    third, fourth = storage.claim(study_id, "me/2"), storage.claim(study_id, "me/2")
    assert len({first, second, third, fourth}) == 4
    assert storage.claim(study_id, "me/2") is None
    assert storage.claim(study_id, "me/2", exclude=[first]) is None
    assert storage.claim(study_id, "me/2", paused_ids=[]) is None
    assert storage.claim(study_id, "me/2", paused_ids=[third, second, first]) == second, (
        "in that order"
    )
    trial = storage.get_trial(second)
    assert trial.state is TrialState.RUNNING
    assert trial.intermediate_values == {10: 3.0, 20: 2.0}
    # It runs as any other: who loses it leaves it to anybody.
    storage.requeue(second, "me/2", Failure.LEASE_EXPIRED)
    assert storage.claim(study_id, "me/3", paused_ids=[second]) is None, "it is not paused any more"
    assert storage.claim(study_id, "me/3") == second


def test_paused_trials_that_are_named_are_taken_along_in_their_order(study):
    storage, study_id = study
    paused = [claim_and_pause(storage, study_id) for _ in range(4)]
    first = storage.claim(study_id, "me/2", paused_ids=paused[3:])
    assert first == paused[3]
    taken = storage.claim_matching(
        first, "me/2", 2, [], paused_ids=[paused[2], paused[0], paused[1]]
    )
    assert sorted(taken) == sorted([paused[2], paused[0]])
    assert storage.claim_matching(first, "me/2", 9, []) == [], "those that are not named wait"


def test_who_has_lost_a_trial_does_not_pause_it(study):
    storage, study_id = study
    trial_id = storage.claim(study_id, "me/1")
    storage.requeue(trial_id, "me/1", Failure.LEASE_EXPIRED)
    assert storage.claim(study_id, "you/1") == trial_id
    with pytest.raises(LeaseLostError):
        storage.pause(trial_id, "me/1", {"rung": 20}, {20: 9.0})
    trial = storage.get_trial(trial_id)
    assert (trial.state, trial.intermediate_values) == (TrialState.RUNNING, {})
    assert "rung" not in trial.user_attrs


def test_only_what_is_paused_is_pruned_and_that_for_good(study):
    storage, study_id = study
    paused, taken, *others = (claim_and_pause(storage, study_id) for _ in range(4))
    for trial_id in (taken, *others):
        assert storage.claim(study_id, "you/1", paused_ids=[trial_id]) == trial_id
    reasons = {key: {"reason": "far off"} for key in (taken, paused)}
    assert storage.prune_paused(study_id, 4, reasons) == [], "others run, and may tell otherwise"
    for trial_id in others:
        storage.finish(trial_id, "you/1", TrialState.COMPLETE, 1.0, {})
    storage.requeue(taken, "you/1", Failure.LEASE_EXPIRED)
    assert storage.prune_paused(study_id, 4, reasons) == [], "one waits that was not paused"
    assert storage.claim(study_id, "you/1") == taken
    storage.finish(taken, "you/1", TrialState.COMPLETE, 1.0, {})
    assert storage.prune_paused(study_id, 3, reasons) == [], "there are more by now"
    assert storage.prune_paused(study_id, 4, reasons) == [paused]
    assert storage.prune_paused(study_id, 4, reasons) == []
    counts = count_trials(storage, study_id)
    assert (counts.pruned, counts.complete, counts.waiting) == (1, 3, 0)
    assert (counts.paused, counts.planned, counts.finished) == (0, 4, 4)
    assert storage.claim(study_id, "me/2", paused_ids=[paused]) is None
    # Plain Optuna reads it as any trial that was pruned, which ended when it was paused.
    (trial,) = load_study(storage, "small").get_trials(states=(TrialState.PRUNED,))
    assert trial.user_attrs == {"rung": 20, "reason": "far off"}
    assert trial.value is None
    assert trial.datetime_start <= trial.datetime_complete
    other = optuna.create_study()
    other.add_trial(trial)
    assert other.trials[0].state is TrialState.PRUNED


def test_paused_trials_are_counted_among_those_that_wait(study):
    storage, study_id = study
    claim_and_pause(storage, study_id)
    counts = count_trials(storage, study_id)
    assert (counts.waiting, counts.paused, counts.planned) == (4, 1, 4)


def test_where_the_points_stand_is_read_at_the_rungs(study):
    storage, study_id = study
    rungs = [Rung(20, 0), Rung(40, 30), Rung(80, 60)]
    done, paused, lost = (storage.claim(study_id, "me/1") for _ in range(3))
    curve = {step: 100.0 / step for step in range(10, 101, 10)}
    storage.finish(done, "me/1", TrialState.COMPLETE, 1.0, {}, curve)
    storage.pause(paused, "me/1", {}, {10: 9.0, 20: 7.0, 30: 5.0, 35: 4.0, 40: 3.0, 70: 2.0})
    storage.report(lost, "me/1", {10: 9.0, 20: math.nan})
    points = {point.trial_id: point for point in read_progress(storage, study_id, rungs)}
    assert [point.number for point in points.values()] == [0, 1, 2, 3]
    assert points[done].losses == pytest.approx([7.5, 2.5, (100 / 70 + 100 / 80) / 2])
    assert (points[done].value, points[done].state) == (1.0, TrialState.COMPLETE)
    assert points[paused].losses == pytest.approx([8.0, 3.5, math.nan], nan_ok=True)
    assert [point.is_paused for point in points.values()] == [False, True, False, False]
    assert math.isnan(points[paused].value)
    # What is not finite is no number to go by, but the rung is reached.
    assert points[lost].losses == pytest.approx([9.0, math.nan, math.nan], nan_ok=True)
    # A curve with a gap ends before it.
    storage.report(lost, "me/1", dict.fromkeys(range(50, 81, 10), 1.0), replace_all=True)
    assert all(map(math.isnan, read_progress(storage, study_id, rungs)[2].losses))
    assert [point.losses for point in read_progress(storage, study_id, [])] == [[]] * 4


def take_them_all(url, study_id, claim_token, trial_ids):
    storage = open_storage(url)
    taken = [storage.claim(study_id, claim_token, paused_ids=trial_ids)]
    wait_for_others()  # each has one, and there are others left for all
    while (trial_id := storage.claim(study_id, claim_token, paused_ids=trial_ids)) is not None:
        taken.append(trial_id)
    return taken


def test_no_paused_trial_goes_to_two(url):
    storage = open_storage(url)
    study_id = create_small_study(storage, 24)
    paused = [claim_and_pause(storage, study_id) for _ in range(24)]
    taken = run_simultaneously(
        take_them_all, [(url, study_id, f"w{i}/1", paused) for i in range(4)]
    )
    assert sorted(itertools.chain(*taken)) == sorted(paused)
