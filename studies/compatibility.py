"""Compatibility of a worker's config and corpus with those of its study."""

from collections.abc import Iterator, Mapping
from typing import Any

from studies.attributes import CorpusRecord
from studies.cell_record import cell_name
from studies.config import StudyConfig

PER_WORKER = {"lease", "checkpoint", "outage", "keep_weights", "keep_checkpoints"}
"""Settings that each worker chooses independently."""

DESCRIPTIVE = ("question", "report_threshold", "nuisance", "hypothesis")
"""Settings that describe what is asked and affect no result; an extension can change them."""

_IGNORED = {"corpus", *DESCRIPTIVE, *PER_WORKER}
"""Settings that do not affect results; the corpus is compared by its hash."""


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
    expected = dict(_flat(_identity(stored, stored_corpus)))
    actual = dict(_flat(_identity(local, local_corpus)))
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
        # The order of exclusions is irrelevant.
        table["exclude"].sort(key=lambda exclusion: sorted(map(repr, exclusion.items())))
    if len(tables) == 1:
        settings["space"] = tables[0]
    elif tables:
        settings["space"] = {str(number): table for number, table in enumerate(tables, start=1)}
    del settings["task_record"]
    if config.task_record is not None:
        identity = config.task_record.identity()
        settings["task"] = identity.pop("values") | identity
    if corpus is not None:
        settings["corpus"] = corpus.model_dump(mode="json", exclude={"name"})
    return settings


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
