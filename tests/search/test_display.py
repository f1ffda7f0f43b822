"""What a search shows in a terminal, in a log and in a notebook, and the words of messages."""

import logging
import os
import pty
import re
import signal
import sys
import termios
import threading
from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import Mock

import optuna
import pytest
from helpers import ONE_TRIAL, ONE_TRIAL_OVERRIDES, QUICK, ROOT, TINY
from hooks import HANG_TIMEOUT, Gate, Hooks
from optuna.trial import TrialState
from process_runner import query, wait_until, wait_until_running
from test_worker import create_study

from search.display import Display
from search.run import run_workers
from search.run_options import RunOptions
from search.status import Status, StatusReader, format_status
from search.worker.claims import ClaimManager
from search.worker.queue import format_trial_end
from search.worker.shutdown import ShutdownSignal
from studies.config import StudyConfig
from studies.messages import format_duration, shorten, to_line, to_printable
from studies.storage.counts import ActiveWorker, TrialCounts

END = r"trial \d+  \d×\S.*  complete \d\.\d{4} nats  [\d.]+ s"
FOUR_TRIALS = (*ONE_TRIAL, "--set=space.layers=[1, 2, 3, 4]", '--set=precision="fp32"')
EIGHT_TRIALS = [f"space.{gate}_gate=[false, true]" for gate in ("input", "forget", "output")]
BAR = r"━+ \d+ of \d+ finished.*"


class Terminal:
    """Terminal in which commands run, wide enough to wrap no line, and what it has shown."""

    columns = 300

    def __init__(self):
        self._master, slave = pty.openpty()
        termios.tcsetwinsize(slave, (50, self.columns))
        self.path = os.ttyname(slave)
        self._slave = slave  # open, so that the end of a command does not hang up
        self._output = b""
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        while piece := os.read(self._master, 65536):
            self._output += piece

    @property
    def raw(self):
        return self._output.decode(errors="ignore")

    @property
    def screen(self):
        """Lines as they stand on the screen, those that have scrolled away included."""
        rows, row, column = [""], 0, 0
        for found in re.finditer(r"\x1b\[\??(\d*)\S*?([A-Za-z])|\r|\n|[^\x1b\r\n]+", self.raw):
            if found[0] == "\r":
                column = 0
            elif found[0] == "\n":
                row += 1
                rows += [""] * (row == len(rows))
            elif found[2] == "A":
                row -= int(found[1] or 1)
            elif found[2] == "K":
                rows[row] = ""
            elif not found[2]:
                end = column + len(found[0])
                assert end <= self.columns
                rows[row] = rows[row][:column].ljust(column) + found[0] + rows[row][end:]
                column = end
        return [line.rstrip() for line in rows if line.strip()]

    @property
    def bars(self):
        """Bars that were drawn, without their colours."""
        return re.findall(BAR, re.sub(r"\x1b\[[^A-Za-z]*[A-Za-z]", "", self.raw))


@pytest.fixture
def terminal():
    return Terminal()


@pytest.fixture
def start_in(runner, sqlite_url, text, tmp_path):
    """Function that starts a search in a terminal, and holds its trainings at a step."""

    def start(terminal, *words, is_held=True):
        gate = Gate(tmp_path / "gate", step=2) if is_held else None
        command = runner.start(
            *("run", QUICK, "--storage", sqlite_url, "--corpus", str(text), *TINY, *words),
            "--threads=1",
            "--no-report",
            "--lockstep=1",
            stdout=terminal.path,
            stderr=terminal.path,
            hooks=Hooks(report=False, gate=gate),
            TERM="xterm",
            COLUMNS=str(terminal.columns),
        )
        workers = 2 if "--workers=2" in words else 1
        wait_until_running([command], lambda: gate is None or len(gate.held) == workers)
        return command, gate

    return start


