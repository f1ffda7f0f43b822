"""``python -m reports.dashboard``: serve optuna-dashboard to this machine."""

import contextlib
import http.client
import io
import json
import logging
import os
import queue
import signal
import socket
import threading
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import Any
from urllib.parse import urlsplit
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import click
import optuna

from reports.dashboard.process import wait_for_search
from reports.errors import DashboardError, ReportError
from studies.artifacts import open_store
from studies.cli import (
    artifacts_option,
    dashboard_port_option,
    run_command,
    storage_options,
)
from studies.errors import StudiesError
from studies.storage.open import open_storage

HOST = "127.0.0.1"
"""The only address that is served: the dashboard asks nobody who he is, and can delete studies."""

ANSWER_SECONDS = 2.0
"""How long to wait for an answer on a port that is taken, to learn if it is a dashboard's."""

_NAMES = {HOST, "localhost", "::1"}
"""By which a browser on this machine, or at the other end of a tunnel, calls it."""

_SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def address(port: int) -> str:
    """Return what a browser is to be given."""
    return f"http://{HOST}:{port}"


def listen(port: int) -> socket.socket:
    """Take a port of this machine, to be served by whoever gets the socket.

    Raises:
        DashboardError: if it cannot be had.
    """
    try:
        return socket.create_server((HOST, port))
    except OSError as error:
        if _is_dashboard(port):
            raise DashboardError(
                f"port {port} is taken by an optuna-dashboard that is there already: "
                f"{address(port)}; for another one name another --port"
            ) from error
        raise DashboardError(
            f"port {port} cannot be had ({os.strerror(error.errno or 0)}); allowed: one that is "
            "free; name another --port"
        ) from error


def _is_dashboard(port: int) -> bool:
    """Tell whether an optuna-dashboard answers."""
    with contextlib.suppress(OSError, ValueError, http.client.HTTPException):
        connection = http.client.HTTPConnection(HOST, port, timeout=ANSWER_SECONDS)
        with contextlib.closing(connection):
            connection.request("GET", "/api/meta")
            return "artifact_is_available" in json.loads(connection.getresponse().read(10_000))
    return False


@click.command(help="Serve optuna-dashboard on all studies of a storage, for this machine alone.")
@storage_options
@artifacts_option
@dashboard_port_option
@click.option("--inherited", type=int, hidden=True)
def dashboard(
    storage: str, artifacts: str | None, port: int, inherited: int | None, debug: bool
) -> int:
    """Serve until a signal comes.

    Args:
        storage: the URL of what is served; it is made if it is not there.
        artifacts: where files lie.
        port: to serve on.
        inherited: the number of the socket that the search which started this process listens on;
            with it, the end of the standard input is the end of that search, and of this process.
        debug: show the tracebacks of requests that fail.

    Returns:
        The exit code.
    """
    listening = listen(port) if inherited is None else socket.socket(fileno=inherited)
    store = open_store(artifacts, storage, "artifacts")
    with listening, contextlib.closing(open_storage(storage)) as opened:
        # Imported here: who cannot have the port need not wait for it.
        from optuna_dashboard import wsgi

        if not debug:
            logging.getLogger("optuna_dashboard").setLevel(logging.CRITICAL)
        server = _Server(listening, local_only(wsgi(opened, artifact_store=store)), debug)
        ends: queue.SimpleQueue[int] = queue.SimpleQueue()
        for number in _SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup wants it
                signal.signal(number, lambda number, _: ends.put(128 + number))
        _start(server.serve_forever)
        if inherited is None:
            click.echo(f"dashboard: {address(port)} (Ctrl-C ends it)")
            names = optuna.get_all_study_names(opened)
            _start(lambda: _renew_all(storage, names, artifacts))
        else:
            _start(lambda: _end_with_search(ends))
        code = ends.get()
        server.shutdown()
    return code


def local_only(application: Application) -> Application:
    """Let only those through who call this machine by its own name.

    Another site's page, whose name leads here or which sends a form here, is refused.
    """

    def serve(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        hosts = [f"//{environ.get('HTTP_HOST', '')}", environ.get("HTTP_ORIGIN", f"//{HOST}")]
        if all(map(_is_local, hosts)):
            return application(environ, start_response)
        start_response("403 Forbidden", [("Content-Type", "text/plain")])
        return [b"This dashboard answers to 127.0.0.1 and localhost only.\n"]

    return serve


def _is_local(url: str) -> bool:
    try:
        return urlsplit(url).hostname in _NAMES
    except ValueError:
        return False


def _end_with_search(ends: "queue.SimpleQueue[int]") -> None:
    wait_for_search()
    ends.put(0)


def _renew_all(storage: str, names: list[str], artifacts: str | None) -> None:
    """Give studies that no search is at work on the note that they lack, if they do."""
    from reports.dashboard.publish import renew

    for name in names:
        # What cannot be renewed is shown as it is; others' studies are none of ours.
        with contextlib.suppress(Exception):
            renew(storage, name, artifacts)


def _start(work: Callable[[], object]) -> None:
    threading.Thread(target=work, daemon=True).start()


class _Server(ThreadingMixIn, WSGIServer):
    """Serves an application on a socket that listens already, a thread a request.

    Args:
        listening: the socket.
        application: to serve.
        debug: show the tracebacks of requests that fail.
    """

    daemon_threads = True

    def __init__(self, listening: socket.socket, application: Application, debug: bool) -> None:
        super().__init__((HOST, 0), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listening
        self.server_address = listening.getsockname()
        # Not by the way of the base class, which asks for this machine's name on the network.
        self.server_name, self.server_port = HOST, self.server_address[1]
        self.setup_environ()
        self.set_app(application)
        self.debug = debug

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of browsers that went away."""
        if self.debug:
            super().handle_error(request, client_address)


class _Handler(WSGIRequestHandler):
    def log_message(self, *args: Any) -> None:
        """Say nothing of requests."""

    def get_stderr(self) -> Any:
        server = self.server
        assert isinstance(server, _Server)
        return super().get_stderr() if server.debug else io.StringIO()


def main() -> None:
    """Run the command."""
    run_command(dashboard, (StudiesError, ReportError))


if __name__ == "__main__":
    main()
