"""``python -m benchmarks.compare_checkouts BEFORE AFTER``: compare the results of two checkouts.

Each checkout trains the same study of 24 architectures in three shapes, with one seed and one
thread: one network at a time, one at a time with interruptions, and in lockstep. Every smoothed
loss at a log point and every value must be equal bit for bit. Both checkouts run in this
interpreter's environment, so that they use the same libraries.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import click
import optuna
from optuna.trial import FrozenTrial, TrialState

# Only keys that every version of a study file has.
STUDY = """\
seed = 3

[space]
input_gate = [false]
forget_gate = [false, true]
output_gate = [false, true]
state_gate = [false, true]
residual = [true]
state_source = ["new"]
layers = [1, 2]
state_size = [32, 48]
exclude = [{ layers = 2, state_size = 48 }]

[training]
steps = 1200
batch_size = 16
sequence_length = 100
log_every = 20
learning_rate = 0.003

[checkpoint]
seconds = 0.05
"""

INTERRUPTIONS = 5
"""How often the interrupted search is stopped and started again."""

Params = tuple[tuple[str, object], ...]
Curves = dict[Params, tuple[float | None, dict[int, float]]]
"""A trial's value and its smoothed loss at each log point, by the trial's parameters."""


@click.command()
@click.argument("before", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("after", type=click.Path(exists=True, file_okay=False, path_type=Path))
def main(before: Path, after: Path) -> None:
    """Train one study in the checkouts BEFORE and AFTER, and compare every number."""
    differing = 0
    reference: Curves = {}
    for scenario in ("alone", "interrupted", "lockstep"):
        curves = [_train(checkout.resolve(), scenario) for checkout in (before, after)]
        differing += _compare(f"{scenario}: before and after", *curves)
        if scenario == "alone":
            reference = curves[1]
        if scenario == "interrupted":
            differing += _compare("after: alone and interrupted", reference, curves[1])
    sys.exit(1 if differing else 0)


def _compare(title: str, first: Curves, second: Curves) -> int:
    """Print how many trials and losses are equal; return the number that differ."""
    missing = first.keys() ^ second.keys()
    differing = [key for key in first.keys() & second.keys() if first[key] != second[key]]
    losses = sum(len(curve) for _, curve in first.values())
    click.echo(
        f"{title}: {len(first)} trials, {losses:,} losses; {len(differing)} trials differ, "
        f"{len(missing)} are in one of them only"
    )
    return len(differing) + len(missing)


def _train(checkout: Path, scenario: str) -> Curves:
    """Train the study in a checkout, and return its curves."""
    with tempfile.TemporaryDirectory() as folder:
        study = Path(folder, "compared.toml")
        study.write_text(STUDY)
        url = f"sqlite:///{folder}/studies.db"
        together = "auto" if scenario == "lockstep" else "1"
        command = [
            sys.executable,
            str(checkout / "run_search.py"),
            str(study),
            f"--storage={url}",
            "--threads=1",
            "--device=cpu",
            "--precision=fp32",
            f"--lockstep={together}",
        ]
        if scenario == "interrupted":
            for count in range(INTERRUPTIONS):
                _interrupt(command, folder, url, done=(24 * count) // INTERRUPTIONS)
        _run(command, folder)
        trials = optuna.load_study(study_name="compared", storage=url).trials
        interrupted = sum("interrupted" in str(trial.user_attrs) for trial in trials)
        click.echo(f"  {scenario}, {checkout.name}: {interrupted} trials were interrupted")
        if scenario == "interrupted" and not interrupted:
            raise click.ClickException(f"no trial was interrupted in {checkout}; lower log_every")
        return {
            tuple(sorted(trial.params.items())): (trial.value, trial.intermediate_values)
            for trial in trials
            if trial.state is TrialState.COMPLETE
        }


def _interrupt(command: Sequence[str], folder: str, url: str, done: int) -> None:
    """Start the search, and stop it in the middle of a trial after so many are complete."""
    process = subprocess.Popen(command, cwd=folder, env=_environment(), stdout=subprocess.DEVNULL)
    while process.poll() is None:
        if _is_within_a_trial(url, done):
            process.send_signal(signal.SIGTERM)
            process.wait()
            return
        time.sleep(0.02)


def _is_within_a_trial(url: str, done: int) -> bool:
    try:
        trials: list[FrozenTrial] = optuna.load_study(study_name="compared", storage=url).trials
    except Exception:  # the search has not created the study yet
        return False
    complete = sum(trial.state is TrialState.COMPLETE for trial in trials)
    running = [trial for trial in trials if trial.state is TrialState.RUNNING]
    return complete >= done and any(len(trial.intermediate_values) > 2 for trial in running)


def _run(command: Sequence[str], folder: str) -> None:
    done = subprocess.run(
        command, cwd=folder, env=_environment(), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise click.ClickException(f"{command[1]} failed: {done.stderr.strip()[-500:]}")


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


if __name__ == "__main__":
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    main()
