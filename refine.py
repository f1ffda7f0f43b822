"""Derive a study from the best trials of another and run its trials."""

from studies.interrupts import exit_on_interrupt

if __name__ == "__main__":
    exit_on_interrupt()  # the imports take seconds

from rnn_search.cli import refine
from rnn_search.errors import USER_ERRORS
from studies.cli import run_command

if __name__ == "__main__":
    run_command(refine, USER_ERRORS)
