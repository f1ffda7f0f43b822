"""Attributes that a study and its trials store in Optuna's tables: names and models."""

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypedDict

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    create_model,
    model_validator,
)

from studies.config import StudyConfig
from studies.errors import RowError
from studies.records import NEXT_TOKEN, Floors, first_message, unit
from studies.space import BUILT_IN_PARAMS, Space
from studies.stated_hypotheses import HypothesisRecord
from studies.study_settings import TrainingSettings

OBJECTIVE_NAMES = {
    "validation": "validation loss",
    "training": "smoothed training loss",
    "training-mean": "mean training loss of the last quarter",
}
"""Meaning of a trial's value, in nats per token, by the study's objective: the final loss on the
validation split, the minimum of the smoothed training loss over the log points, or its mean over
the log points of the last quarter of the steps. Intermediate values are the smoothed training loss
at each log point in any case."""

OBJECTIVE_ATTRIBUTES = {
    "validation": "validation_loss",
    "training": "training_loss",
    "training-mean": "training_mean_loss",
}
"""User attribute with the loss of each objective; a trial records all of them."""

SCHEMA_VERSION: Final = 1
"""Version of the stored attributes. Raise it when a name or a meaning changes."""

# ------------------------------------------------------------------ of a study

# Fields of StudyRecord.
CONFIG = "config"
COMMANDS = "commands"
EARLIER_REPLICATES = "earlier_replicates"
HYPOTHESES = "hypotheses"
AUDIT_NUISANCE = "audit_nuisance"
TASK_FLOORS = "task_floors"

FOLDER_NAME = "[A-Za-z0-9_-]+"
"""Pattern of the study attribute ``artifact_folder``."""

GRID_SIZE = "rnn_search:grid_size"
"""Study system attribute: number of points in the grid, in a study whose grid was extended."""

AUDIT_LOOKS = "rnn_search:audit"
"""Study system attribute: an :class:`AuditLook` by name, for each look at the audited trials."""

NOTE = "rnn_search:note"
"""Study system attribute: version of the note for optuna-dashboard that this program wrote."""

# ------------------------------------------------------------------ of a trial

IS_GRID_TRIAL = "grid_trial"
"""System attribute that marks grid trials. Workers claim no others, and reports count no others."""

AUDIT = "audit"
"""System attribute of an audited trial: :class:`AuditState`."""

LEASE = "lease"
"""System attribute of a running trial: its lease."""

PAUSED = "paused"
"""System attribute of a paused trial: the time of the pause, UTC."""

CHECKPOINTED = "checkpointed"
"""System attribute of a trial of which a checkpoint was written."""

EARLIER_FAILURES = "earlier_failures"
"""System attribute of a trial that was retried: what it was after each failure."""

# Fields of TrialRecord.
FAILURE = "failure"
RETRY_COUNTS = "retries"
ERROR = "error"
SECONDS = "seconds"
STEPS_PER_SECOND = "steps_per_second"
RUNG = "rung"
KEEP_PROBABILITY = "keep_probability"
EARLIER_CODE = "earlier_code"
EARLIER_TORCH = "earlier_torch"
CONTEXT_LISTS = ("context_bins", "context_excess", "context_stderr")

SOURCE_TRIALS = "source_trials"
"""User attribute of a derived trial: numbers of its source trials, best first."""

COPIED_FROM = "copied_from"
"""User attribute of a derived trial that would repeat a run of its source exactly, and has its
results: number of that run."""

EVAL_WINDOWS = {"validation": "validation_windows", "test": "test_windows"}
"""System attributes: bits per byte on each evaluation window, in text order, by split."""

LONG_RESULTS = tuple(EVAL_WINDOWS.values())
"""Fields of :class:`TrialRecord` that are stored as system attributes. As user attributes they
would be most of what a dashboard loads."""

CURVE = "curve:"
"""Beginning of the system attributes with the held-out curves, a list of steps and values each;
what follows is the name, as in ``curve:validation_accuracy``."""


class Failure(StrEnum):
    """Why a trial failed or was requeued.

    Only ``DIVERGED`` is a result: the loss was not finite. After any other failure the trial runs
    again, after an error at most three times.
    """

    DIVERGED = "diverged"
    EXCEPTION = "exception"
    OUT_OF_MEMORY = "out of memory"
    LEASE_EXPIRED = "lease_expired"
    INTERRUPTED = "interrupted"

    @property
    def is_error(self) -> bool:
        """Whether this failure counts towards the limit of retries."""
        return self in (Failure.EXCEPTION, Failure.OUT_OF_MEMORY)


_Count = Annotated[int, Field(ge=0, lt=2**63)]
_Amount = Annotated[float, Field(ge=0)]
_STORED = ConfigDict(strict=True, allow_inf_nan=False)


