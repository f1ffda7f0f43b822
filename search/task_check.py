"""Checks of a task: what it must do before networks are trained on it."""

import hashlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import torch

from rnn.errors import TaskError
from rnn.tasks.task import Batch, SequenceTask
from search.floors import measure_floors
from search.tasks import StudyTask, pack_task, unpack_task
from studies.records import Floors

TIMEOUT = 600
"""Seconds after which the new process counts as hanging; it takes a few."""

_STREAMS = 32
_BATCHES = 8
"""Training batches whose sequences are compared with those of the other splits."""

_CERTAIN = 4.0
"""Standard errors by which a network with memory must be better to say that memory is needed."""

_RELEVANT = 0.1
"""Part of what it gains on the best constant that the one without memory must lack."""


def certify_task(
    task: StudyTask, count: int, on_passed: Callable[[str], None] = lambda _: None
) -> tuple[Floors, str]:
    """Run every check on a task.

    Args:
        task: the task.
        count: number of held-out sequences.
        on_passed: called after each check, with what holds.

    Returns:
        Its floors, and whether it needs memory, in a sentence.

    Raises:
        TaskError: if a check fails, naming the task and what to do.
    """
    built = task.rebuild()
    first = _digest(built, count)
    on_passed("sample returns sequences of the stated sizes for each split")
    _require_pure(task.rebuild(), first, count)
    on_passed("the same sequences are drawn again, in another order")
    _require_disjoint(built, count)
    on_passed("no sequence of the training is among those of validation or test")
    _require_loss_by_target(built, count)
    _require_same_in_new_process(task, first, count)
    on_passed("the same sequences are drawn in a new process")
    floors, gain = measure_floors(built, count)
    _require_finite(task.record.name, floors)
    on_passed("losses and metrics of small networks are finite")
    return floors, _describe_memory(floors, gain)


def _batches(task: SequenceTask, count: int) -> list[Batch]:
    """Return batches of all splits, those of the training first."""
    drawn = [task.train_batch(0, index, 0, _STREAMS, 0) for index in (2, 0, 1)]
    for split in ("validation", "test"):
        drawn += [task.held_out(split, count, length) for length in (None, *task.eval_lengths)]
    return drawn


def _digest(task: SequenceTask, count: int) -> str:
    digest = hashlib.sha256()
    for batch in _batches(task, count):
        slices = [batch.slices[name] for name in sorted(batch.slices)]
        for part in (*batch[:4], *slices):
            if part is not None:
                digest.update(f"{part.dtype} {part.shape}".encode() + part.tobytes())
    return digest.hexdigest()


def _require_pure(task: SequenceTask, expected: str, count: int) -> None:
    """Require the same batches from a second instance, after other calls and random numbers."""
    saved = np.random.get_state(), random.getstate()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            np.random.seed(1)
            random.seed(1)
            task.train_batch(1, 7, 0, _STREAMS + 1, 0)
            actual = _digest(task, count)
    finally:
        np.random.set_state(saved[0])
        random.setstate(saved[1])
    if actual != expected or _digest(task, count) != expected:
        raise TaskError(
            f"task {task.name} draws other sequences when it is asked again: expected sequences "
            "that depend on the arguments of sample alone; take all random numbers from rng, not "
            "from np.random, random or torch, and keep nothing between two calls"
        )


def _require_same_in_new_process(task: StudyTask, expected: str, count: int) -> None:
    name = task.record.name
    program = "from search.task_check import print_digest; print_digest()"
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    try:
        done = subprocess.run(
            [sys.executable, "-c", program],
            input=json.dumps([pack_task(task), count]),
            env=os.environ | {"PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT,
        )
    except subprocess.TimeoutExpired as error:
        raise TaskError(
            f"task {name}: a new process did not draw its sequences in {TIMEOUT} s: expected a "
            "task that waits for nothing"
        ) from error
    lines = done.stdout.split()
    if done.returncode or not lines:
        reason = "".join(done.stderr.strip().splitlines()[-1:])[:200]
        raise TaskError(f"task {name} fails in a new process ({reason})")
    if lines[-1] != expected:
        raise TaskError(
            f"task {name} draws other sequences in a new process: expected random numbers from rng "
            "alone, and nothing that depends on hash(), the order of a set or the time"
        )


def print_digest() -> None:
    """Print the digest of a task's batches: the program of the new process.

    Standard input has the packed task and the number of held-out sequences, as JSON.
    """
    packed, count = json.load(sys.stdin)
    print(_digest(unpack_task(packed).build(), count))


def _require_disjoint(task: SequenceTask, count: int) -> None:
    """Require that no sequence is in two splits."""
    drawn = {
        "train": [task.train_batch(0, index, 0, _STREAMS, 0) for index in range(_BATCHES)],
        "validation": [task.held_out("validation", count)],
        "test": [task.held_out("test", count)],
    }
    seen: dict[bytes, str] = {}
    for split, batches in drawn.items():
        for batch in batches:
            for column in range(batch.inputs.shape[1]):
                part = batch.inputs[:, column].tobytes() + batch.targets[:, column].tobytes()
                other = seen.setdefault(part, split)
                if other != split:
                    raise TaskError(
                        f"task {task.name}: the splits {other} and {split} share a sequence: "
                        "expected different sequences in each split, by split in sample"
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
    measured = (floors.constant, floors.last_value or {}, floors.memoryless, floors.recurrent)
    for values in measured:
        for key, value in values.items():
            if not np.isfinite(value):
                raise TaskError(
                    f"task {name}: {key} of a small network is {value}: expected a finite number; "
                    "scale inputs and targets, or set standardize"
                )


def _describe_memory(floors: Floors, gain: float) -> str:
    with_memory, without = floors.recurrent["loss"], floors.memoryless["loss"]
    losses = f"loss {with_memory:.4g} with memory, {without:.4g} without"
    explained = floors.constant["loss"] - with_memory
    if gain > _CERTAIN and without - with_memory > _RELEVANT * explained:
        return f"the task needs memory: a small network has {losses}"
    return (
        f"a small network gained nothing from its memory in a short training ({losses}): the task "
        "needs none, or a longer training"
    )


def describe_floors(floors: Floors) -> list[str]:
    """Return a line for each floor."""
    named = {
        "constant prediction": floors.constant,
        "last value": floors.last_value,
        "small network without memory": floors.memoryless,
        "the same with memory": floors.recurrent,
    }
    return [
        f"{name}: {', '.join(f'{key} {value:.4g}' for key, value in values.items())}"
        for name, values in named.items()
        if values is not None
    ]
