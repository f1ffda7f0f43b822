"""Two workers that search against two plain loops, from the start of their processes to the end."""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import optuna

from benchmarks.sampling import strata
from search.parameters import distributions, search_space
from search.study import StudyOptions, create_or_join
from studies.attributes import OBJECTIVE_NAMES
from studies.loader import load_config_file
from studies.space import Params
from studies.storage.create import PlannedTrial, create_study
from studies.storage.open import open_storage

POINTS = 24
STEPS = 200
ROUNDS = 5

ROOT = Path(__file__).parents[1]

SETTINGS = (
    f"training.steps={STEPS}",
    # As long as it is read: the plain loop makes all one-hot inputs of a sequence at once.
    f"training.sequence_length={STEPS + 1}",
    # The plain loop measures nothing on held-out text.
    "evaluation.windows=1",
    "evaluation.window_length=2",
)

PLAINLY = """
import json, sys, torch
from benchmarks.baseline_loop import train_plainly
from rnn.config import Architecture
from rnn.data.corpus import open_corpus
from rnn.training.loop import Training
torch.set_num_threads(1)
text = open_corpus("stdlib").train
for point in json.loads(sys.argv[1]):
    settings = Training({steps}, 256, {steps} + 1, 50, 0.001, 0.95, 0)
    train_plainly(Architecture.of(point, "state"), text, settings)
"""

MEASURED = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""
"""Runs a command and prints its peak in kilobytes: a small process, for what starts a command has
its own peak counted as the command's."""


def measure() -> Iterator[str]:
    """Yield a line for each precision."""
    points = strata(POINTS)
    yield (
        f"start to end: {POINTS} stratified points of stage one, {STEPS} steps each, two workers "
        f"against two plain loops of one thread, until the last is trained, median of {ROUNDS} "
        "(range)"
    )
    for precision in ("fp32", "bf16"):
        ratios, megabytes = [], 0.0
        for _ in range(ROUNDS):
            plain, _ = _timed([_plainly(points[::2]), _plainly(points[1::2])])
            with tempfile.TemporaryDirectory() as folder:
                url = f"sqlite:///{folder}/studies.db"
                _create(url, points, precision)
                began = datetime.now(UTC).replace(tzinfo=None)
                _, peak = _timed([_search(url, precision), _search(url, precision)])
                # What follows is the report, which the plain loop does not write.
                trials = optuna.load_study(study_name="stage-one", storage=url).trials
                ends = [trial.datetime_complete for trial in trials if trial.datetime_complete]
                assert len(ends) == POINTS
                ours = (max(ends) - began).total_seconds()
            ratios.append(plain / ours)
            megabytes = max(megabytes, peak)
        yield (
            f"  {precision}  {statistics.median(ratios):.2f}×  ({min(ratios):.2f} to "
            f"{max(ratios):.2f}); a worker's peak memory {megabytes:.0f} MB"
        )


def _create(url: str, points: Sequence[Params], precision: str) -> None:
    """Store a study that has some of the grid's points only."""
    file = load_config_file("stage-one", SETTINGS)
    config = file.resolve()
    whole = create_or_join(file, f"{url}.whole", StudyOptions(precision=precision))
    assert config.space is not None
    create_study(
        open_storage(url),
        "stage-one",
        OBJECTIVE_NAMES["training"],
        whole.study.user_attrs,
        distributions(search_space(config.space)),
        [PlannedTrial(point) for point in points],
    )


def _search(url: str, precision: str) -> list[str]:
    words = ["run_search.py", "stage-one", "--storage", url, "--precision", precision]
    return [sys.executable, *words, *(f"--set={setting}" for setting in SETTINGS)]


def _plainly(points: Sequence[Params]) -> list[str]:
    return [sys.executable, "-c", PLAINLY.replace("{steps}", str(STEPS)), json.dumps(points)]


def _timed(commands: Sequence[Sequence[str]]) -> tuple[float, float]:
    """Run commands side by side; return the seconds they took, and the largest one's peak in MB."""
    began = time.perf_counter()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", MEASURED, *command], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        for command in commands
    ]
    peaks = []
    for process in processes:
        printed, _ = process.communicate()
        if process.returncode:
            raise RuntimeError(f"{process.args!r} ended with {process.returncode}")
        peaks.append(int(printed))
    return time.perf_counter() - began, max(peaks) / 1000
