"""Entry point of ``python -m reports``."""

from studies.interrupts import exit_on_interrupt

exit_on_interrupt()  # the imports take seconds

from reports.cli import main  # noqa: E402

main()
