"""A search that prunes trains a random sample of its trials to the end, and learns from it."""

import numpy as np
import pytest
from optuna.trial import TrialState
from test_pruned_search import GRID, STEPS, TRIALS, search
from test_worker import create_study

from rnn.errors import UserError
from search.pruning.audited_trials import DIVISOR, LEVEL, describe_look, is_alarm
from search.pruning.policy import Decisions, PruneDecision
from search.pruning.predictions import Prediction, predict_final_values
from search.pruning.scheduler import PauseResumeScheduler
from studies.attributes import AUDIT, AuditLook, AuditState, TrialRecord
from studies.storage.counts import count_trials
from studies.storage.reads import read_audit_looks
from studies.storage.storage import AuditDecision

AUDITED = 8

AUDIT_EIGHT = f"pruning.audit={AUDITED}"

BOLD = [AUDIT_EIGHT, "pruning.confidence=0.6", "seed=1"]
"""Settings with which some of the audited trials would have been pruned."""


@pytest.fixture(autouse=True)
def larger_share(monkeypatch):
    """Audit up to a third of the trials: the grid of the tests is small."""
    monkeypatch.setattr("search.pruning.audited_trials.DIVISOR", 3)


def create(url, text, *overrides, prune=True, **terms):
    return create_study(url, text, *GRID, *overrides, prune=prune, **terms)


def audited(joined):
    return [trial for trial in joined.study.trials if AUDIT in trial.system_attrs]


def test_audited_trials_are_trained_to_the_end(sqlite_url, text):
    """What the pruner would have done is recorded."""
    joined, messages = search(sqlite_url, text, *BOLD, lockstep=8)
    assert messages.count("complete") >= AUDITED
    counts = count_trials(joined.storage, joined.study_id)
    assert counts.complete + counts.pruned == counts.planned == TRIALS
    found = audited(joined)
    assert len(found) == AUDITED
    stopped = []
    for trial in found:
        TrialRecord.model_validate(trial.user_attrs)
        assert trial.state is TrialState.COMPLETE
        assert max(trial.intermediate_values) == STEPS
        state = AuditState.model_validate(trial.system_attrs[AUDIT])
        reason = trial.user_attrs.get("reason", "")
        assert state.pruned == reason.startswith("audited; would have been pruned at step ")
        if state.pruned:
            stopped.append(trial)
            assert trial.user_attrs["predicted_scale"] > 0
            assert f"{trial.user_attrs['predicted_value']:.3f} ±" in reason
            assert trial.user_attrs["rung"] < STEPS
    looks = read_audit_looks(joined.storage, joined.study_id)
    assert looks["last"].trials == len(stopped) > 0
    assert counts.pruned > 0


def test_audited_trials_are_drawn_with_the_seed(sqlite_url, text):
    numbers = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        joined = create(sqlite_url, text, AUDIT_EIGHT, f"seed={seed}", name=name)
        numbers.append({trial.number for trial in audited(joined)})
    assert numbers[0] == numbers[1] != numbers[2]
    assert [len(each) for each in numbers] == [AUDITED] * 3


RATES = ["nuisance=['learning_rate']", "space.training.learning_rate=[0.01, 0.02]"]


def audited_architectures(joined):
    """Return the audited architectures, and whether all of their trials are audited."""
    table = {}
    for trial in joined.study.trials:
        key = tuple(item for item in trial.params.items() if item[0] != "learning_rate")
        table.setdefault(key, []).append(AUDIT in trial.system_attrs)
    found = [flags for flags in table.values() if any(flags)]
    return len(found), all(map(all, found)), {len(flags) for flags in found}


@pytest.mark.parametrize(
    ("settings", "trials"), [([], {2}), (["space.training.learning_rate=[0.01]"], {1})]
)
def test_all_trials_of_an_audited_architecture_are_audited(sqlite_url, text, settings, trials):
    joined = create(sqlite_url, text, AUDIT_EIGHT, *RATES, *settings)
    assert audited_architectures(joined) == (AUDITED, True, trials)
    assert joined.study.user_attrs["audit_nuisance"] == ["learning_rate"]
    message = "prunes its trials in competition with each other: --extend expected"
    with pytest.raises(UserError, match=message):
        create(sqlite_url, text, AUDIT_EIGHT, *RATES, *settings, "space.layers=[1, 2]", extend=True)


