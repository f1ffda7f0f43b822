"""A corpus file that changes during a search."""

import os

import pytest
from helpers import TEXT
from process_runner import query
from small_searches import ONE, VALUES, assert_all_trials_match, error_of, finish


@pytest.fixture
def corpus(tmp_path):
    """Corpus file of one test, with the text of the session's."""
    path = tmp_path / "corpus"
    path.write_bytes(TEXT)
    return path


def test_search_continues_with_the_text_that_it_read_and_later_workers_are_refused(
    search, held, gate, sqlite_url, corpus, reference_curves
):
    """The file is overwritten in place, then cut and removed."""
    first = held(corpus=corpus, **ONE)
    with corpus.open("r+b") as file:
        file.write(bytes(b"0123456789" * len(TEXT))[: len(TEXT)])
    refused = error_of(search(corpus=corpus, **ONE), code=2)
    assert "exists with other settings: task.corpus.sha256" in refused
    os.truncate(corpus, 0)  # ends a process that has mapped the file, by SIGBUS
    corpus.unlink()
    assert "not found" in error_of(search(corpus=corpus, **ONE), code=2)
    gate.open()
    finish(first)
    assert_all_trials_match(sqlite_url, reference_curves, ONE)
    assert query(sqlite_url, VALUES) == reference_curves(VALUES, **ONE)
