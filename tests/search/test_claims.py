"""What a worker's claims go through: storages that are away, silent, locked; and other workers."""

import contextlib
import sqlite3
import threading
import time
from types import SimpleNamespace

import pytest
import sqlalchemy as sa
from helpers import small_study
from hooks import PATIENT_SECONDS
from optuna.trial import TrialState
from process_runner import until

from search.errors import ShutdownRequestedError
from search.worker.claims import ClaimManager
from search.worker.shutdown import ShutdownSignal
from studies.attributes import Failure
from studies.errors import LeaseLostError, StorageUnavailableError
from studies.storage.leases import LeaseMonitor
from studies.storage.open import open_storage


class Study:
    """A small study, and keepers that work on it."""

    def __init__(self, url, count=3):
        self.url = url
        self.storage = open_storage(url)
        self.study_id = small_study(self.storage, count)
        self.said = []

    def keeper(
        self,
        worker="me",
        stop=None,
        lease=PATIENT_SECONDS,
        outage=10 * PATIENT_SECONDS,
        storage=None,
    ):
        return ClaimManager(
            storage or open_storage(self.url),
            self.study_id,
            worker,
            stop or ShutdownSignal(),
            self.said.append,
            lease,
            outage,
        )

    def trial(self, claim):
        return self.storage.get_trial(claim.trial_id)


@pytest.fixture
def study(sqlite_url):
    return Study(sqlite_url)


@pytest.fixture
def each_study(url):
    """A study on each kind of database, for what depends on the database."""
    return Study(url)


class Clock:
    """The monotonic clock that keepers read; a test can move it forward."""

    def __init__(self):
        self._ahead = 0.0

    def monotonic(self):
        return time.monotonic() + self._ahead

    def advance(self, seconds, *keepers):
        """Let time pass; return once each of these keepers has done what is due by then."""
        self._ahead += seconds
        for keeper in keepers:
            until(lambda keeper=keeper: keeper._next_time() > self.monotonic())
            until(lambda keeper=keeper: keeper._since is None)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    moved = SimpleNamespace(**vars(time) | {"monotonic": clock.monotonic})
    for module in ("search.worker.claim", "search.worker.claims", "search.worker.storage_client"):
        monkeypatch.setattr(f"{module}.time", moved)
    monkeypatch.setattr("search.worker.storage_client._LONGEST_REST_SECONDS", 0.02)
    return clock


@pytest.fixture(autouse=True)
def _ends_its_thread(monkeypatch):
    """Let a keeper's context end only after its thread has, however slow the machine is."""
    monkeypatch.setattr("search.worker.storage_client.JOIN_SECONDS", PATIENT_SECONDS)


def test_a_trial_from_its_claim_to_its_end(each_study):
    study = each_study
    with study.keeper() as keeper:
        (claim,) = keeper.claim()
        assert study.trial(claim).state is TrialState.RUNNING
        for step in range(10):
            claim.report(step, 10.0 - step)
            keeper.check()
        keeper.finish(claim, TrialState.COMPLETE, 1.0, {"host": "h"})
    trial = study.trial(claim)
    assert (trial.state, trial.value, trial.user_attrs) == (TrialState.COMPLETE, 1.0, {"host": "h"})
    assert trial.intermediate_values == {step: 10.0 - step for step in range(10)}
    assert study.said == []


def test_values_are_recorded_while_it_trains(study):
    with study.keeper() as keeper:
        (claim,) = keeper.claim()
        claim.report(1, 2.0)
        until(lambda: study.trial(claim).intermediate_values == {1: 2.0})
        claim.report(2, 1.0)
        until(lambda: study.trial(claim).intermediate_values == {1: 2.0, 2: 1.0})


def test_a_curve_is_begun_anew_from_where_it_is_gone_on(study):
    with study.keeper() as keeper:
        (first,) = keeper.claim()
        first.report(1, 3.0)
        first.report(2, 2.5)
        keeper.requeue(first, Failure.INTERRUPTED)
        (claim,) = keeper.claim()
        assert claim.trial.intermediate_values == {1: 3.0, 2: 2.5}
        assert claim.trial.user_attrs == {"retries": {"interrupted": 1}}
        claim.begin_with({1: 2.75})
        keeper.finish(claim, TrialState.COMPLETE, 1.0, {})
    assert study.trial(claim).intermediate_values == {1: 2.75}


