"""What the tests share: small studies, storages, and the commands as a user types them."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import hooks
import optuna
import pytest
import torch
from helpers import NO_SYNC, ROOT, TEXT
from hooks import HANG_TIMEOUT
from process_runner import ProcessRunner
from services import PostgreSQL, free_port

# The machines' cores are few, and a network alone repeats bit for bit at one thread count.
torch.set_num_threads(1)
optuna.logging.set_verbosity(optuna.logging.WARNING)

BEFORE = pytest.StashKey[dict[str, tuple[int, int]]]()
LEFT = pytest.StashKey[list[str]]()

NOT_THE_CHECKOUT = {
    ".git", ".venv", ".venv-lowest", ".hypothesis", ".import_linter_cache", ".mypy_cache",
    ".pytest_cache", ".ruff_cache", "__pycache__",
}  # fmt: skip
"""Folders of tools, which keep their own caches there."""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "extended: long or large: crowds, chaos, whole commands of the README, the browser",
    )
    config.addinivalue_line(
        "markers", "impatient: a worker gives up on a storage as early as it does for users"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with faults and whole commands: they take longest."""
    here = Path(__file__).parent
    items.sort(key=lambda item: item.path.parent not in (here, here / "faults"))


# ------------------------------------------------------------------ tests leave no file behind


def files_of_the_checkout() -> dict[str, tuple[int, int]]:
    """Return size and time of each file, be it tracked by git, untracked or ignored."""
    found = {}
    for folder, folders, names in os.walk(ROOT):
        folders[:] = [name for name in folders if name not in NOT_THE_CHECKOUT]
        for name in names:
            path = Path(folder, name)
            status = path.lstat()
            found[str(path.relative_to(ROOT))] = status.st_size, status.st_mtime_ns
    return found


def is_controller(config: pytest.Config) -> bool:
    """Tell the process that starts the others from those that run the tests."""
    return not hasattr(config, "workerinput")


def pytest_sessionstart(session: pytest.Session) -> None:
    if is_controller(session.config):
        session.config.stash[BEFORE] = files_of_the_checkout()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the run if a file of the checkout was made, changed or removed meanwhile."""
    if not is_controller(session.config):
        return
    before, after = session.config.stash[BEFORE], files_of_the_checkout()
    left = sorted(path for path in before | after if before.get(path) != after.get(path))
    session.config.stash[LEFT] = left
    if left:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(
    terminalreporter: "pytest.TerminalReporter", config: pytest.Config
) -> None:
    for path in config.stash.get(LEFT, []):
        terminalreporter.write_line(f"FAILED: {path} was changed in the checkout by the tests")


@pytest.fixture(autouse=True)
def _patient(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no outcome depend on how fast a storage answers, unless a test is about that."""
    if request.node.get_closest_marker("impatient") is None:
        hooks.make_patient(monkeypatch.setattr)


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


@pytest.fixture(scope="session")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProcessRunner]:
    """Starts the project's commands, each in a process of its own."""
    with ProcessRunner(tmp_path_factory.mktemp("commands")) as runner:
        yield runner


@pytest.fixture
def run(runner: ProcessRunner) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """Run a command of the project to its end, as ``run("run_search.py", "quick", …)``."""
    return runner.run


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[PostgreSQL]:
    """A server that the tests of a session share."""
    with PostgreSQL(NO_SYNC) as server:
        yield server


@pytest.fixture
def postgresql_url(postgresql_server: PostgreSQL) -> str:
    """The URL of an empty database on a real server."""
    return postgresql_server.new_database()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The address of an S3-compatible service."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + HANG_TIMEOUT
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/").close()
            break
        except OSError:
            assert time.monotonic() < deadline, "the service did not come up"
            time.sleep(0.2)
    yield f"http://127.0.0.1:{port}"
    process.send_signal(signal.SIGTERM)
    process.wait(HANG_TIMEOUT)


@pytest.fixture
def bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A bucket of that service, as ``--artifacts`` names it."""
    boto3 = pytest.importorskip("boto3")

    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "tester")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    client = boto3.client("s3")
    client.create_bucket(Bucket="networks")
    for left in client.list_objects(Bucket="networks").get("Contents", ()):  # by another test
        client.delete_object(Bucket="networks", Key=left["Key"])
    return "s3://networks"
