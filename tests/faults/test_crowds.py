"""Many workers at the same moment: no point goes to two, and nobody is turned away for good.

Bounded here; a default server has 100 connections, and 190 workers were let loose on it with
``RNN_SEARCH_CROWD_WORKERS=190 RNN_SEARCH_CROWD_CONNECTIONS=100``.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from itertools import chain
from pathlib import Path

import psycopg
import pytest
from helpers import NO_SYNC
from nursery import FINISHED, query
from services import PostgreSQL

from studies.opening import _CREATION_LOCK, CLAIM_INDEX, open_storage

CLAIMS = int(os.environ.get("RNN_SEARCH_CROWD_CLAIMS", "160"))
WORKERS = int(os.environ.get("RNN_SEARCH_CROWD_WORKERS", "30"))
CONNECTIONS = int(os.environ.get("RNN_SEARCH_CROWD_CONNECTIONS", "15"))


def crowd(url, workers, points):
    """Have so many stub workers do so many points; return the trials that each of them had."""
    command = [sys.executable, str(Path(__file__).with_name("crowd.py")), url]
    done = subprocess.run(
        [*command, str(workers), str(points)], capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["codes"] == [0] * workers, done.stderr[-4000:]
    return answer["claimed"]


def test_16_claimants_of_an_sqlite_file(sqlite_url):
    claimed = crowd(sqlite_url, 16, CLAIMS)
    assert Counter(chain(*claimed)) == Counter(range(CLAIMS))
    assert query(sqlite_url, FINISHED) == [(number, "COMPLETE", 1) for number in range(CLAIMS)]
    assert sum(map(bool, claimed)) > 1, "only one had any: nothing was tested"


def test_64_claimants_of_a_server(postgresql_url):
    claimed = crowd(postgresql_url, 64, CLAIMS)
    assert Counter(chain(*claimed)) == Counter(range(CLAIMS))
    assert query(postgresql_url, FINISHED) == [(n, "COMPLETE", 1) for n in range(CLAIMS)]
    assert sum(map(bool, claimed)) > 1, "only one had any: nothing was tested"


@pytest.fixture
def small_server():
    settings = f"-c max_connections={CONNECTIONS} -c superuser_reserved_connections=3"
    with PostgreSQL(f"{NO_SYNC} {settings}") as server:
        yield server


def test_who_waits_for_the_tables_holds_no_connection(postgresql_url):
    """They stand already, but who makes them has not done, and may need another connection."""
    open_storage(postgresql_url).engine.dispose()
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
    waiting += " AND datname = current_database() AND wait_event_type = 'Lock'"
    with psycopg.connect(postgresql_url.replace("+psycopg", ""), autocommit=True) as maker:
        maker.execute(f"DROP INDEX {CLAIM_INDEX}")
        maker.execute("SELECT pg_advisory_lock(%s)", [_CREATION_LOCK])
        opening = threading.Thread(target=open_storage, args=(postgresql_url,))
        opening.start()
        for _ in range(20):
            time.sleep(0.1)
            assert maker.execute(waiting).fetchone() == (0,)
        assert opening.is_alive()
        maker.execute("SELECT pg_advisory_unlock(%s)", [_CREATION_LOCK])
        opening.join(60)
        assert not opening.is_alive()
        indexes = "SELECT count(*) FROM pg_indexes WHERE indexname = %s"
        assert maker.execute(indexes, [CLAIM_INDEX]).fetchone() == (1,)


def test_more_workers_than_a_server_has_connections(small_server):
    """All begin at once, and not even the tables are there yet."""
    url = small_server.new_database()
    claimed = crowd(url, WORKERS, WORKERS)
    assert Counter(chain(*claimed)) == Counter(range(WORKERS))
    assert query(url, FINISHED) == [(number, "COMPLETE", 1) for number in range(WORKERS)]
    assert "too many clients" in small_server.said, "nobody was turned away: nothing was tested"
