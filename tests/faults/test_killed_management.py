"""Commands that copy, import or delete studies are killed or interrupted, and meet workers."""

import json
import signal

import pytest
from helpers import EACH_DATABASE
from hooks import CallGate, Hooks, StatementGate
from managed_studies import FILES, create_with_everything, dump, folder_of, list_files
from process_runner import query, wait_until_running
from small_searches import ONE, error_of, finish, kill

COUNT = "SELECT count(*) FROM studies"


@pytest.fixture
def start(runner):
    """Start a command, as ``start("delete", "made", "--yes")``."""
    return lambda *arguments, **hooks: runner.start(*arguments, hooks=Hooks(**hooks))


@pytest.fixture
def end(start):
    """Start a command, wait until a gate holds it, and end it by a signal."""

    def start_and_end(*arguments, number=signal.SIGKILL, **gates):
        command = start(*arguments, **gates)
        (gate,) = gates.values()
        wait_until_running([command], lambda: gate.held)
        command.send(number)
        assert command.wait() == (130 if number == signal.SIGINT else -number)

    return start_and_end


@pytest.fixture
def source(tmp_path, artifacts):
    """URL of an SQLite file with a study that has all kinds of rows and files."""
    url = f"sqlite:///{tmp_path}/source.db"
    create_with_everything(url, artifacts)
    return url


@EACH_DATABASE
def test_killed_copy_shows_nothing_and_the_next_one_removes_what_it_left(
    start, end, source, url, tmp_path, artifacts
):
    """Killed after the first file is copied, then within the transaction."""
    before, files, copies = dump(source), list_files(artifacts), tmp_path / "copies"
    places = ("--artifacts", str(artifacts), "--artifacts-to", str(copies))
    copy = ("copy", "made", "--storage", source, "--to", url, *places)
    end(*copy, calls=CallGate(tmp_path / "files", "studies.artifacts:_digest"))
    assert query(url, COUNT) == [(0,)]
    first = list_files(copies)
    assert len(first) == 2
    end(*copy, statements=StatementGate(tmp_path / "rows", "SELECT trial_intermediate"))
    assert query(url, COUNT) == [(0,)]
    second = list_files(copies)
    assert len(second) == 8
    assert not first.keys() & second.keys()
    assert "4 trials, 8 intermediate values, 7 files" in finish(start(*copy))
    assert dump(url)["trial_intermediate_values"] == before["trial_intermediate_values"]
    assert (dump(source), list_files(artifacts)) == (before, files)
    folder, found = folder_of(url), list_files(copies)
    expected = {f"{folder}/{name}" for names in FILES.values() for name in names}
    assert expected < found.keys()
    assert len(found) == 7
    assert not found.keys() & second.keys()


@pytest.mark.extended
@pytest.mark.parametrize(
    ("url", "number"),
    [("sqlite", signal.SIGINT), ("postgresql", signal.SIGKILL)],
    indirect=["url"],
)
def test_import_that_is_ended_before_its_commit_leaves_nothing(
    start, end, source, url, tmp_path, number
):
    file = str(tmp_path / "made.jsonl.gz")
    finish(start("export-study", "made", file, "--storage", source))
    arguments = ("import", file, "--storage", url)
    end(*arguments, number=number, statements=StatementGate(tmp_path / "gate", "COMMIT"))
    assert query(url, COUNT) == [(0,)]
    assert query(url, "SELECT count(*) FROM trials") == [(0,)]
    assert "imported study 'made'" in finish(start(*arguments))
    assert dump(url)["trial_intermediate_values"] == dump(source)["trial_intermediate_values"]


@pytest.mark.extended
def test_killed_deletion_changes_nothing_or_leaves_files_that_the_next_one_removes(
    start, end, url, tmp_path, artifacts
):
    """Killed before its commit, then after it."""
    for name in ("made", "other"):
        create_with_everything(url, artifacts, name)
    before, files = dump(url), list_files(artifacts)
    common = ("--yes", "--storage", url, "--artifacts", str(artifacts))
    rows = StatementGate(tmp_path / "rows", "DELETE FROM studies")
    end("delete", "made", *common, statements=rows)
    assert (dump(url), list_files(artifacts)) == (before, files)
    removal = CallGate(tmp_path / "files", "studies.artifacts:ArtifactFolders.mark_unowned")
    end("delete", "made", *common, calls=removal)
    assert query(url, "SELECT study_name FROM studies") == [("other",)]
    assert "made-folder/trial-1.checkpoint" in list_files(artifacts)
    line = error_of(start("delete", "missing", *common), code=2)
    assert line.startswith("error: study 'missing' is not in ")
    names = {f"other-folder/{name}" for names in FILES.values() for name in names}
    # The other study names the same files of the dashboard, as a copy by plain Optuna does.
    assert list_files(artifacts).keys() == {*names, "of-study", "of-trial"}
    finish(start("delete", "other", *common))
    assert (query(url, COUNT), list_files(artifacts)) == ([(0,)], {})


@pytest.mark.extended
def test_study_of_a_killed_worker_is_refused_until_its_lease_has_expired(held, run, sqlite_url):
    worker = held(**ONE | {"lease_seconds": 2})

    def manage(*arguments):
        return run(*arguments, "--storage", sqlite_url)

    refused = manage("rename", "quick", "new")
    assert refused.returncode == 2
    (line,) = refused.stderr.splitlines()
    assert f"/{worker.pid} holds trial" in line
    kill(worker)
    (shown,) = json.loads(manage("status", "quick", "--json").stdout)["workers"]
    assert shown["worker"] == f"{shown['host']}/{worker.pid}"
    assert shown["lease_seconds"] == 2
    assert shown["silent_seconds"] >= 0
    assert "last heard of" in manage("status", "quick").stdout
    done = manage("rename", "quick", "new", "--wait")
    assert done.returncode == 0, done.stderr
    assert f"waiting: {shown['worker']} holds trial" in done.stderr
    status = json.loads(manage("status", "new", "--json").stdout)
    assert (status["workers"], status["retries"]) == ([], {"lease_expired": 1})
