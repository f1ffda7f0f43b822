"""Checks of users' tasks against their contract, and the floors of a task.

A task is checked on batches of it. Its floors are what is reached on its validation split without
memory or by a small network. T is the number of time steps, B the number of streams, V the number
of outputs.
"""

import hashlib
import json
import logging
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rnn.autograd import AutogradStack
from rnn.config import WHOLE_SEQUENCE, NetworkConfig, OptimizerConfig, TaskSpec, TrialConfig
from rnn.engines import Engine
from rnn.errors import TaskError, UserError
from rnn.network import Batch
from rnn.own_code import TaskSource, loaded_source
from rnn.tasks.datasets import DataSet
from rnn.tasks.sequence_task import SequenceTask
from rnn.tasks.task import Array, is_built_in
from rnn.training.evaluation import HeldOutResult, evaluate_sequences
from rnn.training.loop import TrainConfig, TrainLoop
from search.cell_check import run_new_process
from search.cells_tasks import ONLY, StudyTask, TaskOptions, load_task_of
from studies.attributes import StudyRecord
from studies.config import StudyConfig
from studies.records import Floors, TaskRecord
from studies.space import TASK, Params
from studies.study_settings import WINDOW_PARAMS, TrainingLength

_STREAMS = 32
_BATCHES = 8
"""Training batches whose sequences are compared with those of the other splits."""

_LOSSES = 64
"""Number of targets of which losses are compared."""

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


_MIN_RESET_GAP = 8
"""Fewer steps are not read faster at once than one after another."""

_logger = logging.getLogger(__name__)


def check_task(
    task: StudyTask, count: int, on_passed: Callable[[str], None] = lambda _: None
) -> tuple[Floors, str]:
    """Run every check on a task, with a number of held-out sequences.

    ``on_passed`` is called after each check, with what holds.

    Returns:
        Its floors, and whether it needs memory, in a sentence.

    Raises:
        TaskError: if a check fails, naming the task and what to do.
    """
    built = task.rebuild()
    first = _digest(built, count)
    on_passed("sample returns sequences of the stated sizes for each split")
    _require_pure(built, first, count)
    on_passed("the same sequences are drawn again, after others")
    _require_disjoint(built, count)
    on_passed("no sequence of the training is among those of validation or test")
    _require_loss_by_target(built, count)
    _require_stated_resets(built)
    if task.record.sha256 is not None:  # the class is the user's
        _require_same_in_new_process(task.record, first, count)
        on_passed("the same sequences are drawn in a new process")
    floors, memory = measure_floors(built, count)
    _require_finite(task.record.name, floors)
    on_passed("losses and metrics of small networks are finite")
    return floors, memory


def check_tasks(
    tasks: Mapping[str, StudyTask], count: int, checked: Sequence[StudyRecord] = ()
) -> dict[str, Floors]:
    """Check tasks, as :func:`check_task`, but those of studies that were checked before.

    Returns:
        Their floors by name.
    """
    floors: dict[str, Floors] = {}
    for name, task in tasks.items():
        if task.text is not None:  # nothing of the user's runs, and no floor is known
            continue
        identity = task.record.identity()
        known = [
            study.task_floors.get(other, study.floors)
            for study in checked
            for other, record in study.config.list_tasks().items()
            if record.identity() == identity
        ]
        if not known:
            for notice in task.build_sequences().notices:
                _logger.info(notice)
            _logger.info(f"checking task {name or task.record.name}, measuring its floors")
            floors[name], _ = check_task(task, count)
        elif known[0] is not None:
            floors[name] = known[0]
    return floors


def _digest(task: SequenceTask, count: int) -> str:
    drawn = [task.train_batch(0, index, 0, _STREAMS, 0) for index in (2, 0, 1)]
    for split in ("validation", "test"):
        drawn += [task.held_out(split, count, length) for length in (None, *task.eval_lengths)]
    digest = hashlib.sha256()
    for batch in drawn:
        slices = [batch.slices[name] for name in sorted(batch.slices)]
        for part in (*batch[:4], *slices):
            if part is not None:
                digest.update(f"{part.dtype} {part.shape}".encode() + part.tobytes())
    return digest.hexdigest()


