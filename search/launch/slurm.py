"""Workers as a job array of SLURM, submitted with submitit."""

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from search.errors import LaunchError
from search.launch.launcher import (
    PROJECT,
    Job,
    WorkerCommand,
    count_states,
    missing_library,
    parse_count,
    parse_settings,
)
from search.launch.slurm_worker import SlurmWorker
from studies.text import shorten, to_line

LOG_PARENT = Path("studies/jobs")
"""Parent of the folders of job scripts and logs, relative to the working directory."""

SIGNAL_SECONDS = 90
"""Time before the limit at which a worker is told to stop."""

_UNLIMITED = 10**9
"""Number of time limits that submitit lets a job reach before it gives up."""

DEFAULT_MINUTES = 60
"""Time limit of a job; one that reaches it is requeued, so it is not a limit of the search."""

MIN_MINUTES = 3
"""Shortest time limit: the start and the last checkpoint take some of it."""

_TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")


class SlurmLauncher:
    """Starts workers as a job array of SLURM; see :class:`search.launch.launcher.Launcher`.

    Args:
        settings: values of ``--launch-set``: options of ``sbatch``.

    Raises:
        LaunchError: if SLURM or submitit is missing, or SLURM refuses the settings or does not
            answer.
    """

    uses_other_machines = True
    ends_with_command = False
    log_folder: Path | None = LOG_PARENT

    def __init__(self, settings: Mapping[str, str]) -> None:
        for program in ("sbatch", "srun", "squeue", "scancel"):
            if shutil.which(program) is None:
                raise LaunchError(
                    f"--launch slurm needs the command {program}, which is not on PATH: run it on "
                    "a machine of the cluster from which jobs are submitted"
                )
        try:
            import submitit  # noqa: F401
        except ImportError as error:
            raise missing_library("slurm", "submitit") from error
        self._settings = parse_settings("slurm", settings, SETTINGS)
        if settings:
            options = {"time": DEFAULT_MINUTES} | self._settings
            given = [f"--{key}={value}" for key, value in options.items()]
            _run("sbatch", "--test-only", "--wrap=true", *given)
        else:
            _run("squeue", "--noheader", f"--user={os.getuid()}", "--states=PENDING")

    def submit(self, name: str, command: WorkerCommand, count: int) -> list[str]:
        """Submit a job array; the environment, with ``PGPASSWORD``, reaches the jobs."""
        import submitit
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        folder = LOG_PARENT.absolute() / name
        settings = {**self._settings}
        minutes = settings.pop("time", DEFAULT_MINUTES)
        threads = settings.pop("cpus-per-task", None) or command.threads or 1
        executor = submitit.SlurmExecutor(folder, max_num_timeout=_UNLIMITED)
        executor.update_parameters(
            job_name=name,
            time=minutes,
            cpus_per_task=threads,
            srun_args=[f"--cpus-per-task={threads}"],
            signal_delay_s=SIGNAL_SECONDS,
            array_parallelism=count,
            stderr_to_stdout=True,
            setup=[f"export PYTHONPATH={shlex.quote(str(PROJECT))}${{PYTHONPATH:+:$PYTHONPATH}}"],
            additional_parameters={**settings, "requeue": True},
        )
        worker = SlurmWorker(command.with_threads(threads))
        try:
            jobs = executor.submit_array([worker] * count)
        except (FailedJobError, FailedSubmissionError, OSError) as error:
            raise LaunchError(f"SLURM refused the jobs: {_last_line(str(error))}") from error
        array = jobs[0].job_id.partition("_")[0]
        limit = f"time limit {minutes} min, after which SLURM starts them again"
        return [
            f"submitted {count} job{'s' * (count > 1)} as {array}, of {threads} "
            f"core{'s' * (threads > 1)}; {limit}",
            f"logs: {folder}",
            f"jobs: squeue --name={name}, or rnn-search status --launch slurm; --cancel ends them",
        ]

    def list_jobs(self, name: str) -> list[Job]:
        """List the jobs of this user with the study's name, by their numbers."""
        listed = _run("squeue", *_select(name), "--noheader", "--array", "--format=%i|%T|%N")
        fields = [line.split("|") for line in listed.splitlines() if line.count("|") == 2]
        jobs = [Job(job, state.lower(), host) for job, state, host in fields]
        return sorted(jobs, key=lambda job: list(map(int, re.findall(r"\d+", job.id))))

    def cancel(self, name: str) -> str:
        """Cancel all jobs: SLURM sends SIGTERM, and SIGKILL after its ``KillWait``."""
        if not (jobs := self.list_jobs(name)):
            return "no job to cancel"
        _run("scancel", *_select(name))
        return (
            f"cancelled {len(jobs)} job{'s' * (len(jobs) > 1)} ({count_states(jobs)}): running "
            "workers write checkpoints and requeue their trials"
        )

    def cancel_pending(self, name: str) -> str:
        """Cancel the jobs that have not started; each would wait for cores and exit at once."""
        states = [job.state for job in self.list_jobs(name)]
        if not (count := states.count("pending")):
            return ""
        _run("scancel", *_select(name), "--state=PENDING")
        return f"cancelled {count} job{'s' * (count > 1)} that had not started"

    def leave(self, name: str) -> str:
        """Describe that the jobs do not depend on this command."""
        return "the jobs keep running: rnn-search status shows them, --cancel ends them"


def _select(name: str) -> tuple[str, str]:
    return f"--user={os.getuid()}", f"--name={name}"


def _run(*command: str) -> str:
    """Run a command of SLURM; return its output.

    Raises:
        LaunchError: if it fails.
    """
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LaunchError(f"{command[0]} failed: {_last_line(done.stderr or done.stdout)}")
    return done.stdout


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return to_line(shorten(lines[-1] if lines else "no message", 300))


def parse_minutes(text: str) -> int:
    """Return the minutes of a time limit of SLURM: ``90``, ``04:00:00``, ``1-12`` or ``1-12:30``.

    Raises:
        ValueError: if it is none, or too short.
    """
    expected = "expected a time limit such as 04:00:00 or 1-12:00:00"
    if not (match := _TIME.fullmatch(text)) or len(text) > 20:
        raise ValueError(expected)
    days, *parts = match.groups()
    first, second = (int(part or 0) for part in parts[:2])
    if days is not None:  # days-hours[:minutes[:seconds]]
        minutes = (int(days) * 24 + first) * 60 + second
    elif parts[2] is None:  # minutes[:seconds]
        minutes = first
    else:
        minutes = first * 60 + second
    if minutes < MIN_MINUTES:
        raise ValueError(f"{expected}, of at least {MIN_MINUTES} minutes")
    return minutes


def _parse_text(text: str) -> str:
    if not text.isprintable():
        raise ValueError("expected printable characters")
    return text


SETTINGS: dict[str, Any] = {
    "cpus-per-task": parse_count,
    "time": parse_minutes,
    **dict.fromkeys(
        ("account", "comment", "constraint", "exclude", "gpus", "gres", "mail-type", "mail-user",
         "mem", "mem-per-cpu", "nice", "nodelist", "partition", "qos", "reservation", "tmp"),
        _parse_text,
    ),
}  # fmt: skip
"""Options of ``sbatch`` that ``--launch-set`` accepts."""
