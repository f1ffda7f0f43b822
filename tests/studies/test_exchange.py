"""Study files: what is in them and what is not, bad ones, and what an imported study shows."""

import gzip
import json
import math
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from factories import (
    distributions_of,
    gated_params,
    make_empty,
    make_pruned,
    make_refinement,
    make_replicates,
    make_runs,
    make_stated,
    make_study,
    make_union,
    results_of,
)
from helpers import study_attributes
from invocation import refused
from managed_studies import create, create_with_everything, dump
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.study import StudyDirection
from optuna.trial import TrialState
from process_runner import query

from rnn.errors import UserError
from rnn_search import import_results, import_study, list_studies, load
from studies import errors
from studies.attributes import AuditState
from studies.config import StudyConfig
from studies.exchange import export_study, import_studies
from studies.management import retry_trials
from studies.space import GATED_PARAMS
from studies.storage.edits import create_study
from studies.storage.open import load_study, open_storage, read_storage
from studies.storage.reads import read_trials
from studies.storage.storage import AuditDecision
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


def test_unfinished_study_has_the_same_rows_and_the_same_file_after_an_import(
    url, source_url, file, tmp_path
):
    import_studies(url, [file])
    assert select_results(dump(url)) == select_results(dump(source_url))
    export_study(url, "made", tmp_path / "again.jsonl")
    assert (tmp_path / "again.jsonl").read_bytes() == file.read_bytes()
    with closing(open_storage(url)) as storage:
        study_id = load_study(storage, "made")._study_id
        (paused,) = (trial for trial in load_trials(url) if trial.state is TrialState.WAITING)
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
    source = "study s of sqlite:////home/alice b/sweep.db"
    results = ImportedResults(source=source, parameters=["rate"])
    attributes = study_attributes(StudyConfig(results=results, question="Which rate?"))
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
    with refused(errors.StudyFileError, [str(paths[-1]), message]):
        import_studies(url, paths)
    with pytest.raises(errors.StorageError):
        read_storage(url)


FIELDS = [
    ({"number": "x"}, "line 4: number is 'x': input should be a valid integer"),
    ({"number": 0}, "line 4: number: 0, expected one above 1"),
    ({"state": "COMPLETE", "value": "nan"}, "line 4: value: expected a number because"),
    ({"params": {"layers": 9}}, "line 4: params: '9' not in (1,)"),
    ({"params": {"width": 9}}, "line 4: params: 'width' has no distribution"),
    ({"user_attrs": {"mine": 1}}, "line 4: user_attrs.mine is 1: extra inputs are not"),
    ({"system_attrs": {"grid_trial": True, "audit": 3}}, "line 4: system_attrs.audit is 3: "),
    ({"intermediate_values": {"5": "1_0"}}, "line 4: intermediate_values.5 is '1_0': input sho"),
]
"""Changes of the last trial, and what the message says of each."""

FILES = [
    (lambda text: "a,b\n1,2\n", "is not an exported study"),
    (lambda text: "".join(text.splitlines(True)[:-1]), "line 4: the file ends with 3 trials, exp"),
    (lambda text: edit_line(text, 1, version=2), "line 1: version 2 of the format, expected 1"),
    (lambda text: edit_line(text, 1, user_attrs={"schema_version": 99}), "schema version 99, "),
    (lambda text: edit_line(text, 1, distributions={"layers": 3}), "line 1: distributions.layers"),
    (lambda text: text + text.splitlines()[2], "line 6: number: 1, expected one above 3"),
    (lambda text: text.encode().replace(b"FAIL", b"\xff\xfe", 1), "can't decode byte 0xff"),
    (lambda text: gzip.compress(text.encode())[:-40], "cannot be read after line "),
    *((lambda text, by=by: edit_line(text, 4, **by), message) for by, message in FIELDS),
]
"""Edits of a file, and what the message says of each."""


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


def test_trials_of_workers_are_exported_as_open_ones(source_url, file, tmp_path):
    with closing(open_storage(source_url)) as storage:
        assert storage.claim(1, "node1/17/token", paused_ids=[4])
        export_study(source_url, "made", tmp_path / "held.jsonl")
    assert (tmp_path / "held.jsonl").read_bytes() == file.read_bytes()


