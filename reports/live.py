"""A study shown while it is worked on, and when that has ended."""

import contextlib
import random
import subprocess
import threading
from collections.abc import Iterator

import click

from reports import beside
from reports.command_line import report_at_the_end
from reports.dashboard import address, listen
from reports.errors import DashboardError
from reports.upkeep import Upkeep, warn

FIRST_SECONDS = 5.0
"""After which a study's upkeep begins, a quarter more or less: a search that ends sooner is shown
at its end."""


class LiveView:
    """Shows studies in optuna-dashboard, and reports on them at the end.

    It is :class:`search.command_line.Viewer` to the doors; whatever fails here, the search goes on.
    """

    @contextlib.contextmanager
    def meanwhile(
        self, storage: str, study: str, artifacts: str | None, port: int | None
    ) -> Iterator[None]:
        """Keep up what the dashboard shows of a study, and serve the dashboard.

        Args:
            storage: its URL.
            study: the study's name.
            artifacts: where files lie, as :func:`studies.stores.open_store` takes it.
            port: to serve optuna-dashboard on; None not to.
        """
        with contextlib.ExitStack() as stack:
            if port is not None:
                server = _serve(storage, artifacts, port)
                if server is not None:
                    stack.callback(beside.stop, server)
            upkeep = _LaterUpkeep(storage, study, artifacts)
            stack.callback(upkeep.stop)
            yield

    def at_the_end(self, storage: str, study: str, artifacts: str | None) -> None:
        """Renew what the dashboard shows for the last time, and write the report."""
        Upkeep(storage, study, artifacts).renew()
        report_at_the_end(storage, [study])


class _LaterUpkeep:
    """The process that renews what the dashboard shows of a study, once the search has begun.

    Args:
        storage: its URL.
        study: the study's name.
        artifacts: where files lie.
    """

    def __init__(self, storage: str, study: str, artifacts: str | None) -> None:
        self._what = (study, storage, artifacts)
        self._process: subprocess.Popen[bytes] | None = None
        self._has_ended = False
        self._lock = threading.Lock()
        self._timer = threading.Timer(FIRST_SECONDS * random.uniform(0.75, 1.25), self._start)
        self._timer.daemon = True
        self._timer.start()

    def stop(self) -> None:
        """End it, or see that it does not begin."""
        self._timer.cancel()
        with self._lock:
            self._has_ended = True
        if self._process is not None:
            beside.stop(self._process)

    def _start(self) -> None:
        study, storage, artifacts = self._what
        with self._lock:
            if self._has_ended:
                return
            try:
                self._process = beside.start("reports.upkeep", ["--", study], storage, artifacts)
            except OSError as error:
                warn(f"what the dashboard shows is not kept up: {error}")


def _serve(storage: str, artifacts: str | None, port: int) -> "subprocess.Popen[bytes] | None":
    """Start optuna-dashboard in a process of its own, which ends when this one does.

    Returns:
        The process; None if there is none, and then it is said why.
    """
    try:
        with listen(port) as listening:
            inherited = listening.fileno()
            words = ["--port", str(port), "--inherited", str(inherited)]
            server = beside.start(
                "reports.dashboard", words, storage, artifacts, [inherited], speaks=False
            )
    except (DashboardError, OSError) as error:
        click.echo(f"dashboard: {error}; the search goes on")
        return None
    click.echo(f"dashboard: {address(port)}")
    return server
