"""A database or a study that is deleted during a search ends it with 1; nothing is lost unsaid."""

import re
import shutil
import signal
from pathlib import Path

import optuna
import pytest
from helpers import NO_SYNC, QUICK, create_small_study
from managed_studies import list_files
from process_runner import SETTINGS, query, search_starter, wait_until_running
from services import PostgreSQL
from small_searches import FOUR, STEP, assert_all_trials_match
from test_outages import ONE

from search import run as search_run
from search.backup import backup
from search.run import RunOptions, run_workers
from studies.errors import StorageError, StorageLostError
from studies.storage.open import open_storage

LONG = ONE | {"lease_seconds": 600}
"""One trial without a heartbeat during the test."""


@pytest.fixture
def folder(tmp_path):
    """Folder of the database."""
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


@pytest.fixture
def file_url(folder):
    return f"sqlite:///{folder}/studies.db"


@pytest.fixture
def search(runner, text, tmp_path):
    """Start a search whose checkpoints are not next to its database."""

    def start(url, *arguments, **settings):
        starter = search_starter(runner, url, text)
        return starter(f"--artifacts={tmp_path}/artifacts", *arguments, **settings)

    return start


@pytest.fixture
def held(search, gate):
    """Start a search and wait until the gate holds its trainings."""

    def start(url, *arguments, gate=gate, trainings=1, **settings):
        before = len(gate.held)
        command = search(url, *arguments, gate=gate, **settings)
        wait_until_running([command], lambda: len(gate.held) == before + trainings)
        return command

    return start


def error_of(command):
    """Wait until a search has ended with 1; return its error, which is one line."""
    assert command.wait() == 1, command.output
    assert "Traceback" not in command.output
    (line,) = command.stderr.splitlines()
    return line


def delete_study(url):
    """Delete the study with Optuna, which silently leaves it if a worker writes meanwhile."""
    while "quick" in optuna.get_all_study_names(url):
        optuna.delete_study(study_name="quick", storage=url)


def list_rescued(folder):
    return sorted(path.name for path in folder.glob("*.rescued*"))


def unlink(file: Path) -> None:
    file.unlink()


def replace(file: Path) -> None:
    other = file.with_name("other")
    open_storage(f"sqlite:///{other}").close()
    other.replace(file)


@pytest.mark.parametrize("lose", [unlink, pytest.param(replace, marks=pytest.mark.extended)])
def test_lost_file_is_rescued_and_the_search_resumes(
    search, held, file_url, folder, reference_curves, lose
):
    file = folder / "studies.db"
    worker = held(file_url, **ONE)
    lose(file)
    left = file.read_bytes() if file.exists() else None
    line = error_of(worker)
    assert line == (
        f"error: {file} was deleted, moved or replaced while this search used it; its content was "
        f"rescued: delete studies.db-wal and studies.db-shm, then move {file}.rescued to {file} "
        "to resume"
    )
    assert (file.read_bytes() if file.exists() else None) == left
    assert not list(folder.glob("*.part*"))
    for suffix in ("-wal", "-shm"):
        (folder / f"studies.db{suffix}").unlink()
    (folder / "studies.db.rescued").replace(file)
    again = search(file_url, **ONE)
    assert again.wait() == 0
    assert f"trial 0 resumes from step {STEP}" in again.output
    assert_all_trials_match(file_url, reference_curves, ONE)


@pytest.mark.extended
def test_moved_folder_is_found(search, held, file_url, folder, reference_curves):
    worker = held(file_url, **ONE)
    moved = folder.rename(folder.with_name("elsewhere"))
    line = error_of(worker)
    assert line.startswith(f"error: {folder}/studies.db was deleted, moved or replaced")
    assert f"its results are in {moved}/studies.db: move it" in line
    assert list_rescued(moved) == []
    assert not folder.exists()
    moved.rename(folder)
    assert search(file_url, **ONE).wait() == 0
    assert_all_trials_match(file_url, reference_curves, ONE)


@pytest.mark.extended
def test_result_of_a_training_is_not_written_to_a_deleted_file(held, file_url, folder, gate):
    worker = held(file_url, **LONG)
    (folder / "studies.db").unlink()
    gate.open()
    assert "its content was rescued" in error_of(worker)
    states = query(f"sqlite:///{folder}/studies.db.rescued", "SELECT state FROM trials")
    assert states == [("RUNNING",)]


@pytest.mark.extended
def test_deleted_file_is_rescued_once_by_several_searches(held, file_url, folder):
    """And an earlier rescue of another content stays as it is."""
    (folder / "studies.db.rescued").write_text("earlier")
    workers = [held(file_url, **FOUR | {"lease_seconds": 4}) for _ in range(2)]
    (folder / "studies.db").unlink()
    for worker in workers:
        assert f"move {folder}/studies.db.rescued-2 to" in error_of(worker)
    assert list_rescued(folder) == ["studies.db.rescued", "studies.db.rescued-2"]
    assert (folder / "studies.db.rescued").read_text() == "earlier"


