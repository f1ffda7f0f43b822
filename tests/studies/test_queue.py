"""Claims of matching trials, by several processes, and the end of paused ones."""

import itertools
import json

import optuna
import pytest
from helpers import create_small_study, run_simultaneously, wait_for_others
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState
from process_runner import query

from studies.attributes import Failure
from studies.errors import LeaseLostError
from studies.storage.create_study import PlannedTrial, create_study
from studies.storage.open import load_study, open_storage

SIZES = (32, 256)


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


def test_worker_that_lost_its_trial_cannot_claim_matching_trials(sqlite_url):
    storage = open_storage(sqlite_url)
    study_id = create_small_study(storage, 3)
    first = storage.claim(study_id, "me/1")
    storage.requeue(first, "me/1", Failure.LEASE_EXPIRED)
    with pytest.raises(LeaseLostError):
        storage.claim_matching(first, "me/1", 9, [])
    assert storage.running_leases(study_id) == {}


def claim_many(url, worker):
    storage = open_storage(url)
    study_id = load_study(storage, "small")._study_id
    claimed = []
    tokens = (f"worker {worker}/{turn}" for turn in itertools.count())
    claim_token = next(tokens)
    while (first := storage.claim(study_id, claim_token)) is not None:
        is_first = not claimed
        claimed += [first, *storage.claim_matching(first, claim_token, 5, [])]
        claim_token = next(tokens)
        if is_first:
            wait_for_others()  # each worker has claimed trials, and others remain
    return claimed


def test_concurrent_workers_claim_batches_of_distinct_trials(url):
    create_small_study(open_storage(url), 90)
    claimed = run_simultaneously(claim_many, [(url, worker) for worker in range(6)])
    assert sorted(itertools.chain.from_iterable(claimed)) == sorted(
        trial._trial_id for trial in load_study(open_storage(url), "small").trials
    )
    assert all(len(ids) > 1 for ids in claimed)


def test_pruned_trial_ended_when_it_was_paused_and_is_one_of_plain_optuna(url):
    storage = open_storage(url)
    study_id = create_small_study(storage, 1)
    trial_id = storage.claim(study_id, "me/1")
    storage.pause(trial_id, "me/1", {"rung": 20}, {10: 3.0})
    ((since,),) = query(url, "SELECT value_json FROM trial_system_attributes WHERE key = 'paused'")
    assert storage.prune_paused(study_id, 1, {trial_id: {"reason": "far off"}}) == [trial_id]
    (trial,) = load_study(storage, "small").get_trials(states=(TrialState.PRUNED,))
    assert trial.user_attrs == {"rung": 20, "reason": "far off"}
    assert trial.value is None
    assert trial.datetime_complete.isoformat() == json.loads(since)
    other = optuna.create_study()
    other.add_trial(trial)
    assert other.trials[0].state is TrialState.PRUNED
