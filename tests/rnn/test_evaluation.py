"""Evaluation windows, their losses and bits per byte."""

import math

import numpy as np
import pytest
import torch

from rnn.config import GatedConfig, TrialConfig
from rnn.stacked.network import NetworkStack
from rnn.training.evaluation import compute_eval_losses, select_eval_windows, to_bits_per_byte

TEXT = np.frombuffer(b"It was the best of times, it was the worst of times. " * 2, np.uint8)[:100]
CONFIGS = [
    TrialConfig(GatedConfig(False, True, False, True, True, "new", 2, 8)),
    TrialConfig(GatedConfig(True, True, True, True, True, "both", 2, 8)),
]


def test_losses_are_means_over_evenly_spaced_windows():
    stack = NetworkStack(CONFIGS, seed=1, precision="fp64")
    losses = compute_eval_losses(stack, select_eval_windows(TEXT, window_count=4, window_length=20))
    # Four windows of twenty tokens in a hundred, the last one at the end.
    for window, start in enumerate((0, 26, 53, 80)):
        states, total = stack.init_state(1), 0.0
        for t in range(start, start + 19):
            token, target = (torch.tensor([int(TEXT[i])]) for i in (t, t + 1))
            logits, next_states = stack.forward(token, states)
            total = total + stack.losses(logits, target)[:, 0]
            for state, next_state in zip(states, next_states, strict=True):
                state.copy_(next_state)
        torch.testing.assert_close(losses[:, window], total / 19)


def test_short_text_gives_as_many_windows_as_fit():
    assert select_eval_windows(TEXT, 99, 20).shape == (20, 5)
    with pytest.raises(ValueError, match="20 or more"):
        select_eval_windows(TEXT[:19], 4, 20)


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
