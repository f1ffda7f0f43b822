"""Loading of study configs: from TOML files with overrides, and from stored studies."""

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from rnn.config import GATED_CELL
from rnn.errors import UserError
from studies.attributes import StudyRecord
from studies.config import StudyConfig
from studies.errors import StorageNotFoundError
from studies.messages import did_you_mean, shorten
from studies.records import CellRecord, NamedTask, TaskEntry, TaskRecord, message_of
from studies.space import CELL, TASK, Space, cell_name, explain_key
from studies.storage.database import redact
from studies.storage.open import list_study_names, load_study, read_storage, read_study_record
from studies.storage.storage import LeasedRDBStorage
from studies.study_settings import LENGTH_SETTINGS, PER_WORKER, OutageSettings

CONFIG_DIR = Path(__file__).parent
"""Folder of the configs that can be given by name."""


class ConfigFile(BaseModel):
    """The settings of a TOML file or a stored study, before validation.

    Attributes:
        origin: source of the settings, as error messages name it.
        settings: nested settings, with overrides.
        overridden: dotted keys of the overrides.
        record: record of the stored study that the settings are those of, if they are.
        folder: folder of the file; None for a stored study.
        cells: records of the users' cells that the settings name.
        task: record of the task; None before it is loaded.
        tasks: records of several tasks, by name.
    """

    name: str
    origin: str
    settings: dict[str, Any]
    overridden: list[str] = []
    record: StudyRecord | None = None
    folder: Path | None = None
    cells: dict[str, CellRecord] = {}
    task: TaskRecord | None = None
    tasks: dict[str, TaskRecord] = {}

    def with_overrides(self, overrides: Mapping[str, Any]) -> "ConfigFile":
        """Return a copy with nested settings merged into its own."""
        keys = [*self.overridden, *(key for key, _ in flatten(overrides))]
        settings = _merge(_without_length(self.settings, overrides), overrides)
        return self.model_copy(update={"settings": settings, "overridden": keys})

    def folder_of(self, key: str) -> Path:
        """Return the folder that paths under a dotted key are relative to: that of the file.

        What an option states, or a stored study, is relative to the working directory.
        """
        is_overridden = any(f"{key}.".startswith(f"{stated}.") for stated in self.overridden)
        return Path() if is_overridden or self.folder is None else self.folder

    @property
    def is_stored(self) -> bool:
        """Whether the settings are those of a stored study, which states every setting."""
        return self.record is not None

    @property
    def stored_cells(self) -> Mapping[str, CellRecord]:
        """The users' cells by name that a stored study has copies of."""
        return self.record.config.cells if self.record is not None else {}

    @property
    def cell_specs(self) -> list[str]:
        """The users' cells that the settings name, as they name them; malformed ones are absent."""
        return [spec for spec in dict.fromkeys(self._list_cells()) if ":" in spec]

    @property
    def task_entries(self) -> dict[str, TaskEntry]:
        """The tasks of which the tables ``[space]`` have a list, by name."""
        entries: dict[str, TaskEntry] = {}
        for table in self._list_tables():
            named = table.get(TASK)
            for raw in named if isinstance(named, list) else ():
                with suppress(ValidationError):  # reported with the other settings
                    entry = TypeAdapter(NamedTask).validate_python(raw)
                    entries.setdefault(entry.name, entry)
        return entries

    @property
    def source(self) -> str | None:
        """Name of the study that this one derives from, if any."""
        refinement = self.settings.get("refinement")
        source = refinement.get("source") if isinstance(refinement, Mapping) else None
        return source if isinstance(source, str) else None

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
            UserError: for an unknown key, a wrong type or value, or a contradiction.
        """
        return self._validate(self.settings)

    def resolve_from(self, origin: StudyRecord | None) -> StudyConfig:
        """Validate the settings, as :meth:`resolve_over` a source study's, if there is one."""
        if origin is None or self.is_stored:
            return self.resolve()
        return self.resolve_over(origin.settings())

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
        inherited = _without_length(inherited, self.settings)
        return self._validate(_merge(inherited, self.settings))

    def _validate(self, settings: Mapping[str, Any]) -> StudyConfig:
        for key in _FILLED if not self.is_stored else ():
            if key in self.settings:
                known = ", ".join(_known_keys(StudyConfig))
                raise UserError(f"{self.origin}: unknown key {key}: expected one of {known}")
        if not self.is_stored and {"steps", "updates"} <= _stated_length(self.settings):
            raise UserError(
                f"{self.origin}: has training.steps and training.updates: expected one of them"
            )
        try:
            return StudyConfig.model_validate(self._add_records(settings))
        except ValidationError as error:
            mistakes = describe_mistakes(error, StudyConfig)
            if not isinstance(settings.get("space"), list):  # the only table has no number
                mistakes = re.sub(r"\bspace\.1\b", "space", mistakes)
            raise UserError(f"{self.origin}: {mistakes}") from error

    def _add_records(self, settings: Mapping[str, Any]) -> Mapping[str, Any]:
        return {
            **settings,
            "cells": {**settings.get("cells", {}), **self.cells},
            "task_record": None if self.tasks else self.task or settings.get("task_record"),
            # Of a trial that is run once more, the source study knows them.
            "task_records": self.tasks if self.task_entries else settings.get("task_records", {}),
        }

    def _list_tables(self) -> list[Mapping[str, Any]]:
        """List the tables ``[space]``; malformed ones are absent."""
        space = self.settings.get("space")
        tables = space if isinstance(space, list) else [space]
        return [table for table in tables if isinstance(table, Mapping)]

    def _list_cells(self) -> list[str]:
        """List the cells that tables ``[space]`` name; malformed ones are absent."""
        cells: list[Any] = []
        for table in self._list_tables():
            named = table.get(CELL, [GATED_CELL])
            cells += named if isinstance(named, list) else [GATED_CELL]
        return [cell for cell in cells if isinstance(cell, str)]


