"""Searches that fault tests disturb, and what each of them leaves in its database."""

from process_runner import CURVES, FINISHED, query

STEP = 100
"""Step at which the gate holds trainings."""

ONE = {
    "training_steps": 200,
    "training_log_every": 20,
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

TWO = ONE | {"space_residual": "[true, false]"}

FOUR = ONE | {"space_state_size": "[6, 7]", "space_state_source": "['new', 'both']"}

FIVE = TWO | {
    "space_state_source": "['new', 'old', 'both']",
    "space_exclude": "[{residual=false, state_source='old'}]",
}


def assert_all_trials_match(url, reference_curves, settings):
    """Each trial is complete once, with the curve of a search without faults, bit for bit."""
    trials = len({number for number, *_ in reference_curves(**settings)})
    assert query(url, FINISHED) == [(number, "COMPLETE", 1) for number in range(trials)]
    assert query(url, CURVES) == reference_curves(**settings)
