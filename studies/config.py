"""What a study is: the validated form of a ``*.toml``, contradictions refused by name."""

from fractions import Fraction
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from studies.settings import (
    CheckpointSettings,
    EvaluationSettings,
    LeaseSettings,
    OutageSettings,
    PruningSettings,
    StrictModel,
    TrainingSettings,
)
from studies.space import BPTT_STEPS, GATED_PARAMS, ParamValue, Space

TOKEN_NAMES = {"bytes": "byte", "bpe": "token"}
"""What a symbol is called, by the kind of its vocabulary."""

_VARIED = (*GATED_PARAMS, BPTT_STEPS)


class Refinement(StrictModel):
    """How a study's points follow from another study's results."""

    source: str
    top: Annotated[float, Field(gt=0, lt=1)] | PositiveInt = 0.1
    variants: list[dict[str, ParamValue]] = [{}]
    replicates: PositiveInt = 1

    @field_validator("variants")
    @classmethod
    def _known_parameters(
        cls, variants: list[dict[str, ParamValue]]
    ) -> list[dict[str, ParamValue]]:
        if not variants:
            raise ValueError("one variant or more ({} is the architecture as it is)")
        for variant in variants:
            for name, value in variant.items():
                if name not in _VARIED:
                    raise ValueError(f"a variant names {name!r}; allowed: {', '.join(_VARIED)}")
                # The one place that knows which values a parameter may have is Space.
                Space.model_validate({"layers": [1], "state_size": [1]} | {name: [value]})
        return variants


class StudyConfig(StrictModel):
    """A study: a grid to search (``space``) or points that follow from one (``refinement``)."""

    question: str = ""
    report_threshold: PositiveFloat | None = None
    corpus: str = "stdlib"
    tokenizer: str = "bytes"
    objective: Literal["training", "validation"] = "training"
    eval_split: Literal["validation", "test"] = "validation"
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

    @field_validator("tokenizer")
    @classmethod
    def _known_vocabulary(cls, tokenizer: str) -> str:
        kind, _, size = tokenizer.partition(":")
        if tokenizer == "bytes":
            return tokenizer
        is_number = size.isascii() and size.isdecimal()
        if kind != "bpe" or not is_number or not 256 < int(size) <= 2**16:
            raise ValueError('"bytes", or "bpe:N" with a size N from 257 to 65536, as in bpe:1024')
        return f"bpe:{int(size)}"

    @property
    def token_name(self) -> str:
        """What the networks read one of at each step: a byte or a token."""
        return TOKEN_NAMES[self.tokenizer.partition(":")[0]]

    @model_validator(mode="after")
    def _test_is_last(self) -> "StudyConfig":
        replicates = self.refinement.replicates if self.refinement else 1
        if self.eval_split == "test" and replicates < 2:
            raise ValueError(
                'has eval_split = "test" and no replicates; allowed: studies with '
                "refinement.replicates of 2 or more, for text that is looked at in a search is no "
                "test; leave it out, or replicate"
            )
        return self

    @model_validator(mode="after")
    def _one_origin(self) -> "StudyConfig":
        if (self.space is None) == (self.refinement is None):
            has = "neither" if self.space is None else "both"
            raise ValueError(f"has {has} of [space] and [refinement]; allowed: one of them")
        return self

    @model_validator(mode="after")
    def _prunable(self) -> "StudyConfig":
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


def top_count(top: float | int, planned: int) -> int:
    """Return how many of a study's points are the best.

    Args:
        top: a fraction below 1, rounded down but at least one point, or a number of points.
        planned: all points of the study.
    """
    # As it is written: 0.29 of 100 are 29, though the nearest binary fraction gives 28.9999….
    return max(1, int(Fraction(str(top)) * planned)) if top < 1 else int(top)
