"""Studies that benchmarks write in bulk are as a search leaves them."""

from optuna.trial import TrialState

from search.pruning.decisions import Decisions
from search.pruning.pause_resume import PauseResumeScheduler
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


def create(url, text, **options):
    return create_large_study(url, 96, 40, corpus=str(text), overrides=SMALL, **options)


def test_decisions_do_not_depend_on_what_a_worker_has_read_before(sqlite_url, text):
    """One worker follows the search, another joins at each step."""
    handle = create(sqlite_url, text, pruning=True)
    storage, study_id = handle.storage, handle.study_id

    def scheduler():
        return PauseResumeScheduler(storage, study_id, handle.config)

    following = scheduler()
    for number in range(4):
        joining = scheduler()
        selected = [each.select_to_resume(each.read(), 0.5) for each in (following, joining)]
        assert selected[0] == selected[1]
        following.store(selected[0])  # about audited trials
        paused = [trial.trial_id for trial in joining.read().trials if trial.is_paused]
        trial_id = storage.claim(study_id, "me/1", paused_ids=[*selected[0].resumed, *paused][:1])
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


def test_damaged_trial_does_not_keep_paused_trials_from_being_pruned(sqlite_url, text):
    handle = create(sqlite_url, text, pruning=True)
    with handle.storage.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE trials SET state = 'FAIL' WHERE state = 'RUNNING'")
        connection.exec_driver_sql("UPDATE trials SET state = 'ODD' WHERE number = 5")
    scheduler = PauseResumeScheduler(handle.storage, handle.study_id, handle.config)
    progress = scheduler.read()
    assert len(progress.trials) == 95
    paused = {trial.trial_id: {} for trial in progress.trials if trial.is_paused}
    assert len(scheduler.prune(progress, Decisions(pruned=paused))) == len(paused) > 0


def test_paused_trial_whose_number_is_damaged_is_failed_by_the_worker_that_resumes_it(
    sqlite_url, text
):
    """No worker waits for it."""
    handle = create(sqlite_url, text, pruning=True)
    storage, study_id = handle.storage, handle.study_id
    scheduler = PauseResumeScheduler(storage, study_id, handle.config)
    first, *others = [trial.trial_id for trial in scheduler.read().trials if trial.is_paused]
    with storage.engine.begin() as connection:
        connection.exec_driver_sql(f"UPDATE trials SET number = NULL WHERE trial_id = {first}")
    selected = scheduler.select_to_resume(scheduler.read(), 0.5)
    assert selected.resumed == [first]
    with ClaimManager(storage, study_id, "me", ShutdownSignal()) as claims:
        assert claims.claim(paused_ids=selected.resumed) == []
    with storage.reading() as connection:
        (state,) = connection.exec_driver_sql(f"SELECT state FROM trials WHERE trial_id = {first}")
    assert state == ("FAIL",)
    selected = scheduler.select_to_resume(scheduler.read(), 0.5)
    assert first not in selected.resumed
    paused = [trial.trial_id for trial in scheduler.read().trials if trial.is_paused]
    assert paused == others
