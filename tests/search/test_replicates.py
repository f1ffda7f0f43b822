"""Replicates with planned looks: their settings, and the runs that a look adds."""

import pytest
from helpers import study_attributes
from optuna.trial import TrialState

from rnn.errors import SavedModelError
from search.derive import join_looks, plan_looks, record_look
from search.errors import WeightsNotFoundError
from search.models import load_trial_model
from search.study import StudyHandle
from search.worker.checkpoints import BestTrialFiles, TrialFiles
from studies.artifacts import open_store
from studies.attributes import LookRecord
from studies.config import StudyConfig
from studies.errors import ConfigError, StudiesError
from studies.loader import read_study_record
from studies.settings import DEFAULT_LOOKS
from studies.space import distributions, observed_search_space
from studies.storage.changes import create_study
from studies.storage.open import load_study, open_storage
from studies.storage.reads import read_trials
from studies.storage.trials import StoredTrial
from studies.text import format_trials


def derived(**refinement) -> StudyConfig:
    return StudyConfig.model_validate({"refinement": {"source": "s"} | refinement})


def test_looks_of_the_file_or_the_default_are_planned():
    planned = plan_looks(derived(looks=[2, 4], replicates=7), until_decided=True).refinement
    assert (planned.looks, planned.replicates, planned.initial_runs) == ([2, 4], 4, 2)
    default = plan_looks(derived(), until_decided=True).refinement
    assert (default.looks, default.replicates) == (list(DEFAULT_LOOKS), DEFAULT_LOOKS[-1])


@pytest.mark.parametrize(
    ("config", "until_decided", "message"),
    [
        ({"space": {"layers": [1], "state_size": [4]}}, True, "expected a study with"),
        (
            {"refinement": {"source": "s", "looks": [3, 5]}, "eval_split": "test"},
            False,
            'without --until-decided: study has eval_split = "test" without replicates',
        ),
        (
            {"refinement": {"source": "s"}, "pruning": {"enabled": True}},
            True,
            "with --until-decided: study has pruning.enabled and 20 replicates",
        ),
    ],
)
def test_contradictions_are_refused(config, until_decided, message):
    with pytest.raises(ConfigError, match=message):
        plan_looks(StudyConfig.model_validate(config), until_decided)


@pytest.mark.parametrize(("looks", "message"), [([3, 3], "increase"), ([1, 3], "or equal to 2")])
def test_looks_must_increase_from_two_runs(looks, message):
    with pytest.raises(ValueError, match=message):
        derived(looks=looks)


def test_worker_without_the_option_joins_a_study_with_looks():
    stored = derived(looks=[2, 4], replicates=4)
    assert join_looks("n", stored, derived(replicates=9), until_decided=False) == stored


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


@pytest.mark.parametrize(("looks", "last"), [([], [2]), ([2, 3], [2, 0])])
def test_best_run_of_the_architecture_of_the_best_mean_keeps_its_file(sqlite_url, looks, last):
    """The first has the best run. Until the last run, or after a look, each may become the best."""
    params = [row.params for row in rows((2, 2, 0))]
    config = derived(looks=looks, replicates=2).model_copy(update={"keep_weights": 1})
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
    assert kept == [{0}, {0}, {0, 2}, set(last)]
    with pytest.raises(WeightsNotFoundError, match=f"expected best or {format_trials(last)}$"):
        load_trial_model("s", 1, sqlite_url, None)


@pytest.fixture
def looked(sqlite_url):
    """A study of three architectures with two complete runs each, before its first look."""
    storage = open_storage(sqlite_url)
    trials = [row.params for row in rows((2, 2, 2))]
    planned = [StoredTrial(params, {"source_trials": [0]}) for params in trials]
    space = distributions(observed_search_space(trials))
    config = derived(looks=[2, 3, 5], replicates=5)
    create_study(storage, "looked", "loss", study_attributes(config), space, planned)
    study_id = storage.get_study_id_from_name("looked")
    for number in range(len(trials)):
        trial_id = storage.claim(study_id, "me")
        storage.finish(trial_id, "me", TrialState.COMPLETE, float(number), {})
    yield storage
    storage.close()


def look_at(runs, *continued):
    verdicts = dict.fromkeys((0, 2, 4), "undecided")
    return LookRecord(runs=runs, level=0.01, verdicts=verdicts, continued=list(continued))


def test_look_and_its_trials_are_stored_once(looked):
    """Two processes take the same look; only the first one stores it."""
    study = load_study(looked, "looked")
    record = read_study_record(study)
    assert record_look(looked, study, record, look_at(2, 0, 4)) == 2
    assert record_look(looked, study, record, look_at(2, 0, 4)) is None
    stored = read_study_record(load_study(looked, "looked"))
    assert stored.looks == [look_at(2, 0, 4)]
    trials = read_trials(looked, study._study_id)
    assert [(t.params["layers"], t.params["replicate"]) for t in trials[6:]] == [(1, 6), (3, 6)]
    assert all(t.state is TrialState.WAITING for t in trials[6:])


def test_weights_of_a_run_after_the_look_in_force_are_found(looked, sqlite_url):
    study = load_study(looked, "looked")
    record = read_study_record(study)
    record_look(looked, study, record, look_at(2, 0, 4))
    trial_id = looked.claim(study._study_id, "me")
    looked.finish(trial_id, "me", TrialState.COMPLETE, 6.0, {})
    store = open_store(None, sqlite_url, "weights")
    weights = TrialFiles(store, record.artifact_folder, "safetensors")
    weights.write(6, b"damaged")
    with pytest.raises(SavedModelError):  # and not that there are none
        load_trial_model("looked", 6, sqlite_url, None)


def test_look_waits_for_trials_that_a_worker_holds(looked):
    study = load_study(looked, "looked")
    assert record_look(looked, study, read_study_record(study), look_at(2, 0, 4)) == 2
    looked.claim(study._study_id, "me")
    with pytest.raises(StudiesError, match="held by workers"):
        record_look(
            looked, study, read_study_record(load_study(looked, "looked")), look_at(3, 0, 4)
        )
