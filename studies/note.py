"""The note of a study that optuna-dashboard shows.

It is written without ``optuna_dashboard``, whose import takes seconds. A dashboard stores with the
note a version, which it raises with each edit: so a note of another version than the one that this
program wrote has a user's text.
"""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from studies.attributes import NOTE
from studies.files import default_report
from studies.storage.edits import update_system_attributes
from studies.storage.storage import LeasedRDBStorage
from studies.text import escape_markdown

_VERSION = "dashboard:note_ver"
_PIECE = "dashboard:note_str:"
_PIECE_LENGTH = 2045
"""Number of characters in each attribute with a piece of the text."""


def write_text(
    name: str,
    question: str,
    commands: Sequence[str],
    report: Path | None = None,
    answer: Sequence[str] = (),
) -> str:
    """Write the text of a study's note, as Markdown.

    Args:
        name: name of the study.
        question: its question; "" for none.
        commands: commands that created and extended it.
        report: its report; None if it is not written yet.
        answer: lines of the report's answer.
    """
    parts = [f"## {escape_markdown(question or name)}"]
    if answer:
        parts.append("\n".join(f"- {escape_markdown(line)}" for line in answer))
    # Indented lines are code: nothing in them has to be escaped.
    if commands:
        parts.append(f"    {commands[0]}")
    if report is None:
        command = shlex.join(["rnn-search", "report", name])
        parts += [f"    {command}", "writes the report:"]
        report = default_report([name])
    else:
        parts.append("The report:")
    parts.append(f"    {report}")
    return "\n\n".join(parts)


def to_attributes(text: str, stored: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the system attributes of a study with a note.

    Args:
        text: text of the note.
        stored: system attributes with an earlier note, whose pieces are emptied.
    """
    attributes: dict[str, Any] = {key: "" for key in stored or {} if key.startswith(_PIECE)}
    for start in range(0, len(text), _PIECE_LENGTH):
        attributes[f"{_PIECE}{start // _PIECE_LENGTH}"] = text[start : start + _PIECE_LENGTH]
    return attributes | {_VERSION: 1, NOTE: 1}


def update_note(storage: LeasedRDBStorage, study_id: int, text: str) -> None:
    """Replace the note of a study, unless a user has edited or written it."""

    def replace(stored: dict[str, Any]) -> dict[str, Any]:
        is_edited = stored.get(_VERSION) != stored.get(NOTE)
        return {} if is_edited else to_attributes(text, stored)

    update_system_attributes(storage, study_id, replace)
