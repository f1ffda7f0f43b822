"""Fixtures of the fault tests."""

import hashlib

import pytest
from filelock import FileLock
from helpers import TEXT
from hooks import Gate
from process_runner import CURVES, query, search_starter, wait_until_running
from small_searches import STEP

DURATIONS = ("lease_seconds", "checkpoint_seconds", "outage_seconds")
"""Settings on which no curve depends."""


@pytest.fixture
def gate(tmp_path_factory):
    """Gate that holds trainings at :data:`STEP`."""
    return Gate(tmp_path_factory.mktemp("gate") / "gate", STEP)


@pytest.fixture
def search(runner, sqlite_url, text):
    """Function that starts a search, as ``search(training_steps=1000)``."""
    return search_starter(runner, sqlite_url, text)


@pytest.fixture
def held(search, gate):
    """Function that starts a search and waits until the gate holds its training."""

    def start(*options, **settings):
        command = search(*options, gate=gate, **settings)
        wait_until_running([command], lambda: command.pid in gate.held)
        return command

    return start


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    """Return a corpus that is the same for all tests, so that curves are comparable."""
    path = tmp_path_factory.mktemp("text") / "text"
    path.write_bytes(TEXT)
    return path


@pytest.fixture(scope="session")
def reference_curves(runner, text, tmp_path_factory, worker_id):
    """Return a function that gives the curves of a search without faults, run once per session.

    It reads something else from that search's database with another SQL statement.
    """
    base = tmp_path_factory.getbasetemp()
    shared = base if worker_id == "master" else base.parent

    def curves(statement=CURVES, **settings):
        settings = {key: value for key, value in settings.items() if key not in DURATIONS}
        key = hashlib.sha256(repr(sorted(settings.items())).encode()).hexdigest()[:16]
        folder = shared / f"reference-{key}"
        folder.mkdir(exist_ok=True)
        url = f"sqlite:///{folder}/studies.db"
        with FileLock(folder / "lock"):
            if not (folder / "done").exists():
                assert search_starter(runner, url, text)(**settings).wait() == 0
                (folder / "done").touch()
        return query(url, statement)

    return curves
