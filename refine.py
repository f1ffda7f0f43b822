"""Alias of ``rnn-search refine``."""

from rnn_search.console import main

if __name__ == "__main__":
    main("refine")
