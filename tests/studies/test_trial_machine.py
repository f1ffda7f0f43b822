"""The life of trials as a state machine: any workers, in any order, with faults between.

Hypothesis chooses the steps. After each one plain SQL must find what a model in Python expects. All
access to the project's own code is in the classes :class:`Worker` and :class:`Storages`.
"""

import itertools
import json
import sys
import time
from collections import Counter
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from types import SimpleNamespace

import optuna
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from hypothesis.stateful import run_state_machine_as_test as run_as_test
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState

from search.pruning.rungs import Rung
from search.worker.claims import ClaimManager
from search.worker.shutdown import ShutdownSignal
from studies.attributes import Failure
from studies.errors import LeaseLostError, StudiesError, StudyDeletedError, StudyHeldError
from studies.storage.create_study import PlannedTrial, create_study, extend_study
from studies.storage.earlier_ends import NewEnd
from studies.storage.failed_trials import retry_trials
from studies.storage.open import load_study, open_storage
from studies.storage.presence import StudyIdentity
from studies.storage.study_changes import delete_study
from studies.storage.trial_progress import ProgressReader

LEASES = (120, 120, 60)
"""Duration of the leases of each worker, in seconds."""

LOG_EVERY = 10
RUNGS = [Rung(20, 0), Rung(40, 30), Rung(80, 60)]
FINISHED = ("COMPLETE", "PRUNED", "FAIL")
TABLES = [
    table.name for table in optuna.storages._rdb.models.BaseModel.metadata.sorted_tables
    if table.name != "version_info"
]  # fmt: skip


# ------------------------------------------------------------------ access to the project's code


class LostConnectionError(Exception):
    """Error of a database driver."""


class ClaimManagerWithoutThread(ClaimManager):
    """Does and repeats what the storage thread does, but in the thread of the caller."""

    def work(self):
        self._retrying(self._process)
        self._outage_message = None

    def _submit(self, operation, future):
        super()._submit(operation, future)
        self.work()

    def _sleep(self, seconds):
        """Do not wait between two attempts."""


class Worker:
    """A worker of the study, with its own connections, whose commits can fail.

    Attributes:
        holdings: the trials that it believes to hold.
        ended: those that it has let go of.
        is_awake: whether it sends heartbeats.
    """

    def __init__(self, storage, study, name, lease):
        self.name, self.storage = name, storage
        self.holdings, self.ended, self.is_awake = [], [], True
        storage.require_study(study)
        stop = ShutdownSignal()
        self._manager = ClaimManagerWithoutThread(storage, study.study_id, name, stop, lease)

    @contextmanager
    def failing(self, fault):
        """Have the connection break once: before or after the commit of a number."""
        dialect, count = self.storage.engine.dialect, itertools.count()
        commit, (moment, number) = dialect.do_commit, fault or (None, None)

        def do_commit(connection):
            breaks = next(count) == number
            if not (breaks and moment == "before"):
                commit(connection)
            if breaks:
                raise sa.exc.OperationalError("COMMIT", {}, LostConnectionError("is lost"))

        dialect.do_commit = do_commit
        try:
            yield
        finally:
            del dialect.do_commit

    def work(self):
        self._manager.work()

    def claim(self, **options):
        return self._manager.claim(lockstep_params=lambda trial: ["size"], **options)

    def flush(self):
        self._manager.query_after_flush(lambda: None)

    def finish(self, claim, state, value, attributes):
        self._manager.finish(claim, TrialState[state], value, attributes)

    def pause(self, claim):
        self._manager.pause(claim, {"rung": 20})

    def requeue(self, claims, cause):
        self._manager.requeue_all(claims, cause)

    def vanish(self):
        note = self._manager._note_statement
        sa.event.remove(self.storage.engine, "before_cursor_execute", note)


