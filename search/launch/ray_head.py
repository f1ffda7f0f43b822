"""Questions about a study's tasks, answered on the head node of a Ray cluster."""

from dataclasses import dataclass

from ray.job_submission import JobSubmissionClient
from ray.util.state import list_jobs, list_tasks

MAX_TASKS = 10_000
"""The most tasks that Ray lists."""


@dataclass(frozen=True)
class WorkerTask:
    """A task that has not ended, and the ids of its node and of Ray's job."""

    task: str
    state: str
    node: str
    job: str


@dataclass(frozen=True)
class Driver:
    """The command that submitted tasks: a submitted job of Ray, or a process."""

    submission: str
    process: str
    host: str


def list_workers(dashboard: str, prefix: str) -> list[WorkerTask]:
    """List the tasks that have not ended, by the beginning of their names."""
    tasks = list_tasks(
        address=dashboard,
        filters=[
            ("func_or_class_name", "=", "run_worker"),
            ("state", "!=", "FINISHED"),
            ("state", "!=", "FAILED"),
        ],
        limit=MAX_TASKS,
        raise_on_missing_output=False,
    )
    return [
        WorkerTask(task.name, task.state, task.node_id or "", task.job_id)
        for task in tasks
        if task.name.startswith(prefix)
    ]


def stop_jobs(dashboard: str, prefix: str) -> list[Driver]:
    """Stop the jobs of such tasks that were submitted; return the drivers of all of them."""
    ids = {task.job for task in list_workers(dashboard, prefix)}
    drivers = []
    for job in list_jobs(address=dashboard, limit=MAX_TASKS):
        if job.job_id not in ids:
            continue
        process = job.driver_info
        drivers.append(Driver(job.submission_id or "", process.pid, process.node_ip_address))
        if job.submission_id:
            JobSubmissionClient(dashboard).stop_job(job.submission_id)
    return drivers
