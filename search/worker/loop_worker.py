"""A worker that hands the trials of a study to a training loop of the user's."""

import importlib.util
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rnn.errors import UserError
from search.errors import format_error
from search.launch.launcher import name_worker
from search.open_study import OpenStudy
from search.worker.claims import ClaimManager
from search.worker.loop_state import find_torch_version, hash_code
from search.worker.loop_trial import Trial
from search.worker.queue import TrialQueue
from search.worker.shutdown import ShutdownSignal
from search.worker.versions import describe_mixing
from studies.attributes import VersionRecord

LoopFunction = Callable[[Trial], float]
"""Runs one trial and returns its value."""

_logger = logging.getLogger(__name__)


class LoopWorker:
    """Claims the trials of a study with a loop, one after another.

    Args:
        claims: entered claim manager.
        stop: ends the trials; the current one saves and is requeued.
        source: file of the loop; None if it has none, as in a notebook.
        catch: exceptions after which a trial is tried again and then recorded as failed.
        wait: whether to stay until the trials that others run are finished too.

    Attributes:
        versions: hash of the loop's code, and version of PyTorch, "" if it is not imported.
        close: ends the worker when an exception leaves the loop.
        saves: whether the loop calls ``save``; None as long as that is not known.
        unfinished: numbers of the trials that ended without a call of ``finish``.
    """

    def __init__(
        self,
        study: OpenStudy,
        claims: ClaimManager,
        stop: ShutdownSignal,
        source: Path | None,
        catch: Sequence[type[Exception]] = (),
        wait: bool = True,
    ) -> None:
        self.config = study.config
        self.queue = TrialQueue(study, claims, stop)
        self.name = name_worker()
        self.versions = VersionRecord(code=hash_code(source), torch=find_torch_version())
        self.catch = tuple(catch)
        self.close: Callable[[], object] = lambda: None
        self.saves: bool | None = None
        self.unfinished: set[int] = set()
        self._wait = wait
        if warning := describe_mixing(study.study, study.storage, self.versions):
            _logger.warning(warning)

    def trials(self) -> Iterator[Trial]:
        """Yield claimed trials until none is left or a stop is requested.

        Raises:
            StorageUnavailableError: if the storage was unavailable for too long.
            UserError: if the loop has not used the last trial as a context manager.
        """
        for (claim,) in self.queue.batches(None, self._wait):
            trial = Trial(self, claim)
            try:
                yield trial
            finally:  # also if the caller takes no further trial
                is_left = trial.is_held
                if is_left:
                    trial._requeue()
            if is_left:
                raise UserError(
                    f"trial {trial.number} was claimed and not run: expected `with trial:` around "
                    "the loop"
                )

    def run(self, function: LoopFunction, prepare: Callable[[], object] = lambda: None) -> None:
        """Run a function for each trial, and ``prepare`` before it, until none is left."""
        for trial in self.trials():
            prepare()
            with trial:
                try:
                    trial.finish(function(trial))
                except SystemExit as error:  # as of a script's main
                    raise UserError(f"the function called sys.exit({error.code!r})") from error


def locate_function(spec: str) -> tuple[Path, str]:
    """Return the file and the name of the function of a loop.

    Raises:
        UserError: if there is no such file.
    """
    source, _, name = spec.rpartition(":")
    path = Path(source).absolute()
    if not path.is_file():
        raise UserError(f"loop.function {spec}: {path} not found: check the path")
    return path, name


def load_function(spec: str) -> tuple[LoopFunction, Path]:
    """Load the function of a loop, and return it with its file.

    The file's folder is searched for imports, as if the file were run.

    Raises:
        UserError: if there is no such file or function, or the file raises an exception.
    """
    path, name = locate_function(spec)
    # Not the name of a module that is imported, such as a package of this program.
    module_name = f"loop_{path.stem}" if path.stem in sys.modules else path.stem
    module_spec = importlib.util.spec_from_file_location(module_name, path)
    assert module_spec is not None
    assert module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    sys.path.insert(0, str(path.parent))
    sys.modules[module_name] = module  # so that pickle and dataclasses find it
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:  # of any kind: it is the user's code
        raise UserError(f"loop.function {spec}: the file raises {format_error(error)}") from error
    function: Any = getattr(module, name, None)
    if not callable(function):
        raise UserError(
            f"loop.function {spec}: {path.name} has no function {name}: expected one that takes a "
            "trial and returns its value"
        )
    return function, path


def find_script() -> Path | None:
    """Return the file of the running script; None in a notebook, which has none."""
    file = getattr(sys.modules.get("__main__"), "__file__", None)
    path = Path(file or "").absolute()
    return path if path.is_file() else None  # not in an archive, which Python runs as well


def require_one_process() -> None:
    """Refuse to run under a launcher of distributed training, each of whose processes would claim.

    Raises:
        UserError: under ``torchrun`` with several processes.
    """
    size = os.environ.get("WORLD_SIZE", "1")
    if size.isdecimal() and int(size) > 1:
        raise UserError(
            f"torchrun started {size} processes of one job: expected one process for each trial, "
            "such as one `python train.py` for each GPU"
        )
