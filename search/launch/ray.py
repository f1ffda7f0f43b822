"""Workers as tasks of a Ray cluster that is already running."""

import itertools
import json
import logging
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray

from search.errors import LaunchError
from search.launch import ray_head
from search.launch.launcher import Job, WorkerCommand, parse_count, parse_settings
from search.launch.ray_cluster import call_on_head, join_cluster
from search.launch.ray_worker import WorkerStoppedError, run_worker
from studies.text import shorten, to_line

STOP_SECONDS = 60.0
"""How long workers may take to stop; this command's end would stop them as well."""

_PASSED_ON = ("RNN_SEARCH_", "PG", "AWS_")
"""Prefixes of the environment variables that reach the workers: the storage's and a bucket's."""

_logger = logging.getLogger(__name__)

_UNITS = {"": 1, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40, "MB": 10**6, "GB": 10**9, "TB": 10**12}


class RayLauncher:
    """Starts workers as tasks of Ray; see :class:`search.launch.launcher.Launcher`.

    Ray ends the tasks of a command when the command ends. Until then it starts a task again, on
    another node if necessary, whenever its process or its node dies.

    Args:
        address: ``ray://HOST:PORT``; "" for ``$RAY_ADDRESS``, or a cluster on this machine.
        settings: values of ``--launch-set``: resources of a task.

    Raises:
        LaunchError: if no cluster answers, or a setting is invalid.
    """

    uses_other_machines = True
    ends_with_command = True
    log_folder: Path | None = None

    def __init__(self, address: str, settings: Mapping[str, str]) -> None:
        self._settings = parse_settings("ray", settings, SETTINGS)
        self._dashboard = join_cluster(address)
        self._tasks: dict[str, Any] = {}

    def submit(self, name: str, command: WorkerCommand, count: int) -> list[str]:
        """Submit a task for each worker."""
        command = command.with_threads(self._settings.get("num_cpus", 1))
        request = {"num_cpus": command.threads, **self._settings}
        environment = {
            key: value for key, value in os.environ.items() if key.startswith(_PASSED_ON)
        }
        if command.device.startswith("cuda"):
            request.setdefault("num_gpus", 1)
        elif not request.get("num_gpus"):  # GPUs that were not asked for belong to others
            environment["CUDA_VISIBLE_DEVICES"] = ""
        task: Any = ray.remote(run_worker)
        retry = {"max_retries": -1, "retry_exceptions": [WorkerStoppedError]}
        taken = {job.id for job in self.list_jobs(name)}
        names = (f"{name} worker {number}" for number in itertools.count(1))
        for each in itertools.islice((each for each in names if each not in taken), count):
            self._tasks[each] = task.options(name=each, **request, **retry).remote(
                command, each, environment
            )
        lines = [
            f"submitted {count} task{'s' * (count > 1)} to Ray, each with {_format(request)}; "
            "Ctrl-C ends them",
            f"Ray's dashboard: {self._dashboard}; the log of a task shows its trials",
        ]
        nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
        if not any(node["Alive"] and fits(request, node["Resources"]) for node in nodes):
            lines.append("warning: no node has these resources: the tasks wait until one joins")
        return lines

    def list_jobs(self, name: str) -> list[Job]:
        """List the tasks that have not ended; log the failures of those of this command."""
        self._log_failures()
        try:
            listed = call_on_head(ray_head.list_workers, self._dashboard, f"{name} worker ")
        except LaunchError:
            if not self._tasks:
                raise
            listed = []  # the tasks do not depend on the dashboard
        nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
        hosts = {node["NodeID"]: node["NodeManagerHostname"] for node in nodes}
        jobs = {
            worker.task: Job(
                worker.task,
                "running" if worker.state == "RUNNING" else "pending",
                hosts.get(worker.node, ""),
            )
            for worker in listed
        }
        jobs = {task: Job(task, "pending") for task in self._tasks} | jobs
        return sorted(jobs.values(), key=lambda job: (len(job.id), job.id))

    def cancel(self, name: str) -> str:
        """Stop the submitted jobs of Ray that the tasks belong to."""
        drivers = call_on_head(ray_head.stop_jobs, self._dashboard, f"{name} worker ")
        if not drivers:
            return "no worker to cancel"
        for driver in drivers:
            if not driver.submission:
                raise LaunchError(
                    f"the workers belong to a command that is not a job of Ray, process "
                    f"{driver.process} on {driver.host}: press Ctrl-C there, or send it SIGINT"
                )
        stopped = ", ".join(driver.submission for driver in drivers)
        return f"stopped {stopped}: running workers write checkpoints and requeue their trials"

    def cancel_pending(self, name: str) -> str:
        """Leave the tasks to Ray, which ends them with this command."""
        return ""

    def leave(self, name: str) -> str:
        """Cancel the tasks, and wait until their workers have requeued their trials."""
        tasks = [*self._tasks.values()]
        for task in tasks:
            ray.cancel(task)
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
        for name, task in [*self._tasks.items()]:
            if not ray.wait([task], timeout=0)[0]:
                continue
            del self._tasks[name]
            try:
                ray.get(task)
            except Exception as error:
                cause = getattr(error, "cause", None) or error
                _logger.warning("%s %s", name, to_line(shorten(str(cause), 400)))


def _format(request: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in request.items())


def parse_memory(text: str) -> int:
    """Return the bytes of an amount of memory such as ``4GiB``, ``500MB`` or ``1000000000``.

    Raises:
        ValueError: if it is none.
    """
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?) ?([a-z]*)", text, re.IGNORECASE)
    if not match or match[2].upper() not in _UNITS or not float(match[1]):
        raise ValueError("expected an amount of memory such as 4GiB or 500MB")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def _parse_gpus(text: str) -> float:
    expected = "expected a whole number of GPUs, or a share of one such as 0.5"
    try:
        amount = float(text)
    except ValueError as error:
        raise ValueError(expected) from error
    if not (0 <= amount <= 1024) or (amount > 1 and amount % 1):
        raise ValueError(expected)
    return amount


def _parse_resources(text: str) -> dict[str, float]:
    expected = """expected JSON as for ray start --resources, such as '{"fast": 1}'"""
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(expected) from error
    if not isinstance(parsed, dict) or not all(
        type(amount) in (int, float) and 0 < amount < math.inf for amount in parsed.values()
    ):
        raise ValueError(expected)
    return parsed


SETTINGS: dict[str, Any] = {
    "memory": parse_memory,
    "num_cpus": parse_count,
    "num_gpus": _parse_gpus,
    "resources": _parse_resources,
}
"""Options of Ray's tasks that ``--launch-set`` accepts."""


def fits(request: Mapping[str, Any], node: Mapping[str, float]) -> bool:
    """Return whether a node of these resources, by Ray's names, can run a task."""
    amounts = {
        "CPU": request["num_cpus"],
        "GPU": request.get("num_gpus", 0),
        "memory": request.get("memory", 0),
        **request.get("resources", {}),
    }
    return all(amount <= node.get(name, 0) for name, amount in amounts.items())
