"""The life of trials as a state machine: any workers, in any order, with faults between.

Hypothesis chooses the steps. After each one plain SQL must find what a model in Python expects.
"""

import itertools
import json
import math
import sys
import time
from collections import Counter
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import sqlalchemy as sa
from helpers import Together
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from hypothesis.stateful import run_state_machine_as_test as run_as_test
from optuna import TrialPruned
from optuna.distributions import CategoricalDistribution
from optuna.storages._rdb.models import BaseModel
from optuna.trial import TrialState

from rnn.errors import UserError
from search.errors import ShutdownRequestedError
from search.pruning.policy import PruneDecision
from search.worker.claims import ClaimManager
from search.worker.loop_trial import Trial as LoopTrial
from search.worker.loop_trial import TrialStoppedError
from search.worker.queue import MAX_RETRIES, TrialQueue
from search.worker.shutdown import ShutdownSignal
from studies.artifacts import TrialFiles
from studies.attributes import Failure, VersionRecord
from studies.config import StudyConfig
from studies.errors import LeaseLostError, StorageLostError
from studies.storage.counts import StudyIdentity
from studies.storage.edits import create_study, delete_study, extend_study, retry_trials
from studies.storage.open import load_study, open_storage
from studies.storage.reads import Rung, TrialReader
from studies.storage.tables import TRIAL_PARAMS, TRIAL_VALUES
from studies.storage.trials import StoredStudy, StoredTrial

LEASES = (120, 120, 60)  # of each worker, in seconds
LOG_EVERY = 10
LAST_STEP = 100
RUNGS = [Rung(20, 0), Rung(40, 30), Rung(80, 60)]
FAILURES = {"FAIL": Failure.EXCEPTION, "DIVERGED": Failure.DIVERGED}
FINISHED = {"COMPLETE", "PRUNED", *FAILURES}
KINDS = {"failed": "FAIL", "diverged": "DIVERGED"}  # of failures, as a user names them
STORED = {"PAUSED": "WAITING", "DIVERGED": "FAIL"}
TABLES = [table.name for table in BaseModel.metadata.sorted_tables if table.name != "version_info"]

# When a connection breaks; after a commit, only its answer is lost.
FAULTS = st.sampled_from([None, *itertools.product(("before", "after"), (0, 0, 1, 2))])
WORKERS = st.integers(0, len(LEASES) - 1)
PICKS = st.integers(0, 9)
ENDS = st.sampled_from(["COMPLETE", "COMPLETE", "COMPLETE", "PRUNED", *FAILURES, *["PAUSED"] * 4])
SIZES = st.integers(1, 4)
BACK = st.integers(0, 4)
CAUSES = st.sampled_from([Failure.INTERRUPTED, Failure.EXCEPTION])


class Worker(ClaimManager):
    """A worker with its own connections, whose commits can fail.

    It does what the storage thread does, but in the thread of the caller, and sends heartbeats
    while it is awake. In memory it has the whole curve of each claim that it has made, and the
    claims that it believes to hold.
    """

    def __init__(self, storage, study, name, lease):
        storage.require_study(study)
        super().__init__(storage, study.study_id, name, ShutdownSignal(), lease)
        self.name, self.storage, self.is_awake = name, storage, True
        self.curves, self.holdings, self.leaves = {}, [], False

    def work(self):
        self._process()
        while self._outage_message:
            self._process()

    def submit(self, operation, **options):
        future = super().submit(operation, **options)
        self.work()
        return future

    def _wait(self, future, timeout):
        if self.leaves:
            raise ShutdownRequestedError
        super()._wait(future, timeout)

    def vanish(self):
        sa.event.remove(self.storage.engine, "before_cursor_execute", self._note_statement)

    @contextmanager
    def awake(self, fault):
        """Have the worker awake, and its connection break before or after a commit of a number."""
        dialect, count, self.is_awake = self.storage.engine.dialect, itertools.count(), True
        commit, (moment, number) = dialect.do_commit, fault or (None, None)

        def do_commit(connection):
            breaks = next(count) == number
            if not (breaks and moment == "before"):
                commit(connection)
            if breaks:
                cause = Exception("server closed the connection")
                raise sa.exc.OperationalError("COMMIT", {}, cause)

        with patch.object(dialect, "do_commit", do_commit):
            yield


