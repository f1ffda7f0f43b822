"""Studies that benchmarks write in bulk are as a search leaves them."""

import pytest
from optuna.trial import TrialState

from search.pruning.scheduler import PauseResumeScheduler
from studies.storage.leases import PendingWrite
from studies.storage.open import open_storage
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


def make_scheduler(handle, storage):
    return PauseResumeScheduler(storage, handle.study_id, handle.config)


def paused_ids(progress):
    return [trial.trial_id for trial in progress.trials if trial.is_paused]


def test_decisions_do_not_depend_on_what_a_worker_has_read_before(handle, sqlite_url):
    """One worker follows the search, another joins at each step."""
    storage = handle.storage
    following = make_scheduler(handle, storage)
    for number in range(4):
        joining = make_scheduler(handle, open_storage(sqlite_url))
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
