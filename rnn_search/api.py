"""Run a search: the function :func:`run`, and what it shares with the command line."""

import json
import logging
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from reports import final_report
from reports.dashboard import HOST, open_listener
from rnn.errors import UserError
from rnn_search.study import Study, load
from search.create_or_join import create_or_join
from search.display import Display
from search.launch.jobs import prepare_launch
from search.run import RunResult, run_workers
from search.run_options import RunOptions, WorkerOptions
from studies.locations import (
    ARTIFACTS_VARIABLE,
    STORAGE_VARIABLE,
    artifacts_or_default,
    storage_or_default,
)
from studies.messages import check_study_name, shorten
from studies.option_models import build_options

if TYPE_CHECKING:
    from search.plan import StudyPlan

_logger = logging.getLogger(__name__)


def run(
    study: str | Path | Mapping[str, Any],
    *,
    storage: str | None = None,
    name: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    workers: int = 1,
    threads: int | None = None,
    lockstep: int | None = None,
    device: str = "auto",
    precision: str | None = None,
    corpus: str | Path | None = None,
    prune: bool = False,
    extend: bool = False,
    partial: bool = False,
    yes: bool = False,
    wait: bool = True,
    until: str | float | None = None,
    artifacts: str | Path | None = None,
    report: bool = False,
    launch: str = "local",
    launch_set: Mapping[str, str | int] | None = None,
    trial: int | None = None,
) -> Study:
    """Create or join a study, or derive one from another, and run its trials.

    Progress is printed as by ``rnn-search run``. Any number of processes may share a study, calls
    of this function and command lines alike. A study that exists is resumed. One that is finished
    is returned at once.

    Ctrl-C stops the search between two training steps, saves the progress and raises
    ``KeyboardInterrupt``. The same call resumes it. A second Ctrl-C raises ``KeyboardInterrupt``
    immediately. In another thread than the main one, signals do not stop the search.

    A script needs no ``if __name__ == "__main__"``: worker processes do not import it.

    Args:
        study: name of a study file in ``studies/``, path of a study file, name of a stored study,
            or the settings themselves, as a dict with the keys of a study file, which needs a
            ``name``. Paths in a study file are relative to the file, other paths to the working
            directory.
        storage: URL of the storage; by default ``$RNN_SEARCH_STORAGE``, or
            ``sqlite:///studies/studies.db`` in the working directory.
        name: name of the study; by default that of its file.
        overrides: settings by dotted key, as in ``{"training.steps": 500}``.
        workers: number of worker processes; 1 trains in this process.
        threads: CPU threads per worker, 1 to 1024; by default a share of this machine's cores.
        lockstep: maximum number of networks that a worker trains together; None to choose it.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:i``.
        precision: precision of matrix products; fixed when the study is created.
        corpus: ``stdlib``, ``enwik8`` or a file, instead of the study file's corpus.
        prune: whether to prune trials that are unlikely to finish among the best.
        extend: whether to add trials for new values in the search space, or for more
            ``refinement.replicates``, and to store another question, report threshold, nuisance or
            hypothesis.
        partial: whether to derive from a source study that is not finished.
        yes: whether to allow more than 20,000 new trials.
        wait: whether to wait for trials that other workers still run.
        until: time after which to stop cleanly and return, in seconds or as in ``"45m"``.
        artifacts: folder of checkpoints and weights; by default ``$RNN_SEARCH_ARTIFACTS``, or next
            to the storage.
        report: whether to write the report of a finished study to ``reports/out/``, as the command
            line does.
        launch: where to start the workers: ``local``, ``slurm``, ``ray`` or ``ray://HOST:PORT``. On
            a cluster each worker is a job, ``wait=False`` returns when they are submitted, and
            ``until`` counts from the start of each.
        launch_set: options of the cluster's jobs, as in ``{"partition": "gpu"}``.
        trial: number of a trial of the stored study ``study`` to run once more, alone, in a study
            that is named ``STUDY-trial-N`` by default.

    Returns:
        The study. Its trials are finished, unless ``until`` or ``wait`` says otherwise.

    Raises:
        UserError: if the settings, the storage or the artifacts cannot be used, or the study
            exists with other settings; before anything is written. Its subclass
            ``StorageUnavailableError`` also if the storage was unavailable for too long.
        UserError: if the corpus, the device or the precision cannot be used.
        UserError: if the source of a refinement is not finished.
        UserError: if a worker process failed, or no trial is complete at the end.
        KeyboardInterrupt: after Ctrl-C.
        OSError, sqlalchemy.exc.SQLAlchemyError: if a disk or a database fails; recorded results are
            kept.
    """
    return run_with(_name_study(dict(locals())))  # each argument is one of RunOptions


