"""What a study stores about a user's cell: its source file, its hash and its options."""

import math
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from rnn.config import BASELINE_CELLS, ParamValue
from studies.strict_model import StrictModel
from studies.text import shorten

_TYPES: dict[str, tuple[type, ...]] = {
    "bool": (bool,),
    "int": (int,),
    "float": (float, int),
    "str": (str,),
}


class OptionRecord(StrictModel):
    """A keyword option of a cell's constructor.

    Attributes:
        type: name of its type.
        choices: its values, if its annotation is a ``Literal``; None for any of its type.
        default: its default.
    """

    type: Literal["bool", "int", "float", "str"]
    choices: list[ParamValue] | None = None
    default: ParamValue

    @property
    def description(self) -> str:
        """What the option takes."""
        if self.choices is not None:
            return f"one of {', '.join(map(repr, self.choices))}"
        names = {"bool": "true or false", "int": "an integer", "float": "a number", "str": "a text"}
        return names[self.type]

    def check(self, subject: str, values: Sequence[ParamValue] | None) -> None:
        """Require values of the option's type, or among its choices.

        Raises:
            ValueError: if one is not; the message begins with the subject.
        """
        for value in values or ():
            if not self.fits(value):
                shown = shorten(repr(value))
                raise ValueError(f"{subject} = {shown}: expected {self.description}")

    def fits(self, value: ParamValue) -> bool:
        """Return whether a value is of the option's type and among its choices."""
        is_bool = self.type == "bool"
        if not isinstance(value, _TYPES[self.type]) or isinstance(value, bool) != is_bool:
            return False
        try:
            is_finite = self.type != "float" or math.isfinite(float(value))
        except OverflowError:  # an integer beyond the largest float
            return False
        return is_finite and (self.choices is None or value in self.choices)

    def convert(self, values: Sequence[ParamValue]) -> list[ParamValue]:
        """Return values as the constructor takes them: a float where an integer is written."""
        return [float(value) if self.type == "float" else value for value in values]


class CellRecord(StrictModel):
    """A user's cell.

    Attributes:
        spec: where its class is, as the study file states it: ``path/to/file.py:Class`` or
            ``package.module:Class``.
        sha256: hash of its source file.
        options: options of its constructor by name, in their order.
    """

    spec: str
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    options: dict[str, OptionRecord] = {}


def cell_name(spec: str) -> str:
    """Return the name of a cell: that of a built-in cell, or of a user's class.

    Raises:
        ValueError: if the cell is neither.
    """
    if spec == "gated" or spec in BASELINE_CELLS:
        return spec
    source, colon, name = spec.rpartition(":")
    if not colon or not source or not name.isidentifier() or not spec.isprintable():
        expected = ", ".join(("gated", *BASELINE_CELLS))
        raise ValueError(
            f"{spec[:80]!r} is no cell: expected {expected}, or the class of a cell of your own, "
            "as in my_cells.py:MinGRU"
        )
    if name == "gated" or name in BASELINE_CELLS:
        raise ValueError(f"{spec[:80]!r} has the name of a built-in cell: rename the class")
    return name
