"""Entry point of ``python -m reports.dashboard``."""

from studies.interrupts import exit_on_interrupt

exit_on_interrupt()  # the imports take seconds

from reports.dashboard.server import main  # noqa: E402

main()
