"""What a search does when its database, its study, its corpus or the room on its disk is gone."""

import contextlib
import os
import shutil
import subprocess
from contextlib import closing
from pathlib import Path

import optuna
import psycopg
import pytest
from helpers import TEXT, create_small_study
from managed_studies import list_files
from process_runner import query
from small_searches import (
    BEATING,
    ONE,
    STATES,
    STEP,
    VALUES,
    assert_all_complete,
    assert_all_trials_match,
    error_of,
    finish,
    kill,
    wait_for_message,
)

from studies.storage.open import open_storage


@pytest.fixture
def file(tmp_path):
    """SQLite file of the searches, in a folder of its own."""
    (tmp_path / "data").mkdir()
    return tmp_path / "data" / "studies.db"


@pytest.fixture
def search_url(file):
    return f"sqlite:///{file}"


def delete_study(url):
    """Delete the study with Optuna, which silently leaves it if a worker writes meanwhile."""
    while "quick" in optuna.get_all_study_names(url):
        optuna.delete_study(study_name="quick", storage=url)


def delete_log(file):
    for suffix in ("-wal", "-shm"):
        Path(f"{file}{suffix}").unlink()


def replace(file):
    other = file.with_name("other")
    open_storage(f"sqlite:///{other}").close()
    other.replace(file)


@pytest.mark.parametrize(
    ("settings", "lose"),
    [
        (BEATING, Path.unlink),
        pytest.param(BEATING, replace, marks=pytest.mark.extended),
        pytest.param(ONE, Path.unlink, marks=pytest.mark.extended),
    ],
    ids=["at a heartbeat", "replaced", "at the end of a training"],
)
def test_search_ends_if_its_file_is_deleted_or_replaced(held, gate, file, settings, lose):
    worker = held(**settings)
    lose(file)
    left = file.read_bytes() if file.exists() else None
    if settings is ONE:
        gate.open()
    assert error_of(worker) == (
        f"error: {file} was deleted, moved or replaced while this search used it: move it back "
        "with its folders, or restore a backup, to resume"
    )
    assert (file.read_bytes() if file.exists() else None) == left


@pytest.mark.extended
def test_search_resumes_when_its_folder_is_moved_back(
    search, held, search_url, file, reference_curves
):
    worker = held(**BEATING)
    moved = file.parent.rename(file.parent.with_name("elsewhere"))
    assert error_of(worker).startswith(f"error: {file} was deleted, moved or replaced")
    moved.rename(file.parent)
    assert f"trial 0 resumes from step {STEP}" in finish(search(**BEATING))
    assert_all_trials_match(search_url, reference_curves, ONE)


@pytest.mark.extended
@pytest.mark.parametrize(
    ("url", "settings"),
    [("sqlite", BEATING), ("sqlite", ONE), ("postgresql", ONE)],
    indirect=["url"],
    ids=["at a heartbeat", "replaced", "at the end of a training"],
)
def test_deleted_study_ends_its_search(held, gate, url, settings, request):
    """Another study in its place, which on SQLite gets the same id, is left alone."""
    worker = held(url=url, **settings)
    delete_study(url)
    if is_replaced := "replaced" in request.node.name:
        with closing(open_storage(url)) as storage:
            create_small_study(storage, 2, "quick")
    if settings is ONE:
        gate.open()
    line = error_of(worker)
    assert line.startswith("error: study 'quick' was deleted from ")
    assert line.endswith(
        " while this search used it: restore it from a backup to resume, or run the same command "
        "to start it again"
    )
    assert query(url, STATES) == [("WAITING",)] * is_replaced


@pytest.mark.extended
def test_dropped_tables_end_a_search(held, postgresql_url):
    worker = held(url=postgresql_url, **BEATING)
    with psycopg.connect(postgresql_url.replace("+psycopg", "")) as database:
        database.execute("DROP SCHEMA public CASCADE")
    line = error_of(worker)
    assert line.startswith("error: storage postgresql+psycopg://")
    assert "was damaged or emptied while this search used it (relation" in line
    assert "restore it from a backup to resume" in line


# ------------------------------------------------------------------ a corpus that changes


