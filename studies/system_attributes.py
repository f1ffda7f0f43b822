"""System attributes that belong to the results of a study: their names, order and types.

Others say who works on a study, or what a dashboard shows.
"""

import json
import re
from collections.abc import Collection
from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from studies.attributes import (
    AUDIT,
    AUDIT_LOOKS,
    EARLIER_FAILURES,
    END,
    EVAL_WINDOWS,
    PAUSED,
    AuditLook,
    AuditState,
    first_message,
)
from studies.errors import RowError

EARLIER_END = re.compile(r"earlier_end:[1-9]\d{0,11}")
"""Name of the attribute of what a trial was when it had ended after fewer steps."""


class _PastTrial(BaseModel):
    """What a trial was before it was retried."""

    model_config = ConfigDict(extra="forbid", strict=True)

    started: datetime | None
    completed: datetime | None
    attributes: dict[str, Any]


class _EndedTrial(_PastTrial):
    """What a trial was when it had ended after fewer steps."""

    value: float
    curve: list[tuple[int, float | None]] = []


_OF_TRIALS: dict[str, TypeAdapter[Any]] = {
    AUDIT: TypeAdapter(AuditState),
    PAUSED: TypeAdapter(datetime),
    EARLIER_FAILURES: TypeAdapter(list[_PastTrial]),
}

_ENDED: TypeAdapter[Any] = TypeAdapter(_EndedTrial)

_WINDOWS: TypeAdapter[Any] = TypeAdapter(
    list[float], config=ConfigDict(strict=True, allow_inf_nan=False)
)

_OF_STUDIES: dict[str, TypeAdapter[Any]] = {
    END: TypeAdapter(Annotated[int, Field(ge=1, strict=True)]),
    AUDIT_LOOKS: TypeAdapter(dict[str, AuditLook]),
}

STUDY_SYSTEM_ATTRIBUTES = tuple(_OF_STUDIES)
"""Names of those of a study."""


def is_result(name: str) -> bool:
    """Return whether a system attribute of a trial belongs to the results of its study."""
    return name in (*_OF_TRIALS, *EVAL_WINDOWS.values()) or EARLIER_END.fullmatch(name) is not None


def order_trial_attributes(names: Collection[str]) -> list[str]:
    """Return those of some names that are system attributes of trials, in a fixed order.

    Losses on evaluation windows are not among them.
    """
    ends = sorted((name for name in names if EARLIER_END.fullmatch(name)), key=_order_end)
    return [*(name for name in _OF_TRIALS if name in names), *ends]


def _order_end(name: str) -> int:
    return int(name.partition(":")[2])


def parse_trial_system_attribute(name: str, stored: str) -> Any:
    """Parse a system attribute of a trial, given as JSON.

    Raises:
        RowError: if this program cannot have stored it.
    """
    is_end = EARLIER_END.fullmatch(name) is not None
    windows = _WINDOWS if name in EVAL_WINDOWS.values() else _OF_TRIALS.get(name)
    return _parse(_ENDED if is_end else windows, name, stored)


def parse_study_system_attribute(name: str, stored: str) -> Any:
    """Parse a system attribute of a study, given as JSON.

    Raises:
        RowError: if this program cannot have stored it.
    """
    return _parse(_OF_STUDIES.get(name), name, stored)


def _parse(kind: TypeAdapter[Any] | None, name: str, stored: str) -> Any:
    if kind is None:
        raise RowError(f"system attribute {name}: it is not known")
    try:
        kind.validate_json(stored)
    except ValidationError as error:
        raise RowError(f"system attribute {name}: {first_message(error)}") from error
    return json.loads(stored)
