"""Speed on labelled sequences, relative to the loop that people write: ``nn.GRU`` and ``Adam``.

Then the speed of the linear scan, of minGRU, whose sequence form is a scan, and of layers of GRU
and LSTM.
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

from rnn.cells import GRUCell, LSTMCell
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

SCANS = ((1024, 16, 64), (1024, 8, 16), (256, 64, 128))
"""Steps, streams and states of the linear scans; minGRU has the first of them."""

RECURRENCES = ((1024, 16, 64), (40, 64, 64), (100, 64, 128), (100, 64, 256))
"""Steps, streams and states of the layers of GRU and LSTM; the last in bfloat16 as well."""

MIN_GRU = "examples/cells/min_gru.py:MinGRU"


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
            runs: dict[str, Callable[[], None]] = {
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
    yield from _measure_scans()
    yield from _measure_recurrences()


def _measure_scans() -> Iterator[str]:
    """Yield the times of linear scans and of a layer of minGRU, forward and backward."""
    yield "linear scans, fp32, 1 thread: milliseconds forward and backward"
    torch.set_num_threads(1)
    for shape in SCANS:
        inputs = [torch.rand(shape), torch.randn(shape), torch.randn(shape[1:])]
        scan = partial(_differentiate, linear_scan, [part.requires_grad_() for part in inputs])
        times = _milliseconds({"in C": scan, "loop in place": partial(_without_library, scan)})
        yield f"  {shape!s:15} {times}"
    x = torch.randn(SCANS[0])
    size = x.shape[2]
    plain = nn.GRU(size, size)
    cell = load_class(read_source(MIN_GRU, Path(__file__).parents[1], CellSource))(size, size)
    state = torch.zeros(x.shape[1:])
    weights = list(cell.parameters())
    sequence = partial(_differentiate, lambda *_: cell.forward_sequence(x, state)[0], weights)
    runs = {
        "nn.GRU": partial(_differentiate, lambda *_: plain(x)[0], list(plain.parameters())),
        "minGRU by steps": partial(_differentiate, lambda *_: _step(cell, x, state), weights),
        "its sequence form in C": sequence,
        "loop in place": partial(_without_library, sequence),
    }
    yield f"  {SCANS[0]!s:15} {_milliseconds(runs)}"


def _measure_recurrences() -> Iterator[str]:
    """Yield the times of layers of GRU and LSTM, forward and backward."""
    yield "layers of GRU and LSTM: milliseconds forward and backward"
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for shape in RECURRENCES:
            for precision in ("fp32", "bf16") if shape == RECURRENCES[-1] else ("fp32",):
                with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                    times = _milliseconds(_recurrences(torch.randn(shape)))
                yield f"  {shape!s:15} {threads} threads {precision} {times}"


def _recurrences(x: torch.Tensor) -> dict[str, Callable[[], None]]:
    """Return functions that read inputs (T, B, n) by layers of PyTorch and by ours."""
    n = x.shape[2]
    h = torch.zeros(x.shape[1:])
    gru = GRUCell(n, n)
    lstm = LSTMCell(n, n)
    plain_gru = nn.GRU(n, n)
    plain_lstm = nn.LSTM(n, n)
    reads: dict[str, tuple[nn.Module, Callable[..., torch.Tensor]]] = {
        "nn.GRU": (plain_gru, lambda x, *_: plain_gru(x)[0]),
        "GRU by steps": (gru, lambda x, *_: _step(gru, x, h)),
        "GRU": (gru, lambda x, *_: gru.forward_sequence(x, h)[0]),
        "nn.LSTM": (plain_lstm, lambda x, *_: plain_lstm(x)[0]),
        "LSTM by steps": (lstm, lambda x, *_: _step(lstm, x, (h, h))),
        "LSTM": (lstm, lambda x, *_: lstm.forward_sequence(x, (h, h))[0]),
    }
    x.requires_grad_()
    return {
        label: partial(_differentiate, read, [x, *module.parameters()])
        for label, (module, read) in reads.items()
    }


def _differentiate(compute: Callable[..., torch.Tensor], inputs: Sequence[torch.Tensor]) -> None:
    outputs = compute(*inputs)
    torch.autograd.grad(outputs, inputs, torch.ones_like(outputs))


def _step(cell: nn.Module, x: torch.Tensor, state: Any) -> torch.Tensor:
    outputs = []
    for inputs in x:
        y, state = cell(inputs, state)
        outputs.append(y)
    return torch.stack(outputs)


def _without_library(run: Callable[[], None]) -> None:
    with patch("rnn.scan.load_library", return_value=None):
        run()


def _milliseconds(runs: Mapping[str, Callable[[], None]]) -> str:
    """Return the median times of runs, in turn in each of several rounds."""
    times: dict[str, list[float]] = {label: [] for label in runs}
    for run in runs.values():
        run()  # warms up
    for _ in range(ROUNDS):
        for label, run in runs.items():
            start = time.perf_counter()
            run()
            times[label].append(1000 * (time.perf_counter() - start))
    return "   ".join(f"{label} {statistics.median(found):.1f}" for label, found in times.items())


def _seconds(run: Callable[[], None]) -> float:
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
