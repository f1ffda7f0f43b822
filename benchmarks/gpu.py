"""``python -m benchmarks gpu``: training on one GPU, in one table; PyTorch and numpy are enough."""

import gc
import itertools
import statistics
import time
from collections.abc import Generator, Iterator, Sequence

import torch

from benchmarks.gpu_scale import GPU, REHEARSAL, Scale, mixed_networks
from benchmarks.gpu_table import COLUMNS, EXPLANATION, Progress, format_row
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
    BaselineConfig,
    NetworkConfig,
    TrainingPrecision,
    TrialConfig,
)
from rnn.data.corpus import load_corpus
from rnn.errors import DeviceError
from rnn.stacked.flat_parameters import NamedTensors
from rnn.stacked.network import draw_initial_weights
from rnn.training.devices import is_out_of_memory, resolve_device
from rnn.training.loop import TrainLoop
from rnn.training.precision import check_precision

STAGE_ONE_STEPS = 10_000

PLAIN_NETWORKS = 3
"""Networks of a shape that the plain loop trains, one after another."""


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
    text = load_corpus("stdlib").train
    settings = Settings(device, text, scale.streams, scale.log_every, scale.seconds)
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
            count = scale.counts[-1]
            is_padded = size[1] <= scale.max_padded_state
            row = f"{name}, {'not ' * is_padded}padded"
            for precision in scale.precisions:
                yield from self._row(
                    row, precision, configs[:count], plain, is_padded=not is_padded
                )

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
            ("GRU", BaselineConfig("gru", layers, n)),
            ("LSTM", BaselineConfig("lstm", layers, n)),
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
        is_padded: bool | None = None,
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
            measured, limit = self._measure(precision, architectures, window, is_padded)
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
        is_padded: bool | None,
    ) -> tuple[Measurement, float]:
        """Return what was measured of a training, and its share of the limit."""
        if is_padded is None:
            is_padded = architectures[0].state_size <= self._scale.max_padded_state
        settings = self._settings
        configs = [TrialConfig(each, bptt_steps=window) for each in architectures]
        for config in configs:
            if config not in self._weights:
                drawn = draw_initial_weights(config, 0)
                self._weights[config] = {name: each.float() for name, each in drawn.items()}
        # The products of the equations: those of constants, where there is padding, do not count.
        network = build(configs, settings, precision, self._weights, is_padded=False)
        shapes = matmul_shapes(TrainLoop(network, settings.text, settings.train_config()))
        if is_padded:
            network = build(configs, settings, precision, self._weights, is_padded=True)
            free_memory(settings.device)
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
