"""Workers as a job array of SLURM."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from search.launch.launcher import (
    JOB_VARIABLE,
    PROJECT,
    Job,
    LaunchError,
    WorkerCommand,
    count_states,
    describe_missing,
)
from studies.messages import shorten
from studies.storage.counts import ActiveWorker

LOG_PARENT = Path("studies/jobs")
"""Parent of the folders of logs, relative to the working directory."""

DEFAULTS = {"time": "01:00:00", "cpus-per-task": "1"}
"""Options of ``sbatch`` without ``--launch-set``. A job that reaches its time limit is requeued, so
it is not a limit of the search."""

SIGNAL = "USR1@90"
"""Signal before the time limit, in seconds: the worker exits with 128 + SIGUSR1, after which the
script requeues its job."""

SCRIPT = """#!/bin/bash
trap : TERM  # of a job that ends: the worker, which gets it as well, must have the time to stop
export {variable}="${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID"
export PYTHONPATH={project}"${{PYTHONPATH:+:$PYTHONPATH}}"
{check}
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" {worker}
code=$?
[ "$code" != 138 ] || exec scontrol requeue "${variable}"
exit "$code"
"""


class SlurmLauncher:
    """Starts workers as a job array of SLURM, with options of ``sbatch``."""

    ends_with_command = False

    def __init__(self, settings: Mapping[str, str]) -> None:
        self._settings = dict(settings)

    def check(self) -> None:
        _run("sbatch", "--test-only", *_format(DEFAULTS | self._settings), script=SCRIPT)

    def submit(self, name: str, command: WorkerCommand, count: int) -> list[str]:
        # The environment, with PGPASSWORD, reaches the jobs.
        folder = LOG_PARENT.absolute() / name
        folder.mkdir(parents=True, exist_ok=True)
        options = dict(DEFAULTS)
        if command.threads is not None:
            options["cpus-per-task"] = str(command.threads)
        options |= self._settings
        options |= {
            "job-name": name,
            "array": f"0-{count - 1}",
            "output": str(folder).replace("%", "%%") + "/%A_%a.log",
            "open-mode": "append",
            "signal": SIGNAL,
        }
        submitted = _run(
            "sbatch", "--parsable", "--requeue", *_format(options), script=write_script(command)
        )
        return [
            f"submitted {count} job{'s' * (count > 1)} as {submitted.strip().partition(';')[0]}; "
            f"time limit {options['time']}, after which SLURM starts them again",
            f"logs: {folder}",
            f"jobs: squeue --name={name}, or rnn-search status --launch slurm; --cancel ends them",
        ]

    def list_jobs(self, name: str, workers: Sequence[ActiveWorker]) -> list[Job]:
        listed = _run("squeue", *_select(name), "--noheader", "--array", "--format=%i|%T|%N")
        fields = [line.split("|") for line in listed.splitlines() if line.count("|") == 2]
        jobs = [Job(job, state.lower(), host) for job, state, host in fields]
        return sorted(jobs, key=lambda job: list(map(int, re.findall(r"\d+", job.id))))

    def cancel(self, name: str) -> str:
        """End all jobs: workers get SIGTERM and time to requeue their trials. Describe it."""
        if not (jobs := self.list_jobs(name, ())):
            return "no job to cancel"
        _run("scancel", *_select(name))
        return (
            f"cancelled {len(jobs)} job{'s' * (len(jobs) > 1)} ({count_states(jobs)}): running "
            "workers write checkpoints and requeue their trials"
        )

    def leave(self, name: str) -> str:
        return "the jobs keep running: rnn-search status shows them, --cancel ends them"


def write_script(command: WorkerCommand) -> str:
    """Return the script of a job, which needs no file: ``sbatch`` reads and keeps it."""
    worker = shlex.join([sys.executable, "-m", "rnn_search", *command.arguments])
    if command.threads is None:
        worker += ' --threads "$SLURM_CPUS_PER_TASK"'
    path = shlex.quote(str(command.marker))
    error = shlex.quote(describe_missing(command.marker))
    check = f'[ -e {path} ] || {{ echo "error: $HOSTNAME:" {error} >&2; exit 2; }}'
    return SCRIPT.format(
        variable=JOB_VARIABLE, project=shlex.quote(str(PROJECT)), check=check, worker=worker
    )


def _format(options: Mapping[str, str]) -> list[str]:
    return [f"--{key}={value}" for key, value in options.items()]


def _select(name: str) -> tuple[str, str]:
    return f"--user={os.getuid()}", f"--name={name}"


def _run(*command: str, script: str | None = None) -> str:
    """Return the output of a command of SLURM, with a script as its input."""
    try:
        done = subprocess.run(command, input=script, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise LaunchError(
            f"--launch slurm needs the command {command[0]}, which is not on PATH: run it on a "
            "machine of the cluster from which jobs are submitted"
        ) from error
    if done.returncode:
        lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        reason = shorten(lines[-1] if lines else "no message", 300)
        raise LaunchError(f"{command[0]} failed: {reason}")
    return done.stdout
