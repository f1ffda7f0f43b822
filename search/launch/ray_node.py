"""What a task of Ray runs on a node.

As a program, runs a command of the project that stops in good order when its parent process ends::

    python -m search.launch.ray_node continue STUDY …
"""

import ctypes
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from search.launch.launcher import JOB_VARIABLE, WorkerCommand, describe_missing

POLL_SECONDS = 0.2
"""Interval between checks of the worker: Ray cancels a task between two statements of Python."""

_PR_SET_PDEATHSIG = 1
"""Option of Linux's ``prctl``: the signal that a process gets when its parent ends."""


class WorkerStoppedError(Exception):
    """A signal ended the worker, not Ray: a full memory, or the node shuts down; Ray retries it."""


class WorkerFailedError(Exception):
    """The worker exited with an error, which would come again."""


def run_worker(
    command: WorkerCommand, folder: Path, name: str, environment: Mapping[str, str]
) -> None:
    """Run a worker to its end in the folder of its command; a cancelled task stops it orderly.

    Raises:
        WorkerStoppedError: if a signal ended the worker.
        WorkerFailedError: if the worker failed, or does not find a shared folder.
    """
    # Ray cancels by an interrupt, which has no effect in a node that was started in the background.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if not command.marker.exists():
        raise WorkerFailedError(f"on {os.uname().nodename}: {describe_missing(command.marker)}")
    process = subprocess.Popen(
        [sys.executable, "-m", "search.launch.ray_node", *command.arguments],
        # The folder of a job that Ray ships has another path on each node.
        cwd=folder if folder.is_dir() else None,
        env={**os.environ, **environment, JOB_VARIABLE: name},
        process_group=0,  # Ray kills that of a task at once; the worker gets SIGTERM from main()
    )
    try:
        while process.poll() is None:
            time.sleep(POLL_SECONDS)
    except BaseException:  # the task is cancelled
        process.terminate()
        process.wait()
        raise
    code = process.returncode
    if code < 0 or code > 128:
        raise WorkerStoppedError(f"stopped by signal {abs(code) % 128}")
    if code:
        raise WorkerFailedError(f"exited with code {code}: its log says why")


def main() -> None:
    """Run a command of the project that gets SIGTERM when its parent process ends."""
    parent = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() == parent:  # otherwise it has ended already
        runpy.run_module("rnn_search", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
