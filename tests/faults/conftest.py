"""What the tests of faults share."""

import pytest
from nursery import Nursery, searching


@pytest.fixture(scope="session")
def nursery(tmp_path_factory):
    with Nursery(tmp_path_factory.mktemp("searchers")) as nursery:
        yield nursery


@pytest.fixture
def search(nursery, url, text):
    """Start a search on a small study; further settings as ``training_steps=1000``."""
    return searching(nursery, url, text)
