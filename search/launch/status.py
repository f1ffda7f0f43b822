"""The jobs of a study, next to the trials that they hold, for ``rnn-search status``."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import optuna

from search.launch.launcher import Job, Launcher, count_states
from studies.storage.counts import read_active_workers
from studies.storage.storage import LeasedRDBStorage
from studies.text import format_trials

MAX_ROWS = 60
"""Number of jobs that the table lists."""


@dataclass(frozen=True)
class JobStatus:
    """A job and the numbers of the trials that its worker holds."""

    job: Job
    trials: list[int]

    def as_json(self) -> dict[str, Any]:
        """Return the job as printed by ``--json``."""
        job = self.job
        return {"id": job.id, "state": job.state, "host": job.host, "trials": self.trials}


def read_jobs(
    launcher: Launcher, name: str, study: optuna.Study, storage: LeasedRDBStorage
) -> list[JobStatus]:
    """Read the jobs of a study, and its leases, which name the job of their worker.

    Args:
        launcher: launcher of the cluster.
        name: the study's artifact folder.
        study: the study.
        storage: storage that holds it.
    """
    jobs = launcher.list_jobs(name)
    with storage.reading() as connection:
        workers = read_active_workers(connection, study._study_id)
    held: dict[str, list[int]] = defaultdict(list)
    for worker in workers:
        held[parse_job(worker.name or "")] += worker.trials
    return [JobStatus(job, sorted(held[job.id])) for job in jobs]


def name_worker(host: str, pid: int, job: str | None) -> str:
    """Return the name of a worker in its leases: ``host/pid``, or ``host/pid/job`` on a cluster."""
    return f"{host}/{pid}/{job}" if job else f"{host}/{pid}"


def parse_job(worker: str) -> str:
    """Return the job in a worker's name; "" if it runs in none."""
    parts = worker.split("/", 2)
    return parts[2] if len(parts) > 2 else ""


def format_jobs(jobs: Sequence[JobStatus]) -> str:
    """Format jobs as the lines that ``rnn-search status`` prints below those of the study."""
    states = count_states([each.job for each in jobs])
    lines = [f"{'jobs':9} {states or 'none'}"]
    for each in jobs[:MAX_ROWS]:
        trials = format_trials(each.trials) if each.trials else ""
        parts = f"{each.job.id:12}", f"{each.job.state:10}", f"{each.job.host:12}", trials
        lines.append(f"  {'  '.join(parts)}".rstrip())
    if len(jobs) > MAX_ROWS:
        lines.append(f"  and {len(jobs) - MAX_ROWS} more")
    return "\n".join(lines)
