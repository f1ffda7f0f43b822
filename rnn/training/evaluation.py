"""Losses of networks on held-out text."""

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rnn.data.corpus import TokenArray, gather_windows
from rnn.models.factory import TrainableNetwork


class EvalObserver(Protocol):
    """What else is computed while networks are evaluated; see :mod:`rnn.training.context`."""

    def observe(self, t: int, logits: Tensor, losses: Tensor) -> None:
        """Follow a step.

        Args:
            t: number of the step; it has read token t.
            logits: of each stream's next token (K, windows, V).
            losses: of each stream's next token (K, windows), in nats.
        """


def select_eval_windows(text: TokenArray, window_count: int, window_length: int) -> TokenArray:
    """Return evenly spaced, non-overlapping windows of a text, the same for every network.

    Args:
        text: held-out split (length,).
        window_count: maximum number of windows; a short text gives as many as fit.
        window_length: tokens of a window; the first is read but not predicted.

    Returns:
        Tokens (window_length, windows).

    Raises:
        ValueError: if the text is shorter than one window.
    """
    count = min(window_count, len(text) // window_length)
    if count < 1:
        raise ValueError(f"text has {len(text)} tokens: expected {window_length} or more")
    starts = np.arange(count) * (len(text) - window_length) // max(count - 1, 1)  # (windows,)
    return gather_windows(text, starts, window_length)


def compute_eval_losses(
    stack: TrainableNetwork,
    windows: TokenArray,
    on_step: Callable[[], None] = lambda: None,
    observers: Sequence[EvalObserver] = (),
) -> Tensor:
    """Compute the loss of every network on each window.

    Args:
        stack: the K networks.
        windows: tokens (window_length, windows), of :func:`select_eval_windows`.
        on_step: callback after every step; an exception that it raises ends the evaluation.
        observers: called after every step, in their order. One that calls ``stack.forward`` comes
            last, because it may overwrite the logits.

    Returns:
        Mean cross-entropy of each window (K, windows), in nats per token.
    """
    tokens = torch.from_numpy(windows.astype(np.int64)).to(stack.device)
    length, count = tokens.shape
    states = stack.init_state(count)
    total = stack.parameters.values.new_zeros(len(stack.configs), count)
    for t in range(length - 1):
        logits, next_states = stack.forward(tokens[t], states)  # (K, windows, V)
        losses = stack.losses(logits, tokens[t + 1])  # (K, windows)
        total += losses
        for state, next_state in zip(states, next_states, strict=True):
            state.copy_(next_state)
        for observer in observers:
            observer.observe(t, logits, losses)
        on_step()
    return total / (length - 1)


def to_bits_per_byte(
    losses: Tensor, windows: TokenArray, token_byte_lengths: npt.NDArray[np.int64]
) -> Tensor:
    """Convert losses to bits per byte, which are comparable between tokenizers.

    All windows are divided by the mean number of bytes per token over all of them: the mean of the
    result is then all nats over all bytes, and windows keep their proportions.

    Args:
        losses: (K, windows), of :func:`compute_eval_losses`.
        windows: tokens (window_length, windows) of those losses.
        token_byte_lengths: number of bytes of each token of the vocabulary (V,).

    Returns:
        (K, windows)
    """
    bytes_per_token = float(token_byte_lengths[windows[1:]].mean())
    return losses / (math.log(2) * bytes_per_token)
