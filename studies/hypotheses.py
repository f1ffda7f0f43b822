"""Hypotheses of a study: claims about its parameters, stated before its first trial.

A hypothesis is data; :mod:`reports.stats.decision_rules` decides whether it holds, and
:mod:`studies.hypothesis_records` has the records that a study keeps of them.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationError,
    model_validator,
)

from rnn.config import ParamValue
from studies.cell_record import CellOption, CellRecord
from studies.space import BUILT_IN_CELLS, CELL, TEXT_PARAMS, convert_value
from studies.strict_model import StrictModel, unit
from studies.task_record import TaskRecord
from studies.text import expect_one_of, shorten

DEFAULT_MARGIN = 0.02
"""Nats that count as no difference: about the spread between runs of one architecture."""

_Settings = Annotated[
    dict[str, ParamValue],
    AfterValidator(lambda values: {name: _convert(name, value) for name, value in values.items()}),
]

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
            name: [_convert(name, each) for each in values] for name, values in region.items()
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
    before: _Settings = Field(min_length=1)
    after: _Settings

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
        contrast: the contrast.
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
    cells: Mapping[str, CellRecord],
    nuisance: Sequence[str],
    task: TaskRecord | None = None,
) -> None:
    """Check that hypotheses name parameters and values that a study can have.

    The study's grid may lack some of them: its hypotheses about these are not testable.

    Args:
        hypotheses: the hypotheses.
        parameters: all parameters that a trial of the study can have.
        cells: users' cells of the study, by name.
        nuisance: parameters over which architectures are judged, which no hypothesis can name.
        task: record of the task; None for a text.

    Raises:
        ValueError: if one of them does not, or occurs twice.
    """
    check_names(hypotheses, parameters, nuisance)
    for number, hypothesis in enumerate(hypotheses, 1):
        if mistake := next(_find_mistakes(hypothesis, cells, task), ""):
            raise ValueError(f"hypothesis {number} has {mistake}")


def check_names(
    hypotheses: Sequence[Hypothesis], parameters: Sequence[str], nuisance: Sequence[str]
) -> None:
    """Check that hypotheses name parameters that are judged, and that none occurs twice.

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
        first = hypotheses.index(hypothesis) + 1
        if first < number:
            raise ValueError(f"hypothesis {number} repeats hypothesis {first}: expected each once")


def check_values(hypotheses: Sequence[Hypothesis], values: Mapping[str, Sequence[Any]]) -> None:
    """Check that hypotheses about finished trials name values that these have.

    Args:
        hypotheses: the hypotheses.
        values: values of each parameter; parameters without any are left to :func:`check_names`.

    Raises:
        ValueError: if one of them names another value, or compares what has no order.
    """
    for number, hypothesis in enumerate(hypotheses, 1):
        problem = f"hypothesis {number} has "
        for name, value in hypothesis.settings:
            found = list(dict.fromkeys(values.get(name, [value])))
            is_switch = isinstance(value, bool)
            if not any(each == value and isinstance(each, bool) == is_switch for each in found):
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


def _find_mistakes(
    hypothesis: Hypothesis, cells: Mapping[str, CellRecord], task: TaskRecord | None
) -> Iterator[str]:
    """Yield what is wrong with the values that a hypothesis gives to known parameters."""
    for name, value in hypothesis.settings:
        if expected := _explain_value(name, value, cells, task):
            yield f"{name} = {shorten(repr(value))}: {expected}"
    for name in hypothesis.larger_than.switches if hypothesis.larger_than else ():
        if any(_explain_value(name, value, cells, task) for value in (False, True)):
            yield f"larger_than.switches with {name!r}: expected switches, which are on or off"
    name = hypothesis.consecutive or ""
    is_text = any(option.type == "str" for option in list_options(name, cells, task))
    if is_text or name in TEXT_PARAMS:
        yield f"consecutive = {name!r}: expected a parameter whose values have an order"


def _explain_value(
    name: str, value: ParamValue, cells: Mapping[str, CellRecord], task: TaskRecord | None
) -> str:
    """Return what a parameter is expected to be if it can never have a value; "" if it can."""
    if name == CELL:
        known = [*BUILT_IN_CELLS, *cells]
        return "" if value in known else f"expected one of {', '.join(known)}"
    if options := list_options(name, cells, task):
        fits = any(option.fits(value) for option in options)
        return "" if fits else f"expected {options[0].description}"
    try:
        convert_value(name, value)
    except ValidationError as error:
        message = error.errors()[0]["msg"]
        return message[0].lower() + message[1:]
    return ""


def _convert(parameter: str, value: ParamValue) -> ParamValue:
    """Return a value as a grid has it, 4 for 4.0, or as it is if none can have it."""
    whole = [int(value)] if isinstance(value, float) and value.is_integer() else []
    for each in (value, *whole):
        with suppress(ValidationError):  # named later, by check_hypotheses
            return convert_value(parameter, each)
    return value


def list_options(
    name: str, cells: Mapping[str, CellRecord], task: TaskRecord | None
) -> list[CellOption]:
    """List the options of a name that users' cells and the task of a study have."""
    records: list[CellRecord | TaskRecord] = [*cells.values(), *([task] if task else [])]
    return [record.options[name] for record in records if name in record.options]
