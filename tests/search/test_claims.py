"""Claims of a worker: outages, silent and locked storages, and other workers."""

import sqlite3
import threading
import time
from types import SimpleNamespace

import pytest
import sqlalchemy as sa
from helpers import create_small_study
from hooks import HANG_TIMEOUT
from optuna.trial import TrialState
from process_runner import wait_until

from search.errors import ShutdownRequestedError
from search.worker.claims import ClaimManager
from search.worker.shutdown import ShutdownSignal
from studies.attributes import CHECKPOINTED, Failure
from studies.errors import LeaseLostError, StorageUnavailableError
from studies.storage.leases import LeaseMonitor
from studies.storage.open import open_storage


class Study:
    """A small study, and claim managers that work on it."""

    def __init__(self, url, count=3, name="small"):
        self.url = url
        self.storage = open_storage(url)
        self.study_id = create_small_study(self.storage, count, name)

    def manager(
        self,
        worker="me",
        stop=None,
        lease=HANG_TIMEOUT,
        outage=10 * HANG_TIMEOUT,
        storage=None,
    ):
        return ClaimManager(
            storage or open_storage(self.url),
            self.study_id,
            worker,
            stop or ShutdownSignal(),
            lease,
            outage,
        )

    def trial(self, claim):
        return self.storage.get_trial(claim.trial_id)


@pytest.fixture
def study(sqlite_url):
    return Study(sqlite_url)


class Clock:
    """Monotonic clock of the managers, which a test can advance."""

    def __init__(self):
        self._ahead = 0.0

    def monotonic(self):
        return time.monotonic() + self._ahead

    def advance(self, seconds, *managers):
        """Advance time, and return once each manager has done what is due by then."""
        self._ahead += seconds
        for manager in managers:
            wait_until(lambda manager=manager: manager._next_maintenance() > self.monotonic())
            wait_until(lambda manager=manager: manager._busy_since is None)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    moved = SimpleNamespace(**vars(time) | {"monotonic": clock.monotonic})
    for module in ("search.worker.claim", "search.worker.claims", "search.worker.storage_client"):
        monkeypatch.setattr(f"{module}.time", moved)
    monkeypatch.setattr("search.worker.storage_client._MAX_IDLE_SECONDS", 0.02)
    return clock


@pytest.fixture(autouse=True)
def _ends_its_thread(monkeypatch):
    """Give a manager's thread enough time to end on a slow machine."""
    monkeypatch.setattr("search.worker.storage_client.JOIN_TIMEOUT", HANG_TIMEOUT)


def test_values_and_heartbeats_are_written_during_a_long_step(study, clock, caplog):
    """The training thread is busy for several lease durations, and another worker is dead."""
    with study.manager("gone") as gone:
        gone.claim()
    with study.manager() as manager, study.manager("observer") as observer:
        (claim,) = manager.claim()
        claim.report(1, 2.0)
        wait_until(lambda: study.trial(claim).intermediate_values == {1: 2.0})
        for _ in range(10):
            clock.advance(HANG_TIMEOUT / 4, manager, observer)
        assert len(caplog.messages) == 1
        assert caplog.messages[0].startswith("trial 0: lease expired")
        assert observer.claim()[0].trial.number == 0
        manager.finish(claim, TrialState.COMPLETE, 1.0, {})


class AwayError(Exception):
    """Error of a database driver."""


@pytest.fixture
def broken(study, monkeypatch):
    """Storage, and a switch that has its transactions fail; the threads that have failed."""
    storage = open_storage(study.url)
    state = {"before": False, "attempts": 0, "failed": set()}
    transaction = storage.transaction

    def unreliable():
        if state["before"]:
            state["attempts"] += 1
            state["failed"].add(threading.current_thread())
            raise sa.exc.OperationalError("COMMIT", {}, AwayError("server closed the connection"))
        return transaction()

    monkeypatch.setattr(storage, "transaction", unreliable)
    return storage, state


def test_no_value_is_lost_during_an_outage(study, broken, monkeypatch, caplog):
    storage, state = broken
    forgotten = []
    monkeypatch.setattr(LeaseMonitor, "reset", lambda self: forgotten.append(self))
    with study.manager(storage=storage) as manager:
        (claim,) = manager.claim()
        state["before"] = True
        for step in range(5):
            claim.report(step, float(step))
        wait_until(lambda: manager.check() or caplog.messages)
        wait_until(lambda: state["attempts"] > 3)
        state["before"] = False
        wait_until(lambda: manager.check() or len(caplog.messages) > 1)
        assert caplog.messages == [
            "storage unavailable (server closed the connection); new results are kept in memory",
            "storage available again",
        ]
        wait_until(lambda: len(study.trial(claim).intermediate_values) == 5)
        assert forgotten, "what was seen before an outage must not count after it"
        manager.finish(claim, TrialState.COMPLETE, 1.0, {})


