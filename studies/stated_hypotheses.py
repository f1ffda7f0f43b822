"""Hypotheses of a study: statements about one change, with what is expected of it.

A hypothesis is data; :mod:`reports.analysis.hypotheses` decides whether it holds. A study keeps
when it stored each of them, and how many results it had then: that tells a reader a prediction from
an explanation (Nosek et al., *The Preregistration Revolution*, 2018).
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from rnn.config import ParamValue
from studies.messages import expect_one_of, shorten
from studies.records import DEFAULT_MARGIN, Options, StrictModel, of_task, unit
from studies.space import ParamValues, explain_value, to_grid_value

Margin = Annotated[float, Field(ge=0)]


class Hypothesis(StrictModel):
    """A statement about the effect of one change, and its test."""

    statement: str = Field(min_length=1)
    """The hypothesis, in one sentence."""
    parameter: str
    """Parameter that changes; all others stay equal."""
    before: ParamValue
    """Its value before the change."""
    after: ParamValue
    """Its value after the change."""
    where: ParamValues = Field(default_factory=dict)
    """Values that both networks of a pair must have, as in `{ state_size = 256 }`."""
    expect: Literal["lower", "raise", "not lower", "not raise", "no difference"]
    """What the change does to a trial's value. [Statistics](../statistics.md#hypotheses) says when
    it holds."""
    margin: Annotated[Margin | dict[str, Margin], unit("nat/token")] = DEFAULT_MARGIN
    """Largest difference that counts as none, or a table of one for each of [several
    tasks](#several-tasks). Required where the loss has no unit."""

    @field_validator("before", "after")
    @classmethod
    def _normalize(cls, value: ParamValue, info: ValidationInfo) -> ParamValue:
        return to_grid_value(info.data.get("parameter", ""), value)

    @model_validator(mode="after")
    def _check_test(self) -> Self:
        if self.before == self.after:
            raise ValueError("expected different values before and after")
        if self.parameter in self.where:
            raise ValueError(f"where names {self.parameter!r}, which changes: expected others")
        margins = self.margin.values() if isinstance(self.margin, dict) else [self.margin]
        if self.expect == "no difference" and 0 in margins:
            raise ValueError('margin is 0.0: expected more to expect "no difference"')
        return self

    def at_task(self, name: str) -> Self:
        """Return the hypothesis with its margin in one of several tasks."""
        margin = of_task(self.margin, name, DEFAULT_MARGIN)
        return self.model_copy(update={"margin": margin})

    @property
    def settings(self) -> list[tuple[str, ParamValue]]:
        """Each parameter with each value that it names."""
        before = (self.parameter, self.before)
        after = (self.parameter, self.after)
        return [before, after, *self.where.items()]


def check_hypotheses(
    hypotheses: Sequence[Hypothesis],
    parameters: Sequence[str],
    options: Options | None,
    nuisance: Sequence[str],
) -> None:
    """Check that hypotheses name parameters and values that a study can have, each once.

    Args:
        hypotheses: the hypotheses.
        parameters: all parameters that a trial of the study can have.
        options: options among them; None where any value may occur.
        nuisance: parameters that no hypothesis can name.

    Raises:
        ValueError: if one of them does not.
    """
    judged = [name for name in parameters if name not in nuisance]
    for number, hypothesis in enumerate(hypotheses, 1):
        for name, value in hypothesis.settings:
            if name not in judged:
                is_nuisance = ", a nuisance parameter" if name in nuisance else ""
                raise ValueError(
                    f"hypothesis {number} names {name!r}{is_nuisance}: "
                    f"{expect_one_of(judged, name)}"
                )
            expected = "" if options is None else explain_value(name, value, options)
            if expected:
                raise ValueError(
                    f"hypothesis {number} has {name} = {shorten(repr(value))}: {expected}"
                )
        first = hypotheses.index(hypothesis) + 1
        if first < number:
            raise ValueError(f"hypothesis {number} repeats hypothesis {first}: expected each once")


class HypothesisRecord(BaseModel):
    """A hypothesis as a study stores it.

    Attributes:
        hypothesis: the hypothesis, with its margin.
        registered: when the study stored it, UTC.
        results: number of trials that were finished then.
    """

    model_config = ConfigDict(frozen=True)

    hypothesis: Hypothesis
    registered: datetime
    results: Annotated[int, Field(ge=0)]

    def at_task(self, name: str) -> "HypothesisRecord":
        """Return the record with the margin in one of several tasks."""
        return self.model_copy(update={"hypothesis": self.hypothesis.at_task(name)})

    @property
    def mark(self) -> str:
        """When it was stored, for a reader: ``before the first result, 2026-11-26 17:00 UTC``."""
        noun = "result" if self.results == 1 else "results"
        when = f"after {self.results:,} {noun}" if self.results else "before the first result"
        return f"{when}, {self.registered:%Y-%m-%d %H:%M} UTC"


def register(
    records: Sequence[HypothesisRecord], hypotheses: Sequence[Hypothesis], results: int
) -> list[HypothesisRecord]:
    """Return the records of a study and, registered now, the hypotheses that these lack."""
    known = [record.hypothesis for record in records]
    now = datetime.now(UTC)
    added = [hypothesis for hypothesis in hypotheses if hypothesis not in known]
    return [
        *records,
        *(HypothesisRecord(hypothesis=new, registered=now, results=results) for new in added),
    ]
