"""Speed of bfloat16 relative to float32, by which a study with ``precision = "auto"`` chooses."""

import statistics
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import torch

from benchmarks.training_step import ALL_ON, BEST
from rnn.config import (
    BYTES,
    WHOLE_SEQUENCE,
    NetworkConfig,
    TaskSpec,
    TrainingPrecision,
    TrialConfig,
)
from rnn.engines import build_network, find_engine
from rnn.tasks.corpus import load_corpus
from rnn.tasks.task import TrainingData
from rnn.tasks.text import TextData
from rnn.training.loop import TrainConfig, TrainLoop
from search.cells_tasks import load_task_of

ROUNDS = 5
SIZES = (32, 64, 128, 256, 512, 1024)
STREAMS = (32, 256)
TEXT_WINDOW = 16

SECONDS = 0.2
"""Least processor time of one measurement."""


def measure() -> Iterator[str]:
    """Yield the speed of bfloat16 relative to float32 of each engine, cell and size."""
    torch.set_num_threads(1)
    yield (
        f"one thread: processor time in float32 over that in bfloat16, median of {ROUNDS} rounds "
        "(lowest to highest); above 1, bfloat16 is faster"
    )
    text = TextData(load_corpus("stdlib").train)
    for network, n, streams in product((BEST, ALL_ON), SIZES, STREAMS):
        config = TrialConfig(NetworkConfig("gated", network.layers, n, network.options))
        yield _compare(config, text, BYTES, streams)
    copy = load_task_of("copy", {}, Path()).build_sequences()
    for cell, n, streams in product(("elman", "gru", "lstm"), SIZES, STREAMS):
        network = NetworkConfig(cell, 2, n)
        config = TrialConfig(network, bptt_steps=WHOLE_SEQUENCE, update_every=WHOLE_SEQUENCE)
        yield _compare(config, copy, copy.spec, streams)
    for network, n in product((BEST, NetworkConfig("gru", 2, 1)), SIZES):
        config = TrialConfig(
            NetworkConfig(network.cell, 2, n, network.options),
            bptt_steps=TEXT_WINDOW,
            update_every=TEXT_WINDOW,
        )
        yield _compare(config, text, BYTES, 64)


def _compare(config: TrialConfig, data: TrainingData, spec: TaskSpec, streams: int) -> str:
    """Return the line of a network."""
    ratios = []
    for round_ in range(ROUNDS + 1):
        fp32 = _step_seconds(config, data, spec, streams, "fp32")
        bf16 = _step_seconds(config, data, spec, streams, "bf16")
        if round_:  # the first is a warm-up
            ratios.append(fp32 / bf16)
    ratios.sort()
    engine = find_engine([config], "bf16", spec).name
    window = "whole" if config.bptt_steps == WHOLE_SEQUENCE else str(config.bptt_steps)
    name = f"{config.architecture.label}, bptt {window}, {streams} streams"
    return (
        f"  {name:75} {engine:8} {statistics.median(ratios):5.2f} "
        f"({ratios[0]:.2f} to {ratios[-1]:.2f})  fp32 {1e3 * fp32:.2f} ms"
    )


def _step_seconds(
    config: TrialConfig,
    data: TrainingData,
    spec: TaskSpec,
    streams: int,
    precision: TrainingPrecision,
) -> float:
    """Return the processor time of an update."""
    settings = TrainConfig(10**9, streams, 1000, 10**9, 0.95, 0)
    loop = TrainLoop(build_network([config], 0, precision, spec), data, settings)
    windows = loop._windows()
    for _ in range(2):
        loop._train_step.step(next(windows)[0])
    count = 0
    start = time.process_time()
    while count < 3 or time.process_time() - start < SECONDS:
        loop._train_step.step(next(windows)[0])
        count += 1
    return (time.process_time() - start) / count
