"""What the tests share: small studies, storages, and the commands as a user types them."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import optuna
import pytest
import torch
from helpers import ROOT, TEXT
from services import PostgreSQL

# The machines' cores are few, and a network alone repeats bit for bit at one thread count.
torch.set_num_threads(1)
optuna.logging.set_verbosity(optuna.logging.WARNING)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A file of :data:`TEXT`."""
    path = tmp_path / "text"
    path.write_bytes(TEXT)
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


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[PostgreSQL]:
    """A server that the tests of a session share."""
    with PostgreSQL() as server:
        yield server


@pytest.fixture
def postgresql_url(postgresql_server: PostgreSQL) -> str:
    """The URL of an empty database on a real server."""
    return postgresql_server.new_database()
