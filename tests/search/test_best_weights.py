"""Where weights lie: those of the best are there, in a folder or in a bucket."""

import pytest

from search.worker.trial_artifacts import WeightStore
from studies.artifacts import open_store


@pytest.fixture(params=["folder", "bucket"])
def store(request, tmp_path):
    place = str(tmp_path / "files") if request.param == "folder" else None
    return open_store(place or request.getfixturevalue("bucket"), "sqlite:///none.db", "weights")


def test_only_the_weights_of_the_best_are_kept(store):
    weights, others = WeightStore(store, "quick-1"), WeightStore(store, "quick-10")
    assert weights.kept() == set()
    assert weights.read(3) is None
    weights.keep_only([3, 1], 1)  # where there is nothing
    for number in (1, 2, 3, 11, 12):
        weights.write(number, f"of {number}".encode())
    weights.write(3, b"again")
    others.write(1, b"of another study")
    weights.keep_only([12, 3, 7, 2, 11], 2)
    assert weights.kept() == {1, 3, 12}  # 1 was not named: its trial may not be recorded yet
    assert (weights.read(3), weights.read(2)) == (b"again", None)
    weights.keep_only([12, 3, 1], 0)
    assert weights.kept() == set()
    assert others.kept() == {1}


def test_what_else_lies_there_stays(tmp_path):
    weights = WeightStore(open_store(None, f"sqlite:///{tmp_path}/studies.db", "weights"), "s-1")
    weights.write(1, b"one")
    folder = tmp_path / "studies.db.weights" / "s-1"
    (folder / "notes.txt").write_text("mine")
    (folder / "trial-2.safetensors.0123.part").write_bytes(b"of a killed worker")
    assert weights.kept() == {1}
    weights.keep_only([1, 2], 0)
    assert {path.name for path in folder.iterdir()} >= {"notes.txt"}
    assert not (folder / "trial-1.safetensors").exists()
