"""Speed of whole sequences, relative to the loop that people write: ``nn.GRU`` and ``Adam``.

Trainings on labelled sequences, then single layers: GRU, LSTM, linear scans and minGRU.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from rnn.cells import CELLS
from rnn.config import WHOLE_SEQUENCE, NetworkConfig, OptimizerConfig, TrialConfig
from rnn.engines import build_network
from rnn.own_code import CellSource, load_class, read_source
from rnn.scan import linear_scan
from rnn.tasks.sequence_task import SequenceTask
from rnn.training.loop import TrainConfig, TrainLoop
from search.cells_tasks import load_task_of

NETWORKS = 24
LOCKSTEP = 8
LAYERS = 2
STATE_SIZE = 64
STREAMS = 64

UPDATES = 5
"""Updates of each network, which one measurement times."""

ROUNDS = 5

SHAPES = ((1024, 16, 64), (40, 64, 64), (100, 64, 128), (100, 64, 256))
"""Steps, streams and states of a layer of GRU and LSTM; minGRU has the first of them."""

SCANS = ((1024, 16, 64), (1024, 8, 16), (256, 64, 128))
"""The same of linear scans."""

MIN_GRU = "examples/cells/min_gru.py:MinGRU"

Run = Callable[[], None]


def measure() -> Iterator[str]:
    """Yield the time of an update of a network, and how many times as fast ours are."""
    yield (
        f"{NETWORKS} networks, {LAYERS}×{STATE_SIZE} GRU, {STREAMS} streams, whole sequences, fp32:"
        " milliseconds of an update of a network by nn.GRU, one after another; then how many times "
        f"as fast ours train alone and {LOCKSTEP} in lockstep, median of {ROUNDS} rounds (lowest "
        "to highest)"
    )
    names = ["digits", *(["mnist1d"] if find_spec("mnist1d") else [])]
    for name in names:
        task = load_task_of(name, {}, Path()).build_sequences()
        for threads in (1, 2):
            torch.set_num_threads(threads)
            runs: dict[str, Run] = {
                "plain": partial(_train_plainly, task),
                "alone": partial(_train, task, 1),
                "lockstep": partial(_train, task, LOCKSTEP),
            }
            for run in runs.values():
                run()  # warms up
            rounds = [{label: _seconds(run) for label, run in runs.items()} for _ in range(ROUNDS)]
            plain = statistics.median(seconds["plain"] for seconds in rounds)
            line = f"  {name:8} {task.steps:3} steps, {threads} threads  {1000 * plain:7.2f} ms"
            for label in ("alone", "lockstep"):
                ratios = sorted(seconds["plain"] / seconds[label] for seconds in rounds)
                line += f"   {label} {statistics.median(ratios):.2f}"
                line += f" ({ratios[0]:.2f}–{ratios[-1]:.2f})"
            yield line
    yield from _measure_layers()
    yield from _measure_scans()


def _measure_layers() -> Iterator[str]:
    """Yield the times of layers of GRU and LSTM, forward and backward."""
    yield (
        "layers (steps, streams, states): milliseconds of PyTorch's layer in fp32; then how many "
        f"times as fast others are, median of {ROUNDS} rounds"
    )
    for shape in SHAPES:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            for name, plain_class in (("gru", nn.GRU), ("lstm", nn.LSTM)):
                times = _median_times(_list_layers(CELLS[name], plain_class, shape))
                plain = times.pop(plain_class.__name__)
                line = f"  {shape!s:15} {threads} threads  {plain_class.__name__:4} {plain:6.1f} ms"
                for label, milliseconds in times.items():
                    line += f"   {label} {plain / milliseconds:.2f}"
                yield line


def _list_layers(
    cell_class: type[Any], plain_class: type[Any], shape: tuple[int, int, int]
) -> dict[str, Run]:
    """Return runs of one layer: PyTorch's own, and the cell by both forms."""
    x = torch.randn(shape, requires_grad=True)
    plain = plain_class(shape[2], shape[2])
    cell = cell_class(shape[2], shape[2])
    initial_state = getattr(cell, "initial_state", None)
    state = torch.zeros(shape[1:]) if initial_state is None else initial_state(shape[1])
    inputs = [x, *cell.parameters()]
    own = partial(_differentiate, lambda *_: plain(x)[0], [x, *plain.parameters()])
    sequence = partial(_differentiate, lambda *_: cell.forward_sequence(x, state)[0], inputs)
    return {
        plain_class.__name__: own,
        "by steps": partial(_differentiate, lambda *_: _step(cell, x, state), inputs),
        "ours": sequence,
        f"{plain_class.__name__} in bf16": partial(_in_bf16, own),
        "ours in bf16": partial(_in_bf16, sequence),
    }


