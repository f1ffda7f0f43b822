"""Entry point of ``python -m rnn_search``."""

from rnn_search.commands import main

main()
