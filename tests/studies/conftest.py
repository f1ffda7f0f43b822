"""Storages of both kinds; those on a server are in the extended tests."""

import pytest


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.extended)])
def url(request):
    """URL of a storage that does not exist yet, of each kind."""
    return request.getfixturevalue(f"{request.param}_url")
