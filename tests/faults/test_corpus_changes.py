"""A corpus file that changes during a search."""

import os
import sys
from pathlib import Path

import pytest
from helpers import TEXT
from process_runner import query
from small_searches import ONE, STEP, VALUES, assert_all_trials_match, error_of, finish, stop

import rnn_search


@pytest.fixture
def corpus(tmp_path):
    """Corpus file of one test, with the text of the session's."""
    path = tmp_path / "corpus"
    path.write_bytes(TEXT)
    return path


def test_search_continues_with_the_text_that_it_read_and_later_workers_are_refused(
    search, held, gate, sqlite_url, corpus, reference_curves
):
    """The file is overwritten in place, then removed."""
    first = held(corpus=corpus, **ONE)
    with corpus.open("r+b") as file:
        file.write(bytes(b"0123456789" * len(TEXT))[: len(TEXT)])
    refused = error_of(search(corpus=corpus, **ONE), code=2)
    assert "exists with other settings: task.corpus.sha256" in refused
    corpus.unlink()
    assert "not found" in error_of(search(corpus=corpus, **ONE), code=2)
    gate.open()
    finish(first)
    assert_all_trials_match(sqlite_url, reference_curves, ONE)
    assert query(sqlite_url, VALUES) == reference_curves(VALUES, **ONE)


def mapped_files(pid, folder):
    """Return the names of the files of a folder that a process has mapped."""
    maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return {Path(line.split()[-1]).name for line in maps if str(folder) in line}


@pytest.mark.extended
@pytest.mark.skipif(sys.platform != "linux", reason="lists the maps of a process")
def test_no_text_checkpoint_or_weights_are_mapped(
    search, held, new_gate, sqlite_url, corpus, artifacts, tmp_path
):
    """A file that is cut while a process has mapped it would end the process by SIGBUS."""
    settings = ONE | {"task.tokenizer": "'bpe:270'", "corpus": corpus}
    keep = "--set=keep_weights=1"
    for step in (STEP, STEP + 10):  # the second resumes from a checkpoint
        worker = held(keep, gate=new_gate(step), **settings)
        assert mapped_files(worker.pid, tmp_path) <= {"studies.db-shm"}
        stop(worker)
    assert "resumes from step" in worker.output
    finish(search(keep, **settings))
    best = rnn_search.load("quick", storage=sqlite_url, artifacts=str(artifacts)).best
    assert best.sample("The ", length=5)
    assert best.network() is not None
    assert mapped_files(os.getpid(), tmp_path) == set()
