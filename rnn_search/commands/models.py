"""The commands that check a user's cell or task, and that use a trained model."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click
from torch import nn

from rnn.autograd import lockstep_obstacle
from rnn.config import BUILT_IN_CELLS, format_value
from rnn.errors import UserError
from rnn.network import SEQUENCE_FORM
from rnn.own_code import CodeSource, load_class, read_source
from rnn.tasks.built_in import BUILT_IN_NAMES, find_built_in
from rnn_search.commands.options import (
    artifacts_option,
    debug_option,
    options_of,
    storage_options,
    study_argument,
    task_option,
)
from search.cell_check import check_networks, describe_gradients, list_networks
from search.cells_tasks import load_record, load_task_of, read_values
from search.stored_models import SampleOptions, export_trial, load_trial_model
from search.task_check import check_task, describe_floors
from studies.loader import load_overrides
from studies.messages import format_count, shorten
from studies.option_models import build_options
from studies.records import CellOption
from studies.space import cell_name
from studies.study_settings import EvaluationSettings

_F = TypeVar("_F", bound=Callable[..., Any])

# ------------------------------------------------------------------ models


def _parse_trial(context: click.Context, option: click.Parameter, text: str) -> int | None:
    if text == "best":
        return None
    if not text.isdecimal() or len(text) > 18:  # a trial's number has 64 bits
        raise click.BadParameter(
            f"invalid value {shorten(text)!r}: expected best or a trial number"
        )
    return int(text)


def _model_options(command: _F) -> _F:
    """Add the options that name a trained model to a command."""
    command = task_option(artifacts_option(storage_options(command)))
    return click.option(
        "--trial",
        callback=_parse_trial,
        metavar="N|best",
        default="best",
        show_default=True,
        help="Number of the trial, or the best trial whose weights are stored.",
    )(command)


@click.command
@study_argument
@options_of(SampleOptions)
@_model_options
def sample(
    study: str, trial: int | None, task: str, storage: str, artifacts: str | None, **options: Any
) -> None:
    """Generate text with the network of a trial, if the study's task is text."""
    checked = build_options(SampleOptions, **options)
    text = checked.generate(load_trial_model(study, trial, storage, artifacts, task).model)
    click.echo(text.encode(sys.stdout.encoding or "utf-8", "replace"))


@click.command
@study_argument
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@_model_options
def export(
    study: str,
    directory: Path,
    trial: int | None,
    task: str,
    storage: str,
    artifacts: str | None,
) -> None:
    """Export the network of a trial to the folder DIR.

    The folder holds its code, its weights and what converts its inputs and outputs. It needs only
    PyTorch and NumPy.
    """
    export_trial(study, directory, trial, storage, artifacts, task)
    click.echo(directory)


# ------------------------------------------------------------------ cells and tasks


@click.command
@click.argument("source")
@click.option(
    "--set",
    "overrides",
    metavar="OPTION=VALUE",
    multiple=True,
    help="Value of an option to check with, as in depth=2; may be repeated.",
)
@debug_option
def check(source: str, overrides: tuple[str, ...]) -> None:
    """Check a cell or a task on small networks, before a search.

    SOURCE is path/to/file.py:Class, package.module:Class of an installed package, a dataset of
    PyTorch as path/to/file.py:name, or a built-in task such as adding:50.
    """
    options = load_overrides(overrides).settings
    if _is_cell(source):
        _check_cell(source, options)
    else:
        _check_task(source, options)


def _is_cell(source: str) -> bool:
    """Return whether a source is the class of a cell; its file is executed."""
    if source in BUILT_IN_CELLS:
        raise UserError(f"{source} is a built-in cell: expected a cell of your own, or a task")
    if source.partition(":")[0] in BUILT_IN_NAMES:
        return False
    if ".py" not in source:
        find_built_in(source, Path())  # refuses what is no class either, with the nearest name
    found = load_class(read_source(source, Path(), _AnySource))
    return isinstance(found, type) and issubclass(found, nn.Module)


class _AnySource(CodeSource):
    """The source of a cell or a task."""

    kind = "source"
    base = object
    error = UserError


def _check_task(source: str, options: Mapping[str, Any]) -> None:
    task = load_task_of(source, options, Path())
    for notice in task.build_sequences().notices:
        click.echo(notice)
    count = EvaluationSettings().windows
    floors, memory = check_task(task, count, lambda passed: click.echo(f"passed: {passed}"))
    for line in describe_floors(floors):
        click.echo(line)
    record = task.record
    click.echo(memory)
    reads = format_count(record.inputs, "number")
    if record.reads_tokens:
        reads = f"one of {record.inputs} tokens"
    predicts = format_count(record.outputs, "number")
    if record.predicts_classes:
        predicts = f"one of {record.outputs} classes"
    click.echo(
        f"{record.name} passed all checks: {record.steps} steps, each reads {reads} and predicts "
        f"{predicts}; options: {_describe_options(record.options)}"
    )


def _check_cell(cell: str, base: Mapping[str, Any]) -> None:
    try:
        name = cell_name(cell)
    except ValueError as error:
        raise UserError(str(error)) from error
    record = load_record(cell, Path())
    values = read_values(f"cell {name}", record.options, base)
    networks = list_networks(name, record, base=values)
    check_networks(
        networks,
        on_passed=lambda passed: click.echo(f"passed: {passed}"),
        on_compared=lambda table: click.echo("\n".join(table)),
        is_thorough=True,
    )
    for line in describe_gradients(networks):
        click.echo(line)
    if not record.has_sequence_form:
        click.echo(f"it has no method {SEQUENCE_FORM}: it reads one step after another")
    obstacle = lockstep_obstacle(networks[0])
    if obstacle is None:
        click.echo("networks that differ in settings of the optimizer can be trained in lockstep")
    else:
        click.echo(f"networks are trained one at a time ({obstacle})")
    click.echo(
        f"{name} passed all checks with {format_count(len(networks), 'combination')} of options; "
        f"options: {_describe_options(record.options)}"
    )


def _describe_options(options: Mapping[str, CellOption]) -> str:
    described = []
    for name, option in options.items():
        value = option.default
        shown = repr(value) if isinstance(value, str) else format_value(value)
        described.append(f"{name} ({option.description}, default {shown})")
    return ", ".join(described) or "none"
