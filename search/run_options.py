"""Options of a search, and those of them that may differ between workers.

The command line, the Python API, worker processes and launchers derive from these models, which
need no PyTorch.
"""

import shlex
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Field

from rnn.errors import UserError
from search.launch.launcher import LaunchTarget, parse_target
from search.worker.shutdown import MAX_SECONDS, parse_duration
from studies.messages import study_name
from studies.option_models import Options, option, to_words
from studies.study_settings import PrecisionSetting

if TYPE_CHECKING:
    from studies.loader import ConfigFile

MAX_UNCONFIRMED = 20_000
"""Number of new trials above which a user must confirm them with ``--yes``."""

TASK_SOURCE = "task.source"
"""Setting by which a worker says where it has the source or the data of the study's task."""

LOOP_FUNCTION = "loop.function"
"""Setting by which a worker says where it has the function of the study's loop."""


def _parse_lockstep(value: object) -> object:
    if not isinstance(value, str):
        return value
    if value != "auto" and not (value.isdecimal() and len(value) < 18):
        raise ValueError("expected auto or a positive integer")
    return None if value == "auto" else int(value)


def _parse_until(value: object) -> object:
    if isinstance(value, str):
        return parse_duration(value)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if value is not None and not (is_number and 0 < value <= MAX_SECONDS):  # type: ignore[operator]
        raise ValueError("expected seconds, or a duration such as '45m', at most ten years")
    return value


class WorkerOptions(Options):
    """What may differ between the workers of a study.

    Attributes:
        overrides: settings that each worker chooses (:data:`studies.loader.PER_WORKER`), as
            ``KEY=VALUE``.
        until: seconds after which to stop.
    """

    overrides: tuple[str, ...] = option(
        (),
        "Override a setting of the study file, as in training.steps=2000; may be repeated.",
        flag="--set",
        metavar="KEY=VALUE",
    )
    corpus: str | None = option(
        None,
        "Corpus to use instead of the study file's: stdlib, enwik8 or a file.",
        metavar="NAME|PATH",
    )
    threads: Annotated[int, Field(ge=1, le=1024)] | None = option(
        None, "CPU threads per worker.", show_default="share of this machine's cores"
    )
    lockstep: Annotated[Annotated[int, Field(ge=1)] | None, BeforeValidator(_parse_lockstep)] = (
        option(
            None,
            "Maximum number of networks that a worker trains together.",
            metavar="auto|K",
            show_default="auto",
        )
    )
    device: str = option("auto", "Device to train on.", metavar="auto|cpu|cuda[:i]")
    wait: bool = option(
        True,
        "Exit when no trial is left to claim, even if other workers still train.",
        flag="--no-wait",
    )
    until: Annotated[float | None, BeforeValidator(_parse_until)] = option(
        None, "Stop cleanly after this time, as in 45m, 3h or 1h30m.", metavar="DURATION"
    )
    artifacts: str | None = None
    report: bool = option(
        True, "Do not write a report when the study is finished.", flag="--no-report"
    )


