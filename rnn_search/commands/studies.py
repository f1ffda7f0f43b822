"""The commands that manage stored studies, such as list, rename, delete and import."""

import json
import shlex
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from rnn.errors import UserError
from rnn_search.commands.options import (
    artifacts_option,
    options_of,
    storage_options,
    study_argument,
)
from rnn_search.stored_studies import list_studies
from studies import management
from studies.attributes import OBJECTIVE_NAMES
from studies.config import Objective
from studies.exchange import export_study, import_studies, is_exported_study
from studies.failures import EXIT_FAILURE
from studies.importing import ImportOptions, import_results
from studies.management import ListedStudy
from studies.messages import format_bytes, format_count
from studies.option_models import build_options
from studies.storage.database import parse_url, redact
from studies.storage.edits import list_derived
from studies.storage.open import load_study, read_storage

_F = TypeVar("_F", bound=Callable[..., Any])


@click.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print them as JSON.")
@artifacts_option
@storage_options
def list_command(as_json: bool, artifacts: str | None, storage: str) -> None:
    """List the studies of a storage."""
    listed = list_studies(storage, artifacts)
    if as_json:
        click.echo(json.dumps([study.as_json() for study in listed]))
    elif listed:
        click.echo(_format_table(listed))
    else:
        click.echo(f"no study in {redact(parse_url(storage))}")


@click.command
@click.argument("old")
@click.argument("new")
@storage_options
def rename(old: str, new: str, storage: str) -> None:
    """Rename the study OLD to NEW. Its files keep their places."""
    derived = management.rename_study(storage, old, new)
    names = f"; the source of {_list_names(derived)} is now {new!r}" if derived else ""
    click.echo(
        f"renamed study {old!r} to {new!r}{names}; reports and recorded commands keep the old "
        f"name, under which rnn-search run would create a new study: go on with "
        f"{_format_continue(new)}"
    )


@click.command
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option(
    "--force",
    is_flag=True,
    help="Delete it even if other studies derive from it, or workers hold its trials.",
)
@artifacts_option
@storage_options
def delete(name: str, yes: bool, force: bool, artifacts: str | None, storage: str) -> int:
    """Delete the study NAME with its checkpoints, weights, cells and other files.

    Reports are kept.
    """
    if not yes and not _confirm(name, storage, artifacts):
        click.echo(f"study {name!r} is kept", err=True)
        return EXIT_FAILURE
    management.delete_study(storage, artifacts, name, force)
    click.echo(f"deleted study {name!r} and its files; reports are kept")
    return 0


def _confirm(name: str, storage: str, artifacts: str | None) -> bool:
    with closing(read_storage(storage)) as opened:
        load_study(opened, name)
        derived = list_derived(opened, name)
    listed = [study for study in list_studies(storage, artifacts) if study.name == name]
    if not sys.stdin.isatty():
        raise UserError(f"to delete study {name!r} with its files, confirm with --yes")
    question = f"delete study {name!r}"
    for study in listed:
        question += f", {study.counts.finished} of {study.counts.planned} trials finished"
        if study.artifact_bytes is not None:
            question += f", {format_bytes(study.artifact_bytes)} of files"
    if derived:
        question += f", the source of {_list_names(derived)}"
    return click.confirm(question)


@click.command
@click.argument("name")
@click.option(
    "--failed", is_flag=True, help="Retry trials that used up their retries; the default."
)
@click.option("--diverged", is_flag=True, help="Retry trials whose loss was not finite.")
@storage_options
def retry(name: str, failed: bool, diverged: bool, storage: str) -> None:
    """Set failed trials of the study NAME waiting again.

    Trials that diverged are retried on request only: divergence is a result, and it repeats unless
    the code or the hardware differs.
    """
    kinds = [kind for kind, is_given in (("failed", failed), ("diverged", diverged)) if is_given]
    counts = management.retry_trials(storage, name, kinds or ["failed"])
    listed = " and ".join(f"{count} {kind}" for kind, count in counts.items())
    if not any(counts.values()):
        hint = "" if diverged else "; --diverged retries those that diverged"
        click.echo(f"study {name!r} has no trial to retry: {listed}{hint}")
        return
    click.echo(f"{listed} trials of study {name!r} wait again: go on with {_format_continue(name)}")


