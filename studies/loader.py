"""Loading of study configs: from TOML files with overrides, and from stored studies."""

import shlex
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
from pydantic import Field, ValidationError

from studies.attributes import CONFIG, IMPORTED, SCHEMA_VERSION, CorpusRecord, StudyRecord
from studies.config import StudyConfig
from studies.config_file import ConfigFile
from studies.errors import (
    ConfigError,
    ImportedStudyError,
    StorageNotFoundError,
    StudyFormatError,
)
from studies.files import MAX_DEPTH, parse_toml, read_toml
from studies.hypotheses import Hypothesis
from studies.records import StrictModel, first_message
from studies.space import cell_name, task_name
from studies.storage.engine import parse_url, redact
from studies.storage.open import list_study_names, load_study, read_storage
from studies.storage.storage import LeasedRDBStorage
from studies.text import did_you_mean, shorten

CONFIG_DIR = Path(__file__).parent
"""Folder of the configs that can be given by name."""


def load_config_file(
    study: str, overrides: Sequence[str] = (), storage: str | None = None
) -> ConfigFile:
    """Read a study's settings by its name in ``studies/``, by its path, or from a storage.

    Args:
        study: ``stage-one``, ``somewhere/mine.toml``, or the name of a stored study.
        overrides: ``KEY=VALUE``, with a dotted key and a TOML value.
        storage: URL of the storage to read if there is no such file; None for none.

    Raises:
        ConfigError: if there is no such file or study, it is not TOML, or an override is
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
        return _stored_config(opened, name, redact(parse_url(storage)))


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


class _HypothesisFile(StrictModel):
    hypothesis: list[Hypothesis] = Field(min_length=1)


def load_hypotheses(path: Path) -> list[Hypothesis]:
    """Read hypotheses from a TOML file, tables ``[[hypothesis]]`` as in a study file.

    Raises:
        ConfigError: if the file cannot be read, or a key or a value is not valid.
    """
    return parse_hypotheses(_read_toml(path), _display_path(path))


def parse_hypotheses(tables: Mapping[str, Any], origin: str) -> list[Hypothesis]:
    """Return the hypotheses of the key ``hypothesis``.

    Raises:
        ConfigError: if a key or a value is not valid; the message begins with ``origin``.
    """
    try:
        return _HypothesisFile.model_validate(tables).hypothesis
    except ValidationError as error:
        raise ConfigError(f"{origin}: {describe_mistake(error)}") from error


def describe_mistake(error: ValidationError) -> str:
    """Describe the first mistake of settings in one line; places in lists count from 1."""
    location = error.errors()[0]["loc"]
    parts = (str(part + 1) if isinstance(part, int) else part for part in location)
    return ": ".join(filter(None, (".".join(parts), first_message(error))))


def load_overrides(overrides: Sequence[str]) -> ConfigFile:
    """Return overrides as a config file that has no other settings.

    Raises:
        ConfigError: if an override is malformed.
    """
    return override_settings(ConfigFile(name="", origin="--set", settings={}), overrides)


def override_settings(
    file: ConfigFile, overrides: Sequence[str], unset: Sequence[str] = ()
) -> ConfigFile:
    """Return a config file without some settings, and with others.

    Args:
        file: a config file.
        overrides: ``KEY=VALUE``, with a dotted key and a TOML value.
        unset: dotted keys.

    Raises:
        ConfigError: if an override is malformed, or the file does not set a key.
    """
    file = file.without(unset) if unset else file
    for override in overrides:
        file = file.with_overrides(_parse_override(override))
    return file


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return read_toml(path)
    except OSError as error:
        raise ConfigError(f"{_display_path(path)} cannot be read: {error.strerror}") from error
    except ValueError as error:  # TOML or UTF-8
        raise ConfigError(f"{_display_path(path)} is not valid TOML: {error}") from error


def _find_stored(study: str, storage: str | None) -> ConfigFile:
    """Read the config of a stored study, without creating or changing the storage."""
    names = sorted(file.stem for file in CONFIG_DIR.glob("*.toml"))
    known = ", ".join(names)
    expected = f"{known}, or the path of a TOML file"
    if storage is not None:
        where = redact(parse_url(storage))
        try:
            with closing(read_storage(storage)) as opened:
                stored_names = list_study_names(opened)
                if study in stored_names:
                    return _stored_config(opened, study, where)
            names = [*stored_names, *names]
            stored = ", ".join(stored_names) or "none yet"
            expected = f"{known}, the path of a TOML file, or a study in {where} ({stored})"
        except StorageNotFoundError:
            pass
    raise ConfigError(f"study {study!r} not found: {did_you_mean(study, names)}expected {expected}")


def _stored_config(storage: LeasedRDBStorage, name: str, where: str) -> ConfigFile:
    settings = read_study_record(load_study(storage, name)).settings()
    origin = f"study {name!r} in {where}"
    return ConfigFile(name=name, origin=origin, settings=settings, is_stored=True)


def _parse_override(override: str) -> dict[str, Any]:
    """Return the nested settings of an override."""
    key, equals, text = override.partition("=")
    shown = shorten(override)
    if not equals or not key.strip():
        raise ConfigError(
            f"--set {shown!r} has no value: expected KEY=VALUE, as in training.steps=2000"
        )
    if key.count(".") > MAX_DEPTH:
        raise ConfigError(f"--set {shown!r}: expected a key such as training.steps")
    not_toml = ConfigError(
        f"--set {shown!r}: {shorten(text)!r} is not a TOML value: expected one like 2000, 0.5, "
        "true, [1, 2] or a text in quotes, in a shell as in --set 'corpus=\"text.txt\"'"
    )
    try:
        parsed = parse_toml(f"value = {text}")
    except tomllib.TOMLDecodeError as error:
        raise not_toml from error
    except ValueError as error:  # too large, or nested too deeply
        raise ConfigError(f"--set {shown!r}: {error}") from error
    if len(parsed) > 1:
        raise not_toml
    nested: dict[str, Any] = parsed["value"]
    for part in reversed(key.strip().split(".")):
        nested = {part: nested}
    return nested


def _display_path(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def read_study_record(study: optuna.Study) -> StudyRecord:
    """Read and validate what a study that is trained here stores about itself.

    Raises:
        ImportedStudyError: if it was imported.
        StudyFormatError: if another program, or another version of this one, stored it.
    """
    record = read_record(study)
    if not record.config.is_trained:
        raise ImportedStudyError(
            f"study {study.study_name!r} was imported: its trials cannot be trained or derived "
            "from here"
        )
    return record


def read_record(study: optuna.Study) -> StudyRecord:
    """Read and validate what any study of this program stores about itself.

    Raises:
        StudyFormatError: if another program, or another version of this one, stored it.
    """
    return parse_record(study.study_name, study.user_attrs)


def parse_record(name: str, stored: Mapping[str, Any]) -> StudyRecord:
    """Validate the user attributes of a study, as :func:`read_record` does."""
    version = stored.get("schema_version")
    if version != SCHEMA_VERSION:
        if version is None:
            raise StudyFormatError(
                f"study {name!r} has no schema version: another program created it; expected a "
                "study of this one, as rnn-search import STORAGE --study "
                f"{shlex.quote(name)} makes of it"
            )
        raise StudyFormatError(
            f"study {name!r} has schema version {shorten(repr(version))}, expected "
            f"{SCHEMA_VERSION}: another version of this program created it; open it there"
        )
    try:
        if IMPORTED in stored:  # by an earlier version
            results = dict(stored[IMPORTED])
            config = {"question": results.pop("question", ""), "results": results}
            stored = {**stored, CONFIG: config}
        return StudyRecord.model_validate(stored)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise StudyFormatError(
            f"study {name!r} has an invalid attribute {key} ({first['msg']}): another version of "
            "this program changed it; use that version, or choose another study or --name"
        ) from error


# ------------------------------------------------------------------ compatibility


PER_WORKER = {"lease", "checkpoint", "outage", "keep_weights", "keep_checkpoints"}
"""Settings that each worker chooses independently."""

DESCRIPTIVE = ("question", "report_threshold", "nuisance")
"""Settings that describe what is asked and affect no result; an extension can change them."""

_IGNORED = {"corpus", "cells", "hypothesis", *DESCRIPTIVE, *PER_WORKER}
"""Settings that do not affect results; the corpus is compared by its hash, and so are the sources
of cells, which the space names."""


def diff_configs(
    stored: StudyConfig,
    stored_corpus: CorpusRecord | None,
    local: StudyConfig,
    local_corpus: CorpusRecord | None,
) -> list[str]:
    """List the differences between a worker's config and corpus and its study's.

    A corpus is None in tasks other than text.

    A precision of ``auto`` matches any precision.

    Returns:
        A line for each setting: its name, the study's value, the worker's.
    """
    expected = dict(flatten(_identity(stored, stored_corpus)))
    actual = dict(flatten(_identity(local, local_corpus)))
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


def _identity(config: StudyConfig, corpus: CorpusRecord | None) -> dict[str, Any]:
    settings = config.model_dump(mode="json", exclude=_IGNORED)
    tables: list[dict[str, Any]] = settings["space"] or []
    for table in tables:
        if table["cell"]:  # by name: other machines have the files elsewhere
            table["cell"] = list(map(cell_name, table["cell"]))
        if isinstance(table["task"], list):
            table["task"] = list(map(task_name, table["task"]))
        # The order of exclusions is irrelevant.
        table["exclude"].sort(key=lambda exclusion: sorted(map(repr, exclusion.items())))
    if len(tables) == 1:
        settings["space"] = tables[0]
    elif tables:
        settings["space"] = {str(number): table for number, table in enumerate(tables, start=1)}
    del settings["task_record"]
    settings.pop("task_records", None)
    if config.task_record is not None:
        identity = config.task_record.identity()
        settings["task"] = identity.pop("values") | identity
    if corpus is not None:
        settings["corpus"] = corpus.model_dump(mode="json", exclude={"name"})
    return settings


def flatten(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted key and the value of each setting in nested tables."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