class TrialRecord(BaseModel):
    """The user attributes of a finished trial; a failed one, or one of a loop, lacks some."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    training_loss: Annotated[float | None, unit("nat/token")] = None
    """Minimum of the smoothed training loss at the log points."""
    training_mean_loss: Annotated[float | None, unit("nat/token")] = None
    """Mean of the smoothed training loss over the last quarter of the steps."""
    validation_loss: Annotated[float | None, unit("nat/token")] = None
    """Loss of the trained network on the validation split."""
    validation_bits_per_byte: Annotated[float | None, unit("bit/byte")] = None
    """The same in bits per byte, which compare across tokenizers."""
    validation_stderr: Annotated[float | None, unit("bit/byte")] = None
    """Its standard error over the evaluation windows."""
    test_bits_per_byte: Annotated[float | None, unit("bit/byte")] = None
    """Loss on the test split, if the study evaluates it."""
    test_stderr: Annotated[float | None, unit("bit/byte")] = None
    """Its standard error over the evaluation windows."""
    validation_windows: Annotated[list[float] | None, unit("bit/byte")] = None
    """Loss on each window of the validation split."""
    test_windows: Annotated[list[float] | None, unit("bit/byte")] = None
    """Loss on each window of the test split."""
    context_bins: Annotated[list[_Count] | None, unit("token")] = None
    """Upper ends of the bins of context length: 1, 2, 4, 8, … and half of a window."""
    context_excess: Annotated[list[float] | None, unit("bit/byte")] = None
    """In each bin: the loss minus that of the same text with half a window more of context."""
    context_stderr: Annotated[list[float] | None, unit("bit/byte")] = None
    """Standard errors of `context_excess` over the evaluation windows."""
    context_loss: Annotated[float | None, unit("bit/byte")] = None
    """Loss with half a window more of context."""
    test_loss: float | None = None
    """Loss on the test split, of a task other than text."""
    metrics: dict[str, float] | None = None
    """Metrics on the validation split, of a task other than text."""
    test_metrics: dict[str, float] | None = None
    """Metrics on the test split, if the study evaluates it."""
    lengths: dict[_Count, dict[str, float]] | None = None
    """Loss and metrics on the validation split at each further length of the task."""
    slices: dict[str, dict[int, dict[str, float]]] | None = None
    """Loss and metrics for each value of each slice of the task."""
    sample: str | None = None
    """Text generated by the trained network."""
    parameter_count: _Count | None = None
    """Number of weights and biases."""
    trained_parameter_count: _Count | None = None
    """Number of weights and biases in parts that a gradient reaches."""
    state_count: _Count | None = None
    """Number of numbers in the states of all layers, for one stream."""
    steps: _Count | None = None
    """Time steps of the training."""
    updates: _Count | None = None
    """Updates of the weights."""
    inputs: _Count | None = None
    """Tokens, or inputs of another task, that all streams read."""
    steps_per_second: Annotated[_Amount, unit("1/s")]
    """Training steps per second of the trial's share of the training time."""
    seconds: Annotated[_Amount, unit("s")]
    """Time of training and evaluation: the trial's share, if networks train together."""
    host: str
    """Name of the machine."""
    worker: str
    """Host and process of the worker."""
    device: str | None = None
    """Device that trained the network."""
    threads: _Count | None = None
    """Number of CPU threads at the end."""
    lockstep: _Count = 1
    """Number of networks trained together at the start."""
    precision: str | None = None
    """Precision of the arithmetic."""
    seed: _Count
    """Seed of the study."""
    replicate: _Count
    """Number of the replicate."""
    python: str
    """Version of Python."""
    torch: str | None = None
    """Version of PyTorch."""
    code: str | None = None
    """Hash of the training code."""
    earlier_code: list[str] | None = None
    """Hashes of other training code that trained it before."""
    earlier_torch: list[str] | None = None
    """Other versions of PyTorch that trained it before."""
    failure: Failure | None = None
    """Why the trial failed."""
    error: str | None = None
    """Its last exception, in one line."""
    retries: dict[Failure, _Count] | None = None
    """How often it was requeued, by reason."""
    rung: _Count | None = None
    """Step of the pruner's last decision."""
    keep_probability: float | None = None
    """Probability, predicted at that step, to finish among the kept trials."""
    predicted_value: Annotated[float | None, unit("nat/token")] = None
    """Value predicted at that step."""
    predicted_scale: Annotated[float | None, unit("nat/token")] = None
    """Scale of that prediction's Student's t-distribution."""
    reason: str | None = None
    """Why it was pruned; of an audited trial, why it would have been."""

    def attributes(self) -> dict[str, Any]:
        """Return the user attributes to store, without those that are None."""
        return self.model_dump(mode="json", exclude_none=True)


