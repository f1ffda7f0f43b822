"""Checkpoints and weights in folders and buckets: atomic writes, quarantine, eviction, removal."""

import io

import numpy as np
import pytest
from invocation import refused

from rnn.config import GatedConfig, OptimizerConfig, TrialConfig
from rnn.tasks.corpus import Corpus
from rnn.training.loop import TrainConfig
from search.worker.checkpoints import TrialFiles, checkpoint_identity
from studies.artifacts import AtomicFileStore, open_store
from studies.config import StudyConfig
from studies.errors import ArtifactsError


@pytest.fixture(params=["folder", "bucket"])
def artifacts(request, tmp_path):
    if request.param == "folder":
        return str(tmp_path / "artifacts")
    return request.getfixturevalue("bucket")


@pytest.fixture
def store(artifacts):
    return open_store(artifacts, "sqlite:///none.db", "checkpoints")


def checkpoints_in(store, folder="quick-1"):
    return TrialFiles(store, folder, "checkpoint")


def weights_in(store, folder="quick-1"):
    return TrialFiles(store, folder, "safetensors")


def test_checkpoint_is_read_as_written_until_removed(store):
    checkpoints, others = checkpoints_in(store), checkpoints_in(store, "quick-2")
    assert checkpoints.read(3) is None
    checkpoints.remove(3)
    for number, content in ((3, b"first"), (3, b"second"), (4, b"another")):
        checkpoints.write(number, content)
    others.write(3, b"of another study")
    assert checkpoints.read(3) == b"second"
    checkpoints.remove(3)
    assert (checkpoints.read(3), checkpoints.read(4)) == (None, b"another")
    place = checkpoints.quarantine(4, b"damaged")
    assert checkpoints.read(4) is None
    assert store.open_reader(place).read() == b"damaged"
    assert others.read(3) == b"of another study"


def acts_on(checkpoints):
    """Return what can be done to a checkpoint."""
    return (
        lambda: checkpoints.write(1, b"new"),
        lambda: checkpoints.read(1),
        lambda: checkpoints.remove(1),
        lambda: checkpoints.quarantine(1, b"new"),
    )


def test_folder_that_leads_elsewhere_is_refused(store):
    for folder in ("../victim", "/victim", "s-1/..", "..", "", "s\0"):
        checkpoints, weights = checkpoints_in(store, folder), weights_in(store, folder)
        acts = [*acts_on(checkpoints), weights.list_trials, lambda each=weights: each.evict([1], 0)]
        for act in (*acts, *([weights.clear] if isinstance(store, AtomicFileStore) else [])):
            with pytest.raises(ArtifactsError, match="is not a valid name of an artifact"):
                act()


def test_dashboard_cannot_reach_the_files_of_trials(artifacts):
    """All kinds of files may share a place, and a database may list any name as an artifact."""
    weights = weights_in(open_store(artifacts, "sqlite:///none.db", "weights"), "s-1")
    weights.write(1, b"weights")
    store = open_store(artifacts, "sqlite:///none.db", "artifacts")
    for act in (store.open_reader, store.remove):
        with pytest.raises(ArtifactsError, match="is not a valid name of an artifact"):
            act("s-1/trial-1.safetensors")
    store.write("8f14e45f-ceea-467f-a34d-0d1f2c3b4a59", io.BytesIO(b"file"))
    store.remove("8f14e45f-ceea-467f-a34d-0d1f2c3b4a59")
    assert weights.read(1) == b"weights"


@pytest.mark.parametrize("link", ["folder", "file"])
def test_link_that_leads_out_of_the_store_is_not_followed(tmp_path, link):
    victim = tmp_path / "victim" / "trial-1.checkpoint"
    victim.parent.mkdir()
    victim.write_bytes(b"of another program")
    folder = tmp_path / "artifacts" / "s-1"
    if link == "folder":
        folder.parent.mkdir()
        folder.symlink_to(victim.parent)
    else:
        folder.mkdir(parents=True)
        (folder / victim.name).symlink_to(victim)
    store = open_store(str(tmp_path / "artifacts"), "sqlite:///none.db", "checkpoints")
    checkpoints = checkpoints_in(store, "s-1")
    for act in (*acts_on(checkpoints), checkpoints.clear):
        with pytest.raises(ArtifactsError, match="is a link that leads out of"):
            act()
    if link == "folder":
        with pytest.raises(ArtifactsError, match="is a link that leads out of"):
            weights_in(store, "s-1").list_trials()
    assert victim.read_bytes() == b"of another program"
    assert [path.name for path in victim.parent.iterdir()] == [victim.name]


@pytest.mark.parametrize(
    "place", ["/no/such/folder", "{tmp}/file", "ftp://host/x", "s3://", "s3://networks/in/it"]
)
def test_unusable_store_is_refused_and_nothing_created(tmp_path, place):
    (tmp_path / "file").write_text("a file")
    place = place.format(tmp=tmp_path)
    with refused(ArtifactsError, place, tmp_path):
        open_store(place, "sqlite:///none.db", "checkpoints")


def test_checkpoint_identity_consists_of_named_values_and_no_class_name():
    architecture = GatedConfig(False, True, False, True, True, "new", 2, 8)
    trial_config = TrialConfig(architecture, 1, optimizer=OptimizerConfig(learning_rate=0.01))
    space = {"layers": [2], "state_size": [8]}
    config = StudyConfig.model_validate({"precision": "fp32", "space": space})
    train_config = TrainConfig(20, 6, 9, 2, 0.9, 3, 0.5)
    corpus = Corpus("letters", np.frombuffer(b"a" * 100, np.uint8))
    identity = checkpoint_identity(trial_config, config, train_config, corpus)
    assert identity == (
        '{"architecture": "01011-new-2-8-state", "bptt_steps": 1, "corpus_sha256": '
        '"2816597888e4a0d3a36b82b83316ab32680eb8f00f8cd3b904d681246d285a0e", '
        '"corpus_split": [90, 95], "precision": "fp32", "replicate": 1, "tokenizer": "bytes", '
        '"training": {"average_fraction": 0.5, "batch_size": 6, "learning_rate": 0.01, '
        '"log_every": 2, "seed": 3, "sequence_length": 9, "smoothing": 0.9, "steps": 20}}'
    )


def test_eviction_keeps_the_weights_of_the_best_trials(store):
    weights, others = weights_in(store), weights_in(store, "quick-10")
    assert weights.list_trials() == set()
    weights.evict([3, 1], 1)  # nothing to remove
    for number in (1, 2, 3, 11, 12):
        weights.write(number, f"of {number}".encode())
    others.write(1, b"of another study")
    weights.evict([12, 3, 7, 2, 11], 2)
    assert weights.list_trials() == {1, 3, 12}  # 1 was not named: its trial may not be recorded yet
    assert (weights.read(3), weights.read(2)) == (b"of 3", None)
    weights.evict([12, 3, 1], 0)
    assert weights.list_trials() == set()
    assert others.list_trials() == {1}
