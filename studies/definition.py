"""The validated form of a study's ``*.toml``; unknown keys and contradictions refused by name."""

import itertools
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from studies.errors import DefinitionError

Value = bool | int | str
Point = dict[str, Value]
"""A value for each searched parameter."""

PARAMETERS = (
    "input_gate",
    "forget_gate",
    "output_gate",
    "state_gate",
    "residual",
    "state_source",
    "layers",
    "state_size",
)
REPLICATE = "replicate"
"""The parameter that numbers an architecture's replicates, in studies that have them."""

DIRECTORY = Path(__file__).parent
"""Where the definitions are found by name."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Space(_Strict):
    """The values of each searched parameter, and the combinations to leave out."""

    input_gate: list[bool] = [False, True]
    forget_gate: list[bool] = [False, True]
    output_gate: list[bool] = [False, True]
    state_gate: list[bool] = [False, True]
    residual: list[bool] = [False, True]
    state_source: list[Literal["new", "old", "both"]] = ["new", "old", "both"]
    layers: list[PositiveInt]
    state_size: list[PositiveInt]
    exclude: list[dict[str, Value]] = []

    @field_validator(*PARAMETERS)
    @classmethod
    def _distinct(cls, values: list[Value]) -> list[Value]:
        if not values:
            raise ValueError("one value or more")
        if len(set(values)) < len(values):
            raise ValueError("each value once")
        return values

    @model_validator(mode="after")
    def _sensible_exclusions(self) -> "Space":
        for exclusion in self.exclude:
            if not exclusion:
                raise ValueError("exclude: {} would leave out every point; name a parameter")
            for name, value in exclusion.items():
                if name not in PARAMETERS:
                    raise ValueError(f"exclude names {name!r}; allowed: {', '.join(PARAMETERS)}")
                if not _among(value, self.values(name)):
                    raise ValueError(
                        f"exclude has {name} = {value!r}; allowed: {_join(self.values(name))}"
                    )
        if next(self.points(), None) is None:
            raise ValueError("exclude leaves no point; allowed: at least one; exclude less")
        return self

    def values(self, parameter: str) -> Sequence[Value]:
        """Return a parameter's values in the order of the definition."""
        values: Sequence[Value] = getattr(self, parameter)
        return values

    def points(self) -> Iterator[Point]:
        """Yield the grid's points less the excluded, the last parameter varying fastest."""
        for combination in itertools.product(*map(self.values, PARAMETERS)):
            point = dict(zip(PARAMETERS, combination, strict=True))
            if not any(exclusion.items() <= point.items() for exclusion in self.exclude):
                yield point


class Refinement(_Strict):
    """How a study's points follow from another study's results."""

    source: str
    best: Annotated[float, Field(gt=0, lt=1)] | PositiveInt = 0.1
    variants: list[dict[str, Value]] = [{}]
    replicates: PositiveInt = 1

    @field_validator("variants")
    @classmethod
    def _known_parameters(cls, variants: list[dict[str, Value]]) -> list[dict[str, Value]]:
        if not variants:
            raise ValueError("one variant or more ({} is the architecture as it is)")
        for variant in variants:
            for name, value in variant.items():
                if name not in PARAMETERS:
                    raise ValueError(f"a variant names {name!r}; allowed: {', '.join(PARAMETERS)}")
                # The one place that knows which values a parameter may have is Space.
                Space.model_validate({"layers": [1], "state_size": [1]} | {name: [value]})
        return variants


class TrainingSettings(_Strict):
    """How each network is trained; :class:`rnn.training.Training` says what the words mean."""

    steps: PositiveInt = 10_000
    batch_size: PositiveInt = 256
    sequence_length: Annotated[int, Field(ge=2)] = 1000
    log_every: PositiveInt = 50
    learning_rate: PositiveFloat = 0.001
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.95

    @model_validator(mode="after")
    def _logged(self) -> "TrainingSettings":
        if self.log_every > self.steps:
            raise ValueError(
                f"log_every is {self.log_every} and steps {self.steps}; allowed: log_every at "
                "most steps, for a trial's value is taken at its log points; change one of them"
            )
        return self


class EvaluationSettings(_Strict):
    """The lanes of held-out text on which each network is measured at its end."""

    lanes: PositiveInt = 256
    lane_length: Annotated[int, Field(ge=2)] = 1000


