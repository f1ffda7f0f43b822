"""Ctrl-C and SIGTERM at the start and the end of commands: one line at most, no traceback."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import QUICK, ROOT
from hooks import HANG_TIMEOUT
from process_runner import wait_until, wait_until_running

from studies.interrupts import raise_on_interrupt

SEARCH = ("run_search.py", QUICK)

COMMANDS = {
    SEARCH: "optuna torch",
    ("refine.py",): "torch",
    ("-m", "rnn_search", "report", "quick"): "plotly",
    ("-m", "rnn_search", "dashboard"): "bottle",
}
"""Commands, and libraries that each of them imports: what all share, or what it alone needs."""

HOLD = """
import os, pathlib, time
def hold():
    pathlib.Path(os.environ["HELD"], str(os.getpid())).touch()
    while True:
        time.sleep(0.05)
"""


HOLD_WORKER = """
import sys
if "--multiprocessing-fork" in sys.orig_argv:
    hold()
"""


@pytest.fixture
def held(tmp_path):
    """Folder in which each held process leaves a file named after its id."""
    folder = tmp_path / "held"
    folder.mkdir()
    return folder


def replace_module(tmp_path, name, text):
    """Put a module in front of all others; return the environment in which it is imported."""
    folder = tmp_path / "modules"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.py").write_text(HOLD + text)
    return {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "HELD": str(tmp_path / "held")}


def send_when_held(arguments, environment, held, number):
    """Start a command, send it a signal where it is held; return its exit code and messages."""
    command = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_until(lambda: any(held.iterdir()) or command.poll() is not None)
        command.send_signal(number)
        _, messages = command.communicate(timeout=HANG_TIMEOUT)
    finally:
        command.kill()
    return command.returncode, messages


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(command, marks=[pytest.mark.extended] * (command != SEARCH))
        for command in COMMANDS
    ],
    ids=" ".join,
)
def test_interrupt_during_the_imports_prints_one_line(tmp_path, held, command):
    environment = {"RNN_SEARCH_STORAGE": f"sqlite:///{tmp_path}/studies.db"}
    for module in COMMANDS[command].split():
        environment |= replace_module(tmp_path, module, "hold()")
    code, messages = send_when_held(command, environment, held, signal.SIGINT)
    assert (code, messages) == (130, "error: interrupted\n")


@pytest.mark.extended
def test_termination_during_the_imports_prints_nothing(tmp_path, held):
    environment = replace_module(tmp_path, "torch", "hold()")
    code, messages = send_when_held(SEARCH, environment, held, signal.SIGTERM)
    assert (code, messages) == (-signal.SIGTERM, "")


@pytest.mark.extended
def test_interrupt_at_the_end_adds_nothing_to_the_message(tmp_path, held):
    environment = replace_module(tmp_path, "sitecustomize", "import atexit; atexit.register(hold)")
    arguments = (
        "-m",
        "rnn_search",
        "report",
        "missing",
        "--storage",
        f"sqlite:///{tmp_path}/missing.db",
    )
    code, messages = send_when_held(arguments, environment, held, signal.SIGINT)
    assert code == 130
    (line,) = messages.splitlines()
    assert line.startswith("error: ")
    assert "missing.db" in line


class Interrupted:
    """Its destructor is interrupted."""

    def __del__(self):
        raise KeyboardInterrupt


def test_interrupt_that_python_ignores_is_raised_again(monkeypatch, capfd):
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    # It is ignored in tests that run in the background.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        raise_on_interrupt()
        with pytest.raises(KeyboardInterrupt):  # noqa: PT012  # the second statement raises
            del (lambda: [Interrupted()])()[0]
            time.sleep(HANG_TIMEOUT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert capfd.readouterr().err == ""


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def interrupt_all(command):
    """Interrupt a command and its processes, as Ctrl-C in a terminal does."""
    for pid in (*children(command.pid), command.pid):
        os.kill(pid, signal.SIGINT)


@pytest.mark.extended
def test_interrupt_of_workers_that_start_prints_no_traceback(search, tmp_path, held):
    # A worker process begins with the folders of PYTHONPATH, then takes over those of its parent.
    environment = replace_module(tmp_path, "sitecustomize", HOLD_WORKER)
    command = search("--workers", "2", environment=environment)
    wait_until_running([command], lambda: len(list(held.iterdir())) == 2)
    interrupt_all(command)
    assert command.wait() == 130
    assert command.stderr == ""
    assert command.stdout.endswith("stopped before training began: run the same command to start\n")


@pytest.mark.extended
def test_repeated_interrupts_of_workers_print_one_line(search, gate):
    command = search("--workers", "2", gate=gate)
    wait_until_running([command], lambda: len(gate.held) == 2)
    for _ in range(3):
        if not command.ended.is_set():
            interrupt_all(command)
    assert command.wait() == 130
    assert command.stderr in ("", "error: interrupted\n")
    assert "KeyboardInterrupt" not in command.output
