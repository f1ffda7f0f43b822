"""A ``*.toml`` or a stored study, and the command line's overrides → a definition, or an error."""
# TODO-MERGE What a study stores about itself, validated: its definition, its corpus, its
# vocabulary.

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

import optuna
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from studies.attributes import CONFIG, CORPUS, TOKENIZER, CorpusRecord, TokenizerRecord
from studies.config import StudyConfig
from studies.errors import ConfigError, StorageNotFoundError, StudyNotFoundError
from studies.storage.engine import parse_url, redact
from studies.storage.open import load_study, read_storage

CONFIG_DIR = Path(__file__).parent
"""Where the definitions are found by name."""


class ConfigFile(BaseModel):
    """A definition as it was written: what it states, and where it was read.

    Attributes:
        name: of the study.
        origin: where it was read, as errors name it.
        settings: its settings.
        overridden: the keys of those that the command line stated.
        is_stored: whether it was read from a study in the storage, and so states every setting.
    """

    name: str
    origin: str
    settings: dict[str, Any]
    overridden: list[str] = []
    is_stored: bool = False

    def with_overrides(self, overrides: Mapping[str, Any]) -> "ConfigFile":
        """Return the same definition with more settings stated, as by ``--set``."""
        return self.model_copy(
            update={
                "settings": _merge(self.settings, overrides),
                "overridden": [*self.overridden, *_dotted_keys(overrides)],
            }
        )

    @property
    def source(self) -> str | None:
        """The study that this one states to be derived from."""
        refinement = self.settings.get("refinement")
        source = refinement.get("source") if isinstance(refinement, Mapping) else None
        return source if isinstance(source, str) else None

    def resolve(self) -> StudyConfig:
        """Validate what the file states, the rest by default.

        Raises:
            ConfigError: for an unknown key, a wrong type or value, or a contradiction.
        """
        return self._validate(self.settings)

    def resolve_over(self, source: Mapping[str, Any]) -> StudyConfig:
        """Validate what the file states, the rest as in the source study's definition.

        A derived study must not differ from its source by accident: text, precision, seed and the
        form of the gates stay what they were unless the file says otherwise.

        Args:
            source: a :meth:`pydantic.BaseModel.model_dump` of the source's definition.
        """
        own = ("space", "refinement", "question", "pruning", "eval_split")
        inherited = {key: value for key, value in source.items() if key not in own}
        return self._validate(_merge(inherited, self.settings))

    def _validate(self, raw: Mapping[str, Any]) -> StudyConfig:
        try:
            return StudyConfig.model_validate(raw)
        except ValidationError as error:
            raise ConfigError(self._explain(error)) from error

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


def load_config_file(
    study: str, overrides: Sequence[str] = (), storage: str | None = None
) -> ConfigFile:
    """Read a study's definition by its name in ``studies/``, by its path, or from a storage.

    Args:
        study: ``stage-one``, ``somewhere/mine.toml``, or the name of a study in the storage.
        overrides: ``KEY=VALUE``, the key dotted, the value as TOML writes it.
        storage: URL of the storage that is read if there is no such file; None for no storage.

    Raises:
        ConfigError: if there is no such file or study, it is no TOML, or an override is
            malformed.
        StorageError, StudyNotFound: if the storage or its study cannot be read.
    """
    is_toml = study.endswith(".toml")
    path = Path(study) if is_toml or "/" in study else CONFIG_DIR / f"{study}.toml"
    try:
        is_file = path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        is_file = False
    if is_file:
        file = ConfigFile(name=path.stem, origin=_shown(path), settings=_read_toml(path))
    else:
        file = _find_stored(study, None if is_toml else storage)
    for override in overrides:
        key, value = _parse_override(override)
        file = file.with_overrides(_nest(key, value))
    return file


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(
            f"{_shown(path)}: cannot be read as TOML ({error}); correct it"
        ) from error


def _find_stored(study: str, storage: str | None) -> ConfigFile:
    """Read the definition of a stored study; the storage is not changed, nor made."""
    known = ", ".join(sorted(file.stem for file in CONFIG_DIR.glob("*.toml")))
    allowed = f"{known}, or the path of a TOML file"
    if storage is not None:
        where = redact(parse_url(storage))
        try:
            with closing(read_storage(storage)) as opened:
                names = optuna.get_all_study_names(opened)
                if study in names:
                    settings = stored_config(load_study(opened, study)).model_dump(mode="json")
                    origin = f"study {study!r} in {where}"
                    return ConfigFile(name=study, origin=origin, settings=settings, is_stored=True)
            there = ", ".join(sorted(names)) or "none yet"
            allowed = f"{known}, the path of a TOML file, or a study in {where} ({there})"
        except StorageNotFoundError:
            pass
    raise ConfigError(f"study {study!r} is not defined; allowed: {allowed}; check the name")


def _parse_override(override: str) -> tuple[str, Any]:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(
            f"--set {override!r} has no value; allowed: KEY=VALUE, as in training.steps=2000"
        )
    try:
        return key.strip(), tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, deep nesting
        raise ConfigError(
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
    model: Any = StudyConfig
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


_Model = TypeVar("_Model", bound=BaseModel)


def stored_config(study: optuna.Study) -> StudyConfig:
    """Return the definition that a study was created with.

    Raises:
        StudyNotFoundError: if another program, or another version of this one, wrote it.
    """
    raw = _attribute(study, CONFIG)
    if isinstance(raw, dict) and isinstance(raw.get("evaluation", {}), dict):
        # Studies from before this setting existed evaluated the last weights.
        raw = raw | {"evaluation": {"average": 0.0} | raw.get("evaluation", {})}
    return _validate(study, CONFIG, StudyConfig, raw)


def stored_corpus(study: optuna.Study) -> CorpusRecord:
    """Return the corpus that a study is trained on; raises like :func:`stored_config`."""
    return _validate(study, CORPUS, CorpusRecord, _attribute(study, CORPUS))


def stored_tokenizer(study: optuna.Study) -> TokenizerRecord | None:
    """Return a study's vocabulary, None for bytes; raises like :func:`stored_config`."""
    raw = study.user_attrs.get(TOKENIZER)
    return None if raw is None else _validate(study, TOKENIZER, TokenizerRecord, raw)


def _attribute(study: optuna.Study, key: str) -> Any:
    raw = study.user_attrs.get(key)
    if raw is None:
        raise StudyNotFoundError(
            f"study {study.study_name!r} was not made by run_search.py or refine.py; allowed: "
            "studies that were; check the name"
        )
    return raw


def _validate(study: optuna.Study, key: str, model: type[_Model], raw: Any) -> _Model:
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        location = ".".join(map(str, (key, *error.errors()[0]["loc"])))
        raise StudyNotFoundError(
            f"study {study.study_name!r} was written by another version of this program: "
            f"{location} is not valid here; use that version, or start a new study under another "
            "name"
        ) from error