def test_terminal_shows_one_bar_below_whole_lines(start_in, terminal):
    """The bar is gone at the end."""
    command, gate = start_in(terminal, *FOUR_TRIALS)
    wait_until(lambda: re.fullmatch(BAR, terminal.screen[-1]))
    assert sum(bool(re.fullmatch(BAR, line)) for line in terminal.screen) == 1
    gate.open()
    assert command.wait() == 0
    wait_until(lambda: terminal.screen[-1].startswith("study quick: 4 of 4 finished, best "))
    *lines, _ = terminal.screen
    assert sum(bool(re.fullmatch(END, line)) for line in lines) == 4
    others = [line for line in lines if not re.fullmatch(END, line)]
    assert len(others) == 3, others
    assert not any("━" in line for line in lines)
    assert any(bar.startswith("━" * 20 + " 0 of 4 finished") for bar in terminal.bars)


def test_terminal_names_a_killed_worker_above_the_bar_and_stops_on_ctrl_c(start_in, terminal):
    command, gate = start_in(terminal, *FOUR_TRIALS, "--workers=2")
    os.kill(min(gate.held), signal.SIGKILL)
    wait_until(lambda: any("a worker was killed" in line for line in terminal.screen))
    wait_until(lambda: re.fullmatch(BAR, terminal.screen[-1]))
    assert sum(bool(re.fullmatch(BAR, line)) for line in terminal.screen) == 1
    command.send(signal.SIGINT)
    assert command.wait() == 130
    end = "stopped; progress is saved: run the same command to resume"
    wait_until(lambda: terminal.screen[-1] == end)
    assert re.fullmatch(r"trial \d+ requeued", terminal.screen[-3]), terminal.screen
    assert terminal.screen[-2].startswith("study quick: 0 of 4 finished")


@pytest.mark.extended
def test_output_and_error_of_a_worker_are_lines_above_the_bar(start_in, terminal, tmp_path):
    cell = tmp_path / "cells.py"
    example = (ROOT / "examples" / "cells" / "min_gru.py").read_text()
    cell.write_text(f"{example}\nimport sys\nprint('said by a cell', file=sys.stderr)\n")
    space = f"{{cell = ['{cell}:MinGRU'], layers = [1, 2], state_size = [3]}}"
    # A gate would hold the checks of the cell as well.
    command, _ = start_in(terminal, "--workers=2", f"--set=space={space}", is_held=False)
    assert command.wait() == 0
    wait_until(lambda: "of 2 finished, best" in terminal.screen[-1])
    started = terminal.screen.index("starting 2 worker processes")
    assert "said by a cell" in terminal.screen[started:]
    assert sum(bool(re.fullmatch(END, line)) for line in terminal.screen) == 2


def test_log_has_short_lines_and_names_the_best_only_when_it_has_changed(
    sqlite_url, text, monkeypatch, capfd
):
    monkeypatch.setattr("search.display.PROGRESS_SECONDS", 0)
    monkeypatch.setattr("search.status.REFRESH_SECONDS", 0)
    long = "a" * 150
    overrides = (*ONE_TRIAL_OVERRIDES, *EIGHT_TRIALS)
    options = {"study": QUICK, "name": long, "storage": sqlite_url, "corpus": str(text)}
    run_workers(RunOptions(**options, overrides=overrides, threads=1, lockstep=1))
    lines = capfd.readouterr().out.splitlines()
    progress = [line for line in lines if re.match(r"\d+ of 8 finished", line)]
    named = [line.partition("best ")[2].partition(" (")[0] for line in progress]
    bests = [best for best in named if best]
    assert bests
    assert len(set(bests)) == len(bests) < len(progress)
    assert any(" left" in line for line in progress)
    assert lines[-1].startswith(f"study {long}"[:100])
    ends = [line for line in lines if re.fullmatch(END, line)]
    assert len(ends) == 8
    assert max(map(len, [*progress, *ends, lines[-1]])) <= 120


