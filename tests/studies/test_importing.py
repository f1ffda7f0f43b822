"""Import of tables and of plain Optuna's studies: what is read, and what is refused in one line."""

import bz2
import gzip
import random
import shutil
import struct
from contextlib import closing
from pathlib import Path

import optuna
import pandas as pd
import pytest
import tomli_w
from optuna.trial import TrialState

from rnn_search import import_results, load
from search.progress import format_status
from studies.errors import (
    ConfigError,
    ImportedStudyError,
    StudiesError,
    StudyExistsError,
    TableError,
)
from studies.hypotheses import Hypothesis
from studies.loader import load_stored_config, read_record, read_study_record
from studies.management import StudyManager
from studies.storage.counts import count_trials, read_best_trial, top_trials
from studies.storage.open import load_study, open_storage, read_storage
from studies.study_files import StudyStores
from studies.study_list import list_studies

EXPORTS = Path(__file__).parents[1] / "data" / "imports"

GRID = "lr,act,value\n0.1,relu,0.5\n0.1,gelu,0.4\n0.2,relu,0.7\n0.2,gelu,0.6\n"

CLAIM = {
    "claim": "gelu is better",
    "rule": "lowers",
    "contrasts": [{"before": {"act": "relu"}, "after": {"act": "gelu"}}],
    "margin": 0.01,
}


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


def claim_with(**changes) -> dict:
    return {"hypotheses": [CLAIM | changes]}


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("a,b,loss\n1,2,0.5\n", {}, "row 1: no column 'value': expected"),
        ("a,acc\n1,2\n2,n/a\n", {"value": "acc"}, "row 3, column 'acc': 'n/a' is not a number"),
        ("a,value\n1,1\n2,2\n1,3\n", {}, "row 2 and row 4 have the same parameters"),
        ("a,value\n1,nan\n2,\n", {}, "no row is complete"),
        ("a,value\n1,2\n1,2,3\n", {}, "Expected 2 fields in line 3, saw 3"),
        (b"PK\x03\x04", {}, "is an Excel workbook"),
        (b"PAR1", {}, "is not valid Parquet"),
        (b"a,value\n1,2\n\xe9,3\n", {}, "row 3 is not UTF-8"),
        (gzip.compress(GRID.encode(), mtime=0)[:40], {}, "the compressed file is damaged"),
        ("a,loss_5,value\n1,x,3\n2,1,3\n", {}, "row 2, column 'loss_5': 'x' is not a number"),
        ("value\n1\n2\n", {}, "no parameters: expected 1"),
        (GRID, {"nuisance": ["rate"]}, "nuisance names 'rate': expected one of lr, act"),
        (GRID, {"nuisance": ["lr", "act"]}, "nuisance names all parameters"),
        (GRID, {"hypotheses": "none.toml"}, "none.toml cannot be read: No such file"),
        (GRID, {"hypotheses": [{k: CLAIM[k] for k in CLAIM if k != "margin"}]}, "has no margin"),
        (GRID, claim_with(rule="moves"), "hypothesis.1.rule: input should be 'lowers'"),
        (GRID, claim_with(region={"lr": 0.3}), "hypothesis 1 has lr = 0.3, which no trial has"),
        (GRID, claim_with(region={"x": 1}), "hypothesis 1 names 'x': expected one of lr, act"),
        (GRID, {"valu": "lr"}, "unknown option valu: did you mean 'value'?"),
    ],
)
def test_bad_table_is_refused_and_nothing_is_written(table, tmp_path, content, options, message):
    with pytest.raises(StudiesError) as refused:
        table(content, **options)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "studies.db").exists()


def test_table_too_large_to_read_is_refused(table, monkeypatch, tmp_path):
    monkeypatch.setattr("studies.result_table.MAX_ROWS", 3)
    with pytest.raises(TableError, match="more than 3 rows"):
        table(GRID)
    pd.DataFrame({"value": range(4)}).to_parquet(tmp_path / "table.parquet")
    with pytest.raises(TableError, match="more than 3 rows"):
        import_results(tmp_path / "table.parquet")


def test_dry_run_says_what_the_columns_are_and_writes_nothing(tmp_path, target):
    imported = import_results(EXPORTS / "ray.csv", value="mean_accuracy", dry_run=True)
    assert imported.roles[1] == "parameters: activation, lr, momentum"
    path = tmp_path / "table.csv"
    path.write_text(GRID)
    import_results(path, storage=target, dry_run=True)
    assert not (tmp_path / "studies.db").exists()


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
    roles += [f"states: {states}"] * bool(states)
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
    frame.to_parquet(tmp_path / "table.parquet")
    for source in (frame, frame.set_index(["lr", "act"]), tmp_path / "table.parquet"):
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


