"""Processes that a search has beside it, and that end when it does, however that ends."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from studies.cli import ARTIFACTS_VARIABLE, STORAGE_VARIABLE

ASK_SECONDS, STOP_SECONDS = 0.2, 0.5
"""How long a process that is asked to end is waited for before it is told to, and then before it is
killed: a search that is to stop does not wait for a storage that does not answer."""


def start(
    module: str,
    words: Sequence[str],
    storage: str,
    artifacts: str | None,
    inherited: Sequence[int] = (),
    is_heard: bool = False,
) -> "subprocess.Popen[bytes]":
    """Start a module of this project as a process.

    Args:
        module: its name; it calls :func:`wait_for_search`, and then ends.
        words: of its command line, which everybody on this machine can read.
        storage: the storage's URL, which may hold a password and is not among them.
        artifacts: where files lie, as :func:`studies.artifacts.open_store` takes it.
        inherited: open files that are the process's too.
        is_heard: whether what it says on its standard error is read by the caller; else it is lost.

    Raises:
        OSError, ValueError: if it cannot be started.
    """
    path = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {
        STORAGE_VARIABLE: storage,
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
    }
    if artifacts is not None:
        environment[ARTIFACTS_VARIABLE] = artifacts
    return subprocess.Popen(
        [sys.executable, "-P", "-m", module, *words],
        env=environment,
        # Nothing is ever written there. It ends with this process, however that ends.
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE if is_heard else subprocess.DEVNULL,
        pass_fds=inherited,
        # A Ctrl-C in the terminal is for the search, which may work on for a while.
        start_new_session=True,
    )


def wait_for_search() -> None:
    """Wait, in a process that was so started, until it is to end."""
    with contextlib.suppress(OSError):
        while os.read(0, 1024):
            pass


def stop(process: "subprocess.Popen[bytes]") -> None:
    """Have a process end: by asking, by telling, by force."""
    assert process.stdin is not None
    process.stdin.close()
    for seconds, harder in ((ASK_SECONDS, process.terminate), (STOP_SECONDS, process.kill)):
        try:
            process.wait(seconds)
            return
        except subprocess.TimeoutExpired:
            harder()
    process.wait()
