"""Checkpoints and weights in folders: atomic writes, quarantine, eviction, removal."""

import pytest
from helpers import with_text
from invocation import refused

from rnn.errors import UserError
from search.worker.train_states import checkpoint_identity
from studies.artifacts import ArtifactFolders
from studies.config import StudyConfig


@pytest.fixture
def folders(tmp_path):
    return ArtifactFolders(str(tmp_path / "artifacts"), "sqlite:///none.db")


def test_checkpoint_is_read_as_written_until_removed(folders):
    checkpoints = folders.trial_files("quick-1", "checkpoint")
    others = folders.trial_files("quick-2", "checkpoint")
    assert checkpoints.read(3) is None
    checkpoints.remove(3)
    for number, content in ((3, b"first"), (3, b"second"), (4, b"another")):
        checkpoints.write(number, content)
    others.write(3, b"of another study")
    assert checkpoints.read(3) == b"second"
    checkpoints.remove(3)
    assert (checkpoints.read(3), checkpoints.read(4)) == (None, b"another")
    path = checkpoints.quarantine(4)
    assert checkpoints.read(4) is None
    assert path.read_bytes() == b"another"
    assert others.read(3) == b"of another study"


@pytest.mark.parametrize("place", ["/no/such/folder", "{tmp}/file", "ftp://host/x", "s3://"])
def test_unusable_folder_is_refused_and_nothing_created(tmp_path, place):
    (tmp_path / "file").write_text("a file")
    place = place.format(tmp=tmp_path)
    with refused(UserError, place, tmp_path):
        ArtifactFolders(place, "sqlite:///none.db")


def test_checkpoint_identity_consists_of_named_values_and_no_class_name():
    switches = {"input_gate": False, "forget_gate": True, "output_gate": False}
    switches |= {"state_gate": True, "residual": True, "state_source": "new"}
    params = {"layers": 2, "state_size": 8, **switches, "replicate": 1}
    config = StudyConfig.model_validate(
        {
            "precision": "fp32",
            "seed": 3,
            "space": {"layers": [2], "state_size": [8]},
            "training": {"steps": 20, "batch_size": 6, "sequence_length": 9, "log_every": 2},
            "evaluation": {"average": 0.5},
        }
    )
    assert checkpoint_identity(params, with_text(config)) == (
        '{"architecture": "01011-new-2-8-state", "bptt_steps": 1, "cell_sha256": null, '
        '"optimizer": {"beta1": 0.9, "beta2": 0.999, "gradient_clipping": 0.0, '
        '"learning_rate": 0.001, "momentum": 0.9, "name": "adam", "schedule": "constant", '
        '"warmup_steps": 0, "weight_decay": 0.0}, "precision": "fp32", '
        '"replicate": 1, "task": {"corpus": {"length": 100, "sha256": "ab", "split": [90, 95]}, '
        '"data_sha256": null, "eval_lengths": [], "loss": "next token", "metrics": {}, '
        '"name": "text", "predicts_classes": true, "reads_tokens": true, "sha256": null, '
        '"steps": null, "values": {"tokenizer": "bytes"}, "version": 0}, '
        '"training": {"average_fraction": 0.5, "batch_size": 6, "eval_every": null, '
        '"log_every": 2, "seed": 3, "sequence_length": 9, "smoothing": 0.95, "steps": 20}, '
        '"update_every": 1}'
    )


def test_eviction_keeps_the_weights_of_the_best_trials(folders):
    weights = folders.trial_files("quick-1", "safetensors")
    others = folders.trial_files("quick-10", "safetensors")
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
