"""Training resumed from a checkpoint equals uninterrupted training, bit for bit."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from network_configs import each_of, gated_configs
from safetensors.torch import load, save

import rnn
from rnn.config import OPTIMIZERS, BaselineConfig, GatedConfig, OptimizerConfig, TrialConfig
from rnn.errors import CheckpointError
from rnn.models.factory import build_network
from rnn.stacked.network import NetworkStack
from rnn.training.checkpoint import (
    deserialize_checkpoint,
    hash_sources,
    max_checkpoint_size,
    serialize_checkpoint,
    source_hash,
)
from rnn.training.loop import TrainConfig, TrainLoop

TEXT = np.random.default_rng(0).integers(0, 256, 500, dtype=np.uint8)
TRAIN_CONFIG = TrainConfig(
    steps=20,
    batch_size=3,
    sequence_length=8,
    log_every=4,
    smoothing=0.9,
    seed=3,
    average_fraction=0.6,
)
ALL = [TrialConfig(config, replicate=1) for config in gated_configs(2, 5, ["state"])]
SOME = ALL[::19]
IDENTITY = "settings of the training"


class StopError(Exception):
    pass


def begin(configs, precision="fp32"):
    return TrainLoop(NetworkStack(configs, seed=1, precision=precision), TEXT, TRAIN_CONFIG)


def train_until(run, step):
    def on_step():
        if run.step == step:
            raise StopError

    with pytest.raises(StopError):
        list(run.train(on_step))


def serialize(run):
    return {
        config: serialize_checkpoint(run.train_state(config), IDENTITY) for config in run.configs
    }


def deserialize(config, checkpoint):
    return deserialize_checkpoint(config.architecture, IDENTITY, checkpoint)


def resume(checkpoints, precision="fp32"):
    train_states = {
        config: deserialize(config, checkpoint) for config, checkpoint in checkpoints.items()
    }
    weights = {config: train_state.weights for config, train_state in train_states.items()}
    stack = NetworkStack(list(checkpoints), 1, precision, weights=weights)
    return TrainLoop(stack, TEXT, TRAIN_CONFIG, train_states)


def assert_equal(one, other):
    assert one.configs == other.configs
    assert torch.equal(one.stack.parameters.values, other.stack.parameters.values)
    assert one.curves == other.curves
    for run in (one, other):
        run.swap_in_averaged_weights()
    assert torch.equal(one.stack.parameters.values, other.stack.parameters.values)


@each_of([config.architecture for config in ALL], together=3)
def test_every_architecture_resumes_bit_for_bit(config):
    trial_config = TrialConfig(config, replicate=1)
    uninterrupted = begin([trial_config])
    list(uninterrupted.train())
    # Within a sequence, at the end of one, at a log point, between two.
    run = begin([trial_config])
    for step in (3, 4, 7, 13):
        train_until(run, step)
        run = resume(serialize(run))
    assert [point.step for point in run.train()] == [16, 20]
    assert_equal(run, uninterrupted)


@pytest.mark.parametrize(
    "configs", [SOME, pytest.param(ALL, marks=pytest.mark.extended)], ids=["some", "all"]
)
@pytest.mark.parametrize("precision", ["bf16", "fp64"])
def test_stack_resumes_bit_for_bit_in_every_precision(precision, configs):
    uninterrupted = begin(configs, precision)
    list(uninterrupted.train())
    run = begin(configs, precision)
    train_until(run, 10)
    run = resume(serialize(run), precision)
    list(run.train())
    assert_equal(run, uninterrupted)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_optimizer_resumes_bit_for_bit(precision):
    configs = [
        config._replace(
            optimizer=OptimizerConfig(name, 0.01, weight_decay=0.1, gradient_clipping=1)
        )
        for name in OPTIMIZERS
        for config in SOME[:2]
    ]
    uninterrupted = begin(configs, precision)
    list(uninterrupted.train())
    run = begin(configs, precision)
    train_until(run, 10)
    states = [run.train_state(config) for config in run.configs]
    for config, state in zip(run.configs, states, strict=True):
        has_moments = [any(bool(each.any()) for each in group.values()) for group in state.moments]
        name = config.optimizer.name
        assert has_moments == [name != "rmsprop", name != "sgd"], "as the equations say"
    run = resume(serialize(run), precision)
    list(run.train())
    assert_equal(run, uninterrupted)


def test_finished_run_has_no_further_steps_when_resumed():
    run = begin(ALL[:1])
    list(run.train())
    resumed = resume(serialize(run))
    assert resumed.curves == run.curves
    assert list(resumed.train()) == []
    assert resumed.seconds == run.seconds


@pytest.mark.parametrize(
    "config",
    [
        TrialConfig(GatedConfig(False, False, False, False, False, "new", 2, 300)),
        TrialConfig(BaselineConfig("lstm", 2, 8), bptt_steps=50),
    ],
    ids=["weights", "states"],
)
def test_size_of_a_checkpoint_is_bounded(config):
    streams = 3 if config.bptt_steps == 1 else 1000
    settings = replace(TRAIN_CONFIG, batch_size=streams)
    run = TrainLoop(build_network([config], 1), TEXT, settings)
    train_until(run, 18)
    size = len(serialize_checkpoint(run.train_state(config), IDENTITY))
    bound = max_checkpoint_size(config, 256, streams, settings.steps)
    assert bound / 4 < size < bound


def test_checkpoint_can_be_written_before_the_first_step():
    run = resume(serialize(begin(ALL[:1])))
    assert [point.step for point in run.train()] == [4, 8, 12, 16, 20]


def test_network_trained_in_a_stack_resumes_alone():
    uninterrupted = begin(SOME, "fp64")
    list(uninterrupted.train())
    stacked = begin(SOME, "fp64")
    train_until(stacked, 10)
    checkpoints = serialize(stacked)
    for config in SOME:
        alone = resume({config: checkpoints[config]}, "fp64")
        list(alone.train())
        expected = uninterrupted.curves[uninterrupted.configs.index(config)]
        assert alone.curves[0] == pytest.approx(expected, rel=1e-9)


def read_metadata(checkpoint):
    """Read the metadata in the header of the safetensors file."""
    length = int.from_bytes(checkpoint[32:40], "little")
    return json.loads(checkpoint[40 : 40 + length])["__metadata__"]


def source_hashes(checkpoints):
    (hashes,) = (
        deserialize(config, checkpoint).source_hashes for config, checkpoint in checkpoints.items()
    )
    return hashes


def test_checkpoint_lists_the_hashes_of_all_code_that_trained_it_latest_last(monkeypatch):
    uninterrupted = begin(ALL[-1:])
    list(uninterrupted.train())
    run = begin(ALL[-1:])
    current = source_hash()
    train_until(run, 4)
    checkpoints = serialize(run)
    assert source_hashes(checkpoints) == (current,)
    for step, code, expected in (
        (8, "another", (current, "another")),
        (10, "third", (current, "another", "third")),
        (12, "another", (current, "third", "another")),
    ):
        with monkeypatch.context() as patch:
            patch.setattr("rnn.training.checkpoint.source_hash", lambda code=code: code)
            run = resume(checkpoints)
            train_until(run, step)
            checkpoints = serialize(run)
        assert source_hashes(checkpoints) == expected
    run = resume(checkpoints)
    list(run.train())
    assert_equal(run, uninterrupted)


def torch_versions(checkpoints):
    ((config, checkpoint),) = checkpoints.items()
    return deserialize(config, checkpoint).torch_versions


def test_checkpoint_lists_all_versions_of_pytorch_that_trained_it_latest_last(monkeypatch):
    run = begin(ALL[-1:])
    train_until(run, 4)
    checkpoints = serialize(run)
    assert torch_versions(checkpoints) == (torch.__version__,)
    monkeypatch.setattr("rnn.training.checkpoint.torch_version", lambda: "9.0")
    run = resume(checkpoints)
    train_until(run, 8)
    assert torch_versions(serialize(run)) == (torch.__version__, "9.0")


def test_checkpoint_from_before_versions_of_pytorch_were_recorded_is_resumed():
    run = begin(ALL[-1:])
    train_until(run, 4)
    (checkpoint,) = serialize(run).values()
    metadata = read_metadata(checkpoint)
    del metadata["torch_versions"]
    content = save(load(checkpoint[32:]), metadata)
    older = {ALL[-1]: hashlib.sha256(content).digest() + content}
    assert torch_versions(older) == ()
    list(resume(older).train())


def test_source_hash_changes_with_a_file_of_a_subpackage(tmp_path):
    package = tmp_path / "rnn"
    shutil.copytree(Path(rnn.__file__).parent, package)
    assert hash_sources(package) == source_hash()
    module = package / "stacked" / "layer.py"
    source = module.read_text("utf-8")
    module.write_text(source + "\n", "utf-8")
    assert hash_sources(package) != source_hash()
    module.write_text(source, "utf-8")
    assert hash_sources(package) == source_hash()
    module.rename(package / "stacked" / "renamed.py")
    assert hash_sources(package) != source_hash()


@pytest.fixture
def checkpoint():
    run = begin(ALL[-1:])
    train_until(run, 10)
    return serialize_checkpoint(run.train_state(ALL[-1]), IDENTITY)


def assert_refused(checkpoint, match, config=ALL[-1], identity=IDENTITY):
    with pytest.raises(CheckpointError, match=match) as refused:
        deserialize_checkpoint(config.architecture, identity, checkpoint)
    assert "\n" not in str(refused.value)


def test_damaged_checkpoint_is_refused(checkpoint):
    for position in range(0, len(checkpoint), 97):
        flipped = bytearray(checkpoint)
        flipped[position] ^= 1 << position % 8
        assert_refused(bytes(flipped), "damaged")
    for length in (0, 1, 31, 32, 40, len(checkpoint) // 2, len(checkpoint) - 1):
        assert_refused(checkpoint[:length], "damaged")
    assert_refused(checkpoint + b"\0", "damaged")


def test_file_of_another_program_is_refused():
    for content in (b"", b"\x80\x04K\x01.", b"\xff" * 64, (2**40).to_bytes(8, "little") + b"{}"):
        assert_refused(hashlib.sha256(content).digest() + content, "cannot be read")


@pytest.mark.parametrize("metadata", [{}, {"form": "3"}, {"format_version": "3"}])
def test_checkpoint_of_another_format_is_refused(checkpoint, metadata):
    current = read_metadata(checkpoint)
    assert current.pop("format_version") == "4"
    content = save(load(checkpoint[32:]), current | metadata)
    assert_refused(hashlib.sha256(content).digest() + content, "expected format 4")


def test_checkpoint_of_another_training_is_refused(checkpoint):
    assert_refused(checkpoint, "another training", identity="other settings")
    wider = GatedConfig(True, True, True, True, True, "both", 2, 6)
    assert_refused(checkpoint, "expected weights", config=TrialConfig(wider))
