"""Contention: many workers that start at the same moment claim each trial once.

The numbers are small by default. ``RNN_SEARCH_CROWD_WORKERS=190 RNN_SEARCH_CROWD_CONNECTIONS=100``
starts 190 workers on a server with PostgreSQL's default limit of 100 connections.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from contextlib import ExitStack, suppress
from itertools import chain
from pathlib import Path

import psycopg
import pytest
from helpers import NO_SYNC
from hooks import HANG_TIMEOUT
from process_runner import FINISHED, query, wait_until
from services import PostgreSQL

pytestmark = pytest.mark.extended

CLAIMS = int(os.environ.get("RNN_SEARCH_CROWD_CLAIMS", "160"))
WORKERS = int(os.environ.get("RNN_SEARCH_CROWD_WORKERS", "30"))
CONNECTIONS = int(os.environ.get("RNN_SEARCH_CROWD_CONNECTIONS", "15"))


def start_crowd(url, workers, trials):
    """Start a number of workers with stub trainers on a number of trials."""
    command = [sys.executable, str(Path(__file__).with_name("contention_worker.py")), url]
    return subprocess.Popen(
        [*command, str(workers), str(trials)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def read_claims(crowd, workers):
    """Wait for a crowd to end; return the numbers of the trials that each worker claimed."""
    out, error = crowd.communicate(timeout=HANG_TIMEOUT)
    assert crowd.returncode == 0, error
    answer = json.loads(out)
    assert answer["codes"] == [0] * workers, error[-4000:]
    return answer["claimed"]


@pytest.mark.parametrize(("kind", "workers"), [("sqlite", 16), ("postgresql", 64)])
def test_each_trial_is_claimed_once_by_a_crowd(kind, workers, request):
    url = request.getfixturevalue(f"{kind}_url")
    claimed = read_claims(start_crowd(url, workers, CLAIMS), workers)
    assert Counter(chain(*claimed)) == Counter(range(CLAIMS))
    assert query(url, FINISHED) == [(number, "COMPLETE", 1) for number in range(CLAIMS)]
    assert sum(map(bool, claimed)) > 1


@pytest.fixture
def small_server():
    settings = f"-c max_connections={CONNECTIONS} -c superuser_reserved_connections=3"
    with PostgreSQL(f"{NO_SYNC} {settings}") as server:
        yield server


def test_more_workers_than_connections_finish_all_trials(small_server):
    """All start at once, while no tables exist and every connection is in use."""
    url = small_server.new_database()
    with ExitStack() as connections:
        with suppress(psycopg.OperationalError):
            while True:
                connections.enter_context(psycopg.connect(url.replace("+psycopg", "")))
        before = small_server.log.count("too many clients")
        crowd = start_crowd(url, WORKERS, WORKERS)
        wait_until(lambda: small_server.log.count("too many clients") > before + WORKERS)
    claimed = read_claims(crowd, WORKERS)
    assert Counter(chain(*claimed)) == Counter(range(WORKERS))
    assert query(url, FINISHED) == [(number, "COMPLETE", 1) for number in range(WORKERS)]
