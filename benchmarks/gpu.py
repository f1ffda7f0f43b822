"""``python -m benchmarks gpu``: training on one GPU, in one table; PyTorch and numpy are enough."""

import gc
import itertools
import random
import statistics
import sys
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch

from benchmarks.gpu_training import (
    Measurement,
    Settings,
    build,
    measure_plain_loop,
    measure_products,
    measure_training,
)
from benchmarks.matmul_limit import matmul_shapes
from rnn.config import (
    STATE_SOURCES,
    GatedOptions,
    NetworkConfig,
    TrainingPrecision,
    TrialConfig,
)
from rnn.errors import DeviceError
from rnn.network import NamedTensors, draw_initial_weights
from rnn.tasks.corpus import TextData, load_corpus
from rnn.training.devices import check_precision, is_out_of_memory, resolve_device
from rnn.training.loop import TrainLoop

STAGE_ONE_STEPS = 10_000

PLAIN_NETWORKS = 3
"""Networks of a shape that the plain loop trains, one after another."""


LIMIT_SECONDS = 440
"""Time after which nothing more is begun: the rest of the eight minutes is for what has begun."""

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
    with Progress() as progress:
        benchmark = Benchmark(scale, settings, progress)
        yield from benchmark.gated()
        yield from benchmark.other_sizes()
        yield from benchmark.baselines_and_windows()
        yield from benchmark.estimates()
    yield f"{benchmark.failures or 'no'} checks failed; {time.perf_counter() - started:.0f} s"


class Progress:
    """Says on stderr once a second what is measured."""

    def __init__(self) -> None:
        self.what = "starting"
        self.started = time.perf_counter()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._report, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    @property
    def is_over(self) -> bool:
        """Whether no time is left to begin anything."""
        return time.perf_counter() - self.started > LIMIT_SECONDS

    def _report(self) -> None:
        while not self._end.wait(1):
            elapsed = time.perf_counter() - self.started
            print(f"{elapsed:4.0f} s of at most 480: {self.what}", file=sys.stderr, flush=True)


class Benchmark:
    """The rows of the table, which share weights and what is known of speeds.

    Args:
        scale: sizes.
        settings: see :class:`benchmarks.gpu_training.Settings`.
        progress: where to say what is measured.

    Attributes:
        failures: number of rows with a failed check.
    """

    def __init__(self, scale: Scale, settings: Settings, progress: Progress) -> None:
        self._scale, self._settings, self._progress = scale, settings, progress
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
            self._progress.what = f"{name}, plain loop"
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
        settings, count = self._settings, len(architectures)
        head = f"{name:26} {precision:5} {count:3}"
        self._progress.what = f"{name}, {precision}, {count} in lockstep"
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
        configs = [TrialConfig(each, bptt_steps=window) for each in architectures]
        for config in configs:
            if config not in self._weights:
                drawn = draw_initial_weights(config, 0)
                self._weights[config] = {name: each.float() for name, each in drawn.items()}
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