def test_number_of_statements_does_not_depend_on_the_number_of_trials(url, monkeypatch):
    """A claim, a flush and a requeue of a stack: each statement is a round trip to a server."""
    monkeypatch.setattr("search.worker.claim.FLUSH_INTERVAL", 3 * HANG_TIMEOUT)
    storage, counts = open_storage(url), []
    sa.event.listen(storage.engine, "before_cursor_execute", lambda *args: counts.append(args[2]))

    def statements(size):
        study = Study(url, size, f"{size} trials")
        statements = {}
        with study.manager(storage=storage) as manager:
            wait_until(lambda: manager._observe_at and manager._busy_since is None)

            def count(name, operation):
                counts.clear()
                result = operation()
                statements[name] = len(counts)
                return result

            claims = count("claim", lambda: manager.claim(lockstep_size=lambda trial: size))
            assert len(claims) == size
            for step in (1, 2):
                for claim in claims:
                    claim.report(step, 2.0)
                    claim._heartbeat_at = 0.0
                count(f"flush {step}", lambda: manager.query_after_flush(lambda: None))
            for claim in claims:
                claim.replace_curve({1: 3.0})
            count("requeue", lambda: manager.requeue_all(claims, Failure.INTERRUPTED))
        trials = storage.get_all_trials(study.study_id)
        assert {trial.state for trial in trials} == {TrialState.WAITING}
        assert all(trial.intermediate_values == {1: 3.0} for trial in trials)
        return statements

    few = statements(4)
    assert statements(32) == few
    assert few["requeue"] <= 15


def test_result_that_arrives_after_that_of_another_worker_is_refused(study, monkeypatch):
    """The connection breaks before the commit, and the outage is longer than the lease."""
    storage = open_storage(study.url)
    with study.manager(storage=storage) as manager:
        (claim,) = manager.claim()
        finish = storage.finish

        def overtaken(*args):
            monkeypatch.setattr(storage, "finish", finish)
            study.storage.requeue(claim.trial_id, claim.claim_token, Failure.LEASE_EXPIRED)
            assert study.storage.claim(study.study_id, "heir") == claim.trial_id
            study.storage.finish(claim.trial_id, "heir", TrialState.COMPLETE, 0.5, {})
            raise sa.exc.OperationalError("COMMIT", {}, AwayError("server closed the connection"))

        monkeypatch.setattr(storage, "finish", overtaken)
        with pytest.raises(LeaseLostError):
            manager.finish(claim, TrialState.COMPLETE, 1.0, {})
    assert study.trial(claim).value == 0.5


def test_worker_waits_for_an_outage_up_to_the_limit(study, broken):
    storage, state = broken
    with study.manager(storage=storage, outage=0.5) as manager:
        (claim,) = manager.claim()
        state["before"] = True
        claim.report(1, 2.0)
        with pytest.raises(
            StorageUnavailableError, match=r"\(server closed the connection\), longer than 0\.5 s"
        ):
            wait_until(lambda: manager.check())
        with pytest.raises(StorageUnavailableError):
            manager.finish(claim, TrialState.COMPLETE, 1.0, {})
    with (
        study.manager(storage=storage, outage=0.5) as manager,
        pytest.raises(StorageUnavailableError),
    ):
        manager.claim()


@pytest.mark.parametrize("timeout", [None, 0.3])
def test_shutdown_does_not_wait_for_an_unavailable_storage(study, broken, monkeypatch, timeout):
    storage, state = broken
    stop = ShutdownSignal()
    if timeout is None:
        monkeypatch.setattr("search.worker.storage_client.SHUTDOWN_GRACE", 0.3)
    with study.manager(storage=storage, stop=stop) as manager:
        (claim,) = manager.claim()
        state["before"] = True
        stop.signal = 15
        with pytest.raises(ShutdownRequestedError):
            manager.requeue_all([claim], Failure.INTERRUPTED, timeout=timeout)


def test_lease_does_not_expire_in_an_outage_of_all_workers(study, broken, clock, monkeypatch):
    """The observer expires no lease, and the worker sends a heartbeat as soon as it can."""
    storage, state = broken
    monkeypatch.setattr("search.worker.storage_client._MAX_RETRY_SECONDS", 0.02)
    with (
        study.manager(storage=storage) as manager,
        study.manager("observer", storage=storage) as observer,
    ):
        (claim,), (other,) = manager.claim(), observer.claim()
        clock.advance(0, manager, observer)
        state["before"] = True
        for _ in range(10):
            state["failed"].clear()
            clock.advance(HANG_TIMEOUT / 4)
            wait_until(lambda: state["failed"] >= {manager._thread, observer._thread})
        state["before"] = False
        for _ in range(4):
            clock.advance(HANG_TIMEOUT / 4, manager, observer)
        manager.check()
        observer.check()
    assert study.trial(claim).user_attrs == study.trial(other).user_attrs == {}