class Storages:
    """The study's storage, as several processes open it, and how a study is planned."""

    def __init__(self, url):
        self.pool = [open_storage(url) for _ in LEASES]
        self.main = open_storage(url)
        self.rows = sa.create_engine(url, isolation_level="AUTOCOMMIT").connect()

    def close(self):
        for each in (self.rows, self.main, *self.pool):
            each.close()

    def sql(self, statement):
        return self.rows.exec_driver_sql(statement).all()

    def clear(self):
        for table in reversed(TABLES):
            self.rows.exec_driver_sql(f"DELETE FROM {table}")

    def read_rows(self):
        return [self.sql(f"SELECT * FROM {table} ORDER BY 1") for table in TABLES]

    def create(self, name, points):
        folder = f"folder-{time.perf_counter_ns()}"
        attributes = {"artifact_folder": folder, "edition": 1}
        create_study(self.main, StoredStudy(name, "loss", attributes, *self.plan(range(points))))
        return StudyIdentity(load_study(self.main, name)._study_id, name, folder)

    def plan(self, points):
        choices = {"x": tuple(points) or (0,), "size": (0, 1)}
        trials = [StoredTrial({"x": x, "size": x % 2}) for x in points]
        return {name: CategoricalDistribution(of) for name, of in choices.items()}, trials


@dataclass
class Trial:
    """What the model expects of a trial, whose state may also be PAUSED or DIVERGED."""

    state: str = "WAITING"
    token: str | None = None  # of the claim under which it runs
    is_left: bool = False  # by its worker, before the answer to that claim
    finisher: str | None = None  # token of the claim under which it was finished
    curve: dict = field(default_factory=dict)
    memory: dict = field(default_factory=dict)  # curve that the worker has which trains it
    value: float | None = None
    retries: Counter = field(default_factory=Counter)

    @property
    def worker(self):
        return self.token.rpartition("/")[0]

    @property
    def stored_state(self):
        """Its state in the database, and whether it is marked as paused."""
        return STORED.get(self.state, self.state), self.state == "PAUSED"


def permit(is_allowed, error):
    """Require that a block raises an error unless it is allowed."""
    return nullcontext() if is_allowed else pytest.raises(error)


