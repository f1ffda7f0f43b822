"""Held-out text: which lanes, what is measured on them, and in what unit."""

import math

import numpy as np
import pytest
import torch

from rnn.config import GatedConfig, TrialConfig
from rnn.stacked.network import NetworkStack
from rnn.training.evaluation import bits_per_byte, eval_losses, eval_windows

TEXT = np.frombuffer(b"It was the best of times, it was the worst of times. " * 2, np.uint8)[:100]
MEMBERS = [
    TrialConfig(GatedConfig(False, True, False, True, True, "new", 2, 8)),
    TrialConfig(GatedConfig(True, True, True, True, True, "both", 2, 8)),
]


def test_held_out_lanes_are_evenly_spaced_and_the_same_for_all():
    stack = NetworkStack(MEMBERS, seed=1, precision="fp64")
    losses = eval_losses(stack, eval_windows(TEXT, window_count=4, window_length=20))
    # By hand: four lanes of twenty in a hundred, the last one at the end.
    for lane, start in enumerate((0, 26, 53, 80)):
        states, total = stack.init_state(1), 0.0
        for t in range(start, start + 19):
            reads, targets = (torch.tensor([int(TEXT[i])]) for i in (t, t + 1))
            logits, after = stack.forward(stack.prepare_inputs(reads), states)
            total = total + stack.losses(logits, targets)[:, 0]
            for state, new in zip(states, after, strict=True):
                state.copy_(new)
        torch.testing.assert_close(losses[:, lane], total / 19)


def test_a_short_text_gives_as_many_lanes_as_fit():
    assert eval_windows(TEXT, 99, 20).shape == (20, 5)
    with pytest.raises(ValueError, match="20 or more"):
        eval_windows(TEXT[:19], 4, 20)


def test_bits_per_character_are_all_nats_over_all_bytes():
    lengths = np.array([1, 3])
    held_out = np.array([[0, 0], [0, 1], [1, 1]], np.uint8)  # foretold: 1 + 3 and 3 + 3 bytes
    losses = torch.tensor([[2.0, 4.0]], dtype=torch.float64)  # nats a symbol, two in a lane
    found = bits_per_byte(losses, held_out, lengths)
    in_all = (2 * 2.0 + 2 * 4.0) / 10 / math.log(2)
    assert found.mean().item() == pytest.approx(in_all)
    assert found[0, 1] == 2 * found[0, 0], "lanes stay as they compare"
    of_bytes = bits_per_byte(losses, held_out, np.array([1, 1]))
    assert of_bytes[0].tolist() == pytest.approx([2 / math.log(2), 4 / math.log(2)])
