"""Leases: they expire without heartbeats, by the observer's clock alone.

And how workers are shown: with the time since the database last heard of them.
"""

import json
import math
import time
from contextlib import closing
from datetime import timedelta

import pytest
import sqlalchemy as sa
from helpers import create_small_study
from optuna.trial import TrialState

from studies.errors import LeaseLostError
from studies.storage import storage as storage_module
from studies.storage.active_workers import read_active_workers
from studies.storage.counts import count_trials
from studies.storage.leases import HEARD, LEASE, Lease, LeaseMonitor
from studies.storage.open import load_study, open_storage
from studies.storage.queue import PendingWrite
from studies.storage.trial_rows import TRIAL_SYSTEM_ATTRS


def test_reset_after_an_outage_restarts_all_observations():
    monitor = LeaseMonitor()
    for now in (0, 30, 60, 90):
        monitor.observe([(7, Lease("token", 120))], now)
    monitor.reset()
    for now in (119, 120, 150, 180, 210):
        assert monitor.observe([(7, Lease("token", 120))], now) == []


FIELDS = {"claim_token": "me/1", "seconds": 4, "heartbeats": 0}
UNREADABLE = [None, "", "me/1", "[]", "{}", "[" * 100_000, '{"claim_token": "me/1", "seconds": 4}']
WRONG = [("claim_token", None), ("seconds", "4"), ("seconds", math.nan), ("seconds", 0)]
UNREADABLE += [json.dumps(FIELDS | {name: value}) for name, value in [*WRONG, ("heartbeats", [0])]]


def test_lease_is_read_with_unknown_fields_and_belongs_to_no_claim_if_it_is_unreadable():
    stored = '{"claim_token": "me/1", "seconds": 4.5, "heartbeats": 3, "rank": [0], "heard": "x"}'
    assert Lease.parse(stored) == Lease("me/1", 4.5, 3)
    for stored in UNREADABLE:
        lease = Lease.parse(stored)
        assert lease == Lease.parse(stored)
        assert lease != Lease.parse("changed")
        assert (lease.worker, lease.seconds) == ("unreadable", 120), stored


# ------------------------------------------------------------------ storage


@pytest.fixture
def storage(url):
    with closing(open_storage(url)) as storage:
        create_small_study(storage, 6)
        yield storage


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
def test_unreadable_lease_concerns_its_own_trial_only(storage, stored):
    study_id = 1
    damaged, alive = storage.claim(study_id, "old/1"), storage.claim(study_id, "me/1")
    damage(storage, damaged, stored)
    (third,) = storage.claim_matching(alive, "me/1", 1, [])
    lost = storage.flush([PendingWrite(trial_id, "me/1", {1: 2.0}) for trial_id in (alive, third)])
    assert lost == []
    storage.finish(third, "me/1", TrialState.COMPLETE, 1.0, {})
    with pytest.raises(LeaseLostError):
        storage.heartbeat(damaged, "old/1")
    assert count_trials(storage, study_id).running == 2
    assert len(load_study(storage, "small").trials) == 6
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


def test_wall_clocks_neither_expire_nor_extend_a_lease(storage, monkeypatch):
    """The clock of the worker or the observer jumps by an hour during the lease."""
    monitor, trial_id = LeaseMonitor(), storage.claim(1, "me", lease_seconds=4)
    utcnow, wall_time = storage_module.utcnow, time.time
    for now, hours in ((0.0, 0), (2.0, 1), (4.0, -1)):
        shift = timedelta(hours=hours)
        monkeypatch.setattr(storage_module, "utcnow", lambda shift=shift: utcnow() + shift)
        monkeypatch.setattr(time, "time", lambda hours=hours: wall_time() + 3600 * hours)
        assert storage.expire_leases(1, monitor, lambda now=now: now) == []
        storage.heartbeat(trial_id, "me")
    expired = [storage.expire_leases(1, monitor, lambda now=now: now) for now in (6.0, 8.0, 10.0)]
    assert expired == [[], [], [trial_id]]


# ------------------------------------------------------------------ workers as they are shown


