"""Show a search: a dashboard while it runs, a report and a publication at its end."""

import contextlib
import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from reports.cli import retry_outages, write_final_report
from reports.dashboard.server import dashboard_url, open_listener
from reports.errors import USER_ERRORS
from studies.artifacts import open_store
from studies.attributes import LOOKS, REPORT_CLAIM
from studies.cli import ARTIFACTS_VARIABLE, STORAGE_VARIABLE, is_bug, print_bug
from studies.storage.changes import update_system_attributes
from studies.storage.counts import read_times
from studies.storage.engine import error_message
from studies.storage.open import load_study, open_storage

STOP_TIMEOUT_SECONDS = 0.5
"""How long a dashboard may take to stop before it is killed."""


@contextlib.contextmanager
def serve_dashboard(storage: str, artifacts: str | None, port: int) -> Iterator[None]:
    """Serve optuna-dashboard in a separate process while the context is active.

    A failure is printed and does not end the search.

    Args:
        storage: URL of the storage.
        artifacts: location of the artifacts, see :func:`studies.artifacts.open_store`.
        port: port to serve on.
    """
    try:
        server = _start_server(storage, artifacts, port)
    except Exception as error:  # port taken, no memory for a process
        click.echo(f"dashboard: {error}; the search continues without it")
        if is_bug(error, USER_ERRORS):
            print_bug(error)
        yield
        return
    click.echo(f"dashboard: {dashboard_url(port)}")
    try:
        yield
    finally:
        server.terminate()
        try:
            server.wait(STOP_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def finalize_search(
    storage: str, study: str, artifacts: str | None, finished: int, was_finished: bool
) -> None:
    """Write the report of a search that has ended and publish its study; failures are printed only.

    If another process that saw the search end does so, only print which. A process that joined a
    finished study writes its report in any case.

    Args:
        storage: URL of the storage.
        study: name of the study.
        artifacts: location of the artifacts, see :func:`studies.artifacts.open_store`.
        finished: number of finished trials.
        was_finished: whether the study was finished when this process joined it.
    """
    try:
        other = (
            "" if was_finished else retry_outages(lambda: _claim_report(storage, study, finished))
        )
    except Exception as error:  # the results are recorded
        click.echo(f"no report: {error_message(error)}")
        if is_bug(error, USER_ERRORS):
            print_bug(error)
        return
    if other:
        command = shlex.join(["rnn-search", "report", study])
        click.echo(f"report: process {other} writes it; for another copy: {command}")
        return
    write_final_report(storage, [study])
    try:
        from reports.dashboard.publish import publish_study  # slow: imports pandas and plotly

        with contextlib.closing(open_storage(storage)) as opened:
            publish_study(opened, study, lambda: open_store(artifacts, storage, "artifacts"))
    except Exception as error:  # the results are recorded
        click.echo(f"warning: cannot update the dashboard: {error_message(error)}", err=True)
        if is_bug(error, USER_ERRORS):
            print_bug(error)


def _claim_report(storage: str, study: str, finished: int) -> str:
    """Claim the report of a study's state; return the process that did so before, or "".

    The state contains the time of the last change, so trials that end later make it another one.
    """
    worker, other = f"{socket.gethostname()}/{os.getpid()}", ""
    with contextlib.closing(open_storage(storage)) as opened:
        loaded = load_study(opened, study)
        with opened.reading() as connection:
            _, changed = read_times(connection, loaded._study_id)
        state = [str(changed), finished, len(loaded.user_attrs.get(LOOKS, ()))]

        def update(attributes: dict[str, Any]) -> dict[str, Any]:
            nonlocal other
            mark = attributes.get(REPORT_CLAIM, {})
            # It is this process's own mark if the answer to an earlier attempt was lost.
            if mark.get("state") == state and mark["worker"] != worker:
                other = mark["worker"]
                return {}
            return {REPORT_CLAIM: {"state": state, "worker": worker}}

        update_system_attributes(opened, loaded._study_id, update)
    return other


def _start_server(storage: str, artifacts: str | None, port: int) -> "subprocess.Popen[bytes]":
    # URLs may contain passwords, and command lines are visible to all users of the machine.
    environment = os.environ | {STORAGE_VARIABLE: storage}
    if artifacts is not None:
        environment[ARTIFACTS_VARIABLE] = artifacts
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    command = [sys.executable, "-P", "-m", "rnn_search", "dashboard", "--port", str(port)]
    with open_listener(port) as listener:
        return subprocess.Popen(
            [*command, "--inherited-socket", str(listener.fileno())],
            env=environment,
            stdin=subprocess.PIPE,  # closes when this process ends, which stops the server
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[listener.fileno()],
            start_new_session=True,  # a Ctrl-C in the terminal is meant for the search
        )
