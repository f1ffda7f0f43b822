"""A study shown while it is worked on, and when that has ended."""

import contextlib
import random
import subprocess
import threading
from collections.abc import Iterator

import click

from reports.cli import report_at_the_end
from reports.dashboard import process as beside
from reports.dashboard.__main__ import address, listen
from reports.dashboard.refresher import Upkeep, warn

FIRST_SECONDS, AGAIN_SECONDS = 15.0, 60.0
"""After which a study's upkeep begins, a quarter more or less, and begins again if it has failed: a
search that ends sooner is shown at its end."""


class LiveView:
    """Shows studies in optuna-dashboard, and reports on them at the end.

    It is :class:`search.cli.StudyView` to the doors; whatever fails here, the search goes on.
    """

    @contextlib.contextmanager
    def meanwhile(
        self, storage: str, study: str, artifacts: str | None, port: int | None
    ) -> Iterator[None]:
        """Keep up what the dashboard shows of a study, and serve the dashboard.

        Args:
            storage: its URL.
            study: the study's name.
            artifacts: where files lie, as :func:`studies.artifacts.open_store` takes it.
            port: to serve optuna-dashboard on; None not to.
        """
        with contextlib.ExitStack() as stack:
            if port is not None:
                server = _serve(storage, artifacts, port)
                if server is not None:
                    stack.callback(beside.stop, server)
            upkeep = _Upkeep(storage, study, artifacts)
            stack.callback(upkeep.stop)
            upkeep.start()
            yield

    def at_the_end(self, storage: str, study: str, artifacts: str | None) -> None:
        """Write the report, and renew what the dashboard shows for the last time."""
        report_at_the_end(storage, [study])
        Upkeep(storage, study, artifacts).renew()


class _Upkeep(threading.Thread):
    """Has a process renew what the dashboard shows of a study, once the search has begun.

    Args:
        storage: its URL.
        study: the study's name.
        artifacts: where files lie.
    """

    def __init__(self, storage: str, study: str, artifacts: str | None) -> None:
        super().__init__(name="upkeep", daemon=True)
        self._what = (study, storage, artifacts)
        self._process: subprocess.Popen[bytes] | None = None
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._has_warned = False

    def run(self) -> None:
        """Start the process, say what it says, and start it again if it ends before its time."""
        pause = FIRST_SECONDS
        while not self._ended.wait(pause * random.uniform(0.75, 1.25)):
            pause = AGAIN_SECONDS
            try:
                self._go_along()
            except Exception as error:  # there may be no memory for another process
                self._warn(f"warning: what the dashboard shows is not kept up: {error}")

    def stop(self) -> None:
        """End the process, or see that it does not begin."""
        self._ended.set()
        with self._lock:
            if self._process is not None:
                beside.stop(self._process)

    def _go_along(self) -> None:
        study, storage, artifacts = self._what
        with self._lock:
            if self._ended.is_set():
                return
            self._process = beside.start(
                "reports.dashboard.refresher", ["--", study], storage, artifacts, is_heard=True
            )
        said = self._process.stderr
        assert said is not None
        for line in said:
            # By this process, which may be drawing on the terminal.
            warn(line.decode(errors="replace").rstrip())
        code = self._process.wait()
        if not self._ended.is_set():
            self._warn(
                "warning: what keeps up what the dashboard shows has ended "
                f"(exit code {code}); it is started again"
            )

    def _warn(self, line: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            warn(line)


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
                "reports.dashboard.__main__", words, storage, artifacts, [inherited]
            )
    except Exception as error:  # a port that is taken, no memory for another process
        click.echo(f"dashboard: {error}; the search goes on")
        return None
    click.echo(f"dashboard: {address(port)}")
    return server