def test_a_lease_is_kept_alive_whatever_a_step_takes(study, clock):
    """The training thread does nothing at all for some lengths of the lease."""
    with study.keeper() as keeper, study.keeper("observer") as observer:
        (claim,) = keeper.claim()
        for _ in range(10):
            clock.advance(PATIENT_SECONDS / 4, keeper, observer)
        keeper.check()
        assert observer.claim()[0].trial.number == 1
        keeper.finish(claim, TrialState.COMPLETE, 1.0, {})


def test_who_is_gone_loses_its_trial_to_others_who_say_so(study, clock):
    with study.keeper("gone") as keeper:
        keeper.claim()
    with study.keeper("heir") as heir:
        heir.claim()  # also who trains watches
        clock.advance(0, heir)
        for _ in range(2):
            heir.check()
            assert not study.said
            clock.advance(PATIENT_SECONDS / 2, heir)
        heir.check()
        assert "was not heard of" in study.said[0]
        (claim,) = heir.claim()
        assert claim.trial.number == 0
        assert claim.trial.user_attrs == {"retries": {"lease_expired": 1}}


def test_who_has_lost_its_trial_is_told_at_the_next_look(study, clock):
    with study.keeper() as keeper:
        (claim,) = keeper.claim()
        study.storage.requeue(claim.trial_id, claim.claim_token, Failure.LEASE_EXPIRED)
        study.storage.claim(study.study_id, "heir", PATIENT_SECONDS)
        clock.advance(PATIENT_SECONDS / 4, keeper)
        keeper.check()
        assert claim.lost
        for end in (
            lambda: keeper.finish(claim, TrialState.COMPLETE, 1.0, {}),
            lambda: keeper.requeue(claim, Failure.INTERRUPTED),
        ):
            with pytest.raises(LeaseLostError):
                end()
    assert study.trial(claim).user_attrs == {"retries": {"lease_expired": 1}}


def test_trials_that_failed_here_are_taken_last(study):
    with study.keeper() as keeper:
        (first,) = keeper.claim()
        keeper.requeue(first, Failure.EXCEPTION, "ValueError: no")
        numbers = [keeper.claim(avoid={first.trial_id})[0].trial.number for _ in range(3)]
        assert numbers == [1, 2, 0]
        assert keeper.claim() == []


# ------------------------------------------------------------------ the storage is away


class AwayError(Exception):
    """What a database raises."""


@pytest.fixture
def broken(study, monkeypatch):
    """A switch that makes the storage fail: before a transaction, or after it was committed."""
    storage = open_storage(study.url)
    state = {"before": False, "after": False, "attempts": 0, "failed": set()}
    transaction = type(storage).transaction

    def fail():
        state["attempts"] += 1
        state["failed"].add(threading.current_thread())
        raise sa.exc.OperationalError("COMMIT", {}, AwayError("server closed the connection"))

    @contextlib.contextmanager
    def unreliable(self):
        if self is not storage:
            with transaction(self) as connection:
                yield connection
            return
        if state["before"]:
            fail()
        with transaction(self) as connection:
            yield connection
        if state["after"]:
            state["after"] = False  # the answer of this one is lost
            fail()

    monkeypatch.setattr(type(storage), "transaction", unreliable)
    return storage, state


def test_no_value_is_lost_while_the_storage_is_away(study, broken, monkeypatch):
    storage, state = broken
    forgotten = []
    monkeypatch.setattr(LeaseMonitor, "reset", lambda self: forgotten.append(self))
    with study.keeper(storage=storage) as keeper:
        (claim,) = keeper.claim()
        state["before"] = True
        for step in range(5):
            claim.report(step, float(step))
        until(lambda: keeper.check() or study.said)
        until(lambda: state["attempts"] > 3)
        state["before"] = False
        until(lambda: keeper.check() or len(study.said) > 1)
        assert study.said == [
            "the storage is away (server closed the connection); what is found meanwhile is kept",
            "the storage is back",
        ]
        until(lambda: len(study.trial(claim).intermediate_values) == 5)
        assert forgotten, "what was seen before an outage must not count after it"
        keeper.finish(claim, TrialState.COMPLETE, 1.0, {})


