"""Evaluation of trained networks on held-out data."""

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from torch import Tensor

from rnn.engines import Engine
from rnn.tasks.corpus import TokenArray
from rnn.tasks.task import SequenceTask
from rnn.training.evaluation import (
    MIN_CONTEXT_LENGTH,
    ContextLosses,
    compute_eval_losses,
    evaluate_sequences,
    select_eval_windows,
    to_bits_per_byte,
)
from rnn.training.loop import TrainLoop
from search.study import StudyHandle
from studies.attributes import OBJECTIVE_ATTRIBUTES

Split = Literal["validation", "test"]

_DIGITS = 5
"""Recorded digits of bits per byte, by window or bin: rounding is a thousandth of their spread."""


@dataclass(frozen=True)
class EvalResult:
    """Evaluation of one network.

    Attributes:
        value: objective value of its trial; None if a result is not finite.
        attributes: fields of :class:`studies.attributes.TrialRecord`.
    """

    value: float | None
    attributes: Mapping[str, Any]


class Evaluator:
    """Evaluates networks by the settings of a study; it reads a test split only if they say so."""

    def __init__(self, handle: StudyHandle) -> None:
        self._handle = handle
        self._config = handle.config
        self._held_out = cache(SequenceTask.held_out)

    def evaluate(self, loop: TrainLoop, on_step: Callable[[], None]) -> list[EvalResult]:
        """Evaluate the networks of a finished train loop, in their order."""
        steps = loop.train_config.steps
        measured: list[dict[str, Any]] = [
            {
                OBJECTIVE_ATTRIBUTES["training"]: min(curve.values()),
                OBJECTIVE_ATTRIBUTES["training-mean"]: mean_training_loss(curve, steps),
            }
            for curve in loop.curves
        ]
        loop.swap_in_averaged_weights()
        stack, data = loop.stack, loop.data  # on_step may remove networks from the loop
        splits: list[Split] = ["validation"]
        if self._config.eval_split == "test":
            splits.append("test")
        for split in splits:
            if isinstance(data, SequenceTask):
                found = self._evaluate_task(stack, data, split, on_step)
            else:
                found = self._evaluate_text(stack, split, on_step)
            for attributes, each in zip(measured, found, strict=True):
                attributes |= each
        results = []
        for attributes in measured:
            value = attributes[OBJECTIVE_ATTRIBUTES[self._config.objective]]
            numbers = (number for number in attributes.values() if isinstance(number, float))
            is_finite = all(map(math.isfinite, numbers))
            results.append(EvalResult(value if is_finite else None, attributes))
        return results

    def _evaluate_task(
        self, stack: Engine, task: SequenceTask, split: Split, on_step: Callable[[], None]
    ) -> list[dict[str, Any]]:
        """Return the attributes of each network on a split of a task other than text."""
        count = self._config.evaluation.windows
        is_test = split == "test"
        held_out = self._held_out(task, split, count, None)
        attributes: list[dict[str, Any]] = []
        for result in evaluate_sequences(stack, task, held_out, count, on_step):
            losses = result.losses
            measured: dict[str, Any] = {
                f"{split}_loss": float(losses.mean()),
                f"{split}_windows": [float(f"{loss:.6g}") for loss in losses.tolist()],
                "test_metrics" if is_test else "metrics": result.metrics,
            }
            if len(losses) > 1:
                measured[f"{split}_stderr"] = float(_stderr(losses))
            if result.slices and not is_test:
                measured["slices"] = result.slices
            attributes.append(measured)
        for length in () if is_test else task.eval_lengths:
            batch = self._held_out(task, split, count, length)
            evaluated = evaluate_sequences(stack, task, batch, count, on_step)
            for measured, result in zip(attributes, evaluated, strict=True):
                loss = float(result.losses.mean())
                measured.setdefault("length_losses", {})[length] = loss
        return attributes

    def _evaluate_text(
        self, stack: Engine, split: Split, on_step: Callable[[], None]
    ) -> list[dict[str, Any]]:
        """Return the attributes of each network on a split of the text."""
        text = self._handle.token_corpus
        assert text is not None
        evaluation, is_validation = self._config.evaluation, split == "validation"
        tokens: TokenArray = getattr(text, split)
        windows = select_eval_windows(tokens, evaluation.windows, evaluation.window_length)
        context = None
        if is_validation and len(windows) >= MIN_CONTEXT_LENGTH:
            context = ContextLosses(stack, windows)
        losses = compute_eval_losses(stack, windows, on_step, context).double()

        def to_bits(losses: Tensor) -> Tensor:
            return to_bits_per_byte(losses, windows, text.tokenizer.token_byte_lengths)

        stats: list[dict[str, Any]] = []
        for k, bits in enumerate(to_bits(losses)):
            stats.append(
                {f"{split}_bits_per_byte": float(bits.mean()), f"{split}_windows": _round(bits)}
            )
            if len(bits) > 1:
                stats[k][f"{split}_stderr"] = float(_stderr(bits))
            if is_validation:
                stats[k][OBJECTIVE_ATTRIBUTES[split]] = float(losses[k].mean())
            if context is not None:
                long, excess = to_bits(context.long), to_bits(context.excess)
                stats[k] |= _context_stats(context.bins, long[k], excess[:, k])
        return stats


def mean_training_loss(curve: Mapping[int, float], steps: int) -> float:
    """Return the mean of the smoothed training loss over the last quarter of the steps.

    The minimum of a curve is at one log point for most networks of a study, so that one passage of
    the text ranks them; the mean takes many. Without a log point in the last quarter, the last one
    alone counts.
    """
    last = [loss for step, loss in curve.items() if 4 * step > 3 * steps]
    return statistics.fmean(last or [curve[max(curve)]])


def _context_stats(bins: list[int], long: Tensor, excess: Tensor) -> dict[str, Any]:
    """Return the attributes of a network's losses with a limited context, in bits per byte.

    Those are (windows,) with the long context; (bins, windows) is the excess with short ones.
    """
    if not (long.isfinite().all() and excess.isfinite().all()):
        return {}
    attributes = {
        "context_bins": bins,
        "context_loss": float(long.mean()),
        "context_excess": _round(excess.mean(1)),
    }
    return attributes | ({"context_stderr": _round(_stderr(excess))} if len(long) > 1 else {})


def _round(values: Tensor) -> list[float]:
    return [round(value, _DIGITS) for value in values.tolist()]


def _stderr(values: Tensor) -> Tensor:
    """Return the standard error of the mean over the last axis."""
    return values.std(-1) / math.sqrt(values.shape[-1])
