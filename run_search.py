"""Create or join a study and run its trials; any number of processes may share a study."""

from rnn_search.cli import run_search
from rnn_search.errors import USER_ERRORS
from studies.cli import run_command

if __name__ == "__main__":
    run_command(run_search, USER_ERRORS)