class TrialMachine(RuleBasedStateMachine):
    """Workers that claim, train and leave the trials of one study, and what is done to it."""

    requeuing = ("PAUSED",)
    """Ends after which a trial is not finished."""

    def __init__(self, storages, clock):
        super().__init__()
        self.storages, self.clock = storages, clock
        self.names = map("host/{}".format, itertools.count())
        self.losses = map(float, itertools.count(1))
        self.workers = []
        storages.clear()
        storages.create("other", 2)
        self.rows_of_others = storages.read_rows()
        self.start()

    def start(self):
        self.study = self.storages.create("made", 5)
        self.trials = [Trial() for _ in range(5)]
        self.finished, self.heard, self.edition = {}, {}, 1
        self.reader = self.new_reader()
        for worker in self.workers:  # of a study that was deleted and had the same name and id
            with pytest.raises(StorageLostError):
                worker.claim()
            worker.vanish()
        self.workers = [self.new_worker(place) for place in range(len(LEASES))]

    def new_reader(self):
        columns = TRIAL_PARAMS, TRIAL_VALUES  # what the pruner reads
        return TrialReader(self.storages.main, self.study.study_id, columns, RUNGS)

    def new_worker(self, place):
        return Worker(self.storages.pool[place], self.study, next(self.names), LEASES[place])

    @property
    def idle(self):
        return [worker for worker in self.workers if not worker.holdings]

    def find(self, *states):
        """Return the numbers of the trials in some states."""
        return [number for number, trial in enumerate(self.trials) if trial.state in states]

    def list_ids(self, numbers):
        query = f"SELECT trial_id FROM trials WHERE study_id = {self.study.study_id}"
        ids = [trial_id for (trial_id,) in self.storages.sql(f"{query} ORDER BY number")]
        return [ids[number] for number in numbers]

    def pick(self, place):
        """Choose one of all claims: often one that is lost, sometimes one that has ended."""
        had = [(worker, claim) for worker in self.workers for claim in worker.curves]
        held = [(worker, claim) for worker, claim in had if claim in worker.holdings]
        lost = [pair for pair in held if not self.is_held(pair[1])]
        ended = [pair for pair in had if pair not in held]
        chosen = {place < 5: lost, place == 9: ended}.get(True) or held
        return chosen[place % len(chosen)]

    def can_pick(self):
        return any(worker.holdings for worker in self.workers)

    def trial_of(self, claim):
        return self.trials[claim.trial.number]

    def is_held(self, claim):
        return self.trial_of(claim).token == claim.claim_token

    # ------------------------------------------------------------------ steps of workers

    @precondition(lambda self: self.find("WAITING") and self.idle)
    @rule(place=WORKERS, size=SIZES, excluded=st.sets(BACK, max_size=2), back=BACK, fault=FAULTS)
    def claim(self, place=0, size=4, excluded=frozenset(), back=4, fault=None):
        waiting = [number for number in self.find("WAITING") if number not in excluded]
        ids = self.list_ids(excluded)
        self.take(place, waiting[:1], waiting[1:], size, back, fault, exclude=ids)

    @precondition(lambda self: self.find("WAITING") and self.idle)
    @rule(place=WORKERS, size=SIZES, fault=FAULTS)
    def claim_and_leave(self, place, size, fault):
        """A worker stops waiting for the answer; nothing renews the lease of a late one."""
        worker, waiting = self.idle[place % len(self.idle)], self.find("WAITING")
        worker.leaves = True
        with pytest.raises(ShutdownRequestedError):
            self.take(place, waiting[:1], waiting[1:], size, 4, fault)
        worker.leaves = False
        for row in self.read_trials():
            trial = self.trials[row.number]
            if row.state == "RUNNING" and trial.state == "WAITING":
                trial.state, trial.token = "RUNNING", json.loads(row.lease)["claim_token"]
                trial.memory, trial.is_left = dict(trial.curve), True
        assert self.trials[waiting[0]].is_left

    @precondition(lambda self: self.find("PAUSED") and self.idle)
    @rule(place=WORKERS, size=SIZES, order=st.permutations(range(12)), back=BACK, fault=FAULTS)
    def resume(self, place, size, order, back, fault):
        numbers, paused = [n for n in order if n < len(self.trials)], self.find("PAUSED")
        first = [number for number in numbers[:1] if number in paused]
        others, ids = [n for n in numbers[1:] if n in paused], self.list_ids(numbers)
        self.take(place, first, others, size, back, fault, paused_ids=ids)

    def take(self, place, first, others, size, back, fault, **options):
        worker = self.idle[place % len(self.idle)]
        matching = [number for number in others if first and number % 2 == first[0] % 2]
        names = {self.trials[number].worker for number in self.find("RUNNING")} | {worker.name}
        share = -(-(len(matching) + 1) // len(names)) - 1
        with worker.awake(fault):
            claims = worker.claim(Together(size, ["size"]), **options)
        expected = [*first, *matching[: min(size - 1, share)]]
        assert sorted(claim.trial.number for claim in claims) == sorted(expected)
        for claim in claims:
            trial = self.trial_of(claim)
            assert claim.trial.intermediate_values == trial.curve
            assert claim.trial.user_attrs.get("retries", {}) == trial.retries
            curve = self.begin(worker, claim, back)
            trial.state, trial.token, trial.memory = "RUNNING", claim.claim_token, curve
            trial.is_left = False
            worker.curves[claim] = curve
            worker.holdings.append(claim)

    def begin(self, worker, claim, back):
        """Begin to train a trial; return the curve from which it goes on."""
        curve = dict(self.trial_of(claim).curve)
        if back < 4 and curve:  # its checkpoint may be older than its curve
            curve = dict(itertools.islice(curve.items(), len(curve) * back // 4))
            claim.replace_curve(curve)
        return curve

    @precondition(can_pick)
    @rule(place=PICKS, points=SIZES, is_written=st.booleans(), fault=FAULTS)
    def train(self, place, points, is_written, fault):
        worker, claim = self.pick(place)
        curve = worker.curves[claim]
        first = max(curve, default=0) + LOG_EVERY
        for step in range(first, LAST_STEP + 1, LOG_EVERY)[:points]:
            curve[step] = next(self.losses)
            self.report(claim, curve, is_written)
        if is_written:
            with worker.awake(fault):
                worker.ask(lambda: None, after_flush=True)
            for each in worker.holdings:
                assert each.is_lost or self.is_held(each)
                if self.is_held(each):
                    self.trial_of(each).curve = dict(worker.curves[each])

    def report(self, claim, curve, is_saved):
        """Report the last value of a curve."""
        claim.report(*list(curve.items())[-1])

    @precondition(can_pick)
    @rule(place=PICKS, end=ENDS, fault=FAULTS)
    def leave(self, place=0, end="COMPLETE", fault=None):
        """Finish or pause a trial, which must be refused if the claim is lost."""
        worker, claim = self.pick(place)
        trial = self.trial_of(claim)
        is_held = self.is_held(claim)
        is_finish = end not in self.requeuing
        value = next(self.losses) if end == "COMPLETE" else None
        refused = permit(is_held, LeaseLostError)
        if fault and not is_held and (not is_finish or trial.finisher == claim.claim_token):
            refused = suppress(LeaseLostError)  # an answer that is lost may be that of the end
        with worker.awake(fault), refused:
            end = self.end(worker, claim, end, value)
        if self.let_go(worker, claim, end):
            trial.value = value
            trial.finisher = claim.claim_token if end in FINISHED else None
            if end == "WAITING":
                trial.retries[Failure.EXCEPTION] += 1

    def end(self, worker, claim, end, value):
        """End a trial; return the state that it then has."""
        attributes = (
            {"failure": FAILURES[end]} if end in FAILURES else {"worker": "me", "seconds": 1.0}
        )
        state = TrialState[STORED.get(end, end)]
        worker.finish(claim, state, value, attributes if end != "PAUSED" else {"rung": 20})
        return end

    def let_go(self, worker, claim, state):
        """Give the trial a state, unless the claim is lost; return whether it was held."""
        worker.holdings = [each for each in worker.holdings if each is not claim]
        trial, is_held = self.trial_of(claim), self.is_held(claim)
        if is_held:
            trial.state, trial.token, trial.curve = state, None, dict(trial.memory)
        return is_held

    @precondition(can_pick)
    @rule(place=PICKS, points=SIZES, cause=CAUSES, are_all=st.booleans(), fault=FAULTS)
    def requeue(self, place, points, cause, are_all, fault):
        self.train(place, points, False, None)
        worker, claim = self.pick(place)
        self.give_back(worker, worker.holdings if are_all else [claim], cause, fault)

    def give_back(self, worker, claims, cause, fault):
        with worker.awake(fault):
            cause = self.requeue_claims(worker, claims, cause)
        for claim in claims:
            if self.let_go(worker, claim, "WAITING"):
                self.trial_of(claim).retries[cause] += 1
                assert not claim.is_lost
            elif fault is None:
                assert claim.is_lost

    def requeue_claims(self, worker, claims, cause):
        worker.requeue_all(claims, cause)
        return cause

    @precondition(lambda self: self.find("RUNNING"))
    @rule(place=WORKERS, is_killed=st.sampled_from([False, False, True]))
    def stop(self, place, is_killed):
        """A worker stands still, and may write later, or is killed, and another one starts."""
        self.workers[place].is_awake = False
        if is_killed:
            self.workers[place].vanish()
            self.workers[place] = self.new_worker(place)

    @precondition(lambda self: self.find("RUNNING"))
    @rule(seconds=st.sampled_from([5, 29, 60, 3600]), fault=FAULTS)
    def pass_time(self, seconds, fault):
        """Workers that are awake send heartbeats in time, however long all of them stood still."""
        # In the second round each worker has seen the heartbeats of the others.
        for passed, order in ((30, 1), (seconds, -1)):
            self.clock.now += passed
            for worker in self.workers[::order]:
                if worker.is_awake:
                    with worker.awake(fault):
                        worker.work()
                    fault = None
            self.database_is_as_expected()  # notes when each heartbeat was sent

    def is_silent(self, trial):
        """Whether the worker of a running trial sends no heartbeats."""
        awake = {worker.name for worker in self.workers if worker.is_awake}
        return trial.state == "RUNNING" and (trial.is_left or trial.worker not in awake)

    @precondition(lambda self: any(map(self.is_silent, self.trials)))
    @precondition(lambda self: any(worker.is_awake for worker in self.workers))
    @rule()
    def expire(self):
        for _ in range(3):
            self.pass_time(30, None)
            self.database_is_as_expected()
        assert not any(map(self.is_silent, self.trials)), "its lease has not expired"

    @precondition(lambda self: any(each.holdings for each in self.workers if not each.is_awake))
    @precondition(lambda self: any(worker.is_awake for worker in self.workers))
    @rule()
    def lose(self):
        """A worker stands still until its trials are claimed by others; it may write later."""
        self.expire()
        if self.idle and self.find("WAITING"):
            self.claim()

    # ------------------------------------------------------------------ the whole study

    @precondition(lambda self: self.find("PAUSED"))
    @rule(planned=st.sampled_from([0, 0, 0, 1]))
    def prune_paused(self, planned):
        paused, planned = self.find("PAUSED"), len(self.trials) + planned
        reasons = {trial_id: {"rung": 20} for trial_id in self.list_ids(paused)}
        pruned = self.storages.main.prune_paused(self.study.study_id, planned, [reasons])
        if planned > len(self.trials):
            paused, reasons = [], {}
        assert pruned == [*reasons]
        for number in paused:
            self.trials[number].state = "PRUNED"

    def is_free(self, must_be_free):
        """Have workers let go of all trials, if this is wanted; return whether none is held."""
        if must_be_free:
            for worker in self.workers:
                self.give_back(worker, worker.holdings, Failure.INTERRUPTED, None)
            if self.find("RUNNING"):  # by killed workers
                self.expire()
        return not self.find("RUNNING")

    def reopen(self, number):
        self.trials[number] = Trial()
        del self.finished[number]

    @precondition(lambda self: self.find(*FAILURES))
    @rule(chosen=st.sets(st.sampled_from([*KINDS]), min_size=1), is_free=st.booleans())
    def retry(self, chosen, is_free):
        is_free = self.is_free(is_free)
        numbers = {kind: self.find(KINDS[kind]) for kind in chosen}
        with permit(is_free, UserError):
            found = retry_trials(self.storages.main, self.study.name, chosen)
            assert found == {kind: len(numbers[kind]) for kind in chosen}
            for number in itertools.chain(*numbers.values()):
                self.reopen(number)

    @precondition(lambda self: len(self.trials) < 10 and self.finished)
    @rule(points=st.integers(1, 3), is_free=st.booleans())
    def extend_points(self, points, is_free):
        numbers = range(len(self.trials), len(self.trials) + points)
        is_allowed = self.is_free(is_free) and not self.find("PRUNED")
        with permit(is_allowed, UserError):
            self.extend(numbers)
            self.trials += [Trial() for _ in numbers]

    def extend(self, points):
        editions = {"edition": self.edition}, {"edition": self.edition + 1}
        size = len(self.trials) + len(points)
        arguments = self.study.study_id, *editions, *self.storages.plan(points), size
        assert extend_study(self.storages.main, *arguments)
        assert not extend_study(self.storages.main, *arguments), "it was extended meanwhile"
        self.edition += 1

    @precondition(lambda self: len(self.finished) > 1)
    @rule(is_free=st.booleans())
    def delete(self, is_free):
        with permit(self.is_free(is_free), UserError):
            delete_study(self.storages.main, self.study.name)
            assert self.storages.read_rows() == self.rows_of_others
            self.start()

    @precondition(lambda self: any(trial.curve for trial in self.trials))
    @rule()
    def read_progress(self):
        """A reader that knows what it read earlier finds the same as a new one."""
        found = self.reader.read()
        assert repr(found) == repr(self.new_reader().read())
        for trial, expected in zip(found, self.trials, strict=True):
            assert (trial.state.name, trial.is_paused) == expected.stored_state
            for rung, loss in zip(RUNGS, trial.losses, strict=True):
                steps = range(rung.after + LOG_EVERY, rung.step + 1, LOG_EVERY)
                losses = [expected.curve[step] for step in steps if step in expected.curve]
                is_reached = rung.step in expected.curve
                assert (loss == sum(losses) / len(losses)) if is_reached else loss != loss

    # ------------------------------------------------------------------ what plain SQL finds

    def read_trials(self):
        user = "SELECT value_json FROM trial_user_attributes WHERE trial_id = t.trial_id AND key"
        system = user.replace("user", "system")
        return self.storages.sql(
            f"SELECT t.number, t.state, t.datetime_complete AS ended, v.value, "
            f"({system} = 'lease') AS lease, ({system} = 'paused') AS since, "
            f"({user} = 'retries') AS retries FROM trials t LEFT JOIN trial_values v "
            f"ON v.trial_id = t.trial_id WHERE study_id = {self.study.study_id} ORDER BY t.number"
        )

    def read_curves(self):
        curves = [{} for _ in self.trials]
        for number, step, loss in self.storages.sql(
            "SELECT number, step, intermediate_value FROM trials JOIN trial_intermediate_values "
            f"USING (trial_id) WHERE study_id = {self.study.study_id} ORDER BY number, step"
        ):
            curves[number][step] = loss
        return curves

    @invariant()
    def database_is_as_expected(self):
        rows, curves = self.read_trials(), self.read_curves()
        assert [row.number for row in rows] == list(range(len(self.trials)))
        for row, curve, trial in zip(rows, curves, self.trials, strict=True):
            self.note_expiry(row, trial)
            if trial.state == "RUNNING" and curve != trial.curve:  # its worker may have written
                trial.curve = dict(trial.memory)
            assert (row.state, row.since is not None) == trial.stored_state
            assert (row.value, curve) == (trial.value, trial.curve)
            assert json.loads(row.retries or "{}") == trial.retries
            assert list(curve) == list(range(LOG_EVERY, LOG_EVERY * len(curve) + 1, LOG_EVERY))
            assert (row.ended is not None) == (trial.state in FINISHED)
            assert row.state != "WAITING" or row.lease is None
            if trial.state in FINISHED:
                assert self.finished.setdefault(row.number, (row, curve)) == (row, curve)

    def note_expiry(self, row, trial):
        """A worker that stopped its heartbeats may lose its trial, and no other worker may."""
        if trial.state != "RUNNING":
            self.heard.pop(row.number, None)
        elif row.state == "RUNNING":
            lease = json.loads(row.lease)
            assert lease["claim_token"] == trial.token
            heard = lease["claim_token"], lease["heartbeats"], lease["seconds"]
            if self.heard.get(row.number, (None,))[0] != heard:
                self.heard[row.number] = heard, self.clock.now
        elif row.state == "WAITING":
            (_, _, seconds), since = self.heard.pop(row.number)
            assert self.clock.now - since >= seconds
            assert self.is_silent(trial)
            trial.state, trial.token = "WAITING", None
            trial.retries[Failure.LEASE_EXPIRED] += 1

    def teardown(self):
        if sys.exc_info()[0] is None:
            self.finish_all(slice(0, None, 2))
            if self.find("PAUSED"):
                self.prune_paused(0)
            self.database_is_as_expected()
            assert {trial.state for trial in self.trials} <= FINISHED
        for worker in self.workers:
            worker.vanish()

    def finish_all(self, resumed=slice(None)):
        """One worker that outlives all others finishes every trial but some that are paused."""
        for place in range(len(self.workers)):
            self.stop(place, True)
        if self.find("RUNNING"):
            self.expire()
        for number in self.find("PAUSED")[resumed]:
            self.take(0, [number], [], 1, 4, None, paused_ids=self.list_ids([number]))
            self.leave()
        while self.find("WAITING"):
            self.claim()
            self.train(0, 2, True, None)
            while self.can_pick():
                self.leave()
        self.database_is_as_expected()


LOOP = StudyConfig.model_validate(
    {
        "loop": {"metric": "loss", "steps": LAST_STEP, "log_every": LOG_EVERY},
        "space": {"x": [0, 1], "size": [0, 1]},
        "checkpoint": {"seconds": 1e-9},
    }
)


class LoopQueue(TrialQueue):
    """Queue of a worker whose trials write nothing when they are collected as garbage."""

    def _requeue_all(self, timeout):
        if sys.exc_info()[0] is not GeneratorExit:
            super()._requeue_all(timeout)


class LoopMachine(TrialMachine):
    """The same with live trials, which log, save and end as those of a user's loop do.

    A trial resumes from what was saved last, if only by a worker that had lost it.
    """

    requeuing = ("PAUSED", "FAIL")

    def __init__(self, storages, clock, folder):
        self.folder = folder
        super().__init__(storages, clock)

    def start(self):
        super().start()
        self.live = {}  # trial of each claim
        self.saved = {}  # curve in the checkpoint of each trial, by number
        files = TrialFiles(self.folder / self.study.artifact_folder, "checkpoint")
        self.opened = SimpleNamespace(config=LOOP, trial_files=lambda kind: files)

    def begin(self, worker, claim, back):
        queue = LoopQueue(self.opened, worker, ShutdownSignal())
        queue._active = [claim]
        versions = VersionRecord(code="", torch="")
        looping = SimpleNamespace(
            config=LOOP,
            queue=queue,
            name=worker.name,
            versions=versions,
            catch=(ValueError,),
            close=lambda: None,
            saves=None,
            unfinished=set(),
        )
        self.live[claim] = live = LoopTrial(looping, claim).__enter__()
        if back == 0:  # a loop that never resumes
            live.log(0)
            return {}
        curve = self.saved.get(claim.trial.number, {})
        expected = (max(curve, default=0), repr(curve).encode())
        assert live.resume(default=(0, b"{}")) == expected
        return dict(curve)

    def report(self, claim, curve, is_saved):
        live = self.live[claim]
        step = max(curve)
        with suppress(UserError):  # it has ended, or its worker knows that it is lost
            live.log(step, loss=curve[step])
            if is_saved:
                self.save(claim, curve)

    def save(self, claim, curve):
        is_known_to_be_lost = claim.is_lost
        try:
            self.live[claim].save(max(curve, default=0), repr(curve).encode())
        finally:
            if not is_known_to_be_lost:
                self.saved[claim.trial.number] = dict(curve)

    def end(self, worker, claim, end, value):
        live = self.live[claim]
        error = None
        if not live.is_held:
            raise LeaseLostError
        try:
            if end == "PAUSED":
                live._decision = PruneDecision(is_final=False, attributes={"rung": 20})
                self.save(claim, worker.curves[claim])
            elif end in ("COMPLETE", "DIVERGED"):
                live.finish(math.nan if value is None else value)
        except TrialStoppedError as stopped:
            error = stopped
        if end == "FAIL":
            error = ValueError("an exception that is tried again three times")
        if end == "PRUNED":
            error = TrialPruned()
        assert live.__exit__(error and type(error), error, None), "the exception left the block"
        if claim.is_lost:
            raise LeaseLostError
        if end == "FAIL" and self.trial_of(claim).retries[Failure.EXCEPTION] < MAX_RETRIES:
            return "WAITING"
        if end in FINISHED:
            self.saved.pop(claim.trial.number, None)
        return end

    def requeue_claims(self, worker, claims, cause):
        """Have an exception, which is not tried again, end the blocks."""
        for claim in claims:
            if self.live[claim].is_held:
                error = RuntimeError("an exception that leaves the loop")
                assert not self.live[claim].__exit__(type(error), error, None)
            else:
                super().requeue_claims(worker, [claim], cause)
        return Failure.INTERRUPTED


@pytest.mark.parametrize(
    ("url", "examples", "steps"),
    [
        ("sqlite", 8, 40),
        pytest.param("sqlite", 80, 50, marks=pytest.mark.extended),
        pytest.param("postgresql", 8, 30, marks=pytest.mark.extended),
    ],
    indirect=["url"],
)
@pytest.mark.parametrize("is_loop", [False, True], ids=["networks", "loop"])
def test_trials_live_as_expected_whatever_happens_to_workers(
    url, examples, steps, is_loop, monkeypatch, tmp_path
):
    clock = SimpleNamespace(now=0.0)
    moved = SimpleNamespace(**vars(time) | {"monotonic": lambda: clock.now})
    monkeypatch.setattr("search.worker.claims.time", moved)
    monkeypatch.setattr("search.worker.queue.POLL_INTERVAL", 0.0)
    # Add Phase.shrink to have a failure made short, which takes minutes.
    chosen = settings(
        TrialMachine.TestCase.settings,
        derandomize=True,
        max_examples=examples // 2 if is_loop else examples,
        stateful_step_count=steps,
        phases=[Phase.generate],
    )
    with closing(Storages(url)) as storages:

        def start():
            if is_loop:
                return LoopMachine(storages, clock, tmp_path)
            return TrialMachine(storages, clock)

        run_as_test(start, settings=chosen)
