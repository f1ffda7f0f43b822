"""Studies are renamed, deleted and retried with everything they own, or not at all."""

import json
import shutil
from contextlib import closing
from functools import partial
from types import SimpleNamespace

import optuna
import pytest
from click.testing import CliRunner
from helpers import ROOT, TINY, create_small_study
from invocation import require_refused
from managed_studies import FILES, create, create_with_everything, dump, list_files
from optuna.trial import TrialState
from process_runner import query

import rnn_search
from rnn.errors import UserError
from rnn_search.commands import studies as commands
from search.status import read_status
from studies import errors
from studies.artifacts import ArtifactFolders
from studies.attributes import EARLIER_FAILURES
from studies.management import delete_study, list_studies, rename_study, retry_trials
from studies.storage.counts import StudyIdentity
from studies.storage.open import load_study, open_storage, read_study_record

REFINED = {"refinement": {"source": "made", "replicates": 3}, "space": None}


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "artifacts"


@pytest.fixture
def made(url, folder):
    """A study that has everything; its storage and artifacts."""
    create_with_everything(url, folder)
    return url, str(folder)


def test_renamed_study_is_found_by_the_studies_that_derive_from_it(made, url, folder):
    create(url, "derived", **REFINED)
    before = dump(url)
    files = list_files(folder)
    assert rename_study(url, "made", "better name") == ["derived"]
    assert dump(url, "better name") == before
    assert list_files(folder) == files
    attributes = dict(dump(url, "derived")["study_user_attributes"])
    assert json.loads(attributes["config"])["refinement"]["source"] == "better name"


def test_operation_that_is_refused_changes_nothing(made, url, folder):
    create(url, "other")
    operations = [
        lambda name, new: rename_study(url, name, new),
        lambda name, new: retry_trials(url, name, ["failed"]),
        lambda name, new: delete_study(*made, name),
    ]
    with closing(open_storage(url)) as storage:
        create_small_study(storage, 3, "plain")
        storage.claim(1, "node1/17/token", paused_ids=[4])
    before, files = dump(url), list_files(folder)
    for operation in operations:
        with pytest.raises(errors.StudyNotFoundError):
            operation("missing", "new")
        with pytest.raises(errors.UserError, match=r"node1/17 holds trial 3, last heard of \d"):
            operation("made", "new")
    with pytest.raises(errors.UserError):
        rename_study(url, "other", "made")
    with pytest.raises(errors.UserError):
        rename_study(url, "other", " ")
    assert dump(url) == before
    assert list_files(folder) == files
    names = [name for (name,) in query(url, "SELECT study_name FROM studies ORDER BY study_id")]
    assert names == ["made", "other", "plain"]


def test_worker_that_waits_works_on_under_the_new_name(made, url):
    with closing(open_storage(url)) as storage:
        storage.require_study(StudyIdentity(1, "made", "made-folder"))
        study = load_study(storage, "made")
        config = read_study_record(study).config
        rename_study(url, "made", "new")
        assert storage.claim(1, "w/2/v", paused_ids=[4]) == 4
        assert read_status(study, storage, config).name == "new"  # its report is that of "new"


def test_deletion_takes_all_rows_and_files_of_the_study_alone(made, url, folder):
    create_with_everything(url, folder, "other")
    with closing(open_storage(url)) as storage:
        entry = {"artifact_id": "of-made", "filename": "c.txt"}
        storage.set_study_system_attr(1, "artifacts:of-made", json.dumps(entry))
    (folder / "of-made").write_text("not in the other study")
    other = dump(url, "other")
    delete_study(*made, "made")
    assert dump(url, "other") == other
    for table in ("studies", "trials", *dump(url, "other")):
        owner = "trial_id" if table.startswith("trial_") else "study_id"
        ids = "trials" if table.startswith("trial_") else "studies"
        orphans = f"SELECT count(*) FROM {table} WHERE {owner} NOT IN (SELECT {owner} FROM {ids})"
        assert query(url, orphans) == [(0,)]
    # Both studies name the files of the dashboard.
    assert sorted(list_files(folder)) == sorted(
        ["of-study", "of-trial"]
        + [f"other-folder/{name}" for names in FILES.values() for name in names]
    )


def test_deletion_of_a_source_is_refused_unless_forced(made, url):
    create(url, "derived", **REFINED)
    before = dump(url)
    with pytest.raises(errors.UserError, match="is the source of 'derived'"):
        delete_study(*made, "made")
    assert dump(url) == before
    delete_study(*made, "made", force=True)
    assert query(url, "SELECT study_name FROM studies") == [("derived",)]