def test_an_answer_that_is_lost_changes_nothing(study, broken):
    """A connection breaks when the transaction is committed: it was done, and is not done twice."""
    storage, state = broken
    with study.keeper(storage=storage) as keeper:
        until(lambda: keeper._watch_at)  # its first look at the others is done
        state["after"] = True
        (claim,) = keeper.claim()
        assert not state["after"]
        assert claim.trial.number == 0
        claim.report(1, 2.0)
        state["after"] = True
        keeper.requeue(claim, Failure.INTERRUPTED)
        state["after"] = True
        (claim,) = keeper.claim()
        assert claim.trial.number == 0
        assert claim.trial.user_attrs == {"retries": {"interrupted": 1}}
        state["after"] = True
        keeper.finish(claim, TrialState.COMPLETE, 1.0, {})
        assert state["attempts"] == 4
    states = [trial.state for trial in study.storage.get_all_trials(study.study_id)]
    assert states == [TrialState.COMPLETE, TrialState.WAITING, TrialState.WAITING]
    assert study.trial(claim).intermediate_values == {1: 2.0}


def test_a_storage_is_waited_for_and_no_longer(study, broken):
    storage, state = broken
    with study.keeper(storage=storage, outage=0.5) as keeper:
        (claim,) = keeper.claim()
        state["before"] = True
        claim.report(1, 2.0)
        with pytest.raises(
            StorageUnavailableError, match=r"server closed the connection\), waited for are 0.5 s"
        ):
            until(lambda: keeper.check())
        with pytest.raises(StorageUnavailableError):
            keeper.finish(claim, TrialState.COMPLETE, 1.0, {})
    with (
        study.keeper(storage=storage, outage=0.5) as keeper,
        pytest.raises(StorageUnavailableError),
    ):
        keeper.claim()


@pytest.mark.parametrize("within", [None, 0.3])
def test_a_stop_does_not_wait_for_a_storage_that_is_away(study, broken, monkeypatch, within):
    storage, state = broken
    stop = ShutdownSignal()
    if within is None:
        monkeypatch.setattr("search.worker.storage_client.GRACE_SECONDS", 0.3)
    with study.keeper(storage=storage, stop=stop) as keeper:
        (claim,) = keeper.claim()
        state["before"] = True
        stop.signal = 15
        with pytest.raises(ShutdownRequestedError):
            keeper.requeue(claim, Failure.INTERRUPTED, within=within)


def test_a_lease_outlives_an_outage_that_all_have(study, broken, clock, monkeypatch):
    """The observer's looks fail too: it judges nobody, and the worker renews when it can."""
    storage, state = broken
    monkeypatch.setattr("search.worker.storage_client._LONGEST_PAUSE_SECONDS", 0.02)
    with (
        study.keeper(storage=storage) as keeper,
        study.keeper("observer", storage=storage) as observer,
    ):
        (claim,), (other,) = keeper.claim(), observer.claim()
        clock.advance(0, keeper, observer)
        state["before"] = True
        for _ in range(10):
            state["failed"].clear()
            clock.advance(PATIENT_SECONDS / 4)
            until(lambda: state["failed"] >= {keeper._thread, observer._thread})
        state["before"] = False
        for _ in range(4):
            clock.advance(PATIENT_SECONDS / 4, keeper, observer)
        keeper.check()
        observer.check()
    assert study.trial(claim).user_attrs == study.trial(other).user_attrs == {}


def test_a_worker_that_was_frozen_has_not_seen_an_outage(study, clock, monkeypatch):
    """Frozen for an hour in the midst of a transaction: the storage is there when it wakes."""
    monkeypatch.setattr("search.worker.storage_client.SILENCE_SECONDS", 5.0)
    with study.keeper(outage=PATIENT_SECONDS) as keeper:
        (claim,) = keeper.claim()
        record, begun, awake = keeper._storage.flush, threading.Event(), threading.Event()

        def frozen(trials):
            begun.set()
            assert awake.wait(PATIENT_SECONDS)
            return record(trials)

        monkeypatch.setattr(keeper._storage, "flush", frozen)
        claim.report(1, 1.0)
        assert begun.wait(PATIENT_SECONDS)
        clock.advance(3600)
        keeper.check()
        keeper.check()
        awake.set()
        keeper.finish(claim, TrialState.COMPLETE, 1.0, {})