def test_end_of_a_trial_fits_a_line(sqlite_url, text):
    joined = create_study(sqlite_url, text)
    trial, config = joined.study.trials[0], joined.config
    outcome = "failed after 3 retries (ValueError: no " + "such value " * 2 + ")"
    line = format_trial_end(trial, config, outcome, 1.5, 12.0)
    assert len(line) == 120
    assert line.startswith("trial 0  2×4 ")
    assert line.endswith(f"…  {outcome} 1.5000 nats  12.0 s")


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
        shown = display.call_args.args[0]._repr_mimebundle_([], [])
        assert "of 2 finished" in shown["text/html"]
        assert display.return_value.update.called


def test_status_says_why_the_time_left_is_not_known():
    config = StudyConfig(space={"layers": [1], "state_size": [256]})
    status = Status("grid", TrialCounts(running=1, waiting=9), None, None, {})
    assert "time left unknown: no active worker" in format_status(status, config)
    busy = replace(status, workers=[ActiveWorker("host/1", [0], 1.0, 120.0)])
    assert "time left unknown: no trial of some size" in format_status(busy, config)


def test_search_stops_when_the_reader_of_its_output_exits(runner, sqlite_url, text, tmp_path):
    """It ends as a program that SIGPIPE ends, and without a message."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    words = (QUICK, "--storage", sqlite_url, "--corpus", str(text), *TINY, "--lockstep=1")
    gate = Gate(tmp_path / "gate", step=2)
    hooks = Hooks(report=False, gate=gate)
    process = runner.start("run_search.py", *words, stdout=str(pipe), hooks=hooks)
    with pipe.open(encoding="utf-8") as reader:
        assert any(line.startswith("study quick: ") for line in reader)
    wait_until(lambda: gate.held or process.ended.is_set())
    gate.open()  # the end of its trial is a line, if no other was
    assert process.wait() == 128 + signal.SIGPIPE
    assert process.stderr == ""
    assert ("WAITING",) in query(sqlite_url, "SELECT DISTINCT state FROM trials")


def test_output_that_blocks_does_not_block_who_logs(monkeypatch):
    """Such as the thread that sends heartbeats, while a terminal is paused."""
    goes_on, lines = threading.Event(), []

    def write(text):
        goes_on.wait(HANG_TIMEOUT)
        lines.append(text)

    monkeypatch.setattr("sys.stdout", SimpleNamespace(write=write, flush=lambda: None))
    logger = logging.getLogger("search.worker")
    with Display():
        for line in ("one", "two"):
            logger.warning(line)
        goes_on.set()
    assert "".join(lines) == "warning: one\nwarning: two\n"


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
        assert reader.recent_status().counts.told == 0
        answers.set()  # the next line shows the late answer
        wait_until(lambda: reader.recent_status().counts.told == 1)


# ------------------------------------------------------------------ durations and printable text


def test_duration_is_given_in_a_suitable_unit():
    seconds = (0.04, 45.3, 119, 150, 7000, 9000, 302400)
    texts = ["0.0 s", "45 s", "119 s", "2.5 min", "117 min", "2.5 h", "3.5 days"]
    assert list(map(format_duration, seconds)) == texts


def test_unprintable_characters_are_replaced():
    assert to_printable("„ä\t1\n".encode()) == to_printable("„ä\t1\n") == "„ä\t1\n"
    assert to_printable(b"a\xffb\xc3") == "a\ufffdb\ufffd"
    assert to_printable(b"\x1b[31m\x00\r\x7f\xc2\x9b") == "\ufffd[31m" + "\ufffd" * 4
    assert to_printable("\ud800") == "\ufffd"


def test_line_has_no_line_breaks_and_is_cut_if_long():
    assert to_line("„ä …\n 2×3") == "„ä …  2×3"
    assert (shorten("a" * 80), shorten("a" * 81)) == ("a" * 80, "a" * 79 + "…")
