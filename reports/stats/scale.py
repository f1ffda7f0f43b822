"""Names, values and differences of a study as text, and which of two values is better."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

_CELLS = {"elman": "Elman", "gru": "GRU", "lstm": "LSTM"}

_SIGNIFICANT = 3
"""Significant digits of the range of a study's values with which a difference is shown."""

_MAX_DIGITS = 9

_HUGE = 1e7
"""Difference from which digits say nothing: of training that went astray without diverging."""

VALUE = "value"
"""Column of the value of the study's objective."""


def format_param(name: str) -> str:
    """Format the name of a parameter: ``input gate`` for ``input_gate``."""
    return name.replace("_", " ")


def format_value(value: Any) -> str:
    """Format the value of a parameter: on and off for a switch, ``LSTM`` for ``lstm``.

    A missing value gives "". Numbers are shown as Python writes them: ``0.001``, ``1e-05``.
    """
    if is_missing(value):
        return ""
    if isinstance(value, bool | np.bool_):
        return "on" if value else "off"
    return _CELLS.get(value, str(value))


def order_values(values: Iterable[Any]) -> list[Any]:
    """Sort the values of a parameter: numbers ascending, then texts such as ``sequence``."""
    return sorted(values, key=lambda value: (isinstance(value, str), value))


def is_missing(value: Any) -> bool:
    """Return whether a scalar of a frame is a missing value: None, NaN or ``pandas.NA``."""
    # To compare pandas.NA gives pandas.NA, which is not imported here: importing pandas is slow.
    is_unequal = value != value
    return value is None or not isinstance(is_unequal, bool | np.bool_) or bool(is_unequal)


def add_unit(name: str, unit: str) -> str:
    """Return a title with its unit in parentheses, if there is one."""
    return f"{name} ({unit})" if unit else name


def format_signed(value: float, spec: str = ".3f") -> str:
    """Format a difference with its sign, using a minus sign of the width of a plus."""
    spec = ".3g" if abs(value) >= _HUGE else spec
    return f"{value:+{spec}}".replace("-", "−")


def format_interval(low: float, high: float, spec: str) -> str:
    """Format the ends of an interval to follow its estimate; "" if they are unknown."""
    return "" if is_missing(low) else f" [{format_signed(low, spec)}, {format_signed(high, spec)}]"


def format_count(count: int, singular: str, plural: str | None = None) -> str:
    """Format a count with its noun: ``1 pair``, ``1,200 pairs``."""
    return f"{count:,} {singular if count == 1 else plural or singular + 's'}"


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
        """Where the good values lie of a threshold: ``below`` or ``above``."""
        return "above" if self.higher_is_better else "below"

    @property
    def bad_side(self) -> str:
        """Where the others lie."""
        return "below" if self.higher_is_better else "above"

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
    def best_name(self) -> str:
        """Name of its best value: ``least smoothed training loss``."""
        return f"{self.scale.best_name} {self.name.removeprefix('minimum ')}"

    @property
    def is_value(self) -> bool:
        """Whether it is the value of the study's objective."""
        return self.column == VALUE