def test_a_claim_that_nobody_waits_for_any_more_is_given_back(study, broken, monkeypatch):
    storage, state = broken
    stop = ShutdownSignal()
    monkeypatch.setattr("search.worker.storage_client.GRACE_SECONDS", 0.3)
    with study.keeper(storage=storage, stop=stop) as keeper:
        until(lambda: keeper._watch_at)
        state["before"] = True
        stop.signal = 15
        with pytest.raises(ShutdownRequestedError):
            keeper.claim()
        state["before"] = False
        first = study.storage.get_trial_id_from_study_id_trial_number(study.study_id, 0)
        given_back = {"retries": {"interrupted": 1}}
        until(lambda: study.storage.get_trial(first).user_attrs == given_back)
    trials = study.storage.get_all_trials(study.study_id)
    assert {trial.state for trial in trials} == {TrialState.WAITING}


class Gate:
    """Holds the storage thread in a claim until it is opened."""

    def __init__(self, keeper, monkeypatch):
        self.entered, self.open = threading.Event(), threading.Event()
        claim, self.keeper = keeper._storage.claim, keeper

        def gated(*args, **kwargs):
            self.entered.set()
            assert self.open.wait(600)
            return claim(*args, **kwargs)

        monkeypatch.setattr(keeper._storage, "claim", gated)

    def let_the_claim_complete(self):
        self.open.set()
        until(lambda: not self.keeper._tasks and self.keeper._since is None)


@pytest.mark.parametrize("moment", ["before the answer", "with the answer"])
@pytest.mark.parametrize(
    "error", [ShutdownRequestedError, StorageUnavailableError, KeyboardInterrupt]
)
def test_claim_is_either_returned_or_undone(study, monkeypatch, error, moment):
    """The caller stops waiting before, or at the very moment at which, the claim completes."""
    with study.keeper() as keeper:
        until(lambda: keeper._watch_at)
        gate = Gate(keeper, monkeypatch)

        def give_up():
            assert gate.entered.wait(600)
            if moment == "with the answer":
                gate.let_the_claim_complete()
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(keeper, "_require_patience", give_up)
            try:
                claims = keeper.claim(limit=lambda trial: 2)
            except error:
                claims = []
        gate.let_the_claim_complete()
        held = {claim.trial_id for claim in claims}
        until(lambda: running(study) == held)
        assert set(keeper._held) == set(claims)


def test_interrupted_claim_is_undone_before_the_keeper_closes(study, monkeypatch):
    with contextlib.suppress(KeyboardInterrupt), study.keeper() as keeper:
        until(lambda: keeper._watch_at)
        gate = Gate(keeper, monkeypatch)

        def interrupt():
            assert gate.entered.wait(600)
            gate.let_the_claim_complete()
            raise KeyboardInterrupt

        monkeypatch.setattr(keeper, "_require_patience", interrupt)
        keeper.claim()
    keeper._thread.join(600)
    assert running(study) == set()


def running(study):
    trials = study.storage.get_all_trials(study.study_id)
    return {trial._trial_id for trial in trials if trial.state is TrialState.RUNNING}


def test_claim_that_completes_when_a_stop_times_out_is_returned_or_undone(study, monkeypatch):
    monkeypatch.setattr("search.worker.storage_client.GRACE_SECONDS", -1)

    class Stop(ShutdownSignal):
        @property
        def requested(self):  # asked right before the caller leaves
            assert gate.entered.wait(600)
            gate.let_the_claim_complete()
            return True

    with study.keeper(stop=Stop()) as keeper:
        until(lambda: keeper._watch_at)
        gate = Gate(keeper, monkeypatch)
        try:
            claims = keeper.claim()
        except ShutdownRequestedError:
            claims = []
        held = {claim.trial_id for claim in claims}
        until(lambda: running(study) == held)


def abandon_a_claim(keeper, gate, monkeypatch, count=1):
    with monkeypatch.context() as patch:
        patch.setattr(keeper, "_require_patience", lambda: gate.entered.wait(600) and stopped())
        with pytest.raises(ShutdownRequestedError):
            keeper.claim(limit=lambda trial: count)


def stopped():
    raise ShutdownRequestedError


