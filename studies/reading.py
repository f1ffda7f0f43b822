"""A ``*.toml`` or a stored study, and the command line's overrides → a definition, or an error."""

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from studies.definition import Definition
from studies.engine import parse_url, shown
from studies.errors import DefinitionError, StorageMissing
from studies.opening import load_study, read_storage
from studies.stored import stored_definition

DIRECTORY = Path(__file__).parent
"""Where the definitions are found by name."""


class DefinitionFile(BaseModel):
    """A definition as it was written: what it states, and where it was read.

    Attributes:
        name: of the study.
        origin: where it was read, as errors name it.
        stated: its settings.
        overridden: the keys of those that the command line stated.
        is_stored: whether it was read from a study in the storage, and so states every setting.
    """

    name: str
    origin: str
    stated: dict[str, Any]
    overridden: list[str] = []
    is_stored: bool = False

    def stating(self, settings: Mapping[str, Any]) -> "DefinitionFile":
        """Return the same definition with more settings stated, as by ``--set``."""
        return self.model_copy(
            update={
                "stated": _merge(self.stated, settings),
                "overridden": [*self.overridden, *_dotted_keys(settings)],
            }
        )

    @property
    def source(self) -> str | None:
        """The study that this one states to be derived from."""
        refinement = self.stated.get("refinement")
        source = refinement.get("source") if isinstance(refinement, Mapping) else None
        return source if isinstance(source, str) else None

    def validate_alone(self) -> Definition:
        """Validate what the file states, the rest by default.

        Raises:
            DefinitionError: for an unknown key, a wrong type or value, or a contradiction.
        """
        return self._validate(self.stated)

    def validate_over(self, source: Mapping[str, Any]) -> Definition:
        """Validate what the file states, the rest as in the source study's definition.

        A derived study must not differ from its source by accident: text, precision, seed and the
        form of the gates stay what they were unless the file says otherwise.

        Args:
            source: a :meth:`pydantic.BaseModel.model_dump` of the source's definition.
        """
        own = ("space", "refinement", "question", "pruning", "evaluate")
        inherited = {key: value for key, value in source.items() if key not in own}
        return self._validate(_merge(inherited, self.stated))

    def _validate(self, raw: Mapping[str, Any]) -> Definition:
        try:
            return Definition.model_validate(raw)
        except ValidationError as error:
            raise DefinitionError(self._explain(error)) from error

    def _explain(self, error: ValidationError) -> str:
        """Name every mistake in one line: where it stands, its key and value, what is allowed."""
        mistakes: dict[str, list[ErrorDetails]] = {}
        for found in error.errors():
            # A value that may be of several types has an error for each of them.
            mistakes.setdefault(_key(found), []).append(found)
        lines = [self._explain_mistake(key, errors) for key, errors in mistakes.items()]
        if len(lines) == 1:
            return lines[0]
        hint = "; correct it"
        return "; ".join(line.removesuffix(hint) for line in lines) + "; correct them"

    def _explain_mistake(self, key: str, errors: Sequence[ErrorDetails]) -> str:
        first = errors[0]
        # An override is to blame for what it set, and for what that contradicts around it.
        blamed = any(
            f"{o}.".startswith(f"{key}.") or f"{key}.".startswith(f"{o}.") for o in self.overridden
        )
        where = "--set" if key and blamed else self.origin
        if first["type"] == "extra_forbidden":
            allowed = ", ".join(_fields(first["loc"][:-1]))
            return f"{where}: {key} is no known key; allowed here: {allowed}; correct it"
        messages = dict.fromkeys(each["msg"].removeprefix("Value error, ") for each in errors)
        message = ", or ".join(each[0].lower() + each[1:] for each in messages)
        if isinstance(first["input"], Mapping):
            return f"{where}: {key + ': ' if key else ''}{message}"
        return f"{where}: {key} is {first['input']!r}; {message}; correct it"


