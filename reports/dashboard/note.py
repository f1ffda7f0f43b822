"""A study's note in Markdown, below anything that users write there."""

import re
import shlex

import tomli_w

from reports.analysis.leaderboard import rank_architectures
from reports.analysis.nuisance import join_names
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
from studies.config import StudyConfig

N_BEST = 5
"""Number of best trials that the note lists and whose files are stored."""


def render_note(findings: StudyFindings) -> str:
    """Render the generated part of the note; equal states of a study give equal texts.

    Args:
        findings: findings of the study, of which no trial may be complete.
    """
    results = findings.results
    has_answer = results.counts.complete > 0 and not results.config.task_names
    text = _TEMPLATES.get_template("note.md").render(
        results=results,
        command=shlex.join(["rnn-search", "report", results.name]),
        config=results.config,
        counts=results.counts,
        measure=results.measure,
        metric=results.metric,
        best=rank_architectures(results, N_BEST) if has_answer else [],
        judged=describe_judged(results),
        outcomes=describe_outcomes(findings) if has_answer else "",
        pruning=describe_pruning(findings) if has_answer and results.is_pruned else "",
        effects=findings.effects if has_answer else [],
        answer=write_answer(findings) if has_answer else [],
        warnings=list_warnings(findings) if has_answer else [],
        nuisance=join_names(results.nuisance),
        effects_title=effects_title(results.is_gated),
    )
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def to_toml(config: StudyConfig) -> str:
    """Return a config as TOML that loads as an equal config, where the files it names are."""
    settings = config.model_dump(
        mode="json", exclude_none=True, exclude={"cells", "task_record", "task_records"}
    )
    return tomli_w.dumps(settings).strip()


_TEMPLATES = load_templates(escaping=False)
_TEMPLATES.filters |= {
    "count": "{:,}".format,
    "escape_markdown": escape_markdown,
    "marked": to_markdown,
    "number": format_number,
    "sentence": to_sentence,
    "toml": to_toml,
}
