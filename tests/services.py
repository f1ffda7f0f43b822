"""The services that tests need: a PostgreSQL server of the system's packages, free ports."""

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import uuid
from pathlib import Path

import pytest
from hooks import HANG_TIMEOUT

REQUIRED = bool(os.environ.get("RNN_SEARCH_REQUIRE_SERVICES"))
"""Whether the absence of PostgreSQL or a browser is a failure: it is where changes are judged."""


def missing(what: str) -> None:
    """Skip a test that needs what is not there, or fail it where that must be there."""
    if REQUIRED:
        pytest.fail(f"{what} is required here and not installed")
    pytest.skip(f"{what} is not installed")


def free_port() -> int:
    """Return a port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class PostgreSQL:
    """A server of the system's packages, run by an unprivileged user; a context that ends it.

    Attributes:
        address: USER@HOST:PORT
    """

    def __init__(self, settings: str = "") -> None:
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
        initdb = found[-1] if found else shutil.which("initdb")
        if not initdb:
            missing("PostgreSQL")
        self._initdb = Path(str(initdb))
        self._port = free_port()
        self._settings = settings
        self.address = f"tester@127.0.0.1:{self._port}"

    def __enter__(self) -> "PostgreSQL":
        self._folder = tempfile.TemporaryDirectory(prefix="postgresql-", ignore_cleanup_errors=True)
        self._as_user: list[str] = []
        if os.getuid() == 0:  # which PostgreSQL refuses to run as
            user = pwd.getpwnam("postgres")
            self._as_user = ["runuser", "-u", "postgres", "--"]
            os.chown(self._folder.name, user.pw_uid, user.pw_gid)
        self._data = Path(self._folder.name) / "data"
        self._log = Path(self._folder.name) / "log"
        self._run(self._initdb, "-D", self._data, "-U", "tester", "-A", "trust", "--no-sync")
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        if (self._data / "postmaster.pid").exists():
            self.stop("immediate")
        self._folder.cleanup()

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        options = (
            f"-c port={self._port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= "
            f"{self._settings}"
        )
        self._control("-o", options, "-l", self._log, "-w", "start")

    def stop(self, mode: str = "fast") -> None:
        """Stop it: ``fast``, or as if its machine had lost its power, ``immediate``."""
        self._control("-m", mode, "-w", "stop")

    def restore(self) -> None:
        """Have it answer again, whatever a test that failed has left it in."""
        if (self._data / "postmaster.pid").exists():
            self.signal(signal.SIGCONT)
        else:
            self.start()

    @property
    def said(self) -> str:
        """What it has written to its log."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def signal(self, number: int) -> None:
        """Send a signal to each of its processes."""
        postmaster = int((self._data / "postmaster.pid").read_text().split()[0])
        children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
        for pid in (postmaster, *map(int, children)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def execute(self, statement: str) -> None:
        """Have it do something."""
        psycopg = pytest.importorskip("psycopg")
        address = f"postgresql://{self.address}/postgres"
        with psycopg.connect(address, autocommit=True) as connection:
            connection.execute(statement)

    def new_database(self) -> str:
        """Make a database; return its URL."""
        name = f"test_{uuid.uuid4().hex}"
        self.execute(f"CREATE DATABASE {name}")
        return f"postgresql+psycopg://{self.address}/{name}"

    def _control(self, *words: object) -> None:
        patience = ("-t", round(HANG_TIMEOUT))
        self._run(self._initdb.with_name("pg_ctl"), "-D", self._data, *patience, *words)

    def _run(self, *words: object) -> None:
        subprocess.run(
            [*self._as_user, *map(str, words)],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd=self._folder.name,
        )
