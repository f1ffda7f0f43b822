"""Tables of results that other programs wrote: formats, types, and what the columns are."""

import bz2
import gzip
import random
import struct
from pathlib import Path

import optuna
import pandas as pd
import pytest

from rnn_search import import_results, load
from search.display import format_status
from studies.errors import (
    StudyExistsError,
    TableError,
)
from studies.management import StudyManager

EXPORTS = Path(__file__).parents[1] / "data" / "imports"

GRID = "lr,act,value\n0.1,relu,0.5\n0.1,gelu,0.4\n0.2,relu,0.7\n0.2,gelu,0.6\n"


def test_dry_run_says_what_the_columns_are_and_writes_nothing(tmp_path, target):
    imported = import_results(EXPORTS / "ray.csv", value="mean_accuracy", dry_run=True)
    assert imported.roles[1] == "parameters: activation, lr, momentum"
    path = tmp_path / "table.csv"
    path.write_text(GRID)
    import_results(path, storage=target, dry_run=True)
    assert not (tmp_path / "studies.db").exists()


def test_table_too_large_to_read_is_refused(table, monkeypatch):
    monkeypatch.setattr("studies.result_table.MAX_ROWS", 3)
    with pytest.raises(TableError, match="more than 3 rows"):
        table(GRID)


EXPORTED = {
    "wandb": ("val_loss", False, "depth, lr, optimizer", "State", "11 complete, 1 failed"),
    "mlflow": ("val_accuracy", True, "lr, hidden_units", "status", "11 complete, 1 failed"),
    "ray": ("mean_accuracy", True, "activation, lr, momentum", "", "8 complete"),
    "sklearn": ("mean_test_score", True, "C, kernel", "", "6 complete"),
}
"""Value of each export, whether a higher one is better, parameters, column of states, counts."""


@pytest.mark.parametrize("program", EXPORTED)
def test_export_of_a_program_needs_the_value_alone(target, program):
    value, maximize, parameters, states, counts = EXPORTED[program]
    file = EXPORTS / f"{program}.csv"
    imported = import_results(file, storage=target, value=value, maximize=maximize)
    better = "higher" if maximize else "lower"
    roles = [f"value: {value} ({better} is better)", f"parameters: {parameters}"]
    roles += ["replicates: params.seed"] * (program == "mlflow")
    roles += [f"states: {states}"] * bool(states and states != "state")
    assert [each for each in imported.roles if "left out" not in each] == roles
    assert imported.counts == counts
    assert load(program, storage=target).best.value is not None


def test_values_have_the_type_of_their_column_and_missing_ones_are_no_results(table):
    rows = "1,0.5,True,a,1\n2,1,false,2,2\n3,1,true,,nan\n4,1,true,a,\n5,1,true,a,inf\n"
    trials, imported = table("n,x,flag,label,value\n" + rows)
    params = [trial.params for trial in trials]
    assert repr(params[0]) == "{'n': 1, 'x': 0.5, 'flag': True, 'label_': 'a'}"
    assert repr(params[1]) == "{'n': 2, 'x': 1.0, 'flag': False, 'label_': '2'}"
    assert repr(params[2]) == "{'n': 3, 'x': 1.0, 'flag': True}"
    assert imported.counts == "2 complete, 2 diverged, 1 failed"
    assert any("label_" in note for note in imported.notes), "a column of results has its name"


def test_table_reads_alike_from_every_program(table, target, tmp_path):
    decimal_commas = GRID.replace(",", ";").replace(".", ",")
    utf_16 = GRID.replace(",", "\t").encode("utf-16")
    for content in (
        GRID,
        "\ufeff" + GRID.replace("\n", "\r\n"),
        GRID.replace(",", "\t"),
        decimal_commas,
        utf_16,
        gzip.compress(GRID.encode(), mtime=0),
        bz2.compress(GRID.encode()),
    ):
        trials, imported = table(content)
        assert trials[0].params == {"lr": 0.1, "act": "relu"}
        assert [trial.value for trial in trials] == [0.5, 0.4, 0.7, 0.6]
        assert imported.counts == "4 complete"
        StudyManager(target).delete("table")
    frame = pd.read_csv(tmp_path / "table.csv", compression="bz2").convert_dtypes()
    for source in (frame, frame.set_index(["lr", "act"])):
        import_results(source, name="table", storage=target)
        study = optuna.load_study(study_name="table", storage=target)
        assert [trial.params for trial in study.trials] == [trial.params for trial in trials]
        assert [trial.value for trial in study.trials] == [0.5, 0.4, 0.7, 0.6]
        StudyManager(target).delete("table")


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
    trials, _ = table(content, value="mean_loss", metric="accuracy", maximize=True)
    assert trials[1].params == {"lr": 0.1, "replicate": 8}
    assert [trial.intermediate_values for trial in trials] == 4 * [{10: 0.9}]
    loaded = load("table", storage=target)
    line = "highest mean of 2 runs 0.6, accuracy, lr 0.2"
    assert line in format_status(loaded.status, loaded.config)
    best = loaded.status.best
    assert (best.number, best.value, best.runs, best.architecture) == (2, 0.6, 2, "lr 0.2")
    with pytest.raises(StudyExistsError, match="choose another --name"):
        table(content, value="mean_loss")


RESULTS = [
    (
        "epoch,time,depth,STATE,RUNTIME,val/loss,best_epoch,power",
        lambda i: (*divmod(i // 3, 2), i % 3, "ok" * (i % 2), 9 + i, i or "", i % 5, 0.3 * i),
        "epoch,time,depth",
        "left out: RUNTIME, val/loss, best_epoch, power, because they are results, judged by names "
        "and values (--parameters keeps them)",
    ),
    (
        "lr,drop,depth,bits,seed",
        lambda i: (*divmod(i // 3, 2), i % 3, i % 7, 1 + i % 2),
        "lr,drop,depth,bits",
        "If bits is a result, add --ignore bits.",
    ),
    ("depth,train_loss", lambda i: (i % 4, i or ""), "depth", "they count as replicates."),
    (
        "duration,tied,depth,watts",
        lambda i: (i // 6, i // 3 % 2, i % 3, 90 + i % 2),
        "duration,tied,depth,watts",
        "--ignore watts: rows that differ in it as well are no matched pair.",
    ),
]
"""Names of columns, values in a row, the parameters among them, and the end of the last note."""


@pytest.mark.parametrize(("header", "row", "parameters", "note"), RESULTS)
def test_results_are_told_from_parameters(table, header, row, parameters, note):
    rows = [",".join(map(str, (*row(i), i))) for i in range(12)]
    _, imported = table("\n".join([f"{header},value", *rows]))
    assert imported.parameters == parameters.split(",")
    assert [*imported.roles, *imported.notes][-1].endswith(note)
