"""The storage goes away in mid-search, and comes back or does not: no value is lost."""

import contextlib
import signal
import sqlite3
import subprocess
import threading
import time

import pytest
from helpers import NO_SYNC
from nursery import CURVES, FINISHED, query, recorded, searching, until
from services import PostgreSQL

from reports import command_line
from reports.command_line import report_at_the_end

FOUR = {
    "training_steps": 3000,
    "training_log_every": 50,
    "checkpoint_seconds": 0.5,
    "lease_seconds": 4,
    "space_layers": "[1]",
    "space_state_size": "[6, 7]",
    "space_exclude": "[]",
    "space_input_gate": "[false]",
    "space_forget_gate": "[true]",
    "space_output_gate": "[false]",
    "space_state_gate": "[true]",
    "space_residual": "[true]",
    "space_state_source": "['new', 'both']",
}
"""Four points, of a second or so each."""

LONG = FOUR | {
    "training_steps": 9000,
    "training_log_every": 250,
    "space_state_size": "[6]",
    "space_state_source": "['new']",
}
"""One point, of some seconds."""


def both_have_begun(url):
    """Who finds no server at its start is to say so and leave."""
    return query(url, "SELECT count(*) FROM trials WHERE state = 'RUNNING'") == [(2,)]


def finished_as_if_nothing_had_been(url, undisturbed, settings=FOUR):
    points = len({number for number, *_ in undisturbed(**settings)})
    assert query(url, FINISHED) == [(number, "COMPLETE", 1) for number in range(points)]
    assert query(url, CURVES) == undisturbed(**settings)


def no_setbacks(url):
    return not query(url, "SELECT * FROM trial_user_attributes WHERE key = 'setbacks'")


@pytest.fixture(scope="module")
def stoppable():
    with PostgreSQL(NO_SYNC) as server:
        yield server


@pytest.fixture
def server(stoppable):
    """A server that nobody else uses, and that may be stopped."""
    yield stoppable
    stoppable.restore()


def test_postgresql_that_is_stopped_for_two_leases(server, nursery, text, undisturbed, tmp_path):
    url = server.new_database()
    search = searching(nursery, url, text)
    workers = [search(f"--artifacts={tmp_path}/artifacts", **FOUR) for _ in range(2)]
    until(lambda: len(recorded(url)) > 5 and both_have_begun(url))
    server.stop()
    time.sleep(9)
    server.start()
    for worker in workers:
        assert worker.wait() == 0
        assert "the storage is away" in worker.output
        assert "the storage is back" in worker.output
    finished_as_if_nothing_had_been(url, undisturbed)
    assert no_setbacks(url), "who trained on was taken for dead"


def test_postgresql_that_breaks_down_again_and_again(server, nursery, text, undisturbed, tmp_path):
    url = server.new_database()
    search = searching(nursery, url, text)
    workers = [search(f"--artifacts={tmp_path}/artifacts", **FOUR) for _ in range(2)]
    until(lambda: len(recorded(url)) > 5 and both_have_begun(url))
    for _ in range(3):
        server.stop("immediate")
        server.start()
        time.sleep(0.5)
    for worker in workers:
        assert worker.wait() == 0
    finished_as_if_nothing_had_been(url, undisturbed)


def test_postgresql_that_does_not_come_back_for_long(server, nursery, text, undisturbed, tmp_path):
    """The worker writes a checkpoint, says what is wrong, and leaves; the next goes on."""
    url = server.new_database()
    search = searching(nursery, url, text)
    words = (f"--artifacts={tmp_path}/artifacts",)
    first = search(*words, **LONG | {"outage_seconds": 2, "checkpoint_seconds": 1000})
    until(lambda: len(recorded(url)) > 2)
    server.stop()
    assert first.wait() == 1
    last = first.output.strip().splitlines()[-1]
    assert last.startswith("error: the storage has been away for")
    assert "waited for are 2 s; what is recorded is kept; mend it and run again" in last
    assert "Traceback" not in first.output
    assert len(list(tmp_path.glob("artifacts/*/trial-*.checkpoint"))) == 1
    server.start()
    second = search(*words, **LONG)
    assert second.wait() == 0
    assert "goes on from step" in second.output
    finished_as_if_nothing_had_been(url, undisturbed, LONG)