@pytest.mark.parametrize(
    "error",
    [
        ValueError("unexpected"),
        sa.exc.OperationalError("COMMIT", {}, AwayError("server closed the connection")),
    ],
)
def test_undo_that_fails_loses_no_other_task(study, monkeypatch, error):
    with study.keeper() as keeper:
        until(lambda: keeper._watch_at)
        gate = Gate(keeper, monkeypatch)
        abandon_a_claim(keeper, gate, monkeypatch)
        requeue, errors = keeper._storage.requeue, [error]

        def unreliable(*args, **kwargs):
            if errors:
                raise errors.pop()
            requeue(*args, **kwargs)

        monkeypatch.setattr(keeper._storage, "requeue", unreliable)
        gate.open.set()
        assert keeper.read(lambda: "an answer") == "an answer"
        until(lambda: not errors and not keeper._tasks and keeper._since is None)
        keeper.check()
        if isinstance(error, ValueError):
            assert any("could not be released" in line for line in study.said)
        else:
            assert running(study) == set(), "an outage only delays it"
        assert keeper._held == []


def test_undo_releases_what_is_left_of_several_claims(study, monkeypatch):
    """Another worker has taken over the first of them meanwhile."""
    with study.keeper() as keeper:
        until(lambda: keeper._watch_at)
        gate = Gate(keeper, monkeypatch)
        abandon_a_claim(keeper, gate, monkeypatch, count=2)
        requeue, taken = keeper._storage.requeue, []

        def late(trial_id, claim_token, cause):
            if not taken:
                study.storage.requeue(trial_id, claim_token, Failure.LEASE_EXPIRED)
                taken.append(study.storage.claim(study.study_id, "heir"))
            requeue(trial_id, claim_token, cause)

        monkeypatch.setattr(keeper._storage, "requeue", late)
        gate.open.set()
        assert keeper.read(lambda: "an answer") == "an answer"
        until(lambda: taken and running(study) == set(taken))


def test_no_statement_takes_more_parameters_for_more_values(each_study):
    """After a long outage there may be more values than a database takes parameters."""
    study, counts = each_study, []
    storage = open_storage(study.url)

    @sa.event.listens_for(storage.engine, "before_cursor_execute")
    def count(connection, cursor, statement, parameters, context, is_many):
        counts.append(max(map(len, parameters)) if is_many else len(parameters))

    def most(values):
        counts.clear()
        with study.keeper(storage=storage) as keeper:
            (claim,) = keeper.claim()
            claim.begin_with(dict.fromkeys(range(values), 1.0))
            keeper.finish(claim, TrialState.COMPLETE, 1.0, {})
        assert len(study.trial(claim).intermediate_values) == values
        return max(counts)

    # SQLite takes so many parameters, PostgreSQL twice as many.
    assert most(1200) == most(2400) < 32_766


@pytest.mark.extended
def test_an_outage_may_last_for_any_number_of_values(each_study):
    study = each_study
    with study.keeper() as keeper:
        (claim,) = keeper.claim()
        claim.begin_with(dict.fromkeys(range(70000), 1.0))
        keeper.finish(claim, TrialState.COMPLETE, 1.0, {})
    assert len(study.trial(claim).intermediate_values) == 70_000


def test_a_mistake_is_not_waited_for(each_study):
    study = each_study
    with study.keeper() as keeper:
        (claim,) = keeper.claim()
        with study.storage.transaction() as connection:
            connection.execute(sa.text("ALTER TABLE trial_intermediate_values RENAME TO gone"))
        claim.report(1, 1.0)
        with pytest.raises(sa.exc.SQLAlchemyError, match="trial_intermediate_values"):
            until(lambda: keeper.check())


def test_an_unexpected_error_is_the_callers(study):
    with study.keeper() as keeper:
        (claim,) = keeper.claim()
        with pytest.raises(AssertionError):
            keeper.finish(claim, TrialState.COMPLETE, float("nan"), {})
        keeper.finish(claim, TrialState.COMPLETE, 1.0, {})


def test_training_goes_on_while_a_file_is_locked(sqlite_url, tmp_path, clock, monkeypatch):
    """Another program holds the file; whoever trains is not held up for an instant."""
    monkeypatch.setattr("studies.storage.engine.SQLITE_BUSY_SECONDS", PATIENT_SECONDS)
    study = Study(sqlite_url)
    with study.keeper() as keeper:
        (claim,) = keeper.claim()
        clock.advance(0, keeper)
        path = tmp_path / "studies.db"
        other = sqlite3.connect(path, isolation_level=None, timeout=PATIENT_SECONDS)
        other.execute("BEGIN IMMEDIATE")
        for step in range(3):
            claim.report(step, 1.0)
            keeper.check()
        until(lambda: keeper._since is not None)
        assert study.said == []
        clock.advance(2 * PATIENT_SECONDS)
        keeper.check()
        assert "it does not answer" in study.said[0]
        assert study.trial(claim).intermediate_values == {}
        other.execute("ROLLBACK")
        until(lambda: len(study.trial(claim).intermediate_values) == 3)
        other.close()
        keeper.finish(claim, TrialState.COMPLETE, 1.0, {})


