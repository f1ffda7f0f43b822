"""Losses of networks on held-out data, and what they remember of a text.

Their loss with a limited context and their recall of single tokens are observed meanwhile.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rnn.engines import Engine
from rnn.tasks.corpus import TokenArray, gather_windows
from rnn.tasks.recall import ANSWERS, find_recall_positions
from rnn.tasks.task import Batch, SequenceTask

MAX_BINS = 12

MAX_PREDICTIONS = 300
"""Largest number of predicted numbers that are kept of each network."""

MAX_SEQUENCE_STEPS = 200
"""Largest number of targets of one sequence among them."""

MAX_OUTPUTS = 4
"""Largest number of outputs of which predictions are kept, the first ones."""

MAX_CLASSES = 20
"""Largest number of classes among which confusions are counted, the most frequent ones."""

_DIGITS = 4
"""Significant digits of the spread of the targets, to which kept predictions are rounded."""

MIN_CONTEXT_LENGTH = 3
"""Tokens of the shortest window with a second half to predict."""


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
    observers: Sequence["ContextLosses | RecallAccuracy"] = (),
) -> Tensor:
    """Compute the loss of every network on each window.

    Args:
        stack: the K networks.
        windows: tokens (window_length, windows), of :func:`select_eval_windows`.
        on_step: callback after every step; an exception that it raises ends the evaluation.
        observers: what else is computed after every step t, from the logits (K, windows, V) and the
            losses (K, windows) of the token after token t. :class:`ContextLosses` comes last,
            because it calls ``stack.forward``, which may overwrite the logits.

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


# ------------------------------------------------------------------ other tasks than text


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
    task: SequenceTask,
    batch: Batch,
    streams: int,
    on_step: Callable[[], None] = lambda: None,
    observer: "Predictions | Confusion | None" = None,
) -> list[HeldOutResult]:
    """Evaluate every network on held-out sequences of a task.

    Args:
        stack: the K networks.
        task: the task.
        batch: the sequences, of :meth:`rnn.tasks.task.SequenceTask.held_out`.
        streams: number of sequences to read at once.
        on_step: callback after every step; an exception that it raises ends the evaluation.
        observer: what else is computed from the outputs of every step that has targets.

    Returns:
        A result for each network.
    """
    names = [*task.metrics]
    scored = np.flatnonzero(batch.weights.any(1)).tolist()  # steps that have targets
    rows = {t: row for row, t in enumerate(scored)}
    weights = torch.from_numpy(batch.weights[scored]).double()  # (scored, sequences)
    # Loss and metrics of each target.
    values = torch.zeros(len(stack.configs), 1 + len(names), *weights.shape, dtype=torch.double)
    for first in range(0, weights.shape[1], streams):
        chosen = slice(first, first + streams)
        inputs = torch.from_numpy(batch.inputs[:, chosen])
        targets = torch.from_numpy(batch.targets[:, chosen])
        resets = None if batch.resets is None else torch.from_numpy(batch.resets[:, chosen])
        initial = stack.init_state(inputs.shape[1])
        states = [state.clone() for state in initial]
        for t, x in enumerate(inputs):
            if t and resets is not None and resets[t].any():
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
                for place, name in enumerate(names, 1):
                    measured = task.measure(name, outputs, target).cpu().double()
                    values[:, place, row, chosen] = measured
                if observer is not None:
                    observer.observe(t, first, outputs)
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
        metrics = dict(zip(names, means[k, 1:].tolist(), strict=True))
        results.append(HeldOutResult(losses[k], metrics, slices))
    return results


