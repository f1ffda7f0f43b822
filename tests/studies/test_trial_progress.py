"""Progress of trials for the pruner: what may have changed is read again, and nothing else."""

import random
from functools import partial

import pytest
from helpers import DatabaseUse, create_small_study
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState

from search.pruning.rungs import Rung
from studies.attributes import AUDIT, AuditState, Failure
from studies.storage.create_study import PlannedTrial, extend_study
from studies.storage.last_losses import read_last_losses
from studies.storage.open import load_study, open_storage
from studies.storage.queue import PendingWrite
from studies.storage.trial_progress import ProgressReader
from studies.storage.trial_rows import AuditDecision

RUNGS = [Rung(20, 0), Rung(40, 30), Rung(80, 60)]
STEPS = range(10, 101, 10)


class RandomSearch:
    """Takes random steps of a search with several workers on a study of eight trials.

    Attributes:
        steps: names of the possible steps.
    """

    steps = (
        "claim",
        "report",
        "restart",
        "requeue",
        "expire",
        "pause",
        "resume",
        "finish",
        "audit",
    )

    def __init__(self, storage, seed):
        self._storage, self._random = storage, random.Random(seed)
        self._study_id = create_small_study(storage, 1)
        self.extend([PlannedTrial({"x": number}, is_audited=number < 3) for number in range(1, 8)])
        self._held, self._paused, self._tokens = {}, [], iter(range(1000))

    @property
    def reader(self):
        return ProgressReader(self._storage, self._study_id, RUNGS)

    def extend(self, trials):
        choices = {"x": CategoricalDistribution(tuple(range(20)))}
        assert extend_study(self._storage, self._study_id, {}, {}, choices, trials)

    def step(self):
        """Take one step, if it is possible now."""
        steps = self.claim, self.report, self.restart, self.requeue, self.expire
        self._random.choice([*steps, self.pause, self.resume, self.finish, self.audit])()

    def claim(self, paused_ids=None):
        token = f"me/{next(self._tokens)}"
        trial_id = self._storage.claim(self._study_id, token, paused_ids=paused_ids)
        if trial_id is not None:
            self._held[trial_id] = token

    def resume(self):
        if self._paused:
            self.claim([self._paused.pop()])

    def report(self, **how):
        if self._held:
            trial_id, token = self._random.choice(list(self._held.items()))
            last = self._random.choice(STEPS)
            curve = {step: self._random.random() for step in STEPS if step <= last}
            self._storage.report(trial_id, token, curve, **how)

    def restart(self):
        """Replace a curve by a shorter or a longer one, as from an earlier checkpoint."""
        self.report(replace_all=True)

    def _release(self):
        trial_id = self._random.choice(list(self._held))
        return trial_id, self._held.pop(trial_id)

    def requeue(self):
        if self._held:
            trial_id, token = self._release()
            curve = {10: self._random.random()}
            write = PendingWrite(trial_id, token, curve, replace_all=self._random.random() < 0.5)
            self._storage.requeue_all([write], Failure.INTERRUPTED)

    def expire(self):
        if self._held:
            self._storage.requeue(*self._release(), Failure.LEASE_EXPIRED)

    def pause(self):
        if self._held:
            trial_id, token = self._release()
            curve = {step: self._random.random() for step in (10, 20)}
            self._storage.pause(trial_id, token, {}, curve)
            self._paused.append(trial_id)

    def finish(self):
        if self._held and self._random.random() < 0.3:
            state = self._random.choice([TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL])
            value = self._random.random() if state is TrialState.COMPLETE else None
            self._storage.finish(*self._release(), state, value, {}, {100: 1.0})

    def audit(self):
        """Store a decision about an audited trial, which changes nothing else."""
        for trial in self.reader.read():
            if trial.audit is not None:
                after = trial.audit.model_copy(update={"rungs": trial.audit.rungs + 1})
                self._storage.write_audit({trial.trial_id: AuditDecision(trial.audit, after)})


@pytest.mark.parametrize("seed", range(3))
def test_progress_equals_that_of_a_new_reader_after_each_step_of_a_search(url, seed):
    search = RandomSearch(open_storage(url), seed)
    often, seldom = search.reader, search.reader
    for number in range(60):
        search.step()
        expected = repr(search.reader.read())
        assert repr(often.read()) == expected
        if number % 7 == 0:
            assert repr(seldom.read()) == expected


def test_trials_of_an_extension_are_read(url):
    search = RandomSearch(open_storage(url), 0)
    reader = search.reader
    assert len(reader.read()) == 8
    search.extend([PlannedTrial({"x": 10 + number}, is_audited=True) for number in range(3)])
    trials = reader.read()
    assert repr(trials) == repr(search.reader.read())
    assert [trial.audit for trial in trials[8:]] == 3 * [AuditState()]


def test_trial_that_plain_optuna_adds_is_left_out(sqlite_url):
    search = RandomSearch(open_storage(sqlite_url), 0)
    reader = search.reader
    reader.read()
    load_study(search._storage, "small").ask()
    assert [trial.number for trial in reader.read()] == list(range(8))
    search._storage.set_trial_system_attr(2, AUDIT, {"rungs": 3, "pruned": True})
    assert reader.read()[1].audit == AuditState(rungs=3, pruned=True)


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
    for trials in (20, 60):
        first, again, after = measure_reads(sqlite_url, trials)
        assert first[1] > trials * (1 + len(RUNGS)), "each loss at a rung"
        assert again[1] == trials, "of each trial, in what state it is"
        assert after[1] == trials + 1, "and the loss of the trial that has reached a rung"
        assert again[0] <= first[0]


def test_statements_that_read_progress_do_not_depend_on_the_number_of_trials(sqlite_url):
    few, many = (measure_reads(sqlite_url, trials) for trials in (20, 60))
    assert [statements for statements, _ in few] == [statements for statements, _ in many]


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

        operations = [
            claim,
            lambda: storage.report(claimed[0], "me/2", {10: 1.0, 20: 2.0}),
            lambda: storage.pause(claimed[0], "me/2", {"rung": 20}, {20: 1.0}),
            lambda: claim(paused_ids=[claimed[0]]),
            lambda: storage.requeue(claimed[1], "me/2", Failure.INTERRUPTED),
            claim,
            lambda: storage.finish(claimed[2], "me/2", TrialState.COMPLETE, 1.0, {"seconds": 1.0}),
        ]
        found = list(map(use.measure, operations))
        assert claimed == 3 * [claimed[0]]
        return found

    assert measure(40) == measure(400)
