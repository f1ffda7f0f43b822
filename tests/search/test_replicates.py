"""Replicates: which of them keep their weights."""

import pytest
from helpers import study_attributes
from optuna.trial import TrialState

from search.errors import WeightsNotFoundError
from search.models import load_trial_model
from search.study import StudyHandle
from search.worker.checkpoints import BestTrialFiles, TrialFiles
from studies.artifacts import open_store
from studies.config import StudyConfig
from studies.space import distributions, observed_search_space
from studies.storage.changes import create_study
from studies.storage.open import load_study, open_storage
from studies.storage.trials import StoredTrial


def derived(**refinement) -> StudyConfig:
    return StudyConfig.model_validate({"refinement": {"source": "s"} | refinement})


SWITCHES = dict.fromkeys(("input_gate", "forget_gate", "output_gate", "state_gate"), False)
FIXED = {"cell": "gated", **SWITCHES, "residual": False, "state_source": "new", "state_size": 8}
ARCHITECTURES = [FIXED | {"layers": layers} for layers in (1, 2, 3)]


def rows(counts, first=4):
    """Return trials of each architecture, with replicates from the first number on."""
    params = [
        each | {"replicate": first + run}
        for each, count in zip(ARCHITECTURES, counts, strict=True)
        for run in range(count)
    ]
    return [
        StoredTrial(
            each,
            {"source_trials": [each["layers"]]},
            state=TrialState.COMPLETE,
            value=1.0,
            number=number,
        )
        for number, each in enumerate(params)
    ]


def test_best_run_of_the_architecture_of_the_best_mean_keeps_its_file(sqlite_url):
    """The first has the best run. Until the last run, each may become the best."""
    params = [row.params for row in rows((2, 2, 0))]
    config = derived(replicates=2).model_copy(update={"keep_weights": 1})
    storage, space = open_storage(sqlite_url), distributions(observed_search_space(params))
    create_study(storage, "s", "", study_attributes(config), space, [*map(StoredTrial, params)])
    handle = StudyHandle(load_study(storage, "s"), storage, config, None, None)
    store, kept = open_store(None, sqlite_url, "weights"), []
    weights = TrialFiles(store, "made-1", "safetensors")
    files = BestTrialFiles(handle, weights, lambda query: query())
    for number, value in enumerate((1.0, 3.0, 1.4, 1.5)):
        trial_id = storage.claim(handle.study_id, "me")
        for selected in files.select({number: value}):
            files.write(selected, lambda: b"weights")
        storage.finish(trial_id, "me", TrialState.COMPLETE, value, {})
        files.evict(number)
        kept.append(weights.list_trials())
    assert kept == [{0}, {0}, {0, 2}, {2}]
    with pytest.raises(WeightsNotFoundError, match=r"expected best or trial 2$"):
        load_trial_model("s", 1, sqlite_url, None)
