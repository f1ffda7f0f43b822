"""Unit, direction and precision of a study's values: the one place that knows which is better."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from reports.formatting import add_unit, format_signed
from studies.measure import Measure

_SIGNIFICANT = 3
"""Significant digits of the range of a study's values with which a difference is shown."""

_MAX_DIGITS = 9

VALUE = "value"
"""Column of the value of the study's objective."""


@dataclass(frozen=True)
class Scale:
    """How the values of a study are measured and shown.

    Attributes:
        unit: short unit of a value and of a difference; "" for none.
        higher_is_better: whether a higher value is better.
        spec: format of a difference, without its sign.
        value_spec: format of a value.
        name: name of a value, in a sentence.
    """

    unit: str = "nats"
    higher_is_better: bool = False
    spec: str = ".3f"
    value_spec: str = ".4f"
    name: str = "loss"

    @classmethod
    def of_values(
        cls, values: Iterable[float], name: str, unit: str, higher_is_better: bool
    ) -> "Scale":
        """Choose the number of decimals that distinguishes some values."""
        known = [value for value in values if math.isfinite(value)]
        spread = max(known) - min(known) if known else 0.0
        place = round(math.log10(spread)) if spread > 0 else 0
        digits = min(_MAX_DIGITS, max(0, _SIGNIFICANT - place))
        return cls(unit, higher_is_better, f".{digits}f", f".{digits}f", name)

    @classmethod
    def of_task(cls, measure: Measure) -> "Scale":
        """Return the scale of a task's losses, which may have any size and sign."""
        return cls(measure.short_unit, False, ".3g", measure.spec, measure.loss)

    @property
    def rough_spec(self) -> str:
        """Format of a difference where there is little room: with a digit less."""
        return f".{max(0, int(self.spec[1:-1]) - 1)}{self.spec[-1]}"

    @property
    def better_sign(self) -> str:
        """Sign of a difference that is better: ``negative`` or ``positive``."""
        return "positive" if self.higher_is_better else "negative"

    @property
    def best_name(self) -> str:
        """Name of the best value: ``least`` or ``greatest``."""
        return "greatest" if self.higher_is_better else "least"

    @property
    def good_side(self) -> str:
        """Side of a threshold on which a value is good: ``below`` or ``above``."""
        return "above" if self.higher_is_better else "below"

    def improves(self, difference: Any) -> Any:
        """Return whether a difference, or each in an array, is better than none."""
        return np.greater(difference, 0) if self.higher_is_better else np.less(difference, 0)

    def to_loss(self, values: Any) -> Any:
        """Return values of which the least is the best: the same, or their negatives."""
        return -values if self.higher_is_better else values

    def format_difference(self, difference: float) -> str:
        """Format a difference with its sign and unit."""
        return self.add_unit(format_signed(difference, self.spec))

    def format_value(self, value: float) -> str:
        """Format a value without its unit."""
        return f"{value:{self.value_spec}}".replace("-", "−")

    def add_unit(self, text: str) -> str:
        """Add the unit to a number, if there is one."""
        return f"{text} {self.unit}" if self.unit else text


NATS = Scale()
"""Scale of losses of networks that are trained here."""


@dataclass(frozen=True)
class Metric:
    """Number by which the architectures of a study are ranked.

    Attributes:
        column: column of the trial table that has it.
        name: its name, for a reader.
        unit: its unit.
        split: held-out split whose evaluation windows compare the runs.
        scale: direction and precision.
    """

    column: str
    name: str
    unit: str
    split: str
    scale: Scale = NATS

    @property
    def axis_title(self) -> str:
        """Title of an axis of it."""
        return add_unit(self.name, self.unit)

    @property
    def is_value(self) -> bool:
        """Whether it is the value of the study's objective."""
        return self.column == VALUE
