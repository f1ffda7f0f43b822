"""Files of studies: what is in them, what is not, and how bad ones are refused."""

import gzip
import json
import os
import zlib
from contextlib import closing

import pandas as pd
import pytest
from helpers import study_attributes
from managed_studies import create, create_with_everything, dump
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState
from process_runner import query

import studies.tables.table_file
from studies import errors
from studies.config import StudyConfig
from studies.management import StudyManager
from studies.storage.changes import create_study
from studies.storage.open import load_study, open_storage, read_storage
from studies.storage.trials import StoredTrial
from studies.tables.study_export import export_study
from studies.tables.study_import import import_studies
from studies.tables.study_table import format_cell, parse_cell


@pytest.fixture
def source_url(tmp_path):
    """URL of a study with a complete, a diverged, a failed and a paused trial."""
    url = f"sqlite:///{tmp_path}/source.db"
    create_with_everything(url, tmp_path / "artifacts")
    return url


@pytest.fixture
def file(source_url, tmp_path):
    """File of this study."""
    path = tmp_path / "made.csv"
    export_study(source_url, "made", path)
    return path


@pytest.fixture
def other_url(tmp_path):
    """URL of a storage that does not exist yet."""
    return f"sqlite:///{tmp_path}/other.db"


def load_trials(url):
    with closing(open_storage(url)) as storage:
        return load_study(storage, "made").trials


def test_pandas_reads_the_trials_and_a_compressed_file_has_the_same_content(
    source_url, file, tmp_path
):
    table = pd.read_csv(file, skiprows=1)
    assert table["state"].tolist() == ["COMPLETE", "FAIL", "FAIL", "WAITING"]
    assert table["value"].tolist()[0] == 1.0625
    assert table["params_residual"].dtype == bool
    assert table["loss_50"].tolist() == [2.5] * 4
    assert table["loss_100"].isna().all()
    assert table["validation_window_1"].tolist()[:3] == [2.0] * 3
    export_study(source_url, "made", tmp_path / "made.csv.gz")
    packed = (tmp_path / "made.csv.gz").read_bytes()
    assert gzip.decompress(packed) == file.read_bytes()
    assert packed[3:8] == bytes(5)  # no name and no time


def test_losses_have_six_digits_and_the_least_one_stays_the_value(sqlite_url, tmp_path, other_url):
    create(sqlite_url, objective="training")
    least = 1.0000004999
    with closing(open_storage(sqlite_url)) as storage:
        trial_id = storage.claim(load_study(storage, "made")._study_id, "w/1/t")
        found = {"training_loss": least, "validation_loss": 1.23456789, "worker": "w/1"}
        found |= {"validation_windows": [1.23456789, 2.0]}
        storage.finish(trial_id, "w/1/t", TrialState.COMPLETE, least, found, {50: 2, 100: least})
    export_study(sqlite_url, "made", tmp_path / "made.csv")
    import_studies(other_url, [tmp_path / "made.csv"])
    trial = load_trials(other_url)[0]
    assert trial.value == trial.user_attrs["training_loss"] == trial.intermediate_values[100] == 1
    assert trial.user_attrs["validation_loss"] == 1.23456789
    assert trial.system_attrs["validation_windows"] == [1.23457, 2.0]


