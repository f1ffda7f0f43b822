"""Truncated backpropagation through time, compared with autograd through generated networks."""

import numpy as np
import pytest
import torch
from network_configs import (
    GeneratedNetwork,
    assert_close,
    baseline_configs,
    each_of,
    gated_configs,
    label,
    representatives,
)
from torch import Tensor, nn

from rnn.config import BaselineConfig, OptimizerConfig, TrialConfig
from rnn.models.bptt_network import BPTTNetwork
from rnn.models.factory import TrainableNetwork, build_network
from rnn.stacked.flat_parameters import NamedTensors
from rnn.stacked.network import NetworkStack
from rnn.training.checkpoint import deserialize_checkpoint, serialize_checkpoint
from rnn.training.evaluation import compute_eval_losses
from rnn.training.loop import TrainConfig, TrainLoop
from rnn.training.step import TrainStep

STREAMS, VOCAB_SIZE = 3, 11
GATED, BASELINES = gated_configs(2, 4), baseline_configs(2, 4)
EXACT = {"rtol": 1e-9, "atol": 1e-12}

each_of_some = each_of(representatives(GATED, together=3), BASELINES, together=2)


def random_text(steps: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(VOCAB_SIZE, (steps, STREAMS), generator=generator)


def weights_of(network: TrainableNetwork) -> NamedTensors:
    return network.parameters.extract(0, network.parameters.values)


@each_of_some
def test_gradient_passes_through_bptt_steps_and_no_further(config):
    """Also at the start of a sequence, with fewer steps, and with changing weights."""
    window = 3
    trial_config = TrialConfig(config, 0, window, OptimizerConfig(learning_rate=0.05))
    network = BPTTNetwork([trial_config], 3, "fp64", VOCAB_SIZE)
    generated = GeneratedNetwork(config, VOCAB_SIZE, window)
    train_step = TrainStep(network, STREAMS, smoothing=0.0)
    for text in (random_text(7), random_text(4).flip(0)):  # two sequences
        train_step.begin_sequence()
        states = [generated.module.init_state(STREAMS)]  # before each step
        for t, targets in enumerate(text[1:]):
            generated.load(weights_of(network))
            first = max(0, t + 1 - window)
            loss, grads, next_states = generated.loss_and_grad(
                text[first : t + 1], targets, states[first]
            )
            states.append(next_states)
            train_step.step(text[t], targets)
            torch.testing.assert_close(train_step.ema_losses[0], loss, **EXACT)
            assert_close(network.parameters.extract(0, network.parameters.grads), grads, **EXACT)
            actual_states = [state[0] for state in train_step.states[:2]]
            torch.testing.assert_close(actual_states, next_states, **EXACT)


@each_of_some
def test_bfloat16_products_change_loss_and_gradient_little(config):
    results = []
    for precision in ("fp64", "bf16"):
        network = BPTTNetwork([TrialConfig(config, 0, 12)], 3, precision, VOCAB_SIZE)
        states, text = network.init_training_state(STREAMS), random_text(14)
        for t in range(13):
            loss, states = network.loss_and_grad(text[t], text[t + 1], states)
        assert loss.dtype == states[0].dtype == network.parameters.values.dtype
        results.append((loss.double(), network.parameters.grads.double()))
    (expected_loss, expected), (loss, grads) = results
    torch.testing.assert_close(loss, expected_loss, rtol=0.02, atol=0)
    assert (grads - expected).norm() < 0.03 * expected.norm()


TEXT = np.random.default_rng(0).integers(0, VOCAB_SIZE, 500, dtype=np.uint8)
SETTINGS = TrainConfig(
    steps=20,
    batch_size=STREAMS,
    sequence_length=13,
    log_every=2,
    smoothing=0.9,
    seed=3,
    average_fraction=0.6,
)


class StopError(Exception):
    pass


@pytest.mark.parametrize("stop", [2, 9, 12, 14])
@pytest.mark.parametrize("config", [GATED[-1], BASELINES[-1]], ids=label)
def test_resumed_run_equals_the_uninterrupted_run(config, stop):
    """Stopped with fewer than bptt_steps steps, with all of them, and between sequences."""
    trial_config = TrialConfig(config, 1, 4)

    def start(weights=None, train_states=None):
        network = build_network([trial_config], 1, "bf16", VOCAB_SIZE, None, weights)
        return TrainLoop(network, TEXT, SETTINGS, train_states)

    def stop_at_step():
        if stopped.step == stop:
            raise StopError

    whole, stopped = start(), start()
    list(whole.train())
    with pytest.raises(StopError):
        list(stopped.train(stop_at_step))
    content = serialize_checkpoint(stopped.train_state(trial_config), "me")
    train_state = deserialize_checkpoint(config, "me", content, VOCAB_SIZE)
    resumed = start({trial_config: train_state.weights}, {trial_config: train_state})
    list(resumed.train())
    assert resumed.curves == whole.curves
    expected, actual = whole.train_state(trial_config), resumed.train_state(trial_config)
    assert all(map(torch.equal, actual.states, expected.states))
    for name, weight in expected.weights.items():
        assert torch.equal(actual.weights[name], weight)


def test_evaluation_starts_from_zero_states_after_training():
    config = BaselineConfig("lstm", 2, 4)
    loop = TrainLoop(
        build_network([TrialConfig(config, 0, 4)], 1, "fp64", VOCAB_SIZE), TEXT, SETTINGS
    )
    list(loop.train())
    generated = GeneratedNetwork(config, VOCAB_SIZE)
    generated.load(weights_of(loop.stack))
    windows = TEXT[: 9 * STREAMS].reshape(9, STREAMS)
    text, expected = torch.from_numpy(windows).long(), 0.0
    states = generated.module.init_state(STREAMS)
    for t in range(8):
        logits, states = generated.module(text[t], states)
        expected += nn.functional.cross_entropy(logits, text[t + 1], reduction="none") / 8
    torch.testing.assert_close(
        compute_eval_losses(loop.stack, windows)[0], expected.detach(), **EXACT
    )


def test_only_gated_networks_with_one_bptt_step_are_stacked():
    gated, baseline = TrialConfig(GATED[-1]), TrialConfig(BASELINES[0])
    pair = [gated, TrialConfig(GATED[-2])]
    assert isinstance(build_network(pair, 1, "fp64"), NetworkStack)
    assert len(build_network(pair, 1).configs) == 2
    for config in (baseline, gated._replace(bptt_steps=2)):
        network = build_network([config], 1)
        assert isinstance(network, BPTTNetwork)
        assert network.with_configs({config: weights_of(network)}).configs == (config,)
        for pair in ([config, gated], [config, config._replace(replicate=1)]):
            with pytest.raises(ValueError, match=r"^2 configs .* expected one"):
                build_network(pair, 1)
        with pytest.raises(ValueError, match=r"cannot be stacked: expected a gated network"):
            NetworkStack([gated, config], 1)
    with pytest.raises(ValueError, match=r"bptt_steps is 0: expected 1 or more"):
        build_network([baseline._replace(bptt_steps=0)], 1)
