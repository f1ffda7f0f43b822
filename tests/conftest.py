"""What the tests share: small studies, storages, and the commands as a user types them."""

import os
import pwd
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import optuna
import pytest
import torch

ROOT = Path(__file__).parents[1]

REQUIRED = bool(os.environ.get("RNN_SEARCH_REQUIRE_SERVICES"))
"""Whether the absence of PostgreSQL or a browser is a failure: it is where changes are judged."""

TINY = (
    "--set=training.steps=4",
    "--set=training.batch_size=4",
    "--set=training.sequence_length=8",
    "--set=training.log_every=2",
    "--set=evaluation.lanes=2",
    "--set=evaluation.lane_length=8",
)
"""What makes a study so small that a point takes milliseconds."""

# The machines' cores are few, and a network alone repeats bit for bit at one thread count.
torch.set_num_threads(1)
optuna.logging.set_verbosity(optuna.logging.WARNING)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A file long enough for a tiny study."""
    path = tmp_path / "text"
    # Nowhere the same, so that what is read from the wrong place is seen.
    path.write_bytes(bytes(random.Random(0).choices(b"abcdefgh \n", k=1800)))
    return path


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """The URL of an SQLite file that is not there yet."""
    return f"sqlite:///{tmp_path}/studies.db"


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest) -> str:
    """The URL of a storage that is not there yet, of each kind."""
    fixture = {"sqlite": "sqlite_url", "postgresql": "postgresql_url"}[request.param]
    return str(request.getfixturevalue(fixture))


Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run() -> Run:
    """Run a Python command of the project, as ``run("run_search.py", "quick", …)``."""

    def run_command(*words: str, timeout: float = 120, **environment: str):
        return subprocess.run(
            [sys.executable, *words],
            cwd=ROOT,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run_command


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


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[str]:
    """A PostgreSQL server of the system's packages, run by an unprivileged user: its address."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    initdb = found[-1] if found else shutil.which("initdb")
    if not initdb:
        missing("PostgreSQL")
    server = Path(str(initdb)).with_name("pg_ctl")
    with tempfile.TemporaryDirectory(prefix="postgresql-", ignore_cleanup_errors=True) as folder:
        as_user: list[str] = []
        if os.getuid() == 0:  # which PostgreSQL refuses to run as
            user = pwd.getpwnam("postgres")
            as_user = ["runuser", "-u", "postgres", "--"]
            os.chown(folder, user.pw_uid, user.pw_gid)
        port = free_port()

        def control(*words: object) -> None:
            subprocess.run(
                [*as_user, *map(str, words)], check=True, stdout=subprocess.DEVNULL, cwd=folder
            )

        data = Path(folder) / "data"
        control(initdb, "-D", data, "-U", "tester", "-A", "trust", "--no-sync")
        options = f"-c port={port} -c listen_addresses=127.0.0.1 -c unix_socket_directories="
        control(server, "-D", data, "-o", options, "-l", f"{folder}/log", "-w", "start")
        try:
            yield f"tester@127.0.0.1:{port}"
        finally:
            control(server, "-D", data, "-m", "immediate", "stop")


@pytest.fixture
def postgresql_url(postgresql_server: str) -> str:
    """The URL of an empty database on a real server."""
    psycopg = pytest.importorskip("psycopg")
    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(f"postgresql://{postgresql_server}/postgres", autocommit=True) as server:
        server.execute(f"CREATE DATABASE {name}")
    return f"postgresql+psycopg://{postgresql_server}/{name}"
