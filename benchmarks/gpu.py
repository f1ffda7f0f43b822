"""``python -m benchmarks gpu``: training on one GPU, in one table; PyTorch and numpy are enough.

On a processor everything but the numbers of a GPU is measured the same way, as a rehearsal. Whether
trainings are equal bit for bit is tested by ``pytest -m gpu tests/rnn``.
"""

import gc
import itertools
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.baseline_loop import PlainTraining
from benchmarks.matmul_limit import Shape, count_operations, matmul_shapes
from rnn.config import STATE_SOURCES, GatedOptions, NetworkConfig, TrainingPrecision, TrialConfig
from rnn.engines import Engine, build_network
from rnn.errors import DeviceError, is_out_of_memory
from rnn.stacked.engine import NetworkStack
from rnn.tasks.corpus import load_corpus
from rnn.tasks.text import TextData
from rnn.training.devices import check_precision, configure_matmul, resolve_device
from rnn.training.loop import TrainConfig, TrainLoop
from rnn.training.step import WARMUP_STEPS, GraphRunner, find_recorder

Size = tuple[int, int]
"""Layers and state size."""

PLAIN_NETWORKS = 3
"""Networks of a shape that the plain loop trains, one after another."""

_LAUNCHES = ("LaunchKernel", "GraphLaunch", "MemcpyAsync", "MemsetAsync")
"""Parts of the names of the calls by which a host starts work on a GPU."""

_MAX_BATCH = 128
"""Products of one shape that are timed in one batch, which bounds their memory."""

COLUMNS = (
    f"{'networks':26} {'':5} {'K':>3} {'steps/s':>8} {'K·steps/s':>9} {'× plain':>8} {'limit':>6} "
    f"{'launches':>12} {'MiB':>7}"
)

EXPLANATION = """\
  steps/s: steps a second of all K networks together; K·steps/s: of each, added; × plain: K·steps/s
  over the steps a second of the plain loop (fp32, one network after another); limit: time of the
  step's matrix products alone over the time of the step; launches: of a step that is run, and
  recorded as a graph; MiB: largest memory in use"""


@dataclass(frozen=True)
class Scale:
    """Sizes of the benchmark.

    Attributes:
        counts: numbers of networks in lockstep.
        sizes: sizes that are measured with each of these numbers.
        baseline_size: size of baselines and gradient windows.
        log_every: steps between two log points, at which the host waits for the device.
        seconds: time for each measurement of a speed.
    """

    precisions: tuple[TrainingPrecision, ...]
    counts: tuple[int, ...]
    sizes: tuple[Size, ...]
    baseline_size: Size
    windows: tuple[int, ...]
    streams: int
    log_every: int
    seconds: float


GPU = Scale(
    precisions=("fp32", "tf32", "bf16"),
    counts=(1, 8, 48, 96),
    sizes=((2, 32), (2, 256), (3, 256)),
    baseline_size=(2, 256),
    windows=(1, 16),
    streams=256,
    log_every=50,
    seconds=1.0,
)

REHEARSAL = Scale(
    precisions=("fp32", "bf16"),
    counts=(1, 3, 6),
    sizes=((2, 8), (2, 16), (3, 16)),
    baseline_size=(2, 16),
    windows=(1, 4),
    streams=8,
    log_every=5,
    seconds=0.1,
)
"""What a processor runs through in a minute."""


def find_device(name: str) -> str:
    """Return why a device cannot be measured, or ""."""
    try:
        resolve_device(name)
    except DeviceError as error:
        if name == "cuda":
            return (
                "no GPU: PyTorch finds none on this machine; --device cpu rehearses the benchmark "
                "with small networks"
            )
        return str(error)
    return ""


def measure(device_name: str = "cuda") -> Iterator[str]:
    """Yield the table, line by line, as it is measured."""
    started = time.perf_counter()
    device = resolve_device(device_name)
    scale = GPU
    if device.type != "cuda":
        scale = REHEARSAL
        torch.set_num_threads(1)
    yield _describe(device)
    yield EXPLANATION
    yield COLUMNS
    benchmark = Benchmark(device, scale)
    yield from benchmark.gated()
    yield from benchmark.baselines_and_windows()
    yield f"{benchmark.failures or 'no'} rows failed; {time.perf_counter() - started:.0f} s"


