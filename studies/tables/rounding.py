"""Rounding of losses to the digits that a file of a study has, so that it is small.

The least smoothed loss at the log points is rounded like these, and so is the value of a study
whose objective it is: what was equal stays equal.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from studies.attributes import EARLIER_FAILURES, EVAL_WINDOWS, OBJECTIVE_ATTRIBUTES, StudyRecord
from studies.system_attributes import EARLIER_END

DIGITS = 6
"""Significant digits of the losses on evaluation windows and at log points."""

_LEAST = OBJECTIVE_ATTRIBUTES["training"]


def format_loss(loss: float | None) -> str:
    """Format a loss with the digits that a file has; "" for none."""
    return "" if loss is None else f"{loss:.{DIGITS}g}"


def round_loss(loss: float | None) -> float | None:
    """Round a loss to the digits that a file has."""
    return None if loss is None else float(format_loss(loss))


@dataclass(frozen=True)
class Rounding:
    """Rounds what a study with an objective stores.

    Attributes:
        objective: objective of the study.
    """

    objective: str

    def round_value(self, value: float | None) -> float | None:
        """Round the value of a trial if it is one of its losses at the log points."""
        return round_loss(value) if OBJECTIVE_ATTRIBUTES[self.objective] == _LEAST else value

    def round_record(self, record: StudyRecord) -> StudyRecord:
        """Round the values that trials had before their study was extended."""
        ends = []
        for end in record.earlier_ends:
            values = {number: self.round_value(value) for number, value in end.values.items()}
            ends.append(end.model_copy(update={"values": values}))
        return record.model_copy(update={"earlier_ends": ends})

    def round_attributes(self, attributes: Mapping[str, Any]) -> dict[str, Any]:
        """Round attributes of a trial, also in records of what it was."""
        return {key: self._round(key, value) for key, value in attributes.items()}

    def _round(self, key: str, value: Any) -> Any:
        if key in EVAL_WINDOWS.values():
            return [round_loss(loss) for loss in value]
        if key == _LEAST:
            return round_loss(value)
        if key == EARLIER_FAILURES:
            return [self._round_past(each) for each in value]
        return self._round_past(value) if EARLIER_END.fullmatch(key) else value

    def _round_past(self, past: Mapping[str, Any]) -> dict[str, Any]:
        """Round the record of what a trial was."""
        rounded = {**past, "attributes": self.round_attributes(past["attributes"])}
        if "value" in past:
            rounded["value"] = self.round_value(past["value"])
        if "curve" in past:
            rounded["curve"] = [[step, round_loss(loss)] for step, loss in past["curve"]]
        return rounded
