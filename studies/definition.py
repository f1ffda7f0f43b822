"""What a study is: the validated form of a ``*.toml``, contradictions refused by name."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

Value = bool | int | str
Point = dict[str, Value]
"""A value for each searched parameter."""

PARAMETERS = (
    "input_gate",
    "forget_gate",
    "output_gate",
    "state_gate",
    "residual",
    "state_source",
    "layers",
    "state_size",
)
"""Of a network of our own cell."""

KNOWN_CELL = ("cell", "layers", "state_size")
"""The parameters of a network of a known cell, which has no switches."""

GRADIENT_WINDOW = "gradient_window"
"""The parameter that says through how many steps a gradient goes, in studies that vary it."""

REPLICATE = "replicate"
"""The parameter that numbers an architecture's replicates, in studies that have them."""

COSTLY = (*KNOWN_CELL, GRADIENT_WINDOW)
"""The parameters that say most of what a step of a network costs."""

ALL_PARAMETERS = ("cell", *PARAMETERS, GRADIENT_WINDOW, REPLICATE)
"""Whatever may be a parameter of some study, in the order in which they are listed."""

SYMBOLS = {"bytes": "byte", "bpe": "token"}
"""What a symbol is called, by the kind of its vocabulary."""

_LARGEST_WINDOW = 10_000


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Space(_Strict):
    """The values of each searched parameter, and the combinations to leave out."""

    input_gate: list[bool] = [False, True]
    forget_gate: list[bool] = [False, True]
    output_gate: list[bool] = [False, True]
    state_gate: list[bool] = [False, True]
    residual: list[bool] = [False, True]
    state_source: list[Literal["new", "old", "both"]] = ["new", "old", "both"]
    layers: list[Annotated[int, Field(ge=1, le=100)]]
    state_size: list[Annotated[int, Field(ge=1, le=2**16)]]
    cell: list[Literal["elman", "gru", "lstm"]] | None = None
    gradient_window: list[Annotated[int, Field(ge=1, le=_LARGEST_WINDOW)]] | None = None
    exclude: list[dict[str, Value]] = []

    @field_validator(*PARAMETERS, "cell", GRADIENT_WINDOW)
    @classmethod
    def _distinct(cls, values: list[Value] | None) -> list[Value] | None:
        if values is None:
            return None
        if not values:
            raise ValueError("one value or more")
        if len(set(values)) < len(values):
            raise ValueError("each value once")
        return values

    @model_validator(mode="after")
    def _one_kind_of_cell(self) -> "Space":
        switches = [name for name in PARAMETERS if name not in KNOWN_CELL]
        # What is written down again has all of them, at their defaults.
        stated = [s for s in switches if getattr(self, s) != type(self).model_fields[s].default]
        if self.cell is not None and stated:
            raise ValueError(
                f"has cell and {', '.join(stated)}; allowed: one of them, for known cells have no "
                "switches; make a study of each"
            )
        return self

    @model_validator(mode="after")
    def _sensible_exclusions(self) -> "Space":
        for exclusion in self.exclude:
            if not exclusion:
                raise ValueError("exclude: {} would leave out every point; name a parameter")
            for name, value in exclusion.items():
                if name not in self.parameters:
                    allowed = ", ".join(self.parameters)
                    raise ValueError(f"exclude names {name!r}; allowed: {allowed}")
                if not _among(value, self.values(name)):
                    raise ValueError(
                        f"exclude has {name} = {value!r}; allowed: {_join(self.values(name))}"
                    )
        if next(self.points(), None) is None:
            raise ValueError("exclude leaves no point; allowed: at least one; exclude less")
        return self

    @property
    def parameters(self) -> tuple[str, ...]:
        """What varies, or could: the names of the grid's parameters."""
        own = PARAMETERS if self.cell is None else KNOWN_CELL
        return own if self.gradient_window is None else (*own, GRADIENT_WINDOW)

    def values(self, parameter: str) -> Sequence[Value]:
        """Return a parameter's values in the order of the definition."""
        values: Sequence[Value] = getattr(self, parameter)
        return values

    def points(self) -> Iterator[Point]:
        """Yield the grid's points less the excluded, the last parameter varying fastest."""
        for combination in itertools.product(*map(self.values, self.parameters)):
            point = dict(zip(self.parameters, combination, strict=True))
            if not any(exclusion.items() <= point.items() for exclusion in self.exclude):
                yield point


_VARIED = (*PARAMETERS, GRADIENT_WINDOW)


class Refinement(_Strict):
    """How a study's points follow from another study's results."""

    source: str
    best: Annotated[float, Field(gt=0, lt=1)] | PositiveInt = 0.1
    variants: list[dict[str, Value]] = [{}]
    replicates: PositiveInt = 1

    @field_validator("variants")
    @classmethod
    def _known_parameters(cls, variants: list[dict[str, Value]]) -> list[dict[str, Value]]:
        if not variants:
            raise ValueError("one variant or more ({} is the architecture as it is)")
        for variant in variants:
            for name, value in variant.items():
                if name not in _VARIED:
                    raise ValueError(f"a variant names {name!r}; allowed: {', '.join(_VARIED)}")
                # The one place that knows which values a parameter may have is Space.
                Space.model_validate({"layers": [1], "state_size": [1]} | {name: [value]})
        return variants


