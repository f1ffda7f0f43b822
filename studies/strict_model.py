"""The base of all models of study files, and the units of their settings."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


def unit(name: str) -> Any:
    """Annotate a field with the unit of its value; its docstring says what it is."""
    return Field(json_schema_extra={"unit": name})


class StrictModel(BaseModel):
    """Strict, immutable model: no coercion, unknown keys rejected."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
