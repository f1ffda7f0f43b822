"""Ctrl-C while worker processes train: one line at most, no traceback."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from process_runner import wait_until_running


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


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def interrupt_all(command):
    """Interrupt a command and its processes, as Ctrl-C in a terminal does."""
    for pid in (*children(command.pid), command.pid):
        os.kill(pid, signal.SIGINT)


@pytest.mark.extended
def test_repeated_interrupts_of_workers_print_one_line(search, gate):
    command = search("--workers", "2", gate=gate)
    wait_until_running([command], lambda: len(gate.held) == 2)
    for _ in range(3):
        if not command.ended.is_set():
            interrupt_all(command)
    assert command.wait() == 130
    assert command.stderr.strip() in ("", "error: interrupted")
    assert "KeyboardInterrupt" not in command.output