class Predictions:
    """What networks predict for the first targets of held-out sequences, which are numbers.

    Args:
        count: K, the number of networks.
        task: the task.
        batch: the sequences.
    """

    def __init__(self, count: int, task: SequenceTask, batch: Batch) -> None:
        self._task = task
        self._width = min(MAX_OUTPUTS, task.spec.outputs)
        has_target = batch.weights > 0
        has_target &= np.cumsum(has_target, axis=0) <= MAX_SEQUENCE_STEPS
        sequences, steps = np.nonzero(has_target.T)
        places = slice(MAX_PREDICTIONS // self._width)
        self._sequences, self._steps = sequences[places], steps[places]
        targets = batch.targets[self._steps, self._sequences].astype(np.float64)
        self._targets = task.to_units(targets)[:, : self._width]  # (targets, outputs)
        self._outputs = np.zeros((count, *self._targets.shape))

    def observe(self, t: int, first: int, outputs: Tensor) -> None:
        """Keep the outputs (K, streams, outputs) of step t, of sequences from ``first`` on."""
        streams = self._sequences - first
        is_here = (self._steps == t) & (streams >= 0) & (streams < outputs.shape[1])
        if is_here.any():
            found = outputs[:, streams[is_here].tolist()].double().cpu().numpy()
            self._outputs[:, is_here] = self._task.to_units(found)[..., : self._width]

    def list_results(self) -> list[dict[str, Any]]:
        """Return what is recorded of each network; nothing if a number is not finite."""
        stated = [str(name) for name in self._task.output_names]
        names = stated or [f"output {i + 1}" for i in range(self._width)]
        decimals = _count_decimals(self._targets)

        def to_columns(values: npt.NDArray[np.float64]) -> list[list[float]]:
            columns = zip(values.T.tolist(), decimals, strict=True)
            return [[round(each, digits) for each in column] for column, digits in columns]

        common = {
            "names": names[: self._width],
            "sequences": self._sequences.tolist(),
            "steps": self._steps.tolist(),
            "targets": to_columns(self._targets),
        }
        is_finite: list[bool] = np.atleast_1d(np.isfinite(self._outputs).all((1, 2))).tolist()
        return [
            {"predictions": common | {"outputs": to_columns(outputs)}} if finite else {}
            for outputs, finite in zip(self._outputs, is_finite, strict=True)
        ]


class Confusion:
    """How often networks predict each class for the held-out targets of each class.

    The predicted class is that of the largest output, as in the accuracy.

    Args:
        count: K, the number of networks.
        task: the task.
        batch: the sequences.
    """

    def __init__(self, count: int, task: SequenceTask, batch: Batch) -> None:
        self._targets, self._is_scored = batch.targets, batch.weights > 0
        size = task.spec.outputs
        frequencies = np.bincount(batch.targets[self._is_scored], minlength=size)
        most = np.argsort(-frequencies, kind="stable")[:MAX_CLASSES]
        self._classes = np.sort(most)
        self._places = np.full(size, len(most))  # of any other class
        self._places[self._classes] = np.arange(len(most))
        self._counts = np.zeros((count, len(most) + 1, len(most) + 1), np.int64)

    def observe(self, t: int, first: int, outputs: Tensor) -> None:
        """Count the predictions of step t, from the outputs (K, streams, C)."""
        chosen = slice(first, first + outputs.shape[1])
        is_scored = self._is_scored[t, chosen]
        predicted = self._places[outputs.argmax(-1).cpu().numpy()[:, is_scored]]  # (K, targets)
        targets = self._places[self._targets[t, chosen][is_scored]]
        networks = np.arange(len(predicted))[:, None]
        np.add.at(self._counts, (networks, targets, predicted), 1)

    def list_results(self) -> list[dict[str, Any]]:
        """Return what is recorded of each network."""
        count = len(self._classes)
        width = count + (len(self._places) > count)
        classes = self._classes.tolist()
        return [
            {"confusion": {"classes": classes, "counts": counts[:count, :width].tolist()}}
            for counts in self._counts
        ]


def _count_decimals(targets: npt.NDArray[np.float64]) -> list[int]:
    """Return the decimals to keep of each output; negative ones round to tens and more.

    Args:
        targets: (targets, outputs).
    """
    spread = targets.max(axis=0) - targets.min(axis=0)
    spread = np.where(spread > 0, spread, np.maximum(np.abs(targets).max(axis=0), 1e-9))
    decimals: list[int] = (_DIGITS - 1 - np.floor(np.log10(spread))).astype(int).tolist()
    return decimals


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


class RecallAccuracy:
    """Share of the recall positions at which the most probable answer is the right one.

    Chance is one in eight: the most probable of the answers counts, whatever the probability of
    letters.

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
        """Count the right answers of a step."""
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
