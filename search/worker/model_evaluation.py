"""Evaluation of trained networks on held-out text."""

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from rnn.data.tokenizer import TokenCorpus
from rnn.models.factory import TrainableNetwork
from rnn.training.evaluation import compute_eval_losses, select_eval_windows, to_bits_per_byte
from rnn.training.loop import TrainLoop
from studies.attributes import OBJECTIVE_ATTRIBUTES
from studies.config import StudyConfig

_DIGITS = 5
"""Recorded digits of a window's bits per byte: rounding is a thousandth of the windows' spread."""


@dataclass(frozen=True)
class EvalResult:
    """Evaluation of one network.

    Attributes:
        value: objective value of its trial, nats per token; None if a result is not finite.
        attributes: fields of :class:`studies.attributes.TrialRecord`.
    """

    value: float | None
    attributes: Mapping[str, Any]


class Evaluator:
    """Evaluates networks by the settings of a study.

    Args:
        config: config of the study.
        text: its splits; the test split is read only if the config asks for it.
    """

    def __init__(self, config: StudyConfig, text: TokenCorpus) -> None:
        self._config = config
        self._text = text

    def evaluate(self, loop: TrainLoop, on_step: Callable[[], None]) -> list[EvalResult]:
        """Evaluate the networks of a finished train loop, in their order."""
        curves = list(loop.curves)
        loop.swap_in_averaged_weights()
        stack = loop.stack  # on_step may remove networks from the loop
        splits = {"validation": self._evaluate_split(stack, "validation", on_step)}
        if self._config.eval_split == "test":
            splits["test"] = self._evaluate_split(stack, "test", on_step)
        results = []
        for k, curve in enumerate(curves):
            losses = {
                "training": min(curve.values()),
                "training-mean": mean_training_loss(curve, loop.train_config.steps),
                "validation": float(splits["validation"][0][k].mean()),
            }
            attributes: dict[str, Any] = {
                OBJECTIVE_ATTRIBUTES[objective]: loss for objective, loss in losses.items()
            }
            for split, (_, bits) in splits.items():
                attributes |= _window_stats(split, bits[k])
            value = losses[self._config.objective]
            numbers = (number for number in attributes.values() if isinstance(number, float))
            is_finite = all(map(math.isfinite, numbers))
            results.append(EvalResult(value if is_finite else None, attributes))
        return results

    def _evaluate_split(
        self, stack: TrainableNetwork, split: str, on_step: Callable[[], None]
    ) -> tuple[Tensor, Tensor]:
        """Return each window's loss (K, windows) in nats per token and in bits per byte."""
        evaluation = self._config.evaluation
        tokens: Any = getattr(self._text, split)
        windows = select_eval_windows(tokens, evaluation.windows, evaluation.window_length)
        losses = compute_eval_losses(stack, windows, on_step).double()
        return losses, to_bits_per_byte(losses, windows, self._text.tokenizer.token_byte_lengths)


def mean_training_loss(curve: Mapping[int, float], steps: int) -> float:
    """Return the mean of the smoothed training loss over the last quarter of the steps.

    Networks of a study that are at the same step read the same text, and the minimum of a curve is
    at one log point for most of them, so that one passage ranks them. The mean takes the passages
    of a quarter of the training.

    Args:
        curve: smoothed loss at each log point, by step; at least one.
        steps: number of steps of the training; without a log point in the last quarter, the last
            log point alone counts.
    """
    last = [loss for step, loss in curve.items() if 4 * step > 3 * steps]
    return statistics.fmean(last or [curve[max(curve)]])


def _window_stats(split: str, bits: Tensor) -> dict[str, Any]:
    """Return the attributes of a split, given its windows' bits per byte (windows,)."""
    count = len(bits)
    attributes: dict[str, Any] = {
        f"{split}_bits_per_byte": float(bits.mean()),
        f"{split}_windows": [round(window, _DIGITS) for window in bits.tolist()],
    }
    if count > 1:
        attributes[f"{split}_stderr"] = float(bits.std()) / math.sqrt(count)
    return attributes
