"""The contract of a task.

A task is what networks learn, written as one plain class::

    class MyTask:
        input_size = 2   # real numbers of a step; or vocabulary = V: a step is a token below V
        output_size = 1  # real numbers to predict; or classes = C

        def __init__(self, *, length: int = 50) -> None: ...  # options

        def sample(self, split, rng, count, length=None) -> dict: ...

``sample`` returns NumPy arrays of ``count`` sequences of T steps each: inputs, targets and, if
needed, mask, resets and slices. All randomness comes from ``rng``, so that a batch is a function of
the task, the split, the study's seed, the replicate and the number of the batch. The shapes and the
optional attributes, such as a loss or metrics, are described in ``docs/reference/tasks.md``.

T is the number of time steps, B the number of streams.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from rnn.config import TaskSpec
from rnn.engines import Engine
from rnn.network import Batch
from rnn.training.evaluation import CurveData

Split = Literal["train", "validation", "test"]
Direction = Literal["maximize", "minimize"]

SPLITS: tuple[Split, ...] = ("train", "validation", "test")

Array = npt.NDArray[Any]

FloatArray = npt.NDArray[np.float32]

Sample = dict[str, Any]
"""What the method ``sample`` of a task returns."""

MAX_STEPS = 100_000
"""Bound of options of the built-in tasks that are numbers of steps."""


class TrainingData(Protocol):
    """What networks are trained on: a :class:`Task`, or a part of one."""

    @property
    def spec(self) -> TaskSpec:
        """What networks read and predict."""

    @property
    def initial_loss(self) -> float | None:
        """Initial value of the smoothed loss; None for the first loss."""

    def steps_per_sequence(self, sequence_length: int) -> int:
        """Return T, the number of steps of the training's sequences.

        Args:
            sequence_length: tokens of a sequence of text; other tasks decide themselves.
        """

    def train_batch(
        self, seed: int, index: int, replicate: int, batch_size: int, sequence_length: int
    ) -> Batch:
        """Return the training's sequences with a number.

        They depend on the arguments alone. Every architecture reads the same data in the same order
        (common random numbers), and a resumed run needs no generator state.
        """


@dataclass(frozen=True)
class SavedTask:
    """What is needed to use the networks of a task: data alone.

    Attributes:
        name: name of the task, without the folder of a file.
        inputs: number of tokens of the vocabulary, or of real numbers of a step.
        outputs: number of classes, or of real numbers to predict.
        reads_tokens: whether a step is a token.
        predicts_classes: whether a target is a class.
        has_own_loss: whether the loss is another than the cross-entropy or the squared error.
        output_names: a name for each output; none if the task has none.
        input_scaling: mean and standard deviation of each input; none if they are not standardized.
        target_scaling: the same of the targets.
        merges: those of a text's tokenizer, none for bytes; None for another task.
    """

    name: str
    inputs: int
    outputs: int
    reads_tokens: bool = True
    predicts_classes: bool = True
    has_own_loss: bool = False
    output_names: Sequence[str] = ()
    input_scaling: Sequence[tuple[float, float]] = ()
    target_scaling: Sequence[tuple[float, float]] = ()
    merges: Sequence[tuple[int, int]] | None = None

    @property
    def spec(self) -> TaskSpec:
        """What the networks read and predict; whether it is dense is known of a text alone."""
        classes = self.predicts_classes
        is_dense = self.merges is not None
        return TaskSpec(self.inputs, self.outputs, self.reads_tokens, classes, is_dense)


class Task(TrainingData, Protocol):
    """What networks learn: a text, or sequences.

    These are :class:`rnn.tasks.text.Text` and :class:`rnn.tasks.sequence_task.SequenceTask`. Two
    differences between them are real. A text is one stream, of which each training sequence and
    each evaluation window is a piece of the length that a study sets; sequences have their own. And
    a text measures itself by bits per byte and by the context that networks use, other tasks by
    their losses, metrics and slices.
    """

    def evaluate(
        self,
        stack: Engine,
        split: Literal["validation", "test"],
        windows: int,
        window_length: int,
        on_step: Callable[[], None] = lambda: None,
    ) -> list[dict[str, Any]]:
        """Evaluate every network on a held-out split, the same data for all.

        Args:
            stack: the K networks.
            split: the split.
            windows: maximum number of windows or sequences.
            window_length: tokens of a window of text; other tasks decide themselves.
            on_step: callback after every step; an exception that it raises ends the evaluation.

        Returns:
            What a study records of each network, by the names of
            :class:`studies.attributes.TrialRecord`.
        """

    def select_curve_data(self, windows: int, window_length: int, inputs: int) -> CurveData:
        """Return the data on which networks are measured during their training.

        Args:
            windows: maximum number of windows or sequences of :meth:`evaluate`.
            window_length: tokens of its windows of text.
            inputs: number of inputs of all sequences, if these are few otherwise.
        """

    def summarize_held_out(self, count: int) -> list[float]:
        """Return a few sums over all held-out data, of ``count`` sequences.

        They differ for other data, and by a rounding error where another processor or version of
        NumPy computed the same. A text has none: its hash is known.
        """

    def save(self) -> SavedTask:
        """Return what is needed to use the networks of the task."""


def is_built_in(definition: Callable[..., Any]) -> bool:
    """Return whether a class of a task is one of this package."""
    return definition.__module__.startswith(f"{__package__}.")


def check_range(name: str, value: int, low: int, high: int) -> None:
    """Require that an option is within its bounds.

    Raises:
        ValueError: if it is not.
    """
    if not low <= value <= high:
        raise ValueError(f"{name} = {value}: expected {low} to {high}")