class RunOptions(WorkerOptions):
    """What a user asks for: a study to create or to join, and workers to run its trials.

    Attributes:
        study: name or path of a study file, or the name of a stored study.
        storage: URL of the storage.
        settings: settings of the study, named ``study``, in place of a file; None for the file.
        by_name: whether to work on the stored study ``study`` as it is: nothing is compared.
        is_refinement: whether the study must derive from another.
    """

    study: str
    storage: str
    name: Annotated[str, Field(min_length=1)] | None = option(
        None, "Name of the study.", show_default="name of its file, or STUDY-trial-N"
    )
    trial: Annotated[int, Field(ge=0, lt=2**63)] | None = option(
        None,
        "Run trial N of the stored study STUDY again, alone, in a study of its own.",
        metavar="N",
    )
    settings: Mapping[str, Any] | None = None
    precision: PrecisionSetting | None = option(
        None, "Precision of matrix products; fixed when the study is created."
    )
    prune: bool = option(
        False,
        "Prune trials that are unlikely to finish among the best; same as --set "
        "pruning.enabled=true.",
    )
    extend: bool = option(
        False,
        "Add trials for new values in the search space, or for more refinement.replicates; store "
        "another question, report_threshold, untrained, told, nuisance or hypothesis.",
    )
    partial: bool = option(False, "Accept a source study that is not finished.")
    yes: bool = option(False, f"Allow more than {MAX_UNCONFIRMED:,} new trials.")
    is_stored: bool = option(
        False, "STUDY is the name of a study in the storage; no file is read.", flag="--stored"
    )
    by_name: bool = False
    is_refinement: bool = False
    workers: Annotated[int, Field(ge=1, le=10_000)] = option(
        1, "Number of worker processes on this machine, or of jobs on a cluster."
    )
    launch: str = option(
        "local",
        "Where to start the workers: on this machine, or as jobs of a cluster.",
        metavar="local|slurm|ray[://HOST:PORT]",
    )
    launch_set: tuple[str, ...] = option(
        (),
        "Option of the cluster's jobs, as in partition=gpu or time=04:00:00; may be repeated.",
        metavar="KEY=VALUE",
    )

    def model_post_init(self, _: Any) -> None:
        """Refuse a target that is not understood."""
        assert self.target

    @cached_property
    def target(self) -> LaunchTarget:
        """Where the workers run.

        Raises:
            UserError: if that is not understood.
        """
        try:
            return parse_target(self.launch, self.launch_set)
        except ValueError as error:
            message = str(error)
            if not self.is_command:
                message = message.replace("--launch-set", "launch_set")
                message = message.replace("--launch", "launch")
            raise UserError(message) from error

    @property
    def stored_name(self) -> str:
        """Name of the study in the storage."""
        from studies.loader import load_trial_config  # slow

        name = self.study if self.is_stored or self.by_name else study_name(self.study)
        return self.name or (
            name if self.trial is None else load_trial_config(name, self.trial).name
        )

    def load_file(self) -> "ConfigFile":
        """Read the study's settings, with the options that override them.

        Raises:
            UserError, StorageError, StudyFormatError: see
                :func:`studies.loader.load_config_file`.
        """
        from studies import loader  # slow

        if self.trial is not None:
            if self.extend:
                raise UserError("--trial runs a trial once more as it was: expected no --extend")
            file = loader.load_trial_config(study_name(self.study), self.trial)
        elif self.is_stored or self.by_name:
            file = loader.load_stored_config(self.study, self.storage)
        elif self.settings is not None:
            file = loader.load_settings(self.study, self.settings)
        else:
            file = loader.load_config_file(self.study, storage=self.storage)
        file = loader.override_settings(file, self.overrides)
        if self.corpus is not None:
            file = file.with_overrides({"task": {"corpus": self.corpus}})
        if self.precision is not None:
            file = file.with_overrides({"precision": self.precision})
        return file.with_overrides({"pruning": {"enabled": True}}) if self.prune else file

    @property
    def command(self) -> str:
        """Command line, or call in Python, that creates the same study in any storage."""
        if self.settings is not None:
            return self._call
        is_refinement = self.is_refinement or self.partial
        words = ["rnn-search", "refine" if is_refinement else "run", self.study]
        return shlex.join([*words, *to_words(self, _DEFINING)])

    @property
    def _call(self) -> str:
        """Call of :func:`rnn_search.run` that creates the same study."""
        from studies.loader import load_overrides  # slow

        overrides = load_overrides(self.overrides).settings
        given = {"name": self.name or self.study, "overrides": overrides}
        given |= {name: getattr(self, name) for name in _DEFINING if name not in _STATED}
        arguments = [f"{name}={value!r}" for name, value in given.items() if value]
        return f"rnn_search.run({', '.join([repr(dict(self.settings or {})), *arguments])})"


_DEFINING = (
    "is_stored", "trial", "name", "corpus", "precision", "overrides", "prune", "extend",
    "partial", "yes",
)  # fmt: skip
"""Options that define a study, in the order of a recorded command."""

_STATED = ("trial", "name", "overrides")
"""Those that a recorded call in Python states in another way."""