class Storages:
    """The study's storage, as several processes open it, and what is done to a whole study."""

    def __init__(self, url):
        self.url = url
        self.pool = [open_storage(url) for _ in LEASES]
        self._storage = open_storage(url)
        self.rows = sa.create_engine(url, isolation_level="AUTOCOMMIT").connect()

    def close(self):
        self.rows.close()
        for storage in (*self.pool, self._storage):
            storage.close()

    def sql(self, statement):
        return self.rows.exec_driver_sql(statement).all()

    def clear(self):
        for table in reversed(TABLES):
            self.rows.exec_driver_sql(f"DELETE FROM {table}")

    def count_rows(self):
        return [self.sql(f"SELECT count(*) FROM {table}") for table in TABLES]

    def create(self, name, points):
        folder = f"folder-{time.perf_counter_ns()}"
        attributes = {"artifact_folder": folder, "edition": 1}
        create_study(self._storage, name, "loss", attributes, *self._plan(range(points)))
        study_id = load_study(self._storage, name)._study_id
        return StudyIdentity(study_id, name, folder)

    def _plan(self, points):
        choices = {"x": tuple(points) or (0,), "size": (0, 1)}
        trials = [PlannedTrial({"x": x, "size": x % 2}) for x in points]
        return {name: CategoricalDistribution(of) for name, of in choices.items()}, trials

    def claim(self, study):
        return self._storage.claim(study.study_id, "elsewhere/token")

    def prune_paused(self, study, planned, trial_ids):
        reasons = {trial_id: {"rung": 20} for trial_id in trial_ids}
        return self._storage.prune_paused(study.study_id, planned, reasons)

    def retry(self, study, kinds):
        return retry_trials(self._storage, study.name, kinds)

    def extend(self, study, edition, points, steps):
        editions = {"edition": edition}, {"edition": edition + 1}
        new_end = steps and NewEnd(*steps)
        plan = self._plan(points)
        return extend_study(self._storage, study.study_id, *editions, *plan, new_end)

    def delete(self, study):
        delete_study(self._storage, study.name)

    def progress(self, study):
        return ProgressReader(self._storage, study.study_id, RUNGS)


# ------------------------------------------------------------------ the model


@dataclass
class Trial:
    """What the model expects of a trial."""

    state: str = "WAITING"
    token: str | None = None  # of the claim under which it runs
    finisher: str | None = None  # token of the claim under which it was finished
    is_paused: bool = False
    curve: dict = field(default_factory=dict)
    value: float | None = None
    retries: Counter = field(default_factory=Counter)
    failure: Failure | None = None

    @property
    def is_waiting(self):
        return self.state == "WAITING" and not self.is_paused

    @property
    def worker(self):
        return self.token.rpartition("/")[0]


@dataclass
class Holding:
    """A claimed trial, and the whole curve that its worker has in memory."""

    claim: object
    number: int
    curve: dict


FAULTS = st.sampled_from([None, None, None, *itertools.product(("before", "after"), range(3))])
"""When a connection breaks; after a commit, only its answer is lost."""

WORKERS = st.integers(0, len(LEASES) - 1)
PICKS = st.integers(0, 9)
SIZES = st.integers(1, 4)
BACK = st.integers(0, 4)
ENDS = st.sampled_from([*FINISHED, "COMPLETE", "COMPLETE", "FAIL"])
CAUSES = st.sampled_from([Failure.INTERRUPTED, Failure.EXCEPTION])
KINDS = st.sampled_from([("failed",), ("diverged",), ("failed", "diverged")])
STEPS = st.sampled_from(["train", "finish", "pause", "requeue"])