def _require_pure(task: SequenceTask, expected: str, count: int) -> None:
    task.train_batch(1, 7, 0, _STREAMS + 1, 0)
    if _digest(task, count) != expected:
        raise TaskError(
            f"task {task.name} draws other sequences when it is asked again: expected sequences "
            "that depend on the arguments of sample alone; take all random numbers from rng, not "
            "from np.random, random or torch, and keep nothing between two calls"
        )


def _require_same_in_new_process(record: TaskRecord, expected: str, count: int) -> None:
    assert record.sha256 is not None
    text = loaded_source(record.name, record.sha256, TaskSource).text
    given = json.dumps([record.source, record.name, text, record.values, record.folder, count])
    program = "from search.task_check import print_digest; print_digest()"
    if run_new_process(TaskSource, record.name, program, given) != expected:
        raise TaskError(
            f"task {record.name} draws other sequences in a new process: expected random numbers "
            "from rng alone, or of a fixed seed in a dataset, and nothing that depends on hash(), "
            "the order of a set or the time"
        )


def print_digest() -> None:
    """Print the digest of the batches of the task in standard input: the new process's program."""
    source, name, text, values, folder, count = json.load(sys.stdin)
    task = load_task_of(source, values, Path(folder), TaskSource(source, name, text))
    print(_digest(task.build_sequences(), count))


def _require_stated_resets(task: SequenceTask) -> None:
    """Require a task to say that its resets leave too few steps for a sequence form."""
    for index in range(_BATCHES):
        batch = task.train_batch(0, index, 0, _NETWORK_STREAMS, 0)
        if batch.resets is None or task.resets_often:
            return
        gaps = np.diff(np.flatnonzero(batch.resets.any(1)))
        if (gaps <= _MIN_RESET_GAP).any():
            raise TaskError(
                f"task {task.name}: in a batch of {_NETWORK_STREAMS}, states start anew "
                f"{gaps.min()} steps after others: expected more than {_MIN_RESET_GAP}, or "
                "resets_often = True in the class; cells then read one step at a time"
            )


def _require_disjoint(task: SequenceTask, count: int) -> None:
    indices = range(_BATCHES)
    drawn = {
        "train": [task.train_batch(0, index, 0, _STREAMS, 0) for index in indices],
        "validation": [task.held_out("validation", count)],
        "test": [task.held_out("test", count)],
    }
    way = "by split in sample"
    if isinstance(task.definition, DataSet):
        way = "without duplicates"
    elif is_built_in(type(task.definition)):
        way = "as longer ones, or more symbols, have them"
    seen: dict[bytes, str] = {}
    for split, batches in drawn.items():
        for batch in batches:
            for column in range(batch.inputs.shape[1]):
                part = batch.inputs[:, column].tobytes() + batch.targets[:, column].tobytes()
                other = seen.setdefault(part, split)
                if other != split:
                    raise TaskError(
                        f"task {task.name}: the splits {other} and {split} share a sequence: "
                        f"expected different sequences in each split, {way}"
                    )


def _require_loss_by_target(task: SequenceTask, count: int) -> None:
    """Require that a task's own loss is a finite number for each target, by this target alone."""
    spec = task.spec
    if spec.loss is None:
        return
    batch = task.held_out("validation", count)
    counted = torch.from_numpy(batch.weights > 0)
    targets = torch.from_numpy(batch.targets)[counted][:_STREAMS]
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(len(targets), spec.outputs, generator=generator, requires_grad=True)
    losses = spec.loss(outputs, targets)
    expected = f"expected a finite differentiable number for each of {len(targets)} targets"
    if not (losses.isfinite().all() and losses.requires_grad):
        raise TaskError(f"loss of task {task.name} is not finite or not differentiable: {expected}")
    half = len(targets) // 2
    if half and not torch.allclose(spec.loss(outputs[:half], targets[:half]), losses[:half], 1e-4):
        raise TaskError(
            f"loss of task {task.name} depends on the other targets of a batch: {expected}, by its "
            "own output and target alone"
        )


def _require_finite(name: str, floors: Floors) -> None:
    for values in name_floors(floors).values():
        for key, value in values.items():
            if not np.isfinite(value):
                raise TaskError(
                    f"task {name}: {key} of a small network is {value}: expected a finite number; "
                    "scale inputs and targets, or set standardize"
                )


