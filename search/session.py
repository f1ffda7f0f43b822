"""Options of a run, and the study and artifact stores that they name, once these are available."""

import os
import random
import re
import shlex
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from rnn.errors import DeviceError
from rnn.training.devices import resolve_device
from search.errors import ShutdownRequestedError
from search.launch.launcher import JOB_VARIABLE
from search.launch.status import name_worker
from search.launch.target import LOCAL, LaunchTarget
from search.new_study import StudyOptions
from search.status import StatusReader
from search.study import StudyHandle, create_or_join
from search.worker.shutdown import ShutdownSignal
from search.worker.trial_artifacts import CheckpointStore, FinalCheckpointStore, WeightStore
from studies.artifacts import local_folder, open_store
from studies.cli import study_name
from studies.config_file import ConfigFile
from studies.errors import ConfigError, StorageUnavailableError
from studies.loader import (
    load_config_file,
    load_overrides,
    load_settings,
    load_stored_config,
    load_trial_config,
    override_settings,
)
from studies.storage.engine import database_error, error_message, is_outage

RETRY_SECONDS = 5.0
"""Longest time between two attempts."""

_T = TypeVar("_T")


@dataclass(frozen=True)
class RunOptions:
    """Options of the command line; see ``run_search.py --help``.

    Attributes:
        overrides: ``KEY=VALUE`` to set; see :func:`studies.loader.override_settings`.
        unset: dotted keys to leave out.
        settings: settings of the study, named ``study``, in place of a file; None for the file.
        until: seconds after which to stop.
        is_subprocess: whether this is a worker process whose parent reports the progress.
        is_refinement: whether the study must derive from another, as for ``refine.py``.
        until_decided: whether to add runs of replicates until they are decided.
        is_command: whether the options come from a command line, which messages then name.
        target: where the workers run.
        is_shared: whether they run on other machines, which must find the corpus.
        is_stored: whether ``study`` is the name of a stored study, whatever files there are.
        report: whether workers on a cluster may write the report.
        trial: number of a trial of the stored study ``study`` to run once more, alone.
    """

    study: str
    storage: str
    name: str | None = None
    corpus: str | None = None
    overrides: tuple[str, ...] = ()
    unset: tuple[str, ...] = ()
    workers: int = 1
    threads: int | None = None
    lockstep: int | None = None
    device: str = "auto"
    precision: str | None = None
    prune: bool = False
    extend: bool = False
    wait: bool = True
    partial: bool = False
    yes: bool = False
    artifacts: str | None = None
    until: float | None = None
    is_subprocess: bool = False
    is_refinement: bool = False
    settings: Mapping[str, Any] | None = None
    is_command: bool = True
    until_decided: bool = False
    target: LaunchTarget = LOCAL
    is_shared: bool = False
    is_stored: bool = False
    report: bool = True
    trial: int | None = None

    @property
    def stored_name(self) -> str:
        """Name of the study in the storage."""
        name = study_name(self.study)
        return self.name or (
            name if self.trial is None else load_trial_config(name, self.trial).name
        )

    def load_file(self) -> ConfigFile:
        """Read the study's settings, with overrides.

        Raises:
            ConfigError, StorageError, StudyFormatError: see
                :func:`studies.loader.load_config_file`.
        """
        if self.trial is not None:
            file = load_trial_config(study_name(self.study), self.trial)
        elif self.is_stored:
            file = load_stored_config(self.study, self.storage)
        elif self.settings is not None:
            file = load_settings(self.study, self.settings)
        else:
            file = load_config_file(self.study, storage=self.storage)
        file = override_settings(file, self.overrides, self.unset)
        return file.model_copy(update={"is_command": self.is_command})

    @property
    def study_options(self) -> StudyOptions:
        """Options that define the study, in addition to its config file."""
        return StudyOptions(
            self.name,
            self.corpus,
            self.precision,
            self.prune,
            self.extend,
            self.partial,
            self.yes,
            self.command,
            self.artifacts,
            self.until_decided,
            self.is_shared,
            # A job may start after its study was renamed or deleted.
            (self.is_stored and self.trial is None)
            or self.is_subprocess
            or JOB_VARIABLE in os.environ,
            not self.target.is_local,
        )

    @property
    def command(self) -> str:
        """Command line, or call in Python, that creates the same study in any storage."""
        if self.settings is not None:
            return self._call
        program = "refine.py" if self.is_refinement else "run_search.py"
        words = ["python", program, self.study]
        for option, value in (
            ("--trial", self.trial),
            ("--name", self.name),
            ("--corpus", self.corpus),
            ("--precision", self.precision),
            *(("--unset", key) for key in self.unset),
            *(("--set", override) for override in self.overrides),
        ):
            words += [] if value is None else [option, str(value)]
        words += ["--prune"] if self.prune else []
        words += ["--extend"] if self.extend else []
        words += ["--partial"] if self.partial else []
        words += ["--yes"] if self.yes else []
        words += ["--until-decided"] if self.until_decided else []
        return shlex.join(words)

    @property
    def _call(self) -> str:
        """Call of :func:`rnn_search.run` that creates the same study."""
        overrides = load_overrides(self.overrides).settings | dict.fromkeys(self.unset)
        given = {
            "name": self.name or self.study,
            "overrides": overrides,
            "corpus": self.corpus,
            "precision": self.precision,
            "prune": self.prune,
            "extend": self.extend,
            "partial": self.partial,
            "yes": self.yes,
            "until_decided": self.until_decided,
        }
        arguments = [f"{name}={value!r}" for name, value in given.items() if value]
        return f"rnn_search.run({', '.join([repr(dict(self.settings or {})), *arguments])})"