class TrialMachine(RuleBasedStateMachine):
    """Workers that claim, train and leave the trials of one study, and what is done to it."""

    def __init__(self, storages, clock):
        super().__init__()
        self.storages, self.clock = storages, clock
        self.names = map("host/{}".format, itertools.count())
        self.losses = map(float, itertools.count(1))
        self.workers = []
        storages.clear()
        storages.claim(storages.create("other", 2))
        self.rows_of_others = storages.count_rows()
        self.start()

    def start(self):
        self.study = self.storages.create("made", 5)
        self.trials = [Trial() for _ in range(5)]
        self.finished, self.heard = {}, {}
        self.end, self.edition = 100, 1
        self.reader = self.storages.progress(self.study)
        for worker in self.workers:  # of a study that was deleted and had the same name and id
            with pytest.raises(StudyDeletedError):
                worker.claim()
            worker.vanish()
        self.workers = [self.new_worker(place) for place in range(len(LEASES))]

    def new_worker(self, place):
        return Worker(self.storages.pool[place], self.study, next(self.names), LEASES[place])

    @property
    def running(self):
        return [trial for trial in self.trials if trial.state == "RUNNING"]

    @property
    def idle(self):
        """The workers that may claim, because they hold nothing."""
        return [worker for worker in self.workers if not worker.holdings]

    def is_any(self, *states):
        return any(trial.state in states for trial in self.trials)

    def is_any_waiting(self):
        return any(trial.is_waiting for trial in self.trials)

    def is_any_paused(self):
        return any(trial.is_paused for trial in self.trials)

    def list_ids(self, numbers):
        query = f"SELECT trial_id FROM trials WHERE study_id = {self.study.study_id}"
        ids = [trial_id for (trial_id,) in self.storages.sql(f"{query} ORDER BY number")]
        return [ids[number] for number in numbers]

    def pick(self, place):
        """Choose one of all claims: often one that is lost, sometimes one that has ended."""
        held = [(worker, each) for worker in self.workers for each in worker.holdings]
        lost = [pair for pair in held if not self.is_held(pair[1])]
        ended = [(worker, each) for worker in self.workers for each in worker.ended]
        chosen = {place < 5: lost, place == 9: ended}.get(True) or held
        return chosen[place % len(chosen)]

    def can_pick(self):
        return any(worker.holdings for worker in self.workers)

    def is_held(self, holding):
        return self.trials[holding.number].token == holding.claim.claim_token

    # ------------------------------------------------------------------ steps of workers

    @precondition(lambda self: self.is_any_waiting() and self.idle)
    @rule(place=WORKERS, size=SIZES, excluded=st.sets(BACK, max_size=2), back=BACK, fault=FAULTS)
    def claim(self, place=0, size=4, excluded=frozenset(), back=4, fault=None):
        numbers = [number for number in range(len(self.trials)) if number not in excluded]
        waiting = [number for number in numbers if self.trials[number].is_waiting]
        ids = self.list_ids(excluded)
        self.take(place, waiting[:1], waiting[1:], size, back, fault, exclude=ids)

    @precondition(lambda self: self.is_any_paused() and self.idle)
    @rule(place=WORKERS, size=SIZES, order=st.permutations(range(12)), back=BACK, fault=FAULTS)
    def resume(self, place, size, order, back, fault):
        numbers = [number for number in order if number < len(self.trials)]
        first = [number for number in numbers[:1] if self.trials[number].is_paused]
        others = [number for number in numbers[1:] if self.trials[number].is_paused]
        ids = self.list_ids(numbers)
        self.take(place, first, others, size, back, fault, paused_ids=ids)

    def take(self, place, first, others, size, back, fault, **options):
        worker = self.idle[place % len(self.idle)]
        matching = [number for number in others if first and number % 2 == first[0] % 2]
        names = {trial.worker for trial in self.running} | {worker.name}
        share = -(-(len(matching) + 1) // len(names)) - 1
        with worker.failing(fault):
            claims = worker.claim(lockstep_size=lambda trial: size, **options)
        worker.is_awake = True
        expected = [*first, *matching[: min(size - 1, share)]]
        assert sorted(claim.trial.number for claim in claims) == sorted(expected)
        for claim in claims:
            trial = self.trials[claim.trial.number]
            assert claim.trial.intermediate_values == trial.curve
            assert claim.trial.user_attrs.get("retries", {}) == trial.retries
            trial.state, trial.token, trial.is_paused = "RUNNING", claim.claim_token, False
            holding = Holding(claim, claim.trial.number, dict(trial.curve))
            worker.holdings.append(holding)
            if back < 4 and trial.curve:  # its checkpoint may be older than its curve
                kept = itertools.islice(trial.curve.items(), len(trial.curve) * back // 4)
                holding.curve = dict(kept)
                claim.replace_curve(holding.curve)

    @precondition(can_pick)
    @rule(place=PICKS, points=SIZES, is_written=st.booleans(), fault=FAULTS)
    def train(self, place, points, is_written, fault):
        worker, holding = self.pick(place)
        first = max(holding.curve, default=0) + LOG_EVERY
        for step in range(first, self.end + 1, LOG_EVERY)[:points]:
            holding.curve[step] = next(self.losses)
            holding.claim.report(step, holding.curve[step])
        if not is_written:
            return
        with worker.failing(fault):
            worker.flush()
        worker.is_awake = True
        for each in worker.holdings:
            if self.is_held(each):
                self.trials[each.number].curve = dict(each.curve)
            else:
                assert each.claim.lost

    def leave(self, place, fault, operation, is_finish=False):
        """End a claim; return the trial and the token, or None if that had to be refused."""
        worker, holding = self.pick(place)
        trial = self.trials[holding.number]
        token = holding.claim.claim_token
        is_held = trial.token == token
        # An answer that is lost may be that of the end.
        may_pass = fault is not None and (not is_finish or trial.finisher == token)
        refused = pytest.raises(LeaseLostError)
        if is_held or may_pass:
            refused = nullcontext() if is_held else suppress(LeaseLostError)
        with worker.failing(fault), refused:
            operation(worker, holding.claim)
        worker.is_awake = True
        self.let_go(worker, [holding])
        if not is_held:
            return None
        trial.token, trial.curve = None, dict(holding.curve)
        return trial, token

    def let_go(self, worker, holdings):
        worker.holdings = [each for each in worker.holdings if each not in holdings]
        worker.ended = [each for each in worker.ended if each not in holdings] + holdings

    @precondition(can_pick)
    @rule(place=PICKS, state=ENDS, is_diverged=st.booleans(), fault=FAULTS)
    def finish(self, place=0, state="COMPLETE", is_diverged=False, fault=None):
        value = next(self.losses) if state == "COMPLETE" else None
        failure = Failure.DIVERGED if is_diverged else Failure.EXCEPTION
        attributes = {"failure": failure} if state == "FAIL" else {"worker": "me"}
        end = (lambda worker, claim: worker.finish(claim, state, value, attributes)), True
        if left := self.leave(place, fault, *end):
            trial, trial.finisher = left
            trial.state, trial.value, trial.failure = state, value, failure

    @precondition(can_pick)
    @rule(place=PICKS, fault=FAULTS)
    def pause(self, place, fault):
        if left := self.leave(place, fault, lambda worker, claim: worker.pause(claim)):
            left[0].state, left[0].is_paused = "WAITING", True

    @precondition(can_pick)
    @rule(place=PICKS, cause=CAUSES, are_all=st.booleans(), fault=FAULTS)
    def requeue(self, place, cause, are_all, fault):
        worker, holding = self.pick(place)
        self.give_back(worker, [*worker.holdings] if are_all else [holding], cause, fault)

    def give_back(self, worker, holdings, cause, fault):
        with worker.failing(fault):
            worker.requeue([each.claim for each in holdings], cause)
        worker.is_awake = True
        for each in holdings:
            trial = self.trials[each.number]
            if self.is_held(each):
                trial.state, trial.token, trial.curve = "WAITING", None, dict(each.curve)
                trial.retries[cause] += 1
                assert not each.claim.lost
            elif fault is None:
                assert each.claim.lost
        self.let_go(worker, holdings)

    @precondition(lambda self: self.running)
    @rule(place=WORKERS, is_killed=st.sampled_from([False, False, True]))
    def stop(self, place, is_killed):
        """A worker stands still, and may write later, or is killed, and another one starts."""
        self.workers[place].is_awake = False
        if is_killed:
            self.workers[place].vanish()
            self.workers[place] = self.new_worker(place)

    # ------------------------------------------------------------------ time

    @precondition(lambda self: self.running)
    @rule(seconds=st.sampled_from([5, 29, 60, 3600]), fault=FAULTS)
    def pass_time(self, seconds, fault):
        """Workers that are awake send heartbeats in time, however long all of them stood still."""
        # In the second round each worker has seen the heartbeats of the others.
        for passed, order in ((30, 1), (seconds, -1)):
            self.clock.now += passed
            for worker in self.workers[::order]:
                if worker.is_awake:
                    with worker.failing(fault):
                        worker.work()
                    fault = None

    def is_silent(self, trial):
        """Whether the worker of a running trial sends no heartbeats."""
        awake = {worker.name for worker in self.workers if worker.is_awake}
        return trial.state == "RUNNING" and trial.worker not in awake

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
    @rule(step=STEPS, fault=FAULTS)
    def write_late(self, step, fault):
        """A worker stands still until its trials are claimed by others, and writes then."""
        self.expire()
        if self.idle and self.is_any_waiting():
            self.claim()
        options = {"train": (1, True), "requeue": (Failure.EXCEPTION, True)}
        getattr(self, step)(0, *options.get(step, ()), fault=fault)

    # ------------------------------------------------------------------ the whole study

    @precondition(is_any_paused)
    @rule(planned=st.sampled_from([0, 0, 0, 1]))
    def prune_paused(self, planned):
        paused = [number for number, trial in enumerate(self.trials) if trial.is_paused]
        ids, planned = self.list_ids(paused), len(self.trials) + planned
        pruned = self.storages.prune_paused(self.study, planned, ids)
        if self.running or self.is_any_waiting() or planned > len(self.trials):
            assert pruned == []
            return
        assert pruned == ids
        for number in paused:
            self.trials[number].state, self.trials[number].is_paused = "PRUNED", False

    def is_free(self, must_be_free):
        """Have workers let go of all trials, if this is wanted; return whether none is held."""
        for worker in self.workers if must_be_free else ():
            if worker.holdings:
                self.give_back(worker, [*worker.holdings], Failure.INTERRUPTED, None)
            worker.is_awake = True
        if must_be_free and self.running:  # by killed workers
            self.expire()
        return not self.running

    def reopen(self, number, keeps_curve=False):
        old = self.trials[number]
        self.trials[number] = Trial(curve=old.curve if keeps_curve else {})
        del self.finished[number]

    @precondition(lambda self: self.is_any("FAIL"))
    @rule(kinds=KINDS, is_free=st.booleans())
    def retry(self, kinds, is_free):
        if not self.is_free(is_free):
            with pytest.raises(StudyHeldError):
                self.storages.retry(self.study, kinds)
            return
        counts = dict.fromkeys(kinds, 0)
        for number, trial in enumerate(self.trials):
            kind = "diverged" if trial.failure is Failure.DIVERGED else "failed"
            if trial.state == "FAIL" and kind in kinds:
                counts[kind] += 1
                self.reopen(number)
        assert self.storages.retry(self.study, kinds) == counts

    @precondition(lambda self: len(self.trials) < 10 and self.finished)
    @rule(points=st.integers(1, 3), is_free=st.booleans())
    def extend_points(self, points, is_free):
        numbers = range(len(self.trials), len(self.trials) + points)
        if self.extend(numbers, None, self.is_free(is_free) and not self.is_any("PRUNED")):
            self.trials += [Trial() for _ in numbers]

    @precondition(lambda self: self.is_any("COMPLETE"))
    @rule(checkpointed=st.frozensets(PICKS, min_size=3), is_free=st.booleans())
    def extend_steps(self, checkpointed, is_free):
        if is_free:
            self.finish_all()
        is_allowed = not self.running and not self.is_any("PRUNED")
        complete = [n for n, trial in enumerate(self.trials) if trial.state == "COMPLETE"]
        is_allowed &= not self.is_any_paused() and bool(checkpointed & {*complete})
        steps = self.end + 20, self.end, "a command", checkpointed
        if self.extend((), steps, is_allowed):
            self.end += 20
            for number in complete:
                self.reopen(number, keeps_curve=number in checkpointed)

    def extend(self, points, steps, is_allowed):
        arguments = self.study, self.edition, points, steps
        if not is_allowed:
            with pytest.raises(StudiesError):
                self.storages.extend(*arguments)
            return False
        assert self.storages.extend(*arguments)
        assert not self.storages.extend(*arguments), "another process has extended it"
        self.edition += 1
        return True

    @precondition(lambda self: len(self.finished) > 2)
    @rule(is_free=st.booleans())
    def delete(self, is_free):
        if not self.is_free(is_free):
            with pytest.raises(StudyHeldError):
                self.storages.delete(self.study)
            return
        self.storages.delete(self.study)
        assert self.storages.count_rows() == self.rows_of_others
        self.start()

    @precondition(lambda self: any(trial.curve for trial in self.trials))
    @rule()
    def read_progress(self):
        """A reader that knows what it read earlier finds the same as a new one."""
        found = self.reader.read()
        assert repr(found) == repr(self.storages.progress(self.study).read())
        for trial, expected in zip(found, self.trials, strict=True):
            assert (trial.state.name, trial.is_paused) == (expected.state, expected.is_paused)
            for rung, loss in zip(RUNGS, trial.losses, strict=True):
                steps = range(rung.after + LOG_EVERY, rung.step + 1, LOG_EVERY)
                losses = [expected.curve[step] for step in steps if step in expected.curve]
                is_reached = rung.step in expected.curve
                assert (loss == sum(losses) / len(losses)) if is_reached else loss != loss

    # ------------------------------------------------------------------ what plain SQL finds

    def read_trials(self):
        of_trial = "trial_id = t.trial_id"
        system = f"SELECT value_json FROM trial_system_attributes WHERE {of_trial} AND key"
        user = f"SELECT value_json FROM trial_user_attributes WHERE {of_trial} AND key"
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
        (points,) = self.storages.sql(
            "SELECT count(DISTINCT param_value) FROM trial_params JOIN trials USING (trial_id) "
            f"WHERE param_name = 'x' AND study_id = {self.study.study_id}"
        )
        assert points == (len(self.trials),)
        assert [row.number for row in rows] == list(range(len(self.trials)))
        for row, curve, trial in zip(rows, curves, self.trials, strict=True):
            self.note_expiry(row, trial)
            self.note_flush(row.number, curve, trial)
            assert row.state == trial.state
            assert (row.since is not None) == trial.is_paused
            assert row.value == trial.value
            assert json.loads(row.retries or "{}") == trial.retries
            assert curve == trial.curve
            assert list(curve) == list(range(LOG_EVERY, LOG_EVERY * len(curve) + 1, LOG_EVERY))
            assert (row.ended is not None) == (trial.state in FINISHED)
            assert trial.state != "WAITING" or row.lease is None
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

    def note_flush(self, number, curve, trial):
        """The worker that holds a trial may have written what it has in memory."""
        if trial.state == "RUNNING" and curve != trial.curve:
            holdings = [each for worker in self.workers for each in worker.holdings]
            held = filter(self.is_held, holdings)
            trial.curve = next(dict(each.curve) for each in held if each.number == number)

    def teardown(self):
        if sys.exc_info()[0] is None:
            self.drain()
        for worker in self.workers:
            worker.vanish()

    def finish_all(self, resumed=slice(None)):
        """One worker that outlives all others finishes every trial but some that are paused."""
        for place in range(len(self.workers)):
            self.stop(place, True)
        if self.running:
            self.expire()
        paused = [number for number, trial in enumerate(self.trials) if trial.is_paused]
        for number in paused[resumed]:
            self.take(0, [number], [], 1, 4, None, paused_ids=self.list_ids([number]))
            self.finish()
        while self.is_any_waiting():
            self.claim()
            self.train(0, 2, True, None)
            while self.can_pick():
                self.finish()
        self.database_is_as_expected()

    def drain(self):
        self.finish_all(slice(0, None, 2))
        if self.is_any_paused():
            self.prune_paused(0)
        self.database_is_as_expected()
        assert {trial.state for trial in self.trials} <= {*FINISHED}
        read = optuna.load_study(study_name="made", storage=self.storages.url).trials
        assert [(trial.state.name, trial.intermediate_values) for trial in read] == [
            (trial.state, trial.curve) for trial in self.trials
        ]
        bystanders = (
            "SELECT state FROM trials JOIN studies USING (study_id) WHERE study_name = 'other' "
            "ORDER BY number"
        )
        assert self.storages.sql(bystanders) == [("RUNNING",), ("WAITING",)]


def run_machine(url, monkeypatch, examples, steps):
    clock = SimpleNamespace(now=0.0)
    moved = SimpleNamespace(**vars(time) | {"monotonic": lambda: clock.now})
    for module in ("search.worker.claim", "search.worker.claims"):
        monkeypatch.setattr(f"{module}.time", moved)
    chosen = settings(
        max_examples=examples,
        stateful_step_count=steps,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    with closing(Storages(url)) as storages:
        run_as_test(lambda: TrialMachine(storages, clock), settings=chosen)


def test_trials_live_as_expected_whatever_happens_to_workers(sqlite_url, monkeypatch):
    run_machine(sqlite_url, monkeypatch, 30, 40)


@pytest.mark.extended
def test_trials_live_as_expected_in_many_searches(sqlite_url, monkeypatch):
    run_machine(sqlite_url, monkeypatch, 80, 50)


@pytest.mark.extended
def test_trials_live_as_expected_on_a_server(postgresql_url, monkeypatch):
    run_machine(postgresql_url, monkeypatch, 8, 30)