def test_study_of_a_dead_worker_is_deleted_if_forced(made, url, folder):
    with closing(open_storage(url)) as storage:
        storage.require_study(StudyIdentity(1, "made", "made-folder"))
        trial_id = storage.claim(1, "node1/17/token", paused_ids=[4])
        delete_study(*made, "made", force=True)
        with pytest.raises(errors.StorageLostError):
            storage.finish(trial_id, "node1/17/token", TrialState.COMPLETE, 1.0, {})
    assert query(url, "SELECT count(*) FROM trials") == [(0,)]
    assert list_files(folder) == {}


def test_damaged_study_and_one_of_plain_optuna_can_be_deleted(url):
    create(url)
    optuna.create_study(storage=open_storage(url), study_name="plain").enqueue_trial({})
    with closing(open_storage(url)) as storage:
        storage.set_study_user_attr(1, "config", "x")
        storage.set_study_user_attr(1, "artifact_folder", "../..")
    for name in ("made", "plain"):
        delete_study(url, None, name)
    assert query(url, "SELECT count(*) FROM studies") == [(0,)]
    assert query(url, "SELECT count(*) FROM trials") == [(0,)]


def test_retried_trial_keeps_what_it_was(made, url):
    assert retry_trials(url, "made", ["failed"]) == {"failed": 1}
    assert retry_trials(url, "made", ["failed"]) == {"failed": 0}
    with closing(open_storage(url)) as storage:
        trial_id = storage.claim(1, "w/3/x")
        storage.finish(trial_id, "w/3/x", TrialState.FAIL, None, {"error": "z"})
        assert retry_trials(url, "made", ["failed"]) == {"failed": 1}
        trial = storage.get_trial(trial_id)
    assert (trial.user_attrs, trial.intermediate_values, trial.value) == ({}, {}, None)
    first, second = trial.system_attrs[EARLIER_FAILURES]
    assert first["attributes"]["error"] == "ValueError: y"
    assert first["attributes"]["retries"] == {"exception": 1}
    assert first["started"]
    assert second["attributes"]["error"] == "z"


def test_study_that_is_deleted_meanwhile_is_not_listed(url, folder, monkeypatch):
    create(url)

    def load_and_delete(storage, name):
        study = load_study(storage, name)
        optuna.delete_study(study_name=name, storage=storage)
        return study

    monkeypatch.setattr("studies.management.load_study", load_and_delete)
    with closing(open_storage(url)) as storage:
        assert list_studies(storage, ArtifactFolders(str(folder), url)) == []


def test_list_shows_each_study_and_its_workers(made, url, folder):
    create(url, "derived", **REFINED)
    create(url, "broken")
    optuna.create_study(storage=open_storage(url), study_name="plain").enqueue_trial({})
    with closing(open_storage(url)) as storage:
        storage.claim(1, "node1/17/token", paused_ids=[4])
        study_id = load_study(storage, "broken")._study_id
        storage.set_study_user_attr(study_id, "config", {"space": 3})
        listed = {
            each.name: each for each in list_studies(storage, ArtifactFolders(str(folder), url))
        }
    assert list(listed) == ["broken", "derived", "made", "plain"]
    kinds = [each.kind for each in listed.values()]
    assert kinds == ["damaged", "replicates of 'made'", "grid", "plain Optuna"]
    made = listed["made"]
    assert (made.counts.complete, made.counts.diverged, made.counts.failed) == (1, 1, 1)
    assert made.best == 1.0625
    assert made.artifact_bytes == sum(
        (folder / "made-folder" / name).stat().st_size for names in FILES.values() for name in names
    )
    assert [(each.host, each.trials) for each in made.workers] == [("node1", (3,))]
    assert "invalid attribute config" in listed["broken"].problem
    assert listed["plain"].counts.waiting == 1
    json.dumps([each.as_json() for each in listed.values()])


# ------------------------------------------------------------------ commands and Python


@pytest.fixture
def in_storage(sqlite_url, folder):
    """Return the option that names a storage with a study that has everything."""
    create_with_everything(sqlite_url, folder)
    return ("--storage", sqlite_url)


@pytest.fixture
def command(invoke, folder):
    return partial(invoke, RNN_SEARCH_ARTIFACTS=str(folder))


