"""Studies that benchmarks write in bulk are as a search leaves them."""

import pytest
from optuna.trial import TrialState

from search.pruning.policy import Decisions, PruneDecision
from search.pruning.scheduler import PauseResumeScheduler
from search.worker.claims import ClaimManager
from search.worker.shutdown import ShutdownSignal
from studies.storage.leases import PendingWrite
from tests.simulations.large_study import create_large_study

SMALL = (
    "training.batch_size=4",
    "training.sequence_length=8",
    "evaluation.windows=2",
    "evaluation.window_length=8",
    "precision='fp32'",
)


@pytest.fixture
def handle(sqlite_url, text):
    """A study of 96 trials in the middle of a search that prunes."""
    return create_large_study(sqlite_url, 96, 40, pruning=True, corpus=str(text), overrides=SMALL)


def make_scheduler(handle):
    return PauseResumeScheduler(handle.storage, handle.study_id, handle.config)


def paused_ids(progress):
    return [trial.trial_id for trial in progress.trials if trial.is_paused]


def test_decisions_do_not_depend_on_what_a_worker_has_read_before(handle):
    """One worker follows the search, another joins at each step."""
    storage, following = handle.storage, make_scheduler(handle)
    for number in range(4):
        joining = make_scheduler(handle)
        selected = [each.select(each.read(), 0.5) for each in (following, joining)]
        assert selected[0] == selected[1]
        progress = following.read()
        following.store(progress, selected[0])  # about audited trials
        chosen = [*selected[0].resumed, *paused_ids(progress)][:1]
        trial_id = storage.claim(handle.study_id, "me/1", paused_ids=chosen)
        curve = dict.fromkeys(range(50, 2001, 50), 2.0 - number / 100)
        storage.flush(
            [PendingWrite(trial_id, "me/1", {step: curve[step] for step in curve if step <= 700})]
        )
        decided = [each.decide(each.read(), [trial_id]) for each in (following, joining)]
        assert decided[0] == decided[1]
        if number % 2:
            storage.pause(trial_id, "me/1", {})
        else:
            storage.finish(trial_id, "me/1", TrialState.COMPLETE, curve[2000], {}, curve)


def test_damaged_trial_does_not_keep_paused_trials_from_being_pruned(handle):
    with handle.storage.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE trials SET state = 'FAIL' WHERE state = 'RUNNING'")
        connection.exec_driver_sql("UPDATE trials SET state = 'ODD' WHERE number = 5")
    scheduler = make_scheduler(handle)
    progress = scheduler.read()
    assert len(progress.trials) + progress.state.failed == 95
    stops = dict.fromkeys(paused_ids(progress), PruneDecision(True, {}))
    assert len(scheduler.store(progress, Decisions(pruned=stops))) == len(stops) > 0


def test_paused_trial_whose_number_is_damaged_is_failed_by_the_worker_that_resumes_it(handle):
    """No worker waits for it."""
    storage, scheduler = handle.storage, make_scheduler(handle)
    first, *others = paused_ids(scheduler.read())
    with storage.engine.begin() as connection:
        connection.exec_driver_sql(f"UPDATE trials SET number = NULL WHERE trial_id = {first}")
    selected = scheduler.select(scheduler.read(), 0.5)
    assert selected.resumed == [first]
    with ClaimManager(storage, handle.study_id, "me", ShutdownSignal()) as claims:
        assert claims.claim(paused_ids=selected.resumed) == []
    with storage.reading() as connection:
        (state,) = connection.exec_driver_sql(f"SELECT state FROM trials WHERE trial_id = {first}")
    assert state == ("FAIL",)
    progress = scheduler.read()
    assert first not in scheduler.select(progress, 0.5).resumed
    assert paused_ids(progress) == others
