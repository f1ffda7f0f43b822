"""A worker in a job of SLURM: what submitit calls on the node.

Must be importable without PyTorch: it only starts the worker and passes signals on.
"""

import contextlib
import os
import signal
import subprocess
import sys
from typing import Any

from search.launch.launcher import JOB_VARIABLE, WorkerCommand


class SlurmWorker:
    """Callable that runs a worker, and stops it when SLURM ends its job early.

    SLURM sends SIGUSR2 before the time limit: submitit then calls :meth:`checkpoint` and requeues
    the job. A preemption sends SIGTERM, to which the worker itself reacts, and SLURM requeues the
    job; one that is cancelled gets SIGTERM as well.

    Args:
        command: command of the worker.
    """

    def __init__(self, command: WorkerCommand) -> None:
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> None:
        """Run the worker; exit with its exit code."""
        from submitit import JobEnvironment

        self._process = subprocess.Popen(
            self._command.arguments,
            cwd=self._command.folder,
            env={**os.environ, JOB_VARIABLE: JobEnvironment().job_id},
        )
        self._wait()
        code = self._process.wait()
        if code:
            sys.exit(code if code > 0 else 128 - code)

    def checkpoint(self) -> Any:
        """Stop the worker, which writes checkpoints and requeues its trials; return the next one.

        Called by submitit in a signal handler.
        """
        from submitit.helpers import DelayedSubmission

        if self._process is not None:
            # It may have ended; ``send_signal`` would then take its exit code from the wait.
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(self._process.pid, signal.SIGUSR1)
                self._wait()
        return DelayedSubmission(SlurmWorker(self._command))

    def _wait(self) -> None:
        """Wait for the end of the process, also in a handler that interrupts this very function.

        The methods of ``Popen`` would wait for a lock that the interrupted one holds.
        """
        assert self._process is not None
        os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
