"""A full disk is waited for, a read-only one refused; neither loses a value."""

import contextlib
import subprocess

import pytest
from process_runner import FINISHED, query, search_starter, wait_until_running
from small_searches import assert_all_trials_match
from test_outages import ONE, wait_for_message

from search.backup import backup
from studies.storage.open import open_storage


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


def fill(disk):
    """Fill a disk to the last byte; return the file that fills it."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    return filler


def test_full_disk_is_reported_and_training_continues(
    runner, text, gate, small_disk, reference_curves
):
    """Neither database nor checkpoints can be written until space is freed."""
    url = f"sqlite:///{small_disk}/studies.db"
    worker = search_starter(runner, url, text)(gate=gate, **ONE)
    wait_until_running([worker], lambda: gate.held)
    filler = fill(small_disk)
    wait_for_message("unavailable (", worker)
    wait_for_message("cannot write the checkpoint", worker)
    filler.unlink()
    wait_for_message("storage available again", worker)
    gate.open()
    assert worker.wait() == 0
    assert_all_trials_match(url, reference_curves, ONE)


@pytest.mark.extended
def test_start_waits_to_create_a_file_on_a_full_disk(small_disk, runner, text, tmp_path):
    url = f"sqlite:///{small_disk}/studies.db"
    filler = fill(small_disk)
    search = search_starter(runner, url, text)(f"--artifacts={tmp_path}", **ONE)
    wait_for_message("storage unavailable (", search)
    assert list(small_disk.iterdir()) == [filler]
    filler.unlink()
    assert search.wait() == 0
    assert query(url, FINISHED) == [(0, "COMPLETE", 1)]


def test_backup_to_a_full_disk_leaves_nothing(small_disk, sqlite_url):
    open_storage(sqlite_url).close()
    filler = fill(small_disk)
    with pytest.raises(OSError, match=f"cannot copy the database to {small_disk}/copy.db"):
        backup.main([f"{small_disk}/copy.db", "--storage", sqlite_url], standalone_mode=False)
    assert list(small_disk.iterdir()) == [filler]


@pytest.mark.extended
def test_read_only_disk_is_refused_and_left_unchanged(runner, small_disk, text):
    url = f"sqlite:///{small_disk}/studies.db"
    search = search_starter(runner, url, text)
    assert search(**ONE).wait() == 0
    before = (small_disk / "studies.db").read_bytes()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    refused = search(**ONE)
    assert refused.wait() == 2
    assert refused.output.startswith("error: storage sqlite:")
    assert "check the address and that you may write there" in refused.output
    assert refused.output.count("\n") == 1
    status = search("--status")
    assert status.wait() == 0
    assert "complete  1" in status.output
    backup = runner.run("-m", "search.backup", f"{text}.db", "--storage", url)
    assert backup.returncode == 0, backup.stderr
    assert [path.name for path in small_disk.iterdir()] == ["studies.db"]
    assert (small_disk / "studies.db").read_bytes() == before
