"""A worker in a job of SLURM: what submitit calls on the node.

Must be importable without PyTorch: it only starts the worker and passes signals on.
"""

import os
import signal
import subprocess
import sys
from typing import Any

from search.launch.launcher import JOB_VARIABLE, WorkerCommand

_STOPPED = {128 + signal.SIGTERM, -signal.SIGTERM}
"""Exit codes of a worker that was stopped by SIGTERM, which SLURM sends to all of a job."""


class SlurmWorker:
    """Callable that runs a worker and requeues its job when SLURM ends it early.

    SLURM sends SIGUSR2 before the time limit: submitit then calls :meth:`checkpoint` and requeues
    the job. A preemption sends SIGTERM: the worker stops, and the job is requeued here. A job that
    is cancelled gets SIGTERM as well, and is left alone.

    Args:
        command: command of the worker.
    """

    def __init__(self, command: WorkerCommand) -> None:
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> None:
        """Run the worker; exit with its exit code."""
        from submitit import JobEnvironment

        job = JobEnvironment().job_id
        self._process = subprocess.Popen(
            self._command.arguments,
            cwd=self._command.folder,
            env={**os.environ, JOB_VARIABLE: job},
        )
        self._wait()
        code = self._process.wait()
        if code in _STOPPED and self._is_running(job):
            print(f"stopped by SIGTERM: requeueing job {job}", flush=True)
            subprocess.run(["scontrol", "requeue", job], check=False)
        if code:
            sys.exit(code if code > 0 else 128 - code)

    def checkpoint(self) -> Any:
        """Stop the worker, which writes checkpoints and requeues its trials; return the next one.

        Called by submitit in a signal handler.
        """
        from submitit.helpers import DelayedSubmission

        if self._process is not None:
            self._process.send_signal(signal.SIGUSR1)
            self._wait()
        return DelayedSubmission(SlurmWorker(self._command))

    def _wait(self) -> None:
        """Wait for the end of the process, also in a handler that interrupts this very function.

        The methods of ``Popen`` would wait for a lock that the interrupted one holds.
        """
        assert self._process is not None
        os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)

    @staticmethod
    def _is_running(job: str) -> bool:
        """Return whether SLURM regards a job as running: not as cancelled or requeued already."""
        listed = subprocess.run(
            ["squeue", "--noheader", f"--jobs={job}", "--format=%T"],
            capture_output=True,
            text=True,
            check=False,
        )
        return listed.stdout.strip() == "RUNNING"