def _merge(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Merge nested mappings: tables are merged, other values replaced.

    A table that overrides a list of tables, such as a union of ``[[space]]``, is merged into each.
    """
    merged = dict(base)
    for key, value in overrides.items():
        present = merged.get(key)
        if isinstance(value, Mapping) and isinstance(present, Mapping):
            merged[key] = _merge(present, value)
        elif isinstance(value, Mapping) and isinstance(present, list) and _are_tables(present):
            merged[key] = [_merge(table, value) for table in present]
        else:
            merged[key] = value
    return merged


def _stated_length(settings: Mapping[str, Any]) -> set[str]:
    """Return which settings state how long trials train."""
    training = settings.get("training")
    return set(training) & {*LENGTH_SETTINGS} if isinstance(training, Mapping) else set()


def _without_length(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings without what others replace: ``steps`` by ``updates``, lengths by either."""
    replaced = _stated_length(overrides)
    if not replaced:
        return dict(base)
    dropped = {"steps", "updates"} if replaced & {"steps", "updates"} else set()
    training = {k: v for k, v in base.get("training", {}).items() if k not in dropped}
    kept = {key: value for key, value in base.items() if key != "lengths"}
    return kept | {"training": training}


def _are_tables(values: Sequence[Any]) -> bool:
    return bool(values) and all(isinstance(value, Mapping) for value in values)


def load_config_file(
    study: str, overrides: Sequence[str] = (), storage: str | None = None
) -> ConfigFile:
    """Read a study's settings by its name in ``studies/``, by its path, or from a storage.

    Args:
        study: ``stage-one``, ``somewhere/mine.toml``, or the name of a stored study.
        overrides: ``KEY=VALUE``, with a dotted key and a TOML value.
        storage: URL of the storage to read if there is no such file; None for none.

    Raises:
        UserError: if there is no such file or study, it is not TOML, or an override is
            malformed.
        StorageError: if the storage cannot be read.
        StudyFormatError: if the stored study cannot be read.
    """
    is_toml = study.endswith(".toml")
    path = Path(study) if is_toml or "/" in study else CONFIG_DIR / f"{study}.toml"
    try:
        exists = path.exists()
    except (OSError, ValueError):  # not a valid file name
        exists = False
    if exists:
        file = ConfigFile(
            name=path.stem,
            origin=_display_path(path),
            settings=_read_toml(path),
            folder=path.parent,
        )
    else:
        file = _find_stored(study, None if is_toml else storage)
    return override_settings(file, overrides)


def load_stored_config(name: str, storage: str) -> ConfigFile:
    """Read the settings of a stored study, whatever files there are.

    Raises:
        StorageError: if the storage cannot be read.
        StudyNotFoundError, StudyFormatError: if the study does not exist or cannot be read.
    """
    with closing(read_storage(storage)) as opened:
        return _stored_config(opened, name)


def load_settings(name: str, settings: Mapping[str, Any]) -> ConfigFile:
    """Return settings given in Python, nested as in a TOML file, as a config file.

    Paths are relative to the working directory.
    """
    return ConfigFile(name=name, origin="settings", settings=dict(settings), folder=Path())


def load_trial_config(study: str, trial: int) -> ConfigFile:
    """Return the settings of a study that runs one trial of a stored study once more, alone."""
    return ConfigFile(
        name=f"{study}-trial-{trial}",
        origin=f"trial {trial} of study {study!r}",
        # One trial is not compared, so it needs nothing by which trials are.
        settings={
            "refinement": {"source": study, "trial": trial},
            "nuisance": [],
            "report_threshold": None,
        },
    )


def load_overrides(overrides: Sequence[str]) -> ConfigFile:
    """Return overrides as a config file that has no other settings.

    Raises:
        UserError: if an override is malformed.
    """
    return override_settings(ConfigFile(name="", origin="--set", settings={}), overrides)


def override_settings(file: ConfigFile, overrides: Sequence[str]) -> ConfigFile:
    """Return a config file with overrides as of :func:`load_config_file`.

    Raises:
        UserError: if an override is malformed.
    """
    for override in overrides:
        file = file.with_overrides(_parse_override(override))
    return file


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{_display_path(path)} cannot be read: {error.strerror}") from error
    except ValueError as error:  # TOML or UTF-8
        raise UserError(f"{_display_path(path)} is not valid TOML: {error}") from error


def _find_stored(study: str, storage: str | None) -> ConfigFile:
    names = sorted(file.stem for file in CONFIG_DIR.glob("*.toml"))
    known = ", ".join(names)
    expected = f"{known}, or the path of a TOML file"
    if storage is not None:
        try:
            with closing(read_storage(storage)) as opened:
                stored_names = list_study_names(opened)
                if study in stored_names:
                    return _stored_config(opened, study)
                where = redact(opened.engine.url)
            names = [*stored_names, *names]
            stored = ", ".join(stored_names) or "none yet"
            expected = f"{known}, the path of a TOML file, or a study in {where} ({stored})"
        except StorageNotFoundError:
            pass
    raise UserError(f"study {study!r} not found: {did_you_mean(study, names)}expected {expected}")


def _stored_config(storage: LeasedRDBStorage, name: str) -> ConfigFile:
    record = read_study_record(load_study(storage, name))
    origin = f"study {name!r} in {redact(storage.engine.url)}"
    return ConfigFile(name=name, origin=origin, settings=record.settings(), record=record)


def _parse_override(override: str) -> dict[str, Any]:
    key, equals, text = override.partition("=")
    shown = shorten(override)
    if not equals or not key.strip():
        raise UserError(
            f"--set {shown!r} has no value: expected KEY=VALUE, as in training.steps=2000"
        )
    try:
        nested: dict[str, Any] = tomllib.loads(f"value = {text}")["value"]
    except ValueError as error:
        raise UserError(
            f"--set {shown!r}: {shorten(text)!r} is not a TOML value: expected one like 2000, 0.5, "
            "true, [1, 2] or a text in quotes, in a shell as in --set 'task.corpus=\"text.txt\"'"
        ) from error
    for part in reversed(key.strip().split(".")):
        nested = {part: nested}
    return nested


def _display_path(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


# ------------------------------------------------------------------ mistakes


_FILLED = ("cells", "task_record", "task_records", "lengths", "loop_parameters", "results")
"""Keys of a stored config that the program fills."""

_UNION_ARMS = ("bool", "int", "str", "float", "constrained-int", "constrained-float")
"""Pydantic's names for alternatives of a union in a location, as others that have a bracket."""


def describe_mistakes(error: ValidationError, model: type[BaseModel] | None = None) -> str:
    """Describe what is wrong with settings in one line; places in lists count from 1.

    The model of the settings names the keys that were expected in place of unknown ones.
    """
    mistakes: dict[str, list[ErrorDetails]] = {}
    for mistake in error.errors():  # one for each alternative of a union
        mistakes.setdefault(_locate(mistake), []).append(mistake)
    return "; ".join(_describe(key, found, model) for key, found in mistakes.items())


def _locate(mistake: ErrorDetails) -> str:
    parts = [str(part + 1) if isinstance(part, int) else part for part in mistake["loc"]]
    return ".".join(part for part in parts if part not in _UNION_ARMS and "[" not in part)


def _describe(key: str, alternatives: Sequence[ErrorDetails], model: Any) -> str:
    """Describe a mistake: key, value and expectation."""
    first = alternatives[0]
    if first["type"] == "extra_forbidden" and model is not None:
        *table, name = first["loc"]
        expected = explain_key(str(name), _known_keys(model, table), _KEYS)
        return f"unknown key {key}: {expected}"
    message = ", or ".join(dict.fromkeys(map(message_of, alternatives)))
    if isinstance(first["input"], Mapping):
        return f"{key}: {message}" if key else message
    similar = ""
    option = re.fullmatch(r"space\.[0-9]+\.(\w+)", key)
    if option and option[1] not in Space.model_fields:  # of a cell, or a mistyped key
        similar = did_you_mean(option[1], Space.model_fields)
    return f"{key} is {shorten(repr(first['input']))}: {similar}{message}"


def _known_keys(model: Any, location: Sequence[int | str] = ()) -> list[str]:
    """Return the keys that a user can state in the table at a location."""
    for part in location:
        if isinstance(part, str):  # not the number of one of several tables
            model = _find_model(model.model_fields[part].annotation)
    return [name for name in model.model_fields if name not in _FILLED]


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


# ------------------------------------------------------------------ compatibility


DESCRIPTIVE = ("question", "report_threshold", "untrained", "told", "nuisance")
"""Settings that describe what is asked and affect no result; an extension can change them."""

_IGNORED = {"cells", "hypothesis", "lengths", "loop_parameters", *DESCRIPTIVE, *PER_WORKER}
"""Settings that do not affect results; the sources of cells, which the space names, are compared by
their hashes."""


def diff_configs(stored: StudyConfig, local: StudyConfig) -> list[str]:
    """List the differences between a worker's config and its study's.

    A precision of ``auto`` matches any precision.

    Returns:
        A line for each setting: its name, the study's value, the worker's.
    """
    expected = dict(flatten(_identity(stored)))
    actual = dict(flatten(_identity(local)))
    # A task that one of them lacks is a difference of the space.
    for name in stored.task_records.keys() & local.task_records.keys():
        expected |= flatten(stored.task_records[name].identity(), f"task {name}.")
        actual |= flatten(local.task_records[name].identity(), f"task {name}.")
    if local.precision == "auto":
        actual["precision"] = expected["precision"]
    return [
        f"{key}: {expected.get(key)!r} in the study, {actual.get(key)!r} here"
        for key in sorted(expected.keys() | actual.keys())
        if expected.get(key) != actual.get(key)
    ]


def list_descriptive_changes(stored: StudyConfig, local: StudyConfig) -> list[str]:
    """List the descriptive settings that a worker's config states otherwise than its study's."""
    return [name for name in DESCRIPTIVE if getattr(stored, name) != getattr(local, name)]


def _identity(config: StudyConfig) -> dict[str, Any]:
    settings = config.model_dump(mode="json", exclude=_IGNORED)
    tables: list[dict[str, Any]] = settings["space"] or []
    for table in tables if config.has_networks else ():
        if table["cell"]:  # by name: other machines have the files elsewhere
            table["cell"] = list(map(cell_name, table["cell"]))
        if isinstance(table["task"], list):
            table["task"] = [TaskEntry.model_validate(task).name for task in table["task"]]
    for table in tables:
        # The order of exclusions is irrelevant.
        table["exclude"].sort(key=lambda exclusion: sorted(map(repr, exclusion.items())))
    if len(tables) == 1:
        settings["space"] = tables[0]
    elif tables:
        settings["space"] = {str(number): table for number, table in enumerate(tables, start=1)}
    if settings["loop"] is not None:
        del settings["loop"]["function"]  # each worker's own; trials record the hash of its code
    del settings["task_record"]
    if settings.pop("task_records"):  # whose records are compared by name
        del settings["task"]
    if config.task_record is not None:
        identity = config.task_record.identity()
        settings["task"] = identity.pop("values") | identity
    return settings


def flatten(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted key and the value of each setting in nested tables."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
