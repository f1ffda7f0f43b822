"""Measurements of one training on a GPU: speed, launches, memory, repetition and removal.

On a processor everything but the numbers of a GPU is measured the same way, as a rehearsal.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from unittest import mock

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.baseline_loop import PlainTraining
from benchmarks.matmul_limit import Shape, count_operations
from rnn.config import NetworkConfig, Precision, TrialConfig
from rnn.engines import Engine, build_network
from rnn.network import NamedTensors
from rnn.stacked.network import NetworkStack
from rnn.tasks.corpus import TextData
from rnn.training.devices import configure_matmul
from rnn.training.loop import TrainConfig, TrainLoop
from rnn.training.step import WARMUP_STEPS, GraphRunner, find_recorder

CHECKED_STEPS = 16
"""Steps of the trainings whose results are compared; more for gradients through time."""

REMOVAL_STEP = 8

TOLERANCES: Mapping[Precision, float] = {"fp32": 1e-3, "tf32": 0.02, "bf16": 0.05}
"""Largest relative difference of a smoothed loss after the removal of other networks."""

_LAUNCHES = ("LaunchKernel", "GraphLaunch", "MemcpyAsync", "MemsetAsync")
"""Parts of the names of the calls by which a host starts work on a GPU."""

_MAX_BATCH = 128
"""Products of one shape that are timed in one batch, which bounds their memory."""


@dataclass(frozen=True)
class Settings:
    """What all measurements have in common.

    Attributes:
        device: device to measure.
        data: training text.
        streams: B.
        log_every: steps between two log points, at which the host waits for the device.
        seconds: time for each measurement of a speed.
    """

    device: torch.device
    data: TextData
    streams: int
    log_every: int
    seconds: float

    def train_config(self, log_every: int | None = None) -> TrainConfig:
        """Return the config of a training without an end, of sequences as in stage one."""
        return TrainConfig(10**9, self.streams, 1000, log_every or self.log_every, 0.95, 0)

    def synchronize(self) -> None:
        """Wait for all work of the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


@dataclass
class Measurement:
    """What was measured of one training; None for what a processor does not have.

    Attributes:
        steps_per_second: steps a second, all networks together.
        run_launches: launches of a step that is run.
        launches: launches of a step that is recorded, if it is.
        peak_bytes: largest memory in use.
        record_seconds: time to record a step, and to replay it once.
        removal_seconds: time to remove half of the networks and to record the rest again.
        differences: what should be equal and is not.
    """

    steps_per_second: float
    run_launches: int | None
    launches: int | None
    peak_bytes: int | None
    record_seconds: float | None
    removal_seconds: float | None = None
    differences: list[str] = field(default_factory=list)


def build(
    configs: Sequence[TrialConfig],
    settings: Settings,
    precision: Precision,
    weights: Mapping[TrialConfig, NamedTensors] | None = None,
) -> Engine:
    """Build networks; gated ones as on a GPU, whatever the device."""
    device = settings.device
    if configs[0].architecture.is_gated and configs[0].bptt_steps == 1:
        return NetworkStack(
            configs, 0, precision, device=device, weights=weights, static_graph=True
        )
    return build_network(configs, 0, precision, device=device, weights=weights)


def measure_training(network: Engine, settings: Settings, precision: Precision) -> Measurement:
    """Measure the training of networks, and what it repeats.

    Args:
        network: the networks, untrained.
        settings: see :class:`Settings`.
        precision: their precision.
    """
    measured = _measure_steps(network, settings)
    initial = network.parameters.values.clone()
    measured.differences, losses = _check_repetition(network, settings, initial)
    is_recordable = settings.device.type == "cuda" and network.static_graph
    if is_recordable and measured.launches is None:
        measured.differences.append("step was not recorded")
    if len(network.configs) > 1:
        measured.removal_seconds, removal = _check_removal(
            network, settings, initial, losses, precision
        )
        measured.differences += removal
    return measured


def measure_plain_loop(config: NetworkConfig, settings: Settings) -> float:
    """Return the steps per second of the plain loop in float32, as PyTorch computes by default."""
    if settings.device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = False
    training = PlainTraining(
        config, settings.data.tokens, settings.train_config(), device=settings.device
    )
    training.begin_sequence(0)
    for t in range(WARMUP_STEPS):
        training.step(t)
    settings.synchronize()
    started, steps = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - started) < settings.seconds and steps < 900:
        training.step(WARMUP_STEPS + steps)  # it reads its loss, which waits for the device
        steps += 1
    return steps / elapsed