def find_definition(
    study: str, overrides: Sequence[str] = (), storage: str | None = None
) -> DefinitionFile:
    """Read a study's definition by its name in ``studies/``, by its path, or from a storage.

    Args:
        study: ``stage-one``, ``somewhere/mine.toml``, or the name of a study in the storage.
        overrides: ``KEY=VALUE``, the key dotted, the value as TOML writes it.
        storage: URL of the storage that is read if there is no such file; None for no storage.

    Raises:
        DefinitionError: if there is no such file or study, it is no TOML, or an override is
            malformed.
        StorageError, StudyNotFound: if the storage or its study cannot be read.
    """
    is_toml = study.endswith(".toml")
    path = Path(study) if is_toml or "/" in study else DIRECTORY / f"{study}.toml"
    try:
        is_file = path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        is_file = False
    if is_file:
        file = DefinitionFile(name=path.stem, origin=_shown(path), stated=_read_toml(path))
    else:
        file = _find_stored(study, None if is_toml else storage)
    for override in overrides:
        key, value = _parse_override(override)
        file = file.stating(_nest(key, value))
    return file


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise DefinitionError(
            f"{_shown(path)}: cannot be read as TOML ({error}); correct it"
        ) from error


def _find_stored(study: str, storage: str | None) -> DefinitionFile:
    """Read the definition of a stored study; the storage is not changed, nor made."""
    known = ", ".join(sorted(file.stem for file in DIRECTORY.glob("*.toml")))
    allowed = f"{known}, or the path of a TOML file"
    if storage is not None:
        where = shown(parse_url(storage))
        try:
            with closing(read_storage(storage)) as opened:
                names = optuna.get_all_study_names(opened)
                if study in names:
                    stated = stored_definition(load_study(opened, study)).model_dump(mode="json")
                    origin = f"study {study!r} in {where}"
                    return DefinitionFile(name=study, origin=origin, stated=stated, is_stored=True)
            there = ", ".join(sorted(names)) or "none yet"
            allowed = f"{known}, the path of a TOML file, or a study in {where} ({there})"
        except StorageMissing:
            pass
    raise DefinitionError(f"study {study!r} is not defined; allowed: {allowed}; check the name")


def _parse_override(override: str) -> tuple[str, Any]:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise DefinitionError(
            f"--set {override!r} has no value; allowed: KEY=VALUE, as in training.steps=2000"
        )
    try:
        return key.strip(), tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, deep nesting
        raise DefinitionError(
            f"--set {override!r}: {text!r} is no TOML value; allowed: 2000, 0.5, true, [1, 2], "
            '"text" with its quotes; correct it'
        ) from error


def _nest(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    nested: dict[str, Any] = value
    return nested


def _dotted_keys(settings: Mapping[str, Any]) -> Iterator[str]:
    """Yield the dotted key of every value in nested tables."""
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from (f"{key}.{below}" for below in _dotted_keys(value))
        else:
            yield key


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Lay one nested mapping over another; tables are merged, all else is replaced."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        both = isinstance(below, Mapping) and isinstance(value, Mapping)
        merged[key] = _merge(below, value) if both else value  # type: ignore[arg-type]
    return merged


def _fields(location: Sequence[int | str]) -> list[str]:
    model: Any = Definition
    for part in location:
        annotation = model.model_fields[part].annotation
        model = next(
            (arm for arm in getattr(annotation, "__args__", ()) if hasattr(arm, "model_fields")),
            annotation,
        )
    return list(model.model_fields)


def _shown(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def _key(error: ErrorDetails) -> str:
    is_unknown = error["type"] == "extra_forbidden"  # a key may be called like a type
    location = error["loc"]
    return ".".join(str(part) for part in location if is_unknown or not _is_union_arm(part))


def _is_union_arm(part: int | str) -> bool:
    """Tell pydantic's names for a union's alternatives from keys of a definition."""
    return isinstance(part, str) and (
        "[" in part
        or part in {"bool", "int", "str", "float", "constrained-int", "constrained-float"}
    )