def _describe(device: torch.device) -> str:
    if device.type != "cuda":
        return "rehearsal on the processor with small networks: no number is that of a GPU"
    properties = torch.cuda.get_device_properties(device)
    return (
        f"{properties.name}, compute capability {properties.major}.{properties.minor}, "
        f"{properties.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
    )


# ------------------------------------------------------------------ the table


class Benchmark:
    """The rows of the table.

    Args:
        device: device to measure.
        scale: sizes.

    Attributes:
        failures: number of rows that failed for another reason than a lack of memory.
    """

    def __init__(self, device: torch.device, scale: Scale) -> None:
        self._device = device
        self._scale = scale
        self._data = TextData(load_corpus("stdlib").train)
        # A training without an end, of sequences as in stage one.
        self._config = TrainConfig(10**9, scale.streams, 1000, scale.log_every, 0.95, 0)
        self.failures = 0

    def gated(self) -> Iterator[str]:
        """Yield a row for each size, precision and number of networks."""
        for size in self._scale.sizes:
            networks = mixed_networks(*size)
            plain = statistics.mean(map(self._measure_plain_loop, networks[:PLAIN_NETWORKS]))
            head = f"{f'{size[0]}×{size[1]} gated, plain loop':26} {'fp32':5} {1:3}"
            yield f"{head} {plain:8,.0f} {plain:9,.0f} {1:8.2f}"
            for precision, count in itertools.product(self._scale.precisions, self._scale.counts):
                configs = [TrialConfig(network) for network in networks[:count]]
                yield from self._row(f"{size[0]}×{size[1]} gated", precision, configs, plain)

    def baselines_and_windows(self) -> Iterator[str]:
        """Yield rows of baseline cells, and of gradients through several steps."""
        layers, n = self._scale.baseline_size
        architectures = {
            "gated": mixed_networks(layers, n)[0],
            "GRU": NetworkConfig("gru", layers, n),
            "LSTM": NetworkConfig("lstm", layers, n),
        }
        for (name, architecture), window, precision in itertools.product(
            architectures.items(), self._scale.windows, self._scale.precisions
        ):
            if name != "gated" or window > 1:  # others are above
                config = TrialConfig(architecture, bptt_steps=window)
                yield from self._row(f"{layers}×{n} {name}, bptt {window}", precision, [config])

    def _row(
        self,
        name: str,
        precision: TrainingPrecision,
        configs: Sequence[TrialConfig],
        plain: float | None = None,
    ) -> Iterator[str]:
        """Yield a row of the table."""
        head = f"{name:26} {precision:5} {len(configs):3}"
        try:
            check_precision(precision, self._device)
            measured = self._measure(configs, precision)
        except DeviceError as error:
            yield f"{head}  skipped: {error}"
            return
        except RuntimeError as error:  # a failure says something too; the other rows follow
            reason = "out of memory" if is_out_of_memory(error) else str(error).partition("\n")[0]
            self.failures += not is_out_of_memory(error)
            yield f"{head}  failed: {reason}"
            return
        finally:
            _free_memory(self._device)
        yield f"{head} {_format_row(measured, len(configs), plain)}"

    def _measure(
        self, configs: Sequence[TrialConfig], precision: TrainingPrecision
    ) -> "Measurement":
        """Measure the training of networks, and its matrix products alone."""
        loop = TrainLoop(_build(configs, precision, self._device), self._data, self._config)
        shapes = matmul_shapes(loop)
        measured = _measure_steps(loop, self._scale.seconds)
        del loop
        _free_memory(self._device)
        seconds = measure_products(shapes, precision, self._device, self._scale.seconds / 2)
        measured.limit = seconds * measured.steps_per_second
        return measured

    def _measure_plain_loop(self, config: NetworkConfig) -> float:
        """Return the steps per second of the plain loop in float32, as PyTorch computes."""
        if self._device.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = False
        training = PlainTraining(config, self._data.train, self._config, device=self._device)
        training.begin_sequence(0)
        for t in range(WARMUP_STEPS):
            training.step(t)
        _synchronize(self._device)
        started = time.perf_counter()
        elapsed = 0.0
        steps = 0
        while elapsed < self._scale.seconds and steps < 900:
            training.step(WARMUP_STEPS + steps)  # it reads its loss, which waits for the device
            steps += 1
            elapsed = time.perf_counter() - started
        return steps / elapsed


