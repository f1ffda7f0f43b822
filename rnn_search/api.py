"""Run a search: the function :func:`run`, and what it shares with the command line."""

import json
import signal
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from reports.dashboard import launcher
from rnn_search.study import Study, artifacts_or_default, load, storage_or_default
from search.errors import SearchFailedError
from search.run import RunResult, run_workers
from search.session import RunOptions
from search.terminal import SafeConsole, Ticker
from search.worker.shutdown import parse_duration
from studies.errors import ConfigError
from studies.text import shorten


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
) -> Study:
    """Create or join a study, or derive one from another, and run its trials.

    Progress is printed as by ``run_search.py``. Any number of processes may share a study: calls of
    this function and command lines alike. A study that exists is resumed; one that is finished is
    returned at once.

    Ctrl-C and other signals stop the search between two training steps; progress is saved, and the
    same call resumes it. The signal then takes its usual effect: Ctrl-C raises
    ``KeyboardInterrupt``, SIGTERM ends the process. A second Ctrl-C raises ``KeyboardInterrupt``
    immediately. In a thread that is not the main one, signals do not stop the search, because only
    the main thread receives them; worker processes stop at the Ctrl-C of a terminal anyway.

    Worker processes do not import the script that calls this function, so that it needs no
    ``if __name__ == "__main__"``; it may be a notebook, too.

    Args:
        study: name of a study file in ``studies/``, path of a study file, name of a stored study,
            or the settings themselves, as a study file contains them, for which ``name`` is
            required.
        storage: URL of the storage; by default ``$RNN_SEARCH_STORAGE``, or
            ``sqlite:///studies/studies.db`` in the working directory.
        name: name of the study; by default that of its file.
        overrides: settings by dotted key, as in ``{"training.steps": 500}``.
        workers: number of worker processes; 1 trains in this process.
        threads: CPU threads per worker; by default a share of this machine's cores.
        lockstep: maximum number of networks that a worker trains in lockstep; None to choose it.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:i``.
        precision: precision of matrix products; fixed when the study is created.
        corpus: ``stdlib``, ``enwik8`` or a file, instead of the study file's corpus.
        prune: whether to prune trials that are unlikely to finish among the best.
        extend: whether to add the trials of values that were added to the search space.
        partial: whether to derive from a source study that is not finished.
        yes: whether to create more than 20,000 trials, which are refused otherwise.
        wait: whether to wait for trials that other workers still run.
        until: time after which to stop cleanly and return, in seconds or as in ``"45m"``.
        artifacts: folder or ``s3://BUCKET`` of checkpoints and weights; by default
            ``$RNN_SEARCH_ARTIFACTS``, or next to the storage.
        report: whether to write the report of a finished study to ``reports/out/`` and publish the
            study to optuna-dashboard, as the command line does.

    Returns:
        The study. Its trials are finished, unless ``until`` or ``wait`` says otherwise.

    Raises:
        StudiesError: if the settings, the storage or the artifacts cannot be used, or the study
            exists with other settings; before anything is written. Its subclass
            ``StorageUnavailableError`` also if the storage was unavailable for too long.
        RNNError: if the corpus, the device or the precision cannot be used.
        UnfinishedSourceError: if the source of a refinement is not finished.
        SearchFailedError: if a worker process failed, or no trial is complete at the end.
        KeyboardInterrupt: after Ctrl-C.
        OSError, sqlalchemy.exc.SQLAlchemyError: if a disk or a database fails; recorded results are
            kept.
    """
    settings = None
    if isinstance(study, Mapping):
        if name is None:
            raise ConfigError("settings have no name: expected run({...}, name='my-study')")
        settings, study, name = _to_plain("settings", study), name, None
    options = RunOptions(
        str(study),
        storage_or_default(storage),
        name,
        None if corpus is None else str(corpus),
        tuple(f"{key}={_to_toml(key, value)}" for key, value in (overrides or {}).items()),
        _require_positive("workers", workers),
        threads and _require_positive("threads", threads),
        lockstep and _require_positive("lockstep", lockstep),
        device,
        precision,
        prune,
        extend,
        wait,
        partial,
        yes,
        artifacts_or_default(artifacts),
        _parse_until(until),
        settings=settings,
    )
    result = run_search_and_report(options, report)
    if result.signal is not None:
        signal.raise_signal(result.signal)
    if result.failure:
        raise SearchFailedError(result.failure)
    if result.failed_workers:
        raise SearchFailedError(
            f"{result.failed_workers} of {workers} worker processes failed, each with a message on "
            "its standard error: recorded results are kept, run again"
        )
    return load(result.study, storage=options.storage, artifacts=options.artifacts)


def run_search_and_report(
    options: RunOptions, report: bool = True, dashboard_port: int | None = None
) -> RunResult:
    """Run a search, and report on it at its end unless another process does.

    Args:
        options: options of the search.
        report: whether to write a report and publish the study.
        dashboard_port: port to serve optuna-dashboard on meanwhile; None to serve none.

    Raises:
        StudiesError, RNNError, SearchError: see :func:`search.run.run_workers`.
    """
    storage, artifacts = options.storage, options.artifacts
    server: AbstractContextManager[None] = nullcontext()
    if dashboard_port is not None:
        server = launcher.serve_dashboard(storage, artifacts, dashboard_port)
    result = run_workers(options, server)
    if report and result.finished and not result.exit_code:
        with Ticker(SafeConsole(), lambda: "updating the report and the dashboard"):
            launcher.finalize_search(
                storage, result.study, artifacts, result.finished, result.was_finished
            )
    return result


def _require_positive(name: str, value: int) -> int:
    if not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name} is {value!r}: expected an integer of 1 or more")
    return value


def _parse_until(until: str | float | None) -> float | None:
    try:
        seconds = parse_duration(until) if isinstance(until, str) else until
        if seconds is not None and not seconds > 0:
            raise ValueError(f"duration {seconds} is not positive")
    except ValueError as error:
        raise ConfigError(
            f"until: {error}: expected seconds, or a duration such as 45m, 3h or 1h30m"
        ) from error
    return seconds


def _to_plain(key: str, value: Any) -> Any:
    """Convert a setting to the types that TOML has; tuples, arrays and NumPy's numbers included.

    Raises:
        ConfigError: if it is of another type.
    """
    if isinstance(value, Mapping):
        return {str(name): _to_plain(f"{key}.{name}", each) for name, each in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _to_plain(key, value.tolist())
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_to_plain(key, each) for each in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, bool | int | float | str):
        return value
    raise ConfigError(
        f"{key} is {shorten(repr(value))}: expected a number, a text, a bool, a list or a dict"
    )


def _to_toml(key: str, value: Any) -> str:
    """Return a setting as a TOML value in one line."""

    def encode(plain: Any) -> str:
        if isinstance(plain, dict):
            return f"{{{', '.join(f'{quote(name)} = {encode(v)}' for name, v in plain.items())}}}"
        if isinstance(plain, list):
            return f"[{', '.join(map(encode, plain))}]"
        return quote(plain) if isinstance(plain, str) else repr(plain).lower()

    def quote(text: str) -> str:  # JSON's escapes are TOML's, but for one character
        return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")

    return encode(_to_plain(key, value))