def test_a_trial_that_is_trained_when_the_server_goes_away(
    server, nursery, text, undisturbed, tmp_path
):
    """Nothing is left to be trained, and there is nobody to tell the result to."""
    url = server.new_database()
    search = searching(nursery, url, text)
    words = (f"--artifacts={tmp_path}/artifacts",)
    first = search(*words, **LONG | {"outage_seconds": 9, "checkpoint_seconds": 1000})
    until(lambda: len(recorded(url)) > 2)
    server.stop()
    assert first.wait() == 1
    assert len(list(tmp_path.glob("artifacts/*/trial-*.checkpoint"))) == 1
    server.start()
    second = search(*words, **LONG)
    assert second.wait() == 0
    assert "trial 0 goes on from step 9,000" in second.output
    finished_as_if_nothing_had_been(url, undisturbed, LONG)


def test_the_report_at_the_end_waits_for_a_server_that_is_away(
    server, nursery, text, tmp_path, capsys, monkeypatch
):
    url = server.new_database()
    search = searching(nursery, url, text)
    made = search(f"--artifacts={tmp_path}/artifacts", **FOUR | {"training_steps": 100})
    assert made.wait() == 0
    server.stop()
    monkeypatch.setattr(command_line, "OUTAGE_SECONDS", 1)
    report_at_the_end(url, ["quick"])
    said = capsys.readouterr().out
    assert "no report: storage postgresql+psycopg://" in said
    assert said.count("\n") == 2
    monkeypatch.setattr(command_line, "OUTAGE_SECONDS", 60)
    back = threading.Timer(2, server.start)
    back.start()
    try:
        report_at_the_end(url, ["quick"])
    finally:
        back.join()
    waited, report = capsys.readouterr().out.splitlines()
    assert waited == "the storage is away; the report waits for it"
    assert report.startswith("report: ")


def test_a_server_that_takes_no_writes_for_a_while(server, nursery, text, undisturbed, tmp_path):
    """As one does that has become another's stand-by."""
    url = server.new_database()
    search = searching(nursery, url, text)
    worker = search(f"--artifacts={tmp_path}/artifacts", **FOUR)
    until(lambda: len(recorded(url)) > 5)
    server.execute("ALTER SYSTEM SET default_transaction_read_only = on")
    server.execute("SELECT pg_reload_conf()")
    until(lambda: "read-only transaction" in worker.output)
    before = len(recorded(url))
    time.sleep(1)
    assert len(recorded(url)) == before
    server.execute("ALTER SYSTEM RESET default_transaction_read_only")
    server.execute("SELECT pg_reload_conf()")
    assert worker.wait() == 0
    finished_as_if_nothing_had_been(url, undisturbed)


def test_a_stop_while_the_server_is_away(server, nursery, text, undisturbed, tmp_path):
    url = server.new_database()
    search = searching(nursery, url, text)
    words = (f"--artifacts={tmp_path}/artifacts",)
    first = search(*words, **LONG)
    until(lambda: len(recorded(url)) > 2)
    server.stop()
    until(lambda: "the storage is away" in first.output)
    first.send(signal.SIGTERM)
    assert first.wait(20) == 143
    assert "Traceback" not in first.output
    server.start()
    second = search(*words, **LONG)
    assert second.wait() == 0
    assert "goes on from step" in second.output
    finished_as_if_nothing_had_been(url, undisturbed, LONG)


def test_a_server_that_has_stopped_to_answer(server, nursery, text, undisturbed, tmp_path):
    """All its processes are frozen: connections are taken, and nothing comes back."""
    url = server.new_database()
    search = searching(nursery, url, text)
    worker = search(f"--artifacts={tmp_path}/artifacts", **FOUR)
    until(lambda: len(recorded(url)) > 5)
    server.signal(signal.SIGSTOP)
    try:
        until(lambda: "the storage is away" in worker.output)
    finally:
        server.signal(signal.SIGCONT)
    assert worker.wait() == 0
    finished_as_if_nothing_had_been(url, undisturbed)