@pytest.mark.extended
def test_worker_processes_report_a_deleted_file_in_one_line(held, file_url, folder, tmp_path):
    search = held(file_url, "--workers=2", trainings=2, **FOUR | {"lease_seconds": 4})
    (folder / "studies.db").unlink()
    assert "its content was rescued" in error_of(search)
    assert list_rescued(folder) == ["studies.db.rescued"]
    assert len(list(tmp_path.glob("artifacts/*/trial-*.checkpoint"))) == 2


@pytest.mark.extended
def test_file_that_is_deleted_at_the_end_of_a_search_is_reported(
    search, file_url, folder, text, monkeypatch
):
    """All trials are finished; the summary would count none."""
    assert search(file_url, **ONE).wait() == 0
    settings = SETTINGS | {key.replace("_", ".", 1): value for key, value in ONE.items()}
    overrides = tuple(f"{key}={value}" for key, value in settings.items())
    monkeypatch.setattr(search_run, "_run_worker", lambda *_: (folder / "studies.db").unlink())
    with pytest.raises(StorageLostError, match="its content was rescued"):
        run_workers(RunOptions(QUICK, file_url, corpus=str(text), overrides=overrides))
    rescued = f"sqlite:///{folder}/studies.db.rescued"
    assert query(rescued, "SELECT state FROM trials") == [("COMPLETE",)]


@pytest.mark.extended
@pytest.mark.parametrize(
    ("url", "settings"),
    [("sqlite", ONE), ("postgresql", LONG)],
    indirect=["url"],
    ids=["at a heartbeat", "at the end of a training"],
)
def test_deleted_study_ends_its_search(search, held, gate, url, settings):
    worker = held(url, **settings)
    delete_study(url)
    if settings is LONG:
        gate.open()
    line = error_of(worker)
    assert line.startswith("error: study 'quick' was deleted from ")
    assert line.endswith(
        " while this search used it: restore it from a backup to resume, or run the same command "
        "to start it again"
    )
    assert "0 of 0 finished" not in worker.output
    assert "claimed by another worker" not in worker.output
    status = search(url, "--status")
    assert status.wait() == 2
    assert "study 'quick' is not in" in status.stderr
    assert "(existing studies: none)" in status.stderr


@pytest.mark.extended
def test_study_that_replaced_a_deleted_one_is_left_alone(held, gate, file_url):
    """It has the same id, and its trials have the same ids."""
    worker = held(file_url, **LONG)
    delete_study(file_url)
    storage = open_storage(file_url)
    create_small_study(storage, 2, "quick")
    storage.close()
    gate.open()
    assert "study 'quick' was deleted from" in error_of(worker)
    assert query(file_url, "SELECT number, state FROM trials") == [(0, "WAITING"), (1, "WAITING")]


@pytest.mark.extended
def test_dropped_tables_end_a_search(held, postgresql_url):
    worker = held(postgresql_url, **ONE)
    psycopg = pytest.importorskip("psycopg")
    with psycopg.connect(postgresql_url.replace("+psycopg", "")) as database:
        database.execute("DROP SCHEMA public CASCADE")
    line = error_of(worker)
    assert line.startswith("error: storage postgresql+psycopg://")
    assert "was damaged or emptied while this search used it (relation" in line
    assert "restore it from a backup to resume" in line


@pytest.mark.extended
def test_dropped_database_ends_a_search_after_the_outage_limit(held, tmp_path):
    with PostgreSQL(NO_SYNC) as server:
        url = server.new_database()
        worker = held(url, patient=False, **ONE | {"outage_seconds": 2})
        server.execute(f"DROP DATABASE {url.rpartition('/')[2]} WITH (FORCE)")
        line = error_of(worker)
    assert line.startswith("error: storage unavailable for")
    assert "does not exist" in line
    assert list(tmp_path.glob("artifacts/*/trial-0.checkpoint"))


# ------------------------------------------------------------------ copies


@pytest.mark.extended
@pytest.mark.parametrize("copy", [False, True], ids=["log deleted", "copied without the log"])
def test_database_without_its_log_holds_the_study(
    search, held, file_url, folder, tmp_path, reference_curves, copy
):
    """Deleted after a SIGKILL, or copied during a search."""
    worker = held(file_url, **FOUR | {"lease_seconds": 1})
    url = f"sqlite:///{tmp_path}/copy.db" if copy else file_url
    if copy:
        shutil.copyfile(folder / "studies.db", tmp_path / "copy.db")
    worker.send(signal.SIGKILL)
    worker.wait()
    if not copy:
        for suffix in ("-wal", "-shm"):
            (folder / f"studies.db{suffix}").unlink()
    assert query(url, "SELECT count(*) FROM trials") == [(4,)]
    assert search(url, **FOUR | {"lease_seconds": 1}).wait() == 0
    assert_all_trials_match(url, reference_curves, FOUR)


