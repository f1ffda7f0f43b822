"""The settings of a study before validation, and the description of their mistakes."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from studies.config import StudyConfig
from studies.errors import ConfigError
from studies.records import TEXT, CellRecord, TaskRecord, message_of
from studies.settings import OutageSettings
from studies.space import CELL, GATED_CELL, SWITCHES, TASK, Space, explain_key, task_name
from studies.text import expect_one_of, shorten

_FILLED = ("cells", "task_record", "task_records", "results")
"""Keys of a stored config that the program fills."""

_Place = tuple[str, str]
"""Where a mistake is: the one of several tables, or "", and the dotted key."""


class ConfigFile(BaseModel):
    """The settings of a TOML file or a stored study, before validation.

    Attributes:
        origin: source of the settings, as error messages name it.
        settings: nested settings that the source states, with overrides.
        original: the same without overrides; None if there are none.
        overridden: dotted keys set by ``--set``.
        unset: dotted keys removed by ``--unset``.
        is_command: whether error messages name these options.
        is_stored: whether the source is a stored study, which states every setting.
        folder: folder of the file; None for a stored study.
        cells: records of the users' cells that the settings, or the original ones, name.
        task: record of the task; None for a text, and before it is loaded.
        tasks: records of several tasks, by name.
        left_out: what :meth:`with_cells` has left out, for the user; "" for nothing.
    """

    name: str
    origin: str
    settings: dict[str, Any]
    original: dict[str, Any] | None = None
    overridden: list[str] = []
    unset: list[str] = []
    is_command: bool = True
    is_stored: bool = False
    folder: Path | None = None
    cells: dict[str, CellRecord] = {}
    task: TaskRecord | None = None
    tasks: dict[str, TaskRecord] = {}
    left_out: str = ""

    def with_overrides(self, overrides: Mapping[str, Any]) -> "ConfigFile":
        """Return a copy with overrides merged into the settings, as by ``--set``."""
        return self.model_copy(
            update={
                "settings": _merge(self.settings, overrides),
                "original": self._stated,
                "overridden": [*self.overridden, *_dotted_keys(overrides)],
            }
        )

    def without(self, keys: Iterable[str]) -> "ConfigFile":
        """Return a copy without some settings, by dotted key, as by ``--unset``.

        Raises:
            ConfigError: if the settings do not have one.
        """
        settings: Any = self.settings
        for key in keys:
            stated, settings = settings, _remove(settings, key.split("."))
            if settings == stated:
                known = dict.fromkeys(_dotted_keys(self.settings))
                raise ConfigError(
                    f"{shorten(key)} cannot be unset, because {self.origin} does not set it: "
                    f"{expect_one_of(known, key)}"
                )
        update = {"settings": settings, "original": self._stated, "unset": [*self.unset, *keys]}
        return self.model_copy(update=update)

    def with_cells(self, cells: Mapping[str, CellRecord]) -> "ConfigFile":
        """Return a copy that knows users' cells by name: also those that overrides removed.

        What the source states of the options of removed cells is left out unless others have them.
        """
        file = self.model_copy(update={"cells": dict(cells)})
        removed = list(map(_cell_name, self.removed_specs))
        if not removed:
            return file
        kept = file._list_options(map(_cell_name, _list_cells(self.settings)))
        options = [name for name in file._list_options(removed) if name not in kept]

        def concerns(entry: Any) -> bool:
            """Return whether an entry of exclude or nuisance is about nothing that is left."""
            if isinstance(entry, Mapping):
                return entry.get(CELL) in removed or any(name in entry for name in options)
            return entry in options

        settings: Any = self.settings
        left_out = []
        places = [("space.exclude", concerns), ("nuisance", concerns)]
        for key, matches in [*((f"space.{name}", None) for name in options), *places]:
            if not any(f"{each}.".startswith(f"{key}.") for each in self.overridden):
                stated, settings = settings, _remove(settings, key.split("."), matches)
                if settings != stated:
                    left_out.append(f"entries of {key}" if matches else key)
        for name in removed if self.is_stored else ():
            settings = _remove(settings, ["cells", name])
        notice = f"space.cell does not name {', '.join(removed)}: left out {', '.join(left_out)}"
        update = {"settings": settings, "original": self._stated}
        return file.model_copy(update=update | {"left_out": notice if left_out else ""})

    def folder_of(self, key: str) -> Path:
        """Return the folder that paths under a dotted key are relative to: that of the file.

        What an option states, or a stored study, is relative to the working directory.
        """
        is_overridden = any(f"{key}.".startswith(f"{each}.") for each in self.overridden)
        return Path() if is_overridden or self.folder is None else self.folder

    @property
    def cell_specs(self) -> list[str]:
        """The users' cells that the settings name, as they name them; malformed ones are absent."""
        return [spec for spec in dict.fromkeys(_list_cells(self.settings)) if ":" in spec]

    @property
    def task_specs(self) -> dict[str, str]:
        """The tasks of which the tables ``[space]`` have a list, by name."""
        tables = self.settings.get("space")
        specs: dict[str, str] = {}
        for table in tables if isinstance(tables, list) else [tables]:
            named = table.get(TASK) if isinstance(table, Mapping) else None
            for spec in named if isinstance(named, list) else ():
                with suppress(ValueError, AttributeError):  # reported with the other settings
                    specs.setdefault(task_name(spec), spec)
        return specs

    @property
    def removed_specs(self) -> list[str]:
        """The cells of the source, built-in ones included, that overrides have removed."""
        kept = [_cell_name(spec) for spec in _list_cells(self.settings)]
        specs = dict.fromkeys(_list_cells(self._stated)) if kept else ()
        return [spec for spec in specs if _cell_name(spec) not in kept]

    @property
    def _stated(self) -> dict[str, Any]:
        return self.settings if self.original is None else self.original

    def _list_options(self, cells: Iterable[str]) -> list[str]:
        """List the options of cells, the switches of the gated one included."""
        stored = self.settings.get("cells", {}) if self.is_stored else {}
        options: dict[str, Iterable[str]] = {GATED_CELL: SWITCHES}
        options |= {name: record["options"] for name, record in stored.items()}
        options |= {name: record.options for name, record in self.cells.items()}
        return [option for cell in cells for option in options.get(cell, ())]

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
        return self._validate(self.settings, self._stated)

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
        return self._validate(_merge(inherited, self.settings), _merge(inherited, self._stated))

    def _validate(self, settings: Mapping[str, Any], stated: Mapping[str, Any]) -> StudyConfig:
        """Validate settings; those without overrides tell which mistakes are the source's."""
        for key in _FILLED if not self.is_stored else ():
            if key in self.settings:
                known = ", ".join(self._fields(()))
                raise ConfigError(f"{self.origin}: unknown key {key}: expected one of {known}")
        resolved = self._resolve_or_explain(settings)
        if isinstance(resolved, StudyConfig):
            return resolved
        original = self._resolve_or_explain(stated)
        own = {} if isinstance(original, StudyConfig) else original
        options = ["--unset"] * bool(self.unset) + ["--set"] * bool(self.overridden)
        culprit = " and ".join(options) if self.is_command else ""
        lines = []
        for place, mistake in resolved.items():
            source = self.origin if own.get(place) == mistake else culprit
            lines.append(f"{source}: {mistake}" if source else mistake)
        raise ConfigError("; ".join([*lines, *filter(None, [self.left_out])]))

    def _resolve_or_explain(self, settings: Mapping[str, Any]) -> StudyConfig | dict[_Place, str]:
        """Return the config with some settings, or what is wrong at each place."""
        try:
            return StudyConfig.model_validate(self._add_records(settings))
        except ValidationError as error:
            places: dict[_Place, list[ErrorDetails]] = {}
            for each in error.errors():  # one for each alternative of a union
                places.setdefault(self._locate(each), []).append(each)
            return {place: self._describe(place, errors) for place, errors in places.items()}

    def _add_records(self, settings: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return settings with the records of the users' cells and the task that they name."""
        names = map(_cell_name, _list_cells(settings))
        records = {name: self.cells[name] for name in names if name in self.cells}
        task = settings.get("task")
        source = task.get("source", TEXT) if isinstance(task, Mapping) else TEXT
        return {
            **settings,
            "cells": {**settings.get("cells", {}), **records},
            "task_record": (None if source == TEXT else self.task or settings.get("task_record")),
            # Of a trial that is run once more, the source study knows them.
            "task_records": self.tasks if self.task_specs else settings.get("task_records", {}),
        }

    def _describe(self, place: _Place, errors: Sequence[ErrorDetails]) -> str:
        """Describe a mistake: table, key, value and expectation."""
        first, (table, key) = errors[0], place
        where = f"{table}: " if table else ""
        if self._is_unknown(first):
            known = self._fields(first["loc"][:-1])
            return f"{where}unknown key {key}: {explain_key(str(first['loc'][-1]), known, _KEYS)}"
        message = ", or ".join(dict.fromkeys(map(message_of, errors)))
        if isinstance(first["input"], Mapping):
            return f"{where}{key + ': ' if key else ''}{message}"
        return f"{where}{key + ' ' if key else ''}is {first['input']!r}: {message}"

    def _locate(self, error: ErrorDetails) -> _Place:
        """Return where an error is."""
        location, table = error["loc"], ""
        name = location[0] if len(location) > 1 else ""
        is_union = name == "space" and isinstance(self.settings.get("space"), list)
        if name == "hypothesis" or is_union:
            table, location = f"{name} {int(location[1]) + 1}", location[2:]
        elif name == "space":
            location = ("space", *location[2:])
        is_unknown = self._is_unknown(error)  # an unknown key may be named like a type
        parts = [
            str(part)
            for part in location
            if is_unknown or not (part in _UNION_ARMS or "[" in str(part))
        ]
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
        names = [name for name in model.model_fields if name not in _FILLED]
        if model is Space:
            cells = map(_cell_name, _list_cells(self.settings))
            names += [name for name in self._list_options(cells) if name not in names]
        return names


def _dotted_keys(settings: Mapping[str, Any]) -> Iterator[str]:
    """Yield the dotted key of every value in nested tables, and in lists of tables."""
    for key, value in settings.items():
        tables = value if isinstance(value, list) and value else [value]
        for table in tables:
            if isinstance(table, Mapping) and table:
                yield from (f"{key}.{inner}" for inner in _dotted_keys(table))
            else:
                yield key


def _remove(value: Any, path: Sequence[str], matches: Callable[[Any], bool] | None = None) -> Any:
    """Return nested tables without the value at a path, or without some entries of that list.

    Args:
        value: a table, or a list of tables.
        path: keys of the nested tables.
        matches: tells which entries of the list at the path to remove; None for the whole value.
    """
    if isinstance(value, list) and path:
        return [_remove(each, path, matches) for each in value]
    if isinstance(value, list) and matches:
        return [each for each in value if not matches(each)]
    if not isinstance(value, Mapping) or not path or path[0] not in value:
        return value
    first, *rest = path
    if not (rest or matches):
        return {key: each for key, each in value.items() if key != first}
    return {**value, first: _remove(value[first], rest, matches)}


def _list_cells(settings: Mapping[str, Any]) -> list[str]:
    """List the cells that tables ``[space]`` name; malformed ones are absent."""
    tables = settings.get("space")
    cells: list[str] = []
    for table in tables if isinstance(tables, list) else [tables]:
        if isinstance(table, Mapping):
            named = table.get(CELL)
            cells += [GATED_CELL] if named is None else named if isinstance(named, list) else []
    return [cell for cell in cells if isinstance(cell, str)]


def _cell_name(spec: str) -> str:
    return spec.rpartition(":")[2]


def _merge(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Merge nested mappings: tables are merged, other values replaced.

    A table that overrides a list of tables, such as a union of ``[[space]]``, is merged into each.
    """
    merged = dict(base)
    for key, value in overrides.items():
        present = merged.get(key)
        are_tables = isinstance(present, list) and all(isinstance(t, Mapping) for t in present)
        if isinstance(value, Mapping) and are_tables and present:
            merged[key] = [_merge(table, value) for table in present]
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

_UNION_ARMS = ("bool", "int", "str", "float", "constrained-int", "constrained-float")
"""Pydantic's names for alternatives of a union in a location, as others that have a bracket."""
