"""Losses of networks on held-out text, and what they remember of it.

Their loss with a limited context and their recall of single tokens are observed meanwhile.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rnn.data.corpus import TokenArray, gather_windows
from rnn.data.recall import ANSWERS, find_recall_positions
from rnn.engines import Engine

MAX_BINS = 12

MIN_CONTEXT_LENGTH = 3
"""Tokens of the shortest window with a second half to predict."""


class EvalObserver(Protocol):
    """What else is computed while networks are evaluated."""

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
    stack: Engine,
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


# ------------------------------------------------------------------ memory of networks


class ContextLosses:
    """Losses of the same tokens with a short and with a long context.

    In the middle of each evaluation window further streams begin, from the state at a sequence's
    start. Both streams predict the second half of the window: one has read c tokens of it, the
    other the first half as well. The difference of their losses at one target is what the missing
    context costs the network; that some targets are harder than others cancels, which the loss by
    position within a window would not do. It is the measurement of Khandelwal et al., *Sharp
    Nearby, Fuzzy Far Away: How Neural Language Models Use Context*, 2018, section 3, for each c.

    Args:
        stack: the K networks.
        windows: tokens (window_length, windows), at least :data:`MIN_CONTEXT_LENGTH` in each.

    Attributes:
        bins: largest c of each bin: 1, 2, 4, 8, …, and half of the window; the first bin is c = 1,
            the next one c = 2, then 3 and 4.
    """

    bins: list[int]

    def __init__(self, stack: Engine, windows: TokenArray) -> None:
        self._stack = stack
        self._tokens = torch.from_numpy(windows.astype(np.int64)).to(stack.device)
        length, count = windows.shape
        longest = (length - 1) // 2
        self._begin = length - 1 - longest
        self.bins = list_context_bins(longest)
        shape = len(self.bins), len(stack.configs), count
        # Sums stay on the device: a copy in every step would wait for its kernels.
        self._long = torch.zeros(shape, dtype=torch.double, device=stack.device)
        self._excess = torch.zeros_like(self._long)
        self._states: list[Tensor] = []

    def observe(self, t: int, logits: Tensor, losses: Tensor) -> None:
        """Advance the streams that began in the middle, after a step of the whole windows.

        See :class:`EvalObserver`.
        """
        if t < self._begin:
            return
        if t == self._begin:
            self._states = self._stack.init_state(self._tokens.shape[1])
        place = bisect_left(self.bins, t - self._begin + 1)
        # A copy, because the next call of forward may reuse the memory of the losses.
        long = losses.to(torch.double, copy=True)
        logits, next_states = self._stack.forward(self._tokens[t], self._states)
        short = self._stack.losses(logits, self._tokens[t + 1]).double()
        for state, next_state in zip(self._states, next_states, strict=True):
            state.copy_(next_state)
        self._long[place] += long
        self._excess[place] += short - long

    @property
    def long(self) -> Tensor:
        """Mean loss of the second half with the long context (K, windows), in nats per token."""
        return self._long.cpu().sum(0) / self.bins[-1]

    @property
    def excess(self) -> Tensor:
        """Mean loss with the short context minus that with the long one (bins, K, windows)."""
        widths = torch.tensor(np.diff([0, *self.bins]))
        return self._excess.cpu() / widths[:, None, None]


class RecallAccuracy:
    """Share of the recall positions at which the most probable answer is the right one.

    Chance is :data:`rnn.data.recall.CHANCE`: the most probable of the answers counts, whatever the
    probability of letters.

    Args:
        stack: the K networks.
        windows: bytes (window_length, windows) of the corpus ``recall:D``.
        distance: D.

    Attributes:
        count: number of recall positions in all windows.
    """

    def __init__(self, stack: Engine, windows: TokenArray, distance: int) -> None:
        device = stack.device
        recalled = find_recall_positions(windows, distance)
        self._is_recall = torch.from_numpy(recalled).to(device)
        self._targets = torch.from_numpy(windows.astype(np.int64)).to(device)
        self._answers = torch.from_numpy(ANSWERS.astype(np.int64)).to(device)  # (answers,)
        self._correct = torch.zeros(len(stack.configs), dtype=torch.long, device=device)
        self.count = int(recalled[1:].sum())

    def observe(self, t: int, logits: Tensor, losses: Tensor) -> None:
        """Count the right answers of a step; see :class:`EvalObserver`."""
        predicted = self._answers[logits[..., self._answers].argmax(-1)]  # (K, windows)
        correct = (predicted == self._targets[t + 1]) & self._is_recall[t + 1]
        self._correct += correct.sum(1)

    @property
    def accuracy(self) -> list[float]:
        """The accuracy of each network, if there is a recall position."""
        accuracy: list[float] = (self._correct / self.count).tolist()
        return accuracy


def list_context_bins(longest: int) -> list[int]:
    """Return the largest number of tokens of context in each bin: powers of two, then the longest.

    There are at most :data:`MAX_BINS`.
    """
    powers = [2**i for i in range(MAX_BINS - 1) if 2**i < longest]
    return [*powers, longest]
