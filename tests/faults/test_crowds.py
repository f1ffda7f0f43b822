"""Contention: many workers that start at the same moment claim each trial once.

The numbers are small by default. ``RNN_SEARCH_CROWD_WORKERS=190 RNN_SEARCH_CROWD_CONNECTIONS=100``
starts 190 workers on a server with PostgreSQL's default limit of 100 connections.
"""

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from itertools import chain

import hooks
import psycopg
import pytest
from helpers import NO_SYNC, create_small_study, run_simultaneously
from optuna.trial import TrialState
from process_runner import wait_until
from services import PostgreSQL
from small_searches import assert_all_complete

from search.worker.claims import ClaimManager
from search.worker.shutdown import ShutdownSignal
from studies.storage.open import open_storage

pytestmark = pytest.mark.extended

CLAIMS = int(os.environ.get("RNN_SEARCH_CROWD_CLAIMS", "160"))
WORKERS = int(os.environ.get("RNN_SEARCH_CROWD_WORKERS", "30"))
CONNECTIONS = int(os.environ.get("RNN_SEARCH_CROWD_CONNECTIONS", "15"))


def work(url, trials, folder):
    """Create storage and study unless they exist; return the numbers of the claimed trials.

    The first trial ends once a second worker has claimed one, so that claims do compete: each
    worker creates a file in the folder.
    """
    hooks.make_patient()
    storage, numbers = open_storage(url), []
    study_id = create_small_study(storage, trials)
    with ClaimManager(storage, study_id, f"stub/{os.getpid()}", ShutdownSignal()) as manager:
        while claims := manager.claim():
            (claim,) = claims
            numbers.append(claim.trial.number)
            claim.report(1, 1.0)
            (folder / str(os.getpid())).touch()
            wait_until(lambda: len(list(folder.iterdir())) > 1)
            manager.finish(claim, TrialState.COMPLETE, 1.0, {})
    return numbers


@pytest.mark.parametrize(("kind", "workers"), [("sqlite", 16), ("postgresql", 64)])
def test_each_trial_is_claimed_once_by_a_crowd(kind, workers, request, tmp_path_factory):
    url, folder = request.getfixturevalue(f"{kind}_url"), tmp_path_factory.mktemp("claims")
    claimed = run_simultaneously(work, [(url, CLAIMS, folder)] * workers)
    assert Counter(chain(*claimed)) == Counter(range(CLAIMS))
    assert_all_complete(url, CLAIMS)
    assert sum(map(bool, claimed)) > 1


def test_more_workers_than_connections_finish_all_trials(tmp_path):
    """All start at once, while no tables exist and every connection is in use."""
    settings = f"-c max_connections={CONNECTIONS} -c superuser_reserved_connections=3"
    with PostgreSQL(f"{NO_SYNC} {settings}") as server, ThreadPoolExecutor() as executor:
        url = server.new_database()
        with ExitStack() as connections:
            with suppress(psycopg.OperationalError):
                while True:
                    connections.enter_context(psycopg.connect(url.replace("+psycopg", "")))
            before = server.log.count("too many clients")
            crowd = executor.submit(run_simultaneously, work, [(url, WORKERS, tmp_path)] * WORKERS)
            wait_until(lambda: server.log.count("too many clients") > before + WORKERS)
        assert Counter(chain(*crowd.result())) == Counter(range(WORKERS))
        assert_all_complete(url, WORKERS)
