"""The number by which the architectures of a study are ranked."""

from dataclasses import dataclass

from reports.formatting import add_unit
from reports.scale import NATS, Scale

VALUE = "value"
"""Column of the value of the study's objective."""


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
