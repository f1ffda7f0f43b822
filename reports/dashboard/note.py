"""A study's state → its note in Markdown, below whatever a person has written there."""

import hashlib
import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from reports.data.results import Results
from reports.formatting import nats_word, number_word, templates, value_name, worth_title
from studies.attributes import CorpusRecord
from studies.config import StudyConfig
from studies.storage.counts import TrialCounts

BEST = 5
"""Trials that the note names, and whose files are kept."""

LINE = "*Above this line is room for words of yours; what is below it, the search renews.*"
"""Parts a person's words from the note that is renewed."""

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>|~&#$!])")
"""What Markdown, in a line of text or a table, takes for more than itself."""


class Written(NamedTuple):
    """By what a text of ours is known again: how long it is, and the beginning of its SHA-256."""

    length: int
    digest: str

    @classmethod
    def of(cls, text: str) -> "Written":
        """Return what a text is known by."""
        return cls(len(text), hashlib.sha256(text.encode()).hexdigest()[:16])


def compose(
    name: str,
    config: StudyConfig,
    corpus: CorpusRecord,
    commands: Sequence[str],
    counts: TrialCounts,
    results: Results | None,
    has_effects: bool,
) -> str:
    """Write what is below the line. The same state of a study always gives the same text.

    Args:
        name: of the study.
        config: that it was made with.
        corpus: that it is trained on.
        commands: that made it and extended it.
        counts: of its points.
        results: of the same points; None where none is complete.
        has_effects: whether the figure of the effects is there to be looked at.
    """
    best = [] if results is None else results.complete.head(BEST).reset_index().to_dict("records")
    text = _TEMPLATES.get_template("note.md").render(
        name=name,
        config=config,
        corpus=corpus,
        commands=commands,
        counts=counts,
        metric=value_name(config),
        nats=nats_word(config),
        best=best,
        below=0 if results is None else len(results.below),
        has_effects=has_effects,
        has_texts=any(isinstance(row["sample"], str) for row in best),
        worth=worth_title(results is None or results.is_gated),
    )
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def joined(body: str, written: Written | None, ours: str) -> str:
    """Return a note with what is ours renewed, and all that a person wrote kept above it.

    Args:
        body: the note as it is.
        written: of the text that was ours in it, if there was one.
        ours: the text that is to take its place.
    """
    words, line, below = body.rpartition(LINE)
    below = below.strip()
    if not line:  # there was none yet, or a person has removed it
        words, below = below, ""
        if written and Written.of(words[-written.length :]) == written:
            words = words[: -written.length]
    elif written and Written.of(below[: written.length]) == written:
        # Who wrote at the very end, below what is ours, may have overlooked the line.
        words = f"{words.rstrip()}\n\n{below[written.length :].strip()}"
    return "\n\n".join(part for part in (words.strip(), LINE, ours) if part)


def is_intact(body: str, written: Written) -> bool:
    """Tell whether what is below the line is what was written there last."""
    _, line, below = body.rpartition(LINE)
    return bool(line) and Written.of(below.strip()) == written


def escaped(text: object) -> str:
    """Return a text as one line that Markdown shows as it is, in a table too."""
    return _SPECIAL.sub(r"\\\1", " ".join(str(text).split()))


def fenced(code: str, language: str) -> str:
    """Return a code block, whatever is in the code."""
    longest = max(map(len, re.findall("`+", code)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{code}\n{fence}"


def toml(config: StudyConfig) -> str:
    """Write a whole definition as the TOML that would be read as the same."""
    settings = config.model_dump(mode="json", exclude_none=True)
    tables = {name: value for name, value in settings.items() if isinstance(value, dict)}
    lines = [f"{name} = {_toml(v)}" for name, v in settings.items() if name not in tables]
    for name, table in tables.items():
        lines += ["", f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in table.items())]
    return "\n".join(lines)


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        items = ", ".join(f"{key} = {_toml(item)}" for key, item in value.items())
        return f"{{ {items} }}" if items else "{}"
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value, ensure_ascii=False)  # of a number or a text, TOML writes the same


_TEMPLATES = templates(escaping=False)
_TEMPLATES.filters |= {
    "count": "{:,}".format,
    "escaped": escaped,
    "fenced": fenced,
    "number": number_word,
    "toml": toml,
}
