"""What a launcher does: start, list and end the workers of a study on a cluster.

Workers on other machines need a storage on a server, and a folder that the machines share.
"""

import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol
from urllib.parse import urlsplit
from uuid import uuid4

from rnn.errors import UserError
from studies.messages import shorten

if TYPE_CHECKING:
    from studies.storage.counts import ActiveWorker

PROJECT = Path(__file__).resolve().parents[2]
"""Folder of the project's packages."""

JOB_VARIABLE = "RNN_SEARCH_JOB"
"""Environment variable with the id of the job that a worker runs in, which its leases then name."""

MARKER_PREFIX = ".shared-"
"""Start of the random name of a file by which workers recognize the folder of checkpoints."""


class LaunchError(UserError):
    """A cluster cannot run workers as the command line says, or does not answer."""


@dataclass(frozen=True)
class LaunchTarget:
    """Where the workers of a run are started: the options ``--launch`` and ``--launch-set``.

    Attributes:
        kind: this machine, or the kind of cluster.
        address: address of a Ray cluster, as ``ray://HOST:PORT``; "" for none.
        settings: options of the cluster's jobs, which the cluster checks.
    """

    kind: Literal["local", "slurm", "ray"] = "local"
    address: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_local(self) -> bool:
        """Whether the workers are processes of this machine, without a cluster."""
        return self.kind == "local"


def parse_target(text: str, settings: Sequence[str] = ()) -> LaunchTarget:
    """Parse the values of ``--launch`` and ``--launch-set``.

    Of several settings ``KEY=VALUE`` of one key the last one counts.

    Raises:
        ValueError: if one is invalid.
    """
    pairs = dict(_parse_setting(setting) for setting in settings)
    if text == "local":
        if pairs:
            raise ValueError("--launch-set requires --launch slurm or ray")
        return LaunchTarget()
    if text == "slurm":
        return LaunchTarget("slurm", settings=pairs)
    if text == "ray" or _is_ray_address(text):
        return LaunchTarget("ray", "" if text == "ray" else text, pairs)
    raise ValueError(
        f"--launch has the value {shorten(text)!r}: expected local, slurm, ray or ray://HOST:PORT"
    )


def _is_ray_address(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme == "ray" and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:  # a port that is not a number
        return False


def _parse_setting(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals and value):
        raise ValueError(
            f"--launch-set has the value {shorten(text)!r}: expected KEY=VALUE, as in time=04:00:00"
        )
    return key, value


@dataclass(frozen=True)
class WorkerCommand:
    """Command that runs one worker, the same on each machine.

    Attributes:
        arguments: arguments of ``python -m rnn_search``, to be run in this working directory.
        marker: file in a shared folder that the job must find before it starts the worker.
        threads: CPU threads of the worker; None for those that its job has.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:i``.
    """

    arguments: tuple[str, ...]
    marker: Path
    threads: int | None = None
    device: str = "auto"


@dataclass(frozen=True)
class Job:
    """A job of a cluster that runs one worker, or will.

    Attributes:
        id: id by which the cluster knows it, also in :data:`JOB_VARIABLE` of its worker.
        state: word of the cluster in lower case, such as ``running`` or ``pending``.
        host: machine on which it runs; "" before it runs.
        trials: numbers of the trials that its worker holds.
    """

    id: str
    state: str
    host: str = ""
    trials: Sequence[int] = ()


class Launcher(Protocol):
    """Starts the workers of studies as jobs of a cluster.

    All methods raise ``LaunchError`` if the cluster does not answer, and the constructor if the
    cluster or its library is missing.

    Jobs are found by ``name``, the study's artifact folder: it begins with the study's name and is
    unique among studies. A job that ends before its study is finished, for any reason but an error
    of the worker, is started again by the launcher or by the cluster itself.

    Attributes:
        ends_with_command: whether the jobs end with the command that submitted them.
    """

    ends_with_command: bool

    def check(self) -> None:
        """Let the cluster check the options of the jobs, before a study is written.

        Raises:
            LaunchError: if it refuses them.
        """

    def submit(self, name: str, command: WorkerCommand, count: int) -> list[str]:
        """Start workers; return lines that tell the user how to follow them."""

    def list_jobs(self, name: str, workers: "Sequence[ActiveWorker]") -> list[Job]:
        """List the jobs that run a worker, or will; from any machine.

        Args:
            name: artifact folder of the study.
            workers: workers that hold its trials, for a cluster whose own list is not needed.
        """

    def leave(self, name: str) -> str:
        """Prepare the early end of the command; describe what becomes of the jobs.

        Workers whose jobs end with the command get SIGTERM and time to requeue their trials.
        """


def create_launcher(target: LaunchTarget) -> Launcher:
    """Create the launcher of a cluster.

    Raises:
        LaunchError: if the cluster or its library is missing.
    """
    if target.kind == "slurm":
        from search.launch.slurm import SlurmLauncher

        return SlurmLauncher(target.settings)
    try:
        from search.launch.ray import RayLauncher
    except ImportError as error:
        raise LaunchError(
            "--launch ray needs Ray: install it with pip install 'rnn-search[ray]', or "
            "pip install '.[ray]' in a clone"
        ) from error
    return RayLauncher(target.address, target.settings)


def count_states(jobs: Sequence[Job]) -> str:
    """Return the number of jobs in each state: ``3 running, 1 pending``."""
    states = [job.state for job in jobs]
    return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))


def name_worker() -> str:
    """Name this process in its leases: ``host/pid``, or ``host/pid/job`` on a cluster."""
    name, job = f"{socket.gethostname()}/{os.getpid()}", os.environ.get(JOB_VARIABLE)
    return f"{name}/{job}" if job else name


def parse_job(worker: str | None) -> str:
    """Return the job in a worker's name; "" if it runs in none."""
    parts = (worker or "").split("/", 2)
    return parts[2] if len(parts) > 2 else ""


# ------------------------------------------------------------------ what machines share


def require_server(storage: str) -> None:
    """Check that workers on other machines can use a storage.

    Raises:
        LaunchError: if it is a file, or its URL has a password.
        StorageError: if its URL is invalid.
    """
    from studies.storage.database import parse_url, redact  # slow

    url = parse_url(storage)
    if url.get_backend_name() == "sqlite":
        raise LaunchError(
            f"storage {redact(url)} is a file, which workers on other machines cannot share: "
            "expected a server, as in --storage postgresql+psycopg://USER@HOST/DATABASE"
        )
    if url.password or {"password", "sslpassword"} & url.query.keys():
        raise LaunchError(
            f"storage {redact(url)} has a password, which command lines of workers would show: "
            "expected it in PGPASSWORD or ~/.pgpass"
        )


def mark_folder(folder: Path) -> Path:
    """Return the marker in the folder of checkpoints, created by the first call.

    It has a random name, so that a job finds it only in a folder that its machine shares. A type of
    file system does not say whether other machines have mounted the same folder.

    Raises:
        LaunchError: if it cannot be written.
    """
    folder = folder.resolve()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path = next(folder.glob(f"{MARKER_PREFIX}*"), folder / f"{MARKER_PREFIX}{uuid4().hex}")
        path.touch()
    except OSError as error:
        raise LaunchError(f"cannot write to the folder of checkpoints {folder}: {error}") from error
    return path


def describe_missing(marker: Path) -> str:
    """Return what a job reports that does not find the marker."""
    folder = marker.parent
    return (
        f"folder of checkpoints {folder} is not the same on all machines: expected --artifacts "
        "with a shared folder"
    )
