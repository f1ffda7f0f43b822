"""Output of a search to a log: progress at least every five seconds."""

import logging
import os
import threading
from itertools import pairwise

import optuna
import pytest
from helpers import QUICK, TINY
from hooks import HANG_TIMEOUT, Hooks
from optuna.trial import TrialState
from process_runner import query, wait_until
from test_worker import create_study

from search.status import RECENT_TIMEOUT, StatusReader
from search.terminal import PROGRESS_SECONDS, TICK_SECONDS, QuietDisplay, SafeConsole, Ticker
from search.worker.claims import ClaimManager
from search.worker.shutdown import ShutdownSignal


@pytest.fixture
def search(runner, sqlite_url, text):
    """Start a search over tiny networks."""

    def start(*words, **options):
        common = ("--storage", sqlite_url, "--corpus", str(text), *TINY)
        hooks = Hooks(report=False)
        return runner.start("run_search.py", QUICK, *common, *words, hooks=hooks, **options)

    return start


def test_log_is_never_silent_for_five_seconds(monkeypatch):
    """Even if the storage is slow or other lines are printed."""

    class Clock:
        now = 0.0

        def monotonic(self):
            return self.now

    clock, printed = Clock(), []
    monkeypatch.setattr("search.terminal.time", clock)
    console = SafeConsole()
    monkeypatch.setattr(console, "print", lambda line, **_: printed.append((clock.now, line)))

    def progress():
        clock.now += RECENT_TIMEOUT  # the storage does not respond
        return "progress"

    ticker = Ticker(console, progress)
    for step in range(1000):
        clock.now += TICK_SECONDS
        if step % 30 == 0:
            console.print_line("trial")
        ticker.tick()
    times = [0.0, *(time for time, _ in printed), clock.now]
    gaps = [after - before for before, after in pairwise(times)]
    assert max(gaps) < 5
    lines = [time for time, line in printed if line == "progress"]
    assert min(b - a for a, b in pairwise(lines)) >= PROGRESS_SECONDS


def test_search_stops_when_the_reader_of_its_output_exits(search, sqlite_url, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    endless = ("--set=training.steps=1000000000", "--set=training.log_every=20")
    process = search(*endless, stdout=str(pipe))
    with pipe.open(encoding="utf-8") as reader:
        assert any(line.startswith("study quick: ") for line in reader)
    assert process.wait() == 1
    assert query(sqlite_url, "SELECT DISTINCT state FROM trials") == [("WAITING",)]


def test_broken_pipe_in_another_thread_ends_the_main_thread_only(monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", encoding="utf-8") as stdout:
        monkeypatch.setattr("sys.stdout", stdout)
        console, returned = SafeConsole(), []
        thread = threading.Thread(target=lambda: returned.append(console.print_line("line")))
        thread.start()
        thread.join()
        assert returned == [None]
        with pytest.raises(SystemExit):
            console.exit_if_broken()


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