@dataclass(frozen=True)
class Session:
    """A study, and what this process trains it with."""

    handle: StudyHandle
    reader: StatusReader
    device: torch.device
    checkpoints: CheckpointStore
    final_checkpoints: FinalCheckpointStore
    weights: WeightStore
    worker_name: str

    @classmethod
    def open(cls, options: RunOptions, file: ConfigFile) -> "Session":
        """Create or join the study of a config file."""
        device = find_device(options)
        checkpoints = open_store(options.artifacts, options.storage, "checkpoints")
        weights = open_store(options.artifacts, options.storage, "weights")
        handle = create_or_join(file, options.storage, options.study_options, device)
        return cls(
            handle,
            StatusReader(
                handle.study,
                handle.storage,
                handle.config,
                options.workers,
                local_folder(checkpoints, handle.artifact_folder),
            ),
            device,
            CheckpointStore(checkpoints, handle.artifact_folder),
            FinalCheckpointStore(checkpoints, handle.artifact_folder),
            WeightStore(weights, handle.artifact_folder),
            name_worker(socket.gethostname(), os.getpid(), os.environ.get(JOB_VARIABLE)),
        )


def open_session(
    options: RunOptions, stop: ShutdownSignal, print_line: Callable[[str], None]
) -> Session:
    """Create or join the study; wait for the storage while it is unavailable.

    Args:
        options: options of the command line.
        stop: signal on which to end the wait.
        print_line: prints a line for the user.

    Raises:
        StudiesError, RNNError, SearchError: for invalid input, before anything is written.
        ShutdownRequestedError: if a shutdown was requested during the wait.
        StorageUnavailableError: if the storage was unavailable for too long.
    """
    file = load_overrides(options.overrides)  # all that is known before the storage is read

    def open_once() -> Session:
        nonlocal file
        file = options.load_file()
        if options.is_refinement:
            require_refinement(file)
        return Session.open(options, file)

    return wait_for_storage(open_once, lambda: file.outage_seconds, stop, print_line)


def find_device(options: RunOptions) -> torch.device:
    """Return the device of this process, which trains nothing if workers run on a cluster."""
    try:
        return resolve_device(options.device)
    except DeviceError:
        if options.target.is_local or not re.fullmatch(r"cuda(:\d+)?", options.device):
            raise
        return torch.device("cpu")


def require_refinement(file: ConfigFile) -> None:
    """Check that a study derives from another.

    Raises:
        ConfigError: if it does not.
    """
    if file.settings.get("refinement") is None:
        raise ConfigError(
            f"study {file.name!r} has no [refinement]: use rnn-search run, or run_search.py"
        )
    if file.source is None:
        file.resolve()  # reports what is wrong with it


def wait_for_storage(
    operation: Callable[[], _T],
    outage_seconds: Callable[[], float],
    stop: ShutdownSignal,
    print_line: Callable[[str], None],
) -> _T:
    """Call a function again while the storage is unavailable, and return its result.

    Args:
        operation: function that may be called again after it raised an error.
        outage_seconds: returns how long to wait; called after each attempt.
        stop: signal on which to end the wait; its handlers are installed between the attempts.
        print_line: prints a line for the user.

    Raises:
        ShutdownRequestedError: if a shutdown was requested during the wait.
        StorageUnavailableError: if the storage was unavailable for too long.
    """
    unavailable_since: float | None = None
    seconds_to_next = 0.1
    while True:
        try:
            result = operation()
        except Exception as error:
            if not is_outage(error):
                raise
            reason, limit = error_message(database_error(error)), outage_seconds()
            now = time.monotonic()
            if unavailable_since is None:
                unavailable_since = now
                print_line(f"storage unavailable ({reason}); waiting for it for up to {limit:g} s")
            elapsed = now - unavailable_since
            if elapsed >= limit:
                raise StorageUnavailableError(
                    f"storage unavailable for {elapsed:.0f} s ({reason}), longer than {limit:g} s; "
                    "restore it and run the same command again"
                ) from error
        else:
            if unavailable_since is not None:
                print_line("storage available again")
            return result
        # Random, so that processes that were refused together do not retry together.
        with stop:
            stop.wait(min(seconds_to_next * random.uniform(0.5, 1), limit - elapsed))
        if stop.requested:
            raise ShutdownRequestedError("stopped while waiting for the storage")
        seconds_to_next = min(2 * seconds_to_next, RETRY_SECONDS)
