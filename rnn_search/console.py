"""The console command ``rnn-search``: one subcommand for each of the project's commands."""

import sys
from importlib import import_module
from typing import NamedTuple

import click

import rnn_search
from studies.interrupts import exit_on_interrupt


class _Subcommand(NamedTuple):
    """Where a subcommand is, imported when it is used: PyTorch and pandas take seconds."""

    module: str
    attribute: str
    summary: str


_SUBCOMMANDS = {
    "run": _Subcommand("rnn_search.cli", "run_search", "Create or join a study and run its trials"),
    "refine": _Subcommand(
        "rnn_search.cli", "refine", "Derive a study from the best trials of another"
    ),
    "report": _Subcommand("reports.cli", "reports", "Write an HTML report"),
    "dashboard": _Subcommand("reports.dashboard.server", "dashboard", "Serve optuna-dashboard"),
    "status": _Subcommand("rnn_search.cli", "status", "Print the progress of a study"),
    "list": _Subcommand("rnn_search.studies_cli", "list_command", "List the studies of a storage"),
    "continue": _Subcommand("rnn_search.cli", "continue_search", "Continue a stored study"),
    "rename": _Subcommand("rnn_search.studies_cli", "rename", "Rename a study"),
    "copy": _Subcommand("rnn_search.studies_cli", "copy", "Copy a study, also to another storage"),
    "delete": _Subcommand("rnn_search.studies_cli", "delete", "Delete a study with its files"),
    "retry": _Subcommand("rnn_search.studies_cli", "retry", "Set failed trials waiting again"),
    "export-study": _Subcommand(
        "rnn_search.studies_cli", "export_command", "Write a study to a compressed file"
    ),
    "backup": _Subcommand("rnn_search.studies_cli", "backup", "Copy an SQLite file of studies"),
    "import": _Subcommand(
        "rnn_search.import_cli", "import_command", "Make a study of results, without training"
    ),
    "check": _Subcommand("search.check", "check", "Check a cell or a task before a search"),
    "sample": _Subcommand("search.sample", "sample", "Generate text with a trained network"),
    "export": _Subcommand("search.export", "export", "Export a trained network to a folder"),
}


class _LazyGroup(click.Group):
    """Group that imports a subcommand when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """List the names of the subcommands."""
        return list(_SUBCOMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a subcommand."""
        if (place := _SUBCOMMANDS.get(cmd_name)) is None:
            return None
        from studies.cli import require_text  # slow to import

        command: click.Command = getattr(import_module(place.module), place.attribute)
        return require_text(command, binary=("prompt",) if cmd_name == "sample" else ())

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the subcommands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, each.summary) for name, each in _SUBCOMMANDS.items()])


@click.command(
    cls=_LazyGroup,
    commands=dict.fromkeys(_SUBCOMMANDS),  # Click suggests one for a name that none has
    no_args_is_help=False,
    help="Train every architecture of a search space of recurrent networks once, and report which "
    "choices matter.",
)
@click.version_option(rnn_search.__version__, prog_name="rnn-search")
def rnn_search_command() -> None:
    """Run a subcommand."""


def main(*words: str) -> None:
    """Run the command and exit the process with its exit code.

    Args:
        words: words before those of the command line, such as the name of a subcommand.
    """
    exit_on_interrupt()  # the imports take seconds
    from rnn_search.errors import USER_ERRORS
    from studies.cli import run_with_exit_code

    run_with_exit_code(
        lambda: rnn_search_command.main(
            [*words, *sys.argv[1:]], prog_name="rnn-search", standalone_mode=False
        ),
        USER_ERRORS,
    )