def test_file_has_no_name_of_a_machine_a_user_or_a_folder(sqlite_url, tmp_path, other_url):
    corpus, spec = "/home/alice/texts/secret-text", "/home/alice/cells/mine.py:Mine"
    space = {"cell": [spec], "layers": [1], "state_size": [4]}
    cells = {"Mine": {"spec": spec, "sha256": "ab" * 32}}
    config = StudyConfig.model_validate({"corpus": corpus, "cells": cells, "space": space})
    commands = [
        "python run_search.py /home/alice/my.toml --corpus '/home/alice smith/a text' --set "
        f"'space.cell=[\"{spec}\"]'",
        "python run_search.py x --storage postgresql://alice:pw@db.example/d --artifacts s3://alice",
    ]
    attributes = study_attributes(config, commands=commands)
    attributes["corpus"]["name"] = corpus
    params = {"cell": "Mine", "layers": 1, "state_size": 4}
    with closing(open_storage(sqlite_url)) as storage:
        choices = {name: CategoricalDistribution((value,)) for name, value in params.items()}
        create_study(storage, "made", "loss", attributes, choices, [StoredTrial(params)] * 3)
        for worker in ("alice-pc/17", "node7.example/17", "node7.example/18"):
            host = worker.partition("/")[0]
            trial_id = storage.claim(1, f"{worker}/t")
            error = f"OSError: {host} cannot read '{corpus}'"
            found = {"host": host, "worker": worker, "error": error, "failure": "exception"}
            storage.finish(trial_id, f"{worker}/t", TrialState.FAIL, None, found)
    StudyManager(sqlite_url).retry("made", ["failed"])
    path = tmp_path / "made.csv"
    export_study(sqlite_url, "made", path)
    content = path.read_text()
    for secret in ("alice", "smith", "example", "home", "texts", "pw@", "/17"):
        assert secret not in content, secret
    for kept in ("secret-text", "a text", "my.toml", "mine.py:Mine", "machine-2/1", "machine-2/2"):
        assert kept in content, kept
    import_studies(other_url, [path])
    export_study(other_url, "made", tmp_path / "again.csv")
    assert (tmp_path / "again.csv").read_text() == content


def test_text_of_a_cell_is_read_as_it_was_and_stays_on_one_line():
    for value in ("2", "true", "null", " a", "a\nb", "NaN", "[1", '"', "é", "", 2):
        text = format_cell(value)
        assert text.isprintable()
        assert parse_cell(text) == value
        assert type(parse_cell(text)) is type(value)


def edit_first_line(text, **changes):
    first, _, rest = text.partition("\n")
    prefix, _, described = first.partition(": ")
    return f"{prefix}: {json.dumps(json.loads(described) | changes)}\n{rest}"


def edit_cell(text, row, column, value):
    lines = text.splitlines()
    place = lines[1].split(",").index(column)
    cells = lines[row - 1].split(",")  # the cells before those with quotes
    cells[place] = value
    lines[row - 1] = ",".join(cells)
    return "\n".join(lines)


def require_refused(url, paths, message):
    """Require that an import is refused in one line, before the storage is opened."""
    with pytest.raises(errors.TableError) as refused:
        import_studies(url, paths)
    line = str(refused.value)
    assert message in line
    assert line.startswith(str(paths[-1]))
    assert len(line.splitlines()) == 1
    assert len(line) < 600
    with pytest.raises(errors.StorageError):
        read_storage(url)


CELLS = {
    ("number", "x"): "row 4, column number: 'x', expected an integer from 0 to 999999",
    ("state", "RUNNING"): "column state: 'RUNNING', expected one of",
    ("value", "1.5"): "column value: '1.5', expected a number if complete, and nothing otherwise",
    ("datetime_start", "today"): "column datetime_start: 'today', expected a time as in",
    ("params_layers", "9"): "column params_layers: '9', expected one of 1",
    ("user_attrs_seconds", "-1"): "column user_attrs_seconds: '-1', expected another value: input",
    ("validation_window_1", ""): "column validation_window_1: '', expected a loss in bits",
    ("loss_50", "1_0"): "column loss_50: '1_0', expected a number, nan or nothing",
    ("loss_50", '"abc'): "row 5: ',' expected after '\"', expected CSV",
}


def test_bad_cell_is_named_with_its_row_and_column(file, other_url):
    content = file.read_text()
    for cell, message in CELLS.items():
        file.write_text(edit_cell(content, 4, *cell))
        require_refused(other_url, [file], message)


