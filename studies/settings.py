"""The settings of a study that are numbers, section by section."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

MAX_BPTT_STEPS = 10_000
"""The most steps that a gradient may go through."""


class StrictModel(BaseModel):
    """What takes no value for another, and no name that it does not know."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class TrainingSettings(StrictModel):
    """How each network is trained; :class:`rnn.training.Training` says what the words mean."""

    steps: PositiveInt = 10_000
    batch_size: PositiveInt = 256
    sequence_length: Annotated[int, Field(ge=2)] = 1000
    log_every: PositiveInt = 50
    learning_rate: PositiveFloat = 0.001
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.95
    bptt_steps: Annotated[int, Field(ge=1, le=MAX_BPTT_STEPS)] = 1

    @model_validator(mode="after")
    def _logged(self) -> "TrainingSettings":
        if self.log_every > self.steps:
            raise ValueError(
                f"log_every is {self.log_every} and steps {self.steps}; allowed: log_every at "
                "most steps, for a trial's value is taken at its log points; change one of them"
            )
        return self


class EvaluationSettings(StrictModel):
    """How each network is measured at its end.

    Attributes:
        windows: of held-out text, at most.
        window_length: symbols in a lane.
        average: the last part of the steps over which the weights are averaged: the network that is
            measured, and kept, is the mean of what it was at each of them. 0 for the last one.
    """

    windows: PositiveInt = 256
    window_length: Annotated[int, Field(ge=2)] = 1000
    average: Annotated[float, Field(ge=0, lt=1)] = 0.1


class PruningSettings(StrictModel):
    """When to give up on points that are unlikely to end among the best.

    Attributes:
        enabled: whether points are given up on at all.
        keep: the fraction of all points that is to be kept: the next study's ``refinement.top``.
        confidence: of that fraction, the share that is expected to be kept at least.
    """

    enabled: bool = False
    keep: Annotated[float, Field(gt=0, lt=1)] = 0.1
    confidence: Annotated[float, Field(ge=0.5, lt=1)] = 0.95


class LeaseSettings(StrictModel):
    """How long a worker that is not heard of keeps its trial, in seconds."""

    seconds: Annotated[float, Field(ge=1)] = 120


class CheckpointSettings(StrictModel):
    """How often a running trial is written down, in seconds."""

    seconds: PositiveFloat = 60


class OutageSettings(StrictModel):
    """How long a worker waits for a storage that is away, in seconds."""

    seconds: Annotated[float, Field(ge=0)] = 600