# ------------------------------------------------------------------ tasks of a study


def check_trials(
    config: StudyConfig, tasks: Mapping[str, StudyTask], trials: Iterable[Params]
) -> dict[str, TrainingLength]:
    """Check the updates of trials, and the options of the task in which they differ.

    Returns:
        How long the trials of each task train, by its name.

    Raises:
        UserError: if an option changes more than the data of the training, or the updates of
            trials contradict each other.
        TaskError: if the task cannot be built with the options of a trial.
    """
    by_task: dict[str, list[Params]] = {name: [] for name in tasks}
    for params in trials:
        by_task[str(params[TASK]) if config.task_records else ONLY].append(params)
    lengths: dict[str, TrainingLength] = {}
    for name, of_task in by_task.items():
        windows = _list_windows(config, tasks[name], of_task)
        try:
            lengths[name] = config.round_up_length(name, windows)
        except ValueError as error:
            raise UserError(str(error)) from error
    return lengths


def _list_windows(
    config: StudyConfig, task: StudyTask, trials: Iterable[Params]
) -> list[tuple[Params, int | None]]:
    """Check the options of a task; return what determines the updates of its trials."""
    groups: dict[TaskOptions, list[Params]] = {}
    for params in trials:
        options = tuple((name, params[name]) for name in task.record.options if name in params)
        settings = {name: params[name] for name in WINDOW_PARAMS if name in params}
        group = groups.setdefault(options, [])
        if settings not in group:
            group.append(settings)
    if any(groups):
        # One after another first, so that the message names the one that is wrong.
        single = dict.fromkeys((option,) for options in groups for option in options)
        expected = _list_common(config, task.build_sequences())
        for options in dict.fromkeys((*single, *groups)):
            if _list_common(config, task.build_sequences(options)) != expected:
                stated = " and ".join(f"{name} = {value!r}" for name, value in options)
                raise UserError(
                    f"{stated} changes the held-out data, the sizes or the loss of task "
                    f"{task.record.name}: expected options in space.task that change the data of "
                    "the training alone; set others in [task], in a study for each value"
                )
    windows: list[tuple[Params, int | None]] = []
    for options, group in groups.items():
        steps = task.build_sequences(options).steps if options else task.record.steps
        windows += [(settings, steps) for settings in group]
    return windows


def _list_common(config: StudyConfig, task: SequenceTask) -> list[Any]:
    """Return what all trials of a study must have in common."""
    spec = task.spec
    count = config.evaluation.windows
    common: list[Any] = [
        (spec.inputs, spec.outputs, spec.reads_tokens, spec.predicts_classes, spec.is_dense),
        (task.metrics, task.eval_lengths, task.is_standardized, task.output_names),
        task.summarize_held_out(count),
        spec.loss is not None,
    ]
    if spec.loss is not None:
        targets = torch.from_numpy(task.held_out("validation", count).targets).flatten(0, 1)
        targets = targets[:_LOSSES]
        outputs = torch.linspace(-1, 1, len(targets) * spec.outputs).view(-1, spec.outputs)
        common.append(spec.loss(outputs, targets).tolist())
    return common


def check_length(
    tasks: Mapping[str, StudyTask], config: StudyConfig, trials: Iterable[Params] = ()
) -> None:
    """Check that each split of a text is as long as a config and, if given, each trial needs.

    Raises:
        CorpusError: if one is too short.
    """
    grid = config.grid
    study_length = config.training.sequence_length
    values = grid.search_space.get("sequence_length") if grid else None
    lengths = [int(value) for value in values or [study_length]]
    lengths += [int(params.get("sequence_length", study_length)) for params in trials]
    for task in tasks.values():
        if task.text is not None:
            window = config.evaluation.window_length
            task.text.check_min_length(max(lengths), window, config.eval_split)


# ------------------------------------------------------------------ floors


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
        "constant": _predict_constant(task, drawn),
        "last_value": _predict_last_value(task, drawn),
    }
    results = {
        name: _evaluate(_Predictor(task.spec, predict), task, held_out)
        for name, predict in predictions.items()
        if predict is not None
    } | {"memoryless": memoryless, "recurrent": recurrent}
    floors = Floors(
        **{
            name: {"loss": float(result.losses.mean()), **result.metrics}
            for name, result in results.items()
        }
    )
    return floors, describe_memory(floors, memoryless.losses - recurrent.losses)