class Definition(_Strict):
    """A study: a grid to search (``space``) or points that follow from one (``refinement``)."""

    question: str = ""
    threshold: PositiveFloat | None = None
    corpus: str = "stdlib"
    vocabulary: Literal["bytes"] = "bytes"
    objective: Literal["training"] = "training"
    gate_inputs: Literal["state", "candidate"] = "state"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    training: TrainingSettings = TrainingSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    space: Space | None = None
    refinement: Refinement | None = None

    @model_validator(mode="after")
    def _one_origin(self) -> "Definition":
        if (self.space is None) == (self.refinement is None):
            has = "neither" if self.space is None else "both"
            raise ValueError(f"has {has} of [space] and [refinement]; allowed: one of them")
        return self


class DefinitionFile(BaseModel):
    """A definition as it was written: what it states, and where it was read."""

    name: str
    path: Path
    stated: dict[str, Any]
    overridden: list[str] = []

    def stating(self, settings: Mapping[str, Any]) -> "DefinitionFile":
        """Return the same definition with more settings stated, as by ``--set``."""
        return self.model_copy(
            update={
                "stated": _merge(self.stated, settings),
                "overridden": [*self.overridden, *settings],
            }
        )

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
        own = ("space", "refinement", "question")
        inherited = {key: value for key, value in source.items() if key not in own}
        return self._validate(_merge(inherited, self.stated))

    def _validate(self, raw: Mapping[str, Any]) -> Definition:
        try:
            return Definition.model_validate(raw)
        except ValidationError as error:
            raise DefinitionError(self._explain(error)) from error

    def _explain(self, error: ValidationError) -> str:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"] if not _is_union_arm(part))
        # An override is to blame for what it set, and for what that contradicts around it.
        blamed = any(
            f"{o}.".startswith(f"{key}.") or f"{key}.".startswith(f"{o}.") for o in self.overridden
        )
        where = "--set" if key and blamed else _shown(self.path)
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        if first["type"] == "extra_forbidden":
            allowed = ", ".join(_fields(first["loc"][:-1]))
            return f"{where}: {key} is no known key; allowed here: {allowed}; correct it{more}"
        message = first["msg"].removeprefix("Value error, ")
        message = message[0].lower() + message[1:]
        if isinstance(first["input"], Mapping):
            return f"{where}: {key + ': ' if key else ''}{message}{more}"
        return f"{where}: {key} is {first['input']!r}; {message}; correct it{more}"


def find_definition(study: str, overrides: Sequence[str] = ()) -> DefinitionFile:
    """Read a study's definition by its name in ``studies/`` or by its path.

    Args:
        study: ``stage-one``, or ``somewhere/mine.toml``.
        overrides: ``KEY=VALUE``, the key dotted, the value as TOML writes it.

    Raises:
        DefinitionError: if there is no such file, it is no TOML, or an override is malformed.
    """
    is_path = study.endswith(".toml") or "/" in study
    path = Path(study) if is_path else DIRECTORY / f"{study}.toml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in DIRECTORY.glob("*.toml")))
        raise DefinitionError(
            f"study {study!r} is not defined; allowed: {known}, or the path of a TOML file; "
            "check the name"
        )
    try:
        stated = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise DefinitionError(
            f"{_shown(path)}: cannot be read as TOML ({error}); correct it"
        ) from error
    file = DefinitionFile(name=path.stem, path=path, stated=stated)
    for override in overrides:
        key, value = _parse_override(override)
        file = file.stating(_nest(key, value)).model_copy(
            update={"overridden": [*file.overridden, key]}
        )
    return file


def _parse_override(override: str) -> tuple[str, Any]:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise DefinitionError(
            f"--set {override!r} has no value; allowed: KEY=VALUE, as in training.steps=2000"
        )
    try:
        return key.strip(), tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError as error:
        raise DefinitionError(
            f"--set {override!r}: {text!r} is no TOML value; allowed: 2000, 0.5, true, [1, 2], "
            '"text" with its quotes; correct it'
        ) from error


def _nest(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    nested: dict[str, Any] = value
    return nested


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


def _is_union_arm(part: int | str) -> bool:
    """Tell pydantic's names for a union's alternatives from keys of a definition."""
    return isinstance(part, str) and (
        "[" in part
        or part in {"bool", "int", "str", "float", "constrained-int", "constrained-float"}
    )


def _among(value: Value, values: Sequence[Value]) -> bool:
    return any(value == other and type(value) is type(other) for other in values)


def _join(values: Sequence[Value]) -> str:
    return ", ".join(map(repr, values))
