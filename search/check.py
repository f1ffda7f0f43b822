"""``python -m search.check FILE.py:Class``: check a cell or a task before it is searched."""

from studies.interrupts import exit_on_interrupt

if __name__ == "__main__":
    exit_on_interrupt()  # the imports take seconds

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from torch import nn

from rnn.autograd import lockstep_obstacle
from rnn.config import ParamValue, format_value
from rnn.errors import RNNError
from rnn.own_code import CodeSource, load_class, read_source
from rnn.tasks.built_in import BUILT_IN_NAMES, find_built_in
from search.cells import load_record
from search.certification import check_networks, list_networks
from search.errors import USER_ERRORS
from search.task_check import certify_task, describe_floors
from search.tasks import load_task_of
from studies.cli import run_command
from studies.config import EvaluationSettings
from studies.errors import ConfigError
from studies.loader import load_overrides
from studies.records import CellOption
from studies.space import BUILT_IN_CELLS, cell_name


@click.command(
    help="Check a cell of your own on tiny networks, or a task on small ones. SOURCE is "
    "path/to/file.py:Class, package.module:Class of an installed package, or a built-in task such "
    "as adding:50."
)
@click.argument("source")
@click.option(
    "--set",
    "overrides",
    metavar="OPTION=VALUE",
    multiple=True,
    help="Check with another value than the default of an option, as in depth=2; may be repeated.",
)
@click.option("--debug", is_flag=True, help="Show the traceback of an error instead of one line.")
def check(source: str, overrides: tuple[str, ...], debug: bool) -> int:
    """Check a cell or a task."""
    options = load_overrides(overrides).settings
    if _is_cell(source):
        _check_cell(source, options)
    else:
        _check_task(source, options)
    return 0


def _is_cell(source: str) -> bool:
    """Return whether a source is the class of a cell; its file is executed."""
    if source in BUILT_IN_CELLS:
        raise ConfigError(f"{source} is a built-in cell: expected a cell of your own, or a task")
    if source.partition(":")[0] in BUILT_IN_NAMES:
        return False
    if ".py" not in source:
        find_built_in(source, Path())  # refuses what is no class either, with the nearest name
    return issubclass(load_class(read_source(source, Path(), _AnySource)), nn.Module)


class _AnySource(CodeSource):
    """The source of a cell or a task."""

    kind = "source"
    base = object
    error = RNNError


def _check_task(source: str, options: Mapping[str, Any]) -> None:
    task = load_task_of(source, options, Path())
    count = EvaluationSettings().windows
    floors, memory = certify_task(task, count, lambda passed: click.echo(f"passed: {passed}"))
    for line in describe_floors(floors):
        click.echo(line)
    record = task.record
    click.echo(memory)
    reads = f"one of {record.inputs} tokens" if record.reads_tokens else _numbers(record.inputs)
    predicts = _numbers(record.outputs)
    if record.predicts_classes:
        predicts = f"one of {record.outputs} classes"
    click.echo(
        f"{record.name} passed all checks: {record.steps} steps, each reads {reads} and predicts "
        f"{predicts}; options: {_describe_options(record.options)}"
    )


def _check_cell(cell: str, base: Mapping[str, Any]) -> None:
    try:
        name = cell_name(cell)
        record = load_record(cell, Path())
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
        f"{'s' * (len(networks) > 1)} of options; options: {_describe_options(record.options)}"
    )


def _numbers(count: int) -> str:
    return f"{count} number{'s' * (count > 1)}"


def _quote(value: ParamValue) -> str:
    return repr(value) if isinstance(value, str) else format_value(value)


def _describe_options(options: Mapping[str, CellOption]) -> str:
    described = (
        f"{name} ({option.description}, default {_quote(option.default)})"
        for name, option in options.items()
    )
    return ", ".join(described) or "none"


if __name__ == "__main__":
    run_command(check, USER_ERRORS)