class TrialColumns(TypedDict, total=False):
    """Columns of the reports' tables of trials that are neither recorded nor parameters."""

    study: str
    number: int
    architecture: str
    label: str
    state: str
    value: float | None
    told: float
    audited: bool
    source_trials: list[int] | None
    copied_from: int | None
    started: datetime | None
    completed: datetime | None
    solved_at: int | None
    effective_context: float
    effective_context_low: float
    effective_context_high: float


RESULT_NAMES = frozenset({*TrialColumns.__annotations__, *TrialRecord.model_fields})
"""Columns of tables of trials that are no parameters."""

RESERVED_OPTION_NAMES = RESULT_NAMES.union(
    BUILT_IN_PARAMS,
    Space.model_fields,
    TrainingSettings.model_fields,
    ("gate_inputs",),
)
"""Names that an option of a user's own cell cannot have."""


if TYPE_CHECKING:

    class TrialAttributes(BaseModel):
        """User attributes of a trial that this program defines, each of which may be absent."""

else:
    TrialAttributes = create_model(
        "TrialAttributes",
        __config__=ConfigDict(extra="forbid", strict=True, allow_inf_nan=False),
        **{
            name: (Annotated[field.annotation, field], None)
            for name, field in TrialRecord.model_fields.items()
        },
        **{SOURCE_TRIALS: (list[_Count] | None, None), COPIED_FROM: (_Count | None, None)},
    )


def _list_adapters(model: type[BaseModel]) -> dict[str, TypeAdapter[Any]]:
    """Return the parser of each field of a model."""
    return {
        name: TypeAdapter(Annotated[field.annotation, field], config=_STORED)  # type: ignore[arg-type]
        for name, field in model.model_fields.items()
    }


_ADAPTERS = _list_adapters(TrialAttributes)


def parse_trial_attribute(key: str, stored: str | None) -> Any:
    """Parse a stored attribute of a trial; None for one that this program does not define.

    Raises:
        RowError: if this program cannot have stored it.
    """
    if key not in _ADAPTERS:
        return None
    if stored is None:
        raise RowError(f"attribute {key}: it is NULL")
    return _parse(_ADAPTERS[key], f"attribute {key}", stored)


def _parse(kind: TypeAdapter[Any], place: str, stored: str) -> Any:
    try:
        return kind.validate_json(stored)
    except ValidationError as error:
        raise RowError(f"{place}: {first_message(error)}") from error


class AuditState(BaseModel):
    """What the pruner has decided about an audited trial, which trains on regardless.

    Attributes:
        rungs: number of rungs to which the pruner has let it train; one more than there are for its
            end.
        pruned: whether the pruner would have pruned it there.
    """

    model_config = ConfigDict(frozen=True, strict=True)

    rungs: Annotated[int, Field(ge=1)] = 1
    pruned: bool = False


class AuditLook(BaseModel):
    """Planned look at the audited trials; see :mod:`search.pruning.audited_trials`.

    Attributes:
        complete: number of trials that were complete in the pruner's decisions.
        trials: number of audited trials with a prediction and a final value, one of each
            architecture.
        inside: number of them whose final value is within two scales of the prediction.
        alarm: whether the predictions failed the test.
    """

    model_config = ConfigDict(frozen=True, strict=True)

    complete: _Count
    trials: _Count
    inside: _Count
    alarm: bool


FIRST_LOOK = "first"
"""Look at the audited trials once as many trials are complete as are to be kept; none is pruned
before."""

LAST_LOOK = "last"
"""Look at the audited trials before the paused trials are pruned."""


def name_look(name: str, task: str) -> str:
    """Return the name by which a look at the audited trials of a task is stored; "" is the only."""
    return f"{name}, {task}" if task else name


def select_looks(looks: Mapping[str, AuditLook], task: str) -> dict[str, AuditLook]:
    """Return the looks of one task by their names, of all that are stored."""
    keys = {name: name_look(name, task) for name in (FIRST_LOOK, LAST_LOOK)}
    return {name: looks[key] for name, key in keys.items() if key in looks}


# ------------------------------------------------------------------ system attributes of results


class _PastTrial(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    started: datetime | None
    completed: datetime | None
    attributes: dict[str, Any]


HeldOutCurve = list[Annotated[list[_Count | float | None], Field(min_length=2, max_length=2)]]
"""A step and a value for each point; None for a value that is not finite."""


class TrialResults(BaseModel):
    """System attributes of a trial that belong to the results of its study.

    Others say who works on the trial, or what a dashboard shows. Those that are no field are
    held-out curves.
    """

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)

    __pydantic_extra__: dict[Annotated[str, Field(pattern=f"^{CURVE}")], HeldOutCurve]

    grid_trial: Literal[True]
    audit: AuditState | None = None
    paused: datetime | None = None
    earlier_failures: list[_PastTrial] = []
    validation_windows: list[float] = []
    test_windows: list[float] = []


