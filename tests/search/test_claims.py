"""Claims of a worker: outages, silent and locked storages, and other workers."""

import math
import signal
import time
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import sqlalchemy as sa
from helpers import DatabaseUse, Together, create_small_study
from hooks import HANG_TIMEOUT
from optuna.trial import TrialState
from process_runner import wait_until

from search.errors import ShutdownRequestedError
from search.worker.claims import ClaimManager
from search.worker.shutdown import ShutdownSignal
from studies.attributes import CHECKPOINTED, Failure
from studies.errors import StorageUnavailableError
from studies.storage.open import open_storage


class Study:
    def __init__(self, url, count=3, name="small"):
        self.url, self.storage = url, open_storage(url)
        self.study_id = create_small_study(self.storage, count, name)

    def manager(self, worker="me", stop=None, outage=10 * HANG_TIMEOUT, storage=None):
        storage, stop = storage or open_storage(self.url), stop or ShutdownSignal()
        return ClaimManager(storage, self.study_id, worker, stop, HANG_TIMEOUT, outage)

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
            wait_until(lambda manager=manager: self._is_done(manager))

    def _is_done(self, manager):
        due_at = [manager._observe_at, *(claim.due_at for claim in list(manager._active))]
        return min(due_at) > self.monotonic() and manager._busy_since is None


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    moved = SimpleNamespace(**vars(time) | {"monotonic": clock.monotonic})
    monkeypatch.setattr("search.worker.claims.time", moved)
    monkeypatch.setattr("search.worker.claims._MAX_IDLE_SECONDS", 0.02)
    return clock


@pytest.fixture(autouse=True)
def _ends_its_thread(monkeypatch):
    """Give a manager's thread enough time to end on a slow machine."""
    monkeypatch.setattr("search.worker.claims.JOIN_TIMEOUT", HANG_TIMEOUT)


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
        manager.finish(claim, TrialState.COMPLETE, 1.0)


OUTAGE = sa.exc.OperationalError("COMMIT", {}, Exception("server closed the connection"))


def test_worker_waits_for_an_outage_up_to_the_limit_or_a_shutdown(study, monkeypatch):
    storage, stop = open_storage(study.url), ShutdownSignal()
    with study.manager(storage=storage, stop=stop, outage=0.5) as manager:
        (claim,) = manager.claim()
        monkeypatch.setattr(storage, "transaction", Mock(side_effect=OUTAGE))
        claim.report(1, 2.0)
        wait_until(lambda: manager.unavailable_reason)
        assert manager.query(lambda: "an answer", "none") == "none"
        message = r"\(server closed the connection\), longer than 0\.5 s"
        with pytest.raises(StorageUnavailableError, match=message):
            wait_until(lambda: manager.check())
        monkeypatch.setattr("search.worker.claims.SHUTDOWN_GRACE", 0.0)
        monkeypatch.setattr(manager, "_outage_seconds", HANG_TIMEOUT)
        stop.signal = 15
        with pytest.raises(ShutdownRequestedError):
            manager.requeue_all([claim], Failure.INTERRUPTED)


def test_permanent_error_is_raised_at_once(study):
    with study.manager() as manager:
        (claim,) = manager.claim()
        with study.storage.transaction() as connection:
            connection.execute(sa.text("ALTER TABLE trial_intermediate_values RENAME TO gone"))
        claim.report(1, 1.0)
        with pytest.raises(sa.exc.SQLAlchemyError, match="trial_intermediate_values"):
            wait_until(lambda: manager.check())


def test_what_is_reported_during_a_write_is_written_by_the_next_one(study, monkeypatch):
    """As when lockstep training failed and is resumed in halves; the answer is lost as well."""
    with study.manager() as manager:
        (claim,) = manager.claim()
        flush, outages = manager._storage.flush, [OUTAGE]

        def interrupted(trials):
            lost = flush(list(trials))
            if outages:
                claim.replace_curve({5: 5.0}, {"validation_loss": {5: 2.5}})
                claim.record_checkpoint()
                raise outages.pop()
            return lost

        monkeypatch.setattr(manager._storage, "flush", interrupted)
        claim.report_metrics({"validation_loss": {4: 3.0}, "validation_accuracy": {4: math.nan}})
        claim.report(1, 2.0)
        wait_until(lambda: study.trial(claim).intermediate_values == {5: 5.0})
        found = study.trial(claim).system_attrs
        assert CHECKPOINTED in found
        assert found["curve:validation_loss"] == [[5, 2.5]]
        assert found["curve:validation_accuracy"] == []


def test_slow_statements_that_are_answered_are_no_outage(study, clock):
    """As in a study of thousands of trials: together they take longer than the limit."""

    def query():
        with study.storage.engine.begin() as connection:
            for _ in range(3):
                clock.advance(0.6 * HANG_TIMEOUT)
                assert manager.unavailable_reason is None
                connection.execute(sa.text("SELECT 1"))

    with study.manager(storage=study.storage) as manager:
        manager.ask(query)


def test_number_of_statements_does_not_depend_on_the_number_of_trials(sqlite_url, monkeypatch):
    """A claim, a flush and a requeue of a stack, and pruning: each is a round trip to a server."""
    monkeypatch.setattr("search.worker.claims.FLUSH_INTERVAL", 3 * HANG_TIMEOUT)
    storage = open_storage(sqlite_url)
    use = DatabaseUse(storage)

    def count_statements(size):
        study, claims = Study(sqlite_url, size, f"{size} trials"), []
        with study.manager(storage=storage) as manager:
            wait_until(lambda: manager._observe_at and manager._busy_since is None)
            yield use.measure(lambda: claims.extend(manager.claim(Together(size))))
            assert len(claims) == size
            for claim in claims:
                claim.report(1, 2.0)
                claim._heartbeat_at = 0.0
            yield use.measure(lambda: manager.ask(lambda: None, after_flush=True))
            yield use.measure(lambda: manager.requeue_all(claims, Failure.INTERRUPTED))
            for claim in manager.claim(Together(size)):
                manager.finish(claim, TrialState.WAITING)
        reasons = {claim.trial_id: {"reason": "far off"} for claim in claims}
        yield use.measure(lambda: storage.prune_paused(study.study_id, size, [reasons]))

    few, many = ([count for count, _ in count_statements(size)] for size in (4, 32))
    assert few == many
    assert few[2] <= 15


def test_more_values_are_written_than_sqlite_accepts_parameters(study):
    """As after a long outage."""
    with study.manager() as manager:
        (claim,) = manager.claim()
        claim.replace_curve(dict.fromkeys(range(12_000), 1.0))
        manager.finish(claim, TrialState.COMPLETE, 1.0)
    assert len(study.trial(claim).intermediate_values) == 12_000


def test_trial_claimed_before_a_shutdown_is_returned_to_be_requeued(study):
    stop = ShutdownSignal()

    class Stopping(Together):
        def size(self, params):
            stop.request(signal.SIGTERM)
            return self.count

    with study.manager(stop=stop) as manager:
        (claim,) = manager.claim(Stopping(3))
        manager.requeue_all([claim], Failure.INTERRUPTED)
    trials = study.storage.get_all_trials(study.study_id)
    assert {trial.state for trial in trials} == {TrialState.WAITING}
