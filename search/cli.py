"""The words that ``run_search.py`` and ``refine.py`` share."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, TypeVar

import click

from search.run import Result, RunOptions, show_status, work
from search.terminal import SafeConsole, Ticker
from search.worker.shutdown import parse_duration
from studies.cli import artifacts_option, dashboard_port_option, storage_options
from studies.errors import ConfigError
from studies.loader import load_config_file

_F = TypeVar("_F", bound=Callable[..., Any])

STUDY_HELP = (
    "STUDY is a name in studies/, the path of a TOML file, or the name of a study in the storage."
)


def _seconds(context: click.Context, option: click.Parameter, text: str | None) -> float | None:
    try:
        return None if text is None else parse_duration(text)
    except ValueError as error:
        raise click.BadParameter(
            f"{error}; allowed: a number with d, h, m or s, as in 1h30m; correct it"
        ) from error


def _lockstep(context: click.Context, option: click.Parameter, text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdecimal() or len(text) > 18 or int(text) < 1:
        raise click.BadParameter(
            f"{text!r} is no number of networks; allowed: auto, or 1 and more; correct it"
        )
    return int(text)


_OPTIONS = (
    click.option("--name", help="Of the study; by default its definition's."),
    click.option(
        "--corpus",
        metavar="NAME|PATH",
        help="In place of the definition's: stdlib, enwik8 or a file.",
    ),
    click.option(
        "--set",
        "overrides",
        metavar="KEY=VALUE",
        multiple=True,
        help="Override a setting of the definition, as in training.steps=2000; may be repeated.",
    ),
    click.option(
        "--workers",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        help="Processes to start on this machine.",
    ),
    click.option(
        "--threads",
        type=click.IntRange(min=1, max=1024),
        help="Of each worker; by default this machine's workers share its cores.",
    ),
    click.option(
        "--lockstep",
        callback=_lockstep,
        metavar="auto|K",
        default="auto",
        show_default=True,
        help="Networks that each worker trains in lockstep, at most.",
    ),
    click.option(
        "--device",
        metavar="auto|cpu|cuda[:i]",
        default="auto",
        show_default=True,
        help="Where to train.",
    ),
    click.option(
        "--precision",
        type=click.Choice(["auto", "fp32", "tf32", "bf16"]),
        help="Of the products; fixed when the study is made.",
    ),
    click.option(
        "--status", is_flag=True, help="Print where the study stands, and change nothing."
    ),
    click.option("--json", "as_json", is_flag=True, help="With --status: as JSON."),
    click.option(
        "--prune",
        is_flag=True,
        help="Give up on points that are unlikely to end among the best; as pruning.enabled=true.",
    ),
    click.option(
        "--extend", is_flag=True, help="Add the points of values that the definition has got since."
    ),
    click.option(
        "--no-wait",
        is_flag=True,
        help="Leave when no point is left to claim, though some still run.",
    ),
    click.option(
        "--until",
        callback=_seconds,
        metavar="DURATION",
        help="Stop in good order after this time, as in 45m, 3h or 1h30m.",
    ),
    click.option(
        "--dashboard",
        is_flag=True,
        help="Serve optuna-dashboard during the search, on this machine only.",
    ),
    dashboard_port_option,
    artifacts_option,
)


def work_options(default_study: str) -> Callable[[_F], _F]:
    """Give a command the STUDY that it works on, and all that can be said about how."""

    def decorate(command: _F) -> _F:
        command = storage_options(command)
        for option in reversed(_OPTIONS):
            command = option(command)
        return click.argument("study", default=default_study)(command)

    return decorate


class StudyView(Protocol):
    """Dashboard and report of a search, injected by the entry points."""

    def serve_dashboard(
        self, storage: str, artifacts: str | None, port: int
    ) -> AbstractContextManager[object]:
        """Return a context manager that serves optuna-dashboard while it is active.

        Args:
            storage: URL of the storage.
            artifacts: location of the artifacts, see :func:`studies.artifacts.open_store`.
            port: port to serve on.
        """

    def finalize(self, storage: str, study: str, artifacts: str | None) -> None:
        """Report on a study whose search has finished.

        Args:
            storage: URL of the storage.
            study: name of the study.
            artifacts: location of the artifacts.
        """


def run(
    view: StudyView,
    *,
    derived: bool = False,
    status: bool,
    as_json: bool,
    no_wait: bool,
    dashboard: bool,
    port: int,
    debug: bool,
    **options: Any,
) -> int:
    """Do what a command line asks for.

    Args:
        view: dashboard and report of the search.
        derived: whether only studies will do that are derived from others.
        status: print where the study stands instead of working.
        as_json: the status as JSON.
        no_wait: leave while others still work.
        dashboard: serve optuna-dashboard during the search.
        port: port of the dashboard.
        debug: read by :func:`studies.cli.run_command`.
        options: of :class:`search.run.RunOptions`.

    Returns:
        The exit code.
    """
    program = "refine.py" if derived else "run_search.py"
    asked = RunOptions(wait=not no_wait, program=program, **options)
    if as_json and not status:
        raise click.UsageError("--json goes with --status; say both")
    if derived:
        _require_refinement(asked)
    if status:
        show_status(asked, as_json)
        return 0

    def companion(study: str) -> AbstractContextManager[object]:
        if not dashboard:
            return nullcontext()
        return view.serve_dashboard(asked.storage, asked.artifacts, port)

    result: Result = work(asked, companion)
    if result.finished and not result.exit_code:
        with Ticker(SafeConsole(), lambda: "updating the report and the dashboard"):
            view.finalize(asked.storage, result.study, asked.artifacts)
    return result.exit_code


def _require_refinement(asked: RunOptions) -> None:
    file = load_config_file(asked.study, asked.overrides, asked.storage)
    if file.source is None and file.resolve().refinement is None:
        raise ConfigError(
            f"study {file.name!r} has no [refinement]; allowed here: studies that are derived from "
            "others; begin this one with run_search.py"
        )
