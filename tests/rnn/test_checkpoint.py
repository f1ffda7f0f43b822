"""A run that goes on from a checkpoint is the run that was never stopped, bit for bit."""

import hashlib
import itertools
import json

import numpy as np
import pytest
import torch
from network_configs import each_of
from safetensors.torch import load, save

from rnn.config import STATE_SOURCES, GatedConfig, TrialConfig
from rnn.errors import CheckpointError
from rnn.stacked.network import NetworkStack
from rnn.training.checkpoint import deserialize_checkpoint, serialize_checkpoint, source_hash
from rnn.training.loop import TrainConfig, TrainLoop

TEXT = np.random.default_rng(0).integers(0, 256, 500, dtype=np.uint8)
SETTINGS = TrainConfig(
    steps=20,
    batch_size=3,
    sequence_length=8,
    log_every=4,
    learning_rate=0.01,
    smoothing=0.9,
    seed=3,
    average=0.6,
)
SWITCHES = [
    TrialConfig(GatedConfig(*gates, source, 2, 5), replicate=1)
    for *gates, source in itertools.product(*[[False, True]] * 5, STATE_SOURCES)
]


SOME = SWITCHES[::19]


class StopError(Exception):
    pass


def begin(configs, precision="fp32"):
    return TrainLoop(NetworkStack(configs, seed=1, precision=precision), TEXT, SETTINGS)


def train_until(run, step):
    """Train, and stop between two steps."""

    def look():
        if run.step == step:
            raise StopError

    with pytest.raises(StopError):
        list(run.train(look))


def write(run):
    return {config: serialize_checkpoint(run.progress(config), "me") for config in run.configs}


def resume(written, precision="fp32"):
    progress = {
        config: deserialize_checkpoint(config.architecture, "me", content)
        for config, content in written.items()
    }
    weights = {config: own.weights for config, own in progress.items()}
    stack = NetworkStack(list(written), 1, precision, weights=weights)
    return TrainLoop(stack, TEXT, SETTINGS, progress)


def same(one, other):
    assert one.configs == other.configs
    assert torch.equal(one.stack.parameters.values, other.stack.parameters.values)
    assert one.curves == other.curves
    for run in (one, other):
        run.swap_in_averaged_weights()
    assert torch.equal(one.stack.parameters.values, other.stack.parameters.values)


@each_of([config.architecture for config in SWITCHES], together=3)
def test_every_cell_goes_on_bit_for_bit(architecture):
    config = TrialConfig(architecture, replicate=1)
    undisturbed = begin([config])
    list(undisturbed.train())
    # In the midst of a sequence, at the end of one, at a log point, between two.
    run = begin([config])
    for step in (3, 4, 7, 13):
        train_until(run, step)
        run = resume(write(run))
    assert [point.step for point in run.train()] == [16, 20]
    same(run, undisturbed)


@pytest.mark.parametrize(
    "configs", [SOME, pytest.param(SWITCHES, marks=pytest.mark.extended)], ids=["some", "all"]
)
@pytest.mark.parametrize("precision", ["bf16", "fp64"])
def test_a_population_goes_on_in_every_precision(precision, configs):
    undisturbed = begin(configs, precision)
    list(undisturbed.train())
    run = begin(configs, precision)
    train_until(run, 10)
    run = resume(write(run), precision)
    list(run.train())
    same(run, undisturbed)


def test_a_finished_run_has_nothing_to_go_on_with():
    run = begin(SWITCHES[:1])
    list(run.train())
    again = resume(write(run))
    assert again.curves == run.curves
    assert list(again.train()) == []
    assert again.seconds == run.seconds


def test_a_run_that_has_not_begun_can_be_written_down():
    run = resume(write(begin(SWITCHES[:1])))
    assert [point.step for point in run.train()] == [4, 8, 12, 16, 20]


def test_who_was_trained_with_others_goes_on_alone():
    """And the other way round: a checkpoint knows of no company."""
    undisturbed = begin(SOME, "fp64")
    list(undisturbed.train())
    together = begin(SOME, "fp64")
    train_until(together, 10)
    written = write(together)
    for config in SOME:
        alone = resume({config: written[config]}, "fp64")
        list(alone.train())
        expected = undisturbed.curves[undisturbed.configs.index(config)]
        assert alone.curves[0] == pytest.approx(expected, rel=1e-9)


def code_of(written):
    (own,) = (
        deserialize_checkpoint(m.architecture, "me", content) for m, content in written.items()
    )
    return own.code


def test_checkpoint_names_all_code_that_trained_it_the_latest_last(monkeypatch):
    undisturbed = begin(SWITCHES[-1:])
    list(undisturbed.train())
    run = begin(SWITCHES[-1:])
    own = source_hash()
    train_until(run, 4)
    written = write(run)
    assert code_of(written) == (own,)
    for step, code, expected in (
        (8, "another", (own, "another")),
        (10, "third", (own, "another", "third")),
        (12, "another", (own, "third", "another")),
    ):
        with monkeypatch.context() as patch:
            patch.setattr("rnn.training.checkpoint.source_hash", lambda code=code: code)
            run = resume(written)
            train_until(run, step)
            written = write(run)
        assert code_of(written) == expected
    run = resume(written)
    list(run.train())
    same(run, undisturbed)


def test_checkpoint_that_names_no_code_is_read_as_of_unknown_code(written):
    """As they were written before the code was named."""
    content = written[32:]
    length = int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + length])["__metadata__"]
    del metadata["code"]
    content = save(load(content), metadata)
    before = hashlib.sha256(content).digest() + content
    found = deserialize_checkpoint(SWITCHES[-1].architecture, "me", before)
    assert (found.step, found.code) == (10, ("unknown",))


@pytest.fixture
def written():
    run = begin(SWITCHES[-1:])
    train_until(run, 10)
    return serialize_checkpoint(run.progress(SWITCHES[-1]), "me")


def refused(written, match, config=SWITCHES[-1], identity="me"):
    with pytest.raises(CheckpointError, match=match):
        deserialize_checkpoint(config.architecture, identity, written)


def test_every_damage_is_seen(written):
    for at in range(0, len(written), 97):
        flipped = bytearray(written)
        flipped[at] ^= 1 << at % 8
        refused(bytes(flipped), "damaged")
    for length in (0, 1, 31, 32, 40, len(written) // 2, len(written) - 1):
        refused(written[:length], "damaged")
    refused(written + b"\0", "damaged")


def test_what_another_program_wrote_is_refused():
    for content in (b"", b"\x80\x04K\x01.", b"\xff" * 64, (2**40).to_bytes(8, "little") + b"{}"):
        refused(hashlib.sha256(content).digest() + content, "cannot be read")


def test_another_runs_checkpoint_is_refused(written):
    refused(written, "another run", identity="you")
    other = GatedConfig(True, True, True, True, True, "both", 2, 6)
    refused(written, "no weights", config=TrialConfig(other))
