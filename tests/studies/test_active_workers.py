"""Workers are shown with the time since the database last heard of them, which no lease uses."""

import json
from contextlib import closing

import pytest
from helpers import create_small_study
from optuna.trial import TrialState

from studies.storage.active_workers import read_active_workers
from studies.storage.leases import HEARD, LEASE, LeaseMonitor
from studies.storage.open import load_study, open_storage
from studies.storage.trial_rows import TRIAL_SYSTEM_ATTRS


@pytest.fixture
def storage(url):
    with closing(open_storage(url)) as storage:
        create_small_study(storage, 6)
        yield storage


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


@pytest.mark.parametrize("seconds", [1e6, "x"])
def test_lease_expires_by_observation_whatever_its_time(storage, seconds):
    storage.claim(1, "node1/17/token", 10)
    monitor, times = LeaseMonitor(), iter((0.0, 5.0, 9.0, 10.0))

    def expire():
        return storage.expire_leases(1, monitor, lambda: next(times))

    assert expire() == []
    shift_time(storage, 1, seconds)  # changes nothing of the lease
    assert (expire(), expire()) == ([], [])
    assert expire() == [1]


def test_silence_is_shown_whatever_the_clock_does(storage):
    storage.claim(1, "node1/17/token")
    for shift, silence in ((-1000, 1000), (3600, 0)):
        shift_time(storage, 1, shift)
        (worker,) = workers_of(storage)
        assert silence <= worker.silent_seconds < silence + 600
        is_long = worker.description.endswith("min ago, longer than its lease of 2.0 min")
        assert is_long == (silence > 0)
    storage.heartbeat(1, "node1/17/token")  # is dated anew
    shift_time(storage, 1, -95)
    assert workers_of(storage)[0].silent_seconds >= 95
    shift_time(storage, 1, "unknown")  # as that of an earlier version
    (worker,) = workers_of(storage)
    assert worker.silent_seconds is None
    assert worker.description == "node1/17 holds trial 0"


def test_trial_of_plain_optuna_has_no_worker(storage):
    trial = load_study(storage, "small").ask()
    (worker,) = workers_of(storage)
    assert (worker.name, worker.host, worker.trials) == (None, None, (trial.number,))
    assert "a program without a lease" in worker.description
    storage.set_trial_state_values(trial._trial_id, TrialState.COMPLETE, [0.0])
    assert workers_of(storage) == []
