"""The storage goes away in mid-search, and comes back or does not: no value is lost."""

import contextlib
import signal
import sqlite3
import subprocess

import pytest
from helpers import NO_SYNC
from hooks import Clock, Gate
from process_runner import CURVES, FINISHED, query, search_starter, wait_until_running
from services import PostgreSQL

from reports import cli as command_line
from reports.cli import write_final_report

FOUR = {
    "training_steps": 200,
    "training_log_every": 20,
    "checkpoint_seconds": 0.5,
    "lease_seconds": 600,
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
"""Four trials."""

ONE = FOUR | {"space_state_size": "[6]", "space_state_source": "['new']", "lease_seconds": 4}
"""One trial, of which a single worker says four times in four seconds that it holds it."""

STEP = 100
"""At which trainings are held."""


def finished_as_if_nothing_had_been(url, undisturbed, settings=FOUR):
    trials = len({number for number, *_ in undisturbed(**settings)})
    assert query(url, FINISHED) == [(number, "COMPLETE", 1) for number in range(trials)]
    assert query(url, CURVES) == undisturbed(**settings)


def no_retries(url):
    return not query(url, "SELECT * FROM trial_user_attributes WHERE key = 'retries'")


@pytest.fixture(scope="module")
def stoppable():
    with PostgreSQL(NO_SYNC) as server:
        yield server


@pytest.fixture
def server(stoppable):
    """A server for this test alone, which may be stopped."""
    yield stoppable
    stoppable.restore()


@pytest.fixture
def gate(tmp_path_factory):
    return Gate(tmp_path_factory.mktemp("gate") / "gate", STEP)


@pytest.fixture
def clock(tmp_path_factory):
    return Clock(tmp_path_factory.mktemp("clock") / "clock")


@pytest.fixture
def held(runner, text, gate, tmp_path):
    """Start searches; return them when their trainings are held by a gate."""

    def start(url, workers=1, gate=gate, **settings):
        search = search_starter(runner, url, text)
        words = () if url.startswith("sqlite") else (f"--artifacts={tmp_path}/artifacts",)
        commands = [search(*words, gate=gate, **settings) for _ in range(workers)]
        wait_until_running(commands, lambda: gate.held >= {command.pid for command in commands})
        return commands

    return start


def until_said(words, *workers, times=1):
    """Wait until each worker has said something so many times."""
    wait_until_running(
        workers, lambda: all(worker.output.count(words) >= times for worker in workers)
    )


@pytest.fixture
def resumed(runner, text, tmp_path):
    """Run a search to its end, and see that it resumes a trial."""

    def run(url, step=STEP, **settings):
        search = search_starter(runner, url, text)
        command = search(f"--artifacts={tmp_path}/artifacts", **settings)
        assert command.wait() == 0
        assert f"trial 0 resumes from step {step}" in command.output

    return run


def test_postgresql_that_is_stopped_for_two_leases(server, held, gate, clock, undisturbed):
    url = server.new_database()
    workers = held(url, workers=2, clock=clock, patient=False, **FOUR)
    server.stop()
    clock.advance(700)  # both have something to say, and find that they cannot
    until_said("storage unavailable", *workers)
    clock.advance(700)
    server.start()
    until_said("storage available again", *workers)
    gate.open()
    for worker in workers:
        assert worker.wait() == 0
    finished_as_if_nothing_had_been(url, undisturbed)
    assert no_retries(url), "a worker that trained was taken for dead"


def test_postgresql_that_breaks_down_again_and_again(server, held, gate, clock, undisturbed):
    url = server.new_database()
    workers = held(url, workers=2, clock=clock, patient=False, **FOUR)
    for times in range(1, 4):
        server.stop("immediate")
        clock.advance(200)
        until_said("storage unavailable", *workers, times=times)
        server.start()
        until_said("storage available again", *workers, times=times)
    gate.open()
    for worker in workers:
        assert worker.wait() == 0
    finished_as_if_nothing_had_been(url, undisturbed)
    assert no_retries(url), "a worker that trained was taken for dead"


def test_postgresql_that_does_not_come_back_for_long(server, held, resumed, undisturbed, tmp_path):
    """The worker writes a checkpoint, says what is wrong, and leaves; the next one resumes."""
    url = server.new_database()
    settings = {"outage_seconds": 2, "checkpoint_seconds": 1000}
    (first,) = held(url, patient=False, **ONE | settings)
    server.stop()
    assert first.wait() == 1
    last = first.output.strip().splitlines()[-1]
    assert last.startswith("error: storage unavailable for")
    assert (
        "longer than 2 s; recorded results are kept; restore it and run the same command to resume"
        in last
    )
    assert "Traceback" not in first.output
    assert len(list(tmp_path.glob("artifacts/*/trial-*.checkpoint"))) == 1
    server.start()
    resumed(url, **ONE)
    finished_as_if_nothing_had_been(url, undisturbed, ONE)


def test_a_trial_that_is_trained_when_the_server_goes_away(
    server, held, resumed, undisturbed, tmp_path, tmp_path_factory
):
    """Its last step is done: the result cannot be recorded, and is not lost."""
    url, last = server.new_database(), ONE["training_steps"]
    gate = Gate(tmp_path_factory.mktemp("last") / "gate", last)
    settings = {"outage_seconds": 2, "checkpoint_seconds": 1000}
    (first,) = held(url, patient=False, gate=gate, **ONE | settings)
    server.stop()
    gate.open()
    assert first.wait() == 1
    assert len(list(tmp_path.glob("artifacts/*/trial-*.checkpoint"))) == 1
    server.start()
    resumed(url, last, **ONE)
    finished_as_if_nothing_had_been(url, undisturbed, ONE)


def test_the_final_report_waits_for_a_server_that_is_away(
    server, runner, text, tmp_path, capsys, monkeypatch
):
    url = server.new_database()
    search = search_starter(runner, url, text)
    assert search(f"--artifacts={tmp_path}/artifacts", **ONE).wait() == 0
    monkeypatch.chdir(tmp_path)
    server.stop()
    monkeypatch.setattr(command_line, "OUTAGE_SECONDS", 1)
    write_final_report(url, ["quick"])
    assert capsys.readouterr().out.splitlines()[-1].startswith("no report: storage postgresql")

    said = []

    def echo(line):
        said.append(line)
        if "waiting for the storage" in line:
            server.start()

    monkeypatch.setattr(command_line, "OUTAGE_SECONDS", 600)
    monkeypatch.setattr("reports.cli.click.echo", echo)
    write_final_report(url, ["quick"])
    assert said[0] == "waiting for the storage to write the report"
    assert said[1].startswith("report: ")


def test_a_server_that_takes_no_writes_for_a_while(server, held, gate, undisturbed):
    """As one does that has become a stand-by of another."""
    url = server.new_database()
    (worker,) = held(url, **ONE)
    server.execute("ALTER SYSTEM SET default_transaction_read_only = on")
    try:
        server.execute("SELECT pg_reload_conf()")
        until_said("read-only transaction", worker)
        gate.open()
    finally:
        server.execute("ALTER SYSTEM RESET default_transaction_read_only")
        server.execute("SELECT pg_reload_conf()")
    assert worker.wait() == 0
    finished_as_if_nothing_had_been(url, undisturbed, ONE)


def test_a_stop_while_the_server_is_away(server, held, resumed, undisturbed):
    url = server.new_database()
    (first,) = held(url, patient=False, **ONE)
    server.stop()
    until_said("storage unavailable", first)
    first.send(signal.SIGTERM)
    assert first.wait() == 143
    assert "Traceback" not in first.output
    server.start()
    resumed(url, **ONE)
    finished_as_if_nothing_had_been(url, undisturbed, ONE)


def test_a_server_that_has_stopped_to_answer(server, held, gate, undisturbed):
    """All its processes are frozen: connections are taken, and nothing comes back."""
    url = server.new_database()
    (worker,) = held(url, patient=False, **ONE)
    server.signal(signal.SIGSTOP)
    try:
        until_said("storage unavailable", worker)
    finally:
        server.signal(signal.SIGCONT)
    gate.open()
    assert worker.wait() == 0
    finished_as_if_nothing_had_been(url, undisturbed, ONE)


def test_a_stop_while_the_server_does_not_answer(server, held, resumed, undisturbed):
    url = server.new_database()
    (first,) = held(url, patient=False, **ONE)
    server.signal(signal.SIGSTOP)
    try:
        first.send(signal.SIGTERM)
        assert first.wait() == 143
    finally:
        server.signal(signal.SIGCONT)
    assert "its lease has run out" in first.output
    resumed(url, **ONE)
    finished_as_if_nothing_had_been(url, undisturbed, ONE)


def test_a_file_that_another_program_has_locked(
    sqlite_url, held, gate, clock, undisturbed, tmp_path
):
    workers = held(sqlite_url, workers=2, clock=clock, patient=False, **FOUR)
    other = sqlite3.connect(tmp_path / "studies.db", isolation_level=None, timeout=600)
    other.execute("BEGIN IMMEDIATE")
    clock.advance(700)
    until_said("storage unavailable (it does not answer)", *workers)
    clock.advance(700)
    other.execute("ROLLBACK")
    other.close()
    until_said("storage available again", *workers)
    gate.open()
    for worker in workers:
        assert worker.wait() == 0
    finished_as_if_nothing_had_been(sqlite_url, undisturbed)
    assert no_retries(sqlite_url)


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


def test_a_full_disk(held, gate, small_disk, undisturbed):
    """Neither the database nor a checkpoint can grow; both can when there is room again."""
    url = f"sqlite:///{small_disk}/studies.db"
    (worker,) = held(url, **ONE)
    filler = fill(small_disk)
    until_said("storage unavailable", worker)
    until_said("cannot write the checkpoint", worker)
    filler.unlink()
    until_said("storage available again", worker)
    gate.open()
    assert worker.wait() == 0
    finished_as_if_nothing_had_been(url, undisturbed, ONE)


def test_a_full_disk_that_is_not_cleared(held, runner, small_disk, text, undisturbed):
    url = f"sqlite:///{small_disk}/studies.db"
    (worker,) = held(url, patient=False, outage_seconds=1, **ONE)
    filler = fill(small_disk)
    assert worker.wait() == 1
    last = worker.output.strip().splitlines()[-1]
    assert last.startswith("error: storage unavailable for")
    assert "Traceback" not in worker.output
    filler.unlink()
    assert search_starter(runner, url, text)(**ONE).wait() == 0
    finished_as_if_nothing_had_been(url, undisturbed, ONE)


def test_a_read_only_disk_is_refused_and_left_as_it_is(runner, small_disk, text):
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
    told = search("--status")
    assert told.wait() == 0
    assert "complete  1" in told.output
    left = sorted(path.name for path in small_disk.iterdir())
    assert left == ["studies.db"]
    assert (small_disk / "studies.db").read_bytes() == before


def test_a_read_only_file_is_refused_and_left_as_it_is(runner, small_disk, text):
    """The folder can be written to, the file cannot, not even by its owner."""
    file = small_disk / "studies.db"
    search = search_starter(runner, f"sqlite:///{file}", text)
    assert search(**ONE).wait() == 0
    before = file.read_bytes()
    subprocess.run(["mount", "--bind", str(file), str(file)], check=True)
    subprocess.run(["mount", "-o", "remount,ro,bind", str(file)], check=True)
    try:
        refused = search(**ONE)
        assert refused.wait() == 2
        assert refused.output.startswith("error: storage sqlite:")
        assert "check the address and that you may write there" in refused.output
        assert refused.output.count("\n") == 1
        assert file.read_bytes() == before
    finally:
        subprocess.run(["umount", str(file)], check=True)
    assert search(**ONE).wait() == 0
