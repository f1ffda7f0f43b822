"""Files of studies: atomic writes, quarantine, eviction, and what killed writers leave."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
from helpers import with_text
from invocation import refused

from rnn.errors import UserError
from search.stored_models import write_folder
from search.worker.lockstep import checkpoint_identity
from studies.artifacts import ArtifactFolders, TrialFiles
from studies.atomic_files import STALE_SECONDS, atomic_write
from studies.config import StudyConfig
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


# ------------------------------------------------------------------ checkpoints and weights


@pytest.fixture
def folders(tmp_path):
    return ArtifactFolders(str(tmp_path / "artifacts"), "sqlite:///none.db")


def test_checkpoint_is_read_as_written_until_removed(folders):
    checkpoints = folders.trial_files("quick-1", "checkpoint")
    others = folders.trial_files("quick-2", "checkpoint")
    assert checkpoints.read(3) is None
    checkpoints.remove(3)
    for number, content in ((3, b"first"), (3, b"second"), (4, b"another")):
        checkpoints.write(number, content)
    others.write(3, b"of another study")
    assert checkpoints.read(3) == b"second"
    checkpoints.remove(3)
    assert (checkpoints.read(3), checkpoints.read(4)) == (None, b"another")
    path = checkpoints.quarantine(4)
    assert checkpoints.read(4) is None
    assert path.read_bytes() == b"another"
    assert others.read(3) == b"of another study"


@pytest.mark.parametrize("place", ["/no/such/folder", "{tmp}/file", "ftp://host/x", "s3://"])
def test_unusable_folder_is_refused_and_nothing_created(tmp_path, place):
    (tmp_path / "file").write_text("a file")
    place = place.format(tmp=tmp_path)
    with refused(UserError, place, tmp_path):
        ArtifactFolders(place, "sqlite:///none.db")


def test_checkpoint_identity_consists_of_named_values_and_no_class_name():
    switches = {"input_gate": False, "forget_gate": True, "output_gate": False}
    switches |= {"state_gate": True, "residual": True, "state_source": "new"}
    params = {"layers": 2, "state_size": 8, **switches, "replicate": 1}
    config = StudyConfig.model_validate(
        {
            "precision": "fp32",
            "seed": 3,
            "space": {"layers": [2], "state_size": [8]},
            "training": {"steps": 20, "batch_size": 6, "sequence_length": 9, "log_every": 2},
            "evaluation": {"average": 0.5},
        }
    )
    assert checkpoint_identity(params, with_text(config)) == (
        '{"architecture": "01011-new-2-8-state", "bptt_steps": 1, "cell_sha256": null, '
        '"optimizer": {"beta1": 0.9, "beta2": 0.999, "gradient_clipping": 0.0, '
        '"learning_rate": 0.001, "momentum": 0.9, "name": "adam", "schedule": "constant", '
        '"warmup_steps": 0, "weight_decay": 0.0}, "precision": "fp32", '
        '"replicate": 1, "task": {"corpus": {"length": 100, "sha256": "ab", "split": [90, 95]}, '
        '"data_sha256": null, "eval_lengths": [], "loss": "next token", "metrics": {}, '
        '"name": "text", "predicts_classes": true, "reads_tokens": true, "resets_often": false, '
        '"sha256": null, "steps": null, "values": {"tokenizer": "bytes"}, "version": 0}, '
        '"training": {"average_fraction": 0.5, "batch_size": 6, "eval_every": null, '
        '"log_every": 2, "seed": 3, "sequence_length": 9, "smoothing": 0.95, "steps": 20}, '
        '"update_every": 1}'
    )


def test_eviction_keeps_the_weights_of_the_best_trials(folders):
    weights = folders.trial_files("quick-1", "safetensors")
    others = folders.trial_files("quick-10", "safetensors")
    assert weights.list_trials() == set()
    weights.evict([3, 1], 1)  # nothing to remove
    for number in (1, 2, 3, 11, 12):
        weights.write(number, f"of {number}".encode())
    others.write(1, b"of another study")
    weights.evict([12, 3, 7, 2, 11], 2)
    assert weights.list_trials() == {1, 3, 12}  # 1 was not named: its trial may not be recorded yet
    assert (weights.read(3), weights.read(2)) == (b"of 3", None)
    weights.evict([12, 3, 1], 0)
    assert weights.list_trials() == set()
    assert others.list_trials() == {1}
