"""Studies of imported results: what is stored, what is refused, studies of plain Optuna."""

import shutil
from pathlib import Path

import optuna
import pytest
from optuna.distributions import IntDistribution
from optuna.trial import TrialState

from rnn.errors import UserError
from rnn_search import import_results
from studies.artifacts import ArtifactFolders
from studies.loader import load_stored_config
from studies.management import list_studies, retry_trials
from studies.storage.counts import count_trials, top_trials
from studies.storage.open import load_study, read_record, read_storage, read_study_record

GRID = "lr,act,value\n0.1,relu,0.5\n0.1,gelu,0.4\n0.2,relu,0.7\n0.2,gelu,0.6\n"


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("a,b,loss\n1,2,0.5\n", {}, "has no column 'value': choose --value, of a, b, loss"),
        (
            "a,acc\n1,2\n2,n/a\n",
            {"value": "acc"},
            "column 'acc': could not convert string to float",
        ),
        ("a,value\n1,1\n2,2\n1,3\n", {}, "1 run repeats the parameters of an earlier one: name"),
        ("a,seed,value\n1,1,2\n2,2,3\n2,2,4\n", {}, "1 run repeats the parameters of an earlier"),
        ("a,value\n1,nan\n2,\n", {}, "no row is complete"),
        ("a,value\n1,2\n1,2,3\n", {}, "Expected 2 fields in line 3, saw 3"),
        ("a,value\n", {}, "has no rows, or two columns of one name"),
        (
            b"PK\x03\x04\xff\xfe",
            {},
            "table.csv cannot be read as CSV in UTF-8, JSON lines (.jsonl)",
        ),
        (b"a,value\n1,2\n\xe9,3\n", {}, "cannot be read as CSV in UTF-8"),
        (
            "a,loss_5,value\n1,x,3\n2,1,3\n",
            {},
            "column 'loss_5': could not convert string to float",
        ),
        ("value\n1\n2\n", {}, "has no such parameters: expected columns that vary"),
        (
            GRID,
            {"parameters": ["lr", "value"]},
            "other than the value, the replicate and the curve",
        ),
        (
            GRID,
            {"nuisance": ["rate"]},
            "has no column 'rate': choose --nuisance, of lr, act, value",
        ),
        (GRID, {"nuisance": ["lr", "act"]}, "--nuisance names lr, act: expected some of the param"),
        (GRID, {"study": "x"}, "study='x' is for the URL of a storage, and the source is none"),
    ],
)
def test_bad_table_is_refused_and_nothing_is_written(table, tmp_path, content, options, message):
    with pytest.raises(UserError) as refused:
        table(content, **options)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "studies.db").exists()


def test_nuisance_is_stored(table, target):
    table(GRID, nuisance=["lr"])
    assert read_record(load_study(read_storage(target), "table")).config.nuisance == ["lr"]


def test_highest_value_is_the_best_if_it_is_maximized(table, target):
    table(GRID, maximize=True)
    storage = read_storage(target)
    study_id = load_study(storage, "table")._study_id
    assert [row[1:] for row in top_trials(storage, study_id, 2)] == [(2, 0.7), (3, 0.6)]
    (listed,) = list_studies(storage, ArtifactFolders(None, target, read_only=True))
    assert (listed.kind, listed.best) == ("imported", 0.7)


