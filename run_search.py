"""Alias of ``rnn-search run``."""

from rnn_search.console import main

if __name__ == "__main__":
    main("run")
