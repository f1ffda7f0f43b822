"""Evaluation of trained networks on held-out data."""

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from rnn.tasks.task import Task
from rnn.training.loop import TrainLoop
from studies.attributes import OBJECTIVE_ATTRIBUTES
from studies.config import StudyConfig


@dataclass(frozen=True)
class EvalResult:
    """Evaluation of one network.

    Attributes:
        value: objective value of its trial; None if a result is not finite.
        attributes: fields of :class:`studies.attributes.TrialRecord`.
    """

    value: float | None
    attributes: Mapping[str, Any]


def evaluate(
    loop: TrainLoop, task: Task, config: StudyConfig, on_step: Callable[[], None]
) -> list[EvalResult]:
    """Evaluate the networks of a finished train loop, in their order.

    Args:
        loop: the train loop.
        task: the task that it trained on.
        config: config of the study; the test split is read only if it says so.
        on_step: callback after every step; an exception that it raises ends the evaluation.
    """
    steps = loop.train_config.steps
    measured: list[dict[str, Any]] = [
        {
            OBJECTIVE_ATTRIBUTES["training"]: min(curve.values()),
            OBJECTIVE_ATTRIBUTES["training-mean"]: mean_training_loss(curve, steps),
        }
        for curve in loop.curves
    ]
    loop.swap_in_averaged_weights()
    stack = loop.stack  # on_step may remove networks from the loop
    evaluation = config.evaluation
    splits: list[Literal["validation", "test"]] = ["validation"]
    if config.eval_split == "test":
        splits.append("test")
    for split in splits:
        found = task.evaluate(stack, split, evaluation.windows, evaluation.window_length, on_step)
        for attributes, of_split in zip(measured, found, strict=True):
            attributes |= of_split
    results = []
    for attributes in measured:
        value = attributes[OBJECTIVE_ATTRIBUTES[config.objective]]
        numbers = (number for number in attributes.values() if isinstance(number, float))
        is_finite = all(map(math.isfinite, numbers))
        results.append(EvalResult(value if is_finite else None, attributes))
    return results


def mean_training_loss(curve: Mapping[int, float], steps: int) -> float:
    """Return the mean of the smoothed training loss over the last quarter of the steps.

    The minimum of a curve is at one log point for most networks of a study, so that one passage of
    the text ranks them; the mean takes many. Without a log point in the last quarter, the last one
    alone counts.
    """
    last = [loss for step, loss in curve.items() if 4 * step > 3 * steps]
    return statistics.fmean(last or [curve[max(curve)]])
