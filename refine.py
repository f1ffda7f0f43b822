"""Derive a study from another and run its trials: an alias of ``rnn-search refine``."""

from rnn_search.commands import main

if __name__ == "__main__":
    main("refine")
