"""The base of all models of study files."""

from pydantic import BaseModel, ConfigDict


class StrictModel(BaseModel):
    """Strict, immutable model: no coercion, unknown keys rejected."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