def test_at_most_a_tenth_of_the_trials_is_audited(sqlite_url, text, monkeypatch):
    monkeypatch.setattr("search.pruning.audited_trials.DIVISOR", DIVISOR)
    assert len(audited(create(sqlite_url, text, "pruning.audit=20"))) == 2
    unpruned = create(sqlite_url, text, "pruning.audit=20", name="not-pruned", prune=False)
    assert audited(unpruned) == []


@pytest.mark.extended
def test_wrong_predictions_raise_the_alarm_and_stop_the_pruning(sqlite_url, text, monkeypatch):
    """The pruner predicts that every unfinished trial ends far above its value."""

    def predict_badly(*args):
        found = predict_final_values(*args)
        return Prediction(found.mean + 30 * found.scale, found.scale)

    monkeypatch.setattr("search.pruning.policy.predict_final_values", predict_badly)
    joined, messages = search(sqlite_url, text, AUDIT_EIGHT, lockstep=1)
    looks = read_audit_looks(joined.storage, joined.study_id)
    assert any(look.alarm for look in looks.values())
    warnings = [line for line in messages if "pruning held back" in line]
    assert len(warnings) == sum(look.alarm for look in looks.values())
    expected = "audited trials finished within two scales of their predictions, 90% expected"
    assert all(expected in line for line in warnings)
    without, _ = search(sqlite_url, text, "pruning.audit=0", name="without", lockstep=1)
    with_alarm = count_trials(joined.storage, joined.study_id).pruned
    assert with_alarm < count_trials(without.storage, without.study_id).pruned


@pytest.fixture
def scheduler(sqlite_url, text):
    joined = create(sqlite_url, text, AUDIT_EIGHT)
    return PauseResumeScheduler(joined.storage, joined.study_id, joined.config)


def test_decision_on_an_earlier_state_of_a_trial_changes_nothing(scheduler):
    storage, progress = scheduler._storage, scheduler.read()
    for trial in progress.trials:
        storage.claim(scheduler._study_id, "me/1")
        storage.pause(trial.trial_id, "me/1", {})
    audits = {trial.trial_id: trial.audit for trial in progress.trials if trial.audit is not None}
    resumed, started, *_ = (trial for trial in progress.trials if trial.trial_id not in audits)
    stops = {
        trial.trial_id: PruneDecision(True, {})
        for trial in progress.trials
        if trial.trial_id not in audits
    }
    after = AuditState(rungs=2)
    moved = {trial_id: AuditDecision(before, after) for trial_id, before in audits.items()}
    dropped = {
        trial_id: AuditDecision(before, AuditState(pruned=True))
        for trial_id, before in audits.items()
    }
    scheduler.store(progress, Decisions(audited=moved))
    storage.claim(scheduler._study_id, "me/1", paused_ids=[resumed.trial_id])
    storage.set_trial_state_values(started.trial_id, TrialState.RUNNING)  # as plain Optuna does
    pruned = scheduler.store(progress, Decisions(pruned=stops, audited=dropped))
    assert not {resumed.number, started.number} & {*pruned}
    assert len(pruned) == TRIALS - AUDITED - 2
    assert [trial.audit for trial in scheduler.read().trials if trial.audit] == [after] * AUDITED


def test_looks_are_stored_once(scheduler):
    first, progress = AuditLook(complete=3, trials=8, inside=1, alarm=True), scheduler.read()
    for inside in (1, 8):
        look = first.model_copy(update={"inside": inside})
        scheduler.store(progress, Decisions(looks={"first": look}))
    assert scheduler.read().looks == {"first": first}
    assert "1 of 8 audited trials" in describe_look(first)
    assert "recalibrated" in describe_look(first)


@pytest.mark.extended
def test_false_alarms_are_rarer_than_the_level():
    generator = np.random.default_rng(0)
    for size in (5, 9, 18, 20):
        inside = (np.abs(generator.standard_t(5, (4000, 2, size))) <= 2).sum(axis=2)
        alarms = [any(is_alarm(size, int(count)) for count in looks) for looks in inside]
        assert np.mean(alarms) <= LEVEL