FILES = [
    (lambda text: "", "is not an exported study"),
    (lambda text: text.rpartition("\n3,")[0], "row 5: the table ends with 3 trials, expected 4"),
    (lambda text: text.replace("study 1:", "study 2:", 1), "row 1: version 2 of the format, expec"),
    (lambda text: edit_first_line(text, attributes={"schema_version": 99}), "schema_version 99, "),
    (lambda text: edit_first_line(text, direction="maximize"), "row 1: direction"),
    (lambda text: text.replace(",state,", ",loss_7,", 1), "row 2: no column state"),
    (lambda text: text.replace(",loss_50,", ",loss_x,", 1), "row 2: column 'loss_x', expected one"),
    (lambda text: text + text.splitlines()[2] + "\n", "row 7, column number: '0', expected"),
    (lambda text: text.encode().replace(b"FAIL", b"\xff\xfe", 1), "row 4: "),
    (lambda text: bytes(range(255, 0, -1)) * 20, "not UTF-8 text"),
    (lambda text: gzip.compress(text.encode())[:-40], "is cut off after row"),
    (lambda text: gzip.compress(text.encode())[:-8] + bytes(8), "is damaged after row"),
]


def test_bad_file_is_refused_in_one_line(file, tmp_path, other_url):
    path = tmp_path / "bad.csv.gz"
    for edit, message in FILES:
        content = edit(file.read_text())
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        require_refused(other_url, [file, path], message)
    os.mkfifo(tmp_path / "pipe")
    for name, message in (("", "cannot be read"), ("pipe", "not a regular file")):
        require_refused(other_url, [tmp_path / name], message)


def test_file_that_unpacks_to_more_than_the_bound_is_not_unpacked(file, other_url, monkeypatch):
    first = file.read_text().partition("\n")[0].encode()
    bomb = zlib.compressobj(9, wbits=31)
    file.write_bytes(bomb.compress(first + b"\n") + bomb.compress(b"a" * 2**25) + bomb.flush())
    require_refused(other_url, [file], "row 2: expected a line of at most 16.8 MB")
    monkeypatch.setattr(studies.tables.table_file, "MAX_BYTES", 3000)
    for content, message in (
        (b"\n" * 5000, "is not an exported study"),
        (first + b"\n" * 5000, ": expected a file of at most 3.0 kB"),
    ):
        file.write_bytes(gzip.compress(content))
        require_refused(other_url, [file], message)


def test_studies_are_imported_under_free_names_all_or_none(file, url, tmp_path):
    second = tmp_path / "second.csv"
    second.write_text(edit_first_line(file.read_text(), name="second"))
    import_studies(url, [file])
    before = dump(url)
    with pytest.raises(errors.StudyExistsError, match=r"'made' exists .* \(--name\)"):
        import_studies(url, [second, file])
    with pytest.raises(errors.ConfigError, match="one name for 2 files"):
        import_studies(url, [file, second], "name")
    (result,) = import_studies(url, [file], "other")
    assert result.name == "other"
    assert query(url, "SELECT study_name FROM studies ORDER BY 1") == [("made",), ("other",)]
    assert dump(url) == before
    others = dump(url, "other")
    for table in before.keys() - {"study_user_attributes"}:
        assert others[table] == before[table], table


def test_gap_between_numbers_becomes_a_trial_that_is_not_of_the_grid(file, other_url, tmp_path):
    lines = file.read_text().splitlines()
    file.write_text(edit_first_line("\n".join([*lines[:3], *lines[4:]]), trials=3))
    import_studies(other_url, [file])
    trials = load_trials(other_url)
    assert [trial.number for trial in trials] == [0, 1, 2, 3]
    assert "grid_trial" not in trials[1].system_attrs
    export_study(other_url, "made", tmp_path / "again.csv")
    assert (tmp_path / "again.csv").read_text().splitlines() == file.read_text().splitlines()


def test_study_of_a_worker_or_with_damage_is_not_exported(source_url, tmp_path):
    with closing(open_storage(source_url)) as storage:
        with storage.transaction() as connection:
            connection.exec_driver_sql(
                "UPDATE trial_intermediate_values SET intermediate_value = 'x' WHERE step = 50 "
                "AND trial_id = (SELECT max(trial_id) FROM trials)"
            )
        with pytest.raises(errors.StudyFormatError, match="6 of 8 log points can be read"):
            export_study(source_url, "made", tmp_path / "new.csv")
        storage.claim(1, "node1/17/token", paused_ids=[4])
        with pytest.raises(errors.StudyHeldError, match="node1/17 holds trial 3"):
            export_study(source_url, "made", tmp_path / "new.csv")
    assert not list(tmp_path.glob("new.csv*"))