# ------------------------------------------------------------------ what an imported study shows


def make_retried(url: str) -> None:
    """Complete and paused trials, and failed ones that wait again and keep what they were."""
    make_empty(url)
    create_with_everything(url, Path(url.removeprefix("sqlite:///")).parent / "files")
    retry_trials(url, "made", ["failed", "diverged"])


def make_audited(url: str) -> None:
    """Complete, pruned and audited trials, and a paused one."""
    make_pruned(url, finished=False)
    with closing(open_storage(url)) as storage:
        study_id = load_study(storage, "made")._study_id
        (trial, *_) = storage.get_all_trials(study_id)
        decision = AuditDecision(AuditState(), AuditState(rungs=2, pruned=True))
        assert storage.write_audit({trial._trial_id: decision})
        look = {"complete": 4, "trials": 2, "inside": 2, "alarm": False}
        storage.set_study_system_attr(study_id, "rnn_search:audit", {"half": look})


def make_several(url: str) -> None:
    """A study and its refinement, replicates, cells of a user's own, and hypotheses."""
    make_study(url, diverged=None)
    make_refinement(url)
    make_replicates(url)
    make_union(url)
    make_stated(url)


@pytest.mark.parametrize("make", [make_retried, make_audited, make_several])
def test_imported_study_has_the_results_and_the_export_of_the_study(make, sqlite_url, tmp_path):
    make(sqlite_url)
    names = [study.name for study in list_studies(storage=sqlite_url)]
    files = [tmp_path / f"{name}.jsonl.gz" for name in names]
    for name, file in zip(names, files, strict=True):
        export_study(sqlite_url, name, file)
    other = f"sqlite:///{tmp_path}/imported.db"
    assert [study.name for study in import_studies(other, files)] == names
    for name, file in zip(names, files, strict=True):
        export_study(other, name, tmp_path / "again.jsonl.gz")
        assert (tmp_path / "again.jsonl.gz").read_bytes() == file.read_bytes()
        (tmp_path / "again.jsonl.gz").unlink()
        old, new = (results_of(url, name, require_complete=False) for url in (sqlite_url, other))
        finished = [*old.table.index[old.table["state"].isin(["COMPLETE", "PRUNED", "FAIL"])]]
        private = ["host", "worker", "error"]
        for found, expected in (
            (new.table.loc[finished], old.table.loc[finished]),
            (new.sources, old.sources),
        ):
            found, expected = (
                frame.drop(columns=private, errors="ignore").dropna(axis=1, how="all")
                for frame in (found, expected)
            )
            pd.testing.assert_frame_equal(found, expected, check_dtype=False)
        curves = old.curves[old.curves["number"].isin(finished)].reset_index(drop=True)
        pd.testing.assert_frame_equal(new.curves, curves)
        metrics = old.metrics[old.metrics["number"].isin(finished)].reset_index(drop=True)
        pd.testing.assert_frame_equal(new.metrics, metrics)
        for field in ("windows", "hypotheses", "audit_looks"):
            assert getattr(new, field) == getattr(old, field), field
        assert new.counts == replace(old.counts, paused=0), "paused trials wait"


def make_recorded(url: str) -> None:
    """A study whose order depends on the loss, one that lacks a loss, and a hypothesis of it."""
    raw = {"space": {"layers": [1, 2, 3], "state_size": [4]}}
    losses = {"training_loss": 1.2, "training_mean_loss": 1.3, "validation_loss": 1.5}
    runs = [
        (gated_params(1), 1.5, losses),
        (gated_params(2), 1.4, losses | {"training_loss": 1.25, "validation_loss": 1.4}),
        (gated_params(3), math.nan, {}),  # diverged
    ]
    make_runs(url, "made", raw, runs)
    make_runs(url, "old", raw, [runs[0], (gated_params(2), 1.4, {})])


