"""Evaluation windows, bits per byte, and what evaluation finds out about memory."""

import math
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rnn.autograd import AutogradStack
from rnn.config import GatedOptions, NetworkConfig, TaskSpec, TrialConfig
from rnn.network import Batch
from rnn.tasks.sequence_task import SequenceTask
from rnn.tasks.text import select_eval_windows, to_bits_per_byte
from rnn.training.evaluation import (
    ContextLosses,
    compute_eval_losses,
    evaluate_sequences,
    list_context_bins,
    select_curve_data,
)

TEXT = np.frombuffer(b"It was the best of times, it was the worst of times. " * 20, np.uint8)


def test_windows_are_evenly_spaced_and_the_last_is_at_the_end():
    windows = select_eval_windows(np.arange(100, dtype=np.uint8), 4, 20)
    assert windows[0].tolist() == [0, 26, 53, 80]
    assert windows[:, 3].tolist() == [*range(80, 100)]
    # A short text gives as many as fit.
    assert select_eval_windows(TEXT[:100], 99, 20).shape == (20, 5)


def test_bits_per_byte_are_all_nats_over_all_bytes():
    token_byte_lengths = np.array([1, 3])
    windows = np.array([[0, 0], [0, 1], [1, 1]], np.uint8)  # predicted: 1 + 3 and 3 + 3 bytes
    losses = torch.tensor([[2.0, 4.0]], dtype=torch.float64)  # nats per token, two in a window
    bits = to_bits_per_byte(losses, windows, token_byte_lengths)
    expected = (2 * 2.0 + 2 * 4.0) / 10 / math.log(2)
    assert bits.mean().item() == pytest.approx(expected)
    assert bits[0, 1] == 2 * bits[0, 0], "windows keep their proportions"
    of_bytes = to_bits_per_byte(losses, windows, np.array([1, 1]))
    assert of_bytes[0].tolist() == pytest.approx([2 / math.log(2), 4 / math.log(2)])


class HandBuilt:
    """Network whose logits are a function of the last tokens; its state has them."""

    configs = (TrialConfig(GatedOptions(False, True, False, True, True, "new").network(1, 8)),)
    device = torch.device("cpu")
    parameters = SimpleNamespace(values=torch.zeros(1))
    reads_windows = True
    spec = TaskSpec(2, 2)

    def __init__(self, memory, function):
        self.memory, self.function = memory, function

    def init_state(self, streams):
        return [torch.full((1, streams, self.memory), -1, device=self.device)]

    def forward(self, tokens, states):
        (state,) = states
        logits = []
        for read in tokens:
            state = torch.cat([read[None, :, None], state[..., :-1]], 2)  # (1, B, memory)
            logits.append(self.function(state))
        return torch.stack(logits, 1), [state]

    def losses(self, logits, targets):
        return torch.nn.functional.cross_entropy(logits[0], targets, reduction="none")[None]


def test_excess_loss_by_context_is_that_of_the_missing_tokens():
    """A network whose loss falls by 1/c with the number c of tokens that it has read."""

    def logits(state):
        read = (state >= 0).sum(2)  # of the window, including this one
        return torch.log(torch.expm1(1 / read.double()))[..., None] * torch.tensor([0.0, 1.0])

    windows = np.zeros((34, 3), np.uint8)  # the target's loss is log(1 + exp(logit)) = 1/c
    network = HandBuilt(64, logits)
    context = ContextLosses(network, windows)
    compute_eval_losses(network, windows, context=context)
    assert context.bins == [1, 2, 4, 8, 16]
    loss = [1 / c for c in range(1, 17)]
    long = [1 / (17 + c) for c in range(1, 17)]
    low = 0
    for high, excess in zip(context.bins, context.excess[:, 0, 0].tolist(), strict=True):
        expected = np.mean(loss[low:high]) - np.mean(long[low:high])
        assert excess == pytest.approx(expected, abs=1e-6)
        low = high
    assert context.long[0].tolist() == pytest.approx([np.mean(long)] * 3)


