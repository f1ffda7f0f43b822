"""Study files: what is in them, what is not, and how bad ones are refused."""

import gzip
import json
from contextlib import closing

import pandas as pd
import pytest
from helpers import study_attributes
from managed_studies import create, create_with_everything, dump
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState
from process_runner import query

from studies import errors
from studies.config import StudyConfig
from studies.exchange import export_study, import_studies
from studies.management import retry_trials
from studies.storage.edits import create_study
from studies.storage.open import load_study, open_storage, read_storage
from studies.storage.trials import StoredStudy, StoredTrial
from studies.study_settings import ImportedResults


@pytest.fixture
def source_url(tmp_path):
    """URL of a study with a complete, a diverged, a failed and a paused trial."""
    url = f"sqlite:///{tmp_path}/source.db"
    create_with_everything(url, tmp_path / "artifacts")
    return url


@pytest.fixture
def file(source_url, tmp_path):
    """File of this study."""
    path = tmp_path / "made.jsonl"
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
    table = pd.read_json(file, lines=True).iloc[1:]
    assert table["state"].tolist() == ["COMPLETE", "FAIL", "FAIL", "WAITING"]
    assert table["value"].tolist()[0] == 1.0625
    assert table["params"].iloc[0]["residual"] is False
    assert table["intermediate_values"].iloc[0] == {"50": 2.5, "100": "nan"}
    export_study(source_url, "made", tmp_path / "made.jsonl.gz")
    packed = (tmp_path / "made.jsonl.gz").read_bytes()
    assert gzip.decompress(packed) == file.read_bytes()
    assert packed[3:8] == bytes(5)  # no name and no time


def select_results(rows):
    """Return the rows of a dump that a file keeps; others name who trained, where and how far."""
    private = {"host", "worker", "error", "artifact_folder", "commands", "lease", "checkpointed"}
    private |= {"paused", "rung"}  # of the open trial, as its curve
    selected = {
        table: [row for row in found if not (private & {*map(str, row)} or ":" in str(row[-2]))]
        for table, found in rows.items()
    }
    for table in ("trials", "trial_intermediate_values"):
        selected[table] = [row for row in selected[table] if row[0] != 3]
    return selected


@pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgresql", marks=pytest.mark.extended)])
def test_unfinished_study_has_the_same_rows_and_the_same_file_after_an_import(
    kind, source_url, file, tmp_path, request
):
    target = f"sqlite:///{tmp_path}/other.db"
    if kind == "postgresql":
        target = request.getfixturevalue("postgresql_server").new_database()
    import_studies(target, [file])
    assert select_results(dump(target)) == select_results(dump(source_url))
    export_study(target, "made", tmp_path / "again.jsonl")
    assert (tmp_path / "again.jsonl").read_bytes() == file.read_bytes()
    with closing(open_storage(target)) as storage:
        study_id = load_study(storage, "made")._study_id
        (paused,) = (trial for trial in load_trials(target) if trial.state is TrialState.WAITING)
        assert storage.claim(study_id, "w/9/t") == paused._trial_id
        assert (paused.intermediate_values, paused.user_attrs) == ({}, {})


def test_file_has_no_name_of_a_machine_a_user_or_a_folder(sqlite_url, tmp_path, other_url):
    corpus, spec = "/home/alice/texts/secret-text", "/home/alice/cells/mine.py:Mine"
    space = {"cell": [spec], "layers": [1], "state_size": [4, 5, 6]}
    cells = {"Mine": {"spec": spec, "sha256": "ab" * 32}}
    raw = {"task": {"corpus": corpus}, "cells": cells, "space": space}
    config = StudyConfig.model_validate(raw)
    commands = [
        "python run_search.py /home/alice/my.toml --corpus '/home/alice smith/a text' --set "
        f"'space.cell=[\"{spec}\"]'",
        "python run_search.py x --storage postgresql://alice:pw@db.example/d --artifacts /alice",
    ]
    attributes = study_attributes(config, commands=commands)
    attributes["config"]["task_record"]["text"]["corpus"] = corpus
    params = [{"cell": "Mine", "layers": 1, "state_size": size} for size in (4, 5, 6)]
    with closing(open_storage(sqlite_url)) as storage:
        values = {"cell": ("Mine",), "layers": (1,), "state_size": (4, 5, 6)}
        choices = {name: CategoricalDistribution(each) for name, each in values.items()}
        create_study(
            storage,
            StoredStudy("made", "loss", attributes, choices, list(map(StoredTrial, params))),
        )
        for worker in ("alice-pc/17", "node7.example/17", "node7.example/18"):
            host = worker.partition("/")[0]
            trial_id = storage.claim(1, f"{worker}/t")
            error = f"OSError: {host} cannot read '{corpus}' or C:\\Users\\alice smith\\x.txt"
            found = {"host": host, "worker": worker, "error": error, "failure": "exception"}
            storage.finish(trial_id, f"{worker}/t", TrialState.FAIL, None, found)
    retry_trials(sqlite_url, "made", ["failed"])
    path = tmp_path / "made.jsonl"
    export_study(sqlite_url, "made", path)
    content = path.read_text()
    for secret in ("alice", "smith", "example", "home", "texts", "pw@", "/17"):
        assert secret not in content, secret
    for kept in ("secret-text", "mine.py:Mine"):
        assert kept in content, kept
    import_studies(other_url, [path])
    export_study(other_url, "made", tmp_path / "again.jsonl")
    assert (tmp_path / "again.jsonl").read_text() == content