def mixed_networks(layers: int, state_size: int) -> list[NetworkConfig]:
    """Return all 96 networks of a size in an order that mixes their switches.

    A search's best one comes first, and small networks without the residual, which stage one does
    not have, come last.
    """
    best = GatedOptions(False, True, False, True, True, "new").network(layers, state_size)
    networks = [
        GatedOptions(i, f, o, s, r, source).network(layers, state_size)
        for i, f, o, s, r in itertools.product((False, True), repeat=5)
        for source in STATE_SOURCES
    ]
    networks.remove(best)
    random.Random(0).shuffle(networks)
    if state_size < 256:
        networks.sort(key=lambda config: not config.gated.residual)
    return [best, *networks]


# ------------------------------------------------------------------ one training


@dataclass
class Measurement:
    """What was measured of one training; None for what a processor does not have.

    Attributes:
        steps_per_second: steps a second, all networks together.
        run_launches: launches of a step that is run.
        launches: launches of a step that is recorded, if it is.
        peak_bytes: largest memory in use.
        limit: time of the matrix products alone relative to that of a step.
    """

    steps_per_second: float
    run_launches: int | None
    launches: int | None
    peak_bytes: int | None
    limit: float = 0.0


def _build(
    configs: Sequence[TrialConfig], precision: TrainingPrecision, device: torch.device
) -> Engine:
    """Build networks; gated ones as on a GPU, whatever the device."""
    if configs[0].architecture.is_gated and configs[0].bptt_steps == 1:
        return NetworkStack(configs, 0, precision, device=device, static_graph=True)
    return build_network(configs, 0, precision, device=device)


def _measure_steps(loop: TrainLoop, seconds: float) -> Measurement:
    device = loop.stack.device
    # Gradients reach as far back as they ever do from the W-th step on.
    window, _ = next(islice(loop._windows(), loop.configs[0].bptt_steps - 1, None))

    def step() -> None:
        loop._train_step.step(window)

    step()
    run_launches = _count_launches(step, device)
    for _ in range(WARMUP_STEPS - 1):
        step()
    runner = loop._train_step.graph_runner
    is_recorded = runner is not None and runner.is_recorded
    return Measurement(
        steps_per_second=_measure_speed(loop, seconds),
        run_launches=run_launches,
        launches=_count_launches(step, device) if is_recorded else None,
        peak_bytes=torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
    )


def _measure_speed(loop: TrainLoop, seconds: float) -> float:
    points = loop.train()
    next(points)  # a log point waits for the device
    first = loop.step
    started = time.perf_counter()
    elapsed = 0.0
    while elapsed < seconds:
        next(points)
        elapsed = time.perf_counter() - started
    points.close()  # type: ignore[attr-defined]
    return (loop.step - first) / elapsed


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


def measure_products(
    shapes: Mapping[Shape, int], precision: TrainingPrecision, device: torch.device, seconds: float
) -> float:
    """Return the seconds that the products of a step take alone, recorded as one graph."""
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
    _synchronize(device)
    least = float("inf")
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or least == float("inf"):
        started = time.perf_counter()
        for _ in range(5):
            run()
        _synchronize(device)
        least = min(least, (time.perf_counter() - started) / 5)
    return least


def _format_row(measured: Measurement, count: int, plain: float | None) -> str:
    """Format what was measured of a training."""

    def number(value: float | None, form: str) -> str:
        return "–" if value is None else format(value, form)

    speed = measured.steps_per_second
    relative = None if plain is None else count * speed / plain
    mebibytes = None if measured.peak_bytes is None else measured.peak_bytes / 2**20
    launches = number(measured.run_launches, ",")
    if measured.launches is not None:
        launches += f" → {measured.launches}"
    return (
        f"{speed:8,.0f} {count * speed:9,.0f} {number(relative, '8.2f'):>8} "
        f"{measured.limit:6.2f} {launches:>12} {number(mebibytes, '7,.0f'):>7}"
    )


def _synchronize(device: torch.device) -> None:
    """Wait for all work of a device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _free_memory(device: torch.device) -> None:
    """Free what no training uses any more, and forget how much was in use."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
