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
def new_gate(tmp_path_factory):
    """Function that makes a gate that holds trainings at a step."""
    return lambda step: Gate(tmp_path_factory.mktemp("gate") / "gate", step=step)


@pytest.fixture
def gate(new_gate):
    """Gate that holds trainings at :data:`STEP`."""
    return new_gate(STEP)


@pytest.fixture
def artifacts(tmp_path):
    """Folder of the checkpoints of all studies."""
    return tmp_path / "artifacts"


@pytest.fixture
def search_url(sqlite_url):
    """URL of the storage of searches, unless a test gives them another."""
    return sqlite_url


@pytest.fixture
def search(runner, search_url, text, artifacts):
    """Function that starts a search, as ``search("--prune", url=url, training_steps=1000)``."""

    def start(*options, url=search_url, corpus=text, **settings):
        starter = search_starter(runner, url, corpus)
        return starter(f"--artifacts={artifacts}", *options, **settings)

    return start


@pytest.fixture
def show_status(runner, search_url):
    """Function that starts ``rnn-search status`` for the study of these searches."""
    return lambda url=search_url: runner.start("status", "quick", "--storage", url)


@pytest.fixture
def held(search, gate):
    """Function that starts a search and waits until the gate holds its trainings."""

    def start(*options, gate=gate, trainings=1, **settings):
        count = len(gate.held) + trainings
        command = search(*options, gate=gate, **settings)
        wait_until_running([command], lambda: len(gate.held) == count)
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
