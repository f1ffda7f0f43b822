"""``python -m reports STUDY [STUDY …]``."""

from reports.cli import main

main()
