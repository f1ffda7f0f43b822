"""``python -m reports.dashboard.refresher``: renew what optuna-dashboard shows of a study.

A process beside the search, for what it imports takes as much memory as a network in training.
"""

import contextlib
import os
import random
import signal
import sys
import threading
import time

import click

from reports.dashboard.process import wait_for_search
from studies.cli import artifacts_option, run_command, storage_options
from studies.errors import StudiesError
from studies.storage.retry import error_message

EVERY_SECONDS = 60.0
"""Between two renewals, a quarter more or less: not all terminals are to come at once."""

LAST_SECONDS = 5.0
"""For what is under way when the search has ended without a word."""


class Upkeep:
    """Renews the note, the figure and the files of a study; whatever fails is tried again.

    Args:
        storage: its URL.
        study: the study's name.
        artifacts: where files lie, as :func:`studies.artifacts.open_store` takes it.
    """

    def __init__(self, storage: str, study: str, artifacts: str | None) -> None:
        self._what = (storage, study, artifacts)
        self._has_warned = False

    def renew(self) -> None:
        """Renew once; what fails is said the first time only."""
        try:
            # Imported here: it takes a second or two, and this process may be to end at once.
            from reports.dashboard.publish import renew

            renew(*self._what)
        except Exception as error:  # a storage that is away, a full disk, whatever else
            if not self._has_warned:
                self._has_warned = True
                warn(f"warning: what the dashboard shows is not up to date: {error_message(error)}")

    def go_on(self, ended: threading.Event) -> None:
        """Renew time and again."""
        while not ended.is_set():
            self.renew()
            ended.wait(EVERY_SECONDS * random.uniform(0.75, 1.25))


def warn(line: str) -> None:
    """Say what is wrong, if there is somebody to be told."""
    # Nor does a terminal that is closed end the search.
    with contextlib.suppress(OSError, ValueError):
        click.echo(line, err=True)


@click.command(help="Renew what optuna-dashboard shows of a study until the standard input ends.")
@click.argument("study")
@storage_options
@artifacts_option
def upkeep(study: str, storage: str, artifacts: str | None, debug: bool) -> int:
    """Renew until the search has ended, and then end with what is under way."""
    if hasattr(os, "nice"):
        os.nice(10)  # the cores are for training
    ended, code = threading.Event(), 0

    def end(number: int, _: object) -> None:
        nonlocal code
        code = 128 + number
        ended.set()
        sys.exit(code)  # and a file that is being written is not left half-way

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    threading.Thread(target=_end_with_search, args=(ended,), daemon=True).start()
    Upkeep(storage, study, artifacts).go_on(ended)
    return code


def _end_with_search(ended: threading.Event) -> None:
    wait_for_search()
    ended.set()
    time.sleep(LAST_SECONDS)
    os._exit(1)  # a storage that does not answer; and nobody is left to end this process


if __name__ == "__main__":
    run_command(upkeep, (StudiesError,))
