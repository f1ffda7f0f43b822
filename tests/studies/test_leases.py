"""Leases expire without heartbeats, by the observer's clock alone, and show who holds trials."""

import json
import time
from contextlib import closing
from datetime import timedelta

import pytest
import sqlalchemy as sa
from helpers import create_small_study

from studies.attributes import LEASE
from studies.storage import leases
from studies.storage.counts import count_trials, read_active_workers
from studies.storage.leases import LeaseMonitor, PendingWrite
from studies.storage.open import load_study, open_storage
from studies.storage.tables import TRIAL_SYSTEM_ATTRS


@pytest.fixture
def storage(url):
    with closing(open_storage(url)) as storage:
        create_small_study(storage, 6)
        yield storage


def change_lease(storage, trial_id, change):
    """Store what a function returns for the lease of a trial."""
    attributes = TRIAL_SYSTEM_ATTRS.c
    of_lease = (attributes.trial_id == trial_id) & (attributes.key == LEASE)
    with storage.transaction() as connection:
        lease = connection.scalar(sa.select(attributes.value_json).where(of_lease))
        update = TRIAL_SYSTEM_ATTRS.update().where(of_lease)
        connection.execute(update.values(value_json=change(lease)))


def test_heartbeat_between_observation_and_requeue_is_respected(postgresql_url):
    with closing(open_storage(postgresql_url)) as storage:
        create_small_study(storage, 1)
        trial_id = storage.claim(1, "slow", lease_seconds=4)

        class InterruptedMonitor(LeaseMonitor):
            def observe(self, leases, now):
                storage.flush([PendingWrite(trial_id, "slow", heartbeat=True)])
                return [trial_id]

        assert storage.expire_leases(1, InterruptedMonitor(), lambda: 0.0) == []
        assert count_trials(storage, 1).running == 1


def test_wall_clocks_neither_expire_nor_extend_a_lease(storage, monkeypatch):
    """The clock of the worker or the observer jumps by an hour during the lease."""
    monitor, trial_id = LeaseMonitor(), storage.claim(1, "me", lease_seconds=4)
    utcnow, wall_time = leases.utcnow, time.time
    for now, hours in ((0.0, 0), (2.0, 1), (4.0, -1)):
        shift = timedelta(hours=hours)
        monkeypatch.setattr(leases, "utcnow", lambda shift=shift: utcnow() + shift)
        monkeypatch.setattr(time, "time", lambda hours=hours: wall_time() + 3600 * hours)
        assert storage.expire_leases(1, monitor, lambda now=now: now) == []
        storage.flush([PendingWrite(trial_id, "me", heartbeat=True)])
    expired = [storage.expire_leases(1, monitor, lambda now=now: now) for now in (6.0, 8.0, 10.0)]
    assert expired == [[], [], [trial_id]]


def test_workers_are_listed_with_their_trials_the_longest_silent_first(storage):
    for worker in ("node1/17", "node1/17", "node2/5"):
        storage.claim(1, f"{worker}/token")
    plain = load_study(storage, "small").ask()

    def list_workers(heard):
        """Have the database have heard of the worker of trial 2 at another time."""
        change_lease(storage, 3, lambda stored: json.dumps(json.loads(stored) | {"heard": heard}))
        with storage.reading() as connection:
            return read_active_workers(connection, 1)

    now = time.time()
    silent, other, optuna = list_workers(now - 95)
    assert (silent.name, silent.host, silent.trials) == ("node2/5", "node2", (2,))
    assert (other.name, other.host, other.trials) == ("node1/17", "node1", (0, 1))
    assert (optuna.name, optuna.host, optuna.trials) == (None, None, (plain.number,))
    assert 0 <= other.silent_seconds < silent.silent_seconds
    assert silent.description.startswith("node2/5 holds trial 2, last heard of ")
    assert "a program without a lease" in optuna.description
    (silent, *_) = list_workers(now - 900)
    assert silent.is_expired
    assert silent.description.endswith("min ago, longer than its lease of 2.0 min")
    (worker,) = (each for each in list_workers(now + 3600) if each.host == "node2")
    assert (worker.silent_seconds, worker.is_expired) == (0, False)
