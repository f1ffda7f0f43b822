"""Claims of a study's report, so that one of the processes of a search writes it."""

import os
import shlex
import socket
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from reports.output import OUTPUT
from studies.attributes import REPORT_CLAIM
from studies.storage.create_study import update_system_attributes
from studies.storage.open import load_study, open_storage


@dataclass(frozen=True)
class ReportClaim:
    """Process that writes, or has written, the report of a study; stored as ``REPORT_CLAIM``.

    Attributes:
        finished: number of finished trials when it claimed the report.
        host: name of its machine.
        pid: its process id.
        path: folder of the report; the file itself once it is written.
        is_written: whether the report is written.
    """

    finished: int
    host: str
    pid: int
    path: str
    is_written: bool = False

    @classmethod
    def of_this_process(cls, finished: int) -> "ReportClaim":
        """Return the claim of this process."""
        return cls(finished, socket.gethostname(), os.getpid(), str(OUTPUT.absolute()))

    def describe(self, study: str) -> str:
        """Return one line on which process writes the report, and how to write another copy."""
        verb = "wrote" if self.is_written else "writes"
        command = shlex.join(["python", "-m", "reports", study])
        return (
            f"process {self.host}/{self.pid} {verb} it to {self.path}; for another copy: {command}"
        )

    def excludes(self, other: "ReportClaim", was_finished: bool) -> bool:
        """Return whether this claim keeps another process from writing the report.

        Args:
            other: claim of that process.
            was_finished: whether the study was finished when that process joined it. It then
                writes a report that is missing on its machine, or that a killed process left
                unwritten.
        """
        is_same_host = self.host == other.host
        if self.finished < other.finished or (is_same_host and self.pid == other.pid):
            return False
        if self.is_written:
            return not was_finished or Path(self.path).exists()
        return _is_alive(self.pid) if is_same_host else not was_finished


def claim_report(url: str, study: str, finished: int, was_finished: bool) -> ReportClaim | None:
    """Claim the report of a study for this process, in one transaction.

    Args:
        url: URL of the storage.
        study: name of the study.
        finished: number of its finished trials.
        was_finished: whether it was finished when this process joined it.

    Returns:
        None if this process is to write the report; else the claim of the process that does.

    Raises:
        StudiesError: if the study does not exist.
    """
    mine = ReportClaim.of_this_process(finished)
    found: ReportClaim | None = None

    def update(attributes: dict[str, Any]) -> dict[str, Any]:
        nonlocal found
        stored = attributes.get(REPORT_CLAIM)
        found = stored and ReportClaim(**stored)
        if found and found.excludes(mine, was_finished):
            return {}
        found = None
        return {REPORT_CLAIM: asdict(mine)}

    _update(url, study, update)
    return found


def record_report(url: str, study: str, finished: int, path: Path) -> None:
    """Record that this process has written the report that it claimed."""
    mine = ReportClaim.of_this_process(finished)
    written = replace(mine, path=str(path), is_written=True)

    def update(attributes: dict[str, Any]) -> dict[str, Any]:
        is_mine = attributes.get(REPORT_CLAIM) == asdict(mine)
        return {REPORT_CLAIM: asdict(written)} if is_mine else {}

    _update(url, study, update)


def _update(url: str, study: str, update: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    with closing(open_storage(url)) as storage:
        update_system_attributes(storage, load_study(storage, study)._study_id, update)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's process
        return True
    return True
