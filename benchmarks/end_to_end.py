"""Speed of two search workers against two plain loops, from process start to the last training."""

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

from benchmarks.precision import sample_stratified
from search.options import RunOptions
from search.study import create_or_join
from studies.attributes import OBJECTIVE_NAMES
from studies.loader import load_config_file
from studies.space import Params, distributions
from studies.storage.changes import create_study
from studies.storage.open import open_storage
from studies.storage.trials import StoredTrial

TRIALS = 24
STEPS = 200
ROUNDS = 5

ROOT = Path(__file__).parents[1]

SETTINGS = (
    f"training.steps={STEPS}",
    # One sequence: the plain loop makes all one-hot inputs of a sequence at once.
    f"training.sequence_length={STEPS + 1}",
    # The plain loop has no evaluation.
    "evaluation.windows=1",
    "evaluation.window_length=2",
)

WITH_PEAK_MEMORY = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""
"""Program that runs a command and prints its peak memory in kilobytes. A separate small process,
because the peak of the process that starts a command counts as the command's."""


def measure() -> Iterator[str]:
    """Yield a line for each precision."""
    params = sample_stratified(TRIALS)
    yield (
        f"end to end: {TRIALS} stratified trials of stage one, {STEPS} steps each, two workers "
        f"against two plain loops of one thread, to the last training, median of {ROUNDS} "
        "(range)"
    )
    for precision in ("fp32", "bf16"):
        ratios, megabytes = [], 0.0
        for _ in range(ROUNDS):
            plain, _ = _timed([_train_plain(params[::2]), _train_plain(params[1::2])])
            with tempfile.TemporaryDirectory() as folder:
                url = f"sqlite:///{folder}/studies.db"
                _create(url, params, precision)
                began = datetime.now(UTC).replace(tzinfo=None)
                _, peak = _timed([_search(url, precision), _search(url, precision)])
                # The report comes later; the plain loop writes none.
                trials = optuna.load_study(study_name="stage-one", storage=url).trials
                ends = [trial.datetime_complete for trial in trials if trial.datetime_complete]
                assert len(ends) == TRIALS
                ours = (max(ends) - began).total_seconds()
            ratios.append(plain / ours)
            megabytes = max(megabytes, peak)
        yield (
            f"  {precision}  {statistics.median(ratios):.2f}×  ({min(ratios):.2f} to "
            f"{max(ratios):.2f}); a worker's peak memory {megabytes:.0f} MB"
        )


def _create(url: str, params: Sequence[Params], precision: str) -> None:
    """Store a study with a part of the grid."""
    config = load_config_file("stage-one", SETTINGS).resolve()
    options = RunOptions(
        study="stage-one",
        storage=f"{url}.full",
        overrides=tuple(SETTINGS),
        precision=precision,  # type: ignore[arg-type]
    )
    full = create_or_join(options)
    assert config.grid is not None
    create_study(
        open_storage(url),
        "stage-one",
        OBJECTIVE_NAMES[config.objective],
        full.study.user_attrs,
        distributions(config.grid.search_space),
        [StoredTrial(each) for each in params],
    )


def _search(url: str, precision: str) -> list[str]:
    arguments = ["run_search.py", "stage-one", "--storage", url, "--precision", precision]
    return [sys.executable, *arguments, *(f"--set={setting}" for setting in SETTINGS)]


def _train_plain(params: Sequence[Params]) -> list[str]:
    return [sys.executable, "-m", "benchmarks.baseline_loop", str(STEPS), json.dumps(params)]


def _timed(commands: Sequence[Sequence[str]]) -> tuple[float, float]:
    """Run commands in parallel; return the wall time in seconds and the highest peak in MB."""
    start = time.perf_counter()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WITH_PEAK_MEMORY, *command],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for command in commands
    ]
    peaks = []
    for process in processes:
        printed, _ = process.communicate()
        if process.returncode:
            raise RuntimeError(f"{process.args!r} exited with {process.returncode}")
        peaks.append(int(printed))
    return time.perf_counter() - start, max(peaks) / 1000
