"""``python -m search.check FILE.py:Class``: check a cell of your own before it is searched."""

from studies.interrupts import exit_on_interrupt

if __name__ == "__main__":
    exit_on_interrupt()  # the imports take seconds

from pathlib import Path

import click

from rnn.autograd import lockstep_obstacle
from rnn.config import format_value
from search.cells import load_record
from search.certification import check_networks, list_networks
from search.errors import USER_ERRORS
from studies.cell_record import CellRecord, cell_name
from studies.cli import run_command
from studies.errors import ConfigError
from studies.loader import load_overrides


@click.command(
    help="Check a cell of your own, CELL, on tiny networks: path/to/file.py:Class, or "
    "package.module:Class of an installed package."
)
@click.argument("cell")
@click.option(
    "--set",
    "overrides",
    metavar="OPTION=VALUE",
    multiple=True,
    help="Check with another value than the default of an option, as in depth=2; may be repeated.",
)
@click.option("--debug", is_flag=True, help="Show the traceback of an error instead of one line.")
def check(cell: str, overrides: tuple[str, ...], debug: bool) -> int:
    """Check a cell."""
    try:
        name = cell_name(cell)
        if name == cell:
            raise ValueError(f"{cell} is a built-in cell: expected a cell of your own")
        record = load_record(cell, Path())
        base = load_overrides(overrides).settings
        for option, value in base.items():
            if option not in record.options:
                known = ", ".join(record.options) or "none, it has none"
                raise ValueError(f"cell {name} has no option {option}: expected {known}")
            record.options[option].check(f"--set {option}", [value])
    except ValueError as error:
        raise ConfigError(str(error)) from error
    networks = list_networks(name, record, base=base)
    check_networks(networks, lambda passed: click.echo(f"passed: {passed}"))
    obstacle = lockstep_obstacle(networks[0])
    if obstacle is None:
        click.echo("networks that differ in settings of the optimizer can be trained in lockstep")
    else:
        click.echo(f"networks are trained one at a time ({obstacle})")
    click.echo(
        f"{name} passed all checks with {len(networks)} combination"
        f"{'s' * (len(networks) > 1)} of options; options: {_describe_options(record)}"
    )
    return 0


def _describe_options(record: CellRecord) -> str:
    options = (
        f"{name} ({option.description}, default {format_value(option.default)})"
        for name, option in record.options.items()
    )
    return ", ".join(options) or "none"


if __name__ == "__main__":
    run_command(check, USER_ERRORS)
