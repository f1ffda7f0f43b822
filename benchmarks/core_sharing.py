"""Speed of terminals that share cores, without options and with a fixed number of threads."""

import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import optuna

ROUNDS = 3

STEPS = 600

STUDY = [
    "stage-one",
    f"--set=training.steps={STEPS}",
    "--set=evaluation.windows=1",
    "--set=space.layers=[2]",
    "--set=space.state_size=[256]",
    "--set=space.exclude=[]",
    "--set=space.input_gate=[false]",
    "--set=space.output_gate=[false]",
    "--set=space.forget_gate=[true]",
    "--set=space.residual=[true]",
]
"""Arguments of a search over six networks of 256 states."""


def measure() -> Iterator[str]:
    """Yield a line for each comparison."""
    yield f"core sharing: steps per second, median of {ROUNDS} rounds, alternating"
    setups: dict[str, Sequence[Sequence[str]]] = {
        "two terminals, no options": [[], []],
        "two terminals, --threads 1": [["--threads=1"], ["--threads=1"]],
        "one terminal, no options": [[]],
        "one terminal, --threads 1": [["--threads=1"]],
    }
    rates: dict[str, list[float]] = {setup: [] for setup in setups}
    for _ in range(ROUNDS):
        for setup, terminals in setups.items():
            rates[setup].append(_steps_per_second(terminals))
    for setup, rate in rates.items():
        yield f"  {setup:28} {statistics.median(rate):6.1f}  ({min(rate):.1f} to {max(rate):.1f})"
    for over, under in (
        ("two terminals, no options", "two terminals, --threads 1"),
        ("one terminal, no options", "one terminal, --threads 1"),
    ):
        ratio = statistics.median(a / b for a, b in zip(rates[over], rates[under], strict=True))
        yield f"  {over} / {under}: {ratio:.2f}"


def _steps_per_second(terminals: Sequence[Sequence[str]]) -> float:
    """Start the terminals at the same time; return their total steps over the wall time."""
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/studies.db"
        command = [sys.executable, "run_search.py", *STUDY, "--storage", url]
        processes = [
            subprocess.Popen(
                [*command, *flags], cwd=Path(__file__).parents[1], stdout=subprocess.DEVNULL
            )
            for flags in terminals
        ]
        for process in processes:
            if process.wait():
                raise RuntimeError(f"a search exited with {process.returncode}")
        trials = optuna.load_study(study_name="stage-one", storage=url).trials
        begins = [trial.datetime_start for trial in trials if trial.datetime_start]
        ends = [trial.datetime_complete for trial in trials if trial.datetime_complete]
        return STEPS * len(trials) / (max(ends) - min(begins)).total_seconds()
