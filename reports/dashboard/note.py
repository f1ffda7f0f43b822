"""A study's note in Markdown, below anything that users write there."""

import hashlib
import re
from collections.abc import Sequence
from typing import Any

import tomli_w

from reports.analysis.nuisance import join_names
from reports.analysis.ranking import rank_architectures
from reports.findings import StudyFindings
from reports.formatting import effects_title, escape_markdown, format_number, load_templates
from reports.narrative import list_warnings, write_answer
from reports.phrases import (
    describe_judged,
    describe_outcomes,
    describe_pruning,
    to_markdown,
    to_sentence,
)
from studies.attributes import CorpusRecord
from studies.config import StudyConfig
from studies.measure import find_measure
from studies.storage.counts import TrialCounts

N_BEST = 5
"""Number of best trials that the note lists and whose files are stored."""

SEPARATOR = "*Text above this line is kept. Everything below it is updated automatically.*"
"""Line between a user's text and the generated text."""


def render_note(
    name: str,
    config: StudyConfig,
    corpus: CorpusRecord | None,
    commands: Sequence[str],
    counts: TrialCounts,
    findings: StudyFindings | None,
) -> str:
    """Render the generated part of the note; equal states of a study give equal texts.

    Args:
        name: name of the study.
        config: config of the study.
        corpus: corpus of the study; None for a task other than text.
        commands: commands that created and extended the study.
        counts: number of trials by state.
        findings: findings on the same trials; None if no trial is complete.
    """
    results = findings.results if findings else None
    best = [] if results is None else rank_architectures(results, N_BEST)
    text = _TEMPLATES.get_template("note.md").render(
        name=name,
        config=config,
        corpus=corpus,
        commands=commands,
        counts=counts,
        metric=results.metric if results else None,
        measure=find_measure(config),
        shows_validation=config.is_text or (results is not None and results.shows_validation),
        metric_columns=results.metric_columns if results else {},
        best=best,
        scale=results.scale if results else None,
        noun=results.noun if results else "",
        has_networks=any(entry.architecture for entry in best),
        judged=describe_judged(results) if results else "",
        has_replicates=results is not None and results.has_replicates,
        outcomes=describe_outcomes(findings) if findings else "",
        pruning=describe_pruning(findings) if findings and findings.results.is_pruned else "",
        is_pruned=results is not None and results.is_pruned,
        effects=findings.effects if findings else [],
        answer=write_answer(findings) if findings else [],
        warnings=list_warnings(findings) if findings else [],
        nuisance=join_names(results.nuisance) if results else "",
        has_samples=any(entry.sample for entry in best),
        effects_title=effects_title(results is None or results.is_gated),
    )
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def fingerprint(text: str) -> list[int | str]:
    """Return the length and digest by which a published text is recognised, as JSON stores them."""
    return [len(text), hashlib.sha256(text.encode()).hexdigest()[:16]]


def merge_note(body: str, published: list[Any] | None, generated: str) -> str:
    """Replace the generated part of a note and keep everything that users wrote, above it.

    Args:
        body: current note.
        published: fingerprint of the generated text in it, if there is any.
        generated: new generated text.
    """
    above, separator, below = body.rpartition(SEPARATOR)
    kept = [above if separator else body]
    length = published[0] if published else 0
    for heading in re.finditer("^## ", below, re.MULTILINE):
        start, end = heading.start(), heading.start() + length
        if fingerprint(below[start:end]) == published:
            kept = [above, below[:start], below[end:]]
    return "\n\n".join([*filter(None, map(str.strip, kept)), SEPARATOR, generated])


def is_intact(body: str, published: list[Any]) -> bool:
    """Return whether the generated part of a note is still as it was published."""
    _, separator, below = body.rpartition(SEPARATOR)
    return bool(separator) and fingerprint(below.strip()) == published


def fence_code(code: str, language: str) -> str:
    """Return a code block with a fence longer than any run of backticks in the code."""
    longest = max(map(len, re.findall("`+", code)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{code}\n{fence}"


def to_toml(config: StudyConfig) -> str:
    """Return a config as TOML that loads as an equal config, where its cells' files are."""
    settings = config.model_dump(mode="json", exclude_none=True, exclude={"cells"})
    return tomli_w.dumps(settings).strip()


_TEMPLATES = load_templates(escaping=False)
_TEMPLATES.filters |= {
    "count": "{:,}".format,
    "escape_markdown": escape_markdown,
    "fence": fence_code,
    "marked": to_markdown,
    "number": format_number,
    "sentence": to_sentence,
    "toml": to_toml,
}
