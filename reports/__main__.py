"""Entry point of ``python -m reports``."""

from reports.cli import main

main()
