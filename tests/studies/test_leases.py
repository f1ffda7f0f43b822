"""Leases: they expire without heartbeats, by the observer's clock alone."""

import time
from datetime import timedelta

import pytest
import sqlalchemy as sa
from helpers import create_small_study
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState

from studies.errors import LeaseLostError
from studies.storage import storage as storage_module
from studies.storage.counts import count_trials
from studies.storage.leases import Lease, LeaseMonitor
from studies.storage.open import load_study, open_storage
from studies.storage.queue import PendingWrite

LEASE = Lease("token", seconds=120)


def test_reset_after_an_outage_restarts_all_observations():
    monitor = LeaseMonitor()
    for now in (0, 30, 60, 90):
        monitor.observe([(7, LEASE)], now)
    monitor.reset()
    for now in (119, 120, 150, 180, 210):
        assert monitor.observe([(7, LEASE)], now) == []


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.floats(0.01, 25), min_size=1, max_size=200),
    st.floats(0.1, 20),
    st.floats(0, 1e6),
)
def test_lease_with_regular_heartbeats_never_expires(pauses, interval, start):
    """For any times of observations and heartbeats, and any start of the clock."""
    monitor, now = LeaseMonitor(), start
    for pause in pauses:
        now += pause
        heartbeats = int((now - start) / interval)
        assert monitor.observe([(1, Lease("token", 50, heartbeats))], now) == []


@settings(deadline=None)
@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=50))
def test_lease_never_expires_early(pauses):
    monitor, now = LeaseMonitor(), 0.0
    monitor.observe([(7, LEASE)], now)
    for pause in pauses:
        now += pause
        if monitor.observe([(7, LEASE)], now):
            assert now >= LEASE.seconds


UNREADABLE = [
    "",
    "me/1",
    "[]",
    "{}",
    "[" * 100_000,
    '{"claim_token": "me/1"}',
    '{"claim_token": null, "seconds": 4, "heartbeats": 0}',
    '{"claim_token": "me/1", "seconds": "4", "heartbeats": 0}',
    '{"claim_token": "me/1", "seconds": NaN, "heartbeats": 0}',
    '{"claim_token": "me/1", "seconds": 0, "heartbeats": 0}',
    '{"claim_token": "me/1", "seconds": 4, "heartbeats": [0]}',
    '{"claim_token": "me/1", "seconds": 4}',
    None,
]


def test_unknown_fields_of_a_lease_are_ignored():
    stored = '{"claim_token": "me/1", "seconds": 4.5, "heartbeats": 3, "rank": [0], "host": "h"}'
    assert Lease.parse(stored) == Lease("me/1", 4.5, 3)


def test_unreadable_lease_has_the_default_duration_and_belongs_to_no_claim():
    for stored in UNREADABLE:
        lease = Lease.parse(stored)
        assert lease == Lease.parse(stored)
        assert lease != Lease.parse("changed")
        assert (lease.worker, lease.seconds) == ("unreadable", 120), stored


# ------------------------------------------------------------------ storage


def damage(storage, trial_id, stored):
    with storage.transaction() as connection:
        connection.execute(
            sa.text(
                "UPDATE trial_system_attributes SET value_json = :stored "
                "WHERE trial_id = :trial_id AND key = 'lease'"
            ),
            {"stored": stored, "trial_id": trial_id},
        )


