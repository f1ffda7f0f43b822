"""A study shown while it is worked on, and when that has ended."""

import contextlib
import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import click

from reports.command_line import report_at_the_end
from reports.dashboard import address, listen
from reports.errors import DashboardError
from studies.command_line import ARTIFACTS_VARIABLE, STORAGE_VARIABLE
from studies.outages import reason

FIRST_SECONDS, EVERY_SECONDS = 5.0, 60.0
"""After which the note, the figure and the files of a study are renewed, at first and from then on;
each time a quarter more or less, so that not all terminals come at once."""

JOIN_SECONDS = 0.2
"""How long the end of a search waits for a renewal that is under way: who is told to stop does not
wait for a storage that does not answer."""

STOP_SECONDS = 5.0
"""How long it waits for the server before it kills it."""


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
                    stack.callback(_stop, server)
            renewals = Renewals(storage, study, artifacts)
            stack.callback(renewals.stop)
            renewals.start()
            yield

    def at_the_end(self, storage: str, study: str, artifacts: str | None) -> None:
        """Renew what the dashboard shows for the last time, and write the report."""
        Renewals(storage, study, artifacts).renew()
        report_at_the_end(storage, [study])


class Renewals(threading.Thread):
    """Renews what the dashboard shows of a study, time and again.

    Args:
        storage: its URL.
        study: the study's name.
        artifacts: where files lie.
    """

    def __init__(self, storage: str, study: str, artifacts: str | None) -> None:
        super().__init__(name="renewals", daemon=True)
        self._what = (storage, study, artifacts)
        self._end = threading.Event()
        self._has_warned = False

    def run(self) -> None:
        """Renew until :meth:`stop`."""
        seconds = FIRST_SECONDS
        while not self._end.wait(seconds * random.uniform(0.75, 1.25)):
            self.renew()
            seconds = EVERY_SECONDS

    def stop(self) -> None:
        """End: at once, or in a moment with the renewal that is under way."""
        self._end.set()
        self.join(JOIN_SECONDS)

    def renew(self) -> None:
        """Renew once; what fails is said the first time only."""
        try:
            # Imported here: it takes a second or two, which the start of a search need not wait.
            from reports.renewal import renew

            renew(*self._what)
        except Exception as error:  # a storage that is away, a full disk, whatever else
            if not self._has_warned:
                self._has_warned = True
                _warn(f"what the dashboard shows is not up to date: {reason(error)}")


def _serve(storage: str, artifacts: str | None, port: int) -> "subprocess.Popen[bytes] | None":
    """Start optuna-dashboard in a process of its own, which ends when this one does.

    Returns:
        The process; None if there is none, and then it is said why.
    """
    try:
        with listen(port) as listening:
            server = _start(storage, artifacts, port, listening.fileno())
    except (DashboardError, OSError) as error:
        click.echo(f"dashboard: {error}; the search goes on")
        return None
    click.echo(f"dashboard: {address(port)}")
    return server


def _start(
    storage: str, artifacts: str | None, port: int, listening: int
) -> "subprocess.Popen[bytes]":
    path = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    # The storage's URL may hold a password: not among the words, which everybody can read.
    environment = os.environ | {
        STORAGE_VARIABLE: storage,
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
    }
    if artifacts is not None:
        environment[ARTIFACTS_VARIABLE] = artifacts
    options = ["--port", str(port), "--inherited", str(listening)]
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "reports.dashboard", *options],
        env=environment,
        # Nothing is ever written there. It ends with this process, however that ends.
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=[listening],
        # A Ctrl-C in the terminal is for the search, which may work on for a while.
        start_new_session=True,
    )


def _stop(server: "subprocess.Popen[bytes]") -> None:
    server.terminate()
    try:
        server.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
    finally:
        assert server.stdin is not None
        server.stdin.close()


def _warn(line: str) -> None:
    # Nor does a terminal that is closed end the search.
    with contextlib.suppress(OSError, ValueError):
        click.echo(f"warning: {line}", err=True)
