"""Workers as tasks of a Ray cluster that is already running."""

import itertools
import json
import logging
import os
import socket
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import ray
from ray.exceptions import RayError
from ray.util import placement_group, placement_group_table, remove_placement_group
from tenacity import Retrying, retry_if_exception_message, stop_after_attempt

from search.launch.launcher import PROJECT, Job, LaunchError, WorkerCommand, parse_job
from search.launch.ray_node import WorkerStoppedError, run_worker
from studies.messages import shorten
from studies.storage.counts import ActiveWorker

STOP_SECONDS = 60.0
"""How long workers may take to stop; this command's end would stop them as well."""

CLIENT_PORT = 10001
"""Port of ``ray://`` addresses without one."""

_PASSED_ON = ("RNN_SEARCH_", "PG")
"""Prefixes of the environment variables that reach the workers: the storage's."""

_PACKAGES = ("reports", "rnn", "rnn_search", "search", "studies")

_EXCLUDED = (
    "?*.*",
    "!*.py",
    "!*.toml",
    "!*.c",
    "!*.h",
    "__pycache__",
    "artifacts",
    "checkpoints",
    "jobs",
    "weights",
)
"""Files that are not shipped to the nodes, such as the databases in ``studies/``."""

_retry = Retrying(
    retry=retry_if_exception_message(
        match=r"(?s)(?!.*Failed to create runtime_env)"
        r".*(Starting Ray client server failed|in start_specific_server\b)"
    ),
    stop=stop_after_attempt(4),
    reraise=True,
)
"""Calls again where the process that Ray starts for each client dies at once, as it may."""

_logger = logging.getLogger(__name__)


class RayLauncher:
    """Starts workers as tasks of Ray, with options of a task in JSON or as texts.

    Ray ends the tasks of a command when the command ends. Until then it starts a task again, on
    another node if necessary, whenever its process or its node dies. What the workers do is read
    from the study's leases, and which tasks there are from placement groups with their names: Ray's
    list of tasks needs its dashboard, which a cluster may lack.
    """

    ends_with_command = True

    def __init__(self, address: str, settings: Mapping[str, str]) -> None:
        self._settings = {key: _parse_value(text) for key, text in settings.items()}
        self._dashboard = join_cluster(address)
        self._tasks: dict[str, Any] = {}  # and the placement group of each
        self._taken: set[str] = set()

    def check(self) -> None:
        with _explaining_refusal():
            _create_task(self._settings)

    def submit(self, name: str, command: WorkerCommand, count: int) -> list[str]:
        request = {"num_cpus": command.threads or 1, **self._settings}
        threads = command.threads or max(1, int(request["num_cpus"]))
        arguments = *command.arguments, "--threads", str(threads), "--no-report"
        command = replace(command, arguments=arguments)
        environment = {
            key: value for key, value in os.environ.items() if key.startswith(_PASSED_ON)
        }
        if command.device.startswith("cuda"):
            request.setdefault("num_gpus", 1)
        elif not request.get("num_gpus"):  # GPUs that were not asked for belong to others
            environment["CUDA_VISIBLE_DEVICES"] = ""
        names = (f"{name} worker {number}" for number in itertools.count(1))
        free = (name for name in names if name not in self._taken)
        with _explaining_refusal():
            for worker in itertools.islice(free, count):
                task = _create_task({**request, "name": worker})
                started = task.remote(command, Path.cwd(), worker, environment)
                self._tasks[worker] = started, placement_group([{"memory": 1}], name=worker)
        resources = ", ".join(f"{key}={value}" for key, value in request.items())
        lines = [
            f"submitted {count} task{'s' * (count > 1)} to Ray, each with {resources}; "
            "Ctrl-C ends them"
        ]
        if self._dashboard:
            lines.append(f"Ray's dashboard: {self._dashboard}; the log of a task shows its trials")
        return lines

    def list_jobs(self, name: str, workers: Sequence[ActiveWorker]) -> list[Job]:
        self._log_failures()
        prefix = f"{name} worker "
        groups = placement_group_table().values()
        submitted = [group["name"] for group in groups if group["state"] != "REMOVED"]
        jobs = {task: Job(task, "pending") for task in submitted if task.startswith(prefix)}
        for worker in workers:
            job = parse_job(worker.name)
            if job.startswith(prefix) and not worker.is_expired:
                jobs[job] = Job(job, "running", worker.host or "")
        self._taken = {*jobs}
        return sorted(jobs.values(), key=lambda job: (len(job.id), job.id))

    def leave(self, name: str) -> str:
        tasks = [task for task, _ in self._tasks.values()]
        for task, group in self._tasks.values():
            ray.cancel(task)
            remove_placement_group(group)
        left = ray.wait(tasks, num_returns=len(tasks), timeout=STOP_SECONDS)[1] if tasks else []
        if left:
            return (
                f"{len(left)} of {len(tasks)} workers have not stopped yet: see rnn-search status"
            )
        return (
            f"stopped {len(tasks)} worker{'s' * (len(tasks) != 1)}; progress is saved: run the "
            "same command to resume"
        )

    def _log_failures(self) -> None:
        """Forget the tasks that have ended, with a warning for each that failed."""
        for name, (task, group) in [*self._tasks.items()]:
            if not ray.wait([task], timeout=0)[0]:
                continue
            del self._tasks[name]
            remove_placement_group(group)
            try:
                ray.get(task)
            except RayError as error:
                _logger.warning("%s %s", name, _describe(error))


