"""Claims of several trials and batched writes, on both kinds of database."""

import itertools

import pytest
import sqlalchemy as sa
from helpers import run_simultaneously, wait_for_others
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState

from studies.attributes import Failure
from studies.errors import LeaseLostError
from studies.storage.create_study import PlannedTrial, create_study
from studies.storage.open import load_study, open_storage
from studies.storage.queue import PendingWrite

SIZES = (32, 256)


def create_two_sizes(url, count=12):
    """Create a study whose trials alternate between two sizes; return its storage and id."""
    storage = open_storage(url)
    distributions = {
        "x": CategoricalDistribution(tuple(range(count))),
        "size": CategoricalDistribution(SIZES),
    }
    trials = [PlannedTrial({"x": x, "size": SIZES[x % 2]}) for x in range(count)]
    create_study(storage, "two sizes", "loss", {}, distributions, trials)
    return storage, load_study(storage, "two sizes")._study_id


def read_x(storage, trial_ids):
    return [storage.get_trial(trial_id).params["x"] for trial_id in trial_ids]


def test_matching_trials_are_claimed_in_order(url):
    storage, study_id = create_two_sizes(url)
    first = storage.claim(study_id, "me/1")
    more = storage.claim_matching(first, "me/1", 3, ["size"])
    assert read_x(storage, [first, *more]) == [0, 2, 4, 6]
    assert storage.running_leases(study_id).keys() == {first, *more}
    assert {lease.claim_token for lease in storage.running_leases(study_id).values()} == {"me/1"}
    for trial_id in more:
        trial = storage.get_trial(trial_id)
        assert trial.state is TrialState.RUNNING
        assert trial.datetime_start is not None
        storage.finish(trial_id, "me/1", TrialState.COMPLETE, 1.0, {})
    assert read_x(storage, storage.claim_matching(first, "me/1", 99, ["size"])) == [8, 10]
    assert storage.claim_matching(first, "me/1", 99, ["size"]) == []
    assert storage.claim_matching(first, "me/1", 0, []) == []
    assert read_x(storage, storage.claim_matching(first, "me/1", 99, [], exclude=[])) == [
        1,
        3,
        5,
        7,
        9,
        11,
    ]


def test_trials_match_if_they_have_the_same_parameters_with_the_same_values(url):
    """As in a union of grids: some have no momentum, or no size."""
    storage = open_storage(url)
    distributions = {
        "cell": CategoricalDistribution(("gated", "lstm")),
        "size": CategoricalDistribution(SIZES),
        "momentum": CategoricalDistribution((0.5, 0.9)),
    }
    small, large = SIZES
    trials = [
        {"cell": "gated", "size": small},
        {"cell": "gated", "size": small, "momentum": 0.5},
        {"cell": "gated", "size": small, "momentum": 0.9},
        {"cell": "gated", "size": small},
        {"cell": "gated"},
        {"cell": "gated", "size": large},
        {"cell": "lstm", "size": small},
        {"cell": "gated", "size": small, "momentum": 0.5},
        {"cell": "gated"},
    ]
    create_study(storage, "union", "loss", {}, distributions, [*map(PlannedTrial, trials)])
    study_id = load_study(storage, "union")._study_id

    def claim_numbers(parameters):
        first = storage.claim(study_id, "me/1")
        trial_ids = [first, *storage.claim_matching(first, "me/1", 99, parameters)]
        return [storage.get_trial(trial_id).number for trial_id in trial_ids]

    names = ["cell", "size", "momentum", "unknown"]
    assert claim_numbers(names) == [0, 3]
    assert claim_numbers(names) == [1, 7]
    assert claim_numbers(["cell", "size"]) == [2]
    assert claim_numbers(names) == [4, 8]
    assert claim_numbers(["size"]) == [5]
    assert claim_numbers(names) == [6]


def test_excluded_trials_are_not_claimed(url):
    storage, study_id = create_two_sizes(url)
    first = storage.claim(study_id, "me/1")
    exclude = [first + 2, first + 4]
    assert read_x(storage, storage.claim_matching(first, "me/1", 2, ["size"], exclude)) == [6, 8]


def test_worker_claims_at_most_its_share(url):
    """Each of two workers may claim half of the matching trials."""
    storage, study_id = create_two_sizes(url, 13)
    first, second = storage.claim(study_id, "me/1"), storage.claim(study_id, "you/1")
    assert len(storage.claim_matching(first, "me/1", 99, [])) == 5  # of eleven; six with the first
    assert len(storage.claim_matching(second, "you/1", 99, [])) == 3
    # Several claims count as one worker.
    assert {lease.worker for lease in storage.running_leases(study_id).values()} == {"me", "you"}


def test_worker_that_lost_its_trial_cannot_claim_matching_trials(url):
    storage, study_id = create_two_sizes(url)
    first = storage.claim(study_id, "me/1")
    storage.requeue(first, "me/1", Failure.LEASE_EXPIRED)
    with pytest.raises(LeaseLostError):
        storage.claim_matching(first, "me/1", 9, ["size"])
    assert storage.running_leases(study_id) == {}


def claim_many(url, worker):
    storage = open_storage(url)
    study_id = load_study(storage, "two sizes")._study_id
    claimed = []
    tokens = (f"worker {worker}/{turn}" for turn in itertools.count())
    claim_token = next(tokens)
    while (first := storage.claim(study_id, claim_token)) is not None:
        is_first = not claimed
        claimed += [first, *storage.claim_matching(first, claim_token, 5, ["size"])]
        claim_token = next(tokens)
        if is_first:
            wait_for_others()  # each worker has claimed trials, and others remain
    return claimed


def test_concurrent_workers_claim_batches_of_distinct_trials(url):
    create_two_sizes(url, 80)
    claimed = run_simultaneously(claim_many, [(url, worker) for worker in range(5)])
    assert sorted(itertools.chain.from_iterable(claimed)) == sorted(
        trial._trial_id for trial in load_study(open_storage(url), "two sizes").trials
    )
    assert all(len(ids) > 1 for ids in claimed)


def test_pending_writes_are_flushed_in_one_transaction(url):
    storage, study_id = create_two_sizes(url)
    first = storage.claim(study_id, "me/1")
    trials = [first, *storage.claim_matching(first, "me/1", 3, ["size"])]
    storage.requeue(trials[1], "me/1", Failure.LEASE_EXPIRED)
    storage.report(trials[3], "me/1", {1: 9.0, 2: 9.0})
    transactions = []
    sa.event.listen(storage.engine, "commit", transactions.append)
    lost = storage.flush(
        [
            PendingWrite(trials[3], "me/1", {2: 4.0}, replace_all=True),
            PendingWrite(trials[0], "me/1", {1: 3.0, 2: 2.0}, heartbeat=True),
            PendingWrite(trials[1], "me/1", {1: 3.0}, heartbeat=True),
            PendingWrite(trials[2], "me/1", heartbeat=True),
        ]
    )
    assert len(transactions) == 1
    assert lost == [trials[1]]
    curves = [storage.get_trial(trial_id).intermediate_values for trial_id in trials]
    assert curves == [{1: 3.0, 2: 2.0}, {}, {}, {2: 4.0}]
    heartbeats = {key: lease.heartbeats for key, lease in storage.running_leases(study_id).items()}
    assert heartbeats == {trials[0]: 1, trials[2]: 1, trials[3]: 0}
    assert storage.flush([]) == []
