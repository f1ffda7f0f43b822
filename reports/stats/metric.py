"""By what the architectures of a study are ranked: what was recorded of them, and its words."""

from dataclasses import dataclass

import pandas as pd

from reports.formatting import loss_unit, objective_name
from studies.config import StudyConfig

BITS = "bits per byte"

VALUE = "value"
"""The column of what a trial minimised."""

_HELD_OUT = {"test": "test loss", "validation": "validation loss"}


@dataclass(frozen=True)
class Metric:
    """A number of each run.

    Attributes:
        column: of the table that has it.
        name: of it, in words.
        unit: of it.
        split: of the text that it was measured on, lane by lane, if that is the one held-out text
            by which runs are compared.
    """

    column: str
    name: str
    unit: str
    split: str

    @property
    def axis(self) -> str:
        """What stands at an axis of it."""
        return f"{self.name} ({self.unit})"

    @property
    def is_value(self) -> bool:
        """Whether it is what the trials minimised."""
        return self.column == VALUE


def bits_per_byte_column(split: str) -> str:
    """Return the column of the bits per byte on a held-out split."""
    return f"{split}_bits_per_byte"


def select_metric(complete: pd.DataFrame, config: StudyConfig) -> Metric:
    """Return by what a study's architectures are ranked.

    Replicates are by what they come to on text that they have not seen: on the test split if that
    was read, else on the validation split. Single runs, and what has no such record, are by their
    values.

    Args:
        complete: the rows of the complete points.
        config: of the study.
    """
    refinement = config.refinement
    if refinement is not None and refinement.replicates > 1:
        for split, name in _HELD_OUT.items():
            column = complete[bits_per_byte_column(split)]
            if len(column) and column.notna().all():
                return Metric(bits_per_byte_column(split), name, BITS, split)
    return Metric(VALUE, objective_name(config), loss_unit(config), "validation")
