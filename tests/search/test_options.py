"""Options of searches: one model for command lines, calls in Python, worker processes and jobs."""

import numpy as np
import pytest
from helpers import QUICK, TINY_OVERRIDES

from rnn.errors import CorpusError, UserError
from rnn_search.commands.searches import continue_search, refine, run_search
from search.create_or_join import create_or_join, open_study
from search.run_options import RunOptions, WorkerOptions
from studies.option_models import build_options, to_words


def create(url, text, *overrides, **options):
    settings = (*TINY_OVERRIDES, *overrides)
    given = {"study": QUICK, "storage": url, "overrides": settings, "corpus": str(text)}
    options = RunOptions(**given | options)
    handle = create_or_join(options)
    handle.storage.close()
    return options, handle


def test_command_line_of_a_worker_states_what_differs_and_nothing_else(sqlite_url, text):
    create(sqlite_url, text)
    given = {"threads": 2, "lockstep": 3, "until": 90.5, "wait": False, "report": False}
    own = ("lease.seconds=5.0", "keep_weights=3")
    options, handle = create(sqlite_url, text, *own, **given)
    worker = handle.for_worker(options)
    assert worker.overrides == ("keep_weights=3", "lease.seconds=5.0")
    words = to_words(worker)
    assert not [word for word in words if "training" in word]
    context = continue_search.make_context("continue", [handle.name, *words])
    parsed = {
        name: context.params[name] for name in WorkerOptions.model_fields.keys() & context.params
    }
    assert build_options(WorkerOptions, **parsed) == worker


def test_worker_by_name_trains_what_the_study_stores(sqlite_url, text):
    _, handle = create(sqlite_url, text, "lease.seconds=5.0")
    text_as_read = handle.task_of(()).corpus.text
    opened = open_study("quick", sqlite_url, WorkerOptions(overrides=("lease.seconds=7.0",)))
    assert opened.config == handle.config.model_copy(update={"lease": opened.config.lease})
    assert (handle.config.lease.seconds, opened.config.lease.seconds) == (5, 7)
    assert np.array_equal(opened.task_of(()).corpus.text, text_as_read)
    assert opened.notice == ""


def test_worker_by_name_sets_nothing_that_the_study_decides(sqlite_url, text):
    create(sqlite_url, text)
    with pytest.raises(UserError, match=r"^training.steps is a setting of the stored study: ex"):
        open_study("quick", sqlite_url, WorkerOptions(overrides=("training.steps=8",)))
    other = text.with_name("other")
    other.write_bytes(text.read_bytes()[::-1])
    with pytest.raises(UserError, match=r"has other data: task.corpus.sha256: .* --corpus"):
        open_study("quick", sqlite_url, WorkerOptions(corpus=str(other)))
    moved = text.rename(text.with_name("moved"))
    with pytest.raises(CorpusError, match="give its current path with --corpus"):
        open_study("quick", sqlite_url, WorkerOptions())
    assert open_study("quick", sqlite_url, WorkerOptions(corpus=str(moved))).tasks


@pytest.mark.parametrize(
    ("command", "given", "words"),
    [
        (run_search, {"is_stored": True, "prune": True}, "run mine --stored --prune"),
        (refine, {"partial": True, "extend": True}, "refine mine --extend --partial"),
    ],
)
def test_recorded_command_is_one_that_creates_the_same_study(command, given, words):
    options = RunOptions(study="mine", storage="sqlite:///studies.db", **given)
    assert options.command == f"rnn-search {words}"
    params = command.make_context("", words.split()[1:]).params
    assert {name: params[name] for name in given} == given
