"""Serve optuna-dashboard on this machine and publish the studies that are viewed."""

import contextlib
import http.client
import io
import json
import logging
import os
import queue
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import click

from reports.errors import USER_ERRORS, DashboardError
from studies.artifacts import Store, open_store
from studies.cli import (
    artifacts_option,
    dashboard_port_option,
    is_bug,
    is_debugging,
    print_bug,
    storage_options,
)
from studies.errors import StudiesError
from studies.storage.engine import error_message
from studies.storage.open import open_storage
from studies.storage.storage import LeasedRDBStorage

if TYPE_CHECKING:
    from reports.dashboard.publish import StudyPublisher

HOST = "127.0.0.1"
"""Address of the server: optuna-dashboard has no login and can delete studies."""

PUBLISH_INTERVAL_SECONDS = 10.0
"""Minimum time between the end of a study's publication and the start of the next one."""

PROBE_TIMEOUT_SECONDS = 2.0
"""How long to wait for an answer on a port that is taken, to see if it is a dashboard's."""

_LOCAL_NAMES = {HOST, "localhost", "::1"}
_FRAME_HEADERS = [
    ("X-Frame-Options", "DENY"),
    ("Content-Security-Policy", "frame-ancestors 'none'"),
]
"""Headers with which a browser shows no response in a frame of any page."""

_STUDY_REQUEST = re.compile(r"/api/studies/(\d{1,18})(/|$)")
_SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def dashboard_url(port: int) -> str:
    """Return the URL of the dashboard on a port."""
    return f"http://{HOST}:{port}"


def open_listener(port: int) -> socket.socket:
    """Open a listening socket on a port of this machine.

    Raises:
        DashboardError: if the port cannot be used.
    """
    try:
        return socket.create_server((HOST, port))
    except OSError as error:
        if _is_dashboard(port):
            raise DashboardError(
                f"port {port} is in use by another optuna-dashboard ({dashboard_url(port)}); "
                "choose another --port"
            ) from error
        raise DashboardError(
            f"port {port} cannot be used ({os.strerror(error.errno or 0)}); choose another --port"
        ) from error


def _is_dashboard(port: int) -> bool:
    with contextlib.suppress(OSError, ValueError, http.client.HTTPException):
        connection = http.client.HTTPConnection(HOST, port, timeout=PROBE_TIMEOUT_SECONDS)
        with contextlib.closing(connection):
            connection.request("GET", "/api/meta")
            return "artifact_is_available" in json.loads(connection.getresponse().read(10_000))
    return False


@click.command(help="Serve optuna-dashboard for all studies of a storage, on this machine only.")
@storage_options
@artifacts_option
@dashboard_port_option
@click.option("--inherited-socket", type=int, hidden=True)
def dashboard(storage: str, artifacts: str | None, port: int, inherited_socket: int | None) -> int:
    """Serve until a signal arrives.

    Args:
        storage: URL of the storage; created if it does not exist.
        artifacts: location of the artifacts, see :func:`studies.artifacts.open_store`.
        port: port to serve on.
        inherited_socket: file descriptor of a listening socket, given by the search that started
            this process. The server then also stops at the end of its standard input, a pipe that
            closes when the search ends in any way.

    Returns:
        The exit code.
    """
    is_child = inherited_socket is not None
    listener = open_listener(port) if not is_child else socket.socket(fileno=inherited_socket)
    store = open_store(artifacts, storage, "artifacts")
    with listener, contextlib.closing(open_storage(storage)) as opened:
        from optuna_dashboard import wsgi  # slow; not needed when the port is taken

        if not is_debugging():
            logging.getLogger("optuna_dashboard").setLevel(logging.CRITICAL)
        application = PublishOnView(wsgi(opened, artifact_store=store), opened, store)
        server = _Server(listener, same_origin_only(application))
        exit_codes: queue.SimpleQueue[int] = queue.SimpleQueue()
        for number in _SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores SIGHUP
                signal.signal(number, lambda number, _: exit_codes.put(128 + number))
        _start_thread(server.serve_forever)
        if is_child:
            _start_thread(lambda: exit_codes.put(_wait_for_end_of_stdin()))
        else:
            click.echo(f"dashboard: {dashboard_url(port)} (stop with Ctrl-C)")
        code = exit_codes.get()
        server.shutdown()
    return code


def _wait_for_end_of_stdin() -> int:
    with contextlib.suppress(OSError):
        while os.read(0, 1024):
            pass
    return 0


def _start_thread(target: Callable[[], object]) -> None:
    threading.Thread(target=target, daemon=True).start()