def dump_without_note(url, name="made"):
    rows = dump(url, name)
    attributes = rows["study_system_attributes"]
    rows["study_system_attributes"] = [row for row in attributes if "note" not in row[0]]
    return rows


def test_imported_results_and_values_that_are_not_finite_are_kept(sqlite_url, tmp_path, other_url):
    results = ImportedResults(
        source="study s of sqlite:////home/alice b/sweep.db", parameters=["rate"]
    )
    config = StudyConfig(results=results, question="Which rate?")
    attributes = study_attributes(config)
    ranges = {"rate": FloatDistribution(0.0, 1.0)}
    trials = [
        StoredTrial({"rate": rate}, state=TrialState.COMPLETE, values={0: value})
        for rate, value in ((0.25, float("inf")), (0.1, 0.5))
    ]
    trials[1].curve = {1: float("-inf"), 2: float("nan")}
    with closing(open_storage(sqlite_url)) as storage:
        create_study(storage, StoredStudy("made", "loss", attributes, ranges, trials))
    export_study(sqlite_url, "made", tmp_path / "made.jsonl")
    content = (tmp_path / "made.jsonl").read_text()
    assert "study s of sqlite:///sweep.db" in content
    assert "alice" not in content
    import_studies(other_url, [tmp_path / "made.jsonl"])
    found, expected = dump_without_note(other_url), dump_without_note(sqlite_url)
    for table in found.keys() - {"study_user_attributes"}:
        assert found[table] == expected[table], table
    export_study(other_url, "made", tmp_path / "again.jsonl")
    assert (tmp_path / "again.jsonl").read_text() == (tmp_path / "made.jsonl").read_text()


def edit_line(text, place, /, **changes):
    lines = text.splitlines()
    lines[place - 1] = json.dumps(json.loads(lines[place - 1]) | changes)
    return "\n".join(lines) + "\n"


def require_refused(url, paths, message):
    """Require that an import is refused in one line, before the storage is opened."""
    with pytest.raises(errors.StudyFileError) as refused:
        import_studies(url, paths)
    line = str(refused.value)
    assert message in line
    assert line.startswith(str(paths[-1]))
    assert len(line.splitlines()) == 1
    assert len(line) < 600
    with pytest.raises(errors.StorageError):
        read_storage(url)


FIELDS = [
    ({"number": "x"}, "line 4: number is 'x': input should be a valid integer"),
    ({"number": 0}, "line 4: number: 0, expected one above 1"),
    ({"state": "RUNNING"}, "line 4: state is 'RUNNING': input should be 'COMPLETE', 'PRUNED', 'FA"),
    ({"state": "COMPLETE"}, "line 4: value: expected a number because"),
    ({"state": "COMPLETE", "value": "nan"}, "line 4: value: expected a number because"),
    ({"datetime_start": "2026-11-27T12:00:00+05:00"}, "+05:00': input should not have"),
    ({"datetime_start": "today"}, "line 4: datetime_start is 'today': input should be a val"),
    ({"params": {"layers": 9}}, "line 4: params: '9' not in (1,)"),
    ({"params": {"width": 9}}, "line 4: params: 'width' has no distribution"),
    ({"user_attrs": {"seconds": -1}}, "line 4: user_attrs.seconds is -1: input should be gre"),
    ({"user_attrs": {"mine": 1}}, "line 4: user_attrs.mine is 1: extra inputs are not"),
    ({"system_attrs": {"grid_trial": True, "audit": 3}}, "line 4: system_attrs.audit is 3: "),
    ({"system_attrs": {}}, "line 4: system_attrs.grid_trial: field required"),
    ({"intermediate_values": {"5": "1_0"}}, "line 4: intermediate_values.5 is '1_0': input sho"),
    ({"intermediate_values": {"x": 1.0}}, "line 4: intermediate_values.x is 'x': input shou"),
    ({"extra": 1}, "line 4: extra is 1: extra inputs are not permitted"),
]


def test_bad_field_is_named_with_its_line(file, other_url):
    content = file.read_text()
    for changes, message in FIELDS:
        file.write_text(edit_line(content, 4, **changes))
        require_refused(other_url, [file], message)