@click.command("export-study")
@study_argument
@click.argument("file", type=click.Path(path_type=Path))
@storage_options
def export_command(study: str, file: Path, storage: str) -> None:
    """Write the study STUDY to FILE, as compressed (.jsonl.gz) or plain JSON lines.

    The first line holds the settings, each further line a trial with its curve and losses. Weights
    and the names of users, machines and folders are left out.
    """
    result = export_study(storage, study, file)
    click.echo(
        f"exported study {study!r} to {file}: "
        f"{format_count(result.trials, 'trial')}, {format_bytes(result.size)}"
    )


# ------------------------------------------------------------------ imports


@click.command("import")
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True)
@click.option(
    "--name",
    help="Name of the new study; by default that of the exported or Optuna study, or of the file.",
)
@click.option(
    "--objective",
    type=click.Choice(list(OBJECTIVE_NAMES)),
    help="Loss by which to judge the trials of an exported study, instead of its own objective.",
)
@click.option("--study", help="Name of the study in the storage, if SOURCE is the URL of one.")
@options_of(ImportOptions)
@click.option("--dry-run", is_flag=True, help="Print the role of each column, and write nothing.")
@storage_options
def import_command(
    sources: tuple[str, ...],
    name: str | None,
    objective: Objective | None,
    study: str | None,
    dry_run: bool,
    storage: str,
    **columns: Any,
) -> None:
    """Create a study from finished results, without training.

    SOURCE is a file that export-study wrote, a table of parameters and values (.csv, .jsonl,
    .parquet), or the URL of a storage with a study of plain Optuna. Exported files can be imported
    together.
    """
    others = [
        source for source in sources if _is_url(source) or not is_exported_study(Path(source))
    ]
    if not others:
        for option in ("study", "dry_run", *columns):
            if _is_given(option):
                raise click.UsageError(
                    f"--{option.replace('_', '-')} is for results of other programs: {sources[0]} "
                    "is an exported study"
                )
        files = [Path(source) for source in sources]
        for result in import_studies(storage, files, name, objective):
            trials = format_count(result.trials, "trial")
            click.echo(f"imported study {result.name!r} to {result.storage}: {trials}")
            if result.missing_source:
                click.echo(
                    f"it derives from {result.missing_source!r}, which is not there: import that "
                    "as well if reports are to compare them"
                )
        return
    if objective:
        raise click.UsageError(
            f"--objective is for exported studies, and {others[0]} is none: its trials "
            "have one value each"
        )
    if len(sources) > 1:
        problem = "is not an exported study: expected it alone, because options describe it"
        if not _is_url(others[0]) and not Path(others[0]).exists():
            problem = "does not exist: expected a file of a table"
        raise click.UsageError(f"{others[0]} {problem}")
    imported = import_results(
        storage,
        others[0],
        build_options(ImportOptions, **columns),
        study=study,
        name=name,
        dry_run=dry_run,
    )
    for line in imported.roles:
        click.echo(line)
    click.echo(f"the same, each role named: {imported.command}")
    done = "would import" if dry_run else "imported"
    click.echo(f"{done} study {imported.name!r}: {imported.counts}")
    if not dry_run:
        click.echo(f"see it with {shlex.join(['rnn-search', 'report', imported.name])}")


def _is_url(source: str) -> bool:
    return "://" in source


def _is_given(name: str) -> bool:
    source = click.get_current_context().get_parameter_source(name)
    return source is ParameterSource.COMMANDLINE


# ------------------------------------------------------------------ formatting


def _format_continue(name: str) -> str:
    """Return the command that continues a study, with the storage if this command line has it."""
    context, words = click.get_current_context(), ["rnn-search", "continue", name]
    if _is_given("storage"):
        url = parse_url(context.params["storage"]).set(password=None)
        words += ["--storage", redact(url)]
    return shlex.join(words)


def _list_names(names: list[str]) -> str:
    return ", ".join(map(repr, names))


def _format_table(listed: list[ListedStudy]) -> str:
    """Format studies as a table, with a line for each problem."""
    header = ("study", "kind", "trials", "best", "workers", "last change (UTC)", "files")
    rows = [header, *map(_format_row, listed)]
    widths = [max(len(row[place]) for row in rows) for place in range(len(header))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    lines += [f"{study.name}: {study.problem}" for study in listed if study.problem]
    return "\n".join(lines)


def _format_row(study: ListedStudy) -> tuple[str, ...]:
    return (
        study.name,
        study.kind,
        study.counts.describe(),
        study.best_text,
        str(len(study.workers) or ""),
        "" if study.changed is None else f"{study.changed:%Y-%m-%d %H:%M}",
        "" if study.artifact_bytes is None else format_bytes(study.artifact_bytes),
    )
