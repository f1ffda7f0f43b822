"""Entry point of ``python -m reports.dashboard``."""

from reports.dashboard.server import main

main()
