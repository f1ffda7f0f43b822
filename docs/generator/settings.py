"""Reference of study files and stored attributes, from the pydantic models that validate them."""

import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import griffe
from pydantic import BaseModel

from docs.generator.source_pages import ROOT
from docs.generator.tables import make_table
from rnn.config import GatedOptions, NetworkConfig, OptimizerConfig
from studies.attributes import StudyRecord, TrialRecord
from studies.config import StudyConfig
from studies.records import TaskSettings
from studies.space import GATED_PARAMS, SWITCHES, Refinement, Space
from studies.stated_hypotheses import Hypothesis
from studies.study_settings import (
    OPTIMIZER_PARAMS,
    CheckpointSettings,
    EvaluationSettings,
    LeaseSettings,
    LoopSettings,
    OutageSettings,
    PruningSettings,
    TrainingSettings,
)

SMALL_TABLES = ("evaluation", "pruning", "lease", "checkpoint", "outage")
"""Tables of a study file that are described together."""

STUDY_TABLES: dict[str, type[BaseModel]] = {
    "study": StudyConfig,
    "task": TaskSettings,
    "space": Space,
    "training": TrainingSettings,
    "evaluation": EvaluationSettings,
    "pruning": PruningSettings,
    "lease": LeaseSettings,
    "checkpoint": CheckpointSettings,
    "outage": OutageSettings,
    "loop": LoopSettings,
    "hypothesis": Hypothesis,
    "refinement": Refinement,
}
"""Model of each table of a study file; ``study``: the keys before the first table."""

_PLURAL = re.compile("^(integer|text|table)")
"""Types of which a list is named in the plural."""

_TYPES = {"boolean": "`true` or `false`", "string": "text", "object": "table"}


def describe_settings(*tables: str) -> str:
    """Return the settings of tables of a study file, with types, bounds, defaults and units.

    Settings of several tables have dotted names.
    """
    rows = [row for table in tables for row in _list_settings(table, len(tables) > 1)]
    return make_table(("key", "meaning", "values"), rows)


def _list_settings(table: str, is_dotted: bool) -> Iterator[tuple[str, ...]]:
    model = STUDY_TABLES[table]
    schema = model.model_json_schema()
    for name, field in schema["properties"].items():
        meaning = describe_field(model, name)
        if meaning:  # others are tables with a section of their own
            key = f"{table}.{name}" if is_dotted else name
            yield f"`{key}`", meaning, _describe_values(field, name in schema.get("required", ()))


def describe_attributes(model: type[TrialRecord | StudyRecord]) -> str:
    """Return the user attributes of a trial or a study, with units."""
    rows = []
    for name, field in model.model_fields.items():
        extra = field.json_schema_extra
        unit = extra.get("unit", "") if isinstance(extra, dict) else ""
        rows.append((f"`{name}`", str(unit), describe_field(model, name)))
    return make_table(("attribute", "unit", "meaning"), rows)


def describe_field(model: type[BaseModel], name: str) -> str:
    """Return the docstring of a model's field, in one line; "" if it has none."""
    if name in GATED_PARAMS:
        return _describe_attribute(GatedOptions if name in SWITCHES else NetworkConfig, name)
    if model is TrainingSettings and name in OPTIMIZER_PARAMS:
        return _describe_attribute(OptimizerConfig, "name" if name == "optimizer" else name)
    member = _parse_module(model.__module__)[model.__name__].all_members[name]
    return " ".join(member.docstring.value.split()) if member.docstring else ""


def _describe_attribute(cls: type, name: str) -> str:
    """Return what the docstring of a dataclass says about an attribute."""
    docstring = _parse_module(cls.__module__)[cls.__name__].docstring
    (text,) = (
        attribute.description
        for section in docstring.parse("google")
        if isinstance(section, griffe.DocstringSectionAttributes)
        for attribute in section.value
        if attribute.name == name
    )
    text = " ".join(text.split())
    return text[0].upper() + text[1:]


@cache
def _parse_module(name: str) -> griffe.Module:
    module = griffe.load(name, search_paths=[str(ROOT)], allow_inspection=False)
    assert isinstance(module, griffe.Module)
    return module


def _describe_values(field: dict[str, Any], is_required: bool) -> str:
    """Return the type of a setting, its bounds, unit and default."""
    unit = f", in {field['unit']}" if "unit" in field else ""
    text = f"{_describe_type(field)}{unit}"
    if is_required:
        return f"{text}; required"
    default = field.get("default")
    return text if default is None else f"{text}; default `{json.dumps(default)}`"


def _describe_type(field: dict[str, Any]) -> str:
    if choices := field.get("anyOf", field.get("oneOf")):
        kinds = [_describe_type(choice) for choice in choices if choice.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    if "enum" in field or "const" in field:
        values = field.get("enum", [field.get("const")])
        return ", ".join(f"`{json.dumps(value)}`" for value in values)
    kind = field.get("type", "object")
    if kind == "array":
        return "list of " + _PLURAL.sub(r"\1s", _describe_type(field["items"]))
    return _TYPES[kind] if kind in _TYPES else kind + describe_bounds(field, kind == "integer")


def describe_bounds(field: Mapping[str, Any], is_integer: bool) -> str:
    """Return the bounds of a number in words, each with a space before it.

    Args:
        field: bounds by their names in JSON Schema, such as ``exclusiveMinimum``.
        is_integer: whether the number is an integer.
    """
    # Some versions of pydantic write 0.0 for 0.
    low, above, high, below = (
        int(bound) if bound is not None and bound == int(bound) else bound
        for bound in map(field.get, ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"))
    )
    if is_integer:
        low = above + 1 if above is not None else low
        high = below - 1 if below is not None else high
        above = below = None
    words = [
        f"{word} {bound:,}"
        for word, bound in (("from", low), ("above", above), ("to", high))
        if bound is not None and bound < 2**63 - 1  # any integer that a database holds
    ]
    text = "".join(f" {word}" for word in words)
    if below is None:
        return text
    return f"{text}{',' if words else ''} below {below:,}"