def test_bins_are_at_most_twelve_powers_of_two_up_to_the_longest_context():
    assert list_context_bins(99) == [1, 2, 4, 8, 16, 32, 64, 99]
    assert list_context_bins(10**6) == [*(2**power for power in range(11)), 10**6]


class Walk:
    """Random walks far from 0; a step without a target has a weight of 0."""

    input_size = 1
    output_size = 2
    standardize = True

    def sample(self, split, rng, count):
        values = 1000 + 50 * rng.normal(size=(count, 7, 2)).cumsum(1)
        mask = rng.integers(0, 2, (count, 7))
        return {"inputs": values[..., :1], "targets": values, "mask": mask}


class Signs:
    """Classes, some of them rare."""

    vocabulary = 3
    classes = 30

    def sample(self, split, rng, count):
        targets = np.minimum(rng.geometric(0.15, (count, 9)) - 1, self.classes - 1)
        mask = rng.integers(0, 2, (count, 9))
        return {"inputs": rng.integers(0, 3, (count, 9)), "targets": targets, "mask": mask}


@pytest.mark.parametrize(("definition", "metric"), [(Walk(), "mae"), (Signs(), "accuracy")])
def test_metrics_are_means_over_the_targets_of_all_sequences(definition, metric):
    task = SequenceTask(definition, "made")
    batch = task.held_out("validation", 16)
    configs = [TrialConfig(NetworkConfig("gru", 1, 4), replicate=i) for i in (0, 1)]
    stack = AutogradStack(configs, 0, "fp32", task.spec)
    results = evaluate_sequences(
        stack, batch, {name: partial(task.measure, name) for name in task.metrics}, streams=5
    )

    states = stack.init_state(16)
    steps = []
    for x in torch.from_numpy(batch.inputs):
        outputs, states = stack.forward(x[None], states)
        steps.append(outputs[:, 0].numpy())
    found = np.stack(steps, axis=1)  # (K, steps, sequences, outputs)
    for result, outputs in zip(results, found, strict=True):
        if metric == "mae":
            values = np.abs(task.to_units(outputs) - task.to_units(batch.targets)).mean(-1)
        else:
            values = outputs.argmax(-1) == batch.targets
        expected = values[batch.weights > 0].mean()
        assert result.metrics[metric] == pytest.approx(expected, rel=1e-4)


def test_curves_are_measured_on_few_sequences_with_targets_and_warm_states():
    batch = SequenceTask(Signs(), "made").held_out("validation", 100)
    batch.mask[:, ::2] = 0  # half of the sequences have no target
    data = select_curve_data(batch, {}, inputs=9 * 20, begins_anywhere=False).batch
    assert data.inputs.shape == (9, 20)
    assert data.weights.any(0).all()
    data = select_curve_data(batch, {}, inputs=0, begins_anywhere=True).batch
    assert data.inputs.shape == (9, 8)
    assert not data.weights[:2].any()


def test_consecutive_sequences_are_read_on_with_their_states():
    rng = np.random.default_rng(0)
    inputs, targets = rng.random((2, 5, 4, 2)).astype(np.float32)  # 4 sequences of 5 steps
    spec = TaskSpec(2, 2, reads_tokens=False, predicts_classes=False)
    stack = AutogradStack([TrialConfig(NetworkConfig("gru", 1, 4))], 0, "fp32", spec)
    (apart,) = evaluate_sequences(stack, Batch(inputs, targets), {}, 4)
    (result,) = evaluate_sequences(stack, Batch(inputs, targets), {}, 1, is_consecutive=True)
    joined = [part.swapaxes(0, 1).reshape(20, 1, 2) for part in (inputs, targets)]
    (whole,) = evaluate_sequences(stack, Batch(*joined), {}, 1)
    assert result.losses.mean().item() == pytest.approx(whole.losses.item())
    assert result.losses[0].item() == pytest.approx(apart.losses[0].item())
    assert abs(result.losses[1:] - apart.losses[1:]).min() > 1e-4
