"""Commands that copy or delete studies are killed, interrupted, and meet workers."""

import json
import signal

import pytest
from hooks import CallGate, Hooks
from managed_studies import FILES, create_with_everything, dump, folder_of, list_files
from process_runner import query, wait_until_running
from small_searches import ONE

NONE_STORED = "SELECT count(*) FROM studies"


@pytest.fixture
def artifacts(tmp_path):
    return tmp_path / "artifacts"


@pytest.fixture
def held_command(runner, tmp_path):
    """Start a command and wait until it is held after a call of a function."""

    def start(function, *arguments):
        gate = start.gate = CallGate(tmp_path / "calls", function)
        command = runner.start("-m", "rnn_search", *arguments, hooks=Hooks(calls=gate))
        wait_until_running([command], lambda: gate.held)
        return command

    return start


@pytest.fixture
def copy_arguments(tmp_path, url, artifacts):
    """Arguments that copy a study of an SQLite file to each kind of storage."""
    source = f"sqlite:///{tmp_path}/source.db"
    create_with_everything(source, artifacts)
    places = ("--artifacts", str(artifacts), "--artifacts-to", str(tmp_path / "copies"))
    return ("copy", "made", "--storage", source, "--to", url, *places)


on_sqlite = pytest.mark.parametrize("url", ["sqlite"], indirect=True)

WITHIN_FILES = "studies.study_files:_digest"
BEFORE_COMMIT = "studies.storage.copy_study:_verify"


@pytest.mark.parametrize(
    ("url", "function"),
    [
        ("sqlite", BEFORE_COMMIT),
        pytest.param("sqlite", WITHIN_FILES, marks=pytest.mark.extended),
        pytest.param("postgresql", BEFORE_COMMIT, marks=pytest.mark.extended),
    ],
    indirect=["url"],
)
def test_killed_copy_shows_nothing_and_the_next_one_removes_what_it_left(
    run, held_command, copy_arguments, url, tmp_path, artifacts, function
):
    source = copy_arguments[3]
    before, files = dump(source), list_files(artifacts)
    command = held_command(function, *copy_arguments)
    command.send(signal.SIGKILL)
    assert command.wait() == -signal.SIGKILL
    assert query(url, NONE_STORED) == [(0,)]
    left = list_files(tmp_path / "copies")
    assert len(left) == (2 if function is WITHIN_FILES else 8)
    done = run("-m", "rnn_search", *copy_arguments)
    assert done.returncode == 0, done.stderr
    assert "4 trials, 8 intermediate values, 7 files" in done.stdout
    assert dump(url)["trial_intermediate_values"] == before["trial_intermediate_values"]
    assert (dump(source), list_files(artifacts)) == (before, files)
    folder, found = folder_of(url), list_files(tmp_path / "copies")
    expected = {f"{folder}/{name}" for names in FILES.values() for name in names}
    assert expected < found.keys()
    assert len(found) == 7
    assert not found.keys() & left.keys()


@pytest.mark.extended
@on_sqlite
def test_copy_that_another_one_overtakes_leaves_that_one_whole(
    run, held_command, copy_arguments, url, tmp_path
):
    command = held_command(WITHIN_FILES, *copy_arguments)
    done = run("-m", "rnn_search", *copy_arguments)  # takes the first one for dead
    assert done.returncode == 0, done.stderr
    stored, files = dump(url), list_files(tmp_path / "copies")
    held_command.gate.open()
    assert command.wait() == 2
    (line,) = command.stderr.splitlines()
    assert "disappeared" in line or "exists there already" in line or "cannot copy" in line
    assert (dump(url), list_files(tmp_path / "copies")) == (stored, files)


