"""Create or join a study and run its trials; any number of processes may share a study."""

from studies.interrupts import exit_on_interrupt

if __name__ == "__main__":
    exit_on_interrupt()  # the imports take seconds

from rnn_search.cli import run_search
from rnn_search.errors import USER_ERRORS
from studies.cli import run_command

if __name__ == "__main__":
    run_command(run_search, USER_ERRORS)
