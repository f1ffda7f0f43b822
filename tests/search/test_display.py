"""Output of a search: progress at least every five seconds, and what a pruned grid shows."""

import logging
import os
import re
import sys
import threading
from contextlib import closing
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from unittest.mock import Mock

import optuna
import pytest
from helpers import ONE_TRIAL, QUICK, TINY
from hooks import HANG_TIMEOUT, Hooks
from optuna.trial import TrialState
from process_runner import query, wait_until
from test_worker import create_study

from search.display import (
    PROGRESS_SECONDS,
    TICK_SECONDS,
    QuietDisplay,
    SafeConsole,
    Ticker,
    format_status,
)
from search.status import RECENT_TIMEOUT, Status, StatusReader, estimate_first_rung, read_status
from search.worker.claims import ClaimManager
from search.worker.shutdown import ShutdownSignal
from studies.config import StudyConfig
from studies.storage.counts import ActiveWorker, RungCounts, TrialCounts
from tests.simulations.large_study import create_large_study

SMALL = ["training.batch_size=2", "training.sequence_length=10", "evaluation.windows=2",
         "evaluation.window_length=10"]  # fmt: skip


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets, and the lines that a console prints, each with its time."""
    clock = SimpleNamespace(now=0.0, lines=[])
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr("search.display.time", clock)
    monkeypatch.setattr(
        SafeConsole, "print", lambda self, line, **_: clock.lines.append((clock.now, line))
    )
    return clock


def test_log_is_never_silent_for_five_seconds(clock):
    """Even if the storage is slow or other lines are printed."""
    console = SafeConsole()

    def progress():
        clock.now += RECENT_TIMEOUT  # the storage does not respond
        return "progress"

    ticker = Ticker(console, progress)
    for step in range(1000):
        clock.now += TICK_SECONDS
        if step % 30 == 0:
            console.print_line("trial")
        ticker.tick()
    gaps = [after - before for (before, _), (after, _) in pairwise([(0.0, ""), *clock.lines])]
    assert max(gaps) < 5
    lines = [time for time, line in clock.lines if line == "progress"]
    assert min(b - a for a, b in pairwise(lines)) >= PROGRESS_SECONDS


def test_activity_is_named_once_and_then_timed_at_growing_intervals(clock):
    ticker = Ticker(SafeConsole(), "preparing")
    while clock.now < 30:
        clock.now += 1
        ticker.tick()
    lines = [(3, "preparing"), (9, "still preparing: 9 s"), (21, "still preparing: 21 s")]
    assert clock.lines == lines


@pytest.mark.parametrize("is_notebook", [False, True])
def test_each_trial_is_a_line_and_a_notebook_has_one_bar(
    invoke, sqlite_url, text, monkeypatch, is_notebook
):
    """No escape sequence is written, although Jupyter sets ``FORCE_COLOR``."""
    display, shell = Mock(), type("ZMQInteractiveShell" if is_notebook else "Other", (), {})
    monkeypatch.setattr("builtins.get_ipython", shell, raising=False)
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=display))
    words = ("--storage", sqlite_url, "--corpus", str(text), *ONE_TRIAL, "--set=space.layers=[1,2]")
    lines = invoke("run_search.py", QUICK, *words, report=False, FORCE_COLOR="1").stdout
    assert "\x1b" not in lines
    assert re.findall(r"^trial (\d) .* complete", lines, re.MULTILINE) == ["0", "1"]
    assert display.call_count == is_notebook
    if is_notebook:  # IPython shows what this returns
        shown = display.return_value.update.call_args.args[0]._repr_mimebundle_([], [])
        assert "quick  2 of 2 finished" in shown["text/html"]


def test_pruned_grid_shows_leaders_and_times_before_a_trial_ends(sqlite_url, text, tmp_path):
    """They follow from what plain Optuna reads."""
    (files := tmp_path / "files").mkdir()
    (files / "trial-0.ckpt").write_bytes(bytes(3_000_000))
    of_96 = {"pruning": True, "progress": 0.25, "corpus": str(text), "overrides": SMALL}
    with closing((made := create_large_study(sqlite_url, 96, 40, **of_96)).storage):
        status = read_status(made.study, made.storage, made.config, 8, checkpoints=files)
        curves = {trial.number: trial.intermediate_values for trial in made.study.trials}
    passed = {number for number, curve in curves.items() if 100 in curve}
    first = min(passed, key=lambda number: curves[number][100])
    shown = format_status(status, made.config)
    assert f"rung 1    {len(passed)} of 96 through step 100 (about " in shown
    assert f"leading   {curves[first][100]:.4f} nats, trial {first}, 1×32" in shown
    assert "disk      3.0 MB of checkpoints" in shown
    rung = status.as_json()["first_rung"]
    assert [rung["leaders"][0]["number"], rung["step"]] == [first, 100]


def test_time_to_the_first_rung_is_a_lower_bound_while_some_size_was_not_measured():
    measured = RungCounts(3, running=2, waiting=4, audited=1, seconds_per_step=0.1)
    rung = estimate_first_rung([measured], step=100, steps=1000, workers=2)
    assert (rung.seconds_left, rung.is_at_least) == (pytest.approx(70), False)
    rung = estimate_first_rung([measured, RungCounts(waiting=5)], 100, 1000, workers=2)
    assert (rung.seconds_left, rung.is_at_least) == (pytest.approx(70), True)


def test_status_says_why_the_time_left_is_not_known():
    config = StudyConfig(space={"layers": [1], "state_size": [256]})
    status = Status("grid", TrialCounts(running=1, waiting=9), None, None, {})
    assert "time left unknown: no active worker" in format_status(status, config)
    busy = replace(status, workers=[ActiveWorker("host/1", [0], 1.0, 120.0)])
    assert "time left unknown: no trial of some size" in format_status(busy, config)


def test_search_stops_when_the_reader_of_its_output_exits(runner, sqlite_url, text, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    endless = ("--set=training.steps=1000000000", "--set=training.log_every=20")
    words = (QUICK, "--storage", sqlite_url, "--corpus", str(text), *TINY, *endless)
    process = runner.start("run_search.py", *words, stdout=str(pipe), hooks=Hooks(report=False))
    with pipe.open(encoding="utf-8") as reader:
        assert any(line.startswith("study quick: ") for line in reader)
    assert process.wait() == 1
    assert query(sqlite_url, "SELECT DISTINCT state FROM trials") == [("WAITING",)]


def test_message_of_another_thread_is_printed_by_the_main_thread(capsys):
    """A paused terminal blocks the thread that prints, which must not be the one of heartbeats."""
    logger = logging.getLogger("search.worker")
    with QuietDisplay(SafeConsole(), None) as display:
        thread = threading.Thread(target=lambda: logger.warning("from a thread"))
        thread.start()
        thread.join()
        assert capsys.readouterr().out == ""
        display.on_poll()
        assert capsys.readouterr().out == "warning: from a thread\n"


def test_progress_does_not_wait_for_a_slow_storage(sqlite_url, text, monkeypatch):
    joined = create_study(sqlite_url, text)
    reader = StatusReader(joined.study, joined.storage, joined.config)
    with (
        ShutdownSignal() as stop,
        ClaimManager(joined.storage, joined.study_id, "me", stop) as claims,
    ):
        reader.attach(claims)
        read, answers = reader._read, threading.Event()
        monkeypatch.setattr(reader, "_read", lambda: answers.wait(HANG_TIMEOUT) and read())
        study = optuna.load_study(study_name="quick", storage=sqlite_url)
        study.tell(study.ask(), 1.0)
        assert study.trials[0].state is TrialState.COMPLETE
        assert reader.recent_status().counts.complete == 0
        answers.set()  # the next line shows the late answer
        wait_until(lambda: reader.recent_status().counts.complete == 1)
