"""Floors of a task: what is reached on its validation split without memory or by a small network.

T is the number of time steps, B the number of streams, V the number of outputs.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rnn.autograd import AutogradStack
from rnn.config import WHOLE_SEQUENCE, NetworkConfig, OptimizerConfig, TaskSpec, TrialConfig
from rnn.engines import Engine
from rnn.network import Batch
from rnn.tasks.task import SequenceTask
from rnn.training.evaluation import HeldOutResult, evaluate_sequences
from rnn.training.loop import TrainConfig, TrainLoop
from studies.records import Floors

_CERTAIN = 4.0
"""Standard errors by which a network with memory must be better to say that memory is needed."""

_RELEVANT = 0.1
"""Part of what it gains on the best constant that the one without memory must lack."""

_CONSTANT_COUNT = 1024
"""Training sequences from which constant predictions are measured."""

_NETWORK_STREAMS = 64
_MAX_UPDATES = 300
_MAX_STEPS = 8_000
"""Of the training of the small networks, which takes seconds."""

_NETWORK = TrialConfig(
    NetworkConfig("gru", 1, 32),
    bptt_steps=WHOLE_SEQUENCE,
    update_every=WHOLE_SEQUENCE,
    optimizer=OptimizerConfig(learning_rate=0.005, gradient_clipping=1.0),
)


def measure_floors(task: SequenceTask, count: int) -> tuple[Floors, str]:
    """Measure the floors of a task on a number of held-out sequences.

    A small network is trained twice, once with its states and once with the initial ones before
    every step. The same numbers result on the same machine.

    Returns:
        The floors, and whether the task needs memory, in a sentence: whether the network with
        memory is significantly better than the one without.
    """
    held_out = task.held_out("validation", count)
    drawn = task.train_batch(0, 0, 0, _CONSTANT_COUNT, 0)
    recurrent = _train(task, held_out, has_memory=True)
    memoryless = _train(task, held_out, has_memory=False)
    predictions = {
        "constant": _predict_constant(task, drawn, held_out),
        "last_value": _predict_last_value(task, drawn, held_out),
    }
    results = {
        name: _evaluate(_FixedOutputs(task.spec, outputs), task, held_out)
        for name, outputs in predictions.items()
        if outputs is not None
    } | {"memoryless": memoryless, "recurrent": recurrent}
    floors = Floors(
        **{
            name: {"loss": float(result.losses.mean()), **result.metrics}
            for name, result in results.items()
        }
    )
    return floors, _describe_memory(floors, memoryless.losses - recurrent.losses)


def _describe_memory(floors: Floors, gains: Tensor) -> str:
    """Say whether memory helps; ``gains`` are the losses of each sequence that it saves."""
    with_memory = floors.recurrent["loss"]
    without = floors.memoryless["loss"]
    losses = f"loss {with_memory:.4g} with memory, {without:.4g} without"
    error = float(gains.std()) / math.sqrt(len(gains)) if len(gains) > 1 else 0.0
    explained = floors.constant["loss"] - with_memory
    if float(gains.mean()) > _CERTAIN * error and without - with_memory > _RELEVANT * explained:
        return f"the task needs memory: a small network has {losses}"
    return (
        f"a small network gained nothing from its memory in a short training ({losses}): the task "
        "needs none, or a longer training"
    )


def describe_floors(floors: Floors) -> list[str]:
    """Return a line for each floor."""
    return [
        f"{name}: {', '.join(f'{key} {value:.4g}' for key, value in values.items())}"
        for name, values in name_floors(floors).items()
    ]


def name_floors(floors: Floors) -> dict[str, Mapping[str, float]]:
    """Return the loss and the metrics of each floor by what reached them."""
    named = {
        "constant prediction": floors.constant,
        "last value": floors.last_value,
        "small network without memory": floors.memoryless,
        "the same with memory": floors.recurrent,
    }
    return {name: values for name, values in named.items() if values is not None}


# ------------------------------------------------------------------ small networks


class _Memoryless:
    """The training data of a task with every step as a sequence of its own."""

    initial_loss = None

    def __init__(self, task: SequenceTask) -> None:
        self._task = task
        # Steps without a target are left out by their mask, which some updates may lack.
        self.spec = replace(task.spec, is_dense=False)

    def steps_per_sequence(self, sequence_length: int) -> int:
        return 1

    def train_batch(
        self, seed: int, index: int, replicate: int, batch_size: int, sequence_length: int
    ) -> Batch:
        streams = batch_size // self._task.steps
        batch = self._task.train_batch(seed, index, replicate, streams, sequence_length)
        parts = (batch.inputs, batch.targets, batch.weights)
        inputs, targets, weights = (each.reshape(1, -1, *each.shape[2:]) for each in parts)
        return Batch(inputs, targets, weights)


def _train(task: SequenceTask, held_out: Batch, has_memory: bool) -> HeldOutResult:
    """Train a small network on a task; evaluate it on held-out sequences (T, B)."""
    updates = max(1, min(_MAX_UPDATES, _MAX_STEPS // task.steps))
    data = task if has_memory else _Memoryless(task)
    steps = task.steps if has_memory else 1
    settings = TrainConfig(
        steps=updates * steps,
        batch_size=_NETWORK_STREAMS * (task.steps // steps),
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
    if not has_memory:
        # Its states are the initial ones before every step.
        held_out = held_out._replace(resets=np.ones(held_out.inputs.shape[:2], bool))
    return _evaluate(loop.stack, task, held_out)


# ------------------------------------------------------------------ predictions without a network

Outputs = npt.NDArray[np.float32]
"""Predicted outputs (T, B, V) of held-out sequences."""


def _predict_constant(task: SequenceTask, drawn: Batch, held_out: Batch) -> Outputs:
    """Predict the shares of the classes, or the mean of the numbers, in the training split."""
    weights = drawn.weights[..., None]
    targets = drawn.targets
    if task.spec.predicts_classes:
        targets = np.eye(task.spec.outputs, dtype=np.float32)[targets]
    shares = (targets * weights).sum((0, 1)) / weights.sum()
    if task.spec.predicts_classes:
        shares = np.log(np.maximum(shares, 1 / weights.size))
    shape = (*held_out.inputs.shape[:2], task.spec.outputs)
    return np.broadcast_to(shares.astype(np.float32), shape)


def _predict_last_value(task: SequenceTask, drawn: Batch, held_out: Batch) -> Outputs | None:
    """Predict that the last value is repeated; None for a task where it cannot be."""
    columns, inputs = task.persistence, held_out.inputs
    if columns is None:
        return None
    if not task.spec.predicts_classes:
        if task.input_scaling is not None:
            inputs = inputs * task.input_scaling.std + task.input_scaling.mean
        values = inputs[..., columns]
        return values if task.target_scaling is None else task.target_scaling.standardize(values)
    # The token is repeated as often as in the training split, other classes are equally frequent.
    is_repeated = (drawn.inputs == drawn.targets) * drawn.weights
    share = float(np.clip(is_repeated.sum() / drawn.weights.sum(), 1e-3, 1 - 1e-3))
    other = math.log((1 - share) / max(1, task.spec.outputs - 1))
    outputs = np.full((*inputs.shape, task.spec.outputs), other, np.float32)
    np.put_along_axis(outputs, inputs[..., None].astype(np.int64), math.log(share), 2)
    return outputs


class _FixedOutputs(AutogradStack):
    """A network whose outputs are those of a prediction, one step after the other."""

    def __init__(self, spec: TaskSpec, outputs: Outputs) -> None:
        super().__init__([_NETWORK], 0, "fp32", spec)
        self._outputs = iter(torch.from_numpy(np.ascontiguousarray(outputs)))

    def forward(self, inputs: Tensor, states: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        return next(self._outputs)[None], list(states)


def _evaluate(stack: Engine, task: SequenceTask, held_out: Batch) -> HeldOutResult:
    metrics = {name: partial(task.measure, name) for name in task.metrics}
    (result,) = evaluate_sequences(stack, held_out, metrics, held_out.inputs.shape[1])
    return result
