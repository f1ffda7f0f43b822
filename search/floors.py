"""Floors of a task: what is reached on its validation split without memory, or by a small network.

T is the number of time steps, B the number of streams, V the number of outputs.
"""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rnn.autograd import AutogradStack
from rnn.config import WHOLE_SEQUENCE, BaselineConfig, OptimizerConfig, TaskSpec, TrialConfig
from rnn.engines import Engine
from rnn.tasks.task import Batch, SequenceTask
from rnn.training.evaluation import HeldOutResult, evaluate_sequences
from rnn.training.loop import TrainConfig, TrainLoop
from studies.records import Floors

_COUNT = 1024
"""Training sequences from which constants are measured."""

_STREAMS = 64
_MAX_UPDATES = 300
_MAX_STEPS = 8_000
"""Of the training of the small networks, which takes seconds."""

_NETWORK = TrialConfig(
    BaselineConfig("gru", 1, 32),
    bptt_steps=WHOLE_SEQUENCE,
    update_every=WHOLE_SEQUENCE,
    optimizer=OptimizerConfig(learning_rate=0.005, gradient_clipping=1.0),
)


def measure_floors(task: SequenceTask, count: int) -> tuple[Floors, float]:
    """Measure the floors of a task.

    A small network is trained twice, once with its states and once with the initial ones before
    every step. The same numbers result on the same machine.

    Args:
        task: the task.
        count: number of held-out sequences.

    Returns:
        The floors, and by how many standard errors the network with memory is better than the one
        without on the validation split.
    """
    held_out = task.held_out("validation", count)
    drawn = task.train_batch(0, 0, 0, _COUNT, 0)
    alone = _train(task, task, held_out)
    memoryless = _train(task, _Memoryless(task), held_out)
    differences = memoryless.losses - alone.losses
    error = float(differences.std()) / math.sqrt(len(differences)) if len(differences) > 1 else 0.0
    gain = float(differences.mean())
    last_value = _predict_last_value(task, drawn)
    floors = Floors(
        constant=_measure(task, held_out, _predict_constant(task, drawn)),
        last_value=None if last_value is None else _measure(task, held_out, last_value),
        memoryless=_to_dict(memoryless),
        recurrent=_to_dict(alone),
    )
    return floors, gain / error if error else math.copysign(math.inf, gain) if gain else 0.0


def _to_dict(result: HeldOutResult) -> dict[str, float]:
    return {"loss": float(result.losses.mean()), **result.metrics}


# ------------------------------------------------------------------ small networks


class _Memoryless:
    """The data of a task with every step as a sequence of its own.

    Args:
        task: the task.
    """

    initial_loss = None

    def __init__(self, task: SequenceTask) -> None:
        self._task = task
        # Steps without a target are left out by their mask, which some updates may lack.
        self.spec = replace(task.spec, is_dense=False)

    def steps_per_sequence(self, sequence_length: int) -> int:
        """Return 1."""
        return 1

    def train_batch(
        self, seed: int, index: int, replicate: int, batch_size: int, sequence_length: int
    ) -> Batch:
        """Return a batch of the task with all of its steps side by side."""
        streams = batch_size // self._task.steps
        return _flatten(self._task.train_batch(seed, index, replicate, streams, sequence_length))


def _flatten(batch: Batch) -> Batch:
    """Return a batch (1, T·B) of which every step is a sequence."""
    inputs, targets, weights = (
        each.reshape(1, -1, *each.shape[2:])
        for each in (batch.inputs, batch.targets, batch.weights)
    )
    return Batch(inputs, targets, weights)


