"""What the tests share: small studies, storages, and the commands as a user types them."""

import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import optuna
import pytest
import torch
from helpers import NO_SYNC, TEXT
from nursery import Nursery
from services import PostgreSQL, free_port

# The machines' cores are few, and a network alone repeats bit for bit at one thread count.
torch.set_num_threads(1)
optuna.logging.set_verbosity(optuna.logging.WARNING)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with faults and whole commands: of what takes long, nothing is left for the end."""
    here = Path(__file__).parent
    items.sort(key=lambda item: item.path.parent not in (here, here / "faults"))


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
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    """Starts the project's commands, each in a process of its own."""
    with Nursery(tmp_path_factory.mktemp("commands")) as nursery:
        yield nursery


@pytest.fixture
def run(nursery: Nursery) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """Run a command of the project to its end, as ``run("run_search.py", "quick", …)``."""
    return nursery.run


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
    deadline = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/").close()
            break
        except OSError:
            assert time.monotonic() < deadline, "the service did not come up"
            time.sleep(0.2)
    yield f"http://127.0.0.1:{port}"
    process.send_signal(signal.SIGTERM)
    process.wait(30)


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
