"""How well a network foretells text that it has not seen."""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rnn.corpus import SymbolArray, lanes
from rnn.networks import Network


def held_out_lanes(text: SymbolArray, lane_count: int, lane_length: int) -> SymbolArray:
    """Return the fixed, evenly spaced, non-overlapping lanes of a text, the same for every network.

    Args:
        text: (length,) a held-out split.
        lane_count: the most lanes; a short text gives as many as fit.
        lane_length: symbols in a lane, the first of which is only read.

    Returns:
        (lane_length, lanes) symbols.

    Raises:
        ValueError: if the text is shorter than one lane.
    """
    count = min(lane_count, len(text) // lane_length)
    if count < 1:
        raise ValueError(f"the text has {len(text)} symbols; allowed: {lane_length} or more")
    starts = np.arange(count) * (len(text) - lane_length) // max(count - 1, 1)  # (lanes,)
    return lanes(text, starts, lane_length)


def held_out_losses(
    population: Network, held_out: SymbolArray, between_steps: Callable[[], None] = lambda: None
) -> Tensor:
    """Measure every member on lanes of held-out text.

    Args:
        population: K members.
        held_out: (lane_length, lanes), of :func:`held_out_lanes`.
        between_steps: called after every step; what it raises ends the measurement.

    Returns:
        (K, lanes) the mean cross-entropy of each lane, in nats a symbol.
    """
    symbols = torch.from_numpy(held_out.astype(np.int64)).to(population.device)
    length, count = symbols.shape
    states = population.initial_states(count)
    total = states[0].new_zeros(len(population.members), count)
    for t in range(length - 1):
        reads = population.symbols(symbols[t])
        logits, after = population.forward(reads, states)  # (K, lanes, V)
        total += population.losses(logits, symbols[t + 1])  # (K, lanes)
        for state, new in zip(states, after, strict=True):
            state.copy_(new)
        between_steps()
    return total / (length - 1)


def bits_per_character(
    losses: Tensor, held_out: SymbolArray, symbol_lengths: npt.NDArray[np.int64]
) -> Tensor:
    """Convert the losses of lanes to bits per character, which any vocabulary's are comparable in.

    A character is a byte. All lanes are reckoned by the bytes that they have on average: the mean
    of what is returned is then all nats over all bytes, and lanes stay as they compare.

    Args:
        losses: (K, lanes), of :func:`held_out_losses`.
        held_out: (lane_length, lanes), that they were measured on.
        symbol_lengths: (V,) bytes of each symbol.

    Returns:
        (K, lanes)
    """
    bytes_per_symbol = float(symbol_lengths[held_out[1:]].mean())
    return losses / (math.log(2) * bytes_per_symbol)