def test_time_frozen_does_not_count_as_an_outage(study, clock, monkeypatch):
    """Suspended for an hour during a transaction; the storage is available afterwards."""
    monkeypatch.setattr("search.worker.storage_client.NO_RESPONSE_TIMEOUT", 5.0)
    with study.manager(outage=HANG_TIMEOUT) as manager:
        (claim,) = manager.claim()
        record, begun, awake = manager._storage.flush, threading.Event(), threading.Event()

        def frozen(trials):
            begun.set()
            assert awake.wait(HANG_TIMEOUT)
            return record(trials)

        monkeypatch.setattr(manager._storage, "flush", frozen)
        claim.report(1, 1.0)
        assert begun.wait(HANG_TIMEOUT)
        clock.advance(3600)
        manager.check()
        manager.check()
        awake.set()
        manager.finish(claim, TrialState.COMPLETE, 1.0, {})


class Gate:
    """Holds the storage thread in a claim until it is opened."""

    def __init__(self, manager, monkeypatch):
        self.entered, self.open = threading.Event(), threading.Event()
        claim, self.manager = manager._storage.claim, manager

        def gated(*args, **kwargs):
            self.entered.set()
            assert self.open.wait(600)
            return claim(*args, **kwargs)

        monkeypatch.setattr(manager._storage, "claim", gated)

    def let_the_claim_complete(self):
        self.open.set()
        wait_until(lambda: not self.manager._requests and self.manager._busy_since is None)


@pytest.mark.parametrize("moment", ["before the answer", "with the answer"])
@pytest.mark.parametrize("error", [ShutdownRequestedError, KeyboardInterrupt])
def test_claim_is_either_returned_or_undone(study, monkeypatch, error, moment):
    """The caller stops waiting before, or at the moment when, the claim completes."""
    with study.manager() as manager:
        wait_until(lambda: manager._observe_at)
        gate = Gate(manager, monkeypatch)

        def give_up():
            assert gate.entered.wait(600)
            if moment == "with the answer":
                gate.let_the_claim_complete()
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(manager, "_require_available", give_up)
            try:
                claims = manager.claim(lockstep_size=lambda trial: 2)
            except error:
                claims = []
        gate.let_the_claim_complete()
        held = {claim.trial_id for claim in claims}
        wait_until(lambda: running(study) == held)
        assert set(manager._active) == set(claims)


def running(study):
    trials = study.storage.get_all_trials(study.study_id)
    return {trial._trial_id for trial in trials if trial.state is TrialState.RUNNING}


@pytest.mark.parametrize(
    "error",
    [
        ValueError("unexpected"),
        sa.exc.OperationalError("COMMIT", {}, AwayError("server closed the connection")),
    ],
)
def test_failed_undo_loses_no_other_task(study, monkeypatch, error, caplog):
    monkeypatch.setattr("search.worker.storage_client.SHUTDOWN_GRACE", -1)
    stop = ShutdownSignal()
    with study.manager(stop=stop) as manager:
        wait_until(lambda: manager._observe_at)
        gate = Gate(manager, monkeypatch)
        stop.signal = 15
        with pytest.raises(ShutdownRequestedError):
            manager.claim()
        requeue, errors = manager._storage.requeue_all, [error]

        def unreliable(*args, **kwargs):
            if errors:
                raise errors.pop()
            return requeue(*args, **kwargs)

        monkeypatch.setattr(manager._storage, "requeue_all", unreliable)
        gate.open.set()
        stop.signal = None
        assert manager.read(lambda: "an answer") == "an answer"
        wait_until(lambda: not errors and not manager._requests and manager._busy_since is None)
        manager.check()
        if isinstance(error, ValueError):
            assert any("could not be released" in line for line in caplog.messages)
        else:
            assert running(study) == set(), "an outage only delays it"
        assert manager._active == []


def test_number_of_statement_parameters_is_limited(study):
    """A long outage may leave more values than a database accepts parameters."""
    counts = []
    storage = open_storage(study.url)

    @sa.event.listens_for(storage.engine, "before_cursor_execute")
    def count(connection, cursor, statement, parameters, context, is_many):
        counts.append(max(map(len, parameters)) if is_many else len(parameters))

    def most(values):
        counts.clear()
        with study.manager(storage=storage) as manager:
            (claim,) = manager.claim()
            claim.replace_curve(dict.fromkeys(range(values), 1.0))
            manager.finish(claim, TrialState.COMPLETE, 1.0, {})
        assert len(study.trial(claim).intermediate_values) == values
        return max(counts)

    # Limit of SQLite; PostgreSQL's is twice as high.
    assert most(1200) == most(2400) < 32_766