def test_study_is_listed_renamed_retried_and_deleted(command, in_storage, sqlite_url, folder):
    done = command("list", *in_storage)
    header, row = done.stdout.splitlines()
    assert header.split()[:3] == ["study", "kind", "trials"]
    assert row.startswith("made   grid  3 of 4 finished, 1 paused, 1 diverged, 1 failed  1.0625")
    done = command("rename", "made", "my study", *in_storage)
    assert f"go on with rnn-search continue 'my study' {' '.join(in_storage)}\n" in done.stdout
    (listed,) = json.loads(command("list", "--json", *in_storage).stdout)
    assert (listed["study"], listed["finished"], listed["planned"]) == ("my study", 3, 4)
    done = command("retry", "my study", "--failed", "--diverged", *in_storage)
    assert done.stdout.startswith("1 failed and 1 diverged trials of study 'my study' wait again")
    done = command("retry", "my study", *in_storage)
    assert done.stdout.startswith("study 'my study' has no trial to retry: 0 failed; --diverged ")
    done = command("delete", "my study", "--yes", *in_storage)
    assert done.stdout == "deleted study 'my study' and its files; reports are kept\n"
    assert command("list", *in_storage).stdout == f"no study in {sqlite_url}\n"
    assert list_files(folder) == {}


@pytest.mark.extended
def test_study_of_an_own_cell_that_is_moved_with_its_folders_continues(invoke, text, tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    shutil.copy(ROOT / "examples" / "cells" / "min_gru.py", here)
    study = here / "quick.toml"  # also the name of a study file of the project
    study.write_text(f'[task]\ncorpus = "{text}"\n[space]\ncell = ["min_gru.py:MinGRU", "gru"]\n'
                     "layers = [1]\nstate_size = [4]\n")  # fmt: skip
    storage = ("--storage", f"sqlite:///{here}/studies.db", "--threads=1")
    done = invoke("run", str(study), *storage, "--until=0.000001s", *TINY, report=False)
    assert "created with 2 trials" in done.stdout, done.stderr
    there.mkdir()
    for path in here.glob("studies.db*"):
        path.rename(there / path.name)
    shutil.rmtree(here)
    storage = ("--storage", f"sqlite:///{there}/studies.db")
    done = invoke("continue", "quick", *storage, "--threads=1", report=False)
    assert done.returncode == 0, done.stderr
    assert "2 of 2 finished" in done.stdout
    done = invoke("sample", "quick", *storage, "--length=5")
    assert done.returncode == 0, done.stderr


def test_study_is_exported_and_imported(command, in_storage, sqlite_url, tmp_path):
    file, target = str(tmp_path / "made.jsonl.gz"), ("--storage", f"sqlite:///{tmp_path}/new.db")
    done = command("export-study", "made", file, *in_storage)
    assert done.stdout.startswith(f"exported study 'made' to {file}: 4 trials, "), done.stderr
    done = command("import", file, *target)
    assert done.stdout == f"imported study 'made' to {target[1]}: 4 trials\n"
    require_refused(command("import", file, *target), "study 'made' exists there already", "--name")
    derived = str(tmp_path / "derived.jsonl")
    create(sqlite_url, "derived", refinement={"source": "gone", "replicates": 3}, space=None)
    assert command("export-study", "derived", derived, *in_storage).returncode == 0
    done = command("import", derived, "--name", "mine", *target)
    assert "it derives from 'gone', which is not there: import that as well" in done.stdout
    listed = json.loads(command("list", "--json", *target).stdout)
    assert [(each["study"], each["finished"]) for each in listed] == [("made", 3), ("mine", 0)]


def test_exported_study_is_not_imported_as_results(in_storage, sqlite_url, tmp_path):
    file, target = tmp_path / "made.jsonl", tmp_path / "new.db"
    rnn_search.export_study("made", file, storage=sqlite_url)
    with pytest.raises(UserError, match="is an exported study: expected import_study"):
        rnn_search.import_results(file, storage=f"sqlite:///{target}")
    assert not target.exists()


@pytest.mark.parametrize(("answer", "is_deleted"), [("n", False), ("", False), ("y", True)])
def test_deletion_asks_on_a_terminal(in_storage, folder, monkeypatch, answer, is_deleted):
    files = list_files(folder)
    terminal = SimpleNamespace(isatty=lambda: True)
    monkeypatch.setattr(commands, "sys", SimpleNamespace(stdin=terminal))
    words = ["made", *in_storage, "--artifacts", str(folder)]
    done = CliRunner().invoke(commands.delete, words, f"{answer}\n", standalone_mode=False)
    assert "delete study 'made', 3 of 4 trials finished, 60.0 kB of files" in done.output
    assert done.return_value == (0 if is_deleted else 1)
    assert (list_files(folder) == files) is not is_deleted


@pytest.mark.extended
def test_password_is_in_no_message(command, in_storage, postgresql_url, tmp_path):
    url = postgresql_url.replace("tester@", "tester:hunter2@")
    file = str(tmp_path / "made.jsonl")
    assert command("export-study", "made", file, *in_storage).returncode == 0
    for expected in ("imported study", "exists there already"):
        done = command("import", file, "--storage", url)
        assert expected in done.stdout + done.stderr
        assert "hunter2" not in done.stdout + done.stderr
