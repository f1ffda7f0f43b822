"""A full disk is waited for, a read-only one refused; neither loses a value."""

import contextlib
import subprocess

import pytest
from small_searches import (
    BEATING,
    ONE,
    assert_all_complete,
    assert_all_trials_match,
    error_of,
    finish,
    wait_for_message,
)


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
def search_url(small_disk):
    return f"sqlite:///{small_disk}/studies.db"


def fill(disk):
    """Fill a disk to the last byte; return the file that fills it."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    return filler


def test_full_disk_is_reported_and_training_continues(
    held, gate, small_disk, search_url, reference_curves
):
    """Neither database nor checkpoints can be written until space is freed."""
    worker = held(f"--artifacts={small_disk}/artifacts", **BEATING)
    filler = fill(small_disk)
    wait_for_message("unavailable (", worker)
    wait_for_message("cannot write the checkpoint", worker)
    filler.unlink()
    wait_for_message("storage available again", worker)
    gate.open()
    finish(worker)
    assert_all_trials_match(search_url, reference_curves, ONE)


@pytest.mark.extended
def test_start_waits_to_create_a_file_on_a_full_disk(small_disk, search, search_url):
    filler = fill(small_disk)
    worker = search(**ONE)
    wait_for_message("storage unavailable (", worker)
    assert list(small_disk.iterdir()) == [filler]
    filler.unlink()
    finish(worker)
    assert_all_complete(search_url, 1)


@pytest.mark.extended
def test_read_only_disk_is_refused_and_left_unchanged(
    small_disk, search, show_status, search_url, runner, tmp_path
):
    finish(search(**ONE))
    before = (small_disk / "studies.db").read_bytes()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    line = error_of(search(**ONE), code=2)
    assert line.startswith("error: storage sqlite:")
    assert "check the address and that you may write there" in line
    assert "complete  1" in finish(show_status())
    file = f"{tmp_path}/quick.jsonl"
    finish(runner.start("export-study", "quick", file, "--storage", search_url))
    assert [path.name for path in small_disk.iterdir()] == ["studies.db"]
    assert (small_disk / "studies.db").read_bytes() == before
