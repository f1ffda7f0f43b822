"""Services for tests: a PostgreSQL server from system packages, a slow network, free ports."""

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
"""Whether tests fail, instead of being skipped, without PostgreSQL or a browser: set by CI."""


def report_missing(service: str) -> None:
    """Skip a test whose service is not installed, or fail it if services are required."""
    if REQUIRED:
        pytest.fail(f"{service} is required here and not installed")
    pytest.skip(f"{service} is not installed")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class PostgreSQL:
    """Context that runs a PostgreSQL server as an unprivileged user."""

    def __init__(self, settings: str = "") -> None:
        installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
        initdb = installed[-1] if installed else shutil.which("initdb")
        if not initdb:
            report_missing("PostgreSQL")
        self._initdb = Path(str(initdb))
        self.port = free_port()
        self._settings = settings
        self.address = f"tester@127.0.0.1:{self.port}"

    def __enter__(self) -> "PostgreSQL":
        self._folder = tempfile.TemporaryDirectory(prefix="postgresql-", ignore_cleanup_errors=True)
        self._as_user: list[str] = []
        if os.getuid() == 0:  # PostgreSQL refuses to run as root
            user = pwd.getpwnam("postgres")
            self._as_user = ["runuser", "-u", "postgres", "--"]
            os.chown(self._folder.name, user.pw_uid, user.pw_gid)
        self._data = Path(self._folder.name) / "data"
        self._log_file = Path(self._folder.name) / "log"
        self._run(self._initdb, "-D", self._data, "-U", "tester", "-A", "trust", "--no-sync")
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        if (self._data / "postmaster.pid").exists():
            self.stop("immediate")
        self._folder.cleanup()

    def start(self) -> None:
        """Start the server and wait until it answers."""
        options = (
            f"-c port={self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= "
            f"{self._settings}"
        )
        self._control("-o", options, "-l", self._log_file, "-w", "start")

    def stop(self, mode: str = "fast") -> None:
        """Stop the server: ``fast``, or ``immediate``, as in a power failure."""
        self._control("-m", mode, "-w", "stop")

    def restore(self) -> None:
        """Start or resume the server, in whatever state a failed test left it."""
        if (self._data / "postmaster.pid").exists():
            self.signal(signal.SIGCONT)
        else:
            self.start()

    @property
    def log(self) -> str:
        return self._log_file.read_text(encoding="utf-8", errors="replace")

    def signal(self, number: int) -> None:
        """Send a signal to every process of the server."""
        postmaster = int((self._data / "postmaster.pid").read_text().split()[0])
        children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
        for pid in (postmaster, *map(int, children)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def execute(self, statement: str) -> None:
        psycopg = pytest.importorskip("psycopg")
        address = f"postgresql://{self.address}/postgres"
        with psycopg.connect(address, autocommit=True) as connection:
            connection.execute(statement)

    def require_password(self, user: str) -> None:
        """Let a user connect with the user's password only."""
        rules = self._data / "pg_hba.conf"
        rule = f"host all {user} 127.0.0.1/32 scram-sha-256\n"
        rules.write_text(rule + rules.read_text())
        self.execute("SELECT pg_reload_conf()")

    def new_database(self) -> str:
        """Create a database; return its URL."""
        name = f"test_{uuid.uuid4().hex}"
        self.execute(f"CREATE DATABASE {name}")
        return f"postgresql+psycopg://{self.address}/{name}"

    def _control(self, *arguments: object) -> None:
        timeout = ("-t", round(HANG_TIMEOUT))
        self._run(self._initdb.with_name("pg_ctl"), "-D", self._data, *timeout, *arguments)

    def _run(self, *arguments: object) -> None:
        subprocess.run(
            [*self._as_user, *map(str, arguments)],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd=self._folder.name,
        )