def create_study(
    study: str | Path | Mapping[str, Any],
    *,
    storage: str | None = None,
    name: str | None = None,
    load_if_exists: bool = False,
    overrides: Mapping[str, Any] | None = None,
    prune: bool = False,
    extend: bool = False,
    partial: bool = False,
    yes: bool = False,
    artifacts: str | Path | None = None,
) -> Study:
    """Create a study with all its trials, or join one, without running any.

    A training loop of one's own then claims them by :meth:`Study.claim`. Any number of processes
    may call this at once: one creates the study.

    Args:
        study: study file, stored study or settings, as of :func:`run`.
        storage: URL of the storage, as of :func:`run`.
        name: name of the study; by default that of its file.
        load_if_exists: whether to join a study that exists, with the same settings.
        overrides: settings by dotted key, as in ``{"loop.steps": 500}``.
        prune: whether to pause and prune trials that are unlikely to finish among the best.
        extend: whether to add trials, as of :func:`run`; the study must exist.
        partial: whether to derive from a source study that is not finished.
        yes: whether to allow more than 20,000 new trials.
        artifacts: folder of checkpoints, as of :func:`run`.

    Raises:
        UserError: if the settings or the storage cannot be used, or the study exists and is not to
            be joined, or has other settings; before anything is written.
    """
    options = dict(locals())
    del options["load_if_exists"]
    checked = _check_options(_name_study(options))
    with Display():
        handle = create_or_join(checked, load_if_exists or extend)
        handle.storage.close()
        for line in handle.notice.splitlines():
            _logger.info(line)
    return load(handle.name, storage=checked.storage, artifacts=checked.artifacts)


def plan(
    study: str | Path | Mapping[str, Any],
    *,
    storage: str | None = None,
    name: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    workers: int = 1,
    threads: int | None = None,
    lockstep: int | None = None,
    device: str = "auto",
    precision: str | None = None,
    corpus: str | Path | None = None,
    prune: bool = False,
    partial: bool = False,
    artifacts: str | Path | None = None,
    timed: bool = True,
) -> "StudyPlan":
    """Say what a study costs on this machine and what it can find; nothing is written.

    The arguments are those of :func:`run`. With ``timed``, networks of each shape are trained for a
    second, half a minute in all.

    Returns:
        The plan, which is printed as lines and tables. Its ``networks`` and :meth:`to_frame
        <search.plan.StudyPlan.to_frame>` are data frames.

    Raises:
        UserError: if the settings or the storage of a refinement's source cannot be used.
    """
    options = dict(locals())
    del options["timed"]
    from search.plan import plan_search  # imports PyTorch

    return plan_search(_check_options(_name_study(options)), timed)


