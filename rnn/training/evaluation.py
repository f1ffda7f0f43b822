"""How well a network foretells text that it has not seen."""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rnn.data.corpus import TokenArray, gather_windows
from rnn.models.factory import TrainableNetwork


def eval_windows(text: TokenArray, window_count: int, window_length: int) -> TokenArray:
    """Return the fixed, evenly spaced, non-overlapping lanes of a text, the same for every network.

    Args:
        text: (length,) a held-out split.
        window_count: the most lanes; a short text gives as many as fit.
        window_length: symbols in a lane, the first of which is only read.

    Returns:
        (window_length, lanes) symbols.

    Raises:
        ValueError: if the text is shorter than one lane.
    """
    count = min(window_count, len(text) // window_length)
    if count < 1:
        raise ValueError(f"the text has {len(text)} symbols; allowed: {window_length} or more")
    starts = np.arange(count) * (len(text) - window_length) // max(count - 1, 1)  # (lanes,)
    return gather_windows(text, starts, window_length)


def eval_losses(
    stack: TrainableNetwork, held_out: TokenArray, on_step: Callable[[], None] = lambda: None
) -> Tensor:
    """Measure every member on lanes of held-out text.

    Args:
        stack: K members.
        held_out: (window_length, lanes), of :func:`eval_windows`.
        on_step: called after every step; what it raises ends the measurement.

    Returns:
        (K, lanes) the mean cross-entropy of each lane, in nats a symbol.
    """
    tokens = torch.from_numpy(held_out.astype(np.int64)).to(stack.device)
    length, count = tokens.shape
    states = stack.init_state(count)
    total = states[0].new_zeros(len(stack.configs), count)
    for t in range(length - 1):
        reads = stack.prepare_inputs(tokens[t])
        logits, after = stack.forward(reads, states)  # (K, lanes, V)
        total += stack.losses(logits, tokens[t + 1])  # (K, lanes)
        for state, new in zip(states, after, strict=True):
            state.copy_(new)
        on_step()
    return total / (length - 1)


def bits_per_byte(
    losses: Tensor, held_out: TokenArray, token_byte_lengths: npt.NDArray[np.int64]
) -> Tensor:
    """Convert the losses of lanes to bits per character, which any vocabulary's are comparable in.

    A character is a byte. All lanes are reckoned by the bytes that they have on average: the mean
    of what is returned is then all nats over all bytes, and lanes stay as they compare.

    Args:
        losses: (K, lanes), of :func:`eval_losses`.
        held_out: (window_length, lanes), that they were measured on.
        token_byte_lengths: (V,) bytes of each symbol.

    Returns:
        (K, lanes)
    """
    bytes_per_token = float(token_byte_lengths[held_out[1:]].mean())
    return losses / (math.log(2) * bytes_per_token)