FILES = [
    (lambda text: "", "is not an exported study"),
    (lambda text: "a,b\n1,2\n", "is not an exported study"),
    (lambda text: "".join(text.splitlines(True)[:-1]), "line 4: the file ends with 3 trials, exp"),
    (lambda text: edit_line(text, 1, version=2), "line 1: version 2 of the format, expected 1"),
    (lambda text: edit_line(text, 1, user_attrs={"schema_version": 99}), "schema version 99, "),
    (lambda text: edit_line(text, 1, direction="maximize"), "line 1: direction maximize, exp"),
    (
        lambda text: edit_line(text, 1, distributions={"layers": 3}),
        "line 1: distributions.layers",
    ),
    (lambda text: text + "\n", "line 6: "),
    (lambda text: text + text.splitlines()[2], "line 6: number: 1, expected one above 3"),
    (lambda text: text.encode().replace(b"FAIL", b"\xff\xfe", 1), "can't decode byte 0xff"),
    (lambda text: bytes(range(255, 0, -1)) * 20, "cannot be read after line 0 ("),
    (lambda text: gzip.compress(text.encode())[:-40], "cannot be read after line "),
    (
        lambda text: gzip.compress(text.encode())[:-8] + bytes(8),
        "cannot be read after line 5 (CRC check failed",
    ),
]


def test_bad_file_is_refused_in_one_line(file, tmp_path, other_url):
    path = tmp_path / "bad.jsonl.gz"
    for edit, message in FILES:
        content = edit(file.read_text())
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        require_refused(other_url, [file, path], message)
    require_refused(other_url, [tmp_path], "cannot be read")


def test_export_replaces_a_file_of_the_same_study_alone(source_url, file, tmp_path):
    create(source_url, "other")
    before = file.read_bytes()
    (tmp_path / "notes.jsonl").write_text("important")
    for name, path in (("other", file), ("made", tmp_path / "notes.jsonl")):
        with pytest.raises(errors.StudyFileError, match=r"exists and is .*: expected a new file"):
            export_study(source_url, name, path)
    assert (tmp_path / "notes.jsonl").read_text() == "important"
    export_study(source_url, "made", file)
    assert file.read_bytes() == before


def test_studies_are_imported_under_free_names_all_or_none(file, url, tmp_path):
    second = tmp_path / "second.jsonl"
    second.write_text(edit_line(file.read_text(), 1, name="second"))
    import_studies(url, [file])
    before = dump_without_note(url)
    with pytest.raises(errors.UserError, match=r"'made' exists .* \(--name\)"):
        import_studies(url, [second, file])
    with pytest.raises(errors.UserError, match="one name for 2 files"):
        import_studies(url, [file, second], "name")
    (result,) = import_studies(url, [file], "other")
    assert result.name == "other"
    assert query(url, "SELECT study_name FROM studies ORDER BY 1") == [("made",), ("other",)]
    assert dump_without_note(url) == before
    others = dump_without_note(url, "other")
    for table in before.keys() - {"study_user_attributes"}:
        assert others[table] == before[table], table


def test_gap_between_numbers_becomes_a_trial_that_is_not_of_the_grid(file, other_url, tmp_path):
    lines = edit_line(file.read_text(), 1, trials=3).splitlines(True)
    file.write_text("".join([*lines[:2], *lines[3:]]))
    import_studies(other_url, [file])
    trials = load_trials(other_url)
    assert [trial.number for trial in trials] == [0, 1, 2, 3]
    assert "grid_trial" not in trials[1].system_attrs
    export_study(other_url, "made", tmp_path / "again.jsonl")
    again = (tmp_path / "again.jsonl").read_text().splitlines(True)
    assert again[1:] == [lines[1], *lines[3:]]


def test_damaged_study_is_not_exported(source_url, tmp_path):
    with closing(open_storage(source_url)) as storage:
        with storage.transaction() as connection:
            connection.exec_driver_sql(
                "UPDATE trial_intermediate_values SET intermediate_value = 'x' WHERE step = 50 "
                "AND trial_id = (SELECT max(trial_id) FROM trials)"
            )
        with pytest.raises(errors.StudyFormatError, match="loss at step 50 is 'x'"):
            export_study(source_url, "made", tmp_path / "new.jsonl")
    assert not list(tmp_path.glob("new.jsonl*"))


def test_trials_of_workers_are_exported_as_open_ones(source_url, file, tmp_path):
    with closing(open_storage(source_url)) as storage:
        assert storage.claim(1, "node1/17/token", paused_ids=[4])
        export_study(source_url, "made", tmp_path / "held.jsonl")
    assert (tmp_path / "held.jsonl").read_bytes() == file.read_bytes()