class TrainingSettings(_Strict):
    """How each network is trained; :class:`rnn.training.Training` says what the words mean."""

    steps: PositiveInt = 10_000
    batch_size: PositiveInt = 256
    sequence_length: Annotated[int, Field(ge=2)] = 1000
    log_every: PositiveInt = 50
    learning_rate: PositiveFloat = 0.001
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.95
    gradient_window: Annotated[int, Field(ge=1, le=_LARGEST_WINDOW)] = 1

    @model_validator(mode="after")
    def _logged(self) -> "TrainingSettings":
        if self.log_every > self.steps:
            raise ValueError(
                f"log_every is {self.log_every} and steps {self.steps}; allowed: log_every at "
                "most steps, for a trial's value is taken at its log points; change one of them"
            )
        return self


class EvaluationSettings(_Strict):
    """How each network is measured at its end.

    Attributes:
        lanes: of held-out text, at most.
        lane_length: symbols in a lane.
        average: the last part of the steps over which the weights are averaged: the network that is
            measured, and kept, is the mean of what it was at each of them. 0 for the last one.
    """

    lanes: PositiveInt = 256
    lane_length: Annotated[int, Field(ge=2)] = 1000
    average: Annotated[float, Field(ge=0, lt=1)] = 0.1


class PruningSettings(_Strict):
    """When to give up on points that are unlikely to end among the best.

    Attributes:
        enabled: whether points are given up on at all.
        keep: the fraction of all points that is to be kept: the next study's ``refinement.best``.
        confidence: of that fraction, the share that is expected to be kept at least.
    """

    enabled: bool = False
    keep: Annotated[float, Field(gt=0, lt=1)] = 0.1
    confidence: Annotated[float, Field(ge=0.5, lt=1)] = 0.95


class LeaseSettings(_Strict):
    """How long a worker that is not heard of keeps its trial, in seconds."""

    seconds: Annotated[float, Field(ge=1)] = 120


class CheckpointSettings(_Strict):
    """How often a running trial is written down, in seconds."""

    seconds: PositiveFloat = 60


class OutageSettings(_Strict):
    """How long a worker waits for a storage that is away, in seconds."""

    seconds: Annotated[float, Field(ge=0)] = 600


class Definition(_Strict):
    """A study: a grid to search (``space``) or points that follow from one (``refinement``)."""

    question: str = ""
    threshold: PositiveFloat | None = None
    corpus: str = "stdlib"
    vocabulary: str = "bytes"
    objective: Literal["training", "validation"] = "training"
    evaluate: Literal["validation", "test"] = "validation"
    keep_weights: Annotated[int, Field(ge=0, le=1000)] = 10
    gate_inputs: Literal["state", "candidate"] = "state"
    precision: Literal["auto", "fp32", "tf32", "bf16"] = "auto"
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    training: TrainingSettings = TrainingSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    pruning: PruningSettings = PruningSettings()
    lease: LeaseSettings = LeaseSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    outage: OutageSettings = OutageSettings()
    space: Space | None = None
    refinement: Refinement | None = None

    @field_validator("vocabulary")
    @classmethod
    def _known_vocabulary(cls, vocabulary: str) -> str:
        kind, _, size = vocabulary.partition(":")
        if vocabulary == "bytes":
            return vocabulary
        is_number = size.isascii() and size.isdecimal()
        if kind != "bpe" or not is_number or not 256 < int(size) <= 2**16:
            raise ValueError('"bytes", or "bpe:N" with a size N from 257 to 65536, as in bpe:1024')
        return f"bpe:{int(size)}"

    @property
    def symbol(self) -> str:
        """What the networks read one of at each step: a byte or a token."""
        return SYMBOLS[self.vocabulary.partition(":")[0]]

    @model_validator(mode="after")
    def _test_is_last(self) -> "Definition":
        replicates = self.refinement.replicates if self.refinement else 1
        if self.evaluate == "test" and replicates < 2:
            raise ValueError(
                'has evaluate = "test" and no replicates; allowed: studies with '
                "refinement.replicates of 2 or more, for text that is looked at in a search is no "
                "test; leave it out, or replicate"
            )
        return self

    @model_validator(mode="after")
    def _one_origin(self) -> "Definition":
        if (self.space is None) == (self.refinement is None):
            has = "neither" if self.space is None else "both"
            raise ValueError(f"has {has} of [space] and [refinement]; allowed: one of them")
        return self

    @model_validator(mode="after")
    def _prunable(self) -> "Definition":
        if not self.pruning.enabled:
            return self
        if self.refinement is not None and self.refinement.replicates > 1:
            raise ValueError(
                f"has pruning.enabled and {self.refinement.replicates} replicates; allowed: one of "
                "them, for the mean of replicates needs them all; leave pruning out"
            )
        if 2 * self.training.log_every > self.training.steps:
            raise ValueError(
                f"has pruning.enabled, and no log point before the last: log_every is "
                f"{self.training.log_every}, steps {self.training.steps}; allowed: log_every at "
                "most half of the steps; change one of them"
            )
        return self


def read_definition(stored: Mapping[str, Any]) -> Definition:
    """Return the definition that a study holds as its attribute.

    Raises:
        pydantic.ValidationError: if it is of another version.
    """
    # Before there was an average, the last weights were measured.
    evaluation = {"average": 0.0} | stored.get("evaluation", {})
    return Definition.model_validate({**stored, "evaluation": evaluation})


def quota(best: float | int, planned: int) -> int:
    """Return how many of a study's points are the best.

    Args:
        best: a fraction below 1, rounded down but at least one point, or a number of points.
        planned: all points of the study.
    """
    # As it is written: 0.29 of 100 are 29, though the nearest binary fraction gives 28.9999….
    return max(1, int(Fraction(str(best)) * planned)) if best < 1 else int(best)


def _among(value: Value, values: Sequence[Value]) -> bool:
    return any(value == other and type(value) is type(other) for other in values)


def _join(values: Sequence[Value]) -> str:
    return ", ".join(map(repr, values))