def _create_task(options: Mapping[str, Any]) -> Any:
    """Return the task that runs a worker; Ray starts it again any number of times."""
    retry = {"max_retries": -1, "retry_exceptions": [WorkerStoppedError]}
    return ray.remote(run_worker).options(**{**options, **retry})


@contextmanager
def _explaining_refusal() -> Iterator[None]:
    try:
        yield
    except (TypeError, ValueError, RayError) as error:
        raise LaunchError(f"Ray refuses --launch-set: {_describe(error)}") from error


def _parse_value(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _describe(error: Exception) -> str:
    """Return the message of an error in one line, without Ray's wrapper or a server's traceback."""
    text = str(getattr(error, "cause", None) or error).strip()
    if "Traceback (most recent call last)" in text:
        text = text.splitlines()[-1]
    return shorten(" ".join(text.split()), 400)


def join_cluster(address: str) -> str:
    """Connect this process to a cluster; return the URL of its dashboard, "" without one.

    Without an address it is that of ``$RAY_ADDRESS``, or on this machine.

    Raises:
        LaunchError: if no cluster answers, or its versions of Ray or Python are others.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    where = address or os.environ.get("RAY_ADDRESS", "")
    if where not in ("", "auto"):
        _require_answer(where)
    environment = {
        "py_modules": [str(PROJECT / package) for package in _PACKAGES],
        "excludes": [*_EXCLUDED],
        # A task that Ray ends must leave its worker the time to stop.
        "env_vars": {"RAY_kill_child_processes_on_worker_exit": "0"},
    }
    try:
        with warnings.catch_warnings(action="ignore"):  # an error follows
            context = _retry(
                ray.init,
                address or "auto",
                runtime_env=environment,
                ignore_reinit_error=True,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    except Exception as error:  # Ray raises many, of no common class
        raise LaunchError(
            f"cannot join the Ray cluster at {shorten(where or 'this machine')}: {_describe(error)}"
        ) from error
    return f"http://{context.dashboard_url}" if context.dashboard_url else ""


def _require_answer(address: str) -> None:
    """Check that a port answers: Ray itself would try for two minutes."""
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        socket.create_connection((parts.hostname or "", parts.port or CLIENT_PORT), 10).close()
    except (OSError, ValueError) as error:
        raise LaunchError(
            f"no Ray cluster answers at {shorten(address)} ({error}): expected a running one, as "
            "in --launch ray://HOST:10001, or HOST:6379 in RAY_ADDRESS on one of its machines"
        ) from error
