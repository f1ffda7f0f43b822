"""What a launcher does: start, list and end the workers of a study on a cluster."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from search.errors import LaunchError
from search.launch.target import LaunchTarget
from studies.text import expect_one_of, shorten

PROJECT = Path(__file__).resolve().parents[2]
"""Folder of ``run_search.py``, which an installed package has as well."""

JOB_VARIABLE = "RNN_SEARCH_JOB"
"""Environment variable with the id of the job that a worker runs in, which its leases then name."""


@dataclass(frozen=True)
class WorkerCommand:
    """Command that runs one worker, the same on each machine.

    Attributes:
        arguments: command line: the interpreter, ``run_search.py`` or ``refine.py``, and options.
        folder: working directory.
        threads: CPU threads of the worker; None for all cores of its job.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:i``.
    """

    arguments: tuple[str, ...]
    folder: Path
    threads: int | None = None
    device: str = "auto"

    def with_threads(self, threads: int) -> "WorkerCommand":
        """Return the command with a number of threads, unless it has one."""
        if self.threads is not None:
            return self
        arguments = (*self.arguments, "--threads", str(threads))
        return replace(self, arguments=arguments, threads=threads)


@dataclass(frozen=True)
class Job:
    """A job of a cluster that runs one worker, or will.

    Attributes:
        id: id by which the cluster knows it, also in :data:`JOB_VARIABLE` of its worker.
        state: word of the cluster in lower case, such as ``running`` or ``pending``.
        host: machine on which it runs; "" before it runs.
    """

    id: str
    state: str
    host: str = ""


class Launcher(Protocol):
    """Starts the workers of studies as jobs of a cluster.

    A constructor checks everything that can be checked before a study is written, and raises
    ``LaunchError``. All methods raise it if the cluster does not answer.

    Jobs are found by ``name``, the study's artifact folder: it begins with the study's name and is
    unique among studies. A job that ends before its study is finished, for any reason but an error
    of the worker, is started again by the launcher or by the cluster itself.

    Attributes:
        uses_other_machines: whether workers may run on other machines than this one, which then
            need a server as storage, and shared files.
        ends_with_command: whether the jobs end with the command that submitted them.
        log_folder: folder of the jobs' scripts and logs, which all machines must share; None if the
            cluster keeps them.
    """

    uses_other_machines: bool
    ends_with_command: bool
    log_folder: Path | None

    def submit(self, name: str, command: WorkerCommand, count: int) -> list[str]:
        """Start workers; return lines that tell the user how to follow them."""
        ...

    def list_jobs(self, name: str) -> list[Job]:
        """List the jobs that run a worker, or will; from any machine."""
        ...

    def cancel(self, name: str) -> str:
        """End all jobs: workers get SIGTERM and time to requeue their trials. Describe it."""
        ...

    def cancel_pending(self, name: str) -> str:
        """End the jobs that have not started, of a finished study; describe that, "" for none."""
        ...

    def leave(self, name: str) -> str:
        """Prepare the early end of the command; describe what becomes of the jobs.

        Jobs that end with the command are ended as by :meth:`cancel`.
        """
        ...


def create_launcher(target: LaunchTarget) -> Launcher:
    """Create the launcher of a cluster.

    Raises:
        LaunchError: if the library or the cluster is missing, or a setting is invalid.
    """
    if target.kind == "slurm":
        from search.launch.slurm import SlurmLauncher

        return SlurmLauncher(target.settings)
    try:
        from search.launch.ray import RayLauncher
    except ImportError as error:
        raise missing_library("ray", "Ray") from error
    return RayLauncher(target.address, target.settings)


def parse_settings(
    cluster: str, settings: Mapping[str, str], known: Mapping[str, Callable[[str], Any]]
) -> dict[str, Any]:
    """Parse the values of ``--launch-set``.

    Args:
        cluster: name of the launcher, for messages.
        settings: texts by key.
        known: parser of each known key; it raises ``ValueError`` that says what was expected.

    Raises:
        LaunchError: if a key is unknown or a value invalid.
    """
    parsed = {}
    for key, text in settings.items():
        if key not in known:
            raise LaunchError(
                f"--launch-set has no key {shorten(key)!r} for {cluster}: "
                f"{expect_one_of(sorted(known), key)}"
            )
        try:
            parsed[key] = known[key](text)
        except ValueError as error:
            raise LaunchError(f"--launch-set {key}={shorten(text)!r}: {error}") from error
    return parsed


def parse_count(text: str) -> int:
    """Return a number of cores.

    Raises:
        ValueError: if it is none.
    """
    if not text.isdecimal() or len(text) > 9 or not 1 <= int(text) <= 1024:
        raise ValueError("expected an integer from 1 to 1024")
    return int(text)


def missing_library(cluster: str, library: str) -> LaunchError:
    """Return the error for a launcher whose library is not installed."""
    return LaunchError(
        f"--launch {cluster} needs {library}: install it with pip install 'rnn-search[{cluster}]', "
        f"or pip install '.[{cluster}]' in a clone"
    )


def count_states(jobs: Sequence[Job]) -> str:
    """Return the number of jobs in each state: ``3 running, 1 pending``."""
    states = [job.state for job in jobs]
    return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
