"""Studies of imported results: what columns are, what is stored and refused, studies of Optuna."""

import json
import random
import shlex
import shutil
import struct
from pathlib import Path

import optuna
import pandas as pd
import pytest
from helpers import QUICK, TINY_OVERRIDES, join_study
from invocation import refused
from optuna.distributions import IntDistribution
from optuna.trial import TrialState

from rnn.errors import UserError
from rnn_search import import_results, load
from search.status import format_status
from studies.artifacts import ArtifactFolders
from studies.loader import load_stored_config
from studies.management import delete_study, list_studies, retry_trials
from studies.storage.counts import count_trials, top_trials
from studies.storage.open import load_study, read_record, read_storage, read_study_record

EXPORTS = Path(__file__).parents[1] / "data" / "imports"

GRID = "lr,act,value\n0.1,relu,0.5\n0.1,gelu,0.4\n0.2,relu,0.7\n0.2,gelu,0.6\n"


@pytest.fixture
def target(tmp_path) -> str:
    """URL of a storage that does not exist yet."""
    return f"sqlite:///{tmp_path}/studies.db"


@pytest.fixture
def table(tmp_path, target):
    """Write a table and import it; return its trials and what was said about it."""

    def read(content: str | bytes, **options):
        path = tmp_path / "table.csv"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        imported = import_results(path, storage=target, **options)
        return optuna.load_study(study_name="table", storage=target).trials, imported

    return read


# ------------------------------------------------------------------ tables


def test_dry_run_says_what_the_columns_are_and_writes_nothing(tmp_path, target):
    imported = import_results(EXPORTS / "ray.csv", value="mean_accuracy", dry_run=True)
    assert imported.roles[1] == "parameters: activation, lr, momentum"
    path = tmp_path / "table.csv"
    path.write_text(GRID)
    import_results(path, storage=target, dry_run=True)
    assert not (tmp_path / "studies.db").exists()


EXPORTED = {
    "wandb": ("val_loss", False, "depth, lr, optimizer", "12 of 12 finished, 1 failed"),
    "mlflow": ("val_accuracy", True, "lr, hidden_units", "12 of 12 finished, 1 failed"),
    "ray": ("mean_accuracy", True, "activation, lr, momentum", "8 of 8 finished"),
    "sklearn": ("mean_test_score", True, "C, kernel", "6 of 6 finished"),
}
"""Value of each export, whether a higher one is better, parameters, counts."""


@pytest.mark.parametrize("program", EXPORTED)
def test_export_of_a_program_needs_the_value_alone(invoke, target, program):
    value, maximize, parameters, counts = EXPORTED[program]
    file = EXPORTS / f"{program}.csv"
    imported = import_results(file, storage=target, value=value)
    better = "higher" if maximize else "lower"
    roles = [f"value: {value} ({better} is better)", f"parameters: {parameters}"]
    roles += ["replicates: params.seed"] * (program == "mlflow")
    assert [line for line in imported.roles if "left out" not in line] == roles
    assert imported.counts == counts
    assert load(program, storage=target).best.value is not None
    _, *words = shlex.split(imported.command)
    done = invoke(*words, "--name", "again", "--storage", target)
    assert f"the same, each role named: {imported.command} --name again" not in done.stderr
    assert done.stdout.splitlines()[: len(roles)] == roles
    again = optuna.load_study(study_name="again", storage=target).trials
    first = optuna.load_study(study_name=program, storage=target).trials
    for trial, other in zip(first, again, strict=True):
        assert (trial.params, trial.value, trial.state) == (other.params, other.value, other.state)


def test_values_have_the_type_of_their_column_and_missing_ones_are_no_results(table):
    rows = "1,0.5,True,a,1\n2,1,false,2,2\n3,1,true,,nan\n4,1,true,a,\n5,1,true,a,inf\n"
    parameters = ["n", "x", "flag", "label"]
    trials, imported = table("n,x,flag,label,value\n" + rows, parameters=parameters)
    params = [trial.params for trial in trials]
    assert repr(params[0]) == "{'n': 1, 'x': 0.5, 'flag': True, 'label_': 'a'}"
    assert repr(params[1]) == "{'n': 2, 'x': 1.0, 'flag': False, 'label_': '2'}"
    assert repr(params[2]) == "{'n': 3, 'x': 1.0, 'flag': True}"
    assert imported.counts == "5 of 5 finished, 2 diverged, 1 failed"
    assert imported.roles[1].endswith("label_"), "a column of results has its name"


