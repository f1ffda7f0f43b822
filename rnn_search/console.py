"""The console command ``rnn-search``: one subcommand for each of the project's commands."""

import sys
from importlib import import_module

import click

import rnn_search
from rnn.errors import UserError

_SUBCOMMANDS = {
    "run": ("rnn_search.cli:run_search", "Create or join a study and run its trials"),
    "refine": ("rnn_search.cli:refine", "Derive a study from the best trials of another"),
    "continue": ("rnn_search.cli:continue_search", "Continue a stored study"),
    "status": ("rnn_search.cli:status", "Print the progress of a study"),
    "report": ("reports.cli:reports", "Write an HTML report"),
    "dashboard": ("reports.dashboard:dashboard", "Serve optuna-dashboard"),
    "list": ("rnn_search.studies_cli:list_command", "List the studies of a storage"),
    "rename": ("rnn_search.studies_cli:rename", "Rename a study"),
    "delete": ("rnn_search.studies_cli:delete", "Delete a study with its files"),
    "retry": ("rnn_search.studies_cli:retry", "Set failed trials waiting again"),
    "export-study": ("rnn_search.studies_cli:export_command", "Write a study to a compressed file"),
    "import": ("rnn_search.studies_cli:import_command", "Make a study of finished results"),
    "check": ("rnn_search.models_cli:check", "Check a cell or a task before a search"),
    "sample": ("rnn_search.models_cli:sample", "Generate text with a trained network"),
    "export": ("rnn_search.models_cli:export", "Export a trained network to a folder"),
}
"""Where each subcommand is, imported when it is used (PyTorch takes seconds), and a summary."""


class _LazyGroup(click.Group):
    """Group that imports a subcommand when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """List the names of the subcommands."""
        return list(_SUBCOMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a subcommand."""
        if cmd_name not in _SUBCOMMANDS:
            return None
        module, _, attribute = _SUBCOMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the subcommands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in _SUBCOMMANDS.items()])


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
    try:
        from studies.cli import run_with_exit_code
    except UserError as error:  # the installed Optuna is not supported
        sys.exit(f"error: {error}")
    run_with_exit_code(
        lambda: rnn_search_command.main(
            [*words, *sys.argv[1:]], prog_name="rnn-search", standalone_mode=False
        )
    )
