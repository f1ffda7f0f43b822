"""The commands that show studies in a browser: report, dashboard, and log for other programs."""

import gc
from contextlib import closing
from pathlib import Path

import click

from rnn_search.commands.options import (
    artifacts_option,
    dashboard_port_option,
    storage_options,
    studies_argument,
    study_argument,
)
from studies.failures import EXIT_INTERRUPTED
from studies.messages import format_count


@click.command
@studies_argument
@storage_options
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="HTML file to write or to replace; by default in reports/out/.",
)
@click.option(
    "--csv",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write a table of the trials to this CSV file instead of a report.",
)
def report(studies: tuple[str, ...], storage: str, output: Path | None, csv: Path | None) -> int:
    """Write a self-contained HTML report of one or several studies."""
    if csv is None:
        from reports.page.page import write_report

        gc.freeze()  # else each collection looks through all imported modules
        written = write_report(storage, studies, output)
        click.echo(written.path)
        click.echo("\n".join(written.headline))
        return 0
    if output is not None:
        raise click.UsageError(
            "--csv writes a table instead of a report and does not go with --output"
        )
    from reports.final_report import write_csv
    from reports.study_reader import read_studies
    from studies.storage.open import read_storage

    with closing(read_storage(storage)) as opened:
        results = read_studies(opened, studies, with_curves=False, with_windows=False)
    write_csv(results, csv)
    click.echo(csv)
    return 0


@click.command(help="Serve optuna-dashboard for all studies of a storage, on this machine only.")
@storage_options
@artifacts_option
@dashboard_port_option
@click.option("--inherited-socket", type=int, hidden=True)
def dashboard(storage: str, artifacts: str | None, port: int, inherited_socket: int | None) -> int:
    """Serve until a signal arrives."""
    from reports.dashboard import serve  # slow

    return serve(storage, artifacts, port, inherited_socket)


@click.command("log")
@study_argument
@click.option(
    "--to",
    "target",
    metavar="TRACKER:PLACE",
    required=True,
    help="Where to log: tensorboard:DIR, wandb:PROJECT, wandb:ENTITY/PROJECT or mlflow:URI.",
)
@click.option("--follow", is_flag=True, help="Log until the study is finished, or Ctrl-C.")
@storage_options
def log_command(study: str, target: str, follow: bool, storage: str) -> int:
    """Log the trials of a study to TensorBoard, Weights & Biases or MLflow, one run each.

    Called again, it adds what is new. The study is only read.
    """
    from rnn_search.trackers import hide_secrets, log_study

    place = hide_secrets(target, target)
    try:
        for count in log_study(storage, study, target, follow):
            if count or not follow:
                trials = format_count(count, "new or changed trial")
                click.echo(f"study {study!r}: logged {trials} to {place}")
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return 0
