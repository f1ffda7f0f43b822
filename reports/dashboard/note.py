"""A study's note in Markdown, below anything that users write there."""

import hashlib
import re
from collections.abc import Sequence
from typing import Any

import tomli_w

from reports.analysis.leaderboard import rank_architectures
from reports.analysis.nuisance import describe_judged, join_names
from reports.analysis.outcomes import build_outcome_table, describe_outcomes
from reports.analysis.pruning_audit import audit_pruning
from reports.analysis.sweeps import describe_sweep, fit_sweep
from reports.data.results import Results
from reports.formatting import (
    effects_title,
    escape_markdown,
    format_number,
    load_templates,
    loss_unit,
)
from reports.stats.conditional_effects import RankedEffect, describe_insignificance
from reports.stats.outcome_table import compute_outcomes
from reports.stats.scale import format_count
from studies.attributes import CorpusRecord
from studies.config import StudyConfig
from studies.measure import find_measure
from studies.storage.counts import TrialCounts

N_BEST = 5
"""Number of best trials that the note lists and whose files are stored."""

N_EFFECTS = 3
"""Number of largest effects that the note lists."""

SEPARATOR = "*Text above this line is kept. Everything below it is updated automatically.*"
"""Line between a user's text and the generated text."""


def render_note(
    name: str,
    config: StudyConfig,
    corpus: CorpusRecord | None,
    commands: Sequence[str],
    counts: TrialCounts,
    results: Results | None,
    effects: Sequence[RankedEffect],
) -> str:
    """Render the generated part of the note; equal states of a study give equal texts.

    Args:
        name: name of the study.
        config: config of the study.
        corpus: corpus of the study; None for a task other than text.
        commands: commands that created and extended the study.
        counts: number of trials by state.
        results: results of the same trials; None if no trial is complete.
        effects: effects of the published figure, the largest first.
    """
    best = [] if results is None else rank_architectures(results, N_BEST)
    main = [each.main for each in effects]
    model = fit_sweep(results, main) if results else None
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
        outcomes=_describe_outcomes(results),
        audit=_describe_audit(results),
        is_pruned=results is not None and results.is_pruned,
        effects=main,
        additive=describe_sweep(results, model, main) if results else [],
        describe_insignificance=describe_insignificance,
        largest_effects=[each.text for each in effects if each.is_significant][:N_EFFECTS],
        nuisance=join_names(results.nuisance) if results else "",
        has_samples=any(entry.sample for entry in best),
        effects_title=effects_title(results is None or results.is_gated),
    )
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def _describe_outcomes(results: Results | None) -> str:
    """Say which changes bring networks below the threshold; "" without one."""
    if results is None or results.config.report_threshold is None:
        return ""
    table = build_outcome_table(results, results.config.report_threshold)
    return describe_outcomes(compute_outcomes(table), results, loss_unit(results.config))


def _describe_audit(results: Results | None) -> str:
    """Say what the audited trials of a pruned study measure; "" if the study is not pruned."""
    if results is None or not results.is_pruned:
        return ""
    audit = audit_pruning(results)
    if audit is None:
        return "No trial was audited: what pruning lost is not known."
    counts = results.counts
    drawn = format_count(audit.trials, "audited trial")
    if counts.finished < counts.planned or not audit.is_valid or not audit.stopped:
        return (
            f"{drawn}: what pruning lost is not known{' yet' * (counts.finished < counts.planned)}."
        )
    best = f"best {audit.top_count} {results.judged_noun}s"
    text = (
        f"{drawn}: with 95% confidence at least {audit.recall_low:.0%} of the {best} are complete, "
        f"and {audit.inside} of {audit.tested} finished within two scales of their predictions "
        f"({audit.stated_share:.0%} expected)"
    )
    return f"{text}: **the predictions were not right**." if audit.is_alarm else f"{text}."


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
    "number": format_number,
    "toml": to_toml,
}
