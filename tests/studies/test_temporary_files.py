"""Temporary files of killed writers are removed later; those of writers at work are not."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from search.stored_models import write_folder
from studies.artifacts import ArtifactFolders, TrialFiles
from studies.atomic_files import STALE_SECONDS, atomic_write
from studies.storage.open import open_storage

RANDOM = "0123456789abcdef" * 2

FOREIGN = ("studies.db.part", f"studies.db.{RANDOM}.part.gz", f"my-studies.db.{RANDOM}.part")
"""Names that are not those of temporary files of ``studies.db``."""


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def make_old(folder):
    """Let all files of a folder be a little too old."""
    old = time.time() - STALE_SECONDS - 60
    for path in folder.rglob("*"):
        os.utime(path, (old, old))


def run_until_killed(method, function, *arguments):
    """Call a function in a process that is killed when it calls a method of ``Path``."""

    def run():
        setattr(Path, method, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        function(*arguments)

    child = multiprocessing.get_context("fork").Process(target=run)
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL


def test_files_of_killed_creators_are_removed_by_the_next_start(tmp_path, sqlite_url):
    run_until_killed("hardlink_to", open_storage, sqlite_url)
    assert len(names(tmp_path)) == 1
    young = f"studies.db.{RANDOM[::-1]}.part"
    for _ in ("new", "existing"):
        for suffix in ("", "-wal", "-shm", "-journal"):
            (tmp_path / f"studies.db.{RANDOM}.part{suffix}").touch()
        for name in FOREIGN:
            (tmp_path / name).touch()
        make_old(tmp_path)
        (tmp_path / young).touch()
        open_storage(sqlite_url).close()
        assert names(tmp_path) == sorted((*FOREIGN, young, "studies.db"))


def test_killed_writer_leaves_the_last_file_and_the_next_write_removes_what_it_left(tmp_path):
    """Also if that is of another trial, because the same one may not be written again."""
    checkpoints = TrialFiles(tmp_path / "s", "checkpoint")
    checkpoints.write(1, b"whole")
    run_until_killed("replace", checkpoints.write, 1, b"new")
    assert checkpoints.read(1) == b"whole"
    checkpoints.write(2, b"another")
    assert len(names(tmp_path / "s")) == 3, "the third may be of a writer at work"
    make_old(tmp_path / "s")
    checkpoints.write(2, b"another")
    assert names(tmp_path / "s") == ["trial-1.checkpoint", "trial-2.checkpoint"]


def test_files_of_killed_writers_are_removed_when_a_study_is_finished(tmp_path):
    kept = {"trial-1.part", f"notes.txt.{RANDOM}.part", "mine.checkpoint", "trial-3.quarantined"}
    kept.add(f"trial-1.checkpoint.{RANDOM}.part.gz")
    kept.add("trial-4.safetensors")
    left = {"trial-2.checkpoint", f"trial-1.checkpoint.{RANDOM}.part"}
    left.add(f"trial-1.safetensors.{RANDOM}.part")
    (tmp_path / "s").mkdir()
    for name in kept | left:
        (tmp_path / "s" / name).touch()
    ArtifactFolders(str(tmp_path), "sqlite:///none.db").clear("s")
    assert {*names(tmp_path / "s")} == kept


@pytest.mark.parametrize(
    ("name", "method", "write", "content"),
    [
        ("ü" * 120 + ".html", "replace", atomic_write, [b"whole"]),
        ("network", "rename", write_folder, {"a": b"1"}),
    ],
    ids=["report", "export"],
)
def test_file_or_folder_of_a_killed_writer_is_removed_by_the_next_one(
    tmp_path, name, method, write, content
):
    path, foreign = tmp_path / name, tmp_path / f"another.html.{RANDOM}.part"
    run_until_killed(method, write, path, content)
    foreign.touch()
    assert len(names(tmp_path)) == 2
    make_old(tmp_path)
    write(path, content)
    assert names(tmp_path) == sorted([name, foreign.name])
