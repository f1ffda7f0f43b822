"""Share of a worker's training time outside of its steps: storage, text sampling, polling."""

import contextlib
import io
import os
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path
from unittest.mock import patch
from uuid import uuid4

import numpy as np
import optuna

from rnn.network import Window
from rnn.tasks.corpus import TextData, load_corpus
from rnn.training.loop import TrainLoop
from rnn.training.step import TrainStep
from search.options import RunOptions
from search.run import run_workers
from studies.cli import STORAGE_VARIABLE

ROUNDS = 5

SETTINGS = (
    "space.layers=[2]",
    "space.input_gate=[false]",
    "space.output_gate=[false]",
    "space.residual=[true]",
    "space.state_gate=[true]",
    "space.exclude=[]",
    "evaluation.windows=1",
    "evaluation.window_length=2",
    "keep_weights=0",
)
NETWORKS = {
    "one of 2×256": (
        ("space.state_size=[256]", "space.forget_gate=[true]", "training.steps=300"),
        1,
    ),
    "six of 2×32": (("space.state_size=[32]", "training.steps=1000"), 6),
}


def measure() -> Iterator[str]:
    """Yield a line for each database and set of networks, and one for sampling text."""
    yield (
        f"share of a worker's training time outside of its steps, median of {ROUNDS} (range); "
        "one training and one storage thread; a log point every 50 steps"
    )
    urls = {"SQLite": ""}
    if (url := os.environ.get(STORAGE_VARIABLE, "")).startswith("postgresql"):
        urls["PostgreSQL"] = url
    else:
        yield f"  PostgreSQL: not measured: set {STORAGE_VARIABLE} to an empty database"
    for database, url in urls.items():
        for name, (settings, lockstep) in NETWORKS.items():
            shares = [_measure_share(url, settings, lockstep) for _ in range(ROUNDS)]
            yield (
                f"  {database:10} {name:13} {statistics.median(shares):.2%}  ({min(shares):.2%} to "
                f"{max(shares):.2%})"
            )
    yield _measure_sampling()


def _measure_sampling() -> str:
    data = TextData(load_corpus("stdlib").train)
    tracemalloc.start()
    batch = data.train_batch(0, 0, 0, 256, 1000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    start = time.perf_counter()
    for number in range(20):
        data.train_batch(0, number, 0, 256, 1000)
    seconds = (time.perf_counter() - start) / 20
    return (
        f"  sampling the streams of a sequence (256 of 1,000 bytes): {1000 * seconds:.2f} ms, "
        f"{batch.inputs.nbytes / 1e6:.2f} MB, {peak / 1e6:.2f} MB at the peak"
    )


def _measure_share(url: str, settings: Sequence[str], lockstep: int) -> float:
    """Return the share of the time from the first step to the last that is outside of steps."""
    step_seconds, starts, ends = 0.0, [], []
    step, train = TrainStep.step, TrainLoop.train

    def timed_step(self: TrainStep, window: Window, loss_steps: int = 1) -> None:
        nonlocal step_seconds
        start = time.perf_counter()
        step(self, window, loss_steps)
        step_seconds += time.perf_counter() - start

    def timed_train(self: TrainLoop, *args: object) -> Iterator[object]:
        starts.append(time.perf_counter())
        yield from train(self, *args)  # type: ignore[arg-type]
        ends.append(time.perf_counter())

    with (
        tempfile.TemporaryDirectory() as folder,
        patch.object(TrainStep, "step", timed_step),
        patch.object(TrainLoop, "train", timed_train),
    ):
        _search(url or f"sqlite:///{folder}/studies.db", Path(folder), settings, lockstep)
    total = float(np.subtract(ends, starts).sum())
    return (total - step_seconds) / total


def _search(url: str, folder: Path, settings: Sequence[str], lockstep: int) -> None:
    options = RunOptions(
        study="stage-one",
        storage=url,
        name=f"benchmark-{uuid4().hex}",
        overrides=(*SETTINGS, *settings),
        precision="fp32",
        artifacts=str(folder),
        device="cpu",
        threads=1,
        lockstep=lockstep,
    )
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            run_workers(options)
    finally:
        optuna.delete_study(study_name=options.stored_name, storage=url)
