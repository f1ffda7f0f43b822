"""The console command ``rnn-search``, a module for each group of subcommands."""

import signal
import sys
from importlib import import_module

import click

import rnn_search

_SUBCOMMANDS = {
    "run": ("searches:run_search", "Create or join a study and run its trials"),
    "refine": ("searches:refine", "Derive a study from the best trials of another"),
    "continue": ("searches:continue_search", "Continue a stored study"),
    "status": ("searches:status", "Print the progress of a study"),
    "report": ("reports:report", "Write an HTML report"),
    "dashboard": ("reports:dashboard", "Serve optuna-dashboard"),
    "log": ("reports:log_command", "Log trials to TensorBoard, W&B or MLflow"),
    "list": ("studies:list_command", "List the studies of a storage"),
    "rename": ("studies:rename", "Rename a study"),
    "delete": ("studies:delete", "Delete a study with its files"),
    "retry": ("studies:retry", "Set failed trials waiting again"),
    "export-study": ("studies:export_command", "Write a study to a compressed file"),
    "import": ("studies:import_command", "Create a study from finished results"),
    "check": ("models:check", "Check a cell or a task before a search"),
    "sample": ("models:sample", "Generate text with a trained network"),
    "export": ("models:export", "Export a trained network to a folder"),
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
        command: click.Command = getattr(import_module(f"{__name__}.{module}"), attribute)
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
        from studies.failures import EXIT_USAGE, exit_with, run_with_exit_code
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)

    def run() -> int | None:
        arguments = [*words, *sys.argv[1:]]
        try:
            code: int | None = rnn_search_command.main(
                arguments, prog_name="rnn-search", standalone_mode=False
            )
        except click.ClickException as error:
            exit_with(error.format_message().replace("\n", " "), EXIT_USAGE)
        except click.Abort as error:
            raise KeyboardInterrupt from error
        return code

    run_with_exit_code(run)
