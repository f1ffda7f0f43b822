"""Tables of results that other programs wrote: formats, types, and what the columns are."""

import json
import random
import shlex
import struct
from pathlib import Path

import optuna
import pandas as pd
import pytest

from rnn.errors import UserError
from rnn_search import import_results, load
from search.status import format_status
from studies.management import delete_study

EXPORTS = Path(__file__).parents[1] / "data" / "imports"

GRID = "lr,act,value\n0.1,relu,0.5\n0.1,gelu,0.4\n0.2,relu,0.7\n0.2,gelu,0.6\n"


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


@pytest.mark.parametrize(("name", "content"), [("a.jsonl", '{"a": 1\n'), ("b.jsonl", "[1, 2]\n")])
def test_lines_that_are_no_objects_are_refused(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=f"{name} cannot be read as CSV in UTF-8, JSON lines"):
        import_results(tmp_path / name, dry_run=True)


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
    with pytest.raises(UserError) as refused:
        table(content)
    assert message in str(refused.value)
    assert not (tmp_path / "studies.db").exists()
    first = header.split(",")[0]
    _, imported = table(content, parameters=[first])
    assert imported.roles[1] == f"parameters: {first}"


def test_higher_value_is_better_where_its_name_says_so(table):
    _, imported = table(GRID.replace("value", "val_acc"), value="val_acc")
    assert imported.roles[0] == "value: val_acc (higher is better)"