def _name_study(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return options as a caller gives them, of which ``study`` may be settings, for a model."""
    study = options["study"]
    name = options["name"]
    if isinstance(study, Mapping):
        if options.get("trial") is not None:
            raise UserError("trial is one of a stored study: expected its name, not settings")
        if name is None:
            raise UserError("settings have no name: expected run({...}, name='my-study')")
        check_study_name(name)
        return {
            **options,
            "study": name,
            "name": None,
            "settings": _to_plain("settings", study),
        }
    if not isinstance(study, str | Path):
        raise UserError(
            f"study is {shorten(repr(study))}: expected a name, a path or a dict of settings"
        )
    return options


def run_with(options: Mapping[str, Any]) -> Study:
    """Run a search with options as a caller from Python gives them, and return its study.

    Args:
        options: fields of :class:`search.run_options.RunOptions`.

    Raises:
        Exception: the errors of :func:`run`.
    """
    checked = _check_options(options)
    result = run_search_and_report(checked)
    if result.signal is not None:
        signal.raise_signal(result.signal)
    if result.failure:
        raise UserError(result.failure)
    if result.exit_code:
        raise UserError(
            f"{result.failed_workers} of {checked.workers} worker processes failed, each with a "
            "message on its standard error: recorded results are kept, run again"
        )
    return load(result.study, storage=checked.storage, artifacts=checked.artifacts)


def _check_options(options: Mapping[str, Any]) -> RunOptions:
    """Return options that a caller from Python gives, in the types of the command line."""
    launch_set = options.get("launch_set") or {}
    _require_dict("launch_set", launch_set, "{'partition': 'gpu'}")
    corpus = options.get("corpus")
    converted: dict[str, Any] = {
        "study": str(options["study"]),
        "storage": storage_or_default(options["storage"]),
        "artifacts": artifacts_or_default(options["artifacts"]),
        "corpus": None if corpus is None else str(corpus),
        "overrides": _check_overrides(options["overrides"]),
        "launch_set": tuple(f"{key}={value}" for key, value in launch_set.items()),
        "is_command": False,
    }
    for name, value in options.items():
        plain = value.item() if isinstance(value, np.generic) else value
        converted.setdefault(name, plain)
    return build_options(RunOptions, **converted)


def check_worker_options(**options: Any) -> WorkerOptions:
    """Return the options of a worker that a caller from Python gives."""
    given = {**options, "overrides": _check_overrides(options["overrides"]), "is_command": False}
    return build_options(WorkerOptions, **given)


def _check_overrides(overrides: Mapping[str, Any] | None) -> tuple[str, ...]:
    """Return overrides as the command line has them."""
    if overrides is None:
        return ()
    _require_dict("overrides", overrides, "{'training.steps': 500}")
    for key in overrides:
        if not isinstance(key, str) or not key or "=" in key:
            raise UserError(
                f"overrides has the key {shorten(repr(key))}: expected one such as 'training.steps'"
            )
    return tuple(f"{key}={_to_toml(key, value)}" for key, value in overrides.items())


def _require_dict(name: str, value: Any, example: str) -> None:
    if not isinstance(value, Mapping):
        raise UserError(f"{name} is {shorten(repr(value))}: expected a dict such as {example}")


def run_search_and_report(options: RunOptions, dashboard_port: int | None = None) -> RunResult:
    """Run a search, and report on it at its end unless another process does.

    Args:
        options: options of the search.
        dashboard_port: port to serve optuna-dashboard on meanwhile; None to serve none.

    Raises:
        UserError: see :func:`search.run.run_workers`.
    """
    cluster = prepare_launch(options)
    server = None
    if dashboard_port is not None:
        server = serve_dashboard(options.storage, options.artifacts, dashboard_port)
    result = run_workers(options, cluster, server)
    if options.report and result.is_finished and not result.exit_code:
        with Display():
            if not result.was_finished:
                _logger.info("writing the report")
            final_report.finalize_search(
                options.storage, result.study, result.finished, result.was_finished
            )
    return result


@contextmanager
def serve_dashboard(storage: str, artifacts: str | None, port: int) -> Iterator[None]:
    """Serve optuna-dashboard in a separate process while the context is active.

    A failure is printed and does not end the search.
    """
    with ExitStack() as stack:
        with final_report.print_failures("no dashboard"):
            server = stack.enter_context(_start_dashboard(storage, artifacts, port))
            stack.callback(server.kill)  # it may be killed at any time, as a worker may
            click.echo(f"dashboard: http://{HOST}:{port}")
        yield


def _start_dashboard(storage: str, artifacts: str | None, port: int) -> "subprocess.Popen[bytes]":
    # URLs may contain passwords, and command lines are visible to all users of the machine.
    environment = os.environ | {STORAGE_VARIABLE: storage}
    if artifacts is not None:
        environment[ARTIFACTS_VARIABLE] = artifacts
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    command = [sys.executable, "-P", "-m", "rnn_search", "dashboard", "--port", str(port)]
    with open_listener(port) as listener:
        return subprocess.Popen(
            [*command, "--inherited-socket", str(listener.fileno())],
            env=environment,
            stdin=subprocess.PIPE,  # closes when this process ends, which stops the server
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[listener.fileno()],
            start_new_session=True,  # a Ctrl-C in the terminal is meant for the search
        )


def _to_plain(key: str, value: Any) -> Any:
    """Convert a setting to the types that TOML has; tuples, arrays and NumPy's numbers included."""
    if isinstance(value, Mapping):
        return {str(name): _to_plain(f"{key}.{name}", inner) for name, inner in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _to_plain(key, value.tolist())
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_to_plain(key, item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, type):
        raise UserError(
            f"{key} has the class {value.__name__}: write it to a file and name it as "
            f"'path/to/file.py:{value.__name__}'"
        )
    raise UserError(
        f"{key} is {shorten(repr(value))}: expected a finite number, a text, a bool, a list or a "
        "dict"
    )


def _to_toml(key: str, value: Any) -> str:
    separators = (", ", " = ")  # JSON with these is TOML, but for one character
    text = json.dumps(_to_plain(key, value), ensure_ascii=False, separators=separators)
    return text.replace("\x7f", "\\u007f")
