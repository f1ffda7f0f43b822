"""Serve optuna-dashboard on this machine."""

import contextlib
import io
import logging
import os
import queue
import re
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from socketserver import BaseServer, ThreadingMixIn
from typing import Any, BinaryIO
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from rnn.errors import UserError
from studies.artifacts import ArtifactFolders
from studies.atomic_files import atomic_write
from studies.attributes import FOLDER_NAME
from studies.failures import is_debugging
from studies.storage.open import open_storage

HOST = "127.0.0.1"
"""Address of the server: optuna-dashboard has no login and can delete studies."""

_LOCAL_HOST = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:\d+)?")
_FRAME_HEADERS = [
    ("X-Frame-Options", "DENY"),
    ("Content-Security-Policy", "frame-ancestors 'none'"),
]
"""Headers with which a browser shows no response in a frame of any page."""

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def open_listener(port: int) -> socket.socket:
    """Open a listening socket on a port of this machine.

    Raises:
        UserError: if the port cannot be used.
    """
    try:
        return socket.create_server((HOST, port))
    except OSError as error:
        line = f"port {port} cannot be used ({os.strerror(error.errno or 0)})"
        raise UserError(f"{line}; choose another --port") from error


def serve(storage: str, artifacts: str | None, port: int, inherited_socket: int | None) -> int:
    """Serve until a signal arrives, and return the exit code.

    A search gives its child a listening socket, and a pipe as standard input that closes when the
    search ends in any way: the child stops at its end as well.
    """
    is_child = inherited_socket is not None
    listener = socket.socket(fileno=inherited_socket) if is_child else open_listener(port)
    store = DashboardFiles(ArtifactFolders(artifacts, storage).root("artifacts"))
    with listener, contextlib.closing(open_storage(storage)) as opened:
        from optuna_dashboard import wsgi  # slow; not needed when the port is taken

        if not is_debugging():
            logging.getLogger("optuna_dashboard").setLevel(logging.CRITICAL)
        application = same_origin_only(wsgi(opened, artifact_store=store))
        server = _Server(listener, application)
        exit_codes: queue.SimpleQueue[int] = queue.SimpleQueue()

        def stop_with_search() -> None:
            sys.stdin.read()
            exit_codes.put(0)

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores SIGHUP
                signal.signal(number, lambda number, _: exit_codes.put(128 + number))
        _start_thread(server.serve_forever)
        if is_child:
            _start_thread(stop_with_search)
        else:
            print(f"dashboard: http://{HOST}:{port} (stop with Ctrl-C)", flush=True)
        code = exit_codes.get()
        server.shutdown()
    return code


class DashboardFiles:
    """Optuna's artifact store in a folder, confined to the files of the dashboard.

    A database, which others may have changed, may list any name as that of a file.
    """

    def __init__(self, folder: Path) -> None:
        from optuna.artifacts import FileSystemArtifactStore  # slow

        self._folder = folder
        self._store = FileSystemArtifactStore(folder)

    def open_reader(self, artifact_id: str) -> BinaryIO:
        """Open a file for reading."""
        return self._store.open_reader(_require_name(artifact_id))

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        """Write a file atomically."""
        atomic_write(self._folder / _require_name(artifact_id), content_body)

    def remove(self, artifact_id: str) -> None:
        """Remove a file."""
        self._store.remove(_require_name(artifact_id))


def _require_name(artifact_id: str) -> str:
    if not re.fullmatch(FOLDER_NAME, artifact_id):
        raise UserError(f"{artifact_id!r} is not the name of a file of the dashboard")
    return artifact_id


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

        if not _LOCAL_HOST.fullmatch(environ.get("HTTP_HOST", "")):
            reason = "This dashboard answers to 127.0.0.1 and localhost only."
        elif not _is_same_origin(environ):
            reason = "This dashboard does not answer to other web pages."
        else:
            return application(environ, start)
        start("403 Forbidden", [("Content-Type", "text/plain")])
        return [f"{reason}\n".encode()]

    return serve


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


class _Server(ThreadingMixIn, WSGIServer):
    """Threaded HTTP server on a socket that is already listening."""

    daemon_threads = True

    def __init__(self, listener: socket.socket, application: Application) -> None:
        # The classes between would open a socket, and look up this machine's name on the network.
        BaseServer.__init__(self, listener.getsockname(), _Handler)
        self.socket = listener
        self.server_name, self.server_port = listener.getsockname()
        self.setup_environ()
        self.set_app(application)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore connections that browsers closed, unless debugging."""
        if is_debugging():
            super().handle_error(request, client_address)


class _Handler(WSGIRequestHandler):
    def log_message(self, *args: Any) -> None:
        """Log no requests."""

    def get_stderr(self) -> Any:
        return super().get_stderr() if is_debugging() else io.StringIO()
