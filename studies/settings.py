"""The tables of a study file that are a study's own, `[training]` and `[task]` aside."""

from typing import Annotated

from pydantic import (
    AfterValidator,
    Field,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from rnn.config import ParamValue
from studies.records import Direction, StrictModel, unit
from studies.space import to_grid_value

DEFAULT_LEASE_SECONDS: float = 120
"""Duration of a lease, unless its worker chooses another; also that of an unreadable lease."""

MAX_LEASE_SECONDS: float = 7 * 86400
"""Longest duration of a lease: trials under a longer one might never run again."""


Settings = Annotated[
    dict[str, ParamValue],
    AfterValidator(lambda values: {name: to_grid_value(name, values[name]) for name in values}),
]
"""A value of each of some parameters."""


class EvaluationSettings(StrictModel):
    """How each trained network is evaluated."""

    windows: PositiveInt = 256
    """Maximum number of evaluation windows, evenly spaced over the split, the same for every
    network; in tasks other than text, number of held-out sequences, unless these are fixed."""
    window_length: Annotated[int, Field(ge=2), unit("token")] = 1000
    """Tokens of a window of text."""
    average: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Final fraction of the steps over which the weights are averaged before they are evaluated and
    saved; 0 for the last weights."""


class PruningSettings(StrictModel):
    """When to prune trials that are unlikely to finish among the best."""

    enabled: bool = False
    """Whether to prune at all; the same as `--prune`."""
    keep: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Fraction of all grid trials to keep: what the next study needs for its `refinement.top`."""
    confidence: Annotated[float, Field(ge=0.5, lt=1)] = 0.95
    """Share of that fraction that the predictions are to keep, at least."""
    audit: Annotated[int, Field(ge=0, le=10_000)] = 20
    """Number of architectures, chosen at random, that are trained to the end whatever the pruner
    decides, at all values of the nuisance parameters (without these: trials); at most a tenth of
    all; 0 for none, and nothing is measured."""


class LeaseSettings(StrictModel):
    """When a worker loses its trials."""

    seconds: Annotated[float, Field(ge=1, le=MAX_LEASE_SECONDS), unit("s")] = DEFAULT_LEASE_SECONDS
    """Time without a heartbeat after which a trial is requeued."""


class CheckpointSettings(StrictModel):
    """How often checkpoints are written."""

    seconds: Annotated[PositiveFloat, unit("s")] = 60
    """Time between two checkpoints of a running trial."""


class OutageSettings(StrictModel):
    """How long a worker waits for its storage."""

    seconds: Annotated[float, Field(ge=0), unit("s")] = 600
    """Time that a worker waits for an unavailable storage."""


class Refinement(StrictModel):
    """How a study's trials derive from another study's results."""

    source: str
    """Name of the other study."""
    trial: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    """Number of its trial to run once more, with the same weights, order of the text and text, in
    place of the best; the same as `--trial`."""
    top: Annotated[float, Field(gt=0, lt=1)] | PositiveInt = 0.1
    """Its best architectures to derive from: a number, or a fraction of all, rounded down, but at
    least one."""
    variants: list[Settings] = [{}]
    """Changes of parameters, each applied to each of the best; `{}` for none."""
    replicates: PositiveInt = 1
    """Number of runs of each result, with other weights and another order of the text."""
    margin: Annotated[PositiveFloat, unit("bit/byte or nat/token")] = 0.02
    """Of replicates: the largest difference to the best that makes no difference, in the unit by
    which they are ranked; without a default where the loss of a task has no unit."""

    @property
    def has_replicates(self) -> bool:
        """Whether results are run more than once."""
        return self.replicates > 1

    @model_validator(mode="after")
    def _check_trial(self) -> "Refinement":
        if self.trial is not None and (self.variants != [{}] or self.has_replicates):
            raise ValueError("trial runs one trial as it was: expected no variants or replicates")
        return self

    @field_validator("variants")
    @classmethod
    def _check_variants(cls, variants: list[dict[str, ParamValue]]) -> list[dict[str, ParamValue]]:
        if not variants:
            raise ValueError("expected at least one variant ({} is the unchanged architecture)")
        return variants


class ImportedResults(StrictModel):
    """Results that another program recorded, in place of a grid to train.

    Attributes:
        source: file or study that the results were read from, for a reader.
        metric: name of the value.
        unit: unit of the value; "" for none.
        direction: whether a lower or a higher value is better.
        parameters: names of the parameters, in the order of the source.
        notes: what the import decided or left out, one sentence each.
        is_adaptive: whether a sampler may have chosen later rows by the results of earlier ones.
    """

    source: str
    metric: str = Field(default="value", min_length=1)
    unit: str = ""
    direction: Direction = "minimize"
    parameters: list[str]
    notes: list[str] = []
    is_adaptive: bool = False
