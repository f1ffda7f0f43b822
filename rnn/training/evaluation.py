"""Losses of networks on held-out data, of a text also with a limited context."""

import itertools
import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rnn.engines import Engine
from rnn.network import Batch, reset_states

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
        on_step: callback after every few steps; an exception that it raises ends the evaluation.
        context: losses with a limited context, to be computed meanwhile.

    Returns:
        Mean cross-entropy of each window (K, windows), in nats per token.
    """
    tokens = torch.from_numpy(windows.astype(np.int64)).to(stack.device)
    length, count = tokens.shape
    states = stack.init_state(count)
    total = stack.parameters.values.new_zeros(len(stack.configs), count)
    cuts = () if context is None else (context.begin,)
    for first, stop in _split_steps(stack, length - 1, count, cuts):
        losses = _predict(stack, tokens[first : stop + 1], states)  # (K, T, windows)
        total += losses.sum(1)
        if context is not None:
            context.observe(first, losses)
        on_step()
    return total / (length - 1)


def _split_steps(
    stack: Engine, steps: int, streams: int, cuts: Iterable[int] = (), share: float = 1.0
) -> Iterator[tuple[int, int]]:
    """Yield the first step of each part that an engine reads at once, and the step after it.

    Parts end at the cuts, and are short enough for their results to fit into memory. ``share`` is
    that of the outputs which are computed.
    """
    longest = 1
    if stack.reads_windows:
        # The outputs, or four results of the size of a layer's state.
        of_states = 4 * stack.configs[0].architecture.state_size
        numbers = max(math.ceil(share * stack.spec.outputs), of_states)
        longest = max(1, _MAX_NUMBERS // (len(stack.configs) * streams * numbers))
    ends = {steps, *range(longest, steps, longest), *(cut for cut in cuts if 0 < cut < steps)}
    yield from itertools.pairwise(sorted({0, *ends}))


_MAX_NUMBERS = 2**22
"""Numbers that networks compute at once for their last result: 16 MiB."""


def _predict(stack: Engine, tokens: Tensor, states: Sequence[Tensor]) -> Tensor:
    """Read all but the last of tokens (T + 1, B), and advance the states; return the losses."""
    logits, next_states = stack.forward(tokens[:-1], states)  # (K, T, B, V)
    losses = stack.losses(logits.flatten(1, 2), tokens[1:].flatten())  # (K, T·B)
    for state, next_state in zip(states, next_states, strict=True):
        state.copy_(next_state)
    return losses.view(len(losses), len(tokens) - 1, -1)


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
        on_step: callback after every few steps; an exception that it raises ends the evaluation.
        is_consecutive: whether each sequence continues the one before, with its states; they are
            read one at a time.

    Returns:
        A result for each network.
    """
    names = [*metrics]
    scored = np.flatnonzero(batch.weights.any(1))  # steps that have targets
    weights = torch.from_numpy(batch.weights[scored]).double()  # (scored, sequences)
    share = float((batch.weights > 0).mean())
    # Loss and metrics of each target.
    values = torch.zeros(len(stack.configs), 1 + len(names), *weights.shape, dtype=torch.double)
    states: list[Tensor] = []
    for first in range(0, weights.shape[1], streams):
        chosen = slice(first, first + streams)
        inputs = torch.from_numpy(batch.inputs[:, chosen]).to(stack.device)
        targets = torch.from_numpy(batch.targets[:, chosen]).to(stack.device)
        counted = torch.from_numpy(batch.weights[:, chosen] > 0)  # (T, streams)
        resets = _find_resets(batch, chosen, is_consecutive)
        initial = stack.init_state(inputs.shape[1])
        if not (states and is_consecutive):
            states = [state.clone() for state in initial]
        for begin, stop in _split_steps(stack, len(inputs), inputs.shape[1], resets, share):
            if begin in resets:
                states = reset_states(states, initial, resets[begin].to(stack.device)[None])
            places = counted[begin:stop].flatten().nonzero()[:, 0].to(stack.device)  # (N,)
            outputs, next_states = stack.forward(inputs[begin:stop], states, places)  # (K, N, V)
            for state, next_state in zip(states, next_states, strict=True):
                state.copy_(next_state)
            if len(places):
                wanted = targets[begin:stop].flatten(0, 1)[places]  # (N, …)
                measured = [stack.losses(outputs, wanted)]  # (K, N)
                measured += [measure(outputs, wanted) for measure in metrics.values()]
                rows = slice(*np.searchsorted(scored, (begin, stop)))
                has_target = counted[scored[rows]]  # (steps with targets, streams)
                for place, numbers in enumerate(measured):
                    values[:, place, rows, chosen][:, has_target] = numbers.cpu().double()
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
        of_network = dict(zip(names, means[k, 1:].tolist(), strict=True))
        results.append(HeldOutResult(losses[k], of_network, slices))
    return results


def _find_resets(batch: Batch, chosen: slice, is_consecutive: bool) -> dict[int, Tensor]:
    """Return which of some streams (B,) are reset before which steps.

    The first step is none of them, unless the streams continue others.
    """
    if batch.resets is None:
        return {}
    resets = torch.from_numpy(batch.resets[:, chosen])
    steps = np.flatnonzero(batch.resets[:, chosen].any(1)).tolist()
    return {t: resets[t] for t in steps if t or is_consecutive}


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
        begin: step at which the further streams begin.
    """

    bins: list[int]
    begin: int

    def __init__(self, stack: Engine, windows: npt.NDArray[np.integer]) -> None:
        self._stack = stack
        self._tokens = torch.from_numpy(windows.astype(np.int64)).to(stack.device)
        length, count = windows.shape
        longest = (length - 1) // 2
        self.begin = length - 1 - longest
        self.bins = list_context_bins(longest)
        shape = len(self.bins), len(stack.configs), count
        # Sums stay on the device: a copy in every step would wait for its kernels.
        self._long = torch.zeros(shape, dtype=torch.double, device=stack.device)
        self._excess = torch.zeros_like(self._long)
        self._states: list[Tensor] = []

    def observe(self, first: int, losses: Tensor) -> None:
        """Advance the streams that began in the middle, by steps of the whole windows.

        Args:
            first: first of the steps; they do not go beyond ``begin`` if they are before it.
            losses: losses of the whole windows (K, T, windows).
        """
        if first < self.begin:
            return
        if first == self.begin:
            self._states = self._stack.init_state(self._tokens.shape[1])
        # A copy, because the next call of the stack may reuse the memory of the losses.
        long = losses.to(torch.double, copy=True)
        tokens = self._tokens[first : first + long.shape[1] + 1]
        short = _predict(self._stack, tokens, self._states).double()
        for step in range(long.shape[1]):
            place = bisect_left(self.bins, first + step - self.begin + 1)
            self._long[place] += long[:, step]
            self._excess[place] += short[:, step] - long[:, step]

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