def same_origin_only(application: Application) -> Application:
    """Reject requests that other web pages make, and forbid pages to show this one in a frame.

    Another origin may only link to the dashboard. Requests must address this machine by a local
    name, which protects against DNS rebinding. Clients that state no origin, such as curl, are
    answered.
    """

    def serve(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        def start(status: str, headers: list[tuple[str, str]], *error: Any) -> Any:
            return start_response(status, [*headers, *_FRAME_HEADERS], *error)

        if not _is_local(environ.get("HTTP_HOST", "")):
            reason = "This dashboard answers to 127.0.0.1 and localhost only."
        elif not _is_same_origin(environ):
            reason = "This dashboard does not answer to other web pages."
        else:
            return application(environ, start)
        start("403 Forbidden", [("Content-Type", "text/plain")])
        return [f"{reason}\n".encode()]

    return serve


def _is_local(host: str) -> bool:
    try:
        return urlsplit(f"//{host}").hostname in _LOCAL_NAMES
    except ValueError:
        return False


def _is_same_origin(environ: Mapping[str, Any]) -> bool:
    """Return whether a request comes from this origin, from no page, or from a link to a page."""
    origin = environ.get("HTTP_ORIGIN")
    # Compared with the port, because each local server is a separate origin.
    if origin is not None and origin.partition("://")[2] != environ["HTTP_HOST"]:
        return False
    # Browsers send these headers, and pages cannot change them.
    site, mode, destination = (environ.get(f"HTTP_SEC_FETCH_{n}") for n in ("SITE", "MODE", "DEST"))
    is_link = (environ["REQUEST_METHOD"], mode, destination) == ("GET", "navigate", "document")
    return site in (None, "none", "same-origin") or is_link


class PublishOnView:
    """WSGI middleware that publishes a study when the dashboard's page requests its data.

    Publication runs in a background thread, one at a time, and at most once per
    :data:`PUBLISH_INTERVAL_SECONDS` for each study. Requests never wait for it.

    Args:
        application: optuna-dashboard.
        storage: storage that it serves.
        store: artifact store for the files.
    """

    def __init__(self, application: Application, storage: LeasedRDBStorage, store: Store) -> None:
        self._application = application
        self._storage = storage
        self._store = store
        self._publishing = threading.Lock()
        self._due: dict[int, float] = {}
        self._publishers: dict[tuple[int, str], StudyPublisher] = {}
        self._has_warned = False

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        """Answer a request."""
        request = _STUDY_REQUEST.match(environ.get("PATH_INFO", ""))
        if request and time.monotonic() >= self._due.get(int(request[1]), 0):
            study_id = int(request[1])
            if self._publishing.acquire(blocking=False):
                _start_thread(lambda: self._publish(study_id))
        return self._application(environ, start_response)

    def _publish(self, study_id: int) -> None:
        from reports.dashboard.publish import StudyPublisher  # slow: imports pandas and plotly

        try:
            if (name := self._find_name(study_id)) is None:
                return
            publisher = self._publishers.get((study_id, name))
            if publisher is None:
                publisher = StudyPublisher(self._storage, name, lambda: self._store)
            # What it has read is kept for one study, the one that is viewed.
            self._publishers = {(study_id, name): publisher}
            publisher.publish()
        except StudiesError as error:  # not a study of this version and program
            logging.getLogger(__name__).debug("not published: %s", error)
        except KeyError as error:
            if self._find_name(study_id) is not None:  # else it was deleted meanwhile
                self._warn(error)
        except Exception as error:  # the dashboard is served nevertheless
            self._warn(error)
        finally:
            self._due[study_id] = time.monotonic() + PUBLISH_INTERVAL_SECONDS
            self._publishing.release()

    def _find_name(self, study_id: int) -> str | None:
        """Return the name of a study; None if it was deleted."""
        try:
            return self._storage.get_study_name_from_id(study_id)
        except KeyError:
            return None

    def _warn(self, error: Exception) -> None:
        """Print the first failure, and the traceback of a bug."""
        if not self._has_warned:
            self._has_warned = True
            click.echo(f"warning: cannot publish a study: {error_message(error)}", err=True)
            if is_bug(error, USER_ERRORS):
                print_bug(error)


class _Server(ThreadingMixIn, WSGIServer):
    """Threaded HTTP server on a socket that is already listening."""

    daemon_threads = True

    def __init__(self, listener: socket.socket, application: Application) -> None:
        super().__init__((HOST, 0), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.server_address = listener.getsockname()
        # The base class would look up this machine's name on the network.
        self.server_name, self.server_port = HOST, self.server_address[1]
        self.setup_environ()
        self.set_app(application)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore connections that browsers closed, unless debugging."""
        if is_debugging():
            super().handle_error(request, client_address)


class _Handler(WSGIRequestHandler):
    def log_message(self, *args: Any) -> None:
        """Log no requests."""

    def end_headers(self) -> None:
        """End the headers of an error; those of a response are not sent here."""
        for header in _FRAME_HEADERS:
            self.send_header(*header)
        super().end_headers()

    def get_stderr(self) -> Any:
        return super().get_stderr() if is_debugging() else io.StringIO()
