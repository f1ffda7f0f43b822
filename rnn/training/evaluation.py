"""Losses of networks on held-out data, of a text also with a limited context."""

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rnn.engines import Engine
from rnn.network import Batch

MAX_BINS = 12

MIN_CONTEXT_LENGTH = 3
"""Tokens of the shortest window with a second half to predict."""


def compute_eval_losses(
    stack: Engine,
    windows: npt.NDArray[np.integer],
    on_step: Callable[[], None] = lambda: None,
    context: "ContextLosses | None" = None,
) -> Tensor:
    """Compute the loss of every network on each window.

    Args:
        stack: the K networks.
        windows: tokens (window_length, windows), of :func:`rnn.tasks.text.select_eval_windows`.
        on_step: callback after every step; an exception that it raises ends the evaluation.
        context: losses with a limited context, to be computed meanwhile.

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
        if context is not None:
            context.observe(t, losses)
        on_step()
    return total / (length - 1)


# ------------------------------------------------------------------ sequences


class HeldOutResult(NamedTuple):
    """What a network reached on held-out sequences.

    Attributes:
        losses: loss of each sequence that has a target (sequences,), float64. All are divided by
            the mean weight of a sequence's targets: their mean is the loss of all targets.
        metrics: mean of each metric over all targets.
        slices: loss and metrics on the targets of each value of each slice, by name and value.
    """

    losses: Tensor
    metrics: dict[str, float]
    slices: dict[str, dict[int, dict[str, float]]]


def evaluate_sequences(
    stack: Engine,
    batch: Batch,
    metrics: Mapping[str, Callable[[Tensor, Tensor], Tensor]],
    streams: int,
    on_step: Callable[[], None] = lambda: None,
    is_consecutive: bool = False,
) -> list[HeldOutResult]:
    """Evaluate every network on held-out sequences of a task.

    Args:
        stack: the K networks.
        batch: the sequences.
        metrics: by name, what returns a metric (K, N) of outputs (K, N, outputs) and N targets.
        streams: number of sequences to read at once.
        on_step: callback after every step; an exception that it raises ends the evaluation.
        is_consecutive: whether each sequence continues the one before, with its states; they are
            read one at a time.

    Returns:
        A result for each network.
    """
    names = [*metrics]
    scored = np.flatnonzero(batch.weights.any(1)).tolist()  # steps that have targets
    rows = {t: row for row, t in enumerate(scored)}
    weights = torch.from_numpy(batch.weights[scored]).double()  # (scored, sequences)
    # Loss and metrics of each target.
    values = torch.zeros(len(stack.configs), 1 + len(names), *weights.shape, dtype=torch.double)
    states: list[Tensor] = []
    for first in range(0, weights.shape[1], streams):
        chosen = slice(first, first + streams)
        inputs = torch.from_numpy(batch.inputs[:, chosen])
        targets = torch.from_numpy(batch.targets[:, chosen])
        resets = None if batch.resets is None else torch.from_numpy(batch.resets[:, chosen])
        initial = stack.init_state(inputs.shape[1])
        if not (states and is_consecutive):
            states = [state.clone() for state in initial]
        for t, x in enumerate(inputs):
            if (t or is_consecutive) and resets is not None and resets[t].any():
                reset = resets[t].to(stack.device)
                for state, start in zip(states, initial, strict=True):
                    shape = (1, -1, *[1] * (state.dim() - 2))
                    state.copy_(torch.where(reset.view(shape), start, state))
            outputs, next_states = stack.forward(x.to(stack.device), states)  # (K, streams, V)
            for state, next_state in zip(states, next_states, strict=True):
                state.copy_(next_state)
            if (row := rows.get(t)) is not None:
                target = targets[t].to(stack.device)
                values[:, 0, row, chosen] = stack.losses(outputs, target).cpu().double()
                for place, measure in enumerate(metrics.values(), 1):
                    values[:, place, row, chosen] = measure(outputs, target).cpu().double()
            on_step()
    values = torch.where(weights > 0, values * weights, 0.0)
    counts = weights.sum(0)  # (sequences,)
    counted = counts > 0
    losses = values[:, 0].sum(1)[:, counted] / counts[counted].mean()
    means = values.sum((2, 3)) / counts.sum()
    results = []
    for k in range(len(stack.configs)):
        slices: dict[str, dict[int, dict[str, float]]] = {}
        for slice_name, labels in batch.slices.items():
            for value in np.unique(labels[batch.weights > 0]):
                part = torch.from_numpy(labels[scored] == value)
                shares = values[k][:, part].sum(1) / weights[part].sum()
                of_value = dict(zip(["loss", *names], shares.tolist(), strict=True))
                slices.setdefault(slice_name, {})[int(value)] = of_value
        measured = dict(zip(names, means[k, 1:].tolist(), strict=True))
        results.append(HeldOutResult(losses[k], measured, slices))
    return results


# ------------------------------------------------------------------ curves


class CurveData(NamedTuple):
    """Held-out data on which networks are measured again and again while they train.

    Attributes:
        batch: sequences (T, B), with targets.
        metrics: metrics, as of :func:`evaluate_sequences`.
    """

    batch: Batch
    metrics: Mapping[str, Callable[[Tensor, Tensor], Tensor]]


def select_curve_data(
    batch: Batch,
    metrics: Mapping[str, Callable[[Tensor, Tensor], Tensor]],
    inputs: int,
    begins_anywhere: bool,
) -> CurveData:
    """Select a few sequences, at least 8, spread evenly over those that have targets.

    Args:
        batch: held-out sequences.
        metrics: metrics, as of :func:`evaluate_sequences`.
        inputs: number of inputs of all that are selected.
        begins_anywhere: whether sequences are pieces of longer ones. Then the targets of their
            first quarter do not count: states that begin there are not warm yet.
    """
    weights = batch.weights.copy()
    if begins_anywhere:
        weights[: len(weights) // 4] = 0
    known = np.flatnonzero(weights.any(0))
    count = min(max(_MIN_CURVE_STREAMS, inputs // len(weights)), len(known))
    chosen = known[np.linspace(0, len(known) - 1, count).round().astype(int)]
    resets = None if batch.resets is None else batch.resets[:, chosen]
    parts = batch.inputs[:, chosen], batch.targets[:, chosen], weights[:, chosen], resets
    return CurveData(Batch(*parts), metrics)


_MIN_CURVE_STREAMS = 8

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

    def __init__(self, stack: Engine, windows: npt.NDArray[np.integer]) -> None:
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

    def observe(self, t: int, losses: Tensor) -> None:
        """Advance the streams that began in the middle, after a step of the whole windows."""
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


def list_context_bins(longest: int) -> list[int]:
    """Return the largest number of tokens of context in each bin: powers of two, then the longest.

    There are at most :data:`MAX_BINS`.
    """
    powers = [2**i for i in range(MAX_BINS - 1) if 2**i < longest]
    return [*powers, longest]


def standard_error(values: Tensor) -> Tensor:
    """Return the standard error of the mean over the last axis."""
    return values.std(-1) / math.sqrt(values.shape[-1])
