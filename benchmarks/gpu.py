"""``python -m benchmarks gpu``: training on one GPU, in one table; PyTorch and numpy are enough.

On a processor everything but the numbers of a GPU is measured the same way, as a rehearsal.
"""

import gc
import itertools
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from unittest import mock

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.baseline_loop import PlainTraining
from benchmarks.matmul_limit import Shape, count_operations, matmul_shapes
from rnn.config import (
    STATE_SOURCES,
    GatedOptions,
    NetworkConfig,
    Precision,
    TrainingPrecision,
    TrialConfig,
)
from rnn.engines import Engine, build_network
from rnn.errors import DeviceError
from rnn.network import NamedTensors, draw_initial_weights
from rnn.stacked.network import NetworkStack
from rnn.tasks.corpus import load_corpus
from rnn.tasks.text import TextData
from rnn.training.devices import (
    check_precision,
    configure_matmul,
    is_out_of_memory,
    resolve_device,
)
from rnn.training.loop import TrainConfig, TrainLoop
from rnn.training.step import WARMUP_STEPS, GraphRunner, find_recorder

STAGE_ONE_STEPS = 10_000

CHECKED_STEPS = 16
"""Steps of the trainings whose results are compared; more for gradients through time."""

REMOVAL_STEP = 8

TOLERANCES: Mapping[Precision, float] = {"fp32": 1e-3, "tf32": 0.02, "bf16": 0.05}
"""Largest relative difference of a smoothed loss after the removal of other networks."""

_LAUNCHES = ("LaunchKernel", "GraphLaunch", "MemcpyAsync", "MemsetAsync")
"""Parts of the names of the calls by which a host starts work on a GPU."""

_MAX_BATCH = 128
"""Products of one shape that are timed in one batch, which bounds their memory."""

PLAIN_NETWORKS = 3
"""Networks of a shape that the plain loop trains, one after another."""

LIMIT_SECONDS = 440
"""Time after which nothing more is begun: the rest of the eight minutes is for what has begun."""

# ------------------------------------------------------------------ one training


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
    started = time.perf_counter()
    elapsed = 0.0
    steps = 0
    while elapsed < settings.seconds and steps < 900:
        training.step(WARMUP_STEPS + steps)  # it reads its loss, which waits for the device
        steps += 1
        elapsed = time.perf_counter() - started
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
    least = float("inf")
    end = time.perf_counter() + settings.seconds / 2
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
    first = loop.step
    started = time.perf_counter()
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


# ------------------------------------------------------------------ the table

COLUMNS = (
    f"{'networks':26} {'':5} {'K':>3} {'steps/s':>8} {'K·steps/s':>9} {'× plain':>8} {'limit':>6} "
    f"{'launches':>12} {'MiB':>7} {'record':>7} {'remove':>7}  check"
)

EXPLANATION = """\
  steps/s: steps a second of all K networks together; K·steps/s: of each, added; × plain: K·steps/s
  over the steps a second of the plain loop (fp32, one network after another); limit: time of the
  step's matrix products alone over the time of the step; launches: of a step that is run, and
  recorded as a graph; MiB: largest memory in use; record: seconds to record a step; remove: seconds
  to remove half of the networks from a recorded stack and to record the rest; check: whether two
  trainings are equal bit for bit, recorded and run steps too, and the networks that remain after a
  removal train as if nothing had happened"""


@dataclass(frozen=True)
class Scale:
    """Sizes of the benchmark.

    Attributes:
        precisions: precisions of matrix products.
        counts: numbers of networks in lockstep.
        sizes: layers and state size.
        stage_one: networks in lockstep of each size of stage one.
        baseline_size: layers and state size of baselines and gradient windows.
        windows: ``bptt_steps``.
        streams: B.
        log_every: steps between two log points.
        seconds: time for each speed.
    """

    precisions: tuple[TrainingPrecision, ...]
    counts: tuple[int, ...]
    sizes: tuple[tuple[int, int], ...]
    stage_one: dict[tuple[int, int], int]
    baseline_size: tuple[int, int]
    windows: tuple[int, ...]
    streams: int
    log_every: int
    seconds: float


GPU = Scale(
    precisions=("fp32", "tf32", "bf16"),
    counts=(1, 8, 48, 96),
    sizes=((2, 32), (2, 256), (3, 256)),
    stage_one={
        (layers, size): count for size, count in ((32, 48), (256, 96)) for layers in (1, 2, 3)
    },
    baseline_size=(2, 256),
    windows=(1, 16),
    streams=256,
    log_every=50,
    seconds=1.0,
)