def _in_bf16(run: Run) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        run()


def _measure_scans() -> Iterator[str]:
    """Yield the times of linear scans and of a layer of minGRU, forward and backward."""
    yield "linear scans, fp32, 1 thread: milliseconds forward and backward"
    torch.set_num_threads(1)
    for shape in SCANS:
        inputs = [torch.rand(shape), torch.randn(shape), torch.randn(shape[1:])]
        scan = partial(_differentiate, linear_scan, [part.requires_grad_() for part in inputs])
        times = _median_times({"in C": scan, "loop in place": partial(_without_library, scan)})
        yield f"  {shape!s:15} {_format_times(times)}"
    cell = load_class(read_source(MIN_GRU, Path(__file__).parents[1], CellSource))
    runs = _list_layers(cell, nn.GRU, SHAPES[0])
    runs["loop in place"] = partial(_without_library, runs["ours"])
    yield f"  {SHAPES[0]!s:15} minGRU: {_format_times(_median_times(runs))}"


def _differentiate(compute: Callable[..., torch.Tensor], inputs: Sequence[torch.Tensor]) -> None:
    outputs = compute(*inputs)
    torch.autograd.grad(outputs, inputs, torch.ones_like(outputs))


def _step(cell: nn.Module, x: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
    outputs = []
    for inputs in x:
        y, state = cell(inputs, state)
        outputs.append(y)
    return torch.stack(outputs)


def _without_library(run: Run) -> None:
    with patch("rnn.scan.load_library", return_value=None):
        run()


def _median_times(runs: Mapping[str, Run]) -> dict[str, float]:
    """Return the median times of runs in milliseconds, in turn in each of several rounds."""
    times: dict[str, list[float]] = {label: [] for label in runs}
    for run in runs.values():
        run()  # warms up
    for _ in range(ROUNDS):
        for label, run in runs.items():
            start = time.perf_counter()
            run()
            times[label].append(1000 * (time.perf_counter() - start))
    return {label: statistics.median(found) for label, found in times.items()}


def _format_times(times: Mapping[str, float]) -> str:
    return "   ".join(f"{label} {milliseconds:.1f}" for label, milliseconds in times.items())


def _seconds(run: Run) -> float:
    """Return the time of one update of one network."""
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) / (NETWORKS * UPDATES)


def _train(task: SequenceTask, lockstep: int) -> None:
    """Train all networks, some of them together."""
    settings = TrainConfig(UPDATES * task.steps, STREAMS, 0, UPDATES * task.steps, 0.95, 0)
    for first in range(0, NETWORKS, lockstep):
        configs = [
            TrialConfig(
                NetworkConfig("gru", LAYERS, STATE_SIZE),
                bptt_steps=WHOLE_SEQUENCE,
                update_every=WHOLE_SEQUENCE,
                optimizer=OptimizerConfig(learning_rate=0.001 + (first + k) / 1e6),
            )
            for k in range(lockstep)
        ]
        loop = TrainLoop(build_network(configs, 0, "fp32", task.spec), task, settings)
        for _ in loop.train():
            pass


class _PlainNetwork(nn.Module):
    """The network as people write it: it predicts a class from the last output."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.embedding = nn.Linear(inputs, STATE_SIZE)
        self.layers = nn.GRU(STATE_SIZE, STATE_SIZE, LAYERS)
        self.head = nn.Linear(STATE_SIZE, classes)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs, _ = self.layers(self.embedding(inputs))
        return torch.as_tensor(self.head(outputs[-1]))


def _train_plainly(task: SequenceTask) -> None:
    for network in range(NETWORKS):
        module = _PlainNetwork(task.spec.inputs, task.spec.outputs)
        optimizer = torch.optim.Adam(module.parameters(), lr=0.001 + network / 1e6)
        for index in range(UPDATES):
            batch = task.train_batch(0, index, 0, STREAMS, 0)
            inputs, targets = torch.from_numpy(batch.inputs), torch.from_numpy(batch.targets[-1])
            optimizer.zero_grad()
            torch.autograd.backward(nn.functional.cross_entropy(module(inputs), targets))
            optimizer.step()
