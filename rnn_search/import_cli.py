"""The command ``rnn-search import``: studies of exported files, tables and studies of Optuna."""

import shlex
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import click

from studies.cli import storage_options
from studies.importing import ImportOptions, import_results
from studies.storage.engine import parse_url, redact
from studies.study_file import import_studies, is_exported_study
from studies.text import to_line

_F = TypeVar("_F", bound=Callable[..., Any])


def _column_options(command: _F) -> _F:
    """Add an option for each field of :class:`ImportOptions`."""
    for each in reversed(fields(ImportOptions)):
        settings: dict[str, Any] = {"default": each.default, **each.metadata}
        if each.default == ():
            settings |= {"default": "", "callback": _split}
        if each.name == "threshold":
            settings["type"] = float
        name = "maximize/--minimize" if each.name == "maximize" else each.name
        option = click.option(f"--{name}", show_default=bool(each.default), **settings)
        command = option(command)
    return command


def _split(_: click.Context, __: click.Parameter, text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


@click.command(
    "import",
    help="Create a study from finished results, without training. SOURCE is a file that "
    "export-study wrote; any table of parameters and values, as CSV or Parquet; or the URL of a "
    "storage that has a study of plain Optuna, which is only read. Several exported files are "
    "imported together, all or none; tables and Optuna studies are imported one at a time.",
)
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True)
@click.option(
    "--name",
    help="Name of the new study; by default that of the exported or Optuna study, or of the file.",
)
@click.option("--study", help="Name of the study in the storage, if SOURCE is the URL of one.")
@_column_options
@click.option("--dry-run", is_flag=True, help="Print what the columns are, and write nothing.")
@storage_options
def import_command(
    sources: tuple[str, ...],
    name: str | None,
    study: str | None,
    dry_run: bool,
    storage: str,
    debug: bool,
    **columns: Any,
) -> int:
    """Import results."""
    others = [each for each in sources if _is_url(each) or not is_exported_study(Path(each))]
    if not others:
        given = [each for each in ("study", "dry_run", *columns) if _is_given(each)]
        if given:
            raise click.UsageError(
                f"--{given[0].replace('_', '-')} is for results of other programs: {sources[0]} is "
                "an exported study"
            )
        _import_exported(sources, name, storage)
        return 0
    if len(sources) > 1:
        if not _is_url(others[0]) and not Path(others[0]).exists():
            raise click.UsageError(
                f"{to_line(others[0])} does not exist: expected a file of a table"
            )
        raise click.UsageError(
            f"{to_line(others[0])} is not an exported study: expected it alone, because options "
            "say what its columns are"
        )
    imported = import_results(
        storage,
        others[0],
        ImportOptions(**columns),
        study=study,
        name=name,
        command=_format_command(),
        dry_run=dry_run,
    )
    for line in imported.roles:
        click.echo(to_line(line))
    done = "would import" if dry_run else "imported"
    click.echo(f"{done} study {imported.name!r} from {imported.source}: {imported.counts}")
    for note in imported.notes:
        click.echo(to_line(note), err=True)
    if not dry_run:
        click.echo(f"see it with {shlex.join(['rnn-search', 'report', imported.name])}")
    return 0


def _import_exported(sources: Sequence[str], name: str | None, storage: str) -> None:
    for result in import_studies(storage, [Path(each) for each in sources], name):
        values, trials = result.rows["trial_intermediate_values"], result.rows["trials"]
        click.echo(
            f"imported study {result.name!r} to {result.storage}: {trials:,} "
            f"trial{'s' * (trials != 1)}, {values:,} intermediate values"
        )
        if result.missing_source:
            click.echo(
                f"it derives from {result.missing_source!r}, which is not there: import that as "
                "well if reports are to compare them"
            )


def _is_url(source: str) -> bool:
    return "://" in source


def _is_given(name: str) -> bool:
    source = click.get_current_context().get_parameter_source(name)
    return source is click.core.ParameterSource.COMMANDLINE


def _format_command() -> str:
    """Return this command line, without passwords and without the storage it writes to."""
    context = click.get_current_context()
    words = ["rnn-search", "import"]
    for source in context.params["sources"]:
        words.append(redact(parse_url(source).set(password=None)) if _is_url(source) else source)
    for parameter in context.command.params:
        name = str(parameter.name)
        if not isinstance(parameter, click.Option) or name in ("storage", "debug", "dry_run"):
            continue
        if _is_given(name):
            value, option = context.params[name], parameter.opts[0]
            if isinstance(value, bool):
                words.append(option if value else parameter.secondary_opts[0])
            else:
                words += [option, ",".join(value) if isinstance(value, tuple) else str(value)]
    return shlex.join(words)