@pytest.mark.parametrize("stored", ["not JSON", None])
def test_unreadable_lease_concerns_its_own_trial_only(url, stored):
    storage = open_storage(url)
    study_id = create_small_study(storage, 4)
    damaged, alive = storage.claim(study_id, "old/1"), storage.claim(study_id, "me/1")
    damage(storage, damaged, stored)
    (third,) = storage.claim_matching(alive, "me/1", 1, [])
    lost = storage.flush([PendingWrite(trial_id, "me/1", {1: 2.0}) for trial_id in (alive, third)])
    assert lost == []
    storage.finish(third, "me/1", TrialState.COMPLETE, 1.0, {})
    with pytest.raises(LeaseLostError):
        storage.heartbeat(damaged, "old/1")
    assert count_trials(storage, study_id).running == 2
    assert len(load_study(storage, "small").trials) == 4
    monitor = LeaseMonitor()
    for now in (0.0, 60.0):
        assert storage.expire_leases(study_id, monitor, lambda now=now: now) == []
        storage.heartbeat(alive, "me/1")
    damage(storage, damaged, "changed, as by a heartbeat")
    for now in (120.0, 180.0):
        assert storage.expire_leases(study_id, monitor, lambda now=now: now) == []
        storage.heartbeat(alive, "me/1")
    assert storage.expire_leases(study_id, monitor, lambda: 240.0) == [damaged]
    assert storage.claim(study_id, "next/1") == damaged
    assert storage.get_trial(damaged).user_attrs == {"retries": {"lease_expired": 1}}


def test_heartbeat_between_observation_and_requeue_is_respected(postgresql_url):
    storage = open_storage(postgresql_url)
    study_id = create_small_study(storage, 1)
    trial_id = storage.claim(study_id, "slow", lease_seconds=4)

    class InterruptedMonitor(LeaseMonitor):
        def observe(self, leases, now):
            storage.heartbeat(trial_id, "slow")
            return [trial_id]

    assert storage.expire_leases(study_id, InterruptedMonitor(), lambda: 0.0) == []
    assert storage.get_trial(trial_id).state is TrialState.RUNNING


def test_trial_run_by_plain_optuna_is_not_requeued(sqlite_url):
    storage = open_storage(sqlite_url)
    study_id = create_small_study(storage, 1)
    (trial,) = storage.get_all_trials(study_id)
    storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING)
    monitor = LeaseMonitor()
    for now in range(0, 1000, 100):
        assert storage.expire_leases(study_id, monitor, lambda now=now: float(now)) == []


def test_clock_jump_neither_expires_nor_extends_a_lease(sqlite_url, monkeypatch):
    """The wall clock of the worker or the observer jumps by an hour during the lease."""
    storage, monitor = open_storage(sqlite_url), LeaseMonitor()
    study_id = create_small_study(storage, 2)
    trial_id = storage.claim(study_id, "me", lease_seconds=4)

    def expire(now):
        return storage.expire_leases(study_id, monitor, lambda: now)

    assert expire(0.0) == []
    utcnow, wall_time = storage_module.utcnow, time.time
    for now, hours in ((2.0, 1), (4.0, -1)):
        shift = timedelta(hours=hours)
        monkeypatch.setattr(storage_module, "utcnow", lambda shift=shift: utcnow() + shift)
        monkeypatch.setattr(time, "time", lambda hours=hours: wall_time() + 3600 * hours)
        assert expire(now) == []
        storage.heartbeat(trial_id, "me")
    assert [expire(now) for now in (6.0, 8.0, 10.0)] == [[], [], [trial_id]]


# ------------------------------------------------------------------ cost of a claim


def test_claim_reads_only_the_trial_that_it_claims(sqlite_url):
    """According to the query plan, an index leads to the row."""
    storage = open_storage(sqlite_url)
    study_id = create_small_study(storage, 50)
    statements = []
    sa.event.listen(storage.engine, "before_cursor_execute", lambda *a: statements.append(a[2:4]))
    storage.claim(study_id, "me", exclude=[3, 4])
    (claim,) = [each for each in statements if "ORDER BY trials.number" in each[0]]
    with storage.engine.begin() as connection:
        plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {claim[0]}", claim[1]).all()
    steps = [row[3] for row in plan]
    assert any("ix_trials_study_id_state_number (study_id=? AND state=?)" in s for s in steps)
    assert not any("TEMP B-TREE" in step or step.startswith("SCAN trial") for step in steps)


def test_missing_claim_index_is_created(url):
    storage = open_storage(url)
    with storage.transaction() as connection:
        connection.execute(sa.text("DROP INDEX ix_trials_study_id_state_number"))
    open_storage(url)
    names = {index["name"] for index in sa.inspect(storage.engine).get_indexes("trials")}
    assert "ix_trials_study_id_state_number" in names
