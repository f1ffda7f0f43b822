"""The one list of what a trial stores beside its parameters and its curve."""

from enum import StrEnum
from typing import Annotated, Any

from optuna.trial import FrozenTrial
from pydantic import BaseModel, ConfigDict, Field

OBJECTIVE_NAMES = {"training": "smoothed training loss", "validation": "validation loss"}
"""What a trial's value is, by the study's objective, in nats a symbol: the least smoothed training
loss over the log points, or the loss on held-out text at the end. The intermediate values are the
smoothed training loss at each log point, by step, in either case."""

IS_GRID_TRIAL = "grid_trial"
"""The system attribute of the trials that are a study's points; others, which plain Optuna may have
added, are nobody's to claim and count in nothing."""

FAILURE = "failure"
"""The user attribute that says why a trial failed."""

RETRY_COUNTS = "retries"
"""The user attribute that counts what a trial has been through, by :class:`Failure`, without being
given up."""

ERROR = "error"
"""The user attribute that holds a trial's last exception."""

PAUSED = "paused"
"""The system attribute of a waiting trial that the pruner has put off: since when, UTC."""

SECONDS = "seconds"
"""The user attribute that says what a trial took."""

RUNG = "rung"
"""The user attribute that says at which step the pruner last put a trial off."""

EARLIER_CODE = "earlier_code"
"""The user attribute that lists the training code that a trial was resumed from."""

SOURCE_TRIALS = "source_trials"
"""The user attribute of a derived point: the numbers of the source's trials that it came from,
the best first."""

ARTIFACT_FOLDER = "artifact_folder"
"""The study attribute that names the folder of its checkpoints and its weights, which is no other
study's."""

CONFIG = "config"
"""The study attribute that holds the whole definition, resolved."""

COMMANDS = "commands"
"""The study attribute that lists the commands that made it, and those that extended it."""

CORPUS = "corpus"
"""The study attribute that holds the text's name, SHA-256, length and split."""


TOKENIZER = "tokenizer"
"""The study attribute that holds a :class:`TokenizerRecord`."""

EVAL_WINDOWS = {"validation": "validation_windows", "test": "test_windows"}
"""Of a trial, the bits per character on each lane of a split, in the order of the text. They are
system attributes: as user attributes they would be half of what a dashboard loads."""


def is_grid_trial(trial: FrozenTrial) -> bool:
    """Tell a point of the study from a trial that somebody added."""
    return IS_GRID_TRIAL in trial.system_attrs


class Failure(StrEnum):
    """Why a trial did not come to a value, for good or for the time being.

    Only the first is a result: the loss was not finite. After the others the point is run again,
    after an error three times at most.
    """

    DIVERGED = "diverged"
    EXCEPTION = "exception"
    OUT_OF_MEMORY = "out of memory"
    LEASE_EXPIRED = (
        "lease_expired"  # its worker was killed, or not heard of for the length of its lease
    )
    INTERRUPTED = "interrupted"  # its worker was asked to stop

    @property
    def is_error(self) -> bool:
        """Whether it is one of those after which a point is run again three times at most."""
        return self in (Failure.EXCEPTION, Failure.OUT_OF_MEMORY)


def _unit(unit: str, meaning: str) -> Any:
    return Field(description=meaning, json_schema_extra={"unit": unit})


class TrialRecord(BaseModel):
    """What a finished trial stores as user attributes; a failed one lacks what it never had."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    training_loss: Annotated[
        float | None, _unit("nat/token", "the least smoothed training loss over the log points")
    ] = None
    validation_loss: Annotated[
        float | None, _unit("nat/token", "loss of the trained network on the validation split")
    ] = None
    validation_bits_per_byte: Annotated[
        float | None, _unit("bit/byte", "the same, comparable over vocabularies")
    ] = None
    validation_stderr: Annotated[
        float | None, _unit("bit/byte", "its standard error over the lanes of text")
    ] = None
    test_bits_per_byte: Annotated[
        float | None, _unit("bit/byte", "loss on the test split, where a study asks for it")
    ] = None
    test_stderr: Annotated[
        float | None, _unit("bit/byte", "its standard error over the lanes of text")
    ] = None
    validation_windows: Annotated[
        list[float] | None, _unit("bit/byte", "of each lane of the validation split")
    ] = None
    test_windows: Annotated[
        list[float] | None, _unit("bit/byte", "of each lane of the test split")
    ] = None
    sample: Annotated[str | None, _unit("", "a text that the trained network wrote")] = None
    parameter_count: Annotated[int, _unit("1", "weights and biases")]
    steps_per_second: Annotated[
        float, _unit("1/s", "training steps over its share of the training time")
    ]
    seconds: Annotated[
        float,
        _unit("s", "training and evaluation, its share of the wall time of those trained together"),
    ]
    host: Annotated[str, _unit("", "name of the machine")]
    worker: Annotated[str, _unit("", "host and process of the worker")]
    device: Annotated[str, _unit("", "where the network was trained")]
    threads: Annotated[int, _unit("1", "of the processor, at the end")]
    lockstep: Annotated[int, _unit("1", "networks trained together, when it began")] = 1
    precision: Annotated[str, _unit("", "of the arithmetic")]
    seed: Annotated[int, _unit("", "of the study")]
    replicate: Annotated[int, _unit("", "number of the replicate, from 0")]
    python: Annotated[str, _unit("", "version")]
    torch: Annotated[str, _unit("", "version")]
    code: Annotated[str | None, _unit("", "fingerprint of the training code")] = None
    earlier_code: Annotated[
        list[str] | None, _unit("", "fingerprints of other code that trained it before")
    ] = None
    failure: Annotated[Failure | None, _unit("", "why a failed trial failed")] = None
    error: Annotated[str | None, _unit("", "its last exception, in one line")] = None
    retries: Annotated[
        dict[Failure, int] | None, _unit("1", "how often it was run again, by reason")
    ] = None
    rung: Annotated[int | None, _unit("1", "step at which the pruner last looked at it")] = None
    keep_probability: Annotated[
        float | None, _unit("1", "probability, there, to end among the best that are kept")
    ] = None
    predicted_value: Annotated[
        float | None, _unit("nat/token", "the value that was foretold there")
    ] = None
    reason: Annotated[str | None, _unit("", "why it was pruned")] = None

    def attributes(self) -> dict[str, Any]:
        """Return the user attributes to store: those that have a value."""
        return self.model_dump(mode="json", exclude_none=True)


class CorpusRecord(BaseModel):
    """What a study stores of its text."""

    model_config = ConfigDict(frozen=True)

    name: str
    sha256: str
    length: int
    split: tuple[int, int]


class TokenizerRecord(BaseModel):
    """What a study stores of what its networks read.

    Attributes:
        size: V, the number of symbols.
        bytes_per_token: in the training split.
        serialized: the vocabulary itself, as :mod:`rnn.data.tokenizer` writes it; None for bytes.
    """

    model_config = ConfigDict(frozen=True)

    size: int
    bytes_per_token: float
    serialized: str | None = None