def test_permanent_error_is_raised_at_once(study):
    with study.manager() as manager:
        (claim,) = manager.claim()
        with study.storage.transaction() as connection:
            connection.execute(sa.text("ALTER TABLE trial_intermediate_values RENAME TO gone"))
        claim.report(1, 1.0)
        with pytest.raises(sa.exc.SQLAlchemyError, match="trial_intermediate_values"):
            wait_until(lambda: manager.check())


def test_training_continues_while_the_file_is_locked(
    sqlite_url, tmp_path, clock, monkeypatch, caplog
):
    """Another program locks the file; the training thread never waits for it."""
    monkeypatch.setattr("studies.storage.engine.SQLITE_BUSY_SECONDS", HANG_TIMEOUT)
    study = Study(sqlite_url)
    with study.manager() as manager:
        (claim,) = manager.claim()
        clock.advance(0, manager)
        path = tmp_path / "studies.db"
        other = sqlite3.connect(path, isolation_level=None, timeout=HANG_TIMEOUT)
        other.execute("BEGIN IMMEDIATE")
        for step in range(3):
            claim.report(step, 1.0)
            manager.check()
        wait_until(lambda: manager._busy_since is not None)
        assert caplog.messages == []
        clock.advance(2 * HANG_TIMEOUT)
        manager.check()
        assert caplog.messages == [
            "storage slow or unavailable (it does not answer); new results are kept in memory"
        ]
        assert study.trial(claim).intermediate_values == {}
        other.execute("ROLLBACK")
        wait_until(lambda: len(study.trial(claim).intermediate_values) == 3)
        other.close()
        manager.finish(claim, TrialState.COMPLETE, 1.0, {})


def test_slow_statements_that_are_answered_are_no_outage(study, clock):
    """As in a study of thousands of trials: together they take longer than the limit."""
    reasons = []

    def query():
        with manager._storage.engine.begin() as connection:
            for _ in range(3):
                clock.advance(0.6 * HANG_TIMEOUT)
                reasons.append(manager.unavailable_reason)
                connection.execute(sa.text("SELECT 1"))

    with study.manager() as manager:
        manager.read(query)
    assert reasons == [None] * 3


def test_no_connection_is_held_during_training(postgresql_url):
    study = Study(postgresql_url)
    with study.manager() as manager:
        (claim,) = manager.claim()
        claim.report(1, 1.0)
        wait_until(lambda: study.trial(claim).intermediate_values)

        def others():
            with study.storage.engine.connect() as connection:
                return connection.scalar(
                    sa.text(
                        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
                        "AND pid <> pg_backend_pid()"
                    )
                )

        wait_until(lambda: others() == 0)  # a server's process ends a moment after its connection
        assert not claim.lost


def test_curve_replaced_during_a_flush_is_written_again(study, monkeypatch):
    """As when lockstep training failed and is resumed in halves."""
    with study.manager() as manager:
        (claim,) = manager.claim()
        record, begun = manager._storage.flush, []

        def slowly(trials):
            lost = record(list(trials))
            if not begun:
                claim.replace_curve({5: 5.0})
                begun.append(True)
            return lost

        monkeypatch.setattr(manager._storage, "flush", slowly)
        claim.report(1, 2.0)
        wait_until(lambda: study.trial(claim).intermediate_values == {5: 5.0})
        manager.finish(claim, TrialState.COMPLETE, 1.0, {})
    assert study.trial(claim).intermediate_values == {5: 5.0}


def test_checkpoint_written_during_a_failed_flush_is_recorded(study, monkeypatch):
    with study.manager() as manager:
        (claim,) = manager.claim()
        record, begun = manager._storage.flush, []

        def fail_once(trials):
            if not begun:
                begun.append(True)
                claim.record_checkpoint()
                raise sa.exc.OperationalError("COMMIT", {}, AwayError("server is away"))
            return record(trials)

        monkeypatch.setattr(manager._storage, "flush", fail_once)
        claim.report(1, 2.0)
        wait_until(lambda: CHECKPOINTED in study.trial(claim).system_attrs)


def test_abandoned_query_is_not_mistaken_for_a_claim(study):
    """As when a display queries a list of trials and the server answers too late."""
    late = threading.Event()

    def query():
        assert late.wait(HANG_TIMEOUT)
        return ["not", "claims"]

    with study.manager() as manager:
        with pytest.raises(ShutdownRequestedError):
            manager.read(query, timeout=0.05)
        late.set()
        (claim,) = manager.claim()
        manager.finish(claim, TrialState.COMPLETE, 1.0, {})
    assert study.trial(claim).state is TrialState.COMPLETE
