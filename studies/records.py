"""The one list of what a trial stores beside its parameters and its curve."""

from enum import StrEnum
from typing import Annotated, Any

from optuna.trial import FrozenTrial
from pydantic import BaseModel, ConfigDict, Field

METRIC_NAME = "smoothed training loss"
"""Of a trial's value: the least smoothed training loss over the log points, nats a byte. The
intermediate values are that smoothed loss at each log point, by step."""

POINT = "point"
"""The system attribute of the trials that are a study's points; others, which plain Optuna may have
added, are nobody's to claim and count in nothing."""

FAILURE = "failure"
"""The user attribute that says why a trial failed."""

SECONDS = "seconds"
"""The user attribute that says what a trial took."""

SOURCE_TRIALS = "source_trials"
"""The user attribute of a derived point: the numbers of the source's trials that it came from,
the best first."""

DEFINITION = "definition"
"""The study attribute that holds the whole definition, resolved."""

CORPUS = "corpus"
"""The study attribute that holds the text's name, SHA-256, length and split."""


def is_point(trial: FrozenTrial) -> bool:
    """Tell a point of the study from a trial that somebody added."""
    return POINT in trial.system_attrs


class Failure(StrEnum):
    """Why a trial failed."""

    DIVERGED = "diverged"
    EXCEPTION = "exception"


def _unit(unit: str, meaning: str) -> Any:
    return Field(description=meaning, json_schema_extra={"unit": unit})


class TrialRecord(BaseModel):
    """What a finished trial stores as user attributes; a failed one lacks what it never had."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    validation_bits_per_character: Annotated[
        float | None, _unit("bit/character", "held-out loss of the trained network")
    ] = None
    parameter_count: Annotated[int, _unit("1", "weights and biases")]
    steps_per_second: Annotated[float, _unit("1/s", "training steps over training time")]
    seconds: Annotated[float, _unit("s", "training and evaluation, on the wall")]
    host: Annotated[str, _unit("", "name of the machine")]
    worker: Annotated[str, _unit("", "host and process of the worker")]
    device: Annotated[str, _unit("", "where the network was trained")]
    threads: Annotated[int, _unit("1", "of the processor, at the end")]
    precision: Annotated[str, _unit("", "of the arithmetic")]
    seed: Annotated[int, _unit("", "of the study")]
    replicate: Annotated[int, _unit("", "number of the replicate, from 0")]
    python: Annotated[str, _unit("", "version")]
    torch: Annotated[str, _unit("", "version")]
    failure: Annotated[Failure | None, _unit("", "why a failed trial failed")] = None
    error: Annotated[str | None, _unit("", "the exception of a failed trial, in one line")] = None

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