@pytest.fixture
def corpus(tmp_path):
    """Corpus file of one test, with the text of the session's."""
    path = tmp_path / "corpus"
    path.write_bytes(TEXT)
    return path


def test_search_continues_with_the_text_that_it_read_and_later_workers_are_refused(
    search, held, gate, search_url, corpus, reference_curves
):
    """The file is overwritten in place, then cut and removed."""
    first = held(corpus=corpus, **ONE)
    with corpus.open("r+b") as file:
        file.write(bytes(b"0123456789" * len(TEXT))[: len(TEXT)])
    refused = error_of(search(corpus=corpus, **ONE), code=2)
    assert "exists with other settings: task.corpus.sha256" in refused
    os.truncate(corpus, 0)  # ends a process that has mapped the file, by SIGBUS
    corpus.unlink()
    assert "not found" in error_of(search(corpus=corpus, **ONE), code=2)
    gate.open()
    finish(first)
    assert_all_trials_match(search_url, reference_curves, ONE)
    assert query(search_url, VALUES) == reference_curves(VALUES, **ONE)


# ------------------------------------------------------------------ the log of an SQLite file


@pytest.mark.extended
def test_lost_log_costs_the_last_commits_at_most_and_one_without_its_file_is_refused(
    search, held, search_url, file, tmp_path, reference_curves
):
    """A copy of the folder of a killed search lacks the log, and another search has its path."""
    settings = ONE | {"lease_seconds": 1}
    kill(held(f"--artifacts={file.parent}/artifacts", **settings))
    copy = shutil.copytree(file.parent, tmp_path / "copy") / file.name
    delete_log(copy)
    url = f"sqlite:///{copy}"
    finish(search(f"--artifacts={copy.parent}/artifacts", url=url, **settings))
    assert_all_trials_match(url, reference_curves, ONE)

    file.unlink()
    before = list_files(file.parent)
    line = error_of(search(**ONE), code=2)
    assert "was deleted or moved without its log studies.db-wal: restore the file" in line
    assert list_files(file.parent) == before
    delete_log(file)
    finish(search(**ONE))
    assert query(search_url, STATES) == [("COMPLETE",)]


# ------------------------------------------------------------------ full and read-only disks


@pytest.fixture
def small_disk(tmp_path):
    """File system of two megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("a file system cannot be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def disk_url(small_disk):
    return f"sqlite:///{small_disk}/studies.db"


def fill(disk):
    """Fill a disk to the last byte; return the file that fills it."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    return filler


def test_full_disk_is_reported_and_training_continues(
    held, gate, small_disk, disk_url, reference_curves
):
    """Neither database nor checkpoints can be written until space is freed."""
    worker = held(f"--artifacts={small_disk}/artifacts", url=disk_url, **BEATING)
    filler = fill(small_disk)
    wait_for_message("unavailable (", worker)
    wait_for_message("cannot write the checkpoint", worker)
    filler.unlink()
    wait_for_message("storage available again", worker)
    gate.open()
    finish(worker)
    assert_all_trials_match(disk_url, reference_curves, ONE)


@pytest.mark.extended
def test_start_waits_to_create_a_file_on_a_full_disk(small_disk, search, disk_url):
    filler = fill(small_disk)
    worker = search(url=disk_url, **ONE)
    wait_for_message("storage unavailable (", worker)
    assert list(small_disk.iterdir()) == [filler]
    filler.unlink()
    finish(worker)
    assert_all_complete(disk_url, 1)


@pytest.mark.extended
def test_read_only_disk_is_refused_and_left_unchanged(
    small_disk, search, show_status, disk_url, runner, tmp_path
):
    finish(search(url=disk_url, **ONE))
    before = (small_disk / "studies.db").read_bytes()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    line = error_of(search(url=disk_url, **ONE), code=2)
    assert line.startswith("error: storage sqlite:")
    assert "check the address and that you may write there" in line
    assert "complete  1" in finish(show_status(disk_url))
    file = f"{tmp_path}/quick.jsonl"
    finish(runner.start("export-study", "quick", file, "--storage", disk_url))
    assert [path.name for path in small_disk.iterdir()] == ["studies.db"]
    assert (small_disk / "studies.db").read_bytes() == before