def test_no_connection_is_held_while_a_network_trains(postgresql_url):
    study = Study(postgresql_url)
    with study.keeper() as keeper:
        (claim,) = keeper.claim()
        claim.report(1, 1.0)
        until(lambda: study.trial(claim).intermediate_values)

        def others():
            with study.storage.engine.connect() as connection:
                return connection.scalar(
                    sa.text(
                        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
                        "AND pid <> pg_backend_pid()"
                    )
                )

        until(lambda: others() == 0)  # a server's process ends a moment after its connection
        assert not claim.lost


def test_the_thread_ends_with_its_keeper(study):
    with study.keeper() as keeper:
        assert keeper._thread.is_alive()
    assert not keeper._thread.is_alive()


def test_several_trials_are_claimed_kept_and_lost_each_on_its_own(each_study):
    study = each_study
    with study.keeper() as keeper:
        first, second, third = keeper.claim(limit=lambda trial: 3)
        study.storage.requeue(second.trial_id, second.claim_token, Failure.LEASE_EXPIRED)
        for claim in (first, second, third):
            claim.report(1, 2.0)
        until(lambda: keeper.check() or second.lost)
        until(lambda: study.trial(third).intermediate_values == {1: 2.0})
        assert not first.lost
        assert not third.lost
        assert study.trial(second).intermediate_values == {}
        keeper.finish(first, TrialState.COMPLETE, 1.0, {})
        keeper.requeue(third, Failure.INTERRUPTED)
        assert study.trial(third).state is TrialState.WAITING


def test_a_curve_that_begins_anew_while_it_is_recorded_is_recorded_anew(study, monkeypatch):
    """As when training in company has failed, and goes on in halves."""
    with study.keeper() as keeper:
        (claim,) = keeper.claim()
        record, begun = keeper._storage.flush, []

        def slowly(trials):
            lost = record(list(trials))
            if not begun:
                claim.begin_with({5: 5.0})
                begun.append(True)
            return lost

        monkeypatch.setattr(keeper._storage, "flush", slowly)
        claim.report(1, 2.0)
        until(lambda: study.trial(claim).intermediate_values == {5: 5.0})
        keeper.finish(claim, TrialState.COMPLETE, 1.0, {})
    assert study.trial(claim).intermediate_values == {5: 5.0}


def test_a_trial_that_failed_here_is_taken_alone(study):
    with study.keeper() as keeper:
        ids = [trial._trial_id for trial in study.storage.get_all_trials(study.study_id)]
        (only,) = keeper.claim(avoid=ids[1:], limit=lambda trial: 3)
        assert only.trial_id == ids[0]
        (alone,) = keeper.claim(avoid=ids[1:], limit=lambda trial: 3)
        assert alone.trial_id == ids[1]


def test_claims_whose_answer_was_lost_are_found_again(broken, study):
    storage, state = broken
    with study.keeper(storage=storage) as keeper:
        state["after"] = True
        claims = keeper.claim(limit=lambda trial: 2)
        assert claims[0].trial.number == 0
        owners = {
            lease.claim_token for lease in study.storage.running_leases(study.study_id).values()
        }
        assert owners == {claims[0].claim_token}
        assert len(study.storage.running_leases(study.study_id)) == len(claims)


def test_what_was_read_for_nobody_any_more_is_no_claim(study):
    """As when a display asks for a list of trials, and the server answers too late."""
    late = threading.Event()

    def query():
        assert late.wait(PATIENT_SECONDS)
        return ["not", "claims"]

    with study.keeper() as keeper:
        with pytest.raises(ShutdownRequestedError):
            keeper.read(query, within=0.05)
        late.set()
        (claim,) = keeper.claim()
        keeper.finish(claim, TrialState.COMPLETE, 1.0, {})
    assert study.trial(claim).state is TrialState.COMPLETE
