"""The command ``rnn-search import``: studies of exported files, tables and studies of Optuna."""

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from studies.cli import storage_options
from studies.files import open_regular
from studies.importing.options import ImportOptions
from studies.importing.study_import import ImportedStudy, import_optuna_study, import_table
from studies.storage.engine import parse_url, redact
from studies.study_file import import_studies, is_exported_study
from studies.text import to_line

_F = TypeVar("_F", bound=Callable[..., Any])

_COLUMN_OPTIONS = (
    click.option("--study", help="Name of the study in the storage, if SOURCE is the URL of one."),
    click.option(
        "--value",
        metavar="COLUMN",
        help="Column of the results; by default value. For a study with several objectives, "
        "values_0 is the first.",
    ),
    click.option(
        "--maximize/--minimize",
        default=None,
        help="Whether a higher or a lower value is better; by default the direction of the study, "
        "and for a table a lower one.",
    ),
    click.option("--metric", metavar="NAME", default="", help="Name of the value, for the report."),
    click.option("--unit", metavar="TEXT", default="", help="Unit of the value, for the report."),
    click.option("--question", metavar="TEXT", default="", help="Question for the report."),
    click.option(
        "--parameters",
        metavar="A,B,…",
        default="",
        help="Columns that are parameters; by default those with several values but no results.",
    ),
    click.option(
        "--ignore",
        metavar="A,B,…",
        default="",
        help="Columns that are neither parameters nor results.",
    ),
    click.option(
        "--replicate",
        metavar="COLUMN",
        help="Column that numbers repeated runs of equal parameters; by default replicate or seed.",
    ),
    click.option(
        "--curve",
        metavar="PREFIX",
        default="loss_",
        show_default=True,
        help="Prefix of the columns that hold a curve: loss_50 is the value at step 50.",
    ),
)
"""Options that say what the columns of a table are."""


def _column_options(command: _F) -> _F:
    for option in reversed(_COLUMN_OPTIONS):
        command = option(command)
    return command


@click.command(
    "import",
    help="Create a study from finished results, without training. SOURCE is a file that "
    "export-study wrote, any table of parameters and values as CSV (.csv, .csv.gz, .tsv), or the "
    "URL of a storage that has a study of plain Optuna, which is only read. Several exported files "
    "are imported together, all or none; tables and Optuna studies are imported one at a time.",
)
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True)
@click.option(
    "--name",
    help="Name of the new study; by default that of the exported or Optuna study, or of the file.",
)
@_column_options
@storage_options
def import_command(
    sources: tuple[str, ...], name: str | None, storage: str, debug: bool, **columns: Any
) -> int:
    """Import results."""
    if all(map(_is_exported, sources)):
        if given := [key for key, each in columns.items() if _is_given(key)]:
            raise click.UsageError(
                f"--{given[0]} is for tables of other programs: {sources[0]} is an exported study"
            )
        _import_exported(sources, name, storage)
        return 0
    if len(sources) > 1:
        other = next(each for each in sources if not _is_exported(each))
        if not _is_url(other):
            open_regular(Path(other)).close()
        raise click.UsageError(
            f"{to_line(other)} is not an exported study: expected it alone, because options say "
            "what its columns are"
        )
    (source,) = sources
    study = columns.pop("study")
    for key in ("parameters", "ignore"):
        columns[key] = _split(columns[key])
    options = ImportOptions(**columns)
    command = _format_command()
    if _is_url(source):
        imported = import_optuna_study(storage, source, study, name, options, command)
    elif study is not None:
        raise click.UsageError(f"--study is for the URL of a storage: {to_line(source)} is a file")
    else:
        imported = import_table(storage, Path(source), name, options, command)
    _print_imported(imported)
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


def _print_imported(imported: ImportedStudy) -> None:
    parameters = ", ".join(map(to_line, imported.parameters))
    click.echo(
        f"imported study {imported.name!r} from {to_line(imported.source)}: {imported.counts}; "
        f"parameters {parameters}; {imported.goal}"
    )
    for note in imported.notes:
        click.echo(to_line(note), err=True)
    click.echo(f"see it with {shlex.join(['rnn-search', 'report', imported.name])}")


def _is_url(source: str) -> bool:
    return "://" in source


def _is_exported(source: str) -> bool:
    return not _is_url(source) and is_exported_study(Path(source))


def _is_given(name: str) -> bool:
    source = click.get_current_context().get_parameter_source(name)
    return source is click.core.ParameterSource.COMMANDLINE


def _split(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _format_command() -> str:
    """Return this command line, without passwords and without the storage it writes to."""
    context = click.get_current_context()
    words = ["rnn-search", "import"]
    for source in context.params["sources"]:
        words.append(redact(parse_url(source).set(password=None)) if _is_url(source) else source)
    for parameter in context.command.params:
        name, value = parameter.name, context.params.get(parameter.name or "")
        if not isinstance(parameter, click.Option) or name in ("storage", "debug"):
            continue
        if name is not None and _is_given(name):
            option = parameter.opts[0]
            if isinstance(value, bool):
                words.append(option if value else parameter.secondary_opts[0])
            else:
                words += [option, str(value)]
    return shlex.join(words)
