"""The settings of a study before validation, and the description of their mistakes."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from studies.cell_record import CellRecord
from studies.config import OutageSettings, StudyConfig
from studies.errors import ConfigError
from studies.space import BUILT_IN_CELLS, CELL, Space, explain_key


class ConfigFile(BaseModel):
    """The settings of a TOML file or a stored study, before validation.

    Attributes:
        name: name of the study.
        origin: source of the settings, as error messages name it.
        settings: nested settings that the source states.
        overridden: dotted keys set by options.
        override_option: option that sets them, as error messages name it; "" for none.
        is_stored: whether the source is a stored study, which states every setting.
        folder: folder that paths of users' cells are relative to; None for a stored study.
        cells: records of the users' cells that the settings name; see :meth:`with_cells`.
    """

    name: str
    origin: str
    settings: dict[str, Any]
    overridden: list[str] = []
    override_option: str = "--set"
    is_stored: bool = False
    folder: Path | None = None
    cells: dict[str, CellRecord] = {}

    def with_overrides(self, overrides: Mapping[str, Any]) -> "ConfigFile":
        """Return a copy with overrides merged into the settings, as by ``--set``."""
        return self.model_copy(
            update={
                "settings": _merge(self.settings, overrides),
                "overridden": [*self.overridden, *_dotted_keys(overrides)],
            }
        )

    def with_cells(self, cells: Mapping[str, CellRecord]) -> "ConfigFile":
        """Return a copy that knows the users' cells, by name, which its settings name."""
        return self.model_copy(update={"cells": dict(cells)})

    @property
    def cell_specs(self) -> list[str]:
        """The users' cells that the settings name, as they name them; malformed ones are absent."""
        tables = self.settings.get("space")
        specs = []
        for table in tables if isinstance(tables, list) else [tables]:
            cells = table.get(CELL) if isinstance(table, Mapping) else None
            specs += cells if isinstance(cells, list) else []
        own = [spec for spec in specs if isinstance(spec, str) and spec not in BUILT_IN_CELLS]
        return [spec for spec in dict.fromkeys(own) if ":" in spec]

    @property
    def source(self) -> str | None:
        """Name of the study that this one derives from, if any."""
        refinement = self.settings.get("refinement")
        source = refinement.get("source") if isinstance(refinement, Mapping) else None
        return source if isinstance(source, str) and source.isprintable() else None

    @property
    def outage_seconds(self) -> float:
        """How long to wait for the storage, known before the other settings are."""
        try:
            return OutageSettings.model_validate(self.settings.get("outage", {})).seconds
        except ValidationError:  # reported once all settings are known
            return OutageSettings().seconds

    def resolve(self) -> StudyConfig:
        """Validate the settings, with defaults for all others.

        Raises:
            ConfigError: for an unknown key, a wrong type or value, or a contradiction.
        """
        return self._validate(self.settings)

    def resolve_over(self, source: Mapping[str, Any]) -> StudyConfig:
        """Validate the settings, with the source study's config for all others.

        A derived study must not differ from its source by accident: corpus, precision, seed and
        gate inputs stay the same unless the file changes them.

        Args:
            source: a :meth:`pydantic.BaseModel.model_dump` of the source's config.
        """
        not_inherited = (
            "space", "refinement", "question", "hypothesis", "pruning", "eval_split",
        )  # fmt: skip
        inherited = {key: value for key, value in source.items() if key not in not_inherited}
        return self._validate(_merge(inherited, self.settings))

    def _validate(self, raw: Mapping[str, Any]) -> StudyConfig:
        if "cells" in self.settings and not self.is_stored:
            known = ", ".join(name for name in StudyConfig.model_fields if name != "cells")
            raise ConfigError(f"{self.origin}: unknown key cells: expected one of {known}")
        if self.cells:
            raw = {**raw, "cells": {**raw.get("cells", {}), **self.cells}}
        try:
            return StudyConfig.model_validate(raw)
        except ValidationError as error:
            raise ConfigError(self._format_error(error)) from error

    def _format_error(self, error: ValidationError) -> str:
        """Describe every mistake in one line: origin, key, value and expectation."""
        mistakes: dict[tuple[str, str], list[ErrorDetails]] = {}
        for each in error.errors():
            # pydantic reports an error for each alternative of a union.
            mistakes.setdefault(self._locate(each), []).append(each)
        return "; ".join(
            self._format_mistake(table, key, errors) for (table, key), errors in mistakes.items()
        )

    def _format_mistake(self, table: str, key: str, errors: Sequence[ErrorDetails]) -> str:
        first = errors[0]
        messages = dict.fromkeys(each["msg"].removeprefix("Value error, ") for each in errors)
        message = ", or ".join(each[0].lower() + each[1:] for each in messages)
        # An override is blamed for its key and for the table around it, which it may contradict.
        kind = table.partition(" ")[0]
        blamed = (
            f"{kind}.{key}".rstrip(".") if table else key or message.partition(" ")[0].rstrip(":")
        )
        is_overridden = any(
            f"{o}.".startswith(f"{blamed}.") or f"{blamed}.".startswith(f"{o}.")
            for o in self.overridden
        )
        parts = (self.override_option if is_overridden else self.origin, table)
        where = "".join(f"{part}: " for part in parts if part)
        if self._is_unknown(first):
            known = self._fields(first["loc"][:-1])
            return f"{where}unknown key {key}: {explain_key(str(first['loc'][-1]), known, _KEYS)}"
        if isinstance(first["input"], Mapping):
            return f"{where}{key + ': ' if key else ''}{message}"
        return f"{where}{key + ' ' if key else ''}is {first['input']!r}: {message}"

    def _locate(self, error: ErrorDetails) -> tuple[str, str]:
        """Return the one of several tables in which an error is, or "", and its dotted key."""
        location, table = error["loc"], ""
        if location[:1] == ("hypothesis",) and len(location) > 1:
            table, location = f"hypothesis {int(location[1]) + 1}", location[2:]
        if location[:1] == ("space",) and len(location) > 1:
            if isinstance(self.settings.get("space"), list):
                table, location = f"space {int(location[1]) + 1}", location[2:]
            else:
                location = ("space", *location[2:])
        is_unknown = self._is_unknown(error)  # an unknown key may be named like a type
        parts = [str(part) for part in location if is_unknown or not _is_union_arm(part)]
        return table, ".".join(parts)

    def _is_unknown(self, error: ErrorDetails) -> bool:
        """Return whether an error is about a key that nothing has."""
        location = error["loc"]
        if error["type"] == "extra_forbidden":
            return True
        # A table [space] takes any list, for it may be an option of a user's cell.
        return (
            location[:1] == ("space",)
            and len(location) == 3
            and location[2] not in self._fields(location[:2])
        )

    def _fields(self, location: Sequence[int | str]) -> list[str]:
        """Return the known keys of the table at a location."""
        model: Any = StudyConfig
        for part in location:
            if isinstance(part, int):  # one of several tables
                continue
            model = _find_model(model.model_fields[part].annotation)
        names = [name for name in model.model_fields if name != "cells"]
        if model is Space:
            names += [name for cell in self.cells.values() for name in cell.options]
        return names


