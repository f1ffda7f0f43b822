"""Leases: who lives keeps its trial, who does not loses it, by the observer's clock alone."""

import time
from datetime import timedelta

import pytest
import sqlalchemy as sa
from helpers import create_small_study
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState

from studies.attributes import Failure
from studies.errors import LeaseLostError
from studies.storage import storage as storage_module
from studies.storage.leases import Lease, LeaseMonitor
from studies.storage.open import open_storage

LEASE = Lease("owner", seconds=120)


def test_a_lease_runs_out_after_its_length_of_looking():
    watch = LeaseMonitor()
    looks = [watch.observe([(7, LEASE)], now) for now in range(1000, 1151, 30)]
    assert looks == [[], [], [], [], [7], [7]]


def test_a_renewal_or_another_owner_begins_anew():
    watch = LeaseMonitor()
    for now in range(0, 91, 30):
        assert watch.observe([(7, LEASE)], now) == []
    for lease in (LEASE.with_heartbeat(), Lease("other", 120, 1)):
        for now in range(120, 211, 30):
            assert watch.observe([(7, lease)], now) == []


def test_each_lease_has_its_own_length():
    watch = LeaseMonitor()
    short = Lease("short", seconds=10)
    for now in (0, 5):
        assert watch.observe([(1, LEASE), (2, short)], now) == []
    assert watch.observe([(1, LEASE), (2, short)], 10) == [2]


def test_who_was_held_up_has_not_watched_meanwhile():
    """An observer that was stopped, with the worker that it watches, for an hour."""
    watch = LeaseMonitor()
    watch.observe([(7, LEASE)], 0)
    assert watch.observe([(7, LEASE)], 3600) == []
    assert watch.observe([(7, LEASE)], 3630) == []
    assert watch.observe([(7, LEASE)], 3660) == [7]


def test_an_outage_makes_nobody_stale():
    watch = LeaseMonitor()
    for now in (0, 30, 60, 90):
        watch.observe([(7, LEASE)], now)
    watch.reset()
    for now in (119, 120, 150, 180, 210):
        assert watch.observe([(7, LEASE)], now) == []


@settings(deadline=None)
@given(
    st.lists(st.floats(0.01, 25), min_size=1, max_size=200),
    st.floats(0.1, 20),
    st.floats(0, 1e6),
)
def test_who_renews_in_time_never_loses_its_trial(pauses, every, start):
    """Whatever the rhythm of the looks and of the renewals, and whatever the clock shows."""
    watch, now = LeaseMonitor(), start
    for pause in pauses:
        now += pause
        renewals = int((now - start) / every)
        assert watch.observe([(1, Lease("owner", 50, renewals))], now) == []


@settings(deadline=None)
@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=50))
def test_no_lease_runs_out_early(pauses):
    watch, now = LeaseMonitor(), 0.0
    watch.observe([(7, LEASE)], now)
    for pause in pauses:
        now += pause
        if watch.observe([(7, LEASE)], now):
            assert now >= LEASE.seconds


# ------------------------------------------------------------------ in the storage


def test_a_trial_whose_worker_is_gone_waits_again(url):
    storage = open_storage(url)
    study_id = create_small_study(storage, 2)
    gone = storage.claim(study_id, "gone", lease_seconds=4)
    lives = storage.claim(study_id, "lives", lease_seconds=4)
    storage.report(gone, "gone", {1: 2.0})
    watch = LeaseMonitor()
    for now in (0.0, 2.0):
        assert storage.expire_leases(study_id, watch, lambda now=now: now) == []
        storage.heartbeat(lives, "lives")
    assert storage.expire_leases(study_id, watch, lambda: 4.0) == [gone]
    trial = storage.get_trial(gone)
    assert trial.state is TrialState.WAITING
    assert trial.user_attrs["retries"] == {"lease_expired": 1}
    assert trial.intermediate_values == {1: 2.0}
    assert storage.get_trial(lives).state is TrialState.RUNNING
    for write in (
        lambda: storage.heartbeat(gone, "gone"),
        lambda: storage.report(gone, "gone", {2: 1.0}),
        lambda: storage.requeue(gone, "gone", Failure.INTERRUPTED),
        lambda: storage.finish(gone, "gone", TrialState.COMPLETE, 1.0, {}),
    ):
        with pytest.raises(LeaseLostError):
            write()
    assert storage.claim(study_id, "heir") == gone


