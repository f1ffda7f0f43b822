"""Checkpoints: their size, their origin, and those that are refused.

:mod:`test_contract` resumes from them.
"""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
from test_contract import train_until

import rnn
from rnn.config import GatedOptions, TrialConfig
from rnn.engines import build_network
from rnn.errors import CheckpointError
from rnn.tasks.text import TextData
from rnn.training.checkpoint import (
    deserialize_checkpoint,
    serialize_checkpoint,
    source_hash,
)
from rnn.training.loop import TrainConfig, TrainLoop

DATA = TextData(np.random.default_rng(0).integers(0, 256, 500, dtype=np.uint8))
TRAIN_CONFIG = TrainConfig(20, 3, 8, log_every=4, smoothing=0.9, seed=3, average_fraction=0.6)
CONFIG = TrialConfig(GatedOptions(True, True, True, True, True, "both").network(2, 5))
IDENTITY = "settings of the training"


def begin():
    return TrainLoop(build_network([CONFIG], 1), DATA, TRAIN_CONFIG)


def serialize(run):
    return serialize_checkpoint(run.train_state(run.configs[0]), IDENTITY)


def deserialize(checkpoint):
    return deserialize_checkpoint(IDENTITY, checkpoint)


def resume(checkpoint):
    state = deserialize(checkpoint)
    network = build_network([CONFIG], 1, weights={CONFIG: state.weights})
    return TrainLoop(network, DATA, TRAIN_CONFIG, {CONFIG: state})


def test_training_time_is_resumed():
    run = begin()
    list(run.train())
    resumed = resume(serialize(run))
    assert run.seconds[0] > 0
    assert resumed.seconds == run.seconds


def test_source_hash_changes_with_a_file_of_a_subpackage(tmp_path):
    hash_of = source_hash.__wrapped__  # without the cache
    package = tmp_path / "rnn"
    shutil.copytree(Path(rnn.__file__).parent, package)
    assert hash_of(package) == source_hash()
    module = package / "stacked" / "layer.py"
    module.write_text(module.read_text("utf-8") + "\n", "utf-8")
    assert hash_of(package) != source_hash()
    shutil.copy(Path(rnn.__file__).parent / "stacked" / "layer.py", module)
    assert hash_of(package) == source_hash()
    module.rename(package / "stacked" / "renamed.py")
    assert hash_of(package) != source_hash()


@pytest.fixture
def checkpoint():
    run = begin()
    train_until(run, 10)
    return serialize(run)


def assert_refused(checkpoint, match, identity=IDENTITY):
    with pytest.raises(CheckpointError, match=match) as refused:
        deserialize_checkpoint(identity, checkpoint)
    assert "\n" not in str(refused.value)


def test_damaged_checkpoint_is_refused(checkpoint):
    for position in range(0, len(checkpoint), 97):
        flipped = bytearray(checkpoint)
        flipped[position] ^= 1 << position % 8
        assert_refused(bytes(flipped), "damaged")
    for length in (0, 1, 31, 32, 40, len(checkpoint) // 2, len(checkpoint) - 1):
        assert_refused(checkpoint[:length], "damaged")
    assert_refused(checkpoint + b"\0", "damaged")
    of_another_program = b"\x80\x04K\x01."
    digest = hashlib.sha256(of_another_program).digest()
    assert_refused(digest + of_another_program, "cannot be read")


def test_checkpoint_of_another_format_is_refused(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("rnn.training.checkpoint._FORMAT_VERSION", "0")
        older = serialize(begin())
    assert_refused(older, "expected format 1")


def test_checkpoint_of_another_training_is_refused(checkpoint):
    assert_refused(checkpoint, "another training", identity="other settings")