@pytest.mark.extended
@pytest.mark.parametrize(
    ("url", "signum"),
    [("sqlite", signal.SIGINT), ("postgresql", signal.SIGKILL)],
    indirect=["url"],
)
def test_import_that_is_killed_before_its_commit_leaves_nothing(
    run, held_command, url, tmp_path, artifacts, signum
):
    source, file = f"sqlite:///{tmp_path}/source.db", str(tmp_path / "made.csv.gz")
    create_with_everything(source, artifacts)
    done = run("-m", "rnn_search", "export-study", "made", file, "--storage", source)
    assert done.returncode == 0, done.stderr
    arguments = ("import", file, "--storage", url)
    command = held_command("studies.tables.study_import:insert_study", *arguments)
    command.send(signum)
    assert command.wait() == (130 if signum == signal.SIGINT else -signum)
    assert query(url, NONE_STORED) == [(0,)]
    assert query(url, "SELECT count(*) FROM trials") == [(0,)]
    done = run("-m", "rnn_search", *arguments)
    assert "imported study 'made'" in done.stdout, done.stderr
    assert dump(url)["trial_intermediate_values"] == dump(source)["trial_intermediate_values"]


@pytest.mark.extended
def test_export_that_is_killed_leaves_the_earlier_file(run, held_command, tmp_path, artifacts):
    source, file = f"sqlite:///{tmp_path}/source.db", tmp_path / "made.csv.gz"
    create_with_everything(source, artifacts)
    arguments = ("export-study", "made", str(file), "--storage", source)
    assert run("-m", "rnn_search", *arguments).returncode == 0
    before = file.read_bytes()
    command = held_command("studies.storage.curves:read_steps", *arguments)
    command.send(signal.SIGKILL)
    command.wait()
    assert file.read_bytes() == before


@pytest.mark.extended
def test_deletion_that_is_killed_before_its_commit_changes_nothing(
    run, held_command, url, artifacts
):
    create_with_everything(url, artifacts)
    before, files = dump(url), list_files(artifacts)
    arguments = ("delete", "made", "--yes", "--storage", url, "--artifacts", str(artifacts))
    command = held_command("studies.storage.study_changes:_delete_rows", *arguments)
    command.send(signal.SIGKILL)
    command.wait()
    assert (dump(url), list_files(artifacts)) == (before, files)
    assert run("-m", "rnn_search", *arguments).returncode == 0
    assert query(url, NONE_STORED) == [(0,)]
    assert list_files(artifacts) == {}


@pytest.mark.extended
@on_sqlite
def test_files_that_a_killed_deletion_left_are_removed_by_the_next_one(
    run, held_command, url, artifacts
):
    create_with_everything(url, artifacts)
    create_with_everything(url, artifacts, "other")
    common = ("--yes", "--storage", url, "--artifacts", str(artifacts))
    marked = "studies.study_files:StudyStores.mark_unowned"
    command = held_command(marked, "delete", "made", *common)
    command.send(signal.SIGKILL)
    command.wait()
    assert query(url, "SELECT study_name FROM studies") == [("other",)]
    assert "made-folder/trial-0.final" in list_files(artifacts)
    done = run("-m", "rnn_search", "delete", "missing", *common)
    assert done.returncode == 2
    assert done.stderr.startswith("error: study 'missing' is not in ")
    names = {f"other-folder/{name}" for names in FILES.values() for name in names}
    # The other study names the same files of the dashboard, as a copy by plain Optuna does.
    assert list_files(artifacts).keys() == {*names, "of-study", "of-trial"}


@pytest.mark.extended
def test_study_of_a_killed_worker_is_refused_until_its_lease_has_expired(held, run, sqlite_url):
    worker = held(**ONE | {"lease_seconds": 2})

    def manage(*arguments):
        return run("-m", "rnn_search", *arguments, "--storage", sqlite_url)

    refused = manage("rename", "quick", "new")
    assert refused.returncode == 2
    (line,) = refused.stderr.splitlines()
    assert f"/{worker.pid} holds trial" in line
    worker.send(signal.SIGKILL)
    worker.wait()
    (shown,) = json.loads(manage("status", "quick", "--json").stdout)["workers"]
    assert shown["worker"] == f"{shown['host']}/{worker.pid}"
    assert shown["lease_seconds"] == 2
    assert shown["silent_seconds"] >= 0
    status = manage("status", "quick").stdout
    assert "workers   " in status
    assert "last heard of" in status
    done = manage("rename", "quick", "new", "--wait")
    assert done.returncode == 0, done.stderr
    assert f"waiting: {shown['worker']} holds trial" in done.stderr
    status = json.loads(manage("status", "new", "--json").stdout)
    assert (status["workers"], status["retries"]) == ([], {"lease_expired": 1})
