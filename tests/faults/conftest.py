"""What the tests of faults share."""

import pytest
from helpers import TEXT
from nursery import CURVES, query, searching


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    """A text, which is the same for all tests, as are the curves of what is trained on it."""
    path = tmp_path_factory.mktemp("text") / "text"
    path.write_bytes(TEXT)
    return path


@pytest.fixture(scope="session")
def undisturbed(nursery, text, tmp_path_factory):
    """Return the curves of a search that nothing happened to."""
    known = {}

    def curves(**settings):
        key = repr(sorted(settings.items()))
        if key not in known:
            url = f"sqlite:///{tmp_path_factory.mktemp('undisturbed')}/studies.db"
            assert searching(nursery, url, text)(**settings).wait(600) == 0
            known[key] = query(url, CURVES)
        return known[key]

    return curves