REHEARSAL = replace(
    GPU,
    precisions=("fp32", "bf16"),
    counts=(1, 3, 6),
    sizes=((2, 8), (2, 16), (3, 16)),
    stage_one={(layers, size): 6 for size in (8, 16) for layers in (1, 2, 3)},
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
    data = TextData(load_corpus("stdlib").train)
    settings = Settings(device, data, scale.streams, scale.log_every, scale.seconds)
    yield _describe(device)
    yield EXPLANATION
    yield COLUMNS
    benchmark = Benchmark(scale, settings, Progress())
    yield from benchmark.gated()
    yield from benchmark.other_sizes()
    yield from benchmark.baselines_and_windows()
    yield from benchmark.estimates()
    yield f"{benchmark.failures or 'no'} checks failed; {time.perf_counter() - started:.0f} s"


class Progress:
    """Says on stderr what is measured."""

    def __init__(self) -> None:
        self._started = time.perf_counter()

    def say(self, what: str) -> None:
        """Print what is measured now, with the seconds since the start."""
        elapsed = time.perf_counter() - self._started
        print(f"{elapsed:4.0f} s of at most 480: {what}", file=sys.stderr, flush=True)

    @property
    def is_over(self) -> bool:
        """Whether no time is left to begin anything."""
        return time.perf_counter() - self._started > LIMIT_SECONDS


class Benchmark:
    """The rows of the table, which share weights and what is known of speeds.

    Args:
        scale: sizes.
        settings: see :class:`Settings`.
        progress: where to say what is measured.

    Attributes:
        failures: number of rows with a failed check.
    """

    def __init__(self, scale: Scale, settings: Settings, progress: Progress) -> None:
        self._scale = scale
        self._settings = settings
        self._progress = progress
        self._is_gpu = settings.device.type == "cuda"
        self.failures = 0
        self._weights: dict[TrialConfig, NamedTensors] = {}
        self._speeds: dict[tuple[TrainingPrecision, tuple[int, int], int], float] = {}

    def gated(self) -> Iterator[str]:
        """Yield a row for each size, precision and number of networks."""
        scale = self._scale
        for size in scale.sizes:
            configs = mixed_networks(*size)
            name = f"{size[0]}×{size[1]} gated"
            self._progress.say(f"{name}, plain loop")
            plain = statistics.mean(
                measure_plain_loop(config, self._settings) for config in configs[:PLAIN_NETWORKS]
            )
            head = f"{name + ', plain loop':26} {'fp32':5} {1:3}"
            yield f"{head} {plain:8,.0f} {plain:9,.0f} {1:8.2f}"
            self._weights = {}
            for precision, count in itertools.product(scale.precisions, scale.counts):
                measured = yield from self._row(name, precision, configs[:count], plain)
                if measured is not None:
                    self._speeds[precision, size, count] = measured.steps_per_second

    def other_sizes(self) -> Iterator[str]:
        """Yield rows of the other sizes of stage one."""
        scale = self._scale
        for size, count in scale.stage_one.items():
            if size in scale.sizes and count in scale.counts:
                continue
            configs = mixed_networks(*size)[:count]
            self._weights = {}
            for precision in scale.precisions:
                name = f"{size[0]}×{size[1]} gated"
                measured = yield from self._row(name, precision, configs, None)
                if measured is not None:
                    self._speeds[precision, size, count] = measured.steps_per_second

    def baselines_and_windows(self) -> Iterator[str]:
        """Yield rows of baseline cells, and of gradients through several steps."""
        scale = self._scale
        layers, n = scale.baseline_size
        gated = mixed_networks(layers, n)[0]
        architectures: list[tuple[str, NetworkConfig]] = [
            ("gated", gated),
            ("GRU", NetworkConfig("gru", layers, n)),
            ("LSTM", NetworkConfig("lstm", layers, n)),
        ]
        self._weights = {}
        for (name, architecture), window, precision in itertools.product(
            architectures, scale.windows, scale.precisions
        ):
            if name == "gated" and window == 1:
                continue  # above
            row = f"{layers}×{n} {name}, bptt {window}"
            yield from self._row(row, precision, [architecture], None, window)

    def estimates(self) -> Iterator[str]:
        """Yield the estimated time of stage one, by precision."""
        scale = self._scale
        networks = sum(scale.stage_one.values())
        for precision in scale.precisions:
            seconds = {
                size: 1 / speed
                for size, count in scale.stage_one.items()
                if (speed := self._speeds.get((precision, size, count)))
            }
            estimate = estimate_seconds(seconds, list(scale.stage_one))
            if estimate is None:
                yield f"stage one, {networks} networks, {precision}: not enough was measured"
                continue
            missing = len(scale.stage_one) - len(seconds)
            note = f" ({missing} sizes interpolated)" if missing else ""
            goal = (
                "goal: under 3 on an H100, 10 on an RTX 3090" if self._is_gpu else "of a rehearsal"
            )
            yield (
                f"stage one, {networks} networks of {STAGE_ONE_STEPS:,} steps, {precision}: "
                f"{estimate * STAGE_ONE_STEPS / 60:.1f} minutes of training{note}; {goal}"
            )

    def _row(
        self,
        name: str,
        precision: TrainingPrecision,
        architectures: Sequence[NetworkConfig],
        plain: float | None,
        window: int = 1,
    ) -> Generator[str, None, Measurement | None]:
        """Yield a row of the table, and return what was measured."""
        settings = self._settings
        count = len(architectures)
        head = f"{name:26} {precision:5} {count:3}"
        self._progress.say(f"{name}, {precision}, {count} in lockstep")
        if self._progress.is_over:
            yield f"{head}  skipped: no time left"
            return None
        try:
            check_precision(precision, settings.device)
            measured, limit = self._measure(precision, architectures, window)
        except DeviceError as error:
            yield f"{head}  skipped: {error}"
            return None
        except RuntimeError as error:  # a failure says something too; the other rows follow
            reason = "out of memory" if is_out_of_memory(error) else str(error).partition("\n")[0]
            self.failures += not is_out_of_memory(error)
            yield f"{head}  failed: {reason}"
            return None
        finally:
            free_memory(settings.device)
        self.failures += bool(measured.differences)
        yield f"{head} {format_row(measured, count, plain, limit)}"
        return measured

    def _measure(
        self,
        precision: TrainingPrecision,
        architectures: Sequence[NetworkConfig],
        window: int,
    ) -> tuple[Measurement, float]:
        """Return what was measured of a training, and its share of the limit."""
        settings = self._settings
        configs = [TrialConfig(config, bptt_steps=window) for config in architectures]
        for config in configs:
            if config not in self._weights:
                drawn = draw_initial_weights(config, 0)
                self._weights[config] = {name: tensor.float() for name, tensor in drawn.items()}
        network = build(configs, settings, precision, self._weights)
        shapes = matmul_shapes(TrainLoop(network, settings.data, settings.train_config()))
        measured = measure_training(network, settings, precision)
        del network
        free_memory(settings.device)
        seconds = measure_products(shapes, settings, precision)
        return measured, seconds * measured.steps_per_second


def estimate_seconds(
    measured: dict[tuple[int, int], float], wanted: Sequence[tuple[int, int]]
) -> float | None:
    """Return the seconds that a step of each size takes, added up; None if too little is known.

    Args:
        measured: seconds of a step, by layers and state size.
        wanted: sizes, of which some may not have been measured: a step takes as long for each layer
            as in the sizes of the same state that were.
    """
    total = 0.0
    for layers, n in wanted:
        if (known := measured.get((layers, n))) is None:
            rates = [seconds / of for (of, size), seconds in measured.items() if size == n]
            if not rates:
                return None
            known = layers * statistics.mean(rates)
        total += known
    return total


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


def format_row(measured: Measurement, count: int, plain: float | None, limit: float) -> str:
    """Format what was measured of a training."""

    def number(value: float | None, form: str) -> str:
        return "–" if value is None else format(value, form)

    speed = measured.steps_per_second
    relative = None if plain is None else count * speed / plain
    mebibytes = None if measured.peak_bytes is None else measured.peak_bytes / 2**20
    launches = number(measured.run_launches, ",")
    if measured.launches is not None:
        launches += f" → {measured.launches}"
    check = "differs: " + ", ".join(measured.differences) if measured.differences else "ok"
    return (
        f"{speed:8,.0f} {count * speed:9,.0f} {number(relative, '8.2f'):>8} {limit:6.2f} "
        f"{launches:>12} {number(mebibytes, '7,.0f'):>7} "
        f"{number(measured.record_seconds, '7.2f'):>7} "
        f"{number(measured.removal_seconds, '7.2f'):>7}  {check}"
    )


def free_memory(device: torch.device) -> None:
    """Free what no training uses any more, and forget how much was in use."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def _describe(device: torch.device) -> str:
    if device.type != "cuda":
        return "rehearsal on the processor with small networks: no number is that of a GPU"
    properties = torch.cuda.get_device_properties(device)
    return (
        f"{properties.name}, compute capability {properties.major}.{properties.minor}, "
        f"{properties.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
    )