def workers_of(storage):
    with storage.reading() as connection:
        return read_active_workers(connection, 1)


def shift_time(storage, trial_id, seconds):
    """Have the database have heard of a worker at another time."""
    attributes = TRIAL_SYSTEM_ATTRS.c
    of_lease = (attributes.trial_id == trial_id) & (attributes.key == LEASE)
    with storage.transaction() as connection:
        query = TRIAL_SYSTEM_ATTRS.select().with_only_columns(attributes.value_json)
        lease = json.loads(connection.scalar(query.where(of_lease)))
        lease[HEARD] = seconds if isinstance(seconds, str) else lease[HEARD] + seconds
        update = TRIAL_SYSTEM_ATTRS.update().where(of_lease)
        connection.execute(update.values(value_json=json.dumps(lease)))


def test_workers_are_listed_with_their_trials_the_longest_silent_first(storage):
    for worker in ("node1/17", "node1/17", "node2/5"):
        storage.claim(1, f"{worker}/token")
    shift_time(storage, 3, -95)
    silent, other = workers_of(storage)
    assert (silent.name, silent.host, silent.trials) == ("node2/5", "node2", (2,))
    assert (other.name, other.host, other.trials) == ("node1/17", "node1", (0, 1))
    assert silent.silent_seconds >= 95
    assert 0 <= other.silent_seconds < silent.silent_seconds
    assert silent.description.startswith("node2/5 holds trial 2, last heard of ")
    assert silent.as_json()["lease_seconds"] == 120


def test_silence_is_shown_whatever_the_clock_does(storage):
    storage.claim(1, "node1/17/token")
    for shift, silence in ((-1000, 1000), (3600, 0)):
        shift_time(storage, 1, shift)
        (worker,) = workers_of(storage)
        assert silence <= worker.silent_seconds < silence + 600
        is_long = worker.description.endswith("min ago, longer than its lease of 2.0 min")
        assert is_long == worker.is_expired == (silence > 0)
    storage.heartbeat(1, "node1/17/token")  # is dated anew
    shift_time(storage, 1, -95)
    assert workers_of(storage)[0].silent_seconds >= 95
    shift_time(storage, 1, "unknown")  # as that of an earlier version
    (worker,) = workers_of(storage)
    assert worker.silent_seconds is None
    assert worker.description == "node1/17 holds trial 0"


def test_trial_of_plain_optuna_has_no_worker_and_does_not_expire(storage):
    trial = load_study(storage, "small").ask()
    (worker,) = workers_of(storage)
    assert (worker.name, worker.host, worker.trials) == (None, None, (trial.number,))
    assert "a program without a lease" in worker.description
    monitor = LeaseMonitor()
    for now in range(0, 1000, 100):
        assert storage.expire_leases(1, monitor, lambda now=now: float(now)) == []
    storage.set_trial_state_values(trial._trial_id, TrialState.COMPLETE, [0.0])
    assert workers_of(storage) == []


# ------------------------------------------------------------------ cost of a claim


def test_claim_reads_only_the_trial_that_it_claims(sqlite_url):
    """According to the query plan, an index leads to the row."""
    storage, statements = open_storage(sqlite_url), []
    study_id = create_small_study(storage, 50)
    sa.event.listen(storage.engine, "before_cursor_execute", lambda *a: statements.append(a[2:4]))
    storage.claim(study_id, "me", exclude=[3, 4])
    (claim,) = [each for each in statements if "ORDER BY trials.number" in each[0]]
    with storage.engine.begin() as connection:
        plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {claim[0]}", claim[1]).all()
    steps = [row[3] for row in plan]
    assert any("ix_trials_study_id_state_number (study_id=? AND state=?)" in s for s in steps)
    assert not any("TEMP B-TREE" in step or step.startswith("SCAN trial") for step in steps)


def test_missing_claim_index_is_created(storage, url):
    with storage.transaction() as connection:
        connection.execute(sa.text("DROP INDEX ix_trials_study_id_state_number"))
    open_storage(url)
    names = {index["name"] for index in sa.inspect(storage.engine).get_indexes("trials")}
    assert "ix_trials_study_id_state_number" in names