def measure_products(
    shapes: Mapping[Shape, int], settings: Settings, precision: Precision
) -> float:
    """Return the seconds that the products of a step take alone, recorded as one graph."""
    device = settings.device
    configure_matmul(precision, device)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    batches: list[tuple[Tensor, Tensor, Tensor]] = []
    for (i, j, k), count in shapes.items():
        for first in range(0, count, _MAX_BATCH):
            batch = min(_MAX_BATCH, count - first)
            a = torch.rand(batch, i, j, device=device).to(dtype)
            b = torch.rand(batch, j, k, device=device).to(dtype)
            batches.append((a, b, torch.empty(batch, i, k, dtype=dtype, device=device)))

    def multiply() -> None:
        for a, b, out in batches:
            torch.bmm(a, b, out=out)

    recorder = find_recorder(device)
    runner = None if recorder is None else GraphRunner(recorder)

    def run() -> None:
        multiply() if runner is None else runner.run(multiply)

    for _ in range(WARMUP_STEPS + 2):
        run()
    settings.synchronize()
    least, end = float("inf"), time.perf_counter() + settings.seconds / 2
    while time.perf_counter() < end or least == float("inf"):
        started = time.perf_counter()
        for _ in range(5):
            run()
        settings.synchronize()
        least = min(least, (time.perf_counter() - started) / 5)
    return least


def _measure_steps(network: Engine, settings: Settings) -> Measurement:
    device = settings.device
    loop = TrainLoop(network, settings.data, settings.train_config())
    # Gradients reach as far back as they ever do from the W-th step on.
    window, _ = next(islice(loop._windows(), network.configs[0].bptt_steps - 1, None))

    def step() -> None:
        loop._train_step.step(window)

    step()
    run_launches = _count_launches(step, device)
    for _ in range(WARMUP_STEPS - 2):
        step()
    settings.synchronize()
    started = time.perf_counter()
    step()
    settings.synchronize()
    record_seconds = time.perf_counter() - started
    runner = loop._train_step.graph_runner
    is_recorded = runner is not None and runner.is_recorded
    launches = _count_launches(step, device) if is_recorded else None
    speed = _measure_speed(loop, settings)
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return Measurement(speed, run_launches, launches, peak, record_seconds if is_recorded else None)


def _measure_speed(loop: TrainLoop, settings: Settings) -> float:
    points = loop.train()
    next(points)  # a log point waits for the device
    first, started = loop.step, time.perf_counter()
    elapsed = 0.0
    while elapsed < settings.seconds:
        next(points)
        elapsed = time.perf_counter() - started
    points.close()  # type: ignore[attr-defined]
    return (loop.step - first) / elapsed


def _check_repetition(
    network: Engine, settings: Settings, initial: Tensor
) -> tuple[list[str], dict[TrialConfig, float]]:
    """Return what is not equal bit for bit, and the losses of the networks."""

    def result() -> tuple[Tensor, dict[TrialConfig, float]]:
        loop = _restart(network, settings, initial)
        _train(loop, CHECKED_STEPS + network.configs[0].bptt_steps - 1)
        return network.parameters.values.clone(), _losses(loop)

    differences = []
    values, losses = result()
    if not torch.equal(values, result()[0]):
        differences.append("repetition")
    with mock.patch("rnn.training.step.find_recorder", return_value=None):
        run, _ = result()
    if not torch.equal(values, run):
        largest = float((values - run).abs().max())
        differences.append(f"recorded and run by {largest:.1e}")
    return differences, losses


def _check_removal(
    network: Engine,
    settings: Settings,
    initial: Tensor,
    expected: Mapping[TrialConfig, float],
    precision: Precision,
) -> tuple[float, list[str]]:
    """Remove every other network; return the seconds, and by how much the others then differ."""
    loop = _restart(network, settings, initial)
    _train(loop, REMOVAL_STEP)
    settings.synchronize()
    started = time.perf_counter()
    loop.remove_configs(loop.configs[::2])
    _train(loop, WARMUP_STEPS + 1)
    settings.synchronize()
    seconds = time.perf_counter() - started
    _train(loop, CHECKED_STEPS - REMOVAL_STEP - WARMUP_STEPS - 1)
    largest = max(abs(loss / expected[config] - 1) for config, loss in _losses(loop).items())
    is_close = largest <= TOLERANCES[precision]
    return seconds, [] if is_close else [f"after a removal by {largest:.1e}"]


def _restart(network: Engine, settings: Settings, initial: Tensor) -> TrainLoop:
    network.parameters.load_flat(initial)
    return TrainLoop(network, settings.data, settings.train_config(1))


def _train(loop: TrainLoop, steps: int) -> None:
    """Train a number of steps, with a log point at each."""
    points = loop.train()
    for _ in range(steps):
        next(points)
    points.close()  # type: ignore[attr-defined]


def _losses(loop: TrainLoop) -> dict[TrialConfig, float]:
    return {
        config: curve[loop.step] for config, curve in zip(loop.configs, loop.curves, strict=True)
    }


def _count_launches(work: Callable[[], None], device: torch.device) -> int | None:
    """Count what the host launches on a GPU; on a processor, operations.

    None if the profiler does not reach the GPU's driver.
    """
    if device.type != "cuda":
        return count_operations(work)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        work()
        torch.cuda.synchronize(device)
    calls = Counter(event.name for event in profiler.events())
    launches = sum(
        count for name, count in calls.items() if any(part in name for part in _LAUNCHES)
    )
    return launches or None
