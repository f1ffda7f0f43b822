"""Workers as jobs of SLURM, submitted with submitit."""

from collections.abc import Mapping

from search.errors import LaunchError
from search.launch.launcher import Job, WorkerCommand


class SlurmLauncher:
    """Starts workers as a job array of SLURM.

    Args:
        settings: values of ``--launch-set``.

    Raises:
        LaunchError: if SLURM or submitit is missing, or a setting is invalid.
    """

    uses_other_machines = True

    def __init__(self, settings: Mapping[str, str]) -> None:
        raise LaunchError("--launch slurm is not available yet: expected local")

    def submit(self, name: str, command: WorkerCommand, count: int) -> list[str]:
        """Submit a job array; see :class:`search.launch.launcher.Launcher`."""
        raise NotImplementedError

    def list_jobs(self, name: str) -> list[Job]:
        """List the jobs; see :class:`search.launch.launcher.Launcher`."""
        raise NotImplementedError

    def cancel(self, name: str) -> str:
        """End all jobs; see :class:`search.launch.launcher.Launcher`."""
        raise NotImplementedError

    def leave(self, name: str) -> str:
        """Describe the jobs that stay; see :class:`search.launch.launcher.Launcher`."""
        raise NotImplementedError
