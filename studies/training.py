"""Training settings of a study, and those of them that a grid can vary."""

from dataclasses import fields
from typing import Annotated

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from rnn.config import OPTIMIZERS, OptimizerConfig, OptimizerName, ParamValue, Schedule
from studies.strict_model import StrictModel, unit

MAX_BPTT_STEPS = 10_000

_SequenceLength = Annotated[int, Field(ge=2)]
_NonNegative = Annotated[float, Field(ge=0)]
_Decay = Annotated[float, Field(ge=0, lt=1)]
_WarmupSteps = Annotated[int, Field(ge=0)]
_BPTTSteps = Annotated[int, Field(ge=1, le=MAX_BPTT_STEPS)]


class TrainingSettings(StrictModel):
    """How each network is trained; see :class:`rnn.training.loop.TrainConfig`.

    The settings of the optimizer are those of :class:`rnn.config.OptimizerConfig`.
    """

    steps: PositiveInt = 10_000
    """Time steps, each with one update of the weights."""
    batch_size: PositiveInt = 256
    """Streams: texts read in parallel."""
    sequence_length: Annotated[_SequenceLength, unit("token")] = 1000
    """Tokens that a stream reads from a random start; the states are zero there."""
    log_every: PositiveInt = 50
    """Steps between two log points."""
    optimizer: OptimizerName = "adam"
    """Optimizer; `weight_decay` is decoupled from the gradient in `adamw` and added to it
    elsewhere."""
    learning_rate: PositiveFloat = 0.001
    """Learning rate; with a schedule the highest one."""
    beta1: _Decay = 0.9
    """Decay of the mean of the gradient."""
    beta2: _Decay = 0.999
    """Decay of the mean of its square."""
    weight_decay: _NonNegative = 0.0
    """Factor of the weights in their decay."""
    momentum: _Decay = 0.9
    """Factor of the previous updates in the next one."""
    gradient_clipping: _NonNegative = 0.0
    """Maximum norm of a network's gradient; 0 for none."""
    schedule: Schedule = "constant"
    """What the learning rate does after its warm-up: it stays, or falls to 0 by the end of the
    training, along half a cosine or a line."""
    warmup_steps: _WarmupSteps = 0
    """Steps over which the learning rate rises from 0, along a line."""
    smoothing: _Decay = 0.95
    """Weight of the past in the smoothed training loss, which starts at 3 nats per token; that
    start has a share of 0.95ⁿ after n steps: 8% after 50, 0.6% after 100."""
    bptt_steps: _BPTTSteps = 1
    """Steps that a gradient goes back."""

    @model_validator(mode="after")
    def _check_log_points(self) -> "TrainingSettings":
        if self.log_every > self.steps:
            raise ValueError(
                f"log_every is {self.log_every} and steps {self.steps}: expected log_every of at "
                "most steps, because a trial's value is read at its log points; set "
                "training.log_every"
            )
        return self

    @property
    def optimizer_config(self) -> OptimizerConfig:
        """The settings of the optimizer."""
        return OptimizerConfig(*(getattr(self, name) for name in OPTIMIZER_PARAMS))


class TrainingSpace(StrictModel):
    """Values of the training settings that a grid varies; None for the study's value."""

    batch_size: list[PositiveInt] | None = None
    sequence_length: list[_SequenceLength] | None = None
    optimizer: list[OptimizerName] | None = None
    learning_rate: list[PositiveFloat] | None = None
    beta1: list[_Decay] | None = None
    beta2: list[_Decay] | None = None
    weight_decay: list[_NonNegative] | None = None
    momentum: list[_Decay] | None = None
    gradient_clipping: list[_NonNegative] | None = None
    schedule: list[Schedule] | None = None
    warmup_steps: list[_WarmupSteps] | None = None
    smoothing: list[_Decay] | None = None
    bptt_steps: list[_BPTTSteps] | None = None

    @field_validator("*")
    @classmethod
    def _check_values(cls, values: list[ParamValue] | None) -> list[ParamValue] | None:
        return values if values is None else check_values(values)


def check_values(values: list[ParamValue]) -> list[ParamValue]:
    """Require the values of a parameter to be distinct, and at least one.

    Raises:
        ValueError: if they are not.
    """
    if not values:
        raise ValueError("expected at least one value")
    if len({(type(value), value) for value in values}) < len(values):
        raise ValueError("expected distinct values")
    return values


TRAINING_PARAMS = tuple(TrainingSpace.model_fields)
"""Training settings that a grid can vary."""

OPTIMIZER_PARAMS = (
    "optimizer",
    *(field.name for field in fields(OptimizerConfig) if field.name != "name"),
)
"""Training settings that concern the optimizer alone."""

_SPECIFIC = {name for traits in OPTIMIZERS.values() for name in traits.settings}
"""Training settings that not all optimizers use."""


def uses_setting(optimizer: str, name: str) -> bool:
    """Return whether an optimizer uses a training setting."""
    return name not in _SPECIFIC or name in OPTIMIZERS[optimizer].settings
