"""Create or join a study and run its trials: an alias of ``rnn-search run``."""

from rnn_search.commands import main

if __name__ == "__main__":
    main("run")