def test_of_many_observers_one_releases(url):
    storage = open_storage(url)
    study_id = create_small_study(storage, 1)
    trial_id = storage.claim(study_id, "gone", lease_seconds=4)
    watches = [LeaseMonitor() for _ in range(3)]
    for now in (0.0, 2.0):
        for watch in watches:
            storage.expire_leases(study_id, watch, lambda now=now: now)
    assert storage.expire_leases(study_id, watches[0], lambda: 4.0) == [trial_id]
    assert storage.claim(study_id, "heir", lease_seconds=4) == trial_id
    for watch in watches[1:]:
        assert storage.expire_leases(study_id, watch, lambda: 4.0) == []
    assert storage.get_trial(trial_id).user_attrs["retries"] == {"lease_expired": 1}


def test_a_renewal_between_the_look_and_the_release_counts(postgresql_url, monkeypatch):
    storage = open_storage(postgresql_url)
    study_id = create_small_study(storage, 1)
    trial_id = storage.claim(study_id, "slow", lease_seconds=4)

    class Meanwhile(LeaseMonitor):
        def look(self, running_leases, now):
            storage.heartbeat(trial_id, "slow")
            return [trial_id]

    assert storage.expire_leases(study_id, Meanwhile(), lambda: 0.0) == []
    assert storage.get_trial(trial_id).state is TrialState.RUNNING


def test_a_trial_that_plain_optuna_runs_is_left_to_it(url):
    storage = open_storage(url)
    study_id = create_small_study(storage, 1)
    (trial,) = storage.get_all_trials(study_id)
    storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING)
    watch = LeaseMonitor()
    for now in range(0, 1000, 100):
        assert storage.expire_leases(study_id, watch, lambda now=now: float(now)) == []


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_clock_that_jumps_makes_nobody_stale_and_nobody_immortal(url, monkeypatch, hours):
    """The time of day of the worker, or of the observer, jumps by an hour in mid-lease."""
    storage = open_storage(url)
    study_id = create_small_study(storage, 2)
    trial_id = storage.claim(study_id, "me", lease_seconds=4)
    watch = LeaseMonitor()
    assert storage.expire_leases(study_id, watch, lambda: 0.0) == []
    shift, now, wall = timedelta(hours=hours), storage_module.utcnow, time.time
    monkeypatch.setattr(storage_module, "utcnow", lambda: now() + shift)
    monkeypatch.setattr(time, "time", lambda: wall() + 3600 * hours)
    assert storage.expire_leases(study_id, watch, lambda: 2.0) == []
    storage.heartbeat(trial_id, "me")
    assert storage.expire_leases(study_id, watch, lambda: 4.0) == []
    assert storage.expire_leases(study_id, watch, lambda: 6.0) == []
    assert storage.expire_leases(study_id, watch, lambda: 8.0) == [trial_id]
    assert storage.claim(study_id, "heir") == trial_id
    storage.finish(trial_id, "heir", TrialState.COMPLETE, 1.0, {})


# ------------------------------------------------------------------ what a claim costs


def test_a_claim_looks_at_no_trial_that_it_does_not_take(sqlite_url):
    """The database's own plan of the statement: an index leads to the one row."""
    storage = open_storage(sqlite_url)
    study_id = create_small_study(storage, 50)
    seen = []
    sa.event.listen(storage.engine, "before_cursor_execute", lambda *a: seen.append(a[2:4]))
    storage.claim(study_id, "me", exclude=[3, 4])
    (claim,) = [found for found in seen if "ORDER BY trials.number" in found[0]]
    with storage.engine.begin() as connection:
        plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {claim[0]}", claim[1]).all()
    steps = [row[3] for row in plan]
    assert any("ix_trials_study_id_state_number (study_id=? AND state=?)" in s for s in steps)
    assert not any("TEMP B-TREE" in step or step.startswith("SCAN trial") for step in steps)


def test_a_database_that_was_made_without_the_index_gets_it(url):
    storage = open_storage(url)
    with storage.transaction() as connection:
        connection.execute(sa.text("DROP INDEX ix_trials_study_id_state_number"))
    open_storage(url)
    names = {index["name"] for index in sa.inspect(storage.engine).get_indexes("trials")}
    assert "ix_trials_study_id_state_number" in names