def describe_memory(floors: Floors, gains: Tensor) -> str:
    """Say whether memory helps; ``gains`` are the losses of each sequence that it saves."""
    with_memory = floors.recurrent["loss"]
    without = floors.memoryless["loss"]
    losses = f"loss {with_memory:.4g} with memory, {without:.4g} without"
    error = float(gains.std()) / math.sqrt(len(gains)) if len(gains) > 1 else 0.0
    explained = floors.constant["loss"] - with_memory
    is_relevant = explained > 0 and without - with_memory > _RELEVANT * explained
    if is_relevant and float(gains.mean()) > _CERTAIN * error:
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
        inputs, targets, weights = (part.reshape(1, -1, *part.shape[2:]) for part in parts)
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
    return _evaluate(loop.stack, task, held_out, has_memory and task.is_consecutive)


# ------------------------------------------------------------------ predictions without a network

Prediction = Callable[[Array], Array]
"""Predicts outputs (N, V) of N steps by their inputs, tokens (N,) or numbers (N, size)."""


def _predict_constant(task: SequenceTask, drawn: Batch) -> Prediction:
    """Predict the shares of the classes, or the mean of the numbers, in the training split."""
    weights = drawn.weights.flatten().astype(np.float64)
    if task.spec.predicts_classes:
        counts = np.bincount(drawn.targets.flatten(), weights, task.spec.outputs)
        constant = np.log(np.maximum(counts / weights.sum(), 1 / weights.size))
    else:
        constant = weights @ drawn.targets.reshape(weights.size, -1) / weights.sum()
    outputs = constant.astype(np.float32)
    return lambda inputs: np.tile(outputs, (len(inputs), 1))


def _predict_last_value(task: SequenceTask, drawn: Batch) -> Prediction | None:
    """Predict that the last value is repeated; None for a task where it cannot be."""
    columns = task.persistence
    if columns is None:
        return None
    if task.spec.predicts_classes:
        return _predict_last_token(task, drawn)

    def predict(inputs: Array) -> Array:
        if task.input_scaling is not None:
            inputs = inputs * task.input_scaling.std + task.input_scaling.mean
        values = inputs[:, columns]
        return values if task.target_scaling is None else task.target_scaling.standardize(values)

    return predict


def _predict_last_token(task: SequenceTask, drawn: Batch) -> Prediction:
    """Predict the token as often as it is repeated in the training split.

    Other classes are equally frequent.
    """
    is_repeated = (drawn.inputs == drawn.targets) * drawn.weights
    share = float(np.clip(is_repeated.sum() / drawn.weights.sum(), 1e-3, 1 - 1e-3))
    other = math.log((1 - share) / max(1, task.spec.outputs - 1))

    def predict(tokens: Array) -> Array:
        outputs = np.full((len(tokens), task.spec.outputs), other, np.float32)
        outputs[np.arange(len(tokens)), tokens] = math.log(share)
        return outputs

    return predict


class _Predictor(AutogradStack):
    """A network whose outputs are those of a prediction by the input of a step alone."""

    def __init__(self, spec: TaskSpec, predict: Prediction) -> None:
        super().__init__([_NETWORK], 0, "fp32", spec)
        self._predict = predict

    def forward(
        self, inputs: Tensor, states: Sequence[Tensor], places: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        rows = inputs.flatten(0, 1)  # (T·B, …)
        read = rows if places is None else rows[places]
        outputs = torch.from_numpy(self._predict(read.numpy()))  # (N, V)
        if places is None:
            outputs = outputs.reshape(*inputs.shape[:2], -1)  # (T, B, V)
        return outputs[None], list(states)


def _evaluate(
    stack: Engine, task: SequenceTask, held_out: Batch, is_consecutive: bool = False
) -> HeldOutResult:
    metrics = {name: partial(task.measure, name) for name in task.metrics}
    streams = 1 if is_consecutive else held_out.inputs.shape[1]
    (result,) = evaluate_sequences(stack, held_out, metrics, streams, is_consecutive=is_consecutive)
    return result
