"""Storages of both kinds; those on a server are in the extended tests."""

import optuna
import pytest

from rnn_search import import_results


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.extended)])
def url(request):
    """URL of a storage that does not exist yet, of each kind."""
    return request.getfixturevalue(f"{request.param}_url")


@pytest.fixture
def target(tmp_path) -> str:
    """URL of a storage that does not exist yet."""
    return f"sqlite:///{tmp_path}/studies.db"


@pytest.fixture
def table(tmp_path, target):
    """Write a table and import it; return its trials and what was said about it."""

    def read(content: str | bytes, **options):
        path = tmp_path / "table.csv"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        imported = import_results(path, storage=target, **options)
        return optuna.load_study(study_name="table", storage=target).trials, imported

    return read