def test_every_format_of_a_table_reads_alike(target, tmp_path, monkeypatch):
    (tmp_path / "table.csv").write_text(GRID)
    (tmp_path / "excel.csv").write_text("\ufeff" + GRID.replace("\n", "\r\n") + "\r\n")
    frame = pd.read_csv(tmp_path / "table.csv")
    frame.to_json(tmp_path / "table.jsonl", orient="records", lines=True)
    nested = ({"config": {"lr": r.lr, "act": r.act}, "value": r.value} for r in frame.itertuples())
    (tmp_path / "nested.jsonl").write_text("\n".join(map(json.dumps, nested)))
    # As if pyarrow were installed.
    monkeypatch.setattr(pd, "read_parquet", lambda path: pd.read_csv(path.with_suffix(".csv")))
    names = ["table.csv", "excel.csv", "table.jsonl", "nested.jsonl", "table.parquet"]
    frames = [frame, frame.convert_dtypes(), frame.set_index(["lr", "act"])]
    for source in (*(tmp_path / name for name in names), *frames):
        imported = import_results(source, name="table", storage=target)
        assert imported.counts == "4 of 4 finished"
        trials = optuna.load_study(study_name="table", storage=target).trials
        assert [trial.value for trial in trials] == [0.5, 0.4, 0.7, 0.6]
        assert [trial.params["lr"] for trial in trials] == [0.1, 0.1, 0.2, 0.2]
        assert trials[0].params == {"lr": 0.1, "act": "relu"}
        delete_study(target, None, "table")


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    def fail(path):
        raise ImportError("Missing optional dependency 'pyarrow'.")

    monkeypatch.setattr(pd, "read_parquet", fail)
    with pytest.raises(UserError, match=r"cannot be read as CSV in UTF-8, .*dependency 'pyarrow'"):
        import_results(tmp_path / "table.parquet", dry_run=True)


@pytest.mark.parametrize("content", ['{"a": 1\n', "[1, 2]\n"])
def test_lines_that_are_no_objects_are_refused(tmp_path, content):
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(UserError, match=r"a.jsonl cannot be read as CSV in UTF-8, JSON lines"):
        import_results(tmp_path / "a.jsonl", dry_run=True)


def test_numbers_are_exact(table):
    generator = random.Random(0)
    bits = (generator.getrandbits(62) for _ in range(200))
    numbers = [struct.unpack("d", struct.pack("Q", each))[0] for each in bits]
    rows = "\n".join(f"{number!r},{number!r},{number!r}" for number in numbers)
    trials, _ = table(f"x,loss_1,value\n{rows}\n", parameters=["x"])
    found = [(t.params["x"], t.intermediate_values[1], t.value) for t in trials]
    assert found == [(number,) * 3 for number in numbers]


def test_seed_numbers_replicates_prefixes_are_stripped_and_curves_are_read(table, target):
    # The first has the best run, the second the best mean.
    runs = (0.1, 7, 0.9), (0.1, 8, 0.1), (0.2, 7, 0.6), (0.2, 8, 0.6)
    rows = [f"{lr},{seed},{value},x,0.9," for lr, seed, value in runs]
    content = "\n".join(["config/lr,config/seed,mean_loss,trial_id,loss_10,loss_20", *rows])
    trials, _ = table(content, value="mean_loss", metric="accuracy")
    assert trials[1].params == {"lr": 0.1, "replicate": 2}
    assert [trial.intermediate_values for trial in trials] == 4 * [{10: 0.9}]
    loaded = load("table", storage=target)
    line = "highest mean of 2 runs 0.6, accuracy, lr 0.2"
    assert line in format_status(loaded.status, loaded.config)
    best = loaded.status.best
    assert (best.number, best.value, best.runs, best.architecture) == (2, 0.6, 2, "lr 0.2")
    with pytest.raises(UserError, match="choose another --name"):
        table(content, value="mean_loss")


def make_table(header, row):
    rows = [",".join(map(str, (*row(i), i))) for i in range(12)]
    return "\n".join([f"{header},value", *rows])


