"""``python -m reports STUDY [STUDY …]``."""

from reports.command_line import main

main()
