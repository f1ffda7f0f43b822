"""Sizes of the GPU's benchmark: on a GPU, and in a rehearsal on a processor."""

import itertools
import random
from dataclasses import dataclass, replace

from rnn.config import STATE_SOURCES, GatedConfig, TrainingPrecision


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
        max_padded_state: largest state size of networks that are padded.
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
    max_padded_state: int
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
    max_padded_state=64,
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
    max_padded_state=8,
    streams=8,
    log_every=5,
    seconds=0.1,
)
"""What a processor runs through in a minute."""


def mixed_networks(layers: int, state_size: int) -> list[GatedConfig]:
    """Return all 96 networks of a size in an order that mixes their switches.

    A search's best one comes first, and small networks without the residual, which stage one does
    not have, come last.
    """
    best = GatedConfig(False, True, False, True, True, "new", layers, state_size)
    networks = [
        GatedConfig(i, f, o, s, r, source, layers, state_size)
        for i, f, o, s, r in itertools.product((False, True), repeat=5)
        for source in STATE_SOURCES
    ]
    networks.remove(best)
    random.Random(0).shuffle(networks)
    if state_size < 256:
        networks.sort(key=lambda config: not config.residual)
    return [best, *networks]