def test_hypotheses_nuisance_and_threshold_are_stored(table, target, tmp_path):
    file = tmp_path / "claims.toml"
    file.write_text(tomli_w.dumps({"hypothesis": [CLAIM]}))
    table(GRID, hypotheses=file, nuisance=["lr"], threshold=0.55)
    record = read_record(load_study(read_storage(target), "table"))
    config = record.config
    assert (config.nuisance, config.report_threshold) == (["lr"], 0.55)
    (stored,) = record.hypotheses
    assert stored.hypothesis == Hypothesis(**CLAIM)
    assert "after 4 of 4 trials were finished" in stored.mark
    assert not stored.is_preregistered


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


def test_highest_value_is_the_best_if_it_is_maximized(table, target):
    table(GRID, maximize=True)
    storage = read_storage(target)
    study_id = load_study(storage, "table")._study_id
    assert read_best_trial(storage, study_id).number == 2
    assert top_trials(storage, study_id, 2) == [(2, 0.7), (3, 0.6)]
    (listed,) = list_studies(storage, StudyStores(None, target, read_only=True))
    assert (listed.kind, listed.best) == ("imported", 0.7)


def test_imported_study_is_not_trained(table, target):
    table(GRID)
    study = load_study(read_storage(target), "table")
    for train in (
        lambda: StudyManager(target).retry("table", ["failed"]),
        lambda: load_stored_config("table", target),
        lambda: read_study_record(study),
    ):
        with pytest.raises(ImportedStudyError, match="was imported: there is nothing to train"):
            train()
    assert read_record(study).config.results.parameters == ["lr", "act"]


def test_study_that_an_earlier_version_imported_still_opens(table, target):
    table(GRID, maximize=True, question="Which rate?")
    study = optuna.load_study(study_name="table", storage=target)
    config = read_record(study).config
    earlier = config.results.model_dump(mode="json") | {"question": config.question}
    with closing(open_storage(target)) as storage, storage.transaction() as connection:
        connection.exec_driver_sql("DELETE FROM study_user_attributes WHERE key = 'config'")
    study.set_user_attr("imported", earlier)
    assert load("table", storage=target).config == config
    assert load("table", storage=target).best.value == 0.7


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
    assert imported.notes == ["Runs that are not finished were left out: 1."]
    record = read_record(study).config.results
    assert (record.direction, record.is_adaptive) == ("maximize", True)
    again = import_results(source, name="again", storage=target)
    assert (again.roles, again.counts) == (imported.roles, imported.counts)


def test_table_of_optuna_is_recognized(tuned, table):
    frame = optuna.load_study(study_name="tuned", storage=tuned).trials_dataframe()
    trials, imported = table(frame.to_csv(), maximize=True)
    assert imported.counts == "9 complete, 2 pruned, 1 failed"
    assert sorted(imported.parameters) == ["momentum", "optimizer", "rate"]
    assert trials[0].params["rate"] == frame["params_rate"][0]


def test_objective_is_to_be_chosen_and_repeated_trials_are_replicates(tmp_path, import_study):
    url, directions = f"sqlite:///{tmp_path}/optuna.db", ["minimize", "maximize"]
    study = optuna.create_study(study_name="two", storage=url, directions=directions)
    for n in (1, 1, 2):
        study.enqueue_trial({"n": n})
    study.optimize(lambda t: (t.suggest_int("n", 1, 2), 2.0), n_trials=3)
    with pytest.raises(ConfigError, match="has 2 objectives: choose one with --value, of values_0"):
        import_study(url)
    assert not (tmp_path / "studies.db").exists()
    said, imported = import_study(url, value="values_1")
    assert imported.best_value == 2.0
    assert len({trial.params["replicate"] for trial in imported.trials}) == 3
    assert said.notes[0].startswith("1 run repeats the parameters of an earlier one: they")


def test_study_of_several_is_to_be_named_and_own_ones_are_copied(
    tmp_path, tuned, table, target, import_study
):
    two = f"sqlite:///{shutil.copy(tuned.removeprefix('sqlite:///'), tmp_path / 'two.db')}"
    optuna.create_study(study_name="other", storage=two)
    with pytest.raises(ConfigError, match="has 2 studies: choose one with --study"):
        import_study(two)
    with pytest.raises(StudiesError, match="has no finished trial"):
        import_study(two, "other")
    table(GRID)
    with pytest.raises(ConfigError, match="is one of this program: copy it"):
        import_study(target, "table")


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
