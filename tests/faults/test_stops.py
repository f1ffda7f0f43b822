"""Trials of stopped or killed workers are resumed by others, bit for bit."""

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT
from hooks import HANG_TIMEOUT
from process_runner import CURVES, query, wait_until, wait_until_running
from small_searches import (
    FOUR,
    ONE,
    RETRIES,
    STATES,
    STEP,
    assert_all_trials_match,
    finish,
    kill,
    list_checkpoints,
    stop,
)

SELDOM = ONE | {"checkpoint_seconds": 1000}
"""One trial with a checkpoint at its stop only."""


@pytest.fixture
def list_names(artifacts):
    """Function that lists the files of a study."""
    return lambda: [path.name for path in artifacts.glob("*/*")]


@pytest.mark.parametrize(
    "numbers",
    [
        (signal.SIGTERM,),
        pytest.param((signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2), marks=pytest.mark.extended),
    ],
)
def test_trial_stopped_by_signals_resumes(
    held, search, show_status, new_gate, sqlite_url, reference_curves, list_names, numbers
):
    output = ""
    for step, number in zip(range(20, 200, 20), numbers, strict=False):
        worker = held(gate=new_gate(step), **SELDOM)
        stop(worker, number)
        assert "requeued" in worker.output
        assert query(sqlite_url, STATES) == [("WAITING",)]
        assert max(recorded for _, recorded, _ in query(sqlite_url, CURVES)) == step
        assert list_names() == ["trial-0.checkpoint"]
        output += worker.output
    status = finish(show_status())
    assert "waiting   1\n" in status
    assert f"requeued  {len(numbers)} interrupted\n" in status
    output += finish(search(**ONE))
    assert output.count("trial 0 resumes from step ") == len(numbers)
    assert f"trial 0 resumes from step {step}" in output
    assert list_names() == []
    assert_all_trials_match(sqlite_url, reference_curves, ONE)
    assert query(sqlite_url, RETRIES) == [(f'{{"interrupted": {len(numbers)}}}',)]


def test_waiting_worker_resumes_the_trial_of_a_killed_worker(
    held, search, sqlite_url, artifacts, reference_curves, list_names
):
    first = held(**ONE | {"lease_seconds": 1})
    wait_until(lambda: list_checkpoints(artifacts))
    waiting = search(**ONE)
    wait_until(lambda: "waiting for them" in waiting.output)
    kill(first)
    finish(waiting)
    assert "lease expired, its worker sent no heartbeat" in waiting.output
    assert f"trial 0 resumes from step {STEP}" in waiting.output
    assert_all_trials_match(sqlite_url, reference_curves, ONE)
    assert list_names() == []


@pytest.mark.extended
def test_trial_of_a_worker_killed_before_its_first_checkpoint_restarts_and_says_why(
    held, search, sqlite_url, reference_curves
):
    first = held(**SELDOM | {"lease_seconds": 1})
    wait_until(lambda: max((step for _, step, _ in query(sqlite_url, CURVES)), default=0) == STEP)
    kill(first)
    (line,) = [line for line in finish(search(**ONE)).splitlines() if "checkpoint" in line]
    assert line.startswith("warning: no checkpoint of trial 0 in ")
    assert line.endswith(
        f", though step {STEP} was recorded: none was written before the worker was killed or cut "
        "off; training restarts from step 0"
    )
    assert_all_trials_match(sqlite_url, reference_curves, ONE)


@pytest.mark.extended
def test_time_limit_requeues_a_trial_and_a_second_interrupt_exits_at_once(
    held, search, new_gate, sqlite_url, tmp_path, artifacts, reference_curves
):
    """After the first interrupt, the worker waits for a file locked by another program."""
    limited = search("--until", "2s", gate=new_gate(20), **SELDOM)
    assert "0 of 1 finished" in finish(limited)
    assert query(sqlite_url, STATES) == [("WAITING",)]
    interrupted = held("--until", "10h", **SELDOM | {"lease_seconds": 1})
    for checkpoint in list_checkpoints(artifacts):  # that it resumed from
        checkpoint.unlink()
    other = sqlite3.connect(tmp_path / "studies.db", isolation_level=None, timeout=HANG_TIMEOUT)
    other.execute("BEGIN IMMEDIATE")
    interrupted.send(signal.SIGINT)
    wait_until(lambda: list_checkpoints(artifacts))
    stop(interrupted, signal.SIGINT)
    other.close()
    finish(search(**ONE))
    assert_all_trials_match(sqlite_url, reference_curves, ONE)


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def interrupt_all(command):
    """Interrupt a command and its processes, as Ctrl-C in a terminal does."""
    for pid in (*children(command.pid), command.pid):
        os.kill(pid, signal.SIGINT)


HOLD_WORKERS = """
import os, pathlib, sys, time
if "--multiprocessing-fork" in sys.orig_argv:
    pathlib.Path(os.environ["HELD"], str(os.getpid())).touch()
    while True:
        time.sleep(0.05)
"""
"""Module that holds a worker process while it starts, and leaves a file named after its id."""


@pytest.mark.extended
def test_interrupt_of_workers_that_start_prints_no_traceback(search, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(HOLD_WORKERS)
    held = tmp_path / "held"
    held.mkdir()
    environment = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "HELD": str(held)}
    command = search("--workers", "2", environment=environment)
    wait_until_running([command], lambda: len(list(held.iterdir())) == 2)
    interrupt_all(command)
    assert command.wait() == 130
    assert command.stderr == ""
    assert command.stdout.endswith("stopped; progress is saved: run the same command to resume\n")


INTERRUPTED_IMPORT = """
import sys

class Finder:
    def find_spec(self, name, *others):
        if name == "studies.failures":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Finder())
from rnn_search.commands import main
main("list")
"""


def test_interrupt_of_the_first_imports_is_quiet():
    command = [sys.executable, "-c", INTERRUPTED_IMPORT]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


# ------------------------------------------------------------------ damaged and foreign checkpoints


def flip_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


@pytest.mark.extended
def test_trials_of_unusable_checkpoints_restart(
    held, search, sqlite_url, artifacts, reference_curves
):
    stop(held("--set=checkpoint.seconds=1000", lockstep="4", **FOUR))
    flipped, cut, *swapped = sorted(list_checkpoints(artifacts))
    flip_bit(flipped)
    os.truncate(cut, cut.stat().st_size // 2)
    first, second = (path.read_bytes() for path in swapped)
    swapped[0].write_bytes(second)
    swapped[1].write_bytes(first)
    output = finish(search(**FOUR))
    warnings = [line for line in output.splitlines() if line.startswith("warning: ")]
    assert "trial 0: checkpoint is damaged" in warnings[0]
    assert "trial 1: checkpoint is damaged" in warnings[1]
    assert "trial 2: checkpoint belongs to another training" in warnings[2]
    assert "trial 3: checkpoint belongs to another training" in warnings[3]
    assert len(warnings) == 4
    assert_all_trials_match(sqlite_url, reference_curves, FOUR)
    names = sorted(path.name for path in artifacts.glob("*/*"))
    assert names == [f"trial-{number}.quarantined" for number in range(4)]