def _dotted_keys(settings: Mapping[str, Any]) -> Iterator[str]:
    """Yield the dotted key of every value in nested tables."""
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from (f"{key}.{inner}" for inner in _dotted_keys(value))
        else:
            yield key


def _merge(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Merge nested mappings: tables are merged, other values replaced.

    A table that overrides a list of tables, such as a union of ``[[space]]``, is merged into each.
    """
    merged = dict(base)
    for key, value in overrides.items():
        present = merged.get(key)
        if isinstance(value, Mapping) and isinstance(present, list) and present:
            merged[key] = [
                _merge(table, value) if isinstance(table, Mapping) else table for table in present
            ]
            continue
        both = isinstance(present, Mapping) and isinstance(value, Mapping)
        merged[key] = _merge(present, value) if both else value  # type: ignore[arg-type]
    return merged


def _find_model(annotation: Any) -> Any:
    """Return the model of a table, which may be optional or one of several."""
    if hasattr(annotation, "model_fields"):
        return annotation
    found = map(_find_model, getattr(annotation, "__args__", ()))
    return next((model for model in found if model is not None), None)


_KEYS = [
    f"{table}.{key}"
    for table, field in StudyConfig.model_fields.items()
    for key in getattr(_find_model(field.annotation), "model_fields", ())
]
"""Keys of all tables of a study file."""


def _is_union_arm(part: int | str) -> bool:
    """Return whether a location part is pydantic's name for an alternative of a union."""
    return isinstance(part, str) and (
        "[" in part
        or part in {"bool", "int", "str", "float", "constrained-int", "constrained-float"}
    )