def test_imported_study_is_not_trained(table, target):
    table(GRID)
    study = load_study(read_storage(target), "table")
    for train in (
        lambda: retry_trials(target, "table", ["failed"]),
        lambda: load_stored_config("table", target),
        lambda: read_study_record(study),
    ):
        with pytest.raises(UserError, match="was imported: its trials cannot be trained"):
            train()
    assert read_record(study).config.results.parameters == ["lr", "act"]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """URL of a storage with a study by TPE, with pruned, failed and waiting trials."""
    url = f"sqlite:///{tmp_path_factory.mktemp('tuned')}/optuna.db"

    sampler = optuna.samplers.TPESampler(seed=0, n_startup_trials=5)
    study = optuna.create_study(
        study_name="tuned", storage=url, direction="maximize", sampler=sampler
    )
    states = {3: TrialState.FAIL, 4: TrialState.PRUNED, 9: TrialState.PRUNED}
    for number in range(12):
        trial, state = study.ask(), states.get(number, TrialState.COMPLETE)
        rate = trial.suggest_float("rate", 1e-4, 1e-1, log=True)
        if trial.suggest_categorical("optimizer", ["adam", "sgd", None]) == "sgd":
            trial.suggest_float("momentum", 0.0, 0.9)
        trial.report(rate, 1)
        study.tell(trial, None if number in states else rate + number / 100, state)
    study.enqueue_trial({"rate": 0.01})
    return url


@pytest.fixture
def import_study(target):
    """Import a study of Optuna; return what was said about it, and the new study."""

    def read(url: str, name: str | None = None, **options):
        imported = import_results(url, study=name, storage=target, **options)
        return imported, load_study(read_storage(target), imported.name)

    return read


def test_study_of_optuna_keeps_its_states_curves_and_direction(tuned, import_study, target):
    file = Path(tuned.removeprefix("sqlite:///"))
    before = file.read_bytes()
    imported, study = import_study(tuned)
    assert file.read_bytes() == before
    counts = count_trials(read_storage(target), study._study_id)
    assert (counts.complete, counts.pruned, counts.failed, counts.planned) == (9, 2, 1, 12)
    source = optuna.load_study(study_name="tuned", storage=tuned)
    assert study.best_value == source.best_value
    assert study.trials[4].intermediate_values == source.trials[4].intermediate_values
    assert study.trials[0].params["rate"] == source.trials[0].params["rate"]
    record = read_record(study).config.results
    assert (record.direction, record.is_adaptive) == ("maximize", True)
    again = import_results(source, name="again", storage=target)
    assert (again.roles, again.counts) == (imported.roles, imported.counts)


def test_table_of_optuna_is_recognized(tuned, table):
    frame = optuna.load_study(study_name="tuned", storage=tuned).trials_dataframe()
    trials, imported = table(frame.to_csv(), maximize=True)
    assert imported.counts == "12 of 12 finished, 2 pruned, 1 failed"
    assert imported.roles[1] == "parameters: momentum, optimizer, rate"
    assert trials[0].params["rate"] == frame["params_rate"][0]


def test_repeated_trials_are_replicates_and_several_objectives_are_refused(tmp_path, import_study):
    url = f"sqlite:///{tmp_path}/optuna.db"
    for name, directions in (("one", ["maximize"]), ("two", ["minimize", "maximize"])):
        study = optuna.create_study(study_name=name, storage=url, directions=directions)
        for n in (1, 1, 2):
            study.enqueue_trial({"n": n})
        for trial in [study.ask({"n": IntDistribution(1, 2)}) for _ in range(3)]:
            study.tell(trial, [2.0] * len(directions))
    with pytest.raises(UserError, match=r"study two of .* has 2 objectives: expected one"):
        import_study(url, "two")
    assert not (tmp_path / "studies.db").exists()
    _, imported = import_study(url, "one")
    assert len({trial.params["replicate"] for trial in imported.trials}) == 3


def test_study_of_several_is_to_be_named_and_own_ones_are_exported(
    tmp_path, tuned, table, target, import_study
):
    two = f"sqlite:///{shutil.copy(tuned.removeprefix('sqlite:///'), tmp_path / 'two.db')}"
    optuna.create_study(study_name="other", storage=two)
    with pytest.raises(UserError, match="has 2 studies: choose one with --study"):
        import_study(two)
    with pytest.raises(UserError, match="has no rows"):
        import_study(two, "other")
    table(GRID)
    with pytest.raises(UserError, match="is one of this program: write it to a file"):
        import_study(target, "table")