RESULTS = [
    (
        "drop,depth,state,RUNTIME,val/loss,best_epoch",
        lambda i: (i // 3, i % 3, "ok" * (i % 2), 9 + i, i or "", i % 5),
        "drop, depth",
        "left out: state, RUNTIME, val/loss, best_epoch",
    ),
    ("width,host", lambda i: (2**i, "a"), "width", "left out: host"),
]
"""Names of columns, values in a row, the parameters among them, and the last role."""


@pytest.mark.parametrize(("header", "row", "parameters", "role"), RESULTS)
def test_results_are_told_from_parameters(table, header, row, parameters, role):
    _, imported = table(make_table(header, row))
    assert imported.roles[1] == f"parameters: {parameters}"
    assert role in imported.roles


UNSURE = [
    (
        "tied,depth,watts",
        lambda i: (i // 3, i % 3, 90 + i),
        "watts may be parameters or results, with another value in most rows: name the parameters",
    ),
    (
        "rate,tied,watts",
        lambda i: (0.1 / (i + 1), i % 2, 90 + i),
        "rate, watts may be parameters or results, with another value in most rows: name the "
        "parameters with --parameters, of rate,tied,watts",
    ),
    ("depth,train_loss", lambda i: (i % 4, i or ""), "8 runs repeat the parameters of an earlier"),
    ("epoch,depth", lambda i: (i // 4, i % 4), "8 runs repeat the parameters of an earlier"),
]
"""Names of columns, values in a row, and what is said where roles are not certain."""


@pytest.mark.parametrize(("header", "row", "message"), UNSURE)
def test_parameters_are_asked_for_where_the_guess_is_unsure(table, tmp_path, header, row, message):
    content = make_table(header, row)
    with refused(UserError, message):
        table(content)
    assert not (tmp_path / "studies.db").exists()
    first = header.split(",")[0]
    _, imported = table(content, parameters=[first])
    assert imported.roles[1] == f"parameters: {first}"


# ------------------------------------------------------------------ what is stored and refused

BAD_TABLES = [
    ("a,b,loss\n1,2,0.5\n", {}, "has no column 'value': choose --value, of a, b, loss"),
    ("a,acc\n1,2\n2,n/a\n", {"value": "acc"}, "column 'acc': could not convert string to float"),
    ("a,value\n1,1\n2,2\n1,3\n", {}, "1 run repeats the parameters of an earlier one: name"),
    ("a,seed,value\n1,1,2\n2,2,3\n2,2,4\n", {}, "1 run repeats the parameters of an earlier"),
    ("a,value\n1,nan\n2,\n", {}, "no row is complete"),
    ("a,value\n1,2\n1,2,3\n", {}, "Expected 2 fields in line 3, saw 3"),
    ("a,value\n", {}, "has no rows, or two columns of one name"),
    (b"a,value\n1,2\n\xe9,3\n", {}, "table.csv cannot be read as CSV in UTF-8, JSON lines"),
    ("value\n1\n2\n", {}, "has no such parameters: expected columns that vary"),
    (GRID, {"parameters": ["lr", "value"]}, "other than the value, the replicate and the curve"),
    (GRID, {"nuisance": ["rate"]}, "no column 'rate': choose --nuisance, of lr, act, value"),
    (GRID, {"nuisance": ["lr", "act"]}, "--nuisance names lr, act: expected some of the param"),
    (GRID, {"study": "x"}, "study='x' is for the URL of a storage, and the source is none"),
]
"""Tables, options, and what the message says of each."""


@pytest.mark.parametrize(("content", "options", "message"), BAD_TABLES)
def test_bad_table_is_refused_and_nothing_is_written(table, tmp_path, content, options, message):
    with refused(UserError, message):
        table(content, **options)
    assert not (tmp_path / "studies.db").exists()


def test_highest_value_is_the_best_if_it_is_maximized_and_the_nuisance_is_stored(table, target):
    table(GRID, maximize=True, nuisance=["lr"])
    storage = read_storage(target)
    study = load_study(storage, "table")
    assert read_record(study).config.nuisance == ["lr"]
    assert [row[1:] for row in top_trials(storage, study._study_id, 2)] == [(2, 0.7), (3, 0.6)]
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


def test_study_is_created_in_a_storage_with_an_imported_one(table, target, text):
    table(GRID)
    assert join_study(QUICK, target, TINY_OVERRIDES, text).study.study_name == "quick"


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