def _train(task: SequenceTask, data: SequenceTask | _Memoryless, held_out: Batch) -> HeldOutResult:
    """Train a small network on data of a task; evaluate it on held-out sequences."""
    updates = max(1, min(_MAX_UPDATES, _MAX_STEPS // task.steps))
    is_memoryless = isinstance(data, _Memoryless)
    steps = 1 if is_memoryless else task.steps
    settings = TrainConfig(
        steps=updates * steps,
        batch_size=_STREAMS * task.steps if is_memoryless else _STREAMS,
        sequence_length=0,
        log_every=updates * steps,
        smoothing=0.9,
        seed=0,
        average_fraction=0.2,
    )
    loop = TrainLoop(AutogradStack([_NETWORK], 0, "fp32", data.spec), data, settings)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more do not help so small a network, and others may need them
    try:
        for _ in loop.train():
            pass
    finally:
        torch.set_num_threads(threads)
    loop.swap_in_averaged_weights()
    if is_memoryless:
        # Its states are the initial ones before every step.
        held_out = held_out._replace(resets=np.ones(held_out.inputs.shape[:2], bool))
    (result,) = evaluate_sequences(loop.stack, task, held_out, held_out.inputs.shape[1])
    return result


# ------------------------------------------------------------------ predictions without a network

Prediction = Callable[[Batch], npt.NDArray[np.float32]]
"""Outputs (T, B, V) of a batch."""


def _predict_constant(task: SequenceTask, drawn: Batch) -> Prediction:
    """Predict the shares of the classes, or the mean of the numbers, in the training split."""
    weights = drawn.weights[..., None]
    targets = drawn.targets
    if task.spec.predicts_classes:
        targets = np.eye(task.spec.outputs, dtype=np.float32)[targets]
    shares = (targets * weights).sum((0, 1)) / weights.sum()
    if task.spec.predicts_classes:
        shares = np.log(np.maximum(shares, 1 / weights.size))
    constant = shares.astype(np.float32)
    return lambda batch: np.broadcast_to(constant, (*batch.inputs.shape[:2], task.spec.outputs))


def _predict_last_value(task: SequenceTask, drawn: Batch) -> Prediction | None:
    """Predict that the last value is repeated; None for a task where it cannot be."""
    columns, spec = task.persistence, task.spec
    if columns is None:
        return None
    if not spec.predicts_classes:

        def repeat(batch: Batch) -> npt.NDArray[np.float32]:
            values = batch.inputs
            if task.input_scaling is not None:
                values = values * task.input_scaling.std + task.input_scaling.mean
            values = values[..., columns]
            scaling = task.target_scaling
            return values if scaling is None else scaling.standardize(values)

        return repeat
    # The token is repeated as often as in the training split, other classes are equally frequent.
    is_repeated = (drawn.inputs == drawn.targets) * drawn.weights
    share = float(np.clip(is_repeated.sum() / drawn.weights.sum(), 1e-3, 1 - 1e-3))
    other = math.log((1 - share) / max(1, spec.outputs - 1))

    def repeat_token(batch: Batch) -> npt.NDArray[np.float32]:
        outputs = np.full((*batch.inputs.shape, spec.outputs), other, np.float32)
        np.put_along_axis(outputs, batch.inputs[..., None].astype(np.int64), math.log(share), 2)
        return outputs

    return repeat_token


class _FixedOutputs:
    """Outputs that stand for those of a network, for :func:`evaluate_sequences`."""

    def __init__(self, spec: TaskSpec, outputs: npt.NDArray[np.float32]) -> None:
        self._stack = AutogradStack([_NETWORK], 0, "fp32", spec)
        self._outputs = torch.from_numpy(np.ascontiguousarray(outputs))
        self._t = 0
        self.configs, self.device = self._stack.configs, self._stack.device

    def init_state(self, streams: int) -> list[Tensor]:
        return []

    def forward(self, inputs: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        self._t += 1
        return self._outputs[None, self._t - 1], states

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self._stack.losses(outputs, targets)


def _measure(task: SequenceTask, held_out: Batch, predict: Prediction) -> dict[str, float]:
    """Return loss and metrics of a prediction on held-out sequences."""
    stack: Engine = _FixedOutputs(task.spec, predict(held_out))  # type: ignore[assignment]
    (result,) = evaluate_sequences(stack, task, held_out, held_out.inputs.shape[1])
    return _to_dict(result)
