"""The commands that manage studies, as a user types them: what they print, and what they refuse."""

import json
import shutil
from functools import partial
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from helpers import ROOT, TINY
from invocation import require_refused
from managed_studies import create, create_with_everything, list_files

import rnn_search
from rnn.errors import UserError
from rnn_search.commands import studies as commands


@pytest.fixture
def artifacts(tmp_path):
    return tmp_path / "artifacts"


@pytest.fixture
def made(sqlite_url, artifacts):
    create_with_everything(sqlite_url, artifacts)
    return ("--storage", sqlite_url)


@pytest.fixture
def command(invoke, artifacts):
    return partial(invoke, RNN_SEARCH_ARTIFACTS=str(artifacts))


def test_study_is_listed_renamed_retried_and_deleted(command, made, sqlite_url, artifacts):
    done = command("list", *made)
    header, row = done.stdout.splitlines()
    assert header.split()[:3] == ["study", "kind", "trials"]
    assert row.startswith("made   grid  3 of 4 finished, 1 paused, 1 diverged, 1 failed  1.0625")
    done = command("rename", "made", "my study", *made)
    assert f"go on with rnn-search continue 'my study' {' '.join(made)}\n" in done.stdout
    (listed,) = json.loads(command("list", "--json", *made).stdout)
    assert (listed["study"], listed["finished"], listed["planned"]) == ("my study", 3, 4)
    done = command("retry", "my study", "--failed", "--diverged", *made)
    assert done.stdout.startswith("1 failed and 1 diverged trials of study 'my study' wait again")
    done = command("retry", "my study", *made)
    assert done.stdout.startswith("study 'my study' has no trial to retry: 0 failed; --diverged ")
    done = command("delete", "my study", "--yes", *made)
    assert done.stdout == "deleted study 'my study' and its files; reports are kept\n"
    assert command("list", *made).stdout == f"no study in {sqlite_url}\n"
    assert list_files(artifacts) == {}


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


def test_study_is_exported_and_imported(command, made, sqlite_url, tmp_path):
    file, target = str(tmp_path / "made.jsonl.gz"), ("--storage", f"sqlite:///{tmp_path}/new.db")
    done = command("export-study", "made", file, *made)
    assert done.stdout.startswith(f"exported study 'made' to {file}: 4 trials, "), done.stderr
    done = command("import", file, *target)
    assert done.stdout == f"imported study 'made' to {target[1]}: 4 trials\n"
    require_refused(command("import", file, *target), "study 'made' exists there already", "--name")
    derived = str(tmp_path / "derived.jsonl")
    create(sqlite_url, "derived", refinement={"source": "gone", "replicates": 3}, space=None)
    assert command("export-study", "derived", derived, *made).returncode == 0
    done = command("import", derived, "--name", "mine", *target)
    assert "it derives from 'gone', which is not there: import that as well" in done.stdout
    listed = json.loads(command("list", "--json", *target).stdout)
    assert [(each["study"], each["finished"]) for each in listed] == [("made", 3), ("mine", 0)]


def test_exported_study_is_not_imported_as_results(made, sqlite_url, tmp_path):
    file, target = tmp_path / "made.jsonl", tmp_path / "new.db"
    rnn_search.export_study("made", file, storage=sqlite_url)
    with pytest.raises(UserError, match="is an exported study: expected import_study"):
        rnn_search.import_results(file, storage=f"sqlite:///{target}")
    assert not target.exists()


def test_studies_are_managed_from_python(made, sqlite_url, artifacts, tmp_path):
    place = {"storage": sqlite_url, "artifacts": artifacts}
    rnn_search.rename_study("made", "first", storage=sqlite_url)
    file = tmp_path / "first.jsonl.gz"
    exported = rnn_search.export_study("first", file, storage=sqlite_url)
    assert (exported.trials, exported.size) == (4, file.stat().st_size)
    imported = rnn_search.import_study(file, name="other", storage=sqlite_url)
    assert (imported.name, imported.trials, imported.missing_source) == ("other", 4, None)
    assert rnn_search.retry_trials("first", diverged=True, storage=sqlite_url) == 2
    rnn_search.delete_study("first", **place)
    assert [each.name for each in rnn_search.list_studies(**place)] == ["other"]


@pytest.mark.parametrize(("answer", "is_deleted"), [("n", False), ("", False), ("y", True)])
def test_deletion_asks_on_a_terminal(made, sqlite_url, artifacts, monkeypatch, answer, is_deleted):
    files = list_files(artifacts)
    terminal = SimpleNamespace(isatty=lambda: True)
    monkeypatch.setattr(commands, "sys", SimpleNamespace(stdin=terminal))
    words = ["made", *made, "--artifacts", str(artifacts)]
    done = CliRunner().invoke(commands.delete, words, f"{answer}\n", standalone_mode=False)
    assert "delete study 'made', 3 of 4 trials finished, 60.0 kB of files" in done.output
    assert done.return_value == (0 if is_deleted else 1)
    assert (list_files(artifacts) == files) is not is_deleted


@pytest.mark.extended
def test_password_is_in_no_message(command, made, postgresql_url, tmp_path):
    url = postgresql_url.replace("tester@", "tester:hunter2@")
    file = str(tmp_path / "made.jsonl")
    assert command("export-study", "made", file, *made).returncode == 0
    for expected in ("imported study", "exists there already"):
        done = command("import", file, "--storage", url)
        assert expected in done.stdout + done.stderr
        assert "hunter2" not in done.stdout + done.stderr
