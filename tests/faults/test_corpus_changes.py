"""A corpus file that changes during a search."""

import os
import signal
import sys
from pathlib import Path

import pytest
from helpers import TEXT
from hooks import Gate
from process_runner import CURVES, FINISHED, query, search_starter, wait_until_running
from small_searches import ONE, STEP

import rnn_search

VALUES = "SELECT value FROM trial_values"


@pytest.fixture
def corpus(tmp_path):
    """Corpus file of one test, with the text of the session's."""
    path = tmp_path / "corpus"
    path.write_bytes(TEXT)
    return path


@pytest.fixture
def search(runner, sqlite_url, corpus):
    return search_starter(runner, sqlite_url, corpus)


def overwrite(path):
    with path.open("r+b") as file:
        file.write(bytes(b"0123456789" * len(TEXT))[: len(TEXT)])


@pytest.mark.parametrize(
    ("change", "refusal"),
    [
        (overwrite, "exists with other settings: corpus.sha256"),
        pytest.param(os.unlink, "not found", marks=pytest.mark.extended, id="remove"),
    ],
)
def test_search_continues_with_the_text_that_it_read_and_later_workers_are_refused(
    search, gate, sqlite_url, corpus, reference_curves, change, refusal
):
    first = search(gate=gate, **ONE)
    wait_until_running([first], lambda: first.pid in gate.held)
    change(corpus)
    later = search(**ONE)
    assert later.wait() == 2
    assert refusal in later.stderr
    assert later.stderr.count("\n") == 1
    gate.open()
    assert first.wait() == 0
    assert query(sqlite_url, FINISHED) == [(0, "COMPLETE", 1)]
    assert query(sqlite_url, CURVES) == reference_curves(**ONE)
    assert query(sqlite_url, VALUES) == reference_curves(VALUES, **ONE)


def mapped_files(pid, folder):
    """Return the names of the files of a folder that a process has mapped."""
    maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return {Path(line.split()[-1]).name for line in maps if str(folder) in line}


@pytest.mark.extended
@pytest.mark.skipif(sys.platform != "linux", reason="lists the maps of a process")
def test_no_text_checkpoint_or_weights_are_mapped(search, sqlite_url, tmp_path, tmp_path_factory):
    """A file that is cut while a process has mapped it would end the process by SIGBUS."""
    settings = ONE | {"tokenizer": "'bpe:270'"}
    keep = "--set=keep_weights=1"
    gates = [Gate(tmp_path_factory.mktemp("gate") / "gate", step) for step in (STEP, STEP + 10)]
    for gate in gates:  # the second resumes from a checkpoint
        worker = search(keep, gate=gate, **settings)
        wait_until_running([worker], lambda gate=gate: gate.held)
        assert mapped_files(worker.pid, tmp_path) <= {"studies.db-shm"}
        worker.send(signal.SIGTERM)
        assert worker.wait() == 143
    assert "resumes from step" in worker.output
    last = search(keep, **settings)
    assert last.wait() == 0, last.output
    best = rnn_search.load("quick", storage=sqlite_url).best
    assert best.sample("The ", length=5)
    assert best.network() is not None
    assert mapped_files(os.getpid(), tmp_path) == set()
