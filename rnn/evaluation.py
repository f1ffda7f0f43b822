"""How well a network foretells text that it has not seen."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from rnn.corpus import Bytes, lanes
from rnn.network import Population


def held_out_losses(
    population: Population,
    text: Bytes,
    lane_count: int,
    lane_length: int,
    between_steps: Callable[[], None] = lambda: None,
) -> Tensor:
    """Measure every member on fixed, evenly spaced, non-overlapping lanes of a text.

    Args:
        population: K members.
        text: (length,) a held-out split.
        lane_count: the most lanes; a short text gives as many as fit.
        lane_length: symbols in a lane, the first of which is only read.
        between_steps: called after every step; what it raises ends the measurement.

    Returns:
        (K, lanes) the mean cross-entropy of each lane, in nats a symbol.

    Raises:
        ValueError: if the text is shorter than one lane.
    """
    count = min(lane_count, len(text) // lane_length)
    if count < 1:
        raise ValueError(f"the text has {len(text)} symbols; allowed: {lane_length} or more")
    starts = np.arange(count) * (len(text) - lane_length) // max(count - 1, 1)  # (lanes,)
    symbols = torch.from_numpy(lanes(text, starts, lane_length))  # (lane_length, lanes)
    symbols = symbols.to(population.device).long()
    states = population.initial_states(count)
    total = states[0].new_zeros(len(population.members), count)
    for t in range(lane_length - 1):
        reads = population.symbols(symbols[t])
        logits, after = population.forward(reads, states)  # (K, lanes, V)
        total += population.losses(logits, symbols[t + 1])  # (K, lanes)
        for state, new in zip(states, after, strict=True):
            state.copy_(new)
        between_steps()
    return total / (lane_length - 1)


def bits(nats: float) -> float:
    """Convert nats to bits; for bytes, nats a byte to bits per character."""
    return nats / math.log(2)
