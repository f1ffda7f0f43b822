"""Entry point of ``python -m rnn_search``."""

from rnn_search.console import main

main()
