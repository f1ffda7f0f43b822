"""Hypotheses of a study: claims about its parameters, stated before its first trial.

A hypothesis is data; :mod:`reports.stats.hypotheses` decides whether it holds. A study keeps
records of when it stored each of them, and of what was known then: they tell a reader a prediction
from an explanation (Nosek et al., *The Preregistration Revolution*, 2018).
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
)

from rnn.config import ParamValue
from studies.records import Options, StrictModel, unit
from studies.space import TEXT_PARAMS, contains_exact, explain_value, to_grid_value
from studies.text import expect_one_of, shorten

DEFAULT_MARGIN = 0.02
"""Nats that count as no difference: about the spread between runs of one architecture."""

Settings = Annotated[
    dict[str, ParamValue],
    AfterValidator(lambda values: {name: to_grid_value(name, values[name]) for name in values}),
]
"""A value of each of some parameters."""

Region = Annotated[
    dict[
        str,
        Annotated[
            list[ParamValue],
            Field(min_length=1),
            BeforeValidator(lambda value: value if isinstance(value, list) else [value]),
        ],
    ],
    AfterValidator(
        lambda region: {
            name: [to_grid_value(name, each) for each in values] for name, values in region.items()
        }
    ),
]
"""Values of each parameter that a region of the grid is restricted to; one needs no list."""


class SettingContrast(StrictModel):
    """Two settings of the same parameters, compared with all others being equal.

    Attributes:
        label: short name; derived from the settings if it is empty.
        before: value of each parameter in the first trial of a pair.
        after: values in the second trial.
    """

    label: str = ""
    before: Settings = Field(min_length=1)
    after: Settings

    @model_validator(mode="after")
    def _check_parameters(self) -> Self:
        if self.before.keys() != self.after.keys():
            raise ValueError("expected the same parameters before and after")
        if self.before == self.after:
            raise ValueError("expected different values before and after")
        return self


class LargerThan(StrictModel):
    """Comparison of one contrast's effect with the effects of some switches.

    Attributes:
        switches: boolean parameters. Each is compared at the value that lowers the loss, or raises
            it if the rule is ``raises`` or ``does-not-raise``.
    """

    contrast: SettingContrast
    switches: list[str] = Field(min_length=1)

    @model_validator(mode="after")
    def _check_switches(self) -> Self:
        if changed := sorted(self.contrast.before.keys() & set(self.switches)):
            raise ValueError(
                f"switches name {changed[0]!r}, which the contrast changes: expected other switches"
            )
        return self


class Hypothesis(StrictModel):
    """A hypothesis and its test."""

    claim: str = Field(min_length=1)
    """The hypothesis, one sentence."""
    comparison: str = ""
    """What is compared, for a reader; empty: derived from the contrasts."""
    rule: Literal["lowers", "does-not-lower", "raises", "does-not-raise", "makes-no-difference"]
    """How it is [decided](../statistics.md#hypotheses): what the change does to the value."""
    contrasts: list[SettingContrast] = Field(default_factory=list)
    """Settings compared, all else being equal:
    `[{ before = { residual = false }, after = { residual = true } }]`."""
    consecutive: str | None = None
    """Instead: a parameter of which each value is compared with the next smaller one."""
    larger_than: LargerThan | None = None
    """Instead: a `contrast` and `switches`; its effect is compared with that of each switch."""
    conjunction: bool = False
    """`true`: the claim is about all k contrasts at once. Each must hold; one decides that it does
    not, at an error of 5% / k."""
    context: list[SettingContrast] = Field(default_factory=list)
    """Contrasts that are estimated and shown, but decide nothing."""
    region: Region = Field(default_factory=dict)
    """Parameter values, or lists of them, that both trials of a pair must have."""
    margin: Annotated[Annotated[float, Field(ge=0)] | None, unit("nat/token")] = None
    """Difference that counts as none; 0.02 if it is not given, which it must be where the loss of
    a task has no unit."""

    @model_validator(mode="after")
    def _check_test(self) -> Self:
        if not (self.contrasts or self.consecutive or self.larger_than):
            raise ValueError("expected contrasts, consecutive or larger_than")
        if self.rule == "makes-no-difference" and self.margin == 0:
            raise ValueError('margin is 0.0: expected more for the rule "makes-no-difference"')
        for name, values in self.region.items():
            # In Python true equals 1, which is another value.
            if len({(isinstance(each, bool), each) for each in values}) < len(values):
                raise ValueError(f"region has {name} = {values}: expected distinct values")
        for name in self.contrasted:
            if name in self.region:
                raise ValueError(
                    f"region names {name!r}, which a contrast changes: expected other parameters"
                )
        return self

    @property
    def is_about_rise(self) -> bool:
        """Whether it is about a rise of the value, not a fall."""
        return self.rule in ("raises", "does-not-raise")

    @property
    def contrasted(self) -> list[str]:
        """Names of all parameters that its contrasts change."""
        names = [name for contrast in self._stated for name in contrast.before]
        names += self.larger_than.switches if self.larger_than else []
        return list(dict.fromkeys(names + ([self.consecutive] if self.consecutive else [])))

    @property
    def parameters(self) -> list[str]:
        """Names of all parameters that it names."""
        return [*self.contrasted, *self.region]

    @property
    def settings(self) -> Iterator[tuple[str, ParamValue]]:
        """Each parameter with each value that it names."""
        for contrast in self._stated:
            yield from contrast.before.items()
            yield from contrast.after.items()
        for name, values in self.region.items():
            yield from ((name, each) for each in values)

    @property
    def _stated(self) -> list[SettingContrast]:
        larger = self.larger_than
        return [*self.contrasts, *self.context, *([larger.contrast] if larger else [])]

    def has_same_test(self, other: "Hypothesis") -> bool:
        """Whether another one compares the same by the same rule, in whatever words."""
        return self._test == other._test

    @property
    def _test(self) -> dict[str, Any]:
        words = {"label"}
        return self.model_dump(
            exclude={
                "claim": True,
                "comparison": True,
                "context": True,
                "contrasts": {"__all__": words},
                "larger_than": {"contrast": words},
            }
        )

    def with_margin(self, margin: float = DEFAULT_MARGIN) -> Self:
        """Return it with a margin of its own: the given one unless it has one."""
        return self if self.margin is not None else self.model_copy(update={"margin": margin})


def check_hypotheses(
    hypotheses: Sequence[Hypothesis],
    parameters: Sequence[str],
    options: Options | None,
    nuisance: Sequence[str],
) -> None:
    """Check that hypotheses name parameters and values that a study can have.

    The study's grid may lack some of them: its hypotheses about these are not testable.

    Args:
        hypotheses: the hypotheses.
        parameters: all parameters that a trial of the study can have.
        options: options among them; None where any value may occur.
        nuisance: parameters over which architectures are judged, which no hypothesis can name.

    Raises:
        ValueError: if one of them does not, or occurs twice.
    """
    judged = [name for name in parameters if name not in nuisance]
    for number, hypothesis in enumerate(hypotheses, 1):
        for name in hypothesis.parameters:
            if name not in judged:
                is_nuisance = ", a nuisance parameter" if name in nuisance else ""
                raise ValueError(
                    f"hypothesis {number} names {name!r}{is_nuisance}: "
                    f"{expect_one_of(judged, name)}"
                )
        if options is not None and (mistake := next(_find_mistakes(hypothesis, options), "")):
            raise ValueError(f"hypothesis {number} has {mistake}")
        first = hypotheses.index(hypothesis) + 1
        if first < number:
            raise ValueError(f"hypothesis {number} repeats hypothesis {first}: expected each once")


def check_values(hypotheses: Sequence[Hypothesis], values: Mapping[str, Sequence[Any]]) -> None:
    """Check that hypotheses about finished trials name values that these have.

    Args:
        hypotheses: the hypotheses.
        values: values of each parameter; :func:`check_hypotheses` checks the others.

    Raises:
        ValueError: if one of them names another value, or compares what has no order.
    """
    for number, hypothesis in enumerate(hypotheses, 1):
        problem = f"hypothesis {number} has "
        for name, value in hypothesis.settings:
            found = list(dict.fromkeys(values.get(name, [value])))
            if not contains_exact(found, value):
                expected = ", ".join(shorten(repr(each)) for each in found[:20])
                raise ValueError(
                    f"{problem}{name} = {shorten(repr(value))}, which no trial has: expected one "
                    f"of {expected}"
                )
        for name in hypothesis.larger_than.switches if hypothesis.larger_than else ():
            if not {False, True} >= {*values.get(name, ())}:
                raise ValueError(f"{problem}larger_than.switches with {name!r}: expected switches")
        if any(isinstance(each, str) for each in values.get(hypothesis.consecutive or "", ())):
            raise ValueError(
                f"{problem}consecutive = {hypothesis.consecutive!r}: expected a parameter whose "
                "values have an order"
            )


def _find_mistakes(hypothesis: Hypothesis, options: Options) -> Iterator[str]:
    """Yield what is wrong with the values that a hypothesis gives to known parameters."""
    for name, value in hypothesis.settings:
        if expected := explain_value(name, value, options):
            yield f"{name} = {shorten(repr(value))}: {expected}"
    for name in hypothesis.larger_than.switches if hypothesis.larger_than else ():
        if any(explain_value(name, value, options) for value in (False, True)):
            yield f"larger_than.switches with {name!r}: expected switches, which are on or off"
    name = hypothesis.consecutive or ""
    if name in TEXT_PARAMS or any(option.type == "str" for option in options.get(name, ())):
        yield f"consecutive = {name!r}: expected a parameter whose values have an order"


# ------------------------------------------------------------------ records


_Count = Annotated[int, Field(ge=0)]


class Registration(BaseModel):
    """What a study was when it stored hypotheses: the time (UTC), its trials and its settings."""

    model_config = ConfigDict(frozen=True)

    time: datetime
    started: _Count = 0
    finished: _Count = 0
    planned: _Count
    report_threshold: float | None = None
    nuisance: list[str] = []


class HypothesisRecord(BaseModel):
    """A hypothesis as a study stores it.

    Attributes:
        hypothesis: the hypothesis, with its margin.
        registered: what the study was when it stored the hypothesis.
        withdrawn: time at which the study's file no longer stated it, UTC; None if it does.
    """

    model_config = ConfigDict(frozen=True)

    hypothesis: Hypothesis
    registered: Registration
    withdrawn: datetime | None = None

    @property
    def is_preregistered(self) -> bool:
        """Whether it was stored before the study's first trial was started."""
        return self.registered.started == 0

    @property
    def mark(self) -> str:
        """When it was stored, for a reader: ``pre-registered at 2026-11-26 17:00 UTC``."""
        then = self.registered
        mark = f"pre-registered at {_format_time(then.time)}"
        if not self.is_preregistered:
            count, verb = (
                (then.finished, "finished") if then.finished else (then.started, "started")
            )
            mark = (
                f"added on {_format_time(then.time)}, after {count:,} of {then.planned:,} trials "
                f"{'was' if count == 1 else 'were'} {verb}"
            )
        return f"{mark}; withdrawn on {_format_time(self.withdrawn)}" if self.withdrawn else mark

    def find_changes(self, report_threshold: float | None, nuisance: Sequence[str]) -> list[str]:
        """List the settings that its test depends on and that have other values now."""
        now = {"report_threshold": report_threshold, "nuisance": list(nuisance)}
        return [name for name, value in now.items() if getattr(self.registered, name) != value]


def update_records(
    records: Sequence[HypothesisRecord], hypotheses: Sequence[Hypothesis], now: Registration
) -> list[HypothesisRecord]:
    """Return the records of a study whose file now states the given hypotheses.

    A hypothesis that is stated again keeps its record. One that no longer is stays, as withdrawn.
    """
    kept = [
        each
        if each.withdrawn or each.hypothesis in hypotheses
        else each.model_copy(update={"withdrawn": now.time})
        for each in records
    ]
    stated = [each.hypothesis for each in records if each.withdrawn is None]
    added = [each for each in hypotheses if each not in stated]
    return kept + [HypothesisRecord(hypothesis=each, registered=now) for each in added]


def _format_time(time: datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M} UTC"
