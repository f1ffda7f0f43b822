"""Searches that fault tests disturb, how they end, and what each of them leaves."""

import signal

from process_runner import CURVES, FINISHED, METRICS, query, wait_until_running

STEP = 100
"""Step at which the gate holds trainings."""

ONE = {
    "training_steps": 200,
    "training_log_every": 20,
    "training_eval_every": 15,
    "checkpoint_seconds": 0.3,
    "lease_seconds": 600,
    "space_layers": "[2]",
    "space_state_size": "[6]",
    "space_exclude": "[]",
    "space_input_gate": "[false]",
    "space_forget_gate": "[true]",
    "space_output_gate": "[false]",
    "space_state_gate": "[true]",
    "space_residual": "[true]",
    "space_state_source": "['both']",
}
"""One trial, with a lease that does not expire during a test."""

BEATING = ONE | {"lease_seconds": 1}
"""The same with a lease so short that its worker soon sends a heartbeat."""

TWO = ONE | {"space_residual": "[true, false]"}

FOUR = TWO | {"space_state_source": "['new', 'both']"}


VALUES = "SELECT value FROM trial_values"
STATES = "SELECT DISTINCT state FROM trials"
RETRIES = "SELECT value_json FROM trial_user_attributes WHERE key = 'retries'"


def assert_all_trials_match(url, reference_curves, settings):
    """Each trial is complete once, with the curves of a search without faults, bit for bit."""
    trials = len({number for number, *_ in reference_curves(**settings)})
    assert_all_complete(url, trials)
    assert query(url, CURVES) == reference_curves(**settings)
    metrics = reference_curves(METRICS, **settings)
    assert len(metrics) == trials
    assert query(url, METRICS) == metrics


def assert_all_complete(url, trials):
    """Each trial is complete once, by plain SQL."""
    assert query(url, FINISHED) == [(number, "COMPLETE", 1) for number in range(trials)]


def wait_for_message(message, *workers, times=1):
    """Wait until each worker has printed a message a number of times."""
    wait_until_running(
        workers, lambda: all(worker.output.count(message) >= times for worker in workers)
    )


def finish(*commands):
    """Wait until commands have ended with 0; return what they printed."""
    for command in commands:
        assert command.wait() == 0, command.output
    return "".join(command.output for command in commands)


def error_of(command, code=1):
    """Wait until a command has ended with a code; return its error, which is one line."""
    assert command.wait() == code, command.output
    assert "Traceback" not in command.output
    (line,) = command.stderr.splitlines()
    return line


def stop(command, number=signal.SIGTERM):
    """Stop a command by a signal; it exits with the code of that signal."""
    command.send(number)
    assert command.wait() == 128 + number, command.output
    assert "Traceback" not in command.output


def kill(*commands):
    for command in commands:
        command.send(signal.SIGKILL)
    for command in commands:
        assert command.wait() == -signal.SIGKILL


def list_checkpoints(folder):
    """List complete checkpoints: one that is being written has another suffix."""
    return list(folder.rglob("*.checkpoint"))