_RESULTS_OF_TRIALS = _list_adapters(TrialResults)
del _RESULTS_OF_TRIALS[IS_GRID_TRIAL]
_CURVES: TypeAdapter[Any] = TypeAdapter(HeldOutCurve, config=_STORED)

STUDY_SYSTEM_ATTRIBUTES = (GRID_SIZE, AUDIT_LOOKS)
"""System attributes of a study that belong to its results. Others say what a dashboard shows."""


def is_result(name: str) -> bool:
    """Return whether a system attribute of a trial belongs to the results of its study."""
    return name in _RESULTS_OF_TRIALS or name.startswith(CURVE)


def parse_trial_system_attribute(name: str, stored: str) -> Any:
    """Parse a system attribute of a trial, given as JSON, to the type that it has here.

    Raises:
        RowError: if this program cannot have stored it.
    """
    return _parse(_RESULTS_OF_TRIALS.get(name, _CURVES), f"system attribute {name}", stored)


class StudyResults(BaseModel):
    """System attributes of a study that belong to its results."""

    model_config = ConfigDict(extra="forbid", strict=True)

    grid_size: int | None = Field(None, ge=1, alias=GRID_SIZE)
    audit_looks: dict[str, AuditLook] = Field({}, alias=AUDIT_LOOKS)


def parse_audit_looks(stored: str) -> dict[str, AuditLook]:
    """Parse the system attribute of a study with its looks at audited trials, given as JSON.

    Raises:
        RowError: if this program cannot have stored it.
    """
    looks: dict[str, AuditLook] = _parse(_LOOKS, f"system attribute {AUDIT_LOOKS}", stored)
    return looks


_LOOKS: TypeAdapter[Any] = TypeAdapter(dict[str, AuditLook])


# ------------------------------------------------------------------ records of a study


class VersionRecord(BaseModel):
    """Versions that a worker trains with; trials record them as attributes of the same names.

    Attributes:
        code: hash of the training code, :func:`rnn.training.checkpoint.source_hash`.
        torch: version of PyTorch.
    """

    model_config = ConfigDict(frozen=True)

    code: str
    torch: str


class StudyRecord(BaseModel):
    """The user attributes of a study; see :func:`studies.storage.open.read_record`."""

    model_config = ConfigDict(frozen=True)

    schema_version: Literal[1] = SCHEMA_VERSION
    """Version of these attributes; others are refused."""
    config: StudyConfig
    """The study file with all defaults. Records of your own cells and of the task have the SHA-256
    of their sources and data; that of text has the tokenizer."""
    floors: Floors | None = None
    """[Floors](tasks.md#floors) of a task other than text."""
    task_floors: dict[str, Floors] = {}
    """Floors of each of several tasks, by name."""
    commands: list[str] = []
    """Commands that created and extended the study."""
    # Never a path that leads elsewhere, because files in it are removed.
    artifact_folder: Annotated[str, Field(pattern=f"^{FOLDER_NAME}$")]
    """Unique name of the folder of checkpoints, weights and cells."""
    created_with: VersionRecord | None = None
    """Hash of the training code and version of PyTorch that created the study."""
    earlier_replicates: list[Annotated[int, Field(ge=1)]] = []
    """Number of replicates before each extension."""
    hypotheses: list[HypothesisRecord] = []
    """Each `hypothesis`, when it was `registered`, and how many `results` the study had then."""
    audit_nuisance: list[str] = []
    """Nuisance parameters when the audited architectures were drawn."""

    @model_validator(mode="after")
    def _check_text(self) -> "StudyRecord":
        for task in self.config.list_tasks().values():
            if task.loss == NEXT_TOKEN and task.text is None:
                raise ValueError("a study of a text has no corpus")
        return self

    @property
    def replicates(self) -> list[int]:
        """Number of replicates now, then those before each extension, the latest first."""
        return [self.config.replicates, *reversed(self.earlier_replicates)]

    def settings(self) -> dict[str, Any]:
        """Return the settings as a study file states them, with the place of the corpus."""
        settings = self.config.model_dump(mode="json")
        for task in self.config.list_tasks().values():
            if task.text is not None:
                settings["task"]["corpus"] = task.text.corpus
        return settings

    def attributes(self) -> dict[str, Any]:
        """Return the user attributes to store."""
        return self.model_dump(mode="json")