DAMAGE = {
    "index of other bytes": lambda wal, shm: shm.write_bytes(b"\xa5" * shm.stat().st_size),
    "log cut": lambda wal, shm: wal.write_bytes(wal.read_bytes()[: wal.stat().st_size // 2]),
    "log of other bytes": lambda wal, shm: wal.write_bytes(b"\xa5" * wal.stat().st_size),
}
"""What happens to the log (``-wal``) and its index (``-shm``) while no process has the file."""


@pytest.mark.extended
@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_log_costs_the_last_commits_at_most(
    search, held, file_url, folder, reference_curves, kind
):
    worker = held(file_url, **FOUR | {"lease_seconds": 1})
    worker.send(signal.SIGKILL)
    worker.wait()
    DAMAGE[kind](folder / "studies.db-wal", folder / "studies.db-shm")
    resumed = search(file_url, **FOUR | {"lease_seconds": 1})
    assert resumed.wait() == 0, resumed.output
    assert "Traceback" not in resumed.output
    assert query(file_url, "PRAGMA integrity_check") == [("ok",)]
    assert_all_trials_match(file_url, reference_curves, FOUR)


@pytest.mark.extended
def test_new_database_does_not_take_the_log_of_a_deleted_one(search, held, file_url, folder):
    worker = held(file_url, **FOUR)
    worker.send(signal.SIGKILL)
    worker.wait()
    (folder / "studies.db").unlink()
    before = list_files(folder)
    refused = search(file_url, **ONE)
    assert refused.wait() == 2
    (line,) = refused.stderr.splitlines()
    assert "was deleted or moved without its log studies.db-wal: restore the file" in line
    assert list_files(folder) == before
    for path in folder.iterdir():
        path.unlink()
    assert search(file_url, **ONE).wait() == 0
    assert query(file_url, "SELECT state FROM trials") == [("COMPLETE",)]


def complete_trials(url):
    """Return the number of points in the curve of each complete trial that has a value."""
    rows = query(
        url,
        "SELECT number, (SELECT count(*) FROM trial_intermediate_values i "
        "WHERE i.trial_id = t.trial_id) FROM trials t JOIN trial_values v "
        "ON v.trial_id = t.trial_id WHERE state = 'COMPLETE'",
    )
    return dict(rows)


@pytest.mark.extended
def test_backups_of_a_running_search_are_complete_and_resume(
    runner, search, gate, file_url, tmp_path, reference_curves
):
    """Backups are taken while two workers train and write."""
    settings = FOUR | {"lease_seconds": 1}
    workers = [search(file_url, gate=gate, **settings) for _ in range(2)]
    wait_until_running(workers, lambda: len(gate.held) == 2)
    gate.open()
    backups = []
    while not backups or not all(worker.ended.is_set() for worker in workers):
        target = tmp_path / f"backup-{len(backups)}.db"
        before = complete_trials(file_url)
        done = runner.run("-m", "search.backup", str(target), "--storage", file_url)
        assert done.returncode == 0, done.stderr
        copied = complete_trials(f"sqlite:///{target}")
        assert set(copied) >= set(before)
        assert set(copied.values()) <= {10}, "complete trials have complete curves"
        assert f"{target}: 1 study, {len(copied)} of 4 trials finished" in done.stdout
        assert ("or unfinished trials restart from step 0" in done.stdout) == (len(copied) < 4)
        assert query(f"sqlite:///{target}", "PRAGMA integrity_check") == [("ok",)]
        backups.append((target, copied))
    assert [worker.wait() for worker in workers] == [0, 0]
    assert_all_trials_match(file_url, reference_curves, FOUR)
    assert sorted(tmp_path.glob("backup-*")) == sorted(target for target, _ in backups)
    first, copied = backups[0]
    status = search(f"sqlite:///{first}", "--status")
    assert status.wait() == 0
    assert f"complete  {len(copied)}\n" in status.output
    assert search(f"sqlite:///{first}", **settings).wait() == 0
    assert_all_trials_match(f"sqlite:///{first}", reference_curves, FOUR)


def back_up(target: Path, url: str) -> None:
    backup.main([str(target), "--storage", url], standalone_mode=False)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("studies.db", "studies.db is the storage itself: expected a new file"),
        ("link.db", "link.db is the storage itself: expected a new file"),
        ("notes", "notes exists already: expected a new file"),
        ("lost.db", "lost.db-wal is left of another file of that name: delete it, or use another"),
        ("missing/copy.db", "missing does not exist: create it, or use another file"),
    ],
)
def test_backup_to_an_unsuitable_file_is_refused(file_url, folder, target, message):
    open_storage(file_url).close()
    (folder / "notes").write_text("a shopping list")
    (folder / "link.db").symlink_to("studies.db")
    (folder / "lost.db-wal").write_text("a log")
    before = list_files(folder)
    with pytest.raises(StorageError, match=re.escape(message)) as refused:
        back_up(folder / target, file_url)
    assert "\n" not in str(refused.value)
    assert list_files(folder) == before


def test_damaged_storage_is_not_backed_up(file_url, folder):
    storage = open_storage(file_url)
    create_small_study(storage, 500)
    storage.close()
    file = folder / "studies.db"
    content = bytearray(file.read_bytes())
    for page in range(30, len(content) // 4096):
        content[page * 4096 : page * 4096 + 8] = bytes(8)
    file.write_bytes(content)
    with pytest.raises(OSError, match="the database is damaged"):
        back_up(folder / "copy.db", file_url)
    assert list_files(folder) == {"studies.db": bytes(content)}