def test_a_stop_while_the_server_does_not_answer(server, nursery, text, undisturbed, tmp_path):
    url = server.new_database()
    search = searching(nursery, url, text)
    words = (f"--artifacts={tmp_path}/artifacts",)
    first = search(*words, **LONG)
    until(lambda: len(recorded(url)) > 2)
    server.signal(signal.SIGSTOP)
    try:
        first.send(signal.SIGTERM)
        assert first.wait(20) == 143
    finally:
        server.signal(signal.SIGCONT)
    assert "its lease has run out" in first.output
    second = search(*words, **LONG)
    assert second.wait() == 0
    assert "goes on from step" in second.output
    finished_as_if_nothing_had_been(url, undisturbed, LONG)


def test_a_file_that_another_program_has_locked(nursery, sqlite_url, text, undisturbed, tmp_path):
    search = searching(nursery, sqlite_url, text)
    workers = [search(**FOUR) for _ in range(2)]
    until(lambda: len(recorded(sqlite_url)) > 5)
    other = sqlite3.connect(tmp_path / "studies.db", isolation_level=None, timeout=60)
    other.execute("BEGIN IMMEDIATE")
    time.sleep(9)  # longer than two leases
    other.execute("ROLLBACK")
    other.close()
    for worker in workers:
        assert worker.wait() == 0
        assert "the storage is away (it does not answer)" in worker.output
    finished_as_if_nothing_had_been(sqlite_url, undisturbed)
    assert no_setbacks(sqlite_url)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of two megabytes."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("a file system cannot be mounted here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(disk):
    """Fill a disk to the last byte; return what is to be removed."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    return filler


def test_a_full_disk(nursery, small_disk, text, undisturbed):
    """Neither the database nor a checkpoint can grow; both can when there is room again."""
    url = f"sqlite:///{small_disk}/studies.db"
    worker = searching(nursery, url, text)(**LONG)
    until(lambda: len(recorded(url)) > 2)
    filler = fill(small_disk)
    until(lambda: "the storage is away" in worker.output)
    until(lambda: "could not be written" in worker.output)
    time.sleep(1)
    filler.unlink()
    assert worker.wait() == 0
    assert "the storage is back" in worker.output
    finished_as_if_nothing_had_been(url, undisturbed, LONG)


def test_a_full_disk_that_nobody_clears(nursery, small_disk, text, undisturbed):
    url = f"sqlite:///{small_disk}/studies.db"
    search = searching(nursery, url, text)
    worker = search(**FOUR, outage_seconds=1)
    until(lambda: len(recorded(url)) > 5)
    filler = fill(small_disk)
    assert worker.wait() == 1
    last = worker.output.strip().splitlines()[-1]
    assert last.startswith("error: the storage has been away for")
    assert "Traceback" not in worker.output
    filler.unlink()
    assert search(**FOUR).wait() == 0
    finished_as_if_nothing_had_been(url, undisturbed)


def test_a_read_only_disk_is_refused_and_left_as_it_is(nursery, small_disk, text):
    url = f"sqlite:///{small_disk}/studies.db"
    search = searching(nursery, url, text)
    assert search(**FOUR).wait() == 0
    before = (small_disk / "studies.db").read_bytes()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    refused = search(**FOUR)
    assert refused.wait() == 2
    assert refused.output.startswith("error: storage sqlite:")
    assert "check the address and that you may write there" in refused.output
    assert refused.output.count("\n") == 1
    told = search("--status")
    assert told.wait() == 0
    assert "complete  4" in told.output
    left = sorted(path.name for path in small_disk.iterdir())
    assert left == ["studies.db", "studies.db.artifacts", "studies.db.weights"]
    assert (small_disk / "studies.db").read_bytes() == before


def test_a_read_only_file_is_refused_and_left_as_it_is(nursery, small_disk, text):
    """The folder can be written to, the file cannot, not even by its owner."""
    file = small_disk / "studies.db"
    search = searching(nursery, f"sqlite:///{file}", text)
    assert search(**FOUR).wait() == 0
    before = file.read_bytes()
    subprocess.run(["mount", "--bind", str(file), str(file)], check=True)
    subprocess.run(["mount", "-o", "remount,ro,bind", str(file)], check=True)
    try:
        refused = search(**FOUR)
        assert refused.wait() == 2
        assert refused.output.startswith("error: storage sqlite:")
        assert "check the address and that you may write there" in refused.output
        assert refused.output.count("\n") == 1
        assert file.read_bytes() == before
    finally:
        subprocess.run(["umount", str(file)], check=True)
    assert search(**FOUR).wait() == 0
