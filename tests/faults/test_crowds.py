"""Many workers at the same moment: no point goes to two, and nobody is turned away for good."""

import json
import subprocess
import sys
from collections import Counter
from itertools import chain
from pathlib import Path

import pytest
from helpers import NO_SYNC
from nursery import FINISHED, query
from services import PostgreSQL

CLAIMS = 640


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
def server_of_100():
    with PostgreSQL(
        f"{NO_SYNC} -c max_connections=100 -c superuser_reserved_connections=3"
    ) as server:
        yield server


def test_190_workers_on_a_server_of_100_connections(server_of_100):
    """A default server; all begin at once, and not even the tables are there yet."""
    url = server_of_100.new_database()
    claimed = crowd(url, 190, 190)
    assert Counter(chain(*claimed)) == Counter(range(190))
    assert query(url, FINISHED) == [(number, "COMPLETE", 1) for number in range(190)]