def test_study_is_imported_under_another_loss_that_its_trials_recorded(
    sqlite_url, tmp_path, invoke
):
    make_recorded(sqlite_url)
    file = tmp_path / "made.jsonl.gz"
    export_study(sqlite_url, "made", file)
    options = ("--name", "by-training", "--objective", "training", "--storage", sqlite_url)
    assert invoke("import", str(file), *options).returncode == 0
    own, other = (load(name, storage=sqlite_url) for name in ("made", "by-training"))
    assert own.results["value"].dropna().to_dict() == {1: 1.4, 0: 1.5}
    assert other.results["value"].dropna().to_dict() == {0: 1.2, 1: 1.25}
    assert list(other.results.index) == [0, 1, 2]
    assert (own.best.number, other.best.number) == (1, 0)
    assert other.best.value == other.status.best.value == 1.2
    assert other.config.objective == "training"
    assert other.optuna.metric_names == ["smoothed training loss"]
    metric = results_of(sqlite_url, "by-training").metric
    assert metric.name == "smoothed training loss"
    assert other.curves.equals(own.curves)
    by_mean = import_study(file, name="by-mean", objective="training-mean", storage=sqlite_url)
    assert by_mean.name == "by-mean"
    assert set(load("by-mean", storage=sqlite_url).results["value"].dropna()) == {1.3}


def test_import_under_another_loss_is_refused_in_one_line(sqlite_url, tmp_path, invoke):
    make_recorded(sqlite_url)
    make_pruned(sqlite_url, name="pruned")
    table = tmp_path / "table.csv"
    table.write_text("depth,value\n1,2.0\n2,1.5\n")
    import_results(table, name="results", storage=sqlite_url)
    lines = {
        "old": "study 'old' cannot have the objective 'training': trial 1 did not record its "
        "smoothed training loss",
        "pruned": "study 'pruned' cannot have the objective 'training': it was pruned by its "
        "validation loss",
        "results": "study 'results' cannot have the objective 'training': its results are of "
        "another program, one value a trial",
    }
    names = [study.name for study in list_studies(storage=sqlite_url)]
    for name, line in lines.items():
        file = tmp_path / f"{name}.jsonl"
        export_study(sqlite_url, name, file)
        options = ("--name", "other", "--objective", "training", "--storage", sqlite_url)
        done = invoke("import", str(file), *options)
        assert (done.returncode, done.stderr.splitlines()) == (2, [f"error: {line}"])
    done = invoke("import", str(table), "--objective", "training", "--storage", sqlite_url)
    assert done.returncode == 2
    assert "--objective is for exported studies, and " in done.stderr
    with pytest.raises(UserError, match="unknown objective 'loss': expected"):
        import_study(file, objective="loss", storage=sqlite_url)
    assert [study.name for study in list_studies(storage=sqlite_url)] == names


def test_study_with_a_loop_keeps_the_attributes_that_its_loop_has_stored(
    sqlite_url, tmp_path, other_url, monkeypatch
):
    """Its parameters are as they are, also where they are named as all switches before the last."""
    monkeypatch.setattr("studies.space.LATER_SWITCHES", {"shortcut": False})
    params = dict.fromkeys(GATED_PARAMS, 1)
    own = {"remark": "mine", "epochs": [1, {"loss": None}], "ratio": math.nan}
    attributes = {"seconds": 1.0, "host": "h", **own, "file": "/home/alice/a.pt"}
    loop = {"metric": "reward", "direction": "maximize", "function": "/home/alice/train.py:train"}
    config = StudyConfig.model_validate({"loop": loop, "space": {k: [1] for k in params}})
    study = StoredStudy(
        "made",
        "reward",
        study_attributes(config),
        distributions_of([params]),
        [StoredTrial(params, attributes, state=TrialState.COMPLETE, value=-1.5)],
        StudyDirection.MAXIMIZE,
    )
    with closing(open_storage(sqlite_url)) as storage:
        create_study(storage, study)
        study_id = load_study(storage, "made")._study_id
        assert [trial.params for trial in read_trials(storage, study_id)] == [params]
    file = tmp_path / "made.jsonl"
    export_study(sqlite_url, "made", file)
    assert "alice" not in file.read_text("utf-8")
    import_studies(other_url, [file])
    (found,) = load_trials(other_url)
    assert math.isnan(found.user_attrs.pop("ratio"))
    del own["ratio"]
    assert found.user_attrs == {"seconds": 1.0, **own, "file": "a.pt"}
    export_study(other_url, "made", tmp_path / "again.jsonl")
    assert (tmp_path / "again.jsonl").read_bytes() == file.read_bytes()
